"""Linear dynamics with Gaussian noise and a quadratic reward: regressions, values in closed form, their influence. Called by `LinearGaussianModel`.

Notation: x = (1, s, a) (with discrete actions (1, s) in the block of the action), s' = Theta' x + noise of covariance Sigma,
r = phi(x)' beta with phi the products of two entries. A candidate acts as a = (k0, K)' (1, s) + noise; V(s) = (1, s) P (1, s)'. States
and actions are standardised. Arrays have a leading axis of slots: one a step, or a single one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import linalg

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._linear import _pseudo_inverses
from ope.policy import Policy, continuing_ends
from ope.schema import End
from ope.validation import BoolArray, FloatArray, IntArray

LINEAR = 1e-8
N_PROBES = 64


# -------------------------------------------------------------------- the log


@dataclass(frozen=True, eq=False)
class Units:
    """Shift and scale of states and actions, and how many discrete actions there are (None: continuous)."""

    shift: FloatArray
    scale: FloatArray
    action_shift: FloatArray
    action_scale: FloatArray
    n_actions: int | None

    @classmethod
    def fit(cls, data: LoggedDataset) -> Units:
        """Take means and standard deviations, block by block."""
        sums = [_moments(block.states) for block in data.blocks()]
        shift, scale = _mean_and_spread(sums)
        if data.discrete:
            return cls(shift, scale, np.zeros(0), np.ones(0), data.n_actions)
        return cls(shift, scale, *_mean_and_spread([_moments(block.actions) for block in data.blocks()]), None)

    def states(self, states: FloatArray) -> FloatArray:
        """Standardise states."""
        return np.asarray((states - self.shift) / self.scale)

    def inputs(self, states: FloatArray, actions: FloatArray | IntArray) -> FloatArray:
        """Return x of standardised states and raw actions, shape (..., p)."""
        affine = np.concatenate([np.ones((*states.shape[:-1], 1)), states], axis=-1)
        if self.n_actions is None:
            return np.concatenate([affine, (actions - self.action_shift) / self.action_scale], axis=-1)
        chosen = np.eye(self.n_actions)[actions]
        return np.asarray((chosen[..., :, None] * affine[..., None, :]).reshape(*states.shape[:-1], -1))

    def products(self, x: FloatArray) -> FloatArray:
        """Return phi: products of two entries, within the block of an action where these are discrete; shape (..., q)."""
        width = x.shape[-1] if self.n_actions is None else len(self.shift) + 1
        first, second = np.triu_indices(width)
        if self.n_actions is None:
            return np.asarray(x[..., first] * x[..., second])
        blocks = x.reshape(*x.shape[:-1], self.n_actions, width)
        return np.asarray((blocks[..., first] * blocks[..., second]).reshape(*x.shape[:-1], -1))


def _moments(values: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    return float(len(values)), values.sum(axis=0, dtype=np.float64), np.square(values, dtype=np.float64).sum(axis=0)


def _mean_and_spread(sums: list[tuple[float, FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    n, total, squares = (sum(parts) for parts in zip(*sums, strict=True))
    mean = np.asarray(total / n)
    spread = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
    return mean, np.where(spread > 1e-9 * np.maximum(np.abs(mean), 1.0), spread, 1.0)


@dataclass(frozen=True, eq=False)
class View:
    """A block of whole episodes.

    Parameters
    ----------
    x : ndarray of shape (n, p)
    phi : ndarray of shape (n, q)
    following : ndarray of shape (n, d)
        Standardised next states, 0 where there is none.
    onward : ndarray of shape (n,)
        Where there is one.
    ended : ndarray of shape (n,)
        Where the process ended in a terminal state.
    steps : ndarray of shape (n,)
    rewards : ndarray of shape (n,)
    start : ndarray of shape (n_episodes, 1 + d)
        1 and the standardised first state.
    offsets : ndarray of shape (n_episodes + 1,)
    """

    x: FloatArray
    phi: FloatArray
    following: FloatArray
    onward: BoolArray
    ended: BoolArray
    steps: IntArray
    rewards: FloatArray
    start: FloatArray
    offsets: IntArray

    def slots(self, n_slots: int) -> Iterator[tuple[int, IntArray | slice]]:
        """Yield the rows of each slot."""
        if n_slots == 1:
            yield 0, slice(None)
            return
        for t in range(int(np.diff(self.offsets).max())):
            yield t, ragged.step_rows(self.offsets, t)


def view(block: LoggedDataset, units: Units, horizon_continues: bool) -> View:
    """Look at a block."""
    states, last = units.states(block.states), np.zeros((block.n_episodes, len(units.shift)))
    goes_on = continuing_ends(block, horizon_continues)
    known = goes_on & block.final_known()
    if known.any() and block.final_states is not None:
        last[known] = units.states(block.final_states[known])
    onward, ended = np.ones(len(block), dtype=bool), np.zeros(len(block), dtype=bool)
    onward[block.offsets[1:] - 1] = known
    ended[block.offsets[1:] - 1] = block.ends == End.TERMINAL
    x = units.inputs(states, block.actions)
    first = states[block.offsets[:-1]]
    return View(
        x,
        units.products(x),
        ragged.shift_to_next(states, block.offsets, last),
        onward,
        ended,
        ragged.step_index(block.offsets),
        block.rewards,
        np.hstack([np.ones((len(first), 1)), first]),
        block.offsets,
    )


# -------------------------------------------------------------------- regressions


@dataclass(frozen=True, eq=False)
class LinearSums:
    """Moments of the regressions by slot, and of first states; they merge."""

    gram_x: FloatArray
    cross: FloatArray
    squares: FloatArray
    n_onward: FloatArray
    gram_phi: FloatArray
    rewards: FloatArray
    start: FloatArray
    n: float

    def merge(self, other: LinearSums) -> LinearSums:
        """Return the sums over both parts."""
        return LinearSums(
            *(mine + others for mine, others in zip(vars(self).values(), vars(other).values(), strict=True))
        )


def summarise(seen: View, weight: FloatArray, n_slots: int) -> LinearSums:
    """Sum a block."""
    p, d, q = seen.x.shape[1], seen.following.shape[1], seen.phi.shape[1]
    sums = LinearSums(
        np.zeros((n_slots, p, p)),
        np.zeros((n_slots, p, d)),
        np.zeros((n_slots, d, d)),
        np.zeros(n_slots),
        np.zeros((n_slots, q, q)),
        np.zeros((n_slots, q)),
        np.einsum("n,ni,nj->ij", weight, seen.start, seen.start),
        float(weight.sum()),
    )
    row_weight = np.repeat(weight, np.diff(seen.offsets))
    for t, rows in seen.slots(n_slots):
        own, phi = row_weight[rows], seen.phi[rows]
        sums.gram_phi[t] = (own[:, None] * phi).T @ phi
        sums.rewards[t] = phi.T @ (own * seen.rewards[rows])
        going = own * seen.onward[rows]
        x, y = seen.x[rows], seen.following[rows]
        weighted = going[:, None] * x
        sums.gram_x[t], sums.cross[t] = weighted.T @ x, weighted.T @ y
        sums.squares[t], sums.n_onward[t] = (going[:, None] * y).T @ y, going.sum()
    return sums


@dataclass(frozen=True, eq=False)
class LinearModel:
    """Regressions by slot: theta (S, p, d), noise (S, d, d), beta (S, q), and what is known of their Gram matrices.

    Parameters
    ----------
    inverse_x, inverse_phi : ndarray of shape (S, p, p), (S, q, q)
    support : ndarray of shape (S, q, q)
        Projection on the span of the logged phi.
    n_onward : ndarray of shape (S,)
    condition : float
    """

    theta: FloatArray
    noise: FloatArray
    beta: FloatArray
    inverse_x: FloatArray
    inverse_phi: FloatArray
    support: FloatArray
    n_onward: FloatArray
    condition: float

    def slot(self, t: int) -> int:
        """Return the slot that step t is read from."""
        return t if len(self.theta) > 1 else 0


def merge(parts: list[LinearSums]) -> LinearSums:
    """Merge the sums of all blocks."""
    return reduce(LinearSums.merge, parts)


def regress(sums: LinearSums) -> LinearModel:
    """Solve the regressions; directions that were never logged get the coefficient 0."""
    inverse_x, _, _ = _pseudo_inverses(sums.gram_x, 0.0)
    inverse_phi, support, condition = _pseudo_inverses(sums.gram_phi, 0.0)
    theta = inverse_x @ sums.cross
    moved = np.swapaxes(theta, 1, 2)
    residual = sums.squares - moved @ sums.cross - np.swapaxes(moved @ sums.cross, 1, 2) + moved @ sums.gram_x @ theta
    noise = residual / np.maximum(sums.n_onward, np.finfo(float).tiny)[:, None, None]
    beta = np.einsum("sqk,sk->sq", inverse_phi, sums.rewards)
    return LinearModel(theta, noise, beta, inverse_x, inverse_phi, support, sums.n_onward, condition)


# -------------------------------------------------------------------- candidates


@dataclass(frozen=True, eq=False)
class LinearPolicy:
    """a = gain' (1, s) + Normal(0, noise) in standardised states and actions: gain (1 + d, k), noise (k, k)."""

    gain: FloatArray
    noise: FloatArray

    @property
    def acting(self) -> FloatArray:
        """The matrix from (1, s) to the mean of x, (p, 1 + d)."""
        return np.vstack([np.eye(len(self.gain)), self.gain.T])

    @property
    def spread(self) -> FloatArray:
        """The covariance of x given s, (p, p)."""
        width = len(self.gain)
        return np.asarray(linalg.block_diag(np.zeros((width, width)), self.noise))


