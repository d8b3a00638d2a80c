"""Every shipped YAML composes and trains a step."""

import importlib.util
import re
import shutil

import pytest
import yaml

from lmlab import registry
from lmlab.commands import options
from lmlab.commands import train as cli
from lmlab.config import composition, conf_files, overrides, recipes
from lmlab.config.keys import CHOICES, GROUPS, choices_of
from lmlab.data.subwords import ByteTokenizer
from lmlab.errors import UserError
from tests.conftest import ROOT, config, history, metrics, refused, script

FILES = sorted(
    path.relative_to(ROOT / "conf")
    for path in (ROOT / "conf").glob("*/*.yaml")
    if path.parent.name != "sweep"  # tests/test_readme.py runs them
)
SMALL = {
    "model/gpt2": "n_layer=1 n_embd=192 block_size=64 batch_size=2 data=sentence",
    "data/file": "path=my.txt model=bigram",
    "data/folder": "path=texts model=bigram block_size=8",
    "tokenizer/file": "tokenizer_path=bytes.json model=bigram data=sentence",
    "tokenizer/bpe": "vocab_size=260 model=gpt_nano",
    "model/gpt_baby": "n_layer=1 block_size=64 batch_size=2 data=sentence",
    "experiment/shakespeare_baby": "n_layer=1 n_embd=96 batch_size=2",
    "experiment/shakespeare_baby_modern": "n_layer=1 n_head=2 n_embd=96 batch_size=2 hold_steps=0",
    "experiment/shakespeare_fast": "hold_steps=0",
    "experiment/shakespeare_3min": "hold_steps=0",
    "experiment/shakespeare_bpe": "hold_steps=0 vocab_size=260",
    "experiment/tales_bpe": "hold_steps=0 vocab_size=260",
    **{f"experiment/ladder_{name}": "hold_steps=0" for name in ("bigram", "mlp", "lstm")},
    **{f"experiment/ladder_{name}": "hold_steps=0" for name in ("gpt", "modern")},
    "experiment/gpt2_small": "n_layer=1 n_head=2 n_embd=24 block_size=32 batch_size=2 "
    "grad_accumulation=1 vocab_size=260 val_fraction=0.1",
    "experiment/finetune_tales": "n_layer=1",
    "data/recall": "model=gpt_nano block_size=64 n_examples=100",
    "data/induction": "model=gpt_nano block_size=64 n_examples=100",
    "data/copy": "model=gpt_nano block_size=64 n_examples=100",
    "experiment/recall": "hold_steps=0 n_examples=500",
    "experiment/scaling": "hold_steps=0",
}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_it_composes_and_trains_a_step(train, here, short_texts, path):
    group, name = path.with_suffix("").parts
    if name in (
        "cuda",
        "mps",
    ):  # not on every machine; that they are refused by name is in test_cli
        assert overrides.resolved((f"{group}={name}",))[0].choices["device"] == name
        return
    (here / "my.txt").write_text("my own text " * 100)
    (here / "texts").mkdir()
    for letter in "abcdef":
        (here / f"texts/{letter}.txt").write_text("my own text, " * 9)
    (here / "bytes.json").write_text(ByteTokenizer().to_json())
    quick = "" if group in ("model", "experiment") else "model=gpt_nano"
    steps = int(name not in ("ngram", "ladder_ngram"))
    run = train(
        f"{group}={name} {'max_steps=1' * steps} threads=1 {SMALL.get(f'{group}/{name}', quick)}"
    )
    assert metrics(run)["status"] == "finished" and metrics(run)["step"] == steps
    assert config(run)[group] == ("cpu" if group == "device" else name)


