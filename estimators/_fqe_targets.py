"""Regression targets of fitted Q evaluation: one step, carried along traces, or importance-weighted returns.

All have the form y_t = r_t + gamma [k_t V(s_{t+1}) + c_{t+1} (y_{t+1} - m Q(s_{t+1}, a_{t+1}))]:

- one step: c = 0, k = 1;
- traces: the coefficients c of the trace, k = 1 and m = 1, which is Q(s_t, a_t) + sum of the carried temporal differences;
- returns: c = rho, m = 0, and k = 1 only where the recording stops but the process goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._fqe_design import Design
from ope.estimators._mrdr import log_discount
from ope.estimators._traces import Trace, carry_back
from ope.policy import Policy, log_prob_logged
from ope.validation import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Targets:
    """How regression targets follow from fitted values.

    Parameters
    ----------
    rewards : ndarray of shape (n,)
    offsets : ndarray of shape (n_episodes + 1,)
    gamma : float
    c : ndarray of shape (n,) or None
        What is carried back from each row; None for one-step targets.
    bootstraps : ndarray of shape (n,) or None
        k: where V(s_{t+1}) enters; None for everywhere.
    log_weight : ndarray of shape (n,) or None
        Logarithm of the weight of each row in the regression; None for equal weights.
    """

    rewards: FloatArray
    offsets: IntArray
    gamma: float
    c: FloatArray | None = None
    bootstraps: BoolArray | None = None
    log_weight: FloatArray | None = None

    @property
    def reads_q(self) -> bool:
        """Whether the fitted Q of logged actions enters the targets."""
        return self.c is not None and self.bootstraps is None

    def of_all(self, v_next: FloatArray, q: FloatArray) -> FloatArray:
        """Return the targets of all rows from the values of one regressor, shape (n,)."""
        base = self._base(v_next, self.rewards, self.bootstraps)
        if self.c is None:
            return base
        carried = carry_back(base - q if self.reads_q else base, self.c, self.offsets, self.gamma)
        nothing = np.zeros(len(self.offsets) - 1)
        carried *= self.c
        return base + self.gamma * ragged.shift_to_next(carried, self.offsets, nothing)

    def of_step(self, rows: IntArray, v_next: FloatArray, left: FloatArray) -> FloatArray:
        """Return the targets of rows of one step from v_next (n,) and from what `left_over` gave for later ones (n,)."""
        base = self._base(v_next[rows], self.rewards[rows], None if self.bootstraps is None else self.bootstraps[rows])
        if self.c is None:
            return base
        last = np.isin(rows, self.offsets[1:] - 1)
        after = np.where(last, rows, rows + 1)
        return base + self.gamma * np.where(last, 0.0, self.c[after] * left[after])

    def left_over(self, y: FloatArray, q: FloatArray) -> FloatArray:
        """Return what is carried back to the step before."""
        return y - q if self.reads_q else y

    def _base(self, v_next: FloatArray, rewards: FloatArray, bootstraps: BoolArray | None) -> FloatArray:
        return rewards + self.gamma * (v_next if bootstraps is None else np.where(bootstraps, v_next, 0.0))

    def row_weights(self, weight: FloatArray, rows: IntArray | BoolArray | slice) -> FloatArray:
        """Return the weights of some rows in one regression, the largest of the log weights made 1."""
        own = np.repeat(weight, np.diff(self.offsets))[rows]
        if self.log_weight is None:
            return own
        logs = self.log_weight[rows]
        top = logs.max(initial=-np.inf)
        return own * np.exp(logs - top) if np.isfinite(top) else np.zeros_like(own)


def one_step(design: Design, gamma: float) -> Targets:
    """Return r + gamma V(s')."""
    return Targets(design.rewards, design.offsets, gamma)


def along_trace(design: Design, gamma: float, trace: Trace, policy: Policy, data: LoggedDataset) -> Targets:
    """Return Q(s, a) plus the temporal differences that the trace carries back; it ends before a step to an unknown state."""
    c = np.where(design.used, trace.coefficients(policy, data), 0.0)
    return Targets(design.rewards, design.offsets, gamma, c)


def weighted_returns(design: Design, gamma: float, log_ratio: FloatArray) -> Targets:
    """Return sum_{k>=t} gamma^{k-t} rho_{t+1} ... rho_k r_k for rows of weight gamma^t W_t; log_ratio of shape (n,)."""
    c = np.where(design.used, np.exp(log_ratio), 0.0)
    last = np.zeros(len(c), dtype=bool)
    last[design.offsets[1:] - 1] = True
    to_unknown = ragged.shift_to_next(~design.used, design.offsets, np.zeros(len(design.offsets) - 1, dtype=bool))
    log_w = ragged.cumulative_log_weights(log_ratio, design.offsets)
    log_weight = log_w + log_discount(design.offsets, gamma)
    return Targets(design.rewards, design.offsets, gamma, c, last | to_unknown, log_weight)


def log_ratios(policy: Policy, data: LoggedDataset, *, cross_fitted: bool) -> FloatArray:
    """Return log(pi / b) of every row, shape (n,); cross-fitted propensities only where the log has them."""
    behavior = data.behavior_log_prob
    if cross_fitted and data.cross_fitted_log_prob is not None:
        behavior = data.cross_fitted_log_prob
    assert behavior is not None
    return log_prob_logged(policy, data) - behavior
