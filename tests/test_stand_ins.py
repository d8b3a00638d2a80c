"""What torchmetrics imports for nothing is imported when it is used, and then it is the real thing."""

import os
import subprocess
import sys
import textwrap

from tests.conftest import ROOT


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_run_imports_neither_and_a_metric_can_still_be_drawn():
    run(
        """
        import sys
        from lmlab.registry import importing
        with importing():
            import lmlab.training.experiment
            import torchmetrics
        assert not {"matplotlib", "scipy.signal"} & {*sys.modules}
        import torchmetrics.utilities.plot as drawing
        assert drawing.plt.__class__.__name__ == "StandIn"
        metric = torchmetrics.MeanMetric()
        metric.update(2)
        figure, axes = metric.plot()
        import matplotlib.figure, matplotlib.pyplot, scipy.signal
        assert type(figure) is matplotlib.figure.Figure and axes in figure.axes
        assert drawing.plt.subplots is matplotlib.pyplot.subplots
        assert len(scipy.signal.windows.hamming(3)) == 3
        assert torchmetrics.__spec__.loader.get_source("torchmetrics")
        """
    )


def test_what_a_program_has_imported_itself_stays_what_it_is():
    """Also if something unforeseen of a stand-in is asked for while torchmetrics is imported."""
    run(
        """
        import sys, matplotlib
        from lmlab import stand_ins
        stand_ins.put_in()
        assert sys.modules["matplotlib"] is matplotlib
        assert "matplotlib.pyplot" not in sys.modules
        import scipy.signal as standing
        assert standing.hamming is None and standing.convolve([1, 2], [3]).tolist() == [3, 6]
        import scipy.signal as real
        assert real is not standing and real.convolve is standing.convolve
        assert not stand_ins.PRESENT
        """
    )