def test_the_cluster_recipe_composes_where_submitit_is_and_says_what_is_missing_elsewhere():
    if importlib.util.find_spec("submitit"):
        _, choices, settings = composition.compose(("hydra/launcher=slurm",))
        assert choices["hydra/launcher"] == "slurm" and settings["launcher"]["max_num_timeout"] > 0
        assert {*yaml.safe_load((ROOT / "conf/hydra/launcher/slurm.yaml").read_text())} - {
            "defaults"
        } <= {*settings["launcher"]}
    else:
        with pytest.raises(UserError, match="pip install hydra-submitit-launcher"):
            composition.compose(("hydra/launcher=slurm",))


def test_each_choice_has_a_file_and_each_file_a_choice():
    for group in GROUPS:
        files = {path.stem for path in FILES if path.parts[0] == group}
        assert files == set(choices_of(group))


def test_a_key_is_set_in_one_place():
    """In config.yaml or in the files of one group, never in both; recipes may set any."""
    owners = {}
    for path in [*(path for path in FILES if path.parts[0] != "experiment"), "config.yaml"]:
        for key in {*(yaml.safe_load((ROOT / "conf" / path).read_text()) or {})} - {"defaults"}:
            owners.setdefault(key, set()).add(str(path).split("/")[0])
    assert {key: places for key, places in owners.items() if len(places) > 1} == {}
    assert not {*CHOICES} & {*owners}


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "experiment"], ids=str)
def test_a_recipe_says_how_it_is_run_and_what_was_seen(path):
    header = (ROOT / "conf" / path).read_text().split("defaults:")[0]
    assert f"python train.py experiment={path.stem}" in header and "TODO" not in header
    assert re.search(r"seen: (?!SEEN_|-)\S", header)


@pytest.fixture
def conf(tmp_path_factory, monkeypatch):
    """A copy of conf/ to which files can be added, and a function that lets the lab look again."""
    folder = tmp_path_factory.mktemp("checkout") / "conf"
    shutil.copytree(ROOT / "conf", folder)
    for module in (conf_files, composition, cli, options):
        monkeypatch.setattr(module, "CONF", folder)

    registry.forget()
    yield folder, registry.forget
    registry.forget()


PRESET = "# @package _global_\n# {}\ndefaults: [{}]\n\n{}\n"
QUICK = "data=sentence val_fraction=0.2 threads=1 max_steps=2"


def test_a_preset_is_one_yaml_and_its_runs_are_read_without_it(train, conf, here, capsys):
    folder, look_again = conf
    preset = folder / "model/gpt_tiny.yaml"
    preset.write_text(PRESET.format("Tiny.", "gpt_nano", "n_layer: 1\nn_embd: 8\nblock_size: 8"))
    run = train(f"model=gpt_tiny {QUICK}")
    assert config(run)["model"] == "gpt_tiny" and config(run)["model_base"] == "gpt"
    assert (config(run)["n_layer"], config(run)["n_head"]) == (1, 2)  # of gpt_tiny, of gpt_nano
    refused(capsys, lambda: cli.main(["model=gpt_tiny", "order=3"]), ["model=gpt_tiny"])
    preset.unlink()
    look_again()
    refused(capsys, lambda: cli.main(["model=gpt_tiny"]), ["model=gpt_tiny", "gpt_nano"])
    cli.main([f"resume={run}", "max_steps=4", "log_interval=1"])
    assert metrics(run)["step"] == 4 and 4 in history(run, "train/loss")
    tuned = train(f"init_from={run} {QUICK}")
    assert config(tuned)["model"] == "gpt" and config(tuned)["n_embd"] == 8


def test_a_preset_that_has_changed_since_does_not_change_its_runs(train, conf):
    folder, look_again = conf
    preset = folder / "model/mine.yaml"
    preset.write_text(PRESET.format("A bigram.", "bigram", "block_size: 8"))
    run = train(f"model=mine {QUICK}")
    preset.write_text(PRESET.format("A GPT.", "gpt_nano", "block_size: 8"))
    look_again()
    cli.main([f"resume={run}", "max_steps=3"])
    assert metrics(run)["step"] == 3


