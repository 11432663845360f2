"""Updates per second of the learners, beside d3rlpy 2.8.1 with the same networks and batch, and beside matrix products alone.

    python benchmarks/learners/speed.py --peer /tmp/d3/bin/python [--rounds 5] [--learner TD3BC ...]

One thread, batches of 256. Every measurement is a fresh interpreter that times its updates alone; the libraries take turns, so that a
busy machine slows both alike. The limit is what the same interpreter reaches with products of 256 x 256 matrices; an update's
operations are counted by torch. Written to ``benchmarks/results/learner_speed.json`` and ``docs/learner_speed.md``: medians over the
rounds and their ratio, by the clock and by processor time, which a busy machine hardly changes. Both libraries are timed once more with
shorter products: this one with precision="bfloat16", d3rlpy, which has no such setting, under torch's own switch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DISCRETE, Data, marginal, synthetic
from study import learner
from torch.utils.flop_counter import FlopCounterMode

import ope.policies
from ope import LoggedDataset
from ope.files import replace_file
from ope.policies._neural import NeuralLearner

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "learner_speed.json"
DOCS = HERE.parents[1] / "docs" / "learner_speed.md"
# Updates that take a few seconds, and the ratio to d3rlpy that is wanted.
CASES: dict[str, tuple[int, float]] = {
    "TD3BC": (400, 1.8),
    "IQL": (300, 1.8),
    "CQL": (15, 1.4),
    "BCQ": (40, 1.5),
    "CQL discrete": (600, 2.0),
    "BCQ discrete": (600, 2.0),
    "BehaviorCloning": (800, 0.0),
}
SIZE = 256


# -------------------------------------------------------------------- one measurement


def made(name: str, **settings: Any) -> NeuralLearner:
    """Return the learner to time, without checkpoints."""
    watched = {"checkpoints": 0, "n_threads": 1, **settings}
    if not name.endswith(" discrete"):
        return learner(name, 0, batch_size=SIZE, **watched)
    short = name.removesuffix(" discrete")
    built: NeuralLearner = getattr(ope.policies, short)(gamma=0.99, random_state=0, **DISCRETE[short], **watched)
    return built


def log_of(data: Data, *, discrete: bool) -> LoggedDataset:
    lengths = np.bincount(data.episode)
    actions = data.actions[:, 0].astype(int) if discrete else data.actions
    return LoggedDataset.from_arrays(data.states, actions, data.rewards, lengths=lengths, ends="terminal")


def product_limit() -> float:
    """Return the floating-point operations a second of products of 256 x 256 matrices."""
    a, out = torch.randn(SIZE, SIZE), torch.empty(SIZE, SIZE)
    best = 0.0
    for _ in range(5):
        began = time.process_time()
        for _ in range(300):
            torch.mm(a, a, out=out)
        best = max(best, 300 * 2.0 * SIZE**3 / (time.process_time() - began))
    return best


def operations(name: str, log: LoggedDataset) -> float:
    """Return the floating-point operations of the products in an update."""
    counts = []
    for updates in (4, 12):
        with FlopCounterMode(display=False) as counter:
            made(name, n_updates=updates).fit(log)
        counts.append(counter.get_total_flops())
    return float(counts[1] - counts[0]) / 8.0


def clock(name: str, updates: int, precision: str) -> None:
    """Print the seconds of updates, by the clock and by the processor, operations an update, and the limit."""
    torch.set_num_threads(1)
    discrete = name.endswith(" discrete")
    log = log_of(synthetic(discrete=discrete), discrete=discrete)
    spent = marginal(updates, lambda count: made(name, n_updates=count, precision=precision).fit(log))
    print("SECONDS", *spent, operations(name, log), product_limit())


# -------------------------------------------------------------------- rounds


def ask(command: list[str]) -> list[float]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not lines:
        raise RuntimeError(f"{command}: no time came back.\n{done.stdout}\n{done.stderr}")
    return [float(word) for word in lines[0].split()[1:]]


def turn(name: str, peer: str) -> dict[str, list[float]]:
    """Time both libraries once, one after the other."""
    updates, _ = CASES[name]
    short, *kind = name.split()
    words = ["time", "--learner", short, "--updates", str(updates), *(["--discrete"] if kind else [])]
    own, other = [sys.executable, str(HERE / "speed.py"), "--once", name], [peer, str(HERE / "peer.py"), *words]
    found = [ask(own), ask(other), ask([*own, "--precision", "bfloat16"]), ask([*other, "--medium"])]
    return {
        "wall": [updates / spent[0] for spent in found],
        "processor": [updates / spent[1] for spent in found],
        "limit": found[0][2:],
    }


def summary(turns: list[dict[str, list[float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {"turns": len(turns)}
    for which in ("wall", "processor"):
        ours, theirs, short, medium = (statistics.median(turn[which][i] for turn in turns) for i in range(4))
        found[which] = {
            **{"ope": round(ours, 1), "d3rlpy": round(theirs, 1), "ratio": round(ours / theirs, 2)},
            "ratios by turn": [round(turn[which][0] / turn[which][1], 2) for turn in turns],
            **{"ope bfloat16": round(short, 1), "d3rlpy medium": round(medium, 1)},
            "ratio of short products": round(short / max(theirs, medium), 2),
            "short ratios by turn": [round(turn[which][2] / max(turn[which][1], turn[which][3]), 2) for turn in turns],
        }
    flops, limit = turns[0]["limit"][0], statistics.median(turn["limit"][1] for turn in turns)
    found["million operations"] = round(flops / 1e6, 1)
    found["share of limit"] = round(found["processor"]["ope"] * flops / limit, 2)
    return found


def page(found: dict[str, Any]) -> str:
    head = (
        "| learner | wanted | ope, updates/s | d3rlpy 2.8.1 | ratio | by processor time | ope, bfloat16 | d3rlpy, `medium` "
        "| ratio | by processor time | products an update | share of the limit |"
    )
    lines = [head, "|" + "---|" * 12]
    for name, row in found.items():
        wall, processor = row["wall"], row["processor"]
        products = row["million operations"] * 1e6 / (2.0 * SIZE**3)
        wanted = CASES[name][1]
        cells = [name, f"{wanted:.1f}" if wanted else ""]
        for ours, theirs, ratio in (
            ("ope", "d3rlpy", "ratio"),
            ("ope bfloat16", "d3rlpy medium", "ratio of short products"),
        ):
            cells += [f"{wall[own]:,.0f}" for own in (ours, theirs)] + [f"{by[ratio]:.2f}" for by in (wall, processor)]
        cells += [f"{products:.1f}", f"{100 * row['share of limit']:.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


INTRODUCTION = """# Speed of the learners

