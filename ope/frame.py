"""Reading a data frame: names, ends, final states and columns of a log. `ope.frame_write` is the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import Required, TypedDict

from ope import series
from ope.columns import label_array, plain, plain_array, refuse_fractions, shown
from ope.frame_rows import OWNER, FrameDoor, Rows, check_columns, flat_table, sort_rows
from ope.schema import ColumnNames, End
from ope.validation import BoolArray, FloatArray, IntArray

FINAL_MASK = (
    "fill in what could be done in the final states of truncated episodes, or, if that is unknown, give these states as "
    "next_states=, which need no masks"
)
FinalRow = Literal["state_only", "drop"]


class FrameArguments(TypedDict, total=False):
    """The keyword arguments of `LoggedDataset.from_pandas`."""

    episode: Required[str]
    time: Required[str]
    states: Required[Sequence[str]]
    action: Required[str | Sequence[str]]
    reward: Required[str]
    behavior_prob: str | None
    behavior_log_prob: str | None
    terminated: str | None
    truncated: str | None
    next_states: Sequence[str] | None
    final_row: FinalRow | None
    actions: Sequence[Any] | npt.NDArray[Any] | None
    continuous: bool | None
    action_mask: Sequence[str] | Mapping[Any, str] | None
    horizon: int | None
    reward_range: tuple[float, float] | None
    allow_gaps: bool


@dataclass(frozen=True)
class FrameLayout:
    """How the frame looked that a log came from, beyond its column names, so that `to_pandas` can give the same one.

    Parameters
    ----------
    dtypes : mapping
        The pandas dtypes of the episode, time and action columns.
    final_row : {"state_only", "drop"} or None
    added : ndarray of shape (n_episodes,) or None
        Which episodes had a last row that holds no transition of the log.
    final_times : ndarray of shape (n_episodes,) or None
        The time of the last row of each episode, whether it is a transition or not.
    """

    dtypes: Mapping[str, Any] = field(default_factory=dict)
    final_row: FinalRow | None = None
    added: BoolArray | None = None
    final_times: npt.NDArray[Any] | None = None

    @property
    def n_dropped_rows(self) -> int:
        """Number of last rows whose reward was given up."""
        return int(self.added.sum()) if self.added is not None and self.final_row == "drop" else 0

    def take(self, episodes: Any) -> FrameLayout:
        """Return the layout of the chosen episodes."""
        if self.added is None or self.final_times is None:
            return self
        return replace(self, added=self.added[episodes], final_times=self.final_times[episodes])


@dataclass(frozen=True)
class FrameLog:
    """What a frame says: arguments of `log_fields`, the layout, and the voice that names the frame's rows in errors."""

    arguments: dict[str, Any]
    layout: FrameLayout
    door: FrameDoor


def read_frame(frame: pd.DataFrame, **given: Any) -> FrameLog:
    """Read a frame with the arguments of `LoggedDataset.from_pandas`, all of them given."""
    table = flat_table(frame)
    names, features, labels = column_names(given)
    single = dict(_single_uses(names))
    used = [*single.items(), *_multiple_uses(names, features)]
    check_columns(table, used)
    rows, gaps = sort_rows(table, names, allow_gaps=given["allow_gaps"])
    rows = replace(rows, door=replace(rows.door, used=single))
    states = _state_columns(rows, features)
    finals = _next_states(rows, names.next_states, states, gaps)
    ends = _ends(rows, names, given["final_row"])
    added = _added(rows, names, ends, finals, given["final_row"])
    last = rows.last[added]
    finals[added] = states[last]
    transition = ~rows.mark(last)
    kept = rows.keep(transition)
    actions, continuous = _actions(rows, kept, names.action, given["continuous"], labels is not None)
    layout = _layout(rows, names, added, given["final_row"])
    arguments = {
        "states": states if kept is rows else states[transition],
        "actions": actions,
        "rewards": kept.numbers("reward", names.reward),
        "lengths": np.diff(kept.offsets),
        "ends": ends,
        **_propensities(kept, names),
        "action_labels": labels,
        "continuous": continuous,
        **_masks(kept, rows.only(last), names.action_mask, ends, added, finals),
        "final_states": finals,
        "timesteps": kept.values(names.time),
        "episode_ids": rows.only(rows.offsets[:-1]).values(names.episode),
        "feature_names": features,
        **_extras(kept, rows.only(last), added, {column for _, column in used}),
        "reward_range": given["reward_range"],
        "horizon": given["horizon"],
        "columns": names,
        "n_dropped_rows": layout.n_dropped_rows,
    }
    return FrameLog(arguments, layout, kept.door)


