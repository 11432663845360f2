"""Returns and weights of a log's episodes, and what three methods make of them: E_pi[h(G)] with its influence, for any h."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from ope.inference.weights import fold_of
from ope.validation import FloatArray, IntArray

Method = Literal["is", "self_normalized", "doubly_robust"]
METHODS: tuple[Method, ...] = ("is", "self_normalized", "doubly_robust")
N_FOLDS = 5
# A cumulated mass this close to a probability reaches it: rounding.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class StartModel:
    """Cross-fitted linear regression of h(G) on the first state, for every function h of the return at once.

    Parameters
    ----------
    phi : ndarray of shape (n, d + 1)
        A constant and the standardised features of the first state.
    fold : ndarray of shape (n,)
    share : ndarray of shape (n_folds, n)
        Share of each episode in the regression that predicts a fold; 0 for the fold's own episodes.
    inverse : ndarray of shape (n_folds, d + 1, d + 1)

    Notes
    -----
    m_h(s) = phi(s)^T A_k^{-1} sum_j p_j phi_j h(G_j), A_k = sum_j p_j phi_j phi_j^T + (d / ess_k) I without penalty of the
    constant, p_j = W_j / sum W over the episodes outside fold k and ess_k their effective number. Without features it is the
    self-normalised mean of the other folds.

    Examples
    --------
    >>> model = fit_start_model(np.zeros((4, 1)), np.arange(4, dtype=np.uint64), np.ones(4), np.ones(4))
    >>> model.predict(np.ones(4))
    array([1., 1., 1., 1.])
    """

    phi: FloatArray
    fold: IntArray
    share: FloatArray
    inverse: FloatArray

    def predict(self, h: FloatArray) -> FloatArray:
        """Return m_h at every episode's first state, of the shape of h: (n,) or (n, k)."""
        fitted = np.zeros(h.shape)
        for k, share in enumerate(self.share):
            own = self.fold == k
            fitted[own] = self.phi[own] @ (self.inverse[k] @ (self.phi.T @ (h.T * share).T))
        return fitted

    def masses(self, c: FloatArray) -> FloatArray:
        """Return b with sum_j b_j h(G_j) = sum_i c_i m_h(s_i), shape (n,)."""
        mass = np.zeros(len(c))
        for k, share in enumerate(self.share):
            own = self.fold == k
            mass += share * (self.phi @ (self.inverse[k] @ (self.phi[own].T @ c[own])))
        return mass


def fit_start_model(
    states: FloatArray, keys: npt.NDArray[np.uint64], w: FloatArray, omega: FloatArray, seed: int = 0
) -> StartModel:
    """Fit the regression of `StartModel`.

    Parameters
    ----------
    states : ndarray of shape (n, q)
        First states.
    keys : ndarray of uint64 of shape (n,)
        Of the episodes, which decide their folds.
    w, omega : ndarray of shape (n,)
        Importance weights, and weights of episodes of mean 1.
    seed : int

    Returns
    -------
    StartModel
        Zero for a fold that no other episode of positive weight can predict.
    """
    phi, n_folds = _standardised(states, omega), min(N_FOLDS, len(np.unique(keys)))
    fold, p = fold_of(keys, n_folds, seed), w * omega
    share, inverse = np.zeros((n_folds, len(w))), np.zeros((n_folds, phi.shape[1], phi.shape[1]))
    for k in range(n_folds):
        other = np.where(fold == k, 0.0, p)
        if other.sum() > 0.0:
            share[k] = other / other.sum()
            penalty = np.full(phi.shape[1], (phi.shape[1] - 1) * float(np.sum(share[k] ** 2)))
            penalty[0] = 0.0
            inverse[k] = np.linalg.inv((phi.T * share[k]) @ phi + np.diag(penalty))
    return StartModel(phi, fold, share, inverse)


def _standardised(states: FloatArray, omega: FloatArray) -> FloatArray:
    x = np.asarray(states, dtype=np.float64)
    centred = x - omega @ x / len(x)
    scale = np.sqrt(omega @ centred**2 / len(x))
    varies = scale > 1e-9 * np.maximum(np.abs(x).max(axis=0), 1.0)
    return np.column_stack([np.ones(len(x)), centred[:, varies] / scale[varies]])


