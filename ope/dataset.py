"""`LoggedDataset`: immutable columns over all logged transitions, episodes one after another, no padding."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import Unpack

from ope import columns as columns_
from ope import describe as describe_
from ope import frame as frame_
from ope import frame_write, ragged, series
from ope.frame import FinalRow, FrameArguments, FrameLayout
from ope.inference.weights import hash_identifiers
from ope.ragged import Scalar
from ope.schema import BehaviorSource, ColumnNames, End
from ope.validation import BoolArray, FloatArray, IntArray, check_length

OWNER = "LoggedDataset"
BLOCK_ROWS = 1 << 18
BY_ROW = ("states", "actions", "rewards", "timesteps", "behavior_log_prob", "cross_fitted_log_prob", "action_mask")


@dataclass(frozen=True)
class Rows:
    """What a policy may look at: states, with the row-aligned action mask and extra columns where the log has them."""

    states: FloatArray
    feature_names: tuple[str, ...]
    action_mask: BoolArray | None = None
    extras: pd.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.states)


# Before pandas 3 a copy that is not deep shares what is written to it.
COPIES_ARE_LAZY = int(pd.__version__.split(".")[0]) >= 3


class _Table:
    """A field that holds a frame and gives copies of it, so that nothing written to those reaches the log."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, log: LoggedDataset | None, owner: type) -> pd.DataFrame | None:
        table: pd.DataFrame | None = None if log is None else vars(log)[self.name]
        return None if table is None else table.copy(deep=not COPIES_ARE_LAZY)

    def __set__(self, log: LoggedDataset, table: pd.DataFrame | None) -> None:
        vars(log)[self.name] = table


