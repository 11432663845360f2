"""Calibration of predicted action probabilities: whether actions predicted with probability p occur at rate p."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope.validation import BoolArray, check_length, float_array

OWNER = "calibration_table"
ROUNDING = 1e-9


def calibration_table(
    probs: npt.ArrayLike, codes: npt.ArrayLike, n_bins: int = 10, action_mask: BoolArray | None = None
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

    Returns
    -------
    DataFrame
        A row per bin that holds predictions: `low`, `high` (its bounds), `count` (pairs of row and action),
        `mean_prediction`, `observed_frequency`.

    Raises
    ------
    ValueError, TypeError
        If the shapes do not fit, a probability is outside [0, 1], or a code is no column.

    Examples
    --------
    >>> table = calibration_table([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]], [0, 1, 1], n_bins=2)
    >>> table[["count", "mean_prediction", "observed_frequency"]].round(2).values.tolist()
    [[3.0, 0.2, 0.33], [3.0, 0.8, 0.67]]
    """
    predicted, taken = _pairs(probs, codes, action_mask)
    if n_bins < 1:
        raise ValueError(f"{OWNER}: `n_bins` must be at least 1, got {n_bins!r}; 10 is usual.")
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    bins = np.clip(np.searchsorted(edges, predicted, side="left") - 1, 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    held = counts > 0
    return pd.DataFrame(
        {
            "low": edges[:-1][held],
            "high": edges[1:][held],
            "count": counts[held],
            "mean_prediction": np.bincount(bins, predicted, n_bins)[held] / counts[held],
            "observed_frequency": np.bincount(bins, taken, n_bins)[held] / counts[held],
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
    sum_b (n_b / n) |mean prediction_b - observed frequency_b| over pairs of row and action.

    References
    ----------
    Naeini, Cooper & Hauskrecht (2015), "Obtaining well calibrated probabilities using Bayesian binning",
    doi:10.1609/aaai.v29i1.9602.

    Examples
    --------
    >>> table = calibration_table([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]], [0, 1, 1], n_bins=2)
    >>> round(expected_calibration_error(table), 4)
    0.1333
    """
    gap = (table["mean_prediction"] - table["observed_frequency"]).abs()
    return float((gap * table["count"]).sum() / table["count"].sum())


def _pairs(
    probs: npt.ArrayLike, codes: npt.ArrayLike, action_mask: BoolArray | None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    matrix, columns = float_array(OWNER, "probs", probs, 2), np.asarray(codes)
    check_length(OWNER, "codes", columns, len(matrix), "row of `probs`")
    if matrix.size == 0 or matrix.min() < 0 or matrix.max() > 1 + ROUNDING:
        raise ValueError(f"{OWNER}: `probs` must hold probabilities in [0, 1], at least one; correct the model.")
    if columns.dtype.kind not in "iu" or columns.min() < 0 or columns.max() >= matrix.shape[1]:
        raise ValueError(f"{OWNER}: `codes` must be column numbers from 0 to {matrix.shape[1] - 1}; pass data.actions.")
    taken = np.zeros(matrix.shape)
    taken[np.arange(len(columns)), columns] = 1.0
    available = slice(None) if action_mask is None else np.asarray(action_mask, dtype=bool).ravel()
    return matrix.ravel()[available], taken.ravel()[available]
