"""Coverage and width of every interval method, one-sided and two-sided, and of the confidence sequences.

    python benchmarks/intervals.py large [--jobs 2]       methods for large samples, auto among them, on all kept logs
    python benchmarks/intervals.py bootstraps             kinds of bootstrap, from the intervals the coverage study keeps
    python benchmarks/intervals.py bounds [--jobs 2]      bounds for every n, on the logs of the same seeds
    python benchmarks/intervals.py anytime                sequences looked at after every episode
    python benchmarks/intervals.py model                  model-based bootstrap of few episodes
    python benchmarks/intervals.py report                 judge, tabulate, write results/intervals.csv and docs/intervals.md

They need what `benchmarks/coverage.py run` and `intervals` keep: values, influence vectors, diagnostics and bootstrap intervals
of 2,000 logs for each problem of `ope.problems` and each n. Empirical-likelihood and studentised intervals are
computed for all logs at once and compared with the library's on the first CHECKED; bounds come from the library alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from coverage import (
    DIAGNOSTICS,
    ESTIMATORS,
    LEVELS,
    METHODS,
    N_REPLICATES,
    PROBLEMS,
    SIZES,
    TUNING,
    cell_path,
    earned_span,
    ends_path,
    level_of,
    score_range,
    too_wide,
    upper_limit,
)
from interval_methods import LARGE, SEED, Ends, large_ends
from joblib import Parallel, delayed
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits

from ope import LoggedDataset, bootstrap, model_bootstrap
from ope.estimator import OffPolicyEstimator
from ope.estimators import LSTDQ, PerDecisionIS, TrajectoryIS
from ope.inference import (
    AdjustedT,
    Anderson,
    Auto,
    Betting,
    BettingSequence,
    Bootstrap,
    ConfidenceSequence,
    EmpiricalBernstein,
    EmpiricalBernsteinSequence,
    EmpiricalLikelihood,
    Hoeffding,
    IntervalMethod,
    IntervalNotAvailable,
    Normal,
    ReflectedBetting,
    StudentizedBootstrap,
    TruncatedBound,
    hash_identifiers,
    resampling_weights,
)
from ope.inference.methods import BootstrapKind
from ope.policies import TabularPolicy
from ope.policy import Policy
from ope.problems import ModelFail, Problem, RandomMDP, RiverSwim, TabularProblem
from ope.verdict import Level

HERE = Path(__file__).parent
KEPT = HERE / "results" / "coverage"
ENOUGH = 200
# `Auto` asks for nothing itself: it picks what the log is large enough for.
JUDGED = (Normal(), AdjustedT(), StudentizedBootstrap(), EmpiricalLikelihood(), Auto())
LEAST = {method.name: method.least_effective_size for method in JUDGED}
BOUNDS = ("hoeffding", "empirical_bernstein", "anderson", "truncated", "betting", "reflected_betting")

# -------------------------------------------------------------------- methods for large samples


def large_cell(name: str, n: int, repetitions: int) -> list[dict[str, Any]]:
    """Return a row per estimator and method of a cell."""
    counts = resampling_weights(hash_identifiers(np.arange(n)), N_REPLICATES, seed=SEED, kind="poisson")
    rows = []
    with np.load(cell_path(name, n)) as stored, threadpool_limits(limits=1):
        truth, span = float(stored["truth"]), earned_span(name, n)
        parts = (stored[key][:repetitions].astype(float) for key in ("values", "influences", "diagnostics"))
        values, psi, diagnostics = parts
        for e, estimator in enumerate(ESTIMATORS):
            sizes = (
                diagnostics[:, e, DIAGNOSTICS.index("ess")] if estimator != "LSTDQ" else np.full(len(values), np.nan)
            )
            judged = judge(estimator, diagnostics[:, e], psi[:, e], span)
            found = large_ends(values[:, e], psi[:, e], sizes, counts)
            for method in LARGE:
                levels = np.where(sizes < LEAST[method], np.maximum(judged, Level.CAUTION), judged)
                base = {"problem": name, "n": n, "estimator": estimator, "method": method}
                rows.append({**base, **figures(found[method], truth, levels)})
    return rows


def judge(estimator: str, diagnostics: np.ndarray, psi: np.ndarray, span: float) -> np.ndarray:
    """Return the verdicts of an estimator in all logs, before an interval method adds what it needs."""
    levels = np.array([level_of(estimator, row) for row in diagnostics])
    return np.asarray(np.maximum(levels, np.where(too_wide(psi, span), Level.CAUTION, Level.VALID)))


def figures(ends: Ends, truth: float, levels: np.ndarray) -> dict[str, Any]:
    """Return coverage, one-sided levels and width of a method in a cell: of all logs, and of those called VALID."""
    low, high, valid = ends[..., 0], ends[..., 1], levels == Level.VALID
    both, lower, upper = (low[:, 1] <= truth) & (truth <= high[:, 1]), low[:, 0] <= truth, truth <= high[:, 0]
    row: dict[str, Any] = {
        "repetitions": len(ends),
        "no interval": float(np.isnan(low[:, 1]).mean()),
        "valid": valid.mean(),
    }
    for label, mask in (("", np.ones(len(ends), dtype=bool)), (" if valid", valid)):
        total = int(mask.sum())
        row[f"logs{label}"] = total
        for side, covered in (("coverage 95", both), ("lower 95", lower), ("upper 95", upper)):
            row[side + label] = float(covered[mask].mean()) if total else np.nan
            row[f"{side}{label}, limit"] = upper_limit(int(covered[mask].sum()), total) if total else np.nan
    width = (high - low)[:, 1]
    return row | {"width 95": float(width[np.isfinite(width)].mean()) if np.isfinite(width).any() else np.nan}


# -------------------------------------------------------------------- bounds for every n


def return_range(problem: Problem, gamma: float) -> tuple[float, float]:
    """Return the range of the return of an episode of a problem with a horizon and bounded rewards."""
    assert problem.horizon is not None
    assert problem.reward_range is not None
    total = float(np.sum(gamma ** np.arange(problem.horizon)))
    return min(problem.reward_range[0], 0.0) * total, max(problem.reward_range[1], 0.0) * total


def bound_methods(problem: Problem, policy: Policy, gamma: float) -> dict[str, IntervalMethod]:
    """Return the bounds of a problem whose terms have a known range, else nothing."""
    scores = score_range(problem, policy, gamma)
    if scores is None:
        return {}
    makers: tuple[Callable[..., IntervalMethod], ...] = (
        Hoeffding,
        EmpiricalBernstein,
        Anderson,
        TruncatedBound,
        Betting,
    )
    found = {method.name: method for method in (make(*scores) for make in makers)}
    return {**found, "reflected_betting": ReflectedBetting(*return_range(problem, gamma))}


def bound_ends(name: str, n: int, kept: np.ndarray) -> dict[str, Ends]:
    """Return the intervals of every bound in logs with the seeds of kept ones, whose values must come out again."""
    problem, policy, _ = PROBLEMS[name].build()
    gamma = problem.default_gamma
    chosen = bound_methods(problem, policy, gamma)
    found: dict[str, list[Any]] = {method: [] for method in chosen}
    for seed, values in enumerate(kept if chosen else ()):
        log = problem.sample(n, random_state=seed)
        whole, steps = (make(gamma=gamma).fit(log, policy).estimate() for make in (TrajectoryIS, PerDecisionIS))
        np.testing.assert_allclose([whole.value, steps.value], values, rtol=1e-9)
        for key, method in chosen.items():
            estimate = whole if isinstance(method, ReflectedBetting) else steps
            found[key].append([tuple(estimate.confidence_interval(level, method)) for level in LEVELS])
    return {method: np.array(ends) for method, ends in found.items()}


def bounds_cell(name: str, n: int, repetitions: int) -> list[dict[str, Any]]:
    """Return a row per bound of a cell."""
    with np.load(cell_path(name, n)) as stored, threadpool_limits(limits=1):
        parts = (stored[key][:repetitions].astype(float) for key in ("values", "influences", "diagnostics"))
        (values, psi, diagnostics), truth, span = parts, float(stored["truth"]), earned_span(name, n)
        found, rows = bound_ends(name, n, values[:, :2]), []
    for method, ends in found.items():
        estimator = "IS" if method == "reflected_betting" else "PDIS"
        column = list(ESTIMATORS).index(estimator)
        levels = judge(estimator, diagnostics[:, column], psi[:, column], span)
        rows.append({"problem": name, "n": n, "estimator": estimator, "method": method, **figures(ends, truth, levels)})
    return rows


# -------------------------------------------------------------------- anytime


@dataclass(frozen=True)
class Stream:
    """Per-episode terms: how a run of them is drawn, their mean and their range."""

    draw: Callable[[int], np.ndarray]
    truth: float
    bounds: tuple[float, float]


def per_decision_stream(name: str) -> Stream:
    """Return the per-decision importance sampling terms of a problem."""
    problem, policy, truth = PROBLEMS[name].build()
    gamma = problem.default_gamma
    bounds = score_range(problem, policy, gamma)
    assert bounds is not None

    def draw(seed: int) -> np.ndarray:
        log = problem.sample(N_EPISODES, random_state=seed)
        return np.asarray(PerDecisionIS(gamma=gamma).fit(log, policy).estimate().scores)

    return Stream(draw, truth, bounds)


def anytime_streams() -> dict[str, Stream]:
    """Return what the sequences are run on."""
    streams = {
        f"{name}, per-decision terms": per_decision_stream(name) for name in ("ModelFail mild", "Graph H=4 mild")
    }

    def rare(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).binomial(1, 0.1, N_EPISODES).astype(np.float64)

    return {**streams, "0 or 1, mean .1": Stream(rare, 0.1, (0.0, 1.0))}


N_EPISODES = 2000
RUNS = 500
CLOSELY = 10  # runs with an update for every episode, which must agree
SEQUENCES: Mapping[str, type[ConfidenceSequence]] = {
    "BettingSequence": BettingSequence,
    "EmpiricalBernsteinSequence": EmpiricalBernsteinSequence,
}


def watch(sequence: ConfidenceSequence, scores: np.ndarray, truth: float) -> tuple[bool, float]:
    """Return whether the truth was inside after every episode, and the last width.

    An interval of a sequence is the intersection of all before it, after whole updates too: the last one tells.
    """
    try:
        low, high = sequence.update(scores).interval
    except IntervalNotAvailable:
        return False, 0.0
    return low <= truth <= high, high - low


def watch_closely(sequence: ConfidenceSequence, scores: np.ndarray, truth: float) -> tuple[bool, float]:
    """Do the same with an update for every episode."""
    inside = True
    for score in scores:
        low, high = sequence.update(score).interval
        inside &= low <= truth <= high
    return inside, high - low


def watch_normal(scores: np.ndarray, truth: float, first: int = 30) -> tuple[bool, float]:
    """Look at the t interval after every episode from the 30th on: what a sequence is for."""
    n = np.arange(1, len(scores) + 1)
    mean = np.cumsum(scores) / n
    variance = np.maximum(np.cumsum(scores**2) - n * mean**2, 0.0) / np.maximum(n - 1, 1)
    radius = stdtrit(np.maximum(n - 1, 1), 0.975) * np.sqrt(variance / n)
    return bool((np.abs(mean - truth) <= radius)[first - 1 :].all()), float(2.0 * radius[-1])


def watch_all(stream: Stream, seed: int) -> dict[str, tuple[bool, float]]:
    """Watch every sequence, and the t interval, on one run."""
    scores, truth, bounds = stream.draw(10**6 + seed), stream.truth, stream.bounds
    found = {name: watch(make(*bounds), scores, truth) for name, make in SEQUENCES.items()}
    for name, make in SEQUENCES.items() if seed < CLOSELY else ():
        inside, width = watch_closely(make(*bounds), scores, truth)
        assert inside == found[name][0]
        assert abs(width - found[name][1]) <= 1e-9 * (bounds[1] - bounds[0])
    return {**found, "t interval (from 30 on)": watch_normal(scores, truth)}


def anytime() -> None:
    """Run the sequences and keep what they covered."""
    found: list[dict[str, Any]] = []
    for name, stream in anytime_streams().items():
        runs = [watch_all(stream, seed) for seed in range(RUNS)]
        for method in runs[0]:
            covered, width = sum(run[method][0] for run in runs), float(np.mean([run[method][1] for run in runs]))
            base = {"stream": name, "method": method, "runs": RUNS, "episodes": N_EPISODES}
            found.append(
                {**base, "always covered": covered / RUNS, "limit": upper_limit(covered, RUNS), "last width": width}
            )
            print(found[-1], flush=True)
    keep("anytime", found)


# -------------------------------------------------------------------- model-based bootstrap


def model_problems() -> dict[str, TabularProblem]:
    """Return tabular problems on which LSTDQ is nearly unbiased, and one whose states hide what matters."""
    return {
        "RiverSwim H=10": RiverSwim(horizon=10),
        "RandomMDP H=5 seed 0": RandomMDP(horizon=5, random_state=0),
        "ModelFail": ModelFail(),
    }


def few_ends(estimator: OffPolicyEstimator, log: LoggedDataset, policy: Policy, replicates: int) -> dict[str, Ends]:
    """Return the intervals of one small log by method."""
    simulated = model_bootstrap(estimator, log, policy, n_replicates=replicates)
    resampled = bootstrap(estimator, log, policy, n_replicates=replicates)
    return {
        "default": np.array(tuple(simulated.confidence_interval(method="adjusted_t"))),
        "model, percentile": np.array(tuple(simulated.confidence_interval(method="percentile"))),
        "episodes, percentile": np.array(tuple(resampled.confidence_interval(method="percentile"))),
    }


def model(repetitions: int, replicates: int = 59) -> None:
    """Compare the model-based bootstrap with the one over episodes and the default interval, on few episodes."""
    found: list[dict[str, Any]] = []
    for n, (name, problem) in product((32, 16), model_problems().items()):
        policy = TabularPolicy(problem.target, state_code=problem.state_code)
        truth, estimator = problem.value(policy), LSTDQ(gamma=problem.default_gamma)
        logs = (problem.sample(n, random_state=seed) for seed in range(repetitions))
        drawn = [few_ends(estimator, log, policy, replicates) for log in logs]
        for method in drawn[0]:
            low, high = np.array([ends[method] for ends in drawn]).T
            covered = float(((low <= truth) & (truth <= high)).mean())
            base = {"problem": name, "n": n, "method": method, "repetitions": repetitions}
            found.append({**base, "coverage 95": covered, "width 95": float(np.mean(high - low))})
            print(found[-1], flush=True)
        keep("model", found)


# -------------------------------------------------------------------- report


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Keep the rows of one part."""
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"intervals_{name}.json").write_text(json.dumps(rows, indent=1))


