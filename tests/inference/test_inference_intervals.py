"""Intervals against hand-computed numbers, SciPy, plain loops and their own coverage."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from ope.inference import (
    IntervalNotAvailable,
    basic_interval,
    bca_interval,
    hash_identifiers,
    mean_replicates,
    normal_interval,
    percentile_interval,
    std_error,
)

FloatArray = npt.NDArray[np.float64]
Ends = tuple[float, float]

X = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
finite = st.floats(-1e6, 1e6, allow_subnormal=False)
samples = arrays(np.float64, st.integers(5, 40), elements=finite)
tails = st.floats(0.03, 0.45)


def all_intervals(x: FloatArray, replicates: FloatArray, low: float, high: float) -> dict[str, Ends]:
    value, psi = float(x.mean()), x - x.mean()
    return {
        "normal": normal_interval(value, psi, low, high),
        "percentile": percentile_interval(replicates, low, high),
        "basic": basic_interval(value, replicates, low, high),
        "bca": bca_interval(value, replicates, psi, low, high),
    }


def test_std_error_of_a_mean_is_the_textbook_one() -> None:
    assert float(std_error(X - X.mean())) == pytest.approx(math.sqrt(12.5 / 5))
    both = std_error(np.column_stack([X - X.mean(), 2 * X - 2 * X.mean()]))
    np.testing.assert_allclose(both, [math.sqrt(2.5), 2 * math.sqrt(2.5)])
    assert both.shape == (2,)


def test_std_error_neither_vanishes_nor_overflows() -> None:
    for scale in (1e-200, 1e200):
        assert float(std_error((X - X.mean()) * scale)) == pytest.approx(math.sqrt(2.5) * scale)
    assert float(std_error(np.zeros(4))) == 0.0
    assert math.isnan(float(std_error(np.zeros(1))))


def test_normal_interval_by_hand() -> None:
    """t_{4, .975} = 2.776445 and t_{4, .9} = 1.533206, from a printed table."""
    low, high = normal_interval(4.0, X - 4.0, 0.025, 0.1)
    assert low == pytest.approx(4.0 - 2.776445 * 1.5811388, abs=1e-5)
    assert high == pytest.approx(4.0 + 1.533206 * 1.5811388, abs=1e-5)


@given(samples, tails, tails)
@settings(deadline=None, derandomize=True)
def test_normal_interval_agrees_with_scipy(x: FloatArray, low: float, high: float) -> None:
    if np.ptp(x) < 1e-3:
        return
    found = normal_interval(float(x.mean()), x - x.mean(), low, high)
    law = stats.t(len(x) - 1, loc=x.mean(), scale=stats.sem(x))
    np.testing.assert_allclose(found, (law.ppf(low), law.isf(high)), rtol=1e-9, atol=1e-7)


def test_infinite_ends_make_one_sided_bounds() -> None:
    replicates = mean_replicates(X, hash_identifiers(range(5)), 500)
    both = all_intervals(X, replicates, 0.05, 0.05)
    for name, (low, high) in all_intervals(X, replicates, 0.05, 0.0).items():
        assert (low, high) == (both[name][0], math.inf), name
    for name, (low, high) in all_intervals(X, replicates, 0.0, 0.05).items():
        assert (low, high) == (-math.inf, both[name][1]), name


def test_no_variance_gives_no_width() -> None:
    for low, high in all_intervals(np.full(6, 2.0), np.full(300, 2.0), 0.05, 0.05).values():
        assert low == high == 2.0


def plain_quantile(replicates: FloatArray, p: float) -> float:
    """The (B + 1) p-th smallest value, interpolated, extremes beyond."""
    ordered = sorted(replicates.tolist())
    position = min(max((len(ordered) + 1) * p, 1.0), float(len(ordered)))
    below = math.floor(position)
    if below == len(ordered):
        return float(ordered[-1])
    return float(ordered[below - 1] + (position - below) * (ordered[below] - ordered[below - 1]))


def plain_bca(value: float, replicates: FloatArray, psi: FloatArray, p: float) -> float:
    below = sum(1.0 for r in replicates if r < value) + 0.5 * sum(1.0 for r in replicates if r == value)
    z0 = stats.norm.ppf(below / len(replicates))
    a = sum(e**3 for e in psi) / (6 * sum(e**2 for e in psi) ** 1.5)
    z = z0 + stats.norm.ppf(p)
    return plain_quantile(replicates, float(stats.norm.cdf(z0 + z / (1 - a * z))))


@pytest.mark.parametrize("tail", [0.01, 0.025, 0.2])
def test_replicate_intervals_agree_with_plain_loops(tail: float) -> None:
    x = np.random.default_rng(0).lognormal(size=30)
    value, psi = float(x.mean()), x - x.mean()
    replicates = mean_replicates(x, hash_identifiers(range(30)), 999, kind="poisson")
    low, high = plain_quantile(replicates, tail), plain_quantile(replicates, 1 - 2 * tail)
    np.testing.assert_allclose(percentile_interval(replicates, tail, 2 * tail), (low, high), rtol=1e-12)
    low, high = plain_quantile(replicates, 1 - tail), plain_quantile(replicates, 2 * tail)
    np.testing.assert_allclose(
        basic_interval(value, replicates, tail, 2 * tail), (2 * value - low, 2 * value - high), rtol=1e-12
    )
    expected = (plain_bca(value, replicates, psi, tail), plain_bca(value, replicates, psi, 1 - 2 * tail))
    np.testing.assert_allclose(bca_interval(value, replicates, psi, tail, 2 * tail), expected, rtol=1e-12)


def test_bca_counts_ties_one_half() -> None:
    replicates = np.repeat([0.0, 1.0, 2.0, 3.0], 100)
    found = bca_interval(1.0, replicates, np.array([-1.0, 0.0, 2.0, -1.0]), 0.3, 0.3)
    psi = np.array([-1.0, 0.0, 2.0, -1.0])
    assert found == pytest.approx((plain_bca(1.0, replicates, psi, 0.3), plain_bca(1.0, replicates, psi, 0.7)))
    shifted = stats.norm.ppf(0.375)
    assert shifted < 0 < plain_bca(1.0, replicates, psi, 0.7)


def test_bca_agrees_with_scipy_bootstrap() -> None:
    """End to end against SciPy's own resampling, up to simulation error."""
    x = np.random.default_rng(5).exponential(size=200)
    ours = bca_interval(
        float(x.mean()),
        mean_replicates(x, hash_identifiers(range(200)), 20_000, kind="poisson"),
        x - x.mean(),
        0.05,
        0.05,
    )
    seed = "rng" if "rng" in signature(stats.bootstrap).parameters else "random_state"
    options = {"confidence_level": 0.9, "n_resamples": 20_000, "method": "BCa", seed: np.random.default_rng(1)}
    theirs = stats.bootstrap((x,), np.mean, **options)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.03 * width)


