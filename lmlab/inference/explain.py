"""What a trained model makes of a text, token by token: how surprised it was, what it expected,
where it looked. For the page that shows it, explain.html.
"""

import base64
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmlab import files
from lmlab.data.batches import CharDataModule
from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError
from lmlab.inference.attention_maps import Recording
from lmlab.inference.loss import TOKENS_AT_ONCE
from lmlab.inference.page import fill_page
from lmlab.models.bigram import Bigram
from lmlab.models.ngram import NGram
from lmlab.runs.checkpoints import Run
from lmlab.runs.folder import read_metrics, text_sha256

PAGE = Path(__file__).with_name("explain.html")


LONGEST, USUAL = 2000, 300  # characters of a text, and of one that nobody chose


LIKELIEST = 5  # next tokens that are shown


CHARACTERS = {"table": 100, "embedding": 200}  # shown at most


ATTENTION = 8_000_000  # weights that a page holds, a byte each


COUNTED_AT_ONCE = 2**22  # tokens


def write(run: Run, text: str | None, out: Path) -> dict[str, Any]:
    """Writes the page on what the model of `run` makes of `text` (None: its validation text begins
    it); returns what the page says on top. Raises UserError.
    """
    if out.is_dir():
        raise UserError(f"out={out}: is a folder; needs the name of a file, as explain.html")
    data = page_data(run, text)
    files.write(out, fill_page(PAGE, data["title"], data))
    return data["about"]


def page_data(run: Run, text: str | None) -> dict[str, Any]:
    """All that the page draws; parts that a model has nothing for are None. Raises UserError."""
    own = None
    if text is None or isinstance(run.model, Bigram):
        try:
            own = CharDataModule(
                run.config, run.tokenizer, text_sha256(read_metrics(run.path), run.path)
            )
        except UserError as error:
            own = str(error)
    ids = chosen_text(text, own, run.tokenizer)
    answers, attention = read(run.model, ids, run.config.model.block_size)
    bits = -answers[
        torch.arange(len(answers)), torch.from_numpy(ids[1:].astype(np.int64))
    ] / math.log(2)
    return {
        "title": f"{run.config.run.name} / {run.path.name}",
        "vocab_size": run.tokenizer.vocab_size,
        "about": about(run, bits.mean().item()),
        "tokens": tokens(ids, answers, bits, run.tokenizer),
        "attention": packed(attention),
        "table": table(run.model, own, ids, run.tokenizer),
        "embedding": embedding(run.model, ids, run.tokenizer),
    }


def chosen_text(
    text: str | None, own: CharDataModule | str | None, tokenizer: CharTokenizer
) -> np.ndarray:
    """The ids of the text to be read, (N,). Raises UserError."""
    if text is None:
        if not isinstance(own, CharDataModule):
            raise UserError(f"text: none was given, and the run's own can't be had: {own}")
        ids = (own.splits["val"] if len(own.splits["val"]) else own.splits["train"])[:USUAL]
        if len(ids) < 2:
            raise UserError(
                "text: none was given, and the run's own has a single character; allowed are 2 or more"
            )
        return ids
    start = f"text={text[:30]}{'…' * (len(text) > 30)}"
    if not 2 <= len(text) <= LONGEST:
        raise UserError(f"{start}: has {len(text):,} characters; allowed are 2 to {LONGEST:,}")
    try:
        return tokenizer.encode(text)
    except UserError as error:
        raise UserError(f"{start}: {error}") from None


