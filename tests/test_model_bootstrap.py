"""Simulation from the tabular model of a log: its frequencies, its ends, and the replicates that come of it."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from ope import End, LoggedDataset, bootstrap, model_bootstrap
from ope.estimators import LSTDQ, PerDecisionIS
from ope.policies import TabularPolicy
from ope.problems import RandomMDP, RiverSwim, ScalarLQR
from ope.tabular_model import TabularModel


def returns_of(log: LoggedDataset, gamma: float) -> float:
    """Mean discounted return, episode by episode."""
    totals = [
        sum(gamma**t * r for t, r in enumerate(log.rewards[first:end]))
        for first, end in zip(log.offsets[:-1], log.offsets[1:], strict=True)
    ]
    return float(np.mean(totals))


def test_the_mean_return_of_the_model_is_that_of_the_log() -> None:
    """With a horizon the time-indexed model reproduces the mean reward of each step, by induction over the steps."""
    problem = RandomMDP(horizon=4, random_state=0)
    log = problem.sample(60)
    model = TabularModel.of(log)
    rng = np.random.default_rng(0)
    drawn = np.array([returns_of(model.simulate(rng), 0.9) for _ in range(300)])
    assert abs(drawn.mean() - returns_of(log, 0.9)) < 4.0 * drawn.std(ddof=1) / np.sqrt(300)


def test_transitions_rewards_and_behaviour_have_the_frequencies_of_the_log() -> None:
    problem = RandomMDP(n_states=3, terminals=1, random_state=1)
    log = problem.sample(80)
    model, rng = TabularModel.of(log), np.random.default_rng(1)
    simulated = [model.simulate(rng) for _ in range(60)]

    def frequencies(logs: list[LoggedDataset]) -> pd.Series[float]:
        rows = []
        for one in logs:
            state = problem.state_code(one.states)
            following = np.full(one.n_transitions, -1)
            following[:-1] = state[1:]
            following[one.offsets[1:] - 1] = np.where(one.ends == End.TERMINAL, -1, -2)
            rows.append(pd.DataFrame({"s": state, "a": one.actions, "next": following}))
        counts = pd.concat(rows).value_counts().rename("p")
        return counts / counts.groupby("s").transform("sum")

    expected, found = frequencies([log]), frequencies(simulated)
    assert set(found.index) <= set(expected.index)
    assert abs(found - expected.reindex(found.index)).max() < 0.02
    share = np.mean([(one.ends == End.TERMINAL).mean() for one in simulated])
    assert share == pytest.approx((log.ends == End.TERMINAL).mean(), abs=0.05)


def test_propensities_are_those_of_the_fitted_behaviour() -> None:
    log = LoggedDataset.from_arrays(
        [[0.0]] * 8,
        [0, 1, 1, 1] * 2,
        [0.0, 1.0, 2.0, 3.0] * 2,
        lengths=[1] * 8,
        ends="terminal",
        behavior_prob=[0.5] * 8,
    )
    simulated = TabularModel.of(log).simulate(np.random.default_rng(0))
    assert simulated.behavior_log_prob is not None
    np.testing.assert_allclose(np.exp(simulated.behavior_log_prob), np.where(simulated.actions == 1, 0.75, 0.25))
    assert (simulated.rewards[simulated.actions == 0] == 0.0).all()
    assert simulated.data_id == log.data_id


def test_ends_are_those_of_the_log() -> None:
    rng = np.random.default_rng(0)
    horizon = TabularModel.of(RiverSwim(horizon=6).sample(40)).simulate(rng)
    assert (horizon.ends == End.HORIZON).all()
    assert (horizon.lengths == 6).all()
    truncated = RiverSwim(max_steps=9).sample(40)
    simulated = TabularModel.of(truncated).simulate(rng)
    assert (simulated.ends == End.TRUNCATED).all()
    assert simulated.lengths.max() == 9
    assert simulated.final_known().all()


def test_masks_and_extras_travel_with_their_rows() -> None:
    mask = np.tile([[True, True, False], [True, True, True]], (6, 1))
    log = LoggedDataset.from_arrays(
        np.tile([[0.0], [1.0]], (6, 1)),
        ["a", "b", "b", "a"] * 3,
        np.arange(12.0),
        lengths=[2] * 6,
        ends="horizon",
        action_labels=["a", "b", "c"],
        action_mask=mask,
        extras=pd.DataFrame({"reward_again": np.arange(12.0)}),
    )
    simulated = TabularModel.of(log).simulate(np.random.default_rng(0))
    assert simulated.extras is not None
    assert simulated.action_mask is not None
    np.testing.assert_array_equal(simulated.extras["reward_again"], simulated.rewards)
    np.testing.assert_array_equal(simulated.action_mask[:, 2], simulated.states[:, 0] == 1.0)
    assert simulated.behavior_log_prob is None


@pytest.mark.parametrize("kind", ["terminal", "horizon", "truncated", "mixed"])
def test_simulated_logs_would_pass_the_checks_of_a_log(kind: str) -> None:
    """The simulation leaves out the checks of `from_arrays`, which must have nothing to say and nothing to change."""
    log = {
        "terminal": lambda: RandomMDP(4, 2, terminals=1, random_state=0).sample(60),
        "horizon": lambda: RiverSwim(horizon=5).sample(40),
        "truncated": lambda: RiverSwim(max_steps=7).sample(40),
        "mixed": lambda: RandomMDP(4, 2, terminals=1, max_steps=4, random_state=0).sample(60),
    }[kind]()
    one = TabularModel.of(log).simulate(np.random.default_rng(3))
    assert one.action_labels is not None
    checked = LoggedDataset.from_arrays(
        one.states, one.action_labels[one.actions], one.rewards, lengths=one.lengths, ends=one.ends,
        behavior_log_prob=one.behavior_log_prob, action_labels=one.action_labels, final_states=one.final_states,
        episode_ids=log.episode_ids, feature_names=log.feature_names, reward_range=log.reward_range, horizon=log.horizon,
    )  # fmt: skip
    for field in fields(one):
        found, expected = getattr(one, field.name), getattr(checked, field.name)
        if isinstance(expected, np.ndarray):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
        else:
            assert found == expected, field.name
    assert one.data_id == checked.data_id


def test_a_stationary_model_pools_the_steps() -> None:
    log = RiverSwim(horizon=6).sample(30)
    timed, pooled = TabularModel.of(log), TabularModel.of(log, stationary=True)
    assert len(pooled.starts) == 1 + len(np.unique(log.states, axis=0))
    assert len(timed.starts) > len(pooled.starts)
    assert set(pooled.simulate(np.random.default_rng(0)).ends.tolist()) <= {End.HORIZON, End.TRUNCATED}
    with pytest.raises(ValueError, match=r"with `stationary` the states after the horizon must be known"):
        TabularModel.of(log.replace(final_states=None), stationary=True)


def test_replicates_spread_like_the_estimator() -> None:
    """The standard deviation of the replicates is near that over fresh logs."""
    problem = RandomMDP(n_states=3, horizon=4, random_state=2)
    policy, estimator = TabularPolicy(problem.target, state_code=problem.state_code), LSTDQ(gamma=0.9)
    found = model_bootstrap(estimator, problem.sample(60), policy, n_replicates=80)
    assert found.replicates is not None
    fresh = [estimator.fit(problem.sample(60, random_state=seed), policy).estimate().value for seed in range(1, 81)]
    assert np.std(found.replicates) == pytest.approx(np.std(fresh), rel=0.4)
    low, high = found.confidence_interval(method="percentile")
    assert low < found.value < high


def test_equal_seeds_give_equal_resamples() -> None:
    problem = RiverSwim(horizon=4)
    policy, log = TabularPolicy(problem.target, state_code=problem.state_code), problem.sample(30)
    one, same, other = (
        model_bootstrap(PerDecisionIS(gamma=1.0), log, policy, n_replicates=5, random_state=seed) for seed in (0, 0, 1)
    )
    assert one.replicates is not None
    assert other.replicates is not None
    np.testing.assert_array_equal(one.replicates, same.replicates)
    assert one.resample_id == same.resample_id != other.resample_id
    assert not np.array_equal(one.replicates, other.replicates)
    assert one.resample_id != bootstrap(PerDecisionIS(gamma=1.0), log, policy, n_replicates=5).resample_id
    assert one.value == PerDecisionIS(gamma=1.0).fit(log, policy).estimate().value


def test_other_models_are_other_resamples() -> None:
    problem = RiverSwim(horizon=4)
    policy, log = TabularPolicy(problem.target, state_code=problem.state_code), problem.sample(30)
    default, timed, pooled = (
        model_bootstrap(PerDecisionIS(gamma=1.0), log, policy, n_replicates=5, stationary=stationary)
        for stationary in (None, False, True)
    )
    assert default.resample_id == timed.resample_id != pooled.resample_id
    assert not np.array_equal(np.asarray(timed.replicates), np.asarray(pooled.replicates))
    assert (timed - default).replicates is not None
    assert (timed - pooled).replicates is None


def test_logs_that_are_not_tabular_are_refused() -> None:
    lqr = ScalarLQR(max_steps=5)
    policy = TabularPolicy([[0.5, 0.5]])
    with pytest.raises(ValueError, match=r"`data` must be tabular.*continuous actions; use ope.bootstrap"):
        model_bootstrap(LSTDQ(gamma=0.9), lqr.sample(10), policy)
    rng = np.random.default_rng(0)
    log = LoggedDataset.from_arrays(
        rng.normal(size=(40, 2)), [0, 1] * 20, np.ones(40), lengths=[4] * 10, ends="horizon"
    )
    with pytest.raises(ValueError, match=r"states that repeat.*got 40 distinct states in 40 rows.*or stationary=True"):
        model_bootstrap(LSTDQ(gamma=0.9), log, policy)
    with pytest.raises(ValueError, match=r"model_bootstrap: `n_replicates`"):
        model_bootstrap(LSTDQ(gamma=0.9), log, policy, n_replicates=0)
    with pytest.raises(TypeError, match=r"`policy` must be one policy, got a mapping"):
        model_bootstrap(LSTDQ(gamma=0.9), log, {"a": policy})  # type: ignore[arg-type]
