"""`Estimate`, `Estimates`, `Interval`, `Verdict`: arithmetic, bounds, words."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.tree import DecisionTreeRegressor

from ope import Estimate, Estimates, Interval, Level, LoggedDataset, Verdict, bootstrap
from ope.estimators import FittedQEvaluation, PerDecisionIS, WeightedIS
from ope.inference import Anderson, Bootstrap, Hoeffding, IntervalNotAvailable
from ope.policies import TabularPolicy


@pytest.fixture(scope="module")
def log() -> LoggedDataset:
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, 300)
    rewards = np.where(actions == 1, 1.0, 0.2) + rng.normal(size=300)
    return LoggedDataset.from_arrays(
        np.ones((300, 1)), actions, rewards, lengths=[1] * 300, ends="terminal", behavior_prob=[0.5] * 300
    )


def estimate_of(log: LoggedDataset, p: float, **options: Any) -> Estimate:
    result: Estimate = PerDecisionIS(gamma=1.0, **options).fit(log, TabularPolicy([[1.0 - p, p]])).estimate()
    return result


def test_the_normal_interval_is_students(log: LoggedDataset) -> None:
    estimate = estimate_of(log, 0.6)
    assert estimate.scores is not None
    expected = stats.ttest_1samp(estimate.scores, 0.0).confidence_interval(0.95)
    assert tuple(estimate.confidence_interval(0.95, "normal")) == pytest.approx(
        (expected.low, expected.high), rel=1e-10
    )
    one_sided = stats.ttest_1samp(estimate.scores, 0.0, alternative="greater").confidence_interval(0.95)
    assert estimate.lower_bound(0.95, "normal") == pytest.approx(one_sided.low, rel=1e-10)
    assert estimate.upper_bound(0.95, "normal") == pytest.approx(2 * estimate.value - one_sided.low, rel=1e-10)


def test_a_difference_is_paired(log: LoggedDataset) -> None:
    a, b = estimate_of(log, 0.7), estimate_of(log, 0.6)
    assert a.scores is not None
    assert b.scores is not None
    paired = stats.ttest_rel(a.scores, b.scores).confidence_interval(0.95)
    assert tuple((a - b).confidence_interval(0.95, "normal")) == pytest.approx((paired.low, paired.high), rel=1e-9)
    assert (a - b).std_error < np.hypot(a.std_error, b.std_error) / 2
    assert (a - a).value == 0.0


def test_differences_refuse_other_questions(log: LoggedDataset) -> None:
    a = estimate_of(log, 0.7)
    with pytest.raises(ValueError, match="same episodes"):
        a - estimate_of(log.select(slice(0, 100)), 0.6)
    with pytest.raises(ValueError, match="gamma"):
        a - PerDecisionIS(gamma=0.5).fit(log, TabularPolicy([[0.5, 0.5]])).estimate()
    with pytest.raises(TypeError):
        a - 1.0  # type: ignore[operator]


def test_estimates_are_frozen_and_pickle(log: LoggedDataset) -> None:
    estimate = estimate_of(log, 0.6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.value = 1.0  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(estimate))
    assert again.value == estimate.value


def test_a_fitted_estimator_pickles(log: LoggedDataset) -> None:
    fitted = WeightedIS(gamma=1.0).fit(log, {"a": TabularPolicy([[0.4, 0.6]])})
    again = pickle.loads(pickle.dumps(fitted))
    assert again.estimate()["a"].value == fitted.estimate()["a"].value


def test_range_methods_need_scores_of_known_propensities(log: LoggedDataset) -> None:
    estimate = estimate_of(log, 0.6)
    low, high = estimate.confidence_interval(method=Hoeffding(-20.0, 20.0))
    assert low < estimate.value < high
    assert estimate.lower_bound(method=Anderson(-20.0)) < estimate.value
    for other in (
        estimate_of(log, 0.6, clip=1.1),
        WeightedIS(gamma=1.0).fit(log, TabularPolicy([[0.4, 0.6]])).estimate(),
    ):
        with pytest.raises(IntervalNotAvailable):
            other.confidence_interval(method=Hoeffding(-20.0, 20.0))


def test_bootstrap_refits_agree_with_one_step_replicates(log: LoggedDataset) -> None:
    policy = TabularPolicy([[0.4, 0.6]])
    refitted = bootstrap(WeightedIS(gamma=1.0), log, policy, n_replicates=300)
    plain = WeightedIS(gamma=1.0).fit(log, policy).estimate()
    assert refitted.replicates is not None
    assert np.std(refitted.replicates) == pytest.approx(plain.std_error, rel=0.12)
    narrow = refitted.confidence_interval(method=Bootstrap("bayesian"))
    assert narrow.low < refitted.value < narrow.high


def test_replicates_alone_give_error_interval_and_paired_differences(log: LoggedDataset) -> None:
    fqe = FittedQEvaluation(gamma=1.0, regressor=DecisionTreeRegressor(), n_bootstrap=60)
    both = fqe.fit(log, {"a": TabularPolicy([[0.4, 0.6]]), "b": TabularPolicy([[0.5, 0.5]])}).estimate()
    assert both["a"].influence is None
    assert both["a"].std_error > 0
    interval = both["a"].confidence_interval()
    assert interval.method == "basic"
    difference = both["a"] - both["b"]
    assert difference.replicates is not None
    assert difference.std_error < both["a"].std_error


def test_a_failed_entry_shows_its_reason(log: LoggedDataset) -> None:
    estimates = (
        PerDecisionIS(gamma=1.0)
        .fit(log, {"bad": TabularPolicy([[1.0]]), "good": TabularPolicy([[0.5, 0.5]])})
        .estimate()
    )
    assert np.isnan(estimates["bad"].value)
    assert estimates["bad"].error == estimates["bad"].verdict.reasons[0]
    assert np.isnan(tuple(estimates["bad"].confidence_interval())).all()
    frame = estimates.to_frame()
    assert frame.loc["bad", "verdict"] == "REFUSE"
    assert frame.loc["good", "verdict"] == "VALID"
    assert np.isnan(estimates.influence[:, 0]).all()
    assert np.isfinite(estimates.influence[:, 1]).all()


def test_words(log: LoggedDataset) -> None:
    estimate = estimate_of(log, 0.99)
    text, markup = estimate.summary(), estimate._repr_html_()
    assert "95 % interval" in text
    assert "95 % interval" in markup
    assert repr(estimate).startswith("Estimate(PerDecisionIS")
    named = PerDecisionIS(gamma=1.0).fit(log, {"<b>": TabularPolicy([[0.5, 0.5]])}).estimate()
    assert "<b>" not in named._repr_html_().replace("&lt;b&gt;", "")
    assert "&lt;b&gt;" in named["<b>"]._repr_html_()


def test_levels_outside_zero_to_one_are_refused(log: LoggedDataset) -> None:
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="level"):
            estimate_of(log, 0.6).confidence_interval(level)


def test_verdicts_combine() -> None:
    caution, refuse = Verdict(Level.CAUTION, ("a",)), Verdict(Level.REFUSE, ("b",))
    assert Verdict.worst([caution, refuse, Verdict()]) == Verdict(Level.REFUSE, ("b", "a"))
    assert Verdict.of([None, (Level.CAUTION, "a"), (Level.REFUSE, "b")]) == Verdict(Level.REFUSE, ("b", "a"))
    assert Verdict.of([]) == Verdict()
    assert 0.5 in Interval(0.0, 1.0, 0.95, "normal", caution)
    assert len(Estimates({})) == 0
