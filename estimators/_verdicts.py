"""Rules that turn diagnostics into findings: a level and a sentence. Called by every estimator of this package.

The thresholds were set on the tuning half of the reference problems of `benchmarks/coverage.py` and are reported on the other
half in `docs/coverage.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ope.dataset import LoggedDataset
from ope.diagnostics import influence_sample_size, largest_share, skewness_ratio
from ope.schema import End
from ope.validation import FloatArray
from ope.verdict import Level

Finding = tuple[Level, str] | None


@dataclass(frozen=True)
class Thresholds:
    """Where a diagnostic stops being harmless.

    Parameters
    ----------
    ess_caution, ess_refuse : float
        Effective number of episodes of importance weights.
    ess_small, relative_ess : float
        A smaller effective number is enough where it is a large part of the episodes: the weights are then almost equal.
    linear_ess : float
        Effective number of episodes of a linear method's ratios of visits.
    share_caution, linear_share : float
        Largest share of sum psi^2 in one episode, of weighted and of linear methods.
    mean_weight_low, mean_weight_high : float
        Mean importance weight, whose expectation is 1.
    tail_harmless, tail_caution : float
        Bound of the truncated tail in standard errors.
    condition, singular : float
        Condition number of a linear system: from where it is noticed, and refused.
    specification : float
        p-value under which a Q model is contradicted by the log.
    unsupported : float
        Share of the candidate's state-action visits outside what the log supports.
    """

    ess_caution: float = 100.0
    ess_refuse: float = 5.0
    ess_small: float = 25.0
    relative_ess: float = 0.8
    linear_ess: float = 25.0
    share_caution: float = 0.5
    linear_share: float = 0.3
    mean_weight_low: float = 0.5
    mean_weight_high: float = 2.0
    tail_harmless: float = 0.1
    tail_caution: float = 1.0
    condition: float = 1e10
    singular: float = 1e14
    specification: float = 0.001
    unsupported: float = 1e-3


THRESHOLDS = Thresholds()


def judge_ess(ess: float, enough: float, what: str) -> Finding:
    """Judge the number of episodes that carry an estimate."""
    if ess >= enough:
        return None
    level = Level.REFUSE if ess < THRESHOLDS.ess_refuse else Level.CAUTION
    return level, (
        f"The {what} leave an effective sample of {ess:.1f} episodes: the value rests on a few of them and its interval is too short. "
        "Use a candidate closer to the logged policy, log more episodes, or use a doubly robust or Q-based method."
    )


def judge_finite(value: float, influence: FloatArray | None) -> Finding:
    """Judge whether there is a value at all."""
    if np.isfinite(value) and (influence is None or np.isfinite(influence).all()):
        return None
    return Level.REFUSE, (
        f"The value is {value:.3g}: no logged episode follows the candidate to the end, or the weights overflow. Use a candidate closer to the logged "
        "policy, or a Q-based method."
    )


def judge_clipping(bias: float, std_error: float) -> Finding:
    """Judge the bound of the bias that clipping the weights brings."""
    if bias <= THRESHOLDS.tail_harmless * std_error:
        return None
    return Level.CAUTION, (
        f"Clipping the weights may bias the value by up to {bias:.3g}, beside a standard error of {std_error:.3g}; the interval does not include it. "
        "Raise clip=, or compare with a doubly robust method."
    )


def judge_share(share: float, limit: float) -> Finding:
    """Judge the largest share of the variance in one episode; 0 stands for no variance at all."""
    if share == 0.0:
        return Level.CAUTION, (
            "All episodes say exactly the same, so the standard error is 0: the log holds no variation to learn the error from. Use a range-based bound, or "
            "log more episodes."
        )
    if share <= limit:
        return None
    return Level.CAUTION, (
        f"One episode carries {share:.0%} of the estimated variance: another such episode would move the value by about a standard error, so the "
        "interval cannot be trusted. Inspect that episode; use a range-based bound, or log more episodes."
    )


def judge_mean_weight(mean_weight: float) -> Finding:
    """Judge the mean importance weight, whose expectation is 1 when propensities are right."""
    if mean_weight < THRESHOLDS.mean_weight_low:
        return Level.REFUSE, (
            f"The mean importance weight is {mean_weight:.2g} where 1 is expected: the episodes that the candidate would mostly produce are not in the "
            "log, so the value leaves them out. Log more episodes, or use a candidate closer to the logged policy."
        )
    if mean_weight > THRESHOLDS.mean_weight_high:
        return Level.CAUTION, (
            f"The mean importance weight is {mean_weight:.2g} where 1 is expected: the propensities may be wrong or a rare large weight dominates. Check the "
            "propensities with ope.behavior.calibration_table."
        )
    return None


def judge_tail(tail: float, std_error: float) -> tuple[Finding, float]:
    """Judge the bound of what truncated episodes would still have earned; return the widening of the interval too."""
    if tail <= THRESHOLDS.tail_harmless * std_error:
        return None, 0.0
    remedy = "Use a doubly robust or Q-based method, which bootstrap the rest of a truncated episode."
    if tail < THRESHOLDS.tail_caution * std_error:
        return (
            Level.CAUTION,
            f"Truncated episodes may add up to {tail:.3g} to the value; the interval is widened by it. {remedy}",
        ), tail
    return (
        Level.REFUSE,
        f"Truncated episodes may add up to {tail:.3g} to the value, more than its standard error of {std_error:.3g}. {remedy}",
    ), 0.0


def judge_plug_in(value: float, influence: FloatArray, known: bool) -> Finding:
    """Judge what the Q model alone says of the time after the recording, where its error is not in the influence."""
    if known or abs(value) <= THRESHOLDS.tail_harmless * standard_error(influence):
        return None
    return Level.CAUTION, (
        f"What follows truncated episodes ({value:.3g} of the value) is known from the Q model alone, whose error is not in the interval. Use q=LSTDQ(), "
        "whose error is known, or `ope.bootstrap`."
    )


def judge_propensities(data: LoggedDataset, orthogonal: bool) -> Finding:
    """Judge where the propensities come from: importance sampling needs in-sample parametric ones."""
    source = data.behavior_source
    if source is None or source.known or source.parametric:
        return None
    if orthogonal and data.cross_fitted_log_prob is not None:
        return None
    return Level.CAUTION, (
        f"The propensities were {source} with a flexible model: its errors multiply over the steps of an episode. Use a doubly robust method, "
        "which takes cross-fitted propensities, or a parametric model."
    )


def judge_unlogged(mass: float, labels: list[object]) -> Finding:
    """Judge the candidate's probability of actions that were never logged."""
    if mass <= THRESHOLDS.unsupported:
        return None
    return Level.REFUSE, (
        f"The candidate takes actions that were never logged ({labels}) with probability {mass:.2g}: the log cannot say what they earn. Log them, or "
        "forbid them to the candidate."
    )


