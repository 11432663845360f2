"""A case of bad input, and the frames and calls that the cases of `test_bad_input` start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ope.dataset import LoggedDataset

FRAME = "LoggedDataset.from_pandas"
ARRAYS = "LoggedDataset"
STATE_ONLY = {"final_row": "state_only"}
NEXT = {"next_states": ["x_next", "y_next"]}


@dataclass(frozen=True)
class Bad:
    """A call that must raise `error` with a message in which all `fragments` (regular expressions) occur."""

    name: str
    call: Callable[[], Any]
    error: type[Exception]
    fragments: tuple[str, ...]


def frame(**changes: Any) -> pd.DataFrame:
    """Return two terminal episodes of two steps with row labels 10, 20, 30, 40; None drops a column."""
    columns: dict[str, Any] = {
        "id": ["p1", "p1", "p2", "p2"],
        "t": [0, 1, 0, 1],
        "x": [0.0, 1.0, 2.0, 3.0],
        "y": [0.5, 0.5, 0.5, 0.5],
        "act": ["a", "b", "a", "b"],
        "r": [1.0, 2.0, 3.0, 4.0],
        "p": [0.5, 0.5, 0.5, 0.5],
        "dead": [False, True, False, True],
        "lost": [False, False, False, False],
        "x_next": [1.0, 9.0, 3.0, 9.0],
        "y_next": [0.5, 0.5, 0.5, 0.5],
        "may_a": [True, True, True, True],
        "may_b": [True, True, True, True],
    }
    columns = {name: values for name, values in (columns | changes).items() if values is not None}
    return pd.DataFrame(columns, index=[10, 20, 30, 40])


def read(table: Any = None, **changes: Any) -> Callable[[], Any]:
    """Return the call that reads `table` with the usual arguments, changed."""
    arguments: dict[str, Any] = {"episode": "id", "time": "t", "states": ["x", "y"], "action": "act", "reward": "r"}
    arguments |= {"terminated": "dead", "truncated": "lost"} | changes
    return lambda: LoggedDataset.from_pandas(frame() if table is None else table, **arguments)


def state_only(**changes: Any) -> pd.DataFrame:
    """Return one transition and a last row with the state only for each of two episodes."""
    missing: dict[str, Any] = {"act": ["a", None, "a", None], "r": [1.0, None, 3.0, None], "p": [0.5, None, 0.5, None]}
    return frame(**(missing | changes))


def arrays(**changes: Any) -> Callable[[], Any]:
    """Return the call that builds a log of two steps and one from arrays, changed."""
    arguments: dict[str, Any] = {"states": [[0.0], [1.0], [2.0]], "actions": [0, 1, 0], "rewards": [0.0, 1.0, 2.0]}
    arguments |= {"lengths": [2, 1], "ends": "terminal"} | changes
    return lambda: LoggedDataset.from_arrays(**arguments)


def log(**changes: Any) -> LoggedDataset:
    built = arrays(**changes)()
    assert isinstance(built, LoggedDataset)
    return built


LOST = {"dead": [False] * 4, "lost": [False, True, False, True]}
UNFLAGGED = {"terminated": None, "truncated": None}
ROW_20, ROW_30 = r"index 20 \(episode 'p1'\) \(1 in all\)", r"index 30 \(episode 'p2'\) \(1 in all\)"
