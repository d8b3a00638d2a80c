"""One file outside of the lab adds models, texts, evaluations and more; nothing else is edited."""

import importlib.util
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

import optuna
import pytest

import lmlab
from lmlab import catalogue, files, numbers, plugins
from lmlab.commands import compare, evaluate, explain, sample, scaling
from lmlab.commands import train as cli
from lmlab.config.keys import choices_of
from lmlab.errors import UserError, one_line_errors
from lmlab.sweeps import load_runs
from tests.conftest import ROOT, config, history, metrics, refused, weights

QUICK = "threads=1 device=cpu precision=32-true batch_size=4 max_steps=4 eval_interval=2 log_interval=1 "
RNN = "plugin=my_lab.py model=rnn data=recipes block_size=16 " + QUICK


@pytest.fixture
def lab(here):
    """The folder with the example's file in it."""
    shutil.copy(ROOT / "examples/my_lab.py", here)
    return here


def plugin(folder, text, name="own.py"):
    (folder / name).write_text("import lmlab\n" + textwrap.dedent(text))
    return name


SUMS = """
    import numpy as np
    class All(lmlab.CorpusConfig):
        pass
    class Answers(lmlab.CorpusConfig):
        document_end = "\\n"
        def scored(self, codes):
            after = np.cumsum(codes == ord("=")) - np.cumsum(codes == ord("\\n"))
            return (after > 0) & (codes != ord("="))
    def text():
        for i in range(300):
            yield f"{i % 7}+{i % 5}={i % 7 + i % 5}\\n"
    lmlab.register.corpus("all", All)(lambda config: text())
    lmlab.register.corpus("answers", Answers)(lambda config: text())
    """


def test_texts_of_the_same_characters_that_score_others_are_not_the_same(here, train, capsys):
    line = f"plugin={plugin(here, SUMS)} model=bigram block_size=8 lr=0.1 {QUICK}"
    alone = [
        metrics(train(f"{line} data={name} name={name}"))["val/loss"] for name in ("all", "answers")
    ]
    runs = train(f"-m {line} data=all,answers seed=0 name=s")
    assert [metrics(run)["val/loss"] for run in runs] == alone
    board = lmlab.compare("outputs/all", "outputs/answers", plugin="own.py").leaderboard
    assert dict(zip(board["data"], board["val/loss"], strict=True)) == dict(
        zip(("all", "answers"), alone, strict=True)
    )
    assert "Each text has a ranking of its own" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("key", ["on", "yes", "null", "_x"])
def test_a_key_of_ones_own_that_yaml_writes_in_quotes_is_read_again(here, train, key):
    text = f"""
        from torch import nn
        class OwnConfig(lmlab.ModelConfig):
            block_size: int = 8
            {key}: bool = False
        @lmlab.register.model("own", OwnConfig)
        class Own(lmlab.LanguageModel):
            def __init__(self, config, vocab_size):
                super().__init__(config)
                self.token_embedding = nn.Embedding(vocab_size, vocab_size)
            def forward(self, idx):
                return self.token_embedding(idx)
        """
    name = plugin(here, text)
    run = train(f"{QUICK} plugin={name} model=own data=sentence val_fraction=0.2 {key}=true")
    cli.main([f"resume={run}", "max_steps=5", f"plugin={name}"])
    assert metrics(run)["step"] == 5 and config(run)[key] is True
    train(
        f"-m {QUICK} plugin={name} model=own data=sentence val_fraction=0.2 {key}=true,false name=s"
    )
    assert key in (here / "outputs/sweeps/s/leaderboard.csv").read_text().split("\n")[0].split(",")