def judge_condition(condition: float) -> Finding:
    """Judge the conditioning of a linear system."""
    if condition <= THRESHOLDS.condition:
        return None
    if condition > THRESHOLDS.singular:
        return Level.REFUSE, (
            f"The linear system has condition number {condition:.1g}: its solution is rounding error, and without discounting and "
            "termination there is no value at all. Use gamma < 1, fewer features, or a ridge."
        )
    return Level.CAUTION, (
        f"The linear system has condition number {condition:.1g}: its solution moves with rounding. Use fewer features, or a ridge."
    )


def judge_features(p_value: float) -> Finding:
    """Judge a test that richer features do not predict the Q model's errors."""
    if not p_value < THRESHOLDS.specification:
        return None
    return Level.CAUTION, (
        f"Richer features predict the errors of the Q model (p = {p_value:.1g}): its basis is too poor, and the value is biased by an unknown amount "
        "that the interval does not show. Pass richer features=, or use a doubly robust method."
    )


def judge_range(value: float, data: LoggedDataset, gamma: float, stationary: bool, level: Level) -> Finding:
    """Judge whether rewards as large as those logged (or as `reward_range` allows) can add up to the value."""
    if stationary or data.horizon is None:
        steps = 1.0 / (1.0 - gamma) if gamma < 1.0 else np.inf
    else:
        steps = float(np.sum(gamma ** np.arange(data.horizon)))
    least, most = data.reward_range if data.reward_range is not None else (data.rewards.min(), data.rewards.max())
    low, high = (float(bound) * steps if bound else 0.0 for bound in (min(float(least), 0.0), max(float(most), 0.0)))
    slack = 1e-6 * max((abs(end) for end in (low, high) if np.isfinite(end)), default=0.0)
    slack = max(slack, 1e-6 * max(abs(float(least)), abs(float(most))))
    if not np.isfinite(value) or low - slack <= value <= high + slack:
        return None
    return level, (
        f"The value {value:.3g} lies outside {low:.3g} to {high:.3g}, which is all that rewards like the logged ones can add up to: the model "
        "extrapolates, or the weights are too few. Use richer features, more data, or a candidate closer to the logged policy."
    )


