"""Control-variate doubly robust estimation against plain loops, its four relatives, the jackknife and exact logs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from estimator_oracles import Case, exact_log, influence_of, jackknife, random_case
from given_models import GivenQ, Step, random_tables, true_q, walk

from ope import Estimate, Level, LoggedDataset
from ope.estimators import LSTDQ, DoublyRobust, EfficientDoublyRobust, FittedQEvaluation, PerDecisionIS, WeightedIS
from ope.estimators._crossfit import Weighed, weigh
from ope.estimators._q import QPredictions
from ope.estimators.efficient_dr import CONTRASTS, ControlRows, blend, coefficients, control_rows, relatives
from ope.policies import TabularPolicy
from ope.problems import Graph, ModelFail, ModelWin, RandomMDP, RiverSwim, TabularProblem
from ope.validation import FloatArray

CASES = [
    random_case(0),
    random_case(1, zeros=True, n=40),
    random_case(2, ends=("terminal", "truncated"), zeros=True, n=40),
    random_case(3, ends=("terminal", "horizon"), n_actions=2),
    random_case(4, ends=("terminal", "horizon", "truncated"), n_states=4, longest=8),
]
NAMES = ("wdr", "wpdis", "dr", "pdis")


def fit(case: Case, tables: FloatArray, weight: FloatArray | None = None, gamma: float = 0.9) -> Estimate:
    estimator = EfficientDoublyRobust(gamma=gamma, q=GivenQ(tables=tables), n_folds=2)
    estimate: Estimate = estimator.fit(case.log, case.policy, weight).estimate()
    return estimate


def shares_of(estimate: Estimate) -> FloatArray:
    return np.array([estimate.diagnostics[f"share_{name}"] for name in NAMES])


# -------------------------------------------------------------------------------- plain loops


def completed(steps: list[Step], gamma: float) -> list[float]:
    """Return the rewards, the last one with what V says of the time after it."""
    return [step.r + (gamma * step.v_next if step is steps[-1] else 0.0) for step in steps]


class Padded:
    """Weights, rewards, Q, V and temporal differences of all episodes as rectangles; ended episodes keep their weight."""

    def __init__(self, case: Case, tables: FloatArray, gamma: float, weight: FloatArray) -> None:
        every = walk(case, tables)
        self.n, self.H = len(every), max(map(len, every))
        self.omega, self.gamma = weight / weight.mean(), gamma
        self.lengths = [len(steps) for steps in every]
        self.W = np.ones((self.n, self.H + 1))
        self.r, self.q, self.v, self.delta = (np.zeros((self.n, self.H)) for _ in range(4))
        for i, steps in enumerate(every):
            rewards = completed(steps, gamma)
            for t, step in enumerate(steps):
                self.r[i, t], self.q[i, t], self.v[i, t] = rewards[t], step.q, step.v
                self.delta[i, t] = step.r + gamma * step.v_next - step.q
                self.W[i, t + 1 :] = step.w
        self.bar = self.mean(self.W)
        self.a = self.W / self.bar

    def mean(self, x: FloatArray) -> FloatArray:
        return np.asarray(self.omega @ x / self.n)

    def values(self) -> FloatArray:
        """WDR, WPDIS, DR, PDIS."""
        discount = self.gamma ** np.arange(self.H)
        first = float(self.mean(self.v[:, 0]))
        w, a = self.W[:, 1:], self.a[:, 1:]
        rows = ((first, a, self.delta), (0.0, a, self.r), (first, w, self.delta), (0.0, w, self.r))
        return np.array([start + discount @ self.mean(weights * x) for start, weights, x in rows])

    def theta(self) -> FloatArray:
        """Solve the moment equations, product by product."""
        w, a = self.W[:, 1:], self.a[:, 1:]
        q, v = self.mean(a * self.q), self.mean(self.a[:, :-1] * self.v)
        m, n_ = self.mean(a * self.delta), self.mean(a * self.r)
        N, A = np.zeros(3), np.zeros((3, 3))
        for i in range(self.n):
            xi, psi = [], []
            for t in range(self.H):
                discount = self.gamma**t
                psi.append(discount * a[i, t] * (self.delta[i, t] - m[t]))
                if t < self.lengths[i]:
                    step = w[i, t] - self.W[i, t]
                    later = range(t, self.H)
                    xi.append(
                        [
                            discount * (a[i, t] * (self.q[i, t] - q[t]) - self.a[i, t] * (self.v[i, t] - v[t])),
                            step * sum(self.gamma**k * m[k] for k in later),
                            step * sum(self.gamma**k * n_[k] for k in later),
                        ]
                    )
            for t, now in enumerate(xi):
                N += self.omega[i] / self.n * np.array(now) * sum(psi[t:])
                A += self.omega[i] / self.n * np.outer(now, np.sum(xi[t:], axis=0))
        return np.asarray(np.linalg.solve(A, N))


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_value_by_hand(case: Case, gamma: float) -> None:
    tables, n = random_tables(case), case.log.n_episodes
    uneven = np.random.default_rng(0).exponential(size=n)
    uneven[::7] = 0.0
    for weight in (np.ones(n), uneven):
        padded, estimate = Padded(case, tables, gamma, weight), fit(case, tables, weight, gamma)
        values, theta = padded.values(), padded.theta()
        expected = values[0] - theta @ [values[1] - values[0], values[2] - values[0], values[3] - values[1]]
        assert estimate.value == pytest.approx(expected, rel=1e-8)
        shares = shares_of(estimate)
        assert shares.sum() == pytest.approx(1.0, abs=1e-12)
        assert estimate.value == pytest.approx(shares @ values, rel=1e-8)


def predictions_of(case: Case, tables: FloatArray) -> QPredictions:
    steps = [step for steps in walk(case, tables) for step in steps]
    last = [steps[-1].v_next for steps in walk(case, tables)]
    return QPredictions(np.array([step.q for step in steps]), np.array([step.v for step in steps]), np.array(last))


class Ingredients(NamedTuple):
    weighed: Weighed
    rewards: FloatArray
    delta: FloatArray
    v_0: FloatArray
    gamma: float


def ingredients(case: Case, tables: FloatArray, gamma: float = 0.9) -> Ingredients:
    every = walk(case, tables)
    delta = np.array([step.r + gamma * step.v_next - step.q for steps in every for step in steps])
    rewards = np.concatenate([completed(steps, gamma) for steps in every])
    weighed = weigh(case.policy, case.log, delta, gamma, np.ones(len(every)))
    return Ingredients(weighed, rewards, delta, np.array([steps[0].v for steps in every]), gamma)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[3]])
def test_relatives_are_the_estimators_of_these_names(case: Case) -> None:
    tables, one = random_tables(case), np.ones(case.log.n_episodes)
    four = relatives(*ingredients(case, tables), one)
    q = GivenQ(tables=tables)
    others = [
        DoublyRobust(gamma=0.9, q=q, weighted=True, n_folds=2),
        WeightedIS(gamma=0.9),
        DoublyRobust(gamma=0.9, q=q, n_folds=2),
        PerDecisionIS(gamma=0.9),
    ]
    for k, estimator in enumerate(others):
        estimate = estimator.fit(case.log, case.policy).estimate()
        assert four.values[k] == pytest.approx(estimate.value, rel=1e-9)
        np.testing.assert_allclose(four.influence[:, k], influence_of(estimate), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_controls_add_up_to_the_differences_of_the_relatives(case: Case) -> None:
    """So that their coefficients are those of the blend: the sums over steps are what the four values differ by, to first order."""
    tables, n = random_tables(case), case.log.n_episodes
    weighed, rewards, delta, v_0, gamma = ingredients(case, tables)
    four = relatives(weighed, rewards, delta, v_0, gamma, np.ones(n))
    rows = control_rows(weighed, rewards, delta, predictions_of(case, tables), gamma, np.ones(n))
    sums = np.add.reduceat(rows.controls, case.log.offsets[:-1], axis=0).mean(axis=0)
    differences = CONTRASTS @ four.values
    np.testing.assert_allclose(sums[1:], differences[1:], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_influence_is_the_jackknife_with_the_rows_held_fixed(case: Case) -> None:
    tables, n = random_tables(case), case.log.n_episodes
    weighed, rewards, delta, _, gamma = ingredients(case, tables)
    one = np.ones(n)
    rows = control_rows(weighed, rewards, delta, predictions_of(case, tables), gamma, one)

    def value(weight: FloatArray) -> float:
        weight = weight / weight.mean()
        theta, _, _ = coefficients(rows, case.log.offsets, weight)
        return float((np.eye(4)[0] - theta @ CONTRASTS) @ Padded(case, tables, gamma, weight).values())

    estimate = fit(case, tables)
    assert estimate.value == pytest.approx(value(one), rel=1e-9)
    psi = influence_of(estimate)
    numerical = jackknife(value, n)
    np.testing.assert_allclose(psi, numerical, rtol=1e-5, atol=1e-6 * np.abs(psi).max())


def test_coefficients_of_independent_steps_are_those_of_least_squares() -> None:
    """Where controls of different steps are unrelated and the influence is made of them, the moments find its coefficients."""
    g = np.random.default_rng(0)
    n, H, theta = 4000, 3, np.array([0.5, -2.0, 0.0])
    controls = g.normal(size=(n * H, 3)) * [1.0, 10.0, 0.1]
    ahead = (controls @ theta + g.normal(size=n * H)).reshape(n, H)[:, ::-1].cumsum(axis=1)[:, ::-1].ravel()
    found, psi, _ = coefficients(ControlRows(controls, ahead), np.arange(0, n * H + 1, H), np.ones(n))
    error = np.sqrt((psi**2).sum(axis=0)) / n
    assert np.all(np.abs(found - theta) < 4 * error)
    np.testing.assert_allclose(error * [1.0, 10.0, 0.1], 1.0 / np.sqrt(n * H), rtol=0.6)


# -------------------------------------------------------------------------------- what it must reduce to


@pytest.mark.parametrize("problem", [ModelFail(), Graph(4), RandomMDP(2, 2, horizon=3, random_state=1)], ids=repr)
def test_any_q_is_unbiased_with_right_propensities(problem: TabularProblem) -> None:
    every = exact_log(problem, problem.n_steps, "horizon")
    case = Case(every.log, problem.behavior, problem.target)
    estimate = fit(case, random_tables(case), every.weight, problem.default_gamma)
    assert estimate.value == pytest.approx(problem.value(problem.target), rel=1e-9)


@pytest.mark.parametrize("horizon", [None, 4])
def test_true_q_is_right_with_wrong_propensities(horizon: int | None) -> None:
    problem = RandomMDP(2, 2, terminals=1, horizon=horizon, random_state=4)
    every = exact_log(problem, 4, "truncated" if horizon is None else "horizon")
    wrong = every.log.behavior_log_prob + np.log(every.log.actions * 0.4 + 0.5)
    case = Case(every.log.replace(behavior_log_prob=wrong), problem.behavior, problem.target)
    truth = problem.value(problem.target, gamma=0.9)
    assert fit(case, true_q(problem, 0.9), every.weight).value == pytest.approx(truth, rel=1e-9)
    importance = PerDecisionIS(gamma=0.9).fit(case.log, case.policy, every.weight).estimate()
    assert abs(importance.value - truth) > 0.01


def test_without_q_it_blends_the_importance_sampling_forms() -> None:
    for case in CASES[:2]:
        estimate = fit(case, np.zeros((1, *case.pi.shape)))
        plain = PerDecisionIS(gamma=0.9).fit(case.log, case.policy).estimate()
        normalised = WeightedIS(gamma=0.9).fit(case.log, case.policy).estimate()
        s = estimate.diagnostics["share_dr"] + estimate.diagnostics["share_pdis"]
        assert estimate.value == pytest.approx(s * plain.value + (1.0 - s) * normalised.value, rel=1e-9)


@pytest.mark.parametrize("stationary", [False, True])
def test_river_swim(stationary: bool) -> None:
    problem = RiverSwim(horizon=20)
    truth = RiverSwim().value(RiverSwim().target) if stationary else problem.value(problem.target)
    estimator = EfficientDoublyRobust(gamma=0.95, q=LSTDQ(stationary=stationary))
    log, policy = problem.sample(2000, random_state=2), TabularPolicy(problem.target)
    estimate = estimator.fit(log, policy).estimate()
    assert abs(estimate.value - truth) < 4 * estimate.std_error
    assert estimate.horizon == (None if stationary else 20)
    assert (
        estimate.std_error
        < 1.05 * DoublyRobust(gamma=0.95, q=LSTDQ(stationary=stationary)).fit(log, policy).estimate().std_error
    )


def test_a_fitted_q_aimed_at_the_variance_can_serve_as_the_model() -> None:
    problem = RandomMDP(3, 2, horizon=3, random_state=1)
    log, policy = problem.sample(400, random_state=1), TabularPolicy(problem.target)
    for estimator in (EfficientDoublyRobust, DoublyRobust):
        estimate = estimator(gamma=0.9, q=FittedQEvaluation(loss="mrdr"), n_folds=2).fit(log, policy).estimate()
        assert abs(estimate.value - problem.value(problem.target, gamma=0.9)) < 4 * estimate.std_error < 0.4


# -------------------------------------------------------------------------------- variance


PROBLEMS: list[tuple[TabularProblem, int]] = [
    (RandomMDP(3, 2, horizon=5, random_state=1), 300),
    (ModelWin(horizon=4), 300),
    (Graph(2), 1000),
]


def mean_squared_errors(problem: TabularProblem, n: int, q: Any, repetitions: int) -> dict[str, float]:
    gamma, truth, policy = problem.default_gamma, problem.value(problem.target), TabularPolicy(problem.target)
    estimators = {
        "PDIS": PerDecisionIS(gamma=gamma),
        "WPDIS": WeightedIS(gamma=gamma),
        "DR": DoublyRobust(gamma=gamma, q=q, n_folds=2),
        "WDR": DoublyRobust(gamma=gamma, q=q, n_folds=2, weighted=True),
        "EDR": EfficientDoublyRobust(gamma=gamma, q=q, n_folds=2),
    }
    errors: dict[str, list[float]] = {name: [] for name in estimators}
    for seed in range(repetitions):
        log = problem.sample(n, random_state=seed)
        for name, estimator in estimators.items():
            errors[name].append(estimator.fit(log, policy).estimate().value - truth)
    return {name: float(np.mean(np.square(found))) for name, found in errors.items()}


def q_models(problem: TabularProblem) -> dict[str, Any]:
    right = true_q(problem, problem.default_gamma)
    noise = np.random.default_rng(7).normal(size=right.shape)
    return {"right": GivenQ(tables=right), "wrong": GivenQ(tables=noise + 1.0), "doubled": GivenQ(tables=2.0 * right)}


def test_it_is_as_precise_as_the_best_of_its_relatives() -> None:
    problem, n = PROBLEMS[0]
    for q in q_models(problem).values():
        found = mean_squared_errors(problem, n, q, 60)
        assert found["EDR"] < 1.15 * min(value for name, value in found.items() if name != "EDR"), found


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "n"), PROBLEMS, ids=str)
def test_it_is_as_precise_as_the_best_of_its_relatives_everywhere(problem: TabularProblem, n: int) -> None:
    for q in q_models(problem).values():
        found = mean_squared_errors(problem, n, q, 400)
        assert found["EDR"] < 1.15 * min(value for name, value in found.items() if name != "EDR"), found


def bandit_log(n: int, seed: int, b: float, noise: float) -> LoggedDataset:
    """Return one-step episodes in one state with two actions, where controls differ by nothing but the folds of Q."""
    g = np.random.default_rng(seed)
    a = (g.uniform(size=n) < b).astype(int)
    return LoggedDataset.from_arrays(
        np.ones((n, 1)), a, a + noise * g.normal(size=n), lengths=[1] * n, ends="terminal",
        behavior_prob=np.where(a == 1, b, 1.0 - b),
    )  # fmt: skip


@pytest.mark.parametrize(("n", "b", "noise"), [(100, 0.5, 0.1), (300, 0.3, 0.1), (100, 0.3, 3.0)])
def test_nearly_collinear_controls_leave_the_standard_error_alone(n: int, b: float, noise: float) -> None:
    rows = []
    for seed in range(60):
        log, policy = bandit_log(n, seed, b, noise), TabularPolicy([[0.25, 0.75]])
        estimate = EfficientDoublyRobust(gamma=1.0).fit(log, policy).estimate()
        rows.append((estimate.value, estimate.std_error, np.abs(shares_of(estimate)).max()))
    values, errors, shares = np.array(rows).T
    least = noise * np.sqrt(
        (0.25**2 / (1.0 - b) + 0.75**2 / b) / n
    )  # sum of pi^2 sigma^2 / (n b): no method has a smaller one
    assert np.median(errors) == pytest.approx(least, rel=0.15)
    assert errors.max() < 2.0 * least
    assert values.std(ddof=1) < 1.3 * least
    assert shares.max() < 300.0


def test_a_blend_beyond_weighted_doubly_robust_is_that() -> None:
    case, n = CASES[0], CASES[0].log.n_episodes
    tables, one = random_tables(case), np.ones(n)
    weighed, rewards, delta, v_0, gamma = ingredients(case, tables)
    four = relatives(weighed, rewards, delta, v_0, gamma, one)
    rows = control_rows(weighed, rewards, delta, predictions_of(case, tables), gamma, one)
    free, strict = (blend(rows, four, case.log.offsets, one, size) for size in (1.0, 1e9))
    theta = coefficients(rows, case.log.offsets, one)[0]
    np.testing.assert_allclose(free.shares, np.eye(4)[0] - theta @ CONTRASTS, rtol=1e-12)
    assert np.sum(free.influence**2) > np.sum(four.influence[:, 0] ** 2) >= np.sum(strict.influence**2)


# -------------------------------------------------------------------------------- verdict and bad use


def test_no_weight_at_all_is_refused() -> None:
    case = random_case(8, n_actions=2)
    never = np.zeros_like(case.pi)
    never[:, 0] = 1.0
    rows = case.log.actions != 0
    starts = case.log.select(rows[case.log.offsets[:-1]])
    estimate = fit(Case(starts, case.b, never), random_tables(case))
    assert np.isnan(estimate.value)
    assert estimate.verdict.level is Level.REFUSE


def test_weights_beyond_floats_are_refused() -> None:
    case = random_case(9, n=40)
    assert case.log.behavior_log_prob is not None
    far = case.log.replace(behavior_log_prob=case.log.behavior_log_prob - 400.0)
    estimate = fit(Case(far, case.b, case.pi), random_tables(case))
    assert estimate.verdict.level is Level.REFUSE


def test_a_plug_in_tail_whose_error_is_unknown_is_named() -> None:
    case = random_case(2, ends=("terminal", "truncated"), n=60)
    reasons = fit(case, 5.0 + random_tables(case)).verdict.reasons
    assert any("the Q model alone" in reason for reason in reasons)


@pytest.mark.parametrize(("settings", "name"), [({"n_folds": 1}, "n_folds"), ({"random_state": -1}, "random_state")])
def test_bad_parameters_are_named(settings: dict[str, Any], name: str) -> None:
    case = random_case(0)
    with pytest.raises(ValueError, match=f"EfficientDoublyRobust: `{name}`"):
        EfficientDoublyRobust(**{"gamma": 0.9, **settings}).fit(case.log, case.policy)


def test_there_is_no_weighted_form() -> None:
    with pytest.raises(TypeError, match="weighted"):
        EfficientDoublyRobust(gamma=0.9, weighted=True)  # type: ignore[call-arg]
