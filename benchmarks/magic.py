"""MAGIC beside the better of its two ends, the Q model and weighted doubly robust.

    python benchmarks/magic.py [--repetitions 1000]

Both ends are read off the diagnostics of the same fits. Written to ``benchmarks/results/magic.json`` and ``docs/magic.md``: mean
squared errors, and the ratio of MAGIC's to the smaller of the others with its standard error (delta method).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from ope.estimators import MAGIC
from ope.policies import TabularPolicy
from ope.problems import Hybrid, ModelFail, ModelWin, TabularProblem

HERE = Path(__file__).parent
PROBLEMS: tuple[Callable[[], TabularProblem], ...] = (ModelFail, ModelWin, Hybrid)
SIZES = (256, 1024)

INTRODUCTION = """# MAGIC beside its ingredients

Mean squared errors of the Q model (LSTDQ, cross-fitted), of weighted doubly robust with the same Q, and of the blend of them, gamma 1,
from {repetitions} logs a cell; `python benchmarks/magic.py` writes this page. The target: at most twice the error of the better end.

| problem | episodes | model | weighted doubly robust | MAGIC | ratio to the better | standard error of the ratio |
|---|---|---|---|---|---|---|"""


def errors(problem: TabularProblem, n: int, repetitions: int) -> npt.NDArray[np.float64]:
    """Return squared errors of the model, weighted doubly robust and MAGIC, shape (repetitions, 3)."""
    policy = TabularPolicy(problem.target, state_code=problem.state_code)
    truth = problem.value(policy, 1.0)
    rows = []
    for seed in range(repetitions):
        estimate = MAGIC(gamma=1.0, n_bootstrap=0).fit(problem.sample(n, random_state=10_000 + seed), policy).estimate()
        rows.append([estimate.diagnostics["q_value"], estimate.diagnostics["wdr_value"], estimate.value])
    squares: npt.NDArray[np.float64] = (np.array(rows) - truth) ** 2
    return squares


def summary(squares: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return mean squared errors and the ratio of MAGIC's to the smaller of the others."""
    model, wdr, magic = squares.mean(axis=0)
    better = int(wdr < model)
    ratio = magic / squares[:, better].mean()
    terms = (squares[:, 2] - ratio * squares[:, better]) / squares[:, better].mean()
    return {
        "model": float(model),
        "wdr": float(wdr),
        "magic": float(magic),
        "ratio": float(ratio),
        "ratio_error": float(terms.std(ddof=1) / np.sqrt(len(terms))),
    }


def main() -> None:
    """Run the study and write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args().repetitions
    cells = []
    with threadpool_limits(limits=1):
        for problem in (make() for make in PROBLEMS):
            for n in SIZES:
                found = summary(errors(problem, n, repetitions))
                cells.append({"problem": type(problem).__name__, "n": n, "repetitions": repetitions, **found})
                print(cells[-1], flush=True)
    (HERE / "results" / "magic.json").write_text(json.dumps(cells, indent=1) + "\n")
    lines = [
        f"| {c['problem']} | {c['n']} | {c['model']:.4g} | {c['wdr']:.4g} | {c['magic']:.4g} | {c['ratio']:.2f} | {c['ratio_error']:.2f} |"
        for c in cells
    ]
    page = [INTRODUCTION.format(repetitions=repetitions), *lines]
    (HERE.parent / "docs" / "magic.md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
