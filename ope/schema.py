"""The vocabulary of a log: how episodes end, what its columns were called, where its propensities come from."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class End(enum.IntEnum):
    """How an episode ends.

    TERMINAL: an absorbing state, nothing follows. HORIZON: the time limit is part of the problem. TRUNCATED: recording
    stopped, the process goes on.

    Examples
    --------
    >>> [end.name for end in End]
    ['TERMINAL', 'HORIZON', 'TRUNCATED']
    """

    TERMINAL = 0
    HORIZON = 1
    TRUNCATED = 2


@dataclass(frozen=True)
class ColumnNames:
    """The names that the columns of a log have in the user's data frame.

    Examples
    --------
    >>> ColumnNames(episode="patient", time="hour").time
    'hour'
    """

    episode: str = "episode"
    time: str = "time"
    action: str | tuple[str, ...] = "action"
    reward: str = "reward"
    behavior_prob: str | None = None
    behavior_log_prob: str | None = None
    terminated: str | None = "terminated"
    truncated: str | None = "truncated"
    action_mask: tuple[str, ...] | None = None
    next_states: tuple[str, ...] | None = None


@dataclass(frozen=True)
class BehaviorSource:
    """Where the logged propensities come from.

    Parameters
    ----------
    kind : {"known", "estimated"}
    model : str
        The fitted model, as it prints; empty for known propensities.
    parametric : bool
        Whether the model has a fixed number of parameters, which is what in-sample propensities need.
    n_folds : int
        Folds of the cross-fitted propensities that the log also holds; 0 for none.
    calibration_error : float or None
        Expected calibration error of the cross-fitted probabilities; None for densities and known propensities.
    calibration : DataFrame or None
        A row per action and bin of predicted probability: count, mean prediction, observed frequency.

    Examples
    --------
    >>> print(BehaviorSource())
    known
    """

    kind: str = "known"
    model: str = ""
    parametric: bool = True
    n_folds: int = 0
    calibration_error: float | None = None
    calibration: pd.DataFrame | None = field(default=None, compare=False)

    @property
    def known(self) -> bool:
        """Whether the propensities were logged rather than estimated."""
        return self.kind == "known"

    def __str__(self) -> str:
        if self.known:
            return "known"
        folds = f", cross-fitted in {self.n_folds} folds for doubly robust methods" if self.n_folds else ""
        return f"estimated by {self.model}{folds}"
