"""Fitted Q evaluation (FQE) with any scikit-learn regressor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import has_fit_parameter

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import Basis, check_features, check_model, fit_basis, history_features, unfitted
from ope.estimators._linear import past_p_value, step_rows
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators.importance_sampling import unlogged_mass
from ope.inference.weights import resampling_weights
from ope.policy import Policy, Requirement, action_nodes, continuing_ends, probabilities
from ope.validation import FloatArray, IntArray, check_integer, check_number
from ope.verdict import Level, Verdict

DIVERGENCE_FACTOR = 10.0
STEADY_ITERATIONS = 3


class FittedQEvaluation(QEstimator):
    """Fitted Q evaluation: regress r + gamma E_pi Q(s', .) on (s, a), again and again.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    regressor : scikit-learn regressor or None
        Default: extremely randomised trees with leaves of at least 5 rows.
    features : None, "auto", "identity" or scikit-learn transformer
        What the regressor sees. None: the states beside the one-hot (or continuous) action, which suits trees; else features of
        the states in a block for each discrete action (see `LSTDQ`), which linear models need.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value.
    max_iter : int
        Limit of the iterations of a stationary fit; an estimate that needs more is not VALID.
    tol : float
        Converged when the value and the root mean square of the next-state values move by less than `tol` standard
        deviations of the targets (at least thousandths of their mean size), three times in a row.
    n_bootstrap : int
        Refits on resampled episodes, which give the interval; 0 for none.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of draws and resamples, and of a regressor or features whose own `random_state` is None.

    Notes
    -----
    With a horizon H there are H regressions, solved backwards: exact in H steps. Otherwise the regression is iterated; off the
    candidate's own distribution it may diverge, which is detected and refused. There is no influence vector: intervals come
    from the bootstrap over episodes [2]_, or from `DoublyRobust` with this Q.

    References
    ----------
    .. [1] Ernst, Geurts, Wehenkel (2005). Tree-based batch mode reinforcement learning. JMLR 6.
    .. [2] Hao, Ji, Duan, Lu, Szepesvari, Wang (2021). Bootstrapping fitted Q-evaluation. ICML.

    Examples
    --------
    >>> from sklearn.linear_model import LinearRegression
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="horizon", behavior_prob=[0.5] * 4
    ... )
    >>> fqe = FittedQEvaluation(gamma=1.0, regressor=LinearRegression(fit_intercept=False), features="auto")
    >>> round(fqe.fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}), frozenset({"sample"}))

    def __init__(
        self,
        *,
        gamma: float | None = None,
        regressor: Any = None,
        features: Any = None,
        stationary: bool = False,
        max_iter: int = 1000,
        tol: float = 1e-3,
        n_bootstrap: int = 0,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.regressor = regressor
        self.features = features
        self.stationary = stationary
        self.max_iter = max_iter
        self.tol = tol
        self.n_bootstrap = n_bootstrap
        self.n_samples = n_samples
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        if self.features is not None:
            check_features(owner, self.features)
        check_model(owner, "regressor", self.regressor, "a scikit-learn regressor or None", "predict")
        for name, least in (("max_iter", 1), ("n_bootstrap", 0), ("n_samples", 1), ("random_state", 0)):
            check_integer(owner, name, getattr(self, name), least)
        check_number(owner, "tol", self.tol, "positive", "pass e.g. 1e-3", 0.0, above=True)

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> FittedQModel:
        """Fit the Q function and return it."""
        log, weight = _in_key_order(data, episode_weight)
        return self._fit_design(self._design(log, policy), weight, log.horizon)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        log, weight = _in_key_order(data, weight)
        design = self._design(log, policy)
        model = self._fit_design(design, weight, log.horizon)
        value = self._value(model, design, weight)
        diagnostics, findings = self._diagnose(log, policy, model, design, value, weight)
        estimate = self._result(
            data,
            name,
            value=value,
            horizon=None if self._is_stationary(data) else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )
        if not self.n_bootstrap or model.status == "diverged":
            return estimate
        resample_id = f"{data.data_id}-bayesian-{self.random_state}-{self.n_bootstrap}"
        return replace(estimate, replicates=self._replicates(log, design, weight), resample_id=resample_id)

    def _replicates(self, data: LoggedDataset, design: _Design, weight: FloatArray) -> FloatArray:
        values = np.empty(self.n_bootstrap)
        for b in range(self.n_bootstrap):
            drawn = weight * resampling_weights(data.episode_keys, 1, seed=self.random_state, start=b)[0]
            drawn /= drawn.mean()
            values[b] = self._value(self._fit_design(design, drawn, data.horizon), design, drawn)
        return values

    def _fit_design(self, design: _Design, weight: FloatArray, horizon: int | None) -> FittedQModel:
        if design.stationary:
            return self._iterate(design, weight)
        return self._backwards(design, weight, int(horizon or 1))

    def _value(self, model: FittedQModel, design: _Design, weight: FloatArray) -> float:
        starts = design.offsets[:-1]
        return float(np.mean(weight * design.state_values(model.regressors[0], starts)))

    def _is_stationary(self, data: LoggedDataset) -> bool:
        return self.stationary or data.horizon is None

    # ---------------------------------------------------------------- fitting

    def _design(self, data: LoggedDataset, policy: Policy) -> _Design:
        return make_design(
            data, policy, self._inputs(data), self._is_stationary(data), self.n_samples, self.random_state
        )

    def _inputs(self, data: LoggedDataset) -> Basis:
        if self.features is None:
            return SideBySide(None, data.n_actions if data.discrete else None)
        return fit_basis(self.features, data, self.random_state)

    def _new_regressor(self) -> Any:
        if self.regressor is not None:
            return unfitted(self.regressor, self.random_state)
        from sklearn.ensemble import ExtraTreesRegressor

        return ExtraTreesRegressor(n_estimators=25, min_samples_leaf=5, random_state=self.random_state)

    def _regress(self, x: FloatArray, y: FloatArray, row_weight: FloatArray) -> Any:
        regressor = self._new_regressor()
        if np.all(row_weight == row_weight[0]):
            return regressor.fit(x, y)
        if hasattr(regressor, "steps"):
            return regressor.fit(x, y, **{f"{regressor.steps[-1][0]}__sample_weight": row_weight})
        if not has_fit_parameter(regressor, "sample_weight"):
            raise TypeError(
                f"{type(self).__name__}: {type(regressor).__name__} takes no sample_weight, which episode weights and the bootstrap need; use another regressor."
            )
        return regressor.fit(x, y, sample_weight=row_weight)

    def _backwards(self, design: _Design, weight: FloatArray, horizon: int) -> FittedQModel:
        regressors: list[Any] = [None] * horizon
        v_rows, v_final = np.zeros(len(design.rewards)), np.zeros(len(design.offsets) - 1)
        residuals = np.zeros(len(design.rewards))
        row_weight = np.repeat(weight, np.diff(design.offsets))
        for t in range(horizon - 1, -1, -1):
            rows = step_rows(design.offsets, t)
            if len(rows) and row_weight[rows].sum() > 0:
                y = design.rewards[rows] + self._gamma * ragged.shift_to_next(v_rows, design.offsets, v_final)[rows]
                regressors[t] = self._regress(design.x[rows], y, row_weight[rows])
                residuals[rows] = y - regressors[t].predict(design.x[rows])
                v_rows[rows] = design.state_values(regressors[t], rows)
            chosen = np.flatnonzero(design.final_known & (np.diff(design.offsets) == t))
            v_final[chosen] = design.final_values(regressors[t], chosen)
        return FittedQModel(
            design.inputs, regressors, False, self.n_samples, self.random_state, "converged", horizon, residuals
        )

    def _iterate(self, design: _Design, weight: FloatArray) -> FittedQModel:
        used, row_weight = design.used, np.repeat(weight, np.diff(design.offsets))
        if not used.any():
            raise ValueError(
                f"{type(self).__name__}.fit: `data` must hold a transition whose next state is known or terminal, got none in "
                f"{len(used)}; record the final states, or flag terminal ends."
            )
        limit = self._divergence_limit(design.rewards)
        v_next, value, steady, status, regressor = np.zeros(len(design.rewards)), np.inf, 0, "stopped", None
        starts, finals = design.offsets[:-1], np.flatnonzero(design.final_known)
        v_final = np.zeros(len(starts))
        for iteration in range(1, self.max_iter + 1):  # noqa: B007 (the last one is reported)
            y = design.rewards + self._gamma * v_next
            regressor = self._regress(design.x[used], y[used], row_weight[used])
            v = design.state_values(regressor, slice(None))
            v_final[finals] = design.final_values(regressor, finals)
            moved = ragged.shift_to_next(v, design.offsets, v_final)
            new_value = float(np.mean(weight * v[starts]))
            if not np.isfinite(v).all() or np.abs(v).max() > limit:
                status = "diverged"
                break
            # The targets of constant rewards have no spread: a thousandth of their size stands in for it.
            spread = max(float(np.std(y[used])), 1e-3 * float(np.mean(np.abs(y[used]))), np.finfo(float).tiny)
            tolerance = self.tol * spread
            settled = (
                abs(new_value - value) <= tolerance and float(np.sqrt(np.mean((moved - v_next) ** 2))) <= tolerance
            )
            steady = steady + 1 if settled else 0
            v_next, value = moved, new_value
            if steady == STEADY_ITERATIONS or self._gamma == 0.0:
                status = "converged"
                break
        residuals = (
            np.where(used, design.rewards + self._gamma * v_next - regressor.predict(design.x), 0.0)
            if regressor is not None
            else v_next
        )
        return FittedQModel(
            design.inputs, [regressor], True, self.n_samples, self.random_state, status, iteration, residuals
        )

    def _divergence_limit(self, rewards: FloatArray) -> float:
        largest = max(float(np.abs(rewards).max()), np.finfo(float).tiny)
        return DIVERGENCE_FACTOR * largest / (1.0 - self._gamma) if self._gamma < 1.0 else 1e6 * largest

    # ---------------------------------------------------------------- diagnostics and verdict

    def _diagnose(
        self,
        data: LoggedDataset,
        policy: Policy,
        model: FittedQModel,
        design: _Design,
        value: float,
        weight: FloatArray,
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        mass, labels = unlogged_mass(data, policy)
        phi = fit_basis("auto", data).logged(data.states, data.actions)
        p_value = past_p_value(
            phi, history_features(data), model.residuals, data.offsets, weight, time_indexed=not model.stationary
        )
        diagnostics = {
            "status": model.status,
            "iterations": model.iterations,
            "specification_p": p_value,
            "truncated_share": verdicts.truncated_share(data),
            "left_out_transitions": int((~design.used).sum()),
        }
        return diagnostics, [
            verdicts.judge_finite(value, None),
            verdicts.judge_range(value, data, self._gamma, model.stationary, Level.REFUSE),
            _judge_status(model, self.max_iter, self._gamma),
            _judge_interval(self.n_bootstrap),
            verdicts.judge_specification(p_value),
            verdicts.judge_unlogged(mass, labels),
        ]


def _in_key_order(data: LoggedDataset, weight: FloatArray) -> tuple[LoggedDataset, FloatArray]:
    # Trees break ties between equal splits by rounding, which follows the order of the rows: one order for all logs of
    # the same episodes.
    order = np.argsort(data.episode_keys)
    return data.select(order), weight[order]


def _judge_status(model: FittedQModel, max_iter: int, gamma: float) -> verdicts.Finding:
    if model.status == "diverged":
        return Level.REFUSE, (
            f"The fitted values diverged after {model.iterations} iterations, beyond what rewards allow: the value means nothing. Use LSTDQ or a doubly "
            "robust method, trees instead of a linear regressor, or a smaller gamma."
        )
    if model.status == "stopped" and gamma == 1.0:
        return Level.REFUSE, (
            f"The fitted values still moved after {max_iter} iterations without discounting: unless every episode terminates there is no value. Use "
            "gamma < 1, or log the horizon."
        )
    if model.status == "stopped":
        return Level.CAUTION, (
            f"The fitted values still moved after {max_iter} iterations: the value depends on where it stopped. Raise max_iter=, or use LSTDQ."
        )
    return None


def _judge_interval(n_bootstrap: int) -> verdicts.Finding:
    if n_bootstrap:
        return None
    return Level.CAUTION, (
        "Fitted Q evaluation alone gives no interval: nothing says how far off the value may be. Pass n_bootstrap=200, or use DoublyRobust with this "
        "estimator as q=."
    )


class SideBySide(Basis):
    """States beside the one-hot (or continuous) action, as trees like it."""

    def logged(self, states: FloatArray, actions: npt.NDArray[Any]) -> FloatArray:
        """Return [s, a], shape (n, k)."""
        code = actions if self.n_actions is None else np.eye(self.n_actions)[actions]
        return np.hstack([states, code])

    def every_action(self, states: FloatArray) -> FloatArray:
        """Return [s, a] for every discrete action, shape (n, n_actions, k)."""
        assert self.n_actions is not None
        n = len(states)
        repeated = np.repeat(states[:, None, :], self.n_actions, axis=1)
        codes = np.broadcast_to(np.eye(self.n_actions), (n, self.n_actions, self.n_actions))
        return np.concatenate([repeated, codes], axis=2)


@dataclass(frozen=True)
class _Design:
    """A log as regression matrices: inputs of logged actions, and of all actions (or nodes) with their weights under the candidate."""

    inputs: Basis
    x: FloatArray
    x_nodes: FloatArray
    node_weights: FloatArray
    final_nodes: FloatArray
    final_weights: FloatArray
    final_position: IntArray
    final_known: npt.NDArray[np.bool_]
    used: npt.NDArray[np.bool_]
    rewards: FloatArray
    offsets: IntArray
    stationary: bool

    def state_values(self, regressor: Any, rows: IntArray | slice) -> FloatArray:
        """Return E_pi Q(s, .) at the chosen rows."""
        return _mean_prediction(regressor, self.x_nodes[rows], self.node_weights[rows])

    def final_values(self, regressor: Any, episodes: IntArray) -> FloatArray:
        """Return E_pi Q(s, .) at the final states of the chosen episodes."""
        position = self.final_position[episodes]
        return _mean_prediction(regressor, self.final_nodes[position], self.final_weights[position])


def _mean_prediction(regressor: Any, nodes: FloatArray, node_weights: FloatArray) -> FloatArray:
    if regressor is None or len(nodes) == 0:
        return np.zeros(len(nodes))
    n, m, k = nodes.shape
    predicted = np.asarray(regressor.predict(nodes.reshape(n * m, k))).reshape(n, m)
    return np.asarray(np.einsum("nm,nm->n", node_weights, predicted))


def make_design(
    data: LoggedDataset, policy: Policy, inputs: Basis, stationary: bool, n_samples: int, random_state: int
) -> _Design:
    """Compute the regression matrices of a log for one candidate."""
    goes_on = continuing_ends(data, stationary)
    known = goes_on & data.final_known()
    finals = np.flatnonzero(known)
    x_nodes, node_weights = _nodes(policy, data.rows(), data, inputs, n_samples, random_state)
    if len(finals):
        final_nodes, final_weights = _nodes(policy, data.final_rows(finals), data, inputs, n_samples, random_state)
    else:
        final_nodes, final_weights = x_nodes[:0], node_weights[:0]
    used = np.ones(data.n_transitions, dtype=bool)
    used[data.offsets[1:][goes_on & ~known] - 1] = False
    position = np.full(data.n_episodes, -1)
    position[finals] = np.arange(len(finals))
    x = inputs.logged(data.states, data.actions)
    return _Design(
        inputs,
        x,
        x_nodes,
        node_weights,
        final_nodes,
        final_weights,
        position,
        known,
        used,
        data.rewards,
        data.offsets,
        stationary,
    )


def _nodes(
    policy: Policy, rows: Any, data: LoggedDataset, inputs: Basis, n_samples: int, random_state: int
) -> tuple[FloatArray, FloatArray]:
    if data.action_labels is not None:
        return inputs.every_action(rows.states), probabilities(policy, rows, data.action_labels)
    nodes, weights = action_nodes(policy, rows, n_samples, random_state)
    x = np.stack([inputs.logged(rows.states, actions) for actions in nodes], axis=1)
    return x, np.broadcast_to(weights, x.shape[:2])


@dataclass(frozen=True)
class FittedQModel:
    """Regressors of Q, one per step if time-indexed, with how the fit ended."""

    inputs: Basis
    regressors: list[Any]
    stationary: bool
    n_samples: int
    random_state: int
    status: str
    iterations: int
    residuals: FloatArray

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        """Value the rows of a log."""
        design = make_design(data, policy, self.inputs, self.stationary, self.n_samples, self.random_state)
        if self.stationary:
            finals = np.flatnonzero(design.final_known)
            v_final = np.zeros(data.n_episodes)
            v_final[finals] = design.final_values(self.regressors[0], finals)
            return QPredictions(
                np.asarray(self.regressors[0].predict(design.x)),
                design.state_values(self.regressors[0], slice(None)),
                v_final,
            )
        return self._predict_by_step(design, data)

    def _predict_by_step(self, design: _Design, data: LoggedDataset) -> QPredictions:
        q, v, v_final = np.zeros(data.n_transitions), np.zeros(data.n_transitions), np.zeros(data.n_episodes)
        for t, regressor in enumerate(self.regressors):
            rows = step_rows(data.offsets, t)
            if regressor is not None and len(rows):
                q[rows], v[rows] = regressor.predict(design.x[rows]), design.state_values(regressor, rows)
            chosen = np.flatnonzero(design.final_known & (data.lengths == t))
            v_final[chosen] = design.final_values(regressor, chosen)
        return QPredictions(q, v, v_final)
