"""Least-squares temporal differences in closed form: sufficient statistics that merge, their solution, its influence.

Arrays have a leading axis of S value functions: one if stationary, one per step if time-indexed (S = horizon). Notation as in
the papers: G = sum phi phi', C = sum phi phibar_next', b = sum phi r, theta, u (the adjoint solution). Rows count by the weight
of their episode, and by their ratio where a block has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ope import ragged
from ope.estimators._features import FeatureBlock
from ope.estimators._specification import past_p_value as past_p_value
from ope.estimators._specification import specification_p_value as specification_p_value
from ope.ragged import step_rows as step_rows
from ope.validation import BoolArray, FloatArray, IntArray

RANK_TOLERANCE = 1e-10
# A column this small beside the largest is rounding.
NOISE = 1e-14
ROUNDING = 1e-12


@dataclass(frozen=True)
class LinearSums:
    """G (S, k, k), C (S, k, k), b (S, k), the sum of start features (k,) and of episode weights.

    `later` (S, m, k, k) holds what C is to the next value function for those 2, 3, ... steps ahead, which traces read.
    """

    gram: FloatArray
    cross: FloatArray
    reward: FloatArray
    start: FloatArray
    n: float
    later: FloatArray | None = None

    def merge(self, other: LinearSums) -> LinearSums:
        """Return the sums over both parts."""
        return LinearSums(
            self.gram + other.gram,
            self.cross + other.cross,
            self.reward + other.reward,
            self.start + other.start,
            self.n + other.n,
            None if self.later is None or other.later is None else self.later + other.later,
        )

    def onward(self, t: int, gamma: float) -> Iterator[tuple[int, FloatArray]]:
        """Yield the later value functions that enter the targets of step t, each with the matrix (k, k) it is multiplied by."""
        yield t + 1, gamma * self.cross[t]
        for j, matrix in enumerate(() if self.later is None else self.later[t]):
            yield t + 2 + j, gamma ** (2 + j) * matrix


def summarise(block: FeatureBlock, episode_weight: FloatArray, n_values: int) -> LinearSums:
    """Sum a block; `n_values` is 1 or the horizon."""
    k = block.phi.shape[1]
    row_weight = block.row_weights(episode_weight)
    gram, cross, reward = np.zeros((n_values, k, k)), np.zeros((n_values, k, k)), np.zeros((n_values, k))
    for s, rows in _rows_by_value(block, n_values):
        phi = block.phi[rows]
        weighted = row_weight[rows, None] * phi
        gram[s] = weighted.T @ phi
        cross[s] = weighted.T @ block.phi_next[rows]
        reward[s] = weighted.T @ block.rewards[rows]
    later = _later(block, row_weight, n_values) if n_values > 1 and block.reach > 1 else None
    return LinearSums(gram, cross, reward, episode_weight @ block.start, float(episode_weight.sum()), later)


def _later(block: FeatureBlock, row_weight: FloatArray, n_values: int) -> FloatArray:
    k = block.phi.shape[1]
    later = np.zeros((n_values, block.reach - 1, k, k))
    for t in range(int(np.diff(block.offsets).max())):
        for ahead, rows, features in block.following(t):
            if ahead > 1:
                later[t, ahead - 2] = (row_weight[rows, None] * block.phi[rows]).T @ features
    return later


def merge(parts: list[LinearSums]) -> LinearSums:
    """Merge the sums of all blocks."""
    return reduce(LinearSums.merge, parts)


def _rows_by_value(block: FeatureBlock, n_values: int) -> list[tuple[int, IntArray | slice]]:
    if n_values == 1:
        return [(0, slice(None))]
    return [(t, ragged.step_rows(block.offsets, t)) for t in range(int(np.diff(block.offsets).max()))]


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


@dataclass(frozen=True)
class _Spans:
    """The span of the features of each of S Gram matrices, found in units in which every feature has the same size.

    Parameters
    ----------
    basis : ndarray of shape (S, k, k)
        Columns r_1, r_2, ... of the span with r_i' G r_j = 0 but for i = j; 0 where there are no more.
    values : ndarray of shape (S, k)
        r_j' G r_j: of unit features, of which none is far from the others.
    kept : ndarray of shape (S, k)
        Which columns there are.
    support : ndarray of shape (S, k, k)
        Projection on the span.
    """

    basis: FloatArray
    values: FloatArray
    kept: BoolArray
    support: FloatArray


def _spans(gram: FloatArray) -> _Spans:
    # A cut in raw units drops a feature for being written in small ones: x beside a constant of 1e5.
    norms = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0.0))
    there = norms > NOISE * norms.max(axis=1, keepdims=True)
    unit = np.divide(1.0, norms, out=np.zeros_like(norms), where=there)
    values, vectors = np.linalg.eigh(unit[:, :, None] * gram * unit[:, None, :])
    kept = values > RANK_TOLERANCE * np.maximum(values[:, -1:], np.finfo(float).tiny)
    basis = unit[:, :, None] * vectors * kept[:, None, :]
    support = there[:, :, None] * np.eye(gram.shape[1])
    size = np.where(there, norms, 1.0)
    for s in np.flatnonzero(kept.sum(axis=1) < there.sum(axis=1)):
        null, _ = np.linalg.qr(vectors[s][:, ~kept[s]] / size[s][:, None])
        support[s] = np.eye(len(null)) - null @ null.T
        basis[s] -= null @ (null.T @ basis[s])
    return _Spans(basis, values, kept, support)


def _span(gram: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return an orthonormal basis (k, rank) of the span of the features and the eigenvalues of unit features in it."""
    spans = _spans(gram[None])
    kept = spans.kept[0]
    values, vectors = np.linalg.eigh(spans.support[0])
    return vectors[:, values > 0.5], spans.values[0][kept]


