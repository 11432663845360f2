"""Coverage of model-based estimators: influence vector, episode bootstrap, model-based bootstrap, ensembles of networks.

    python benchmarks/models.py [--methods "together" ...] [--report]      resumes where its file ends, writes docs/models.md

A cell is a problem, a number of episodes and a method; a repetition is a log. Methods of a cell see the same logs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ope import LoggedDataset, Policy, bootstrap, model_bootstrap
from ope.estimate import Estimate
from ope.estimators import LSTDQ, LinearGaussianModel, ModelBased, ModelEnsemble
from ope.files import replace_file
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import Problem, RandomMDP, RiverSwim, ScalarLQR
from ope.validation import FloatArray

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "models.json"
REPORT = HERE.parent / "docs" / "models.md"
SIZES = (32, 64, 128)
REPLICATES = 149
SAVE_EVERY = 10


@dataclass(frozen=True)
class Question:
    """A problem, the candidate, the discount, and which methods are for it."""

    problem: Problem
    policy: Policy
    gamma: float
    kind: str

    @property
    def truth(self) -> float:
        """The exact value."""
        return self.problem.value(self.problem.target, self.gamma)


def tabular(problem: RiverSwim | RandomMDP) -> Question:
    """Return the question of a table without discounting."""
    return Question(problem, TabularPolicy(problem.target), 1.0, "tabular")


QUESTIONS: dict[str, Callable[[], Question]] = {
    "RiverSwim, 10 steps": lambda: tabular(RiverSwim(horizon=10)),
    "random process, 10 steps": lambda: tabular(RandomMDP(5, 2, horizon=10, random_state=0)),
    "linear-quadratic control": lambda: Question(
        ScalarLQR(max_steps=20), GaussianPolicy([[-0.7]], 0.3), 0.95, "control"
    ),
}


@dataclass(frozen=True)
class Method:
    """An estimate with its interval, for one kind of problem, and how many logs it is given."""

    fit: Callable[[LoggedDataset, Policy, float], Estimate]
    interval: str
    kind: str
    repetitions: int


def counted(homogeneous: bool) -> Callable[[LoggedDataset, Policy, float], Estimate]:
    def fit(log: LoggedDataset, policy: Policy, gamma: float) -> Estimate:
        estimate: Estimate = ModelBased(gamma=gamma, homogeneous=homogeneous).fit(log, policy).estimate()
        return estimate

    return fit


def resampled(homogeneous: bool, simulated: bool) -> Callable[[LoggedDataset, Policy, float], Estimate]:
    def fit(log: LoggedDataset, policy: Policy, gamma: float) -> Estimate:
        estimator = ModelBased(gamma=gamma, homogeneous=homogeneous)
        if simulated:
            return model_bootstrap(estimator, log, policy, n_replicates=REPLICATES, stationary=homogeneous)
        return bootstrap(estimator, log, policy, n_replicates=REPLICATES)

    return fit


def networks(log: LoggedDataset, policy: Policy, gamma: float) -> Estimate:
    """Return the estimate of an ensemble of small networks."""
    ensemble = ModelEnsemble(gamma=gamma, hidden=(32, 32), n_updates=800, batch_size=128, homogeneous=True)
    estimate: Estimate = ensemble.fit(log, policy).estimate()
    return estimate


def closed(log: LoggedDataset, policy: Policy, gamma: float) -> Estimate:
    """Return the estimate of the linear-Gaussian model."""
    estimate: Estimate = LinearGaussianModel(gamma=gamma).fit(log, policy).estimate()
    return estimate


def drawn(log: LoggedDataset, _: Policy, gamma: float) -> Estimate:
    """Return that of the same model, for a candidate that it does not recognise."""
    estimate: Estimate = LinearGaussianModel(gamma=gamma).fit(log, FunctionPolicy(sample=_act)).estimate()
    return estimate


def _act(states: FloatArray, rng: np.random.Generator) -> FloatArray:
    return -0.7 * states + 0.3 * rng.standard_normal(states.shape)


def temporal(log: LoggedDataset, policy: Policy, gamma: float) -> Estimate:
    """Return what LSTDQ says."""
    estimate: Estimate = LSTDQ(gamma=gamma).fit(log, policy).estimate()
    return estimate


METHODS: dict[str, Method] = {
    "by step": Method(counted(False), "adjusted_t", "tabular", 400),
    "together": Method(counted(True), "adjusted_t", "tabular", 400),
    "by step, episode bootstrap": Method(resampled(False, False), "percentile", "tabular", 100),
    "by step, model bootstrap": Method(resampled(False, True), "percentile", "tabular", 100),
    "together, episode bootstrap": Method(resampled(True, False), "percentile", "tabular", 100),
    "together, model bootstrap": Method(resampled(True, True), "percentile", "tabular", 100),
    "ensemble of networks": Method(networks, "basic", "tabular", 40),
    "linear-Gaussian, closed form": Method(closed, "adjusted_t", "control", 400),
    "linear-Gaussian, simulated": Method(drawn, "basic", "control", 60),
    "LSTDQ": Method(temporal, "adjusted_t", "control", 400),
    "ensemble of networks, control": Method(networks, "basic", "control", 20),
}


# -------------------------------------------------------------------- study


def repetition(question: Question, method: Method, n: int, seed: int) -> list[float]:
    """Return value, standard error, interval and verdict of one log."""
    log = question.problem.sample(n, random_state=seed)
    estimate = method.fit(log, question.policy, question.gamma)
    low, high = estimate.confidence_interval(0.95, method.interval)
    return [round(float(x), 6) for x in (estimate.value, estimate.std_error, low, high, estimate.verdict.level)]


def study(wanted: list[str]) -> dict[str, Any]:
    """Run what is missing and keep it as it comes."""
    cells: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in wanted:
        method = METHODS[name]
        for problem, make in QUESTIONS.items():
            question = make()
            if question.kind != method.kind:
                continue
            for n in SIZES:
                cell = cells.setdefault(f"{problem}|{n}|{name}", {"rows": [], "seconds": 0.0})
                _fill(cell, cells, question, method, n)
                print(problem, n, name, summary(cell, question.truth), flush=True)
    return cells


def _fill(cell: dict[str, Any], cells: dict[str, Any], question: Question, method: Method, n: int) -> None:
    while len(cell["rows"]) < method.repetitions:
        start = time.process_time()
        cell["rows"].append(repetition(question, method, n, len(cell["rows"])))
        cell["seconds"] = round(cell["seconds"] + time.process_time() - start, 3)
        if len(cell["rows"]) % SAVE_EVERY == 0:
            replace_file(RESULTS, json.dumps(cells).encode())


# -------------------------------------------------------------------- report


def summary(cell: dict[str, Any], truth: float) -> dict[str, float]:
    """Return what a cell says."""
    value, _, low, high, level = np.array(cell["rows"], dtype=float).T
    return {
        "logs": len(value),
        "bias": float(value.mean() - truth),
        "rmse": float(np.sqrt(np.mean((value - truth) ** 2))),
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "width": float(np.mean(high - low)),
        "valid": float(np.mean(level == 0)),
        "seconds": cell["seconds"] / len(value),
    }


def line(n: int, name: str, found: dict[str, float]) -> str:
    """Return a line of the table."""
    error = np.sqrt(max(found["coverage"] * (1.0 - found["coverage"]), 1.0 / found["logs"]) / found["logs"])
    return (
        f"| {n} | {name} | {found['logs']:.0f} | {found['bias']:+.4f} | {found['rmse']:.4f} | {found['coverage']:.3f} +- {error:.3f} | {found['width']:.3f} "
        f"| {found['valid']:.2f} | {found['seconds']:.2f} |"
    )


INTRODUCTION = f"""# Model-based estimators: coverage at few episodes

