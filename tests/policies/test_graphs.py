"""Captured updates: a stand-in for CUDA graphs on the CPU, to the bits of updates one by one; on a GPU the graphs themselves."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_logs import random_log, same_policy
from test_learner_laws import CASES, TINY, log_of, make
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from ope.dataset import LoggedDataset
from ope.neural import training
from ope.neural.generators import ModelGenerators, Tape
from ope.neural.graphs import CapturedUpdates, CUDACapture, graphs_are_wanted
from ope.neural.history import Tensors
from ope.neural.training import TrainingStep
from ope.policies import TD3BC, BehaviorCloning, cuda_graphs

# Whether actions are continuous, and settings.
CLONING: dict[str, tuple[bool, dict[str, Any]]] = {
    "BehaviorCloning": (False, {}),
    "BehaviorCloning continuous": (True, {}),
    "BehaviorCloning mixture": (True, {"form": "mixture"}),
}
NAMES = (*CASES, *CLONING)
# Forms that updates have, where there are several.
PHASES = {"ATAC": 2, "BEAR": 2, "BRAC": 3, "BRAC discrepancy": 3, "TD3BC": 2, "UWAC": 2}
UNCAPTURED = ("AWR", "AWR continuous")
# Operations that wait for the device, or bring data from the host: no stream can capture them.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "lift_fresh")


def learner_and_log(name: str, **settings: Any) -> tuple[Any, LoggedDataset]:
    if name in CASES:
        return make(name, **settings), log_of(name)
    continuous, form = CLONING[name]
    return BehaviorCloning(**{**TINY, **form, **settings}), random_log(continuous=continuous)


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that a CUDA stream cannot capture."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITING or by_mask:
            raise AssertionError(f"{name} cannot be captured")
        return function(*args, **(kwargs or {}))


class StandIn:
    """Repeats operations with the Python side as it was when they were captured: counts and draws are baked in."""

    def __init__(self, step: TrainingStep) -> None:
        self.step, self.captured, self.replayed = step, 0, 0

    def warm_up(self, operations: Callable[[], Tensors]) -> Tensors:
        return operations()

    def capture(self, operations: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        self.captured += 1
        before, counts = self.step.state(), dict(self.step.counts)
        tapes = {name: generators._tape for name, generators in self.step.generators.items()}
        with NoWaiting():  # type: ignore[no-untyped-call]
            results = operations()
        self.step.load_state(before)

        def replay() -> None:
            self.replayed += 1
            now, self.step.counts = self.step.counts, dict(counts)
            for value in results.values():
                value.fill_(torch.nan)
            with self._serving(tapes):
                for name, value in operations().items():
                    results[name].copy_(value)
            self.step.counts = now

        return replay, results

    @contextlib.contextmanager
    def _serving(self, tapes: dict[str, Tape | None]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, tape in tapes.items():
                assert tape is not None
                tape.rewind()
                stack.enter_context(self.step.generators[name].on_tape(tape))
            yield


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """The stand-ins that training has used, the last one last."""
    used: list[StandIn] = []

    def updates(run: Any) -> CapturedUpdates:
        used.append(StandIn(run.step))
        return CapturedUpdates(run.step, used[-1])

    monkeypatch.setattr(training._Run, "_updates", updates)
    return used


@pytest.mark.parametrize("name", NAMES)
def test_captured_updates_are_those_one_by_one(name: str, request: pytest.FixtureRequest) -> None:
    learner, log = learner_and_log(name)
    expected = copy.deepcopy(learner).fit(log)
    stand_ins = request.getfixturevalue("stand_ins")
    found = learner.fit(log)
    same_policy(found, expected)
    assert found.history_.equals(expected.history_)
    (used,) = stand_ins
    if name in UNCAPTURED:
        assert used.captured == 0
    else:
        assert used.captured == PHASES.get(name, 1)
        # Three updates of every phase warm up.
        assert used.replayed == 24 - 3 * PHASES.get(name, 1)


def test_models_side_by_side_are_captured_together(request: pytest.FixtureRequest) -> None:
    log, learners = log_of("TD3BC"), [make("TD3BC"), make("TD3BC", random_state=1, alpha=1.0)]
    expected = TD3BC.fit_many(log, learners)
    stand_ins = request.getfixturevalue("stand_ins")
    for ours, theirs in zip(TD3BC.fit_many(log, learners), expected, strict=True):
        same_policy(ours, theirs)
    assert [used.captured for used in stand_ins] == [2]


def test_a_capture_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(StandIn):
        def capture(self, operations: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
            super().capture(operations)
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(training._Run, "_updates", lambda run: CapturedUpdates(run.step, Failing(run.step)))
    with pytest.raises(RuntimeError, match=r"TD3BCStep \(operation not permitted .* train without cuda_graphs"):
        make("TD3BC").fit(log_of("TD3BC"))


def test_without_a_gpu_nothing_is_captured() -> None:
    assert not graphs_are_wanted()
    log = log_of("IQL")
    with cuda_graphs(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = make("IQL", device="cpu").fit(log)
    same_policy(found, make("IQL", device="cpu").fit(log))


def test_a_tape_draws_what_its_generators_would() -> None:
    ours, theirs = ModelGenerators([1, 2], "noise"), ModelGenerators([1, 2], "noise")
    tape = Tape(ours)
    with ours.on_tape(tape):
        recorded = [ours.normal((3,)), ours.uniform((2, 2))]
    for numbers, expected in zip(recorded, [theirs.normal((3,)), theirs.uniform((2, 2))], strict=True):
        assert torch.equal(numbers, expected)
    tape.refill()
    for numbers, expected in zip(recorded, [theirs.normal((3,)), theirs.uniform((2, 2))], strict=True):
        assert torch.equal(numbers, expected)
    assert torch.equal(ours.state(), theirs.state())


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="torch registers no backend from Python",
)
def test_updates_stay_on_their_device_and_ask_for_no_numbers() -> None:
    script = Path(__file__).with_name("fake_gpu.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    found = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    assert found.keys() == set(NAMES), done.stderr
    for name, said in found.items():
        assert said == f"on gpu, {0 if name in UNCAPTURED else PHASES.get(name, 1)} captured", name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_graphs_on_a_gpu_are_updates_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, log = learner_and_log(name, device="cuda")
    expected = copy.deepcopy(learner).fit(log)
    captured: list[str] = []
    capture = CUDACapture.capture

    def counted(self: CUDACapture, operations: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        captured.append(name)
        return capture(self, operations)

    monkeypatch.setattr(CUDACapture, "capture", counted)
    with cuda_graphs(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = learner.fit(log)
    assert bool(captured) != (name in UNCAPTURED)
    for key, network in found.networks_.items():
        flat = expected.networks_[key].parameters.flat
        torch.testing.assert_close(network.parameters.flat, flat, rtol=1e-3, atol=1e-4)


def test_a_tape_refuses_other_draws() -> None:
    generators = ModelGenerators([1], "noise")
    tape = Tape(generators)
    with generators.on_tape(tape):
        generators.normal((3,))
        generators.uniform((2,))
    tape.rewind()
    with generators.on_tape(tape):
        with pytest.raises(RuntimeError, match=r"must draw .* as number 0"):
            generators.uniform((3,))
        generators.normal((3,))
        served = [tape.ended]
        generators.uniform((2,))
        served.append(tape.ended)
        with pytest.raises(RuntimeError, match="as number 2"):
            generators.normal((3,))
    assert served == [False, True]
