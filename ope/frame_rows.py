"""The rows of a data frame in the order of a log, and the words that name them in errors."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope import series
from ope.columns import MAX_SHOWN, Door, plain, shown
from ope.schema import ColumnNames
from ope.validation import BoolArray, FloatArray, IntArray

OWNER = "LoggedDataset.from_pandas"
_IN_FRAME = {"rewards": "reward", "actions": "action", "action_labels": "actions"}


@dataclass(frozen=True)
class FrameDoor(Door):
    """The voice of `from_pandas`: it names the user's columns, index labels and episodes.

    Parameters
    ----------
    owner : str
    used : mapping
        The column of each parameter.
    table : DataFrame or None
    episode : str
        The column that names the episodes.
    positions : ndarray of shape (n,)
        The row of the frame that each row in question comes from.
    """

    owner: str = OWNER
    used: Mapping[str, str] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    episode: str = ""
    positions: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    in_order: ClassVar[bool] = True

    def name(self, parameter: str) -> str:
        """Return the words for a parameter, with the column that it names."""
        parameter = _IN_FRAME.get(parameter, parameter)
        column = self.used.get(parameter)
        return f"`{parameter}`" if column is None else f"`{parameter}` (column {column!r})"

    def of(self, parameter: str, column: str) -> FrameDoor:
        """Return a door that names this column of a parameter with several."""
        return replace(self, used={**self.used, parameter: column})

    def rows(self, bad: npt.ArrayLike) -> str:
        """Name the first rows where `bad` is true by the user's index labels and episodes."""
        positions = np.sort(self.positions[np.flatnonzero(np.asarray(bad))])
        words = [self._row(int(position)) for position in positions[:MAX_SHOWN]]
        more = ", ..." if len(positions) > MAX_SHOWN else ""
        return f"index {', '.join(words)}{more} ({len(positions)} in all)"

    def _row(self, position: int) -> str:
        assert self.table is not None
        label, episode = self.table.index[position], self.table[self.episode].iloc[position]
        return f"{plain(label)!r} (episode {plain(episode)!r})"


@dataclass(frozen=True)
class Rows:
    """Rows of a frame, those of an episode one after another."""

    table: pd.DataFrame
    offsets: IntArray
    door: FrameDoor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def positions(self) -> IntArray:
        """The rows of the frame."""
        return self.door.positions

    @property
    def last(self) -> IntArray:
        """The last row of every episode."""
        return self.offsets[1:] - 1

    def mark(self, rows: IntArray) -> BoolArray:
        """Return a mask that is true in the given rows."""
        mask = np.zeros(len(self), dtype=bool)
        mask[rows] = True
        return mask

    def column(self, name: str) -> series.Column:
        """Return a column in this order."""
        return self.table[name].take(self.positions)

    def values(self, name: str) -> npt.NDArray[Any]:
        """Return a column of identifiers or times in this order, in memory that the frame does not share."""
        values = series.values_of(self.column(name))
        # pandas takes all rows in their order without a copy.
        return values.copy() if len(values) == len(self.table) else values

    def keep(self, kept: BoolArray) -> Rows:
        """Return the rows where `kept` is true; every episode must retain one."""
        if kept.all():
            return self
        offsets = np.append(0, np.cumsum(kept))[self.offsets]
        return Rows(self.table, offsets, replace(self.door, positions=self.positions[kept]))

    def only(self, rows: IntArray) -> Rows:
        """Return single rows, each of another episode."""
        return Rows(self.table, np.arange(len(rows) + 1), replace(self.door, positions=self.positions[rows]))

    def numbers(self, parameter: str, name: str, *, finite: bool = True) -> FloatArray:
        """Return a numeric column in this order; finite, or NaN where missing if not `finite`."""
        column, door = self.table[name], self.door.of(parameter, name)
        if not series.is_numeric(column):
            raise door.type_error(parameter, "be numeric", _kind(column), _numeric_remedy(column))
        values = series.numbers(column)[self.positions]
        bad = ~np.isfinite(values) if finite else np.isinf(values)
        if bad.any():
            came = f"{float(values[bad][0])} at {door.rows(bad)}"
            raise door.error(parameter, "be finite", came, self.remedy(parameter, bad))
        return values

    def remedy(self, parameter: str, bad: BoolArray) -> str:
        """Return what to do about missing values of a parameter."""
        if parameter in ("behavior_prob", "behavior_log_prob"):
            return (
                f"remove these episodes, or leave {parameter} out and estimate propensities with ope.estimate_behavior"
            )
        remedy = "remove these episodes or impute the values before"
        if parameter in ("action", "reward") and not bad[~self.mark(self.last)].any():
            remedy += '; if these rows hold the last state only, pass final_row="state_only"'
        return remedy


