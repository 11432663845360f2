"""Finite-sample bounds: formulas, and validity proved by enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from ope.inference import IntervalNotAvailable, anderson, empirical_bernstein, hoeffding

FloatArray = npt.NDArray[np.float64]
Ends = tuple[float, float]
Bound = Callable[[FloatArray, float, float, float, float], Ends]

BOUNDS: dict[str, Bound] = {"hoeffding": hoeffding, "empirical_bernstein": empirical_bernstein, "anderson": anderson}

unit_samples = arrays(np.float64, st.integers(2, 40), elements=st.floats(0.0, 1.0))
tails = st.floats(0.001, 0.49)


def test_hoeffding_by_hand() -> None:
    """(b - a) sqrt(ln 20 / (2 * 100)) = 2 * 0.1223873 for a range of 2."""
    x = np.tile([0.2, -0.2], 50)
    assert hoeffding(x, -1.0, 1.0, 0.05, 0.05) == pytest.approx((-0.2447747, 0.2447747), abs=1e-7)


def test_empirical_bernstein_by_hand() -> None:
    x = np.tile([0.2, -0.2], 50)
    variance = sum(v * v for v in x) / 99
    radius = math.sqrt(2 * variance * math.log(40) / 100) + 7 * 2 * math.log(40) / (3 * 99)
    assert empirical_bernstein(x, -1.0, 1.0, 0.05, 0.05) == pytest.approx((-radius, radius))


def plain_anderson(x: FloatArray, low: float, alpha: float) -> float:
    """Integrate 1 - F over [low, inf) for the highest F in the band."""
    eps = math.sqrt(math.log(1 / alpha) / (2 * len(x)))
    total, left = low, low
    for i, right in enumerate(sorted(x.tolist())):
        total += (right - left) * max(0.0, 1.0 - i / len(x) - eps)
        left = right
    return total


@given(unit_samples, st.floats(1e-9, 0.5), st.floats(0.0, 3.0))
@settings(deadline=None, derandomize=True)
def test_anderson_agrees_with_the_integral(x: FloatArray, alpha: float, room: float) -> None:
    low, high = anderson(x, low=-room, high=1.0 + room, alpha_low=alpha, alpha_high=alpha / 2)
    assert low == pytest.approx(plain_anderson(x, -room, alpha), abs=1e-12)
    assert high == pytest.approx(-plain_anderson(-x, -1.0 - room, alpha / 2), abs=1e-12)
    assert anderson(x, -room, None, alpha, 0.1) == (low, math.inf)


def test_anderson_treats_large_tails_as_one_half() -> None:
    x = np.linspace(0, 1, 30)
    assert anderson(x, 0.0, 1.0, 0.8, 0.0) == anderson(x, 0.0, 1.0, 0.5, 0.0)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("n", [2, 5, 30, 200])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.4])
def test_bounds_hold_for_every_bernoulli_law(name: str, n: int, alpha: float) -> None:
    """Enumerate the number of successes: the probability of a miss is exact, not simulated."""
    ends = [BOUNDS[name](np.repeat([1.0, 0.0], [k, n - k]), 0.0, 1.0, alpha, alpha) for k in range(n + 1)]
    low, high = np.array(ends).T
    for p in np.linspace(0.001, 0.999, 61):
        law = stats.binom(n, p).pmf(np.arange(n + 1))
        assert law[low > p].sum() <= alpha
        assert law[high < p].sum() <= alpha


def test_anderson_holds_for_a_heavy_tail() -> None:
    rng = np.random.default_rng(0)
    x = np.exp(2.0 * rng.standard_normal((2_000, 50)))
    lows = np.array([anderson(row, 0.0, None, 0.1, 0.0)[0] for row in x])
    assert np.mean(lows <= math.exp(2.0)) >= 0.9
    assert lows.min() >= 0.0
    assert np.median(lows) > 0.5


def test_bernstein_profits_from_a_small_variance_and_anderson_from_the_sample() -> None:
    x = 0.5 + 0.01 * np.sin(np.arange(5_000))
    widths = {name: np.ptp(bound(x, 0.0, 1.0, 0.025, 0.025)) for name, bound in BOUNDS.items()}
    assert widths["empirical_bernstein"] < 0.5 * widths["hoeffding"]
    spread = np.linspace(0.0, 1.0, 500)
    assert anderson(spread, 0.0, 1.0, 0.05, 0.0)[0] > hoeffding(spread, 0.0, 1.0, 0.05, 0.0)[0]


@given(unit_samples, tails, tails)
@settings(deadline=None, derandomize=True)
def test_bounds_are_ordered_monotone_and_inside_the_range(x: FloatArray, low: float, high: float) -> None:
    for name, bound in BOUNDS.items():
        left, right = bound(x, 0.0, 1.0, low, high)
        assert -1e-15 <= left <= x.mean() + 1e-12, name
        assert x.mean() - 1e-12 <= right <= 1.0 + 1e-15, name
        wider = bound(x, -0.5, 1.5, low / 2, high / 2)
        assert wider[0] <= left + 1e-12, name
        assert wider[1] >= right - 1e-12, name
        assert bound(x, 0.0, 1.0, low, 0.0) == (left, math.inf), name
        assert bound(x, 0.0, 1.0, 0.0, high) == (-math.inf, right), name


@given(unit_samples, st.permutations(range(2)), st.floats(0.1, 50.0), st.floats(-20.0, 20.0))
@settings(deadline=None, derandomize=True)
def test_bounds_are_equivariant(x: FloatArray, start: list[int], scale: float, shift: float) -> None:
    moved = scale * x[[*start, *range(2, len(x))]] + shift
    tolerance = 1e-9 * (scale + abs(shift))
    for name, bound in BOUNDS.items():
        ends = bound(moved, shift - scale * 1e-9, scale * (1 + 1e-9) + shift, 0.05, 0.1)
        expected = scale * np.array(bound(x, -1e-9, 1 + 1e-9, 0.05, 0.1)) + shift
        np.testing.assert_allclose(ends, expected, atol=10 * tolerance, err_msg=name)
        mirrored = bound(1.0 - x, 0.0, 1.0, 0.1, 0.05)
        np.testing.assert_allclose(
            1 - np.array(mirrored)[::-1], bound(x, 0.0, 1.0, 0.05, 0.1), atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("name", BOUNDS)
def test_values_outside_the_range_are_named(name: str) -> None:
    x = np.array([0.5, 1.5, 0.2, -0.1])
    with pytest.raises(
        ValueError, match=rf"{name}: `x` must lie in \[0.0, 1.0\], got 1.5 first at rows 1, 3 \(2 in all\)"
    ):
        BOUNDS[name](x, 0.0, 1.0, 0.05, 0.05)


def test_rounding_at_the_end_of_the_range_is_no_violation() -> None:
    x = np.array([0.1 + 0.2, 0.0])
    assert x[0] > 0.3
    assert hoeffding(x, 0.0, 0.3, 0.9, 0.05)[1] <= 0.3


def test_anderson_checks_only_the_ends_it_knows() -> None:
    assert anderson(np.array([0.0, 1e9]), 0.0)[1] == math.inf
    with pytest.raises(ValueError, match=r"in \[0.0, inf\], got -1.0 first at rows 0 \(1 in all\)"):
        anderson(np.array([-1.0, 1e9]), 0.0)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (-math.inf, 1.0), (math.nan, 1.0)])
def test_empty_or_infinite_ranges_are_refused(name: str, ends: Ends) -> None:
    with pytest.raises(ValueError, match=rf"{name}: `low` and `high` must be finite with low < high"):
        BOUNDS[name](np.array([1.0, 1.0]), *ends, 0.05, 0.05)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(IntervalNotAvailable, match="empirical_bernstein: needs at least 2 episodes, got 1"):
        empirical_bernstein(np.array([0.5]), 0.0, 1.0, 0.05, 0.05)
    with pytest.raises(ValueError, match=r"`x` must be finite.*rows 1"):
        hoeffding(np.array([0.5, np.nan]), 0.0, 1.0, 0.05, 0.05)
    with pytest.raises(ValueError, match="`alpha_low` must lie in"):
        anderson(np.array([0.5]), 0.0, 1.0, 1.5, 0.05)


def test_one_value_suffices_for_hoeffding_and_anderson() -> None:
    assert hoeffding(np.array([0.5]), 0.0, 1.0, 0.05, 0.05) == (0.0, 1.0)
    assert anderson(np.array([0.5]), 0.0, 1.0, 0.05, 0.05) == (0.0, 1.0)
