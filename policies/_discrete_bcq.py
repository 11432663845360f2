"""The update of batch-constrained Q-learning for discrete actions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch.nn import functional

from ope.neural.generators import ModelGenerators
from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.optimizer import FlatAdam
from ope.neural.training import TrainingStep
from ope.neural.transitions import Batch
from ope.policies._losses import masked_log_softmax


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


class BCQStep(TrainingStep):
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
        n_models = len(seeds)
        super().__init__(n_models)
        generators = ModelGenerators(seeds, "weights").generators
        self.q = MLP(sizes, n_models, device=device).initialize(generators)
        self.imitation = MLP(sizes, n_models, device=device).initialize(generators)
        self.q_target = self.q.copy()
        self.networks = {"q": self.q, "imitation": self.imitation, "q_target": self.q_target}
        self.optimizer = FlatAdam(
            [self.q.parameters, self.imitation.parameters], settings["learning_rate"], [0.0] * n_models
        )
        self.optimizers = {"all": self.optimizer}

        def column(name: str) -> torch.Tensor:
            return torch.tensor(settings[name], dtype=torch.float32, device=device).unsqueeze(1)

        self.gamma, self.tau = column("gamma"), column("tau")
        self.log_threshold = column("threshold").log().unsqueeze(2)
        self.logit_penalty = column("logit_penalty").squeeze(1)

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

    def phase(self) -> Hashable:
        """Return the one form that updates have."""
        return ()

    def _update(self, batch: Batch) -> Tensors:
        """Take one gradient step, then one Polyak step."""
        losses = self.losses(batch)
        self.optimizer.minimize(losses["loss"].sum())
        self.q_target.parameters.lerp_from(self.q.parameters, self.tau)
        return {name: value.detach() for name, value in losses.items()}
