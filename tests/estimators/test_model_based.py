"""ModelBased against counts in plain loops, LSTDQ, exact logs, the jackknife; its verdicts; what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
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
from sklearn.cluster import KMeans
from sklearn.preprocessing import KBinsDiscretizer

from ope import Estimate, Level, LoggedDataset, bootstrap, model_bootstrap
from ope.estimators import LSTDQ, DoublyRobust, ModelBased, _tabular, _tabular_values
from ope.estimators._model_verdicts import visit_sample_size
from ope.policies import ColumnPolicy, TabularPolicy
from ope.problems import ModelFail, ModelWin, RandomMDP, RiverSwim, TabularProblem
from ope.validation import FloatArray


def fit(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Estimate:
    estimate: Estimate = ModelBased(gamma=gamma, **params).fit(case.log, case.policy, weight).estimate()
    return estimate


# -------------------------------------------------------------------- the same number by other ways


@stationary_or_not
@every_end
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_influence_are_those_of_lstdq_and_of_counts_in_loops(
    seed: int, ends: tuple[str, ...], stationary: bool
) -> None:
    case = random_case(seed, ends=ends, zeros=bool(seed))
    weight = np.random.default_rng(seed).uniform(0.0, 2.0, case.log.n_episodes)
    for own in (None, weight):
        found = fit(case, weight=own, stationary=stationary)
        linear = LSTDQ(gamma=0.9, stationary=stationary).fit(case.log, case.policy, own).estimate()
        counted = maximum_likelihood(case, 0.9, stationary, None if own is None else own / own.mean())
        assert found.value == pytest.approx(counted.value, abs=1e-10)
        assert found.value == pytest.approx(linear.value, abs=1e-8)
        np.testing.assert_allclose(influence_of(found), influence_of(linear), atol=1e-8)
        assert found.horizon == linear.horizon
        for name in ("ess", "unsupported"):
            assert found.diagnostics[name] == pytest.approx(linear.diagnostics[name], abs=1e-6)


def pooled_value(case: Case, gamma: float, weight: FloatArray) -> float:
    """Count all steps together, rewards of all rows and transitions of those that are known, and go back from the horizon."""
    log, pi = case.log, case.pi
    S, A = pi.shape
    n_r, n_p, total = (np.zeros((S, A)) for _ in range(3))
    onward, start = np.zeros((S, A, S)), np.zeros(S)
    for i, episode in enumerate(paths(log)):
        start[episode[0][0]] += weight[i]
        for t, (s, a, r) in enumerate(episode):
            last = t == len(episode) - 1
            n_r[s, a] += weight[i]
            total[s, a] += weight[i] * r
            follows = end_goes_on(log, i, True) if last else True
            if follows is not None:
                n_p[s, a] += weight[i]
            if follows:
                onward[s, a, final_codes(log)[i] if last else episode[t + 1][0]] += weight[i]
    v = np.zeros(S)
    for _ in range(int(log.horizon or 0)):
        q = total / np.maximum(n_r, 1e-300) + gamma * (onward / np.maximum(n_p, 1e-300)[..., None]) @ v
        v = (pi * np.where(n_r > 0, q, 0.0)).sum(axis=1)
    return float(start @ v / start.sum())


@every_end
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_all_steps_together_are_counts_in_loops_and_their_jackknife(gamma: float, ends: tuple[str, ...]) -> None:
    case = random_case(3, n=25, ends=ends, horizon=6)
    weight = np.random.default_rng(0).uniform(0.2, 2.0, case.log.n_episodes)
    found = fit(case, gamma, weight=weight, homogeneous=True)
    assert found.value == pytest.approx(pooled_value(case, gamma, weight), abs=1e-10)
    assert found.horizon == 6
    psi = jackknife(lambda w: pooled_value(case, gamma, w), case.log.n_episodes)
    np.testing.assert_allclose(influence_of(fit(case, gamma, homogeneous=True)), psi - psi.mean(), atol=1e-5)


def test_unknown_last_states_count_in_the_rewards_alone() -> None:
    case = random_case(5, ends=("horizon",))
    bare = case._replace(log=case.log.replace(final_states=None))
    found = fit(bare, homogeneous=True)
    assert found.value == pytest.approx(pooled_value(bare, 0.9, np.ones(30)), abs=1e-10)
    assert found.diagnostics["left_out_transitions"] == 30
    psi = jackknife(lambda w: pooled_value(bare, 0.9, w), 30)
    np.testing.assert_allclose(influence_of(found), psi - psi.mean(), atol=1e-5)


def test_integer_weights_are_repeated_episodes() -> None:
    case = random_case(2, ends=("terminal", "truncated"))
    weight = np.random.default_rng(1).integers(1, 4, 30)
    rows = np.repeat(np.arange(30), weight)
    log = case.log
    spans = [np.arange(log.offsets[i], log.offsets[i + 1]) for i in rows]
    at = np.concatenate(spans)
    assert log.final_states is not None
    repeated = LoggedDataset.from_arrays(
        log.states[at], log.actions[at], log.rewards[at], lengths=log.lengths[rows], ends=log.ends[rows],
        final_states=log.final_states[rows], action_labels=[0, 1, 2],
    )  # fmt: skip
    found = fit(case, weight=weight.astype(float))
    whole = fit(case._replace(log=repeated))
    assert found.value == pytest.approx(whole.value, abs=1e-12)
    np.testing.assert_allclose(
        influence_of(found) / weight * weight.mean(), [influence_of(whole)[rows == i][0] for i in range(30)], atol=1e-10
    )


@pytest.mark.parametrize("params", [{}, {"homogeneous": True}, {"stationary": True}], ids=str)
@pytest.mark.parametrize("horizon", [None, 6])
def test_many_states_are_solved_without_dense_matrices(
    horizon: int | None, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = sampled(RandomMDP(6, 3, terminals=1, horizon=horizon, random_state=0), 80)
    dense = fit(case, **params)
    monkeypatch.setattr(_tabular_values, "DENSE", 1)
    monkeypatch.setattr(_tabular, "DENSE_ENTRIES", 0)
    sparse = fit(case, **params)
    assert sparse.value == pytest.approx(dense.value, abs=1e-12)
    np.testing.assert_allclose(influence_of(sparse), influence_of(dense), atol=1e-10)


def test_replicates_are_those_of_lstdq() -> None:
    """What `benchmarks/models.py` says of counts by step holds of LSTDQ too."""
    problem = RiverSwim(horizon=6)
    log, policy = problem.sample(40, random_state=3), TabularPolicy(problem.target)
    for again in (bootstrap, model_bootstrap):
        counted, linear = (again(own(gamma=1.0), log, policy, n_replicates=6) for own in (ModelBased, LSTDQ))
        assert counted.replicates is not None
        assert linear.replicates is not None
        np.testing.assert_allclose(counted.replicates, linear.replicates, rtol=1e-6, atol=1e-9)


def test_as_the_q_of_a_doubly_robust_method() -> None:
    for problem, stationary in ((RiverSwim(horizon=6), False), (RandomMDP(4, 2, max_steps=10), True)):
        case = sampled(problem, 60)
        values = [
            DoublyRobust(gamma=0.9, n_folds=2, q=q).fit(case.log, case.policy).estimate()
            for q in (ModelBased(stationary=stationary), LSTDQ(stationary=stationary))
        ]
        assert values[0].value == pytest.approx(values[1].value, abs=1e-9)
        np.testing.assert_allclose(influence_of(values[0]), influence_of(values[1]), atol=1e-8)


# -------------------------------------------------------------------- exact values


@pytest.mark.parametrize("homogeneous", [False, True])
def test_infinite_data_give_the_exact_value_of_the_horizon(homogeneous: bool) -> None:
    problem = RiverSwim(horizon=12)
    log, weight = exact_log(problem, 12, "horizon", flow_paths)
    for gamma in (0.95, 1.0):
        found = ModelBased(gamma=gamma, homogeneous=homogeneous).fit(log, TabularPolicy(problem.target), weight)
        # The flow of the last step leaves nothing of what never has the time to come back.
        assert found.estimate().value == pytest.approx(problem.value(problem.target, gamma), abs=1e-10)


def test_a_truncation_is_no_end() -> None:
    problem = RandomMDP(3, 2, terminals=1, random_state=6)
    log, weight = exact_log(problem, 4, "truncated")
    policy = TabularPolicy(problem.target)
    found = ModelBased(gamma=0.9).fit(log, policy, weight).estimate()
    assert found.value == pytest.approx(problem.value(problem.target, 0.9), abs=1e-10)
    wrong = ModelBased(gamma=0.9).fit(log.replace(ends=np.zeros_like(log.ends)), policy, weight).estimate()
    assert abs(wrong.value - found.value) > 0.05


def test_hidden_states_mislead_the_model_by_as_much_as_they_should_and_are_told() -> None:
    """All steps together, half of the mean last reward of the log is earned at each step: +tanh 1 where -tanh 1 is true."""
    problem = ModelFail()
    log, weight = exact_log(problem, 2, "horizon")
    found = ModelBased(gamma=1.0, homogeneous=True).fit(log, TabularPolicy(problem.target), weight).estimate()
    assert found.value == pytest.approx(np.tanh(1.0), abs=1e-9)
    estimate = fit(sampled(problem, 200), 1.0)
    assert estimate.verdict.level is Level.REFUSE
    assert any("depend on the past" in reason for reason in estimate.verdict.reasons)


@pytest.mark.slow
def test_mean_squared_error_on_model_win() -> None:
    """MATH.md section 9: .0189 for 1,024 episodes."""
    problem = ModelWin()
    errors = np.array([fit(sampled(problem, 1024, seed), 1.0, homogeneous=True).value for seed in range(300)])
    squared = (errors - 2.0 * np.tanh(0.5)) ** 2
    assert abs(squared.mean() - 0.0189) < 4.0 * squared.std() / np.sqrt(300)


@pytest.mark.slow
@pytest.mark.parametrize("n", [32, 128])
@pytest.mark.parametrize("homogeneous", [False, True])
def test_intervals_hold_the_true_value_or_are_not_valid(n: int, homogeneous: bool) -> None:
    problem = RandomMDP(4, 2, horizon=5, random_state=0)
    truth = problem.value(problem.target, 1.0)
    found = [fit(sampled(problem, n, seed), 1.0, homogeneous=homogeneous) for seed in range(300)]
    held = np.array([truth in one.confidence_interval() for one in found])
    valid = np.array([one.verdict.level is Level.VALID for one in found])
    if n == 32:
        assert not valid.any()
    # Each step of its own, 32 logged episodes are 15 effective ones: .87, and the verdict says so.
    assert held.mean() > (0.82 if n == 32 and not homogeneous else 0.9)
    assert valid.sum() < 30 or held[valid].mean() > 0.9


# -------------------------------------------------------------------- states


def test_states_may_be_codes_vectors_or_what_features_make_of_them() -> None:
    case = sampled(RandomMDP(4, 2, max_steps=10), 60)
    hot = fit(case).value
    codes = case.log.states.argmax(axis=1).astype(float)
    assert case.log.final_states is not None
    final = case.log.final_states.argmax(axis=1).astype(float)
    policy = TabularPolicy(case.pi, state_code=lambda s: np.round(s[:, 0]).astype(int))

    def value(noise: float, features: Any = None) -> float:
        shift = np.random.default_rng(0).uniform(-noise, noise, len(codes))
        log = case.log.replace(
            states=np.column_stack([codes + shift, -codes]),
            final_states=np.column_stack([final, -final]),
            feature_names=("a", "b"),
        )
        found: Estimate = ModelBased(gamma=0.9, features=features).fit(log, policy).estimate()
        return found.value

    assert value(0.0) == pytest.approx(hot, abs=1e-12)
    assert value(0.1, KMeans(4, n_init=5)) == pytest.approx(hot, abs=1e-12)
    bins = KBinsDiscretizer(4, encode="ordinal", strategy="uniform", subsample=None)
    assert value(0.1, bins) == pytest.approx(hot, abs=1e-12)
    with pytest.raises(ValueError, match=r"ModelBased\.fit: the states of `data` must repeat, got .* features="):
        value(0.1)


def test_what_is_available_belongs_to_the_state() -> None:
    case = random_case(4, n=60)
    mask = np.ones((len(case.log), 3), bool)
    mask[:, 2] = (np.arange(len(mask)) % 2 == 0) | (case.log.actions == 2)
    log = case.log.replace(action_mask=mask)
    estimate = fit(case._replace(log=log))
    assert estimate.diagnostics["n_states"] == 6
    split = np.hstack([case.log.states, mask[:, 2:]])
    probs = np.vstack([case.pi, case.pi])
    probs[:3, 2] = 0.0
    probs[:3] /= probs[:3].sum(axis=1, keepdims=True)
    policy = TabularPolicy(probs, state_code=lambda s: (s[:, :3].argmax(axis=1) + 3 * s[:, 3]).astype(int))
    other = case.log.replace(states=split, feature_names=("a", "b", "c", "free"), final_states=None)
    assert estimate.value == pytest.approx(ModelBased(gamma=0.9).fit(other, policy).estimate().value, abs=1e-12)


# -------------------------------------------------------------------- verdicts


def says(estimate: Estimate, fragment: str) -> bool:
    return any(fragment in reason for reason in estimate.verdict.reasons)


def test_a_process_that_changes_is_told_from_one_that_does_not() -> None:
    tables = np.random.default_rng(0).dirichlet(np.ones(3), size=(6, 3, 2))
    rewards = np.linspace(-1.0, 1.0, 6)[:, None, None, None] + np.zeros((6, 3, 2, 3))
    uniform = np.full((3, 2), 0.5)
    changing = TabularProblem(tables, rewards, [1.0, 0.0, 0.0], behavior=uniform, target=uniform, horizon=6)
    together = fit(sampled(changing, 100), 1.0, homogeneous=True)
    assert together.verdict.level is Level.REFUSE
    assert says(together, "depend on the step")
    assert not says(fit(sampled(changing, 100), 1.0), "depend on")
    steady = RandomMDP(3, 2, horizon=6, random_state=0)
    p_values = [
        fit(sampled(steady, 100, seed), 1.0, homogeneous=True).diagnostics["homogeneous_p"] for seed in range(40)
    ]
    assert 0.3 < np.mean(p_values) < 0.7


def test_p_values_of_the_past_are_uniform_where_the_state_is_complete() -> None:
    problem = RandomMDP(3, 2, horizon=4, reward_std=0.3, random_state=0)
    p_values = [fit(sampled(problem, 120, seed), 1.0).diagnostics["specification_p"] for seed in range(40)]
    assert 0.3 < np.mean(p_values) < 0.7


def test_no_discounting_and_no_end_leave_no_value() -> None:
    case = sampled(RandomMDP(3, 2, max_steps=8), 40)
    endless = fit(case, 1.0)
    assert np.isnan(endless.value)
    assert endless.verdict.level is Level.REFUSE
    assert says(endless, "without discounting and termination there is no value")
    assert says(endless, "rewards go on without end")
    assert not says(endless, "no logged episode follows the candidate")
    ending = sampled(RandomMDP(3, 2, terminals=1, random_state=0), 60)
    exact = maximum_likelihood(ending, 1.0).value
    assert fit(ending, 1.0).value == pytest.approx(exact, abs=1e-9)


def test_visits_that_were_never_counted_are_told() -> None:
    case = random_case(0, n=60)
    gone = (case.log.states.argmax(axis=1) == 1) & (case.log.actions == 2)
    actions = np.where(gone, 0, case.log.actions)
    estimate = fit(case._replace(log=case.log.replace(actions=actions)))
    assert 0.0 < estimate.diagnostics["unsupported"] < 0.3
    assert says(estimate, "that the log does not hold; they count as 0")


def test_a_candidate_that_looks_at_more_than_the_state() -> None:
    case = random_case(0, n=60)
    import pandas as pd

    table = pd.DataFrame(np.random.default_rng(0).dirichlet(np.ones(3), len(case.log)), columns=["p", "q", "r"])
    log = case.log.replace(extras=table)
    estimate = ModelBased(gamma=0.9).fit(log, ColumnPolicy(["p", "q", "r"])).estimate()
    assert estimate.diagnostics["varying"] == 1.0
    assert says(estimate, "the candidate's probabilities differ from its mean")
    mean = np.stack([table[log.states.argmax(axis=1) == s].mean().to_numpy() for s in range(3)])
    assert estimate.value == pytest.approx(maximum_likelihood(case._replace(pi=mean), 0.9).value, abs=1e-10)


def test_effective_sample_size_by_hand() -> None:
    ratio, rewards, offsets = np.array([1.0, 3.0, 1.0, 1.0]), np.ones(4), np.array([0, 2, 4])
    assert visit_sample_size(ratio, rewards, offsets, np.ones(2), False) == pytest.approx(36.0 / 20.0)
    assert visit_sample_size(ratio, rewards, offsets, np.ones(2), True) == pytest.approx(16.0 / 10.0)


# -------------------------------------------------------------------- bad parameters


def test_bad_parameters_are_named() -> None:
    case = random_case(0)
    for params, error, words in (
        ({"features": KMeans}, TypeError, "got the class KMeans"),
        ({"features": 3}, TypeError, "`features` must be None, a scikit-learn transformer or clusterer, got 3"),
        ({"random_state": -1}, ValueError, "`random_state`"),
    ):
        with pytest.raises(error, match=words):
            fit(case, **params)


def test_continuous_actions_are_refused_with_what_would_do() -> None:
    log = LoggedDataset.from_arrays([[0.0]] * 4, [[0.1], [0.2], [0.3], [0.4]], [1.0] * 4, lengths=[4], ends="terminal")
    from ope.policies import GaussianPolicy

    with pytest.raises((TypeError, ValueError), match="ModelBased"):
        ModelBased(gamma=0.9).fit(log, GaussianPolicy([[0.5]], 1.0))
