"""The law of scaling: known truth is found, by the definition of the fit; intervals cover it."""

import numpy as np
import pytest
from scipy import optimize

from lmlab.sweeps import law as laws
from lmlab.sweeps.law import Law, Points

TRUTH = Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def grid(law=TRUTH, noise=0.0, seeds=1, seed=0, sizes=6, lengths=5):
    """Points of sizes x lengths x seeds, whose ln L has so much noise; and their configurations."""
    generator = np.random.default_rng(seed)
    N, D = np.meshgrid(np.geomspace(1e7, 1e10, sizes), np.geomspace(1e9, 1e12, lengths))
    N, D = np.repeat(N.ravel(), seeds), np.repeat(D.ravel(), seeds)
    loss = law.loss(N, D) * np.exp(noise * generator.standard_normal(len(N)))
    return Points(N, D, loss), np.repeat(np.arange(sizes * lengths), seeds)


@pytest.mark.parametrize(
    "truth",
    [
        TRUTH,
        Law(E=0.5, A=20.0, B=300.0, alpha=0.2, beta=0.5),
        Law(E=3.0, A=1e4, B=1e5, alpha=0.6, beta=0.5),
    ],
)
def test_points_without_noise_give_the_law_that_made_them(truth):
    found = laws.fit(grid(truth)[0])
    np.testing.assert_allclose(laws.table_of([found]), laws.table_of([truth]), rtol=1e-4)


def objective(numbers, points):
    """Huber's loss of ln L as the paper defines it, by torch-free plain NumPy."""
    e, a, b, alpha, beta = numbers
    terms = [
        np.full(len(points.N), e),
        a - alpha * np.log(points.N),
        b - beta * np.log(points.D),
    ]
    residuals = np.logaddexp.reduce(terms) - np.log(points.loss)
    sizes = np.abs(residuals)
    return np.where(sizes < 1e-3, sizes**2 / 2, 1e-3 * (sizes - 5e-4)).sum()


@pytest.mark.parametrize("seed", range(3))
def test_no_general_minimizer_finds_a_better_fit(seed):
    """From the truth and from the fit itself, of which the second may gain nothing to speak of."""
    points, _ = grid(noise=0.01, seed=seed)
    found = laws.fit(points)
    numbers = [np.log(found.E), np.log(found.A), np.log(found.B), found.alpha, found.beta]
    ours = objective(numbers, points)
    truth = [np.log(TRUTH.E), np.log(TRUTH.A), np.log(TRUTH.B), TRUTH.alpha, TRUTH.beta]
    for begin in (numbers, truth):
        options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-10, "fatol": 1e-14}
        best = optimize.minimize(
            objective, begin, args=(points,), method="Nelder-Mead", options=options
        )
        assert ours <= best.fun * (1 + 1e-4)


def test_the_best_split_of_a_budget_is_the_lowest_point_of_its_curve():
    for flops in (1e15, 1e21):
        N, D = TRUTH.best(flops)
        assert pytest.approx(flops) == 6 * N * D
        curve = optimize.minimize_scalar(
            lambda x, flops=flops: TRUTH.loss(np.exp(x), flops / 6 / np.exp(x)),
            bounds=(np.log(N) - 5, np.log(N) + 5),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert np.log(N) == pytest.approx(curve.x, abs=1e-4)


def test_a_row_of_weights_is_the_fit_of_the_points_that_it_draws():
    points, groups = grid(noise=0.01, seeds=2)
    counts = laws.drawn(groups, np.random.default_rng(1))
    drawn = np.repeat(np.arange(len(counts)), counts.astype(int))
    copies = Points(points.N[drawn], points.D[drawn], points.loss[drawn])
    (one,) = laws.laws_of(laws.refined(points, counts[None], laws.start(points)), points)
    other = laws.fit(copies)
    np.testing.assert_allclose(
        laws.table_of([one])[:, 3:], laws.table_of([other])[:, 3:], atol=2e-3
    )


def test_draws_take_configurations_whole():
    """As many points as there are, and a configuration that is not drawn has none."""
    groups = np.repeat(np.arange(10), 3)
    generator = np.random.default_rng(0)
    for _ in range(20):
        counts = laws.drawn(groups, generator)
        per_group = counts.reshape(10, 3).sum(axis=1)
        assert counts.sum() == 30 and set(per_group % 3) == {0}


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Of twenty-five sets, each with a seed of its own."""
    covered = []
    for seed in range(25):
        points, groups = grid(noise=0.01, seeds=3, seed=seed)
        table = laws.table_of(laws.bootstrap(points, groups, 80, seed))
        truth = laws.table_of([TRUTH])[0]
        low, high = np.percentile(table, laws.WITHIN, axis=0)
        covered.append((low <= truth) & (truth <= high))
    for share in np.mean(covered, axis=0):
        assert 0.8 <= share <= 1.0


def test_the_same_seed_gives_the_same_intervals_however_many_rows_are_fitted_at_once(monkeypatch):
    points, groups = grid(noise=0.01)
    one = laws.table_of(laws.bootstrap(points, groups, 20, seed=3))
    monkeypatch.setattr(laws, "AT_ONCE", 1)
    np.testing.assert_allclose(one, laws.table_of(laws.bootstrap(points, groups, 20, seed=3)))
