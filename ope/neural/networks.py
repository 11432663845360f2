"""Networks of K models at once: a leading model axis on every parameter, all of them in one flat buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ope.neural.perceptron import Perceptron

Shape = tuple[int, ...]

# 16 floats are one cache line: every block of parameters starts aligned, which matrix products on a GPU ask for.
ALIGNMENT = 16


class FlatParameters:
    """Named parameters of K models as views of one contiguous buffer of shape (K, P).

    One buffer makes an optimiser step, a Polyak step and a copy one operation each, and row k all there is of model k.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shape of each parameter in one model.
    n_models : int
    device : torch.device
    trainable : bool
        Whether the views take part in differentiation.

    Attributes
    ----------
    flat : Tensor of shape (K, P)
    views : dict of str to Tensor of shape (K, *shape)
        What differentiable code uses.
    constants : dict of str to Tensor of shape (K, *shape)
        The same memory, cut off from differentiation.

    Examples
    --------
    >>> parameters = FlatParameters({"weight": (3, 2)}, n_models=4)
    >>> parameters.views["weight"].shape, parameters.flat.shape
    (torch.Size([4, 3, 2]), torch.Size([4, 16]))
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        n_models: int,
        *,
        device: torch.device | None = None,
        trainable: bool = True,
    ) -> None:
        self.shapes = dict(shapes)
        self.n_models = n_models
        self.trainable = trainable
        self._bounds = _aligned_bounds(self.shapes)
        width = max((high for _, high in self._bounds.values()), default=0)
        self.flat = torch.zeros(n_models, _aligned(width), dtype=torch.float32, device=device)
        self.constants = self.split(self.flat)
        self.views = {name: view.detach().requires_grad_(trainable) for name, view in self.constants.items()}

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """View a buffer of this layout as its named parts."""
        parts = self._bounds.items()
        return {name: flat[:, low:high].view(len(flat), *self.shapes[name]) for name, (low, high) in parts}

    def copy_from(self, other: FlatParameters) -> None:
        """Take over the values of parameters of the same shapes."""
        self.flat.copy_(other.flat)

    def lerp_from(self, other: FlatParameters, weight: float | torch.Tensor) -> None:
        """Polyak step: move towards `other` by `weight`, one number or a column (K, 1)."""
        self.flat.lerp_(other.flat, weight)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _aligned_bounds(shapes: Mapping[str, Shape]) -> dict[str, tuple[int, int]]:
    bounds, low = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        bounds[name] = (low, low + size)
        low += _aligned(size)
    return bounds


