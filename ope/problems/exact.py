"""Exact values of policies in a known tabular decision process: dynamic programming, linear solves, second moments.

A process is a `TabularProcess`; a policy is the matrix `pi` of shape (S, A) over its true states, terminals included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ope.validation import BoolArray, FloatArray


@dataclass(frozen=True)
class TabularProcess:
    """A finite Markov decision process, possibly with dynamics that depend on the time step.

    Parameters
    ----------
    transitions : ndarray of shape (S, A, S) or (H, S, A, S)
        P(s' | s, a); rows of terminal states are zero.
    rewards : ndarray of the shape of `transitions`
        Mean reward of (s, a, s').
    initial : ndarray of shape (S,)
    terminal : ndarray of shape (S,)
        Which states are absorbing.
    reward_std : float
        Standard deviation of the Gaussian noise of every reward.

    Examples
    --------
    >>> loop = TabularProcess(np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones(1), np.zeros(1, bool))
    >>> finite_horizon_values(loop, np.ones((1, 1)), gamma=1.0, horizon=3)[:, 0]
    array([3., 2., 1., 0.])
    """

    transitions: FloatArray
    rewards: FloatArray
    initial: FloatArray
    terminal: BoolArray
    reward_std: float = 0.0

    @property
    def stationary(self) -> bool:
        """Whether the dynamics are the same at every time step."""
        return self.transitions.ndim == 3

    def at(self, t: int) -> tuple[FloatArray, FloatArray]:
        """Return P(s' | s, a) and the mean rewards of step `t`, each of shape (S, A, S)."""
        if self.stationary:
            return self.transitions, self.rewards
        return self.transitions[t], self.rewards[t]


@dataclass(frozen=True)
class ImportanceSamplingMoments:
    """Exact moments of one recorded episode; divide a variance by the number of episodes to get that of an estimate.

    Parameters
    ----------
    is_mean, is_variance : float
        Trajectory importance sampling: W_{T-1} sum_t gamma^t r_t.
    pdis_mean, pdis_variance : float
        Per-decision importance sampling: sum_t gamma^t W_t r_t.
    weight_mean, weight_variance : float
        The final weight W_{T-1}.
    """

    is_mean: float
    is_variance: float
    pdis_mean: float
    pdis_variance: float
    weight_mean: float
    weight_variance: float


def finite_horizon_values(process: TabularProcess, pi: FloatArray, gamma: float, horizon: int) -> FloatArray:
    """Return V_t(s) for t = 0, ..., horizon by backward recursion, shape (horizon + 1, S); the last row is zero."""
    values = np.zeros((horizon + 1, len(pi)))
    for t in reversed(range(horizon)):
        values[t] = (pi * _lookahead(*process.at(t), gamma, values[t + 1])).sum(axis=1)
    return values


def stationary_values(process: TabularProcess, pi: FloatArray, gamma: float) -> FloatArray:
    """Return V(s) of the problem without horizon, shape (S,), from (I - gamma P_pi) V = r_pi.

    At gamma = 1 states that the policy never visits from the start get NaN: their value need not exist.

    Raises
    ------
    ValueError
        At gamma = 1, if the policy can reach a state from which it never terminates.
    """
    P, R = process.transitions, process.rewards
    P_pi = np.einsum("sa,saz->sz", pi, P)
    r_pi = np.einsum("sa,saz,saz->s", pi, P, R)
    if gamma < 1.0:
        return np.asarray(np.linalg.solve(np.eye(len(pi)) - gamma * P_pi, r_pi), dtype=np.float64)
    visited = _closure(P_pi > 0, process.initial > 0)
    stuck = visited & ~_closure(P_pi.T > 0, process.terminal)
    if stuck.any():
        raise ValueError(
            "ope.problems: `gamma` must be below 1 where an episode need not end, got 1.0 and a policy that never "
            "terminates from "
            f"state {int(np.flatnonzero(stuck)[0])}; pass gamma < 1 or give the problem a horizon."
        )
    values = np.full(len(pi), np.nan)
    block = np.ix_(visited, visited)
    values[visited] = np.linalg.solve(np.eye(int(visited.sum())) - P_pi[block], r_pi[visited])
    return values


def action_values(process: TabularProcess, values: FloatArray, gamma: float) -> FloatArray:
    """Return Q from V: shape (S, A) from (S,), or (H, S, A) from (H + 1, S); NaN where a next state may have none."""
    if values.ndim == 1:
        P, unknown = process.transitions, np.isnan(values)
        q = _lookahead(P, process.rewards, gamma, np.where(unknown, 0.0, values))
        q[P[:, :, unknown].any(axis=2)] = np.nan
        return q
    return np.stack([_lookahead(*process.at(t), gamma, values[t + 1]) for t in range(len(values) - 1)])


def _lookahead(P: FloatArray, R: FloatArray, gamma: float, next_values: FloatArray) -> FloatArray:
    q: FloatArray = (P * R).sum(axis=2) + gamma * (P @ next_values)
    return q


def _closure(adjacent: BoolArray, start: BoolArray) -> BoolArray:
    """Return which states a walk along `adjacent` from `start` can reach, the start included."""
    reached = start.copy()
    while True:
        grown = reached | adjacent[reached].any(axis=0)
        if (grown == reached).all():
            return reached
        reached = grown


def importance_sampling_moments(
    process: TabularProcess, behavior: FloatArray, pi: FloatArray, gamma: float, n_steps: int
) -> ImportanceSamplingMoments:
    """Return the exact moments of importance sampling in episodes of at most `n_steps` recorded steps.

    Parameters
    ----------
    process : TabularProcess
    behavior, pi : ndarray of shape (S, A)
        The policy that acted and the one to evaluate.
    gamma : float
    n_steps : int

    Returns
    -------
    ImportanceSamplingMoments

    Notes
    -----
    From step t on, with primes for the quantities from step t + 1 on: the weight is w = rho w', the return G = r +
    gamma G' and the per-decision sum X = rho (r + gamma X'). So the conditional moments given s_t of X, X^2, w, w G,
    w^2, w^2 G and w^2 G^2 follow backwards from those given s_{t+1}; no path is enumerated.
    """
    covered = behavior > 0
    first = np.where(covered, pi, 0.0)
    second = np.divide(pi**2, behavior, out=np.zeros_like(pi), where=covered)
    x, xx = np.zeros(len(pi)), np.zeros(len(pi))
    w, ww = np.ones(len(pi)), np.ones(len(pi))
    wg, wwg, wwgg = np.zeros(len(pi)), np.zeros(len(pi)), np.zeros(len(pi))
    for t in reversed(range(n_steps)):
        P, R = process.at(t)
        RR = R**2 + process.reward_std**2
        mean, square = _expectation(first, P), _expectation(second, P)
        x, xx = mean(R + gamma * x), square(RR + 2 * gamma * R * x + gamma**2 * xx)
        wwgg = square(RR * ww + 2 * gamma * R * wwg + gamma**2 * wwgg)
        wwg, wg = square(R * ww + gamma * wwg), mean(R * w + gamma * wg)
        w, ww = (np.where(process.terminal, 1.0, expect(moment)) for expect, moment in ((mean, w), (square, ww)))
    start = process.initial
    return ImportanceSamplingMoments(
        *_mean_variance(start, wg, wwgg),
        *_mean_variance(start, x, xx),
        *_mean_variance(start, w, ww),
    )


def _expectation(action_weight: FloatArray, P: FloatArray) -> Callable[[FloatArray], FloatArray]:
    joint = action_weight[:, :, None] * P

    def expect(outcome: FloatArray) -> FloatArray:
        total: FloatArray = (joint * outcome).sum(axis=(1, 2))
        return total

    return expect


def _mean_variance(start: FloatArray, first: FloatArray, second: FloatArray) -> tuple[float, float]:
    mean = float(start @ first)
    return mean, max(float(start @ second) - mean**2, 0.0)
