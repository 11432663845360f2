"""`confounding_path`: how far an unobserved cause of actions and rewards could move a value, and when it flips a decision."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ope import ragged
from ope.baseline import logged_value
from ope.dataset import LoggedDataset
from ope.display import between, number
from ope.estimate import Estimate
from ope.estimators import WeightedIS
from ope.estimators._importance import discounted, truncation_tail
from ope.estimators._verdicts import reward_bound
from ope.inference.intervals import expanded_tail, percentile_interval
from ope.inference.weights import WeightKind, one_step_replicates, resampling_weights
from ope.policy import Policy, log_prob_logged
from ope.schema import End
from ope.sensitivity.path import SensitivityPath
from ope.sensitivity.program import WeightedLog, bound_influence, value_bounds
from ope.validation import BoolArray, FloatArray, check_gamma, check_integer, check_number
from ope.verdict import Level, Verdict

OWNER = "confounding_path"
DEFAULT_ODDS_RATIOS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
KIND: WeightKind = "bayesian"
TILE = 1 << 21
EXACT_RESAMPLES = 1 << 22  # episodes times replicates; beyond, the linearisation is as good and far cheaper
FLIP_PRECISION = 2e-3


def confounding_path(
    data: LoggedDataset,
    policy: Policy,
    *,
    gamma: float,
    odds_ratios: Iterable[float] = DEFAULT_ODDS_RATIOS,
    baseline: str | float | Policy | Estimate | None = "logged",
    margin: float = 0.0,
    per_decision: bool = True,
    confounded_steps: Collection[int] | None = None,
    level: float = 0.95,
    n_replicates: int = 500,
    random_state: int = 0,
    name: str | None = None,
) -> SensitivityPath:
    """Bound the value of a policy when an unobserved cause drives both the logged actions and what follows.

    Parameters
    ----------
    data : LoggedDataset
        With propensities of the logged actions.
    policy : Policy
    gamma : float
        Discount factor in [0, 1], nothing to do with the odds ratios.
    odds_ratios : iterable of float
        Strengths of confounding, each at least 1 (none): the true odds of every logged action, given the unobserved cause,
        differ from the logged ones by at most this factor. Often called Gamma.
    baseline : {"logged"}, float, Policy, Estimate or None
        What the candidate must beat: the logged policy (its mean return needs no propensities, so that confounding does not
        touch it), a known value, another policy (bounded like the candidate, conservatively: its largest value counts) or an
        estimate on the same episodes that confounding does not touch.
    margin : float
        By how much it must be beaten.
    per_decision : bool
        Bound each step's reward by itself with the weights up to it, as `WeightedIS`, or whole episodes' returns.
    confounded_steps : collection of int, optional
        Steps, counted from 0, in which the unobserved cause may act; default: all. One step, such as the first decision,
        gives far narrower bounds.
    level : float
        Of the bands.
    n_replicates : int
        Bayesian bootstrap replicates of episodes, solved anew each; one-step replicates from the influence of the bounds where
        episodes times replicates exceed 2^22.
    random_state : int
    name : str, optional
        What the policy is called; default: its class.

    Returns
    -------
    SensitivityPath
        `value` is the estimate without confounding; `bound_low` and `bound_high` the estimated bounds, `low` and `high` their
        band: the lower quantile of the resampled lower bounds and the upper one of the upper bounds. `difference*` is to the
        baseline. `flip_odds_ratio` is the least odds ratio at which the band of the difference reaches the margin; None where
        the candidate or the baseline is refused: bounds around a number that means nothing decide nothing.

    Raises
    ------
    ValueError, TypeError
        If a parameter is unusable, no weight is left, or a truncated tail has no bound (gamma 1 without a horizon).

    Notes
    -----
    The marginal sensitivity model (Tan 2006), applied to every step as in Kallus & Zhou (2020) and Namkoong et al. (2020):
    the true inverse propensity is lambda_t / b_t with lambda_t in [b + (1 - b) / Gamma, b + (1 - b) Gamma], for densities in
    [1 / Gamma, Gamma]. The unobserved cause may persist over steps and depend on the past. With Lambda_t the product of the
    lambdas, E[Lambda_t W_t r_t] / E[Lambda_t W_t] is the true E_pi[r_t]; its range over all lambdas is a fractional linear
    program, solved exactly by sorting (Zhao, Small & Bhattacharya 2019). One step: that paper's bounds. Several steps: valid,
    not sharp, for two reasons: the conditional mean of lambda given state and action, which is 1, is not imposed, not even in
    one step (Dorn & Guo 2023 do), and with `per_decision` the steps are solved apart. Without more
    assumptions bounds grow exponentially with the number of confounded steps. Wrong propensities whose odds are off by no more
    than the odds ratio are covered in the same way. The bands hold pointwise as the number of episodes grows.

    References
    ----------
    Tan (2006), doi:10.1198/016214506000000023. Zhao, Small & Bhattacharya (2019), doi:10.1111/rssb.12327. Kallus & Zhou
    (2020), "Confounding-robust policy evaluation in infinite-horizon reinforcement learning", NeurIPS. Namkoong,
    Keramati, Yadlowsky & Brunskill (2020), "Off-policy policy evaluation for sequential decisions under unobserved
    confounding", NeurIPS. Dorn & Guo (2023), doi:10.1080/01621459.2022.2069572.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> from ope.problems import ModelWin
    >>> problem = ModelWin(horizon=2)
    >>> log = problem.sample(1000, random_state=0)
    >>> path = confounding_path(log, TabularPolicy(problem.target), gamma=1.0, odds_ratios=[1.0, 1.2, 2.0])
    >>> path.frame[["parameter", "bound_low", "bound_high"]].round(2)
       parameter  bound_low  bound_high
    0        1.0        0.1        0.10
    1        1.2       -0.0        0.21
    2        2.0       -0.3        0.47
    """
    settings = _settings(odds_ratios)
    gamma = check_gamma(OWNER, gamma)
    _check_numbers(margin, level)
    check_integer(OWNER, "n_replicates", n_replicates, 1, "500 is usual")
    estimate = _nominal(data, policy, gamma, per_decision)
    confounded = _confounded(data, confounded_steps)
    other = _baseline(data, baseline, gamma, per_decision, confounded)
    candidate = _weighted_log(data, policy, gamma, per_decision, confounded)
    problem = Problem(candidate, other.bounded, data.episode_keys, float(margin), level, n_replicates, random_state)
    points = [problem.at(odds_ratio) for odds_ratio in settings]
    reference = _reference(baseline)
    refusal = _refusal(estimate.verdict, other.verdict, reference)
    decides = other.bounded is not None and refusal is None
    flip, by_point = _flips(problem, settings, points) if decides else (None, None)
    return SensitivityPath(
        parameter="odds_ratio",
        frame=_frame(settings, points, estimate, other.value),
        level=level,
        estimator=estimate.estimator,
        policy=name or estimate.policy,
        reference=reference,
        conclusion=refusal or _in_words(settings, points, (flip, by_point), reference, float(margin)),
        flip_odds_ratio=flip,
        flip_odds_ratio_point=by_point,
        notes=_notes(data, confounded_steps, per_decision),
    )


# -------------------------------------------------------------------- the problem at one odds ratio


class Point(NamedTuple):
    """Estimated bounds of the value and of its difference to the baseline, with their bands."""

    bounds: tuple[float, float]
    band: tuple[float, float]
    gains: tuple[float, float]
    gain_band: tuple[float, float]


@dataclass(frozen=True)
class Problem:
    """A candidate, a baseline and the resamples that both are bounded on.

    Parameters
    ----------
    candidate : WeightedLog
    baseline : WeightedLog, Estimate, float or None
    keys : ndarray of shape (n_episodes,)
    margin, level : float
    n_replicates, random_state : int
    """

    candidate: WeightedLog
    baseline: WeightedLog | Estimate | float | None
    keys: Any
    margin: float
    level: float
    n_replicates: int
    random_state: int

    def at(self, odds_ratio: float) -> Point:
        """Return bounds and bands at one odds ratio."""
        low, high = self._bounds(self.candidate, odds_ratio)
        base_low, base_high = self._baseline_bounds(odds_ratio)
        worse, better = low - base_high, high - base_low
        return Point((low[0], high[0]), self._band(low, high), (worse[0], better[0]), self._band(worse, better))

    def least_gain(self, odds_ratio: float) -> float:
        """Return the estimated least difference to the baseline, without bands."""
        ones = np.ones((1, len(self.keys)))
        low, _ = value_bounds(self.candidate, odds_ratio, ones)
        if isinstance(self.baseline, WeightedLog):
            return float(low[0] - value_bounds(self.baseline, odds_ratio, ones)[1][0])
        if isinstance(self.baseline, Estimate):
            return float(low[0] - self.baseline.value - self.baseline.widening)
        return float(low[0] - (np.nan if self.baseline is None else self.baseline))

    def _bounds(self, log: WeightedLog, odds_ratio: float) -> tuple[FloatArray, FloatArray]:
        """Return the bounds on the log itself and behind them those on its resamples."""
        low, high = value_bounds(log, odds_ratio, np.ones((1, len(self.keys))))
        if len(self.keys) * self.n_replicates > EXACT_RESAMPLES:
            psi = np.column_stack(bound_influence(log, odds_ratio))
            draws = self._one_step(np.concatenate([low, high]), psi)
            return np.append(low, draws[:, 0]), np.append(high, draws[:, 1])
        parts = [(low, high), *(value_bounds(log, odds_ratio, counts) for counts in self._counts())]
        low, high = (np.concatenate(ends) for ends in zip(*parts, strict=True))
        return low, high

    def _one_step(self, value: FloatArray | float, influence: FloatArray) -> FloatArray:
        return one_step_replicates(value, influence, self.keys, self.n_replicates, seed=self.random_state, kind=KIND)

    def _counts(self) -> Iterator[FloatArray]:
        rows = max(1, TILE // len(self.keys))
        for start in range(0, self.n_replicates, rows):
            count = min(rows, self.n_replicates - start)
            yield resampling_weights(self.keys, count, seed=self.random_state, kind=KIND, start=start)

    def _baseline_bounds(self, odds_ratio: float) -> tuple[FloatArray, FloatArray]:
        if isinstance(self.baseline, WeightedLog):
            return self._bounds(self.baseline, odds_ratio)
        if isinstance(self.baseline, Estimate):
            psi, gap = self.baseline.influence, self.baseline.widening
            assert psi is not None
            values = np.append(self.baseline.value, self._one_step(self.baseline.value, psi))
            return values - gap, values + gap
        values = np.full(self.n_replicates + 1, np.nan if self.baseline is None else self.baseline)
        return values, values

    def _band(self, low: FloatArray, high: FloatArray) -> tuple[float, float]:
        if np.isnan(low).any() or len(self.keys) < 2:
            return float("nan"), float("nan")
        n, tail = len(self.keys), (1.0 - self.level) / 2.0
        # Beyond the replicates lies the extreme replicate.
        tail = max(expanded_tail(tail, n - 1, (n + 1) / (n - 1)), 1.0 / (self.n_replicates + 1))
        return percentile_interval(low[1:], tail, 0.0)[0], percentile_interval(high[1:], 0.0, tail)[1]


def _flips(problem: Problem, settings: list[float], points: list[Point]) -> tuple[float, float]:
    by_band = [point.gain_band[0] for point in points]
    by_point = [point.gains[0] for point in points]
    return (
        _crossing(lambda odds_ratio: problem.at(odds_ratio).gain_band[0], problem.margin, settings, by_band),
        _crossing(problem.least_gain, problem.margin, settings, by_point),
    )


def _crossing(gain: Callable[[float], float], margin: float, settings: list[float], known: list[float]) -> float:
    """Return the least odds ratio at which a falling gain is not above the margin: 1 for all, infinity for none."""
    start = known[0] if settings[0] == 1.0 else gain(1.0)
    if not start > margin:
        return 1.0
    failing = [setting for setting, value in zip(settings, known, strict=True) if not value > margin]
    if not failing:
        return float("inf")
    passing = [setting for setting, value in zip(settings, known, strict=True) if value > margin]
    low, high = max(passing, default=1.0), min(failing)
    while high - low > FLIP_PRECISION * low:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if gain(middle) > margin else (low, middle)
    return high


# -------------------------------------------------------------------- input


def _settings(odds_ratios: Iterable[float]) -> list[float]:
    values = list(odds_ratios)
    for value in values:
        check_number(OWNER, "odds_ratios", value, "finite numbers of at least 1", "1 is no confounding", 1.0)
    settings = sorted({float(value) for value in values})
    if not settings or len(settings) < len(values):
        raise ValueError(
            f"{OWNER}: `odds_ratios` must be at least one number, each once, got {values}; correct the list."
        )
    return settings


def _check_numbers(margin: Any, level: Any) -> None:
    check_number(OWNER, "margin", margin, "a finite number", "0 asks for any gain", -np.inf)
    check_number(OWNER, "level", level, "in (0, 1)", "pass 0.95 for 95 %", 0.0, above=True)
    if level >= 1.0:
        raise ValueError(f"{OWNER}: `level` must lie in (0, 1), got {level!r}; pass 0.95 for 95 %.")


def _nominal(data: LoggedDataset, policy: Policy, gamma: float, per_decision: bool) -> Estimate:
    estimate: Estimate = WeightedIS(gamma=gamma, per_decision=per_decision).fit(data, policy).estimate()
    if not np.isfinite(estimate.value):
        raise ValueError(
            f"{OWNER}: `policy` must have a value without confounding before it can be bounded with it, got {estimate.value}: "
            f"{' '.join(estimate.verdict.reasons)}"
        )
    return estimate


def _confounded(data: LoggedDataset, steps: Collection[int] | None) -> BoolArray:
    if steps is None:
        return np.ones(data.n_transitions, dtype=bool)
    chosen = [check_integer(OWNER, "confounded_steps", step, 0, "count steps from 0") for step in steps]
    longest = int(data.lengths.max())
    if not chosen or max(chosen) >= longest:
        raise ValueError(
            f"{OWNER}: `confounded_steps` must name steps from 0 to {longest - 1}, got {sorted(chosen)}; leave it out for all steps."
        )
    return np.isin(ragged.step_index(data.offsets), chosen)


def _weighted_log(
    data: LoggedDataset, policy: Policy, gamma: float, per_decision: bool, confounded: BoolArray
) -> WeightedLog:
    log_b = data.behavior_log_prob
    assert log_b is not None
    return WeightedLog(
        log_ratio=log_prob_logged(policy, data) - log_b,
        log_b=log_b if data.discrete else None,
        rewards=discounted(data.rewards, data.offsets, gamma),
        offsets=data.offsets,
        confounded=confounded,
        tail=_tail(data, gamma),
        per_decision=per_decision,
    )


def _tail(data: LoggedDataset, gamma: float) -> FloatArray:
    truncated = np.asarray(data.ends == End.TRUNCATED, dtype=np.float64)
    if not truncated.any():
        return np.zeros(data.n_episodes)
    bound, _ = reward_bound(data)
    tail = truncation_tail(np.zeros(data.n_episodes), data.lengths, truncated, gamma, bound, data.horizon)
    if not np.isfinite(tail).all():
        raise ValueError(
            f"{OWNER}: {int(truncated.sum())} episodes are truncated, and with gamma 1 and no horizon what they may still have earned "
            "has no bound; pass gamma below 1, give the log its horizon=, or select the complete episodes if truncation is random."
        )
    return tail


class Baseline(NamedTuple):
    """What a baseline is bounded by, its value without confounding and what may be said of it."""

    bounded: WeightedLog | Estimate | float | None
    value: float
    verdict: Verdict


def _baseline(data: LoggedDataset, baseline: Any, gamma: float, per_decision: bool, confounded: BoolArray) -> Baseline:
    if baseline is None:
        return Baseline(None, float("nan"), Verdict())
    if isinstance(baseline, Policy):
        nominal = _nominal(data, baseline, gamma, per_decision)
        log = _weighted_log(data, baseline, gamma, per_decision, confounded)
        return Baseline(log, nominal.value, nominal.verdict)
    if isinstance(baseline, str) and baseline == "logged":
        baseline = logged_value(data, gamma)
    if isinstance(baseline, Estimate):
        return Baseline(_check_estimate(data, baseline, gamma), baseline.value, baseline.verdict)
    words = "'logged', a finite number, a Policy, an Estimate or None"
    number_ = check_number(OWNER, "baseline", baseline, words, "pass 'logged' for the logged policy", -np.inf)
    return Baseline(number_, number_, Verdict())


def _check_estimate(data: LoggedDataset, estimate: Estimate, gamma: float) -> Estimate:
    if estimate.data_id != data.data_id or estimate.gamma != gamma:
        raise ValueError(
            f"{OWNER}: `baseline` must be an estimate on the same episodes with gamma {gamma:g}, got one with gamma "
            f"{estimate.gamma:g}{'' if estimate.data_id == data.data_id else ' on others'}; fit it on this log."
        )
    if estimate.estimand != "return":
        raise ValueError(
            f"{OWNER}: `baseline` must be the value of a policy, its mean sum of rewards, got an estimate of {estimate.estimand!r}; pass "
            "the estimate of its mean."
        )
    if estimate.influence is None or not np.isfinite(estimate.value):
        raise ValueError(
            f"{OWNER}: `baseline` must have a value and an influence vector, got {estimate!r}; pass its value as a number, or another baseline."
        )
    return estimate


# -------------------------------------------------------------------- words


def _frame(settings: list[float], points: list[Point], estimate: Estimate, reference_value: float) -> pd.DataFrame:
    rows = [
        {
            "parameter": setting,
            "value": estimate.value,
            "std_error": estimate.std_error,
            "bound_low": point.bounds[0],
            "bound_high": point.bounds[1],
            "low": point.band[0],
            "high": point.band[1],
            "difference": estimate.value - reference_value,
            "difference_low": point.gain_band[0],
            "difference_high": point.gain_band[1],
            "verdict": estimate.verdict.level.name,
            "reasons": " ".join(estimate.verdict.reasons),
        }
        for setting, point in zip(settings, points, strict=True)
    ]
    return pd.DataFrame(rows)


def _reference(baseline: Any) -> str:
    if baseline is None:
        return ""
    if isinstance(baseline, str):
        return "the logged policy"
    if isinstance(baseline, Estimate):
        return f"the estimate of {baseline.policy}"
    if isinstance(baseline, Policy):
        return f"the policy {type(baseline).__name__}, at its largest value"
    return f"the value {number(float(baseline))}"


def _refusal(candidate: Verdict, baseline: Verdict, reference: str) -> str | None:
    """Say that bounds around a refused value decide nothing; None if neither is refused."""
    for verdict, whose in ((candidate, "its own value"), (baseline, f"the value of {reference}")):
        if verdict.level == Level.REFUSE:
            asked = f"whether it beats {reference}" if reference else "what it is worth"
            why = f"even without unobserved confounding {whose} is refused"
            return f"The log cannot answer {asked}: {why}. {' '.join(verdict.reasons)}"
    return None


def _in_words(
    settings: list[float], points: list[Point], flips: tuple[float | None, float | None], reference: str, margin: float
) -> str:
    most, (low, high) = number(settings[-1]), points[-1].bounds
    flip, by_point = flips
    if flip is None or by_point is None:
        return (
            f"With odds of the logged actions off by a factor of up to {most} the value lies from {between(low, high)}."
        )
    beats = f"beat {reference}" + (f" by {number(margin)}" if margin else "")
    if flip == 1.0:
        return (
            f"Even without unobserved confounding it is not shown to {beats}; with odds off by up to {most} the value lies from "
            f"{between(low, high)}. More episodes, or a candidate closer to the logged policy, are needed before confounding is the question."
        )
    if np.isinf(flip):
        return (
            f"It is shown to {beats} whatever unobserved cause there is, as long as it changes the odds of the logged actions by a factor of "
            f"at most {most}; the value then lies from {between(low, high)}. Pass larger odds_ratios to find where that ends."
        )
    by_estimate = f"{by_point:.3f}" if np.isfinite(by_point) else f"more than {most}"
    return (
        f"It is shown to {beats} unless an unobserved cause changes the odds of the logged actions by a factor of {flip:.3f} or more "
        f"({by_estimate} with sampling error left out): a weaker one cannot explain that away, a stronger one might. Ask those who know how "
        "actions were chosen whether a cause that strong is missing from the states: record it if so, or run a small experiment before "
        "deploying."
    )


def _notes(data: LoggedDataset, confounded_steps: Collection[int] | None, per_decision: bool) -> tuple[str, ...]:
    where = "every step" if confounded_steps is None else f"step {', '.join(map(str, sorted(confounded_steps)))} only"
    form = "each step's reward by itself" if per_decision else "returns of whole episodes"
    model = (
        f"Model: in {where} the true odds of the logged action lie within the odds ratio of the logged propensity's; bounds of {form}, "
        "valid but not the narrowest possible."
    )
    if data.known_propensities:
        source = (
            "The propensities were recorded: if the actions were drawn with exactly these, nothing unobserved can have chosen them, and only "
            "an odds ratio of 1 applies."
        )
    else:
        source = "The propensities were estimated; the bands do not hold the error of that estimate, but its odds count within the odds ratio."
    return model, source
