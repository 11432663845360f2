"""The maximum-likelihood model of a log of few distinct states: counts, a candidate's value in it, and its influence. Called by `ModelBased`.

Notation: s states, c cells (a state and an action, of a step where counts are kept by step), N counts, R(c) mean reward, P(c, s')
shares of the states that followed, mu(c) the candidate's discounted visits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse
from scipy.sparse.csgraph import breadth_first_order
from scipy.sparse.linalg import splu

from ope import ragged
from ope.dataset import LoggedDataset, Rows
from ope.policy import Policy, continuing_ends, probabilities
from ope.validation import FloatArray, IntArray

NOTHING, UNKNOWN = -1, -2
# Larger systems are sparse: a state is followed by few others.
DENSE = 1500
LEAST_LEAK = 1e-12
SAME = 1e-9

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

    def cells(self, t: int) -> slice:
        """Return the cells that step t is read from."""
        slot = t if len(self.slots) > 2 else 0
        return slice(int(self.slots[slot]), int(self.slots[slot + 1]))


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


# -------------------------------------------------------------------- values and visits


@dataclass(frozen=True, eq=False)
class Stage:
    """A step of the candidate in the model: its cells, their discounted visits, their values, and the values that follow."""

    cells: slice
    visits: FloatArray
    q: FloatArray
    ahead: FloatArray


@dataclass(frozen=True, eq=False)
class TabularSolution:
    """A candidate in a counted model.

    Parameters
    ----------
    stages : list of Stage
        One a step, or a single one without a horizon.
    v_start : ndarray of shape (n_states,)
        Values of first states.
    value : float
    unsupported : float
        Share of the visits that go where nothing was counted, which counts as 0.
    condition : float
        Condition number of the Bellman equations in the maximum norm; 1 with a horizon.
    horizon : int or None
    """

    stages: list[Stage]
    v_start: FloatArray
    value: float
    unsupported: float
    condition: float
    horizon: int | None


def solve(model: CountedModel, pi: FloatArray, gamma: float, horizon: int | None) -> TabularSolution:
    """Solve the Bellman equations of a candidate, for its value from the first states.

    Parameters
    ----------
    model : CountedModel
    pi : ndarray of shape (n_states, n_actions)
    gamma : float
    horizon : int or None
    """
    chance = pi[model.state, model.action]
    if horizon is None:
        return _solve_endless(model, chance, gamma)
    load = np.zeros((horizon, model.n_states))
    load[0] = model.start
    stages = _forwards(model, chance, gamma, _backwards(model, chance, gamma, horizon), load)
    return _solution(model, chance, stages, gamma, 1.0, endless=False)


def _backwards(model: CountedModel, chance: FloatArray, gamma: float, horizon: int) -> list[tuple[FloatArray, ...]]:
    """Return q and the values ahead for every step."""
    ahead: FloatArray = np.zeros(model.n_states)
    found: list[tuple[FloatArray, ...]] = []
    for t in range(horizon - 1, -1, -1):
        own = model.cells(t)
        q = model.rewards[own] + gamma * (model.onward[own] @ ahead)
        found.append((q, ahead))
        ahead = _by_state(model, own, chance[own] * q)
    return found[::-1]


def _by_state(model: CountedModel, own: slice, values: FloatArray) -> FloatArray:
    return np.asarray(np.bincount(model.state[own], values, model.n_states), dtype=np.float64)


def _forwards(
    model: CountedModel, chance: FloatArray, gamma: float, values: list[tuple[FloatArray, ...]], load: FloatArray
) -> list[Stage]:
    """Return the steps, with visits of those who enter in the states of `load`, (horizon, n_states)."""
    state, stages = np.zeros(model.n_states), []
    for t, (q, ahead) in enumerate(values):
        own = model.cells(t)
        state = state + load[t]
        visits = state[model.state[own]] * chance[own]
        stages.append(Stage(own, visits, q, ahead))
        state = gamma * (model.onward[own].T @ visits)
    return stages


def _solve_endless(model: CountedModel, chance: FloatArray, gamma: float) -> TabularSolution:
    n_states, n_cells = model.n_states, len(chance)
    acting, moves = _moves(model, chance)
    if gamma == 1.0 and _never_ends(moves, model.start):
        nothing = np.full(n_states, np.nan)
        stage = Stage(slice(0, n_cells), np.full(n_cells, np.nan), np.full(n_cells, np.nan), nothing)
        return TabularSolution([stage], nothing, float("nan"), 0.0, float("inf"), None)
    solved, transposed = _solvers(moves, gamma)
    v = solved(acting @ model.rewards)
    visits = transposed(model.start)[model.state] * chance
    q = model.rewards + gamma * (model.onward @ v)
    # The inverse has no negative entry, so that its norm is its largest row sum: the longest discounted life of a state.
    condition = float((1.0 + gamma * moves.sum(axis=1).max(initial=0.0)) * solved(np.ones(n_states)).max())
    return _solution(model, chance, [Stage(slice(0, n_cells), visits, q, v)], gamma, condition, endless=True)


def entered(
    model: CountedModel, pi: FloatArray, gamma: float, found: TabularSolution, load: FloatArray
) -> TabularSolution:
    """Return a solution with the visits of those who enter in the states of `load`, (n_stages, n_states), a stage where they do."""
    chance = pi[model.state, model.action]
    if found.horizon is not None:
        values = [(stage.q, stage.ahead) for stage in found.stages]
        return replace(found, stages=_forwards(model, chance, gamma, values, load))
    _, transposed = _solvers(_moves(model, chance)[1], gamma)
    return replace(found, stages=[replace(found.stages[0], visits=transposed(load[0])[model.state] * chance)])


def _moves(model: CountedModel, chance: FloatArray) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Return the matrices of the candidate from states to cells, and from states to states."""
    shape = (model.n_states, len(chance))
    acting = sparse.csr_array((chance, (model.state, np.arange(len(chance)))), shape=shape)
    return acting, acting @ model.onward


