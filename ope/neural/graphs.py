"""Updates on a GPU as CUDA graphs: the operations of an update are captured once and launched as one. Called by `train`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from ope.neural.generators import Tape
from ope.neural.history import Tensors
from ope.neural.transitions import Batch

if TYPE_CHECKING:
    from ope.neural.training import TrainingStep

# Updates of a phase that run as usual before one is captured: libraries set themselves up in the first ones.
WARM_UPS = 3

_wanted: ContextVar[bool] = ContextVar("cuda_graphs", default=False)


@contextlib.contextmanager
def cuda_graphs() -> Iterator[None]:
    """Train within the block with CUDA graphs, where the device is a GPU and the learner's updates can be captured.

    Small networks spend most of an update in launching operations one by one; a graph launches them together.

    Raises
    ------
    RuntimeError
        By training, where a capture fails. The process may not be able to use its GPU any more: start another one, and train
        without graphs.

    Notes
    -----
    Off by default: it has been tested by stand-ins for graphs and for a GPU, but never run on one. `AWR` is not captured. As with
    other context managers of this kind, threads and processes that begin within the block do not inherit it.

    Examples
    --------
    >>> with cuda_graphs():
    ...     graphs_are_wanted()
    True
    """
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def graphs_are_wanted() -> bool:
    """Return whether the caller runs within `cuda_graphs`."""
    return _wanted.get()


class Capture(Protocol):
    """What captures operations."""

    def warm_up(self, operations: Callable[[], Tensors]) -> Tensors:
        """Do operations that are to be captured later."""

    def capture(self, operations: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Return what repeats operations, which are not done now, and the memory of their results."""


class CUDACapture:
    """`Capture` by `torch.cuda.CUDAGraph`, all on one stream beside the device's current one.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, operations: Callable[[], Tensors]) -> Tensors:
        """Do operations beside the current stream, as torch asks for before a capture."""
        here = torch.cuda.current_stream(self.device)
        self._aside.wait_stream(here)
        with torch.cuda.device(self.device), torch.cuda.stream(self._aside):
            results = operations()
        here.wait_stream(self._aside)
        return results

    def capture(self, operations: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Capture operations; their results lie in the graph's own memory."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, stream=self._aside, capture_error_mode="thread_local"),
        ):
            results = operations()

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return replay, results


@dataclass
class _Captured:
    """The operations of a phase: their inputs, how to repeat them, and their results."""

    rows: torch.Tensor
    tapes: list[Tape]
    replay: Callable[[], None]
    metrics: Tensors

    def __call__(self, batch: Batch) -> Tensors:
        self.rows.copy_(batch.rows)
        for tape in self.tapes:
            tape.refill()
        self.replay()
        return self.metrics


class CapturedUpdates:
    """What a training loop calls in place of `TrainingStep.update`: the same updates, captured phase by phase.

    Parameters
    ----------
    step : TrainingStep
    capture : Capture

    Notes
    -----
    Captured operations read the rows of a batch and random numbers from memory that is filled before every replay; all else that they
    read and write lies in the step's registered tensors. The metrics of an update are valid until the next one.
    """

    def __init__(self, step: TrainingStep, capture: Capture) -> None:
        self.step, self.capture = step, capture
        self._seen: Counter[Hashable] = Counter()
        self._tapes: dict[Hashable, list[Tape]] = {}
        self._captured: dict[Hashable, _Captured] = {}

    def __call__(self, batch: Batch) -> Tensors:
        """Do one update."""
        self.step.advance()
        phase = self.step.phase()
        if phase is None:
            return self.step._update(batch)
        if self._seen[phase] < WARM_UPS:
            return self._warm_up(phase, batch)
        if phase not in self._captured:
            self._captured[phase] = self._capture(phase, batch)
        return self._captured[phase](batch)

    def _warm_up(self, phase: Hashable, batch: Batch) -> Tensors:
        self._seen[phase] += 1
        self._tapes[phase] = [Tape(generators) for generators in self.step.generators.values()]
        with self._on_tapes(phase):
            return self.capture.warm_up(lambda: self.step._update(batch))

    def _capture(self, phase: Hashable, batch: Batch) -> _Captured:
        rows, tapes = batch.rows.clone(), self._tapes[phase]
        for tape in tapes:
            tape.rewind()
        try:
            with self._on_tapes(phase):
                replay, metrics = self.capture.capture(lambda: self.step._update(Batch(batch.transitions, rows)))
        except RuntimeError as error:
            raise RuntimeError(
                f"cuda_graphs: no graph can be made of the updates of {type(self.step).__name__} ({error}); train without "
                "cuda_graphs, in a new process."
            ) from error
        assert all(tape.ended for tape in tapes)
        return _Captured(rows, tapes, replay, metrics)

    @contextlib.contextmanager
    def _on_tapes(self, phase: Hashable) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for generators, tape in zip(self.step.generators.values(), self._tapes[phase], strict=True):
                stack.enter_context(generators.on_tape(tape))
            yield