def _pseudo_inverses(gram: FloatArray, ridge: float) -> tuple[FloatArray, FloatArray, float]:
    """Return the inverse of each G + ridge on the span of its features, the projections on the spans, the worst condition.

    The condition is that of features of the same size, over the steps that have any: nothing is solved where nothing was logged.
    """
    spans = _spans(gram)
    transposed, eye = np.swapaxes(spans.basis, 1, 2), np.eye(gram.shape[1])
    # Columns that are not there get an entry from between the eigenvalues of the others.
    diagonal = np.where(spans.kept, spans.values, spans.values[:, -1:])
    if ridge:
        system = ridge * transposed @ spans.basis
        filled = np.where(spans.kept, 0.0, system[:, -1:, -1])
        system += (diagonal + filled)[:, :, None] * eye
        inverse, own = spans.basis @ np.linalg.inv(_solvable(system)) @ transposed, np.linalg.eigvalsh(system)
    else:
        reciprocal = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=spans.kept)
        inverse, own = (spans.basis * reciprocal[:, None, :]) @ transposed, np.sort(diagonal, axis=1)
    logged = spans.kept.any(axis=1)
    condition = float((own[logged, -1] / own[logged, 0]).max(initial=1.0)) if logged.any() else float("inf")
    return inverse, spans.support, condition


def _solvable(system: FloatArray) -> FloatArray:
    """Return matrices with those of steps without any row, which are 0, replaced by the identity."""
    empty: BoolArray = np.logical_not(system.any(axis=(1, 2)))
    return np.where(empty[:, None, None], np.eye(system.shape[1]), system)


def _solve_stationary(sums: LinearSums, start: FloatArray, gamma: float, ridge: float) -> LinearSolution:
    spans = _spans(sums.gram)
    basis = spans.basis[0][:, spans.kept[0]]
    a = basis.T @ (sums.gram[0] - gamma * sums.cross[0]) @ basis + ridge * basis.T @ basis
    condition = float(np.linalg.cond(a)) if a.size else float("inf")
    inverse = basis @ (np.linalg.inv(a) if condition < 1e15 else np.linalg.pinv(a)) @ basis.T
    theta, adjoint = inverse @ sums.reward[0], inverse.T @ start
    return LinearSolution(
        theta[None],
        adjoint[None],
        inverse[None],
        spans.support,
        start,
        float(start @ theta),
        condition,
        -ridge * float(adjoint @ theta),
    )


