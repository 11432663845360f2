"""Actors when they act: squashed Gaussians, normals around tanh(mean), and softmax policies that learners share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ope.neural.generators import derive_seed
from ope.policies._discrete_q import greedy
from ope.policies._distributions import ActionDistribution, Point, SquashedNormal, TruncatedNormal
from ope.policies._heads import log_std_of
from ope.policies._losses import masked_log_softmax, split_gaussian
from ope.policies._network_policy import PREDICT_ROWS, NetworkPolicy
from ope.policies._step import repeated, state_action
from ope.validation import FloatArray


def squashed_distribution(
    policy: NetworkPolicy,
    states: FloatArray,
    log_std_bounds: tuple[float, float],
    *,
    deterministic: bool,
    smooth: bool = False,
) -> ActionDistribution:
    """Return tanh(normal) of the network "actor", or tanh(mean) where it acts deterministically."""
    unit, actor = policy.origin_.actions, policy.networks_["actor"]
    assert unit is not None

    def both(x: torch.Tensor, _mask: torch.Tensor | None) -> torch.Tensor:
        mean, log_std = split_gaussian(actor(x)[0].double(), log_std_bounds, smooth=smooth)
        return torch.tanh(mean) if deterministic else torch.cat([mean, log_std.exp()], dim=1)

    output = policy._evaluate(both, states)
    if deterministic:
        return Point(unit.inverse(output))
    mean, std = np.split(output, 2, axis=1)
    return SquashedNormal(mean, std, unit.shift, unit.scale)


def squashed_mean(policy: NetworkPolicy, states: FloatArray, name: str) -> FloatArray:
    """Return tanh of the network `name` in the unit of the actions, (m, k)."""
    network, unit = policy.networks_[name], policy.origin_.actions
    assert unit is not None
    return unit.inverse(policy._evaluate(lambda x, _: torch.tanh(network(x)[0].double()), states))


def best_of(
    policy: NetworkPolicy, states: FloatArray, n: int, propose: Callable[[torch.Tensor], torch.Tensor]
) -> Point:
    """Return, in every state, the action of the highest Q_1 among n.

    Parameters
    ----------
    policy : NetworkPolicy
        With a network "q".
    states : ndarray of shape (m, d)
    n : int
    propose : callable
        From standardised states (m, d) to actions (n, m, k) in [-1, 1].
    """
    unit, q = policy.origin_.actions, policy.networks_["q"]
    assert unit is not None
    first = q.with_rows(q.parameters.flat[:1])

    # Shapes are read from tensors, so that an exported policy takes any number of rows.
    def best(x: torch.Tensor, _mask: torch.Tensor | None) -> torch.Tensor:
        actions = propose(x)
        values = first(state_action(repeated(x.unsqueeze(0), n), actions.flatten(0, 1).unsqueeze(0)))
        chosen = values.view(n, -1, 1).argmax(dim=0, keepdim=True)
        return actions.gather(0, chosen.expand(-1, -1, actions.shape[2]))[0].double()

    return Point(unit.inverse(policy._evaluate(best, states, n_rows=max(1, PREDICT_ROWS // n))))


def squashed_draws(
    policy: NetworkPolicy, states: torch.Tensor, n: int, log_std_bounds: tuple[float, float], *, smooth: bool = False
) -> torch.Tensor:
    """Return tanh(mean + std noise) of the network "actor", (n, m, k), for states (m, d); its noise is `acting_noise`."""
    mean, log_std = split_gaussian(policy.networks_["actor"](states)[0], log_std_bounds, smooth=smooth)
    noise = acting_noise(policy, n, policy.origin_.n_actions).unsqueeze(1)
    return torch.tanh(mean + log_std.exp() * noise)


def acting_noise(policy: NetworkPolicy, n: int, k: int) -> torch.Tensor:
    """Draw n standard normal vectors from the seed of the policy: the same in every state and at every call, (n, k)."""
    rng = np.random.default_rng(derive_seed(policy.seed_, "acting"))
    return torch.from_numpy(rng.standard_normal((n, k))).float()


def truncated_distribution(
    policy: NetworkPolicy, states: FloatArray, log_std_bounds: tuple[float, float], *, deterministic: bool
) -> ActionDistribution:
    """Return the normal around tanh of the network "actor", truncated to the bounds, or tanh alone."""
    mean = squashed_mean(policy, states, "actor")
    if deterministic:
        return Point(mean)
    actor, unit = policy.networks_["actor"], policy.origin_.actions
    assert unit is not None
    std = log_std_of(actor.parameters.constants, log_std_bounds)[0, 0].double().exp().numpy() * unit.scale
    return TruncatedNormal(mean, np.broadcast_to(std, mean.shape), unit.shift - unit.scale, unit.shift + unit.scale)


def softmax_policy(
    policy: NetworkPolicy, states: torch.Tensor, mask: torch.Tensor | None, *, deterministic: bool
) -> torch.Tensor:
    """Return the softmax of the network "actor", or its most probable action, (n, n_actions)."""
    logits = policy.networks_["actor"](states)[0].double()
    return greedy(logits, mask) if deterministic else masked_log_softmax(logits, mask).exp()
