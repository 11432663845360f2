"""Policies that imitate logged actions by weight: a softmax, or a normal around tanh(mean)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ope.neural.networks import MLP, Shape
from ope.neural.transitions import Batch
from ope.policies._losses import masked_log_softmax, normal_log_prob, taken

# Names of the log standard deviation, one for all states: as it is, or before a sigmoid.
PLAIN, LOGIT = "log_std", "log_std_logit"
# Standard normal quantiles of single precision end at 5.4; beyond lies infinity.
FARTHEST = 8.0


def head_extras(n_actions: int, *, discrete: bool, smooth: bool = False) -> dict[str, Shape]:
    """Return the parameters beside the network: a log standard deviation that depends on no state."""
    return {} if discrete else {LOGIT if smooth else PLAIN: (1, n_actions)}


def log_std_of(tensors: Mapping[str, torch.Tensor], bounds: tuple[float, float]) -> torch.Tensor:
    """Return the log standard deviation of a network's parameters: clamped, or low + (high - low) sigmoid(x), (K, 1, k).

    Examples
    --------
    >>> log_std_of({"log_std": torch.ones(1, 1, 2)}, (-6.0, 0.0))
    tensor([[[0., 0.]]])
    >>> log_std_of({"log_std_logit": torch.zeros(1, 1, 2)}, (-6.0, 0.0))
    tensor([[[-3., -3.]]])
    """
    if LOGIT in tensors:
        low, high = bounds
        return low + (high - low) * torch.sigmoid(tensors[LOGIT])
    return tensors[PLAIN].clamp(*bounds)


def logged_log_prob(actor: MLP, batch: Batch, log_std_bounds: tuple[float, float]) -> torch.Tensor:
    """Return log pi(a|s) of the logged actions, (K, B)."""
    output = actor(batch.states)
    if batch.transitions.discrete:
        return taken(masked_log_softmax(output, batch.action_mask), batch.actions)
    log_std = log_std_of(actor.parameters.views, log_std_bounds)
    return normal_log_prob(batch.actions, torch.tanh(output), log_std)


def drawn(actor: MLP, states: torch.Tensor, noise: torch.Tensor, log_std_bounds: tuple[float, float]) -> torch.Tensor:
    """Return continuous actions as the policy takes them: of the normal truncated to the range, (K, B, k).

    Notes
    -----
    By inversion: the share that `noise` has of a whole normal below it, this draw has of the truncated one.
    """
    mean, std = torch.tanh(actor(states)), log_std_of(actor.parameters.constants, log_std_bounds).exp()
    low, high = torch.special.ndtr((-1.0 - mean) / std), torch.special.ndtr((1.0 - mean) / std)
    z: torch.Tensor = torch.special.ndtri(low + torch.special.ndtr(noise) * (high - low))
    return (mean + std * z.clamp(-FARTHEST, FARTHEST)).clamp(-1.0, 1.0)
