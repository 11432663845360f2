"""`Estimate`, `Estimates` and `Interval`: what estimators return and people read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ope.display import Markup, badge, between, bullets, escape, facts_table, html_table, number, tag
from ope.inference.intervals import std_error as _std_error
from ope.inference.methods import IntervalMethod, IntervalNotAvailable, resolve_method
from ope.validation import FloatArray
from ope.verdict import Level, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from ope.comparison import Comparison

__all__ = ["Estimate", "Estimates", "Interval", "Level", "Verdict"]

AVERAGE = "average reward per step in the long run"


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval, with the verdict that it must not be shown without.

    Unpacks to two numbers. `assumptions` is what the method needs for its level, `reason` why ``method="auto"`` chose it.

    Examples
    --------
    >>> low, high = Interval(0.0, 1.0, level=0.95, method="normal", verdict=Verdict())
    >>> low, high
    (0.0, 1.0)
    """

    low: float
    high: float
    level: float
    method: str
    verdict: Verdict
    assumptions: str = ""
    reason: str = ""

    def __iter__(self) -> Iterator[float]:
        yield self.low
        yield self.high

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Estimate:
    """The value of one policy, estimated from one log by one method.

    Parameters
    ----------
    value : float
        Expected discounted sum of rewards of an episode, unnormalised; NaN if the method failed.
    gamma : float
    horizon : int or None
        Steps of the problem; None for the infinite-horizon value.
    episode_keys : ndarray of shape (n_episodes,)
    data_id : str
        Estimates with equal ones can be compared in pairs.
    estimator, policy : str
    influence : ndarray of shape (n_episodes,) or None
        Centred influence of each episode: Var(value) = sum psi^2 / n^2.
    scores : ndarray of shape (n_episodes,) or None
        Terms whose mean is the value, where the estimator is a mean.
    weights : ndarray of shape (n_episodes,) or None
        Importance weights of whole episodes, of expectation 1, where each of the `scores` is such a weight times the return.
    replicates : ndarray of shape (B,) or None
        Values on resampled episodes.
    resample_id : str or None
        Replicates with equal ones used the same resamples.
    known_propensities : bool
    effective_size : float or None
        Effective number of episodes of the importance weights, where the value rests on any.
    widening : float
        A bound of a bias that intervals add on both sides.
    diagnostics : mapping
    verdict : Verdict
    error : str or None
        Why there is no value.
    estimand : str
        What the value is: "return", the expected sum of rewards of an episode; "average_reward", the reward per step in the
        long run, of which gamma is 1 and horizon None; or another number of the distribution of the return, such as
        "variance" or "lower_cvar(0.1)". Only estimates of one estimand are subtracted or compared.

    Examples
    --------
    >>> from ope import LoggedDataset
    >>> from ope.estimators import PerDecisionIS
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> estimate = PerDecisionIS(gamma=1.0).fit(log, TabularPolicy([[0.8, 0.2]])).estimate()
    >>> estimate.value, estimate.n_episodes
    (0.8, 4)
    """

    value: float
    gamma: float
    horizon: int | None
    episode_keys: npt.NDArray[np.uint64]
    data_id: str
    estimator: str
    policy: str
    influence: FloatArray | None = None
    scores: FloatArray | None = None
    weights: FloatArray | None = None
    replicates: FloatArray | None = None
    resample_id: str | None = None
    known_propensities: bool = False
    effective_size: float | None = None
    widening: float = 0.0
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    error: str | None = None
    estimand: str = "return"

    @property
    def question(self) -> tuple[str, float, int | None]:
        """What the value answers: estimand, gamma and horizon. Only values of one question can be compared."""
        return self.estimand, self.gamma, self.horizon

    @property
    def n_episodes(self) -> int:
        """Number of episodes of the log."""
        return len(self.episode_keys)

    @property
    def std_error(self) -> float:
        """Standard error from the influence vector, else the standard deviation of the replicates, else NaN."""
        if self.influence is not None and self.n_episodes > 1:
            return float(_std_error(self.influence)) if self._finite else float("nan")
        if self.influence is None and self.replicates is not None:
            return float(np.std(self.replicates, ddof=1))
        return float("nan")

    def confidence_interval(self, level: float = 0.95, method: str | IntervalMethod | None = None) -> Interval:
        """Return a two-sided interval.

        Parameters
        ----------
        level : float
            In (0, 1).
        method : str or IntervalMethod, optional
            "adjusted_t", "normal", "percentile", "basic", "bca", "bayesian", "studentized", "empirical_likelihood", "auto" (chosen by the
            diagnostics, with the reason) or an object of `ope.inference`; default: "adjusted_t" where there is an influence
            vector, else basic on the replicates.

        Returns
        -------
        Interval

        Raises
        ------
        IntervalNotAvailable
            If the method needs what this estimate does not have; the message says what to use.
        """
        tail = (1.0 - _check_level(level)) / 2.0
        return self._interval(level, tail, tail, method)

    def lower_bound(self, level: float = 0.95, method: str | IntervalMethod | None = None) -> float:
        """Return a one-sided bound that lies below the true value with probability `level`."""
        return self._interval(level, 1.0 - _check_level(level), 0.0, method).low

    def upper_bound(self, level: float = 0.95, method: str | IntervalMethod | None = None) -> float:
        """Return a one-sided bound that lies above the true value with probability `level`."""
        return self._interval(level, 0.0, 1.0 - _check_level(level), method).high

    def _interval(
        self, level: float, alpha_low: float, alpha_high: float, method: str | IntervalMethod | None
    ) -> Interval:
        chosen = resolve_method(method if method is not None else self._default_method())
        if not self._finite:
            return Interval(float("nan"), float("nan"), level, chosen.name, self.verdict, chosen.assumptions)
        picked, reason = chosen.pick(self)
        low, high = picked.bounds(self, alpha_low, alpha_high)
        name = f"{chosen.name}: {picked.name}" if reason else picked.name
        ends = float(low) - self.widening, float(high) + self.widening
        return Interval(*ends, level, name, self._verdict_of(picked), picked.assumptions, reason)

    def _verdict_of(self, method: IntervalMethod) -> Verdict:
        size, least = self.effective_size, method.least_effective_size
        if size is None or size >= least or self.verdict.level > Level.VALID:
            return self.verdict
        return Verdict(
            Level.CAUTION,
            (
                f"The {method.name} interval needs an effective sample of {least:.0f} episodes, and the importance weights leave {size:.1f}: it is likely to be "
                "too short. Use the default interval, which allows for heavy tails and skewness.",
            ),
        )

    @property
    def _finite(self) -> bool:
        # A refused estimate may have infinite influence values, and is still shown.
        return bool(np.isfinite(self.value)) and (self.influence is None or bool(np.isfinite(self.influence).all()))

    def _default_method(self) -> str:
        return "basic" if self.influence is None and self.replicates is not None else "adjusted_t"

    def __sub__(self, other: Estimate) -> Estimate:
        """Return the paired difference of two estimates on the same episodes."""
        if not isinstance(other, Estimate):
            return NotImplemented
        if self.data_id != other.data_id:
            raise ValueError(
                "Estimate - Estimate: both must be on the same episodes (equal data_id); fit both on one log."
            )
        if self.estimand != other.estimand:
            raise ValueError(
                f"Estimate - Estimate: both must answer one question, got estimand {self.estimand!r} and {other.estimand!r}: {_unlike(self, other)}."
            )
        if self.question != other.question:
            raise ValueError(
                f"Estimate - Estimate: both must answer one question, got gamma {self.gamma} and {other.gamma}, horizon {self.horizon} and {other.horizon}."
            )
        same_resamples = self.resample_id is not None and self.resample_id == other.resample_id
        return replace(
            self,
            value=self.value - other.value,
            influence=_difference(self.influence, other.influence),
            scores=_difference(self.scores, other.scores),
            weights=None,
            replicates=_difference(self.replicates, other.replicates) if same_resamples else None,
            resample_id=self.resample_id if same_resamples else None,
            estimator=self.estimator if self.estimator == other.estimator else f"{self.estimator} - {other.estimator}",
            policy=f"{self.policy} - {other.policy}",
            known_propensities=self.known_propensities and other.known_propensities,
            effective_size=_least(self.effective_size, other.effective_size),
            widening=self.widening + other.widening,
            diagnostics={},
            verdict=Verdict.worst([self.verdict, other.verdict]),
            error=self.error or other.error,
        )

    def summary(self) -> str:
        """Return value, interval, verdict and diagnostics as text."""
        rows = [*_facts(self), *((name.replace("_", " "), number(value)) for name, value in self.diagnostics.items())]
        width = max(len(name) for name, _ in rows)
        lines = [_title(self), *(f"  {name:<{width}}  {value}" for name, value in rows)]
        return "\n".join([*lines, *(f"  - {reason}" for reason in self.verdict.reasons)])

    def __repr__(self) -> str:
        facts = dict(_facts(self))
        return f"Estimate({self.estimator}, {self.policy}: {facts['value']} +- {facts['standard error']}, {facts['verdict']})"

    def _repr_html_(self) -> str:
        facts = [(name, _shown(self, name, value)) for name, value in _facts(self)]
        return facts_table(_title(self), facts) + bullets(self.verdict.reasons)


