"""From a log back to a data frame that `LoggedDataset.from_pandas` reads as the same log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope import ragged, series
from ope.columns import plain, shown
from ope.frame import FrameLayout
from ope.schema import End
from ope.validation import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset

OWNER = "LoggedDataset.to_pandas"
# Under other names than logged propensities: read back as such, estimates would count as known.
ESTIMATES = ("estimated_log_prob", "cross_fitted_log_prob")


def write_frame(data: LoggedDataset) -> pd.DataFrame:
    """Return the log as a frame with the user's column names; see `LoggedDataset.to_pandas`."""
    layout = data.layout or FrameLayout()
    _refuse_loss(data, layout)
    added = np.zeros(data.n_episodes, dtype=bool) if layout.added is None else layout.added
    places = _Places(data.offsets, added)
    columns = [*_identifiers(data, layout, places), *_state_columns(data, places), *_actions(data, layout, places)]
    columns += [*_measured(data, places), *_flags(data, layout, places), *_next_states(data, layout, places)]
    columns += [*_masks(data, places), *_extras(data, added, places)]
    names = [name for name, _ in columns]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"{OWNER}: columns must have distinct names, got {shown(sorted(twice))} more than once; rename them in "
            "`feature_names`, `extras` or `columns` (a ColumnNames)."
        )
    return pd.DataFrame(dict(columns))


def _refuse_loss(data: LoggedDataset, layout: FrameLayout) -> None:
    """Raise a ValueError for what only rows that hold a final state could tell, if the frame has none."""
    for name in ("final_action_mask", "final_extras"):
        if layout.final_row is None and getattr(data, name) is not None:
            raise ValueError(
                f"{OWNER}: `{name}` must be absent unless the log was read from a frame with final_row=, got some: the frame would "
                f"have no rows to hold it; leave it out: data.replace({name}=None).to_pandas()."
            )


Named = Iterator[tuple[str, Any]]


class _Places:
    """Where the rows of the log and the rows that held a final state only stand in the frame."""

    def __init__(self, offsets: IntArray, added: BoolArray) -> None:
        lengths = np.diff(offsets) + added
        self.offsets = ragged.offsets_of(lengths)
        self.added = np.flatnonzero(added)
        self.finals = self.offsets[1:][added] - 1
        self.is_transition = np.ones(self.offsets[-1], dtype=bool)
        self.is_transition[self.finals] = False
        self.last = np.flatnonzero(self.is_transition)[offsets[1:] - 1]

    def spread(self, values: npt.NDArray[Any], finals: Any) -> npt.NDArray[Any]:
        """Return row-wise values with `finals`, one value per added row or one for all, at the added rows."""
        if not len(self.finals):
            return values
        out = np.empty((len(self.is_transition), *values.shape[1:]), dtype=values.dtype)
        out[self.is_transition] = values
        out[self.finals] = finals
        return out


def _identifiers(data: LoggedDataset, layout: FrameLayout, places: _Places) -> Named:
    ids = data.episode_ids[ragged.episode_index(places.offsets)]
    yield data.columns.episode, series.series_of(ids, layout.dtypes.get("episode"))
    finals = None if layout.final_times is None else layout.final_times[places.added]
    yield data.columns.time, series.series_of(places.spread(data.timesteps, finals), layout.dtypes.get("time"))


def _state_columns(data: LoggedDataset, places: _Places) -> Named:
    finals = np.empty((0, data.states.shape[1])) if data.final_states is None else data.final_states[places.added]
    for j, name in enumerate(data.feature_names):
        yield name, places.spread(data.states[:, j], finals[:, j])


def _actions(data: LoggedDataset, layout: FrameLayout, places: _Places) -> Named:
    names = data.columns.action
    if data.action_labels is not None:
        # Labels that were never logged need not fit the column's type.
        logged = np.bincount(data.actions, minlength=data.n_actions) > 0
        labels = series.series_of(data.action_labels[logged], layout.dtypes.get("action"))
        codes = (np.cumsum(logged) - 1)[data.actions]
        yield _single(names), series.with_missing(labels, places.spread(codes, -1))
        return
    if isinstance(names, str):
        names = (names,) if data.n_actions == 1 else tuple(f"{names}_{j}" for j in range(data.n_actions))
    for j, name in enumerate(names):
        yield name, places.spread(data.actions[:, j], np.nan)


