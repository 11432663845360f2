"""LSPI against exact policy iteration on the empirical model, and its ends, masks and warnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from learner_logs import random_log

from ope.dataset import LoggedDataset
from ope.neural.serialization import load_policy
from ope.policies.lspi import LSPI
from ope.schema import End

GAMMA, N_STATES = 0.8, 4


def table_log(seed: int = 0) -> tuple[LoggedDataset, list[tuple[int, int, float, int | None]]]:
    """One-step episodes from a random model, and the same as tuples; None follows a terminal."""
    rng = np.random.default_rng(seed)
    moves = rng.integers(0, N_STATES, size=(N_STATES, 3, 2))
    rows: list[tuple[int, int, float, int | None]] = []
    for _ in range(400):
        s, a = int(rng.integers(N_STATES)), int(rng.integers(3))
        after = int(moves[s, a, rng.integers(2)])
        rows.append((s, a, float(s * a + rng.normal()), None if rng.random() < 0.1 else after))
    log = LoggedDataset.from_arrays(
        [np.eye(N_STATES)[s] for s, *_ in rows],
        np.array(["x", "y", "z"])[[a for _, a, *_ in rows]],
        [r for *_, r, _ in rows],
        lengths=[1] * len(rows),
        ends=[End.TERMINAL if after is None else End.TRUNCATED for *_, after in rows],
        final_states=[np.eye(N_STATES)[after or 0] for *_, after in rows],
    )
    return log, rows


def optimal_values(rows: list[tuple[int, int, float, int | None]]) -> np.ndarray:
    """Iterate Q(s, a) = average of r + gamma max Q(s') over the rows, by loops."""
    q = np.zeros((N_STATES, 3))
    for _ in range(200):
        total, count = np.zeros((N_STATES, 3)), np.zeros((N_STATES, 3))
        for s, a, r, after in rows:
            total[s, a] += r + (0.0 if after is None else GAMMA * q[after].max())
            count[s, a] += 1
        q = total / count
    return q


def test_one_hot_states_give_the_optimum_of_the_empirical_model(tmp_path: Path) -> None:
    log, rows = table_log()
    learner = LSPI(gamma=GAMMA, ridge=1e-10, normalize_states=False).fit(log)
    expected = optimal_values(rows)
    np.testing.assert_allclose(learner.q_values(np.eye(N_STATES)), expected, rtol=1e-4)
    labels = np.array(["x", "y", "z"])
    np.testing.assert_array_equal(learner.predict(np.eye(N_STATES)), labels[expected.argmax(axis=1)])
    assert learner.history_["changed_actions"].iloc[-1] == 0
    learner.save(tmp_path / "policy")
    np.testing.assert_array_equal(load_policy(tmp_path / "policy").q_values(log.states), learner.q_values(log.states))


@pytest.mark.parametrize(("end", "value"), [("terminal", 1.0), ("truncated", 2.0), ("horizon", 2.0)])
def test_a_terminal_is_not_a_truncation(end: str, value: float) -> None:
    log = LoggedDataset.from_arrays(
        [[1.0]] * 20, ["only"] * 20, [1.0] * 20, lengths=[1] * 20, ends=end, final_states=[[1.0]] * 20
    )
    assert LSPI(gamma=0.5).fit(log).q_values([[1.0]])[0, 0] == pytest.approx(value, rel=1e-4)


def test_masked_actions_are_not_bootstrapped() -> None:
    # Two steps: "b" pays 10 in state 1, where it is never available after state 0.
    states, actions, rewards = [[0.0], [1.0], [1.0]], ["a", "a", "b"], [0.0, 1.0, 10.0]
    mask = [[True, False], [True, False], [False, True]]
    log = LoggedDataset.from_arrays(
        states * 5, actions * 5, rewards * 5, lengths=[2, 1] * 5, ends="terminal", action_mask=mask * 5
    )
    learner = LSPI(gamma=0.9, ridge=1e-10).fit(log)
    np.testing.assert_allclose(learner.q_values([[0.0], [1.0]])[[0, 1, 1], [0, 0, 1]], [0.9, 1.0, 10.0], rtol=1e-4)
    assert learner.predict([[1.0]], [[True, False]]).tolist() == ["a"]


def test_what_is_refused_and_what_is_warned_of() -> None:
    with pytest.raises(TypeError, match="LSPI: `data` must have discrete actions, got continuous ones; use TD3BC"):
        LSPI().fit(random_log(continuous=True))
    with pytest.raises(ValueError, match=r"LSPI: `degree` must be an integer in \[1, inf\)"):
        LSPI(degree=0).fit(random_log())
    with pytest.warns(UserWarning, match="the policy still changed in iteration 1; the last one is kept"):
        LSPI(max_iterations=1).fit(random_log())
