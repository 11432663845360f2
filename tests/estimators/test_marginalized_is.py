"""MarginalizedIS against visits counted in plain loops, true ratios of exact logs, closed forms and the jackknife."""

from __future__ import annotations

import itertools
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
    paths,
    random_case,
    repeated_log,
    stationary_or_not,
)
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler

from ope import Estimate, Level, LoggedDataset
from ope.estimators import LSTDQ, MarginalizedIS
from ope.estimators._verdicts import judge_gap, judge_mean_ratio, judge_negative
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import Baird, ModelFail, RandomMDP, RiverSwim, ScalarLQR, TabularProblem
from ope.validation import FloatArray


def fit(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Estimate:
    estimate: Estimate = MarginalizedIS(gamma=gamma, **params).fit(case.log, case.policy, weight).estimate()
    return estimate


def ratios(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> FloatArray:
    weight = np.ones(case.log.n_episodes) if weight is None else weight
    return MarginalizedIS(gamma=gamma, **params).fit_ratio(case.log, case.policy, weight).predict(case.policy, case.log)


# -------------------------------------------------------------------------------- visits in plain loops


def counted_ratios(case: Case, gamma: float, stationary: bool, weight: FloatArray | None = None) -> FloatArray:
    """Push the candidate through the counted transitions and divide its visits by the counts: c_it of every row."""
    log, pi = case.log, case.pi
    S, A = pi.shape
    H = 1 if stationary or log.horizon is None else log.horizon
    count, onward, start = np.zeros((H, S, A)), np.zeros((H, S, A, S)), np.zeros(S)
    used = []
    for i, episode in enumerate(paths(log)):
        omega = 1.0 if weight is None else float(weight[i])
        start[episode[0][0]] += omega / log.n_episodes
        for t, (s, a, _) in enumerate(episode):
            last = t == len(episode) - 1
            follows = end_goes_on(log, i, stationary) if last else True
            k = t if H > 1 else 0
            used.append((k, s, a) if follows is not None else None)
            if follows is None:
                continue
            count[k, s, a] += omega / log.n_episodes
            if follows:
                onward[k, s, a, final_codes(log)[i] if last else episode[t + 1][0]] += omega / log.n_episodes
    visits, d = np.zeros((H, S, A)), start
    for step in range(H if H > 1 else 1000):
        k = step if H > 1 else 0
        visits[k] += gamma**step * d[:, None] * pi
        moved = np.divide(onward[k], count[k][..., None], out=np.zeros((S, A, S)), where=count[k][..., None] > 0)
        d = np.einsum("s,sa,saz->z", d, pi, moved)
    return np.array([visits[place] / count[place] if place is not None and count[place] else 0.0 for place in used])


@stationary_or_not
@every_end
@pytest.mark.parametrize("seed", [0, 1])
def test_ratios_are_visits_of_the_counted_model(seed: int, ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(seed, ends=ends, zeros=True)
    expected = counted_ratios(case, 0.9, stationary)
    np.testing.assert_allclose(ratios(case, stationary=stationary), expected, rtol=1e-8, atol=1e-10)
    value = np.sum(expected * case.log.rewards) / case.log.n_episodes
    assert fit(case, stationary=stationary).value == pytest.approx(value, rel=1e-8)


@stationary_or_not
@every_end
def test_episode_weights_count_episodes(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(2, ends=ends, n=24)
    weight = np.resize([2.0, 1.0, 0.0], 24)
    expected = counted_ratios(case, 0.9, stationary, weight)
    np.testing.assert_allclose(ratios(case, weight=weight, stationary=stationary), expected, rtol=1e-8, atol=1e-10)
    chosen = np.repeat(np.arange(24), weight.astype(int))
    replicated = Case(repeated_log(case.log, chosen).replace(episode_ids=np.arange(24)), case.b, case.pi)
    assert fit(case, weight=weight, stationary=stationary).value == pytest.approx(
        fit(replicated, stationary=stationary).value, rel=1e-10
    )


@stationary_or_not
def test_the_size_of_weights_does_not_matter(stationary: bool) -> None:
    """Doubly robust methods pass the weights of some folds, whose mean is not 1."""
    case = random_case(2, ends=("terminal", "horizon"))
    weight = np.random.default_rng(0).exponential(size=30)
    found = ratios(case, weight=7.0 * weight, stationary=stationary)
    np.testing.assert_allclose(found, ratios(case, weight=weight, stationary=stationary), rtol=1e-10)
    np.testing.assert_allclose(found, counted_ratios(case, 0.9, stationary, weight / weight.mean()), rtol=1e-8)


def test_undiscounted_with_terminals() -> None:
    case = random_case(3)
    np.testing.assert_allclose(ratios(case, 1.0), counted_ratios(case, 1.0, True), rtol=1e-8)


@every_end
def test_rows_that_lead_nowhere_known_have_no_ratio(ends: tuple[str, ...]) -> None:
    case = random_case(4, ends=ends)
    assert case.log.final_states is not None
    states = np.where((case.log.ends == 1)[:, None], np.nan, case.log.final_states)
    final = states if "truncated" in ends else None
    case = Case(case.log.replace(final_states=final), case.b, case.pi)
    found = ratios(case, stationary=True)
    np.testing.assert_allclose(found, counted_ratios(case, 0.9, True), rtol=1e-8, atol=1e-10)
    left_out = fit(case, stationary=True).diagnostics["left_out_transitions"]
    assert left_out == int((case.log.ends == 1).sum())
    assert np.sum(found[case.log.offsets[1:] - 1] == 0.0) >= left_out


@stationary_or_not
@every_end
def test_prediction_on_another_log(ends: tuple[str, ...], stationary: bool) -> None:
    case, other = random_case(5, ends=ends, n=300), random_case(6, ends=ends, n=20)
    model = MarginalizedIS(gamma=0.9, stationary=stationary).fit_ratio(case.log, case.policy, np.ones(300))
    known = counted_ratios(case, 0.9, stationary)
    by_step = not stationary and case.log.horizon is not None
    table: dict[tuple[int, int, int], float] = {}
    places = [(t if by_step else 0, s, a) for path in paths(case.log) for t, (s, a, _) in enumerate(path)]
    for place, c in zip(places, known, strict=True):
        if c:
            table[place] = float(c)
    found = model.predict(case.policy, other.log)
    wanted = [(t if by_step else 0, s, a) for path in paths(other.log) for t, (s, a, _) in enumerate(path)]
    np.testing.assert_allclose(found, [table.get(place, 0.0) for place in wanted], rtol=1e-8, atol=1e-10)


# -------------------------------------------------------------------------------- exact logs


def true_ratios(problem: TabularProblem, every: Any, gamma: float, n_steps: int, stationary: bool) -> FloatArray:
    """Return the candidate's discounted visits over those of the log, from the true process."""
    visits = np.zeros((2, n_steps, problem.n_states, problem.n_actions))
    for k, table in enumerate((problem.target, problem.behavior)):
        d = problem.process.initial
        for t in range(n_steps):
            P, _ = problem.process.at(t)
            alive = ~problem.process.terminal
            visits[k, t] = d[alive, None] * table
            d = np.einsum("s,sa,saz->z", d[alive], table, P[alive])
    log = every.log
    steps = np.concatenate([np.arange(T) for T in log.lengths])
    codes = log.states.argmax(axis=1)
    if not stationary:
        ratio = np.divide(visits[0], visits[1], out=np.zeros_like(visits[0]), where=visits[1] > 0)
        return np.asarray(gamma**steps * ratio[steps, codes, log.actions])
    endless = np.zeros((problem.n_states, problem.n_actions))
    d, alive = problem.process.initial, ~problem.process.terminal
    for t in range(2000):
        endless += gamma**t * d[alive, None] * problem.target
        d = np.einsum("s,sa,saz->z", d[alive], problem.target, problem.process.at(0)[0][alive])
    return np.asarray((endless / visits[1].sum(axis=0))[codes, log.actions])


@pytest.mark.parametrize("gamma", [0.95, 1.0])
def test_time_indexed_ratios_are_the_true_ones(gamma: float) -> None:
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, "horizon", flow_paths)
    policy, estimator = TabularPolicy(problem.target), MarginalizedIS(gamma=gamma)
    found = estimator.fit_ratio(every.log, policy, every.weight / every.weight.mean()).predict(policy, every.log)
    np.testing.assert_allclose(found, true_ratios(problem, every, gamma, 20, stationary=False), rtol=1e-8)
    estimate = estimator.fit(every.log, policy, every.weight).estimate()
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=gamma), rel=1e-11)


@pytest.mark.parametrize("terminals", [0, 1])
def test_stationary_ratios_are_the_true_ones(terminals: int) -> None:
    problem = RandomMDP(3, 2, terminals=terminals, random_state=5)
    every = exact_log(problem, 4, "truncated")
    policy, estimator = TabularPolicy(problem.target), MarginalizedIS(gamma=0.9)
    found = estimator.fit_ratio(every.log, policy, every.weight / every.weight.mean()).predict(policy, every.log)
    np.testing.assert_allclose(found, true_ratios(problem, every, 0.9, 4, stationary=True), rtol=1e-8)
    estimate = estimator.fit(every.log, policy, every.weight).estimate()
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=0.9), rel=1e-10)


