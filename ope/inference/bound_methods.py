"""Bounds that hold for every number of episodes, as objects; their range is given, never read off the sample."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ope.inference.betting import betting_interval, reflected_interval
from ope.inference.bounds import anderson, empirical_bernstein, hoeffding, truncated_bound
from ope.inference.checks import IntervalNotAvailable, check_range
from ope.inference.intervals import Ends
from ope.inference.protocol import IntervalMethod, Sample, exact_scores_of, weighted_returns_of
from ope.inference.weights import uniforms

__all__ = ["Anderson", "Betting", "EmpiricalBernstein", "Hoeffding", "Order", "ReflectedBetting", "TruncatedBound"]

Order = Literal["hashed", "logged"]
EVERY_N = "independent episodes, known propensities and the given range; holds for every number of episodes"
_SPLIT_STREAM, _ORDER_STREAM = -2, -3


@dataclass(frozen=True)
class Hoeffding(IntervalMethod):
    """Hoeffding's bound: valid for every n, for per-episode terms in a range that is known before the data.

    Parameters
    ----------
    low, high : float
        Range of every per-episode term that could occur: reward range times weight bound, never the sample's extremes.

    Notes
    -----
    Assumes independent episodes and known propensities. Wide as the range: with products of ratios it is seldom of use.

    Examples
    --------
    >>> Hoeffding(0.0, 1.0)
    Hoeffding(low=0.0, high=1.0)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        check_range("Hoeffding", self.low, self.high)

    @property
    def name(self) -> str:
        """Short name."""
        return "hoeffding"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return EVERY_N

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `hoeffding`."""
        return hoeffding(exact_scores_of(sample, "Hoeffding"), self.low, self.high, alpha_low, alpha_high)


@dataclass(frozen=True)
class EmpiricalBernstein(IntervalMethod):
    """Maurer and Pontil's bound: valid for every n >= 2, narrower than Hoeffding's where the variance is small.

    Parameters
    ----------
    low, high : float
        As for `Hoeffding`.

    Notes
    -----
    Assumes independent episodes and known propensities. The range still enters as (high - low) / n.

    Examples
    --------
    >>> EmpiricalBernstein(0.0, 1.0).name
    'empirical_bernstein'
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        check_range("EmpiricalBernstein", self.low, self.high)

    @property
    def name(self) -> str:
        """Short name."""
        return "empirical_bernstein"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return EVERY_N

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `empirical_bernstein`."""
        scores = exact_scores_of(sample, "EmpiricalBernstein")
        return empirical_bernstein(scores, self.low, self.high, alpha_low, alpha_high)


@dataclass(frozen=True)
class Anderson(IntervalMethod):
    """Anderson's bound: valid for every n; its lower end needs no upper end of the range, so weights may be unbounded.

    Parameters
    ----------
    low : float
        No per-episode term that could occur is smaller: 0 for rewards that are never negative.
    high : float, optional
        No per-episode term that could occur is larger; without it the upper end is infinite.

    Notes
    -----
    Assumes independent episodes and known propensities. The lower end ignores the largest values, so it is far below
    the estimate where few episodes carry it.

    Examples
    --------
    >>> Anderson(0.0)
    Anderson(low=0.0, high=None)
    """

    low: float
    high: float | None = None

    def __post_init__(self) -> None:
        check_range("Anderson", self.low, self.high)

    @property
    def name(self) -> str:
        """Short name."""
        return "anderson"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return EVERY_N

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `anderson`."""
        return anderson(exact_scores_of(sample, "Anderson"), self.low, self.high, alpha_low, alpha_high)


