"""Least-squares temporal differences in closed form: sufficient statistics that merge, their solution, its influence.

Arrays have a leading axis of S value functions: one if stationary, one per step if time-indexed (S = horizon). Notation as in
the papers: G = sum phi phi', C = sum phi phibar_next', b = sum phi r, theta, u (the adjoint solution).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.special import gammaincc

from ope import ragged
from ope.estimators._features import FeatureBlock
from ope.validation import FloatArray, IntArray

RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class LinearSums:
    """G (S, k, k), C (S, k, k), b (S, k), the sum of start features (k,) and of episode weights."""

    gram: FloatArray
    cross: FloatArray
    reward: FloatArray
    start: FloatArray
    n: float

    def merge(self, other: LinearSums) -> LinearSums:
        """Return the sums over both parts."""
        return LinearSums(
            self.gram + other.gram,
            self.cross + other.cross,
            self.reward + other.reward,
            self.start + other.start,
            self.n + other.n,
        )


def summarise(block: FeatureBlock, episode_weight: FloatArray, n_values: int) -> LinearSums:
    """Sum a block; `n_values` is 1 or the horizon."""
    k = block.phi.shape[1]
    row_weight = np.repeat(episode_weight, np.diff(block.offsets)) * block.used
    gram, cross, reward = np.zeros((n_values, k, k)), np.zeros((n_values, k, k)), np.zeros((n_values, k))
    for s, rows in _rows_by_value(block, n_values):
        phi = block.phi[rows]
        weighted = row_weight[rows, None] * phi
        gram[s] = weighted.T @ phi
        cross[s] = weighted.T @ block.phi_next[rows]
        reward[s] = weighted.T @ block.rewards[rows]
    return LinearSums(gram, cross, reward, episode_weight @ block.start, float(episode_weight.sum()))


def merge(parts: list[LinearSums]) -> LinearSums:
    """Merge the sums of all blocks."""
    return reduce(LinearSums.merge, parts)


def _rows_by_value(block: FeatureBlock, n_values: int) -> list[tuple[int, IntArray | slice]]:
    if n_values == 1:
        return [(0, slice(None))]
    return [(t, step_rows(block.offsets, t)) for t in range(int(np.diff(block.offsets).max()))]


def step_rows(offsets: IntArray, t: int) -> IntArray:
    """Return the rows of step t, one for each episode that is longer than t."""
    return offsets[:-1][np.diff(offsets) > t] + t


@dataclass(frozen=True)
class LinearSolution:
    """theta (S, k), the adjoint u (S, k), value = phibar_0' theta_0, and how well the system is posed.

    Parameters
    ----------
    theta, adjoint : ndarray of shape (S, k)
    inverse : ndarray of shape (S, k, k)
        Inverse of A (stationary) or pseudo-inverse of each G, on the span of the logged features.
    support : ndarray of shape (S, k, k)
        Projection on the span of the logged features.
    start : ndarray of shape (k,)
        Mean of the candidate's features at the first state.
    condition : float
    ridge_bias : float
        -lambda sum u' theta, the first-order bias of the ridge.
    """

    theta: FloatArray
    adjoint: FloatArray
    inverse: FloatArray
    support: FloatArray
    start: FloatArray
    value: float
    condition: float
    ridge_bias: float


def solve(sums: LinearSums, gamma: float, ridge: float) -> LinearSolution:
    """Solve A theta = b and A' u = phibar_0 on the span of the logged features; directions never logged get 0."""
    start = sums.start / sums.n
    if len(sums.gram) == 1:
        return _solve_stationary(sums, start, gamma, ridge)
    return _solve_time_indexed(sums, start, gamma, ridge)


