"""Runs updates of every learner on an accelerator that holds no numbers, and prints what is wrong: called by `test_graphs`.

Tensors know their device and shape alone (torch's fake tensors, on a backend registered from Python). An operation that joins two devices
fails, and so does one that needs a number; while updates are captured, one that moves data between devices fails as well. Registering a
backend cannot be undone: this is a process of its own.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from test_graphs import NAMES, learner_and_log
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ope.policies._neural
from ope.neural import optimizer
from ope.neural.graphs import CapturedUpdates
from ope.neural.history import Tensors
from ope.neural.training import TrainingStep
from ope.neural.transitions import BatchSampler

N_UPDATES = 24


class DoneError(Exception):
    """Training ends here: what follows needs numbers."""


class NoTransfers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that bring data to the accelerator or away from it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        moves = function.overloadpacket.__name__ in ("_to_copy", "copy_")
        # A number on the CPU may be an operand: its value goes with the call.
        devices = {tensor.device.type for tensor in tensors if tensor.ndim or moves}
        if len(devices) > 1:
            raise AssertionError(f"{function} moves data between devices")
        return result


class Captured:
    """Does operations once, moving nothing; what repeats them does nothing."""

    def __init__(self) -> None:
        self.count = 0

    def warm_up(self, operations: Callable[[], Tensors]) -> Tensors:
        return operations()

    def capture(self, operations: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        self.count += 1
        with NoTransfers():  # type: ignore[no-untyped-call]
            return lambda: None, operations()


def tensor_of_zeros(data: Any, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> torch.Tensor:
    """Return a tensor of the shape of `data`: torch.tensor itself wants a backend with memory."""
    return torch.zeros(np.shape(data), dtype=dtype, device=device)


def updates(step: TrainingStep, sampler: BatchSampler, *_others: object) -> None:
    """Stand in for `train`."""
    with mock.patch.object(torch.Tensor, "__float__", torch.Tensor.item):
        captured = Captured()
        update = CapturedUpdates(step, captured)
        for _ in range(N_UPDATES):
            metrics = update(sampler.next())
    devices = sorted({value.device.type for value in metrics.values()})
    raise DoneError(f"on {' and '.join(devices)}, {captured.count} captured")


def outcome(name: str, device: torch.device) -> str:
    """Return what became of the updates of one learner."""
    learner, log = learner_and_log(name)
    with (
        mock.patch.object(ope.policies._neural, "resolve_device", return_value=device),
        mock.patch.object(ope.policies._neural, "train", updates),
        mock.patch.object(torch, "tensor", tensor_of_zeros),
        # Numbers that the preparation reads, before the first update.
        mock.patch.object(torch.Tensor, "__float__", return_value=1.0),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        try:
            learner.fit(log)
        except DoneError as done:
            return str(done)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "no training"


def main(names: Sequence[str]) -> None:
    warnings.simplefilter("ignore")
    backend_registration._setup_privateuseone_for_python_backend(rename="gpu")
    optimizer.CAPTURED_DEVICES = ("gpu",)
    for name in names or NAMES:
        print(name, outcome(name, torch.device("gpu:0")).replace("\n", " "), sep="\t", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
