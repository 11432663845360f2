"""`estimate_behavior`: the propensities of a log that recorded none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import joblib
import numpy as np
import pandas as pd
from sklearn.base import clone

from ope import gaussian, ragged
from ope.calibration import calibration_table as calibration_table
from ope.calibration import expected_calibration_error as expected_calibration_error
from ope.dataset import check_log
from ope.frame_write import ESTIMATES
from ope.inference.weights import fold_of
from ope.inputs import read_columns, states_frame
from ope.loggers import episode_loggers
from ope.model_kind import is_parametric, n_coefficients
from ope.schema import BehaviorSource
from ope.validation import ROUNDING, BoolArray, FloatArray, IntArray, first_positions

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset

OWNER = "estimate_behavior"
# Residuals below this share of the actions are rounding errors: the actions are a function of the columns.
NO_NOISE = 1e-10


def estimate_behavior(
    data: LoggedDataset,
    model: Any = None,
    *,
    by: str | None = None,
    columns: Sequence[str] | None = None,
    n_folds: int = 5,
    random_state: int = 0,
    overwrite: bool = False,
) -> LoggedDataset:
    """Estimate the propensities b(a|s) of a log, in-sample and cross-fitted by episode.

    Parameters
    ----------
    data : LoggedDataset
    model : classifier or regressor, optional
        For discrete actions a scikit-learn classifier with `predict_proba`, fitted on action codes 0, 1, ...; default:
        multinomial logistic regression on standardised columns. For continuous actions a regressor of one output, of
        which each action dimension gets a copy; default: linear regression. It is cloned, never fitted itself; where it
        has a `random_state` of None, it gets the one given here.
    by : str, optional
        Column of `extras` that says who logged an episode, the same in all its rows: every logger gets a model of its own.
    columns : sequence of str, optional
        State or other columns of the log to predict from; default: all states. The model gets a frame.
    n_folds : int
        Folds of the cross-fitted propensities, at least 2, or 0 to do without.
    random_state : int
        Seed of the folds and of the model.
    overwrite : bool
        Whether to replace known propensities.

    Returns
    -------
    LoggedDataset
        The log with `behavior_log_prob` (fitted on all episodes), `cross_fitted_log_prob` (fitted without the fold of
        the row's episode) and `behavior_source`, which holds the calibration of the cross-fitted probabilities, with a
        column "logger" where there are several. Columns of `extras` with earlier estimates that `to_pandas` wrote are
        left out.

    Raises
    ------
    ValueError
        If the propensities are known already, if the model gives an action that was taken probability 0, if an action
        was taken in one fold only, if continuous actions have no noise, or if `by` does not tell the logger of an episode.
    TypeError
        If the model does not serve the kind of the actions.

    Notes
    -----
    Importance sampling uses the in-sample propensities, which with a parametric model are conservative; doubly robust
    methods use the cross-fitted ones. With a flexible model, only the latter are sound. Estimating propensities that are known
    (`overwrite=True`) can lower the error of importance sampling, by up to a quarter in docs/behavior_history.md; its intervals
    are then too long.

    Unavailable actions get probability 0 and the rest is renormalised. Continuous actions are Gaussian around the
    regression, independent between dimensions: the variance of a linear model is the residual sum of squares divided by
    n minus the number of coefficients; that of a flexible one is the mean squared error in a fold held out for it.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1, 1, 0, 1, 1, 1, 1], np.zeros(8), lengths=[1] * 8, ends="terminal"
    ... )
    >>> np.exp(estimate_behavior(log, n_folds=2).behavior_log_prob).round(2)
    array([0.25, 0.75, 0.75, 0.25, 0.75, 0.75, 0.75, 0.75])
    """
    check_log(OWNER, data)
    _check_request(data, n_folds, random_state, overwrite)
    chosen = _default_model(data.discrete) if model is None else model

    def estimate(part: LoggedDataset) -> _Fitted:
        task = _Task(part, _inputs(part, columns), _prepared(chosen, part.discrete, random_state))
        folds = _row_folds(part, n_folds, random_state)
        return _discrete(task, folds) if part.discrete else _continuous(task, folds)

    fitted = estimate(data) if by is None else _by_logger(data, by, n_folds, estimate)
    table = fitted.calibration
    source = BehaviorSource(
        kind="estimated",
        model=" ".join(repr(chosen).split()) + ("" if by is None else f", one for each {by}"),
        parametric=fitted.parametric,
        n_folds=n_folds,
        calibration_error=None if table is None else expected_calibration_error(table),
        calibration=table,
    )
    return data.replace(
        behavior_log_prob=fitted.in_sample,
        cross_fitted_log_prob=fitted.cross_fitted,
        behavior_source=source,
        extras=_without_estimates(data.extras),
        final_extras=_without_estimates(data.final_extras),
    )


def _without_estimates(extras: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return other columns without the estimates that `to_pandas` once wrote: new ones take their names."""
    if extras is None:
        return None
    rest = extras.drop(columns=[name for name in ESTIMATES if name in extras])
    return rest if rest.shape[1] else None


