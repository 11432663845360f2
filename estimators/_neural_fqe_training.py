"""Training of K candidates x R members as one batched product. Called by neural fitted Q evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ope.estimators._neural_fqe_last_layer import RowSet, anchored_solution, sum_rows
from ope.estimators._neural_fqe_problem import Problem
from ope.estimators._neural_fqe_values import QNetworks
from ope.neural.generators import derive_seed
from ope.neural.history import Tensors, TrainingStatus
from ope.neural.networks import MLP
from ope.neural.optimizer import FlatAdam
from ope.neural.regression import Regression
from ope.neural.training import TrainingPlan, TrainingStep, train
from ope.neural.transitions import Batch, BatchSampler
from ope.validation import FloatArray, IntArray

WINDOWS = 20
CHECK_ROWS = 1024
CLIP_EVERY = 10


@dataclass(frozen=True)
class Settings:
    """How networks are trained.

    Parameters
    ----------
    hidden : tuple of int
    n_updates, batch_size : int
    learning_rate : float
        Of Adam; it falls linearly to a tenth over the second half.
    tau : float
        Polyak step of the target networks.
    n_nodes : int
        Nodes of continuous actions in a target, drawn anew in every batch.
    solve_rows : int
        Rows behind each solution of the last layer on the way.
    solve_share : float
        Share of the windows after which the last layer is solved; 0 leaves it to the gradient.
    ridge : float
        Of these solutions, relative to the mean eigenvalue of the features.
    layer_norm : bool
    n_threads : int
    progress : bool
    seed : int
    """

    hidden: tuple[int, ...]
    n_updates: int
    batch_size: int
    learning_rate: float
    n_threads: int = 1
    progress: bool = False
    seed: int = 0
    tau: float = 0.05
    n_nodes: int = 2
    solve_rows: int = 4096
    solve_share: float = 0.6
    ridge: float = 0.1
    layer_norm: bool = True


@dataclass(frozen=True, eq=False)
class Members:
    """Weights of episodes in the training of R members, and the episodes that each leaves out, both (R, n_episodes)."""

    weight: FloatArray
    held_out: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    def __len__(self) -> int:
        return len(self.weight)

    def part(self, chosen: slice) -> Members:
        """Return some of the members."""
        return Members(self.weight[chosen], self.held_out[chosen])


@dataclass(frozen=True, eq=False)
class Path:
    """What was seen at the end of each window, (windows, M): start values, and Bellman errors in and out of sample."""

    value: FloatArray
    train_error: FloatArray
    held_error: FloatArray


@dataclass(frozen=True, eq=False)
class Trained:
    """Networks with what they went through."""

    nets: QNetworks
    path: Path
    statuses: tuple[TrainingStatus, ...]
    clipped: FloatArray


class FQEStep(TrainingStep):
    """The update of neural fitted Q evaluation for K candidates x R members.

    Parameters
    ----------
    problem : Problem
    settings : Settings
    row_weight : Tensor of shape (R, n)
        Sampling weights of rows in the training of each member.
    held_weight : Tensor of shape (R, n)
        The same of the rows that it does not see.

    Notes
    -----
    Loss: mean of (Q(s, a) - y)^2, y = r + gamma E_pi Q'(s', .), over all actions or several nodes, kept inside what rewards
    can add up to (how often that cuts is counted). Every window but the last ones ends with the last layer in closed form,
    which does at once what iterations do slowly.
    """

    policy_networks = ("q",)

    def __init__(
        self, problem: Problem, settings: Settings, row_weight: torch.Tensor, held_weight: torch.Tensor
    ) -> None:
        n_members = len(row_weight)
        super().__init__(problem.table.n_candidates * n_members)
        device = problem.inputs.device
        sizes = (problem.inputs.shape[1], *settings.hidden, problem.n_outputs)
        network = MLP(sizes, self.n_models, layer_norm=settings.layer_norm, device=device)
        # Candidates start from the same networks and see the same batches: their differences are in pairs.
        network.initialize(self._generators(settings.seed, n_members, "weights"))
        self.target = network.copy()
        self.networks = {"q": network, "target": self.target}
        self.optimizer = FlatAdam([network.parameters], [settings.learning_rate] * self.n_models, [0.0] * self.n_models)
        self.optimizers = {"q": self.optimizer}
        self.regression = Regression(network, self.optimizer)
        self.nets = QNetworks(problem, network, n_members)
        self.problem, self.settings = problem, settings
        self.noise = torch.Generator().manual_seed(derive_seed(settings.seed, "nodes"))
        self.window = max(1, settings.n_updates // WINDOWS)
        self.done = 0
        self.values: list[torch.Tensor] = []
        self.errors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.clipped = torch.zeros(self.n_models, device=device)
        self.solve_set = _draw_rows(row_weight, min(settings.solve_rows, 4 * row_weight.shape[1]), self.noise)
        self.checks = [
            _draw_rows(weight, min(CHECK_ROWS, row_weight.shape[1]), self.noise) for weight in (row_weight, held_weight)
        ]

    def _generators(self, seed: int, n_members: int, purpose: str) -> list[torch.Generator]:
        seeds = [derive_seed(derive_seed(seed, f"member {r}"), purpose) for r in range(n_members)]
        return [torch.Generator().manual_seed(s) for _ in range(self.n_models // n_members) for s in seeds]

    def targets(self, rows: torch.Tensor, next_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return r + gamma E_pi Q'(s', .) within what rewards can add up to, and where that cut, both (M, B)."""
        nets, transitions, scaling = self.nets, self.problem.transitions, self.problem.scaling
        with torch.no_grad():
            uniform = None if transitions.discrete else torch.rand(rows.shape, generator=self.noise).to(rows.device)
            ahead = nets.q(nets.candidate(next_rows, self.settings.n_nodes, uniform), self.target, frozen=True)
            discount = self.problem.gamma * transitions.continues[rows]
            y = nets.spread(transitions.rewards[rows]) + nets.spread(discount) * ahead
            inside = y.clamp(scaling.low, scaling.high)
            return inside, inside != y

    def _update(self, batch: Batch) -> Tensors:
        """Take one gradient step, then one Polyak step; at the end of a window look around and solve the last layer."""
        if self.done > self.settings.n_updates // 2:
            self.optimizer.scale_rate(max(0.1, 2.0 - 2.0 * self.done / self.settings.n_updates))
        y, cut = self.targets(batch.rows, batch.next_rows)
        seen = self.nets.logged(batch.rows)
        with torch.no_grad():
            error = self.nets.of_outputs(seen, self.regression.forward(seen.inputs)) - y
            derivative = (2.0 / error.shape[1] * error)[..., None]
            self.regression.step(derivative if seen.outputs is None else derivative * seen.outputs)
        self.target.parameters.lerp_from(self.nets.network.parameters, self.settings.tau)
        self.done += 1
        if self.done % CLIP_EVERY == 0:
            self.clipped.lerp_(cut.float().mean(dim=1), 0.1)
        if self.done % self.window == 0:
            self._close_window()
        return {"loss": error.square().mean(dim=1)}

    def _close_window(self) -> None:
        with torch.no_grad():
            self.values.append(start_values(self.nets))
            self.errors.append((self._bellman_error(self.checks[0]), self._bellman_error(self.checks[1])))
            if self.done <= self.settings.solve_share * self.settings.n_updates:
                self._solve()

    def _bellman_error(self, chosen: RowSet) -> torch.Tensor:
        nets, transitions = self.nets, self.problem.transitions
        uniform = torch.full(chosen.rows.shape, 0.5, device=chosen.rows.device)
        next_rows = transitions.next_index[chosen.rows]
        ahead = nets.q(nets.candidate(next_rows, self.settings.n_nodes, uniform))
        discount = self.problem.gamma * transitions.continues[chosen.rows]
        y = nets.spread(transitions.rewards[chosen.rows]) + nets.spread(discount) * ahead
        return (nets.q(nets.logged(chosen.rows)) - y).square().mean(dim=1)

    def _solve(self) -> None:
        nets, before = self.nets, self.nets.coefficients()
        sums = sum_rows(nets, self.solve_set, self.settings.n_nodes, self.noise)
        after = anchored_solution(sums, before, self.settings.ridge)
        nets.set_coefficients(torch.where(torch.isfinite(after).all(dim=1, keepdim=True), after, before))
        self.target.parameters.copy_from(nets.network.parameters)

    def path(self) -> Path:
        """Return what was seen at the end of each window; a run that ended before looks now."""
        if not self.errors:
            self._close_window()
        train_error, held_error = zip(*self.errors, strict=True)
        tables = [torch.stack(list(rows)).cpu().double().numpy() for rows in (self.values, train_error, held_error)]
        return Path(*tables)


