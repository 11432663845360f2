"""Wording of input errors: owner, parameter, rule, what came, remedy. Called by every public door."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
# How far rounding in single precision may carry a probability above 1.
ROUNDING = 1e-6


def first_positions(bad: npt.ArrayLike, limit: int = 5) -> str:
    """Name the first positions where `bad` is true, and how many there are.

    Examples
    --------
    >>> first_positions([False, True, True])
    'rows 1, 2 (2 in all)'
    """
    rows = np.flatnonzero(np.asarray(bad))
    shown = ", ".join(str(int(row)) for row in rows[:limit])
    more = ", ..." if len(rows) > limit else ""
    return f"rows {shown}{more} ({len(rows)} in all)"


def float_array(owner: str, name: str, values: Any, ndim: int, *, keep_single: bool = False) -> FloatArray:
    """Return `values` as a finite float array of `ndim` dimensions, or raise a ValueError that says what is wrong."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{owner}: `{name}` must be numeric, got dtype {array.dtype}; encode it as numbers first.")
    if not (keep_single and array.dtype == np.float32):
        array = array.astype(np.float64, copy=False)
    if array.ndim != ndim:
        raise ValueError(f"{owner}: `{name}` must have {ndim} dimension(s), got shape {array.shape}; reshape it.")
    finite = np.isfinite(array)
    if not finite.all():
        bad = ~finite if ndim == 1 else ~finite.reshape(len(array), -1).all(axis=1)
        columns = f" in columns {np.flatnonzero(~finite.all(axis=0)).tolist()}" if ndim == 2 else ""
        raise ValueError(
            f"{owner}: `{name}` must be finite, got NaN or infinite values at {first_positions(bad)}{columns}; "
            "remove these episodes or impute the values before."
        )
    return array


def check_length(owner: str, name: str, array: npt.NDArray[Any], expected: int, per: str) -> None:
    """Raise a ValueError unless `array` has `expected` entries, one per `per`."""
    if len(array) != expected:
        raise ValueError(
            f"{owner}: `{name}` must have one entry per {per} ({expected}), got {len(array)}; align it with the other columns."
        )


def check_number(
    owner: str, name: str, value: Any, rule: str, remedy: str, least: float, *, above: bool = False
) -> float:
    """Return a finite number of at least `least` (or above it), or raise an error of these words."""
    message = f"{owner}: `{name}` must be {rule}, got {value!r}; {remedy}."
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(message)
    if not (np.isfinite(value) and (value > least if above else value >= least)):
        raise ValueError(message)
    return float(value)


def check_integer(owner: str, name: str, value: Any, least: int, remedy: str = "pass one") -> int:
    """Return an integer of at least `least`, or raise a ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{owner}: `{name}` must be an integer of at least {least}, got {value!r}; {remedy}.")
    return int(value)


def check_gamma(owner: str, gamma: Any) -> float:
    """Return `gamma` as a float in [0, 1], or raise."""
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float, np.floating, np.integer)):
        raise TypeError(
            f"{owner}: `gamma` must be a number in [0, 1], got {gamma!r}; pass the discount factor of your question."
        )
    if not 0.0 <= float(gamma) <= 1.0:
        raise ValueError(
            f"{owner}: `gamma` must be in [0, 1], got {gamma!r}; pass the discount factor of your question."
        )
    return float(gamma)
