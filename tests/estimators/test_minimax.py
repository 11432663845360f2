"""MWL and MQL against each other's identities, kernel double sums by definition, and the infinitesimal jackknife."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dice_oracles import influence_gap
from estimator_oracles import Case, end_goes_on, exact_log, final_codes, influence_of, paths, random_case
from scipy.spatial.distance import pdist
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures

from ope import Estimate, Level
from ope.estimators import LSTDQ, DoublyRobust, MarginalizedIS, MinimaxQLearning, MinimaxWeightLearning
from ope.estimators.minimax_q import mql_coefficients
from ope.estimators.minimax_weight import mwl_coefficients
from ope.policies import TabularPolicy
from ope.problems import RandomMDP
from ope.testing.logs import make_case, sharded
from ope.validation import FloatArray

Minimax = type[MinimaxWeightLearning] | type[MinimaxQLearning]
BOTH = pytest.mark.parametrize("kind", [MinimaxWeightLearning, MinimaxQLearning])


def fit(kind: Minimax, case: Any, weight: FloatArray | None = None, gamma: float = 0.9, **params: Any) -> Estimate:
    policy = case.policy if isinstance(case, Case) else case.candidate
    estimate: Estimate = kind(gamma=gamma, **params).fit(case.log, policy, weight).estimate()
    return estimate


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("log", ["terminal", "horizon", "mixed", "continuous", "continuous_horizon", "deterministic"])
@BOTH
def test_against_its_own_class_the_value_is_that_of_lstdq(kind: Minimax, log: str, stationary: bool) -> None:
    case = make_case(log)
    estimate = fit(kind, case, stationary=stationary)
    lstdq = LSTDQ(gamma=0.9, stationary=stationary).fit(case.log, case.candidate).estimate()
    assert estimate.value == pytest.approx(lstdq.value, rel=1e-8)
    np.testing.assert_allclose(influence_of(estimate), influence_of(lstdq), rtol=1e-5, atol=1e-7)
    assert estimate.diagnostics["ess"] == pytest.approx(lstdq.diagnostics["ess"], rel=1e-6)


def test_the_ratio_is_the_dual_of_lstdq_and_q_its_primal() -> None:
    case, ones = make_case("mixed"), np.ones(61)
    ratio, dual = (
        estimator.fit_ratio(case.log, case.candidate, ones).predict(case.candidate, case.log)
        for estimator in (MinimaxWeightLearning(gamma=0.9), MarginalizedIS(gamma=0.9))
    )
    np.testing.assert_allclose(ratio, dual, rtol=1e-6, atol=1e-8)
    found, q = (
        estimator.fit_q(case.log, case.candidate, ones).predict(case.candidate, case.log)
        for estimator in (MinimaxQLearning(gamma=0.9), LSTDQ(gamma=0.9))
    )
    for part in ("q", "v", "v_final"):
        np.testing.assert_allclose(getattr(found, part), getattr(q, part), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("terminals", [0, 1])
@BOTH
def test_exact_logs_give_the_exact_value_whatever_the_discriminators(kind: Minimax, terminals: int) -> None:
    problem = RandomMDP(2, 2, terminals=terminals, max_steps=4, random_state=3)
    log, policy = exact_log(problem, 4, "truncated"), TabularPolicy(problem.target)
    for discriminator in (None, "kernel", OneHotEncoder()):
        estimator = kind(gamma=0.8, discriminator=discriminator)
        value = estimator.fit(log.log, policy, log.weight).estimate().value
        assert value == pytest.approx(problem.value(problem.target, 0.8), rel=1e-7)


# -------------------------------------------------------------------------------- kernels, by definition


class Pairs:
    """The log as weighted points (state, action): each row's own and next ones, and the starts."""

    def __init__(self, case: Case, gamma: float) -> None:
        S, self.gamma = len(case.pi), gamma
        self.case, self.rows, self.rewards = case, [], []
        bar = {s: [((s, a), float(case.pi[s, a])) for a in range(case.pi.shape[1])] for s in range(S)}
        episodes = paths(case.log)
        for i, episode in enumerate(episodes):
            for t, (s, a, r) in enumerate(episode):
                last = t + 1 == len(episode)
                follows = end_goes_on(case.log, i, True) if last else True
                code = final_codes(case.log)[i] if last else episode[t + 1][0]
                self.rows.append(((s, a), bar[code] if follows else []))
                self.rewards.append(r)
        n = len(episodes)
        self.starts = [(pair, w / n) for episode in episodes for pair, w in bar[episode[0][0]]]

    def kernel(self, x: tuple[int, int], y: tuple[int, int]) -> float:
        """A Gaussian kernel of standardised one-hot states with the median distance as width, times equal actions."""
        return float(self.table[x[0], y[0]]) if x[1] == y[1] else 0.0

    @property
    def table(self) -> FloatArray:
        scaled = (np.eye(len(self.case.pi)) - self.case.log.states.mean(axis=0)) / self.case.log.states.std(axis=0)
        squares = ((scaled[:, None] - scaled[None]) ** 2).sum(axis=2)
        return np.asarray(np.exp(-0.5 * squares / np.median(pdist(scaled) ** 2)))

    def inner(self, x: list[Any], y: list[Any]) -> float:
        """Return the kernel's inner product of two weighted sets of points."""
        return float(sum(a * b * self.kernel(p, q) for p, a in x for q, b in y))

    def flow(self, row: int) -> list[Any]:
        """Return phi(s, a) - gamma E phi(s', a') as weighted points."""
        own, onward = self.rows[row]
        return [(own, 1.0), *((pair, -self.gamma * w) for pair, w in onward)]


