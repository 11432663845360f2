"""How many of the learned features a log can carry: Lepski's rule on nested fits of least-squares temporal differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ope.estimators import _linear as linear
from ope.estimators._dice_base import episode_blocks
from ope.estimators._dice_problem import DiceProblem
from ope.estimators._neural_dice_features import NetworkFeatures, Remembered
from ope.estimators._neural_dice_training import TrainedSaddle
from ope.neural.networks import MLP
from ope.validation import FloatArray, IntArray

LADDER = (8, 16, 32, 64, 128, 256)
APART = 2.0


@dataclass(frozen=True)
class Rung:
    """A part of the features.

    Parameters
    ----------
    n_directions : int
    outputs : bool
        Whether nu and zeta themselves are among them.
    value : float
    influence : ndarray of shape (n_episodes,)
        Centred influence of every episode on it.
    """

    n_directions: int
    outputs: bool
    value: float
    influence: FloatArray


def lepski(values: Sequence[float], influences: Sequence[FloatArray], apart: float) -> int:
    """Return which of nested fits, the richest last, has the least variance among those that no richer one contradicts.

    Parameters
    ----------
    values : sequence of float
    influences : sequence of ndarray of shape (n,)
        Each with Var(value) = sum psi^2 / n^2.
    apart : float
        Standard errors of the difference, from the paired influences, by which two fits contradict each other.

    References
    ----------
    Su, Srinath, Krishnamurthy (2020). Adaptive estimator selection for off-policy evaluation. ICML.

    Examples
    --------
    The poorest fit is far from the richest, beside the error of their difference; the middle one is not, and varies less.

    >>> rich, middle, poor = np.array([2.0, -2.0, 2.0, -2.0]), np.array([1.0, -1.0] * 2), np.array([0.5, -0.5] * 2)
    >>> lepski([9.0, 1.0, 0.5], [poor, middle, rich], apart=2.0)
    1
    """
    n = len(influences[-1])
    sizes = [float(np.linalg.norm(psi)) / n for psi in influences]
    kept = []
    for i in range(len(values)):
        gaps = [
            (abs(values[i] - values[j]), float(np.linalg.norm(influences[i] - influences[j])) / n)
            for j in range(i + 1, len(values))
        ]
        if np.isfinite(sizes[i]) and all(gap <= apart * error for gap, error in gaps):
            kept.append(i)
    return min(kept, key=sizes.__getitem__) if kept else len(values) - 1


def learned_features(
    networks: tuple[MLP, MLP], trained: TrainedSaddle, problem: DiceProblem, positive: bool
) -> NetworkFeatures:
    """Return all features that a log can carry of networks, on the way or at the end."""
    return NetworkFeatures.learned(
        networks,
        trained.drawn,
        trained.scaling,
        problem.data,
        positive=positive,
        n_samples=problem.n_samples,
        random_state=problem.random_state,
    )


def choose_features(problem: DiceProblem, learned: Remembered) -> tuple[Remembered, list[Rung]]:
    """Return as many of the learned features as Lepski's rule takes, and the ladder that it chose from."""
    rungs = climb(problem, learned)
    chosen = rungs[lepski([rung.value for rung in rungs], [rung.influence for rung in rungs], APART)]
    return learned.part(chosen.n_directions, chosen.outputs), rungs


def climb(problem: DiceProblem, learned: Remembered) -> list[Rung]:
    """Fit every rung of the ladder, the richest last."""
    blocks = [(omega, learned.seen(problem.policy, block)) for block, omega in episode_blocks(problem)]
    sums = linear.merge([linear.summarise(seen, omega, problem.n_values) for omega, seen in blocks])
    n, rungs = float(problem.episode_weight.sum()), []
    for size, outputs, index in ladder(learned.inner):
        solution = _embedded(linear.solve(_part(sums, index), problem.gamma, 0.0), index, sums.start / sums.n)
        parts = []
        for omega, seen in blocks:
            eps = linear.temporal_differences(seen, solution.theta, problem.gamma)
            w = n * linear.weights_of(seen, solution.adjoint)
            parts.append(omega * linear.influence(seen, solution, eps, w))
        psi = np.concatenate(parts)
        rungs.append(Rung(size, outputs, solution.value, psi - problem.episode_weight * psi.mean()))
    return rungs


def ladder(learned: NetworkFeatures) -> list[tuple[int, bool, IntArray]]:
    """Return the rungs: how many directions, whether nu and zeta join, and which columns these are."""
    top = learned.directions.shape[1]
    sizes = [size for size in LADDER if size < top]
    rungs = [(size, False, learned.columns(size, False)) for size in [*sizes, top]]
    return [*rungs, (top, True, learned.columns(top, True))]


def _part(sums: linear.LinearSums, index: IntArray) -> linear.LinearSums:
    square = np.ix_(np.arange(len(sums.gram)), index, index)
    return replace(
        sums, gram=sums.gram[square], cross=sums.cross[square], reward=sums.reward[:, index], start=sums.start[index]
    )


def _embedded(solution: linear.LinearSolution, index: IntArray, start: FloatArray) -> linear.LinearSolution:
    """Return a solution for some of the features as one for all of them."""
    theta, adjoint = (np.zeros((len(part), len(start))) for part in (solution.theta, solution.adjoint))
    theta[:, index], adjoint[:, index] = solution.theta, solution.adjoint
    return replace(solution, theta=theta, adjoint=adjoint, start=start)
