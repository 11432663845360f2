"""The safety gate: which candidates are better than what is deployed today, with control of the error over all candidates."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from ope.baseline import LOGGED
from ope.estimate import Estimate
from ope.inference import multiplicity as many
from ope.inference.intervals import ROUNDING, effective_freedom, std_error
from ope.validation import BoolArray, FloatArray
from ope.verdict import Level, Verdict

ADJUSTMENTS = ("max_t", "holm", "none")
COLUMNS = ("difference", "std_error", "lower_bound", "p_value", "p_adjusted", "passes", "reason")
N_DRAWS = 20_000


@dataclass(frozen=True)
class GateStatements:
    """Differences to the baseline, their one-sided tests and simultaneous lower bounds, one entry per candidate.

    Parameters
    ----------
    difference, std_error, lower_bound, p_value, p_adjusted : ndarray of shape (K,)
    rejected : ndarray of bool of shape (K,)
        Whether the difference is above -margin at the level of the gate.
    """

    difference: FloatArray
    std_error: FloatArray
    lower_bound: FloatArray
    p_value: FloatArray
    p_adjusted: FloatArray
    rejected: BoolArray


def one_sided(
    difference: FloatArray,
    influence: FloatArray,
    widening: FloatArray,
    *,
    margin: float = 0.0,
    alpha: float = 0.05,
    adjust: str = "max_t",
    n_tests: int | None = None,
) -> GateStatements:
    """Test that each difference is above -margin, with simultaneous lower bounds that agree with the tests.

    Parameters
    ----------
    difference : ndarray of shape (K,)
    influence : ndarray of shape (n, K)
        Of the differences.
    widening : ndarray of shape (K,)
        Bounds of biases.
    margin : float
    alpha : float
        Probability of any wrong statement.
    adjust : {"max_t", "holm", "none"}
    n_tests : int, optional
        How many candidates were asked for, if some of them gave no difference to test: Holm counts them as well.

    Returns
    -------
    GateStatements

    Notes
    -----
    Each difference has the bound of `ope.inference.adjusted_t_interval`, at a level of its own. "max_t": the level whose t
    quantile is the 1 - alpha quantile of the largest of all simulated errors; a difference passes where its bound is above
    -margin. "holm": the step-down test on the p-values; its bounds are -margin itself for those that pass as long as
    others do not, those of level 1 - alpha / m with m the number of those that do not pass for these, and Bonferroni's
    (at least -margin) once all pass.

    References
    ----------
    Strassburger & Bretz (2008), "Compatible simultaneous lower confidence bounds for the Holm procedure",
    doi:10.1002/sim.3338.

    Examples
    --------
    >>> psi = np.random.default_rng(0).standard_normal((100, 2))
    >>> psi -= psi.mean(axis=0)
    >>> tested = one_sided(np.array([0.5, 0.1]), psi, np.zeros(2))
    >>> tested.rejected, tested.lower_bound.round(2)
    (array([ True, False]), array([ 0.31, -0.09]))
    """
    error = std_error(influence)
    shifted = difference + margin - widening
    tests = _tests(shifted, influence, error, max(n_tests or 0, len(shifted)))
    bound, adjusted, rejected = _RULES[adjust](tests, alpha)
    return GateStatements(difference, error, bound - margin, tests.p, adjusted, rejected)


@dataclass(frozen=True)
class _Tests:
    """What each difference plus margin is tested with: its t has its own degrees of freedom and allows for skewness."""

    shifted: FloatArray
    error: FloatArray
    freedom: FloatArray
    skewness: FloatArray
    p: FloatArray
    influence: FloatArray
    n_tests: int

    @property
    def t(self) -> FloatArray:
        """Statistics with the p-values' size on the scale of t with n - 1 degrees of freedom; infinite where p is 0 or 1."""
        inside = np.clip(self.p, np.finfo(np.float64).tiny, None)  # stdtrit(df, 0) is +inf
        t = -stdtrit(len(self.influence) - 1, inside)
        return np.asarray(np.where(self.p <= 0.0, np.inf, np.where(self.p >= 1.0, -np.inf, t)))

    def bound(self, alpha: float) -> FloatArray:
        """Return the lower bounds, each of level 1 - alpha: those of `ope.inference.adjusted_t_interval`."""
        t = -stdtrit(self.freedom, alpha)
        return np.asarray(self.shifted - t * self.error - self.skewness * (1.0 + 2.0 * t * t) / 6.0)


