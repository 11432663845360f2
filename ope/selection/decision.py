"""What a selection concludes: the corrected value of the choice, and the decision in words with its evidence."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope.display import between, number, tag
from ope.estimate import Estimate
from ope.inference.checks import IntervalNotAvailable
from ope.inference.selective import SelectedValue, selected_value
from ope.inference.weights import uniforms
from ope.selection.gate import called, first_reason
from ope.validation import BoolArray
from ope.verdict import Level, Verdict

CORRECTIONS = ("hybrid", "conditional", "split", "none")
CRITERIA = ("lower_bound", "simultaneous", "value")
# Two episodes that choose and two that value.
LEAST_SPLIT = 4
_FOLD_STREAM = -1
# Standard normal quantile of the power that "four times in five" promises.
POWER_QUANTILE = 0.84
IN_WORDS = {"lower_bound": "lower bound", "simultaneous": "simultaneous lower bound", "value": "value"}


@dataclass(frozen=True, repr=False)
class CorrectedValue:
    """The value of the chosen candidate, corrected for having been chosen because it looked best.

    Parameters
    ----------
    value, low, high : float
        Estimate and two-sided interval that know of the choice; the ends lie farther out than those of
        `ope.inference.selected_value` by as much as the estimate's own interval is longer than a normal one.
    naive_value, naive_low, naive_high : float
        Those that do not.
    level : float
    method : str
        "hybrid", "conditional", "split" or "none" (`ope.inference.selected_value`).
    policy, estimator : str
    verdict : Verdict
    """

    value: float
    low: float
    high: float
    naive_value: float
    naive_low: float
    naive_high: float
    level: float
    method: str
    policy: str
    estimator: str
    verdict: Verdict = field(default_factory=Verdict)

    def summary(self) -> str:
        """Return the corrected and the naive value as text."""
        interval = f"{self.level:.0%} interval {between(self.low, self.high)}"
        if self.method == "none":
            return f"Value {number(self.value)}, {interval}, not corrected for the choice."
        naive = f"before {number(self.naive_value)}, {between(self.naive_low, self.naive_high)}"
        return f"Value {number(self.value)}, {interval}, corrected by {self.method} inference for having been chosen ({naive})."

    def __repr__(self) -> str:
        return f"CorrectedValue({self.policy}, {self.estimator}: {self.summary()})"

    def _repr_html_(self) -> str:
        return str(tag("p", tag("b", self.policy), f" by {self.estimator}: {self.summary()}"))


def choose_and_correct(
    estimates: Mapping[str, Estimate], scores: Mapping[str, float], *, level: float, method: str, seed: int
) -> CorrectedValue:
    """Return the eligible candidate of the highest score and its corrected value.

    Parameters
    ----------
    estimates : mapping of str to Estimate
        Eligible candidates by one estimator, at least one.
    scores : mapping of str to float
        What is maximised, finite.
    level : float
    method : {"hybrid", "conditional", "split", "none"}
        Where a candidate has no influence vector, or there is a single episode, nothing is corrected, and the method is "none".
    seed : int
        Of the halves of "split".
    """
    names = list(estimates)
    best = max(names, key=lambda name: scores[name])
    columns = [estimates[name].influence for name in names]
    if method == "none" or any(c is None or not np.isfinite(c).all() or len(c) < 4 for c in columns):
        return _uncorrected(estimates[best], best, level)
    half = choosing_half(estimates[best].episode_keys, seed) if method == "split" else None
    found = selected_value(
        [estimates[name].value for name in names],
        np.column_stack([np.asarray(c) for c in columns]),
        [scores[name] for name in names],
        level,
        method,
        half=half,
    )
    return _corrected(found, estimates[names[found.chosen]], names[found.chosen])


def choosing_half(keys: npt.NDArray[np.uint64], seed: int) -> BoolArray:
    """Return which episodes choose in "split": those of the lower half of ranks of a hash of (identifier, seed).

    Examples
    --------
    >>> choosing_half(np.arange(5, dtype=np.uint64), 0).sum().item()
    2
    """
    order = np.lexsort((keys, uniforms(keys, seed, _FOLD_STREAM)))
    chooses = np.zeros(len(keys), dtype=bool)
    chooses[order[: len(keys) // 2]] = True
    return chooses


def _corrected(found: SelectedValue, estimate: Estimate, name: str) -> CorrectedValue:
    own = estimate.confidence_interval(found.level)
    # Heavy tails and bounds of biases make the estimate's own interval longer than a normal one: so is the corrected one.
    below, above = max(found.naive_low - own.low, 0.0), max(own.high - found.naive_high, 0.0)
    return CorrectedValue(
        value=found.value,
        low=found.low - below,
        high=found.high + above,
        naive_value=found.naive_value,
        naive_low=own.low,
        naive_high=own.high,
        level=found.level,
        method=found.method,
        policy=name,
        estimator=estimate.estimator,
        verdict=estimate.verdict,
    )


def _uncorrected(estimate: Estimate, name: str, level: float) -> CorrectedValue:
    try:
        low, high = estimate.confidence_interval(level)
    except IntervalNotAvailable:
        low = high = float("nan")
    value, by = estimate.value, estimate.estimator
    return CorrectedValue(value, low, high, value, low, high, level, "none", name, by, estimate.verdict)


# -------------------------------------------------------------------- words


@dataclass(frozen=True)
class Evidence:
    """What the decision rests on.

    Parameters
    ----------
    criterion, primary : str
    level, margin : float
    adjust : str
        How the gate is adjusted.
    corrected : CorrectedValue
        Of the chosen candidate.
    gates : DataFrame
        A row per candidate; empty without a baseline.
    baseline : str or None
    itself : bool
        Whether the chosen candidate is the baseline.
    best_set : tuple of str
    refused : tuple of str
    unscored : tuple of str
        Not refused, and without what the criterion compares.
    elsewhere : mapping of str to Estimate
        What the other estimators say of the chosen candidate.
    """

    criterion: str
    primary: str
    level: float
    margin: float
    adjust: str
    corrected: CorrectedValue
    gates: pd.DataFrame
    baseline: str | None
    itself: bool
    best_set: tuple[str, ...]
    refused: tuple[str, ...]
    unscored: tuple[str, ...] = ()
    elsewhere: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def chosen(self) -> str:
        """Name of the chosen candidate."""
        return self.corrected.policy

    @property
    def row(self) -> Mapping[Hashable, Any]:
        """What the gate says of the chosen candidate."""
        return self.gates.to_dict("index")[self.chosen]

    @property
    def passes(self) -> bool:
        """Whether the chosen candidate passes its gate, or there is none."""
        return self.baseline is None or self.itself or bool(self.row["passes"])


def in_words(evidence: Evidence) -> str:
    """Return the decision, its reason, its evidence and what to do next."""
    parts = [_verdict_on_choice(evidence), evidence.corrected.summary(), _trust(evidence), _second_opinion(evidence)]
    parts += _context(evidence)
    return " ".join(part for part in parts if part)


def nothing_in_words(baseline: str | None, table: str = "results_", *, lacking: str | None = None) -> str:
    """Return the decision where no candidate can be chosen.

    Parameters
    ----------
    baseline : str or None
    table : str
        Where the reasons stand.
    lacking : str, optional
        The criterion, if not all is refused but nothing has what it compares.
    """
    keep = f"Keep {called(baseline)}. " if baseline is not None else ""
    if lacking is not None:
        return (
            f"{keep}No candidate can be chosen: no candidate that is not refused has a {IN_WORDS[lacking]} by any estimator. {table} gives what they have; "
            "add an estimator with an influence vector, or choose by another `criterion`."
        )
    return f"{keep}No candidate can be chosen: every estimator refuses every candidate. {table} gives each reason, and what to do about it."


def _verdict_on_choice(e: Evidence) -> str:
    top = f"the highest {IN_WORDS[e.criterion]} by {e.primary}"
    half = " on the half of the episodes that chose" if e.corrected.method == "split" else ""
    if e.baseline is None:
        return f"Deploy {e.chosen!r}: it has {top}{half}. There is no baseline, so nothing says that it is better than what is deployed today."
    if e.itself:
        return f"Keep {e.chosen!r}: it is the baseline itself, and has {top}{half}."
    row = e.row
    if e.passes:
        return f"Deploy {e.chosen!r}: it has {top}{half}, and it is {_better(e, row)}."
    return f"Keep {called(e.baseline)}: {e.chosen!r} has {top}{half}, but {_not_better(e, row)}."


def _better(e: Evidence, row: Mapping[Hashable, Any]) -> str:
    than = (
        f"better than {called(str(e.baseline))}"
        if not e.margin
        else f"not worse than {called(str(e.baseline))} by more than {number(e.margin)}"
    )
    return f"{than}: difference {number(row['difference'])}, {_bound(e, row)}"


def _bound(e: Evidence, row: Mapping[Hashable, Any]) -> str:
    n = len(e.gates)
    family = " for it alone" if e.adjust == "none" and n > 1 else f" for all {n} candidates at once" if n > 1 else ""
    p = "p-value" if e.adjust == "none" or n == 1 else "adjusted p-value"
    return f"with {e.level:.0%} confidence{family} at least {number(row['lower_bound'])} ({p} {row['p_adjusted']:.2g})"


def _not_better(e: Evidence, row: Mapping[Hashable, Any]) -> str:
    if not np.isfinite(row["lower_bound"]):
        return f"the gate cannot be passed. {row['reason']}".rstrip(".")
    than = called(str(e.baseline)) + (f" minus {number(e.margin)}" if e.margin else "")
    return f"it is not shown to be better than {than}: difference {number(row['difference'])}, {_bound(e, row)}"


def _trust(e: Evidence) -> str:
    verdict = e.corrected.verdict
    if verdict.level == Level.VALID:
        return "Verdict VALID."
    return f"Verdict {verdict.level.name}, so look before you act: {first_reason(verdict)}"


def _second_opinion(e: Evidence) -> str:
    """Return what the other estimators have against the answer, if anything."""
    answers = {name: other for name, other in e.elsewhere.items() if other.verdict.level < Level.REFUSE}
    if e.elsewhere and not answers:
        others, verb = _listing(list(e.elsewhere)), "refuses" if len(e.elsewhere) == 1 else "refuse"
        return f"Nothing checks the assumptions of {e.primary} on it: {others} {verb} to value it; their rows say why."
    against = [name for name, other in answers.items() if _apart(other, e.corrected, e.level)]
    if not against:
        return ""
    values = _listing([f"{name} says {number(answers[name].value)}" for name in against])
    return f"Estimators disagree on it beyond their intervals ({values}): at least one assumption is wrong, find out which before you act."


def _apart(estimate: Estimate, corrected: CorrectedValue, level: float) -> bool:
    try:
        low, high = estimate.confidence_interval(level)
    except IntervalNotAvailable:
        return False
    return bool(high < corrected.naive_low or low > corrected.naive_high)


def _context(e: Evidence) -> list[str]:
    rivals = [repr(name) for name in e.best_set if name != e.chosen]
    parts = []
    if rivals:
        parts.append(f"The log does not tell it apart from {_listing(rivals)}: one of them may be the best.")
    if not e.passes:
        parts.append(_next_step(e))
    if e.refused:
        parts.append(f"Not eligible because refused: {_listing([repr(name) for name in e.refused], 12)}.")
    if e.unscored:
        names = _listing([repr(name) for name in e.unscored], 12)
        parts.append(f"Not eligible because {e.primary} gives no {IN_WORDS[e.criterion]}: {names}.")
    return parts


def _next_step(e: Evidence) -> str:
    others = [repr(name) for name in e.gates.index[e.gates["passes"].astype(bool)]]
    if others:
        return f"Next: consider {_listing(others)}, better than {called(str(e.baseline))} beyond doubt."
    row = e.row
    gain, reach = row["difference"] + e.margin, row["difference"] - row["lower_bound"]
    if np.isfinite(reach) and gain > 0.0:
        times = max(((reach + POWER_QUANTILE * row["std_error"]) / gain) ** 2, 1.1)
        return (
            f"Next: log more episodes, or try it on a few first. If the difference is what it looks like, about {times:.2g} times as many "
            "episodes would show it four times in five."
        )
    return "Next: bring other candidates, or log more episodes."


def _listing(words: list[str], limit: int = 5) -> str:
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