def kept_rows(name: str) -> pd.DataFrame:
    """Return the rows of one part."""
    return pd.DataFrame(json.loads((KEPT / f"intervals_{name}.json").read_text()))


def main() -> None:
    """Run a part or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["large", "bootstraps", "bounds", "anytime", "model", "report"])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=500, help="of the 2,000 kept")
    arguments = parser.parse_args()
    if arguments.action in ("anytime", "model", "report"):
        model(arguments.repetitions) if arguments.action == "model" else {"anytime": anytime, "report": report}[
            arguments.action
        ]()
        return
    cells = [(name, n) for n in SIZES for name in PROBLEMS]
    if arguments.action == "large":
        tasks = [delayed(large_cell)(name, n, arguments.repetitions) for name, n in cells]
    elif arguments.action == "bootstraps":
        tasks = [delayed(bootstrap_cell)(name, n) for name, n in cells]
    else:
        tasks = [delayed(bounds_cell)(name, n, arguments.repetitions) for name, n in cells]
    rows: list[dict[str, Any]] = []
    for found in Parallel(n_jobs=arguments.jobs, return_as="generator")(tasks):
        rows += found
        if found:
            print(found[0]["problem"], found[0]["n"], flush=True)
    keep(arguments.action, rows)


# -------------------------------------------------------------------- bootstrap kinds, as the coverage study keeps them


def bootstrap_cell(name: str, n: int) -> list[dict[str, Any]]:
    """Return a row per estimator and kind of bootstrap of a cell; nothing where its intervals have not been computed."""
    if not ends_path(name, n).exists():
        return []
    with np.load(cell_path(name, n)) as stored, np.load(ends_path(name, n)) as kept:
        ends, truth, span = kept["ends"].astype(float), float(stored["truth"]), earned_span(name, n)
        psi, diagnostics = stored["influences"].astype(float), stored["diagnostics"].astype(float)
    if ends.shape[2] != len(METHODS):
        return []
    rows = []
    for (e, estimator), kind in product(enumerate(ESTIMATORS), get_args(BootstrapKind)):
        sizes = diagnostics[:, e, DIAGNOSTICS.index("ess")] if estimator != "LSTDQ" else np.full(len(psi), np.nan)
        judged = judge(estimator, diagnostics[:, e], psi[:, e], span)
        levels = np.where(sizes < Bootstrap(kind).least_effective_size, np.maximum(judged, Level.CAUTION), judged)
        base = {"problem": name, "n": n, "estimator": estimator, "method": kind}
        rows.append({**base, **figures(ends[:, e, METHODS.index(kind)], truth, levels)})
    return rows


# -------------------------------------------------------------------- the page


def report() -> None:
    """Write the table and the page."""
    parts = [name for name in ("large", "bootstraps", "bounds") if (KEPT / f"intervals_{name}.json").exists()]
    rows = pd.concat([kept_rows(name) for name in parts], ignore_index=True)
    rows.insert(1, "half", np.where(rows["problem"].isin(TUNING), "tuning", "reporting"))
    rows.round(4).to_csv(HERE / "results" / "intervals.csv", index=False)
    bounds = rows["method"].isin(BOUNDS)
    sections = [INTRODUCTION, large_section(rows[~bounds]), bound_section(rows[bounds])]
    sections += [section() for name, section in LATER.items() if (KEPT / f"intervals_{name}.json").exists()]
    sections.append(auto_section(rows[rows["method"] == "auto"]))
    (HERE.parent / "docs" / "intervals.md").write_text("\n\n".join(sections) + "\n")


INTRODUCTION = """# Coverage of every interval method

