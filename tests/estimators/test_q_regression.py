"""Q-regression on importance-weighted returns against tables by plain loops, exact logs and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from estimator_oracles import (
    Case,
    end_goes_on,
    exact_log,
    final_codes,
    one_hot_log,
    paths,
    random_case,
)
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeRegressor

from ope import Estimate, Level
from ope.estimators import DoublyRobust, FittedQEvaluation
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import Hybrid, ModelFail, RandomMDP, ScalarLQR
from ope.validation import FloatArray

ENDS = [("terminal",), ("truncated",), ("horizon",), ("terminal", "horizon", "truncated")]
stationary_or_not = pytest.mark.parametrize("stationary", [False, True], ids=["by_time", "stationary"])
every_end = pytest.mark.parametrize("ends", ENDS, ids="-".join)


def q_regression(gamma: float = 0.9, **params: Any) -> FittedQEvaluation:
    chosen = {"regressor": LinearRegression(fit_intercept=False), "features": "auto", "tol": 1e-12, **params}
    return FittedQEvaluation(gamma=gamma, loss="q_regression", **chosen)


def fit(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Estimate:
    estimate: Estimate = q_regression(gamma, **params).fit(case.log, case.policy, weight).estimate()
    return estimate


class Row:
    """A row with its weighted return: what was recorded, the factor of V behind it, and the state and step that V is of."""

    def __init__(self, case: Case, i: int, t: int, gamma: float, stationary: bool) -> None:
        episode = paths(case.log)[i]
        follows = end_goes_on(case.log, i, stationary)
        stop = len(episode) - (follows is None)
        rho = [float(case.pi[s, a] / case.b[s, a]) for s, a, _ in episode]
        self.pair, self.step = episode[t][:2], t
        self.weight = gamma**t * math.prod(rho[: t + 1])
        self.recorded = sum(gamma ** (k - t) * math.prod(rho[t + 1 : k + 1]) * episode[k][2] for k in range(t, stop))
        # Ratios of the recorded steps are in the return of what follows, but not that of the step to an unknown state.
        self.onward = 0.0 if follows is False else gamma ** (stop - t) * math.prod(rho[t + 1 : stop])
        self.behind = (episode[-1][0] if follows is None else final_codes(case.log)[i]) if self.onward else 0
        self.behind_step = stop
        self.used = t < stop


def rows_of(case: Case, gamma: float, stationary: bool) -> list[tuple[int, Row]]:
    found = [
        (i, Row(case, i, t, gamma, stationary))
        for i, episode in enumerate(paths(case.log))
        for t in range(len(episode))
    ]
    return [(i, row) for i, row in found if row.used]


def looped_tables(case: Case, gamma: float, stationary: bool, weight: FloatArray) -> list[FloatArray]:
    """Average weighted returns within each pair, from the last step to the first; stationary ones to their fixed point."""
    H = 1 if stationary or case.log.horizon is None else case.log.horizon
    tables, rows = [np.zeros_like(case.pi) for _ in range(H + 1)], rows_of(case, gamma, stationary)
    for _ in range(1 if H > 1 else 120):
        for t in range(H - 1, -1, -1):
            top, bottom = np.zeros_like(case.pi), np.zeros_like(case.pi)
            for i, row in rows:
                if H > 1 and row.step != t:
                    continue
                table = tables[0] if H == 1 else tables[min(row.behind_step, H)]
                total = row.recorded + row.onward * float(case.pi[row.behind] @ table[row.behind])
                top[row.pair] += weight[i] * row.weight * total
                bottom[row.pair] += weight[i] * row.weight
            tables[t] = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return tables[:H]


def value_of(case: Case, tables: list[FloatArray], weight: FloatArray) -> float:
    start = [episode[0][0] for episode in paths(case.log)]
    return float(np.average([case.pi[s] @ tables[0][s] for s in start], weights=weight))


@stationary_or_not
@every_end
def test_tables_are_weighted_means_of_weighted_returns(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(0, n=60, ends=ends, longest=4)
    # Pairs so close to the log that ratios bring no divergence.
    case = Case(case.log, case.b, 0.8 * case.b + 0.2 * case.pi)
    weight = np.random.default_rng(0).exponential(size=60)
    weight[::7] = 0.0
    tables = looped_tables(case, 0.8, stationary, weight)
    estimate = fit(case, 0.8, weight, stationary=stationary)
    assert estimate.value == pytest.approx(value_of(case, tables, weight), rel=1e-8)
    assert estimate.diagnostics["status"] == "converged"
    predicted = q_regression(0.8, stationary=stationary).fit_q(case.log, case.policy, weight)
    q = predicted.predict(case.policy, case.log).q
    expected = [
        tables[t if len(tables) > 1 else 0][s, a] for episode in paths(case.log) for t, (s, a, _) in enumerate(episode)
    ]
    np.testing.assert_allclose(q, expected, rtol=1e-7, atol=1e-9)


def test_unknown_final_states_leave_the_value_of_the_last_known_one() -> None:
    case = random_case(1, n=60, ends=("terminal", "horizon"), longest=4)
    case = Case(case.log.replace(final_states=None), case.b, 0.8 * case.b + 0.2 * case.pi)
    tables = looped_tables(case, 0.8, True, np.ones(60))
    assert fit(case, 0.8, stationary=True).value == pytest.approx(value_of(case, tables, np.ones(60)), rel=1e-8)


def test_whole_returns_need_one_regression() -> None:
    case = random_case(2, n=50)
    estimate = fit(case)
    assert estimate.diagnostics["iterations"] == 1
    assert estimate.diagnostics["status"] == "converged"


def test_trees_are_given_the_same_weights() -> None:
    case = random_case(3, n=80, ends=("horizon",), longest=3)
    trees = q_regression(0.9, regressor=DecisionTreeRegressor(random_state=0), features=None)
    estimate = trees.fit(case.log, case.policy).estimate()
    assert estimate.value == pytest.approx(fit(case).value, rel=1e-9)


# -------------------------------------------------------------------------------- exact logs


@pytest.mark.parametrize("ends", ["horizon", "truncated"])
def test_exact_values_where_states_are_complete(ends: str) -> None:
    problem = RandomMDP(3, 2, terminals=1, horizon=4 if ends == "horizon" else None, random_state=5)
    every = exact_log(problem, 4 if ends == "horizon" else 3, ends)
    case = Case(every.log, problem.behavior, problem.target)
    truth = problem.value(problem.target, gamma=0.6)
    assert fit(case, 0.6, every.weight).value == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize(("problem", "n_steps"), [(ModelFail(), 2)], ids=repr)
def test_hidden_states_do_not_matter(problem: Any, n_steps: int) -> None:
    """Ratios carry what hides behind the state; one-step targets give tanh 1 here."""
    every = exact_log(problem, n_steps, "horizon")
    case = Case(every.log, problem.behavior, problem.target)
    assert fit(case, 1.0, every.weight).value == pytest.approx(-math.tanh(1.0), rel=1e-9)


def test_noiseless_returns_are_recovered_for_continuous_actions() -> None:
    """A deterministic reward of one step is a quadratic function of state and action, whatever the weights."""
    log = ScalarLQR(noise_std=0.0, max_steps=1).sample(50, random_state=0)
    log = log.replace(ends=np.zeros(50, np.int8), final_states=None)
    policy = GaussianPolicy(mean=[-0.5], std=0.3)
    estimate = q_regression(0.95).fit(log, policy).estimate()
    s = log.states[:, 0]
    expected = -np.mean(s**2 + 0.1 * ((-0.5 * s) ** 2 + 0.09))
    assert estimate.value == pytest.approx(expected, rel=1e-8)


# -------------------------------------------------------------------------------- verdicts and errors


def test_weights_are_judged() -> None:
    problem = RandomMDP(4, 2, horizon=4, random_state=2)
    case = Case(problem.sample(400, random_state=0), problem.behavior, problem.target)
    near = Case(case.log, case.b, 0.9 * case.b + 0.1 * case.pi)
    assert fit(near, n_bootstrap=39).verdict.level is Level.VALID
    few = fit(Case(problem.sample(60, random_state=0), near.b, near.pi), n_bootstrap=39)
    assert 20 < few.diagnostics["ess"] < 200  # enough for the default interval of weighted methods, not for a basic one
    assert few.verdict.level is Level.CAUTION
    far = Case(*(lambda hybrid: (hybrid.sample(100, random_state=0), hybrid.behavior, hybrid.target))(Hybrid()))
    estimate = fit(far, 1.0, n_bootstrap=2)
    assert estimate.verdict.level is Level.REFUSE
    assert estimate.diagnostics["ess"] < 25
    assert any("importance weights leave an effective sample" in reason for reason in estimate.verdict.reasons)


def test_a_candidate_that_no_episode_follows_is_refused() -> None:
    b, pi = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    log = one_hot_log([0] * 20, [0] * 20, [1.0] * 20, [1] * 20, "terminal", [0] * 20, b)
    with pytest.raises(ValueError, match=r"FittedQEvaluation.fit: `data` must hold an action that the candidate takes"):
        fit(Case(log, b, pi))
    timed = log.replace(horizon=2)
    estimate = fit(Case(timed, b, pi))
    assert estimate.value == 0.0
    assert estimate.verdict.level is Level.REFUSE
    assert estimate.diagnostics["mean_weight"] == 0.0


def test_products_that_overflow_are_named() -> None:
    case = random_case(4, ends=("horizon",))
    case = Case(case.log.replace(behavior_log_prob=np.full(len(case.log), -400.0)), case.b, case.pi)
    with pytest.raises(ValueError, match="regression targets must be finite, got products of ratios that overflow"):
        fit(case)


def test_estimated_propensities_of_a_flexible_model_are_noticed() -> None:
    case = random_case(5, n=40)
    bare = case.log.replace(behavior_log_prob=None)
    with pytest.raises(ValueError, match=r"loss='q_regression' must have propensities.*loss='squared'"):
        q_regression().fit(bare, case.policy)
    with pytest.raises(ValueError, match=r"loss='q_regression' must have propensities"):
        q_regression().fit_q(bare, case.policy, np.ones(40))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"loss": "huber"}, "`loss` must be one of"),
        ({"loss": "q_regression", "trace": "retrace"}, "`trace` must be None with loss="),
    ],
)
def test_bad_losses_are_named(params: dict[str, Any], words: str) -> None:
    case = random_case(6)
    with pytest.raises(ValueError, match=f"FittedQEvaluation: {words}"):
        FittedQEvaluation(gamma=0.9, **params).fit(case.log, case.policy)


def test_it_serves_doubly_robust_estimates() -> None:
    problem = RandomMDP(4, 2, horizon=5, random_state=2)
    log = problem.sample(400, random_state=0)
    estimate = DoublyRobust(gamma=0.9, q=q_regression(0.9)).fit(log, TabularPolicy(problem.target)).estimate()
    assert abs(estimate.value - problem.value(problem.target, gamma=0.9)) < 4 * estimate.std_error
