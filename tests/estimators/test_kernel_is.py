"""Kernel-smoothed importance sampling against stochastic twins, plain loops and closed forms of the smoothing bias."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from estimator_oracles import influence_of, jackknife

from ope import End, Estimate, Level, LoggedDataset
from ope.estimators import ImportanceSampling, KernelIS, PerDecisionIS
from ope.estimators.kernel_is import KERNELS, behavior_scale, rule_of_thumb
from ope.policies import FunctionPolicy, GaussianPolicy
from ope.problems import ScalarLQR
from ope.validation import FloatArray

FORMS = [(False, False), (True, False), (False, True), (True, True)]
NAMES = ["IS", "PDIS", "WIS", "WPDIS"]
every_form = pytest.mark.parametrize("form", FORMS, ids=NAMES)


def linear(gain: float) -> FunctionPolicy:
    return FunctionPolicy(predict=lambda states: gain * states)


@cache
def ragged_log(k: int = 1, n: int = 40) -> LoggedDataset:
    """Return episodes of 1 to 4 steps of all ends, Gaussian actions of k dimensions and different spread."""
    g = np.random.default_rng(3)
    kinds = g.choice([End.TERMINAL, End.HORIZON, End.TRUNCATED], size=n)
    lengths = np.where(kinds == End.HORIZON, 4, g.integers(1, 5, size=n))
    rows = int(lengths.sum())
    states, std = g.normal(size=(rows, k)), 0.5 * (1.0 + np.arange(k))
    noise = g.normal(size=(rows, k))
    log_density = (-0.5 * noise**2 - np.log(std) - 0.5 * math.log(2 * math.pi)).sum(axis=1)
    return LoggedDataset.from_arrays(
        states, 0.3 * states + std * noise, g.normal(size=rows) + states[:, 0], lengths=lengths, ends=kinds,
        behavior_log_prob=log_density, continuous=True, final_states=g.normal(size=(n, k)), horizon=4,
    )  # fmt: skip


def fit(log: LoggedDataset, weight: FloatArray | None = None, gain: float = 0.4, **settings: Any) -> Estimate:
    estimate: Estimate = KernelIS(**{"gamma": 0.9, **settings}).fit(log, linear(gain), weight).estimate()
    return estimate


# -------------------------------------------------------------------------------- the stochastic twin, plain loops


@every_form
def test_a_gaussian_kernel_is_importance_sampling_of_the_noisy_policy(form: tuple[bool, bool]) -> None:
    settings: dict[str, Any] = {"per_decision": form[0], "self_normalized": form[1]}
    mine = fit(ragged_log(), bandwidth=0.3, correct_bias=False, **settings)
    twin = GaussianPolicy(mean=[[0.4]], std=0.3)
    theirs = ImportanceSampling(gamma=0.9, **settings).fit(ragged_log(), twin).estimate()
    assert mine.value == pytest.approx(theirs.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(mine), influence_of(theirs), rtol=1e-9, atol=1e-11)
    for key in ("ess", "mean_weight", "truncated_tail"):
        assert mine.diagnostics[key] == pytest.approx(theirs.diagnostics[key], rel=1e-9)


@every_form
def test_the_correction_takes_off_the_step_to_double_variance(form: tuple[bool, bool]) -> None:
    settings: dict[str, Any] = {"per_decision": form[0], "self_normalized": form[1]}
    mine = fit(ragged_log(), bandwidth=0.3, **settings)
    narrow, wide = (
        ImportanceSampling(gamma=0.9, **settings).fit(ragged_log(), GaussianPolicy(mean=[[0.4]], std=std)).estimate()
        for std in (0.3, 0.3 * math.sqrt(2))
    )
    step = wide - narrow
    assert mine.diagnostics["bias"] == pytest.approx(step.value, rel=1e-9)
    assert mine.diagnostics["bias_std_error"] == pytest.approx(step.std_error, rel=1e-9)
    assert mine.value == pytest.approx(2 * narrow.value - wide.value, rel=1e-9)
    expected = 2 * influence_of(narrow) - influence_of(wide)
    np.testing.assert_allclose(influence_of(mine), expected, rtol=1e-8, atol=1e-10)


def oracle(log: LoggedDataset, widths: list[float], kernel: str, form: tuple[bool, bool], weight: Any) -> float:
    """Evaluate the definition at one bandwidth on padded episodes."""
    H, W, r = int(log.lengths.max()), [], []
    assert log.behavior_log_prob is not None
    for low, high in zip(log.offsets[:-1], log.offsets[1:], strict=True):
        w, ws, rs = 1.0, [], []
        for t in range(H):
            row = low + t
            if row < high:
                ratio = 1.0 / math.exp(log.behavior_log_prob[row])
                for j, h in enumerate(widths):
                    u = (log.actions[row, j] - 0.4 * log.states[row, j]) / h
                    gaussian = math.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
                    ratio *= (gaussian if kernel == "gaussian" else 0.75 * max(1 - u * u, 0.0)) / h
                w *= ratio
            ws.append(w)
            rs.append(float(log.rewards[row]) if row < high else 0.0)
        W.append(ws)
        r.append(rs)
    total = 0.0
    for t in range(H):
        column = t if form[0] else H - 1
        top = sum(o * w[column] * x[t] for o, w, x in zip(weight, W, r, strict=True))
        bottom = sum(o * w[column] for o, w in zip(weight, W, strict=True)) if form[1] else sum(weight)
        total += 0.9**t * top / bottom
    return total


@every_form
@pytest.mark.parametrize("kernel", ["gaussian", "epanechnikov"])
@pytest.mark.parametrize("k", [1, 2])
def test_value_and_influence_equal_the_loops(k: int, kernel: str, form: tuple[bool, bool]) -> None:
    log, widths = ragged_log(k), [0.9, 1.7][:k]
    form_of: dict[str, Any] = {"per_decision": form[0], "self_normalized": form[1]}
    settings: dict[str, Any] = {"kernel": kernel, "bandwidth": widths, **form_of}
    wide = [math.sqrt(2) * width for width in widths]

    def value(weight: Any) -> float:
        narrow = oracle(log, widths, kernel, form, weight)
        return 2 * narrow - oracle(log, wide, kernel, form, weight)

    n = log.n_episodes
    corrected, plain = fit(log, **settings), fit(log, correct_bias=False, **settings)
    assert corrected.value == pytest.approx(value([1.0] * n), rel=1e-9)
    assert plain.value == pytest.approx(oracle(log, widths, kernel, form, [1.0] * n), rel=1e-9)
    psi = influence_of(corrected)
    np.testing.assert_allclose(psi, jackknife(value, n), rtol=1e-5, atol=1e-6 * np.abs(psi).max())
    weight = np.random.default_rng(1).exponential(size=n)
    weight[::6] = 0.0
    assert fit(log, weight, **settings).value == pytest.approx(value(weight), rel=1e-9)


def test_one_width_serves_all_dimensions() -> None:
    log = ragged_log(2)
    assert fit(log, bandwidth=0.8).value == fit(log, bandwidth=[0.8, 0.8]).value == fit(log, bandwidth=[0.8]).value
    assert fit(log, bandwidth=0.8).diagnostics["bandwidth"] == 0.8
    assert fit(log, bandwidth=[0.8, 0.9]).diagnostics["bandwidth"] == (0.8, 0.9)


# -------------------------------------------------------------------------------- closed forms of the bias


@cache
def bandit_quadrature() -> tuple[LoggedDataset, FloatArray]:
    """Return one-step episodes on a grid of actions, weighted by a standard normal: exact expectations."""
    a = np.linspace(-9.0, 9.0, 6001)
    density = np.exp(-0.5 * a**2) / math.sqrt(2 * math.pi)
    log = LoggedDataset.from_arrays(
        np.ones((len(a), 1)), a, 1.0 - (a - 0.4) ** 2, lengths=[1] * len(a), ends="terminal", behavior_prob=density
    )
    return log, density


@pytest.mark.parametrize(("kernel", "variance"), [("gaussian", 1.0), ("epanechnikov", 0.2)])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("h", [0.2, 0.5, 0.9])
def test_smoothing_a_quadratic_reward_costs_its_kernel_variance(
    h: float, normalised: bool, kernel: str, variance: float
) -> None:
    """Reward 1 - (a - pi)^2, so that noise of variance v costs v: exactly h^2, or h^2 / 5, and the correction is exact."""
    log, density = bandit_quadrature()
    settings: dict[str, Any] = {"bandwidth": h, "kernel": kernel, "self_normalized": normalised}
    plain = fit(log, density, correct_bias=False, **settings)
    corrected = fit(log, density, **settings)
    assert plain.value == pytest.approx(1.0 - variance * h**2, abs=3e-4)
    assert plain.diagnostics["bias"] == pytest.approx(-variance * h**2, abs=3e-4)
    assert corrected.value == pytest.approx(1.0, abs=5e-4)
    assert KERNELS[kernel].std ** 2 == pytest.approx(variance)


def lqr_value(problem: ScalarLQR, gain: float, std: float, n_steps: int, gamma: float) -> float:
    """Return the value of u = gain s + std e over finitely many steps from the recursion of the second moment."""
    A, S, total = problem.a + problem.b * gain, problem.initial_mean**2 + problem.initial_std**2, 0.0
    for t in range(n_steps):
        total -= gamma**t * (problem.q * S + problem.c * (gain**2 * S + std**2))
        S = A**2 * S + problem.b**2 * std**2 + problem.noise_std**2
    return total


def lqr_log(problem: ScalarLQR, n: int, n_steps: int, seed: int) -> LoggedDataset:
    log = problem.sample(n, random_state=seed)
    return log.replace(horizon=n_steps, ends=np.full(n, End.HORIZON, np.int8))


def test_the_recursion_agrees_with_the_closed_form() -> None:
    assert lqr_value(ScalarLQR(), -0.7, 0.3, 2000, 0.95) == pytest.approx(-3.768054727241, rel=1e-9)


@pytest.mark.parametrize("kernel", ["gaussian", "epanechnikov"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_lqr_with_a_deterministic_candidate(n_steps: int, kernel: str) -> None:
    problem, gain, gamma = ScalarLQR(max_steps=n_steps, c=1.0), -0.6, 0.95
    log, h = lqr_log(problem, 6000, n_steps, seed=4), 0.2 / KERNELS[kernel].std
    exact, noisy = (lqr_value(problem, gain, std, n_steps, gamma) for std in (0.0, 0.2))
    settings: dict[str, Any] = {"gamma": gamma, "gain": gain, "bandwidth": h, "kernel": kernel}
    plain, corrected = fit(log, correct_bias=False, **settings), fit(log, **settings)
    assert abs(plain.value - noisy) < 4 * plain.std_error
    assert abs(plain.diagnostics["bias"] - (noisy - exact)) < 4 * plain.diagnostics["bias_std_error"]
    assert abs(corrected.value - exact) < 4 * corrected.std_error
    assert abs(noisy - exact) > (1 if n_steps == 1 else 3) * plain.std_error


@pytest.mark.parametrize("bandwidth", ["rule", "lepski"])
@pytest.mark.parametrize("kernel", ["gaussian", "epanechnikov"])
def test_chosen_bandwidths_find_the_value(bandwidth: str, kernel: str) -> None:
    problem, policy, gamma = ScalarLQR(max_steps=4, c=1.0), linear(-0.6), 0.95
    exact, errors, hits = lqr_value(problem, -0.6, 0.0, 4, gamma), [], []
    for seed in range(12):
        log = lqr_log(problem, 1000, 4, seed)
        estimator = KernelIS(gamma=gamma, bandwidth=bandwidth, kernel=kernel)  # type: ignore[arg-type]
        estimate = estimator.fit(log, policy).estimate()
        errors.append(estimate.value - exact)
        hits.append(exact in estimate.confidence_interval(0.99))
        assert 0 < estimate.diagnostics["bandwidth"] * KERNELS[kernel].std < 0.3
    noise = lqr_value(problem, -0.6, 0.3, 4, gamma) - exact
    assert math.sqrt(np.mean(np.square(errors))) < 0.5 * abs(noise)
    assert sum(hits) >= 10


@pytest.mark.slow
def test_intervals_cover_the_value_of_the_deterministic_candidate() -> None:
    """Nominal 95 %, for candidates near the logged policy, with the corrected value and with the widened interval."""
    covered: dict[tuple[int, bool], list[bool]] = {}
    for n_steps in (1, 3, 8):
        problem = ScalarLQR(max_steps=n_steps, c=1.0)
        exact = lqr_value(problem, -0.55, 0.0, n_steps, 0.95)
        for seed in range(150):
            log = lqr_log(problem, 400, n_steps, seed)
            for correct in (True, False):
                interval = fit(log, gamma=0.95, gain=-0.55, correct_bias=correct).confidence_interval()
                covered.setdefault((n_steps, correct), []).append(exact in interval)
    rates = {key: float(np.mean(hits)) for key, hits in covered.items()}
    assert min(rates.values()) > 0.88, rates


# -------------------------------------------------------------------------------- bandwidths


def test_the_spread_of_the_behaviour_is_known_from_its_densities() -> None:
    """Whatever the candidate, and in every dimension."""
    g = np.random.default_rng(0)
    std, noise = np.array([0.3, 2.0]), g.normal(size=(20_000, 2))
    log_density = (-0.5 * noise**2 - np.log(std) - 0.5 * math.log(2 * math.pi)).sum(axis=1)
    for shift in (0.0, 5.0):
        np.testing.assert_allclose(behavior_scale(std * noise + shift, log_density, np.ones(20_000)), std, rtol=0.02)
    row_weight = np.repeat([0.0, 3.0], 10_000)
    second_half = behavior_scale((std * noise)[10_000:], log_density[10_000:], np.ones(10_000))
    np.testing.assert_allclose(behavior_scale(std * noise, log_density, row_weight), second_half, rtol=1e-12)


def test_the_rule_balances_orders() -> None:
    assert rule_of_thumb(1000, 1, 2) == pytest.approx(1000 ** (-1 / 5))
    assert rule_of_thumb(1000, 6, 4) == pytest.approx(1000 ** (-1 / 14))
    assert rule_of_thumb(2, 50, 4) == 0.75
    log = lqr_log(ScalarLQR(max_steps=3), 1000, 3, 0)
    scale = 0.3  # of the logged policy
    for correct, exponent in ((True, -1 / 11), (False, -1 / 7)):
        found = fit(log, gain=-0.7, correct_bias=correct).diagnostics["bandwidth"]
        assert found == pytest.approx(scale * 1000**exponent, rel=0.05)
    wide = fit(log, gain=-0.7, kernel="epanechnikov").diagnostics["bandwidth"]
    assert wide == pytest.approx(math.sqrt(5) * fit(log, gain=-0.7).diagnostics["bandwidth"], rel=1e-5)


def test_a_lepski_bandwidth_is_one_of_the_fixed_ones() -> None:
    log = lqr_log(ScalarLQR(max_steps=3, c=1.0), 500, 3, 1)
    for correct in (True, False):
        chosen = fit(log, gain=-0.6, bandwidth="lepski", correct_bias=correct)
        same = fit(log, gain=-0.6, bandwidth=chosen.diagnostics["bandwidth"], correct_bias=correct)
        assert chosen.value == pytest.approx(same.value, rel=1e-4)
        assert "was chosen" in chosen.diagnostics["choice"]


def test_a_wide_kernel_that_is_contradicted_is_not_chosen() -> None:
    """A reward with a bump at the candidate's action, narrower than the logged spread."""
    g = np.random.default_rng(0)
    a = g.normal(size=4000)
    log = LoggedDataset.from_arrays(
        np.zeros((4000, 1)), a, np.exp(-0.5 * (a / 0.15) ** 2), lengths=[1] * 4000, ends="terminal",
        behavior_prob=np.exp(-0.5 * a**2) / math.sqrt(2 * math.pi),
    )  # fmt: skip
    estimate = fit(log, bandwidth="lepski")
    assert estimate.diagnostics["bandwidth"] < 0.3
    assert estimate.value == pytest.approx(1.0, abs=0.3)
    assert "more than the" in estimate.diagnostics["choice"]
    assert estimate.verdict.level is Level.CAUTION
    assert any("where noise and bias balance" in reason for reason in estimate.verdict.reasons)


