"""What a continuous policy does in every state, in the unit of the actions: means, densities, draws."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from ope.gaussian import log_density, standard_normal_nodes
from ope.policies.discrete import draw
from ope.validation import FloatArray

# Gauss-Hermite nodes of the mean of a squashed normal: 1e-6 of the range up to a standard deviation of 1.
MEAN_NODES = 64
# A logged action at a bound stays within it, whatever the arithmetic of the bounds did to the last digit.
ROUNDING = 1e-9


class ActionDistribution(abc.ABC):
    """The distribution of continuous actions (n, k) in n states."""

    @abc.abstractmethod
    def mean(self) -> FloatArray:
        """Return the mean action, (n, k)."""

    @abc.abstractmethod
    def log_density(self, actions: FloatArray) -> FloatArray:
        """Return the log density of actions (n, k), (n,)."""

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator) -> FloatArray:
        """Draw an action in every state, (n, k)."""

    def nodes(self) -> tuple[FloatArray, FloatArray] | None:
        """Return nodes (m, n, k) and weights (m,) of a quadrature rule, or None."""
        return None


@dataclass(frozen=True, eq=False)
class Point(ActionDistribution):
    """One action in every state.

    Examples
    --------
    >>> Point(np.array([[0.5]])).sample(np.random.default_rng(0))
    array([[0.5]])
    """

    actions: FloatArray

    def mean(self) -> FloatArray:
        """Return the action."""
        return self.actions

    def log_density(self, actions: FloatArray) -> FloatArray:  # noqa: ARG002
        """Raise: a single action has no density."""
        raise TypeError(
            "a deterministic policy of continuous actions has no density; use estimators that need none "
            "(Q methods, KernelIS), or deterministic=False where the learner has it."
        )

    def sample(self, rng: np.random.Generator) -> FloatArray:  # noqa: ARG002
        """Return the action."""
        return self.actions


@dataclass(frozen=True, eq=False)
class Normal(ActionDistribution):
    """Independent normal actions.

    Examples
    --------
    >>> Normal(np.zeros((1, 2)), np.ones((1, 2))).log_density(np.zeros((1, 2))).round(3)
    array([-1.838])
    """

    location: FloatArray
    std: FloatArray

    def mean(self) -> FloatArray:
        """Return the mean."""
        return self.location

    def log_density(self, actions: FloatArray) -> FloatArray:
        """Return the log density, (n,)."""
        return log_density(actions, self.location, self.std)

    def sample(self, rng: np.random.Generator) -> FloatArray:
        """Draw."""
        return np.asarray(self.location + self.std * rng.standard_normal(self.location.shape))

    def nodes(self) -> tuple[FloatArray, FloatArray]:
        """Return Gauss-Hermite nodes and weights."""
        nodes, weights = standard_normal_nodes(self.location.shape[1])
        return self.location + nodes[:, None, :] * self.std, weights


@dataclass(frozen=True, eq=False)
class MixtureNormal(ActionDistribution):
    """One of C components in every state, drawn by log weights (n, C), and independent normal actions given it.

    Locations and standard deviations have shape (n, C, k).

    Examples
    --------
    >>> two = MixtureNormal(np.log([[0.5, 0.5]]), np.array([[[-1.0], [3.0]]]), np.ones((1, 2, 1)))
    >>> two.mean(), two.log_density(np.array([[1.0]])).round(4)  # -2^2 / 2 - log(2 pi) / 2 in either component
    (array([[1.]]), array([-2.9189]))
    """

    log_weights: FloatArray
    location: FloatArray
    std: FloatArray

    def mean(self) -> FloatArray:
        """Return the mean over components: between them, where they differ, it may be no likely action."""
        return np.asarray(np.einsum("nc,nck->nk", np.exp(self.log_weights), self.location))

    def log_density(self, actions: FloatArray) -> FloatArray:
        """Return log sum_c w_c N(a; location_c, std_c), (n,)."""
        components = zip(self.location.swapaxes(0, 1), self.std.swapaxes(0, 1), strict=True)
        within = np.stack([log_density(actions, location, std) for location, std in components], axis=1)
        return np.asarray(special.logsumexp(self.log_weights + within, axis=1))

    def sample(self, rng: np.random.Generator) -> FloatArray:
        """Draw a component, then an action from it."""
        chosen = draw(np.exp(self.log_weights), rng)
        rows = np.arange(len(chosen))
        noise = rng.standard_normal((len(chosen), self.location.shape[2]))
        return np.asarray(self.location[rows, chosen] + self.std[rows, chosen] * noise)


@dataclass(frozen=True, eq=False)
class TruncatedNormal(ActionDistribution):
    """Independent normal actions given that they lie within bounds (k,), which hold their modes.

    Examples
    --------
    >>> half = TruncatedNormal(np.zeros((1, 1)), np.ones((1, 1)), np.zeros(1), np.full(1, 99.0))
    >>> half.mean().round(4)  # sqrt(2 / pi)
    array([[0.7979]])
    """

    location: FloatArray
    std: FloatArray
    low: FloatArray
    high: FloatArray

    def _limits(self) -> tuple[FloatArray, FloatArray]:
        return (self.low - self.location) / self.std, (self.high - self.location) / self.std

    def mean(self) -> FloatArray:
        """Return mu + sigma (phi(a) - phi(b)) / (Phi(b) - Phi(a))."""
        a, b = self._limits()
        heights = (np.exp(-0.5 * a * a) - np.exp(-0.5 * b * b)) / math.sqrt(2.0 * math.pi)
        return np.asarray(self.location + self.std * heights / (special.ndtr(b) - special.ndtr(a)))

    def log_density(self, actions: FloatArray) -> FloatArray:
        """Return the log density, (n,); -inf outside the bounds."""
        a, b = self._limits()
        edge = ROUNDING * (self.high - self.low)
        inside = ((actions >= self.low - edge) & (actions <= self.high + edge)).all(axis=1)
        share = np.log(special.ndtr(b) - special.ndtr(a)).sum(axis=1)
        return np.where(inside, log_density(actions, self.location, self.std) - share, -np.inf)

    def sample(self, rng: np.random.Generator) -> FloatArray:
        """Draw by inversion."""
        low, high = (special.ndtr(limit) for limit in self._limits())
        z = special.ndtri(low + rng.random(self.location.shape) * (high - low))
        return np.asarray(np.clip(self.location + self.std * z, self.low, self.high))


@dataclass(frozen=True, eq=False)
class ClippedNormal(ActionDistribution):
    """Independent normal draws that are clipped to bounds (k,) when they act.

    The density is that of the draw before it is clipped: the clipped action has none at a bound, but a probability.

    Examples
    --------
    >>> half = ClippedNormal(np.zeros((1, 1)), np.ones((1, 1)), np.zeros(1), np.full(1, 99.0))
    >>> half.mean().round(4)  # 1 / sqrt(2 pi)
    array([[0.3989]])
    """

    location: FloatArray
    std: FloatArray
    low: FloatArray
    high: FloatArray

    def mean(self) -> FloatArray:
        """Return mu (Phi(b) - Phi(a)) + sigma (phi(a) - phi(b)) + low Phi(a) + high (1 - Phi(b))."""
        a, b = (self.low - self.location) / self.std, (self.high - self.location) / self.std
        below, above = special.ndtr(a), special.ndtr(-b)
        heights = (np.exp(-0.5 * a * a) - np.exp(-0.5 * b * b)) / math.sqrt(2.0 * math.pi)
        return np.asarray(
            self.location * (1.0 - below - above) + self.std * heights + self.low * below + self.high * above
        )

    def log_density(self, actions: FloatArray) -> FloatArray:
        """Return the log density before clipping, (n,)."""
        return log_density(actions, self.location, self.std)

    def sample(self, rng: np.random.Generator) -> FloatArray:
        """Draw and clip."""
        return np.clip(self.location + self.std * rng.standard_normal(self.location.shape), self.low, self.high)


@dataclass(frozen=True, eq=False)
class SquashedNormal(ActionDistribution):
    """a = center + half_width tanh(u), u independent normal: all actions lie within bounds.

    Notes
    -----
    log p(a) = log N(u; location, std) - log half_width - log(1 - tanh(u)^2), summed over the dimensions.

    Examples
    --------
    >>> law = SquashedNormal(np.zeros((1, 1)), np.ones((1, 1)), np.zeros(1), np.ones(1))
    >>> law.mean().round(6), law.log_density(np.array([[0.0], [2.0]])[:1]).round(4)
    (array([[0.]]), array([-0.9189]))
    """

    location: FloatArray
    std: FloatArray
    center: FloatArray
    half_width: FloatArray

    def mean(self) -> FloatArray:
        """Return the mean by Gauss-Hermite quadrature."""
        points, weights = np.polynomial.hermite_e.hermegauss(MEAN_NODES)
        total = np.zeros_like(self.location)
        for z, weight in zip(points, weights / weights.sum(), strict=True):
            total += weight * np.tanh(self.location + self.std * z)
        return np.asarray(self.center + self.half_width * total)

    def log_density(self, actions: FloatArray) -> FloatArray:
        """Return the log density, (n,); -inf at and outside the bounds."""
        scaled = (actions - self.center) / self.half_width
        inside = (np.abs(scaled) < 1.0).all(axis=1)
        safe = np.where(np.abs(scaled) < 1.0, scaled, 0.0)
        slope = np.log(self.half_width) + np.log1p(-safe * safe)
        return np.where(inside, log_density(np.arctanh(safe), self.location, self.std) - slope.sum(axis=1), -np.inf)

    def sample(self, rng: np.random.Generator) -> FloatArray:
        """Draw."""
        u = self.location + self.std * rng.standard_normal(self.location.shape)
        return np.asarray(self.center + self.half_width * np.tanh(u))
