"""Time and peak memory of 1,000 bootstrap replicates of 200,000 episodes, beside a plain NumPy Poisson bootstrap.

    python benchmarks/bootstrap_speed.py [--episodes 200000] [--replicates 1000] [--rounds 3]

Every measurement runs in a fresh interpreter; the cases take turns, so that a busy machine slows all of them alike: compare the
ratios and the CPU times. Peak memory is that of the whole interpreter, imports included. The plain bootstrap draws
`Generator.poisson` counts in blocks of replicates, as one would write it; its counts depend on the number of episodes and on
the order of drawing, the library's on nothing but (episode, replicate, seed). Only a run of the default size is kept in
``benchmarks/results/bootstrap_speed.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "bootstrap_speed.json"
EPISODES, REPLICATES = 200_000, 1_000
SECONDS, MEGABYTES = 2.0, 500.0
BLOCK = 8  # replicates at a time in the plain bootstrap: 13 MB of counts


def library(kind: str, threads: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return the library's replicates of a mean."""

    def replicates(scores: np.ndarray, count: int) -> np.ndarray:
        import joblib

        from ope.inference import hash_identifiers, mean_replicates

        keys = hash_identifiers(np.arange(len(scores)))
        with joblib.parallel_config(backend="threading", n_jobs=threads):
            return mean_replicates(scores, keys, count, kind=kind)  # type: ignore[arg-type]

    return replicates


def plain(scores: np.ndarray, count: int) -> np.ndarray:
    """Return replicates of a mean as one would write them in NumPy."""
    rng, found = np.random.default_rng(0), []
    for first in range(0, count, BLOCK):
        counts = rng.poisson(1.0, size=(min(BLOCK, count - first), len(scores)))
        found.append(counts @ scores / counts.sum(axis=1))
    return np.concatenate(found)


CASES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "poisson, 2 threads": library("poisson", 2),
    "poisson, 1 thread": library("poisson", 1),
    "bayesian, 2 threads": library("bayesian", 2),
    "plain NumPy": plain,
}


def measure(name: str, episodes: int, replicates: int) -> dict[str, float]:
    """Time one case in this interpreter."""
    scores = np.random.default_rng(1).normal(size=episodes)
    CASES[name](scores[:100], 10)  # imports
    wall, cpu = time.perf_counter(), time.process_time()
    found = CASES[name](scores, replicates)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_mb": peak,
        "std": float(found.std(ddof=1)),
        "first": float(found[0]),
    }


def in_fresh_interpreter(name: str, episodes: int, replicates: int) -> dict[str, float]:
    """Time one case in an interpreter of its own."""
    command = [
        sys.executable,
        __file__,
        "--case",
        name,
        "--episodes",
        str(episodes),
        "--replicates",
        str(replicates),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return the least times and the largest memory of every case, and its ratios to the plain bootstrap, round by round."""
    cases = {}
    for name, measured in rounds.items():
        ratios = [p["wall_s"] / m["wall_s"] for m, p in zip(measured, rounds["plain NumPy"], strict=True)]
        cpu_ratios = [p["cpu_s"] / m["cpu_s"] for m, p in zip(measured, rounds["plain NumPy"], strict=True)]
        cases[name] = {
            "wall_s": round(min(m["wall_s"] for m in measured), 3),
            "wall_s_median": round(statistics.median(m["wall_s"] for m in measured), 3),
            "cpu_s": round(min(m["cpu_s"] for m in measured), 3),
            "peak_mb": round(max(m["peak_mb"] for m in measured), 1),
            "times_faster_than_plain": round(statistics.median(ratios), 2),
            "times_faster_than_plain_cpu": round(statistics.median(cpu_ratios), 2),
            "std": measured[0]["std"],
        }
    return cases


def main() -> None:
    """Measure all cases, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--replicates", type=int, default=REPLICATES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = arguments.episodes, arguments.replicates
    if arguments.case:
        print(json.dumps(measure(arguments.case, *size)))
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    load = os.getloadavg()[0]
    for _ in range(arguments.rounds):
        for name, measured in rounds.items():
            measured.append(in_fresh_interpreter(name, *size))
    assert rounds["poisson, 2 threads"][0]["first"] == rounds["poisson, 1 thread"][0]["first"]
    report(size, arguments.rounds, load, summary(rounds))


def report(size: tuple[int, int], rounds: int, load: float, cases: dict[str, dict[str, Any]]) -> None:
    """Print and judge; keep a run of the default size."""
    default = cases["poisson, 2 threads"]
    result = {
        "episodes": size[0],
        "replicates": size[1],
        "rounds": rounds,
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "cases": cases,
        "within_time": default["wall_s"] < SECONDS,
        "within_memory": default["peak_mb"] < MEGABYTES,
    }
    print(json.dumps(result, indent=2))
    if size == (EPISODES, REPLICATES):
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
