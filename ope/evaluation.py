"""`evaluate_estimators`: how good each estimator was, once the true values of the candidates are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from ope import metrics
from ope.estimate import Estimate, estimate_row
from ope.inference.methods import IntervalMethod
from ope.validation import FloatArray
from ope.verdict import Level

OWNER = "evaluate_estimators"
Tables = Mapping[str, Mapping[str, Estimate]]


def evaluate_estimators(
    estimates: Any,
    true_values: Mapping[str, float] | pd.Series[Any],
    *,
    baseline: float | str | None = None,
    k: int | Sequence[int] = 1,
    level: float = 0.95,
    method: str | IntervalMethod | None = None,
    gate: Literal["lower_bound", "value"] = "lower_bound",
    failed: Literal["last", "raise"] = "last",
    refused: Literal["keep", "last"] = "keep",
) -> pd.DataFrame:
    """Compare estimators by how well they ranked, chose, missed and covered the true values.

    Parameters
    ----------
    estimates : PolicySelector or mapping of str to Estimates
        A fitted selector (its `estimates_` are read), or estimates by estimator; all of the same policies.
    true_values : mapping of str to float, or Series
        True value of every policy, of the estimates' gamma and horizon.
    baseline : float or str, optional
        True value of the policy in use, or its name in `true_values` (where it need not be a candidate). Without it the
        columns of safety are left out.
    k : int or sequence of int
        How many policies with the highest estimates are tried.
    level : float
        Level of the two-sided intervals and of the one-sided lower bounds.
    method : str or IntervalMethod, optional
        As in `Estimate.confidence_interval`.
    gate : {"lower_bound", "value"}
        What must exceed the baseline for a policy to pass: `type_1_error` and `type_2_error` judge this decision.
    failed : {"last", "raise"}
        Estimates without a finite value rank behind all others and pass no gate, or are a ValueError. They are counted in
        `n_failed`, and have no error, interval or score.
    refused : {"keep", "last"}
        Whether estimates with verdict REFUSE count as they are, or as failed ones in ranking, choice and gate.

    Returns
    -------
    DataFrame
        A row per estimator. Counts: `n_policies`, `n_failed`, `n_valid`, `n_caution`, `n_refuse` (failed ones included),
        `n_intervals`. Ranking: `spearman`, `kendall`. Choice, for each k: `regret_at_k`, `normalized_regret_at_k`,
        `precision_at_k`. Error: `mean_absolute_error` of those with a value, `mean_absolute_error_valid` of those among them
        with verdict VALID. Intervals, of those that have one: `coverage`, `coverage_valid`, `interval_score`. With a
        baseline: `type_1_error`, `type_2_error`, and for each k `safety_violation_rate_at_k`, `sharpe_ratio_at_k`. What
        cannot be computed is NaN; see `ope.metrics`.

    Raises
    ------
    ValueError, TypeError
        If the policies of estimates and true values differ, or a parameter is unusable.

    Examples
    --------
    >>> from ope.estimators import PerDecisionIS, WeightedIS
    >>> from ope.policies import TabularPolicy
    >>> from ope.problems import ModelFail
    >>> problem = ModelFail()
    >>> tables = {f"p{p}": [[p, 1.0 - p]] for p in (0.2, 0.5, 0.8)}
    >>> policies = {name: TabularPolicy(table) for name, table in tables.items()}
    >>> log = problem.sample(500, random_state=0)
    >>> estimates = {"pdis": PerDecisionIS(gamma=1.0).fit(log, policies).estimate()}
    >>> truth = {name: problem.value(policy) for name, policy in policies.items()}
    >>> evaluate_estimators(estimates, truth)[["n_policies", "spearman", "regret_at_1", "coverage"]]
               n_policies  spearman  regret_at_1  coverage
    estimator
    pdis                3       1.0          0.0       1.0
    """
    tables = _tables(estimates)
    _check_choice("gate", gate, ("lower_bound", "value"))
    _check_choice("failed", failed, ("last", "raise"))
    _check_choice("refused", refused, ("keep", "last"))
    truth, reference = _truth(true_values, baseline, tables)
    sizes = [k] if isinstance(k, (int, np.integer)) else list(k)
    rows = []
    for name, table in tables.items():
        frame = _frame(table, truth, level, method)
        _check_failed(name, frame, failed)
        row = {**_counts(frame), **_ranking(frame, sizes, refused), **_errors(frame, level)}
        rows.append(row | ({} if reference is None else _safety(frame, reference, sizes, gate, refused)))
    return pd.DataFrame(rows, index=pd.Index(list(tables), name="estimator"))


def _frame(
    table: Mapping[str, Estimate], truth: Mapping[str, float], level: float, method: str | IntervalMethod | None
) -> pd.DataFrame:
    rows = [estimate_row(table[name], level, method) for name in truth]
    kept = pd.DataFrame(rows, index=list(truth))[["value", "low", "high", "lower_bound", "verdict"]]
    return kept.assign(true=list(truth.values()))


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    verdicts = {f"n_{level.name.lower()}": int((frame["verdict"] == level.name).sum()) for level in Level}
    n_failed = int((~np.isfinite(frame["value"])).sum())
    return {"n_policies": len(frame), "n_failed": n_failed, **verdicts, "n_intervals": len(_with_interval(frame))}


def _ranking(frame: pd.DataFrame, sizes: Sequence[int], refused: str) -> dict[str, float]:
    x, y = _scores(frame, "value", refused), frame["true"].to_numpy()
    row = {"spearman": metrics.spearman(x, y, missing="last"), "kendall": metrics.kendall(x, y, missing="last")}
    for k in sizes:
        row[f"regret_at_{k}"] = metrics.regret_at_k(x, y, k, missing="last")
        row[f"normalized_regret_at_{k}"] = metrics.regret_at_k(x, y, k, normalized=True, missing="last")
        row[f"precision_at_{k}"] = metrics.precision_at_k(x, y, k, missing="last")
    return row


def _errors(frame: pd.DataFrame, level: float) -> dict[str, float]:
    valid = frame["verdict"] == Level.VALID.name
    intervals = _with_interval(frame)
    ends = (intervals["low"], intervals["high"], intervals["true"])
    return {
        "mean_absolute_error": _mean_error(frame),
        "mean_absolute_error_valid": _mean_error(frame[valid]),
        "coverage": _covered(intervals),
        "coverage_valid": _covered(intervals[intervals["verdict"] == Level.VALID.name]),
        "interval_score": metrics.interval_score(*ends, level) if len(intervals) else float("nan"),
    }


def _safety(frame: pd.DataFrame, baseline: float, sizes: Sequence[int], gate: str, refused: str) -> dict[str, float]:
    y, x = frame["true"].to_numpy(), _scores(frame, "value", refused)
    passing = _scores(frame, gate, refused)
    row = {
        "type_1_error": metrics.type_1_error(passing, y, baseline, missing="last"),
        "type_2_error": metrics.type_2_error(passing, y, baseline, missing="last"),
    }
    for k in sizes:
        row[f"safety_violation_rate_at_{k}"] = metrics.safety_violation_rate(x, y, baseline, k, missing="last")
        row[f"sharpe_ratio_at_{k}"] = metrics.sharpe_ratio_at_k(x, y, baseline, k, missing="last")
    return row


def _scores(frame: pd.DataFrame, column: str, refused: str) -> FloatArray:
    scores = frame[column].to_numpy(dtype=np.float64, copy=True)
    if refused == "last":
        scores[(frame["verdict"] == Level.REFUSE.name).to_numpy()] = np.nan
    return scores


def _with_interval(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["low"].notna() & frame["high"].notna()]


def _mean_error(frame: pd.DataFrame) -> float:
    there = frame[np.isfinite(frame["value"])]
    return metrics.mean_absolute_error(there["value"], there["true"]) if len(there) else float("nan")


def _covered(frame: pd.DataFrame) -> float:
    return metrics.coverage(frame["low"], frame["high"], frame["true"]) if len(frame) else float("nan")


# -------------------------------------------------------------------- input


def _tables(estimates: Any) -> Tables:
    tables = getattr(estimates, "estimates_", estimates)
    wanted = "a fitted PolicySelector or a mapping of estimator names to Estimates"
    if not isinstance(tables, Mapping) or not tables:
        raise TypeError(
            f"{OWNER}: `estimates` must be {wanted}, got {type(estimates).__name__}; fit the selector first."
        )
    for name, table in tables.items():
        if not isinstance(table, Mapping) or not all(isinstance(entry, Estimate) for entry in table.values()):
            raise TypeError(
                f"{OWNER}: `estimates` must be {wanted}, got {type(table).__name__} for {name!r}; fit estimators on a mapping "
                "of policies, and pass {name: estimator.estimate()}."
            )
    estimands = {entry.estimand for table in tables.values() for entry in table.values()}
    if len(estimands) > 1:
        raise ValueError(
            f"{OWNER}: `estimates` must all be of one estimand, got {sorted(estimands)}: a sum of rewards and a reward per step have no true value in common; "
            "evaluate them apart."
        )
    return tables


def _truth(true_values: Any, baseline: float | str | None, tables: Tables) -> tuple[dict[str, float], float | None]:
    if not isinstance(true_values, (Mapping, pd.Series)):
        raise TypeError(
            f"{OWNER}: `true_values` must map names of policies to numbers, got {type(true_values).__name__}; pass a dict."
        )
    known = {str(name): float(value) for name, value in true_values.items()}
    if isinstance(baseline, str) and baseline not in known:
        raise ValueError(
            f"{OWNER}: `baseline` must be a number or a name in `true_values`, got {baseline!r}; add its true value."
        )
    names = list(next(iter(tables.values())))
    for estimator, table in tables.items():
        _check_names(f"policies of {estimator!r}", set(table), set(names))
    _check_names("names in `true_values`", set(known) - ({baseline} - set(names)), set(names))
    reference = known[baseline] if isinstance(baseline, str) else baseline
    return {name: known[name] for name in names}, reference


def _check_names(what: str, have: set[str], want: set[str]) -> None:
    if have != want:
        raise ValueError(
            f"{OWNER}: the {what} must be the policies of all estimates, got too few: {sorted(want - have)}, too many: "
            f"{sorted(have - want)}; align them."
        )


def _check_failed(estimator: str, frame: pd.DataFrame, failed: str) -> None:
    without = frame.index[~np.isfinite(frame["value"])].tolist()
    if failed == "raise" and without:
        raise ValueError(
            f"{OWNER}: `estimates` must be finite, but {estimator!r} has no value for {without}; find out why "
            "(Estimate.verdict says it), or rank them last with failed='last'."
        )


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{OWNER}: `{name}` must be one of {choices}, got {value!r}; pass one of them.")
