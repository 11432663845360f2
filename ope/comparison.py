"""`Comparison`: all paired differences of estimates on the same episodes, with errors, tests and simultaneous statements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr

from ope.display import bullets, html_table, number
from ope.estimate import Estimate, Interval
from ope.inference import multiplicity as many
from ope.inference.best import BestSet, best_set, rank_intervals
from ope.inference.checks import IntervalNotAvailable
from ope.validation import FloatArray, IntArray
from ope.verdict import Level

OWNER = "Comparison"
N_DRAWS = 20_000
LEAST_DRAWS = 2000
CELLS = 20_000_000


@dataclass(frozen=True)
class _Joint:
    """What is needed of K estimates at once: a value, a bias bound and a column of influence each."""

    names: tuple[str, ...]
    values: FloatArray
    influence: FloatArray
    widening: FloatArray

    @cached_property
    def errors(self) -> FloatArray:
        # Many pairs are judged by fewer draws, so that memory stays bounded.
        n_draws = min(N_DRAWS, max(LEAST_DRAWS, 2 * CELLS // len(self.names) ** 2))
        return many.error_draws(self.influence, n_draws)


class Comparison:
    """Paired comparison of estimates from one log.

    Parameters
    ----------
    estimates : mapping of str to Estimate
        On the same episodes (equal `data_id`), of one gamma and horizon. Those without a standard error are listed, their
        comparisons are NaN.

    Raises
    ------
    ValueError
        If the estimates are of different logs or questions.
    TypeError
        If something else than estimates is given.

    Notes
    -----
    Var(V_a - V_b) = sum_i (psi_ia - psi_ib)^2 / (n (n - 1)). Both policies are valued on the same episodes, so what the episodes
    bring by luck cancels: the difference of two policies that act alike is known far better than either value.
    Replicates on equal resamples take the place of influence values where there are none.

    Examples
    --------
    >>> from ope import LoggedDataset
    >>> from ope.estimators import PerDecisionIS
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((200, 1)), [0, 1] * 100, [1.0, 0.0] * 100, lengths=[1] * 200, ends="terminal", behavior_prob=[0.5] * 200
    ... )
    >>> policies = {"cautious": TabularPolicy([[0.4, 0.6]]), "bold": TabularPolicy([[0.7, 0.3]])}
    >>> comparison = PerDecisionIS(gamma=1.0).fit(log, policies).estimate().compare()
    >>> comparison.difference.loc["bold", "cautious"].round(3).item(), comparison.names
    (0.3, ('cautious', 'bold'))
    >>> low, high = comparison.interval("bold", "cautious", level=0.9)
    >>> round(low, 3), round(high, 3)
    (0.265, 0.335)
    """

    def __init__(self, estimates: Mapping[str, Estimate]) -> None:
        self._estimates = _checked(estimates)
        self.names = tuple(self._estimates)
        self._joint = _joint(self._estimates)

    # ---------------------------------------------------------------- matrices

    @property
    def compared(self) -> tuple[str, ...]:
        """Names with a standard error, which can be compared."""
        return self._joint.names

    @property
    def values(self) -> pd.Series[float]:
        """Values by name."""
        return pd.Series([e.value for e in self._estimates.values()], index=list(self.names), name="value", dtype=float)

    @property
    def verdicts(self) -> pd.Series[str]:
        """Levels of the verdicts by name."""
        levels = [e.verdict.level.name for e in self._estimates.values()]
        return pd.Series(levels, index=list(self.names), name="verdict", dtype=object)

    @property
    def difference(self) -> pd.DataFrame:
        """Row minus column."""
        values = self.values.to_numpy()
        return self._frame(values[:, None] - values[None, :])

    @property
    def std_error(self) -> pd.DataFrame:
        """Standard errors of the paired differences; NaN where one of the two has none."""
        return self._spread(self._pairs[1])

    @property
    def p_value(self) -> pd.DataFrame:
        """Two-sided p-values of equal values, one pair at a time, bounds of biases allowed for; the diagonal is 1."""
        return self._spread(_two_sided(self._statistics, len(self._joint.influence)))

    @cached_property
    def _pairs(self) -> tuple[FloatArray, FloatArray]:
        if not self._joint.names:
            return np.empty((0, 0)), np.empty((0, 0))
        return many.pairwise(self._joint.values, self._joint.influence)

    @cached_property
    def _widening(self) -> FloatArray:
        wide = self._joint.widening
        return np.asarray(wide[:, None] + wide[None, :])

    @cached_property
    def _statistics(self) -> FloatArray:
        difference, error = self._pairs
        # As much of a difference as its bias may account for speaks for none, as the intervals have it.
        shrunk = np.sign(difference) * np.maximum(np.abs(difference) - self._widening, 0.0)
        return many.t_statistics(shrunk, error)

    def adjusted(self, method: str = "holm") -> pd.DataFrame:
        """Return two-sided p-values adjusted for the number of pairs.

        Parameters
        ----------
        method : str
            "holm", "bonferroni", "romano_wolf", "max_t", "none", or a method of statsmodels' multipletests.

        Returns
        -------
        DataFrame of shape (K, K)

        Notes
        -----
        A difference is tested after what its bias may account for (`Estimate.widening` of both) was taken from its size.
        "romano_wolf" and "max_t" use the dependence of the pairs, from the influence matrix; "max_t" belongs to the
        intervals of `simultaneous`, "romano_wolf" is its step-down form and rejects more.
        """
        first, second = self._above_diagonal()
        statistics, error = self._statistics[first, second], self._pairs[1][first, second]
        p = np.ones((len(self._joint.names),) * 2)
        if len(first):
            if method in ("romano_wolf", "max_t"):
                adjust = many.romano_wolf if method == "romano_wolf" else many.max_t_p_values
                adjusted = adjust(statistics, self._pair_draws(first, second, error))
            else:
                adjusted = many.adjust_p_values(_two_sided(statistics, len(self._joint.influence)), method)
            p[first, second] = p[second, first] = adjusted
        return self._spread(p)

    # ---------------------------------------------------------------- statements

    def interval(self, a: str, b: str, level: float = 0.95) -> Interval:
        """Return the interval of one paired difference a - b, as the estimates subtract."""
        return (self._estimates[a] - self._estimates[b]).confidence_interval(level)

    def simultaneous(self, level: float = 0.95, *, against: str | None = None) -> pd.DataFrame:
        """Return intervals of differences that hold all at once.

        Parameters
        ----------
        level : float
        against : str, optional
            Compare everything with this one only, which makes shorter intervals.

        Returns
        -------
        DataFrame
            A row per pair (a, b): difference, std_error, low, high (two-sided), lower_bound (one-sided), adjusted p-value.
        """
        alpha = 1.0 - _level(level)
        first, second = self._above_diagonal() if against is None else self._against(against)
        names = np.asarray(self._joint.names, dtype=object)
        index = pd.MultiIndex.from_arrays([names[first], names[second]], names=["a", "b"])
        difference, error = (matrix[first, second] for matrix in self._pairs)
        if not len(first):
            return pd.DataFrame(
                columns=["difference", "std_error", "low", "high", "lower_bound", "p_adjusted"], index=index
            )
        psi = self._joint.influence[:, first] - self._joint.influence[:, second]
        wide = self._widening[first, second]
        draws = self._pair_draws(first, second, error)
        two, one = (_critical(draws, len(psi), alpha, sides) for sides in (2, 1))
        return pd.DataFrame(
            {
                "difference": difference,
                "std_error": error,
                "low": difference - two * error - wide,
                "high": difference + two * error + wide,
                "lower_bound": difference - one * error - wide,
                "p_adjusted": many.max_t_p_values(self._statistics[first, second], draws),
            },
            index=index,
        )

    def best(self, level: float = 0.95) -> BestSet:
        """Return which of the estimates with a standard error may be the best (`ope.inference.best_set`)."""
        joint = self._answering()
        return best_set(joint.values, joint.influence, 1.0 - _level(level), widening=joint.widening)

    def best_names(self, level: float = 0.95) -> tuple[str, ...]:
        """Return the names that may be the best: the best is among them with probability `level`."""
        members = self.best(level).members
        return tuple(name for name, member in zip(self._joint.names, members, strict=True) if member)

    def ranks(self, level: float = 0.95) -> pd.DataFrame:
        """Return estimated ranks (1 is the best) and intervals of ranks that hold all at once."""
        joint = self._answering()
        rank, low, high = rank_intervals(joint.values, joint.influence, 1.0 - _level(level), widening=joint.widening)
        index = pd.Index(joint.names, name="candidate")
        return pd.DataFrame({"rank": rank, "low": low, "high": high}, index=index)

    # ---------------------------------------------------------------- shown

    def to_frame(self, level: float = 0.95, method: str = "holm") -> pd.DataFrame:
        """Return a row per pair, the better one first: difference, std_error, low, high (of the pair alone), p-values.

        Where there is no interval, low and high are NaN, and `reason` says why.
        """
        first, second = self._above_diagonal()
        swap = self._pairs[0][first, second] < 0.0
        a, b = np.where(swap, second, first), np.where(swap, first, second)
        names, adjusted, single = self._joint.names, self.adjusted(method), self.p_value
        rows = []
        for i, j in zip(a, b, strict=True):
            pair = (names[i], names[j])
            (low, high), reason = self._interval_or_why(*pair, level)
            numbers = {"difference": self._pairs[0][i, j], "std_error": self._pairs[1][i, j], "low": low, "high": high}
            p = {"p_value": single.loc[pair], "p_adjusted": adjusted.loc[pair]}
            rows.append({"a": pair[0], "b": pair[1], **numbers, **p, "reason": reason})
        columns = ["a", "b", "difference", "std_error", "low", "high", "p_value", "p_adjusted", "reason"]
        return pd.DataFrame(rows, columns=columns)

    def _interval_or_why(self, a: str, b: str, level: float) -> tuple[tuple[float, float], str]:
        try:
            low, high = self.interval(a, b, level)
        except IntervalNotAvailable as error:
            return (np.nan, np.nan), str(error)
        return (low, high), ""

    def _facts(self) -> tuple[str, pd.DataFrame, list[str]]:
        title = f"Paired differences of {len(self.names)} estimates (adjusted by Holm)"
        notes = [
            f"{name!r} has no standard error, so it is compared with none; its verdict says why."
            for name in self.names
            if name not in self._joint.names
        ]
        levels = self.verdicts
        notes += [
            f"{name!r} is {level}: its differences are no better than its value."
            for name, level in levels.items()
            if level != Level.VALID.name
        ]
        table = self.to_frame()
        for reason, pairs in table[table["reason"] != ""].groupby("reason", sort=False):
            notes.append(f"{len(pairs)} of {len(table)} differences have no interval: {reason}")
        return title, table.drop(columns="reason"), notes

    def summary(self) -> str:
        """Return the table of pairs as text."""
        title, table, notes = self._facts()
        shown = table.to_string(index=False, float_format=number) if len(table) else "No pair can be compared."
        return "\n".join([title, shown, *(f"- {note}" for note in notes)])

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.names)})"

    def _repr_html_(self) -> str:
        title, table, notes = self._facts()
        rows = [list(row) for row in table.itertuples(index=False)]
        return html_table(list(table.columns), rows, title) + bullets(notes)

    # ---------------------------------------------------------------- parts

    def _above_diagonal(self) -> tuple[IntArray, IntArray]:
        first, second = np.triu_indices(len(self._joint.names), k=1)
        return first, second

    def _against(self, name: str) -> tuple[IntArray, IntArray]:
        names = self._joint.names
        if name not in names:
            raise ValueError(
                f"{OWNER}.simultaneous: `against` must be an estimate with a standard error, got {name!r}; choose among {list(names)}."
            )
        second = names.index(name)
        first = np.array([k for k in range(len(names)) if k != second], dtype=np.int64)
        return first, np.full(len(first), second)

    def _pair_draws(self, first: IntArray, second: IntArray, error: FloatArray) -> FloatArray:
        draws = self._joint.errors
        return np.asarray((draws[:, first] - draws[:, second]) / np.where(error > 0.0, error, np.inf))

    def _answering(self) -> _Joint:
        if not self._joint.names:
            raise IntervalNotAvailable(
                f"{OWNER}: none of the estimates has a standard error, so nothing can be compared; their verdicts say why."
            )
        return self._joint

    def _frame(self, matrix: FloatArray) -> pd.DataFrame:
        return pd.DataFrame(matrix, index=list(self.names), columns=list(self.names))

    def _spread(self, matrix: FloatArray) -> pd.DataFrame:
        """Return a matrix over the names with a standard error as one over all names, NaN for the others."""
        whole = np.full((len(self.names),) * 2, np.nan)
        where = [self.names.index(name) for name in self._joint.names]
        whole[np.ix_(where, where)] = matrix
        return self._frame(whole)


def _checked(estimates: Any) -> dict[str, Estimate]:
    if not isinstance(estimates, Mapping) or not all(isinstance(e, Estimate) for e in estimates.values()):
        raise TypeError(
            f"{OWNER}: `estimates` must be a mapping of names to Estimate, got {type(estimates).__name__}; pass the result of estimate() for several policies."
        )
    if not estimates:
        raise ValueError(f"{OWNER}: `estimates` must name at least one, got an empty mapping; fit some policies.")
    questions = {(e.data_id, e.question) for e in estimates.values()}
    if len(questions) > 1:
        found = sorted(
            {f"{e.estimand}, gamma {e.gamma:g}, horizon {e.horizon}, log {e.data_id[:8]}" for e in estimates.values()}
        )
        raise ValueError(
            f"{OWNER}: all `estimates` must be of one log (data_id), estimand, gamma and horizon, got {'; '.join(found)}; fit all on the same episodes with one gamma."
        )
    return dict(estimates)


def _joint(estimates: Mapping[str, Estimate]) -> _Joint:
    by_influence = {name: e.influence for name, e in estimates.items() if _usable(e, e.influence)}
    by_replicates = _same_resamples(estimates) if not by_influence else {}
    columns = by_influence or {name: _as_influence(replicates) for name, replicates in by_replicates.items()}
    kept = [estimates[name] for name in columns]
    return _Joint(
        tuple(columns),
        np.array([e.value for e in kept], dtype=np.float64),
        np.column_stack([np.asarray(c, dtype=np.float64) for c in columns.values()]) if columns else np.empty((0, 0)),
        np.array([e.widening for e in kept], dtype=np.float64),
    )


def _usable(estimate: Estimate, column: FloatArray | None) -> bool:
    return column is not None and len(column) > 1 and bool(np.isfinite(estimate.value) and np.isfinite(column).all())


def _same_resamples(estimates: Mapping[str, Estimate]) -> dict[str, FloatArray]:
    found = {
        name: (e.resample_id, e.replicates)
        for name, e in estimates.items()
        if e.replicates is not None and e.resample_id is not None and _usable(e, e.replicates)
    }
    ids = [resample_id for resample_id, _ in found.values()]
    common = max(ids, key=ids.count) if ids else None
    return {name: replicates for name, (resample_id, replicates) in found.items() if resample_id == common}


def _as_influence(replicates: FloatArray) -> FloatArray:
    # Scaled so that its standard error is the standard deviation of the replicates.
    return np.asarray(np.sqrt(len(replicates)) * (replicates - replicates.mean()))


def _two_sided(statistics: FloatArray, n: int) -> FloatArray:
    return np.asarray(2.0 * stdtr(n - 1, -np.abs(statistics)))


def _critical(draws: FloatArray, n: int, alpha: float, sides: int) -> float:
    """Return the simultaneous critical value of studentised draws, between those for one and for that many separate tests."""
    return many.critical_value(np.abs(draws) if sides == 2 else draws, n, alpha, sides)


def _level(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise ValueError(f"{OWNER}: `level` must lie in (0, 1), got {level!r}; pass 0.95 for 95 %.")
    return level
