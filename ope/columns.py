"""Checks of the columns of a log, each returning the canonical array or naming what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope import ragged
from ope.schema import BehaviorSource, ColumnNames, End
from ope.validation import ROUNDING, BoolArray, FloatArray, IntArray, check_length, first_positions, float_array

OWNER = "LoggedDataset"
MAX_SHOWN = 5
FLAG = "flag true endings with terminated=, interrupted recordings with truncated="
MAY_SHARE = ("states", "actions", "rewards", "behavior_log_prob", "timesteps", "episode_ids")
REMEDIES = f"{FLAG}, or pass horizon= if the number of steps is known"


@dataclass(frozen=True)
class Door:
    """Who speaks in an error about a log, and how it names parameters and rows: the voice of `from_arrays`.

    `in_order` says that the rows of each episode were sorted by time already.
    """

    owner: str = OWNER
    in_order: ClassVar[bool] = False

    def name(self, parameter: str) -> str:
        """Return the words for a parameter."""
        return f"`{parameter}`"

    def rows(self, bad: npt.ArrayLike) -> str:
        """Name the first transitions where `bad` is true."""
        return first_positions(bad)

    def error(self, parameter: str, rule: str, came: str, remedy: str) -> ValueError:
        """Word a ValueError: owner, parameter, rule, what came, remedy."""
        return ValueError(self._words(parameter, rule, came, remedy))

    def type_error(self, parameter: str, rule: str, came: str, remedy: str) -> TypeError:
        """Word a TypeError the same way."""
        return TypeError(self._words(parameter, rule, came, remedy))

    def _words(self, parameter: str, rule: str, came: str, remedy: str) -> str:
        return f"{self.owner}: {self.name(parameter)} must {rule}, got {came}; {remedy}."


ARRAYS = Door()


def log_fields(
    door: Door,
    states: Any,
    actions: Any,
    rewards: Any,
    *,
    lengths: Any,
    ends: Any,
    behavior_prob: Any = None,
    behavior_log_prob: Any = None,
    action_labels: Any = None,
    continuous: bool | None = None,
    action_mask: Any = None,
    final_states: Any = None,
    final_action_mask: Any = None,
    timesteps: Any = None,
    episode_ids: Any = None,
    feature_names: Sequence[str] | None = None,
    extras: pd.DataFrame | None = None,
    final_extras: pd.DataFrame | None = None,
    reward_range: tuple[float, float] | None = None,
    horizon: int | None = None,
    columns: ColumnNames | None = None,
    n_dropped_rows: int = 0,
) -> dict[str, Any]:
    """Return the fields of a `LoggedDataset` from the arguments of `from_arrays`, all of them checked."""
    states = state_matrix(states)
    offsets = episode_offsets(lengths, len(states))
    n, n_episodes = len(states), len(offsets) - 1
    codes, labels = action_codes(actions, action_labels, continuous, n, door)
    rewards = float_array(door.owner, "rewards", rewards, 1)
    check_length(door.owner, "rewards", rewards, n, "transition")
    log_prob = log_propensities(behavior_prob, behavior_log_prob, n, discrete=labels is not None, door=door)
    ids = episode_identifiers(episode_ids, n_episodes)
    ends = end_codes(ends, n_episodes)
    finals = final_state_matrix(final_states, n_episodes, states)
    check_truncated(ends, finals, ids, door)
    mask = mask_matrix(action_mask, "action_mask", n, labels, codes, door)
    final_mask = mask_matrix(final_action_mask, "final_action_mask", n_episodes, labels, None, door)
    if mask is not None:
        warn_unmasked(ends, final_mask, ids, door)
    return {
        "states": states,
        "actions": codes,
        "rewards": rewards,
        "offsets": offsets,
        "ends": ends,
        "timesteps": timesteps if door.in_order else step_times(timesteps, offsets),
        "episode_ids": ids,
        "feature_names": distinct_features(feature_names, states.shape[1]),
        "action_labels": labels,
        "behavior_log_prob": log_prob,
        "behavior_source": None if log_prob is None else BehaviorSource(),
        "action_mask": mask,
        "final_states": finals,
        "final_action_mask": final_mask,
        "extras": aligned_frame(extras, "extras", n, "transition"),
        "final_extras": aligned_frame(final_extras, "final_extras", n_episodes, "episode"),
        "reward_range": reward_bounds(reward_range, rewards, door),
        "horizon": resolve_horizon(horizon, ends, np.diff(offsets), ids, door),
        "columns": columns or ColumnNames(),
        "n_dropped_rows": n_dropped_rows,
    }


def unshared(fields: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with a copy of every array that lies in memory of the argument of its name."""
    for name in MAY_SHARE:
        values, source = fields[name], given[name]
        lives_elsewhere = source is None or isinstance(source, (list, tuple))
        if not lives_elsewhere and np.may_share_memory(values, np.asarray(source)):
            fields[name] = values.copy()
    return fields


