"""Writes TensorBoard's events of a run: curves, texts, pictures, hyper-parameters."""

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata, summary_v2
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from torch.utils.tensorboard import SummaryWriter

from lmlab.config.keys import marked
from lmlab.errors import reason_of
from lmlab.markers import OF_THE_RUN
from lmlab.runs.tags import charts, tag_of


class Board:
    """Writes TensorBoard's events file of the run at `path`. Tags are those of `tag_of`.

    A resumed run gives its first new step as `purge_step`. TensorBoard then forgets the points from
    this step on; they were written after the checkpoint and will be written again. If the file
    cannot be written, `warn` is called once with the reason, and the run goes on without it.
    """

    def __init__(self, path: Path, warn: Callable[[str], object], purge_step: int = 0) -> None:
        self.warn = warn
        self.writer: Any = None  # None: nothing is written, because an error came
        self.opened: int | None = None  # the folder, if it was opened
        with self.harmless():
            if encodable(str(path)) != str(path):  # TensorBoard takes only names in UTF-8
                self.opened = os.open(path, os.O_RDONLY)
                path = Path(f"/proc/self/fd/{self.opened}")
            self.writer = SummaryWriter(path, purge_step=purge_step)
            if purge_step == 0:
                self.writer._get_file_writer().add_summary(Summary(value=[charts()]), 0)

    @contextmanager
    def harmless(self) -> Iterator[None]:
        """A context in which an error becomes a warning, and ends the writing."""
        try:
            yield
        except Exception as error:
            self.writer = None
            self.warn(f"TensorBoard's curves end here, they cannot be written: {reason_of(error)}")

    def show(self, values: Mapping[str, float | str | np.ndarray], step: int) -> None:
        """Writes each value by its type: a number, a text, or a picture (H, W, 3) of uint8."""
        if self.writer is None:
            return
        with self.harmless():
            for name, value in values.items():
                tag = tag_of(name)
                if tag is None:
                    continue
                if isinstance(value, str):
                    self.writer.add_text(tag, f"```\n{encodable(value)}\n```", step)
                elif isinstance(value, np.ndarray):
                    self.writer._get_file_writer().add_summary(summary_of(tag, value), step)
                else:
                    self.writer.add_scalar(tag, value, step)

    def show_table(self, name: str, values: Mapping[str, Any], step: int) -> None:
        """Writes keys and values as a table among the texts of a step, below the samples."""
        rows = "".join(f"|{key}|{encodable(str(value))}|\n" for key, value in values.items())
        if self.writer is not None:
            with self.harmless():
                self.writer.add_text(f"setup/{name}", f"|key|value|\n|-|-|\n{rows}", step)

    def show_hparams(
        self, group: str, values: Mapping[str, str | float | None], status: str, step: int
    ) -> None:
        """Writes the hyper-parameters of a run that has ended with `status`.

        The events name no columns, so TensorBoard finds the columns itself, also those of later
        cells. It shows the mean over a group. A run that did not finish is in a separate group,
        so its last loss is not part of the mean.
        """
        if self.writer is None:
            return
        finished = status == "finished"
        shown = {key: value for key, value in values.items() if key not in marked(OF_THE_RUN)}
        hparams = {key: as_hparam(value) for key, value in shown.items()}
        session_end = SessionEndInfo(
            status=STATUS_SUCCESS if finished else STATUS_FAILURE, end_time_secs=time.time()
        )
        end = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(
                HParamsPluginData(session_end_info=session_end)
            ),
            tensor=metadata.NULL_TENSOR,
        )
        with self.harmless():
            begin = summary_v2.hparams_pb(hparams, group if finished else f"{group} {status}")
            file_writer = self.writer._get_file_writer()
            file_writer.add_summary(begin, step)
            file_writer.add_summary(Summary(value=[end]), step)

    def flush(self) -> None:
        """Writes all events so far to the file."""
        if self.writer is not None:
            with self.harmless():
                self.writer.flush()

    def close(self) -> None:
        """Writes the remaining events and closes the file."""
        if self.writer is not None:
            with self.harmless():
                self.writer.close()
        if self.opened is not None:
            os.close(self.opened)
            self.opened = None


def summary_of(tag: str, picture: np.ndarray) -> Summary:
    """Returns a picture (H, W, 3) of uint8 as an entry of an events file.

    One without colours, which most are, is written as a grey one: a third of the bytes and time.
    """
    from PIL import Image  # takes time, and many runs draw nothing

    red, green, blue = np.moveaxis(picture, -1, 0)
    is_grey = np.array_equal(red, green) and np.array_equal(red, blue)
    file = io.BytesIO()
    Image.fromarray(red if is_grey else picture).save(file, "PNG")
    height, width, n_colors = picture.shape
    image = Summary.Image(
        height=height,
        width=width,
        colorspace=1 if is_grey else n_colors,
        encoded_image_string=file.getvalue(),
    )
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def as_hparam(value: str | float | None) -> str | float:
    """Returns a value as TensorBoard's table of hyper-parameters takes it."""
    if value is None:
        return "null"
    return encodable(value) if isinstance(value, str) else value


def encodable(text: str) -> str:
    """Returns a text in which a question mark stands for each byte that is not UTF-8.

    The name of a file may contain such bytes.
    """
    return text.encode(errors="replace").decode()
