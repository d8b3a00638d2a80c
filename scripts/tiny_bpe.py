"""Tokens from nothing: pairs of bytes that often stand side by side become tokens.

Count the pairs, merge the commonest into one token, repeat; then any text is cut by the same merges.
Run it: python scripts/tiny_bpe.py
"""

import re
from argparse import ArgumentParser
from collections import Counter
from itertools import pairwise
from pathlib import Path

# No token reaches beyond a word: a word with the space before it, digits, signs, or blanks.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+"
# The first 256 tokens are the bytes, in the order in which GPT-2 numbers them: first what can be seen.
SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [bytes([byte]) for byte in SEEN + [byte for byte in range(256) if byte not in SEEN]]


def train(text, vocab_size):
    """Returns the tokens: all bytes, and then one more token for each merge."""
    tokens = list(BYTES)
    words = Counter(re.findall(WORDS, text))  # a word that comes often is looked at once
    cuts = {word: [tokens.index(bytes([byte])) for byte in word.encode()] for word in words}
    while len(tokens) < vocab_size:
        # Count: how often does each pair of tokens stand side by side?
        pairs = Counter()
        for word, n in words.items():
            for pair in pairwise(cuts[word]):
                pairs[pair] += n
        # Choose the commonest; of pairs that are equally common, the one with the smallest numbers.
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        # Merge: wherever the pair stands, the new token stands from now on.
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for word, cut in cuts.items():
            cuts[word] = merged(cut, best, len(tokens) - 1)
    return tokens


def merged(cut, pair, token):
    """Returns a list of numbers in which `token` stands for each `pair`, from left to right."""
    out = []
    for number in cut:
        if out and (out[-1], number) == pair:
            out[-1] = token
        else:
            out.append(number)
    return out


def encode(text, tokens):
    """Returns the numbers of a text: each word is cut into bytes, which are merged as learned."""
    number = {token: n for n, token in enumerate(tokens)}
    out = []
    for word in re.findall(WORDS, text):
        cut = [bytes([byte]) for byte in word.encode()]
        while len(cut) > 1:
            # The merge that was learned first comes first.
            joins = [number.get(a + b, len(tokens)) for a, b in pairwise(cut)]
            if min(joins) == len(tokens):
                break
            i = joins.index(min(joins))
            cut[i : i + 2] = [cut[i] + cut[i + 1]]
        out += [number[token] for token in cut]
    return out


def decode(numbers, tokens):
    """Returns the text: the bytes of all tokens, one after the other."""
    return b"".join(tokens[n] for n in numbers).decode()


if __name__ == "__main__":
    ArgumentParser(description=__doc__).parse_args()  # it has no options
    stories = Path(__file__).parents[1] / "lmlab/data/texts/tales.txt"
    tokens = train(stories.read_text(encoding="utf-8"), 500)
    print("the first:  ", *map(repr, tokens[256:266]))
    print("the longest:", *map(repr, sorted(tokens, key=len)[-10:]))
    sentence = "The red dog said that it was somewhere else."
    cut = encode(sentence, tokens)
    print(
        len(sentence), "characters,", len(cut), "tokens:", "|".join(tokens[n].decode() for n in cut)
    )
    assert decode(cut, tokens) == sentence
