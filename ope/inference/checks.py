"""What the functions of this package demand of their input, worded once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class IntervalNotAvailable(ValueError):  # noqa: N818 (an answer about the data, not a mistake)
    """Raise where a method cannot give an interval for this estimate; the message says why and what to use instead."""


def name_rows(bad: npt.ArrayLike, rows: npt.NDArray[np.int64] | None = None, limit: int = 5) -> str:
    """Name the first positions where `bad` is true, and how many there are; `rows` numbers the positions.

    Examples
    --------
    >>> name_rows([False, True, True])
    'rows 1, 2 (2 in all)'
    """
    found = np.flatnonzero(np.asarray(bad))
    named = found if rows is None else rows[found]
    more = ", ..." if len(named) > limit else ""
    return f"rows {', '.join(str(int(row)) for row in named[:limit])}{more} ({len(named)} in all)"


def finite_array(owner: str, name: str, values: Any, ndims: tuple[int, ...] = (1,)) -> FloatArray:
    """Return `values` as a non-empty, finite float64 array with one entry (or row) per episode or replicate."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{owner}: `{name}` must be numeric, got dtype {array.dtype}; convert it to floats.")
    if array.ndim not in ndims or array.size == 0:
        allowed = " or ".join(str(ndim) for ndim in ndims)
        raise ValueError(f"{owner}: `{name}` must be non-empty with {allowed} dimension(s), got shape {array.shape}.")
    array = array.astype(np.float64, copy=False)
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{owner}: `{name}` must be finite, got NaN or infinite values at {name_rows(bad)}; "
            "find out why these episodes or refits failed before you ask for an interval."
        )
    return array


def check_tails(owner: str, alpha_low: float, alpha_high: float) -> None:
    """Demand two tail probabilities that leave some mass between them."""
    for name, alpha in (("alpha_low", alpha_low), ("alpha_high", alpha_high)):
        if not 0.0 <= alpha < 1.0:
            raise ValueError(
                f"{owner}: `{name}` must lie in [0, 1), got {alpha!r}; pass a tail probability such as 0.025."
            )
    if alpha_low + alpha_high >= 1.0:
        raise ValueError(
            f"{owner}: `alpha_low` + `alpha_high` must be below 1, got {alpha_low!r} + {alpha_high!r}; "
            "pass 1 - level, split over the two tails."
        )


def check_range(owner: str, low: float, high: float | None) -> None:
    """Demand a finite range that is not empty; without `high` only a finite lower end."""
    if not (math.isfinite(low) and (high is None or (math.isfinite(high) and low < high))):
        raise ValueError(
            f"{owner}: `low` and `high` must be finite with low < high, got {low!r} and {high!r}; "
            "give the range known before the data (reward range times weight bound), or use Anderson(low)."
        )


def check_inside(owner: str, x: FloatArray, low: float, high: float | None) -> None:
    """Refuse values outside the range that was promised."""
    # Sums of products of ratios reach their bound only up to rounding.
    slack = 1e-12 * max(abs(low), abs(high or 0.0))
    bad = x < low - slack
    if high is not None:
        bad |= x > high + slack
    if bad.any():
        first, end = float(x[np.flatnonzero(bad)[0]]), "inf" if high is None else high
        raise ValueError(
            f"{owner}: `x` must lie in [{low}, {end}], got {first!r} first at {name_rows(bad)}; "
            "the range must hold for every episode that could occur: correct it, or use Anderson, Normal or Bootstrap."
        )
