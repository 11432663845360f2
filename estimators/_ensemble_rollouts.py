"""Simulated episodes of a candidate in all members, from many first states, as one batch. Called by `ModelEnsemble`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ope.dataset import LoggedDataset, Rows
from ope.estimators._ensemble_problem import BORDER, MARGIN, ModelScaling
from ope.estimators._ensemble_training import Heads, TrainedModels, bounded, split
from ope.estimators._linear_rollouts import draw_starts
from ope.estimators._neural_fqe_problem import time_columns
from ope.neural.generators import derive_seed
from ope.policy import Policy, probabilities
from ope.validation import FloatArray

# Simulation is over where all episodes have less than this discounted weight left.
LEAST_WEIGHT = 1e-6
N_VISITS = 512


@dataclass(frozen=True, eq=False)
class CandidateRollouts:
    """What simulated episodes of one candidate show.

    Parameters
    ----------
    returns : ndarray of shape (K, R)
        Discounted returns of each member, in the unit of the log; episodes 2 j and 2 j + 1 begin in the same state.
    outside, moved, cut : float
        Shares of the discounted visits beyond the box of the logged states, moved to its border, and with a reward cut to what was
        logged.
    alive : float
        Share of episodes that still run at the last step.
    visits : ndarray of shape (m, d + n_actions)
        States and actions drawn by their discounted visits, as networks see them.
    """

    returns: FloatArray
    outside: float
    moved: float
    cut: float
    alive: float
    visits: FloatArray


@dataclass(frozen=True)
class RolloutPlan:
    """How episodes are simulated."""

    gamma: float
    n_steps: int
    n_rollouts: int
    seed: int


class Actor:
    """A candidate on simulated states.

    Parameters
    ----------
    policy : Policy
    scaling : ModelScaling
    data : LoggedDataset
        For labels and names.
    seed : int
        Candidates draw from the same numbers.
    """

    def __init__(self, policy: Policy, scaling: ModelScaling, data: LoggedDataset, seed: int) -> None:
        self.policy, self.scaling = policy, scaling
        self.labels, self.names = data.action_labels, data.feature_names
        self.rng = np.random.default_rng(derive_seed(seed, "actions"))
        self.index = np.arange(data.n_actions)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return actions (N, n_actions) as networks see them, of states (N, d) as networks see them."""
        raw = self.scaling.states.inverse(states.cpu().double().numpy())
        if self.labels is not None:
            return self._codes(raw).to(states.device)
        deterministic = "deterministic" in self.policy.capabilities
        drawn = self.policy.predict(raw) if deterministic else self.policy.sample(raw, self.rng)
        actions = np.asarray(drawn, dtype=np.float64).reshape(len(raw), -1)
        if actions.shape[1] != self.scaling.n_actions:
            raise ValueError(
                f"{type(self.policy).__name__}: actions must have {self.scaling.n_actions} columns, as in the log, got {actions.shape[1]}; correct the policy."
            )
        assert self.scaling.actions is not None
        return torch.as_tensor(self.scaling.actions.transform(actions), dtype=torch.float32, device=states.device)

    def _codes(self, raw: FloatArray) -> torch.Tensor:
        assert self.labels is not None
        cumulated = probabilities(self.policy, Rows(raw, self.names), self.labels).cumsum(axis=1)
        codes = (self.rng.random(len(raw))[:, None] * cumulated[:, -1:] >= cumulated).sum(axis=1)
        hot = codes[:, None] == self.index
        return torch.from_numpy(hot.astype(np.float32))


def simulate(
    trained: TrainedModels,
    scaling: ModelScaling,
    actor: Actor,
    start: FloatArray,
    weight: FloatArray,
    plan: RolloutPlan,
    device: torch.device,
) -> CandidateRollouts:
    """Roll out a candidate in all members.

    Parameters
    ----------
    trained : TrainedModels
        K members.
    scaling : ModelScaling
    actor : Actor
    start : ndarray of shape (n_episodes, d)
        First states, as networks see them.
    weight : ndarray of shape (K, n_episodes)
        Their weights in each member.
    plan : RolloutPlan
    device : torch.device

    Notes
    -----
    An episode belongs to one member from end to end. All candidates see the same first states and noise, each in a batch of its
    own: rounding depends on the shape of a batch, small differences grow along an episode, and no candidate shall depend on
    which others are there. Terminations are not drawn: rewards count by the probability that the episode still runs.
    """
    simulation = _Simulation(trained, scaling, actor, _paired_starts(start, weight, plan), plan, device)
    with torch.no_grad():
        for t in range(plan.n_steps):
            if plan.gamma**t * float(simulation.alive.max()) <= LEAST_WEIGHT:
                break
            simulation.step(t)
    return simulation.result()


