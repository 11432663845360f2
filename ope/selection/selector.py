"""`PolicySelector`: scores candidate policies with several estimators and names the one to deploy, or says why none."""

from __future__ import annotations

import copy
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits
from typing_extensions import Self

from ope.dataset import LoggedDataset
from ope.estimate import Estimate, Estimates, estimate_row
from ope.estimator import OffPolicyEstimator
from ope.policy import Policy, overlap
from ope.verdict import Level

CRITERIA = ("lower_bound", "value")
RESULT_COLUMNS = ("candidate", "estimator", "value", "std_error", "low", "high", "lower_bound", "verdict", "reasons")


class PolicySelector(BaseEstimator):  # type: ignore[misc]
    """Value candidate policies with several estimators on one log, and choose.

    Parameters
    ----------
    estimators : sequence of OffPolicyEstimator, or mapping of str to OffPolicyEstimator
        All of one gamma. Give first the one you trust most: it breaks ties.
    criterion : {"lower_bound", "value"}
        Choose the highest one-sided lower bound (the default, which discounts what is uncertain), or the highest value.
    level : float
        Confidence level of intervals and lower bounds, in (0, 1).
    allow_overlap : bool
        Value candidates that were trained on evaluation episodes, although their values are over-estimated.
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
        The estimator that decides: it answers (VALID, then CAUTION) for the most candidates; the first of equals.
    best_name_ : str or None
        The chosen candidate; None if no candidate has an answer.
    best_policy_ : Policy or None
    decision_ : str
        The choice and its reason in words.

    Notes
    -----
    One estimator decides for all candidates, so that their values are comparable and differences are paired by episode. A
    candidate that it refuses is not eligible. The value of the chosen candidate is over-estimated by the choice itself; the
    bound of a single candidate does not correct that.

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
    """

    def __init__(
        self,
        estimators: Sequence[OffPolicyEstimator] | Mapping[str, OffPolicyEstimator],
        criterion: str = "lower_bound",
        *,
        level: float = 0.95,
        allow_overlap: bool = False,
        n_jobs: int | None = None,
        progress: bool = False,
    ) -> None:
        self.estimators = estimators
        self.criterion = criterion
        self.level = level
        self.allow_overlap = allow_overlap
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
            If the estimators, the criterion or the candidates are unusable; never because one candidate fails.
        """
        named = self._named_estimators()
        self._validate(data, candidates)
        refused = {} if self.allow_overlap else _overlapping(data, candidates)
        usable = {name: policy for name, policy in candidates.items() if name not in refused}
        self.estimates_ = {
            name: _in_order(candidates, estimates, refused, estimator, data)
            for (name, estimator), estimates in zip(named.items(), self._fit_all(named, data, usable), strict=True)
        }
        self.results_ = self._table()
        self.primary_ = self._choose_estimator()
        self.best_name_ = self._choose_candidate()
        self.best_policy_ = None if self.best_name_ is None else candidates[self.best_name_]
        self.decision_ = self._in_words()
        return self

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
        return named

    def _validate(self, data: Any, candidates: Any) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(f"PolicySelector: `criterion` must be one of {CRITERIA}, got {self.criterion!r}.")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"PolicySelector: `level` must lie in (0, 1), got {self.level!r}; pass 0.95 for 95 %.")
        if not isinstance(data, LoggedDataset):
            raise TypeError(
                f"PolicySelector.fit: `data` must be a LoggedDataset, got {type(data).__name__}; build one with LoggedDataset.from_pandas."
            )
        if not isinstance(candidates, Mapping) or not candidates:
            raise TypeError(
                f"PolicySelector.fit: `candidates` must be a non-empty mapping of names to policies, got {type(candidates).__name__}; pass {{'name': policy}}."
            )

    # ---------------------------------------------------------------- work

    def _fit_all(
        self, named: Mapping[str, OffPolicyEstimator], data: LoggedDataset, candidates: Mapping[str, Policy]
    ) -> list[Mapping[str, Estimate]]:
        for estimator in named.values():
            estimator._validate()
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
            levels = [
                estimate.verdict.level
                for estimate in self.estimates_[name].values()
                if np.isfinite(self._score(estimate))
            ]
            return sum(level == Level.VALID for level in levels), sum(level < Level.REFUSE for level in levels)

        best = max(self.estimates_, key=rank)
        return best if rank(best)[1] > 0 else None

    def _choose_candidate(self) -> str | None:
        if self.primary_ is None:
            return None
        eligible = {
            name: self._score(e) for name, e in self.estimates_[self.primary_].items() if e.verdict.level < Level.REFUSE
        }
        eligible = {name: score for name, score in eligible.items() if np.isfinite(score)}
        return max(eligible, key=lambda name: eligible[name])

    def _score(self, estimate: Estimate) -> float:
        row = estimate_row(estimate, self.level)
        return float(row[self.criterion])

    def _in_words(self) -> str:
        if self.primary_ is None or self.best_name_ is None:
            return "No candidate can be chosen: every estimator refuses every candidate. results_ gives each reason."
        estimate = self.estimates_[self.primary_][self.best_name_]
        row = estimate_row(estimate, self.level)
        left_out = [name for name, e in self.estimates_[self.primary_].items() if e.verdict.level == Level.REFUSE]
        sentence = (
            f"{self.best_name_!r} has the highest {self.criterion.replace('_', ' ')} by {self.primary_}: value {estimate.value:.4g}, "
            f"{self.level:.0%} interval {row['low']:.4g} to {row['high']:.4g}, verdict {estimate.verdict.level.name}."
        )
        return sentence + (f" Not eligible because refused: {', '.join(map(repr, left_out))}." if left_out else "")

    def summary(self) -> str:
        """Return the decision and the table as text."""
        check_is_fitted(self, "results_")
        table = self.results_[[*RESULT_COLUMNS[:-1]]].to_string(index=False, float_format=lambda value: f"{value:.4g}")
        return f"{self.decision_}\n\n{table}"

    def _repr_html_(self) -> str:
        if not hasattr(self, "results_"):
            return f"<pre>{html.escape(repr(self))}</pre>"
        table: str = self.results_[[*RESULT_COLUMNS]].to_html(index=False, float_format="{:.4g}".format, escape=True)
        return f"<p>{html.escape(self.decision_)}</p>{table}"


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
                "data.split and evaluate on episodes that it has not seen, or pass allow_overlap=True."
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
