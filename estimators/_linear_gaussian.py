"""Linear dynamics with Gaussian noise and a quadratic reward: a log as regressions. Called by `LinearGaussianModel`.

Notation: x = (1, s, a) (with discrete actions (1, s) in the block of the action), s' = Theta' x + noise of covariance Sigma,
r = phi(x)' beta with phi the products of two entries. States and actions are standardised. Arrays have a leading axis of slots:
one a step, or a single one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._linear import _pseudo_inverses
from ope.policy import continuing_ends
from ope.schema import End
from ope.validation import BoolArray, FloatArray, IntArray

# -------------------------------------------------------------------- the log


@dataclass(frozen=True, eq=False)
class Units:
    """Shift and scale of states and actions, and how many discrete actions there are (None: continuous)."""

    shift: FloatArray
    scale: FloatArray
    action_shift: FloatArray
    action_scale: FloatArray
    n_actions: int | None

    @classmethod
    def fit(cls, data: LoggedDataset) -> Units:
        """Take means and standard deviations, block by block."""
        sums = [_moments(block.states) for block in data.blocks()]
        shift, scale = _mean_and_spread(sums)
        if data.discrete:
            return cls(shift, scale, np.zeros(0), np.ones(0), data.n_actions)
        return cls(shift, scale, *_mean_and_spread([_moments(block.actions) for block in data.blocks()]), None)

    def states(self, states: FloatArray) -> FloatArray:
        """Standardise states."""
        return np.asarray((states - self.shift) / self.scale)

    def inputs(self, states: FloatArray, actions: FloatArray | IntArray) -> FloatArray:
        """Return x of standardised states and raw actions, shape (..., p)."""
        affine = np.concatenate([np.ones((*states.shape[:-1], 1)), states], axis=-1)
        if self.n_actions is None:
            return np.concatenate([affine, (actions - self.action_shift) / self.action_scale], axis=-1)
        chosen = np.eye(self.n_actions)[actions]
        return np.asarray((chosen[..., :, None] * affine[..., None, :]).reshape(*states.shape[:-1], -1))

    def products(self, x: FloatArray) -> FloatArray:
        """Return phi: products of two entries, within the block of an action where these are discrete; shape (..., q)."""
        width = x.shape[-1] if self.n_actions is None else len(self.shift) + 1
        first, second = np.triu_indices(width)
        if self.n_actions is None:
            return np.asarray(x[..., first] * x[..., second])
        blocks = x.reshape(*x.shape[:-1], self.n_actions, width)
        return np.asarray((blocks[..., first] * blocks[..., second]).reshape(*x.shape[:-1], -1))


def _moments(values: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    return float(len(values)), values.sum(axis=0, dtype=np.float64), np.square(values, dtype=np.float64).sum(axis=0)


def _mean_and_spread(sums: list[tuple[float, FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    n, total, squares = (sum(parts) for parts in zip(*sums, strict=True))
    mean = np.asarray(total / n)
    spread = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
    return mean, np.where(spread > 1e-9 * np.maximum(np.abs(mean), 1.0), spread, 1.0)


@dataclass(frozen=True, eq=False)
class View:
    """A block of whole episodes.

    Parameters
    ----------
    x : ndarray of shape (n, p)
    phi : ndarray of shape (n, q)
    following : ndarray of shape (n, d)
        Standardised next states, 0 where there is none.
    onward : ndarray of shape (n,)
        Where there is one.
    ended : ndarray of shape (n,)
        Where the process ended in a terminal state.
    steps : ndarray of shape (n,)
    rewards : ndarray of shape (n,)
    start : ndarray of shape (n_episodes, 1 + d)
        1 and the standardised first state.
    offsets : ndarray of shape (n_episodes + 1,)
    """

    x: FloatArray
    phi: FloatArray
    following: FloatArray
    onward: BoolArray
    ended: BoolArray
    steps: IntArray
    rewards: FloatArray
    start: FloatArray
    offsets: IntArray

    def slots(self, n_slots: int) -> Iterator[tuple[int, IntArray | slice]]:
        """Yield the rows of each slot."""
        if n_slots == 1:
            yield 0, slice(None)
            return
        for t in range(int(np.diff(self.offsets).max())):
            yield t, ragged.step_rows(self.offsets, t)


def view(block: LoggedDataset, units: Units, horizon_continues: bool) -> View:
    """Look at a block."""
    states, last = units.states(block.states), np.zeros((block.n_episodes, len(units.shift)))
    goes_on = continuing_ends(block, horizon_continues)
    known = goes_on & block.final_known()
    if known.any() and block.final_states is not None:
        last[known] = units.states(block.final_states[known])
    onward, ended = np.ones(len(block), dtype=bool), np.zeros(len(block), dtype=bool)
    onward[block.offsets[1:] - 1] = known
    ended[block.offsets[1:] - 1] = block.ends == End.TERMINAL
    x = units.inputs(states, block.actions)
    first = states[block.offsets[:-1]]
    return View(
        x,
        units.products(x),
        ragged.shift_to_next(states, block.offsets, last),
        onward,
        ended,
        ragged.step_index(block.offsets),
        block.rewards,
        np.hstack([np.ones((len(first), 1)), first]),
        block.offsets,
    )


# -------------------------------------------------------------------- regressions


@dataclass(frozen=True, eq=False)
class LinearSums:
    """Moments of the regressions by slot, and of first states; they merge."""

    gram_x: FloatArray
    cross: FloatArray
    squares: FloatArray
    n_onward: FloatArray
    gram_phi: FloatArray
    rewards: FloatArray
    start: FloatArray
    n: float

    def merge(self, other: LinearSums) -> LinearSums:
        """Return the sums over both parts."""
        return LinearSums(
            *(mine + others for mine, others in zip(vars(self).values(), vars(other).values(), strict=True))
        )


def summarise(seen: View, weight: FloatArray, n_slots: int) -> LinearSums:
    """Sum a block."""
    p, d, q = seen.x.shape[1], seen.following.shape[1], seen.phi.shape[1]
    sums = LinearSums(
        np.zeros((n_slots, p, p)),
        np.zeros((n_slots, p, d)),
        np.zeros((n_slots, d, d)),
        np.zeros(n_slots),
        np.zeros((n_slots, q, q)),
        np.zeros((n_slots, q)),
        np.einsum("n,ni,nj->ij", weight, seen.start, seen.start),
        float(weight.sum()),
    )
    row_weight = np.repeat(weight, np.diff(seen.offsets))
    for t, rows in seen.slots(n_slots):
        own, phi = row_weight[rows], seen.phi[rows]
        sums.gram_phi[t] = (own[:, None] * phi).T @ phi
        sums.rewards[t] = phi.T @ (own * seen.rewards[rows])
        going = own * seen.onward[rows]
        x, y = seen.x[rows], seen.following[rows]
        weighted = going[:, None] * x
        sums.gram_x[t], sums.cross[t] = weighted.T @ x, weighted.T @ y
        sums.squares[t], sums.n_onward[t] = (going[:, None] * y).T @ y, going.sum()
    return sums


@dataclass(frozen=True, eq=False)
class LinearModel:
    """Regressions by slot: theta (S, p, d), noise (S, d, d), beta (S, q), and what is known of their Gram matrices.

    Parameters
    ----------
    inverse_x, inverse_phi : ndarray of shape (S, p, p), (S, q, q)
    support : ndarray of shape (S, q, q)
        Projection on the span of the logged phi.
    n_onward : ndarray of shape (S,)
    condition : float
    """

    theta: FloatArray
    noise: FloatArray
    beta: FloatArray
    inverse_x: FloatArray
    inverse_phi: FloatArray
    support: FloatArray
    n_onward: FloatArray
    condition: float

    def slot(self, t: int) -> int:
        """Return the slot that step t is read from."""
        return t if len(self.theta) > 1 else 0


def merge(parts: list[LinearSums]) -> LinearSums:
    """Merge the sums of all blocks."""
    return reduce(LinearSums.merge, parts)


def regress(sums: LinearSums) -> LinearModel:
    """Solve the regressions; directions that were never logged get the coefficient 0."""
    inverse_x, _, _ = _pseudo_inverses(sums.gram_x, 0.0)
    inverse_phi, support, condition = _pseudo_inverses(sums.gram_phi, 0.0)
    theta = inverse_x @ sums.cross
    moved = np.swapaxes(theta, 1, 2)
    residual = sums.squares - moved @ sums.cross - np.swapaxes(moved @ sums.cross, 1, 2) + moved @ sums.gram_x @ theta
    noise = residual / np.maximum(sums.n_onward, np.finfo(float).tiny)[:, None, None]
    beta = np.einsum("sqk,sk->sq", inverse_phi, sums.rewards)
    return LinearModel(theta, noise, beta, inverse_x, inverse_phi, support, sums.n_onward, condition)


def unexplained(h: FloatArray, seen: View, weight: FloatArray, n_slots: int) -> FloatArray:
    """Return instruments (n, m) less their regression on phi, over the rows whose next state is known, 0 elsewhere."""
    row_weight, out = np.repeat(weight, np.diff(seen.offsets)) * seen.onward, np.zeros_like(h)
    for _, rows in seen.slots(n_slots):
        phi, own = seen.phi[rows], row_weight[rows, None]
        gram = (own * phi).T @ phi
        inverse, _, _ = _pseudo_inverses(gram[None], 0.0)
        out[rows] = np.where(own > 0, h[rows] - phi @ (inverse[0] @ (phi.T @ (own * h[rows]))), 0.0)
    return out


# -------------------------------------------------------------------- a fitted log


@dataclass(frozen=True, eq=False)
class FittedLog:
    """A log through the units of a model, and the model; iteration gives its blocks and which episodes these hold.

    Parameters
    ----------
    log : LoggedDataset
    weight : ndarray of shape (n_episodes,)
    units : Units
    horizon : int or None
        None: the infinite-horizon value.
    pooled : bool
        With a horizon: one model for all steps.
    sums : LinearSums
    model : LinearModel
    """

    log: LoggedDataset
    weight: FloatArray
    units: Units
    horizon: int | None
    pooled: bool
    sums: LinearSums
    model: LinearModel

    @classmethod
    def fit(cls, log: LoggedDataset, weight: FloatArray, horizon: int | None, pooled: bool) -> FittedLog:
        """Regress all blocks."""
        units = Units.fit(log)
        n_slots = 1 if horizon is None or pooled else horizon
        looked = views(log, units, horizon is None or pooled)
        sums = merge([summarise(seen, weight[own], n_slots) for seen, own in looked])
        return cls(log, weight, units, horizon, pooled, sums, regress(sums))

    @property
    def n_slots(self) -> int:
        """Number of models."""
        return len(self.model.theta)

    @property
    def by_step(self) -> bool:
        """Whether each step has a model of its own."""
        return self.horizon is not None and not self.pooled

    @property
    def ended(self) -> bool:
        """Whether terminal states play a part."""
        return bool((self.log.ends == End.TERMINAL).any())

    def __iter__(self) -> Iterator[tuple[View, slice]]:
        return views(self.log, self.units, self.horizon is None or self.pooled)


def views(log: LoggedDataset, units: Units, horizon_continues: bool) -> Iterator[tuple[View, slice]]:
    """Yield the blocks of a log, and which episodes these hold."""
    first = 0
    for block in log.blocks():
        own = slice(first, first + block.n_episodes)
        first = own.stop
        yield view(block, units, horizon_continues), own