# -------------------------------------------------------------------------------- verdicts and refusals


def test_a_corrected_bias_that_is_large_is_a_caution() -> None:
    log = lqr_log(ScalarLQR(max_steps=3, c=1.0), 4000, 3, 0)
    estimate = fit(log, gain=-0.6, bandwidth=0.25)
    assert abs(estimate.diagnostics["bias"]) > estimate.std_error
    assert estimate.widening == 0.0
    assert estimate.verdict.level is Level.CAUTION
    assert any("This was subtracted" in reason for reason in estimate.verdict.reasons)


def test_an_uncorrected_bias_widens_the_interval() -> None:
    log = lqr_log(ScalarLQR(max_steps=3, c=1.0), 4000, 3, 0)
    estimate = fit(log, gain=-0.6, bandwidth=0.25, correct_bias=False)
    assert estimate.widening == pytest.approx(abs(estimate.diagnostics["bias"]))
    assert estimate.verdict.level is Level.CAUTION
    assert any("the interval is widened by it" in reason for reason in estimate.verdict.reasons)
    low, high = estimate.confidence_interval()
    assert high - low > 2 * estimate.widening


def test_a_small_bias_is_no_finding() -> None:
    """Rewards that do not depend on the action have no smoothing bias."""
    g = np.random.default_rng(1)
    a = g.normal(size=2000)
    log = LoggedDataset.from_arrays(
        np.zeros((2000, 1)), a, g.normal(size=2000), lengths=[1] * 2000, ends="terminal",
        behavior_prob=np.exp(-0.5 * a**2) / math.sqrt(2 * math.pi),
    )  # fmt: skip
    estimate = fit(log, bandwidth=0.5)
    assert estimate.verdict.level is Level.VALID
    assert estimate.scores is None