# -------------------------------------------------------------------- names


def column_names(given: Mapping[str, Any]) -> tuple[ColumnNames, tuple[str, ...], Any]:
    """Return the names of the columns, those of the states, and the action labels that exist where they are given."""
    _check_choices(given)
    features = _several("states", given["states"])
    successors = None if given["next_states"] is None else _several("next_states", given["next_states"])
    if successors is not None and len(successors) != len(features):
        raise ValueError(
            f"{OWNER}: `next_states` must name one column per state column {shown(features)}, got {shown(successors)}; "
            "list them in the same order."
        )
    action = given["action"] if isinstance(given["action"], str) else _several("action", given["action"])
    mask, labels = _mask_columns(given["action_mask"], given["actions"])
    names = ColumnNames(
        episode=_one("episode", given["episode"]),
        time=_one("time", given["time"]),
        action=action[0] if isinstance(action, tuple) and len(action) == 1 else action,
        reward=_one("reward", given["reward"]),
        behavior_prob=_optional("behavior_prob", given),
        behavior_log_prob=_optional("behavior_log_prob", given),
        terminated=_optional("terminated", given),
        truncated=_optional("truncated", given),
        action_mask=mask,
        next_states=successors,
    )
    return names, features, labels


def _check_choices(given: Mapping[str, Any]) -> None:
    final_row = given["final_row"]
    if final_row not in (None, "state_only", "drop"):
        raise ValueError(
            f'{OWNER}: `final_row` must be "state_only", "drop" or None, got {final_row!r}; say what the last row of '
            "an episode holds: its last state only, or a transition to give up."
        )
    if final_row == "state_only" and given["next_states"] is not None:
        raise ValueError(
            f'{OWNER}: `next_states` must be absent with final_row="state_only", got {given["next_states"]!r}; '
            "drop one: both give the state after the last step."
        )
    if given["behavior_prob"] is not None and given["behavior_log_prob"] is not None:
        raise ValueError(
            f"{OWNER}: `behavior_prob` or `behavior_log_prob` must be absent, got {given['behavior_prob']!r} and "
            f"{given['behavior_log_prob']!r}; drop one: they say the same thing."
        )