def test_a_run_with_a_model_a_text_and_a_measure_of_ones_own(lab, train, capsys):
    run = train(RNN)
    assert (config(run)["model"], config(run)["plugin"]) == ("rnn", "my_lab.py")
    assert metrics(run)["val/accuracy"] == history(run, "val/accuracy")[4] > 0
    assert metrics(run)["plugin_sha256"] != metrics(run)["code_sha256"]
    said = capsys.readouterr().out
    assert "val/accuracy" in said and f"run={run.relative_to(lab)} plugin=my_lab.py" in said
    for command, line in (
        (sample, "max_tokens=20"),
        (evaluate, "data=recipes"),
        (explain, "text=Take"),
    ):
        command.main([f"run={run}", "plugin=my_lab.py", *line.split()])
    compare.main(["outputs", "plugin=my_lab.py"])
    assert "val/accuracy" in (lab / "outputs/leaderboard.csv").read_text()
    cli.main([f"replay={run}", "plugin=my_lab.py"])
    assert "are the same to the bit" in capsys.readouterr().out


def test_what_is_registered_exists_while_a_command_names_it(lab, train):
    before = {group: {*choices_of(group)} for group in ("model", "data", "optimizer")}
    train(RNN)
    assert before == {group: {*choices_of(group)} for group in before}
    assert not catalogue.OWN_EVALUATIONS and "val/accuracy" not in numbers.NUMBERS
    with plugins.active(plugins.sources("my_lab.py")):
        assert {*choices_of("model")} - before["model"] == {"rnn"}


def test_help_shows_its_choices_and_keys(lab, capsys):
    cli.main(["--help", "plugin=my_lab.py"])
    page = capsys.readouterr().out
    assert "\n  rnn " in page and "\n  recipes " in page
    assert "Keys of model=rnn\n  block_size: 64" in page and "a whole number in [1, 100000]" in page


def test_a_sweep_of_it_and_of_the_labs_own_over_a_key(lab, train, capsys):
    line = f"-m {RNN.replace('model=rnn', 'model=rnn,gpt_nano')} n_embd=8 name=s "
    assert len(train(line)) == 2
    with plugins.active(plugins.sources("my_lab.py")):
        table = load_runs("outputs/sweeps/s")
    assert {*table["status"]} == {"finished"} and table["val/accuracy"].notna().all()
    for launcher in ("local", "basic"):
        capsys.readouterr()
        train(f"{line} hydra/launcher={launcher}")
        assert "2 of them done already" in capsys.readouterr().out
    with open("my_lab.py", "a") as file:
        file.write("# edited\n")
    train(f"{line} dry_run=true")
    said = capsys.readouterr().out
    assert "2 configurations, 2 cells" in said and "made by other code" in said


def test_without_it_each_command_answers_in_one_line_that_names_it(lab, train, capsys):
    run = train(RNN)
    for command, line in (
        (cli.main, [f"resume={run}", "max_steps=6"]),
        (cli.main, [f"replay={run}"]),
        (sample.main, [f"run={run}"]),
        (evaluate.main, [f"run={run}"]),
        (explain.main, [f"run={run}"]),
        (compare.main, ["outputs"]),
        (scaling.main, ["sweeps=outputs"]),
    ):
        refused(capsys, one_line_errors()(lambda c=command, a=line: c(a)), ["plugin=my_lab.py"])
    with pytest.raises(UserError, match="law"):  # of one run; it was opened
        scaling.main(["sweeps=outputs", "plugin=my_lab.py"])


def test_a_mixture_of_a_model_and_of_counts_on_a_text_of_ones_own(lab, train, capsys):
    """All members need the plug-in, since their text is its own."""
    common = "plugin=my_lab.py data=recipes holdout_fraction=0.1 threads=1 device=cpu"
    counts = train(f"{common} model=ngram order=3 name=a")
    run = train(f"{common} model=rnn max_steps=5 name=b")
    capsys.readouterr()
    evaluate.main([f"run={counts},{run}", "plugin=my_lab.py"])
    said = capsys.readouterr().out.splitlines()
    single = min(metrics(counts)["val/loss"], metrics(run)["val/loss"])
    (loss,) = [float(line.split()[1]) for line in said if line.startswith("val/loss")]
    assert loss <= single + 1e-4  # the weights were fitted on other text, which is alike
    without = one_line_errors()(lambda: evaluate.main([f"run={counts},{run}"]))
    refused(capsys, without, ["plugin=my_lab.py, name it"])


