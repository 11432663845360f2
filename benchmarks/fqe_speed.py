"""Updates per second of discrete neural fitted Q evaluation, beside d3rlpy 2.8.1 on the same data, networks and batch.

    python -m venv /tmp/d3 && /tmp/d3/bin/pip install d3rlpy==2.8.1
    python benchmarks/fqe_speed.py --peer /tmp/d3/bin/python [--updates 1000] [--rounds 5]

One candidate, one network of two hidden layers of 256 units, Adam, one thread. Either library runs in an interpreter of its own
and times its training alone, imports and data left out; they take turns, so that a busy machine slows both alike. Written to
``benchmarks/results/fqe_speed.json``: the medians over the rounds and their ratio, by the clock and by processor time, which a
busy machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "fqe_speed.json"
BATCHES = (100, 256)

# Both programs make the same data: 20,000 transitions of 12 features and 4 actions, episodes of 100 steps.
DATA = """
import os, sys, time
import numpy as np
import torch
torch.set_num_threads(1)
batch, updates = int(sys.argv[1]), int(sys.argv[2])
g = np.random.default_rng(0)
n, d, n_actions, length = 20_000, 12, 4, 100
states = g.normal(size=(n, d)).astype(np.float32)
actions, rewards = g.integers(n_actions, size=n), g.normal(size=n)
last = np.arange(n) % length == length - 1
"""

OURS = (
    DATA
    + """
from ope.dataset import LoggedDataset
from ope.estimators._candidates import CandidateTable
from ope.estimators._neural_fqe_problem import Problem, fit_scaling
from ope.estimators._neural_fqe_training import FQEStep, Settings
from ope.neural.training import TrainingPlan, train
from ope.neural.transitions import BatchSampler
from ope.policies import FunctionPolicy
log = LoggedDataset.from_arrays(states.astype(float), actions, rewards, lengths=[length] * (n // length), ends="terminal")
scaling = fit_scaling(log, 0.99, stationary=True, action_range=None)
candidate = FunctionPolicy(predict=lambda s: (s[:, 0] > 0).astype(int), action_labels=[0, 1, 2, 3])
problem = Problem.build(log, CandidateTable.build(log, [candidate]), scaling, 0.99, torch.device("cpu"))
settings = Settings((256, 256), updates, batch, 3e-4, layer_norm=False, solve_share=0.0)
weight = torch.ones(1, n, dtype=torch.float64)
for count in (50, updates):
    step = FQEStep(problem, settings, weight, weight)
    sampler = BatchSampler(problem.transitions, [0], batch, weight.numpy())
    began, processor = time.perf_counter(), time.process_time()
    train(step, sampler, TrainingPlan(n_updates=count, log_every=100))
    seconds, busy = time.perf_counter() - began, time.process_time() - processor
print("SECONDS", seconds, busy)
"""
)

PEER = (
    DATA
    + """
import d3rlpy, logging
import structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
data = d3rlpy.dataset.MDPDataset(states, actions[:, None], rewards[:, None].astype(np.float32), last.astype(np.float32))
encoder = d3rlpy.models.VectorEncoderFactory([256, 256])
policy = d3rlpy.algos.DiscreteBCConfig(encoder_factory=encoder).create(device="cpu:0")
policy.build_with_dataset(data)
for count in (50, updates):
    fqe = d3rlpy.ope.DiscreteFQE(
        algo=policy, config=d3rlpy.ope.FQEConfig(learning_rate=3e-4, batch_size=batch, encoder_factory=encoder), device="cpu:0"
    )
    fqe.build_with_dataset(data)
    began, processor = time.perf_counter(), time.process_time()
    fqe.fit(data, n_steps=count, n_steps_per_epoch=count, logger_adapter=d3rlpy.logging.NoopAdapterFactory(), show_progress=False)
    seconds, busy = time.perf_counter() - began, time.process_time() - processor
print("SECONDS", seconds, busy)
"""
)


def timed(python: str, program: str, batch: int, updates: int, folder: Path) -> tuple[float, float]:
    """Return updates per second of one fresh interpreter, by the clock and by its processor time."""
    script = folder / "program.py"
    script.write_text(program)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [python, str(script), str(batch), str(updates)],
        capture_output=True,
        text=True,
        env={**os.environ, **threads},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not lines:
        raise RuntimeError(f"{python}: no time came back.\n{done.stdout}\n{done.stderr}")
    wall, processor = (updates / float(part) for part in lines[0].split()[1:])
    return wall, processor


def measure(peer: str, updates: int, rounds: int) -> dict[str, Any]:
    """Let both libraries take turns."""
    speeds: dict[str, dict[int, list[tuple[float, float]]]] = {
        name: {batch: [] for batch in BATCHES} for name in ("ope", "d3rlpy")
    }
    with tempfile.TemporaryDirectory() as name:
        for turn in range(rounds):
            for batch in BATCHES:
                for who, python, program in (("ope", sys.executable, OURS), ("d3rlpy", peer, PEER)):
                    speeds[who][batch].append(timed(python, program, batch, updates, Path(name)))
                    print(
                        turn,
                        batch,
                        who,
                        "{:.0f} updates/s, {:.0f} of its processor time".format(*speeds[who][batch][-1]),
                        flush=True,
                    )
    return {str(batch): _summary(speeds["ope"][batch], speeds["d3rlpy"][batch]) for batch in BATCHES}


def _summary(ours: list[tuple[float, float]], peers: list[tuple[float, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for which, clock in enumerate(("wall", "processor")):
        mine, theirs = ([speed[which] for speed in speeds] for speeds in (ours, peers))
        medians = statistics.median(mine), statistics.median(theirs)
        found[clock] = {
            "ope updates/s": round(medians[0], 1),
            "d3rlpy updates/s": round(medians[1], 1),
            "ratio of medians": round(medians[0] / medians[1], 2),
            "ratios by turn": [round(a / b, 2) for a, b in zip(mine, theirs, strict=True)],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="interpreter that has d3rlpy 2.8.1")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = measure(args.peer, args.updates, args.rounds)
    facts = {"updates": args.updates, "rounds": args.rounds, "load": os.getloadavg(), "batches": found}
    args.results.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