@dataclass(frozen=True)
class _Task:
    data: LoggedDataset
    inputs: pd.DataFrame
    model: Any


@dataclass(frozen=True)
class _Fitted:
    in_sample: FloatArray
    cross_fitted: FloatArray | None
    parametric: bool
    calibration: pd.DataFrame | None = None


# -------------------------------------------------------------------- several loggers


def _by_logger(data: LoggedDataset, by: str, n_folds: int, estimate: Callable[[LoggedDataset], _Fitted]) -> _Fitted:
    """Estimate each logger's propensities from its own episodes."""
    codes, labels = episode_loggers(data, by, OWNER)
    in_sample = np.empty(data.n_transitions)
    cross_fitted = np.empty(data.n_transitions) if n_folds else None
    tables, parametric = [], True
    for code, label in enumerate(labels):
        part, rows = data.select(codes == code), np.repeat(codes == code, data.lengths)
        try:
            _check_folds(part, n_folds)
            fitted = estimate(part)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} (Rows are counted among the episodes with {by} = {label!r}.)") from error
        in_sample[rows], parametric = fitted.in_sample, fitted.parametric
        if cross_fitted is not None and fitted.cross_fitted is not None:
            cross_fitted[rows] = fitted.cross_fitted
        if fitted.calibration is not None:
            tables.append(fitted.calibration.assign(logger=label))
    calibration = pd.concat(tables, ignore_index=True) if tables else None
    return _Fitted(in_sample, cross_fitted, parametric, calibration)


# -------------------------------------------------------------------- what is asked for


def _check_request(data: LoggedDataset, n_folds: int, random_state: int, overwrite: bool) -> None:
    if data.known_propensities and not overwrite:
        raise ValueError(
            f"{OWNER}: `data` must not hold known propensities, which are better than estimated ones; keep them, or "
            "pass overwrite=True."
        )
    for name, value in (("n_folds", n_folds), ("random_state", random_state)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise TypeError(f"{OWNER}: `{name}` must be an integer, got {value!r}.")
    _check_folds(data, n_folds)


def _check_folds(data: LoggedDataset, n_folds: int) -> None:
    if n_folds != 0 and not 2 <= n_folds <= data.n_episodes:
        raise ValueError(
            f"{OWNER}: `n_folds` must be 0 (no cross-fitting) or from 2 to the number of episodes ({data.n_episodes}), "
            f"got {n_folds!r}; 5 is usual."
        )


def _default_model(discrete: bool) -> Any:
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000) if discrete else LinearRegression())