def _solve_time_indexed(sums: LinearSums, start: FloatArray, gamma: float, ridge: float) -> LinearSolution:
    n_steps, k = sums.reward.shape
    theta, load = np.zeros((n_steps, k)), np.zeros((n_steps, k))
    inverse, support, condition = _pseudo_inverses(sums.gram, ridge)
    for t in range(n_steps - 1, -1, -1):
        target = sums.reward[t].copy()
        for later, matrix in sums.onward(t, gamma):
            if later < n_steps:
                target += matrix @ theta[later]
        theta[t] = inverse[t] @ target
    load[0] = start
    adjoint = _adjoint(load, sums, inverse, gamma)
    bias = -ridge * float(np.sum(adjoint * theta))
    return LinearSolution(theta, adjoint, inverse, support, start, float(start @ theta[0]), condition, bias)


def _adjoint(load: FloatArray, sums: LinearSums, inverse: FloatArray, gamma: float) -> FloatArray:
    """Return u with sum_t load_t' dtheta_t = sum_t u_t' (phi eps)_t, shape (S, k), from the first step to the last."""
    load, u = load.copy(), np.zeros_like(load)
    for t in range(len(load)):
        u[t] = inverse[t] @ load[t]
        for later, matrix in sums.onward(t, gamma):
            if later < len(load):
                load[later] += matrix.T @ u[t]
    return u


def plug_in_gradient(
    block: FeatureBlock, coefficient: FloatArray, n_values: int, episode_weight: FloatArray
) -> FloatArray:
    """Return the gradient of sum_i omega_i c_i Vhat(s_T) in theta, shape (S, k); the last known state stands for an unknown one."""
    end = last_known(block, n_values)
    inside = end.step < n_values  # nothing follows the horizon
    gradient = np.zeros((n_values, end.features.shape[1]))
    np.add.at(gradient, end.step[inside], ((episode_weight * coefficient)[:, None] * end.features)[inside])
    return gradient


@dataclass(frozen=True)
class LastKnown:
    """The candidate's features in the last known state of every episode, (n_episodes, k), and which value function serves it.

    `there` (n_episodes,) says where features of 0 are those of a state that the log says nothing of.
    """

    features: FloatArray
    step: IntArray
    there: BoolArray


def last_known(block: FeatureBlock, n_values: int) -> LastKnown:
    """Return what is known of where episodes went: the state after the last step, or the last one that was acted in."""
    last = block.offsets[1:] - 1
    known = block.used[last]
    features = np.where(known[:, None], block.phi_next[last], block.phi_bar[last])
    step = block.steps[last] + known if n_values > 1 else np.zeros(len(last), dtype=np.int64)
    return LastKnown(features, step, (_onward(block)[last] | ~known) & _must_speak(block))


def outside_ends(end: LastKnown, support: FloatArray) -> FloatArray:
    """Return the share of the features of last known states outside the span of the log, shape (n_episodes,)."""
    out = np.zeros(len(end.step))
    for s in np.unique(end.step[end.step < len(support)]):
        rows = end.step == s
        out[rows] = _outside(end.features[rows], support[s], end.there[rows])[0]
    return out


def adjoint_of(gradient: FloatArray, sums: LinearSums, solution: LinearSolution, gamma: float) -> FloatArray:
    """Return u with gradient' dtheta = sum u' phi eps, shape (S, k)."""
    if len(gradient) == 1:
        return np.asarray(solution.inverse[0].T @ gradient[0])[None]
    return _adjoint(gradient, sums, solution.inverse, gamma)


