"""Simulated episodes of linear-Gaussian models, several at once, where there is no closed form. Called by `LinearGaussianModel`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ope.dataset import Rows
from ope.estimators._linear_gaussian import LinearModel, Units
from ope.estimators._linear_gaussian_values import LinearPolicy
from ope.policy import Policy, probabilities
from ope.validation import FloatArray, IntArray

# Discounted weight of what is left out of an endless episode.
TAIL = 1e-4
LONGEST = 10
MARGIN = 0.1
# Relative to the weight of all rows, so that replicated episodes change nothing.
HAZARD_RIDGE = 1e-5
NEWTON_STEPS = 25

Actions = Callable[[FloatArray, np.random.Generator], npt.NDArray[Any]]


def rollout_steps(gamma: float, horizon: int | None, longest: int) -> int:
    """Return how many steps to simulate; without horizon and discounting ten times the longest logged episode.

    Examples
    --------
    >>> rollout_steps(0.9, None, 5), rollout_steps(1.0, 7, 5), rollout_steps(1.0, None, 5)
    (88, 7, 50)
    """
    if horizon is not None:
        return horizon
    if gamma == 1.0:
        return LONGEST * longest
    return 1 if gamma == 0.0 else int(np.ceil(np.log(TAIL) / np.log(gamma)))


@dataclass(frozen=True, eq=False)
class Stack:
    """M models side by side: theta (M, S, p, d), root of the noise (M, S, d, d), beta (M, S, q), hazard (M, h) or None."""

    theta: FloatArray
    root: FloatArray
    beta: FloatArray
    hazard: FloatArray | None

    @classmethod
    def of(cls, models: list[LinearModel], hazards: list[FloatArray] | None) -> Stack:
        """Put models together."""
        noise = np.stack([model.noise for model in models])
        values, vectors = np.linalg.eigh(noise)
        root = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
        return cls(
            np.stack([model.theta for model in models]),
            root,
            np.stack([model.beta for model in models]),
            None if hazards is None else np.stack(hazards),
        )

    def slot(self, t: int) -> int:
        """Return the slot that step t is read from."""
        return t if self.theta.shape[1] > 1 else 0

    def part(self, n_models: int) -> Stack:
        """Return the first models."""
        hazard = None if self.hazard is None else self.hazard[:n_models]
        return Stack(self.theta[:n_models], self.root[:n_models], self.beta[:n_models], hazard)


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What simulated episodes show.

    Parameters
    ----------
    returns : ndarray of shape (M, R)
    outside : float
        Share of the discounted visits of the first model that lie outside the box.
    alive : float
        Share of its episodes that have not ended by the last step.
    """

    returns: FloatArray
    outside: float
    alive: float


@dataclass(frozen=True, eq=False)
class Question:
    """What is simulated: how the candidate acts, for how many steps, in which units, and the box of the logged states."""

    act: Actions
    units: Units
    gamma: float
    n_steps: int
    low: FloatArray
    high: FloatArray
    by_step: bool


def simulate(
    stack: Stack, start: FloatArray, weight: FloatArray, question: Question, n_rollouts: int, seed: int
) -> Rollouts:
    """Roll out M models; all of them see the same noise.

    Parameters
    ----------
    stack : Stack
    start : ndarray of shape (n, d)
        Standardised first states of the log.
    weight : ndarray of shape (M, n)
        Weights of its episodes in each model.
    question : Question
    n_rollouts : int
        R.
    seed : int

    Notes
    -----
    Terminations are not drawn: rewards count by the probability that the episode still runs, which has the same mean and less
    noise.
    """
    rng, act_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    states = draw_starts(start, weight, n_rollouts, seed)
    alive, returns, visits = np.ones(states.shape[:2]), np.zeros(states.shape[:2]), np.zeros(2)
    gamma = question.gamma
    for t in range(question.n_steps):
        slot, present = stack.slot(t), gamma**t * alive
        x = question.units.inputs(states, question.act(states, act_rng))
        returns += present * np.einsum("mrq,mq->mr", question.units.products(x), stack.beta[:, slot])
        beyond = ((states[0] < question.low) | (states[0] > question.high)).any(axis=1)
        visits += present[0] @ beyond, present[0].sum()
        if stack.hazard is not None:
            alive = alive * (1.0 - hazard_of(hazard_features(x, t, question), stack.hazard))
        noise = rng.standard_normal(states.shape[1:])
        states = np.einsum("mrp,mpd->mrd", x, stack.theta[:, slot])
        states += np.einsum("re,mde->mrd", noise, stack.root[:, slot])
    return Rollouts(returns, float(visits[0] / visits[1]) if visits[1] > 0 else 0.0, float(alive[0].mean()))


