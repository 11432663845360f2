"""Coverage of model-based estimators: influence vector, episode bootstrap, model-based bootstrap, ensembles of networks.

    python benchmarks/models.py [--methods "together" ...] [--problems RiverSwim ...] [--logs 100] [--report]

resumes where its file ends and writes the tables of docs/models.md. A cell is a problem, a number of episodes and a method; a repetition
is a log. Methods of a cell see the same logs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ope import LoggedDataset, Policy, bootstrap, model_bootstrap
from ope.estimate import Estimate
from ope.estimators import LSTDQ, LinearGaussianModel, ModelBased, ModelEnsemble
from ope.estimators import _tabular as tables
from ope.estimators import _tabular_values as values
from ope.files import replace_file
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import Problem, RandomMDP, RiverSwim, ScalarLQR
from ope.validation import FloatArray
from ope.verdict import Verdict

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "models.json"
REPORT = HERE.parent / "docs" / "models.md"
SIZES = (32, 64, 128)
REPLICATES = 99
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


class ValueOnly(ModelBased):
    """`ModelBased` without influence, tests and findings, which replicates do not use: the same values to the bit, at a third of the time."""

    def _evaluate(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray, counted: Any) -> Estimate:
        pi, _ = tables.policy_table(data, policy, counted.coded, weight)
        value = values.solve(counted.model, pi, self._gamma, counted.horizon).value
        return self._result(data, name, value=value, horizon=counted.horizon, diagnostics={}, verdict=Verdict.of([]))


def resampled(homogeneous: bool, simulated: bool) -> Callable[[LoggedDataset, Policy, float], Estimate]:
    def fit(log: LoggedDataset, policy: Policy, gamma: float) -> Estimate:
        estimator = ValueOnly(gamma=gamma, homogeneous=homogeneous)
        again = (
            model_bootstrap(estimator, log, policy, n_replicates=REPLICATES, stationary=homogeneous)
            if simulated
            else bootstrap(estimator, log, policy, n_replicates=REPLICATES)
        )
        whole = counted(homogeneous)(log, policy, gamma)
        assert again.value == whole.value
        return replace(whole, replicates=again.replicates, resample_id=again.resample_id)

    return fit


def networks(hidden: tuple[int, ...], learning_rate: float) -> Callable[[LoggedDataset, Policy, float], Estimate]:
    """Return how an ensemble of small networks, trained for a short time, is fitted."""

    def fit(log: LoggedDataset, policy: Policy, gamma: float) -> Estimate:
        ensemble = ModelEnsemble(
            gamma=gamma,
            hidden=hidden,
            learning_rate=learning_rate,
            n_updates=300,
            batch_size=64,
            n_rollouts=128,
            homogeneous=True,
        )
        estimate: Estimate = ensemble.fit(log, policy).estimate()
        return estimate

    return fit


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
    "by step": Method(counted(False), "adjusted_t", "tabular", 600),
    "by step, episode bootstrap": Method(resampled(False, False), "percentile", "tabular", 300),
    "by step, model bootstrap": Method(resampled(False, True), "percentile", "tabular", 300),
    "LSTDQ": Method(temporal, "adjusted_t", "tabular", 300),
    "together": Method(counted(True), "adjusted_t", "tabular", 600),
    "together, episode bootstrap": Method(resampled(True, False), "percentile", "tabular", 100),
    "together, model bootstrap": Method(resampled(True, True), "percentile", "tabular", 100),
    "ensemble of networks": Method(networks((32,), 2e-2), "basic", "tabular", 40),
    "linear-Gaussian, closed form": Method(closed, "adjusted_t", "control", 600),
    "linear-Gaussian, simulated": Method(drawn, "basic", "control", 60),
    "LSTDQ, control": Method(temporal, "adjusted_t", "control", 300),
    "ensemble of networks, control": Method(networks((32, 32), 1e-2), "basic", "control", 40),
}


# -------------------------------------------------------------------- study


def repetition(question: Question, method: Method, n: int, seed: int) -> list[float]:
    """Return value, standard error, interval and verdict of one log."""
    log = question.problem.sample(n, random_state=seed)
    estimate = method.fit(log, question.policy, question.gamma)
    interval = estimate.confidence_interval(0.95, method.interval)
    found = (estimate.value, estimate.std_error, interval.low, interval.high, interval.verdict.level)
    return [round(float(x), 6) for x in found]


def study(wanted: list[str], problems: list[str], most: int) -> dict[str, Any]:
    """Run what is missing and keep it as it comes."""
    cells: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in wanted:
        method = METHODS[name]
        for problem in problems:
            question = QUESTIONS[problem]()
            if question.kind != method.kind:
                continue
            for n in SIZES:
                cell = cells.setdefault(f"{problem}|{n}|{name}", {"rows": [], "seconds": 0.0})
                _fill(cell, cells, question, replace(method, repetitions=min(most, method.repetitions)), n)
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
    held, valid = (low <= truth) & (truth <= high), level == 0
    return {
        "logs": len(value),
        "bias": float(value.mean() - truth),
        "rmse": float(np.sqrt(np.mean((value - truth) ** 2))),
        "coverage": float(held.mean()),
        "width": float(np.mean(high - low)),
        "n_valid": int(valid.sum()),
        "covered_valid": float(held[valid].mean()) if valid.any() else float("nan"),
        "seconds": cell["seconds"] / len(value),
    }


def share(coverage: float, logs: float) -> str:
    """Return a coverage with its Monte Carlo error, by shares to which two logs on either side are added: 0 and 1 have one too."""
    if logs == 0:
        return "-"
    drawn = (coverage * logs + 2.0) / (logs + 4.0)
    return f"{coverage:.3f} +- {np.sqrt(drawn * (1.0 - drawn) / logs):.3f}"


def line(n: int, name: str, found: dict[str, float]) -> str:
    """Return a line of the table."""
    logs, n_valid = found["logs"], found["n_valid"]
    return (
        f"| {n} | {name} | {logs:.0f} | {found['bias']:+.4f} | {found['rmse']:.4f} | {found['width']:.3f} | {share(found['coverage'], logs)} "
        f"| {n_valid / logs:.2f} | {share(found['covered_valid'], n_valid)} | {found['seconds']:.2f} |"
    )


def covered(cell: dict[str, Any], truth: float, n_logs: int) -> FloatArray:
    """Return which intervals of the first logs held the true value, as 0 and 1."""
    _, _, low, high, _ = np.array(cell["rows"][:n_logs], dtype=float).T
    return np.asarray((low <= truth) & (truth <= high), dtype=np.float64)


def paired(cells: dict[str, Any]) -> str:
    """Return a table of the three intervals of counts on the logs that all of them have."""
    lines = [
        "| problem | n | counts | logs | influence | episode bootstrap | model bootstrap | model - episode |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for problem, make in QUESTIONS.items():
        question = make()
        for n in SIZES:
            for counts in ("by step", "together"):
                names = (counts, f"{counts}, episode bootstrap", f"{counts}, model bootstrap")
                found = [cells.get(f"{problem}|{n}|{name}", {"rows": []}) for name in names]
                logs = min(len(cell["rows"]) for cell in found)
                if logs < 2:
                    continue
                own, episode, model = (covered(cell, question.truth, logs) for cell in found)
                error = np.std(model - episode, ddof=1) / np.sqrt(logs)
                lines.append(
                    f"| {problem} | {n} | {counts} | {logs} | {own.mean():.3f} | {episode.mean():.3f} | {model.mean():.3f} "
                    f"| {np.mean(model - episode):+.3f} +- {error:.3f} |"
                )
    return "\n".join(["### The same logs, three intervals", "", *lines, ""])


MARK = "<!-- tables: written by benchmarks/models.py -->\n"


def tables_of(cells: dict[str, Any]) -> str:
    """Return the tables of the page."""
    parts = [paired(cells)]
    for problem, make in QUESTIONS.items():
        question = make()
        head = [
            f"### {problem}",
            "",
            f"J(pi) = {question.truth:.4f}.",
            "",
            "| n | method | logs | bias | RMSE | width | coverage | VALID | coverage of VALID | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines = [
            line(n, name, summary(cells[key], question.truth))
            for n in SIZES
            for name in METHODS
            if (key := f"{problem}|{n}|{name}") in cells and cells[key]["rows"]
        ]
        parts.append("\n".join([*head, *lines, ""]))
    return "\n".join(parts)


def main() -> None:
    """Run the study and write the tables below the text of the page, which is written by hand."""
    parser = argparse.ArgumentParser(description="coverage of model-based estimators")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="their names")
    parser.add_argument("--problems", nargs="*", default=list(QUESTIONS), help="beginnings of their names")
    parser.add_argument("--logs", type=int, default=1000, help="at most so many a cell")
    parser.add_argument("--report", action="store_true", help="write the page from what is there")
    options = parser.parse_args()
    methods = [] if options.report else [name for name in METHODS if name in options.methods]
    problems = [name for name in QUESTIONS if name.startswith(tuple(options.problems))]
    with threadpool_limits(1):
        cells = study(methods, problems, options.logs)
    replace_file(RESULTS, json.dumps(cells).encode())
    text = REPORT.read_text().split(MARK)[0] if REPORT.exists() else ""
    REPORT.write_text(text + MARK + "\n" + tables_of(cells))


if __name__ == "__main__":
    main()
