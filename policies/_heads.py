"""Policies that imitate logged actions by weight: a softmax, or a normal around tanh(mean)."""

from __future__ import annotations

import torch

from ope.neural.networks import MLP, Shape
from ope.neural.transitions import Batch
from ope.policies._losses import masked_log_softmax, normal_log_prob, taken


def head_extras(n_actions: int, *, discrete: bool) -> dict[str, Shape]:
    """Return the parameters beside the network: a log standard deviation that depends on no state."""
    return {} if discrete else {"log_std": (1, n_actions)}


def logged_log_prob(actor: MLP, batch: Batch, log_std_bounds: tuple[float, float]) -> torch.Tensor:
    """Return log pi(a|s) of the logged actions, (K, B)."""
    output = actor(batch.states)
    if batch.transitions.discrete:
        return taken(masked_log_softmax(output, batch.action_mask), batch.actions)
    log_std = actor.parameters.views["log_std"].clamp(*log_std_bounds)
    return normal_log_prob(batch.actions, torch.tanh(output), log_std)


def drawn(actor: MLP, states: torch.Tensor, noise: torch.Tensor, log_std_bounds: tuple[float, float]) -> torch.Tensor:
    """Return continuous actions of the policy, clipped to the range, (K, B, k)."""
    std = actor.parameters.views["log_std"].clamp(*log_std_bounds).exp()
    return (torch.tanh(actor(states)) + std * noise).clamp(-1.0, 1.0)
