"""Every shipped YAML composes and trains a step."""

import importlib.util
import re

import pytest
import yaml

from lmlab.config import overrides
from lmlab.config.keys import CHOICES, GROUPS, choices_of
from lmlab.errors import UserError
from tests.conftest import ROOT, config, metrics

FILES = sorted(path.relative_to(ROOT / "conf") for path in (ROOT / "conf").glob("*/*.yaml"))
SMALL = {
    "model/gpt2": "n_layer=1 n_embd=192 block_size=64 batch_size=2 data=sentence",
    "data/file": "path=my.txt model=bigram",
    "model/gpt_baby": "n_layer=1 block_size=64 batch_size=2 data=sentence",
    "experiment/shakespeare_baby": "n_layer=1 n_embd=96 batch_size=2",
    "experiment/shakespeare_baby_modern": "n_layer=1 n_head=2 n_embd=96 batch_size=2 hold_steps=0",
    "experiment/shakespeare_fast": "hold_steps=0",
    "experiment/shakespeare_3min": "hold_steps=0",
    "experiment/ladder_modern": "hold_steps=0",
    "experiment/finetune_tales": "n_layer=1",
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
    quick = "" if group in ("model", "experiment") else "model=gpt_nano"
    steps = int(name not in ("ngram", "ladder_ngram"))
    run = train(
        f"{group}={name} {'max_steps=1' * steps} threads=1 {SMALL.get(f'{group}/{name}', quick)}"
    )
    assert metrics(run)["status"] == "finished" and metrics(run)["step"] == steps
    assert config(run)[group] == ("cpu" if group == "device" else name)


def test_the_cluster_recipe_composes_where_submitit_is_and_says_what_is_missing_elsewhere():
    if importlib.util.find_spec("submitit"):
        _, choices, settings = overrides.compose(("hydra/launcher=slurm",))
        assert choices["hydra/launcher"] == "slurm" and settings["launcher"]["max_num_timeout"] > 0
        assert {*yaml.safe_load((ROOT / "conf/hydra/launcher/slurm.yaml").read_text())} - {
            "defaults"
        } <= {*settings["launcher"]}
    else:
        with pytest.raises(UserError, match=r"\[slurm\]"):
            overrides.compose(("hydra/launcher=slurm",))


def test_each_choice_has_a_file_and_each_file_a_choice():
    for group in GROUPS:
        files = {path.stem for path in FILES if path.parts[0] == group}
        assert files == set(choices_of(group))


def test_a_key_is_set_in_one_place():
    """In config.yaml or in the files of one group, never in both; recipes may set any."""
    owners = {}
    for path in [*(path for path in FILES if path.parts[0] != "experiment"), "config.yaml"]:
        for key in {*yaml.safe_load((ROOT / "conf" / path).read_text())} - {"defaults"}:
            owners.setdefault(key, set()).add(str(path).split("/")[0])
    assert {key: places for key, places in owners.items() if len(places) > 1} == {}
    assert not {*CHOICES} & {*owners}


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "experiment"], ids=str)
def test_a_recipe_says_how_it_is_run_and_what_was_seen(path):
    header = (ROOT / "conf" / path).read_text().split("defaults:")[0]
    assert f"python train.py experiment={path.stem}" in header and "TODO" not in header
    assert re.search(r"seen: (?!SEEN_|-)\S", header)
