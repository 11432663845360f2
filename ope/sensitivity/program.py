"""Bounds of a value when an unobserved cause of both actions and rewards moves the odds of the logged actions.

The marginal sensitivity model: at every step the true odds b*(a|s,u) / (1 - b*(a|s,u)) differ from the logged (nominal)
ones by a factor of at most Gamma in either direction. The true inverse propensity is then lambda / b with
lambda in [b + (1 - b) / Gamma, b + (1 - b) Gamma] (densities: [1 / Gamma, Gamma]), and nothing else is known of lambda.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ope import ragged
from ope.validation import BoolArray, FloatArray, IntArray

STRETCHES = 24


class WeightedLog(NamedTuple):
    """One policy on one log.

    Parameters
    ----------
    log_ratio, log_b : ndarray of shape (n,)
        log(pi / b) and log b of the logged actions; log_b is None for continuous actions.
    rewards : ndarray of shape (n,)
        Discounted.
    offsets : ndarray of shape (n_episodes + 1,)
    confounded : ndarray of shape (n,)
        Rows in which an unobserved cause may act.
    tail : ndarray of shape (n_episodes,)
        Most that an episode may still have earned, or lost, behind a truncation.
    per_decision : bool
        Normalise each step (a self-normalised mean for every step) or whole episodes.
    """

    log_ratio: FloatArray
    log_b: FloatArray | None
    rewards: FloatArray
    offsets: IntArray
    confounded: BoolArray
    tail: FloatArray
    per_decision: bool


class Program(NamedTuple):
    """The range of sum w x / sum w over all w with exp(log_low) <= w <= exp(log_high); arrays of shape (n_episodes,)."""

    log_low: FloatArray
    log_high: FloatArray
    scores: FloatArray


def multiplier_range(
    log_b: FloatArray | None, confounded: BoolArray, odds_ratio: float
) -> tuple[FloatArray, FloatArray]:
    """Return the logs of the least and the largest factor b / b*(a|s,u) of every row.

    Examples
    --------
    >>> low, high = multiplier_range(np.log([0.5, 1.0]), np.ones(2, bool), 2.0)
    >>> np.exp(low), np.exp(high)
    (array([0.75, 1.  ]), array([1.5, 1. ]))
    """
    if log_b is None:
        high = np.where(confounded, np.log(odds_ratio), 0.0)
        return -high, high
    b = np.where(confounded, np.exp(log_b), 1.0)
    return np.log(b + (1.0 - b) / odds_ratio), np.log(b + (1.0 - b) * odds_ratio)


def programs(log: WeightedLog, odds_ratio: float) -> Iterator[Program]:
    """Yield the self-normalised means whose sum is the value: one per step with rewards, or one for whole episodes."""
    low, high = multiplier_range(log.log_b, log.confounded, odds_ratio)
    log_low = ragged.cumulative_log_weights(log.log_ratio + low, log.offsets)
    log_high = ragged.cumulative_log_weights(log.log_ratio + high, log.offsets)
    if log.per_decision:
        yield from _step_programs(log, log_low, log_high)
    else:
        last = log.offsets[1:] - 1
        yield Program(log_low[last], log_high[last], ragged.segment_sum(log.rewards, log.offsets))


def _step_programs(log: WeightedLog, log_low: FloatArray, log_high: FloatArray) -> Iterator[Program]:
    lengths = np.diff(log.offsets)
    low, high = np.zeros(len(lengths)), np.zeros(len(lengths))
    for t in range(int(lengths.max())):
        rows, alive = ragged.step_rows(log.offsets, t), lengths > t
        # An ended episode keeps its final weight, with a reward of 0.
        low[alive], high[alive] = log_low[rows], log_high[rows]
        scores = np.zeros(len(lengths))
        scores[alive] = log.rewards[rows]
        if scores.any():
            yield Program(low.copy(), high.copy(), scores)


def extremes(program: Program, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Solve the fractional linear program for several weightings of the episodes.

    Parameters
    ----------
    program : Program
    counts : ndarray of shape (B, n_episodes)
        Positive.

    Returns
    -------
    low, high : ndarray of shape (B,)
        NaN where no episode has a weight.

    Notes
    -----
    With the scores sorted, the least ratio has the largest weights up to some score and the least ones behind it: one of n
    thresholds is optimal (Zhao, Small & Bhattacharya 2019, Proposition 2).

    Examples
    --------
    >>> program = Program(np.log([0.5, 0.5]), np.log([2.0, 2.0]), np.array([0.0, 1.0]))
    >>> extremes(program, np.ones((1, 2)))
    (array([0.2]), array([0.8]))
    """
    top = float(program.log_high.max())
    if np.isneginf(top):
        return np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    w_low, w_high = np.exp(program.log_low - top), np.exp(program.log_high - top)
    order = np.argsort(program.scores, kind="stable")
    # Weights that cannot move have no say in the thresholds.
    order = order[w_high[order] > w_low[order]]
    low = _least(counts, w_low, w_high, program.scores, order)
    return low, -_least(counts, w_low, w_high, -program.scores, order[::-1])


