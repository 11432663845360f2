"""`cv_results_`: what a search found, in scikit-learn's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from ope.estimate import Estimate
from ope.search.folds import without_numbers
from ope.search.run import Findings, Plan
from ope.search.training import Candidate
from ope.selection import PolicySelector
from ope.selection.gate import first_reason
from ope.validation import FloatArray
from ope.verdict import Level

Array = npt.NDArray[Any]


def results_dict(plan: Plan, findings: Findings, selector: PolicySelector) -> dict[str, Any]:
    """Return an entry per candidate and column.

    Columns: params, param_*, n_updates, stage, screen_score, mean_fit_time, mean_score_time; of the estimator that decides,
    or the first one if they refuse everything, split*_test_score, mean_test_score, std_test_score, rank_test_score,
    std_error, lower_bound, verdict, reasons; and mean_test_* of all estimators.
    """
    found, kept = findings.candidates, set(findings.kept)
    settings = [plan.settings[candidate.setting] for candidate in found]
    results: dict[str, Any] = {f"param_{name}": _masked(name, settings) for name in _names(plan)}
    results |= {
        "params": [dict(setting) for setting in settings],
        "n_updates": np.array([c.n_updates for c in found], dtype=object),
        "stage": np.array(["valued" if c in kept else "screened out" for c in found]),
        "screen_score": np.array([_screen_score(findings, c) for c in found]),
        "mean_fit_time": findings.fit_seconds.mean(axis=0)[[c.setting for c in found]],
        "mean_score_time": np.where([c in kept for c in found], np.mean(findings.score_seconds) / len(kept), 0.0),
    }
    for key in plan.estimators:
        pooled = selector.estimates_[key]
        results[f"mean_test_{key}"] = np.array([_value(pooled, plan.name(c)) for c in found])
    return results | _deciding(plan, findings, selector)


def deciding_name(selector: PolicySelector) -> str:
    """Return the estimator that decides; where all refuse everything, the first: it says why."""
    return str(selector.primary_ or next(iter(selector.estimates_)))


def refusals(estimates: Mapping[str, Estimate]) -> list[str]:
    """Return why candidates are refused; reasons that differ in their numbers only are said once."""
    told: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for name, estimate in estimates.items():
        if estimate.verdict.level == Level.REFUSE:
            reason = first_reason(estimate.verdict)
            told.setdefault(key := without_numbers(reason), []).append(name)
            first.setdefault(key, reason)
    return [f"Refused, {'; '.join(names)}: {first[key]}" for key, names in told.items()]


def _names(plan: Plan) -> list[str]:
    return sorted({name for setting in plan.settings for name in setting})


def _masked(name: str, settings: list[Mapping[str, Any]]) -> Any:
    column = np.empty(len(settings), dtype=object)
    for i, setting in enumerate(settings):
        column[i] = setting.get(name)
    return np.ma.MaskedArray(column, mask=[name not in setting for setting in settings])


def _screen_score(findings: Findings, candidate: Candidate) -> float:
    for key in (candidate, Candidate(candidate.setting)):
        if key in findings.screened:
            return float(findings.screened[key].value)
    return float("nan")


def _value(estimates: Mapping[str, Estimate], name: str) -> float:
    return estimates[name].value if name in estimates else float("nan")


def _deciding(plan: Plan, findings: Findings, selector: PolicySelector) -> dict[str, Any]:
    """Return the columns of the estimator that decides."""
    key, names = deciding_name(selector), [plan.name(c) for c in findings.candidates]
    splits = np.array([[_value(values[key], name) for name in names] for values in findings.values])
    table = selector.results_[selector.results_["estimator"] == key].set_index("candidate").reindex(names)
    mean: FloatArray = np.array([_value(selector.estimates_[key], name) for name in names])
    columns: dict[str, Any] = {f"split{k}_test_score": row for k, row in enumerate(splits)}
    return columns | {
        "mean_test_score": mean,
        "std_test_score": splits.std(axis=0),
        "rank_test_score": rankdata(np.where(np.isnan(mean), np.inf, -mean), method="min").astype(np.int32),
        **{name: table[name].to_numpy() for name in ("std_error", "lower_bound", "verdict", "reasons")},
    }