def judge_specification(p_value: float) -> Finding:
    """Judge a test that the Q model's errors are unrelated to the past."""
    if not p_value < THRESHOLDS.specification:
        return None
    return Level.REFUSE, (
        f"The errors of the Q model depend on the past (p = {p_value:.1g}): the states do not hold what decides rewards, or the features are too "
        "poor, and the value is biased by an unknown amount. Add the missing state or features, or use importance sampling or a doubly robust method."
    )


def judge_unsupported(share: float) -> Finding:
    """Judge how much of the candidate's visits lie outside the span of the log."""
    if share <= THRESHOLDS.unsupported:
        return None
    level = Level.REFUSE if share > 0.05 else Level.CAUTION
    return level, (
        f"{share:.1%} of the candidate's discounted visits go to state-action features that the log does not hold; they count as 0. Use coarser features, "
        "more data, or a candidate closer to the log."
    )


def _weights_findings(diagnostics: Mapping[str, Any], n_episodes: int) -> list[Finding]:
    almost_equal = diagnostics["ess"] >= THRESHOLDS.relative_ess * n_episodes
    enough = THRESHOLDS.ess_small if almost_equal else THRESHOLDS.ess_caution
    return [
        judge_ess(diagnostics["ess"], enough, "importance weights"),
        judge_share(diagnostics["largest_share"], THRESHOLDS.share_caution),
    ]


def importance_findings(diagnostics: Mapping[str, Any], n_episodes: int, *, clipped: bool) -> list[Finding]:
    """Judge importance sampling from its diagnostics."""
    return [
        *_weights_findings(diagnostics, n_episodes),
        None if clipped else judge_mean_weight(diagnostics["mean_weight"]),
    ]


def doubly_robust_findings(diagnostics: Mapping[str, Any], n_episodes: int) -> list[Finding]:
    """Judge a doubly robust estimate from its diagnostics."""
    return [*_weights_findings(diagnostics, n_episodes), judge_mean_weight(diagnostics["mean_weight"])]


def linear_findings(diagnostics: Mapping[str, Any]) -> list[Finding]:
    """Judge a linear Q method from its diagnostics."""
    return [
        judge_ess(diagnostics["ess"], THRESHOLDS.linear_ess, "ratios of visits"),
        judge_share(diagnostics["largest_share"], THRESHOLDS.linear_share),
        judge_condition(diagnostics["condition"]),
        judge_specification(diagnostics["specification_p"]),
        judge_features(diagnostics["features_p"]),
        judge_unsupported(diagnostics["unsupported"]),
    ]


def influence_diagnostics(influence: FloatArray) -> dict[str, float]:
    """Return how the variance is spread over the episodes."""
    return {
        "largest_share": largest_share(influence) if len(influence) > 1 else 1.0,
        "influence_ess": influence_sample_size(influence),
        "skewness": skewness_ratio(influence),
    }


def truncated_share(data: LoggedDataset) -> float:
    """Return the share of truncated episodes."""
    return float(np.mean(data.ends == End.TRUNCATED))


def reward_bound(data: LoggedDataset) -> tuple[float, bool]:
    """Return a bound of |r| and whether it was given rather than read off the log."""
    if data.reward_range is not None:
        return float(np.max(np.abs(data.reward_range))), True
    return float(np.max(np.abs(data.rewards))), False


def standard_error(influence: FloatArray) -> float:
    """Return sqrt(sum psi^2 / (n (n - 1))), infinite for one episode or where psi is."""
    n, top = len(influence), float(np.max(np.abs(influence)))
    if n == 1 or not np.isfinite(top):
        return float("inf")
    relative = influence / top if top > 0 else influence
    return top * float(np.sqrt(np.sum(relative**2) / (n * (n - 1))))
