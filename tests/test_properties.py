"""Random valid logs, the odd ones above all: every estimator gives a finite value or refuses in words, and never warns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeRegressor

from ope import End, Estimate, Level, LoggedDataset, Policy
from ope.estimators import (
    LSTDQ,
    DoublyRobust,
    FittedQEvaluation,
    ImportanceSampling,
    PerDecisionIS,
    TrajectoryIS,
    WeightedIS,
)
from ope.inference import IntervalNotAvailable
from ope.policies import GaussianPolicy
from ope.policies.discrete import DiscretePolicy
from ope.validation import FloatArray

REWARDS = ("normal", "zero", "constant", "huge", "tiny", "rare")
PROPENSITIES = ("usual", "tiny", "certain")
CANDIDATES = ("usual", "never logged", "the same", "deterministic")
STATES = ("one-hot", "normal", "constant", "large", "single precision")
WEIGHTS = ("none", "all", "few")
LENGTHS = (1, 2, 5, 60)
REFUSALS = (
    "DoublyRobust.fit: cross-fitting in n_folds=2 needs as many episodes, got 1",
    "DoublyRobust.fit: `episode_weight` must leave a positive weight outside each of n_folds=2 folds, got only zeros",
    "FittedQEvaluation.fit: `data` must hold a transition whose next state is known or terminal, got none",
)
INTERVALS = (None, "normal", "percentile", "basic", "bca", "bayesian")


class Fixed(DiscretePolicy):
    """The same probabilities in every state."""

    def __init__(self, probs: FloatArray) -> None:
        self.probs = probs

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        return np.tile(self.probs, (len(np.asarray(states)), 1))


class Situation(NamedTuple):
    """A log, a candidate, a discount factor and weights of episodes."""

    log: LoggedDataset
    policy: Policy
    gamma: float
    weight: FloatArray | None


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Draw the kind of everything; the numbers follow from a seed, which keeps the examples small and fast."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_episodes, longest = draw(st.integers(1, 12)), draw(st.sampled_from(LENGTHS))
    kinds = draw(st.lists(st.sampled_from(list(End)), min_size=1, max_size=3))
    ends = rng.choice(np.array(kinds), size=n_episodes).astype(np.int8)
    lengths = np.where(ends == End.HORIZON, longest, rng.integers(1, longest + 1, size=n_episodes))
    n = int(lengths.sum())
    states = make_states(draw(st.sampled_from(STATES)), n + n_episodes, rng)
    final_states = states[n:].copy()
    unknown = (ends == End.TERMINAL) | ((ends == End.HORIZON) & draw(st.booleans()))
    final_states[unknown] = np.nan
    arguments: dict[str, Any] = {
        "states": states[:n],
        "rewards": make_rewards(draw(st.sampled_from(REWARDS)), n, rng),
        "lengths": lengths,
        "ends": ends,
        "final_states": final_states,
        "horizon": longest if draw(st.booleans()) else None,
    }
    propensity, candidate = draw(st.sampled_from(PROPENSITIES)), draw(st.sampled_from(CANDIDATES))
    if draw(st.booleans()):
        log, policy = continuous(arguments, propensity, candidate, draw(st.integers(1, 2)), rng)
    else:
        masked, n_actions = draw(st.booleans()), draw(st.integers(1, 4))
        log, policy = discrete(arguments, propensity, candidate, n_actions, masked, rng)
    gamma, weighing = draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])), draw(st.sampled_from(WEIGHTS))
    return Situation(log, policy, gamma, make_weights(weighing, n_episodes, rng))


def make_states(kind: str, n: int, rng: np.random.Generator) -> FloatArray:
    if kind == "one-hot":
        return np.eye(3)[rng.integers(3, size=n)]
    if kind == "constant":
        return np.ones((n, 2))
    states = rng.normal(size=(n, 2)) * (1e6 if kind == "large" else 1.0)
    return states.astype(np.float32) if kind == "single precision" else states


def make_rewards(kind: str, n: int, rng: np.random.Generator) -> FloatArray:
    if kind == "zero":
        return np.zeros(n)
    if kind == "constant":
        return np.full(n, -0.7)
    if kind == "rare":
        return (rng.random(n) < 0.05).astype(float)
    return rng.normal(size=n) * {"normal": 1.0, "huge": 1e12, "tiny": 1e-150}[kind]


def make_weights(kind: str, n: int, rng: np.random.Generator) -> FloatArray | None:
    if kind == "none":
        return None
    weights = rng.exponential(size=n) * (1.0 if kind == "all" else rng.random(n) < 0.3)
    weights[rng.integers(n)] = 1.0
    return weights


def continuous(
    arguments: dict[str, Any], propensity: str, candidate: str, k: int, rng: np.random.Generator
) -> tuple[LoggedDataset, Policy]:
    states, n = arguments["states"], len(arguments["states"])
    behavior = GaussianPolicy(np.zeros((states.shape[1], k)), 1.0)
    actions = behavior.sample(states, rng)
    log_prob = behavior.log_prob(states, actions)
    if propensity == "tiny":
        log_prob = log_prob - 300.0 * rng.random(n)
    elif propensity == "certain":
        log_prob = log_prob + 50.0
    # Far away and narrow, the density of a logged action is beyond the range of floats: a ratio of 0.
    mean, std = {"usual": (0.3, 0.9), "never logged": (100.0, 0.1), "the same": (0.0, 1.0), "deterministic": (0.0, 1e-3)}[candidate]  # fmt: skip
    log = LoggedDataset.from_arrays(actions=actions, behavior_log_prob=log_prob, continuous=True, **arguments)
    return log, GaussianPolicy(np.zeros((states.shape[1], k)), std, intercept=mean)


def discrete(
    arguments: dict[str, Any], propensity: str, candidate: str, n_actions: int, masked: bool, rng: np.random.Generator
) -> tuple[LoggedDataset, Policy]:
    n, n_episodes = len(arguments["rewards"]), len(arguments["lengths"])
    b = 0.5 * rng.dirichlet(np.ones(n_actions)) + 0.5 / n_actions
    codes = rng.choice(n_actions, size=n, p=b)
    prob = b[codes]
    if propensity == "tiny":
        prob = prob * 10.0 ** -rng.integers(0, 200, size=n)
    elif propensity == "certain":
        prob = np.ones(n)
    # One label more than was ever logged; the candidate may put all its mass there.
    labels = [f"a{i}" for i in range(n_actions + 1)]
    pi = np.append(rng.dirichlet(np.ones(n_actions)), 0.0)
    if candidate == "never logged":
        pi = np.append(np.zeros(n_actions), 1.0)
    elif candidate == "the same":
        pi = np.append(b, 0.0)
    elif candidate == "deterministic":
        pi = np.eye(n_actions + 1)[rng.integers(n_actions)]
    if masked:
        # The candidate's favourite stays available, as its probabilities must have somewhere to go.
        mask, final_mask = (rng.random((size, n_actions + 1)) < 0.5 for size in (n, n_episodes))
        mask[:, pi.argmax()] = final_mask[:, pi.argmax()] = True
        mask[np.arange(n), codes] = True
        arguments = {**arguments, "action_mask": mask, "final_action_mask": final_mask}
    log = LoggedDataset.from_arrays(
        actions=np.array(labels)[codes], behavior_prob=prob, action_labels=labels, **arguments
    )
    return log, Fixed(pi)


ESTIMATORS = [
    TrajectoryIS(),
    PerDecisionIS(),
    PerDecisionIS(clip=5.0),
    WeightedIS(),
    WeightedIS(per_decision=False),
    ImportanceSampling(self_normalized=True, clip=5.0),
    LSTDQ(),
    LSTDQ(features="identity", ridge=0.1),
    LSTDQ(stationary=True),
    FittedQEvaluation(regressor=DecisionTreeRegressor(max_depth=2), max_iter=3, n_bootstrap=2),
    FittedQEvaluation(regressor=LinearRegression(), features="auto", max_iter=3, stationary=True),
    DoublyRobust(n_folds=2),
    DoublyRobust(n_folds=2, weighted=True, q=LSTDQ(stationary=True, ridge=1e-3)),
    DoublyRobust(n_folds=2, q=FittedQEvaluation(regressor=DecisionTreeRegressor(max_depth=2), max_iter=2)),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: " ".join(repr(estimator).split()))
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(situation=situations())
def test_every_valid_log_gets_an_answer(estimator: Any, situation: Situation) -> None:
    estimator.set_params(gamma=situation.gamma)
    fitted = estimator.fit(situation.log, {"candidate": situation.policy}, situation.weight)
    estimate = fitted.estimate()["candidate"]
    if estimate.error is not None:
        # What an estimator refuses at its door, in its own words; anything else is a crash.
        assert any(refusal in estimate.error for refusal in REFUSALS)
    assert_verdict(estimate)
    assert_influence(estimate)
    assert_intervals(estimate)
    assert repr(estimate)
    assert estimate.summary().count("\n") >= 6


def assert_verdict(estimate: Estimate) -> None:
    verdict = estimate.verdict
    assert np.isfinite(estimate.value) or verdict.level == Level.REFUSE
    assert bool(verdict.reasons) == (verdict.level > Level.VALID)
    assert all(reason.endswith(".") for reason in verdict.reasons)


def assert_influence(estimate: Estimate) -> None:
    psi = estimate.influence
    if psi is None:
        return
    assert psi.shape == (estimate.n_episodes,)
    if not np.isfinite(psi).all():
        assert estimate.verdict.level == Level.REFUSE
    elif estimate.verdict.level < Level.REFUSE:
        assert abs(psi.mean()) <= 1e-6 * max(np.abs(psi).max(), abs(estimate.value))
        assert np.isnan(estimate.std_error) == (estimate.n_episodes == 1)


def assert_intervals(estimate: Estimate) -> None:
    for method in INTERVALS:
        try:
            low, high = estimate.confidence_interval(0.9, method)
            lower, upper = estimate.lower_bound(0.9, method), estimate.upper_bound(0.9, method)
        except IntervalNotAvailable:
            continue
        if not np.isfinite(estimate.value) or (estimate.influence is not None and np.isnan(estimate.std_error)):
            assert all(np.isnan([low, high, lower, upper]))
            continue
        assert low <= lower <= upper <= high
        if method in (None, "normal"):
            assert low <= estimate.value <= high
