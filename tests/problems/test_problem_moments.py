"""Exact moments of importance sampling against enumeration of all paths, closed forms and the published numbers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ope.problems import Graph, Hybrid, ModelFail, ModelWin, RandomMDP, TabularProblem
from ope.validation import FloatArray

Moments = dict[str, float]


def enumerate_paths(problem: TabularProblem, b: FloatArray, pi: FloatArray, gamma: float, n_steps: int) -> Moments:
    """Sum over every path of states and actions; noise of the rewards enters through its variance given the path."""
    sums = dict.fromkeys(("w", "ww", "is", "is2", "pdis", "pdis2"), 0.0)
    n_states, noise = len(problem.observation), problem.process.reward_std**2

    def visit(t: int, s: int, p: float, w: float, g: float, x: float, noise_g: float, noise_x: float) -> None:
        if p == 0.0:
            return
        if t == n_steps or problem.process.terminal[s]:
            sums["w"] += p * w
            sums["ww"] += p * w**2
            sums["is"] += p * w * g
            sums["is2"] += p * w**2 * (g**2 + noise_g)
            sums["pdis"] += p * x
            sums["pdis2"] += p * (x**2 + noise_x)
            return
        P, R = problem.process.at(t)
        code = problem.observation[s]
        for a, z in product(range(problem.n_actions), range(n_states)):
            if b[code, a] == 0.0:
                continue
            w_t, discount = w * pi[code, a] / b[code, a], gamma**t
            r = R[s, a, z]
            visit(
                t + 1, z, p * b[code, a] * P[s, a, z], w_t, g + discount * r, x + discount * w_t * r,
                noise_g + discount**2 * noise, noise_x + (discount * w_t) ** 2 * noise,
            )  # fmt: skip

    for s in range(n_states):
        visit(0, s, problem.process.initial[s], 1.0, 0.0, 0.0, 0.0, 0.0)
    return {
        "is_mean": sums["is"],
        "is_variance": sums["is2"] - sums["is"] ** 2,
        "pdis_mean": sums["pdis"],
        "pdis_variance": sums["pdis2"] - sums["pdis"] ** 2,
        "weight_mean": sums["w"],
        "weight_variance": sums["ww"] - sums["w"] ** 2,
    }


TINY = [
    ModelFail(),
    ModelWin(horizon=5),
    Hybrid(horizon=4),
    Graph(2),
    Graph(4),
    RandomMDP(2, 3, 3, random_state=1),
    RandomMDP(2, 2, 4, terminals=1, random_state=2, reward_std=0.7),
    RandomMDP(3, 2, terminals=2, max_steps=3, random_state=3),
]


@pytest.mark.parametrize("problem", TINY, ids=repr)
@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_moments_equal_enumeration(problem: TabularProblem, gamma: float) -> None:
    moments = problem.importance_sampling_moments(problem.target, gamma)
    expected = enumerate_paths(problem, problem.behavior, problem.target, gamma, problem.n_steps)
    for name, value in expected.items():
        assert getattr(moments, name) == pytest.approx(value, rel=1e-10, abs=1e-12), name


def test_support_violation_biases_the_mean() -> None:
    problem = RandomMDP(2, 2, 3, random_state=4)
    b, pi = np.array([[1.0, 0.0], [0.5, 0.5]]), problem.target
    moments = problem.importance_sampling_moments(pi, 0.9, behavior=b)
    expected = enumerate_paths(problem, b, pi, 0.9, 3)
    for name, value in expected.items():
        assert getattr(moments, name) == pytest.approx(value, rel=1e-10), name
    assert moments.weight_mean < 0.99
    assert abs(moments.is_mean - problem.value(pi, 0.9)) > 1e-3


@pytest.mark.parametrize("problem", TINY[:-1], ids=repr)
def test_means_are_the_value(problem: TabularProblem) -> None:
    moments = problem.importance_sampling_moments(problem.target)
    value = problem.value(problem.target)
    assert moments.is_mean == pytest.approx(value, abs=1e-12)
    assert moments.pdis_mean == pytest.approx(value, abs=1e-12)
    assert moments.weight_mean == pytest.approx(1.0, abs=1e-12)


def test_on_policy_variance_of_pure_noise() -> None:
    problem = TabularProblem(
        np.ones((1, 1, 1)), [[2.0]], [1.0], behavior=[[1.0]], target=[[1.0]], horizon=3, reward_std=0.5
    )
    moments = problem.importance_sampling_moments(problem.target, gamma=0.8)
    variance = 0.25 * (1 + 0.8**2 + 0.8**4)
    assert moments.is_variance == pytest.approx(variance)
    assert moments.pdis_variance == pytest.approx(variance)
    assert moments.weight_variance == 0.0


def test_model_fail_variance_is_published() -> None:
    problem = ModelFail()
    moments = problem.importance_sampling_moments(problem.target)
    b, pi = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(2.0))
    second = (pi**2 / b + b**2 / pi) ** 2
    for variance in (moments.is_variance, moments.pdis_variance):
        assert variance == pytest.approx(second - np.tanh(1.0) ** 2, abs=1e-9)
        assert variance / 1024 == pytest.approx(0.041004, abs=5e-7)
        assert variance / 4096 == pytest.approx(0.010251, abs=5e-7)


def test_model_win_variance_is_published() -> None:
    problem = ModelWin()
    moments = problem.importance_sampling_moments(problem.target)
    # Visits of state 0 are independent and alike: with m = E rho^2, c = E rho^2 r, e = E rho r and k = 10 visits.
    b = np.array([1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))])
    pi, up = b[::-1], np.array([0.4, 0.6])
    m, k = float((pi**2 / b).sum()), 10
    c, e = float((pi**2 / b * (2 * up - 1)).sum()), float((pi * (2 * up - 1)).sum())
    mean = k * e
    is_variance = k * m**k + k * (k - 1) * c**2 * m ** (k - 2) - mean**2
    pdis = sum(m ** (j + 1) for j in range(k)) + 2 * sum(m**i * c * e for i, j in product(range(k), repeat=2) if i < j)
    assert m == pytest.approx(2.0862, abs=5e-5)
    assert moments.weight_variance + 1 == pytest.approx(m**10, rel=1e-12)
    assert moments.is_variance == pytest.approx(is_variance, rel=1e-12)
    assert moments.pdis_variance == pytest.approx(pdis - mean**2, rel=1e-12)
    assert moments.is_variance / 1024 == pytest.approx(19.743, abs=5e-4)
    assert moments.pdis_variance / 1024 == pytest.approx(3.0152, abs=5e-5)
    assert moments.is_variance / 4096 == pytest.approx(4.9357, abs=5e-5)
    assert moments.pdis_variance / 4096 == pytest.approx(0.75381, abs=5e-6)


@pytest.mark.parametrize(("horizon", "published"), [(2, "19.4114"), (4, "213.038"), (8, "20663.7"), (16, "1.8625e8")])
def test_graph_variance_is_published(horizon: int, published: str) -> None:
    variance = Graph(horizon).importance_sampling_moments(Graph.policy(0.2)).pdis_variance
    # Steps are independent and alike, except that the last one repeats the reward of the one before.
    rho, b, sign = np.array([0.25, 4.0]), np.array([0.8, 0.2]), np.array([0.5, -0.5])
    m, c, e = float(b @ rho**2), float(b @ (rho**2 * sign)), float(b @ (rho * sign))
    second = sum(0.98 ** (2 * t) * m ** (t + 1) for t in range(horizon))
    for s, t in product(range(horizon), repeat=2):
        if s < t:
            repeats = s == horizon - 2
            second += 2 * 0.98 ** (s + t) * (m ** (s + 1) if repeats else m**s * c * e)
    mean = e * sum(0.98**t for t in range(horizon))
    assert variance == pytest.approx(second - mean**2, rel=1e-11)
    digits = len(published.split("e")[0].replace(".", ""))
    assert float(f"{variance:.{digits - 1}e}") == float(published)