@dataclass(frozen=True)
class TruncatedBound(IntervalMethod):
    """Bound of Thomas et al.: values beyond a point are cut off, the point chosen on episodes that are then set aside.

    Parameters
    ----------
    low : float
        No per-episode term that could occur is smaller: 0 for rewards that are never negative.
    high : float, optional
        No per-episode term that could occur is larger; without it the upper end is infinite.
    share : float
        Share of the episodes, in (0, 1), that only serve to choose the point of truncation.
    random_state : int
        Seed of the split, which is a hash of the episode identifiers.

    Notes
    -----
    Assumes independent episodes and known propensities. The lower end needs no upper end of the range, so weights may be
    unbounded; the truncated values lower it, never raise it. See `truncated_bound` for the formula.

    References
    ----------
    Thomas, Theocharous & Ghavamzadeh (2015), "High-confidence off-policy evaluation", AAAI.

    Examples
    --------
    >>> TruncatedBound(0.0)
    TruncatedBound(low=0.0, high=None, share=0.2, random_state=0)
    """

    low: float
    high: float | None = None
    share: float = 0.2
    random_state: int = 0

    def __post_init__(self) -> None:
        check_range("TruncatedBound", self.low, self.high)
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"TruncatedBound: `share` must lie in (0, 1), got {self.share!r}; 0.2 is usual.")
        operator.index(self.random_state)

    @property
    def name(self) -> str:
        """Short name."""
        return "truncated"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return EVERY_N

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `truncated_bound`."""
        scores = exact_scores_of(sample, "TruncatedBound")
        n = len(scores)
        n_pilot = max(2, round(self.share * n))
        if n < n_pilot + 2:
            raise IntervalNotAvailable(
                f"TruncatedBound: needs at least 2 episodes beside the {n_pilot} that choose the truncation, got {n} in all; "
                "log more episodes, or use Anderson(low) or Betting(low), which set none aside."
            )
        order = np.argsort(uniforms(sample.episode_keys, self.random_state, _SPLIT_STREAM), kind="stable")
        pilot, rest = scores[order[:n_pilot]], scores[order[n_pilot:]]
        return truncated_bound(rest, pilot, self.low, self.high, alpha_low, alpha_high)


@dataclass(frozen=True)
class Betting(IntervalMethod):
    """Betting interval of Waudby-Smith and Ramdas: valid for every n and at every stopping time, and adapts to the variance.

    Parameters
    ----------
    low : float
        No per-episode term that could occur is smaller.
    high : float, optional
        No per-episode term that could occur is larger; without it the upper end is infinite.
    order : {"hashed", "logged"}
        Order in which the episodes are bet on: by a hash of their identifiers, so that the order of the log plays no part,
        or as they stand in the log. Where the log is still growing and the interval is looked at again and again, "logged"
        is valid if the log is in order of arrival; `BettingSequence` does the same step by step.

    Notes
    -----
    Assumes independent episodes and known propensities. Each end has capital of its own against its tail probability
    (hedged capital), bets are the predictable plug-in ones, tuned to the number of episodes. Without `high` the lower end
    is that of a mixture of constant bets on x - low >= 0. Cannot be beaten by much for bounded terms of small variance; with
    products of ratios the range is wide: see `ReflectedBetting`.

    References
    ----------
    Waudby-Smith & Ramdas (2024), "Estimating means of bounded random variables by betting", doi:10.1093/jrsssb/qkad009.

    Examples
    --------
    >>> Betting(0.0, 1.0).name
    'betting'
    """

    low: float
    high: float | None = None
    order: Order = "hashed"

    def __post_init__(self) -> None:
        check_range("Betting", self.low, self.high)
        if self.order not in get_args(Order):
            raise ValueError(f"Betting: `order` must be one of {get_args(Order)}, got {self.order!r}.")

    @property
    def name(self) -> str:
        """Short name."""
        return "betting"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return EVERY_N + " and at every stopping time"

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `betting_interval`."""
        scores = exact_scores_of(sample, "Betting")
        if self.order == "hashed":
            scores = scores[np.argsort(uniforms(sample.episode_keys, 0, _ORDER_STREAM), kind="stable")]
        return betting_interval(scores, self.low, self.high, alpha_low, alpha_high)


@dataclass(frozen=True)
class ReflectedBetting(IntervalMethod):
    """Betting interval that needs no bound of the weights, only the range of the returns.

    Parameters
    ----------
    low, high : float
        Range of every return sum_t gamma^t r_t that could occur, known before the data; for truncated episodes, of the
        recorded part too.

    Notes
    -----
    For `TrajectoryIS`, whose estimate carries the whole-episode weights w beside the products w G. With g = (G - low) /
    (high - low) the value is low + (high - low) E[w g], and equally high - (high - low) E[w (1 - g)], because w has
    expectation 1: both are bounded from below by betting on non-negative terms (`reflected_interval`). Assumes independent
    episodes and known propensities; valid for every n and at every stopping time, also where a REFUSE says that no other
    interval is. The price is width: nearly the whole range for a few dozen episodes. The weights'
    mean is 1 in expectation, not in the log: the interval need not hold the point estimate. The value of a per-decision or
    self-normalised estimate is the same number, so the interval serves it too.

    Examples
    --------
    >>> ReflectedBetting(-1.0, 1.0).name
    'reflected_betting'
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        check_range("ReflectedBetting", self.low, self.high)

    @property
    def name(self) -> str:
        """Short name."""
        return "reflected_betting"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return (
            "independent episodes, known propensities that are positive wherever the candidate acts and the given range of "
            "returns; holds for every number of episodes and at every stopping time"
        )

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `reflected_interval`."""
        weights, products = weighted_returns_of(sample, "ReflectedBetting")
        return reflected_interval(weights, products, self.low, self.high, alpha_low, alpha_high)
