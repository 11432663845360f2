"""One random generator a model, so that no model's numbers depend on who trains beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Draw:
    """How a model's numbers are drawn: standard normal ones, or uniform ones between two bounds.

    Examples
    --------
    >>> Draw((2,), (3.0, 3.0))(torch.Generator())
    tensor([3., 3.])
    """

    shape: tuple[int, ...]
    bounds: tuple[float, float] | None = None

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """Draw on the CPU, float32."""
        if self.bounds is None:
            return torch.randn(self.shape, generator=generator, dtype=torch.float32)
        low, high = self.bounds
        return torch.rand(self.shape, generator=generator, dtype=torch.float64).mul_(high - low).add_(low).float()


class Tape:
    """The random numbers of an update in the order in which it draws them.

    A new tape records: what is drawn is kept, with how to draw it again. A rewound one serves: the same draws return the memory of the
    recorded ones, and nothing is drawn; others are refused. `refill` draws new numbers into that memory.

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
        self._served: int | None = None

    def next(self, draw: Draw) -> torch.Tensor:
        """Return the next numbers."""
        if self._served is None:
            memory = self.generators.drawn(draw)
            self._draws.append((draw, memory))
            return memory
        if self._served == len(self._draws) or self._draws[self._served][0] != draw:
            recorded = [kept for kept, _ in self._draws]
            raise RuntimeError(
                f"Tape: an update of one phase must draw {recorded}, got {draw} as number {self._served}."
            )
        self._served += 1
        return self._draws[self._served - 1][1]

    def rewind(self) -> None:
        """Serve from the start."""
        self._served = 0

    @property
    def ended(self) -> bool:
        """Whether all has been served."""
        return self._served == len(self._draws)

    def refill(self) -> None:
        """Draw every number anew."""
        for draw, memory in self._draws:
            memory.copy_(self.generators.stacked(draw))


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

    def probabilities(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw uniform numbers in [0, 1) in double precision, on the CPU: (K, *shape)."""
        draws = [torch.rand(shape, generator=generator, dtype=torch.float64) for generator in self.generators]
        return torch.stack(draws)

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Draw uniform numbers between bounds: (K, *shape)."""
        return self._taped(Draw(shape, (low, high)))

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw standard normal numbers: (K, *shape)."""
        return self._taped(Draw(shape))

    def _taped(self, draw: Draw) -> torch.Tensor:
        return self.drawn(draw) if self._tape is None else self._tape.next(draw)

    def drawn(self, draw: Draw) -> torch.Tensor:
        """Draw for every model, whatever tape is on."""
        return self.stacked(draw).to(self.device)

    def stacked(self, draw: Draw) -> torch.Tensor:
        """Draw for every model, and leave the numbers on the CPU."""
        return torch.stack([draw(generator) for generator in self.generators])

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
