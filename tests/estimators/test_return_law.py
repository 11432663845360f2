"""Distribution of the return: plain loops, exact distributions by enumeration, jackknife, bands, ends and bad parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from estimator_oracles import Case, exact_log, influence_of, jackknife, random_case, repeated_log, sampled
from return_oracles import (
    exact_cdf,
    exact_cvar,
    exact_law,
    exact_quantile,
    exact_variance,
    weights_and_returns,
)

from ope import Comparison, Estimate, Level, LoggedDataset, PolicySelector, Verdict
from ope.estimators import TrajectoryIS, WeightedIS
from ope.inference.weights import fold_of
from ope.policies import TabularPolicy
from ope.problems import ModelWin, RandomMDP
from ope.return_bands import betting_band, dkw_width, spread
from ope.returns import ReturnDistribution, return_distribution
from ope.validation import FloatArray

GAMMA = 0.9
METHODS = ("is", "self_normalized", "doubly_robust")
every_method = pytest.mark.parametrize("method", METHODS)


def _law(case: Case, method: str, **options: Any) -> ReturnDistribution:
    return return_distribution(
        case.log, case.policy, **{"gamma": GAMMA, "n_replicates": 200, "method": method, **options}
    )


def _model_by_loops(case: Case, w: FloatArray, h: FloatArray, omega: FloatArray) -> FloatArray:
    """Return the ridge regression of h on first states from the other folds, solved as stacked least squares."""
    first = np.array([case.log.states[k] for k in case.log.offsets[:-1]])
    mean = sum(o * x for o, x in zip(omega, first, strict=True)) / omega.sum()
    sd = np.sqrt(sum(o * (x - mean) ** 2 for o, x in zip(omega, first, strict=True)) / omega.sum())
    x = np.hstack([np.ones((len(first), 1)), (first - mean) / sd])
    fold, fitted = fold_of(case.log.episode_keys, 5, 0), np.empty(len(h))
    for k in range(5):
        p = np.array([w[j] * omega[j] if fold[j] != k else 0.0 for j in range(len(h))])
        p /= p.sum()
        ridge = np.sqrt((x.shape[1] - 1) * np.sum(p**2)) * np.eye(x.shape[1])[1:]
        rows, goals = np.vstack([np.sqrt(p)[:, None] * x, ridge]), np.append(np.sqrt(p) * h, np.zeros(len(ridge)))
        theta = np.linalg.lstsq(rows, goals, rcond=None)[0]
        fitted[fold == k] = x[fold == k] @ theta
    return fitted


def _expectation(case: Case, method: str, h: Callable[[float], float], omega: FloatArray | None = None) -> float:
    """Return the estimate of E[h(G)] by loops over episodes."""
    w, g = weights_and_returns(case, GAMMA)
    omega = np.ones(len(w)) if omega is None else omega / omega.mean()
    values = np.array([h(x) for x in g])
    if method == "self_normalized":
        return float(sum(o * a * v for o, a, v in zip(omega, w, values, strict=True)) / sum(omega * w))
    m = _model_by_loops(case, w, values, omega) if method == "doubly_robust" else np.zeros(len(w))
    return float(sum(o * (a * (v - f) + f) for o, a, v, f in zip(omega, w, values, m, strict=True)) / len(w))


def _at_most(x: float, g: float) -> float:
    return float(g <= x)


def _shortfall(q: float, g: float) -> float:
    return max(q - g, 0.0)


# -------------------------------------------------------------------- against loops


@every_method
@pytest.mark.parametrize("weighed", [False, True])
def test_everything_is_that_of_plain_loops(method: str, weighed: bool) -> None:
    case = random_case(3, n=40, longest=3)
    omega = np.random.default_rng(0).uniform(0.2, 2.0, 40) if weighed else None
    law = _law(case, method, episode_weight=omega)
    raw = [_expectation(case, method, partial(_at_most, x + 1e-12), omega) for x in law.returns]
    np.testing.assert_allclose(law.cdf, np.clip(np.maximum.accumulate(raw), 0.0, 1.0), atol=1e-10)
    mean = _expectation(case, method, lambda g: g, omega)
    second = _expectation(case, method, lambda g: g * g, omega)
    assert law.mean().value == pytest.approx(mean)
    assert law.variance().value == pytest.approx(second - mean**2)
    assert law.std().value == pytest.approx(math.sqrt(second - mean**2))
    for p in (0.1, 0.5, 0.8):
        reached = [x for x, f in zip(law.returns, np.maximum.accumulate(raw), strict=True) if f >= p]
        assert law.quantile(p) == reached[0]
        q = reached[0]
        shortfall = _expectation(case, method, partial(_shortfall, q), omega)
        assert law.cvar(p).value == pytest.approx(q - shortfall / p)
        assert law.cvar(p).diagnostics["quantile"] == q


@every_method
def test_the_upper_tail_is_the_lower_one_of_losses(method: str) -> None:
    case = random_case(4, n=50, longest=3)
    losses = Case(case.log.replace(rewards=-case.log.rewards), case.b, case.pi)
    ours, theirs = _law(case, method).cvar(0.2, tail="upper"), _law(losses, method).cvar(0.2)
    assert ours.value == pytest.approx(-theirs.value)
    np.testing.assert_allclose(influence_of(ours), -influence_of(theirs))
    assert ours.diagnostics["tail_ess"] == pytest.approx(theirs.diagnostics["tail_ess"])


def test_the_whole_tail_is_the_mean_and_means_are_importance_sampling() -> None:
    case = random_case(5, n=60, ends=("terminal",))
    for method, other in (
        ("is", TrajectoryIS(gamma=GAMMA)),
        ("self_normalized", WeightedIS(gamma=GAMMA, per_decision=False)),
    ):
        law, estimate = _law(case, method), other.fit(case.log, case.policy).estimate()
        assert law.mean().value == pytest.approx(estimate.value)
        np.testing.assert_allclose(influence_of(law.mean()), influence_of(estimate))
        assert law.mean().diagnostics["ess"] == pytest.approx(estimate.diagnostics["ess"])
        assert set(law.mean().verdict.reasons) == set(estimate.verdict.reasons)
    law = _law(case, "self_normalized")
    for tail in ("lower", "upper"):
        assert law.cvar(1.0, tail=tail).value == pytest.approx(law.mean().value)


@every_method
@pytest.mark.parametrize("tail", ["lower", "upper"])
def test_the_whole_tail_is_the_mean_whatever_the_weights_add_up_to(method: str, tail: Any) -> None:
    masses = []
    for seed in range(4):
        case = random_case(seed, n=40)
        law = _law(case, method)
        assert law.evidence is not None
        masses.append(law.evidence.sample.masses().sum())
        found, mean = law.cvar(1, tail=tail), law.mean()
        assert found.value == pytest.approx(mean.value)
        np.testing.assert_allclose(influence_of(found), influence_of(mean), atol=1e-12)
        assert found.diagnostics["quantile"] == (law.returns[-1] if tail == "lower" else law.returns[0])
    if method == "is":
        assert min(masses) < 1.0 < max(masses)


def test_risk_measures_do_not_pass_as_values() -> None:
    case = random_case(3, n=60)
    law = _law(case, "self_normalized")
    value, risk = law.mean(), law.cvar(0.1)
    others = [risk, law.cvar(0.2), law.cvar(0.1, tail="upper"), law.cvar(1.0), law.variance(), law.std()]
    assert value.estimand == "return"
    assert len({value.question, *(one.question for one in others)}) == 7
    for other in others:
        with pytest.raises(ValueError, match="both must answer one question, got estimand 'return' and"):
            value - other
        with pytest.raises(ValueError, match="all `estimates` must be of one log"):
            Comparison({"value": value, "other": other})
    assert (risk - law.cvar(0.1)).value == 0.0
    assert "lower cvar(0.1) of the discounted sum of rewards, gamma 0.9" in risk.summary()
    sound = replace(risk, verdict=Verdict())
    selector = PolicySelector([WeightedIS(gamma=GAMMA)], baseline=sound).fit(case.log, {"one": case.policy})
    assert not selector.deploy_
    assert "'lower_cvar(0.1)': they answer different questions" in str(selector.gates_.loc["one", "reason"])


NUMBERS: dict[str, Callable[[ReturnDistribution], Estimate]] = {
    "mean": lambda law: law.mean(),
    "variance": lambda law: law.variance(),
    "std": lambda law: law.std(),
    "lower": lambda law: law.cvar(0.3),
    "upper": lambda law: law.cvar(0.3, tail="upper"),
}


@pytest.mark.parametrize("method", ["is", "self_normalized"])
@pytest.mark.parametrize("number", NUMBERS)
def test_influence_is_the_jackknife(method: str, number: str) -> None:
    case = random_case(6, n=25, longest=3)

    def value(omega: FloatArray) -> float:
        weight = omega.mean()  # "is" divides by n, the class by the sum of weights: both agree at mean 1
        law = _law(case, method, episode_weight=omega / weight, n_replicates=100)
        return NUMBERS[number](law).value

    psi = influence_of(NUMBERS[number](_law(case, method)))
    assert abs(psi.mean()) < 1e-12 * np.abs(psi).max()
    np.testing.assert_allclose(psi, jackknife(value, 25), rtol=1e-5, atol=1e-5 * np.abs(psi).max())


@pytest.mark.parametrize("number", NUMBERS)
def test_doubly_robust_influence_is_the_jackknife_with_the_model_fixed(number: str) -> None:
    from dataclasses import replace

    from ope import return_sample

    case = random_case(7, n=40, longest=3)
    law = _law(case, "doubly_robust")
    assert law.evidence is not None
    fixed = law.evidence.sample

    def value(omega: FloatArray) -> float:
        sample = replace(fixed, omega=omega / omega.mean())
        if number in ("lower", "upper"):
            sign = 1.0 if number == "lower" else -1.0
            return sign * return_sample.lower_cvar(sample if sign > 0 else sample.mirrored(), 0.3)[0]
        if number == "mean":
            return sample.influence(sample.returns)[0]
        variance = return_sample.variance(sample)[0]
        return variance if number == "variance" else math.sqrt(variance)

    psi = influence_of(NUMBERS[number](law))
    np.testing.assert_allclose(psi, jackknife(value, 40), rtol=1e-5, atol=1e-5 * np.abs(psi).max())


@pytest.mark.parametrize("method", ["is", "self_normalized"])
def test_a_weight_is_a_number_of_replicas(method: str) -> None:
    case = random_case(8, n=12, longest=3)
    count = np.arange(12) % 3
    replicas = Case(repeated_log(case.log, np.repeat(np.arange(12), count)), case.b, case.pi)
    weighed, repeated = _law(case, method, episode_weight=count), _law(replicas, method)
    for number in NUMBERS.values():
        assert number(weighed).value == pytest.approx(number(repeated).value)
    assert weighed.quantile(0.4) == repeated.quantile(0.4)
    at = np.isin(weighed.returns, repeated.returns)
    np.testing.assert_allclose(weighed.cdf[at], repeated.cdf, atol=1e-12)


# -------------------------------------------------------------------- exact distributions


@pytest.mark.parametrize("method", ["is", "self_normalized"])
@pytest.mark.parametrize(
    "problem", [ModelWin(horizon=6), RandomMDP(3, 2, horizon=3, terminals=1, random_state=2)], ids=["win", "random"]
)
def test_exact_logs_give_the_exact_distribution(problem: Any, method: str) -> None:
    log, weight = exact_log(problem, problem.horizon, "horizon")
    case = Case(log, problem.behavior, problem.target)
    truth = exact_law(problem, problem.target, GAMMA)
    law = _law(case, method, episode_weight=weight)
    np.testing.assert_allclose(law.cdf, exact_cdf(truth, law.returns), atol=1e-9)
    np.testing.assert_allclose(
        law.logged_cdf, exact_cdf(exact_law(problem, problem.behavior, GAMMA), law.returns), atol=1e-9
    )
    assert law.mean().value == pytest.approx(problem.value(problem.target, GAMMA))
    assert law.variance().value == pytest.approx(exact_variance(truth), rel=1e-7)
    for share in (0.05, 0.31, 0.9):
        assert law.quantile(share) == pytest.approx(exact_quantile(truth, share), abs=1e-7)
        for tail in ("lower", "upper"):
            exact = exact_cvar(truth, share, tail)
            assert law.cvar(share, tail=tail).value == pytest.approx(exact, abs=1e-7)


def test_model_win_has_the_returns_of_its_coins() -> None:
    """Ten visits of state 0, each worth +-1: the enumeration itself, against a binomial distribution."""
    from scipy.stats import binom

    problem = ModelWin()
    points, mass = exact_law(problem, problem.target, 1.0)
    up = 0.5 + 0.1 * math.tanh(0.5)
    np.testing.assert_allclose(points, np.arange(-10, 11, 2))
    np.testing.assert_allclose(mass, binom.pmf(np.arange(11), 10, up), rtol=1e-10)


# -------------------------------------------------------------------- bands and intervals


def test_without_weights_all_bands_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(2)
    case = _one_step(rng.normal(size=400))
    for method in METHODS:
        law = _law(case, method, n_replicates=4000)
        middle = len(law.cdf) // 2
        assert law.high[middle] - law.cdf[middle] == pytest.approx(1.358 / 20.0, rel=0.06)
    low, high = law.logged_band()
    half = math.sqrt(math.log(40.0) / 800.0)
    np.testing.assert_allclose(high - law.logged_cdf, np.minimum(half, 1.0 - law.logged_cdf))
    np.testing.assert_allclose(low, np.maximum(law.logged_cdf - half, 0.0))
    assert dkw_width(400, 0.95) == pytest.approx(half)


def _one_step(rewards: FloatArray, **options: Any) -> Case:
    n = len(rewards)
    log = LoggedDataset.from_arrays(
        np.ones((n, 1)), np.arange(n) % 2, rewards, lengths=[1] * n, ends="terminal", behavior_prob=[0.5] * n, **options
    )
    return Case(log, np.full((1, 2), 0.5), np.full((1, 2), 0.5))


def test_the_self_normalised_band_is_made_of_what_leaving_out_changes() -> None:
    case = random_case(11, n=30, longest=4)
    law = _law(case, "self_normalized", n_replicates=20_000)
    w, g = weights_and_returns(case, GAMMA)
    changes = np.empty((30, len(law.returns)))
    for i in range(30):
        rest = np.delete(np.arange(30), i)
        left = [w[rest] @ (g[rest] <= x + 1e-12) / w[rest].sum() for x in law.returns]
        changes[i] = law.cdf - left
    walks = np.random.default_rng(5).standard_normal((20_000, 30)) @ changes
    half = float(np.quantile(np.abs(walks).max(axis=1), 0.95))
    middle = int(np.argmin(np.abs(law.cdf - 0.5)))
    assert law.high[middle] - law.cdf[middle] == pytest.approx(half, rel=0.03)


def test_order_statistics_bound_quantiles() -> None:
    """Without weights the inverted test is a binomial one: its ranks are np -+ t sqrt(n p (1 - p))."""
    from scipy.stats import t

    x = np.arange(100.0)
    law = _law(_one_step(x), "self_normalized")
    interval = law.quantile_interval(0.3)
    reach = t.ppf(0.975, 99) * math.sqrt(0.3 * 0.7 / 100)
    assert interval.low == min(v for v in x if (v + 1) / 100 + reach >= 0.3 - 1e-12)
    assert interval.high == min(v for v in x if (v + 1) / 100 - reach >= 0.3)
    assert interval.level == 0.95
    band = law.quantile_interval(0.3, simultaneous=True)
    assert band.low == max(v for v, f in zip(x, law.high, strict=True) if f < 0.3)
    assert band.high == min(v for v, f in zip(x, law.low, strict=True) if f >= 0.3)
    assert law.quantile_interval(0.001).low == -math.inf
    assert law.quantile_interval(0.999).high == math.inf
    known = _law(_one_step(x, reward_range=(-5.0, 200.0)), "self_normalized")
    assert (known.quantile_interval(0.001).low, known.quantile_interval(0.999).high) == pytest.approx((-50.0, 2000.0))


def test_the_betting_band_is_two_bounds_a_point() -> None:
    """Each bound by its own definition: the mixed capital against it is 1 / alpha."""
    rng = np.random.default_rng(4)
    g, w = rng.normal(size=60), rng.exponential(size=60)
    points = np.array([-0.5, 0.5])
    low, high = betting_band(w, g, points, 0.9)
    fractions = [0.01, 0.02, 0.05, *(k / 10 for k in range(1, 10)), 0.9]

    def capital(y: FloatArray, m: float) -> float:
        used = fractions[:-1]
        return float(sum(math.prod(1 + f * (v / m - 1) for v in y) for f in used) / len(used))

    for k, x in enumerate(points):
        assert capital(w * (g <= x), float(low[k])) == pytest.approx(40.0, rel=1e-6)
        assert capital(w * (g > x), 1.0 - float(high[k])) == pytest.approx(40.0, rel=1e-6)
    at = spread((low, high), points, np.array([-1.0, -0.5, 0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(at[0], [0.0, low[0], low[0], low[1], low[1]])
    np.testing.assert_array_equal(at[1], [high[0], high[0], high[1], high[1], 1.0])


def test_the_finite_sample_band_needs_points_known_before() -> None:
    problem = ModelWin(horizon=4)
    case = sampled(problem, 200)
    law = _law(case, "self_normalized", band="finite_sample", gamma=1.0, points=[-2.0, -1.0, 0.0, 1.0])
    truth = exact_cdf(exact_law(problem, problem.target, 1.0), law.returns)
    assert np.all((law.low <= truth) & (truth <= law.high))
    assert law.low[-1] < 1.0
    assert law.high[-1] == 1.0
    assert not any("finite-sample" in reason for reason in law.verdict.reasons)
    with pytest.raises(ValueError, match="`points` must be given for a finite-sample band"):
        _law(random_case(0), "is", band="finite_sample")
    with pytest.raises(ValueError, match="`points` must hold at least one return"):
        _law(case, "is", band="finite_sample", points=[])
    with pytest.raises(ValueError, match="`episode_weight` must be left out"):
        _law(case, "is", band="finite_sample", episode_weight=np.ones(200))


# -------------------------------------------------------------------- ends, verdicts, bad parameters


@pytest.mark.parametrize("ends", ["terminal", "truncated", "horizon"])
@every_method
def test_every_end_has_a_distribution(method: str, ends: str) -> None:
    horizon = 4 if ends == "horizon" else None
    case = random_case(9, n=60, longest=4, ends=(ends,), horizon=horizon)
    law = _law(case, method)
    assert law.truncated_share == pytest.approx(float(ends == "truncated"))
    said = [reason for reason in law.verdict.reasons if "Truncated episodes" in reason]
    assert bool(said) == (ends == "truncated")
    assert set(said) <= set(law.cvar(0.2).verdict.reasons)
    for reason in law.verdict.reasons:
        for number in NUMBERS.values():
            assert reason in number(law).verdict.reasons


def test_the_verdict_of_a_number_is_that_of_the_weights_and_its_own() -> None:
    case = sampled(ModelWin(horizon=20), 64)
    law = _law(case, "self_normalized", gamma=1.0)
    assert law.verdict.level >= Level.CAUTION
    assert any("effective sample" in reason for reason in law.verdict.reasons)
    few = law.cvar(0.02)
    assert any("lower tail" in reason for reason in few.verdict.reasons)
    assert few.confidence_interval().verdict.level == Level.REFUSE
    assert law.quantile_interval(0.5).verdict.level >= law.verdict.level
    frame = law.to_frame()
    assert list(frame.columns) == ["returns", "cdf", "low", "high", "logged_cdf", "verdict"]
    assert set(frame["verdict"]) == {law.verdict.level.name}
    np.testing.assert_array_equal(frame["cdf"], law.cdf)


def test_variance_and_cvar_ask_for_more_effective_episodes_than_the_mean() -> None:
    problem = RandomMDP(4, 2, horizon=3, exploration=0.6, random_state=3)
    few, many = (_law(sampled(problem, n), "self_normalized", gamma=1.0) for n in (160, 1500))
    assert 20.0 < few.ess < 100.0 < many.ess
    assert few.mean().verdict.level == Level.VALID
    for number in (few.variance(), few.std()):
        assert number.verdict.level == Level.CAUTION
        assert any(
            "weights of squared returns leave an effective sample of" in reason for reason in number.verdict.reasons
        )
    assert any("weights of the upper tail leave" in reason for reason in few.cvar(0.2, tail="upper").verdict.reasons)
    for number in (many.variance(), many.std(), many.cvar(0.2), many.cvar(0.2, tail="upper")):
        assert number.verdict.level == Level.VALID


def test_what_importance_sampling_cannot_say_is_said() -> None:
    # Large returns, and weights that add up to .5: moments of unequal masses, and a tail that the log does not reach.
    log = LoggedDataset.from_arrays(
        np.ones((40, 1)), [0, 0, 0, 1] * 10, [9.0, 10.0, 11.0, 10.0] * 10, lengths=[1] * 40, ends="terminal",
        behavior_prob=[0.5] * 40,
    )  # fmt: skip
    policy = TabularPolicy([[0.0, 1.0]])
    law = return_distribution(log, policy, gamma=1.0, method="is")
    assert law.cdf[-1] == pytest.approx(0.5)
    missing = law.cvar(0.8)
    assert math.isnan(missing.value)
    assert missing.verdict.level == Level.REFUSE
    assert any("add up to 0.5" in reason for reason in missing.verdict.reasons)
    assert math.isnan(law.quantile(0.8))
    assert law.quantile_interval(0.8).high == math.inf
    many = return_distribution(log, TabularPolicy([[1.0, 0.0]]), gamma=1.0, method="is")
    assert many.variance().value == pytest.approx(1.5 * (81 + 100 + 121) / 3 - 15.0**2)
    assert any("variance of -" in reason for reason in many.variance().verdict.reasons)
    assert math.isnan(many.std().value)


def test_estimated_propensities_are_named_beside_a_finite_sample_band() -> None:
    case = sampled(ModelWin(horizon=2), 50)
    log = case.log.replace(behavior_source=None) if case.log.behavior_source is None else case.log
    from ope import estimate_behavior

    estimated = estimate_behavior(log.replace(behavior_log_prob=None, behavior_source=None))
    law = _law(Case(estimated, case.b, case.pi), "is", band="finite_sample", points=[-1.0])
    assert any("known propensities" in reason for reason in law.verdict.reasons)


def test_weights_beyond_floats_need_normalising() -> None:
    n, steps = 4, 400
    log = LoggedDataset.from_arrays(
        np.ones((n * steps, 1)), np.zeros(n * steps, int), np.ones(n * steps), lengths=[steps] * n, ends="terminal",
        behavior_prob=[0.1] * (n * steps), action_labels=[0, 1],
    )  # fmt: skip
    policy = TabularPolicy([[1.0, 0.0]])
    assert return_distribution(log, policy, gamma=1.0).mean().value == pytest.approx(steps)
    with pytest.raises(ValueError, match="within the range of floats"):
        return_distribution(log, policy, gamma=1.0, method="is")


def test_a_model_without_anything_to_learn_from_is_no_model() -> None:
    case = _one_step(np.array([1.0, 2.0]))
    law = _law(Case(case.log, case.b, np.array([[1.0, 0.0]])), "doubly_robust")
    # The only episode of positive weight has none to be predicted from; it predicts the other one.
    assert law.mean().value == pytest.approx((2.0 * 1.0 + 1.0) / 2.0)
    single = _law(Case(case.log.select([0]), case.b, case.b), "doubly_robust")
    assert single.mean().value == 1.0


def test_bad_parameters_are_named() -> None:
    case = random_case(1)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"method": "wis"}, "`method` must be one of"),
        ({"band": "dkw"}, "`band` must be one of"),
        ({"episode_weight": np.ones(3)}, "`episode_weight` must have one entry per episode"),
        ({"episode_weight": -np.ones(30)}, "`episode_weight` must be non-negative"),
        ({"level": 1.0}, r"`level` must lie in \(0, 1\)"),
        ({"n_replicates": 3}, "`n_replicates` must be an integer of at least 100"),
        ({"gamma": 2.0}, "`gamma` must be in"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            _law(case, str(options.pop("method", "is")), **options)
    law = _law(case, "is")
    for call, message in (
        (lambda: law.cvar(0.0), r"cvar: `level` must lie in \(0, 1\]"),
        (lambda: law.cvar(0.1, tail="left"), "`tail` must be 'lower' or 'upper'"),  # type: ignore[arg-type]
        (lambda: law.quantile(1.5), r"quantile: `probability` must lie in \[0, 1\]"),
        (lambda: law.quantile_interval(0.0), r"`probability` must lie in \(0, 1\)"),
        (lambda: law.quantile_interval(0.5, 1.0), r"`level` must lie in \(0, 1\)"),
        (lambda: law.quantile_interval(0.5, 0.9, simultaneous=True), "must be that of the band"),
        (lambda: law.logged_band(2.0), r"`level` must lie in \(0, 1\)"),
        (lambda: _law(case, "is", episode_weight=np.arange(30)).logged_band(), "`episode_weight` of 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    one = np.ones(1)
    bare = ReturnDistribution(one, one, one, one, one, 0.95, 3.0, 0.0)
    with pytest.raises(ValueError, match="mean: `evidence` must hold"):
        bare.mean()
