"""Bootstrap intervals as objects."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Literal, get_args

from ope.inference.checks import FloatArray
from ope.inference.intervals import (
    Ends,
    basic_interval,
    bca_interval,
    effective_freedom,
    expanded_tail,
    percentile_interval,
    require_replicates,
    require_two,
)
from ope.inference.large_sample_methods import LARGE_SAMPLE, PLAIN_LEAST_SIZE
from ope.inference.protocol import IntervalMethod, Sample, influence_of, scores_of
from ope.inference.studentized import studentized_interval, t_replicates
from ope.inference.weights import WeightKind, mean_replicates, one_step_replicates

__all__ = ["BayesianBootstrap", "Bootstrap", "BootstrapKind", "StudentizedBootstrap"]

EXPANDED_LEAST_SIZE = 100.0
BootstrapKind = Literal["percentile", "basic", "bca", "bayesian"]


@dataclass(frozen=True)
class Bootstrap(IntervalMethod):
    """Bootstrap over episodes.

    Parameters
    ----------
    kind : {"percentile", "basic", "bca", "bayesian"}
        "bayesian": percentile interval with Exponential(1) weights, in which every episode keeps some weight. The
        others use Poisson(1) counts: quantiles of the replicates, their reflection at the estimate, or the quantiles
        corrected for bias and skewness. All but "bca" use expanded tails (`expanded_tail`) with the degrees of freedom that
        the variance has (`effective_freedom`): plain ones are too short where few episodes carry it.
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
        _check_replicates("Bootstrap", self.n_replicates, self.random_state)

    @property
    def name(self) -> str:
        """Short name: the kind."""
        return self.kind

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return LARGE_SAMPLE

    @property
    def least_effective_size(self) -> float:
        """200, and 100 for the kinds that lean towards the heavy side and have expanded tails."""
        return PLAIN_LEAST_SIZE if self.kind in ("basic", "bca") else EXPANDED_LEAST_SIZE

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `percentile_interval`, `basic_interval` and `bca_interval`."""
        require_two("Bootstrap", len(sample.episode_keys))
        replicates = self.replicates(sample)
        if self.kind == "bca":
            influence = influence_of(sample, "Bootstrap(kind='bca')")
            return bca_interval(sample.value, replicates, influence, alpha_low, alpha_high)
        require_replicates("Bootstrap", replicates, alpha_low, alpha_high)
        tails = (self._expanded(alpha, sample, len(replicates)) for alpha in (alpha_low, alpha_high))
        if self.kind == "basic":
            return basic_interval(sample.value, replicates, *tails)
        return percentile_interval(replicates, *tails)

    def _expanded(self, alpha: float, sample: Sample, n_replicates: int) -> float:
        # The random total of Poisson counts makes up for the n - 1; replicates of unknown weights get the wider tail.
        n, counts = len(sample.episode_keys), sample.replicates is None and self.kind != "bayesian"
        expanded = expanded_tail(alpha, _freedom(sample), 1.0 if counts else (n + 1) / (n - 1))
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
            return mean_replicates(scores_of(sample, "Bootstrap"), keys, count, seed=seed, kind=weights)
        influence = influence_of(sample, "Bootstrap")
        return one_step_replicates(sample.value, influence, keys, count, seed=seed, kind=weights)


def _freedom(sample: Sample) -> float:
    if sample.influence is None and sample.scores is None:
        return float(len(sample.episode_keys) - 1)
    return effective_freedom(influence_of(sample, "Bootstrap"))


@dataclass(frozen=True)
class BayesianBootstrap(Bootstrap):
    """Bayesian bootstrap over episodes: a name of its own for ``Bootstrap(kind="bayesian")``.

    Parameters
    ----------
    n_replicates, random_state : int
        As for `Bootstrap`.

    Notes
    -----
    Every episode keeps an Exponential(1) weight, so no replicate of a ratio has an empty denominator. Assumes what
    `Bootstrap` does.

    References
    ----------
    Rubin (1981), "The Bayesian bootstrap", doi:10.1214/aos/1176345338.

    Examples
    --------
    >>> BayesianBootstrap(n_replicates=500).name
    'bayesian'
    """

    kind: BootstrapKind = field(default="bayesian", init=False, repr=False)


@dataclass(frozen=True)
class StudentizedBootstrap(IntervalMethod):
    """Studentised (bootstrap-t) interval over episodes, which follows the skewness of the estimate to second order.

    Parameters
    ----------
    n_replicates : int
        Number of replicates.
    random_state : int
        As for `Bootstrap`.

    Notes
    -----
    What is resampled: whole episodes, with Poisson(1) counts that are a hash of (episode identifier, seed). For a mean the
    replicate is the mean of the resample and its standard error that of the resample, both exact. For any other estimate
    both are one-step: the counts weight the influence values psi, and nothing is refitted, so `replicates` of the estimate,
    which carry no standard errors, play no part. Assumes independent episodes and finite variance; holds as n grows, faster
    than Normal does for skewed psi, at the price of width. Fails where few episodes carry the weight: resamples then hold
    one distinct value, and no interval is given.

    Examples
    --------
    >>> StudentizedBootstrap().name
    'studentized'
    """

    n_replicates: int = 2000
    random_state: int = 0

    def __post_init__(self) -> None:
        _check_replicates("StudentizedBootstrap", self.n_replicates, self.random_state)

    @property
    def name(self) -> str:
        """Short name."""
        return "studentized"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return LARGE_SAMPLE

    @property
    def least_effective_size(self) -> float:
        """200: below, resamples know no more of the tail than the log."""
        return PLAIN_LEAST_SIZE

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `studentized_interval`."""
        psi, keys = influence_of(sample, "StudentizedBootstrap"), sample.episode_keys
        require_two("StudentizedBootstrap", len(psi))
        t_values = t_replicates(psi, keys, self.n_replicates, seed=self.random_state)
        return studentized_interval(sample.value, psi, t_values, alpha_low, alpha_high)


def _check_replicates(owner: str, n_replicates: int, random_state: int) -> None:
    if operator.index(n_replicates) < 1:
        raise ValueError(f"{owner}: `n_replicates` must be at least 1, got {n_replicates!r}; 2000 is usual.")
    operator.index(random_state)
