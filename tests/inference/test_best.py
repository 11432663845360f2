"""Sets that hold the best value, and intervals of ranks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from ope.inference import best_set, rank_intervals

FloatArray = npt.NDArray[np.float64]


def sample(n: int, mean: list[float], seed: int, rho: float = 0.5) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    x = np.sqrt(1 - rho) * rng.normal(size=(n, len(mean))) + np.sqrt(rho) * rng.normal(size=(n, 1)) + mean
    return x.mean(axis=0), x - x.mean(axis=0)


@pytest.mark.parametrize("gap", [0.0, 0.1, 0.25, 0.4, 0.8])
def test_two_candidates_are_one_one_sided_paired_t_test(gap: float) -> None:
    n, alpha = 40, 0.1
    v, psi = sample(n, [0.0, gap], 3)
    order = np.argsort(v)
    test = stats.ttest_rel(psi[:, order[1]] + v[order[1]], psi[:, order[0]] + v[order[0]], alternative="greater")
    found = best_set(v, psi, alpha)
    assert found.members[order[1]]
    assert bool(found.members[order[0]]) == (test.pvalue >= alpha)
    se = stats.sem(psi[:, 1] - psi[:, 0])
    reach = v[1] - v[0] + stats.t(n - 1).isf(alpha) * se
    assert found.high[1] == pytest.approx(max(reach, 0.0), rel=1e-9)
    if found.members.all():
        assert found.low[1] == pytest.approx(min(0.0, v[1] - v[0] - stats.t(n - 1).isf(alpha) * se), rel=1e-9)


def test_set_is_that_of_comparisons_in_loops() -> None:
    v, psi = sample(60, [0.0, 0.2, 0.3, 0.35, -0.4], 1)
    members = best_set(v, psi, 0.05, n_replicates=40_000).members
    rng = np.random.default_rng(9)
    chi = np.sqrt(rng.chisquare(59, 20_000) / 59)
    xi = rng.normal(size=(20_000, 60))
    for k in range(5):
        t, stars = [], []
        for j in range(5):
            if j != k:
                d = psi[:, j] - psi[:, k]
                t.append((v[j] - v[k]) / stats.sem(d))
                stars.append(xi @ d / np.sqrt((d**2).sum()) / chi)
        critical = np.quantile(np.max(stars, axis=0), 0.95)
        assert abs(max(t) - critical) > 0.05, "too close to call by simulation: choose other data"
        assert bool(members[k]) == (max(t) <= critical)


def test_the_best_is_left_out_no_more_often_than_promised() -> None:
    left_out, alpha, trials = 0, 0.1, 400
    for seed in range(trials):
        v, psi = sample(40, [0.0, 0.0, 0.0, -0.1], seed)
        left_out += not best_set(v, psi, alpha, n_replicates=1000).members[0]
    assert left_out <= stats.binom(trials, alpha).ppf(0.999)
    assert left_out > 0


def test_intervals_to_the_best_of_the_others_hold_at_once() -> None:
    mean, trials, missed = np.array([0.0, 0.3, 0.35, -0.5]), 300, 0
    to_best = [mean[k] - np.delete(mean, k).max() for k in range(4)]
    for seed in range(trials):
        v, psi = sample(40, mean.tolist(), seed)
        found = best_set(v, psi, 0.1, n_replicates=1000)
        missed += not ((found.low <= to_best) & (to_best <= found.high)).all()
        assert (found.low <= 0).all()
        assert (found.high >= 0).all()
    assert missed <= stats.binom(trials, 0.1).ppf(0.999)


def test_a_clear_winner_stands_alone_and_twins_stay_together() -> None:
    v, psi = sample(200, [0.0, 2.0, 0.5], 0)
    assert best_set(v, psi).members.tolist() == [False, True, False]
    assert best_set(v, psi).low[1] == 0.0
    twins = best_set(v[[0, 1, 1]], psi[:, [0, 1, 1]])
    assert twins.members.tolist() == [False, True, True]
    assert best_set(v[:1], psi[:, :1]).members.tolist() == [True]


def test_bounds_of_biases_keep_candidates_in() -> None:
    v, psi = sample(200, [0.0, 0.5], 0)
    assert best_set(v, psi).members.tolist() == [False, True]
    assert best_set(v, psi, widening=[0.2, 0.3]).members.tolist() == [True, True]
    assert rank_intervals(v, psi)[1].tolist() == [2, 1]
    assert rank_intervals(v, psi, widening=[0.2, 0.3])[1].tolist() == [1, 1]


def test_ranks_of_two_are_a_two_sided_paired_t_test() -> None:
    for gap in (0.0, 0.15, 0.3, 0.6):
        v, psi = sample(50, [0.0, gap], 5)
        p = stats.ttest_1samp(psi[:, 1] - psi[:, 0] + v[1] - v[0], 0.0).pvalue
        rank, low, high = rank_intervals(v, psi, 0.05, n_replicates=20_000)
        assert abs(p - 0.05) > 0.005, "too close to call by simulation: choose other data"
        assert (high - low).tolist() == ([0, 0] if p < 0.05 else [1, 1])
        assert rank[np.argmax(v)] == 1


def test_rank_intervals_hold_at_once_and_contain_the_estimated_ranks() -> None:
    mean, trials, missed = [0.0, 0.4, 0.4, 0.9, 1.5], 200, 0
    lowest, highest = np.array([5, 3, 3, 2, 1]), np.array([5, 4, 4, 2, 1])
    for seed in range(trials):
        v, psi = sample(40, mean, seed)
        rank, low, high = rank_intervals(v, psi, 0.1, n_replicates=1000)
        assert ((low <= rank) & (rank <= high)).all()
        missed += not ((low <= highest) & (high >= lowest)).all()
    assert missed <= stats.binom(trials, 0.1).ppf(0.999)


def test_stepping_down_tells_more_apart_than_one_step() -> None:
    v, psi = sample(60, [0.0, 1.0, 2.0, 3.0, 3.32], 5)
    rank, low, high = rank_intervals(v, psi, 0.05)
    assert rank.tolist() == [5, 4, 3, 2, 1]
    assert low[:3].tolist() == high[:3].tolist() == [5, 4, 3]


@pytest.mark.parametrize("function", [best_set, rank_intervals])
def test_bad_levels(function: object) -> None:
    with pytest.raises(ValueError, match=r"`alpha` must lie in \(0, 1\), got 95"):
        function([1.0], np.zeros((3, 1)), 95)  # type: ignore[operator]
