"""What K candidate policies do in every stored state of a log, as tensors on the device. Called by neural estimators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ope.dataset import LoggedDataset, Rows
from ope.neural.transitions import Standardizer, usable_finals
from ope.policy import Policy, action_nodes, generator, probabilities
from ope.validation import FloatArray

Float32Array = npt.NDArray[np.float32]

MAX_NODES = 32
# Quadrature rules are evaluated for this many rows at a time: 125 nodes of 100,000 rows are 300 MB.
CHUNK_ROWS = 1 << 13


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """Actions of K candidates in the n rows of a log and, behind them, its m known final states, as in `Transitions`.

    Parameters
    ----------
    start_index : Tensor of shape (n_episodes,), int64
        The first row of every episode.
    probs : Tensor of shape (K, n + m, A) or None
        Probabilities of discrete actions; masked actions have 0.
    actions : Tensor of shape (K, n + m, S, k) or None
        Nodes or draws of continuous actions, standardised like those of `Transitions`.
    weights : Tensor of shape (K, S) or None
        Weights of these, which sum to 1; candidates of fewer nodes are padded with weight 0.

    Notes
    -----
    A deterministic candidate has one node, one with a quadrature rule its nodes, any other `n_samples` draws. A rule of
    more than 32 nodes is thinned to `n_samples` nodes of equal weight in each state by systematic sampling, which leaves
    the expectation unbiased.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[1, 1], ends="terminal")
    >>> table = CandidateTable.build(log, [TabularPolicy([[0.2, 0.8]], state_code=lambda s: 0 * s[:, 0].astype(int))])
    >>> table.probs.shape, table.start_index.tolist()
    (torch.Size([1, 2, 2]), [0, 1])
    """

    start_index: torch.Tensor
    probs: torch.Tensor | None = None
    actions: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    @classmethod
    def build(
        cls,
        data: LoggedDataset,
        policies: Sequence[Policy],
        *,
        device: torch.device | None = None,
        actions: Standardizer | None = None,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> CandidateTable:
        """Ask the candidates.

        Parameters
        ----------
        data : LoggedDataset
        policies : sequence of K policies
        device : torch.device, optional
        actions : Standardizer, optional
            Applied to continuous actions.
        n_samples : int
            Draws per state for continuous policies without a quadrature rule.
        random_state : int
            Seed of the draws; every candidate starts from it, so that none depends on the others.

        Raises
        ------
        ValueError
            If a policy returns no distribution or no actions of the log's shape.
        """
        start = torch.as_tensor(data.offsets[:-1].copy(), dtype=torch.int64, device=device)
        if data.discrete:
            tables = [_probabilities(policy, data) for policy in policies]
            return cls.join(
                [cls(start, probs=torch.as_tensor(probs, dtype=torch.float32, device=device)[None]) for probs in tables]
            )
        parts = []
        for policy in policies:
            nodes, weights = _nodes(policy, data, actions, n_samples, random_state)
            row = torch.as_tensor(weights, dtype=torch.float32, device=device)[None]
            parts.append(cls(start, actions=torch.from_numpy(nodes).to(device)[None], weights=row))
        return cls.join(parts)

    @classmethod
    def join(cls, tables: Sequence[CandidateTable]) -> CandidateTable:
        """Put tables of the same log together; one alone is returned as it is."""
        first = tables[0]
        if len(tables) == 1:
            return first
        if first.discrete:
            return cls(first.start_index, probs=torch.cat([_there(table.probs) for table in tables]))
        width = max(_there(table.weights).shape[1] for table in tables)
        nodes = torch.cat([_widened(_there(table.actions), width) for table in tables])
        weights = [_there(table.weights) for table in tables]
        padded = [functional.pad(part, (0, width - part.shape[1])) for part in weights]
        return cls(first.start_index, actions=nodes, weights=torch.cat(padded))

    @property
    def n_candidates(self) -> int:
        """K."""
        return len(_there(self.actions if self.probs is None else self.probs))

    @property
    def discrete(self) -> bool:
        """Whether actions are discrete."""
        return self.probs is not None

    def part(self, candidates: Sequence[int]) -> CandidateTable:
        """Return the table of some of the candidates."""
        chosen = list(candidates)
        take = [None if table is None else table[chosen] for table in (self.probs, self.actions, self.weights)]
        return CandidateTable(self.start_index, *take)

    def expected(self, q: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return sum_a pi(a|s) q(s, a) of discrete actions, all of them in one product.

        Parameters
        ----------
        q : Tensor of shape (K, B, A)
        rows : Tensor of shape (B,) or (K, B)
            States, the same for all candidates or each candidate's own.

        Returns
        -------
        Tensor of shape (K, B)
        """
        return torch.einsum("kba,kba->kb", gather(_there(self.probs), rows), q)

    def nodes(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all continuous nodes in some states, (K, B, S, k), and their weights (K, S).

        Parameters
        ----------
        rows : Tensor of shape (B,) or (K, B)
        """
        return gather(_there(self.actions), rows), _there(self.weights)

    def random_nodes(self, rows: torch.Tensor, n_nodes: int, uniform: torch.Tensor) -> torch.Tensor:
        """Return a few nodes of each state, drawn by their weights: their plain mean is an unbiased expectation.

        Parameters
        ----------
        rows : Tensor of shape (B,) or (K, B)
        n_nodes : int
            J.
        uniform : Tensor of shape (B,) or (K, B)
            Numbers in [0, 1), one a state: the J nodes are a systematic sample with this start.

        Returns
        -------
        Tensor of shape (K, B, J, k)
        """
        table, weights = _there(self.actions), _there(self.weights)
        n_candidates, n_states, width, k = table.shape
        chosen = systematic(weights, uniform.expand(n_candidates, uniform.shape[-1]), n_nodes)
        first = torch.arange(n_candidates, device=rows.device)[:, None] * n_states + rows
        index = first[..., None] * width + chosen
        return table.view(-1, k).index_select(0, index.view(-1)).view(*chosen.shape, k)


def gather(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return entries of a table (K, N, ...) at rows (B,) shared by all K, or (K, B): shape (K, B, ...).

    Examples
    --------
    >>> table = torch.arange(6).view(2, 3)
    >>> gather(table, torch.tensor([0, 2])).tolist(), gather(table, torch.tensor([[0], [1]])).tolist()
    ([[0, 2], [3, 5]], [[0], [4]])
    """
    if rows.ndim == 1:
        return table.index_select(1, rows)
    first = torch.arange(len(table), device=rows.device)[:, None] * table.shape[1]
    return table.flatten(0, 1).index_select(0, (first + rows).view(-1)).view(*rows.shape, *table.shape[2:])


def systematic(weights: torch.Tensor, uniform: torch.Tensor, n_nodes: int) -> torch.Tensor:
    """Return nodes drawn by their weights at (u + j) / J, j < J: shape (K, B, J).

    Parameters
    ----------
    weights : Tensor of shape (K, S)
    uniform : Tensor of shape (K, B)
    n_nodes : int

    Examples
    --------
    >>> systematic(torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([[0.3]]), 4).tolist()
    [[[0, 0, 2, 2]]]
    """
    cumulated = weights.double().cumsum(dim=1)
    spots = (uniform.double()[..., None] + torch.arange(n_nodes, device=uniform.device)) / n_nodes
    chosen = torch.searchsorted(cumulated, (spots * cumulated[:, -1:, None]).flatten(1), right=True)
    # Rounding must not lead behind the last node that has a weight.
    places = torch.arange(weights.shape[1], device=weights.device)
    last = torch.where(weights > 0, places, 0).amax(dim=1)
    return torch.minimum(chosen.view(spots.shape), last[:, None, None])


def _chunks(rows: Rows) -> Iterator[tuple[slice, Rows]]:
    for low in range(0, len(rows), CHUNK_ROWS):
        part = slice(low, low + CHUNK_ROWS)
        mask = None if rows.action_mask is None else rows.action_mask[part]
        extras = None if rows.extras is None else rows.extras.iloc[part]
        yield part, Rows(rows.states[part], rows.feature_names, mask, extras)


def _stored_rows(data: LoggedDataset) -> list[Rows]:
    final = np.flatnonzero(usable_finals(data))
    return [data.rows(), data.final_rows(final)] if len(final) else [data.rows()]


def _probabilities(policy: Policy, data: LoggedDataset) -> FloatArray:
    assert data.action_labels is not None
    return np.concatenate([probabilities(policy, rows, data.action_labels) for rows in _stored_rows(data)])


def _nodes(
    policy: Policy, data: LoggedDataset, actions: Standardizer | None, n_samples: int, random_state: int
) -> tuple[Float32Array, FloatArray]:
    """Return nodes (n + m, S, k), float32, and weights (S,)."""
    rng = generator(random_state)
    parts: list[Float32Array] = []
    weights = np.ones(1)
    for rows in _stored_rows(data):
        for _, chunk in _chunks(rows):
            nodes, weights = action_nodes(policy, chunk, n_samples, rng)
            _check_nodes(policy, nodes, len(chunk), data.n_actions)
            if len(weights) > MAX_NODES:
                nodes, weights = _thinned(nodes, weights, n_samples, rng)
            placed = np.swapaxes(nodes, 0, 1)
            scaled = placed if actions is None else actions.transform(placed)
            parts.append(np.ascontiguousarray(scaled, dtype=np.float32))
    return np.concatenate(parts), weights


def _check_nodes(policy: Policy, nodes: FloatArray, n_rows: int, n_actions: int) -> None:
    owner = type(policy).__name__
    if nodes.shape[1:] != (n_rows, n_actions):
        raise ValueError(
            f"{owner}: actions must have shape {(n_rows, n_actions)} (rows, action columns of the log), got {nodes.shape[1:]}; "
            "give the policy as many action dimensions as the log has."
        )
    if not np.isfinite(nodes).all():
        raise ValueError(f"{owner}: actions must be finite, got NaN or infinite ones; correct the policy.")


def _thinned(
    nodes: FloatArray, weights: FloatArray, n_samples: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    n_rows = nodes.shape[1]
    chosen = systematic(torch.from_numpy(weights)[None], torch.from_numpy(rng.random(n_rows))[None], n_samples)[0]
    picked = nodes[chosen.numpy().T, np.arange(n_rows)]
    return picked, np.full(n_samples, 1.0 / n_samples)


def _there(part: torch.Tensor | None) -> torch.Tensor:
    assert part is not None
    return part


def _widened(nodes: torch.Tensor, width: int) -> torch.Tensor:
    # Padding repeats the first node, so that a function of it is finite where its weight is 0.
    more = nodes[:, :, :1].expand(-1, -1, width - nodes.shape[2], -1)
    return torch.cat([nodes, more], dim=2)
