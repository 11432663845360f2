"""Methods of the frontier beside the nearest ones that the library had: root mean squared error and coverage on equal logs.

    python benchmarks/frontier.py [--studies "average reward" ...] [--logs 200] [--report]      writes docs/frontier.md

Methods that did not hold up live in `frontier_prototypes.py` beside this file, not in the library.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import frontier_prototypes as prototypes
import numpy as np
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, PolynomialFeatures
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from ope import LoggedDataset, Policy
from ope.estimate import Estimate
from ope.estimators import (
    LSTDQ,
    AverageRewardLSTDQ,
    DoubleReinforcementLearning,
    DoublyRobust,
    EfficientDoublyRobust,
    FittedQEvaluation,
    IncrementalIS,
    MarginalizedIS,
    PerDecisionIS,
    SimulatorQ,
    WeightedIS,
)
from ope.files import replace_file
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import (
    LinearGaussian,
    ModelFail,
    ModelWin,
    Problem,
    RandomMDP,
    RiverSwim,
    ScalarLQR,
    TabularProblem,
)
from ope.validation import FloatArray

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "frontier.json"
REPORT = HERE.parent / "docs" / "frontier.md"
LOGS = 200

Fit = Callable[[LoggedDataset, Policy], Estimate]


@dataclass(frozen=True)
class Question:
    """A problem, the candidate, its exact value, and the methods that answer."""

    problem: Problem
    policy: Policy
    truth: float
    methods: Mapping[str, Fit]


def of(estimator: Any) -> Fit:
    """Return how an estimator answers."""

    def fit(log: LoggedDataset, policy: Policy) -> Estimate:
        estimate: Estimate = estimator.fit(log, policy).estimate()
        return estimate

    return fit


def tabular(problem: TabularProblem, gamma: float, methods: Mapping[str, Fit]) -> Question:
    """Return the question of a problem's own target."""
    policy = TabularPolicy(problem.target, state_code=problem.state_code)
    return Question(problem, policy, problem.value(problem.target, gamma), methods)


# -------------------------------------------------------------------- average reward


def stationary_average(problem: TabularProblem) -> float:
    """Return the exact reward per step under the target's stationary distribution."""
    pi, process = problem.target[problem.observation], problem.process
    chain = np.einsum("sa,saz->sz", pi, process.transitions)
    system = np.vstack([chain.T - np.eye(len(chain)), np.ones(len(chain))])
    visits = np.linalg.lstsq(system, np.eye(len(chain) + 1)[-1], rcond=None)[0]
    return float(visits @ np.einsum("sa,saz,saz->s", pi, process.transitions, process.rewards))


def rate(gamma: float, **settings: Any) -> Fit:
    """Return (1 - gamma) J by LSTDQ, the nearest that there was."""

    def fit(log: LoggedDataset, policy: Policy) -> Estimate:
        return prototypes.scaled(LSTDQ(gamma=gamma, **settings).fit(log, policy).estimate(), 1.0 - gamma)

    return fit


AVERAGE: Mapping[str, Fit] = {
    "AverageRewardLSTDQ": of(AverageRewardLSTDQ()),
    "(1 - .95) J, LSTDQ": rate(0.95),
    "(1 - .99) J, LSTDQ": rate(0.99),
    "(1 - .999) J, LSTDQ": rate(0.999),
}


def average_questions() -> Iterator[tuple[str, int, Question]]:
    """Yield RiverSwim, a random process and linear-quadratic control."""
    river, random = RiverSwim(max_steps=50), RandomMDP(5, 2, horizon=None, max_steps=25, random_state=0)
    gain, noise = -0.7, 0.3
    control = ScalarLQR(max_steps=25, target=LinearGaussian(gain, noise))
    variance = (0.5**2 * noise**2 + 0.2**2) / (1.0 - (0.9 + 0.5 * gain) ** 2)
    cost = -((1.0 + 0.1 * gain**2) * variance + 0.1 * noise**2)
    for n in (20, 100, 400):
        for name, problem in (("RiverSwim, 50 steps", river), ("random process, 25 steps", random)):
            policy = TabularPolicy(problem.target)
            yield name, n, Question(problem, policy, stationary_average(problem), AVERAGE)
        yield (
            "linear-quadratic control, 25 steps",
            n,
            Question(control, GaussianPolicy([[gain]], noise), cost, AVERAGE),
        )


