"""The rooms of lmlab/ stand on each other: imports go down only."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = (  # the lowest first; rooms of one floor do not import each other
    ("cores", "environment", "errors", "markers", "notebook", "snapshot", "stand_ins", "terminal"),
    ("signals",),
    ("threads",),
    ("own_code", "ranks"),
    ("registry",),
    ("catalogue", "files", "isolation", "numbers"),
    ("register",),
    ("plugins",),
    ("calls",),
    ("config",),
    ("data", "machine", "models"),
    ("runs",),
    ("inference", "processes"),
    ("training",),
    ("sweeps",),
    ("commands",),
    ("__main__", "api"),
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
        parts = [name.split(".") for name in names]
        yield from (p[1] for p in parts if p[0] == "lmlab" and len(p) > 1 and p[1] in HEIGHT)


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


def calls(path, *names):
    """The calls of builtin functions in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
            yield node


def decides_by_steps(node):
    """Whether a piece of code asks if a model has steps, by any of the names of that fact."""
    asks = isinstance(node, ast.Attribute) and node.attr == "has_steps"
    compares = isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("batches")
    return asks or compares


def test_few_places_ask_whether_a_model_has_steps():
    """A model without steps is no special case all over the library."""
    asked = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "lmlab").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if decides_by_steps(node)
    ]
    assert len(asked) <= 6, asked


PLAIN = {
    *("bool", "bytes", "dict", "float", "int", "list", "str", "tuple"),
    *("Tensor", "torch.Tensor", "np.ndarray", "np.floating", "np.generic"),
    *("Exception", "IntervalSweep", "KeyboardInterrupt", "MemoryError", "OSError", "QuotedString"),
    "ModuleNotFoundError",
    *("ChoiceSweep", "Glob", "RangeSweep", "SystemExit", "UserError", "None"),
    *("GeneratorExit", "OwnCodeError", "RuntimeError"),
    *("Interrupted", "LostContact", "launch.RankFailed"),
}


def test_no_type_of_a_model_an_optimizer_or_a_configuration_is_asked_for():
    """isinstance is for plain data, for what Hydra parses, for errors, and for torch's tensors."""
    others = set()
    for path in sorted((ROOT / "lmlab").rglob("*.py")):
        for call in calls(path, "isinstance"):
            names = ast.unparse(call.args[1]).strip("()").replace(",", " |").split(" | ")
            others |= {f"{path.relative_to(ROOT)}: {name}" for name in {*names} - PLAIN}
    assert (
        others
        <= {
            "lmlab/commands/door.py: TextIOWrapper",  # of sys.stdout, which may be anything
            "lmlab/config/conf_files.py: yaml.MappingNode",  # of a parsed YAML
            "lmlab/config/conf_files.py: yaml.SequenceNode",
            "lmlab/config/conf_files.py: yaml.ScalarNode",
            "lmlab/config/sweep_files.py: yaml.MappingNode",
            "lmlab/config/sweep_files.py: yaml.SequenceNode",
            "lmlab/config/sweep_files.py: yaml.ScalarNode",
            "lmlab/ranks.py: dist.DistError",  # errors
            "lmlab/training/step.py: dynamo.TorchDynamoException",
            "lmlab/commands/board.py: ValueError",
            "lmlab/own_code.py: functools.cached_property",
            "lmlab/own_code.py: CACHED",
            "lmlab/own_code.py: HELD",
            "lmlab/own_code.py: SHOWN",
            "lmlab/own_code.py: SimpleNamespace",
            "lmlab/own_code.py: functools.partial",
            "lmlab/own_code.py: kind",  # an array or a tensor, whose library need not be imported
            "lmlab/own_code.py: frozenset",  # of what a program wrote: plain values, and their containers
            "lmlab/own_code.py: property",
            "lmlab/own_code.py: set",
            "lmlab/own_code.py: PLAIN",
            "lmlab/models/base.py: LanguageModel",  # of what somebody else registered
            "lmlab/training/companions.py: Callback",
            "lmlab/inference/page.py: PageModel",
            "lmlab/training/optimizers.py: torch.optim.Optimizer",
            "lmlab/inference/evaluations.py: Detail",  # a number with a mark
            "lmlab/models/base.py: nn.Embedding",  # torch's; the base class looks for the embedding
            "lmlab/runs/checkpoints.py: kind",  # of the entries of a checkpoint
            "lmlab/sweeps/table.py: kinds",  # of the numbers in a metrics.json
            "lmlab/sweeps/search.py: LocalLauncher",  # the only launcher that runs cells one by one
        }
    )


def test_no_object_is_asked_for_its_type_or_its_attributes_in_another_way():
    """type(x) names a type in a message, or compares plain values and markers; hasattr is not used."""
    found = set()
    for path in sorted((ROOT / "lmlab").rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Compare) and any(
                isinstance(side, ast.Call) and getattr(side.func, "id", "") == "type"
                for side in (node.left, *node.comparators)
            ):
                found.add(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
        found |= {f"{path.relative_to(ROOT)}: {ast.unparse(c)}" for c in calls(path, "hasattr")}
        found -= {"lmlab/machine.py: hasattr(torch.cpu, 'get_capabilities')"}  # a module of torch's
        if "__class__" in text:
            found.add(f"{path.relative_to(ROOT)}: __class__")
    assert found <= {
        "lmlab/catalogue.py: __class__",  # the class of the keys says which row builds
        "lmlab/config/check.py: type(extra) is str",  # the check of a key's type and range
        "lmlab/config/check.py: type(extra) is OneOf",
        "lmlab/config/check.py: type(extra) is OrWord",
        "lmlab/config/check.py: type(value) is int",
        "lmlab/config/check.py: type(number) is not hint",
        "lmlab/config/keys.py: type(entry) is str",  # of a YAML
        "lmlab/config/keys.py: type(marker) is kind",  # of a marker on a key
        "lmlab/runs/checkpoints.py: type(value) not in READABLE",  # as torch's reader asks
        "lmlab/runs/folder.py: type(point.get('step')) is int",  # of a line in history.jsonl
        "lmlab/sweeps/search.py: type(self.launcher).__name__ == 'BasicLauncher'",  # Hydra's own
        "lmlab/training/state.py: type(value) is type(example)",  # of a number in a checkpoint
    }
