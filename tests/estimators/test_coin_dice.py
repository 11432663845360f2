"""CoinDICE against a general-purpose optimiser over weights of episodes, Lagrange conditions, and simulated coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from estimator_oracles import final_codes, influence_of, paths
from scipy.optimize import minimize
from scipy.special import softmax
from scipy.stats import chi2

from ope import Estimate, LoggedDataset
from ope.estimators import LSTDQ, CoinDICE, CoinDICEInterval, WeightedIS
from ope.estimators.coin_dice import Divergence, extreme_value, extreme_weights, radius
from ope.inference.checks import IntervalNotAvailable
from ope.policies import TabularPolicy
from ope.problems import RandomMDP, RiverSwim
from ope.testing.logs import make_case
from ope.validation import FloatArray

# Some versions of scipy say this of rounding errors.
pytestmark = pytest.mark.filterwarnings("ignore:Values in x were outside bounds:RuntimeWarning")

KINDS = pytest.mark.parametrize("divergence", ["el", "kl"])


def distance(p: FloatArray, q: FloatArray, divergence: str) -> float:
    """Return 2 n times the divergence of p from q."""
    a, b = (q, p) if divergence == "el" else (p, q)
    return 2 * len(p) * float(np.sum(a * np.log(a / b)))


# -------------------------------------------------------------------------------- the ball


@KINDS
@pytest.mark.parametrize("size", [0.1, 3.84, 30.0])
def test_extreme_weights_against_a_general_purpose_optimiser(divergence: Divergence, size: float) -> None:
    g = np.random.default_rng(0)
    gradient, q = g.normal(size=12), g.dirichlet(np.full(12, 5.0))
    p = extreme_weights(gradient, q, size, divergence)
    assert p.sum() == pytest.approx(1.0)
    assert distance(p, q, divergence) == pytest.approx(size, rel=1e-8)
    found = minimize(
        lambda x: -x @ gradient, q, jac=lambda _: -gradient, method="SLSQP", bounds=[(1e-12, 1.0)] * 12,
        constraints=[
            {"type": "eq", "fun": lambda x: x.sum() - 1.0},
            {"type": "ineq", "fun": lambda x: size - distance(x, q, divergence)},
        ],
        options={"ftol": 1e-13, "maxiter": 500},
    )  # fmt: skip
    assert p @ gradient == pytest.approx(-found.fun, rel=1e-5)


def test_the_interval_of_a_mean_is_owens() -> None:
    """At its ends the empirical likelihood ratio of the mean is the quantile of chi-square, by the dual problem."""
    psi = np.random.default_rng(1).exponential(size=25)
    psi -= psi.mean()
    estimate = estimate_with(psi)
    low, high = estimate.confidence_interval(0.9, CoinDICEInterval())
    assert radius(0.05) == pytest.approx(chi2.ppf(0.9, 1), rel=1e-10)
    for end in (low, high):
        x = estimate.value + psi - end
        # -2 log R(end) = 2 max_t sum log(1 + t x): a concave problem in one variable.
        left, right = (-1 + 1e-9) / x.max(), (-1 + 1e-9) / x.min()
        for _ in range(200):
            middle = 0.5 * (left + right)
            left, right = (middle, right) if np.sum(x / (1 + middle * x)) > 0 else (left, middle)
        assert 2 * np.sum(np.log(1 + left * x)) == pytest.approx(chi2.ppf(0.9, 1), rel=1e-6)


def estimate_with(psi: FloatArray, value: float = 2.0) -> Estimate:
    keys = np.arange(len(psi), dtype=np.uint64)
    return Estimate(value, 0.9, None, keys, "id", "Test", "policy", influence=psi)


@KINDS
def test_the_interval_follows_skewness_and_approaches_the_normal_one(divergence: Divergence) -> None:
    g = np.random.default_rng(2)
    skewed = g.exponential(size=50)
    low, high = estimate_with(skewed - skewed.mean()).confidence_interval(0.95, CoinDICEInterval(divergence))
    assert high - 2.0 > 1.1 * (2.0 - low)
    even = estimate_with((lambda x: x - x.mean())(g.normal(size=20_000)))
    normal, coin = even.confidence_interval(), even.confidence_interval(0.95, CoinDICEInterval(divergence))
    np.testing.assert_allclose([*coin], [*normal], atol=0.02 * even.std_error)


def test_one_sided_bounds_and_what_has_no_influence() -> None:
    psi = np.array([-1.0, 0.0, 1.0])
    estimate, method = estimate_with(psi), CoinDICEInterval()
    assert method.bounds(estimate, 0.0, 0.0) == (-np.inf, np.inf)
    two_sided = estimate.confidence_interval(0.9, method)
    assert estimate.lower_bound(0.95, method) == pytest.approx(two_sided.low)
    assert estimate.upper_bound(0.95, method) == pytest.approx(two_sided.high)
    assert 1.0 < two_sided.low < two_sided.high < 3.0  # never outside the range of psi
    assert estimate.lower_bound(0.5, method) == estimate.value
    assert estimate_with(np.zeros(4)).confidence_interval(0.95, method).high == 2.0
    with pytest.raises(IntervalNotAvailable, match="CoinDICEInterval: this estimate has no influence"):
        method.bounds(Estimate(1.0, 0.9, None, np.arange(3, dtype=np.uint64), "id", "T", "p"), 0.1, 0.1)


def test_any_estimate_with_influence_has_the_interval() -> None:
    case = make_case("terminal")
    estimate = WeightedIS(gamma=0.9).fit(case.log, case.candidate).estimate()
    low, high = estimate.confidence_interval(0.95, CoinDICEInterval())
    assert low < estimate.value < high


# -------------------------------------------------------------------------------- the estimator


@pytest.mark.parametrize("kind", ["terminal", "horizon", "mixed", "continuous"])
def test_the_point_is_that_of_lstdq_and_its_interval_the_default_one(kind: str) -> None:
    case = make_case(kind)
    estimate = CoinDICE(gamma=0.9).fit(case.log, case.candidate).estimate()
    lstdq = LSTDQ(gamma=0.9).fit(case.log, case.candidate).estimate()
    assert estimate.value == pytest.approx(lstdq.value, rel=1e-8)
    np.testing.assert_allclose(influence_of(estimate), influence_of(lstdq), rtol=1e-5, atol=1e-7)
    assert estimate.confidence_interval().method == "adjusted_t"
    assert estimate.diagnostics["coin_low"] < estimate.value < estimate.diagnostics["coin_high"]


@KINDS
def test_the_ends_are_extremes_of_the_value_over_the_ball(divergence: Divergence) -> None:
    problem, n = RandomMDP(2, 2, max_steps=6, reward_std=0.5, random_state=1), 15
    log, pi = problem.sample(n, random_state=3), problem.target
    estimate = CoinDICE(gamma=0.8, divergence=divergence, level=0.9).fit(log, TabularPolicy(pi)).estimate()
    A, b, start = np.zeros((n, 4, 4)), np.zeros((n, 4)), np.zeros((n, 4))
    for i, episode in enumerate(paths(log)):
        codes = [*(s for s, _, _ in episode), final_codes(log)[i]]
        bars = [np.array([pi[s, a] * (z == s) for z in range(2) for a in range(2)]) for s in codes]
        start[i] = bars[0]
        for t, (s, a, r) in enumerate(episode):
            phi = np.eye(4)[2 * s + a]
            A[i] += np.outer(phi, phi - 0.8 * bars[t + 1])
            b[i] += phi * r

    def value(p: FloatArray) -> float:
        return float((p @ start) @ np.linalg.solve(np.tensordot(p, A, 1), p @ b))

    q, size = np.full(n, 1 / n), radius(0.05)
    assert value(q) == pytest.approx(estimate.value, rel=1e-8)
    for sign, name in ((1.0, "coin_high"), (-1.0, "coin_low")):
        found = minimize(  # over logits
            lambda x, sign=sign: -sign * value(softmax(x)), np.zeros(n), method="SLSQP",
            constraints=[{"type": "ineq", "fun": lambda x: size - distance(softmax(x), q, divergence)}],
            options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        assert found.success
        width = estimate.diagnostics["coin_high"] - estimate.diagnostics["coin_low"]
        assert estimate.diagnostics[name] == pytest.approx(-sign * found.fun, abs=2e-4 * width)


def test_weights_of_episodes_are_the_centre_of_the_ball() -> None:
    case = make_case("terminal", n_episodes=40)
    weight = np.r_[np.zeros(10), np.ones(30)]
    found = CoinDICE(gamma=0.9).fit(case.log, case.candidate, weight).estimate()
    alone = CoinDICE(gamma=0.9).fit(case.log.select(np.arange(10, 40)), case.candidate).estimate()
    assert found.value == pytest.approx(alone.value, rel=1e-9)
    inner = found.diagnostics["coin_high"] - found.diagnostics["coin_low"]
    assert inner > 0
    # The ball grows with the number of episodes that count, not with those of weight 0.
    assert inner == pytest.approx(alone.diagnostics["coin_high"] - alone.diagnostics["coin_low"], rel=1e-4)


def test_small_logs_and_searches_that_do_not_settle_are_told() -> None:
    case = make_case("terminal", n_episodes=30)
    reasons = CoinDICE(gamma=0.9).fit(case.log, case.candidate).estimate().verdict.reasons
    assert any("covers the value less often than it says on 30 episodes" in reason for reason in reasons)
    flips = iter([1.0, -1.0] * 500)
    search = extreme_value(
        lambda p: (float(p[0]), np.array([next(flips), 0.0])), np.array([0.5, 0.5]), 1.0, 1.0, "el"
    )  # a gradient that lies about the value
    assert not search.converged


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"divergence": "chi2"}, ValueError, "`divergence` must be one of"),
        ({"level": 1.0}, ValueError, r"`level` must be a number in \(0, 1\)"),
        ({"level": "95"}, TypeError, r"`level` must be a number in \(0, 1\)"),
        ({"features": "poly"}, ValueError, "`features` must be"),
    ],
)
def test_bad_parameters(params: dict[str, Any], error: type[Exception], words: str) -> None:
    case = make_case("terminal")
    with pytest.raises(error, match=rf"CoinDICE: {words}"):
        CoinDICE(**{"gamma": 0.9, **params}).fit(case.log, case.candidate)


def test_a_bad_divergence_of_the_interval() -> None:
    with pytest.raises(ValueError, match="CoinDICEInterval: `divergence` must be one of"):
        CoinDICEInterval("hellinger")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["river", "random"])
def test_coverage(name: str) -> None:
    """Over 200 logs of 64 episodes, of a nominal 95 %: at least 88 %, and no more than 4 points below the normal interval."""
    problem = RiverSwim() if name == "river" else RandomMDP(4, 2, terminals=1, reward_std=0.5, random_state=3)
    gamma, policy = (0.95 if name == "river" else 0.9), TabularPolicy(problem.target)
    truth, hits = problem.value(problem.target, gamma), np.zeros(3)
    for seed in range(200):
        log: LoggedDataset = problem.sample(64, random_state=1000 + seed)
        estimate = CoinDICE(gamma=gamma).fit(log, policy).estimate()
        ball = (estimate.diagnostics["coin_low"], estimate.diagnostics["coin_high"])
        intervals = (estimate.confidence_interval(), estimate.confidence_interval(method=CoinDICEInterval()), ball)
        hits += [low <= truth <= high for low, high in intervals]
    normal, linear, exact = hits / 200
    assert min(linear, exact) >= max(0.88, normal - 0.04)
