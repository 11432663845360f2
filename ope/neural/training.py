"""The one training loop: K models side by side; history, checkpoints, interruption and resumption, divergence stop."""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from ope.neural.device import use_threads
from ope.neural.generators import ModelGenerators
from ope.neural.graphs import CapturedUpdates, CUDACapture, graphs_are_wanted
from ope.neural.history import MetricLog, Outcome, Tensors, TrainingStatus
from ope.neural.interrupt import StopRequest, deferred_interrupt
from ope.neural.networks import MLP, FlatParameters
from ope.neural.optimizer import FlatAdam
from ope.neural.precision import Precision, use_precision
from ope.neural.transitions import Batch, BatchSampler


class TrainingStep(abc.ABC):
    """What a learner adds to the engine: its networks, and one update of them.

    A subclass registers what it trains in `networks`, `variables`, `optimizers`, `generators` and `counts`: everything
    registered is saved and restored. An update must depend on nothing else, so that a resumed run continues to the same
    bits. It has two parts: `advance` does what belongs to Python, counters and learning rates, `_update` what belongs to
    the device.

    Attributes
    ----------
    networks : dict of str to MLP
        Of K models, or of K models times the members of an ensemble, the members of one model side by side.
    variables : dict of str to FlatParameters
        What is trained besides: a temperature, a multiplier.
    optimizers : dict of str to FlatAdam
    generators : dict of str to ModelGenerators
        For noise other than the choice of batches.
    counts : dict of str to int
        Counters of updates, the one at work among them, that schedules read.
    policy_networks : tuple of str
        The networks that make a policy: what checkpoints hold.
    """

    policy_networks: tuple[str, ...] = ()

    def __init__(self, n_models: int) -> None:
        self.n_models = n_models
        self.networks: dict[str, MLP] = {}
        self.variables: dict[str, FlatParameters] = {}
        self.optimizers: dict[str, FlatAdam] = {}
        self.generators: dict[str, ModelGenerators] = {}
        self.counts: dict[str, int] = {}

    def update(self, batch: Batch) -> Tensors:
        """Do one update; return detached metrics of shape (K,), "loss" among them."""
        self.advance()
        return self._update(batch)

    def advance(self) -> None:
        """Do what precedes the operations of an update: it is counted."""
        self.counts = {name: count + 1 for name, count in self.counts.items()}

    def phase(self) -> Hashable | None:
        """Return which form the update has that `advance` was called for, None where nothing is known of its forms.

        Updates of one phase do the same operations on the same memory: what `graphs` relies on.
        """
        return None

    @abc.abstractmethod
    def _update(self, batch: Batch) -> Tensors:
        """Do the operations of one update; return detached metrics."""

    def snapshot(self) -> Tensors:
        """Copy the parameters that make a policy, each (K, P)."""
        return {name: self._by_model(self.networks[name].parameters.flat).clone() for name in self.policy_networks}

    def state(self) -> Tensors:
        """Return everything that the next update depends on, except batches; each tensor has a leading model axis."""
        result = {f"{kind}/{name}": self._by_model(flat).clone() for kind, name, flat in self._trained()}
        for name, optimizer in self.optimizers.items():
            result |= {f"optimizer/{name}/{key}": self._by_model(v).clone() for key, v in optimizer.state().items()}
        result |= {f"count/{name}": torch.full((self.n_models,), count) for name, count in self.counts.items()}
        return result | {f"generator/{name}": generator.state() for name, generator in self.generators.items()}

    def load_state(self, state: Tensors) -> None:
        """Continue from what `state` returned."""
        for kind, name, flat in self._trained():
            flat.copy_(state[f"{kind}/{name}"].reshape(flat.shape))
        for name, optimizer in self.optimizers.items():
            optimizer.load_state(_under(state, f"optimizer/{name}/"))
        for name, generator in self.generators.items():
            generator.load_state(state[f"generator/{name}"])
        for name in self.counts:
            self.counts[name] = int(state[f"count/{name}"][0])

    def _trained(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for name, network in self.networks.items():
            yield "network", name, network.parameters.flat
        for name, variable in self.variables.items():
            yield "variable", name, variable.flat

    def _by_model(self, values: torch.Tensor) -> torch.Tensor:
        """Put the members of an ensemble into the row of their model."""
        return values if len(values) == self.n_models else values.reshape(self.n_models, -1)


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class TrainingEvent:
    """What a callback receives every `log_every` updates.

    Parameters
    ----------
    model : int
        Which of the K models.
    update : int
        Updates done.
    n_updates : int
        Updates planned.
    metrics : dict of str to float
        Averages since the last event.
    snapshot : callable
        Returns copies of the networks that make the policy, by name.

    Examples
    --------
    >>> TrainingEvent(0, 100, 1000, {"loss": 0.5}, dict).metrics["loss"]
    0.5
    """

    model: int
    update: int
    n_updates: int
    metrics: dict[str, float]
    snapshot: Callable[[], dict[str, MLP]]


# A true return value stops the model.
Callback = Callable[[TrainingEvent], Any]


@dataclass(frozen=True)
class TrainingPlan:
    """How long to train, and what to do on the way.

    Parameters
    ----------
    n_updates : int
    log_every : int
        Updates a row of the history averages; divergence is looked for as often.
    n_checkpoints : int
        Evenly spaced copies of the policy networks to keep, the last one at the end.
    callbacks : sequence of K sequences of callables, optional
        Of each model, called with a `TrainingEvent`.
    save : callable, optional
        Receives the state (tensors with a leading model axis) every `save_every` updates and at the end.
    save_every : int
    progress : bool
        Whether to show a progress bar.
    label : str
        Its text.
    n_threads : int
        Torch threads on a CPU.
    precision : {"float32", "tf32", "bfloat16"}
        See `use_precision`.

    Examples
    --------
    >>> TrainingPlan(n_updates=100, n_checkpoints=3).checkpoint_updates
    (33, 67, 100)
    """

    n_updates: int
    log_every: int = 100
    n_checkpoints: int = 0
    callbacks: Sequence[Sequence[Callback]] = ()
    save: Callable[[Tensors], None] | None = None
    save_every: int = 1000
    progress: bool = False
    label: str = "training"
    n_threads: int = 1
    precision: Precision = "float32"

    @property
    def checkpoint_updates(self) -> tuple[int, ...]:
        """After which updates checkpoints are kept."""
        marks = (round(i * self.n_updates / self.n_checkpoints) for i in range(1, self.n_checkpoints + 1))
        return tuple(sorted(set(marks) - {0}))

    def next_stop(self, done: int) -> int:
        """Return the next update after which the loop has something else to do."""
        stops = [(done // self.log_every + 1) * self.log_every, self.n_updates]
        stops += [mark for mark in self.checkpoint_updates if mark > done][:1]
        if self.save is not None:
            stops.append((done // self.save_every + 1) * self.save_every)
        return min(stops)


@dataclass(frozen=True)
class TrainingResult:
    """What came out of a run.

    Attributes
    ----------
    snapshot : dict of str to Tensor of shape (K, P)
        The policy networks: the last ones, or the last sound ones of a model that diverged.
    statuses : tuple of K TrainingStatus
    histories : tuple of K DataFrames
        Columns "update" and the metrics, averaged since the row before.
    checkpoints : list of (update, snapshot)
    state : dict of str to Tensor
        What a run resumes from.
    """

    snapshot: Tensors
    statuses: tuple[TrainingStatus, ...]
    histories: tuple[pd.DataFrame, ...]
    checkpoints: list[tuple[int, Tensors]]
    state: Tensors

    def checkpoints_of(self, model: int) -> list[tuple[int, Tensors]]:
        """Return the checkpoints of one model, those behind its end left out: (update, rows of shape (1, P))."""
        end = self.statuses[model].n_updates
        return [
            (update, {name: flat[model : model + 1] for name, flat in snapshot.items()})
            for update, snapshot in self.checkpoints
            if update <= end
        ]


def train(
    step: TrainingStep, sampler: BatchSampler, plan: TrainingPlan, resume_from: Tensors | None = None
) -> TrainingResult:
    """Train K models.

    Parameters
    ----------
    step : TrainingStep
    sampler : BatchSampler
    plan : TrainingPlan
    resume_from : dict of str to Tensor, optional
        The `state` of an earlier run: training goes on as if it had never stopped.

    Returns
    -------
    TrainingResult

    Notes
    -----
    Ctrl-C ends the run after the update at work; a second one raises. A model whose loss explodes keeps its last sound
    networks; the others train on undisturbed.
    """
    run = _Run(step, sampler, plan)
    if resume_from is not None:
        run.load_state(resume_from)
    with use_threads(plan.n_threads), deferred_interrupt() as stop:
        run.go(stop)
    return run.result()


class _Run:
    def __init__(self, step: TrainingStep, sampler: BatchSampler, plan: TrainingPlan) -> None:
        self.step, self.sampler, self.plan = step, sampler, plan
        self.done = 0
        self.log = MetricLog()
        self.sound = step.snapshot()
        self.outcomes = [Outcome.RUNNING] * step.n_models
        self.kept = [0] * step.n_models  # the update whose networks are in `sound`
        self.seen = [0] * step.n_models  # the last update of the history
        self.checkpoints: list[tuple[int, Tensors]] = []
        self.final_state: Tensors = {}

    @property
    def running(self) -> list[int]:
        return [k for k, outcome in enumerate(self.outcomes) if outcome is Outcome.RUNNING]

    def go(self, stop: StopRequest) -> None:
        from tqdm.auto import tqdm

        plan, update = self.plan, self._updates()
        with tqdm(total=plan.n_updates, initial=self.done, desc=plan.label, disable=not plan.progress) as bar:
            while self.running and self.done < plan.n_updates and not stop.made:
                before, until = self.done, plan.next_stop(self.done)
                with use_precision(plan.precision):  # of updates alone: policies that callbacks ask act in 32 bits
                    while self.done < until and not stop.made:
                        self.log.add(update(self.sampler.next()))
                        self.done += 1
                bar.update(self.done - before)
                self._pause(stop)
        self._finish(Outcome.INTERRUPTED if self.done < plan.n_updates else Outcome.COMPLETED)

    def _updates(self) -> Callable[[Batch], Tensors]:
        device = self.sampler.transitions.rewards.device
        if device.type == "cuda" and graphs_are_wanted():
            return CapturedUpdates(self.step, CUDACapture(device))
        return self.step.update

    def _pause(self, stop: StopRequest) -> None:
        plan = self.plan
        if self.done in plan.checkpoint_updates:
            self.checkpoints.append((self.done, self.step.snapshot()))
        if self.done % plan.log_every == 0 or self.done == plan.n_updates:
            self._close_window()
            try:
                self._call_back()
            except KeyboardInterrupt:
                stop.made = True
        if plan.save is not None and self.done % plan.save_every == 0:
            plan.save(self.state())

    def _close_window(self) -> None:
        self.log.close(self.done)
        broken, now = self.log.broken(), self.step.snapshot()
        for k in self.running:
            self.seen[k] = self.done
            if broken[k]:
                self.outcomes[k] = Outcome.DIVERGED
            else:
                self._keep(k, now)

    def _keep(self, k: int, now: Tensors) -> None:
        self.kept[k] = self.done
        for name, flat in self.sound.items():
            flat[k] = now[name][k]

    def _call_back(self) -> None:
        for k, callbacks in enumerate(self.plan.callbacks):
            if k in self.running:
                event = self._event(k)
                answers = [callback(event) for callback in callbacks]
                if any(answers):
                    self.outcomes[k] = Outcome.STOPPED

    def _event(self, k: int) -> TrainingEvent:
        def snapshot() -> dict[str, MLP]:
            return {name: self.step.networks[name].with_rows(flat[k : k + 1]) for name, flat in self.sound.items()}

        return TrainingEvent(k, self.done, self.plan.n_updates, self.log.metrics(k), snapshot)

    def _finish(self, outcome: Outcome) -> None:
        # The state is taken with its models still running: a resumed run goes on as if there had been no end.
        self.final_state = self.state()
        now, finite = self.step.snapshot(), self.log.finite()
        for k in self.running:
            self.outcomes[k] = outcome
            if finite is None or finite[k]:
                self._keep(k, now)
        if self.plan.save is not None:
            self.plan.save(self.final_state)

    def result(self) -> TrainingResult:
        planned = self.plan.n_updates
        statuses = tuple(TrainingStatus(o, n, planned) for o, n in zip(self.outcomes, self.kept, strict=True))
        histories = tuple(self.log.frame(k, seen) for k, seen in enumerate(self.seen))
        return TrainingResult(self.sound, statuses, histories, self.checkpoints, self.final_state)

    # ---------------------------------------------------------------- state

    def state(self) -> Tensors:
        """Return everything a resumed run needs; the leading model axis of each tensor lets models part and meet."""
        n_models = self.step.n_models
        state = self.step.state()
        state |= {f"batches/{name}": value for name, value in self.sampler.state().items()}
        state |= {f"log/{name}": value for name, value in self.log.state(n_models).items()}
        state |= {f"sound/{name}": flat.clone() for name, flat in self.sound.items()}
        for update, snapshot in self.checkpoints:
            state |= {f"checkpoint/{update}/{name}": flat for name, flat in snapshot.items()}
        state["run/done"] = torch.full((n_models,), self.done)
        state["run/outcomes"] = torch.tensor([int(outcome) for outcome in self.outcomes])
        state["run/kept"] = torch.tensor(self.kept)
        state["run/seen"] = torch.tensor(self.seen)
        return {name: value.cpu() for name, value in state.items()}

    def load_state(self, state: Tensors) -> None:
        device = next(iter(self.sound.values())).device
        self.step.load_state(state)
        self.sampler.load_state(_under(state, "batches/"))
        self.log = MetricLog.from_state(_under(state, "log/"), device)
        self.sound = {name: flat.to(device, copy=True) for name, flat in _under(state, "sound/").items()}
        self.done = int(state["run/done"][0])
        self.outcomes = [Outcome(int(code)) for code in state["run/outcomes"]]
        self.kept, self.seen = state["run/kept"].tolist(), state["run/seen"].tolist()
        found: dict[int, Tensors] = {}
        for key, flat in _under(state, "checkpoint/").items():
            update, name = key.split("/", 1)
            found.setdefault(int(update), {})[name] = flat.to(device)
        self.checkpoints = sorted(found.items())
