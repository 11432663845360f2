"""LSTD against plain loops, maximum-likelihood models, exact logs, closed forms and the infinitesimal jackknife."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from estimator_oracles import (
    Case,
    end_goes_on,
    every_end,
    exact_log,
    final_codes,
    flow_paths,
    influence_of,
    jackknife,
    maximum_likelihood,
    paths,
    random_case,
    sampled,
    stationary_or_not,
)
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures

from ope import Estimate, Level, LoggedDataset
from ope.estimators import LSTD, LSTDQ, StateMarginalIS
from ope.policies import ColumnPolicy, FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import Baird, ModelFail, RandomMDP, RiverSwim, ScalarLQR
from ope.validation import FloatArray


def fit(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Estimate:
    estimate: Estimate = LSTD(gamma=gamma, **params).fit(case.log, case.policy, weight).estimate()
    return estimate


# -------------------------------------------------------------------------------- plain loops


def looped_value(
    case: Case, gamma: float, stationary: bool, weight: FloatArray | None = None, ridge: float = 0.0
) -> float:
    """Solve (A + ridge I) theta = b in one-hot states, every sum written out; steps of their own where not stationary."""
    S = len(case.pi)
    H = 1 if stationary or case.log.horizon is None else case.log.horizon
    A, b, start = ridge * np.eye(S * H), np.zeros(S * H), np.zeros(S * H)
    for i, episode in enumerate(paths(case.log)):
        w = 1.0 if weight is None else float(weight[i])
        start[episode[0][0]] += w
        for t, (s, a, r) in enumerate(episode):
            last, k = t == len(episode) - 1, (t if H > 1 else 0) * S + s
            follows = end_goes_on(case.log, i, stationary) if last else True
            if follows is None:
                continue
            rho = w * case.pi[s, a] / case.b[s, a]
            A[k, k] += rho
            b[k] += rho * r
            step = t + 1 if H > 1 else 0
            if follows and step < H:
                z = final_codes(case.log)[i] if last else episode[t + 1][0]
                A[k, step * S + z] -= gamma * rho
    # States that the candidate cannot be seen to act in have no equation: their value is 0.
    seen = np.diag(A) > ridge
    theta = np.zeros(S * H)
    theta[seen] = np.linalg.solve(A[np.ix_(seen, seen)], b[seen])
    return float(start @ theta / start.sum())


@stationary_or_not
@every_end
@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_value_is_that_of_plain_loops(ends: tuple[str, ...], stationary: bool, ridge: float) -> None:
    case = random_case(0, ends=ends, zeros=True)
    weight = np.random.default_rng(0).exponential(size=case.log.n_episodes)
    weight /= weight.mean()
    estimate = fit(case, weight=weight, stationary=stationary, ridge=ridge)
    assert estimate.value == pytest.approx(looped_value(case, 0.9, stationary, weight, ridge), rel=1e-9)
    assert estimate.horizon == (None if stationary else case.log.horizon)


def test_horizon_ends_to_unknown_states_are_left_out() -> None:
    case = random_case(1, ends=("terminal", "horizon"))
    case = Case(case.log.replace(final_states=None), case.b, case.pi)
    estimate = fit(case, stationary=True)
    assert estimate.value == pytest.approx(looped_value(case, 0.9, True), rel=1e-9)
    assert estimate.diagnostics["left_out_transitions"] == int((case.log.ends == 1).sum())
    assert fit(case).diagnostics["left_out_transitions"] == 0


# -------------------------------------------------------------------------------- the identity with models and LSTDQ


def with_counted_propensities(case: Case, stationary: bool) -> Case:
    """Replace propensities by N(s, a) / N(s), of each step where values are."""
    time_indexed = not stationary and case.log.horizon is not None
    count: dict[tuple[int, ...], float] = {}
    for i, episode in enumerate(paths(case.log)):
        for t, (s, a, _) in enumerate(episode):
            if t == len(episode) - 1 and end_goes_on(case.log, i, stationary) is None:
                continue
            for key in ((t * time_indexed, s), (t * time_indexed, s, a)):
                count[key] = count.get(key, 0.0) + 1.0
    prob = [
        count.get((t * time_indexed, s, a), 1.0) / count.get((t * time_indexed, s), 1.0)
        for episode in paths(case.log)
        for t, (s, a, _) in enumerate(episode)
    ]
    return Case(case.log.replace(behavior_log_prob=np.log(prob)), case.b, case.pi)


@stationary_or_not
@every_end
def test_counted_propensities_give_the_maximum_likelihood_model_and_lstdq(
    ends: tuple[str, ...], stationary: bool
) -> None:
    """sum_a N(s, a) pi(a|s) / (N(s, a) / N(s)) = N(s): the weighted log moves like the model, where every action was logged."""
    case = random_case(2, n=400, n_actions=2, ends=ends, longest=4)
    counted = with_counted_propensities(case, stationary)
    estimate = fit(counted, stationary=stationary)
    assert estimate.value == pytest.approx(maximum_likelihood(case, 0.9, stationary).value, rel=1e-8)
    closed = LSTDQ(gamma=0.9, stationary=stationary).fit(case.log, case.policy).estimate()
    assert estimate.value == pytest.approx(closed.value, rel=1e-8)
    assert fit(case, stationary=stationary).value != pytest.approx(closed.value, rel=1e-6)


@stationary_or_not
def test_on_policy_it_is_lstdq_of_state_features(stationary: bool) -> None:
    """With pi = b all ratios are 1: the state values of the process that the log shows."""
    case = random_case(3, ends=("terminal", "horizon"), n=60)
    case = Case(case.log, case.b, case.b)
    one_action = case.log.replace(actions=np.zeros(len(case.log), int), action_labels=np.array([0]))
    policy = TabularPolicy(np.ones((len(case.b), 1)))
    closed = LSTDQ(gamma=0.9, stationary=stationary).fit(one_action, policy).estimate()
    estimate = fit(case, stationary=stationary)
    assert estimate.value == pytest.approx(closed.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(estimate), influence_of(closed), rtol=1e-8, atol=1e-10)
    for name in ("ess", "unsupported", "condition"):
        assert estimate.diagnostics[name] == pytest.approx(closed.diagnostics[name], rel=1e-6, abs=1e-9)
    assert estimate.diagnostics["mean_ratio"] == pytest.approx(1.0)


# -------------------------------------------------------------------------------- exact logs and closed forms


@pytest.mark.parametrize("gamma", [0.95, 1.0])
def test_time_indexed_value_is_exact_on_the_exact_law(gamma: float) -> None:
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, "horizon", flow_paths)
    estimate = LSTD(gamma=gamma).fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx({0.95: 0.7738807833, 1.0: 1.5986435503}[gamma], rel=1e-9)
    assert estimate.diagnostics["mean_ratio"] == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(("ends", "stationary"), [("horizon", True), ("truncated", False)])
def test_stationary_value_is_that_without_horizon(ends: str, stationary: bool) -> None:
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, ends, flow_paths)
    estimator = LSTD(gamma=0.95, stationary=stationary)
    estimate = estimator.fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx(2.4426254477, rel=1e-9)
    assert estimate.horizon is None


def test_hidden_state_gives_the_known_wrong_value() -> None:
    problem = ModelFail()
    every = exact_log(problem, 2, "horizon")
    estimate = LSTD(gamma=1.0).fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx(math.tanh(1), rel=1e-12)


LQR_VALUES = {-0.3: -5.462013422819, -0.5: -4.353627062017, -0.7: -3.768054727241}


def quadratic_log(problem: ScalarLQR, gain: float) -> tuple[LoggedDataset, FloatArray]:
    """Return one-step episodes with exact moments of order 2: start, noise, and pi / b times the action's distribution.

    Actions are three nodes of the candidate with its probabilities, logged a third of the time each: ratios are 3 times those.
    """
    root = math.sqrt(3)
    nodes, chances = np.array([-root, 0.0, root]), np.array([1 / 6, 2 / 3, 1 / 6])
    s, u, z, log_prob, weight = [], [], [], [], []
    for (x, p), (e, q), noise in itertools.product(
        zip(nodes, chances, strict=True), zip(nodes, chances, strict=True), (-1, 1)
    ):
        s.append(problem.initial_mean + problem.initial_std * x)
        u.append(gain * s[-1] + 0.3 * e)
        z.append(problem.a * s[-1] + problem.b * u[-1] + problem.noise_std * noise)
        density = math.exp(-0.5 * e**2) / (0.3 * math.sqrt(2 * math.pi))
        log_prob.append(math.log(density / (3 * q)))
        weight.append(p)
    rewards = [-(problem.q * x * x + problem.c * v * v) for x, v in zip(s, u, strict=True)]
    log = LoggedDataset.from_arrays(
        np.array(s)[:, None], np.array(u)[:, None], rewards, lengths=[1] * 18, ends="truncated",
        final_states=np.array(z)[:, None], behavior_log_prob=log_prob,
    )  # fmt: skip
    return log, np.array(weight)


@pytest.mark.parametrize("gain", LQR_VALUES)
@pytest.mark.parametrize("features", ["auto", PolynomialFeatures(2)], ids=["auto", "polynomial"])
def test_quadratic_features_are_exact_for_linear_dynamics(features: Any, gain: float) -> None:
    log, weight = quadratic_log(ScalarLQR(), gain)
    estimate = LSTD(gamma=0.95, features=features).fit(log, GaussianPolicy(mean=[gain], std=0.3), weight).estimate()
    assert estimate.value == pytest.approx(LQR_VALUES[gain], rel=1e-8)


def test_linear_dynamics_from_a_sample() -> None:
    log = ScalarLQR(max_steps=20).sample(1000, random_state=0)
    for gain, value in LQR_VALUES.items():
        estimate = LSTD(gamma=0.95).fit(log, GaussianPolicy(mean=[gain], std=0.3)).estimate()
        assert abs(estimate.value - value) < 4 * estimate.std_error
        assert estimate.std_error < 0.3


def test_baird_gives_zero() -> None:
    problem = Baird(max_steps=30)
    policy = TabularPolicy(problem.target, state_code=problem.state_code)
    estimate = LSTD(gamma=0.99, features="identity").fit(problem.sample(50), policy).estimate()
    assert estimate.value == pytest.approx(0.0, abs=1e-9)


# -------------------------------------------------------------------------------- influence


@stationary_or_not
@every_end
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_influence_is_the_infinitesimal_jackknife(ends: tuple[str, ...], ridge: float, stationary: bool) -> None:
    case = random_case(4, n=14, ends=ends, zeros=True)
    psi = influence_of(fit(case, stationary=stationary, ridge=ridge))
    numerical = jackknife(lambda w: fit(case, weight=w, stationary=stationary, ridge=ridge).value, 14)
    np.testing.assert_allclose(psi, numerical, rtol=1e-5, atol=1e-6 * np.abs(psi).max())
    assert abs(psi.sum()) < 1e-10 * np.abs(psi).sum()


def test_standard_error_is_the_spread_over_logs() -> None:
    """150 logs know a spread to 6 %."""
    problem = RandomMDP(4, 2, horizon=5, random_state=2)
    truth = problem.value(problem.target, gamma=0.9)
    estimates = [fit(sampled(problem, 150, seed)) for seed in range(150)]
    values = np.array([estimate.value for estimate in estimates])
    errors = np.array([estimate.std_error for estimate in estimates])
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.2)
    assert np.mean(np.abs(values - truth) < 1.96 * errors) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 150)
    p = np.array([estimate.diagnostics["specification_p"] for estimate in estimates])
    assert np.mean(p < 0.1) < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 150)


@stationary_or_not
def test_blocks_and_order_do_not_matter(stationary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(5, n=40, ends=("terminal", "horizon", "truncated"))
    whole, order = fit(case, stationary=stationary), np.random.default_rng(0).permutation(40)
    mixed = fit(Case(case.log.select(order), case.b, case.pi), stationary=stationary)
    np.testing.assert_allclose(influence_of(mixed), influence_of(whole)[order], rtol=1e-8, atol=1e-10)
    monkeypatch.setattr(LoggedDataset.blocks, "__defaults__", (9,))
    parts = fit(case, stationary=stationary)
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(parts), influence_of(whole), rtol=1e-8, atol=1e-10)


# -------------------------------------------------------------------------------- verdicts


def test_a_right_model_of_enough_data_is_valid() -> None:
    problem = RiverSwim(horizon=20)
    estimate = fit(sampled(problem, 3000), 0.95)
    assert estimate.verdict.level is Level.VALID
    assert abs(estimate.value - problem.value(problem.target, gamma=0.95)) < 4 * estimate.std_error
    assert estimate.diagnostics["unsupported"] == pytest.approx(0.0, abs=1e-9)


def test_hidden_states_are_refused() -> None:
    estimate = fit(sampled(ModelFail(), 500), 1.0)
    assert estimate.verdict.level is Level.REFUSE
    assert estimate.diagnostics["specification_p"] < 1e-3


def test_actions_that_the_log_lacks_are_refused() -> None:
    """The log holds the action that the candidate takes once in ten times: its mean ratio is that tenth."""
    log = LoggedDataset.from_arrays(
        np.ones((100, 1)), [0] * 100, np.arange(100.0), lengths=[1] * 100, ends="terminal", behavior_prob=[1.0] * 100,
        action_labels=[0, 1],
    )  # fmt: skip
    estimate = LSTD(gamma=0.9).fit(log, TabularPolicy([[0.1, 0.9]])).estimate()
    assert estimate.value == pytest.approx(49.5)
    assert estimate.diagnostics["mean_ratio"] == pytest.approx(0.1)
    assert estimate.verdict.level is Level.REFUSE
    assert any("mean importance weight is 0.1" in reason for reason in estimate.verdict.reasons)


def test_states_that_only_the_candidate_would_act_in_are_unsupported() -> None:
    """In state 1 the log never does what the candidate does: half of the starts are there."""
    b, pi = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.5, 0.5], [0.0, 1.0]])
    states = np.eye(2)[[0, 1] * 50]
    log = LoggedDataset.from_arrays(
        states, [0, 0, 1, 0] * 25, np.ones(100), lengths=[1] * 100, ends="terminal", behavior_prob=[0.5, 1.0] * 50
    )
    estimate = fit(Case(log, b, pi))
    assert estimate.diagnostics["unsupported"] == pytest.approx(0.5)
    assert estimate.value == pytest.approx(0.5)
    assert estimate.verdict.level is Level.REFUSE


def test_poor_features_are_noticed() -> None:
    """A straight line through quadratic values."""
    log = ScalarLQR(max_steps=10).sample(800, random_state=0)
    policy = GaussianPolicy(mean=[-0.5], std=0.3)
    poor = LSTD(gamma=0.9, features=PolynomialFeatures(1)).fit(log, policy).estimate()
    good = LSTD(gamma=0.9).fit(log, policy).estimate()
    assert poor.diagnostics["features_p"] < 1e-3 < good.diagnostics["features_p"]
    assert any("Richer features" in reason for reason in poor.verdict.reasons)


@pytest.mark.parametrize("method", [LSTD, LSTDQ])
def test_a_ridge_that_moves_the_value_is_a_caution(method: Any) -> None:
    case = sampled(RandomMDP(3, 2, horizon=4, random_state=1), 300)
    verdicts = {}
    for ridge in (1e-6, 30.0):
        estimate = method(gamma=0.9, ridge=ridge).fit(case.log, case.policy).estimate()
        plain = method(gamma=0.9).fit(case.log, case.policy).estimate()
        assert np.sign(estimate.diagnostics["ridge_bias"]) == np.sign(estimate.value - plain.value)
        verdicts[ridge] = [reason for reason in estimate.verdict.reasons if "ridge" in reason]
    assert not verdicts[1e-6]
    assert len(verdicts[30.0]) == 1
    assert "The ridge moves the value" in verdicts[30.0][0]


def test_without_discounting_and_termination_there_is_no_value() -> None:
    assert fit(random_case(6, ends=("truncated",)), 1.0).verdict.level is Level.REFUSE


# -------------------------------------------------------------------------------- what it asks for


def test_the_probability_of_logged_actions_is_enough() -> None:
    case = random_case(7, n=50)
    codes = case.log.states.argmax(axis=1)
    extras = pd.DataFrame({"p": case.pi[codes, case.log.actions]})
    by_column = LSTD(gamma=0.9).fit(case.log.replace(extras=extras), ColumnPolicy("p")).estimate()
    assert by_column.value == pytest.approx(fit(case).value, rel=1e-12)
    with pytest.raises(TypeError, match=r"LSTD requires|requires \['logged_prob'\]"):
        LSTD(gamma=0.9).fit(ScalarLQR(max_steps=3).sample(5, random_state=0), FunctionPolicy(predict=np.negative))


def test_propensities_are_needed() -> None:
    case = random_case(8)
    with pytest.raises(ValueError, match=r"LSTD.fit: `data` must hold propensities"):
        LSTD(gamma=0.9).fit(case.log.replace(behavior_log_prob=None), case.policy)


def test_ratios_that_overflow_are_named() -> None:
    case = random_case(9)
    tiny = case.log.replace(behavior_log_prob=np.full(len(case.log), -800.0))
    with pytest.raises(ValueError, match=r"LSTD.fit: ratios"):
        LSTD(gamma=0.9).fit(tiny, case.policy)


@pytest.mark.parametrize(
    ("params", "words"),
    [({"ridge": -1.0}, "`ridge`"), ({"features": "poly"}, "`features`"), ({"random_state": -1}, "`random_state`")],
)
def test_bad_parameters_are_named(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"LSTD: {words}"):
        fit(random_case(10), **params)


def doubled(states: FloatArray) -> FloatArray:
    return np.hstack([states, states @ np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]])])


@stationary_or_not
def test_bases_of_one_space_give_one_value(stationary: bool) -> None:
    case = random_case(11, ends=("terminal", "horizon"), n=200)
    plain = fit(case, stationary=stationary)
    other = fit(case, stationary=stationary, features=FunctionTransformer(doubled))
    assert other.value == pytest.approx(plain.value, rel=1e-8)
    np.testing.assert_allclose(influence_of(other), influence_of(plain), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", [LSTD, LSTDQ])
def test_rounding_is_no_evidence(method: Any) -> None:
    """Constant rewards leave temporal differences of rounding, about which a test without a sense of scale would be sure."""
    problem = RandomMDP(3, 2, horizon=6, random_state=1)
    log = problem.sample(300, random_state=0)
    log = log.replace(rewards=np.full(len(log), 0.1))
    estimate = method(gamma=0.9).fit(log, TabularPolicy(problem.target)).estimate()
    assert estimate.value == pytest.approx(0.1 * (1 - 0.9**6) / 0.1, rel=1e-10)
    assert estimate.diagnostics["specification_p"] == 1.0
    assert estimate.std_error == 0.0
    assert any("exactly the same" in reason for reason in estimate.verdict.reasons)


@stationary_or_not
@every_end
def test_the_marginal_ratio_of_states_is_its_dual(ends: tuple[str, ...], stationary: bool) -> None:
    """u' phi rho weighs rewards: the value is that of self-normalised state-marginal importance sampling."""
    case = random_case(12, n=60, ends=ends)
    dual = StateMarginalIS(gamma=0.9, stationary=stationary).fit(case.log, case.policy).estimate()
    estimate = fit(case, stationary=stationary)
    assert estimate.value == pytest.approx(dual.value, rel=1e-8)
    np.testing.assert_allclose(influence_of(estimate), influence_of(dual), rtol=1e-6, atol=1e-8)
