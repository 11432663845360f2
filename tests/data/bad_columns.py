"""Frames with flaws in names, identifiers, states, actions, rewards and propensities."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
from bad_case import FRAME, ROW_20, ROW_30, Bad, frame, read

NINE_TEN, DICTIONARY = ["9", "10", "9", "10"], pa.dictionary(pa.int32(), pa.string())

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
    *[
        Bad(f"times as {name}", read(frame(t=times)), TypeError, (FRAME, r"`time` \(column 't'\)", came, "to_datetime"))
        for name, times, came in (
            ("categories of text", pd.Categorical(["9", "10", "9", "10"]), "text such as '10'"),
            ("categories of text in order of appearance", pd.Categorical(NINE_TEN, ["9", "10"]), "text such as '9'"),
            ("ordered categories of text that fall", pd.Categorical(NINE_TEN, ordered=True), "do not rise"),
            ("ordered numbers that fall", pd.Categorical([9, 10, 9, 10], [10, 9], ordered=True), "do not rise"),
            (
                "Arrow dictionary of text",
                pd.Series(NINE_TEN, dtype=pd.ArrowDtype(DICTIONARY)).array,
                "text such as '9'",
            ),
            ("text with numbers", ["day_9", "day_10"] * 2, "text such as 'day_9'"),
            ("days before months", ["31.01.2020", "01.02.2020"] * 2, "text such as '31.01.2020'"),
            ("ISO of two zones", ["2020-01-01T00:00+01:00", "2020-01-01T00:30+02:00"] * 2, "text such as '2020"),
            ("ISO with a blank and a T", ["2020-01-01 09:00", "2020-01-01T08:00"] * 2, "text such as '2020"),
        )
    ],
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
    *[
        Bad(
            f"gap in {name}",
            read(frame(id=1, t=times, dead=False)),
            ValueError,
            ("`time`", "rise by 1", "before index 30"),
        )
        for name, times in (
            ("floats", [0.0, 1.0, 3.0, 4.0]),
            ("integer categories", pd.Categorical([0, 1, 3, 4])),
            ("ordered integer categories", pd.Categorical([0, 1, 3, 4], ordered=True)),
            ("integer objects", np.array([0, 1, 3, 4], dtype=object)),
            ("nullable floats", pd.array([0.0, 1.0, 3.0, 4.0], dtype="Float64")),
        )
    ],
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
    *[
        Bad(
            f"doses as {name}",
            read(frame(act=doses)),
            TypeError,
            (
                FRAME,
                r"`action` \(column 'act'\)",
                "floating type",
                r"0\.25(00)? in dtype",
                r"astype\(float\)",
                "continuous=False",
            ),
        )
        for name, doses in (
            ("objects", np.array([0.25, 0.5, 1, 2], dtype=object)),
            ("decimals", [Decimal(1) / 4, Decimal(2), Decimal(3), Decimal(1)]),
            ("Arrow decimals", pd.Series([Decimal(1) / 4] * 4, dtype=pd.ArrowDtype(pa.decimal128(10, 4))).array),
        )
    ],
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
        (FRAME, "`behavior_prob`", "finite", ROW_20, "leave behavior_prob out and estimate .* ope.estimate_behavior"),
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

BAD_COLUMNS = [*COLUMN_NAMES, *IDENTIFIERS, *STATES, *ACTIONS, *REWARDS, *PROPENSITIES]