# -------------------------------------------------------------------- a simulator as a control variate


def simulator_of(problem: TabularProblem, mix: float, shift: float) -> Any:
    """Return a simulator with transitions mixed with random ones, and rewards shifted at random."""
    g = np.random.default_rng(0)
    P, R = problem.process.at(0)
    n_states, n_actions = P.shape[:2]
    mixed = (1.0 - mix) * P + mix * g.dirichlet(np.full(n_states, 0.5), size=(n_states, n_actions))
    cumulated, rewards = mixed.cumsum(axis=2), R + shift * g.normal(size=(n_states, n_actions, 1))

    def simulator(states: FloatArray, actions: Any, rng: np.random.Generator) -> Any:
        s, a = states.argmax(axis=1), np.asarray(actions, dtype=np.int64)
        z = np.minimum((rng.random(len(s))[:, None] >= cumulated[s, a]).sum(axis=1), n_states - 1)
        return rewards[s, a, z], np.eye(n_states)[z], None

    return simulator


SIMULATORS = {"right": (0.0, 0.0), "inexact": (0.2, 0.1), "absurd": (1.0, 1.0)}


def simulator_questions() -> Iterator[tuple[str, int, Question]]:
    """Yield problems with a horizon, each with simulators that are right, inexact and absurd."""
    mild = RandomMDP(5, 2, horizon=8, random_state=0)
    mild.target = 0.5 * mild.target + 0.5 * mild.behavior
    problems = {
        "RiverSwim, 10 steps": RiverSwim(horizon=10),
        "random process, 8 steps": mild,
        "ModelWin, 8 steps": ModelWin(horizon=8),
    }
    for n in (32, 128):
        for name, problem in problems.items():
            methods: dict[str, Fit] = {
                "PerDecisionIS": of(PerDecisionIS(gamma=1.0)),
                "DoublyRobust, LSTDQ": of(DoublyRobust(gamma=1.0)),
                "EfficientDoublyRobust, LSTDQ": of(EfficientDoublyRobust(gamma=1.0)),
            }
            for kind, wrong in SIMULATORS.items():
                q = SimulatorQ(simulator=simulator_of(problem, *wrong), n_replays=5)
                methods[f"simulator alone, {kind}"] = of(SimulatorQ(gamma=1.0, simulator=q.simulator, n_replays=5))
                methods[f"DoublyRobust, simulator {kind}"] = of(DoublyRobust(gamma=1.0, q=q))
                methods[f"EfficientDoublyRobust, simulator {kind}"] = of(EfficientDoublyRobust(gamma=1.0, q=q))
            yield name, n, tabular(problem, 1.0, methods)


# -------------------------------------------------------------------- abstract reward processes


