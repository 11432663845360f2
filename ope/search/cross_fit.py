"""`cross_fit_select`: choose among learners without giving up half of the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from joblib import delayed
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from ope.dataset import LoggedDataset, check_log
from ope.display import Markup, bullets, html_table, tag
from ope.estimate import Estimates
from ope.estimator import OffPolicyEstimator
from ope.policy import Policy, PolicyLearner
from ope.search.folds import (
    HeldOutPolicies,
    Part,
    Values,
    fold_parts,
    part_table,
    pooled_estimators,
    run_tasks,
    value_on_part,
)
from ope.search.results import refusals
from ope.search.training import (
    all_or_nothing,
    fit_whole,
    learn,
    named_estimators,
    new_selector,
    seed_of,
    warn_of_failures,
)
from ope.selection import PolicySelector
from ope.validation import IntArray, check_integer

OWNER = "cross_fit_select"
SHOWN = ("candidate", "estimator", "value", "std_error", "low", "high", "lower_bound", "verdict")


@dataclass(frozen=True, eq=False, repr=False)
class CrossFitSelection:
    """What `cross_fit_select` found.

    Attributes
    ----------
    selection_ : PolicySelector
        Fitted on the pooled estimates: gates, simultaneous bounds, the set of the best, the report.
    best_policy_ : Policy or None
        The chosen learner, fitted to all episodes; None if nothing was chosen or `refit` was False.
    folds_ : DataFrame
        A row per fold, candidate and estimator: episodes, value, standard error, verdict, reasons, diagnostics.
    fold_ : ndarray of shape (n_episodes,)
        The fold in which each episode was valued, in the log's order.

    Examples
    --------
    See `cross_fit_select`.
    """

    selection_: PolicySelector
    best_policy_: Policy | None
    folds_: pd.DataFrame
    fold_: IntArray

    @property
    def estimates_(self) -> dict[str, Estimates]:
        """Pooled estimates of every candidate, by name of the estimator."""
        estimates: dict[str, Estimates] = self.selection_.estimates_
        return estimates

    @property
    def results_(self) -> pd.DataFrame:
        """A row per candidate and estimator."""
        return self.selection_.results_

    @property
    def best_name_(self) -> str | None:
        """The chosen learner."""
        return self.selection_.best_name_

    @property
    def valued_(self) -> str:
        """What the values are values of, in words."""
        k = int(self.fold_.max()) + 1
        return (
            f"Valued is the average of the {k} policies that a learner makes of {k - 1} of {k} folds, each on the fold it has "
            "not seen: the learner, not the final policy. A learner that gains from more episodes makes a better one of all."
        )

    @property
    def decision_(self) -> str:
        """The choice, what its value stands for, and what the final policy is, in words."""
        said = [str(self.selection_.decision_), self.valued_]
        if isinstance(self.best_policy_, PolicyLearner):
            said.append(
                f"best_policy_ was learned anew from all {len(self.fold_)} episodes: none is left to value it on, so that its "
                "estimate is the held-out one above; fitted to this log again, an estimator would report the overlap."
            )
            doubt = self.best_policy_.training_doubt
            said += [] if doubt is None else [doubt[1]]
        return " ".join(said)

    def _notes(self) -> list[str]:
        """Return why candidates are refused, by estimator."""
        return [f"{key}: {note}" for key, found in self.estimates_.items() for note in refusals(found)]

    def summary(self) -> str:
        """Return the decision, the table and why candidates are refused as text."""
        table = self.results_[[*SHOWN]].to_string(index=False, float_format=lambda value: f"{value:.4g}")
        return "\n\n".join([self.decision_, table, *self._notes()])

    def __repr__(self) -> str:
        names = list(dict.fromkeys(self.results_["candidate"]))
        return (
            f"CrossFitSelection({len(names)} candidates, {int(self.fold_.max()) + 1} folds, best: {self.best_name_!r})"
        )

    def _repr_html_(self) -> str:
        rows = self.results_[[*SHOWN]].itertuples(index=False)
        return Markup(tag("p", self.decision_) + html_table(SHOWN, rows) + bullets(self._notes()))


def cross_fit_select(
    learners: Mapping[str, Policy],
    data: LoggedDataset,
    estimators: Sequence[OffPolicyEstimator] | Mapping[str, OffPolicyEstimator],
    *,
    n_folds: int = 5,
    criterion: str = "lower_bound",
    selection: Mapping[str, Any] | None = None,
    refit: bool = True,
    random_state: int = 0,
    n_jobs: int | None = None,
    progress: bool = False,
) -> CrossFitSelection:
    """Choose among learners: learn on K - 1 folds, value on the other, learn the chosen one anew from all episodes.

    Parameters
    ----------
    learners : mapping of str to PolicyLearner
        Copies are fitted. A policy that is no learner is valued as it is on every fold.
    data : LoggedDataset
    estimators : sequence or mapping of OffPolicyEstimator
        As in `PolicySelector`.
    n_folds : int
        At least 2. Folds are drawn by a hash of the episode: the order of the log does not matter.
    criterion : str
        As in `PolicySelector`.
    selection : mapping, optional
        More parameters of `PolicySelector`: baseline, margin, level, ...
    refit : bool
        Whether to learn the chosen one anew from all episodes.
    random_state : int
        Seed of the folds. Learners keep their own.
    n_jobs : int or None
        Folds at work side by side by joblib, each on one thread; obeys `joblib.parallel_config`.
    progress : bool
        Show a bar.

    Returns
    -------
    CrossFitSelection

    Raises
    ------
    ValueError, TypeError
        If learners, log, estimators or numbers are unusable, before any work; never because one learner fails: a
        FitFailedWarning tells of that.
    KeyboardInterrupt
        If Ctrl-C ended the training of a learner: nothing is kept.

    Notes
    -----
    The value of a learner is V = sum_k (n_k / n) V_k, its influence psi_i that of the fold which holds episode i, in the
    log's order, so that differences between learners are paired by episode and all bounds of one `Estimate` apply. The
    standard error holds the K policies fixed. Two folds' policies share K - 2 folds of episodes, a dependence that
    vanishes for learners that change little when one episode is exchanged (Austern & Zhou, 2020); finite-sample bounds,
    which want independent terms, are not offered. An estimate is as doubtful as its most doubtful fold.

    References
    ----------
    Austern & Zhou (2020), "Asymptotics of cross-validation", arXiv:2001.11111. Chernozhukov et al. (2018),
    doi:10.1111/ectj.12097.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.estimators import WeightedIS
    >>> from ope.policies import BehaviorCloning, TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((400, 1)), [0, 1] * 200, [1.0, 0.0] * 200, lengths=[1] * 400, ends="terminal", behavior_prob=[0.5] * 400
    ... )
    >>> learners = {
    ...     "clone": BehaviorCloning(hidden=(4,), n_updates=20, random_state=0),
    ...     "bold": TabularPolicy([[0.7, 0.3]]),
    ... }
    >>> found = cross_fit_select(learners, log, [WeightedIS(gamma=1.0)], n_folds=2)
    >>> found.best_name_, found.estimates_["WeightedIS"]["bold"].n_episodes
    ('bold', 400)
    """
    check_log(OWNER, data)
    named = named_estimators(OWNER, estimators)
    check_integer(OWNER, "n_folds", n_folds, 2, "5 is usual")
    _check_learners(learners)
    parts = fold_parts(data, n_folds, seed_of(OWNER, random_state))
    selector = new_selector(OWNER, named, data, criterion, selection, list(learners))
    with all_or_nothing(OWNER):
        tasks = (delayed(_work)(part, learners, named, data) for part in parts)
        done = run_tasks(tasks, len(parts), "fold", n_jobs, progress)
        found = [values for values, _ in done]
        warn_of_failures(OWNER, [failures for _, failures in done], repr)
        stand_ins = {name: _stand_in(learner, n_folds) for name, learner in learners.items()}
        selector.set_params(estimators=pooled_estimators(found, parts, data, list(learners))).fit(data, stand_ins)
        best_policy = _final(learners, selector.best_name_, data) if refit else None
    return CrossFitSelection(
        selection_=selector,
        best_policy_=best_policy,
        folds_=part_table(found, parts, "fold"),
        fold_=_fold_numbers(parts, data.n_episodes),
    )


def _work(
    part: Part, learners: Mapping[str, Policy], named: Mapping[str, OffPolicyEstimator], data: LoggedDataset
) -> tuple[Values, dict[str, str]]:
    """Learn on one part's episodes and value on its others; say what could not be learned."""
    names = list(learners)
    learned = learn(dict(enumerate(learners.values())), data.select(part.train), checkpoints=False)
    policies = {names[candidate.setting]: policy for candidate, policy in learned.policies.items()}
    failures = {names[i]: reason for i, reason in learned.failures.items()}
    reasons = {name: f"Learning failed: {reason}" for name, reason in failures.items()}
    held_out = data.select(part.test)
    values = {key: value_on_part(estimator, held_out, policies, reasons) for key, estimator in named.items()}
    return values, failures


