"""Writes the page explain.html: what a model expects in a text, and its attention."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab import files
from lmlab.data.splits import Splits
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError
from lmlab.inference.attention_maps import Recording
from lmlab.inference.loss import TOKENS_AT_ONCE, own_text
from lmlab.inference.pictures import commonest
from lmlab.inference.template import fill_page
from lmlab.models.base import LanguageModel
from lmlab.runs.checkpoints import Run
from lmlab.runs.measured import numbers_of, shown

PAGE = Path(__file__).with_name("explain.html")

LONGEST = 2000  # characters of a text
USUAL = 300  # characters of the run's own text, if no text is given

LIKELIEST = 5  # next tokens that the page shows

CHARACTERS = {"table": 100, "embedding": 200}  # that the page shows at most

ATTENTION = 8_000_000  # weights that a page holds, a byte each

COUNTED_AT_ONCE = 2**22  # tokens


def write(run: Run, text: str | None, out: Path) -> dict[str, Any]:
    """Writes the page to `out` and returns the facts at its top. Raises UserError.

    The page shows how the model of `run` reads `text`, or, if `text` is None, the beginning of the
    run's own validation text.
    """
    data = page_data(run, text)
    files.write(out, fill_page(PAGE, data["title"], data, data["unit"]))
    return data["about"]


def page_data(run: Run, text: str | None) -> dict[str, Any]:
    """Returns all data of the page. Parts that the model lacks are None. Raises UserError."""
    scores = run.model.pair_scores()
    splits: Splits | None = None  # of the run's own text
    why = None  # the reason, if it cannot be read
    is_large = run.tokenizer.vocab_size > CHARACTERS["embedding"]  # so a choice is to be made
    if text is None or scores is not None or is_large:
        try:
            splits = own_text(run)
        except UserError as error:
            why = str(error)
    if text is not None:
        ids = encoded(text, run.tokenizer)
    elif splits is not None:
        ids = beginning(splits)
    else:
        raise UserError(f"text: none was given, and the run's own text cannot be used: {why}")
    log_probs, attention = read(run.model, ids, run.config.model.block_size)
    following = torch.from_numpy(ids[1:].astype(np.int64))
    bits = -log_probs[torch.arange(len(log_probs)), following] / math.log(2)
    table = None
    if scores is not None:
        train = None if splits is None else splits.train
        table = pair_table(scores, train, ids, run.tokenizer) | {"why": why}
    return {
        "title": f"{run.config.run.name} / {run.path.name}",
        "vocab_size": run.tokenizer.vocab_size,
        "unit": run.tokenizer.unit,
        "about": about(run, bits.mean().item()),
        "tokens": tokens(ids, log_probs, bits, run.tokenizer),
        "attention": packed(attention),
        "table": table,
        "embedding": embedding(run.model.token_vectors(), ids, splits, run.tokenizer),
    }


def beginning(splits: Splits) -> np.ndarray:
    """Returns the first tokens (N,) of the validation text, or, without one, of the training text.

    Raises UserError if the text has only one token.
    """
    ids = splits.val if len(splits.val) > 0 else splits.train
    ids = ids[:USUAL]
    if len(ids) < 2:
        raise UserError(
            "text: none was given, and the run's own text has only one token; needs 2 or more"
        )
    return ids


def encoded(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids of a text that the user gave, (N,). Raises UserError."""
    ellipsis = "…" if len(text) > 30 else ""
    typed = f"text={text[:30]}{ellipsis}"
    if not 2 <= len(text) <= LONGEST:
        plural = "" if len(text) == 1 else "s"
        raise UserError(
            f"{typed}: has {len(text):,} character{plural}; allowed are 2 to {LONGEST:,}"
        )
    try:
        ids = tokenizer.encode(text)
    except UserError as error:
        raise UserError(f"{typed}: {error}") from None
    if len(ids) < 2:
        raise UserError(f"{typed}: is a single {tokenizer.unit}; needs 2 or more")
    return ids