def test_bca_past_the_pole_is_the_extreme_replicate() -> None:
    """One dominating episode has acceleration near 1/6; with a large z0 the transformation passes its pole."""
    replicates = np.append(np.arange(99_990.0), np.full(10, 1e6))
    psi = np.array([1.0, *np.full(1000, -1e-3)])
    low, high = bca_interval(99_995.0, replicates, psi, 0.01, 0.01)
    assert low <= high == 1e6


def test_replicates_on_one_side_are_no_replicates() -> None:
    for value, side in ((-1.0, "above"), (9.0, "below")):
        with pytest.raises(IntervalNotAvailable, match=f"all 100 replicates lie {side} the estimate"):
            bca_interval(value, np.linspace(0, 1, 100), np.array([-1.0, 1.0]), 0.1, 0.1)


@pytest.mark.parametrize("count", [38, 39])
def test_tails_need_replicates(count: int) -> None:
    replicates = np.arange(float(count))
    if count == 39:
        assert percentile_interval(replicates, 0.025, 0.025) == (0.0, 38.0)
        return
    calls: tuple[Callable[[], object], ...] = (
        lambda: percentile_interval(replicates, 0.025, 0.025),
        lambda: basic_interval(20.0, replicates, 0.0, 0.025),
        lambda: bca_interval(20.0, replicates, np.array([-1.0, 1.0]), 0.025, 0.3),
    )
    for call in calls:
        with pytest.raises(IntervalNotAvailable, match=r"0\.025 needs at least 39 replicates, got 38"):
            call()


