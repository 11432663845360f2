"""Simultaneous bands around a distribution function: Dvoretzky-Kiefer-Wolfowitz, multipliers, and betting with unbounded weights."""

from __future__ import annotations

import math

import numpy as np

from ope.inference.betting import mixture_lower
from ope.return_sample import ReturnSample
from ope.validation import FloatArray

Band = tuple[FloatArray, FloatArray]
COLUMNS = 64


def dkw_width(n: int, level: float) -> float:
    """Return sqrt(ln(2 / (1 - level)) / (2 n)), the half width of the band of Dvoretzky, Kiefer and Wolfowitz.

    Notes
    -----
    Holds for every n and every distribution of n independent, equally weighed returns (Massart 1990). Not for weighed ones.

    Examples
    --------
    >>> round(dkw_width(100, 0.95), 4)
    0.1358
    """
    return math.sqrt(math.log(2.0 / (1.0 - level)) / (2.0 * n))


def band_width(squares: FloatArray, cdf: FloatArray, level: float, n_replicates: int, seed: int) -> float:
    """Return the half width of a simultaneous band around a self-normalised distribution function.

    Parameters
    ----------
    squares : ndarray of shape (m,)
        Sum of the squared shares of the episodes at each point of the grid.
    cdf : ndarray of shape (m,)
    level : float
    n_replicates, seed : int

    Examples
    --------
    >>> m = 400
    >>> width = band_width(np.full(m, 1 / m**2), np.arange(1, m + 1) / m, 0.95, 4000, 0)
    >>> abs(width * m**0.5 - 1.36) < 0.08
    True
    """
    # Normal multipliers of the episodes of one point add up to one normal variable: the cost does not grow with n.
    rng, half = np.random.default_rng(seed), np.empty(n_replicates)
    for b in range(0, n_replicates, 500):
        z = rng.standard_normal((min(500, n_replicates - b), len(squares)))
        walk = np.cumsum(z * np.sqrt(squares), axis=1)
        half[b : b + 500] = np.abs(walk - cdf * walk[:, -1:]).max(axis=1)
    return float(np.quantile(half, level))


def indicators(sample: ReturnSample, points: FloatArray) -> FloatArray:
    """Return 1{G_i <= x_k}, shape (n, k)."""
    return (sample.returns[:, None] <= points).astype(np.float64)


def covariance_width(
    sample: ReturnSample, points: FloatArray, cdf: FloatArray, level: float, n_replicates: int, seed: int
) -> float:
    """Return the half width of a simultaneous band from the influence of the distribution function at every point.

    Parameters
    ----------
    sample : ReturnSample
    points, cdf : ndarray of shape (m,)
        Estimated function at these points.
    level : float
    n_replicates, seed : int

    Notes
    -----
    The quantile of the largest of m normal variables with covariance sum_i psi_i psi_i^T / n^2: what normal multipliers of the
    episodes give, drawn from their covariance.

    Examples
    --------
    >>> x = np.arange(400.0)
    >>> sample = ReturnSample("is", x, np.ones(400), np.ones(400))
    >>> width = covariance_width(sample, x, (x + 1) / 400, 0.95, 4000, 0)
    >>> abs(width * 20 - 1.36) < 0.08
    True
    """
    psi = np.empty((len(sample.returns), len(points)), dtype=np.float32)
    for k in range(0, len(points), COLUMNS):
        part = slice(k, k + COLUMNS)
        psi[:, part] = sample.deviations(indicators(sample, points[part]), cdf[part])
    covariance = (psi.T @ psi).astype(np.float64) / len(psi) ** 2
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-7 * max(float(values[-1]), 0.0)
    root = vectors[:, kept] * np.sqrt(values[kept])
    z = np.random.default_rng(seed).standard_normal((n_replicates, root.shape[1]))
    half = np.concatenate([np.abs(z[b : b + 500] @ root.T).max(axis=1) for b in range(0, n_replicates, 500)])
    return float(np.quantile(half, level))


def betting_band(w: FloatArray, returns: FloatArray, points: FloatArray, level: float) -> Band:
    """Return bounds of F at points that were fixed before the data, together right with probability `level` for every n.

    Parameters
    ----------
    w : ndarray of shape (n,)
        True importance weights of independent episodes, of expectation 1; no bound of them is needed.
    returns : ndarray of shape (n,)
    points : ndarray of shape (K,)
        Rising.
    level : float

    Returns
    -------
    tuple of ndarray of shape (K,)
        Rising, in [0, 1].

    Notes
    -----
    F(x) = E[W 1{G <= x}] = 1 - E[W 1{G > x}], because E W = 1: two lower bounds of non-negative means by betting
    (`ope.inference.betting.mixture_lower`), each with error (1 - level) / (2 K). By Bonferroni's inequality all 2 K hold together.

    References
    ----------
    Chandak, Niekum, da Silva, Learned-Miller, Brunskill, Thomas (2021), "Universal off-policy evaluation", for bounds at points
    made a band; Waudby-Smith & Ramdas (2024), doi:10.1093/jrsssb/qkad009, for the bounds.

    Examples
    --------
    >>> low, high = betting_band(np.ones(400), np.arange(400.0), np.array([199.0]), 0.95)
    >>> low.round(2), high.round(2)
    (array([0.41]), array([0.59]))
    """
    alpha = (1.0 - level) / (2 * len(points))
    low = [mixture_lower(w * (returns <= x), alpha) for x in points]
    high = [1.0 - mixture_lower(w * (returns > x), alpha) for x in points]
    return monotone(np.array(low), np.array(high))


def monotone(low: FloatArray, high: FloatArray) -> Band:
    """Return the band of the rising functions inside a band, within [0, 1]: it loses none of them.

    Examples
    --------
    >>> monotone(np.array([-0.1, 0.3, 0.2]), np.array([0.5, 0.4, 1.2]))
    (array([0. , 0.3, 0.3]), array([0.4, 0.4, 1. ]))
    """
    rising = np.maximum.accumulate(np.clip(low, 0.0, 1.0))
    falling = np.minimum.accumulate(np.clip(high, 0.0, 1.0)[::-1])[::-1]
    return rising, falling


def spread(band: Band, points: FloatArray, grid: FloatArray) -> Band:
    """Return a band given at `points` at every point of `grid`: F rises, so that the points around bound it.

    Examples
    --------
    >>> spread((np.array([0.2]), np.array([0.6])), np.array([1.0]), np.array([0.0, 1.0, 2.0]))
    (array([0. , 0.2, 0.2]), array([0.6, 0.6, 1. ]))
    """
    low, high = np.append(0.0, band[0]), np.append(band[1], 1.0)
    return low[np.searchsorted(points, grid, side="right")], high[np.searchsorted(points, grid, side="left")]