def test_sampled_value_lies_within_its_error() -> None:
    problem = RiverSwim(horizon=20)
    log = problem.sample(4000, random_state=0)
    estimate = MarginalizedIS(gamma=1.0).fit(log, TabularPolicy(problem.target)).estimate()
    assert abs(estimate.value - 1.5986435503) < 4 * estimate.std_error
    assert estimate.verdict.level is Level.VALID


@pytest.mark.slow
def test_coverage_of_the_normal_interval() -> None:
    """Nominal 95 % on RiverSwim (b .6, pi .8), 200 episodes of 50 steps, 300 logs."""
    problem = RiverSwim(behavior=0.6, target=0.8, max_steps=50)
    policy, hits = TabularPolicy(problem.target), 0
    for seed in range(300):
        log = problem.sample(200, random_state=seed)
        low, high = MarginalizedIS(gamma=0.95).fit(log, policy).estimate().confidence_interval()
        hits += low <= 1.0063626819 <= high
    assert 0.90 <= hits / 300 <= 0.985


# -------------------------------------------------------------------------------- the same numbers as the primal


@stationary_or_not
@every_end
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_dual_is_the_value_of_lstdq(ends: tuple[str, ...], ridge: float, stationary: bool) -> None:
    """With a ridge too: both are phibar_0' (A + ridge)^-1 b."""
    case = random_case(7, ends=ends, zeros=True)
    estimate = fit(case, stationary=stationary, ridge=ridge)
    primal = LSTDQ(gamma=0.9, stationary=stationary, ridge=ridge).fit(case.log, case.policy).estimate()
    assert estimate.value == pytest.approx(primal.value, rel=1e-8)
    assert estimate.diagnostics["dual"] == estimate.value
    assert estimate.diagnostics["primal"] == pytest.approx(primal.value, rel=1e-12)
    np.testing.assert_allclose(influence_of(estimate), influence_of(primal), rtol=1e-8, atol=1e-10)


