"""The update of critic-weighted imitation: AWAC and CRR."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ope.neural.history import Tensors
from ope.neural.transitions import Batch, Transitions
from ope.policies._heads import drawn, head_extras, logged_log_prob
from ope.policies._losses import masked_log_softmax, taken
from ope.policies._step import LearnerStep, repeated, state_action

# From advantages (K, B) and a setting (K, 1) to weights (K, B).
Weight = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class WeightedForm:
    """What tells critic-weighted learners apart, equal for all models that train as one.

    Parameters
    ----------
    weight : callable
        Weights of the logged actions from their advantages.
    n_samples : int
        Actions of the policy that its value is the mean over; discrete actions are summed exactly.
    log_std_bounds : tuple of two floats
        Of the policy of continuous actions.
    smooth_log_std : bool
        Whether it reaches them by a sigmoid, starting from their middle, instead of a clamp, from 0.
    """

    weight: Weight
    n_samples: int
    log_std_bounds: tuple[float, float]
    smooth_log_std: bool = False


class WeightedStep(LearnerStep):
    """Critics, actor, targets, in this order.

    Parameters
    ----------
    data : Transitions
    hidden : sequence of int
    form : WeightedForm
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, beta, tau, learning_rate.
    """

    policy_networks = ("actor", "q")

    def __init__(
        self,
        data: Transitions,
        hidden: Sequence[int],
        form: WeightedForm,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
    ) -> None:
        super().__init__(seeds, settings, data.rewards.device)
        n_states, n_actions = data.states.shape[1], data.n_actions
        self.form, self.discrete = form, data.discrete
        extras = head_extras(n_actions, discrete=data.discrete, smooth=form.smooth_log_std)
        self.actor = self.mlp("actor", (n_states, *hidden, n_actions), extras)
        self.actor_target = self.target("actor")
        critic = (n_states, *hidden, n_actions) if data.discrete else (n_states + n_actions, *hidden, 1)
        self.q, self.q_target = self.twins("q", critic)
        self.actor_adam = self.adam("actor", self.actor.parameters, "learning_rate")
        self.q_adam = self.adam("q", self.q.network.parameters, "learning_rate")
        self.gamma, self.tau, self.beta = self.column("gamma"), self.column("tau"), self.column("beta")

    # ---------------------------------------------------------------- critics

    def logged_q(self, batch: Batch) -> torch.Tensor:
        """Return the twins at the logged actions, (K, 2, B)."""
        if self.discrete:
            return taken(self.q(batch.states), batch.actions.unsqueeze(1).expand(-1, 2, -1))
        return self.q(state_action(batch.states, batch.actions)).squeeze(3)

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return r + gamma (1 - terminal) min_i E Q'_i(s', a'), a' of the target policy, (K, B)."""
        with torch.no_grad():
            if self.discrete:
                probs = masked_log_softmax(self.actor_target(batch.next_states), batch.next_action_mask).exp()
                value = (probs.unsqueeze(1) * self.q_target(batch.next_states)).sum(dim=3).amin(dim=1)
            else:
                noise = self.normal(batch.shape[1], batch.transitions.n_actions)
                actions = drawn(self.actor_target, batch.next_states, noise, self.form.log_std_bounds)
                value = self.q_target(state_action(batch.next_states, actions)).squeeze(3).amin(dim=1)
            return batch.rewards + self.gamma * batch.continues * value

    def q_loss(self, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
        """Return sum_i mean (Q_i(s, a) - y)^2, (K,)."""
        return batch.bellman_mean((self.logged_q(batch) - targets.unsqueeze(1)).square()).sum(dim=1)

    # ---------------------------------------------------------------- actor

    def advantages(self, batch: Batch) -> torch.Tensor:
        """Return min_i Q_i(s, a) - E_{a' ~ pi} min_i Q_i(s, a'), (K, B)."""
        with torch.no_grad():
            return self.logged_q(batch).amin(dim=1) - self._policy_values(batch)

    def _policy_values(self, batch: Batch) -> torch.Tensor:
        if self.discrete:
            probs = masked_log_softmax(self.actor(batch.states), batch.action_mask).exp()
            return (probs * self.q(batch.states).amin(dim=1)).sum(dim=2)
        n, states = self.form.n_samples, repeated(batch.states, self.form.n_samples)
        noise = self.normal(states.shape[1], batch.transitions.n_actions)
        actions = drawn(self.actor, states, noise, self.form.log_std_bounds)
        return self.q(state_action(states, actions)).view(self.n_models, 2, n, -1).amin(dim=1).mean(dim=1)

    def actor_loss(self, batch: Batch, advantages: torch.Tensor) -> torch.Tensor:
        """Return -mean weight(A) log pi(a|s), (K,)."""
        weights = self.form.weight(advantages, self.beta)
        return -(weights * logged_log_prob(self.actor, batch, self.form.log_std_bounds)).mean(dim=1)

    def _update(self, batch: Batch) -> Tensors:
        """Do one update."""
        q_loss = self.q_loss(batch, self.targets(batch))
        self.q_adam.minimize(q_loss.sum())
        advantages = self.advantages(batch)
        actor_loss = self.actor_loss(batch, advantages)
        self.actor_adam.minimize(actor_loss.sum())
        self.q_target.lerp_from(self.q, self.tau)
        self.actor_target.parameters.lerp_from(self.actor.parameters, self.tau)
        metrics = {"loss": q_loss, "actor_loss": actor_loss, "advantage": advantages.mean(dim=1)}
        return {name: value.detach() for name, value in metrics.items()}
