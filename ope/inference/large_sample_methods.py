"""Intervals from influence values that hold as the number of episodes grows, as objects."""

from __future__ import annotations

from dataclasses import dataclass

from ope.inference.empirical_likelihood import empirical_likelihood_interval
from ope.inference.intervals import Ends, adjusted_t_interval, effective_freedom, normal_interval
from ope.inference.protocol import IntervalMethod, Sample, influence_of

__all__ = ["LARGE_SAMPLE", "PLAIN_LEAST_SIZE", "AdjustedT", "EmpiricalLikelihood", "Normal"]

PLAIN_LEAST_SIZE = 200.0
LARGE_SAMPLE = "independent episodes and finite variance; holds as the number of episodes grows"


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

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return LARGE_SAMPLE

    @property
    def least_effective_size(self) -> float:
        """200: neither heavy tails nor skewness are corrected."""
        return PLAIN_LEAST_SIZE

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `normal_interval`."""
        return normal_interval(sample.value, influence_of(sample, "Normal"), alpha_low, alpha_high)


@dataclass(frozen=True)
class AdjustedT(IntervalMethod):
    """t interval that allows for heavy tails and skewness of the influence values.

    Notes
    -----
    The degrees of freedom are those that the variance has, and the heavy side is longer (`adjusted_t_interval`). Equal to `Normal` where
    psi are normal, wider elsewhere. Assumes independent episodes and finite variance; holds as n grows, and from an effective sample of
    about 20 episodes on in the coverage study, where `Normal` needs 200.

    Examples
    --------
    >>> AdjustedT().name
    'adjusted_t'
    """

    @property
    def name(self) -> str:
        """Short name."""
        return "adjusted_t"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return LARGE_SAMPLE

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `adjusted_t_interval`."""
        return adjusted_t_interval(sample.value, influence_of(sample, "AdjustedT"), alpha_low, alpha_high)


@dataclass(frozen=True)
class EmpiricalLikelihood(IntervalMethod):
    """Empirical-likelihood interval over episodes: the means that no implausible re-weighting of them is needed for.

    Parameters
    ----------
    bartlett : bool
        Whether to correct the second-order error of its level; without it the interval is Owen's.
    effective : bool
        Whether to use the degrees of freedom that the variance has (`effective_freedom`) instead of n - 1, for few episodes
        that carry the weight.

    Notes
    -----
    Reads the influence values, one an episode, and is calibrated by F(1, n - 1) (`empirical_likelihood_interval`). It has no
    tuning and no randomness, follows the skewness of psi and stays inside its range. Assumes independent episodes and
    finite variance; holds as n grows. Fails where few episodes carry the weight: no re-weighting shows returns that the
    log never reached.

    References
    ----------
    Owen (1990), "Empirical likelihood ratio confidence regions", doi:10.1214/aos/1176347494.

    Examples
    --------
    >>> EmpiricalLikelihood().name
    'empirical_likelihood'
    """

    bartlett: bool = True
    effective: bool = False

    @property
    def name(self) -> str:
        """Short name."""
        return "empirical_likelihood"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return LARGE_SAMPLE

    @property
    def least_effective_size(self) -> float:
        """200: below, few episodes carry the likelihood."""
        return PLAIN_LEAST_SIZE

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends, see `empirical_likelihood_interval`."""
        psi = influence_of(sample, "EmpiricalLikelihood")
        freedom = effective_freedom(psi) if self.effective else None
        return empirical_likelihood_interval(
            sample.value, psi, alpha_low, alpha_high, bartlett=self.bartlett, freedom=freedom
        )
