"""Throughput and peak memory of the importance sampling family on a large ragged log, beside a plain read of its arrays.

    python benchmarks/throughput.py [--rows 20000000] [--rounds 3]

Only a run of the default size is kept in ``benchmarks/results/throughput.json`` and judged. Every case runs in a fresh interpreter that loads the arrays from disk, builds a `LoggedDataset` and fits; the memory of
making the arrays does not count. Reads and fits take turns, and so do the cases, so that a busy machine slows all of them
alike: compare the ratios. Peak memory is that of the whole interpreter, imports and arrays included, before anything but
the case itself has run. Throughput counts a transition once for each candidate.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "throughput.json"
GAMMA, N_STATES, N_ACTIONS, LONGEST, N_CANDIDATES = 0.99, 20, 4, 100, 4
ROWS = 20_000_000
MEMORY_LIMIT = 2.0
FITS_PER_PROCESS = 3
COLUMNS = ("states", "actions", "rewards", "behavior_prob", "lengths")


@dataclass(frozen=True)
class Case:
    """What one interpreter measures.

    Parameters
    ----------
    estimator : str
        Name in `ope.estimators`, or "plain NumPy" for the loop-free textbook formula without diagnostics.
    options : dict
    policy : {"ColumnPolicy", "TabularPolicy"}
    candidates : int
    """

    estimator: str
    options: dict[str, Any]
    policy: str = "ColumnPolicy"
    candidates: int = 1


CASES = {
    "IS": Case("TrajectoryIS", {}),
    "PDIS": Case("PerDecisionIS", {}),
    "WIS": Case("WeightedIS", {"per_decision": False}),
    "WPDIS": Case("WeightedIS", {"per_decision": True}),
    "PDIS, 4 candidates": Case("PerDecisionIS", {}, candidates=4),
    "PDIS, table": Case("PerDecisionIS", {}, policy="TabularPolicy"),
    "plain NumPy PDIS": Case("plain NumPy", {}),
}

# -------------------------------------------------------------------- the log


def make_log(folder: Path, rows: int) -> None:
    """Write the arrays of a log with episodes of 1 to 100 steps, 4 state columns and 4 candidates close to its policy."""
    import numpy as np

    g = np.random.default_rng(0)
    lengths = g.integers(1, LONGEST + 1, size=2 * rows // (LONGEST + 1))
    n = int(lengths.sum())
    behavior = 0.5 * g.dirichlet(np.ones(N_ACTIONS), N_STATES) + 0.5 / N_ACTIONS
    away = 0.05 * np.arange(1, N_CANDIDATES + 1)[:, None, None]
    tables = (1 - away) * behavior + away * g.dirichlet(np.ones(N_ACTIONS), (N_CANDIDATES, N_STATES))
    states = g.normal(size=(n, 4))
    code = g.integers(N_STATES, size=n)
    states[:, 0] = code
    cdf = behavior.cumsum(axis=1)[:, :-1]
    actions = (g.random(n)[:, None] > cdf[code]).sum(axis=1)
    arrays = {
        "states": states,
        "actions": actions,
        "rewards": g.normal(size=n),
        "behavior_prob": behavior[code, actions],
        "lengths": lengths,
        "tables": tables,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for k in {case.candidates for case in CASES.values()}:
        np.save(folder / f"candidates_{k}.npy", tables[:k, code, actions])


# -------------------------------------------------------------------- one case in one interpreter


def peak_bytes() -> int:
    """Return the largest resident size of this interpreter so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return wall seconds, processor seconds and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def load(folder: Path, case: Case) -> dict[str, Any]:
    """Return the arrays that the case needs."""
    import numpy as np

    arrays = {name: np.load(folder / f"{name}.npy") for name in COLUMNS}
    if case.policy == "ColumnPolicy":
        arrays["candidates"] = np.load(folder / f"candidates_{case.candidates}.npy")
    return arrays


