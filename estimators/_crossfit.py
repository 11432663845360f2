"""Nuisances cross-fitted by episode, and the base class of the doubly robust family that uses them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimator import OffPolicyEstimator, inherit_gamma
from ope.estimators import _verdicts as verdicts
from ope.estimators import _weights as weights
from ope.estimators._importance import steps_with_mass
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators._ratio import RatioEstimator
from ope.estimators.lstdq import LSTDQ
from ope.inference.weights import fold_of, uniforms
from ope.policy import Policy, continuing_ends
from ope.validation import FloatArray, IntArray, check_integer

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


def variance_share(part: FloatArray, influence: FloatArray) -> float:
    """Return the sum of squares of a part of the influence over that of the whole.

    Examples
    --------
    >>> variance_share(np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    0.5
    """
    return float(np.sum(part**2) / max(np.sum(influence**2), np.finfo(float).tiny))


@dataclass(frozen=True)
class Weighed:
    """The cumulative importance weights of a log, and their sums at each step, under any weights of episodes.

    Parameters
    ----------
    log_w : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
    summary : WeightSummary
    totals : StepTotals
        Ended episodes keep their weight.
    """

    log_w: FloatArray
    offsets: IntArray
    summary: weights.WeightSummary
    totals: weights.StepTotals

    @cached_property
    def time(self) -> IntArray:
        """Step of every row."""
        return ragged.step_index(self.offsets)

    @cached_property
    def episode(self) -> IntArray:
        """Episode of every row."""
        return ragged.episode_index(self.offsets)

    @cached_property
    def w(self) -> FloatArray:
        """Weight of every row over exp(totals.scale) of its step."""
        return _on_scale(self.log_w, self.totals.scale[self.time])

    @cached_property
    def w_final(self) -> FloatArray:
        """Final weight of every episode over exp(totals.carried_scale) of its length."""
        return _on_scale(self.log_w[self.offsets[1:] - 1], self.totals.carried_scale[np.diff(self.offsets)])

    @cached_property
    def least_effective_size(self) -> float:
        """Least effective number of episodes over the steps that the weighed rewards come from."""
        return float(self.totals.effective_sample_size[steps_with_mass(self.summary.discounted_rewards)].min())

    def reweighted(self, rewards: FloatArray, episode_weight: FloatArray) -> weights.StepTotals:
        """Return the totals and means of other rewards under other weights of episodes, on the same scales.

        Their squares stay those of `totals`.
        """
        horizon = len(self.totals.scale)
        w = episode_weight[self.episode] * self.w
        ended = weights.sums_at(np.diff(self.offsets), episode_weight * self.w_final, horizon + 1)
        total = weights.sums_at(self.time, w, horizon) + _carried(ended, self.totals)
        sums = weights.sums_at(self.time, w * rewards, horizon)
        mean = np.divide(sums, total, out=np.zeros(horizon), where=total > 0)
        return replace(self.totals, total=total, mean_reward=mean, n=float(episode_weight.sum()))


def _on_scale(log_w: FloatArray, scale: FloatArray) -> FloatArray:
    """Return exp(log_w - scale), 0 where there is no weight at all."""
    return np.exp(np.where(np.isneginf(log_w), -np.inf, log_w - np.where(np.isneginf(scale), 0.0, scale)))


def _carried(ended: FloatArray, totals: weights.StepTotals) -> FloatArray:
    """Return the final weights of the episodes that ended before each step, over exp(scale), shape (H,)."""
    decay = _on_scale(totals.carried_scale[:-1], totals.carried_scale[1:])
    carried = ended.copy()
    for t in np.flatnonzero(decay) + 1:
        carried[t] += carried[t - 1] * decay[t - 1]
    return carried[:-1] * _on_scale(totals.carried_scale[:-1], totals.scale)


def weigh(
    policy: Policy, data: LoggedDataset, rewards: FloatArray, gamma: float, episode_weight: FloatArray
) -> Weighed:
    """Weigh a log with other rewards in the place of its own; propensities are cross-fitted ones where it has them."""
    logs, summaries, first = [], [], 0
    for block in data.replace(rewards=rewards).blocks():
        log_w = weights.block_log_weights(policy, block, cross_fitted=True)
        logs.append(log_w)
        omega = episode_weight[first : first + block.n_episodes]
        first += block.n_episodes
        summaries.append(weights.summarise(log_w, block.rewards, block.offsets, gamma, omega))
    summary = weights.merge(summaries)
    return Weighed(np.concatenate(logs), data.offsets, summary, weights.finish(summary))


# -------------------------------------------------------------------- folds


@dataclass(frozen=True)
class CrossFittedQ(QPredictions):
    """Values by models that were fitted outside the fold of each episode.

    Parameters
    ----------
    unfinished : int
        Number of these models that did not converge.
    """

    unfinished: int = 0

    @classmethod
    def empty(cls, data: LoggedDataset, unfinished: int = 0) -> CrossFittedQ:
        """Return room for the values of a log."""
        q, v = np.empty(data.n_transitions), np.empty(data.n_transitions)
        return cls(q, v, np.empty(data.n_episodes), unfinished)

    def put(self, part: QPredictions, inside: IntArray, rows: IntArray) -> None:
        """Take the values of some episodes."""
        self.q[rows], self.v[rows], self.v_final[inside] = part.q, part.v, part.v_final


HALVES_STREAM = -2
UNFINISHED = frozenset({"stopped", "wandering", "diverged", "DIVERGED", "INTERRUPTED", "RUNNING"})


def unfinished(model: Any) -> bool:
    """Return whether a fitted model says that it did not come to its end."""
    return getattr(model, "status", None) in UNFINISHED


def folds(
    owner: str, data: LoggedDataset, weight: FloatArray, n_folds: int, random_state: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the episodes of each fold and those outside it, which a nuisance learns from.

    Raises
    ------
    ValueError
        If there are fewer episodes than folds, or nothing outside a fold has a positive weight.
    """
    if data.n_episodes < n_folds:
        raise ValueError(
            f"{owner}.fit: cross-fitting in n_folds={n_folds} needs as many episodes, got {data.n_episodes}; log more, or lower n_folds=."
        )
    fold = fold_of(data.episode_keys, n_folds, random_state)
    for k in range(n_folds):
        outside = np.flatnonzero(fold != k)
        if not weight[outside].any():
            raise ValueError(
                f"{owner}.fit: `episode_weight` must leave a positive weight outside each of n_folds={n_folds} folds, got only zeros "
                "outside one; weigh more episodes, raise n_folds=, or take another random_state."
            )
        yield np.flatnonzero(fold == k), outside


def halves(
    owner: str, data: LoggedDataset, weight: FloatArray, outside: IntArray, random_state: int
) -> tuple[IntArray, IntArray]:
    """Split the episodes outside a fold in two, in turn by the order of a hash of their identifiers.

    Raises
    ------
    ValueError
        If a half is empty, or nothing in it has a positive weight.
    """
    order = np.argsort(uniforms(data.episode_keys[outside], random_state, HALVES_STREAM))
    parts = (np.sort(outside[order[::2]]), np.sort(outside[order[1::2]]))
    if not all(weight[part].any() for part in parts):
        raise ValueError(
            f"{owner}.fit: `data` must hold episodes of positive weight for Q and others for the ratio outside each fold, got too few of {data.n_episodes}; "
            "log more, weigh more of them, or pass separate=False."
        )
    return parts


def cross_fit_q(
    nested: QEstimator,
    data: LoggedDataset,
    policy: Policy,
    weight: FloatArray,
    parts: Iterable[tuple[IntArray, IntArray]],
) -> CrossFittedQ:
    """Value every episode by a Q function that was fitted outside its fold."""
    values, n_unfinished = CrossFittedQ.empty(data), 0
    for inside, outside in parts:
        model = nested.fit_q(data.select(outside), policy, weight[outside])
        n_unfinished += unfinished(model)
        values.put(model.predict(policy, data.select(inside)), inside, ragged.rows_of(inside, data.offsets))
    return replace(values, unfinished=n_unfinished)


def cross_fit_each(
    nested: QEstimator,
    data: LoggedDataset,
    policy: Policy,
    weight: FloatArray,
    parts: Iterable[tuple[IntArray, IntArray]],
) -> tuple[CrossFittedQ, list[QPredictions]]:
    """Do as `cross_fit_q`, and return the values of all episodes by each Q function too: their spread tells how well Q is known."""
    values, by_fold, n_unfinished = CrossFittedQ.empty(data), [], 0
    for inside, outside in parts:
        model = nested.fit_q(data.select(outside), policy, weight[outside])
        n_unfinished += unfinished(model)
        by_fold.append(model.predict(policy, data))
        q, v, v_final = by_fold[-1].q, by_fold[-1].v, by_fold[-1].v_final
        rows = ragged.rows_of(inside, data.offsets)
        values.put(QPredictions(q[rows], v[rows], v_final[inside]), inside, rows)
    return replace(values, unfinished=n_unfinished), by_fold


def cross_fit_ratio(
    nested: RatioEstimator,
    data: LoggedDataset,
    policy: Policy,
    weight: FloatArray,
    parts: Iterable[tuple[IntArray, IntArray]],
) -> FloatArray:
    """Return the ratio c of every row by a model that was fitted outside its fold, shape (n,)."""
    c = np.empty(data.n_transitions)
    for inside, outside in parts:
        model = nested.fit_ratio(data.select(outside), policy, weight[outside] / weight[outside].mean())
        c[ragged.rows_of(inside, data.offsets)] = model.predict(policy, data.select(inside))
    return c


# -------------------------------------------------------------------- base class


class CrossFitted(OffPolicyEstimator):
    """Base of methods around a Q model that never sees the episodes it values.

    A subclass has the parameters `q`, `n_folds` and `random_state`, and defines `_fit_one`.
    """

    q: QEstimator | None
    n_folds: int
    random_state: int

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

    def _folds(self, data: LoggedDataset, weight: FloatArray) -> Iterator[tuple[IntArray, IntArray]]:
        return folds(type(self).__name__, data, weight, self.n_folds, self.random_state)

    def _cross_fit(self, data: LoggedDataset, policy: Policy, weight: FloatArray) -> QPredictions:
        return cross_fit_q(self._nested(), data, policy, weight, self._folds(data, weight))

    def _judge_models(self, predictions: QPredictions) -> verdicts.Finding:
        n_unfinished = predictions.unfinished if isinstance(predictions, CrossFittedQ) else 0
        return verdicts.judge_q_fits(n_unfinished, self.n_folds)

    def _pseudo_rewards(self, data: LoggedDataset, predictions: QPredictions) -> tuple[FloatArray, int]:
        delta = temporal_differences(data.rewards, predictions, data.offsets, self._gamma)
        unknown = continuing_ends(data, self._stationary(data)) & ~data.final_known()
        delta[data.offsets[1:][unknown] - 1] = 0.0
        return delta, int(unknown.sum())