def _never_ends(moves: sparse.csr_array, start: FloatArray) -> bool:
    """Return whether the candidate may be caught where nothing ever ends."""
    n = len(start)
    leaks = 1.0 - moves.sum(axis=1) > LEAST_LEAK
    edges = moves.tocoo()
    # One more node, from which searches begin: of all first states, and backwards of all states that may end.
    onward = _graph(edges.row, edges.col, np.flatnonzero(start > 0), n)
    backward = _graph(edges.col, edges.row, np.flatnonzero(leaks), n)
    reached = breadth_first_order(onward, n, return_predecessors=False)
    ending = breadth_first_order(backward, n, return_predecessors=False)
    return not bool(np.isin(reached, ending).all())


def _graph(of: IntArray, to: IntArray, first: IntArray, n: int) -> sparse.csr_matrix:
    rows, columns = np.concatenate([of, np.full(len(first), n)]), np.concatenate([to, first])
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(n + 1, n + 1))


def _solvers(moves: sparse.csr_array, gamma: float) -> tuple[Transform, Transform]:
    """Return how to solve (I - gamma M) x = b and its transpose."""
    n = moves.shape[0]
    if n <= DENSE:
        factors = linalg.lu_factor(np.eye(n) - gamma * moves.toarray())
        return (lambda b: linalg.lu_solve(factors, b)), (lambda b: linalg.lu_solve(factors, b, trans=1))
    sparse_factors = splu(sparse.csc_matrix(sparse.eye_array(n) - gamma * moves))
    return sparse_factors.solve, (lambda b: sparse_factors.solve(b, trans="T"))


def _solution(
    model: CountedModel, chance: FloatArray, stages: list[Stage], gamma: float, condition: float, *, endless: bool
) -> TabularSolution:
    first = stages[0]
    own = first.cells
    v_start = _by_state(model, own, chance[own] * first.q)
    lost = _lost_share(model, stages, gamma, endless)
    horizon = None if endless else len(stages)
    return TabularSolution(stages, v_start, float(model.start @ v_start), lost, condition, horizon)


def _lost_share(model: CountedModel, stages: list[Stage], gamma: float, endless: bool) -> float:
    """Return the share of discounted visits to pairs that were never counted, or that nobody knows how to go on from."""
    counted = sum(float(stage.visits.sum()) for stage in stages)
    arrived, stuck = 1.0, 0.0
    for t, stage in enumerate(stages):
        if endless or t + 1 < len(stages):
            arrived += gamma * float((model.onward[stage.cells].T @ stage.visits).sum())
            stuck += gamma * float(stage.visits[model.n_onward[stage.cells] == 0].sum())
    return max(0.0, arrived + stuck - counted) / (arrived + stuck)


# -------------------------------------------------------------------- influence


@dataclass(frozen=True, eq=False)
class RowTerms:
    """What each row adds to the influence of its episode, and the ratio of visits that it is weighted with, (n,)."""

    errors: FloatArray
    ratio: FloatArray


