"""Off-policy estimators on logs of Hopper and HalfCheetah, beside values known from the simulator.

    python /work/shared/mujoco/make_logs.py Hopper /tmp/mujoco/Hopper
    python benchmarks/mujoco.py run --logs /tmp/mujoco --env Hopper --experts /work/shared/mujoco
    python benchmarks/mujoco.py report

The first command is not part of this repository; it needs ``pip install "gymnasium[mujoco]"``. ``run`` appends a row per
environment, estimator and candidate to ``benchmarks/results/mujoco.csv`` and leaves out what is already there, so that it can be
stopped and started again; ``report`` writes ``docs/mujoco.md``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

import ope.estimators
from ope import LoggedDataset
from ope.estimate import Estimate, estimate_row
from ope.estimator import OffPolicyEstimator
from ope.policies import FunctionPolicy

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "mujoco.csv"
DOCS = HERE.parent / "docs" / "mujoco.md"
GAMMA = 0.99
N_THREADS = 1
KEPT = (
    "status", "plug_in_value", "network_value", "correction_z", "drift", "member_spread", "ess", "novelty",
    "overlap", "member_error", "correction", "mean_weight", "condition", "unsupported",
)  # fmt: skip
MARKS = {
    "Hopper": [("plain, tau .005, 20,000 updates", 0.52, 90.8, 93.5), ("plain, tau .02, 60,000 updates", 0.09, 1690, 263)],
    "HalfCheetah": [
        ("plain, tau .005, 20,000 updates", 0.96, 74.0, 0.0),
        ("plain, tau .02, 60,000 updates", 0.20, 82576, 343),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """An estimator under study, and whether its candidates share one fit."""

    make: Callable[[], OffPolicyEstimator]
    together: bool = False


def _named(name: str, **settings: Any) -> OffPolicyEstimator:
    made: OffPolicyEstimator = getattr(ope.estimators, name)(gamma=GAMMA, **settings)
    return made


def _neural(**settings: Any) -> OffPolicyEstimator:
    return _named("NeuralFittedQEvaluation", action_range=(-1.0, 1.0), **{"n_threads": N_THREADS, **settings})


def _nested(name: str, **settings: Any) -> OffPolicyEstimator:
    """Return a doubly robust method whose Q is neural: a short run of each fold, one candidate at a time."""
    nested = _neural(n_updates=2000).set_params(gamma=None)
    return _named(name, q=nested, n_folds=2, **settings)


def _linear_doubly_robust() -> OffPolicyEstimator:
    return _named("DoublyRobust", n_folds=2, q=ope.estimators.LSTDQ(n_samples=4))


REGISTRY: Mapping[str, Entry] = {
    "WeightedIS": Entry(partial(_named, "WeightedIS")),
    "PerDecisionIS": Entry(partial(_named, "PerDecisionIS")),
    "LSTDQ": Entry(partial(_named, "LSTDQ", n_samples=4)),
    "DoublyRobust(LSTDQ)": Entry(_linear_doubly_robust),
    "MarginalizedIS": Entry(partial(_named, "MarginalizedIS", n_samples=4)),
    "NeuralFittedQEvaluation": Entry(_neural, together=True),
    "NeuralFittedQEvaluation, actions not clipped": Entry(partial(_named, "NeuralFittedQEvaluation", n_threads=N_THREADS), together=True),
    "DoublyRobust(neural)": Entry(partial(_nested, "DoublyRobust")),
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """The log of an environment, its candidates and their values."""

    env: str
    log: LoggedDataset
    candidates: Mapping[str, FunctionPolicy]
    truth: Mapping[str, tuple[float, float]]


def _experts(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("gaussian_experts", folder / "gaussian_experts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gaussian_experts"] = module
    spec.loader.exec_module(module)
    return module


def _columns(frame: pd.DataFrame, prefix: str) -> list[str]:
    return [str(name) for name in frame.columns if str(name).startswith(prefix)]


class Candidate:
    """The functions of an expert; its mean is kept for the draws that follow in the same states."""

    def __init__(self, expert: Any) -> None:
        self.expert = expert
        self.last: tuple[Any, Any] = (None, None)

    def mean(self, states: Any) -> Any:
        """Return the mean action."""
        if self.last[0] is not states:
            self.last = (states, self.expert.mean(states))
        return self.last[1]

    def sample(self, states: Any, rng: np.random.Generator) -> Any:
        """Draw an action for each state."""
        mean = self.mean(states)
        return mean + self.expert.std * rng.standard_normal(mean.shape)

    def policy(self) -> FunctionPolicy:
        """Return the expert as a policy."""
        return FunctionPolicy(predict=self.mean, log_prob=self.expert.log_prob, sample=self.sample)


def load(env: str, logs: Path, experts: Path) -> Study:
    frame = pd.read_parquet(logs / env / "log.parquet")
    rows = json.loads((logs / env / "candidates.json").read_text())
    frame["behavior_prob"] = np.exp(frame["behavior_log_prob"])
    log = LoggedDataset.from_pandas(
        frame,
        episode="episode",
        time="t",
        states=_columns(frame, "state_"),
        action=_columns(frame, "action_"),
        reward="reward",
        terminated="terminated",
        truncated="truncated",
        next_states=_columns(frame, "next_state_"),
        behavior_prob="behavior_prob",
    )
    module = _experts(experts)
    candidates = {}
    for row in rows:
        expert = module.GaussianExpert(env, row["noise"], row["seed"], row["std_scale"], folder=experts)
        candidates[row["name"]] = Candidate(expert).policy()
    truth = {row["name"]: tuple(row["value_0.99"]) for row in rows}
    return Study(env, log, candidates, truth)


# -------------------------------------------------------------------- run


def _row(study: Study, estimator: str, name: str, estimate: Estimate, seconds: dict[str, float]) -> dict[str, Any]:
    table = estimate_row(estimate, 0.95)
    truth, error = study.truth[name]
    facts = {key: table[key] for key in ("value", "std_error", "low", "high", "verdict", "reasons")}
    kept = {key: table[key] for key in KEPT if key in table}
    head = {"env": study.env, "estimator": estimator, "candidate": name, "truth": truth, "truth_se": error}
    return {
        **head,
        **facts,
        **seconds,
        "diagnostics": json.dumps(kept, default=float),
        "error": estimate.error,
    }


def _append(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.6g")


def _done(path: Path) -> set[tuple[str, str, str]]:
    if not path.exists():
        return set()
    table = pd.read_csv(path)
    return set(zip(table["env"], table["estimator"], table["candidate"], strict=True))


def run(study: Study, names: list[str], path: Path) -> None:
    for estimator in names:
        entry, done = REGISTRY[estimator], _done(path)
        missing = [name for name in study.candidates if (study.env, estimator, name) not in done]
        groups = [missing] if entry.together and missing else [[name] for name in missing]
        for group in groups:
            began, processor = time.perf_counter(), time.process_time()
            chosen = {name: study.candidates[name] for name in group}
            estimates = entry.make().fit(study.log, chosen).estimate()
            spent = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - processor}
            seconds = {clock: value / len(group) for clock, value in spent.items()}
            rows = [_row(study, estimator, name, estimates[name], seconds) for name in group]
            _append(rows, path)
            for row in rows:
                print(
                    *(row[key] for key in ("env", "estimator", "candidate", "truth", "value", "std_error", "verdict")),
                    flush=True,
                )


# -------------------------------------------------------------------- report


def summarise(rows: pd.DataFrame) -> dict[str, Any]:
    value, truth = rows["value"].to_numpy(float), rows["truth"].to_numpy(float)
    finite = np.isfinite(value)
    error = np.abs(value - truth)[finite]
    counts = rows["verdict"].value_counts()
    chosen = truth[finite][np.argmax(value[finite])] if finite.any() else np.nan
    return {
        "Spearman": float(spearmanr(value[finite], truth[finite]).statistic) if finite.sum() > 2 else np.nan,
        "mean absolute error": error.mean() if finite.any() else np.nan,
        "regret@1": truth.max() - chosen,
        "VALID / CAUTION / REFUSE": " / ".join(str(counts.get(level, 0)) for level in ("VALID", "CAUTION", "REFUSE")),
        "error of VALID, mean (largest)": _valid_error(rows),
        "seconds, all 12": rows["seconds"].sum(),
        "processor seconds": rows["processor_seconds"].sum(min_count=len(rows)),
    }


def _valid_error(rows: pd.DataFrame) -> str:
    valid = rows[rows["verdict"] == "VALID"]
    if valid.empty:
        return "none VALID"
    error = (valid["value"] - valid["truth"]).abs()
    inside = ((valid["low"] <= valid["truth"]) & (valid["truth"] <= valid["high"])).sum()
    return f"{error.mean():.1f} ({error.max():.1f}), {inside} of {len(valid)} intervals hold the truth"


def _cell(value: Any) -> str:
    if isinstance(value, float) and np.isnan(value):
        return ""
    return (
        f"{value:,.2f}"
        if isinstance(value, float) and abs(value) < 10
        else f"{value:,.1f}"
        if isinstance(value, float)
        else str(value)
    )


def _markdown(rows: list[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(row.get(key, "")) for key in head) + " |" for row in rows)])


def _section(env: str, table: pd.DataFrame) -> str:
    groups = {str(name): part for name, part in table.groupby("estimator", sort=False)}
    rows = [{"estimator": name, **summarise(part)} for name, part in groups.items()]
    for name, rho, error, regret in MARKS[env]:
        rows.append(
            {
                "estimator": f"mark: {name}",
                "Spearman": rho,
                "mean absolute error": float(error),
                "regret@1": float(regret),
            }
        )
    parts = [f"## {env}\n\n{_markdown(rows)}"]
    for name, part in groups.items():
        if name.startswith("Neural"):
            shown = [_candidate_row(row) for _, row in part.iterrows()]
            parts.append(f"### {env}: {name}, by candidate\n\n{_markdown(shown)}")
    return "\n\n".join(parts)


def _candidate_row(row: Any) -> dict[str, Any]:
    found = json.loads(row["diagnostics"])
    shown = {
        key: float(found[key])
        for key in ("drift", "member_error", "correction_z", "ess", "novelty", "overlap")
        if key in found
    }
    interval = f"{row['low']:.1f} to {row['high']:.1f}"
    return {
        "candidate": row["candidate"],
        "truth": row["truth"],
        "value": row["value"],
        "95 % interval": interval,
        "verdict": row["verdict"],
        **shown,
    }


INTRODUCTION = """# MuJoCo logs

