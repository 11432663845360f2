"""Q functions that are given or simulated: against tables, plain loops, and the value of a process that has no noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from estimator_oracles import (
    Case,
    every_end,
    exact_log,
    influence_of,
    jackknife,
    random_case,
    sampled,
    stationary_or_not,
)
from given_models import GivenQ as TableQ
from given_models import random_tables, walk
from sklearn.tree import DecisionTreeRegressor

from ope import Level, LoggedDataset
from ope.estimators import (
    LSTDQ,
    MAGIC,
    BellmanCalibrated,
    DoubleReinforcementLearning,
    DoublyRobust,
    EfficientDoublyRobust,
    FittedQEvaluation,
    GivenQ,
    PerDecisionIS,
    SimulatorQ,
)
from ope.estimators._q import QPredictions
from ope.estimators.simulator_q import replay
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import RiverSwim, ScalarLQR, TabularProblem
from ope.validation import FloatArray

GAMMA = 0.9


def as_function(table: FloatArray) -> Any:
    return lambda states, actions: table[states.argmax(axis=1), actions]


def doubly_robust_by_loops(case: Case, tables: FloatArray, stationary: bool) -> float:
    total = 0.0
    for steps in walk(case, tables, stationary):
        x = steps[0].v
        for t, step in enumerate(steps):
            x += GAMMA**t * step.w * (step.r + GAMMA * step.v_next - step.q)
        total += x / len(case.log.lengths)
    return total


# -------------------------------------------------------------------- given functions


@every_end
@stationary_or_not
def test_a_given_function_gives_the_doubly_robust_value_of_plain_loops(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(0, n=25, ends=ends, zeros=True, horizon=6 if "horizon" in ends else 9)
    tables = random_tables(case, n=1)
    given = GivenQ(q=as_function(tables[0]), stationary=stationary)
    found = DoublyRobust(gamma=GAMMA, q=given).fit(case.log, case.policy).estimate()
    assert found.value == pytest.approx(doubly_robust_by_loops(case, tables, stationary), rel=1e-10)
    own = given.set_params(gamma=GAMMA).fit(case.log, case.policy).estimate()
    table = TableQ(gamma=GAMMA, tables=tables, stationary=stationary).fit_q(case.log, case.policy, np.ones(25))
    v_0 = table.predict(case.policy, case.log).v[case.log.offsets[:-1]]
    assert own.value == pytest.approx(v_0.mean(), rel=1e-12)


def test_an_object_with_predict_serves_too() -> None:
    case = random_case(1, n=20, ends=("terminal",))

    class Model:
        def predict(self, policy: Any, data: LoggedDataset) -> QPredictions:
            assert policy is case.policy or policy.capabilities
            return QPredictions(np.full(len(data), 2.0), np.ones(len(data)), np.zeros(data.n_episodes))

    found = DoublyRobust(gamma=GAMMA, q=GivenQ(q=Model())).fit(case.log, case.policy).estimate()
    steps = [(step.w, step.r, t) for path in walk(case, random_tables(case)) for t, step in enumerate(path)]
    after = [float(t + 1 < len(path)) for path in walk(case, random_tables(case)) for t in range(len(path))]
    terms = [GAMMA**t * w * (r + GAMMA * v - 2.0) for (w, r, t), v in zip(steps, after, strict=True)]
    assert found.value == pytest.approx(1.0 + sum(terms) / 20, rel=1e-10)


def test_the_value_is_unbiased_for_every_function() -> None:
    problem = RiverSwim(horizon=4)
    weighted = exact_log(problem, 4, "horizon")
    policy, truth = TabularPolicy(problem.target), problem.value(problem.target, GAMMA)
    for seed in range(3):
        table = np.random.default_rng(seed).normal(size=(6, 2))
        estimator = DoublyRobust(gamma=GAMMA, q=GivenQ(q=as_function(table)))
        assert estimator.fit(weighted.log, policy, weighted.weight).estimate().value == pytest.approx(truth, rel=1e-9)


def test_influence_with_a_given_function_is_the_jackknife() -> None:
    case = random_case(2, n=20, ends=("terminal", "horizon"), horizon=6)
    estimator = DoublyRobust(gamma=GAMMA, q=GivenQ(q=as_function(random_tables(case, n=1)[0])))

    def value(w: FloatArray) -> float:
        return float(estimator.fit(case.log, case.policy, w).estimate().value)

    psi = influence_of(estimator.fit(case.log, case.policy).estimate())
    np.testing.assert_allclose(psi, jackknife(value, 20), rtol=1e-5, atol=1e-7)


def test_continuous_actions_take_nodes_of_the_candidate() -> None:
    log = ScalarLQR(max_steps=5).sample(50, random_state=0)

    def square(states: FloatArray, actions: FloatArray) -> FloatArray:
        return np.asarray(states[:, 0] + actions[:, 0] ** 2)

    found = GivenQ(gamma=GAMMA, q=square).fit(log, GaussianPolicy([[-0.5]], 0.3)).estimate()
    s = log.states[log.offsets[:-1], 0]
    assert found.value == pytest.approx(np.mean(s + 0.25 * s**2 + 0.09), rel=1e-9)


def test_a_value_on_trust_is_refused() -> None:
    case = random_case(0)
    found = GivenQ(gamma=GAMMA, q=as_function(np.ones((3, 3)))).fit(case.log, case.policy).estimate()
    assert found.verdict.level == Level.REFUSE
    assert any("EfficientDoublyRobust(q=GivenQ" in reason for reason in found.verdict.reasons)


@pytest.mark.parametrize(
    ("q", "error", "words"),
    [
        (None, TypeError, "`q` must be a callable"),
        (LSTDQ, TypeError, "`q` must be a callable"),
        (lambda states, actions: np.ones((len(states), len(actions))), ValueError, "one finite number a row"),
        (lambda states, actions: np.full(len(states), np.nan) * (actions == 0), ValueError, "got nan in row 0"),
    ],
    ids=["none", "class", "matrix", "nan"],
)
def test_bad_functions(q: Any, error: type[Exception], words: str) -> None:
    case = random_case(0)
    with pytest.raises(error, match=f"GivenQ.*{words}"):
        GivenQ(gamma=GAMMA, q=q).fit(case.log, case.policy)


# -------------------------------------------------------------------- simulators


def walk_right(states: FloatArray, actions: npt.NDArray[Any], rng: np.random.Generator) -> Any:
    """Move right by 1 for action 1 and stay for action 0; states are numbers, the end is at 3."""
    assert isinstance(rng, np.random.Generator)
    following = states + np.asarray(actions, dtype=float)[:, None]
    return states[:, 0] + 1.0, following, following[:, 0] >= 3.0


def numbers_log(lengths: list[int], ends: Any, horizon: int | None = None) -> LoggedDataset:
    g = np.random.default_rng(0)
    n = sum(lengths)
    return LoggedDataset.from_arrays(
        g.integers(0, 3, (n, 1)).astype(float), g.integers(0, 2, n), np.zeros(n), lengths=lengths, ends=ends,
        final_states=np.ones((len(lengths), 1)), horizon=horizon, action_labels=[0, 1],
    )  # fmt: skip


@pytest.mark.parametrize("horizon", [None, 4])
def test_replay_is_a_loop_over_the_logged_actions(horizon: int | None) -> None:
    ends = ["truncated", "terminal", "horizon" if horizon else "truncated", "truncated"]
    log = numbers_log([3, 2, 4, 4], ends, horizon)
    made = replay(log, walk_right, 2, np.random.default_rng(0))
    assert made.n_episodes == 8
    for j in range(8):
        first, last = log.offsets[j // 2], log.offsets[j // 2 + 1]
        s, states, kind, final = (
            float(log.states[first, 0]),
            [],
            "HORIZON" if horizon == last - first else "TRUNCATED",
            None,
        )
        for a in log.actions[first:last]:
            states.append(s)
            s += float(a)
            if s >= 3.0:
                kind = "TERMINAL"
                break
        final = np.nan if kind == "TERMINAL" else s
        own = slice(made.offsets[j], made.offsets[j + 1])
        np.testing.assert_array_equal(made.states[own, 0], states)
        np.testing.assert_array_equal(made.rewards[own], np.array(states) + 1.0)
        np.testing.assert_array_equal(made.actions[own], log.actions[first : first + len(states)])
        assert made.final_states is not None
        np.testing.assert_array_equal(made.final_states[j], [final])
        assert made.ends[j] == {"TERMINAL": 0, "HORIZON": 1, "TRUNCATED": 2}[kind] or kind in str(made.ends[j])


def ring(horizon: int | None) -> TabularProblem:
    """Return a process without noise: action 1 goes on around a ring of four states, action 0 stays; state 3 pays."""
    P = np.zeros((4, 2, 4))
    for s in range(4):
        P[s, 0, s] = P[s, 1, (s + 1) % 4] = 1.0
    b, pi = np.full((4, 2), 0.5), np.tile([0.3, 0.7], (4, 1))
    return TabularProblem(
        P, np.tile([[0.0], [0.0], [0.0], [1.0]], (1, 2)), [0.5, 0.5, 0, 0], behavior=b, target=pi, horizon=horizon,
        max_steps=8, default_gamma=GAMMA,
    )  # fmt: skip


def around(states: FloatArray, actions: npt.NDArray[Any], rng: np.random.Generator) -> Any:
    del rng
    s = states.argmax(axis=1)
    return (s == 3) * 1.0, np.eye(4)[(s + np.asarray(actions, dtype=int)) % 4], None


@pytest.mark.parametrize("horizon", [None, 5])
def test_a_right_simulator_without_noise_gives_the_exact_value_and_leaves_no_noise(horizon: int | None) -> None:
    problem = ring(horizon)
    case = sampled(problem, 80)
    truth = problem.value(problem.target, GAMMA)
    mean_start = float(
        np.mean(
            problem.state_values(problem.target, GAMMA).reshape(-1, 4)[0][
                case.log.states[case.log.offsets[:-1]].argmax(axis=1)
            ]
        )
    )
    own = SimulatorQ(gamma=GAMMA, simulator=around, n_replays=3).fit(case.log, case.policy).estimate()
    assert own.verdict.level == Level.REFUSE
    assert own.value == pytest.approx(mean_start, rel=1e-8)
    found = DoublyRobust(gamma=GAMMA, q=SimulatorQ(simulator=around)).fit(case.log, case.policy).estimate()
    if horizon is not None:
        assert found.value == pytest.approx(mean_start, rel=1e-8)
        assert found.std_error < 0.5 * PerDecisionIS(gamma=GAMMA).fit(case.log, case.policy).estimate().std_error
    assert abs(found.value - truth) < 4 * found.std_error


def test_a_wrong_simulator_is_corrected() -> None:
    case = sampled(ring(5), 400)
    truth = ring(5).value(case.pi, GAMMA)

    def upside_down(states: FloatArray, actions: npt.NDArray[Any], rng: np.random.Generator) -> Any:
        _, following, _ = around(states, actions, rng)
        return np.full(len(states), 5.0), following, None

    alone = SimulatorQ(gamma=GAMMA, simulator=upside_down).fit(case.log, case.policy).estimate()
    assert alone.value > truth + 10.0
    for estimator in (DoublyRobust, EfficientDoublyRobust):
        found = estimator(gamma=GAMMA, q=SimulatorQ(simulator=upside_down)).fit(case.log, case.policy).estimate()
        assert abs(found.value - truth) < 4 * found.std_error
    exact = PerDecisionIS(gamma=GAMMA).fit(case.log, case.policy).estimate()
    assert found.std_error < 1.1 * exact.std_error


def test_another_method_can_learn_from_the_simulator_and_truncated_ends_are_said() -> None:
    case = sampled(ring(None), 60)
    nested = FittedQEvaluation(regressor=DecisionTreeRegressor(), max_iter=60)
    q = SimulatorQ(simulator=around, q=nested, n_replays=1)
    found = DoublyRobust(gamma=GAMMA, q=q).fit(case.log, case.policy).estimate()
    assert any("known from the Q model alone" in reason for reason in found.verdict.reasons)
    assert found.value == pytest.approx(ring(None).value(case.pi, GAMMA), abs=0.4)


def test_draws_follow_the_identifiers_of_episodes() -> None:
    def noisy(states: FloatArray, actions: npt.NDArray[Any], rng: np.random.Generator) -> Any:
        rewards, following, _ = around(states, actions, rng)
        return rewards + rng.normal(size=len(states)), following, rng.random(len(states)) < 0.1

    case = sampled(ring(5), 30)
    order = np.random.default_rng(0).permutation(30)
    one, other = (
        DoublyRobust(gamma=GAMMA, q=SimulatorQ(simulator=noisy)).fit(log, case.policy).estimate()
        for log in (case.log, case.log.select(order))
    )
    np.testing.assert_allclose(influence_of(one)[order], influence_of(other), rtol=1e-9)
    again = DoublyRobust(gamma=GAMMA, q=SimulatorQ(simulator=noisy, random_state=1)).fit(case.log, case.policy)
    assert again.estimate().value != one.value


def saying(answer: Callable[[FloatArray], Any]) -> Any:
    """Return a simulator that says something of the states alone."""

    def simulator(states: FloatArray, actions: npt.NDArray[Any], rng: np.random.Generator) -> Any:
        del actions, rng
        return answer(states)

    return simulator


@pytest.mark.parametrize(
    "q", [SimulatorQ(simulator=around, n_replays=2), GivenQ(q=as_function(np.eye(4, 2)))], ids=["simulator", "given"]
)
@pytest.mark.parametrize(
    "method", [MAGIC, DoubleReinforcementLearning, BellmanCalibrated], ids=lambda method: method.__name__
)
def test_they_serve_every_method_that_takes_a_q(method: Any, q: Any) -> None:
    case = sampled(ring(5), 80)
    found = method(gamma=GAMMA, q=q, n_folds=2).fit(case.log, case.policy).estimate()
    assert abs(found.value - ring(5).value(case.pi, GAMMA)) < 0.6


BAD_SIMULATORS: dict[str, tuple[Any, type[Exception], str]] = {
    "two things": (saying(lambda s: (s[:, 0], s)), TypeError, "three things"),
    "columns": (saying(lambda s: (s, s, None)), ValueError, "must return rewards"),
    "numbers for ends": (saying(lambda s: (s[:, 0], s, np.zeros(len(s)))), ValueError, "must return rewards"),
    "nan": (saying(lambda s: (s[:, 0] * np.nan, s, None)), ValueError, "finite numbers"),
}


@pytest.mark.parametrize("name", BAD_SIMULATORS)
def test_bad_simulators(name: str) -> None:
    simulator, error, words = BAD_SIMULATORS[name]
    case = sampled(ring(5), 10)
    with pytest.raises(error, match=f"SimulatorQ.fit: `simulator`.*{words}"):
        SimulatorQ(gamma=GAMMA, simulator=simulator).fit(case.log, case.policy)


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"simulator": None}, TypeError, "`simulator` must be a callable"),
        ({"n_replays": 0}, ValueError, "`n_replays`"),
        ({"q": 3}, TypeError, "`q` must be a Q-based"),
        ({"q": LSTDQ(trace="retrace")}, ValueError, "`q` must not read propensities"),
        ({"q": LSTDQ(gamma=0.5)}, ValueError, "must have the same `gamma`"),
    ],
    ids=str,
)
def test_bad_parameters(parameters: dict[str, Any], error: type[Exception], words: str) -> None:
    case = sampled(ring(5), 10)
    with pytest.raises(error, match=f"SimulatorQ.*{words}"):
        SimulatorQ(**{"gamma": GAMMA, "simulator": around, **parameters}).fit(case.log, case.policy)


def test_masked_logs_are_refused() -> None:
    case = sampled(ring(5), 10)
    masked = case.log.replace(action_mask=np.ones((len(case.log), 2), bool))
    with pytest.raises(ValueError, match=r"SimulatorQ.fit: `data` must leave all actions available"):
        SimulatorQ(gamma=GAMMA, simulator=around).fit(masked, case.policy)


def test_deterministic_candidates_are_served() -> None:
    log = ScalarLQR(max_steps=6).sample(40, random_state=0)

    def push(states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Any:
        return -(states[:, 0] ** 2), 0.9 * states + 0.5 * actions + 0.1 * rng.normal(size=states.shape), None

    policy = FunctionPolicy(predict=lambda states: -0.5 * states)
    found = SimulatorQ(gamma=GAMMA, simulator=push).fit(log, policy).estimate()
    s, a = log.states[log.offsets[:-1], 0], 0.9 - 0.25
    closed = -np.mean(s**2) / (1 - GAMMA * a**2) - GAMMA * 0.01 / (1 - GAMMA * a**2) / (1 - GAMMA)
    assert found.value == pytest.approx(closed, rel=0.05)
