"""Doubly robust estimation for sequential decisions, plain and weighted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.diagnostics import effective_sample_size, pareto_k
from ope.estimate import Estimate
from ope.estimator import EXACT, STATISTICAL, OffPolicyEstimator, inherit_gamma
from ope.estimators import _verdicts as verdicts
from ope.estimators import _weights as weights
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators.importance_sampling import (
    per_decision_scores,
    steps_with_mass,
    unlogged_mass,
    weighted_per_decision_influence,
)
from ope.estimators.lstdq import LSTDQ
from ope.inference.weights import fold_of
from ope.policy import Policy, Requirement, continuing_ends
from ope.validation import FloatArray, IntArray, check_integer
from ope.verdict import Level, Verdict

# -------------------------------------------------------------------- mathematics


def temporal_differences(rewards: FloatArray, predictions: QPredictions, offsets: IntArray, gamma: float) -> FloatArray:
    """Return delta_t = r_t + gamma Vhat(s_{t+1}) - Qhat(s_t, a_t), shape (n,).

    Examples
    --------
    >>> fitted = QPredictions(q=np.array([1.0, 2.0]), v=np.array([1.0, 4.0]), v_final=np.array([0.0]))
    >>> temporal_differences(np.array([0.0, 3.0]), fitted, np.array([0, 2]), gamma=0.5)
    array([1., 1.])
    """
    v_next = ragged.shift_to_next(predictions.v, offsets, predictions.v_final)
    return rewards + gamma * v_next - predictions.q


def doubly_robust_scores(
    log_w: FloatArray, rewards: FloatArray, predictions: QPredictions, offsets: IntArray, gamma: float
) -> FloatArray:
    """Return X_i = Vhat(s_0) + sum_t gamma^t W_t delta_t, whose mean is the doubly robust value, shape (n_episodes,).

    Parameters
    ----------
    log_w : ndarray of shape (n,)
        Cumulative log weights.
    rewards : ndarray of shape (n,)
    predictions : QPredictions
    offsets : ndarray of shape (n_episodes + 1,)
    gamma : float

    Notes
    -----
    The same as sum_t gamma^t [W_t (r_t - Qhat) + W_{t-1} Vhat(s_t)] (+ gamma^T W_{T-1} Vhat(s_T) at a truncation) with the
    terms of Vhat moved one step back.

    Examples
    --------
    >>> fitted = QPredictions(q=np.array([1.0, 2.0]), v=np.array([1.0, 4.0]), v_final=np.array([0.0]))
    >>> doubly_robust_scores(np.log([2.0, 2.0]), np.array([0.0, 3.0]), fitted, np.array([0, 2]), gamma=0.5)
    array([4.])
    """
    delta = temporal_differences(rewards, predictions, offsets, gamma)
    return predictions.v[offsets[:-1]] + per_decision_scores(log_w, delta, offsets, gamma)


def weighted_doubly_robust(
    log_w: FloatArray,
    delta: FloatArray,
    v_0: FloatArray,
    offsets: IntArray,
    gamma: float,
    episode_weight: FloatArray,
    totals: weights.StepTotals,
) -> tuple[float, FloatArray]:
    """Return the weighted doubly robust value and its influence vector, shape (n_episodes,).

    Parameters
    ----------
    log_w : ndarray of shape (n,)
        Cumulative log weights.
    delta : ndarray of shape (n,)
        Temporal differences.
    v_0 : ndarray of shape (n_episodes,)
        Vhat at the first states.
    offsets : ndarray of shape (n_episodes + 1,)
    gamma : float
    episode_weight : ndarray of shape (n_episodes,)
        Of mean 1.
    totals : StepTotals
        Of the weights, with `delta` as rewards.

    Notes
    -----
    mean Vhat(s_0) plus self-normalised per-decision importance sampling of delta (Thomas & Brunskill 2016).
    """
    step_values = gamma ** np.arange(len(totals.scale)) * totals.mean_reward
    suffix = weights.padded_suffix(totals, step_values)
    baseline = float(np.mean(episode_weight * v_0))
    value = baseline + float(step_values.sum()) if np.all(totals.total > 0) else float("nan")
    psi = weighted_per_decision_influence(log_w, delta, offsets, gamma, totals, suffix)
    return value, episode_weight * (psi + v_0 - baseline)


# -------------------------------------------------------------------- estimator


@dataclass(frozen=True)
class _Fit:
    value: float
    influence: FloatArray
    scores: FloatArray | None
    correction: FloatArray
    log_w: FloatArray
    summary: weights.WeightSummary
    totals: weights.StepTotals
    plug_in_known: bool = True


class DoublyRobust(OffPolicyEstimator):
    """Doubly robust: a Q model corrected by importance-weighted temporal differences; right if either is.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    q : Q-based estimator or None
        `LSTDQ` (default) or `FittedQEvaluation`; it inherits gamma.
    weighted : bool
        Self-normalise the weights of each step (WDR): a small bias for less variance.
    n_folds : int
        Q is cross-fitted by episode in this many folds, at least 2.
    random_state : int
        Seed of the folds, which are a hash of the episode identifiers.

    Notes
    -----
    X_i = Vhat(s_0) + sum_t gamma^t W_t (r_t + gamma Vhat(s_{t+1}) - Qhat(s_t, a_t)); the value is the mean, psi_i = X_i - V.
    Nothing follows a terminal; a truncated episode goes on with Vhat of its final state, which nothing corrects: psi_i then holds
    the influence of the estimated Q on mean(gamma^T W_{T-1} Vhat(s_T)) as well, u' sum_t phi_it eps_it with A' u its gradient,
    where the model is `LSTDQ`; where it is another, the verdict says that it is missing. Estimated propensities are taken from
    their cross-fitted column where the log has one.

    References
    ----------
    Jiang, Li (2016). Doubly robust off-policy value evaluation for reinforcement learning. ICML.
    Thomas, Brunskill (2016). Data-efficient off-policy policy evaluation for reinforcement learning. ICML.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[1] * 8, ends="terminal", behavior_prob=[0.5] * 8
    ... )
    >>> round(DoublyRobust(gamma=1.0, n_folds=2).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"logged_prob", "all_probs"}), frozenset({"logged_prob", "sample"}))
    needs_propensities: ClassVar[bool] = True
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": STATISTICAL,
            "one_step_bandit": "the Q model is a control variate, whose mean is 0 in expectation only",
            "padding": "an absorbing state is one more state for the Q model",
            "shift_rewards": "the Q model need not be able to express a constant",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        q: QEstimator | None = None,
        weighted: bool = False,
        n_folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.q = q
        self.weighted = weighted
        self.n_folds = n_folds
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        remedy = "the Q model must not see the episodes it values"
        check_integer(owner, "n_folds", self.n_folds, 2, remedy)
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")
        if self.q is not None and not isinstance(self.q, QEstimator):
            raise TypeError(
                f"{owner}: `q` must be a Q-based estimator (LSTDQ, FittedQEvaluation) or None, got {type(self.q).__name__}."
            )
        self._nested()._validate()

    def _nested(self) -> QEstimator:
        nested = inherit_gamma(type(self).__name__, self.q if self.q is not None else LSTDQ(), self._gamma)
        assert isinstance(nested, QEstimator)
        return nested

    def _stationary(self, data: LoggedDataset) -> bool:
        return bool(getattr(self.q, "stationary", False)) or data.horizon is None

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        predictions = self._cross_fit(data, policy, weight)
        pseudo, n_left_out = self._pseudo_rewards(data, predictions)
        # Weights beyond the range of floats leave no finite value; the verdict says so, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            fit = self._correct(data, policy, pseudo, predictions.v[data.offsets[:-1]], weight)
            coefficient, v_end = self._plug_in(data, fit, predictions)
            fit = self._add_plug_in_influence(data, policy, weight, fit, coefficient)
            diagnostics, findings = self._diagnose(data, policy, fit, predictions)
            diagnostics["plug_in_value"] = float(np.mean(weight * coefficient * v_end))
        findings.append(verdicts.judge_plug_in(diagnostics["plug_in_value"], fit.influence, fit.plug_in_known))
        diagnostics["left_out_transitions"] = n_left_out
        return self._result(
            data,
            name,
            value=fit.value,
            influence=fit.influence,
            scores=fit.scores,
            horizon=None if self._stationary(data) else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _cross_fit(self, data: LoggedDataset, policy: Policy, weight: FloatArray) -> QPredictions:
        if data.n_episodes < self.n_folds:
            raise ValueError(
                f"{type(self).__name__}.fit: cross-fitting in n_folds={self.n_folds} needs as many episodes, got {data.n_episodes}; log more, or lower n_folds=."
            )
        folds = fold_of(data.episode_keys, self.n_folds, self.random_state)
        q, v, v_final = np.empty(data.n_transitions), np.empty(data.n_transitions), np.empty(data.n_episodes)
        for fold in range(self.n_folds):
            inside = np.flatnonzero(folds == fold)
            outside = np.flatnonzero(folds != fold)
            if not weight[outside].any():
                raise ValueError(
                    f"{type(self).__name__}.fit: `episode_weight` must leave a positive weight outside each of n_folds={self.n_folds} folds, got only zeros "
                    "outside one; weigh more episodes, raise n_folds=, or take another random_state."
                )
            model = self._nested().fit_q(data.select(outside), policy, weight[outside])
            part = model.predict(policy, data.select(inside))
            rows = ragged.rows_of(inside, data.offsets)
            q[rows], v[rows], v_final[inside] = part.q, part.v, part.v_final
        return QPredictions(q, v, v_final)

    def _pseudo_rewards(self, data: LoggedDataset, predictions: QPredictions) -> tuple[FloatArray, int]:
        delta = temporal_differences(data.rewards, predictions, data.offsets, self._gamma)
        unknown = continuing_ends(data, self._stationary(data)) & ~data.final_known()
        delta[data.offsets[1:][unknown] - 1] = 0.0
        return delta, int(unknown.sum())

    def _correct(
        self, data: LoggedDataset, policy: Policy, delta: FloatArray, v_0: FloatArray, weight: FloatArray
    ) -> _Fit:
        logs, summaries, first = [], [], 0
        pseudo = data.replace(rewards=delta)
        for block in pseudo.blocks():
            log_w = weights.block_log_weights(policy, block, cross_fitted=True)
            logs.append(log_w)
            omega = weight[first : first + block.n_episodes]
            first += block.n_episodes
            summaries.append(weights.summarise(log_w, block.rewards, block.offsets, self._gamma, omega))
        log_w = np.concatenate(logs)
        summary = weights.merge(summaries)
        totals = weights.finish(summary)
        if self.weighted:
            value, psi = weighted_doubly_robust(log_w, delta, v_0, data.offsets, self._gamma, weight, totals)
            return _Fit(value, psi, None, psi - weight * (v_0 - np.mean(weight * v_0)), log_w, summary, totals)
        x = v_0 + per_decision_scores(log_w, delta, data.offsets, self._gamma)
        value = float(np.mean(weight * x))
        scores = x if np.all(weight == 1.0) else None
        return _Fit(value, weight * (x - value), scores, weight * (x - v_0), log_w, summary, totals)

    def _plug_in(self, data: LoggedDataset, fit: _Fit, predictions: QPredictions) -> tuple[FloatArray, FloatArray]:
        """Return gamma^t W_{t-1} and Vhat of the last known state of every episode that goes on unrecorded, else 0."""
        goes_on, known = continuing_ends(data, self._stationary(data)), data.final_known()
        step = data.lengths - ~known  # of the last known state
        row = np.maximum(data.offsets[:-1] + step - 1, data.offsets[:-1])
        log_w = fit.log_w[row]
        w = weights.relative_weights(log_w, np.maximum(step - 1, 0), fit.totals) if self.weighted else np.exp(log_w)
        coefficient = np.where(goes_on, self._gamma**step * np.where(step > 0, w, 1.0), 0.0)
        return coefficient, np.where(known, predictions.v_final, predictions.v[data.offsets[1:] - 1])

    def _add_plug_in_influence(
        self, data: LoggedDataset, policy: Policy, weight: FloatArray, fit: _Fit, coefficient: FloatArray
    ) -> _Fit:
        # Corrections end with the recording: what Vhat says of the rest is a plug-in, first order in the errors of Q.
        if not coefficient.any():
            return fit
        psi = self._nested().plug_in_influence(data, policy, weight, coefficient)
        if psi is None:
            return replace(fit, scores=None, plug_in_known=False)
        return replace(fit, influence=fit.influence + psi, scores=None)

    def _diagnose(
        self, data: LoggedDataset, policy: Policy, fit: _Fit, predictions: QPredictions
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        final = fit.log_w[data.offsets[1:] - 1]
        over_time = fit.totals.effective_sample_size
        ess = float(over_time[steps_with_mass(fit.summary.discounted_rewards)].min())
        mass, labels = unlogged_mass(data, policy)
        mean_weight = float(fit.totals.mean_weight[-1])
        diagnostics = {
            "ess": ess,
            "ess_final": effective_sample_size(final),
            **verdicts.influence_diagnostics(fit.influence),
            "mean_weight": mean_weight,
            "correction_share": float(np.sum(fit.correction**2) / max(np.sum(fit.influence**2), np.finfo(float).tiny)),
            "pareto_k": pareto_k(final),
            "q_value": float(np.mean(predictions.v[data.offsets[:-1]])),
            "truncated_share": verdicts.truncated_share(data),
        }
        return diagnostics, [
            verdicts.judge_finite(fit.value, fit.influence),
            verdicts.judge_range(fit.value, data, self._gamma, self._stationary(data), Level.CAUTION),
            *verdicts.doubly_robust_findings(diagnostics, data.n_episodes),
            verdicts.judge_propensities(data, orthogonal=True),
            verdicts.judge_unlogged(mass, labels),
        ]
