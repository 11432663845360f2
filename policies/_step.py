"""`LearnerStep`: the networks, targets and optimisers of one update, declared by name."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch

from ope.neural.ensemble import Ensemble
from ope.neural.generators import ModelGenerators
from ope.neural.networks import MLP, FlatParameters, Shape
from ope.neural.optimizer import FlatAdam
from ope.neural.training import TrainingStep
from ope.neural.transitions import Batch


class LearnerStep(TrainingStep):
    """Base of the steps of learners: K models whose settings are columns (K, 1).

    A step that begins with a warm start counts "updates", and says in `warm_start_updates` how many belong to it.

    Parameters
    ----------
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
    device : torch.device
    """

    warm_start_updates: int | None = None

    def __init__(self, seeds: Sequence[int], settings: Mapping[str, Sequence[float]], device: torch.device) -> None:
        super().__init__(len(seeds))
        self.device = device
        self.values = settings
        self._weights = ModelGenerators(seeds, "weights").generators
        self._noise = ModelGenerators(seeds, "noise", device)
        self.generators = {"noise": self._noise}

    def column(self, name: str) -> torch.Tensor:
        """Return a setting as (K, 1)."""
        return torch.tensor(self.values[name], dtype=torch.float32, device=self.device).unsqueeze(1)

    def mlp(self, name: str, sizes: Sequence[int], extras: Mapping[str, Shape] | None = None) -> MLP:
        """Register an initialised network."""
        network = MLP(sizes, self.n_models, extras=extras, device=self.device).initialize(self._weights)
        self.networks[name] = network
        return network

    def twins(self, name: str, sizes: Sequence[int], n_members: int = 2) -> tuple[Ensemble, Ensemble]:
        """Register an initialised ensemble, and its target as "<name>_target"."""
        online = Ensemble(sizes, self.n_models, n_members, device=self.device).initialize(self._weights)
        target = online.copy()
        self.networks[name], self.networks[f"{name}_target"] = online.network, target.network
        return online, target

    def target(self, name: str) -> MLP:
        """Register a copy of a network as "<name>_target"."""
        copy = self.networks[name].copy()
        self.networks[f"{name}_target"] = copy
        return copy

    def variable(self, name: str) -> FlatParameters:
        """Register a number for each model, 0 at first, at `views[name]` (K, 1)."""
        self.variables[name] = FlatParameters({name: (1,)}, self.n_models, device=self.device)
        return self.variables[name]

    def adam(self, name: str, parameters: FlatParameters | Sequence[FlatParameters], rate: str) -> FlatAdam:
        """Register an optimiser whose learning rate is a setting."""
        blocks = [parameters] if isinstance(parameters, FlatParameters) else parameters
        members = len(blocks[0].flat) // self.n_models
        rates = [float(value) for value in self.values[rate] for _ in range(members)]
        self.optimizers[name] = FlatAdam(blocks, rates, [0.0] * len(rates))
        return self.optimizers[name]

    def normal(self, *shape: int) -> torch.Tensor:
        """Draw standard normal numbers, (K, *shape)."""
        return self._noise.normal(shape)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Draw uniform numbers in [-1, 1), (K, *shape)."""
        return self._noise.uniform(shape, -1.0, 1.0)

    @property
    def is_warm(self) -> bool:
        """Whether this is an update of the warm start."""
        return self.warm_start_updates is not None and self.counts["updates"] <= self.warm_start_updates

    def phase(self) -> Hashable | None:
        """Return whether this is an update of the warm start; steps that count updates for something else say what of."""
        return None if self.counts and self.warm_start_updates is None else self.is_warm


def critic_loss(q: Ensemble, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
    """Return sum_i mean (Q_i(s, a) - y)^2 of an ensemble of critics of continuous actions, (K,)."""
    values = q(state_action(batch.states, batch.actions)).squeeze(3)
    return batch.bellman_mean((values - targets.unsqueeze(1)).square()).sum(dim=1)


def state_action(states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Join states (K, B, d) and actions (K, B, k).

    Examples
    --------
    >>> state_action(torch.zeros(1, 5, 3), torch.zeros(1, 5, 2)).shape
    torch.Size([1, 5, 5])
    """
    return torch.cat([states, actions], dim=-1)


def repeated(states: torch.Tensor, n: int) -> torch.Tensor:
    """Repeat every batch n times, sample after sample: (K, B, d) to (K, n B, d).

    Examples
    --------
    >>> repeated(torch.tensor([[[1.0], [2.0]]]), 2).ravel()
    tensor([1., 2., 1., 2.])
    """
    return states.unsqueeze(1).expand(-1, n, -1, -1).reshape(len(states), -1, states.shape[-1])
