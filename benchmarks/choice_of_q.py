"""Choosing among Q functions, or combining them: stacking, tournament, squared temporal differences, single ones, their average.

    python benchmarks/choice_of_q.py run [--logs 200]      resumes where its file ends
    python benchmarks/choice_of_q.py report                writes the tables of docs/choice_of_q.md

A cell is a problem, a set of candidates and a number of episodes; a row is a log. The candidates of a log are fitted outside each of
five folds and valued inside, for all ways of choosing the same; the stack has folds of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.preprocessing import FunctionTransformer
from studies import constant, fill, kept_cells, options, pairs, position, quiet, write_tables

from ope import LoggedDataset, Policy
from ope.estimators import LSTDQ, StackedQ, q_tournament
from ope.estimators._crossfit import cross_fit_q, folds, temporal_differences
from ope.policies import TabularPolicy
from ope.problems import RandomMDP, RiverSwim, TabularProblem
from ope.validation import FloatArray

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "choice_of_q.json"
REPORT = HERE.parent / "docs" / "choice_of_q.md"
SIZES = (64, 256)
LOGS = 200

PROBLEMS: Mapping[str, Callable[[], TabularProblem]] = {
    "RiverSwim, 30 steps seen": lambda: RiverSwim(max_steps=30),
    "RandomMDP, one terminal": lambda: RandomMDP(terminals=1, random_state=1),
    "RandomMDP, ten states": lambda: RandomMDP(10, 2, terminals=1, random_state=3),
    "RandomMDP, horizon 5": lambda: RandomMDP(horizon=5, random_state=0),
}


def odd(states: FloatArray) -> FloatArray:
    """Return whether the number of a one-hot state is odd."""
    return np.asarray(np.eye(2)[states.argmax(axis=1) % 2])


WRONG = {"position": position, "constant": constant, "pairs": pairs, "odd or even": odd}


def candidates(right: bool) -> dict[str, LSTDQ]:
    """Return Q methods that see too little of the state, one that is shrunken, and, if wished, one with the right features."""
    made = {name: LSTDQ(features=FunctionTransformer(see)) for name, see in WRONG.items()}
    made["shrunken"] = LSTDQ(ridge=100.0)
    return {"right": LSTDQ(), **made} if right else made


# -------------------------------------------------------------------- study


def squared_differences(log: LoggedDataset, policy: Policy, q: Mapping[str, LSTDQ], gamma: float) -> dict[str, float]:
    """Return the mean squared temporal difference of each method on the folds it has not seen."""
    weight = np.ones(log.n_episodes)
    parts = list(folds("choice_of_q", log, weight, 5, 0))
    found = {}
    for name, method in q.items():
        fitted = cross_fit_q(clone(method).set_params(gamma=gamma), log, policy, weight, parts)
        found[name] = float(np.mean(temporal_differences(log.rewards, fitted, log.offsets, gamma) ** 2))
    return found


def repetition(problem: TabularProblem, n: int, right: bool, seed: int) -> dict[str, Any]:
    """Return values, choices and the stack's interval on one log."""
    log, gamma = problem.sample(n, random_state=seed), float(problem.default_gamma)
    policy, q = TabularPolicy(problem.target, state_code=problem.state_code), candidates(right)
    table = q_tournament(log, policy, q, gamma=gamma)
    squares = squared_differences(log, policy, q, gamma)
    stack = StackedQ(gamma=gamma, q=list(q.values())).fit(log, policy).estimate()
    low, high = stack.confidence_interval(0.95)
    return {
        "values": {name: round(float(value), 6) for name, value in table["value"].items()},
        "rejected": [name for name in table.index if table.loc[name, "rejected"]],
        "tournament": table.index[0],
        "squared": min(squares, key=squares.__getitem__),
        "stack": [round(float(x), 6) for x in (stack.value, low, high)] + [int(stack.verdict.level)],
    }


def study(logs: int) -> None:
    """Run what is missing and keep it as it comes."""
    kept = kept_cells(RESULTS)
    for name, make in PROBLEMS.items():
        for n in SIZES:
            for right in (True, False):
                row = partial(repetition, make(), n, right)
                fill(RESULTS, kept, f"{name}|{'with' if right else 'without'}|{n}", logs, row)


# -------------------------------------------------------------------- report


def line(key: str, rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the lines of a cell in the two tables."""
    name, right, n = key.split("|")
    problem = PROBLEMS[name]()
    truth = float(problem.value(problem.target, problem.default_gamma))
    values = {own: np.array([row["values"][own] for row in rows]) for own in rows[0]["values"]}
    errors = {own: value - truth for own, value in values.items()}
    rmse = {own: float(np.sqrt(np.mean(error**2))) for own, error in errors.items()}
    best, worst = min(rmse, key=rmse.__getitem__), max(rmse, key=rmse.__getitem__)
    chosen = {
        "stack": np.array([row["stack"][0] for row in rows]) - truth,
        "tournament": np.array([row["values"][row["tournament"]] for row in rows]) - truth,
        "squared": np.array([row["values"][row["squared"]] for row in rows]) - truth,
        "average": np.mean(list(errors.values()), axis=0),
    }
    nearest = np.min(np.abs(list(errors.values())), axis=0)
    _, low, high, level = np.array([row["stack"] for row in rows]).T
    covered, valid = (low <= truth) & (truth <= high), level == 0
    among = f", {covered[valid].mean():.2f}" if valid.any() else ""
    head = f"| {name} | {right} | {n} | {len(rows)} |"
    first = " | ".join(f"{np.sqrt(np.mean(chosen[own] ** 2)):.3f}" for own in chosen)
    regret = " | ".join(f"{np.mean(np.abs(chosen[own]) - nearest):.3f}" for own in chosen)
    picks = [np.mean([row[own] == "right" for row in rows]) for own in ("tournament", "squared")]
    told = [np.mean(["right" in row["rejected"] for row in rows])] if "right" in rmse else []
    told += [np.mean([len([own for own in row["rejected"] if own != "right"]) for row in rows])]
    kept = f"{told[0]:.2f}" if len(told) == 2 else "-"
    wrong = len(rmse) - (1 if "right" in rmse else 0)
    return (
        f"{head} {rmse[best]:.3f} ({best}) | {rmse[worst]:.3f} ({worst}) | {first} | {covered.mean():.2f} ({valid.mean():.0%}{among}) |",
        f"{head} {regret} | {picks[0]:.2f} | {picks[1]:.2f} | {kept} | {told[-1]:.1f} of {wrong} |",
    )


def report() -> None:
    """Write the tables between the marks of the page."""
    kept = json.loads(RESULTS.read_text())
    lines = [line(key, cell["rows"]) for key, cell in kept.items() if cell["rows"]]
    head = "| problem | right one | n | logs |"
    parts = [
        *["### Root mean squared error", ""],
        f"{head} best single | worst single | stack | tournament | squared TD | average | coverage of the stack (VALID, among these) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *[first for first, _ in lines],
        *[
            "",
            "### Regret: mean error less that of the candidate nearest to the truth in each log; what is chosen and rejected",
            "",
        ],
        f"{head} stack | tournament | squared TD | average | tournament takes the right one | squared TD does | right one rejected | wrong ones rejected |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *[second for _, second in lines],
    ]
    write_tables(REPORT, parts)


def main() -> None:
    """Run the study or write its page."""
    asked = options("choosing among Q functions", LOGS)
    if asked.verb == "report":
        report()
        return
    with quiet():
        study(asked.logs)


if __name__ == "__main__":
    main()
