"""GradientDICE against moments by loops, its own saddle objective, exact ratios of visits and the infinitesimal jackknife."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dice_oracles import influence_gap
from estimator_oracles import Case, end_goes_on, exact_log, final_codes, influence_of, paths, random_case

from ope import Estimate, Level
from ope.estimators import DICE, LSTDQ, GradientDICE
from ope.estimators.gradient_dice import gradient_dice_coefficients
from ope.policies import TabularPolicy
from ope.problems import RandomMDP
from ope.testing.logs import make_case
from ope.validation import FloatArray


def fit(case: Any, weight: FloatArray | None = None, gamma: float = 0.9, **params: Any) -> Estimate:
    policy = case.policy if isinstance(case, Case) else case.candidate
    estimate: Estimate = GradientDICE(gamma=gamma, **params).fit(case.log, policy, weight).estimate()
    return estimate


def one_hot_moments(case: Case, gamma: float, absorbing: bool) -> tuple[FloatArray, ...]:
    """Return A, G, E_D phi, (1 - gamma) E_0 phi, E_D phi r over pairs (and the absorbing state), row by row."""
    S, K = case.pi.shape
    k = S * K + 1
    A, G, m, h, b, total = np.zeros((k, k)), np.zeros((k, k)), np.zeros(k), np.zeros(k), np.zeros(k), 0.0

    def bar(s: int | None) -> FloatArray:
        out = np.zeros(k)
        if s is None:
            out[-1] = 1.0
        else:
            for a in range(K):
                out[a * S + s] = case.pi[s, a]
        return out

    def add(weight: float, here: int, onward: FloatArray, r: float) -> None:
        nonlocal total
        phi = np.eye(k)[here]
        A[:] += weight * np.outer(phi, phi - gamma * onward)
        G[:] += weight * np.outer(phi, phi)
        m[:] += weight * phi
        b[:] += weight * phi * r
        total += weight

    episodes = paths(case.log)
    for i, episode in enumerate(episodes):
        h += (1 - gamma) * bar(episode[0][0]) / len(episodes)
        for t, (s, a, r) in enumerate(episode):
            last = t + 1 == len(episode)
            ended = last and end_goes_on(case.log, i, True) is False
            code = None if ended else (final_codes(case.log)[i] if last else episode[t + 1][0])
            add(1.0, a * S + s, np.zeros(k) if ended and not absorbing else bar(code), r)
            if ended and absorbing:
                add(gamma / (1 - gamma), k - 1, bar(None), 0.0)
    return A / total, G / total, m / total, h, b / total


@pytest.mark.parametrize("norm_penalty", [0.0, 1.0, 25.0])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_value_against_moments_by_loops(norm_penalty: float, ridge: float) -> None:
    case = random_case(0, n=60, ends=("terminal", "truncated"))
    A, G, m, h, b = one_hot_moments(case, 0.9, absorbing=norm_penalty > 0)
    own = np.diag(G) > 0
    cut = np.ix_(own, own)
    u = gradient_dice_coefficients(A[cut], G[cut], m[own], h[own], norm_penalty, ridge)
    estimate = fit(case, norm_penalty=norm_penalty, ridge=ridge)
    assert estimate.value == pytest.approx(float(b[own] @ u) / 0.1, rel=1e-8)
    free = float(b[own] @ np.linalg.solve(A[cut].T, h[own])) / 0.1
    assert estimate.diagnostics["flow_shift"] == pytest.approx(estimate.value - free, rel=1e-6, abs=1e-9)


def test_the_coefficients_are_the_saddle_point_of_the_objective() -> None:
    """min_u max_{f, eta} h'f + u'(-A f) - f'G f / 2 + lam (eta m'u - eta - eta^2 / 2) + ridge u'u / 2, by its definition."""
    case, lam, ridge = random_case(1, n=60, ends=("terminal", "truncated")), 2.0, 0.1
    A, G, m, h, _ = one_hot_moments(case, 0.9, absorbing=True)
    u = gradient_dice_coefficients(A, G, m, h, lam, ridge)
    f, eta = np.asarray(np.linalg.solve(G, h - A.T @ u), dtype=np.float64), float(m @ u) - 1.0

    def objective(u: FloatArray, f: FloatArray, eta: float) -> float:
        flow = h @ f - u @ A @ f - 0.5 * f @ G @ f
        return float(flow + lam * (eta * (m @ u) - eta - 0.5 * eta**2) + 0.5 * ridge * u @ u)

    g, best = np.random.default_rng(0), objective(u, f, eta)
    for _ in range(5):
        step: FloatArray = 1e-4 * g.normal(size=len(u))
        assert objective(u, f + step, eta) <= best
        assert objective(u, f, eta + 1e-4 * g.normal()) <= best
        moved = np.asarray(np.linalg.solve(G, h - A.T @ (u + step)), dtype=np.float64)
        assert objective(u + step, moved, float(m @ (u + step)) - 1.0) >= best


