"""The more robust Q against the variance that it must minimise, by loops and a numerical optimiser."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from estimator_oracles import Case, exact_log, maximum_likelihood, paths, random_case
from scipy.optimize import minimize
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures

from ope import Estimate, Level
from ope.estimators import LSTDQ, DoublyRobust, FittedQEvaluation
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import ModelFail, RandomMDP, ScalarLQR
from ope.validation import FloatArray

GAMMA = 0.8


def first_state(states: FloatArray) -> FloatArray:
    """A basis too poor to be right: whether it is state 0, and nothing else."""
    return states[:, :1] + 0.3


POOR = FunctionTransformer(first_state)


def mrdr(gamma: float = GAMMA, **params: Any) -> FittedQEvaluation:
    return FittedQEvaluation(gamma=gamma, loss="mrdr", **params)


def feature(s: int, poor: bool, n_states: int) -> FloatArray:
    return np.array([float(s == 0) + 0.3]) if poor else np.eye(n_states)[s]


def affine_scores(case: Case, poor: bool, n_values: int, gamma: float) -> tuple[FloatArray, FloatArray]:
    """Return x_i and g_i with the doubly robust score x_i - g_i' theta, by loops over V(s_0) + sum gamma^t W_t delta_t."""
    S, A = case.pi.shape
    k = len(feature(0, poor, S))
    x, g = np.zeros(case.log.n_episodes), np.zeros((case.log.n_episodes, n_values, A, k))
    for i, episode in enumerate(paths(case.log)):
        w = 1.0
        for t, (s, a, r) in enumerate(episode):
            step = t if n_values > 1 else 0
            for action in range(A):
                g[i, step, action] -= gamma**t * w * case.pi[s, action] * feature(s, poor, S)
            w *= case.pi[s, a] / case.b[s, a]
            g[i, step, a] += gamma**t * w * feature(s, poor, S)
            x[i] += gamma**t * w * r
    return x, g.reshape(len(x), -1)


def variance(x: FloatArray, g: FloatArray, p: FloatArray, theta: FloatArray) -> float:
    scores = x - g @ theta
    mean = p @ scores
    return float(p @ (scores - mean) ** 2)


def scores_of(case: Case, model: Any, gamma: float) -> FloatArray:
    """Return doubly robust scores from the values that a fitted model predicts."""
    predicted = model.predict(case.policy, case.log)
    out, row = [], 0
    for episode in paths(case.log):
        total, w = 0.0, 1.0
        for t, (s, a, r) in enumerate(episode):
            total += gamma**t * w * predicted.v[row]
            w *= case.pi[s, a] / case.b[s, a]
            total += gamma**t * w * (r - predicted.q[row])
            row += 1
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize("poor", [True, False], ids=["poor", "tabular"])
@pytest.mark.parametrize("ends", ["horizon", "terminal"])
def test_it_minimises_the_variance_of_the_doubly_robust_score(ends: str, poor: bool) -> None:
    """Over all paths with their probabilities, so that the variance is that of infinite data; "terminal" shares one theta."""
    problem = RandomMDP(3, 2, horizon=3, random_state=1)
    every = exact_log(problem, 3, ends)
    case, p = Case(every.log, problem.behavior, problem.target), every.weight / every.weight.sum()
    model = mrdr(features=POOR if poor else "auto").fit_q(every.log, case.policy, every.weight)
    found = scores_of(case, model, GAMMA)
    reached = float(p @ (found - p @ found) ** 2)
    x, g = affine_scores(case, poor, 3 if ends == "horizon" else 1, GAMMA)
    best = minimize(lambda theta: variance(x, g, p, theta), np.zeros(g.shape[1]), method="BFGS", options={"gtol": 1e-9})
    assert reached == pytest.approx(best.fun, rel=1e-7)
    assert reached < variance(x, g, p, np.zeros(g.shape[1])) * 0.99
    assert p @ found == pytest.approx(problem.value(problem.target, gamma=GAMMA), rel=1e-9)
    if poor:
        other = LSTDQ(gamma=GAMMA, features=POOR).fit_q(every.log, case.policy, every.weight)
        usual = scores_of(case, other, GAMMA)
        assert reached < 0.999 * float(p @ (usual - p @ usual) ** 2)


def test_hidden_states_leave_the_minimum_where_it_is() -> None:
    problem = ModelFail()
    every = exact_log(problem, 2, "horizon")
    case, p = Case(every.log, problem.behavior, problem.target), every.weight / every.weight.sum()
    found = scores_of(case, mrdr(1.0).fit_q(every.log, case.policy, every.weight), 1.0)
    x, g = affine_scores(case, False, 2, 1.0)
    best = minimize(lambda theta: variance(x, g, p, theta), np.zeros(g.shape[1]), method="BFGS", options={"gtol": 1e-9})
    assert float(p @ (found - p @ found) ** 2) == pytest.approx(best.fun, rel=1e-7)


