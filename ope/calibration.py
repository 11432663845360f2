"""Calibration of predicted action probabilities: whether actions predicted with probability p occur at rate p."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope.validation import BoolArray, FloatArray, check_length, float_array

OWNER = "calibration_table"
ROUNDING = 1e-9


def calibration_table(
    probs: npt.ArrayLike,
    codes: npt.ArrayLike,
    n_bins: int = 10,
    *,
    action_mask: BoolArray | None = None,
    action_labels: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """Compare predicted probabilities of actions with how often these actions were taken.

    Parameters
    ----------
    probs : array-like of shape (n, n_actions)
        Predicted probability of every action, from a model that did not see the row.
    codes : array-like of shape (n,)
        Column number of the action taken.
    n_bins : int
        Bins of equal width over [0, 1], closed on the right; the first one holds 0 too.
    action_mask : ndarray of shape (n, n_actions), optional
        Pairs of row and action that were unavailable are left out.
    action_labels : array-like of shape (n_actions,), optional
        What to call the actions; default: their column numbers.

    Returns
    -------
    DataFrame
        A row per action and bin that holds predictions: `action`, `low`, `high` (bounds of the bin), `count`,
        `mean_prediction`, `observed_frequency`.

    Raises
    ------
    ValueError, TypeError
        If the shapes do not fit, a probability is outside [0, 1], or a code is no column.

    Notes
    -----
    Actions are kept apart: over all of them together, errors cancel, because probabilities and frequencies both sum to
    1. Predicting 1/2 for each of two actions would look calibrated whatever is taken.

    Examples
    --------
    >>> table = calibration_table([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]], [0, 1, 1], n_bins=2)
    >>> table[["action", "count", "mean_prediction", "observed_frequency"]].round(2).values.tolist()
    [[0.0, 3.0, 0.2, 0.33], [1.0, 3.0, 0.8, 0.67]]
    """
    matrix, taken = _checked(probs, codes)
    chosen, names = _chosen(matrix, action_mask), _names(matrix, action_labels)
    if n_bins < 1:
        raise ValueError(f"{OWNER}: `n_bins` must be at least 1, got {n_bins!r}; 10 is usual.")
    edges, n_actions = np.linspace(0.0, 1.0, n_bins + 1), matrix.shape[1]
    bins = np.clip(np.searchsorted(edges, matrix, side="left") - 1, 0, n_bins - 1)
    cells, size = bins + n_bins * np.arange(n_actions), n_bins * n_actions
    counts = np.bincount(cells[chosen], minlength=size)
    held = np.flatnonzero(counts)
    return pd.DataFrame(
        {
            "action": names[held // n_bins],
            "low": edges[held % n_bins],
            "high": edges[held % n_bins + 1],
            "count": counts[held],
            "mean_prediction": np.bincount(cells[chosen], matrix[chosen], size)[held] / counts[held],
            "observed_frequency": np.bincount(cells[chosen], taken[chosen], size)[held] / counts[held],
        }
    )


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Return the mean distance between predicted and observed frequency of a calibration table.

    Parameters
    ----------
    table : DataFrame
        From `calibration_table`.

    Returns
    -------
    float
        In [0, 1].

    Notes
    -----
    sum_c (n_c / n) |mean prediction_c - observed frequency_c| over the cells c of action and bin: the classwise error.

    References
    ----------
    Kull et al. (2019), "Beyond temperature scaling: obtaining well-calibrated multi-class probabilities with Dirichlet
    calibration", arXiv:1910.12656.

    Examples
    --------
    >>> table = calibration_table([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]], [0, 1, 1], n_bins=2)
    >>> round(expected_calibration_error(table), 4)
    0.1333
    """
    gap = (table["mean_prediction"] - table["observed_frequency"]).abs()
    return float((gap * table["count"]).sum() / table["count"].sum())


def _checked(probs: npt.ArrayLike, codes: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    matrix, columns = float_array(OWNER, "probs", probs, 2), np.asarray(codes)
    check_length(OWNER, "codes", columns, len(matrix), "row of `probs`")
    if matrix.size == 0 or matrix.min() < 0 or matrix.max() > 1 + ROUNDING:
        raise ValueError(f"{OWNER}: `probs` must hold probabilities in [0, 1], at least one; correct the model.")
    if columns.dtype.kind not in "iu" or columns.min() < 0 or columns.max() >= matrix.shape[1]:
        raise ValueError(f"{OWNER}: `codes` must be column numbers from 0 to {matrix.shape[1] - 1}; pass data.actions.")
    taken = np.zeros(matrix.shape)
    taken[np.arange(len(columns)), columns] = 1.0
    return matrix, taken


def _chosen(matrix: FloatArray, action_mask: npt.ArrayLike | None) -> BoolArray:
    if action_mask is None:
        return np.ones(matrix.shape, dtype=bool)
    mask = np.asarray(action_mask, dtype=bool)
    if mask.shape != matrix.shape:
        raise ValueError(
            f"{OWNER}: `action_mask` must have the shape of `probs`, {matrix.shape}, got {mask.shape}; pass data.action_mask."
        )
    return mask


def _names(matrix: FloatArray, action_labels: npt.ArrayLike | None) -> npt.NDArray[Any]:
    if action_labels is None:
        return np.arange(matrix.shape[1])
    labels = np.asarray(action_labels)
    if labels.shape != matrix.shape[1:]:
        raise ValueError(
            f"{OWNER}: `action_labels` must name each of the {matrix.shape[1]} columns of `probs`, got shape {labels.shape}; pass "
            "data.action_labels."
        )
    return labels
