"""Where a falling function crosses zero: how intervals that invert a test find their ends."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["falling_root"]

_TOLERANCE = 1e-13


def falling_root(height: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function crosses 0, on its positive side; `low` if it is not positive there.

    Examples
    --------
    >>> round(falling_root(lambda x: 2.0 - x * x, 0.0, 5.0), 9)
    1.414213562
    """
    from scipy.optimize import brentq

    if height(low) <= 0.0:
        return low
    if height(high) > 0.0:
        return high
    return max(low, float(brentq(height, low, high, xtol=_TOLERANCE)) - _TOLERANCE)
