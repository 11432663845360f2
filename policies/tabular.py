"""`TabularPolicy`: a table of action probabilities for a finite number of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ope.inputs import as_rows, read_columns
from ope.policies.discrete import DiscretePolicy, check_distributions, label_array
from ope.validation import FloatArray, IntArray, first_positions

if TYPE_CHECKING:
    from ope.dataset import Rows

OWNER = "TabularPolicy"
StateCode = int | str | Callable[[npt.NDArray[Any]], npt.ArrayLike]


class TabularPolicy(DiscretePolicy):
    """A policy given by a table: a row of action probabilities for each state.

    Parameters
    ----------
    probs : array-like of shape (n_states, n_actions)
    state_code : int, str or callable, optional
        Where the row number of a state is found: the position or name of a state column that holds it, or a function of
        the states of shape (n, d) that returns it, shape (n,). Default: the states are one-hot vectors in the order of
        the rows, or, if they have a single column, that column.
    action_labels : array-like of shape (n_actions,), optional
        Labels of the columns; default: the log's labels, in order.

    Raises
    ------
    ValueError
        At first use: if a row is no distribution, a code is no row of the table, or a state is not one-hot.

    Examples
    --------
    >>> policy = TabularPolicy([[0.9, 0.1], [0.2, 0.8]], action_labels=["stay", "go"])
    >>> policy.predict([0, 1])
    array(['stay', 'go'], dtype='<U4')
    >>> policy.predict_proba([[0.0, 1.0]])
    array([[0.2, 0.8]])
    """

    def __init__(
        self, probs: npt.ArrayLike, state_code: StateCode | None = None, action_labels: npt.ArrayLike | None = None
    ) -> None:
        self.probs = probs
        self.state_code = state_code
        self.action_labels = action_labels

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers; a column known by name is not found in a bare array of new states."""
        offered = super().capabilities
        return offered - {"sample"} if isinstance(self.state_code, str) else offered

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """Labels of the columns, or None for those of the log."""
        return label_array(self.action_labels, OWNER, np.shape(self.probs)[-1])

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        """Return the rows of the table that belong to the states.

        Parameters
        ----------
        states : array-like of shape (n, d) or (n,), or DataFrame

        Returns
        -------
        ndarray of shape (n, n_actions)
        """
        columns = [self.state_code] if isinstance(self.state_code, str) else None
        return self.proba_rows(as_rows(states, OWNER, columns=columns))

    def proba_rows(self, rows: Rows) -> FloatArray:
        """Return the rows of the table that belong to logged rows, shape (n, n_actions)."""
        table = check_distributions(np.asarray(self.probs), f"{OWNER} (`probs`)", least=1)
        return table[self._codes(rows, len(table))]

    def _codes(self, rows: Rows, n_states: int) -> IntArray:
        code, width = self.state_code, rows.states.shape[1]
        if callable(code):
            return _checked_codes(np.asarray(code(rows.states)), len(rows), n_states)
        if isinstance(code, str):
            return _checked_codes(read_columns(rows, [code], OWNER)[code].to_numpy(), len(rows), n_states)
        if code is None and width == n_states:
            return _hot_columns(rows.states)
        return _checked_codes(rows.states[:, _position(code, width, n_states)], len(rows), n_states)


def _position(code: int | None, width: int, n_states: int) -> int:
    if code is None and width != 1:
        raise ValueError(
            f"{OWNER}: states must be one-hot vectors of length {n_states} or have a single column, got {width} "
            "columns; pass state_code= (the column that holds the row number, or a function of the states)."
        )
    code = 0 if code is None else code
    if not -width <= code < width:
        raise ValueError(f"{OWNER}: `state_code` must be the position of one of {width} state columns, got {code!r}.")
    return code


def _checked_codes(codes: npt.NDArray[Any], n: int, n_states: int) -> IntArray:
    if codes.shape != (n,) or codes.dtype.kind not in "fiub":
        raise ValueError(
            f"{OWNER}: `state_code` must give one integer per state, shape {(n,)}, got {codes.dtype} of "
            f"shape {codes.shape}."
        )
    bad = ~((codes >= 0) & (codes < n_states) & (codes == np.floor(codes)))
    if bad.any():
        raise ValueError(
            f"{OWNER}: codes of states must be integers from 0 to {n_states - 1}, the rows of `probs`, got "
            f"{codes[bad][0].item()!r} at {first_positions(bad)}; correct state_code= or add rows."
        )
    return codes.astype(np.int64)


def _hot_columns(states: npt.NDArray[Any]) -> IntArray:
    hot = states == 1
    bad = (hot.sum(axis=1) != 1) | ((states != 0).sum(axis=1) != 1)
    if bad.any():
        raise ValueError(
            f"{OWNER}: states with as many columns as `probs` has rows must be one-hot, got "
            f"{states[bad][0].tolist()} at {first_positions(bad)}; pass state_code= if a column holds the row number."
        )
    return np.asarray(hot.argmax(axis=1))