def test_presets_of_a_text_a_device_and_an_optimizer(train, conf, here, capsys):
    (here / "my.txt").write_text("my own text " * 100)
    folder, _ = conf
    for group, base, values in (
        ("data", "file", "path: my.txt"),
        ("device", "cpu", "precision: 32-true"),
        ("optimizer", "sgd", "lr: 0.5"),
    ):
        (folder / f"{group}/mine.yaml").write_text(PRESET.format("Mine.", base, values))
    run = train(
        "model=bigram data=mine device=mine optimizer=mine block_size=8 threads=1 max_steps=2"
    )
    values = config(run)
    script("evaluate").main([f"run={run}", "data=mine"])
    assert "(" + str(run) in capsys.readouterr().err
    assert (values["path"], values["precision"], values["lr"]) == ("my.txt", "32-true", 0.5)
    assert (values["data"], values["device"], values["optimizer"]) == ("mine", "cpu", "mine")
    assert (values["data_base"], values["optimizer_base"]) == ("file", "sgd")
    assert "device_base" not in values  # the run notes the device that it got


def test_runs_of_built_in_choices_note_no_base(train):
    assert not [key for key in config(train(f"model=bigram {QUICK}")) if key.endswith("_base")]


@pytest.mark.parametrize("defaults", ["[loop_b]", "[none_such]", "[_self_]"])
def test_a_file_that_builds_on_no_choice_is_none(conf, here, capsys, defaults):
    folder, _ = conf
    for name, text in (("loop_a", defaults), ("loop_b", "[loop_a]")):
        (folder / f"model/{name}.yaml").write_text(
            f"# @package _global_\n# A loop.\ndefaults: {text}\n"
        )
    refused(capsys, lambda: cli.main(["model=loop_a"]), ["model=loop_a", "allowed are bigram"])


def test_a_preset_whose_values_would_be_lost_is_refused(conf, here, capsys):
    (conf[0] / "model/mine.yaml").write_text("# Mine.\n#\ndefaults: [gpt]\n\nn_layer: 2\n")
    refused(
        capsys,
        lambda: cli.main(["model=mine"]),
        ["conf/model/mine.yaml: line 1", "# @package _global_"],
    )


HEADER = b"# @package _global_\n"
FAULTS = {
    "no header": (b"lr: 0.5\n", "line 1 must be: # @package _global_"),
    "header later": (b"# mine\n" + HEADER + b"lr: 0.5\n", "line 1 must be"),
    "empty": (b"", "line 1 must be"),
    "byte-order mark": (b"\xef\xbb\xbf" + HEADER + b"lr: 0.3\n", "line 1 begins with a byte-order"),
    "latin-1": (HEADER + b"# na\xefve\n", "byte 24 is not UTF-8 text"),
    "a choice as a key": (HEADER + b"model: bigram\n", "line 2: model: is a group; write it under"),
    "nested keys": (HEADER + b"lr:\n  n_layer: 9\n", "line 2: lr: needs a plain value"),
    "a list": (HEADER + b"lr: 0.1\nseed: [0, 1]\n", "line 3: seed: needs a plain value"),
    "a doubled key": (HEADER + b"lr: 0.1\nlr: 0.2\n", "line 3: lr: is there twice"),
    "a tab": (HEADER + b"\tlr: 0.1\n", "line 2: "),
    "no mapping": (HEADER + b"lr 0.1\n", "line 2: needs lines of the form key: value"),
    "a number as a key": (HEADER + b"1: 2\n", "line 2: 1: needs the name of a key"),
    "null as a key": (HEADER + b"null: 2\n", "line 2: null: needs the name of a key"),
    "a long number": (HEADER + b"lr: " + b"9" * 5000 + b"\n", "Exceeds the limit"),
    "no list of defaults": (HEADER + b"defaults: gpt\n", "line 2: defaults: needs a list"),
    "no defaults": (HEADER + b"defaults:\n", "line 2: defaults: needs a list"),
    "a list in defaults": (HEADER + b"defaults: [[gpt]]\n", "line 2: defaults: needs a list"),
    "a default twice": (HEADER + b"defaults: [_self_, _self_]\n", "_self_: is there twice"),
    "hydra's settings": (HEADER + b"hydra:\n  launcher: {n_jobs: 1}\n", "line 2: hydra: "),
}


