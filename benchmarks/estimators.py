"""Relative mean squared error and coverage of every estimator on the reference problems.

    python benchmarks/estimators.py run [--repetitions 100] [--jobs 2] [--only NAME ...]   resumes where its files end
    python benchmarks/estimators.py run --neural --repetitions 10                          neural methods, n = 1024
    python benchmarks/estimators.py again NAME [NAME ...]                                  forget the rows of an estimator
    python benchmarks/estimators.py report                                                 write docs/estimators.md and .png

One file for each problem and number of episodes keeps a row for every run: estimator, seed, value, 95 % interval, verdict,
seconds, or the reason why there is no value.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.linear_model import LinearRegression
from threadpoolctl import threadpool_limits

import ope.estimators as estimators
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import OffPolicyEstimator
from ope.inference import IntervalNotAvailable
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.policy import Policy
from ope.problems import (
    Baird,
    Graph,
    Hybrid,
    LinearGaussian,
    ModelFail,
    ModelWin,
    Problem,
    RandomMDP,
    RiverSwim,
    ScalarLQR,
    TabularProblem,
)

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "estimators"
SIZES = (64, 256, 1024)
SAVE_EVERY = 5

PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "ModelFail": ModelFail,
    "ModelWin": ModelWin,
    "Hybrid": Hybrid,
    "Graph": lambda: Graph(horizon=16),
    "RiverSwim": lambda: RiverSwim(max_steps=50),
    "RiverSwim H=20": lambda: RiverSwim(horizon=20),
    "ScalarLQR": lambda: ScalarLQR(max_steps=30),
    "ScalarLQR deterministic": lambda: ScalarLQR(max_steps=30, target=LinearGaussian(-0.7, 0.0)),
    "RandomMDP": lambda: RandomMDP(terminals=1, random_state=1),
    "RandomMDP H=5": lambda: RandomMDP(horizon=5, random_state=0),
    "Baird": lambda: Baird(max_steps=30),
}
NEURAL_PROBLEMS = ("RiverSwim H=20", "ScalarLQR", "RandomMDP")

LINEAR: dict[str, Any] = {"regressor": LinearRegression(fit_intercept=False), "features": "auto"}


def build(name: str, **settings: Any) -> Callable[[float], OffPolicyEstimator]:
    """Return a maker of an estimator of the library for a gamma."""
    return lambda gamma: getattr(estimators, name)(gamma=gamma, **settings)


def dice(point: str, **settings: Any) -> Callable[[float], OffPolicyEstimator]:
    """Return a maker of one of the named points of the DICE family."""
    return lambda gamma: getattr(estimators.DICE, point)(gamma=gamma, **settings)


ESTIMATORS: Mapping[str, Callable[[float], OffPolicyEstimator]] = {
    "default": build("DefaultEstimator"),
    "IS": build("TrajectoryIS"),
    "PDIS": build("PerDecisionIS"),
    "WIS": build("WeightedIS", per_decision=False),
    "WPDIS": build("WeightedIS"),
    "WPDIS clip lepski": build("WeightedIS", clip="lepski"),
    "ControlVariateIS": build("ControlVariateIS"),
    "IncrementalIS": build("IncrementalIS"),
    "KernelIS": build("KernelIS"),
    "DR": build("DoublyRobust"),
    "WDR": build("DoublyRobust", weighted=True),
    "DR mrdr": build("DoublyRobust", q=estimators.FittedQEvaluation(loss="mrdr")),
    "EfficientDR": build("EfficientDoublyRobust"),
    "MAGIC": build("MAGIC"),
    "DoubleRL": build("DoubleReinforcementLearning"),
    "LSTD": build("LSTD"),
    "LSTDQ": build("LSTDQ"),
    "LSTDQ retrace(1)": build("LSTDQ", trace="retrace"),
    "LSTDQ tree_backup(1)": build("LSTDQ", trace="tree_backup"),
    "LSTDQ q_lambda(.5)": build("LSTDQ", trace="q_lambda", trace_lambda=0.5),
    "FQE linear": build("FittedQEvaluation", **LINEAR),
    "FQE q_regression": build("FittedQEvaluation", loss="q_regression", **LINEAR),
    "MarginalizedIS": build("MarginalizedIS"),
    "StateMarginalIS": build("StateMarginalIS"),
    "DualDICE": dice("dual"),
    "GenDICE": dice("gen"),
    "BestDICE": dice("best"),
    "AlgaeDICE": dice("algae"),
    "GradientDICE": build("GradientDICE"),
    "COP-TD": build("COPTD"),
    "MWL": build("MinimaxWeightLearning"),
    "MWL kernel": build("MinimaxWeightLearning", discriminator="kernel"),
    "MQL": build("MinimaxQLearning"),
    "MQL kernel": build("MinimaxQLearning", discriminator="kernel"),
    "CoinDICE": build("CoinDICE"),
    "ModelBased": build("ModelBased"),
    "LinearGaussianModel": build("LinearGaussianModel"),
    "BellmanCalibrated": build("BellmanCalibrated"),
    "StackedQ": build("StackedQ"),
    "Lepski (DoubleRL caps)": build("LepskiEstimator"),
}
NETWORK = estimators.NeuralFunctions(n_updates=1500)
# With networks, minimax weight learning is DualDICE to the last digit.
NEURAL: Mapping[str, Callable[[float], OffPolicyEstimator]] = {
    "neural FQE": build("NeuralFittedQEvaluation", hidden=(64, 64)),
    "DR neural FQE": build("DoublyRobust", q=estimators.NeuralFittedQEvaluation(hidden=(64, 64)), n_folds=2),
    "neural DualDICE": dice("dual", network=NETWORK),
    "neural GenDICE": dice("gen", network=NETWORK),
    "neural BestDICE": dice("best", network=NETWORK),
    "neural AlgaeDICE": dice("algae", network=NETWORK),
    "neural GradientDICE": build("GradientDICE", network=NETWORK),
    "neural MQL": build("MinimaxQLearning", network=NETWORK),
    "neural ModelEnsemble": build("ModelEnsemble", n_updates=1500),
}

COLUMNS = ["estimator", "seed", "value", "std_error", "low", "high", "verdict", "seconds", "error"]


# -------------------------------------------------------------------- runs


def target_of(problem: Problem) -> Policy:
    """Return the problem's own candidate as a policy."""
    target: Any = problem.target
    if isinstance(problem, TabularProblem):
        return TabularPolicy(target, state_code=problem.state_code)
    if target.std == 0.0:
        return FunctionPolicy(predict=lambda states: target.gain * states[:, :1] + target.offset)
    return GaussianPolicy(mean=[target.gain], std=target.std, intercept=target.offset)


