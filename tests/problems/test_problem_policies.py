"""The problems with the library's own policy adapters: both must mean the same by a state and an action."""

from __future__ import annotations

import numpy as np
import pytest

from ope.policies.gaussian import GaussianPolicy
from ope.policies.tabular import TabularPolicy
from ope.policy import expectation, log_prob_logged
from ope.problems import (
    ALL_PROBLEMS,
    Baird,
    LinearGaussian,
    ModelFail,
    RandomMDP,
    RiverSwim,
    ScalarLQR,
    TabularProblem,
    make,
)
from ope.validation import FloatArray

TABULAR: list[TabularProblem] = [
    problem for name in ALL_PROBLEMS if isinstance(problem := make(name), TabularProblem)
] + [RiverSwim(encoding="index"), RandomMDP(4, 3, horizon=3, terminals=1), ModelFail(encoding="index")]


def as_policy(problem: TabularProblem, table: FloatArray) -> TabularPolicy:
    return TabularPolicy(table, state_code=problem.state_code)


@pytest.mark.parametrize("problem", TABULAR, ids=repr)
def test_tables_and_tabular_policies_are_the_same(problem: TabularProblem) -> None:
    policy = as_policy(problem, problem.target)
    np.testing.assert_array_equal(problem.table(policy), problem.target)
    assert problem.value(policy) == problem.value(problem.target)
    assert problem.importance_sampling_moments(policy) == problem.importance_sampling_moments(problem.target)
    by_policy, by_table = problem.sample(20, policy), problem.sample(20, problem.target)
    np.testing.assert_array_equal(by_policy.states, by_table.states)
    np.testing.assert_array_equal(by_policy.actions, by_table.actions)


@pytest.mark.parametrize("problem", TABULAR, ids=repr)
def test_logged_propensities_are_those_of_the_behaviour_policy(problem: TabularProblem) -> None:
    log = problem.sample(50)
    assert log.behavior_log_prob is not None
    found = log_prob_logged(as_policy(problem, problem.behavior), log)
    np.testing.assert_allclose(found, log.behavior_log_prob, rtol=1e-12)


@pytest.mark.parametrize("problem", [RiverSwim(), RiverSwim(encoding="index"), RandomMDP(4, 3, terminals=1)], ids=repr)
def test_default_state_code_of_tabular_policies_fits(problem: TabularProblem) -> None:
    assert problem.value(TabularPolicy(problem.target)) == problem.value(problem.target)


@pytest.mark.parametrize(
    "problem", [RiverSwim(max_steps=5), Baird(max_steps=5), RandomMDP(4, 3, terminals=1)], ids=repr
)
def test_expectations_at_the_next_state(problem: TabularProblem) -> None:
    log = problem.sample(40)
    rng = np.random.default_rng(0)
    q = rng.normal(size=(problem.n_states, problem.n_actions))
    found = expectation(
        as_policy(problem, problem.target), log, lambda states, _: q[problem.state_code(states)], at="next"
    )
    value = (problem.target * q).sum(axis=1)
    for i in range(log.n_episodes):
        first, last = log.offsets[i], log.offsets[i + 1]
        after = [value[code] for code in problem.state_code(log.states[first:last])[1:]]
        ended = not log.final_known()[i]
        after.append(
            0.0 if ended or log.final_states is None else value[problem.state_code(log.final_states[i][None])[0]]
        )
        np.testing.assert_allclose(found[first:last], after, atol=1e-12)


def as_gaussian(policy: LinearGaussian) -> GaussianPolicy:
    return GaussianPolicy(mean=[policy.gain], std=policy.std, intercept=policy.offset)


def test_gaussian_policies_have_the_value_of_their_parameters() -> None:
    problem = ScalarLQR()
    for policy in (problem.behavior, problem.target, LinearGaussian(-0.4, 0.2, offset=0.6)):
        assert problem.value(as_gaussian(policy)) == pytest.approx(problem.value(policy), rel=1e-10)


def test_gaussian_policies_act_like_their_parameters() -> None:
    problem = ScalarLQR(max_steps=10)
    log = problem.sample(200, as_gaussian(problem.behavior))
    reference = problem.sample(200)
    np.testing.assert_allclose(log.actions, reference.actions, atol=1e-12)
    assert log.behavior_log_prob is not None
    np.testing.assert_allclose(
        log_prob_logged(as_gaussian(problem.behavior), reference), log.behavior_log_prob, atol=1e-10
    )


def test_actions_of_more_dimensions_are_refused() -> None:
    policy = GaussianPolicy(mean=[[0.5, 0.5]], std=0.1)
    with pytest.raises(ValueError, match=r"actions of one dimension, got shape \(5, 2\)"):
        ScalarLQR().value(policy)
