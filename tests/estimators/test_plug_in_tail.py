"""What a doubly robust value takes from Q alone after truncated episodes, and that its standard error knows it."""

from __future__ import annotations

import numpy as np
import pytest
from estimator_oracles import Case, jackknife, one_hot_log, random_case
from sklearn.linear_model import LinearRegression

from ope import Estimate, Level
from ope.estimator import OffPolicyEstimator
from ope.estimators import LSTDQ, MAGIC, DoublyRobust, EfficientDoublyRobust, FittedQEvaluation, ModelBased
from ope.policies import TabularPolicy
from ope.problems import RandomMDP, RiverSwim, TabularProblem
from ope.validation import FloatArray


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "ends", [("truncated",), ("terminal", "truncated"), ("terminal", "horizon"), ("terminal", "horizon", "truncated")]
)
def test_influence_of_the_plug_in_is_the_jackknife(ends: tuple[str, ...], known: bool, stationary: bool) -> None:
    """Of mean(c_i Vhat(s_T)) with fixed c: of the last recorded state where the one after it is not known."""
    case, c = random_case(3, ends=ends, n=40), np.random.default_rng(0).normal(size=40)
    log = case.log
    assert log.final_states is not None
    if not known:
        unknown = (log.ends == 1)[:, None]
        log = log.replace(final_states=np.where(unknown, np.nan, log.final_states))
    elif "truncated" not in ends and not stationary:
        pytest.skip("nothing goes on")
    estimator = LSTDQ(gamma=0.9, stationary=stationary)

    def value(weight: FloatArray) -> float:
        fitted = estimator.fit_q(log, case.policy, weight / weight.mean()).predict(case.policy, log)
        last = fitted.v[log.offsets[1:] - 1]
        lost = (log.ends == 1) & (not known) & stationary
        return float(np.mean(c * np.where(lost, last, fitted.v_final)))

    psi = estimator.plug_in_influence(log, case.policy, np.ones(40), c)
    np.testing.assert_allclose(psi, jackknife(value, 40), rtol=1e-5, atol=1e-7)


ENDLESS = [
    (RiverSwim(max_steps=20), RiverSwim(), 0.95),
    (RandomMDP(3, 2, max_steps=4, random_state=2), RandomMDP(3, 2, random_state=2), 0.9),
]


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["DR", "WDR"])
@pytest.mark.parametrize(("problem", "endless", "gamma"), ENDLESS, ids=["RiverSwim", "RandomMDP"])
def test_standard_error_knows_the_tail(
    problem: TabularProblem, endless: TabularProblem, gamma: float, weighted: bool
) -> None:
    truth = endless.value(problem.target, gamma=gamma)
    estimator, rows = DoublyRobust(gamma=gamma, weighted=weighted), []
    for seed in range(500):
        estimate = estimator.fit(problem.sample(200, random_state=seed), TabularPolicy(problem.target)).estimate()
        rows.append((estimate.value, estimate.std_error))
    values, errors = np.array(rows).T
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.1)
    assert 0.91 < np.mean(np.abs(values - truth) < 1.96 * errors) < 0.99


def test_standard_error_grows_with_the_tail() -> None:
    """The same paths, declared terminal or truncated: only the second needs Q after the end."""
    problem = RiverSwim(max_steps=20)
    log, policy = problem.sample(400, random_state=0), TabularPolicy(problem.target)
    cut = DoublyRobust(gamma=0.95).fit(log, policy).estimate()
    bare = cut.diagnostics["plug_in_value"]
    closed = LSTDQ(gamma=0.95).fit(log, policy).estimate()
    assert bare > 0.3 * cut.value
    assert cut.std_error > 0.7 * closed.std_error
    assert cut.scores is None
    complete = DoublyRobust(gamma=0.95).fit(log.replace(ends=np.zeros_like(log.ends)), policy).estimate()
    assert complete.diagnostics["plug_in_value"] == 0.0
    assert complete.scores is not None


def test_a_model_of_unknown_error_is_said() -> None:
    problem = RiverSwim(max_steps=20)
    log, policy = problem.sample(200, random_state=0), TabularPolicy(problem.target)
    model = FittedQEvaluation(regressor=LinearRegression(fit_intercept=False), features="auto")
    estimate = DoublyRobust(gamma=0.95, q=model, n_folds=2).fit(log, policy).estimate()
    assert estimate.verdict.level >= Level.CAUTION
    assert any("from the Q model alone" in reason for reason in estimate.verdict.reasons)


