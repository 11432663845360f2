"""Partial importance sampling returns, completed by a Q model, and the blend of them with the least estimated mean squared error.

What `MAGIC` computes, as pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.special import stdtrit

from ope.estimators import _weights as weights
from ope.estimators._crossfit import Weighed
from ope.validation import FloatArray, IntArray

TAIL = 0.05  # of the interval for the weighted doubly robust value, on each side
LEAST_FREEDOM = 0.1


def blend_steps(horizon: int, n_steps: int) -> IntArray:
    """Return the last weighted step j of each partial return: from -1 (the model alone) to horizon - 1 (no model after it).

    All of them where there are no more than `n_steps`, else evenly spaced ones with both ends.

    Examples
    --------
    >>> blend_steps(3, n_steps=25), blend_steps(100, n_steps=5)
    (array([-1,  0,  1,  2]), array([-1, 24, 49, 74, 99]))
    """
    if horizon + 1 <= n_steps:
        return np.arange(-1, horizon)
    return np.unique(np.round(np.linspace(-1, horizon - 1, n_steps)).astype(np.int64))


def simplex_minimum(factor: FloatArray) -> FloatArray:
    """Return x >= 0 of sum 1 with the least ||factor x||^2, shape (m,).

    Notes
    -----
    Non-negative least squares on ||factor y||^2 + (1'y - 1)^2: along y = s x its least value is q / (1 + q) with q = ||factor
    x||^2, which grows with q, so that y / 1'y is the exact minimum over the simplex.

    Examples
    --------
    >>> simplex_minimum(np.diag([1.0, 2.0]))
    array([0.8, 0.2])
    """
    sizes = np.sqrt((factor**2).sum(axis=0))
    best = int(sizes.argmin())
    if sizes[best] == 0.0:
        return np.asarray(np.eye(len(sizes))[best], dtype=np.float64)
    rows = np.vstack([factor / sizes[best], np.ones(len(sizes))])
    y, _ = nnls(rows, np.eye(len(rows))[-1], maxiter=100 * len(sizes))
    return np.asarray(y / y.sum())


def distance_to_interval(values: FloatArray, low: float, high: float) -> FloatArray:
    """Return how far each value lies outside an interval.

    Examples
    --------
    >>> distance_to_interval(np.array([0.0, 1.5, 4.0]), 1.0, 2.0)
    array([1., 0., 2.])
    """
    return np.maximum(0.0, np.maximum(low - values, values - high))


def t_interval(value: float, std_error: float, effective_size: float) -> tuple[float, float]:
    """Return the 90 % t interval with one degree of freedom less than the effective number of episodes.

    Where that is next to none the interval covers everything: a value from a single episode says nothing about itself.

    Examples
    --------
    >>> low, high = t_interval(0.0, 1.0, effective_size=4.0)
    >>> round(low, 3), round(high, 3)
    (-2.353, 2.353)
    """
    half = -float(stdtrit(max(effective_size - 1.0, LEAST_FREEDOM), TAIL)) * std_error
    return value - half, value + half


def percentile_interval(replicates: FloatArray, value: float) -> tuple[float, float]:
    """Return the 90 % percentile interval of bootstrap replicates, extended to the value where that lies outside.

    Examples
    --------
    >>> low, high = percentile_interval(np.linspace(0.0, 1.0, 101), 2.0)
    >>> round(low, 3), round(high, 3)
    (0.05, 2.0)
    """
    low, high = np.quantile(replicates, [TAIL, 1.0 - TAIL])
    return min(float(low), value), max(float(high), value)


@dataclass(frozen=True)
class PartialReturns:
    """What partial returns are made of, so that they can be computed again with other weights of episodes.

    Parameters
    ----------
    weighed : Weighed
    delta : ndarray of shape (n,)
        Temporal differences.
    v_0 : ndarray of shape (n_episodes,)
        Vhat at the first states.
    gamma : float
    steps : ndarray of shape (m,)
        The j, from `blend_steps`.

    Notes
    -----
    g^(j) = mean Vhat(s_0) + sum_{t<=j} gamma^t m_t, m_t = sum_i W_it delta_it / sum_i W_it: the form of Thomas and Brunskill with
    the terms of Vhat moved one step back. An ended episode keeps its weight in later sums, and delta = 0.
    """

    weighed: Weighed
    delta: FloatArray
    v_0: FloatArray
    gamma: float
    steps: IntArray

    def totals(self, episode_weight: FloatArray) -> weights.StepTotals:
        """Return the totals under weights of episodes of mean 1."""
        return self.weighed.reweighted(self.delta, episode_weight)

    @property
    def discounts(self) -> FloatArray:
        """gamma^t, shape (H,)."""
        return np.asarray(self.gamma ** np.arange(len(self.weighed.totals.scale)), dtype=np.float64)

    def values(self, totals: weights.StepTotals, episode_weight: FloatArray) -> FloatArray:
        """Return g^(j), shape (m,); NaN from the first step without any weight on."""
        step_values = np.where(totals.total > 0, self.discounts * totals.mean_reward, np.nan)
        baseline = float(np.mean(episode_weight * self.v_0))
        partial = np.concatenate([np.zeros(1), np.cumsum(step_values)])
        return np.asarray(baseline + partial[self.steps + 1], dtype=np.float64)

    def influence(self, totals: weights.StepTotals, baseline: float) -> FloatArray:
        """Return the influence of each episode on each g^(j) with Q held fixed, shape (n_episodes, m)."""
        n, m, log, discounts = len(self.v_0), len(self.steps), self.weighed, self.discounts
        share = np.divide(totals.n * discounts, totals.total, out=np.zeros(len(discounts)), where=totals.total > 0)
        terms = log.w * share[log.time] * (self.delta - totals.mean_reward[log.time])
        cells = log.episode * m + np.searchsorted(self.steps, log.time)
        psi: FloatArray = np.bincount(cells, terms, n * m).reshape(n, m).astype(np.float64, copy=False)
        psi[:, 0] += self.v_0 - baseline
        np.cumsum(psi, axis=1, out=psi)
        included = np.arange(len(discounts)) <= self.steps[:, None]
        suffix = weights.padded_suffix(totals, included * discounts * totals.mean_reward)
        psi -= log.w_final[:, None] * suffix[:, np.diff(log.offsets)].T
        return psi


def spread_factor(psi: FloatArray, episode_weight: FloatArray) -> FloatArray:
    """Return R with R'R = Omega = sum_i w_i psi_i psi_i' / (n (n - 1)), the covariance of the partial returns, shape (m, m)."""
    n = len(psi)
    return np.asarray(np.linalg.qr(psi * np.sqrt(episode_weight / (n * max(n - 1, 1)))[:, None], mode="r"))


def blend_weights(values: FloatArray, spread: FloatArray, interval: tuple[float, float]) -> FloatArray:
    """Return the weights x of partial returns with the least estimated mean squared error, shape (m,).

    Parameters
    ----------
    values : ndarray of shape (m,)
        g^(j).
    spread : ndarray of shape (m, m)
        From `spread_factor`.
    interval : tuple of (float, float)
        For the last of them.

    Notes
    -----
    x = argmin over the simplex of x'(Omega + b b')x, b the distances of the values to the interval.

    Examples
    --------
    >>> blend_weights(np.array([0.0, 2.0]), np.diag([0.1, 1.0]), (1.0, 3.0)).round(3)
    array([0.498, 0.502])
    """
    return simplex_minimum(np.vstack([spread, distance_to_interval(values, *interval)]))


@dataclass(frozen=True)
class Draw:
    """Partial returns of a log, or of one resampling of it, with the factor of their covariance."""

    values: FloatArray
    spread: FloatArray

    def blended(self, interval: tuple[float, float]) -> float:
        """Return x'g."""
        return float(blend_weights(self.values, self.spread, interval) @ self.values)

    def t_interval(self, effective_size: float) -> tuple[float, float]:
        """Return the t interval for the last partial return, weighted doubly robust."""
        return t_interval(float(self.values[-1]), float(np.linalg.norm(self.spread[:, -1])), effective_size)


def draw(parts: PartialReturns, episode_weight: FloatArray, shock: FloatArray | float = 0.0) -> Draw:
    """Compute partial returns under weights of episodes of mean 1, with an error of the Q model added."""
    totals = parts.totals(episode_weight)
    psi = parts.influence(totals, float(np.mean(episode_weight * parts.v_0)))
    return Draw(parts.values(totals, episode_weight) + shock, spread_factor(psi, episode_weight))
