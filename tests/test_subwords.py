"""Bytes and byte pairs: equal to the library's own, exact in both directions, trusted as characters."""

import itertools
import json
import os
import random
import signal
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import lmlab
from lmlab.catalogue import BPEConfig, NGramConfig, TokenizerFileConfig
from lmlab.commands import train as cli
from lmlab.config import overrides
from lmlab.data import corpora, encoding, subwords
from lmlab.data.encoding import between
from lmlab.data.splits import Splits
from lmlab.data.tokenizer_json import keeps_every_byte
from lmlab.data.tokenizers import CharTokenizer, from_json
from lmlab.errors import UserError
from lmlab.inference.generate import Sample
from lmlab.inference.loss import log_probs, loss_metrics
from lmlab.models.base import build_model
from lmlab.signals import Interrupted
from lmlab.sweeps import load_runs, report
from lmlab.sweeps.curves import Curves
from lmlab.sweeps.table import leaderboard
from tests.conftest import config, metrics, refused, script
from tests.test_callbacks import assert_same, resumed

LINE = (
    "data=tales val_fraction=0.01 threads=1 device=cpu precision=32-true batch_size=2 block_size=16 "
    "model=gpt_nano warmup_steps=0 log_interval=1 eval_interval=5 checkpoint_interval=5 name=x "
)
SHORT = LINE.replace("data=tales val_fraction=0.01", "data=sentence val_fraction=0.3")
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
# What cuts of words depend on: blanks, signs, digits, letters of several bytes.
WORDY = st.text(st.sampled_from(" \n\t.,'\"s1éß日😀tThe"), max_size=40)


@pytest.fixture(scope="module", autouse=True)
def short(short_texts):
    """Runs in this process read a short text."""


@pytest.fixture(scope="module")
def tales():
    return "".join(corpora.tales(None))  # as `short_texts` leaves them


@pytest.fixture(scope="module")
def pairs(tales):
    return subwords.PairTokenizer(subwords.learned([tales], 500))


@settings(max_examples=100)
@given(texts=st.lists(TEXTS | WORDY, min_size=50, max_size=50))
def test_ids_and_texts_are_the_librarys_own(pairs, texts):
    """Ten thousand strings: there and back again, with single bytes and with merged ones."""
    for tokenizer in (pairs, subwords.ByteTokenizer()):
        library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        ids = [found.tolist() for found in tokenizer.encode_pieces(texts)]
        assert ids == [found.ids for found in library.encode_batch(texts)]
        assert [tokenizer.decode(found) for found in ids] == texts
        assert library.decode_batch(ids) == texts


def test_the_merges_are_those_of_the_script_to_read(tales):
    """Pairs that are equally common: that with the smallest ids first."""
    tiny = script("tiny_bpe")
    tokens = tiny.train(tales, 500)
    pairs = subwords.PairTokenizer(subwords.learned([tales], 500))
    assert tokens == pairs.tokens
    text = tales[:2_000] + " It's 12 —  né\n\n 日本 x_y"
    assert tiny.encode(text, tokens) == pairs.encode(text).tolist()
    assert tiny.decode(tiny.encode(text, tokens), tokens) == text


def test_the_tokens_are_learned_from_the_training_part_alone(tales, some_config):
    half = replace(some_config.data, val_fraction=0.5)
    run_config = replace(
        some_config,
        data=half,
        choices=some_config.choices | {"tokenizer": "bpe"},
        tokenizer=BPEConfig(400),
    )
    learned = Splits.of_run(run_config).tokenizer
    cut = len(tales) // 2
    pieces = [piece for _, piece in between([tales[:cut]], np.array([0, cut]))]
    assert learned.to_json() == subwords.PairTokenizer(subwords.learned(pieces, 400)).to_json()
    again = Splits.of_run(run_config).tokenizer  # from the cache
    assert again.to_json() == learned.to_json()


def test_other_code_learns_and_encodes_anew(monkeypatch):
    """What a version of the lab has put into the cache is no answer of another one's."""
    line = "data=sentence val_fraction=0.3 tokenizer=bpe vocab_size=258"
    before = splits(line).train.filename
    assert splits(line).train.filename == before
    monkeypatch.setattr("lmlab.own_code.sha256_of", lambda *_: "other code")
    made = []
    learned = subwords.learned
    monkeypatch.setattr(subwords, "learned", lambda *_: made.append(learned(*_)) or made[-1])
    assert splits(line).train.filename != before and len(made) == 1


