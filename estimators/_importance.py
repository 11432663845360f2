"""What all importance sampling methods share: scores, the pass over a log's weights, diagnostics and findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.diagnostics import effective_sample_size, pareto_k
from ope.estimators import _verdicts as verdicts
from ope.estimators import _weights as weights
from ope.inference.lepski import LepskiChoice, lepski_choice
from ope.policy import Policy, probabilities
from ope.schema import End
from ope.validation import BoolArray, FloatArray, IntArray

MASS_TAIL = 0.01
EFFECTIVE_HORIZON_ESS = 10.0

# -------------------------------------------------------------------- mathematics


def discounted_returns(rewards: FloatArray, offsets: IntArray, gamma: float) -> FloatArray:
    """Return G_i = sum_t gamma^t r_it, shape (n_episodes,).

    Examples
    --------
    >>> discounted_returns(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 3]), gamma=0.5)
    array([2., 4.])
    """
    return ragged.segment_sum(discounted(rewards, offsets, gamma), offsets)


def trajectory_scores(log_w: FloatArray, rewards: FloatArray, offsets: IntArray, gamma: float) -> FloatArray:
    """Return X_i = W_{i,T-1} G_i, whose mean is trajectory importance sampling, shape (n_episodes,).

    Examples
    --------
    >>> trajectory_scores(np.log([2.0, 4.0]), np.array([1.0, 1.0]), np.array([0, 2]), gamma=1.0)
    array([8.])
    """
    with np.errstate(over="ignore"):
        final = np.exp(log_w[offsets[1:] - 1])
    return times(final, discounted_returns(rewards, offsets, gamma))


def per_decision_scores(log_w: FloatArray, rewards: FloatArray, offsets: IntArray, gamma: float) -> FloatArray:
    """Return X_i = sum_t gamma^t W_it r_it, whose mean is per-decision importance sampling, shape (n_episodes,).

    Examples
    --------
    >>> per_decision_scores(np.log([2.0, 4.0]), np.array([1.0, 1.0]), np.array([0, 2]), gamma=1.0)
    array([6.])
    """
    with np.errstate(over="ignore"):
        w = np.exp(log_w)
    return ragged.segment_sum(times(w, discounted(rewards, offsets, gamma)), offsets)


def weighted_is(log_w_final: FloatArray, returns: FloatArray, episode_weight: FloatArray) -> tuple[float, FloatArray]:
    """Return sum W G / sum W and its influence (W_i / Wbar)(G_i - V); (NaN, zeros) if all weights are 0.

    Examples
    --------
    >>> value, influence = weighted_is(np.log([1.0, 3.0]), np.array([0.0, 1.0]), np.ones(2))
    >>> round(value, 6), influence
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
        return ragged.segment_sum(times(excess, discounted(np.abs(rewards), offsets, gamma)), offsets)
    return times(excess[offsets[1:] - 1], np.abs(discounted_returns(rewards, offsets, gamma)))


def discounted(rewards: FloatArray, offsets: IntArray, gamma: float) -> FloatArray:
    """Return gamma^t r_t of every row."""
    # A power costs as much as all the rest: look it up.
    discounts = gamma ** np.arange(int(np.diff(offsets).max()))
    return np.asarray(discounts[ragged.step_index(offsets)] * rewards)


def times(w: FloatArray, x: FloatArray) -> FloatArray:
    """Return w x, 0 wherever x is 0: an infinite weight on a reward of 0, or an episode of weight 0, contributes nothing."""
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
    if reward_bound == 0.0:
        return np.zeros(len(lengths))
    with np.errstate(over="ignore"):
        w = np.where(truncated > 0, np.exp(log_w_final), 0.0)
    if horizon is None:
        left = np.full(len(lengths), 1.0 / (1.0 - gamma) if gamma < 1.0 else np.inf)
    else:
        left = (horizon - lengths) if gamma == 1.0 else (1.0 - gamma ** (horizon - lengths)) / (1.0 - gamma)
    return np.where(w > 0, w * gamma**lengths * reward_bound * np.where(w > 0, left, 0.0), 0.0)


# -------------------------------------------------------------------- one pass over the weights, block by block


class WeightBlock(NamedTuple):
    """Cumulative log weights of whole episodes, and their rewards."""

    log_w: FloatArray
    rewards: FloatArray
    offsets: IntArray

    @property
    def final(self) -> FloatArray:
        """Final log weight of every episode."""
        return self.log_w[self.offsets[1:] - 1]

    def clipped(self, clip: float) -> WeightBlock:
        """Return the block with its weights cut off at `clip`."""
        return self._replace(log_w=np.minimum(self.log_w, np.log(clip)))


class Form(NamedTuple):
    """Which of the four classical forms is computed."""

    gamma: float
    per_decision: bool = True
    self_normalized: bool = False


