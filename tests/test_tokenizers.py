from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data.tokenizers import (
    CharTokenizer,
    Tokenizer,
    UnknownCharacters,
    check_tokenizer,
    from_json,
)
from lmlab.errors import UserError

ANY_CHAR = st.characters(codec=None, exclude_categories=())  # lone surrogates included


@given(st.text(ANY_CHAR, min_size=1), st.data())
def test_any_text_round_trips(text, data):
    tokenizer = CharTokenizer.from_text(text)
    assert list(tokenizer.chars) == sorted(set(text))
    ids = tokenizer.encode(text)
    assert ids.dtype == np.min_scalar_type(tokenizer.vocab_size - 1)
    assert tokenizer.decode(ids) == text
    again = from_json(tokenizer.to_json())
    assert (again.encode(text) == ids).all()
    part = data.draw(st.text(st.sampled_from(text)))
    assert again.decode(again.encode(part)) == part


@given(st.text(min_size=1), st.characters())
def test_a_character_outside_the_vocabulary_is_named(text, char):
    tokenizer = CharTokenizer.from_text(text)
    if char in text:
        assert tokenizer.decode(tokenizer.encode(char)) == char
    else:
        with pytest.raises(UserError) as error:
            tokenizer.encode(text + char)
        assert repr(char) in str(error.value)


@given(st.text(ANY_CHAR, min_size=1), st.lists(st.text(ANY_CHAR)), st.data())
def test_a_text_in_pieces_is_the_same_text(known, pieces, data):
    """The same vocabulary, ids and complaint, the characters in order of number, then of
    appearance.
    """
    pieces += data.draw(st.lists(st.text(st.sampled_from(known))))
    text = "".join(pieces)
    assert CharTokenizer.from_pieces([*pieces, known]).chars == "".join(sorted(set(text + known)))
    tokenizer = CharTokenizer.from_text(known)
    kept = [tokenizer.chars.index(char) for char in text if char in known]
    ids = list(tokenizer.encode_pieces(pieces, drop=True))
    assert {piece.dtype for piece in ids} <= {tokenizer.encode(known).dtype}
    assert [int(i) for piece in ids for i in piece] == kept
    counts = Counter(char for char in text if char not in known)
    if counts:
        with pytest.raises(UnknownCharacters) as whole:
            tokenizer.encode(text)
        with pytest.raises(UnknownCharacters) as parts:
            list(tokenizer.encode_pieces(pieces))
        named = ", ".join(f"{char!r} ({n:,})" for char, n in counts.most_common(20))
        assert str(parts.value) == str(whole.value)
        total = "1 character" if counts.total() == 1 else f"{counts.total():,} characters"
        assert str(whole.value).startswith(f"{total} outside the vocabulary: {named}")
    else:
        assert [int(i) for i in tokenizer.encode(text)] == kept


def test_more_than_twenty_unknown_characters_are_summed_up():
    with pytest.raises(
        UnknownCharacters, match=r"^1,025 characters .* \(1,001\), .* and 5 more; known are 'ab'"
    ):
        CharTokenizer("ab").encode(
            "a" + "".join(map(chr, range(1000, 1025))) + "b" + chr(1003) * 1000
        )


def test_ids_take_the_smallest_type():
    assert CharTokenizer(chars="".join(map(chr, range(256)))).encode("a").dtype == np.uint8
    with pytest.raises(UnknownCharacters):  # 256 ids leave none over for what is unknown
        CharTokenizer(chars="".join(map(chr, range(256)))).encode("aĀ")
    assert CharTokenizer(chars="".join(map(chr, range(257)))).encode("a").dtype == np.uint16


def test_other_tokenizers_need_three_methods():
    """Two letters a token: what the base class makes of the methods of a subclass."""

    class Pairs(Tokenizer):
        vocab_size = 4

        def encode_pieces(self, pieces, drop=False):
            text = "".join(pieces)
            if not drop and set(text) - {"a", "b"}:
                raise UnknownCharacters(text)
            yield np.array(
                [["aa", "ab", "ba", "bb"].index(text[i : i + 2]) for i in range(0, len(text), 2)],
                np.uint8,
            )

        def decode(self, ids):
            return "".join(["aa", "ab", "ba", "bb"][i] for i in ids)

    tokenizer = Pairs()
    assert tokenizer.encode("abba").tolist() == [1, 2]
    assert tokenizer.names() == ["aa", "ab", "ba", "bb"] and tokenizer.name_of(2) == "ba"
    assert tokenizer.default_prompt() == "aa"
    assert CharTokenizer("\nab").default_prompt() == "\n"


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"type": "bpe"}', '{"type": []}', '{"type": "char", "chars": "ab"}']
    + [f'{{"type": "char", "chars": {chars}}}' for chars in ("[]", '["b", "a"]', '["ab"]', "[1]")],
)
def test_what_is_no_vocabulary_is_refused(text):
    with pytest.raises(UserError, match="is no vocabulary"):
        from_json(text)


def test_lengths_that_do_not_add_up_to_the_text_are_refused():
    """They are the divisor of bits per byte. Of tokens that are characters nothing else counts them."""
    tokenizer = CharTokenizer("aé")
    check_tokenizer(tokenizer, "aéa")
    tokenizer.byte_lengths = 2 * tokenizer.byte_lengths
    with pytest.raises(
        UserError, match="byte_lengths of a text's tokens add up to 8, but it has 4"
    ):
        check_tokenizer(tokenizer, "aéa")
