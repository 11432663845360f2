"""Exact values against rules written by hand, walked through in plain loops, and against the published numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest

from ope.problems import (
    ALL_PROBLEMS,
    Baird,
    Graph,
    Hybrid,
    ModelFail,
    ModelWin,
    RandomMDP,
    RiverSwim,
    TabularProblem,
    make,
)

Branches = list[tuple[float, int, float]]
Rules = Callable[[int, int, int], Branches]
"""(time, state, action) to the possible (probability, next state, reward)."""

FAIL, WIN = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-1.0))


def fail_rules(_t: int, state: int, action: int) -> Branches:
    return {0: [(1.0, 1 + action, 0.0)], 1: [(1.0, 0, 1.0)], 2: [(1.0, 0, -1.0)]}[state]


def win_rules(_t: int, state: int, action: int) -> Branches:
    up = 0.4 if action == 0 else 0.6
    return [(up, 1, 1.0), (1 - up, 2, -1.0)] if state == 0 else [(1.0, 0, 0.0)]


def hybrid_rules(t: int, state: int, action: int) -> Branches:
    if state == 0:
        return [(1.0, 1 + action, 0.0)]
    if state in (1, 2):
        return [(1.0, 3, 1.0 if state == 1 else -1.0)]
    return [(p, 3 + to, r) for p, to, r in win_rules(t, state - 3, action)]


def graph_rules(horizon: int) -> Rules:
    def rules(t: int, state: int, action: int) -> Branches:
        if t == horizon - 1:
            return [(1.0, state, 1.0 if state == 1 else -1.0)]
        odd = 0.75 if action == 0 else 0.25
        return [(odd, 1, 1.0), (1 - odd, 2, -1.0)]

    return rules


def river_rules(_t: int, state: int, action: int) -> Branches:
    if action == 0:
        return [(1.0, max(state - 1, 0), 0.005 if state == 0 else 0.0)]
    if state == 0:
        return [(0.4, 0, 0.0), (0.6, 1, 0.0)]
    if state == 5:
        return [(0.6, 5, 1.0), (0.4, 4, 1.0)]
    return [(0.05, state - 1, 0.0), (0.6, state, 0.0), (0.35, state + 1, 0.0)]


def walk(rules: Rules, policy: Sequence[Sequence[float]], gamma: float, horizon: int) -> float:
    """Expected return from state 0; the policy is a table over true states."""

    @cache
    def value(t: int, state: int) -> float:
        if t == horizon:
            return 0.0
        total = 0.0
        for action, chance in enumerate(policy[state]):
            for p, to, reward in rules(t, state, action):
                total += chance * p * (reward + gamma * value(t + 1, to))
        return total

    return value(0, 0)


def pair(first: float) -> list[float]:
    return [first, 1 - first]


FAIL_TARGET = [pair(1 - FAIL)] * 3
WIN_TARGET = [pair(1 - WIN), pair(0.5), pair(0.5)]


@pytest.mark.parametrize(
    ("problem", "rules", "policy", "published"),
    [
        (ModelFail(), fail_rules, FAIL_TARGET, -0.7615941560),
        (ModelWin(), win_rules, WIN_TARGET, 0.9242343145),
        (Hybrid(), hybrid_rules, FAIL_TARGET + WIN_TARGET, 0.1626401586),
        (Graph(16), graph_rules(16), [pair(0.2)] * 3, -4.1430341911),
    ],
    ids=lambda item: getattr(item, "name", None),
)
def test_target_value_is_the_published_one(
    problem: TabularProblem, rules: Rules, policy: list[list[float]], published: float
) -> None:
    value = problem.value(problem.target)
    assert value == pytest.approx(published, abs=1e-10)
    assert value == pytest.approx(walk(rules, policy, problem.default_gamma, problem.horizon or 0), abs=1e-12)


def test_closed_forms() -> None:
    fail, win, hybrid = ModelFail(), ModelWin(), Hybrid()
    assert fail.value(fail.target) == pytest.approx(-np.tanh(1.0), abs=1e-14)
    assert win.value(win.target) == pytest.approx(2 * np.tanh(0.5), abs=1e-14)
    assert hybrid.value(hybrid.target) == pytest.approx(2 * np.tanh(0.5) - np.tanh(1.0), abs=1e-14)
    assert fail.value(fail.behavior) == pytest.approx(np.tanh(1.0), abs=1e-14)
    assert win.value(win.behavior) == pytest.approx(-2 * np.tanh(0.5), abs=1e-14)


@pytest.mark.parametrize(("horizon", "published"), [(4, 1.1644776), (16, 4.1430341911)])
def test_graph_value_changes_sign_with_the_policy(horizon: int, published: float) -> None:
    problem = Graph(horizon)
    geometric = 0.3 * sum(0.98**t for t in range(horizon))
    for odd, sign in ((0.2, -1), (0.8, 1)):
        assert problem.value(Graph.policy(odd)) == pytest.approx(sign * published, abs=1e-10)
        assert problem.value(Graph.policy(odd)) == pytest.approx(sign * geometric, abs=1e-12)


ENDLESS = {0.5: 0.0466684618, 0.6: 0.1010134366, 0.8: 1.0063626819, 0.9: 2.4426254477, 1.0: 4.6693001607}
LIMITED = {0.5: 0.0437890231, 0.6: 0.0806692976, 0.8: 0.6445572639, 0.9: 1.5986435503, 1.0: 3.3966369762}


@pytest.mark.parametrize(("right", "published"), ENDLESS.items())
def test_endless_river_swim(right: float, published: float) -> None:
    value = RiverSwim().value(RiverSwim.policy(right), gamma=0.95)
    assert value == pytest.approx(published, abs=1e-10)
    values = [0.0] * 6
    for _ in range(800):
        values = [
            sum(
                chance * p * (reward + 0.95 * values[to])
                for action, chance in enumerate(pair(1 - right))
                for p, to, reward in river_rules(0, state, action)
            )
            for state in range(6)
        ]
    assert value == pytest.approx(values[0], abs=1e-12)


@pytest.mark.parametrize(("right", "published"), LIMITED.items())
def test_river_swim_with_a_time_limit(right: float, published: float) -> None:
    value = RiverSwim(horizon=20).value(RiverSwim.policy(right), gamma=1.0)
    assert value == pytest.approx(published, abs=1e-10)
    assert value == pytest.approx(walk(river_rules, [pair(1 - right)] * 6, 1.0, 20), abs=1e-12)


def test_river_swim_discounted_with_a_time_limit() -> None:
    assert RiverSwim(horizon=20).value(RiverSwim.policy(0.9), gamma=0.95) == pytest.approx(0.7739, abs=5e-5)


@pytest.mark.parametrize("gamma", [0.5, 0.99])
def test_baird_is_worth_nothing(gamma: float) -> None:
    problem = Baird()
    assert problem.value(problem.target, gamma) == 0.0
    assert problem.value(problem.behavior, gamma) == 0.0
    assert problem.default_gamma == 0.99
    np.testing.assert_array_equal(problem.behavior[0], [6 / 7, 1 / 7])
    np.testing.assert_array_equal(problem.target[0], [0, 1])


def test_baird_semi_gradient_diverges_and_features_span_all_values() -> None:
    problem = Baird()
    phi = problem.features
    weights = np.array([1.0, 1, 1, 1, 1, 1, 10, 1])
    start = np.abs(weights).max()
    # Expected semi-gradient temporal differences under the behaviour policy: solid (ratio 7) always lands in state 7.
    for _ in range(2000):
        errors = 0.99 * phi[6] @ weights - phi @ weights
        weights = weights + 0.01 * (phi.T @ errors) / 7
    assert np.abs(weights).max() > 10 * start
    assert np.linalg.matrix_rank(phi) == 7


def test_limit_of_the_tabular_model_on_model_fail() -> None:
    # With infinite data the one-state model predicts the mean logged reward at every step: wrong by 2 tanh 1.
    problem = ModelFail()
    reward, chance = 0.0, problem.process.initial
    b = problem.behavior[0]
    for t in range(2):
        P, R = problem.process.at(t)
        reward += sum(chance[s] * b[a] * P[s, a] @ R[s, a] for s in range(3) for a in range(2)) / 2
        chance = sum(chance[s] * b[a] * P[s, a] for s in range(3) for a in range(2))
    assert (2 * reward - problem.value(problem.target)) ** 2 == pytest.approx(2.32, abs=5e-3)


@pytest.mark.parametrize("terminals", [0, 2])
@pytest.mark.parametrize("horizon", [None, 1, 7])
def test_random_mdp_against_plain_loops(terminals: int, horizon: int | None) -> None:
    problem = RandomMDP(4, 3, horizon, terminals=terminals, random_state=5)
    P, R, pi = problem.process.transitions, problem.process.rewards, problem.target
    values = [0.0] * len(P)
    for _ in range(horizon or 400):
        updated = [0.0] * len(P)
        for s in range(4):
            for a in range(3):
                for z in range(len(P)):
                    updated[s] += pi[s, a] * P[s, a, z] * (R[s, a, z] + 0.9 * values[z])
        values = updated
    assert problem.value(pi) == pytest.approx(float(np.dot(problem.process.initial, values)), abs=1e-12)


def test_undiscounted_value_with_terminals_is_the_limit() -> None:
    problem = RandomMDP(4, 2, terminals=1, random_state=2)
    limited = RandomMDP(4, 2, horizon=2000, terminals=1, random_state=2)
    assert problem.value(problem.target, gamma=1.0) == pytest.approx(
        limited.value(problem.target, gamma=1.0), abs=1e-10
    )


def test_time_dependent_dynamics_against_plain_loops() -> None:
    rng = np.random.default_rng(0)
    P, R = rng.dirichlet(np.ones(3), size=(4, 3, 2)), rng.normal(size=(4, 3, 2, 3))
    pi = rng.dirichlet(np.ones(2), size=3)
    problem = TabularProblem(P, R, [1.0, 0, 0], behavior=pi, target=pi, horizon=4)

    def rules(t: int, state: int, action: int) -> Branches:
        return [(P[t, state, action, z], z, R[t, state, action, z]) for z in range(3)]

    assert problem.value(pi, gamma=0.7) == pytest.approx(walk(rules, pi.tolist(), 0.7, 4), abs=1e-12)


@pytest.mark.parametrize("horizon", [None, 3])
def test_action_values_obey_the_bellman_equation(horizon: int | None) -> None:
    problem = RandomMDP(4, 2, horizon, terminals=1, random_state=3)
    pi = np.vstack([problem.target, [1.0, 0.0]])
    V, Q = problem.state_values(problem.target), problem.action_values(problem.target)
    now, later = (V, V) if horizon is None else (V[0], V[1])
    first = Q if horizon is None else Q[0]
    np.testing.assert_allclose((pi * first).sum(axis=1), now, atol=1e-12)
    P, R = problem.process.at(0)
    for s in range(5):
        for a in range(2):
            assert first[s, a] == pytest.approx(
                sum(P[s, a, z] * (R[s, a, z] + 0.9 * later[z]) for z in range(5)), abs=1e-12
            )
    assert now[4] == 0.0


def test_undiscounted_value_needs_an_end() -> None:
    for problem in (RiverSwim(), Baird()):
        with pytest.raises(ValueError, match="pass gamma < 1 or give the problem a horizon"):
            problem.value(problem.target, gamma=1.0)


def test_only_states_that_the_policy_visits_must_terminate() -> None:
    # State 0 ends under action 0 and moves to the trap 1 under action 1.
    P = np.zeros((3, 2, 3))
    P[0, 0, 2] = P[0, 1, 1] = P[1, :, 1] = 1.0
    problem = TabularProblem(
        P,
        np.ones((3, 2)),
        [1.0, 0, 0],
        behavior=[[0.5, 0.5]] * 2,
        target=[[1.0, 0.0]] * 2,
        terminal=[False, False, True],
    )
    assert problem.value(problem.target, gamma=1.0) == 1.0
    assert np.isnan(problem.state_values(problem.target, gamma=1.0)[1])
    np.testing.assert_array_equal(problem.action_values(problem.target, 1.0), [[1.0, np.nan], [np.nan] * 2, [0.0] * 2])
    with pytest.raises(ValueError, match="never terminates from state 1"):
        problem.value(problem.behavior, gamma=1.0)
    assert problem.value(problem.behavior, gamma=0.5) == pytest.approx(0.5 * 1 + 0.5 * 2)


def test_horizon_limits_an_endless_problem_at_gamma_one() -> None:
    problem = RiverSwim(horizon=3)
    assert problem.value(RiverSwim.policy(0.0), gamma=1.0) == pytest.approx(0.015)


def test_registry_builds_every_problem() -> None:
    assert set(ALL_PROBLEMS) == {
        "ModelFail", "ModelWin", "Hybrid", "Graph", "RiverSwim", "ScalarLQR", "Baird", "RandomMDP",
    }  # fmt: skip
    for name in ALL_PROBLEMS:
        problem = make(name)
        assert problem.name == name
        assert np.isfinite(problem.value(problem.target))
        assert repr(problem).startswith(name)
    assert make("Graph", horizon=8).horizon == 8
    with pytest.raises(ValueError, match=r"`name` must be one of .*'Graph'.*, got 'graph'"):
        make("graph")
