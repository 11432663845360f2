"""The update of soft actor-critic with many critics, and what keeps their action gradients apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ope.neural.history import Tensors
from ope.neural.transitions import Batch
from ope.policies._losses import temperature_loss
from ope.policies._sac_step import ActorCriticShape, SoftActorCriticStep
from ope.policies._step import state_action

TINY = 1e-10


def gradient_similarity(gradients: torch.Tensor) -> torch.Tensor:
    """Return sum_{i != j} <g_i, g_j> / (E - 1) of normalised gradients: E times the mean cosine of a pair.

    Parameters
    ----------
    gradients : Tensor of shape (K, E, B, k)
        Of each of E critics by the action.

    Returns
    -------
    Tensor of shape (K, B)

    Examples
    --------
    >>> gradient_similarity(torch.tensor([[[[2.0, 0.0]], [[0.0, 1.0]], [[3.0, 0.0]]]]))
    tensor([[1.]])
    """
    norms: torch.Tensor = torch.linalg.vector_norm(gradients, dim=3, keepdim=True)
    units = gradients / (norms + TINY)
    # |sum_i g_i|^2 holds every pair twice, and each g_i with itself.
    pairs = units.sum(dim=1).square().sum(dim=2) - units.square().sum(dim=(1, 3))
    return pairs / (gradients.shape[1] - 1)


class EDACStep(SoftActorCriticStep):
    """Actor, temperature, critics, all by what they were before the update; then the targets.

    Parameters
    ----------
    shape : ActorCriticShape
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, eta, tau, learning_rate, actor_learning_rate.
    device : torch.device
    entropy_backup : bool
        Whether targets hold the entropy of the next action.
    """

    log_std_bounds = (-5.0, 2.0)

    def __init__(
        self,
        shape: ActorCriticShape,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
        *,
        entropy_backup: bool,
    ) -> None:
        super().__init__(shape, seeds, settings, device)
        self.entropy_backup = entropy_backup
        self.eta = self.column("eta")[:, 0]
        self.diversifies = any(value > 0.0 for value in settings["eta"])

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return r + gamma (1 - terminal) (min_i Q'_i(s', a') - temperature log pi(a'|s')), (K, B)."""
        with torch.no_grad():
            actions, log_prob = self.draw(batch.next_states)
            value = self.q_target(state_action(batch.next_states, actions)).squeeze(3).amin(dim=1)
            return self.backup(batch, value - self.temperature * log_prob if self.entropy_backup else value)

    def critic_losses(self, batch: Batch, targets: torch.Tensor) -> Tensors:
        """Return sum_i mean (Q_i(s, a) - y)^2, and the mean similarity of grad_a Q_i(s, a), 0 where no model asks: (K,)."""
        n, (n_models, size) = self.shape.n_critics, batch.shape
        # Each critic has actions of its own, so that one backward pass finds the gradient of each.
        actions = batch.actions.repeat_interleave(n, dim=0).requires_grad_(self.diversifies)
        inputs = state_action(batch.states.repeat_interleave(n, dim=0), actions)
        q = self.q.network(inputs, twice=self.diversifies).view(n_models, n, size)
        losses = {"td_loss": batch.bellman_mean((q - targets.unsqueeze(1)).square()).sum(dim=1)}
        similarity = torch.zeros_like(losses["td_loss"])
        if self.diversifies:
            (gradients,) = torch.autograd.grad(q.sum(), actions, create_graph=True)
            found = gradient_similarity(gradients.view(n_models, n, size, -1)).mean(dim=1)
            similarity = torch.where(self.eta > 0.0, found, similarity)
        return {**losses, "similarity": similarity, "q_mean": q.mean(dim=(1, 2))}

    def _update(self, batch: Batch) -> Tensors:
        """Do one update."""
        targets = self.targets(batch)
        actions, log_prob = self.draw(batch.states)
        actor_loss = self.actor_loss(batch, actions, log_prob)
        self.actor_adam.minimize(actor_loss.sum())
        self.temperature_adam.minimize(temperature_loss(self.log_temperature, log_prob, self.target_entropy).sum())
        losses = self.critic_losses(batch, targets)
        loss = losses["td_loss"] + self.eta * losses["similarity"]
        self.critic_adam.minimize(loss.sum())
        self.q_target.lerp_from(self.q, self.tau)
        metrics = {"loss": loss, **losses, "actor_loss": actor_loss, "temperature": self.temperature[:, 0]}
        return {name: value.detach() for name, value in metrics.items()}
