"""What a fit of networks must stand: its path on the way, functions that nobody fitted, and the sentences about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators import _linear as linear
from ope.estimators import _verdicts as verdicts
from ope.estimators._dice_base import episode_blocks
from ope.estimators._dice_flow import FlowFeatures
from ope.estimators._dice_linear import LinearSolver
from ope.estimators._dice_problem import DiceProblem
from ope.estimators._features import Basis, FeatureBlock, feature_block
from ope.estimators._neural_dice_choice import learned_features
from ope.estimators._neural_dice_features import NetworkFeatures
from ope.estimators._neural_dice_training import TrainedSaddle
from ope.estimators._specification import score_test
from ope.validation import FloatArray, IntArray
from ope.verdict import Level

CHECK_ROWS = 10_000
CHECKED = 6
N_WAVES = 12


# -------------------------------------------------------------------- the path of values


@dataclass(frozen=True)
class ValuePath:
    """What the last layers said on the way, on a part of the log.

    Parameters
    ----------
    values : ndarray of shape (n_checks,)
        Dual values of the networks after evenly spaced updates of the second half.
    unit : float
        Standard error on the part over that on the log.
    """

    values: FloatArray
    unit: float

    @property
    def drift(self) -> float:
        """Largest difference between the last three."""
        last = self.values[-3:]
        return float(np.ptp(last)) if len(last) == 3 else float("inf")


def path_of_values(problem: DiceProblem, trained: TrainedSaddle, k: int, learned: NetworkFeatures) -> ValuePath:
    """Solve the last layers of the networks kept on the way, in as many features as at the end."""
    chosen = _check_episodes(problem)
    part = replace(problem, data=problem.data.select(chosen), episode_weight=problem.episode_weight[chosen])
    values = []
    for networks in trained.checks[k][-CHECKED:]:
        features = learned_features(networks, trained, part, learned.positive)
        features = features.part(learned.directions.shape[1], learned.outputs)
        values.append(LinearSolver(part, features).solve().value)
    return ValuePath(np.array(values), float(np.sqrt(problem.data.n_episodes / len(chosen))))


def _check_episodes(problem: DiceProblem) -> IntArray:
    counted = np.flatnonzero(problem.episode_weight > 0)
    rows = np.cumsum(problem.data.lengths[counted])
    return counted[: max(1, int(np.searchsorted(rows, CHECK_ROWS, side="right")))]


# -------------------------------------------------------------------- functions that nobody fitted


@dataclass(frozen=True)
class Outside:
    """What random waves f, which no network was trained to hold, say of a fit.

    Parameters
    ----------
    flow_error : float
        Largest |mean_i sum_t c_it (f - gamma f') - f_0| over the discounted number of steps; f has a mean square of 1.
    flow_p : float
        p-value of the hypothesis that all of them are 0 in expectation; NaN where time-indexed.
    shift : float
        What the value changes by when the waves join the features; NaN where time-indexed.
    """

    flow_error: float
    flow_p: float
    shift: float

    def diagnostics(self) -> dict[str, float]:
        """Return them under their public names."""
        return {"flow_error": self.flow_error, "flow_p": self.flow_p, "richer_shift": self.shift}


@dataclass(frozen=True, eq=False)
class Waves:
    """A fixed transformer of inputs to random waves of mean square 1.

    Examples
    --------
    >>> Waves.of(np.array([[0.0], [1.0]]), 3).transform(np.array([[0.5]])).shape
    (1, 3)
    """

    shift: FloatArray
    scale: FloatArray
    frequencies: FloatArray
    phases: FloatArray

    @classmethod
    def of(cls, inputs: FloatArray, count: int) -> Waves:
        """Draw waves for inputs of this spread."""
        spread = inputs.std(axis=0)
        rng = np.random.default_rng(1)
        frequencies = rng.normal(size=(inputs.shape[1], count)) / np.sqrt(inputs.shape[1])
        return cls(
            inputs.mean(axis=0), np.where(spread > 0, spread, 1.0), frequencies, rng.uniform(0.0, 2.0 * np.pi, count)
        )

    def transform(self, inputs: FloatArray) -> FloatArray:
        """Return the waves, shape (n, count)."""
        return np.asarray(np.sqrt(2.0) * np.cos((inputs - self.shift) / self.scale @ self.frequencies + self.phases))


def try_outside(problem: DiceProblem, features: FlowFeatures, c: FloatArray, lstdq: float) -> Outside:
    """Try a fit on functions that no network was trained to hold.

    Parameters
    ----------
    problem : DiceProblem
    features : FlowFeatures
    c : ndarray of shape (n,)
        Ratios of visits.
    lstdq : float
        Value of least-squares temporal differences in the features.

    Notes
    -----
    The p-value is that of a score test by episode with f made orthogonal to the estimation error of the ratios: f - phi'A^-1 B
    with B = sum phi (f - gamma f')'. It takes one block of the log, as much as decides it.
    """
    basis, gamma = _wave_basis(problem.data), problem.gamma
    total, flow_p, first, sums = np.zeros(1), float("nan"), 0, []
    for block, omega in episode_blocks(problem):
        own = c[first : first + block.n_transitions]
        waves = feature_block(block, basis, problem.policy, problem.stationary, problem.n_samples, problem.random_state)
        found = ragged.segment_sum(own[:, None] * (waves.phi - gamma * waves.phi_next), block.offsets) - waves.start
        total = total + omega @ found
        if problem.stationary:
            seen = features.seen(problem.policy, block)
            sums.append(linear.summarise(_beside(seen, waves), omega, 1))
            if first == 0:
                flow_p = _flow_p_value(sums[0], seen, own, found, omega, gamma)
        first += block.n_transitions
    largest = float(np.abs(total / problem.episode_weight.sum()).max()) / problem.mass
    shift = linear.solve(linear.merge(sums), gamma, 0.0).value - lstdq if sums else float("nan")
    return Outside(largest, flow_p, shift)


def _beside(a: FeatureBlock, b: FeatureBlock) -> FeatureBlock:
    parts = {name: np.hstack([getattr(a, name), getattr(b, name)]) for name in ("phi", "phi_bar", "phi_next")}
    return replace(a, **parts)


def _wave_basis(data: LoggedDataset) -> Basis:
    if data.discrete:
        return Basis(Waves.of(data.states, N_WAVES), data.n_actions)
    return Basis(Waves.of(np.hstack([data.states, data.actions]), N_WAVES), None)


def _flow_p_value(
    sums: linear.LinearSums, seen: FeatureBlock, c: FloatArray, found: FloatArray, omega: FloatArray, gamma: float
) -> float:
    k = seen.phi.shape[1]
    system = sums.gram[0] - gamma * sums.cross[0]
    own = ragged.segment_sum(c[:, None] * (seen.phi - gamma * seen.phi_next), seen.offsets) - seen.start
    correction = own @ np.linalg.lstsq(system[:k, :k], system[:k, k:], rcond=1e-10)[0]
    return score_test(omega[:, None] * (found - correction))


# -------------------------------------------------------------------- what it says of the value


def judge_drift(drift: float, std_error: float) -> verdicts.Finding:
    """Judge how far the value still moved at the end of the training."""
    if drift <= 0.5 * std_error:
        return None
    level = Level.CAUTION if drift <= 3.0 * std_error else Level.REFUSE
    return level, (
        f"The value still moved by {drift:.3g} over the last fifth of the training, beside a standard error of {std_error:.3g} on the same episodes: the "
        "features that networks learn have not settled, and the interval does not include that. Train for more updates (NeuralFunctions(n_updates=))."
    )


def judge_network(network: float, value: float, std_error: float) -> verdicts.Finding:
    """Judge the difference between the ratio of the network and the one that its last layers make of it."""
    if abs(network - value) <= 3.0 * std_error:
        return None
    return Level.CAUTION, (
        f"The networks themselves say {network:.3g}, their last layers in closed form {value:.3g}, beside a standard error of {std_error:.3g}: the training "
        "was not at the saddle point, and the value rests on the last layers alone. Train for more updates, or with a lower learning rate."
    )


def judge_outside(shift: float, std_error: float) -> verdicts.Finding:
    """Judge what functions would change of the value that no network was trained to hold."""
    if not abs(shift) > 0.5 * std_error:  # NaN where it was not tried
        return None
    return Level.CAUTION, (
        f"With random waves beside the learned features the value changes by {shift:.3g}, beside a standard error of {std_error:.3g}: the networks express neither "
        "the ratio nor the Q function well enough, and the interval does not include that. Pass wider layers, or train for more updates."
    )
