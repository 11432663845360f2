"""Q functions and ratios of visits that are given as tables instead of learned, plain loops over them, and poor features."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from estimator_oracles import Case, end_goes_on, final_codes, paths

from ope import LoggedDataset, Policy
from ope.estimators._q import QEstimator, QModel, QPredictions
from ope.estimators._ratio import RatioEstimator, RatioModel
from ope.problems import TabularProblem
from ope.validation import FloatArray, IntArray


def position(states: FloatArray) -> FloatArray:
    """Return a 1 and the number of a one-hot state: features that see too little."""
    return np.column_stack([np.ones(len(states)), states.argmax(axis=1)])


class _TableQ(NamedTuple):
    tables: FloatArray
    stationary: bool

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        pi = policy.predict_proba(np.eye(data.states.shape[1]))
        table, s = rows_of_tables(self.tables, data)
        last = self.tables[np.minimum(data.lengths, len(self.tables) - 1)]
        z = np.zeros(data.n_episodes, dtype=np.int64) if data.final_states is None else np.array(final_codes(data))
        goes_on = [end_goes_on(data, i, self.stationary) is True for i in range(data.n_episodes)]
        v_final = np.einsum("na,na->n", pi[z], last[np.arange(len(z)), z])
        return QPredictions(
            table[np.arange(len(s)), data.actions], np.einsum("na,na->n", pi[s], table), np.where(goes_on, v_final, 0.0)
        )


def rows_of_tables(tables: FloatArray, data: LoggedDataset) -> tuple[FloatArray, IntArray]:
    """Return the numbers of all actions in the state of every row, at its step, and the code of the state."""
    step = np.concatenate([np.arange(length) for length in data.lengths])
    s = data.states.argmax(axis=1)
    return tables[np.minimum(step, len(tables) - 1), s], s


class GivenQ(QEstimator):
    """A Q method that learns nothing: `tables` of shape (T, S, A), the last of which serves all later steps."""

    def __init__(self, *, gamma: float | None = None, tables: Any = None, stationary: bool = False) -> None:
        self.gamma = gamma
        self.tables = tables
        self.stationary = stationary

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> QModel:
        assert policy.capabilities
        assert len(episode_weight) == data.n_episodes
        return _TableQ(np.asarray(self.tables), self.stationary or data.horizon is None)


class _TableRatio(NamedTuple):
    tables: FloatArray

    def predict(self, policy: Policy, data: LoggedDataset) -> FloatArray:
        assert policy.capabilities
        table, s = rows_of_tables(self.tables, data)
        return np.asarray(table[np.arange(len(s)), data.actions])


class GivenRatio(RatioEstimator):
    """A marginal method that learns nothing: `tables` of shape (T, S, A), the last of which serves all later steps."""

    def __init__(self, *, gamma: float | None = None, tables: Any = None, stationary: bool = False) -> None:
        self.gamma = gamma
        self.tables = tables
        self.stationary = stationary

    def fit_ratio(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> RatioModel:
        assert policy.capabilities
        assert len(episode_weight) == data.n_episodes
        return _TableRatio(np.asarray(self.tables))


def at_step(tables: FloatArray, t: int) -> FloatArray:
    """Return the table of a step."""
    table: FloatArray = tables[min(t, len(tables) - 1)]
    return table


class Step(NamedTuple):
    """One step of an episode: W before and after the action, reward, Q, V, and V of the state after it (0 where nothing follows)."""

    w_before: float
    w: float
    r: float
    q: float
    v: float
    v_next: float


def walk(case: Case, tables: FloatArray, stationary: bool = False) -> list[list[Step]]:
    """Return every step of every episode, with Q read off tables."""
    result = []
    for i, episode in enumerate(paths(case.log)):
        w, steps = 1.0, []
        for t, (s, a, r) in enumerate(episode):
            before, w = w, w * case.pi[s, a] / case.b[s, a]
            z = episode[t + 1][0] if t + 1 < len(episode) else final_codes(case.log)[i]
            follows = t + 1 < len(episode) or end_goes_on(case.log, i, stationary)
            table, later = at_step(tables, t), at_step(tables, t + 1)
            v_next = float(case.pi[z] @ later[z]) if follows else 0.0
            steps.append(Step(before, w, r, float(table[s, a]), float(case.pi[s] @ table[s]), v_next))
        result.append(steps)
    return result


def random_tables(case: Case, seed: int = 0, n: int = 12) -> FloatArray:
    """Draw Q functions that have nothing to do with the log."""
    return np.random.default_rng(seed).normal(size=(n, *case.pi.shape))


def observed(problem: TabularProblem, values: FloatArray) -> FloatArray:
    """Return a table per step over the observed codes, from values of true states, shape (T, codes, ...)."""
    values = values if problem.horizon is not None else values[None]
    first = [int(np.flatnonzero(problem.observation == code)[0]) for code in range(problem.observation.max() + 1)]
    return np.asarray(values[:, first])


def true_q(problem: TabularProblem, gamma: float) -> FloatArray:
    """Return Q of the target, a table for each step where there is a horizon; problems in which states are observed."""
    return observed(problem, problem.action_values(problem.target, gamma=gamma))


def true_ratio(problem: TabularProblem, gamma: float, n_steps: int, stationary: bool) -> FloatArray:
    """Return c(s, a) of logs of `n_steps` steps, by pushing both state distributions forward step by step."""
    process, codes = problem.process, problem.observation
    b, pi = problem.behavior[codes], problem.target[codes]
    d_b, d_pi, seen, wanted = process.initial, process.initial, [], []
    for t in range(n_steps if not stationary else 2000):
        P, _ = process.at(t)
        live = (~process.terminal)[:, None]
        seen.append(d_b[:, None] * b * live)
        wanted.append(gamma**t * d_pi[:, None] * pi * live)
        d_b, d_pi = (np.einsum("sa,saz->z", d[:, None] * p * live, P) for d, p in ((d_b, b), (d_pi, pi)))
    if stationary:
        seen, wanted = [np.sum(seen[:n_steps], axis=0)], [np.sum(wanted, axis=0)]
    ratio = [np.divide(x, y, out=np.zeros_like(x), where=y > 0) for x, y in zip(wanted, seen, strict=True)]
    first = [int(np.flatnonzero(codes == code)[0]) for code in range(codes.max() + 1)]
    return np.asarray(ratio)[:, first]
