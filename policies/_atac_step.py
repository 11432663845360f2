"""The update of adversarially trained actor critic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._losses import split_gaussian, squashed_draw, squashed_log_prob, temperature_loss
from ope.policies._step import LearnerStep, state_action

LOG_STD_BOUNDS = (-5.0, 2.0)
# Share of the residual with the target network in the Bellman loss; the rest has the critic's own next value.
TARGET_SHARE = 0.5


def normalized_sum(loss: torch.Tensor, regularizer: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return loss / w + regularizer where w > 1, else loss + w regularizer: gradients stay of the order of 1.

    Examples
    --------
    >>> one = torch.ones(2)
    >>> normalized_sum(one, one, torch.tensor([4.0, 0.5]))
    tensor([1.2500, 1.5000])
    """
    return torch.where(weight > 1.0, loss / weight.clamp(min=1.0) + regularizer, loss + weight * regularizer)


def project(network: MLP, limit: float) -> None:
    """Scale every weight matrix down to a Frobenius norm of at most `limit`, in place.

    Examples
    --------
    >>> network = MLP([2, 2], n_models=1)
    >>> _ = network.weights[0].fill_(3.0)
    >>> project(network, 3.0)
    >>> network.weights[0]
    tensor([[[1.5000, 1.5000],
             [1.5000, 1.5000]]])
    """
    for weight in network.weights:
        norm = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
        weight.mul_((limit / norm).clamp(max=1.0))


@dataclass(frozen=True)
class Game:
    """What is equal for all models that train as one.

    Parameters
    ----------
    n_states, n_actions : int
        Dimensions.
    hidden : tuple of int
    warm_start_updates : int
    max_norm : float
        Of each weight matrix of the critics.
    reward_range : tuple of two floats
        min(-0, smallest) and max(0, largest) reward: the sign of a zero says which bound it is.
    """

    n_states: int
    n_actions: int
    hidden: tuple[int, ...]
    warm_start_updates: int
    max_norm: float
    reward_range: tuple[float, float]