def noise_of(returns: FloatArray) -> float:
    """Return the Monte Carlo error of a mean of returns whose first states are a systematic sample: an upper bound."""
    return float(np.std(returns, ddof=1) / np.sqrt(len(returns)))


def drawn_actions(policy: Policy, units: Units, labels: npt.NDArray[Any] | None, names: tuple[str, ...]) -> Actions:
    """Return how a candidate acts in standardised states (M, R, d): codes, or actions in the unit of the log."""

    def codes(states: FloatArray, rng: np.random.Generator) -> IntArray:
        assert labels is not None
        flat = (states * units.scale + units.shift).reshape(-1, states.shape[-1])
        cumulated = probabilities(policy, Rows(flat, names), labels).cumsum(axis=1).reshape(*states.shape[:-1], -1)
        u: FloatArray = np.asarray(rng.random(states.shape[1]))
        return np.asarray(np.minimum((u[:, None] >= cumulated).sum(axis=-1), len(labels) - 1))

    def actions(states: FloatArray, rng: np.random.Generator) -> FloatArray:
        flat = (states * units.scale + units.shift).reshape(-1, states.shape[-1])
        drawn = policy.predict(flat) if "deterministic" in policy.capabilities else policy.sample(flat, rng)
        return np.asarray(drawn, dtype=np.float64).reshape(*states.shape[:-1], -1)

    return actions if labels is None else codes


def linear_actions(candidate: LinearPolicy, units: Units) -> Actions:
    """Return how a linear Gaussian candidate acts, with the same noise in all models."""
    values, vectors = np.linalg.eigh(candidate.noise)
    root = vectors * np.sqrt(np.maximum(values, 0.0))

    def actions(states: FloatArray, rng: np.random.Generator) -> FloatArray:
        mean = candidate.gain[0] + states @ candidate.gain[1:]
        drawn = mean + rng.standard_normal((states.shape[1], len(root))) @ root.T
        return np.asarray(drawn * units.action_scale + units.action_shift)

    return actions


# -------------------------------------------------------------------- starts and terminations


def draw_starts(start: FloatArray, weight: FloatArray, n_rollouts: int, seed: int) -> FloatArray:
    """Return first states (M, R, d) by the weights of episodes (M, n): a systematic sample, with the same numbers for all models."""
    u = (np.arange(n_rollouts) + np.random.default_rng([seed, 2]).random()) / n_rollouts
    cumulated = np.cumsum(weight, axis=1)
    chosen: list[IntArray] = [np.searchsorted(row, u * row[-1], side="right") for row in cumulated]
    last = [int(np.searchsorted(row, row[-1])) for row in cumulated]
    return np.stack([start[np.minimum(own, end)] for own, end in zip(chosen, last, strict=True)])


def hazard_features(x: FloatArray, t: int | IntArray, question: Question) -> FloatArray:
    """Return what the probability of an end depends on, (..., h): x, and the share of the horizon that is over."""
    if not question.by_step:
        return x
    share = np.broadcast_to(np.asarray(t) / question.n_steps, x.shape[:-1])
    return np.concatenate([x, share[..., None], share[..., None] ** 2], axis=-1)


def hazard_of(features: FloatArray, coefficients: FloatArray) -> FloatArray:
    """Return the probabilities of an end, (M, R)."""
    return np.asarray(_sigmoid(np.einsum("mrh,mh->mr", features, coefficients)))


def _sigmoid(z: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))


def fit_hazard(features: FloatArray, ended: FloatArray, weight: FloatArray, first: FloatArray | None) -> FloatArray:
    """Return the coefficients of a logistic regression, by Newton steps from `first`; a small ridge keeps them finite."""
    ridge = HAZARD_RIDGE * weight.sum() * np.eye(features.shape[1])
    w = np.zeros(features.shape[1]) if first is None else first.copy()
    for _ in range(NEWTON_STEPS):
        p = _sigmoid(features @ w)
        gradient = features.T @ (weight * (ended - p)) - ridge @ w
        curvature = (features * (weight * p * (1.0 - p))[:, None]).T @ features + ridge
        step = np.linalg.solve(curvature, gradient)
        size = float(np.abs(features @ step).max())
        w = w + step * min(1.0, 4.0 / max(size, 1e-12))
        if size < 1e-8:
            break
    return w
