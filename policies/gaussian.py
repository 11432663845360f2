"""`GaussianPolicy`: continuous actions around a mean, with independent Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope.gaussian import log_density, standard_normal_nodes
from ope.inputs import as_rows, check_fitted, model_input, read_columns, reads_new_states
from ope.policy import Policy, RandomState, generator
from ope.validation import FloatArray, first_positions

if TYPE_CHECKING:
    from ope.dataset import Rows

OWNER = "GaussianPolicy"


class GaussianPolicy(Policy):
    """A policy whose actions are Gaussian around a mean, independent between dimensions.

    Parameters
    ----------
    mean : callable, regressor or array-like of shape (d,) or (d, k)
        ``mean(states)`` of shape (n, k) or (n,); or a fitted regressor, or a policy, with `predict`; or coefficients of
        the linear mean ``states @ mean + intercept``.
    std : float, array-like of shape (k,), or callable
        Standard deviation, positive, in the unit of the actions; a callable returns shape (n, k), (n, 1) or (n,).
    intercept : float or array-like of shape (k,), optional
        With coefficients only; default 0.
    columns : sequence of str, optional
        State or other columns of the log that the mean and a callable `std` read, as a frame in this order; default:
        the states, as an array, or as a frame with the log's names for a regressor that was fitted on named features.
    feature_names : sequence of str, optional
        Names of the columns of bare arrays of states (`predict`, `sample` on new states); needed with `columns` only.

    Raises
    ------
    NotFittedError
        At first use: if the regressor is not fitted.
    ValueError
        At first use: if a shape does not fit, or `std` is not positive.

    Notes
    -----
    Expectations over its actions use Gauss-Hermite nodes, 5 in each of up to 3 dimensions, and 2k cubature points
    above: exact for Q functions that are polynomials of degree 9 in each action or of total degree 3.

    Examples
    --------
    >>> policy = GaussianPolicy(mean=[[0.5], [-1.0]], std=0.1, intercept=2.0)
    >>> policy.predict([[2.0, 1.0]])
    array([[2.]])
    >>> policy.log_prob([[2.0, 1.0]], [2.1]).round(4)
    array([0.8836])
    """

    def __init__(
        self,
        mean: Any,
        std: float | npt.ArrayLike | Callable[[Any], npt.ArrayLike],
        *,
        intercept: float | npt.ArrayLike | None = None,
        columns: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.mean = mean
        self.std = std
        self.intercept = intercept
        self.columns = columns
        self.feature_names = feature_names

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers; new states cannot be sampled where it reads other columns of the log."""
        offered = frozenset({"logged_prob", "density", "sample"})
        return offered if reads_new_states(self.columns, self.feature_names) else offered - {"sample"}

    @property
    def training_episode_keys_(self) -> npt.NDArray[np.uint64] | None:
        """Episodes that the policy serving as the mean was learned from, or None."""
        return getattr(self.mean, "training_episode_keys_", None)

    def predict(self, states: npt.ArrayLike) -> FloatArray:
        """Return the mean action of each state.

        Parameters
        ----------
        states : array-like of shape (n, d) or (n,), or DataFrame

        Returns
        -------
        ndarray of shape (n, k)
        """
        return self._mean(self._rows(states))

    def log_prob(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        """Return the log density of given actions.

        Parameters
        ----------
        states : array-like of shape (n, d) or (n,), or DataFrame
        actions : array-like of shape (n, k), or (n,) if k = 1

        Returns
        -------
        ndarray of shape (n,)
        """
        return self.log_prob_rows(self._rows(states), np.asarray(actions))

    def log_prob_rows(self, rows: Rows, actions: npt.NDArray[Any]) -> FloatArray:
        """Return the log density of the logged actions, shape (n,)."""
        mean, std = self._moments(rows)
        points = _matrix(actions, len(rows), "actions")
        if points.shape != mean.shape:
            raise ValueError(
                f"{OWNER}: actions must have the dimension of the mean, got {points.shape[1]} and {mean.shape[1]}; "
                "correct `mean`, or build the log with all action columns."
            )
        return log_density(points, mean, std)

    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> FloatArray:
        """Draw an action for each state.

        Parameters
        ----------
        states : array-like of shape (n, d) or (n,), or DataFrame
        random_state : int, Generator or None

        Returns
        -------
        ndarray of shape (n, k)
        """
        mean, std = self._moments(self._rows(states))
        return mean + std * generator(random_state).standard_normal(mean.shape)

    def quadrature_rows(self, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Return nodes (m, n, k) and weights (m,) for expectations over the actions in logged rows."""
        mean, std = self._moments(rows)
        nodes, weights = standard_normal_nodes(mean.shape[1])
        return mean + std * nodes[:, None, :], weights

    def _rows(self, states: npt.ArrayLike) -> Rows:
        names = self.feature_names
        if names is None and self.columns is None:
            names = getattr(self.mean, "feature_names_in_", None)
        return as_rows(states, OWNER, columns=self.columns, feature_names=names)

    def _moments(self, rows: Rows) -> tuple[FloatArray, FloatArray]:
        mean = self._mean(rows)
        shape = (mean.shape[0], mean.shape[1])
        if callable(self.std):
            inputs = self._read(rows)
            std = self.std(inputs)
            if np.shape(std) == (shape[1],) == (shape[0],) != (1,):
                _check_by_row(self.std, inputs)
            return mean, _checked_std(std, shape, by_row=True)
        return mean, _checked_std(self.std, shape, by_row=False)

    def _mean(self, rows: Rows) -> FloatArray:
        model = self.mean
        if not (hasattr(model, "predict") or callable(model)):
            return self._linear_mean(rows)
        if self.intercept is not None:
            raise ValueError(f"{OWNER}: `intercept` must be absent unless `mean` holds coefficients; add it in `mean`.")
        check_fitted(model, OWNER)
        if hasattr(model, "predict"):
            return _matrix(model.predict(model_input(model, rows, self.columns, OWNER)), len(rows), "mean")
        return _matrix(model(self._read(rows)), len(rows), "mean")

    def _linear_mean(self, rows: Rows) -> FloatArray:
        coefficients = np.asarray(self.mean, dtype=np.float64)
        coefficients = coefficients[:, None] if coefficients.ndim == 1 else coefficients
        inputs = np.asarray(self._read(rows), dtype=np.float64)
        if coefficients.ndim != 2 or len(coefficients) != inputs.shape[1]:
            raise ValueError(
                f"{OWNER}: coefficients `mean` must have shape (d, k) with d = {inputs.shape[1]} state columns, got "
                f"{np.shape(self.mean)}; transpose or complete them."
            )
        intercept = np.asarray(0.0 if self.intercept is None else self.intercept, dtype=np.float64)
        if intercept.shape not in {(), (coefficients.shape[1],)}:
            raise ValueError(
                f"{OWNER}: `intercept` must be a number or have shape {(coefficients.shape[1],)}, got "
                f"{intercept.shape}."
            )
        return inputs @ coefficients + intercept

    def _read(self, rows: Rows) -> Any:
        return rows.states if self.columns is None else read_columns(rows, self.columns, OWNER)


def _matrix(values: npt.ArrayLike, n: int, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != n:
        raise ValueError(f"{OWNER}: `{name}` must have shape (n, k) with n = {n} rows, got {np.shape(values)}.")
    return array


def _check_by_row(std: Callable[[Any], npt.ArrayLike], inputs: Any) -> None:
    """Raise a ValueError unless a function returns a value per row: on as many rows as dimensions its shape does not tell."""
    twice = pd.concat([inputs] * 2, ignore_index=True) if isinstance(inputs, pd.DataFrame) else np.tile(inputs, (2, 1))
    if np.shape(std(twice)) != (len(twice),):
        n = len(inputs)
        raise ValueError(
            f"{OWNER}: `std` as a function must return shape (n, {n}), (n, 1) or (n,) for n states, got {(n,)} for {n} and for "
            f"{2 * n} states; pass a constant one as an array, or return a row per state."
        )


def _checked_std(std: npt.ArrayLike, shape: tuple[int, int], by_row: bool) -> FloatArray:
    array = np.asarray(std, dtype=np.float64)
    array = array[:, None] if by_row and array.ndim == 1 else array
    if array.shape not in ({(), (shape[0], 1), shape} if by_row else {(), shape[1:]}):
        raise ValueError(
            f"{OWNER}: `std` must be a number, of shape {shape[1:]} (one per action dimension), or a function that "
            f"returns shape {shape}, ({shape[0]}, 1) or ({shape[0]},), got {np.shape(std)}; reshape it."
        )
    bad = ~((array > 0) & np.isfinite(array))
    if bad.any():
        where = f" at {first_positions(bad.any(axis=1))}" if array.ndim == 2 else ""
        raise ValueError(
            f"{OWNER}: `std` must be positive and finite, got {float(array[bad][0])!r}{where}; a policy without noise "
            "is FunctionPolicy(predict=...)."
        )
    return array
