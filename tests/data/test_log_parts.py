"""Laws of `select`, `split` and `blocks`, and the immutability of a log."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_oracle import MODES, assert_same_log, mode_arguments, random_frame

from ope.dataset import LoggedDataset

# Next states and `from_arrays` may leave the masks of final states unknown: tests/data/test_log_care.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*final state of a truncated episode:UserWarning")


def _log(mode: str = "drop", seed: int = 0, n_episodes: int = 15) -> LoggedDataset:
    return LoggedDataset.from_pandas(random_frame(seed, mode, n_episodes), **mode_arguments(mode))


def _episode(log: LoggedDataset, i: int) -> dict[str, Any]:
    rows = range(int(log.offsets[i]), int(log.offsets[i + 1]))
    assert log.extras is not None
    return {
        "id": log.episode_ids[i],
        "end": log.ends[i],
        "states": [log.states[row].tolist() for row in rows],
        "rewards": [log.rewards[row] for row in rows],
        "actions": [log.actions[row] for row in rows],
        "dose": [log.extras["dose"].iloc[row] for row in rows],
        "final": None if log.final_states is None else log.final_states[i].tolist().__repr__(),
    }


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-15, 14), min_size=1, max_size=20, unique_by=lambda i: i % 15))
def test_select_takes_episodes_in_order(mode: str, chosen: list[int]) -> None:
    log = _log(mode)
    part = log.select(chosen)
    assert part.n_episodes == len(chosen)
    assert part.offsets[0] == 0
    for new, old in enumerate(chosen):
        assert _episode(part, new) == _episode(log, old % log.n_episodes)


@pytest.mark.parametrize("mode", MODES)
def test_forms_of_selection_agree(mode: str) -> None:
    log = _log(mode)
    mask = np.zeros(log.n_episodes, dtype=bool)
    mask[4:9] = True
    by_slice = log.select(slice(4, 9))
    for form in (mask, np.arange(4, 9), [4, 5, 6, 7, 8], slice(4, 9, 1), slice(-11, -6)):
        part = log.select(form)
        assert _columns(part) == _columns(by_slice)
    assert_same_log(log.select(slice(None)), log)
    assert log.select(slice(0, 15, 2)).episode_ids.tolist() == log.episode_ids[::2].tolist()


def _columns(log: LoggedDataset) -> list[Any]:
    return [_episode(log, i) for i in range(log.n_episodes)]


def test_a_slice_copies_nothing() -> None:
    log = _log()
    part = log.select(slice(3, 7))
    for name in ("states", "rewards", "actions", "timesteps", "behavior_log_prob", "action_mask", "episode_ids"):
        assert np.shares_memory(getattr(part, name), getattr(log, name)), name


def test_selected_part_counts_its_own_dropped_rows() -> None:
    log = _log("drop")
    assert log.n_dropped_rows > 0
    counts = [log.select([i]).n_dropped_rows for i in range(log.n_episodes)]
    assert counts == [int(end == 2) for end in log.ends]


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 15), st.floats(0.01, 0.99), st.integers(0, 100))
def test_split_is_a_partition_by_episode(n_episodes: int, test_size: float, seed: int) -> None:
    log = _log(n_episodes=n_episodes)
    if not 0 < round(n_episodes * test_size) < n_episodes:
        with pytest.raises(ValueError, match="leaves a part empty"):
            log.split(test_size, seed)
        return
    train, test = log.split(test_size, seed)
    assert test.n_episodes == round(n_episodes * test_size)
    assert sorted([*train.episode_ids, *test.episode_ids]) == log.episode_ids.tolist()
    assert train.n_transitions + test.n_transitions == log.n_transitions
    assert_same_log(log.split(test_size, seed)[1], test)
    assert train.data_id != test.data_id


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 80))
def test_blocks_are_whole_episodes_in_order(max_rows: int) -> None:
    log = _log()
    blocks = list(log.blocks(max_rows))
    assert [episode for block in blocks for episode in _columns(block)] == _columns(log)
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        assert block.n_transitions <= max_rows or block.n_episodes == 1
        # A block is only as short as it must be.
        assert after is None or block.n_transitions + after.lengths[0] > max_rows
    assert next(log.blocks()) is log


def test_columns_cannot_be_written() -> None:
    log = _log()
    with pytest.raises(dataclasses.FrozenInstanceError):
        log.rewards = np.zeros(3)  # type: ignore[misc]
    for field in dataclasses.fields(log):
        value = getattr(log, field.name)
        if isinstance(value, np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                value[...] = value


def test_final_rows() -> None:
    log = _log("state_only")
    rows = log.final_rows(np.array([2, 0]))
    assert log.final_states is not None
    np.testing.assert_array_equal(rows.states, log.final_states[[2, 0]])
    assert rows.extras is not None
    assert rows.extras["dose"].tolist() == [log.final_extras["dose"][2], log.final_extras["dose"][0]]  # type: ignore[index]
    assert log.final_known().all()
    assert len(log.rows()) == len(log) == log.n_transitions
    bare = LoggedDataset.from_arrays([0.0], [0], [0.0], lengths=[1], ends="terminal")
    assert not bare.final_known().any()


def test_identity_depends_on_identifiers_only() -> None:
    frame = random_frame(3, "next_states")
    log = LoggedDataset.from_pandas(frame, **mode_arguments("next_states"))
    richer = LoggedDataset.from_pandas(
        frame.assign(r=frame["r"] + 1, id=frame["id"].astype("Int32")), **mode_arguments("next_states")
    )
    assert richer.data_id == log.data_id
    text = LoggedDataset.from_pandas(frame.assign(id=frame["id"].astype(str)), **mode_arguments("next_states"))
    assert text.data_id != log.data_id
    assert isinstance(log.extras, pd.DataFrame)
