"""Actors when they act: squashed Gaussians, normals around tanh(mean), and softmax policies that learners share."""

from __future__ import annotations

import numpy as np
import torch

from ope.policies._discrete_q import greedy
from ope.policies._distributions import ActionDistribution, Point, SquashedNormal, TruncatedNormal
from ope.policies._losses import masked_log_softmax, split_gaussian
from ope.policies._network_policy import NetworkPolicy
from ope.validation import FloatArray


def squashed_distribution(
    policy: NetworkPolicy, states: FloatArray, log_std_bounds: tuple[float, float], *, deterministic: bool
) -> ActionDistribution:
    """Return tanh(normal) of the network "actor", or tanh(mean) where it acts deterministically."""

    def both(x: torch.Tensor, _mask: torch.Tensor | None) -> torch.Tensor:
        mean, log_std = split_gaussian(policy.networks_["actor"](x)[0].double(), log_std_bounds)
        return torch.cat([mean, log_std.exp()], dim=1)

    mean, std = np.split(policy._evaluate(both, states), 2, axis=1)
    unit = policy.origin_.actions
    assert unit is not None
    if deterministic:
        return Point(unit.inverse(np.tanh(mean)))
    return SquashedNormal(mean, std, unit.shift, unit.scale)


def truncated_distribution(
    policy: NetworkPolicy, states: FloatArray, log_std_bounds: tuple[float, float], *, deterministic: bool
) -> ActionDistribution:
    """Return the normal around tanh of the network "actor", truncated to the bounds, or tanh alone."""
    actor, unit = policy.networks_["actor"], policy.origin_.actions
    assert unit is not None
    mean = unit.inverse(policy._evaluate(lambda x, _: torch.tanh(actor(x)[0].double()), states))
    if deterministic:
        return Point(mean)
    std = actor.parameters.constants["log_std"][0, 0].double().clamp(*log_std_bounds).exp().numpy() * unit.scale
    return TruncatedNormal(mean, np.broadcast_to(std, mean.shape), unit.shift - unit.scale, unit.shift + unit.scale)


def softmax_policy(
    policy: NetworkPolicy, states: torch.Tensor, mask: torch.Tensor | None, *, deterministic: bool
) -> torch.Tensor:
    """Return the softmax of the network "actor", or its most probable action, (n, n_actions)."""
    logits = policy.networks_["actor"](states)[0].double()
    return greedy(logits, mask) if deterministic else masked_log_softmax(logits, mask).exp()
