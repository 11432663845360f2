"""`Front`: a fitted transformer before a learner, and the log it was fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import clone
from typing_extensions import Self

from ope.dataset import LoggedDataset, Rows
from ope.inputs import as_rows, states_frame
from ope.policy import check_feature_names
from ope.validation import FloatArray, first_positions, float_array

OWNER = "PreprocessedLearner"


@dataclass(frozen=True, eq=False)
class Front:
    """States of a log to those that a learner sees.

    Parameters
    ----------
    transformer : transformer
        Fitted.
    names_in, names_out : tuple of str
        Of the columns before and after it.
    episode_keys : ndarray of uint64
        Hashes of the identifiers of the episodes it was fitted to.
    made_from : str or None
        The `identity` of the transformer before it was fitted, where that is known.

    Examples
    --------
    >>> from sklearn.preprocessing import MinMaxScaler
    >>> log = LoggedDataset.from_arrays([[0.0], [50.0]], ["a", "b"], [0.0, 1.0], lengths=[2], ends="terminal")
    >>> Front.fit(MinMaxScaler(), log).states([[25.0]])
    array([[0.5]])
    """

    transformer: Any
    names_in: tuple[str, ...]
    names_out: tuple[str, ...]
    episode_keys: npt.NDArray[np.uint64]
    made_from: str | None = None

    @classmethod
    def fit(cls, transformer: Any, data: LoggedDataset) -> Self:
        """Fit a clone of a transformer to the logged states."""
        rows = data.rows()
        fitted = clone(transformer).fit(states_frame(rows))
        names = _names_out(fitted, _transform(fitted, rows).shape[1])
        return cls(fitted, tuple(data.feature_names), names, np.sort(data.episode_keys), identity(transformer))

    def is_of(self, transformer: Any) -> bool:
        """Return whether it was made from such a transformer, as far as that is known."""
        return self.made_from in (None, identity(transformer))

    @property
    def feature_names_in_(self) -> npt.NDArray[Any]:
        """The names before the transformation, in scikit-learn's form."""
        return np.array(self.names_in, dtype=object)

    def states(self, states: npt.ArrayLike) -> FloatArray:
        """Transform states that come from no log, (n, d)."""
        return self.rows(as_rows(states, OWNER, feature_names=self.names_in)).states

    def rows(self, rows: Rows) -> Rows:
        """Transform logged rows; the mask and other columns stay."""
        check_feature_names(self, rows.feature_names, OWNER)
        # scikit-learn's transformers refuse an array without rows.
        states = _transform(self.transformer, rows) if len(rows) else np.empty((0, len(self.names_out)))
        if states.shape[1] != len(self.names_out):
            raise ValueError(
                f"{OWNER}: `transformer` must return the {len(self.names_out)} columns of its fit, got {states.shape[1]}; choose "
                "one whose columns do not depend on the rows."
            )
        return Rows(states, self.names_out, rows.action_mask, rows.extras)

    def log(self, data: LoggedDataset) -> LoggedDataset:
        """Transform a log, final states included."""
        rows, final = self.rows(data.rows()), None
        if data.final_states is not None:
            known = data.final_known()
            final = np.full((data.n_episodes, rows.states.shape[1]), np.nan)
            final[known] = self.rows(data.final_rows(np.flatnonzero(known))).states
        return data.replace(states=rows.states, final_states=final, feature_names=rows.feature_names)


def identity(transformer: Any) -> str:
    """Return a word that two transformers share only if they do the same."""
    try:
        return str(joblib.hash(transformer))
    except Exception:  # what it holds cannot be pickled
        return f"object {id(transformer)}"


def _transform(transformer: Any, rows: Rows) -> FloatArray:
    try:
        output = transformer.transform(states_frame(rows))
    except ValueError:
        _check_finite(rows)
        raise
    states = np.asarray(output.toarray() if sparse.issparse(output) else output, dtype=np.float64)
    if states.ndim != 2 or len(states) != len(rows) or states.shape[1] == 0:
        raise ValueError(
            f"{OWNER}: `transformer` must return a row for each state, shape ({len(rows)}, m), got {states.shape}; choose "
            "another one."
        )
    bad = ~np.isfinite(states).all(axis=1)
    if bad.any():
        _check_finite(rows)
        raise ValueError(
            f"{OWNER}: `transformer` must return finite numbers, got NaN or infinite ones at {first_positions(bad)}; choose "
            "one that is defined at every state."
        )
    return states


def _check_finite(rows: Rows) -> None:
    """Raise if the states are at fault: only then, since an imputer may well take NaN."""
    float_array(OWNER, "states", rows.states, 2)


def _names_out(transformer: Any, width: int) -> tuple[str, ...]:
    try:
        names = tuple(str(name) for name in transformer.get_feature_names_out())
    except (AttributeError, ValueError):
        names = ()
    return names if len(names) == width else tuple(f"transformed_{i}" for i in range(width))
