"""`NeuralLearner`: what the learners on `ope.neural` share: fitting alone or many at once, resuming, checkpoints."""

from __future__ import annotations

import abc
import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from typing_extensions import Self

from ope.dataset import LoggedDataset, check_log
from ope.files import check_place
from ope.fitted import forget
from ope.neural.device import resolve_device, use_threads
from ope.neural.history import Outcome, Tensors, TrainingStatus
from ope.neural.networks import MLP
from ope.neural.precision import PRECISIONS, Precision
from ope.neural.training import Callback, TrainingEvent, TrainingPlan, TrainingResult, TrainingStep, train
from ope.neural.transitions import BatchSampler, Standardizer, Transitions
from ope.policies._bounds import unit_range
from ope.policies._class_only import class_only
from ope.policies._network_policy import RECORD_ENDS, NetworkPolicy
from ope.policies._runs import (
    WATCHING,
    LearnerEvent,
    Origin,
    TrainingState,
    check_run,
    describe_run,
    joined,
    part_of,
)
from ope.policies._settings import COUNT, NATURAL, POSITIVE, Choice, Rule, check_settings
from ope.validation import FloatArray

_NO_HISTORY = pd.DataFrame({"update": np.zeros(0, dtype=np.int64)})
SAVES = 10
MAX_SAVE_EVERY = 10_000


