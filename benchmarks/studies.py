"""What studies of estimators share: features that see too little, rows that are kept as they come, and tables within a page."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ope.files import replace_file
from ope.validation import FloatArray

MARK = "<!-- tables -->"
SAVE_EVERY = 10
Cells = dict[str, Any]


# -------------------------------------------------------------------- features


def position(states: FloatArray) -> FloatArray:
    """Return a 1 and the number of a one-hot state."""
    return np.column_stack([np.ones(len(states)), states.argmax(axis=1)])


def constant(states: FloatArray) -> FloatArray:
    """Return a 1: nothing of the state."""
    return np.ones((len(states), 1))


def pairs(states: FloatArray) -> FloatArray:
    """Return which two neighbours a one-hot state belongs to."""
    return np.asarray(np.eye((states.shape[1] + 1) // 2)[states.argmax(axis=1) // 2])


# -------------------------------------------------------------------- runs


def kept_cells(path: Path) -> Cells:
    """Return the cells of a file, each with its rows and the seconds they took."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def fill(path: Path, cells: Cells, key: str, wanted: int, row: Callable[[int], dict[str, Any]]) -> None:
    """Add rows to a cell until it has as many as wanted, and write them as they come; row i is ``row(i)``."""
    cell = cells.setdefault(key, {"rows": [], "seconds": 0.0})
    while len(cell["rows"]) < wanted:
        start = time.process_time()
        cell["rows"].append(row(len(cell["rows"])))
        cell["seconds"] = round(cell["seconds"] + time.process_time() - start, 3)
        if len(cell["rows"]) % SAVE_EVERY == 0 or len(cell["rows"]) == wanted:
            replace_file(path, json.dumps(cells).encode())
    print(key, len(cell["rows"]), cell["seconds"], flush=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Run the block on one thread, without warnings: studies ask methods what these warn of."""
    with threadpool_limits(1), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -------------------------------------------------------------------- pages


def write_tables(page: Path, lines: list[str]) -> None:
    """Put lines between the two marks of a page."""
    head, _, foot = page.read_text().split(MARK)
    replace_file(page, MARK.join([head, "\n\n" + "\n".join(lines) + "\n\n", foot]).encode())


def options(words: str, logs: int, only: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for: `verb`, `logs` and, where there is a choice, `only`."""
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("verb", choices=["run", "report"])
    parser.add_argument("--logs", type=int, default=logs)
    if only is not None:
        parser.add_argument("--only", nargs="*", default=only)
    return parser.parse_args()
