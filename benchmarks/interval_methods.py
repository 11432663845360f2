"""Intervals for large samples of all logs of a cell at once: what `benchmarks/intervals.py large` studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from coverage import CHECKED, LEVELS, N_REPLICATES, StoredEstimate, quantile
from scipy.special import stdtrit

from ope.inference import (
    Auto,
    EmpiricalLikelihood,
    IntervalMethod,
    StudentizedBootstrap,
    hash_identifiers,
    normal_interval,
)
from ope.inference.intervals import adjusted_t_interval, effective_freedom

SEED = 7
LARGE = ("normal", "adjusted_t", "studentized", "empirical_likelihood", "auto")
Ends = np.ndarray


def least_means(x: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return the least mean of each row whose likelihood ratio is within each of the limits, shapes (R, n), (L, R) to (L, R)."""
    least, width = x.min(axis=1), np.ptp(x, axis=1)
    above, n = (x - least[:, None]) / width[:, None], x.shape[1]
    found = []
    for limit in limits:
        near, far = np.full(len(x), -40.0), np.full(len(x), 30.0)
        for _ in range(32):
            middle = 0.5 * (near + far)
            gaps = above + np.exp(middle)[:, None]
            too_far = 2.0 * (n * np.log((1.0 / gaps).mean(axis=1)) + np.log(gaps).sum(axis=1)) > limit
            near, far = np.where(too_far, middle, near), np.where(too_far, far, middle)
        inverse = 1.0 / (above + np.exp(far)[:, None])
        found.append(least + width * (inverse * above).sum(axis=1) / inverse.sum(axis=1))
    return np.array(found)


def likelihood_ends(values: np.ndarray, psi: np.ndarray, alpha: float) -> dict[str, Ends]:
    """Return Bartlett-corrected empirical-likelihood intervals of all rows, with n - 1 and with effective freedom."""
    n = psi.shape[1]
    second = np.mean(psi**2, axis=1)
    skewness, kurtosis = (np.mean(psi**k, axis=1) / second ** (k / 2) for k in (3, 4))
    factor = 1.0 + (kurtosis / 2.0 - skewness**2 / 3.0) / n
    freedom = np.array([effective_freedom(row) for row in psi])
    limits = factor * np.array([np.full(len(psi), stdtrit(n - 1, alpha)), stdtrit(freedom, alpha)]) ** 2
    low, high = (values + sign * least_means(sign * psi, limits) for sign in (1.0, -1.0))
    pairs = np.stack([low, high], axis=-1)
    return {"empirical_likelihood": pairs[0], "effective": pairs[1]}


def studentized_ends(values: np.ndarray, psi: np.ndarray, counts: np.ndarray, alpha: float) -> Ends:
    """Return studentised bootstrap intervals of all rows; NaN where the library gives none."""
    scale = np.abs(psi).max(axis=1)
    psi = psi / scale[:, None]
    total, n = counts.sum(axis=1), psi.shape[1]
    first, second = psi @ counts.T / total, psi**2 @ counts.T / total
    spread = second - first**2
    constant = (spread <= 1e-14 * second) | (total < 2.0)
    error = np.sqrt(np.where(constant, 1.0, spread) / np.maximum(total - 1.0, 1.0))
    t = np.sort(np.where(constant, np.where(first == 0.0, 0.0, np.copysign(1e30, first)), first / error), axis=1)
    std = scale * np.sqrt((psi**2).sum(axis=1) / (n * (n - 1.0)))
    low, high = (values - std * quantile(t, np.full(len(values), p)) for p in (1.0 - alpha, alpha))
    ends = np.stack([low, high], axis=1)
    return np.where((np.abs(ends - values[:, None]) > 1e15 * std[:, None]).any(axis=1, keepdims=True), np.nan, ends)


def large_ends(values: np.ndarray, psi: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> dict[str, Ends]:
    """Return the intervals of one estimator in all logs, by method, each (R, L, 2); compared with the library's on the first."""
    sound = np.isfinite(values) & np.isfinite(psi).all(axis=1) & psi.any(axis=1)
    found = {name: np.full((len(values), len(LEVELS), 2), np.nan) for name in (*LARGE, "effective")}
    v, x = values[sound], psi[sound]
    for i, level in enumerate(LEVELS):
        alpha = (1.0 - level) / 2.0
        parts = {"studentized": studentized_ends(v, x, counts, alpha), **likelihood_ends(v, x, alpha)}
        parts["normal"] = np.array([normal_interval(*row, alpha, alpha) for row in zip(v, x, strict=True)])
        parts["adjusted_t"] = np.array([adjusted_t_interval(*row, alpha, alpha) for row in zip(v, x, strict=True)])
        for name, ends in parts.items():
            found[name][sound, i] = ends
    found["auto"] = automatic(found, psi, sizes)
    compare(values, psi, sizes, found)
    return found


def automatic(found: Mapping[str, Ends], psi: np.ndarray, sizes: np.ndarray) -> Ends:
    """Return what `Auto` chooses in every log."""
    with np.errstate(invalid="ignore"):
        unit = psi / np.abs(psi).max(axis=1, keepdims=True)
        skewness = np.abs((unit**3).sum(axis=1) / (unit**2).sum(axis=1) ** 1.5)
    rule, large = Auto(), sizes >= Auto().large
    outer = np.stack(
        [
            np.minimum(found["adjusted_t"][..., 0], found["effective"][..., 0]),
            np.maximum(found["adjusted_t"][..., 1], found["effective"][..., 1]),
        ],
        axis=-1,
    )
    names = np.select(
        [np.isnan(sizes), large & (skewness < rule.symmetric), large],
        ["adjusted_t", "normal", "empirical_likelihood"],
        "outer",
    )
    parts = {**found, "outer": outer}
    return np.array([parts[name][r] for r, name in enumerate(names)])


def compare(values: np.ndarray, psi: np.ndarray, sizes: np.ndarray, found: Mapping[str, Ends]) -> None:
    """Demand that the first logs have the library's intervals."""
    keys, tail = hash_identifiers(np.arange(psi.shape[1])), (1.0 - LEVELS[1]) / 2.0
    chosen: tuple[IntervalMethod, ...] = (StudentizedBootstrap(N_REPLICATES, SEED), EmpiricalLikelihood(), Auto())
    for r, method in product(range(CHECKED), chosen):
        ends = found[method.name][r, 1]
        if np.isfinite(ends).all():
            size = None if np.isnan(sizes[r]) else float(sizes[r])
            known = method.bounds(SizedEstimate(values[r], psi[r], None, keys, effective_size=size), tail, tail)
            np.testing.assert_allclose(ends, known, rtol=1e-4, atol=1e-4 * np.ptp(psi[r]), err_msg=method.name)


@dataclass(frozen=True)
class SizedEstimate(StoredEstimate):
    """With the effective number of episodes, by which `Auto` chooses."""

    effective_size: float | None = None