def _span(gram: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return an orthonormal basis (k, rank) of the span of the features and its eigenvalues."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > RANK_TOLERANCE * max(float(values[-1]), np.finfo(float).tiny)
    return vectors[:, kept], values[kept]


def _pseudo_inverses(gram: FloatArray, ridge: float) -> tuple[FloatArray, FloatArray, float]:
    """Return the inverse of each G + ridge on the span of its features, the projections on the spans, the worst condition."""
    values, vectors = np.linalg.eigh(gram)
    largest = np.maximum(values[:, -1:], np.finfo(float).tiny)
    kept = values > RANK_TOLERANCE * largest
    reciprocal = np.divide(1.0, values + ridge, out=np.zeros_like(values), where=kept)
    transposed = np.swapaxes(vectors, 1, 2)
    inverse, support = (vectors * reciprocal[:, None, :]) @ transposed, (vectors * kept[:, None, :]) @ transposed
    smallest = np.where(kept, values, np.inf).min(axis=1)
    condition = np.where(kept.any(axis=1), (values[:, -1] + ridge) / (smallest + ridge), np.inf)
    return inverse, support, float(condition.max())


def _solve_stationary(sums: LinearSums, start: FloatArray, gamma: float, ridge: float) -> LinearSolution:
    basis, values = _span(sums.gram[0])
    a = basis.T @ (sums.gram[0] - gamma * sums.cross[0]) @ basis + ridge * np.eye(len(values))
    condition = float(np.linalg.cond(a)) if a.size else float("inf")
    inverse = basis @ (np.linalg.inv(a) if condition < 1e15 else np.linalg.pinv(a)) @ basis.T
    theta, adjoint = inverse @ sums.reward[0], inverse.T @ start
    return LinearSolution(
        theta[None],
        adjoint[None],
        inverse[None],
        (basis @ basis.T)[None],
        start,
        float(start @ theta),
        condition,
        -ridge * float(adjoint @ theta),
    )


def _solve_time_indexed(sums: LinearSums, start: FloatArray, gamma: float, ridge: float) -> LinearSolution:
    n_steps, k = sums.reward.shape
    theta, adjoint = np.zeros((n_steps + 1, k)), np.zeros((n_steps, k))
    inverse, support, condition = _pseudo_inverses(sums.gram, ridge)
    for t in range(n_steps - 1, -1, -1):
        theta[t] = inverse[t] @ (sums.reward[t] + gamma * sums.cross[t] @ theta[t + 1])
    adjoint[0] = inverse[0] @ start
    for t in range(n_steps - 1):
        adjoint[t + 1] = inverse[t + 1] @ (gamma * sums.cross[t].T @ adjoint[t])
    bias = -ridge * float(np.sum(adjoint * theta[:-1]))
    return LinearSolution(theta[:-1], adjoint, inverse, support, start, float(start @ theta[0]), condition, bias)


def plug_in_gradient(
    block: FeatureBlock, coefficient: FloatArray, n_values: int, episode_weight: FloatArray
) -> FloatArray:
    """Return the gradient of sum_i omega_i c_i Vhat(s_T) in theta, shape (S, k); the last known state stands for an unknown one."""
    last = block.offsets[1:] - 1
    known = block.used[last]
    features = np.where(known[:, None], block.phi_next[last], block.phi_bar[last])
    step = block.steps[last] + known if n_values > 1 else np.zeros(len(last), dtype=np.int64)
    inside = step < n_values  # nothing follows the horizon
    gradient = np.zeros((n_values, features.shape[1]))
    np.add.at(gradient, step[inside], ((episode_weight * coefficient)[:, None] * features)[inside])
    return gradient


def adjoint_of(gradient: FloatArray, sums: LinearSums, solution: LinearSolution, gamma: float) -> FloatArray:
    """Return u with gradient' dtheta = sum u' phi eps, shape (S, k)."""
    if len(gradient) == 1:
        return np.asarray(solution.inverse[0].T @ gradient[0])[None]
    u = np.zeros_like(gradient)
    ahead = np.zeros(gradient.shape[1])
    for t, (inverse, cross) in enumerate(zip(solution.inverse, sums.cross, strict=True)):
        u[t] = inverse @ (gradient[t] + ahead)
        ahead = gamma * cross.T @ u[t]
    return u


def value_index(block: FeatureBlock, n_values: int) -> IntArray:
    """Return which value function serves each row, shape (n,)."""
    return np.zeros(len(block.steps), dtype=np.int64) if n_values == 1 else block.steps


def temporal_differences(block: FeatureBlock, theta: FloatArray, gamma: float) -> FloatArray:
    """Return eps = r + gamma phibar_next' theta_next - phi' theta of every used row (0 elsewhere), shape (n,)."""
    n_values = len(theta)
    s = value_index(block, n_values)
    following = theta if n_values == 1 else np.vstack([theta[1:], np.zeros_like(theta[:1])])
    ahead = np.einsum("nk,nk->n", block.phi_next, following[s])
    eps = block.rewards + gamma * ahead - np.einsum("nk,nk->n", block.phi, theta[s])
    return np.asarray(np.where(block.used, eps, 0.0))


def ratios(block: FeatureBlock, solution: LinearSolution, n: float) -> FloatArray:
    """Return w = n u' phi of every row: the candidate's discounted visits over the logged ones, shape (n,)."""
    s = value_index(block, len(solution.theta))
    return np.where(block.used, n * np.einsum("nk,nk->n", block.phi, solution.adjoint[s]), 0.0)


def influence(block: FeatureBlock, solution: LinearSolution, eps: FloatArray, w: FloatArray) -> FloatArray:
    """Return psi_i = sum_t w_it eps_it + theta_0' (phi_0i - phibar_0), shape (n_episodes,)."""
    start: FloatArray = (block.start - solution.start) @ solution.theta[0]
    return ragged.segment_sum(w * eps, block.offsets) + start


def unsupported_mass(
    block: FeatureBlock, solution: LinearSolution, w: FloatArray, gamma: float, episode_weight: FloatArray
) -> tuple[float, float]:
    """Return the candidate's discounted visits that leave the span of the logged features, and all its visits."""
    visits = np.repeat(episode_weight, np.diff(block.offsets)) * np.abs(w) * gamma
    start_left, start_size = _outside(block.start, solution.support[0])
    lost, total = float(episode_weight @ start_left), float(episode_weight @ start_size)
    n_values = len(solution.theta)
    for t, rows in _rows_by_value(block, n_values):
        if n_values > 1 and t == n_values - 1:
            break
        left, size = _outside(block.phi_next[rows], solution.support[min(t + 1, n_values - 1)])
        lost += float(visits[rows] @ left)
        total += float(visits[rows] @ size)
    return lost, total


def _outside(phi: FloatArray, support: FloatArray) -> tuple[FloatArray, FloatArray]:
    size = np.abs(phi).sum(axis=1)
    left = np.abs(phi - phi @ support).sum(axis=1)
    return np.divide(left, size, out=np.zeros_like(size), where=size > 0), (size > 0).astype(np.float64)


def specification_p_value(
    block: FeatureBlock,
    history: FloatArray,
    solution: LinearSolution,
    eps: FloatArray,
    gamma: float,
    episode_weight: FloatArray,
    share: float,
) -> float:
    """Return the p-value of the hypothesis that temporal differences are unrelated to given instruments.

    With what happened one step before it tests the state, with more features of the present it tests the basis.

    Parameters
    ----------
    episode_weight : ndarray of shape (n_episodes,)
    share : float
        Of all episode weights of the log that are in this block.

    Notes
    -----
    A score test, clustered by episode, of E[h eps] = 0, with h made orthogonal to the estimation error of theta. Time-indexed
    models get one test a step, Bonferroni-corrected.
    """
    inverse = solution.inverse / share  # as if the block were the whole log, which makes h orthogonal within it
    if len(inverse) == 1:
        return _stationary_p_value(block, history, inverse[0], eps, gamma, episode_weight)
    p_values = _step_p_values(block, history, inverse, eps, gamma, episode_weight)
    return min(1.0, len(p_values) * min(p_values)) if p_values else 1.0


def _stationary_p_value(
    block: FeatureBlock, h: FloatArray, inverse: FloatArray, eps: FloatArray, gamma: float, episode_weight: FloatArray
) -> float:
    row_weight = block.used * np.repeat(episode_weight, np.diff(block.offsets))
    slope = (row_weight[:, None] * h).T @ (block.phi - gamma * block.phi_next)
    h_star = h - block.phi @ (slope @ inverse).T
    return _score_test(ragged.segment_sum(h_star * (row_weight * eps)[:, None], block.offsets))


def _step_p_values(
    block: FeatureBlock, h: FloatArray, inverse: FloatArray, eps: FloatArray, gamma: float, episode_weight: FloatArray
) -> list[float]:
    n_episodes, n_steps = len(block.offsets) - 1, len(inverse)
    k = block.phi.shape[1]
    theta_influence = np.zeros((n_episodes, k))
    lengths = np.diff(block.offsets)
    p_values = []
    for t in range(min(n_steps, int(lengths.max())) - 1, -1, -1):
        alive = lengths > t
        rows = step_rows(block.offsets, t)
        phi, phi_next, h_t = block.phi[rows], block.phi_next[rows], h[rows]
        omega = episode_weight[alive, None]
        if h_t.any():
            h_star = h_t - phi @ (inverse[t] @ (phi.T @ (omega * h_t)))
            scores = theta_influence @ (gamma * h_star.T @ (omega * phi_next)).T
            scores[alive] += omega * h_star * eps[rows, None]
            p_values.append(_score_test(scores))
        ahead = theta_influence @ (gamma * (phi.T @ (omega * phi_next))).T
        ahead[alive] += omega * phi * eps[rows, None]
        theta_influence = ahead @ inverse[t].T
    return p_values


def _score_test(scores: FloatArray) -> float:
    """Return the p-value of sum(scores) = 0 from rows that are independent, by a chi-square of the rank of their covariance."""
    top = np.abs(scores).max(axis=0)
    scale = top * np.sqrt(((scores / np.where(top > 0, top, 1.0)) ** 2).sum(axis=0))
    kept = scale > 1e-9 * max(float(scale.max(initial=0.0)), np.finfo(float).tiny)
    if not kept.any() or not np.isfinite(scale).all():
        return 1.0
    standard = scores[:, kept] / scale[kept]
    values, vectors = np.linalg.eigh(standard.T @ standard)
    good = values > 1e-8 * values[-1]
    statistic = float((((standard.sum(axis=0) @ vectors[:, good]) ** 2) / values[good]).sum())
    return float(gammaincc(good.sum() / 2.0, statistic / 2.0))


def past_p_value(
    phi: FloatArray,
    history: FloatArray,
    residuals: FloatArray,
    offsets: IntArray,
    episode_weight: FloatArray,
    *,
    time_indexed: bool,
) -> float:
    """Return the p-value of the hypothesis that residuals of any Q model are unrelated to what happened one step before.

    Parameters
    ----------
    phi : ndarray of shape (n, k)
        Features that the history is made orthogonal to.
    history : ndarray of shape (n, q)
    residuals : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
    episode_weight : ndarray of shape (n_episodes,)
    time_indexed : bool
        One test a step, Bonferroni-corrected, instead of one over all rows.
    """
    groups = (
        [step_rows(offsets, t) for t in range(1, int(np.diff(offsets).max()))]
        if time_indexed
        else [np.arange(len(phi))]
    )
    episode = ragged.episode_index(offsets)
    root = np.sqrt(episode_weight)[episode][:, None]
    phi, history, residuals = root * phi, root * history, root[:, 0] * residuals
    p_values = [
        _score_test(_orthogonal_scores(phi[rows], history[rows], residuals[rows], episode[rows])) for rows in groups
    ]
    return min(1.0, len(p_values) * min(p_values)) if p_values else 1.0


def _orthogonal_scores(phi: FloatArray, history: FloatArray, residuals: FloatArray, episode: IntArray) -> FloatArray:
    h_star = history - phi @ np.linalg.lstsq(phi, history, rcond=RANK_TOLERANCE)[0]
    starts = np.flatnonzero(np.diff(episode, prepend=-1))
    return np.asarray(np.add.reduceat(h_star * residuals[:, None], starts, axis=0))
