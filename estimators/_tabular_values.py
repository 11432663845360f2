"""A candidate in counted transitions: its value, its visits, and the influence of every row. Called by `ModelBased`.

Notation: s states, c cells (a state and an action, of a step where counts are kept by step), N counts, R(c) mean reward, P(c, s')
shares of the states that followed, mu(c) the candidate's discounted visits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.csgraph import breadth_first_order
from scipy.sparse.linalg import splu

from ope import ragged
from ope.estimators._tabular import UNKNOWN, CodedLog, CountedModel, Transform
from ope.validation import FloatArray, IntArray

# Larger systems are sparse: a state is followed by few others.
DENSE = 1500
LEAST_LEAK = 1e-12
ROUNDING = 1e-12

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
        q = model.rewards[own] + gamma * model.expected(t, ahead)
        found.append((q, ahead))
        ahead = _by_state(model, own, chance[own] * q)
    return found[::-1]


def _by_state(model: CountedModel, own: slice, values: FloatArray) -> FloatArray:
    return np.asarray(np.bincount(model.state[own], values, model.n_states), dtype=np.float64)


def _forwards(
    model: CountedModel, chance: FloatArray, gamma: float, values: Sequence[tuple[FloatArray, ...]], load: FloatArray
) -> list[Stage]:
    """Return the steps, with visits of those who enter in the states of `load`, (horizon, n_states)."""
    state, stages = np.zeros(model.n_states), []
    for t, (q, ahead) in enumerate(values):
        own = model.cells(t)
        state = state + load[t]
        visits = state[model.state[own]] * chance[own]
        stages.append(Stage(own, visits, q, ahead))
        state = gamma * model.arrivals(t, visits)
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
            arrived += gamma * float(model.arrivals(t, stage.visits).sum())
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
    for t, stage in enumerate(solution.stages):
        own, bounds = stage.cells, model.onward.indptr
        visits[own] += stage.visits
        expected[own] += stage.visits * model.expected(t, stage.ahead)
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
    expected = np.concatenate([model.expected(t, v) for t, v in enumerate(ahead)])
    rows = np.flatnonzero(model.row_onward)
    c, following = model.row_cell[rows], coded.following[rows]
    t = coded.step[rows] if len(ahead) > 1 else np.zeros(len(rows), dtype=np.int64)
    value = np.where(following >= 0, ahead[t, np.maximum(following, 0)], 0.0)
    reward, after = coded.rewards[rows] - model.rewards[c], gamma * (value - expected[c])
    size = np.abs(coded.rewards[rows]) + np.abs(model.rewards[c]) + gamma * (np.abs(value) + np.abs(expected[c]))
    errors = np.zeros(len(coded.rewards))
    errors[rows] = np.where(np.abs(reward + after) > ROUNDING * size, reward + after, 0.0)
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
