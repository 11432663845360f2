"""The default estimator beside the best estimator of every cell of the estimator study, known only with the truth.

    python benchmarks/estimators.py run          and report: the study
    python benchmarks/default_choice.py          reads its table, writes docs/default.md and benchmarks/results/default.json

A cell is a problem and a number of episodes. Cells whose best error is 0 (Baird's problem, whose rewards are 0) say nothing and are left
out; an estimator that does not answer nearly all logs of a cell, or was tried on fewer than 100, is no candidate for its best.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ope.files import replace_file

HERE = Path(__file__).resolve().parent
STUDY = HERE / "results" / "estimators.csv"
RESULTS = HERE / "results" / "default.json"
DOCS = HERE.parent / "docs" / "default.md"
LEAST_ANSWERED = 0.95
# Methods that the study tried on fewer logs: the best of a cell would be the luckiest.
LEAST_RUNS = 100
WANTED = 1.5


def cells() -> pd.DataFrame:
    """Return the mean squared error of every closed-form estimator that answers, a row a cell and estimator."""
    table = pd.read_csv(STUDY)
    answers = (table["answered"] >= LEAST_ANSWERED * table["runs"]) & (table["runs"] >= LEAST_RUNS)
    return table[answers & ~table["estimator"].str.contains("neural")].rename(columns={"relative_mse": "mse"})


def judge(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the default beside the best of every cell, and every fixed estimator beside the default over its cells."""
    wide = table.pivot_table(index=["problem", "n"], columns="estimator", values="mse", sort=False)
    fixed = wide.drop(columns="default")
    best = fixed.min(axis=1)
    used = best > 0.0
    wide, fixed, best = wide[used], fixed[used], best[used]
    coverage = table[table["estimator"] == "default"].set_index(["problem", "n"])["coverage"]
    shown = pd.DataFrame(
        {
            "best": fixed.idxmin(axis=1),
            "best_mse": best,
            "default_mse": wide["default"],
            "ratio": wide["default"] / best,
        }
    ).assign(coverage=coverage)
    lines = []
    for name in fixed.columns:
        served = fixed[name].notna()
        ratios = np.log(fixed.loc[served, name] / best[served]), np.log(wide.loc[served, "default"] / best[served])
        lines.append(
            {
                "estimator": name,
                "cells": int(served.sum()),
                "ratio": np.exp(ratios[0].mean()),
                "default": np.exp(ratios[1].mean()),
            }
        )
    return shown, pd.DataFrame(lines).sort_values("ratio")


def page(shown: pd.DataFrame, fixed: pd.DataFrame) -> str:
    overall = float(np.exp(np.log(shown["ratio"]).mean()))
    better = fixed.loc[fixed["ratio"] <= fixed["default"], ["estimator", "cells"]].to_numpy().tolist()
    but = "".join(f"; not of {name}, which serves {count} cells" for name, count in better)
    rows = [
        f"| {row['problem']} | {row['n']} | {row['best']} | {row['best_mse']:.2g} | {row['default_mse']:.2g} | {row['ratio']:.2f} "
        f"| {100 * row['coverage']:.0f} |"
        for row in shown.reset_index().to_dict("records")
    ]
    others = [
        f"| {row['estimator']} | {row['cells']} | {row['ratio']:.2f} | {row['default']:.2f} |"
        for _, row in fixed.iterrows()
    ]
    return "\n".join(
        [
            "# The default estimator",
            "",
            "Written by `python benchmarks/default_choice.py` from the runs of `benchmarks/estimators.py`: 100 logs a cell, relative mean squared",
            "errors. *Best*: the closed-form estimator with the smallest error in this cell, which only the truth tells.",
            "",
            f"Over {len(shown)} cells the geometric mean of the error of `DefaultEstimator` is **{overall:.2f}** times that of the best of each cell (wanted: at",
            f"most {WANTED}). It is below that of {len(fixed) - len(better)} of {len(fixed)} fixed estimators, each compared on the cells that it serves{but}.",
            "",
            "The rule was set after a look at these cells (their estimates are what it was designed on), so that the figures say that one",
            "simple rule suffices here, not how it does on problems of another kind. Its losses: hidden state that the test does not find in 64",
            "episodes (ModelFail, Hybrid), and Hybrid, where partial weights would be better than any that it tries.",
            "",
            "| problem | n | best | its error | default | ratio | coverage of the default, % |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "## Fixed estimators",
            "",
            "Geometric mean of the ratio to the best of the cell, over the cells that an estimator serves, and that of the default on the same cells.",
            "",
            "| estimator | cells | ratio | default |",
            "|---|---|---|---|",
            *others,
            "",
        ]
    )


def main() -> None:
    """Write the page and the figures."""
    shown, fixed = judge(cells())
    found: dict[str, Any] = {
        "geometric mean ratio": float(np.exp(np.log(shown["ratio"]).mean())),
        "cells": len(shown),
        "fixed": fixed.round(4).to_dict("records"),
    }
    replace_file(RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    replace_file(DOCS, page(shown, fixed).encode())


if __name__ == "__main__":
    main()