def read_columns(arrays: dict[str, Any]) -> float:
    """Add up every array: the least that any method must do."""
    return float(sum(array.sum() for array in arrays.values()))


def build_log(arrays: dict[str, Any]) -> Any:
    """Return the log, with the candidates' probabilities as further columns."""
    import pandas as pd

    from ope import LoggedDataset

    candidates = arrays.get("candidates")
    extras = None if candidates is None else pd.DataFrame(candidates.T, columns=names(len(candidates)), copy=False)
    return LoggedDataset.from_arrays(
        arrays["states"],
        arrays["actions"],
        arrays["rewards"],
        lengths=arrays["lengths"],
        ends="terminal",
        behavior_prob=arrays["behavior_prob"],
        extras=extras,
    )


def names(n: int) -> list[str]:
    """Return the names of the candidates' columns."""
    return [f"candidate_{k}" for k in range(n)]


def fit_of(case: Case, folder: Path, log: Any) -> Callable[[], Any]:
    """Return what is timed: a fit, the diagnostics and the verdict included."""
    import numpy as np

    from ope import estimators
    from ope.policies import ColumnPolicy, TabularPolicy

    estimator = getattr(estimators, case.estimator)(gamma=GAMMA, **case.options)
    if case.policy == "TabularPolicy":
        policies = {"table": TabularPolicy(np.load(folder / "tables.npy")[0], state_code=0)}
    else:
        policies = {name: ColumnPolicy(name) for name in names(case.candidates)}

    def fit() -> list[float]:
        return [estimate.value for estimate in estimator.fit(log, policies).estimate().values()]

    return fit


def plain_numpy(arrays: dict[str, Any]) -> list[float]:
    """Return per-decision importance sampling as one would write it for a notebook, on whole columns."""
    import numpy as np

    lengths = arrays["lengths"]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    log_w = np.cumsum(np.log(arrays["candidates"][0]) - np.log(arrays["behavior_prob"]))
    log_w -= np.repeat(np.where(starts > 0, log_w[starts - 1], 0.0), lengths)
    steps = np.arange(len(log_w)) - np.repeat(starts, lengths)
    return [float(np.add.reduceat(GAMMA**steps * np.exp(log_w) * arrays["rewards"], starts).mean())]


def measure_case(name: str, folder: Path) -> dict[str, Any]:
    """Return times and peaks of one case, fits and reads taking turns."""
    case = CASES[name]
    import ope.estimators
    import ope.policies  # noqa: F401  (imports are not part of the fit)

    imported = peak_bytes()
    arrays = load(folder, case)
    sizes = {"input_bytes": sum(array.nbytes for array in arrays.values()), "import_bytes": imported}
    if case.estimator == "plain NumPy":
        return {**sizes, **in_turns(lambda: plain_numpy(arrays), arrays)}
    *build_s, log = timed(lambda: build_log(arrays))
    sizes["built_bytes"] = peak_bytes()
    return {**sizes, "build_s": build_s, **in_turns(fit_of(case, folder, log), arrays)}


