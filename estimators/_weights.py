"""Importance weights of a log, summed per step: summarise a block, merge, finish. Owned by the importance sampling family.

Every ended episode keeps its final weight in the totals of later steps. Sums carry a log scale per step (the largest
log weight), so that neither long products nor large ratios overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.policy import Policy, log_prob_logged
from ope.validation import FloatArray, IntArray


def block_log_weights(policy: Policy, block: LoggedDataset, cross_fitted: bool = False) -> FloatArray:
    """Return log W_t = sum_{k<=t} log(pi/b) of every row of a block; -inf once the candidate leaves the episode."""
    behavior = block.behavior_log_prob
    if cross_fitted and block.cross_fitted_log_prob is not None:
        behavior = block.cross_fitted_log_prob
    assert behavior is not None
    return ragged.cumulative_log_weights(log_prob_logged(policy, block) - behavior, block.offsets)


@dataclass(frozen=True)
class ScaledSums:
    """Sums of w, w^2, w r and w |r| at each step, as exp(scale) and exp(2 scale) multiples.

    Parameters
    ----------
    scale : ndarray of shape (T,)
        Largest log weight at each step, -inf where none is positive.
    w, w2, wr : ndarray of shape (T,)
    """

    scale: FloatArray
    w: FloatArray
    w2: FloatArray
    wr: FloatArray

    def merge(self, other: ScaledSums) -> ScaledSums:
        """Return the sums of both, over the longer of the two time axes."""
        n = max(len(self.scale), len(other.scale))
        a, b = self._padded(n), other._padded(n)
        scale = np.maximum(a.scale, b.scale)
        return ScaledSums(scale, *(x + y for x, y in zip(a._rescaled(scale), b._rescaled(scale), strict=True)))

    def _padded(self, n: int) -> ScaledSums:
        extra = n - len(self.scale)
        zeros = np.zeros(extra)
        return ScaledSums(
            np.concatenate([self.scale, np.full(extra, -np.inf)]),
            *(np.concatenate([part, zeros]) for part in (self.w, self.w2, self.wr)),
        )

    def _rescaled(self, scale: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        factor = np.exp(_difference(self.scale, scale))
        return self.w * factor, self.w2 * factor**2, self.wr * factor


def _difference(low: FloatArray, high: FloatArray) -> FloatArray:
    # -inf - -inf is no scale at all: nothing is there to be rescaled.
    out = np.zeros_like(high)
    np.subtract(low, high, out=out, where=~np.isneginf(high))
    return out


def scaled_sums(
    log_w: FloatArray, index: IntArray, size: int, multiplier: FloatArray, rewards: FloatArray | None
) -> ScaledSums:
    """Sum exp(log_w) times a multiplier within each value of `index`, each on the scale of its largest log weight."""
    scale = np.full(size, -np.inf)
    np.maximum.at(scale, index, log_w)
    w = log_w - np.where(np.isneginf(scale), 0.0, scale)[index]
    np.exp(w, out=w)
    w *= multiplier
    weighted = np.zeros(size) if rewards is None else sums_at(index, w * rewards, size)
    sums = sums_at(index, w, size)
    np.square(w, out=w)
    return ScaledSums(scale, sums, sums_at(index, w, size), weighted)


def sums_at(index: IntArray, values: FloatArray, size: int) -> FloatArray:
    """Sum the values that share an index, shape (size,).

    Examples
    --------
    >>> sums_at(np.array([0, 2, 0]), np.array([1.0, 2.0, 4.0]), size=3)
    array([5., 0., 2.])
    """
    # Twice as fast as np.bincount with weights, which looks for the largest index first.
    sums = np.zeros(size)
    np.add.at(sums, index, values)
    return sums


@dataclass(frozen=True)
class WeightSummary:
    """What a block says about the weights at every step.

    Parameters
    ----------
    alive : ScaledSums
        Over episodes that take step t.
    ended : ScaledSums
        Final weights of episodes by their length; entry T holds those of length T.
    discounted_rewards : ndarray of shape (H,)
        sum of gamma^t |r_t|: where the value comes from.
    n : float
        Sum of episode weights.
    """

    alive: ScaledSums
    ended: ScaledSums
    discounted_rewards: FloatArray
    n: float

    def merge(self, other: WeightSummary) -> WeightSummary:
        """Return the summary of both blocks."""
        size = max(len(self.discounted_rewards), len(other.discounted_rewards))
        mass = np.zeros(size)
        mass[: len(self.discounted_rewards)] += self.discounted_rewards
        mass[: len(other.discounted_rewards)] += other.discounted_rewards
        return WeightSummary(self.alive.merge(other.alive), self.ended.merge(other.ended), mass, self.n + other.n)


def summarise(
    log_w: FloatArray, rewards: FloatArray, offsets: IntArray, gamma: float, episode_weight: FloatArray
) -> WeightSummary:
    """Summarise a block of whole episodes.

    Parameters
    ----------
    log_w : ndarray of shape (n,)
        Cumulative log weights.
    rewards : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
    gamma : float
    episode_weight : ndarray of shape (n_episodes,)
    """
    lengths = np.diff(offsets)
    horizon = int(lengths.max())
    steps = ragged.step_index(offsets)
    constant = episode_weight.min() == episode_weight.max()
    row_weight = episode_weight[:1] if constant else np.repeat(episode_weight, lengths)
    if (episode_weight == 0.0).any():  # such episodes are not there: they set no scale
        log_w = np.where(np.repeat(episode_weight, lengths) > 0.0, log_w, -np.inf)
    mass = sums_at(steps, row_weight * np.abs(rewards), horizon) * gamma ** np.arange(horizon)
    alive = scaled_sums(log_w, steps, horizon, row_weight, rewards)
    ended = scaled_sums(log_w[offsets[1:] - 1], lengths, horizon + 1, episode_weight, None)
    return WeightSummary(alive, ended, mass, float(episode_weight.sum()))


def merge(summaries: list[WeightSummary]) -> WeightSummary:
    """Merge the summaries of all blocks."""
    return reduce(WeightSummary.merge, summaries)


@dataclass(frozen=True)
class StepTotals:
    """Totals over all episodes at each step, ended ones with their final weight; logs of W are relative to `scale`.

    Parameters
    ----------
    scale : ndarray of shape (H,)
    total, total_squares : ndarray of shape (H,)
        sum W and sum W^2 over exp(scale), exp(2 scale).
    mean_reward : ndarray of shape (H,)
        m_t = sum_alive W r / sum W; 0 where all weights are 0.
    carried_scale : ndarray of shape (H + 1,)
        Largest final log weight of the episodes of length <= t.
    n : float
    """

    scale: FloatArray
    total: FloatArray
    total_squares: FloatArray
    mean_reward: FloatArray
    carried_scale: FloatArray
    n: float

    @property
    def mean_weight(self) -> FloatArray:
        """Mean weight at each step, shape (H,)."""
        with np.errstate(over="ignore"):
            return np.where(
                self.total > 0, np.exp(np.where(self.total > 0, self.scale, 0.0)) * self.total / self.n, 0.0
            )

    @property
    def log_mean_weight(self) -> FloatArray:
        """Its logarithm, +inf where all weights are 0: no weight is a share of nothing."""
        shares = np.divide(self.total, self.n, out=np.full_like(self.total, np.inf), where=self.total > 0)
        return np.where(self.total > 0, self.scale, 0.0) + np.log(shares)

    @property
    def effective_sample_size(self) -> FloatArray:
        """(sum W)^2 / sum W^2 at each step, shape (H,); 0 where all weights are 0."""
        return np.divide(self.total**2, self.total_squares, out=np.zeros_like(self.total), where=self.total_squares > 0)


def finish(summary: WeightSummary) -> StepTotals:
    """Add the final weights of ended episodes to the totals of every later step."""
    alive, ended = summary.alive, summary.ended
    carried_scale = np.maximum.accumulate(ended.scale)
    horizon = len(alive.scale)
    scale = np.maximum(alive.scale, carried_scale[:horizon])
    carried, squares = _carry(ended, carried_scale)
    factor = np.exp(_difference(alive.scale, scale))
    carried_factor = np.exp(_difference(carried_scale[:horizon], scale))
    total = alive.w * factor + carried[:horizon] * carried_factor
    total_squares = alive.w2 * factor**2 + squares[:horizon] * carried_factor**2
    mean_reward = np.divide(alive.wr * factor, total, out=np.zeros(horizon), where=total > 0)
    return StepTotals(scale, total, total_squares, mean_reward, carried_scale, summary.n)


def _carry(ended: ScaledSums, carried_scale: FloatArray) -> tuple[FloatArray, FloatArray]:
    w, w2, _ = ended._rescaled(carried_scale)
    decay = np.exp(_difference(carried_scale[:-1], carried_scale[1:]))
    for t in range(1, len(w)):
        w[t] += w[t - 1] * decay[t - 1]
        w2[t] += w2[t - 1] * decay[t - 1] ** 2
    return w, w2


def padded_suffix(totals: StepTotals, step_values: FloatArray) -> FloatArray:
    """Return S[t] = sum_{k>=t} v_k n exp(carried_scale_t) / sum_i W_ik, shape (..., H + 1), for step values of shape (..., H).

    An episode of length T with final log weight l has the padded part -exp(l - carried_scale_T) S[T] of its influence. All
    exponents are at most 0, because the weights carried at t are among those at every later step.
    """
    horizon = len(totals.scale)
    carried = totals.carried_scale
    here = np.exp(_difference(carried[:horizon], totals.scale))
    terms = np.divide(
        step_values * totals.n * here, totals.total, out=np.zeros(step_values.shape), where=totals.total > 0
    )
    decay = np.exp(_difference(carried[:-1], carried[1:]))
    suffix = np.zeros((*step_values.shape[:-1], horizon + 1))
    for t in range(horizon - 1, -1, -1):
        suffix[..., t] = terms[..., t] + (decay[t] * suffix[..., t + 1] if not np.isneginf(carried[t]) else 0.0)
    return suffix


def relative_weights(log_w: FloatArray, index: IntArray, totals: StepTotals) -> FloatArray:
    """Return W_it / Wbar_t for the rows whose step is `index`."""
    relative = log_w - totals.log_mean_weight[index]
    return np.exp(relative, out=relative)
