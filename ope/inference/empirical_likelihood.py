"""Empirical likelihood for the mean of the episodes' influence values."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from ope.inference.checks import FloatArray, check_tails, finite_array
from ope.inference.intervals import ROUNDING, Ends, require_two
from ope.inference.roots import falling_root

__all__ = ["bartlett_factor", "empirical_likelihood_interval", "profile"]

_NEAREST, _FURTHEST = -600.0, 60.0  # logarithms of the distance to the hull, in units of its width


def empirical_likelihood_interval(
    value: float,
    influence: FloatArray,
    alpha_low: float,
    alpha_high: float,
    *,
    bartlett: bool = False,
    freedom: float | None = None,
) -> Ends:
    """Compute the empirical-likelihood interval of an asymptotically linear estimate.

    Parameters
    ----------
    value : float
        The estimate V.
    influence : ndarray of shape (n,)
        Centred influence values psi.
    alpha_low, alpha_high : float
        Probability that the target lies below `low`, above `high`; more than 1/2 counts as 1/2.
    bartlett : bool
        Whether to lengthen the interval by `bartlett_factor`, the second-order error of its coverage.
    freedom : float, optional
        Degrees of freedom of the t quantile; default: n - 1.

    Returns
    -------
    tuple of (float, float)
        Inside the hull [V + min psi, V + max psi]; of zero width if all influence values are equal.

    Raises
    ------
    IntervalNotAvailable
        For a single episode.

    Notes
    -----
    Of the means m that weights p on the episodes can give, those with -2 sum log(n p_i) <= t_{n-1, 1-alpha}^2, that is
    the chi-square limit of Wilks' theorem with the quantile of F(1, n-1), times the Bartlett factor if asked. The best weights for a mean below V are
    p_i proportional to 1 / (psi_i - tau) with tau below min psi: one tau gives both the mean and the likelihood, so an
    end is one root, exact up to the ends of the hull, where the likelihood ratio is infinite.

    References
    ----------
    Owen (1990), "Empirical likelihood ratio confidence regions", doi:10.1214/aos/1176347494. DiCiccio, Hall & Romano (1991),
    "Empirical likelihood is Bartlett-correctable", doi:10.1214/aos/1176348137.

    Examples
    --------
    Two episodes have p and 1 - p, and -2 log(4 p (1 - p)) = t^2 is a quadratic equation:

    >>> import numpy as np
    >>> low, high = empirical_likelihood_interval(0.5, np.array([-0.5, 0.5]), 0.25, 0.25)
    >>> round(low, 4), round(high, 4)
    (0.1864, 0.8136)
    """
    check_tails("empirical_likelihood_interval", alpha_low, alpha_high)
    psi = finite_array("empirical_likelihood_interval", "influence", influence)
    require_two("empirical_likelihood_interval", len(psi))
    factor, df = bartlett_factor(psi) if bartlett else 1.0, len(psi) - 1.0 if freedom is None else freedom
    return (
        value + _extreme(psi, factor * _limit(df, alpha_low)) if alpha_low > 0.0 else -math.inf,
        value - _extreme(-psi, factor * _limit(df, alpha_high)) if alpha_high > 0.0 else math.inf,
    )


def bartlett_factor(influence: FloatArray) -> float:
    """Return 1 + (kurtosis / 2 - skewness^2 / 3) / n, by which the likelihood ratio exceeds chi-square in expectation.

    Parameters
    ----------
    influence : ndarray of shape (n,)
        Centred influence values; their empirical moments are used, with divisor n.

    Returns
    -------
    float
        More than 1, as skewness^2 < kurtosis; 1 without variance.

    Examples
    --------
    >>> import numpy as np
    >>> bartlett_factor(np.array([-1.0, 1.0]))
    1.25
    """
    scale = float(np.abs(influence).max())
    if scale == 0.0:
        return 1.0
    psi = influence / scale
    variance = float(np.mean(psi**2))
    skewness, kurtosis = float(np.mean(psi**3)) / variance**1.5, float(np.mean(psi**4)) / variance**2
    return 1.0 + float(kurtosis / 2.0 - skewness**2 / 3.0) / len(psi)


def profile(above: FloatArray, log_distance: float) -> tuple[float, float]:
    """Return -2 log likelihood ratio and mean of the weights 1 / (x - tau), tau at a distance below the least x.

    Parameters
    ----------
    above : ndarray of shape (n,)
        x - min x.
    log_distance : float
        Logarithm of min x - tau.

    Returns
    -------
    tuple of (float, float)
        The statistic, and the mean above min x.

    Examples
    --------
    >>> import numpy as np
    >>> statistic, mean = profile(np.array([0.0, 1.0]), 0.0)
    >>> round(statistic, 4), round(mean, 4)
    (0.2356, 0.3333)
    """
    gaps = above + math.exp(log_distance)
    inverse = 1.0 / gaps
    mean_inverse = float(inverse.mean())
    statistic = 2.0 * float(len(gaps) * math.log(mean_inverse) + np.log(gaps).sum())
    return statistic, float(inverse @ above) / (len(gaps) * mean_inverse)


def _limit(freedom: float, alpha: float) -> float:
    # Beyond 1/2 an end would lie on the other side of the estimate.
    quantile = float(stdtrit(freedom, min(alpha, 0.5)))
    return quantile * quantile


def _extreme(psi: FloatArray, limit: float) -> float:
    """Return the least mean whose statistic is within the limit."""
    least, width = float(psi.min()), float(np.ptp(psi))
    if width <= ROUNDING * float(np.abs(psi).max()):
        return 0.0
    above = (psi - least) / width
    distance = falling_root(lambda log_distance: profile(above, log_distance)[0] - limit, _NEAREST, _FURTHEST)
    return least + width * profile(above, distance)[1]