class MLP:
    """Multilayer perceptrons of K models, evaluated as batched products.

    Parameters
    ----------
    sizes : sequence of int
        Width of the input, of each hidden layer, and of the output.
    n_models : int
        K. Twin networks of K models are 2 K models here.
    extras : mapping of str to tuple of int, optional
        Further parameters of each model, zero at first, found in `parameters.views`: a state-independent standard
        deviation, say.
    layer_norm : bool
        Whether every hidden layer is standardised over its units before the relu, without parameters of its own.
    device : torch.device, optional
    trainable : bool
        Whether the parameters take part in differentiation.

    Notes
    -----
    h_0 = x; h_{l+1} = relu(h_l W_l + b_l), the last layer without relu; W_l has shape (K, in, out), b_l (K, 1, out).
    Layer normalisation bounds the last hidden layer, |h| <= sqrt(width), and with it how far outputs can extrapolate.

    Examples
    --------
    >>> network = MLP([3, 16, 2], n_models=5)
    >>> network(torch.zeros(5, 7, 3)).shape, network(torch.zeros(7, 3)).shape
    (torch.Size([5, 7, 2]), torch.Size([5, 7, 2]))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        n_models: int,
        *,
        extras: Mapping[str, Shape] | None = None,
        layer_norm: bool = False,
        device: torch.device | None = None,
        trainable: bool = True,
    ) -> None:
        self.sizes = tuple(int(size) for size in sizes)
        self.n_models = n_models
        self.layer_norm = layer_norm
        self.extras = dict(extras or {})
        shapes: dict[str, Shape] = {}
        for layer, (n_in, n_out) in enumerate(pairwise(self.sizes)):
            shapes |= {f"weight{layer}": (n_in, n_out), f"bias{layer}": (1, n_out)}
        self.parameters = FlatParameters(shapes | self.extras, n_models, device=device, trainable=trainable)
        self._trained, self._frozen = (
            Perceptron(self._layers(tensors), layer_norm=layer_norm)
            for tensors in (self.parameters.views, self.parameters.constants)
        )

    def _layers(self, tensors: Mapping[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(tensors[f"weight{layer}"], tensors[f"bias{layer}"]) for layer in range(len(self.sizes) - 1)]

    def __call__(self, x: torch.Tensor, *, frozen: bool = False, twice: bool = False) -> torch.Tensor:
        """Evaluate all models.

        Parameters
        ----------
        x : Tensor of shape (K, B, in), or (B, in) for the same input to all models
        frozen : bool
            Whether to differentiate by the input only: no time goes into the gradients of the parameters.
        twice : bool
            Whether derivatives will be differentiated again, which then costs no second evaluation.

        Returns
        -------
        Tensor of shape (K, B, out)
        """
        network = self._frozen if frozen else self._trained
        return network.batched(self._batch(x)) if twice else network(self._batch(x))

    def features(self, x: torch.Tensor, *, frozen: bool = True) -> torch.Tensor:
        """Return the last hidden layer (K, B, width); `frozen` cuts it off from differentiation by the parameters."""
        return (self._frozen if frozen else self._trained).hidden(self._batch(x))

    def _batch(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.ndim == 3 else x.expand(self.n_models, *x.shape)

    @property
    def weights(self) -> list[torch.Tensor]:
        """The weight matrices (K, in, out), for reading and for changes in place."""
        return [weight for weight, _ in self._frozen.layers]

    def initialize(self, generators: Sequence[torch.Generator]) -> MLP:
        """Draw every weight and bias of model k from uniform(-1/sqrt(in), 1/sqrt(in)) with `generators[k]`.

        This is torch's default for linear layers. A generator that serves several models draws for them in turn.
        """
        for weight, bias in self._frozen.layers:
            bound = 1.0 / math.sqrt(weight.shape[1])
            for values in (weight, bias):
                draws = [
                    torch.rand(values.shape[1:], generator=generator, dtype=torch.float32) for generator in generators
                ]
                values.copy_(torch.stack(draws).mul_(2.0 * bound).sub_(bound))
        return self

    def copy(self, *, trainable: bool = False, device: torch.device | None = None) -> MLP:
        """Return a network with the same values: a target network, or a fitted one that needs no gradients."""
        twin = MLP(
            self.sizes,
            self.n_models,
            extras=self.extras,
            layer_norm=self.layer_norm,
            device=device or self.parameters.flat.device,
            trainable=trainable,
        )
        twin.parameters.copy_from(self.parameters)
        return twin

    def with_rows(self, flat: torch.Tensor) -> MLP:
        """Return a network of this shape on the CPU, without gradients, whose models have the rows of `flat`.

        A row may hold several networks one after another: the members of an `Ensemble` become models.
        """
        flat = flat.reshape(-1, self.parameters.flat.shape[1])
        network = MLP(self.sizes, len(flat), extras=self.extras, layer_norm=self.layer_norm, trainable=False)
        network.parameters.flat.copy_(flat)
        return network

    @property
    def settings(self) -> dict[str, Any]:
        """What makes a network of this form, as `MLP` takes it: what files hold."""
        return {"sizes": self.sizes, "extras": self.extras, "layer_norm": self.layer_norm}

    def __getstate__(self) -> dict[str, Any]:
        flat = self.parameters.flat.cpu().numpy().copy()
        return {**self.settings, "trainable": self.parameters.trainable, "flat": flat}

    def __setstate__(self, state: dict[str, Any]) -> None:
        flat = torch.from_numpy(state["flat"])
        settings = {name: state[name] for name in ("extras", "layer_norm", "trainable")}
        MLP.__init__(self, state["sizes"], len(flat), **settings)
        self.parameters.flat.copy_(flat)