def _prepared(model: Any, discrete: bool, random_state: int) -> Any:
    if isinstance(model, type) or not (hasattr(model, "fit") and hasattr(model, "get_params")):
        raise TypeError(f"{OWNER}: `model` must be a scikit-learn estimator, got {model!r}; pass an instance of one.")
    if discrete != hasattr(model, "predict_proba"):
        rule = "a classifier with `predict_proba`" if discrete else "a regressor"
        remedy = "wrap it in CalibratedClassifierCV or take another classifier" if discrete else "take a regressor"
        raise TypeError(
            f"{OWNER}: `model` must be {rule} for {'discrete' if discrete else 'continuous'} actions, got "
            f"{type(model).__name__}; {remedy}."
        )
    fresh = clone(model)
    seeds = [
        name for name, value in fresh.get_params().items() if name.split("__")[-1] == "random_state" and value is None
    ]
    return fresh.set_params(**dict.fromkeys(seeds, int(random_state)))


def _inputs(data: LoggedDataset, columns: Sequence[str] | None) -> pd.DataFrame:
    return states_frame(data.rows()) if columns is None else read_columns(data.rows(), columns, OWNER)


def _row_folds(data: LoggedDataset, n_folds: int, seed: int) -> IntArray | None:
    if n_folds == 0:
        return None
    return fold_of(data.episode_keys, n_folds, int(seed))[ragged.episode_index(data.offsets)]


def _held_out(folds: IntArray, predict: Callable[[BoolArray], FloatArray]) -> FloatArray:
    """Collect the predictions for every fold by a model fitted on the others; a joblib backend may spread them."""
    parts = [folds == fold for fold in np.unique(folds)]
    predictions = joblib.Parallel()(joblib.delayed(predict)(test) for test in parts)
    out = np.empty((len(folds), *predictions[0].shape[1:]))
    for test, prediction in zip(parts, predictions, strict=True):
        out[test] = prediction
    return out


# -------------------------------------------------------------------- discrete actions


def _discrete(task: _Task, folds: IntArray | None) -> _Fitted:
    data = task.data
    everywhere = np.ones(data.n_transitions, dtype=bool)
    parametric = is_parametric(task.model)
    if folds is not None:
        _check_support(data, folds)
    in_sample = _logged(_class_probabilities(task, everywhere, everywhere), data, "fitted on all episodes")
    if folds is None:
        return _Fitted(in_sample, None, parametric)
    probs = _held_out(folds, lambda test: _class_probabilities(task, ~test, test))
    table = calibration_table(probs, data.actions, action_mask=data.action_mask, action_labels=data.action_labels)
    return _Fitted(in_sample, _logged(probs, data, "fitted without the row's fold"), parametric, table)


def _class_probabilities(task: _Task, train: BoolArray, test: BoolArray) -> FloatArray:
    """Return b(a|s) of all actions for the test rows, shape (n_test, n_actions), 0 for masked actions."""
    data = task.data
    present, codes = np.unique(data.actions[train], return_inverse=True)
    probs = np.zeros((int(test.sum()), data.n_actions))
    if len(present) == 1:
        probs[:, present] = 1.0
    else:
        # Codes without gaps: some classifiers refuse others, and an action may be absent from a training part.
        fitted = clone(task.model).fit(task.inputs[train], codes)
        probs[:, present[np.asarray(fitted.classes_)]] = fitted.predict_proba(task.inputs[test])
    return probs if data.action_mask is None else _renormalised(probs, data.action_mask[test])


def _renormalised(probs: FloatArray, mask: BoolArray) -> FloatArray:
    allowed = np.where(mask, probs, 0.0)
    total = allowed.sum(axis=1, keepdims=True)
    # Rows without any mass stay 0: the logged action is one of them and is reported with its row.
    return np.asarray(np.divide(allowed, total, out=allowed, where=total > 0))


def _check_support(data: LoggedDataset, folds: IntArray) -> None:
    counts = np.zeros((int(folds.max()) + 1, data.n_actions), dtype=np.int64)
    np.add.at(counts, (folds, data.actions), 1)
    alone = np.flatnonzero((counts > 0).sum(axis=0) == 1)
    if len(alone):
        labels = cast(Any, data.action_labels)[alone].tolist()
        fold = int(counts[:, alone[0]].argmax())
        raise ValueError(
            f"{OWNER}: every action must be taken in at least two folds of episodes, got {labels} in one only "
            f"({labels[0]!r} in {counts[fold, alone[0]]} rows of fold {fold}), so a model without that fold gives it "
            "probability 0; pool rare actions, leave out their episodes, take another random_state, or pass n_folds=0."
        )


