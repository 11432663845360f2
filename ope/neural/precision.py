"""In which precision networks multiply matrices while they train: `train` sets it, `Perceptron` reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Literal, get_args

import torch

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_between: ContextVar[torch.dtype | None] = ContextVar("between", default=None)


@contextlib.contextmanager
def use_precision(precision: Precision) -> Iterator[None]:
    """Multiply matrices within the block in "float32", "tf32" or "bfloat16", and as before behind it.

    Parameters
    ----------
    precision : {"float32", "tf32", "bfloat16"}
        "tf32": factors are rounded to 11 significant bits, by GPUs that have the instruction; nothing changes on others and on a CPU.
        "bfloat16": products between hidden layers take factors and results of 8 significant bits, and sum in 32 bits.

    Notes
    -----
    Parameters, optimiser, losses, the first layer (which sees the data) and the last one (which makes the numbers) stay in 32 bits.

    Examples
    --------
    >>> with use_precision("bfloat16"):
    ...     between_hidden_layers()
    torch.bfloat16
    """
    if precision == "tf32":
        with _tf32():
            yield
        return
    token = _between.set(torch.bfloat16 if precision == "bfloat16" else None)
    try:
        yield
    finally:
        _between.reset(token)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    switch: Callable[[str], None] = torch.set_float32_matmul_precision
    try:
        before, wanted = torch.get_float32_matmul_precision(), "high"
    except RuntimeError:  # the process has used torch's newer switch, beside which the older one cannot be read
        switch = partial(setattr, torch.backends.cuda.matmul, "fp32_precision")
        before, wanted = torch.backends.cuda.matmul.fp32_precision, "tf32"
    switch(wanted)
    try:
        yield
    finally:
        switch(before)


def between_hidden_layers() -> torch.dtype | None:
    """Return the type of products between hidden layers, None for that of the parameters."""
    return _between.get()
