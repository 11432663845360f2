"""Several estimates at once: simultaneous critical values and adjusted p-values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from ope.inference.checks import FloatArray, finite_array
from ope.inference.intervals import require_two

_ROWS_AT_A_TIME = 4096


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Adjust p-values by Holm's step-down procedure.

    Parameters
    ----------
    p_values : array-like of shape (m,)
        In [0, 1], under any dependence.

    Returns
    -------
    ndarray of shape (m,)
        Adjusted p-values in the given order: rejecting those at most alpha keeps the probability of any false rejection
        at most alpha.

    Notes
    -----
    With p_(1) <= ... <= p_(m): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).

    References
    ----------
    Holm (1979), "A simple sequentially rejective multiple test procedure".

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = finite_array("holm", "p_values", p_values)
    if p.min() < 0.0 or p.max() > 1.0:
        raise ValueError(f"holm: `p_values` must lie in [0, 1], got values from {p.min()} to {p.max()}.")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def max_t_quantile(
    influence: FloatArray, alpha: float, n_replicates: int = 20_000, seed: int = 0, *, two_sided: bool = True
) -> float:
    """Find the critical value c of simultaneous intervals V_k -+ c se_k.

    Parameters
    ----------
    influence : ndarray of shape (n, K)
        Centred influence values of K estimates on the same n episodes. Columns without variance play no part.
    alpha : float
        Probability that any of the K intervals misses, in (0, 1).
    n_replicates : int
        Number of simulated maxima.
    seed : int
        Seed of the simulation.
    two_sided : bool
        False for one-sided bounds.

    Returns
    -------
    float

    Raises
    ------
    IntervalNotAvailable
        For a single episode.

    Notes
    -----
    Multiplier bootstrap: the 1 - alpha quantile of max_k |Z_k| (or max_k Z_k), Z_k = sum_i xi_i psi_ik /
    sqrt(sum_i psi_ik^2) with standard normal xi_i. Given psi these Z are exactly normal with the correlations of psi
    as covariance, so they are drawn as such, at a cost that does not grow with n, and divided by
    sqrt(chi^2_{n-1} / (n - 1)), which makes K = 1 the t interval. The result is kept between the t quantiles for
    K = 1 and of Bonferroni, between which the exact value lies.

    References
    ----------
    Chernozhukov, Chetverikov & Kato (2013), doi:10.1214/13-AOS1161. Hothorn, Bretz & Westfall (2008),
    doi:10.1002/bimj.200810425.

    Examples
    --------
    >>> import numpy as np
    >>> psi = np.array([[-1.0, 1.0], [0.0, -2.0], [1.0, 1.0], [2.0, 0.0], [-2.0, 0.0]])
    >>> one, two = max_t_quantile(psi[:, :1], 0.05), max_t_quantile(psi, 0.05)
    >>> round(one, 3), one < two
    (2.776, True)
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"max_t_quantile: `alpha` must lie in (0, 1), got {alpha!r}; 0.05 is usual.")
    psi = finite_array("max_t_quantile", "influence", influence, (2,))
    require_two("max_t_quantile", len(psi))
    scale = np.abs(psi).max(axis=0)
    psi = psi[:, scale > 0.0] / scale[scale > 0.0]
    sides, freedom = (2 if two_sided else 1), len(psi) - 1
    single = -float(stdtrit(freedom, alpha / sides))
    if psi.shape[1] <= 1:
        return single
    bonferroni = -float(stdtrit(freedom, alpha / sides / psi.shape[1]))
    maxima = _simulate_maxima(_correlation_root(psi), freedom, n_replicates, seed, two_sided)
    quantile = float(np.quantile(maxima, 1.0 - alpha, method="weibull"))
    return min(max(quantile, single), bonferroni)


def _correlation_root(psi: FloatArray) -> FloatArray:
    # The symmetric root does not depend on the signs that the decomposition happens to give its vectors.
    unit = psi / np.sqrt(np.square(psi).sum(axis=0))
    values, vectors = np.linalg.eigh(unit.T @ unit)
    root: FloatArray = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


def _simulate_maxima(root: FloatArray, freedom: int, n_replicates: int, seed: int, two_sided: bool) -> FloatArray:
    rng = np.random.default_rng(seed)
    maxima = np.empty(n_replicates)
    for first in range(0, n_replicates, _ROWS_AT_A_TIME):
        rows = slice(first, min(first + _ROWS_AT_A_TIME, n_replicates))
        z = rng.standard_normal((rows.stop - rows.start, len(root))) @ root
        maxima[rows] = (np.abs(z) if two_sided else z).max(axis=1)
    return maxima / np.sqrt(rng.chisquare(freedom, n_replicates) / freedom)