def state_matrix(states: npt.ArrayLike) -> FloatArray:
    """Return states as a finite (n, d) float array, n >= 1; float32 is kept."""
    array = np.asarray(states)
    if array.dtype.kind in "OUS":
        raise TypeError(
            f"{OWNER}: `states` must be numeric, got dtype {array.dtype}; encode categories as numbers first "
            "(sklearn.preprocessing.OneHotEncoder or OrdinalEncoder)."
        )
    array = float_array(OWNER, "states", array[:, None] if array.ndim == 1 else array, 2, keep_single=True)
    if 0 in array.shape:
        raise ValueError(
            f"{OWNER}: `states` must have at least one row and one column, got shape {array.shape}; the log is empty."
        )
    return array


def episode_offsets(lengths: npt.ArrayLike, n: int) -> IntArray:
    """Return offsets of episodes whose lengths are positive and sum to `n`."""
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(
            f"{OWNER}: `lengths` must be a one-dimensional integer array, got dtype {array.dtype}, shape "
            f"{array.shape}; pass the number of steps of each episode."
        )
    if len(array) == 0 or array.min() < 1:
        came = f"{array.min()} at {first_positions(array < 1)}" if len(array) else "none"
        raise ValueError(f"{OWNER}: `lengths` must be at least 1 each, got {came}; leave out empty episodes.")
    if array.sum() != n:
        raise ValueError(
            f"{OWNER}: `lengths` must sum to the number of transitions ({n}), got {int(array.sum())}; "
            "the rows of an episode are its transitions, without a last row that holds a state only."
        )
    return ragged.offsets_of(array)


def episode_identifiers(ids: npt.ArrayLike | None, n_episodes: int) -> npt.NDArray[Any]:
    """Return one distinct identifier per episode; their numbers by default."""
    if ids is None:
        return np.arange(n_episodes)
    array = np.asarray(ids)
    check_length(OWNER, "episode_ids", array, n_episodes, "episode")
    if array.ndim != 1:
        raise ValueError(
            f"{OWNER}: `episode_ids` must have one dimension, got shape {array.shape}; pass one identifier per episode."
        )
    missing = pd.isna(array)
    if missing.any():
        raise ValueError(
            f"{OWNER}: `episode_ids` must not be missing, got {plain(array[missing][0])!r} at {first_positions(missing)}; name "
            "every episode."
        )
    again = pd.Series(array).duplicated().to_numpy()
    if again.any():
        raise ValueError(
            f"{OWNER}: `episode_ids` must be distinct, got {plain(array[again][0])!r} again at "
            f"{first_positions(again)}; folds and resampling would take these episodes for one: number them apart."
        )
    return array


def step_times(timesteps: npt.ArrayLike | None, offsets: IntArray) -> npt.NDArray[Any]:
    """Return the time of every row, increasing within each episode; steps since the start by default."""
    if timesteps is None:
        return ragged.step_index(offsets)
    array = np.asarray(timesteps)
    check_length(OWNER, "timesteps", array, int(offsets[-1]), "transition")
    missing = pd.isna(array)
    if missing.any():
        raise ValueError(
            f"{OWNER}: `timesteps` must not be missing, got {plain(array[missing][0])!r} at {first_positions(missing)}; fill "
            "them in, or leave them out for steps since the start."
        )
    inner = np.ones(len(array) - 1, dtype=bool)
    inner[offsets[1:-1] - 1] = False
    late = np.append(False, inner & ~np.asarray(array[1:] > array[:-1], dtype=bool))
    if late.any():
        raise ValueError(
            f"{OWNER}: `timesteps` must increase within each episode, got others at {first_positions(late)}; sort the "
            "rows of each episode by time."
        )
    return array


