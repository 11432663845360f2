"""The update of advantage-weighted regression, and the TD(lambda) returns of logged episodes it regresses on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.transitions import Batch, Transitions
from ope.policies._heads import head_extras, logged_log_prob
from ope.policies._step import LearnerStep
from ope.policies.crr import exponential_weights

LOG_STD_BOUNDS = (-5.0, 2.0)
# Beside the standard deviation of the advantages, so that a log where all are equal is cloned.
STD_OFFSET = 1e-5
# States evaluated at a time when all of them are.
TABLE_ROWS = 1 << 14


# -------------------------------------------------------------------- returns


def reverse_scan(values: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """Return x_i = values_i + decay_i x_{i+1} along the last axis, x being 0 behind the end.

    Parameters
    ----------
    values, decay : Tensor of shape (K, n)
        A decay of 0 ends an episode: nothing of the next one enters it.

    Returns
    -------
    Tensor of shape (K, n)

    Notes
    -----
    By doubling (Hillis & Steele, 1986): after j passes x_i sums 2^j terms, so that n rows take log2(n) passes over all of
    them instead of n steps.

    Examples
    --------
    >>> reverse_scan(torch.ones(1, 4), torch.tensor([[0.5, 0.0, 0.5, 0.0]]))
    tensor([[1.5000, 1.0000, 1.5000, 1.0000]])
    """
    x, reach, shift = values.clone(), decay.clone(), 1
    while shift < x.shape[-1]:
        x[..., :-shift] += reach[..., :-shift] * x[..., shift:]
        reach[..., :-shift] = reach[..., :-shift] * reach[..., shift:]
        reach[..., -shift:] = 0.0
        shift *= 2
    return x


def chained(data: Transitions) -> torch.Tensor:
    """Return 1 for the rows whose successor is a row with a return of its own, else 0: (n,)."""
    rows = torch.arange(len(data), device=data.rewards.device)
    follows = (data.next_index == rows + 1) & (rows + 1 < len(data))
    return follows * torch.cat([data.bellman[1:], data.bellman.new_zeros(1)])


def lambda_returns(
    data: Transitions, values: torch.Tensor, gamma: torch.Tensor | float, trace: torch.Tensor | float
) -> torch.Tensor:
    """Return the TD(lambda) return of every logged transition under V.

    Parameters
    ----------
    data : Transitions
    values : Tensor of shape (K, n + m)
        V in every state of `data.states`.
    gamma, trace : Tensor of shape (K, 1) or float
        Discount, and lambda.

    Returns
    -------
    Tensor of shape (K, n)
        Rows without a Bellman target have none: their entries mean nothing.

    Notes
    -----
    G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1}) within an episode. Its last row has r before a terminal,
    else r + gamma V(final state); where the final state is unknown the row before is the last one that has a return.
    """
    linked = trace * chained(data)
    ahead = data.continues * values.index_select(1, data.next_index)
    return reverse_scan(data.rewards + gamma * (1.0 - linked) * ahead, (gamma * linked).expand_as(ahead))


def value_unit(data: Transitions, gamma: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of the logged discounted rewards to go, 1 where all are 0: (K, 1)."""
    nothing = torch.zeros(len(gamma), len(data.states), device=gamma.device)
    squares = lambda_returns(data, nothing, gamma, 1.0).square() * data.bellman
    unit = (squares.sum(dim=1, keepdim=True) / data.bellman.sum()).sqrt()
    return torch.where(unit > 0.0, unit, 1.0)


@torch.no_grad()
def state_values(v: MLP, states: torch.Tensor) -> torch.Tensor:
    """Return the output of V in all states (n, d), some at a time: (K, n)."""
    return torch.cat([v(part).squeeze(2) for part in torch.split(states, TABLE_ROWS)], dim=1)


# -------------------------------------------------------------------- update


