"""`from_pandas(data.to_pandas())` gives the same log, whatever the identifiers, times, actions and final states are."""

from __future__ import annotations

import datetime
import uuid
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_oracle import LABELS, MASK, MODES, assert_same_log, mode_arguments, random_frame

from ope.dataset import LoggedDataset
from ope.schema import BehaviorSource, ColumnNames
from ope.series import series_of, sort_key, values_of

# Next states and `from_arrays` may leave the masks of final states unknown: tests/data/test_log_care.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*final state of a truncated episode:UserWarning")

INTEGERS = st.integers(-(2**62), 2**62)
# Without digits: numbers as text are refused as times. Without NUL: pandas 2 reads text only up to there.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Nd"], exclude_characters="\0"), max_size=8)
DIGITS = st.text("0123456789", min_size=4, max_size=4)
INSTANTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1))
DAYS = st.dates(datetime.date(1900, 1, 1), datetime.date(2200, 1, 1))

Maker = Callable[[list[Any]], "pd.Series[Any]"]
ARROW_DAYS, ARROW_ZONED = pd.ArrowDtype(pa.date32()), pd.ArrowDtype(pa.timestamp("us", tz="Asia/Tokyo"))
ARROW_DICTIONARY = pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))


def _typed(dtype: Any) -> Maker:
    return lambda values: pd.Series(values, dtype=dtype)


def _zoned(values: list[Any]) -> pd.Series[Any]:
    return pd.Series(pd.to_datetime(values, utc=True)).dt.tz_convert("America/New_York")


def _categories(values: list[Any]) -> pd.Series[Any]:
    return pd.Series(pd.Categorical(values, categories=[*values, "never used"], ordered=True))


IDENTIFIERS: dict[str, tuple[st.SearchStrategy[Any], Maker]] = {
    "int64": (INTEGERS, _typed("int64")),
    "int8": (st.integers(-128, 127), _typed("int8")),
    "uint64": (st.integers(0, 2**64 - 1), _typed("uint64")),
    "Int64": (INTEGERS, _typed("Int64")),
    "int arrow": (INTEGERS, _typed("int64[pyarrow]")),
    "float": (st.floats(allow_nan=False, allow_infinity=False), _typed("float64")),
    "Float64": (st.floats(-1e300, 1e300, allow_nan=False), _typed("Float64")),
    "text": (TEXT, _typed(None)),
    "object text": (TEXT, _typed("object")),
    "string": (TEXT, _typed("string")),
    "string arrow": (TEXT, _typed(pd.ArrowDtype(pa.string()))),
    "dictionary arrow": (TEXT, lambda values: pd.Series(values, dtype=str).astype(ARROW_DICTIONARY)),
    "bytes": (st.binary(max_size=4), _typed("object")),
    "category": (TEXT.filter(lambda text: text != "never used"), _categories),
    "integer category": (INTEGERS, lambda values: pd.Series(pd.Categorical(values))),
    "instant": (INSTANTS, lambda values: pd.Series(pd.to_datetime(values))),
    "instant in seconds": (INSTANTS.map(lambda i: i.replace(microsecond=0)), _typed("datetime64[s]")),
    "zoned instant": (INSTANTS, _zoned),
    "instant arrow": (INSTANTS, _typed("timestamp[us][pyarrow]")),
    "zoned instant arrow": (INSTANTS, lambda values: _zoned(values).astype(ARROW_ZONED)),
    "day": (DAYS, _typed("object")),
    "day arrow": (DAYS, _typed(ARROW_DAYS)),
    "duration": (
        st.timedeltas(datetime.timedelta(-999), datetime.timedelta(999)),
        lambda v: pd.Series(pd.to_timedelta(v)),
    ),
    "month": (DAYS, lambda values: pd.Series(pd.PeriodIndex(values, freq="D"))),
    "tuple": (st.tuples(TEXT, INTEGERS), _typed("object")),
    "uuid": (st.builds(uuid.UUID, int=st.integers(0, 2**128 - 1)), _typed("object")),
}


# Text is a time only if it sorts as one: digits of one width.
TEXT_TIMES = {kind: (DIGITS, IDENTIFIERS[kind][1]) for kind, (drawn, _) in IDENTIFIERS.items() if drawn is TEXT}
TIMES = IDENTIFIERS | TEXT_TIMES