def star_questions() -> Iterator[tuple[str, int, Question]]:
    """Yield problems with states on a line, in groups, and hidden ones."""
    gain = -0.5
    problems: dict[str, tuple[Problem, Policy, float, float, tuple[int, ...]]] = {}
    tables: dict[str, TabularProblem] = {
        "RiverSwim, 20 steps": RiverSwim(horizon=20, encoding="index"),
        "random process, 10 steps": RandomMDP(8, 2, horizon=10, random_state=3),
        "ModelFail (hidden states)": ModelFail(),
        "ModelWin, 8 steps": ModelWin(horizon=8),
    }
    for name, table in tables.items():
        own = TabularPolicy(table.target, state_code=table.state_code)
        problems[name] = table, own, table.value(table.target, 1.0), 1.0, (1, 2, 4, 8)
    control = ScalarLQR(max_steps=10, target=LinearGaussian(gain, 0.3))
    gaussian, truth = GaussianPolicy([[gain]], 0.3), control.value(control.target, 0.8)
    problems["linear-quadratic control, 10 steps recorded"] = control, gaussian, truth, 0.8, (1, 2, 4, 8, 16)
    for n in (64, 256):
        for name, (problem, policy, value, gamma, sizes) in problems.items():
            methods: dict[str, Fit] = {
                "WeightedIS": of(WeightedIS(gamma=gamma)),
                "IncrementalIS": of(IncrementalIS(gamma=gamma)),
                "LSTDQ": of(LSTDQ(gamma=gamma)),
                **prototypes.star_methods(gamma, sizes),
            }
            yield name, n, Question(problem, policy, value, methods)


# -------------------------------------------------------------------- SOPE


def sope_questions() -> Iterator[tuple[str, int, Question]]:
    """Yield problems whose states are complete, merged by the features, and hidden."""
    river = RiverSwim(horizon=12, encoding="index")
    problems: dict[str, tuple[TabularProblem, Any]] = {
        "RiverSwim, 12 steps": (RiverSwim(horizon=12), "auto"),
        "RiverSwim, 12 steps, merged features": (river, KBinsDiscretizer(3, encode="onehot-dense")),
        "random process, 8 steps": (RandomMDP(6, 2, horizon=8, random_state=1), "auto"),
        "ModelFail (hidden states)": (ModelFail(), "auto"),
        "ModelWin, 10 steps": (ModelWin(horizon=10), "auto"),
    }
    for n in (64, 256):
        for name, (problem, features) in problems.items():
            methods: dict[str, Fit] = {
                "WeightedIS": of(WeightedIS(gamma=1.0)),
                "IncrementalIS": of(IncrementalIS(gamma=1.0)),
                "DoublyRobust": of(DoublyRobust(gamma=1.0, q=LSTDQ(features=features))),
                **prototypes.sope_methods(MarginalizedIS(gamma=1.0, features=features), problem.n_steps),
            }
            yield name, n, tabular(problem, 1.0, methods)


# -------------------------------------------------------------------- stationary-weighted fitted Q


def weighted_questions() -> Iterator[tuple[str, int, Question]]:
    """Yield problems without horizon, with features that hold Q and with poorer ones."""
    gamma, table = 0.95, OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    river = RiverSwim(max_steps=30, encoding="index")
    merged = KBinsDiscretizer(3, encode="onehot-dense", strategy="uniform")
    random = RandomMDP(12, 2, horizon=None, max_steps=25, random_state=2)
    problems: dict[str, tuple[TabularProblem, Any]] = {
        "RiverSwim, line": (river, PolynomialFeatures(1)),
        "RiverSwim, merged states": (river, merged),
        "random process, table": (random, "auto"),
    }
    for n in (50, 200):
        for name, (problem, features) in problems.items():
            rich = table if problem is river else features
            methods: dict[str, Fit] = {
                "LSTDQ": of(LSTDQ(gamma=gamma, features=features)),
                "LSTDQ, table": of(LSTDQ(gamma=gamma, features=rich)),
                "fitted Q, plain": prototypes.fitted_q(gamma, features),
                "fitted Q, weights of the same features": prototypes.fitted_q(gamma, features, features),
                "fitted Q, weights of the table": prototypes.fitted_q(gamma, features, rich),
            }
            yield name, n, tabular(problem, gamma, methods)
        circle = two_states()
        policy = TabularPolicy(circle.target, state_code=circle.state_code)
        methods = {
            "LSTDQ": of(LSTDQ(gamma=gamma, features="identity")),
            "fitted Q, plain": prototypes.fitted_q(gamma, "identity"),
            "fitted Q, weights of the same features": prototypes.fitted_q(gamma, "identity", "identity"),
            "fitted Q, weights of the table": prototypes.fitted_q(gamma, "identity", table),
        }
        yield "two states, one feature", n, Question(circle, policy, 0.0, methods)