@pytest.mark.parametrize("content, reason", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("group", ["experiment", "model", "data", "device", "optimizer"])
def test_a_file_of_conf_whose_content_would_have_no_effect_is_refused(
    conf, capsys, group, content, reason
):
    folder, look_again = conf
    (folder / group / "faulty.yaml").write_bytes(content)
    look_again()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--cfg", "job", f"{group}=faulty"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: conf/{group}/faulty.yaml: ") and reason in said
    cli.main(["--help"])  # a file that nobody asked for harms nothing


RECIPE_FAULTS = {  # the defaults list and the keys of a recipe, and what is said
    "a launcher": ("[override /hydra/launcher: basic]", "", "line 2: defaults: override /hydra/la"),
    "a recipe as a choice": ("[override /experiment: tiny_lm]", "", "allowed are override /group"),
    "a group without override": ("[model: bigram]", "", "defaults: model: bigram: allowed are"),
    "no choice": ("[override /model: null]", "", "line 2: defaults: needs a list; allowed in it"),
    "no such choice": ("[override /model: gtp]", "", "line 2: override /model: model=gtp: allowed"),
    "a choice twice": ("[override /model: gpt, override /model: mlp]", "", "is there twice"),
    "_self_ too early": ("[_self_, tiny_lm]", "", "tiny_lm: must be above _self_"),
    "a number in another base": ("[]", "seed: 010", "line 3: seed=010: YAML reads this as 8"),
    "a number of minutes": ("[]", "seed: 1:30", "line 3: seed=1:30: YAML reads this as 90"),
    "a number with a line": ("[]", "seed: 1_0", "line 3: seed=1_0: YAML reads this as 10"),
    "a choice too early": ("[override /model: mlp, _self_]", "", "_self_: must be above all"),
    "no such recipe": ("[bigram]", "", "line 2: bigram: there is no such recipe"),
    "itself": ("[faulty]", "", "line 2: faulty: builds on itself"),
    "itself through another": ("[child]", "", "builds on itself"),
    "a key of sweeps": ("[]", "retries: 2", "line 3: retries: belongs on the command line"),
    "dry_run": ("[]", "dry_run: true", "line 3: dry_run: belongs on the command line"),
    "resume": ("[]", "resume: outputs/a", "line 3: resume: belongs on the command line"),
    "no value": ("[]", "seed: ???", "line 3: seed: needs a value"),
}


@pytest.mark.parametrize("defaults, line, reason", RECIPE_FAULTS.values(), ids=RECIPE_FAULTS)
def test_a_recipe_whose_content_would_have_no_effect_is_refused(
    conf, capsys, defaults, line, reason
):
    """In the recipe that was asked for, and in one that it builds on."""
    folder, look_again = conf
    faulty = f"# @package _global_\ndefaults: {defaults}\n{line}\n"
    (folder / "experiment/faulty.yaml").write_text(faulty)
    (folder / "experiment/child.yaml").write_text("# @package _global_\ndefaults: [faulty]\n")
    for name in ("faulty", "child"):
        look_again()
        with pytest.raises(SystemExit) as stopped:
            cli.main([f"experiment={name}", "--cfg", "job"])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.count("\n") == 1
        assert said.startswith("error: conf/experiment/")
        if "itself" not in reason:
            assert reason in said