@dataclass(frozen=True, eq=False, repr=False)
class LoggedDataset:
    """Logged transitions of one behaviour policy, grouped in episodes.

    Build it with `from_pandas`, `from_arrays`, `from_parquet` or a function of `ope.io`; these check the input once,
    so that nothing behind them has to.

    Parameters
    ----------
    states : ndarray of shape (n, d)
        State before each action.
    actions : ndarray of shape (n,) or (n, k)
        Codes into `action_labels`, or continuous actions.
    rewards : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
        Episode i owns the rows offsets[i] to offsets[i + 1] - 1.
    ends : ndarray of shape (n_episodes,)
        Codes of `End`.
    timesteps : ndarray of shape (n,)
        The user's time of each row.
    episode_ids : ndarray of shape (n_episodes,)
        The user's identifier of each episode.
    feature_names : tuple of str
    action_labels : ndarray of shape (n_actions,) or None
        Sorted labels of discrete actions, never logged ones included; None for continuous actions.
    behavior_log_prob : ndarray of shape (n,) or None
        Log probability (density) of the logged action under the behaviour policy.
    cross_fitted_log_prob : ndarray of shape (n,) or None
        The same from a model that never saw the row's episode: what doubly robust methods use.
    behavior_source : BehaviorSource or None
    action_mask : ndarray of shape (n, n_actions) or None
        Which actions were available.
    final_states : ndarray of shape (n_episodes, d) or None
        State after the last action; NaN where unknown.
    final_action_mask : ndarray of shape (n_episodes, n_actions) or None
        Which actions were available in the final states; none where unknown.
    extras : DataFrame of n rows or None
        All other columns of the log.
    final_extras : DataFrame of n_episodes rows or None
        The same at the final states, where recorded.
    reward_range : tuple of two floats or None
        Bounds of a single reward, known a priori.
    horizon : int or None
        The number of steps of the problem where the time limit is part of it.
    columns : ColumnNames
    n_dropped_rows : int
        Last rewards given up by ``final_row="drop"``.
    layout : FrameLayout or None
        What else `to_pandas` needs to give back the frame that the log was read from.

    Examples
    --------
    >>> log = LoggedDataset.from_arrays(
    ...     [[0.0], [1.0], [0.0]], ["a", "b", "a"], [0.0, 1.0, 2.0], lengths=[2, 1], ends="terminal"
    ... )
    >>> log
    LoggedDataset(2 episodes, 3 transitions, 1 feature, actions ['a', 'b'], 2 terminal, no propensities)
    >>> log.rewards[log.offsets[0] : log.offsets[1]]
    array([0., 1.])
    """

    states: FloatArray
    actions: npt.NDArray[Any]
    rewards: FloatArray
    offsets: IntArray
    ends: npt.NDArray[np.int8]
    timesteps: npt.NDArray[Any]
    episode_ids: npt.NDArray[Any]
    feature_names: tuple[str, ...]
    action_labels: npt.NDArray[Any] | None
    behavior_log_prob: FloatArray | None = None
    cross_fitted_log_prob: FloatArray | None = None
    behavior_source: BehaviorSource | None = None
    action_mask: BoolArray | None = None
    final_states: FloatArray | None = None
    final_action_mask: BoolArray | None = None
    extras: _Table = _Table()
    final_extras: _Table = _Table()
    reward_range: tuple[float, float] | None = None
    horizon: int | None = None
    columns: ColumnNames = field(default_factory=ColumnNames)
    n_dropped_rows: int = 0
    layout: FrameLayout | None = None

    def __post_init__(self) -> None:
        self._freeze()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._freeze()

    def _freeze(self) -> None:
        """Make all arrays read-only, as pickle and copies forget that they are."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                vars(self)[name] = _read_only(value)

    # ---------------------------------------------------------------- constructors

    @classmethod
    def from_arrays(
        cls,
        states: npt.ArrayLike,
        actions: npt.ArrayLike,
        rewards: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike,
        ends: npt.ArrayLike | str,
        behavior_prob: npt.ArrayLike | None = None,
        behavior_log_prob: npt.ArrayLike | None = None,
        action_labels: Sequence[Any] | npt.NDArray[Any] | None = None,
        continuous: bool | None = None,
        action_mask: npt.ArrayLike | None = None,
        final_states: npt.ArrayLike | None = None,
        final_action_mask: npt.ArrayLike | None = None,
        timesteps: npt.ArrayLike | None = None,
        episode_ids: npt.ArrayLike | None = None,
        feature_names: Sequence[str] | None = None,
        extras: pd.DataFrame | None = None,
        final_extras: pd.DataFrame | None = None,
        reward_range: tuple[float, float] | None = None,
        horizon: int | None = None,
        columns: ColumnNames | None = None,
        n_dropped_rows: int = 0,
    ) -> LoggedDataset:
        """Build a log from arrays whose rows are ordered by episode and time.

        Parameters
        ----------
        states : array-like of shape (n, d) or (n,)
        actions : array-like of shape (n,) or (n, k)
            Labels of discrete actions, or continuous actions as floats.
        rewards : array-like of shape (n,)
        lengths : array-like of shape (n_episodes,)
            Number of steps of each episode, at least 1.
        ends : str or array-like of shape (n_episodes,)
            "terminal", "horizon" or "truncated", or `End` codes; one for all or one for each episode.
        behavior_prob, behavior_log_prob : array-like of shape (n,), optional
            Probability (density for continuous actions) of each logged action, or its logarithm. One of them at most.
        action_labels : sequence, optional
            All discrete actions that exist; default: those that occur.
        continuous : bool, optional
            Whether actions are continuous; default: two-dimensional or floating-point actions are.
        action_mask : array-like of shape (n, n_actions), optional
        final_states : array-like of shape (n_episodes, d), optional
            State after the last step, NaN where unknown; required where an episode is truncated.
        final_action_mask : array-like of shape (n_episodes, n_actions), optional
        timesteps, episode_ids : array-like, optional
        feature_names : sequence of str, optional
        extras, final_extras : DataFrame, optional
        reward_range : (float, float), optional
        horizon : int, optional
            Needed only if no episode ends by the horizon.
        columns : ColumnNames, optional
        n_dropped_rows : int, optional

        Returns
        -------
        LoggedDataset

        Raises
        ------
        ValueError, TypeError
            Naming the argument, the rule, the first offending rows and the remedy.

        Examples
        --------
        >>> LoggedDataset.from_arrays(
        ...     [[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[2], ends="horizon", behavior_prob=[0.5, 0.5]
        ... )
        LoggedDataset(1 episode, 2 transitions, 1 feature, actions [0, 1], 1 horizon (2 steps), propensities known)
        """
        given = {name: value for name, value in locals().items() if name != "cls"}
        return cls(**columns_.unshared(columns_.log_fields(columns_.ARRAYS, **given), given))

    @classmethod
    def from_pandas(
        cls,
        frame: pd.DataFrame,
        *,
        episode: str,
        time: str,
        states: Sequence[str],
        action: str | Sequence[str],
        reward: str,
        behavior_prob: str | None = None,
        behavior_log_prob: str | None = None,
        terminated: str | None = None,
        truncated: str | None = None,
        next_states: Sequence[str] | None = None,
        final_row: FinalRow | None = None,
        actions: Sequence[Any] | npt.NDArray[Any] | None = None,
        continuous: bool | None = None,
        action_mask: Sequence[str] | Mapping[Any, str] | None = None,
        horizon: int | None = None,
        reward_range: tuple[float, float] | None = None,
        allow_gaps: bool = False,
    ) -> LoggedDataset:
        """Build a log from a data frame with a row per step, in any order.

        Parameters
        ----------
        frame : DataFrame
            Named levels of its index count as columns; an index without names is only used to name rows in errors.
        episode, time : str
            Columns of the episode's identifier and of the time within it, of any sortable type; text as a time must be ISO 8601
            or digits of one width.
        states : sequence of str
            Numeric columns of the state before the action.
        action : str or sequence of str
            A column of labels, or the columns of a continuous action.
        reward : str
        behavior_prob, behavior_log_prob : str, optional
            Column of the probability (density) with which the logged action was chosen, or its logarithm. One at most.
        terminated, truncated : str, optional
            Boolean columns, true in the last row of episodes that ended for good, or whose recording stopped. Episodes
            without a flag end by the horizon and must have one length.
        next_states : sequence of str, optional
            Columns of the state after the step, in the order of `states`, missing where unknown. Checked against the
            next row; used after the last.
        final_row : {"state_only", "drop"}, optional
            "state_only": the last row of every episode holds the state after its last step, without action and reward.
            "drop": where an episode is truncated and `next_states` do not tell the state after its last step, give up
            its last action and reward and take the state of that row.
        actions : sequence, optional
            Labels of all discrete actions that exist; default: those that occur, or the keys of `action_mask`.
        continuous : bool, optional
            Whether the action is continuous; default: floating-point columns without `actions` are, unless they hold whole
            numbers and are missing in given-up or state-only rows. Whole numbers as labels become integers.
        action_mask : sequence of str or mapping, optional
            Boolean columns that say whether an action was available: in the order of `actions` (without it, of the
            sorted labels), or by label.
        horizon : int, optional
            Number of steps of the problem; needed only if no episode ends by the horizon.
        reward_range : (float, float), optional
            Bounds that hold for every reward that can occur.
        allow_gaps : bool
            Whether a time of whole numbers may skip values: each gap then counts as one step, with a warning.

        Returns
        -------
        LoggedDataset
            All other columns are kept as `extras`, and those of state-only and given-up rows as `final_extras`.

        Raises
        ------
        ValueError, TypeError
            Naming the column, the first offending rows by index label and episode, the rule and the remedy.

        Warns
        -----
        UserWarning
            With the number of gaps, if `allow_gaps` lets some pass.

        Examples
        --------
        >>> import pandas as pd
        >>> frame = pd.DataFrame(
        ...     {
        ...         "patient": ["p", "p", "q"],
        ...         "hour": [0, 1, 0],
        ...         "pain": [3.0, 2.0, 5.0],
        ...         "drug": ["a", "b", "a"],
        ...         "reward": [0.0, 1.0, 0.0],
        ...         "well": [False, True, True],
        ...     }
        ... )
        >>> names = dict(episode="patient", time="hour", states=["pain"], action="drug", reward="reward")
        >>> LoggedDataset.from_pandas(frame, **names, terminated="well")
        LoggedDataset(2 episodes, 3 transitions, 1 feature, actions ['a', 'b'], 2 terminal, no propensities)
        """
        given = {name: value for name, value in locals().items() if name != "cls"}
        read = frame_.read_frame(**given)
        return cls(**columns_.log_fields(read.door, **read.arguments), layout=read.layout)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str], **names: Unpack[FrameArguments]) -> LoggedDataset:
        """Build a log from a Parquet file, or a folder of them, with a row per step.

        Parameters
        ----------
        path : str or path-like
        **names
            The arguments of `from_pandas`.

        Returns
        -------
        LoggedDataset

        Raises
        ------
        ValueError, TypeError
            As `from_pandas`.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[1, 1], ends="terminal")
        >>> names = dict(episode="episode", time="time", states=["state_0"], action="action", reward="reward")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "log.parquet"
        ...     log.to_pandas().to_parquet(path)
        ...     LoggedDataset.from_parquet(path, **names, terminated="terminated", truncated="truncated")
        LoggedDataset(2 episodes, 2 transitions, 1 feature, actions [0, 1], 2 terminal, no propensities)
        """
        return cls.from_pandas(pd.read_parquet(path), **names)

    # ---------------------------------------------------------------- words and frames

    def to_pandas(self) -> pd.DataFrame:
        """Return the log as a data frame with the user's column names.

        Read by `from_pandas` with the arguments that the log was read with, it gives the same log; for a part of a log also
        pass its `horizon` and `action_labels` (actions=), which may not show in the part's rows. Where final states
        are known, it has columns of next states, or the last rows that the log was read with. Estimated propensities
        are called "estimated_log_prob" and "cross_fitted_log_prob", lest they be taken for logged ones.

        Returns
        -------
        DataFrame
            A row per transition, ordered by episode and time.

        Raises
        ------
        ValueError
            If two columns would have the same name, or masks or other columns of final states would have no rows.

        Examples
        --------
        >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[2], ends="terminal")
        >>> log.to_pandas()
           episode  time  state_0  action  reward  terminated  truncated
        0        0     0      0.0       0     1.0       False      False
        1        0     1      1.0       1     2.0        True      False
        """
        return frame_write.write_frame(self)

    def describe(self) -> pd.Series[Any]:
        """Return what the log holds: sizes, ends, ranges of states, actions, rewards, returns and propensities.

        Returns
        -------
        Series
            Indexed by (part, item).

        Examples
        --------
        >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[2], ends="terminal")
        >>> log.describe()["length", "max"], log.describe()["return", "mean"]
        (2, 3.0)
        """
        return describe_.describe(self)

    # ---------------------------------------------------------------- shape and identity

    @property
    def n_transitions(self) -> int:
        """Number of logged transitions."""
        return len(self.rewards)

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.offsets) - 1

    @property
    def discrete(self) -> bool:
        """Whether actions are discrete."""
        return self.action_labels is not None

    @property
    def n_actions(self) -> int:
        """Number of discrete actions, or dimension of continuous ones."""
        return len(self.action_labels) if self.action_labels is not None else int(self.actions.shape[1])

    @cached_property
    def lengths(self) -> IntArray:
        """Number of steps of each episode, shape (n_episodes,)."""
        return _read_only(np.diff(self.offsets))

    @cached_property
    def episode_keys(self) -> npt.NDArray[np.uint64]:
        """Hash of each episode's identifier, shape (n_episodes,): what folds and bootstrap weights are drawn from."""
        return _read_only(hash_identifiers(self.episode_ids))

    @cached_property
    def rewritten_keys(self) -> tuple[IntArray, npt.NDArray[np.uint64]]:
        """Episodes whose identifier is a whole number or its text, and the hash of the other form: files forget which."""
        episodes, values = series.rewritten(self.episode_ids)
        return episodes, _read_only(hash_identifiers(values))

    @cached_property
    def data_id(self) -> str:
        """Hash of the episode identifiers in their order; estimates with equal ones can be compared in pairs."""
        return hashlib.blake2b(self.episode_keys.tobytes(), digest_size=8).hexdigest()

    @property
    def known_propensities(self) -> bool:
        """Whether the log holds propensities that were recorded, not estimated."""
        return self.behavior_source is not None and self.behavior_source.known

    def __len__(self) -> int:
        return self.n_transitions

    def __repr__(self) -> str:
        return describe_.one_line(self)

    def _repr_html_(self) -> str:
        return describe_.html(self)

    # ---------------------------------------------------------------- rows

    def rows(self) -> Rows:
        """Return what policies may look at in every logged row."""
        return Rows(self.states, self.feature_names, self.action_mask, self.extras)

    def final_rows(self, episodes: IntArray) -> Rows:
        """Return what policies may look at in the final states of the chosen episodes; these must be known."""
        if self.final_states is None:
            raise ValueError(f"{OWNER}: no final states are recorded; pass next_states= or final_row= to from_pandas.")
        return Rows(
            self.final_states[episodes],
            self.feature_names,
            None if self.final_action_mask is None else self.final_action_mask[episodes],
            None if self.final_extras is None else self.final_extras.iloc[episodes],
        )

    def final_known(self) -> BoolArray:
        """Return where the final state is known, shape (n_episodes,): it is recorded, and so is what can be done in it.

        In a log with action masks, a final state without one is unknown, except after a terminal end, where nothing is done.
        """
        if self.final_states is None:
            return np.zeros(self.n_episodes, dtype=bool)
        known: BoolArray = np.logical_and.reduce(~np.isnan(self.final_states), axis=1)
        if self.action_mask is None:
            return known
        told: BoolArray = self.ends == End.TERMINAL
        if self.final_action_mask is not None:
            told = told | np.logical_or.reduce(self.final_action_mask, axis=1)
        return known & told

    # ---------------------------------------------------------------- parts

    def select(self, episodes: npt.ArrayLike | slice) -> LoggedDataset:
        """Return the chosen episodes as a log of its own.

        Parameters
        ----------
        episodes : slice or array-like
            Positions of episodes, or a boolean mask of shape (n_episodes,). A slice of step 1 copies nothing.

        Returns
        -------
        LoggedDataset

        Raises
        ------
        ValueError
            If no episode is left, or a position does not exist or occurs twice.

        Examples
        --------
        >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[1, 1], ends="terminal")
        >>> log.select([1]).rewards
        array([2.])
        """
        if isinstance(episodes, slice) and episodes.step in (None, 1):
            first, last, _ = episodes.indices(self.n_episodes)
            if last <= first:
                raise ValueError(
                    f"{OWNER}.select: `episodes` must name at least one episode, got {episodes}; widen it."
                )
            return self._part(
                slice(self.offsets[first], self.offsets[last]), slice(first, last), self.offsets[first : last + 1]
            )
        chosen = _positions(episodes, self.n_episodes)
        rows = ragged.rows_of(chosen, self.offsets)
        return self._part(rows, chosen, ragged.offsets_of(self.lengths[chosen]))

    def _part(self, rows: Any, episodes: Any, offsets: IntArray) -> LoggedDataset:
        def take(array: npt.NDArray[Any] | None, index: Any) -> Any:
            return None if array is None else array[index]

        def take_frame(table: pd.DataFrame | None, index: Any) -> pd.DataFrame | None:
            if table is None:
                return None
            part: pd.DataFrame = table.iloc[index]
            part.index = pd.RangeIndex(len(part))
            return part

        by_episode = ("ends", "episode_ids", "final_states", "final_action_mask")
        parts = {name: take(getattr(self, name), rows) for name in BY_ROW}
        parts |= {name: take(getattr(self, name), episodes) for name in by_episode}
        layout = None if self.layout is None else self.layout.take(episodes)
        return replace(
            self,
            **parts,
            layout=layout,
            n_dropped_rows=self.n_dropped_rows if layout is None else layout.n_dropped_rows,
            offsets=offsets - offsets[0],
            extras=take_frame(self.extras, rows),
            final_extras=take_frame(self.final_extras, episodes),
        )

    def split(self, test_size: float = 0.5, random_state: int | None = 0) -> tuple[LoggedDataset, LoggedDataset]:
        """Split by episode into a part to learn from and a part to evaluate on.

        Parameters
        ----------
        test_size : float
            Share of the episodes in the second part, in (0, 1).
        random_state : int or None

        Returns
        -------
        train, test : LoggedDataset

        Raises
        ------
        ValueError
            If a part would be empty.

        Examples
        --------
        >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[1, 1], ends="terminal")
        >>> [part.n_episodes for part in log.split(test_size=0.5, random_state=0)]
        [1, 1]
        """
        if isinstance(test_size, bool) or not isinstance(test_size, (int, float, np.number)) or not 0 < test_size < 1:
            raise ValueError(
                f"{OWNER}.split: `test_size` must be in (0, 1), got {test_size!r}; pass the second part's share."
            )
        n_test = round(self.n_episodes * float(test_size))
        if not 0 < n_test < self.n_episodes:
            raise ValueError(
                f"{OWNER}.split: `test_size`={test_size!r} of {self.n_episodes} episodes leaves a part empty; "
                "pass a share in (0, 1) that gives each part an episode."
            )
        order = np.random.default_rng(random_state).permutation(self.n_episodes)
        return self.select(np.sort(order[n_test:])), self.select(np.sort(order[:n_test]))

    def blocks(self, max_rows: int = BLOCK_ROWS) -> Iterator[LoggedDataset]:
        """Yield the log in groups of whole episodes, at most `max_rows` rows or one longer episode; copy nothing.

        Examples
        --------
        >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[1, 1], ends="terminal")
        >>> [block.n_episodes for block in log.blocks(max_rows=1)]
        [1, 1]
        """
        for first, last in ragged.block_bounds(self.offsets, max_rows):
            yield self if (first, last) == (0, self.n_episodes) else self.select(slice(first, last))

    def replace(self, **changes: Any) -> LoggedDataset:
        """Return a copy with some fields exchanged; the fields are taken as they are."""
        return replace(self, **changes)


