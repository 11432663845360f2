"""Q-learning over discrete actions: double DQN, and the conservative penalty on top of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from ope.neural.history import Tensors
from ope.neural.transitions import Batch
from ope.policies._losses import masked, taken
from ope.policies._step import LearnerStep


def conservative_gap(q: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return log sum_a exp Q(s, a) - Q(s, a_logged) over the available actions, (K, B).

    Examples
    --------
    >>> conservative_gap(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.int64), None)
    tensor([[0.6931]])
    """
    return torch.logsumexp(masked(q, mask), dim=-1) - taken(q, actions)


def bellman_loss(errors: torch.Tensor, *, huber: bool) -> torch.Tensor:
    """Return half the square of each error, or beyond an error of 1 its size minus 1/2.

    Examples
    --------
    >>> bellman_loss(torch.tensor([0.5, 3.0]), huber=True), bellman_loss(torch.tensor([3.0]), huber=False)
    (tensor([0.1250, 2.5000]), tensor([4.5000]))
    """
    if huber:
        return functional.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none")
    return 0.5 * errors.square()


def greedy(q: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the policy that takes the best available action: probabilities 0 and 1, float64.

    Examples
    --------
    >>> greedy(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]]))
    tensor([[1., 0.]], dtype=torch.float64)
    """
    return functional.one_hot(masked(q, mask).argmax(dim=-1), q.shape[-1]).double()


class DiscreteQStep(LearnerStep):
    """One step of double Q-learning with a conservative penalty of weight alpha, for K models.

    Parameters
    ----------
    sizes : sequence of int
        Widths of the network, input and output included.
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, alpha, tau, learning_rate.
    device : torch.device
    huber : bool
        Whether the Bellman loss is Huber's instead of half the square.
    """

    policy_networks = ("q",)

    def __init__(
        self,
        sizes: Sequence[int],
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
        *,
        huber: bool,
    ) -> None:
        super().__init__(seeds, settings, device)
        self.huber = huber
        self.q = self.mlp("q", sizes)
        self.q_target = self.target("q")
        self.optimizer = self.adam("q", self.q.parameters, "learning_rate")
        self.gamma, self.alpha, self.tau = self.column("gamma"), self.column("alpha")[:, 0], self.column("tau")

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return r + gamma Q'(s', argmax_a' Q(s', a')): chosen by the online network, valued by the target, (K, B)."""
        with torch.no_grad():
            best = masked(self.q(batch.next_states), batch.next_action_mask).argmax(dim=-1)
            value = taken(self.q_target(batch.next_states), best)
            return batch.rewards + self.gamma * batch.continues * value

    def losses(self, batch: Batch) -> Tensors:
        """Return the loss and its parts, each (K,)."""
        q = self.q(batch.states)
        logged = taken(q, batch.actions)
        td_loss = batch.bellman_mean(bellman_loss(logged - self.targets(batch), huber=self.huber))
        penalty = conservative_gap(q, batch.actions, batch.action_mask).mean(dim=1)
        return {
            "loss": td_loss + self.alpha * penalty,
            "td_loss": td_loss,
            "penalty": penalty,
            "q_mean": logged.mean(dim=1),
        }

    def _update(self, batch: Batch) -> Tensors:
        """Take one gradient step, then one Polyak step."""
        losses = self.losses(batch)
        self.optimizer.minimize(losses["loss"].sum())
        self.q_target.parameters.lerp_from(self.q.parameters, self.tau)
        return {name: value.detach() for name, value in losses.items()}
