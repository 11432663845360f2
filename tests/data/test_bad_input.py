"""Bad input: every door refuses it with a sentence that names the owner, the parameter, the rule, what came and the remedy.

To add a case, append a `Bad` to BAD_INPUT, or to a list of your own that the last line of the table takes in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

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

COLUMN_NAMES = [
    Bad(
        "missing column",
        read(reward="rr"),
        ValueError,
        (FRAME, "`reward` must name a column", "'rr'", "did you mean 'r'"),
    ),
    Bad(
        "missing column, other case", read(action="ACT"), ValueError, (FRAME, "`action`", "'ACT'", "did you mean 'act'")
    ),
    Bad(
        "missing column, nothing near",
        read(time="hour"),
        ValueError,
        (FRAME, "`time`", "'hour'", r"columns are \['id'"),
    ),
    Bad("missing mask column", read(action_mask=["may_a", "mayb"]), ValueError, (FRAME, "`action_mask`", "'may_b'")),
    Bad(
        "column used twice",
        read(states=["x", "r"]),
        ValueError,
        (FRAME, "one use", "'r' for `reward` and `states`", "copy it"),
    ),
    Bad("state column twice", read(states=["x", "x"]), ValueError, (FRAME, "'x' for `states` and `states`", "copy it")),
    Bad(
        "two columns of one name",
        read(frame().rename(columns={"y": "x"})),
        ValueError,
        (FRAME, "distinct", "'x'", "rename"),
    ),
    Bad("index level and column", read(frame().set_index("t", drop=False)), ValueError, (FRAME, "'t'", "reset_index")),
    Bad("columns without names", read(frame().rename(columns={"y": 7})), TypeError, (FRAME, "strings", "7", "str")),
    Bad("name that is no string", read(episode=3), TypeError, (FRAME, "`episode`", "name of a column", "got 3")),
    Bad("no state columns", read(states=[]), TypeError, (FRAME, "`states`", "at least one", r"got \[\]")),
    Bad(
        "not a frame",
        read({"id": [1]}),
        TypeError,
        (FRAME, "`frame`", "pandas DataFrame", "got dict", "pandas.DataFrame"),
    ),
    Bad("empty frame", read(frame().iloc[:0]), ValueError, (FRAME, "`frame`", "at least one row", "got none")),
]

IDENTIFIERS = [
    Bad(
        "missing episode",
        read(frame(id=["p1", None, "p2", "p2"])),
        ValueError,
        (FRAME, r"`episode` \(column 'id'\)", "index 20", "fill in"),
    ),
    Bad(
        "missing time",
        read(frame(t=[0, 1, None, 1])),
        ValueError,
        (FRAME, r"`time` \(column 't'\)", ROW_30, "not be missing"),
    ),
    Bad("infinite time", read(frame(t=[0, 1, 0, np.inf])), ValueError, (FRAME, "`time`", "infinite", "index 40")),
    Bad(
        "episodes of mixed type",
        read(frame(id=[1, 1, "p2", "p2"])),
        TypeError,
        (FRAME, "`episode`", "int, str", r"astype\(str\)"),
    ),
    Bad("times without an order", read(frame(t=[1j, 2j, 1j, 2j])), TypeError, (FRAME, "`time`", "sortable", "convert")),
    Bad(
        "times that are lists", read(frame(t=[[1], [2], [1], [2]])), TypeError, (FRAME, "`time`", "sortable", "convert")
    ),
    Bad(
        "times as text",
        read(frame(t=["9", "10", "9", "10"])),
        TypeError,
        (FRAME, r"`time` \(column 't'\)", "text", "10 is before 9", "to_numeric"),
    ),
    Bad(
        "step twice",
        read(frame(t=[0, 0, 0, 1])),
        ValueError,
        (FRAME, "`time`", "once in an episode", ROW_20, "one row per step"),
    ),
    Bad(
        "gap in time",
        read(frame(id=1, t=[0, 1, 3, 4], dead=False)),
        ValueError,
        (FRAME, "`time`", "rise by 1", "gaps before index 30", "allow_gaps=True"),
    ),
    Bad(
        "wider steps",
        read(frame(t=[0, 4, 4, 8])),
        ValueError,
        (FRAME, "`time`", "rise by 1", "divide it by 4", "allow_gaps=True"),
    ),
]

STATES = [
    Bad(
        "state NaN",
        read(frame(x=[0.0, np.nan, 2.0, 3.0])),
        ValueError,
        (FRAME, r"`states` \(column 'x'\)", "finite", "nan", ROW_20, "impute"),
    ),
    Bad(
        "state infinite",
        read(frame(y=[0.5, 0.5, np.inf, 0.5])),
        ValueError,
        (FRAME, r"`states` \(column 'y'\)", "inf", ROW_30),
    ),
    Bad(
        "state NA",
        read(frame(x=pd.array([0, 1, None, 3], dtype="Int64"))),
        ValueError,
        (FRAME, "`states`", "nan", ROW_30),
    ),
    Bad(
        "states of mixed type",
        read(frame(x=[0.0, "high", 2.0, 3.0])),
        TypeError,
        (FRAME, r"column 'x'", "object", "float, str", "to_numeric"),
    ),
    Bad(
        "states as objects",
        read(frame(x=pd.Series([0, 1, 2, 3], dtype=object).tolist()).astype({"x": object})),
        TypeError,
        (FRAME, "'x'", "int", "to_numeric"),
    ),
    Bad(
        "categorical states",
        read(frame(x=pd.Categorical(["u", "v", "u", "v"]))),
        TypeError,
        (FRAME, "'x'", "category", "OneHotEncoder"),
    ),
    Bad(
        "integer categories",
        read(frame(x=pd.Categorical([1, 2, 1, 2]))),
        TypeError,
        (FRAME, "'x'", "category", "encode"),
    ),
    Bad("states as strings", read(frame(x=list("uvuv"))), TypeError, (FRAME, "'x'", "numeric", "encode")),
    Bad(
        "states as dates",
        read(frame(x=pd.date_range("2020", periods=4))),
        TypeError,
        (FRAME, "'x'", "datetime64", "hours since"),
    ),
]

ACTIONS = [
    Bad(
        "action missing",
        read(frame(act=["a", "b", None, "b"])),
        ValueError,
        (FRAME, r"`action` \(column 'act'\)", "missing", ROW_30, "remove"),
    ),
    Bad(
        "action NaN",
        read(frame(act=[0.5, np.nan, 1.0, 0.5])),
        ValueError,
        (FRAME, "`action`", "nan", ROW_20, "state_only"),
    ),
    Bad(
        "actions of mixed type",
        read(frame(act=["a", 1, "a", 1])),
        TypeError,
        (FRAME, "`action`", "int, str", "one type"),
    ),
    Bad(
        "label not listed",
        read(actions=["a", "c"]),
        ValueError,
        (FRAME, r"among `actions` \['a', 'c'\]", r"'b' \(str\) at index 20", "add it"),
    ),
    Bad(
        "labels of another type",
        read(frame(act=[0, 1, 0, 1]), actions=["0", "1"]),
        ValueError,
        (FRAME, r"0 \(int\)", r"`actions` \['0', '1'\]", "one type"),
    ),
    Bad("label listed twice", read(actions=["a", "b", "b"]), ValueError, (FRAME, "`actions`", "once", "repeated")),
    Bad("labels of mixed type", read(actions=["a", "b", 3]), TypeError, (FRAME, "`actions`", "int, str")),
    Bad(
        "labels of continuous actions",
        read(frame(act=[0.5, 1.0, 0.5, 1.0]), actions=[0.5, 1.0], continuous=True),
        ValueError,
        (FRAME, "`actions`", "absent", "drop one"),
    ),
    Bad(
        "several columns of labels",
        read(action=["act", "p"], continuous=False),
        ValueError,
        (FRAME, "`action`", "one column", "'act', 'p'"),
    ),
    Bad("continuous strings", read(continuous=True), TypeError, (FRAME, r"`action` \(column 'act'\)", "numeric")),
]

REWARDS = [
    Bad(
        "reward NaN",
        read(frame(r=[1.0, np.nan, 3.0, np.nan])),
        ValueError,
        (FRAME, r"`reward` \(column 'r'\)", r"index 20 .*, 40 .*\(2 in all\)", 'final_row="state_only"'),
    ),
    Bad(
        "reward NaN in the middle",
        read(frame(r=[np.nan, 1.0, 1.0, 1.0])),
        ValueError,
        (FRAME, "`reward`", r"index 10 \(episode 'p1'\)", "values before.$"),
    ),
    Bad("reward infinite", read(frame(r=[1.0, -np.inf, 3.0, 4.0])), ValueError, (FRAME, "`reward`", "-inf", ROW_20)),
    Bad("reward text", read(frame(r=list("1234"))), TypeError, (FRAME, "`reward`", "numeric")),
    Bad(
        "reward outside its range",
        read(reward_range=(0, 2)),
        ValueError,
        (FRAME, "`reward`", "reward_range", r"3\.0 at index 30 .*, 40", "widen"),
    ),
    Bad(
        "range upside down",
        read(reward_range=(2, 0)),
        ValueError,
        (FRAME, "`reward_range`", "low <= high", r"\(2, 0\)"),
    ),
    Bad("infinite range", read(reward_range=(0, np.inf)), ValueError, (FRAME, "`reward_range`", "finite", "inf")),
]

PROPENSITIES = [
    Bad(
        "propensity zero",
        read(frame(p=[0.5, 0.0, 0.5, 0.5]), behavior_prob="p"),
        ValueError,
        (FRAME, r"`behavior_prob` \(column 'p'\)", r"\(0, 1\]", r"0\.0 at index 20", "estimate_behavior"),
    ),
    Bad(
        "propensity above 1",
        read(frame(p=[0.5, 0.5, 1.5, 0.5]), behavior_prob="p"),
        ValueError,
        (FRAME, "`behavior_prob`", r"1\.5 at index 30"),
    ),
    Bad(
        "propensity negative",
        read(frame(p=[0.5, 0.5, -0.1, 0.5]), behavior_prob="p"),
        ValueError,
        (FRAME, "`behavior_prob`", r"-0\.1 at index 30"),
    ),
    Bad(
        "propensity NaN",
        read(frame(p=[0.5, np.nan, 0.5, 0.5]), behavior_prob="p"),
        ValueError,
        (FRAME, "`behavior_prob`", "finite", ROW_20),
    ),
    Bad(
        "log propensity positive",
        read(behavior_log_prob="p"),
        ValueError,
        (FRAME, "`behavior_log_prob`", "at most 0", r"0\.5 at index 10"),
    ),
    Bad(
        "both forms",
        read(behavior_prob="p", behavior_log_prob="r"),
        ValueError,
        (FRAME, "`behavior_prob`", "`behavior_log_prob`", "drop one"),
    ),
    Bad(
        "density zero",
        read(frame(act=[0.5, 1, 1, 1], p=[2.0, 3.0, 0.0, 1.0]), behavior_prob="p"),
        ValueError,
        (FRAME, "positive", "density", "index 30"),
    ),
]

ENDS = [
    Bad(
        "terminal flag too early",
        read(frame(dead=[True, True, False, True])),
        ValueError,
        (FRAME, r"`terminated` \(column 'dead'\)", "last row", r"index 10 \(episode 'p1'\)", "number apart"),
    ),
    Bad(
        "truncated flag too early",
        read(frame(lost=[False, False, True, False])),
        ValueError,
        (FRAME, r"`truncated` \(column 'lost'\)", ROW_30),
    ),
    Bad(
        "both flags",
        read(frame(lost=[False, True, False, False])),
        ValueError,
        (FRAME, "`terminated`", "`truncated`", "both flags", ROW_20, "keep one"),
    ),
    Bad(
        "flags as text",
        read(frame(dead=["no", "yes", "no", "yes"])),
        TypeError,
        (FRAME, "`terminated`", "booleans", "'no'", "map"),
    ),
    Bad(
        "flags as counts",
        read(frame(dead=[0, 2, 0, 1])),
        ValueError,
        (FRAME, "`terminated`", "0 and 1", "2 at index 20"),
    ),
    Bad(
        "flag missing",
        read(frame(dead=[False, True, None, True])),
        ValueError,
        (FRAME, "`terminated`", "0 and 1", ROW_30, "fill in"),
    ),
    Bad(
        "unflagged ends of different lengths",
        read(frame(t=[0, 1, 2, 0], id=["p1", "p1", "p1", "p2"]), **UNFLAGGED),
        ValueError,
        (FRAME, "one length|its length", "1 .episode 'p2'., 3 .episode 'p1'.", "terminated=", "truncated=", "horizon="),
    ),
    Bad(
        "unflagged end before the horizon",
        read(horizon=3, **UNFLAGGED),
        ValueError,
        (FRAME, "before step 3", r"\['p1', 'p2'\]", "terminated="),
    ),
    Bad(
        "episode longer than the horizon", read(horizon=1), ValueError, (FRAME, "horizon of 1 steps", r"\['p1', 'p2'\]")
    ),
    Bad(
        "terminal episode longer than the unflagged ones",
        read(frame(id=["p1", "p1", "p1", "p2"], t=[0, 1, 2, 0], dead=[False, False, True, False])),
        ValueError,
        (FRAME, "longer", "horizon of 1 steps", "'p1'"),
    ),
    Bad(
        "horizon that is no number",
        read(horizon=2.5),
        ValueError,
        (FRAME, "`horizon`", "positive number of steps", r"2\.5"),
    ),
    Bad("horizon zero", read(horizon=0), ValueError, (FRAME, "`horizon`", "positive", "got 0")),
]

FINAL_STATES = [
    Bad(
        "truncated without a state",
        read(frame(**LOST)),
        ValueError,
        (FRAME, r"\['p1', 'p2'\]", "next_states=", "state_only", '"drop"'),
    ),
    Bad(
        "truncated without next states",
        read(frame(**LOST, x_next=[1, np.nan, 3, 9], y_next=[0.5, np.nan, 0.5, 0.5]), **NEXT),
        ValueError,
        (FRAME, r"\['p1'\]", "state_only"),
    ),
    Bad(
        "next states that disagree",
        read(frame(x_next=[1.0, 9.0, 4.0, 9.0]), **NEXT),
        ValueError,
        (FRAME, r"`next_states` \(column 'x_next'\)", "agree", r"4\.0 before 3\.0", ROW_30, "missing in between"),
    ),
    Bad(
        "next states partly missing",
        read(frame(y_next=[0.5, np.nan, 0.5, 0.5]), **NEXT),
        ValueError,
        (FRAME, r"`next_states` \(column 'y_next'\)", "complete", ROW_20),
    ),
    Bad(
        "next states infinite",
        read(frame(y_next=[0.5, 0.5, 0.5, np.inf]), **NEXT),
        ValueError,
        (FRAME, "`next_states`", "inf", "index 40"),
    ),
    Bad(
        "next states as text",
        read(frame(y_next=list("abcd")), **NEXT),
        TypeError,
        (FRAME, "`next_states`", "numeric", "'y_next'"),
    ),
    Bad(
        "too few next states",
        read(next_states=["x_next"]),
        ValueError,
        (FRAME, "`next_states`", r"\['x', 'y'\]", r"got \['x_next'\]", "same order"),
    ),
    Bad(
        "next states and state-only rows",
        read(state_only(), **NEXT, **STATE_ONLY),
        ValueError,
        (FRAME, "`next_states`", "absent", "drop one"),
    ),
    Bad(
        "final_row of another kind",
        read(final_row="keep"),
        ValueError,
        (FRAME, "`final_row`", "state_only", "drop", "'keep'"),
    ),
    Bad(
        "state-only row with a reward",
        read(state_only(r=[1.0, None, 3.0, 4.0]), **STATE_ONLY),
        ValueError,
        (FRAME, "`reward`", "missing in the last row", "index 40", "append"),
    ),
    Bad(
        "state-only row with an action",
        read(state_only(act=["a", None, "a", "b"]), **STATE_ONLY),
        ValueError,
        (FRAME, r"`action` \(column 'act'\)", "missing in the last row", "index 40"),
    ),
    Bad(
        "state-only row without a state",
        read(state_only(x=[0.0, 1.0, 2.0, np.nan]), **STATE_ONLY),
        ValueError,
        (FRAME, "`states`", "finite", "index 40"),
    ),
    Bad(
        "state-only row alone",
        read(
            state_only(
                id=["p1", "p1", "p1", "p2"],
                t=[0, 1, 2, 0],
                act=["a", "a", None, None],
                r=[1, 2, None, None],
                dead=[False, False, True, True],
            ),
            **STATE_ONLY,
        ),
        ValueError,
        (FRAME, "state_only", "a row before its last", "index 40 .episode 'p2'.", "remove"),
    ),
    Bad(
        "dropped row alone",
        read(
            frame(
                id=["p1", "p1", "p2", "p3"],
                t=[0, 1, 0, 0],
                dead=[False, True, False, True],
                lost=[False, False, True, False],
            ),
            final_row="drop",
        ),
        ValueError,
        (FRAME, "'drop'", "a row before its last", ROW_30, "next_states="),
    ),
]

MASKS = [
    Bad(
        "mask forbids the logged action",
        read(frame(may_b=[True, False, True, True]), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, "`action_mask`", "allow the logged action", "'b' masked", ROW_20),
    ),
    Bad(
        "mask forbids everything",
        read(frame(may_a=False, may_b=False), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, "`action_mask`", "in every row", "index 10"),
    ),
    Bad(
        "mask as text",
        read(frame(may_b=list("nyny")), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, r"`action_mask` \(column 'may_b'\)", "booleans", "'n'", "convert"),
    ),
    Bad(
        "mask missing",
        read(frame(may_a=[True, None, True, True]), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, "'may_a'", ROW_20, "fill in"),
    ),
    Bad("too few masks", read(action_mask=["may_a"]), ValueError, (FRAME, "`action_mask`", r"\(4, 2\)", r"\(4, 1\)")),
    Bad("masks of other labels", read(action_mask={"a": "may_a", "c": "may_b"}), ValueError, (FRAME, "'b'", "among")),
    Bad(
        "masks that miss a label",
        read(action_mask={"a": "may_a"}, actions=["a", "b"]),
        ValueError,
        (FRAME, "`action_mask`", r"\['a', 'b'\]", r"\['a'\]", "complete"),
    ),
    Bad(
        "masks of continuous actions",
        read(frame(act=[0.5, 1, 1, 1]), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, "`action_mask`", "absent for continuous", "drop it"),
    ),
    Bad(
        "mask missing at a truncated end",
        read(state_only(**LOST, may_a=[True, True, True, None]), action_mask=["may_a", "may_b"], **STATE_ONLY),
        ValueError,
        (FRAME, "'may_a'", "index 40"),
    ),
    Bad(
        "mask empty at a truncated end",
        read(
            state_only(**LOST, may_a=[True, False, True, True], may_b=[True, False, True, True]),
            action_mask=["may_a", "may_b"],
            **STATE_ONLY,
        ),
        ValueError,
        (FRAME, "`action_mask`", "every state", ROW_20),
    ),
]

FROM_ARRAYS = [
    Bad("no rows", arrays(states=np.zeros((0, 1))), ValueError, (ARRAYS, "`states`", "at least one row", r"\(0, 1\)")),
    Bad(
        "state NaN in arrays",
        arrays(states=[0.0, np.nan, 1.0]),
        ValueError,
        (ARRAYS, "`states`", "finite", r"rows 1 \(1 in all\)"),
    ),
    Bad(
        "states as strings in arrays",
        arrays(states=["a", "b", "c"]),
        TypeError,
        (ARRAYS, "`states`", "numeric", "OneHotEncoder"),
    ),
    Bad(
        "states of three dimensions",
        arrays(states=np.zeros((3, 1, 1))),
        ValueError,
        (ARRAYS, "`states`", r"2 dimension", r"\(3, 1, 1\)"),
    ),
    Bad(
        "length zero",
        arrays(lengths=[3, 0]),
        ValueError,
        (ARRAYS, "`lengths`", "at least 1", "rows 1", "empty episodes"),
    ),
    Bad("lengths too short", arrays(lengths=[2]), ValueError, (ARRAYS, "`lengths`", r"sum .*\(3\)", "got 2")),
    Bad("lengths as floats", arrays(lengths=[2.0, 1.0]), TypeError, (ARRAYS, "`lengths`", "integer", "float64")),
    Bad("no lengths", arrays(lengths=[]), ValueError, (ARRAYS, "`lengths`", "at least 1")),
    Bad("unknown end", arrays(ends="done"), ValueError, (ARRAYS, "`ends`", "horizon.*terminal.*truncated", "'done'")),
    Bad("end code out of range", arrays(ends=[0, 3]), ValueError, (ARRAYS, "`ends`", r"\[0, 3\]")),
    Bad("too many ends", arrays(ends=[0, 0, 0]), ValueError, (ARRAYS, "`ends`", r"per episode \(2\)", "got 3")),
    Bad("too few actions", arrays(actions=[0, 1]), ValueError, (ARRAYS, "`actions`", r"\(3\)", "got 2", "align")),
    Bad("too few rewards", arrays(rewards=[0.0]), ValueError, (ARRAYS, "`rewards`", r"\(3\)", "got 1")),
    Bad(
        "mixed labels in arrays",
        arrays(actions=["a", 1, "a"]),
        TypeError,
        (ARRAYS, "`actions`", "mixed type", "int, str"),
    ),
    Bad(
        "labels in two columns",
        arrays(actions=[[0, 1]] * 3, continuous=False),
        ValueError,
        (ARRAYS, "`actions`", "one dimension", r"\(3, 2\)"),
    ),
    Bad(
        "truncated without a final state", arrays(ends="truncated"), ValueError, (ARRAYS, r"\[0, 1\]", "final_states=")
    ),
    Bad(
        "final states of another shape",
        arrays(final_states=[[0.0]]),
        ValueError,
        (ARRAYS, "`final_states`", r"\(2, 1\)", r"\(1, 1\)"),
    ),
    Bad("final states as text", arrays(final_states=["a", "b"]), TypeError, (ARRAYS, "`final_states`", "numeric")),
    Bad(
        "final states infinite",
        arrays(final_states=[0.0, np.inf]),
        ValueError,
        (ARRAYS, "`final_states`", "rows 1", "complete"),
    ),
    Bad(
        "episodes of one name",
        arrays(episode_ids=["e", "e"]),
        ValueError,
        (ARRAYS, "`episode_ids`", "distinct", "'e'", "number them"),
    ),
    Bad(
        "times that fall",
        arrays(timesteps=[1, 0, 0]),
        ValueError,
        (ARRAYS, "`timesteps`", "increase", r"rows 1 \(1 in all\)", "sort"),
    ),
    Bad("too few feature names", arrays(feature_names=[]), ValueError, (ARRAYS, "`feature_names`", "1 distinct")),
    Bad(
        "extras of another length",
        arrays(extras=pd.DataFrame({"e": [1]})),
        ValueError,
        (ARRAYS, "`extras`", r"\(3\)", "got 1"),
    ),
    Bad(
        "mask of other values",
        arrays(action_mask=[[1, 2]] * 3),
        TypeError,
        (ARRAYS, "`action_mask`", "0 and 1", "convert"),
    ),
]

PARTS = [
    Bad(
        "select nothing", lambda: log().select([]), ValueError, (r"LoggedDataset\.select", "`episodes`", "at least one")
    ),
    Bad(
        "select an empty slice",
        lambda: log().select(slice(2, 2)),
        ValueError,
        (r"LoggedDataset\.select", "at least one", "slice"),
    ),
    Bad("select beyond the end", lambda: log().select([2]), ValueError, (r"LoggedDataset\.select", "0 to 1", "2")),
    Bad(
        "select with a short mask",
        lambda: log().select([True]),
        ValueError,
        ("LoggedDataset", r"per episode \(2\)", "got 1"),
    ),
    Bad("select by name", lambda: log().select(["e"]), ValueError, (r"LoggedDataset\.select", "position or mask")),
    Bad(
        "split nothing off",
        lambda: log().split(0.0),
        ValueError,
        (r"LoggedDataset\.split", "`test_size`=0.0", "2 episodes", "share"),
    ),
    Bad(
        "no final states",
        lambda: log().final_rows(np.array([0])),
        ValueError,
        ("LoggedDataset", "final states", "next_states="),
    ),
    Bad(
        "names that clash",
        lambda: log(feature_names=["reward"]).to_pandas(),
        ValueError,
        (r"to_pandas", "distinct", "'reward'", "rename"),
    ),
]

BAD_INPUT = [*COLUMN_NAMES, *IDENTIFIERS, *STATES, *ACTIONS, *REWARDS, *PROPENSITIES, *ENDS, *FINAL_STATES, *MASKS]
BAD_INPUT += [*FROM_ARRAYS, *PARTS]


@pytest.mark.parametrize("bad", BAD_INPUT, ids=lambda bad: bad.name)
def test_bad_input(bad: Bad) -> None:
    with pytest.raises(bad.error) as caught:
        bad.call()
    message = str(caught.value)
    assert type(caught.value) is bad.error
    for fragment in bad.fragments:
        assert re.search(fragment, message), f"{fragment!r} is not in: {message}"
    assert message.endswith((".", "?"))


def test_names_of_the_table_are_distinct() -> None:
    names = [bad.name for bad in BAD_INPUT]
    assert len(names) == len(set(names)) >= 40


def test_the_usual_input_is_good(tmp_path: Path) -> None:
    """Each call above differs from a good one by what its name says."""
    assert (
        read()().n_transitions == read(**NEXT, behavior_prob="p", action_mask=["may_a", "may_b"])().n_transitions == 4
    )
    assert read(state_only(), **STATE_ONLY)().n_transitions == 2
    assert read(frame(**LOST), final_row="drop")().n_transitions == 2
    assert log().n_episodes == 2
    frame().to_parquet(tmp_path / "log.parquet")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LoggedDataset.from_parquet(
            tmp_path / "nowhere.parquet", episode="id", time="t", states=["x"], action="act", reward="r"
        )
