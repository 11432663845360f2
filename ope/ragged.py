"""Operations on episodes of different lengths, stored one after another: row-wise arrays and `offsets`.

`offsets` has shape (n_episodes + 1,): episode i owns the rows offsets[i] to offsets[i + 1] - 1, at least one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)

SCAN_ROWS = 1 << 16


def offsets_of(lengths: npt.ArrayLike) -> IntArray:
    """Return the offsets of episodes with these lengths.

    Examples
    --------
    >>> offsets_of([2, 3])
    array([0, 2, 5])
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def episode_index(offsets: IntArray) -> IntArray:
    """Return the episode number of every row, shape (n,).

    Examples
    --------
    >>> episode_index(np.array([0, 2, 5]))
    array([0, 0, 1, 1, 1])
    """
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def step_index(offsets: IntArray) -> IntArray:
    """Return the number of steps since the start of its episode for every row, shape (n,).

    Examples
    --------
    >>> step_index(np.array([0, 2, 5]))
    array([0, 1, 0, 1, 2])
    """
    steps = np.ones(offsets[-1], dtype=np.int64)
    steps[:1] = 0
    steps[offsets[1:-1]] -= np.diff(offsets)[:-1]
    return np.cumsum(steps, out=steps)


def step_rows(offsets: IntArray, t: int) -> IntArray:
    """Return the rows of step t, one for each episode that is longer than t.

    Examples
    --------
    >>> step_rows(np.array([0, 2, 5]), 2)
    array([4])
    """
    return offsets[:-1][np.diff(offsets) > t] + t


def segment_sum(values: npt.NDArray[Any], offsets: IntArray) -> FloatArray:
    """Sum rows within each episode, in float64: shape (n, ...) to (n_episodes, ...).

    Examples
    --------
    >>> segment_sum(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 3]))
    array([1., 5.])
    """
    result: FloatArray = np.add.reduceat(values, offsets[:-1], axis=0, dtype=np.float64)
    return result


def segment_cumsum(values: npt.NDArray[Any], offsets: IntArray) -> FloatArray:
    """Cumulate rows within each episode, in float64, without carrying anything from one episode to the next.

    Values must be finite: a -inf would poison later episodes (see `cumulative_log_weights` for ratios of zero).

    Examples
    --------
    >>> segment_cumsum(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 3]))
    array([1., 2., 5.])
    """
    lengths = np.diff(offsets)
    if len(lengths) and lengths.min() == lengths.max():
        rectangle = np.asarray(values, dtype=np.float64).reshape(len(lengths), int(lengths[0]))
        return np.cumsum(rectangle, axis=1).ravel()
    out = np.empty(len(values))
    for first, last in block_bounds(offsets, SCAN_ROWS):
        low, high = offsets[first], offsets[last]
        out[low:high] = _cumsum_with_resets(values[low:high], offsets[first : last + 1] - low)
    return out


def _cumsum_with_resets(values: npt.NDArray[Any], offsets: IntArray) -> FloatArray:
    # Subtracting the previous episode's sum at each start keeps the running sum at the scale of one episode, so the
    # rounding error does not grow with the number of rows as it would for a difference of global sums.
    stepped = np.array(values, dtype=np.float64)
    stepped[offsets[1:-1]] -= segment_sum(stepped, offsets)[:-1]
    return np.cumsum(stepped)


def cumulative_log_weights(log_ratios: npt.NDArray[Any], offsets: IntArray) -> FloatArray:
    """Return log W_t = sum_{k<=t} log rho_k for every row; a ratio of zero kills the rest of its episode.

    Parameters
    ----------
    log_ratios : ndarray of shape (n,)
        log rho; -inf where the candidate never takes the logged action.
    offsets : ndarray of shape (n_episodes + 1,)

    Returns
    -------
    ndarray of shape (n,)
        log W, -inf from the first ratio of zero on.

    Examples
    --------
    >>> cumulative_log_weights(np.array([0.5, -np.inf, 1.0, 2.0]), np.array([0, 3, 4]))
    array([ 0.5, -inf, -inf,  2. ])
    """
    # The minimum is far cheaper than a mask, and few logs hold a ratio of zero.
    if len(log_ratios) == 0 or log_ratios.min() > -np.inf:
        return segment_cumsum(log_ratios, offsets)
    zero = np.isneginf(log_ratios)
    log_weights = segment_cumsum(np.where(zero, 0.0, log_ratios), offsets)
    log_weights[segment_cumsum(zero, offsets) > 0.5] = -np.inf
    return log_weights


def rows_of(episodes: IntArray, offsets: IntArray) -> IntArray:
    """Return the rows of the chosen episodes, in their order.

    Examples
    --------
    >>> rows_of(np.array([1, 0]), np.array([0, 2, 5]))
    array([2, 3, 4, 0, 1])
    """
    lengths = np.diff(offsets)[episodes]
    new_offsets = offsets_of(lengths)
    return np.arange(new_offsets[-1]) + np.repeat(offsets[episodes] - new_offsets[:-1], lengths)


def shift_to_next(values: npt.NDArray[Scalar], offsets: IntArray, last: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Move row-wise values to the row before; the last row of episode i gets `last[i]`.

    Examples
    --------
    >>> shift_to_next(np.array([1.0, 2.0, 3.0]), np.array([0, 2, 3]), np.array([8.0, 9.0]))
    array([2., 8., 9.])
    """
    out = np.empty_like(values)
    out[:-1] = values[1:]
    out[offsets[1:] - 1] = last
    return out


def block_bounds(offsets: IntArray, max_rows: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of consecutive groups of whole episodes with at most `max_rows` rows, or one episode.

    Examples
    --------
    >>> list(block_bounds(np.array([0, 2, 4, 9]), 4))
    [(0, 2), (2, 3)]
    """
    first, n_episodes = 0, len(offsets) - 1
    while first < n_episodes:
        last = int(np.searchsorted(offsets, offsets[first] + max_rows, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last
