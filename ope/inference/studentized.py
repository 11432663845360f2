"""Studentised bootstrap: the distribution of (replicate - estimate) / standard error of the replicate."""

from __future__ import annotations

import math

import numpy as np

from ope.inference.checks import FloatArray, IntervalNotAvailable, check_tails
from ope.inference.intervals import Ends, require_replicates, require_two, std_error
from ope.inference.mixing import UIntArray
from ope.inference.weights import weighted_sums

__all__ = ["studentized_interval", "t_replicates"]


def t_replicates(influence: FloatArray, keys: UIntArray, n_replicates: int, *, seed: int = 0) -> FloatArray:
    """Draw bootstrap replicates of the t statistic of an asymptotically linear estimate.

    Parameters
    ----------
    influence : ndarray of shape (n,)
        Centred influence values psi.
    keys : ndarray of uint64 of shape (n,)
        Hashes of the episode identifiers.
    n_replicates, seed : int

    Returns
    -------
    ndarray of shape (n_replicates,)
        m_b / se_b; infinite where a resample holds one distinct value other than 0, 0 where that value is 0.

    Notes
    -----
    Episodes are drawn with Poisson(1) counts c: N_b = sum c_i, m_b = sum c_i psi_i / N_b and
    se_b^2 = sum c_i (psi_i - m_b)^2 / (N_b (N_b - 1)), the standard error that the resample itself would report.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.inference import hash_identifiers
    >>> t_replicates(np.array([-1.0, 0.0, 1.0]), hash_identifiers(range(3)), 5).shape
    (5,)
    """
    scale = float(np.abs(influence).max()) or 1.0
    psi = influence / scale
    sums, totals = weighted_sums(np.column_stack([psi, psi**2]), keys, n_replicates, seed=seed, kind="poisson")
    means = sums[:, 0] / totals
    spread = sums[:, 1] / totals - means**2
    # Rounding leaves a resample of equal values a spread of 1e-17 instead of 0.
    constant = (spread <= 1e-14 * sums[:, 1] / totals) | (totals < 2.0)
    error = np.sqrt(np.where(constant, 1.0, spread) / np.maximum(totals - 1.0, 1.0))
    return np.where(constant, np.where(means == 0.0, 0.0, np.copysign(np.inf, means)), means / error)


def studentized_interval(
    value: float, influence: FloatArray, t_values: FloatArray, alpha_low: float, alpha_high: float
) -> Ends:
    """Compute the studentised bootstrap interval.

    Parameters
    ----------
    value : float
        The estimate V.
    influence : ndarray of shape (n,)
        Centred influence values.
    t_values : ndarray of shape (B,)
        Replicates of the t statistic, see `t_replicates`.
    alpha_low, alpha_high : float
        Probability that the target lies below `low`, above `high`; at least 1 / (B + 1), or 0.

    Returns
    -------
    tuple of (float, float)
        V minus standard error times the 1 - alpha_low and alpha_high quantiles; of zero width without variance.

    Raises
    ------
    IntervalNotAvailable
        If so many resamples hold one distinct value that an end would be infinite, or a tail holds no replicate.

    References
    ----------
    Efron & Tibshirani (1993), "An introduction to the bootstrap", section 12.5.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = studentized_interval(2.0, np.array([-1.0, 0.0, 1.0]), np.arange(-49.0, 50.0), 0.1, 0.1)
    >>> round(low, 3), round(high, 3)
    (-21.094, 25.094)
    """
    owner = "studentized_interval"
    check_tails(owner, alpha_low, alpha_high)
    require_two(owner, len(influence))
    finite = np.isfinite(t_values)
    require_replicates(owner, np.where(finite, t_values, 0.0), alpha_low, alpha_high)
    error = float(std_error(influence))
    if error == 0.0:
        return value if alpha_low > 0.0 else -math.inf, value if alpha_high > 0.0 else math.inf
    low = value - error * _order(t_values, 1.0 - alpha_low) if alpha_low > 0.0 else -math.inf
    high = value - error * _order(t_values, alpha_high) if alpha_high > 0.0 else math.inf
    if (alpha_low > 0.0 and math.isinf(low)) or (alpha_high > 0.0 and math.isinf(high)):
        raise IntervalNotAvailable(
            f"{owner}: {int((~finite).sum())} of {len(t_values)} resamples hold one distinct value only, so their t "
            "statistics are infinite: too few episodes carry this estimate; use a bound with a given range, or log more."
        )
    return low, high


def _order(t_values: FloatArray, probability: float) -> float:
    """Return a quantile as `percentile_interval` defines it; infinite replicates are the outermost."""
    ordered = np.sort(t_values)
    place = probability * (len(ordered) + 1) - 1.0
    below = min(max(math.floor(place), 0), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    low, high = float(ordered[below]), float(ordered[above])
    share = min(max(place - below, 0.0), 1.0)
    return low if share == 0.0 or low == high else low + share * (high - low)