def _kind(column: series.Column) -> str:
    words = f"dtype {column.dtype}"
    if column.dtype != object:
        return words
    names = sorted({type(value).__name__ for value in column})
    return f"{words} with values of type {', '.join(names)}"


def _numeric_remedy(column: series.Column) -> str:
    if column.dtype.kind in "mM":
        return "convert it to a number, such as hours since the start of the episode"
    encode = "encode its categories as numbers (sklearn.preprocessing.OneHotEncoder or OrdinalEncoder)"
    if isinstance(column.dtype, pd.CategoricalDtype):
        return encode
    return f"convert it with pandas.to_numeric, or {encode}"


def flat_table(frame: Any) -> pd.DataFrame:
    """Return a frame whose named index levels are columns, too, after checking that columns can be told apart."""
    if not isinstance(frame, pd.DataFrame):
        remedy = "call its to_pandas()" if hasattr(frame, "to_pandas") else "wrap it in pandas.DataFrame"
        raise TypeError(f"{OWNER}: `frame` must be a pandas DataFrame, got {type(frame).__name__}; {remedy}.")
    if len(frame) == 0:
        raise ValueError(f"{OWNER}: `frame` must have at least one row, got none; check the query that filled it.")
    levels = [name for name in frame.index.names if name is not None]
    labels = [*frame.columns, *levels]
    strange = [label for label in labels if not isinstance(label, str)]
    if strange:
        raise TypeError(
            f"{OWNER}: columns must have strings as names, got {shown(strange)}; name them, "
            "for example frame.columns = [str(name) for name in frame.columns]."
        )
    twice = pd.Index(labels)[pd.Index(labels).duplicated()].unique()
    if len(twice):
        raise ValueError(
            f"{OWNER}: columns and index levels must have distinct names, got {shown(twice)} more than once; rename "
            "one, or drop the index with frame.reset_index(drop=True)."
        )
    return _with_levels(frame, levels)


def _with_levels(frame: pd.DataFrame, levels: list[Any]) -> pd.DataFrame:
    if not levels:
        return frame
    table = frame.copy(deep=False)
    for name in levels:
        table[name] = frame.index.get_level_values(name).array
    return table


def check_columns(table: pd.DataFrame, used: Iterable[tuple[str, str]]) -> None:
    """Raise a ValueError if a (parameter, column) names no column, or two of them the same one."""
    seen: dict[str, str] = {}
    for parameter, column in used:
        if column not in table.columns:
            near = _near(column, list(table.columns))
            hint = (
                f"did you mean {' or '.join(map(repr, near))}?" if near else f"the columns are {shown(table.columns)}"
            )
            raise ValueError(
                f"{OWNER}: `{parameter}` must name a column of the frame, got {column!r}; {hint.rstrip('.')}"
                + ("" if hint.endswith("?") else ".")
            )
        if column in seen:
            raise ValueError(
                f"{OWNER}: a column must have one use, got {column!r} for `{seen[column]}` and `{parameter}`; copy it "
                f"under another name: frame.assign({_copy_name(column)}=frame[{column!r}])."
            )
        seen[column] = parameter


def _near(name: str, columns: list[str]) -> list[str]:
    """Return the columns whose names are close, whatever the case."""
    folded = {column.casefold(): column for column in columns}
    return [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]


def _copy_name(column: str) -> str:
    return f"{column}_2" if column.isidentifier() else "copy"