def test_a_right_basis_gives_the_right_q() -> None:
    """Least variance leaves b / pi of the action free in every state; starting from the right Q it stays there."""
    problem = RandomMDP(3, 2, horizon=3, random_state=1)
    every = exact_log(problem, 3, "horizon")
    case = Case(every.log, problem.behavior, problem.target)
    predicted = mrdr().fit_q(every.log, case.policy, every.weight).predict(case.policy, every.log)
    q, row = maximum_likelihood(case, GAMMA, False, every.weight).q, 0
    for episode in paths(case.log):
        for t, (s, a, _) in enumerate(episode):
            assert predicted.q[row] == pytest.approx(q[t][s, a], rel=1e-8, abs=1e-10)
            row += 1
    estimate = mrdr().fit(every.log, case.policy, every.weight).estimate()
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=GAMMA), rel=1e-8)


def looped_moments(case: Case, q: FloatArray, v: FloatArray, weight: FloatArray, gamma: float) -> FloatArray:
    """Return sum gamma^2t W_t-1^2 (rho_t R_t - rho_t Q + V) z of every pair, z = rho_t phi_t - phibar_t, every sum written out."""
    S, A = case.pi.shape
    total, row = np.zeros(S * A), 0
    for i, episode in enumerate(paths(case.log)):
        rho = [float(case.pi[s, a] / case.b[s, a]) for s, a, _ in episode]
        for t, (s, a, _) in enumerate(episode):
            R = sum(gamma ** (k - t) * math.prod(rho[t : k + 1]) * episode[k][2] for k in range(t, len(episode)))
            z = np.zeros((S, A))
            z[s] -= case.pi[s]
            z[s, a] += rho[t]
            w = weight[i] * (gamma**t * math.prod(rho[:t])) ** 2
            total += w * (R - rho[t] * q[row] + v[row]) * z.ravel()
            row += 1
    return total


def test_sampled_fit_solves_the_normal_equations() -> None:
    """And in each state differs from LSTDQ by nothing that changes no score, which is b / pi of the action."""
    case = random_case(0, n=80, longest=4)
    weight = np.random.default_rng(0).exponential(size=80)
    found = mrdr().fit_q(case.log, case.policy, weight).predict(case.policy, case.log)
    scale = np.abs(looped_moments(case, 0 * found.q, 0 * found.v, weight, GAMMA)).max()
    np.testing.assert_allclose(looped_moments(case, found.q, found.v, weight, GAMMA), 0.0, atol=1e-9 * scale)
    usual = LSTDQ(gamma=GAMMA).fit_q(case.log, case.policy, weight).predict(case.policy, case.log)
    table = np.full(case.pi.shape, np.nan)
    table[case.log.states.argmax(axis=1), case.log.actions] = found.q - usual.q
    np.testing.assert_allclose(np.nansum(table * case.b / case.pi, axis=1), 0.0, atol=1e-8)


def test_one_observation_of_behaviour_is_as_good_as_all_of_it_on_average() -> None:
    """E[z z' | s] is the matrix of the paper, D_pi (diag(1 / b) - e e') D_pi, in indicators of actions."""
    g = np.random.default_rng(1)
    b, pi = g.dirichlet(np.ones(3)), g.dirichlet(np.ones(3))
    z = [pi[a] / b[a] * np.eye(3)[a] - pi for a in range(3)]
    mean = sum(b[a] * np.outer(z[a], z[a]) for a in range(3))
    np.testing.assert_allclose(mean, np.diag(pi) @ (np.diag(1 / b) - np.ones((3, 3))) @ np.diag(pi), atol=1e-14)


# -------------------------------------------------------------------------------- inside doubly robust estimates


def doubly_robust(q: Any, case: Case, gamma: float = GAMMA, **params: Any) -> Estimate:
    estimate: Estimate = DoublyRobust(gamma=gamma, q=q, **params).fit(case.log, case.policy).estimate()
    return estimate


@pytest.mark.parametrize("weighted", [False, True])
def test_it_serves_doubly_robust_estimates(weighted: bool) -> None:
    problem = RandomMDP(4, 2, horizon=4, random_state=2)
    case = Case(problem.sample(2000, random_state=0), problem.behavior, problem.target)
    estimate = doubly_robust(FittedQEvaluation(loss="mrdr", features=POOR), case, weighted=weighted)
    assert abs(estimate.value - problem.value(problem.target, gamma=GAMMA)) < 4 * estimate.std_error
    assert estimate.verdict.level is Level.VALID


