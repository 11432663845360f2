"""Traces of LSTDQ and fitted Q evaluation against plain loops, each other, exact logs and the infinitesimal jackknife."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from estimator_oracles import (
    Case,
    end_goes_on,
    exact_log,
    final_codes,
    influence_of,
    jackknife,
    maximum_likelihood,
    one_hot_log,
    paths,
    random_case,
)
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures
from sklearn.tree import DecisionTreeRegressor

from ope import Estimate, Level, LoggedDataset
from ope.estimators import LSTD, LSTDQ, DoublyRobust, FittedQEvaluation
from ope.estimators import _linear_fit as passes
from ope.estimators._traces import carry_back, carry_on
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import ModelFail, RandomMDP, RiverSwim, ScalarLQR, TabularProblem
from ope.validation import FloatArray

ENDS = [("terminal",), ("truncated",), ("horizon",), ("terminal", "horizon", "truncated")]
KINDS = ["retrace", "tree_backup", "q_lambda"]
stationary_or_not = pytest.mark.parametrize("stationary", [False, True], ids=["by_time", "stationary"])
every_end = pytest.mark.parametrize("ends", ENDS, ids="-".join)
every_trace = pytest.mark.parametrize("trace", KINDS)


def lstdq(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Estimate:
    estimate: Estimate = LSTDQ(gamma=gamma, **params).fit(case.log, case.policy, weight).estimate()
    return estimate


def linear_fqe(gamma: float = 0.9, **params: Any) -> FittedQEvaluation:
    regressor = LinearRegression(fit_intercept=False)
    return FittedQEvaluation(gamma=gamma, regressor=regressor, features="auto", **{"tol": 1e-13, **params})


def fqe(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Estimate:
    estimate: Estimate = linear_fqe(gamma, **params).fit(case.log, case.policy, weight).estimate()
    return estimate


# -------------------------------------------------------------------------------- oracle: tables and plain loops


def coefficient(case: Case, trace: str, decay: float, s: int, a: int) -> float:
    factor = {
        "retrace": min(1.0, case.pi[s, a] / case.b[s, a]),
        "tree_backup": case.pi[s, a],
        "q_lambda": 1.0,
    }
    return decay * float(factor[trace])


def unknown_end(case: Case, i: int, stationary: bool) -> bool:
    return end_goes_on(case.log, i, stationary) is None


def target_errors(
    case: Case, q: list[FloatArray], gamma: float, trace: str, decay: float, stationary: bool
) -> list[list[float]]:
    """Return sum_{k>=t} gamma^(k-t) c_{t+1} ... c_k delta_k of every step, every sum and product written out."""
    errors = []
    for i, episode in enumerate(paths(case.log)):
        T = len(episode) - unknown_end(case, i, stationary)
        delta = []
        for t in range(T):
            s, a, r = episode[t]
            follows = t < len(episode) - 1 or end_goes_on(case.log, i, stationary)
            z = episode[t + 1][0] if t < len(episode) - 1 else final_codes(case.log)[i]
            table = q[min(t + 1, len(q) - 1)] if len(q) == 1 or t + 1 < len(q) else np.zeros_like(q[0])
            ahead = float(case.pi[z] @ table[z]) if follows else 0.0
            delta.append(r + gamma * ahead - q[t if len(q) > 1 else 0][s, a])
        errors.append(
            [
                sum(
                    gamma ** (k - t)
                    * math.prod(coefficient(case, trace, decay, *episode[j][:2]) for j in range(t + 1, k + 1))
                    * delta[k]
                    for k in range(t, T)
                )
                for t in range(T)
            ]
        )
    return errors


def tables_of(case: Case, model: Any, stationary: bool) -> list[FloatArray]:
    """Read Q_t(s, a) of every pair off a fitted model: one-step episodes would all be at t = 0, so long ones are asked."""
    S, A = case.pi.shape
    H = 1 if stationary or case.log.horizon is None else case.log.horizon
    asked = [[(s, a)] * H for s in range(S) for a in range(A)]
    s, a = (np.array([step[part] for episode in asked for step in episode]) for part in (0, 1))
    log = one_hot_log(s, a, np.zeros(len(s)), [H] * len(asked), "terminal", [0] * len(asked), case.b, case.log.horizon)
    predicted = model.predict(case.policy, log).q.reshape(S, A, H)
    return [predicted[:, :, t] for t in range(H)]


def moments(case: Case, errors: list[list[float]], H: int, weight: FloatArray | None = None) -> FloatArray:
    """Return the sum of the errors of every pair (at every step): what regression on pairs makes 0."""
    total = np.zeros((H, *case.pi.shape))
    for i, (episode, own) in enumerate(zip(paths(case.log), errors, strict=True)):
        for t, error in enumerate(own):
            s, a, _ = episode[t]
            total[t if H > 1 else 0, s, a] += error * (1.0 if weight is None else weight[i])
    return total


def without_finals(case: Case) -> Case:
    """Forget where horizon ends went to."""
    assert case.log.final_states is not None
    states = np.where((case.log.ends == 1)[:, None], np.nan, case.log.final_states)
    return Case(case.log.replace(final_states=states), case.b, case.pi)


@stationary_or_not
@every_end
@every_trace
@pytest.mark.parametrize("decay", [0.4, 1.0])
def test_errors_of_the_targets_average_to_zero_in_every_pair(
    trace: str, ends: tuple[str, ...], decay: float, stationary: bool
) -> None:
    case = random_case(0, n=60, ends=ends)
    if ends != ("horizon",):
        case = without_finals(case)
    estimator = LSTDQ(gamma=0.9, trace=trace, trace_lambda=decay, stationary=stationary)
    weight = np.random.default_rng(0).exponential(size=60)
    q = tables_of(case, estimator.fit_q(case.log, case.policy, weight), stationary)
    errors = target_errors(case, q, 0.9, trace, decay, stationary)
    np.testing.assert_allclose(moments(case, errors, len(q), weight), 0.0, atol=1e-8)
    start = [float(case.pi[episode[0][0]] @ q[0][episode[0][0]]) for episode in paths(case.log)]
    value = estimator.fit(case.log, case.policy, weight).estimate().value
    assert value == pytest.approx(np.average(start, weights=weight), rel=1e-9)


@stationary_or_not
@every_end
@every_trace
def test_the_closed_form_is_the_fixed_point_of_the_iteration(
    trace: str, ends: tuple[str, ...], stationary: bool
) -> None:
    case = random_case(1, n=60, ends=ends, zeros=True)
    weight = np.random.default_rng(1).exponential(size=60)
    params: dict[str, Any] = {"trace": trace, "trace_lambda": 0.6, "stationary": stationary}
    iterated, closed = (method(case, 0.6, weight, **params) for method in (fqe, lstdq))
    assert iterated.value == pytest.approx(closed.value, rel=1e-8)
    assert iterated.diagnostics["status"] == "converged"
    p = closed.diagnostics["specification_p"]
    assert 0.0 < p <= 1.0
    assert closed.horizon == iterated.horizon == (None if stationary else case.log.horizon)


@every_trace
def test_quadratic_features_of_continuous_actions_agree_too(trace: str) -> None:
    log = ScalarLQR(max_steps=8).sample(60, random_state=1)
    policy, features = GaussianPolicy(mean=[-0.6], std=0.3), PolynomialFeatures(2)
    if trace == "tree_backup":
        for estimator in (LSTDQ(gamma=0.9, trace=trace), FittedQEvaluation(gamma=0.9, trace=trace)):
            with pytest.raises(ValueError, match=r"tree_backup.*continuous.*retrace"):
                estimator.fit(log, policy)
        return
    params: dict[str, Any] = {"trace": trace, "trace_lambda": 0.5}
    iterated = FittedQEvaluation(
        gamma=0.7, regressor=LinearRegression(fit_intercept=False), features=features, tol=1e-11, **params
    )
    closed = LSTDQ(gamma=0.7, features=features, **params).fit(log, policy).estimate()
    assert iterated.fit(log, policy).estimate().value == pytest.approx(closed.value, rel=1e-7)
    one_step = LSTDQ(gamma=0.7, features=features).fit(log, policy).estimate()
    assert abs(closed.value - one_step.value) < 4 * closed.std_error
    assert closed.value != pytest.approx(one_step.value, rel=1e-6)


@stationary_or_not
@every_trace
def test_trees_are_regressed_on_the_same_targets(trace: str, stationary: bool) -> None:
    """Trees that separate all pairs are tables."""
    case = random_case(2, n=80, ends=("terminal", "horizon", "truncated"))
    params: dict[str, Any] = {"trace": trace, "trace_lambda": 0.5, "stationary": stationary}
    trees = FittedQEvaluation(gamma=0.6, regressor=DecisionTreeRegressor(random_state=0), tol=1e-13, **params)
    estimate = trees.fit(case.log, case.policy).estimate()
    assert estimate.value == pytest.approx(lstdq(case, 0.6, **params).value, rel=1e-8)


def test_scans_are_the_sums_that_they_shorten() -> None:
    g = np.random.default_rng(0)
    offsets = np.array([0, 1, 4, 11, 13])
    x, y, c = g.normal(size=13), g.normal(size=13), g.uniform(size=13)
    back, on = np.zeros(13), np.zeros(13)
    for first, last in itertools.pairwise(offsets):
        for t in range(first, last):
            back[t] = sum(0.8 ** (k - t) * c[t + 1 : k + 1].prod() * x[k] for k in range(t, last))
            on[t] = sum(0.8 ** (t - k) * c[k + 1 : t + 1].prod() * x[k] for k in range(first, t + 1))
    np.testing.assert_allclose(carry_back(x, c, offsets, 0.8), back, rtol=1e-12)
    np.testing.assert_allclose(carry_on(x, c, offsets, 0.8), on, rtol=1e-12)
    np.testing.assert_allclose(carry_back(np.stack([x, y], 1), c, offsets, 0.8)[:, 0], back, rtol=1e-12)
    assert y @ carry_back(x, c, offsets, 0.8) == pytest.approx(carry_on(y, c, offsets, 0.8) @ x, rel=1e-12)


# -------------------------------------------------------------------------------- known values


@stationary_or_not
@every_trace
def test_lambda_zero_is_one_step_to_the_bit(trace: str, stationary: bool) -> None:
    case = random_case(3, ends=("terminal", "horizon", "truncated"))
    params: dict[str, Any] = {"trace": trace, "trace_lambda": 0.0, "stationary": stationary}
    traced, plain = lstdq(case, 0.5, **params), lstdq(case, 0.5, stationary=stationary)
    assert traced.value == plain.value
    np.testing.assert_array_equal(influence_of(traced), influence_of(plain))
    assert traced.diagnostics == plain.diagnostics
    assert fqe(case, 0.5, **params).value == fqe(case, 0.5, stationary=stationary).value


@every_trace
@pytest.mark.parametrize("ends", ["horizon", "truncated", "terminal"])
def test_all_traces_have_one_limit_where_states_are_complete(trace: str, ends: str) -> None:
    """All paths of a process, weighted by their probabilities, are what infinite data would give."""
    horizon = 4 if ends == "horizon" else None
    problem = RandomMDP(3, 2, terminals=int(ends != "truncated"), horizon=horizon, random_state=5)
    every = exact_log(problem, 3 if ends == "truncated" else 4, "truncated" if ends == "terminal" else ends)
    case = Case(every.log, problem.behavior, problem.target)
    for decay in (0.7, 1.0):
        found = lstdq(case, 0.9, every.weight, trace=trace, trace_lambda=decay).value
        assert found == pytest.approx(problem.value(problem.target, gamma=0.9), rel=1e-8)
    found = fqe(case, 0.6, every.weight, trace=trace, trace_lambda=0.7).value
    assert found == pytest.approx(problem.value(problem.target, gamma=0.6), rel=1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@every_trace
def test_traces_carry_what_a_hidden_state_decides(trace: str, decay: float) -> None:
    """ModelFail: the second reward, +1 or -1 by the first action, reaches that action through E_b[c] of the trace alone.

    Q_0(a) = (1 - E c) tanh 1 + E c (+1 or -1): one step gives tanh 1, whole traces the truth -tanh 1.
    """
    problem = ModelFail()
    every = exact_log(problem, 2, "horizon")
    b, pi = problem.behavior[0], problem.target[0]
    mean = decay * {"retrace": np.minimum(b, pi).sum(), "tree_backup": b @ pi, "q_lambda": 1.0}[trace]
    case = Case(every.log, problem.behavior, problem.target)
    for method in (lstdq, fqe):
        found = method(case, 1.0, every.weight, trace=trace, trace_lambda=decay).value
        assert found == pytest.approx((1.0 - 2.0 * mean) * math.tanh(1.0), rel=1e-9)


@every_trace
def test_sampled_value_lies_within_its_error(trace: str) -> None:
    problem = RandomMDP(4, 2, horizon=6, random_state=2)
    case = Case(problem.sample(2000, random_state=0), problem.behavior, problem.target)
    estimate = lstdq(case, trace=trace, trace_lambda=0.8)
    assert abs(estimate.value - problem.value(problem.target, gamma=0.9)) < 4 * estimate.std_error
    assert estimate.verdict.level is Level.VALID


# -------------------------------------------------------------------------------- influence, weights, blocks


@stationary_or_not
@every_end
@every_trace
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_influence_is_the_infinitesimal_jackknife(
    trace: str, ends: tuple[str, ...], ridge: float, stationary: bool
) -> None:
    case = random_case(4, n=14, ends=ends, zeros=True)
    params: dict[str, Any] = {"trace": trace, "trace_lambda": 0.8, "ridge": ridge, "stationary": stationary}
    psi = influence_of(lstdq(case, **params))
    numerical = jackknife(lambda w: lstdq(case, weight=w, **params).value, 14)
    np.testing.assert_allclose(psi, numerical, rtol=1e-5, atol=1e-6 * np.abs(psi).max())
    assert abs(psi.sum()) < 1e-10 * np.abs(psi).sum()


@stationary_or_not
@every_trace
def test_plug_in_influence_is_the_jackknife_of_the_final_values(trace: str, stationary: bool) -> None:
    case = random_case(5, n=16, ends=("terminal", "truncated", "horizon"))
    estimator = LSTDQ(gamma=0.9, trace=trace, trace_lambda=0.7, stationary=stationary)
    c = np.random.default_rng(0).normal(size=16) * (case.log.ends == 2)

    def plug_in(weight: FloatArray) -> float:
        model = estimator.fit_q(case.log, case.policy, weight)
        return float(np.mean(c * model.predict(case.policy, case.log).v_final))

    psi = estimator.plug_in_influence(case.log, case.policy, np.ones(16), c)
    numerical = jackknife(plug_in, 16)
    np.testing.assert_allclose(psi, numerical - numerical.mean(), rtol=1e-5, atol=1e-6 * np.abs(psi).max())


@stationary_or_not
@every_trace
def test_blocks_and_order_do_not_matter(trace: str, stationary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(6, n=40, ends=("terminal", "horizon", "truncated"))
    params: dict[str, Any] = {"trace": trace, "trace_lambda": 0.9, "stationary": stationary}
    whole = lstdq(case, **params)
    order = np.random.default_rng(0).permutation(40)
    mixed = lstdq(Case(case.log.select(order), case.b, case.pi), **params)
    assert mixed.value == pytest.approx(whole.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(mixed), influence_of(whole)[order], rtol=1e-7, atol=1e-9)
    monkeypatch.setattr(LoggedDataset.blocks, "__defaults__", (9,))
    for limit in (1000, 0):  # features kept, and computed anew in every pass
        monkeypatch.setattr(passes, "BLOCK_ROWS", limit)
        parts = lstdq(case, **params)
        assert parts.value == pytest.approx(whole.value, rel=1e-10)
        np.testing.assert_allclose(influence_of(parts), influence_of(whole), rtol=1e-8, atol=1e-10)


def test_short_traces_are_summed_only_as_far_as_they_reach() -> None:
    """A trace of .2 to the power 30 is nothing beside 1: the closed form leaves it out, the iteration does not."""
    problem = RandomMDP(3, 2, horizon=60, random_state=4)
    case = Case(problem.sample(40, random_state=0), problem.behavior, problem.target)
    params: dict[str, Any] = {"trace": "q_lambda", "trace_lambda": 0.2}
    assert lstdq(case, 1.0, **params).value == pytest.approx(fqe(case, 1.0, **params).value, rel=1e-9)


def test_too_many_features_for_a_long_trace_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(7, ends=("horizon",))
    monkeypatch.setattr(passes, "LATER_BYTES", 100)
    with pytest.raises(ValueError, match=r"LSTDQ.fit: `features` with a trace over 6 steps .* FittedQEvaluation"):
        lstdq(case, trace="retrace")
    lstdq(case)
    lstdq(case, trace="retrace", stationary=True)


@pytest.mark.parametrize(
    ("problem", "stationary"),
    [(RandomMDP(4, 2, max_steps=12, terminals=1, random_state=1), True), (RandomMDP(4, 2, horizon=5, random_state=2), False)],
)  # fmt: skip
def test_specification_test_keeps_its_size(problem: TabularProblem, stationary: bool) -> None:
    """120 logs of right models: a rate of .1 has a standard error of .027."""
    params: dict[str, Any] = {"trace": "retrace", "trace_lambda": 0.9, "stationary": stationary}
    p = np.array([
        lstdq(Case(problem.sample(80, random_state=seed), problem.behavior, problem.target), **params).diagnostics["specification_p"]
        for seed in range(120)
    ])  # fmt: skip
    assert np.mean(p < 0.1) < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 120)
    assert np.mean(p < 0.3) > 0.1


# -------------------------------------------------------------------------------- divergence


def far_case(n: int = 200, T: int = 15) -> Case:
    """Two states, each action leads to its own; the log stays, the candidate changes."""
    g = np.random.default_rng(0)
    b, pi = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.02, 0.98], [0.98, 0.02]])
    lengths = np.full(n, T)
    s, a, final = [], [], []
    for _ in range(n):
        code = int(g.integers(2))
        for _ in range(T):
            s.append(code)
            a.append(int(g.random() < b[code, 1]))
            code = a[-1]
        final.append(code)
    r = np.array(s) * 1.0 + g.normal(size=len(s)) * 0.1
    return Case(one_hot_log(s, a, r, lengths, "truncated", final, b), b, pi)


def test_q_lambda_diverges_far_from_the_log_and_says_so() -> None:
    case = far_case()
    wild = fqe(case, 0.95, trace="q_lambda", trace_lambda=1.0, tol=1e-6)
    assert wild.diagnostics["status"] == "diverged"
    assert wild.verdict.level is Level.REFUSE
    assert any("diverged" in reason and "trace_lambda" in reason for reason in wild.verdict.reasons)
    model = maximum_likelihood(case, 0.95).value
    for trace in ("retrace", "tree_backup"):
        safe = fqe(case, 0.95, trace=trace, tol=1e-6)
        assert safe.diagnostics["status"] == "converged"
        assert safe.value == pytest.approx(model, rel=0.02)
    assert lstdq(case, 0.95, trace="q_lambda").value == pytest.approx(model, rel=0.05)


def test_an_unfinished_trace_is_not_valid() -> None:
    case = random_case(8, n=60, ends=("truncated",))
    case = Case(case.log.replace(rewards=case.log.rewards + 1.0), case.b, case.pi)
    params: dict[str, Any] = {"trace": "retrace", "trace_lambda": 0.5, "tol": 1e-3, "n_bootstrap": 39}
    enough, few = fqe(case, **params), fqe(case, max_iter=2, **params)
    assert enough.verdict.level is Level.VALID
    assert few.verdict.level is Level.CAUTION
    assert any("still moved" in reason for reason in few.verdict.reasons)


def test_longer_traces_need_fewer_iterations() -> None:
    case = random_case(9, n=80, ends=("truncated",), longest=12)
    iterations = [
        fqe(case, tol=1e-6, trace="retrace", trace_lambda=decay).diagnostics["iterations"] for decay in (0.0, 0.5, 1.0)
    ]
    assert iterations[0] > iterations[1] > iterations[2]


# -------------------------------------------------------------------------------- what traces need


def tree_fqe(**params: Any) -> FittedQEvaluation:
    return FittedQEvaluation(regressor=DecisionTreeRegressor(max_depth=2), max_iter=5, **params)


methods = pytest.mark.parametrize("method", [LSTDQ, tree_fqe], ids=["lstdq", "fqe"])


@methods
def test_only_retrace_needs_propensities(method: Any) -> None:
    case = random_case(10, n=40)
    bare = case.log.replace(behavior_log_prob=None, behavior_source=None)
    with pytest.raises(ValueError, match=r"(LSTDQ|Evaluation).fit: trace='retrace' must have propensities"):
        method(gamma=0.9, trace="retrace").fit(bare, case.policy)
    with pytest.raises(ValueError, match="trace='retrace' must have propensities"):
        method(gamma=0.9, trace="retrace").fit_q(bare, case.policy, np.ones(40))
    for trace in ("tree_backup", "q_lambda"):
        with_them = method(gamma=0.9, trace=trace, trace_lambda=0.3).fit(case.log, case.policy).estimate().value
        without = method(gamma=0.9, trace=trace, trace_lambda=0.3).fit(bare, case.policy).estimate().value
        assert without == with_them


@methods
def test_retrace_needs_the_density_of_continuous_actions(method: Any) -> None:
    log = ScalarLQR(max_steps=3).sample(20, random_state=0)
    policy = FunctionPolicy(sample=lambda states, rng: -0.5 * states + 0.3 * rng.normal(size=states.shape))
    with pytest.raises(TypeError, match="logged_prob"):
        method(gamma=0.9, trace="retrace").fit(log, policy)
    assert math.isfinite(method(gamma=0.9, trace="q_lambda", trace_lambda=0.2).fit(log, policy).estimate().value)


@methods
@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"trace": "retraced"}, ValueError, "`trace` must be None, 'retrace'"),
        ({"trace": "retrace", "trace_lambda": 1.5}, ValueError, "`trace_lambda` must be in"),
        ({"trace_lambda": -0.1}, ValueError, "`trace_lambda` must be in"),
        ({"trace_lambda": "all"}, TypeError, "`trace_lambda` must be in"),
    ],
)
def test_bad_traces_are_named(method: Any, params: Any, error: type[Exception], words: str) -> None:
    case = random_case(11)
    with pytest.raises(error, match=f"(LSTDQ|FittedQEvaluation): {words}"):
        method(gamma=0.9, **params).fit(case.log, case.policy)


def test_cross_fitted_propensities_are_preferred() -> None:
    case = random_case(12, n=40)
    assert case.log.behavior_log_prob is not None
    other = Case(case.log.replace(cross_fitted_log_prob=case.log.behavior_log_prob + 0.3), case.b, case.pi)
    shifted = Case(case.log.replace(behavior_log_prob=case.log.behavior_log_prob + 0.3), case.b, case.pi)
    assert lstdq(other, trace="retrace").value == lstdq(shifted, trace="retrace").value
    assert lstdq(other, trace="retrace").value != lstdq(case, trace="retrace").value


@pytest.mark.parametrize(
    "q", [LSTDQ(trace="retrace"), linear_fqe(0.9, trace="tree_backup", tol=1e-4)], ids=["lstdq", "fqe"]
)
def test_traced_models_serve_doubly_robust_estimates(q: Any) -> None:
    problem = RandomMDP(4, 2, horizon=6, random_state=2)
    log = problem.sample(400, random_state=0)
    case = Case(log, problem.behavior, problem.target)
    estimate = DoublyRobust(gamma=0.9, q=q).fit(log, case.policy).estimate()
    assert abs(estimate.value - problem.value(problem.target, gamma=0.9)) < 4 * estimate.std_error


@pytest.mark.slow
@pytest.mark.parametrize("n", [400, 1000])
@pytest.mark.parametrize(
    "estimator",
    [LSTDQ(), LSTDQ(trace="retrace"), LSTDQ(trace="tree_backup"), LSTDQ(trace="q_lambda", trace_lambda=0.5), LSTD()],
    ids=str,
)
def test_valid_intervals_cover(estimator: Any, n: int, capsys: pytest.CaptureFixture[str]) -> None:
    """RiverSwim, 20 steps, 300 logs, those whose verdict is VALID: a coverage of .95 has a standard error of .0126 over all 300."""
    problem = RiverSwim(horizon=20)
    truth = problem.value(problem.target, gamma=0.95)
    errors, covered, valid = [], [], []
    for seed in range(300):
        log = problem.sample(n, random_state=seed)
        estimate = clone(estimator).set_params(gamma=0.95).fit(log, TabularPolicy(problem.target)).estimate()
        low, high = estimate.confidence_interval(0.95)
        errors.append(estimate.value - truth)
        covered.append(low <= truth <= high)
        valid.append(estimate.verdict.level is Level.VALID)
    inside = np.array(covered)[valid]
    share = float(inside.mean()) if len(inside) else math.nan
    with capsys.disabled():
        mse = float(np.mean(np.square(errors)))
        print(
            f"\n{estimator} n={n}: coverage {np.mean(covered):.3f}, of {len(inside)} valid {share:.3f}, mse {mse:.5f}"
        )
    assert len(inside) < 20 or share > 0.95 - 4 * math.sqrt(0.95 * 0.05 / len(inside))
