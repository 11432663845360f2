"""Transitions of a log on the device, sampled by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ope import ragged
from ope.neural.generators import ModelGenerators
from ope.schema import End

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

STD_OFFSET = 1e-3
# Indices are drawn for this many batches at a time: drawing and moving them costs nothing then.
CHUNK = 64


@dataclass(frozen=True, eq=False)
class Standardizer:
    """x -> (x - shift) / scale by column.

    Examples
    --------
    >>> Standardizer.fit(np.array([[0.0], [2.0]])).transform(np.array([[2.0]])).round(3)
    array([[0.999]])
    """

    shift: FloatArray
    scale: FloatArray

    @classmethod
    def fit(cls, values: FloatArray) -> Standardizer:
        """Take mean and standard deviation + 1e-3, the convention of offline reinforcement learning (TD3+BC)."""
        return cls(values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64) + STD_OFFSET)

    @classmethod
    def identity(cls, n_columns: int) -> Standardizer:
        """Change nothing."""
        return cls(np.zeros(n_columns), np.ones(n_columns))

    def transform(self, values: npt.NDArray[np.floating]) -> FloatArray:
        """Standardise."""
        return np.asarray((values - self.shift) / self.scale, dtype=np.float64)

    def inverse(self, values: npt.NDArray[np.floating]) -> FloatArray:
        """Return to the original unit."""
        return np.asarray(values * self.scale + self.shift, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Transitions:
    """The transitions of a log as tensors on one device.

    Every state is stored once: the rows, then the final states that are known; `next_index` points to the successor.

    Attributes
    ----------
    states : Tensor of shape (n + m, d), float32
        Standardised; m final states behind the n rows.
    next_index : Tensor of shape (n,), int64
        Where the next state lies; a row without one points to itself.
    actions : Tensor of shape (n,), int64, or (n, k), float32
    rewards : Tensor of shape (n,), float32
    continues : Tensor of shape (n,), float32
        0 for the last step before a terminal end, else 1.
    bellman : Tensor of shape (n,), float32
        0 where the process goes on but where to is unknown, else 1: rows of 0 have no Bellman target.
    n_excluded : int
        Number of those rows.
    n_actions : int
        Number of discrete actions, or dimension of continuous ones.
    action_mask : Tensor of shape (n + m, n_actions), bool, or None
        Available actions in every state.
    """

    states: torch.Tensor
    next_index: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    continues: torch.Tensor
    bellman: torch.Tensor
    n_excluded: int
    n_actions: int
    action_mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def discrete(self) -> bool:
        """Whether actions are discrete."""
        return self.actions.ndim == 1

    @classmethod
    def from_dataset(
        cls,
        data: LoggedDataset,
        device: torch.device | None = None,
        states: Standardizer | None = None,
        actions: Standardizer | None = None,
        *,
        horizon_ends: bool = False,
    ) -> Transitions:
        """Put a log on a device.

        Parameters
        ----------
        data : LoggedDataset
        device : torch.device, optional
        states, actions : Standardizer, optional
            Applied to states, and to continuous actions.
        horizon_ends : bool
            Whether nothing follows the horizon, as in time-indexed methods. To a stationary one it is a truncation.

        Notes
        -----
        A truncation bootstraps from its final state; where that is unknown, or has no action that is known to be
        available, the last transition has no Bellman target.
        """
        final = usable_finals(data)
        table = (
            np.concatenate([data.states, data.final_states[final]]) if data.final_states is not None else data.states
        )
        continues, bellman = np.ones(len(data)), np.ones(len(data))
        last, goes_on = data.offsets[1:] - 1, data.ends != End.TERMINAL
        if horizon_ends:
            goes_on = (data.ends == End.TRUNCATED) & (data.lengths != data.horizon)
        continues[last[~goes_on]] = 0.0
        excluded = last[goes_on & ~final]
        bellman[excluded] = 0.0
        logged_actions = data.actions if actions is None or data.discrete else actions.transform(data.actions)

        def move(array: npt.NDArray[np.generic], dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.as_tensor(np.array(array), dtype=dtype, device=device)

        return cls(
            states=move(table if states is None else states.transform(table)),
            next_index=move(_successors(data, final), torch.int64),
            actions=move(logged_actions, torch.int64 if data.discrete else torch.float32),
            rewards=move(data.rewards),
            continues=move(continues),
            bellman=move(bellman),
            n_excluded=len(excluded),
            n_actions=data.n_actions,
            action_mask=None if data.action_mask is None else move(_mask_table(data, final), torch.bool),
        )


def usable_finals(data: LoggedDataset) -> BoolArray:
    """Return the episodes whose final state is in the table of states behind the rows, shape (n_episodes,)."""
    return np.asarray(data.final_known() & (data.ends != End.TERMINAL))


def _successors(data: LoggedDataset, final: BoolArray) -> IntArray:
    last = data.offsets[1:] - 1
    after_last = np.where(final, len(data) + np.cumsum(final) - 1, last)
    return ragged.shift_to_next(np.arange(len(data)), data.offsets, after_last)


def _mask_table(data: LoggedDataset, final: BoolArray) -> BoolArray:
    assert data.action_mask is not None
    if data.final_action_mask is None:
        return data.action_mask
    table: BoolArray = np.concatenate([data.action_mask, data.final_action_mask[final]])
    return table


class Batch:
    """Sampled transitions of K models; what is looked at is gathered, nothing else.

    Parameters
    ----------
    transitions : Transitions
    index : Tensor of shape (K, B), int64
        Rows of each model.
    """

    def __init__(self, transitions: Transitions, index: torch.Tensor) -> None:
        self.transitions = transitions
        self.shape = index.shape
        self._rows = index.reshape(-1)

    def _gather(self, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return table.index_select(0, rows).view(*self.shape, *table.shape[1:])

    @cached_property
    def _next_rows(self) -> torch.Tensor:
        return self.transitions.next_index.index_select(0, self._rows)

    @property
    def rows(self) -> torch.Tensor:
        """Rows of the log, (K, B)."""
        return self._rows.view(self.shape)

    @property
    def next_rows(self) -> torch.Tensor:
        """Where the next states lie in the table of states, (K, B)."""
        return self._next_rows.view(self.shape)

    @cached_property
    def states(self) -> torch.Tensor:
        """States, (K, B, d)."""
        return self._gather(self.transitions.states, self._rows)

    @cached_property
    def next_states(self) -> torch.Tensor:
        """Next states, (K, B, d)."""
        return self._gather(self.transitions.states, self._next_rows)

    @cached_property
    def actions(self) -> torch.Tensor:
        """Codes (K, B), or floats (K, B, k)."""
        return self._gather(self.transitions.actions, self._rows)

    @cached_property
    def rewards(self) -> torch.Tensor:
        """Rewards, (K, B)."""
        return self._gather(self.transitions.rewards, self._rows)

    @cached_property
    def continues(self) -> torch.Tensor:
        """0 before a terminal end, else 1: (K, B)."""
        return self._gather(self.transitions.continues, self._rows)

    @cached_property
    def bellman(self) -> torch.Tensor:
        """1 where there is a Bellman target, else 0: (K, B)."""
        return self._gather(self.transitions.bellman, self._rows)

    @cached_property
    def action_mask(self) -> torch.Tensor | None:
        """Available actions, (K, B, n_actions), or None."""
        mask = self.transitions.action_mask
        return None if mask is None else self._gather(mask, self._rows)

    @cached_property
    def next_action_mask(self) -> torch.Tensor | None:
        """Available actions in the next states, (K, B, n_actions), or None."""
        mask = self.transitions.action_mask
        return None if mask is None else self._gather(mask, self._next_rows)

    def bellman_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average over the transitions that have a Bellman target: (K, B) to (K,), or (K, E, B) to (K, E)."""
        weight = self.bellman if values.ndim == 2 else self.bellman.unsqueeze(1)
        return (values * weight).sum(dim=-1) / weight.sum(dim=-1).clamp(min=1.0)


