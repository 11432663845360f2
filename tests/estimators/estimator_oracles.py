"""Random logs, exact logs and plain loops that the tests of the estimators share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest

from ope import End, Estimate, LoggedDataset, ragged
from ope.policies import TabularPolicy
from ope.problems import TabularProblem
from ope.validation import FloatArray

Path = list[tuple[int, int, float]]

ENDS = [
    ("terminal",),
    ("truncated",),
    ("terminal", "truncated"),
    ("horizon",),
    ("terminal", "horizon"),
    ("terminal", "horizon", "truncated"),
]
stationary_or_not = pytest.mark.parametrize("stationary", [False, True], ids=["by_time", "stationary"])
every_end = pytest.mark.parametrize("ends", ENDS, ids="-".join)


class Case(NamedTuple):
    """A log of one-hot states, with the tables of the policy that logged it and of the candidate."""

    log: LoggedDataset
    b: FloatArray
    pi: FloatArray

    @property
    def policy(self) -> TabularPolicy:
        return TabularPolicy(self.pi)


def sampled(problem: TabularProblem, n: int, seed: int = 0) -> Case:
    """Sample a log of a problem under its own behaviour, for its own target."""
    return Case(problem.sample(n, random_state=seed), problem.behavior, problem.target)


def repeated_log(log: LoggedDataset, episodes: Any) -> LoggedDataset:
    """Return chosen episodes, any of them several times: what `select` refuses, and weights of episodes stand for."""
    chosen = np.asarray(episodes)
    return log._part(ragged.rows_of(chosen, log.offsets), chosen, ragged.offsets_of(log.lengths[chosen]))


class WeightedLog(NamedTuple):
    """A log in which an episode counts as often as its weight says."""

    log: LoggedDataset
    weight: FloatArray


def one_hot_log(
    s: Any, a: Any, r: Any, lengths: Any, ends: Any, final: Any, b: FloatArray, horizon: int | None = None
) -> LoggedDataset:
    """Build a log of one-hot states with known propensities; `final` holds the codes of the final states."""
    eye = np.eye(len(b))
    codes = ends if isinstance(ends, str) else [int(End[str(kind).upper()]) for kind in ends]
    return LoggedDataset.from_arrays(
        eye[s], a, r, lengths=lengths, ends=codes, behavior_prob=b[s, a], action_labels=list(range(b.shape[1])),
        final_states=eye[final], horizon=horizon,
    )  # fmt: skip


def random_tables(g: np.random.Generator, n_states: int, n_actions: int, zeros: bool) -> tuple[FloatArray, FloatArray]:
    """Draw a behaviour table and a candidate; with `zeros` the candidate never takes one action in each state."""
    b = 0.5 * g.dirichlet(np.ones(n_actions), n_states) + 0.5 / n_actions
    pi = g.dirichlet(np.ones(n_actions), n_states)
    if zeros:
        pi[np.arange(n_states), g.integers(n_actions, size=n_states)] = 0.0
    return b, pi / pi.sum(axis=1, keepdims=True)


def random_case(
    seed: int,
    n: int = 30,
    n_states: int = 3,
    n_actions: int = 3,
    longest: int = 6,
    ends: Sequence[str] = ("terminal",),
    zeros: bool = False,
    horizon: int | None = None,
) -> Case:
    """Draw episodes of random lengths in which states, actions and rewards have nothing to do with each other."""
    g = np.random.default_rng(seed)
    b, pi = random_tables(g, n_states, n_actions, zeros)
    kinds = g.choice(list(ends), size=n)
    lengths = np.where(kinds == "horizon", longest, g.integers(1, longest + 1, size=n))
    n_rows = int(lengths.sum())
    s, r, final = g.integers(n_states, size=n_rows), g.normal(size=n_rows), g.integers(n_states, size=n)
    a = np.array([g.choice(n_actions, p=b[code]) for code in s])
    return Case(one_hot_log(s, a, r, lengths, kinds, final, b, horizon), b, pi)


def paths(log: LoggedDataset) -> list[Path]:
    """Return (state, action, reward) of every step of every episode; states are one-hot, labels are codes."""
    codes = log.states.argmax(axis=1)
    bounds = zip(log.offsets[:-1], log.offsets[1:], strict=True)
    return [[(int(codes[k]), int(log.actions[k]), float(log.rewards[k])) for k in range(i, j)] for i, j in bounds]


def final_codes(log: LoggedDataset) -> list[int]:
    """Return the code of the state after the last step of every episode."""
    assert log.final_states is not None
    return [int(code) for code in log.final_states.argmax(axis=1)]


def jackknife(value: Callable[[FloatArray], float], n: int, step: float = 1e-4) -> FloatArray:
    """Return n dV / dw_i at equal weights of 1, by central differences."""
    psi = np.empty(n)
    for i in range(n):
        up, down = np.ones(n), np.ones(n)
        up[i] += step
        down[i] -= step
        psi[i] = n * (value(up) - value(down)) / (2 * step)
    return psi


def true_paths(problem: TabularProblem, b: FloatArray, n_steps: int) -> Iterator[tuple[float, list[int], list[int]]]:
    """Yield the probability, the true states (one more than steps) and the actions of every path."""
    stack: list[tuple[float, list[int], list[int]]] = [
        (float(p), [s], []) for s, p in enumerate(problem.process.initial) if p > 0
    ]
    while stack:
        p, states, actions = stack.pop()
        t, s = len(actions), states[-1]
        if t == n_steps or problem.process.terminal[s]:
            yield p, states, actions
            continue
        P, _ = problem.process.at(t)
        for a, z in product(range(problem.n_actions), range(len(P))):
            chance = b[problem.observation[s], a] * P[s, a, z]
            if chance > 0:
                stack.append((p * float(chance), [*states, z], [*actions, a]))


def flow_paths(problem: TabularProblem, b: FloatArray, n_steps: int) -> Iterator[tuple[float, list[int], list[int]]]:
    """Yield weighted paths with the exact law of (s_t, a_t, s_t+1) at every step: few paths, where all are too many.

    Methods that look at single transitions cannot tell them from the whole distribution. Without terminal states.
    """
    flow, d = [], problem.process.initial
    for t in range(n_steps):
        P, _ = problem.process.at(t)
        flow.append(d[:, None, None] * b[problem.observation][:, :, None] * P)
        d = flow[-1].sum(axis=(0, 1))
    while flow[0].max() > 1e-15:
        states, actions, mass = [int(flow[0].sum(axis=(1, 2)).argmax())], [], np.inf
        for t in range(n_steps):
            a, z = np.unravel_index(flow[t][states[-1]].argmax(), flow[t].shape[1:])
            mass = min(mass, float(flow[t][states[-1], a, z]))
            actions.append(int(a))
            states.append(int(z))
        for t in range(n_steps):
            flow[t][states[t], actions[t], states[t + 1]] -= mass
        if mass <= 0:
            return
        yield mass, states, actions


def exact_log(
    problem: TabularProblem, n_steps: int, ends: str, routes: Callable[..., Any] = true_paths, b: Any = None
) -> WeightedLog:
    """Build the log of all paths of a problem without noise, weighted by their probabilities."""
    table = problem.behavior if b is None else b
    s, a, r, lengths, kinds, final, weight = [], [], [], [], [], [], []
    for p, states, actions in routes(problem, table, n_steps):
        for t, action in enumerate(actions):
            s.append(int(problem.observation[states[t]]))
            a.append(action)
            r.append(float(problem.process.at(t)[1][states[t], action, states[t + 1]]))
        dead = bool(problem.process.terminal[states[-1]])
        lengths.append(len(actions))
        kinds.append("terminal" if dead else ends)
        final.append(0 if dead else int(problem.observation[states[-1]]))
        weight.append(p)
    horizon = n_steps if ends == "horizon" else None
    return WeightedLog(one_hot_log(s, a, r, lengths, kinds, final, table, horizon), np.array(weight))


def influence_of(estimate: Estimate) -> FloatArray:
    """Return the influence vector of an estimate that must have one."""
    assert estimate.influence is not None
    return estimate.influence


class TabularModel(NamedTuple):
    """Q_t(s, a) of the maximum-likelihood model of a log; one table where stationary, else one for each step."""

    q: list[FloatArray]
    visited: list[FloatArray]
    value: float


def maximum_likelihood(
    case: Case, gamma: float, stationary: bool = False, weight: FloatArray | None = None
) -> TabularModel:
    """Count transitions, divide, and solve the Bellman equations of the candidate in the estimated process.

    Pairs that were never logged get the value 0. The last row of a horizon end that goes on to an unknown state is left
    out. Final states of terminal episodes are not read.
    """
    log, pi = case.log, case.pi
    S, A = pi.shape
    H = 1 if stationary or log.horizon is None else log.horizon
    count, reward, onward = np.zeros((H, S, A)), np.zeros((H, S, A)), np.zeros((H, S, A, S))
    starts = np.zeros(S)
    for i, episode in enumerate(paths(log)):
        w = 1.0 if weight is None else float(weight[i])
        starts[episode[0][0]] += w
        for t, (s, a, r) in enumerate(episode):
            k, last = (t if H > 1 else 0), t == len(episode) - 1
            follows = end_goes_on(log, i, stationary) if last else True
            if follows is None:
                continue
            count[k, s, a] += w
            reward[k, s, a] += w * r
            if follows:
                onward[k, s, a, final_codes(log)[i] if last else episode[t + 1][0]] += w
    visited = (count > 0).astype(float)
    R, P = reward / np.maximum(count, 1e-300), onward / np.maximum(count, 1e-300)[..., None]
    endless = stationary or log.horizon is None
    tables = [solve_stationary(R[0], P[0], pi, gamma)] if endless else solve_backwards(R, P, pi, gamma)
    start = starts / starts.sum()
    return TabularModel(tables, list(visited), float(start @ (pi * tables[0]).sum(axis=1)))


def end_goes_on(log: LoggedDataset, i: int, stationary: bool) -> bool | None:
    """Return whether the process goes on after episode i; None if it does, and nobody knows where to."""
    end = End(int(log.ends[i]))
    if end is End.TERMINAL or (end is End.HORIZON and not stationary):
        return False
    known = log.final_states is not None and not np.isnan(log.final_states[i]).any()
    return True if known else None


def solve_stationary(R: FloatArray, P: FloatArray, pi: FloatArray, gamma: float) -> FloatArray:
    """Solve Q = R + gamma P (pi . Q) as one linear system over pairs."""
    S, A = R.shape
    system = np.eye(S * A)
    for s, a, z, b in product(range(S), range(A), range(S), range(A)):
        system[s * A + a, z * A + b] -= gamma * P[s, a, z] * pi[z, b]
    solution: FloatArray = np.asarray(np.linalg.solve(system, R.ravel()), dtype=np.float64)
    return solution.reshape(S, A)


def solve_backwards(R: FloatArray, P: FloatArray, pi: FloatArray, gamma: float) -> list[FloatArray]:
    """Return Q_t = R_t + gamma P_t V_t+1, with nothing after the last step."""
    v: FloatArray = np.zeros(pi.shape[0])
    tables: list[FloatArray] = []
    for t in reversed(range(len(R))):
        tables.append(R[t] + gamma * P[t] @ v)
        v = (pi * tables[-1]).sum(axis=1)
    return tables[::-1]
