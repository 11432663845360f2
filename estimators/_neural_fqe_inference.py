"""From trained networks to values with influence vectors, each episode valued by members that have not seen it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ope import ragged
from ope.estimators._neural_fqe_last_layer import RowSet, adjoint, anchored_solution, look, sum_rows
from ope.estimators._neural_fqe_training import Members, Trained, row_weights, start_table
from ope.estimators._neural_fqe_values import QNetworks
from ope.validation import FloatArray, IntArray

FINAL_NODES = 4
START_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Fitted:
    """Last layers of M models in closed form and what they say, in the unit of networks.

    Parameters
    ----------
    network_start, layer_start : ndarray of shape (M, n_episodes)
        Value of the first states by the network as trained, and with its last layer solved.
    correction : ndarray of shape (M, n_episodes)
        sum_t w_it eps_it of the episodes that a member leaves out, 0 elsewhere.
    visits : ndarray of shape (M, n_episodes)
        sum_t w_it of these episodes.
    ratios : ndarray of shape (M, n)
        w_it of their rows.
    """

    network_start: FloatArray
    layer_start: FloatArray
    correction: FloatArray
    visits: FloatArray
    ratios: FloatArray


def solve_last_layers(trained: Trained, members: Members, offsets: IntArray, ridge: float, seed: int) -> Fitted:
    """Solve the last layers on what members see, and confront them with what they do not.

    Notes
    -----
    With phi the last hidden layer, A = sum phi (phi - gamma phibar')' and u = A^-T sum phibar_0 over the seen episodes,
    w = u' phi is the ratio of visits and eps = r + gamma V(s') - Q(s, a) of unseen rows; sum_t w_it eps_it corrects the
    start value of episode i, and its mean is 0 where the features hold the truth.
    """
    nets, generator = trained.nets, torch.Generator().manual_seed(seed)
    inside, outside = row_weights(members, offsets, nets.problem.transitions.bellman)
    network_start = start_table(nets)
    with torch.no_grad():
        sums = sum_rows(nets, _row_set(inside), FINAL_NODES, generator)
        before = nets.coefficients()
        theta = anchored_solution(sums, before, ridge)
        theta = torch.where(torch.isfinite(theta).all(dim=1, keepdim=True), theta, before)
        u = adjoint(sums, _start_sums(nets, torch.from_numpy(members.weight).to(inside.device)), ridge)
        w, eps = _confront(nets, outside, theta, u, generator)
        nets.set_coefficients(theta)
    layer_start = start_table(nets)
    return Fitted(
        network_start.cpu().double().numpy(),
        layer_start.cpu().double().numpy(),
        ragged.segment_sum((w * eps).T, offsets).T,
        ragged.segment_sum(w.T, offsets).T,
        w,
    )


def _row_set(weight: torch.Tensor) -> RowSet:
    counts = (weight > 0).sum(dim=1)
    width = max(int(counts.max()), 1)
    rows = torch.zeros(len(weight), width, dtype=torch.int64, device=weight.device)
    kept = torch.zeros(len(weight), width, device=weight.device)
    for r, line in enumerate(weight):
        chosen = torch.nonzero(line > 0).squeeze(1)
        rows[r, : len(chosen)] = chosen
        kept[r, : len(chosen)] = line[chosen].float()
    return RowSet(rows, kept)


def _start_sums(nets: QNetworks, weight: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(nets.coefficients().shape, dtype=torch.float64, device=weight.device)
    first = 0
    for rows in torch.split(nets.problem.table.start_index, START_CHUNK):
        phi = nets.features(nets.candidate(rows.expand(nets.n_members, len(rows))))
        part = nets.spread(weight[:, first : first + len(rows)])
        total += torch.einsum("mb,mbp->mp", part, phi.double())
        first += len(rows)
    return total


def _confront(
    nets: QNetworks, weight: torch.Tensor, theta: torch.Tensor, u: torch.Tensor, generator: torch.Generator
) -> tuple[FloatArray, FloatArray]:
    """Return the ratios w and temporal differences eps of the rows of positive weight, 0 elsewhere, (M, n)."""
    shape = (nets.network.n_models, weight.shape[1])
    w, eps = np.zeros(shape), np.zeros(shape)
    gamma = nets.problem.gamma
    for part in _row_set(weight).chunks():
        phi, ahead, rewards = look(nets, part.rows, FINAL_NODES, generator)
        phi = phi.double()
        delta = rewards.double() + torch.einsum("mbp,mp->mb", gamma * ahead.double() - phi, theta)
        ratio = torch.einsum("mbp,mp->mb", phi, u)
        known = nets.spread(part.weight) > 0
        rows = nets.spread(part.rows)[known].cpu().numpy()
        model = torch.nonzero(known)[:, 0].cpu().numpy()
        w[model, rows] = ratio[known].cpu().numpy()
        eps[model, rows] = delta[known].cpu().numpy()
    return w, eps
