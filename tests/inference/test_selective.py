"""The value of the estimate that was chosen: truncated normals, conditional, hybrid and split inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import integrate, stats
from scipy.optimize import brentq

from ope.inference import max_t_quantile, selected_value, std_error
from ope.inference.selective import truncated_normal_cdf, truncation

FloatArray = npt.NDArray[np.float64]


def exact_cdf(x: float, mean: float, std: float, low: float, high: float) -> float:
    mpmath: Any = pytest.importorskip("mpmath")
    with mpmath.workdps(800):
        phi = [mpmath.ncdf((mpmath.mpf(end) - mean) / std) for end in (low, x, high)]
        return float((phi[1] - phi[0]) / (phi[2] - phi[0]))


@pytest.mark.parametrize(
    ("x", "mean", "std", "low", "high"),
    [
        (0.3, 0.0, 1.0, -1.0, 2.0),
        (9.1, 0.0, 1.0, 9.0, 9.5),
        (9.1, 0.0, 1.0, 9.0, np.inf),
        (-12.3, 1.0, 2.0, -13.0, -12.0),
        (0.5, -30.0, 1.0, 0.4, np.inf),
        (0.5, 30.0, 1.0, -np.inf, 0.6),
        (1e-7, 0.0, 1.0, -1e-6, 1e-6),
        (40.01, 0.0, 1.0, 40.0, 41.0),
    ],
)
def test_truncated_normal_is_stable_in_the_tails(x: float, mean: float, std: float, low: float, high: float) -> None:
    assert truncated_normal_cdf(x, mean, std, low, high) == pytest.approx(exact_cdf(x, mean, std, low, high), rel=1e-7)


def test_truncated_normal_at_its_ends_and_falling_in_the_mean() -> None:
    assert truncated_normal_cdf(-1.0, 0.0, 1.0, -1.0, 1.0) == 0.0
    assert truncated_normal_cdf(1.5, 0.0, 1.0, -1.0, 1.0) == 1.0
    curve = [truncated_normal_cdf(1.0, mean, 1.0, 0.9, 4.0) for mean in np.linspace(-40, 10, 200)]
    assert (np.diff(curve) <= 1e-15).all()


@pytest.mark.parametrize("seed", range(12))
def test_truncation_is_where_the_same_one_is_chosen(seed: int) -> None:
    """Move the chosen value along the line on which what is independent of it stays, and look who is chosen."""
    rng = np.random.default_rng(seed)
    k = 5
    root = rng.normal(size=(k, k)) * rng.uniform(0.2, 3.0, size=k)[:, None]
    covariance = root @ root.T
    offsets = rng.uniform(0, 2, size=k)
    v = rng.normal(size=k)
    chosen = int(np.argmax(v - offsets))
    low, high = truncation(v, covariance[:, chosen], offsets, chosen)
    assert low <= v[chosen] <= high
    for y in v[chosen] + np.linspace(-20, 20, 400):
        moved = v + covariance[:, chosen] / covariance[chosen, chosen] * (y - v[chosen])
        if min(abs(y - low), abs(y - high)) > 1e-6:
            assert (int(np.argmax(moved - offsets)) == chosen) == (low <= y <= high)


def sample(n: int, mean: FloatArray, seed: int, rho: float = 0.3) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    x = np.sqrt(1 - rho) * rng.normal(size=(n, len(mean))) + np.sqrt(rho) * rng.normal(size=(n, 1)) + mean
    return x.mean(axis=0), x - x.mean(axis=0)


def test_two_independent_estimates_by_numerical_integration() -> None:
    """X_1 > X_2 with independent X truncates X_1 at X_2: invert the integral of the density."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(100, 3)) - 0.0)
    psi = q[:, :2] - q[:, :2].mean(axis=0)
    psi[:, 1] -= psi[:, 0] * (psi[:, 0] @ psi[:, 1]) / (psi[:, 0] @ psi[:, 0])
    psi[:, 1] -= psi[:, 1].mean()
    se = float(std_error(psi[:, 0]))
    v = np.array([1.0, 1.0 - 0.7 * se])

    def cdf(mean: float) -> float:
        density = stats.norm(mean, se).pdf
        total = integrate.quad(density, v[1], v[1] + 40 * se, epsabs=0, epsrel=1e-10, points=[v[0]])[0]
        return float(integrate.quad(density, v[1], v[0], epsabs=0, epsrel=1e-10)[0] / total)

    expected = [brentq(lambda m, a=a: cdf(m) - a, 1 - 12 * se, 1 + 6 * se) for a in (0.95, 0.5, 0.05)]
    found = selected_value(v, psi, level=0.9, method="conditional")
    assert [found.low, found.value, found.high] == pytest.approx(expected, rel=1e-6)
    assert found.value < found.naive_value == 1.0


