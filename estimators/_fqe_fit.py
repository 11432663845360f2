"""The regressions of fitted Q evaluation: backwards over a horizon, or again and again until the values stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ope import ragged
from ope.estimators._fqe_design import Design
from ope.estimators._fqe_targets import Targets
from ope.validation import BoolArray, FloatArray

DIVERGENCE_FACTOR = 10.0
STEADY_ITERATIONS = 3
# Moves of the last so many iterations are compared with those of as many before: a contraction, however slow, makes them smaller.
WANDERING_ITERATIONS = 50
WANDERING_SHARE = 0.95

Regress = Callable[[FloatArray, FloatArray, FloatArray], Any]


@dataclass(frozen=True)
class Fit:
    """Regressors, how the fit ended ("converged", "wandering", "stopped" or "diverged"), after how many iterations, and what is left."""

    regressors: list[Any]
    status: str
    iterations: int
    residuals: FloatArray


def backwards(design: Design, targets: Targets, regress: Regress, weight: FloatArray, horizon: int) -> Fit:
    """Fit one regressor a step, from the last to the first.

    Parameters
    ----------
    regress : callable
        ``regress(x, y, row_weight)`` returns a fitted regressor.
    weight : ndarray of shape (n_episodes,)
    """
    regressors: list[Any] = [None] * horizon
    n, lengths = len(design.rewards), np.diff(design.offsets)
    v_rows, v_final, left, residuals = np.zeros(n), np.zeros(len(lengths)), np.zeros(n), np.zeros(n)
    for t in range(horizon - 1, -1, -1):
        rows = ragged.step_rows(design.offsets, t)
        row_weight = targets.row_weights(weight, rows)
        y = targets.of_step(rows, ragged.shift_to_next(v_rows, design.offsets, v_final), left)
        q = np.zeros(len(rows))
        if row_weight.sum() > 0:
            regressors[t] = regress(design.x[rows], y, row_weight)
            q = regressors[t].predict(design.x[rows])
            residuals[rows] = y - q
            v_rows[rows] = design.state_values(regressors[t], rows)
        left[rows] = targets.left_over(y, q)
        chosen = np.flatnonzero(design.final_known & (lengths == t))
        v_final[chosen] = design.final_values(regressors[t], chosen)
    return Fit(regressors, "converged", horizon, residuals)


@dataclass(frozen=True)
class Values:
    """What a regressor says of the log: Q(s_t, a_t), V(s_t) and V(s_{t+1}) of every row, and the value of the candidate."""

    q: FloatArray
    v: FloatArray
    v_next: FloatArray
    value: float

    @classmethod
    def of(cls, design: Design, regressor: Any, weight: FloatArray, reads_q: bool) -> Values:
        """Predict; Q of logged actions only where it is needed."""
        finals, v_final = np.flatnonzero(design.final_known), np.zeros(len(design.offsets) - 1)
        v = design.state_values(regressor, slice(None))
        v_final[finals] = design.final_values(regressor, finals)
        q = np.asarray(regressor.predict(design.x)) if reads_q else np.zeros(len(v))
        v_next = ragged.shift_to_next(v, design.offsets, v_final)
        return cls(q, v, v_next, float(np.mean(weight * v[design.offsets[:-1]])))

    def within(self, limit: float) -> bool:
        """Return whether all values are finite and at most `limit`."""
        return bool(np.maximum(np.abs(self.v).max(), np.abs(self.q).max()) <= limit)


def iterate(
    design: Design, targets: Targets, regress: Regress, weight: FloatArray, gamma: float, max_iter: int, tol: float
) -> Fit:
    """Fit one regressor until the value and the next-state values have stayed three times in a row.

    Parameters
    ----------
    weight : ndarray of shape (n_episodes,)
    max_iter : int
    tol : float
        In standard deviations of the targets.

    Notes
    -----
    A regressor that answers small changes of its targets with another form, as trees do, never stays. Once gamma^k has made the start
    count less than `tol` and moves no longer get smaller, further iterations only draw another such form: the fit is "wandering".
    """
    used, row_weight = design.used, targets.row_weights(weight, slice(None))
    limit = divergence_limit(design.rewards, gamma)
    nothing = np.zeros(len(design.rewards))
    before, steady, status, regressor = Values(nothing, nothing, nothing, np.inf), 0, "stopped", None
    y, moves = targets.of_all(nothing, nothing), []
    for iteration in range(1, max_iter + 1):
        regressor = regress(design.x[used], y[used], row_weight[used])
        now = Values.of(design, regressor, weight, targets.reads_q)
        if not now.within(limit):
            status = "diverged"
            break
        old, y = y, targets.of_all(now.v_next, now.q)
        moves.append(_move(before, now, old, y, used))
        steady = steady + 1 if moves[-1] <= tol else 0
        before = now
        if steady == STEADY_ITERATIONS or np.array_equal(old[used], y[used]):
            status = "converged"
            break
        if gamma**iteration < tol * (1.0 - gamma) and _wanders(moves):
            status = "wandering"
            break
    assert regressor is not None
    residuals = np.where(used, y - regressor.predict(design.x), 0.0)
    return Fit([regressor], status, iteration, residuals)


def _wanders(moves: list[float]) -> bool:
    late, early = moves[-WANDERING_ITERATIONS:], moves[-2 * WANDERING_ITERATIONS : -WANDERING_ITERATIONS]
    return len(early) == WANDERING_ITERATIONS and bool(np.median(late) > WANDERING_SHARE * np.median(early))


def _move(before: Values, now: Values, old: FloatArray, y: FloatArray, used: BoolArray) -> float:
    """Return how far values and targets moved, in standard deviations of the targets."""
    # The targets of constant rewards have no spread: a thousandth of their size stands in for it.
    spread = max(float(np.std(old[used])), 1e-3 * float(np.mean(np.abs(old[used]))), np.finfo(float).tiny)
    moves = (
        now.value - before.value,
        _root_mean_square(now.v_next - before.v_next),
        _root_mean_square((y - old)[used]),
    )
    return float(np.max(np.abs(moves))) / spread


def _root_mean_square(x: FloatArray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def divergence_limit(rewards: FloatArray, gamma: float) -> float:
    """Return a size that no values of these rewards come near."""
    largest = max(float(np.abs(rewards).max()), np.finfo(float).tiny)
    return DIVERGENCE_FACTOR * largest / (1.0 - gamma) if gamma < 1.0 else 1e6 * largest
