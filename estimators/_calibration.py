"""Bellman calibration: bins of predicted values in which a Q function agrees with its own Bellman targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._features import FeatureBlock, richer_features
from ope.estimators._probe import QTable
from ope.validation import FloatArray, IntArray

TOLERANCE = 1e-9
DIGITS = 10


@dataclass(frozen=True)
class Bins:
    """Bins of a line: a value is in the bin of the nearest knot.

    Examples
    --------
    >>> Bins(np.array([0.0, 1.0, 4.0]), np.array([0, 0, 1])).of(np.array([-1.0, 2.0, 3.0, 9.0]))
    array([0, 0, 1, 1])
    """

    knots: FloatArray
    bin: IntArray

    @property
    def size(self) -> int:
        """Number of bins."""
        return int(self.bin[-1]) + 1 if len(self.bin) else 0

    def nearest(self, values: FloatArray) -> IntArray:
        """Return the positions of the nearest knots."""
        return np.searchsorted((self.knots[1:] + self.knots[:-1]) / 2.0, values)

    def of(self, values: FloatArray) -> IntArray:
        """Return the bin of every value; 0 where there are no knots."""
        return self.bin[self.nearest(values)] if len(self.knots) else np.zeros(values.shape, dtype=np.int64)


@dataclass(frozen=True)
class Calibration:
    """The bins of a log.

    Parameters
    ----------
    bins : Bins
    sweeps : int
        Number of isotonic regressions.
    settled : bool
        Whether more would change nothing.
    """

    bins: Bins
    sweeps: int
    settled: bool


@dataclass(frozen=True)
class Binning:
    """How bins are made.

    Parameters
    ----------
    n_bins : int or None
        Of equal numbers of transitions; None for the level sets of isotonic regression.
    min_episodes : int
        Neighbours are merged until each holds as many.
    n_sweeps : int
    """

    n_bins: int | None
    min_episodes: int
    n_sweeps: int


def quantised(table: QTable) -> tuple[QTable, float]:
    """Return predictions in units of their scale, to ten digits, lest rounding errors separate equal ones; and the unit.

    The unit has the sign of their mean: bins are made from one end, which is the same one for rewards times -1.
    """
    scale = float(np.abs(table.q).max(initial=0.0))
    unit = (scale if scale > 0 else 1.0) * (1.0 if table.q.sum() >= 0 else -1.0)
    names = ("q", "nodes", "final_nodes")
    rounded = {name: np.round(getattr(table, name) / unit, DIGITS) for name in names}
    return QTable(weights=table.weights, final_weights=table.final_weights, used=table.used, **rounded), unit


def calibrate(
    table: QTable, rewards: FloatArray, offsets: IntArray, gamma: float, weight: FloatArray, how: Binning
) -> Calibration:
    """Find the bins of predictions; `weight` holds those of episodes, shape (n_episodes,)."""
    rows = np.flatnonzero(table.used & (np.repeat(weight, np.diff(offsets)) > 0))
    if not len(rows):
        return Calibration(Bins(np.empty(0), np.empty(0, dtype=np.int64)), 0, True)
    knots, position = np.unique(table.q[rows], return_inverse=True)
    row_weight = np.repeat(weight, np.diff(offsets))[rows]
    if how.n_bins is not None:
        level, sweeps, settled = _quantiles(position, row_weight, how.n_bins), 0, True
    else:
        problem = _Sweeps(table, rewards, offsets, gamma, rows, row_weight, position)
        levels, sweeps, settled = problem.iterate(knots, how.n_sweeps)
        rises = np.diff(levels) > TOLERANCE * max(float(np.abs(levels).max()), np.finfo(float).tiny)
        level = np.concatenate([[0], np.cumsum(rises)])
    episode = ragged.episode_index(offsets)[rows]
    return Calibration(Bins(knots, merge_bins(level[position], episode, how.min_episodes)[level]), sweeps, settled)


def _quantiles(position: IntArray, row_weight: FloatArray, n_bins: int) -> IntArray:
    """Return the bin of every knot."""
    n_knots = int(position.max(initial=-1)) + 1
    if n_bins >= n_knots:
        return np.arange(n_knots)
    level: IntArray = np.unique(equal_parts(position, row_weight, n_bins), return_inverse=True)[1]
    return level


def equal_parts(position: IntArray, row_weight: FloatArray, n_parts: int) -> IntArray:
    """Return which of `n_parts` parts of equal weight each knot belongs to; `position` is the knot of a row.

    Examples
    --------
    >>> equal_parts(np.array([0, 0, 1, 2]), np.ones(4), 2)
    array([0, 1, 1])
    """
    mass = np.bincount(position, row_weight)
    middle = (np.cumsum(mass) - mass / 2.0) / max(mass.sum(), np.finfo(float).tiny)
    return np.asarray(np.minimum(n_parts * middle, n_parts - 1), dtype=np.int64)


@dataclass(frozen=True)
class _Sweeps:
    """The iteration f <- isotonic regression of r + gamma E_pi f(Qhat(s', .)) on Qhat(s, a), with f as levels of the knots."""

    table: QTable
    rewards: FloatArray
    offsets: IntArray
    gamma: float
    rows: IntArray
    row_weight: FloatArray
    position: IntArray

    def iterate(self, knots: FloatArray, n_sweeps: int) -> tuple[FloatArray, int, bool]:
        """Return the levels, the number of sweeps and whether they settled."""
        line = Bins(knots, np.arange(len(knots)))
        now, after = line.of(self.table.nodes), line.of(self.table.final_nodes)
        level, settled, sweeps = knots, False, 0
        while not settled and sweeps < n_sweeps:
            targets = self._targets(level[now], level[after])[self.rows]
            fitted = _isotonic(self.position, targets, self.row_weight)
            settled = bool(np.abs(fitted - level).max() <= TOLERANCE * np.abs(fitted).max())
            level, sweeps = fitted, sweeps + 1
        return level, sweeps, settled

    def _targets(self, now: FloatArray, after: FloatArray) -> FloatArray:
        v = np.einsum("nm,nm->n", self.table.weights, now)
        v_final = np.einsum("nm,nm->n", self.table.final_weights, after)
        return np.asarray(self.rewards + self.gamma * ragged.shift_to_next(v, self.offsets, v_final))


def _isotonic(position: IntArray, targets: FloatArray, row_weight: FloatArray) -> FloatArray:
    mass = np.bincount(position, row_weight)
    mean = np.bincount(position, row_weight * targets) / mass
    return np.asarray(isotonic_regression(mean, weights=mass).x)


def merge_bins(bin_of_row: IntArray, episode: IntArray, min_episodes: int) -> IntArray:
    """Return which merged bin every bin belongs to; each but a single one holds at least `min_episodes` episodes.

    Examples
    --------
    >>> merge_bins(np.array([0, 1, 1, 2, 3]), np.array([0, 0, 1, 2, 0]), 2)
    array([0, 0, 1, 1])
    """
    order = np.argsort(bin_of_row, kind="stable")
    parts = np.split(episode[order], np.flatnonzero(np.diff(bin_of_row[order])) + 1)
    merged, seen, current = np.empty(len(parts), dtype=np.int64), set[int](), 0
    for j, part in enumerate(parts):
        merged[j] = current
        seen.update(part.tolist())
        if len(seen) >= min_episodes:
            seen, current = set(), current + 1
    if seen and current:
        merged[merged == current] = current - 1
    return merged


def bin_features(table: QTable, bins: Bins, rewards: FloatArray, offsets: IntArray) -> FeatureBlock:
    """Return one-hot bins as the features of a linear method."""
    k = max(1, bins.size)
    phi = _one_hot(bins.of(table.q)[:, None], np.ones((len(rewards), 1)), k)
    phi_bar = _one_hot(bins.of(table.nodes), table.weights, k)
    last = _one_hot(bins.of(table.final_nodes), table.final_weights, k)
    phi_next = ragged.shift_to_next(phi_bar, offsets, last)
    return FeatureBlock(phi, phi_bar, phi_next, table.used, rewards, offsets, ragged.step_index(offsets))


def _one_hot(bins: IntArray, weights: FloatArray, k: int) -> FloatArray:
    out = np.zeros((len(bins), k))
    for j in range(bins.shape[1]):
        out[np.arange(len(bins)), bins[:, j]] += weights[:, j]
    return out


def instruments(block: LoggedDataset) -> FloatArray:
    """Return features of state and action that errors must not depend on, shape (n, q); few features hold all of one-hot states."""
    more = richer_features(block)
    if more is not None:
        return more
    actions = np.eye(block.n_actions)[block.actions]
    return np.asarray(np.einsum("na,ns->nas", actions, block.states).reshape(len(actions), -1))