def _tests(shifted: FloatArray, influence: FloatArray, error: FloatArray, n_tests: int) -> _Tests:
    n, scale = len(influence), np.abs(influence).max(axis=0)
    unit = influence / np.where(scale > 0.0, scale, 1.0)
    second = np.square(unit).sum(axis=0)
    third = scale * (unit**3).sum(axis=0) / np.where(second > 0.0, second, 1.0) / n
    skewness = np.maximum(-third, 0.0)
    freedom = np.array([effective_freedom(column) for column in influence.T])
    # The p-value is the alpha at which the bound is 0: a quadratic equation in t, solved without cancellation.
    rest = shifted - skewness / 6.0
    root = np.sqrt(np.maximum(error**2 + 4.0 / 3.0 * skewness * rest, 0.0))
    t = many.t_statistics(2.0 * rest, error + root)
    return _Tests(shifted, error, freedom, skewness, np.asarray(stdtr(freedom, -t)), influence, n_tests)


def _max_t(tests: _Tests, alpha: float) -> tuple[FloatArray, FloatArray, BoolArray]:
    # Draws belong to columns: in an order of their own, so that the order of the candidates changes nothing.
    order = np.lexsort((tests.freedom, tests.error, tests.shifted))
    draws = np.empty((N_DRAWS, len(order)))
    draws[:, order] = many.error_draws(tests.influence[:, order], N_DRAWS)
    draws /= np.where(tests.error > 0.0, tests.error, np.inf)
    critical = many.critical_value(draws, len(tests.influence), alpha, 1)
    bound = tests.bound(float(stdtr(len(tests.influence) - 1, -critical)))
    return bound, many.max_t_p_values(tests.t, draws, two_sided=False, p_values=tests.p), bound > 0.0


def _single(tests: _Tests, alpha: float) -> tuple[FloatArray, FloatArray, BoolArray]:
    bound = tests.bound(alpha)
    return bound, tests.p, bound > 0.0


def _holm(tests: _Tests, alpha: float) -> tuple[FloatArray, FloatArray, BoolArray]:
    silent = np.ones(tests.n_tests - len(tests.p))
    adjusted = many.holm(np.concatenate([tests.p, silent]))[: len(tests.p)]
    passes = adjusted <= alpha
    n_open = tests.n_tests - int(passes.sum())
    bound = tests.bound(alpha / (n_open or tests.n_tests))
    bound[passes] = 0.0 if n_open else np.maximum(bound[passes], 0.0)
    return bound, adjusted, passes


_RULES: dict[str, Callable[[_Tests, float], tuple[FloatArray, FloatArray, BoolArray]]] = {
    "max_t": _max_t,
    "holm": _holm,
    "none": _single,
}


# -------------------------------------------------------------------- candidates


def gates(
    estimates: Mapping[str, Estimate], baseline: Estimate, *, margin: float, level: float, adjust: str
) -> pd.DataFrame:
    """Judge every candidate against the baseline: one row each, with the reason in words.

    Parameters
    ----------
    estimates : mapping of str to Estimate
        Of all candidates by one estimator, the refused ones included: the number of tests must not depend on the data.
    baseline : Estimate
    margin : float
        How much worse than the baseline a candidate may be.
    level : float
        Of all statements at once.
    adjust : {"max_t", "holm", "none"}
    """
    differences = {name: _difference(estimate, baseline) for name, estimate in estimates.items()}
    testable = {name: d for name, d in differences.items() if isinstance(d, Estimate) and not _is_stuck(d)}
    frame = pd.DataFrame(np.nan, index=pd.Index(list(estimates), name="candidate"), columns=list(COLUMNS[:5]))
    for name, d in differences.items():
        if isinstance(d, Estimate):
            frame.loc[name, ["difference", "std_error"]] = [d.value, d.std_error]
    rejected = dict.fromkeys(estimates, False)
    if testable:
        tested = one_sided(
            np.array([d.value for d in testable.values()]),
            np.column_stack([np.asarray(d.influence) for d in testable.values()]),
            np.array([d.widening for d in testable.values()]),
            margin=margin,
            alpha=1.0 - level,
            adjust=adjust,
            n_tests=len(estimates),
        )
        for column in frame:
            frame.loc[list(testable), column] = getattr(tested, str(column))
        rejected.update(zip(testable, tested.rejected.tolist(), strict=True))
    reasons = {name: _reason(name, e, baseline, differences[name]) for name, e in estimates.items()}
    # A number that is refused on either side bounds nothing.
    frame.loc[[name for name, reason in reasons.items() if reason], ["lower_bound", "p_value", "p_adjusted"]] = np.nan
    frame["passes"] = [rejected[name] and reasons[name] is None for name in estimates]
    rows = frame.to_dict("index")
    frame["reason"] = [
        reasons[name] or _outcome(rows[name], baseline, margin, _confidence(level, adjust, len(estimates)))
        for name in estimates
    ]
    return frame


