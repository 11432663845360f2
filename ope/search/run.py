"""The work of `PolicySearch`: learn on halves, screen, value the rest; everything here is checked and named already."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from joblib import delayed

from ope.dataset import LoggedDataset
from ope.estimate import Estimate, estimate_row
from ope.estimator import OffPolicyEstimator
from ope.policy import Policy, PolicyLearner
from ope.search.folds import Part, Values, pool, run_tasks, value_on_part
from ope.search.training import Candidate, Learned, learn, warn_of_failures, with_setting
from ope.verdict import Level

SCREEN = "screen"


@dataclass(frozen=True, eq=False)
class Plan:
    """What a search does: all parameters checked, settings listed, the log cut."""

    learner: PolicyLearner
    settings: Sequence[Mapping[str, Any]]
    parts: Sequence[Part]
    seeds: Sequence[int]
    estimators: Mapping[str, OffPolicyEstimator]
    screen: OffPolicyEstimator | None
    keep: float
    screen_updates: int | None
    n_jobs: int | None
    progress: bool

    def name(self, candidate: Candidate) -> str:
        """Return a candidate in words: its setting, and where its training is cut."""
        setting = ", ".join(f"{key}={value}" for key, value in self.settings[candidate.setting].items())
        cut = "" if candidate.n_updates is None else f"update {candidate.n_updates}"
        return ", ".join(filter(None, (setting, cut))) or type(self.learner).__name__

    def learners(self, settings: Sequence[int], k: int, **changes: Any) -> dict[int, Policy]:
        """Return the learners of one repeat."""
        return {i: with_setting(self.learner, {**self.settings[i], **changes}, self.seeds[k]) for i in settings}


@dataclass
class Findings:
    """What a search found.

    Parameters
    ----------
    candidates : list of Candidate
        All of them, in the order of settings and updates.
    kept : list of Candidate
        Those that the screen let through.
    values : list of Values
        By repeat: estimates of those kept, by estimator and name.
    screened : dict of Candidate to Estimate
        Pooled values of the screen: of candidates, or, if training was cut for it, of settings.
    fit_seconds : ndarray of shape (n_repeats, n_settings)
    score_seconds : list of float
        By repeat.
    learned : list of Learned
        By repeat: the policies. Dropped when the search is over.
    """

    candidates: list[Candidate]
    kept: list[Candidate]
    values: list[Values]
    screened: dict[Candidate, Estimate] = field(default_factory=dict)
    fit_seconds: Any = None
    score_seconds: Sequence[float] = ()
    learned: Sequence[Learned] = ()

    @property
    def screen_failed(self) -> bool:
        """Whether the screen refused everything, so that everything went on."""
        return bool(self.screened) and not any(map(_answers, self.screened.values()))


def search(plan: Plan, data: LoggedDataset) -> Findings:
    """Learn, screen and value.

    Raises
    ------
    ValueError
        If no setting could be learned at all.
    """
    settings, screened = list(range(len(plan.settings))), dict[Candidate, Estimate]()
    if plan.screen is not None and plan.screen_updates is not None:
        short = _learn_all(plan, data, settings, n_updates=plan.screen_updates)
        screened = _screened(plan, data, short, _candidates(short, settings))
        settings = sorted(candidate.setting for candidate in survivors(screened, plan.keep))
    learned = _learn_all(plan, data, settings)
    candidates = kept = _candidates(learned, settings)
    if plan.screen is not None and plan.screen_updates is None:
        screened = _screened(plan, data, learned, candidates)
        kept = survivors(screened, plan.keep)
    values, score_seconds = _value_all(plan, data, learned, kept, plan.estimators, "valued part")
    seconds = _fit_seconds(learned, len(plan.settings))
    return Findings(candidates, kept, values, screened, seconds, score_seconds, learned)


@dataclass(frozen=True, eq=False)
class Valued:
    """One policy of one repeat and its own estimate on the other half, and of how many it is the highest."""

    policy: Policy
    estimate: Estimate
    candidate: Candidate
    repeat: int
    n_policies: int


def best_of_setting(
    plan: Plan, data: LoggedDataset, findings: Findings, setting: int, key: str, column: str, level: float
) -> Valued | None:
    """Return the policy of a setting, of any repeat and checkpoint, with the highest estimate on its own other half.

    Parameters
    ----------
    plan, data, findings
    setting : int
    key : str
        The estimator that decides.
    column : {"value", "lower_bound"}
    level : float

    Returns
    -------
    Valued or None
        None if the estimator refuses all of them.
    """
    members = [c for c in findings.candidates if c.setting == setting]
    values, _ = _value_all(plan, data, findings.learned, members, {key: plan.estimators[key]}, "valued part")
    found = [
        Valued(findings.learned[k].policies[c], estimate, c, k, 0)
        for k, repeat in enumerate(values)
        for c in members
        if _answers(estimate := repeat[key][plan.name(c)])
    ]
    if not found:
        return None
    best = max(found, key=lambda valued: float(estimate_row(valued.estimate, level)[column]))
    return replace(best, n_policies=len(found))


def _learn_all(plan: Plan, data: LoggedDataset, settings: Sequence[int], **changes: Any) -> list[Learned]:
    """Learn the settings on one half of every repeat; with changed settings the last policies only."""
    tasks = (
        delayed(_learn_on)(data, part, plan.learners(settings, k, **changes), checkpoints=not changes)
        for k, part in enumerate(plan.parts)
    )
    learned: list[Learned] = run_tasks(tasks, len(plan.parts), "learned part", plan.n_jobs, plan.progress)
    if not any(found.policies for found in learned):
        reasons = list(dict.fromkeys(reason for found in learned for reason in found.failures.values()))
        raise ValueError(f"PolicySearch: no setting could be learned; the first reason: {reasons[0]}")
    warn_of_failures("PolicySearch", [found.failures for found in learned], lambda i: plan.name(Candidate(i)))
    return learned


def _learn_on(data: LoggedDataset, part: Part, learners: Mapping[int, Policy], *, checkpoints: bool) -> Learned:
    return learn(learners, data.select(part.train), checkpoints=checkpoints)


def _candidates(learned: Sequence[Learned], settings: Sequence[int]) -> list[Candidate]:
    """Return what any repeat has learned; a setting that failed everywhere is one candidate, to say why."""
    found = {candidate for repeat in learned for candidate in repeat.policies}
    empty = set(settings) - {candidate.setting for candidate in found}
    return sorted(found | {Candidate(i) for i in empty}, key=lambda c: (c.setting, c.n_updates or 0))


def _screened(
    plan: Plan, data: LoggedDataset, learned: Sequence[Learned], candidates: Sequence[Candidate]
) -> dict[Candidate, Estimate]:
    assert plan.screen is not None
    values, _ = _value_all(plan, data, learned, candidates, {SCREEN: plan.screen}, "screened part")
    names = {plan.name(candidate): candidate for candidate in candidates}
    return {c: pool([found[SCREEN][name] for found in values], plan.parts, data) for name, c in names.items()}


def survivors(screened: Mapping[Candidate, Estimate], keep: float) -> list[Candidate]:
    """Return the candidates of the highest values, those that the screen refuses last; all, if it refuses all.

    Parameters
    ----------
    screened : mapping of Candidate to Estimate
    keep : float or int
        Share or number.
    """
    order = list(screened)
    if not any(map(_answers, screened.values())):
        return order
    number = keep if isinstance(keep, int | np.integer) else math.ceil(keep * len(order))
    ranked = sorted((c for c in order if np.isfinite(screened[c].value)), key=lambda c: _rank(screened[c]))
    kept = set(ranked[: int(number)])
    return [candidate for candidate in order if candidate in kept]


def _answers(estimate: Estimate) -> bool:
    return bool(np.isfinite(estimate.value)) and estimate.verdict.level < Level.REFUSE


def _rank(estimate: Estimate) -> tuple[bool, float]:
    return not _answers(estimate), -estimate.value


def _value_all(
    plan: Plan,
    data: LoggedDataset,
    learned: Sequence[Learned],
    candidates: Sequence[Candidate],
    estimators: Mapping[str, OffPolicyEstimator],
    unit: str,
) -> tuple[list[Values], list[float]]:
    """Value candidates on the other half of every repeat; return the seconds of each repeat too."""
    tasks = (
        delayed(_value_on)(data, part, *_named(plan, found, candidates), estimators)
        for part, found in zip(plan.parts, learned, strict=True)
    )
    done = run_tasks(tasks, len(plan.parts), unit, plan.n_jobs, plan.progress)
    return [values for values, _ in done], [seconds for _, seconds in done]


def _named(plan: Plan, found: Learned, candidates: Sequence[Candidate]) -> tuple[dict[str, Policy], dict[str, str]]:
    """Return one repeat's policies by name, and why others are missing."""
    policies = {plan.name(c): found.policies[c] for c in candidates if c in found.policies}
    missing = [c for c in candidates if c not in found.policies]
    return policies, {plan.name(c): _why_missing(c, found) for c in missing}


def _why_missing(candidate: Candidate, found: Learned) -> str:
    if candidate.setting in found.failures:
        return f"Learning failed: {found.failures[candidate.setting]}"
    if candidate.n_updates is None:
        return "Training kept checkpoints here; elsewhere it ended before the first one."
    return f"Training ended before update {candidate.n_updates}; lower the learning rate, or scale the rewards."


def _value_on(
    data: LoggedDataset,
    part: Part,
    policies: Mapping[str, Policy],
    failures: Mapping[str, str],
    estimators: Mapping[str, OffPolicyEstimator],
) -> tuple[Values, float]:
    start, held_out = time.perf_counter(), data.select(part.test)
    values = {key: value_on_part(estimator, held_out, policies, failures) for key, estimator in estimators.items()}
    return values, time.perf_counter() - start


def _fit_seconds(learned: Sequence[Learned], n_settings: int) -> Any:
    seconds = np.full((len(learned), n_settings), np.nan)
    for k, found in enumerate(learned):
        for i, spent in found.seconds.items():
            seconds[k, i] = spent
    return seconds