def _title(estimate: Estimate) -> str:
    return f"{estimate.estimator} of {estimate.policy}"


def _shown(estimate: Estimate, name: str, value: str) -> str:
    return badge(estimate.verdict.level) if name == "verdict" else value


def _facts(estimate: Estimate) -> list[tuple[str, str]]:
    horizon = "infinite horizon" if estimate.horizon is None else f"horizon {estimate.horizon}"
    try:
        found = estimate.confidence_interval()
        interval, holds = between(*found), found.method + (f": {found.assumptions}" if found.assumptions else "")
    except IntervalNotAvailable as reason:
        interval, holds = str(reason), "none applies"
    return [
        ("value", number(estimate.value)),
        ("standard error", number(estimate.std_error)),
        ("95 % interval", interval),
        ("interval method", holds),
        ("verdict", estimate.verdict.level.name),
        ("estimand", _asked(estimate.estimand, f"discounted sum of rewards, gamma {estimate.gamma:g}, {horizon}")),
        ("episodes", str(estimate.n_episodes)),
    ]


def _asked(estimand: str, total: str) -> str:
    if estimand == "average_reward":
        return AVERAGE
    return total if estimand == "return" else f"{estimand.replace('_', ' ')} of the {total}"


def _unlike(a: Estimate, b: Estimate) -> str:
    if {a.estimand, b.estimand} == {"return", "average_reward"}:
        return "a sum of rewards and a reward per step"
    return "numbers of another kind; subtract mean from mean, or the same risk measure of two policies"


