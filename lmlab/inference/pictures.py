"""Draws pictures of a model for TensorBoard: arrays (H, W, 3) of uint8, with words that explain."""

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lmlab.inference.attention_maps import attention_maps
from lmlab.models.base import LanguageModel

WIDTH = 1600  # pixels of a picture of attention, about
ASPECT = 2.5  # of width to height, about: TensorBoard's cards are 360 pixels wide and 200 high
SMALLEST = 9  # pixels of a square that has room for the name of a token
LARGEST = 40  # pixels of a square
LONGEST = 12  # characters of a name of a token
MATRICES = 40  # that a picture of their changes names


def pictures_of(
    model: LanguageModel,
    idx: Tensor,
    names: Sequence[str],
    with_attention: bool,
    kept: np.ndarray | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the pictures of a model, each with its name.

    To draw attention, the model reads the tokens idx (T,), which are on its device. `names` are
    the readable names of all tokens in the vocabulary. `kept` are the ids of those that a table of
    pairs shows, all if it is None.
    """
    scores = model.pair_scores()
    if scores is not None:
        kept = np.arange(len(names)) if kept is None else kept
        yield "bigram", table_picture(scores, names, kept)
    own_picture = model.picture(idx, names)
    if own_picture is not None:
        yield "picture", own_picture
    if with_attention:
        maps = attention_maps(model, idx)
        if maps is not None:
            yield "attention", attention_picture(maps, [names[i] for i in idx.tolist()])


def commonest(frequencies: np.ndarray, n: int) -> np.ndarray:
    """Returns the ids of the `n` most frequent tokens, in ascending order."""
    return np.sort(np.argsort(-frequencies, kind="stable")[:n])


def table_picture(scores: Tensor, names: Sequence[str], kept: np.ndarray) -> np.ndarray:
    """Returns scores (V, V) as an image (H, W, 3), with one row for each token of `kept` (K,).

    In the row of a token, the cells of likely next tokens are dark.
    """
    cell = cell_of(len(kept), 1)
    labels = [label_of(names[token]) for token in kept.tolist()]
    words = ["Row: the token before. Column: the token that follows. Darker: likelier."]
    if len(kept) < len(names):
        words.append(f"The {len(kept)} commonest of {len(names):,} tokens.")
    shares = scores.detach()[kept].cpu().softmax(-1)[:, kept]
    return framed([[("", shares)]], labels, cell, words)


def attention_picture(maps: Tensor, names: Sequence[str]) -> np.ndarray:
    """Returns attention (n_layer, H, T, T) as an image (H, W, 3), with a square for each head.

    A row has the squares of a layer, or of more. In a square, row t shows how much token t attends
    to each token s: darker means more. `names` are those of the T tokens.
    """
    labels = [label_of(name) for name in names]
    words = [
        "Row: the token that looks. Column: the token it looks at. Darker: more.",
        f"The text: {''.join(labels)}",
    ]
    squares = [
        (f"layer {layer}, head {n}", head)
        for layer, heads in enumerate(maps.cpu(), start=1)
        for n, head in enumerate(heads, start=1)
    ]
    across = across_of(*maps.shape[:3])
    rows = [squares[start : start + across] for start in range(0, len(squares), across)]
    return framed(rows, labels, cell_of(len(names), across), words)


def across_of(n_layer: int, n_head: int, n: int) -> int:
    """Returns how many squares of `n` tokens a row has, so that the picture is rather wide.

    They are those of whole layers. There are more than one only if tokens can still be labelled.
    """
    fitting = [1] + [k for k in range(2, n_layer + 1) if cell_of(n, k * n_head) >= SMALLEST]
    layers = min(fitting, key=lambda k: abs(math.log(k * n_head / math.ceil(n_layer / k) / ASPECT)))
    return layers * n_head


def cell_of(n: int, across: int) -> int:
    """Returns the pixels of a cell of tables that have `n` cells a side, with `across` in a row."""
    return max(1, min(LARGEST, WIDTH // (across * (n + 2))))


def framed(
    rows: Sequence[Sequence[tuple[str, Tensor]]],
    labels: Sequence[str],
    cell: int,
    words: Sequence[str],
) -> np.ndarray:
    """Returns rows of titled tables (N, N) as an image (H, W, 3), below some lines of words.

    The rows and columns of each table have the same labels, if a cell has room for them.
    """
    from PIL import Image, ImageDraw  # takes time, and no training step needs it

    side = cell * len(labels)
    titled = font(max(10, min(30, side // 9)))
    small = font(max(6, cell * 3 // 4))
    has_labels = cell >= SMALLEST
    margin = 8 + (max(map(width_in(small), labels)) if has_labels else 0)  # before each table
    above = 8 + (max(height_of(label, small) for label in labels) if has_labels else 0)
    above += line_of(titled) if rows[0][0][0] else 0
    titles = [title for row in rows for title, _ in row]
    pitch = margin + max(side, *(width_in(titled)(title) + 8 for title in titles))
    width = max(len(row) for row in rows) * pitch + cell + 8
    large = font(max(12, min(40, width // 34)))
    lines = [line for text in words for line in wrapped(text, large, width - 16)]
    top = 8 + len(lines) * line_of(large)
    picture = Image.new("RGB", (width, top + len(rows) * (above + side) + 8), "white")
    pen = ImageDraw.Draw(picture)
    for n, line in enumerate(lines):
        pen.text((8, 4 + n * line_of(large)), line, font=large, fill="black")
    labelled = Image.new("RGB", (margin + side, above + side), "white")  # alike for all tables
    if has_labels:
        write_labels(labelled, labels, small, cell, (margin, above))
    places = [
        (down, across, table) for down, row in enumerate(rows) for across, table in enumerate(row)
    ]
    for down, across, _ in places:
        picture.paste(labelled, (across * pitch, top + down * (above + side)))
    for down, across, (title, shares) in places:
        x = margin + across * pitch
        y = top + above + down * (above + side)
        squares = Image.fromarray(shaded(shares))
        picture.paste(squares.resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.rectangle((x - 1, y - 1, x + side, y + side), outline="darkgray")
        pen.text((x, y - above), title, font=titled, fill="black")
    return np.asarray(picture)


def write_labels(
    picture: Any, labels: Sequence[str], small: Any, cell: int, corner: tuple[int, int]
) -> None:
    """Writes the labels of the rows and columns of a table whose upper left corner is given."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(picture)
    x, y = corner
    for n, label in enumerate(labels):
        middle = (n + 0.5) * cell
        pen.text((x - 4, y + middle), label, font=small, fill="black", anchor="rm")
        write_upwards(picture, label, small, (round(x + middle), y - 3))


def height_of(label: str, small: Any) -> int:
    """Returns the pixels that a column's label needs: a long one is written upwards."""
    return width_in(small)(label) if len(label) > 1 else line_of(small)


def write_upwards(picture: Any, label: str, small: Any, place: tuple[int, int]) -> None:
    """Writes a label that ends above a column, from the bottom to the top if it is long."""
    from PIL import Image, ImageDraw

    width, height = max(1, width_in(small)(label)), line_of(small)
    name = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(name).text((0, 0), label, font=small, fill="black")
    if len(label) > 1:
        name = name.rotate(90, expand=True)
    picture.paste(name, (place[0] - name.width // 2, place[1] - name.height))


def font(size: int) -> Any:
    """Returns a font of PIL's: matplotlib's, if that is installed, since PIL's own has ASCII alone."""
    from PIL import ImageFont

    found = find_spec("matplotlib")
    if found and found.origin:
        file = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if file.exists():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def line_of(font: Any) -> int:
    """Returns the height of a line in pixels."""
    return round(font.size * 1.3)


def width_in(font: Any) -> Any:
    """Returns a function that gives the width of a text in pixels."""
    return lambda text: math.ceil(font.getlength(text))


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """Returns a text as lines of at most `width` pixels, if its words are not longer."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".lstrip(" ") if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def label_of(name: str) -> str:
    """Returns the name of a token as a picture shows it: blanks and line ends are visible."""
    name = name.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    name = "".join(char if char.isprintable() else "�" for char in name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def changes_picture(ratios: Mapping[str, float]) -> np.ndarray:
    """Returns how much a step changed each matrix as an image (H, W, 3): a dot on a line for each.

    `ratios` has the norm of the change over the norm of the matrix, by the name of the matrix.
    """
    from PIL import Image, ImageDraw

    finite = {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)}
    words = ["How much the last step changed each matrix: the norm of the change,"]
    words += ["divided by that of the matrix. Often healthy: about 0.001."]
    shown = [*finite]
    if len(finite) > MATRICES:
        ordered = sorted(finite, key=finite.__getitem__)
        shown = ordered[: MATRICES // 2] + ordered[-MATRICES // 2 :]
        words.append(f"The {MATRICES // 2} smallest and largest of {len(finite)}.")
    large, small = font(26), font(20)
    line = line_of(small)
    left = 24 + max([width_in(small)(name) for name in shown], default=0)
    scale = 560  # pixels from 1e-6 to 1
    top = 20 + len(words) * line_of(large) + line
    width = max(left + scale + 130, 16 + max(map(width_in(large), words)))
    picture = Image.new("RGB", (width, top + line * len(shown) + 16), "white")
    pen = ImageDraw.Draw(picture)
    for n, text in enumerate(words):
        pen.text((8, 6 + n * line_of(large)), text, font=large, fill="black")
    for power in range(-6, 1):
        x = left + scale * (power + 6) / 6
        color = "darkgray" if power == -3 else "lightgray"
        pen.line((x, top, x, picture.height - 8), fill=color, width=3 if power == -3 else 1)
        pen.text((x, top - line / 2), f"{10.0**power:g}", font=small, fill="black", anchor="mm")
    for n, name in enumerate(shown):
        middle = top + (n + 0.5) * line
        x = left + scale * (math.log10(min(1.0, max(1e-6, finite[name]))) + 6) / 6
        pen.text((left - 10, middle), name, font=small, fill="black", anchor="rm")
        pen.line((left, middle, left + scale, middle), fill="whitesmoke")
        pen.ellipse((x - 6, middle - 6, x + 6, middle + 6), fill="black")
        pen.text(
            (left + scale + 16, middle),
            f"{finite[name]:.1e}",
            font=small,
            fill="black",
            anchor="lm",
        )
    return np.asarray(picture)


SIDE = 320  # pixels of a diagram's square
MARGIN = 40  # pixels around it, for what is written there


def line_picture(x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> np.ndarray:
    """Returns the line through the points x, y (N,) as an image (H, W, 3), with its ranges."""
    picture, pen = diagram(x_name, y_name)
    points = [(at(a, x), SIDE - at(b, y)) for a, b in zip(x, y, strict=True)]
    pen.line([(MARGIN + a, MARGIN + b) for a, b in points], fill="black", width=2)
    write_ends(pen, x, y)
    return np.asarray(picture)


def reliability_picture(
    confidence: np.ndarray, right: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """Returns how often predictions of each confidence are right as an image (H, W, 3).

    A well calibrated model is on the diagonal, an overconfident one below it. A dot's area is the
    share of predictions in its bin.
    """
    picture, pen = diagram("confidence", "share of right ones")
    unit = np.array([0.0, 1.0])
    pen.line((MARGIN, MARGIN + SIDE, MARGIN + SIDE, MARGIN), fill="lightgray")
    for says, is_so, share in zip(confidence, right, shares, strict=True):
        x = MARGIN + at(says, unit)
        y = MARGIN + SIDE - at(is_so, unit)
        radius = 2 + 20 * float(share) ** 0.5
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline="black")
    write_ends(pen, unit, unit)
    return np.asarray(picture)


def diagram(x_name: str, y_name: str) -> tuple[Any, Any]:
    """Returns an empty diagram, an image of PIL's, and a pen that draws in it."""
    from PIL import Image, ImageDraw

    size = SIDE + 2 * MARGIN
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((MARGIN, MARGIN, MARGIN + SIDE, MARGIN + SIDE), outline="lightgray")
    pen.text((MARGIN + SIDE // 3, MARGIN + SIDE + 20), x_name, fill="black")
    pen.text((MARGIN, MARGIN - 30), y_name, fill="black")
    return picture, pen


def at(value: float, values: np.ndarray) -> float:
    """Returns how many pixels from the low end of an axis, which spans `values`, a value lies."""
    low, high = float(values.min()), float(values.max())
    return SIDE / 2 if low == high else SIDE * (float(value) - low) / (high - low)


def write_ends(pen: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Writes the lowest and the highest number at both axes of a diagram."""
    below = MARGIN + SIDE + 4
    pen.text((MARGIN, below), f"{x.min():g}", fill="black")
    pen.text((MARGIN + SIDE - 20, below), f"{x.max():g}", fill="black")
    pen.text((2, MARGIN + SIDE - 10), f"{y.min():.3g}", fill="black")
    pen.text((2, MARGIN), f"{y.max():.3g}", fill="black")


def shaded(shares: Tensor) -> np.ndarray:
    """Returns grey values for shares from 0 (white) to 1 (black).

    The square root makes small shares visible.
    """
    return (255 * (1 - np.sqrt(shares.numpy()))).astype(np.uint8)