@dataclass(frozen=True, slots=True, eq=False)
class ReturnSample:
    """Episodes' returns with what a method weighs them by.

    Parameters
    ----------
    method : {"is", "self_normalized", "doubly_robust"}
    returns : ndarray of shape (n,)
    w : ndarray of shape (n,)
        Importance weights of whole episodes; for "self_normalized" divided by their mean.
    omega : ndarray of shape (n,)
        Weights of episodes, of mean 1.
    model : StartModel or None
        For "doubly_robust".

    Notes
    -----
    Each method estimates theta = E_pi[h(G)] linearly in h: "is" by mean W h(G), "self_normalized" by sum W h(G) / sum W, and
    "doubly_robust" by mean [W (h(G) - m_h(s_0)) + m_h(s_0)].

    Examples
    --------
    >>> sample = ReturnSample("is", np.array([0.0, 1.0]), np.array([0.5, 1.5]), np.ones(2))
    >>> sample.influence(sample.returns)
    (0.75, array([-0.75,  0.75]))
    """

    method: Method
    returns: FloatArray
    w: FloatArray
    omega: FloatArray
    model: StartModel | None = None

    def masses(self) -> FloatArray:
        """Return a with theta = sum_i a_i h(G_i) for every h, shape (n,); with a model some may be negative."""
        a = self.omega * self.w / len(self.w)
        return a if self.model is None else a + self.model.masses(self.omega * (1.0 - self.w) / len(self.w))

    def deviations(self, h: FloatArray, theta: FloatArray | float) -> FloatArray:
        """Return each episode's deviation from a supposed theta, whose mean is theta-hat - theta: (n,) or (n, k)."""
        w, omega = (v if h.ndim == 1 else v[:, None] for v in (self.w, self.omega))
        if self.method == "self_normalized":
            return np.asarray(omega * w * (h - theta))
        fitted = self.model.predict(h) if self.model is not None else 0.0
        return np.asarray(omega * (w * (h - fitted) + fitted - theta))

    def influence(self, h: FloatArray) -> tuple[float, FloatArray]:
        """Return theta-hat and its influence vector, the model held fixed."""
        theta = float(self.masses() @ h)
        return theta, self.deviations(h, theta)

    def mirrored(self) -> ReturnSample:
        """Return the sample of -G."""
        return replace(self, returns=-self.returns)


# -------------------------------------------------------------------- functionals of the distribution


def variance(sample: ReturnSample) -> tuple[float, FloatArray]:
    """Return E G^2 - (E G)^2 and its influence psi_{G^2} - 2 E G psi_G.

    "is" knows the moments each with its own error: of few episodes or a large mean, the difference may be negative.

    Examples
    --------
    >>> sample = ReturnSample("self_normalized", np.array([0.0, 2.0]), np.ones(2), np.ones(2))
    >>> variance(sample)[0]
    1.0
    """
    # Around a weighed mean, so that a large mean does not cancel all digits; a shift c costs what masses lack of 1.
    c = float(np.average(sample.returns, weights=sample.omega * sample.w))
    g = sample.returns - c
    mass, psi_mass = sample.influence(np.ones(len(g)))
    first, psi_first = sample.influence(g)
    second, psi_second = sample.influence(g**2)
    value = second - first**2 + (2.0 * c * first + c**2 * mass) * (1.0 - mass)
    psi = psi_second - 2.0 * first * psi_first + 2.0 * c * (1.0 - mass) * psi_first
    return value, psi + (c**2 * (1.0 - 2.0 * mass) - 2.0 * c * first) * psi_mass


def quantile(sample: ReturnSample, probability: float) -> float:
    """Return the smallest logged return where the rising distribution function reaches `probability`; NaN if none does.

    Examples
    --------
    >>> quantile(ReturnSample("is", np.array([3.0, 1.0]), np.array([1.5, 0.5]), np.ones(2)), 0.25)
    1.0
    """
    points, position = np.unique(sample.returns, return_inverse=True)
    cdf = np.cumsum(np.bincount(position, sample.masses()))
    reached = int(np.searchsorted(np.maximum.accumulate(cdf), probability - ROUNDING))
    return float(points[reached]) if reached < len(points) else float("nan")


def lower_cvar(sample: ReturnSample, level: float) -> tuple[float, FloatArray, float]:
    """Return the mean of the worst `level` of the returns, its influence and the quantile where they end.

    Notes
    -----
    max_c {c - E (c - G)^+ / level}, attained at the quantile q (Rockafellar & Uryasev 2000). By the envelope theorem the error
    of q has no effect of first order: psi = -psi_{(q - G)^+} / level. A share of 1 is the mean.

    Examples
    --------
    >>> sample = ReturnSample("self_normalized", np.arange(10.0), np.ones(10), np.ones(10))
    >>> value, _, q = lower_cvar(sample, 0.25)
    >>> round(value, 12), q  # (0 + 1 + 2 / 2) / 2.5
    (0.8, 2.0)
    """
    if level == 1.0:
        # All returns: their mean, also where the masses of "is" do not sum to 1 and no maximum exists.
        return *sample.influence(sample.returns), float(sample.returns.max())
    q = quantile(sample, level)
    if np.isnan(q):
        return q, np.zeros(len(sample.returns)), q
    theta, psi = sample.influence(np.maximum(q - sample.returns, 0.0))
    return q - theta / level, -psi / level, q
