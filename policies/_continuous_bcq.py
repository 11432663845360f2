"""The update of batch-constrained Q-learning for continuous actions, and what it shares with BEAR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._step import LearnerStep, critic_loss, repeated, state_action

LOG_STD_BOUNDS = (-4.0, 15.0)
LATENT_BOUND = 0.5


def soft_minimum(twins: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    """Return weight min + (1 - weight) max over the twins: (K, 2, ...) to (K, ...).

    Examples
    --------
    >>> soft_minimum(torch.tensor([[[0.0], [4.0]]]), 0.75)
    tensor([[1.]])
    """
    return weight * twins.amin(dim=1) + (1.0 - weight) * twins.amax(dim=1)


def perturbed(xi: MLP, states: torch.Tensor, actions: torch.Tensor, width: torch.Tensor | float) -> torch.Tensor:
    """Return clip(a + width tanh(xi(s, a)), -1, 1)."""
    return (actions + width * torch.tanh(xi(state_action(states, actions)))).clamp(-1.0, 1.0)


def decoded(decoder: MLP, states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return the actions that the decoder makes of latents."""
    return torch.tanh(decoder(state_action(states, latents)))


def vae_loss(actions: torch.Tensor, rebuilt: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Return mean (a - rebuilt)^2 + KL / 2, KL = -mean (1 + log std^2 - mean^2 - std^2) / 2 of the latents, (K,).

    Examples
    --------
    >>> zero = torch.zeros(1, 3, 2)
    >>> vae_loss(zero, zero + 2.0, zero + 1.0, zero)
    tensor([4.2500])
    """
    divergence = -0.5 * (1.0 + 2.0 * log_std - mean.square() - torch.exp(2.0 * log_std)).mean(dim=(1, 2))
    return (actions - rebuilt).square().mean(dim=(1, 2)) + 0.5 * divergence


@dataclass(frozen=True)
class GenerativeShape:
    """What is equal for all models that train as one.

    Parameters
    ----------
    n_states, n_actions : int
        Dimensions.
    hidden, vae_hidden : tuple of int
    n_target_samples : int
    """

    n_states: int
    n_actions: int
    hidden: tuple[int, ...]
    vae_hidden: tuple[int, ...]
    n_target_samples: int

    @property
    def n_latents(self) -> int:
        """Dimension of the latents."""
        return 2 * self.n_actions


class GenerativeStep(LearnerStep):
    """A generative model of the logged actions, twin critics and an actor, with targets of both: BCQ's and BEAR's.

    Parameters
    ----------
    shape : GenerativeShape
    actor : tuple of two ints
        Widths of the actor's input and output.
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, tau, min_weight, learning_rate, and what a subclass needs.
    device : torch.device
    """

    def __init__(
        self,
        shape: GenerativeShape,
        actor: tuple[int, int],
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
    ) -> None:
        super().__init__(seeds, settings, device)
        self.shape, pair = shape, shape.n_states + shape.n_actions
        self.encoder = self.mlp("encoder", (pair, *shape.vae_hidden, 2 * shape.n_latents))
        self.decoder = self.mlp("decoder", (shape.n_states + shape.n_latents, *shape.vae_hidden, shape.n_actions))
        self.actor = self.mlp("actor", (actor[0], *shape.hidden, actor[1]))
        self.actor_target = self.target("actor")
        self.q, self.q_target = self.twins("q", (pair, *shape.hidden, 1))
        self.vae_adam = self.adam("vae", [self.encoder.parameters, self.decoder.parameters], "learning_rate")
        self.actor_adam = self.adam("actor", self.actor.parameters, "learning_rate")
        self.q_adam = self.adam("q", self.q.network.parameters, "learning_rate")
        self.gamma, self.tau = self.column("gamma"), self.column("tau")
        self.min_weight = self.column("min_weight").unsqueeze(2)

    def latents(self, n: int) -> torch.Tensor:
        """Draw latents (K, n, 2 k) of a standard normal, clipped to +-.5."""
        return self.normal(n, self.shape.n_latents).clamp(-LATENT_BOUND, LATENT_BOUND)

    def vae_loss(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
        """Return the loss of encoder and decoder on the logged actions, (K,)."""
        mean, log_std = self.encoder(state_action(batch.states, batch.actions)).chunk(2, dim=2)
        log_std = log_std.clamp(*LOG_STD_BOUNDS)
        rebuilt = decoded(self.decoder, batch.states, mean + torch.exp(log_std) * noise)
        return vae_loss(batch.actions, rebuilt, mean, log_std)

    def backup(self, batch: Batch, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return r + gamma (1 - terminal) max_j (lam min_i + (1 - lam) max_i) Q'_i(s', a_j), (K, B).

        States are the next ones, `repeated` for each of the n actions a_j.
        """
        twins = self.q_target(state_action(states, actions)).view(self.n_models, 2, -1, batch.shape[1])
        value = soft_minimum(twins, self.min_weight).amax(dim=1)
        return batch.rewards + self.gamma * batch.continues * value

    def q_loss(self, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
        """Return sum_i mean (Q_i(s, a) - y)^2, (K,)."""
        return critic_loss(self.q, batch, targets)

    def _update_model(self, batch: Batch) -> torch.Tensor:
        loss = self.vae_loss(batch, self.normal(batch.shape[1], self.shape.n_latents))
        self.vae_adam.minimize(loss.sum())
        return loss.detach()

    def _update_critics(self, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
        loss = self.q_loss(batch, targets)
        self.q_adam.minimize(loss.sum())
        return loss.detach()

    def _update_targets(self) -> None:
        self.q_target.lerp_from(self.q, self.tau)
        self.actor_target.parameters.lerp_from(self.actor.parameters, self.tau)


class ContinuousBCQStep(GenerativeStep):
    """Variational autoencoder, critics, perturbation, targets, in this order.

    Parameters
    ----------
    shape : GenerativeShape
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, tau, perturbation, min_weight, learning_rate.
    device : torch.device
    """

    policy_networks = ("decoder", "actor", "q")

    def __init__(
        self,
        shape: GenerativeShape,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
    ) -> None:
        super().__init__(shape, (shape.n_states + shape.n_actions, shape.n_actions), seeds, settings, device)
        self.width = self.column("perturbation").unsqueeze(2)

    def targets(self, batch: Batch, latents: torch.Tensor) -> torch.Tensor:
        """Return the backup of the actions of latents (K, n B, 2 k), moved by the target perturbation, (K, B)."""
        with torch.no_grad():
            states = repeated(batch.next_states, self.shape.n_target_samples)
            actions = perturbed(self.actor_target, states, decoded(self.decoder, states, latents), self.width)
            return self.backup(batch, states, actions)

    def actor_loss(self, batch: Batch, latents: torch.Tensor) -> torch.Tensor:
        """Return -mean Q_1(s, a + perturbation), a of the decoder, (K,)."""
        with torch.no_grad():
            actions = decoded(self.decoder, batch.states, latents)
        moved = perturbed(self.actor, batch.states, actions, self.width)
        return -self.q.first(state_action(batch.states, moved)).mean(dim=(1, 2))

    def _update(self, batch: Batch) -> Tensors:
        """Do one update."""
        size = batch.shape[1]
        vae = self._update_model(batch)
        q_loss = self._update_critics(batch, self.targets(batch, self.latents(self.shape.n_target_samples * size)))
        actor_loss = self.actor_loss(batch, self.latents(size))
        self.actor_adam.minimize(actor_loss.sum())
        self._update_targets()
        return {"loss": q_loss, "vae_loss": vae, "actor_loss": actor_loss.detach()}
