"""Records stay records: where windows begin, and which tokens are trained and scored."""

import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lmlab.catalogue import LSTMConfig
from lmlab.commands import evaluate, page
from lmlab.commands import train as cli
from lmlab.data.batches import IGNORED, Batches, place_information
from lmlab.data.documents import Documents, unescaped
from lmlab.data.splits import Splits
from lmlab.inference import references
from lmlab.inference.loss import log_probs, loss_metrics
from lmlab.models.base import build_model
from lmlab.training.step import cross_entropy, masked_cross_entropy
from tests.conftest import NANO, history, metrics, refused

SUMS = "".join(f"{a}+{b}={a + b}\n" for a in range(20) for b in range(20))
LINE = NANO + "data=file path=sums.txt block_size=8 "


@pytest.fixture
def sums(here):
    (here / "sums.txt").write_text(SUMS)
    return here


def config(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def records(n, length):
    draw = random.Random(0)
    lines = [f"{draw.randrange(10 ** (length - 4)):0{length - 4}d} ok\n" for _ in range(n)]
    return "".join(lines)


@pytest.mark.parametrize(
    ("key", "typed"),
    [
        *(
            ("separator", x)
            for x in ("~", "~/", "\u2028", "a\u2029", "\x85", "\r\n", "\r", "\n\n", "a b")
        ),
        ("score_after", "~"),
        ("score_after", "\u2028"),
    ],
)
def test_a_run_with_any_separator_is_opened_again(here, typed, key):
    end = " " if key == "score_after" else ""
    (here / "own.txt").write_bytes(f"b c{typed}b{end}".encode() * 60)
    line = [
        *f"{NANO} data=file path=own.txt test_fraction=0.2 max_steps=2".split(),
        f"{key}={typed}",
    ]
    line += [f"separator={end}"] * bool(end)
    cli.main([*line, "name=own"])
    (run,) = (here / "outputs/own").iterdir()
    assert unescaped(config(run)[key]) == typed
    cli.main([f"resume={run}", "max_steps=3"])
    evaluate.main([f"run={run}", "split=test"])
    assert metrics(run)["step"] == 3
    cli.main(["-m", *line, "seed=0,1", "name=sweep"])
    assert (here / "outputs/sweeps/sweep/leaderboard.csv").exists()


def test_records_of_equal_length_get_windows_at_offsets_of_their_own(train, here):
    """The loss on validation text, at another phase, is that of training. With one phase for an
    epoch it was far above it.
    """
    (here / "records.txt").write_text(records(6000, 16))
    line = (
        "model=gpt_nano n_layer=1 n_embd=32 block_size=32 data=file path=records.txt threads=1 "
        "device=cpu precision=32-true max_steps=150 eval_interval=150 lr=0.01 "
    )
    run = train(line)
    assert config(run)["align"] == "window" and "align=window" in (run / "train.log").read_text()
    gap = metrics(run)["val/loss"] - metrics(run)["train/loss"]
    assert abs(gap) < 0.2
    other = train(line + "align=epoch")
    assert metrics(other)["val/loss"] - metrics(other)["train/loss"] > gap + 0.2


def test_prose_keeps_one_offset_for_an_epoch(train):
    assert config(train(NANO + "name=prose"))["align"] == "epoch"


@pytest.mark.parametrize(("length", "block_size", "tells"), [(16, 64, 1), (16, 8, 1), (17, 64, 0)])
def test_what_a_place_tells_of_a_token(length, block_size, tells):
    tokens = np.frombuffer(records(4000, length).encode(), np.uint8)
    assert (place_information(tokens, block_size) > 0.05) == tells


def test_a_place_tells_as_much_as_the_token_has_where_it_decides():
    tokens = np.tile(np.arange(8), 1000)
    assert place_information(tokens, 8) == pytest.approx(math.log(8), abs=1e-3)
    noise = np.random.default_rng(0).integers(8, size=8000)
    assert abs(place_information(noise, 8)) < 0.005


@given(st.integers(2, 400), st.integers(1, 12), st.integers(0, 9))
def test_windows_of_their_own_offset_lie_in_the_text_and_follow_from_the_seed(more, T, seed):
    N = T + more
    one, other = (Batches(np.arange(N), 3, T, seed, "window") for _ in range(2))
    starts = one.starts(5)
    assert np.array_equal(starts, other.starts(5)) and len(starts) == one.windows
    assert starts.min() >= 0 and starts.max() + T + 1 <= N
    idx, targets = one[7]
    assert torch.equal(idx + 1, targets) and torch.equal(idx, other[7][0])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 12))