@pytest.mark.parametrize("terminals", [0, 1])
def test_exact_logs_give_the_exact_ratio(terminals: int) -> None:
    problem = RandomMDP(2, 2, terminals=terminals, max_steps=4, random_state=3)
    log, policy = exact_log(problem, 4, "truncated"), TabularPolicy(problem.target)
    estimator = GradientDICE(gamma=0.8)
    value = estimator.fit(log.log, policy, log.weight).estimate().value
    assert value == pytest.approx(problem.value(problem.target, 0.8), rel=1e-8)
    c = estimator.fit_ratio(log.log, policy, log.weight).predict(policy, log.log)
    P = np.einsum("sa,saz->sz", problem.target, problem.process.transitions[:2])[:, :2]
    visits = np.linalg.solve(np.eye(2) - 0.8 * P.T, problem.process.initial[:2])
    logged, share = np.zeros((2, 2)), log.weight / log.weight.sum()
    for w, episode in zip(share, paths(log.log), strict=True):
        for s, a, _ in episode:
            logged[s, a] += w
    expected = [visits[s] * problem.target[s, a] / logged[s, a] for episode in paths(log.log) for s, a, _ in episode]
    np.testing.assert_allclose(c, expected, rtol=1e-8)


@pytest.mark.parametrize("kind", ["terminal", "horizon", "continuous_horizon"])
def test_without_ridge_it_is_gendice_with_a_soft_norm(kind: str) -> None:
    case = make_case(kind, n_episodes=200)
    hard = DICE.gen(gamma=0.9, positive=False).fit(case.log, case.candidate).estimate()
    assert fit(case, norm_penalty=1e9).value == pytest.approx(hard.value, rel=1e-6)
    assert fit(case, norm_penalty=0.0).value == pytest.approx(
        LSTDQ(gamma=0.9).fit(case.log, case.candidate).estimate().value, rel=1e-8
    )


@pytest.mark.parametrize("params", [{}, {"ridge": 0.01}, {"norm_penalty": 0.0, "ridge": 1e-3, "stationary": True}])
@pytest.mark.parametrize("kind", ["mixed", "horizon"])
def test_influence_is_the_infinitesimal_jackknife(kind: str, params: dict[str, Any]) -> None:
    case = make_case(kind, n_episodes=31)
    found = influence_of(fit(case, **params))
    assert found.sum() == pytest.approx(0.0, abs=1e-8 * np.abs(found).sum())
    assert influence_gap(lambda w: fit(case, w, **params).value, found) < 1e-5


def test_a_ridge_that_shrinks_the_ratio_is_told() -> None:
    estimate = fit(make_case("terminal", n_episodes=200), ridge=0.1)
    assert estimate.verdict.level is Level.REFUSE
    assert any("The ridge moves the value by about" in reason for reason in estimate.verdict.reasons)
    assert any("The ratios carry" in reason for reason in estimate.verdict.reasons)


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"ridge": -1.0}, ValueError, "`ridge` must be a number of at least 0"),
        ({"norm_penalty": -1.0}, ValueError, "`norm_penalty` must be a number of at least 0"),
        ({"norm_penalty": "1"}, TypeError, "`norm_penalty` must be a number"),
        ({"terminal": "zero"}, ValueError, "`terminal` must be 'absorbing' with norm_penalty > 0.*norm_penalty=0"),
        ({"terminal": 1}, ValueError, "`terminal` must be"),
        ({"features": 3}, TypeError, "`features` must be"),
    ],
)
def test_bad_parameters(params: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=rf"GradientDICE: {words}"):
        fit(make_case("terminal"), **params)


def test_without_horizon_and_discounting_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"GradientDICE.fit: `gamma` must be below 1"):
        fit(make_case("terminal"), gamma=1.0)
