import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab import data
from lmlab.config import CorpusConfig, UserError
from lmlab.data import Batches, CharDataModule, token_file
from lmlab.tokenizers import CharTokenizer

sizes = st.tuples(st.integers(2, 300), st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**32 - 1)).filter(
    lambda size: size[0] > size[1]
)

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

@given(sizes)
def test_targets_are_the_next_tokens(size):
    idx, targets = batches_of(size)[3]
    assert idx.shape == targets.shape == (size[2], size[1])
    assert (targets == idx + 1).all()

def test_epochs_and_seeds_differ():
    one, other = Batches(np.arange(1000), 9, 10, seed=0), Batches(np.arange(1000), 9, 10, seed=1)
    assert not one[0][0].equal(other[0][0])
    assert not one[0][0].equal(one[11][0])  # 99 windows an epoch: the second one starts with batch 11

def test_a_full_batch_is_all_of_the_text():
    idx, targets = Batches(np.arange(50), 1, 49, seed=3)[8]
    assert idx[0].tolist() == list(range(49)) and targets[0].tolist() == list(range(1, 50))

@given(st.integers(1, 20), st.integers(0, 5))
def test_text_too_short_for_block_size_is_refused(N, more):
    with pytest.raises(UserError, match=f"block_size={N + more}"):
        Batches(np.arange(N), 1, N + more, 0)

@given(val=st.floats(0, 0.9), test=st.floats(0, 0.9), length=st.integers(1, 400))
def test_splits_are_the_text_in_order(some_config, val, test, length):
    text = ("abcdefghij" * 40)[:length]
    config = replace(some_config, data=CorpusConfig(val_fraction=val, test_fraction=test))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.corpora.CORPORA, "tales", lambda _: text)
        if val + test >= 1:
            return
        try:
            module = CharDataModule(config)
        except UserError as error:
            assert "_fraction=" in str(error)
            return
    parts = [module.splits[split] for split in ("train", "val", "test")]
    assert module.tokenizer.decode(np.concatenate(parts)) == text
    assert abs(len(parts[1]) - val * length) <= 1 and abs(len(parts[2]) - test * length) <= 1
    assert (len(parts[1]) > 0) == (val > 0) and (len(parts[2]) > 0) == (test > 0)

def test_tokens_are_a_small_memory_map_found_again(cache):
    text = "some text for a map"
    tokenizer = CharTokenizer.from_text(text)
    tokens = token_file(text, tokenizer)
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint8 and not tokens.flags.writeable
    made = {path: path.stat().st_mtime_ns for path in (cache / "tokens").iterdir()}
    assert tokenizer.decode(token_file(text, tokenizer)) == text
    assert {path: path.stat().st_mtime_ns for path in (cache / "tokens").iterdir()} == made
    assert tokenizer.decode(token_file(text[::-1], tokenizer)) == text[::-1]  # changed text is another file

def read_new_text(barrier, results):
    text = "two at once " * 20_000
    tokenizer = CharTokenizer.from_text(text)
    barrier.wait()
    results.put(tokenizer.decode(token_file(text, tokenizer)) == text)

def test_two_runs_can_start_at_once_on_new_data(cache):
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    both = [spawn.Process(target=read_new_text, args=(barrier, results)) for _ in range(2)]
    for process in both:
        process.start()
    assert [results.get(timeout=60), results.get(timeout=60)] == [True, True]
    for process in both:
        process.join()
    assert not list((cache / "tokens").glob(".*"))  # no half-written file stays
