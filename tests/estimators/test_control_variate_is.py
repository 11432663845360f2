"""Control variates against least squares in plain loops, exact variances and the problems where they help."""

from __future__ import annotations

import math

import numpy as np
import pytest
from estimator_oracles import Case, exact_log, influence_of, jackknife, one_hot_log, paths, random_case, repeated_log

from ope import Estimate, Level
from ope.estimators import ControlVariateIS, PerDecisionIS, WeightedIS
from ope.estimators.control_variate_is import regression_adjusted
from ope.policies import TabularPolicy
from ope.problems import Graph, ModelFail, ModelWin, RiverSwim, TabularProblem
from ope.validation import FloatArray

CASES = [
    random_case(0, n=45),
    random_case(1, n=60, zeros=True),
    random_case(2, n=45, ends=("terminal", "truncated"), zeros=True),
    random_case(4, n=90, ends=("horizon",)),
    random_case(5, n=60, ends=("terminal", "horizon", "truncated"), n_states=5, longest=9),
]


def fit(case: Case, n_groups: int = 1, gamma: float = 0.9, weight: FloatArray | None = None) -> Estimate:
    estimate: Estimate = ControlVariateIS(gamma=gamma, n_groups=n_groups).fit(case.log, case.policy, weight).estimate()
    return estimate


# -------------------------------------------------------------------------------- plain-loop oracle


def padded(case: Case) -> tuple[FloatArray, FloatArray]:
    """Return W_it and r_it with every episode prolonged to the longest: weight carried, reward 0."""
    episodes = paths(case.log)
    H = max(len(episode) for episode in episodes)
    W, r = np.empty((len(episodes), H)), np.zeros((len(episodes), H))
    for i, episode in enumerate(episodes):
        w = 1.0
        for t in range(H):
            if t < len(episode):
                s, a, r[i, t] = episode[t]
                w *= case.pi[s, a] / case.b[s, a]
            W[i, t] = w
    return W, r


def design(W: FloatArray, r: FloatArray, gamma: float, n_groups: int, weight: FloatArray) -> FloatArray:
    """Return the columns 1, sum_t gamma^t m_t (W_t - 1), and sum_t gamma^t (W_t - 1) over groups of steps of equal mass."""
    n, H = W.shape
    mass = [gamma**t * sum(weight[i] * abs(r[i, t]) for i in range(n)) for t in range(H)]
    m = [sum(weight * W[:, t] * r[:, t]) / sum(weight * W[:, t]) for t in range(H)]
    columns = [np.ones(n), sum((gamma**t * m[t] * (W[:, t] - 1) for t in range(H)), np.zeros(n))]
    for group in range(n_groups):
        column = np.zeros(n)
        for t in range(H):
            middle = (sum(mass[:t]) + mass[t] / 2) / sum(mass)
            if mass[t] > 0 and group <= n_groups * middle < group + 1:
                column += gamma**t * (W[:, t] - 1)
        columns.append(column)
    return np.column_stack(columns)


def directions(D: FloatArray, weight: FloatArray) -> FloatArray:
    """Return the ones and the principal components of the standardised columns that are no noise."""
    n, Z, weight = len(D), D[:, 1:], weight / weight.mean()
    means = weight @ Z / n
    spread = np.sqrt(weight @ (Z - means) ** 2 / n)
    Z, means, spread = Z[:, spread > 1e-9], means[spread > 1e-9], spread[spread > 1e-9]
    standard = (Z - means) / spread
    eigenvalues, vectors = np.linalg.eigh(standard.T @ (weight[:, None] * standard))
    kept = vectors[:, eigenvalues > min(9 / n, 0.25) * eigenvalues.max(initial=0.0)]
    return np.column_stack([np.ones(n), (Z / spread) @ kept])


def intercept(x: FloatArray, columns: FloatArray, weight: FloatArray) -> float:
    return float(np.linalg.solve(columns.T @ (weight[:, None] * columns), columns.T @ (weight * x))[0])


