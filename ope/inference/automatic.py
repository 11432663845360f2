"""`Auto`: the interval method that the diagnostics of an estimate call for, and the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ope.inference.bootstrap_methods import Bootstrap
from ope.inference.checks import FloatArray
from ope.inference.intervals import Ends
from ope.inference.large_sample_methods import LARGE_SAMPLE, AdjustedT, EmpiricalLikelihood, Normal
from ope.inference.protocol import IntervalMethod, Pick, Sample, influence_of

__all__ = ["Auto", "Outer"]


@dataclass(frozen=True)
class Outer(IntervalMethod):
    """The outer ends of `AdjustedT` and of `EmpiricalLikelihood` with effective freedom: for effective samples that are small.

    Notes
    -----
    The two are both right to second order and fail on different logs, which no diagnostic tells apart. Assumes independent
    episodes and finite variance; holds as n grows.

    Examples
    --------
    >>> Outer().name
    'outer'
    """

    @property
    def name(self) -> str:
        """Short name."""
        return "outer"

    @property
    def assumptions(self) -> str:
        """What must hold."""
        return LARGE_SAMPLE

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute both intervals and return the lower low and the higher high."""
        (low, high), (other_low, other_high) = (
            method.bounds(sample, alpha_low, alpha_high)
            for method in (AdjustedT(), EmpiricalLikelihood(effective=True))
        )
        return min(low, other_low), max(high, other_high)


@dataclass(frozen=True)
class Auto(IntervalMethod):
    """Choose among the large-sample intervals by the diagnostics of the estimate, and say why.

    Parameters
    ----------
    large : float
        Effective number of episodes of the importance weights from where on tails are no concern.
    symmetric : float
        An estimate whose own skewness, sum psi^3 / (sum psi^2)^1.5, is smaller then gets the t interval.
    dominant : float
        Share of sum psi^2 in one episode from where the reason warns that no large-sample interval holds.

    Notes
    -----
    Replicates without influence values: basic bootstrap. No importance weights (linear methods, whose estimates have no
    effective size): `AdjustedT`. A large effective sample: t where psi is almost symmetric, else empirical likelihood with
    Bartlett correction, which leaves about equal errors on both sides. A small one: `Outer`. The thresholds were chosen on the
    tuning half of `benchmarks/coverage.py`; `docs/intervals.md` has the figures of both halves. No rule makes up for a REFUSE: an
    interval always comes with a verdict. Assumes what the chosen method does; the interval names it and carries the reason.

    Examples
    --------
    >>> Auto().name
    'auto'
    """

    large: float = 200.0
    symmetric: float = 0.02
    dominant: float = 0.5

    @property
    def name(self) -> str:
        """Short name."""
        return "auto"

    def pick(self, sample: Sample) -> Pick:
        """Return the chosen method and the reason."""
        if sample.influence is None and sample.scores is None and sample.replicates is not None:
            count = len(sample.replicates)
            return Pick(Bootstrap("basic"), f"there are no influence values, only {count} replicates of the estimation")
        skewness, share = _shape(influence_of(sample, "Auto"))
        warning = (
            f"; one episode carries {share:.0%} of the variance, so that no interval for large samples holds: with known "
            "propensities use ReflectedBetting(low, high)"
        )
        return self._by_size(sample.effective_size, skewness, warning if share > self.dominant else "")

    def _by_size(self, size: float | None, skewness: float, warning: str) -> Pick:
        side = "right" if skewness > 0 else "left"
        if size is None:
            return Pick(
                AdjustedT(), f"no importance weights carry the estimate, whose skewness is {skewness:.2f}{warning}"
            )
        if size < self.large:
            return Pick(Outer(), f"the weights leave an effective sample of {size:.0f} episodes only{warning}")
        if abs(skewness) < self.symmetric:
            return Pick(Normal(), f"the estimate is almost symmetric, with {size:.0f} effective episodes{warning}")
        reason = f"the estimate is skewed to the {side} (skewness {skewness:.2f}), with {size:.0f} effective episodes{warning}"
        return Pick(EmpiricalLikelihood(), reason)

    def bounds(self, sample: Sample, alpha_low: float, alpha_high: float) -> Ends:
        """Compute the ends by the chosen method."""
        return self.pick(sample).method.bounds(sample, alpha_low, alpha_high)


def _shape(psi: FloatArray) -> tuple[float, float]:
    """Return the skewness of the estimate and the largest share of its variance in one episode; 0 without variance."""
    top = float(np.abs(psi).max())
    if top == 0.0 or not np.isfinite(top):
        return 0.0, 0.0
    squares = (psi / top) ** 2
    total = float(squares.sum())
    return float((squares * psi / top).sum()) / total**1.5, 1.0 / total
