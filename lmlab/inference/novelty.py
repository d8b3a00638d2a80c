"""Novelty: how much of what a model writes stands, letter by letter, in its training text.

Some of it always does: two texts of one kind share words and phrases. So the same is measured of a
piece of the validation text, which was surely not copied. Where the sample's numbers are far above
those, the model recites.
"""

import numpy as np

from lmlab.data.tokenizers import Tokenizer
from lmlab.inference import generate
from lmlab.inference.evaluations import Value
from lmlab.inference.specimen import Specimen

SAMPLED = 400  # tokens of the sample
COPY = 20  # characters in a row that count as copied
AT_ONCE = 2**22  # places of the training text that are looked at together


def novelty(specimen: Specimen) -> dict[str, Value]:
    """Returns what of a sample stands in the training text, and of as much of the text that judges.

    `longest_copy` and `mean_copy` are characters, `copied` is a share; `copies` explains them. The
    sample is drawn at temperature 1 by a generator of its own.
    """
    text = written(specimen)
    usual = specimen.tokenizer.decode(specimen.tokens[:SAMPLED])[: len(text)]
    train = codes_of(specimen.train, specimen.tokenizer)
    numbers: dict[str, Value] = {}
    for name, piece in (("sample", text), (specimen.part, usual)):
        numbers |= copies(longest_matches(codes(piece), train), name)
    return numbers


def written(specimen: Specimen) -> str:
    """Returns a text of `SAMPLED` tokens that the model has written."""
    pieces = generate.stream(
        specimen.model,
        specimen.tokenizer,
        "",
        SAMPLED,
        specimen.block_size,
        seed=specimen.seed,
        precision=specimen.precision,
    )
    return "".join(piece for (piece,) in pieces)


def copies(matches: np.ndarray, name: str) -> dict[str, float]:
    """Returns the longest and the mean match, and which share of `COPY` characters in a row is one.

    `matches` (S,) are those of `longest_matches`. In a shorter text there is no such share.
    """
    numbers = {
        f"{name}/longest_copy": float(matches.max()),
        f"{name}/mean_copy": float(matches.mean()),
    }
    if len(matches) >= COPY:
        whole = matches[: len(matches) - COPY + 1]  # from later places so many do not follow
        numbers[f"{name}/copied"] = float((whole >= COPY).mean())
    return numbers


def codes(text: str) -> np.ndarray:
    """Returns the code points of a text, (N,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def codes_of(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the code points of the text of tokens, (N,)."""
    if not tokenizer.per_character:
        return codes(tokenizer.decode(tokens))
    names = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    return codes("".join(names))[tokens]


def longest_matches(piece: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Returns for each place of `piece` (S,) how long a run from there stands in `text` (N,).

    From all places of the text at once it reads along the runs of the piece, letter by letter, and
    goes on only where they agree. The time grows with N times the mean match.
    """
    alphabet, letters = np.unique(piece, return_inverse=True)
    A = len(alphabet)
    letter_of = np.full(int(max(text.max(), piece.max())) + 1, A)  # A: not in the piece
    letter_of[alphabet] = np.arange(A)
    matches = np.zeros(len(piece), np.int64)
    for start in range(0, len(text), AT_ONCE):
        end = min(start + AT_ONCE, len(text))
        read = letter_of[text[start : end + len(piece)]]
        places = np.arange(end - start)
        run = np.zeros(len(places), np.int64)  # which run of the piece stands at each place
        run_at = np.zeros(len(piece), np.int64)  # which run begins at each place of the piece
        for length in range(1, len(piece) + 1):
            longer = run_at[: len(piece) - length + 1] * (A + 1) + letters[length - 1 :]
            runs, run_at = np.unique(longer, return_inverse=True)
            number = np.full(int(runs[-1]) + 2, -1)
            number[runs] = np.arange(len(runs))
            inside = places + length <= len(read)
            places, run = places[inside], run[inside]
            longer = run * (A + 1) + read[places + length - 1]
            run = number[longer.clip(max=len(number) - 1)]
            places, run = places[run >= 0], run[run >= 0]
            if len(places) == 0:
                break
            stands = np.zeros(len(runs), bool)
            stands[run] = True
            at = np.flatnonzero(stands[run_at])
            matches[at] = np.maximum(matches[at], length)
    return matches
