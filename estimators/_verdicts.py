"""Rules that turn diagnostics into findings: a level and a sentence. Called by every estimator of this package.

The thresholds were set on the tuning half of the reference problems of `benchmarks/coverage.py` and are reported on the other
half in `docs/coverage.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.diagnostics import influence_sample_size, largest_share, skewness_ratio
from ope.inference.lepski import LepskiChoice
from ope.policy import continuing_ends
from ope.schema import End
from ope.validation import FloatArray
from ope.verdict import Level

# Influences below this share of the value are rounding errors.
ROUNDING = 1e-12

Finding = tuple[Level, str] | None


@dataclass(frozen=True)
class Thresholds:
    """Where a diagnostic stops being harmless.

    Parameters
    ----------
    ess_caution, ess_refuse : float
        Effective number of episodes of importance weights.
    linear_ess : float
        Effective number of episodes of a linear method's ratios of visits.
    leverage : float
        Largest leverage of one episode on a regression over episodes.
    linear_share : float
        Largest share of sum psi^2 in one episode, of linear methods.
    mean_weight_refuse, mean_weight_low, mean_weight_high : float
        Mean importance weight, whose expectation is 1: below the first the value is refused, outside the others noticed.
    mean_ratio_low, mean_ratio_high : float
        Visits that fitted ratios add up to, for every episode that starts.
    tail_harmless, tail_caution : float
        Bound of the truncated tail in standard errors.
    condition, singular : float
        Condition number of a linear system: from where it is noticed, and refused.
    specification : float
        p-value under which a Q model is contradicted by the log.
    unsupported, unsupported_refuse : float
        Share of the candidate's state-action visits outside what the log supports: from where it is noticed, and refused.
    ratio_mass : float
        Distance from 1 of the visits that fitted ratios add up to.
    negative : float
        Share of fitted ratios of visits that is negative.
    width : float
        Width of the 95 % interval as a share of the range of what logged episodes earned.
    """

    ess_caution: float = 20.0
    ess_refuse: float = 5.0
    linear_ess: float = 25.0
    leverage: float = 0.5
    linear_share: float = 0.3
    mean_weight_refuse: float = 0.5
    mean_weight_low: float = 0.85
    mean_weight_high: float = 1.17
    mean_ratio_low: float = 0.5
    mean_ratio_high: float = 2.0
    tail_harmless: float = 0.1
    tail_caution: float = 1.0
    condition: float = 1e10
    singular: float = 1e14
    specification: float = 0.001
    unsupported: float = 1e-3
    unsupported_refuse: float = 0.05
    ratio_mass: float = 0.1
    negative: float = 0.1
    width: float = 1.0


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
    if np.isfinite(value):
        return Level.REFUSE, (
            "Weights of some episodes overflow: they move the value infinitely much, and there is no standard error. Use a candidate closer to the "
            "logged policy, or a Q-based method."
        )
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


def judge_variation(share: float) -> Finding:
    """Judge whether there is any variance: a largest share of 0 stands for none."""
    if share > 0.0:
        return None
    return Level.CAUTION, (
        "All episodes say exactly the same, so the standard error is 0: the log holds no variation to learn the error from. Use a range-based bound, or "
        "log more episodes."
    )


def judge_share(share: float, limit: float) -> Finding:
    """Judge the largest share of the variance in one episode."""
    if share == 0.0 or share <= limit:
        return judge_variation(share)
    return Level.CAUTION, (
        f"One episode carries {share:.0%} of the estimated variance: another such episode would move the value by about a standard error, so the "
        "interval cannot be trusted. Inspect that episode; use a range-based bound, or log more episodes."
    )


def judge_mean_weight(mean_weight: float) -> Finding:
    """Judge the mean importance weight, whose expectation is 1 when propensities are right."""
    if mean_weight < THRESHOLDS.mean_weight_refuse:
        return Level.REFUSE, (
            f"The mean importance weight is {mean_weight:.2g} where 1 is expected: the episodes that the candidate would mostly produce are not in the "
            "log, so the value leaves them out. Log more episodes, or use a candidate closer to the logged policy."
        )
    if mean_weight < THRESHOLDS.mean_weight_low:
        return Level.CAUTION, (
            f"The mean importance weight is {mean_weight:.2g} where 1 is expected: some episodes that the candidate would produce are hardly in the log, and "
            "the interval may not reach what they would add. Log more episodes, or use a candidate closer to the logged policy."
        )
    if mean_weight > THRESHOLDS.mean_weight_high:
        return Level.CAUTION, (
            f"The mean importance weight is {mean_weight:.2g} where 1 is expected: the propensities may be wrong or a rare large weight dominates. Check the "
            "propensities with ope.behavior.calibration_table."
        )
    return None


def judge_lack(mean_weight: float) -> Finding:
    """Judge a mean weight below 1 alone: episodes that the log lacks, whatever is done to the weights afterwards."""
    return judge_mean_weight(mean_weight) if mean_weight < THRESHOLDS.mean_weight_low else None


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
    return judge_outside(
        share,
        "of the candidate's discounted visits go to state-action features that the log does not hold; they count as 0. Use coarser features, more data, or "
        "a candidate closer to the log.",
    )


def judge_outside(share: float, what: str) -> Finding:
    """Judge a share of what the candidate does of which the log says nothing, NaN where nobody knows it; `what` words it."""
    if not share > THRESHOLDS.unsupported:
        return None
    return Level.REFUSE if share > THRESHOLDS.unsupported_refuse else Level.CAUTION, f"{share:.1%} {what}"


def importance_findings(diagnostics: Mapping[str, Any], *, clipped: bool = False) -> list[Finding]:
    """Judge an estimate that importance weights carry, doubly robust or not, from its diagnostics."""
    return [
        judge_ess(diagnostics["ess"], THRESHOLDS.ess_caution, "importance weights"),
        judge_variation(diagnostics["largest_share"]),
        None if clipped else judge_mean_weight(diagnostics["mean_weight"]),
    ]


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


def settled(influence: FloatArray, value: float) -> FloatArray:
    """Return an influence without what rounding leaves of the value.

    Examples
    --------
    >>> settled(np.array([1e-17, -1e-3]), 0.1)
    array([ 0.   , -0.001])
    """
    if not np.isfinite(value):
        return influence
    return np.asarray(np.where(np.abs(influence) <= ROUNDING * abs(value), 0.0, influence))


def standard_error(influence: FloatArray) -> float:
    """Return sqrt(sum psi^2 / (n (n - 1))), infinite for one episode or where psi is."""
    n, top = len(influence), float(np.max(np.abs(influence)))
    if n == 1 or not np.isfinite(top):
        return float("inf")
    relative = influence / top if top > 0 else influence
    return top * float(np.sqrt(np.sum(relative**2) / (n * (n - 1))))


def judge_choice(choice: LepskiChoice, chosen: str) -> Finding:
    """Judge where among its options a Lepski choice ended."""
    if not choice.at_end:
        return None
    return Level.CAUTION, (
        f"The Lepski choice went to the most biased of its options, {chosen}: no less biased one contradicts it, which on a small log shows noise "
        "more than agreement, and the interval does not include the bias that is left. Compare with a doubly robust or Q-based method, or log more episodes."
    )


def judge_balance(choice: LepskiChoice, chosen: str) -> Finding:
    """Judge a Lepski choice among options that are all biased."""
    if choice.at_end or len(choice.values) == 1:
        return judge_choice(choice, chosen)
    return Level.CAUTION, (
        f"The Lepski choice took {chosen}, where noise and bias balance: a bias of about a standard error may be left, which the interval does not include. "
        "Compare with fixed settings and with a doubly robust or Q-based method."
    )


def judge_unseen_bias(choice: LepskiChoice, chosen: str) -> Finding:
    """Judge whether the unbiased option was there to contradict the one that a Lepski choice took."""
    if choice.index == 0 or np.isfinite(choice.std_errors[0]):
        return None
    return Level.REFUSE, (
        f"The log cannot show the bias of {chosen}: the unbiased form rests on fewer than {THRESHOLDS.ess_refuse:.0f} episodes, and the value may be that of "
        "another policy. Use a doubly robust or Q-based method, a candidate closer to the logged policy, or log more episodes."
    )


def judge_leverage(leverage: float) -> Finding:
    """Judge the largest leverage of one episode on a regression over episodes."""
    if leverage <= THRESHOLDS.leverage:
        return None
    return Level.CAUTION, (
        f"One episode has a leverage of {leverage:.0%} on the regression: the adjustment follows it, so its own error cannot show and the interval is too "
        "short. Use a candidate closer to the logged policy, log more episodes, or use a doubly robust or Q-based method."
    )


def judge_smoothing(bias: float, bias_error: float, std_error: float, corrected: bool) -> tuple[Finding, float]:
    """Judge the bias of smoothing a deterministic policy; return the widening of the interval too."""
    if abs(bias) <= (THRESHOLDS.tail_caution if corrected else THRESHOLDS.tail_harmless) * std_error:
        return None, 0.0
    found = f"Smoothing the policy biases the value by about {bias:.3g} (known to {bias_error:.3g}), beside a standard error of {std_error:.3g}"
    if corrected:
        return (
            Level.CAUTION,
            f"{found}. This was subtracted, which leaves a bias of higher order that the interval does not include. Pass a smaller bandwidth=, or log more episodes.",
        ), 0.0
    return (
        Level.CAUTION,
        f"{found}; the interval is widened by it. Pass correct_bias=True or a smaller bandwidth=.",
    ), abs(bias)


def judge_bias(cause: str, bias: float, bias_error: float, std_error: float) -> Finding:
    """Judge the bias of a form that is compared with an unbiased one."""
    if abs(bias) + bias_error <= THRESHOLDS.tail_harmless * std_error:
        return None
    if not np.isfinite(bias):
        return Level.CAUTION, (
            f"{cause} leaves a bias that nobody knows: the unbiased form has no finite value. Compare with a doubly robust or Q-based method."
        )
    return Level.CAUTION, (
        f"{cause} moves the value by {bias:.3g} from the unbiased form, a difference known to {bias_error:.3g} (one standard error); the interval, whose "
        f"standard error is {std_error:.3g}, does not include this bias. Compare with a doubly robust or Q-based method."
    )


def judge_gap(gap: float, std_error: float) -> Finding:
    """Judge the disagreement of the primal, dual and Lagrangian values of a marginal method."""
    if not gap > THRESHOLDS.tail_harmless * std_error:
        return None
    return Level.CAUTION, (
        f"The primal, dual and Lagrangian values differ by {gap:.3g}, beside a standard error of {std_error:.3g}: the ridge, or rounding in a badly "
        "conditioned system, moves the value by that much and the interval does not include it. Lower ridge=, or use fewer features."
    )


def judge_ridge(bias: float, std_error: float) -> Finding:
    """Judge the first-order bias that a ridge brings."""
    if abs(bias) <= THRESHOLDS.tail_harmless * std_error:
        return None
    return Level.CAUTION, (
        f"The ridge moves the value by about {bias:.3g}, beside a standard error of {std_error:.3g}; the interval does not include it. Lower ridge=, or "
        "use fewer features."
    )


def judge_mean_ratio(mean_ratio: float) -> Finding:
    """Judge the visits that fitted ratios add up to, 1 for every episode that starts."""
    if abs(mean_ratio - 1.0) <= THRESHOLDS.ratio_mass:
        return None
    inside = THRESHOLDS.mean_ratio_low <= mean_ratio <= THRESHOLDS.mean_ratio_high
    return Level.CAUTION if inside else Level.REFUSE, (
        f"The ratios carry {mean_ratio:.3g} of the candidate's visits where 1 is expected, and the value is off by about that factor: a ridge shrinks them, "
        "visits leave the log, the features hold no constant, or action ratios are too noisy. Lower ridge=, add a constant feature, or use self-normalised ratios."
    )


def judge_negative(share: float) -> Finding:
    """Judge how much of fitted ratios of visits is negative, which no ratio of visits is."""
    if share <= THRESHOLDS.negative:
        return None
    return Level.CAUTION, (
        f"Of the ratios' mass {share:.0%} is negative, where visits cannot be: the features cannot express the ratio, and the value is right only if they "
        "express the Q function. Pass richer features=, or use a candidate closer to the logged policy."
    )


def judge_solver(converged: bool, status: str) -> Finding:
    """Judge whether an optimisation came to its end; `status` says how it ended."""
    if converged:
        return None
    return Level.REFUSE, (
        f"The saddle point was not reached ({status}): the value is that of an unfinished computation and its error is unknown. Use fewer features that "
        "hold a constant, other regularisers, or more updates of a network."
    )


def judge_constraints(shift: float, std_error: float) -> Finding:
    """Judge what it costs that no ratio of a class meets the Bellman flow, the norm and positivity together."""
    if not abs(shift) > THRESHOLDS.tail_harmless * std_error:  # NaN where there is nothing to compare with
        return None
    return Level.CAUTION, (
        f"No ratio that these features can express meets the Bellman flow and what is asked of it (E zeta = 1, zeta >= 0): the nearest moves the value by {shift:.3g}, beside "
        f"a standard error of {std_error:.3g}, and the interval does not include that bias. Pass richer features=, or leave the constraints out (`DICE.dual()`)."
    )


def judge_disagreement(gap: float, std_error: float) -> Finding:
    """Judge the part of the difference between primal, dual and Lagrangian value that regularisers do not explain."""
    if not gap > 0.5 * std_error:
        return None
    return Level.CAUTION, (
        f"The primal, dual and Lagrangian values differ by {gap:.3g} more than the regularisers explain, beside a standard error of {std_error:.3g}: nu and zeta "
        "are no saddle point, and the value is off by about that much. Use more updates, or features in which the system is better conditioned."
    )


def judge_regularisers(shift: float, std_error: float) -> Finding:
    """Judge how far regularisers of a Lagrangian pull a ratio from the Bellman flow."""
    if not abs(shift) > THRESHOLDS.tail_harmless * std_error:
        return None
    return Level.CAUTION, (
        f"The regularisers pull the ratio from the Bellman flow and move the value by {shift:.3g}, beside a standard error of {std_error:.3g}; the interval "
        "does not include that bias. Lower nu_regularizer=, or take one of the named points, such as DICE.best()."
    )


def no_influence(what: str) -> Finding:
    """Say that a fitted function without a closed form brings no standard error of its own."""
    return Level.CAUTION, (
        f"The {what} has no influence vector, so this value has no standard error and no interval. Pair it with a Q function, whose error and its own "
        "then cancel to first order: DoubleReinforcementLearning(ratio=...) has an interval; or refit it on resampled episodes with `ope.bootstrap`."
    )


def judge_discriminators(gap: float, std_error: float) -> Finding:
    """Judge the distance of a minimax estimate from that in which the fitted class is its own discriminator."""
    if not abs(gap) > 2.0 * std_error:
        return None
    return Level.CAUTION, (
        f"With its own class as discriminator the value is {-gap:+.3g} away, beside a standard error of {std_error:.3g}: both are right where the class holds "
        "the ratio or the Q function, so here it does not, or a ridge or few points of the kernel blur it. Pass richer features=, or less ridge=."
    )


def judge_coin(n_episodes: int, converged: bool) -> Finding:
    """Judge the interval of CoinDICE."""
    if not converged:
        return Level.CAUTION, (
            "The search for the extremes of CoinDICE did not settle: coin_low and coin_high are too close together by an unknown amount. Use the default "
            "interval, fewer features, or more episodes."
        )
    if n_episodes >= 50:
        return None
    return Level.CAUTION, (
        f"coin_low to coin_high covers the value less often than it says on {n_episodes} episodes, whose spread understates what rare episodes "
        "would add. Use the default interval or the bootstrap, or log more episodes."
    )


def judge_flow(mean_ratio: float) -> Finding:
    """Judge the visits that cross-fitted ratios add up to, 1 for every episode that starts, where they correct a Q model."""
    if THRESHOLDS.mean_ratio_low <= mean_ratio <= THRESHOLDS.mean_ratio_high:
        return None
    return Level.CAUTION, (
        f"The cross-fitted ratios carry {mean_ratio:.3g} of the candidate's visits where 1 is expected: they correct the Q model by about that factor, and the "
        "value is right only if the Q model is. Use fewer features, log more episodes, or use self-normalised ratios."
    )


def judge_q_fits(n_unfinished: int, n_folds: int) -> Finding:
    """Judge whether the cross-fitted Q models came to their end."""
    if not n_unfinished:
        return None
    return Level.CAUTION, (
        f"The Q model did not converge in {n_unfinished} of {n_folds} folds: nothing but the weights corrects it, and the interval may be wide for no other "
        "reason. Give it more iterations, or use q=LSTDQ()."
    )


def earned_range(data: LoggedDataset, gamma: float, stationary: bool) -> tuple[float, float]:
    """Return the least and the most that logged episodes earned, 0 included; truncated ones are carried on at their own rate.

    Examples
    --------
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((3, 1)), [0, 1, 0], [1.0, 2.0, 4.0], lengths=[1, 2], ends=["truncated", "terminal"], final_states=np.ones((2, 1))
    ... )
    >>> earned_range(log, 0.5, True)
    (0.0, 4.0)
    """
    starts, horizon = data.offsets[:-1], np.inf if stationary or data.horizon is None else float(data.horizon)
    powers = gamma ** ragged.step_index(data.offsets)
    earned = np.add.reduceat(powers * data.rewards, starts)
    goes_on = continuing_ends(data, stationary) & (earned != 0.0)
    whole = (1.0 - gamma**horizon) / (1.0 - gamma) if gamma < 1.0 else horizon
    earned[goes_on] *= whole / np.add.reduceat(powers, starts)[goes_on]
    return min(float(earned.min()), 0.0), max(float(earned.max()), 0.0)


def judge_width(
    influence: FloatArray, data: LoggedDataset, gamma: float, stationary: bool, widening: float = 0.0
) -> Finding:
    """Judge whether the interval is narrower than what logged episodes differ by: if not, it is honest but says nothing."""
    width = 2.0 * (1.96 * standard_error(influence) + widening)
    low, high = earned_range(data, gamma, stationary)
    if not np.isfinite(width) or width <= THRESHOLDS.width * (high - low):
        return None
    return Level.CAUTION, (
        f"The 95 % interval is {width:.3g} wide, more than lies between the worst and the best logged episode ({low:.3g} to {high:.3g}, 0 included): it may well hold "
        "the true value, but it cannot tell a candidate better than every logged episode from one worse than all, and the number in its middle means little. "
        "Do not decide by it: log more episodes, use fewer features, or a candidate closer to the log."
    )


def judge_average_range(value: float, data: LoggedDataset) -> Finding:
    """Judge whether rewards as large as those logged (or as `reward_range` allows) can have the value for their mean."""
    least, most = data.reward_range if data.reward_range is not None else (data.rewards.min(), data.rewards.max())
    slack = 1e-6 * max(abs(float(least)), abs(float(most)))
    if not np.isfinite(value) or least - slack <= value <= most + slack:
        return None
    return Level.REFUSE, (
        f"The average {value:.3g} lies outside {float(least):.3g} to {float(most):.3g}, between which all rewards lie: the model extrapolates, or the log is too "
        "small. Use richer features, more data, or a candidate closer to the logged policy."
    )


def judge_average_width(influence: FloatArray, data: LoggedDataset) -> Finding:
    """Judge whether the interval of an average is narrower than the mean rewards of logged episodes differ by."""
    means = np.add.reduceat(data.rewards, data.offsets[:-1]) / data.lengths
    width, low, high = 2.0 * 1.96 * standard_error(influence), float(means.min()), float(means.max())
    if not np.isfinite(width) or width <= THRESHOLDS.width * (max(high, 0.0) - min(low, 0.0)):
        return None
    return Level.CAUTION, (
        f"The 95 % interval is {width:.3g} wide, more than lies between the least and the greatest mean reward of a logged episode ({low:.3g} to {high:.3g}, 0 included): "
        "the number in its middle means little. Do not decide by it: log more or longer episodes, use fewer features, or a candidate closer to the log."
    )


def judge_one_average(condition: float) -> Finding:
    """Judge whether the equations of an average have one solution."""
    if condition <= THRESHOLDS.condition:
        return None
    level = Level.REFUSE if condition > THRESHOLDS.singular else Level.CAUTION
    return level, (
        f"The linear system has condition number {condition:.1g}: as far as the log shows, the candidate can be caught in several parts of the states, each with an "
        "average of its own, or the features repeat each other. Log transitions between these parts, use fewer features, a ridge, or LSTDQ with gamma < 1."
    )


def judge_taken_on_trust(what: str) -> Finding:
    """Say that a value does not come from the log."""
    return Level.REFUSE, (
        f"The value is that of a given model ({what}), for which nothing of the log speaks: its error is unknown, and the interval is that of the first states and of simulation "
        f"alone. Let the log correct it: DoublyRobust(q={what}(...)) or EfficientDoublyRobust(q={what}(...)), whose intervals hold where the model is wrong."
    )


def judge_bins(n_bins: float) -> Finding:
    """Say that bins of a calibrated Q are searched for where they value."""
    return Level.CAUTION, (
        f"The value rests on {n_bins:.3g} bins that were found on the very episodes they value: the interval leaves out the luck of that search and the bias of wide "
        "bins, and is too short. Take the calibration error for what it says of the Q model, and the value from LSTDQ or DoublyRobust."
    )
