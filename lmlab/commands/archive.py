"""Packs the folder of a sweep into one archive, with all that reproduces it and a page that says how.

The same folder gives the same bytes: names are sorted, and no time of packing is kept.
"""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmlab import files, plugins
from lmlab.config import conf_files
from lmlab.errors import UserError, system_error
from lmlab.runs import hugging_face
from lmlab.runs.code import LIMIT, codes_in
from lmlab.runs.folder import (
    LIMITS,
    is_locked,
    noted_start,
    parse_plain_yaml,
    read_metrics,
    refuse_links,
)
from lmlab.runs.typed import program

OF_A_RUN = (
    "config.yaml",
    "metrics.json",
    "history.jsonl",
    "evaluations.jsonl",
    "tokenizer.json",
    "source.yaml",
    "train.log",
)
OF_A_FINISHED_RUN = ("history.jsonl", "tokenizer.json")  # as each has them, whatever its keys
OF_A_SWEEP = ("leaderboard.csv", "leaderboard.md", "report.html", "study.db")
SUBMITITS = ".sweep/.submitit"  # its notes about jobs of Slurm, which are no part of a run
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip knows: of all files
LEVEL = 6  # of the compression
READABLE = 0o100644  # a plain file, which its owner may write and all may read
PACKAGES = {  # names in metrics.json, and those of the package index
    "torch": "torch",
    "pytorch_lightning": "pytorch-lightning",
    "hydra_core": "hydra-core",
    "tensorboard": "tensorboard",
    "numpy": "numpy",
    "optuna": "optuna",
    "tokenizers": "tokenizers",
}
FACTS = ("lmlab", "code_sha256", "git_commit", "git_dirty", "python", *PACKAGES, "machine")


def write(sweep: Path, out: Path, checkpoints: str) -> None:
    """Writes the archive of a sweep and prints its name: all of it or nothing. Raises UserError.

    `checkpoints` is none, best, last or all.
    """
    if out.exists():
        raise taken(out)
    runs = runs_of(sweep)
    named = plugins.names()
    if named is not None and not plugins_of(runs):
        raise UserError(
            f"plugin={named}: none of the runs of sweep={sweep} was made with a plug-in"
        )
    notes, own_code = plugin_files(runs)
    notes += missing(sweep, runs, checkpoints)
    notes += elsewhere(sweep, runs)
    members: dict[str, Path | bytes] = {}
    for path in runs:
        for file in files_of(path, checkpoints):
            members[f"{path.name}/{file.relative_to(path).as_posix()}"] = file
    for file in own_files(sweep):
        members[file.relative_to(sweep).as_posix()] = file
    members |= own_code | sweep_files(runs)
    page = readme(sweep.absolute().name, runs, notes, checkpoints, [*members])
    members["README.md"] = page.encode(errors=files.HALVES)
    pack(out, sweep.absolute().name, members)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    print(f"{out}: {len(runs)} runs, {len(members)} files, {out.stat().st_size:,} bytes")


def taken(out: Path, needed: str = "a new file") -> UserError:
    """Returns the error for a name that something has already."""
    return UserError(f"out={out}: is there already; needs the name of {needed}")


def runs_of(sweep: Path) -> dict[Path, dict[str, Any]]:
    """Returns the metrics of each run of a sweep, by folder. Raises UserError if one is trained now."""
    if not sweep.is_dir():
        raise UserError(f"sweep={sweep}: is no folder; needs that of a sweep, outputs/sweeps/…")
    paths = sorted(file.parent for file in sweep.glob("*/config.yaml"))
    if not paths and hugging_face.is_foreign(sweep):
        raise hugging_face.no_run(f"sweep={sweep}", sweep)
    if not paths:
        raise UserError(f"sweep={sweep}: no run there; needs the folder of a sweep")
    refuse_links(sweep, but=sweep / SUBMITITS)
    for path in paths:
        if is_locked(path):
            raise UserError(f"sweep={sweep}: {path.name} is being trained; wait until it has ended")
    return {path: read_metrics(path) for path in paths}


def missing(sweep: Path, runs: dict[Path, dict[str, Any]], checkpoints: str) -> list[str]:
    """Returns notes about runs, and about files of finished ones, that are not there to be packed."""
    notes = []
    for path in sorted(file.parent for file in sweep.glob("*/metrics.json")):
        if path not in runs:
            notes.append(f"{path.name} has no config.yaml, and is not packed")
    names = [*OF_A_FINISHED_RUN]
    if checkpoints in ("best", "last"):
        names.append(f"checkpoints/{checkpoints}.ckpt")
    for path, metrics in runs.items():
        lost = [name for name in names if not (path / name).is_file()]
        if lost and metrics.get("status") == "finished":
            notes.append(f"{path.name} has no {', '.join(lost)}, and is packed without")
    return notes