Written by `python benchmarks/intervals.py report` from `benchmarks/results/intervals.csv`; the other actions of that script compute it.
Nominal level 95 %; *lower* and *upper* are the levels of the one-sided 95 % bounds, which fail separately where psi is skewed. A cell is
a problem, a number of episodes (32, 128, 512), an estimator and a method. *Limit* is the 99 % Clopper-Pearson upper limit of a
coverage: a cell under-covers where the limit is below the nominal level (methods that hold for every number of episodes), or below
.93 (methods that hold for many, on logs called VALID)."""


def large_section(rows: pd.DataFrame) -> str:
    """Return what VALID logs cover, by method and half."""
    lines = [
        "## Methods for many episodes, on VALID logs",
        "",
        f"Cells with at least {ENOUGH} VALID logs, seven estimators, {len(PROBLEMS)} problems; *VALID* is the share over all logs of all cells, "
        "so that caution is not bought by refusing everything, and *width* the mean width beside the t interval's in the same cells.",
        "A method whose `least_effective_size` exceeds the effective sample of a log makes its interval CAUTION there.",
    ]
    widths = rows[rows["method"] == "normal"].set_index(["problem", "n", "estimator"])["width 95"]
    for half in ("tuning", "reporting"):
        table = [
            large_line(method, part, widths)
            for method, part in rows[rows["half"] == half].groupby("method", sort=False)
        ]
        lines += ["", f"### The {half} problems", "", pipe(pd.DataFrame(table))]
    return "\n".join(lines)


def large_line(method: Any, part: pd.DataFrame, widths: pd.Series[float]) -> dict[str, Any]:
    """Return one method's line."""
    judged = part[part["logs if valid"] >= ENOUGH]
    relative = (
        judged["width 95"].to_numpy()
        / widths.reindex(pd.MultiIndex.from_frame(judged[["problem", "n", "estimator"]])).to_numpy()
    )
    return {
        "method": method,
        "repetitions": int(part["repetitions"].min()),
        "VALID": part["valid"].mean(),
        "cells": len(judged),
        "under-covering": int((judged["coverage 95 if valid, limit"] < 0.93).sum()),
        "least limit": judged["coverage 95 if valid, limit"].min(),
        "coverage, mean": judged["coverage 95 if valid"].mean(),
        "least": judged["coverage 95 if valid"].min(),
        "lower, mean": judged["lower 95 if valid"].mean(),
        "lower, least": judged["lower 95 if valid"].min(),
        "upper, mean": judged["upper 95 if valid"].mean(),
        "upper, least": judged["upper 95 if valid"].min(),
        "width": float(np.mean(relative)) if len(relative) else np.nan,
    }


