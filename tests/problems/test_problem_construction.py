"""What problems refuse to be built from, and what they tell about themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ope.problems import Baird, Graph, ModelFail, RandomMDP, RiverSwim, TabularProblem


def build(**changes: Any) -> TabularProblem:
    parts: dict[str, Any] = {
        "transitions": np.full((2, 2, 2), 0.5),
        "rewards": np.zeros((2, 2)),
        "initial": [0.5, 0.5],
        "behavior": [[0.5, 0.5]] * 2,
        "target": [[1.0, 0.0]] * 2,
        "horizon": 3,
    } | changes
    return TabularProblem(parts.pop("transitions"), parts.pop("rewards"), parts.pop("initial"), **parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transitions": np.full((2, 2, 2), 0.4)}, "`transitions` must be probabilities that sum to 1"),
        ({"transitions": np.full((2, 3), 0.5)}, "`transitions` must have shape"),
        ({"transitions": np.full((4, 2, 2, 2), 0.5)}, "as many steps of `horizon`, got 3"),
        ({"rewards": np.zeros((2, 3))}, "`rewards` must have shape"),
        ({"rewards": np.zeros((3, 2, 2, 2))}, "`rewards` must have shape"),
        ({"initial": [0.5, 0.4]}, "`initial` must be probabilities"),
        ({"initial": [1.0, 0.0], "terminal": [True, False]}, "`initial` must be a distribution"),
        ({"terminal": [True]}, "`terminal` must have shape"),
        ({"behavior": [[0.5, 0.5]]}, r"`behavior` must have shape \(2, 2\)"),
        ({"target": [[1.5, -0.5]] * 2}, "`target` must be probabilities"),
        ({"observation": [0, 2]}, "without gaps"),
        ({"observation": [0, -1]}, "-1 for terminal states only"),
        ({"observation": [0.0, 1.0]}, "one integer code per true state"),
        ({"encoding": "onehot"}, "`encoding` must be one of"),
        ({"encoding": [[1.0], [1.0]]}, "distinct row"),
        ({"reward_std": -1.0}, "`reward_std` must be a finite number"),
        ({"horizon": 0}, "`horizon` must be an integer of at least 1"),
        ({"max_steps": 2.5}, "`max_steps` must be an integer of at least 1"),
        ({"default_gamma": 1.5}, "`gamma` must be in"),
    ],
)
def test_bad_parts_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"TabularProblem: .*{message}"):
        build(**changes)


def test_bad_calls_are_named() -> None:
    problem = build()
    with pytest.raises(ValueError, match="`n_episodes` must be an integer of at least 1, got 0"):
        problem.sample(0)
    with pytest.raises(ValueError, match="`gamma` must be in"):
        problem.value(problem.target, gamma=2.0)
    with pytest.raises(ValueError, match="`policy` must be probabilities"):
        problem.value([[0.9, 0.2]] * 2)
    with pytest.raises(ValueError, match="must be rows of `features`"):
        problem.state_code([[0.5, 0.5]])
    with pytest.raises(ValueError, match="must be rows of `features`"):
        problem.state_code([[1.0]])


def test_bad_parameters_of_reference_problems() -> None:
    with pytest.raises(ValueError, match="Graph: `horizon` must be an integer of at least 2, got 1"):
        Graph(1)
    with pytest.raises(ValueError, match=r"Graph: `slip` must be a finite number from 0.0 to 1.0, got 1.2"):
        Graph(slip=1.2)
    with pytest.raises(ValueError, match="RiverSwim: `n_states` must be an integer of at least 2, got 1"):
        RiverSwim(1)
    with pytest.raises(ValueError, match="RandomMDP: `terminals` must be an integer of at least 0, got -1"):
        RandomMDP(terminals=-1)
    with pytest.raises(ValueError, match=r"RandomMDP: `exploration` must be a finite number from 0.0 to 1.0, got 1.5"):
        RandomMDP(exploration=1.5)


def test_attributes() -> None:
    assert (ModelFail().n_states, ModelFail().n_actions, ModelFail().horizon) == (1, 2, 2)
    assert (Baird().n_states, Baird().features.shape) == (7, (7, 8))
    assert RiverSwim(4).value(RiverSwim.policy(0.7, 4)) > RiverSwim(6).value(RiverSwim.policy(0.7))
    assert RandomMDP(3, 2, terminals=2).n_states == 3
    assert RiverSwim().n_steps == 100
    assert RiverSwim(horizon=20).n_steps == 20
    assert RiverSwim(horizon=20, max_steps=50).n_steps == 20


def test_inputs_are_neither_kept_nor_changed() -> None:
    transitions = np.full((2, 2, 2), 0.5)
    problem = build(transitions=transitions)
    before = problem.value(problem.target)
    transitions[:] = 0.0
    assert problem.value(problem.target) == before


@pytest.mark.parametrize("encoding", ["one_hot", "index"])
def test_state_code_inverts_the_encoding(encoding: str) -> None:
    problem = RandomMDP(9, 2, encoding=encoding)
    np.testing.assert_array_equal(problem.state_code(problem.features[::-1]), np.arange(9)[::-1])
    np.testing.assert_array_equal(Baird().state_code(Baird().features), np.arange(7))


def test_random_mdp_is_drawn_by_its_seed() -> None:
    first, again, other = (RandomMDP(random_state=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.process.transitions, again.process.transitions)
    assert not np.array_equal(first.process.transitions, other.process.transitions)
    assert (first.behavior >= 0.1 - 1e-12).all()
