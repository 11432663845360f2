"""The interval that allows for heavy tails and skewness: degrees of freedom, the longer side, and how it reads in a verdict."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ope.estimate import Estimate, Estimates
from ope.inference import AdjustedT, Bootstrap, IntervalNotAvailable, Normal
from ope.inference.identifiers import hash_identifiers
from ope.inference.intervals import adjusted_t_interval, effective_freedom, normal_interval
from ope.verdict import Level, Verdict


def skewed(n: int, seed: int = 0) -> np.ndarray:
    psi: np.ndarray = np.random.default_rng(seed).lognormal(sigma=1.2, size=n)
    return np.asarray(psi - psi.mean())


def oracle(value: float, psi: np.ndarray, alpha: float) -> tuple[float, float]:
    n, variance = len(psi), float(np.mean(psi**2))
    kurtosis, third = float(np.mean(psi**4)) / variance**2, float(np.mean(psi**3))
    t = float(stats.t.isf(alpha, min(2 * n / (kurtosis - 1), n - 1)))
    half, extra = t * math.sqrt(variance / (n - 1)), third / (6 * n * variance) * (1 + 2 * t * t)
    return value - half + min(extra, 0.0), value + half + max(extra, 0.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("alpha", [0.025, 0.1])
@pytest.mark.parametrize("n", [5, 40, 700])
def test_ends_from_moments(n: int, alpha: float, sign: float) -> None:
    psi = sign * skewed(n)
    np.testing.assert_allclose(adjusted_t_interval(1.5, psi, alpha, alpha), oracle(1.5, psi, alpha), rtol=1e-10)


def test_freedom_is_that_of_the_variance() -> None:
    """Two moments of the sample variance of normal, uniform and exponential data, from their simulation."""
    rng, n = np.random.default_rng(0), 50
    for draw in (rng.standard_normal, rng.standard_exponential):
        variances = draw((20_000, n)).var(axis=1, ddof=1)
        simulated = 2 * variances.mean() ** 2 / variances.var()
        sample = draw(400_000)
        kurtosis = stats.kurtosis(sample, fisher=False)
        assert simulated == pytest.approx(2 * n / (kurtosis - 1), rel=0.08)
        psi = sample - sample.mean()
        assert effective_freedom(psi) == pytest.approx(min(2 * len(psi) / (kurtosis - 1), len(psi) - 1), rel=1e-6)


def test_limits_of_the_freedom() -> None:
    alone = np.zeros(1000)
    alone[0] = 1.0
    assert effective_freedom(alone) == pytest.approx(2.0, abs=0.01)
    assert effective_freedom(np.array([1.0, -1.0, 1.0, -1.0])) == 3.0
    assert effective_freedom(np.zeros(7)) == 6.0
    assert effective_freedom(1e200 * skewed(30)) == pytest.approx(effective_freedom(1e-200 * skewed(30)), rel=1e-12)


def test_never_inside_the_t_interval_and_equal_to_it_for_symmetric_flat_values() -> None:
    for seed in range(20):
        psi = skewed(40, seed)
        low, high = normal_interval(0.0, psi, 0.025, 0.025)
        wide_low, wide_high = adjusted_t_interval(0.0, psi, 0.025, 0.025)
        assert wide_low <= low
        assert wide_high > high
    flat = np.array([-1.0, 1.0] * 10)
    np.testing.assert_allclose(adjusted_t_interval(0.0, flat, 0.05, 0.05), normal_interval(0.0, flat, 0.05, 0.05))


def test_one_sided_bounds_and_a_constant() -> None:
    psi = skewed(30)
    low, high = adjusted_t_interval(2.0, psi, 0.05, 0.0)
    assert high == math.inf
    assert low == adjusted_t_interval(2.0, psi, 0.05, 0.05)[0]
    assert adjusted_t_interval(2.0, np.zeros(4), 0.05, 0.05) == (2.0, 2.0)
    with pytest.raises(IntervalNotAvailable, match="2 episodes"):
        adjusted_t_interval(2.0, np.zeros(1), 0.05, 0.05)


def test_it_covers_skewed_means_where_the_t_interval_does_not() -> None:
    draws = np.random.default_rng(3).lognormal(sigma=0.8, size=(2000, 40))
    truth, held = math.exp(0.32), {"t": 0, "adjusted": 0}
    for row in draws:
        psi, value = row - row.mean(), float(row.mean())
        for name, interval in (("t", normal_interval), ("adjusted", adjusted_t_interval)):
            low, high = interval(value, psi, 0.025, 0.025)
            held[name] += low <= truth <= high
    assert held["t"] / 2000 < 0.925
    assert held["adjusted"] / 2000 > 0.94


# -------------------------------------------------------------------------------- verdicts of intervals


def estimate(effective_size: float | None, verdict: Verdict | None = None) -> Estimate:
    psi = skewed(500)
    keys = hash_identifiers(np.arange(len(psi)))
    return Estimate(
        1.0,
        0.9,
        None,
        keys,
        "log",
        "WeightedIS",
        "p",
        influence=psi,
        effective_size=effective_size,
        verdict=verdict or Verdict(),
    )


@pytest.mark.parametrize("method", ["normal", "basic", "bca"])
def test_plain_intervals_ask_for_a_larger_effective_sample(method: str) -> None:
    interval = estimate(199.0).confidence_interval(method=method)
    assert interval.verdict.level == Level.CAUTION
    assert f"The {method} interval needs an effective sample of 200 episodes" in interval.verdict.reasons[0]
    assert estimate(200.0).confidence_interval(method=method).verdict.level == Level.VALID
    assert estimate(None).confidence_interval(method=method).verdict.level == Level.VALID


@pytest.mark.parametrize("method", ["percentile", "bayesian"])
def test_expanded_bootstraps_lie_between(method: str) -> None:
    assert estimate(99.0).confidence_interval(method=method).verdict.level == Level.CAUTION
    assert estimate(100.0).confidence_interval(method=method).verdict.level == Level.VALID


@pytest.mark.parametrize("method", [None, "adjusted_t"])
def test_the_corrected_interval_keeps_the_verdict_of_the_estimate(method: str | None) -> None:
    assert estimate(20.0).confidence_interval(method=method).verdict.level == Level.VALID


def test_a_table_shows_the_verdict_of_its_interval() -> None:
    estimates = Estimates({"p": estimate(50.0)})
    assert estimates.to_frame()["verdict"].item() == "VALID"
    plain = estimates.to_frame(method="normal").loc["p"]
    assert plain["verdict"] == "CAUTION"
    assert "needs an effective sample of 200 episodes" in plain["reasons"]


def test_a_worse_verdict_stays() -> None:
    refused = Verdict(Level.REFUSE, ("no",))
    assert estimate(3.0, refused).confidence_interval(method="normal").verdict == refused


def test_a_difference_rests_on_the_smaller_effective_sample() -> None:
    one, other = estimate(30.0), replace(estimate(90.0), policy="q")
    assert (one - other).effective_size == 30.0
    assert (replace(one, effective_size=None) - other).effective_size == 90.0


def test_names() -> None:
    assert estimate(30.0).confidence_interval().method == "adjusted_t"
    assert AdjustedT().least_effective_size == 0.0
    assert Bootstrap("percentile").least_effective_size == 100.0
    assert Normal().least_effective_size == 200.0