@pytest.mark.parametrize("order", [("mine/b", "c"), ("c", "mine/b"), ("c", "mine/b", "_self_")])
@pytest.mark.parametrize("own", ["", "override /model: lstm"])
def test_a_recipe_is_read_as_hydra_composes_it(conf, order, own):
    """The recipe a builds on mine/b and c: its keys, and the choices that it is made for."""
    folder, look_again = conf
    (folder / "experiment/mine").mkdir()
    for name, entries, lines in (
        ("a", [*order, own] if own else order, "seed: 1"),
        ("mine/b", ["/experiment/mine/d", "override /model: mlp"], "seed: 2\nlr: 0.5"),
        ("mine/d", ["override /optimizer: sgd"], "batch_size: 3"),
        ("c", ["override /model: bigram", "override /data: pydoc"], "seed: 3"),
    ):
        text = f"# @package _global_\ndefaults: [{', '.join(entries)}]\n{lines}\n"
        (folder / f"experiment/{name}.yaml").write_text(text)
    look_again()
    recipe = recipes.read_recipe("a")
    _, chosen, _ = composition.compose(("experiment=a",))
    assert recipe.made_for == {group: chosen[group] for group in ("model", "optimizer", "data")}
    assert {*recipe.values} == {"seed", "lr", "batch_size"}


@pytest.mark.parametrize("name", ["2024", "1e3", "1.50", "1_000", "true", "nan", "ünï", "a b"])
def test_a_recipe_is_found_by_the_name_of_its_file(conf, capsys, name):
    """Also if Hydra would read another value, or none, in the name."""
    folder, look_again = conf
    (folder / f"experiment/{name}.yaml").write_text("# @package _global_\nseed: 7\n")
    look_again()
    cli.main([f"experiment={name}", "--cfg", "job"])
    assert "\nseed: 7\n" in capsys.readouterr().out


def test_a_preset_that_sets_a_key_of_another_group_is_refused(conf, capsys):
    """The file of that group would overwrite it; also if another preset builds on this one."""
    folder, look_again = conf
    (folder / "model/mine.yaml").write_text("# @package _global_\ndefaults: [gpt]\nlr: 0.7\n")
    (folder / "model/child.yaml").write_text("# @package _global_\ndefaults: [mine]\nn_layer: 1\n")
    look_again()
    for name in ("mine", "child"):
        words = ["conf/model/mine.yaml: line 3: lr: is no key of model=mine", "n_layer"]
        refused(capsys, lambda name=name: cli.main([f"model={name}", "--cfg", "job"]), words)


def test_a_file_in_a_folder_names_others_in_full(conf, here, capsys):
    folder, look_again = conf
    for group, base in (("experiment", "ladder_mlp"), ("model", "gpt")):
        (folder / group / "mine").mkdir()
        for name, entry in (("full", f"/{group}/{base}"), ("part", base)):
            text = f"# @package _global_\ndefaults: [{entry}]\nblock_size: 16\n"
            (folder / group / f"mine/{name}.yaml").write_text(text)
        (folder / group / "above.yaml").write_text("# @package _global_\ndefaults: [mine/full]\n")
        look_again()
        for name in ("mine/full", "above"):
            cli.main([f"{group}={name}", "--cfg", "job"])
            shown = capsys.readouterr().out
            assert "block_size: 16\n" in shown
            assert ("n_hidden: 640\n" in shown) == (group == "experiment")
        words = [f"conf/{group}/mine/part.yaml: line 2: {base}: needs its full name"]
        refused(capsys, lambda group=group: cli.main([f"{group}=mine/part"]), words)
    run = cli.main(["model=mine/full", "data=sentence", "threads=1", "max_steps=1"])
    assert run.parent.name == "mine-full" and config(run)["model"] == "mine/full"


def test_a_recipe_in_a_folder_is_found_and_windows_line_ends_are_fine(conf, capsys):
    folder, look_again = conf
    (folder / "experiment/mine").mkdir()
    content = HEADER + b"# Mine.\nlr: 0.3\n"
    (folder / "experiment/mine/sub.yaml").write_bytes(content.replace(b"\n", b"\r\n"))
    look_again()
    cli.main(["--cfg", "job", "experiment=mine/sub"])
    assert "lr: 0.3\n" in capsys.readouterr().out
    cli.main(["--help"])
    assert re.search(r"mine/sub +Mine\.\n", capsys.readouterr().out)
