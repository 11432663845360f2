"""Bellman calibration beside fitted Q evaluation and LSTDQ, and how often the calibration error tells wrong features from right ones.

    python benchmarks/calibration.py run [--logs 200] [--only PROBLEM ...]   resumes where its file ends
    python benchmarks/calibration.py report                                  writes the tables of docs/calibration.md

A cell is a problem, features and a number of episodes; a row is a log. All methods of a cell see the same logs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtr
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeRegressor
from studies import fill, kept_cells, options, position, quiet, write_tables

from ope import LoggedDataset, Policy
from ope.estimate import Estimate
from ope.estimators import LSTDQ, BellmanCalibrated, CalibrationError, FittedQEvaluation, calibration_error
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import Problem, RandomMDP, RiverSwim, ScalarLQR
from ope.validation import FloatArray

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "calibration.json"
REPORT = HERE.parent / "docs" / "calibration.md"
SIZES = (64, 256)
LOGS = 200
TREE_LOGS = 40
Row = Callable[..., dict[str, Any]]


class LeastSquares(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Least squares without an intercept: what `LinearRegression` does, without the checks that cost more than the solution."""

    def fit(self, X: FloatArray, y: FloatArray, sample_weight: FloatArray | None = None) -> LeastSquares:
        """Solve the normal equations."""
        weighted = X if sample_weight is None else X * sample_weight[:, None]
        self.coef_ = np.linalg.pinv(weighted.T @ X, hermitian=True) @ (weighted.T @ y)
        return self

    def predict(self, X: FloatArray) -> FloatArray:
        """Return linear predictions."""
        return np.asarray(X @ self.coef_)


def straight(inputs: FloatArray) -> FloatArray:
    """Return a 1 and the inputs, without their squares."""
    return np.column_stack([np.ones(len(inputs)), inputs])


@dataclass(frozen=True)
class Question:
    """A problem, its wrong features, and why they are wrong."""

    problem: Problem
    wrong: Callable[[FloatArray], FloatArray]

    @property
    def gamma(self) -> float:
        """The problem's own."""
        return float(self.problem.default_gamma)

    @property
    def policy(self) -> Policy:
        """The problem's own candidate."""
        target: Any = self.problem.target
        if isinstance(self.problem, ScalarLQR):
            return GaussianPolicy(mean=[target.gain], std=target.std, intercept=target.offset)
        return TabularPolicy(target, state_code=getattr(self.problem, "state_code", None))

    @property
    def truth(self) -> float:
        """The exact value."""
        return float(self.problem.value(self.problem.target, self.gamma))


QUESTIONS: Mapping[str, Callable[[], Question]] = {
    "RiverSwim, 50 steps seen": lambda: Question(RiverSwim(max_steps=50), position),
    "RandomMDP, one terminal": lambda: Question(RandomMDP(terminals=1, random_state=1), position),
    "RandomMDP, ten states": lambda: Question(RandomMDP(10, 2, terminals=1, random_state=3), position),
    "ScalarLQR, 30 steps seen": lambda: Question(ScalarLQR(max_steps=30), straight),
    "RiverSwim, horizon 20": lambda: Question(RiverSwim(horizon=20), position),
    "RandomMDP, horizon 5": lambda: Question(RandomMDP(horizon=5, random_state=0), position),
}
# Problems with a long iteration are given half as many logs.
SLOW = ("RiverSwim, 50 steps seen", "ScalarLQR, 30 steps seen")
TREE_QUESTIONS = ("RandomMDP, one terminal", "RiverSwim, horizon 20")


# -------------------------------------------------------------------- study


def answer(estimate: Estimate) -> dict[str, Any]:
    """Return value, interval and verdict."""
    low, high = estimate.confidence_interval(0.95)
    numbers = {"value": estimate.value, "low": low, "high": high}
    return {**{name: round(float(x), 7) for name, x in numbers.items()}, "level": int(estimate.verdict.level)}


def naive_p(found: CalibrationError) -> float:
    """Return the p-value of t-tests of the plain errors, as if the fitted Q had no noise."""
    t = np.divide(found.error, found.std_error, out=np.zeros_like(found.error), where=found.std_error > 0)
    p = 2.0 * stdtr(np.maximum(found.episodes - 1, 1), -np.abs(t))
    return min(1.0, len(p) * float(p.min()))


def linear_row(question: Question, log: LoggedDataset, right: bool) -> dict[str, Any]:
    """Return what the linear methods say of a log."""
    gamma, policy = question.gamma, question.policy
    features: Any = "auto" if right else FunctionTransformer(question.wrong)
    lstdq = LSTDQ(gamma=gamma, features=features)
    fqe = FittedQEvaluation(gamma=gamma, regressor=LeastSquares(), features=features)
    calibrated = BellmanCalibrated(gamma=gamma, q=fqe).fit(log, policy).estimate()
    found = calibration_error(log, policy, lstdq, gamma=gamma)
    return {
        "FQE": {"value": round(float(fqe.fit(log, policy).estimate().value), 7)},
        "LSTDQ": answer(lstdq.fit(log, policy).estimate()),
        "calibrated": {**answer(calibrated), "p": calibrated.diagnostics["calibration_p"]},
        "p": found.p_value,
        "naive_p": naive_p(found),
        "size": found.size,
    }


