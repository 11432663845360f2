"""Findings that keep a number from being VALID: a basis too poor, a value out of reach, no variation, too wide an interval."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ope import Estimate, Level, LoggedDataset
from ope.estimators import (
    DICE,
    LSTDQ,
    DoubleReinforcementLearning,
    DoublyRobust,
    MarginalizedIS,
    MinimaxQLearning,
    PerDecisionIS,
)
from ope.estimators._verdicts import earned_range, judge_finite, judge_range, judge_width
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import ScalarLQR
from ope.schema import End


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


# -------------------------------------------------------------------- intervals too wide to say anything


def earned_by_loops(log: LoggedDataset, gamma: float, stationary: bool) -> tuple[float, float]:
    """What every episode earned, one step after the other."""
    earned = [0.0]
    for e, (start, stop) in enumerate(itertools.pairwise(log.offsets)):
        total = sum(gamma**t * reward for t, reward in enumerate(log.rewards[start:stop]))
        logged, horizon = stop - start, None if stationary else log.horizon
        ended = log.ends[e] == End.TERMINAL or (not stationary and (log.ends[e] == End.HORIZON or logged == horizon))
        if not ended:
            steps = horizon if horizon is not None else 10_000  # .9^10000 is nothing
            total *= sum(gamma**t for t in range(steps)) / sum(gamma**t for t in range(logged))
        earned.append(total)
    return min(earned), max(earned)


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize(
    ("ends", "horizon"),
    [("terminal", None), ("truncated", None), (["terminal", "truncated", "terminal"], 5), ("horizon", 3)],
)
def test_what_episodes_earned(ends: Any, horizon: int | None, stationary: bool) -> None:
    lengths = [3, 3, 3] if ends == "horizon" else [1, 3, 2]
    rewards = np.random.default_rng(3).normal(size=sum(lengths))
    log = LoggedDataset.from_arrays(
        np.ones((len(rewards), 1)),
        np.arange(len(rewards)) % 2,
        rewards,
        lengths=lengths,
        ends=ends,
        horizon=horizon,
        final_states=np.ones((3, 1)),
    )
    np.testing.assert_allclose(earned_range(log, 0.9, stationary), earned_by_loops(log, 0.9, stationary), rtol=1e-9)


def test_an_interval_as_wide_as_the_returns_is_told() -> None:
    rewards = np.array([0.0, 5.0, 1.0, 2.0])
    log = LoggedDataset.from_arrays(np.ones((4, 1)), [0, 1, 0, 1], rewards, lengths=[1] * 4, ends="terminal")
    psi = np.array([1.0, -1.0, 1.0, -1.0])
    unit = 2 * 1.96 * np.sqrt(np.sum(psi**2) / (4 * 3))  # its interval
    assert judge_width(4.99 / unit * psi, log, 1.0, True) is None
    found = judge_width(5.01 / unit * psi, log, 1.0, True)
    assert found is not None
    assert found[0] == Level.CAUTION
    assert "5.01 wide" in found[1]
    assert "0 to 5, 0 included" in found[1]
    assert judge_width(4.0 / unit * psi, log, 1.0, True, widening=0.51) is not None  # a bias counts on both sides
    assert judge_width(np.array([np.inf, 0.0, 0.0, 0.0]), log, 1.0, True) is None  # refused for that already


def test_equal_returns_are_no_reason_to_call_an_interval_wide() -> None:
    """Rewards of 1 that never vary: 0 counts as earned, so that the weights' noise is compared with the reward itself."""
    actions = np.random.default_rng(0).integers(0, 2, 300)
    log = LoggedDataset.from_arrays(
        np.ones((300, 1)), actions, np.ones(300), lengths=[1] * 300, ends="horizon", behavior_prob=[0.5] * 300
    )
    found = PerDecisionIS(gamma=1.0).fit(log, TabularPolicy([[0.2, 0.8]])).estimate()
    assert found.verdict.level == Level.VALID
    assert found.std_error > 0.0


FAMILIES: dict[str, Callable[..., Any]] = {
    "LSTDQ": LSTDQ,
    "MarginalizedIS": MarginalizedIS,
    "MinimaxQLearning": MinimaxQLearning,
    "DICE.dual": DICE.dual,
    "DoubleReinforcementLearning": DoubleReinforcementLearning,
}


def far_from_the_log(family: str, factor: float = 1.0) -> Estimate:
    """A candidate whose actions are far from those logged: what they earn is extrapolated."""
    rng = np.random.default_rng(5)
    x, actions = rng.normal(size=300), rng.normal(size=300)
    rewards = factor * rng.uniform(-1.0, 1.0, 300)
    log = LoggedDataset.from_arrays(x, actions[:, None], rewards, lengths=[1] * 300, ends="terminal")
    candidate = GaussianPolicy(mean=[0.0], std=0.3, intercept=6.0)
    result: Estimate = FAMILIES[family](gamma=0.5).fit(log, candidate).estimate()
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_a_candidate_that_the_log_says_nothing_of_is_not_valid(family: str) -> None:
    found = far_from_the_log(family)
    low, high = found.confidence_interval(0.95)
    assert high - low > 2.0  # rewards lie in -1 to 1, so that it says nothing
    assert low <= 0.0 <= high  # and is honest
    assert found.verdict.level >= Level.CAUTION
    assert any("cannot tell a candidate better" in reason for reason in found.verdict.reasons)
    scaled = far_from_the_log(family, 1e6)
    assert scaled.verdict.level == found.verdict.level


@pytest.mark.parametrize("seed", range(5))
def test_intervals_of_few_episodes_are_not_too_wide(seed: int) -> None:
    """Wide is not what 32 episodes bring: on the reference problems such intervals cover, and stay as they are."""
    log = (problem := ScalarLQR(max_steps=20)).sample(32, random_state=seed)
    policy = GaussianPolicy(mean=[problem.target.gain], std=problem.target.std, intercept=problem.target.offset)
    found = LSTDQ(gamma=0.95).fit(log, policy).estimate()
    assert judge_width(found.influence, log, 0.95, True) is None
