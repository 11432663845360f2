"""What a run of the training loop records: metrics and how it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import pandas as pd
import torch

Tensors = dict[str, torch.Tensor]

# A loss this many times its first value is no learning curve: Bellman errors legitimately grow by 1 / (1 - gamma)^2.
EXPLOSION = 1e9


class Outcome(enum.IntEnum):
    """How the training of a model ended.

    Examples
    --------
    >>> Outcome.DIVERGED.name
    'DIVERGED'
    """

    RUNNING = 0
    COMPLETED = 1
    STOPPED = 2
    INTERRUPTED = 3
    DIVERGED = 4


@dataclass(frozen=True)
class TrainingStatus:
    """How training ended, as a sentence with advice.

    Parameters
    ----------
    outcome : Outcome
    n_updates : int
        Updates behind the networks that are kept.
    planned : int

    Examples
    --------
    >>> print(TrainingStatus(Outcome.COMPLETED, n_updates=100, planned=100))
    completed 100 updates
    """

    outcome: Outcome
    n_updates: int
    planned: int

    @property
    def ok(self) -> bool:
        """Whether training ended as planned, or by the wish of a callback."""
        return self.outcome in (Outcome.COMPLETED, Outcome.STOPPED)

    def __str__(self) -> str:
        n, planned, done = self.n_updates, self.planned, f"{self.n_updates} of {self.planned} updates"
        return {
            Outcome.RUNNING: f"running, {done}",
            Outcome.COMPLETED: f"completed {n} updates",
            Outcome.STOPPED: f"stopped by a callback after {done}",
            Outcome.INTERRUPTED: f"interrupted after {done}; what was learned is kept, and `resume` goes on from there",
            Outcome.DIVERGED: (
                f"diverged: the loss became infinite, NaN or {EXPLOSION:.0e} times its first value; the last sound "
                f"networks, those of update {n} of {planned}, are kept; lower the learning rate, or scale the rewards"
            ),
        }[self.outcome]


@dataclass
class MetricLog:
    """Averages of metrics over windows of updates; sums stay on the device until a window closes.

    Examples
    --------
    >>> log = MetricLog()
    >>> for loss in (1.0, 3.0):
    ...     log.add({"loss": torch.tensor([loss])})
    >>> log.close(update=2)
    tensor([[2.]], dtype=torch.float64)
    >>> log.frame(model=0, until=2)
       update  loss
    0       2   2.0
    """

    names: list[str] = field(default_factory=list)
    total: torch.Tensor | None = None
    first: torch.Tensor | None = None  # the loss of the first update, (K,)
    count: int = 0
    updates: list[int] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)

    def add(self, metrics: Tensors) -> None:
        """Add the metrics of one update, each (K,)."""
        if self.total is None:
            self.names = list(metrics)
            self.total = torch.zeros_like(torch.stack(list(metrics.values())))
        if self.first is None:
            self.first = metrics["loss"].clone()
        self.total += torch.stack([metrics[name] for name in self.names])
        self.count += 1

    def close(self, update: int) -> torch.Tensor:
        """End the window and return its averages, (M, K)."""
        assert self.total is not None
        row = (self.total / self.count).cpu().double()
        self.total.zero_()
        self.count = 0
        self.updates.append(update)
        self.rows.append(row)
        return row

    def broken(self) -> torch.Tensor:
        """Return which models' last window shows a divergence, (K,)."""
        last, loss = self.rows[-1], self.names.index("loss")
        first = self.rows[0][loss] if self.first is None else self.first.cpu().double()
        limit = EXPLOSION * first.abs().clamp(min=1.0)
        return ~torch.isfinite(last).all(dim=0) | ~(last[loss].abs() <= limit)

    def finite(self) -> torch.Tensor | None:
        """Return which models' open window is finite, (K,), or None where nothing is open."""
        return None if self.total is None else torch.isfinite(self.total).all(dim=0).cpu()

    def metrics(self, model: int) -> dict[str, float]:
        """Return the last window of one model."""
        return dict(zip(self.names, self.rows[-1][:, model].tolist(), strict=True))

    def frame(self, model: int, until: int) -> pd.DataFrame:
        """Return the windows of one model as a table, those that end after `until` left out."""
        n_rows = sum(update <= until for update in self.updates)
        table = torch.stack(self.rows[:n_rows])[:, :, model] if n_rows else torch.zeros(0, len(self.names))
        columns = {name: table[:, i].numpy() for i, name in enumerate(self.names)}
        return pd.DataFrame({"update": self.updates[:n_rows], **columns})

    def state(self, n_models: int) -> Tensors:
        """Return the log as tensors with a leading model axis."""
        state = {"count": torch.full((n_models,), self.count)}
        state["updates"] = torch.tensor(self.updates, dtype=torch.int64).repeat(n_models, 1)
        for i, name in enumerate(self.names):
            assert self.total is not None
            state[f"total/{i:03d}/{name}"] = self.total[i].clone()
            rows = [row[i] for row in self.rows]
            state[f"rows/{i:03d}/{name}"] = torch.stack(rows, dim=1) if rows else torch.zeros(n_models, 0).double()
        return state if self.first is None else {**state, "first": self.first.clone()}

    @classmethod
    def from_state(cls, state: Tensors, device: torch.device) -> MetricLog:
        """Rebuild a log from what `state` returned."""
        totals = sorted(name for name in state if name.startswith("total/"))
        log = cls(names=[name.split("/", 2)[2] for name in totals], count=int(state["count"][0]))
        if totals:
            log.total = torch.stack([state[name] for name in totals]).to(device)
            rows = torch.stack([state[name.replace("total/", "rows/", 1)] for name in totals])
            log.rows = list(rows.unbind(dim=2))
        log.updates = state["updates"][0].tolist()
        log.first = state["first"].to(device, copy=True) if "first" in state else None
        return log
