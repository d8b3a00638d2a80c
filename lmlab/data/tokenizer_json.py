"""Hugging Face's tokenizer.json: what it may hold, and the tokenizers of bytes and of characters in it.

It is read as data, and may come from a stranger.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lmlab.data.patterns import in_javascript
from lmlab.errors import UserError, shown

MOST = 2**20  # tokens of a vocabulary
LONGEST = 1000  # characters of a pattern or of an added token
LONGEST_SEQUENCE = 30  # parts; those of well-known models have up to five


def parsed(description: str | bytes) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises UserError."""
    try:
        values = json.loads(description)
    except (RecursionError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise UserError("is no JSON object")
    return values


def byte_characters() -> dict[str, int]:
    """Returns the printable character that stands for each byte, in the order of GPT-2's ids.

    Printable bytes of Latin-1 stand for themselves; the others get characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = byte_characters()
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BYTES: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": BYTE_LEVEL | {"use_regex": False},
    "post_processor": None,
    "decoder": BYTE_LEVEL | {"use_regex": False},
    "model": {
        "type": "BPE",
        "vocab": dict(sorted(BYTE_OF.items(), key=lambda item: item[1])),
        "merges": [],
    },
}
"""The tokenizer.json of single bytes."""

# What may stand in the parts of a tokenizer.json, apart from its model.
PARTS = {
    "normalizer": {"NFC"},
    "pre_tokenizer": {"ByteLevel", "Split", "Digits", "Punctuation", "Sequence"},
    "post_processor": {"ByteLevel", "TemplateProcessing", "Sequence"},
    "decoder": {"ByteLevel"},
}
PARTS_OF = {"pre_tokenizer": "pretokenizers", "post_processor": "processors"}  # of a Sequence
MODEL = {  # the keys of the model, and the values that change nothing
    "type": ("BPE",),
    "dropout": (None, 0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False, True),
    "byte_fallback": (False,),
    "ignore_merges": (False, True),
}


def check_description(values: Mapping[str, Any]) -> None:
    """Raises UserError unless a tokenizer.json is byte-level, and carries nothing else.

    The library would take part of a longer text, cut it, or end the program without a word.
    """
    for key, value in values.items():
        if key not in BYTES:
            raise UserError(f"{shown(key)}: is no part of a tokenizer.json")
        if key in ("truncation", "padding") and value is not None:
            raise UserError(f"{key}: needs null; the lab itself cuts texts")
    for name, allowed in PARTS.items():
        check_part(name, values.get(name), allowed)
    # A second one would write each byte that the first has written as one or two others.
    if types_in(values.get("pre_tokenizer")).count("ByteLevel") != 1:
        raise UserError(
            "pre_tokenizer: needs ByteLevel once, so that each byte of a text comes back"
        )
    check_model(values.get("model"))
    check_added(values.get("added_tokens", []), values["model"]["vocab"])


def keeps_every_byte(values: Mapping[str, Any]) -> bool:
    """Returns whether a checked tokenizer.json must return each text as it was.

    It does if it only cuts between bytes, and each byte is a token, so that nothing can be left out.
    """
    return (
        values.get("normalizer") is None
        and values.get("pre_tokenizer") == BYTE_LEVEL | {"use_regex": True}
        and not values.get("added_tokens")
        and BYTE_OF.keys() <= values["model"]["vocab"].keys()
    )


def check_part(name: str, part: Any, allowed: set[str]) -> None:
    """Raises UserError if a part of a tokenizer.json, or a part of it, has another type."""
    if part is None:
        return
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in allowed:
        raise UserError(f"{name}: is {shown(kind)}; allowed are null, {', '.join(sorted(allowed))}")
    pattern = part.get("pattern")
    if pattern is not None and len(json.dumps(pattern)) > LONGEST:
        raise UserError(f"{name}: its pattern has more than {LONGEST:,} characters")
    if part["type"] == "Sequence":
        parts = part.get(PARTS_OF[name])
        if not isinstance(parts, list) or not 0 < len(parts) <= LONGEST_SEQUENCE:
            raise UserError(
                f"{name}: a Sequence needs {PARTS_OF[name]}, a list of 1 to {LONGEST_SEQUENCE} parts"
            )
        for further in parts:
            check_part(name, further, allowed - {"Sequence"})


def types_in(part: Any) -> list[str]:
    """Returns the types of the parts of a checked Sequence, or of the one part."""
    if part is None:
        return []
    return [one["type"] for one in part.get(PARTS_OF["pre_tokenizer"], [part])]


def check_model(model: Any) -> None:
    """Raises UserError unless a model has a vocabulary, and merges of its tokens."""
    if not isinstance(model, dict):
        raise UserError("model: needs an object with vocab and merges")
    for key, value in model.items():
        if key in ("vocab", "merges"):
            continue
        if key not in MODEL:
            raise UserError(f"model: there is no key {shown(key)}; keys are {', '.join(MODEL)}")
        if value not in MODEL[key]:
            words = ", ".join(map(shown, MODEL[key]))
            raise UserError(f"model: {key}={shown(value)}; allowed are {words}")
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"model: type={shown(model['type'])}; allowed is BPE")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not is_numbering(vocab.values()):
        raise UserError(f"model: vocab needs different whole numbers from 0 to {MOST:,}")
    if BYTE_OF.keys() - vocab.keys():
        raise UserError("model: vocab lacks some of the 256 bytes, so it cannot encode every text")
    if any(char not in BYTE_OF for token in vocab for char in token):
        raise UserError("model: vocab has a character that stands for no byte")
    if not isinstance(merges, list):
        raise UserError("model: merges needs a list of pairs")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(token, str) for token in pair):
            raise UserError(f"model: merges has {shown(merge)}, which is no pair of tokens")
        if not {*pair, "".join(pair)} <= vocab.keys():
            raise UserError(f"model: merges has {shown(merge)}, which vocab lacks")


def is_numbering(ids: Iterable[Any]) -> bool:
    """Returns whether `ids` are different whole numbers below MOST, and at least one."""
    found = list(ids)
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in found)
    return whole and 0 < len(found) == len(set(found)) and 0 <= min(found) <= max(found) < MOST


def check_added(added: Any, vocab: Mapping[str, int]) -> None:
    """Raises UserError unless the added tokens are texts with ids of their own."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    needed = {"id", "content", *flags}
    if not isinstance(added, list):
        raise UserError("added_tokens: needs a list")
    taken = {i: token for token, i in vocab.items()}
    for token in added:
        if not isinstance(token, dict) or token.keys() != needed or not is_numbering([token["id"]]):
            raise UserError(f"added_tokens: needs {', '.join(sorted(needed))}, with an id")
        content = token["content"]
        if not isinstance(content, str) or not 0 < len(content) <= LONGEST:
            raise UserError(f"added_tokens: a content needs 1 to {LONGEST:,} characters")
        if not all(isinstance(token[flag], bool) for flag in flags):
            raise UserError(f"added_tokens: {content!r} needs true or false for {', '.join(flags)}")
        if content in vocab and not content.isascii():
            raise UserError(
                f"added_tokens: {content!r} is a token of vocab, where its characters stand for bytes; "
                "needs another content"
            )
        if taken.setdefault(token["id"], content) != content:
            raise UserError(
                f"added_tokens: {content!r} has the id {token['id']}, which is that of "
                f"{taken[token['id']]!r}"
            )


def bytes_of_tokens(values: Mapping[str, Any]) -> list[bytes]:
    """Returns the bytes of each token of a checked tokenizer.json; an id without one has none."""
    by_id = {
        i: bytes(BYTE_OF[char] for char in token) for token, i in values["model"]["vocab"].items()
    }
    for token in values.get("added_tokens", ()):
        by_id[token["id"]] = token["content"].encode()
    return [by_id.get(i, b"") for i in range(max(by_id) + 1)]


# The form in which a page of HTML encodes texts.


def pairs_in_page(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns tokens, merges and cuts of a checked tokenizer.json. Raises UserError.

    `cuts` are patterns of JavaScript, one after the other; None stands for that of GPT-2.
    """
    model = values["model"]
    vocab = model["vocab"]
    by_id = {i: token for token, i in vocab.items()}
    added = {token["content"]: token["id"] for token in values.get("added_tokens", ())}
    for token in values.get("added_tokens", ()):
        if token["single_word"] or token["lstrip"] or token["rstrip"]:
            raise UserError(
                f"added_tokens: {token['content']!r}: a page cannot encode texts with single_word, "
                "lstrip or rstrip"
            )
    size = max([*by_id, *added.values()]) + 1
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    cutting = values["pre_tokenizer"]
    parts = cutting["pretokenizers"] if cutting["type"] == "Sequence" else [cutting]
    kinds = [part["type"] for part in parts]
    if "ByteLevel" in kinds[:-1]:  # what comes after it cuts letters that stand for bytes
        raise UserError(
            f"pre_tokenizer: a page cannot encode texts with {kinds[-1]} after ByteLevel"
        )
    cuts = [cut for part in parts for cut in cuts_of(part)]
    normalizer = values.get("normalizer")
    return {
        "tokens": [by_id.get(i, "") for i in range(size)],
        "merges": pairs,
        "cuts": cuts,
        "added": added,
        "normalize": None if normalizer is None else normalizer["type"],
        "whole_words": bool(model.get("ignore_merges")),
    }


def cuts_of(part: Mapping[str, Any]) -> list[str | None]:
    """Returns the patterns at which a part of a pre_tokenizer cuts. Raises UserError."""
    kind = part["type"]
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return [None] if part.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if part.get("individual_digits") else r"\p{N}+"]
    pattern = part.get("pattern")
    is_plain = part.get("behavior") == "Isolated" and not part.get("invert")
    if kind == "Split" and is_plain and isinstance(pattern, dict) and "Regex" in pattern:
        try:
            return [in_javascript(pattern["Regex"])]
        except UserError as error:
            raise UserError(f"pre_tokenizer: a page cannot encode texts with {error}") from None
    raise UserError(f"pre_tokenizer: a page cannot encode texts with {shown(part)}")


# Characters in Hugging Face's form, as export writes them.

CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated"}


def of_characters(chars: str) -> dict[str, Any]:
    """Returns the tokenizer.json of single characters, in the order of their ids."""
    vocab = {char: i for i, char in enumerate(chars)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": ""}
    parts = {"pre_tokenizer": CHARACTER | {"invert": False}, "decoder": {"type": "Fuse"}}
    return BYTES | parts | {"model": model}


def alphabet_in(values: Mapping[str, Any]) -> str:
    """Returns the characters of what `of_characters` returned, or "" of another tokenizer."""
    model = values["model"]
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return ""
    chars = "".join(sorted(model["vocab"]))
    return chars if values == of_characters(chars) else ""
