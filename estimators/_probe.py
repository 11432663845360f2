"""A fitted Q function at every action that a candidate may take, whatever kind of model it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._draws import final_nodes, row_nodes
from ope.estimators._q import QModel, QPredictions
from ope.policy import Policy, continuing_ends, probabilities, used_rows
from ope.validation import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class QTable:
    """Predictions of a Q model on a log, action by action.

    Parameters
    ----------
    q : ndarray of shape (n,)
        Of the logged actions.
    nodes, weights : ndarray of shape (n, m)
        Of all actions, or nodes of a continuous candidate, and the candidate's probability of each.
    final_nodes, final_weights : ndarray of shape (n_episodes, m)
        The same at the state after the last step; weights of 0 where nothing follows or it is unknown.
    used : ndarray of shape (n,)
        False where the process goes on to an unknown state.
    """

    q: FloatArray
    nodes: FloatArray
    weights: FloatArray
    final_nodes: FloatArray
    final_weights: FloatArray
    used: BoolArray

    @property
    def v(self) -> FloatArray:
        """Vhat(s_t), shape (n,)."""
        return np.asarray(np.einsum("nm,nm->n", self.weights, self.nodes))

    @property
    def predictions(self) -> QPredictions:
        """What the model says without being asked for every action."""
        v_final = np.asarray(np.einsum("nm,nm->n", self.final_weights, self.final_nodes))
        return QPredictions(self.q, self.v, v_final)


class _Anyone(Policy):
    """A candidate for models that ask for one only to compute what is not read."""

    def __init__(self, n_actions: int, discrete: bool) -> None:
        self.n_actions = n_actions
        self.discrete = discrete

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"all_probs"} if self.discrete else {"deterministic"})

    def predict(self, states: npt.ArrayLike) -> npt.NDArray[Any]:
        return np.zeros((len(np.asarray(states)), self.n_actions))

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        return np.full((len(np.asarray(states)), self.n_actions), 1.0 / self.n_actions)


@dataclass(frozen=True)
class _Extended:
    """A log with one more row for every known state after a last step."""

    log: LoggedDataset
    rows: IntArray
    final_rows: IntArray

    @classmethod
    def build(cls, data: LoggedDataset, known: IntArray) -> _Extended:
        extra = np.zeros(data.n_episodes, dtype=np.int64)
        extra[known] = 1
        offsets = ragged.offsets_of(data.lengths + extra)
        rows = np.arange(data.n_transitions) + np.repeat(offsets[:-1] - data.offsets[:-1], data.lengths)
        final_rows = offsets[1:][known] - 1
        states = np.empty((int(offsets[-1]), data.states.shape[1]))
        states[rows] = data.states
        if len(known):
            states[final_rows] = data.final_rows(known).states
        discrete = data.action_labels is not None
        actions = np.zeros(len(states), np.int64) if discrete else np.zeros((len(states), data.n_actions))
        log = LoggedDataset.from_arrays(
            states,
            actions if data.action_labels is None else data.action_labels[actions],
            np.zeros(len(states)),
            lengths=data.lengths + extra,
            ends="terminal",
            action_labels=data.action_labels,
            continuous=not discrete,
            feature_names=data.feature_names,
        )
        return cls(log, rows, final_rows)

    def predict(self, model: QModel, actions: npt.NDArray[Any]) -> FloatArray:
        """Return Qhat of one action a row."""
        anyone = _Anyone(self.log.n_actions, self.log.discrete)
        return model.predict(anyone, self.log.replace(actions=actions)).q


def probe(
    model: QModel, policy: Policy, data: LoggedDataset, stationary: bool, n_samples: int, random_state: int
) -> QTable:
    """Ask a Q model for all actions of a candidate, at all states of a log."""
    known, used = np.flatnonzero(continuing_ends(data, stationary) & data.final_known()), used_rows(data, stationary)
    extended = _Extended.build(data, known)
    if data.action_labels is not None:
        return _probe_discrete(model, policy, data, extended, known, used)
    return _probe_continuous(model, policy, data, extended, known, used, n_samples, random_state)


def _probe_discrete(
    model: QModel, policy: Policy, data: LoggedDataset, extended: _Extended, known: IntArray, used: BoolArray
) -> QTable:
    assert data.action_labels is not None
    n = extended.log.n_transitions
    table = np.column_stack([extended.predict(model, np.full(n, code)) for code in range(data.n_actions)])
    after = probabilities(policy, data.final_rows(known), data.action_labels) if len(known) else None
    nodes = table[extended.rows]
    return QTable(
        nodes[np.arange(data.n_transitions), data.actions],
        nodes,
        probabilities(policy, data.rows(), data.action_labels),
        _at(known, table[extended.final_rows], data.n_episodes),
        _at(known, after, data.n_episodes, data.n_actions),
        used,
    )


def _probe_continuous(
    model: QModel,
    policy: Policy,
    data: LoggedDataset,
    extended: _Extended,
    known: IntArray,
    used: BoolArray,
    n_samples: int,
    random_state: int,
) -> QTable:
    now, weights = row_nodes(policy, data, n_samples, random_state)
    after = final_nodes(policy, data, known, n_samples, random_state)[0] if len(known) else None
    columns = []
    for j, chosen in enumerate([data.actions, *now]):
        actions = np.zeros((extended.log.n_transitions, data.n_actions))
        actions[extended.rows] = chosen
        if after is not None and j:
            actions[extended.final_rows] = after[j - 1]
        columns.append(extended.predict(model, actions))
    table, m = np.column_stack(columns), len(now)
    return QTable(
        table[extended.rows, 0],
        table[extended.rows, 1:],
        np.tile(weights, (data.n_transitions, 1)),
        _at(known, table[extended.final_rows, 1:], data.n_episodes),
        _at(known, np.tile(weights, (len(known), 1)), data.n_episodes, m),
        used,
    )


def _at(episodes: IntArray, values: FloatArray | None, n_episodes: int, m: int = 0) -> FloatArray:
    """Return the values of some episodes, shape (n_episodes, m), 0 for the others."""
    out = np.zeros((n_episodes, m if values is None else values.shape[1]))
    if values is not None:
        out[episodes] = values
    return out
