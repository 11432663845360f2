"""ScalarLQR: linear dynamics, quadratic cost, Gaussian policies; continuous and still exact."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

from ope.policy import Policy
from ope.problems.base import Actor, Array, Problem
from ope.problems.checks import finite_number
from ope.validation import BoolArray, FloatArray

LOG_SQRT_2PI = 0.5 * np.log(2.0 * np.pi)
PROBES = np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
PROBE_TOLERANCE = 1e-6


class LinearGaussian(NamedTuple):
    """The policy u ~ Normal(gain s + offset, std^2).

    Parameters
    ----------
    gain : float
    std : float
        At least 0; positive for whoever acts in a log.
    offset : float

    Examples
    --------
    >>> LinearGaussian(gain=-0.5, std=0.3)
    LinearGaussian(gain=-0.5, std=0.3, offset=0.0)
    """

    gain: float
    std: float
    offset: float = 0.0


BEHAVIOR = LinearGaussian(gain=-0.5, std=0.3)
TARGET = LinearGaussian(gain=-0.7, std=0.3)


class ScalarLQR(Problem):
    """One continuous state and action: s' = a s + b u + w, reward -(q s^2 + c u^2), without end.

    Policies are a `LinearGaussian`, or a `Policy`: with `sample` and `log_prob` it can act, with a Gaussian density
    whose mean is linear in the state (or deterministic with a linear action) it has an exact value.

    Parameters
    ----------
    a, b : float
        Dynamics.
    q, c : float
        Costs of state and action.
    noise_std : float
        Standard deviation of w.
    initial_mean, initial_std : float
        The first state is Gaussian.
    behavior, target : LinearGaussian
    max_steps : int or None
        See `Problem`.
    default_gamma : float

    Notes
    -----
    With u = k s + m + e, A = a + b k and d = b m, the value function is V(s) = -(P s^2 + 2 p s + v) with

    P = (q + c k^2) / (1 - gamma A^2), p = (c k m + gamma P A d) / (1 - gamma A),
    v = (c (m^2 + std^2) + gamma (P (d^2 + b^2 std^2 + noise_std^2) + 2 p d)) / (1 - gamma).

    It exists where gamma A^2 < 1 and gamma < 1. Features 1, s, u, s^2, s u, u^2 represent Q exactly.

    References
    ----------
    S. J. Bradtke, "Reinforcement learning applied to linear quadratic regulation", Advances in Neural Information
    Processing Systems 5, 1993

    Examples
    --------
    >>> problem = ScalarLQR()
    >>> round(problem.value(problem.target), 10), round(problem.value(problem.behavior), 10)
    (-3.7680547272, -4.353627062)
    """

    n_actions = 1

    def __init__(
        self,
        *,
        a: float = 0.9,
        b: float = 0.5,
        q: float = 1.0,
        c: float = 0.1,
        noise_std: float = 0.2,
        initial_mean: float = 1.0,
        initial_std: float = 0.5,
        behavior: LinearGaussian = BEHAVIOR,
        target: LinearGaussian = TARGET,
        max_steps: int | None = None,
        default_gamma: float = 0.95,
    ) -> None:
        super().__init__(horizon=None, max_steps=max_steps, default_gamma=default_gamma)
        self.a, self.b = finite_number(self.name, "a", a), finite_number(self.name, "b", b)
        self.q, self.c = finite_number(self.name, "q", q, least=0.0), finite_number(self.name, "c", c, least=0.0)
        self.noise_std = finite_number(self.name, "noise_std", noise_std, least=0.0)
        self.initial_mean = finite_number(self.name, "initial_mean", initial_mean)
        self.initial_std = finite_number(self.name, "initial_std", initial_std, least=0.0)
        self.behavior, self.target = self._linear(behavior), self._linear(target)

    @property
    def action_labels(self) -> None:
        """None: actions are continuous."""
        return None

    def value(self, policy: Policy | LinearGaussian, gamma: float | None = None) -> float:
        """Return the exact value of a linear Gaussian policy.

        Parameters
        ----------
        policy : Policy or LinearGaussian
        gamma : float, optional
            Default: `default_gamma`.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If the policy is not linear Gaussian, or its value is not finite.
        """
        square, slope, constant = self.value_function(policy, gamma)
        return square * (self.initial_mean**2 + self.initial_std**2) + slope * self.initial_mean + constant

    def value_function(self, policy: Policy | LinearGaussian, gamma: float | None = None) -> tuple[float, float, float]:
        """Return the coefficients of V(s) = x s^2 + y s + z.

        Parameters
        ----------
        policy : Policy or LinearGaussian
        gamma : float, optional

        Returns
        -------
        x, y, z : float

        Examples
        --------
        >>> x, y, z = ScalarLQR().value_function(LinearGaussian(gain=-0.5, std=0.3))
        >>> round(x, 6), y, round(z, 6)
        (-1.712257, 0.0, -2.213305)
        """
        gamma, (gain, std, offset) = self._gamma(gamma), self._linear(policy)
        A, d = self.a + self.b * gain, self.b * offset
        if gamma >= 1.0 or gamma * A**2 >= 1.0:
            raise ValueError(
                f"{self.name}: `gamma` and gamma (a + b gain)^2 must be below 1, or the value is infinite; got "
                f"gamma={gamma!r} and a + b gain={A!r}; lower gamma, or stabilise the policy."
            )
        P = (self.q + self.c * gain**2) / (1.0 - gamma * A**2)
        p = (self.c * gain * offset + gamma * P * A * d) / (1.0 - gamma * A)
        spread = P * (d**2 + self.b**2 * std**2 + self.noise_std**2) + 2.0 * p * d
        v = (self.c * (offset**2 + std**2) + gamma * spread) / (1.0 - gamma)
        return -P, -2.0 * p if p else 0.0, -v

    def _linear(self, policy: Any) -> LinearGaussian:
        """Return the parameters of a policy, found by probing where it is an object."""
        if isinstance(policy, LinearGaussian):
            if not (np.isfinite(policy).all() and policy.std >= 0):
                raise ValueError(
                    f"{self.name}: a `LinearGaussian` needs finite numbers and std at least 0, got {policy}; correct "
                    "it."
                )
            return policy
        if not isinstance(policy, Policy):
            raise TypeError(f"{self.name}: `policy` must be a Policy or a LinearGaussian, got {policy!r}.")
        mean = _column(policy.predict(PROBES[:, None]))
        offset = float(mean[PROBES == 0.0][0])
        gain = float(mean[PROBES == 1.0][0]) - offset
        linear = bool(np.allclose(mean, gain * PROBES + offset, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE))
        std = 0.0 if "deterministic" in policy.capabilities else _gaussian_std(policy, mean)
        if not linear or std is None:
            raise ValueError(
                f"{self.name}: the exact value is known only for Gaussian policies of constant spread whose mean is "
                f"linear in the state, got {policy!r}; estimate the value of others from `sample`."
            )
        return LinearGaussian(gain, std, offset)

    # ---------------------------------------------------------------- simulation

    def _start(self, n: int, rng: np.random.Generator) -> Array:
        return rng.normal(self.initial_mean, self.initial_std, size=n)

    def _actor(self, policy: Any, rng: np.random.Generator) -> Actor:
        if isinstance(policy, Policy):
            return lambda states: _policy_action(policy, states, rng)
        gain, std, offset = self._linear(policy)
        if std == 0.0:
            raise ValueError(
                f"{self.name}.sample: the policy that acts must have a positive `std`, got 0; a log needs its density."
            )

        def act(states: Array) -> tuple[Array, FloatArray]:
            noise = rng.standard_normal(len(states))
            return gain * states + offset + std * noise, -0.5 * noise**2 - np.log(std) - LOG_SQRT_2PI

        return act

    @override
    def _step(
        self, t: int, states: Array, actions: Array, rng: np.random.Generator
    ) -> tuple[FloatArray, Array, BoolArray | None]:
        next_states = self.a * states + self.b * actions + self.noise_std * rng.standard_normal(len(states))
        return -(self.q * states**2 + self.c * actions**2), next_states, None

    def _observe(self, states: Array) -> FloatArray:
        return np.asarray(states[:, None], dtype=np.float64)


def _policy_action(policy: Policy, states: Array, rng: np.random.Generator) -> tuple[Array, FloatArray]:
    actions = _column(policy.sample(states[:, None], rng))
    return actions, np.asarray(policy.log_prob(states[:, None], actions[:, None]), dtype=np.float64)


def _gaussian_std(policy: Policy, mean: FloatArray) -> float | None:
    """Return the constant standard deviation of a Gaussian density around `mean`, or None if it is something else."""
    peak = policy.log_prob(PROBES[:, None], mean[:, None])
    std = float(np.exp(-peak[0] - LOG_SQRT_2PI))
    for shift in (0.0, -1.0, 2.5):
        found = policy.log_prob(PROBES[:, None], (mean + shift * std)[:, None])
        if not np.allclose(found, peak[0] - 0.5 * shift**2, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE):
            return None
    return std


def _column(actions: Array) -> FloatArray:
    array = np.asarray(actions, dtype=np.float64)
    if array.size != len(array):
        raise ValueError(
            f"ScalarLQR: a policy must have actions of one dimension, got shape {array.shape}; correct it."
        )
    return array.reshape(len(array))
