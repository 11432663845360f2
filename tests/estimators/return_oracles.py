"""Plain-loop oracles of return distributions, and exact ones by enumeration."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from estimator_oracles import Case, paths

from ope.problems import TabularProblem
from ope.validation import FloatArray

Law = tuple[FloatArray, FloatArray]


def exact_law(problem: TabularProblem, table: FloatArray, gamma: float) -> Law:
    """Return every return an episode can have and its probability, by enumerating (state, return) forward in time."""
    process, codes = problem.process, problem.observation
    assert problem.horizon is not None
    alive: dict[tuple[int, float], float] = {(s, 0.0): float(p) for s, p in enumerate(process.initial) if p > 0}
    ended: dict[float, float] = defaultdict(float)
    for t in range(problem.horizon):
        following: dict[tuple[int, float], float] = defaultdict(float)
        for (s, g), p in alive.items():
            for a, pi in enumerate(table[codes[s]]):
                for s_next, q in enumerate(process.transitions[s, a]):
                    if pi * q > 0:
                        total = round(g + gamma**t * float(process.rewards[s, a, s_next]), 9)
                        following[s_next, total] += p * float(pi * q)
        alive = defaultdict(float)
        for (s, g), p in following.items():
            if process.terminal[s] or t == problem.horizon - 1:
                ended[g] += p
            else:
                alive[s, g] += p
    points = np.array(sorted(ended))
    return points, np.array([ended[g] for g in points])


def exact_cdf(law: Law, x: FloatArray) -> FloatArray:
    """Return F at x; rounding of logged returns is forgiven."""
    points, mass = law
    return np.append(0.0, np.cumsum(mass))[np.searchsorted(points, x + 1e-7, side="right")]


def exact_quantile(law: Law, p: float) -> float:
    """Return the smallest return that is not exceeded with probability p."""
    points, mass = law
    return float(points[np.searchsorted(np.cumsum(mass), p - 1e-12)])


def exact_cvar(law: Law, level: float, tail: str = "lower") -> float:
    """Return the mean of the worst (best) share by filling it return by return."""
    order = np.argsort(law[0])[:: 1 if tail == "lower" else -1]
    left, total = level, 0.0
    for g, p in zip(law[0][order], law[1][order], strict=True):
        part = min(left, p)
        total, left = total + part * g, left - part
    return total / level


def exact_variance(law: Law) -> float:
    """Return E G^2 - (E G)^2."""
    points, mass = law
    return float(mass @ points**2 - (mass @ points) ** 2)


def weights_and_returns(case: Case, gamma: float) -> tuple[FloatArray, FloatArray]:
    """Return final weights and returns of episodes by loops over their steps."""
    weights, returns = [], []
    for path in paths(case.log):
        w, total = 1.0, 0.0
        for t, (s, a, r) in enumerate(path):
            w *= case.pi[s, a] / case.b[s, a]
            total += gamma**t * r
        weights.append(w)
        returns.append(total)
    return np.array(weights), np.array(returns)
