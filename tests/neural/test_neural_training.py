"""The training loop against plain loops: history, checkpoints, interruption, resumption, divergence, callbacks."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ope.dataset import LoggedDataset
from ope.neural.generators import ModelGenerators
from ope.neural.history import MetricLog, Outcome, Tensors, TrainingStatus
from ope.neural.interrupt import deferred_interrupt
from ope.neural.networks import MLP
from ope.neural.optimizer import FlatAdam
from ope.neural.training import TrainingEvent, TrainingPlan, TrainingResult, TrainingStep, train
from ope.neural.transitions import Batch, BatchSampler, Transitions

N_UPDATES = 60


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Interrupts are ignored where tests run in the background; these need them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Regression(TrainingStep):
    """Predict rewards from states, with noise of its own and a slow copy: all that a learner may register."""

    policy_networks = ("net",)

    def __init__(self, seeds: Sequence[int], rates: Sequence[float], hook: Callable[[int], None] | None = None) -> None:
        super().__init__(len(seeds))
        self.net = MLP([2, 8, 1], len(seeds)).initialize(ModelGenerators(seeds, "weights").generators)
        self.slow = self.net.copy()
        self.noise = ModelGenerators(seeds, "noise")
        self.optimizer = FlatAdam([self.net.parameters], rates, [0.0] * len(seeds))
        self.networks = {"net": self.net, "slow": self.slow}
        self.optimizers = {"net": self.optimizer}
        self.generators = {"noise": self.noise}
        self.hook, self.count = hook, 0
        self.losses: list[list[float]] = []

    def _update(self, batch: Batch) -> Tensors:
        self.count += 1
        if self.hook is not None:
            self.hook(self.count)
        noise = 0.1 * self.noise.normal(tuple(batch.shape[1:]))
        error = self.net(batch.states).squeeze(2) - batch.rewards - noise + 0.01 * self.slow(batch.states).squeeze(2)
        loss = error.square().mean(dim=1)
        self.optimizer.minimize(loss.sum())
        self.slow.parameters.lerp_from(self.net.parameters, 0.1)
        self.losses.append(loss.tolist())
        return {"loss": loss.detach(), "error": error.detach().mean(dim=1)}


@pytest.fixture(scope="module")
def transitions() -> Transitions:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(200, 2))
    log = LoggedDataset.from_arrays(
        states, rng.integers(0, 2, 200), states @ [1.0, -2.0], lengths=[10] * 20, ends="terminal"
    )
    return Transitions.from_dataset(log)


def run(
    transitions: Transitions,
    seeds: Sequence[int] = (0, 1),
    rates: Sequence[float] = (1e-2, 1e-2),
    resume_from: Tensors | None = None,
    hook: Callable[[int], None] | None = None,
    **plan: Any,
) -> tuple[Regression, TrainingResult]:
    step = Regression(seeds, rates, hook)
    options = {"n_updates": N_UPDATES, "log_every": 10, **plan}
    return step, train(step, BatchSampler(transitions, seeds, 16), TrainingPlan(**options), resume_from)


def same_bits(one: TrainingResult, other: TrainingResult) -> None:
    assert set(one.state) == set(other.state)
    for name, value in one.state.items():
        assert torch.equal(value, other.state[name]), name
    for name, flat in one.snapshot.items():
        assert torch.equal(flat, other.snapshot[name])
    assert one.statuses == other.statuses
    for ours, theirs in zip(one.histories, other.histories, strict=True):
        assert ours.equals(theirs)
    assert [update for update, _ in one.checkpoints] == [update for update, _ in other.checkpoints]
    for (_, ours_at), (_, theirs_at) in zip(one.checkpoints, other.checkpoints, strict=True):
        assert all(torch.equal(flat, theirs_at[name]) for name, flat in ours_at.items())


# -------------------------------------------------------------------- course


def test_history_averages_the_updates_between_rows(transitions: Transitions) -> None:
    step, result = run(transitions, n_updates=25)
    losses = np.array(step.losses)
    for k, history in enumerate(result.histories):
        assert history["update"].tolist() == [10, 20, 25]
        expected = [losses[:10, k].mean(), losses[10:20, k].mean(), losses[20:, k].mean()]
        np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)
    assert list(result.histories[0].columns) == ["update", "loss", "error"]
    assert [str(status) for status in result.statuses] == ["completed 25 updates"] * 2
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()


def test_models_train_as_they_would_alone(transitions: Transitions) -> None:
    _, together = run(transitions, seeds=(3, 4, 5), rates=(1e-2, 2e-2, 5e-3), n_updates=200)
    for k, (seed, rate) in enumerate([(3, 1e-2), (4, 2e-2), (5, 5e-3)]):
        _, alone = run(transitions, seeds=(seed,), rates=(rate,), n_updates=200)
        torch.testing.assert_close(together.snapshot["net"][k], alone.snapshot["net"][0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.histories[k], alone.histories[0], rtol=1e-3, atol=1e-4)


def test_same_seeds_give_the_same_bits_and_others_do_not(transitions: Transitions) -> None:
    same_bits(run(transitions)[1], run(transitions)[1])
    assert not torch.equal(run(transitions)[1].snapshot["net"], run(transitions, seeds=(2, 3))[1].snapshot["net"])


def test_checkpoints_are_evenly_spaced_and_equal_shorter_runs(transitions: Transitions) -> None:
    _, result = run(transitions, n_checkpoints=4)
    assert [update for update, _ in result.checkpoints] == [15, 30, 45, 60]
    for update, snapshot in result.checkpoints:
        _, shorter = run(transitions, n_updates=update)
        assert torch.equal(snapshot["net"], shorter.snapshot["net"])
    rows = result.checkpoints_of(1)
    assert [update for update, _ in rows] == [15, 30, 45, 60]
    assert torch.equal(rows[0][1]["net"], result.checkpoints[0][1]["net"][1:2])


def test_more_checkpoints_than_updates() -> None:
    assert TrainingPlan(n_updates=3, n_checkpoints=10).checkpoint_updates == (1, 2, 3)


def test_one_thread_unless_told_otherwise(transitions: Transitions) -> None:
    before, seen = torch.get_num_threads(), []
    run(transitions, hook=lambda _: seen.append(torch.get_num_threads()), n_updates=2)
    run(transitions, hook=lambda _: seen.append(torch.get_num_threads()), n_updates=2, n_threads=2)
    assert seen == [1, 1, 2, 2]
    assert torch.get_num_threads() == before


def test_progress_bar_on_request(transitions: Transitions, capsys: pytest.CaptureFixture[str]) -> None:
    run(transitions)
    assert capsys.readouterr().err == ""
    run(transitions, progress=True, label="fitting")
    shown = capsys.readouterr().err
    assert "fitting" in shown
    assert "60/60" in shown


# -------------------------------------------------------------------- interruption and resumption


def ctrl_c_at(update: int) -> Callable[[int], None]:
    def hook(count: int) -> None:
        if count == update:
            signal.raise_signal(signal.SIGINT)

    return hook


@pytest.mark.parametrize("at", [1, 9, 10, 17, 40, 59])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(transitions: Transitions, at: int) -> None:
    _, whole = run(transitions, n_checkpoints=3)
    _, part = run(transitions, n_checkpoints=3, hook=ctrl_c_at(at))
    assert [status.outcome for status in part.statuses] == [Outcome.INTERRUPTED] * 2
    assert [status.n_updates for status in part.statuses] == [at, at]
    assert f"interrupted after {at} of 60 updates" in str(part.statuses[0])
    _, rest = run(transitions, n_checkpoints=3, resume_from=part.state)
    same_bits(rest, whole)


def test_an_interrupted_run_keeps_what_was_learned(transitions: Transitions) -> None:
    _, part = run(transitions, hook=ctrl_c_at(17))
    _, shorter = run(transitions, n_updates=17)
    assert torch.equal(part.snapshot["net"], shorter.snapshot["net"])
    assert part.histories[0]["update"].tolist() == [10]
    # What is to be resumed still falls back to the last update that was checked.
    assert torch.equal(part.state["sound/net"], run(transitions, n_updates=10)[1].snapshot["net"])


def test_keyboard_interrupt_of_a_callback_ends_the_run(transitions: Transitions) -> None:
    def raise_at_30(event: TrainingEvent) -> None:
        if event.update == 30:
            raise KeyboardInterrupt

    _, part = run(transitions, callbacks=[[raise_at_30], []])
    assert part.statuses[0] == TrainingStatus(Outcome.INTERRUPTED, 30, 60)
    same_bits(run(transitions, resume_from=part.state)[1], run(transitions)[1])


def test_a_completed_run_goes_on_as_a_longer_one(transitions: Transitions) -> None:
    _, first = run(transitions, n_updates=40)
    same_bits(run(transitions, resume_from=first.state)[1], run(transitions)[1])


def test_models_of_an_interrupted_run_part_and_meet(transitions: Transitions) -> None:
    _, part = run(transitions, hook=ctrl_c_at(25))
    _, alone = run(transitions, seeds=(1,), rates=(1e-2,), hook=ctrl_c_at(25))
    second = {name: value[1:] for name, value in part.state.items()}
    assert {name: value.shape for name, value in second.items()} == {n: v.shape for n, v in alone.state.items()}
    _, rest = run(transitions, seeds=(1,), rates=(1e-2,), resume_from=second)
    _, whole = run(transitions)
    torch.testing.assert_close(rest.snapshot["net"][0], whole.snapshot["net"][1], rtol=1e-3, atol=1e-5)


def test_the_second_interrupt_raises_and_the_handler_is_restored(transitions: Transitions) -> None:
    before = signal.getsignal(signal.SIGINT)

    def twice(count: int) -> None:
        if count == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(transitions, hook=twice)
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_interrupts_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.made
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_works_outside_the_main_thread(transitions: Transitions) -> None:
    results: list[TrainingResult] = []
    thread = threading.Thread(target=lambda: results.append(run(transitions)[1]))
    thread.start()
    thread.join()
    same_bits(results[0], run(transitions)[1])


def test_states_are_saved_on_the_way_and_any_of_them_resumes(transitions: Transitions) -> None:
    saved: list[Tensors] = []
    _, whole = run(transitions, n_checkpoints=2, save=saved.append, save_every=25)
    assert [int(state["run/done"][0]) for state in saved] == [25, 50, 60]
    for state in saved:
        same_bits(run(transitions, n_checkpoints=2, resume_from=state)[1], whole)


# -------------------------------------------------------------------- divergence and callbacks


def test_a_diverging_model_keeps_its_last_sound_networks_and_disturbs_nobody(transitions: Transitions) -> None:
    def poison(count: int) -> None:
        if count == 33:
            step.net.parameters.flat[1, 0] = math.nan

    step = Regression((0, 1, 2), (1e-2,) * 3, poison)
    result = train(
        step, BatchSampler(transitions, (0, 1, 2), 16), TrainingPlan(N_UPDATES, log_every=10, n_checkpoints=6)
    )
    assert result.statuses[1] == TrainingStatus(Outcome.DIVERGED, 30, 60)
    assert "lower the learning rate" in str(result.statuses[1])
    assert not result.statuses[1].ok
    _, healthy = run(transitions, seeds=(0, 1, 2), rates=(1e-2,) * 3, n_checkpoints=6)
    assert torch.equal(result.snapshot["net"][[0, 2]], healthy.snapshot["net"][[0, 2]])
    assert torch.equal(result.snapshot["net"][1], healthy.checkpoints[2][1]["net"][1])
    assert [update for update, _ in result.checkpoints_of(1)] == [10, 20, 30]
    assert [update for update, _ in result.checkpoints_of(0)] == [10, 20, 30, 40, 50, 60]
    assert result.histories[1]["update"].tolist() == [10, 20, 30, 40]
    assert not np.isfinite(result.histories[1]["loss"].iloc[-1])


def test_an_exploding_loss_stops_the_run(transitions: Transitions) -> None:
    def blow_up(count: int) -> None:
        if count > 12:
            step.net.parameters.flat.mul_(100.0)

    step = Regression((0,), (1e-2,), blow_up)
    result = train(step, BatchSampler(transitions, (0,), 16), TrainingPlan(1000, log_every=10))
    assert result.statuses[0].outcome is Outcome.DIVERGED
    assert step.count <= 30
    assert torch.isfinite(result.snapshot["net"]).all()


def test_a_loss_breaks_at_a_billion_times_its_first_value() -> None:
    for loss, broken in [(1.9e9, False), (-2.1e9, True), (2.1e9, True), (math.nan, True), (math.inf, True)]:
        log = MetricLog()
        for update, value in enumerate([2.0, loss], start=1):
            log.add({"other": torch.tensor([0.0, 0.0]), "loss": torch.tensor([value, 1.0])})
            log.close(update)
        assert log.broken().tolist() == [broken, False]


def test_an_interrupt_does_not_keep_broken_networks(transitions: Transitions) -> None:
    def poison_then_stop(count: int) -> None:
        if count == 33:
            step.net.parameters.flat.fill_(math.nan)
        if count == 35:
            signal.raise_signal(signal.SIGINT)

    step = Regression((0,), (1e-2,), poison_then_stop)
    result = train(step, BatchSampler(transitions, (0,), 16), TrainingPlan(N_UPDATES, log_every=10))
    assert result.statuses[0] == TrainingStatus(Outcome.INTERRUPTED, 30, 60)
    assert torch.isfinite(result.snapshot["net"]).all()


def test_a_callback_sees_the_course_and_stops_its_own_model_only(transitions: Transitions) -> None:
    events: list[TrainingEvent] = []

    def watch(event: TrainingEvent) -> None:
        events.append(event)

    def stop_at_30(event: TrainingEvent) -> bool:
        return event.update == 30

    _, result = run(transitions, callbacks=[[watch], [stop_at_30]])
    assert [event.update for event in events] == [10, 20, 30, 40, 50, 60]
    assert {event.model for event in events} == {0}
    assert [event.metrics["loss"] for event in events] == result.histories[0]["loss"].tolist()
    assert result.statuses == (TrainingStatus(Outcome.COMPLETED, 60, 60), TrainingStatus(Outcome.STOPPED, 30, 60))
    _, shorter = run(transitions, n_updates=30)
    assert torch.equal(result.snapshot["net"][1], shorter.snapshot["net"][1])
    assert result.histories[1]["update"].tolist() == [10, 20, 30]


def test_a_callback_receives_a_copy_of_the_networks(transitions: Transitions) -> None:
    taken: list[MLP] = []

    def take(event: TrainingEvent) -> None:
        if event.update == 20:
            taken.append(event.snapshot()["net"])

    run(transitions, callbacks=[[], [take]])
    _, shorter = run(transitions, n_updates=20)
    assert torch.equal(taken[0].parameters.flat, shorter.snapshot["net"][1:])


def test_metrics_survive_a_state_whatever_the_order_of_its_names() -> None:
    log = MetricLog()
    for value in (1.0, 2.0, 3.0):
        log.add({"z": torch.tensor([value, 0.0]), "loss": torch.tensor([10 * value, 1.0])})
        if value == 2.0:
            log.close(2)
    state = log.state(2)
    shuffled = {name: state[name] for name in sorted(state, reverse=True)}
    other = MetricLog.from_state(shuffled, torch.device("cpu"))
    for twin in (log, other):
        twin.add({"z": torch.tensor([5.0, 0.0]), "loss": torch.tensor([50.0, 1.0])})
        twin.close(4)
    expected = {"update": [2, 4], "z": [1.5, 4.0], "loss": [15.0, 40.0]}
    assert log.frame(0, 4).to_dict("list") == expected
    assert other.frame(0, 4).to_dict("list") == expected
