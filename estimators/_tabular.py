"""The maximum-likelihood model of a log of few distinct states: codes of states, and counts. Called by `ModelBased`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ope import ragged
from ope.dataset import LoggedDataset, Rows
from ope.policy import Policy, continuing_ends, probabilities
from ope.validation import FloatArray, IntArray

NOTHING, UNKNOWN = -1, -2
SAME = 1e-9
# Tables of up to so many entries are multiplied densely: the overhead of a sparse product is larger than the product.
DENSE_ENTRIES = 100_000

Table: TypeAlias = FloatArray | sparse.csr_array | sparse.csc_array

Transform = Callable[[FloatArray], FloatArray]


# -------------------------------------------------------------------- codes of states


@dataclass(frozen=True, eq=False)
class StateCodes:
    """Numbers of distinct states, in an order that depends on nothing but the states.

    Parameters
    ----------
    keys : ndarray of void, shape (n_states,)
        Their bytes, sorted.
    transform : callable or None
        Applied to states first.
    """

    keys: npt.NDArray[np.void]
    transform: Transform | None

    @classmethod
    def fit(cls, data: LoggedDataset, transform: Transform | None) -> StateCodes:
        """Collect the states of a log, those in which it ended included."""
        parts = [np.unique(_as_bytes(rows, transform)) for block in data.blocks() for rows in _all_rows(block)]
        return cls(np.unique(np.concatenate(parts)), transform)

    def __len__(self) -> int:
        return len(self.keys)

    def codes(self, rows: Rows) -> IntArray:
        """Return the number of each state, `UNKNOWN` for one that is none of them."""
        found, back = np.unique(_as_bytes(rows, self.transform), return_inverse=True)
        if found.dtype != self.keys.dtype:  # another number of columns
            return np.full(len(rows), UNKNOWN)
        place = np.minimum(np.searchsorted(self.keys, found), len(self.keys) - 1)
        return np.where(self.keys[place] == found, place, UNKNOWN)[back.reshape(-1)]


def _as_bytes(rows: Rows, transform: Transform | None) -> npt.NDArray[np.void]:
    # What is available belongs to the state: a policy may depend on it.
    states = rows.states if transform is None else transform(rows.states)
    columns = states if rows.action_mask is None else np.hstack([states, rows.action_mask])
    table = np.ascontiguousarray(columns, dtype=np.float64) + 0.0  # -0.0 is 0.0
    return table.view(np.dtype((np.void, 8 * table.shape[1]))).reshape(len(table))


def _all_rows(data: LoggedDataset) -> list[Rows]:
    final = np.flatnonzero(known_finals(data))
    return [data.rows(), data.final_rows(final)] if len(final) else [data.rows()]


def known_finals(data: LoggedDataset) -> npt.NDArray[np.bool_]:
    """Return where the state after the last step is known, with the actions that are available in it, (n_episodes,)."""
    known = data.final_known()
    if data.action_mask is not None:
        known = known & (data.final_action_mask is not None)
    return known


@dataclass(frozen=True, eq=False)
class CodedLog:
    """A log as columns of numbers.

    Parameters
    ----------
    state, following : ndarray of shape (n,)
        Code of the state, and of that which followed: `NOTHING` where the process ended, `UNKNOWN` where nobody knows.
    action, step : ndarray of shape (n,)
    rewards : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
    n_states, n_actions : int
    """

    state: IntArray
    following: IntArray
    action: IntArray
    step: IntArray
    rewards: FloatArray
    offsets: IntArray
    n_states: int
    n_actions: int

    @classmethod
    def build(cls, data: LoggedDataset, codes: StateCodes, horizon_continues: bool) -> CodedLog:
        """Read a log block by block."""
        state = np.concatenate([codes.codes(block.rows()) for block in data.blocks()])
        last = np.full(data.n_episodes, UNKNOWN)
        known = np.flatnonzero(known_finals(data))
        if len(known):
            last[known] = codes.codes(data.final_rows(known))
        last[~continuing_ends(data, horizon_continues)] = NOTHING
        following = ragged.shift_to_next(state, data.offsets, last)
        step = ragged.step_index(data.offsets)
        return cls(
            state, following, data.actions, step, data.rewards, data.offsets, len(codes), data.n_actions
        )  # fmt: skip


def policy_table(data: LoggedDataset, policy: Policy, coded: CodedLog, weight: FloatArray) -> tuple[FloatArray, float]:
    """Return the candidate's mean probabilities in each state, (n_states, n_actions), and the share of rows that differ from them."""
    assert data.action_labels is not None
    probs = np.concatenate([probabilities(policy, block.rows(), data.action_labels) for block in data.blocks()])
    row_weight = np.repeat(weight, np.diff(coded.offsets))
    mass = np.bincount(coded.state, row_weight, coded.n_states)
    table = np.zeros((coded.n_states, coded.n_actions))
    for action in range(coded.n_actions):
        table[:, action] = np.bincount(coded.state, row_weight * probs[:, action], coded.n_states)
    np.divide(table, mass[:, None], out=table, where=mass[:, None] > 0)
    differs = (np.abs(probs - table[coded.state]) > SAME).any(axis=1)
    return table, float(row_weight @ differs / row_weight.sum())


# -------------------------------------------------------------------- counts