@stationary_or_not
@every_end
def test_lagrangian_is_free_of_the_first_order_bias_of_the_ridge(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(8, ends=ends, n=100)
    plain = fit(case, stationary=stationary).value
    coarse, fine = (fit(case, stationary=stationary, ridge=ridge) for ridge in (0.02, 0.01))
    for estimate in (coarse, fine):
        seen = estimate.diagnostics
        assert seen["lagrangian"] == pytest.approx(seen["dual"] - seen["ridge_bias"], rel=1e-10)
        assert seen["primal_dual_gap"] == pytest.approx(abs(seen["ridge_bias"]), rel=1e-6)
    first = (coarse.value - plain) / (fine.value - plain)
    second = (coarse.diagnostics["lagrangian"] - plain) / (fine.diagnostics["lagrangian"] - plain)
    assert first == pytest.approx(2.0, rel=0.05)
    assert second == pytest.approx(4.0, rel=0.1)


@stationary_or_not
@every_end
def test_without_a_ridge_the_three_values_agree(ends: tuple[str, ...], stationary: bool) -> None:
    seen = fit(random_case(9, ends=ends), stationary=stationary).diagnostics
    assert seen["primal_dual_gap"] < 1e-12
    assert "ridge_bias" not in seen


@stationary_or_not
@every_end
def test_flow_holds_for_every_function_of_the_basis(ends: tuple[str, ...], stationary: bool) -> None:
    """The definition on the scale of `RatioEstimator`: mean sum c (f(s, a) - gamma E f(s', a')) = mean E f(s_0, a')."""
    case = random_case(10, ends=ends, n=300)
    c, f = ratios(case, stationary=stationary), np.random.default_rng(0).normal(size=case.pi.shape)
    by_step = not stationary and case.log.horizon is not None
    left, row = 0.0, 0
    for i, path in enumerate(paths(case.log)):
        for t, (s, a, _) in enumerate(path):
            last = t == len(path) - 1
            z = (final_codes(case.log)[i] if end_goes_on(case.log, i, stationary) else None) if last else path[t + 1][0]
            beyond = z is None or (by_step and t + 1 == case.log.horizon)
            ahead = 0.0 if beyond else float(case.pi[z] @ f[z])
            left += c[row] * ((1 - 0.1 * t * by_step) * f[s, a] - 0.9 * (1 - 0.1 * (t + 1) * by_step) * ahead)
            row += 1
    starts = [case.pi[path[0][0]] @ f[path[0][0]] for path in paths(case.log)]
    assert left / case.log.n_episodes == pytest.approx(np.mean(starts), rel=1e-8)
    assert fit(case, stationary=stationary).diagnostics["mean_ratio"] == pytest.approx(1.0, rel=1e-10)


# -------------------------------------------------------------------------------- influence


@stationary_or_not
@every_end
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_influence_is_the_infinitesimal_jackknife(ends: tuple[str, ...], ridge: float, stationary: bool) -> None:
    case = random_case(11, n=15, ends=ends, zeros=True)
    psi = influence_of(fit(case, stationary=stationary, ridge=ridge))
    numerical = jackknife(lambda w: fit(case, weight=w, stationary=stationary, ridge=ridge).value, 15)
    np.testing.assert_allclose(psi, numerical, rtol=1e-5, atol=1e-6 * np.abs(psi).max())
    assert abs(psi.sum()) < 1e-10 * np.abs(psi).sum()


def test_influence_is_the_jackknife_of_the_counts() -> None:
    case = random_case(12, n=20, ends=("terminal", "horizon"))

    def counted(w: FloatArray) -> float:
        row_weight = np.repeat(w / w.mean(), case.log.lengths)
        return float(np.mean(row_weight * counted_ratios(case, 0.9, False, w / w.mean()) * case.log.rewards)) * (
            len(case.log) / 20
        )

    psi = influence_of(fit(case))
    np.testing.assert_allclose(psi, jackknife(counted, 20), rtol=1e-5, atol=1e-6 * np.abs(psi).max())


# -------------------------------------------------------------------------------- features

LQR_VALUES = {-0.3: -5.462013422819, -0.5: -4.353627062017, -0.7: -3.768054727241}
KERNELS = {
    "random": (RBFSampler(gamma=0.1, n_components=100, random_state=0), 1e-2),
    "nystroem": (Nystroem(gamma=0.1, n_components=100, random_state=0), 1e-3),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("gain", LQR_VALUES)
def test_random_features_and_kernels_find_the_closed_form(gain: float, kernel: str) -> None:
    """With standardised states and the recommended width; the quadratic features hold Q exactly, these only nearly."""
    log = ScalarLQR(max_steps=20).sample(200, random_state=0)
    policy = GaussianPolicy(mean=[gain], std=0.3)
    transformer, ridge = KERNELS[kernel]
    features = make_pipeline(StandardScaler(), transformer)
    estimate = MarginalizedIS(gamma=0.95, features=features, ridge=ridge).fit(log, policy).estimate()
    exact = MarginalizedIS(gamma=0.95).fit(log, policy).estimate()
    assert abs(exact.value - LQR_VALUES[gain]) < 3 * exact.std_error
    assert abs(estimate.value - LQR_VALUES[gain]) < 3 * estimate.std_error
    assert abs(estimate.value - exact.value) < 0.5 * exact.std_error
    assert estimate.std_error < 1.5 * exact.std_error


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_on_a_discrete_log_of_continuous_states(kernel: str) -> None:
    """States that are shown as one number: kernels of it hold the one-hot answer."""
    problem = RandomMDP(5, 2, horizon=6, encoding="index", random_state=4)
    log = problem.sample(400, random_state=1)
    policy = TabularPolicy(problem.target, state_code=problem.state_code)
    features = make_pipeline(StandardScaler(), KERNELS[kernel][0].set_params(n_components=30, gamma=0.5))
    found = MarginalizedIS(gamma=1.0, features=features, ridge=1e-6).fit(log, policy).estimate()
    hot = RandomMDP(5, 2, horizon=6, random_state=4).sample(400, random_state=1)
    exact = MarginalizedIS(gamma=1.0).fit(hot, TabularPolicy(problem.target)).estimate()
    assert found.value == pytest.approx(exact.value, rel=1e-3)
    assert found.std_error == pytest.approx(exact.std_error, rel=1e-2)


def doubled(states: FloatArray) -> FloatArray:
    return np.hstack([states, states @ np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]])])


