"""Makes the samples of runs short: in tests they would take a tenth of the time.

Whatever process imports it has them: that of a test, and the server from which cells are forked.
"""

from lmlab.inference import evaluations
from lmlab.training import experiment

evaluations.SAMPLED = experiment.SAMPLE = 12