def test_hybrid_stays_within_its_first_step() -> None:
    v, psi = sample(80, np.zeros(6), 4)
    v[0], v[1] = 1.0, 1.0 - 1e-9
    found = selected_value(v, psi)
    width = max_t_quantile(psi, 0.005) * float(std_error(psi[:, 0]))
    assert found.chosen == 0
    assert 1.0 - width <= found.low <= found.value <= found.high <= 1.0 + width
    conditional = selected_value(v, psi, method="conditional")
    assert conditional.value < 1.0 - width


def test_a_clear_choice_needs_no_correction() -> None:
    v, psi = sample(100, np.array([0.0, 3.0, 0.0]), 1)
    for method in ("hybrid", "conditional"):
        found = selected_value(v, psi, method=method)
        assert found.value == pytest.approx(found.naive_value, rel=1e-9)
        assert found.low == pytest.approx(found.naive_low, rel=2e-2)
    alone = selected_value(v[:1], psi[:, :1], method="conditional")
    assert (alone.low, alone.high) == pytest.approx((alone.naive_low, alone.naive_high))


@pytest.mark.parametrize("by_bound", [False, True])
def test_median_and_coverage_after_choosing_among_equals(by_bound: bool) -> None:
    mean, trials = np.zeros(6), 300
    rows = []
    for seed in range(trials):
        v, psi = sample(50, mean, seed)
        psi = psi * np.array([1.0, 1.0, 1.2, 1.2, 1.5, 1.5])
        v = v * np.array([1.0, 1.0, 1.2, 1.2, 1.5, 1.5])
        scores = v - 1.7 * std_error(psi) if by_bound else v
        found = selected_value(v, psi, scores, level=0.9, n_replicates=500)
        rows.append((found.value > 0, found.naive_value > 0, found.low <= 0 <= found.high, found.naive_low > 0))
    above, naive_above, covered, naive_wrong = np.mean(rows, axis=0)
    assert above == pytest.approx(0.5, abs=3.5 * np.sqrt(0.25 / trials))
    assert naive_above > 0.8
    assert covered > 0.9 - 3.5 * np.sqrt(0.09 / trials)
    assert naive_wrong > 0.08


def test_split_is_a_choice_by_one_half_and_a_mean_over_the_other() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    half = rng.uniform(size=30) < 0.5
    found = selected_value(x.mean(axis=0), x - x.mean(axis=0), method="split", half=half)
    chosen = int(np.argmax(x[half].mean(axis=0)))
    rest = x[~half, chosen]
    assert found.chosen == chosen
    assert found.value == pytest.approx(rest.mean())
    assert (found.high - found.low) / 2 == pytest.approx(stats.norm.ppf(0.975) * stats.sem(rest))


def test_split_by_bound_uses_the_bound_of_the_half() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3)) * [1.0, 2.0, 4.0]
    psi, half = x - x.mean(axis=0), np.arange(40) < 10
    scores = x.mean(axis=0) - 1.7 * std_error(psi)
    found = selected_value(x.mean(axis=0), psi, scores, method="split", half=half)
    bounds = x[half].mean(axis=0) - 2.0 * 1.7 * std_error(psi)
    assert found.chosen == int(np.argmax(bounds))


def test_refused_candidates_are_not_chosen_and_bind_nothing() -> None:
    v, psi = sample(60, np.array([0.0, 0.1, 5.0]), 2)
    found = selected_value(v, psi, [v[0], v[1], -np.inf])
    without = selected_value(v[:2], psi[:, :2])
    assert found.chosen == without.chosen
    assert (found.low, found.value, found.high) == pytest.approx((without.low, without.value, without.high), rel=1e-9)


def test_no_variance_leaves_the_value() -> None:
    found = selected_value([1.0, 0.0], np.column_stack([np.zeros(5), [1.0, -1.0, 0.0, 0.0, 0.0]]))
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "guess"}, "`method` must be one of"),
        ({"level": 95}, r"`level` must lie in \(0, 1\)"),
        ({"scores": [1.0]}, "must be as many"),
        ({"scores": [-np.inf, -np.inf]}, "at least one finite"),
        ({"method": "split"}, "`half` must mark"),
        ({"method": "split", "half": np.ones(5, dtype=bool)}, "leave two to value"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: str) -> None:
    psi = np.random.default_rng(0).normal(size=(5, 2))
    with pytest.raises(ValueError, match=words):
        selected_value([1.0, 0.5], psi - psi.mean(axis=0), **arguments)  # type: ignore[arg-type]