def test_one_episode_has_no_normal_interval() -> None:
    with pytest.raises(IntervalNotAvailable, match="at least 2 episodes, got 1"):
        normal_interval(1.0, np.zeros(1), 0.05, 0.05)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: normal_interval(0.0, X, -0.1, 0.1), ValueError, r"`alpha_low` must lie in \[0, 1\), got -0.1"),
        (lambda: normal_interval(0.0, X, 0.1, 1.0), ValueError, r"`alpha_high` must lie in \[0, 1\), got 1.0"),
        (lambda: normal_interval(0.0, X, 0.1, math.nan), ValueError, r"`alpha_high` must lie in"),
        (lambda: percentile_interval(X, 0.5, 0.5), ValueError, r"must be below 1, got 0.5 \+ 0.5"),
        (lambda: normal_interval(0.0, X[:, None], 0.1, 0.1), ValueError, r"1 dimension\(s\), got shape \(5, 1\)"),
        (lambda: percentile_interval(np.array([]), 0.1, 0.1), ValueError, r"non-empty"),
        (
            lambda: percentile_interval(np.array([1, np.nan]), 0.3, 0.3),
            ValueError,
            r"NaN or infinite values at rows 1 ",
        ),
        (lambda: std_error(np.array(["a"])), TypeError, r"`influence` must be numeric"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


@given(samples, tails, tails, st.integers(0, 5))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_ends_are_ordered_and_monotone_in_the_level(x: FloatArray, low: float, high: float, seed: int) -> None:
    replicates = mean_replicates(x, hash_identifiers(range(len(x))), 400, seed=seed)
    narrow = all_intervals(x, replicates, low, high)
    wide = all_intervals(x, replicates, low * 0.7, high * 0.5)
    for name, (left, right) in narrow.items():
        assert left <= right, name
        assert wide[name][0] <= left, name
        assert right <= wide[name][1], name


@given(samples, st.permutations(range(5)))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_intervals_ignore_the_order_of_episodes(x: FloatArray, start: list[int]) -> None:
    order = np.array([*start, *range(5, len(x))])
    keys = hash_identifiers(range(len(x)))
    psi = x - x.mean()
    scale = 1e-9 * (1 + np.abs(x).max())
    for kind in ("bayesian", "poisson"):
        plain = percentile_interval(mean_replicates(x, keys, 99, kind=kind), 0.1, 0.1)
        shuffled = percentile_interval(mean_replicates(x[order], keys[order], 99, kind=kind), 0.1, 0.1)
        np.testing.assert_allclose(plain, shuffled, atol=scale)
    np.testing.assert_allclose(
        normal_interval(0.0, psi, 0.1, 0.1), normal_interval(0.0, psi[order], 0.1, 0.1), atol=scale
    )


@given(samples, st.floats(0.01, 100.0), st.floats(-1e3, 1e3))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_intervals_move_and_scale_with_the_values(x: FloatArray, scale: float, shift: float) -> None:
    if np.ptp(x) < 1e-3:
        return
    keys = hash_identifiers(range(len(x)))
    before = all_intervals(x, mean_replicates(x, keys, 200), 0.05, 0.1)
    moved = scale * x + shift
    after = all_intervals(moved, mean_replicates(moved, keys, 200), 0.05, 0.1)
    tolerance = 1e-8 * (1 + abs(shift) + scale * np.abs(x).max())
    for name, ends in before.items():
        np.testing.assert_allclose(after[name], scale * np.array(ends) + shift, atol=tolerance, err_msg=name)


def misses(
    draw: Callable[[int], FloatArray], truth: float, trials: int, n_replicates: int = 999
) -> dict[str, FloatArray]:
    """Share of trials in which each interval lies above, and below, the truth, at nominal 2.5 % a tail."""
    counts = {name: np.zeros(2) for name in ("normal", "percentile", "basic", "bca")}
    for trial in range(trials):
        x = draw(trial)
        keys = hash_identifiers(np.arange(len(x)) + trial * len(x))
        replicates = mean_replicates(x, keys, n_replicates, kind="poisson")
        for name, (low, high) in all_intervals(x, replicates, 0.025, 0.025).items():
            counts[name] += [low > truth, high < truth]
    return {name: count / trials for name, count in counts.items()}


def test_coverage_on_normal_data() -> None:
    """The t interval is exact; the others are V -+ 1.96 sqrt((n - 1) / n) standard errors to first order."""
    n, trials = 50, 2_000
    rng = np.random.default_rng(11)
    found = misses(lambda _: rng.normal(3.0, 2.0, n), 3.0, trials)
    first_order = float(stats.t(n - 1).cdf(-1.959964 * math.sqrt((n - 1) / n)))
    for name, tail in {"normal": 0.025, "percentile": first_order, "basic": first_order, "bca": first_order}.items():
        error = math.sqrt(2 * tail * (1 - 2 * tail) / trials)
        assert found[name].sum() == pytest.approx(2 * tail, abs=3.5 * error), name


def test_bca_balances_the_tails_of_skewed_data() -> None:
    rng = np.random.default_rng(12)
    found = misses(lambda _: rng.exponential(1.0, 40), 1.0, 1_500)
    for name, (above, below) in found.items():
        assert above < below, name
        assert above + below < 0.12, name
    imbalance = {name: below - above for name, (above, below) in found.items()}
    assert imbalance["bca"] < imbalance["percentile"] < imbalance["normal"] < imbalance["basic"]


def test_lognormal_mean_fails_on_one_side() -> None:
    """Sigma 2, n = 100, one-sided levels of 95 %: the lower bound covers .998, the upper .70."""
    trials, truth = 10_000, math.exp(2.0)
    x = np.exp(2.0 * np.random.default_rng(0).standard_normal((trials, 100)))
    ends = np.array([normal_interval(float(row.mean()), row - row.mean(), 0.05, 0.05) for row in x])
    assert np.mean(ends[:, 0] <= truth) == pytest.approx(0.998, abs=0.0015)
    assert np.mean(ends[:, 1] >= truth) == pytest.approx(0.70, abs=0.015)


@pytest.mark.parametrize(("n", "coverage"), [(32, 0.35), (512, 0.93)])
def test_known_coverage_on_model_fail(n: int, coverage: float) -> None:
    """Per-decision scores rho_0 rho_1 r of ModelFail; the known numbers come from 300 trials."""
    b, trials = 1 / (1 + math.exp(-2.0)), 3_000
    first = np.random.default_rng(1).random((trials, n)) < b
    second = np.random.default_rng(2).random((trials, n)) < b
    rho = np.array([b / (1 - b), (1 - b) / b])
    x = rho[first.astype(int)] * rho[second.astype(int)] * np.where(first, 1.0, -1.0)
    ends = np.array([normal_interval(float(row.mean()), row - row.mean(), 0.025, 0.025) for row in x])
    covered = np.mean((ends[:, 0] <= -math.tanh(1.0)) & (-math.tanh(1.0) <= ends[:, 1]))
    error = math.sqrt(coverage * (1 - coverage) * (1 / 300 + 1 / trials))
    assert covered == pytest.approx(coverage, abs=3 * error)
