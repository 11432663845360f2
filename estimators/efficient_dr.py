"""Doubly robust estimation with control variates: asymptotically never less precise than any of its relatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators import _weights as weights
from ope.estimators._crossfit import CrossFittedQ, Weighed, cross_fit_each, weigh
from ope.estimators._importance import per_decision_scores, weighted_per_decision_influence
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators._verdicts import standard_error
from ope.estimators.doubly_robust import DoublyRobust, DoublyRobustFit, weighted_doubly_robust
from ope.policy import Policy
from ope.validation import FloatArray, IntArray

RANK_TOLERANCE = 1e-8
# Directions of unit controls whose square is below this, over n, are of chance.
ALIKE = 0.5
# What Q adds to the other controls counts where it is this many times what folds of Q differ by: else it is the luck of the folds.
FOLDS_ALIKE = 3.0
NAMES = ("wdr", "wpdis", "dr", "pdis")
# What each control variate is, as a combination of the four: WPDIS - WDR, DR - WDR and PDIS - WPDIS.
CONTRASTS: FloatArray = np.array([[-1.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 1.0]])

# -------------------------------------------------------------------- mathematics


@dataclass(frozen=True)
class FoldedQ(CrossFittedQ):
    """Cross-fitted values, and those of all rows by the Q function of each fold."""

    by_fold: tuple[QPredictions, ...] = ()


@dataclass(frozen=True)
class Relatives:
    """The values of WDR, WPDIS, DR and PDIS on the same log, shape (4,), and their influence, shape (n_episodes, 4)."""

    values: FloatArray
    influence: FloatArray


def relatives(
    weighed: Weighed, rewards: FloatArray, delta: FloatArray, v_0: FloatArray, gamma: float, weight: FloatArray
) -> Relatives:
    """Estimate by four methods.

    Parameters
    ----------
    weighed : Weighed
        With `delta` as rewards.
    rewards, delta : ndarray of shape (n,)
    v_0 : ndarray of shape (n_episodes,)
    gamma : float
    weight : ndarray of shape (n_episodes,)
        Of mean 1.
    """
    log_w, offsets = weighed.log_w, weighed.offsets
    wdr, psi_wdr = weighted_doubly_robust(log_w, delta, v_0, offsets, gamma, weight, weighed.totals)
    totals = weighed.reweighted(rewards, weight)
    step_values = gamma ** np.arange(len(totals.scale)) * totals.mean_reward
    suffix = weights.padded_suffix(totals, step_values)
    psi_wpdis = weighted_per_decision_influence(log_w, rewards, offsets, gamma, totals, suffix)
    dr = v_0 + per_decision_scores(log_w, delta, offsets, gamma)
    pdis = per_decision_scores(log_w, rewards, offsets, gamma)
    plain = np.column_stack([dr, pdis])
    means = weight @ plain / len(weight)
    values = np.array([wdr, step_values.sum(), *means])
    return Relatives(values, np.column_stack([psi_wdr, weight * psi_wpdis, weight[:, None] * (plain - means)]))


@dataclass(frozen=True)
class ControlRows:
    """Steps of the control variates, each of mean 0 given the past, and of the estimate that they are to correct.

    Parameters
    ----------
    controls : ndarray of shape (n, 3)
        Of WPDIS - WDR, DR - WDR and PDIS - WPDIS.
    ahead : ndarray of shape (n,)
        What the steps from this one on add to the influence of WDR.
    of_folds : float
        Variance of the first control from one fold of Q to another, summed over an episode.
    """

    controls: FloatArray
    ahead: FloatArray
    of_folds: float = 0.0


def control_rows(
    weighed: Weighed,
    rewards: FloatArray,
    delta: FloatArray,
    predictions: QPredictions,
    gamma: float,
    weight: FloatArray,
) -> ControlRows:
    """Return the rows from which the coefficients of the control variates are estimated.

    Notes
    -----
    With a_t = W_t / Wbar_t, m_t = mean a_t delta_t and n_t = mean a_t r_t: gamma^t [a_t (Qhat_t - mean) - a_{t-1} (Vhat_t - mean)], and
    (W_t - W_{t-1}) times the discounted sums of m and of n from t on. The four values differ by exactly the sums of these.
    """
    time, offsets, horizon = weighed.time, weighed.offsets, len(weighed.totals.scale)
    discounts = gamma ** np.arange(horizon)

    def to_come(x: FloatArray) -> FloatArray:
        means = discounts * weighed.reweighted(x, weight).mean_reward
        return np.asarray(np.cumsum(means[::-1])[::-1][time])

    w = np.exp(weighed.log_w)
    step = w - _before(w, offsets)
    of_q = _control_of_q(weighed, predictions, gamma, weight)
    controls = np.column_stack([of_q, step * to_come(delta), step * to_come(rewards)])
    m, a = weighed.totals.mean_reward, weights.relative_weights(weighed.log_w, time, weighed.totals)
    suffix = weights.padded_suffix(weighed.totals, discounts * m)
    ahead = _to_go(discounts[time] * a * (delta - m[time]), offsets)
    behind = (weighed.w_final * suffix[np.diff(offsets)])[weighed.episode]
    return ControlRows(controls, ahead - behind, _variance_of_folds(weighed, predictions, gamma, weight))


def _control_of_q(weighed: Weighed, predictions: QPredictions, gamma: float, weight: FloatArray) -> FloatArray:
    """Return gamma^t [a_t (Qhat_t - mean) - a_{t-1} (Vhat_t - mean)], shape (n,)."""
    time, horizon = weighed.time, len(weighed.totals.scale)
    a = weights.relative_weights(weighed.log_w, time, weighed.totals)
    share = weight[weighed.episode] / len(weight)

    def centred(weights_: FloatArray, x: FloatArray) -> FloatArray:
        return np.asarray(weights_ * (x - weights.sums_at(time, share * weights_ * x, horizon)[time]))

    of_v = centred(_before(a, weighed.offsets), predictions.v)
    return np.asarray((gamma ** np.arange(horizon))[time] * (centred(a, predictions.q) - of_v))


def _variance_of_folds(weighed: Weighed, predictions: QPredictions, gamma: float, weight: FloatArray) -> float:
    if not isinstance(predictions, FoldedQ):
        return 0.0
    each = np.stack([_control_of_q(weighed, own, gamma, weight) for own in predictions.by_fold])
    return float(each.var(axis=0) @ np.repeat(weight, np.diff(weighed.offsets))) / len(weight)


def _before(x: FloatArray, offsets: IntArray) -> FloatArray:
    """Return the value of the row before, 1 at the first of an episode."""
    before = np.roll(x, 1)
    before[offsets[:-1]] = 1.0
    return before


def _to_go(x: FloatArray, offsets: IntArray) -> FloatArray:
    """Return the sum from each row to the end of its episode."""
    return ragged.segment_cumsum(x[::-1], (offsets[-1] - offsets)[::-1])[::-1]


def coefficients(
    rows: ControlRows, offsets: IntArray, weight: FloatArray, rank: int = 3
) -> tuple[FloatArray, FloatArray, int]:
    """Return theta of shape (3,), its influence, shape (n_episodes, 3), with the rows held fixed, and how many directions it has.

    Parameters
    ----------
    rows : ControlRows
    offsets : ndarray of shape (n_episodes + 1,)
    weight : ndarray of shape (n_episodes,)
    rank : int
        Most directions.

    Notes
    -----
    A theta = N with N = mean_i sum_t xi_it F_it and A = mean_i sum_t xi_it (sum_{k>=t} xi_ik)': products of a control with what comes
    later only. Those with what came before have mean 0 where the propensities are right, so that theta is the regression
    coefficient; and N has mean 0 where Q is right, whatever the propensities.
    """
    size = np.abs(rows.controls).max(axis=0)
    size[size == 0.0] = 1.0
    xi, unit = rows.controls / size, float(np.abs(rows.ahead).max()) or 1.0
    later = np.column_stack([_to_go(column, offsets) for column in xi.T])
    row_weight = np.repeat(weight, np.diff(offsets)) / len(weight)
    A, N = (row_weight[:, None] * xi).T @ later, xi.T @ (row_weight * rows.ahead / unit)
    diagonal = np.sqrt(np.maximum(np.diag(A), np.finfo(float).tiny))
    unit_A = A / np.outer(diagonal, diagonal)
    if _luck_of_folds(unit_A, rows.of_folds / (size[0] * diagonal[0]) ** 2):
        unit_A[0], unit_A[:, 0] = 0.0, 0.0
    u, s, vt = np.linalg.svd(unit_A)
    rank = min(rank, int((s > max(RANK_TOLERANCE, ALIKE / len(weight)) * s[0]).sum()))
    inverse = ((vt[:rank].T / s[:rank]) @ u[:, :rank].T) / np.outer(diagonal, diagonal)
    theta = inverse @ N
    moments = ragged.segment_sum(xi * (rows.ahead / unit - later @ theta)[:, None], offsets)
    return unit * theta / size, weight[:, None] * (moments @ inverse.T) * unit / size, rank


def _luck_of_folds(unit_A: FloatArray, variance: float) -> bool:
    """Return whether the first control differs from the others by no more than Q does from fold to fold."""
    if variance == 0.0:
        return False
    explained = unit_A[0, 1:] @ np.linalg.pinv(unit_A[1:, 1:], rcond=RANK_TOLERANCE) @ unit_A[1:, 0]
    return bool(unit_A[0, 0] - explained <= FOLDS_ALIKE**2 * variance)


@dataclass(frozen=True)
class Blend:
    """Shares of WDR, WPDIS, DR and PDIS in a blend, shape (4,), and its influence, shape (n_episodes,)."""

    shares: FloatArray
    influence: FloatArray


def blend(rows: ControlRows, four: Relatives, offsets: IntArray, weight: FloatArray, size: float) -> Blend:
    """Return the blend with the most directions whose standard error is not beyond that of WDR, which has none.

    Parameters
    ----------
    rows : ControlRows
    four : Relatives
    offsets : ndarray of shape (n_episodes + 1,)
    weight : ndarray of shape (n_episodes,)
    size : float
        Effective number of episodes: standard errors from so many weighted ones are off by about 1 / sqrt(size) of themselves, one
        that is beyond WDR's by twice that is due to coefficients of chance.
    """
    limit = (1.0 + 2.0 / np.sqrt(max(size, 1.0))) * standard_error(four.influence[:, 0])
    rank = len(CONTRASTS)
    while rank > 0:
        theta, theta_psi, rank = coefficients(rows, offsets, weight, rank)
        shares = np.eye(4)[0] - theta @ CONTRASTS
        psi = four.influence @ shares - theta_psi @ (CONTRASTS @ four.values)
        if standard_error(psi) <= limit:
            return Blend(shares, psi)
        rank -= 1
    return Blend(np.eye(4)[0], four.influence[:, 0])


# -------------------------------------------------------------------- estimator


class EfficientDoublyRobust(DoublyRobust):
    """Doubly robust with control variates: asymptotically at least as precise as PDIS, WPDIS, DR and WDR with the same Q.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    q : Q-based estimator or None
        `LSTDQ` (default) or `FittedQEvaluation`; it inherits gamma.
    n_folds : int
        Q is cross-fitted by episode in this many folds, at least 2.
    random_state : int
        Seed of the folds, which are a hash of the episode identifiers.

    Notes
    -----
    V = WDR - theta' (WPDIS - WDR, DR - WDR, PDIS - WPDIS), three control variates of mean 0 to first order, with the theta of least
    asymptotic variance, as regression-adjusted doubly robust estimation [1]_ has it; V is a blend of the four with weights that sum to
    1, reported as ``share_*``. Here theta is estimated from products of a control with later errors of Q only [2]_, which leaves
    regression coefficients where propensities are right and makes theta vanish where Q is right: so V is right if either is,
    which plain regression coefficients are not. psi_i is that of the blend plus the errors of theta times the control variates.
    The first is left out where it differs from the others by no more than Q does from fold to fold, as are directions in which
    controls are alike up to chance, and further ones where the standard error would
    be beyond that of WDR; with none left V is WDR.
    Where episodes are truncated, the importance-sampling forms are completed by Vhat of the final state, as doubly robust ones are.

    References
    ----------
    .. [1] Kallus, Uehara (2019). Intrinsically efficient, stable, and bounded off-policy evaluation for reinforcement learning. NeurIPS.
    .. [2] Tan (2010). Bounded, efficient and doubly robust estimation with inverse weighting. Biometrika 97.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[1] * 8, ends="terminal", behavior_prob=[0.5] * 8
    ... )
    >>> estimator = EfficientDoublyRobust(gamma=1.0, n_folds=2)
    >>> round(estimator.fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {**DoublyRobust.laws, "on_policy_mean": "coefficients from the same episodes leave a bias of order 1 / n"}
    )
    weighted = False

    def __init__(
        self, *, gamma: float | None = None, q: QEstimator | None = None, n_folds: int = 5, random_state: int = 0
    ) -> None:
        self.gamma = gamma
        self.q = q
        self.n_folds = n_folds
        self.random_state = random_state

    def _cross_fit(self, data: LoggedDataset, policy: Policy, weight: FloatArray) -> FoldedQ:
        values, by_fold = cross_fit_each(self._nested(), data, policy, weight, self._folds(data, weight))
        return FoldedQ(values.q, values.v, values.v_final, values.unfinished, tuple(by_fold))

    def _correct(
        self, data: LoggedDataset, policy: Policy, predictions: QPredictions, delta: FloatArray, weight: FloatArray
    ) -> DoublyRobustFit:
        weighed = weigh(policy, data, delta, self._gamma, weight)
        v_0 = predictions.v[data.offsets[:-1]]
        v_next = ragged.shift_to_next(predictions.v, data.offsets, np.zeros(data.n_episodes))
        rewards = delta + predictions.q - self._gamma * v_next  # the logged ones, completed where an episode goes on
        four = relatives(weighed, rewards, delta, v_0, self._gamma, weight)
        if not (np.isfinite(four.values).all() and np.isfinite(four.influence).all()):
            psi = np.full(data.n_episodes, np.nan)
            return DoublyRobustFit(float("nan"), psi, None, psi, weighed, 0.0)
        rows = control_rows(weighed, rewards, delta, predictions, self._gamma, weight)
        chosen = blend(rows, four, data.offsets, weight, weighed.least_effective_size)
        shares, psi = chosen.shares, chosen.influence
        correction = psi - weight * (v_0 - np.mean(weight * v_0))
        extras: dict[str, Any] = {f"share_{name}": float(share) for name, share in zip(NAMES, shares, strict=True)}
        plain = float(shares[2] + shares[3])
        value = float(shares @ four.values)
        return DoublyRobustFit(value, psi, None, correction, weighed, plain, extras=extras)