def _single(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else "_".join(names)


def _measured(data: LoggedDataset, places: _Places) -> Named:
    yield data.columns.reward, places.spread(data.rewards, np.nan)
    if data.behavior_log_prob is None:
        return
    if not data.known_propensities:
        yield ESTIMATES[0], places.spread(data.behavior_log_prob, np.nan)
        if data.cross_fitted_log_prob is not None:
            yield ESTIMATES[1], places.spread(data.cross_fitted_log_prob, np.nan)
    elif data.columns.behavior_prob is not None:
        yield data.columns.behavior_prob, places.spread(exp_inverse(data.behavior_log_prob), np.nan)
    else:
        yield data.columns.behavior_log_prob or "behavior_log_prob", places.spread(data.behavior_log_prob, np.nan)


def exp_inverse(log_prob: FloatArray) -> FloatArray:
    """Return p with log(p) equal to `log_prob` to the last bit where such a p exists, else exp(log_prob).

    Examples
    --------
    >>> p = np.array([0.3, 0.7, 1.0])
    >>> bool((np.log(exp_inverse(np.log(p))) == np.log(p)).all())
    True
    """
    prob = np.exp(log_prob)
    off = np.flatnonzero(np.log(prob) != log_prob)
    for direction in (0.0, np.inf):
        near = prob[off]
        for _ in range(4):
            near = np.nextafter(near, direction)
            exact = np.log(near) == log_prob[off]
            prob[off[exact]] = near[exact]
    return prob


def _flags(data: LoggedDataset, layout: FrameLayout, places: _Places) -> Named:
    # A given-up row is the last row of its episode to `from_pandas`, so that the flag belongs there.
    rows = places.offsets[1:] - 1 if layout.final_row == "drop" else places.last
    for default, end in (("terminated", End.TERMINAL), ("truncated", End.TRUNCATED)):
        name, ended = getattr(data.columns, default), data.ends == end
        if name is not None or ended.any():
            values = np.zeros(len(places.is_transition), dtype=bool)
            values[rows[ended]] = True
            yield name or default, values


def _next_states(data: LoggedDataset, layout: FrameLayout, places: _Places) -> Named:
    names = data.columns.next_states
    if names is None:
        if data.final_states is None or layout.final_row is not None:
            return
        names = tuple(f"next_{name}" for name in data.feature_names)
    finals = np.full((data.n_episodes, len(names)), np.nan) if data.final_states is None else data.final_states
    for j, name in enumerate(names):
        successors = ragged.shift_to_next(data.states[:, j].astype(np.float64), data.offsets, finals[:, j])
        yield name, places.spread(successors, np.nan)


def _masks(data: LoggedDataset, places: _Places) -> Named:
    if data.action_mask is None or data.action_labels is None:
        return
    names = data.columns.action_mask or tuple(f"allows_{plain(label)}" for label in data.action_labels)
    for j, name in enumerate(names):
        if data.final_action_mask is None and len(places.finals):
            codes = places.spread(data.action_mask[:, j].astype(np.int64), -1)
            yield name, series.with_missing(pd.Series([False, True]), codes)
        else:
            finals = None if data.final_action_mask is None else data.final_action_mask[places.added, j]
            yield name, places.spread(data.action_mask[:, j], finals)


def _extras(data: LoggedDataset, added: BoolArray, places: _Places) -> Named:
    if data.extras is None:
        return
    table = data.extras
    if data.final_extras is not None and added.any():
        finals = data.final_extras[added].astype(table.dtypes.to_dict())
        table = pd.concat([table, finals], ignore_index=True)
        order = places.spread(np.arange(data.n_transitions), data.n_transitions + np.arange(len(places.finals)))
        table = table.take(order)
    for name in table.columns:
        yield name, table[name].array
