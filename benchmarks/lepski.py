"""Lepski's choice beside every fixed setting of the knobs that it serves.

    python benchmarks/lepski.py run [--logs 100] [--only KNOB ...]     resumes where its file ends
    python benchmarks/lepski.py report                                 writes the tables of docs/lepski.md

A cell is a knob, a problem and a number of episodes; a row is a log, on which every setting and the choice is tried. The settings are in
the order of the choice: the least biased first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.preprocessing import FunctionTransformer
from studies import constant, fill, kept_cells, options, pairs, position, quiet, write_tables

from ope import Policy
from ope.estimate import Estimate
from ope.estimator import OffPolicyEstimator
from ope.estimators import (
    LSTDQ,
    DoubleReinforcementLearning,
    IncrementalIS,
    KernelIS,
    LepskiEstimator,
    WeightedIS,
)
from ope.policies import FunctionPolicy, TabularPolicy
from ope.problems import LinearGaussian, ModelWin, Problem, RandomMDP, RiverSwim, ScalarLQR

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "lepski.json"
REPORT = HERE.parent / "docs" / "lepski.md"
SIZES = (64, 256)
LOGS = 100
CHOICE = "Lepski"

PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "RandomMDP, horizon 5": lambda: RandomMDP(horizon=5, random_state=0),
    "RiverSwim, horizon 20": lambda: RiverSwim(horizon=20),
    "ModelWin, horizon 20": ModelWin,
    "RiverSwim, 30 steps seen": lambda: RiverSwim(max_steps=30),
    "RandomMDP, one terminal": lambda: RandomMDP(terminals=1, random_state=1),
    "RandomMDP, ten states": lambda: RandomMDP(10, 2, terminals=1, random_state=3),
    "ScalarLQR, to -.7 s": lambda: ScalarLQR(max_steps=10, target=LinearGaussian(-0.7, 0.0)),
    "ScalarLQR, to -.9 s": lambda: ScalarLQR(max_steps=10, target=LinearGaussian(-0.9, 0.0)),
}
FINITE = ("RandomMDP, horizon 5", "RiverSwim, horizon 20", "ModelWin, horizon 20")
ENDLESS = ("RiverSwim, 30 steps seen", "RandomMDP, one terminal", "RandomMDP, ten states")


@dataclass(frozen=True)
class Knob:
    """The settings of a knob, the least biased first, the choice among them, and where it is tried."""

    settings: Mapping[str, OffPolicyEstimator]
    choice: OffPolicyEstimator
    problems: tuple[str, ...]


def ladder(settings: dict[str, OffPolicyEstimator], problems: tuple[str, ...]) -> Knob:
    """Return a knob that `LepskiEstimator` serves."""
    return Knob(settings, LepskiEstimator(estimators=settings), problems)


def capped(q: LSTDQ) -> dict[str, OffPolicyEstimator]:
    """Return double reinforcement learning with its ratios capped."""
    caps = (None, 8.0, 4.0, 2.0, 1.0)
    return {
        "no cap" if cap is None else f"cap {cap:g}": DoubleReinforcementLearning(q=q, n_folds=2, ratio_cap=cap)
        for cap in caps
    }


SEEN = {"pairs": pairs, "position": position, "constant": constant}
WRONG = LSTDQ(features=FunctionTransformer(position))
KNOBS: Mapping[str, Callable[[], Knob]] = {
    "limit of weights (WeightedIS)": lambda: Knob(
        {"none": WeightedIS(), **{f"{clip:g}": WeightedIS(clip=clip) for clip in (100.0, 30.0, 10.0, 3.0, 1.0)}},
        WeightedIS(clip="lepski"),
        FINITE,
    ),
    "number of ratios (IncrementalIS)": lambda: Knob(
        {"all": IncrementalIS(window=None), **{f"{k}": IncrementalIS(window=k) for k in (8, 4, 2, 1)}},
        IncrementalIS(window="lepski"),
        FINITE,
    ),
    "bandwidth (KernelIS)": lambda: Knob(
        {f"{h:g}": KernelIS(bandwidth=h) for h in (0.05, 0.1, 0.2, 0.4)} | {"rule": KernelIS()},
        KernelIS(bandwidth="lepski"),
        ("ScalarLQR, to -.7 s", "ScalarLQR, to -.9 s"),
    ),
    "trace (LSTDQ, wrong features, Retrace)": lambda: ladder(
        {
            f"lambda {own:g}": LSTDQ(features=WRONG.features, trace="retrace", trace_lambda=own)
            for own in (1.0, 0.75, 0.5, 0.25, 0.0)
        },
        ENDLESS,
    ),
    "basis (LSTDQ)": lambda: ladder(
        {"states": LSTDQ(), **{own: LSTDQ(features=FunctionTransformer(see)) for own, see in SEEN.items()}}, ENDLESS
    ),
    "ridge (LSTDQ)": lambda: ladder({f"{ridge:g}": LSTDQ(ridge=ridge) for ridge in (0.0, 1.0, 10.0, 100.0)}, ENDLESS),
    "cap of ratios (DoubleRL, right Q)": lambda: ladder(capped(LSTDQ()), ENDLESS),
    "cap of ratios (DoubleRL, wrong Q)": lambda: ladder(capped(WRONG), ENDLESS),
}


# -------------------------------------------------------------------- study


def policy_of(problem: Problem) -> Policy:
    """Return the problem's own candidate."""
    target: Any = problem.target
    if isinstance(problem, ScalarLQR):
        return FunctionPolicy(predict=lambda states: target.gain * states[:, :1] + target.offset)
    return TabularPolicy(target, state_code=getattr(problem, "state_code", None))


