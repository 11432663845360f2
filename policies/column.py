"""`ColumnPolicy`: a policy whose probabilities are recorded in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ope.inputs import known_numbers, read_columns
from ope.policies.discrete import label_array
from ope.policy import Policy
from ope.validation import FloatArray, first_positions

if TYPE_CHECKING:
    from ope.dataset import Rows

OWNER = "ColumnPolicy"


class ColumnPolicy(Policy):
    """A policy whose probabilities are columns of the log.

    Parameters
    ----------
    columns : str, sequence of str, or mapping
        One name: the column holds the probability (density) of the logged action, which serves importance sampling. A
        list: a column for each label of the log, in order. A mapping of labels to names: the same, in any order.
    log : bool
        Whether the columns hold logarithms.

    Raises
    ------
    ValueError
        At first use: if a column does not exist, has missing values, or holds no probabilities. Methods that look
        beyond a truncated end need the columns there too (`final_extras`).

    Notes
    -----
    It has no `predict` and no `sample`: it knows the logged states only.

    Examples
    --------
    >>> import pandas as pd
    >>> from ope.dataset import Rows
    >>> rows = Rows(np.zeros((2, 1)), ("x",), extras=pd.DataFrame({"p_no": [0.1, 0.7], "p_yes": [0.9, 0.3]}))
    >>> ColumnPolicy({"yes": "p_yes", "no": "p_no"}).proba_rows(rows)
    array([[0.9, 0.1],
           [0.3, 0.7]])
    """

    def __init__(self, columns: str | Sequence[str] | Mapping[Any, str], log: bool = False) -> None:
        self.columns = columns
        self.log = log

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers: the logged probabilities, or all of them."""
        return frozenset({"logged_prob"} if isinstance(self.columns, str) else {"logged_prob", "all_probs"})

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """The keys of the mapping, or None for the labels of the log."""
        return label_array(list(self.columns), OWNER) if isinstance(self.columns, Mapping) else None

    def proba_rows(self, rows: Rows) -> FloatArray:
        """Return the recorded probability of every action, shape (n, n_actions)."""
        if isinstance(self.columns, str):
            return super().proba_rows(rows)
        names = list(self.columns.values() if isinstance(self.columns, Mapping) else self.columns)
        values = self._numbers(rows, names)
        return np.exp(values) if self.log else values

    def log_prob_rows(self, rows: Rows, actions: npt.NDArray[Any]) -> FloatArray:
        """Return the recorded log probability (density) of the logged actions, shape (n,)."""
        if not isinstance(self.columns, str):
            return super().log_prob_rows(rows, actions)
        values = self._numbers(rows, [self.columns])[:, 0]
        with np.errstate(divide="ignore"):
            return values if self.log else np.log(values)

    def _numbers(self, rows: Rows, names: list[str]) -> FloatArray:
        values = known_numbers(read_columns(rows, names, OWNER), OWNER)
        bad = np.isposinf(values) if self.log else (values < 0) | np.isinf(values)
        if bad.any():
            kind = "log probabilities" if self.log else "probabilities (densities)"
            raise ValueError(
                f"{OWNER}: columns {names} must hold {kind}, got {float(values[bad][0])!r} at "
                f"{first_positions(bad.any(axis=1))}; correct them" + ("." if self.log else ", or pass log=True.")
            )
        return values
