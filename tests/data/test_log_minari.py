"""Minari data sets as logs, against the buffers that they were made from and Gymnasium's own flattening."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ope.io import from_minari
from ope.io.spaces import flatten
from ope.schema import ColumnNames, End

minari = pytest.importorskip("minari")
pytest.importorskip("PIL", reason="Minari reads its files with Pillow")
spaces = pytest.importorskip("gymnasium.spaces")
EpisodeBuffer = pytest.importorskip("minari.data_collector.episode_buffer").EpisodeBuffer

BOX = spaces.Box(-10.0, 10.0, (2,), dtype=np.float64)
DISCRETE = spaces.Discrete(3)
ENDS = [(True, False), (False, True), (True, True), (False, True)]
NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def buffer(steps: int, end: tuple[bool, bool], seed: int, **changes: Any) -> Any:
    """Return one episode: two-dimensional observations, discrete actions."""
    rng = np.random.default_rng(seed)
    flags = [[False] * (steps - 1) + [flag] for flag in end]
    parts: dict[str, Any] = {
        "observations": list(rng.normal(size=(steps + 1, 2))),
        "actions": list(rng.integers(3, size=steps)),
        "rewards": list(rng.normal(size=steps)),
        "terminations": flags[0],
        "truncations": flags[1],
    }
    return EpisodeBuffer(**(parts | changes))


def buffers() -> list[Any]:
    return [buffer(steps, end, seed) for seed, (steps, end) in enumerate(zip([3, 1, 4, 5], ENDS, strict=True))]


def stored(episodes: list[Any], observation: Any = BOX, action: Any = DISCRETE) -> Any:
    """Write a data set under a new name and open it."""
    about = dict.fromkeys(("code_permalink", "author", "author_email", "algorithm_name", "description"), "test")
    with pytest.warns(UserWarning, match="env` is set to None|env_spec is None"):
        return minari.create_dataset_from_buffers(
            f"toy/log{next(NUMBERS)}-v0", episodes, observation_space=observation, action_space=action, **about
        )


def test_log_holds_what_the_buffers_held() -> None:
    episodes = buffers()
    log = from_minari(stored(episodes))
    np.testing.assert_array_equal(log.states, np.concatenate([np.array(e.observations[:-1]) for e in episodes]))
    np.testing.assert_array_equal(log.actions, np.concatenate([e.actions for e in episodes]))
    np.testing.assert_array_equal(log.rewards, np.concatenate([e.rewards for e in episodes]))
    assert log.final_states is not None
    np.testing.assert_array_equal(log.final_states, [e.observations[-1] for e in episodes])
    assert log.lengths.tolist() == [3, 1, 4, 5]
    assert log.ends.tolist() == [End.TERMINAL, End.TRUNCATED, End.TERMINAL, End.TRUNCATED]
    assert log.episode_ids.tolist() == [0, 1, 2, 3]
    assert log.feature_names == ("observation_0", "observation_1")
    assert log.action_labels is not None
    assert log.action_labels.tolist() == [0, 1, 2]
    assert log.horizon is None
    assert log.behavior_log_prob is None


def test_data_set_folder_and_identifier_agree(folder: Path) -> None:
    data = stored(buffers())
    log = from_minari(data)
    for source in (data.id, folder / data.id, str(folder / data.id), data.storage.data_path):
        again = from_minari(source)
        np.testing.assert_array_equal(again.states, log.states)
        assert again.data_id == log.data_id
    with pytest.raises(FileNotFoundError, match=r"from_minari: `dataset` .*'toy/nowhere-v0'.*minari\.download_dataset"):
        from_minari("toy/nowhere-v0")
    with pytest.raises(FileNotFoundError, match=r"from_minari: `dataset` .*No data found"):
        from_minari(folder)


def test_filtered_data_set_keeps_its_identifiers() -> None:
    log = from_minari(stored(buffers()).filter_episodes(lambda episode: len(episode) > 3))
    assert log.episode_ids.tolist() == [2, 3]
    assert log.lengths.tolist() == [4, 5]


def test_time_limit_of_the_problem() -> None:
    episodes = [
        buffer(4, (False, True), 0),
        buffer(2, (False, True), 1),
        buffer(4, (True, False), 2),
        buffer(4, (False, False), 3),
    ]
    log = from_minari(stored(episodes), horizon=4)
    assert log.ends.tolist() == [End.HORIZON, End.TRUNCATED, End.TERMINAL, End.HORIZON]
    assert log.horizon == 4
    assert from_minari(stored(episodes[:3])).ends.tolist() == [End.TRUNCATED, End.TRUNCATED, End.TERMINAL]


def test_single_precision_is_kept() -> None:
    space = spaces.Box(-10.0, 10.0, (2,), dtype=np.float32)
    episode = buffer(2, (True, False), 0, observations=list(np.ones((3, 2), dtype=np.float32)))
    assert from_minari(stored([episode], space)).states.dtype == np.float32


def test_continuous_actions() -> None:
    moves = np.random.default_rng(0).uniform(-1, 1, (3, 2, 2))
    episode = buffer(3, (True, False), 0, actions=list(moves))
    log = from_minari(stored([episode], action=spaces.Box(-1.0, 1.0, (2, 2), dtype=np.float64)))
    assert not log.discrete
    np.testing.assert_array_equal(log.actions, [move.ravel() for move in moves])


def test_action_labels_name_the_values_of_the_space() -> None:
    episode = buffer(3, (True, False), 0, actions=[-1, 1, 0])
    space = spaces.Discrete(3, start=-1)
    log = from_minari(stored([episode], action=space), action_labels=["wait", "left", "right"])
    assert log.action_labels is not None
    assert log.action_labels[log.actions].tolist() == ["wait", "right", "left"]
    plain = from_minari(stored([episode], action=space))
    assert plain.action_labels is not None
    assert plain.action_labels.tolist() == [-1, 0, 1]


def test_discrete_observations() -> None:
    episode = buffer(3, (False, True), 0, observations=[2, 3, 2, 4])
    data = stored([episode], spaces.Discrete(3, start=2))
    hot = from_minari(data)
    assert hot.feature_names == ("observation=2", "observation=3", "observation=4")
    assert hot.states.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    whole = from_minari(data, discrete_observations="integer")
    assert whole.states.tolist() == [[2.0], [3.0], [2.0]]
    assert whole.final_states is not None
    assert whole.final_states.tolist() == [[4.0]]


NESTED = spaces.Dict(
    arm=spaces.Box(-1.0, 1.0, (2, 2), dtype=np.float64),
    mode=spaces.Discrete(3, start=5),
    room=spaces.Dict(lights=spaces.MultiBinary(2), doors=spaces.MultiDiscrete([2, 3])),
    pair=spaces.Tuple((spaces.Box(0.0, 1.0, (), dtype=np.float64), spaces.Discrete(2))),
)


def test_nested_observations_are_flattened_as_gymnasium_does() -> None:
    NESTED.seed(0)
    samples = [NESTED.sample() for _ in range(4)]
    stacked = _stack(samples)
    data = stored([buffer(3, (False, True), 0, observations=stacked)], NESTED)
    log = from_minari(data)
    expected = np.array([spaces.utils.flatten(NESTED, sample) for sample in samples])
    np.testing.assert_array_equal(log.states, expected[:-1])
    assert log.final_states is not None
    np.testing.assert_array_equal(log.final_states[0], expected[-1])
    row = dict(zip(log.feature_names, log.states[1], strict=True))
    assert row["arm_1_0"] == samples[1]["arm"][1, 0]
    assert row[f"mode={samples[1]['mode']}"] == 1.0
    assert row["room.lights_1"] == samples[1]["room"]["lights"][1]
    assert row[f"room.doors_1={samples[1]['room']['doors'][1]}"] == 1.0
    assert row["pair.0"] == samples[1]["pair"][0]
    whole = from_minari(data, discrete_observations="integer")
    columns = dict(zip(whole.feature_names, whole.states.T, strict=True))
    assert columns["mode"].tolist() == [float(sample["mode"]) for sample in samples[:-1]]
    assert columns["room.doors_0"].tolist() == [float(sample["room"]["doors"][0]) for sample in samples[:-1]]


def _stack(samples: list[Any]) -> Any:
    first = samples[0]
    if isinstance(first, dict):
        return {key: _stack([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple):
        return tuple(_stack(list(parts)) for parts in zip(*samples, strict=True))
    return samples


@pytest.mark.parametrize(
    "infos",
    [[0.5, 0.25, 1.0], [np.nan, 0.5, 0.25, 1.0], [9.0, 0.5, 0.25, 1.0], [0.5, 0.25, 1.0, np.nan]],
    ids=["one per step", "missing at reset", "something at reset", "missing at the end"],
)
@pytest.mark.parametrize("form", ["behavior_prob", "behavior_log_prob"])
def test_propensities_in_the_infos(infos: list[float], form: str) -> None:
    values = infos if form == "behavior_prob" else np.log(infos).tolist()
    data = stored([buffer(3, (True, False), 0, infos={"prob": values, "other": [0.0] * 4})])
    keys: dict[str, Any] = {form: "prob"}
    log = from_minari(data, **keys)
    assert log.behavior_log_prob is not None
    np.testing.assert_allclose(log.behavior_log_prob, np.log([0.5, 0.25, 1.0]))
    assert log.columns == ColumnNames(**keys)
    assert log.known_propensities
    assert from_minari(data).behavior_log_prob is None


def test_reward_range() -> None:
    assert from_minari(stored(buffers()), reward_range=(-9, 9)).reward_range == (-9.0, 9.0)


def _early_flag() -> Any:
    return stored([buffer(3, (True, False), 0, terminations=[True, False, True])])


def _text() -> Any:
    return stored([buffer(1, (True, False), 0, observations=["a", "b"])], spaces.Text(3))


def _composite_actions() -> Any:
    return stored([buffer(1, (True, False), 0, actions=[np.array([0, 1])])], action=spaces.MultiDiscrete([2, 2]))


BAD: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "no data set": (
        lambda: from_minari(EpisodeBuffer()),
        TypeError,
        ["`dataset`", "MinariDataset", "EpisodeBuffer", "load_dataset"],
    ),
    "no episodes": (
        lambda: from_minari(stored(buffers()).filter_episodes(lambda _: False)),
        ValueError,
        ["`dataset`", "an episode", "none"],
    ),
    "flag before the end": (
        lambda: from_minari(_early_flag()),
        ValueError,
        ["last step only", "step 0 of 3", "episode 0"],
    ),
    "no flag": (
        lambda: from_minari(stored([buffer(2, (False, False), 0)])),
        ValueError,
        ["end with a flag", "after 2 steps of episode 0", "horizon="],
    ),
    "no flag before the horizon": (
        lambda: from_minari(stored([buffer(2, (False, False), 0)]), horizon=3),
        ValueError,
        ["end with a flag", "episode 0"],
    ),
    "longer than the horizon": (
        lambda: from_minari(stored(buffers()), horizon=3),
        ValueError,
        ["horizon of 3", r"\[2, 3\]"],
    ),
    "text": (lambda: from_minari(_text()), TypeError, ["Text", "'observation'", "observation wrapper"]),
    "composite actions": (lambda: from_minari(_composite_actions()), TypeError, ["Discrete or Box", "MultiDiscrete"]),
    "missing last observation": (
        lambda: from_minari(stored([buffer(2, (True, False), 0, observations=list(np.zeros((2, 2))))])),
        ValueError,
        ["3 observations", "'states': 1", "episode 0"],
    ),
    "unknown info": (
        lambda: from_minari(stored([buffer(1, (True, False), 0, infos={"q": [0.5]})]), behavior_prob="p"),
        ValueError,
        ["`behavior_prob`", "'p'", r"\['q'\]"],
    ),
    "info of another length": (
        lambda: from_minari(stored([buffer(3, (True, False), 0, infos={"p": [0.5]})]), behavior_prob="p"),
        ValueError,
        ["'behavior_prob': 1", "episode 0"],
    ),
    "labels of another number": (
        lambda: from_minari(stored(buffers()), action_labels=["a", "b"]),
        ValueError,
        ["`action_labels`", "3 labels", r"Discrete\(3\)", "got 2"],
    ),
    "labels of continuous actions": (
        lambda: from_minari(
            stored([buffer(1, (True, False), 0, actions=[np.array([0.5])])], action=spaces.Box(0, 1)), action_labels=[1]
        ),
        ValueError,
        ["`action_labels`", "absent", "Box"],
    ),
    "action outside the space": (
        lambda: from_minari(stored([buffer(1, (True, False), 0, actions=[7])])),
        ValueError,
        ["actions", "0 to 2", "7"],
    ),
    "observation outside the space": (
        lambda: from_minari(stored([buffer(1, (True, False), 0, observations=[0, 7])], DISCRETE)),
        ValueError,
        ["'observation'", "0 to 2", r"7\.0"],
    ),
    "unknown encoding": (
        lambda: from_minari(stored(buffers()), discrete_observations="binary"),  # type: ignore[arg-type]
        ValueError,
        ["`discrete_observations`", "'binary'", "one_hot"],
    ),
    "propensity zero": (
        lambda: from_minari(stored([buffer(1, (True, False), 0, infos={"p": [0.0]})]), behavior_prob="p"),
        ValueError,
        ["`behavior_prob`", r"\(0, 1\]"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_sets(name: str) -> None:
    call, error, fragments = BAD[name]
    with pytest.raises(error) as caught:
        call()
    for fragment in fragments:
        assert re.search(fragment, str(caught.value)), f"{fragment!r} is not in: {caught.value}"


def test_episode_without_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.zeros(0)
    empty = minari.EpisodeData(7, np.zeros((1, 2)), nothing, nothing, nothing, nothing, {})
    monkeypatch.setattr(minari.MinariDataset, "iterate_episodes", lambda _: iter([empty]))
    with pytest.raises(ValueError, match="an episode must have a step, got none in episode 7; filter it out"):
        from_minari(stored(buffers()))


def test_minari_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"from_minari needs Minari.*ope-learn\[minari\]"):
        from_minari("toy/log-v0")


def test_flatten_names_are_distinct() -> None:
    names, flat = flatten(NESTED, "one_hot", "test")
    assert len(set(names)) == len(names) == spaces.utils.flatdim(NESTED)
    NESTED.seed(1)
    assert flat(_stack([NESTED.sample()])).shape == (1, len(names))
