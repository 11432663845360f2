"""Updates per second of the learners, beside d3rlpy 2.8.1 with the same networks and batch, and beside matrix products alone.

    python benchmarks/learners/speed.py --peer /tmp/d3/bin/python [--launches 3] [--bursts 8] [--learner TD3BC ...]

One thread, batches of 256. Four programs train one learner and take turns, a burst of updates of about half a second each, so that a busy
machine slows all alike: this library and d3rlpy, and both with shorter products, this one by precision="bfloat16", d3rlpy, which has no
such setting, by torch's own switch. They are launched several times, as a program's rate also depends on where its memory lies. The ratio is the median over the turns of the ratio within one. The limit is what this library's program
reaches between bursts with products of 256 x 256 matrices alone; an update's operations are counted by torch. Written to
``benchmarks/results/learner_speed.json`` and ``docs/learner_speed.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import DISCRETE, Bursts, Data, synthetic
from study import learner
from torch.utils.flop_counter import FlopCounterMode

import ope.policies
from ope import LoggedDataset
from ope.files import replace_file
from ope.neural import perceptron
from ope.policies._neural import NeuralLearner

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "learner_speed.json"
DOCS = HERE.parents[1] / "docs" / "learner_speed.md"
# Updates of a burst, and the ratio to d3rlpy that is wanted.
CASES: dict[str, tuple[int, float]] = {
    "TD3BC": (50, 1.8),
    "IQL": (40, 1.8),
    "CQL": (3, 1.4),
    "BCQ": (5, 1.5),
    "CQL discrete": (100, 2.0),
    "BCQ discrete": (60, 2.0),
    "BehaviorCloning": (150, 0.0),
}
PROGRAMS = ("ope", "d3rlpy", "ope bfloat16", "d3rlpy medium")
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


def product_limit() -> Callable[[], float]:
    """Return what measures the floating-point operations a second of products of 256 x 256 matrices."""
    a, out = torch.randn(SIZE, SIZE), torch.empty(SIZE, SIZE)

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(100):
            torch.mm(a, a, out=out)
        return 100 * 2.0 * SIZE**3 / (time.perf_counter() - began)

    return measure


def operations(name: str, log: LoggedDataset) -> float:
    """Return the floating-point operations of the products in an update; torch does not count oneDNN's products."""
    counts = []
    for updates in (4, 12):
        with mock.patch.object(perceptron, "_ONEDNN_LINEAR", None), FlopCounterMode(display=False) as counter:
            made(name, n_updates=updates).fit(log)
        counts.append(counter.get_total_flops())
    return float(counts[1] - counts[0]) / 8.0


def clock(name: str, updates: int, precision: str) -> None:
    """Time bursts of updates."""
    torch.set_num_threads(1)
    discrete = name.endswith(" discrete")
    log = log_of(synthetic(discrete=discrete), discrete=discrete)
    settings = {"precision": precision, "log_every": updates, "callbacks": [Bursts(product_limit())]}
    made(name, n_updates=10**6 * updates, **settings).fit(log)


# -------------------------------------------------------------------- turns


class Program:
    """One training run in a process of its own, which waits between bursts."""

    def __init__(self, command: list[str]) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.command = command
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}
        )
        self._answer("READY")

    def burst(self) -> list[float]:
        """Return the seconds of a burst, and the limit where the program measures it."""
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        return [float(word) for word in self._answer("SECONDS").split()[1:]]

    def stop(self) -> None:
        """End the program."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self, first_word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(first_word):
                return line
        raise RuntimeError(f"{self.command}: the program ended without an answer; run it alone to see why.")


def take_turns(name: str, peer: str, bursts: int) -> dict[str, list[float]]:
    """Return updates per second of every burst by program, and the limit beside each of this library's."""
    updates, _ = CASES[name]
    short, *kind = name.split()
    words = ["time", "--learner", short, "--updates", str(updates), *(["--discrete"] if kind else [])]
    own, other = [sys.executable, str(HERE / "speed.py"), "--serve", name], [peer, str(HERE / "peer.py"), *words]
    commands = (own, other, [*own, "--precision", "bfloat16"], [*other, "--medium"])
    programs = {which: Program(command) for which, command in zip(PROGRAMS, commands, strict=True)}
    rates: dict[str, list[float]] = {which: [] for which in (*PROGRAMS, "limit")}
    for turn in range(bursts):
        for which, program in list(programs.items())[:: 1 if turn % 2 else -1]:
            seconds, *limit = program.burst()
            rates[which].append(updates / seconds)
            if which == "ope":
                rates["limit"] += limit
    for program in programs.values():
        program.stop()
    return rates


