"""Trajectory, per-decision and self-normalised importance sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.diagnostics import effective_sample_size, pareto_k
from ope.estimate import Estimate
from ope.estimator import EXACT, OffPolicyEstimator
from ope.estimators import _verdicts as verdicts
from ope.estimators import _weights as weights
from ope.policy import Policy, Requirement, probabilities
from ope.schema import End
from ope.validation import BoolArray, FloatArray, IntArray, check_number
from ope.verdict import Verdict

# -------------------------------------------------------------------- mathematics


def discounted_returns(rewards: FloatArray, offsets: IntArray, gamma: float) -> FloatArray:
    """Return G_i = sum_t gamma^t r_it, shape (n_episodes,).

    Examples
    --------
    >>> discounted_returns(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 3]), gamma=0.5)
    array([2., 4.])
    """
    return ragged.segment_sum(_discounted(rewards, offsets, gamma), offsets)


def trajectory_scores(log_w: FloatArray, rewards: FloatArray, offsets: IntArray, gamma: float) -> FloatArray:
    """Return X_i = W_{i,T-1} G_i, whose mean is trajectory importance sampling, shape (n_episodes,).

    Examples
    --------
    >>> trajectory_scores(np.log([2.0, 4.0]), np.array([1.0, 1.0]), np.array([0, 2]), gamma=1.0)
    array([8.])
    """
    with np.errstate(over="ignore"):
        final = np.exp(log_w[offsets[1:] - 1])
    return _weighted(final, discounted_returns(rewards, offsets, gamma))


def per_decision_scores(log_w: FloatArray, rewards: FloatArray, offsets: IntArray, gamma: float) -> FloatArray:
    """Return X_i = sum_t gamma^t W_it r_it, whose mean is per-decision importance sampling, shape (n_episodes,).

    Examples
    --------
    >>> per_decision_scores(np.log([2.0, 4.0]), np.array([1.0, 1.0]), np.array([0, 2]), gamma=1.0)
    array([6.])
    """
    with np.errstate(over="ignore"):
        w = np.exp(log_w)
    return ragged.segment_sum(_weighted(w, _discounted(rewards, offsets, gamma)), offsets)


def weighted_is(log_w_final: FloatArray, returns: FloatArray, episode_weight: FloatArray) -> tuple[float, FloatArray]:
    """Return sum W G / sum W and its influence (W_i / Wbar)(G_i - V); (NaN, zeros) if all weights are 0.

    Examples
    --------
    >>> value, influence = weighted_is(np.log([1.0, 3.0]), np.array([0.0, 1.0]), np.ones(2))
    >>> value, influence
    (0.75, array([-0.375,  0.375]))
    """
    top = float(np.max(log_w_final[episode_weight > 0]))
    if np.isneginf(top):
        return float("nan"), np.zeros(len(returns))
    w = episode_weight * np.exp(np.where(episode_weight > 0, log_w_final - top, -np.inf))
    value = float(w @ returns / w.sum())
    return value, w / w.mean() * (returns - value)


def weighted_per_decision_influence(
    log_w: FloatArray,
    rewards: FloatArray,
    offsets: IntArray,
    gamma: float,
    totals: weights.StepTotals,
    suffix: FloatArray,
) -> FloatArray:
    """Return psi_i = sum_t gamma^t (W_it / Wbar_t)(r_it - m_t) of a block, t to the horizon with ended episodes padded.

    Parameters
    ----------
    log_w, rewards : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
    gamma : float
    totals : StepTotals
        Of the whole log.
    suffix : ndarray of shape (H + 1,)
        `padded_suffix` of gamma^t m_t.

    Returns
    -------
    ndarray of shape (n_episodes,)
    """
    steps = ragged.step_index(offsets)
    terms = weights.relative_weights(log_w, steps, totals)
    terms *= (gamma ** np.arange(len(totals.scale)))[steps]
    terms *= rewards - totals.mean_reward[steps]
    live = ragged.segment_sum(terms, offsets)
    lengths = np.diff(offsets)
    final = log_w[offsets[1:] - 1]
    # The carried scale at T covers the final weights of length T, so this is 0 to 1; -inf means a dead episode.
    gap = np.where(
        np.isneginf(final), -np.inf, final - np.where(np.isneginf(final), 0.0, totals.carried_scale[lengths])
    )
    return live - np.exp(gap) * suffix[lengths]


def clipping_bias(
    log_w: FloatArray, rewards: FloatArray, offsets: IntArray, gamma: float, clip: float, per_decision: bool
) -> FloatArray:
    """Return the absolute value that clipping W at `clip` removes from each episode: sum (W - c)+ gamma^t |r|.

    Examples
    --------
    >>> clipping_bias(np.log([1.0, 5.0]), np.array([1.0, -1.0]), np.array([0, 2]), 1.0, clip=2.0, per_decision=True)
    array([3.])
    """
    with np.errstate(over="ignore"):
        excess = np.maximum(np.exp(log_w) - clip, 0.0)
    if per_decision:
        return ragged.segment_sum(_weighted(excess, _discounted(np.abs(rewards), offsets, gamma)), offsets)
    return _weighted(excess[offsets[1:] - 1], np.abs(discounted_returns(rewards, offsets, gamma)))


def _discounted(rewards: FloatArray, offsets: IntArray, gamma: float) -> FloatArray:
    # A power costs as much as all the rest: look it up.
    discounts = gamma ** np.arange(int(np.diff(offsets).max()))
    return np.asarray(discounts[ragged.step_index(offsets)] * rewards)


def _weighted(w: FloatArray, x: FloatArray) -> FloatArray:
    # An infinite weight on a reward of 0 contributes nothing.
    with np.errstate(invalid="ignore"):
        product = w * x
    product[x == 0.0] = 0.0
    return product


def truncation_tail(
    log_w_final: FloatArray,
    lengths: IntArray,
    truncated: FloatArray,
    gamma: float,
    reward_bound: float,
    horizon: int | None,
) -> FloatArray:
    """Return W_i gamma^T_i |r|max times the discounted steps that recording missed, shape (n_episodes,); 0 where not truncated."""
    with np.errstate(over="ignore"):
        w = np.where(truncated > 0, np.exp(log_w_final), 0.0)
    if horizon is None:
        left = np.full(len(lengths), 1.0 / (1.0 - gamma) if gamma < 1.0 else np.inf)
    else:
        left = (horizon - lengths) if gamma == 1.0 else (1.0 - gamma ** (horizon - lengths)) / (1.0 - gamma)
    return np.where(w > 0, w * gamma**lengths * reward_bound * np.where(w > 0, left, 0.0), 0.0)


# -------------------------------------------------------------------- estimators

MASS_TAIL = 0.01
EFFECTIVE_HORIZON_ESS = 10.0


@dataclass(frozen=True)
class _Fit:
    """What one pass over a log leaves: value, influence, scores, and the weights that the diagnostics need."""

    value: float
    influence: FloatArray
    scores: FloatArray | None
    final_log_w: FloatArray
    totals: weights.StepTotals
    summary: weights.WeightSummary
    clip_bias: float


class ImportanceSampling(OffPolicyEstimator):
    """Importance sampling in its four classical forms.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    per_decision : bool
        Weight each reward by the ratios up to its step (lower variance) instead of the whole episode's.
    self_normalized : bool
        Divide by the sum of weights instead of the number of episodes: a small bias for much less variance.
    clip : float or None
        Upper limit of the cumulative weights. Biased; the bound of the bias is reported as ``clip_bias``.

    Notes
    -----
    With W_t = prod_{k<=t} pi(a_k|s_k) / b(a_k|s_k), per-decision importance sampling is the mean of
    sum_t gamma^t W_t r_t. The self-normalised form divides by sum_i W_it at each step, where an ended episode keeps its
    final weight. Weights are cumulated in log space. A truncated episode lacks its tail: its bound decides the verdict.

    References
    ----------
    Precup, Sutton, Singh (2000). Eligibility traces for off-policy policy evaluation. ICML.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> ImportanceSampling(gamma=1.0).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"logged_prob"}),)
    needs_propensities: ClassVar[bool] = True
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "on_policy_mean": EXACT,
            "one_step_bandit": EXACT,
            "shards_merge": EXACT,
            "padding": EXACT,
            "shift_rewards": "only self-normalised weights sum to one at every step",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        per_decision: bool = True,
        self_normalized: bool = False,
        clip: float | None = None,
    ) -> None:
        self.gamma = gamma
        self.per_decision = per_decision
        self.self_normalized = self_normalized
        self.clip = clip

    def _validate(self) -> None:
        super()._validate()
        if self.clip is not None:
            rule, remedy = "a positive weight or None", "pass e.g. clip=20"
            check_number(type(self).__name__, "clip", self.clip, rule, remedy, 0.0, above=True)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        # Weights beyond the range of floats leave no finite value; the verdict says so, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            fit = self._pass(data, policy, weight)
            diagnostics, findings = self._diagnose(data, policy, fit)
            tail_finding, widening = self._judge_tail(data, fit, weight, diagnostics)
        verdict = Verdict.of([*findings, tail_finding])
        return self._result(
            data,
            name,
            value=fit.value,
            influence=fit.influence,
            scores=fit.scores,
            widening=widening,
            diagnostics=diagnostics,
            verdict=verdict,
        )

    # ---------------------------------------------------------------- one pass over the log, block by block

    def _pass(self, data: LoggedDataset, policy: Policy, weight: FloatArray) -> _Fit:
        summaries, kept, finals, bias = [], [], [], 0.0
        first = 0
        for block in data.blocks():
            omega = weight[first : first + block.n_episodes]
            first += block.n_episodes
            log_w = weights.block_log_weights(policy, block)
            if self.clip is not None:
                bias += float(
                    omega
                    @ clipping_bias(log_w, block.rewards, block.offsets, self._gamma, self.clip, self.per_decision)
                )
                log_w = np.minimum(log_w, np.log(self.clip))
            summaries.append(weights.summarise(log_w, block.rewards, block.offsets, self._gamma, omega))
            finals.append(log_w[block.offsets[1:] - 1])
            kept.append(self._needed(log_w, block))
        summary = weights.merge(summaries)
        totals = weights.finish(summary)
        final = np.concatenate(finals)
        n = data.n_episodes
        if self.self_normalized:
            value, influence = self._self_normalized(data, kept, final, totals, weight)
            return _Fit(value, influence, None, final, totals, summary, bias / n)
        x = np.concatenate(kept)
        value = float(np.mean(weight * x))
        plain = self.clip is None and bool(np.all(weight == 1.0))
        return _Fit(value, weight * (x - value), x if plain else None, final, totals, summary, bias / n)

    def _needed(self, log_w: FloatArray, block: LoggedDataset) -> FloatArray:
        # Weights can be normalised step by step only after the whole log was seen.
        if self.self_normalized:
            return log_w if self.per_decision else discounted_returns(block.rewards, block.offsets, self._gamma)
        score = per_decision_scores if self.per_decision else trajectory_scores
        return score(log_w, block.rewards, block.offsets, self._gamma)

    def _self_normalized(
        self,
        data: LoggedDataset,
        kept: list[FloatArray],
        final: FloatArray,
        totals: weights.StepTotals,
        weight: FloatArray,
    ) -> tuple[float, FloatArray]:
        if not self.per_decision:
            return weighted_is(final, np.concatenate(kept), weight)
        step_values = self._gamma ** np.arange(len(totals.scale)) * totals.mean_reward
        suffix = weights.padded_suffix(totals, step_values)
        parts = [
            weighted_per_decision_influence(log_w, block.rewards, block.offsets, self._gamma, totals, suffix)
            for log_w, block in zip(kept, data.blocks(), strict=True)
        ]
        value = float(step_values.sum()) if np.all(totals.total > 0) else float("nan")
        return value, weight * np.concatenate(parts)

    # ---------------------------------------------------------------- diagnostics and verdict

    def _diagnose(
        self, data: LoggedDataset, policy: Policy, fit: _Fit
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        over_time = fit.totals.effective_sample_size
        matters = steps_with_mass(fit.summary.discounted_rewards)
        final = effective_sample_size(fit.final_log_w)
        ess = float(over_time[matters].min(initial=final)) if self.per_decision else final
        mean_weight = float(fit.totals.mean_weight[-1])
        mass, labels = unlogged_mass(data, policy)
        below = np.flatnonzero(over_time < EFFECTIVE_HORIZON_ESS)
        diagnostics = {
            "ess": ess,
            "ess_final": final,
            **verdicts.influence_diagnostics(fit.influence),
            "mean_weight": mean_weight,
            "pareto_k": pareto_k(fit.final_log_w),
            "effective_horizon": int(below[0]) if len(below) else len(over_time),
            "truncated_share": verdicts.truncated_share(data),
            "unlogged_mass": mass,
        }
        if self.clip is not None:
            diagnostics["clip_bias"] = fit.clip_bias
        finite = verdicts.judge_finite(fit.value, fit.influence)
        findings = [finite, verdicts.judge_propensities(data, orthogonal=False), verdicts.judge_unlogged(mass, labels)]
        if finite is None:  # without a value there is no spread to judge
            error = verdicts.standard_error(fit.influence)
            findings.extend(verdicts.importance_findings(diagnostics, data.n_episodes, clipped=self.clip is not None))
            findings.append(verdicts.judge_clipping(fit.clip_bias, error))
        return diagnostics, findings

    def _judge_tail(
        self, data: LoggedDataset, fit: _Fit, weight: FloatArray, diagnostics: dict[str, Any]
    ) -> tuple[verdicts.Finding, float]:
        truncated = np.asarray(data.ends == End.TRUNCATED, dtype=np.float64)
        if not truncated.any():
            return None, 0.0
        bound, given = verdicts.reward_bound(data)
        tails = truncation_tail(fit.final_log_w, data.lengths, truncated, self._gamma, bound, data.horizon)
        tail = float(np.mean(weight * tails))
        if self.self_normalized:
            mean_weight = float(fit.totals.mean_weight[-1])
            tail = tail / mean_weight if mean_weight > 0 else float("inf")
        diagnostics["truncated_tail"] = tail
        diagnostics["reward_bound"] = "given" if given else "largest |reward| of the log"
        return verdicts.judge_tail(tail, verdicts.standard_error(fit.influence))


def steps_with_mass(discounted_rewards: FloatArray) -> BoolArray:
    """Return the steps from which on at least 1 % of the discounted absolute rewards are still to come, shape (H,)."""
    tail = np.cumsum(discounted_rewards[::-1])[::-1]
    return tail >= MASS_TAIL * tail[0] if tail[0] > 0 else np.ones(len(tail), dtype=bool)


def unlogged_mass(data: LoggedDataset, policy: Policy) -> tuple[float, list[object]]:
    """Return the candidate's mean probability of labels that never occur in the log, and these labels."""
    if data.action_labels is None or "all_probs" not in policy.capabilities:
        return 0.0, []
    unlogged = np.bincount(data.actions, minlength=len(data.action_labels)) == 0
    if not unlogged.any():
        return 0.0, []
    total = sum(
        float(probabilities(policy, block.rows(), data.action_labels)[:, unlogged].sum()) for block in data.blocks()
    )
    return total / data.n_transitions, data.action_labels[unlogged].tolist()


class TrajectoryIS(ImportanceSampling):
    """Trajectory importance sampling: the mean of W_{T-1} G, unbiased, of high variance.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    clip : float or None
        Upper limit of the weights.

    Examples
    --------
    >>> TrajectoryIS(gamma=0.9)
    TrajectoryIS(gamma=0.9)
    """

    per_decision = False
    self_normalized = False

    def __init__(self, *, gamma: float | None = None, clip: float | None = None) -> None:
        self.gamma = gamma
        self.clip = clip


class PerDecisionIS(ImportanceSampling):
    """Per-decision importance sampling: the mean of sum_t gamma^t W_t r_t, unbiased.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    clip : float or None
        Upper limit of the cumulative weights.

    Examples
    --------
    >>> PerDecisionIS(gamma=0.9)
    PerDecisionIS(gamma=0.9)
    """

    per_decision = True
    self_normalized = False

    def __init__(self, *, gamma: float | None = None, clip: float | None = None) -> None:
        self.gamma = gamma
        self.clip = clip


class WeightedIS(ImportanceSampling):
    """Weighted (self-normalised) importance sampling.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    per_decision : bool
        Normalise the weights of each step (WPDIS, the default, which is at least as precise as a rule) or those of whole
        episodes (WIS).
    clip : float or None
        Upper limit of the cumulative weights.

    Examples
    --------
    >>> WeightedIS(gamma=0.9, per_decision=False)
    WeightedIS(gamma=0.9, per_decision=False)
    """

    laws: ClassVar[Mapping[str, str]] = MappingProxyType({**ImportanceSampling.laws, "shift_rewards": EXACT})
    self_normalized = True

    def __init__(self, *, gamma: float | None = None, per_decision: bool = True, clip: float | None = None) -> None:
        self.gamma = gamma
        self.per_decision = per_decision
        self.clip = clip
