"""The rooms of lmlab/ stand on each other: imports go down only."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = (  # the lowest first; rooms of one floor do not import each other
    ("errors", "registry"),
    ("catalogue", "files"),
    ("config",),
    ("data", "machine", "models"),
    ("runs",),
    ("inference",),
    ("training",),
    ("sweep",),
    ("commands",),
)
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}


def room_of(path):
    """The room, or ground file, that a file of lmlab/ belongs to."""
    return path.relative_to(ROOT / "lmlab").with_suffix("").parts[0]


def imported_rooms(path):
    """The rooms that a file imports anywhere, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("lmlab."))


def test_imports_go_down_only():
    upwards = []
    for path in sorted((ROOT / "lmlab").rglob("*.py")):
        own = room_of(path)
        for room in imported_rooms(path):
            if own != "__init__" and room != own and HEIGHT[room] >= HEIGHT[own]:
                upwards.append(f"{path.relative_to(ROOT)} imports {room}")
    assert not upwards


def test_every_file_belongs_to_a_room():
    rooms = {room_of(path) for path in (ROOT / "lmlab").rglob("*.py")}
    assert rooms - {"__init__"} == set(HEIGHT)


def test_few_places_ask_whether_a_model_has_steps():
    """A model without steps is no special case all over the library."""
    asked = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "lmlab").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "has_steps"
    ]
    assert len(asked) <= 6, asked


PLAIN = {
    *("bool", "bytes", "dict", "float", "int", "list", "str", "tuple"),
    *("Tensor", "torch.Tensor", "np.ndarray", "np.floating", "np.generic", "nn.Embedding"),
    *("Exception", "IntervalSweep", "KeyboardInterrupt", "MemoryError", "OSError", "QuotedString"),
    *("ChoiceSweep", "RangeSweep", "SystemExit", "UserError", "None"),
    *("Detail", "Neutral", "OneOf"),
}


def test_no_type_of_a_model_an_optimizer_or_a_configuration_is_asked_for():
    """isinstance is for plain data, for what Hydra parses, for errors, and for torch's tensors."""
    others = set()
    for path in sorted((ROOT / "lmlab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                names = ast.unparse(node.args[1]).strip("()").replace(",", " |").split(" | ")
                others |= {f"{path.relative_to(ROOT)}: {name}" for name in {*names} - PLAIN}
    assert others <= {
        "lmlab/runs/checkpoints.py: kind",  # of the entries of a checkpoint
        "lmlab/sweep/table.py: kinds",  # of the numbers in a metrics.json
        "lmlab/sweep/search.py: LocalLauncher",  # the only launcher that runs cells one by one
    }
