"""Scores of the bundled learners on logs of Hopper and HalfCheetah, beside d3rlpy 2.8.1 with the same settings.

    python ../shared/mujoco/make_logs.py Hopper mujoco/Hopper
    python benchmarks/learners/study.py run --logs mujoco --env Hopper [--learner TD3BC] [--seed 0] --peer /tmp/d3/bin/python
    python benchmarks/learners/study.py report

The first command is not part of this repository; it needs ``pip install "gymnasium[mujoco]"``, as ``run`` does. ``--peer`` is an
interpreter with d3rlpy 2.8.1, gymnasium[mujoco] and pandas; without it only this library's runs are made. Each run writes one file
to ``benchmarks/results/learners``, and runs that have theirs are left out, so that the study can be stopped, continued, and shared
between processes (one an environment). ``report`` writes ``docs/learners.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import (
    CHECKPOINTS,
    ENVIRONMENTS,
    GAMMA,
    NORMALIZED,
    SETTINGS,
    Act,
    Data,
    FloatArray,
    Run,
    read,
    record,
    references,
)

import ope
import ope.policies
from ope import LoggedDataset
from ope.files import replace_file
from ope.policies._neural import NeuralLearner

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "results" / "learners"
DOCS = HERE.parents[1] / "docs" / "learners.md"
SEEDS = 5
BOUNDED = {"action_bounds": (-1.0, 1.0)}
# Learners that d3rlpy has in this form, and those that stand alone: name, class, settings.
PAIRED: Mapping[str, dict[str, Any]] = {
    # d3rlpy's cloning has a squared loss.
    "BehaviorCloning": {**BOUNDED, "form": "deterministic"},
    "TD3BC": BOUNDED,
    "IQL": {**BOUNDED, "deterministic": True},
    "BCQ": BOUNDED,
    "CQL": {**BOUNDED, "deterministic": True},
}
# In 15,000 updates the paper's actor rate, 5e-7, hardly leaves the imitation.
ALONE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ATAC": ("ATAC", {**BOUNDED, "deterministic": True, "n_updates": 20_000, "actor_learning_rate": 3e-5}),
}
BRIEF = {"n_updates": 5_000}
OTHERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "AWAC": ("AWAC", {**BOUNDED, **BRIEF, "deterministic": True, "batch_size": 256}),
    "AWR": ("AWR", {**BOUNDED, **BRIEF, "deterministic": True}),
    "BEAR": ("BEAR", {**BOUNDED, **BRIEF}),
    "BRAC": ("BRAC", {**BOUNDED, **BRIEF, "deterministic": True, "behavior_updates": 1_500, "warm_start_updates": 300}),
    "CRR": ("CRR", {**BOUNDED, **BRIEF, "deterministic": True}),
    "EDAC": ("EDAC", {**BOUNDED, **BRIEF, "deterministic": True}),
    "UWAC": ("UWAC", {**BOUNDED, **BRIEF}),
    "LikelihoodCloning": ("BehaviorCloning", {"n_updates": 20_000}),
    "FilteredCloning": ("BehaviorCloning", {**BRIEF, "top_share": 0.1}),
    "MixtureCloning": ("BehaviorCloning", {**BRIEF, "form": "mixture"}),
}
OTHERS_ENV, FEW_SEEDS = "Hopper", 2
# The paired learners with shorter products: two seeds on both logs.
SHORT = {f"{name}_bfloat16": name for name in ("TD3BC", "IQL", "CQL")}


# -------------------------------------------------------------------- run


def log_of(data: Data) -> LoggedDataset:
    frame = pd.DataFrame(data.states).add_prefix("state_")
    frame = frame.join(pd.DataFrame(data.next_states).add_prefix("next_")).join(
        pd.DataFrame(data.actions).add_prefix("action_")
    )
    frame = frame.assign(
        episode=data.episode, reward=data.rewards, terminated=data.terminal, truncated=data.truncated
    )  # fmt: skip
    frame["t"] = frame.groupby("episode").cumcount()
    width = data.states.shape[1]
    return LoggedDataset.from_pandas(
        frame,
        episode="episode",
        time="t",
        states=[f"state_{i}" for i in range(width)],
        action=[f"action_{i}" for i in range(data.actions.shape[1])],
        reward="reward",
        terminated="terminated",
        truncated="truncated",
        next_states=[f"next_{i}" for i in range(width)],
    )


def learner(name: str, seed: int, **changes: Any) -> NeuralLearner:
    """Return an unfitted learner of the study."""
    watched = {"random_state": seed, "checkpoints": CHECKPOINTS, "n_threads": 1}
    class_name = SHORT.get(name, name)
    if class_name in PAIRED:
        settings = {**SETTINGS[class_name], **PAIRED[class_name], "normalize_states": NORMALIZED[class_name]}
        settings |= {"precision": "bfloat16"} if name in SHORT else {}
    else:
        class_name, settings = {**ALONE, **OTHERS}[name]
    if class_name != "BehaviorCloning":
        settings = {**settings, "gamma": GAMMA}
    made: NeuralLearner = getattr(ope.policies, class_name)(**{**settings, **watched, **changes})
    return made


def train(name: str, log: LoggedDataset, seed: int) -> list[Act]:
    fitted = learner(name, seed).fit(log)
    return [_act(policy) for policy in fitted.checkpoints_]


def _act(policy: NeuralLearner) -> Act:
    def act(states: FloatArray) -> FloatArray:
        return np.asarray(policy.predict(states), dtype=np.float64)

    return act


def planned(env: str, peer: bool) -> Iterator[Run]:
    """Yield the runs of an environment, every learner once before any has a second seed."""
    for seed in range(SEEDS):
        for name in [*PAIRED, *ALONE]:
            yield Run(env, name, "ope", seed)
            if peer and name in PAIRED:
                yield Run(env, name, "d3rlpy", seed)
        if seed < FEW_SEEDS:
            alone = [*OTHERS, *SHORT] if env == OTHERS_ENV else [*SHORT]
            yield from (Run(env, name, "ope", seed) for name in alone)


def do(run: Run, log: LoggedDataset, logs: Path, folder: Path, peer: str | None) -> None:
    if run.library == "ope":
        versions = {"ope": ope.__version__, "torch": torch.__version__}
        record(run, folder, lambda: train(run.learner, log, run.seed), versions)
        return
    words = ["--logs", logs, "--env", run.env, "--learner", run.learner, "--seed", run.seed, "--folder", folder]
    subprocess.run([str(peer), str(HERE / "peer.py"), "score", *map(str, words)], check=True)


# -------------------------------------------------------------------- report


def scores(folder: Path) -> pd.DataFrame:
    """Return a row a run: its normalised score, 0 = random and 100 = the expert."""
    known = {env: json.loads((folder / f"references-{env}.json").read_text()) for env in ENVIRONMENTS}
    rows = []
    for path in sorted(folder.glob("*-*-*-*.json")):
        found = json.loads(path.read_text())
        low, high = known[found["env"]]["random"], known[found["env"]]["expert"]
        by_quarter = [100.0 * (np.mean(row) - low) / (high - low) for row in found["returns"]]
        kept = ("env", "learner", "library", "seed", "seconds", "processor_seconds")
        rows.append({name: found[name] for name in kept} | {"score": by_quarter[-1], "quarters": by_quarter})
    return pd.DataFrame(rows)


def _mean(values: pd.Series[float]) -> str:
    if values.empty:
        return ""
    spread = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread} ({len(values)})"


def _by_seed(part: pd.DataFrame, library: str) -> pd.Series[float]:
    return part[part["library"] == library].set_index("seed")["score"]


def _difference(ours: pd.Series[float], theirs: pd.Series[float]) -> tuple[str, str]:
    """Return the mean paired difference with its standard error, and how many standard errors it is."""
    gap = (ours - theirs).dropna()
    if len(gap) < 2:
        return f"{gap.mean():+.1f}" if len(gap) else "", ""
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    return f"{gap.mean():+.1f} ± {error:.1f}", f"{gap.mean() / error:+.1f}"


def section(env: str, table: pd.DataFrame) -> str:
    """Return the table of an environment; learners that d3rlpy lacks are compared with cloning."""
    head = "| learner | ope | d3rlpy 2.8.1 | difference by seed | in standard errors | updates |\n|---|---|---|---|---|---|"
    parts = dict(iter(table[table["env"] == env].groupby("learner")))
    lines = []
    for name in [*PAIRED, *ALONE, *OTHERS, *SHORT]:
        if name not in parts:
            continue
        ours, theirs = (_by_seed(parts[name], library) for library in ("ope", "d3rlpy"))
        beside = _by_seed(parts["BehaviorCloning"], "ope") if name in ALONE else theirs
        there = "cloning: " + _mean(beside) if name in ALONE else _mean(theirs)
        cells = (name, _mean(ours), there, *_difference(ours, beside), f"{learner(name, 0).n_updates:,}")
        lines.append("| " + " | ".join(cells) + " |")
    return f"## {env}\n\n" + "\n".join([head, *lines])


INTRODUCTION = """# Learners on MuJoCo logs