def elsewhere(sweep: Path, runs: dict[Path, dict[str, Any]]) -> list[str]:
    """Returns notes about what the commands name that is not in the sweep's folder."""
    notes = []
    commands = commands_of(runs)
    has_study = (sweep / "study.db").exists()
    if not has_study and any("hydra.sweeper.storage=" in command for command in commands):
        notes.append("the study, which is where hydra.sweeper.storage= names it, is not packed")
    if any("--config-dir" in command for command in commands):
        notes.append(
            "the files in the folder of --config-dir, which the command needs, are not packed"
        )
    return notes


def files_of(run: Path, checkpoints: str) -> Iterator[Path]:
    """Yields the files of a run that belong into the archive, each with its checksum if it has one."""
    names = list(OF_A_RUN)
    if checkpoints == "all":
        names += ["checkpoints/last.ckpt", "checkpoints/previous.ckpt", "checkpoints/best.ckpt"]
    elif checkpoints != "none":
        names.append(f"checkpoints/{checkpoints}.ckpt")
    for name in names:
        for path in (run / name, files.seal(run / name)):
            if path.is_file():
                yield path


def own_files(sweep: Path) -> Iterator[Path]:
    """Yields the files that belong to no single run: leaderboard, study, logs, what was called equal."""
    for name in OF_A_SWEEP:
        if (sweep / name).is_file():
            yield sweep / name
    if (sweep / ".sweep/same_code.jsonl").is_file():
        yield sweep / ".sweep/same_code.jsonl"
    yield from sorted((sweep / ".sweep/logs").glob("*.log"))


def plugin_files(
    runs: dict[Path, dict[str, Any]],
) -> tuple[list[str], dict[str, Path | bytes]]:
    """Returns notes about plug-ins whose code is missing, and the files of those that were named.

    A folder may not name code, so only what the person typed is packed: if it is what made the runs.
    """
    notes = []
    found: dict[str, Path | bytes] = {}
    own = plugins.sha256()
    for sha256, names in sorted(plugins_of(runs).items()):
        if sha256 != own:
            asked = "is not named here; plugin=… packs it"
            if own is not None:
                asked = f"is not what plugin={plugins.names()} is now (sha256 {own})"
            notes.append(f"the code of plugin={names} (sha256 {sha256}) is not packed: it {asked}")
            continue
        for source in plugins.active_sources():
            top = Path(source.files[0][0]).parent
            for path, content in source.files:
                place = Path(path)
                inside = place.relative_to(top) if place.is_relative_to(top) else Path(place.name)
                folder = "" if source.is_file else f"{source.module.replace('.', '/')}/"
                found[f"plugins/{folder}{inside.as_posix()}"] = content
    return notes, found


def plugins_of(runs: dict[Path, dict[str, Any]]) -> dict[str, str]:
    """Returns the names of plug-ins, as they were typed, by the hash of their code."""
    named = {}
    for path, metrics in runs.items():
        sha256 = metrics.get("plugin_sha256")
        if isinstance(sha256, str):
            config = config_of(path)
            named[sha256] = str(config.get("plugin"))
    return named


def config_of(run: Path) -> dict[str, Any]:
    """Returns the keys and values of a run's config.yaml as they are, without a check."""
    content = files.read_sealed(run / "config.yaml", LIMITS["config.yaml"])
    try:
        return parse_plain_yaml(content)
    except ValueError as error:
        raise UserError(f"{run / 'config.yaml'}: {error}") from None


def sweep_files(runs: dict[Path, dict[str, Any]]) -> dict[str, Path | bytes]:
    """Returns the files of sweep=… that the commands of the runs name, as far as they are there."""
    found: dict[str, Path | bytes] = {}
    for command in commands_of(runs):
        for name in re.findall(r"(?<=\s)sweep=([\w-]+)", command):
            if name in conf_files.names_in("sweep"):
                found[f"conf/sweep/{name}.yaml"] = conf_files.text_of("sweep", name).encode(
                    errors=files.HALVES
                )
    return found


def commands_of(runs: dict[Path, dict[str, Any]]) -> list[str]:
    """Returns the commands that made the runs, each once, in the order in which they were typed."""
    paths = sorted((path for path in runs if runs[path].get("command")), key=noted_start)
    return list(dict.fromkeys(str(runs[path]["command"]) for path in paths))


