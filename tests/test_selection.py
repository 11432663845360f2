"""`PolicySelector`: the choice, failures that stay rows, overlap, parallel work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from ope import LoggedDataset, PolicySelector
from ope.estimators import LSTDQ, DoublyRobust, ImportanceSampling, PerDecisionIS, TrajectoryIS, WeightedIS
from ope.policies import ColumnPolicy, TabularPolicy
from ope.policy import Policy
from ope.problems import RandomMDP


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
    assert "<table" in selector._repr_html_()
    assert "<pre>" in PolicySelector([WeightedIS(gamma=1.0)])._repr_html_()