def test_a_run_of_the_labs_own_model_needs_what_took_part_in_it(lab, train, capsys):
    run = train(
        "plugin=my_lab.py model=bigram data=sentence val_fraction=0.2 block_size=8 " + QUICK
    )
    resume = [f"resume={run}", "max_steps=6"]
    refused(capsys, lambda: cli.main(resume), ["plugin=my_lab.py", "name it"])
    sample.main([f"run={run}", "max_tokens=5"])
    cli.main([*resume, "plugin=my_lab.py"])
    assert metrics(run)["step"] == 6
    plain = train("model=bigram data=sentence val_fraction=0.2 block_size=8 " + QUICK)
    line = [f"resume={plain}", "plugin=my_lab.py", "max_steps=6"]
    refused(capsys, lambda: cli.main(line), ["plugin=my_lab.py", "was made without it"])


def test_the_folder_of_a_run_executes_nothing(lab, train):
    run = train(RNN)
    (lab / "my_lab.py").write_text("raise SystemExit('executed')\n")
    for folder in (run, run / "checkpoints"):
        (folder / "my_lab.py").write_text("raise SystemExit('executed')\n")
    with pytest.raises(UserError, match=r"plugin=my_lab\.py"):
        sample.main([f"run={run}"])


def test_processes_that_start_later_run_the_code_that_was_read(lab):
    """A person may edit the file while a sweep runs."""
    (source,) = plugins.sources("my_lab.py")
    (lab / "my_lab.py").write_text("raise ValueError\n")
    with plugins.active([source]):
        assert "rnn" in choices_of("model")