def action_codes(
    actions: Any,
    labels: Sequence[Any] | npt.NDArray[Any] | None,
    continuous: bool | None,
    n: int,
    door: Door = ARRAYS,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Return (codes, sorted labels) of discrete actions or (floats of shape (n, k), None) of continuous ones."""
    array = actions if hasattr(actions, "dtype") else _untyped(actions)
    check_length(door.owner, "actions", array, n, "transition")
    unsaid = continuous is None and labels is None
    if unsaid:
        continuous = array.ndim == 2 or array.dtype.kind == "f"
    if continuous:
        if labels is not None:
            raise door.error("action_labels", "be absent for continuous actions", repr(labels), "drop one of the two")
        array = np.asarray(array)
        return float_array(door.owner, "actions", array[:, None] if array.ndim == 1 else array, 2), None
    if array.ndim != 1:
        raise ValueError(
            f"{door.owner}: discrete {door.name('actions')} must have one dimension, got shape {array.shape}; "
            "pass one label per row, or continuous=True."
        )
    if unsaid:
        refuse_fractions(pd.Series(array), door)
    return _encode(array, labels, door)


def refuse_fractions(column: Any, door: Door) -> None:
    """Raise a TypeError if a column of no floating type holds fractions: doses would become as many labels."""
    if pd.api.types.infer_dtype(column, skipna=True) not in ("floating", "mixed-integer-float", "decimal"):
        return
    values = column.dropna().unique().tolist()
    fractions = [value for value in values if value != value // 1]
    if fractions:
        raise door.type_error(
            "actions",
            "be of a floating type where they are continuous, or said to be labels where they hold fractions",
            f"{fractions[0]!s} in dtype {column.dtype}",
            "convert them with astype(float), or pass continuous=False",
        )


def _untyped(values: Any) -> npt.NDArray[Any]:
    # NumPy would turn the number in ["a", 1] into a string without a word.
    array = np.asarray(values)
    return np.array(values, dtype=object) if array.dtype.kind in "US" and array.ndim == 1 else array


def _encode(array: Any, labels: Any, door: Door) -> tuple[IntArray, npt.NDArray[Any]]:
    codes, uniques = pd.factorize(array)
    if (codes < 0).any():
        raise door.error(
            "actions",
            "not be missing",
            f"missing values at {door.rows(codes < 0)}",
            "remove these episodes or recode them",
        )
    found = plain_array(uniques, "actions", door)
    known = _sorted(found, "actions", door) if labels is None else label_array(labels, door)
    positions = pd.Index(known).get_indexer(pd.Index(found))
    if (positions < 0).any():
        unknown = positions[codes] < 0
        label = found[codes[unknown][0]]
        raise door.error(
            "actions",
            f"be among {door.name('action_labels')} {shown(known)}",
            f"{plain(label)!r} ({type(plain(label)).__name__}) at {door.rows(unknown)}",
            f"add it to {door.name('action_labels')}, or convert the labels to one type",
        )
    return positions[codes].astype(np.int64, copy=False), known


def label_array(labels: Iterable[Any], door: Door = ARRAYS) -> npt.NDArray[Any]:
    """Return the labels of all actions that exist, sorted, after checking that they are distinct and of one type."""
    values = plain_array(labels, "action_labels", door)
    if len(values) == 0 or pd.isna(values).any() or pd.Series(values).duplicated().any():
        raise door.error(
            "action_labels", "name each action once", shown(values), "leave out missing and repeated labels"
        )
    return _sorted(values, "action_labels", door)


def _sorted(values: npt.NDArray[Any], parameter: str, door: Door) -> npt.NDArray[Any]:
    try:
        return np.sort(values)
    except TypeError as error:
        raise door.type_error(parameter, "be sortable", str(error), "use integers or strings") from error


def plain_array(values: Iterable[Any], parameter: str, door: Door = ARRAYS) -> npt.NDArray[Any]:
    """Return values of one type as an array of that type: whatever held them, equal labels give equal arrays."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "mM":
        # An instant in nanoseconds would become an integer.
        values = pd.Series(values)
    items = [plain(value) for value in values]
    kinds = {type(value) for value in items}
    if len(kinds) > 1 and not kinds <= {int, float}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise door.type_error(
            parameter, "be of one type", f"values of mixed type ({names})", "convert them to one type"
        )
    if kinds and kinds <= {bool, int, float, str}:
        array = np.array(items)
        if array.dtype.kind in "biuf" or array.tolist() == items:
            return array
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def plain(value: Any) -> Any:
    """Return a NumPy scalar as the Python object that it stands for."""
    return value.item() if isinstance(value, np.generic) else value


def shown(values: Iterable[Any]) -> str:
    """List the first values, and how many there are if they are many."""
    items = [plain(value) for value in values]
    more = f", ... ({len(items)} in all)" if len(items) > MAX_SHOWN else ""
    return f"[{', '.join(map(repr, items[:MAX_SHOWN]))}{more}]"


def log_propensities(
    prob: npt.ArrayLike | None, log_prob: npt.ArrayLike | None, n: int, *, discrete: bool, door: Door = ARRAYS
) -> FloatArray | None:
    """Return log b(a|s) of the logged actions, or None where neither form is given."""
    if prob is not None and log_prob is not None:
        raise ValueError(
            f"{door.owner}: pass `behavior_prob` or `behavior_log_prob`, got both; drop one: they say the same thing."
        )
    if prob is None and log_prob is None:
        return None
    name = "behavior_prob" if prob is not None else "behavior_log_prob"
    values = float_array(door.owner, name, prob if prob is not None else log_prob, 1)
    check_length(door.owner, name, values, n, "transition")
    if prob is None:
        bad, rule = (values > ROUNDING if discrete else np.zeros(n, bool)), "be at most 0 (a log probability)"
    else:
        bad = (values <= 0) | (values > 1 + ROUNDING if discrete else False)
        rule = "be in (0, 1]" if discrete else "be positive (a density)"
    if bad.any():
        raise door.error(
            name,
            rule,
            f"{float(values[bad][0])!r} at {door.rows(bad)}",
            "an action that was taken had a positive probability: correct the values, or leave them out and estimate "
            "them with ope.estimate_behavior",
        )
    log_prob = values if prob is None else np.log(values)
    return np.minimum(log_prob, 0.0) if discrete and log_prob.max() > 0 else log_prob


def end_codes(ends: npt.ArrayLike | str, n_episodes: int) -> npt.NDArray[np.int8]:
    """Return an `End` code per episode from names, codes, or one name for all."""
    array = np.atleast_1d(np.asarray(ends))
    names = {end.name.lower(): int(end) for end in End}
    if array.dtype.kind in "UO" and all(end in names for end in array.tolist()):
        array = np.array([names[end] for end in array.tolist()], dtype=np.int8)
    if array.dtype.kind not in "iu" or not np.isin(array, list(End)).all():
        raise ValueError(
            f"{OWNER}: `ends` must be among {sorted(names)}, one or one per episode, got {shown(array.ravel())}; "
            "say how each episode ends."
        )
    if array.size == 1:
        array = np.repeat(array, n_episodes)
    check_length(OWNER, "ends", array, n_episodes, "episode")
    return array.astype(np.int8)


def final_state_matrix(final_states: npt.ArrayLike | None, n_episodes: int, states: FloatArray) -> FloatArray | None:
    """Return final states of shape (n_episodes, d) in the precision of the states, NaN rows where unknown."""
    if final_states is None:
        return None
    array = np.asarray(final_states)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{OWNER}: `final_states` must be numeric, got dtype {array.dtype}; encode them as the states, "
            "NaN where unknown."
        )
    # To a table of states, 0.1 in single precision is another state than 0.1.
    with np.errstate(over="ignore"):
        array = (array[:, None] if array.ndim == 1 else array).astype(states.dtype).astype(np.float64)
    wanted = (n_episodes, states.shape[1])
    if array.shape != wanted:
        raise ValueError(
            f"{OWNER}: `final_states` must have shape {wanted}, got {array.shape}; pass one row per "
            "episode, NaN where unknown."
        )
    missing = np.isnan(array)
    bad = np.isinf(array).any(axis=1) | (missing.any(axis=1) & ~missing.all(axis=1))
    if bad.any():
        raise ValueError(
            f"{OWNER}: `final_states` must be finite, or NaN in all columns where unknown, got others at "
            f"{first_positions(bad)}; complete these rows."
        )
    return None if missing.all() else array


