"""The update of bootstrapping error accumulation reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._continuous_bcq import GenerativeShape, GenerativeStep
from ope.policies._divergences import Kernel, squared_mmd
from ope.policies._losses import split_gaussian
from ope.policies._step import repeated, state_action

LOG_STD_BOUNDS = (-20.0, 2.0)
LOG_MULTIPLIER_BOUNDS = (-5.0, 10.0)
# Of the noise of draws that are matched to the generative model, whose latents have the same bound.
MATCHING_NOISE_BOUND = 0.5
# Under the root of the squared distance, whose slope at 0 is infinite.
SMALL = 1e-6


@dataclass(frozen=True)
class BEARForm:
    """What is equal for all models that train as one, beside the networks.

    Parameters
    ----------
    kernel : Kernel
    n_match_samples : int
        Actions of either policy by which they are compared.
    warm_start_updates : int
    """

    kernel: Kernel
    n_match_samples: int
    warm_start_updates: int


class BEARStep(GenerativeStep):
    """Generative model, critics, actor, multiplier, targets, in this order.

    Parameters
    ----------
    form : BEARForm
    shape : GenerativeShape
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, tau, min_weight, threshold, learning_rate.
    device : torch.device
    """

    policy_networks = ("actor", "q")

    def __init__(
        self,
        form: BEARForm,
        shape: GenerativeShape,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
    ) -> None:
        super().__init__(shape, (shape.n_states, 2 * shape.n_actions), seeds, settings, device)
        self.form = form
        multiplier = self.variable("log_multiplier")
        self.log_multiplier = multiplier.views["log_multiplier"]
        self.multiplier_adam = self.adam("multiplier", multiplier, "learning_rate")
        self.threshold = self.column("threshold")
        self.counts = {"updates": 0}
        self.warm_start_updates = form.warm_start_updates

    def raw(self, actor: MLP, states: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return n actions a state before their tanh, (K, n, B, k), of noise of that shape."""
        mean, log_std = split_gaussian(actor(states), LOG_STD_BOUNDS)
        return mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * noise

    def targets(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
        """Return the backup of actions of the target actor, (K, B)."""
        with torch.no_grad():
            actions = torch.tanh(self.raw(self.actor_target, batch.next_states, noise)).flatten(1, 2)
            return self.backup(batch, repeated(batch.next_states, noise.shape[1]), actions)

    def distances(self, batch: Batch, raw: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return the maximum mean discrepancy of raw actions (K, n, B, k) and those of latents (K, n B, 2 k), (K, B)."""
        with torch.no_grad():
            generated = self.decoder(state_action(repeated(batch.states, raw.shape[1]), latents)).view(raw.shape)
        return torch.sqrt(squared_mmd(generated, raw, self.form.kernel) + SMALL)

    def policy_values(self, batch: Batch, raw: torch.Tensor) -> torch.Tensor:
        """Return min_i mean_j Q_i(s, a_j), (K, B); 0 during the warm start."""
        if self.is_warm:
            return torch.zeros_like(batch.rewards)
        pairs = state_action(repeated(batch.states, raw.shape[1]), torch.tanh(raw).flatten(1, 2))
        return self.q(pairs, frozen=True).view(self.n_models, 2, raw.shape[1], -1).mean(dim=2).amin(dim=1)

    def actor_loss(self, distances: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return mean(multiplier MMD - min_i Q_i), (K,)."""
        return (self.log_multiplier.detach().exp() * distances - values).mean(dim=1)

    def multiplier_loss(self, distances: torch.Tensor) -> torch.Tensor:
        """Return -mean multiplier (MMD - threshold), (K,)."""
        return -(self.log_multiplier.exp() * (distances.detach() - self.threshold)).mean(dim=1)

    def _update_actor(self, batch: Batch) -> Tensors:
        n, size = self.form.n_match_samples, batch.shape[1]
        noise = self.normal(n, size, self.shape.n_actions).clamp(-MATCHING_NOISE_BOUND, MATCHING_NOISE_BOUND)
        raw = self.raw(self.actor, batch.states, noise)
        distances = self.distances(batch, raw, self.latents(n * size))
        loss = self.actor_loss(distances, self.policy_values(batch, raw))
        self.actor_adam.minimize(loss.sum())
        self.multiplier_adam.minimize(self.multiplier_loss(distances).sum())
        self.variables["log_multiplier"].constants["log_multiplier"].clamp_(*LOG_MULTIPLIER_BOUNDS)
        multiplier = self.log_multiplier.detach().exp()[:, 0]
        return {"actor_loss": loss.detach(), "mmd": distances.detach().mean(dim=1), "multiplier": multiplier}

    def _update(self, batch: Batch) -> Tensors:
        """Do one update."""
        vae = self._update_model(batch)
        noise = self.normal(self.shape.n_target_samples, batch.shape[1], self.shape.n_actions)
        q_loss = self._update_critics(batch, self.targets(batch, noise))
        metrics = self._update_actor(batch)
        self._update_targets()
        return {"loss": q_loss, "vae_loss": vae, **metrics}
