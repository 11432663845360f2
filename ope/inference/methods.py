"""Interval methods as objects: what is passed as `method=` to a confidence interval."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from ope.inference.bounds import anderson, empirical_bernstein, hoeffding
from ope.inference.checks import FloatArray, IntervalNotAvailable, check_range
from ope.inference.intervals import (
    Ends,
    basic_interval,
    bca_interval,
    expanded_tail,
    normal_interval,
    percentile_interval,
    require_replicates,
    require_two,
)
from ope.inference.mixing import UIntArray
from ope.inference.weights import WeightKind, mean_replicates, one_step_replicates

__all__ = [
    "Anderson",
    "Bootstrap",
    "BootstrapKind",
    "EmpiricalBernstein",
    "Hoeffding",
    "IntervalMethod",
    "IntervalNotAvailable",
    "Normal",
    "Sample",
    "resolve_method",
]

BootstrapKind = Literal["percentile", "basic", "bca", "bayesian"]


class Sample(Protocol):
    """What an interval method reads of an estimate on n episodes."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def influence(self) -> FloatArray | None:
        """Centred influence values of shape (n,), if there are any."""

    @property
    def scores(self) -> FloatArray | None:
        """Independent per-episode terms of shape (n,) whose mean is `value`, if it is such a mean."""

    @property
    def replicates(self) -> FloatArray | None:
        """Bootstrap replicates of the whole estimation, of shape (B,), if they were made."""

    @property
    def episode_keys(self) -> UIntArray:
        """Hashes of the episode identifiers, of shape (n,)."""

    @property
    def known_propensities(self) -> bool:
        """Whether the behaviour's probabilities are known, not estimated."""


@dataclass(frozen=True)
class IntervalMethod(ABC):
    """A way to turn an estimate into an interval."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, as shown beside an interval."""

    @abstractmethod
    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends of the interval.

        Parameters
        ----------
        sample : Sample
            The estimate.
        alpha_low, alpha_high : float
            Probability that the target lies below the lower end, above the upper end; 0 makes that end infinite.

        Returns
        -------
        tuple of (float, float)

        Raises
        ------
        IntervalNotAvailable
            If the method cannot answer for this estimate.
        """


@dataclass(frozen=True)
class Normal(IntervalMethod):
    """t interval from the influence values.

    Notes
    -----
    Assumes independent episodes and an estimate whose error is close to a mean of influence values with finite
    variance; holds as n grows. Fails with heavy-tailed weights: few episodes carry the estimate and it is skewed to the
    right, so the lower end errs on the safe side and the upper end is too low (lognormal values with sigma 2, n = 100,
    one-sided 95 %: coverage .998 below, .70 above).

    Examples
    --------
    >>> Normal().name
    'normal'
    """

    @property
    def name(self) -> str:
        """Short name."""
        return "normal"

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `normal_interval`."""
        return normal_interval(sample.value, _influence(sample, "Normal"), alpha_low, alpha_high)


@dataclass(frozen=True)
class Bootstrap(IntervalMethod):
    """Bootstrap over episodes.

    Parameters
    ----------
    kind : {"percentile", "basic", "bca", "bayesian"}
        "bayesian": percentile interval with Exponential(1) weights, in which every episode keeps some weight. The
        others use Poisson(1) counts: quantiles of the replicates, their reflection at the estimate, or the quantiles
        corrected for bias and skewness. All but "bca" use expanded tails (`expanded_tail`): plain ones are too short for
        few episodes, as a normal quantile with the variance divided by n is.
    n_replicates : int
        Number of replicates.
    random_state : int
        Seed: weights are a function of (episode identifier, seed); estimates on the same episodes are resampled alike.

    Notes
    -----
    Replicates of the whole estimation are used where the estimate has them (then `n_replicates` and `random_state` play
    no part); else exact replicates of a mean from `scores`; else one-step replicates from `influence`, which linearise
    the estimator. Assumes independent episodes and finite variance; holds as n grows. Fails, as Normal does, where few
    episodes carry the weight: a resample cannot show returns that the log never reached. "bca" corrects skewness to
    second order, and becomes unstable where one episode dominates.

    Examples
    --------
    >>> Bootstrap(kind="bca").name
    'bca'
    """

    kind: BootstrapKind = "percentile"
    n_replicates: int = 2000
    random_state: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(BootstrapKind):
            raise ValueError(f"Bootstrap: `kind` must be one of {get_args(BootstrapKind)}, got {self.kind!r}.")
        if operator.index(self.n_replicates) < 1:
            raise ValueError(f"Bootstrap: `n_replicates` must be at least 1, got {self.n_replicates!r}; 2000 is usual.")
        operator.index(self.random_state)

    @property
    def name(self) -> str:
        """Short name: the kind."""
        return self.kind

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `percentile_interval`, `basic_interval` and `bca_interval`."""
        require_two("Bootstrap", len(sample.episode_keys))
        replicates = self.replicates(sample)
        if self.kind == "bca":
            influence = _influence(sample, "Bootstrap(kind='bca')")
            return bca_interval(sample.value, replicates, influence, alpha_low, alpha_high)
        require_replicates("Bootstrap", replicates, alpha_low, alpha_high)
        tails = (self._expanded(alpha, sample, len(replicates)) for alpha in (alpha_low, alpha_high))
        if self.kind == "basic":
            return basic_interval(sample.value, replicates, *tails)
        return percentile_interval(replicates, *tails)

    def _expanded(self, alpha: float, sample: Sample, n_replicates: int) -> float:
        # The random total of Poisson counts makes up for the n - 1; replicates of unknown weights get the wider tail.
        n, counts = len(sample.episode_keys), sample.replicates is None and self.kind != "bayesian"
        expanded = expanded_tail(alpha, n, 1.0 if counts else (n + 1) / (n - 1))
        # Beyond the replicates lies the extreme replicate.
        return max(expanded, 1.0 / (n_replicates + 1)) if alpha > 0.0 else 0.0

    def replicates(self, sample: Sample) -> FloatArray:
        """Return the replicates of the estimate, drawing them where it has none.

        Parameters
        ----------
        sample : Sample
            The estimate.

        Returns
        -------
        ndarray of shape (B,)
        """
        if sample.replicates is not None:
            return sample.replicates
        weights: WeightKind = "bayesian" if self.kind == "bayesian" else "poisson"
        keys, count, seed = sample.episode_keys, self.n_replicates, self.random_state
        if sample.scores is not None:
            return mean_replicates(_scores(sample, "Bootstrap"), keys, count, seed=seed, kind=weights)
        influence = _influence(sample, "Bootstrap")
        return one_step_replicates(sample.value, influence, keys, count, seed=seed, kind=weights)


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

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `hoeffding`."""
        return hoeffding(_exact_scores(sample, "Hoeffding"), self.low, self.high, alpha_low, alpha_high)


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

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `empirical_bernstein`."""
        scores = _exact_scores(sample, "EmpiricalBernstein")
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

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `anderson`."""
        return anderson(_exact_scores(sample, "Anderson"), self.low, self.high, alpha_low, alpha_high)


