"""Continuous actions of a candidate on a log: its action, its quadrature nodes, or draws that belong to an episode.

Draws come from a generator seeded by the episode's key, so that they do not depend on the order of episodes, on the blocks
the log is read in, or on which other episodes are there: folds and shards agree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ope.dataset import LoggedDataset, Rows
from ope.policy import Policy, action_nodes
from ope.validation import FloatArray, IntArray

ROWS_STREAM, FINAL_STREAM = 0, 1


def row_nodes(policy: Policy, data: LoggedDataset, n_samples: int, random_state: int) -> tuple[FloatArray, FloatArray]:
    """Return actions (m, n, k) and weights (m,) that stand for the candidate in every row of a log."""
    rows = data.rows()
    if not _is_drawn(policy, rows):
        return action_nodes(policy, rows, n_samples, random_state)
    return _drawn(policy, rows, data.offsets, data.episode_keys, n_samples, (random_state, ROWS_STREAM))


def final_nodes(
    policy: Policy, data: LoggedDataset, episodes: IntArray, n_samples: int, random_state: int
) -> tuple[FloatArray, FloatArray]:
    """Return actions (m, n, k) and weights (m,) that stand for the candidate in the final states of some episodes."""
    rows = data.final_rows(episodes)
    if not _is_drawn(policy, rows):
        return action_nodes(policy, rows, n_samples, random_state)
    offsets = np.arange(len(episodes) + 1)
    return _drawn(policy, rows, offsets, data.episode_keys[episodes], n_samples, (random_state, FINAL_STREAM))


def _is_drawn(policy: Policy, rows: Rows) -> bool:
    return "deterministic" not in policy.capabilities and policy.quadrature_rows(rows) is None


def _drawn(
    policy: Policy, rows: Rows, offsets: IntArray, keys: npt.NDArray[np.uint64], n_samples: int, seed: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    # One call an episode: all its rows, n_samples times over.
    parts = []
    for first, last, key in zip(offsets[:-1], offsets[1:], keys, strict=True):
        states = np.tile(rows.states[first:last], (n_samples, 1))
        drawn = np.asarray(policy.sample(states, np.random.default_rng([*seed, int(key)])), dtype=np.float64)
        parts.append(drawn.reshape(n_samples, last - first, -1))
    return np.concatenate(parts, axis=1), np.full(n_samples, 1.0 / n_samples)
