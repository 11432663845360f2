"""Maximum-likelihood training of K probabilistic networks as one batched product, each stopped by episodes it has not seen. Called by `ModelEnsemble`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from ope.estimators._ensemble_problem import ModelProblem, ModelScaling
from ope.neural.generators import derive_seed
from ope.neural.history import Outcome, Tensors
from ope.neural.networks import MLP
from ope.neural.optimizer import FlatAdam
from ope.neural.regression import Regression
from ope.neural.training import TrainingEvent, TrainingPlan, TrainingStep, train
from ope.neural.transitions import Batch, BatchSampler
from ope.validation import FloatArray, IntArray

WINDOWS = 50
PATIENCE = 10
CHECK_ROWS = 2048
LOG_VARIANCE = (-12.0, 2.0)
# Gradients are weighted by the variance to this power (Seitzer et al. 2022): rows that are hard to predict are not given up.
BETA = 0.5
# Variance out of sample, as a share, by whose fall a member has not settled. The likelihood itself may rise for ever: where something
# is certain, its variance shrinks to the bound.
SETTLED = 0.003
LAYER_NORM = True
# The rule by which a state is an end is a border in it: a small network learns it.
END_HIDDEN = (64, 64)


@dataclass(frozen=True)
class Settings:
    """How networks are trained; the learning rate falls linearly to a tenth over the second half."""

    hidden: tuple[int, ...]
    n_updates: int
    batch_size: int
    learning_rate: float
    n_threads: int = 1
    progress: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class TrainedModels:
    """Networks at their best likelihood out of sample.

    Parameters
    ----------
    network : MLP
        Of K models.
    end_network : MLP or None
        The logit of the end in a next state.
    held_out : ndarray of shape (K,)
        Mean negative log likelihood of a held-out row there.
    unsettled : float
        Share of members that still learned at the end.
    n_updates : ndarray of shape (K,)
        Updates behind the network that is kept.
    diverged : ndarray of shape (K,)
    """

    network: MLP
    end_network: MLP | None
    held_out: FloatArray
    unsettled: float
    n_updates: FloatArray
    diverged: FloatArray

    def on(self, device: torch.device) -> TrainedModels:
        """Return the same with its networks on a device."""
        end = None if self.end_network is None else self.end_network.copy(device=device)
        return replace(self, network=self.network.copy(device=device), end_network=end)


@dataclass(frozen=True, eq=False)
class Heads:
    """Outputs of networks by what they predict, each (K, B, ...).

    Parameters
    ----------
    state : Tensor of shape (K, B, d)
        Mean steps, or logits of one-hot states.
    state_log : Tensor of shape (K, B, d) or None
        Their log variance before bounds.
    reward, reward_log : Tensor of shape (K, B)
    end : Tensor of shape (K, B) or None
    """

    state: torch.Tensor
    state_log: torch.Tensor | None
    reward: torch.Tensor
    reward_log: torch.Tensor
    end: torch.Tensor | None


def split(outputs: torch.Tensor, scaling: ModelScaling) -> Heads:
    """Take outputs (K, B, o) apart."""
    d = scaling.n_states
    used = d if scaling.one_hot else 2 * d
    return Heads(
        outputs[..., :d],
        None if scaling.one_hot else outputs[..., d : 2 * d],
        outputs[..., used],
        outputs[..., used + 1],
        outputs[..., used + 2] if scaling.ends == "pair" else None,
    )


def bounded(raw: torch.Tensor) -> torch.Tensor:
    """Return the log variance inside its bounds, smoothly.

    Examples
    --------
    >>> [round(value, 1) for value in bounded(torch.tensor([-100.0, 0.0, 100.0])).tolist()]
    [-12.0, -0.1, 2.0]
    """
    low, high = LOG_VARIANCE
    return low + functional.softplus(high - functional.softplus(high - raw) - low)


def _slope(raw: torch.Tensor) -> torch.Tensor:
    low, high = LOG_VARIANCE
    return torch.sigmoid(high - raw) * torch.sigmoid(high - functional.softplus(high - raw) - low)


def gaussian(
    mean: torch.Tensor, raw: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the negative log likelihood (without its constant) and its weighted derivatives by mean and raw log variance."""
    log_variance = bounded(raw)
    precision, error = torch.exp(-log_variance), mean - target
    squared = error.square() * precision
    weight = torch.exp(BETA * log_variance)
    return 0.5 * (squared + log_variance), weight * precision * error, 0.5 * weight * (1.0 - squared) * _slope(raw)