class BatchSampler:
    """Draw batches of transitions with replacement, each model by its own generator.

    Parameters
    ----------
    transitions : Transitions
    seeds : sequence of K ints
    batch_size : int
    weights : ndarray of shape (K, n) or (n,), optional
        Sampling weights of the rows: bootstrap counts of their episodes, say.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[1, 1], ends="terminal")
    >>> BatchSampler(Transitions.from_dataset(log), seeds=[0, 1, 2], batch_size=4).next().states.shape
    torch.Size([3, 4, 1])
    """

    def __init__(
        self,
        transitions: Transitions,
        seeds: Sequence[int],
        batch_size: int,
        weights: FloatArray | None = None,
    ) -> None:
        self.transitions = transitions
        self.batch_size = batch_size
        self.generators = ModelGenerators(seeds, "batches")
        self._cumulated = None if weights is None else _cumulated(weights, len(seeds))
        self._chunk = torch.empty(0)
        self._start = self.generators.state()
        self._used = CHUNK

    def next(self) -> Batch:
        """Draw the next batch."""
        if self._used == CHUNK:
            self._draw()
        index = self._chunk[self._used]
        self._used += 1
        return Batch(self.transitions, index)

    def _draw(self) -> None:
        self._start = self.generators.state()
        shape = (CHUNK, self.batch_size)
        if self._cumulated is None:
            rows = self.generators.integers(len(self.transitions), shape)
        else:
            draws = self.generators.probabilities(shape)
            rows = torch.stack([_inverse(cdf, draw) for cdf, draw in zip(self._cumulated, draws, strict=True)])
        self._chunk = rows.transpose(0, 1).contiguous().to(self.transitions.rewards.device)
        self._used = 0

    def state(self) -> dict[str, torch.Tensor]:
        """Return what it takes to go on with the same batches, with a leading model axis."""
        start = self.generators.state() if self._used == CHUNK else self._start
        return {"generators": start, "used": torch.full((len(self.generators),), self._used)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from what `state` returned."""
        self.generators.load_state(state["generators"])
        used = int(state["used"][0])
        # The chunk in use is drawn again from the state before it.
        if used < CHUNK:
            self._draw()
        self._used = used


def _cumulated(weights: FloatArray, n_models: int) -> torch.Tensor:
    weights = np.broadcast_to(np.asarray(weights, dtype=np.float64), (n_models, np.shape(weights)[-1]))
    return torch.from_numpy(np.cumsum(weights, axis=1))


def _inverse(cdf: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    # `right=True` skips rows of weight 0; the minimum guards against u * total rounding up to the total.
    rows = torch.searchsorted(cdf, uniform * cdf[-1], right=True)
    last = int(torch.searchsorted(cdf, cdf[-1]))
    return rows.clamp_(max=last)