class ATACStep(LearnerStep):
    """Critics, projection, targets, temperature, actor, in this order; a warm start of cloning and Bellman losses.

    Parameters
    ----------
    game : Game
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, beta, tau, learning_rate, actor_learning_rate.
    device : torch.device
    """

    policy_networks = ("actor", "q")

    def __init__(
        self, game: Game, seeds: Sequence[int], settings: Mapping[str, Sequence[float]], device: torch.device
    ) -> None:
        super().__init__(seeds, settings, device)
        self.game = game
        self.actor = self.mlp("actor", (game.n_states, *game.hidden, 2 * game.n_actions))
        self.q, self.q_target = self.twins("q", (game.n_states + game.n_actions, *game.hidden, 1))
        temperature = self.variable("log_temperature")
        self.log_temperature = temperature.views["log_temperature"]
        # The game begins with fresh moments: those of the warm start belong to other losses.
        self.warm_actor_adam = self.adam("warm_actor", self.actor.parameters, "learning_rate")
        self.warm_critic_adam = self.adam("warm_critic", self.q.network.parameters, "learning_rate")
        self.actor_adam = self.adam("actor", self.actor.parameters, "actor_learning_rate")
        self.critic_adam = self.adam("critic", self.q.network.parameters, "learning_rate")
        self.temperature_adam = self.adam("temperature", temperature, "learning_rate")
        self.gamma, self.tau, self.beta = self.column("gamma"), self.column("tau"), self.column("beta")
        self.low, self.high = (self._bound(reward) for reward in game.reward_range)
        self.counts = {"updates": 0}
        self.warm_start_updates = game.warm_start_updates

    def _bound(self, reward: float) -> torch.Tensor:
        """Return reward / (1 - gamma), (K, 1): the value of getting it for ever; no bound at gamma 1."""
        remaining = 1.0 - self.gamma
        unbounded = torch.full_like(remaining, math.copysign(math.inf, reward))
        return torch.where(remaining > 0.0, reward / remaining, unbounded)

    # ---------------------------------------------------------------- critics

    def draw(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw actions (K, B, k) and their log densities (K, B) from the policy."""
        mean, log_std = split_gaussian(self.actor(states), LOG_STD_BOUNDS)
        return squashed_draw(mean, log_std, self.normal(*mean.shape[1:]))

    def backup(self, batch: Batch, values: torch.Tensor) -> torch.Tensor:
        """Return r + gamma (1 - terminal) v clipped to [Vmin, Vmax], for values (K, E, B)."""
        rewards, follows = batch.rewards.unsqueeze(1), (self.gamma * batch.continues).unsqueeze(1)
        return torch.clamp(rewards + follows * values, self.low.unsqueeze(2), self.high.unsqueeze(2))

    def critic_losses(self, batch: Batch, actions: torch.Tensor, next_actions: torch.Tensor) -> Tensors:
        """Return of each twin, (K, 2): E[f(s, pi) - f(s, a)] and .5 MSE(f, y(target)) + .5 MSE(f, y(f)).

        The second half differentiates through f(s', pi) as well.
        """
        pairs = torch.cat(
            [
                state_action(batch.states, batch.actions),
                state_action(batch.states, actions),
                state_action(batch.next_states, next_actions),
            ],
            dim=1,
        )
        logged, chosen, following = self.q(pairs).squeeze(3).chunk(3, dim=2)
        with torch.no_grad():
            value = self.q_target(state_action(batch.next_states, next_actions)).squeeze(3).amin(dim=1, keepdim=True)
        with_target = batch.bellman_mean((logged - self.backup(batch, value)).square())
        with_itself = batch.bellman_mean((logged - self.backup(batch, following)).square())
        return {
            "pessimism": (chosen - logged).mean(dim=2),
            "bellman": TARGET_SHARE * with_target + (1.0 - TARGET_SHARE) * with_itself,
            "q_mean": logged.mean(dim=2),
        }

    def _update_critics(self, batch: Batch, actions: torch.Tensor, *, warm: bool) -> Tensors:
        with torch.no_grad():
            next_actions, _ = self.draw(batch.next_states)
        parts = self.critic_losses(batch, actions.detach(), next_actions)
        game = parts["bellman"] if warm else normalized_sum(parts["pessimism"], parts["bellman"], self.beta)
        (self.warm_critic_adam if warm else self.critic_adam).minimize(game.sum())
        project(self.q.network, self.game.max_norm)
        self.q_target.lerp_from(self.q, self.tau)
        return {"loss": game.sum(dim=1), **{name: value.mean(dim=1) for name, value in parts.items()}}

    # ---------------------------------------------------------------- actor

    def cloning_loss(self, batch: Batch) -> torch.Tensor:
        """Return -mean log pi(a|s) of the logged actions, (K,)."""
        mean, log_std = split_gaussian(self.actor(batch.states), LOG_STD_BOUNDS)
        return -squashed_log_prob(batch.actions, mean, log_std).mean(dim=1)

    def actor_loss(self, batch: Batch, actions: torch.Tensor, log_prob: torch.Tensor) -> torch.Tensor:
        """Return the normalised sum of -mean f_1(s, a) and mean log pi(a|s), weighed by the temperature, (K,)."""
        value = self.q.first(state_action(batch.states, actions)).mean(dim=(1, 2))
        return normalized_sum(-value, log_prob.mean(dim=1), self.log_temperature.detach().exp()[:, 0])

    def _update_actor(self, batch: Batch, actions: torch.Tensor, log_prob: torch.Tensor, *, warm: bool) -> Tensors:
        if warm:
            loss = self.cloning_loss(batch)
            self.warm_actor_adam.minimize(loss.sum())
        else:
            entropy_loss = temperature_loss(self.log_temperature, log_prob, -float(self.game.n_actions))
            self.temperature_adam.minimize(entropy_loss.sum())
            loss = self.actor_loss(batch, actions, log_prob)
            self.actor_adam.minimize(loss.sum())
        return {"actor_loss": loss, "log_prob": log_prob.mean(dim=1)}

    def _update(self, batch: Batch) -> Tensors:
        """Do one update."""
        warm = self.is_warm
        actions, log_prob = self.draw(batch.states)
        metrics = self._update_critics(batch, actions, warm=warm)
        metrics |= self._update_actor(batch, actions, log_prob, warm=warm)
        return {name: value.detach() for name, value in metrics.items()}
