"""How far candidates act from anything that was logged. Called by neural fitted Q evaluation."""

from __future__ import annotations

import numpy as np
import torch

from ope import ragged
from ope.estimators._neural_fqe_problem import Problem
from ope.validation import FloatArray, IntArray

N_QUERIES = 512
MAX_REFERENCE = 100_000
USUAL = 0.9
REFERENCE_CHUNK = 8192


def action_novelty(problem: Problem, offsets: IntArray, ratios: FloatArray, seed: int) -> FloatArray:
    """Return the share of each candidate's visits whose actions are unlike anything logged, (K,); 0 for discrete actions.

    Parameters
    ----------
    problem : Problem
    offsets : ndarray of shape (n_episodes + 1,)
    ratios : ndarray of shape (K, n)
        Ratios of visits, with which states are drawn.
    seed : int

    Notes
    -----
    The distance of (s, a) to the log is that of its nearest logged pair in another episode, |ds|^2 / d + |da|^2 / k in
    standard deviations. An action is unlike the log if it lies farther than nine in ten logged pairs do themselves: a share of .1 is what the log itself has.
    """
    n_candidates, n = ratios.shape
    if problem.table.actions is None:
        return np.zeros(n_candidates)
    rng = np.random.default_rng(seed)
    episode = torch.from_numpy(ragged.episode_index(offsets))
    reference = torch.from_numpy(np.sort(rng.choice(n, min(n, MAX_REFERENCE), replace=False)))
    pairs = _scaled(problem, problem.inputs)
    own = torch.from_numpy(rng.choice(n, min(n, N_QUERIES), replace=False))
    usual = np.quantile(_nearest(pairs[own], episode[own], pairs[reference], episode[reference]), USUAL)
    shares = np.empty(n_candidates)
    for k, row in enumerate(ratios):
        chosen = torch.from_numpy(_draw(row, rng))
        queries = _scaled(problem, _candidate_pairs(problem, k, chosen, rng))
        shares[k] = np.mean(_nearest(queries, episode[chosen], pairs[reference], episode[reference]) > usual)
    return shares


def _draw(ratio: FloatArray, rng: np.random.Generator) -> IntArray:
    mass = np.clip(ratio, 0.0, None)
    total = mass.sum()
    return rng.choice(len(ratio), N_QUERIES, p=mass / total if np.isfinite(total) and total > 0 else None)


def _scaled(problem: Problem, inputs: torch.Tensor) -> torch.Tensor:
    k = problem.transitions.n_actions
    d = inputs.shape[1] - k
    return torch.cat([inputs[:, :d] / d**0.5, inputs[:, d:] / k**0.5], dim=1)


def _candidate_pairs(problem: Problem, k: int, rows: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    table = problem.table
    assert table.actions is not None
    assert table.weights is not None
    weights = table.weights[k].double().cpu().numpy()
    node = torch.from_numpy(rng.choice(len(weights), len(rows), p=weights / weights.sum()))
    actions = table.actions[k, rows.to(table.actions.device), node.to(table.actions.device)]
    return torch.cat([problem.transitions.states[rows.to(actions.device)], actions], dim=1)


def _nearest(
    queries: torch.Tensor, query_episode: torch.Tensor, reference: torch.Tensor, reference_episode: torch.Tensor
) -> FloatArray:
    """Return the distance to the nearest reference of another episode, (Q,)."""
    best = torch.full((len(queries),), torch.inf, device=queries.device)
    query_episode, reference_episode = query_episode.to(queries.device), reference_episode.to(queries.device)
    for low in range(0, len(reference), REFERENCE_CHUNK):
        part = slice(low, low + REFERENCE_CHUNK)
        distance = torch.cdist(queries, reference[part])
        distance.masked_fill_(query_episode[:, None] == reference_episode[None, part], torch.inf)
        best = torch.minimum(best, distance.amin(dim=1))
    return best.double().cpu().numpy()