def _logged(probs: FloatArray, data: LoggedDataset, how: str) -> FloatArray:
    logged = probs[np.arange(len(probs)), data.actions]
    bad = ~((logged > 0) & (logged <= 1 + ROUNDING))
    if bad.any():
        label = cast(Any, data.action_labels)[data.actions[bad][:1]].tolist()[0]
        raise ValueError(
            f"{OWNER}: `model` ({how}) must give every action that was taken a probability in (0, 1], got "
            f"{float(logged[bad][0])!r} for action {label!r} at {first_positions(bad)}; take a smoother model "
            "(larger leaves or neighbourhoods, stronger regularisation), or wrap it in CalibratedClassifierCV."
        )
    return np.asarray(np.log(np.minimum(logged, 1.0)))


# -------------------------------------------------------------------- continuous actions


def _continuous(task: _Task, folds: IntArray | None) -> _Fitted:
    everywhere = np.ones(task.data.n_transitions, dtype=bool)
    parametric = is_parametric(task.model)
    in_sample = _log_densities(task, folds, everywhere, everywhere)
    if folds is None:
        return _Fitted(in_sample, None, parametric)
    return _Fitted(in_sample, _held_out(folds, lambda test: _log_densities(task, folds, ~test, test)), parametric)


def _log_densities(task: _Task, folds: IntArray | None, train: BoolArray, test: BoolArray) -> FloatArray:
    models = _fit_means(task, train)
    linear = is_parametric(task.model)
    std = _linear_std(models, task, train) if linear else _held_out_std(task, folds, train)
    _check_noise(std, task.data.actions)
    return gaussian.log_density(task.data.actions[test], _means(models, task.inputs[test]), std)


def _fit_means(task: _Task, train: BoolArray) -> list[Any]:
    actions = task.data.actions[train]
    return [clone(task.model).fit(task.inputs[train], actions[:, j]) for j in range(actions.shape[1])]


def _means(models: list[Any], inputs: pd.DataFrame) -> FloatArray:
    return np.column_stack([np.asarray(model.predict(inputs), dtype=np.float64).ravel() for model in models])


def _linear_std(models: list[Any], task: _Task, train: BoolArray) -> FloatArray:
    residuals = task.data.actions[train] - _means(models, task.inputs[train])
    n_parameters = np.array([n_coefficients(model) for model in models])
    freedom = len(residuals) - n_parameters
    if (freedom <= 0).any():
        raise ValueError(
            f"{OWNER}: a linear model must have fewer coefficients than rows to fit, got {int(n_parameters.max())} for "
            f"{len(residuals)} rows; pass fewer columns=."
        )
    return np.asarray(np.sqrt((residuals**2).sum(axis=0) / freedom))


def _held_out_std(task: _Task, folds: IntArray | None, train: BoolArray) -> FloatArray:
    """Estimate the noise around a flexible model within its training part: its own residuals there are too small."""
    if folds is None or len(groups := np.unique(folds[train])) < 2:
        raise ValueError(
            f"{OWNER}: a flexible regressor needs n_folds of at least 3, of which one is held out to estimate the "
            "noise around it; pass n_folds=5."
        )
    held = train & (folds == groups[-1])
    models = _fit_means(task, train & ~held)
    residuals = task.data.actions[held] - _means(models, task.inputs[held])
    return np.asarray(np.sqrt((residuals**2).mean(axis=0)))


def _check_noise(std: FloatArray, actions: FloatArray) -> None:
    silent = ~(std > NO_NOISE * np.abs(actions).max(axis=0))
    if silent.any():
        raise ValueError(
            f"{OWNER}: continuous actions must vary around their regression, got none of it in dimension "
            f"{int(np.flatnonzero(silent)[0])}; the behaviour looks deterministic, so no density exists: use "
            "methods that need no propensities, or leave that dimension out."
        )