def test_windows_of_documents_begin_with_each_and_do_not_overlap(lengths, T):
    ends = np.cumsum(lengths)
    documents = Documents(np.array([0, *ends[:-1]]), None)
    starts = documents.window_starts(T, ends[-1])
    wanted = [
        start
        for begin, end in zip(documents.starts, ends, strict=True)
        for start in range(begin, end, T)
    ]
    assert starts.tolist() == wanted
    if ends[-1] > T:
        batches = Batches(np.arange(ends[-1]), 2, T, 0, "document", documents)
        assert sorted(batches.starts(0)) == [start for start in wanted if start + T < ends[-1]]


def test_steps_in_which_nothing_is_scored_are_said_once(here, train, capsys):
    text = "".join("abcd" * 40 + "=x" * (n % 5 == 4) + "\n" for n in range(60))
    (here / "rare.txt").write_text(text)
    line = LINE.replace("path=sums.txt", "path=rare.txt")
    run = train(line + r"separator='\n' score_after== batch_size=1 log_interval=1 max_steps=30")
    assert None in history(run, "train/loss").values() and metrics(run)["status"] == "finished"
    said = capsys.readouterr().err
    assert said.count("no token of the last steps was scored, so train/loss is nan") == 1


def test_only_what_follows_the_mark_is_trained(sums, train):
    run = train(LINE + r"separator='\n' score_after==")
    text = Splits.of_run(config_of(run))
    batches = Batches(text.train, 4, 8, 0, documents=text.documents["train"])
    stream = batches.stream(3, torch.device("cpu"))
    for t in (3, 4):
        idx, targets = batches[t]
        assert torch.equal(idx, (pair := next(stream))[0]) and torch.equal(targets, pair[1])
    seen = text.tokenizer.decode(idx[0].tolist())
    shown = "".join(
        "_" if token == IGNORED else text.tokenizer.decode([token]) for token in targets[0].tolist()
    )
    after = ""
    answer = "=" in seen[:1]
    for before, char in zip(seen, seen[1:] + "?", strict=True):
        answer = (answer or before == "=") and before != "\n"
        after += char if answer else "_"
    begun = seen.find("\n") if "\n" in seen else 0  # before it the document's mark is not seen
    assert shown[begun:-1] == after[begun:-1]


def test_how_much_is_scored_is_said_beside_a_loss(sums, train, capsys):
    run = train(LINE + r"separator='\n' score_after==")
    capsys.readouterr()
    evaluate.main([f"run={run}"])
    page.main([f"run={run}", "out=page.html"])
    said = capsys.readouterr()
    text = Splits.of_run(config_of(run))
    val = text.tokenizer.decode(text.val.tolist())
    before = [re.search(r"=[^\n]*\Z", val[:t]) for t in range(1, len(val))]
    n = sum(found is not None for found in before)  # the end of an answer is part of it
    for page_or_line in (said.err, (sums / "page.html").read_text()):
        assert f"{len(val)} characters, of which {n} are scored" in page_or_line


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_documents_without_the_mark_are_counted_and_said(here, train, capsys, tokenizer):
    (here / "some.txt").write_text("a=1\nd444\nb=2\n" * 60)
    line = LINE.replace("sums.txt", "some.txt")
    train(line + rf"separator='\n' score_after== tokenizer={tokenizer} path=some.txt")
    assert "of 60 documents without score_after nothing is trained or scored" in (
        " ".join(capsys.readouterr().err.split())
    )
    (run,) = {path.parent for path in here.glob("outputs/*/*/config.yaml")}
    evaluate.main([f"run={run}", "data=file", "path=some.txt"])
    warned = "warning: some.txt: of 60 documents without score_after nothing is scored"
    assert warned in capsys.readouterr().err
    train(line + rf"separator='\n' path=some.txt tokenizer={tokenizer}")
    assert "without score_after" not in capsys.readouterr().err


