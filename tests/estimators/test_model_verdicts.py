"""Findings that keep a Q model's number from being VALID: a basis too poor, a value out of reach, no variation at all."""

from __future__ import annotations

import numpy as np
import pytest

from ope import Estimate, Level, LoggedDataset
from ope.estimators import LSTDQ, DoublyRobust, PerDecisionIS
from ope.estimators._verdicts import judge_finite, judge_range
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import ScalarLQR


def one_step_log(n: int, seed: int, *, curved: bool) -> LoggedDataset:
    """Rewards that are a wave or a parabola of the state, plus noise."""
    rng = np.random.default_rng(seed)
    x, actions = rng.uniform(-3.0, 3.0, n), rng.integers(0, 2, n)
    signal = np.sin(3.0 * x) if curved else 0.3 * x**2
    rewards = signal * (1.0 + actions) + 0.3 * rng.normal(size=n)
    return LoggedDataset.from_arrays(x, actions, rewards, lengths=[1] * n, ends="terminal", behavior_prob=[0.5] * n)


CANDIDATE = TabularPolicy([[0.3, 0.7]], state_code=lambda states: np.zeros(len(states), dtype=np.int64))


def estimate(log: LoggedDataset) -> Estimate:
    result: Estimate = LSTDQ(gamma=1.0).fit(log, CANDIDATE).estimate()
    return result


def test_a_basis_that_is_too_poor_is_found() -> None:
    found = estimate(one_step_log(600, 0, curved=True))
    assert found.diagnostics["features_p"] < 1e-6
    assert found.verdict.level == Level.CAUTION
    assert any("basis is too poor" in reason for reason in found.verdict.reasons)


def test_a_basis_that_holds_the_model_is_left_alone() -> None:
    p_values = np.array(
        [estimate(one_step_log(300, seed, curved=False)).diagnostics["features_p"] for seed in range(200)]
    )
    assert np.mean(p_values < 0.05) < 0.10
    assert p_values.min() > 1e-4


def test_the_quadratics_of_the_regulator_are_left_alone() -> None:
    problem = ScalarLQR(max_steps=20)
    policy = GaussianPolicy(mean=[problem.target.gain], std=problem.target.std, intercept=problem.target.offset)
    p_values = [
        LSTDQ(gamma=0.95).fit(problem.sample(100, random_state=seed), policy).estimate().diagnostics["features_p"]
        for seed in range(30)
    ]
    assert min(p_values) > 0.001


@pytest.mark.parametrize(
    ("value", "gamma", "bounds", "refused"),
    [
        (10.0, 0.9, None, False),  # 1 / (1 - .9)
        (10.1, 0.9, None, True),
        (-0.1, 0.9, None, True),  # rewards are never negative
        (-0.1, 0.9, (-1.0, 1.0), False),
        (19.0, 0.9, (0.0, 2.0), False),
        (1e9, 1.0, None, False),  # without a limit nothing is out of reach
        (-1e-3, 1.0, None, True),
    ],
)
def test_values_beyond_what_rewards_add_up_to(
    value: float, gamma: float, bounds: tuple[float, float] | None, refused: bool
) -> None:
    log = LoggedDataset.from_arrays(
        np.ones((2, 1)), [0, 1], [0.0, 1.0], lengths=[1, 1], ends="terminal", reward_range=bounds
    )
    finding = judge_range(value, log, gamma, True, Level.REFUSE)
    assert (finding is not None) == refused
    if finding is not None:
        assert finding[0] == Level.REFUSE
        assert "lies outside" in finding[1]


def test_a_horizon_limits_the_range() -> None:
    log = LoggedDataset.from_arrays(np.ones((2, 1)), [0, 1], [0.0, 1.0], lengths=[2], ends="horizon")
    assert judge_range(1.5, log, 0.5, False, Level.CAUTION) is None  # 1 + .5
    assert judge_range(1.6, log, 0.5, False, Level.CAUTION) is not None


def test_no_variation_is_not_valid() -> None:
    log = LoggedDataset.from_arrays(
        np.ones((200, 1)), [0, 1] * 100, [0.0] * 200, lengths=[1] * 200, ends="terminal", behavior_prob=[0.5] * 200
    )
    for estimator in (LSTDQ(gamma=1.0), PerDecisionIS(gamma=1.0), DoublyRobust(gamma=1.0)):
        found = estimator.fit(log, TabularPolicy([[0.5, 0.5]])).estimate()
        assert found.std_error == 0.0
        assert found.verdict.level == Level.CAUTION
        assert any("standard error is 0" in reason for reason in found.verdict.reasons)


@pytest.mark.parametrize(
    ("value", "influence", "words"),
    [(np.nan, None, "The value is nan"), (1.0, np.array([np.inf, 0.0]), "Weights of some episodes overflow")],
)
def test_what_is_not_finite_is_refused_in_its_own_words(value: float, influence: np.ndarray | None, words: str) -> None:
    finding = judge_finite(value, influence)
    assert finding is not None
    assert finding[0] == Level.REFUSE
    assert finding[1].startswith(words)
    assert judge_finite(1.0, np.zeros(2)) is None
