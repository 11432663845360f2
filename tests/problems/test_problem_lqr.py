"""ScalarLQR: published values, an independent recursion of moments, rollouts, and policies found by probing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ope import ragged
from ope.policy import Policy, RandomState, generator
from ope.problems import LinearGaussian, ScalarLQR
from ope.schema import End
from ope.validation import FloatArray


def moment_recursion(problem: ScalarLQR, policy: LinearGaussian, gamma: float, n_steps: int) -> float:
    """Propagate mean and second moment of the state, and add up the expected costs."""
    mean, square, total = problem.initial_mean, problem.initial_mean**2 + problem.initial_std**2, 0.0
    k, std, m = policy
    A, d = problem.a + problem.b * k, problem.b * m
    for t in range(n_steps):
        action_square = k**2 * square + 2 * k * m * mean + m**2 + std**2
        total -= gamma**t * (problem.q * square + problem.c * action_square)
        square = A**2 * square + 2 * A * d * mean + d**2 + problem.b**2 * std**2 + problem.noise_std**2
        mean = A * mean + d
    return total


@pytest.mark.parametrize(
    ("gain", "published"), [(-0.3, -5.462013422819), (-0.5, -4.353627062017), (-0.7, -3.768054727241)]
)
def test_published_values(gain: float, published: float) -> None:
    policy = LinearGaussian(gain=gain, std=0.3)
    value = ScalarLQR().value(policy, gamma=0.95)
    assert value == pytest.approx(published, abs=1e-11)
    assert value == pytest.approx(moment_recursion(ScalarLQR(), policy, 0.95, 900), abs=1e-11)


@pytest.mark.parametrize(
    "policy", [LinearGaussian(-0.4, 0.2, 0.7), LinearGaussian(-3.9, 0.1, -1.0), LinearGaussian(0.21, 0.0)]
)
def test_values_with_offsets_and_unstable_dynamics(policy: LinearGaussian) -> None:
    problem = ScalarLQR(initial_mean=-0.8, initial_std=1.5, noise_std=0.6, q=0.4, c=1.3)
    expected = moment_recursion(problem, policy, 0.8, 2000)
    assert problem.value(policy, gamma=0.8) == pytest.approx(expected, rel=1e-11)


def test_value_function_obeys_the_bellman_equation() -> None:
    problem, policy, gamma = ScalarLQR(), LinearGaussian(-0.6, 0.25, 0.3), 0.9
    x, y, z = problem.value_function(policy, gamma)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    for s in (-1.3, 0.0, 2.0):
        total = 0.0
        for e, p in zip(nodes, weights, strict=True):
            u = policy.gain * s + policy.offset + policy.std * e
            for w, chance in zip(nodes, weights, strict=True):
                after = problem.a * s + problem.b * u + problem.noise_std * w
                total += p * chance * (-(s**2) - 0.1 * u**2 + gamma * (x * after**2 + y * after + z))
        assert total == pytest.approx(x * s**2 + y * s + z, rel=1e-11)


@pytest.mark.parametrize("which", ["behavior", "target"])
def test_long_rollouts(which: str) -> None:
    problem = ScalarLQR(max_steps=300)
    policy = getattr(problem, which)
    log = problem.sample(4000, policy, random_state=1)
    discounted = log.rewards * 0.95**log.timesteps
    totals = ragged.segment_sum(discounted, log.offsets)
    error = abs(totals.mean() - problem.value(policy))
    assert error <= 4 * totals.std() / np.sqrt(len(totals))


def test_log_obeys_dynamics_rewards_and_density() -> None:
    problem = ScalarLQR(max_steps=50)
    log = problem.sample(400, random_state=2)
    assert log.final_states is not None
    assert log.behavior_log_prob is not None
    assert not log.discrete
    assert (log.ends == End.TRUNCATED).all()
    assert log.horizon is None
    s, u = log.states[:, 0], log.actions[:, 0]
    np.testing.assert_allclose(log.rewards, -(s**2) - 0.1 * u**2, rtol=1e-12)
    deviation = (u + 0.5 * s) / 0.3
    density = np.exp(-0.5 * deviation**2) / (0.3 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(np.exp(log.behavior_log_prob), density, rtol=1e-10)
    after = np.hstack([s.reshape(400, 50)[:, 1:], log.final_states]).ravel()
    noise = (after - 0.9 * s - 0.5 * u) / 0.2
    first = (s[log.offsets[:-1]] - 1.0) / 0.5
    for sample in (deviation, noise, first):
        assert abs(sample.mean()) < 4 / np.sqrt(len(sample))
        assert abs((sample**2).mean() - 1) < 4 * np.sqrt(2 / len(sample))
    assert abs((deviation * noise).mean()) < 4 / np.sqrt(len(noise))


def test_importance_weights_average_to_one() -> None:
    problem = ScalarLQR(max_steps=3)
    log = problem.sample(20000, random_state=3)
    assert log.behavior_log_prob is not None
    u, mean = log.actions[:, 0], -0.7 * log.states[:, 0]
    log_pi = -0.5 * ((u - mean) / 0.3) ** 2 - np.log(0.3 * np.sqrt(2 * np.pi))
    weights = np.exp(ragged.segment_sum(log_pi - log.behavior_log_prob, log.offsets))
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(len(weights))


class Noisy(Policy):
    """A Gaussian or Laplace policy around any mean, written without the problem's code."""

    def __init__(self, slope: float, intercept: float, std: float, curve: float = 0.0, laplace: bool = False) -> None:
        self.slope, self.intercept, self.std, self.curve, self.laplace = slope, intercept, std, curve, laplace

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"density", "sample"} if self.std > 0 else {"deterministic"})

    def predict(self, states: npt.ArrayLike) -> npt.NDArray[Any]:
        s = np.asarray(states, dtype=np.float64)
        return self.slope * s + self.intercept + self.curve * s**2

    def log_prob(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        z = (np.asarray(actions) - self.predict(states))[:, 0] / self.std
        if self.laplace:
            return np.asarray(-np.abs(z) - np.log(2 * self.std))
        return np.asarray(-0.5 * z**2 - np.log(self.std) - 0.5 * np.log(2 * np.pi))

    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> npt.NDArray[Any]:
        mean = self.predict(states)
        return mean + self.std * generator(random_state).standard_normal(mean.shape)


def test_policy_objects_have_the_value_of_their_parameters() -> None:
    problem = ScalarLQR()
    assert problem.value(Noisy(-0.5, 0.2, 0.4)) == pytest.approx(
        problem.value(LinearGaussian(-0.5, 0.4, 0.2)), rel=1e-9
    )
    assert problem.value(Noisy(-0.5, 0.2, 0.0)) == pytest.approx(
        problem.value(LinearGaussian(-0.5, 0.0, 0.2)), rel=1e-9
    )
    for other in (Noisy(-0.5, 0.0, 0.3, curve=0.1), Noisy(-0.5, 0.0, 0.3, laplace=True)):
        with pytest.raises(ValueError, match="known only for Gaussian policies"):
            problem.value(other)


def test_policy_objects_act() -> None:
    problem = ScalarLQR(max_steps=20)
    policy = Noisy(-0.5, 0.2, 0.4)
    log = problem.sample(500, policy, random_state=4)
    assert log.behavior_log_prob is not None
    np.testing.assert_allclose(log.behavior_log_prob, policy.log_prob(log.states, log.actions), rtol=1e-12)
    deviation = (log.actions - policy.predict(log.states)) / 0.4
    assert abs((deviation**2).mean() - 1) < 4 * np.sqrt(2 / len(deviation))


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"ScalarLQR: `gamma` and .* must be below 1"):
        ScalarLQR().value(LinearGaussian(-0.5, 0.3), gamma=1.0)
    with pytest.raises(ValueError, match=r"a \+ b gain=1.9"):
        ScalarLQR().value(LinearGaussian(2.0, 0.3))
    with pytest.raises(ValueError, match="std at least 0"):
        ScalarLQR().value(LinearGaussian(-0.5, -0.3))
    with pytest.raises(ValueError, match="positive `std`"):
        ScalarLQR().sample(3, LinearGaussian(-0.5, 0.0))
    with pytest.raises(TypeError, match="must be a Policy or a LinearGaussian"):
        ScalarLQR().value(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`noise_std` must be a finite number"):
        ScalarLQR(noise_std=-1.0)