WRONG = {
    "plugin=missing.py": ["missing.py", "No such file"],
    "plugin=no_such_module": ["no module no_such_module", "plugin=my_lab.py"],
    "plugin=": ["plugin=: is empty"],
    "plugin=mylab.py": ["did you mean my_lab.py?"],
    "plugin=my_lab.py model=rnm": ["model=rnm", "did you mean rnn?"],
    "plugin=my_lab.py model=rnn n_embd=0": ["n_embd=0", "[1, 100000]"],
    "plugin=my_lab.py model=rnn n_head=2": ["model=rnn doesn't take n_head"],
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_use_is_answered_by_one_line(lab, capsys, line):
    refused(capsys, lambda: cli.main(line.split()), WRONG[line])


def annotated(kind):
    """A plug-in with a key of an annotation, whose default is 3."""
    return (
        "from typing import Annotated, Literal\n"
        f"class C(lmlab.CorpusConfig):\n    n: {kind} = 3\nlmlab.register.corpus('c', C)(print)"
    )


FAULTS = {
    "a name of the lab": (
        "@lmlab.register.corpus('tales')\ndef f(config): yield 'x'",
        ["line 2", "data tales", "the lab itself", "needs another, such as my_tales"],
    ),
    "a name of the lab's generated texts": (
        "@lmlab.register.corpus('recall')\ndef f(config): yield 'x'",
        ["own.py: line 2: data recall: the name is taken", "such as my_recall"],
    ),
    "a range without a whole number": (
        annotated("Annotated[int, '(3, 4)']"),
        ["C.n: no int lies in '(3, 4)'"],
    ),
    "a range whose ends are exchanged": (
        annotated("Annotated[int, '[9, 1]']"),
        ["C.n: no int lies in '[9, 1]'; the smallest value comes first"],
    ),
    "an empty range of a key that may be null": (
        annotated("Annotated[float, '(3, 3]'] | None"),
        ["C.n: no float lies in '(3, 3]'"],
    ),
    "a range of words": (
        annotated("Annotated[str, '[1, 9]']"),
        ["C.n: the range '[1, 9]' has no effect"],
    ),
    "a literal without words": (annotated("Literal[()]"), ["C.n: Literal[()] allows no value"]),
    "a name taken twice": (
        "for _ in 'ab': lmlab.register.schedule('late')(lambda done: 1.0)",
        ["schedule late: the name is taken", "own.py: line 2"],
    ),
    "no default": (
        "class C(lmlab.ModelConfig):\n    n: int\nlmlab.register.model('m', C)(print)",
        ["C.n: needs a default value"],
    ),
    "a type that nobody can type": (
        "class C(lmlab.ModelConfig):\n    n: list = ()\nlmlab.register.model('m', C)(print)",
        ["C.n: its type", "int, float, bool, str"],
    ),
    "a key of every run": (
        "class C(lmlab.ModelConfig):\n    seed: int = 1\nlmlab.register.model('m', C)(print)",
        ["own.py: line ", "C.seed: there is such a key already, of the run"],
    ),
    "a column of the tables": (
        "class C(lmlab.ModelConfig):\n    status: str = 'a'\nlmlab.register.model('m', C)(print)",
        ["own.py: line ", "C.status: the lab's own tables have a column of this name; it needs"],
    ),
    "a key of an optimizer": (
        "class C(lmlab.ModelConfig):\n    momentum: float = 0.5\n    lr: float = 1.0\nlmlab.register.model('m', C)(print)",
        ["own.py: line ", "C.momentum: there is such a key already, of the optimizer; it needs"],
    ),
    "a key of a model": (
        "class C(lmlab.OptimizerConfig):\n    lr: float = 1.0\n    n_layer: int = 1\n"
        "lmlab.register.optimizer('o', C)(print)",
        ["own.py: line ", "C.n_layer: there is such a key already, of the model; it needs"],
    ),
    "a key of a callback of the lab's": (
        "class C:\n    patience: int = 1\nlmlab.register.callback('c', C)(print)",
        ["own.py: line ", "C.patience: there is such a key already, of the patience; it needs"],
    ),
    "the keys of another model": (
        "from lmlab.catalogue import BigramConfig\nlmlab.register.model('m', BigramConfig)(print)",
        ["BigramConfig is the class of the keys of bigram"],
    ),
    "a number that no one finds": (
        "lmlab.register.evaluation('accuracy')(print)",
        ["evaluation accuracy: its name must begin with val/"],
    ),
}


@pytest.mark.parametrize("typed", ["a,b.py", "'a,b.py'", "own.py,a,b.py", "sub,1/own.py"])
def test_a_comma_in_the_name_of_a_plugin_is_named(here, capsys, typed):
    own = plugin(here, "lmlab.register.schedule('own')(abs)")
    (here / "sub,1").mkdir()
    for name in ("a,b.py", "sub,1/own.py"):
        (here / name).write_text((here / own).read_text())
    name = typed.strip("'").removeprefix("own.py,")
    words = [f"plugin={name}: a comma stands between two plug-ins", "rename it"]
    refused(capsys, lambda: cli.main([f"plugin={typed}"]), words)
    refused(capsys, lambda: cli.main(["plugin=own.py,c.py"]), ["plugin=c.py: cannot be read"])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_use_is_one_line_with_its_place(here, capsys, fault):
    text, words = FAULTS[fault]
    name = plugin(here, text)
    refused(capsys, lambda: cli.main([f"plugin={name}", "data=sentence"]), words)
    assert not (here / "outputs").exists()


def test_an_error_in_its_file_is_shown_with_its_own_traceback(here, capsys):
    name = plugin(here, "def helper():\n    return 1 / 0\n\n\nhelper()")
    with pytest.raises(SystemExit) as stop:
        cli.main([f"plugin={name}"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("  File ") == 2 and "own.py" in said
    assert said.splitlines()[-1].startswith("error: plugin=own.py: cannot be imported (")
    assert "ZeroDivisionError" in said


def test_a_package_is_a_plugin_too_and_all_of_its_files_are_its_code(here, train):
    (here / "mine").mkdir()
    shutil.copy(ROOT / "examples/my_lab.py", here / "mine/parts.py")
    (here / "mine/__init__.py").write_text("from . import parts\n")
    run = train(RNN.replace("my_lab.py", "mine"))
    before = metrics(run)["plugin_sha256"]
    with open("mine/parts.py", "a") as file:
        file.write("# edited\n")
    again = train(RNN.replace("my_lab.py", "mine"))
    assert metrics(again)["plugin_sha256"] != before
    assert weights(run).keys() == weights(again).keys()


@pytest.mark.parametrize("is_package", [True, False])
def test_a_plugin_is_not_taken_for_another_module_of_its_name(here, train, monkeypatch, is_package):
    """As a program, or a test, may have imported it from another folder."""
    other = here / "elsewhere/mine.py"
    other.parent.mkdir()
    other.write_text("X = 1\n")
    spec = importlib.util.spec_from_file_location("mine", other)
    imported = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mine", imported)
    path = here / ("mine/__init__.py" if is_package else "mine.py")
    path.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "examples/my_lab.py", path)
    (source,) = plugins.sources("mine")
    assert [Path(file) for file, _ in source.files] == [path]
    assert sys.modules["mine"] is imported
    assert metrics(train(RNN.replace("my_lab.py", "mine")))["status"] == "finished"


@pytest.mark.parametrize("typed", ["packages/mine", "packages/mine/", "packages/mine/__init__.py"])
def test_the_folder_of_a_package_is_answered_by_how_it_is_named(here, capsys, typed):
    (here / "packages/mine").mkdir(parents=True)
    (here / "packages/mine/__init__.py").write_text("from . import parts\n")
    words = [f"plugin={typed}: ", "as a module, plugin=mine", str(here / "packages")]
    refused(capsys, lambda: cli.main([f"plugin={typed}"]), words)


def test_other_code_of_a_plugin_is_told_by_all_that_loads_a_run(lab, train, capsys):
    """What it computes may be another; the line of an evaluation says which code it was."""
    run = train(f"{RNN} test_fraction=0.2")
    command = [f"run={run}", "plugin=my_lab.py"]
    evaluate.main([*command, "split=test"])
    assert "other code" not in capsys.readouterr().err
    with open("my_lab.py", "a") as file:
        file.write("# edited\n")
    for asked, more in ((evaluate, ["split=test"]), (sample, ["max_tokens=2"]), (explain, [])):
        asked.main([*command, *more])
        assert "was trained with other code of plug-ins" in capsys.readouterr().err
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    one, other = (json.loads(line) for line in lines)
    assert one["plugin_sha256"] == metrics(run)["plugin_sha256"] != other["plugin_sha256"]
    assert one["code_sha256"] == metrics(run)["code_sha256"] != other["code_sha256"]
    altered = lines[1].replace('"test/loss":', '"test/loss": 9.5, "other":')
    (run / "evaluations.jsonl").write_text(f"{lines[0]}\n{altered}\n")
    with plugins.active(plugins.sources("my_lab.py")):
        assert load_runs(str(run.parent))["test/loss"].item() == one["test/loss"]


def test_a_plugin_that_has_gained_a_key_says_so(lab, train):
    run = train(RNN)
    before = (lab / "my_lab.py").read_text()
    (key,) = re.findall(r"    n_embd: .* = 32\n", before)
    (lab / "my_lab.py").write_text(before.replace(key, f"{key}    extra: int = 3\n"))
    words = ["extra: is missing", "the run was made with other code of plugin=my_lab.py"]
    with pytest.raises(UserError) as error:
        sample.main([f"run={run}", "plugin=my_lab.py"])
    assert all(word in str(error.value) for word in words)


def test_keys_that_two_classes_share_need_no_class_that_is_registered(here, train):
    text = """
        import torch, lmlab

        class Shared(lmlab.ModelConfig):
            width: int = 3
            block_size: int = 16

        class Keys(Shared):
            depth: int = 1

        @lmlab.register.model("mine", Keys)
        class Mine(lmlab.LanguageModel):
            "A table with a number of columns."
            def __init__(self, config, vocab_size):
                super().__init__(config)
                self.rows = torch.nn.Embedding(vocab_size, config.width)
                self.head = torch.nn.Linear(config.width, vocab_size)
            def forward(self, idx):
                return self.head(self.rows(idx))
    """
    line = f"plugin={plugin(here, text)} model=mine data=sentence max_steps=1 threads=1"
    saved = [config(train(f"{line} {more}")) for more in ("", "width=5 block_size=8 name=other")]
    assert [(one["width"], one["block_size"], one["depth"]) for one in saved] == [
        (3, 16, 1),
        (5, 8, 1),
    ]


def test_a_preset_and_a_schedule(here, train):
    name = plugin(
        here,
        """
        lmlab.register.preset("model", "gpt_two", "gpt_nano", n_layer=2)
        lmlab.register.schedule("steps")(lambda done: 1.0 if done < 0.5 else 0.25)
        """,
    )
    run = train(
        f"plugin={name} model=gpt_two schedule=steps data=sentence val_fraction=0.2 {QUICK} "
        "lr=0.1 min_lr=0.02 warmup_steps=0"
    )
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates == pytest.approx([0.1, 0.1, 0.04, 0.04])
    assert config(run)["n_layer"] == 2 and config(run)["model_base"] == "gpt"
    run = train(f"plugin={name} model=gpt_two data=sentence val_fraction=0.2 {QUICK}")
    sample.main([f"run={run}", "max_tokens=5"])  # the folder holds what a preset says


BROKEN = """
    import torch
    from torch import nn

    class C(lmlab.ModelConfig):
        what: str = "shape"

    @lmlab.register.model("broken", C)
    class Broken(lmlab.LanguageModel):
        def __init__(self, config, vocab_size):
            super().__init__(config)
            self.table = nn.Embedding(vocab_size, vocab_size)
            if config.what == "weight":
                self.table.weight.data[0, 0] = float("nan")

        def forward(self, idx):
            if self.config.what == "shape":
                return self.table(idx)[:, :, :3]
            return {"tuple": (self.table(idx), None)}.get(self.config.what, self.table(idx))
    """


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("shape", ["model=broken", "(1, 64, 3)", "(1, 64, 9), (B, T, V)"]),
        ("tuple", ["model=broken", "returns tuple", "(1, 64, 9)"]),
        ("weight", ["model=broken", "table.weight", "not finite at the start"]),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_its_first_step(here, capsys, what, words):
    name = plugin(here, BROKEN)
    line = f"plugin={name} model=broken what={what} data=sentence val_fraction=0.2 {QUICK}"
    refused(capsys, lambda: cli.main(line.split()), words)
    assert not (here / "outputs").exists()


def test_a_search_for_ones_own_number_prunes_by_it(lab, train):
    """The sixth trial is far behind at its first evaluation; higher is better."""
    line = f"-m hydra/sweeper=search {RNN.replace('max_steps=4', 'max_steps=10')} name=s "
    line = line.replace("eval_interval=2", "eval_interval=5") + "hydra/launcher=basic "
    line += "hydra.sweeper.objective=val/accuracy hydra.sweeper.n_trials="
    train(line + "5 lr=interval(0.02,0.03)")
    train(line + "6 lr=interval(0.0000001,0.0000002)")
    study = optuna.load_study(study_name="s", storage="sqlite:///outputs/sweeps/s/study.db")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 5 + ["PRUNED"]
    run = lab / "outputs/sweeps/s" / study.trials[-1].user_attrs["folder"]
    assert study.trials[-1].intermediate_values == {5: metrics(run)["val/accuracy"]}


def test_a_plugin_in_a_recipe_is_refused(lab, capsys):
    """A person names code; a file does not."""
    (lab / "mine/experiment").mkdir(parents=True)
    (lab / "mine/experiment/e.yaml").write_text("# @package _global_\n\nplugin: my_lab.py\n")
    line = ["--config-dir=mine", "experiment=e"]
    refused(capsys, lambda: cli.main(line), ["line 3", "plugin", "belongs on the command line"])


@pytest.mark.parametrize(
    "code",
    [
        "import helper",
        "import importlib\nimportlib.import_module('helper')",
        "@lmlab.register.corpus('own')\ndef f(config):\n  import helper\n  yield 'a text ' * 50",
        "import importlib\n@lmlab.register.corpus('own')\ndef f(config):\n"
        "  importlib.import_module('helper')\n  yield 'a text ' * 50",
        "import runpy\n@lmlab.register.corpus('own')\ndef f(config):\n"
        "  runpy.run_module('helper')\n  yield 'a text ' * 50",
    ],
)
@pytest.mark.parametrize("folder", ["far", "."])
def test_a_file_beside_a_plugin_is_for_packages(here, capsys, code, folder, monkeypatch):
    """However it is imported, and whenever: its edits would not be noticed."""
    monkeypatch.syspath_prepend(here / folder)
    (here / folder).mkdir(exist_ok=True)
    (here / folder / "helper.py").write_text("")
    name = plugin(here / folder, code)
    line = (
        f"plugin={folder}/{name} model=bigram data={'own' if 'own' in code else 'sentence'} {QUICK}"
    )
    with pytest.raises(SystemExit) as end:
        cli.main(line.split())
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "helper.py, whose changes would not be noticed; a plug-in of several files is a" in said


def test_a_text_that_says_itself_what_is_scored_is_named_if_that_is_nothing(here, capsys):
    text = """
        from dataclasses import dataclass
        import numpy as np

        @dataclass(frozen=True)
        class Own(lmlab.CorpusConfig):
            document_end = "."
            def scored(self, codes):
                return np.zeros(len(codes), bool)

        @lmlab.register.corpus("own", Own)
        def own(config):
            yield "some text. " * 90
    """
    line = f"plugin={plugin(here, text)} model=bigram data=own {QUICK}".split()
    refused(capsys, lambda: cli.main(line), ["data=own: nothing is scored in the part train"])


def test_a_folder_whose_plugin_has_a_name_of_odd_bytes_is_one_line(train, here):
    run = train("model=bigram data=sentence val_fraction=0.2 block_size=8 " + QUICK)
    content = (run / "config.yaml").read_bytes().replace(b"plugin: null", b"plugin: \xff\xfe.py")
    files.write_sealed(run / "config.yaml", content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        sample.main([f"run={run}"])


def test_a_run_of_a_plug_in_whose_name_the_lab_has_taken_says_so(here, train):
    """As one of a corpus recall of somebody's own, before the lab had one."""
    name = plugin(here, "@lmlab.register.corpus('own')\ndef f(config): yield 'hello there ' * 50")
    run = train(f"plugin={name} model=bigram data=own block_size=8 " + QUICK)
    content = (run / "config.yaml").read_bytes().replace(b"data: own", b"data: recall")
    files.write_sealed(run / "config.yaml", content)
    for arguments in ([], [f"plugin={name}"]):
        with pytest.raises(
            UserError, match=r"data=recall was a choice of plugin=own.py .* own now"
        ):
            sample.main([f"run={run}", *arguments])


def test_a_plug_in_may_have_a_name_that_is_no_utf_8(here, capsys):
    """It is noted with an escape, and messages that name it can be printed."""
    name = plugin(here, "@lmlab.register.corpus('own')\ndef f(config): yield 'hello there ' * 50")
    odd = "caf\udce9.py"
    (here / name).rename(odd)
    line = ["model=bigram", "data=own", "block_size=8", *QUICK.split()]
    cli.main([f"plugin={odd}", *line])
    (run,) = here.glob("outputs/bigram/*")
    with pytest.raises(UserError, match=r"plugin=.*caf.*name it"):
        sample.main([f"run={run}"])
    sample.main([f"run={run}", f"plugin={odd}", "max_tokens=5"])
    (here / odd).write_text("1 / 0")
    with pytest.raises(SystemExit):
        cli.main([f"plugin={odd}", *line])
    assert r"error: plugin=caf\udce9.py: cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [",", "my_lab.py,"])
def test_a_missing_name_of_a_plug_in_is_told(here, capsys, typed):
    refused(capsys, lambda: cli.main([f"plugin='{typed}'"]), ["plugin=", "missing", "comma"])
