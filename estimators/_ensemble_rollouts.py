"""Simulated episodes of all members, candidates and first states in one batch. Called by `ModelEnsemble`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ope.dataset import LoggedDataset, Rows
from ope.estimators._ensemble_problem import BORDER, MARGIN, ModelScaling
from ope.estimators._ensemble_training import TrainedModels, bounded, split
from ope.estimators._linear_rollouts import draw_starts
from ope.estimators._neural_fqe_problem import time_columns
from ope.neural.generators import derive_seed
from ope.neural.networks import MLP
from ope.policy import Policy, probabilities
from ope.validation import FloatArray

# Episodes of a candidate are over where all of them have less than this discounted weight left.
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


class _Tally:
    """Sums over the discounted visits of C candidates, and a draw from them."""

    def __init__(self, shape: tuple[int, ...], plan: RolloutPlan, n_columns: int, device: torch.device) -> None:
        c, k, r = shape
        self.returns = torch.zeros(shape, dtype=torch.float64, device=device)
        self.sums = torch.zeros(4, c, dtype=torch.float64, device=device)
        self.alive = torch.ones(shape, device=device)
        self.visits = torch.full((c, k * r, n_columns), torch.nan, device=device)
        # Each episode shows the pair of one step, drawn by its discount; candidates look at the same steps.
        weight = plan.gamma ** np.arange(plan.n_steps)
        rng = np.random.default_rng(derive_seed(plan.seed, "visits"))
        drawn = np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(k * r), side="right")
        self.shown = torch.from_numpy(np.minimum(drawn, plan.n_steps - 1)).to(device)
        self.chance = torch.from_numpy(rng.random(k * r)).to(device)

    def add(self, of: torch.Tensor, weight: torch.Tensor, flags: Sequence[torch.Tensor]) -> None:
        """Count visits of the candidates `of` (a,) with weights (a, K, R), and what they were like."""
        mass = weight.double().flatten(1)
        self.sums[0, of] += mass.sum(dim=1)
        for row, flag in enumerate(flags, start=1):
            self.sums[row, of] += (mass * flag.flatten(1)).sum(dim=1)

    def show(self, of: torch.Tensor, t: int, pairs: torch.Tensor) -> None:
        """Keep pairs (a, K R, columns) of the episodes whose step this is, if they have not ended."""
        now = torch.nonzero(self.shown == t).squeeze(1)
        if len(now) == 0:
            return
        running = self.alive[of].flatten(1)[:, now] > self.chance[now]
        kept = torch.where(running[..., None], pairs[:, now], torch.nan)
        self.visits[of[:, None], now[None, :]] = kept


def simulate(
    trained: TrainedModels,
    scaling: ModelScaling,
    actors: Sequence[Actor],
    start: FloatArray,
    weight: FloatArray,
    plan: RolloutPlan,
    device: torch.device,
) -> list[CandidateRollouts | Exception]:
    """Roll out K members for all candidates.

    Parameters
    ----------
    trained : TrainedModels
        K members.
    scaling : ModelScaling
    actors : sequence of C Actor
        One that fails is its exception.
    start : ndarray of shape (n_episodes, d)
        First states, as networks see them.
    weight : ndarray of shape (K, n_episodes)
        Their weights in each member.
    plan : RolloutPlan
    device : torch.device

    Notes
    -----
    Members are deaf to each other: an episode belongs to one member from end to end. Candidates see the same first states and
    noise. Terminations are not drawn: rewards count by the probability that the episode still runs.
    """
    first = torch.as_tensor(_paired_starts(start, weight, plan), dtype=torch.float32, device=device)
    simulation = _Simulation(trained, scaling, actors, first, plan, device)
    for t in range(plan.n_steps):
        if not simulation.step(t):
            break
    return simulation.results()


def _paired_starts(start: FloatArray, weight: FloatArray, plan: RolloutPlan) -> FloatArray:
    pairs = draw_starts(start, weight, -(-plan.n_rollouts // 2), plan.seed)
    return np.repeat(pairs, 2, axis=1)[:, : plan.n_rollouts]


class _Simulation:
    """The state of a simulation: K members, R episodes each, and the candidates that still run."""

    def __init__(
        self,
        trained: TrainedModels,
        scaling: ModelScaling,
        actors: Sequence[Actor],
        first: torch.Tensor,
        plan: RolloutPlan,
        device: torch.device,
    ) -> None:
        self.scaling, self.actors, self.plan, self.device = scaling, list(actors), plan, device
        self._trained = trained
        self.shape = first.shape[:2]
        self.states = first.expand(len(actors), *first.shape).contiguous()
        self.tally = _Tally((len(actors), *self.shape), plan, scaling.n_states + scaling.n_actions, device)
        self.errors: dict[int, Exception] = {}
        self.network: MLP = trained.network
        self.end_network: MLP | None = None
        self.running = list(range(len(actors)))
        self.noise = torch.Generator().manual_seed(derive_seed(plan.seed, "noise"))
        self.low, self.high, self.border_low, self.border_high = _borders(scaling, device)
        self._assemble()

    def _assemble(self) -> None:
        """Put the members side by side, once for each candidate that runs."""
        if self.running:
            # The slices of a batched product do not know of each other, so that no candidate depends on the others.
            times, trained = len(self.running), self._trained
            self.network = _repeated(trained.network, times, self.device)
            if trained.end_network is not None:
                self.end_network = _repeated(trained.end_network, times, self.device)

    def step(self, t: int) -> bool:
        """Move all episodes one step; return whether any still run."""
        self._drop(t)
        actions = self._act()
        if not self.running:
            return False
        of = torch.tensor(self.running, device=self.device)
        states = self.states[of]
        a, (k, r) = len(of), self.shape
        parts = [states, actions] if self.scaling.horizon is None else [states, self._time(t, states), actions]
        inputs = torch.cat(parts, dim=-1).view(a * k, r, -1)
        with torch.no_grad():
            heads = split(self.network(inputs, frozen=True), self.scaling)
        self._earn(of, t, states, heads.reward.view(a, k, r))
        self.tally.show(of, t, torch.cat([states, actions], dim=-1).flatten(1, 2))
        if heads.end is not None:
            self.tally.alive[of] *= torch.sigmoid(-heads.end.view(a, k, r))
        log = None if heads.state_log is None else heads.state_log.view(*states.shape)
        following = self._move(states, heads.state.view(*states.shape), log)
        if self.end_network is not None:
            with torch.no_grad():
                logit = self.end_network(following.view(a * k, r, -1), frozen=True)
            self.tally.alive[of] *= torch.sigmoid(-logit.view(a, k, r))
        self.states[of] = following
        return True

    def _drop(self, t: int) -> None:
        left = (self.plan.gamma**t * self.tally.alive.flatten(1).amax(dim=1)).tolist()
        running = [c for c in self.running if left[c] > LEAST_WEIGHT]
        if running != self.running:
            self.running = running
            self._assemble()

    def _act(self) -> torch.Tensor:
        """Return the actions of all candidates that run, (a, K, R, n_actions); those that fail run no more."""
        found = {}
        for c in self.running:
            try:
                found[c] = self.actors[c](self.states[c].reshape(-1, self.scaling.n_states)).view(*self.shape, -1)
            except Exception as error:
                self.errors[c] = error
        if len(found) < len(self.running):
            self.running = list(found)
            self._assemble()
        return torch.stack(list(found.values())) if found else torch.empty(0)

    def _time(self, t: int, states: torch.Tensor) -> torch.Tensor:
        assert self.scaling.horizon is not None
        columns = torch.from_numpy(time_columns(np.array([t]), self.scaling.horizon)[0]).float()
        return columns.to(self.device).expand(*states.shape[:-1], -1)

    def _earn(self, of: torch.Tensor, t: int, states: torch.Tensor, reward: torch.Tensor) -> None:
        scaling = self.scaling
        # Networks near the border are off by noise to both sides: cutting it on one would be a bias.
        slack = max(MARGIN * (scaling.reward_high - scaling.reward_low), MARGIN)
        inside = reward.clamp(scaling.reward_low - slack, scaling.reward_high + slack)
        weight = self.plan.gamma**t * self.tally.alive[of]
        self.tally.returns[of] += weight.double() * scaling.unit * (inside.double() + scaling.offset)
        beyond = ((states < self.low) | (states > self.high)).any(dim=-1)
        at_border = ((states <= self.border_low) | (states >= self.border_high)).any(dim=-1)
        self.tally.add(of, weight, [beyond, at_border, inside != reward])

    def _move(self, states: torch.Tensor, mean: torch.Tensor, raw: torch.Tensor | None) -> torch.Tensor:
        k, r = self.shape
        if raw is None:
            u = torch.rand(k, r, 1, generator=self.noise).to(self.device)
            cumulated = torch.softmax(mean, dim=-1).cumsum(dim=-1)
            column = (u * cumulated[..., -1:] >= cumulated).sum(dim=-1).clamp_(max=mean.shape[-1] - 1)
            return torch.nn.functional.one_hot(column, mean.shape[-1]).float()
        noise = torch.randn(k, r, mean.shape[-1], generator=self.noise).to(self.device)
        step = torch.as_tensor(self.scaling.step, dtype=torch.float32, device=self.device)
        moved = states + step * (mean + torch.exp(0.5 * bounded(raw)) * noise)
        return torch.minimum(torch.maximum(moved, self.border_low), self.border_high)

    def results(self) -> list[CandidateRollouts | Exception]:
        """Return what was seen."""
        return [self.errors[c] if c in self.errors else self._result(c) for c in range(len(self.actors))]

    def _result(self, c: int) -> CandidateRollouts:
        tally = self.tally
        total, *parts = tally.sums[:, c].tolist()
        visits = tally.visits[c].cpu().double().numpy()
        visits = visits[np.random.default_rng(derive_seed(self.plan.seed, "order of visits")).permutation(len(visits))]
        visits = visits[np.isfinite(visits).all(axis=1)]
        outside, moved, cut = (part / total if total > 0 else 0.0 for part in parts)
        returns = tally.returns[c].cpu().numpy()
        return CandidateRollouts(returns, outside, moved, cut, float(tally.alive[c].mean()), visits[:N_VISITS])


def _borders(scaling: ModelScaling, device: torch.device) -> tuple[torch.Tensor, ...]:
    width = scaling.high - scaling.low
    bounds = [
        scaling.low - MARGIN * width,
        scaling.high + MARGIN * width,
        scaling.low - BORDER * width - 1e-3,
        scaling.high + BORDER * width + 1e-3,
    ]
    return tuple(torch.as_tensor(bound, dtype=torch.float32, device=device) for bound in bounds)


def _repeated(network: MLP, times: int, device: torch.device) -> MLP:
    flat = network.parameters.flat.repeat(times, 1)
    out = MLP(network.sizes, len(flat), layer_norm=network.layer_norm, device=device, trainable=False)
    out.parameters.flat.copy_(flat)
    return out