def _least(a: float | None, b: float | None) -> float | None:
    return min((size for size in (a, b) if size is not None), default=None)


def _difference(a: FloatArray | None, b: FloatArray | None) -> FloatArray | None:
    return None if a is None or b is None else a - b


def _check_level(level: float) -> float:
    if isinstance(level, bool) or not isinstance(level, (int, float, np.floating, np.integer)):
        raise TypeError(f"Estimate: `level` must be a number in (0, 1), got {level!r}; pass 0.95 for 95 %.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"Estimate: `level` must lie in (0, 1), got {level!r}; pass 0.95 for 95 %.")
    return level


class Estimates(Mapping[str, Estimate]):
    """Estimates of several policies by one method from one log: a mapping of names to `Estimate`.

    Examples
    --------
    >>> Estimates({})
    Estimates()
    """

    def __init__(self, estimates: Mapping[str, Estimate]) -> None:
        self._estimates = dict(estimates)

    def __getitem__(self, name: str) -> Estimate:
        return self._estimates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._estimates)

    def __len__(self) -> int:
        return len(self._estimates)

    @property
    def influence(self) -> FloatArray:
        """Influence of every episode on every value, shape (n_episodes, n_policies); a column of NaN where there is none."""
        columns = [
            np.full(estimate.n_episodes, np.nan) if estimate.influence is None else estimate.influence
            for estimate in self.values()
        ]
        return np.column_stack(columns) if columns else np.empty((0, 0))

    def to_frame(self, level: float = 0.95, method: str | IntervalMethod | None = None) -> pd.DataFrame:
        """Return a row per policy: value, standard error, interval, lower bound, verdict, reasons and diagnostics."""
        import pandas as pd

        rows = [estimate_row(estimate, level, method) for estimate in self.values()]
        return pd.DataFrame(rows, index=pd.Index(list(self), name="policy"))

    def compare(self) -> Comparison:
        """Return all paired differences, with errors, tests and simultaneous statements (`ope.comparison.Comparison`)."""
        from ope.comparison import Comparison

        return Comparison(self)

    def summary(self) -> str:
        """Return one paragraph per policy."""
        return "\n\n".join(estimate.summary() for estimate in self.values())

    def __repr__(self) -> str:
        return f"Estimates({', '.join(f'{name}: {number(estimate.value)}' for name, estimate in self.items())})"

    def _repr_html_(self) -> str:
        if not self:
            return "<pre>Estimates()</pre>"
        shown = ("value", "standard error", "95 % interval", "verdict")
        facts = {name: dict(_facts(estimate)) for name, estimate in self.items()}
        rows = [[name, *(_shown(self[name], column, row[column]) for column in shown)] for name, row in facts.items()]
        first = next(iter(self.values()))
        one = facts[next(iter(self))]
        title = f"{first.estimator}: {one['estimand']}, {one['episodes']} episodes"
        reasons = (_because(name, reason) for name, estimate in self.items() for reason in estimate.verdict.reasons)
        return html_table(["policy", *shown], rows, title) + bullets(reasons)


def _because(name: str, reason: str) -> Markup:
    return Markup(tag("b", name) + escape(f": {reason}"))


def estimate_row(estimate: Estimate, level: float, method: str | IntervalMethod | None = None) -> dict[str, Any]:
    """Return an estimate as one row of a table, the verdict that of the interval; bounds are NaN where the method does not apply."""
    try:
        found = estimate.confidence_interval(level, method)
        (low, high), verdict = found, found.verdict
        lower = estimate.lower_bound(level, method)
    except IntervalNotAvailable:
        low = high = lower = float("nan")
        verdict = estimate.verdict
    return {
        "value": estimate.value,
        "std_error": estimate.std_error,
        "low": low,
        "high": high,
        "lower_bound": lower,
        "verdict": verdict.level.name,
        "reasons": " ".join(verdict.reasons),
        **estimate.diagnostics,
    }