def sort_rows(table: pd.DataFrame, names: ColumnNames, *, allow_gaps: bool) -> tuple[Rows, BoolArray]:
    """Return the rows by episode and time, and where a whole-number time skips values; no step may occur twice."""
    door = FrameDoor(
        used={"episode": names.episode, "time": names.time},
        table=table,
        episode=names.episode,
        positions=np.arange(len(table)),
    )
    episodes = _key(table[names.episode], "episode", door)
    time = _time_column(table[names.time], door)
    times = _key(time, "time", door)
    order = None if _is_sorted(episodes, times) else np.lexsort((times, episodes))
    if order is not None:
        episodes, times, door = episodes[order], times[order], replace(door, positions=order)
    inner = episodes[1:] == episodes[:-1]
    offsets = np.concatenate([[0], np.flatnonzero(~inner) + 1, [len(episodes)]]).astype(np.int64)
    again = np.append(False, inner & (times[1:] == times[:-1]))
    if again.any():
        raise door.error(
            "time",
            "occur once in an episode",
            f"repeated times at {door.rows(again)}",
            "keep one row per step, or number the steps with frame.groupby(episode).cumcount()",
        )
    if not (series.is_numeric(time) and series.are_whole(times)):
        return Rows(table, offsets, door), np.zeros(len(times), dtype=bool)
    return Rows(table, offsets, door), _gaps(times, inner, door, allow_gaps=allow_gaps)


def _time_column(column: series.Column, door: FrameDoor) -> series.Column:
    """Return the times as values whose order is that of time, or raise a TypeError."""
    _refuse_missing(column, "time", door)
    values = series.as_values(column)
    flaw = series.order_flaw(column)
    if flaw is not None:
        rule = "sort by time, as numbers, instants, ISO 8601 and digits of one width do"
        remedy = "convert it with pandas.to_datetime or pandas.to_numeric"
        raise door.type_error("time", rule, flaw, remedy)
    return values


def _refuse_missing(column: series.Column, parameter: str, door: FrameDoor) -> None:
    missing = column.isna().to_numpy()
    if missing.any():
        remedy = f"fill in the {parameter} or remove these rows"
        raise door.error(parameter, "not be missing", f"missing values at {door.rows(missing)}", remedy)


def _key(column: series.Column, parameter: str, door: FrameDoor) -> npt.NDArray[Any]:
    _refuse_missing(column, parameter, door)
    try:
        key = series.sort_key(column)
    except TypeError as error:
        remedy = "convert it with pandas.to_numeric or pandas.to_datetime"
        if parameter == "episode":
            remedy = f"convert it to one type: frame[{column.name!r}].astype(str)"
        raise door.type_error(parameter, "be sortable and of one type", str(error), remedy) from error
    if key.dtype.kind == "f" and not np.isfinite(key).all():
        remedy = f"fill in the {parameter} or remove these rows"
        raise door.error(parameter, "be finite", f"infinite values at {door.rows(~np.isfinite(key))}", remedy)
    return key


def _is_sorted(episodes: npt.NDArray[Any], times: npt.NDArray[Any]) -> bool:
    later = (episodes[1:] == episodes[:-1]) & (times[1:] >= times[:-1])
    return bool(((episodes[1:] > episodes[:-1]) | later).all())


def _gaps(times: npt.NDArray[Any], inner: BoolArray, door: FrameDoor, *, allow_gaps: bool) -> BoolArray:
    steps = np.diff(times.astype(np.int64) if times.dtype.kind in "if" else times)
    gaps = np.append(False, inner & (steps != 1))
    if not gaps.any():
        return gaps
    widths = np.unique(steps[inner])
    came = f"gaps before {door.rows(gaps)}"
    if not allow_gaps:
        remedy = "add the missing rows, or pass allow_gaps=True if the next row is the next step"
        if len(widths) == 1:
            remedy = f"divide it by {widths[0]}, by which all steps are apart, or pass allow_gaps=True"
        raise door.error("time", "rise by 1 from row to row of an episode", came, remedy)
    warnings.warn(f"{OWNER}: {door.name('time')} has {came}; each counts as one step.", UserWarning, stacklevel=5)
    return gaps
