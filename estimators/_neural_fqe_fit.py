"""Neural fitted Q evaluation from log and candidates to plain numbers. Imported when a fit begins: it loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ope.dataset import LoggedDataset
from ope.estimators._candidates import CandidateTable
from ope.estimators._neural_fqe_inference import Fitted, solve_last_layers
from ope.estimators._neural_fqe_problem import Problem, Scaling, fit_scaling
from ope.estimators._neural_fqe_support import action_novelty
from ope.estimators._neural_fqe_training import Members, Settings, Trained, train_networks
from ope.estimators._neural_fqe_values import QNetworks
from ope.estimators._q import QPredictions
from ope.inference.weights import fold_of, resampling_weights
from ope.neural.device import resolve_device, use_threads
from ope.neural.history import Outcome
from ope.neural.networks import MLP
from ope.neural.transitions import usable_finals
from ope.policy import Policy, continuing_ends
from ope.validation import FloatArray, IntArray

PREDICT_CHUNK = 1024
# Of the last solution and its adjoint, relative to the mean eigenvalue of the features.
RIDGE = 0.01


@dataclass(frozen=True)
class Configuration:
    """What the estimator was asked for, beside the training settings."""

    gamma: float
    stationary: bool
    n_folds: int
    n_bootstrap: int
    n_samples: int
    action_range: tuple[Any, Any] | None
    device: str
    owner: str
    training: Settings

    @property
    def seed(self) -> int:
        """The random state."""
        return self.training.seed


@dataclass(frozen=True, eq=False)
class CandidateFit:
    """What training says of one candidate, in the unit of the log.

    Parameters
    ----------
    value : float
        Mean of the scores.
    plug_in, network_value : float
        Mean value of first states of unseen episodes, by the solved last layer and by the network as trained.
    scores : ndarray of shape (n_episodes,)
        Start value plus correction of each episode, by members that have not seen it.
    correction : ndarray of shape (n_episodes,)
    visits : ndarray of shape (n_episodes,)
        Sum of the ratios of each episode.
    members : ndarray of shape (n_folds,)
        Mean value of all first states by each member.
    path : ndarray of shape (windows, n_folds)
        Value of each member at the end of each window of training.
    held_error, train_error : float
        Mean squared Bellman error out of and in sample, in squared units of the log.
    novelty : float
    clipped : float
        Share of targets that were cut at the end.
    unit : float
        Spread of the discounted rest of logged episodes: what counts as large.
    outcome : str
    n_updates : int
    replicates : ndarray of shape (B,) or None
    """

    value: float
    plug_in: float
    network_value: float
    scores: FloatArray
    correction: FloatArray
    visits: FloatArray
    members: FloatArray
    path: FloatArray
    held_error: float
    train_error: float
    novelty: float
    clipped: float
    unit: float
    outcome: str
    n_updates: int
    replicates: FloatArray | None


# -------------------------------------------------------------------- estimates


def in_order(fit: CandidateFit, order: IntArray) -> CandidateFit:
    """Return a fit with its episodes in another order."""
    moved = {name: getattr(fit, name)[order] for name in ("scores", "correction", "visits")}
    return replace(fit, **moved)


def fit_candidates(
    data: LoggedDataset, policies: Sequence[Policy], weight: FloatArray, config: Configuration
) -> list[CandidateFit | Exception]:
    """Train all candidates as one; a candidate that cannot be asked is its exception."""
    device = resolve_device(config.device, config.owner)
    scaling = _scaling(data, config)
    asked = [_ask(data, policy, scaling, config, device) for policy in policies]
    tables = [table for table in asked if isinstance(table, CandidateTable)]
    fits = iter(_fit_tables(data, CandidateTable.join(tables), weight, scaling, config, device) if tables else ())
    return [next(fits) if isinstance(table, CandidateTable) else table for table in asked]


def _scaling(data: LoggedDataset, config: Configuration) -> Scaling:
    return fit_scaling(data, config.gamma, stationary=config.stationary, action_range=config.action_range)


def _ask(
    data: LoggedDataset, policy: Policy, scaling: Scaling, config: Configuration, device: torch.device
) -> CandidateTable | Exception:
    try:
        return CandidateTable.build(
            data,
            [policy],
            device=device,
            actions=scaling.actions,
            n_samples=config.n_samples,
            random_state=config.seed,
        )
    except Exception as error:
        return error


def _fit_tables(
    data: LoggedDataset,
    table: CandidateTable,
    weight: FloatArray,
    scaling: Scaling,
    config: Configuration,
    device: torch.device,
) -> list[CandidateFit]:
    problem = Problem.build(data, table, scaling, config.gamma, device)
    members = _members(data, weight, config)
    with use_threads(config.training.n_threads):
        trained = train_networks(problem, members, data.offsets, config.training)
        fitted = solve_last_layers(trained, members, data.offsets, RIDGE, config.seed)
        ratios = _of_folds(fitted.ratios, table.n_candidates, config).sum(axis=1)
        novelty = action_novelty(problem, data.offsets, ratios, config.seed)
    return [_collect(k, trained, fitted, members, weight, config, float(novelty[k])) for k in range(table.n_candidates)]


def _members(data: LoggedDataset, weight: FloatArray, config: Configuration) -> Members:
    """Return a member a fold; with a bootstrap, one that sees all and one a replicate behind them."""
    folds = fold_of(data.episode_keys, config.n_folds, config.seed)
    held_out = folds == np.arange(config.n_folds)[:, None]
    tables = [weight * ~held_out]
    if not np.all(tables[0].sum(axis=1) > 0):
        raise ValueError(
            f"{config.owner}.fit: `episode_weight` must leave a positive weight outside each of n_folds={config.n_folds} folds, got only zeros "
            "outside one; weigh more episodes, or take another random_state."
        )
    if config.n_bootstrap:
        drawn = resampling_weights(data.episode_keys, config.n_bootstrap, seed=config.seed)
        tables += [weight[None], weight * drawn]
    table = np.concatenate(tables)
    none = np.zeros((len(table) - config.n_folds, data.n_episodes), dtype=bool)
    return Members(table, np.concatenate([held_out, none]))


def _of_folds(values: FloatArray, n_candidates: int, config: Configuration) -> FloatArray:
    """Return what belongs to members that leave a fold out: (M, ...) to (K, n_folds, ...)."""
    return values.reshape(n_candidates, -1, *values.shape[1:])[:, : config.n_folds]


def _collect(
    k: int,
    trained: Trained,
    fitted: Fitted,
    members: Members,
    weight: FloatArray,
    config: Configuration,
    novelty: float,
) -> CandidateFit:
    n_folds, n_members = config.n_folds, len(members)
    scaling = trained.nets.problem.scaling
    own = slice(k * n_members, k * n_members + n_folds)
    unseen = members.held_out[:n_folds]
    layer, network = ((unseen * start[own]).sum(axis=0) for start in (fitted.layer_start, fitted.network_start))
    correction = scaling.unit * fitted.correction[own].sum(axis=0)
    scores = scaling.value(layer) + correction
    path, squared = trained.path, scaling.unit**2
    statuses = trained.statuses[own]
    worst = max(statuses, key=lambda status: status.outcome)
    return CandidateFit(
        value=float(np.mean(weight * scores)),
        plug_in=float(np.mean(weight * scaling.value(layer))),
        network_value=float(np.mean(weight * scaling.value(network))),
        scores=scores,
        correction=correction,
        visits=fitted.visits[own].sum(axis=0),
        members=np.mean(weight * scaling.value(fitted.layer_start[own]), axis=1),
        path=scaling.value(path.value[:, own]),
        held_error=squared * float(path.held_error[-1, own].mean()),
        train_error=squared * float(path.train_error[-1, own].mean()),
        novelty=novelty,
        clipped=float(trained.clipped[own].max()),
        unit=abs(scaling.unit),
        outcome=Outcome(worst.outcome).name,
        n_updates=min(status.n_updates for status in statuses),
        replicates=_replicates(k, fitted, members, scaling, config),
    )


def _replicates(k: int, fitted: Fitted, members: Members, scaling: Scaling, config: Configuration) -> FloatArray | None:
    """Return V_b - V of the plug-in value, (B,)."""
    if not config.n_bootstrap:
        return None
    own = slice(k * len(members) + config.n_folds, (k + 1) * len(members))
    weight = members.weight[config.n_folds :]
    values = scaling.value(np.sum(weight * fitted.layer_start[own], axis=1) / weight.sum(axis=1))
    return np.asarray(values[1:] - values[0])


# -------------------------------------------------------------------- the model of a doubly robust method


@dataclass(frozen=True, eq=False)
class NeuralQModel:
    """A fitted network with the last layer in closed form.

    Parameters
    ----------
    network : MLP
    scaling : Scaling
    gamma : float
    n_samples, random_state : int
        Of the draws for continuous policies without a quadrature rule.
    n_threads : int
    status : str
    """

    network: MLP
    scaling: Scaling
    gamma: float
    n_samples: int
    random_state: int
    n_threads: int
    status: str

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        """Value the rows of a log."""
        device = self.network.parameters.flat.device
        table = CandidateTable.build(
            data, [policy], actions=self.scaling.actions, n_samples=self.n_samples, random_state=self.random_state
        )
        nets = QNetworks(Problem.build(data, table, self.scaling, self.gamma, device), self.network, 1)
        n = data.n_transitions
        with use_threads(self.n_threads), torch.no_grad():
            q = self._values([nets.q(nets.logged(rows)) for rows in _chunks(n)])
            states = len(nets.problem.transitions.states)
            v = self._values([nets.q(nets.candidate(rows)) for rows in _chunks(states)])
        v_final, final = np.zeros(data.n_episodes), usable_finals(data)
        v_final[final] = v[n:]
        return QPredictions(q, v[:n], np.where(continuing_ends(data, self.scaling.horizon is None), v_final, 0.0))

    def _values(self, parts: list[torch.Tensor]) -> FloatArray:
        return self.scaling.value(torch.cat(parts, dim=1)[0].double().numpy())


def _chunks(n: int) -> list[torch.Tensor]:
    return [part[None] for part in torch.split(torch.arange(n), PREDICT_CHUNK)]


def fit_model(data: LoggedDataset, policy: Policy, weight: FloatArray, config: Configuration) -> NeuralQModel:
    """Train one network on all episodes."""
    device = resolve_device(config.device, config.owner)
    scaling = _scaling(data, config)
    asked = _ask(data, policy, scaling, config, device)
    if isinstance(asked, Exception):
        raise asked
    problem = Problem.build(data, asked, scaling, config.gamma, device)
    members = Members(weight[None], np.zeros((1, data.n_episodes), dtype=bool))
    with use_threads(config.training.n_threads):
        trained = train_networks(problem, members, data.offsets, config.training)
        solve_last_layers(trained, members, data.offsets, RIDGE, config.seed)
    network = trained.nets.network.with_rows(trained.nets.network.parameters.flat.cpu())
    status = trained.statuses[0].outcome.name
    return NeuralQModel(
        network, scaling, config.gamma, config.n_samples, config.seed, config.training.n_threads, status
    )