_BY_NAME: dict[str, IntervalMethod] = {
    "normal": Normal(),
    "percentile": Bootstrap(kind="percentile"),
    "basic": Bootstrap(kind="basic"),
    "bca": Bootstrap(kind="bca"),
    "bayesian": Bootstrap(kind="bayesian"),
    "bootstrap": Bootstrap(kind="bayesian"),
}
_RANGED = {
    "hoeffding": "Hoeffding(low, high)",
    "empirical_bernstein": "EmpiricalBernstein(low, high)",
    "anderson": "Anderson(low)",
}


def resolve_method(method: IntervalMethod | str) -> IntervalMethod:
    """Turn the name of an interval method into the method; pass objects through.

    Parameters
    ----------
    method : IntervalMethod or {"normal", "percentile", "basic", "bca", "bayesian", "bootstrap"}
        "bootstrap" is the Bayesian bootstrap.

    Returns
    -------
    IntervalMethod

    Raises
    ------
    ValueError
        If the name is unknown, or the method needs a range.
    TypeError
        If `method` is neither.

    Examples
    --------
    >>> resolve_method("bca")
    Bootstrap(kind='bca', n_replicates=2000, random_state=0)
    """
    if isinstance(method, IntervalMethod):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"confidence_interval: `method` must be a name or an object such as Normal(), got {method!r}; "
            f"names are {', '.join(_BY_NAME)}."
        )
    if method in _RANGED:
        raise ValueError(
            f"confidence_interval: `method` {method!r} needs a range that is known before the data; "
            f"pass {_RANGED[method]} with the smallest and largest value an episode could contribute."
        )
    if method not in _BY_NAME:
        raise ValueError(
            f"confidence_interval: `method` must be one of {', '.join(_BY_NAME)} or an object such as "
            f"{_RANGED['hoeffding']}, got {method!r}."
        )
    return _BY_NAME[method]


def _influence(sample: Sample, owner: str) -> FloatArray:
    if sample.influence is not None:
        return sample.influence
    if sample.scores is not None:
        return _scores(sample, owner) - sample.value
    remedy = (
        "use Bootstrap(kind='percentile') or Bootstrap(kind='basic') with the replicates it has"
        if sample.replicates is not None
        else "fit it with bootstrap replicates and use Bootstrap()"
    )
    raise IntervalNotAvailable(f"{owner}: this estimate has no influence values (one per episode); {remedy}.")


def _scores(sample: Sample, owner: str) -> FloatArray:
    scores = sample.scores
    if scores is None:
        raise IntervalNotAvailable(
            f"{owner}: this estimate is no mean of independent per-episode terms (it has no `scores`); "
            "use Normal() or Bootstrap()."
        )
    mean = float(np.mean(scores))
    if abs(mean - sample.value) > 1e-8 * float(np.abs(scores).max()):
        raise ValueError(
            f"{owner}: `scores` must average to `value`, got mean {mean} and value {sample.value}; "
            "an estimate with a correction on top of the mean must not carry scores."
        )
    return scores


def _exact_scores(sample: Sample, owner: str) -> FloatArray:
    scores = _scores(sample, owner)
    if not sample.known_propensities:
        raise IntervalNotAvailable(
            f"{owner}: the propensities are estimated, so the per-episode terms are neither independent nor unbiased "
            "and the bound does not hold; use Normal() or Bootstrap(), or log the propensities."
        )
    return scores
