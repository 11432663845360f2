"""Q networks of K candidates x R members: values, features and the last layer. Called by neural fitted Q evaluation.

Models are ordered by candidate, then by member: model k R + r. Members see rows of their own, candidates share them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ope.estimators._neural_fqe_problem import Problem
from ope.neural.networks import MLP

MAX_BLOCK_FEATURES = 1100


@dataclass(frozen=True, eq=False)
class Seen:
    """What networks look at in given states: inputs (M, B J, d), and the weights of J nodes and of A outputs.

    Discrete actions: J = 1, and `outputs` (M, B, A) holds probabilities. Continuous ones: A = 1, and `nodes`, (M, 1, J),
    holds the weights of nodes.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor | None
    nodes: torch.Tensor | None

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """Average over the nodes: (M, B J, q) to (M, B, q)."""
        if self.nodes is None:
            return values
        split = values.view(len(values), -1, self.nodes.shape[2], values.shape[2])
        return (split * self.nodes[..., None]).sum(dim=2)


class QNetworks:
    """K R networks on a problem.

    Parameters
    ----------
    problem : Problem
    network : MLP
    n_members : int
        R.

    Notes
    -----
    Q is linear in features of its last layer: the hidden layer h and 1, in a block for each discrete action. Where that is
    more than 1100 features, actions share coefficients: h_j W_ja, scaled by c_j, and a bias an action.
    """

    def __init__(self, problem: Problem, network: MLP, n_members: int) -> None:
        self.problem, self.network, self.n_members = problem, network, n_members
        self.n_candidates = problem.table.n_candidates
        width = (network.sizes[-2] + 1) * network.sizes[-1]
        self.tied = problem.transitions.discrete and width > MAX_BLOCK_FEATURES

    # ---------------------------------------------------------------- inputs

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Give all candidates the same: (R, ...) to (M, ...)."""
        shape = (self.n_candidates, *values.shape)
        return values.expand(shape).reshape(-1, *values.shape[1:])

    def logged(self, rows: torch.Tensor) -> Seen:
        """Look at logged states and actions, rows (R, B)."""
        transitions = self.problem.transitions
        inputs = self.spread(self.problem.inputs[rows])
        if not transitions.discrete:
            return Seen(inputs, None, None)
        chosen = torch.nn.functional.one_hot(transitions.actions[rows], transitions.n_actions)
        return Seen(inputs, self.spread(chosen.to(inputs.dtype)), None)

    def candidate(self, rows: torch.Tensor, n_nodes: int | None = None, uniform: torch.Tensor | None = None) -> Seen:
        """Look at states (R, B) and what candidates do there: all actions or nodes, or `n_nodes` random ones."""
        states, table = self.problem.transitions.states[rows], self.problem.table
        flat = rows.reshape(-1)
        shape = (self.n_candidates, *rows.shape)
        if table.probs is not None:
            probs = table.probs.index_select(1, flat).view(*shape, -1).flatten(0, 1)
            return Seen(self.spread(states), probs, None)
        assert table.weights is not None
        if n_nodes is None or uniform is None or n_nodes >= table.weights.shape[1]:
            nodes, weights = table.nodes(flat)
            weights = weights[:, None].expand(-1, self.n_members, -1).flatten(0, 1)[:, None]
        else:
            nodes = table.random_nodes(flat, n_nodes, uniform.reshape(-1))
            weights = torch.full((1, 1, n_nodes), 1.0 / n_nodes, device=rows.device)
        n_each, k = nodes.shape[2:]
        actions = nodes.view(*shape, n_each, k)
        beside = states[None, :, :, None].expand(*shape, n_each, states.shape[-1])
        return Seen(torch.cat([beside, actions], dim=-1).flatten(2, 3).flatten(0, 1), None, weights)

    # ---------------------------------------------------------------- values and features

    def q(self, seen: Seen, network: MLP | None = None, *, frozen: bool = False) -> torch.Tensor:
        """Return the (expected) value (M, B), in the unit of networks."""
        return self.of_outputs(seen, (network or self.network)(seen.inputs, frozen=frozen))

    def of_outputs(self, seen: Seen, out: torch.Tensor) -> torch.Tensor:
        """Return the (expected) value (M, B) from the outputs of the networks."""
        if seen.outputs is not None:
            return (out * seen.outputs).sum(dim=2)
        return seen.average(out).squeeze(2)

    def features(self, seen: Seen) -> torch.Tensor:
        """Return (expected) features of the last layer (M, B, P), in which Q is linear."""
        hidden = seen.average(self.network.features(seen.inputs))
        one = torch.ones_like(hidden[..., :1])
        if seen.outputs is None:
            return torch.cat([hidden, one], dim=2)
        if self.tied:
            heads = torch.einsum("mba,mha->mbh", seen.outputs, self._head()[:, :-1])
            return torch.cat([hidden * heads, seen.outputs], dim=2)
        both = torch.cat([hidden, one], dim=2)
        return torch.einsum("mba,mbh->mbah", seen.outputs, both).flatten(2)

    # ---------------------------------------------------------------- last layer

    def _head(self) -> torch.Tensor:
        parts, last = self.network.parameters.constants, len(self.network.sizes) - 2
        return torch.cat([parts[f"weight{last}"], parts[f"bias{last}"]], dim=1)

    def coefficients(self) -> torch.Tensor:
        """Return the last layer as coefficients of the features, (M, P), float64."""
        head = self._head().double()
        if self.tied:
            return torch.cat([torch.ones_like(head[:, :-1, 0]), head[:, -1]], dim=1)
        return head.transpose(1, 2).flatten(1)

    def set_coefficients(self, theta: torch.Tensor) -> None:
        """Make the last layer what these coefficients (M, P) say."""
        parts, last = self.network.parameters.constants, len(self.network.sizes) - 2
        weight, bias = parts[f"weight{last}"], parts[f"bias{last}"]
        if self.tied:
            weight.mul_(theta[:, : weight.shape[1], None].to(weight.dtype))
            bias.copy_(theta[:, None, weight.shape[1] :])
            return
        head = theta.view(len(theta), weight.shape[2], -1).transpose(1, 2)
        weight.copy_(head[:, :-1])
        bias.copy_(head[:, -1:])
