"""Logs and returns from Gymnasium, against replays in plain environments and against the exact value of a small one."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from ope.dataset import LoggedDataset
from ope.policies import EpsilonGreedy, FunctionPolicy, TabularPolicy
from ope.problems.gym import MAX_ENVS, SEED_LIMIT, GymSimulator
from ope.schema import End
from ope.validation import FloatArray

UNIFORM = TabularPolicy(np.full((16, 4), 0.25))


def _balance(states: FloatArray) -> FloatArray:
    return (states[:, 2] + 0.5 * states[:, 3] > 0).astype(np.int64)


BALANCE = EpsilonGreedy(FunctionPolicy(predict=_balance, action_labels=[0, 1]), 0.4)


def _replay(env: Any, seed: int, actions: list[int]) -> tuple[list[Any], list[float], bool, bool]:
    states, rewards, terminated, truncated = [env.reset(seed=seed)[0]], [], False, False
    for action in actions:
        assert not terminated
        assert not truncated
        state, reward, terminated, truncated, _ = env.step(action)
        states.append(state)
        rewards.append(float(reward))
    return states, rewards, terminated, truncated


def _episodes(log: LoggedDataset) -> list[slice]:
    return [slice(a, b) for a, b in zip(log.offsets[:-1], log.offsets[1:], strict=True)]


def test_log_is_what_a_plain_environment_shows() -> None:
    n_episodes, max_steps = 20, 60
    log = GymSimulator("CartPole-v1", max_steps=max_steps).sample(BALANCE, n_episodes, random_state=3)
    seeds = np.random.default_rng(3).integers(SEED_LIMIT, size=n_episodes).tolist()
    env = gymnasium.make("CartPole-v1", max_episode_steps=max_steps)
    assert log.final_states is not None
    for i, rows in enumerate(_episodes(log)):
        states, rewards, terminated, truncated = _replay(env, seeds[i], log.actions[rows].tolist())
        np.testing.assert_array_equal(log.states[rows], np.array(states[:-1], dtype=np.float64))
        np.testing.assert_array_equal(log.final_states[i], states[-1].astype(np.float64))
        assert log.rewards[rows].tolist() == rewards
        assert (End(log.ends[i]) is End.TERMINAL, End(log.ends[i]) is End.TRUNCATED) == (terminated, truncated)
    assert set(log.ends) == {End.TERMINAL, End.TRUNCATED}


def test_propensities_are_those_of_the_policy() -> None:
    log = GymSimulator("CartPole-v1").sample(BALANCE, 10, random_state=0)
    probs = np.where(log.actions == _balance(log.states), 0.8, 0.2)
    assert log.behavior_log_prob is not None
    np.testing.assert_allclose(np.exp(log.behavior_log_prob), probs, rtol=1e-12)


def _exact_value(probs: FloatArray, gamma: float) -> float:
    """Solve V = r + gamma P V from the environment's own table, over the states where episodes go on."""
    table = gymnasium.make("FrozenLake-v1").unwrapped.P  # type: ignore[attr-defined]
    n = len(table)
    step, reward = np.zeros((n, n)), np.zeros(n)
    for s, actions in table.items():
        for a, outcomes in actions.items():
            for chance, s_next, r, done in outcomes:
                reward[s] += probs[s, a] * chance * r
                step[s, s_next] += probs[s, a] * chance * (not done)
    return float(np.linalg.solve(np.eye(n) - gamma * step, reward)[0])


def test_mean_return_is_the_exact_value() -> None:
    # Left in the first cell, up along the first row, down and right below: a way that often succeeds.
    probs = np.full((16, 4), 0.02) + 0.92 * np.eye(4)[[0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0]]
    returns = GymSimulator("FrozenLake-v1", max_steps=2000).returns(TabularPolicy(probs), 4000, gamma=0.99)
    error = returns.std() / np.sqrt(len(returns))
    exact = _exact_value(probs, 0.99)
    assert exact > 30 * error
    assert abs(returns.mean() - exact) < 4 * error


def test_returns_are_those_of_the_log_of_the_same_seed() -> None:
    simulator = GymSimulator("FrozenLake-v1")
    log, returns = simulator.sample(UNIFORM, 300, 5), simulator.returns(UNIFORM, 300, gamma=0.9, random_state=5)
    by_hand = [sum(0.9**t * r for t, r in enumerate(log.rewards[rows])) for rows in _episodes(log)]
    np.testing.assert_allclose(returns, by_hand, rtol=1e-12)


def test_numbered_states_are_one_hot_and_named() -> None:
    names = tuple(f"cell_{i}" for i in range(16))
    log = GymSimulator("FrozenLake-v1", feature_names=names).sample(UNIFORM, 50)
    assert log.feature_names == names
    assert log.columns.next_states == tuple(f"next_{name}" for name in names)
    assert set(log.states.sum(axis=1)) == {1.0}
    np.testing.assert_array_equal(log.states[log.offsets[:-1]].argmax(axis=1), 0)


def test_more_episodes_than_environments() -> None:
    simulator = GymSimulator("FrozenLake-v1", max_steps=3)
    log = simulator.sample(UNIFORM, 2 * MAX_ENVS + 7, random_state=0)
    assert log.n_episodes == 2 * MAX_ENVS + 7
    assert log.lengths.max() == 3
    first = simulator.sample(UNIFORM, MAX_ENVS, random_state=0)
    np.testing.assert_array_equal(log.states[: len(first)], first.states)


def test_options_reach_the_environment() -> None:
    log = GymSimulator("FrozenLake-v1", options={"map_name": "8x8", "is_slippery": False}).sample(
        TabularPolicy(np.full((64, 4), 0.25)), 5
    )
    assert log.states.shape[1] == 64


@pytest.mark.parametrize(
    ("simulator", "error", "message"),
    [
        (GymSimulator("NoLake-v1"), ValueError, "must be known to Gymnasium, got 'NoLake-v1'"),
        (GymSimulator("Pendulum-v1"), TypeError, "actions of 'Pendulum-v1' must be discrete"),
        (GymSimulator("Blackjack-v1"), TypeError, "states of 'Blackjack-v1' must be vectors or numbers"),
        (GymSimulator("CartPole-v1", max_steps=0), ValueError, "max_steps"),
    ],
)
def test_errors_name_the_environment(simulator: GymSimulator, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simulator.sample(BALANCE, 2)


def test_error_without_gymnasium_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r'pip install "ope-learn\[demo\]"'):
        GymSimulator("CartPole-v1").sample(BALANCE, 2)
