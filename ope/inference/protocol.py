"""What an interval method is, and what it reads of an estimate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ope.inference.checks import FloatArray, IntervalNotAvailable
from ope.inference.intervals import Ends
from ope.inference.mixing import UIntArray

__all__ = ["IntervalMethod", "Pick", "Sample", "exact_scores_of", "influence_of", "scores_of", "weighted_returns_of"]


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

    @property
    def effective_size(self) -> float | None:
        """Effective number of episodes of the importance weights, if the estimate rests on any."""


class Pick(NamedTuple):
    """The method that answers, and why it was chosen; the reason is empty where the user chose."""

    method: IntervalMethod
    reason: str = ""


@dataclass(frozen=True)
class IntervalMethod(ABC):
    """A way to turn an estimate into an interval."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, as shown beside an interval."""

    @property
    def assumptions(self) -> str:
        """What must hold for the level to hold, in one phrase; empty where a method does not say."""
        return ""

    @property
    def least_effective_size(self) -> float:
        """Effective number of episodes from which on intervals of weighted estimates were seen to cover; 0 where nothing is asked."""
        return 0.0

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

    def pick(self, sample: Sample) -> Pick:  # noqa: ARG002 (a method that chooses reads it)
        """Return the method that answers for this estimate: itself, unless the method is a rule that chooses one."""
        return Pick(self)


def influence_of(sample: Sample, owner: str) -> FloatArray:
    """Return the influence values of an estimate, or say what to use without them."""
    if sample.influence is not None:
        return sample.influence
    if sample.scores is not None:
        return scores_of(sample, owner) - sample.value
    remedy = (
        "use Bootstrap(kind='percentile') or Bootstrap(kind='basic') with the replicates it has"
        if sample.replicates is not None
        else "fit it with bootstrap replicates and use Bootstrap()"
    )
    raise IntervalNotAvailable(f"{owner}: this estimate has no influence values (one per episode); {remedy}.")


def scores_of(sample: Sample, owner: str) -> FloatArray:
    """Return the per-episode terms whose mean is the estimate, or say what to use without them."""
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


def exact_scores_of(sample: Sample, owner: str) -> FloatArray:
    """Return the per-episode terms where bounds for every n apply: those of known propensities."""
    scores = scores_of(sample, owner)
    if not sample.known_propensities:
        raise IntervalNotAvailable(
            f"{owner}: the propensities are estimated, so the per-episode terms are neither independent nor unbiased "
            "and the bound does not hold; use Normal() or Bootstrap(), or log the propensities."
        )
    return scores


def weighted_returns_of(sample: Sample, owner: str) -> tuple[FloatArray, FloatArray]:
    """Return whole-episode importance weights w and the products w G whose mean is the estimate, or say who has them."""
    weights = getattr(sample, "weights", None)
    if weights is None:
        raise IntervalNotAvailable(
            f"{owner}: this estimate is no mean of whole-episode importance weights times returns (it has no `weights`); fit "
            "TrajectoryIS(gamma=...) without clip and without `episode_weight`: it estimates the same value."
        )
    return weights, exact_scores_of(sample, owner)