@dataclass(frozen=True)
class ImportanceFit:
    """What one pass over a log leaves: value, influence, scores, and the weights that the diagnostics need."""

    value: float
    influence: FloatArray
    scores: FloatArray | None
    final_log_w: FloatArray
    totals: weights.StepTotals
    summary: weights.WeightSummary
    per_decision: bool
    omega: FloatArray  # a weight of mean 1 for each episode

    @property
    def weighed_final(self) -> FloatArray:
        """The last log weights, those of the episodes included."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.final_log_w + np.log(self.omega))

    @property
    def ess(self) -> float:
        """Effective number of episodes: the least over the steps from which rewards are still to come."""
        if not self.per_decision:
            return effective_sample_size(self.weighed_final)
        return float(self.totals.effective_sample_size[self.matters].min())

    @property
    def matters(self) -> BoolArray:
        """The steps from which rewards are still to come, (H,)."""
        return steps_with_mass(self.summary.discounted_rewards)

    @property
    def mean_weight(self) -> float:
        """Mean weight at the last of these steps, of whole trajectories at their end."""
        weights_ = self.totals.mean_weight
        return float(weights_[self.matters][-1] if self.per_decision else weights_[-1])


def weight_blocks(policy: Policy, data: LoggedDataset) -> Iterator[WeightBlock]:
    """Yield the cumulative log weights of a log, block by block."""
    for block in data.blocks():
        yield WeightBlock(weights.block_log_weights(policy, block), block.rewards, block.offsets)


def importance_fit(blocks: Iterable[WeightBlock], form: Form, weight: FloatArray) -> ImportanceFit:
    """Return value, influence and totals of one of the four forms; `weight` holds a weight of mean 1 per episode."""
    summaries, kept, finals, first = [], [], [], 0
    for block in blocks:
        omega = weight[first : first + len(block.offsets) - 1]
        first += len(omega)
        summaries.append(weights.summarise(*block, form.gamma, omega))
        finals.append(block.final)
        kept.append(_needed(block, form))
    summary = weights.merge(summaries)
    totals, final = weights.finish(summary), np.concatenate(finals)
    if form.self_normalized:
        value, influence = _self_normalized(kept, form, final, totals, weight)
        influence = verdicts.settled(influence, value)
        return ImportanceFit(value, influence, None, final, totals, summary, form.per_decision, weight)
    x = np.concatenate([score for score in kept if isinstance(score, np.ndarray)])
    value, scores = float(np.mean(times(x, weight))), x if bool(np.all(weight == 1.0)) else None
    influence = verdicts.settled(times(x - value, weight), value)
    return ImportanceFit(value, influence, scores, final, totals, summary, form.per_decision, weight)


def _needed(block: WeightBlock, form: Form) -> WeightBlock | FloatArray:
    # Weights can be normalised step by step only after the whole log was seen.
    if form.self_normalized:
        return block if form.per_decision else discounted_returns(block.rewards, block.offsets, form.gamma)
    score = per_decision_scores if form.per_decision else trajectory_scores
    return score(*block, form.gamma)


def _self_normalized(
    kept: list[WeightBlock | FloatArray], form: Form, final: FloatArray, totals: weights.StepTotals, weight: FloatArray
) -> tuple[float, FloatArray]:
    blocks = [block for block in kept if isinstance(block, WeightBlock)]
    if not blocks:
        return weighted_is(final, np.concatenate(kept), weight)
    discounts = form.gamma ** np.arange(len(totals.scale))
    step_values = discounts * totals.mean_reward
    suffix = weights.padded_suffix(totals, step_values)
    parts = [weighted_per_decision_influence(*block, form.gamma, totals, suffix) for block in blocks]
    value = float(step_values.sum()) if np.all(totals.total[discounts > 0] > 0) else float("nan")
    return value, times(np.concatenate(parts), weight)


def choose(fits: Sequence[ImportanceFit], enough: float = verdicts.THRESHOLDS.ess_refuse) -> LepskiChoice:
    """Choose among fits ordered by rising bias; those that fewer than `enough` episodes carry have no say.

    The standard error of such a fit is as wrong as its value: the weights that would tell have not been drawn.
    """
    enough = min(enough, 0.5 * len(fits[0].influence))
    usable = [fit.ess >= enough for fit in fits]
    return lepski_choice([fit.value for fit in fits], np.column_stack([fit.influence for fit in fits]), usable=usable)


# -------------------------------------------------------------------- diagnostics and findings


def weight_diagnostics(data: LoggedDataset, fit: ImportanceFit) -> dict[str, Any]:
    """Return what the weights and the influence of a fit say about it."""
    below = np.flatnonzero(fit.totals.effective_sample_size < EFFECTIVE_HORIZON_ESS)
    return {
        "ess": fit.ess,
        "ess_final": effective_sample_size(fit.weighed_final),
        **verdicts.influence_diagnostics(fit.influence),
        "mean_weight": fit.mean_weight,
        "pareto_k": pareto_k(fit.weighed_final),
        "effective_horizon": int(below[0]) if len(below) else len(fit.totals.scale),
        "truncated_share": verdicts.truncated_share(data),
    }


def weight_findings(
    data: LoggedDataset, policy: Policy, fit: ImportanceFit, gamma: float, diagnostics: dict[str, Any], *, clipped: bool
) -> list[verdicts.Finding]:
    """Judge value, width, propensities, unlogged actions and weights; adds the unlogged mass to the diagnostics."""
    mass, labels = unlogged_mass(data, policy)
    diagnostics["unlogged_mass"] = mass
    finite = verdicts.judge_finite(fit.value, fit.influence)
    findings = [finite, verdicts.judge_propensities(data, orthogonal=False), verdicts.judge_unlogged(mass, labels)]
    if finite is None:  # without a value there is no spread to judge
        findings.extend(verdicts.importance_findings(diagnostics, clipped=clipped))
        findings.append(verdicts.judge_width(fit.influence, data, gamma, data.horizon is None))
    return findings


def tail_finding(
    data: LoggedDataset, fit: ImportanceFit, form: Form, weight: FloatArray, diagnostics: dict[str, Any]
) -> tuple[verdicts.Finding, float]:
    """Judge what truncated episodes would still have earned; return the widening of the interval too."""
    truncated = np.asarray(data.ends == End.TRUNCATED, dtype=np.float64)
    if not truncated.any():
        return None, 0.0
    bound, given = verdicts.reward_bound(data)
    tails = truncation_tail(fit.final_log_w, data.lengths, truncated, form.gamma, bound, data.horizon)
    tail = float(np.mean(weight * tails))
    if form.self_normalized:
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
