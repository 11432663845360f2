"""What importance weights must not hide: clipped mass, missing episodes, rounding, episodes that do not count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ope import Level, LoggedDataset
from ope.estimators import (
    LSTDQ,
    ControlVariateIS,
    DefaultEstimator,
    DoubleReinforcementLearning,
    ImportanceSampling,
    IncrementalIS,
    PerDecisionIS,
    TrajectoryIS,
    WeightedIS,
)
from ope.inference import Anderson
from ope.policies import TabularPolicy
from ope.problems import ModelFail

CODE = TabularPolicy([[0.1, 0.9]], state_code=lambda states: np.zeros(len(states), dtype=int))


def bandit(n: int = 400, b: float = 0.1, seed: int = 0, **changes: Any) -> LoggedDataset:
    """One step, two actions; only action 0 earns."""
    rng = np.random.default_rng(seed)
    actions = (rng.random(n) < b).astype(int)
    rewards = np.where(actions == 0, 1.0, 0.0) + 0.01 * rng.normal(size=n)
    prob = np.where(actions == 1, b, 1.0 - b)
    given: dict[str, Any] = {
        "rewards": rewards,
        "lengths": [1] * n,
        "ends": "terminal",
        "behavior_prob": prob,
        **changes,
    }
    return LoggedDataset.from_arrays(np.ones((n, 1)), actions, **given)


# -------------------------------------------------------------------- clipping


@pytest.mark.parametrize("per_decision", [True, False])
@pytest.mark.parametrize("clip", [1.0, 2.0])
def test_clipping_of_normalised_weights_is_measured_against_whole_ones(clip: float, per_decision: bool) -> None:
    log = bandit()  # worth .1
    plain = WeightedIS(gamma=1.0, per_decision=per_decision).fit(log, CODE).estimate()
    clipped = WeightedIS(gamma=1.0, per_decision=per_decision, clip=clip).fit(log, CODE).estimate()
    assert clipped.value - 0.1 > 0.15
    assert clipped.diagnostics["clip_bias"] == pytest.approx(clipped.value - plain.value)
    assert clipped.verdict.level is Level.CAUTION
    assert "Clipping the weights moves the value by" in str(clipped.verdict)


def missing_action() -> LoggedDataset:
    """In state 1 the candidate does what was hardly ever done there; it was logged in state 0 only."""
    rng = np.random.default_rng(0)
    states = np.repeat([[1.0, 0.0], [0.0, 1.0]], [30, 150], axis=0)
    actions = np.concatenate([rng.integers(0, 2, 30), np.zeros(150, dtype=int)])
    prob = np.concatenate([np.full(30, 0.5), np.full(150, 0.999)])
    rewards = 1.0 + 0.1 * rng.normal(size=180)
    return LoggedDataset.from_arrays(states, actions, rewards, lengths=[1] * 180, ends="terminal", behavior_prob=prob)


@pytest.mark.parametrize(
    "estimator",
    [
        WeightedIS(gamma=1.0, clip=1000.0),
        PerDecisionIS(gamma=1.0, clip=1000.0),
        TrajectoryIS(gamma=1.0, clip=1000.0),
        IncrementalIS(gamma=1.0, window=None, clip=1000.0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_limit_that_cuts_nothing_hides_nothing(estimator: Any) -> None:
    log, policy = missing_action(), TabularPolicy([[0.5, 0.5], [0.01, 0.99]])
    plain = WeightedIS(gamma=1.0).fit(log, policy).estimate()
    assert plain.verdict.level is Level.REFUSE
    found = estimator.fit(log, policy).estimate()
    assert found.verdict.level is Level.REFUSE
    assert "The mean importance weight is" in str(found.verdict)


# -------------------------------------------------------------------- rounding and episodes without weight


@pytest.mark.parametrize("estimator", [WeightedIS(gamma=0.9), WeightedIS(gamma=0.9, per_decision=False)], ids=repr)
def test_rounding_is_no_variance(estimator: Any) -> None:
    rng = np.random.default_rng(0)
    n = 90
    log = LoggedDataset.from_arrays(
        np.ones((n, 1)),
        rng.integers(0, 2, n),
        np.full(n, 0.1),
        lengths=[3] * 30,
        ends="terminal",
        behavior_prob=np.full(n, 0.5),
    )
    found = estimator.fit(log, CODE).estimate()
    assert found.value == pytest.approx(0.271)
    assert found.std_error == 0.0
    assert found.verdict.level is not Level.VALID


FORMS = [
    PerDecisionIS(gamma=0.9),
    TrajectoryIS(gamma=0.9),
    WeightedIS(gamma=0.9),
    WeightedIS(gamma=0.9, per_decision=False),
    ImportanceSampling(gamma=0.9, clip=3.0),
]


@pytest.mark.parametrize("estimator", FORMS, ids=repr)
def test_an_episode_of_weight_zero_is_not_there(estimator: Any) -> None:
    rng = np.random.default_rng(1)
    n = 60
    prob = np.full(n, 0.5)
    prob[-1] = 1e-300  # its weight is beyond all floats, with the one before
    prob[-2] = 1e-300
    given: dict[str, Any] = {"lengths": [2] * 30, "ends": "terminal"}
    states, actions, rewards = np.ones((n, 1)), rng.integers(0, 2, n), rng.random(n)
    log = LoggedDataset.from_arrays(states, actions, rewards, behavior_prob=prob, **given)
    weight = np.ones(30)
    weight[-1] = 0.0
    found = estimator.fit(log, CODE, weight).estimate()
    without = estimator.fit(log.select(slice(0, 29)), CODE).estimate()
    assert found.value == pytest.approx(without.value, rel=1e-12)
    assert found.influence is not None
    assert without.influence is not None
    np.testing.assert_allclose(found.influence[:-1] * 29 / 30, without.influence, rtol=1e-10, atol=1e-14)
    assert found.influence[-1] == 0.0
    assert found.diagnostics["ess"] == pytest.approx(without.diagnostics["ess"])


@pytest.mark.parametrize("c", [0.1, 3.0, 1e-8])
def test_equal_weights_are_none(c: float) -> None:
    log = bandit(60)
    weighed = PerDecisionIS(gamma=1.0).fit(log, CODE, np.full(60, c)).estimate()
    plain = PerDecisionIS(gamma=1.0).fit(log, CODE).estimate()
    assert weighed.scores is not None
    np.testing.assert_array_equal(weighed.scores, plain.scores)
    assert weighed.lower_bound(0.9, method=Anderson(-1.0)) == plain.lower_bound(0.9, method=Anderson(-1.0))


# -------------------------------------------------------------------- steps that do not count


@pytest.mark.parametrize("gamma", [0.0, 0.2])
@pytest.mark.parametrize("kind", [PerDecisionIS, WeightedIS, ControlVariateIS])
def test_steps_without_a_share_in_the_value_are_not_judged(kind: Any, gamma: float) -> None:
    rng = np.random.default_rng(2)
    n, length = 200, 60
    actions = rng.integers(0, 2, n * length)
    log = LoggedDataset.from_arrays(
        np.ones((n * length, 1)),
        actions,
        rng.random(n * length),
        lengths=[length] * n,
        ends="horizon",
        behavior_prob=np.full(n * length, 0.5),
    )
    policy = TabularPolicy([[0.35, 0.65]], state_code=lambda states: np.zeros(len(states), dtype=int))
    found = kind(gamma=gamma).fit(log, policy).estimate()
    assert found.value == pytest.approx(0.5 / (1 - gamma), abs=0.1)
    assert found.verdict.level is Level.VALID, found.verdict


def test_a_policy_that_no_episode_follows_to_the_end_has_a_value_at_gamma_zero() -> None:
    rng = np.random.default_rng(3)
    log = LoggedDataset.from_arrays(
        np.ones((600, 1)),
        rng.integers(0, 2, 600),
        rng.random(600),
        lengths=[20] * 30,
        ends="horizon",
        behavior_prob=[0.5] * 600,
    )
    sure = TabularPolicy([[0.0, 1.0]], state_code=lambda states: np.zeros(len(states), dtype=int))
    found = WeightedIS(gamma=0.0).fit(log, sure).estimate()
    taken = log.actions[::20] == 1
    assert found.value == pytest.approx(log.rewards[::20][taken].mean())


# -------------------------------------------------------------------- questions, needs, words


def test_the_default_answers_the_question_it_was_asked() -> None:
    problem = ModelFail()
    policy = TabularPolicy(problem.target, state_code=problem.state_code)
    log = problem.sample(500, random_state=0)
    assert DefaultEstimator(gamma=0.9).fit(log, policy).choice_.name == "ControlVariateIS"
    stationary = DefaultEstimator(gamma=0.9, linear=LSTDQ(stationary=True)).fit(log, policy)
    assert stationary.choice_.name == "LSTDQ"
    assert stationary.estimate().horizon is None


def test_a_failed_entry_has_the_question_of_the_others() -> None:
    problem = ModelFail()
    good = TabularPolicy(problem.target, state_code=problem.state_code)
    log = problem.sample(100, random_state=0)
    for stationary, horizon in ((True, None), (False, 2)):
        found = (
            LSTDQ(gamma=0.9, stationary=stationary)
            .fit(log, {"good": good, "bad": TabularPolicy([[0.5, 0.5]], state_code=lambda states: states[:, 99])})
            .estimate()
        )
        assert found["bad"].error is not None
        assert {estimate.horizon for estimate in found.values()} == {horizon}
        found.compare()


def test_double_rl_says_at_the_door_that_its_q_model_reads_propensities() -> None:
    log = bandit(50, behavior_prob=None)
    estimator = DoubleReinforcementLearning(gamma=0.9, q=LSTDQ(trace="retrace"))
    assert estimator.needs_propensities
    with pytest.raises(ValueError, match="`data` must hold propensities"):
        estimator.fit(log, {"one": CODE})


def test_rewards_that_are_all_nothing_leave_nothing_in_the_tail() -> None:
    log = bandit(50, rewards=np.zeros(50), ends="truncated", final_states=np.ones((50, 1)))
    found = PerDecisionIS(gamma=1.0).fit(log, CODE).estimate()
    assert found.diagnostics["truncated_tail"] == 0.0
    assert "nan" not in str(found.verdict)
