"""What a log must not do in silence: misorder times, follow the caller's arrays, forget masks, merge episodes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ope.behavior import estimate_behavior
from ope.dataset import LoggedDataset
from ope.policies import TabularPolicy
from ope.policy import expectation, overlap, used_rows

NAMES: dict[str, Any] = {"episode": "id", "time": "t", "states": ["x"], "action": "act", "reward": "r"}


def _frame(n: int = 12, **columns: Any) -> pd.DataFrame:
    plain = {"id": 1, "t": range(n), "x": np.arange(n) / 2, "act": np.arange(n) % 2, "r": np.arange(n) * 1.0}
    return pd.DataFrame({**plain, **columns})


# -------------------------------------------------------------------- times


STEPS = pd.date_range("2020-09-25", periods=12)
GOOD_TIMES: dict[str, Any] = {
    "digits of one width": [f"{t:02}" for t in range(12)],
    "ISO dates": STEPS.strftime("%Y-%m-%d"),
    "ISO minutes": STEPS.strftime("%Y-%m-%dT%H:%M"),
    "ISO seconds, some with a fraction": [f"2020-01-01 00:00:{t // 2:02}{'.5' * (t % 2)}" for t in range(12)],
    "ISO instants in UTC": STEPS.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "ordered categories": pd.Categorical([*map(str, range(12))], categories=[*map(str, range(12))], ordered=True),
    "ordered words": pd.Categorical([f"day {t}" for t in range(12)], [f"day {t}" for t in range(12)], ordered=True),
    "integer categories in no order": pd.Categorical(range(12), categories=[*range(11, -1, -1)]),
    "fractions in falling categories": pd.Categorical(np.arange(12) / 4, categories=np.arange(11, -1, -1) / 4),
}


@pytest.mark.parametrize("times", GOOD_TIMES)
def test_times_keep_the_order_of_time(times: str) -> None:
    frame = _frame(t=GOOD_TIMES[times])
    log = LoggedDataset.from_pandas(frame.sample(frac=1, random_state=0), **NAMES)
    assert log.rewards.tolist() == [*range(12)]
    assert log.to_pandas()["t"].tolist() == frame["t"].tolist()


# -------------------------------------------------------------------- memory


def _given() -> dict[str, Any]:
    """Return arguments of `from_arrays` that already have the dtypes of the log."""
    return {
        "states": np.arange(4.0).reshape(4, 1),
        "actions": np.array([[0.5], [1.5], [0.5], [1.5]]),
        "rewards": np.arange(4.0),
        "behavior_log_prob": np.full(4, -1.0),
        "timesteps": np.array([0, 1, 0, 1]),
        "episode_ids": np.array([5, 6]),
        "final_states": np.ones((2, 1)),
        "lengths": np.array([2, 2]),
        "ends": np.array([0, 0], np.int8),
        "extras": pd.DataFrame({"z": np.arange(4)}),
    }


def _contents(log: LoggedDataset) -> dict[str, Any]:
    fields = {name: value.tolist() for name, value in vars(log).items() if isinstance(value, np.ndarray)}
    assert log.extras is not None
    return {**fields, "extras": log.extras["z"].tolist(), "lengths": log.lengths.tolist()}


@pytest.mark.parametrize("wrap", [lambda array: array, pd.Series], ids=["arrays", "series"])
def test_a_log_does_not_follow_the_arrays_that_it_was_built_from(wrap: Any) -> None:
    given = _given()
    passed = {name: wrap(value) if np.ndim(value) == 1 and name != "extras" else value for name, value in given.items()}
    log = LoggedDataset.from_arrays(**passed)
    before = _contents(log)
    for name, value in given.items():
        if name == "extras":
            value.loc[:, "z"] = 7
        else:
            value[...] = 7
    assert _contents(log) == before


def test_a_log_does_not_follow_the_frame_that_it_was_read_from() -> None:
    frame = _frame(t=np.arange(12) * 1.0, act=np.arange(12) / 2, z=np.arange(12)).assign(id=np.arange(12.0), dead=True)
    log = LoggedDataset.from_pandas(frame, **NAMES, terminated="dead")
    before = _contents(log)
    for name in frame:
        frame.loc[:, name] = frame[name].iloc[::-1].to_numpy()
    assert _contents(log) == before


def test_states_given_without_a_need_of_conversion_are_copied_once() -> None:
    given = _given()
    log = LoggedDataset.from_arrays(**given)
    assert not any(
        np.shares_memory(value, getattr(log, name))
        for name, value in given.items()
        if name in ("states", "actions", "rewards", "behavior_log_prob", "timesteps", "episode_ids", "final_states")
    )


@pytest.mark.parametrize(
    "again", [lambda log: log, copy.copy, copy.deepcopy, lambda log: pickle.loads(pickle.dumps(log))]
)
def test_nothing_in_a_log_can_be_written(again: Any) -> None:
    log = LoggedDataset.from_arrays(**_given())
    before = [log.lengths.tolist(), log.episode_keys.tolist()]
    same = again(log)
    assert [same.lengths.tolist(), same.episode_keys.tolist()] == before
    for name, value in vars(same).items():
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable, name
    table = same.extras
    table.loc[0, "z"], table["new"] = 99, 1
    assert same.extras["z"].tolist() == [0, 1, 2, 3]
    assert list(same.extras) == ["z"]


# -------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint64])
def test_positions_of_any_integer_type(dtype: Any) -> None:
    log = LoggedDataset.from_arrays(np.zeros(300), [0, 1] * 150, np.arange(300.0), lengths=[1] * 300, ends="terminal")
    assert log.select(np.array([3, 1], dtype)).rewards.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("form", ["behavior_prob", "behavior_log_prob"])
def test_probabilities_above_one_by_rounding_are_one(form: str) -> None:
    above = np.array([1.0000001, 0.5], np.float32)
    value: Any = above if form == "behavior_prob" else np.log(above.astype(float))
    log = LoggedDataset.from_arrays(
        [0.0, 1.0], [0, 1], [0.0, 1.0], lengths=[2], ends="terminal", **dict[str, Any]({form: value})
    )
    assert log.behavior_log_prob is not None
    assert log.behavior_log_prob.tolist() == [0.0, np.log(0.5)]
    too_much: dict[str, Any] = {form: [1.00001 if form == "behavior_prob" else 0.00001]}
    with pytest.raises(ValueError, match=form):
        LoggedDataset.from_arrays([0.0], [0], [0.0], lengths=[1], ends="terminal", **too_much)


def test_final_states_have_the_precision_of_the_states() -> None:
    log = LoggedDataset.from_arrays(
        np.array([0.1, 0.2], np.float32), [0, 1], [0.0, 1.0], lengths=[2], ends="truncated", final_states=[0.1]
    )
    assert log.final_states is not None
    assert log.final_states[0, 0] == log.states[0, 0]


def test_instants_are_labels_as_they_stand() -> None:
    days = np.array(["2020-01-01", "2021-01-01"], "datetime64[ns]")
    log = LoggedDataset.from_arrays([0.0, 1.0], days, [0.0, 1.0], lengths=[2], ends="terminal")
    assert log.action_labels is not None
    assert log.action_labels.tolist() == pd.to_datetime(days).tolist()


@pytest.mark.parametrize("how", [{"continuous": False}, {"actions": [0.25, 0.5]}])
def test_fractions_are_labels_if_said_so(how: dict[str, Any]) -> None:
    frame = _frame(2, act=np.array([0.25, 0.5], dtype=object))
    log = LoggedDataset.from_pandas(frame, **NAMES, **how)
    assert log.action_labels is not None
    assert log.action_labels.tolist() == [0.25, 0.5]
    assert LoggedDataset.from_pandas(_frame(act=pd.Categorical(np.arange(12) / 4)), **NAMES).n_actions == 12


# -------------------------------------------------------------------- masks of final states


def _masked(final_action_mask: Any, ends: Any = "truncated") -> LoggedDataset:
    return LoggedDataset.from_arrays(
        [0.0, 1.0],
        [0, 1],
        [0.0, 1.0],
        lengths=[1, 1],
        ends=ends,
        action_mask=np.ones((2, 2)),
        final_states=[5.0, 6.0],
        final_action_mask=final_action_mask,
    )


def _first_action(states: Any, _actions: Any) -> Any:
    return np.tile([1.0, 0.0], (len(states), 1))


def test_a_final_state_without_its_mask_is_unknown() -> None:
    with pytest.warns(UserWarning, match=r"got no mask there for episodes \[0, 1\].*final_action_mask=") as caught:
        log = _masked(None)
    assert caught[0].filename == __file__
    assert log.final_known().tolist() == [False, False]
    policy = TabularPolicy([[0.9, 0.1]], state_code=lambda states: np.zeros(len(states), int))
    assert np.isnan(expectation(policy, log, _first_action, at="next")).all()
    assert used_rows(log, horizon_continues=False).tolist() == [False, False]
    told = _masked([[True, False], [True, True]])
    assert expectation(policy, told, _first_action, at="next").tolist() == [1.0, 0.9]
    assert used_rows(told, horizon_continues=False).all()


def test_nothing_is_done_after_a_terminal_end() -> None:
    assert _masked(None, ends="terminal").final_known().all()
    assert not _masked(None, ends="horizon").final_known().any()


def test_masks_of_final_states_are_missing_altogether_or_in_part() -> None:
    frame = pd.DataFrame({"id": [1, 1, 2, 2], "t": [0, 1, 0, 1], "x": 0.0, "act": [0, np.nan, 1, np.nan]})
    frame["r"], frame["lost"] = [1.0, np.nan, 1.0, np.nan], [False, True, False, True]
    how: dict[str, Any] = {"truncated": "lost", "final_row": "state_only", "action_mask": ["m0", "m1"]}
    for missing in ([None, None], [None, True]):
        mask = pd.array([True, missing[0], True, missing[1]], dtype="boolean")
        with pytest.raises(ValueError, match=r"`action_mask` \(column 'm0'\) must hold booleans .* index 1"):
            LoggedDataset.from_pandas(frame.assign(m0=mask, m1=mask), **NAMES, **how)


def test_next_states_bring_no_masks_beside_given_up_rows_that_do() -> None:
    frame = pd.DataFrame({"id": [1, 1, 2, 2], "t": [0, 1, 0, 1], "x": [0.0, 1, 2, 3], "act": 0, "r": 1.0, "m0": True})
    frame = frame.assign(lost=[False, True] * 2, nx=[1.0, 9.0, 3.0, np.nan], m1=False)
    how: dict[str, Any] = {"truncated": "lost", "final_row": "drop", "next_states": ["nx"], "actions": [0, 1]}
    with pytest.warns(UserWarning, match=r"no mask there for episodes \[1\]"):
        log = LoggedDataset.from_pandas(frame, **NAMES, **how, action_mask=["m0", "m1"])
    assert log.final_action_mask is not None
    assert log.final_action_mask.tolist() == [[False, False], [True, False]]
    assert log.final_known().tolist() == [False, True]


# -------------------------------------------------------------------- what leaves a log, and comes back


def test_frames_do_not_lose_what_is_known_of_final_states() -> None:
    told = _masked([[True, False], [True, True]])
    with pytest.raises(
        ValueError, match=r"to_pandas: `final_action_mask` must be absent .*replace\(final_action_mask=None"
    ):
        told.to_pandas()
    extra = _masked(np.ones((2, 2))).replace(final_action_mask=None, final_extras=pd.DataFrame({"z": [1, 2]}))
    with pytest.raises(ValueError, match=r"to_pandas: `final_extras` must be absent"):
        extra.to_pandas()
    assert len(extra.replace(final_extras=None).to_pandas()) == 2


@pytest.mark.parametrize(("dtype", "labels"), [("int8", [0, 1, 300]), ("uint8", [-1, 0, 1]), ("Int8", [0.5, 0, 1])])
def test_labels_beyond_the_type_of_their_column(dtype: str, labels: list[Any]) -> None:
    frame = _frame().astype({"act": dtype})
    log = LoggedDataset.from_pandas(frame, **NAMES, actions=labels)
    assert log.n_actions == 3
    written = log.to_pandas()
    pd.testing.assert_series_equal(written["act"], frame["act"])
    assert LoggedDataset.from_pandas(written, **NAMES, actions=labels).actions.tolist() == log.actions.tolist()


def test_estimates_that_were_written_are_replaced() -> None:
    frame = _frame(x=np.tile([0.0, 1.0, 1.0], 4), act=np.tile([0, 1], 6)).assign(
        id=np.arange(12) // 2, t=[0, 1] * 6, z=1
    )
    once = estimate_behavior(LoggedDataset.from_pandas(frame, **NAMES), n_folds=2)
    read = LoggedDataset.from_pandas(once.to_pandas(), **NAMES)
    assert read.extras is not None
    assert set(read.extras) == {"z", "estimated_log_prob", "cross_fitted_log_prob"}
    twice = estimate_behavior(read, n_folds=2)
    pd.testing.assert_frame_equal(twice.to_pandas(), once.to_pandas())
    with pytest.raises(TypeError, match="estimate_behavior: `data` must be a LoggedDataset, got DataFrame"):
        estimate_behavior(frame)  # type: ignore[arg-type]


# -------------------------------------------------------------------- identity


FORMS: dict[str, Any] = {
    "integers": np.arange(4),
    "floats": np.arange(4.0),
    "text": [str(i) for i in range(4)],
    "bytes": [str(i).encode() for i in range(4)],
    "objects": np.arange(4).astype(object),
}


@pytest.mark.parametrize("learned", FORMS)
@pytest.mark.parametrize("valued", FORMS)
def test_overlap_does_not_depend_on_how_a_number_is_written(learned: str, valued: str) -> None:
    def log(ids: Any) -> LoggedDataset:
        return LoggedDataset.from_arrays(
            np.zeros(4), [0, 1, 0, 1], np.zeros(4), lengths=[1] * 4, ends="terminal", episode_ids=ids
        )

    class Learned:
        training_episode_keys_ = np.sort(log(FORMS[learned]).episode_keys)

    assert overlap(Learned(), log(FORMS[valued])) == 4
    assert overlap(Learned(), log(["00", "01", "a", "1"])) == 1
    assert overlap(Learned(), log([7, 8, 9, 3])) == 1
    assert overlap(Learned(), log(pd.date_range("1970-01-01", periods=4, unit="ns").to_numpy())) == 0
