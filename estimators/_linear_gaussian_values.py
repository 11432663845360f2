"""Candidates in a linear-Gaussian model: found by probing, valued in closed form, with the influence of every row. Called by `LinearGaussianModel`.

Notation as in `_linear_gaussian`; a candidate acts as a = (k0, K)' (1, s) + noise, and V(s) = (1, s) P (1, s)'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from ope import ragged
from ope.estimators._linear_gaussian import LinearModel, Units, View
from ope.policy import Policy
from ope.validation import FloatArray

LINEAR = 1e-8
N_PROBES = 64

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
