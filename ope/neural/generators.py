"""One random generator a model, so that no model's numbers depend on who trains beside it."""

from __future__ import annotations

from collections.abc import Sequence

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


class ModelGenerators:
    """Random numbers of K models, each from its own generator.

    Numbers are drawn on the CPU and moved, so that a seed means the same numbers on every device.

    Parameters
    ----------
    seeds : sequence of int
        One a model.
    purpose : str
        What the numbers are for; generators of different purposes are unrelated.

    Examples
    --------
    >>> ModelGenerators([0, 1], "noise").normal((3,)).shape
    torch.Size([2, 3])
    """

    def __init__(self, seeds: Sequence[int], purpose: str) -> None:
        self.generators = [torch.Generator().manual_seed(derive_seed(seed, purpose)) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def integers(self, high: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw integers in [0, high): (K, *shape)."""
        return torch.stack([torch.randint(high, shape, generator=generator) for generator in self.generators])

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw uniform float64 numbers in [0, 1): (K, *shape)."""
        draws = [torch.rand(shape, generator=generator, dtype=torch.float64) for generator in self.generators]
        return torch.stack(draws)

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw standard normal numbers: (K, *shape)."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])

    def state(self) -> torch.Tensor:
        """Return the generators' states, (K, n_bytes)."""
        return torch.stack([generator.get_state() for generator in self.generators])

    def load_state(self, state: torch.Tensor) -> None:
        """Continue from states that `state` returned."""
        for generator, row in zip(self.generators, state, strict=True):
            # A copy: torch crashes on a state that does not begin its storage.
            generator.set_state(row.clone())