def test_it_saves_what_a_hidden_state_costs() -> None:
    """ModelFail: a variance of .3556 an episode instead of 129.5 with the Q that one-step targets give; 30 logs of 400."""
    problem, own, other = ModelFail(), [], []
    for seed in range(30):
        case = Case(problem.sample(400, random_state=seed), problem.behavior, problem.target)
        own.append(doubly_robust(FittedQEvaluation(loss="mrdr"), case, 1.0, n_folds=2))
        other.append(doubly_robust(LSTDQ(), case, 1.0, n_folds=2))
    errors = np.array([estimate.value + math.tanh(1.0) for estimate in own])
    assert np.mean(errors**2) < 0.05 * np.mean([(estimate.value + math.tanh(1.0)) ** 2 for estimate in other])
    assert np.mean([estimate.std_error for estimate in own]) < 0.3 * np.mean([estimate.std_error for estimate in other])
    assert np.mean([abs(e) < 2.5 * estimate.std_error for e, estimate in zip(errors, own, strict=True)]) > 0.8


def test_on_policy_it_is_right_too() -> None:
    """With pi = b functions of the state change no score: there is no ratio to learn them from."""
    problem = RandomMDP(3, 2, horizon=3, random_state=1)
    case = Case(problem.sample(300, random_state=0), problem.behavior, problem.behavior)
    corrected = doubly_robust(FittedQEvaluation(loss="mrdr"), case)
    assert corrected.verdict.level is Level.VALID
    returns = [sum(GAMMA**t * r for t, (_, _, r) in enumerate(episode)) for episode in paths(case.log)]
    assert abs(corrected.value - np.mean(returns)) < 2 * corrected.std_error


def test_its_own_value_is_no_estimate() -> None:
    problem = RandomMDP(3, 2, horizon=3, random_state=1)
    case = Case(problem.sample(800, random_state=0), problem.behavior, problem.target)
    alone = mrdr(n_bootstrap=2).fit(case.log, case.policy).estimate()
    assert alone.verdict.level is Level.CAUTION
    assert any("lower the variance of a doubly robust estimate" in reason for reason in alone.verdict.reasons)
    assert "specification_p" not in alone.diagnostics


def test_continuous_actions() -> None:
    log = ScalarLQR(max_steps=3).sample(400, random_state=0)
    log = log.replace(ends=np.ones(400, np.int8), horizon=3, final_states=None)
    policy = GaussianPolicy(mean=[-0.5], std=0.3)
    q = FittedQEvaluation(loss="mrdr", features=PolynomialFeatures(2))
    estimate = DoublyRobust(gamma=0.9, q=q).fit(log, policy).estimate()
    closed = LSTDQ(gamma=0.9).fit(log, policy).estimate()
    assert abs(estimate.value - closed.value) < 4 * estimate.std_error


# -------------------------------------------------------------------------------- what it cannot do


def test_truncated_episodes_are_refused() -> None:
    case = random_case(1, n=40, ends=("terminal", "truncated"))
    with pytest.raises(ValueError, match=r"loss='mrdr' must have complete episodes, got \d+ that go on"):
        mrdr().fit(case.log, case.policy)
    timed = random_case(1, n=40, ends=("horizon",))
    mrdr().fit(timed.log, timed.policy)
    with pytest.raises(ValueError, match="complete episodes"):
        mrdr(stationary=True).fit(timed.log, timed.policy)


def test_general_regressors_are_refused() -> None:
    case = random_case(2)
    with pytest.raises(
        ValueError, match=r"`regressor` must be None with loss='mrdr'.*LinearRegression; pass features="
    ):
        mrdr(regressor=LinearRegression()).fit(case.log, case.policy)


def test_ratios_are_needed() -> None:
    case = random_case(3)
    with pytest.raises(ValueError, match=r"loss='mrdr' must have propensities"):
        mrdr().fit(case.log.replace(behavior_log_prob=None), case.policy)
    log = ScalarLQR(max_steps=2).sample(20, random_state=0)
    log = log.replace(ends=np.zeros(20, np.int8), final_states=None)
    policy = FunctionPolicy(sample=lambda states, rng: -0.5 * states + 0.3 * rng.normal(size=states.shape))
    with pytest.raises(TypeError, match="logged_prob"):
        mrdr().fit(log, policy)


def test_candidates_that_leave_every_episode_get_nothing() -> None:
    case = random_case(4, n=20, n_states=1, n_actions=2, ends=("horizon",), longest=2)
    log = case.log.replace(actions=np.zeros(len(case.log), int), behavior_log_prob=np.zeros(len(case.log)))
    estimate = mrdr().fit(log, TabularPolicy([[0.0, 1.0]])).estimate()
    assert estimate.verdict.level is Level.REFUSE
    assert math.isfinite(estimate.value)