Normalised scores (0 = uniformly random actions, 100 = the expert) of the policy after the last update, mean ± standard error over
seeds, their number in brackets; each policy plays 10 episodes from the same starts. The logs hold 100,000 transitions of four mediocre
Gaussian policies; actions are clipped to the range. `benchmarks/learners/study.py` makes this page from a file for each run in
`benchmarks/results/learners`. Both libraries have the same networks, learning rates, batches, numbers of updates and
of sampled actions; the seeds are paired by number only, their random streams differ. d3rlpy leaves out the last transition of a
truncated episode, and its BCQ decodes without tanh. `BehaviorCloning` is the
deterministic form with a squared loss, which is d3rlpy's; `LikelihoodCloning` the default Gaussian, whose mean acts. ATAC, which d3rlpy
lacks, stands beside this cloning. `_bfloat16`: with
`precision="bfloat16"`.

The study is under way: five seeds of each are planned (CQL takes some five hours of a core, BCQ some seven), and a difference from one seed
says nothing. On HalfCheetah cloning was 2.1 standard errors behind with three seeds and 1.3 with five; eight more, run to see whether
something is wrong, leave nothing of it: the last policies are that noisy. Both libraries have the same
training error at every quarter (seed 0, 16,000 updates: .0520, .0502, .0492, .0486 beside .0518, .0503, .0492, .0486) and the same returns after 3,000
updates (three seeds, four episodes each: 2,948 beside 2,966).
"""


def report(folder: Path, out: Path) -> None:
    table = scores(folder)
    sections = [section(env, table) for env in ENVIRONMENTS if (table["env"] == env).any()]
    replace_file(out, ("\n\n".join([INTRODUCTION.strip(), *sections]) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--logs", type=Path, default=Path("mujoco"))
    parser.add_argument("--env", choices=sorted(ENVIRONMENTS), action="append")
    parser.add_argument("--learner", choices=[*PAIRED, *ALONE, *OTHERS, *SHORT], action="append")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--peer", help="interpreter that has d3rlpy 2.8.1")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    if args.command == "report":
        report(args.folder, DOCS)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    for env in args.env or list(ENVIRONMENTS):
        references(env, args.logs, args.folder)
        log = log_of(read(env, args.logs))
        for run in planned(env, args.peer is not None):
            asked = run.learner in (args.learner or [run.learner]) and run.seed in (args.seed or [run.seed])
            if asked and not run.path(args.folder).exists():
                do(run, log, args.logs, args.folder, args.peer)


if __name__ == "__main__":
    main()