class ModelStep(TrainingStep):
    """The update of K members.

    Parameters
    ----------
    problem : ModelProblem
    settings : Settings
    held : Tensor of shape (K, m)
        Rows on which each member is judged.

    Notes
    -----
    Loss: negative log likelihood of step and reward, cross entropy of one-hot states and ends, summed over outputs; rows whose
    next state is unknown count in the reward alone.
    """

    policy_networks: tuple[str, ...] = ()

    def __init__(self, problem: ModelProblem, settings: Settings, held: torch.Tensor) -> None:
        super().__init__(len(held))
        self.problem, self.settings, self.held = problem, settings, held
        self.regressions: dict[str, Regression] = {}
        self._add("model", (problem.inputs.shape[1], *settings.hidden, problem.scaling.n_outputs), LAYER_NORM)
        if problem.scaling.ends == "state":
            self._add("end", (problem.scaling.n_states, *END_HIDDEN, 1), False)
        if problem.scaling.ends != "never":
            # Ends are rare, or the rule: networks that begin with their share learn them sooner.
            network = self.networks["end" if "end" in self.networks else "model"]
            network.parameters.constants[f"bias{len(network.sizes) - 2}"][..., -1] = _log_odds(problem)
        self.policy_networks = tuple(self.networks)
        self.window = max(1, settings.n_updates // WINDOWS)
        self.done = 0
        self.best = {name: network.parameters.flat.clone() for name, network in self.networks.items()}
        self.best_update = torch.zeros(self.n_models, dtype=torch.int64)
        self.losses: list[torch.Tensor] = []
        self.misses: list[torch.Tensor] = []

    def _add(self, name: str, sizes: tuple[int, ...], layer_norm: bool) -> None:
        seed, count = self.settings.seed, self.n_models
        network = MLP(sizes, count, layer_norm=layer_norm, device=self.problem.inputs.device)
        seeds = [derive_seed(derive_seed(seed, f"member {k}"), f"weights of {name}") for k in range(count)]
        network.initialize([torch.Generator().manual_seed(own) for own in seeds])
        optimizer = FlatAdam([network.parameters], [self.settings.learning_rate] * count, [0.0] * count)
        self.networks[name], self.optimizers[name] = network, optimizer
        self.regressions[name] = Regression(network, optimizer)

    def _update(self, batch: Batch) -> Tensors:
        """Take one gradient step; at the end of a window judge all members on what they have not seen."""
        if self.done > self.settings.n_updates // 2:
            for optimizer in self.optimizers.values():
                optimizer.scale_rate(max(0.1, 1.9 - 1.8 * self.done / self.settings.n_updates))
        with torch.no_grad():
            outputs = self.regressions["model"].forward(self.problem.inputs[batch.rows])
            loss, derivative = self.loss(outputs, batch.rows)
            self.regressions["model"].step(derivative / batch.shape[1])
            if "end" in self.networks:
                logit = self.regressions["end"].forward(self.problem.following[batch.rows])[..., 0]
                of_end, derivative = self.end_loss(logit, batch.rows)
                self.regressions["end"].step((derivative / batch.shape[1])[..., None])
                loss = loss + of_end
        self.done += 1
        if self.done % self.window == 0:
            self._judge()
        return {"loss": loss.mean(dim=1)}

    def loss(self, outputs: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the negative log likelihood of rows, (K, B), and its derivative by the outputs, (K, B, o)."""
        problem, heads = self.problem, split(outputs, self.problem.scaling)
        of_reward, by_reward, by_log = gaussian(heads.reward, heads.reward_log, problem.rewards[rows])
        of_state, by_state = self._state_loss(heads, problem.target[rows])
        onward = problem.onward[rows]
        total, parts = of_reward + onward * of_state, [onward[..., None] * part for part in by_state]
        parts += [by_reward[..., None], by_log[..., None]]
        if heads.end is not None:
            of_end, derivative = self.end_loss(heads.end, rows)
            total = total + of_end
            parts.append(derivative[..., None])
        return total, torch.cat(parts, dim=-1)

    def end_loss(self, logit: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross entropy of ends where they are known, and its derivative by the logit, (K, B)."""
        told, ended = self.problem.told[rows], self.problem.ended[rows]
        return told * (functional.softplus(logit) - ended * logit), told * (torch.sigmoid(logit) - ended)

    def _state_loss(self, heads: Heads, target: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        if heads.state_log is None:
            # Written out: torch's own is slow on rows this short.
            z = heads.state - heads.state.amax(dim=-1, keepdim=True)
            raised = z.exp()
            total = raised.sum(dim=-1, keepdim=True)
            own = z.gather(-1, target[..., None])
            derivative = raised / total
            derivative.scatter_add_(-1, target[..., None], torch.full_like(own, -1.0))
            return (total.log() - own).squeeze(-1), [derivative]
        loss, by_mean, by_log = gaussian(heads.state, heads.state_log, target)
        return loss.sum(dim=-1), [by_mean, by_log]

    def _judge(self) -> None:
        network = self.networks["model"]
        with torch.no_grad():
            outputs = network(self.problem.inputs[self.held], frozen=True)
            loss = self.loss(outputs, self.held)[0]
            if "end" in self.networks:
                logit = self.networks["end"](self.problem.following[self.held], frozen=True)[..., 0]
                loss = loss + self.end_loss(logit, self.held)[0]
            loss = loss.mean(dim=1).cpu().double()
            self.misses.append(self._missed(outputs).cpu().double())
        best = torch.stack(self.losses).amin(dim=0) if self.losses else torch.full_like(loss, torch.inf)
        better = loss < best
        for name, flat in self.best.items():
            flat[better] = self.networks[name].parameters.flat[better]
        self.best_update[better] = self.done
        self.losses.append(loss)

    def _missed(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return what held-out rows leave unexplained, an output on average, (K,): squared errors in variances, or nats."""
        problem, heads, rows = self.problem, split(outputs, self.problem.scaling), self.held
        state, _ = self._state_loss(heads, problem.target[rows])
        if heads.state_log is not None:
            state = (heads.state - problem.target[rows]).square().sum(dim=-1)
        parts = problem.onward[rows] * state + (heads.reward - problem.rewards[rows]).square()
        if heads.end is not None:
            parts = parts + self.end_loss(heads.end, rows)[0]
        return parts.mean(dim=1) / problem.scaling.n_outputs

    def stop(self, event: TrainingEvent) -> bool:
        """Return whether a member has not improved for long; before the rate has fallen it may still."""
        waited = event.update - int(self.best_update[event.model])
        return waited >= PATIENCE * self.window

    def unsettled(self) -> float:
        """Return the share of members that explained more and more of held-out rows in the last fifth of the plan."""
        path, planned = torch.stack(self.misses), self.settings.n_updates // self.window
        if planned < 2:
            return 1.0
        before = int(0.8 * planned)
        if len(path) <= before:
            return 0.0
        fall = path[:before].amin(dim=0) - path.amin(dim=0)
        return float((fall > SETTLED).double().mean())


def train_models(
    problem: ModelProblem, weight: FloatArray, held: FloatArray, lengths: IntArray, settings: Settings
) -> TrainedModels:
    """Train K members.

    Parameters
    ----------
    problem : ModelProblem
    weight : ndarray of shape (K, n_episodes)
        Weights of episodes in each member.
    held : ndarray of shape (K, n_episodes)
        Weights of those that each is judged on.
    lengths : ndarray of shape (n_episodes,)
    settings : Settings
    """
    rows, held_rows = (np.repeat(table, lengths, axis=1) for table in (weight, held))
    step = ModelStep(problem, settings, _draw(held_rows, settings.seed).to(problem.inputs.device))
    seeds = [derive_seed(settings.seed, f"batches of member {k}") for k in range(len(weight))]
    sampler = BatchSampler(problem.transitions, seeds, settings.batch_size, rows)
    plan = TrainingPlan(
        n_updates=settings.n_updates,
        log_every=step.window,
        callbacks=[[step.stop]] * len(weight),
        progress=settings.progress,
        label="model ensemble",
        n_threads=settings.n_threads,
    )
    result = train(step, sampler, plan)
    if not step.losses:
        step._judge()
    diverged = np.array([float(status.outcome is Outcome.DIVERGED) for status in result.statuses])
    best = {name: step.networks[name].with_rows(flat.cpu()) for name, flat in step.best.items()}
    return TrainedModels(
        best["model"],
        best.get("end"),
        torch.stack(step.losses).amin(dim=0).numpy(),
        step.unsettled(),
        step.best_update.double().numpy(),
        diverged,
    )


def _log_odds(problem: ModelProblem) -> float:
    share = float(problem.ended.sum() / problem.told.sum().clamp(min=1.0))
    share = min(max(share, 1e-4), 1.0 - 1e-3)
    return float(np.log(share / (1.0 - share)))


def _draw(weight: FloatArray, seed: int) -> torch.Tensor:
    """Draw the rows on which members are judged, (K, m): systematic samples, which hold equal rows equally often."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "held out"))
    cdf, m = torch.from_numpy(weight).cumsum(dim=1), min(CHECK_ROWS, weight.shape[1])
    spots = (torch.arange(m) + torch.rand(len(weight), 1, generator=generator, dtype=torch.float64)) / m
    rows = torch.searchsorted(cdf, spots * cdf[:, -1:], right=True)
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())
    return torch.minimum(rows, last)
