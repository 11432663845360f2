"""Score tests of what a Q model leaves unexplained: whether its errors depend on the past, or on richer features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaincc

from ope import ragged
from ope.estimators._features import FeatureBlock
from ope.validation import FloatArray, IntArray

if TYPE_CHECKING:
    from ope.estimators._linear import LinearSolution

RANK_TOLERANCE = 1e-10
ROUNDING = 1e-7


def specification_p_value(
    block: FeatureBlock,
    history: FloatArray,
    solution: LinearSolution,
    eps: FloatArray,
    gamma: float,
    episode_weight: FloatArray,
    share: float,
) -> float:
    """Return the p-value of the hypothesis that temporal differences are unrelated to given instruments.

    With what happened one step before it tests the state, with more features of the present it tests the basis.

    Parameters
    ----------
    episode_weight : ndarray of shape (n_episodes,)
    share : float
        Of all episode weights of the log that are in this block.

    Notes
    -----
    A score test, clustered by episode, of E[h eps] = 0, with h made orthogonal to the estimation error of theta. Time-indexed models: see
    `over_steps`.
    """
    row_weight = block.row_weights(episode_weight)
    inverse = solution.inverse / share  # as if the block were the whole log, which makes h orthogonal within it
    if len(inverse) == 1:
        return _stationary_p_value(block, history, inverse[0], eps, gamma, row_weight)
    return over_steps(_step_scores(block, history, inverse, eps, gamma, row_weight))


def over_steps(scores: Sequence[FloatArray]) -> float:
    """Return the p-value of the hypothesis that the scores of every step, each of shape (n_episodes, q), have mean 0.

    One test a step, Bonferroni-corrected, and one of the sums over steps, which sees errors that all steps share long before any step does;
    the smaller of the two, doubled.
    """
    if not scores:
        return 1.0
    apart = len(scores) * min(score_test(own) for own in scores)
    return min(1.0, 2.0 * min(apart, score_test(np.sum(scores, axis=0))))


def _stationary_p_value(
    block: FeatureBlock, h: FloatArray, inverse: FloatArray, eps: FloatArray, gamma: float, row_weight: FloatArray
) -> float:
    slope = (row_weight[:, None] * h).T @ (block.phi - gamma * block.phi_next)
    h_star = _beyond_rounding(h - block.phi @ (slope @ inverse).T, h)
    return score_test(ragged.segment_sum(h_star * (row_weight * eps)[:, None], block.offsets))


def _step_scores(
    block: FeatureBlock, h: FloatArray, inverse: FloatArray, eps: FloatArray, gamma: float, row_weight: FloatArray
) -> list[FloatArray]:
    """Return the scores of every step that has any, each of shape (n_episodes, q)."""
    lengths, n_steps = np.diff(block.offsets), len(inverse)
    nothing = np.zeros((len(lengths), block.phi.shape[1]))
    # The influence of every episode on theta of the later steps that targets read.
    theta_influence: dict[int, FloatArray] = {}
    found = []
    for t in range(min(n_steps, int(lengths.max())) - 1, -1, -1):
        alive, rows = lengths > t, ragged.step_rows(block.offsets, t)
        phi, h_t, weight = block.phi[rows], h[rows], row_weight[rows, None]
        h_star = _beyond_rounding(h_t - phi @ (inverse[t] @ (phi.T @ (weight * h_t))), h_t)
        scores, moments = np.zeros((len(lengths), h.shape[1])), np.zeros_like(nothing)
        for ahead, some, features in block.following(t):
            place = np.searchsorted(rows, some)
            weighted = gamma**ahead * row_weight[some, None] * features
            later = theta_influence.get(t + ahead, nothing)
            scores += later @ (h_star[place].T @ weighted).T
            moments += later @ (phi[place].T @ weighted).T
        scores[alive] += weight * h_star * eps[rows, None]
        moments[alive] += weight * phi * eps[rows, None]
        if h_star.any():
            found.append(scores)
        theta_influence[t] = moments @ inverse[t].T
        theta_influence.pop(t + block.reach, None)
    return found


def _beyond_rounding(h_star: FloatArray, h: FloatArray) -> FloatArray:
    """Return h_star with 0 in the columns where only rounding is left of h: the basis holds these instruments."""
    left = np.abs(h_star).max(axis=0, initial=0.0) > ROUNDING * np.abs(h).max(axis=0, initial=0.0)
    return np.asarray(h_star * left)


def score_test(scores: FloatArray) -> float:
    """Return the p-value of sum(scores) = 0 from rows that are independent, by a chi-square of the rank of their covariance."""
    top = np.abs(scores).max(axis=0)
    scale = top * np.sqrt(((scores / np.where(top > 0, top, 1.0)) ** 2).sum(axis=0))
    kept = scale > 1e-9 * max(float(scale.max(initial=0.0)), np.finfo(float).tiny)
    if not kept.any() or not np.isfinite(scale).all():
        return 1.0
    standard = scores[:, kept] / scale[kept]
    values, vectors = np.linalg.eigh(standard.T @ standard)
    good = values > 1e-8 * values[-1]
    statistic = float((((standard.sum(axis=0) @ vectors[:, good]) ** 2) / values[good]).sum())
    return float(gammaincc(good.sum() / 2.0, statistic / 2.0))


def past_p_value(
    phi: FloatArray,
    history: FloatArray,
    residuals: FloatArray,
    offsets: IntArray,
    episode_weight: FloatArray,
    *,
    time_indexed: bool,
) -> float:
    """Return the p-value of the hypothesis that residuals of any Q model are unrelated to what happened one step before.

    Parameters
    ----------
    phi : ndarray of shape (n, k)
        Features that the history is made orthogonal to.
    history : ndarray of shape (n, q)
    residuals : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
    episode_weight : ndarray of shape (n_episodes,)
    time_indexed : bool
        One test a step, Bonferroni-corrected, instead of one over all rows.
    """
    groups = (
        [ragged.step_rows(offsets, t) for t in range(1, int(np.diff(offsets).max()))]
        if time_indexed
        else [np.arange(len(phi))]
    )
    episode = ragged.episode_index(offsets)
    root = np.sqrt(episode_weight)[episode][:, None]
    phi, history, residuals = root * phi, root * history, root[:, 0] * residuals
    p_values = [
        score_test(_orthogonal_scores(phi[rows], history[rows], residuals[rows], episode[rows])) for rows in groups
    ]
    return min(1.0, len(p_values) * min(p_values)) if p_values else 1.0


def _orthogonal_scores(phi: FloatArray, history: FloatArray, residuals: FloatArray, episode: IntArray) -> FloatArray:
    h_star = history - phi @ np.linalg.lstsq(phi, history, rcond=RANK_TOLERANCE)[0]
    starts = np.flatnonzero(np.diff(episode, prepend=-1))
    return np.asarray(np.add.reduceat(h_star * residuals[:, None], starts, axis=0))
