"""Confidence sequences: intervals that hold at all times at once, updated as episodes arrive.

One may look after every episode, stop when the answer is clear, or go on: the probability that the value is ever outside
is at most 1 - level. Bounds of `ope.inference.bound_methods` other than betting hold for one number of episodes only.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ope.inference.betting import CAP, RunningMoments, anytime_rounds, log_capital, plug_in_bets
from ope.inference.checks import FloatArray, IntervalNotAvailable, check_inside, check_range, finite_array
from ope.inference.intervals import Ends
from ope.inference.mixing import UIntArray
from ope.inference.protocol import Sample, exact_scores_of
from ope.inference.roots import falling_root

__all__ = ["BettingSequence", "ConfidenceSequence", "EmpiricalBernsteinSequence", "Sides"]

Sides = Literal["both", "lower", "upper"]


class ConfidenceSequence(ABC):
    """Base class: `update` takes in new episodes, `interval` is what they say so far.

    Parameters
    ----------
    low, high : float
        Range of every per-episode term that could occur, known before the data: reward range times weight bound.
    level : float
        In (0, 1): probability that the value is in the interval at all times.
    sides : {"both", "lower", "upper"}
        Which ends are wanted; with one, it gets the whole error.
    """

    def __init__(self, low: float, high: float, *, level: float = 0.95, sides: Sides = "both") -> None:
        owner = type(self).__name__
        if high is None:
            raise ValueError(f"{owner}: `high` must be given, got None; Betting(low) does without it.")
        check_range(owner, low, high)
        if not 0.0 < level < 1.0:
            raise ValueError(f"{owner}: `level` must lie in (0, 1), got {level!r}; pass 0.95 for 95 %.")
        if sides not in get_args(Sides):
            raise ValueError(f"{owner}: `sides` must be one of {get_args(Sides)}, got {sides!r}.")
        self.low, self.high, self.level, self.sides = float(low), float(high), level, sides
        self._seen: set[int] = set()
        self._n = 0
        alpha = (1.0 - level) / (2.0 if sides == "both" else 1.0)
        self._lower = None if sides == "upper" else self._side(alpha)
        self._upper = None if sides == "lower" else self._side(alpha)

    @staticmethod
    @abstractmethod
    def _side(alpha: float) -> Side:
        """Return the lower end of values on the unit scale, before any was seen."""

    @property
    def n_episodes(self) -> int:
        """Number of episodes so far."""
        return self._n

    @property
    def interval(self) -> Ends:
        """The interval after the episodes so far, the intersection of all earlier ones.

        Raises
        ------
        IntervalNotAvailable
            If the ends have crossed: no single value explains all episodes.
        """
        width = self.high - self.low
        low = -math.inf if self._lower is None else self.low + width * self._lower.end
        high = math.inf if self._upper is None else self.high - width * self._upper.end
        if low > high:
            raise IntervalNotAvailable(
                f"{type(self).__name__}: after {self._n} episodes no value is left: the lower end {low:.6g} is above the upper "
                f"end {high:.6g}. This has probability {1 - self.level:.3g} at most if all episodes have one expectation; look "
                "for a change of the process or of the propensities, and start anew after it."
            )
        return low, high

    def update(self, new: Sample | npt.ArrayLike) -> Self:
        """Take in new episodes.

        Parameters
        ----------
        new : Estimate or array-like of shape (k,)
            An estimate on the new episodes alone that has `scores` (TrajectoryIS or PerDecisionIS on a log with known
            propensities), or such scores themselves, in order of arrival.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a score lies outside the range, or an episode was counted before. After any error the sequence is what it was.
        IntervalNotAvailable
            If the estimate is no mean of per-episode terms, or its propensities are estimated.

        Notes
        -----
        For a stream of logs: ``sequence.update(PerDecisionIS(gamma=gamma).fit(new_episodes, policy).estimate())``. One
        update with many episodes leaves what many updates with one episode leave.
        """
        scores = self._scores_of(new)
        check_inside(type(self).__name__, scores, self.low, self.high)
        fresh = self._fresh(new.episode_keys) if hasattr(new, "episode_keys") else set()
        unit = np.clip((scores - self.low) / (self.high - self.low), 0.0, 1.0)
        # All that can fail is done on copies: an update counts as a whole or not at all.
        lower, upper = (
            None if side is None else side.after(values)
            for side, values in ((self._lower, unit), (self._upper, 1.0 - unit))
        )
        self._lower, self._upper, self._n = lower, upper, self._n + len(unit)
        self._seen |= fresh
        return self

    def _scores_of(self, new: Any) -> FloatArray:
        owner = type(self).__name__
        if not hasattr(new, "episode_keys"):
            return finite_array(owner, "new", np.atleast_1d(np.asarray(new)))
        return finite_array(owner, "new", exact_scores_of(new, owner))

    def _fresh(self, keys: UIntArray) -> set[int]:
        fresh = set(keys.tolist())
        again = len(fresh & self._seen)
        if again:
            raise ValueError(
                f"{type(self).__name__}: `new` must hold new episodes only, got {again} of {len(fresh)} that were counted "
                "before; estimate on the episodes that arrived since the last update."
            )
        return fresh

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.low:g}, {self.high:g}, level={self.level:g}: {self._n} episodes)"


class Side(ABC):
    """The running lower end of the mean of values in [0, 1]."""

    def __init__(self, alpha: float) -> None:
        self.alpha, self.end = alpha, 0.0
        self._moments = RunningMoments()

    def after(self, unit: FloatArray) -> Self:
        """Return this end after more values; itself it stays as it is."""
        grown = self._copy()
        grown._update(unit)
        return grown

    def _copy(self) -> Self:
        grown = copy.copy(self)
        grown._moments = copy.copy(self._moments)
        return grown

    @abstractmethod
    def _update(self, unit: FloatArray) -> None:
        """Take in values."""

    def _bets(self, unit: FloatArray) -> tuple[FloatArray, FloatArray]:
        first = self._moments.count + 1
        means, variance = self._moments.advance(unit)
        return plug_in_bets(variance, self.alpha, anytime_rounds(first, len(unit))), means


class _BettingSide(Side):
    """Capital against every mean; values and bets are kept, because each mean has capital of its own."""

    def __init__(self, alpha: float) -> None:
        super().__init__(alpha)
        self._units, self._stakes = _Growing(), _Growing()
        self._capital = 0.0  # logarithm, against the mean at the end

    def _copy(self) -> Self:
        grown = super()._copy()
        grown._units, grown._stakes = copy.copy(self._units), copy.copy(self._stakes)
        return grown

    def _update(self, unit: FloatArray) -> None:
        bets, _ = self._bets(unit)
        self._units.extend(unit)
        self._stakes.extend(bets)
        grown = self._capital + log_capital(unit, bets, self.end, CAP)
        self._capital = float(grown[-1])
        if grown.max() >= -math.log(self.alpha):
            self._move()

    def _move(self) -> None:
        units, stakes, goal = self._units.values, self._stakes.values, -math.log(self.alpha)
        self.end = falling_root(lambda m: float(log_capital(units, stakes, m, CAP).max()) - goal, self.end, 1.0)
        self._capital = float(log_capital(units, stakes, self.end, CAP)[-1])


class _BernsteinSide(Side):
    """Predictable plug-in empirical Bernstein: three sums are all that is kept."""

    def __init__(self, alpha: float) -> None:
        super().__init__(alpha)
        self._sums = np.zeros(3)

    def _update(self, unit: FloatArray) -> None:
        bets, means = self._bets(unit)
        bets = np.minimum(bets, CAP)
        slack = (unit - means) ** 2 * (-np.log1p(-bets) - bets)
        sums = self._sums[:, None] + np.cumsum([bets, bets * unit, slack], axis=1)
        self._sums = sums[:, -1].copy()
        ends = (sums[1] + math.log(self.alpha) - sums[2]) / sums[0]
        self.end = max(self.end, float(ends.max()))


class BettingSequence(ConfidenceSequence):
    """Confidence sequence by betting: the tightest for terms in a known range.

    Parameters
    ----------
    low, high, level, sides
        As for `ConfidenceSequence`.

    Notes
    -----
    Assumes episodes of one expectation, each given those before it, known propensities and the range. The lower end is
    the least m with max_t prod_{s<=t} (1 + min(lambda_s, 1 / (2 m)) (x_s - m)) < 1 / alpha on the unit scale,
    lambda_s = sqrt(2 ln(1 / alpha) / (v_{s-1} s ln(1 + s))), v the variance so far; the upper end is that of 1 - x. Keeps
    all scores; an update costs as much as the new ones, and a pass over all where an end moves.

    References
    ----------
    Waudby-Smith & Ramdas (2024), "Estimating means of bounded random variables by betting", doi:10.1093/jrsssb/qkad009.

    Examples
    --------
    >>> sequence = BettingSequence(0.0, 1.0).update([0.4, 0.6] * 100)
    >>> low, high = sequence.interval
    >>> round(low, 2), round(high, 2)
    (0.48, 0.52)
    >>> narrower = sequence.update([0.4, 0.6] * 400).interval
    >>> narrower[1] - narrower[0] < high - low
    True
    """

    @staticmethod
    def _side(alpha: float) -> Side:
        return _BettingSide(alpha)


class EmpiricalBernsteinSequence(ConfidenceSequence):
    """Confidence sequence by the predictable plug-in empirical Bernstein inequality: wider than betting, of constant memory.

    Parameters
    ----------
    low, high, level, sides
        As for `ConfidenceSequence`.

    Notes
    -----
    Assumes what `BettingSequence` does. The lower end is the largest, over t, of
    [sum lambda_s x_s - ln(1 / alpha) - sum (x_s - m_{s-1})^2 (-ln(1 - lambda_s) - lambda_s)] / sum lambda_s on the unit scale,
    with the bets of `BettingSequence` cut off at 1/2.

    References
    ----------
    Howard, Ramdas, McAuliffe & Sekhon (2021), doi:10.1214/20-AOS1991; Waudby-Smith & Ramdas (2024),
    doi:10.1093/jrsssb/qkad009, theorem 2.

    Examples
    --------
    >>> low, high = EmpiricalBernsteinSequence(0.0, 1.0).update([0.4, 0.6] * 100).interval
    >>> round(low, 2), round(high, 2)
    (0.46, 0.54)
    """

    @staticmethod
    def _side(alpha: float) -> Side:
        return _BernsteinSide(alpha)


class _Growing:
    """An array that grows at its end, in amortised constant time; shallow copies share it until two of them grow."""

    def __init__(self) -> None:
        self._buffer: FloatArray = np.empty(64)
        self._n, self._written = 0, [0]

    @property
    def values(self) -> FloatArray:
        return self._buffer[: self._n]

    def extend(self, new: FloatArray) -> None:
        needed = self._n + len(new)
        if needed > len(self._buffer) or self._written[0] > self._n:
            self._buffer, self._written = np.concatenate([self.values, np.empty(2 * needed - self._n)]), [self._n]
        self._buffer[self._n : needed] = new
        self._n = self._written[0] = needed
