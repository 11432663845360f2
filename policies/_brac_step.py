"""The update of behaviour-regularised actor-critic, and the cloning of the behaviour before it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ope.neural.history import Tensors
from ope.neural.transitions import Batch
from ope.policies._continuous_bcq import soft_minimum
from ope.policies._divergences import Kernel, squared_mmd
from ope.policies._losses import squashed_draw, squashed_log_prob, temperature_loss
from ope.policies._sac_step import ActorCriticShape, SoftActorCriticStep
from ope.policies._step import state_action

# Actions whose density under the clone is asked for lie this far within their range, logged ones too.
CLIP = 1e-3


@dataclass(frozen=True)
class BRACForm:
    """What is equal for all models that train as one, beside the networks.

    Parameters
    ----------
    kernel : Kernel or None
        Of the maximum mean discrepancy; None is the KL divergence.
    n_divergence_samples : int
    value_penalty : bool
    temperature : float or None
        None learns it.
    behavior_updates, warm_start_updates : int
    """

    kernel: Kernel | None
    n_divergence_samples: int
    value_penalty: bool
    temperature: float | None
    behavior_updates: int
    warm_start_updates: int


class BRACStep(SoftActorCriticStep):
    """First the clone of the behaviour alone; then critics, actor, targets, in this order.

    Parameters
    ----------
    form : BRACForm
    shape : ActorCriticShape
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, alpha, tau, min_weight, learning_rate, actor_learning_rate, behavior_learning_rate.
    device : torch.device
    """

    log_std_bounds = (-5.0, 0.0)
    smooth_log_std = True
    temperature_rate = "learning_rate"

    def __init__(
        self,
        form: BRACForm,
        shape: ActorCriticShape,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
    ) -> None:
        super().__init__(shape, seeds, settings, device)
        self.form = form
        self.behavior = self.mlp("behavior", shape.actor_sizes)
        entropy = self.variable("behavior_entropy")
        self.behavior_entropy = entropy.views["behavior_entropy"]
        entropy.constants["behavior_entropy"].fill_(1.0)
        if form.temperature is not None:
            log_temperature = math.log(form.temperature) if form.temperature > 0.0 else -math.inf
            self.variables["log_temperature"].constants["log_temperature"].fill_(log_temperature)
        self.behavior_adam = self.adam("behavior", self.behavior.parameters, "behavior_learning_rate")
        self.entropy_adam = self.adam("behavior_entropy", entropy, "behavior_learning_rate")
        self.alpha, self.min_weight = self.column("alpha"), self.column("min_weight")
        self.counts = {"updates": 0}

    # ---------------------------------------------------------------- the behaviour

    def cloning_loss(self, batch: Batch, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean(weight log b(a_drawn|s) - log b(a|s)), (K,), and log b of the draws, (K, B)."""
        mean, log_std = self.gaussian(self.behavior, batch.states)
        _, log_prob = squashed_draw(mean, log_std, noise)
        logged = squashed_log_prob(batch.actions.clamp(-1.0 + CLIP, 1.0 - CLIP), mean, log_std)
        return (self.behavior_entropy.detach() * log_prob - logged).mean(dim=1), log_prob

    def _update_behavior(self, batch: Batch) -> Tensors:
        loss, log_prob = self.cloning_loss(batch, self.normal(*batch.actions.shape[1:]))
        self.behavior_adam.minimize(loss.sum())
        self.entropy_adam.minimize(temperature_loss(self.behavior_entropy, log_prob, self.target_entropy).sum())
        self.variables["behavior_entropy"].constants["behavior_entropy"].clamp_(min=0.0)
        # The loss of critics that know nothing: what the loop takes for the first one when it looks for divergence.
        bellman = 2.0 * batch.bellman_mean(batch.rewards.square())
        return {"loss": bellman, "behavior_loss": loss}

    # ---------------------------------------------------------------- divergence

    def draws(self, states: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw n actions a state (K, n, B, k) and their log densities (K, n, B) from the policy."""
        (actions, log_prob), shape = self.draw(states, n), (self.n_models, n, states.shape[1])
        return actions.view(*shape, -1), log_prob.view(shape)

    def divergence(self, states: torch.Tensor, actions: torch.Tensor, log_prob: torch.Tensor) -> torch.Tensor:
        """Return the estimated KL divergence or squared MMD of policy and behaviour in each state, (K, B)."""
        mean, log_std = (part.unsqueeze(1) for part in self.gaussian(self.behavior, states, frozen=True))
        if self.form.kernel is None:
            points = actions.clamp(-1.0 + CLIP, 1.0 - CLIP)
            return (log_prob - squashed_log_prob(points, mean, log_std)).mean(dim=1)
        others, _ = squashed_draw(mean, log_std, self.normal(*actions.shape[1:]))
        return squared_mmd(actions, others, self.form.kernel)

    # ---------------------------------------------------------------- critics and actor

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return r + gamma (1 - terminal) (Q'(s', a') - temperature log pi - alpha D(s')), (K, B); D with `value_penalty`."""
        n = self.form.n_divergence_samples if self.form.value_penalty else 0
        with torch.no_grad():
            actions, log_prob = self.draws(batch.next_states, 1 + n)
            twins = self.q_target(state_action(batch.next_states, actions[:, 0])).squeeze(3)
            value = soft_minimum(twins, self.min_weight) - self.temperature * log_prob[:, 0]
            if self.form.value_penalty:
                value -= self.alpha * self.divergence(batch.next_states, actions[:, 1:], log_prob[:, 1:])
            return self.backup(batch, value)

    def actor_losses(self, batch: Batch, actions: torch.Tensor, log_prob: torch.Tensor) -> Tensors:
        """Return mean(temperature log pi + alpha D - Q(s, a)), Q left out in the warm start, and mean D: (K,)."""
        divergence = self.divergence(batch.states, actions[:, 1:], log_prob[:, 1:])
        loss = self.temperature * log_prob[:, 0] + self.alpha * divergence
        if self.phase() == "policy":
            twins = self.q(state_action(batch.states, actions[:, 0]), frozen=True).squeeze(3)
            loss = loss - soft_minimum(twins, self.min_weight)
        return {"actor_loss": loss.mean(dim=1), "divergence": divergence.mean(dim=1)}

    def _update_actor_and_critics(self, batch: Batch) -> Tensors:
        loss = self.q_loss(batch, self.targets(batch))
        self.critic_adam.minimize(loss.sum())
        actions, log_prob = self.draws(batch.states, 1 + self.form.n_divergence_samples)
        losses = self.actor_losses(batch, actions, log_prob)
        self.actor_adam.minimize(losses["actor_loss"].sum())
        if self.form.temperature is None:
            entropy_loss = temperature_loss(self.log_temperature, log_prob[:, 0], self.target_entropy)
            self.temperature_adam.minimize(entropy_loss.sum())
        self.q_target.lerp_from(self.q, self.tau)
        return {"loss": loss, **losses}

    def phase(self) -> Hashable:
        """Return what learns in this update: the model of the behaviour, the critic with an actor that stays near, or all."""
        done, first = self.counts["updates"], self.form.behavior_updates
        if done <= first:
            return "behavior"
        return "warm start" if done <= first + self.form.warm_start_updates else "policy"

    def _update(self, batch: Batch) -> Tensors:
        """Do one update; metrics of the phase that it does not belong to are 0."""
        found = self._update_behavior(batch) if self.phase() == "behavior" else self._update_actor_and_critics(batch)
        nothing = torch.zeros_like(found["loss"])
        names = ("loss", "behavior_loss", "actor_loss", "divergence")
        return {name: found.get(name, nothing).detach() for name in names}