@torch.inference_mode()
def read(model: LanguageModel, ids: np.ndarray, block_size: int) -> tuple[Tensor, list[Tensor]]:
    """Returns the log-probabilities (N - 1, V) at each token except the first, and the attention.

    Each token is predicted from the S tokens before it, at most `block_size`. The attention is a
    list of N - 1 tensors (n_layer, H, S): how the last of these S tokens looks at them. The list
    is empty for a model without attention. All is in float32, on the CPU.
    """
    idx = torch.from_numpy(ids.astype(np.int64)).to(model.device)
    T = min(block_size, len(idx) - 1)
    # In the first window, every token has all the context that there is.
    with Recording() as recording:
        logits = [model(idx[None, :T])[0].float().cpu()]
    attention: list[Tensor] = []
    maps = recording.stacked()  # (1, n_layer, H, T, T)
    if maps is not None:
        attention += [maps[0, :, :, t, : t + 1].cpu() for t in range(T)]
    if len(idx) - 1 > T:  # each further token has a window of its own, which ends before it
        for windows in idx[1:-1].unfold(0, T, 1).split(max(1, TOKENS_AT_ONCE // T)):
            with Recording(last=True) as recording:
                logits.append(model(windows)[:, -1].float().cpu())
            maps = recording.stacked()  # (B, n_layer, H, 1, S)
            if maps is not None:
                attention += maps[:, :, :, 0].cpu()
    return torch.cat(logits).log_softmax(-1), attention


def about(run: Run, bits: float) -> dict[str, str]:
    """Returns the facts at the top of the page, by name. `bits` is the mean surprisal."""
    measured = numbers_of(run)
    loss = measured.get("val/loss")
    if loss is not None:
        of_text = shown(loss, measured, ".4f", " nats")
    else:
        of_text = "none" if run.is_foreign else f"not measured at step {run.step:,}"
    model_keys = run.config.flat()
    shape = []
    for key, word in (("n_layer", "layer"), ("n_head", "head")):
        n = model_keys.get(key)
        if n:
            shape.append(f"{n} {word}" if n == 1 else f"{n} {word}s")
    return {
        "run": f"{run.config.run.name} / {run.path.name}",
        "model": ", ".join([run.config.choices["model"], *shape, run.model.size()]),
        "checkpoint": run.file.stem,
        "val/loss": of_text,
        "mean surprisal here": f"{bits:.3f} bits ({bits * math.log(2):.4f} nats)",
    }


def tokens(
    ids: np.ndarray, log_probs: Tensor, bits: Tensor, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Returns each token's text and, except for the first, how the model predicted the token."""
    likeliest = log_probs.topk(min(LIKELIEST, tokenizer.vocab_size))
    rows: list[dict[str, Any]] = [{"text": tokenizer.name_of(int(ids[0]))}]
    for t, i in enumerate(ids[1:].tolist()):
        best_ids = likeliest.indices[t].tolist()
        best_probs = likeliest.values[t].exp().tolist()
        rows.append(
            {
                "text": tokenizer.name_of(i),
                "bits": round(bits[t].item(), 3),
                "p": four_digits(log_probs[t, i].exp().item()),
                "rank": int((log_probs[t] > log_probs[t, i]).sum()) + 1,
                "top": [
                    [tokenizer.name_of(j), four_digits(p)]
                    for j, p in zip(best_ids, best_probs, strict=True)
                ],
            }
        )
    return rows


def four_digits(number: float) -> float:
    """Returns the number rounded to four significant digits."""
    return float(f"{number:.4g}")


def packed(attention: list[Tensor]) -> dict[str, Any] | None:
    """Returns the attention weights as bytes in base64: (n_layer, H, S) of each token, in order.

    It keeps only as many of the first tokens as the page can hold. Returns None if there is no
    attention.
    """
    if not attention:
        return None
    n_layer, n_head, _ = attention[0].shape
    totals = np.cumsum([weights.numel() for weights in attention])
    kept = attention[: max(1, int((totals <= ATTENTION).sum()))]
    return {
        "layers": n_layer,
        "heads": n_head,
        "sizes": [weights.shape[2] for weights in kept],
        "bytes": base64.b64encode(b"".join(map(as_bytes, kept))).decode(),
    }


def as_bytes(shares: Tensor) -> bytes:
    """Returns a byte for each number from 0 to 1: its square root, times 255.

    Because of the root, small numbers remain different from each other.
    """
    return (255 * shares.sqrt()).round().to(torch.uint8).numpy().tobytes()


def as_pairs(shares: Tensor) -> bytes:
    """Returns two bytes for each number from 0 to 1, the lower first: its square root, times 65535."""
    return (65535 * shares.double().sqrt()).round().numpy().astype("<u2").tobytes()


def pair_table(
    scores: Tensor, train: np.ndarray | None, ids: np.ndarray, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns the model's probability of each pair of tokens, and its count in `train`.

    `scores` is (V, V). There are no counts if the training text `train` is None. Only the most
    frequent tokens are kept.
    """
    firsts = ids if train is None else train[:-1]
    frequencies = np.bincount(firsts, minlength=tokenizer.vocab_size)
    kept = commonest(frequencies, CHARACTERS["table"])
    probs = scores.detach()[kept].float().cpu().softmax(-1)[:, kept]
    return {
        "chars": [tokenizer.name_of(i) for i in kept.tolist()],
        "all": tokenizer.vocab_size,
        "probs": base64.b64encode(as_pairs(probs)).decode(),
        "counts": None if train is None else count_pairs(train, kept, tokenizer.vocab_size),
        "totals": None if train is None else frequencies[kept],
    }


def count_pairs(ids: np.ndarray, kept: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns how often token kept[j] follows token kept[i], (K, K)."""
    n = len(kept)
    row_of = np.full(vocab_size, n)  # n stands for a token that is not kept
    row_of[kept] = np.arange(n)
    counts = np.zeros((n + 1) ** 2, np.int64)
    for start in range(0, len(ids) - 1, COUNTED_AT_ONCE):
        rows = row_of[ids[start : start + COUNTED_AT_ONCE + 1]]
        pairs = rows[:-1] * (n + 1) + rows[1:]
        counts += np.bincount(pairs, minlength=(n + 1) ** 2)
    return counts.reshape(n + 1, n + 1)[:n, :n]


def embedding(
    vectors: Tensor | None, ids: np.ndarray, splits: Splits | None, tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """Returns the token vectors (V, C) in two dimensions: their first two principal components.

    Of many tokens those of the page's text are kept, and the commonest of the training text, if it
    is there. Returns None if there are no vectors, or too few for a plane.
    """
    if vectors is None or min(vectors.shape) < 2:
        return None
    points, shares = principal_components(vectors.detach().double().cpu())
    frequencies = np.bincount(ids, minlength=tokenizer.vocab_size)
    if splits is not None:
        frequencies *= COUNTED_AT_ONCE  # more than any count of the training text
        train = splits.train[:COUNTED_AT_ONCE]
        frequencies += np.bincount(train, minlength=tokenizer.vocab_size)
    kept = commonest(frequencies, CHARACTERS["embedding"])
    return {
        "chars": [tokenizer.name_of(i) for i in kept.tolist()],
        "points": points[kept].round(decimals=4).tolist(),
        "shares": shares,
        "all": tokenizer.vocab_size,
        "channels": vectors.shape[1],
    }


def principal_components(vectors: Tensor) -> tuple[Tensor, list[float]]:
    """Returns the first two principal components (V, 2) of vectors (V, C).

    It also returns each component's share of the variance. The sign of a component is chosen so
    that its coordinate of the largest absolute value is positive.
    """
    u, s, _ = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    points = u[:, :2] * s[:2]
    signs = points.gather(0, points.abs().argmax(0, keepdim=True)).sign()
    shares = s[:2].square() / s.square().sum().clamp_min(1e-30)
    return points * signs, shares.tolist()
