"""Finite-sample confidence bounds for the mean of independent values in a range that is known beforehand.

Every function takes the two tail probabilities and returns (low, high). A tail probability of 0 leaves its end
infinite, so a one-sided bound is the same function.
"""

from __future__ import annotations

import math

import numpy as np

from ope.inference.checks import FloatArray, check_inside, check_range, check_tails, finite_array
from ope.inference.intervals import Ends, require_two


def hoeffding(x: FloatArray, low: float, high: float, alpha_low: float, alpha_high: float) -> Ends:
    """Bound a mean by Hoeffding's inequality.

    Parameters
    ----------
    x : ndarray of shape (n,)
        Independent values.
    low, high : float
        Range of every value that could occur, known before the data.
    alpha_low, alpha_high : float
        Probability that the mean lies below the lower bound, above the upper bound.

    Returns
    -------
    tuple of (float, float)
        Cut to [`low`, `high`], where the mean is known to lie.

    Raises
    ------
    ValueError
        If a value lies outside the range.

    Notes
    -----
    mean -+ (high - low) sqrt(ln(1 / alpha) / (2 n)).

    References
    ----------
    Hoeffding (1963), doi:10.1080/01621459.1963.10500830.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = hoeffding(np.full(200, 0.5), 0.0, 1.0, 0.05, 0.05)
    >>> round(low, 4), round(high, 4)
    (0.4135, 0.5865)
    """
    values = checked_values("hoeffding", x, low, high, alpha_low, alpha_high)

    def radius(alpha: float) -> float:
        return (high - low) * math.sqrt(-math.log(alpha) / (2 * len(values)))

    mean = float(values.mean())
    return (
        max(low, mean - radius(alpha_low)) if alpha_low > 0.0 else -math.inf,
        min(high, mean + radius(alpha_high)) if alpha_high > 0.0 else math.inf,
    )


def empirical_bernstein(x: FloatArray, low: float, high: float, alpha_low: float, alpha_high: float) -> Ends:
    """Bound a mean by the empirical Bernstein inequality of Maurer and Pontil, which profits from a small variance.

    Parameters
    ----------
    x, low, high, alpha_low, alpha_high
        As in `hoeffding`.

    Returns
    -------
    tuple of (float, float)
        Cut to [`low`, `high`], where the mean is known to lie.

    Raises
    ------
    ValueError
        If a value lies outside the range.
    IntervalNotAvailable
        For a single value.

    Notes
    -----
    mean -+ [sqrt(2 s^2 ln(2 / alpha) / n) + 7 (high - low) ln(2 / alpha) / (3 (n - 1))], s^2 the sample variance
    (divisor n - 1).

    References
    ----------
    Maurer & Pontil (2009), "Empirical Bernstein bounds and sample variance penalization", arXiv:0907.3740.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = empirical_bernstein(np.full(200, 0.5), 0.0, 1.0, 0.05, 0.05)
    >>> round(low, 4), round(high, 4)
    (0.4567, 0.5433)
    """
    values = checked_values("empirical_bernstein", x, low, high, alpha_low, alpha_high)
    n = len(values)
    require_two("empirical_bernstein", n)
    variance = float(values.var(ddof=1))

    def radius(alpha: float) -> float:
        log_term = math.log(2.0 / alpha)
        return math.sqrt(2.0 * variance * log_term / n) + 7.0 * (high - low) * log_term / (3.0 * (n - 1))

    mean = float(values.mean())
    return (
        max(low, mean - radius(alpha_low)) if alpha_low > 0.0 else -math.inf,
        min(high, mean + radius(alpha_high)) if alpha_high > 0.0 else math.inf,
    )


def anderson(
    x: FloatArray, low: float, high: float | None = None, alpha_low: float = 0.025, alpha_high: float = 0.025
) -> Ends:
    """Bound a mean through the Dvoretzky-Kiefer-Wolfowitz band of the distribution function.

    Parameters
    ----------
    x : ndarray of shape (n,)
        Independent values.
    low : float
        No value that could occur is smaller; known before the data.
    high : float, optional
        No value that could occur is larger. The lower bound does without it.
    alpha_low, alpha_high : float
        Probability that the mean lies below the lower bound, above the upper bound.

    Returns
    -------
    tuple of (float, float)
        The upper bound is infinite without `high`.

    Raises
    ------
    ValueError
        If a value lies outside the range.

    Notes
    -----
    The lower bound gives the mass eps = sqrt(ln(1 / alpha) / (2 n)) of the largest values to the point `low`:
    low eps + integral_0^{1 - eps} Q(u) du, Q the empirical quantile function; `low` itself once eps >= 1. The
    one-sided inequality holds for alpha <= 1/2; a larger alpha is treated as 1/2.

    References
    ----------
    Anderson (1969), "Confidence limits for the expected value of an arbitrary bounded random variable"; Massart (1990),
    doi:10.1214/aop/1176990746.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = anderson(np.full(200, 0.5), low=0.0, alpha_low=0.05, alpha_high=0.05)
    >>> round(low, 4), high
    (0.4567, inf)
    """
    values = checked_values("anderson", x, low, high, alpha_low, alpha_high)
    return (
        _anderson_lower(values, low, alpha_low) if alpha_low > 0.0 else -math.inf,
        -_anderson_lower(-values, -high, alpha_high) if alpha_high > 0.0 and high is not None else math.inf,
    )