Updates per second on one thread, batches of 256, the networks of the reference settings, 10 sampled actions for BCQ and CQL; medians of
interleaved runs by `benchmarks/learners/speed.py`. *Products*: the matrix products of an update in units of 256 x 256 by 256 x 256, counted by
torch. *Share of the limit*: the rate of floating-point operations beside that of such products alone in the same interpreter.

In 32 bits CQL cannot be 1.4 times as fast: both libraries compute the same products (14.1 thousand million operations in d3rlpy, counted in
the same way), d3rlpy at about 63 % of the limit, so that 1.4 would need 90 % of it; products of 8,000 rows alone reach some 85 %. For IQL and
discrete BCQ it is what lies between the products: three optimisers, indexing, losses and the interpreter take half of an update.

With `precision="bfloat16"` products between hidden layers are shorter; the ratio is to the faster of d3rlpy's two rates, the second of
which is that under `torch.set_float32_matmul_precision("medium")`, torch's own switch for shorter products. [learners.md](learners.md) has
the scores of learners so trained. The processor has the instructions for such products (AVX-512 BF16); where it has none they gain nothing.

One program's rate differs by up to a quarter from run to run with where its memory lies: the ratios of single rounds are in
`benchmarks/results/learner_speed.json`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="interpreter that has d3rlpy 2.8.1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--learner", choices=list(CASES), action="append")
    parser.add_argument("--once", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        clock(args.once, CASES[args.once][0], args.precision)
        return
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    turns: dict[str, list[dict[str, list[float]]]] = {name: [] for name in args.learner or CASES}
    for _ in range(args.rounds):
        for name, rows in turns.items():
            rows.append(turn(name, args.peer))
            wall, busy = rows[-1]["wall"], rows[-1]["processor"]
            print(name, f"{wall[0] / wall[1]:.2f} by the clock, {busy[0] / busy[1]:.2f} of processor time", flush=True)
    found = {**kept, **{name: summary(rows) for name, rows in turns.items()}}
    found = {name: found[name] for name in CASES if name in found}
    replace_file(RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    replace_file(DOCS, f"{INTRODUCTION}\n\n{page(found)}\n".encode())


if __name__ == "__main__":
    main()
