"""Choosing among learners, checkpoints and settings by what they are worth on episodes they have not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import ParameterGrid, ParameterSampler
from threadpoolctl import threadpool_limits
from typing_extensions import Self

from ope.dataset import LoggedDataset, Rows, check_log
from ope.display import bullets, html_table, number, tag
from ope.estimate import Estimate
from ope.estimator import OffPolicyEstimator
from ope.fitted import forget
from ope.inference import IntervalNotAvailable
from ope.policy import Policy, PolicyLearner, RandomState
from ope.search.checkpoints import CheckpointSelection, select_checkpoint
from ope.search.cross_fit import CrossFitSelection, cross_fit_select
from ope.search.folds import HeldOutPolicies, half_parts, pooled_estimators
from ope.search.results import deciding_name, refusals, results_dict
from ope.search.run import Findings, Plan, Valued, best_of_setting, search
from ope.search.settings import check_settings
from ope.search.training import (
    Candidate,
    all_or_nothing,
    check_one_question,
    fit_whole,
    named_estimators,
    new_selector,
    seed_of,
    seeds_of,
    stages,
    with_setting,
)
from ope.selection import PolicySelector
from ope.validation import FloatArray, check_integer

__all__ = ["CheckpointSelection", "CrossFitSelection", "PolicySearch", "cross_fit_select", "select_checkpoint"]

OWNER = "PolicySearch"
REFITS = ("all", "valued", "none")


class PolicySearch(PolicyLearner):
    """Search a learner's settings and training checkpoints by repeated half-splits.

    In every repeat all settings learn on one half of the episodes and are valued on the other. The setting and checkpoint
    of the best average give the policy, see `refit`. A fitted search is a policy: the best one.

    Parameters
    ----------
    learner : PolicyLearner
        Every checkpoint it keeps (``checkpoints=10``) is a candidate, and its last policy.
    param_grid : mapping, or sequence of mappings, optional
        As in scikit-learn: lists of values by parameter, or, with `n_iter`, distributions too. Default: only checkpoints.
    estimators : sequence or mapping of OffPolicyEstimator
        As in `PolicySelector`: the careful ones.
    n_repeats : int
        Half-splits; two in a row exchange their halves, so take an even number.
    n_iter : int, optional
        Draw that many settings from `param_grid` at random instead of trying all.
    screen : OffPolicyEstimator, optional
        A cheap estimator. Only the candidates that it values highest go on to `estimators`.
    keep : float or int
        Share (0 to 1) or number of candidates that go on.
    screen_updates : int, optional
        Screen the settings after that many updates instead, so that only those that go on train in full, and `estimators`
        value all their checkpoints. For learners with a parameter `n_updates`.
    criterion : str
        As in `PolicySelector`.
    selection : mapping, optional
        More parameters of `PolicySelector`: baseline, margin, level, ...
    refit : {"valued", "all", "none"}
        What `best_policy_` is. "valued": of the policies that the best setting gave in the repeats, that of the highest held-out
        estimate: learned from a half, but valued itself. "all": the best setting, learned anew from all episodes and cut after
        the best number of updates; nothing has valued that very policy.
    random_state : int
        Seed of the splits, of drawn settings and of the learner in every repeat. The last fit keeps the learner's own.
    n_jobs : int or None
        Repeats at work side by side by joblib, each on one thread; obeys `joblib.parallel_config`. Leave it at None for
        learners on a GPU.
    progress : bool
        Show a bar.

    Attributes
    ----------
    best_params_ : dict
    best_n_updates_ : int or None
        After how many updates training is best cut, by the average over repeats; None for learners without checkpoints.
    best_score_ : float
        Its held-out value: the average over repeats, by the estimator that decides.
    best_estimate_ : Estimate
        The same with its influence, interval and verdict.
    best_policy_ : PolicyLearner or None
        As `refit` says.
    best_policy_estimate_ : Estimate or None
        Of `best_policy_` itself, on the half that it has not seen; None unless `refit` is "valued".
    cv_results_ : dict of arrays
        A candidate per entry, as in scikit-learn; ``pandas.DataFrame(search.cv_results_)`` shows it.
    selection_ : PolicySelector
        Fitted on the pooled estimates of those that were not screened out: gates, simultaneous bounds, set of the best.
    decision_ : str
        The choice in words, what its value stands for, and what the final policy is.
    training_episode_keys_ : ndarray of uint64

    Raises
    ------
    ValueError, TypeError
        In `fit`, before any work, settings of this library's learners included; afterwards only if no setting could be
        learned at all. A FitFailedWarning tells of single ones.
    KeyboardInterrupt
        If Ctrl-C ended the training of a learner: nothing is kept. A run that a callback stopped counts as it is.

    Notes
    -----
    A candidate's value is V = (1/K) sum_k V_k over its policies of K repeats, with influence
    psi_i = (1/K) sum_k (n / n_k) psi_ik over the repeats that valued episode i. What is valued is thus the average policy
    learned from half of the episodes, by other seeds: the setting, not the policy that is returned. The best of many values
    is too high; ``selection_.corrected_`` corrects for the choice among those that were not screened out. To value
    the whole procedure, search included, give it to `cross_fit_select`: a `PolicySearch` is a learner.

    Averaging over repeats finds what is better in general. Where one checkpoint of a run is good and the next bad, by the luck
    of the run, its number does not tell which checkpoint of a new run is good; docs/policy_search.md has such a case.
    ``refit="valued"`` and `select_checkpoint` choose among policies that were valued themselves. Their estimates are the
    highest of many too: `decision_` gives a lower bound that holds for all of them at once (Bonferroni).

    References
    ----------
    Nie, Flet-Berliac, Jordan, Steenbergen & Brunskill (2022), "Data-efficient pipeline for offline reinforcement learning
    with limited data", NeurIPS, arXiv:2210.08642.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.estimators import LSTDQ, WeightedIS
    >>> from ope.policies import BCQ
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((800, 1)),
    ...     [0, 0, 0, 1] * 200,
    ...     [0.0, 0.0, 0.0, 1.0] * 200,
    ...     lengths=[1] * 800,
    ...     ends="terminal",
    ...     behavior_prob=[0.75, 0.75, 0.75, 0.25] * 200,
    ... )
    >>> search = PolicySearch(
    ...     BCQ(hidden=(8,), n_updates=100, learning_rate=0.01, checkpoints=2, random_state=0),
    ...     {"threshold": [0.9, 0.05]},
    ...     estimators=[WeightedIS(gamma=1.0)],
    ...     screen=LSTDQ(gamma=1.0),
    ...     keep=2,
    ...     n_repeats=2,
    ... ).fit(log)
    >>> search.best_params_, search.best_score_
    ({'threshold': 0.05}, 1.0)
    """

    def __init__(
        self,
        learner: PolicyLearner,
        param_grid: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        estimators: Sequence[OffPolicyEstimator] | Mapping[str, OffPolicyEstimator],
        n_repeats: int = 4,
        n_iter: int | None = None,
        screen: OffPolicyEstimator | None = None,
        keep: float = 0.25,
        screen_updates: int | None = None,
        criterion: str = "lower_bound",
        selection: Mapping[str, Any] | None = None,
        refit: str = "valued",
        random_state: int = 0,
        n_jobs: int | None = None,
        progress: bool = False,
    ) -> None:
        self.learner = learner
        self.param_grid = param_grid
        self.estimators = estimators
        self.n_repeats = n_repeats
        self.n_iter = n_iter
        self.screen = screen
        self.keep = keep
        self.screen_updates = screen_updates
        self.criterion = criterion
        self.selection = selection
        self.refit = refit
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.progress = progress

    # ---------------------------------------------------------------- the search

    def fit(self, data: LoggedDataset) -> Self:
        """Search, choose, and learn the best one from all episodes.

        Parameters
        ----------
        data : LoggedDataset

        Returns
        -------
        self
        """
        plan = self._plan(data)
        selector = new_selector(OWNER, plan.estimators, data, self.criterion, self.selection)
        try:
            with all_or_nothing(OWNER):
                self._run(plan, selector, data)
        except KeyboardInterrupt:
            forget(self)
            raise
        return self

    def _run(self, plan: Plan, selector: PolicySelector, data: LoggedDataset) -> None:
        findings = search(plan, data)
        names = {plan.name(candidate): candidate for candidate in findings.kept}
        pooled = pooled_estimators(findings.values, plan.parts, data, list(names))
        stand_ins = {name: HeldOutPolicies(f"{len(plan.parts)} policies, one a repeat") for name in names}
        self.selection_: PolicySelector = selector.set_params(estimators=pooled).fit(data, stand_ins)
        self.cv_results_ = results_dict(plan, findings, self.selection_)
        self._adopt(plan, findings, names)
        self._finish(plan, findings, data)
        self._remember(data)
        self.decision_ = self._in_words(plan, findings)

    def _adopt(self, plan: Plan, findings: Findings, names: Mapping[str, Candidate]) -> None:
        """Store the choice in scikit-learn's names."""
        name, primary = self.selection_.best_name_, self.selection_.primary_
        self.best_estimate_: Estimate | None = None
        self.best_params_: dict[str, Any] | None = None
        self.best_index_: int | None = None
        self.best_n_updates_: int | None = None
        self.best_score_ = float("nan")
        if name is None or primary is None:
            return
        chosen, estimate = names[name], self.selection_.estimates_[primary][name]
        self.best_estimate_, self.best_score_ = estimate, float(estimate.value)
        self.best_params_, self.best_n_updates_ = dict(plan.settings[chosen.setting]), chosen.n_updates
        self.best_index_ = findings.candidates.index(chosen)

    def _finish(self, plan: Plan, findings: Findings, data: LoggedDataset) -> None:
        """Set the policy that is returned, and say what it is."""
        self.best_policy_: Policy | None = None
        self.best_policy_estimate_: Estimate | None = None
        self.best_training_ = ""
        if self.best_params_ is None or self.refit == "none":
            return
        if self.refit == "all":
            self._learn_anew(data, self.best_params_)
            return
        key, level = str(self.selection_.primary_), float(self.selection_.level)
        column = "value" if self.criterion == "value" else "lower_bound"
        setting = plan.settings.index(self.best_params_)
        valued = best_of_setting(plan, data, findings, setting, key, column, level)
        if valued is not None:
            self.best_policy_, self.best_policy_estimate_ = valued.policy, valued.estimate
            self.best_training_ = _words_on_valued(valued, plan, level)

    def _learn_anew(self, data: LoggedDataset, params: Mapping[str, Any]) -> None:
        """Learn the best setting from all episodes, by its whole schedule, and take the policy where it is to be cut."""
        with threadpool_limits(limits=1):
            fitted = fit_whole(with_setting(self.learner, params), data)
        found: dict[int | None, Policy] = stages(fitted) if self.best_n_updates_ is not None else {None: fitted}
        self.best_policy_ = found.get(self.best_n_updates_)
        self.best_training_ = self._words_on_anew(data)

    # ---------------------------------------------------------------- input

    def _plan(self, data: Any) -> Plan:
        check_log(OWNER, data)
        named = named_estimators(OWNER, self.estimators)
        self._validate(data, named)
        seed, settings = seed_of(OWNER, self.random_state), self._settings()
        check_settings(OWNER, self.learner, settings, data)
        if self.screen_updates is not None:
            check_settings(OWNER, self.learner, settings, data, {"n_updates": self.screen_updates})
        return Plan(
            learner=self.learner,
            settings=settings,
            parts=half_parts(data, self.n_repeats, seed),
            seeds=seeds_of(seed, self.n_repeats),
            estimators=named,
            screen=self.screen,
            keep=self.keep,
            screen_updates=self.screen_updates,
            n_jobs=self.n_jobs,
            progress=self.progress,
        )

    def _validate(self, data: LoggedDataset, named: Mapping[str, OffPolicyEstimator]) -> None:
        if not isinstance(self.learner, PolicyLearner):
            raise TypeError(
                f"{OWNER}: `learner` must be a PolicyLearner, got {self.learner!r}; pass an object such as BCQ(), not its class."
            )
        check_integer(OWNER, "n_repeats", self.n_repeats, 1, "4 or more, an even number")
        if self.refit not in REFITS:
            raise ValueError(f"{OWNER}: `refit` must be one of {REFITS}, got {self.refit!r}; 'valued' is usual.")
        if data.n_episodes < 2:
            raise ValueError(f"{OWNER}: `data` must hold at least 2 episodes, got 1; nothing can be held out.")
        if self.screen is not None:
            if not isinstance(self.screen, OffPolicyEstimator):
                raise TypeError(
                    f"{OWNER}: `screen` must be an OffPolicyEstimator or None, got {self.screen!r}; see ope.estimators."
                )
            check_one_question(OWNER, {**named, "screen": self.screen})
        self._validate_numbers()

    def _validate_numbers(self) -> None:
        whole = isinstance(self.keep, (int, np.integer)) and not isinstance(self.keep, bool)
        if not (whole and self.keep >= 1) and not (isinstance(self.keep, float) and 0.0 < self.keep <= 1.0):
            raise ValueError(
                f"{OWNER}: `keep` must be a number of candidates of at least 1, or a share in (0, 1], got {self.keep!r}."
            )
        if self.screen_updates is None:
            return
        check_integer(OWNER, "screen_updates", self.screen_updates, 1)
        if self.screen is None:
            raise ValueError(
                f"{OWNER}: `screen_updates` must come with a `screen`, got none; name the estimator that screens."
            )
        if "n_updates" not in self.learner.get_params():
            raise ValueError(
                f"{OWNER}: `screen_updates` must come with a learner that has a parameter n_updates, got "
                f"{type(self.learner).__name__}; leave it out."
            )

    def _settings(self) -> list[dict[str, Any]]:
        grid: Any = {} if self.param_grid is None else self.param_grid
        if self.n_iter is None:
            _refuse_distributions(grid)
            settings = list(ParameterGrid(grid))
        else:
            check_integer(OWNER, "n_iter", self.n_iter, 1)
            settings = list(ParameterSampler(grid, self.n_iter, random_state=self.random_state))
        if not settings:
            raise ValueError(f"{OWNER}: `param_grid` must hold at least one setting, got {self.param_grid!r}.")
        return settings

    # ---------------------------------------------------------------- words

    def _in_words(self, plan: Plan, findings: Findings) -> str:
        said = [
            self._choice_in_words(),
            f"Valued is the average of {len(plan.parts)} policies of a setting, each learned from one half of the episodes and "
            "valued on the other: the setting, not the final policy.",
        ]
        if findings.screen_failed:
            said.append(
                "The screen refuses every candidate, so that all of them went on; screen with another estimator."
            )
        elif findings.screened:
            what = "settings" if plan.screen_updates is not None else "candidates"
            n_kept = len({c.setting for c in findings.kept} if plan.screen_updates is not None else findings.kept)
            said.append(f"{n_kept} of {len(findings.screened)} {what} went on from the screen.")
        doubt = None if self.best_policy_ is None else self.best_policy_.training_doubt
        return " ".join([*said, self.best_training_, "" if doubt is None else doubt[1]]).strip()

    def _choice_in_words(self) -> str:
        if self.best_params_ is None:
            return self.selection_._no_choice("selection_.results_")
        return str(self.selection_.decision_)

    def _words_on_anew(self, data: LoggedDataset) -> str:
        if self.best_policy_ is None:
            return (
                f"best_policy_ is None: learning from all episodes ended before update {self.best_n_updates_}; lower the "
                "learning rate, or scale the rewards."
            )
        cut = "" if self.best_n_updates_ is None else f", cut after {self.best_n_updates_} updates"
        return (
            f"best_policy_ was learned anew from all {data.n_episodes} episodes{cut}: none is left to value it on, so that its "
            "estimate is the held-out one above."
        )

    def summary(self) -> str:
        """Return the decision, the table of candidates, and why some are refused, as text."""
        table = self._table().to_string(index=False, float_format=lambda value: f"{value:.4g}")
        return "\n\n".join([self.decision_, table, *self._notes()])

    def _notes(self) -> list[str]:
        """Return why candidates are refused by the estimator whose verdicts the table shows."""
        return refusals(self.selection_.estimates_[deciding_name(self.selection_)])

    def _table(self) -> pd.DataFrame:
        if not hasattr(self, "cv_results_"):
            raise NotFittedError(f"{OWNER} is not fitted; call fit(data) with a LoggedDataset first.")
        frame = pd.DataFrame(self.cv_results_)
        settings = [name for name in map(str, frame.columns) if name.startswith("param_")]
        shown = ["n_updates", "stage", "screen_score", "mean_test_score", "std_error", "lower_bound", "verdict"]
        return frame[[*settings, *(name for name in shown if name in frame and frame[name].notna().any())]]

    def _repr_html_(self) -> str:
        if not hasattr(self, "cv_results_"):
            return str(tag("pre", repr(self)))
        table = self._table()
        rows = [list(row) for row in table.itertuples(index=False)]
        return "".join([tag("p", self.decision_), html_table(list(table.columns), rows), bullets(self._notes())])

    # ---------------------------------------------------------------- a policy: the best one

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "cv_results_")

    def _best(self) -> Policy:
        if getattr(self, "best_policy_", None) is None:
            reason = getattr(self, "decision_", "it is not fitted; call fit(data) with a LoggedDataset first.")
            raise NotFittedError(f"{OWNER} holds no policy: {reason}")
        assert self.best_policy_ is not None
        return self.best_policy_

    @property
    def capabilities(self) -> frozenset[str]:
        """What the best policy offers; before `fit`, what the learner does."""
        policy = getattr(self, "best_policy_", None)
        return (self.learner if policy is None else policy).capabilities

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """Labels of the best policy's actions."""
        return self._best().labels

    def predict(self, states: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return what the best policy predicts."""
        return self._best().predict(states)

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        """Return the best policy's probabilities of all actions."""
        return self._best().predict_proba(states)

    def log_prob(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        """Return the best policy's log probability of given actions."""
        return self._best().log_prob(states, actions)

    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> npt.NDArray[Any]:
        """Draw actions of the best policy."""
        return self._best().sample(states, random_state)

    def proba_rows(self, rows: Rows) -> FloatArray:
        """Return `predict_proba` on logged rows."""
        return self._best().proba_rows(rows)

    def log_prob_rows(self, rows: Rows, actions: npt.NDArray[Any]) -> FloatArray:
        """Return `log_prob` on logged rows."""
        return self._best().log_prob_rows(rows, actions)

    def quadrature_rows(self, rows: Rows) -> tuple[FloatArray, FloatArray] | None:
        """Return the best policy's nodes for expectations."""
        return self._best().quadrature_rows(rows)

    def save(self, path: str | Path) -> None:
        """Write the best policy to a file that `ope.load_policy` reads; the search itself is not stored."""
        best = self._best()
        assert isinstance(best, PolicyLearner)
        best.save(path)


def _words_on_valued(valued: Valued, plan: Plan, level: float) -> str:
    estimate, n = valued.estimate, valued.n_policies
    cut = "" if valued.candidate.n_updates is None else f", cut after {valued.candidate.n_updates} updates"
    try:
        bound = estimate.lower_bound(1.0 - (1.0 - level) / n)
    except IntervalNotAvailable:
        bound = float("nan")
    return (
        f"best_policy_ is that of {plan.parts[valued.repeat].name}, learned from {len(plan.parts[valued.repeat].train)} "
        f"episodes{cut}, and valued itself on the {estimate.n_episodes} others: {number(estimate.value)}, verdict "
        f"{estimate.verdict.level.name}. As the highest of {n} policies that is too high; with {level:.0%} confidence for all "
        f"of them at once its value is at least {number(bound)}."
    )


def _refuse_distributions(grid: Any) -> None:
    for one in [grid] if isinstance(grid, Mapping) else list(grid):
        for name, values in one.items():
            if hasattr(values, "rvs"):
                raise ValueError(
                    f"{OWNER}: `param_grid` must hold lists where `n_iter` is not given, got a distribution for {name!r}; pass "
                    "n_iter=, the number of settings to draw."
                )
