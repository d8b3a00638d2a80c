import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.config import UserError
from lmlab.tokenizers import CharTokenizer

ANY_CHAR = st.characters(codec=None, exclude_categories=())  # lone surrogates included

@given(st.text(ANY_CHAR, min_size=1), st.data())
def test_any_text_round_trips(text, data):
    tokenizer = CharTokenizer.from_text(text)
    assert list(tokenizer.chars) == sorted(set(text))
    ids = tokenizer.encode(text)
    assert ids.dtype == np.min_scalar_type(tokenizer.vocab_size - 1)
    assert tokenizer.decode(ids) == text
    again = CharTokenizer.from_json(tokenizer.to_json())
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

def test_ids_take_the_smallest_type():
    assert CharTokenizer(chars="".join(map(chr, range(256)))).encode("a").dtype == np.uint8
    assert CharTokenizer(chars="".join(map(chr, range(257)))).encode("a").dtype == np.uint16