@pytest.mark.parametrize("time", TIMES)
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_types_of_times(time: str, data: st.DataObject) -> None:
    _check_types("text", time, data)


@pytest.mark.parametrize("episode", IDENTIFIERS)
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_types_of_episodes(episode: str, data: st.DataObject) -> None:
    _check_types(episode, "float", data)


def test_zoned_instants_in_both_roles() -> None:
    hours = pd.date_range("2024-03-31", periods=6, freq="h", tz="Europe/Berlin")
    frame = pd.DataFrame({"id": hours[[0, 0, 0, 1, 1, 1]], "t": hours, "x": np.arange(6.0), "act": "a", "r": 0.0})
    arguments: dict[str, Any] = {"episode": "id", "time": "t", "states": "x", "action": "act", "reward": "r"}
    log = LoggedDataset.from_pandas(frame.sample(frac=1, random_state=0), **arguments)
    assert log.timesteps.tolist() == hours.tz_convert("UTC").tz_localize(None).to_numpy().tolist()
    pd.testing.assert_frame_equal(log.to_pandas(), frame)


def _check_types(episode: str, time: str, data: st.DataObject) -> None:
    ids, times = _draw(IDENTIFIERS[episode], data, 3), _draw(TIMES[time], data, 4)
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=len(ids), max_size=len(ids)))
    steps = [sorted(data.draw(st.permutations(range(len(times))))[:length]) for length in lengths]
    owners = np.repeat(np.arange(len(ids)), [len(chosen) for chosen in steps])
    frame = pd.DataFrame({"id": ids.take(owners).array, "t": times.take(np.concatenate(steps)).array})
    frame = frame.assign(x=np.arange(len(frame)) * 1.0, act="a", r=1.0, dead=True)
    order = data.draw(st.permutations(range(len(frame))))
    # The flag belongs to the last row in the order of the times' own type.
    rank = pd.Series(sort_key(frame["t"]))
    frame["dead"] = rank == rank.groupby(owners).transform("max")
    arguments: dict[str, Any] = {"episode": "id", "time": "t", "states": ["x"], "action": "act", "reward": "r"}
    arguments |= {"terminated": "dead", "allow_gaps": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gaps before")
        first = LoggedDataset.from_pandas(frame.take(order), **arguments)
        written = first.to_pandas()
        second = LoggedDataset.from_pandas(written, **arguments)
    assert_same_log(first, second)
    assert written.dtypes[["id", "t"]].to_dict() == frame.dtypes[["id", "t"]].to_dict()
    expected = sorted(zip(sort_key(frame["id"]), sort_key(frame["t"]), frame["x"], strict=True))
    assert first.states[:, 0].tolist() == [x for _, _, x in expected]
    assert set(map(tuple, written[["id", "t", "x"]].to_numpy(object))) == set(
        map(tuple, frame[["id", "t", "x"]].to_numpy(object))
    )
    assert len(set(first.episode_keys.tolist())) == first.n_episodes


def _draw(kind: tuple[st.SearchStrategy[Any], Maker], data: st.DataObject, size: int) -> pd.Series[Any]:
    strategy, make = kind
    return make(data.draw(st.lists(strategy, min_size=1, max_size=size, unique=True)))


@pytest.mark.parametrize("kind", IDENTIFIERS)
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_columns_survive_as_arrays(kind: str, data: st.DataObject) -> None:
    column = _draw(IDENTIFIERS[kind], data, 5)
    again = series_of(values_of(column), column.dtype)
    assert again.dtype == column.dtype
    assert again.tolist() == column.tolist()
    in_order = column.iloc[np.argsort(sort_key(column), kind="stable")].tolist()
    ordered = isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered
    assert in_order == (column.tolist() if ordered else sorted(column.tolist()))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_ends_masks_and_extras(mode: str, seed: int, n_episodes: int) -> None:
    first = LoggedDataset.from_pandas(random_frame(seed, mode, n_episodes), **mode_arguments(mode))
    written = first.to_pandas()
    second = LoggedDataset.from_pandas(written, **mode_arguments(mode))
    assert_same_log(first, second)
    pd.testing.assert_frame_equal(second.to_pandas(), written)


@pytest.mark.parametrize("mode", MODES)
def test_parts_of_a_log(mode: str) -> None:
    log = LoggedDataset.from_pandas(random_frame(0, mode, 20), **mode_arguments(mode))
    for part in (*log.split(0.3, random_state=1), log.select(slice(3, 9)), log.select([0]), *log.blocks(10)):
        again = LoggedDataset.from_pandas(part.to_pandas(), **mode_arguments(mode), horizon=part.horizon)
        if part.final_states is None or np.isnan(part.final_states).all():
            part = part.replace(final_states=None, final_extras=None, final_action_mask=None)
        elif part.final_extras is not None and again.final_extras is not None:
            # Integers beside missing values in the whole log may stand alone in a part of it.
            part = part.replace(final_extras=part.final_extras.astype(again.final_extras.dtypes.to_dict()))
        assert_same_log(again, part)


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_the_frame_come_back(mode: str) -> None:
    frame = random_frame(2, mode, shuffle=False).sort_values(["id", "t"], ignore_index=True)
    written = LoggedDataset.from_pandas(frame, **mode_arguments(mode)).to_pandas()
    given_up = written["r"].isna() & frame["r"].notna()
    if mode == "drop":
        assert given_up.any()
        frame.loc[given_up, ["r", "p"]] = np.nan
        frame.loc[given_up, "act"] = np.nan
    else:
        assert not given_up.any()
    kept = [name for name in frame if name not in ("x_next", "y_next", "dead", "lost", "p")]
    pd.testing.assert_frame_equal(written[kept], frame[kept])
    np.testing.assert_allclose(written["p"], frame["p"], rtol=1e-14)
    for flag in ("dead", "lost"):
        assert written.groupby("id")[flag].any().tolist() == frame.groupby("id")[flag].any().tolist()


def test_no_propensities_no_flags() -> None:
    frame = random_frame(1, "next_states").query("not dead and not lost")
    frame = frame.groupby("id").filter(lambda rows: len(rows) == 5)[["id", "t", "x", "act", "r"]]
    arguments: dict[str, Any] = {"episode": "id", "time": "t", "states": "x", "action": "act", "reward": "r"}
    log = LoggedDataset.from_pandas(frame, **arguments)
    assert log.to_pandas().columns.tolist() == ["id", "t", "x", "act", "r"]
    assert_same_log(LoggedDataset.from_pandas(log.to_pandas(), **arguments), log)


@pytest.mark.parametrize(
    "dtype", ["int64", "Int64", "float64", "boolean", "category", "object", "string", "int8[pyarrow]"]
)
@pytest.mark.parametrize("mode", ["state_only", "drop"])
def test_actions_beside_missing_ones(mode: str, dtype: str) -> None:
    frame = random_frame(4, mode)
    codes = {"a": 1, "b": 0, "c": 1}
    values: pd.Series[Any] = frame["act"].map({label: str(code) for label, code in codes.items()})
    if dtype not in ("category", "object", "string"):
        values = frame["act"].map(codes).astype("float64")
    if dtype == "int64" and mode == "state_only":
        dtype = "float64"
    arguments = mode_arguments(mode) | {
        "actions": None,
        "action_mask": None,
        "continuous": None if mode == "state_only" else False,
    }
    frame = frame.drop(columns=MASK).assign(act=values.astype(pd.api.types.pandas_dtype(dtype)))
    log = LoggedDataset.from_pandas(frame, **arguments)
    assert log.discrete
    again = LoggedDataset.from_pandas(log.to_pandas(), **arguments)
    if dtype == "int64":
        # What is given up is missing in the frame, which int64 cannot hold.
        assert again.layout is not None
        assert again.layout.dtypes["action"] == "Int64"
        again, log = again.replace(layout=None), log.replace(layout=None)
    assert_same_log(again, log)


@pytest.mark.parametrize("columns", [["u", "v"], "u"])
@pytest.mark.parametrize("mode", MODES)
def test_continuous_actions(mode: str, columns: list[str] | str) -> None:
    rng = np.random.default_rng(0)
    frame = random_frame(5, mode).drop(columns=MASK)
    noise = pd.DataFrame(rng.normal(size=(len(frame), 2)), columns=["u", "v"], index=frame.index)
    frame = frame.drop(columns="act").join(noise.where(frame["r"].notna()))
    arguments = mode_arguments(mode) | {"actions": None, "action_mask": None, "action": columns}
    if columns == "u":
        frame = frame.drop(columns="v")
    log = LoggedDataset.from_pandas(frame, **arguments)
    assert not log.discrete
    assert_same_log(LoggedDataset.from_pandas(log.to_pandas(), **arguments), log)


def test_log_probabilities() -> None:
    frame = random_frame(6, "next_states")
    frame["p"] = np.log(frame["p"])
    arguments = mode_arguments("next_states") | {"behavior_prob": None, "behavior_log_prob": "p"}
    log = LoggedDataset.from_pandas(frame, **arguments)
    assert_same_log(LoggedDataset.from_pandas(log.to_pandas(), **arguments), log)


def test_log_of_arrays_with_default_names() -> None:
    rng = np.random.default_rng(1)
    finals = np.array([[0.5, 1.0], [np.nan, np.nan]])
    log = LoggedDataset.from_arrays(
        rng.normal(size=(5, 2)),
        rng.normal(size=(5, 2)),
        rng.normal(size=5),
        lengths=[3, 2],
        ends=["truncated", "terminal"],
        behavior_prob=rng.uniform(1, 2, size=5),
        final_states=finals,
        extras=pd.DataFrame({"note": list("abcde")}),
    )
    arguments = {"episode": "episode", "time": "time", "states": ["state_0", "state_1"], "reward": "reward"}
    arguments |= {"action": ["action_0", "action_1"], "terminated": "terminated", "truncated": "truncated"}
    arguments |= {"next_states": ["next_state_0", "next_state_1"], "behavior_log_prob": "behavior_log_prob"}
    again = LoggedDataset.from_pandas(log.to_pandas(), **arguments)  # type: ignore[arg-type]
    unlike = {"columns": ColumnNames(), "layout": None}
    assert_same_log(again.replace(**unlike), log.replace(**unlike))


def test_masks_of_arrays_get_names() -> None:
    log = LoggedDataset.from_arrays(
        [0.0, 1.0], [0, 1], [0.0, 1.0], lengths=[2], ends="terminal", action_mask=[[True, False], [True, True]]
    )
    assert log.to_pandas()[["allows_0", "allows_1"]].to_numpy().tolist() == [[True, False], [True, True]]


def test_masks_that_stop_before_the_last_state() -> None:
    frame = random_frame(8, "state_only")
    frame[MASK] = frame[MASK].astype(object).mask(frame["r"].isna())
    with pytest.raises(ValueError, match=r"`action_mask` .* give these states as next_states="):
        LoggedDataset.from_pandas(frame, **mode_arguments("state_only"))
    frame["dead"], frame["lost"] = frame["dead"] | frame["lost"], False
    log = LoggedDataset.from_pandas(frame, **mode_arguments("state_only"))
    assert log.final_action_mask is None
    assert log.to_pandas()[MASK].isna().all(axis=1).sum() == log.n_episodes
    assert_same_log(LoggedDataset.from_pandas(log.to_pandas(), **mode_arguments("state_only")), log)


def test_labels_and_times_of_other_types() -> None:
    days: list[Any] = [datetime.date(2020, 1, 2), datetime.date(2020, 1, 1)]
    log = LoggedDataset.from_arrays([0.0, 1.0], days, [0.0, 1.0], lengths=[2], ends="terminal", timesteps=days[::-1])
    assert log.action_labels is not None
    assert log.action_labels.tolist() == days[::-1]
    assert log.timesteps.tolist() == days[::-1]
    assert log.to_pandas()[["action", "time"]].to_numpy().tolist() == [[days[0], days[1]], [days[1], days[0]]]


def test_estimated_propensities_do_not_pass_for_logged_ones() -> None:
    log = LoggedDataset.from_pandas(random_frame(7, "next_states"), **mode_arguments("next_states"))
    log = log.replace(
        behavior_source=BehaviorSource(kind="estimated", model="LogisticRegression()", n_folds=2),
        cross_fitted_log_prob=log.behavior_log_prob,
    )
    frame = log.to_pandas()
    assert "p" not in frame
    np.testing.assert_array_equal(frame["estimated_log_prob"], log.behavior_log_prob)
    np.testing.assert_array_equal(frame["cross_fitted_log_prob"], log.cross_fitted_log_prob)
    assert sorted(frame["act"].unique()) == LABELS