def test_losses_of_counting_begin_where_something_is_scored(monkeypatch):
    """As of a text whose first million validation tokens have no answer."""
    monkeypatch.setattr("lmlab.inference.references.PREDICTED", 20)
    ids = np.random.default_rng(0).integers(5, size=500).astype(np.uint8)
    scored = np.arange(200) >= 60
    text = SimpleNamespace(
        holdout=ids[:0],
        train=ids[:300],
        val=ids[300:],
        tokenizer=SimpleNamespace(vocab_size=5),
        documents={"val": Documents(np.array([0]), scored)},
    )
    found = references.references(text)
    # The first token that counts is number 60; it is predicted from the one before it.
    expected = references.by_counting(text.train, text.val[59:79], 5, scored[60:79])
    assert found == expected and math.isfinite(found["reference/ngram"])


def config_of(run):
    from lmlab.runs.folder import read_config

    return read_config(run)


def test_parts_begin_with_documents_and_the_loss_is_that_of_what_is_scored(sums, train):
    run = train(LINE + r"separator='\n' score_after== align=document")
    text = Splits.of_run(config_of(run))
    assert text.tokenizer.decode(text.val[:2]) != "\n"
    whole = text.tokenizer.decode(text.train) + text.tokenizer.decode(text.val)
    assert whole == SUMS and text.tokenizer.decode(text.train).endswith("\n")
    scored = text.documents["val"].scored
    kept = "".join(
        c for c, keep in zip(text.tokenizer.decode(text.val), scored, strict=True) if keep
    )
    assert kept == "".join(
        line.split("=")[1] + "\n" for line in text.tokenizer.decode(text.val).splitlines()
    )
    evaluate.main([f"run={run}"])
    noted = (run / "evaluations.jsonl").read_text()
    assert f"{metrics(run)['val/loss']:.6f}"[:7] in noted
    uniform = metrics(run)["reference/uniform"]
    assert history(run, "val/loss")[0] == pytest.approx(uniform, abs=0.1)


def test_the_loss_within_documents_is_that_of_each_document_alone():
    torch.manual_seed(0)
    model = build_model(LSTMConfig(block_size=5, n_layer=1, n_embd=8, dropout=0.0), 7).eval()
    tokens = np.random.default_rng(0).integers(7, size=60)
    documents = Documents(np.array([0, 3, 4, 20, 33]), None)
    found = log_probs(model, tokens, 5, documents=documents)
    ids = torch.from_numpy(tokens)
    for begin, end in zip(documents.starts, [*documents.starts[1:], 59], strict=True):
        for start in range(begin, end, 5):
            stop = min(start + 5, end)
            with torch.no_grad():
                scores = model(ids[None, start:stop])[0].log_softmax(-1)
            wanted = scores.gather(1, ids[start + 1 : stop + 1, None])[:, 0]
            assert torch.allclose(found[start:stop], wanted, atol=1e-5)
    assert len(found) == 59