class NeuralLearner(NetworkPolicy):
    """Base class of learners that train networks.

    A subclass defines `_step` (its losses) and `_probabilities` or `_distribution` (its policy), bounds its settings in
    `rules`, and names in `individual` the settings that may differ between learners that train as one. Attributes: see
    `NetworkPolicy`.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "n_updates": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "checkpoints": NATURAL,
        "log_every": COUNT,
        "n_threads": COUNT,
        "precision": Choice(PRECISIONS),
    }
    individual: ClassVar[frozenset[str]] = frozenset({"learning_rate", "random_state"})
    # Whether the learner uses Bellman targets: whether it minds a last state that is unknown.
    bootstraps: ClassVar[bool] = True
    # What None stands for in a setting: with discrete actions, with continuous ones.
    by_kind: ClassVar[Mapping[str, tuple[Any, Any]]] = {}
    # What to use instead where the learner has no form for a kind of action; None where it has one.
    no_discrete: ClassVar[str | None] = None
    no_continuous: ClassVar[str | None] = None
    # Whether learning rates depend on `n_updates`, so that a run cannot be prolonged.
    scheduled: ClassVar[bool] = False

    n_updates: int
    batch_size: int | None
    normalize_states: bool
    random_state: int | None
    device: str
    progress: bool
    checkpoints: int
    checkpoint_path: str | Path | None
    log_every: int
    callbacks: Sequence[Callable[[LearnerEvent], Any]] | None
    n_threads: int
    precision: Precision

    training_state_: TrainingState

    # ---------------------------------------------------------------- what subclasses define

    @classmethod
    @abc.abstractmethod
    def _step(cls, learners: Sequence[Self], data: Transitions, seeds: Sequence[int]) -> TrainingStep:
        """Build the networks and losses of K learners."""

    def _check_data(self, data: LoggedDataset) -> None:
        """Raise if this learner cannot learn from this log."""
        instead = self.no_discrete if data.discrete else self.no_continuous
        if instead is not None:
            need, came = ("continuous", "discrete") if data.discrete else ("discrete", "continuous")
            raise TypeError(f"{type(self).__name__}: `data` must have {need} actions, got {came} ones; {instead}.")

    def _action_standardizer(self, data: LoggedDataset) -> Standardizer | None:
        """Return the map of continuous actions to the unit of training: their range to [-1, 1]."""
        return None if data.discrete else unit_range(type(self).__name__, data, getattr(self, "action_bounds", None))

    def _check_together(self) -> None:
        """Raise if settings that are sound one by one contradict each other."""

    def _reward_scale(self, data: LoggedDataset) -> float:  # noqa: ARG002
        """Return the number by which rewards are multiplied for training."""
        return 1.0

    def _episode_weights(self, data: LoggedDataset) -> FloatArray | None:  # noqa: ARG002
        """Return how often the transitions of each episode are drawn, in proportion; None for all alike."""
        return None

    # ---------------------------------------------------------------- fitting

    def fit(self, data: LoggedDataset) -> Self:
        """Learn a policy from a log.

        Parameters
        ----------
        data : LoggedDataset

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a setting is out of its bounds, or the log has nothing to learn from, before any work is done.

        Notes
        -----
        The first Ctrl-C ends training after the update at work: the policy learned so far is kept, `status_` says so,
        and `resume` goes on from there. A second one raises.
        """
        self._train([self], data, [None])
        return self

    def resume(self, data: LoggedDataset, path: str | Path | None = None) -> Self:
        """Go on with a run that was interrupted, to the same bits as if it had not been.

        Parameters
        ----------
        data : LoggedDataset
            The log of the run.
        path : str or Path, optional
            The file that the run wrote to `checkpoint_path`; default: what `fit` kept when it was interrupted. A run that a
            callback stopped goes on from its file once the learner has no callbacks.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If nothing was kept, the log or a setting differs, or the file is damaged. `n_updates` may be raised, to
            train for longer; checkpoints that there are already stay beside the new ones.
        """
        self._train([self], data, [self._kept_state(path)])
        return self

    @class_only
    def fit_many(cls, data: LoggedDataset, learners: Sequence[Self | int], *, resume: bool = False) -> list[Self]:
        """Fit several learners to one log, those whose networks have equal shapes as one batched product.

        Parameters
        ----------
        data : LoggedDataset
        learners : sequence of learners of this class, or of seeds
            A seed stands for a learner with default settings.
        resume : bool
            Whether to go on with learners that were interrupted: those that had ended stay as they are, those that had not
            begun begin.

        Returns
        -------
        list of learners
            The same objects, fitted. Each is what its own `fit` gives, up to rounding: its batches and initial weights
            come from its own seed.

        Raises
        ------
        TypeError
            If called on an object, whose settings it would not use.
        """
        if not isinstance(learners, Sequence) or isinstance(learners, str):
            raise TypeError(
                f"{cls.__name__}.fit_many: `learners` must be a list of {cls.__name__} objects or seeds, got {learners!r}; pass "
                "[0, 1] for two seeds."
            )
        ready = [_learner(cls, learner) for learner in learners]
        _check_paths(cls.__name__, ready)
        if not resume:
            cls._train(ready, data, [None] * len(ready))
            return ready
        if ready and not any(hasattr(learner, "training_state_") for learner in ready):
            ready[0]._kept_state(None)
        going = [learner for learner in ready if hasattr(learner, "training_state_") or not hasattr(learner, "status_")]
        cls._train(going, data, [getattr(learner, "training_state_", None) for learner in going])
        return ready

    def _group_key(self) -> str:
        apart = self.individual | WATCHING
        return json.dumps({name: value for name, value in self._settings().items() if name not in apart}, default=repr)

    def _settings(self) -> dict[str, Any]:
        return dict(self.get_params(deep=False))

    def _effective(self, discrete: bool) -> dict[str, Any]:
        """Return the settings, None replaced by what it stands for with this kind of action."""
        stands_for = {name: values[not discrete] for name, values in self.by_kind.items()}
        given = self._settings()
        return {name: stands_for.get(name) if value is None else value for name, value in given.items()}

    @classmethod
    def _numbers(cls, learners: Sequence[Self], names: Sequence[str], discrete: bool) -> dict[str, list[float]]:
        """Return settings as a number for each learner."""
        effective = [learner._effective(discrete) for learner in learners]
        return {name: [float(settings[name]) for settings in effective] for name in names}

    def _check(self, data: LoggedDataset) -> None:
        """Raise if this learner cannot be fitted to this log: before any learner is."""
        owner = type(self).__name__
        check_log(owner, data)
        self._check_data(data)
        check_settings(owner, self._effective(data.discrete), self.rules)
        self._check_together()
        resolve_device(self.device, owner)
        self._action_standardizer(data)
        if self.checkpoint_path is not None:
            check_place(owner, "checkpoint_path", self.checkpoint_path)

    @classmethod
    def _train(cls, learners: Sequence[Self], data: LoggedDataset, states: Sequence[TrainingState | None]) -> None:
        """Train, or go on from states, those whose networks have equal shapes and that are as far side by side."""
        for learner in learners:
            learner._check(data)
        runs = _describe(learners, data, states)
        keys = [f"{a._group_key()} {None if b is None else b.done}" for a, b in zip(learners, states, strict=True)]
        waiting = dict(enumerate(learners))
        for _, group in groupby(sorted(range(len(keys)), key=keys.__getitem__), key=keys.__getitem__):
            members = list(group)
            together = [learners[i] for i in members]
            with torch.inference_mode(False), torch.enable_grad():
                cls._train_together(together, data, [runs[i] for i in members], [states[i] for i in members])
            waiting = {i: learner for i, learner in waiting.items() if i not in members}
            if any(learner.status_.outcome is Outcome.INTERRUPTED for learner in together):
                break
        if waiting:
            cls._put_off([learner for i, learner in waiting.items() if states[i] is None], len(waiting), len(learners))

    @classmethod
    def _put_off(cls, not_begun: Sequence[Self], n_waiting: int, n_learners: int) -> None:
        """Say that learners wait; nothing of an earlier fit is left to be taken for this one."""
        for learner in not_begun:
            forget(learner)
        warnings.warn(
            f"{cls.__name__}.fit_many: interrupted before {n_waiting} of {n_learners} learners went on; call it with "
            "resume=True for the rest.",
            UserWarning,
            stacklevel=4,
        )

    @classmethod
    def _train_together(
        cls,
        learners: Sequence[Self],
        data: LoggedDataset,
        runs: Sequence[dict[str, Any]],
        states: Sequence[TrainingState | None],
    ) -> None:
        first, seeds = learners[0], [int(run["seed"]) for run in runs]
        scalers = (first._state_standardizer(data), first._action_standardizer(data))
        transitions = Transitions.from_dataset(data, resolve_device(first.device, cls.__name__), *scalers)
        n_excluded = _count_excluded(cls.__name__, transitions) if cls.bootstraps else 0
        scale, weights = first._reward_scale(data), first._episode_weights(data)
        transitions = replace(transitions, rewards=transitions.rewards * scale)
        n_used = None if weights is None else int((weights > 0).sum())
        counts: dict[str, Any] = {"n_excluded": n_excluded, "reward_scale": scale, "n_episodes_used": n_used}
        origins = [
            Origin.of(data, *scalers, seed=seed, settings=learner._fixed(), **counts)
            for learner, seed in zip(learners, seeds, strict=True)
        ]
        with use_threads(first.n_threads):
            step = cls._step(learners, transitions, seeds)
        plan = _plan(learners, origins, runs)
        kept = [state.tensors for state in states if state is not None]
        start = joined(kept) if kept else None
        batch_size = first._effective(data.discrete)["batch_size"]
        row_weights = None if weights is None else np.repeat(weights, data.lengths)
        result = train(step, BatchSampler(transitions, seeds, batch_size, row_weights), plan, start)
        for k, learner in enumerate(learners):
            learner._adopt(origins[k], step, result, k)
            learner._keep_state(TrainingState(part_of(result.state, k), runs[k]))

    def _state_standardizer(self, data: LoggedDataset) -> Standardizer:
        return Standardizer.fit(data.states) if self.normalize_states else Standardizer.identity(data.states.shape[1])

    # ---------------------------------------------------------------- results

    def _adopt(self, origin: Origin, step: TrainingStep, result: TrainingResult, k: int) -> None:
        def networks(rows: Tensors) -> dict[str, MLP]:
            return {name: step.networks[name].with_rows(flat) for name, flat in rows.items()}

        status, history = result.statuses[k], result.histories[k]
        self._become(origin, networks(part_of(result.snapshot, k)), status, history)
        self.checkpoints_ = [
            self._copy(origin, networks(rows), update, history[history["update"] <= update])
            for update, rows in result.checkpoints_of(k)
        ]
        if not status.ok:
            warnings.warn(f"{type(self).__name__}: training {status}.", UserWarning, stacklevel=5)

    def _copy(self, origin: Origin, networks: dict[str, MLP], update: int, history: pd.DataFrame) -> Self:
        twin = copy.copy(self)
        twin.__dict__.pop("training_state_", None)
        twin.callbacks = twin.checkpoint_path = None
        return twin._become(origin, networks, TrainingStatus(Outcome.RUNNING, update, self.n_updates), history)

    def _keep_state(self, state: TrainingState) -> None:
        if self.status_.outcome is Outcome.INTERRUPTED:
            self.training_state_ = state
        else:
            self.__dict__.pop("training_state_", None)

    def _kept_state(self, path: str | Path | None) -> TrainingState:
        owner = f"{type(self).__name__}.resume"
        if path is not None:
            kept = TrainingState.read(path, owner)
            return kept if kept.outcome is not Outcome.STOPPED or self.callbacks else kept.set_going()
        if not hasattr(self, "training_state_"):
            raise ValueError(
                f"{owner}: no interrupted run is kept; call fit, or pass the `path` of its checkpoint file, which runs that a "
                "callback stopped need too."
            )
        return self.training_state_


def _learner(learner_class: type[Any], given: Any) -> Any:
    if type(given) is learner_class:
        return given
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return learner_class(random_state=int(given))
    name = learner_class.__name__
    raise TypeError(f"{name}.fit_many: `learners` must hold {name} objects or seeds, got {given!r}.")


def _describe(
    learners: Sequence[NeuralLearner], data: LoggedDataset, states: Sequence[TrainingState | None]
) -> list[dict[str, Any]]:
    """Describe each run, seeds drawn where none is given; a run to resume keeps its seed and must be the same."""
    runs = []
    for learner, state in zip(learners, states, strict=True):
        owner, settings = type(learner).__name__, learner._settings()
        seed = _draw_seed() if learner.random_state is None else int(learner.random_state)
        kept = seed if state is None else int(state.run["seed"])
        run = describe_run(owner, settings, data, kept, scheduled=learner.scheduled)
        if state is not None:
            check_run(owner, state.run, run, state.done, learner.n_updates, type(learner)()._settings())
        runs.append(run)
    return runs


def _draw_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1, np.uint32)[0])


def _check_paths(owner: str, learners: Sequence[NeuralLearner]) -> None:
    paths = [str(learner.checkpoint_path) for learner in learners if learner.checkpoint_path is not None]
    if len(set(paths)) < len(paths):
        raise ValueError(
            f"{owner}.fit_many: `checkpoint_path` must be another file for each learner, got "
            f"{paths}; give each its own."
        )


def _count_excluded(owner: str, data: Transitions, stacklevel: int = 5) -> int:
    if data.n_excluded == len(data):
        raise ValueError(
            f"{owner}: `data` must hold a transition whose next state is known or terminal, got none in {len(data)}; "
            f"{RECORD_ENDS}."
        )
    if data.n_excluded:
        warnings.warn(
            f"{owner}: {data.n_excluded} of {len(data)} transitions end an episode that goes on in an unknown state or "
            f"with unknown available actions; they are left out of the Bellman loss. To use them {RECORD_ENDS}.",
            UserWarning,
            stacklevel=stacklevel,
        )
    return data.n_excluded


def _plan(learners: Sequence[NeuralLearner], origins: Sequence[Origin], runs: Sequence[dict[str, Any]]) -> TrainingPlan:
    first = learners[0]
    paths = {k: learner.checkpoint_path for k, learner in enumerate(learners) if learner.checkpoint_path is not None}

    def save(state: Tensors) -> None:
        for k, path in paths.items():
            TrainingState(part_of(state, k), runs[k]).write(path)

    return TrainingPlan(
        n_updates=first.n_updates,
        log_every=first.log_every,
        n_checkpoints=first.checkpoints,
        callbacks=[_callbacks(learner, origin) for learner, origin in zip(learners, origins, strict=True)],
        save=save if paths else None,
        save_every=min(MAX_SAVE_EVERY, max(1, first.n_updates // SAVES)),
        progress=any(learner.progress for learner in learners),
        label=type(first).__name__,
        n_threads=first.n_threads,
        precision=first.precision,
    )


def _callbacks(learner: NeuralLearner, origin: Origin) -> list[Callback]:
    def translate(callback: Callable[[LearnerEvent], Any]) -> Callback:
        def call(event: TrainingEvent) -> Any:
            def policy() -> NeuralLearner:
                return learner._copy(origin, event.snapshot(), event.update, _NO_HISTORY.copy())

            return _is_true(
                type(learner).__name__, callback(LearnerEvent(event.update, event.n_updates, event.metrics, policy))
            )

        return call

    return [translate(callback) for callback in learner.callbacks or ()]


def _is_true(owner: str, answer: Any) -> bool:
    try:
        return bool(answer)
    except ValueError as error:
        raise TypeError(
            f"{owner}: `callbacks` must return something true or false, got {type(answer).__name__} of shape "
            f"{np.shape(answer)}; return True to stop, None to go on."
        ) from error
