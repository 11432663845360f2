"""What a model inside a policy reads: the states, or named columns of them and of a log's other columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from ope.dataset import Rows
from ope.policy import Policy, check_feature_names
from ope.validation import FloatArray


def read_columns(rows: Rows, names: Sequence[str], owner: str) -> pd.DataFrame:
    """Return state or extra columns of logged rows as a frame, in the order of `names`.

    Parameters
    ----------
    rows : Rows
    names : sequence of str
    owner : str
        Whom an error message speaks of.

    Returns
    -------
    DataFrame
        With a fresh index; state columns are floats, extra columns keep their types.

    Raises
    ------
    ValueError
        If a column does not exist in these rows, or is named twice.

    Examples
    --------
    >>> rows = Rows(np.array([[1.0, 2.0]]), ("age", "pulse"), extras=pd.DataFrame({"ward": ["a"]}))
    >>> read_columns(rows, ["ward", "age"], "Example").to_dict("list")
    {'ward': ['a'], 'age': [1.0]}
    """
    if isinstance(names, str):
        raise TypeError(f"{owner}: `columns` must be a list of names, got {names!r}; pass [{names!r}].")
    if len(set(names)) != len(names):
        raise ValueError(f"{owner}: `columns` must be distinct, got {list(names)}; name each column once.")
    return pd.DataFrame({name: _column(rows, name, owner) for name in names}, index=pd.RangeIndex(len(rows)))


def _column(rows: Rows, name: str, owner: str) -> Any:
    if name in rows.feature_names:
        return rows.states[:, rows.feature_names.index(name)]
    if rows.extras is not None and name in rows.extras.columns:
        return rows.extras[name].array
    others = "no other columns" if rows.extras is None else f"other columns {list(rows.extras.columns)}"
    raise ValueError(
        f"{owner}: column {name!r} must be a state or another column of the rows at hand, got states "
        f"{list(rows.feature_names)} and {others}; correct the name, or, if only the final states lack it, record it "
        'there (final_row="state_only" or final_extras=) or use a method that looks at logged rows only.'
    )


def model_input(model: Any, rows: Rows, columns: Sequence[str] | None, owner: str) -> Any:
    """Return what `model` reads of logged rows: the named columns, or the states.

    A model that was fitted on named features gets a frame, after the names were compared; one that was fitted on an
    array gets an array.
    """
    unnamed = not hasattr(model, "feature_names_in_")
    if columns is not None:
        frame = read_columns(rows, columns, owner)
        check_feature_names(model, columns, owner)
        return frame.to_numpy() if unnamed and hasattr(model, "n_features_in_") else frame
    if unnamed:
        return rows.states
    check_feature_names(model, rows.feature_names, owner)
    return rows.states if isinstance(model, Policy) else states_frame(rows)


def states_frame(rows: Rows) -> pd.DataFrame:
    """Return the states as a frame with the log's names, copying nothing."""
    return pd.DataFrame(rows.states, columns=pd.Index(rows.feature_names, dtype=object), copy=False)


def as_rows(
    states: npt.ArrayLike | pd.DataFrame,
    owner: str,
    *,
    columns: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
) -> Rows:
    """Wrap states that come from no log, as `predict` and `sample` get them.

    Parameters
    ----------
    states : DataFrame, or array-like of shape (n, d) or (n,)
    owner : str
    columns : sequence of str, optional
        The columns that will be read; a frame of states may then hold columns of any type.
    feature_names : sequence of str, optional
        Names of the columns of an array.

    Returns
    -------
    Rows

    Raises
    ------
    ValueError
        If the number of names is not the number of columns.

    Examples
    --------
    >>> as_rows([[1.0, 2.0]], "Example", feature_names=["age", "pulse"]).feature_names
    ('age', 'pulse')
    """
    if isinstance(states, pd.DataFrame):
        if columns is not None:
            return Rows(np.empty((len(states), 0)), (), extras=states)
        return Rows(_numbers(states, owner), tuple(states.columns))
    array = np.asarray(states)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise ValueError(
            f"{owner}: `states` must have shape (n, d), got {_form(states, array)}; pass a row per state, of a log its .states."
        )
    if array.dtype.kind in "mM":
        raise TypeError(f"{owner}: `states` must be numeric, got dtype {array.dtype}; encode times as numbers first.")
    names = [f"state_{i}" for i in range(array.shape[1])] if feature_names is None else list(feature_names)
    if len(names) != array.shape[1]:
        raise ValueError(
            f"{owner}: `states` must have a column for each of {names}, got shape {np.shape(states)}; "
            "pass the states with the columns that the policy was built for."
        )
    return Rows(array, tuple(names))


def _form(states: Any, array: npt.NDArray[Any]) -> str:
    return str(array.shape) if array.dtype.kind != "O" or array.ndim > 0 else f"a {type(states).__name__}"


def _numbers(frame: pd.DataFrame, owner: str) -> FloatArray:
    """Return states as floats (n, d); a time or a text is no number."""
    wrong = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    if wrong:
        raise TypeError(
            f"{owner}: `states` must be numeric, got column {wrong[0]!r} of dtype {frame[wrong[0]].dtype}; encode it as the log of "
            "the fit has it."
        )
    return np.asarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))


def reads_new_states(columns: Sequence[str] | None, feature_names: Sequence[str] | None) -> bool:
    """Return whether a model that reads `columns` can work on bare arrays of states."""
    return columns is None or (feature_names is not None and set(columns) <= set(feature_names))


def check_fitted(model: Any, owner: str) -> None:
    """Raise a NotFittedError that names the remedy if `model` has a `fit` that was not called."""
    if isinstance(model, Policy) or not hasattr(model, "fit"):
        return
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise NotFittedError(
            f"{owner}: the model must be fitted before it serves as a policy, got an unfitted "
            f"{type(model).__name__}; call its fit first."
        ) from error


def known_numbers(frame: pd.DataFrame, owner: str) -> FloatArray:
    """Return the columns as floats of shape (n, k); infinite values pass, missing ones do not."""
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise TypeError(
                f"{owner}: column {name!r} must be numeric, got dtype {frame[name].dtype}; convert it to numbers."
            )
        if frame[name].isna().any():
            raise ValueError(
                f"{owner}: column {name!r} must not be missing, got {int(frame[name].isna().sum())} missing values in "
                f"{len(frame)} rows; complete it, at final states too, or leave out these episodes."
            )
    return np.asarray(frame.to_numpy(dtype=np.float64))
