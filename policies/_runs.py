"""What a training run of learners is: where its policies come from, what it saves, and what may resume it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ope.neural.history import Outcome, Tensors
from ope.neural.serialization import read_sealed, write_sealed
from ope.neural.transitions import Standardizer

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset

TRAINING_KIND = "ope-training"

# Settings that change how a run is watched, or how its policy acts, not what it learns.
WATCHING = frozenset({"progress", "callbacks", "checkpoint_path", "deterministic", "n_act_samples"})
# Settings that a resumed run may change besides.
ADJUSTABLE = WATCHING | {"n_threads", "device", "n_updates"}


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a policy comes from: names, labels and units of its training log, and how its run was seeded."""

    feature_names: tuple[str, ...]
    action_labels: npt.NDArray[Any] | None
    n_actions: int
    states: Standardizer
    actions: Standardizer | None
    episode_keys: npt.NDArray[np.uint64]
    n_excluded: int
    seed: int
    # Rewards were multiplied by this number for training.
    reward_scale: float = 1.0
    # Episodes that transitions were drawn from, where the learner does not take all.
    n_episodes_used: int | None = None
    # What the fitted policy goes on using, whatever is set later.
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def discrete(self) -> bool:
        """Whether actions are discrete."""
        return self.action_labels is not None

    @classmethod
    def of(
        cls,
        data: LoggedDataset,
        states: Standardizer,
        actions: Standardizer | None,
        *,
        n_excluded: int,
        seed: int,
        reward_scale: float = 1.0,
        n_episodes_used: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Origin:
        """Take over what a log says."""
        return cls(
            feature_names=data.feature_names,
            action_labels=data.action_labels,
            n_actions=data.n_actions,
            states=states,
            actions=actions,
            episode_keys=np.sort(data.episode_keys),
            n_excluded=n_excluded,
            seed=seed,
            reward_scale=reward_scale,
            n_episodes_used=n_episodes_used,
            settings=dict(settings or {}),
        )


@dataclass(frozen=True)
class LearnerEvent:
    """What a callback of a learner receives every `log_every` updates; a true return value stops training.

    Parameters
    ----------
    update : int
        Updates done.
    n_updates : int
        Updates planned.
    metrics : dict of str to float
        Averages since the last event.
    policy : callable
        A method: ``event.policy()`` returns the policy learned so far, a fitted copy of the learner.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> from ope.policies.behavior_cloning import BehaviorCloning
    >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [0.0, 1.0], lengths=[1, 1], ends="terminal")
    >>> def stop_early(event):
    ...     return event.update == 20
    >>> BehaviorCloning(hidden=(8,), n_updates=100, log_every=10, callbacks=[stop_early]).fit(log).n_updates_
    20
    """

    update: int
    n_updates: int
    metrics: dict[str, float]
    policy: Callable[[], Any]


@dataclass(frozen=True)
class TrainingState:
    """All that an interrupted run resumes from: tensors with a leading model axis of 1, and what the run was."""

    tensors: Tensors
    run: dict[str, Any]

    @property
    def done(self) -> int:
        """Updates done."""
        return int(self.tensors["run/done"][0])

    @property
    def outcome(self) -> Outcome:
        """How the run ended; RUNNING where it may go on."""
        return Outcome(int(self.tensors["run/outcomes"][0]))

    def set_going(self) -> TrainingState:
        """Return the state of a run that a callback stopped as one that goes on."""
        going = torch.full_like(self.tensors["run/outcomes"], int(Outcome.RUNNING))
        return TrainingState({**self.tensors, "run/outcomes": going}, self.run)

    def write(self, path: str | Path) -> None:
        """Write the state to a file, atomically."""
        write_sealed(path, TRAINING_KIND, {name: value.numpy() for name, value in self.tensors.items()}, self.run)

    @classmethod
    def read(cls, path: str | Path, owner: str) -> TrainingState:
        """Read what `write` wrote."""
        arrays, run = read_sealed(path, TRAINING_KIND, owner)
        return cls({name: torch.from_numpy(array) for name, array in arrays.items()}, run)


def part_of(tensors: Tensors, k: int) -> Tensors:
    """Return model k's part of a state."""
    return {name: value[k : k + 1].clone() for name, value in tensors.items()}


def joined(parts: Sequence[Tensors]) -> Tensors:
    """Join states of models that are to train side by side."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def describe_run(
    owner: str, params: Mapping[str, Any], data: LoggedDataset, seed: int, *, scheduled: bool = False
) -> dict[str, Any]:
    """Return what decides the result of a run, as JSON: settings, log and seed.

    A `scheduled` run has learning rates that depend on its planned length: that may not change.
    """
    free = ADJUSTABLE - {"n_updates"} if scheduled else ADJUSTABLE
    settings = _as_json({name: value for name, value in params.items() if name not in free})
    return {"class": owner, "settings": settings, "data": fingerprint(data), "seed": seed}


def _as_json(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, default=repr) for name, value in settings.items()}


def fingerprint(data: LoggedDataset) -> str:
    """Return a hash of what a learner reads of a log."""
    digest = hashlib.blake2b(digest_size=16)
    columns = (data.states, data.actions, data.rewards, data.offsets, data.ends, data.final_states)
    digest.update(
        repr((data.feature_names, None if data.action_labels is None else data.action_labels.tolist())).encode()
    )
    for column in (*columns, data.action_mask, data.final_action_mask):
        digest.update(b"none" if column is None else np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def check_run(
    owner: str,
    kept: Mapping[str, Any],
    now: Mapping[str, Any],
    done: int,
    n_updates: int,
    defaults: Mapping[str, Any],
) -> None:
    """Raise a ValueError unless a kept run can go on with these settings and this log.

    A setting that the run does not name is younger than its file, and had its default.
    """
    if kept["class"] != now["class"]:
        raise ValueError(
            f"{owner}.resume: the run must be one of {owner}, got one of {kept['class']}; resume with that class."
        )
    if kept["data"] != now["data"]:
        raise ValueError(
            f"{owner}.resume: `data` must be the log of the run, got another one; pass the same log, or call fit."
        )
    before = {**_as_json({name: defaults[name] for name in now["settings"]}), **kept["settings"]}
    changed = sorted(name for name in now["settings"] if before[name] != now["settings"][name])
    if changed:
        pairs = ", ".join(f"{name}={before[name]}" for name in changed)
        raise ValueError(f"{owner}.resume: settings must be those of the run ({pairs}); set them back, or call fit.")
    if n_updates < done:
        raise ValueError(
            f"{owner}.resume: `n_updates` must be at least the {done} updates done, got {n_updates}; raise it, or call "
            "fit."
        )
