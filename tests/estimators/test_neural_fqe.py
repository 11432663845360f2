"""Neural fitted Q evaluation against closed forms: tables, linear-quadratic control, the three ends, replicates, verdicts."""

from __future__ import annotations

import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
from estimator_oracles import maximum_likelihood, random_case

from ope import Estimate, Level, LoggedDataset
from ope.estimators import LSTDQ, DoublyRobust, NeuralFittedQEvaluation
from ope.estimators._neural_fqe_verdicts import drift
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import Baird, ModelWin, RandomMDP, RiverSwim, ScalarLQR
from ope.testing.logs import make_case
from ope.validation import FloatArray

SMALL: dict[str, Any] = {"hidden": (32,), "n_updates": 200, "batch_size": 128, "learning_rate": 3e-3}
TINY: dict[str, Any] = {"hidden": (8,), "n_updates": 20, "batch_size": 16}


def fit(log: LoggedDataset, policy: Any, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Any:
    return NeuralFittedQEvaluation(gamma=gamma, **{**SMALL, **params}).fit(log, policy, weight).estimate()


# -------------------------------------------------------------------- exact values


@pytest.mark.parametrize("ends", [("terminal",), ("truncated",), ("horizon",), ("terminal", "horizon", "truncated")])
@pytest.mark.parametrize("stationary", [False, True])
def test_tables_of_all_ends_get_the_closed_form(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(0, n=240, ends=ends)
    exact = maximum_likelihood(case, 0.8, stationary).value
    estimate = fit(case.log, case.policy, 0.8, stationary=stationary)
    # The closed form sees all episodes at once; in the plug-in value, members of half of them average to it.
    assert abs(estimate.diagnostics["plug_in_value"] - exact) < 0.5 * estimate.std_error
    # Its correction on unseen episodes is of second order, about P / n: features are many here, episodes few.
    assert abs(estimate.value - exact) < estimate.std_error
    assert estimate.horizon == (None if stationary else case.log.horizon)


@cache
def river_log() -> LoggedDataset:
    return RiverSwim(horizon=20).sample(400, random_state=0)


@pytest.mark.parametrize(("gamma", "truth"), [(0.95, 0.7739), (1.0, 1.5986)])
def test_a_horizon_makes_values_depend_on_the_time(gamma: float, truth: float) -> None:
    """A stationary Q that takes the horizon for a terminal would give .4536 and 1.248, in infinite data."""
    candidate = TabularPolicy(RiverSwim(horizon=20).target)
    estimate = fit(river_log(), candidate, gamma, n_updates=400)
    exact = LSTDQ(gamma=gamma).fit(river_log(), candidate).estimate()
    assert abs(estimate.value - exact.value) < 0.6 * exact.std_error
    assert abs(estimate.value - truth) < 2.5 * estimate.std_error
    assert estimate.horizon == 20


def test_stationary_values_of_the_same_log_are_those_of_the_endless_problem() -> None:
    candidate = TabularPolicy(RiverSwim().target)
    exact = LSTDQ(gamma=0.95, stationary=True).fit(river_log(), candidate).estimate()
    estimate = fit(river_log(), candidate, 0.95, stationary=True)
    assert abs(estimate.value - exact.value) < 0.5 * exact.std_error


def test_model_win() -> None:
    problem = ModelWin()
    log, candidate = problem.sample(400, random_state=0), TabularPolicy(problem.target)
    exact = LSTDQ(gamma=1.0).fit(log, candidate).estimate()
    estimate = fit(log, candidate, 1.0, n_updates=400)
    assert abs(estimate.value - exact.value) < 0.5 * exact.std_error


@pytest.mark.parametrize("deterministic", [False, True])
def test_linear_quadratic_control(deterministic: bool) -> None:
    problem = ScalarLQR()
    log, gain = problem.sample(100, random_state=0), problem.target.gain
    if deterministic:
        candidate: Any = FunctionPolicy(predict=lambda states: gain * states)
        truth = problem.value(type(problem.target)(gain=gain, std=0.0), 0.95)
    else:
        candidate, truth = GaussianPolicy([[gain]], problem.target.std), problem.value(problem.target, 0.95)
    estimate = fit(log, candidate, 0.95)
    assert abs(estimate.value - truth) < 2.5 * estimate.std_error
    assert estimate.std_error < 0.1 * abs(truth)


# -------------------------------------------------------------------- errors and intervals


def test_the_influence_vector_has_the_length_of_the_linear_sandwich() -> None:
    problem = RandomMDP(4, 3, max_steps=12, random_state=0)
    log, candidate = problem.sample(300, random_state=0), TabularPolicy(problem.target)
    estimate, exact = fit(log, candidate), LSTDQ(gamma=0.9).fit(log, candidate).estimate()
    assert estimate.influence.mean() == pytest.approx(0.0, abs=1e-9)
    assert 0.85 < estimate.std_error / exact.std_error < 1.2
    assert np.corrcoef(estimate.influence, exact.influence)[0, 1] > 0.9


def test_replicates_spread_like_the_linear_sandwich_and_serve_paired_differences() -> None:
    problem = RandomMDP(4, 3, max_steps=12, random_state=0)
    log = problem.sample(80, random_state=0)
    candidates = {"target": TabularPolicy(problem.target), "behavior": TabularPolicy(problem.behavior)}
    found = fit(log, candidates, n_bootstrap=16, n_updates=60, hidden=(16,), batch_size=64)
    exact = LSTDQ(gamma=0.9).fit(log, candidates).estimate()
    for name, estimate in found.items():
        assert 0.6 < np.std(estimate.replicates, ddof=1) / exact[name].std_error < 1.5
        low, high = estimate.confidence_interval(0.8, "basic")
        assert low < estimate.value < high
    assert found["target"].resample_id == found["behavior"].resample_id
    gap = found["target"] - found["behavior"]
    spread = (exact["target"] - exact["behavior"]).std_error
    assert 0.6 < np.std(gap.replicates, ddof=1) / spread < 1.5


def test_episode_weights_count_as_repeated_episodes() -> None:
    case = random_case(1, n=60, ends=("terminal",))
    weight = np.random.default_rng(0).choice([0.0, 1.0, 3.0], size=60)
    exact = maximum_likelihood(case, 0.8, weight=weight).value
    unweighted = maximum_likelihood(case, 0.8).value
    estimate = fit(case.log, case.policy, 0.8, weight)
    assert abs(estimate.value - exact) < 0.6 * estimate.std_error
    assert abs(estimate.value - exact) < abs(estimate.value - unweighted)


# -------------------------------------------------------------------- workflow


def test_candidates_train_together_as_they_do_alone_to_the_bit() -> None:
    case = make_case("mixed")
    policies = {"a": case.candidate, "b": case.other, "c": case.behavior}
    together = fit(case.log, policies, **TINY)
    for name, policy in policies.items():
        alone = fit(case.log, policy, **TINY)
        assert together[name].value == alone.value
        np.testing.assert_array_equal(together[name].influence, alone.influence)


def test_predictions_serve_a_doubly_robust_method() -> None:
    problem = RandomMDP(4, 3, max_steps=12, random_state=0)
    log, candidate = problem.sample(100, random_state=0), TabularPolicy(problem.target)
    neural = DoublyRobust(gamma=0.9, q=NeuralFittedQEvaluation(**SMALL), n_folds=2).fit(log, candidate).estimate()
    linear = DoublyRobust(gamma=0.9, n_folds=2).fit(log, candidate).estimate()
    assert abs(neural.value - linear.value) < 0.5 * linear.std_error


@pytest.mark.parametrize("stationary", [False, True])
def test_predictions_of_tables_are_the_closed_form(stationary: bool) -> None:
    case = random_case(0, n=80, ends=("terminal", "horizon", "truncated"))
    settings = {**SMALL, "n_updates": 400}
    model, exact = (
        estimator.fit_q(case.log, case.policy, np.ones(80)).predict(case.policy, case.log)
        for estimator in (
            NeuralFittedQEvaluation(gamma=0.8, stationary=stationary, **settings),
            LSTDQ(gamma=0.8, stationary=stationary),
        )
    )
    nothing_follows = exact.v_final == 0.0
    assert (model.v_final[nothing_follows] == 0.0).all()
    if stationary:  # by time, a table of few rows a cell is noise that networks rightly smooth
        assert np.corrcoef(model.q, exact.q)[0, 1] > 0.9
        assert np.corrcoef(model.v, exact.v)[0, 1] > 0.9


def test_models_can_be_pickled() -> None:
    case = make_case("continuous")
    model = NeuralFittedQEvaluation(gamma=0.9, **TINY).fit_q(case.log, case.candidate, np.ones(case.log.n_episodes))
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(model.predict(case.candidate, case.log).q, again.predict(case.candidate, case.log).q)


def test_actions_beyond_the_range_count_as_those_at_the_border() -> None:
    case = make_case("continuous")
    wild = case.log.replace(actions=np.where(case.log.actions > 0.5, 1e3, case.log.actions))
    tame = case.log.replace(actions=np.minimum(case.log.actions, 0.5))
    one, other = (fit(log, case.candidate, action_range=(-5.0, 0.5), **TINY) for log in (wild, tame))
    assert one.value == pytest.approx(other.value)


# -------------------------------------------------------------------- verdicts


def test_a_run_that_is_too_short_is_not_valid() -> None:
    problem = RiverSwim()
    log, candidate = problem.sample(100, random_state=0), TabularPolicy(problem.target)
    short: Estimate = fit(log, candidate, 0.95, n_updates=5)
    assert short.verdict.level > Level.VALID
    assert any("n_updates" in reason for reason in short.verdict.reasons)
    assert fit(log, candidate, 0.95, n_updates=600).verdict.level == Level.VALID


def test_divergence_is_refused() -> None:
    """Linear networks on Baird's star, whose semi-gradient diverges; a drop of reward gives values room to run."""
    problem = Baird()
    log = problem.sample(30, random_state=0)
    noisy = log.replace(rewards=np.random.default_rng(0).normal(size=len(log)))
    estimate = fit(noisy, TabularPolicy(problem.target, state_code=_star_code), 0.99, hidden=(), n_updates=600)
    exact = problem.value(problem.target)
    right = abs(estimate.value - exact) < 3.0 * estimate.std_error
    assert estimate.verdict.level == Level.REFUSE or right


def _star_code(states: FloatArray) -> Any:
    return np.where(states[:, 6] > 0, 6, states[:, :6].argmax(axis=1))


def test_a_candidate_of_far_actions_is_refused() -> None:
    log = ScalarLQR().sample(60, random_state=0)
    far = fit(log, FunctionPolicy(predict=lambda states: 0.0 * states + 9.0), 0.95, n_updates=100)
    assert far.verdict.level == Level.REFUSE
    assert far.diagnostics["novelty"] > 0.5


def test_drift_is_the_movement_between_the_last_groups_of_windows() -> None:
    path = np.concatenate([np.full(12, 5.0), np.full(4, 1.0), np.full(4, 3.0)])[:, None]
    assert drift(path) == 2.0
    assert drift(path[:1]) == np.inf


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": 5}, TypeError, "hidden"),
    ({"hidden": (0,)}, ValueError, "hidden"),
    ({"n_updates": 0}, ValueError, "n_updates"),
    ({"n_folds": 1}, ValueError, "n_folds"),
    ({"batch_size": 0}, ValueError, "batch_size"),
    ({"n_bootstrap": -1}, ValueError, "n_bootstrap"),
    ({"learning_rate": 0.0}, ValueError, "learning_rate"),
    ({"learning_rate": "fast"}, TypeError, "learning_rate"),
    ({"action_range": 1.0}, TypeError, "action_range"),
    ({"action_range": (1.0, -1.0)}, ValueError, "action_range"),
    ({"random_state": -1}, ValueError, "random_state"),
    ({"n_threads": 0}, ValueError, "n_threads"),
    ({"device": "abacus"}, ValueError, "device"),
]


@pytest.mark.parametrize(("params", "error", "name"), BAD, ids=lambda value: str(value)[:30])
def test_bad_parameters_are_named(params: dict[str, Any], error: type[Exception], name: str) -> None:
    case = make_case("continuous")
    with pytest.raises(error, match=rf"NeuralFittedQEvaluation.*`{name}`"):
        fit(case.log, case.candidate, **{**TINY, **params})


def test_more_folds_than_episodes() -> None:
    case = random_case(0, n=2)
    with pytest.raises(ValueError, match="n_folds=3 needs as many episodes, got 2"):
        fit(case.log, case.policy, n_folds=3, **TINY)
