"""`evaluate_estimators` against counts made by hand, from estimates and from a fitted selector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ope
from ope import Estimate, Estimates, Level, PolicySelector, Verdict, evaluate_estimators, metrics
from ope.estimators import PerDecisionIS, WeightedIS
from ope.policies import TabularPolicy
from ope.problems import ModelFail

NAMES = ("a", "b", "c", "d")
TRUE = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}
PSI = np.array([1.0, -1.0, 2.0, -2.0])
NAN = float("nan")


def entry(name: str, value: float, level: Level = Level.VALID, scale: float = 1.0) -> Estimate:
    influence = scale * PSI if np.isfinite(value) else None
    verdict = Verdict(level, () if level == Level.VALID else ("said why",))
    keys = np.arange(4, dtype=np.uint64)
    return Estimate(value, 1.0, None, keys, "log", "Some", name, influence, verdict=verdict)


def some(*values: float, levels: tuple[Level, ...] = (Level.VALID,) * 4, scale: float = 1.0) -> Estimates:
    rows = zip(NAMES, values, levels, strict=True)
    return Estimates({name: entry(name, value, level, scale) for name, value, level in rows})


def row_of(frame: pd.DataFrame, name: str = "x") -> dict[Any, Any]:
    return frame.to_dict("index")[name]


def pick(row: dict[Any, Any], *names: str) -> list[Any]:
    return [row[name] for name in names]


def test_each_column_is_what_its_name_says() -> None:
    levels = (Level.VALID, Level.CAUTION, Level.VALID, Level.REFUSE)
    table = some(2.5, 2.0, 2.2, -4.0, levels=levels, scale=0.1)
    row = row_of(evaluate_estimators({"x": table}, TRUE, baseline=1.5, k=[1, 2], method="normal"), "x")
    assert pick(row, "n_policies", "n_failed", "n_valid", "n_caution", "n_refuse", "n_intervals") == [
        4,
        0,
        2,
        1,
        1,
        4,
    ]
    assert row["spearman"] == pytest.approx(0.8)
    assert row["kendall"] == pytest.approx(4 / 6)
    assert pick(row, "regret_at_1", "normalized_regret_at_1", "precision_at_1") == [0.0, 0.0, 1.0]
    assert pick(row, "regret_at_2", "precision_at_2") == [0.0, 0.5]  # a and c
    assert row["mean_absolute_error"] == pytest.approx((0.5 + 0.0 + 1.2 + 4.0) / 4)
    assert row["mean_absolute_error_valid"] == pytest.approx((0.5 + 1.2) / 2)
    # Half widths: 3.182 * .1 * sqrt(10 / 12) = .29; only b is inside.
    half = 3.182446305284263 * 0.1 * math.sqrt(10 / 12)
    assert row["coverage"] == 0.25
    assert row["coverage_valid"] == 0.0
    missed = [0.5 - half, 0.0, 1.2 - half, 4.0 - half]
    assert row["interval_score"] == pytest.approx(2 * half + 40 * sum(missed) / 4)
    # Lower bounds at 2.353 standard errors of .091: 2.29, 1.79, 1.99: c passes and is not better, b passes and is.
    assert pick(row, "type_1_error", "type_2_error") == [0.5, 0.0]
    assert pick(row, "safety_violation_rate_at_1", "safety_violation_rate_at_2") == [0.0, 0.5]
    assert row["sharpe_ratio_at_2"] == pytest.approx(1.5)
    assert math.isnan(row["sharpe_ratio_at_1"])


def test_the_gate_is_the_lower_bound_unless_told_otherwise() -> None:
    wide = {"wide": some(2.5, 2.0, 1.0, 0.0, scale=10.0)}
    bound = row_of(evaluate_estimators(wide, TRUE, baseline=1.5), "wide")
    value = row_of(evaluate_estimators(wide, TRUE, baseline=1.5, gate="value"), "wide")
    assert pick(bound, "type_1_error", "type_2_error") == [0.0, 1.0]
    assert pick(value, "type_1_error", "type_2_error") == [0.0, 0.0]


def test_failed_estimates_rank_last_and_have_no_error() -> None:
    table = {"x": some(NAN, 2.0, 1.0, 0.5, levels=(Level.REFUSE, *[Level.VALID] * 3))}
    row = row_of(evaluate_estimators(table, TRUE, baseline=0.5), "x")
    assert pick(row, "n_failed", "n_refuse", "n_intervals") == [1, 1, 3]
    assert row["regret_at_1"] == 1.0
    assert row["mean_absolute_error"] == pytest.approx(0.5 / 3)
    assert row["spearman"] == metrics.spearman([-9.0, 2.0, 1.0, 0.5], [3.0, 2.0, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"'x' has no value for \['a'\]"):
        evaluate_estimators(table, TRUE, failed="raise")


def test_refused_estimates_can_be_ranked_last() -> None:
    table = {"x": some(9.0, 8.0, 0.2, 0.1, levels=(Level.VALID, Level.VALID, Level.VALID, Level.REFUSE))}
    flipped = {"x": some(0.0, 1.0, 2.0, 9.0, levels=(Level.VALID, Level.VALID, Level.VALID, Level.REFUSE))}
    assert evaluate_estimators(table, TRUE, refused="last").loc["x", "regret_at_1"] == 0.0
    assert evaluate_estimators(flipped, TRUE).loc["x", "regret_at_1"] == 3.0
    last = row_of(evaluate_estimators(flipped, TRUE, refused="last", baseline=0.0, gate="value"), "x")
    assert last["regret_at_1"] == 2.0
    assert last["type_1_error"] == 0.0
    # Errors and coverage are of the numbers that were reported.
    assert last["mean_absolute_error"] == pytest.approx((3 + 1 + 1 + 9) / 4)


def test_nothing_but_failures_is_a_row_of_nan() -> None:
    row = row_of(
        evaluate_estimators({"x": some(NAN, NAN, NAN, NAN, levels=(Level.REFUSE,) * 4)}, TRUE, baseline="b"), "x"
    )
    assert np.isnan(pick(row, "spearman", "mean_absolute_error", "coverage", "interval_score")).all()
    assert row["normalized_regret_at_1"] == 1.0
    assert row["type_2_error"] == 1.0


def test_a_fitted_selector_and_its_estimates_give_the_same() -> None:
    problem = ModelFail()
    policies = {f"p{p}": TabularPolicy([[p, 1.0 - p]]) for p in (0.3, 0.6, 0.9)}
    log = problem.sample(300, random_state=1)
    truth = {name: problem.value(policy) for name, policy in policies.items()}
    truth["logged"] = problem.value(problem.behavior)
    selector = PolicySelector([PerDecisionIS(gamma=1.0), WeightedIS(gamma=1.0)]).fit(log, policies)
    table = evaluate_estimators(selector, pd.Series(truth), baseline="logged")
    assert table.index.tolist() == ["PerDecisionIS", "WeightedIS"]
    pd.testing.assert_frame_equal(table, evaluate_estimators(dict(selector.estimates_), truth, baseline="logged"))
    for name, estimates in selector.estimates_.items():
        errors = [abs(estimates[policy].value - truth[policy]) for policy in policies]
        inside = [truth[policy] in estimates[policy].confidence_interval(0.95) for policy in policies]
        assert table.loc[name, "mean_absolute_error"] == pytest.approx(np.mean(errors))
        assert table.loc[name, "coverage"] == pytest.approx(np.mean(inside))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3.0, TRUE), TypeError, "`estimates` must be a fitted PolicySelector or a mapping"),
        (({}, TRUE), TypeError, "`estimates` must be"),
        (({"x": 3.0}, TRUE), TypeError, "got float for 'x'"),
        (({"x": {"a": 3.0}}, TRUE), TypeError, "got dict for 'x'"),
        (({"x": some(1, 2, 3, 4)}, [1.0, 2.0]), TypeError, "`true_values` must map names"),
        (({"x": some(1, 2, 3, 4)}, {"a": 1.0}), ValueError, r"too few: \['b', 'c', 'd'\]"),
        (({"x": some(1, 2, 3, 4)}, {**TRUE, "e": 1.0}), ValueError, r"too many: \['e'\]"),
        (({"x": some(1, 2, 3, 4), "y": Estimates({"a": entry("a", 1.0)})}, TRUE), ValueError, "policies of 'y'"),
    ],
)
def test_bad_estimates_and_truths(arguments: tuple[Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate_estimators(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "e"}, "`baseline` must be a number or a name"),
        ({"gate": "upper"}, "`gate` must be one of"),
        ({"failed": "drop"}, "`failed` must be one of"),
        ({"refused": "drop"}, "`refused` must be one of"),
        ({"k": 5}, "`k` must be an integer from 1 to the 4 policies"),
        ({"level": 1.5}, "`level` must lie in"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_estimators({"x": some(1, 2, 3, 4)}, TRUE, **options)


def test_public_names() -> None:
    assert ope.metrics is metrics
    assert ope.sensitivity.__name__ == "ope.sensitivity"