def _least(
    counts: FloatArray, w_low: FloatArray, w_high: FloatArray, scores: FloatArray, order: IntArray
) -> FloatArray:
    """Return the least ratio over the thresholds k: weights w_high up to the k-th of `order`, w_low behind it.

    The ratio is a mean of the one before and of the next score, so it falls up to one k and rises from there: the least of
    few thresholds leaves two stretches in which to look closer, and no sum over episodes is made twice.
    """
    columns, marks = _stretches(w_high - w_low, scores, order)
    base = np.column_stack([w_low, w_low * scores])
    sums = counts @ np.column_stack([base, *columns])
    weight, total = (np.cumsum(sums[:, first::2], axis=1) for first in (0, 1))
    # All least weights may be too small for floats: then at least the lowest score has its largest one.
    known = np.divide(total, weight, out=np.full_like(total, np.inf), where=weight > 0.0)
    best = np.argmin(known, axis=1)
    first, last = max(int(best.min()) - 1, 0), min(int(best.max()) + 1, len(marks) - 1)
    near = order[marks[first] : marks[last]]
    extra = counts[:, near] * (w_high - w_low)[near]
    above = np.cumsum(extra, axis=1) + weight[:, first, None]
    extra *= scores[near]
    ratios = (np.cumsum(extra, axis=1) + total[:, first, None]) / above
    return np.asarray(np.minimum(ratios.min(axis=1, initial=np.inf), known[:, first]))


def _stretches(extra: FloatArray, scores: FloatArray, order: IntArray) -> tuple[list[FloatArray], IntArray]:
    """Return columns (extra, extra * score) that are 0 outside their stretch of `order`, and the stretches' limits."""
    marks = np.unique(np.linspace(0, len(order), STRETCHES + 1).astype(np.int64))
    columns = []
    for first, last in pairwise(marks):
        part = np.zeros_like(extra)
        part[order[first:last]] = extra[order[first:last]]
        columns += [part, part * scores]
    return columns, marks


def value_bounds(log: WeightedLog, odds_ratio: float, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the least and the largest value that confounding of this strength allows.

    Parameters
    ----------
    log : WeightedLog
    odds_ratio : float
        Gamma, at least 1.
    counts : ndarray of shape (B, n_episodes)
        Weights of episodes: ones, or those of B bootstrap resamples.

    Returns
    -------
    low, high : ndarray of shape (B,)

    Notes
    -----
    With lambda_k as above and W_t = prod_{k<=t} pi / b, the multipliers Lambda_t = prod_{k<=t} lambda_k reach exactly the
    interval between the products of their bounds, E[Lambda_t W_t] = 1 and E[Lambda_t W_t r_t] = E_pi[r_t]. Whole episodes:
    the range of sum Lambda W G / sum Lambda W, exact for these constraints. Per decision: the sum over t of the ranges of
    sum Lambda_t W_t r_t / sum Lambda_t W_t, valid, and conservative because the steps are solved apart.
    """
    low, high = np.zeros(len(counts)), np.zeros(len(counts))
    for program in programs(log, odds_ratio):
        least, largest = extremes(program, counts)
        low += least
        high += largest
    for program in _tails(log, odds_ratio):
        _, missed = extremes(program, counts)
        low, high = low - missed, high + missed
    return low, high


def bound_influence(log: WeightedLog, odds_ratio: float) -> tuple[FloatArray, FloatArray]:
    """Return the influence of every episode on the least and on the largest value, shape (n_episodes,) each.

    Notes
    -----
    The multipliers that attain a bound may be held fixed in its derivative (envelope theorem): the influence is that of a
    self-normalised mean with these weights.
    """
    low, high = np.zeros(len(log.tail)), np.zeros(len(log.tail))
    ones = np.ones((1, len(log.tail)))
    for program in programs(log, odds_ratio):
        least, largest = extremes(program, ones)
        low += _ratio_influence(program, float(least[0]), program.scores < least[0])
        high += _ratio_influence(program, float(largest[0]), program.scores > largest[0])
    for program in _tails(log, odds_ratio):
        _, missed = extremes(program, ones)
        psi = _ratio_influence(program, float(missed[0]), program.scores > missed[0])
        low, high = low - psi, high + psi
    return low, high


def _ratio_influence(program: Program, value: float, raised: BoolArray) -> FloatArray:
    log_w = np.where(raised, program.log_high, program.log_low)
    w = np.exp(log_w - log_w.max())
    return np.asarray(w / w.mean() * (program.scores - value))


def _tails(log: WeightedLog, odds_ratio: float) -> Iterator[Program]:
    if log.tail.any():
        final = log._replace(per_decision=False, rewards=_at_last(log.tail, log.offsets))
        yield next(programs(final, odds_ratio))


def _at_last(values: FloatArray, offsets: IntArray) -> FloatArray:
    rows = np.zeros(offsets[-1])
    rows[offsets[1:] - 1] = values
    return rows