def summary(launches: list[dict[str, list[float]]], flops: float) -> dict[str, Any]:
    """Return median rates, quartiles of the ratios within turns, and the median ratio of each launch."""
    table = {which: np.array([launch[which] for launch in launches]) for which in launches[0]}
    ratio = table["ope"] / table["d3rlpy"]
    short = table["ope bfloat16"] / np.maximum(table["d3rlpy"], table["d3rlpy medium"])
    found: dict[str, Any] = {"launches": len(ratio), "turns": ratio.size}
    found |= {which: round(float(np.median(table[which])), 1) for which in PROGRAMS}
    for what, values in {"ratio": ratio, "ratio of short products": short}.items():
        found[what] = np.quantile(values, (0.25, 0.5, 0.75)).round(2).tolist()
        found[f"{what} by launch"] = np.median(values, axis=1).round(2).tolist()
    share = float(np.median(table["ope"] * flops / table["limit"]))
    return {**found, "million operations": round(flops / 1e6, 1), "share of limit": round(share, 2)}


def page(found: dict[str, Any]) -> str:
    head = (
        "| learner | wanted | ope, updates/s | d3rlpy 2.8.1 | ratio | ope, bfloat16 | d3rlpy, `medium` | ratio "
        "| products an update | share of the limit |"
    )
    lines = [head, "|" + "---|" * 10]
    for name, row in found.items():
        products = row["million operations"] * 1e6 / (2.0 * SIZE**3)
        wanted = CASES[name][1]
        cells = [name, f"{wanted:.1f}" if wanted else ""]
        for ours, theirs, ratio in ((*PROGRAMS[:2], "ratio"), (*PROGRAMS[2:], "ratio of short products")):
            low, middle, high = row[ratio]
            cells += [f"{row[ours]:,.0f}", f"{row[theirs]:,.0f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        cells += [f"{products:.1f}", f"{100 * row['share of limit']:.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


INTRODUCTION = """# Speed of the learners

Updates per second on one thread, batches of 256, the networks of the reference settings, 10 sampled actions for BCQ and CQL, by
`benchmarks/learners/speed.py`. The libraries take turns, a burst of half a second each, and are launched several times; rates are medians, the
ratio is the median over the turns of the ratio within one, with its quartiles. Launches differ by a tenth or so with where a program's memory
lies: `benchmarks/results/learner_speed.json` has the ratio of each. *Products*: the matrix products of an update in units of 256 x 256
by 256 x 256, counted by torch. *Share of the limit*: the rate of floating-point operations beside that of such products alone, between bursts.

In 32 bits CQL cannot be 1.4 times as fast: both libraries compute the same products (14.1 thousand million operations in d3rlpy, counted in
the same way, in November 2026), d3rlpy at about 63 % of the limit, so that 1.4 would need 90 % of it; products of 8,000 rows alone reach some 85 %. Discrete
BCQ spends half of an update on its products; a fifth goes to the interpreter, the rest to fetching parameters, moments and gradients of
three networks from memory, which d3rlpy does too.

With `precision="bfloat16"` products between hidden layers are shorter; the ratio is to the faster of d3rlpy's two rates, the second of
which is that under `torch.set_float32_matmul_precision("medium")`, torch's own switch for shorter products. [learners.md](learners.md) has
the scores of learners so trained. The processor has the instructions for such products (AVX-512 BF16); where it has none they gain nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="interpreter that has d3rlpy 2.8.1")
    parser.add_argument("--launches", type=int, default=3)
    parser.add_argument("--bursts", type=int, default=8)
    parser.add_argument("--learner", choices=list(CASES), action="append")
    parser.add_argument("--serve", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        clock(args.serve, CASES[args.serve][0], args.precision)
        return
    if args.peer is None:
        parser.error("--peer must name an interpreter that has d3rlpy 2.8.1.")
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.learner or CASES:
        discrete = name.endswith(" discrete")
        flops = operations(name, log_of(synthetic(discrete=discrete), discrete=discrete))
        found[name] = summary([take_turns(name, args.peer, args.bursts) for _ in range(args.launches)], flops)
        print(name, found[name], flush=True)
    found = {name: found[name] for name in CASES if name in found}
    replace_file(RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    replace_file(DOCS, f"{INTRODUCTION}\n\n{page(found)}\n".encode())


if __name__ == "__main__":
    main()
