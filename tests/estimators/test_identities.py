"""Estimators that are the same number on the same log, to 1e-8: tabular, linear, stationary, time-indexed, all ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from estimator_oracles import (
    Case,
    end_goes_on,
    every_end,
    influence_of,
    maximum_likelihood,
    one_hot_log,
    paths,
    random_case,
    stationary_or_not,
)
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import FunctionTransformer

from ope import Estimate, LoggedDataset
from ope.estimator import OffPolicyEstimator
from ope.estimators import LSTD, LSTDQ, FittedQEvaluation, MarginalizedIS, PerDecisionIS, StateMarginalIS
from ope.policies import ColumnPolicy
from ope.problems import RandomMDP, RiverSwim, TabularProblem
from ope.validation import FloatArray

PROBLEMS = [
    RandomMDP(4, 3, max_steps=12, random_state=0),
    RandomMDP(3, 2, max_steps=40, terminals=2, reward_std=0.5, random_state=1),
    RandomMDP(5, 2, horizon=5, terminals=1, concentration=0.2, random_state=3),
    RiverSwim(horizon=20),
]


def fit(estimator: OffPolicyEstimator, case: Case, weight: FloatArray | None = None) -> Estimate:
    estimate: Estimate = estimator.fit(case.log, case.policy, weight).estimate()
    return estimate


def fitted_q(gamma: float, stationary: bool) -> FittedQEvaluation:
    regressor = LinearRegression(fit_intercept=False)
    return FittedQEvaluation(
        gamma=gamma, regressor=regressor, features="auto", tol=1e-13, stationary=stationary, n_bootstrap=0
    )


def counted_propensities(case: Case, stationary: bool, weight: FloatArray | None = None) -> Case:
    """Give the log the propensities N(s, a) / N(s) of its own counts, for each step where time-indexed."""
    log = case.log
    by_step = not stationary and log.horizon is not None
    count = np.zeros((log.horizon if by_step and log.horizon else 1, *case.pi.shape))
    places = []
    for i, path in enumerate(paths(log)):
        for t, (s, a, _) in enumerate(path):
            places.append((t if by_step else 0, s, a))
            last = t == len(path) - 1
            if not last or end_goes_on(log, i, stationary) is not None:
                count[places[-1]] += 1.0 if weight is None else weight[i]
    probs = [count[k, s, a] / count[k, s].sum() if count[k, s, a] > 0 else 1.0 for k, s, a in places]
    return Case(log.replace(behavior_log_prob=np.log(probs)), case.b, case.pi)


def all_supported(case: Case, stationary: bool) -> bool:
    """Return whether every action of the candidate was logged in every state (at every step) that was."""
    visited = maximum_likelihood(case, 0.9, stationary).visited
    return all(table[s, case.pi[s] > 0].all() for table in visited for s in range(len(table)) if table[s].any())


# -------------------------------------------------------------------------------- one number by five names


@stationary_or_not
@every_end
@pytest.mark.parametrize("seed", [0, 1])
def test_model_lstdq_fitted_q_primal_and_dual_agree(seed: int, ends: tuple[str, ...], stationary: bool) -> None:
    """Pairs that were never logged count as 0 in all of them."""
    case = random_case(seed, ends=ends, zeros=True)
    model = maximum_likelihood(case, 0.9, stationary).value
    dual = fit(MarginalizedIS(gamma=0.9, stationary=stationary), case)
    assert dual.value == pytest.approx(model, rel=1e-8)
    assert dual.diagnostics["primal"] == pytest.approx(model, rel=1e-8)
    assert dual.diagnostics["lagrangian"] == pytest.approx(model, rel=1e-8)
    assert fit(LSTDQ(gamma=0.9, stationary=stationary), case).value == pytest.approx(model, rel=1e-8)
    assert fit(fitted_q(0.9, stationary), case).value == pytest.approx(model, rel=1e-8)


@stationary_or_not
@pytest.mark.parametrize("problem", PROBLEMS, ids=repr)
def test_they_agree_on_problems(problem: TabularProblem, stationary: bool) -> None:
    case = Case(problem.sample(40, random_state=0), problem.behavior, problem.target)
    gamma = problem.default_gamma
    model = maximum_likelihood(case, gamma, stationary).value
    for estimator in (MarginalizedIS(gamma=gamma, stationary=stationary), LSTDQ(gamma=gamma, stationary=stationary)):
        assert fit(estimator, case).value == pytest.approx(model, rel=1e-8)
    assert fit(fitted_q(gamma, stationary), case).value == pytest.approx(model, rel=1e-8)


@stationary_or_not
@every_end
def test_they_agree_under_episode_weights(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(2, ends=ends)
    weight = np.random.default_rng(0).exponential(size=case.log.n_episodes)
    model = maximum_likelihood(case, 0.9, stationary, weight).value
    for estimator in (MarginalizedIS(gamma=0.9, stationary=stationary), LSTDQ(gamma=0.9, stationary=stationary)):
        assert fit(estimator, case, weight).value == pytest.approx(model, rel=1e-8)
    assert fit(fitted_q(0.9, stationary), case, weight).value == pytest.approx(model, rel=1e-8)


def test_they_agree_without_discounting() -> None:
    for case in (random_case(3), random_case(3, ends=("terminal", "horizon"))):
        model = maximum_likelihood(case, 1.0).value
        estimators = (MarginalizedIS(gamma=1.0), LSTDQ(gamma=1.0), fitted_q(1.0, False))
        assert [fit(estimator, case).value for estimator in estimators] == pytest.approx([model] * 3, rel=1e-8)


@stationary_or_not
@every_end
def test_primal_and_dual_agree_in_a_poor_basis(ends: tuple[str, ...], stationary: bool) -> None:
    """Two features for three states: no longer the model, but still one number, with one influence vector."""
    case = random_case(4, ends=ends, n=60)
    features = FunctionTransformer(lambda states: states @ np.array([[1.0, 0.3], [1.0, -0.5], [1.0, 2.0]]))
    settings: dict[str, Any] = {"gamma": 0.9, "stationary": stationary, "features": features}
    primal, dual = fit(LSTDQ(**settings), case), fit(MarginalizedIS(**settings), case)
    assert dual.value == pytest.approx(primal.value, rel=1e-8)
    np.testing.assert_allclose(influence_of(dual), influence_of(primal), rtol=1e-8, atol=1e-10)
    tabular = fit(MarginalizedIS(gamma=0.9, stationary=stationary), case).value
    assert abs(dual.value - tabular) > 1e-4


# -------------------------------------------------------------------------------- state marginals


@stationary_or_not
@every_end
@pytest.mark.parametrize("zeros", [True, False])
def test_state_marginals_with_counted_propensities_are_the_model(
    ends: tuple[str, ...], stationary: bool, zeros: bool
) -> None:
    """b = N(s, a) / N(s) makes w(s) pi / b the visits of the maximum-likelihood model over the counts."""
    case = counted_propensities(random_case(5, ends=ends, zeros=zeros, n=40), stationary)
    model = maximum_likelihood(case, 0.9, stationary).value
    plain = fit(StateMarginalIS(gamma=0.9, stationary=stationary, self_normalized=False), case)
    assert plain.value == pytest.approx(model, rel=1e-8)
    ratio = StateMarginalIS(gamma=0.9, stationary=stationary, self_normalized=False)
    weight = np.ones(case.log.n_episodes)
    by_state = ratio.fit_ratio(case.log, case.policy, weight).predict(case.policy, case.log)
    by_pair = MarginalizedIS(gamma=0.9, stationary=stationary).fit_ratio(case.log, case.policy, weight)
    np.testing.assert_allclose(by_state, by_pair.predict(case.policy, case.log), rtol=1e-8, atol=1e-10)


@stationary_or_not
@every_end
def test_self_normalised_ones_are_the_model_where_all_actions_were_logged(
    ends: tuple[str, ...], stationary: bool
) -> None:
    case = counted_propensities(random_case(6, ends=ends, n=400, n_actions=2), stationary)
    assert all_supported(case, stationary)
    model = maximum_likelihood(case, 0.9, stationary).value
    assert fit(StateMarginalIS(gamma=0.9, stationary=stationary), case).value == pytest.approx(model, rel=1e-8)
    assert fit(LSTD(gamma=0.9, stationary=stationary), case).value == pytest.approx(model, rel=1e-8)


def test_self_normalised_ones_spread_unlogged_actions_over_the_logged_ones() -> None:
    """Where the model counts an action that was never logged as 0, they renormalise what is left of the candidate."""
    log = LoggedDataset.from_arrays(
        np.ones((4, 1)), [0, 0, 0, 0], [1.0, 2.0, 1.0, 2.0], lengths=[1] * 4, ends="terminal",
        behavior_prob=[1.0] * 4, action_labels=[0, 1],
    )  # fmt: skip
    case = Case(log, np.array([[1.0, 0.0]]), np.array([[0.4, 0.6]]))
    assert fit(StateMarginalIS(gamma=0.9, self_normalized=False), case).value == pytest.approx(0.4 * 1.5)
    assert fit(MarginalizedIS(gamma=0.9), case).value == pytest.approx(0.4 * 1.5)
    assert fit(StateMarginalIS(gamma=0.9), case).value == pytest.approx(1.5)


@stationary_or_not
@every_end
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_self_normalised_state_marginals_are_the_dual_of_lstd(
    ends: tuple[str, ...], stationary: bool, ridge: float
) -> None:
    case = random_case(7, ends=ends, zeros=True)
    settings: dict[str, Any] = {"gamma": 0.9, "stationary": stationary, "ridge": ridge}
    primal, dual = fit(LSTD(**settings), case), fit(StateMarginalIS(**settings), case)
    assert dual.value == pytest.approx(primal.value, rel=1e-8)
    np.testing.assert_allclose(influence_of(dual), influence_of(primal), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("ends", [("terminal",), ("horizon",), ("terminal", "horizon")], ids="-".join)
def test_state_marginals_of_whole_histories_are_per_decision_importance_sampling(ends: tuple[str, ...]) -> None:
    """If the state is all that happened, every visit of it has the same product of ratios, which is w."""
    case = random_case(8, ends=ends, n_states=2, n_actions=2, n=40, longest=4, horizon=4)
    histories: dict[tuple[tuple[int, int], ...], int] = {}
    codes = []
    for path in paths(case.log):
        for t, (s, _, _) in enumerate(path):
            past = (*((state, action) for state, action, _ in path[:t]), (s, -1))
            codes.append(histories.setdefault(past, len(histories)))
    target = [case.pi[s, a] for path in paths(case.log) for s, a, _ in path]
    behavior = [case.b[s, a] for path in paths(case.log) for s, a, _ in path]
    log = LoggedDataset.from_arrays(
        np.eye(len(histories))[codes], case.log.actions, case.log.rewards, lengths=case.log.lengths, ends=case.log.ends,
        behavior_prob=behavior, action_labels=[0, 1], horizon=4, extras=pd.DataFrame({"p": target}),
    )  # fmt: skip
    for gamma in (0.9, 1.0):
        pdis = fit(PerDecisionIS(gamma=gamma), case).value
        marginal = StateMarginalIS(gamma=gamma, self_normalized=False).fit(log, ColumnPolicy("p")).estimate()
        assert marginal.value == pytest.approx(pdis, rel=1e-8)


def test_one_state_without_time_is_a_bandit() -> None:
    """Episodes of one step in one state: the mean reward of each action, weighted by the candidate."""
    g = np.random.default_rng(0)
    b, pi = np.array([[0.5, 0.3, 0.2]]), np.array([[0.1, 0.1, 0.8]])
    a, r = g.choice(3, size=50, p=b[0]), g.normal(size=50)
    case = Case(one_hot_log(np.zeros(50, int), a, r, [1] * 50, "terminal", np.zeros(50, int), b), b, pi)
    rho = pi[0, a] / b[0, a]
    direct = sum(pi[0, k] * r[a == k].mean() for k in range(3))
    assert fit(MarginalizedIS(gamma=0.9), case).value == pytest.approx(direct, rel=1e-10)
    assert fit(StateMarginalIS(gamma=0.9), case).value == pytest.approx(rho @ r / rho.sum(), rel=1e-10)
    assert fit(StateMarginalIS(gamma=0.9, self_normalized=False), case).value == pytest.approx(rho @ r / 50, rel=1e-10)
