"""Minimal pairs: is a sentence likelier to the model than the same one with a mistake?

A rule finds a place in a sentence of the stories and makes one mistake there: two words exchanged,
or a word replaced by another form of as many letters. Both sentences have equal length, so their
log-probabilities can be compared. BLiMP (Warstadt et al. 2020) does so with sentences from
templates. Guessing scores 0.5.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from lmlab.errors import UserError
from lmlab.inference.evaluations import Value
from lmlab.inference.loss import TOKENS_AT_ONCE, answers
from lmlab.inference.specimen import Specimen
from lmlab.models.base import evaluating

VERBS = """
begin/began bend/bent blow/blew break/broke build/built come/came creep/crept dig/dug draw/drew
drink/drank drive/drove eat/ate fall/fell feel/felt forget/forgot get/got give/gave grow/grew
hang/hung hold/held keep/kept know/knew lose/lost make/made ride/rode ring/rang rise/rose
run/ran see/saw send/sent shake/shook shine/shone sing/sang sink/sank sit/sat sleep/slept
speak/spoke spin/spun stand/stood steal/stole stick/stuck sweep/swept swim/swam swing/swung
take/took tear/tore tell/told throw/threw wake/woke wear/wore win/won write/wrote
"""  # those whose past has as many letters
FORMS: dict[str, str] = dict(re.findall(r"(\w+)/(\w+)", VERBS))
PASTS = {past: base for base, past in FORMS.items()}
BASES = "|".join(base for base in FORMS if base not in ("fall", "see"))  # one may fell and saw
CASES = {"she": "her", "they": "them", "we": "us"}
SUBJECTS = {their: they for they, their in CASES.items()}
ASKED = "asked|gave|helped|saw|told|took"
WITH = "about|after|around|at|behind|beside|by|for|from|near|of|on|over|to|under|with"
SEVERAL = "band|class|couple|crew|crowd|family|fish|pair|people|rest|sheep|team"


def one_of(words: Sequence[str] | dict[str, str]) -> str:
    """Returns a pattern for any of some words, also with a capital letter."""
    return "|".join(f"[{word[0].upper()}{word[0]}]{word[1:]}" for word in words)


def form(word: str, forms: dict[str, str]) -> str:
    """Returns another form of a word, with a capital letter if the word has one."""
    other = forms[word.lower()]
    return other if word.islower() else other.capitalize()


# Each rule: where it applies, and what takes the place of what was found.
Mistake = tuple[str, Callable[[re.Match[str]], str]]
RULES: dict[str, list[Mistake]] = {
    "order": [(r"\b(the|a|an) ([a-z]+)\b", lambda found: f"{found[2]} {found[1]}")],
    "agreement": [
        (rf"\b({one_of(['he', 'she', 'it', 'there'])}|I) was\b", lambda found: f"{found[1]} are"),
        (
            rf"\b((?:{one_of(['the', 'his', 'her'])}) (?!{SEVERAL})[a-z]*[a-rt-z]) was\b",
            lambda found: f"{found[1]} are",
        ),
        (rf"\b({one_of(['they', 'we', 'you'])}) are\b", lambda found: f"{found[1]} was"),
    ],
    "case": [
        (
            rf"(?<!than )(?<!as )(?<!was )\b({one_of(CASES)})(?= (?!and\b|or\b)[a-z])",
            lambda found: form(found[1], CASES),
        ),
        (
            rf"\b({ASKED}|{WITH}) ({'|'.join(SUBJECTS)})(?=[.,!?;])",
            lambda found: f"{found[1]} {SUBJECTS[found[2]]}",
        ),
    ],
    "form": [
        (
            rf"\b(did not|could|would|can|will|to) ({BASES})\b",
            lambda found: f"{found[1]} {FORMS[found[2]]}",
        ),
        (
            rf"\b({one_of(['he', 'she', 'it'])}) ({'|'.join(PASTS)})\b",
            lambda found: f"{found[1]} {PASTS[found[2]]}",
        ),
    ],
}


def minimal_pairs(specimen: Specimen) -> dict[str, Value]:
    """Returns the share of pairs whose sentence without the mistake is likelier, all and by rule.

    A tie counts one half. Raises UserError if the text has no sentence for any rule.
    """
    pairs = list(pairs_of(specimen.tokenizer.decode(specimen.tokens)))
    if not pairs:
        raise UserError("minimal_pairs: the text has no sentence to which a rule applies")
    right = total_log_probs(specimen, [sentence for _, sentence, _ in pairs])
    wrong = total_log_probs(specimen, [mistaken for _, _, mistaken in pairs])
    scores = (right > wrong) + (right == wrong) / 2
    numbers: dict[str, Value] = {f"{specimen.part}/minimal_pairs": float(scores.mean())}
    for rule in RULES:
        of_rule = [score for (name, _, _), score in zip(pairs, scores, strict=True) if name == rule]
        if of_rule:
            numbers[f"{specimen.part}/pairs_{rule}"] = float(np.mean(of_rule))
    return numbers


def pairs_of(text: str) -> Iterator[tuple[str, str, str]]:
    """Yields the pairs of a text: the rule, a sentence, and the same with a mistake.

    A rule applies at most once to a sentence, at its first place. The first and the last sentence,
    which may be cut, are left out.
    """
    sentences = re.split(r'(?<=[.!?])\s+|(?<=[.!?]")\s+', text)[1:-1]
    for sentence in sentences:
        for rule, mistakes in RULES.items():
            for pattern, mistake in mistakes:
                mistaken = re.sub(pattern, mistake, sentence, count=1)
                if mistaken != sentence:
                    yield rule, sentence, mistaken
                    break


def total_log_probs(specimen: Specimen, sentences: Sequence[str]) -> np.ndarray:
    """Returns the log-probability of each sentence after a newline, (N,), in nats."""
    model, tokenizer = specimen.model, specimen.tokenizer
    begin = tokenizer.encode(tokenizer.default_prompt())[-1:]
    rows = [np.concatenate((begin, tokenizer.encode(one))).astype(np.int64) for one in sentences]
    lengths = np.array([len(row) for row in rows])
    totals = np.zeros(len(rows))
    with torch.inference_mode(), evaluating(model):
        for n in np.unique(lengths).tolist():
            for numbers in torch.from_numpy(np.flatnonzero(lengths == n)).split(
                max(1, TOKENS_AT_ONCE // n)
            ):
                ids = torch.from_numpy(np.stack([rows[number] for number in numbers.tolist()]))
                ids = ids.to(model.device)
                for read, wanted in model.windows(
                    torch.arange(n), specimen.block_size, TOKENS_AT_ONCE
                ):
                    for places, targets in zip(read, wanted, strict=True):
                        found = answers(model, ids[:, places], ids[:, targets], specimen.precision)
                        per_row = found.view(len(ids), -1).double().sum(1)
                        totals[numbers.numpy()] += per_row.cpu().numpy()
    return totals
