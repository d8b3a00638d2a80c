"""A sweep's cells in TensorBoard's HParams tab: what was chosen, and which runs are the same but
for their seed.
"""

import time

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata, summary_v2
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from torch.utils.tensorboard import SummaryWriter

from lmlab.catalogue import OF_THE_RUN
from lmlab.config.check import Config
from lmlab.config.keys import marked


def write_hparams(board: SummaryWriter, group: str, config: Config, status: str, step: int) -> None:
    """Only that a session began and ended, without a list of columns: so TensorBoard finds the
    columns itself, also those of cells that come later, and shows the mean over a group. What
    didn't finish is a group of its own, so that its last loss doesn't enter the mean.
    """
    chosen = {
        key: "null" if value is None else value
        for key, value in config.flat().items()
        if key not in marked(OF_THE_RUN)
    }
    began = summary_v2.hparams_pb(chosen, group if status == "finished" else f"{group} {status}")
    ended = HParamsPluginData(
        session_end_info=SessionEndInfo(
            status=STATUS_SUCCESS if status == "finished" else STATUS_FAILURE,
            end_time_secs=time.time(),
        )
    )
    end = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(ended),
        tensor=metadata.NULL_TENSOR,
    )
    for summary in (began, Summary(value=[end])):
        board.file_writer.add_summary(summary, step)