@given(text=TEXTS | WORDY)
def test_a_text_grows_token_by_token_also_inside_a_character(pairs, text):
    for tokenizer in (pairs, subwords.ByteTokenizer()):
        growing = tokenizer.growing()
        pieces = [growing.add(token) for token in tokenizer.encode(text).tolist()]
        assert "".join(pieces) + growing.end() == text
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_a_character_that_is_never_completed_is_marked_at_the_end():
    growing = subwords.ByteTokenizer().growing()
    assert [growing.add(byte) for byte in "a日".encode()[:-1]] == ["a", "", ""]
    assert growing.end() == "\ufffd"


def test_a_stop_string_may_reach_over_tokens(pairs):
    sample = Sample(pairs.growing(), "d on the")
    text = "The cat sat and lied on the mat."
    out = "".join(sample.add(token) for token in pairs.encode(text).tolist()) + sample.end()
    assert out == "The cat sat and lie"


@settings(max_examples=50)
@given(
    pieces=st.lists(WORDY, min_size=1, max_size=12),
    sizes=st.tuples(st.integers(1, 6), st.integers(6, 12)),
    data=st.data(),
)
def test_a_text_is_cut_alike_in_whatever_pieces_it_comes(pieces, sizes, data):
    text = "".join(pieces)
    inner = data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=4))
    cuts = np.unique([0, *(cut for cut in inner if cut < len(text)), len(text)])
    if len(cuts) < 2:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "PIECE", sizes[0])
        patch.setattr(encoding, "LONGEST_PIECE", sizes[1])
        found = list(between([text], cuts))
        assert [piece for piece in between(pieces, cuts) if piece[1]] == [
            piece for piece in found if piece[1]
        ]
    for i, (start, end) in enumerate(itertools.pairwise(cuts.tolist())):
        assert "".join(piece for cut, piece in found if cut == i) == text[start:end]
    assert all(len(piece) <= sizes[1] for _, piece in found)


def test_long_texts_are_cut_where_no_token_is(pairs, tales, monkeypatch):
    """Between words, where the pattern of GPT-2 cuts as well."""
    monkeypatch.setattr(encoding, "PIECE", 50)
    pieces = [piece for _, piece in between([tales], np.array([0, len(tales)]))]
    assert len(pieces) > len(tales) / 80
    ids = np.concatenate(list(pairs.encode_pieces(pieces)))
    assert (ids == pairs.encode(tales)).all()


def splits(line, **parts):
    return Splits.of_run(overrides.resolved(f"{LINE}{line}".split())[0], **parts)


@pytest.mark.parametrize(
    "keys", ["", "separator=. align=document", "separator=. score_after=e test_fraction=0.2"]
)
def test_the_parts_and_documents_of_a_text_are_the_same_whatever_a_token_is(keys):
    characters = splits(keys)
    text_of = characters.tokenizer.decode
    for tokenizer in ("byte", "bpe vocab_size=400"):
        other = splits(f"{keys} tokenizer={tokenizer}")
        assert other.sha256 == characters.sha256
        for name, tokens in other.parts.items():
            assert other.tokenizer.decode(tokens) == text_of(characters.parts[name])
        for name, documents in characters.documents.items():
            found, tokens = other.documents[name], other.parts[name]
            starts = np.concatenate([[0], other.tokenizer.byte_lengths[tokens].cumsum()])
            assert (starts[found.starts] == documents.starts).all()  # the stories are ASCII
            if documents.scored is not None:
                lengths = other.tokenizer.byte_lengths[tokens]
                assert (np.repeat(found.scored, lengths) == documents.scored).all()


