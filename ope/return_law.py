"""`ReturnDistribution`: what one log says of the distribution of a candidate's return, and the numbers read off it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import stdtrit

from ope import return_bands, return_sample
from ope.diagnostics import effective_sample_size
from ope.estimate import Estimate, Interval
from ope.estimators import _verdicts as verdicts
from ope.return_sample import Method, ReturnSample
from ope.validation import BoolArray, FloatArray
from ope.verdict import Level, Verdict

if TYPE_CHECKING:
    import pandas as pd

OWNER = "ReturnDistribution"
COLUMNS = 64
# Effective episodes below which intervals of the variance and of CVaR (there: in the tail) were found too short: docs/returns.md.
ENOUGH_BEYOND_THE_MEAN = 100.0
Tail = Literal["lower", "upper"]
INVERSION = "independent episodes; holds as the number of episodes grows, for discrete returns too"


@dataclass(frozen=True, slots=True, eq=False)
class ReturnEvidence:
    """What the numbers of a `ReturnDistribution` are computed from.

    Parameters
    ----------
    sample : ReturnSample
    mean : Estimate
        Of the mean, by the same method; the other estimates are made in its image.
    findings : tuple
        Of the weights: what is said with every number.
    support : tuple of (float, float)
        Least and largest return that can occur, infinite where the log does not say.
    """

    sample: ReturnSample
    mean: Estimate
    findings: tuple[verdicts.Finding, ...]
    support: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True, eq=False)
class ReturnDistribution:
    """Distribution function of an episode's discounted return under a candidate, on a grid of logged returns.

    Parameters
    ----------
    returns : ndarray of shape (m,)
        Rising.
    cdf, low, high : ndarray of shape (m,)
        Estimated probability of a return of at most this, and the band around it.
    logged_cdf : ndarray of shape (m,)
        The same for the logging policy, without weights.
    level : float
        Confidence that the band holds the whole function.
    ess : float
        Effective number of episodes.
    truncated_share : float
        Share of the weight on episodes whose recording stopped: their return is counted up to there.
    method : {"is", "self_normalized", "doubly_robust"}
    band : {"asymptotic", "finite_sample"}
    verdict : Verdict
        What the weights allow to be said. Every estimate of this object repeats it and adds what concerns its own number.
    evidence : ReturnEvidence or None
        None for a distribution that was put together by hand: it has quantiles, but no errors.

    Examples
    --------
    >>> one = np.ones(1)
    >>> ReturnDistribution(np.array([2.0]), one, one, one, one, 0.95, 10.0, 0.0).quantile(0.5)
    2.0
    """

    returns: FloatArray
    cdf: FloatArray
    low: FloatArray
    high: FloatArray
    logged_cdf: FloatArray
    level: float
    ess: float
    truncated_share: float
    method: Method = "self_normalized"
    band: str = "asymptotic"
    verdict: Verdict = field(default_factory=Verdict)
    evidence: ReturnEvidence | None = field(default=None, repr=False)

    # ---------------------------------------------------------------- numbers

    def mean(self) -> Estimate:
        """Return the mean return: `TrajectoryIS`, `WeightedIS(per_decision=False)`, or its doubly robust form."""
        return self._known("mean").mean

    def variance(self) -> Estimate:
        """Return the variance of an episode's return, E G^2 - (E G)^2.

        Notes
        -----
        psi = psi_{G^2} - 2 E G psi_G. By "is" the difference may be negative; it is not clipped, the verdict says so.
        """
        value, psi = return_sample.variance(self._known("variance").sample)
        return self._estimate("Variance", "variance", value, psi, self._judge_spread(value))

    def std(self) -> Estimate:
        """Return the standard deviation of an episode's return; psi = psi_variance / (2 std)."""
        value, psi = return_sample.variance(self._known("std").sample)
        root = math.sqrt(value) if value > 0.0 else (0.0 if value == 0.0 else math.nan)
        scaled = psi / (2.0 * root) if root > 0.0 else np.zeros(len(psi))
        return self._estimate("StandardDeviation", "standard_deviation", root, scaled, self._judge_spread(value))

    def cvar(self, level: float, *, tail: Tail = "lower") -> Estimate:
        """Return the conditional value at risk: the mean of the worst (lower) or best (upper) share of the returns.

        Parameters
        ----------
        level : float
            The share, in (0, 1]; 1 gives the mean.
        tail : {"lower", "upper"}

        Returns
        -------
        Estimate
            With ``quantile``, where the share ends, and ``tail_ess``, the effective number of episodes in it, as diagnostics.
            Its `estimand` is of its own: it is not subtracted from, nor compared with, values of policies.

        Raises
        ------
        ValueError
            If a parameter is out of its range.

        Notes
        -----
        Lower: max_c {c - E (c - G)^+ / level}, attained at the quantile q, with psi = -psi_{(q - G)^+} / level; where returns are
        discrete, the atom at q counts with the part that fills the share. Upper: that of -G, with its sign changed.
        """
        sample = self._known("cvar").sample
        _check_share("cvar", "level", level, 0.0 < level <= 1.0, "(0, 1]")
        if tail not in ("lower", "upper"):
            raise ValueError(f"{OWNER}.cvar: `tail` must be 'lower' or 'upper', got {tail!r}; 'lower' is the bad one.")
        sign = 1.0 if tail == "lower" else -1.0
        value, psi, q = return_sample.lower_cvar(sample if sign > 0 else sample.mirrored(), level)
        ess = _ess_below(sample.returns, sample, q) if sign > 0 else _ess_below(-sample.returns, sample, q)
        findings = [_judge_reached(value, sample, level)]
        findings += [verdicts.judge_ess(ess, ENOUGH_BEYOND_THE_MEAN, f"importance weights of the {tail} tail")]
        extra = {"quantile": sign * q, "tail_ess": ess}
        name, estimand = f"{tail.capitalize()}CVaR({level:g})", f"{tail}_cvar({float(level)})"
        return self._estimate(name, estimand, sign * value, sign * psi, findings, extra)

    def quantile(self, probability: float) -> float:
        """Return the smallest logged return that is not exceeded with at least this probability.

        NaN where the weights of "is" add up to less.
        """
        _check_share("quantile", "probability", probability, 0.0 <= probability <= 1.0, "[0, 1]")
        if self.evidence is not None:
            return return_sample.quantile(self.evidence.sample, probability)
        reached = np.searchsorted(self.cdf, probability - 1e-12, side="left")
        return float(self.returns[min(int(reached), len(self.returns) - 1)])

    def quantile_interval(
        self, probability: float, level: float | None = None, *, simultaneous: bool = False
    ) -> Interval:
        """Return an interval of a quantile; its ends are logged returns, or the ends of what can occur.

        Parameters
        ----------
        probability : float
            In (0, 1).
        level : float, optional
            Default: that of the band.
        simultaneous : bool
            Whether to read it off the band, at the level of the band: these intervals hold for all probabilities at once, and
            for every n if the band does.

        Returns
        -------
        Interval

        Raises
        ------
        ValueError
            If a parameter is out of its range, or another level is asked of the band.

        Notes
        -----
        The returns x at which a test of F(x) = p does not reject (Woodruff 1952), with the variance that the episodes have under
        that hypothesis, at least p (1 - p) / ess, and t of ess - 1 degrees: no density is estimated, so that returns may be discrete.
        """
        evidence = self._known("quantile_interval")
        _check_share("quantile_interval", "probability", probability, 0.0 < probability < 1.0, "(0, 1)")
        level = self.level if level is None else level
        _check_share("quantile_interval", "level", level, 0.0 < level < 1.0, "(0, 1)")
        if simultaneous and level != self.level:
            raise ValueError(
                f"{OWNER}.quantile_interval: `level` of simultaneous intervals must be that of the band, {self.level}, got {level}; "
                "call return_distribution with that level."
            )
        below, above = self._rejected(probability, level, simultaneous)
        values = np.concatenate([evidence.support[:1], self.returns, evidence.support[1:]])
        low = float(values[min(int(below.sum()), len(self.returns))])
        high = float(values[int(np.argmax(above)) if above.any() else -1])
        name = f"{self.band} band" if simultaneous else "inverted test"
        words = "as the band" if simultaneous else INVERSION
        return Interval(low, high, level, name, self._quantile_verdict(probability), words)

    def logged_band(self, level: float | None = None) -> return_bands.Band:
        """Return the band of Dvoretzky, Kiefer and Wolfowitz around `logged_cdf`: exact for every n, of the LOGGING policy.

        Parameters
        ----------
        level : float, optional
            Default: that of the band.

        Returns
        -------
        tuple of ndarray of shape (m,)

        Raises
        ------
        ValueError
            If episodes have different weights, for which the inequality does not hold.
        """
        omega, level = self._known("logged_band").sample.omega, self.level if level is None else level
        _check_share("logged_band", "level", level, 0.0 < level < 1.0, "(0, 1)")
        if not np.all(omega == 1.0):
            raise ValueError(
                f"{OWNER}.logged_band: the inequality needs `episode_weight` of 1 for every episode, got others; leave them out."
            )
        half = return_bands.dkw_width(len(omega), level)
        return np.maximum(self.logged_cdf - half, 0.0), np.minimum(self.logged_cdf + half, 1.0)

    def to_frame(self) -> pd.DataFrame:
        """Return the function with its band as a table, one row a return; the verdict stands in its last column."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("returns", "cdf", "low", "high", "logged_cdf")}
        return pd.DataFrame({**columns, "verdict": self.verdict.level.name})

    # ---------------------------------------------------------------- parts

    def _known(self, asked: str) -> ReturnEvidence:
        if self.evidence is None:
            raise ValueError(
                f"{OWNER}.{asked}: `evidence` must hold the episodes' returns and weights, got None; make the object with ope.returns.return_distribution."
            )
        return self.evidence

    def _estimate(
        self,
        name: str,
        estimand: str,
        value: float,
        psi: FloatArray,
        findings: list[verdicts.Finding],
        extra: Mapping[str, Any] | None = None,
    ) -> Estimate:
        evidence = self._known(name)
        own = verdicts.influence_diagnostics(psi) if np.isfinite(value) else {}
        judged = [verdicts.judge_variation(own["largest_share"])] if own else []
        return replace(
            evidence.mean,
            value=float(value),
            influence=psi,
            widening=0.0,
            estimator=f"{name}[{self.method}]",
            estimand=estimand,
            diagnostics={**evidence.mean.diagnostics, **own, **(extra or {})},
            verdict=Verdict.of([*evidence.findings, *judged, *findings]),
        )

    def _judge_spread(self, value: float) -> list[verdicts.Finding]:
        known = self.ess < verdicts.THRESHOLDS.ess_caution  # What is said of every number.
        few = (
            None
            if known
            else verdicts.judge_ess(self.ess, ENOUGH_BEYOND_THE_MEAN, "importance weights of squared returns")
        )
        return [_judge_negative_variance(value), few]

    def _rejected(self, p: float, level: float, simultaneous: bool) -> tuple[BoolArray, BoolArray]:
        """Return, from minus infinity along the grid, where F(x) >= p is rejected and where F(x) < p is."""
        if simultaneous:
            # Between two points of the grid the band knows no more than at the lower one.
            under = np.append(0.0, self.high) < p
            return np.append(under[1:], False), np.append(0.0, self.low) >= p
        sample, points = self._known("quantile_interval").sample, np.append(-np.inf, self.returns)
        parts = [_moments_at(sample, points[k : k + COLUMNS], p) for k in range(0, len(points), COLUMNS)]
        gap, square = np.concatenate(parts, axis=1)
        t = -float(stdtrit(max(self.ess - 1.0, 1.0), (1.0 - level) / 2.0))
        reach = t * np.sqrt(np.maximum(square, p * (1.0 - p) / self.ess))
        return np.minimum.accumulate(gap + reach < 0.0), gap - reach >= 0.0

    def _quantile_verdict(self, p: float) -> Verdict:
        evidence, sign = self._known("quantile_interval"), 1.0 if p <= 0.5 else -1.0
        ess = _ess_below(sign * evidence.sample.returns, evidence.sample, sign * self.quantile(p))
        tail = verdicts.judge_ess(ess, verdicts.THRESHOLDS.ess_caution, "importance weights beyond the quantile")
        return Verdict.of([*evidence.findings, tail])


def _moments_at(sample: ReturnSample, points: FloatArray, p: float) -> FloatArray:
    deviations = sample.deviations(return_bands.indicators(sample, points), p)
    return np.stack([deviations.mean(axis=0), np.sum(deviations**2, axis=0) / len(deviations) ** 2])


def _ess_below(returns: FloatArray, sample: ReturnSample, q: float) -> float:
    with np.errstate(divide="ignore"):
        return effective_sample_size(np.log((sample.omega * sample.w)[returns <= q]))


def _judge_negative_variance(value: float) -> verdicts.Finding:
    if not value < 0.0:
        return None
    return Level.REFUSE, (
        f"The moments leave a variance of {value:.3g}, which no return has: importance sampling knows each with its own error. Use "
        'method="self_normalized", or log more episodes.'
    )


def _judge_reached(value: float, sample: ReturnSample, level: float) -> verdicts.Finding:
    if not np.isnan(value):
        return None
    return Level.REFUSE, (
        f"The weights of all episodes add up to {sample.masses().sum():.2g} where 1 is expected, less than the share {level:g} that is asked for: the tail "
        'ends in returns that the log does not hold. Use method="self_normalized", or log more episodes.'
    )


def _check_share(method: str, name: str, value: float, good: bool, rule: str) -> None:
    if not good:
        raise ValueError(f"{OWNER}.{method}: `{name}` must lie in {rule}, got {value!r}; pass e.g. 0.1 for 10 %.")
