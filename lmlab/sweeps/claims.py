"""Says how sure a difference between losses is: intervals, tests, and the seeds that it needs.

All of it is Student's (1908): the spread over seeds is estimated from the seeds themselves. What is
compared are plain numbers by seed; where they come from is the business of table.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special  # scipy.stats takes half a second to import

LEVEL = 0.05  # of errors that a test may make where there is no difference
POWER = 0.8  # the share of tests that shall find a difference that is there
MOST_SEEDS = 1000  # that `seeds_needed` looks for
QUANTILES = 500  # of the spread, over which `power` averages
PAIRED, WELCH, ONE_SAMPLE, ALONE = "paired", "Welch", "one-sample", "one seed"


@dataclass(frozen=True)
class Difference:
    """A mean difference, the ends of its 95 % interval, and p of the two-sided t-test against 0.

    `low`, `high` and `p` are nan if there are too few seeds. `n` is the number of pairs, of Welch's
    test the smaller number of seeds; `spread` is the standard deviation of one difference. `how` is
    "paired", "Welch", "one-sample" (against a fixed number) or "one seed".
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    n: int = 1
    spread: float = math.nan
    how: str = ALONE

    @property
    def has_interval(self) -> bool:
        """Whether there were enough seeds for an interval."""
        return not math.isnan(self.p)

    @property
    def seeds_needed(self) -> int | None:
        """The seeds that would tell the difference from 0 if it and its spread are as estimated."""
        return seeds_needed(self.mean, self.spread) if self.has_interval else None


def half_width(values: Sequence[float]) -> float:
    """Returns half of the 95 % interval of the mean of `values`, nan for fewer than two."""
    n = len(values)
    if n < 2:
        return math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return error * critical_t(n - 1)


def critical_t(freedom: float) -> float:
    """Returns how many standard errors from 0 the two-sided t-test asks of a mean."""
    return float(special.stdtrit(freedom, 1 - LEVEL / 2))


def difference(losses: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Returns how much larger `losses` are than `others`, both by seed; None if one is empty.

    It is the mean difference over the seeds that both have. If fewer than two are common, it is the
    difference of the means, with the interval of Welch (1947), who needs no common seed.
    """
    if not losses or not others:
        return None
    common = sorted({*losses} & {*others})
    if len(common) >= 2:
        pairs = [losses[seed] - others[seed] for seed in common]
        return from_spread(pairs)
    return welch([*losses.values()], [*others.values()])


def from_number(losses: Mapping[int, float], number: float) -> Difference | None:
    """Returns how much larger the mean of `losses` is than a fixed number; None without losses."""
    if not losses:
        return None
    return from_spread([loss - number for loss in losses.values()], ONE_SAMPLE)


def from_spread(differences: Sequence[float], how: str = PAIRED) -> Difference:
    """Returns the mean of differences, with the one-sample t interval and test against 0."""
    n = len(differences)
    mean = float(np.mean(differences))
    if n < 2:
        return Difference(mean)
    spread = float(np.std(differences, ddof=1))
    if np.ptp(differences) == 0:  # the mean may be off by its last bit
        mean, spread = differences[0], 0.0
    return with_interval(mean, spread / math.sqrt(n), n - 1, n, spread, how)


def welch(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Returns the difference of two means, with the interval of Welch's t-test (1947)."""
    mean = float(np.mean(values) - np.mean(others))
    n = min(len(values), len(others))
    if n < 2:
        return Difference(mean)
    parts = [float(np.var(sample, ddof=1)) / len(sample) for sample in (values, others)]
    freedom = float(len(values) + len(others) - 2)
    if sum(parts) > 0:
        weights = [len(sample) - 1 for sample in (values, others)]
        below = sum(part**2 / weight for part, weight in zip(parts, weights, strict=True))
        freedom = sum(parts) ** 2 / below
    spread = math.sqrt(float(np.var(values, ddof=1)) + float(np.var(others, ddof=1)))
    return with_interval(mean, math.sqrt(sum(parts)), freedom, n, spread, WELCH)


def with_interval(
    mean: float, error: float, freedom: float, n: int, spread: float, how: str
) -> Difference:
    """Returns a difference with its interval, from the standard error and degrees of freedom."""
    half = error * critical_t(freedom)
    p = float(mean == 0)  # without spread any difference is one, whatever the seed
    if error > 0:
        p = float(2 * special.stdtr(freedom, -abs(mean) / error))
    return Difference(mean, mean - half, mean + half, p, n, spread, how)


def power(effect: float, n: int) -> float:
    """Returns how often the paired t-test over `n` seeds finds a difference of `effect` spreads.

    It averages over the spreads that `n` seeds may happen to have; scipy's noncentral t is nan for
    large effects.
    """
    critical = thresholds(n)
    shift = abs(effect) * math.sqrt(n)
    return float(np.mean(special.ndtr(shift - critical) + special.ndtr(-shift - critical)))


@lru_cache(maxsize=256)
def thresholds(n: int) -> np.ndarray:
    """Returns what the test asks of a mean, in standard errors, at quantiles of its spread."""
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    chi_squared = 2 * special.gammaincinv((n - 1) / 2, shares)
    spreads = np.sqrt(chi_squared / (n - 1))  # relative to the true one
    return np.asarray(critical_t(n - 1) * spreads)


def seeds_needed(mean: float, spread: float) -> int | None:
    """Returns the fewest seeds with which a paired t-test finds `mean` in 80 % of cases at 5 %.

    Returns None if there are more than MOST_SEEDS of them, or no difference.
    """
    if mean == 0:
        return None
    if spread == 0:
        return 2
    effect = abs(mean) / spread
    low, high = 2, MOST_SEEDS
    if power(effect, high) < POWER:
        return None
    while low < high:  # the power grows with n
        middle = (low + high) // 2
        if power(effect, middle) >= POWER:
            high = middle
        else:
            low = middle + 1
    return low


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns the p-values, corrected for multiple tests (Holm 1979), at most 1. None stays None.

    Each p is multiplied by the number of p-values that are equal or larger. A larger p never gets
    a smaller result than a smaller p.
    """
    tests = {i: p for i, p in enumerate(p_values) if p is not None}
    corrected = list(p_values)
    highest = 0.0
    for n_smaller, i in enumerate(sorted(tests, key=tests.__getitem__)):
        highest = max(highest, min(1.0, tests[i] * (len(tests) - n_smaller)))
        corrected[i] = highest
    return corrected


def corrected(differences: Sequence[Difference | None]) -> list[float | None]:
    """Returns p of each difference after the correction of Holm, None for those without a test."""
    return holm([one.p if one and one.has_interval else None for one in differences])
