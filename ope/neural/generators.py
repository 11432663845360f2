"""One random generator a model, so that no model's numbers depend on who trains beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch


def derive_seed(seed: int, purpose: str) -> int:
    """Return a seed for one purpose of a run, unrelated to the seeds of its other purposes.

    Examples
    --------
    >>> derive_seed(0, "weights") != derive_seed(0, "batches")
    True
    """
    entropy = np.random.SeedSequence([seed, *purpose.encode()])
    # 63 bits: torch reads seeds as signed integers.
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))


Draw = Callable[[torch.Generator], torch.Tensor]


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


class Tape:
    """The random numbers of an update in the order in which it draws them.

    A new tape records: what is drawn is kept, with how to draw it again. A rewound one serves: the same draws return the memory of the
    recorded ones, and nothing is drawn. `refill` draws new numbers into that memory.

    Parameters
    ----------
    generators : ModelGenerators

    Examples
    --------
    >>> generators = ModelGenerators([0], "noise")
    >>> tape = Tape(generators)
    >>> with generators.on_tape(tape):
    ...     first = generators.normal((2,))
    >>> tape.rewind()
    >>> with generators.on_tape(tape):
    ...     generators.normal((2,)) is first
    True
    """

    def __init__(self, generators: ModelGenerators) -> None:
        self.generators = generators
        self._draws: list[tuple[Draw, torch.Tensor]] = []
        self._served: Iterator[torch.Tensor] | None = None

    def next(self, draw: Draw) -> torch.Tensor:
        """Return the next numbers."""
        if self._served is not None:
            return next(self._served)
        memory = self.generators.drawn(draw)
        self._draws.append((draw, memory))
        return memory

    def rewind(self) -> None:
        """Serve from the start."""
        self._served = iter([memory for _, memory in self._draws])

    def refill(self) -> None:
        """Draw every number anew."""
        for draw, memory in self._draws:
            memory.copy_(self.generators.drawn(draw))


class ModelGenerators:
    """Random numbers of K models, each from its own generator.

    Numbers are drawn on the CPU and moved, so that a seed means the same numbers on every device. What an update draws can be put on
    a `Tape` and drawn again into the same memory: operations that were captured read it there.

    Parameters
    ----------
    seeds : sequence of int
        One a model.
    purpose : str
        What the numbers are for; generators of different purposes are unrelated.
    device : torch.device, optional
        Where normal and uniform numbers go.

    Examples
    --------
    >>> ModelGenerators([0, 1], "noise").normal((3,)).shape
    torch.Size([2, 3])
    """

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device | None = None) -> None:
        self.device = device
        self._tape: Tape | None = None
        self.generators = [torch.Generator().manual_seed(derive_seed(seed, purpose)) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def integers(self, high: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw integers in [0, high): (K, *shape)."""
        return torch.stack([torch.randint(high, shape, generator=generator) for generator in self.generators])

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw uniform float64 numbers in [0, 1): (K, *shape)."""
        return self._taped(partial(_uniform, shape))

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw standard normal numbers: (K, *shape)."""
        return self._taped(partial(_normal, shape))

    def _taped(self, draw: Draw) -> torch.Tensor:
        return self.drawn(draw) if self._tape is None else self._tape.next(draw)

    def drawn(self, draw: Draw) -> torch.Tensor:
        """Draw for every model, whatever tape is on."""
        return torch.stack([draw(generator) for generator in self.generators]).to(self.device)

    @contextlib.contextmanager
    def on_tape(self, tape: Tape) -> Iterator[None]:
        """Let a tape record or serve what is drawn within the block."""
        self._tape = tape
        try:
            yield
        finally:
            self._tape = None

    def state(self) -> torch.Tensor:
        """Return the generators' states, (K, n_bytes)."""
        return torch.stack([generator.get_state() for generator in self.generators])

    def load_state(self, state: torch.Tensor) -> None:
        """Continue from states that `state` returned."""
        for generator, row in zip(self.generators, state, strict=True):
            # A copy: torch crashes on a state that does not begin its storage.
            generator.set_state(row.clone())
