"""Empirical likelihood against a general optimiser, closed forms, and the hull."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import scipy.optimize
import scipy.stats

from ope.inference import EmpiricalLikelihood, IntervalNotAvailable, empirical_likelihood_interval, normal_interval
from ope.inference.empirical_likelihood import bartlett_factor, profile

FloatArray = npt.NDArray[np.float64]


# Some versions of scipy say this of rounding errors.
pytestmark = pytest.mark.filterwarnings("ignore:Values in x were outside bounds:RuntimeWarning")


def statistic(x: FloatArray, mean: float) -> float:
    """-2 log of the likelihood ratio of a mean, by a general constrained optimiser over the probabilities."""
    n = len(x)
    found = scipy.optimize.minimize(
        lambda p: -np.log(n * p).sum(),
        np.full(n, 1.0 / n),
        jac=lambda p: -1.0 / p,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1.0},
            {"type": "eq", "fun": lambda p: (p @ x - mean) * 10},
        ],
        bounds=[(1e-12, 1.0)] * n,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-13},
    )
    assert found.success
    return 2.0 * float(found.fun)


@pytest.mark.parametrize("seed", range(3))
def test_ends_have_the_limiting_likelihood_ratio(seed: int) -> None:
    x = np.random.default_rng(seed).lognormal(size=7)
    low, high = empirical_likelihood_interval(float(x.mean()), x - x.mean(), 0.05, 0.1)
    assert statistic(x, low) == pytest.approx(scipy.stats.t.ppf(0.05, 6) ** 2, rel=1e-4)
    assert statistic(x, high) == pytest.approx(scipy.stats.t.ppf(0.1, 6) ** 2, rel=1e-4)
    assert x.min() < low < x.mean() < high < x.max()


def test_bartlett_correction_multiplies_the_limit() -> None:
    x = np.random.default_rng(5).exponential(size=8)
    low, high = empirical_likelihood_interval(float(x.mean()), x - x.mean(), 0.05, 0.05, bartlett=True)
    factor = 1 + (scipy.stats.kurtosis(x, fisher=False) / 2 - scipy.stats.skew(x) ** 2 / 3) / 8
    assert bartlett_factor(x - x.mean()) == pytest.approx(factor, rel=1e-12)
    for end in (low, high):
        assert statistic(x, end) == pytest.approx(factor * scipy.stats.t.ppf(0.05, 7) ** 2, rel=1e-4)


def test_two_episodes_have_a_closed_form() -> None:
    limit = scipy.stats.t.ppf(0.1, 1) ** 2
    share = 0.5 - 0.5 * math.sqrt(1.0 - math.exp(-limit / 2.0))  # -2 log(4 p (1 - p)) = limit
    low, high = empirical_likelihood_interval(3.0, np.array([-1.0, 1.0]), 0.1, 0.1)
    assert (low, high) == pytest.approx((2.0 + 2.0 * share, 4.0 - 2.0 * share), rel=1e-9)


def test_profile_is_the_tilted_mean() -> None:
    x = np.array([0.0, 0.2, 1.0])
    weights = 1.0 / (x + 0.5)
    weights /= weights.sum()
    found, mean = profile(x, math.log(0.5))
    assert found == pytest.approx(-2.0 * np.log(3.0 * weights).sum(), rel=1e-12)
    assert mean == pytest.approx(weights @ x, rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("alpha", [1e-9, 0.025, 0.4])
def test_ends_stay_inside_the_hull(n: int, alpha: float) -> None:
    x = np.concatenate([np.zeros(n - 1), [1e6]])
    low, high = empirical_likelihood_interval(float(x.mean()), x - x.mean(), alpha, alpha)
    assert 0.0 <= low < x.mean() < high <= 1e6
    mirrored = empirical_likelihood_interval(-float(x.mean()), x.mean() - x, alpha, alpha)
    assert mirrored == pytest.approx((-high, -low), rel=1e-9, abs=1e-6)


def test_ties_at_an_end_of_the_hull() -> None:
    x = np.array([0.0] * 5 + [1.0] * 5)
    low, high = empirical_likelihood_interval(0.5, x - 0.5, 0.025, 0.025)
    limit = scipy.stats.t.ppf(0.025, 9) ** 2
    # binomial likelihood: 10 log(.5) terms against 5 log p + 5 log(1 - p)
    assert -2 * (5 * math.log(2 * low) + 5 * math.log(2 * (1 - low))) == pytest.approx(limit, rel=1e-9)
    assert high == pytest.approx(1.0 - low, rel=1e-9)


def test_without_variance_without_width() -> None:
    assert empirical_likelihood_interval(2.0, np.zeros(4), 0.025, 0.025) == (2.0, 2.0)
    assert empirical_likelihood_interval(2.0, np.zeros(4), 0.025, 0.0, bartlett=True) == (2.0, math.inf)
    with pytest.raises(IntervalNotAvailable, match="at least 2 episodes, got 1"):
        empirical_likelihood_interval(2.0, np.zeros(1), 0.025, 0.025)


def test_large_symmetric_samples_have_the_t_interval() -> None:
    psi = scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    assert empirical_likelihood_interval(1.0, psi, 0.025, 0.025) == pytest.approx(
        normal_interval(1.0, psi, 0.025, 0.025), abs=2e-5
    )


def test_skewed_samples_are_covered_more_evenly_than_by_t() -> None:
    """Lognormal terms, n = 40: the upper end of t misses the mean far more often than its lower end."""
    rng, missed = np.random.default_rng(0), np.zeros((2, 2))
    for _ in range(300):
        x = rng.lognormal(size=40)
        psi = x - x.mean()
        likelihood = empirical_likelihood_interval(float(x.mean()), psi, 0.05, 0.05, bartlett=True)
        for row, (low, high) in enumerate((likelihood, normal_interval(float(x.mean()), psi, 0.05, 0.05))):
            missed[row] += (low > math.exp(0.5), high < math.exp(0.5))
    (el_low, el_high), (t_low, t_high) = missed / 300
    assert t_low < 0.02 < 0.1 < t_high
    assert el_high < t_high - 0.02
    assert t_low < el_low < 0.06


def test_the_method_is_its_function() -> None:
    class Log:
        value, influence, scores, replicates = 1.0, np.array([-1.0, 0.5, 0.5]), None, None
        episode_keys, known_propensities, effective_size = np.arange(3, dtype=np.uint64), False, None

    for bartlett in (False, True):
        expected = empirical_likelihood_interval(1.0, np.array([-1.0, 0.5, 0.5]), 0.05, 0.1, bartlett=bartlett)
        assert EmpiricalLikelihood(bartlett).bounds(Log(), 0.05, 0.1) == expected
