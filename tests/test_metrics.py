"""`ope.metrics` against plain loops and numbers made by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ope import metrics

NAN = float("nan")
RANKING: list[Callable[..., Any]] = [metrics.spearman, metrics.kendall, metrics.regret_at_k, metrics.precision_at_k]
SAFETY: list[Callable[..., Any]] = [metrics.type_1_error, metrics.type_2_error, metrics.safety_violation_rate]
# Few distinct values, so that ties are the rule.
few = st.sampled_from([-1.0, 0.0, 0.25, 1.0, 3.0])
pairs = st.lists(st.tuples(few, few), min_size=1, max_size=7)


def plain_top(x: list[float], y: list[float], k: int) -> list[int]:
    """Return the k positions with the highest estimates, the worse policy first among equals."""
    left, chosen = list(range(len(x))), []
    for _ in range(k):
        best = left[0]
        for i in left[1:]:
            if x[i] > x[best] or (x[i] == x[best] and y[i] < y[best]):
                best = i
        chosen.append(best)
        left.remove(best)
    return chosen


def plain_ranks(x: list[float]) -> list[float]:
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def plain_spearman(x: list[float], y: list[float]) -> float:
    a, b = plain_ranks(x), plain_ranks(y)
    mean = (len(x) + 1) / 2
    cross = sum((p - mean) * (q - mean) for p, q in zip(a, b, strict=True))
    squares = sum((p - mean) ** 2 for p in a) * sum((q - mean) ** 2 for q in b)
    return cross / math.sqrt(squares) if squares else NAN


def plain_kendall(x: list[float], y: list[float]) -> float:
    both, in_x, in_y = 0, 0, 0
    for i, j in itertools.combinations(range(len(x)), 2):
        p, q = (x[i] > x[j]) - (x[i] < x[j]), (y[i] > y[j]) - (y[i] < y[j])
        both, in_x, in_y = both + p * q, in_x + p * p, in_y + q * q
    return both / math.sqrt(in_x * in_y) if in_x * in_y else NAN


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_ranking_agrees_with_plain_loops(values: list[tuple[float, float]]) -> None:
    x, y = [a for a, _ in values], [b for _, b in values]
    assert metrics.spearman(x, y) == pytest.approx(plain_spearman(x, y), abs=1e-12, nan_ok=True)
    assert metrics.kendall(x, y) == pytest.approx(plain_kendall(x, y), abs=1e-12, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(pairs, st.sampled_from([-1.0, 0.0, 0.5]))
def test_choice_agrees_with_plain_loops(values: list[tuple[float, float]], baseline: float) -> None:
    x, y = [a for a, _ in values], [b for _, b in values]
    table = metrics.top_k_risk_return(x, y, baseline)
    assert table.index.tolist() == list(range(1, len(x) + 1))
    for k in table.index:
        chosen = [y[i] for i in plain_top(x, y, k)]
        regret, spread = max(y) - max(chosen), max(y) - min(y)
        among = sum(value >= sorted(y, reverse=True)[k - 1] for value in chosen)
        mean = sum(chosen) / k
        std = math.sqrt(sum((value - mean) ** 2 for value in chosen) / k)
        sharpe = (max(chosen) - baseline) / std if len(set(chosen)) > 1 else NAN
        assert metrics.regret_at_k(x, y, k) == regret
        assert metrics.regret_at_k(x, y, k, normalized=True) == (regret / spread if spread else 0.0)
        assert metrics.precision_at_k(x, y, k) == pytest.approx(among / k)
        assert metrics.safety_violation_rate(x, y, baseline, k) == pytest.approx(sum(v < baseline for v in chosen) / k)
        assert metrics.sharpe_ratio_at_k(x, y, baseline, k) == pytest.approx(sharpe, nan_ok=True)
        expected = [chosen[-1], max(chosen), min(chosen), mean, std, regret]
        assert table.loc[k, ["kth", "best", "worst", "mean", "std", "regret"]].tolist() == pytest.approx(expected)
        assert table.loc[k, "sharpe_ratio"] == pytest.approx(sharpe, nan_ok=True)
        assert table.loc[k, "safety_violation_rate"] == pytest.approx(sum(v < baseline for v in chosen) / k)


@settings(max_examples=40, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_input_plays_no_part(values: list[tuple[float, float]], random: Any) -> None:
    shuffled = values.copy()
    random.shuffle(shuffled)
    for function in (metrics.spearman, metrics.kendall, metrics.regret_at_k, metrics.precision_at_k):
        x, y = function(*zip(*values, strict=True)), function(*zip(*shuffled, strict=True))
        assert x == pytest.approx(y, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(pairs, few)
def test_gate_errors_agree_with_plain_counts(values: list[tuple[float, float]], baseline: float) -> None:
    x, y = [a for a, _ in values], [b for _, b in values]
    better = [a > baseline for a, b in values if b > baseline]
    others = [a > baseline for a, b in values if b <= baseline]
    one, two = metrics.type_1_error(x, y, baseline), metrics.type_2_error(x, y, baseline)
    assert one == pytest.approx(sum(others) / len(others) if others else NAN, nan_ok=True)
    assert two == pytest.approx(1 - sum(better) / len(better) if better else NAN, nan_ok=True)


def test_perfect_and_reversed_estimates() -> None:
    true = np.array([0.0, 1.0, 2.0, 4.0])
    assert metrics.spearman(10 * true, true) == metrics.kendall(10 * true, true) == 1.0
    assert metrics.spearman(-true, true) == metrics.kendall(-true, true) == -1.0
    assert metrics.regret_at_k(-true, true, 2) == 3.0
    assert metrics.regret_at_k(-true, true, 2, normalized=True) == 0.75
    assert metrics.precision_at_k(true, true, 2) == 1.0
    assert metrics.precision_at_k(-true, true, 2) == 0.0


def test_an_estimator_that_tells_no_policies_apart_gains_nothing() -> None:
    assert metrics.regret_at_k([1.0, 1.0, 1.0], [0.0, 2.0, 5.0], normalized=True) == 1.0
    assert math.isnan(metrics.spearman([1.0, 1.0], [0.0, 2.0]))
    assert math.isnan(metrics.kendall([0.0, 2.0], [1.0, 1.0]))
    assert metrics.regret_at_k([0.0, 2.0], [1.0, 1.0], normalized=True) == 0.0
    assert metrics.precision_at_k([0.0, 2.0], [1.0, 1.0]) == 1.0


def test_sharpe_ratio_is_that_of_the_paper() -> None:
    # Values 10, 6, 2 of the three best by estimate: best 10, divisor 3: std = sqrt(32 / 3).
    assert metrics.sharpe_ratio_at_k([3, 2, 1, 0], [6.0, 10.0, 2.0, 50.0], 5.0, 3) == pytest.approx(
        5 / math.sqrt(32 / 3)
    )
    assert math.isnan(metrics.sharpe_ratio_at_k([3, 2], [6.0, 10.0], 5.0, 1))
    # Three equal values have a standard deviation of rounding error in floats.
    assert math.isnan(metrics.sharpe_ratio_at_k([3, 2, 1], [0.1, 0.1, 0.1], 0.0, 3))


def test_errors_and_intervals() -> None:
    assert metrics.mean_absolute_error([1.0, -1.0], [0.0, 1.0]) == 1.5
    low, high, true = [0.0, 0.0, -np.inf], [1.0, 1.0, 1.0], [1.0, 1.5, -7.0]
    assert metrics.coverage(low, high, true) == pytest.approx(2 / 3)
    assert metrics.interval_score(low, high, true) == np.inf
    for end in (np.inf, -np.inf):
        assert metrics.interval_score([end, 0.0], [end, 1.0], [0.0, 0.0]) == np.inf
    assert metrics.interval_score([2.0, 1.0], [2.0, 2.0], [2.0, 1.5]) == 0.5
    # Widths 1 and 1; the second misses by .5 above, the third by 2 below, at 2 / .2 each.
    scored = metrics.interval_score([0.0, 0.0, 5.0], [1.0, 1.0, 6.0], [1.0, 1.5, 3.0], level=0.8)
    assert scored == pytest.approx((1 + (1 + 10 * 0.5) + (1 + 10 * 2)) / 3)


def test_interval_score_is_least_at_the_true_quantiles() -> None:
    x = np.random.default_rng(0).normal(size=20000)

    def score(half: float) -> float:
        return metrics.interval_score(np.full(len(x), -half), np.full(len(x), half), x, level=0.9)

    assert score(1.645) < min(score(1.3), score(2.0))


@pytest.mark.parametrize("bad", [NAN, np.inf, -np.inf])
def test_failed_estimates_are_refused_or_ranked_last(bad: float) -> None:
    true, estimates = [5.0, 1.0, 2.0, 0.0], [bad, 1.0, 2.0, bad]
    for function in RANKING:
        with pytest.raises(ValueError, match=r"`estimates` must be finite.*positions 0, 3.*missing='last'"):
            function(estimates, true)
    assert metrics.regret_at_k(estimates, true, missing="last") == 3.0
    assert metrics.precision_at_k(estimates, true, 2, missing="last") == 0.5
    last = [-9.0, 1.0, 2.0, -9.0]
    assert metrics.spearman(estimates, true, missing="last") == metrics.spearman(last, true)
    assert metrics.kendall(estimates, true, missing="last") == metrics.kendall(last, true)
    assert metrics.type_1_error(estimates, true, 1.5, missing="last") == 0.0
    assert metrics.type_2_error(estimates, true, 1.5, missing="last") == 0.5
    assert metrics.safety_violation_rate(estimates, true, 1.5, 4, missing="last") == 0.5
    with pytest.raises(ValueError, match="`estimates` must be finite"):
        metrics.mean_absolute_error(estimates, true)


@pytest.mark.parametrize("k", [0, 3, -1, 1.0, True, None])
def test_k_out_of_bounds(k: Any) -> None:
    for function in (metrics.regret_at_k, metrics.precision_at_k):
        with pytest.raises(ValueError, match="`k` must be an integer from 1 to the 2 policies"):
            function([1.0, 2.0], [1.0, 2.0], k)
    for risk in (metrics.safety_violation_rate, metrics.sharpe_ratio_at_k):
        with pytest.raises(ValueError, match="`k` must be"):
            risk([1.0, 2.0], [1.0, 2.0], 0.0, k)
    if k is not None:
        with pytest.raises(ValueError, match="`k` must be"):
            metrics.top_k_risk_return([1.0, 2.0], [1.0, 2.0], 0.0, [k])


def test_bad_arrays() -> None:
    with pytest.raises(ValueError, match="one entry per true value \\(1\\), got 2"):
        metrics.spearman([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="`true_values` must be finite"):
        metrics.kendall([1.0, 2.0], [1.0, NAN], missing="last")
    with pytest.raises(ValueError, match="K >= 1"):
        metrics.spearman([], [])
    with pytest.raises(TypeError, match="must be numeric"):
        metrics.spearman(["a"], [1.0])
    with pytest.raises(ValueError, match="`missing` must be 'raise' or 'last'"):
        metrics.spearman([1.0], [1.0], missing="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`low` must not exceed `high`.*positions 1"):
        metrics.coverage([0.0, 2.0], [1.0, 1.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="`high` must not be NaN"):
        metrics.interval_score([0.0], [NAN], [0.0])
    with pytest.raises(ValueError, match="`level` must lie in"):
        metrics.interval_score([0.0], [1.0], [0.0], level=1.0)
    for function in SAFETY:
        with pytest.raises(TypeError, match="`baseline` must be a finite number"):
            function([1.0], [1.0], "logged")
        with pytest.raises(ValueError, match="`baseline` must be a finite number"):
            function([1.0], [1.0], NAN)