class AWRStep(LearnerStep):
    """V and actor, against returns and weights that are tabulated anew every `refresh` updates.

    The network of V counts in units of `value_unit`: its outputs are near 1, whatever the unit of the rewards and the discount.

    Parameters
    ----------
    data : Transitions
    hidden : sequence of int
    refresh : int
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, td_lambda, beta, learning_rate.
    normalize : bool
        Whether advantages are standardised over the log.
    """

    policy_networks = ("actor", "v")

    def __init__(
        self,
        data: Transitions,
        hidden: Sequence[int],
        refresh: int,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        *,
        normalize: bool,
    ) -> None:
        super().__init__(seeds, settings, data.rewards.device)
        n_states, n_actions = data.states.shape[1], data.n_actions
        self.data, self.refresh, self.normalize = data, refresh, normalize
        self.v = self.mlp("v", (n_states, *hidden, 1))
        # The V of the last refresh: the tables are a function of it, so that a file of the run need not hold them.
        self.v_target = self.target("v")
        self.actor = self.mlp("actor", (n_states, *hidden, n_actions), head_extras(n_actions, discrete=data.discrete))
        self.v_adam = self.adam("v", self.v.parameters, "learning_rate")
        self.actor_adam = self.adam("actor", self.actor.parameters, "learning_rate")
        self.gamma, self.td_lambda, self.beta = self.column("gamma"), self.column("td_lambda"), self.column("beta")
        self.counts = {"updates": 0}
        self.unit = value_unit(data, self.gamma)
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def standardized(self, advantages: torch.Tensor) -> torch.Tensor:
        """Return (A - mean) / (std + 1e-5) over the rows that have a return, (K, n)."""
        known = self.data.bellman
        mean = (advantages * known).sum(dim=1, keepdim=True) / known.sum()
        variance = ((advantages - mean).square() * known).sum(dim=1, keepdim=True) / known.sum()
        return (advantages - mean) / (variance.sqrt() + STD_OFFSET)

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the TD(lambda) return in units of V and the weight min(exp(A / beta), 20) of every row, each (K, n)."""
        if self._tables is None:
            values = state_values(self.v_target, self.data.states)
            returns = lambda_returns(self.data, self.unit * values, self.gamma, self.td_lambda) / self.unit
            advantages = returns - values[:, : len(self.data)]
            advantages = self.standardized(advantages) if self.normalize else self.unit * advantages
            self._tables = returns, exponential_weights(advantages, self.beta)
        return self._tables

    def v_loss(self, batch: Batch, returns: torch.Tensor) -> torch.Tensor:
        """Return mean (G - V(s))^2, (K,)."""
        return batch.bellman_mean((returns - self.v(batch.states).squeeze(2)).square())

    def actor_loss(self, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
        """Return -mean min(exp(A / beta), 20) log pi(a|s), (K,)."""
        return -batch.bellman_mean(weights * logged_log_prob(self.actor, batch, LOG_STD_BOUNDS))

    def _update(self, batch: Batch) -> Tensors:
        """Do one update."""
        if (self.counts["updates"] - 1) % self.refresh == 0:
            self.v_target.parameters.copy_from(self.v.parameters)
            self._tables = None
        returns, weights = (table.gather(1, batch.rows) for table in self.tables())
        v_loss = self.v_loss(batch, returns)
        self.v_adam.minimize(v_loss.sum())
        actor_loss = self.actor_loss(batch, weights)
        self.actor_adam.minimize(actor_loss.sum())
        metrics = {"loss": v_loss, "actor_loss": actor_loss, "weight": batch.bellman_mean(weights)}
        return {name: value.detach() for name, value in metrics.items()}

    def snapshot(self) -> Tensors:
        """Copy actor and V, V's last layer times the unit: what is kept says values in the unit of the rewards, (K, P)."""
        copies = super().snapshot()
        last = len(self.v.sizes) - 2
        for name, part in self.v.parameters.split(copies["v"]).items():
            if name in (f"weight{last}", f"bias{last}"):
                part.mul_(self.unit.view(-1, *[1] * (part.dim() - 1)))
        return copies

    def load_state(self, state: Tensors) -> None:
        """Continue from what `state` returned."""
        super().load_state(state)
        self._tables = None
