"""The bound of Thomas et al. against its formula as printed, and the split that chooses its truncation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from ope.inference import (
    Anderson,
    EmpiricalBernstein,
    IntervalNotAvailable,
    TruncatedBound,
    hash_identifiers,
    truncated_bound,
    uniforms,
)

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    scores: FloatArray
    keys: npt.NDArray[np.uint64] | None = None
    influence: FloatArray | None = None
    replicates: FloatArray | None = None
    known_propensities: bool = True
    effective_size: float | None = None

    @property
    def value(self) -> float:
        return float(self.scores.mean())

    @property
    def episode_keys(self) -> npt.NDArray[np.uint64]:
        return hash_identifiers(range(len(self.scores))) if self.keys is None else self.keys


def as_printed(x: FloatArray, c: float, delta: float) -> float:
    """Theorem 1 of the paper, with one c for all episodes and its double sum."""
    n = len(x)
    y = [min(value, c) for value in x.tolist()]
    pairs = sum((a / c - b / c) ** 2 for a in y for b in y)
    inside = sum(value / c for value in y) - 7 * n * math.log(2 / delta) / (3 * (n - 1))
    return float((inside - math.sqrt(math.log(2 / delta) / (n - 1) * pairs)) / (n / c))


def test_bound_is_the_printed_formula_at_the_best_point_of_the_other_part() -> None:
    rng = np.random.default_rng(0)
    x, pilot = rng.lognormal(0.0, 1.5, 400), rng.lognormal(0.0, 1.5, 40)
    n = len(x)

    def predicted(c: float) -> float:
        y = np.minimum(pilot, c)
        log_term = math.log(2 / 0.05)
        return float(y.mean() - 7 * c * log_term / (3 * (n - 1)) - math.sqrt(2 * y.var(ddof=1) * log_term / n))

    best = max(pilot.tolist(), key=predicted)
    low, high = truncated_bound(x, pilot, 0.0, None, 0.05, 0.05)
    assert low == pytest.approx(as_printed(x, best, 0.05), rel=1e-10)
    assert low > 0.2
    assert high == math.inf


def test_upper_end_is_that_of_the_reflected_values() -> None:
    rng = np.random.default_rng(1)
    x, pilot = rng.beta(1, 3, 100), rng.beta(1, 3, 30)
    low, high = truncated_bound(x, pilot, 0.0, 1.0, 0.05, 0.1)
    reflected = truncated_bound(1.0 - x, 1.0 - pilot, 0.0, 1.0, 0.1, 0.05)
    assert reflected == pytest.approx((1.0 - high, 1.0 - low), abs=1e-12)
    shifted = truncated_bound(5.0 * x - 2.0, 5.0 * pilot - 2.0, -2.0, 3.0, 0.05, 0.1)
    assert shifted == pytest.approx((5.0 * low - 2.0, 5.0 * high - 2.0), abs=1e-12)
    assert truncated_bound(x[:5], pilot, 0.0, 1.0, 1e-9, 0.0) == (0.0, math.inf)


def test_the_split_is_a_hash_of_the_episodes() -> None:
    x, keys = np.random.default_rng(2).lognormal(size=60), hash_identifiers(range(60))
    chosen = np.argsort(uniforms(keys, 0, -2))[:12]
    rest = np.setdiff1d(np.arange(60), chosen)
    found = TruncatedBound(0.0).bounds(Log(x), 0.05, 0.05)
    assert found == pytest.approx(truncated_bound(x[rest], x[chosen], 0.0, None, 0.05, 0.05), rel=1e-12)
    order = np.random.default_rng(3).permutation(60)
    assert TruncatedBound(0.0).bounds(Log(x[order], keys[order]), 0.05, 0.05) == pytest.approx(found, rel=1e-12)
    assert TruncatedBound(0.0, random_state=1).bounds(Log(x), 0.05, 0.05) != found
    assert TruncatedBound(0.0, share=0.5).bounds(Log(x), 0.05, 0.05) != found


def test_a_heavy_tail_leaves_more_than_bernstein_does() -> None:
    rng = np.random.default_rng(4)
    x = np.where(rng.random(500) < 0.01, 900.0, rng.random(500))
    low, _ = TruncatedBound(0.0, 1000.0).bounds(Log(x), 0.05, 0.05)
    assert 0.2 < low < 0.5
    assert EmpiricalBernstein(0.0, 1000.0).bounds(Log(x), 0.05, 0.05)[0] == 0.0
    assert Anderson(0.0).bounds(Log(x), 0.05, 0.05)[0] == pytest.approx(low, abs=0.2)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"TruncatedBound: `share` must lie in \(0, 1\), got 1.0"):
        TruncatedBound(0.0, share=1.0)
    with pytest.raises(ValueError, match=r"TruncatedBound: `low` and `high`"):
        TruncatedBound(2.0, 1.0)
    with pytest.raises(ValueError, match=r"truncated_bound: `x` must lie in \[0.0, inf\], got -1.0"):
        TruncatedBound(0.0).bounds(Log(np.full(9, -1.0)), 0.05, 0.05)
    with pytest.raises(IntervalNotAvailable, match=r"at least 2 episodes beside the 2 that choose.*got 3 in all"):
        TruncatedBound(0.0).bounds(Log(np.ones(3)), 0.05, 0.05)