def check_truncated(
    ends: npt.NDArray[np.int8], final_states: FloatArray | None, ids: npt.NDArray[Any], door: Door = ARRAYS
) -> None:
    """Raise a ValueError that lists the truncated episodes whose final state is unknown."""
    unknown = np.ones(len(ends), bool) if final_states is None else np.isnan(final_states).any(axis=1)
    bad = (ends == End.TRUNCATED) & unknown
    if bad.any():
        raise ValueError(
            f"{door.owner}: a truncated episode needs the state after its last step, got none for episodes "
            f"{shown(ids[bad])}; pass next_states= (final_states= with arrays), or a last row that holds the state "
            'only (final_row="state_only"), or give up the last reward (final_row="drop").'
        )


def warn_unmasked(
    ends: npt.NDArray[np.int8], final_mask: BoolArray | None, ids: npt.NDArray[Any], door: Door = ARRAYS
) -> None:
    """Warn of truncated episodes in whose final state the available actions are unknown."""
    truncated = ends == End.TRUNCATED
    bare = truncated if final_mask is None else truncated & ~final_mask.any(axis=1)
    if bare.any():
        warnings.warn(
            f"{door.owner}: a log with action masks should tell which actions are available in the final state of a truncated "
            f"episode, got no mask there for episodes {shown(ids[bare])}: methods that look ahead take these states for unknown "
            'and leave out the last transition; give the mask in a last row that holds the state only (final_row="state_only"), or '
            "as final_action_mask= of from_arrays.",
            UserWarning,
            stacklevel=4,
        )


