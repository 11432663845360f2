"""What learners on soft actor-critic share: a squashed Gaussian actor, an ensemble of critics, a temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._losses import split_gaussian, squashed_draw
from ope.policies._step import LearnerStep, critic_loss, repeated, state_action


@dataclass(frozen=True)
class ActorCriticShape:
    """The networks, equal for all models that train as one.

    Parameters
    ----------
    n_states, n_actions : int
        Dimensions.
    hidden, actor_hidden : tuple of int
        Widths of the hidden layers of the critics, and of the actor.
    n_critics : int
    """

    n_states: int
    n_actions: int
    hidden: tuple[int, ...]
    actor_hidden: tuple[int, ...]
    n_critics: int = 2

    @property
    def actor_sizes(self) -> tuple[int, ...]:
        """Sizes of a network from states to means and log standard deviations."""
        return (self.n_states, *self.actor_hidden, 2 * self.n_actions)


class SoftActorCriticStep(LearnerStep):
    """Networks, targets and optimisers of soft actor-critic; subclasses say what an update is.

    Parameters
    ----------
    shape : ActorCriticShape
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, tau, learning_rate, actor_learning_rate, and what a subclass needs.
    device : torch.device
    """

    policy_networks = ("actor", "q")
    log_std_bounds: tuple[float, float] = (-20.0, 2.0)
    temperature_rate = "actor_learning_rate"
    # Whether log standard deviations reach their bounds by a tanh instead of being clamped.
    smooth_log_std = False

    def __init__(
        self,
        shape: ActorCriticShape,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
    ) -> None:
        super().__init__(seeds, settings, device)
        self.shape = shape
        self.actor = self.mlp("actor", shape.actor_sizes)
        self.q, self.q_target = self.twins("q", (shape.n_states + shape.n_actions, *shape.hidden, 1), shape.n_critics)
        temperature = self.variable("log_temperature")
        self.log_temperature = temperature.views["log_temperature"]
        self.actor_adam = self.adam("actor", self.actor.parameters, "actor_learning_rate")
        self.critic_adam = self.adam("critic", self.q.network.parameters, "learning_rate")
        self.temperature_adam = self.adam("temperature", temperature, self.temperature_rate)
        self.gamma, self.tau = self.column("gamma"), self.column("tau")

    @property
    def temperature(self) -> torch.Tensor:
        """The weight of the entropy, (K, 1), cut off from differentiation."""
        return self.log_temperature.detach().exp()

    @property
    def target_entropy(self) -> float:
        """Minus the number of dimensions of the actions."""
        return -float(self.shape.n_actions)

    def gaussian(
        self, network: MLP, states: torch.Tensor, *, frozen: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log standard deviation before the tanh, each (K, B, k)."""
        return split_gaussian(network(states, frozen=frozen), self.log_std_bounds, smooth=self.smooth_log_std)

    def draw(self, states: torch.Tensor, n: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw n actions a state, (K, n B, k), sample after sample, and their log densities (K, n B) from the policy."""
        mean, log_std = (repeated(part, n) for part in self.gaussian(self.actor, states))
        return squashed_draw(mean, log_std, self.normal(*mean.shape[1:]))

    def backup(self, batch: Batch, values: torch.Tensor) -> torch.Tensor:
        """Return r + gamma (1 - terminal) v, (K, B)."""
        return batch.rewards + self.gamma * batch.continues * values

    def q_loss(self, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
        """Return sum_i mean (Q_i(s, a) - y)^2, (K,)."""
        return critic_loss(self.q, batch, targets)

    def actor_loss(self, batch: Batch, actions: torch.Tensor, log_prob: torch.Tensor) -> torch.Tensor:
        """Return mean(temperature log pi - min_i Q_i(s, a)), (K,)."""
        value = self.q(state_action(batch.states, actions), frozen=True).squeeze(3).amin(dim=1)
        return (self.temperature * log_prob - value).mean(dim=1)