def one_run(
    maker: Callable[[float], OffPolicyEstimator], log: LoggedDataset, policy: Policy, gamma: float
) -> dict[str, Any]:
    """Return what one estimator says of one log."""
    start = time.perf_counter()
    try:
        estimate: Estimate = maker(gamma).fit(log, policy).estimate()
    except (ValueError, TypeError) as reason:
        return {"error": str(reason)[:200]}
    row: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "value": estimate.value,
        "std_error": estimate.std_error,
    }
    row["verdict"] = estimate.verdict.level.name
    try:
        row["low"], row["high"] = estimate.confidence_interval(0.95)
    except IntervalNotAvailable:
        row["low"] = row["high"] = np.nan
    return row


def cell_path(problem: str, n: int) -> Path:
    """Return where the runs of a problem and size are kept."""
    return RESULTS / f"{problem.replace(' ', '_').replace('=', '')}_{n}.parquet"


def load(path: Path) -> pd.DataFrame:
    """Return the runs that a file holds."""
    return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=COLUMNS)


def save(path: Path, kept: pd.DataFrame, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Add runs to a file, atomically, and return them all."""
    added = pd.DataFrame(rows).reindex(columns=COLUMNS)
    frame = pd.concat([part for part in (kept, added) if len(part)], ignore_index=True)
    frame["value"] = frame["value"].astype(float)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    frame.to_parquet(part, index=False)
    part.replace(path)
    return frame


def run_cell(name: str, n: int, repetitions: int, makers: Mapping[str, Callable[[float], OffPolicyEstimator]]) -> str:
    """Run what the file of a cell lacks."""
    problem, path = PROBLEMS[name](), cell_path(name, n)
    policy, gamma = target_of(problem), problem.default_gamma
    kept = load(path)
    done = set(zip(kept["estimator"], kept["seed"], strict=True))
    rows: list[dict[str, Any]] = []
    with threadpool_limits(limits=1), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(repetitions):
            lacking = [label for label in makers if (label, seed) not in done]
            if not lacking:
                continue
            log = problem.sample(n, random_state=seed)
            rows += [
                {"estimator": label, "seed": seed, **one_run(makers[label], log, policy, gamma)} for label in lacking
            ]
            if seed % SAVE_EVERY == SAVE_EVERY - 1:
                kept, rows = save(path, kept, rows), []
    if rows:
        save(path, kept, rows)
    return f"{name} n={n}"


# -------------------------------------------------------------------- report


def summary_rows() -> Iterator[dict[str, Any]]:
    """Yield a row for each problem, size and estimator."""
    for name, make in PROBLEMS.items():
        problem = make()
        truth = problem.value(target_of(problem), problem.default_gamma)
        scale = truth**2 if truth else 1.0
        for n in SIZES:
            runs = dict(iter(load(cell_path(name, n)).groupby("estimator")))
            for label in (label for label in (*ESTIMATORS, *NEURAL) if label in runs):
                yield {"problem": name, "n": n, "estimator": label, **summarise(runs[label], truth, scale)}


def summarise(runs: pd.DataFrame, truth: float, scale: float) -> dict[str, Any]:
    """Return relative mean squared error, its standard error, coverage and verdicts of the runs of one estimator."""
    answered = runs[np.isfinite(runs["value"])]
    row: dict[str, Any] = {"runs": len(runs), "answered": len(answered)}
    if not len(answered):
        return {**row, "error": str(runs["error"].iloc[0])}
    squares = (answered["value"] - truth).to_numpy(dtype=float) ** 2 / scale
    row["relative_mse"] = float(squares.mean())
    row["mse_error"] = float(squares.std() / np.sqrt(len(squares)))
    row["relative_bias"] = float((answered["value"].mean() - truth) / np.sqrt(scale))
    with_interval = answered[np.isfinite(answered["low"].astype(float))]
    covered = (with_interval["low"] <= truth) & (truth <= with_interval["high"])
    row["coverage"] = float(covered.mean()) if len(covered) else np.nan
    valid = answered["verdict"] == "VALID"
    row["valid"], row["refuse"] = float(valid.mean()), float((answered["verdict"] == "REFUSE").mean())
    row["coverage_if_valid"] = float(covered[valid].mean()) if valid.any() and len(covered) else np.nan
    row["seconds"] = float(answered["seconds"].median())
    return row


def report() -> None:
    """Write the table and the figure of the documentation."""
    table = pd.DataFrame(summary_rows())
    table.round(6).to_csv(HERE / "results" / "estimators.csv", index=False)
    docs = HERE.parent / "docs"
    draw(table, docs / "estimators.png")
    (docs / "estimators.md").write_text("\n\n".join([INTRODUCTION, *(size_section(table, n) for n in SIZES)]) + "\n")


INTRODUCTION = """# Every estimator on every reference problem

Written by `python benchmarks/estimators.py report`; `run` repeats the study and keeps every run in `benchmarks/results/estimators/`.

*Relative MSE* is the mean squared error over the square of the true value (on Baird's problem, whose value is 0, the mean squared
error itself); the brackets hold the coverage of the 95 % interval in percent and a letter for the verdict that most logs got: V(ALID), C(AUTION),
R(EFUSE). A dash: the method does not serve this problem, or the study has not run it. An error on a problem that a method's assumptions exclude
is the point of the problem: methods that need the full state fail on ModelFail and Hybrid, those that weight whole episodes on ModelWin and Graph.

The runs of closed-form methods, but `default`, DoubleRL, ModelBased, LinearGaussianModel, BellmanCalibrated, StackedQ and Lepski, were made before `adjusted_t` became the default interval:
their coverage is that of the plain t interval, their verdicts ask for an effective sample of 200. [coverage.md](coverage.md) and [intervals.md](intervals.md) have the intervals and
verdicts in force. Neural methods: 1,024 episodes on three problems only, 10 logs each. StackedQ, whose default members are `LSTDQ` and trees, takes seconds a log (a minute on
RiverSwim): it has up to 20, 10 and 5 logs a cell, none in four; [choice_of_q.md](choice_of_q.md) has it with 200. Lepski's choice has 50.

![Relative mean squared error](estimators.png)"""


def cell_text(row: pd.Series[Any]) -> str:
    """Return one cell of the table."""
    if not np.isfinite(row.get("relative_mse", np.nan)):
        return "-"
    verdict = "V" if row["valid"] >= 0.5 else "R" if row["refuse"] >= 0.5 else "C"
    coverage = "-" if np.isnan(row["coverage"]) else f"{100 * row['coverage']:.0f}"
    return f"{row['relative_mse']:.2g} ({coverage}{verdict})"


def size_section(table: pd.DataFrame, n: int) -> str:
    """Return the table of one number of episodes."""
    part = table[table["n"] == n]
    problems = [name for name in PROBLEMS if name in set(part["problem"])]
    lines = ["| estimator | " + " | ".join(problems) + " |", "|" + "---|" * (len(problems) + 1)]
    for label in dict.fromkeys(part["estimator"]):
        cells = [part[(part["problem"] == name) & (part["estimator"] == label)] for name in problems]
        lines.append(f"| {label} | " + " | ".join(cell_text(c.iloc[0]) if len(c) else "-" for c in cells) + " |")
    runs = part["runs"].agg(["min", "max"]).tolist() if len(part) else [0, 0]
    return "\n".join([f"## n = {n}", "", f"{runs[0]} to {runs[1]} repetitions.", "", *lines])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw relative errors as shades, one panel a size."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    labels, problems = list(dict.fromkeys(table["estimator"])), list(PROBLEMS)
    figure, axes = plt.subplots(1, len(SIZES), figsize=(4.2 * len(SIZES), 0.27 * len(labels) + 1.8), sharey=True)
    for axis, n in zip(axes, SIZES, strict=True):
        part = table[table["n"] == n].pivot_table(index="estimator", columns="problem", values="relative_mse")
        grid = np.log10(np.clip(part.reindex(index=labels, columns=problems).to_numpy(dtype=float), 1e-6, None))
        image = axis.imshow(grid, aspect="auto", cmap="viridis_r", vmin=-4, vmax=1)
        axis.set_title(f"n = {n}")
        axis.set_xticks(range(len(problems)), problems, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label("log10 of the relative mean squared error")
    figure.savefig(path, dpi=110, bbox_inches="tight")


# -------------------------------------------------------------------- command line


def forget(names: list[str]) -> None:
    """Delete the rows of estimators that have changed."""
    for path in sorted(RESULTS.glob("*.parquet")):
        frame = pd.read_parquet(path)
        kept = frame[~frame["estimator"].isin(names)]
        if len(kept) < len(frame):
            kept.to_parquet(path, index=False)


def main() -> None:
    """Run, forget or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "again", "report"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--neural", action="store_true")
    arguments = parser.parse_args()
    if arguments.action == "again":
        forget(arguments.names)
    elif arguments.action == "report":
        report()
    else:
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Run all cells that are asked for."""
    pool = NEURAL if arguments.neural else ESTIMATORS
    makers = {name: maker for name, maker in pool.items() if arguments.only is None or name in arguments.only}
    sizes, problems = ([1024], NEURAL_PROBLEMS) if arguments.neural else (arguments.sizes, tuple(PROBLEMS))
    tasks = [delayed(run_cell)(name, n, arguments.repetitions, makers) for n in sizes for name in problems]
    for line in Parallel(n_jobs=arguments.jobs, return_as="generator")(tasks):
        print(line, flush=True)


if __name__ == "__main__":
    main()
