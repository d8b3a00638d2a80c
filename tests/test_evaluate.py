import json
import math

import numpy as np
import pytest
import torch

from lmlab import machine
from lmlab.catalogue import GPTConfig
from lmlab.commands import evaluate, explain
from lmlab.commands import train as cli
from lmlab.data.subwords import ByteTokenizer
from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError
from lmlab.inference import loss
from lmlab.models.base import build_model
from tests.conftest import NANO, config, metrics, refused

V, T = 9, 8


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(
        GPTConfig(block_size=T, n_layer=2, n_head=2, n_embd=16, dropout=0.5, bias=True), V
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model.train()


def tokens_of(length):
    return np.random.default_rng(0).integers(V, size=length).astype(np.uint8)


@pytest.mark.parametrize("length", [2, T, T + 1, T + 2, 5 * T + 1, 5 * T + 4])
def test_each_token_but_the_first_is_predicted_once_from_its_window(model, length):
    tokens = tokens_of(length)
    answers = loss.log_probs(model, tokens, T)
    model.eval()
    wanted = []
    for i in range(1, length):  # one at a time, from the start of its window
        start = (i - 1) // T * T
        logits = model(torch.from_numpy(tokens[None, start:i].astype(np.int64)))[0, -1]
        wanted.append(logits.log_softmax(-1)[tokens[i]].item())
    assert answers.dtype == torch.float32 and answers.device.type == "cpu"
    assert answers.tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("at_once", [1, 8, 100, 10_000])
def test_the_same_for_every_batch_size(model, monkeypatch, at_once):
    tokens = tokens_of(1000)
    wanted = loss.log_probs(model, tokens, T)
    monkeypatch.setattr(loss, "TOKENS_AT_ONCE", at_once)
    torch.testing.assert_close(loss.log_probs(model, tokens, T), wanted, rtol=0, atol=2e-6)


def test_evaluation_leaves_random_state_and_mode_alone(model):
    state = torch.get_rng_state()
    first, second = (loss.log_probs(model, tokens_of(100), T) for _ in range(2))
    assert first.equal(second)  # dropout is off
    assert model.training
    assert torch.get_rng_state().equal(state)


def test_loss_perplexity_and_bits_per_byte():
    tokenizer = CharTokenizer("aé日")  # 1, 2 and 3 bytes
    tokens = tokenizer.encode("aaé日")
    numbers = loss.loss_metrics(
        torch.log(torch.tensor([0.5, 0.25, 0.125])), tokens, tokenizer, "val"
    )
    assert numbers["val/loss"] == pytest.approx(2 * math.log(2))
    assert numbers["val/perplexity"] == pytest.approx(4)
    assert numbers["val/bits_per_byte"] == pytest.approx((1 + 2 + 3) / (1 + 2 + 3))


def losses_of(run):
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    return {json.loads(line)["val/loss"] for line in lines}


def test_a_runs_text_is_found_from_another_folder_and_at_another_place(
    here, train, monkeypatch, capsys
):
    (here / "my.txt").write_text("one cat and two dogs\n" * 40)
    run = here / train(NANO + "data=file path=my.txt block_size=8 name=m")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    evaluate.main([f"run={run}"])
    cli.main([f"resume={run}", "max_steps=6"])
    cli.main([f"replay={run}"])
    (here / "my.txt").rename(here / "other.txt")
    refused(capsys, lambda: cli.main([f"replay={run}"]), ["no file there"])
    cli.main([f"replay={run}", f"path={here / 'other.txt'}"])
    evaluate.main([f"run={run}", f"path={here / 'other.txt'}"])
    explain.main([f"run={run}", f"path={here / 'other.txt'}"])
    assert len(losses_of(run)) == 2  # of step 4, and twice of step 6
    (here / "wrong.txt").write_text("another text\n" * 40)
    with pytest.raises(UserError, match="is not the one that the run was trained on"):
        evaluate.main([f"run={run}", f"path={here / 'wrong.txt'}"])


def test_all_that_a_run_has_read_is_found_from_another_folder(here, train, monkeypatch):
    (here / "my.txt").write_text("one cat and two dogs\n" * 40)
    (here / "tok.json").write_text(ByteTokenizer().to_json())
    line = NANO + "data=file path=my.txt block_size=8 tokenizer=file tokenizer_path=tok.json "
    first = train(line + "name=m")
    second = train(f"{line} name=n init_from={first.relative_to(here)}")
    assert config(second)["init_from"] == str(first.relative_to(here))
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    for run in (first, second):
        cli.main([f"replay={run}"])
        (again,) = (here / "elsewhere/outputs" / run.parent.name).iterdir()
        assert metrics(again)["val/loss"] == metrics(run)["val/loss"]


def test_a_path_for_a_run_whose_text_is_no_file_is_refused(train):
    run = train(NANO)
    with pytest.raises(UserError, match="path is a key of data=file"):
        evaluate.main([f"run={run}", "path=my.txt"])


def test_a_run_whose_device_is_missing_says_how_to_go_on(run, monkeypatch, capsys):
    def resolve(config):
        raise UserError("device=cuda: this machine has none")

    monkeypatch.setattr(machine, "resolve", resolve)
    words = ["this machine has none", f"init_from={run}"]
    refused(capsys, lambda: cli.main([f"resume={run}", "max_steps=40"]), words)
