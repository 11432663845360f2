"""Confidence intervals from influence values and from replicates.

Every function takes the two tail probabilities and returns (low, high). A tail probability of 0 leaves its end
infinite, so a one-sided bound is the same function.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

from ope.inference.checks import FloatArray, IntervalNotAvailable, check_tails, finite_array

Ends = tuple[float, float]


ROUNDING = 1e-12


def std_error(influence: FloatArray) -> FloatArray:
    """Compute the standard error of an estimate from its influence values.

    Parameters
    ----------
    influence : ndarray of shape (n,) or (n, K)
        Centred influence values, one row per episode.

    Returns
    -------
    ndarray of shape () or (K,)
        sqrt(sum_i psi_i^2 / (n (n - 1))), in the unit of the estimate; NaN for a single episode.

    Examples
    --------
    >>> import numpy as np
    >>> float(std_error(np.array([-1.0, 0.0, 1.0])))
    0.577...
    """
    psi = finite_array("std_error", "influence", influence, (1, 2))
    n = len(psi)
    # The scale is taken out so that squares of tiny or huge values neither vanish nor overflow.
    scale = np.abs(psi).max(axis=0)
    safe = np.where(scale > 0.0, scale, 1.0)
    root = np.sqrt(np.square(psi / safe).sum(axis=0) / n)
    return np.asarray(safe * root / math.sqrt(n - 1) if n > 1 else np.full(scale.shape, np.nan))


def normal_interval(value: float, influence: FloatArray, alpha_low: float, alpha_high: float) -> Ends:
    """Compute the t interval of an asymptotically linear estimate.

    Parameters
    ----------
    value : float
        The estimate V.
    influence : ndarray of shape (n,)
        Centred influence values psi.
    alpha_low, alpha_high : float
        Probability that the target lies below `low`, above `high`.

    Returns
    -------
    tuple of (float, float)

    Raises
    ------
    IntervalNotAvailable
        For a single episode.

    Notes
    -----
    V +- t_{n-1, 1-alpha} sqrt(sum psi^2 / (n (n - 1))). Of zero width if all influence values are 0.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = normal_interval(2.0, np.array([-1.0, 0.0, 1.0]), 0.025, 0.025)
    >>> round(low, 4), round(high, 4)
    (-0.4841, 4.4841)
    """
    check_tails("normal_interval", alpha_low, alpha_high)
    psi = finite_array("normal_interval", "influence", influence)
    require_two("normal_interval", len(psi))
    error, freedom = float(std_error(psi)), len(psi) - 1
    return (
        value + error * float(stdtrit(freedom, alpha_low)) if alpha_low > 0.0 else -math.inf,
        value - error * float(stdtrit(freedom, alpha_high)) if alpha_high > 0.0 else math.inf,
    )


def effective_freedom(influence: FloatArray) -> float:
    """Return how many degrees of freedom the standard error of an estimate has.

    Parameters
    ----------
    influence : ndarray of shape (n,)
        Centred influence values psi.

    Returns
    -------
    float
        At most n - 1, which normal psi have; little more than 2 where one episode carries the variance.

    Notes
    -----
    Satterthwaite's 2 E[s^2]^2 / Var(s^2) = 2 n / (kurtosis - 1) = 2 m n / (n - m), with m = (sum psi^2)^2 / sum psi^4 the number of
    episodes that carry the variance.

    References
    ----------
    Satterthwaite (1946), "An approximate distribution of estimates of variance components", doi:10.2307/3002019.

    Examples
    --------
    >>> import numpy as np
    >>> effective_freedom(np.array([-1.0, 1.0] * 10)), round(effective_freedom(np.array([9.0] + [-1.0] * 9)), 2)
    (19.0, 2.81)
    """
    psi = finite_array("effective_freedom", "influence", influence)
    n, scale = len(psi), float(np.abs(psi).max(initial=0.0))
    if scale == 0.0:
        return float(n - 1)
    squares = np.square(psi / scale)
    carried = float(squares.sum() ** 2 / np.square(squares).sum())
    return float(n - 1) if carried >= n else min(2.0 * carried * n / (n - carried), float(n - 1))


def adjusted_t_interval(value: float, influence: FloatArray, alpha_low: float, alpha_high: float) -> Ends:
    """Compute the t interval with the degrees of freedom that the variance has, longer on the side of the skewness.

    Parameters
    ----------
    value, influence, alpha_low, alpha_high
        As in `normal_interval`.

    Returns
    -------
    tuple of (float, float)

    Raises
    ------
    IntervalNotAvailable
        For a single episode.

    Notes
    -----
    V +- t se with t of `effective_freedom` degrees, and on the heavy side (1 + 2 t^2) mu_3 / (6 n sigma^2) more, Johnson's correction
    of the second order. Only outwards: the light side keeps its t, because mu_3 is itself known badly where it matters.

    References
    ----------
    Johnson (1978), "Modified t tests and confidence intervals for asymmetrical populations", doi:10.1080/01621459.1978.10480051.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = adjusted_t_interval(2.0, np.array([-1.0, -1.0, -1.0, 3.0]), 0.025, 0.025)
    >>> round(2.0 - low, 3), round(high - 2.0, 3)
    (3.182, 4.954)
    """
    check_tails("adjusted_t_interval", alpha_low, alpha_high)
    psi = finite_array("adjusted_t_interval", "influence", influence)
    require_two("adjusted_t_interval", len(psi))
    error, freedom = float(std_error(psi)), effective_freedom(psi)
    scale = float(np.abs(psi).max()) or 1.0
    unit = psi / scale
    third = scale * float((unit**3).sum() / max(float((unit**2).sum()), 1.0)) / len(psi)  # mu_3 / (n sigma^2)

    def reach(alpha: float, sign: float) -> float:
        t = -float(stdtrit(freedom, alpha))
        return t * error + max(sign * third, 0.0) * (1.0 + 2.0 * t * t) / 6.0

    return (
        value - reach(alpha_low, -1.0) if alpha_low > 0.0 else -math.inf,
        value + reach(alpha_high, 1.0) if alpha_high > 0.0 else math.inf,
    )


def percentile_interval(replicates: FloatArray, alpha_low: float, alpha_high: float) -> Ends:
    """Compute the percentile interval: the quantiles of the replicates.

    Parameters
    ----------
    replicates : ndarray of shape (B,)
        Bootstrap replicates of the estimate.
    alpha_low, alpha_high : float
        Probability that the target lies below `low`, above `high`; at least 1 / (B + 1), or 0.

    Returns
    -------
    tuple of (float, float)

    Raises
    ------
    IntervalNotAvailable
        If a tail holds no replicate.

    Notes
    -----
    The p quantile is the (B + 1) p-th smallest replicate, interpolated.

    Examples
    --------
    >>> import numpy as np
    >>> percentile_interval(np.arange(1.0, 100.0), 0.05, 0.05)
    (5.0, 95.0)
    """
    sample = require_replicates("percentile_interval", replicates, alpha_low, alpha_high)
    return (
        _quantile(sample, alpha_low) if alpha_low > 0.0 else -math.inf,
        _quantile(sample, 1.0 - alpha_high) if alpha_high > 0.0 else math.inf,
    )


def basic_interval(value: float, replicates: FloatArray, alpha_low: float, alpha_high: float) -> Ends:
    """Compute the basic interval: the percentile interval reflected at the estimate.

    Parameters
    ----------
    value : float
        The estimate V.
    replicates, alpha_low, alpha_high
        As in `percentile_interval`.

    Returns
    -------
    tuple of (float, float)

    Raises
    ------
    IntervalNotAvailable
        If a tail holds no replicate.

    Notes
    -----
    [2 V - q_{1 - alpha_low}, 2 V - q_{alpha_high}], from the law of V* - V.

    Examples
    --------
    >>> import numpy as np
    >>> basic_interval(40.0, np.arange(1.0, 100.0), 0.05, 0.05)
    (-15.0, 75.0)
    """
    low, high = percentile_interval(replicates, alpha_high, alpha_low)
    return 2.0 * value - high, 2.0 * value - low


def bca_interval(
    value: float, replicates: FloatArray, influence: FloatArray, alpha_low: float, alpha_high: float
) -> Ends:
    """Compute the bias-corrected and accelerated interval.

    Parameters
    ----------
    value : float
        The estimate V.
    replicates : ndarray of shape (B,)
        Bootstrap replicates of the estimate.
    influence : ndarray of shape (n,)
        Centred influence values, for the acceleration.
    alpha_low, alpha_high : float
        As in `percentile_interval`.

    Returns
    -------
    tuple of (float, float)

    Raises
    ------
    IntervalNotAvailable
        If a tail holds no replicate, or all replicates lie on one side of the estimate.

    Notes
    -----
    The quantiles of the percentile interval move to Phi(z0 + (z0 + z) / (1 - a (z0 + z))), with z0 the normal quantile
    of the share of replicates below V (ties count one half) and a = sum psi^3 / (6 (sum psi^2)^1.5), 0 without
    variance. A quantile that moves beyond the replicates is the extreme replicate.

    References
    ----------
    Efron (1987), "Better bootstrap confidence intervals", doi:10.1080/01621459.1987.10478410.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = bca_interval(50.0, np.arange(1.0, 100.0), np.array([-1.0, 1.0]), 0.05, 0.05)
    >>> round(low, 6), round(high, 6)
    (5.0, 95.0)
    """
    sample = require_replicates("bca_interval", replicates, alpha_low, alpha_high)
    psi = finite_array("bca_interval", "influence", influence)
    z0, acceleration = _bias_correction(value, sample), _acceleration(psi)
    return (
        _quantile(sample, _adjusted(alpha_low, z0, acceleration)) if alpha_low > 0.0 else -math.inf,
        _quantile(sample, _adjusted(1.0 - alpha_high, z0, acceleration)) if alpha_high > 0.0 else math.inf,
    )


def expanded_tail(alpha: float, freedom: float, variance_ratio: float) -> float:
    """Return the tail probability at which the quantile of bootstrap replicates is as far out as that of a t interval.

    Parameters
    ----------
    alpha : float
        Tail probability that is asked for.
    freedom : float
        Degrees of freedom of the standard error: n - 1, or `effective_freedom`.
    variance_ratio : float
        Unbiased variance of the estimate over the variance of its replicates: n / (n - 1) for multinomial counts, about 1 for
        Poisson(1) counts, (n + 1) / (n - 1) for Exponential(1) weights.

    Returns
    -------
    float
        Phi(t_{freedom, alpha} sqrt(variance_ratio)), close to `alpha` for large n; 0 stays 0.

    References
    ----------
    Hesterberg (2015), "What teachers should know about the bootstrap", doi:10.1080/00031305.2015.1089789: the expanded
    percentile interval.

    Examples
    --------
    >>> round(expanded_tail(0.025, 31, 33 / 31), 4), round(expanded_tail(0.025, 10**6, 1.0), 4)
    (0.0177, 0.025)
    """
    if alpha == 0.0:
        return 0.0
    return float(ndtr(stdtrit(freedom, alpha) * math.sqrt(variance_ratio)))


def require_two(owner: str, n_episodes: int) -> None:
    """Refuse an interval from a single episode."""
    if n_episodes < 2:
        raise IntervalNotAvailable(
            f"{owner}: needs at least 2 episodes, got {n_episodes}: one episode says nothing about the spread; "
            "collect more episodes."
        )


def _bias_correction(value: float, replicates: FloatArray) -> float:
    # Replicates of constant data differ from the value by rounding alone, which is no bias.
    equal = np.abs(replicates - value) <= ROUNDING * abs(value)
    share = float(np.mean((replicates < value) & ~equal) + 0.5 * np.mean(equal))
    if not 0.0 < share < 1.0:
        side = "above" if share == 0.0 else "below"
        raise IntervalNotAvailable(
            f"bca_interval: all {len(replicates)} replicates lie {side} the estimate {value}, so their bias cannot be "
            "corrected; check that they replicate this estimate, or use Bootstrap(kind='basic')."
        )
    return float(ndtri(share))


def _acceleration(psi: FloatArray) -> float:
    scale = np.abs(psi).max()
    if scale == 0.0:
        return 0.0
    unit = psi / scale
    return float(np.sum(unit**3) / (6.0 * np.sum(unit**2) ** 1.5))


def _adjusted(probability: float, z0: float, acceleration: float) -> float:
    shifted = z0 + float(ndtri(probability))
    scale = 1.0 - acceleration * shifted
    if scale <= 0.0:  # past the pole of the transformation, where its monotone limit holds
        return 1.0 if shifted > 0.0 else 0.0
    return float(ndtr(z0 + shifted / scale))


def require_replicates(owner: str, replicates: npt.ArrayLike, alpha_low: float, alpha_high: float) -> FloatArray:
    """Check replicates and their number, and return them."""
    check_tails(owner, alpha_low, alpha_high)
    sample = finite_array(owner, "replicates", replicates)
    tail = min((alpha for alpha in (alpha_low, alpha_high) if alpha > 0.0), default=0.5)
    needed = math.ceil(1.0 / tail - 1e-9) - 1
    if len(sample) < needed:
        raise IntervalNotAvailable(
            f"{owner}: a tail probability of {tail:g} needs at least {needed} replicates, got {len(sample)}; "
            "raise `n_replicates`, ask for a lower level, or use Normal()."
        )
    return sample


def _quantile(replicates: FloatArray, probability: float) -> float:
    return float(np.quantile(replicates, probability, method="weibull"))