@dataclass(frozen=True, eq=False)
class CountedModel:
    """Counted transitions of the K cells that were logged.

    Parameters
    ----------
    state, action : ndarray of shape (K,)
    slots : ndarray of shape (n_slots + 1,)
        Where the cells of each step begin; a single slot where all steps are counted together.
    n_rewards, n_onward : ndarray of shape (K,)
        Weight of the rows whose reward counts, and of those of which it is known how they went on.
    rewards : ndarray of shape (K,)
    onward : csr_array of shape (K, n_states)
        Rows that sum to less than 1 end with the rest.
    start : ndarray of shape (n_states,)
        Shares of the first states.
    row_cell, row_entry : ndarray of shape (n,)
        Cell of each row (-1: of no weight), and the entry of `onward` that it counts in (-1: none).
    row_used, row_onward : ndarray of shape (n,)
        Whether its reward counts, and how it went on.
    """

    state: IntArray
    action: IntArray
    slots: IntArray
    n_rewards: FloatArray
    n_onward: FloatArray
    rewards: FloatArray
    onward: sparse.csr_array
    start: FloatArray
    row_cell: IntArray
    row_entry: IntArray
    row_used: npt.NDArray[np.bool_]
    row_onward: npt.NDArray[np.bool_]

    @property
    def n_states(self) -> int:
        """Number of states."""
        return len(self.start)

    def slot(self, t: int) -> int:
        """Return the slot that step t is read from."""
        return t if len(self.slots) > 2 else 0

    def cells(self, t: int) -> slice:
        """Return the cells of step t."""
        slot = self.slot(t)
        return slice(int(self.slots[slot]), int(self.slots[slot + 1]))

    @cached_property
    def _parts(self) -> list[tuple[Table, Table]]:
        # Cutting rows out is slow, and is needed again and again.
        small = self.onward.shape[0] * self.n_states <= DENSE_ENTRIES
        table = self.onward.toarray() if small else self.onward
        cut = [table] if len(self.slots) == 2 else [table[first:last] for first, last in pairwise(self.slots)]
        return [(part, part.T) for part in cut]

    def expected(self, t: int, values: FloatArray) -> FloatArray:
        """Return what values of states are expected after each cell of step t."""
        return np.asarray(self._parts[self.slot(t)][0] @ values)

    def arrivals(self, t: int, visits: FloatArray) -> FloatArray:
        """Return where visits of the cells of step t arrive, (n_states,)."""
        return np.asarray(self._parts[self.slot(t)][1] @ visits)


def count(coded: CodedLog, weight: FloatArray, n_slots: int, pooled: bool) -> CountedModel:
    """Count the transitions of a log.

    Parameters
    ----------
    coded : CodedLog
    weight : ndarray of shape (n_episodes,)
    n_slots : int
        The horizon where counts are kept by step, else 1.
    pooled : bool
        Whether a row that goes on to an unknown state is left out of the transitions alone, and not of the rewards too.
    """
    row_weight = np.repeat(weight, np.diff(coded.offsets))
    known = (coded.following != UNKNOWN) & (row_weight > 0)
    used = row_weight > 0 if pooled else known
    slot = coded.step if n_slots > 1 else np.zeros_like(coded.step)
    raw = (slot * coded.n_states + coded.state) * coded.n_actions + coded.action
    visited, inside = np.unique(raw[used], return_inverse=True)
    cell = np.full(len(raw), -1)
    cell[used] = inside.reshape(-1)
    n_rewards, n_onward = (_sum(cell, row_weight, rows, len(visited)) for rows in (used, known))
    onward, entry = _shares(cell, coded, row_weight, known, n_onward)
    start = np.bincount(coded.state[coded.offsets[:-1]], weight, coded.n_states)
    pair = visited % (coded.n_states * coded.n_actions)
    return CountedModel(
        state=pair // coded.n_actions,
        action=pair % coded.n_actions,
        slots=np.searchsorted(visited // (coded.n_states * coded.n_actions), np.arange(n_slots + 1)),
        n_rewards=n_rewards,
        n_onward=n_onward,
        rewards=_sum(cell, row_weight * coded.rewards, used, len(visited)) / n_rewards,
        onward=onward,
        start=start / start.sum(),
        row_cell=cell,
        row_entry=entry,
        row_used=used,
        row_onward=known,
    )


def _sum(cell: IntArray, values: FloatArray, rows: npt.NDArray[np.bool_], n_cells: int) -> FloatArray:
    return np.asarray(np.bincount(cell[rows], values[rows], n_cells), dtype=np.float64)


def _shares(
    cell: IntArray, coded: CodedLog, row_weight: FloatArray, known: npt.NDArray[np.bool_], total: FloatArray
) -> tuple[sparse.csr_array, IntArray]:
    """Return the shares of the states that followed, and which entry each row counts in."""
    going = known & (coded.following >= 0)
    pairs, inside = np.unique(cell[going] * coded.n_states + coded.following[going], return_inverse=True)
    entry = np.full(len(cell), -1)
    entry[going] = inside.reshape(-1)
    of, to = pairs // coded.n_states, pairs % coded.n_states
    share = _sum(entry, row_weight, going, len(pairs)) / total[of]
    bounds = np.searchsorted(of, np.arange(len(total) + 1))
    return sparse.csr_array((share, to, bounds), shape=(len(total), coded.n_states)), entry