def oracle(case: Case, n_groups: int, gamma: float, weight: FloatArray) -> float:
    W, r = padded(case)
    x = np.array([sum(gamma**t * W[i, t] * r[i, t] for t in range(W.shape[1])) for i in range(len(W))])
    return intercept(x, directions(design(W, r, gamma, n_groups, weight), weight), weight)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n_groups", [0, 1, 2])
def test_value_is_the_intercept_of_least_squares(case: Case, n_groups: int) -> None:
    n = case.log.n_episodes
    groups = min(n_groups, n // 20 - 1)
    for gamma in (0.0, 0.9, 1.0):
        expected = oracle(case, groups, gamma, np.ones(n))
        assert fit(case, n_groups, gamma).value == pytest.approx(expected, rel=1e-9, abs=1e-11)
    weight = np.random.default_rng(0).exponential(size=n)
    weight[::7] = 0.0
    assert fit(case, n_groups, 0.9, weight).value == pytest.approx(oracle(case, groups, 0.9, weight), rel=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n_groups", [0, 2])
def test_influence_is_the_jackknife_with_the_variates_given(case: Case, n_groups: int) -> None:
    (W, r), n = padded(case), case.log.n_episodes
    x = (0.9 ** np.arange(W.shape[1]) * W * r).sum(axis=1)
    D = directions(design(W, r, 0.9, min(n_groups, n // 20 - 1), np.ones(n)), np.ones(n))
    psi = influence_of(fit(case, n_groups))
    numerical = jackknife(lambda w: intercept(x, D, w), n)
    np.testing.assert_allclose(psi, numerical, rtol=1e-5, atol=1e-6 * np.abs(psi).max())


def test_what_the_given_variates_leave_out_of_psi_vanishes() -> None:
    """With m_t and the groups refitted the jackknife differs by a term of order 1 / sqrt(n) only."""
    problem, step = Graph(4, behavior=0.6, target=0.4), 1e-3
    policy, gaps = TabularPolicy(problem.target), {}
    for n in (100, 3200):
        sizes = []
        for seed in range(8):
            log = problem.sample(n, random_state=seed)
            psi = influence_of(ControlVariateIS(gamma=0.98).fit(log, policy).estimate())
            for i in range(0, n, n // 8):
                w = np.ones(n)
                w[i] += step
                up = ControlVariateIS(gamma=0.98).fit(log, policy, w).estimate().value
                w[i] -= 2 * step
                down = ControlVariateIS(gamma=0.98).fit(log, policy, w).estimate().value
                sizes.append(abs(n * (up - down) / (2 * step) - psi[i]) / np.abs(psi).mean())
        gaps[n] = float(np.mean(sizes))
    assert gaps[100] < 0.2
    assert gaps[3200] < 0.35 * gaps[100]


def test_integer_weights_repeat_episodes() -> None:
    case = random_case(7, n=60, ends=("terminal", "truncated"))
    counts = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], 20))
    repeated = Case(repeated_log(case.log, np.repeat(np.arange(60), counts)), case.b, case.pi)
    weighted, psi = fit(case, 2, weight=counts.astype(float)), influence_of(fit(repeated, 2))
    assert weighted.value == pytest.approx(fit(repeated, 2).value, rel=1e-10)
    total = np.array([psi[np.repeat(np.arange(60), counts) == i].sum() for i in range(60)])
    np.testing.assert_allclose(influence_of(weighted), total, rtol=1e-8, atol=1e-10)


# -------------------------------------------------------------------------------- exact variances


@pytest.mark.parametrize("problem", [ModelFail(), Graph(2), Graph(4), ModelWin(horizon=4)], ids=repr)
def test_variance_is_below_both_other_forms_in_the_limit(problem: TabularProblem) -> None:
    """All paths, weighted by their probabilities, are an infinite log: value and variance are exact."""
    every, policy = exact_log(problem, problem.n_steps, "horizon"), TabularPolicy(problem.target)
    times = -(-5000 // len(every.weight))
    log, n = repeated_log(every.log, np.tile(np.arange(len(every.weight)), times)), times * len(every.weight)
    share, gamma, variance = np.tile(every.weight, times) / times, problem.default_gamma, {}
    for estimator in (PerDecisionIS(gamma=gamma), WeightedIS(gamma=gamma), ControlVariateIS(gamma=gamma)):
        estimate = estimator.fit(log, policy, share).estimate()
        assert estimate.value == pytest.approx(problem.value(problem.target), rel=1e-8)
        psi = np.divide(influence_of(estimate), n * share)
        variance[type(estimator).__name__] = float(share @ psi**2)
    assert variance["ControlVariateIS"] <= min(variance.values()) * (1 + 1e-9)
    expected = problem.importance_sampling_moments(problem.target).pdis_variance
    assert variance["PerDecisionIS"] == pytest.approx(expected, rel=1e-8)
    if isinstance(problem, ModelFail):
        assert variance["ControlVariateIS"] < 0.02 * variance["PerDecisionIS"]


@pytest.mark.parametrize(
    ("problem", "n", "gain"), [(ModelFail(), 512, 0.3), (RiverSwim(), 256, 0.75), (Graph(16, behavior=0.6), 512, 0.9)]
)
def test_errors_fall_where_rewards_go_with_the_weights(problem: TabularProblem, n: int, gain: float) -> None:
    target = Graph.policy(0.5) if isinstance(problem, Graph) else problem.target
    truth, policy, gamma = problem.value(target), TabularPolicy(target), problem.default_gamma
    errors: dict[str, list[float]] = {}
    for seed in range(40):
        log = problem.sample(n, random_state=seed)
        for estimator in (PerDecisionIS(gamma=gamma), ControlVariateIS(gamma=gamma)):
            value = estimator.fit(log, policy).estimate().value
            errors.setdefault(type(estimator).__name__, []).append(value - truth)
    rmse = {name: float(np.sqrt(np.mean(np.square(values)))) for name, values in errors.items()}
    assert rmse["ControlVariateIS"] < gain * rmse["PerDecisionIS"]


@pytest.mark.slow
def test_intervals_cover_where_the_verdict_lets_them_pass() -> None:
    """Nominal 95 %; VALID and CAUTION together, at n = 1024."""
    hits: dict[str, list[bool]] = {}
    for problem in (ModelFail(), RiverSwim(), Graph(16, behavior=0.6, target=0.5)):
        policy = TabularPolicy(problem.target)
        for seed in range(100):
            log = problem.sample(1024, random_state=1000 + seed)
            estimate = ControlVariateIS(gamma=problem.default_gamma).fit(log, policy).estimate()
            if estimate.verdict.level < Level.REFUSE:
                hits.setdefault(problem.name, []).append(
                    problem.value(problem.target) in estimate.confidence_interval()
                )
    assert {name: np.mean(values) for name, values in hits.items() if np.mean(values) < 0.88} == {}


# -------------------------------------------------------------------------------- degenerate logs


def test_equal_weights_have_no_variates() -> None:
    case = random_case(12, ends=("terminal", "horizon"))
    returns = [sum(0.9**t * r for t, (_, _, r) in enumerate(episode)) for episode in paths(case.log)]
    estimate = fit(Case(case.log, case.b, case.b))
    plain = PerDecisionIS(gamma=0.9).fit(case.log, TabularPolicy(case.b)).estimate()
    assert estimate.value == pytest.approx(sum(returns) / len(returns), rel=1e-13)
    np.testing.assert_allclose(influence_of(estimate), influence_of(plain), rtol=1e-12)
    assert estimate.diagnostics["n_variates"] == 0
    assert estimate.diagnostics["variance_ratio"] == pytest.approx(1.0)


def test_equal_weights_other_than_one_have_no_variates_either() -> None:
    """The candidate always does what was logged, with probability 1 against 1/2: all weights are 2."""
    b, pi = np.full((1, 2), 0.5), np.array([[1.0, 0.0]])
    log = one_hot_log([0] * 40, [0] * 40, np.arange(40.0), [1] * 40, "terminal", [0] * 40, b)
    estimate = fit(Case(log, b, pi))
    assert estimate.value == pytest.approx(39.0)
    assert estimate.diagnostics["n_variates"] == 0


def test_rewards_that_are_all_zero_give_zero() -> None:
    case = CASES[0]
    estimate = fit(Case(case.log.replace(rewards=np.zeros_like(case.log.rewards)), case.b, case.pi))
    assert estimate.value == 0.0
    assert not influence_of(estimate).any()
    assert estimate.verdict.level > Level.VALID


def test_constant_rewards_of_equal_length_are_known_exactly() -> None:
    case = random_case(4, n=90, ends=("horizon",))
    estimate = fit(Case(case.log.replace(rewards=np.ones_like(case.log.rewards)), case.b, case.pi))
    assert estimate.value == pytest.approx(sum(0.9**t for t in range(6)), rel=1e-10)
    assert estimate.std_error < 1e-8


@pytest.mark.parametrize("n", [1, 2, 3, 19, 39, 40])
def test_small_logs_have_fewer_variates(n: int) -> None:
    case = random_case(6, n=n)
    estimate = fit(case, n_groups=3)
    assert math.isfinite(estimate.value)
    assert estimate.diagnostics["n_variates"] <= max(n // 20, 1)
    assert np.isfinite(influence_of(estimate)).all()


def test_weights_too_large_for_floats_are_refused() -> None:
    n, T, b = 8, 2000, np.full((1, 2), 0.5)
    pi = np.array([[0.99, 0.01]])
    a = np.zeros(n * T, int)
    a[:3] = 1
    log = one_hot_log(np.zeros(n * T, int), a, np.ones(n * T), [T] * n, "horizon", [0] * n, b)
    estimate = fit(Case(log, b, pi), gamma=0.999)
    assert not math.isfinite(estimate.value)
    assert estimate.verdict.level is Level.REFUSE


def test_one_episode_that_leads_the_regression_is_named() -> None:
    b, pi = np.full((1, 2), 0.5), np.array([[0.98, 0.02]])
    a = np.ones(240, int)
    a[:4] = 0  # one episode of 60 follows the candidate
    log = one_hot_log(
        np.zeros(240, int), a, np.random.default_rng(0).normal(size=240), [4] * 60, "horizon", [0] * 60, b
    )
    estimate = fit(Case(log, b, pi))
    assert estimate.diagnostics["leverage"] > 0.9
    assert any("leverage of" in reason for reason in estimate.verdict.reasons)


def test_variance_ratio_compares_with_the_plain_form() -> None:
    case = CASES[3]
    mine, plain = fit(case), PerDecisionIS(gamma=0.9).fit(case.log, case.policy).estimate()
    assert mine.diagnostics["variance_ratio"] == pytest.approx((mine.std_error / plain.std_error) ** 2)
    assert mine.scores is None


def test_dependent_variates_are_left_out() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 1))
    x, ones = rng.normal(size=50), np.ones(50)
    alone, thrice = regression_adjusted(x, z, ones), regression_adjusted(x, np.hstack([z, -2.0 * z, 0.0 * z]), ones)
    assert (alone.rank, thrice.rank) == (1, 1)
    assert thrice.value == pytest.approx(alone.value, rel=1e-12)
    np.testing.assert_allclose(thrice.influence, alone.influence, rtol=1e-10, atol=1e-12)
    nothing = regression_adjusted(x, np.empty((50, 0)), ones)
    assert nothing.value == pytest.approx(x.mean())
    assert (nothing.rank, nothing.leverage) == (0, 0.0)


@pytest.mark.parametrize("n_groups", [-1, 0.5, None])
def test_a_bad_number_of_groups_is_named(n_groups: int) -> None:
    with pytest.raises(ValueError, match=r"^ControlVariateIS: `n_groups`"):
        fit(CASES[0], n_groups)
