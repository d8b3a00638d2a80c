"""The law of scaling: how the loss depends on parameters and on the text read, with intervals.

L(N, D) = E + A / N**alpha + B / D**beta (Hoffmann et al. 2022, approach 3), in nats per token. E is
what no model of this family could go below, the other two terms are what a larger model and more
text would gain. The fit starts from the best of a grid of exponents, for each of which the rest is
a linear problem (variable projection), and goes on with Huber's loss of the logarithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

Floats = NDArray[np.float64]

DELTA = 1e-3  # of Huber's loss: beyond it, residuals of ln L count by their size, not its square
GRID = np.linspace(0.05, 1.5, 30)  # the exponents that the fit may start from
STEPS = 200  # of the refinement, at most
ENOUGH = 1e-9  # a relative gain, below which a fit is complete
AT_ONCE = 2**17  # residuals that are computed at once
FLOPS = 6  # for each parameter and token of training (Kaplan et al. 2020)
WITHIN = (2.5, 97.5)  # percentiles of an interval of 95 %


@dataclass(frozen=True)
class Law:
    """The loss, in nats per token, of a model with N parameters that has read D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, N: Floats | float, D: Floats | float) -> Floats | float:
        """Returns the loss that the law expects; inf or nan where it is too large for a number."""
        with np.errstate(all="ignore"):
            by_size = self.A * np.power(N, -self.alpha, dtype=float)
            return self.E + by_size + self.B * np.power(D, -self.beta, dtype=float)

    @property
    def is_finite(self) -> bool:
        """Whether its five numbers are; a fit to too few different runs may run away."""
        return bool(np.isfinite(astuple(self)).all())

    @property
    def has_best(self) -> bool:
        """Whether a budget has a best size: only if both a larger model and more text help."""
        return self.is_finite and min(self.A, self.B, self.alpha, self.beta) > 0

    def best(self, flops: float) -> tuple[float, float]:
        """Returns the N and D with the lowest loss, if a training may cost so many FLOPs: 6 N D.

        The law must have a best size (`has_best`). Inf or 0 is what is too large or small.
        """
        product = flops / FLOPS
        total = self.alpha + self.beta
        ratio = np.log(self.alpha) + np.log(self.A) - np.log(self.beta) - np.log(self.B)
        with np.errstate(all="ignore"):
            N = float(np.exp((ratio + self.beta * np.log(product)) / total))
            D = float(np.exp((-ratio + self.alpha * np.log(product)) / total))
        return N, D


@dataclass(frozen=True)
class Points:
    """Runs that a law is fitted to: arrays (n,) of parameters, tokens read, and losses."""

    N: Floats
    D: Floats
    loss: Floats

    @property
    def centre(self) -> tuple[float, float]:
        """The geometric means of N and D. Around them the exponents depend little on A and B."""
        return float(np.exp(np.log(self.N).mean())), float(np.exp(np.log(self.D).mean()))


def fit(points: Points) -> Law:
    """Returns the law that fits the points best."""
    every = np.ones((1, len(points.loss)))
    return laws_of(refined(points, every, start(points)), points)[0]


def bootstrap(points: Points, groups: NDArray[np.int64], n: int, seed: int = 0) -> list[Law]:
    """Returns n laws, each fitted to points that were drawn with replacement.

    `groups` (n,) numbers the configurations, whose points differ by their seeds alone. Whole
    configurations are drawn, since their runs share what is peculiar to them; how the law varies
    holds both that and what seeds do (the cluster bootstrap: Cameron et al. 2008).
    """
    generator = np.random.default_rng(seed)
    counts = np.stack([drawn(groups, generator) for _ in range(n)])
    return laws_of(refined(points, counts, start(points)), points)


def drawn(groups: NDArray[np.int64], generator: np.random.Generator) -> Floats:
    """Returns how often each point is drawn, (n,)."""
    n = groups.max() + 1
    return np.bincount(generator.integers(n, size=n), minlength=n)[groups].astype(float)


def interval(values: Floats) -> tuple[float, float]:
    """Returns between which values 95 % of them lie; it may be inf or nan if some are inf."""
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(values, WITHIN)
    return float(low), float(high)


def start(points: Points) -> Floats:
    """Returns the numbers (5,) to start from: ln E, ln A, ln B around the centre, alpha, beta.

    For each pair of exponents the best E, A and B, none below zero, are a linear problem.
    """
    N, D = relative(points)
    found = []
    for alpha in GRID:
        for beta in GRID:
            parts = np.stack([np.ones_like(N), N**-alpha, D**-beta], axis=1)
            sizes, residual = optimize.nnls(parts / points.loss[:, None], np.ones_like(points.loss))
            found.append((residual, (*np.log(np.maximum(sizes, 1e-9)), alpha, beta)))
    return np.array(min(found)[1])


