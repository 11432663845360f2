"""StateMarginalIS against flows counted in plain loops, exact logs with and without terminals, and the jackknife."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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

from ope import Estimate, Level, LoggedDataset, estimate_behavior
from ope.estimators import PerDecisionIS, StateMarginalIS
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import ModelFail, RandomMDP, RiverSwim, ScalarLQR, TabularProblem
from ope.validation import FloatArray

normalized_or_not = pytest.mark.parametrize("self_normalized", [True, False], ids=["self_normalized", "plain"])
every_visit = pytest.mark.parametrize("visits", ["all", "discounted"])


def fit(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Estimate:
    estimate: Estimate = StateMarginalIS(gamma=gamma, **params).fit(case.log, case.policy, weight).estimate()
    return estimate


def ratios(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> FloatArray:
    model = StateMarginalIS(gamma=gamma, **params)
    weight = np.ones(case.log.n_episodes) if weight is None else weight
    return model.fit_ratio(case.log, case.policy, weight).predict(case.policy, case.log)


# -------------------------------------------------------------------------------- flows in plain loops


class Step(NamedTuple):
    """A row: its weight, time, state, action ratio, and the state that followed (None: nothing does)."""

    omega: float
    t: int
    s: int
    rho: float
    z: int | None
    used: bool


def steps(case: Case, stationary: bool, weight: FloatArray | None) -> Iterator[Step]:
    for i, path in enumerate(paths(case.log)):
        omega = (1.0 if weight is None else float(weight[i])) / case.log.n_episodes
        for t, (s, a, _) in enumerate(path):
            last = t == len(path) - 1
            follows = end_goes_on(case.log, i, stationary) if last else True
            if last and not stationary and len(path) == case.log.horizon:
                follows = False
            z = final_codes(case.log)[i] if last and follows else path[t + 1][0] if follows else None
            yield Step(omega, t, s, case.pi[s, a] / case.b[s, a], z, follows is not None)


def counted_by_time(case: Case, gamma: float, self_normalized: bool, weight: FloatArray | None = None) -> FloatArray:
    """Forward recursion of Xie, Ma & Wang: the visits that arrive in a state over the visits that the log has there."""
    rows = list(steps(case, False, weight))
    S, H = len(case.pi), case.log.horizon
    assert H is not None
    arrive, w = np.zeros((H + 1, S)), np.zeros((H, S))
    for row in rows:
        if row.t == 0:
            arrive[0, row.s] += row.omega
    for t in range(H):
        here = [row for row in rows if row.t == t]
        for s in range(S):
            there = sum(row.omega * (row.rho if self_normalized else 1.0) for row in here if row.s == s)
            w[t, s] = arrive[t, s] / there if there > 0 else 0.0
        for row in here:
            if row.z is not None:
                arrive[t + 1, row.z] += row.omega * w[t, row.s] * row.rho
    return np.array([gamma**row.t * w[row.t, row.s] * row.rho for row in rows])


def counted_stationary(
    case: Case, gamma: float, self_normalized: bool, visits: str, weight: FloatArray | None = None
) -> FloatArray:
    """Solve visits(z) = starts(z) + gamma sum of arrivals, with visits(s) = w(s) times those of the log."""
    rows, S = list(steps(case, True, weight)), len(case.pi)
    starts, there, arrive = np.zeros(S), np.zeros(S), np.zeros((S, S))
    for row in rows:
        if row.t == 0:
            starts[row.s] += row.omega
        if not row.used:
            continue
        count = row.omega * (gamma**row.t if visits == "discounted" else 1.0)
        there[row.s] += count * (row.rho if self_normalized else 1.0)
        if row.z is not None:
            arrive[row.s, row.z] += count * row.rho
    moved = np.divide(arrive, there[:, None], out=np.zeros((S, S)), where=there[:, None] > 0)
    w = np.linalg.solve(np.eye(S) - gamma * moved.T, starts) / np.where(there > 0, there, np.inf)
    counts = [(gamma**row.t if visits == "discounted" else 1.0) * row.used for row in rows]
    return np.array([count * w[row.s] * row.rho for count, row in zip(counts, rows, strict=True)])


@normalized_or_not
@every_end
@pytest.mark.parametrize("seed", [0, 1])
def test_time_indexed_ratios_are_counted_flows(seed: int, ends: tuple[str, ...], self_normalized: bool) -> None:
    case = random_case(seed, ends=ends, zeros=True, horizon=6)
    expected = counted_by_time(case, 0.9, self_normalized)
    np.testing.assert_allclose(ratios(case, self_normalized=self_normalized), expected, rtol=1e-8, atol=1e-10)
    value = np.sum(expected * case.log.rewards) / case.log.n_episodes
    assert fit(case, self_normalized=self_normalized).value == pytest.approx(value, rel=1e-8)


@every_visit
@normalized_or_not
@every_end
def test_stationary_ratios_are_counted_flows(ends: tuple[str, ...], self_normalized: bool, visits: str) -> None:
    case = random_case(2, ends=ends, zeros=True)
    settings: dict[str, Any] = {"self_normalized": self_normalized, "visits": visits}
    expected = counted_stationary(case, 0.9, **settings)
    np.testing.assert_allclose(ratios(case, stationary=True, **settings), expected, rtol=1e-8, atol=1e-10)
    value = np.sum(expected * case.log.rewards) / case.log.n_episodes
    assert fit(case, stationary=True, **settings).value == pytest.approx(value, rel=1e-8)


@every_end
def test_rows_that_lead_nowhere_known_are_left_out(ends: tuple[str, ...]) -> None:
    case = random_case(3, ends=ends)
    assert case.log.final_states is not None
    states = np.where((case.log.ends == 1)[:, None], np.nan, case.log.final_states)
    case = Case(case.log.replace(final_states=states if "truncated" in ends else None), case.b, case.pi)
    expected = counted_stationary(case, 0.9, True, "all")
    np.testing.assert_allclose(ratios(case, stationary=True), expected, rtol=1e-8, atol=1e-10)
    assert fit(case, stationary=True).diagnostics["left_out_transitions"] == int((case.log.ends == 1).sum())


@stationary_or_not
@normalized_or_not
@every_end
def test_episode_weights_count_episodes(ends: tuple[str, ...], self_normalized: bool, stationary: bool) -> None:
    case = random_case(4, ends=ends, n=24, horizon=6)
    weight = np.resize([2.0, 1.0, 0.0], 24)
    settings: dict[str, Any] = {"self_normalized": self_normalized, "stationary": stationary}
    chosen = np.repeat(np.arange(24), weight.astype(int))
    replicated = Case(repeated_log(case.log, chosen).replace(episode_ids=np.arange(24)), case.b, case.pi)
    expected = fit(replicated, **settings).value
    assert fit(case, weight=weight, **settings).value == pytest.approx(expected, rel=1e-10)
    assert fit(case, weight=5 * weight, **settings).value == pytest.approx(expected, rel=1e-10)


# -------------------------------------------------------------------------------- exact logs


def value_on(every: Any, problem: TabularProblem, gamma: float, **params: Any) -> Estimate:
    estimator = StateMarginalIS(gamma=gamma, **params)
    estimate: Estimate = estimator.fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    return estimate


@normalized_or_not
@pytest.mark.parametrize("gamma", [0.95, 1.0])
def test_time_indexed_value_is_exact_on_the_exact_law(gamma: float, self_normalized: bool) -> None:
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, "horizon", flow_paths)
    estimate = value_on(every, problem, gamma, self_normalized=self_normalized)
    assert estimate.value == pytest.approx({0.95: 0.7738807833, 1.0: 1.5986435503}[gamma], rel=1e-9)
    assert estimate.diagnostics["mean_ratio"] == pytest.approx(1.0, rel=1e-9)


@every_visit
@normalized_or_not
@pytest.mark.parametrize(("ends", "stationary"), [("horizon", True), ("truncated", False)])
def test_truncated_recordings_give_the_endless_value(
    ends: str, stationary: bool, self_normalized: bool, visits: Any
) -> None:
    """Twenty recorded steps of an endless chain: the flow goes on from the state that followed."""
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, ends, flow_paths)
    settings = {"self_normalized": self_normalized, "visits": visits, "stationary": stationary}
    estimate = value_on(every, problem, 0.95, **settings)
    assert estimate.value == pytest.approx(2.4426254477, rel=1e-9)
    assert estimate.horizon is None


@every_visit
@normalized_or_not
@pytest.mark.parametrize(("gamma", "ends"), [(0.9, "horizon"), (0.9, "truncated"), (1.0, "truncated")])
def test_terminals_are_exact(gamma: float, ends: str, self_normalized: bool, visits: Any) -> None:
    problem = RandomMDP(3, 2, terminals=1, horizon=4 if ends == "horizon" else None, random_state=5)
    every = exact_log(problem, 4, ends)
    estimate = value_on(every, problem, gamma, self_normalized=self_normalized, visits=visits)
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=gamma), rel=1e-9)
    assert estimate.diagnostics["mean_ratio"] == pytest.approx(1.0, rel=1e-9)


def test_normalising_over_live_steps_would_give_the_reward_given_survival() -> None:
    """What peers report: sum c r / sum c is (1 - gamma) J only if the absorbing state is counted in the denominator."""
    problem = RandomMDP(3, 2, terminals=1, random_state=5)
    every = exact_log(problem, 4, "truncated")
    policy, gamma = TabularPolicy(problem.target), 0.9
    weight = every.weight / every.weight.mean()
    c = StateMarginalIS(gamma=gamma).fit_ratio(every.log, policy, weight).predict(policy, every.log)
    c = c * np.repeat(weight, every.log.lengths)
    ended = np.zeros(len(c), bool)
    ended[every.log.offsets[1:][every.log.ends == 0] - 1] = True
    truth = problem.value(problem.target, gamma=gamma)
    live = c.sum()
    absorbing = gamma / (1 - gamma) * c[ended].sum()
    rewards = float(c @ every.log.rewards)
    assert rewards / (live + absorbing) / (1 - gamma) == pytest.approx(truth, rel=1e-9)
    assert abs(rewards / live / (1 - gamma) - truth) > 0.5 * abs(truth)


def test_not_reading_the_action_ratio_would_be_wrong() -> None:
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, "horizon", flow_paths)
    policy, weight = TabularPolicy(problem.target), every.weight / every.weight.mean()
    c = StateMarginalIS(gamma=1.0).fit_ratio(every.log, policy, weight).predict(policy, every.log)
    codes = every.log.states.argmax(axis=1)
    rho = problem.target[codes, every.log.actions] / problem.behavior[codes, every.log.actions]
    without = np.sum(np.repeat(weight, every.log.lengths) * c / rho * every.log.rewards) / every.log.n_episodes
    assert abs(without - 1.5986435503) > 0.1


def test_first_step_is_importance_sampling() -> None:
    """Episodes of one step, not self-normalised: w_0 = 1 and the mean of rho r."""
    case = random_case(5, longest=1, n=40)
    pdis = PerDecisionIS(gamma=0.9).fit(case.log, case.policy).estimate()
    plain = fit(case, self_normalized=False)
    assert plain.value == pytest.approx(pdis.value, rel=1e-12)
    np.testing.assert_allclose(np.sum(influence_of(plain) ** 2), np.sum(influence_of(pdis) ** 2), rtol=0.9)


@normalized_or_not
def test_sampled_value_lies_within_its_error(self_normalized: bool) -> None:
    problem = RandomMDP(5, 2, terminals=1, max_steps=30, random_state=1)
    log = problem.sample(3000, random_state=0)
    estimator = StateMarginalIS(gamma=0.9, self_normalized=self_normalized)
    estimate = estimator.fit(log, TabularPolicy(problem.target)).estimate()
    assert abs(estimate.value - problem.value(problem.target, gamma=0.9)) < 4 * estimate.std_error
    assert estimate.verdict.level is Level.VALID


@pytest.mark.slow
@normalized_or_not
def test_coverage_of_the_normal_interval(self_normalized: bool) -> None:
    """Nominal 95 % on RiverSwim with 20 steps, 200 episodes, 300 logs."""
    problem, hits = RiverSwim(horizon=20), 0
    policy = TabularPolicy(problem.target)
    for seed in range(300):
        log = problem.sample(200, random_state=seed)
        estimator = StateMarginalIS(gamma=1.0, self_normalized=self_normalized)
        low, high = estimator.fit(log, policy).estimate().confidence_interval()
        hits += low <= 1.5986435503 <= high
    assert 0.90 <= hits / 300 <= 0.985


@pytest.mark.slow
def test_defaults_have_the_least_error() -> None:
    """The figures of the docstring: RiverSwim (b .6, pi .8), 100 episodes of 50 steps, gamma .95, 200 logs."""
    problem = RiverSwim(behavior=0.6, target=0.8, max_steps=50)
    policy, errors = TabularPolicy(problem.target), np.zeros(3)
    settings: list[dict[str, Any]] = [{}, {"visits": "discounted"}, {"self_normalized": False}]
    for seed in range(200):
        log = problem.sample(100, random_state=seed)
        values = [StateMarginalIS(gamma=0.95, **params).fit(log, policy).estimate().value for params in settings]
        errors += (np.array(values) - 1.0063626819) ** 2 / 200
    assert errors[0] == pytest.approx(0.052, rel=0.05)
    assert errors[1] == pytest.approx(0.083, rel=0.05)
    assert errors[2] > 3.0


# -------------------------------------------------------------------------------- influence


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@stationary_or_not
@normalized_or_not
@every_end
def test_influence_is_the_infinitesimal_jackknife(
    ends: tuple[str, ...], self_normalized: bool, stationary: bool, ridge: float
) -> None:
    """Of the whole pipeline, the recursion refitted for every weight."""
    case = random_case(6, n=14, ends=ends, zeros=True)
    settings: dict[str, Any] = {"self_normalized": self_normalized, "stationary": stationary, "ridge": ridge}
    psi = influence_of(fit(case, visits="discounted", **settings))
    numerical = jackknife(lambda w: fit(case, weight=w, visits="discounted", **settings).value, 14)
    np.testing.assert_allclose(psi, numerical, rtol=1e-5, atol=1e-6 * np.abs(psi).max())
    assert abs(psi.sum()) < 1e-9 * np.abs(psi).sum()


@normalized_or_not
def test_influence_is_the_jackknife_of_the_counts(self_normalized: bool) -> None:
    case = random_case(7, n=20, ends=("terminal", "horizon", "truncated"))

    def counted(w: FloatArray) -> float:
        w = w / w.mean()
        c = counted_by_time(case, 0.9, self_normalized, w)
        return float(np.sum(np.repeat(w, case.log.lengths) * c * case.log.rewards)) / 20

    psi = influence_of(fit(case, self_normalized=self_normalized))
    np.testing.assert_allclose(psi, jackknife(counted, 20), rtol=1e-5, atol=1e-6 * np.abs(psi).max())


def test_weighted_influence_belongs_to_the_weighted_value() -> None:
    case = random_case(8, n=12, ends=("terminal", "truncated"))
    weight, step = np.random.default_rng(1).exponential(size=12), 1e-4
    psi = influence_of(fit(case, weight=weight))
    for i in range(12):
        up, down = weight.copy(), weight.copy()
        up[i] *= 1 + step
        down[i] *= 1 - step
        slope = (fit(case, weight=up).value - fit(case, weight=down).value) / (2 * step)
        assert psi[i] == pytest.approx(12 * slope, rel=1e-5, abs=1e-7)


# -------------------------------------------------------------------------------- features


def mixed(states: FloatArray) -> FloatArray:
    result: FloatArray = states @ np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [3.0, 0.0, 1.0]])
    return result


@stationary_or_not
@normalized_or_not
def test_bases_of_one_space_give_one_ratio(self_normalized: bool, stationary: bool) -> None:
    case = random_case(9, ends=("terminal", "horizon"), n=200)
    settings: dict[str, Any] = {"self_normalized": self_normalized, "stationary": stationary}
    found = ratios(case, features=FunctionTransformer(mixed), **settings)
    np.testing.assert_allclose(found, ratios(case, **settings), rtol=1e-7)


@normalized_or_not
def test_linear_ratios_solve_the_projected_flow(self_normalized: bool) -> None:
    """Two features for three states: sum phi (flow out of the log - flow in) = 0, checked row by row with the found ratio."""
    case = random_case(10, ends=("terminal", "truncated"), n=60)
    X = np.array([[1.0, 0.3], [1.0, -0.5], [1.0, 2.0]])
    features = FunctionTransformer(lambda states: states @ X)
    c = ratios(case, features=features, self_normalized=self_normalized)
    out, start = np.zeros(2), np.zeros(2)
    for c_it, row in zip(c, steps(case, True, None), strict=True):
        own = c_it if self_normalized else c_it / row.rho
        out += row.omega * own * X[row.s] - (0.0 if row.z is None else 0.9 * row.omega * c_it * X[row.z])
        start += row.omega * X[row.s] * (row.t == 0)
    np.testing.assert_allclose(out, start, rtol=1e-9)
    w = c / np.array([row.rho for row in steps(case, True, None)])
    by_state = [w[case.log.states.argmax(axis=1) == s] for s in range(3)]
    assert all(np.ptp(values) < 1e-9 for values in by_state)
    slopes = np.diff([values[0] for values in by_state]) / np.diff(X[:, 1])
    assert slopes[0] == pytest.approx(slopes[1])


KERNELS = {
    "random": (RBFSampler(gamma=0.2, n_components=50, random_state=0), 1e-2),
    "nystroem": (Nystroem(gamma=0.2, n_components=50, random_state=0), 1e-3),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_random_features_and_kernels_find_the_closed_form(kernel: str) -> None:
    log = ScalarLQR(max_steps=20).sample(300, random_state=0)
    policy = GaussianPolicy(mean=[-0.7], std=0.3)
    transformer, ridge = KERNELS[kernel]
    features = make_pipeline(StandardScaler(), transformer)
    estimate = StateMarginalIS(gamma=0.95, features=features, ridge=ridge).fit(log, policy).estimate()
    exact = StateMarginalIS(gamma=0.95).fit(log, policy).estimate()
    assert abs(exact.value + 3.768054727241) < 3 * exact.std_error
    assert abs(estimate.value + 3.768054727241) < 3 * estimate.std_error
    assert abs(estimate.value - exact.value) < 0.5 * exact.std_error
    assert estimate.std_error < 1.5 * exact.std_error


def test_identity_takes_the_states_as_they_are() -> None:
    case = random_case(11, ends=("terminal",))
    assert fit(case, features="identity").value == fit(case).value


# -------------------------------------------------------------------------------- diagnostics and verdicts


def reasons(estimate: Estimate) -> str:
    return " ".join(estimate.verdict.reasons)


def test_without_a_ridge_the_three_values_agree() -> None:
    seen = fit(random_case(12, ends=("terminal", "horizon"))).diagnostics
    assert seen["primal_dual_gap"] < 1e-12
    assert {"dual", "primal", "lagrangian", "negative_share", "mean_ratio", "ess", "unsupported"} <= set(seen)


def test_an_improper_solution_is_refused() -> None:
    """Not self-normalised, an estimated row sums to more than 1 / gamma: all ratios are negative, and the mass as well."""
    case = random_case(7, n=15, ends=("truncated",), zeros=True)
    estimate = fit(case, self_normalized=False)
    assert estimate.diagnostics["negative_share"] == pytest.approx(1.0)
    assert estimate.diagnostics["mean_ratio"] < 0
    assert estimate.verdict.level is Level.REFUSE
    assert "where 1 is expected" in reasons(estimate)
    assert fit(case).diagnostics["negative_share"] == 0.0


def test_a_hidden_state_is_refused() -> None:
    log = ModelFail().sample(400, random_state=0)
    estimate = StateMarginalIS(gamma=1.0).fit(log, TabularPolicy(ModelFail().target)).estimate()
    assert estimate.verdict.level is Level.REFUSE
    assert "depend on the past" in reasons(estimate)


def test_a_poor_basis_is_noticed() -> None:
    log = ScalarLQR(max_steps=20).sample(500, random_state=0)
    policy = GaussianPolicy(mean=[-0.3], std=0.3)
    estimate = StateMarginalIS(gamma=0.95, features="identity").fit(log, policy).estimate()
    assert "Richer features predict the errors" in reasons(estimate)


def test_a_rounding_error_is_no_evidence() -> None:
    """The last reward of Graph is a function of the state, so that its temporal differences are rounding errors."""
    from ope.problems import Graph

    problem = Graph(horizon=5, behavior=0.6, target=0.55)
    log = problem.sample(60_000, random_state=1)
    estimate = StateMarginalIS(gamma=1.0).fit(log, TabularPolicy(problem.target)).estimate()
    assert estimate.diagnostics["specification_p"] > 1e-3


def test_estimated_propensities_are_judged() -> None:
    from sklearn.ensemble import RandomForestClassifier

    case = random_case(13, n=60)
    log = estimate_behavior(case.log.replace(behavior_log_prob=None, behavior_source=None), RandomForestClassifier(5))
    estimate = StateMarginalIS(gamma=0.9).fit(log, case.policy).estimate()
    assert "flexible model" in reasons(estimate)


def test_actions_never_logged_are_refused() -> None:
    log = LoggedDataset.from_arrays(
        np.ones((30, 1)), [0] * 30, np.ones(30), lengths=[1] * 30, ends="terminal", behavior_prob=[1.0] * 30,
        action_labels=[0, 1],
    )  # fmt: skip
    estimate = StateMarginalIS(gamma=0.9).fit(log, TabularPolicy([[0.5, 0.5]])).estimate()
    assert estimate.verdict.level is Level.REFUSE
    assert "never logged" in reasons(estimate)


def test_a_state_without_any_action_of_the_candidate_is_unsupported() -> None:
    eye = np.eye(2)[[0, 1] * 30]
    log = LoggedDataset.from_arrays(
        eye, [0, 0] * 30, np.ones(60), lengths=[1] * 60, ends="terminal", behavior_prob=np.full(60, 0.5),
        action_labels=[0, 1],
    )  # fmt: skip
    estimate = StateMarginalIS(gamma=0.9).fit(log, TabularPolicy([[1.0, 0.0], [0.0, 1.0]])).estimate()
    assert estimate.value == pytest.approx(0.5)
    assert estimate.diagnostics["unsupported"] == pytest.approx(0.5)


# -------------------------------------------------------------------------------- parameters

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"features": "splines"}, ValueError, "`features` must be"),
    ({"features": PolynomialFeatures}, TypeError, "got the class PolynomialFeatures"),
    ({"ridge": -1.0}, ValueError, "`ridge` must be a number of at least 0"),
    ({"visits": "some"}, ValueError, "`visits` must be 'all' or 'discounted'"),
    ({"random_state": -1}, ValueError, "`random_state` must be an integer of at least 0"),
]


@pytest.mark.parametrize(("params", "error", "words"), BAD, ids=[words for _, _, words in BAD])
def test_bad_parameters(params: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        fit(random_case(0), **params)
    assert str(caught.value).startswith("StateMarginalIS: ")


def test_ratios_beyond_floats_are_an_error() -> None:
    case = random_case(14)
    assert case.log.behavior_log_prob is not None
    tiny = case.log.behavior_log_prob.copy()
    tiny[3] = -400.0
    with pytest.raises(ValueError, match=r"StateMarginalIS.fit: ratios pi / b must stay below e\^300"):
        StateMarginalIS(gamma=0.9).fit(case.log.replace(behavior_log_prob=tiny), case.policy)


def test_cross_fitted_propensities_serve_ratios_of_other_logs() -> None:
    """What doubly robust methods ask for: the ratio of held-out rows, with propensities that never saw them."""
    case = random_case(15, n=40)
    assert case.log.behavior_log_prob is not None
    crossed = case.log.replace(cross_fitted_log_prob=case.log.behavior_log_prob + np.log(2.0))
    model = StateMarginalIS(gamma=0.9, self_normalized=False).fit_ratio(case.log, case.policy, np.ones(40))
    np.testing.assert_allclose(model.predict(case.policy, crossed), 0.5 * model.predict(case.policy, case.log))
