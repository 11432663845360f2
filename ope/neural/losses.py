"""Losses whose derivative is written down: automatic differentiation then takes one step instead of one for each operation."""

from __future__ import annotations

from typing import Any

import torch


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: torch.Tensor, loss: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        ctx.save_for_backward(slope)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, derivative: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return derivative.view(*derivative.shape, *(1,) * (slope.ndim - derivative.ndim)) * slope, None, None


def sloped(loss: torch.Tensor, prediction: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Return a loss that is differentiated by its prediction alone, and once.

    Parameters
    ----------
    loss : Tensor of shape (K, ...)
        Whose entry belongs to the row of the prediction with the same leading indices.
    prediction, slope : Tensor of shape (K, ..., B)
        What is differentiated, and the derivative by it.

    Returns
    -------
    Tensor of shape (K, ...)

    Examples
    --------
    >>> x = torch.tensor([[3.0]], requires_grad=True)
    >>> loss = sloped(torch.tensor([9.0]), x, torch.tensor([[6.0]]))
    >>> loss.sum().backward()
    >>> loss.detach(), x.grad
    (tensor([9.]), tensor([[6.]]))
    """
    result: torch.Tensor = _Sloped.apply(prediction, loss.detach(), slope)  # type: ignore[no-untyped-call]
    return result


def weighted_square(
    prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float, total: torch.Tensor | float
) -> torch.Tensor:
    """Return sum w (prediction - target)^2 / total over the last axis, w without gradient.

    Parameters
    ----------
    prediction : Tensor of shape (..., B)
    target, weight : Tensor that broadcasts to it, or a number
    total : Tensor that broadcasts to shape (..., 1), or a number

    Returns
    -------
    Tensor of shape (...)

    Examples
    --------
    >>> weighted_square(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), 1.0, 2)
    tensor([2.5000])
    """
    with torch.no_grad():
        error = prediction - target
        slope = error * (weight / total)
        loss = (slope * error).sum(dim=-1)
    return sloped(loss, prediction, slope.mul_(2.0))