def test_files_of_a_folder_are_documents(here, train, capsys):
    (here / "docs").mkdir()
    texts = [f"Tale {n}: the cat sat on mat {n}.\nThe end" for n in range(9)]
    for n, text in enumerate(texts):
        (here / f"docs/{n}.txt").write_text(text)
    for tokenizer in ("char", "bpe vocab_size=258"):
        line = f"data=folder path=docs val_fraction=0.3 align=document tokenizer={tokenizer}"
        text = splits(line)
        whole = text.tokenizer.decode(np.concatenate([text.train, text.val]))
        assert whole == "".join(f"{text}\x1e" for text in texts)
        starts = [*text.documents["train"].starts.tolist(), len(text.train)]
        assert len(starts) == 7  # a part begins with a document
        pieces = [text.train[a:b] for a, b in itertools.pairwise(starts)]
        assert [text.tokenizer.decode(piece) for piece in pieces] == [f"{t}\x1e" for t in texts[:6]]
    line = "data=folder path=docs device=cpu"
    refused(capsys, lambda: cli.main(f"{line} separator=x".split()), ["separator=x", "leave"])
    (here / "docs/odd.txt").write_text("a\x1eb")
    refused(capsys, lambda: cli.main(line.split()), ["odd.txt", r"\x1e"])


@pytest.mark.parametrize("tokenizer", ["byte", "bpe vocab_size=300"])
def test_a_resumed_and_a_replayed_run_are_the_same_to_the_bit(
    train, monkeypatch, capsys, tokenizer
):
    whole, parted = resumed(train, monkeypatch, f"{LINE} tokenizer={tokenizer}")
    assert_same(whole, parted)
    capsys.readouterr()
    cli.main([f"replay={parted}"])
    assert "the same to the bit" in capsys.readouterr().out
    tuned = train(f"{LINE} init_from={parted} max_steps=1")
    assert (tuned / "tokenizer.json").read_bytes() == (parted / "tokenizer.json").read_bytes()
    assert config(tuned)["tokenizer"] == tokenizer.split()[0]


def test_a_run_needs_nothing_but_its_folder(here, train, pairs, capsys):
    """The file of its tokens may be gone when it is resumed, replayed, sampled or tuned."""
    (here / "tokens.json").write_text(pairs.to_json())
    run = train(f"{SHORT} tokenizer=file tokenizer_path=tokens.json max_steps=2")
    (here / "tokens.json").unlink()
    cli.main([f"resume={run}", "max_steps=3"])
    assert metrics(run)["step"] == 3
    cli.main([f"replay={run}"])
    assert "are the same to the bit" in capsys.readouterr().out
    script("sample").main([f"run={run}", "max_tokens=3"])
    train(f"{SHORT} init_from={run} max_steps=1")