def _difference(estimate: Estimate, baseline: Estimate) -> Estimate | str:
    """Return the paired difference, or why there is none."""
    if not np.isfinite(estimate.value):
        return "there is no value to compare"
    if estimate.estimand != baseline.estimand:
        return f"the candidate's value is {estimate.estimand!r}, the baseline's {baseline.estimand!r}: they answer different questions"
    if estimate.question != baseline.question:
        mine, theirs = _terms(estimate, baseline), _terms(baseline, estimate)
        return f"the candidate's value is for {mine}, the baseline's for {theirs}: they answer different questions"
    if estimate.influence is None or baseline.influence is None or not np.isfinite(estimate.influence).all():
        return (
            "there is no influence vector, so the standard error of the paired difference is not known; put an estimator that has one first, "
            "or compare bootstrap replicates with ope.Comparison"
        )
    difference = estimate - baseline
    psi = np.asarray(difference.influence)
    if np.abs(psi).max() > _rounding(estimate, baseline):
        return difference
    same = abs(difference.value) <= many.SAME * (abs(estimate.value) + abs(baseline.value))
    return replace(difference, influence=np.zeros_like(psi), value=0.0 if same else difference.value)


def _terms(estimate: Estimate, other: Estimate) -> str:
    """Return what the question of an estimate has that the other's has not."""
    gamma = [f"gamma {estimate.gamma:g}"] if estimate.gamma != other.gamma else []
    horizon = "an infinite horizon" if estimate.horizon is None else f"horizon {estimate.horizon}"
    return " and ".join(gamma + ([horizon] if estimate.horizon != other.horizon else []))


def _rounding(estimate: Estimate, baseline: Estimate) -> float:
    """Return up to which size influence values of a difference are rounding; of a log without spread they are nothing else."""
    both = (estimate, baseline)
    spread = max(float(np.abs(np.asarray(e.influence)).max()) for e in both)
    return max(many.SAME * spread, ROUNDING * max(abs(e.value) for e in both))


def _is_stuck(difference: Estimate) -> bool:
    """Return whether a difference is the same in every episode, and not none: its error is then unknown, not 0."""
    return difference.value != 0.0 and not np.asarray(difference.influence).any()


def _reason(name: str, estimate: Estimate, baseline: Estimate, difference: Estimate | str) -> str | None:
    """Say why a candidate cannot pass whatever its difference, else None."""
    if estimate.verdict.level == Level.REFUSE:
        return f"{name!r} is refused: {first_reason(estimate.verdict)}"
    if baseline.verdict.level == Level.REFUSE:
        return f"The value of {called(baseline.policy)} is refused, so nothing can be shown to be better: {first_reason(baseline.verdict)}"
    if isinstance(difference, str):
        return f"{name!r} cannot be compared with {called(baseline.policy)}: {difference}."
    if _is_stuck(difference):
        return (
            f"The log does not vary where {name!r} differs from {called(baseline.policy)}: the difference of {difference.value:.4g} is the same in "
            "every episode (standard error 0), so its error is not known. Log more episodes, in which rewards or actions vary."
        )
    return None


def _outcome(row: Mapping[Hashable, Any], baseline: Estimate, margin: float, confidence: str) -> str:
    than = called(baseline.policy) + (f" minus {margin:.4g}" if margin else "")
    told = f"the difference of {row['difference']:.4g} is with {confidence} at least {row['lower_bound']:.4g} (p-value {row['p_adjusted']:.2g})"
    if row["passes"]:
        return f"Better than {than}: {told}."
    if row["difference"] + margin <= 0.0:
        return f"Estimated not to be better than {than}: difference {row['difference']:.4g}."
    return f"Not shown to be better than {than}: {told}. More episodes would tell."


def _confidence(level: float, adjust: str, n: int) -> str:
    alone = " for it alone" if adjust == "none" else f" for all {n} candidates at once"
    return f"{level:.0%} confidence" + (alone if n > 1 else "")


def called(policy: str) -> str:
    """Return what a sentence calls a policy.

    Examples
    --------
    >>> called("logged policy"), called("bcq")
    ('the logged policy', "'bcq'")
    """
    return f"the {policy}" if policy == LOGGED else repr(policy)


def first_reason(verdict: Verdict) -> str:
    """Return the gravest reason of a verdict."""
    return verdict.reasons[0] if verdict.reasons else f"{verdict.level.name}."