def bound_section(rows: pd.DataFrame) -> str:
    """Return coverage and width of the bounds on all logs, whatever their verdict."""
    limits = [f"{side}, limit" for side in ("coverage 95", "lower 95", "upper 95")]
    failing = int((rows[limits] < 0.95).any(axis=1).sum())
    lines = [
        "## Bounds for every number of episodes, on all logs",
        "",
        f"{len(rows)} cells of {int(rows['repetitions'].min())} logs, whatever their verdict; {failing} of them under-cover (two-sided, lower or upper: limit below "
        ".95). Ranges are a priori: of the per-decision terms (reward range times the largest product of ratios) for all but `reflected_betting`, which needs "
        "the range of the return alone.",
    ]
    for column, title in (("coverage 95", "Coverage"), ("width 95", "Mean width")):
        table = rows.pivot_table(index=["problem", "n"], columns="method", values=column, sort=False)[
            list(BOUNDS)
        ].reset_index()
        lines += ["", f"### {title}", "", pipe(table)]
    return "\n".join(lines)


def anytime_section() -> str:
    """Return what the sequences covered."""
    words = (
        f"{RUNS} runs of {N_EPISODES:,} episodes; *always covered*: the truth was inside after every single episode, at nominal 95 %. The t interval, looked at as "
        "often, shows what a sequence is for."
    )
    return "\n".join(["## Looked at after every episode", "", words, "", pipe(kept_rows("anytime"))])


