"""Holm's adjustment and simultaneous critical values."""

from __future__ import annotations

import math
from itertools import chain, combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ope.inference import IntervalNotAvailable, holm, max_t_quantile

FloatArray = npt.NDArray[np.float64]


def closed_testing(p: list[float]) -> list[float]:
    """Holm is the closed test of Bonferroni: the largest min(1, |S| min p_S) over the sets S that hold i."""
    members = range(len(p))
    sets = list(chain.from_iterable(combinations(members, size) for size in range(1, len(p) + 1)))
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in members]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6))
@settings(deadline=None, derandomize=True)
def test_holm_is_the_closed_bonferroni_test(p: list[float]) -> None:
    np.testing.assert_allclose(holm(p), closed_testing(p), rtol=1e-12)


@pytest.mark.parametrize("p", [[0.1, 1.2], [-0.1]])
def test_holm_refuses_what_is_no_probability(p: list[float]) -> None:
    with pytest.raises(ValueError, match=r"holm: `p_values` must lie in \[0, 1\]"):
        holm(p)


def orthogonal(n: int, k: int) -> FloatArray:
    psi = np.random.default_rng(0).normal(size=(n, k))
    vectors, _ = np.linalg.qr(psi - psi.mean(axis=0))
    scaled: FloatArray = vectors * np.arange(1.0, k + 1)
    return scaled


@pytest.mark.parametrize("two_sided", [True, False])
def test_independent_estimates_give_sidak(two_sided: bool) -> None:
    k, alpha = 6, 0.05
    each = (1 - alpha) ** (1 / k)
    expected = stats.norm.ppf((1 + each) / 2 if two_sided else each)
    found = max_t_quantile(orthogonal(5_000, k), alpha, two_sided=two_sided)
    assert found == pytest.approx(expected, abs=0.04)


def test_few_episodes_widen_the_band() -> None:
    """Studentised maximum modulus for 3 comparisons and 10 degrees of freedom: 2.829 in printed tables."""
    found = max_t_quantile(orthogonal(11, 3), 0.05, 100_000)
    assert found == pytest.approx(2.829, abs=0.04)


def test_identical_and_single_estimates_need_no_correction() -> None:
    psi = orthogonal(20, 1)
    t = stats.t(19).isf(0.025)
    assert max_t_quantile(psi, 0.05) == pytest.approx(t)
    assert max_t_quantile(np.repeat(psi, 4, axis=1) * [1.0, -2.0, 3.0, 1e-9], 0.05) == pytest.approx(t, abs=0.08)
    assert max_t_quantile(psi, 0.05, two_sided=False) == pytest.approx(stats.t(19).isf(0.05))


def test_simulation_error_stays_between_no_correction_and_bonferroni() -> None:
    psi, law = orthogonal(50, 3), stats.t(49)
    found = [max_t_quantile(psi, 0.05, 25, seed=seed) for seed in range(60)]
    assert min(found) == pytest.approx(law.isf(0.025))
    assert max(found) == pytest.approx(law.isf(0.025 / 3))
    assert len(set(found)) > 10


def test_constant_columns_play_no_part() -> None:
    psi = orthogonal(200, 3)
    padded = np.column_stack([psi[:, 0], np.zeros(200), psi[:, 1:]])
    assert max_t_quantile(padded, 0.1) == max_t_quantile(psi, 0.1)
    assert max_t_quantile(np.zeros((20, 3)), 0.1) == pytest.approx(stats.t(19).isf(0.05))


def test_quantile_agrees_with_multipliers_drawn_one_by_one() -> None:
    rng = np.random.default_rng(3)
    psi = rng.normal(size=(2_000, 4)) @ rng.normal(size=(4, 4))
    psi -= psi.mean(axis=0)
    maxima = [np.abs(rng.standard_normal(2_000) @ psi / np.sqrt((psi**2).sum(axis=0))).max() for _ in range(20_000)]
    assert max_t_quantile(psi, 0.1, 50_000) == pytest.approx(np.quantile(maxima, 0.9), abs=0.04)


def test_quantile_is_reproducible_and_ignores_order_and_scale() -> None:
    psi = np.random.default_rng(4).normal(size=(100, 5))
    psi -= psi.mean(axis=0)
    first = max_t_quantile(psi, 0.05)
    assert max_t_quantile(psi, 0.05) == first
    assert max_t_quantile(psi[::-1] * 1e-150, 0.05) == pytest.approx(first, rel=1e-9)
    assert max_t_quantile(psi, 0.05, seed=1) != first


def test_simultaneous_coverage() -> None:
    """The band of all K means covers with probability 1 - alpha."""
    rng, trials, n, k = np.random.default_rng(5), 400, 30, 5
    mixing = rng.normal(size=(k, k))
    missed = 0
    for trial in range(trials):
        x = rng.normal(size=(n, k)) @ mixing
        c = max_t_quantile(x - x.mean(axis=0), 0.1, 2_000, seed=trial)
        missed += bool((np.abs(x.mean(axis=0)) > c * stats.sem(x)).any())
    assert missed / trials == pytest.approx(0.1, abs=3.5 * math.sqrt(0.09 / trials))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`alpha` must lie in \(0, 1\), got 0"):
        max_t_quantile(np.ones((3, 2)), 0)
    with pytest.raises(ValueError, match=r"2 dimension\(s\), got shape \(3,\)"):
        max_t_quantile(np.ones(3), 0.1)
    with pytest.raises(IntervalNotAvailable, match="at least 2 episodes"):
        max_t_quantile(np.ones((1, 2)), 0.1)
