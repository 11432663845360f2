"""Training of networks for nu and zeta at the saddle point of the DICE Lagrangian, K candidates as one batched product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ope.estimators._candidates import CandidateTable
from ope.estimators._dice_problem import DiceProblem, Lagrangian, NeuralFunctions
from ope.estimators._neural_fqe_problem import ActionScaling, Problem, Scaling
from ope.estimators._neural_fqe_values import QNetworks, Seen
from ope.neural.generators import derive_seed
from ope.neural.history import Tensors, TrainingStatus
from ope.neural.networks import MLP, FlatParameters
from ope.neural.training import TrainingPlan, TrainingStep, train
from ope.neural.transitions import Batch, BatchSampler, Standardizer

WINDOWS = 20
CHECKS = 10
NODES = 5
# The ascent in zeta is the faster of the two unless told otherwise: nu then descends along an almost solved inner problem.
ZETA_RATE = 3.0


class OptimisticAdam:
    """Adam that steps by twice the new direction minus the last one, which damps the rotation around a saddle point.

    Parameters
    ----------
    blocks : sequence of FlatParameters
    rates : sequence of float
        Learning rate of each.
    n_updates : int
        Rates fall to 0 by a half cosine over so many steps.
    weight_decay : float
        Decoupled.

    References
    ----------
    Daskalakis, Ilyas, Syrgkanis, Zeng (2018). Training GANs with optimism. ICLR.

    Examples
    --------
    A saddle point with a strong rotation; y ascends by a reversed gradient.

    >>> block = FlatParameters({"x": (1,), "y": (1,)}, n_models=1)
    >>> x, y = block.views["x"], block.views["y"]
    >>> block.flat[:] = 1.0
    >>> optimizer = OptimisticAdam([block], [0.05], n_updates=500)
    >>> for _ in range(500):
    ...     up = reversed_gradient(y)
    ...     optimizer.minimize((x * up + 0.1 * x**2 - 0.1 * up**2).sum())
    >>> bool((torch.cat([x, y]).abs() < 0.05).all())
    True
    """

    betas = (0.5, 0.99)

    def __init__(
        self, blocks: Sequence[FlatParameters], rates: Sequence[float], n_updates: int, weight_decay: float = 0.0
    ) -> None:
        self.blocks, self.rates, self.n_updates, self.weight_decay = list(blocks), list(rates), n_updates, weight_decay
        self._wanted = [view for block in blocks for view in block.views.values()]
        self._gradients = [torch.zeros_like(block.flat) for block in blocks]
        self._targets = [
            view for block, flat in zip(blocks, self._gradients, strict=True) for view in block.split(flat).values()
        ]
        self._first, self._second, self._last = ([torch.zeros_like(block.flat) for block in blocks] for _ in range(3))
        self.count = 0

    def minimize(self, loss: torch.Tensor) -> None:
        """Take one step down the gradient of a scalar."""
        found: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, self._wanted, allow_unused=True)
        for target, gradient in zip(self._targets, found, strict=True):
            if gradient is None:
                target.zero_()
            else:
                target.copy_(gradient)
        self.count += 1
        share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.count / self.n_updates)))
        for i, (block, rate) in enumerate(zip(self.blocks, self.rates, strict=True)):
            direction = self._direction(i)
            block.flat.mul_(1.0 - share * rate * self.weight_decay)
            block.flat.add_(2.0 * direction - self._last[i] if self.count > 1 else direction, alpha=-share * rate)
            self._last[i] = direction

    def _direction(self, i: int) -> torch.Tensor:
        gradient, (beta1, beta2) = self._gradients[i], self.betas
        first = self._first[i].mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        second = self._second[i].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        size = (second / (1.0 - beta2**self.count)).sqrt_().add_(1e-8)
        return (first / (1.0 - beta1**self.count)).div_(size)


def reversed_gradient(x: torch.Tensor) -> torch.Tensor:
    """Return x, with its gradient reversed: one descent then ascends in x.

    Examples
    --------
    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> torch.autograd.grad(2.0 * reversed_gradient(x), x)
    (tensor(-2.),)
    """
    return 2.0 * x.detach() - x


# -------------------------------------------------------------------- the problem on the device


@dataclass(frozen=True, eq=False)
class Saddle:
    """A Lagrangian on the device, in the unit of networks.

    Parameters
    ----------
    problem : Problem
    a_nu, a_zeta, power, norm_penalty : float
    reward, positive : bool
    nu_scale : float
        nu over the output of its network.
    k : float
        1 over the discounted number of steps.
    start_cdf : Tensor of shape (n_episodes,)
        Cumulated weights of the episodes.
    live : float
        Share of logged rows in E_D.
    edge : Tensor of shape (S,)
        Share of the absorbing rows of every function.
    after : Tensor of shape (n,)
        Which function of the absorbing state follows a row; -1 for none.
    start : float
        Weight of the term of the first states: 1, or 0 where nu is fitted to the rewards alone, as by minimax Q learning.
    """

    problem: Problem
    a_nu: float
    a_zeta: float
    power: float
    norm_penalty: float
    reward: bool
    positive: bool
    nu_scale: float
    k: float
    start_cdf: torch.Tensor
    live: float
    edge: torch.Tensor
    after: torch.Tensor
    start: float

    def f(self, x: torch.Tensor) -> torch.Tensor:
        """Return |x|^p / p."""
        return x.abs().pow(self.power) / self.power if self.power != 2.0 else 0.5 * x.square()

    def zeta(self, x: torch.Tensor) -> torch.Tensor:
        """Return zeta from the output of its network."""
        return x.square() if self.positive else x


def build_saddle(problem: DiceProblem, table: CandidateTable, scaling: Scaling, start: float) -> Saddle:
    """Put a problem and its candidates on the device.

    Notes
    -----
    Rewards are divided by a unit. Where the regularisers do not move zeta (a_nu = 0, or neither a_zeta nor the reward beside it),
    networks train with a_zeta = 1 in that unit and a_nu = 0: zeta is the same wherever the flow can hold, and is found
    several times sooner than by descent on the squared flow, which a_nu alone amounts to.
    """
    data, lagrangian = problem.data, problem.lagrangian
    device = table.start_index.device
    tied = is_tied(lagrangian)
    edge = problem.absorbing_weight / problem.total
    return Saddle(
        Problem.build(data, table, scaling, problem.gamma, device),
        a_nu=lagrangian.a_nu * abs(scaling.unit) ** (lagrangian.power - 1.0) if tied else 0.0,
        a_zeta=lagrangian.a_zeta / abs(scaling.unit) if tied else 1.0,
        power=lagrangian.power,
        norm_penalty=lagrangian.norm_penalty,
        reward=lagrangian.reward,
        positive=lagrangian.positive,
        nu_scale=1.0 if tied else problem.mass,
        k=1.0 / problem.mass,
        start_cdf=torch.as_tensor(np.cumsum(problem.episode_weight), dtype=torch.float64),
        live=1.0 - float(edge.sum()),
        edge=torch.as_tensor(edge, dtype=torch.float32, device=device),
        after=torch.as_tensor(_after(problem), device=device),
        start=start,
    )


def is_tied(lagrangian: Lagrangian) -> bool:
    """Return whether the regularisers move zeta, so that their sizes and the sign of the rewards matter."""
    return lagrangian.a_nu > 0.0 and (lagrangian.reward or lagrangian.a_zeta > 0.0)


def fit_scaling(problem: DiceProblem) -> Scaling:
    """Take the units from a log; that of rewards carries the sign of their mean where it does not matter to zeta."""
    data = problem.data
    low, high = np.full(1, -np.inf), np.full(1, np.inf)
    actions = None
    if not data.discrete:
        inside = Standardizer.fit(data.actions)
        actions = ActionScaling(inside.shift, inside.scale, low, high)
    size = float(np.sqrt(np.mean(data.rewards**2))) or 1.0
    unit = -size if float(data.rewards.mean()) < 0.0 and not is_tied(problem.lagrangian) else size
    return Scaling(Standardizer.fit(data.states), actions, problem.horizon, unit, 0.0, -np.inf, np.inf)


def _after(problem: DiceProblem) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    after = np.full(problem.data.n_transitions, -1)
    last = problem.data.offsets[1:][problem.absorbed] - 1
    after[last] = 0 if problem.stationary else problem.data.lengths[problem.absorbed]
    return after


# -------------------------------------------------------------------- one update


class SaddleStep(TrainingStep):
    """Descent in nu and lambda, ascent in zeta, at once, by full gradients through nu(s').

    Parameters
    ----------
    saddle : Saddle
    settings : NeuralFunctions
    seed : int

    Notes
    -----
    What is kept are Polyak averages of the networks over the last twentieth of the updates.
    """

    policy_networks = ("nu_mean", "zeta_mean")

    def __init__(self, saddle: Saddle, settings: NeuralFunctions, seed: int) -> None:
        problem = saddle.problem
        super().__init__(problem.table.n_candidates)
        self.saddle, device = saddle, problem.inputs.device
        sizes = (problem.inputs.shape[1], *settings.hidden, problem.n_outputs)
        edge = {"edge": (len(saddle.edge),)}
        self.nu = MLP(sizes, self.n_models, extras={**edge, "lam": (1,)}, device=device)
        self.zeta = MLP(sizes, self.n_models, extras=edge, device=device)
        for name, network in (("nu", self.nu), ("zeta", self.zeta)):
            # All candidates start from the same networks and see the same batches: their differences are in pairs.
            seeds = [derive_seed(seed, name)] * self.n_models
            network.initialize([torch.Generator().manual_seed(s) for s in seeds])
        self._start_from_constants(len(sizes) - 2)
        self.networks = {"nu": self.nu, "zeta": self.zeta, "nu_mean": self.nu.copy(), "zeta_mean": self.zeta.copy()}
        rate = settings.learning_rate
        zeta_rate = settings.zeta_learning_rate or ZETA_RATE * rate
        blocks = [self.nu.parameters, self.zeta.parameters]
        self.optimizer = OptimisticAdam(blocks, [rate, zeta_rate], settings.n_updates, settings.weight_decay)
        self.nets = QNetworks(problem, self.nu, 1)
        self.noise = torch.Generator().manual_seed(derive_seed(seed, "starts and nodes"))
        self.polyak = min(1.0, WINDOWS / settings.n_updates)

    def _start_from_constants(self, last: int) -> None:
        # zeta = 1 (0 without first states) and the constant nu that belongs to it: the slowest direction is then almost right.
        s = self.saddle
        for part in (f"bias{last}", "edge"):
            self.zeta.parameters.constants[part].fill_(s.start)
            if s.a_nu == 0.0:
                mean = float(s.problem.transitions.rewards.mean()) if s.reward and part != "edge" else 0.0
                self.nu.parameters.constants[part].add_(mean - s.start * s.a_zeta)

    def _update(self, batch: Batch) -> Tensors:
        """Take one step of all players, then one Polyak step."""
        metrics = self.lagrangian(batch)
        self.optimizer.minimize(metrics["lagrangian"].sum())
        for name in ("nu", "zeta"):
            self.networks[f"{name}_mean"].parameters.lerp_from(self.networks[name].parameters, self.polyak)
        found = {name: value.detach() for name, value in metrics.items()}
        return {"loss": found["lagrangian"], **found}

    def lagrangian(self, batch: Batch) -> Tensors:
        """Return the Lagrangian of each model on a batch, with the dual value and E zeta beside it, each (K,)."""
        s, rows, here = self.saddle, batch.rows, self.nets.logged(batch.rows)
        lam = self.nu.parameters.views["lam"] if s.norm_penalty > 0.0 else torch.zeros(1, device=rows.device)
        edge_nu, edge_zeta = s.nu_scale * self.nu.parameters.views["edge"], s.zeta(self.zeta.parameters.views["edge"])
        nu, zeta = self._nu(here), s.zeta(self.nets.q(here, self.zeta))
        after = s.after[rows[0]]
        ahead = self._nu(self._candidate(batch.next_rows)) * s.problem.transitions.continues[rows]
        ahead = ahead + torch.where(after >= 0, edge_nu[:, after.clamp(min=0)], 0.0)
        rewards = s.problem.transitions.rewards[rows]
        total = s.live * self._terms(nu, ahead, zeta, rewards, lam).mean(dim=1)
        total = total + self._edge_terms(edge_nu, edge_zeta, lam)
        if s.start:
            total = total + s.k * self._nu(self._candidate(self._starts(rows.shape[1]))).mean(dim=1)
        mean = s.live * zeta.mean(dim=1) + (s.edge * edge_zeta).sum(dim=1)
        if s.norm_penalty > 0.0:
            # The square of the norm's error changes no saddle point and damps the rotation of lambda against zeta.
            total = total + lam[:, 0] + lam[:, 0].square() / (2.0 * s.norm_penalty)
            total = total - 0.5 * (reversed_gradient(mean) - 1.0).square()
        dual = s.problem.scaling.unit * s.live * (zeta * rewards).mean(dim=1) / s.k
        return {"lagrangian": total, "dual": dual, "mean_zeta": mean}

    def _terms(
        self,
        nu: torch.Tensor,
        ahead: torch.Tensor,
        zeta: torch.Tensor,
        rewards: torch.Tensor | float,
        lam: torch.Tensor,
    ) -> torch.Tensor:
        s = self.saddle
        error = s.problem.gamma * ahead - nu - lam
        if s.reward:
            error = error + rewards
        up = reversed_gradient(zeta)
        value = up * error - s.a_zeta * s.f(up)
        return value + s.a_nu * s.f(nu) if s.a_nu > 0.0 else value

    def _edge_terms(self, nu: torch.Tensor, zeta: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        last = torch.zeros_like(nu[:, :1]) if nu.shape[1] > 1 else nu
        ahead = torch.cat([nu[:, 1:], last], dim=1)
        return (self.saddle.edge * self._terms(nu, ahead, zeta, 0.0, lam)).sum(dim=1)

    def _nu(self, seen: Seen) -> torch.Tensor:
        return self.saddle.nu_scale * self.nets.q(seen, self.nu)

    def _candidate(self, rows: torch.Tensor) -> Seen:
        uniform = torch.rand(rows.shape, generator=self.noise).to(rows.device)
        return self.nets.candidate(rows, NODES, uniform)

    def _starts(self, n: int) -> torch.Tensor:
        cdf = self.saddle.start_cdf
        draws = torch.rand(n, generator=self.noise, dtype=torch.float64) * cdf[-1]
        episodes = torch.searchsorted(cdf, draws, right=True).clamp_(max=len(cdf) - 1)
        index = self.saddle.problem.table.start_index
        return index[episodes.to(index.device)][None]


# -------------------------------------------------------------------- the run


@dataclass(frozen=True, eq=False)
class TrainedSaddle:
    """Networks of K candidates.

    Parameters
    ----------
    networks : list of K pairs of MLP
        nu and zeta, on the CPU.
    drawn : pair of MLP
        The same for all, before training.
    checks : list of K lists of pairs of MLP
        The same on the way, the last being those of `networks`.
    statuses : tuple of K TrainingStatus
    scaling : Scaling
    """

    networks: list[tuple[MLP, MLP]]
    drawn: tuple[MLP, MLP]
    checks: list[list[tuple[MLP, MLP]]]
    statuses: tuple[TrainingStatus, ...]
    scaling: Scaling


def train_saddle(
    problem: DiceProblem,
    table: CandidateTable,
    scaling: Scaling,
    settings: NeuralFunctions,
    start: float = 1.0,
) -> TrainedSaddle:
    """Train the networks of all candidates in the table; `problem` stands for all of them."""
    saddle = build_saddle(problem, table, scaling, start)
    step = SaddleStep(saddle, settings, problem.random_state)
    before = step.snapshot()
    transitions = saddle.problem.transitions
    seed = derive_seed(problem.random_state, "batches")
    sampler = BatchSampler(transitions, [seed], settings.batch_size, problem.row_weight[None])
    plan = TrainingPlan(
        n_updates=settings.n_updates,
        log_every=max(1, settings.n_updates // WINDOWS),
        n_checkpoints=min(CHECKS, settings.n_updates),
        label="neural DICE",
    )
    result = train(step, sampler, plan)

    def pair(rows: Tensors, k: int) -> tuple[MLP, MLP]:
        nu, zeta = (step.networks[name].with_rows(rows[name][k : k + 1]) for name in step.policy_networks)
        return nu, zeta

    models = range(step.n_models)
    return TrainedSaddle(
        [pair(result.snapshot, k) for k in models],
        pair(before, 0),
        [[pair(rows, 0) for _, rows in result.checkpoints_of(k)] for k in models],
        result.statuses,
        scaling,
    )