def readme(
    name: str,
    runs: dict[Path, dict[str, Any]],
    notes: list[str],
    checkpoints: str,
    members: list[str],
) -> str:
    """Returns the page of the archive: what is in it, what made it, how to run it again."""
    statuses = Counter(str(run.get("status")) for run in runs.values())
    counts = ", ".join(f"{n} {status}" for status, n in sorted(statuses.items()))
    lines = [f"# {name}", "", f"{len(runs)} runs of lmlab: {counts}. Made by:", ""]
    lines += ["| | |", "|---|---|"]
    for fact in FACTS:
        values = distinct(value for run in runs.values() for value in values_of(run, fact))
        lines += [f"| {fact} | {value} |" for value in values]
    lines += ["", "## To run it again", ""]
    for number, step in enumerate(steps(runs, members), start=1):
        lines += [f"{number}. {step}"]
    own = [f"{name}/{member}" for member in members if re.fullmatch(r"plugins/[^/]+\.py", member)]
    plugin = " plugin=…" if plugins_of(runs) else ""
    if own:
        plugin = f" plugin={','.join(own)}"
    lines += ["", "## What is here", ""]
    lines += [
        "Each folder is a run: `config.yaml` (every value), `metrics.json` (its numbers, and what "
        "made it), `history.jsonl` (its curves), `train.log`, `tokenizer.json`. Checkpoints: "
        f"{checkpoints}. TensorBoard's files are left out; `history.jsonl` has their numbers. "
        f"Unpacked, `{program('compare')} {name}{plugin}` makes the leaderboard.",
    ]
    missing = [*notes, *texts_missing(runs)]
    if missing:
        lines += ["", "What is not here, and is needed:", "", *(f"- {note}" for note in missing)]
    return "\n".join([*lines, ""])


def values_of(run: dict[str, Any], fact: str) -> list[Any]:
    """Returns a fact of the process that began a run, and of those that resumed it."""
    if fact == "code_sha256":
        return codes_in(run)
    return [run.get(fact), run.get(f"resumed/{fact}")]


def steps(runs: dict[Path, dict[str, Any]], members: list[str]) -> Iterator[str]:
    """Yields what to do to make the same runs, in words."""
    first = next(iter(runs.values()))
    commits = distinct(run.get("git_commit") for run in runs.values())
    wanted = f"version {first.get('lmlab')}"
    if commits:
        wanted = f"commit {' or '.join(commits)}"
    yield f"Get lmlab, {wanted}; the hash of its code (and of plug-ins) must be the one above."
    packages = [
        f"{package}=={version.partition('+')[0]}"  # what stands after + is no version of the index
        for fact, package in PACKAGES.items()
        for version in distinct(run.get(fact) for run in runs.values())[:1]
    ]
    yield (
        f"Install what it ran with: `pip install {' '.join(packages)}`, and in its folder the rest that "
        "sweeps and tokens need: `pip install '.[sweeps,tokens]'`."
    )
    own = [name for name in members if name.startswith(("plugins/", "conf/"))]
    if own:
        yield f"Put {', '.join(own)} where the command names them."
    for command in commands_of(runs):
        yield f"`{command}`"
    plugin = " plugin=…" if plugins_of(runs) else ""
    yield (
        f"Or one run, which is compared with its history: `{program('train')} replay=…"
        f"{plugin}` with the folder of a run; on a CPU the losses are the same to the "
        "last bit."
    )
    several = [str(path.name) for path, run in runs.items() if len(codes_in(run)) > 1]
    if several:
        yield (
            f"Not so {', '.join(several)}: other code of the lab has resumed what one had begun, as "
            "metrics.json says (`code_sha256`, `resumed/…`)."
        )


def texts_missing(runs: dict[Path, dict[str, Any]]) -> list[str]:
    """Returns notes about texts and first weights of a person's own, which no archive has."""
    notes: dict[str, None] = {}
    for path, metrics in runs.items():
        config = config_of(path)
        if config.get("path") is not None:
            notes[f"the text {config['path']} (data_sha256 {metrics.get('data_sha256')})"] = None
        if config.get("init_from") is not None:
            sha256 = metrics.get("init_sha256")
            notes[f"the run {config['init_from']}, which gave the first weights ({sha256})"] = None
    return list(notes)


def distinct(values: Iterable[Any]) -> list[str]:
    """Returns values as texts in one line, each once, without what is missing."""
    texts = (
        " ".join(str(value).replace("|", "/").split()) for value in values if value is not None
    )
    return list(dict.fromkeys(texts))


def pack(out: Path, name: str, members: dict[str, Path | bytes]) -> None:
    """Writes a zip of files, whose names begin with `name`: all of it or nothing. Raises UserError."""
    temporary = files.temporary_name(out)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as packed:
            for member in sorted(members):
                whole = re.sub(r"[\ud800-\udfff]", "_", f"{name}/{member}")  # a name in UTF-8
                info = zipfile.ZipInfo(whole, EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.create_system = 3  # Unix, whatever packs it: the rights below are its
                info.external_attr = READABLE << 16
                content = members[member]
                with packed.open(info, "w", force_zip64=True) as target:
                    if isinstance(content, bytes):
                        target.write(content)
                    else:
                        with open(content, "rb") as source:
                            shutil.copyfileobj(source, target, LIMIT)
        files.place(temporary, out)
    except FileExistsError:
        raise taken(out) from None
    except OSError as error:
        raise UserError(f"out={out}: {system_error(error, out)}") from None
    finally:
        files.remove(temporary)