def row_terms(model: CountedModel, solution: TabularSolution, rewards: FloatArray, gamma: float, n: float) -> RowTerms:
    """Return the terms of the influence vector.

    Notes
    -----
    d V = sum_c mu(c) (dR(c) + gamma dP(c)' V), and a row moves R(c) by (r - R(c)) / N(c) and P(c)' V by (V(s') - P(c)' V) / N(c).
    Where steps are counted together, mu(c) V is a sum over the steps.
    """
    visits, expected = np.zeros(len(model.rewards)), np.zeros(len(model.rewards))
    reached = np.zeros(len(model.onward.data))
    for stage in solution.stages:
        own, bounds = stage.cells, model.onward.indptr
        visits[own] += stage.visits
        expected[own] += stage.visits * (model.onward[own] @ stage.ahead)
        entries = slice(int(bounds[own.start]), int(bounds[own.stop]))
        of = np.repeat(stage.visits, np.diff(bounds[own.start : own.stop + 1]))
        reached[entries] += of * stage.ahead[model.onward.indices[entries]]
    per_reward, per_onward = n / model.n_rewards, n / np.maximum(model.n_onward, np.finfo(float).tiny)
    ratio, errors = np.zeros(len(rewards)), np.zeros(len(rewards))
    used, going = model.row_used, model.row_onward
    c = model.row_cell[used]
    ratio[used] = (visits * per_reward)[c]
    errors[used] = ratio[used] * (rewards[used] - model.rewards[c])
    c, entry = model.row_cell[going], model.row_entry[going]
    after = np.where(entry >= 0, reached[entry] if len(reached) else 0.0, 0.0)
    errors[going] += gamma * per_onward[c] * (after - expected[c])
    return RowTerms(errors, ratio)


def influence(coded: CodedLog, solution: TabularSolution, terms: RowTerms, weight: FloatArray) -> FloatArray:
    """Return psi_i, shape (n_episodes,)."""
    first = solution.v_start[coded.state[coded.offsets[:-1]]] - solution.value
    return np.asarray(weight * (ragged.segment_sum(terms.errors, coded.offsets) + first))


def final_load(coded: CodedLog, horizon: int | None, mass: FloatArray) -> FloatArray:
    """Return who enters the state after the last step of each episode (the last state where nobody knows it), (n_stages, n_states)."""
    last = coded.offsets[1:] - 1
    following, unknown = coded.following[last], coded.following[last] == UNKNOWN
    state = np.where(unknown, coded.state[last], following)
    step = np.zeros(len(last), dtype=np.int64) if horizon is None else coded.step[last] + ~unknown
    inside = (state >= 0) & (step < (horizon or 1))
    load = np.zeros((horizon or 1, coded.n_states))
    np.add.at(load, (step[inside], state[inside]), mass[inside])
    return load


def plain_errors(model: CountedModel, coded: CodedLog, solution: TabularSolution, gamma: float) -> FloatArray:
    """Return r - R(c) + gamma (V(s') - P(c)' V) of every row whose two parts are known, else 0: what no past may predict."""
    ahead = np.array([stage.ahead for stage in solution.stages] if len(model.slots) > 2 else [solution.v_start])
    expected = np.concatenate([model.onward[model.cells(t)] @ v for t, v in enumerate(ahead)])
    rows = np.flatnonzero(model.row_onward)
    c, following = model.row_cell[rows], coded.following[rows]
    t = coded.step[rows] if len(ahead) > 1 else np.zeros(len(rows), dtype=np.int64)
    value = np.where(following >= 0, ahead[t, np.maximum(following, 0)], 0.0)
    reward, after = coded.rewards[rows] - model.rewards[c], gamma * (value - expected[c])
    size = np.abs(coded.rewards[rows]) + np.abs(model.rewards[c]) + gamma * (np.abs(value) + np.abs(expected[c]))
    errors = np.zeros(len(coded.rewards))
    errors[rows] = np.where(np.abs(reward + after) > 1e-12 * size, reward + after, 0.0)
    return errors


def centred(h: FloatArray, model: CountedModel, row_weight: FloatArray) -> FloatArray:
    """Return instruments (m, q) of the first m rows less their mean in each cell, 0 where the row is left out."""
    m = len(h)
    rows = np.flatnonzero(model.row_onward[:m])
    cell, weight = model.row_cell[rows], row_weight[rows]
    mass = np.bincount(cell, weight, len(model.rewards))
    out = np.zeros_like(h)
    for column in range(h.shape[1]):
        mean = np.bincount(cell, weight * h[rows, column], len(mass)) / np.where(mass > 0, mass, 1.0)
        out[rows, column] = h[rows, column] - mean[cell]
    return out