def mask_matrix(
    mask: npt.ArrayLike | None,
    name: str,
    n: int,
    labels: npt.NDArray[Any] | None,
    codes: npt.NDArray[Any] | None,
    door: Door = ARRAYS,
) -> BoolArray | None:
    """Return a boolean (n, n_actions) mask in which every row allows an action and the logged action is allowed."""
    if mask is None:
        return None
    if labels is None:
        raise door.error(name, "be absent for continuous actions", "a mask", "drop it, or pass continuous=False")
    array = np.asarray(mask)
    if array.shape != (n, len(labels)):
        raise door.error(
            name, f"have shape {(n, len(labels))} (rows, actions)", str(array.shape), "give each action one column"
        )
    if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise door.type_error(name, "hold booleans or 0 and 1", f"dtype {array.dtype} with other values", "convert it")
    allowed: BoolArray = array.astype(bool)
    empty = ~allowed.any(axis=1)
    # Of a frame's final states a row without any action stands for an unknown mask.
    if empty.any() and not (door.in_order and name == "final_action_mask"):
        raise door.error(name, "allow an action in every row", f"none at {door.rows(empty)}", "correct the mask")
    if codes is not None and not (taken := allowed[np.arange(n), codes]).all():
        label = plain(labels[codes[~taken][0]])
        raise door.error(
            name,
            "allow the logged action",
            f"{label!r} masked at {door.rows(~taken)}",
            "correct the mask or the action",
        )
    return allowed


