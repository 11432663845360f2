"""A log as regression matrices of fitted Q evaluation, and the Q function that regressors make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._draws import final_nodes, row_nodes
from ope.estimators._features import Basis
from ope.estimators._q import QPredictions
from ope.policy import Policy, continuing_ends, probabilities, used_rows
from ope.validation import BoolArray, FloatArray, IntArray


class SideBySide(Basis):
    """States beside the one-hot (or continuous) action, as trees like it."""

    def logged(self, states: FloatArray, actions: npt.NDArray[Any]) -> FloatArray:
        """Return [s, a], shape (n, k)."""
        code = actions if self.n_actions is None else np.eye(self.n_actions)[actions]
        return np.hstack([states, code])

    def every_action(self, states: FloatArray) -> FloatArray:
        """Return [s, a] for every discrete action, shape (n, n_actions, k)."""
        assert self.n_actions is not None
        n = len(states)
        repeated = np.repeat(states[:, None, :], self.n_actions, axis=1)
        codes = np.broadcast_to(np.eye(self.n_actions), (n, self.n_actions, self.n_actions))
        return np.concatenate([repeated, codes], axis=2)


@dataclass(frozen=True)
class Design:
    """A log as regression matrices: inputs of logged actions, and of all actions (or nodes) with their weights under the candidate.

    Parameters
    ----------
    inputs : Basis
    x : ndarray of shape (n, k)
        Inputs of the logged actions.
    x_nodes : ndarray of shape (n, m, k)
        Inputs of all actions, or nodes.
    node_weights : ndarray of shape (n, m)
    final_nodes, final_weights : ndarray
        The same at the known states after the last step.
    final_position : ndarray of shape (n_episodes,)
        Their place; -1 for none.
    final_known : ndarray of shape (n_episodes,)
        Where the process goes on to a known state.
    used : ndarray of shape (n,)
        False where it goes on to an unknown state.
    rewards : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
    stationary : bool
    """

    inputs: Basis
    x: FloatArray
    x_nodes: FloatArray
    node_weights: FloatArray
    final_nodes: FloatArray
    final_weights: FloatArray
    final_position: IntArray
    final_known: BoolArray
    used: BoolArray
    rewards: FloatArray
    offsets: IntArray
    stationary: bool

    @property
    def x_bar(self) -> FloatArray:
        """Expected inputs under the candidate, shape (n, k)."""
        return np.asarray(np.einsum("nm,nmk->nk", self.node_weights, self.x_nodes))

    def state_values(self, regressor: Any, rows: IntArray | slice) -> FloatArray:
        """Return E_pi Q(s, .) at the chosen rows."""
        return _mean_prediction(regressor, self.x_nodes[rows], self.node_weights[rows])

    def final_values(self, regressor: Any, episodes: IntArray) -> FloatArray:
        """Return E_pi Q(s, .) at the final states of the chosen episodes."""
        position = self.final_position[episodes]
        return _mean_prediction(regressor, self.final_nodes[position], self.final_weights[position])


def _mean_prediction(regressor: Any, nodes: FloatArray, node_weights: FloatArray) -> FloatArray:
    if regressor is None or len(nodes) == 0:
        return np.zeros(len(nodes))
    n, m, k = nodes.shape
    predicted = np.asarray(regressor.predict(nodes.reshape(n * m, k))).reshape(n, m)
    return np.asarray(np.einsum("nm,nm->n", node_weights, predicted))


def make_design(
    data: LoggedDataset, policy: Policy, inputs: Basis, stationary: bool, n_samples: int, random_state: int
) -> Design:
    """Compute the regression matrices of a log for one candidate."""
    known = continuing_ends(data, stationary) & data.final_known()
    finals = np.flatnonzero(known)
    x_nodes, node_weights = _nodes(policy, data, None, inputs, n_samples, random_state)
    after, after_weights = x_nodes[:0], node_weights[:0]
    if len(finals):
        after, after_weights = _nodes(policy, data, finals, inputs, n_samples, random_state)
    position = np.full(data.n_episodes, -1)
    position[finals] = np.arange(len(finals))
    return Design(
        inputs=inputs,
        x=inputs.logged(data.states, data.actions),
        x_nodes=x_nodes,
        node_weights=node_weights,
        final_nodes=after,
        final_weights=after_weights,
        final_position=position,
        final_known=known,
        used=used_rows(data, stationary),
        rewards=data.rewards,
        offsets=data.offsets,
        stationary=stationary,
    )


def _nodes(
    policy: Policy, data: LoggedDataset, finals: IntArray | None, inputs: Basis, n_samples: int, random_state: int
) -> tuple[FloatArray, FloatArray]:
    """Return inputs of all actions or nodes, and their weights, in every row or in the final states of some episodes."""
    rows = data.rows() if finals is None else data.final_rows(finals)
    if data.action_labels is not None:
        return inputs.every_action(rows.states), probabilities(policy, rows, data.action_labels)
    if finals is None:
        nodes, weights = row_nodes(policy, data, n_samples, random_state)
    else:
        nodes, weights = final_nodes(policy, data, finals, n_samples, random_state)
    x = np.stack([inputs.logged(rows.states, actions) for actions in nodes], axis=1)
    return x, np.broadcast_to(weights, x.shape[:2])


@dataclass(frozen=True)
class FittedQModel:
    """Regressors of Q, one per step if time-indexed, with how the fit ended.

    Parameters
    ----------
    inputs : Basis
    stationary : bool
    n_samples, random_state : int
    regressors : list
        None for a step that no row takes.
    status : {"converged", "stopped", "diverged"}
    iterations : int
    residuals : ndarray of shape (n,)
        Targets minus predictions on the rows of the fit.
    """

    inputs: Basis
    stationary: bool
    n_samples: int
    random_state: int
    regressors: list[Any]
    status: str
    iterations: int
    residuals: FloatArray

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        """Value the rows of a log."""
        design = make_design(data, policy, self.inputs, self.stationary, self.n_samples, self.random_state)
        if self.stationary:
            finals = np.flatnonzero(design.final_known)
            v_final = np.zeros(data.n_episodes)
            v_final[finals] = design.final_values(self.regressors[0], finals)
            return QPredictions(
                np.asarray(self.regressors[0].predict(design.x)),
                design.state_values(self.regressors[0], slice(None)),
                v_final,
            )
        return self._predict_by_step(design, data)

    def _predict_by_step(self, design: Design, data: LoggedDataset) -> QPredictions:
        q, v, v_final = np.zeros(data.n_transitions), np.zeros(data.n_transitions), np.zeros(data.n_episodes)
        for t, regressor in enumerate(self.regressors):
            rows = ragged.step_rows(data.offsets, t)
            if regressor is not None and len(rows):
                q[rows], v[rows] = regressor.predict(design.x[rows]), design.state_values(regressor, rows)
            chosen = np.flatnonzero(design.final_known & (data.lengths == t))
            v_final[chosen] = design.final_values(regressor, chosen)
        return QPredictions(q, v, v_final)


def start_value(model: FittedQModel, design: Design, weight: FloatArray) -> float:
    """Return the mean of E_pi Q over the first states."""
    return float(np.mean(weight * design.state_values(model.regressors[0], design.offsets[:-1])))


def in_key_order(data: LoggedDataset, weight: FloatArray) -> tuple[LoggedDataset, FloatArray]:
    """Sort episodes by their keys."""
    # Trees break ties between equal splits by rounding, which follows the order of the rows: one order for all logs of
    # the same episodes.
    order = np.argsort(data.episode_keys)
    return data.select(order), weight[order]