def value_index(block: FeatureBlock, n_values: int) -> IntArray:
    """Return which value function serves each row, shape (n,)."""
    return np.zeros(len(block.steps), dtype=np.int64) if n_values == 1 else block.steps


def temporal_differences(block: FeatureBlock, theta: FloatArray, gamma: float) -> FloatArray:
    """Return eps = r + gamma phibar_next' theta_next - phi' theta of every used row (0 elsewhere), shape (n,).

    What is no more than the rounding of its terms is 0, lest tests without a sense of scale take it for something.
    """
    n_values = len(theta)
    s = value_index(block, n_values)
    following = theta if n_values == 1 else np.vstack([theta[1:], np.zeros_like(theta[:1])])
    ahead = gamma * np.einsum("nk,nk->n", block.phi_next, following[s])
    now = np.einsum("nk,nk->n", block.phi, theta[s])
    eps = block.rewards + ahead - now
    size = np.abs(block.rewards) + np.abs(ahead) + np.abs(now)
    return np.asarray(np.where(block.used & (np.abs(eps) > ROUNDING * size), eps, 0.0))


def weights_of(block: FeatureBlock, u: FloatArray) -> FloatArray:
    """Return u' phi of every used row, times its ratio: with n u, the candidate's discounted visits over the logged ones; shape (n,)."""
    w = np.where(block.used, np.einsum("nk,nk->n", block.phi, u[value_index(block, len(u))]), 0.0)
    return w if block.ratio is None else w * block.ratio


def influence(block: FeatureBlock, solution: LinearSolution, eps: FloatArray, w: FloatArray) -> FloatArray:
    """Return psi_i = sum_t w_it eps_it + theta_0' (phi_0i - phibar_0), shape (n_episodes,)."""
    start: FloatArray = (block.start - solution.start) @ solution.theta[0]
    return ragged.segment_sum(w * eps, block.offsets) + start


def unsupported_mass(
    block: FeatureBlock, solution: LinearSolution, w: FloatArray, gamma: float, episode_weight: FloatArray
) -> tuple[float, float]:
    """Return the candidate's discounted visits that leave the span of the logged features, and all its visits."""
    visits = np.repeat(episode_weight, np.diff(block.offsets)) * np.abs(w) * gamma
    speaks = _must_speak(block)
    there: BoolArray = speaks & np.logical_not(block.phi[block.offsets[:-1]].any(axis=1))
    start_left, start_size = _outside(block.start, solution.support[0], there)
    lost, total = float(episode_weight @ start_left), float(episode_weight @ start_size)
    n_values = len(solution.theta)
    for t, rows in _rows_by_value(block, n_values):
        if n_values > 1 and t == n_values - 1:
            break
        there = _onward(block)[rows] & speaks
        left, size = _outside(block.phi_next[rows], solution.support[min(t + 1, n_values - 1)], there)
        lost += float(visits[rows] @ left)
        total += float(visits[rows] @ size)
    return lost, total


def _onward(block: FeatureBlock) -> BoolArray:
    return np.zeros(len(block.steps), dtype=bool) if block.onward is None else block.onward


def _must_speak(block: FeatureBlock) -> bool:
    """Return whether a state whose features are all 0, and with them its Q, is one that the log says nothing of.

    It is an end in all but name where the log acted in such states, earned nothing there and came to no others.
    """
    if block.onward is None:
        return False
    acted = block.used & ~block.phi.any(axis=1)
    ends = acted.any() and not block.rewards[acted].any() and not block.phi_next[acted].any()
    return not ends


def _outside(phi: FloatArray, support: FloatArray, there: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return the share of each row outside the span, and 1 for every row that counts: also of those of 0 that are states."""
    size = np.abs(phi).sum(axis=1)
    left = np.abs(phi - phi @ support).sum(axis=1)
    nothing = there & (size == 0.0)
    share = np.divide(left, size, out=nothing.astype(np.float64), where=size > 0)
    return share, ((size > 0) | nothing).astype(np.float64)