def model_section() -> str:
    """Return what the model-based bootstrap covered."""
    words = (
        "LSTDQ on few episodes: replicates simulated from the tabular model of the log (`ope.model_bootstrap`), replicates of resampled episodes "
        "(`ope.bootstrap`), both by percentile, and the default interval. ModelFail hides what matters from its states: no model-based answer is right there."
    )
    return "\n".join(["## Model-based bootstrap", "", words, "", pipe(kept_rows("model"))])


LATER: Mapping[str, Callable[[], str]] = {"anytime": anytime_section, "model": model_section}


def auto_section(rows: pd.DataFrame) -> str:
    """Return all cells of `auto`."""
    shown = ["problem", "n", "estimator", "coverage 95", "lower 95", "upper 95", "valid"]
    shown += ["coverage 95 if valid", "lower 95 if valid", "upper 95 if valid", "coverage 95 if valid, limit"]
    return "\n".join(
        [
            "## All cells of `auto`",
            "",
            pipe(rows[shown].rename(columns={"coverage 95 if valid, limit": "limit if valid"})),
        ]
    )


def pipe(table: pd.DataFrame) -> str:
    """Return a markdown table."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * table.shape[1]]
    lines.extend("| " + " | ".join(map(shown, row)) + " |" for row in table.itertuples(index=False))
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a number with three digits."""
    if not isinstance(value, float):
        return str(value)
    return "" if np.isnan(value) else f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:.3g}"


if __name__ == "__main__":
    main()