def test_a_file_of_tokens_that_has_changed_since_the_first_run_is_named(here, train, pairs, capsys):
    path = here / "tokens.json"
    path.write_text(pairs.to_json())
    line = f"{SHORT} tokenizer=file tokenizer_path=tokens.json max_steps=1"
    first = train(line)
    capsys.readouterr()
    train(f"{line} init_from={first}")
    words = "tokenizer_path=tokens.json: has changed"
    assert words not in capsys.readouterr().err
    path.write_text(subwords.ByteTokenizer().to_json())
    second = train(f"{line} init_from={first}")
    assert words in capsys.readouterr().err
    assert (second / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()


def test_a_sweep_over_tokenizers_is_ranked_by_bits_per_byte(here, train, capsys):
    line = f"-m {SHORT} tokenizer=bpe vocab_size=256,258 max_steps=2 seed=0,1 name=s"
    assert len(train(line)) == 4
    page = capsys.readouterr().out
    assert "val/bits_per_byte at the end" in page and "vocab_size" in page
    assert train(line) == []
    board = (here / "outputs/sweeps/s/leaderboard.md").read_text().split("\n")[0]
    assert "| val/bits_per_byte |" in board and "| best val/loss per token |" in board
    runs = load_runs("outputs/sweeps/s")
    data = report.page_data(runs, leaderboard(runs), "s", Curves())
    assert data["unit"] == "bits per byte" and data["references"] == []
    for row in data["rows"]:
        assert row["curves"][data["loss"]]["mean"][-1] == pytest.approx(row["loss"])
    train(f"-m {SHORT} tokenizer=byte max_steps=2 seed=0,1 name=t")
    board = (here / "outputs/sweeps/t/leaderboard.md").read_text().split("\n")[0]
    assert "| best val/loss |" in board


@pytest.mark.parametrize("is_swept", [False, True])
def test_a_key_of_another_tokenizer_is_pointed_to_its_own(here, capsys, is_swept):
    line = f"{SHORT} tokenizer=char vocab_size=500"
    words = ["vocab_size=500: tokenizer=char", "vocab_size is a key of tokenizer=bpe"]
    if is_swept:
        line = f"-m {line.replace('=char', '=char,bpe')}"
        words.append("sweep=vocabulary")
    refused(capsys, lambda: cli.main(line.split()), words)
    assert not (here / "outputs").exists()


def test_a_search_over_tokenizers_looks_for_bits_per_byte(train, capsys):
    line = f"-m {SHORT} hydra/sweeper=search hydra.sweeper.n_trials=2 max_steps=2 name=s "
    train(f"{line} tokenizer=bpe vocab_size=256,258")
    assert "objective val/bits_per_byte: the tokenizers differ" in capsys.readouterr().out
    typed = f"{line} name=t tokenizer=char,byte hydra.sweeper.objective=best/val/loss"
    refused(capsys, lambda: cli.main(typed.split()), ["best/val/loss", "val/bits_per_byte"])


def test_the_name_of_a_cell_depends_on_the_tokens_not_on_their_path(here, train, pairs, tales):
    line = f"-m {SHORT} tokenizer=file max_steps=1 name=s seed=0 tokenizer_path="
    (here / "one.json").write_text(pairs.to_json())
    (here / "folder").mkdir()
    (here / "folder/tokenizer.json").write_text(pairs.to_json())
    assert len(train(f"{line}one.json")) == 1
    assert train(f"{line}folder") == []
    (here / "one.json").write_text(subwords.learned([tales], 400))
    assert len(train(f"{line}one.json")) == 1


def test_rows_of_several_tokenizer_files_name_them(here, train, pairs, tales):
    (here / "one.json").write_text(pairs.to_json())
    (here / "two.json").write_text(subwords.learned([tales], 400))
    train(f"-m {SHORT} tokenizer=file max_steps=1 name=s seed=0 tokenizer_path=one.json,two.json")
    board = lmlab.compare("outputs/sweeps/s").leaderboard
    assert {*board["tokenizer_path"]} == {"one.json", "two.json"}
    script("compare").main(["outputs/sweeps/s", "vary=tokenizer_path", "table=t.csv"])
    assert {*pd.read_csv("t.csv")["tokenizer_path"]} == {"one.json", "two.json"}


@pytest.mark.parametrize("wrapped", [True, False])
def test_tokens_that_a_tokenizer_would_add_to_each_text_are_named(
    here, train, pairs, capfd, wrapped
):
    values = json.loads(pairs.to_json())
    start = {"id": pairs.vocab_size, "content": "<s>", "special": True}
    values["added_tokens"] = [
        start | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ]
    single = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    special = {"<s>": {"id": "<s>", "ids": [pairs.vocab_size], "tokens": ["<s>"]}}
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }
    values["post_processor"] = (
        {"type": "Sequence", "processors": [template]} if wrapped else template
    )
    (here / "t.json").write_text(json.dumps(values))
    train(f"{SHORT} tokenizer=file tokenizer_path=t.json max_steps=1")
    assert (
        "tokenizer_path=t.json: its post_processor adds <s> to each text" in capfd.readouterr().err
    )


def test_bits_per_byte_are_one_number_for_bytes_and_characters(tales):
    """Of a model that counts, with the same number of possible tokens."""
    text, cut = tales, 4_000
    numbers = []
    for tokenizer in (CharTokenizer.from_text(text), subwords.ByteTokenizer()):
        ids = tokenizer.encode(text)
        model = build_model(NGramConfig(order=5), 256)
        model.count(ids[:cut])
        found = log_probs(model, ids[cut:], 5)
        numbers.append(loss_metrics(found, ids[cut:], tokenizer, "val")["val/bits_per_byte"])
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)


