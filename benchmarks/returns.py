"""Bands, variance, CVaR and quantiles of the return under a candidate, against exact distributions.

    python benchmarks/returns.py [--repetitions 300] [--again]

Every cell (problem, number of episodes) is an entry of ``benchmarks/results/returns.json``, from which the study resumes, or with
``--again`` starts anew;
``docs/returns.md`` holds the tables, between its markers, and is written from it. Exact distributions come from enumerating
(state, return) pairs forward in time.
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

from ope.estimate import Estimate
from ope.files import replace_file
from ope.policies import TabularPolicy
from ope.problems import ModelWin, RandomMDP, TabularProblem
from ope.return_sample import METHODS
from ope.returns import ReturnDistribution, return_distribution
from ope.validation import FloatArray
from ope.verdict import Level, Verdict

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "returns.json"
REPORT = ROOT.parent / "docs" / "returns.md"
MARK = "<!-- tables: written by benchmarks/returns.py -->"
SIZES = (64, 256, 1024)
LEVEL, SHARE = 0.95, 0.2
QUANTILES = (0.1, 0.5, 0.9)
N_REPLICATES = 1000
NAMES = ("band", "variance", "lower CVaR", "upper CVaR", "quantile 0.1", "quantile 0.5", "quantile 0.9")
VALID = Verdict()
Law = tuple[FloatArray, FloatArray]
Row = tuple[float, float, float, float]


def problems() -> dict[str, tuple[TabularProblem, float]]:
    """Return the problems with their discount factors."""
    return {
        "ModelWin, 20 steps": (ModelWin(), 1.0),
        "ModelWin, 6 steps": (ModelWin(horizon=6), 1.0),
        "RandomMDP A": (rounded(RandomMDP(4, 2, horizon=4, exploration=0.6, random_state=3)), 1.0),
        "RandomMDP B": (rounded(RandomMDP(5, 3, horizon=3, exploration=0.4, random_state=5)), 1.0),
        "RandomMDP C": (rounded(RandomMDP(4, 2, horizon=5, exploration=0.5, random_state=21)), 1.0),
        "RandomMDP D": (rounded(RandomMDP(6, 2, horizon=3, exploration=0.7, random_state=22)), 1.0),
    }


def rounded(problem: RandomMDP) -> TabularProblem:
    """Return the problem with rewards that are multiples of 1/4: about 25 different returns instead of thousands."""
    process = problem.process
    return TabularProblem(
        process.transitions,
        np.round(4.0 * process.rewards) / 4.0,
        process.initial,
        behavior=problem.behavior,
        target=problem.target,
        horizon=problem.horizon,
    )


# -------------------------------------------------------------------- exact distributions


def exact_law(problem: TabularProblem, table: FloatArray, gamma: float) -> Law:
    """Return every return that an episode of a policy can have, rising, and its probability."""
    process, codes = problem.process, problem.observation
    assert problem.horizon is not None
    alive: dict[tuple[int, float], float] = {(s, 0.0): float(p) for s, p in enumerate(process.initial) if p > 0}
    for t in range(problem.horizon):
        following: dict[tuple[int, float], float] = defaultdict(float)
        for (s, g), p in alive.items():
            chances = table[codes[s]][:, None] * process.transitions[s]
            for a, s_next in zip(*np.nonzero(chances), strict=True):
                total = round(g + gamma**t * float(process.rewards[s, a, s_next]), 9)
                following[int(s_next), total] += p * float(chances[a, s_next])
        alive = following
    merged: dict[float, float] = defaultdict(float)
    for (_, g), p in alive.items():
        merged[g] += p
    points = np.array(sorted(merged))
    return points, np.array([merged[g] for g in points])


def exact_numbers(law: Law) -> dict[str, float]:
    """Return variance, CVaR of both tails and quantiles."""
    points, mass = law
    numbers = {"variance": float(mass @ points**2 - (mass @ points) ** 2)}
    numbers["lower CVaR"] = _worst(points, mass)
    numbers["upper CVaR"] = -_worst(-points[::-1], mass[::-1])
    for p in QUANTILES:
        numbers[f"quantile {p}"] = float(points[np.searchsorted(np.cumsum(mass), p - 1e-12)])
    return numbers


def _worst(points: FloatArray, mass: FloatArray) -> float:
    part = np.diff(np.minimum(np.cumsum(mass), SHARE), prepend=0.0)
    return float(part @ points / SHARE)


# -------------------------------------------------------------------- simulation


def measured(law: ReturnDistribution, truth: Law, exact: dict[str, float]) -> list[Row]:
    """Return value, whether the truth is inside, width and verdict, for each of NAMES."""
    estimates = (law.variance(), law.cvar(SHARE), law.cvar(SHARE, tail="upper"))
    found = [_band(law.cdf, (law.low, law.high), _exact_cdf(truth, law.returns), law.verdict)]
    found += [_inside(estimate, exact[name]) for estimate, name in zip(estimates, NAMES[1:4], strict=True)]
    for p in QUANTILES:
        interval, true = law.quantile_interval(p), exact[f"quantile {p}"]
        inside = float(interval.low - 1e-7 <= true <= interval.high + 1e-7)
        found.append((law.quantile(p), inside, interval.high - interval.low, float(interval.verdict.level)))
    return found


def _band(cdf: FloatArray, band: tuple[FloatArray, FloatArray], f: FloatArray, verdict: Verdict = VALID) -> Row:
    inside = np.all((band[0] <= f + 1e-9) & (f <= band[1] + 1e-9))
    return float(np.abs(cdf - f).max()), float(inside), float(np.mean(band[1] - band[0])), float(verdict.level)


def _exact_cdf(truth: Law, x: FloatArray) -> FloatArray:
    return np.append(0.0, np.cumsum(truth[1]))[np.searchsorted(truth[0], x + 1e-7, side="right")]


def _inside(estimate: Estimate, exact: float) -> Row:
    interval = estimate.confidence_interval(LEVEL)
    return estimate.value, float(exact in interval), interval.high - interval.low, float(interval.verdict.level)


def run_cell(name: str, n: int, repetitions: int) -> dict[str, Any]:
    """Simulate one cell and return its summary, method by method."""
    problem, gamma = problems()[name]
    truth, logged = (exact_law(problem, table, gamma) for table in (problem.target, problem.behavior))
    exact, policy, start = exact_numbers(truth), TabularPolicy(problem.target), time.process_time()
    rows: dict[str, list[Any]] = defaultdict(list)
    ess = []
    for seed in range(repetitions):
        log = problem.sample(n, random_state=np.random.default_rng([n, seed]))
        for method in METHODS:
            law = return_distribution(log, policy, gamma=gamma, method=method, n_replicates=N_REPLICATES)
            rows[method].append(measured(law, truth, exact))
        sure = return_distribution(log, policy, gamma=gamma, band="finite_sample", n_replicates=100)
        rows["finite sample"].append([_band(sure.cdf, (sure.low, sure.high), _exact_cdf(truth, sure.returns))])
        rows["logged DKW"].append([_band(sure.logged_cdf, sure.logged_band(), _exact_cdf(logged, sure.returns))])
        ess.append(sure.ess)
    return {
        "repetitions": repetitions,
        "seconds": round(time.process_time() - start, 1),
        "median_ess": float(np.median(ess)),
        "exact": exact,
        "methods": {method: _summary(np.array(values), exact) for method, values in rows.items()},
    }


def _summary(values: FloatArray, exact: dict[str, float]) -> dict[str, Any]:
    """Return for each number: bias, root mean squared error, coverage, width, and coverage where the verdict was VALID."""
    return {name: _row(values[:, k], exact.get(name, 0.0)) for k, name in enumerate(NAMES[: values.shape[1]])}


def _row(rows: FloatArray, exact: float) -> dict[str, Any]:
    error, finite = rows[:, 0] - exact, np.isfinite(rows[:, 0])
    valid = rows[:, 3] == Level.VALID
    return {
        "bias": float(error[finite].mean()) if finite.any() else None,
        "rmse": float(np.sqrt(np.mean(error[finite] ** 2))) if finite.any() else None,
        "failed": int((~finite).sum()),
        "coverage": float(rows[:, 1].mean()),
        "width": float(np.median(rows[finite, 2])) if finite.any() else None,
        "refused": float(np.mean(rows[:, 3] == Level.REFUSE)),
        "valid": float(valid.mean()),
        "coverage_valid": float(rows[valid, 1].mean()) if valid.any() else None,
    }


# -------------------------------------------------------------------- tables


WORDS = "in brackets: share of logs with verdict VALID, and coverage over these"


def tables(results: dict[str, Any]) -> str:
    """Return the tables of the page."""
    count = next(iter(results.values()))["repetitions"]
    noise = 1.96 * np.sqrt(LEVEL * (1.0 - LEVEL) / count)
    lines = [f"{count} logs a row; coverage of nominal {LEVEL:.0%} is known to ± {noise:.3f} where it holds.", ""]
    lines += ["### Bands", "", f"Coverage of the whole function; mean width ({WORDS}).", ""]
    shown = (*METHODS, "finite sample", "logged DKW")
    lines += [_line(["problem", "n", "median ESS", *shown]), "|" + "---|" * 8]
    for cell, result in results.items():
        parts = [_band_part(result["methods"][method]["band"], method) for method in shown]
        lines.append(_line([cell.replace("|", " | "), f"{result['median_ess']:.0f}", *parts]))
    for name in NAMES[1:]:
        lines += _number_table(results, name)
    return "\n".join([MARK, "", *lines, ""])


def _number_table(results: dict[str, Any], name: str) -> list[str]:
    lines = ["", f"### {name[0].upper()}{name[1:]}", "", f"Root mean squared error; coverage ({WORDS}).", ""]
    lines += [_line(["problem", "n", "exact", *METHODS]), "|" + "---|" * 6]
    for cell, result in results.items():
        parts = [_error(result["methods"][method][name]) for method in METHODS]
        lines.append(_line([cell.replace("|", " | "), f"{result['exact'][name]:.3f}", *parts]))
    return lines


def _line(parts: list[str]) -> str:
    return "| " + " | ".join(parts) + " |"


def _band_part(row: dict[str, Any], method: str) -> str:
    coverage = _coverage(row) if method in METHODS else f"{row['coverage']:.3f}"
    return f"{coverage}; {row['width']:.2f}"


def _error(row: dict[str, Any]) -> str:
    if row["rmse"] is None:
        return "no value"
    failed = f"; {row['failed']} without value" if row["failed"] else ""
    return f"{row['rmse']:.3f}; {_coverage(row)}{failed}"


def _coverage(row: dict[str, Any]) -> str:
    valid = "" if row["coverage_valid"] is None else f", {row['coverage_valid']:.3f}"
    return f"{row['coverage']:.3f} ({row['valid']:.0%}{valid})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    repetitions = args.repetitions
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() and not args.again else {}
    with threadpool_limits(1):
        for n in SIZES:
            for name in problems():
                cell = f"{name}|{n}"
                if results.get(cell, {}).get("repetitions") != repetitions:
                    results[cell] = run_cell(name, n, repetitions)
                    replace_file(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
                    print(cell, results[cell]["seconds"], flush=True)
    cells = [f"{name}|{n}" for name in problems() for n in SIZES]
    ordered = {cell: results[cell] for cell in cells}
    text = REPORT.read_text() if REPORT.exists() else ""
    replace_file(REPORT, (text.split(MARK)[0] + tables(ordered)).encode())


if __name__ == "__main__":
    main()