def _stand_in(learner: Policy, n_folds: int) -> HeldOutPolicies:
    if isinstance(learner, PolicyLearner):
        return HeldOutPolicies(f"{n_folds} policies of {type(learner).__name__}, one a fold")
    return HeldOutPolicies(type(learner).__name__, getattr(learner, "training_episode_keys_", None))


def _final(learners: Mapping[str, Policy], name: str | None, data: LoggedDataset) -> Policy | None:
    if name is None:
        return None
    chosen = learners[name]
    with threadpool_limits(limits=1):
        return fit_whole(clone(chosen), data) if isinstance(chosen, PolicyLearner) else chosen


def _check_learners(learners: Any) -> None:
    if not isinstance(learners, Mapping) or not learners:
        raise TypeError(
            f"{OWNER}: `learners` must be a non-empty mapping of names to learners, got {type(learners).__name__}; pass {{'name': learner}}."
        )
    wrong = [name for name, learner in learners.items() if not isinstance(learner, Policy)]
    if wrong:
        raise TypeError(
            f"{OWNER}: `learners` must be PolicyLearner objects, or policies, got others under {wrong}; see ope.policies."
        )


def _fold_numbers(parts: Sequence[Part], n_episodes: int) -> IntArray:
    numbers = np.empty(n_episodes, dtype=np.int64)
    for k, part in enumerate(parts):
        numbers[part.test] = k
    return numbers
