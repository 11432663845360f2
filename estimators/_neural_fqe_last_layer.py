"""The last layer of Q networks in closed form: LSTDQ on learned features. Called by neural fitted Q evaluation.

Arrays have a leading axis of M models. G = sum phi phi', C = sum phi phibar_next', b = sum phi r, A = G - gamma C; sums are
weighted by episode, in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ope.estimators._neural_fqe_values import QNetworks

CHUNK = 512


@dataclass(frozen=True, eq=False)
class LayerSums:
    """A (M, P, P), b (M, P), the trace of G (M,) and the effective number of rows behind them (M,)."""

    system: torch.Tensor
    reward: torch.Tensor
    trace: torch.Tensor
    n_rows: torch.Tensor

    def damped(self, ridge: float) -> torch.Tensor:
        """Return A + (ridge + P / N) mean eigenvalue of G, N the effective number of rows: few rows need more."""
        p = self.system.shape[-1]
        eye = torch.eye(p, dtype=self.system.dtype, device=self.system.device)
        # A log of zero weight leaves nothing to solve: the identity stands in for it.
        size = torch.where(self.trace > 0, (ridge + p / self.n_rows) * self.trace / p, 1.0)
        return self.system + size[:, None, None] * eye


@dataclass(frozen=True, eq=False)
class RowSet:
    """Rows of R members with their weights, both (R, N); padded with weight 0."""

    rows: torch.Tensor
    weight: torch.Tensor

    @property
    def effective_rows(self) -> torch.Tensor:
        """(sum weight)^2 / sum weight^2 of distinct rows, (R,), at least 1."""
        distinct = [torch.bincount(rows, weight.double()) for rows, weight in zip(self.rows, self.weight, strict=True)]
        sizes = [line.sum() ** 2 / line.square().sum().clamp(min=1e-300) for line in distinct]
        return torch.stack(sizes).clamp(min=1.0)

    def chunks(self) -> Iterator[RowSet]:
        """Yield pieces of a size that fits the cache."""
        for low in range(0, self.rows.shape[1], CHUNK):
            part = slice(low, low + CHUNK)
            yield RowSet(self.rows[:, part], self.weight[:, part])


def sum_rows(nets: QNetworks, chosen: RowSet, n_nodes: int, generator: torch.Generator) -> LayerSums:
    """Sum features of logged rows and of what candidates do next."""
    p = nets.coefficients().shape[1]
    m, device = nets.network.n_models, chosen.rows.device
    gram, cross = (torch.zeros(m, p, p, dtype=torch.float64, device=device) for _ in range(2))
    reward = torch.zeros(m, p, dtype=torch.float64, device=device)
    for part in chosen.chunks():
        phi, ahead, rewards = look(nets, part.rows, n_nodes, generator)
        # Batched products of other sizes round otherwise: float64, lest a candidate depend on who trains beside it.
        phi, ahead = phi.double(), ahead.double()
        weighted = (phi * nets.spread(part.weight)[..., None]).transpose(1, 2)
        gram += torch.bmm(weighted, phi)
        cross += torch.bmm(weighted, ahead)
        reward += torch.bmm(weighted, rewards.double()[..., None]).squeeze(2)
    trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    return LayerSums(gram - nets.problem.gamma * cross, reward, trace, nets.spread(chosen.effective_rows))


def look(
    nets: QNetworks, rows: torch.Tensor, n_nodes: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return phi and phibar_next (0 where nothing follows), (M, B, P), and rewards (M, B) of rows (R, B)."""
    transitions = nets.problem.transitions
    uniform = torch.rand(rows.shape, generator=generator, dtype=torch.float64).to(rows.device)
    phi = nets.features(nets.logged(rows))
    ahead = nets.features(nets.candidate(transitions.next_index[rows], n_nodes, uniform))
    continues = nets.spread(transitions.continues[rows])
    return phi, ahead * continues[..., None], nets.spread(transitions.rewards[rows])


def anchored_solution(sums: LayerSums, theta: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the solution of A theta = b, drawn to where the network is: no ridge bias once that solves it.

    Notes
    -----
    theta + (A + ridge mean(eig G) I)^-1 (b - A theta): well determined directions move to the fixed point at once,
    however slowly iterations would (a shift of all values by gamma a sweep); others stay.
    """
    rest = sums.reward - (sums.system @ theta[..., None]).squeeze(-1)
    return theta + _solve(sums.damped(ridge), rest)


def adjoint(sums: LayerSums, start: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return u with (A + ridge)' u = sum of start features, (M, P): phi' u is the ratio of visits."""
    return _solve(sums.damped(ridge).transpose(1, 2), start)


def _solve(systems: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solve (M, P, P) for (M, P), in NumPy: torch 2.13 hands oneMKL bad pivots where it has two threads for a batch.

    A singular system has NaN for a solution.
    """
    out = np.full(right.shape, np.nan)
    pairs = zip(systems.cpu().numpy(), right.cpu().numpy(), strict=True)
    for m, (system, side) in enumerate(pairs):
        with contextlib.suppress(np.linalg.LinAlgError):
            out[m] = np.linalg.solve(system, side)
    return torch.from_numpy(out).to(right.device)