def test_bits_per_byte_do_not_depend_on_the_batch(train, monkeypatch):
    run = train(f"{LINE} tokenizer=bpe vocab_size=300 max_steps=3")
    numbers = set()
    for rows in (1, 7, 10_000):
        monkeypatch.setattr("lmlab.inference.loss.TOKENS_AT_ONCE", rows * 16)
        evaluate = script("evaluate")
        _, _, found = evaluate.main.__wrapped__.__globals__["measured"](
            evaluate.main.__wrapped__.__globals__["Options"](run=str(run))
        )
        numbers.add(found["val/bits_per_byte"])
    assert numbers == {metrics(run)["val/bits_per_byte"]}


def test_half_a_character_is_named(pairs):
    for tokenizer in (pairs, subwords.ByteTokenizer()):
        with pytest.raises(UserError, match="1 character outside"):
            list(tokenizer.encode_pieces(["a\ud800"]))
        assert [ids.tolist() for ids in tokenizer.encode_pieces(["a\ud800"], drop=True)] == [
            tokenizer.encode("a").tolist()
        ]


def test_more_tokens_than_pairs_are_refused(capsys):
    line = f"{LINE} data=sentence val_fraction=0.5 tokenizer=bpe vocab_size=3000"
    refused(capsys, lambda: cli.main(line.split()), ["vocab_size=3000", "no more than"])


def test_characters_in_hugging_faces_form(tales):
    chars = CharTokenizer.from_text(tales + "é日")
    values = chars.in_hugging_face()
    library = tokenizers.Tokenizer.from_str(json.dumps(values))
    text = tales[:500] + "日é\n"
    assert library.encode(text).ids == chars.encode(text).tolist()
    assert library.decode(chars.encode(text).tolist()) == text
    assert from_json(json.dumps(values)).to_json() == chars.to_json()


def odd(pairs, change):
    values = json.loads(pairs.to_json())
    change(values)
    return values


ODD = {
    "model=None": lambda v: v.update(model=None),
    "truncation": lambda v: v.update(truncation={"max_length": 3, "direction": "Right"}),
    "padding": lambda v: v.update(padding={"strategy": "BatchLongest"}),
    "code": lambda v: v.update(code="import os"),
    "normalizer": lambda v: v.update(normalizer={"type": "Lowercase"}),
    "pre_tokenizer": lambda v: v.update(pre_tokenizer=None),
    "whitespace": lambda v: v.update(pre_tokenizer={"type": "WhitespaceSplit"}),
    "pattern": lambda v: v.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "a" * 2000}, "behavior": "Isolated"}
    ),
    "sequence": lambda v: v.update(
        pre_tokenizer={"type": "Sequence", "pretokenizers": "ByteLevel"}
    ),
    "decoder": lambda v: v.update(decoder={"type": "WordPiece"}),
    "dropout": lambda v: v["model"].update(dropout=0.5),
    "Unigram": lambda v: v["model"].update(type="Unigram"),
    "unk": lambda v: v["model"].update(unk_token="a"),
    "lists": lambda v: v["model"].update(vocab=[["a", 0]]),
    "huge id": lambda v: v["model"]["vocab"].update(th=2**40),
    "negative id": lambda v: v["model"]["vocab"].update(th=-1),
    "an id twice": lambda v: v["model"]["vocab"].update(th=0),
    "an id that is true": lambda v: v["model"]["vocab"].update(th=True),
    "a byte missing": lambda v: v["model"]["vocab"].pop("a"),
    "no byte": lambda v: v["model"]["vocab"].update({"日": 5000}),
    "merges of what is not there": lambda v: v["model"]["merges"].append(["zq", "zq"]),
    "merges that are none": lambda v: v["model"].update(merges=[1, 2]),
    "merges of three": lambda v: v["model"].update(merges=[["a", "b", "c"]]),
    "added": lambda v: v.update(added_tokens=[{"id": 1}]),
    "added twice": lambda v: v.update(added_tokens={"a": 1}),
    "types that are lists": lambda v: v.update(pre_tokenizer={"type": ["ByteLevel"]}),
    "types that are objects": lambda v: v.update(normalizer={"type": {}}),
    "the id of a byte": lambda v: v.update(added_tokens=[added("Q", v["model"]["vocab"]["A"])]),
    "one id for two": lambda v: v.update(added_tokens=[added("<x>", 500), added("<y>", 500)]),
    "an id after a gap": lambda v: v.update(added_tokens=[added("<x>", 900)]),
    "another id than in vocab": lambda v: v.update(added_tokens=[added("he", 500)]),
    "a space in vocab's letters": lambda v: v.update(
        added_tokens=[added("Ġt", v["model"]["vocab"]["Ġt"])]
    ),
    "bytes of bytes": lambda v: v.update(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [v["pre_tokenizer"]] * 2}
    ),
    "a pattern named like the part": lambda v: v.update(
        pre_tokenizer=split("ByteLevel")  # which alone would lose bytes
    ),
    "many parts": lambda v: v.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [split("a")] * 3000 + [v["pre_tokenizer"]],
        }
    ),
    "no parts": lambda v: v.update(pre_tokenizer={"type": "Sequence", "pretokenizers": []}),
    "exchanged ids": lambda v: v.update(added_tokens=[added("<x>", 501), added("<y>", 500)]),
}