def _one(parameter: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{OWNER}: `{parameter}` must be the name of a column, got {value!r}; pass one string.")
    return value


def _optional(parameter: str, given: Mapping[str, Any]) -> str | None:
    return None if given[parameter] is None else _one(parameter, given[parameter])


def _several(parameter: str, value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if np.iterable(value) else (value,)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{OWNER}: `{parameter}` must be a list of column names, at least one, got {value!r}; pass strings."
        )
    return names


def _mask_columns(mask: Any, actions: Any) -> tuple[tuple[str, ...] | None, Any]:
    """Return the mask's columns in the order of the sorted labels, and the labels that exist where they are given."""
    if mask is None:
        return None, actions
    if not isinstance(mask, Mapping):
        columns = _several("action_mask", mask)
        if actions is None or len(actions) != len(columns):
            return columns, actions
        return _in_label_order(columns, actions), actions
    columns = _several("action_mask", list(mask.values()))
    if actions is not None and label_array(actions).tolist() != label_array(mask).tolist():
        raise ValueError(
            f"{OWNER}: `action_mask` must map each of the `actions` {shown(actions)} to a column, got the labels "
            f"{shown(mask)}; complete the mapping."
        )
    return _in_label_order(columns, list(mask)), list(mask)


def _in_label_order(columns: tuple[str, ...], labels: Any) -> tuple[str, ...]:
    door = FrameDoor()
    label_array(labels, door)
    return tuple(columns[i] for i in np.argsort(plain_array(labels, "action_labels", door)))


def _single_uses(names: ColumnNames) -> Iterator[tuple[str, str]]:
    for parameter in (
        "episode",
        "time",
        "action",
        "reward",
        "behavior_prob",
        "behavior_log_prob",
        "terminated",
        "truncated",
    ):
        column = getattr(names, parameter)
        if isinstance(column, str):
            yield parameter, column


def _multiple_uses(names: ColumnNames, features: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    actions = names.action if isinstance(names.action, tuple) else ()
    for parameter, columns in (
        ("states", features),
        ("action", actions),
        ("next_states", names.next_states or ()),
        ("action_mask", names.action_mask or ()),
    ):
        yield from ((parameter, column) for column in columns)


# -------------------------------------------------------------------- states and ends


def _state_columns(rows: Rows, features: tuple[str, ...]) -> FloatArray:
    single = all(rows.table[name].dtype == np.float32 for name in features)
    states = np.empty((len(rows), len(features)), dtype=np.float32 if single else np.float64)
    for j, name in enumerate(features):
        states[:, j] = rows.numbers("states", name)
    return states


def _next_states(rows: Rows, columns: tuple[str, ...] | None, states: FloatArray, gaps: BoolArray) -> FloatArray:
    """Return the recorded final states, NaN where there is none, after comparing next states with the next rows."""
    finals = np.full((len(rows.offsets) - 1, states.shape[1]), np.nan)
    chained = ~rows.mark(rows.last)
    # Behind a gap the next row is not the next state.
    chained[:-1] &= ~gaps[1:]
    before = np.flatnonzero(chained)
    for j, name in enumerate(columns or ()):
        values = rows.numbers("next_states", name, finite=False)
        finals[:, j] = values[rows.last]
        _check_chain(rows, name, values, states[:, j], before)
    missing = np.isnan(finals)
    partly = missing.any(axis=1) & ~missing.all(axis=1)
    if columns is not None and partly.any():
        name = columns[int(np.flatnonzero(missing[partly][0])[0])]
        raise rows.door.of("next_states", name).error(
            "next_states",
            "be complete or missing altogether in the last row of an episode",
            f"single missing values at {rows.door.rows(rows.mark(rows.last[partly]))}",
            "complete these rows",
        )
    return finals


def _check_chain(rows: Rows, name: str, values: FloatArray, states: FloatArray, before: IntArray) -> None:
    """Raise a ValueError unless next states are those of the next row wherever they are recorded."""
    said, found = values[before], states[before + 1]
    suspect = np.flatnonzero((said != found) & ~np.isnan(said))
    differ = before[suspect[~np.isclose(said[suspect], found[suspect], rtol=1e-5, atol=1e-8)]]
    if len(differ):
        first = differ[0]
        raise rows.door.of("next_states", name).error(
            "next_states",
            "agree with the state in the next row of the episode",
            f"{float(values[first])!r} before {float(states[first + 1])!r} at {rows.door.rows(rows.mark(differ))}",
            "add the rows that are missing in between, number apart episodes that share an identifier, or correct "
            "the columns",
        )


def _ends(rows: Rows, names: ColumnNames, final_row: FinalRow | None) -> npt.NDArray[np.int8]:
    """Return the end of every episode: flagged in its last row, otherwise the horizon."""
    at_end = rows.mark(rows.last)
    may_miss = at_end if final_row == "state_only" else np.zeros_like(at_end)
    if final_row == "state_only":
        # The flag may stand beside the last action or beside the state that it led to.
        at_end = rows.mark(np.maximum(rows.last - 1, rows.offsets[:-1])) | at_end
    flags = {
        parameter: _flags(rows, parameter, column, at_end, may_miss)
        for parameter, column in (("terminated", names.terminated), ("truncated", names.truncated))
        if column is not None
    }
    none = np.zeros(len(rows.last), dtype=bool)
    terminated, truncated = flags.get("terminated", none), flags.get("truncated", none)
    both = terminated & truncated
    if both.any():
        raise rows.door.error(
            "terminated",
            f"be false where {rows.door.name('truncated')} is true",
            f"both flags at {rows.door.rows(rows.mark(rows.last[both]))}",
            "keep one: an episode that terminated was not cut off",
        )
    return np.select([terminated, truncated], [End.TERMINAL, End.TRUNCATED], End.HORIZON).astype(np.int8)


def _flags(rows: Rows, parameter: str, column: str, at_end: BoolArray, may_miss: BoolArray) -> BoolArray:
    values = series.truths(rows.column(column))
    bad = np.isnan(values) & ~may_miss
    if bad.any():
        raw = rows.column(column)
        kind = rows.door.error if raw[bad].isna().any() or series.is_numeric(raw) else rows.door.type_error
        raise kind(
            parameter,
            "hold booleans or 0 and 1",
            f"{plain(raw[bad].iloc[0])!r} at {rows.door.rows(bad)}",
            "convert it, for example with .map({'yes': True, 'no': False}), and fill in missing flags with False",
        )
    flagged = values == 1
    early = flagged & ~at_end
    if early.any():
        raise rows.door.error(
            parameter,
            "be true in the last row of an episode only",
            f"earlier flags at {rows.door.rows(early)}",
            "correct the flags, or number apart the episodes that share an identifier",
        )
    return np.logical_or.reduceat(flagged, rows.offsets[:-1])


def _added(
    rows: Rows, names: ColumnNames, ends: npt.NDArray[np.int8], finals: FloatArray, final_row: FinalRow | None
) -> BoolArray:
    """Return which episodes have a last row that is no transition."""
    if final_row is None:
        return np.zeros(len(ends), dtype=bool)
    if final_row == "state_only":
        _check_state_only(rows, names)
        added = np.ones(len(ends), dtype=bool)
    else:
        added = (ends == End.TRUNCATED) & np.isnan(finals).all(axis=1)
    vanishing = added & (np.diff(rows.offsets) == 1)
    if vanishing.any():
        raise ValueError(
            f"{OWNER}: with final_row={final_row!r} an episode must have a row before its last one, got none at "
            f"{rows.door.rows(rows.mark(rows.last[vanishing]))}; remove these episodes, or pass next_states=."
        )
    return added


def _check_state_only(rows: Rows, names: ColumnNames) -> None:
    actions = names.action if isinstance(names.action, tuple) else (names.action,)
    for parameter, column in (("reward", names.reward), *(("action", action) for action in actions)):
        present = rows.only(rows.last).column(column).notna().to_numpy()
        if present.any():
            raise rows.door.of(parameter, column).error(
                parameter,
                'be missing in the last row of an episode with final_row="state_only"',
                f"values at {rows.door.rows(rows.mark(rows.last[present]))}",
                "append a row that holds the state after the last step, or leave final_row out",
            )


# -------------------------------------------------------------------- what a transition holds


def _actions(
    rows: Rows, kept: Rows, columns: str | tuple[str, ...], continuous: bool | None, labelled: bool
) -> tuple[Any, bool]:
    """Return the actions of the transitions and whether they are continuous."""
    if isinstance(columns, tuple):
        if continuous is False or labelled:
            raise ValueError(
                f"{OWNER}: `action` must be one column for discrete actions, got {shown(columns)}; combine them into "
                "one, or leave out continuous=False and actions=."
            )
        return np.column_stack([kept.numbers("action", name) for name in columns]), True
    column = kept.column(columns)
    floating = series.is_numeric(column) and column.dtype.kind == "f"
    # Integers become floats in a column that also holds missing values, as that of state-only rows does.
    whole = floating and _are_whole(column)
    unsaid = continuous is None and not labelled
    if unsaid:
        continuous = floating and not (whole and rows.column(columns).isna().any())
    if continuous:
        return kept.numbers("action", columns)[:, None], True
    missing = column.isna().to_numpy()
    if missing.any():
        came = f"missing values at {kept.door.rows(missing)}"
        raise kept.door.error("action", "not be missing", came, kept.remedy("action", missing))
    if unsaid:
        refuse_fractions(column, kept.door)
    return (column.astype(np.int64) if whole else column), False


def _are_whole(column: series.Column) -> bool:
    values = series.numbers(column)
    return bool((np.isfinite(values) & (values == np.floor(values))).all())


def _propensities(kept: Rows, names: ColumnNames) -> dict[str, FloatArray]:
    columns = {"behavior_prob": names.behavior_prob, "behavior_log_prob": names.behavior_log_prob}
    return {parameter: kept.numbers(parameter, column) for parameter, column in columns.items() if column is not None}


def _masks(
    kept: Rows,
    last: Rows,
    columns: tuple[str, ...] | None,
    ends: npt.NDArray[np.int8],
    added: BoolArray,
    finals: FloatArray,
) -> dict[str, BoolArray | None]:
    """Return the masks of the transitions and, where state-only rows hold some, of the final states."""
    if columns is None:
        return {}
    mask, unknown = _mask(kept, columns)
    if unknown.any():
        _raise_mask(kept, columns, unknown)
    final_mask = _final_mask(last, columns, ends, added)
    if final_mask is not None:
        # next_states bring no mask: nobody knows what could be done there.
        bare = ~added & (ends != End.TERMINAL) & np.isfinite(finals).all(axis=1)
        final_mask[bare] = False
    return {"action_mask": mask, "final_action_mask": final_mask}


def _mask(rows: Rows, columns: tuple[str, ...]) -> tuple[BoolArray, BoolArray]:
    """Return which actions are allowed, and where the columns hold something else than zeros and ones."""
    mask = np.empty((len(rows), len(columns)), dtype=bool)
    unknown = np.empty_like(mask)
    for j, name in enumerate(columns):
        values = series.truths(rows.column(name))
        mask[:, j], unknown[:, j] = values == 1, np.isnan(values)
    return mask, unknown


def _raise_mask(
    rows: Rows, columns: tuple[str, ...], unknown: BoolArray, remedy: str = "convert it, and fill in what is missing"
) -> NoReturn:
    j = int(np.flatnonzero(unknown.any(axis=0))[0])
    raw = rows.column(columns[j])
    raise rows.door.of("action_mask", columns[j]).error(
        "action_mask",
        "hold booleans or 0 and 1",
        f"{plain(raw[unknown[:, j]].iloc[0])!r} at {rows.door.rows(unknown[:, j])}",
        remedy,
    )


def _final_mask(last: Rows, columns: tuple[str, ...], ends: npt.NDArray[np.int8], added: BoolArray) -> BoolArray | None:
    mask, unknown = _mask(last, columns)
    needed = (ends[added] == End.TRUNCATED)[:, None]
    if (unknown & needed).any():
        _raise_mask(last, columns, unknown & needed, FINAL_MASK)
    if unknown.any(axis=1).all():
        return None
    # Nothing is done in the state behind other ends: a mask that is unknown or empty there counts as "all".
    vacuous = ~needed & (unknown.any(axis=1, keepdims=True) | ~mask.any(axis=1, keepdims=True))
    allowed = np.ones((len(ends), len(columns)), dtype=bool)
    allowed[added] = mask | vacuous
    empty = ~allowed[added].any(axis=1)
    if empty.any():
        came = f"none at {last.door.rows(empty)}"
        raise last.door.error("action_mask", "allow an action in every state", came, "correct the mask")
    return allowed


def _extras(kept: Rows, last: Rows, added: BoolArray, used: set[str]) -> dict[str, pd.DataFrame]:
    others = [name for name in kept.table.columns if name not in used]
    if not others:
        return {}
    extras = {"extras": kept.table[others].take(kept.positions)}
    if added.any():
        found = kept.table[others].take(last.positions).set_axis(np.flatnonzero(added), axis=0)
        extras["final_extras"] = found if added.all() else found.reindex(np.arange(len(added)))
    return extras


def _layout(rows: Rows, names: ColumnNames, added: BoolArray, final_row: FinalRow | None) -> FrameLayout:
    remembered = {"episode": names.episode, "time": names.time}
    if isinstance(names.action, str):
        remembered["action"] = names.action
    dtypes = {parameter: rows.table[column].dtype for parameter, column in remembered.items()}
    if final_row is None:
        return FrameLayout(dtypes)
    times = rows.only(rows.last).values(names.time)
    return FrameLayout(dtypes, final_row, added, times)
