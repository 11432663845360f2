"""`PolicySelector`: values candidate policies with several estimators and says which to deploy, or why none."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits
from typing_extensions import Self

from ope.baseline import logged_value
from ope.comparison import Comparison
from ope.dataset import LoggedDataset, check_log
from ope.display import bullets, html_table, number, tag
from ope.estimate import Estimate, Estimates, estimate_row
from ope.estimator import OTHER_IDS, OffPolicyEstimator
from ope.fitted import forget
from ope.policy import Policy, overlap
from ope.selection.candidates import check_candidates
from ope.selection.decision import (
    CORRECTIONS,
    CRITERIA,
    LEAST_SPLIT,
    CorrectedValue,
    Evidence,
    choose_and_correct,
    in_words,
    nothing_in_words,
)
from ope.selection.gate import ADJUSTMENTS, COLUMNS, called, gates
from ope.selection.log_facts import LogFacts, log_facts
from ope.selection.questions import check_one_horizon, check_one_question
from ope.selection.settings import RESERVED, Settings, settings_of
from ope.selection.simultaneous import among, compared, simultaneous
from ope.validation import check_integer, check_number
from ope.verdict import Level

RESULT_COLUMNS = ("candidate", "estimator", "value", "std_error", "low", "high", "lower_bound", "verdict", "reasons")


class PolicySelector(BaseEstimator):  # type: ignore[misc]
    """Value candidate policies with several estimators on one log, and choose.

    Parameters
    ----------
    estimators : sequence of OffPolicyEstimator, or mapping of str to OffPolicyEstimator
        All of one gamma and horizon. Give first the one you trust most: it breaks ties.
    criterion : {"lower_bound", "simultaneous", "value"}
        Choose the highest one-sided lower bound (the default, which discounts what is uncertain), the highest of bounds
        that hold for all candidates at once, or the highest value.
    baseline : "logged", str, Estimate or None
        What a candidate must beat to be deployed: the logged policy (its own mean return), a candidate by name, an estimate
        on the same episodes, or nothing. Beside 'logged' no candidate may be named "logged" or "logged policy".
    margin : float
        How much worse than the baseline a candidate may be, at least 0.
    gate_adjust : {"max_t", "holm", "none"}
        How the gate keeps the probability of passing any candidate that is not better at most 1 - level: by the
        distribution of the largest statistic of all paired differences, by Holm, or, for each alone, not at all.
    correction : {"hybrid", "conditional", "split", "none"}
        How the value of the chosen candidate is corrected for having been chosen (`ope.inference.selected_value`). With
        "split" one half of the episodes chooses and the other half values: at least 4 episodes.
    top_k : int
        How many candidates `top_` lists.
    level : float
        Confidence level of intervals, lower bounds and the gate, in (0, 1).
    allow_overlap : bool
        Value candidates that were trained on evaluation episodes, although their values are over-estimated.
    random_state : int
        Seed of the halves of "split".
    n_jobs : int or None
        Estimators fitted side by side by joblib, each on one thread; obeys `joblib.parallel_config`.
    progress : bool
        Show a bar.

    Attributes
    ----------
    results_ : DataFrame
        A row per candidate and estimator: value, standard error, interval, lower bound, verdict, reasons, diagnostics.
    estimates_ : dict of str to Estimates
        By name of the estimator.
    primary_ : str or None
        The estimator that decides: it gives the criterion's score (VALID, then CAUTION) for the most candidates; the first of equals.
    best_name_ : str or None
        The chosen candidate; None if no candidate has an answer.
    best_policy_ : Policy or None
    deploy_ : bool
        Whether there is a choice and it passes the gate.
    deployed_name_ : str or None
        The chosen candidate if it passes, else the baseline.
    decision_ : str
        What to deploy and why in words, with the evidence and what to do next.
    baseline_ : Estimate or None
        The value to beat; of the logged policy the mean discounted return, or, where truncated recordings leave too much
        out, the value by temporal differences. None too where it is a candidate and no estimator decides.
    gates_ : DataFrame
        A row per candidate: paired difference to the baseline, its standard error, adjusted lower bound, one-sided
        p-value, adjusted p-value, whether it passes, and the reason in words.
    corrected_ : CorrectedValue or None
        Value and interval of the choice, corrected and naive.
    simultaneous_ : DataFrame
        A row per candidate: value, standard error, two-sided intervals that hold all at once (low, high), one-sided ones
        (lower_bound), verdict.
    comparison_ : Comparison or None
        Of eligible candidates and the baseline, by the deciding estimator.
    best_set_ : tuple of str
        Eligible candidates that may be the best: the best is among them at the level.
    ranks_ : DataFrame
        A row per eligible candidate: rank and the ends of its simultaneous interval.
    top_ : list of str
        The `top_k` eligible candidates by the criterion.
    settings_ : Settings
        The parameters at fit, which all words and the report keep to whatever is set later.
    log_ : LogFacts
        What a report says about the log; no data are kept.

    Notes
    -----
    One estimator decides for all candidates, so that their values are comparable and differences are paired by episode. A
    candidate that it refuses is not eligible, but counts among those for which the gate's error is controlled.

    The bounds in `results_` are for one candidate alone. The value of the chosen one is over-estimated by the choice
    itself and its bound fails more often than its level says (docs/selection.md has the figures): use `corrected_` for its
    value, `simultaneous_` for bounds, and `gates_` for the difference to the baseline. Adjustments treat verdicts as given.

    Examples
    --------
    >>> from ope.estimators import PerDecisionIS, WeightedIS
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((200, 1)), [0, 1] * 100, [1.0, 0.0] * 100, lengths=[1] * 200, ends="terminal", behavior_prob=[0.5] * 200
    ... )
    >>> candidates = {"cautious": TabularPolicy([[0.4, 0.6]]), "bold": TabularPolicy([[0.7, 0.3]])}
    >>> selector = PolicySelector([WeightedIS(gamma=1.0), PerDecisionIS(gamma=1.0)]).fit(log, candidates)
    >>> selector.best_name_, selector.primary_
    ('bold', 'WeightedIS')
    >>> selector.results_[["candidate", "estimator", "value", "verdict"]].round(2)
      candidate      estimator  value verdict
    0  cautious     WeightedIS    0.4   VALID
    1      bold     WeightedIS    0.7   VALID
    2  cautious  PerDecisionIS    0.4   VALID
    3      bold  PerDecisionIS    0.7   VALID
    >>> selector.deployed_name_, selector.best_set_
    ('bold', ('bold',))
    """

    def __init__(
        self,
        estimators: Sequence[OffPolicyEstimator] | Mapping[str, OffPolicyEstimator],
        criterion: str = "lower_bound",
        *,
        baseline: str | Estimate | None = "logged",
        margin: float = 0.0,
        gate_adjust: str = "max_t",
        correction: str = "hybrid",
        top_k: int = 3,
        level: float = 0.95,
        allow_overlap: bool = False,
        random_state: int = 0,
        n_jobs: int | None = None,
        progress: bool = False,
    ) -> None:
        self.estimators = estimators
        self.criterion = criterion
        self.baseline = baseline
        self.margin = margin
        self.gate_adjust = gate_adjust
        self.correction = correction
        self.top_k = top_k
        self.level = level
        self.allow_overlap = allow_overlap
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.progress = progress

    def fit(self, data: LoggedDataset, candidates: Mapping[str, Policy]) -> Self:
        """Value every candidate with every estimator and choose.

        Parameters
        ----------
        data : LoggedDataset
            Episodes that no candidate was trained on.
        candidates : mapping of str to Policy

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If the estimators, the criterion or the candidates are unusable, before any work; never because one candidate
            fails. If the estimates turn out to answer different questions; the selector is then unfitted.
        NotFittedError
            If a candidate is a learner that has not been fitted, or acts through one.
        """
        named = self._named_estimators()
        self._validate(data, candidates)
        check_candidates("PolicySelector.fit", candidates)
        for estimator in named.values():
            estimator._validate()
        forget(self)
        try:
            self._work(named, data, candidates)
        except BaseException:
            forget(self)  # half a selection must not be taken for one
            raise
        return self

    def _work(
        self, named: Mapping[str, OffPolicyEstimator], data: LoggedDataset, candidates: Mapping[str, Policy]
    ) -> None:
        self.settings_: Settings = settings_of(self, named, candidates)
        refused = {} if self.allow_overlap else _overlapping(data, candidates)
        usable = {name: policy for name, policy in candidates.items() if name not in refused}
        self.estimates_ = {
            name: _in_order(candidates, estimates, refused, estimator, data)
            for (name, estimator), estimates in zip(named.items(), self._fit_all(named, data, usable), strict=True)
        }
        check_one_question(self.estimates_)
        self.results_ = self._table()
        self.primary_ = self._choose_estimator()
        gamma = float(next(iter(named.values())).gamma or 0.0)
        self._judge(data, gamma)
        self._decide()
        self.log_: LogFacts = log_facts(data, gamma, usable, named, self.best_name_)
        self.best_policy_ = None if self.best_name_ is None else candidates[self.best_name_]

    # ---------------------------------------------------------------- input

    def _named_estimators(self) -> dict[str, OffPolicyEstimator]:
        if isinstance(self.estimators, (OffPolicyEstimator, type)):
            raise TypeError(
                f"PolicySelector: `estimators` must be a sequence or mapping of estimators, got {self.estimators!r}; pass a list of them."
            )
        if isinstance(self.estimators, Mapping):
            named = dict(self.estimators)
        else:
            named = {}
            for estimator in self.estimators:
                base = type(estimator).__name__
                same = sum(name == base or name.startswith(f"{base}_") for name in named)
                named[f"{base}_{same + 1}" if same else base] = estimator
        wrong = [
            type(estimator).__name__ for estimator in named.values() if not isinstance(estimator, OffPolicyEstimator)
        ]
        if wrong or not named:
            raise TypeError(
                f"PolicySelector: `estimators` must be at least one OffPolicyEstimator, got {wrong or 'none'}; see ope.estimators."
            )
        gammas = {name: estimator.gamma for name, estimator in named.items()}
        if len(set(gammas.values())) > 1:
            raise ValueError(
                f"PolicySelector: all `estimators` must have one gamma, got {gammas}; different gammas answer different questions."
            )
        estimands = {name: estimator.estimand for name, estimator in named.items()}
        if len(set(estimands.values())) > 1:
            raise ValueError(
                f"PolicySelector: all `estimators` must have one estimand, got {estimands}; a sum of rewards and a reward per step answer different questions."
            )
        if "return" not in estimands.values() and isinstance(self.baseline, str) and self.baseline == "logged":
            raise ValueError(
                f"PolicySelector: `baseline` 'logged' is a sum of rewards, got estimators of {next(iter(estimands.values()))!r}; name a candidate, pass an Estimate, or "
                "None for no comparison."
            )
        return named

    def _validate(self, data: Any, candidates: Any) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(f"PolicySelector: `criterion` must be one of {CRITERIA}, got {self.criterion!r}.")
        for name, options in (("gate_adjust", ADJUSTMENTS), ("correction", CORRECTIONS)):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"PolicySelector: `{name}` must be one of {options}, got {getattr(self, name)!r}; {options[0]!r} is usual."
                )
        check_number("PolicySelector", "level", self.level, "a number in (0, 1)", "pass 0.95 for 95 %", 0.0, above=True)
        if not self.level < 1.0:
            raise ValueError(f"PolicySelector: `level` must lie in (0, 1), got {self.level!r}; pass 0.95 for 95 %.")
        check_number("PolicySelector", "margin", self.margin, "a number of at least 0", "pass 0 to demand a gain", 0.0)
        check_integer("PolicySelector", "top_k", self.top_k, 1)
        check_integer("PolicySelector", "random_state", self.random_state, 0, "pass a seed")
        for flag in ("allow_overlap", "progress"):
            _check_flag(flag, getattr(self, flag))
        check_log("PolicySelector.fit", data)
        if not isinstance(candidates, Mapping) or not candidates:
            raise TypeError(
                f"PolicySelector.fit: `candidates` must be a non-empty mapping of names to policies, got {type(candidates).__name__}; pass {{'name': policy}}."
            )
        self._validate_baseline(data, candidates)
        check_one_horizon(self._named_estimators(), data)
        if self.correction == "split" and data.n_episodes < LEAST_SPLIT:
            raise ValueError(
                f"PolicySelector.fit: `correction` 'split' must have at least {LEAST_SPLIT} episodes, two that choose and two that value, got "
                f"{data.n_episodes}; use 'hybrid' or log more episodes."
            )

    def _validate_baseline(self, data: LoggedDataset, candidates: Mapping[str, Policy]) -> None:
        baseline = self.baseline
        if baseline is None or (isinstance(baseline, str) and (baseline == "logged" or baseline in candidates)):
            _check_names(baseline, candidates)
            return
        if not isinstance(baseline, Estimate):
            raise ValueError(
                f"PolicySelector: `baseline` must be 'logged', the name of a candidate ({', '.join(map(repr, candidates))}), an Estimate or None, "
                f"got {baseline!r}; 'logged' compares with the policy that made the log."
            )
        if baseline.data_id != data.data_id:
            raise ValueError(
                "PolicySelector: `baseline` must be an estimate on the episodes of `data`, got one of another log; fit it on `data`, so that differences "
                "are paired by episode."
            )
        first = next(iter(self._named_estimators().values()))
        if baseline.estimand == first.estimand and first.gamma is not None and baseline.gamma != first.gamma:
            raise ValueError(
                f"PolicySelector: `baseline` must have the gamma of the estimators, {first.gamma!r}, got an estimate of gamma {baseline.gamma!r}; different gammas "
                f"answer different questions: fit it with gamma={first.gamma!r}."
            )

    # ---------------------------------------------------------------- work

    def _fit_all(
        self, named: Mapping[str, OffPolicyEstimator], data: LoggedDataset, candidates: Mapping[str, Policy]
    ) -> list[Mapping[str, Estimate]]:
        tasks = (delayed(_fit_estimator)(estimator, data, candidates) for estimator in named.values())
        results = Parallel(n_jobs=self.n_jobs, return_as="generator")(tasks)
        if self.progress:
            from tqdm.auto import tqdm

            results = tqdm(results, total=len(named), desc="estimators", unit="estimator")
        return list(results)

    def _table(self) -> pd.DataFrame:
        rows = [
            {"candidate": candidate, "estimator": name, **estimate_row(estimate, self.level)}
            for name, estimates in self.estimates_.items()
            for candidate, estimate in estimates.items()
        ]
        return pd.DataFrame(rows)

    # ---------------------------------------------------------------- choice

    def _choose_estimator(self) -> str | None:
        def rank(name: str) -> tuple[int, int]:
            answers = self.estimates_[name]
            levels = [answers[candidate].verdict.level for candidate in self._scores(answers)]
            return sum(level == Level.VALID for level in levels), len(levels)

        ranks = {name: rank(name) for name in self.estimates_}
        best = max(ranks, key=lambda name: ranks[name])
        return best if ranks[best][1] > 0 else None

    def _scores(self, answers: Mapping[str, Estimate]) -> dict[str, float]:
        """Return what the criterion maximises, of the candidates that are not refused and have it."""
        if self.criterion == "simultaneous":
            scores = simultaneous(answers, self.level)["lower_bound"].to_dict()
        else:
            column = "value" if self.criterion == "value" else "lower_bound"
            scores = {name: estimate_row(estimate, self.level)[column] for name, estimate in answers.items()}
        return {
            name: float(scores[name])
            for name, estimate in answers.items()
            if estimate.verdict.level < Level.REFUSE and np.isfinite(scores[name])
        }

    def _judge(self, data: LoggedDataset, gamma: float) -> None:
        """Compare the candidates with the baseline and with each other, by the estimator that decides."""
        answers = self.estimates_[self.primary_] if self.primary_ is not None else Estimates({})
        self.baseline_ = self._baseline_estimate(data, gamma, answers)
        tested = {name: e for name, e in answers.items() if not self.settings_.is_baseline(name)}
        self.gates_ = (
            pd.DataFrame(columns=list(COLUMNS), index=pd.Index([], name="candidate"))
            if self.baseline_ is None
            else gates(tested, self.baseline_, margin=self.margin, level=self.level, adjust=self.gate_adjust)
        )
        self.simultaneous_ = simultaneous(answers, self.level)
        self._scores_ = self._scores(answers)
        eligible = {name: answers[name] for name in self._scores_}
        self._eligible_ = eligible
        self.top_ = sorted(eligible, key=lambda name: -self._scores_[name])[: self.top_k]
        self.comparison_ = compared(eligible, self.baseline_)
        candidates = Comparison(eligible) if eligible else None
        self.best_set_, self.ranks_ = among(candidates, self.level)

    def _baseline_estimate(self, data: LoggedDataset, gamma: float, answers: Estimates) -> Estimate | None:
        name = self.settings_.baseline
        if name is None:
            return None
        if isinstance(self.baseline, Estimate):
            return replace(self.baseline, policy=name)
        return answers.get(name) if self.settings_.among_candidates else logged_value(data, gamma)

    def _decide(self) -> None:
        """Choose among the eligible candidates, correct the value of the choice, and say what follows."""
        name = self.settings_.baseline
        self.corrected_: CorrectedValue | None = None
        self.best_name_: str | None = None
        self.deploy_, self.deployed_name_ = False, name
        if not self._eligible_ or self.primary_ is None:
            self.decision_ = self._no_choice("results_")
            return
        self.corrected_ = choose_and_correct(
            self._eligible_, self._scores_, level=self.level, method=self.correction, seed=self.random_state
        )
        self.best_name_ = self.corrected_.policy
        evidence = self._evidence(self.primary_, self.corrected_)
        self.deploy_ = evidence.passes and not evidence.itself
        self.deployed_name_ = self.best_name_ if self.deploy_ else name
        self.decision_ = in_words(evidence)

    def _no_choice(self, table: str) -> str:
        """Return the decision where no candidate can be chosen; `table` names where the reasons stand."""
        verdicts = [e.verdict.level for answers in self.estimates_.values() for e in answers.values()]
        lacking = self.settings_.criterion if min(verdicts, default=Level.REFUSE) < Level.REFUSE else None
        return nothing_in_words(self.settings_.baseline, table, lacking=lacking)

    def _evidence(self, primary: str, corrected: CorrectedValue) -> Evidence:
        answers = self.estimates_[primary]
        refused = tuple(name for name, e in answers.items() if e.verdict.level == Level.REFUSE)
        unscored = tuple(name for name in answers if name not in refused and name not in self._scores_)
        return Evidence(
            criterion=self.criterion,
            primary=primary,
            level=self.level,
            margin=self.margin,
            adjust=self.gate_adjust,
            corrected=corrected,
            gates=self.gates_,
            baseline=self.settings_.baseline,
            itself=self.settings_.is_baseline(corrected.policy),
            best_set=self.best_set_,
            refused=refused,
            unscored=unscored,
            elsewhere={name: found[corrected.policy] for name, found in self.estimates_.items() if name != primary},
        )

    # ---------------------------------------------------------------- shown

    def report(self, path: str | os.PathLike[str], *, title: str | None = None) -> None:
        """Write one self-contained HTML file about the decision.

        Parameters
        ----------
        path : path-like
        title : str, optional
        """
        check_is_fitted(self, "results_")
        from ope.report import write_report

        write_report(self, path, title=title)

    def summary(self) -> str:
        """Return the decision and the tables as text."""
        check_is_fitted(self, "results_")
        parts = [self.decision_]
        for title, table in self._tables():
            shown = table.to_string(index=False, float_format=lambda value: f"{value:.4g}")
            parts.append(f"{title}\n{shown}")
        return "\n\n".join(parts)

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        """Return what summary and HTML show."""
        found = [("Estimates", self.results_[[*RESULT_COLUMNS[:-1]]])]
        if self.baseline_ is not None and len(self.gates_):
            columns = ["difference", "std_error", "lower_bound", "p_adjusted", "passes"]
            title = f"Difference to {called(self.baseline_.policy)} ({number(self.baseline_.value)})"
            found.append((title, self.gates_[columns].reset_index()))
        if len(self.ranks_):
            found.append(("Ranks (1 is the best)", self.ranks_.reset_index()))
        return found

    def _repr_html_(self) -> str:
        if not hasattr(self, "results_"):
            return str(tag("pre", repr(self)))
        tables = [
            html_table(list(table.columns), [list(row) for row in table.itertuples(index=False)], title)
            for title, table in self._tables()
        ]
        reasons = self.results_["reasons"]
        rows = zip(self.results_["candidate"], self.results_["estimator"], reasons, strict=True)
        notes = [f"{candidate}, {estimator}: {reason}" for candidate, estimator, reason in rows if reason]
        return "".join([tag("p", self.decision_), *tables, bullets(notes)])


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"PolicySelector: `{name}` must be True or False, got {value!r}; pass one of them.")


def _check_names(baseline: str | None, candidates: Mapping[str, Policy]) -> None:
    """Raise where a candidate bears a name of the logged policy and the baseline is found by name."""
    clash = [name for name in RESERVED if name in candidates]
    if baseline in RESERVED and clash:
        raise ValueError(
            f"PolicySelector.fit: `candidates` must not be named {clash[0]!r} beside `baseline` {baseline!r}, got {list(candidates)}; the word means the policy "
            "that made the log: rename the candidate."
        )


def _fit_estimator(
    estimator: OffPolicyEstimator, data: LoggedDataset, candidates: Mapping[str, Policy]
) -> Mapping[str, Estimate]:
    if not candidates:
        return {}
    with threadpool_limits(limits=1):
        try:
            fitted: Estimates = copy.deepcopy(estimator).fit(data, candidates).estimate()
            return fitted
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return {name: estimator.failed(data, name, reason) for name in candidates}


def _overlapping(data: LoggedDataset, candidates: Mapping[str, Policy]) -> dict[str, str]:
    reasons = {}
    for name, policy in candidates.items():
        if n_shared := overlap(policy, data):
            reasons[name] = (
                f"The policy was trained on {n_shared} of the {data.n_episodes} evaluation episodes: its value would be over-estimated. Split the log with "
                f"data.split and evaluate on episodes that it has not seen, or pass allow_overlap=True{OTHER_IDS}."
            )
    return reasons


def _in_order(
    candidates: Mapping[str, Policy],
    estimates: Mapping[str, Estimate],
    refused: Mapping[str, str],
    estimator: OffPolicyEstimator,
    data: LoggedDataset,
) -> Estimates:
    return Estimates(
        {
            name: estimator.failed(data, name, refused[name]) if name in refused else estimates[name]
            for name in candidates
        }
    )