@torch.inference_mode()
def read(model: nn.Module, ids: np.ndarray, block_size: int) -> tuple[Tensor, list[Tensor]]:
    """Of each token but the first, predicted from the `block_size` tokens before it or as many as
    there are, S: the log-probabilities of all tokens in its place, (N - 1, V); and how the last
    token before it shared its attention among the S, N - 1 times (n_layer, H, S), or nothing where
    there is no attention. In float32, on the CPU.
    """
    device = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0)).device
    idx = torch.from_numpy(ids.astype(np.int64)).to(device)
    T = min(block_size, len(idx) - 1)
    with (
        Recording() as recording
    ):  # the first window, of which every token has all the context there is
        logits = [model(idx[None, :T])[0].float().cpu()]
    maps = torch.cat(recording.layers).cpu() if recording.layers else None  # (n_layer, H, T, T)
    attention = [] if maps is None else [maps[:, :, t, : t + 1] for t in range(T)]
    if len(idx) - 1 > T:  # from there on each token has a window of its own, that ends before it
        for windows in idx[1:-1].unfold(0, T, 1).split(max(1, TOKENS_AT_ONCE // T)):
            with Recording(last=True) as recording:
                logits.append(model(windows)[:, -1].float().cpu())
            if recording.layers:
                attention += torch.stack(recording.layers, dim=1)[
                    :, :, :, 0
                ].cpu()  # (B, n_layer, H, S)
    return torch.cat(logits).log_softmax(-1), attention


def about(run: Run, bits: float) -> dict[str, str]:
    """The line on top of the page: names and values."""
    loss = read_metrics(run.path).get("best/val/loss" if run.checkpoint == "best" else "val/loss")
    weights, keys = sum(weight.numel() for weight in run.model.parameters()), run.config.flat()
    size = (
        f"{run.model.n_counts:,} counts" if isinstance(run.model, NGram) else f"{weights:,} weights"
    )
    shape = [
        f"{keys[key]} {word}"
        for key, word in (("n_layer", "layers"), ("n_head", "heads"))
        if keys.get(key)
    ]
    return {
        "run": f"{run.config.run.name} / {run.path.name}",
        "model": ", ".join([run.config.choices["model"], *shape, size]),
        "checkpoint": run.checkpoint,
        "val/loss": f"{loss:.4f} nats" if isinstance(loss, float) else "none",
        "mean surprisal here": f"{bits:.3f} bits ({bits * math.log(2):.4f} nats)",
    }


def tokens(
    ids: np.ndarray, answers: Tensor, bits: Tensor, tokenizer: CharTokenizer
) -> list[dict[str, Any]]:
    """Each token, with how it was predicted; of the first there is only itself."""
    best = answers.topk(min(LIKELIEST, tokenizer.vocab_size))
    found = [{"text": tokenizer.decode([ids[0]])}]
    for t, i in enumerate(ids[1:].tolist()):
        likeliest = zip(best.indices[t].tolist(), best.values[t].exp().tolist(), strict=True)
        found.append(
            {
                "text": tokenizer.decode([i]),
                "bits": round(bits[t].item(), 3),
                "p": float(f"{answers[t, i].exp():.4g}"),
                "rank": int((answers[t] > answers[t, i]).sum()) + 1,
                "top": [[tokenizer.decode([j]), float(f"{p:.4g}")] for j, p in likeliest],
            }
        )
    return found


def packed(attention: list[Tensor]) -> dict[str, Any] | None:
    """Weights as bytes, token after token, (n_layer, H, S) of each; of as many tokens as the page
    can hold.
    """
    if not attention:
        return None
    kept = max(1, int((np.cumsum([weights.numel() for weights in attention]) <= ATTENTION).sum()))
    (n_layer, n_head, _), sizes = (
        attention[0].shape,
        [weights.shape[2] for weights in attention[:kept]],
    )
    content = b"".join(map(as_bytes, attention[:kept]))
    return {
        "layers": n_layer,
        "heads": n_head,
        "sizes": sizes,
        "bytes": base64.b64encode(content).decode(),
    }


def as_bytes(shares: Tensor) -> bytes:
    """Numbers from 0 to 1, a byte each: of their roots, so that the small ones of a long row are
    not all the same.
    """
    return (255 * shares.sqrt()).round().to(torch.uint8).numpy().tobytes()


def table(
    model: nn.Module, own: CharDataModule | str | None, ids: np.ndarray, tokenizer: CharTokenizer
) -> dict[str, Any] | None:
    """A bigram's probabilities, and how often each pair stands in its training text; or `why` it
    can't be said.
    """
    if not isinstance(model, Bigram):
        return None
    known = isinstance(own, CharDataModule)
    counts = count_pairs(own.splits["train"], tokenizer.vocab_size) if known else None
    often = counts.sum(1) if known else np.bincount(ids, minlength=tokenizer.vocab_size)
    shown = np.sort(np.argsort(-often, kind="stable")[: CHARACTERS["table"]])
    probs = model.table.weight.detach().float().cpu().softmax(-1)[shown][:, shown]
    return {
        "chars": list(tokenizer.decode(shown)),
        "all": tokenizer.vocab_size,
        "probs": base64.b64encode(as_bytes(probs)).decode(),
        "counts": counts[np.ix_(shown, shown)] if known else None,
        "totals": counts.sum(1)[shown] if known else None,
        "why": None if known else own,
    }


def count_pairs(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often token j follows token i, (V, V)."""
    counts = np.zeros(vocab_size**2, np.int64)
    for start in range(0, len(ids) - 1, COUNTED_AT_ONCE):
        piece = ids[start : start + COUNTED_AT_ONCE + 1].astype(np.int64)
        counts += np.bincount(piece[:-1] * vocab_size + piece[1:], minlength=vocab_size**2)
    return counts.reshape(vocab_size, vocab_size)


def embedding(model: nn.Module, ids: np.ndarray, tokenizer: CharTokenizer) -> dict[str, Any] | None:
    """The token embeddings where they spread most: two principal components, and their shares of
    the variance.
    """
    part = getattr(model, "token_embedding", None)
    if not isinstance(part, nn.Embedding) or min(part.weight.shape) < 2:
        return None
    points, shares = principal_components(part.weight.detach().float().cpu())
    often = np.bincount(ids, minlength=tokenizer.vocab_size)
    shown = np.sort(np.argsort(-often, kind="stable")[: CHARACTERS["embedding"]])
    return {
        "chars": list(tokenizer.decode(shown)),
        "points": points[shown].round(decimals=4).tolist(),
        "shares": shares,
        "all": tokenizer.vocab_size,
        "channels": part.weight.shape[1],
    }


def principal_components(weight: Tensor) -> tuple[Tensor, list[float]]:
    """Of rows (V, C) the places along the two directions in which they vary most, (V, 2), and each
    one's share of the variance. The signs are such that the largest place along each is positive.
    """
    u, s, _ = torch.linalg.svd(weight - weight.mean(0), full_matrices=False)
    points = u[:, :2] * s[:2]
    signs = points.gather(0, points.abs().argmax(0, keepdim=True)).sign()
    return points * signs, (s[:2].square() / s.square().sum().clamp_min(1e-30)).tolist()