def two_states() -> TabularProblem:
    """Return the example of Tsitsiklis and Van Roy: action 0 leads to the second state, action 1 back; the feature is 1 and 2, rewards are 0."""
    P = np.zeros((2, 2, 2))
    P[:, 0, 1] = P[:, 1, 0] = 1.0
    b, pi = np.full((2, 2), 0.5), np.tile([1.0, 0.0], (2, 1))
    return TabularProblem(P, np.zeros((2, 2)), [1.0, 0.0], behavior=b, target=pi, max_steps=20, encoding=[[1.0], [2.0]])


# -------------------------------------------------------------------- deeply debiased


def debiased_questions() -> Iterator[tuple[str, int, Question]]:
    """Yield problems without horizon; Q models that are right, poor, and trees."""
    gamma = 0.9
    line = PolynomialFeatures(1)
    tree = FittedQEvaluation(regressor=DecisionTreeRegressor(min_samples_leaf=10), max_iter=10, n_bootstrap=0)
    problems: dict[str, tuple[TabularProblem, dict[str, Any]]] = {
        "RiverSwim": (
            RiverSwim(max_steps=20, encoding="index"),
            {"line": LSTDQ(features=line), "ridge": LSTDQ(features="auto", ridge=20.0), "tree": tree},
        ),
        "random process": (
            RandomMDP(6, 2, horizon=None, max_steps=15, random_state=1),
            {"table": LSTDQ(), "ridge": LSTDQ(ridge=20.0)},
        ),
        "random process, other": (
            RandomMDP(5, 3, horizon=None, max_steps=15, random_state=4),
            {"table": LSTDQ(), "ridge": LSTDQ(ridge=20.0)},
        ),
    }
    for n in (40, 100):
        for name, (problem, models) in problems.items():
            methods: dict[str, Fit] = {"LSTDQ": of(LSTDQ(gamma=gamma))}
            for kind, q in models.items():
                if kind == "tree" and n > 40:
                    continue
                methods[f"double RL, {kind}"] = of(DoubleReinforcementLearning(gamma=gamma, q=q, n_folds=2))
                debiased = prototypes.DebiasedQ(q=q)
                methods[f"deeply debiased, {kind}"] = of(
                    DoubleReinforcementLearning(gamma=gamma, q=debiased, n_folds=2)
                )
            yield name, n, tabular(problem, gamma, methods)


STUDIES: Mapping[str, Callable[[], Iterator[tuple[str, int, Question]]]] = {
    "average reward": average_questions,
    "simulator": simulator_questions,
    "abstract reward processes": star_questions,
    "SOPE": sope_questions,
    "stationary weights": weighted_questions,
    "deeply debiased": debiased_questions,
}


# -------------------------------------------------------------------- the runs


def run(name: str, n_logs: int) -> list[dict[str, Any]]:
    """Return a row for each problem, size and method; methods see the same logs."""
    rows = []
    for problem, n, question in STUDIES[name]():
        found: dict[str, list[tuple[float, ...]]] = {method: [] for method in question.methods}
        seconds = dict.fromkeys(found, 0.0)
        for seed in range(n_logs):
            log = question.problem.sample(n, random_state=seed)
            for method, fit in question.methods.items():
                start = time.process_time()
                found[method].append(answer(fit(log, question.policy)))
                seconds[method] += time.process_time() - start
        for method, answers in found.items():
            row = {"problem": problem, "n": n, "method": method, "truth": question.truth, **summary(answers, question)}
            rows.append({**row, "seconds": round(seconds[method] / n_logs, 4)})
            print({key: value for key, value in rows[-1].items() if key != "truth"}, flush=True)
    return rows