def test_a_masked_loss_is_the_mean_of_what_counts_and_nothing_where_nothing_does():
    torch.manual_seed(0)
    model = torch.nn.Embedding(7, 7)
    idx, targets = torch.randint(7, (2, 3, 5))
    assert torch.allclose(
        masked_cross_entropy(model, idx, targets), cross_entropy(model, idx, targets)
    )
    targets[:, 1:] = IGNORED
    one = cross_entropy(model, idx[:, :1], targets[:, :1])
    assert torch.allclose(masked_cross_entropy(model, idx, targets), one)
    assert masked_cross_entropy(model, idx, torch.full_like(targets, IGNORED)) == 0


def test_the_metrics_of_a_part_count_only_what_is_scored():
    from lmlab.data.tokenizers import CharTokenizer

    tokenizer = CharTokenizer.from_text("aé")
    tokens = tokenizer.encode("aéaé")
    documents = Documents(np.array([0]), np.array([False, True, False, False]))
    found = loss_metrics(torch.tensor([-1.0, -5.0, -5.0]), tokens, tokenizer, "val", documents)
    assert found["val/loss"] == 1.0
    assert found["val/bits_per_byte"] == pytest.approx(1 / math.log(2) / 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("align=document", ["align=document", "needs separator"]),
        ("score_after==", ["score_after==", "needs separator"]),
        ("separator=", ["separator=", "empty"]),
        (r"separator='\t'", ["separator=\\t", "does not contain"]),
        (r"separator='\\' tokenizer=bpe vocab_size=260", ["separator=\\: ", "does not contain"]),
        (r"separator='\n' score_after=é tokenizer=byte", ["score_after=é: ", "does not contain"]),
        ("separator=++", ["separator=++", "does not contain"]),
        (r"separator='\n' score_after=19+19=39", ["score_after", "does not contain"]),
        (r"separator='\n' score_after='\n'", ["score_after", "nothing is scored"]),
        (r"separator='\n' score_after='\n1'", ["score_after", "no document contains it"]),
        (r"separator='\n' score_after=0+0=", ["score_after", "nothing is scored in the part val"]),
    ],
)
def test_a_text_without_such_documents_is_refused(sums, train, capsys, line, words):
    refused(capsys, lambda: train(LINE + line), words)


def test_that_a_document_is_not_divided_is_said_where_nothing_is_left(here, capsys):
    (here / "texts").mkdir()
    (here / "texts/a.txt").write_text("The text of a single file. " * 20)
    line = (
        "data=folder path=texts model=bigram block_size=8 max_steps=1 device=cpu val_fraction=0.6"
    )
    words = ["val_fraction=0.6", "in 1 document, which is not divided, none is left for training"]
    refused(capsys, lambda: cli.main(line.split()), words)


def test_what_is_typed_may_have_escapes():
    assert unescaped(r"a\n\tb\\n\x") == "a\n\tb\\n\\x"


def test_blanks_at_the_ends_of_a_separator_are_kept(here, train):
    (here / "sums.txt").write_text("one two. three four. five six. seven. eight. nine. ten " * 9)
    run = train(LINE + "'separator=. ' val_fraction=0.3")
    assert config(run)["separator"] == ". "
    text = Splits.of_run(config_of(run))
    assert text.tokenizer.decode(text.train).endswith(". ")


def test_a_batch_without_scored_tokens_has_no_loss_and_is_no_reason_to_stop(here, train):
    (here / "sums.txt").write_text("no answer in here, nor in what follows it\n" * 40 + SUMS)
    run = train(
        LINE.replace("block_size=8", "block_size=2")
        + r"separator='\n' score_after== batch_size=1 max_steps=30 log_interval=1"
    )
    losses = history(run, "train/loss")
    assert metrics(run)["status"] == "finished" and None in losses.values()
    assert all(loss is None or loss > 0 for loss in losses.values())


def test_the_loss_on_the_first_text_is_that_of_the_first_run(sums, train):
    first = train(LINE + r"separator='\n' score_after== align=document name=first")
    second = train(LINE + f"init_from={first} name=second max_steps=2")
    source = history(second, "val/loss_source")[0]
    assert source == metrics(first)["best/val/loss"]