def split(pattern):
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def added(content, i):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": i, "content": content} | flags


def test_a_tokenizer_without_a_decoder_has_one_for_others(pairs):
    bare = subwords.PairTokenizer(json.dumps(json.loads(pairs.to_json()) | {"decoder": None}))
    exported = tokenizers.Tokenizer.from_str(json.dumps(bare.in_hugging_face()))
    text = "The cats sat, é!"
    assert exported.decode(exported.encode(text).ids) == text == bare.decode(bare.encode(text))
    assert "decoder" in bare.to_json() and json.loads(bare.to_json())["decoder"] is None


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_in_a_tokenizer_json_is_refused(here, pairs, capfd, name):
    """In one line, and nothing of the library's own reaches the terminal."""
    path = here / "odd.json"
    path.write_text(json.dumps(odd(pairs, ODD[name])))
    with pytest.raises(UserError, match=r"odd\.json: "):
        subwords.FileTokenizer.train(None, TokenizerFileConfig(str(path)))
    assert capfd.readouterr().err == ""


TERMINAL = "\x1b[31m\nred " + "x" * 10**5


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update({TERMINAL: 1}),
        lambda v: v["model"].update({TERMINAL: 1}),
        lambda v: v["model"].update(dropout=TERMINAL),
        lambda v: v["model"]["merges"].append([TERMINAL, "a"]),
        lambda v: v.update(version=TERMINAL),
        lambda v: v.update(decoder={"type": {"a": TERMINAL}}),
    ],
)
def test_a_message_about_a_tokenizer_json_is_one_short_line_whatever_stands_there(
    here, pairs, change
):
    (here / "t.json").write_text(json.dumps(odd(pairs, change)))
    with pytest.raises(UserError) as error:
        subwords.from_file(here / "t.json")
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_a_name_that_no_file_can_have_is_named_with_its_key():
    name = "a" * 300
    with pytest.raises(UserError, match=f"tokenizer_path={name}: File name too long"):
        subwords.FileTokenizer.train(None, TokenizerFileConfig(name))


def test_a_tokenizer_json_may_be_nested_as_deeply_as_it_likes(here, pairs):
    """Also as deeply as can just be read, but not be written into a message."""
    text = pairs.to_json().replace('"normalizer":null', '"normalizer":"@"').replace(" ", "")
    for depth in [10, 100, *range(900, 1010), 10**5]:
        (here / "t.json").write_text(text.replace('"@"', "[" * depth + "]" * depth))
        with pytest.raises(UserError, match=r"t\.json: (normalizer|is no|is nested)"):
            subwords.from_file(here / "t.json")


@pytest.mark.parametrize("content", ["", "[", "[]", "1", '"model"', "[" * 10_000, "{}", "\x00"])
def test_what_is_no_tokenizer_json_is_refused(here, content):
    (here / "no.json").write_text(content)
    with pytest.raises(UserError, match=r"no\.json"):
        subwords.FileTokenizer.train(None, TokenizerFileConfig("no.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},  # of as many bytes, but others
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
    ],
)
def test_each_byte_must_come_back(here, pairs, change):
    (here / "t.json").write_text(json.dumps(json.loads(pairs.to_json()) | change))
    config = TokenizerFileConfig("t.json")
    tokenizer = subwords.FileTokenizer.train(None, config)
    with pytest.raises(UserError, match=r"tokenizer_path=t\.json: changes the text"):
        list(tokenizer.encode_pieces(["q\u0307\u0323 \uf900"]))


