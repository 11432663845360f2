"""Minari data sets as logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ope.columns import shown
from ope.dataset import LoggedDataset
from ope.io.spaces import Encoding, flatten
from ope.schema import ColumnNames, End

if TYPE_CHECKING:
    from minari import MinariDataset
    from minari.dataset.episode_data import EpisodeData

OWNER = "from_minari"


def from_minari(
    dataset: MinariDataset | str | os.PathLike[str],
    *,
    horizon: int | None = None,
    action_labels: Sequence[Any] | npt.NDArray[Any] | None = None,
    discrete_observations: Encoding = "one_hot",
    behavior_prob: str | None = None,
    behavior_log_prob: str | None = None,
    reward_range: tuple[float, float] | None = None,
) -> LoggedDataset:
    """Read a Minari data set.

    Parameters
    ----------
    dataset : MinariDataset, str or path-like
        The data set, its folder, or the identifier of one in the local Minari folder. Nothing is downloaded.
    horizon : int, optional
        The time limit in steps, where it is part of the problem: episodes of this length that did not terminate then
        end by the horizon. By default they are truncated: the process goes on behind them.
    action_labels : sequence, optional
        Labels of the actions of a Discrete space, in the order of the space; default: its integers.
    discrete_observations : {"one_hot", "integer"}
        Whether a Discrete part of an observation becomes a column per value or one column.
    behavior_prob, behavior_log_prob : str, optional
        Key of the infos that holds the probability (density) of the action, or its logarithm.
    reward_range : (float, float), optional
        Bounds that hold for every reward that can occur.

    Returns
    -------
    LoggedDataset
        With every final state; an episode that both terminated and was cut off has terminated.

    Raises
    ------
    ValueError, TypeError
        If a space cannot be flattened, an episode has no end flag, flags stand before its last step, or its arrays do
        not fit together.
    ImportError
        If Minari is not installed.

    Notes
    -----
    Minari stores T + 1 observations for T actions; the last one is the final state. Infos have T + 1 entries, too, the
    first of which comes from the reset: the action of step t is described by entry t + 1, unless the last entry is
    missing (NaN) and the first is not. Infos of T entries have one per step.

    Examples
    --------
    >>> import minari, tempfile
    >>> from gymnasium.spaces import Box, Discrete
    >>> from minari.data_collector.episode_buffer import EpisodeBuffer
    >>> episode = EpisodeBuffer(
    ...     observations=[0.0, 1.0, 2.0], actions=[1, 0], rewards=[0.5, 1.0], terminations=[0, 0], truncations=[0, 1]
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = minari.dataset.minari_storage.MinariStorage.new(folder, Box(0.0, 9.0, ()), Discrete(2))
    ...     data.update_metadata({"dataset_id": "toy-v0", "minari_version": minari.__version__})
    ...     data.update_episodes([episode])
    ...     from_minari(folder)
    LoggedDataset(1 episode, 2 transitions, 1 feature, actions [0, 1], 1 truncated, no propensities)
    """
    source = _open(dataset)
    features, flat = flatten(source.observation_space, discrete_observations, OWNER)
    labels, decode = _action_space(source.action_space, action_labels)
    keys = {"behavior_prob": behavior_prob, "behavior_log_prob": behavior_log_prob}
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for episode in source.iterate_episodes():
        _check_steps(episode)
        observations = flat(episode.observations)
        found = {
            "states": observations[:-1],
            "actions": decode(episode.actions),
            "rewards": episode.rewards,
            "lengths": [len(episode.rewards)],
            "ends": [_end(episode, horizon)],
            "final_states": observations[-1:],
            "episode_ids": [episode.id],
            **{name: _info(episode, key, name) for name, key in keys.items() if key is not None},
        }
        _check_lengths(episode, found)
        for name, values in found.items():
            parts.setdefault(name, []).append(np.asarray(values))
    if not parts:
        raise ValueError(f"{OWNER}: `dataset` must hold an episode, got none; check the filter that made it.")
    columns: dict[str, Any] = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return LoggedDataset.from_arrays(
        **columns,
        action_labels=labels,
        continuous=labels is None,
        feature_names=features,
        reward_range=reward_range,
        horizon=horizon,
        columns=ColumnNames(behavior_prob=behavior_prob, behavior_log_prob=behavior_log_prob),
    )


def _open(dataset: Any) -> MinariDataset:
    try:
        return _load(dataset)
    except ImportError as error:
        raise ImportError(
            f"{OWNER} needs Minari and what it reads its files with ({error}); install them with: "
            "pip install 'ope-learn[minari]'"
        ) from error


def _load(dataset: Any) -> MinariDataset:
    import minari

    if isinstance(dataset, minari.MinariDataset):
        return dataset
    if not isinstance(dataset, (str, os.PathLike)):
        raise TypeError(
            f"{OWNER}: `dataset` must be a MinariDataset, its folder or its identifier, got {type(dataset).__name__}; "
            "load it with minari.load_dataset."
        )
    folder = Path(dataset)
    try:
        if folder.is_dir():
            return minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
        return minari.load_dataset(str(dataset))
    except (ValueError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{OWNER}: `dataset` must be the folder or the identifier of a data set on this machine, got {str(dataset)!r} "
            f"({error}); fetch it with minari.download_dataset."
        ) from error


def _action_space(space: Any, labels: Any) -> tuple[list[Any] | None, Callable[[Any], npt.NDArray[Any]]]:
    """Return the labels of a Discrete space (None for a Box), and the function that decodes a batch of actions."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        if labels is not None:
            raise ValueError(
                f"{OWNER}: `action_labels` must be absent for the continuous actions of {space}, got {shown(labels)}; "
                "drop it."
            )
        return None, lambda actions: np.asarray(actions, dtype=np.float64).reshape(len(actions), -1)
    if not isinstance(space, spaces.Discrete):
        raise TypeError(
            f"{OWNER}: actions must come from a Discrete or Box space, got {space}; number the combinations of a "
            "composite space and build the log with LoggedDataset.from_arrays."
        )
    start, size = int(space.start), int(space.n)
    known = list(range(start, start + size)) if labels is None else list(labels)
    if len(known) != size:
        raise ValueError(
            f"{OWNER}: `action_labels` must be {size} labels, one for each value of {space}, got {len(known)}; "
            "complete them."
        )
    names = np.empty(size, dtype=object)
    names[:] = known
    return known, lambda actions: _labels_of(actions, start, names)


def _labels_of(actions: Any, start: int, names: npt.NDArray[Any]) -> npt.NDArray[Any]:
    codes = np.asarray(actions).reshape(-1).astype(np.int64) - start
    if len(codes) and (codes.min() < 0 or codes.max() >= len(names)):
        raise ValueError(
            f"{OWNER}: actions must lie in {start} to {start + len(names) - 1}, got {codes.min() + start} to "
            f"{codes.max() + start}; correct the action space of the data set."
        )
    chosen: npt.NDArray[Any] = names[codes]
    return chosen


def _end(episode: EpisodeData, horizon: int | None) -> End:
    terminated, truncated = np.asarray(episode.terminations, bool), np.asarray(episode.truncations, bool)
    if terminated[:-1].any() or truncated[:-1].any():
        step = int(np.flatnonzero(terminated[:-1] | truncated[:-1])[0])
        raise ValueError(
            f"{OWNER}: an episode must be flagged in its last step only, got a flag in step {step} of "
            f"{len(terminated)} in episode {episode.id}; split it there."
        )
    if terminated[-1]:
        return End.TERMINAL
    if len(terminated) == horizon:
        return End.HORIZON
    if truncated[-1]:
        return End.TRUNCATED
    raise ValueError(
        f"{OWNER}: an episode must end with a flag, got none after {len(terminated)} steps of episode "
        f"{episode.id}; flag it as terminated or truncated, or pass horizon= if this is the time limit."
    )


def _info(episode: EpisodeData, key: str, name: str) -> npt.NDArray[Any]:
    infos = episode.infos or {}
    if key not in infos:
        raise ValueError(
            f"{OWNER}: `{name}` must be a key of the infos, got {key!r} but episode {episode.id} has {shown(infos)}; "
            "leave it out if no propensities were recorded."
        )
    values = np.asarray(infos[key], dtype=np.float64).reshape(-1)
    if len(values) != len(episode.rewards) + 1:
        return values
    return values[:-1] if np.isnan(values[-1]) and not np.isnan(values[0]) else values[1:]


def _check_steps(episode: EpisodeData) -> None:
    if len(episode.rewards) == 0:
        raise ValueError(f"{OWNER}: an episode must have a step, got none in episode {episode.id}; filter it out.")


def _check_lengths(episode: EpisodeData, found: dict[str, Any]) -> None:
    steps = len(episode.rewards)
    rows = ("states", "actions", "behavior_prob", "behavior_log_prob")
    wrong = {name: len(found[name]) for name in rows if name in found and len(found[name]) != steps}
    if wrong:
        raise ValueError(
            f"{OWNER}: an episode of {steps} rewards must have {steps + 1} observations and {steps} of everything "
            f"else, got {wrong} (states without the last) in episode {episode.id}; record the observation after "
            "the last step, too."
        )