Logs of about 100,000 transitions by four mediocre Gaussian policies, 12 candidates of graded quality, gamma 0.99; true values
from 100 rollouts each. Made by `benchmarks/mujoco.py` from `benchmarks/results/mujoco.csv`. The marks are plain neural fitted Q
evaluation, for each candidate alone. The simulator clips actions to [-1, 1]: `action_range=(-1, 1)` says so, and a row without
it shows what that is worth. Regret@1 is the true value lost by choosing the candidate of the highest estimate. Seconds are wall
time of all 12 candidates on two cores that eight other jobs shared; processor seconds are what one quiet core would take.

What to read from it: on Hopper the networks beat both marks; on HalfCheetah they do not. There all candidates come out near the
logged policies (150 to 240), those far from the log worst, and the networks agree with each other on it: neither drift, nor
members, nor temporal differences of unseen episodes show it, only the support does (`novelty`, `overlap`). The thresholds of these
two were set after a look at these logs, so that "no VALID one is wrong" is no independent test.
"""


def report(path: Path, out: Path) -> None:
    table = pd.read_csv(path)
    sections = [_section(str(env), part) for env, part in table.groupby("env", sort=False)]
    out.write_text("\n\n".join([INTRODUCTION.strip(), *sections]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--logs", type=Path, default=Path("/tmp/mujoco"))
    parser.add_argument("--experts", type=Path, default=Path("/work/shared/mujoco"))
    parser.add_argument("--env", choices=sorted(MARKS), action="append")
    parser.add_argument("--estimator", choices=list(REGISTRY), action="append")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    args = parser.parse_args()
    if args.command == "report":
        report(args.results, args.docs)
        return
    for env in args.env or list(MARKS):
        run(load(env, args.logs, args.experts), args.estimator or list(REGISTRY), args.results)


if __name__ == "__main__":
    main()