def _paired_starts(start: FloatArray, weight: FloatArray, plan: RolloutPlan) -> FloatArray:
    pairs = draw_starts(start, weight, -(-plan.n_rollouts // 2), plan.seed)
    return np.repeat(pairs, 2, axis=1)[:, : plan.n_rollouts]


class _Simulation:
    """The state of a simulation: R episodes in each of K members."""

    def __init__(
        self,
        trained: TrainedModels,
        scaling: ModelScaling,
        actor: Actor,
        first: FloatArray,
        plan: RolloutPlan,
        device: torch.device,
    ) -> None:
        self.scaling, self.actor, self.plan, self.device = scaling, actor, plan, device
        self.network, self.end_network = trained.network, trained.end_network
        self.states = self._move(first)
        self.step_scale, self.input_scale = self._move(scaling.step), self._move(scaling.input_scale)
        width = scaling.high - scaling.low
        self.box = self._move(scaling.low - MARGIN * width), self._move(scaling.high + MARGIN * width)
        margin = BORDER * width + 1e-3
        self.border = self._move(scaling.low - margin), self._move(scaling.high + margin)
        self.alive = torch.ones(first.shape[:2], device=device)
        self.returns = torch.zeros(first.shape[:2], dtype=torch.float64, device=device)
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.noise = torch.Generator().manual_seed(derive_seed(plan.seed, "noise"))
        self._choose_visits()

    def _move(self, array: FloatArray) -> torch.Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.device)

    def _choose_visits(self) -> None:
        """Draw the step at which each episode shows its pair, by the discount, and whether it has ended by then."""
        weight = self.plan.gamma ** np.arange(self.plan.n_steps)
        rng = np.random.default_rng(derive_seed(self.plan.seed, "visits"))
        u, self.chance = rng.random((2, *self.alive.shape))
        drawn = np.searchsorted(np.cumsum(weight) / weight.sum(), u, side="right")
        self.shown = np.minimum(drawn, self.plan.n_steps - 1)
        self.visits: list[FloatArray] = []

    def step(self, t: int) -> None:
        """Move all episodes one step."""
        states = self.states
        actions = self.actor(states.flatten(0, 1)).view(*states.shape[:2], -1)
        seen = states * self.input_scale
        parts = [seen, actions] if self.scaling.horizon is None else [seen, self._time(t), actions]
        heads = split(self.network(torch.cat(parts, dim=-1), frozen=True), self.scaling)
        self._earn(t, heads.reward)
        self._show(t, actions)
        if heads.end is not None:
            self.alive *= torch.sigmoid(-heads.end)
        self.states = self._next(heads)
        if self.end_network is not None:
            self.alive *= torch.sigmoid(-self.end_network(self.states, frozen=True)[..., 0])

    def _time(self, t: int) -> torch.Tensor:
        assert self.scaling.horizon is not None
        columns = self._move(time_columns(np.array([t]), self.scaling.horizon)[0])
        return columns.expand(*self.states.shape[:2], -1)

    def _earn(self, t: int, reward: torch.Tensor) -> None:
        scaling, weight = self.scaling, self.plan.gamma**t * self.alive.double()
        # Networks near the border are off by noise to both sides: cutting it on one would be a bias.
        slack = max(MARGIN * (scaling.reward_high - scaling.reward_low), MARGIN)
        inside = reward.clamp(scaling.reward_low - slack, scaling.reward_high + slack)
        self.returns += weight * scaling.unit * (inside.double() + scaling.offset)
        flags = [self._beyond(*self.box), self._beyond(*self.border, reach=True), inside != reward]
        self.sums += torch.stack([weight.sum(), *((weight * flag).sum() for flag in flags)])

    def _beyond(self, low: torch.Tensor, high: torch.Tensor, *, reach: bool = False) -> torch.Tensor:
        """Return which states lie beyond a box, or (`reach`) on its border."""
        states = self.states
        out = (states <= low) | (states >= high) if reach else (states < low) | (states > high)
        return out.any(dim=-1)

    def _show(self, t: int, actions: torch.Tensor) -> None:
        now = (self.shown == t) & (self.alive.cpu().numpy() > self.chance)
        if now.any():
            at = torch.from_numpy(now).to(self.device)
            self.visits.append(torch.cat([self.states[at], actions[at]], dim=-1).cpu().double().numpy())

    def _next(self, heads: Heads) -> torch.Tensor:
        shape, d = self.states.shape[:2], self.scaling.n_states
        if heads.state_log is None:
            u = torch.rand(*shape, 1, generator=self.noise).to(self.device)
            cumulated = torch.softmax(heads.state, dim=-1).cumsum(dim=-1)
            column = (u * cumulated[..., -1:] >= cumulated).sum(dim=-1).clamp_(max=d - 1)
            return torch.nn.functional.one_hot(column, d).float()
        noise = torch.randn(*shape, d, generator=self.noise).to(self.device)
        moved = self.states + self.step_scale * (heads.state + torch.exp(0.5 * bounded(heads.state_log)) * noise)
        return torch.minimum(torch.maximum(moved, self.border[0]), self.border[1])

    def result(self) -> CandidateRollouts:
        """Return what was seen."""
        total, *parts = self.sums.tolist()
        outside, moved, cut = (part / total if total > 0 else 0.0 for part in parts)
        width = self.scaling.n_states + self.scaling.n_actions
        visits = np.concatenate(self.visits) if self.visits else np.zeros((0, width))
        order = np.random.default_rng(derive_seed(self.plan.seed, "order of visits")).permutation(len(visits))
        alive = float(self.alive.mean())
        return CandidateRollouts(self.returns.cpu().numpy(), outside, moved, cut, alive, visits[order][:N_VISITS])