def distinct_features(names: Sequence[str] | None, dim: int) -> tuple[str, ...]:
    """Return one name per state column."""
    if names is None:
        return tuple(f"state_{i}" for i in range(dim))
    listed = [names] if isinstance(names, str) else list(names)
    if len(listed) != dim or len(set(map(str, listed))) != dim:
        raise ValueError(
            f"{OWNER}: `feature_names` must be {dim} distinct names, got {shown(listed)}; name each state column once."
        )
    return tuple(str(name) for name in listed)


def aligned_frame(table: pd.DataFrame | None, name: str, n: int, per: str) -> pd.DataFrame | None:
    """Return the frame with a fresh index, or raise if it is not aligned; an empty one becomes None."""
    if table is None:
        return None
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"{OWNER}: `{name}` must be a pandas DataFrame, got {type(table).__name__}; wrap it in pandas.DataFrame."
        )
    if table.shape[1] == 0:
        return None
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()].unique()
        raise ValueError(
            f"{OWNER}: `{name}` must have distinct columns, got {shown(twice)} more than once; rename them."
        )
    if len(table) != n:
        raise ValueError(
            f"{OWNER}: `{name}` must have one row per {per} ({n}), got {len(table)}; align it with the other columns."
        )
    return table.reset_index(drop=True)


def reward_bounds(
    bounds: tuple[float, float] | None, rewards: FloatArray, door: Door = ARRAYS
) -> tuple[float, float] | None:
    """Return the a-priori range of a reward after checking that the log obeys it."""
    if bounds is None:
        return None
    if not _are_bounds(bounds):
        raise door.error(
            "reward_range", "be finite (low, high) with low <= high", repr(bounds), "pass two numbers or None"
        )
    low, high = (float(bound) for bound in bounds)
    outside = (rewards < low) | (rewards > high)
    if outside.any():
        raise door.error(
            "rewards",
            f"lie in `reward_range` {(low, high)}",
            f"{float(rewards[outside][0])!r} at {door.rows(outside)}",
            "widen the range: it must hold for every reward that can occur",
        )
    return low, high


def _are_bounds(bounds: Any) -> bool:
    array = np.asarray(bounds)
    return array.shape == (2,) and array.dtype.kind in "iuf" and bool(np.isfinite(array).all() and array[0] <= array[1])


def resolve_horizon(
    horizon: int | None,
    ends: npt.NDArray[np.int8],
    lengths: IntArray,
    ids: npt.NDArray[Any],
    door: Door = ARRAYS,
) -> int | None:
    """Return the number of steps of the problem: that of the horizon ends, or the one given, or None."""
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1):
        raise door.error("horizon", "be a positive number of steps or None", repr(horizon), "pass an integer")
    at_horizon = ends == End.HORIZON
    steps = np.unique(lengths[at_horizon])
    if horizon is None and len(steps):
        horizon = int(steps[-1])
        if len(steps) > 1:
            _raise_lengths(lengths, at_horizon, steps, ids, door)
    if horizon is None:
        return None
    early = at_horizon & (lengths < horizon)
    if early.any():
        _raise_horizon(door, f"episodes that end unflagged before step {horizon}: {shown(ids[early])}", FLAG)
    if (late := lengths > horizon).any():
        _raise_horizon(door, f"episodes longer than the horizon of {horizon} steps: {shown(ids[late])}", REMEDIES)
    return int(horizon)


def _raise_lengths(
    lengths: IntArray, at_horizon: BoolArray, steps: IntArray, ids: npt.NDArray[Any], door: Door
) -> NoReturn:
    examples = [
        f"{length} (episode {plain(ids[at_horizon & (lengths == length)][0])!r})" for length in steps[:MAX_SHOWN]
    ]
    more = f", ... ({len(steps)} lengths in all)" if len(steps) > MAX_SHOWN else ""
    _raise_horizon(door, f"lengths {', '.join(examples)}{more}", REMEDIES)


def _raise_horizon(door: Door, came: str, remedy: str) -> NoReturn:
    raise ValueError(
        f"{door.owner}: episodes without an end flag end by the horizon and must all have its length, which no episode "
        f"exceeds; got {came}; {remedy}."
    )
