"""Reading frames, compared with a reader in plain loops."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from log_oracle import (
    FLAGS,
    HORIZON,
    LABELS,
    MASK,
    MODES,
    NAMES,
    assert_same_log,
    mode_arguments,
    plain_log,
    random_frame,
)

from ope.dataset import LoggedDataset
from ope.frame_write import exp_inverse
from ope.schema import ColumnNames, End

# Next states and `from_arrays` may leave the masks of final states unknown: tests/data/test_log_care.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*final state of a truncated episode:UserWarning")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(8))
def test_reader_agrees_with_plain_loops(seed: int, mode: str) -> None:
    frame = random_frame(seed, mode)
    log = LoggedDataset.from_pandas(frame, **mode_arguments(mode))
    plain = plain_log(frame, mode)
    np.testing.assert_array_equal(log.episode_ids, plain["ids"])
    np.testing.assert_array_equal(log.lengths, plain["lengths"])
    np.testing.assert_array_equal(log.ends, plain["ends"])
    np.testing.assert_array_equal(log.states, np.column_stack([plain["x"], plain["y"]]))
    np.testing.assert_array_equal(log.actions, plain["act"])
    np.testing.assert_array_equal(log.rewards, plain["r"])
    assert log.behavior_log_prob is not None
    np.testing.assert_allclose(log.behavior_log_prob, plain["log_p"], rtol=1e-15)
    np.testing.assert_array_equal(log.timesteps, plain["t"])
    np.testing.assert_array_equal(log.action_mask, plain["mask"])
    assert log.extras is not None
    assert log.extras[["note", "dose"]].to_numpy().tolist() == [
        list(pair) for pair in zip(plain["note"], plain["dose"], strict=True)
    ]
    assert log.extras["dose"].dtype == np.int64
    finals = np.full((log.n_episodes, 2), np.nan) if log.final_states is None else log.final_states
    np.testing.assert_array_equal(finals, plain["finals"])
    assert log.horizon == HORIZON


@pytest.mark.parametrize("mode", ["state_only", "drop"])
def test_what_stands_in_the_last_row_is_kept(mode: str) -> None:
    frame = random_frame(3, mode)
    log = LoggedDataset.from_pandas(frame, **mode_arguments(mode))
    plain = plain_log(frame, mode)
    assert log.final_extras is not None
    np.testing.assert_array_equal(log.final_extras["dose"].to_numpy(float), plain["final_dose"])
    np.testing.assert_array_equal(log.final_action_mask, plain["final_mask"])
    dropped = sum(end == End.TRUNCATED for end in plain["ends"]) if mode == "drop" else 0
    assert log.n_dropped_rows == log.describe()["log", "dropped rows"] == dropped


@pytest.mark.parametrize("mode", MODES)
def test_order_of_rows_does_not_matter(mode: str) -> None:
    ordered = LoggedDataset.from_pandas(random_frame(1, mode, shuffle=False), **mode_arguments(mode))
    for seed in range(3):
        frame = random_frame(1, mode, shuffle=False).sample(frac=1, random_state=seed)
        assert_same_log(LoggedDataset.from_pandas(frame, **mode_arguments(mode)), ordered)


def test_input_frame_is_left_alone() -> None:
    frame = random_frame(2, "state_only").set_index(["id", "t"])
    before = frame.copy(deep=True)
    LoggedDataset.from_pandas(frame, **mode_arguments("state_only"))
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("levels", [["id"], ["t"], ["id", "t"]])
def test_named_index_levels_count_as_columns(levels: list[str]) -> None:
    frame = random_frame(4, "next_states")
    plain = LoggedDataset.from_pandas(frame, **mode_arguments("next_states"))
    assert_same_log(LoggedDataset.from_pandas(frame.set_index(levels), **mode_arguments("next_states")), plain)


def test_unused_named_index_becomes_an_extra_column() -> None:
    frame = _three_rows().rename_axis("row")
    log = LoggedDataset.from_pandas(frame, **NAMES, terminated="dead")
    assert log.extras is not None
    assert log.extras["row"].tolist() == [0, 1, 2]


def test_one_row_episodes() -> None:
    frame = pd.DataFrame({"id": [2, 1], "t": [0, 0], "x": [0.0, 1.0], "y": 0.0, "act": [1, 0], "r": [1.0, 2.0]})
    log = LoggedDataset.from_pandas(frame, **NAMES)
    assert log.horizon == 1
    assert log.rewards.tolist() == [2.0, 1.0]
    assert log.ends.tolist() == [End.HORIZON, End.HORIZON]


def test_names_are_remembered() -> None:
    log = LoggedDataset.from_pandas(random_frame(0, "next_states"), **mode_arguments("next_states"))
    assert log.columns == ColumnNames(
        episode="id",
        time="t",
        action="act",
        reward="r",
        behavior_prob="p",
        action_mask=tuple(MASK),
        next_states=("x_next", "y_next"),
        **FLAGS,
    )
    assert log.feature_names == ("x", "y")


def _three_rows(**columns: Any) -> pd.DataFrame:
    frame = {
        "id": [1, 1, 2],
        "t": [0, 1, 0],
        "x": [0.0, 1.0, 2.0],
        "y": [0.0, 1.0, 2.0],
        "act": [0, 1, 0],
        "r": [1.0, 2.0, 3.0],
    }
    return pd.DataFrame({**frame, "dead": [False, True, True], **columns})


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        ("r", "Int64"),
        ("r", "Float64"),
        ("r", "float32"),
        ("r", "int8"),
        ("r", "double[pyarrow]"),
        ("r", "int32[pyarrow]"),
        ("r", "Sparse[float]"),
        ("x", "Int64"),
        ("x", "Float32"),
        ("x", "uint8[pyarrow]"),
        ("x", "float[pyarrow]"),
        ("x", "int16"),
        ("dead", "boolean"),
        ("dead", "bool[pyarrow]"),
        ("dead", "int64"),
        ("dead", "float32"),
        ("dead", "object"),
        ("act", "Int64"),
        ("act", "int64[pyarrow]"),
        ("act", "uint8"),
        ("act", "category"),
        ("act", "object"),
        ("id", "string[pyarrow]"),
        ("t", "UInt16"),
    ],
)
def test_every_dtype_gives_the_same_log(column: str, dtype: str) -> None:
    frame = _three_rows()
    plain = LoggedDataset.from_pandas(frame, **NAMES, terminated="dead")
    log = LoggedDataset.from_pandas(frame.astype({column: dtype}), **NAMES, terminated="dead")
    assert log.episode_ids.astype(str).tolist() == plain.episode_ids.astype(str).tolist()
    unlike = {"t": "timesteps", "id": "episode_ids"}.get(column, "")
    changes = {"layout": None, unlike or "layout": None}
    assert_same_log(log.replace(**changes), plain.replace(**changes))


def test_booleans_are_states_and_rewards() -> None:
    frame = _three_rows(x=[True, False, True], r=pd.array([True, False, True], dtype="boolean"))
    log = LoggedDataset.from_pandas(frame, **NAMES, terminated="dead")
    assert log.states[:, 0].tolist() == log.rewards.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", ["string[pyarrow]", "object", "category", "string"])
def test_action_labels_of_any_string_type(dtype: str) -> None:
    frame = _three_rows(act=pd.Series(["up", "down", "up"], dtype=dtype))
    log = LoggedDataset.from_pandas(frame, **NAMES, terminated="dead")
    assert log.action_labels is not None
    assert log.action_labels.tolist() == ["down", "up"]
    assert log.action_labels.dtype.kind == "U"
    assert log.actions.tolist() == [1, 0, 1]


def test_single_precision_states_stay_single() -> None:
    frame = _three_rows().astype({"x": "float32", "y": "float32"})
    assert LoggedDataset.from_pandas(frame, **NAMES, terminated="dead").states.dtype == np.float32
    assert (
        LoggedDataset.from_pandas(frame.astype({"x": "float64"}), **NAMES, terminated="dead").states.dtype == np.float64
    )


def test_floating_actions_are_continuous_unless_told_otherwise() -> None:
    frame = _three_rows(act=[0.0, 1.0, 0.0])
    log = LoggedDataset.from_pandas(frame, **NAMES, terminated="dead")
    assert log.actions.shape == (3, 1)
    assert not log.discrete
    assert LoggedDataset.from_pandas(frame, **NAMES, terminated="dead", continuous=False).actions.tolist() == [0, 1, 0]
    assert LoggedDataset.from_pandas(frame, **NAMES, terminated="dead", actions=[0, 1, 2]).n_actions == 3
    integers = _three_rows(act=[0, 3, 0])
    assert LoggedDataset.from_pandas(integers, **NAMES, terminated="dead", continuous=True).actions.tolist() == [
        [0.0],
        [3.0],
        [0.0],
    ]


def test_several_action_columns_are_continuous() -> None:
    frame = _three_rows(u=[1, 2, 3], v=[0.5, 0.25, 0.0])
    names = {**NAMES, "action": ["u", "v"]}
    log = LoggedDataset.from_pandas(frame.drop(columns="act"), **names, terminated="dead")
    assert log.actions.tolist() == [[1.0, 0.5], [2.0, 0.25], [3.0, 0.0]]
    assert log.columns.action == ("u", "v")


def test_integer_actions_beside_missing_ones_stay_discrete() -> None:
    frame = pd.DataFrame(
        {"id": 1, "t": [0, 1, 2], "x": [0.0, 1.0, 2.0], "y": 0.0, "act": [0, 2, np.nan], "r": [1.0, 2.0, np.nan]}
    )
    log = LoggedDataset.from_pandas(frame, **NAMES, final_row="state_only")
    assert log.action_labels is not None
    assert log.action_labels.tolist() == [0, 2]
    assert log.action_labels.dtype.kind == "i"
    assert LoggedDataset.from_pandas(frame, **NAMES, final_row="state_only", continuous=True).actions.tolist() == [
        [0.0],
        [2.0],
    ]
    frame["act"] = [0.5, 2.0, np.nan]
    assert not LoggedDataset.from_pandas(frame, **NAMES, final_row="state_only").discrete


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_masks_follow_the_order_of_the_labels_given(order: list[int]) -> None:
    frame = random_frame(5, "next_states")
    arguments = mode_arguments("next_states")
    plain = LoggedDataset.from_pandas(frame, **arguments)
    arguments |= {"actions": [LABELS[i] for i in order], "action_mask": [MASK[i] for i in order]}
    assert_same_log(LoggedDataset.from_pandas(frame, **arguments), plain)
    arguments |= {"actions": None, "action_mask": {LABELS[i]: MASK[i] for i in order}}
    assert_same_log(LoggedDataset.from_pandas(frame, **arguments), plain)


def test_labels_never_logged_exist() -> None:
    log = LoggedDataset.from_pandas(_three_rows(), **NAMES, terminated="dead", actions=[5, 1, 0])
    assert log.action_labels is not None
    assert log.action_labels.tolist() == [0, 1, 5]
    assert log.describe()["action share", 5] == 0.0


def test_gaps_are_counted() -> None:
    frame = pd.DataFrame({"id": [1, 1, 1, 2, 2, 2], "t": [0, 1, 4, 0, 2, 3], "x": 0.0, "y": 0.0, "act": 0, "r": 1.0})
    with pytest.warns(
        UserWarning, match=r"`time` \(column 't'\) has gaps before index 2 .* 4 .*\(2 in all\)"
    ) as caught:
        log = LoggedDataset.from_pandas(frame, **NAMES, allow_gaps=True)
    assert Path(caught[0].filename).name == os.path.basename(__file__)
    assert log.timesteps.tolist() == frame["t"].tolist()
    frame["t"] = frame["t"] / 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LoggedDataset.from_pandas(frame, **NAMES)


def test_next_states_are_not_compared_across_gaps() -> None:
    frame = pd.DataFrame(
        {
            "id": 1,
            "t": [0, 1, 4],
            "x": [0.0, 1.0, 2.0],
            "y": 0.0,
            "act": 0,
            "r": 1.0,
            "nx": [1.0, 7.0, np.nan],
            "ny": 0.0,
        }
    ).assign(ny=[0.0, 0.0, np.nan])
    with pytest.warns(UserWarning, match="gaps before index 2"):
        log = LoggedDataset.from_pandas(frame, **NAMES, next_states=["nx", "ny"], allow_gaps=True)
    assert log.final_states is None


def test_next_states_may_differ_by_rounding() -> None:
    frame = random_frame(6, "next_states")
    rounded = frame.astype({"x_next": "float32", "y_next": "float32"})
    log = LoggedDataset.from_pandas(rounded, **mode_arguments("next_states"))
    exact = LoggedDataset.from_pandas(frame, **mode_arguments("next_states"))
    np.testing.assert_array_equal(log.states, exact.states)


def test_recorded_next_states_save_the_last_row_from_being_dropped() -> None:
    frame = pd.DataFrame(
        {
            "id": [1, 1, 2, 2],
            "t": [0, 1, 0, 1],
            "x": [0.0, 1.0, 2.0, 3.0],
            "y": 0.0,
            "act": 0,
            "r": [1.0, 2.0, 3.0, 4.0],
        }
    ).assign(lost=[False, True, False, True], nx=[1.0, 9.0, 3.0, np.nan], ny=[0.0, 0.0, 0.0, np.nan])
    log = LoggedDataset.from_pandas(frame, **NAMES, truncated="lost", next_states=["nx", "ny"], final_row="drop")
    assert log.lengths.tolist() == [2, 1]
    assert log.final_states is not None
    assert log.final_states.tolist() == [[9.0, 0.0], [3.0, 0.0]]
    assert log.rewards.tolist() == [1.0, 2.0, 3.0]
    assert log.n_dropped_rows == 1


def test_given_up_rows_need_no_action_reward_or_propensity() -> None:
    frame = random_frame(7, "drop")
    last = frame.sort_values(["id", "t"]).groupby("id").tail(1)
    rows = last.index[last["lost"]]
    plain = LoggedDataset.from_pandas(frame, **mode_arguments("drop"))
    frame.loc[rows, ["r", "p"]] = np.nan
    frame.loc[rows, "act"] = None
    assert_same_log(LoggedDataset.from_pandas(frame, **mode_arguments("drop")), plain)


def test_mask_of_a_state_in_which_nothing_is_done_may_be_empty_or_missing() -> None:
    frame = pd.DataFrame({"id": [1, 1, 2, 2], "t": [0, 1, 0, 1], "x": 0.0, "y": 0.0, "act": [0, np.nan, 1, np.nan]})
    frame["r"], frame["dead"] = [1.0, np.nan, 1.0, np.nan], [True, False, True, False]
    frame["m0"], frame["m1"] = [1, 0, 1, np.nan], [0, 0, 1, np.nan]
    log = LoggedDataset.from_pandas(frame, **NAMES, terminated="dead", final_row="state_only", action_mask=["m0", "m1"])
    assert log.final_action_mask is not None
    assert log.final_action_mask.all()
    assert log.action_mask is not None
    assert log.action_mask.tolist() == [[True, False], [True, True]]
    frame.loc[1, "m0"] = np.nan
    log = LoggedDataset.from_pandas(frame, **NAMES, terminated="dead", final_row="state_only", action_mask=["m0", "m1"])
    assert log.final_action_mask is None


def test_parquet(tmp_path: Path) -> None:
    for mode in MODES:
        frame = random_frame(8, mode)
        frame.to_parquet(tmp_path / "log.parquet")
        log = LoggedDataset.from_parquet(tmp_path / "log.parquet", **mode_arguments(mode))
        assert_same_log(log, LoggedDataset.from_pandas(frame, **mode_arguments(mode)))
        log.to_pandas().to_parquet(tmp_path / "again.parquet")
        assert_same_log(LoggedDataset.from_parquet(tmp_path / "again.parquet", **mode_arguments(mode)), log)


def test_parquet_folder(tmp_path: Path) -> None:
    frame = random_frame(9, "next_states")
    for part in range(3):
        frame.iloc[part::3].to_parquet(tmp_path / f"part-{part}.parquet")
    log = LoggedDataset.from_parquet(str(tmp_path), **mode_arguments("next_states"))
    assert_same_log(log, LoggedDataset.from_pandas(frame, **mode_arguments("next_states")))


def test_propensities_survive_the_logarithm() -> None:
    rng = np.random.default_rng(0)
    prob = np.concatenate(
        [rng.uniform(size=20_000), 10.0 ** rng.uniform(-300, 0, 2_000), 1 - 10.0 ** rng.uniform(-16, 0, 2_000), [1.0]]
    )
    log_prob = np.log(prob[prob > 0])
    np.testing.assert_array_equal(np.log(exp_inverse(log_prob)), log_prob)