def test_only_a_tokenizer_that_cannot_change_a_text_is_not_looked_at(pairs):
    assert not pairs.may_change
    values = json.loads(pairs.to_json())
    assert keeps_every_byte(values)
    prefixed = values["pre_tokenizer"] | {"add_prefix_space": True}
    cut = {"type": "Sequence", "pretokenizers": [values["pre_tokenizer"]]}
    added = {"id": 0, "content": "<|end|>", "lstrip": True}
    vocab = {token: i for token, i in values["model"]["vocab"].items() if token != "a"}
    for change in (
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": prefixed},
        {"pre_tokenizer": cut},
        {"pre_tokenizer": None},
        {"added_tokens": [added]},
        {"model": values["model"] | {"vocab": vocab}},
    ):
        assert not keeps_every_byte(values | change)


def test_messages_about_a_tokenizer_begin_with_where_it_comes_from(here, pairs, train, capsys):
    composed = odd(pairs, lambda v: v.update(normalizer={"type": "NFC"}))
    (here / "nfc.json").write_text(json.dumps(composed))
    run = train(f"{SHORT} tokenizer=file tokenizer_path=nfc.json max_steps=1")
    (here / "odd.txt").write_text("\uf900 there it was " * 9)
    line = f"{SHORT} data=file path=odd.txt tokenizer=file tokenizer_path=nfc.json"
    words = ["error: tokenizer_path=nfc.json: changes the text"]
    refused(capsys, lambda: cli.main(line.split()), words)
    words = [f"error: {run}/tokenizer.json: changes the text"]
    line = f"{SHORT} data=file path=odd.txt init_from={run}"
    refused(capsys, lambda: cli.main(line.split()), words)
    with pytest.raises(UserError, match=r"/tokenizer\.json: changes the text"):
        script("sample").main([f"run={run}", "prompt=\uf900", "max_tokens=1"])


def test_files_of_a_tokenizer_that_are_no_text_are_named(here, pairs):
    (here / "vocab.json").write_text(json.dumps(json.loads(pairs.to_json())["model"]["vocab"]))
    (here / "merges.txt").write_bytes(b"a \xff\n")
    with pytest.raises(UserError, match=r"merges\.txt: is no text in UTF-8"):
        subwords.from_file(here)
    (here / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read"):
        subwords.from_file(here / "tokenizer.json")


def test_a_pattern_without_end_is_one_line(here, pairs, capfd):
    values = json.loads(pairs.to_json())
    values["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split("(a+)+$"), values["pre_tokenizer"]],
    }
    (here / "t.json").write_text(json.dumps(values))
    tokenizer = subwords.FileTokenizer.train(None, TokenizerFileConfig("t.json"))
    with pytest.raises(
        UserError, match=r"tokenizer_path=t\.json: cannot encode the text .*; needs a pattern"
    ):
        list(tokenizer.encode_pieces(["a" * 40 + "!"]))


def test_a_signal_that_comes_while_a_text_is_encoded_is_no_fault_of_it(pairs, monkeypatch):
    class Stopping:
        def encode_batch_fast(self, *_, **__):
            raise Interrupted

    monkeypatch.setattr(pairs, "library", Stopping())
    with pytest.raises(Interrupted):
        pairs.encode("a text")


def test_a_long_word_is_learned_from_in_parts():
    """Else these would take minutes. Shorter words are not cut."""
    letters = "".join(random.Random(0).choices("ACGT", k=200_000))
    assert len(subwords.PairTokenizer(subwords.learned([letters, "a" * 10**6], 300)).tokens) == 300
    parts = [letters[start : start + 1000] for start in (0, 1000, 2000)]
    assert subwords.learned([letters[:3000]], 300) == subwords.learned(parts, 300)
    word = "".join(map(chr, range(0x4E00, 0x4E00 + 330)))  # of 990 bytes
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 400, "initial_alphabet": alphabet, "show_progress": False}
    library.train_from_iterator([word], tokenizers.trainers.BpeTrainer(**options))
    assert (
        json.loads(subwords.learned([word], 400))["model"] == json.loads(library.to_str())["model"]
    )


