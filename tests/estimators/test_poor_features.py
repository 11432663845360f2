"""Features that do not hold what the states tell are noticed, where the states are a table too; features that hold all are not accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from given_models import position
from scipy.stats import chi2
from sklearn.preprocessing import FunctionTransformer

from ope import Level, LoggedDataset
from ope.estimator import OffPolicyEstimator
from ope.estimators import COPTD, DICE, LSTD, LSTDQ, AverageRewardLSTDQ, MarginalizedIS, StateMarginalIS
from ope.estimators._specification import over_steps
from ope.policies import TabularPolicy
from ope.problems import RandomMDP
from ope.validation import FloatArray

MIXED = np.random.default_rng(0).normal(size=(5, 5)) + 3.0 * np.eye(5)
DISCOUNTED: dict[str, Callable[..., OffPolicyEstimator]] = {
    "LSTDQ": LSTDQ,
    "MarginalizedIS": MarginalizedIS,
    "StateMarginalIS": StateMarginalIS,
    "LSTD": LSTD,
    "DICE": DICE.best,
    "COPTD": COPTD,
}


def mixed(states: FloatArray) -> FloatArray:
    """Return other coordinates, which hold the table."""
    return states @ MIXED


def endless(n: int) -> tuple[LoggedDataset, TabularPolicy]:
    problem = RandomMDP(5, 2, random_state=1, max_steps=20)
    return problem.sample(n, random_state=0), TabularPolicy(problem.target)


@pytest.mark.parametrize("name", DISCOUNTED)
def test_the_number_of_a_state_is_no_feature_and_a_change_of_coordinates_is(name: str) -> None:
    log, policy = endless(400)

    def asked(features: Any) -> Any:
        return DISCOUNTED[name](gamma=0.9, features=features).fit(log, policy).estimate()

    poor, same, table = (asked(f) for f in (FunctionTransformer(position), FunctionTransformer(mixed), "auto"))
    assert poor.diagnostics["features_p"] < 1e-3
    assert poor.verdict.level >= Level.CAUTION
    assert any("icher features" in reason for reason in poor.verdict.reasons)
    assert same.diagnostics["features_p"] == table.diagnostics["features_p"] == 1.0
    assert same.value == pytest.approx(table.value, rel=1e-6)


@pytest.mark.parametrize("name", ["LSTDQ", "MarginalizedIS"])
def test_they_are_noticed_step_by_step(name: str) -> None:
    problem = RandomMDP(horizon=5, random_state=0)
    log, policy = problem.sample(400, random_state=0), TabularPolicy(problem.target)
    poor = DISCOUNTED[name](gamma=1.0, features=FunctionTransformer(position)).fit(log, policy).estimate()
    table = DISCOUNTED[name](gamma=1.0).fit(log, policy).estimate()
    assert poor.diagnostics["features_p"] < 1e-3 < table.diagnostics["features_p"] == 1.0
    assert problem.value(problem.target, 1.0) not in poor.confidence_interval(0.95)


def test_they_are_noticed_in_averages() -> None:
    log, policy = endless(400)
    poor = AverageRewardLSTDQ(features=FunctionTransformer(position)).fit(log, policy).estimate()
    same = AverageRewardLSTDQ(features=FunctionTransformer(mixed)).fit(log, policy).estimate()
    assert poor.diagnostics["features_p"] < 1e-3 < same.diagnostics["features_p"] == 1.0


@pytest.mark.parametrize("horizon", [None, 4])
def test_right_features_are_seldom_accused(horizon: int | None) -> None:
    """The first two of five states are one: features that merge them are right, and still fewer than the states."""
    steps: dict[str, Any] = {"max_steps": 10} if horizon is None else {"horizon": horizon}
    problem = RandomMDP(4, 2, random_state=2, **steps)
    rng, policy = np.random.default_rng(0), TabularPolicy(np.vstack([problem.target[:1], problem.target]))
    merge = np.vstack([np.eye(4)[:1], np.eye(4)])
    p_values = []
    for seed in range(60):
        log = problem.sample(100 if horizon is None else 300, random_state=seed)
        split = split_first(log, rng)
        estimate = (
            LSTDQ(gamma=0.9, features=FunctionTransformer(lambda states: states @ merge)).fit(split, policy).estimate()
        )
        p_values.append(estimate.diagnostics["features_p"])
    # The smaller of two p-values, doubled, is 1 for half of the logs with a horizon.
    assert 0.2 < float(np.median(p_values)) < (0.85 if horizon is None else 1.01)
    assert min(p_values) > 1e-4
    assert np.mean(np.array(p_values) < 0.05) <= 0.15


def test_a_value_for_each_step_hides_errors_that_all_steps_share_no_longer() -> None:
    """Tests of single steps alone accused a tenth of these logs, whose VALID intervals covered .72."""
    problem = RandomMDP(horizon=5, random_state=0)
    policy = TabularPolicy(problem.target)
    for seed in range(20):
        estimate = (
            LSTDQ(gamma=problem.default_gamma, features=FunctionTransformer(position))
            .fit(problem.sample(128, random_state=seed), policy)
            .estimate()
        )
        assert estimate.diagnostics["features_p"] < 1e-3
        assert estimate.verdict.level >= Level.CAUTION


def test_steps_apart_and_together() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, 200, 2))

    def p_value(scores: FloatArray) -> float:
        """The Wald test by a plain inverse."""
        total = scores.sum(axis=0)
        return float(chi2.sf(total @ np.linalg.inv(scores.T @ scores) @ total, scores.shape[1]))

    for shift in (0.0, 0.1, 1.0):
        scores = noise + shift
        apart, together = 3 * min(map(p_value, scores)), p_value(scores.sum(axis=0))
        assert over_steps(list(scores)) == pytest.approx(min(1.0, 2 * min(apart, together)), rel=1e-9)
    assert over_steps(list(noise + 0.1)) < 6 * min(map(p_value, noise + 0.1)) / 10
    alone = noise.copy()
    alone[1] += 0.3
    assert over_steps(list(alone)) == pytest.approx(6 * p_value(alone[1]), rel=1e-9)
    assert over_steps([]) == 1.0


def split_first(log: LoggedDataset, rng: np.random.Generator) -> LoggedDataset:
    """Return the log with state 0 called 0 or 1 by chance, and the others one more."""

    def renamed(states: FloatArray) -> FloatArray:
        codes = states.argmax(axis=1) + 1
        return np.eye(5)[np.where(codes == 1, rng.integers(0, 2, len(codes)), codes)]

    assert log.final_states is not None
    return log.replace(
        states=renamed(log.states),
        final_states=renamed(log.final_states),
        feature_names=tuple(f"state_{i}" for i in range(5)),
    )