def _draw_rows(weight: torch.Tensor, n_rows: int, generator: torch.Generator) -> RowSet:
    # A member that leaves nothing out is checked on what it sees.
    usable = torch.where(weight.sum(dim=1, keepdim=True) > 0, weight, torch.ones_like(weight)).double().cpu()
    cdf = usable.cumsum(dim=1)
    spots = torch.rand(len(weight), n_rows, generator=generator, dtype=torch.float64) * cdf[:, -1:]
    rows = torch.searchsorted(cdf, spots, right=True).clamp_(max=weight.shape[1] - 1).to(weight.device)
    return RowSet(rows, torch.ones(rows.shape, device=weight.device))


def start_values(nets: QNetworks) -> torch.Tensor:
    """Return the mean value of the first states, in the unit of networks, (M,)."""
    return start_table(nets).mean(dim=1)


def start_table(nets: QNetworks, chunk: int = 256) -> torch.Tensor:
    """Return the value of the first state of every episode, (M, n_episodes)."""
    parts = []
    for rows in torch.split(nets.problem.table.start_index, chunk):
        shared = rows.expand(nets.n_members, len(rows))
        parts.append(nets.q(nets.candidate(shared), frozen=True))
    return torch.cat(parts, dim=1)


def row_weights(members: Members, offsets: IntArray, bellman: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of rows in the training of each member, and of those it leaves out, (R, n)."""
    lengths = np.diff(offsets)
    used = bellman.cpu().double()
    tables = (members.weight, members.held_out.astype(np.float64))
    inside, outside = (torch.from_numpy(np.repeat(table, lengths, axis=1)) * used for table in tables)
    return inside.to(bellman.device), outside.to(bellman.device)


def train_networks(problem: Problem, members: Members, offsets: IntArray, settings: Settings) -> Trained:
    """Train the networks of all candidates and members."""
    inside, outside = row_weights(members, offsets, problem.transitions.bellman)
    step = FQEStep(problem, settings, inside, outside)
    sampler = BatchSampler(
        problem.transitions, _member_seeds(settings.seed, len(members)), settings.batch_size, inside.cpu().numpy()
    )
    plan = TrainingPlan(
        n_updates=settings.n_updates,
        log_every=step.window,
        progress=settings.progress,
        label="neural fitted Q evaluation",
        n_threads=settings.n_threads,
    )
    result = train(step, sampler, plan)
    step.nets.network.parameters.flat.copy_(result.snapshot["q"])
    return Trained(step.nets, step.path(), result.statuses, step.clipped.cpu().double().numpy())


def _member_seeds(seed: int, n_members: int) -> Sequence[int]:
    return [derive_seed(seed, f"batches of member {r}") for r in range(n_members)]
