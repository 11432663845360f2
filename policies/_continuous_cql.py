"""The update of conservative Q-learning for continuous actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ope.neural.history import Tensors
from ope.neural.transitions import Batch
from ope.policies._losses import squashed_log_prob, temperature_loss
from ope.policies._sac_step import ActorCriticShape, SoftActorCriticStep
from ope.policies._step import repeated, state_action

MULTIPLIER_MAX = 1e6


def conservative_penalty(q_logged: torch.Tensor, q_sampled: torch.Tensor, log_density: torch.Tensor) -> torch.Tensor:
    """Return mean log sum_j exp(Q(s, a_j) - log mu(a_j)) - mean Q(s, a_logged).

    Parameters
    ----------
    q_logged : Tensor of shape (K, E, B)
    q_sampled : Tensor of shape (K, E, n, B)
    log_density : Tensor of shape (K, n, B)
        Of the distributions that the actions a_j were drawn from.

    Returns
    -------
    Tensor of shape (K, E)

    Examples
    --------
    >>> conservative_penalty(torch.ones(1, 1, 4), torch.zeros(1, 1, 2, 4), torch.zeros(1, 2, 4))
    tensor([[-0.3069]])
    """
    return (torch.logsumexp(q_sampled - log_density.unsqueeze(1), dim=2) - q_logged).mean(dim=2)


@dataclass(frozen=True)
class CQLForm:
    """What is equal for all models that train as one.

    Parameters
    ----------
    n_samples : int
        Actions from each of three distributions.
    max_target_backup : bool
    lagrange : bool
    warm_start_updates : int
    """

    n_samples: int = 10
    max_target_backup: bool = False
    lagrange: bool = False
    warm_start_updates: int = 0


class ContinuousCQLStep(SoftActorCriticStep):
    """Temperature, actor, critics, targets, in this order, as the authors' code does.

    Parameters
    ----------
    shape : ActorCriticShape
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, alpha, tau, learning_rate, actor_learning_rate, lagrange_threshold.
    device : torch.device
    form : CQLForm
    """

    def __init__(
        self,
        shape: ActorCriticShape,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
        form: CQLForm,
    ) -> None:
        super().__init__(shape, seeds, settings, device)
        self.form, self.n_actions = form, shape.n_actions
        multiplier = self.variable("log_multiplier")
        self.log_multiplier = multiplier.views["log_multiplier"]
        self.multiplier_adam = self.adam("multiplier", multiplier, "learning_rate")
        self.alpha, self.threshold = self.column("alpha"), self.column("lagrange_threshold")
        self.counts = {"updates": 0}
        self.warm_start_updates = form.warm_start_updates

    # ---------------------------------------------------------------- actor

    def actor_loss(self, batch: Batch, actions: torch.Tensor, log_prob: torch.Tensor) -> torch.Tensor:
        """Return mean(temperature log pi - min_i Q_i(s, a)), (K,); -log pi(a_logged) for -Q during a warm start."""
        if not self.is_warm:
            return super().actor_loss(batch, actions, log_prob)
        gain = squashed_log_prob(batch.actions, *self.gaussian(self.actor, batch.states))
        return (self.temperature * log_prob - gain).mean(dim=1)

    def _update_actor(self, batch: Batch) -> Tensors:
        actions, log_prob = self.draw(batch.states)
        self.temperature_adam.minimize(temperature_loss(self.log_temperature, log_prob, self.target_entropy).sum())
        actor_loss = self.actor_loss(batch, actions, log_prob)
        self.actor_adam.minimize(actor_loss.sum())
        return {
            "actor_loss": actor_loss,
            "temperature": self.temperature[:, 0],
            "log_prob": log_prob.mean(dim=1),
        }

    # ---------------------------------------------------------------- critics

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return r + gamma min_i Q'_i(s', a'), no entropy term, (K, B); the best of many a' with max_target_backup."""
        n = self.form.n_samples if self.form.max_target_backup else 1
        with torch.no_grad():
            actions, _ = self.draw(batch.next_states, n)
            values = self.q_target(state_action(repeated(batch.next_states, n), actions)).view(self.n_models, 2, n, -1)
            return self.backup(batch, values.amax(dim=2).amin(dim=1))

    def sampled(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return actions (K, 3 n, B, k), uniform, from pi(s) and from pi(s'), and their log densities (K, 3 n, B)."""
        n, (n_models, size) = self.form.n_samples, batch.shape
        uniform = self.uniform(n * size, self.n_actions)
        log_uniform = torch.full((n_models, n * size), -self.n_actions * math.log(2.0), device=self.device)
        with torch.no_grad():
            now, log_now = self.draw(batch.states, n)
            after, log_after = self.draw(batch.next_states, n)
        actions = torch.cat([uniform, now, after], dim=1)
        log_density = torch.cat([log_uniform, log_now, log_after], dim=1)
        return actions.view(n_models, 3 * n, size, -1), log_density.view(n_models, 3 * n, size)

    def critic_losses(
        self, batch: Batch, targets: torch.Tensor, actions: torch.Tensor, log_density: torch.Tensor
    ) -> Tensors:
        """Return the Bellman loss and the penalty of each twin, (K, 2), and the mean logged value, (K,)."""
        n = actions.shape[1]
        q = self.q(state_action(batch.states, batch.actions)).squeeze(3)
        unseen = state_action(repeated(batch.states, n), actions.flatten(1, 2))
        q_sampled = self.q(unseen).view(self.n_models, 2, n, -1)
        return {
            "td_loss": batch.bellman_mean((q - targets.unsqueeze(1)).square()),
            "penalty": conservative_penalty(q, q_sampled, log_density),
            "q_mean": q.mean(dim=(1, 2)),
        }

    def weighted(self, penalty: torch.Tensor) -> torch.Tensor:
        """Return the weighted penalty: alpha penalty, or multiplier (alpha penalty - threshold), (K, 2)."""
        weighted = self.alpha * penalty
        if not self.form.lagrange:
            return weighted
        return self.log_multiplier.exp().clamp(max=MULTIPLIER_MAX) * (weighted - self.threshold)

    def _update_critics(self, batch: Batch) -> Tensors:
        losses = self.critic_losses(batch, self.targets(batch), *self.sampled(batch))
        loss = (losses["td_loss"] + self.weighted(losses["penalty"])).sum(dim=1)
        multiplier_loss = -0.5 * self.weighted(losses["penalty"].detach()).sum()
        self.critic_adam.minimize(loss.sum())
        if self.form.lagrange:
            self.multiplier_adam.minimize(multiplier_loss)
        return {"loss": loss, **{name: value.reshape(len(loss), -1).mean(dim=1) for name, value in losses.items()}}

    def _update(self, batch: Batch) -> Tensors:
        """Do one update."""
        metrics = {**self._update_actor(batch), **self._update_critics(batch)}
        self.q_target.lerp_from(self.q, self.tau)
        return {name: value.detach() for name, value in metrics.items()}