def mixed(states: FloatArray) -> FloatArray:
    result: FloatArray = states @ np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [3.0, 0.0, 1.0]])
    return result


@stationary_or_not
@pytest.mark.parametrize("transform", [doubled, mixed])
def test_bases_of_one_space_give_one_ratio(transform: Any, stationary: bool) -> None:
    case = random_case(13, ends=("terminal", "horizon"), n=300)
    found = ratios(case, stationary=stationary, features=FunctionTransformer(transform))
    np.testing.assert_allclose(found, ratios(case, stationary=stationary), rtol=1e-7)


def test_baird_has_ratios_and_the_value_zero() -> None:
    problem = Baird(max_steps=30)
    policy = TabularPolicy(problem.target, state_code=problem.state_code)
    estimate = MarginalizedIS(gamma=0.99, features="identity").fit(problem.sample(50), policy).estimate()
    assert estimate.value == pytest.approx(0.0, abs=1e-10)


# -------------------------------------------------------------------------------- verdicts


def reasons(estimate: Estimate) -> str:
    return " ".join(estimate.verdict.reasons)


def test_a_hidden_state_is_refused() -> None:
    log = ModelFail().sample(400, random_state=0)
    estimate = MarginalizedIS(gamma=1.0).fit(log, TabularPolicy(ModelFail().target)).estimate()
    assert estimate.verdict.level is Level.REFUSE
    assert "depend on the past" in reasons(estimate)