Written by `python benchmarks/models.py` from `benchmarks/results/models.json`. Nominal 95 %, gamma 1 on tables and .95 in control. *By step*: counts of each
step of the horizon, the same number as `LSTDQ`. *Together*: `homogeneous=True`, counts of all steps. Without a further word the interval is adjusted t
on the influence vector; the bootstraps refit {REPLICATES} times and take percentiles; ensembles of 40 networks (two layers of 32, 800 updates) the basic interval
of their members. *Valid*: share of logs with the verdict VALID. Seconds are those of one core that others shared, a fit with its interval.
"""


def report(cells: dict[str, Any]) -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for problem, make in QUESTIONS.items():
        question = make()
        head = [
            f"## {problem}",
            "",
            f"J(pi) = {question.truth:.4f}.",
            "",
            "| n | method | logs | bias | RMSE | coverage | width | valid | seconds |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines = [
            line(n, name, summary(cells[key], question.truth))
            for n in SIZES
            for name in METHODS
            if (key := f"{problem}|{n}|{name}") in cells and cells[key]["rows"]
        ]
        parts.append("\n".join([*head, *lines, ""]))
    reading = HERE / "results" / "models_reading.md"
    return "\n".join([*parts[:1], *([reading.read_text()] if reading.exists() else []), *parts[1:]])


def main() -> None:
    """Run the study and write the report."""
    parser = argparse.ArgumentParser(description="coverage of model-based estimators")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="their names")
    parser.add_argument("--report", action="store_true", help="write the page from what is there")
    options = parser.parse_args()
    with threadpool_limits(1):
        cells = study([] if options.report else [name for name in METHODS if name in options.methods])
    REPORT.write_text(report(cells))


if __name__ == "__main__":
    main()
