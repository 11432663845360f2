"""Pieces that the losses of several learners share: functions of tensors, each a line or two of a paper."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

# Logged actions at a bound have no finite tanh^-1.
EDGE = 1e-6
HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


def masked_log_softmax(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return log probabilities over the last axis; masked actions get -inf.

    Parameters
    ----------
    logits : Tensor of shape (..., n_actions)
    mask : Tensor of shape (..., n_actions), bool, or None
        Available actions, one at least in every row.

    Returns
    -------
    Tensor of shape (..., n_actions)

    Examples
    --------
    >>> masked_log_softmax(torch.zeros(3), torch.tensor([True, True, False])).exp()
    tensor([0.5000, 0.5000, 0.0000])
    """
    return torch.log_softmax(masked(logits, mask), dim=-1)


def masked(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return values with -inf where an action is not available.

    Examples
    --------
    >>> masked(torch.zeros(2), torch.tensor([True, False]))
    tensor([0., -inf])
    """
    return values if mask is None else values.masked_fill(~mask, -math.inf)


def taken(values: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Return the value of one action a row: (..., B, n_actions) and codes (..., B) to (..., B).

    Examples
    --------
    >>> taken(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
    tensor([2., 3.])
    """
    return values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def expectile_loss(difference: torch.Tensor, expectile: torch.Tensor | float) -> torch.Tensor:
    """Return |expectile - 1(u < 0)| u^2.

    Examples
    --------
    >>> expectile_loss(torch.tensor([2.0, -2.0]), 0.75)
    tensor([3., 1.])
    """
    below = (difference < 0).to(difference.dtype)
    return (expectile - below).abs() * difference.square()


# -------------------------------------------------------------------- Gaussian policies


def normal_log_prob(points: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Return the log density of independent normals, summed over the last axis.

    Examples
    --------
    >>> normal_log_prob(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    tensor(-0.9189)
    """
    z = (points - mean) * torch.exp(-log_std)
    return -(0.5 * z.square() + log_std + HALF_LOG_2_PI).sum(dim=-1)


def log_slope(u: torch.Tensor) -> torch.Tensor:
    """Return log(1 - tanh(u)^2), without cancellation.

    Examples
    --------
    >>> log_slope(torch.tensor([0.0, 50.0]))
    tensor([  0.0000, -98.6137])
    """
    return 2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u))


def split_gaussian(
    output: torch.Tensor, bounds: tuple[float, float], *, smooth: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a network's output (..., 2 k) into mean and log standard deviation within bounds: clamped, or by a tanh.

    Examples
    --------
    >>> split_gaussian(torch.tensor([0.5, 9.0]), (-5.0, 2.0))
    (tensor([0.5000]), tensor([2.]))
    >>> split_gaussian(torch.tensor([0.5, 0.0]), (-5.0, 2.0), smooth=True)
    (tensor([0.5000]), tensor([-1.5000]))
    """
    mean, log_std = output.chunk(2, dim=-1)
    if not smooth:
        return mean, log_std.clamp(*bounds)
    low, high = bounds
    return mean, low + 0.5 * (high - low) * (1.0 + torch.tanh(log_std))


def squashed_draw(mean: torch.Tensor, log_std: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tanh(mean + std noise) and its log density, differentiable by mean and std (the reparametrisation).

    Parameters
    ----------
    mean, log_std, noise : Tensor of shape (..., k)

    Returns
    -------
    actions : Tensor of shape (..., k)
    log_prob : Tensor of shape (...)

    Examples
    --------
    >>> squashed_draw(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    (tensor([0.]), tensor(-0.9189))
    """
    u = mean + torch.exp(log_std) * noise
    return torch.tanh(u), normal_log_prob(u, mean, log_std) - log_slope(u).sum(dim=-1)


def squashed_log_prob(actions: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Return the log density of actions in [-1, 1] under tanh(normal); actions at a bound count as 1e-6 inside.

    Examples
    --------
    >>> squashed_log_prob(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    tensor(-0.9189)
    """
    u = torch.atanh(actions.clamp(-1.0 + EDGE, 1.0 - EDGE))
    return normal_log_prob(u, mean, log_std) - log_slope(u).sum(dim=-1)


def temperature_loss(log_alpha: torch.Tensor, log_prob: torch.Tensor, target_entropy: float) -> torch.Tensor:
    """Return -mean log_alpha (log pi + target entropy), (K,); log_alpha (K, 1), log_prob (K, B).

    Examples
    --------
    >>> temperature_loss(torch.ones(1, 1), torch.tensor([[3.0, 1.0]]), -1.0)
    tensor([-1.])
    """
    return -(log_alpha * (log_prob.detach() + target_entropy)).mean(dim=1)
