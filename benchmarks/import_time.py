"""How long `import ope` and the first imports of a user take, beside pandas and scikit-learn, which come with them anyway.

Run ``python benchmarks/import_time.py [--repeats N]``. Every time is that of a fresh interpreter, less that of an
interpreter that imports nothing; the cases take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

CASES = {
    "nothing": "pass",
    "ope": "import ope",
    "first_use": "from ope import LoggedDataset, PolicySelector; from ope.estimators import WeightedIS",
    "pandas_and_sklearn": "import pandas, sklearn.base",
}
RESULTS = Path(__file__).resolve().parent / "results" / "import_time.json"
OPE_LIMIT_S = 0.1
RATIO_LIMIT = 1.3


def seconds(code: str) -> float:
    """Return the time of one fresh interpreter that runs the code, in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def measure(repeats: int) -> dict[str, list[float]]:
    """Return the times of all cases, in turns, after one turn that fills the file cache."""
    for code in CASES.values():
        seconds(code)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(repeats):
        for name, code in CASES.items():
            times[name].append(seconds(code))
    return times


def summarise(times: dict[str, list[float]]) -> dict[str, float]:
    """Return medians above the empty interpreter, and the median over turns of the ratio to pandas and scikit-learn."""
    turns = [dict(zip(times, turn, strict=True)) for turn in zip(*times.values(), strict=True)]
    above = [{name: turn[name] - turn["nothing"] for name in CASES if name != "nothing"} for turn in turns]
    ratios = [turn["first_use"] / turn["pandas_and_sklearn"] for turn in above]
    return {
        **{f"{name}_s": statistics.median(turn[name] for turn in above) for name in above[0]},
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    result = summarise(measure(arguments.repeats))
    where = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "pandas", "scikit-learn", "scipy")},
    }
    kept = {name: round(value, 4) for name, value in result.items()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**kept, "repeats": arguments.repeats, "versions": where}, indent=2) + "\n")
    print(f"import ope                        {result['ope_s']:.3f} s (limit {OPE_LIMIT_S} s)")
    print(f"LoggedDataset, PolicySelector, .. {result['first_use_s']:.3f} s")
    print(f"pandas, sklearn.base              {result['pandas_and_sklearn_s']:.3f} s")
    ratio = f"{result['ratio']:.2f} ({result['ratio_low']:.2f} to {result['ratio_high']:.2f})"
    print(f"ratio                             {ratio} (limit {RATIO_LIMIT})")
    return 0 if result["ope_s"] <= OPE_LIMIT_S and result["ratio"] <= RATIO_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