def relative(points: Points) -> tuple[Floats, Floats]:
    """Returns N and D as multiples of their centre."""
    N, D = points.centre
    return points.N / N, points.D / D


def refined(points: Points, weights: Floats, begin: Floats) -> Floats:
    """Returns the numbers (S, 5) that fit the points best, weighted by each row of weights (S, n).

    Some rows at a time, so that the memory does not grow with S.
    """
    size = max(1, AT_ONCE // len(points.loss))
    parts = [refined_at_once(points, part, begin) for part in chunks(weights, size)]
    return np.concatenate(parts)


def chunks(rows: Floats, size: int) -> Iterator[Floats]:
    """Yields parts of at most so many rows."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def refined_at_once(points: Points, weights: Floats, begin: Floats) -> Floats:
    """Does the work of `refined` for all rows together, by damped steps of Gauss and Newton.

    Huber's loss is a sum of squares with weights that depend on the residuals; each step takes them
    as they are (Levenberg 1944 for the damping, Holland and Welsch 1977 for the weights).
    """
    numbers = np.repeat(begin[None], len(weights), axis=0)
    damping = np.full(len(weights), 1e-4)
    residuals, shares = residuals_of(points, numbers)
    losses = huber(residuals, weights)
    left = np.arange(len(weights))  # the rows that are not yet complete
    for _ in range(STEPS):
        if not len(left):
            break
        step = step_of(points, residuals, shares, weights[left], damping[left])
        tried = numbers[left] + step
        next_residuals, next_shares = residuals_of(points, tried)
        next_losses = huber(next_residuals, weights[left])
        better = next_losses <= losses
        gain = np.where(better, losses - next_losses, np.inf)
        numbers[left[better]] = tried[better]
        damping[left] = np.where(better, damping[left] / 5, damping[left] * 5)
        residuals = np.where(better[:, None], next_residuals, residuals)
        shares = np.where(better[:, None, None], next_shares, shares)
        going = (gain > ENOUGH * losses) & (damping[left] < 1e12)
        losses = np.where(better, next_losses, losses)
        left, residuals, shares, losses = (
            left[going],
            residuals[going],
            shares[going],
            losses[going],
        )
    return numbers


def residuals_of(points: Points, numbers: Floats) -> tuple[Floats, Floats]:
    """Returns the residuals (S, n) of ln L, and the shares (S, n, 3) of the law's three terms."""
    N, D = map(np.log, relative(points))
    e, a, b, alpha, beta = numbers.T[:, :, None]
    terms = np.stack(np.broadcast_arrays(e, a - alpha * N, b - beta * D), axis=-1)
    largest = terms.max(axis=-1, keepdims=True)
    sizes = np.exp(terms - largest)
    sums = sizes.sum(axis=-1, keepdims=True)
    expected = (largest + np.log(sums))[..., 0]
    return expected - np.log(points.loss), sizes / sums


def huber(residuals: Floats, weights: Floats) -> Floats:
    """Returns Huber's loss of each row, (S,)."""
    sizes = np.abs(residuals)
    each = np.where(sizes < DELTA, sizes**2 / 2, DELTA * (sizes - DELTA / 2))
    return np.asarray((weights * each).sum(axis=1))


def step_of(
    points: Points, residuals: Floats, shares: Floats, weights: Floats, damping: Floats
) -> Floats:
    """Returns the step (S, 5) from some numbers to better ones."""
    N, D = map(np.log, relative(points))
    parts = (shares, -shares[..., 1:2] * N[:, None], -shares[..., 2:3] * D[:, None])
    slopes = np.concatenate(parts, axis=-1)  # (S, n, 5)
    weights = weights * np.minimum(1, DELTA / np.maximum(np.abs(residuals), 1e-300))
    weighted = slopes * weights[..., None]
    squares = weighted.swapaxes(1, 2) @ slopes  # (S, 5, 5)
    gradient = np.einsum("snk,sn->sk", weighted, residuals)
    diagonal = np.einsum("skk->sk", squares)
    added = damping[:, None] * diagonal + 1e-12
    squares = squares + added[..., None] * np.eye(5)
    return np.asarray(-np.linalg.solve(squares, gradient[..., None])[..., 0])


def laws_of(numbers: Floats, points: Points) -> list[Law]:
    """Returns the laws of rows of numbers (S, 5)."""
    N, D = points.centre
    e, a, b, alpha, beta = numbers.T
    with np.errstate(all="ignore"):  # a law may run away: `is_finite`
        columns = np.exp(e), np.exp(a) * N**alpha, np.exp(b) * D**beta, alpha, beta
    return [Law(*map(float, row)) for row in np.stack(columns, axis=1)]


def table_of(laws: list[Law]) -> Floats:
    """Returns the numbers of laws, (S, 5): E, A, B, alpha, beta."""
    return np.array([astuple(law) for law in laws])
