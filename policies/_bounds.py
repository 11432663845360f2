"""The range of continuous actions: learners work on [-1, 1], policies act within the range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ope.neural.transitions import Standardizer

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset
    from ope.validation import FloatArray

ActionBounds = tuple[Any, Any]


def unit_range(owner: str, data: LoggedDataset, bounds: ActionBounds | None) -> Standardizer:
    """Return the map of the range of each action to [-1, 1].

    Parameters
    ----------
    owner : str
    data : LoggedDataset
        With continuous actions.
    bounds : (low, high) or None
        Numbers, or tuples of a number for each dimension; None takes the smallest and largest logged action.

    Raises
    ------
    TypeError, ValueError
        If the bounds have another form, leave no range, or exclude a logged action.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays([[0.0]] * 2, [[1.0], [4.0]], [0.0] * 2, lengths=[1, 1], ends="terminal")
    >>> unit_range("TD3BC", log, (0, 10)).transform(log.actions)
    array([[-0.8],
           [-0.2]])
    """
    if bounds is None:
        low, high = data.actions.min(axis=0).astype(np.float64), data.actions.max(axis=0).astype(np.float64)
        if not (low < high).all():
            raise ValueError(
                f"{owner}: `action_bounds` must be given where a dimension of the logged actions is constant, got None "
                f"and dimension {int(np.argmin(low < high))}; pass (low, high)."
            )
    else:
        low, high = _given(owner, data, bounds)
    return Standardizer(0.5 * (low + high), 0.5 * (high - low))


def _given(owner: str, data: LoggedDataset, bounds: Any) -> tuple[FloatArray, FloatArray]:
    k = data.n_actions
    try:
        low, high = (np.broadcast_to(np.asarray(bound, dtype=np.float64), (k,)).copy() for bound in bounds)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{owner}: `action_bounds` must be (low, high), each a number or a tuple of {k}, got {bounds!r}; pass "
            "the range in which the action may be chosen, all lows first."
        ) from error
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise ValueError(
            f"{owner}: `action_bounds` must be (lows, highs), finite with low < high, got {bounds!r}; correct them."
        )
    outside = (data.actions < low) | (data.actions > high)
    if outside.any():
        row, column = np.argwhere(outside)[0].tolist()
        raise ValueError(
            f"{owner}: `action_bounds` must hold every logged action, got {bounds!r} and {data.actions[row, column]!r} "
            f"in dimension {column} of row {row}; widen them, or clip the actions of the log."
        )
    return low, high
