"""Fitted Q evaluation against maximum-likelihood tabular models, LSTDQ, closed forms and counting spies."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
from estimator_oracles import (
    Case,
    end_goes_on,
    every_end,
    exact_log,
    final_codes,
    flow_paths,
    maximum_likelihood,
    one_hot_log,
    paths,
    random_case,
    sampled,
    stationary_or_not,
)
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from ope import Estimate, Level, LoggedDataset
from ope.estimators import LSTDQ, FittedQEvaluation
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import ModelFail, RandomMDP, RiverSwim, ScalarLQR, TabularProblem
from ope.validation import FloatArray


def linear(gamma: float = 0.9, **params: Any) -> FittedQEvaluation:
    """Return least squares on a block of state features per action, iterated to the last digits."""
    regressor = LinearRegression(fit_intercept=False)
    return FittedQEvaluation(gamma=gamma, regressor=regressor, features="auto", **{"tol": 1e-12, **params})


def fit(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Estimate:
    estimate: Estimate = linear(gamma, **params).fit(case.log, case.policy, weight).estimate()
    return estimate


# -------------------------------------------------------------------------------- the identity of tabular methods


@stationary_or_not
@every_end
def test_fixed_point_is_the_maximum_likelihood_model_and_lstdq(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(0, ends=ends, zeros=True)
    estimate, model = fit(case, stationary=stationary), maximum_likelihood(case, 0.9, stationary)
    assert estimate.value == pytest.approx(model.value, rel=1e-8)
    closed = LSTDQ(gamma=0.9, stationary=stationary).fit(case.log, case.policy).estimate()
    assert estimate.value == pytest.approx(closed.value, rel=1e-8)
    assert estimate.influence is None
    assert estimate.horizon == (None if stationary else case.log.horizon)


PROBLEMS = [
    RandomMDP(4, 2, horizon=6, random_state=2),
    RandomMDP(3, 2, max_steps=20, terminals=1, random_state=1),
    RiverSwim(horizon=20),
]


@stationary_or_not
@pytest.mark.parametrize("problem", PROBLEMS, ids=repr)
def test_identity_on_problems(problem: TabularProblem, stationary: bool) -> None:
    case, gamma = sampled(problem, 40), problem.default_gamma
    model = maximum_likelihood(case, gamma, stationary)
    assert fit(case, gamma, stationary=stationary).value == pytest.approx(model.value, rel=1e-8)


@stationary_or_not
@every_end
def test_episode_weights_enter_the_regressions(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(1, ends=ends, n=60)
    weight = np.random.default_rng(0).exponential(size=60)
    model = maximum_likelihood(case, 0.9, stationary, weight)
    assert fit(case, weight=weight, stationary=stationary).value == pytest.approx(model.value, rel=1e-8)


@pytest.mark.parametrize("gamma", [0.95, 1.0])
def test_time_indexed_value_is_exact_on_the_exact_law(gamma: float) -> None:
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, "horizon", flow_paths)
    estimate = linear(gamma).fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx({0.95: 0.7738807833, 1.0: 1.5986435503}[gamma], rel=1e-9)


@stationary_or_not
@every_end
def test_predictions_are_the_tables(ends: tuple[str, ...], stationary: bool) -> None:
    case, other = random_case(2, ends=ends, n=200), random_case(3, ends=ends, n=15)
    estimator = linear(stationary=stationary)
    predicted = estimator.fit_q(case.log, case.policy, np.ones(200)).predict(case.policy, other.log)
    q, row = maximum_likelihood(case, 0.9, stationary).q, 0
    for i, episode in enumerate(paths(other.log)):
        for t, (s, a, _) in enumerate(episode):
            table = q[t if len(q) > 1 else 0]
            assert predicted.q[row] == pytest.approx(table[s, a], rel=1e-7, abs=1e-9)
            assert predicted.v[row] == pytest.approx(case.pi[s] @ table[s], rel=1e-7, abs=1e-9)
            row += 1
        z, T = final_codes(other.log)[i], len(episode)
        after = q[0] if len(q) == 1 else (q[T] if len(q) > T else np.zeros_like(q[0]))
        v_final = case.pi[z] @ after[z] if end_goes_on(other.log, i, stationary) else 0.0
        assert predicted.v_final[i] == pytest.approx(v_final, rel=1e-7, abs=1e-9)


# -------------------------------------------------------------------------------- other regressors


def test_default_trees_find_the_cells_of_a_table() -> None:
    """Trees grown until nothing is left to split return the mean of each pair that has enough rows."""
    case = sampled(RandomMDP(3, 2, horizon=3, random_state=1), 1500)
    model = maximum_likelihood(case, 0.9)
    estimate = FittedQEvaluation(gamma=0.9).fit(case.log, case.policy).estimate()
    assert estimate.value == pytest.approx(model.value, rel=1e-6)


def test_pipelines_receive_weights() -> None:
    case = random_case(4, ends=("horizon",), n=100)
    weight = np.random.default_rng(0).exponential(size=100)
    pipeline = make_pipeline(StandardScaler(), LinearRegression())
    estimator = FittedQEvaluation(gamma=0.9, regressor=pipeline, features="auto")
    expected = maximum_likelihood(case, 0.9, False, weight).value
    assert estimator.fit(case.log, case.policy, weight).estimate().value == pytest.approx(expected, rel=1e-8)


class CountingRegression(LinearRegression):  # type: ignore[misc]
    """Counts how often it is fitted, and on how many rows."""

    rows: ClassVar[list[int]] = []

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> CountingRegression:
        CountingRegression.rows.append(len(X))
        super().fit(X, y, sample_weight)
        return self


def test_a_horizon_takes_one_regression_a_step_from_the_last_to_the_first() -> None:
    case = random_case(5, ends=("terminal", "horizon"), longest=5)
    CountingRegression.rows.clear()
    estimator = FittedQEvaluation(gamma=0.9, regressor=CountingRegression(fit_intercept=False), features="auto")
    estimator.fit(case.log, case.policy)
    alive = [int((case.log.lengths > t).sum()) for t in range(5)]
    assert CountingRegression.rows == alive[::-1]


def test_quadratic_regression_equals_lstdq_for_continuous_actions() -> None:
    log = ScalarLQR(max_steps=10).sample(60, random_state=1)
    policy = GaussianPolicy(mean=[-0.7], std=0.3)
    features = PolynomialFeatures(2)
    fqe = FittedQEvaluation(gamma=0.9, regressor=LinearRegression(fit_intercept=False), features=features, tol=1e-11)
    closed = LSTDQ(gamma=0.9, features=features).fit(log, policy).estimate()
    assert fqe.fit(log, policy).estimate().value == pytest.approx(closed.value, rel=1e-7)


# -------------------------------------------------------------------------------- convergence


def doubling_log(n_loop: int) -> LoggedDataset:
    """Return one-step episodes on two states with the features 1 and 2: many go from 1 to 2, few stay in 2."""
    states = [[1.0]] * 100 + [[2.0]] * n_loop
    n = 100 + n_loop
    return LoggedDataset.from_arrays(
        states, np.zeros(n, int), np.ones(n), lengths=[1] * n, ends="truncated", final_states=[[2.0]] * n
    )


def test_divergence_is_found_and_refused_where_lstdq_is_solvable() -> None:
    """The regression multiplies theta by gamma (2 n_1 + 4 n_2) / (n_1 + 4 n_2) > 1 (Tsitsiklis and Van Roy 1996)."""
    log, policy = doubling_log(1), TabularPolicy([[1.0]], state_code=lambda states: np.zeros(len(states), int))
    assert 0.95 * 204 / 104 > 1
    regressor = LinearRegression(fit_intercept=False)
    fqe = FittedQEvaluation(gamma=0.95, regressor=regressor, features="identity").fit(log, policy).estimate()
    assert fqe.verdict.level is Level.REFUSE
    closed = LSTDQ(gamma=0.95, features="identity").fit(log, policy).estimate()
    theta = 102 / (100 * (1 - 0.95 * 2) + 1 * (4 - 0.95 * 4))
    assert closed.value == pytest.approx(theta * 102 / 101, rel=1e-10)


def test_the_same_features_converge_on_another_distribution() -> None:
    log, policy = doubling_log(400), TabularPolicy([[1.0]], state_code=lambda states: np.zeros(len(states), int))
    regressor = LinearRegression(fit_intercept=False)
    fqe = FittedQEvaluation(gamma=0.8, regressor=regressor, features="identity", tol=1e-11).fit(log, policy).estimate()
    theta = (100 + 800) / (100 * (1 - 0.8 * 2) + 400 * (4 - 0.8 * 4))
    assert fqe.value == pytest.approx(theta * 900 / 500, rel=1e-8)


def test_an_unfinished_iteration_is_not_valid() -> None:
    case = random_case(6, ends=("truncated",), n=60)
    case = Case(case.log.replace(rewards=case.log.rewards + 1.0), case.b, case.pi)
    params: dict[str, Any] = {"tol": 1e-3, "n_bootstrap": 39}
    enough, few = fit(case, 0.9, **params), fit(case, 0.9, max_iter=3, **params)
    assert enough.verdict.level is Level.VALID
    assert few.verdict.level > Level.VALID
    assert few.diagnostics["iterations"] == 3 < enough.diagnostics["iterations"]
    assert enough.value == pytest.approx(maximum_likelihood(case, 0.9).value, rel=0.01)
    assert few.value < 0.5 * enough.value


def test_a_fit_that_wanders_ends_and_a_slow_one_does_not() -> None:
    problem = ScalarLQR(max_steps=10)
    policy = GaussianPolicy(mean=[problem.target.gain], std=problem.target.std, intercept=problem.target.offset)
    trees = ExtraTreesRegressor(4, min_samples_leaf=3, random_state=0)
    log = problem.sample(30, random_state=0)
    fqe = FittedQEvaluation(gamma=0.9, regressor=trees, n_bootstrap=2, max_iter=2000).fit(log, policy).estimate()
    assert 100 <= fqe.diagnostics["iterations"] < 500
    assert fqe.verdict.level >= Level.CAUTION
    assert any("would go on" in reason for reason in fqe.verdict.reasons)
    # The coefficient goes to its limit by a factor of .99, slower than gamma: that is no wandering.
    gamma = 0.99 * 17 / 18
    one = TabularPolicy([[1.0]], state_code=lambda states: np.zeros(len(states), int))
    regressor = LinearRegression(fit_intercept=False)
    slow = FittedQEvaluation(gamma=gamma, regressor=regressor, features="identity", tol=1e-6, max_iter=3000)
    estimate = slow.fit(doubling_log(400), one).estimate()
    assert estimate.diagnostics["iterations"] > 500
    theta = (100 + 800) / (100 * (1 - gamma * 2) + 400 * (4 - gamma * 4))
    assert estimate.value == pytest.approx(theta * 900 / 500, rel=1e-3)
    assert not any("would go on" in reason for reason in estimate.verdict.reasons)


def test_without_discounting_and_termination_there_is_no_value() -> None:
    case = random_case(7, ends=("truncated",), n=100)
    shifted = Case(case.log.replace(rewards=case.log.rewards + 1.0), case.b, case.pi)
    assert fit(shifted, 1.0, tol=1e-3, max_iter=200).verdict.level is Level.REFUSE


@stationary_or_not
def test_specification_test_reads_episodes_by_their_weight(stationary: bool) -> None:
    case = random_case(9, n=60, ends=("terminal", "horizon", "truncated"))
    kept = np.arange(60) % 3 > 0
    weighted = fit(case, weight=kept.astype(float), stationary=stationary)
    chosen = fit(Case(case.log.select(kept), case.b, case.pi), stationary=stationary)
    p = chosen.diagnostics["specification_p"]
    assert weighted.diagnostics["specification_p"] == pytest.approx(p, rel=1e-6)


def test_hidden_states_are_found() -> None:
    estimate = fit(sampled(ModelFail(), 500), 1.0)
    assert estimate.verdict.level is Level.REFUSE
    assert estimate.diagnostics["specification_p"] < 1e-3


# -------------------------------------------------------------------------------- bootstrap


def test_bootstrap_spread_is_the_standard_error() -> None:
    """Refits of a tabular Q spread like the influence vector of LSTDQ says; 400 replicates know it to 3.5 %."""
    case = sampled(RandomMDP(3, 2, horizon=3, random_state=1), 300)
    estimate = fit(case, n_bootstrap=400)
    closed = LSTDQ(gamma=0.9).fit(case.log, case.policy).estimate()
    assert estimate.replicates is not None
    assert estimate.replicates.shape == (400,)
    assert estimate.std_error == pytest.approx(closed.std_error, rel=0.15)
    low, high = estimate.confidence_interval(0.95)
    assert low < estimate.value < high
    assert high - low == pytest.approx(2 * 1.96 * closed.std_error, rel=0.2)


def test_bootstrap_resamples_episodes_and_is_reproducible() -> None:
    case = sampled(RandomMDP(3, 2, horizon=3, random_state=1), 50)
    first, second = fit(case, n_bootstrap=5), fit(case, n_bootstrap=5)
    other = fit(case, n_bootstrap=5, random_state=1)
    assert first.replicates is not None
    assert second.replicates is not None
    assert other.replicates is not None
    np.testing.assert_array_equal(first.replicates, second.replicates)
    assert first.resample_id == second.resample_id != other.resample_id
    assert not np.array_equal(first.replicates, other.replicates)
    assert first.value == other.value


def test_without_bootstrap_there_is_no_interval() -> None:
    estimate = fit(random_case(8))
    assert estimate.replicates is None
    assert math.isnan(estimate.std_error)


# -------------------------------------------------------------------------------- verdicts


def says(estimate: Estimate, what: str) -> bool:
    return any(what in reason for reason in estimate.verdict.reasons)


def few_episodes(n: int) -> Case:
    problem = RandomMDP(3, 2, horizon=3, random_state=1)
    return Case(problem.sample(n, random_state=3), problem.behavior, problem.behavior)


@pytest.mark.parametrize("n_bootstrap", [1, 2, 38])
def test_few_resamples_give_no_interval(n_bootstrap: int) -> None:
    case = few_episodes(100)
    estimate = fit(case, n_bootstrap=n_bootstrap)
    assert estimate.verdict.level is Level.CAUTION
    assert says(estimate, "there is no 95 % interval (39 are needed)")
    assert fit(case, n_bootstrap=39).verdict.level is Level.VALID


@pytest.mark.parametrize("n", [3, 5, 19])
def test_resamples_of_few_episodes_are_not_valid(n: int) -> None:
    estimate = fit(few_episodes(n), n_bootstrap=40)
    assert estimate.verdict.level > Level.VALID
    assert says(estimate, f"resamples of {n} episodes")
    weight = np.repeat([1.0, 0.0], [n, 40 - n]) * 40 / n
    assert says(fit(few_episodes(40), weight=weight, n_bootstrap=40), f"resamples of {n} episodes")


def hole_case() -> Case:
    """Return a log without action 1 in state 1, which the candidate takes on half of its visits there."""
    g = np.random.default_rng(0)
    s = g.integers(2, size=400)
    a = np.where(s == 1, 0, g.integers(2, size=400))
    b = np.array([[0.5, 0.5], [1.0, 0.0]])
    log = one_hot_log(s, a, g.normal(size=400), [1] * 400, "terminal", [0] * 400, b)
    return Case(log, b, np.array([[0.5, 0.5], [0.5, 0.5]]))


@pytest.mark.parametrize("regressor", [LinearRegression(fit_intercept=False), None])
@pytest.mark.parametrize("horizon", [None, 1])
def test_actions_never_logged_in_a_state_are_refused(regressor: Any, horizon: int | None) -> None:
    case = hole_case()
    log = case.log.replace(horizon=horizon)
    closed = LSTDQ(gamma=0.9).fit(log, case.policy).estimate()
    features = "auto" if regressor is not None else None
    fqe = FittedQEvaluation(gamma=0.9, regressor=regressor, features=features, n_bootstrap=40)
    estimate = fqe.fit(log, case.policy).estimate()
    assert closed.verdict.level is estimate.verdict.level is Level.REFUSE
    assert estimate.diagnostics["unsupported"] == pytest.approx(closed.diagnostics["unsupported"], rel=1e-9)
    assert estimate.diagnostics["ess"] == pytest.approx(closed.diagnostics["ess"], rel=1e-9)
    assert says(estimate, "visits go to states and actions that the log does not hold")


@stationary_or_not
@pytest.mark.parametrize("features", [None, "auto"])
def test_visits_are_those_of_lstdq(stationary: bool, features: str | None) -> None:
    case = random_case(10, n=60, ends=("terminal", "truncated", "horizon"), zeros=True)
    settings: dict[str, Any] = {"regressor": LinearRegression(), "features": features, "stationary": stationary}
    estimate = FittedQEvaluation(gamma=0.9, **settings).fit(case.log, case.policy).estimate()
    closed = LSTDQ(gamma=0.9, stationary=stationary).fit(case.log, case.policy).estimate()
    for name in ("ess", "unsupported"):
        assert estimate.diagnostics[name] == pytest.approx(closed.diagnostics[name], rel=1e-6)


def test_states_that_do_not_repeat_have_no_table() -> None:
    problem = ScalarLQR(max_steps=5)
    log = problem.sample(30, random_state=0)
    policy = GaussianPolicy(mean=[problem.target.gain], std=problem.target.std, intercept=problem.target.offset)
    trees = FittedQEvaluation(gamma=0.5, regressor=ExtraTreesRegressor(2, random_state=0)).fit(log, policy).estimate()
    assert "unsupported" not in trees.diagnostics