def test_a_basis_that_cannot_express_the_ratio_is_noticed() -> None:
    """Four random features for twelve states: a good part of the ratio is negative."""
    g = np.random.default_rng(0)
    problem = RandomMDP(12, 2, max_steps=30, encoding=g.normal(size=(12, 4)), random_state=3)
    policy = TabularPolicy(problem.target, state_code=problem.state_code)
    log = problem.sample(200, random_state=0)
    estimate = MarginalizedIS(gamma=0.9, features="identity").fit(log, policy).estimate()
    c = MarginalizedIS(gamma=0.9, features="identity").fit_ratio(log, policy, np.ones(200)).predict(policy, log)
    assert estimate.diagnostics["negative_share"] == pytest.approx(-np.minimum(c, 0).sum() / np.abs(c).sum())
    assert estimate.diagnostics["negative_share"] > 0.1
    assert "is negative, where visits cannot be" in reasons(estimate)
    assert estimate.verdict.level >= Level.CAUTION


def test_a_heavy_ridge_is_noticed() -> None:
    case = random_case(14, n=60)
    estimate = fit(case, ridge=60.0)
    assert "primal, dual and Lagrangian values differ" in reasons(estimate)
    assert "where 1 is expected" in reasons(estimate)
    assert estimate.diagnostics["mean_ratio"] < 0.5
    assert estimate.verdict.level is Level.REFUSE


