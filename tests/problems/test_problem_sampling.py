"""Logs drawn from the problems: frequencies, propensities, ends, final states, seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ope.dataset import LoggedDataset
from ope.policy import Policy
from ope.problems import ALL_PROBLEMS, Baird, Graph, Hybrid, ModelFail, RandomMDP, RiverSwim, TabularProblem, make
from ope.schema import End
from ope.validation import FloatArray, IntArray

TABULAR: list[TabularProblem] = [
    problem for name in ALL_PROBLEMS if isinstance(problem := make(name), TabularProblem)
] + [RandomMDP(6, 3, terminals=1), RandomMDP(4, 3, horizon=5, reward_std=0.5), RiverSwim(horizon=20, max_steps=8)]


def returns(log: LoggedDataset, gamma: float) -> FloatArray:
    return np.array(
        [
            sum(gamma**t * r for t, r in enumerate(log.rewards[first:last]))
            for first, last in zip(log.offsets[:-1], log.offsets[1:], strict=True)
        ]
    )


def next_states(log: LoggedDataset) -> FloatArray:
    """Follow every logged state by the next one of its episode, the last by the final state."""
    final = np.full((log.n_episodes, log.states.shape[1]), np.nan) if log.final_states is None else log.final_states
    parts = [
        np.vstack([log.states[first + 1 : last], final[i]])
        for i, (first, last) in enumerate(zip(log.offsets[:-1], log.offsets[1:], strict=True))
    ]
    return np.vstack(parts)


def codes_of(problem: TabularProblem, states: FloatArray) -> IntArray:
    codes = np.full(len(states), -1)
    known = ~np.isnan(states).any(axis=1)
    codes[known] = problem.state_code(states[known])
    return codes


def assert_frequencies(counts: npt.NDArray[Any], probs: FloatArray) -> None:
    """Compare each count with its binomial mean; impossible outcomes must never occur."""
    total = counts.sum()
    assert counts[probs == 0].sum() == 0
    spread = np.sqrt(total * probs * (1 - probs))
    assert (np.abs(counts - total * probs) <= 4.5 * spread + 1e-9).all()


@pytest.mark.parametrize("problem", TABULAR, ids=repr)
def test_propensities_and_action_frequencies(problem: TabularProblem) -> None:
    log = problem.sample(2000, random_state=1)
    codes = codes_of(problem, log.states)
    assert log.behavior_log_prob is not None
    np.testing.assert_allclose(np.exp(log.behavior_log_prob), problem.behavior[codes, log.actions], rtol=1e-12)
    assert log.known_propensities
    assert log.action_labels is not None
    assert log.action_labels.tolist() == list(range(problem.n_actions))
    for code in range(problem.n_states):
        assert_frequencies(np.bincount(log.actions[codes == code], minlength=problem.n_actions), problem.behavior[code])


@pytest.mark.parametrize("problem", [*TABULAR[4:], Graph(3)], ids=repr)
def test_transition_frequencies_and_rewards(problem: TabularProblem) -> None:
    log = problem.sample(3000, random_state=2)
    before, after = codes_of(problem, log.states), codes_of(problem, next_states(log))
    shown = problem.observation.tolist()
    times = log.timesteps if not problem.process.stationary else np.zeros(len(log), int)
    for t in np.unique(times):
        P, R = problem.process.at(int(t))
        for s in np.flatnonzero(problem.observation >= 0):
            for a in range(problem.n_actions):
                rows = (before == problem.observation[s]) & (log.actions == a) & (times == t)
                counts = np.array([(after[rows] == code).sum() for code in shown])
                assert_frequencies(counts, P[s, a])
                if problem.process.reward_std == 0:
                    reached = [shown.index(code) for code in after[rows]]
                    np.testing.assert_array_equal(log.rewards[rows], R[s, a, reached])


@pytest.mark.parametrize("problem", TABULAR[:-1], ids=repr)
def test_mean_return_on_policy_is_the_value(problem: TabularProblem) -> None:
    # What an endless problem earns after the recording stops is at most gamma^100 / (1 - gamma).
    endless = problem.horizon is None
    gamma = 0.9 if endless else problem.default_gamma
    for policy in (problem.behavior, problem.target):
        totals = returns(problem.sample(2000, policy, random_state=3), gamma)
        error = abs(totals.mean() - problem.value(policy, gamma))
        assert error <= 4 * totals.std() / np.sqrt(len(totals)) + (10 * 0.9**100 if endless else 1e-12)


def test_hybrid_shows_one_state_at_first() -> None:
    problem = Hybrid()
    log = problem.sample(50)
    codes = codes_of(problem, log.states).reshape(50, 22)
    assert (codes[:, :2] == 0).all()
    assert (codes[:, 2::2] == 1).all()
    assert np.isin(codes[:, 3::2], [2, 3]).all()
    rewards, actions = log.rewards.reshape(50, 22), log.actions.reshape(50, 22)
    np.testing.assert_array_equal(rewards[:, 1], 1 - 2 * actions[:, 0])
    np.testing.assert_array_equal(rewards[:, 3::2], 0)


def test_model_fail_shows_a_constant() -> None:
    log = ModelFail().sample(10)
    assert (log.states == 1).all()
    np.testing.assert_array_equal(log.rewards.reshape(10, 2)[:, 1], 1 - 2 * log.actions.reshape(10, 2)[:, 0])


@pytest.mark.parametrize("problem", TABULAR, ids=repr)
def test_ends_lengths_and_final_states(problem: TabularProblem) -> None:
    log = problem.sample(300, random_state=4)
    terminal = log.ends == End.TERMINAL
    limit = End.HORIZON if problem.horizon is not None and problem.n_steps == problem.horizon else End.TRUNCATED
    assert (log.ends[~terminal] == limit).all()
    assert (log.lengths[~terminal] == problem.n_steps).all()
    assert (log.lengths <= problem.n_steps).all()
    assert terminal.any() == problem.process.terminal.any()
    np.testing.assert_array_equal(log.final_known(), ~terminal)
    assert log.horizon == problem.horizon
    np.testing.assert_array_equal(log.timesteps, np.concatenate([np.arange(length) for length in log.lengths]))


def test_terminal_states_may_be_shown() -> None:
    P = np.zeros((2, 1, 2))
    P[0, 0] = [0.5, 0.5]
    problem = TabularProblem(
        P, np.zeros((2, 1)), [1.0, 0.0], behavior=[[1.0]] * 2, target=[[1.0]] * 2, terminal=[False, True],
        observation=[0, 1], encoding="index", max_steps=3,
    )  # fmt: skip
    log = problem.sample(100)
    assert log.final_states is not None
    np.testing.assert_array_equal(log.final_states[:, 0], log.ends == End.TERMINAL)
    assert set(log.ends.tolist()) == {End.TERMINAL, End.TRUNCATED}


def test_recording_may_stop_before_the_horizon() -> None:
    log = RiverSwim(horizon=20, max_steps=8).sample(5)
    assert (log.ends == End.TRUNCATED).all()
    assert log.horizon == 20
    assert (log.lengths == 8).all()


@pytest.mark.parametrize("name", ALL_PROBLEMS)
def test_seeds(name: str) -> None:
    problem = make(name)
    first, again, other = (problem.sample(20, random_state=seed) for seed in (7, 7, 8))
    generator = problem.sample(20, random_state=np.random.default_rng(7))
    for same in (again, generator):
        for column in ("states", "actions", "rewards", "behavior_log_prob", "final_states", "ends", "offsets"):
            np.testing.assert_array_equal(getattr(first, column), getattr(same, column))
    assert not np.array_equal(first.actions, other.actions)


@pytest.mark.parametrize("name", ALL_PROBLEMS)
def test_reward_range_holds(name: str) -> None:
    problem = make(name)
    log = problem.sample(200)
    assert log.reward_range == problem.reward_range
    if name == "ScalarLQR":
        assert problem.reward_range is None
    else:
        assert problem.reward_range is not None
    if name in ("ModelFail", "ModelWin", "Hybrid"):
        assert problem.reward_range == (-1.0, 1.0)


def test_noise_of_rewards() -> None:
    problem = RandomMDP(3, 2, horizon=4, reward_std=0.5)
    assert problem.reward_range is None
    log = problem.sample(5000)
    before, after = codes_of(problem, log.states), codes_of(problem, next_states(log))
    noise = log.rewards - problem.process.rewards[before, log.actions, after]
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(len(noise))
    assert noise.std() == pytest.approx(0.5, rel=4 / np.sqrt(2 * len(noise)))


@pytest.mark.parametrize("encoding", ["one_hot", "index"])
def test_encodings_show_the_same_states(encoding: str) -> None:
    log = RiverSwim(encoding=encoding).sample(10)
    reference = codes_of(RiverSwim(), RiverSwim().sample(10).states)
    expected = np.eye(6)[reference] if encoding == "one_hot" else reference[:, None]
    np.testing.assert_array_equal(log.states, expected)


def test_baird_logs_its_features() -> None:
    problem = Baird()
    log = problem.sample(20)
    solid = log.actions == 1
    after = problem.state_code(next_states(log))
    assert (after[solid] == 6).all()
    assert (after[~solid] < 6).all()
    np.testing.assert_array_equal(np.unique(log.states, axis=0), np.unique(problem.features, axis=0))
    assert Baird(encoding="index").sample(2).states.shape == (200, 1)


class SoftMax(Policy):
    """A policy of features: the table it stands for is computed by hand in the test."""

    def __init__(self, weights: FloatArray) -> None:
        self.weights = weights

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"all_probs"})

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        scores = np.exp(np.asarray(states) @ self.weights)
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("encoding", ["one_hot", "index", "features"])
def test_policies_act_on_what_the_log_shows(encoding: str) -> None:
    shown = np.random.default_rng(0).normal(size=(6, 2)) if encoding == "features" else encoding
    problem = RiverSwim(encoding=shown)
    weights = np.random.default_rng(1).normal(size=(problem.features.shape[1], 2))
    policy = SoftMax(weights)
    table = np.empty((6, 2))
    for s in range(6):
        scores = [np.exp(float(problem.features[s] @ weights[:, a])) for a in range(2)]
        table[s] = [score / sum(scores) for score in scores]
    np.testing.assert_allclose(problem.table(policy), table, rtol=1e-12)
    assert problem.value(policy) == pytest.approx(problem.value(table), abs=1e-13)
    log, reference = problem.sample(30, policy), problem.sample(30, table)
    np.testing.assert_array_equal(log.actions, reference.actions)
    moments = problem.importance_sampling_moments(policy, behavior=policy)
    assert moments.weight_variance == pytest.approx(0.0, abs=1e-12)