def answer(estimate: Estimate) -> list[float]:
    """Return value, interval and verdict."""
    low, high = estimate.confidence_interval(0.95)
    return [round(float(x), 6) for x in (estimate.value, low, high)] + [int(estimate.verdict.level)]


def repetition(problem: Problem, knob: Knob, n: int, seed: int) -> dict[str, Any]:
    """Return what every setting and the choice say of a log."""
    log, policy, gamma = problem.sample(n, random_state=seed), policy_of(problem), float(problem.default_gamma)
    return {
        name: answer(estimator.set_params(gamma=gamma).fit(log, policy).estimate())
        for name, estimator in [*knob.settings.items(), (CHOICE, knob.choice)]
    }


def study(wanted: list[str], logs: int) -> None:
    """Run what is missing and keep it as it comes."""
    kept = kept_cells(RESULTS)
    for name in wanted:
        for n in SIZES:
            for place in KNOBS[name]().problems:
                row = partial(repetition, PROBLEMS[place](), KNOBS[name](), n)
                fill(RESULTS, kept, f"{name}|{place}|{n}", logs, row)


# -------------------------------------------------------------------- report


def measured(rows: list[dict[str, Any]], name: str, truth: float) -> tuple[float, str]:
    """Return the RMSE of a setting, and its coverage with the share of VALID and the coverage among these."""
    value, low, high, level = np.array([row[name] for row in rows], dtype=float).T
    covered, valid = (low <= truth) & (truth <= high), level == 0
    among = f", {covered[valid].mean():.2f}" if valid.any() else ""
    return float(np.sqrt(np.mean((value - truth) ** 2))), f"{covered.mean():.2f} ({valid.mean():.0%}{among})"


def line(key: str, rows: list[dict[str, Any]]) -> tuple[str, float, float]:
    """Return the line of a cell, and the errors of the choice and of the worst setting over that of the best."""
    _, place, n = key.split("|")
    problem = PROBLEMS[place]()
    truth = float(problem.value(problem.target, problem.default_gamma))
    found = {name: measured(rows, name, truth) for name in rows[0]}
    fixed = {name: found[name][0] for name in found if name != CHOICE}
    best, worst = min(fixed, key=fixed.__getitem__), max(fixed, key=fixed.__getitem__)
    least = next(iter(fixed))
    error, coverage = found[CHOICE]
    text = (
        f"| {place} | {n} | {len(rows)} | {fixed[least]:.3f}; {found[least][1]} | {fixed[best]:.3f} ({best}); {found[best][1]} | {fixed[worst]:.3f} ({worst}) "
        f"| {error:.3f}; {coverage} | {error / fixed[best]:.2f} |"
    )
    return text, error / fixed[best], fixed[worst] / fixed[best]


def report() -> None:
    """Write the tables between the marks of the page."""
    kept = json.loads(RESULTS.read_text())
    parts, summary = [], []
    for name in KNOBS:
        own = {key: cell["rows"] for key, cell in kept.items() if key.split("|")[0] == name and cell["rows"]}
        if not own:
            continue
        lines = [line(key, rows) for key, rows in own.items()]
        ratios = [float(np.exp(np.mean(np.log([found[place] for found in lines])))) for place in (1, 2)]
        summary.append(
            f"| {name} | {len(lines)} | {ratios[0]:.2f} | {max(own[1] for own in lines):.2f} | {ratios[1]:.2f} |"
        )
        parts += [
            *["", f"### {name}", ""],
            "| problem | n | logs | least biased setting | best setting | worst setting | Lepski's choice | over the best |",
            "|---|---|---|---|---|---|---|---|",
            *[text for text, _, _ in lines],
        ]
    head = [
        "| knob | cells | choice over best | in its worst cell | worst over best |",
        "|---|---|---|---|---|",
        *summary,
    ]
    write_tables(REPORT, [*head, *parts])


def main() -> None:
    """Run the study or write its page."""
    asked = options("Lepski's choice", LOGS, list(KNOBS))
    if asked.verb == "report":
        report()
        return
    with quiet():
        study(asked.only, asked.logs)


if __name__ == "__main__":
    main()
