"""Long episodes of nearly the same policy: Graph with 100 steps, b = .6 and pi = .55, where products of ratios lose.

    python benchmarks/long_horizon.py [--repetitions 200] [--large 100]

Every run is a line of ``benchmarks/results/long_horizon.json``, from which the study resumes; the table of
``docs/long_horizon.md`` is written from them. Relative MSE is E(V - J)^2 / J^2 at gamma = 1, where J = 5.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import ope.estimators
from ope.estimator import OffPolicyEstimator
from ope.estimators import LSTD, LSTDQ, DoublyRobust, MarginalizedIS, PerDecisionIS, StateMarginalIS, WeightedIS
from ope.files import replace_file
from ope.policies import TabularPolicy
from ope.problems import Graph, TabularProblem
from ope.problems.exact import finite_horizon_values
from ope.validation import FloatArray

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "long_horizon.json"
REPORT = ROOT.parent / "docs" / "long_horizon.md"
SMALL, LARGE = 1024, 8192
GAMMA, LEVEL = 1.0, 0.95
TARGETS = {SMALL: 6e-3, LARGE: 1e-3}
SAVE_EVERY = 10


def problem() -> Graph:
    """Return the problem."""
    return Graph(horizon=100, behavior=0.6, target=0.55)


def estimators() -> dict[str, OffPolicyEstimator]:
    """Return the methods by name: marginal, Q-based, doubly robust, and importance sampling for comparison."""
    methods: dict[str, OffPolicyEstimator] = {
        "MarginalizedIS": MarginalizedIS(gamma=GAMMA),
        "LSTDQ": LSTDQ(gamma=GAMMA),
        "StateMarginalIS": StateMarginalIS(gamma=GAMMA),
        "StateMarginalIS(self_normalized=False)": StateMarginalIS(gamma=GAMMA, self_normalized=False),
        "LSTD": LSTD(gamma=GAMMA),
        "DoublyRobust": DoublyRobust(gamma=GAMMA),
        "PerDecisionIS": PerDecisionIS(gamma=GAMMA),
        "WeightedIS": WeightedIS(gamma=GAMMA),
    }
    if hasattr(ope.estimators, "DoubleReinforcementLearning"):
        methods["DoubleReinforcementLearning"] = ope.estimators.DoubleReinforcementLearning(gamma=GAMMA)
    return methods


# -------------------------------------------------------------------- what is possible


def efficiency_bound(problem: TabularProblem, gamma: float) -> float:
    """Return the semiparametric variance bound of one episode in a Markov process whose dynamics may change with time.

    Notes
    -----
    sum_t gamma^2t E_b[(p_t / b_t)^2 Var(r + gamma V_{t+1}(s') | s, a)] + Var V_0(s_0), by exact recursion of the visits
    (Kallus, Uehara 2020).

    Examples
    --------
    >>> round(efficiency_bound(problem(), 1.0), 3)
    77.49
    """
    assert problem.horizon is not None
    b, pi, process = problem.behavior, problem.target, problem.process
    values = finite_horizon_values(process, pi, gamma, problem.horizon)
    logged, wanted = process.initial, process.initial
    start = process.initial @ (values[0] - process.initial @ values[0]) ** 2
    total = float(start)
    for t in range(problem.horizon):
        P, R = process.at(t)
        target = R + gamma * values[t + 1]
        mean = (P * target).sum(axis=2)
        variance = (P * target**2).sum(axis=2) - mean**2
        there = logged[:, None] * b
        squares = np.divide((wanted[:, None] * pi) ** 2, there, out=np.zeros_like(there), where=there > 0)
        total += gamma ** (2 * t) * float((squares * variance).sum())
        logged, wanted = (np.einsum("s,sa,saz->z", d, table, P) for d, table in ((logged, b), (wanted, pi)))
    return total


def homogeneous_bound(problem: Graph) -> float:
    """Return the variance bound of one episode if the two probabilities of landing odd were known to be all there is.

    Notes
    -----
    J = horizon (sum_a pi_a (2 q_a - 1)) at gamma = 1, and an episode holds (horizon - 1) b_a coins of probability q_a.

    Examples
    --------
    >>> round(homogeneous_bound(problem()), 3)
    76.547
    """
    assert problem.horizon is not None
    b, pi = problem.behavior[0], problem.target[0]
    q = problem.process.at(0)[0][0, :, 1]
    slopes = 2.0 * problem.horizon * pi
    return float(np.sum(slopes**2 * q * (1.0 - q) / ((problem.horizon - 1) * b)))


# -------------------------------------------------------------------- study


def run(n: int, repetition: int, missing: dict[str, OffPolicyEstimator]) -> list[dict[str, Any]]:
    """Return the results of the methods on one log."""
    graph = problem()
    log = graph.sample(n, random_state=np.random.default_rng([n, repetition]))
    policy, truth = TabularPolicy(graph.target), graph.value(graph.target, gamma=GAMMA)
    lines = []
    for name, estimator in missing.items():
        start = time.perf_counter()
        estimate = estimator.fit(log, policy).estimate()
        low, high = estimate.confidence_interval(LEVEL)
        lines.append(
            {
                "n": n,
                "repetition": repetition,
                "method": name,
                "error": estimate.value - truth,
                "std_error": estimate.std_error,
                "covered": bool(low <= truth <= high),
                "verdict": estimate.verdict.level.name,
                "seconds": round(time.perf_counter() - start, 3),
            }
        )
    return lines


def study(repetitions: dict[int, int]) -> list[dict[str, Any]]:
    """Run what is missing and keep it as it comes."""
    lines: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {(line["n"], line["repetition"], line["method"]) for line in lines}
    for n, count in repetitions.items():
        for repetition in range(count):
            missing = {name: e for name, e in estimators().items() if (n, repetition, name) not in done}
            lines += run(n, repetition, missing) if missing else []
            if missing and (repetition + 1) % SAVE_EVERY == 0:
                keep(lines)
    keep(lines)
    return lines


def keep(lines: list[dict[str, Any]]) -> None:
    """Write the results, one a line."""
    replace_file(RESULTS, ("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n").encode())


# -------------------------------------------------------------------- report


def row(name: str, n: int, lines: list[dict[str, Any]], truth: float) -> str:
    """Return a line of the table."""
    errors: FloatArray = np.array([line["error"] for line in lines])
    squares = (errors / truth) ** 2
    spread = squares.std(ddof=1) / np.sqrt(len(squares))
    ratio = np.mean([line["std_error"] for line in lines]) / errors.std(ddof=1)
    covered = np.mean([line["covered"] for line in lines])
    valid = np.mean([line["verdict"] == "VALID" for line in lines])
    seconds = np.median([line["seconds"] for line in lines])
    met = "yes" if squares.mean() < TARGETS[n] else "no"
    return (
        f"| `{name}` | {squares.mean():.5f} ± {spread:.5f} | {met} | {errors.mean() / truth:+.4f} | {ratio:.2f} | {covered:.2f} "
        f"| {valid:.0%} | {seconds:.2f} |"
    )


def table(n: int, lines: list[dict[str, Any]], truth: float) -> list[str]:
    """Return the table of one size, best first."""
    groups = defaultdict(list)
    for line in lines:
        if line["n"] == n:
            groups[line["method"]].append(line)
    order = sorted(groups, key=lambda name: float(np.mean([line["error"] ** 2 for line in groups[name]])))
    count = max(len(group) for group in groups.values())
    return [
        f"## n = {n}, {count} logs",
        "",
        f"| method | relative MSE | below {TARGETS[n]:g} | bias / J | std. error / sd | coverage of 95 % | VALID | seconds |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, n, groups[name], truth) for name in order),
        "",
    ]


def report(lines: list[dict[str, Any]]) -> str:
    """Return the page."""
    graph = problem()
    truth = graph.value(graph.target, gamma=GAMMA)
    bound, same = efficiency_bound(graph, GAMMA) / truth**2, homogeneous_bound(graph) / truth**2
    head = [
        "# Long episodes of nearly the same policy",
        "",
        "Written by `benchmarks/long_horizon.py`. Graph with 100 steps, logged with P(a0) = .6, candidate .55, gamma = 1, J = 5. Relative MSE is the mean of",
        f"(V - J)^2 / J^2, ± its standard error. No regular estimator is better than {bound / SMALL:.5f} (n = {SMALL}) and {bound / LARGE:.6f} (n = {LARGE}): the",
        f"semiparametric bound of a Markov process that may change with time, {bound * truth**2:.2f} / n by exact recursion. Knowing that the dynamics are the",
        f"same at all times and in all states would hardly help: {same / SMALL:.5f} and {same / LARGE:.6f}.",
        "",
    ]
    return "\n".join([*head, *(part for n in TARGETS for part in table(n, lines, truth))])


def main() -> None:
    """Run the study and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=200, help=f"logs of {SMALL} episodes")
    parser.add_argument("--large", type=int, default=100, help=f"logs of {LARGE} episodes")
    options = parser.parse_args()
    with threadpool_limits(1):
        lines = study({SMALL: options.repetitions, LARGE: options.large})
    REPORT.write_text(report(lines))


if __name__ == "__main__":
    main()