def linear_policy(policy: Policy, states: FloatArray, units: Units) -> LinearPolicy | None:
    """Return the parameters of a candidate, found by probing; None if it is not linear and Gaussian of constant covariance.

    Parameters
    ----------
    policy : Policy
    states : ndarray of shape (n, d)
        Logged states, from which probes are taken: some of them, and others farther out.
    units : Units
    """
    some = states[np.linspace(0, len(states) - 1, min(len(states), N_PROBES)).astype(int)]
    probes = np.vstack([some, 3.0 * (some - units.shift) + units.shift, units.shift[None]])
    try:
        mean = np.asarray(policy.predict(probes), dtype=np.float64).reshape(len(probes), -1)
        precision = None if "deterministic" in policy.capabilities else _precision(policy, probes, mean)
    except TypeError:
        return None
    affine = np.hstack([np.ones((len(probes), 1)), units.states(probes)])
    target = (mean - units.action_shift) / units.action_scale
    gain, *_ = np.linalg.lstsq(affine, target, rcond=None)
    straight = np.abs(affine @ gain - target).max() <= LINEAR * max(1.0, float(np.abs(target).max()))
    if not straight or (precision is None and "deterministic" not in policy.capabilities):
        return None
    k = mean.shape[1]
    covariance = np.zeros((k, k)) if precision is None else np.linalg.inv(precision)
    scale = units.action_scale
    return LinearPolicy(np.asarray(gain, dtype=np.float64), np.asarray(covariance / np.outer(scale, scale)))


