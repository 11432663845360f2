"""The update of implicit Q-learning, for discrete and for continuous actions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch

from ope.neural.history import Tensors
from ope.neural.transitions import Batch, Transitions
from ope.policies._heads import head_extras, logged_log_prob
from ope.policies._losses import expectile_loss, taken
from ope.policies._step import LearnerStep, state_action

LOG_STD_BOUNDS = (-5.0, 2.0)
MAX_WEIGHT = 100.0


def imitation_weight(advantage: torch.Tensor, beta: torch.Tensor | float) -> torch.Tensor:
    """Return min(exp(beta A), 100).

    Examples
    --------
    >>> imitation_weight(torch.tensor([0.0, 9.0]), 3.0)
    tensor([  1., 100.])
    """
    return torch.exp(beta * advantage).clamp(max=MAX_WEIGHT)


def cosine_decay(update: int, n_updates: int) -> float:
    """Return the factor of the learning rate, from 1 down to 0.

    Examples
    --------
    >>> [round(cosine_decay(t, 4), 3) for t in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return 0.5 * (1.0 + math.cos(math.pi * min(update / n_updates, 1.0)))


class IQLStep(LearnerStep):
    """V, actor, Q, targets, in this order, each with the V just updated.

    Parameters
    ----------
    data : Transitions
    hidden : sequence of int
    n_updates : int
        Length of the actor's cosine decay.
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, expectile, beta, tau, learning_rate.
    """

    policy_networks = ("actor", "q")

    def __init__(
        self,
        data: Transitions,
        hidden: Sequence[int],
        n_updates: int,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
    ) -> None:
        super().__init__(seeds, settings, data.rewards.device)
        n_states, n_actions = data.states.shape[1], data.n_actions
        self.n_updates = n_updates
        extras = head_extras(n_actions, discrete=data.discrete)
        self.v = self.mlp("v", (n_states, *hidden, 1))
        self.actor = self.mlp("actor", (n_states, *hidden, n_actions), extras)
        critic = (n_states, *hidden, n_actions) if data.discrete else (n_states + n_actions, *hidden, 1)
        self.q, self.q_target = self.twins("q", critic)
        self.v_adam = self.adam("v", self.v.parameters, "learning_rate")
        self.actor_adam = self.adam("actor", self.actor.parameters, "learning_rate")
        self.q_adam = self.adam("q", self.q.network.parameters, "learning_rate")
        self.gamma, self.tau = self.column("gamma"), self.column("tau")
        self.expectile, self.beta = self.column("expectile"), self.column("beta")
        self.counts = {"updates": 0}

    # ---------------------------------------------------------------- values

    def logged_q(self, batch: Batch, *, target: bool) -> torch.Tensor:
        """Return the twins at the logged actions, (K, 2, B)."""
        q = self.q_target if target else self.q
        if batch.transitions.discrete:
            return taken(q(batch.states), batch.actions.unsqueeze(1).expand(-1, 2, -1))
        return q(state_action(batch.states, batch.actions)).squeeze(3)

    def v_loss(self, batch: Batch, q_min: torch.Tensor) -> torch.Tensor:
        """Return mean |expectile - 1(u < 0)| u^2, u = min_i Q'_i(s, a) - V(s), (K,)."""
        return expectile_loss(q_min - self.v(batch.states).squeeze(2), self.expectile).mean(dim=1)

    def q_loss(self, batch: Batch) -> torch.Tensor:
        """Return sum_i mean (r + gamma (1 - terminal) V(s') - Q_i(s, a))^2, (K,)."""
        with torch.no_grad():
            target = batch.rewards + self.gamma * batch.continues * self.v(batch.next_states).squeeze(2)
        errors = target.unsqueeze(1) - self.logged_q(batch, target=False)
        return batch.bellman_mean(errors.square()).sum(dim=1)

    # ---------------------------------------------------------------- actor

    def actor_loss(self, batch: Batch, q_min: torch.Tensor) -> torch.Tensor:
        """Return -mean min(exp(beta (min_i Q'_i - V)), 100) log pi(a|s), (K,)."""
        with torch.no_grad():
            weight = imitation_weight(q_min - self.v(batch.states).squeeze(2), self.beta)
        return -(weight * logged_log_prob(self.actor, batch, LOG_STD_BOUNDS)).mean(dim=1)

    def advance(self) -> None:
        """Set the actor's learning rate, and count the update."""
        self.actor_adam.scale_rate(cosine_decay(self.counts["updates"], self.n_updates))
        super().advance()

    def phase(self) -> Hashable:
        """Return the one form that updates have."""
        return ()

    def _update(self, batch: Batch) -> Tensors:
        """Do one update."""
        with torch.no_grad():
            q_min = self.logged_q(batch, target=True).amin(dim=1)
        v_loss = self.v_loss(batch, q_min)
        self.v_adam.minimize(v_loss.sum())
        actor_loss = self.actor_loss(batch, q_min)
        self.actor_adam.minimize(actor_loss.sum())
        q_loss = self.q_loss(batch)
        self.q_adam.minimize(q_loss.sum())
        self.q_target.lerp_from(self.q, self.tau)
        metrics = {"loss": q_loss, "v_loss": v_loss, "actor_loss": actor_loss, "q_mean": q_min.mean(dim=1)}
        return {name: value.detach() for name, value in metrics.items()}