def truncated_bound(
    x: FloatArray,
    chosen_on: FloatArray,
    low: float,
    high: float | None = None,
    alpha_low: float = 0.025,
    alpha_high: float = 0.025,
) -> Ends:
    """Bound a mean after truncation of its large values at a point chosen on other data.

    Parameters
    ----------
    x : ndarray of shape (n,)
        Independent values.
    chosen_on : ndarray of shape (m,)
        Values of other episodes, from which the truncation point is chosen.
    low, high, alpha_low, alpha_high
        As in `anderson`.

    Returns
    -------
    tuple of (float, float)
        At least `low`; the upper bound, that of the reflected values, is infinite without `high`.

    Raises
    ------
    ValueError
        If a value lies outside the range.
    IntervalNotAvailable
        For fewer than two values in one of the two parts.

    Notes
    -----
    With Y = min(x - low, c): low + mean(Y) - 7 c ln(2 / alpha) / (3 (n - 1)) - sqrt(2 s_Y^2 ln(2 / alpha) / n), which is the
    bound of Thomas et al. with one c for all episodes: sum_ij (Y_i - Y_j)^2 = 2 n (n - 1) s_Y^2. E[Y] is below the mean
    whatever c is. c maximises the bound predicted for n values from the mean and variance of `chosen_on`, over its values.

    References
    ----------
    Thomas, Theocharous & Ghavamzadeh (2015), "High-confidence off-policy evaluation", AAAI, theorem 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([0.5] * 199 + [100.0])
    >>> low, high = truncated_bound(x, np.full(20, 0.5), low=0.0, alpha_low=0.05)
    >>> round(low, 4), high
    (0.4784, inf)
    """
    values = checked_values("truncated_bound", x, low, high, alpha_low, alpha_high)
    pilot = checked_values("truncated_bound", chosen_on, low, high, alpha_low, alpha_high)
    require_two("truncated_bound", min(len(values), len(pilot)))
    return (
        low + _truncated_lower(values - low, pilot - low, alpha_low) if alpha_low > 0.0 else -math.inf,
        high - _truncated_lower(high - values, high - pilot, alpha_high)
        if alpha_high > 0.0 and high is not None
        else math.inf,
    )


def _truncated_lower(x: FloatArray, pilot: FloatArray, alpha: float) -> float:
    points = np.unique(np.maximum(pilot, 0.0))
    predicted = [_truncated_at(point, pilot, len(x), alpha) for point in points]
    return max(0.0, _truncated_at(float(points[int(np.argmax(predicted))]), x, len(x), alpha))


def _truncated_at(point: float, x: FloatArray, n: int, alpha: float) -> float:
    """Return the bound for n values whose mean and variance after truncation are those of x."""
    y, log_term = np.minimum(x, point), math.log(2.0 / alpha)
    slack = math.sqrt(2.0 * float(y.var(ddof=1)) * log_term / n)
    return float(y.mean()) - 7.0 * point * log_term / (3.0 * (n - 1)) - slack


def _anderson_lower(x: FloatArray, low: float, alpha: float) -> float:
    n = len(x)
    eps = math.sqrt(-math.log(min(alpha, 0.5)) / (2 * n))
    if eps >= 1.0:
        return low
    # Order statistic i carries the mass between (i - 1) / n and i / n, as far as it lies below 1 - eps.
    mass = np.clip((1.0 - eps) - np.arange(n) / n, 0.0, 1.0 / n)
    return float(low * eps + np.sort(x) @ mass)


def checked_values(
    owner: str, x: FloatArray, low: float, high: float | None, alpha_low: float, alpha_high: float
) -> FloatArray:
    """Check range, tails and values of a bound, and return the values."""
    check_tails(owner, alpha_low, alpha_high)
    check_range(owner, low, high)
    values = finite_array(owner, "x", x)
    check_inside(owner, values, low, high)
    return values
