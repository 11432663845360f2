"""Cutting episodes after some steps: what a log looks like to someone who stopped earlier."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope import ragged
from ope.dataset import BY_ROW, LoggedDataset
from ope.schema import End
from ope.validation import IntArray


def cut_episodes(data: LoggedDataset, steps: int, end: End) -> LoggedDataset:
    """Return the log with episodes of more than `steps` steps cut there, and these ended by `end`.

    Parameters
    ----------
    data : LoggedDataset
    steps : int
        At least 1.
    end : End
        HORIZON: the log of a problem that takes `steps` steps, which becomes the horizon of all episodes. TRUNCATED: the
        recording stopped after `steps` steps, of the same problem as before.

    Returns
    -------
    LoggedDataset
        Episodes keep their identifiers; the state before the first step that is cut off becomes the final state.

    Examples
    --------
    >>> log = LoggedDataset.from_arrays(
    ...     [[0.0], [1.0], [2.0]], [0, 1, 0], [1.0, 2.0, 4.0], lengths=[2, 1], ends="terminal"
    ... )
    >>> cut = cut_episodes(log, 1, End.TRUNCATED)
    >>> cut.rewards, [End(code).name for code in cut.ends], cut.final_states
    (array([1., 4.]), ['TRUNCATED', 'TERMINAL'], array([[ 1.], [nan]]))
    """
    long = np.flatnonzero(data.lengths > steps)
    kept = ragged.step_index(data.offsets) < steps
    ends = data.ends.copy()
    ends[long] = end
    if end == End.HORIZON:
        # The end of this shorter problem, whatever the recording did afterwards.
        ends[(data.lengths == steps) & (ends == End.TRUNCATED)] = End.HORIZON
    next_rows = data.offsets[:-1][long] + steps
    return data.replace(
        **{name: _rows(getattr(data, name), kept) for name in BY_ROW},
        offsets=ragged.offsets_of(np.minimum(data.lengths, steps)),
        ends=ends,
        horizon=steps if end == End.HORIZON else data.horizon,
        final_states=_final(data.final_states, data.states, data.n_episodes, long, next_rows, np.nan),
        final_action_mask=_final(data.final_action_mask, data.action_mask, data.n_episodes, long, next_rows, False),
        extras=None if data.extras is None else data.extras[kept].reset_index(drop=True),
        final_extras=_final_extras(data, long, next_rows),
        layout=None,
    )


def _rows(array: npt.NDArray[Any] | None, kept: npt.NDArray[np.bool_]) -> Any:
    return None if array is None else array[kept]


def _final(
    final: npt.NDArray[Any] | None,
    rows: npt.NDArray[Any] | None,
    n_episodes: int,
    long: IntArray,
    next_rows: IntArray,
    unknown: Any,
) -> Any:
    if rows is None:
        return None
    filled = np.full((n_episodes, *rows.shape[1:]), unknown, dtype=rows.dtype) if final is None else final.copy()
    filled[long] = rows[next_rows]
    return filled


def _final_extras(data: LoggedDataset, long: IntArray, next_rows: IntArray) -> pd.DataFrame | None:
    if data.extras is None:
        return None
    cut = data.extras.iloc[next_rows].set_axis(long, axis=0)
    rest = None if data.final_extras is None else data.final_extras.drop(index=data.final_extras.index[long])
    known = cut if rest is None or rest.empty else pd.concat([cut, rest])
    return known.reindex(range(data.n_episodes))