def tree_row(question: Question, log: LoggedDataset, right: bool) -> dict[str, Any]:
    """Return the same of FQE with trees: leaves of at least 5 rows, or 3 leaves in all."""
    gamma, policy = question.gamma, question.policy
    tree = DecisionTreeRegressor(
        min_samples_leaf=5 if right else 1, max_leaf_nodes=None if right else 3, random_state=0
    )
    fqe = FittedQEvaluation(gamma=gamma, regressor=tree, max_iter=200)
    calibrated = BellmanCalibrated(gamma=gamma, q=fqe).fit(log, policy).estimate()
    return {
        "FQE": {"value": round(float(fqe.fit(log, policy).estimate().value), 7)},
        "calibrated": {**answer(calibrated), "p": calibrated.diagnostics["calibration_p"]},
    }


def cells(wanted: list[str], logs: int) -> list[tuple[str, str, bool, int, int]]:
    """Return kind, problem, whether features are right, number of episodes and of logs; the cheap ones first."""
    linear = [
        ("linear", name, right, n, logs // 2 if name in SLOW else logs)
        for n in SIZES
        for name in sorted(QUESTIONS, key=SLOW.__contains__)
        for right in (True, False)
    ]
    trees = [("tree", name, right, 256, min(logs, TREE_LOGS)) for name in TREE_QUESTIONS for right in (True, False)]
    return [cell for cell in linear + trees if cell[1] in wanted]


def study(wanted: list[str], logs: int) -> None:
    """Run what is missing and keep it as it comes."""
    kept = kept_cells(RESULTS)
    for kind, name, right, n, wished in cells(wanted, logs):
        question, ask = QUESTIONS[name](), linear_row if kind == "linear" else tree_row

        def row(seed: int, question: Question = question, ask: Row = ask, n: int = n, right: bool = right) -> Any:
            return ask(question, question.problem.sample(n, random_state=seed), right)

        fill(RESULTS, kept, f"{kind}|{name}|{'right' if right else 'wrong'}|{n}", wished, row)


# -------------------------------------------------------------------- report


def shown(rows: list[dict[str, Any]], method: str, truth: float) -> str:
    """Return RMSE; coverage (share VALID, coverage among these) of a method."""
    own = [row[method] for row in rows]
    value = np.array([row["value"] for row in own])
    rmse = f"{np.sqrt(np.mean((value - truth) ** 2)):.3f}"
    if "low" not in own[0]:
        return rmse
    covered = np.array([row["low"] <= truth <= row["high"] for row in own])
    valid = np.array([row["level"] == 0 for row in own])
    among = f", {covered[valid].mean():.2f}" if valid.any() else ""
    return f"{rmse}; {covered.mean():.2f} ({valid.mean():.0%}{among})"


def value_table(kept: dict[str, Any], kind: str, methods: tuple[str, ...]) -> list[str]:
    """Return a line a cell: errors and coverage."""
    names = {"FQE": "FQE", "LSTDQ": "LSTDQ", "calibrated": "calibrated FQE"}
    lines = [
        "| problem | J | features | n | logs | " + " | ".join(names[own] for own in methods) + " |",
        "|---|---|---|---|---|" + "---|" * len(methods),
    ]
    for key, cell in kept.items():
        own, name, features, n = key.split("|")
        if own == kind and cell["rows"]:
            truth = QUESTIONS[name]().truth
            found = " | ".join(shown(cell["rows"], method, truth) for method in methods)
            lines.append(f"| {name} | {truth:.3f} | {features} | {n} | {len(cell['rows'])} | {found} |")
    return lines


def test_table(kept: dict[str, Any]) -> list[str]:
    """Return a line a cell: how often each test rejects."""
    lines = [
        "| problem | features | n | size of the error (median) | rejected at 5 % | by the plain t-test | flagged in `BellmanCalibrated` (p < .001) |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, cell in kept.items():
        kind, name, features, n = key.split("|")
        if kind == "linear" and cell["rows"]:
            rows = cell["rows"]
            share = [np.mean([row[own] < 0.05 for row in rows]) for own in ("p", "naive_p")]
            flagged = np.mean([row["calibrated"]["p"] < 0.001 for row in rows])
            size = np.median([row["size"] for row in rows])
            lines.append(
                f"| {name} | {features} | {n} | {size:.3f} | {share[0]:.2f} | {share[1]:.2f} | {flagged:.2f} |"
            )
    return lines


def report() -> None:
    """Write the tables between the marks of the page."""
    kept = json.loads(RESULTS.read_text())
    parts = [
        *["### Values", "", "RMSE; coverage of 95 % (share VALID, coverage among these).", ""],
        *value_table(kept, "linear", ("FQE", "LSTDQ", "calibrated")),
        *["", "### How often wrong features are told", ""],
        *test_table(kept),
        *["", "### Trees", "", "*Right*: leaves of at least 5 rows; *wrong*: 3 leaves.", ""],
        *value_table(kept, "tree", ("FQE", "calibrated")),
    ]
    write_tables(REPORT, parts)


def main() -> None:
    """Run the study or write its page."""
    asked = options("Bellman calibration", LOGS, list(QUESTIONS))
    if asked.verb == "report":
        report()
        return
    with quiet():
        study(asked.only, asked.logs)


if __name__ == "__main__":
    main()