def _precision(policy: Policy, probes: FloatArray, mean: FloatArray) -> FloatArray | None:
    """Return the inverse covariance of a Gaussian density around `mean`, or None if it is something else."""
    if "density" not in policy.capabilities:
        return None
    peak, k = np.asarray(policy.log_prob(probes, mean)), mean.shape[1]
    # One step in each direction and in each pair of them; the scale follows from the height of the peak.
    size = np.exp(-(peak[0] + 0.5 * k * np.log(2.0 * np.pi)) / k)
    drop = np.zeros((k, k))
    for i in range(k):
        for j in range(i + 1):
            step = size * (np.eye(k)[i] + (np.eye(k)[j] if i != j else 0.0))
            drop[i, j] = drop[j, i] = 2.0 * float(peak[0] - policy.log_prob(probes[:1], mean[:1] + step)[0]) / size**2
    alone = np.diag(drop)
    precision = 0.5 * (drop - alone[:, None] - alone[None, :])
    np.fill_diagonal(precision, alone)
    shift = size * np.linspace(-1.5, 2.0, len(probes))[:, None] * np.where(np.arange(k) % 2, -1.0, 1.0)
    sign, log_det = np.linalg.slogdet(precision)
    expected = 0.5 * (log_det - k * np.log(2.0 * np.pi)) - 0.5 * np.einsum("ni,ij,nj->n", shift, precision, shift)
    found = np.asarray(policy.log_prob(probes, mean + shift))
    return precision if sign > 0 and np.allclose(found, expected, rtol=1e-6, atol=1e-6) else None


# -------------------------------------------------------------------- values


@dataclass(frozen=True, eq=False)
class LinearValue:
    """A candidate in a model.

    Parameters
    ----------
    value : float
    first : ndarray of shape (1 + d, 1 + d)
        P of the first step.
    ahead : ndarray of shape (n_steps, 1 + d, 1 + d)
        P of what follows each step; a single one without a horizon.
    beta_load : ndarray of shape (S, q)
        dV / d beta: the candidate's discounted visits of phi.
    theta_load : ndarray of shape (S, p, d)
        dV / d Theta.
    noise_load : ndarray of shape (S, d, d)
        dV / d Sigma.
    radius : float
        gamma times the square of the spectral radius of the closed loop; without a horizon there is a value below 1 only.
    """

    value: float
    first: FloatArray
    ahead: FloatArray
    beta_load: FloatArray
    theta_load: FloatArray
    noise_load: FloatArray
    radius: float