def test_mwl_minimises_the_double_sum_of_the_kernel() -> None:
    """L(w)^2 = sum_ij w_i w_j <x_i, x_j> / N^2 - 2 (1 - gamma) sum_i w_i <x_i, x_0> / N, minimised in a class of two ratios."""
    case, gamma = random_case(0, n=6, n_states=3, n_actions=2, longest=3, ends=("terminal", "truncated")), 0.9
    pairs = Pairs(case, gamma)
    x, N = [pairs.flow(row) for row in range(len(pairs.rows))], len(pairs.rows)
    gram = np.array([[pairs.inner(a, b) for b in x] for a in x]) / N**2
    start = (1 - gamma) * np.array([pairs.inner(a, pairs.starts) for a in x]) / N
    # Ratios that depend on the action alone: a constant feature in a block per action.
    basis = np.array([[float(a == k) for k in range(2)] for (_, a), _ in pairs.rows])
    u = np.linalg.solve(basis.T @ gram @ basis, basis.T @ start)
    expected = float((basis @ u) @ np.array(pairs.rewards)) / N / (1 - gamma)
    constant = PolynomialFeatures(degree=0)
    estimate = fit(MinimaxWeightLearning, case, features=constant, discriminator="kernel")
    assert estimate.value == pytest.approx(expected, rel=1e-7)
    left = float(u @ basis.T @ gram @ basis @ u) - 2 * float(u @ basis.T @ start)
    left += (1 - gamma) ** 2 * pairs.inner(pairs.starts, pairs.starts)
    assert estimate.diagnostics["flow_error"] == pytest.approx(np.sqrt(left), rel=1e-6)


def test_mql_minimises_the_double_sum_of_the_kernel() -> None:
    """The mean of eps_i eps_j k(x_i, x_j), minimised over Q functions of the action alone."""
    case, gamma = random_case(1, n=6, n_states=3, n_actions=2, longest=3, ends=("terminal", "truncated")), 0.9
    pairs = Pairs(case, gamma)
    N = len(pairs.rows)
    K = np.array([[pairs.kernel(a, b) for b, _ in pairs.rows] for a, _ in pairs.rows]) / N**2
    slope = np.array([[sum(w * (p[1] == k) for p, w in pairs.flow(i)) for k in range(2)] for i in range(N)])
    r = np.array(pairs.rewards)
    theta = np.linalg.solve(slope.T @ K @ slope, slope.T @ K @ r)
    expected = sum(w * theta[a] for (_, a), w in pairs.starts)
    constant = PolynomialFeatures(degree=0)
    estimate = fit(MinimaxQLearning, case, features=constant, discriminator="kernel")
    assert estimate.value == pytest.approx(float(expected), rel=1e-7)
    left = float((r - slope @ theta) @ K @ (r - slope @ theta))
    assert estimate.diagnostics["bellman_error"] == pytest.approx(np.sqrt(left), rel=1e-6)


def test_the_functions_are_least_squares() -> None:
    g = np.random.default_rng(0)
    moments, start, ridge = g.normal(size=(3, 7)), g.normal(size=7), 0.3
    stacked = np.vstack([moments.T, np.sqrt(ridge) * np.eye(3)])
    expected = np.linalg.lstsq(stacked, np.r_[start, np.zeros(3)], rcond=None)[0]
    np.testing.assert_allclose(mwl_coefficients(moments, start, ridge), expected, rtol=1e-10)
    np.testing.assert_allclose(mql_coefficients(moments.T, start, ridge), expected, rtol=1e-10)