def answer(estimate: Estimate) -> tuple[float, ...]:
    """Return value, interval and verdict."""
    if estimate.influence is None:
        return estimate.value, np.nan, np.nan, np.nan
    low, high = estimate.confidence_interval()
    level = np.nan if estimate.estimator in prototypes.NAMES else float(estimate.verdict.level)
    return estimate.value, low, high, level


def summary(answers: list[tuple[float, ...]], question: Question) -> dict[str, float | None]:
    """Return what a cell says; infinite values count as errors of their size."""
    value, low, high, level = np.array(answers).T
    truth, none = question.truth, bool(np.isnan(low).any())
    return {
        "logs": len(value),
        "bias": float(f"{np.mean(value) - truth:.4g}"),
        "rmse": float(f"{np.sqrt(np.mean((value - truth) ** 2)):.4g}"),
        "coverage": None if none else round(float(np.mean((low <= truth) & (truth <= high))), 4),
        "width": None if none else float(f"{np.mean(high - low):.4g}"),
        "valid": None if np.isnan(level).any() else round(float(np.mean(level == 0)), 4),
    }


# -------------------------------------------------------------------- the page

HEAD = "| problem | n | method | bias | RMSE | coverage | width | valid |\n|---|---|---|---|---|---|---|---|"


FIXED = {"STAR, k = ": "STAR", "SOPE, n = ": "SOPE"}


def collapsed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of one problem and size with the best and the worst of many fixed settings, as hindsight tells them."""
    kept = [row for row in rows if not row["method"].startswith(tuple(FIXED))]
    for prefix in FIXED:
        fixed = sorted((row for row in rows if row["method"].startswith(prefix)), key=lambda row: float(row["rmse"]))
        for word, row in zip(("best", "worst"), (fixed[0], fixed[-1]) if fixed else (), strict=False):
            kept.append({**row, "method": f"{row['method']} ({word} in hindsight)"})
    return kept


def table(rows: list[dict[str, Any]]) -> str:
    """Return a table, with the value of each problem in its first row."""
    lines, before = [HEAD], None
    places = dict.fromkeys((row["problem"], row["n"]) for row in rows)
    for row in (one for place in places for one in collapsed([r for r in rows if (r["problem"], r["n"]) == place])):
        place = (row["problem"], row["n"])
        first = f"{row['problem']} (J = {row['truth']:.4g})" if place != before else ""
        size = str(row["n"]) if place != before else ""
        interval = "none | " if row["width"] is None else f"{row['coverage']:.3f} | {row['width']:.3g}"
        valid = "" if row["valid"] is None else f"{row['valid']:.2f}"
        lines.append(
            f"| {first} | {size} | {row['method']} | {row['bias']:+.3g} | {row['rmse']:.3g} | {interval} | {valid} |"
        )
        before = place
    return "\n".join(lines)


def report(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the page: what was found in words, from `frontier_reading.json`, and a table for each study."""
    reading = json.loads((HERE / "results" / "frontier_reading.json").read_text())
    parts = [reading["introduction"]]
    for name, rows in results.items():
        logs = rows[0]["logs"]
        parts += [f"## {reading[name]['title']}", reading[name]["text"], f"{logs} logs a row.", table(rows)]
    return "\n\n".join([*parts, reading["end"]]) + "\n"


def main() -> None:
    """Run the studies and write the page."""
    parser = argparse.ArgumentParser(description="methods of the frontier")
    parser.add_argument("--studies", nargs="*", default=list(STUDIES), choices=list(STUDIES), help="their names")
    parser.add_argument("--logs", type=int, default=LOGS, help="logs a row")
    parser.add_argument("--report", action="store_true", help="write the page from what is there")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in [] if options.report else options.studies:
        with threadpool_limits(1):
            results[name] = run(name, options.logs)
        results = {study: results[study] for study in STUDIES if study in results}
        replace_file(RESULTS, json.dumps(results, indent=1).encode())
    REPORT.write_text(report(results))


if __name__ == "__main__":
    main()
