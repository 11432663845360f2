"""Bad input: every door refuses it with a sentence that names the owner, the parameter, the rule, what came and the remedy.

To add cases, write a list of `Bad` (here, or in a module like `bad_columns`) and take it into BAD_INPUT.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from bad_case import ARRAYS, LOST, NEXT, STATE_ONLY, Bad, arrays, frame, log, read, state_only
from bad_columns import BAD_COLUMNS
from bad_ends import BAD_ENDS

from ope.dataset import LoggedDataset

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
    Bad(
        "both forms in arrays",
        arrays(behavior_prob=[1.0] * 3, behavior_log_prob=[0.0] * 3),
        ValueError,
        (ARRAYS, "`behavior_prob`", "`behavior_log_prob`", "drop one"),
    ),
    Bad(
        "action missing in arrays",
        arrays(actions=[0, None, 0]),
        ValueError,
        (ARRAYS, "`actions`", "missing", r"rows 1 \(1 in all\)"),
    ),
    Bad(
        "labels without an order",
        arrays(actions=[1j, 2j, 1j], continuous=False),
        TypeError,
        (ARRAYS, "`actions`", "sortable", "complex"),
    ),
    Bad(
        "episodes in two columns",
        arrays(episode_ids=[[1, 2], [3, 4]]),
        ValueError,
        (ARRAYS, "`episode_ids`", "one dimension", r"\(2, 2\)"),
    ),
    Bad(
        "episode without a name",
        arrays(episode_ids=[None, "a"]),
        ValueError,
        (ARRAYS, "`episode_ids`", "not be missing", "None at rows 0", "name every"),
    ),
    Bad(
        "episode NaN in arrays",
        arrays(episode_ids=[1.0, np.nan]),
        ValueError,
        (ARRAYS, "`episode_ids`", "nan at rows 1"),
    ),
    Bad(
        "time NaN in arrays",
        arrays(timesteps=[0.0, 1.0, np.nan]),
        ValueError,
        (ARRAYS, "`timesteps`", "not be missing", "nan at rows 2", "leave them out"),
    ),
    Bad(
        "features of one name as text",
        arrays(states=np.zeros((3, 2)), feature_names=[1, "1"]),
        ValueError,
        (ARRAYS, "`feature_names`", "2 distinct", r"\[1, '1'\]"),
    ),
    Bad(
        "extras that are no frame",
        arrays(extras={"e": [1, 2, 3]}),
        TypeError,
        (ARRAYS, "`extras`", "pandas DataFrame", "got dict", "wrap it"),
    ),
    Bad(
        "extras of one name",
        arrays(extras=pd.DataFrame(np.zeros((3, 2)), columns=["z", "z"])),
        ValueError,
        (ARRAYS, "`extras`", "distinct columns", r"\['z'\]", "rename"),
    ),
    Bad(
        "final extras of one name",
        arrays(final_extras=pd.DataFrame(np.zeros((2, 2)), columns=["z", "z"])),
        ValueError,
        (ARRAYS, "`final_extras`", "distinct columns", r"\['z'\]"),
    ),
    Bad("range of text", arrays(reward_range=("a", "b")), ValueError, (ARRAYS, "`reward_range`", "finite", "'a', 'b'")),
    Bad(
        "doses as objects in arrays",
        arrays(actions=np.array([0.5, 1.0, 0.5], dtype=object)),
        TypeError,
        (ARRAYS, "`actions`", "floating type", r"0\.5 in dtype object", r"astype\(float\)", "continuous=False"),
    ),
    Bad(
        "final states beyond single precision",
        arrays(states=np.zeros((3, 1), np.float32), final_states=[0.0, 1e300]),
        ValueError,
        (ARRAYS, "`final_states`", "finite", "rows 1"),
    ),
    Bad("too few times", arrays(timesteps=[0, 1]), ValueError, (ARRAYS, "`timesteps`", r"\(3\)", "got 2")),
    Bad(
        "too few propensities", arrays(behavior_prob=[1.0]), ValueError, (ARRAYS, "`behavior_prob`", r"\(3\)", "got 1")
    ),
    Bad(
        "mask of final states empty",
        arrays(final_action_mask=[[1, 1], [0, 0]]),
        ValueError,
        (ARRAYS, "`final_action_mask`", "every row", "rows 1"),
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
    Bad(
        "select twice",
        lambda: log().select([1, 0, -1]),
        ValueError,
        (r"LoggedDataset\.select", "each episode once", "got 1 several times", "episode_weight="),
    ),
    Bad("split by NaN", lambda: log().split(np.nan), ValueError, (r"\.split", "`test_size`", r"in \(0, 1\)", "nan")),
    Bad(
        "split by a word",
        lambda: log().split(cast(Any, "a")),
        ValueError,
        (r"\.split", "`test_size`", r"in \(0, 1\)", "'a'"),
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
        lambda: log().split(0.1),
        ValueError,
        (r"LoggedDataset\.split", "`test_size`=0.1", "2 episodes", "share"),
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

BAD_INPUT = [*BAD_COLUMNS, *BAD_ENDS, *FROM_ARRAYS, *PARTS]


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
