"""Options of the scripts (key=value), and the text of train.py --help."""

from typing import Any, get_type_hints

from lmlab.config.check import check_value
from lmlab.config.keys import CHOICES
from lmlab.config.overrides import CONF, parse
from lmlab.errors import UserError, nearest


def help_page() -> str:
    """conf/help.txt, then what the files of conf/ themselves say."""
    page = (CONF / "help.txt").read_text()
    for group in (*CHOICES, "hydra/launcher", "hydra/sweeper"):
        page += f"\n{group}=\n"
        for p in sorted((CONF / group).glob("*.yaml")):
            page += f"  {p.stem:<24}{p.read_text().splitlines()[1][2:]}\n"
    for name in (
        "config",
        "model/ngram",
        "model/mlp",
        "model/lstm",
        "model/gpt",
        "model/modern",
        "optimizer/adamw",
        "optimizer/muon",
        "optimizer/sgd",
        "data/file",
        "device/auto",
        "hydra/launcher/local",
        "hydra/sweeper/search",
    ):
        page += f"\nKeys of {'every run' if name == 'config' else name.replace('/', '=')}\n"
        lines = (CONF / f"{name}.yaml").read_text().split("\nhydra:")[0].splitlines()
        prefix = "hydra." + name.split("/")[1] + "." if name.startswith("hydra/") else ""
        page += "".join(
            f"  {prefix}{line}\n" for line in lines if line[:1].islower() and line != "defaults:"
        )
    return page


def parse_script(options: type, page: str, argv: list[str]) -> Any:
    """The dataclass `options` from key=value arguments, split at the first `=` and checked; --help
    prints `page`.
    """
    if {"-h", "--help"} & set(argv):
        print(page.strip())
        raise SystemExit
    hints, values = get_type_hints(options, include_extras=True), {}
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals or key not in hints:
            wrong = f"there is no key {key}" if equals else "needs key=value"
            raise UserError(
                f"{argument}: {wrong}{nearest(key, hints)}; keys are {', '.join(hints)}"
            )
        is_text = "str" in str(hints[key]) or "Literal" in str(hints[key])
        values[key] = check_value(key, text if is_text else parse(argument).value(), hints[key])
    return options(**values)