# -------------------------------------------------------------------------------- states that nobody acted in


def cut_case(share: float = 1.0, length: int = 1, n: int = 200) -> Case:
    """Return episodes that were truncated, this share of them into state 1, where nobody acted; the others into state 0."""
    g = np.random.default_rng(0)
    b = np.full((2, 2), 0.5)
    final = (np.arange(n) < share * n).astype(int)
    s, a = np.zeros(n * length, int), g.integers(2, size=n * length)
    log = one_hot_log(s, a, a + 0.1 * g.normal(size=len(s)), [length] * n, "truncated", final, b)
    return Case(log, b, np.array([[0.4, 0.6], [0.4, 0.6]]))


TREES = FittedQEvaluation(n_bootstrap=0)
LINEAR = FittedQEvaluation(regressor=LinearRegression(fit_intercept=False), features="auto")
FAMILY: dict[str, OffPolicyEstimator] = {
    "DR": DoublyRobust(gamma=0.9),
    "WDR": DoublyRobust(gamma=0.9, weighted=True),
    "EDR": EfficientDoublyRobust(gamma=0.9),
    "DR of a table": DoublyRobust(gamma=0.9, q=ModelBased()),
    "DR of fitted Q": DoublyRobust(gamma=0.9, q=LINEAR, n_folds=2),
    "DR of trees": DoublyRobust(gamma=0.9, q=TREES, n_folds=2),
    "MAGIC": MAGIC(gamma=0.9, n_bootstrap=20),
}


def behind(estimate: Estimate) -> list[str]:
    return [reason for reason in estimate.verdict.reasons if "lies behind truncated episodes" in reason]


@pytest.mark.parametrize("name", FAMILY)
def test_ends_in_states_nobody_acted_in_are_refused(name: str) -> None:
    case = cut_case()
    estimate = FAMILY[name].fit(case.log, case.policy).estimate()
    assert estimate.diagnostics["unsupported_tail"] == pytest.approx(0.9, rel=0.1)
    assert estimate.verdict.level is Level.REFUSE
    assert behind(estimate)


@pytest.mark.parametrize("name", FAMILY)
def test_ends_in_states_that_were_acted_in_are_not(name: str) -> None:
    case = cut_case(share=0.0)
    estimate = FAMILY[name].fit(case.log, case.policy).estimate()
    assert estimate.diagnostics["unsupported_tail"] == pytest.approx(0.0, abs=1e-12)
    assert not behind(estimate)


@pytest.mark.parametrize("name", ["DR", "WDR", "DR of a table"])
def test_the_share_is_of_the_discounted_time(name: str) -> None:
    few, late = cut_case(share=0.02), cut_case(length=30)
    for case, share in ((few, 0.02 * 0.9), (late, 0.9**30)):
        same = Case(case.log, case.b, case.b)
        estimate = FAMILY[name].fit(case.log, same.policy).estimate()
        assert estimate.diagnostics["unsupported_tail"] == pytest.approx(share, rel=1e-6)
    timed = cut_case(length=2).log.replace(horizon=4)
    for q in (LSTDQ(), ModelBased(), ModelBased(homogeneous=True)):
        estimate = DoublyRobust(gamma=1.0, q=q, n_folds=2).fit(timed, TabularPolicy(case.b)).estimate()
        assert estimate.diagnostics["unsupported_tail"] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("horizon", [None, 3])
@pytest.mark.parametrize("known", [True, False])
def test_tables_and_one_hot_features_agree_on_what_is_unsupported(known: bool, horizon: int | None) -> None:
    case = random_case(5, n=12, n_states=4, ends=("truncated",), longest=3)
    log = case.log.replace(horizon=horizon)
    if not known:
        assert log.final_states is not None
        gone = np.arange(12)[:, None] % 2 == 0
        log = log.replace(final_states=np.where(gone, np.nan, log.final_states))
    weight = np.ones(12)
    linear, table = (q.unsupported_ends(log, case.policy, weight) for q in (LSTDQ(gamma=0.9), ModelBased(gamma=0.9)))
    assert linear.max() > 0.0
    np.testing.assert_allclose(table, linear, atol=1e-12)