def symmetric(beta: FloatArray, width: int) -> FloatArray:
    """Return the matrix R with x' R x = phi(x)' beta."""
    out = np.zeros((width, width))
    out[np.triu_indices(width)] = beta
    return np.asarray((out + out.T) / 2.0)


def evaluate(
    model: LinearModel, candidate: LinearPolicy, start: FloatArray, gamma: float, horizon: int | None
) -> LinearValue:
    """Return value and gradient of a candidate; `start` holds the second moments of (1, s_0)."""
    if horizon is None:
        return _endless(model, candidate, start, gamma)
    ahead = [np.zeros_like(start)]
    for t in range(horizon - 1, -1, -1):
        ahead.append(_before(model, model.slot(t), candidate, ahead[-1], gamma))
    ahead = ahead[::-1]
    loads = _Loads(model)
    moments = start
    for t in range(horizon):
        moments = loads.add(model.slot(t), candidate, moments, ahead[t + 1], gamma)
    return LinearValue(_trace(ahead[0], start), ahead[0], np.array(ahead[1:]), *loads.done(), radius=0.0)


def _trace(a: FloatArray, b: FloatArray) -> float:
    return float(np.sum(a * b))


def _closed_loop(model: LinearModel, slot: int, candidate: LinearPolicy) -> tuple[FloatArray, FloatArray]:
    """Return F with (1, s') = F (1, s) + noise, and the covariance of the noise of s'."""
    theta, k = model.theta[slot], candidate.gain.shape[1]
    onward = np.hstack([np.eye(len(theta))[:, :1], theta])
    push = theta[len(theta) - k :]
    return onward.T @ candidate.acting, push.T @ candidate.noise @ push + model.noise[slot]


def _before(model: LinearModel, slot: int, candidate: LinearPolicy, ahead: FloatArray, gamma: float) -> FloatArray:
    """Return P one step earlier."""
    loop, noise = _closed_loop(model, slot, candidate)
    reward = symmetric(model.beta[slot], len(candidate.acting))
    now = candidate.acting.T @ reward @ candidate.acting + gamma * loop.T @ ahead @ loop
    now[0, 0] += _trace(reward, candidate.spread) + gamma * _trace(ahead[1:, 1:], noise)
    return np.asarray(now)


