"""Bounds of a mean by betting: capital that can only grow if the mean is not what is claimed.

A claimed mean m is rejected once a gambler who bets against it in a game that is fair under m has multiplied the stake
by 1 / alpha (Ville's inequality): valid for every n and at every stopping time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ope.inference.bounds import checked_values
from ope.inference.checks import FloatArray, check_range, check_tails, finite_array, name_rows
from ope.inference.intervals import Ends
from ope.inference.roots import falling_root

__all__ = ["FRACTIONS", "RunningMoments", "betting_interval", "mixture_lower", "reflected_interval"]

FRACTIONS: FloatArray = np.array([0.01, 0.02, 0.05, *np.arange(0.1, 0.95, 0.1)])
"""Fractions of the capital that the mixture stakes, in equal parts."""

CAP = 0.5


def betting_interval(
    x: FloatArray, low: float, high: float | None, alpha_low: float, alpha_high: float, *, cap: float = CAP
) -> Ends:
    """Bound a mean by the hedged capital of Waudby-Smith and Ramdas.

    Parameters
    ----------
    x : ndarray of shape (n,)
        Independent values, in an order that does not depend on them.
    low : float
        No value that could occur is smaller; known before the data.
    high : float or None
        No value that could occur is larger. Without it the lower bound comes from `mixture_lower` and the upper is
        infinite.
    alpha_low, alpha_high : float
        Probability that the mean lies below the lower bound, above the upper bound.
    cap : float
        In (0, 1): the largest part of the capital that one bet may lose.

    Returns
    -------
    tuple of (float, float)
        Inside [`low`, `high`].

    Raises
    ------
    ValueError
        If a value lies outside the range.

    Notes
    -----
    On the unit scale K_t(m) = prod_{s<=t} (1 + min(lambda_s, cap / m) (x_s - m)) with the bets lambda_s =
    sqrt(2 ln(1 / alpha) / (n s_{s-1}^2)), which know the values before s alone (`RunningMoments`); the lower bound is the
    least m with max_t K_t(m) < 1 / alpha_low, one root because K_t falls in m. The upper bound is the lower one of the
    reflected values. With alpha / 2 on each side this is the hedged capital with theta = 1/2.

    References
    ----------
    Waudby-Smith & Ramdas (2024), "Estimating means of bounded random variables by betting", doi:10.1093/jrsssb/qkad009.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = betting_interval(np.full(200, 0.5), 0.0, 1.0, 0.05, 0.05)
    >>> round(low, 3), round(high, 3)
    (0.485, 0.515)
    """
    values = checked_values("betting_interval", x, low, high, alpha_low, alpha_high)
    if high is None:
        return low + mixture_lower(values - low, alpha_low) if alpha_low > 0.0 else -math.inf, math.inf
    unit = np.clip((values - low) / (high - low), 0.0, 1.0)
    return (
        low + (high - low) * _unit_lower(unit, alpha_low, cap) if alpha_low > 0.0 else -math.inf,
        high - (high - low) * _unit_lower(1.0 - unit, alpha_high, cap) if alpha_high > 0.0 else math.inf,
    )


@dataclass
class RunningMoments:
    """Mean and variance of the values so far, on the unit scale, shrunk to 1/2 and 1/4.

    Notes
    -----
    m_t = (1/2 + sum_{i<=t} x_i) / (t + 1) and s_t^2 = (1/4 + sum_{i<=t} (x_i - m_i)^2) / (t + 1).
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def advance(self, unit: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Take in values and return, for each, the mean and the variance before it."""
        count = self.count + np.arange(len(unit) + 1)
        totals = self.total + np.concatenate([[0.0], np.cumsum(unit)])
        means = (0.5 + totals) / (count + 1)
        squares = self.squares + np.concatenate([[0.0], np.cumsum((unit - means[1:]) ** 2)])
        variance = (0.25 + squares) / (count + 1)
        self.count, self.total, self.squares = int(count[-1]), float(totals[-1]), float(squares[-1])
        return means[:-1], variance[:-1]


def plug_in_bets(variance: FloatArray, alpha: float, rounds: FloatArray | float) -> FloatArray:
    """Return sqrt(2 ln(1 / alpha) / (variance rounds)), the bets at which the capital grows fastest.

    Examples
    --------
    >>> plug_in_bets(np.array([0.25, 0.16]), 0.05, 2.0).round(2)
    array([3.46, 4.33])
    """
    return np.asarray(np.sqrt(-2.0 * math.log(alpha) / (variance * rounds)))


def anytime_rounds(first: int, count: int) -> FloatArray:
    """Return t ln(1 + t) for t = first, ..., first + count - 1: what makes bets serve all times about equally."""
    t = np.arange(first, first + count, dtype=np.float64)
    return np.asarray(t * np.log1p(t))


def mixture_lower(y: FloatArray, alpha: float) -> float:
    """Bound the mean of non-negative values from below, without an upper end of their range.

    Parameters
    ----------
    y : ndarray of shape (n,)
        Independent, non-negative values.
    alpha : float
        Probability that the mean lies below the bound.

    Returns
    -------
    float
        Non-negative, at most the sample mean; the order of the values plays no part.

    Notes
    -----
    The least m whose capital, the mean over lambda in `FRACTIONS` of prod_i (1 + lambda (y_i / m - 1)), is below 1 / alpha.

    Examples
    --------
    >>> import numpy as np
    >>> round(mixture_lower(np.array([0.0, 2.0] * 50), 0.05), 3)
    0.698
    """
    y = np.maximum(y, 0.0)  # rounding
    mean = float(y.mean())
    if mean == 0.0:
        return 0.0
    unit = y / mean

    goal = math.log(len(FRACTIONS)) - math.log(alpha)

    def excess(log_m: float) -> float:
        grown = np.log1p(FRACTIONS[:, None] * (unit * math.exp(-log_m) - 1.0)).sum(axis=1)
        return float(np.logaddexp.reduce(grown)) - goal

    return mean * math.exp(falling_root(excess, -600.0, 0.0))


def reflected_interval(
    weights: FloatArray, products: FloatArray, low: float, high: float, alpha_low: float, alpha_high: float
) -> Ends:
    """Bound E[w G] from unbounded weights w of mean 1 and bounded returns G, on both sides.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        Importance weights w >= 0 of whole episodes, of expectation 1.
    products : ndarray of shape (n,)
        w G, with the returns G of the episodes.
    low, high : float
        Range of every return that could occur, known before the data.
    alpha_low, alpha_high : float
        As in `betting_interval`.

    Returns
    -------
    tuple of (float, float)
        Inside [`low`, `high`].

    Raises
    ------
    ValueError
        If a return lies outside the range, or a weight is negative.

    Notes
    -----
    With g = (G - low) / (high - low) the value is low + (high - low) E[w g] = high - (high - low) E[w (1 - g)], because
    E[w] = 1: two lower bounds of non-negative means by `mixture_lower`, which need no bound of the weights.

    References
    ----------
    Waudby-Smith & Ramdas (2024), doi:10.1093/jrsssb/qkad009; Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro (2024),
    "Anytime-valid off-policy inference for contextual bandits", doi:10.1145/3643693, for the reflection.

    Examples
    --------
    >>> import numpy as np
    >>> w, g = np.array([0.5, 1.5] * 100), np.array([0.0, 1.0] * 100)
    >>> low, high = reflected_interval(w, w * g, 0.0, 1.0, 0.05, 0.05)
    >>> round(low, 3), round(high, 3)
    (0.584, 0.805)
    """
    owner = "reflected_interval"
    check_tails(owner, alpha_low, alpha_high)
    check_range(owner, low, high)
    w, x = finite_array(owner, "weights", weights), finite_array(owner, "products", products)
    if (w < 0.0).any():
        raise ValueError(f"{owner}: `weights` must not be negative, got {float(w.min())}; pass importance weights.")
    above, below = (x - low * w) / (high - low), (high * w - x) / (high - low)
    bad = np.minimum(above, below) < -1e-9 * w
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{owner}: returns must lie in [{low}, {high}], got {x[first] / w[first] if w[first] else x[first]:.6g} first at "
            f"{name_rows(bad)}; the range must hold for every episode that could occur: correct it."
        )
    return (
        min(low + (high - low) * mixture_lower(above, alpha_low), high) if alpha_low > 0.0 else -math.inf,
        max(high - (high - low) * mixture_lower(below, alpha_high), low) if alpha_high > 0.0 else math.inf,
    )


def log_capital(unit: FloatArray, bets: FloatArray, m: float, cap: float) -> FloatArray:
    """Return log K_t(m), t = 1..n, of the bets that the mean is larger than m, for 0 <= m <= 1."""
    limit = cap / m if m > 0.0 else math.inf
    return np.asarray(np.cumsum(np.log1p(np.minimum(bets, limit) * (unit - m))))


def _unit_lower(unit: FloatArray, alpha: float, cap: float) -> float:
    _, variance = RunningMoments().advance(unit)
    bets = plug_in_bets(variance, alpha, float(len(unit)))
    return falling_root(lambda m: float(log_capital(unit, bets, m, cap).max()) + math.log(alpha), 0.0, 1.0)
