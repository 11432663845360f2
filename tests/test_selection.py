"""`PolicySelector`: the choice, the gate, what it says, failures that stay rows, overlap, parallel work."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ope import Estimate, Level, LoggedDataset, OffPolicyEstimator, PolicySelector, Verdict
from ope.estimators import LSTDQ, DoublyRobust, ImportanceSampling, PerDecisionIS, TrajectoryIS, WeightedIS
from ope.inference import max_t_quantile, selected_value, uniforms
from ope.policies import (
    BCQ,
    CQL,
    LSPI,
    ColumnPolicy,
    EpsilonGreedy,
    FunctionPolicy,
    PreprocessedLearner,
    TabularPolicy,
)
from ope.policy import Policy
from ope.problems import RandomMDP, RiverSwim


class Broken(Policy):
    """A policy that cannot be asked."""

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"logged_prob", "all_probs"})

    def predict_proba(self, states: Any) -> Any:  # noqa: ARG002
        raise RuntimeError("the model file is gone")


@pytest.fixture(scope="module")
def problem() -> RandomMDP:
    return RandomMDP(horizon=4, random_state=3)


@pytest.fixture(scope="module")
def log(problem: RandomMDP) -> LoggedDataset:
    return problem.sample(800, random_state=0)


@pytest.fixture(scope="module")
def candidates(problem: RandomMDP) -> dict[str, Policy]:
    behavior = np.asarray(problem.behavior)
    rng = np.random.default_rng(0)
    others = {f"p{i}": TabularPolicy(0.7 * behavior + 0.3 * rng.dirichlet(np.ones(2), len(behavior))) for i in range(4)}
    return {"behavior": TabularPolicy(behavior), **others}


def test_the_choice_is_the_highest_lower_bound(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    selector = PolicySelector([WeightedIS(gamma=1.0), LSTDQ(gamma=1.0)]).fit(log, candidates)
    bounds = {
        name: WeightedIS(gamma=1.0).fit(log, policy).estimate().lower_bound(0.95) for name, policy in candidates.items()
    }
    assert selector.primary_ == "WeightedIS"
    assert selector.best_name_ == max(bounds, key=lambda name: bounds[name])
    assert selector.best_policy_ is candidates[selector.best_name_]
    rows = selector.results_.query("estimator == 'WeightedIS'").set_index("candidate")["lower_bound"]
    assert rows.to_dict() == pytest.approx(bounds, rel=1e-12)
    assert repr(selector.best_name_) in selector.decision_
    assert selector.top_ == sorted(bounds, key=lambda name: -bounds[name])[:3]


def test_the_criterion_simultaneous_is_the_highest_joint_bound(
    log: LoggedDataset, candidates: dict[str, Policy]
) -> None:
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], "simultaneous", top_k=2).fit(log, candidates)
    table: Any = selector.simultaneous_
    assert selector.best_name_ == table["lower_bound"].idxmax() == selector.top_[0]
    assert len(selector.top_) == 2
    assert (
        "it has the highest simultaneous lower bound by PerDecisionIS" in selector.decision_
        or "but" in selector.decision_
    )
    estimates = selector.estimates_["PerDecisionIS"]
    for name, estimate in estimates.items():
        low, high = estimate.confidence_interval(0.95)
        assert table.loc[name, "low"] < low < high < table.loc[name, "high"]
        assert table.loc[name, "lower_bound"] < estimate.lower_bound(0.95)
    critical = max_t_quantile(estimates.influence, 0.05, two_sided=False)
    single = 1 - stats.t(log.n_episodes - 1).sf(critical)
    name = str(selector.best_name_)
    assert table.loc[name, "lower_bound"] == pytest.approx(estimates[name].lower_bound(single), rel=1e-9)


def test_the_criterion_value_ignores_uncertainty(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    selector = PolicySelector([TrajectoryIS(gamma=1.0)], criterion="value").fit(log, candidates)
    values = {name: TrajectoryIS(gamma=1.0).fit(log, policy).estimate().value for name, policy in candidates.items()}
    assert selector.best_name_ == max(values, key=lambda name: values[name])


def test_every_candidate_and_estimator_has_a_row(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    named = {"a": PerDecisionIS(gamma=1.0), "b": LSTDQ(gamma=1.0)}
    results = PolicySelector(named).fit(log, candidates).results_
    assert list(zip(results["candidate"], results["estimator"], strict=True)) == [
        (c, e) for e in named for c in candidates
    ]


def test_same_classes_get_names_of_their_own(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    selector = PolicySelector([ImportanceSampling(gamma=1.0), ImportanceSampling(gamma=1.0, clip=5.0)]).fit(
        log, candidates
    )
    assert list(selector.estimates_) == ["ImportanceSampling", "ImportanceSampling_2"]


def test_a_failing_candidate_is_a_row_that_says_why(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    selector = PolicySelector([WeightedIS(gamma=1.0)]).fit(log, {"broken": Broken(), **candidates})
    row = selector.results_.set_index("candidate").loc["broken"]
    assert row["verdict"] == "REFUSE"
    assert "the model file is gone" in row["reasons"]
    assert np.isnan(np.asarray(row["value"], dtype=float))
    assert selector.best_name_ in candidates


NO_CANDIDATES: dict[str, tuple[Any, type[Exception], str]] = {
    "unfitted": (CQL(), NotFittedError, "candidate 'x' must be fitted, got CQL before fit; call fit"),
    "unfitted in closed form": (LSPI(), NotFittedError, "got LSPI before fit"),
    "unfitted inside": (EpsilonGreedy(BCQ(), 0.1), NotFittedError, "candidate 'x' must be fitted, got BCQ"),
    "unfitted behind": (PreprocessedLearner(StandardScaler(), CQL()), NotFittedError, "got PreprocessedLearner"),
    "class": (CQL, TypeError, r"candidate 'x' must be a Policy, got the class CQL; pass .* CQL\(\).fit\(train\)"),
    "text": ("cql", TypeError, "candidate 'x' must be a Policy, got the str 'cql'"),
    "none": (None, TypeError, "got the NoneType None"),
    "classifier": (LogisticRegression(), TypeError, "wrap it: ope.policies.ClassifierPolicy"),
}


@pytest.mark.parametrize("name", NO_CANDIDATES)
def test_what_is_no_candidate_is_told_before_any_work(
    log: LoggedDataset, candidates: dict[str, Policy], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, error, words = NO_CANDIDATES[name]
    fits: list[Any] = []
    monkeypatch.setattr(WeightedIS, "fit", lambda *_: fits.append(1))
    with pytest.raises(error, match=f"^PolicySelector.fit: .*{words}"):
        PolicySelector([WeightedIS(gamma=1.0)]).fit(log, {**candidates, "x": given})
    assert fits == []


def test_policies_that_need_no_fit_are_candidates(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    import pandas as pd

    data = log.replace(extras=pd.DataFrame({"p": np.exp(np.asarray(log.behavior_log_prob))}))
    half = np.full((log.states.shape[1], 2), 0.5)
    rules = {
        "column": ColumnPolicy("p"),
        "table": TabularPolicy(half),
        "function": FunctionPolicy(predict_proba=lambda states: np.full((len(states), 2), 0.5)),
        "greedy": EpsilonGreedy(TabularPolicy(half), 0.5),
        "learned": PreprocessedLearner(StandardScaler(), BCQ(hidden=(4,), n_updates=3, random_state=0)).fit(log),
    }
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], allow_overlap=True).fit(data, {**candidates, **rules})
    assert selector.results_["value"].notna().all()


def test_a_mismatch_of_capabilities_is_a_row_that_names_what_would_work(
    log: LoggedDataset, candidates: dict[str, Policy]
) -> None:
    import pandas as pd

    log = log.replace(extras=pd.DataFrame({"p": np.exp(np.asarray(log.behavior_log_prob))}))
    selector = PolicySelector([LSTDQ(gamma=1.0), PerDecisionIS(gamma=1.0)]).fit(
        log, {"column": ColumnPolicy("p"), **candidates}
    )
    reasons = selector.results_.set_index(["candidate", "estimator"])["reasons"]
    assert "PerDecisionIS" in reasons["column", "LSTDQ"]
    assert "all_probs" in reasons["column", "LSTDQ"]


def test_an_estimator_that_cannot_serve_the_log_does_not_lose_the_others(
    log: LoggedDataset, candidates: dict[str, Policy]
) -> None:
    bare = log.replace(behavior_log_prob=None, behavior_source=None)
    selector = PolicySelector([WeightedIS(gamma=1.0), LSTDQ(gamma=1.0)]).fit(bare, candidates)
    assert selector.primary_ == "LSTDQ"
    assert selector.results_.query("estimator == 'WeightedIS'")["reasons"].str.contains("estimate_behavior").all()


def test_nothing_is_chosen_when_everything_is_refused(log: LoggedDataset) -> None:
    selector = PolicySelector([WeightedIS(gamma=1.0)]).fit(log, {"broken": Broken()})
    assert (selector.best_name_, selector.best_policy_, selector.primary_) == (None, None, None)
    assert "No candidate can be chosen" in selector.decision_


def test_candidates_trained_on_evaluation_episodes_are_refused(
    log: LoggedDataset, candidates: dict[str, Policy]
) -> None:
    seen = TabularPolicy(np.asarray(candidates["p0"].probs))
    seen.training_episode_keys_ = log.episode_keys[:5]
    pool = {"seen": seen, **candidates}
    refused = PolicySelector([WeightedIS(gamma=1.0)]).fit(log, pool).results_.set_index("candidate").loc["seen"]
    assert refused["verdict"] == "REFUSE"
    assert "allow_overlap=True" in refused["reasons"]
    allowed = (
        PolicySelector([WeightedIS(gamma=1.0)], allow_overlap=True)
        .fit(log, pool)
        .results_.set_index("candidate")
        .loc["seen"]
    )
    assert allowed["verdict"] == "CAUTION"
    assert "trained on 5 of the 800 evaluation episodes" in allowed["reasons"]


def test_workers_give_the_same_bits(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    estimators = [WeightedIS(gamma=1.0), DoublyRobust(gamma=1.0)]
    serial = PolicySelector(estimators).fit(log, candidates)
    parallel = PolicySelector(estimators, n_jobs=2).fit(log, candidates)
    assert serial.results_.equals(parallel.results_)


def test_it_is_an_estimator_of_scikit_learn(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    selector = PolicySelector([WeightedIS(gamma=1.0)], criterion="value", level=0.9)
    copy = clone(selector)
    assert copy.get_params()["level"] == 0.9
    assert "PolicySelector" in repr(selector)
    assert not hasattr(copy, "results_")
    assert copy.fit(log, candidates) is copy


def test_progress_and_words(
    log: LoggedDataset, candidates: dict[str, Policy], capsys: pytest.CaptureFixture[str]
) -> None:
    selector = PolicySelector([WeightedIS(gamma=1.0)], progress=True).fit(log, candidates)
    assert "estimators" in capsys.readouterr().err
    assert selector.decision_ in selector.summary()
    page = selector._repr_html_()
    assert "<table" in page
    for number in (selector.gates_["difference"].iloc[1], selector.results_["value"].iloc[0]):
        assert f"{number:.4g}" in page
        assert f"{number:.4g}" in selector.summary()
    assert "<pre>" in PolicySelector([WeightedIS(gamma=1.0)])._repr_html_()


# -------------------------------------------------------------------- the baseline


def returns_of(log: LoggedDataset, gamma: float) -> list[float]:
    found = []
    for first, last in zip(log.offsets[:-1], log.offsets[1:], strict=True):
        found.append(sum(gamma**t * float(r) for t, r in enumerate(log.rewards[first:last])))
    return found


def test_the_logged_policy_is_worth_its_mean_return(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    baseline = PolicySelector([PerDecisionIS(gamma=0.9)]).fit(log, candidates).baseline_
    returns = returns_of(log, 0.9)
    assert baseline is not None
    assert baseline.policy == "logged policy"
    assert baseline.value == pytest.approx(np.mean(returns))
    np.testing.assert_allclose(np.asarray(baseline.influence), np.array(returns) - np.mean(returns), atol=1e-12)
    assert baseline.data_id == log.data_id
    bare = log.replace(behavior_log_prob=None, behavior_source=None)
    again = PolicySelector([LSTDQ(gamma=0.9)]).fit(bare, candidates).baseline_
    assert again is not None
    assert again.value == baseline.value


def test_truncated_recordings_are_valued_to_the_end() -> None:
    river = RiverSwim(max_steps=20)
    log = river.sample(400, random_state=0)
    selector = PolicySelector([LSTDQ(gamma=0.95)]).fit(log, {"up": TabularPolicy([[0.1, 0.9]] * 6)})
    baseline, truth = selector.baseline_, river.value(TabularPolicy(np.asarray(river.behavior)), gamma=0.95)
    assert baseline is not None
    assert "LSTD" in baseline.estimator
    assert abs(baseline.value - truth) < 4 * baseline.std_error
    assert np.mean(returns_of(log, 0.95)) < truth - 4 * baseline.std_error
    assert selector.deploy_


def test_differences_are_paired_and_tested(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], gate_adjust="none", level=0.9).fit(log, candidates)
    returns = np.array(returns_of(log, 1.0))
    for name, estimate in selector.estimates_["PerDecisionIS"].items():
        if name == "behavior":
            continue
        row: Any = selector.gates_.loc[name]
        gain = np.asarray(estimate.scores) - returns
        assert row["difference"] == pytest.approx(gain.mean())
        assert row["std_error"] == pytest.approx(stats.sem(gain))
        assert selector.baseline_ is not None
        difference = estimate - selector.baseline_
        assert row["lower_bound"] == pytest.approx(difference.lower_bound(0.9, "adjusted_t"))
        assert row["passes"] == (row["lower_bound"] > 0)
        assert row["passes"] == (row["p_value"] < 0.1)
        assert row["p_value"] == pytest.approx(stats.ttest_1samp(gain, 0, alternative="greater").pvalue, abs=0.02)


def test_the_gate_is_stricter_the_more_it_guards(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    gates = {
        adjust: PolicySelector([PerDecisionIS(gamma=1.0)], gate_adjust=adjust).fit(log, candidates).gates_
        for adjust in ("none", "max_t", "holm")
    }
    assert (gates["max_t"]["lower_bound"] <= gates["none"]["lower_bound"]).all()
    assert (gates["max_t"]["p_adjusted"] >= gates["none"]["p_value"] - 0.01).all()
    holm: Any = gates["holm"]
    order = holm["p_value"].sort_values().index
    expected, last = {}, 0.0
    for i, name in enumerate(order):
        last = max(last, min(1.0, holm.loc[name, "p_value"] * (len(order) - i)))
        expected[name] = last
    assert holm["p_adjusted"].to_dict() == pytest.approx(expected)
    assert (holm["passes"] == (holm["p_adjusted"] <= 0.05)).all()
    assert (holm["lower_bound"][holm["passes"]] >= 0.0).all()
    assert (holm["lower_bound"][~holm["passes"]] <= 0.0).all()


def test_the_logged_policy_itself_is_no_better_than_itself(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    alone = {"behavior": candidates["behavior"]}
    selector = PolicySelector([PerDecisionIS(gamma=1.0)]).fit(log, alone)
    row: Any = selector.gates_.loc["behavior"]
    assert (row["difference"], row["std_error"], row["passes"]) == (0.0, 0.0, False)
    assert (selector.deploy_, selector.deployed_name_) == (False, "logged policy")
    assert selector.decision_.startswith("Keep the logged policy: 'behavior' has the highest lower bound")
    margin = PolicySelector([PerDecisionIS(gamma=1.0)], margin=0.01).fit(log, alone)
    assert margin.deploy_
    assert "not worse than the logged policy by more than 0.01" in margin.decision_


def test_a_refused_candidate_never_passes_and_counts(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    far = TabularPolicy(np.tile([1.0, 0.0], (5, 1)))
    few = log.select(slice(0, 10))
    selector = PolicySelector([TrajectoryIS(gamma=1.0)], gate_adjust="holm").fit(few, {**candidates, "far": far})
    assert selector.results_.set_index("candidate").loc["far", "verdict"] == "REFUSE"
    far_row: Any = selector.gates_.loc["far"]
    assert not far_row["passes"]
    assert "'far' is refused" in far_row["reason"]
    assert np.isnan(far_row["lower_bound"])
    assert "Not eligible because refused: 'far'" in selector.decision_
    assert "far" not in selector.ranks_.index
    assert "far" not in selector.top_
    assert selector.comparison_ is not None
    assert "far" not in selector.comparison_.names
    least = selector.gates_["p_value"].min()
    assert selector.gates_["p_adjusted"].min() == pytest.approx(min(6 * least, 1.0))


def test_other_baselines(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    by_name = PolicySelector([PerDecisionIS(gamma=1.0)], baseline="p1").fit(log, candidates)
    estimates = by_name.estimates_["PerDecisionIS"]
    assert "p1" not in by_name.gates_.index
    assert by_name.gates_.loc["p2", "difference"] == pytest.approx(estimates["p2"].value - estimates["p1"].value)
    given = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=estimates["p1"]).fit(log, candidates)
    assert given.gates_.loc[["p2"], "difference"].tolist() == by_name.gates_.loc[["p2"], "difference"].tolist()
    assert not given.gates_.loc["p1", "passes"]
    none = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=None).fit(log, candidates)
    assert (none.baseline_, len(none.gates_), none.deploy_) == (None, 0, True)
    assert "There is no baseline" in none.decision_
    top = str(none.best_name_)
    itself = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=top).fit(log, candidates)
    assert itself.decision_.startswith(f"Keep {top!r}: it is the baseline itself")
    assert (itself.deploy_, itself.deployed_name_) == (False, top)


def test_a_baseline_that_cannot_be_compared_is_told(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    estimate = PerDecisionIS(gamma=1.0).fit(log, {"old": candidates["p0"]}).estimate()["old"]
    bare = replace(estimate, influence=None, scores=None)
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=bare).fit(log, candidates)
    assert not selector.deploy_
    assert "there is no influence vector" in selector.decision_
    refused = replace(estimate, verdict=estimate.verdict.of([(Level.REFUSE, "Nobody knows.")]))
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=refused).fit(log, candidates)
    assert not selector.gates_["passes"].any()
    assert "Nobody knows." in selector.decision_
    other = replace(estimate, horizon=9)
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=other).fit(log, candidates)
    assert "different questions" in selector.decision_
    assert selector.comparison_ is not None
    assert "old" not in selector.comparison_.names


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"baseline": "nobody"}, "`baseline` must be 'logged', the name of a candidate"),
        ({"margin": -1.0}, "`margin` must be a number of at least 0"),
        ({"gate_adjust": "guess"}, "`gate_adjust` must be one of"),
        ({"correction": "guess"}, "`correction` must be one of"),
        ({"top_k": 0}, "`top_k` must be an integer of at least 1"),
        ({"random_state": -1}, "`random_state` must be an integer of at least 0"),
    ],
)
def test_bad_settings(log: LoggedDataset, candidates: dict[str, Policy], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PolicySelector([WeightedIS(gamma=1.0)], **settings).fit(log, candidates)


def test_a_baseline_of_another_log_is_refused(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    elsewhere = WeightedIS(gamma=1.0).fit(log.select(slice(0, 99)), {"old": candidates["p0"]}).estimate()["old"]
    with pytest.raises(ValueError, match="got one of another log"):
        PolicySelector([WeightedIS(gamma=1.0)], baseline=elsewhere).fit(log, candidates)


# -------------------------------------------------------------------- what follows from the choice


def test_the_value_of_the_choice_is_corrected(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    for method in ("hybrid", "conditional"):
        selector = PolicySelector([PerDecisionIS(gamma=1.0)], correction=method).fit(log, candidates)
        estimates = selector.estimates_["PerDecisionIS"]
        scores = [estimate.lower_bound(0.95) for estimate in estimates.values()]
        expected = selected_value(
            [estimate.value for estimate in estimates.values()], estimates.influence, scores, 0.95, method
        )
        found = selector.corrected_
        assert found is not None
        own = estimates[str(selector.best_name_)].confidence_interval(0.95)
        low = expected.low - max(expected.naive_low - own.low, 0.0)
        high = expected.high + max(own.high - expected.naive_high, 0.0)
        assert (found.low, found.value, found.high) == pytest.approx((low, expected.value, high))
        assert (found.naive_low, found.naive_high) == (own.low, own.high)
        assert (found.policy, found.method) == (selector.best_name_, method)
        assert f"{found.value:.4g}" in selector.decision_
        assert found.summary() in found._repr_html_().replace("&#x27;", "'")


def test_split_chooses_by_one_half_and_values_by_the_other(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], "value", correction="split").fit(log, candidates)
    estimates, found = selector.estimates_["PerDecisionIS"], selector.corrected_
    assert found is not None
    scores = {name: np.asarray(estimate.scores) for name, estimate in estimates.items()}
    chosen = scores[str(selector.best_name_)]
    sizes = [
        half
        for half in (stats.rankdata(uniforms(log.episode_keys, 0, -1)) <= log.n_episodes // 2,)
        if max(scores, key=lambda name: float(scores[name][half].mean())) == selector.best_name_
    ]
    assert len(sizes) == 1
    assert found.value == pytest.approx(chosen[~sizes[0]].mean())
    assert "on the half of the episodes that chose" in selector.decision_


def test_one_candidate_needs_no_correction(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    selector = PolicySelector([PerDecisionIS(gamma=1.0)]).fit(log, {"p1": candidates["p1"]})
    found, estimate = selector.corrected_, selector.estimates_["PerDecisionIS"]["p1"]
    assert found is not None
    assert found.value == pytest.approx(estimate.value)
    assert "candidates at once" not in selector.decision_
    assert selector.best_set_ == ("p1",)


def test_the_log_is_described_and_not_kept(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    facts = PolicySelector([PerDecisionIS(gamma=1.0), DoublyRobust(gamma=1.0)]).fit(log, candidates).log_
    assert facts.described["log", "episodes"] == log.n_episodes
    assert (facts.data_id, facts.gamma, facts.horizon) == (log.data_id, 1.0, 4)
    assert facts.action_counts is not None
    assert facts.action_counts.sum() == log.n_transitions
    assert facts.lengths.to_dict() == {4: 800}
    assert facts.weights["behavior"].ess.tolist() == pytest.approx([800.0] * 4)
    assert "numpy" in facts.versions
    assert facts.seeds["DoublyRobust"] == DoublyRobust(gamma=1.0).random_state
    size = len(pickle.dumps(PolicySelector([PerDecisionIS(gamma=1.0)]).fit(log, candidates).log_))
    assert size < 400_000


def test_ranks_and_best_set_are_those_of_the_comparison(log: LoggedDataset, candidates: dict[str, Policy]) -> None:
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], level=0.9).fit(log, candidates)
    comparison = selector.estimates_["PerDecisionIS"].compare()
    assert selector.best_set_ == comparison.best_names(0.9)
    assert selector.ranks_.equals(comparison.ranks(0.9))
    assert selector.comparison_ is not None
    assert selector.comparison_.names == (*candidates, "logged policy")
    rivals = [name for name in selector.best_set_ if name != selector.best_name_]
    for name in rivals:
        assert repr(name) in selector.decision_


def test_estimates_without_influence_leave_what_needs_it_open(
    log: LoggedDataset, candidates: dict[str, Policy]
) -> None:
    class Silent(PerDecisionIS):
        def _fit_one(self, *arguments: Any) -> Estimate:
            return replace(super()._fit_one(*arguments), influence=None)

    selector = PolicySelector([Silent(gamma=1.0)], "value").fit(log, candidates)
    assert selector.best_name_ is not None
    assert selector.corrected_ is not None
    assert selector.corrected_.method == "none"
    assert selector.simultaneous_["low"].isna().all()
    assert not selector.deploy_
    assert set(selector.best_set_) == set(candidates)
    assert "the gate cannot be passed" in selector.decision_


def test_nothing_answers_nothing_follows(log: LoggedDataset) -> None:
    selector = PolicySelector([WeightedIS(gamma=1.0)]).fit(log, {"broken": Broken()})
    assert selector.decision_.startswith("Keep the logged policy. No candidate can be chosen")
    assert (selector.deploy_, selector.deployed_name_, selector.corrected_) == (False, "logged policy", None)
    assert (selector.best_set_, selector.top_, selector.comparison_) == ((), [], None)
    assert len(selector.ranks_) == 0
    assert "<table" in selector._repr_html_()


# -------------------------------------------------------------------------------- second opinions


class Contrary(PerDecisionIS):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: np.ndarray) -> Estimate:
        found = super()._fit_one(data, policy, name, weight)
        return replace(found, value=found.value + 10.0, scores=None)


class Silent(PerDecisionIS):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: np.ndarray) -> Estimate:
        found = super()._fit_one(data, policy, name, weight)
        return replace(found, verdict=Verdict(Level.REFUSE, ("It is silent.",)))


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([Contrary(gamma=1.0)], "Estimators disagree on it beyond their intervals (Contrary says"),
        ([Silent(gamma=1.0)], "Nothing checks the assumptions of WeightedIS on it: Silent refuses"),
        ([Silent(gamma=1.0), PerDecisionIS(gamma=1.0)], None),
        ([], None),
    ],
)
def test_what_other_estimators_have_against_the_choice_is_told(
    log: LoggedDataset, candidates: dict[str, Policy], others: list[OffPolicyEstimator], words: str | None
) -> None:
    decision = PolicySelector([WeightedIS(gamma=1.0), *others]).fit(log, candidates).decision_
    if words is None:
        assert "disagree" not in decision
        assert "Nothing checks" not in decision
    else:
        assert words in decision