def test_a_signal_is_heard_while_tokens_are_learned(monkeypatch):
    """The library itself hears none; the thread in which it learns then ends with the process."""
    never = threading.Event()
    monkeypatch.setattr(tokenizers.Tokenizer, "train_from_iterator", lambda *_: never.wait(60))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        splits("data=sentence val_fraction=0.3 tokenizer=bpe vocab_size=259")
    never.set()


def test_a_tokenizer_that_changes_the_text_is_refused(pairs):
    composed = subwords.PairTokenizer(
        json.dumps(odd(pairs, lambda v: v.update(normalizer={"type": "NFC"})))
    )
    assert composed.decode(composed.encode("é")) == "é"
    with pytest.raises(UserError, match="changes the text"):
        composed.encode("e\u0301")  # an accent that stands by itself


@pytest.mark.parametrize("keys", ["bpe vocab_size=261", "file tokenizer_path=t.json"])
def test_a_tokenizer_that_a_run_could_not_read_again_is_refused_at_the_start(
    here, pairs, monkeypatch, capsys, keys
):
    values = json.loads(pairs.to_json())
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    older = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    (here / "t.json").write_text(older)  # smaller than what the library makes of it
    limit = len(older.encode()) if "file" in keys else 1_000
    monkeypatch.setattr(subwords, "LIMIT", limit)
    line = f"{SHORT} tokenizer={keys} max_steps=1"
    words = [f"error: {keys.split()[1]}: ", f"allowed are at most {limit:,}"]
    refused(capsys, lambda: cli.main(line.split()), words)
    assert not (here / "outputs").exists()


def test_special_tokens_are_tokens_of_the_text(here, pairs, train):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": 500, "content": "<|end|>", "special": True} | flags
    path = here / "special.json"
    path.write_text(json.dumps(odd(pairs, lambda v: v.update(added_tokens=[token]))))
    tokenizer = subwords.FileTokenizer.train(None, TokenizerFileConfig(str(path)))
    text = "a cat<|end|>a dog"
    ids = tokenizer.encode(text).tolist()
    assert ids.count(500) == 1 and tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text)


def test_a_folder_may_hold_a_vocabulary_and_merges(here, pairs):
    values = json.loads(pairs.to_json())["model"]
    (here / "vocab.json").write_text(json.dumps(values["vocab"] | {"<|endoftext|>": 500}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in values["merges"])]
    (here / "merges.txt").write_text("\n".join(lines))
    tokenizer = subwords.FileTokenizer.train(None, TokenizerFileConfig("."))
    assert tokenizer.tokens == [*pairs.tokens, b"<|endoftext|>"]
    (here / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges\.txt"):
        subwords.FileTokenizer.train(None, TokenizerFileConfig("."))


def test_the_page_shows_tokens_as_they_are_cut(train, tmp_path):
    run = train(f"{LINE} tokenizer=bpe vocab_size=300 max_steps=1")
    script("explain").main([f"run={run}", f"out={tmp_path / 'x.html'}", "text=The cat né"])
    page = (tmp_path / "x.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    names = [token["text"] for token in data["tokens"]]
    assert "".join(names[:-2]) == "The cat n" and " t" not in names[-2:]
    assert len(names) < 11 and names[-2:] == [r"\xc3", r"\xa9"] and data["unit"] == "token"
    assert "<!--unit-->" not in page.replace('"<!--', "") and "character of" not in page


def test_the_picture_of_a_bigram_shows_the_commonest_tokens(train):
    run = train(f"{LINE} model=bigram tokenizer=bpe vocab_size=600 max_steps=1")
    assert metrics(run)["n_params"] == 600**2
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    *_, image = events.Images(events.Tags()["images"][0])
    # In an empty corner of 30 x 30 cells stand the names; 600 x 600 cells would be no picture.
    assert 30 * 40 < image.width < image.height < 45 * 40


def test_a_bigram_of_many_tokens_is_small_in_memory_when_explained(pairs):
    """Only pairs of the commonest tokens are counted, not all of V times V."""
    from lmlab.inference.explain import count_pairs

    ids = np.array([3, 9, 3, 9, 70_000, 3])
    counts = count_pairs(ids, np.array([3, 9]), 10**6)
    assert counts.tolist() == [[0, 2], [1, 0]]
