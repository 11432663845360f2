"""`Ensemble`: several networks for each of K models, twin critics above all, evaluated as one batched product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ope.neural.networks import MLP
from ope.neural.perceptron import Perceptron


class Ensemble:
    """E networks of one output a model.

    Parameters
    ----------
    sizes : sequence of int
        Width of the input, of each hidden layer, and of the output.
    n_models : int
        K.
    n_members : int
        E.
    device : torch.device, optional
    trainable : bool
        Whether the parameters take part in differentiation.

    Attributes
    ----------
    network : MLP
        Of K E models, the members of one model side by side: what optimisers, Polyak steps and files see.

    Examples
    --------
    >>> twins = Ensemble([3, 8, 1], n_models=4, n_members=2)
    >>> x = torch.zeros(4, 5, 3)
    >>> twins(x).shape, twins.first(x).shape
    (torch.Size([4, 2, 5, 1]), torch.Size([4, 5, 1]))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        n_models: int,
        n_members: int = 2,
        *,
        device: torch.device | None = None,
        trainable: bool = True,
    ) -> None:
        self.n_models, self.n_members = n_models, n_members
        self.network = MLP(sizes, n_models * n_members, device=device, trainable=trainable)
        self._first = Perceptron(_layers(self.network, self.network.parameters.constants, n_members))

    def __call__(self, x: torch.Tensor, *, frozen: bool = False) -> torch.Tensor:
        """Evaluate all members on the input of their model.

        Parameters
        ----------
        x : Tensor of shape (K, B, in)
        frozen : bool
            Whether to differentiate by the input only.

        Returns
        -------
        Tensor of shape (K, E, B, out)
        """
        shared = x.unsqueeze(1).expand(-1, self.n_members, -1, -1).reshape(-1, *x.shape[1:])
        outputs = self.network(shared, frozen=frozen)
        return outputs.view(self.n_models, self.n_members, *outputs.shape[1:])

    def first(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate the first member of each model, (K, B, out), differentiable by the input only."""
        return self._first(x)

    def initialize(self, generators: Sequence[torch.Generator]) -> Ensemble:
        """Draw the members of model k in turn with `generators[k]`, as `MLP.initialize` does."""
        self.network.initialize([generator for generator in generators for _ in range(self.n_members)])
        return self

    def copy(self) -> Ensemble:
        """Return an ensemble with the same values that needs no gradients: a target."""
        device = self.network.parameters.flat.device
        twin = Ensemble(self.network.sizes, self.n_models, self.n_members, device=device, trainable=False)
        twin.network.parameters.copy_from(self.network.parameters)
        return twin

    def lerp_from(self, other: Ensemble, weight: torch.Tensor) -> None:
        """Polyak step: move towards `other` by `weight`, a column (K, 1)."""
        rows = weight.repeat_interleave(self.n_members, dim=0)
        self.network.parameters.lerp_from(other.network.parameters, rows)


def _layers(network: MLP, tensors: Mapping[str, torch.Tensor], step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """View the layers of every `step`-th network."""
    count = len(network.sizes) - 1
    return [(tensors[f"weight{layer}"][::step], tensors[f"bias{layer}"][::step]) for layer in range(count)]
