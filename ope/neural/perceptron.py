"""`Perceptron`: the forward and backward pass of batched networks, which `MLP` and `Ensemble` call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from ope.neural.precision import between_hidden_layers

Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]
# W, b and the transpose of W.
Matrices = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# Rows of a block: hidden layers of 256 to 750 units then stay in a core's own cache from one product to the next.
BLOCK_ROWS = 256
# In a shorter type: the conversions of a call are worth more rows.
SHORT_BLOCK_ROWS = 1024
# Multiplications in a product from which on a call for each model costs nothing beside it.
WORTH_A_CALL = 1 << 21
# Widths of a last layer whose products are several times as fast with its units as rows of a matrix in memory.
NARROW = range(2, 16)
# g where h > 0, else 0, in place of g: found once, the search for an operation costs more than this one takes.
_RELU_BACKWARD = torch.ops.aten.threshold_backward.grad_input

# Multiplications in a product from which on oneDNN's is a tenth faster than torch.addmm's.
WORTH_ONEDNN = 3 << 23


def _onednn_linear() -> Any:
    """Return what torch's compiler calls for h W^T + b on processors with AVX, None where there is no such thing."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return None
    x, weight, bias = torch.tensor([[1.0, torch.nan], [3.0, -2.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])
    try:
        linear = torch.ops.mkldnn._linear_pointwise.default
        found = linear(x, weight, bias, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):  # it is no public part of torch: another version may lack it
        return None
    expected = torch.tensor([[torch.nan], [-0.5]])
    return linear if torch.equal(found.nan_to_num(9.0), expected.nan_to_num(9.0)) else None


_ONEDNN_LINEAR = _onednn_linear()

# Where the gradients of parameters belong, by the address of the parameters.
_places: ContextVar[dict[int, torch.Tensor] | None] = ContextVar("places", default=None)


@contextlib.contextmanager
def gradients_written_to(places: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Let networks that are differentiated within the block write gradients where they belong, which saves a copy.

    It is an offer: gradients that were made elsewhere (by batched products, from two evaluations) are returned as ever.

    Parameters
    ----------
    places : mapping of int to Tensor
        By the address of a parameter (`data_ptr`), the memory of its gradient, of the same shape.

    Examples
    --------
    >>> weight, place = torch.ones(1, 2048, 1024, requires_grad=True), torch.zeros(1, 2048, 1024)
    >>> network = Perceptron([(weight, torch.zeros(1, 1, 1024))])
    >>> with gradients_written_to({weight.data_ptr(): place}):
    ...     (found,) = torch.autograd.grad(network(torch.ones(1, 1, 2048)).sum(), weight)
    >>> found.data_ptr() == place.data_ptr(), float(place.sum()) == place.numel()
    (True, True)
    """
    token = _places.set(dict(places))
    try:
        yield
    finally:
        _places.reset(token)


def _gradient_like(parameter: torch.Tensor) -> torch.Tensor:
    """Return memory for a gradient: its place, if nothing has been written there."""
    places = _places.get() or {}
    place = places.get(parameter.data_ptr())
    # Networks that are views of others (every second model, say) begin at the same address.
    if place is None or place.shape != parameter.shape:
        return torch.empty_like(parameter)
    del places[parameter.data_ptr()]
    return place


class Perceptron:
    """h_0 = x; h_{l+1} = relu(h_l W_l + b_l), the last layer without relu, for K models at once.

    Parameters
    ----------
    layers : sequence of (W, b)
        Of shapes (K, in, out) and (K, 1, out); changes in place are seen.
    layer_norm : bool
        Whether every hidden layer is standardised over its units before the relu.

    Notes
    -----
    On a CPU, products that are large enough to be called one by one are computed in blocks of rows, forwards and backwards: a
    block stays in the cache, and there are no nodes of automatic differentiation between layers. The numbers are those of the
    batched products up to rounding.

    Where `use_precision` asks for it, products between hidden layers are computed in a shorter type, in blocks and batched alike.

    Examples
    --------
    >>> network = Perceptron([(torch.ones(1, 2, 1), torch.zeros(1, 1, 1))])
    >>> network(torch.ones(1, 3, 2)).ravel()
    tensor([2., 2., 2.])
    """

    def __init__(self, layers: Layers, *, layer_norm: bool = False) -> None:
        self.layers, self.layer_norm = list(layers), layer_norm
        self.parameters = [tensor for layer in layers for tensor in layer]
        weights = [weight.detach() for weight, _ in layers]
        self.largest = max(weight.shape[1] * weight.shape[2] for weight in weights)
        # The matrices of each model, and their transposes: cutting them out at every call would cost a tenth of it.
        biases = [bias.detach() for _, bias in layers]
        self.models = [
            [(weight[k], bias[k], weight[k].t()) for weight, bias in zip(weights, biases, strict=True)]
            for k in range(len(weights[0]))
        ]
        self.trains = any(tensor.requires_grad for tensor in self.parameters)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate on inputs (K, B, in), to (K, B, out)."""
        if not self._is_worth_blocks(x):
            return self.batched(x)
        if torch.is_grad_enabled() and (self.trains or x.requires_grad):
            result: torch.Tensor = _Blocks.apply(self, x, *self.parameters)  # type: ignore[no-untyped-call]
            return result
        return self.forward(x.detach(), self.matrices(), None)

    def _is_worth_blocks(self, x: torch.Tensor) -> bool:
        if self.layer_norm or x.device.type != "cpu" or torch.compiler.is_compiling() or _is_tracing():
            return False
        return x.shape[1] * self.largest >= WORTH_A_CALL

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last hidden layer by batched products, differentiable as often as one likes."""
        short = between_hidden_layers()
        for layer, (weight, bias) in enumerate(self.layers[:-1]):
            dtype = short if layer and short else weight.dtype
            x = torch.baddbmm(bias.to(dtype), x.to(dtype), weight.to(dtype))
            if self.layer_norm:
                x = functional.layer_norm(x, x.shape[-1:])
            x = x.relu_()
        return x.to(self.layers[-1][0].dtype)

    def matrices(self) -> list[list[Matrices]]:
        """Return the matrices of each model, those between hidden layers in the type of their products."""
        short = between_hidden_layers()
        if short is None or len(self.layers) < 3:
            return self.models
        return [[first, *(_shortened(layer, short) for layer in inner), last] for first, *inner, last in self.models]

    def batched(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate by batched products."""
        weight, bias = self.layers[-1]
        return torch.baddbmm(bias, self.hidden(x), weight)

    def forward(
        self, x: torch.Tensor, models: Sequence[Sequence[Matrices]], kept: list[list[torch.Tensor]] | None
    ) -> torch.Tensor:
        """Evaluate block by block; to `kept`, if it is a list, goes a list of the inputs of the layers for every block."""
        outputs = x.new_empty(len(x), x.shape[1], self.layers[-1][0].shape[2])
        for k, layers in enumerate(models):
            last_weight, last_bias, _ = layers[-1]
            if last_weight.shape[1] in NARROW:
                last_weight = last_weight.t().contiguous().t()
            for rows in _blocks(x.shape[1], layers):
                inputs = [_cut(x, k, rows)]
                for layer, after in pairwise(layers):
                    inputs.append(_relu_layer(inputs[-1], layer, after[0].dtype))
                    if kept is None:
                        del inputs[0]
                torch.addmm(last_bias, inputs[-1], last_weight, out=_cut(outputs, k, rows))
                if kept is not None:
                    kept.append(inputs)
        return outputs


class _Blocks(torch.autograd.Function):
    """`Perceptron.forward` with its derivative."""

    @staticmethod
    def forward(ctx: Any, network: Perceptron, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        """Evaluate, and keep the hidden layers."""
        ctx.network, ctx.models = network, network.matrices()
        ctx.kept = []
        ctx.save_for_backward(x, *parameters)
        return network.forward(x, ctx.models, ctx.kept)

    @staticmethod
    def backward(ctx: Any, derivative: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the derivatives by the input and the parameters, those that are asked for."""
        x, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_twice_differentiable(ctx.network, x, parameters, derivative, wanted)
        by_input = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else None
        gradients = [_gradient_like(p) for p in parameters] if any(wanted[1:]) else []
        kept = iter(ctx.kept)
        for k, layers in enumerate(ctx.models):
            parts = [gradient[k] for gradient in gradients]
            for rows in _blocks(x.shape[1], layers):
                g = _block_backward(layers, next(kept), _cut(derivative, k, rows), parts, first=not rows.start)
                if by_input is not None:
                    torch.mm(g, layers[0][2], out=_cut(by_input, k, rows))
        nothing: list[torch.Tensor | None] = [None] * len(parameters)
        return None, by_input, *(gradients or nothing)


def _is_tracing() -> bool:
    # An exported network is to take any number of rows.
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _blocks(n_rows: int, layers: Sequence[Matrices]) -> list[slice]:
    short = layers[len(layers) // 2][0].dtype != layers[0][0].dtype
    size = SHORT_BLOCK_ROWS if short else BLOCK_ROWS
    return [slice(None)] if n_rows <= size else [slice(low, low + size) for low in range(0, n_rows, size)]


def _cut(tensor: torch.Tensor, k: int, rows: slice) -> torch.Tensor:
    """Return a block of rows of model k."""
    return tensor[k] if rows.start is None else tensor[k, rows]


def _shortened(layer: Matrices, dtype: torch.dtype) -> Matrices:
    weight, bias = layer[0].to(dtype), layer[1].to(dtype)
    return weight, bias, weight.t()


def _relu_layer(h: torch.Tensor, layer: Matrices, dtype: torch.dtype) -> torch.Tensor:
    """Return relu(h W + b) in the type of the next product."""
    weight, bias, transposed = layer
    if _ONEDNN_LINEAR is not None and h.dtype == torch.float32 and len(h) * weight.numel() >= WORTH_ONEDNN:
        # Its own relu would make NaN 0, and hide a divergence.
        result: torch.Tensor = _ONEDNN_LINEAR(h, transposed, bias[0], "none", [], "")
    else:
        result = torch.addmm(bias, h, weight)
    return result.relu_().to(dtype)


def _block_backward(
    layers: Sequence[Matrices],
    inputs: Sequence[torch.Tensor],
    g: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    *,
    first: bool,
) -> torch.Tensor:
    """Add a block's part to the gradients of its model, if there are any; return the derivative by the first layer's output."""
    for layer in range(len(layers) - 1, -1, -1):
        h = inputs[layer]
        g = g.to(h.dtype)
        if gradients:
            _add_gradients(h, g, gradients[2 * layer], gradients[2 * layer + 1], first=first)
        if layer:
            g = torch.mm(g, layers[layer][2])
            _RELU_BACKWARD(g, h, 0.0, grad_input=g)
    return g


def _add_gradients(
    h: torch.Tensor, g: torch.Tensor, by_weight: torch.Tensor, by_bias: torch.Tensor, *, first: bool
) -> None:
    """Add those of a block to the gradients of a layer; the first block overwrites them."""
    narrow = g.shape[1] in NARROW
    if narrow or h.dtype != by_weight.dtype:
        product = torch.mm(g.t(), h).t() if narrow else torch.mm(h.t(), g)
        _ = by_weight.copy_(product) if first else by_weight.add_(product)
    elif first:
        torch.mm(h.t(), g, out=by_weight)
    else:
        torch.addmm(by_weight, h.t(), g, out=by_weight)
    if first:
        torch.sum(g, dim=0, keepdim=True, dtype=by_bias.dtype, out=by_bias)
    else:
        by_bias.add_(g.sum(dim=0, keepdim=True, dtype=by_bias.dtype))


def _twice_differentiable(
    network: Perceptron,
    x: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    derivative: torch.Tensor,
    wanted: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Return the derivatives as functions that can be differentiated again: create_graph=True asks for them."""
    inputs = [x, *parameters]
    asked = [tensor for tensor, needed in zip(inputs, wanted, strict=True) if needed]
    found = iter(torch.autograd.grad(network.batched(x), asked, derivative, create_graph=True))
    return [next(found) if needed else None for needed in wanted]
