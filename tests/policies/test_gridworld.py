"""A gridworld with a known optimum and a poor log: learners beat the behaviour, plain Q-learning fails as theory says."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import ope.policies
from ope.dataset import LoggedDataset
from ope.schema import End

SIDE, GAMMA = 4, 0.9
N = SIDE * SIDE
GOAL = N - 1
LABELS = np.array(["down", "left", "right", "up", "vault"])  # in the order of a log's labels
# The behaviour walks at random, mostly away from the goal, and never vaults: that costs 20 and leads back to the start.
BEHAVIOR = np.array([0.2, 0.25, 0.2, 0.35, 0.0])
FloatArray = npt.NDArray[np.float64]


def step(cell: int, action: int) -> tuple[int, float]:
    if action == 4:
        return 0, -20.0
    row, column = divmod(cell, SIDE)
    moves = ((1, 0), (0, -1), (0, 1), (-1, 0))
    row = min(max(row + moves[action][0], 0), SIDE - 1)
    column = min(max(column + moves[action][1], 0), SIDE - 1)
    return row * SIDE + column, -1.0


@cache
def grid_log(n_episodes: int = 150) -> LoggedDataset:
    rng = np.random.default_rng(0)
    states, actions, rewards, lengths, ends, finals = [], [], [], [], [], []
    for _ in range(n_episodes):
        cell, steps = int(rng.integers(N - 1)), 0
        while cell != GOAL and steps < 15:
            action = int(rng.choice(5, p=BEHAVIOR))
            states.append(np.eye(N)[cell])
            actions.append(action)
            cell, reward = step(cell, action)
            rewards.append(reward)
            steps += 1
        lengths.append(steps)
        ends.append(End.TERMINAL if cell == GOAL else End.TRUNCATED)
        finals.append(np.eye(N)[cell])
    return LoggedDataset.from_arrays(
        states, LABELS[actions], rewards, lengths=lengths, ends=ends, final_states=finals, action_labels=LABELS
    )


def model() -> tuple[FloatArray, FloatArray]:
    transition, reward = np.zeros((N, 5, N)), np.zeros((N, 5))
    for cell in range(N - 1):
        for action in range(5):
            after, reward[cell, action] = step(cell, action)
            transition[cell, action, after] = 1.0
    transition[:, :, GOAL] = 0.0
    return transition, reward


def exact_values(probs: FloatArray) -> FloatArray:
    transition, reward = model()
    chain = np.einsum("sa,sat->st", probs, transition)
    return np.linalg.solve(np.eye(N) - GAMMA * chain, (probs * reward).sum(axis=1))


def value_of(probs: FloatArray) -> float:
    return float(exact_values(probs)[:-1].mean())


def optimum() -> float:
    transition, reward = model()
    v = np.zeros(N)
    for _ in range(200):
        v = (reward + GAMMA * transition @ v).max(axis=1)
        v[GOAL] = 0.0
    return float(v[:-1].mean())


SETTINGS: dict[str, Any] = {
    "hidden": (32,), "n_updates": 500, "batch_size": 64, "learning_rate": 5e-3, "random_state": 0,
    "normalize_states": False,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "BCQ": {"gamma": GAMMA, "tau": 0.05, "threshold": 0.3},
    "CQL": {"gamma": GAMMA, "tau": 0.05, "alpha": 1.0, "n_updates": 800},
    "IQL": {"gamma": GAMMA, "tau": 0.05, "expectile": 0.9, "beta": 5.0, "reward_scale": 1.0},
    "AWAC": {"gamma": GAMMA, "tau": 0.05, "beta": 0.3},
    "AWR": {"gamma": GAMMA, "td_lambda": 0.5, "beta": 0.3, "refresh": 50},
    "CRR": {"gamma": GAMMA, "tau": 0.05, "binary": True},
    "DoubleDQN": {"gamma": GAMMA, "tau": 0.05},
    "REM": {"gamma": GAMMA, "tau": 0.05},
    "BehaviorCloning": {},
}


@cache
def fitted(name: str) -> Any:
    return getattr(ope.policies, name)(**{**SETTINGS, **OWN[name]}).fit(grid_log())


def probs_of(name: str) -> FloatArray:
    return np.asarray(fitted(name).predict_proba(np.eye(N)))


@pytest.mark.parametrize("name", ["AWAC", "AWR", "BCQ", "CQL", "CRR", "IQL"])
def test_each_learner_beats_cloning_and_the_behavior(name: str) -> None:
    best, learned = optimum(), value_of(probs_of(name))
    behavior, cloned = value_of(np.tile(BEHAVIOR, (N, 1))), value_of(probs_of("BehaviorCloning"))
    assert max(behavior, cloned) < best - 3.0
    # At least half of the way from the behaviour to the optimum.
    assert learned > 0.5 * (best + max(behavior, cloned))
    assert float(probs_of(name)[:-1, 4].max()) < 0.05


def test_plain_q_learning_overestimates_actions_that_were_never_taken() -> None:
    naive, cells = fitted("DoubleDQN"), np.eye(N)[:-1]
    transition, reward = model()
    truth = reward + GAMMA * transition @ exact_values(probs_of("DoubleDQN"))
    believed = naive.q_values(cells)
    # The vault is worth at most -20, and is believed to be the best that can be done almost everywhere.
    assert float(truth[:-1, 4].max()) <= -20.0
    assert float(np.median(believed[:, 4])) > -5.0
    assert float(probs_of("DoubleDQN")[:-1, 4].mean()) > 0.5
    assert value_of(probs_of("DoubleDQN")) < value_of(np.tile(BEHAVIOR, (N, 1))) - 10.0
    assert float(believed.max(axis=1).mean()) > optimum()


def test_conservative_values_are_lower_bounds_in_every_cell() -> None:
    believed, probs = fitted("CQL").q_values(np.eye(N)[:-1]), probs_of("CQL")
    assert (believed.max(axis=1) < exact_values(probs)[:-1]).all()
    # The action that was never taken lies below the logged ones.
    assert (believed[:, 4] < believed[:, :4].max(axis=1)).all()