def _read_only(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Return a view that cannot be written."""
    view = array.view()
    view.flags.writeable = False
    return view


def _positions(episodes: npt.ArrayLike | slice, n_episodes: int) -> IntArray:
    chosen = np.arange(n_episodes)[episodes] if isinstance(episodes, slice) else np.asarray(episodes)
    if chosen.dtype == bool:
        check_length(OWNER, "episodes", chosen, n_episodes, "episode")
        chosen = np.flatnonzero(chosen)
    if chosen.ndim != 1 or len(chosen) == 0 or chosen.dtype.kind not in "iu":
        raise ValueError(
            f"{OWNER}.select: `episodes` must name at least one episode by position or mask, got {episodes!r}; "
            "find positions with numpy.flatnonzero."
        )
    if chosen.min() < -n_episodes or chosen.max() >= n_episodes:
        raise ValueError(
            f"{OWNER}.select: `episodes` must lie in 0 to {n_episodes - 1}, got {int(chosen.min())} to "
            f"{int(chosen.max())}; count the episodes with n_episodes."
        )
    positions = chosen.astype(np.int64) % n_episodes
    if len(again := np.flatnonzero(np.bincount(positions) > 1)):
        raise ValueError(
            f"{OWNER}.select: `episodes` must name each episode once, got {int(again[0])} several times ({len(again)} "
            "episodes in all); copies count as new evidence: to weigh episodes, pass episode_weight= to fit."
        )
    return positions


def check_log(owner: str, data: Any) -> None:
    """Raise a TypeError unless `data` is a log."""
    if not isinstance(data, LoggedDataset):
        raise TypeError(
            f"{owner}: `data` must be a LoggedDataset, got {type(data).__name__}; build one with LoggedDataset.from_pandas "
            "or from_arrays."
        )
