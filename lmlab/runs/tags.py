"""What TensorBoard calls the numbers of a run, and which of them it shows together.

It sorts cards by name, in groups of what is before the slash, and opens the first two groups.
"""

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from lmlab.numbers import UPDATE_RATIO

# Numbers and pictures without a group, and the tags that give them one.
GROUPED = {
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "attention": "view/attention",
    "bigram": "view/bigram",
    "by_position": "view/by_position",
    "calibration": "view/calibration",
    "picture": "view/picture",
    "update_ratio": "view/update_ratio",
}
# Above all other cards. A run has one of the two names of the speed; older runs have the last.
PINNED = ("val/loss", "train/loss", "train/tokens_per_second", "tokens_per_second")
PICTURED = ("view/bigram", "view/attention")  # above them, too, if only one run is shown

# Charts of several numbers, by category and title. Older runs have tags without a group.
CHARTS = {
    "losses": {
        "training and validation": ["^(train|val)/loss$"],
        "lowest on validation so far": ["^best/val/loss$"],
    },
    "speed": {"tokens per second": ["^(train/)?tokens_per_second$"]},
    "steps": {
        "learning rate": ["^(train/)?lr$"],
        "norm of the gradient": ["^(train/)?grad_norm$"],
    },
}


def tag_of(name: str) -> str | None:
    """Returns the tag of a number, text or picture, or None if it is not shown."""
    if name.startswith(UPDATE_RATIO):  # a card for each matrix; a picture has them all
        return None
    return GROUPED.get(name, name)


def charts() -> Summary.Value:
    """Returns the layout of the tab Custom Scalars as an entry of an events file.

    It is the same in every run, and TensorBoard shows equal charts once.
    """
    categories = []
    for title, titles in CHARTS.items():
        shown = [
            layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=tags))
            for name, tags in titles.items()
        ]
        categories.append(layout_pb2.Category(title=title, chart=shown))
    content = layout_pb2.Layout(category=categories).SerializeToString()
    return Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=TensorProto(dtype=DT_STRING, string_val=[content]),
    )