def test_visits_outside_the_log_are_noticed() -> None:
    """Two states; the candidate goes where nobody ever acted: half of the mass is lost."""
    log = LoggedDataset.from_arrays(
        np.eye(2)[[0, 0, 1, 1] * 20], [0, 1, 0, 0] * 20, np.ones(80), lengths=[1] * 80, ends="terminal",
        behavior_prob=np.full(80, 0.5), action_labels=[0, 1],
    )  # fmt: skip
    estimate = MarginalizedIS(gamma=0.9).fit(log, TabularPolicy([[0.5, 0.5], [0.0, 1.0]])).estimate()
    assert estimate.value == pytest.approx(0.5)
    assert estimate.diagnostics["unsupported"] == pytest.approx(0.5)
    assert estimate.diagnostics["mean_ratio"] == pytest.approx(0.5)
    assert "features that the log does not hold" in reasons(estimate)


def test_no_discounting_and_no_end_is_no_value() -> None:
    assert fit(random_case(15, ends=("truncated",)), 1.0).verdict.level is Level.REFUSE


def test_few_effective_episodes_are_noticed() -> None:
    case = random_case(16, n=12)
    estimate = fit(case)
    assert estimate.diagnostics["ess"] < 25
    assert "ratios of visits leave an effective sample" in reasons(estimate)


def test_findings_at_their_limits() -> None:
    assert judge_gap(0.09, 1.0) is None
    assert judge_gap(0.11, 1.0) is not None
    assert judge_negative(0.1) is None
    assert judge_mean_ratio(0.95) is None
    low, far = judge_mean_ratio(0.8), judge_mean_ratio(2.5)
    assert low is not None
    assert far is not None
    assert (low[0], far[0]) == (Level.CAUTION, Level.REFUSE)
    undefined = judge_mean_ratio(float("nan"))
    assert undefined is not None
    assert undefined[0] is Level.REFUSE


def test_effective_sample_size_by_step_and_by_episode() -> None:
    case = random_case(17, n=40, ends=("horizon",))
    c = ratios(case).reshape(40, 6)
    r = case.log.rewards.reshape(40, 6)
    mass = np.abs(c * r).sum(axis=0)
    to_come = np.array([mass[t:].sum() for t in range(6)])
    by_step = [np.abs(c[:, t]).sum() ** 2 / (c[:, t] ** 2).sum() for t in range(6) if to_come[t] >= 0.01 * to_come[0]]
    assert fit(case).diagnostics["ess"] == pytest.approx(min(by_step), rel=1e-9)
    total = ratios(case, stationary=True).reshape(40, 6).sum(axis=1)
    found = fit(case, stationary=True).diagnostics["ess"]
    assert found == pytest.approx(np.abs(total).sum() ** 2 / (total**2).sum(), rel=1e-9)


# -------------------------------------------------------------------------------- parameters

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"features": "splines"}, ValueError, "`features` must be"),
    ({"features": PolynomialFeatures}, TypeError, "got the class PolynomialFeatures"),
    ({"ridge": -1.0}, ValueError, "`ridge` must be a number of at least 0"),
    ({"ridge": "much"}, TypeError, "`ridge` must be"),
    ({"n_samples": 0}, ValueError, "`n_samples` must be an integer of at least 1"),
    ({"random_state": -1}, ValueError, "`random_state` must be an integer of at least 0"),
]


@pytest.mark.parametrize(("params", "error", "words"), BAD, ids=[words for _, _, words in BAD])
def test_bad_parameters(params: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        fit(random_case(0), **params)
    assert str(caught.value).startswith("MarginalizedIS: ")


def test_several_policies_at_once() -> None:
    case = random_case(18)
    tables = {"pi": TabularPolicy(case.pi), "b": TabularPolicy(case.b)}
    estimates = MarginalizedIS(gamma=0.9).fit(case.log, tables).estimate()
    assert estimates["pi"].value == fit(case).value
    for a, b in itertools.combinations(estimates.values(), 2):
        assert (a - b).value == pytest.approx(a.value - b.value)
