"""Minimax weight and Q learning with networks: tables against the closed form, influence, models on other logs, verdicts."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dice_oracles import influence_gap
from estimator_oracles import influence_of, maximum_likelihood, random_case, repeated_log

from ope import Estimate, Level, LoggedDataset
from ope.estimators import DICE, LSTDQ, DoublyRobust, MinimaxQLearning, MinimaxWeightLearning, NeuralFunctions
from ope.estimators._dice_problem import DiceProblem, Lagrangian
from ope.estimators._neural_dice import Learned, in_key_order, learn
from ope.estimators._neural_minimax import fit_q_network
from ope.estimators.minimax_q import solve
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import LinearGaussian, RandomMDP, RiverSwim, ScalarLQR
from ope.testing.logs import make_case
from ope.validation import FloatArray

Minimax = type[MinimaxWeightLearning] | type[MinimaxQLearning]
BOTH = pytest.mark.parametrize("kind", [MinimaxWeightLearning, MinimaxQLearning])
SMALL = NeuralFunctions(hidden=(16,), n_updates=30, batch_size=64)
WIDE = NeuralFunctions(hidden=(32,), n_updates=200, batch_size=128)
TINY = NeuralFunctions(hidden=(8,), n_updates=20, batch_size=16)


def fit(kind: Minimax, log: LoggedDataset, policy: Any, weight: FloatArray | None = None, **params: Any) -> Any:
    return kind(**{"gamma": 0.9, "network": SMALL, **params}).fit(log, policy, weight).estimate()


# -------------------------------------------------------------------- tables: the last layers are the closed form


@pytest.mark.parametrize("stationary", [False, True], ids=["by_time", "stationary"])
@pytest.mark.parametrize("ends", [("terminal",), ("truncated",), ("horizon",), ("terminal", "horizon", "truncated")])
@BOTH
def test_tables_of_all_ends_get_the_closed_form(kind: Minimax, ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(0, n=600, ends=ends)
    exact = maximum_likelihood(case, 0.8, stationary).value
    reference = LSTDQ(gamma=0.8, stationary=stationary).fit(case.log, case.policy).estimate()
    estimate = fit(kind, case.log, case.policy, gamma=0.8, stationary=stationary, network=TINY)
    assert estimate.value == pytest.approx(exact, abs=1e-6)
    np.testing.assert_allclose(influence_of(estimate), influence_of(reference), atol=1e-5)
    assert estimate.diagnostics["ess"] == pytest.approx(reference.diagnostics["ess"], rel=1e-5)
    assert estimate.horizon == (None if stationary else case.log.horizon)


@BOTH
def test_riverswim_gets_the_closed_form(kind: Minimax) -> None:
    problem = RiverSwim(max_steps=50)
    log, policy = problem.sample(100, random_state=0), TabularPolicy(problem.target)
    exact = LSTDQ(gamma=0.95).fit(log, policy).estimate()
    estimate = fit(kind, log, policy, gamma=0.95)
    assert estimate.value == pytest.approx(exact.value, rel=1e-8)
    assert estimate.std_error == pytest.approx(exact.std_error, rel=1e-6)
    np.testing.assert_allclose(estimate.diagnostics["path"], exact.value, rtol=1e-8)


def test_the_network_alone_comes_to_the_closed_form() -> None:
    problem = RandomMDP(4, 3, max_steps=12, random_state=0)
    log, policy = problem.sample(200, random_state=0), TabularPolicy(problem.target)
    exact = LSTDQ(gamma=0.8).fit(log, policy).estimate()
    settings = NeuralFunctions(hidden=(16,), n_updates=600, batch_size=128)
    estimate = fit(MinimaxQLearning, log, policy, gamma=0.8, network=settings)
    assert abs(estimate.diagnostics["network_value"] - exact.value) < 2.0 * exact.std_error
    assert estimate.verdict.level == Level.VALID


@BOTH
def test_the_order_of_episodes_does_not_matter(kind: Minimax) -> None:
    case = make_case("continuous")
    order = np.random.default_rng(0).permutation(case.log.n_episodes)
    one, other = (fit(kind, log, case.candidate, network=TINY) for log in (case.log, case.log.select(order)))
    assert other.value == pytest.approx(one.value, rel=1e-12)
    np.testing.assert_allclose(influence_of(other), influence_of(one)[order], rtol=1e-10, atol=1e-12)
    assert other.diagnostics["ess"] == pytest.approx(one.diagnostics["ess"], rel=1e-10)


@BOTH
def test_episode_weights_count_as_repeated_episodes(kind: Minimax) -> None:
    case = random_case(1, n=120, ends=("terminal", "truncated"))
    weight = np.random.default_rng(0).choice([0.0, 1.0, 3.0], size=120)
    exact = maximum_likelihood(case, 0.8, stationary=True, weight=weight).value
    estimate = fit(kind, case.log, case.policy, weight, gamma=0.8, stationary=True, network=TINY)
    assert estimate.value == pytest.approx(exact, abs=1e-6)
    repeated = repeated_log(case.log, np.repeat(np.arange(120), weight.astype(int)))
    again = fit(kind, repeated, case.policy, gamma=0.8, stationary=True, network=TINY)
    assert estimate.value == pytest.approx(again.value, abs=1e-6)


@pytest.mark.parametrize("deterministic", [False, True])
def test_linear_quadratic_control(deterministic: bool) -> None:
    """The value is within a tenth of |J(pi) - J(b)| of that of the quadratic Q function on the same log."""
    problem = ScalarLQR(max_steps=20)
    log = problem.sample(300, random_state=0)
    policy = FunctionPolicy(predict=lambda s: -0.7 * s[:, :1]) if deterministic else GaussianPolicy([[-0.7]], 0.3)
    truth = problem.value(LinearGaussian(-0.7, 0.0 if deterministic else 0.3))
    exact = LSTDQ(gamma=0.95).fit(log, policy).estimate()
    estimate = fit(MinimaxQLearning, log, policy, gamma=0.95, network=WIDE)
    assert abs(estimate.value - exact.value) < 0.1 * abs(truth - problem.value(problem.behavior))
    assert 0.5 < estimate.std_error / exact.std_error < 2.0


@pytest.mark.parametrize("kind", ["mixed", "continuous_horizon"])
def test_weight_learning_is_dual_dice(kind: str) -> None:
    """Both classes hold a network and its last layer: the flow that no discriminator sees is the flow that nu binds."""
    case = make_case(kind)
    weight, dual = (
        estimator.fit(case.log, case.candidate).estimate()
        for estimator in (MinimaxWeightLearning(gamma=0.9, network=TINY), DICE.dual(gamma=0.9, network=TINY))
    )
    assert weight.value == pytest.approx(dual.value, rel=1e-8)
    np.testing.assert_allclose(influence_of(weight), influence_of(dual), rtol=1e-6, atol=1e-9)


# -------------------------------------------------------------------- the fitted Q function


def problem_of(kind: str) -> DiceProblem:
    case = make_case(kind)
    horizon = case.log.horizon if kind.endswith("horizon") else None
    return DiceProblem(case.log, case.candidate, np.ones(case.log.n_episodes), Lagrangian(), 0.9, horizon)


@pytest.mark.parametrize("kind", ["mixed", "continuous", "continuous_horizon"])
def test_influence_is_the_jackknife_of_the_last_layer(kind: str) -> None:
    problem = problem_of(kind)
    found = fit_q_network(problem, TINY)
    switched = replace(problem, lagrangian=Lagrangian(a_zeta=1.0, reward=True))
    (ordered,), order = in_key_order([switched])
    learned = learn([ordered], TINY, start=0.0)[0]
    assert isinstance(learned, Learned)

    def value(weight: FloatArray) -> float:
        reweighted = replace(learned.problem, episode_weight=weight / weight.mean())
        return solve(reweighted, learned.features, 0.0, False).value

    assert value(np.ones(problem.data.n_episodes)) == pytest.approx(found.fit.value, rel=1e-10)
    assert influence_gap(value, found.influence[order], every=6) < 1e-4


@pytest.mark.parametrize("stationary", [False, True], ids=["by_time", "stationary"])
def test_predictions_of_tables_are_the_closed_form(stationary: bool) -> None:
    case = random_case(0, n=600, ends=("terminal", "horizon", "truncated"))
    found, exact = (
        estimator.fit_q(case.log, case.policy, np.ones(600)).predict(case.policy, case.log)
        for estimator in (
            MinimaxQLearning(gamma=0.8, stationary=stationary, network=TINY),
            LSTDQ(gamma=0.8, stationary=stationary),
        )
    )
    for part in ("q", "v", "v_final"):
        np.testing.assert_allclose(getattr(found, part), getattr(exact, part), atol=1e-6)


@pytest.mark.parametrize("kind", ["mixed", "continuous"])
def test_models_serve_parts_of_a_log_and_can_be_pickled(kind: str) -> None:
    case = make_case(kind)
    estimator = MinimaxQLearning(gamma=0.9, network=TINY)
    model = estimator.fit_q(case.log, case.candidate, np.ones(case.log.n_episodes))
    whole = model.predict(case.candidate, case.log)
    start = float(whole.v[case.log.offsets[:-1]].mean())
    assert fit(MinimaxQLearning, case.log, case.candidate, network=TINY).value == pytest.approx(start, rel=1e-9)
    part = case.log.select(np.arange(5))
    again = pickle.loads(pickle.dumps(model)).predict(case.candidate, part)
    for name in ("q", "v"):
        np.testing.assert_allclose(getattr(again, name), getattr(whole, name)[: len(part)], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(again.v_final, whole.v_final[:5], rtol=1e-9, atol=1e-10)


def test_predictions_serve_a_doubly_robust_method() -> None:
    problem = RandomMDP(4, 3, max_steps=12, random_state=0)
    log, candidate = problem.sample(100, random_state=0), TabularPolicy(problem.target)
    neural, linear = (
        DoublyRobust(gamma=0.9, q=q, n_folds=2).fit(log, candidate).estimate()
        for q in (MinimaxQLearning(network=SMALL), MinimaxQLearning())
    )
    assert neural.value == pytest.approx(linear.value, rel=1e-6)


def test_weight_learning_fits_candidates_side_by_side() -> None:
    case = make_case("mixed")
    policies = {"a": case.candidate, "b": case.other}
    together = fit(MinimaxWeightLearning, case.log, policies, network=TINY)
    for name, policy in policies.items():
        alone = fit(MinimaxWeightLearning, case.log, policy, network=TINY)
        assert together[name].value == pytest.approx(alone.value, rel=1e-6)


# -------------------------------------------------------------------- verdicts and parameters


def has(estimate: Estimate, words: str) -> bool:
    return any(words in reason for reason in estimate.verdict.reasons)


@BOTH
def test_a_run_that_is_too_short_or_diverges_is_refused(kind: Minimax) -> None:
    case = make_case("terminal")
    short, wild = (
        fit(kind, case.log, case.candidate, network=replace(TINY, **changed))
        for changed in ({"n_updates": 2}, {"learning_rate": 1e20})
    )
    assert short.verdict.level == wild.verdict.level == Level.REFUSE
    assert has(short, "The value still moved by inf")
    assert has(wild, "The saddle point was not reached (training diverged")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"ridge": 0.1}, "`ridge` must be 0.0 with a network"),
        ({"discriminator": "kernel"}, "`discriminator` must be None with a network"),
        ({"features": "identity"}, "`features` must be 'auto' with a network"),
        ({"gamma": 1.0, "stationary": True}, "`gamma` must be below 1 without a horizon"),
    ],
)
@BOTH
def test_bad_parameters(kind: Minimax, params: dict[str, Any], words: str) -> None:
    case = make_case("terminal")
    with pytest.raises(ValueError, match=rf"{kind.__name__}(\.fit)?: {words}"):
        fit(kind, case.log, case.candidate, **{"network": TINY, **params})


@BOTH
def test_a_network_is_settings(kind: Minimax) -> None:
    case = make_case("terminal")
    with pytest.raises(TypeError, match=f"{kind.__name__}: `network` must be NeuralFunctions or None"):
        fit(kind, case.log, case.candidate, network=(64, 64))