# -------------------------------------------------------------------------------- influence, weights, findings


SETTINGS: list[dict[str, Any]] = [
    {"discriminator": "kernel", "n_components": 12},
    {"ridge": 1e-3},
    {"discriminator": PolynomialFeatures(2), "ridge": 1e-4, "stationary": True},
]


@pytest.mark.parametrize("params", SETTINGS, ids=["kernel", "ridge", "stationary"])
@pytest.mark.parametrize("log", ["mixed", "continuous"])
@BOTH
def test_influence_is_the_infinitesimal_jackknife(kind: Minimax, log: str, params: dict[str, Any]) -> None:
    case = make_case(log, n_episodes=21)
    found = influence_of(fit(kind, case, **params))
    assert found.sum() == pytest.approx(0.0, abs=1e-8 * np.abs(found).sum())
    assert influence_gap(lambda w: fit(kind, case, w, **params).value, found) < 1e-5


@BOTH
def test_blocks_and_weights(kind: Minimax) -> None:
    case = make_case("mixed", n_episodes=40)
    params: dict[str, Any] = {"features": "identity", "discriminator": PolynomialFeatures(2)}
    whole = fit(kind, case, **params)
    parts = kind(gamma=0.9, **params).fit(sharded(case.log), case.candidate).estimate()
    assert parts.value == pytest.approx(whole.value, rel=1e-9)
    np.testing.assert_allclose(influence_of(parts), influence_of(whole), rtol=1e-7, atol=1e-9)
    weight, rest = np.r_[np.zeros(10), np.ones(30)], case.log.select(np.arange(10, 40))
    alone = kind(gamma=0.9, **params).fit(rest, case.candidate).estimate()
    assert fit(kind, case, weight, **params).value == pytest.approx(alone.value, rel=1e-9)


def test_mql_serves_undiscounted_episodes_and_doubly_robust_methods() -> None:
    case = make_case("terminal")
    expected = LSTDQ(gamma=1.0).fit(case.log, case.candidate).estimate()
    assert fit(MinimaxQLearning, case, gamma=1.0).value == pytest.approx(expected.value, rel=1e-8)
    robust, other = (
        DoublyRobust(gamma=0.9, q=q, n_folds=2).fit(case.log, case.candidate).estimate()
        for q in (MinimaxQLearning(), LSTDQ())
    )
    assert robust.value == pytest.approx(other.value, rel=1e-8)
    with pytest.raises(ValueError, match=r"MinimaxWeightLearning.fit: `gamma` must be below 1"):
        fit(MinimaxWeightLearning, case, gamma=1.0)


@BOTH
def test_a_class_that_is_too_poor_is_told_by_its_discriminators(kind: Minimax) -> None:
    """A constant ratio, or Q, cannot be right here: what discriminators make of it differs from what it makes of itself."""
    problem = RandomMDP(4, 2, max_steps=30, random_state=1, concentration=0.2)
    log, policy = problem.sample(400, random_state=0), TabularPolicy(problem.target)
    estimator = kind(gamma=0.9, features=PolynomialFeatures(degree=0), discriminator="kernel")
    estimate = estimator.fit(log, policy).estimate()
    error = "flow_error" if kind is MinimaxWeightLearning else "bellman_error"
    rich = kind(gamma=0.9, discriminator="kernel").fit(log, policy).estimate()
    assert estimate.diagnostics[error] > 100 * max(rich.diagnostics[error], 1e-12)
    assert estimate.verdict.level is not Level.VALID
    assert any("With its own class as discriminator" in reason for reason in estimate.verdict.reasons)


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"discriminator": "rkhs"}, ValueError, "`discriminator` must be None, 'kernel' or a scikit-learn transformer"),
        ({"discriminator": 3}, TypeError, "`discriminator` must be None, 'kernel'"),
        ({"n_components": 0}, ValueError, "`n_components` must be an integer of at least 1"),
        ({"ridge": -1.0}, ValueError, "`ridge` must be a number of at least 0"),
        ({"features": "poly"}, ValueError, "`features` must be"),
        ({"n_samples": 0}, ValueError, "`n_samples` must be an integer"),
        ({"random_state": None}, ValueError, "`random_state` must be an integer"),
    ],
)
@BOTH
def test_bad_parameters(kind: Minimax, params: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=rf"{kind.__name__}: {words}"):
        fit(kind, make_case("terminal"), **params)
