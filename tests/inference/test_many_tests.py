"""Adjusted p-values, simulated joint errors and critical values of many estimates at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.optimize import brentq

from ope.inference import adjust_p_values, error_draws, holm, max_t_p_values, romano_wolf, std_error
from ope.inference.multiplicity import critical_value, pairwise, t_statistics

FloatArray = npt.NDArray[np.float64]


def influence(n: int = 60, k: int = 4, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    psi = rng.normal(size=(n, k)) @ rng.normal(size=(k, k))
    return np.asarray(psi - psi.mean(axis=0))


@pytest.mark.parametrize("method", ["holm", "bonferroni", "hommel", "holm-sidak", "fdr_bh"])
def test_adjustments_are_those_of_statsmodels(method: str) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(1).uniform(size=12) ** 3
    np.testing.assert_allclose(adjust_p_values(p, method), multitest.multipletests(p, method=method)[1], rtol=1e-12)


def test_no_adjustment_and_unknown_ones() -> None:
    assert adjust_p_values([0.2, 0.1], "none").tolist() == [0.2, 0.1]
    np.testing.assert_array_equal(adjust_p_values([0.2, 0.1]), holm([0.2, 0.1]))
    with pytest.raises(ValueError, match="`p_values` must lie in"):
        adjust_p_values([1.2])
    pytest.importorskip("statsmodels")
    with pytest.raises(ValueError, match=r"`method` must be 'holm'.*got 'guess'"):
        adjust_p_values([0.2], "guess")


def test_a_missing_statsmodels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "statsmodels.stats.multitest", None)
    with pytest.raises(ImportError, match="needs statsmodels; install it with"):
        adjust_p_values([0.2], "hommel")


def loops_romano_wolf(t: FloatArray, draws: FloatArray) -> list[float]:
    """Step down as the paper's algorithm reads: the least of the p-values still standing, one test at a time."""
    left, last, found = list(range(len(t))), 0.0, {}
    while left:
        j = max(left, key=lambda i: abs(t[i]))
        above = sum(max(abs(row[i]) for i in left) >= abs(t[j]) for row in draws)
        last = max(last, (1 + above) / (len(draws) + 1))
        found[j] = last
        left.remove(j)
    return [found[j] for j in range(len(t))]


def test_romano_wolf_is_its_algorithm_in_loops() -> None:
    rng = np.random.default_rng(2)
    draws = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    t = np.array([2.0, -3.5, 0.1, 2.0, -0.4])
    np.testing.assert_allclose(romano_wolf(t, draws), loops_romano_wolf(t, draws), rtol=1e-12)


def test_steps_down_reject_no_less_than_one_step_and_one_test_needs_none() -> None:
    draws = np.random.default_rng(3).normal(size=(20_000, 4))
    t = np.array([3.0, 2.4, 2.2, 0.5])
    stepped, single = romano_wolf(t, draws), max_t_p_values(t, draws)
    assert (stepped <= single + 1e-12).all()
    assert stepped[0] == single[0]
    assert stepped[2] < 0.06 < single[2]
    alone = 2 * stats.norm.sf(2.0)
    assert romano_wolf([2.0], draws[:, :1])[0] == pytest.approx(alone, abs=0.005)
    assert romano_wolf([2.0, 2.0], draws[:, [0, 0]])[1] == pytest.approx(alone, abs=0.005)
    one_sided = romano_wolf([-2.0], draws[:, :1], two_sided=False)[0]
    assert one_sided == pytest.approx(stats.norm.sf(-2.0), abs=0.005)


def test_infinite_statistics_are_certain_and_missing_ones_refused() -> None:
    draws = np.random.default_rng(3).normal(size=(500, 2))
    assert romano_wolf([np.inf, 0.0], draws).tolist() == pytest.approx([1 / 501, 1.0])
    with pytest.raises(ValueError, match="without NaN"):
        romano_wolf([np.nan, 0.0], draws)


def test_errors_have_the_covariance_of_the_estimates_and_t_tails() -> None:
    psi = influence(8, 3)
    draws = error_draws(psi, 400_000)
    freedom = 7
    expected = psi.T @ psi / (8 * 7) * freedom / (freedom - 2)
    np.testing.assert_allclose(np.cov(draws.T), expected, rtol=0.05, atol=0.02 * np.abs(expected).max())
    assert np.quantile(draws[:, 1] / std_error(psi)[1], 0.975) == pytest.approx(stats.t(7).isf(0.025), abs=0.05)


def test_errors_do_not_depend_on_the_order_of_episodes_even_for_twins() -> None:
    psi = influence(50, 3)
    psi = np.column_stack([psi, psi[:, 0]])
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_allclose(error_draws(psi, 100), error_draws(psi[order], 100), atol=1e-7)
    twins = error_draws(psi, 100)
    np.testing.assert_allclose(twins[:, 0], twins[:, 3], atol=1e-7)


def test_small_differences_of_like_estimates_keep_their_digits() -> None:
    psi = influence(200, 2)
    psi = np.column_stack([psi, psi[:, 0] + 1e-7 * psi[:, 1]])
    draws = error_draws(psi, 20_000)
    expected = std_error(psi[:, 2] - psi[:, 0])
    assert np.std(draws[:, 2] - draws[:, 0]) == pytest.approx(float(expected), rel=0.03)


@pytest.mark.parametrize(("rho", "sides"), [(0.0, 1), (0.8, 1), (-0.5, 1), (0.8, 2), (-0.5, 2)])
def test_critical_value_of_two_is_that_of_the_bivariate_normal(rho: float, sides: int) -> None:
    law = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]])

    def inside(c: float) -> float:
        corners = law.cdf([c, c])
        return float(corners if sides == 1 else corners - 2 * law.cdf([c, -c]) + law.cdf([-c, -c]))

    expected = brentq(lambda c: inside(c) - 0.95, 1.0, 4.0)
    z = np.random.default_rng(0).multivariate_normal([0, 0], [[1, rho], [rho, 1]], 100_000)
    found = critical_value(np.abs(z) if sides == 2 else z, 10**6, 0.05, sides)
    assert found == pytest.approx(expected, abs=0.02)


def test_pairs_are_plain_differences() -> None:
    psi, v = influence(30, 4), np.array([1.0, 2.0, 0.5, 2.0])
    difference, error = pairwise(v, psi)
    for a in range(4):
        for b in range(4):
            assert difference[a, b] == v[a] - v[b]
            assert error[a, b] == pytest.approx(stats.sem(psi[:, a] - psi[:, b]), rel=1e-10, abs=1e-15)


def test_twins_up_to_rounding_are_one() -> None:
    psi = influence(30, 1)
    twins = np.column_stack([psi, psi * (1 + 1e-14), psi])
    difference, error = pairwise([1.0, 1.0 + 1e-14, 2.0], twins)
    assert error.tolist() == np.zeros((3, 3)).tolist()
    assert t_statistics(difference, error).tolist() == [[0.0, 0.0, -np.inf], [0.0, 0.0, -np.inf], [np.inf, np.inf, 0.0]]
