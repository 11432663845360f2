"""A model ensemble from log and candidates to plain numbers. Imported when a fit begins: it loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._ensemble_problem import ModelProblem, ModelScaling, fit_scaling
from ope.estimators._ensemble_rollouts import Actor, CandidateRollouts, RolloutPlan, simulate
from ope.estimators._ensemble_training import Settings, TrainedModels, train_models
from ope.estimators._linear_rollouts import rollout_steps
from ope.estimators._neural_fqe_support import MAX_REFERENCE, REFERENCE_CHUNK, USUAL, _nearest
from ope.inference.weights import resampling_weights
from ope.neural.device import resolve_device, use_threads
from ope.policy import Policy
from ope.validation import FloatArray

N_OWN = 512


@dataclass(frozen=True)
class Configuration:
    """What the estimator was asked for, beside the training settings; horizon None: the infinite-horizon value."""

    gamma: float
    horizon: int | None
    by_step: bool
    n_members: int
    n_rollouts: int
    action_range: tuple[Any, Any] | None
    device: str
    owner: str
    training: Settings


@dataclass(frozen=True, eq=False)
class EnsembleFit:
    """What the members say of one candidate, in the unit of the log.

    Parameters
    ----------
    values : ndarray of shape (K,)
        Mean return of each member.
    member_noise : float
        Mean Monte Carlo variance of these.
    outside, moved, cut, alive, novelty : float
    ess : float
        Effective number of episodes that simulated visits are like.
    unsettled : float
    diverged : int
    n_updates : float
        Mean number of updates behind the networks that are kept.
    held_out : float
        Mean negative log likelihood of held-out rows.
    n_steps : int
    """

    values: FloatArray
    member_noise: float
    outside: float
    moved: float
    cut: float
    alive: float
    novelty: float
    ess: float
    unsettled: float
    diverged: int
    n_updates: float
    held_out: float
    n_steps: int


def fit_candidates(
    data: LoggedDataset, policies: Sequence[Policy], weight: FloatArray, config: Configuration
) -> list[EnsembleFit | Exception]:
    """Train the members once and roll out all candidates in them; one that fails is its exception."""
    device, settings = resolve_device(config.device, config.owner), config.training
    scaling = fit_scaling(data, config.by_step, config.action_range)
    problem = ModelProblem.build(data, scaling, device)
    table, held = member_weights(data, weight, config)
    plan = RolloutPlan(config.gamma, _steps(data, config), config.n_rollouts, settings.seed)
    start = scaling.states.transform(data.states[data.offsets[:-1]])
    with use_threads(settings.n_threads):
        trained = train_models(problem, table, held, data.lengths, settings)
        trained = trained.on(device)
        support = _Support.build(problem, data, weight, settings.seed)

        def ask(policy: Policy) -> EnsembleFit | Exception:
            try:
                actor = Actor(policy, scaling, data, settings.seed)
                seen = simulate(trained, scaling, actor, start, table, plan, device)
            except Exception as error:
                return error
            return _collect(seen, trained, support, scaling, plan)

        return [ask(policy) for policy in policies]


def _steps(data: LoggedDataset, config: Configuration) -> int:
    return rollout_steps(config.gamma, config.horizon, int(data.lengths.max()))


def member_weights(data: LoggedDataset, weight: FloatArray, config: Configuration) -> tuple[FloatArray, FloatArray]:
    """Return the weights of episodes in the training of each member, and of those that it is judged on, both (K, n_episodes).

    Notes
    -----
    Poisson(1) counts by a hash of the episode: those drawn 0 times, about a third, are held out.
    """
    drawn = resampling_weights(data.episode_keys, config.n_members, seed=config.training.seed, kind="poisson")
    table, held = weight * drawn, weight * (drawn == 0)
    # On a handful of episodes a resample may hold none, or leave none out.
    table = np.where(table.sum(axis=1, keepdims=True) > 0, table, weight)
    return table, np.where(held.sum(axis=1, keepdims=True) > 0, held, table)


def _collect(
    seen: CandidateRollouts, trained: TrainedModels, support: _Support, scaling: ModelScaling, plan: RolloutPlan
) -> EnsembleFit:
    novelty, ess = support.compare(seen.visits, scaling)
    return EnsembleFit(
        values=seen.returns.mean(axis=1),
        member_noise=member_noise(seen.returns),
        outside=seen.outside,
        moved=seen.moved,
        cut=seen.cut,
        alive=seen.alive,
        novelty=novelty,
        ess=ess,
        unsettled=trained.unsettled,
        diverged=int(trained.diverged.sum()),
        n_updates=float(trained.n_updates.mean()),
        held_out=float(trained.held_out.mean()),
        n_steps=plan.n_steps,
    )


def member_noise(returns: FloatArray) -> float:
    """Return the Monte Carlo variance of a member's mean return, from pairs that begin in the same state.

    Examples
    --------
    >>> member_noise(np.array([[1.0, 3.0, 2.0, 2.0]]))
    0.25
    """
    n_rollouts = returns.shape[1]
    n_pairs = n_rollouts // 2
    gaps = returns[:, : 2 * n_pairs : 2] - returns[:, 1 : 2 * n_pairs : 2]
    return float(np.mean(gaps**2) / 2.0 / n_rollouts)


@dataclass(frozen=True, eq=False)
class _Support:
    """Logged pairs, their episodes and weights, and how far apart nine in ten of them are at most from the nearest of another episode."""

    pairs: torch.Tensor
    episodes: torch.Tensor
    weight: torch.Tensor
    usual: float

    @classmethod
    def build(cls, problem: ModelProblem, data: LoggedDataset, weight: FloatArray, seed: int) -> _Support:
        """Look at the log."""
        rng, row_weight = np.random.default_rng(seed), np.repeat(weight, data.lengths)
        rows = np.flatnonzero(row_weight > 0)
        chosen = np.sort(rng.choice(rows, min(len(rows), MAX_REFERENCE), replace=False))
        own = torch.from_numpy(rng.choice(rows, min(len(rows), N_OWN), replace=False))
        scaling, states = problem.scaling, problem.transitions.states[: len(data)]
        table = torch.cat([states, problem.inputs[:, -scaling.n_actions :]], dim=1).cpu()
        pairs, episode = _spaced(table, scaling), torch.from_numpy(ragged.episode_index(data.offsets))
        distance = _nearest(pairs[own], episode[own], pairs[chosen], episode[chosen])
        usual = float(np.quantile(distance, USUAL)) * (1.0 + 1e-6)
        return cls(pairs[chosen], episode[chosen], torch.from_numpy(row_weight[chosen]), usual)

    def compare(self, visits: FloatArray, scaling: ModelScaling) -> tuple[float, float]:
        """Return the share of visits that are farther from the log, and the effective number of episodes that they are like.

        Notes
        -----
        A visit counts for the logged pairs that are as near as is usual, or else for the nearest. Where states and actions repeat, these are
        its equals: the ratios of visits of a tabular model.
        """
        if len(visits) == 0:
            return 0.0, 0.0
        queries = _spaced(torch.as_tensor(visits, dtype=torch.float32), scaling)
        distance = _nearest(queries, torch.full((len(visits),), -1), self.pairs, self.episodes)
        reach = torch.from_numpy(np.maximum(distance * (1.0 + 1e-6), self.usual))[:, None]
        parts = torch.split(self.pairs, REFERENCE_CHUNK)
        near = torch.cat([torch.cdist(queries, part) <= reach for part in parts], dim=1)
        shares = near * self.weight
        mass = (shares / shares.sum(dim=1, keepdim=True)).sum(dim=0)
        episodes = torch.bincount(self.episodes, mass)
        return float(np.mean(distance > self.usual)), float(episodes.sum().square() / episodes.square().sum())


def _spaced(pairs: torch.Tensor, scaling: ModelScaling) -> torch.Tensor:
    """Return pairs whose distances count a state and an action alike; different discrete actions are far apart."""
    d = scaling.n_states
    states = pairs[:, :d] if scaling.one_hot else pairs[:, :d] / d**0.5
    actions = pairs[:, d:] / scaling.n_actions**0.5 if scaling.actions is not None else 10.0 * pairs[:, d:]
    return torch.cat([states, actions], dim=1)
