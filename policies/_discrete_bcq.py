"""The update of batch-constrained Q-learning for discrete actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from ope.neural.history import Tensors
from ope.neural.transitions import Batch
from ope.policies._losses import masked_log_softmax
from ope.policies._step import LearnerStep

# The largest logarithm of a threshold below 1.
LEAST = -1e-30


def constrained_argmax(q: torch.Tensor, log_prob: torch.Tensor, log_threshold: torch.Tensor | float) -> torch.Tensor:
    """Return the best action among those that the behaviour takes often enough.

    Parameters
    ----------
    q, log_prob : Tensor of shape (..., n_actions)
        Action values, and the log probabilities G of the imitation network.
    log_threshold : Tensor or float
        Logarithm of tau.

    Returns
    -------
    Tensor of shape (...)

    Notes
    -----
    argmax_a Q(s, a) over {a: G(a|s) / max_b G(b|s) > tau}. The most probable action always belongs to the set.

    Examples
    --------
    >>> q, g = torch.tensor([[1.0, 9.0]]), torch.tensor([[0.9, 0.1]])
    >>> constrained_argmax(q, g.log(), math.log(0.3)), constrained_argmax(q, g.log(), math.log(0.05))
    (tensor([0]), tensor([1]))
    """
    allowed = log_prob - log_prob.amax(dim=-1, keepdim=True) > log_threshold
    return q.masked_fill(~allowed, -math.inf).argmax(dim=-1)


def log_threshold(tau: float) -> float:
    """Return log tau, a little below 0 where single precision has it 0: the most probable action stays in the set.

    Examples
    --------
    >>> log_threshold(1.0 - 1e-9) < 0.0, log_threshold(0.0)
    (True, -inf)
    """
    return min(math.log(tau), LEAST) if tau > 0.0 else -math.inf


class BCQStep(LearnerStep):
    """The update of discrete BCQ for K models.

    Parameters
    ----------
    sizes : sequence of int
        Widths of each network, input and output included.
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, threshold, tau, logit_penalty, learning_rate of each model.
    device : torch.device
    """

    policy_networks = ("q", "imitation")

    def __init__(
        self, sizes: Sequence[int], seeds: Sequence[int], settings: Mapping[str, Sequence[float]], device: torch.device
    ) -> None:
        super().__init__(seeds, settings, device)
        self.q, self.imitation = self.mlp("q", sizes), self.mlp("imitation", sizes)
        self.q_target = self.target("q")
        self.optimizer = self.adam("all", [self.q.parameters, self.imitation.parameters], "learning_rate")
        self.gamma, self.tau = self.column("gamma"), self.column("tau")
        bounds = [log_threshold(tau) for tau in settings["threshold"]]
        self.log_threshold = torch.tensor(bounds, dtype=torch.float32, device=device).view(-1, 1, 1)
        self.logit_penalty = self.column("logit_penalty")[:, 0]

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return r + gamma Q'(s', a'), a' the constrained argmax of the online networks: (K, B)."""
        with torch.no_grad():
            log_prob = masked_log_softmax(self.imitation(batch.next_states), batch.next_action_mask)
            chosen = constrained_argmax(self.q(batch.next_states), log_prob, self.log_threshold)
            value = self.q_target(batch.next_states).gather(2, chosen.unsqueeze(2)).squeeze(2)
            return batch.rewards + self.gamma * batch.continues * value

    def losses(self, batch: Batch) -> Tensors:
        """Return the three parts of the loss and their sum, each (K,)."""
        taken = batch.actions.unsqueeze(2)
        q = self.q(batch.states).gather(2, taken).squeeze(2)
        q_loss = batch.bellman_mean(functional.smooth_l1_loss(q, self.targets(batch), reduction="none"))
        logits = self.imitation(batch.states)
        log_prob = masked_log_softmax(logits, batch.action_mask)
        imitation_loss = -log_prob.gather(2, taken).squeeze(2).mean(dim=1)
        penalty = self.logit_penalty * logits.square().mean(dim=(1, 2))
        return {
            "loss": q_loss + imitation_loss + penalty,
            "q_loss": q_loss,
            "imitation_loss": imitation_loss,
            "logit_penalty": penalty,
            "q_mean": q.mean(dim=1),
        }

    def _update(self, batch: Batch) -> Tensors:
        """Take one gradient step, then one Polyak step."""
        losses = self.losses(batch)
        self.optimizer.minimize(losses["loss"].sum())
        self.q_target.parameters.lerp_from(self.q.parameters, self.tau)
        return {name: value.detach() for name, value in losses.items()}
