"""The update of the uncertainty-weighted actor critic: TD3+BC whose critics doubt themselves by dropout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ope.neural.ensemble import Ensemble
from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._step import state_action
from ope.policies.td3bc import TD3BCStep


def thinned(network: MLP, x: torch.Tensor, masks: Sequence[torch.Tensor], *, frozen: bool = False) -> torch.Tensor:
    """Evaluate networks with hidden units multiplied by masks.

    Parameters
    ----------
    network : MLP
        Of M models.
    x : Tensor of shape (M, B, in)
    masks : sequence of Tensor of shape (M, T, B or 1, width)
        Of each hidden layer; 1 row serves all B.
    frozen : bool
        Whether to differentiate by the input only.

    Returns
    -------
    Tensor of shape (M, T, B, out)

    Examples
    --------
    >>> network = MLP([3, 8, 1], n_models=2)
    >>> thinned(network, torch.zeros(2, 5, 3), [torch.ones(2, 4, 1, 8)]).shape
    torch.Size([2, 4, 5, 1])
    """
    tensors = network.parameters.constants if frozen else network.parameters.views

    def linear(h: torch.Tensor, layer: int) -> torch.Tensor:
        return torch.baddbmm(tensors[f"bias{layer}"], h, tensors[f"weight{layer}"])

    def sample(t: int) -> torch.Tensor:
        h = first * masks[0][:, t]
        for layer, mask in enumerate(masks[1:], start=1):
            h = linear(h, layer).relu_() * mask[:, t]
        return linear(h, len(masks))

    # No unit is dropped before the first layer. One sample after another: together they would leave the cache.
    first = linear(x, 0).relu_()
    return torch.stack([sample(t) for t in range(masks[0].shape[1])], dim=1)


def doubt_weights(variance: torch.Tensor, beta: torch.Tensor | float, max_weight: torch.Tensor | float) -> torch.Tensor:
    """Return min(beta / variance, max_weight).

    Examples
    --------
    >>> doubt_weights(torch.tensor([0.0, 2.0]), 0.5, 1.5)
    tensor([1.5000, 0.2500])
    """
    return torch.minimum(beta / variance, torch.as_tensor(max_weight, device=variance.device))


@dataclass(frozen=True)
class UWACForm:
    """What is equal for all models that train as one.

    Parameters
    ----------
    n_states, n_actions : int
        Dimensions.
    hidden : sequence of int
    policy_delay : int
    n_samples : int
        Thinned networks by which the variance is estimated.
    """

    n_states: int
    n_actions: int
    hidden: Sequence[int]
    policy_delay: int
    n_samples: int


class UWACStep(TD3BCStep):
    """Weighted critics at every update; actor and targets at every `policy_delay`-th.

    Parameters
    ----------
    form : UWACForm
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        Those of TD3+BC, beta, max_weight, dropout_rate.
    device : torch.device
    """

    def __init__(
        self, form: UWACForm, seeds: Sequence[int], settings: Mapping[str, Sequence[float]], device: torch.device
    ) -> None:
        dimensions = (form.n_states, form.n_actions, form.hidden, form.policy_delay)
        super().__init__(*dimensions, seeds, settings, device)
        self.form = form
        self.beta, self.max_weight = self.column("beta"), self.column("max_weight")
        self.rate = self.column("dropout_rate")

    # ---------------------------------------------------------------- dropout

    def masks(self, n_samples: int, n_rows: int) -> list[torch.Tensor]:
        """Draw masks (2 K, n_samples, n_rows, width) of each hidden layer: 0 for dropped units, 1 / (1 - rate) for others."""
        rate = self.rate.view(-1, 1, 1, 1, 1)
        draws = (self._noise.uniform((2, n_samples, n_rows, width)) for width in self.form.hidden)
        return [((draw >= rate).float() / (1.0 - rate)).flatten(0, 1) for draw in draws]

    def dropped(
        self, q: Ensemble, pairs: torch.Tensor, masks: Sequence[torch.Tensor], *, frozen: bool = False
    ) -> torch.Tensor:
        """Return the values of T thinned networks for each twin, (K, 2, T, B)."""
        shared = pairs.unsqueeze(1).expand(-1, 2, -1, -1).flatten(0, 1)
        values = thinned(q.network, shared, masks, frozen=frozen)
        return values.view(-1, 2, *values.shape[1:3])

    def weights(self, values: torch.Tensor) -> torch.Tensor:
        """Return min(beta / Var, max_weight), Var the twins' variances over (K, 2, T, B) together, (K, B)."""
        return doubt_weights(values.detach().var(dim=2).sum(dim=1), self.beta, self.max_weight)

    # ---------------------------------------------------------------- losses

    def weighted_targets(
        self, batch: Batch, noise: torch.Tensor, masks: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return r + gamma (1 - terminal) min_i mean_t Q'_it(s', a'), and the weight of Var[Q'(s', a')], each (K, B)."""
        with torch.no_grad():
            values = self.dropped(self.q_target, self.next_pairs(batch, noise), masks)
            targets = batch.rewards + self.gamma * batch.continues * values.mean(dim=2).amin(dim=1)
            return targets, self.weights(values)

    def weighted_q_loss(
        self, batch: Batch, targets: torch.Tensor, weights: torch.Tensor, masks: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return sum_i mean weight (Q_i(s, a) - y)^2 with dropout, (K,)."""
        q = self.dropped(self.q, state_action(batch.states, batch.actions), masks).squeeze(2)
        squares = (q - targets.unsqueeze(1)).square() * weights.unsqueeze(1)
        return batch.bellman_mean(squares).sum(dim=1)

    def critic_losses(self, batch: Batch) -> Tensors:
        """Return the loss of the critics and the mean weight, each (K,)."""
        noise, per_row = self.normal(*batch.actions.shape[1:]), self.masks(1, batch.shape[1])
        targets, weights = self.weighted_targets(batch, noise, self.masks(self.form.n_samples, 1))
        return {"loss": self.weighted_q_loss(batch, targets, weights, per_row), "weight": weights.mean(dim=1)}

    def actor_loss(self, batch: Batch) -> torch.Tensor:
        """Return -lambda mean w Q(s, pi(s)) + mean (pi(s) - a)^2, lambda = alpha / mean |w Q|, (K,).

        Q is min_i mean_t Q_it, and w the weight of Var[Q(s, pi(s))].
        """
        actions = torch.tanh(self.actor(batch.states))
        masks = self.masks(self.form.n_samples, 1)
        values = self.dropped(self.q, state_action(batch.states, actions), masks, frozen=True)
        q = self.weights(values) * values.mean(dim=2).amin(dim=1)
        scale = self.alpha / q.detach().abs().mean(dim=1)
        return -scale * q.mean(dim=1) + (actions - batch.actions).square().mean(dim=(1, 2))
