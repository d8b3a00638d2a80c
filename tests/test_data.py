import errno
import sys
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlab import files
from lmlab.catalogue import CorpusConfig, FileConfig
from lmlab.data import corpora
from lmlab.data import text as texts
from lmlab.data.batches import Batches, BatchModule
from lmlab.data.encoding import token_file
from lmlab.data.splits import Splits
from lmlab.data.text import Text
from lmlab.data.tokenizers import CharTokenizer, UnknownCharacters
from lmlab.errors import UserError
from lmlab.processes.server import context

ANY_CHAR = st.characters(codec=None, exclude_categories=())  # lone surrogates included
sizes = st.tuples(
    st.integers(2, 300), st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**32 - 1)
).filter(lambda size: size[0] > size[1])


def batches_of(size):
    N, T, B, seed = size
    return Batches(np.arange(N), B, T, seed)


@given(sizes, st.lists(st.integers(0, 50), max_size=5))
def test_a_batch_is_the_same_whatever_came_before(size, asked_before):
    used = batches_of(size)
    for t in asked_before:
        used[t]
    for t in (0, 1, 7, 50):
        for one, other in zip(used[t], batches_of(size)[t], strict=True):
            assert one.equal(other)


@given(sizes)
def test_each_token_of_an_epoch_is_drawn_once(size):
    N, T, B, _ = size
    batches = batches_of(size)
    windows = max(1, (N - T) // T)  # of an epoch; tokens are their own positions here
    rows = np.concatenate([batches[t][0] for t in range(-(-3 * windows // B))])[: 3 * windows]
    for epoch in rows.reshape(3, windows * T):
        assert len(set(epoch.tolist())) == windows * T  # none twice
        assert windows * T > N - 2 * T or windows == 1  # all but at most 2T
        assert np.ptp(epoch) == windows * T - 1  # end to end


@pytest.mark.parametrize("resident", [0, 2**20])
@given(
    sizes,
    st.integers(0, 20),
    st.integers(1, 400),
    st.sampled_from([np.uint8, np.uint16, np.uint32]),
)
def test_a_stream_is_the_batches_one_after_the_other(resident, size, start, at_once, kind):
    """Whether the tokens lie on the device or are read ahead, and however many are cut at once."""
    (N, T, B, seed), cpu = size, torch.device("cpu")
    batches = Batches(np.arange(N).astype(kind), B, T, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmlab.data.batches.RESIDENT", resident)
        patch.setattr("lmlab.data.batches.CUT_AT_ONCE", at_once)
        stream = batches.stream(start, cpu)
        for t in range(start, start + 12):
            for mine, wanted in zip(next(stream), batches[t], strict=True):
                assert mine.dtype == wanted.dtype and mine.equal(wanted)
        stream.close()


def test_lightning_gets_the_batches_from_the_first_that_is_asked_for_on():
    batches = Batches(np.arange(100), 2, 5, seed=1)
    module = BatchModule(batches, first=7)
    device = torch.device("cpu")
    module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device))
    stream = module.train_dataloader()
    for t in (7, 8, 9):
        batch = module.transfer_batch_to_device(next(stream), device, 0)
        for mine, wanted in zip(batch, batches[t], strict=True):
            assert mine.equal(wanted)


@given(sizes)
def test_targets_are_the_next_tokens(size):
    idx, targets = batches_of(size)[3]
    assert idx.shape == targets.shape == (size[2], size[1])
    assert (targets == idx + 1).all()


def test_epochs_and_seeds_differ():
    one, other = Batches(np.arange(1000), 9, 10, seed=0), Batches(np.arange(1000), 9, 10, seed=1)
    assert not one[0][0].equal(other[0][0])
    assert not one[0][0].equal(
        one[11][0]
    )  # 99 windows an epoch: the second one starts with batch 11


def test_a_full_batch_is_all_of_the_text():
    idx, targets = Batches(np.arange(50), 1, 49, seed=3)[8]
    assert idx[0].tolist() == list(range(49)) and targets[0].tolist() == list(range(1, 50))


@given(st.integers(1, 20), st.integers(0, 5))
def test_text_too_short_for_block_size_is_refused(N, more):
    with pytest.raises(UserError, match=f"block_size={N + more}"):
        Batches(np.arange(N), 1, N + more, 0)


@given(
    holdout=st.floats(0, 0.5),
    val=st.floats(0, 0.9),
    test=st.floats(0, 0.9),
    length=st.integers(1, 400),
)
def test_splits_are_the_text_in_order(some_config, holdout, val, test, length):
    text = ("abcdefghij" * 40)[:length]
    config = replace(
        some_config,
        data=CorpusConfig(val_fraction=val, test_fraction=test, holdout_fraction=holdout),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "tales", lambda _: [text])
        if holdout + val + test >= 1:
            return
        try:
            module = Splits.of_run(config)
        except UserError as error:
            assert "_fraction=" in str(error)
            return
    parts = list(module.parts.values())
    assert list(module.parts) == ["holdout", "train", "val", "test"]
    assert module.tokenizer.decode(np.concatenate(parts)) == text
    for part, share in zip((parts[0], *parts[2:]), (holdout, val, test), strict=True):
        assert abs(len(part) - share * length) <= 1 and (len(part) > 0) == (share > 0)


def test_another_text_than_the_one_with_this_sha256_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a text of the run")
    config = FileConfig(0.2, 0.0, 0.0, str(path))
    text = Splits("file", config)
    assert Splits("file", config, sha256=text.sha256).val.tolist() == text.val.tolist()
    path.write_text("a text of another")
    refused = rf"^data=file path={path}: the text is not the one .*{text.sha256[:12]}"
    with pytest.raises(UserError, match=refused):
        Splits("file", config, sha256=text.sha256)
    with pytest.raises(UserError, match=r"^data=sentence: the text is not the one"):
        Splits("sentence", CorpusConfig(0.0, 0.0, 0.0), sha256=text.sha256)


@given(
    st.lists(st.text(ANY_CHAR)).filter(any), st.text(ANY_CHAR), st.sampled_from(["drop", "error"])
)
def test_a_text_in_pieces_gives_the_same_data(some_config, pieces, known, unknown):
    text = "".join(pieces)
    tokenizer = CharTokenizer.from_text(known) if known else None
    kept = "".join(char for char in text if not known or char in known)
    config = replace(
        some_config,
        run=replace(some_config.run, unknown=unknown),
        data=CorpusConfig(val_fraction=0, test_fraction=0, holdout_fraction=0),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "tales", lambda _: iter(pieces))
        if not kept or (unknown == "error" and kept != text):
            with pytest.raises(UserError, match=r"^data=tales: .* the vocabulary"):
                Splits.of_run(config, tokenizer)
            return
        module = Splits.of_run(config, tokenizer)
    assert module.sha256 == files.sha256(text.encode("utf-8", "surrogatepass"))
    assert module.tokenizer.chars == "".join(sorted(set(known or text)))
    assert module.tokenizer.decode(module.train) == kept
    assert module.dropped == len(text) - len(kept)


def test_tokens_are_a_small_memory_map_found_again(cache):
    text = Text(lambda: ["some text ", "for a map"])
    tokens = token_file(text, CharTokenizer.train(text))
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint8 and not tokens.flags.writeable
    made = {path: path.stat().st_mtime_ns for path in (cache / "tokens").iterdir()}
    text.pieces = None  # no need to read it again
    assert (
        CharTokenizer.train(text).decode(token_file(text, CharTokenizer.train(text)))
        == "some text for a map"
    )
    assert {path: path.stat().st_mtime_ns for path in (cache / "tokens").iterdir()} == made
    changed = Text(lambda: ["some text ", "for a pam"])
    assert (
        CharTokenizer.train(changed).decode(token_file(changed, CharTokenizer.train(text)))
        == "some text for a pam"
    )


def test_tokens_made_with_something_left_out_are_not_those_of_the_text():
    text, tokenizer = Text(lambda: ["a b c"]), CharTokenizer("abc")
    assert tokenizer.decode(token_file(text, tokenizer, drop=True)) == "abc"
    with pytest.raises(UnknownCharacters):
        token_file(text, tokenizer)


def test_tokens_are_read_whole_where_a_file_has_no_map(cache, monkeypatch, capfd):
    text = Text(lambda: ["some text ", "without a map"])
    mapped = token_file(text, CharTokenizer.train(text))

    def refuse(*_, **__):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(np, "memmap", refuse)
    whole = token_file(text, CharTokenizer.train(text))
    assert (whole == mapped).all() and whole.dtype == mapped.dtype and not whole.flags.writeable
    said = capfd.readouterr().err
    assert f"warning: {mapped.filename}: is read into memory" in said and "No such device" in said


def test_a_damaged_token_file_is_made_anew(cache):
    text = Text(lambda: ["a text whose tokens ", "are damaged"])
    path = Path(token_file(text, CharTokenizer.train(text)).filename)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert (
        CharTokenizer.train(text).decode(token_file(text, CharTokenizer.train(text)))
        == "a text whose tokens are damaged"
    )


@pytest.mark.parametrize(
    "later",
    [
        ["a file that ", "grows", "!"],
        ["a file that ", "grown"],
        ["a file that "],
        [],
        ["a fine that ", "grows"],
        ["grows", "a file that "],
    ],
)
def test_a_text_that_changes_while_it_is_read_is_refused(cache, later):
    readings = iter([["a file that ", "grows"], later])
    text = Text(lambda: next(readings))
    before = set((cache / "tokens").iterdir())
    with pytest.raises(UserError, match="the text changed while it was read"):
        token_file(text, CharTokenizer.train(text))
    assert set((cache / "tokens").iterdir()) == before


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("is_slow", [True, False])
def test_what_reads_a_text_for_more_than_a_second_says_so(monkeypatch, capfd, is_terminal, is_slow):
    class Place(StringIO):
        def isatty(self):
            return is_terminal

    timers = []

    def after_a_second(say):  # that is here after the first piece, or never
        timers.append(say)
        return nullcontext()

    def slow():
        yield "naïve"
        if is_slow:
            timers[-1]()
        yield from ["naïve"] * 9

    monkeypatch.setattr(texts, "after_a_second", after_a_second)
    monkeypatch.setattr(sys, "stderr", Place())
    monkeypatch.setenv("TERM", "xterm")
    list(Text(slow, "path=a.txt").again())
    shown = sys.stderr.getvalue() + capfd.readouterr().err
    words = ("reading path=a.txt", "tokenising: path=a.txt")
    assert all(word in shown for word in words) == is_slow
    assert ("60/60 bytes" in shown) == (is_slow and is_terminal)


TWICE = "two at once " * 20_000


def read_new_text(barrier, results):
    text = Text(lambda: [TWICE])
    barrier.wait()
    results.put(
        CharTokenizer.train(text).decode(token_file(text, CharTokenizer.train(text))) == TWICE
    )


def test_two_runs_can_start_at_once_on_new_data(cache):
    barrier, results = context().Barrier(2), context().Queue()
    both = [context().Process(target=read_new_text, args=(barrier, results)) for _ in range(2)]
    for process in both:
        process.start()
    assert [results.get(timeout=60), results.get(timeout=60)] == [True, True]
    for process in both:
        process.join()
    left = [path.name for path in (cache / "tokens").glob(".*")]
    assert left == [files.IN_USE]  # no half-written file stays