def test_candidates_with_a_density_are_sent_elsewhere() -> None:
    with pytest.raises(
        TypeError, match=r"KernelIS requires \['deterministic'\]; estimators that work with it: .*ImportanceSampling"
    ):
        KernelIS(gamma=0.9).fit(ragged_log(), GaussianPolicy(mean=[[0.4]], std=0.3))


def test_deterministic_candidates_are_sent_here_by_others() -> None:
    with pytest.raises(TypeError, match=r"estimators that work with it: .*KernelIS"):
        PerDecisionIS(gamma=0.9).fit(ragged_log(), linear(0.4))


def discrete_log() -> LoggedDataset:
    return LoggedDataset.from_arrays(
        np.ones((4, 1)), [0, 1, 0, 1], np.ones(4), lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    )


def test_discrete_actions_are_refused() -> None:
    policy = FunctionPolicy(predict=lambda states: np.zeros(len(states), int), action_labels=[0, 1])
    with pytest.raises(ValueError, match=r"^KernelIS.fit: `data` must have continuous actions"):
        KernelIS(gamma=0.9).fit(discrete_log(), policy)
    assert not KernelIS._class_accepts(policy, discrete=True)
    assert KernelIS._class_accepts(linear(1.0), discrete=False)


def test_actions_of_another_dimension_are_refused() -> None:
    flat = FunctionPolicy(predict=lambda states: states[:, 0])
    with pytest.raises(ValueError, match="actions must have the shape of the logged ones"):
        KernelIS(gamma=0.9).fit(ragged_log(2), flat)