def in_turns(work: Callable[[], list[float]], arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the times of the work and of reading the arrays, in turns, and the peak memory after the first work."""
    fits, reads = [timed(work)], [timed(lambda: read_columns(arrays))]
    peak = peak_bytes()
    for _ in range(FITS_PER_PROCESS - 1):
        fits.append(timed(work))
        reads.append(timed(lambda: read_columns(arrays)))
    return {
        "rows": len(arrays["rewards"]),
        "peak_bytes": peak,
        "fit_s": [fit[:2] for fit in fits],
        "read_s": [read[:2] for read in reads],
        "values": fits[0][2],
    }


# -------------------------------------------------------------------- all cases


def fresh(*arguments: str) -> str:
    """Run this file in a fresh interpreter and return what it printed last."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def measure(rows: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Return the measurements of all cases, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        fresh("--folder", folder, "--rows", str(rows))
        for turn in range(rounds):
            for name in CASES:
                print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                runs[name].append(json.loads(fresh("--case", name, "--folder", folder)))
    return runs


def check_values(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Raise unless the library and the textbook formula agree on the first candidate."""
    ours, plain = runs["PDIS"][0]["values"][0], runs["plain NumPy PDIS"][0]["values"][0]
    if not math.isclose(ours, plain, rel_tol=1e-6):
        raise RuntimeError(f"per-decision importance sampling gives {ours!r}, the plain formula {plain!r}")


def median_of(pairs: Sequence[Sequence[float]], clock: int) -> float:
    """Return the median by the wall (0) or the processor's clock (1)."""
    return statistics.median(pair[clock] for pair in pairs)


def summarise(name: str, runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return medians and peaks of one case."""
    transitions = runs[0]["rows"] * CASES[name].candidates
    fits = [fit for run in runs for fit in run["fit_s"]]
    reads = [read for run in runs for read in run["read_s"]]
    ratios = [[a / b for a, b in zip(fit, read, strict=True)] for fit, read in zip(fits, reads, strict=True)]
    summary = {
        "fit_s": median_of(fits, 0),
        "fit_cpu_s": median_of(fits, 1),
        "m_per_s": transitions / median_of(fits, 0) / 1e6,
        "m_per_cpu_s": transitions / median_of(fits, 1) / 1e6,
        "read_s": median_of(reads, 0),
        "read_cpu_s": median_of(reads, 1),
        "fit_over_read": median_of(ratios, 0),
        "fit_over_read_cpu": median_of(ratios, 1),
        "input_gb": runs[0]["input_bytes"] / 1e9,
        "import_gb": max(run["import_bytes"] for run in runs) / 1e9,
        "peak_gb": max(run["peak_bytes"] for run in runs) / 1e9,
        "peak_over_input": max(run["peak_bytes"] / run["input_bytes"] for run in runs),
    }
    if "build_s" not in runs[0]:
        return summary
    builds = [run["build_s"] for run in runs]
    built = max(run["built_bytes"] / run["input_bytes"] for run in runs)
    return {
        **summary,
        "from_arrays_s": median_of(builds, 0),
        "from_arrays_cpu_s": median_of(builds, 1),
        "from_arrays_peak_over_input": built,
    }


def show(summaries: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    columns = {
        "fit s": "fit_s",
        "M/s": "m_per_s",
        "M/cpu s": "m_per_cpu_s",
        "x read": "fit_over_read",
        "x read cpu": "fit_over_read_cpu",
        "input GB": "input_gb",
        "peak GB": "peak_gb",
        "peak/input": "peak_over_input",
        "built/input": "from_arrays_peak_over_input",
        "build cpu s": "from_arrays_cpu_s",
    }
    print(f"{'':20s}" + "".join(f"{word:>12s}" for word in columns))
    for name, summary in summaries.items():
        cells = (f"{summary[key]:12.2f}" if key in summary else f"{'-':>12s}" for key in columns.values())
        print(f"{name:20s}" + "".join(cells))


def keep(summaries: dict[str, dict[str, float]], rows: int, rounds: int) -> None:
    """Write the summaries, without a word about the machine."""
    kept = {name: {key: round(value, 4) for key, value in summary.items()} for name, summary in summaries.items()}
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "pandas")}}
    about = {"rows": rows, "gamma": GAMMA, "rounds": rounds, "versions": versions}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**about, "cases": kept}, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure_case(arguments.case, arguments.folder)))
        return 0
    if arguments.folder:
        make_log(arguments.folder, arguments.rows)
        return 0
    runs = measure(arguments.rows, arguments.rounds)
    check_values(runs)
    summaries = {name: summarise(name, of_case) for name, of_case in runs.items()}
    show(summaries)
    if arguments.rows != ROWS:
        return 0
    keep(summaries, runs["PDIS"][0]["rows"], arguments.rounds)
    worst = max(summary["peak_over_input"] for summary in summaries.values() if "from_arrays_s" in summary)
    return 0 if worst <= MEMORY_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
