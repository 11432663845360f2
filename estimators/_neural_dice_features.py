"""What networks for nu and zeta have learned, as features of a linear saddle point: the last layers in closed form.

Features of (s, a) are nu(s, a) and zeta(s, a) themselves, an indicator of every discrete action, and directions of the hidden
units of both networks as they are and as they were drawn, in a block for each discrete action. So the linear class holds
what the networks found, all that a change of their last layers could make of it, and random features that training has
not bent to where the log is thin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ope import ragged
from ope.dataset import LoggedDataset, Rows
from ope.estimators._dice_flow import FlowBlock
from ope.estimators._draws import final_nodes, row_nodes
from ope.estimators._features import FeatureBlock, fourier_features, history_features
from ope.estimators._neural_fqe_problem import Scaling, time_columns
from ope.neural.networks import MLP
from ope.policy import Policy, continuing_ends, probabilities, used_rows
from ope.validation import FloatArray, IntArray

# Of the last layer: as many coefficients as the log has rows to tell them apart, and a system that is solved in seconds.
ROWS_PER_FEATURE = 20
MAX_FEATURES = 400
REMEMBERED_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Perceptron:
    """One fitted network in float64.

    Parameters
    ----------
    layers : tuple of (weight, bias)
        Of shapes (in, out) and (1, out); relu between them.

    Examples
    --------
    >>> identity = Perceptron(((np.eye(2), np.zeros((1, 2))), (np.ones((2, 1)), np.zeros((1, 1)))))
    >>> identity.output(identity.hidden(np.array([[1.0, -3.0]])))
    array([[1.]])
    """

    layers: tuple[tuple[FloatArray, FloatArray], ...]

    @classmethod
    def of(cls, network: MLP) -> Perceptron:
        """Take the first model of a network."""
        parts = {name: view[0].double().cpu().numpy() for name, view in network.parameters.constants.items()}
        return cls(tuple((parts[f"weight{i}"], parts[f"bias{i}"]) for i in range(len(network.sizes) - 1)))

    def hidden(self, x: FloatArray) -> FloatArray:
        """Return the last hidden layer, shape (n, width)."""
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight + bias, 0.0)
        return x

    def output(self, hidden: FloatArray) -> FloatArray:
        """Return what the last layer makes of it, shape (n, q)."""
        weight, bias = self.layers[-1]
        return np.asarray(hidden @ weight + bias)


@dataclass(frozen=True, eq=False)
class NetworkFeatures:
    """Features of states and actions that networks for nu and zeta have learned.

    Parameters
    ----------
    nu, zeta : Perceptron
        With an output for each discrete action.
    drawn : tuple of Perceptron
        The networks before training, of which hidden units are taken.
    scaling : Scaling
        Of states, actions and time.
    n_actions : int or None
        None for continuous actions.
    positive : bool
        zeta is the square of its network.
    directions : ndarray of shape (4 width, r)
        Which combinations of hidden units are features.
    outputs : bool
        Whether nu and zeta themselves are.
    n_samples, random_state : int
        Of draws for continuous policies without a quadrature rule.
    """

    nu: Perceptron
    zeta: Perceptron
    drawn: tuple[Perceptron, ...]
    scaling: Scaling
    n_actions: int | None
    positive: bool
    directions: FloatArray
    n_samples: int
    random_state: int
    outputs: bool = True

    @classmethod
    def learned(
        cls,
        networks: tuple[MLP, MLP],
        drawn: tuple[MLP, MLP],
        scaling: Scaling,
        data: LoggedDataset,
        *,
        positive: bool,
        n_samples: int,
        random_state: int,
    ) -> NetworkFeatures:
        """Take the networks for nu and zeta and order the directions of their hidden units by how much they vary in a log."""
        nu, zeta = (Perceptron.of(network) for network in networks)
        before = tuple(Perceptron.of(network) for network in drawn)
        n_actions = data.n_actions if data.discrete else None
        bare = cls(nu, zeta, before, scaling, n_actions, positive, np.zeros((0, 0)), n_samples, random_state)
        inputs = bare._inputs(data.states, ragged.step_index(data.offsets), None if data.discrete else data.actions)
        return replace(bare, directions=main_directions(bare._hidden(inputs), bare._budget(data)))

    def _budget(self, data: LoggedDataset) -> int:
        """Return how many directions of hidden units the rows of a log (of a step, where time-indexed) can carry."""
        rows = data.n_transitions if self.scaling.horizon is None else data.n_episodes
        blocks = self.n_actions or 1
        return int(min(MAX_FEATURES, rows // ROWS_PER_FEATURE) - 2) // blocks - 1

    @property
    def n_features(self) -> int:
        """How many there are."""
        return int(self.directions.shape[1] + 1) * (self.n_actions or 1) + 2 * self.outputs

    def columns(self, n_directions: int, outputs: bool) -> IntArray:
        """Return where the features of `part` stand among these."""
        top = self.directions.shape[1]
        inside = np.append(np.arange(n_directions), top)
        blocks = [a * (top + 1) + inside for a in range(self.n_actions or 1)]
        return np.concatenate([*blocks, np.arange(self.n_features - 2, self.n_features)] if outputs else blocks)

    def part(self, n_directions: int, outputs: bool) -> NetworkFeatures:
        """Return the first directions only, with nu and zeta themselves or without."""
        return replace(self, directions=self.directions[:, :n_directions], outputs=outputs)

    # ---------------------------------------------------------------- states and actions

    def _inputs(self, states: FloatArray, steps: IntArray, actions: npt.NDArray[Any] | None) -> FloatArray:
        parts = [self.scaling.states.transform(states)]
        if self.scaling.horizon is not None:
            parts.append(time_columns(steps, self.scaling.horizon))
        if actions is not None:
            assert self.scaling.actions is not None
            parts.append(self.scaling.actions.transform(actions))
        return np.hstack(parts)

    def _hidden(self, inputs: FloatArray) -> FloatArray:
        return np.hstack([network.hidden(inputs) for network in (self.nu, self.zeta, *self.drawn)])

    def _outputs(self, hidden: FloatArray) -> FloatArray:
        """Return nu and zeta of every output, shape (n, A, 2), or nothing (n, A, 0) where they are no features."""
        width = self.nu.layers[-1][0].shape[0]
        nu, zeta = self.nu.output(hidden[:, :width]), self.zeta.output(hidden[:, width : 2 * width])
        found = np.stack([nu, zeta**2 if self.positive else zeta], axis=2)
        return found if self.outputs else found[:, :, :0]

    def _basis(self, hidden: FloatArray) -> FloatArray:
        """Return the directions with a constant, shape (n, r + 1)."""
        return np.hstack([hidden @ self.directions, np.ones((len(hidden), 1))])

    def logged(self, states: FloatArray, steps: IntArray, actions: npt.NDArray[Any]) -> FloatArray:
        """Return the features of states and actions, shape (n, k)."""
        if self.n_actions is None:
            return self.over_nodes(states, steps, np.ones(1), actions[None])
        hidden = self._hidden(self._inputs(states, steps, None))
        basis, outputs = self._basis(hidden), self._outputs(hidden)
        rows, blocks = np.arange(len(basis)), np.zeros((len(basis), self.n_actions, basis.shape[1]))
        blocks[rows, actions] = basis
        return np.hstack([blocks.reshape(len(basis), -1), outputs[rows, actions]])

    def over_nodes(
        self, states: FloatArray, steps: IntArray, weights: FloatArray, nodes: npt.NDArray[Any]
    ) -> FloatArray:
        """Return their expectation over continuous actions, nodes (J, n, d) of weights (J,), shape (n, k)."""
        mean, outputs = np.zeros((1, 1)), np.zeros((1, 1))
        for weight, actions in zip(weights, nodes, strict=True):
            hidden = self._hidden(self._inputs(states, steps, actions))
            mean, outputs = mean + weight * hidden, outputs + weight * self._outputs(hidden)[:, 0]
        return np.hstack([self._basis(mean), outputs])

    def averaged(self, states: FloatArray, steps: IntArray, probs: FloatArray) -> FloatArray:
        """Return their expectation over discrete actions of probabilities (n, A), shape (n, k)."""
        hidden = self._hidden(self._inputs(states, steps, None))
        basis, outputs = self._basis(hidden), self._outputs(hidden)
        blocks = probs[:, :, None] * basis[:, None, :]
        return np.hstack([blocks.reshape(len(basis), -1), np.einsum("na,nao->no", probs, outputs)])

    def own_zeta(self, data: LoggedDataset) -> FloatArray:
        """Return the zeta of the network itself on the rows of a log, shape (n,)."""
        bare = replace(self, directions=self.directions[:, :0], outputs=True)
        return bare.logged(data.states, ragged.step_index(data.offsets), data.actions)[:, -1]

    def own_start(self, policy: Policy, data: LoggedDataset) -> FloatArray:
        """Return the nu of the network itself at the first states, under a candidate, shape (n_episodes,)."""
        bare = replace(self, directions=self.directions[:, :0], outputs=True)
        return bare.seen(policy, data).start[:, -2]

    # ---------------------------------------------------------------- blocks of a log

    def _expected(
        self, policy: Policy, block: LoggedDataset, rows: Rows, steps: IntArray, final: IntArray | None
    ) -> FloatArray:
        if block.action_labels is not None:
            return self.averaged(rows.states, steps, probabilities(policy, rows, block.action_labels))
        draws = (self.n_samples, self.random_state)
        nodes, weights = (
            row_nodes(policy, block, *draws) if final is None else final_nodes(policy, block, final, *draws)
        )
        return self.over_nodes(rows.states, steps, weights, nodes)

    def seen(self, policy: Policy, block: LoggedDataset) -> FeatureBlock:
        """Return a block of whole episodes as least-squares temporal differences in these features see it."""
        stationary = self.scaling.horizon is None
        steps = ragged.step_index(block.offsets)
        phi = self.logged(block.states, steps, block.actions)
        phi_bar = self._expected(policy, block, block.rows(), steps, None)
        chosen = np.flatnonzero(continuing_ends(block, stationary) & block.final_known())
        last = np.zeros((block.n_episodes, phi.shape[1]))
        if len(chosen):
            last[chosen] = self._expected(policy, block, block.final_rows(chosen), block.lengths[chosen], chosen)
        used = used_rows(block, stationary)
        phi_next = ragged.shift_to_next(phi_bar, block.offsets, last)
        return FeatureBlock(phi, phi_bar, phi_next, used, block.rewards, block.offsets, steps)

    def __call__(self, policy: Policy, block: LoggedDataset) -> FlowBlock:
        return as_flow(self.seen(policy, block))

    def instruments(self, block: LoggedDataset) -> tuple[FloatArray, FloatArray | None]:
        """Return what happened one step before, and random waves of states and actions."""
        return history_features(block), wave_functions(block)


class Remembered:
    """Features that keep what they saw of one log, where it is one block and small enough, for those who look many times.

    Parameters
    ----------
    inner : NetworkFeatures
    data : LoggedDataset
        The only log that is asked about.
    policy : Policy
        The only candidate.
    """

    def __init__(self, inner: NetworkFeatures, data: LoggedDataset, policy: Policy) -> None:
        self.inner, self._data, self._policy = inner, data, policy
        self._seen: FeatureBlock | None = None

    def seen(self, policy: Policy, block: LoggedDataset) -> FeatureBlock:
        """Return what the features see."""
        if block is not self._data or policy is not self._policy:
            return self.inner.seen(policy, block)
        seen = self.inner.seen(policy, block) if self._seen is None else self._seen
        if 3 * seen.phi.nbytes <= REMEMBERED_BYTES:
            self._seen = seen
        return seen

    def part(self, n_directions: int, outputs: bool) -> Remembered:
        """Return what is remembered of the first directions only, with nu and zeta themselves or without."""
        kept = Remembered(self.inner.part(n_directions, outputs), self._data, self._policy)
        if self._seen is not None:
            columns = self.inner.columns(n_directions, outputs)
            parts = {name: getattr(self._seen, name)[:, columns] for name in ("phi", "phi_bar", "phi_next")}
            kept._seen = replace(self._seen, **parts)
        return kept

    def __call__(self, policy: Policy, block: LoggedDataset) -> FlowBlock:
        return as_flow(self.seen(policy, block))

    def instruments(self, block: LoggedDataset) -> tuple[FloatArray, FloatArray | None]:
        """Return those of the features."""
        return self.inner.instruments(block)


def as_flow(seen: FeatureBlock) -> FlowBlock:
    """Return a block whose features serve zeta and nu alike."""
    return FlowBlock(seen.phi, seen.phi, seen.phi_next, seen.start, seen.rewards, np.ones(len(seen.phi)))


def wave_functions(block: LoggedDataset) -> FloatArray:
    """Return random waves of states and actions on the logged rows, shape (n, q), which no network was trained to hold."""
    if not block.discrete:
        return fourier_features(np.hstack([block.states, block.actions]))
    waves = fourier_features(block.states)
    codes = np.eye(block.n_actions)[block.actions]
    return np.asarray(np.einsum("na,nq->naq", codes, waves).reshape(len(waves), -1))


def main_directions(hidden: FloatArray, budget: int) -> FloatArray:
    """Return the combinations of hidden units (width, r) of unit second moments and largest spread; r is at most `budget`.

    Examples
    --------
    >>> main_directions(np.array([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0]]), budget=2).round(6)
    array([[0.25],
           [0.25],
           [0.  ]])
    """
    size = np.sqrt((hidden**2).mean(axis=0))
    scale = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    units = hidden * scale
    values, vectors = np.linalg.eigh(units.T @ units / max(len(hidden), 1))
    order = np.argsort(values)[::-1][: max(budget, 0)]
    order = order[values[order] > 1e-10 * max(float(values[-1]), np.finfo(float).tiny)]
    chosen = vectors[:, order] / np.sqrt(values[order])
    # The sign of an eigenvector is arbitrary.
    chosen *= np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(len(order))])
    return np.asarray(scale[:, None] * chosen)
