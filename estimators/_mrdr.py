"""The linear Q function that minimises the variance of the doubly robust estimator (MRDR), in closed form.

For Q = phi' theta the doubly robust score is X = sum_t gamma^t W_t r_t - sum_t gamma^t W_{t-1} z_t' theta with the control variates
z_t = rho_t phi_t - phibar_t. Given the past their mean is 0, so that those of different steps are uncorrelated, and the reward of
step k has no covariance with those of later steps. What is left of the variance that depends on theta is, up to a constant,

    sum_t E[gamma^{2t} W_{t-1}^2 (rho_t R_t - z_t' theta)^2],    R_t = sum_{k>=t} gamma^{k-t} rho_{t+1} ... rho_k r_k:

a least-squares fit of the weighted return of each step to its control variate. The mean of z z' given the state is the matrix
sum_a pi^2 / b phi phi' - phibar phibar' of the paper; this form is as unbiased, and reads b of the logged action alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ope import ragged
from ope.estimators._traces import carry_back
from ope.validation import FloatArray, IntArray

RANK_TOLERANCE = 1e-8


def log_discount(offsets: IntArray, gamma: float) -> FloatArray:
    """Return log(gamma^t) of every row, shape (n,); 0 at the first step for gamma = 0 too.

    Examples
    --------
    >>> log_discount(np.array([0, 2, 3]), gamma=0.0)
    array([  0., -inf,   0.])
    """
    with np.errstate(divide="ignore"):
        steps = np.where(ragged.step_index(offsets) > 0, np.log(gamma), 0.0)
    return ragged.cumulative_log_weights(steps, offsets)


@dataclass(frozen=True)
class LinearMap:
    """A regressor that is no more than its coefficients.

    Parameters
    ----------
    theta : ndarray of shape (k,)
    """

    theta: FloatArray

    def predict(self, x: FloatArray) -> FloatArray:
        """Return x' theta, shape (n,).

        Examples
        --------
        >>> LinearMap(np.array([1.0, 2.0])).predict(np.eye(2))
        array([1., 2.])
        """
        return x @ self.theta


def minimise_variance(
    x: FloatArray,
    x_bar: FloatArray,
    rewards: FloatArray,
    log_ratio: FloatArray,
    offsets: IntArray,
    gamma: float,
    episode_weight: FloatArray,
    theta: FloatArray,
) -> FloatArray:
    """Return the theta (S, k) of least variance that is nearest to a given one.

    Parameters
    ----------
    x : ndarray of shape (n, k)
        Features of the logged state and action.
    x_bar : ndarray of shape (n, k)
        Their expectation under the candidate.
    rewards, log_ratio : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
    gamma : float
    episode_weight : ndarray of shape (n_episodes,)
    theta : ndarray of shape (S, k)
        Of one Q function, or of one for each step. What changes no score is left as it is here: in each state, the function
        b / pi of the action.
    """
    rho = np.exp(log_ratio)
    z, y = rho[:, None] * x - x_bar, rho * carry_back(rewards, rho, offsets, gamma)
    before = ragged.cumulative_log_weights(_of_the_step_before(log_ratio, offsets), offsets)
    log_weight = 2.0 * (before + log_discount(offsets, gamma))
    own = np.repeat(episode_weight, np.diff(offsets))
    found = np.empty_like(theta)
    for s, given in enumerate(theta):
        rows = ragged.step_rows(offsets, s) if len(theta) > 1 else np.arange(len(y))
        root = _root_weights(log_weight[rows], own[rows])
        found[s] = given + _least_squares(root[:, None] * z[rows], root * (y[rows] - z[rows] @ given))
    return found


def _of_the_step_before(log_ratio: FloatArray, offsets: IntArray) -> FloatArray:
    out = np.empty_like(log_ratio)
    out[1:] = log_ratio[:-1]
    out[offsets[:-1]] = 0.0
    return out


def _root_weights(log_weight: FloatArray, own: FloatArray) -> FloatArray:
    top = log_weight.max(initial=-np.inf)
    return np.sqrt(own * np.exp(log_weight - top)) if np.isfinite(top) else np.zeros_like(own)


def _least_squares(z: FloatArray, y: FloatArray) -> FloatArray:
    if not z.any():
        return np.zeros(z.shape[1])
    return np.asarray(np.linalg.lstsq(z, y, rcond=RANK_TOLERANCE)[0])