class _Loads:
    """Derivatives of the value, summed over the steps."""

    def __init__(self, model: LinearModel) -> None:
        self.model = model
        self.beta, self.theta = np.zeros_like(model.beta), np.zeros_like(model.theta)
        self.noise = np.zeros_like(model.noise)

    def add(
        self, slot: int, candidate: LinearPolicy, moments: FloatArray, ahead: FloatArray, gamma: float
    ) -> FloatArray:
        """Add a step with these discounted moments of (1, s), and return those of the next."""
        theta = self.model.theta[slot]
        visits = candidate.acting @ moments @ candidate.acting.T + moments[0, 0] * candidate.spread
        onward = np.hstack([np.eye(len(theta))[:, :1], theta])
        self.beta[slot] += visits[np.triu_indices(len(visits))]
        self.theta[slot] += 2.0 * gamma * visits @ onward @ ahead[:, 1:]
        self.noise[slot] += gamma * moments[0, 0] * ahead[1:, 1:]
        following = gamma * onward.T @ visits @ onward
        following[1:, 1:] += gamma * moments[0, 0] * self.model.noise[slot]
        return np.asarray(following)

    def done(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return them."""
        return self.beta, self.theta, self.noise


def _endless(model: LinearModel, candidate: LinearPolicy, start: FloatArray, gamma: float) -> LinearValue:
    loop, noise = _closed_loop(model, 0, candidate)
    radius = gamma * max(1.0, float(np.abs(np.linalg.eigvals(loop[1:, 1:])).max(initial=0.0)) ** 2)
    if not radius < 1.0:
        p, loads = (
            np.full_like(start, np.nan),
            [np.full_like(x, np.nan) for x in (model.beta, model.theta, model.noise)],
        )
        return LinearValue(float("nan"), p, p[None], loads[0], loads[1], loads[2], radius)
    reward = symmetric(model.beta[0], len(candidate.acting))
    own = candidate.acting.T @ reward @ candidate.acting
    p = linalg.solve_discrete_lyapunov(np.sqrt(gamma) * loop.T, own)
    p[0, 0] += (_trace(reward, candidate.spread) + gamma * _trace(p[1:, 1:], noise)) / (1.0 - gamma)
    entering = start.copy()
    entering[1:, 1:] += gamma / (1.0 - gamma) * noise
    moments = linalg.solve_discrete_lyapunov(np.sqrt(gamma) * loop, entering)
    gradient = _Loads(model)
    gradient.add(0, candidate, moments, p, gamma)
    return LinearValue(_trace(p, start), p, p[None], *gradient.done(), radius=radius)


# -------------------------------------------------------------------- influence


@dataclass(frozen=True, eq=False)
class RowTerms:
    """What each row adds to the influence of its episode, and the ratio of visits that rewards are weighted with, (n,)."""

    errors: FloatArray
    ratio: FloatArray


def row_terms(seen: View, model: LinearModel, found: LinearValue, n: float) -> RowTerms:
    """Return the terms of the influence vector: derivatives of the value times what a row moves the regressions by."""
    errors, ratio = np.zeros(len(seen.rewards)), np.zeros(len(seen.rewards))
    for t, rows in seen.slots(len(model.theta)):
        phi, x, going = seen.phi[rows], seen.x[rows], seen.onward[rows]
        w = n * (phi @ (model.inverse_phi[t] @ found.beta_load[t]))
        e = np.where(going[:, None], seen.following[rows] - x @ model.theta[t], 0.0)
        of_theta = np.einsum("np,pd,nd->n", x, model.inverse_x[t] @ found.theta_load[t], e)
        load = found.noise_load[t]
        of_noise = going * (np.einsum("nd,de,ne->n", e, load, e) - _trace(load, model.noise[t]))
        counted = max(float(model.n_onward[t]), np.finfo(float).tiny)
        errors[rows] = w * (seen.rewards[rows] - phi @ model.beta[t]) + n * (of_theta + of_noise / counted)
        ratio[rows] = w
    return RowTerms(errors, ratio)


def influence(seen: View, terms: RowTerms, found: LinearValue, weight: FloatArray) -> FloatArray:
    """Return psi_i of the episodes of a block."""
    first = np.einsum("ni,ij,nj->n", seen.start, found.first, seen.start) - found.value
    return np.asarray(weight * (ragged.segment_sum(terms.errors, seen.offsets) + first))


def value_errors(seen: View, model: LinearModel, found: LinearValue, gamma: float) -> FloatArray:
    """Return r + gamma V(s') less what the model expects, (n, 1): 0 where no next state is known."""
    by_step, errors = len(model.theta) > 1, np.zeros((len(seen.rewards), 1))
    for t, rows in seen.slots(len(model.theta)):
        p = found.ahead[t] if by_step or len(found.ahead) == 1 else found.first
        x, y = seen.x[rows], seen.following[rows]
        mean = np.hstack([x[:, :1], x @ model.theta[t]])
        reached = np.hstack([np.ones((len(y), 1)), y])
        gap = np.einsum("ni,ij,nj->n", reached, p, reached) - np.einsum("ni,ij,nj->n", mean, p, mean)
        gap -= _trace(p[1:, 1:], model.noise[t])
        reward = seen.rewards[rows] - seen.phi[rows] @ model.beta[t]
        errors[rows, 0] = np.where(seen.onward[rows], reward + gamma * gap, 0.0)
    return errors


def plain_errors(seen: View, model: LinearModel) -> FloatArray:
    """Return the residuals of the reward and of each state variable, (n, 1 + d), 0 where no next state is known."""
    errors = np.zeros((len(seen.rewards), 1 + seen.following.shape[1]))
    for t, rows in seen.slots(len(model.theta)):
        reward = seen.rewards[rows] - seen.phi[rows] @ model.beta[t]
        state = seen.following[rows] - seen.x[rows] @ model.theta[t]
        errors[rows] = np.where(seen.onward[rows, None], np.hstack([reward[:, None], state]), 0.0)
    return errors


def unexplained(h: FloatArray, seen: View, weight: FloatArray, n_slots: int) -> FloatArray:
    """Return instruments (n, m) less their regression on phi, over the rows whose next state is known, 0 elsewhere."""
    row_weight, out = np.repeat(weight, np.diff(seen.offsets)) * seen.onward, np.zeros_like(h)
    for _, rows in seen.slots(n_slots):
        phi, own = seen.phi[rows], row_weight[rows, None]
        gram = (own * phi).T @ phi
        inverse, _, _ = _pseudo_inverses(gram[None], 0.0)
        out[rows] = np.where(own > 0, h[rows] - phi @ (inverse[0] @ (phi.T @ (own * h[rows]))), 0.0)
    return out