def test_no_spread_leaves_no_bandwidth_to_choose() -> None:
    log = ragged_log()
    silent = log.replace(actions=0.4 * log.states)
    with pytest.raises(ValueError, match="pass bandwidth="):
        fit(silent)
    assert math.isfinite(fit(silent, bandwidth=0.5).value)


def test_a_kernel_that_reaches_no_episode_has_no_value() -> None:
    estimate = fit(ragged_log(), gain=50.0, kernel="epanechnikov", bandwidth=0.01)
    assert math.isnan(estimate.value)
    assert estimate.verdict.level is Level.REFUSE


@pytest.mark.parametrize(
    ("settings", "error", "fragment"),
    [
        ({"bandwidth": 0.0}, ValueError, "`bandwidth`"),
        ({"bandwidth": "auto"}, ValueError, "`bandwidth`"),
        ({"bandwidth": [0.5, -1.0]}, ValueError, "`bandwidth`"),
        ({"bandwidth": None}, TypeError, "`bandwidth`"),
        ({"bandwidth": [0.5, 1.0]}, ValueError, "`bandwidth` must be one width or one for each of the 1"),
        ({"kernel": "box"}, ValueError, "`kernel`"),
    ],
)
def test_bad_parameters_are_named(settings: dict[str, Any], error: type[Exception], fragment: str) -> None:
    with pytest.raises(error, match=f"^KernelIS: {fragment}"):
        fit(ragged_log(), **settings)
