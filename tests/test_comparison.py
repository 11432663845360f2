"""`Comparison`: paired differences, their tests, simultaneous intervals, ranks; what cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ope import Comparison, Estimate, LoggedDataset, bootstrap
from ope.estimate import Estimates
from ope.estimators import LSTDQ, PerDecisionIS
from ope.inference import IntervalNotAvailable
from ope.policies import TabularPolicy
from ope.problems import RandomMDP
from ope.verdict import Level, Verdict


@pytest.fixture(scope="module")
def log() -> LoggedDataset:
    return RandomMDP(horizon=4, random_state=3).sample(300, random_state=0)


@pytest.fixture(scope="module")
def candidates() -> dict[str, TabularPolicy]:
    behavior = np.asarray(RandomMDP(horizon=4, random_state=3).behavior)
    rng = np.random.default_rng(0)
    return {f"p{i}": TabularPolicy(0.6 * behavior + 0.4 * rng.dirichlet(np.ones(2), len(behavior))) for i in range(4)}


@pytest.fixture(scope="module")
def estimates(log: LoggedDataset, candidates: dict[str, TabularPolicy]) -> Estimates:
    found: Estimates = PerDecisionIS(gamma=0.9).fit(log, candidates).estimate()
    return found


def test_means_are_compared_by_the_paired_t_test(estimates: Estimates) -> None:
    comparison = estimates.compare()
    for a in estimates:
        for b in estimates:
            if a == b:
                assert comparison.p_value.loc[a, b] == 1.0
                continue
            test = stats.ttest_rel(estimates[a].scores, estimates[b].scores)
            assert comparison.difference.loc[a, b] == pytest.approx(estimates[a].value - estimates[b].value)
            assert comparison.std_error.loc[a, b] == pytest.approx((estimates[a] - estimates[b]).std_error, rel=1e-9)
            assert comparison.p_value.loc[a, b] == pytest.approx(test.pvalue, rel=1e-6)


@pytest.mark.parametrize("method", ["holm", "hommel"])
def test_adjusted_by_statsmodels(estimates: Estimates, method: str) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    comparison = estimates.compare()
    above = np.triu_indices(4, k=1)
    expected = multitest.multipletests(comparison.p_value.to_numpy()[above], method=method)[1]
    adjusted = comparison.adjusted(method).to_numpy()
    np.testing.assert_allclose(adjusted[above], expected, rtol=1e-9)
    np.testing.assert_array_equal(adjusted, adjusted.T)
    assert (np.diag(adjusted) == 1.0).all()


def test_adjustments_by_dependence_lie_between_none_and_bonferroni(estimates: Estimates) -> None:
    comparison = estimates.compare()
    single, most = comparison.p_value.to_numpy(), comparison.adjusted("bonferroni").to_numpy()
    for method in ("romano_wolf", "max_t"):
        adjusted = comparison.adjusted(method).to_numpy()
        assert (adjusted >= single - 0.01).all()
        assert (adjusted <= most + 0.01).all()
    assert (comparison.adjusted("romano_wolf") <= comparison.adjusted("max_t") + 1e-12).to_numpy().all()


def test_two_are_a_single_interval(estimates: Estimates) -> None:
    two = Comparison({name: estimates[name] for name in ("p0", "p1")})
    row: Any = two.simultaneous(0.9).loc[("p0", "p1")]
    low, high = (estimates["p0"] - estimates["p1"]).confidence_interval(0.9, "normal")
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["lower_bound"] == pytest.approx((estimates["p0"] - estimates["p1"]).lower_bound(0.9, "normal"))
    assert two.adjusted("holm").loc["p0", "p1"] == pytest.approx(two.p_value.loc["p0", "p1"])


def test_simultaneous_intervals_are_wider_and_agree_with_their_p_values(estimates: Estimates) -> None:
    comparison = estimates.compare()
    table: Any = comparison.simultaneous(0.95)
    against: Any = comparison.simultaneous(0.95, against="p0")
    for a, b in table.index:
        low, high = (estimates[a] - estimates[b]).confidence_interval(0.95, "normal")
        assert table.loc[(a, b), "low"] < low < high < table.loc[(a, b), "high"]
    outside = (table["low"] > 0) | (table["high"] < 0)
    clear = (table["p_adjusted"] - 0.05).abs() > 0.005
    assert (outside == (table["p_adjusted"] <= 0.05))[clear].all()
    assert against.index.tolist() == [(name, "p0") for name in ("p1", "p2", "p3")]
    width, whole = against["high"] - against["low"], table["high"] - table["low"]
    assert (width.to_numpy() < whole.loc[[("p0", "p1"), ("p0", "p2"), ("p0", "p3")]].to_numpy()).all()
    with pytest.raises(ValueError, match="`against` must be an estimate with a standard error, got 'none'"):
        comparison.simultaneous(against="none")


def test_bounds_of_biases_widen_differences(estimates: Estimates) -> None:
    wide = {"p0": replace(estimates["p0"], widening=0.1), "p1": replace(estimates["p1"], widening=0.2)}
    plain: Any = Comparison({name: estimates[name] for name in wide}).simultaneous().loc[("p0", "p1")]
    row: Any = Comparison(wide).simultaneous().loc[("p0", "p1")]
    assert row["low"] == pytest.approx(plain["low"] - 0.3)
    assert row["high"] == pytest.approx(plain["high"] + 0.3)
    assert row["lower_bound"] == pytest.approx(plain["lower_bound"] - 0.3)


def test_p_values_allow_for_bounds_of_biases_as_intervals_do(estimates: Estimates) -> None:
    gap = abs(estimates["p0"].value - estimates["p1"].value)
    error = (estimates["p0"] - estimates["p1"]).std_error
    # One side of what is left of the difference is at its own level exactly where the interval ends at 0.
    for share, found in ((0.0, True), (0.5, False), (1.5, False)):
        shift = 4.0 * error - gap if found else 0.0
        first = replace(estimates["p0"], value=estimates["p1"].value + gap + shift, widening=share * (gap + shift))
        comparison = Comparison({"p0": first, "p1": estimates["p1"]})
        left = max(gap + shift - first.widening, 0.0) / error
        expected = 2.0 * stats.t.sf(left, first.n_episodes - 1)
        row: Any = comparison.simultaneous(0.95).loc[("p0", "p1")]
        assert comparison.p_value.loc["p0", "p1"] == pytest.approx(expected)
        assert comparison.to_frame()[["p_value", "p_adjusted"]].iloc[0].tolist() == pytest.approx([expected] * 2)
        for p in (row["p_adjusted"], *(comparison.adjusted(m).loc["p0", "p1"] for m in ("max_t", "romano_wolf"))):
            assert p == pytest.approx(expected, abs=0.01)
        assert (row["low"] > 0.0) == (row["p_adjusted"] <= 0.05) == found


def test_best_and_ranks_name_the_candidates(estimates: Estimates) -> None:
    comparison = estimates.compare()
    best = max(estimates, key=lambda name: estimates[name].value)
    assert best in comparison.best_names()
    ranks = comparison.ranks()
    assert ranks.loc[best, "rank"] == 1
    assert ((ranks["low"] <= ranks["rank"]) & (ranks["rank"] <= ranks["high"])).all()
    for loser in set(estimates) - set(comparison.best_names()):
        assert estimates[loser].value < estimates[best].value


def test_frame_has_a_row_per_pair_the_better_one_first(estimates: Estimates) -> None:
    table = estimates.compare().to_frame(level=0.9)
    assert len(table) == 6
    assert (table["difference"] >= 0).all()
    row = table.iloc[0]
    low, high = (estimates[row["a"]] - estimates[row["b"]]).confidence_interval(0.9)
    assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_replicates_take_the_place_of_influence(log: LoggedDataset, candidates: dict[str, TabularPolicy]) -> None:
    found = {
        name: replace(bootstrap(LSTDQ(gamma=0.9), log, candidates[name], n_replicates=60), influence=None)
        for name in ("p0", "p1")
    }
    comparison = Comparison(found)
    replicates = np.asarray(found["p0"].replicates) - np.asarray(found["p1"].replicates)
    assert comparison.std_error.loc["p0", "p1"] == pytest.approx(float(np.std(replicates, ddof=1)), rel=1e-9)
    other = replace(found["p1"], resample_id="another")
    assert Comparison({"p0": found["p0"], "p1": other}).std_error.isna().loc["p0", "p1"]


def test_pairs_without_an_interval_are_rows_that_say_why(
    log: LoggedDataset, candidates: dict[str, TabularPolicy]
) -> None:
    found = {
        name: replace(bootstrap(LSTDQ(gamma=0.9), log, candidates[name], n_replicates=20), influence=None)
        for name in ("p0", "p1", "p2")
    }
    comparison = Comparison(found)
    with pytest.raises(IntervalNotAvailable) as told:
        comparison.interval("p0", "p1")
    table = comparison.to_frame()
    assert table[["low", "high"]].isna().all(axis=None)
    assert np.isfinite(table[["difference", "std_error", "p_value", "p_adjusted"]]).all(axis=None)
    assert table["reason"].tolist() == [str(told.value)] * 3
    note = f"3 of 3 differences have no interval: {told.value}"
    assert f"- {note}" in comparison.summary()
    assert note in comparison._repr_html_()
    enough = comparison.to_frame(level=0.5)
    assert enough["reason"].tolist() == [""] * 3
    assert (enough["low"] < enough["high"]).all()
    with pytest.raises(ValueError, match="`level` must"):
        comparison.to_frame(level=95)


def test_what_has_no_error_is_listed_and_not_compared(estimates: Estimates) -> None:
    refused = Verdict(Level.REFUSE, ("No value.",))
    failed = replace(estimates["p3"], value=float("nan"), influence=None, scores=None, verdict=refused, policy="lost")
    comparison = Comparison({"p0": estimates["p0"], "p1": estimates["p1"], "lost": failed})
    assert comparison.names == ("p0", "p1", "lost")
    assert comparison.compared == ("p0", "p1")
    assert comparison.p_value.isna().loc["lost", "p0"]
    assert len(comparison.to_frame()) == 1
    words = comparison.summary()
    assert "'lost' has no standard error" in words
    assert "'lost' is REFUSE" in words
    nothing = Comparison({"lost": failed})
    assert nothing.summary().count("No pair can be compared") == 1
    assert nothing.adjusted("romano_wolf").isna().all(axis=None)
    assert len(nothing.simultaneous()) == 0
    with pytest.raises(IntervalNotAvailable, match="none of the estimates has a standard error"):
        nothing.best()


def test_twins_do_not_differ(estimates: Estimates) -> None:
    comparison = Comparison({"one": estimates["p0"], "two": estimates["p0"], "other": estimates["p1"]})
    assert comparison.std_error.loc["one", "two"] == 0.0
    assert comparison.p_value.loc["one", "two"] == 1.0
    assert comparison.adjusted("romano_wolf").loc["one", "two"] == 1.0
    assert set(comparison.best_names()) in ({"one", "two"}, {"other"}, {"one", "two", "other"})


def test_estimates_of_other_questions_are_refused(estimates: Estimates, log: LoggedDataset) -> None:
    shorter = PerDecisionIS(gamma=0.9).fit(log.select(slice(0, 50)), TabularPolicy(np.full((5, 2), 0.5))).estimate()
    for other in (replace(estimates["p0"], gamma=0.5), shorter, replace(estimates["p0"], horizon=7)):
        with pytest.raises(ValueError, match="all `estimates` must be of one log"):
            Comparison({"p0": estimates["p0"], "other": other})
    with pytest.raises(ValueError, match="at least one"):
        Comparison({})
    with pytest.raises(TypeError, match="mapping of names to Estimate, got list"):
        Comparison([estimates["p0"]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`level` must lie in \(0, 1\), got 95"):
        estimates.compare().simultaneous(95)


def test_words_of_text_and_html_are_the_same(estimates: Estimates) -> None:
    cautious: dict[str, Estimate] = dict(estimates)
    cautious["<p0>"] = replace(cautious.pop("p0"), verdict=Verdict(Level.CAUTION, ("Few episodes.",)))
    comparison = Comparison(cautious)
    text, page = comparison.summary(), comparison._repr_html_()
    assert repr(comparison) == "Comparison(p1, p2, p3, <p0>)"
    assert "'<p0>' is CAUTION" in text
    assert "&lt;p0&gt;" in page
    assert "<p0>" not in page
    assert f"{comparison.to_frame()['difference'].iloc[0]:.4g}" in text
    assert f"{comparison.to_frame()['difference'].iloc[0]:.4g}" in page
