"""Eligibility traces of Q methods: how far a temporal difference reaches back along its episode.

With trace coefficients c the target of Q(s_t, a_t) is Q(s_t, a_t) + D_t, where D_t = sum_{k>=t} gamma^{k-t} c_{t+1} ... c_k delta_k
and delta_k = r_k + gamma E_pi Q(s_{k+1}, .) - Q(s_k, a_k). Without traces D_t = delta_t.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._features import FeatureBlock
from ope.policy import Policy, Requirement, log_prob_logged
from ope.validation import FloatArray, check_number

TRACES = ("retrace", "tree_backup", "q_lambda")
NEGLIGIBLE = 1e-18


@dataclass(frozen=True)
class Trace:
    """A kind of trace and its lambda; kind None is none.

    Parameters
    ----------
    kind : {None, "retrace", "tree_backup", "q_lambda"}
    decay : float
        lambda in [0, 1].
    """

    kind: str | None = None
    decay: float = 1.0

    @property
    def reads_propensities(self) -> bool:
        """Whether the coefficients are made of ratios."""
        return self.kind == "retrace"

    def check(self, owner: str) -> None:
        """Raise unless kind and decay are what they must be."""
        if self.kind is not None and self.kind not in TRACES:
            raise ValueError(
                f"{owner}: `trace` must be None, 'retrace', 'tree_backup' or 'q_lambda', got {self.kind!r}; pass one of them."
            )
        remedy = "1 carries temporal differences through whole episodes, 0 not at all"
        if check_number(owner, "trace_lambda", self.decay, "in [0, 1]", remedy, 0.0) > 1.0:
            raise ValueError(f"{owner}: `trace_lambda` must be in [0, 1], got {self.decay!r}; {remedy}.")

    def check_log(self, owner: str, data: LoggedDataset) -> None:
        """Raise unless the log holds what the coefficients are made of."""
        if self.kind == "tree_backup" and not data.discrete:
            raise ValueError(
                f"{owner}.fit: trace='tree_backup' must have discrete actions, whose probabilities are at most 1, got continuous ones; pass "
                "trace='retrace'."
            )
        if self.reads_propensities:
            check_propensities(owner, "trace='retrace'", "trace='tree_backup'", data)

    def requirement(self, options: Requirement) -> Requirement:
        """Return what a policy must offer if `options` are enough without the trace."""
        return with_logged_prob(options) if self.reads_propensities else options

    def coefficients(self, policy: Policy, data: LoggedDataset) -> FloatArray:
        """Return c_t of every row, at most lambda: min(1, rho) lambda, pi(a|s) lambda, or lambda; shape (n,).

        Ratios are of propensities that were cross-fitted, where the log has them.
        """
        if self.kind == "q_lambda":
            return np.full(data.n_transitions, self.decay)
        log_prob = log_prob_logged(policy, data)
        if self.kind == "tree_backup":
            return np.asarray(self.decay * np.exp(log_prob))
        behavior = data.behavior_log_prob if data.cross_fitted_log_prob is None else data.cross_fitted_log_prob
        assert behavior is not None
        return np.asarray(self.decay * np.exp(np.minimum(log_prob - behavior, 0.0)))


def with_logged_prob(options: Requirement) -> Requirement:
    """Add the probability of logged actions to what a policy must offer.

    Examples
    --------
    >>> [sorted(option) for option in with_logged_prob((frozenset({"all_probs"}), frozenset({"sample"})))]
    [['all_probs'], ['logged_prob', 'sample']]
    """
    return tuple(option if "all_probs" in option else option | {"logged_prob"} for option in options)


def check_propensities(owner: str, what: str, instead: str, data: LoggedDataset) -> None:
    """Raise unless the log holds propensities."""
    if data.behavior_log_prob is None:
        raise ValueError(
            f"{owner}.fit: {what} must have propensities of the logged actions, got none; pass behavior_prob= to the constructor of the log, "
            f"estimate them with ope.estimate_behavior, or pass {instead}."
        )


def trace_of(estimator: Any) -> Trace:
    """Return the trace that an estimator's parameters name."""
    return Trace(estimator.trace, estimator.trace_lambda)


# -------------------------------------------------------------------- scans along episodes


def carry_back(values: FloatArray, c: FloatArray, offsets: ragged.IntArray, gamma: float) -> FloatArray:
    """Return D_t = x_t + gamma c_{t+1} D_{t+1} within each episode, for x of shape (n,) or (n, k).

    Examples
    --------
    >>> carry_back(np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.5, 1.0]), np.array([0, 2, 3]), gamma=0.5)
    array([1.5, 2. , 4. ])
    """
    out = np.array(values, dtype=np.float64)
    for t in range(int(np.diff(offsets).max()) - 2, -1, -1):
        rows = _rows_with_next(offsets, t)
        out[rows] += gamma * (c[rows + 1] * out[rows + 1].T).T
    return out


def carry_on(values: FloatArray, c: FloatArray, offsets: ragged.IntArray, gamma: float) -> FloatArray:
    """Return z_t = x_t + gamma c_t z_{t-1} within each episode: the transpose of `carry_back`.

    Examples
    --------
    >>> carry_on(np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.5, 1.0]), np.array([0, 2, 3]), gamma=0.5)
    array([1.  , 2.25, 4.  ])
    """
    out = np.array(values, dtype=np.float64)
    for t in range(int(np.diff(offsets).max()) - 1):
        rows = _rows_with_next(offsets, t)
        out[rows + 1] += gamma * (c[rows + 1] * out[rows].T).T
    return out


def _next_c(c: FloatArray, offsets: ragged.IntArray) -> FloatArray:
    return ragged.shift_to_next(c, offsets, np.zeros(len(offsets) - 1))[:, None]


def _rows_with_next(offsets: ragged.IntArray, t: int) -> ragged.IntArray:
    return offsets[:-1][np.diff(offsets) > t + 1] + t


# -------------------------------------------------------------------- linear Q functions


@dataclass(frozen=True)
class TracedBlock(FeatureBlock):
    """Features whose targets read the value functions of several later steps.

    Parameters
    ----------
    phi_next : ndarray of shape (n, k)
        chi_t = phibar_{t+1} - c_{t+1} phi_{t+1}: what the next value function is multiplied by.
    c : ndarray of shape (n,)
        Trace coefficients.
    steps_ahead : int
    """

    c: FloatArray = field(default_factory=lambda: np.zeros(0))
    steps_ahead: int = 1

    @property
    def reach(self) -> int:
        """How many steps ahead the value functions are that targets read."""
        return self.steps_ahead

    def following(self, t: int) -> Iterator[tuple[int, ragged.IntArray, FloatArray]]:
        """Yield c_{t+1} ... c_{m-1} chi_{m-1} for the value function of each later step m, with the rows of step t."""
        yield from super().following(t)
        lengths, product = np.diff(self.offsets), np.ones(len(self.offsets) - 1)
        for ahead in range(2, min(self.reach, int(lengths.max()) - t) + 1):
            alive = lengths >= t + ahead
            rows = self.offsets[:-1][alive] + t
            product[alive] *= self.c[rows + ahead - 1]
            yield ahead, rows, product[alive, None] * self.phi_next[rows + ahead - 1]


def traced(seen: FeatureBlock, c: FloatArray, gamma: float, decay: float, n_values: int) -> FeatureBlock:
    """Return a block of which one-step methods compute what traces would give them.

    Parameters
    ----------
    seen : FeatureBlock
    c : ndarray of shape (n,)
        Trace coefficients, at most `decay`; 0 where the outcome of a step is unknown, so that traces end before it.
    gamma, decay : float
    n_values : int
        1 or the horizon.

    Notes
    -----
    D_t is linear in theta: sum_{k>=t} gamma^{k-t} c_{t+1} ... c_k of r_k - (phi_k - gamma phibar_{k+1})' theta_k. The first part
    takes the place of the reward. With one theta, phi_t - the sum of phi_k - gamma phibar_{k+1} takes that of gamma phibar_{t+1};
    with one a step, each later theta has its own part.
    """
    rewards = carry_back(np.where(seen.used, seen.rewards, 0.0), c, seen.offsets, gamma)
    c_next, none = _next_c(c, seen.offsets), np.zeros((len(seen.offsets) - 1, seen.phi.shape[1]))
    if n_values > 1:
        chi = seen.phi_next - c_next * ragged.shift_to_next(seen.phi, seen.offsets, none)
        parts = {part.name: getattr(seen, part.name) for part in fields(FeatureBlock)}
        parts.update(phi_next=chi, rewards=rewards)
        return TracedBlock(**parts, c=c, steps_ahead=_reach(gamma * decay, n_values))
    own = np.where(seen.used[:, None], seen.phi - gamma * seen.phi_next, 0.0)
    carried = carry_back(own, c, seen.offsets, gamma)
    phi_next = seen.phi_next - c_next * ragged.shift_to_next(carried, seen.offsets, none)
    return replace(seen, phi_next=phi_next, rewards=rewards)


def _reach(shrinkage: float, n_values: int) -> int:
    """Return the steps after which a trace is smaller than the rounding of what it is added to."""
    if shrinkage <= NEGLIGIBLE:
        return 1
    if shrinkage >= 1.0:
        return n_values
    return min(n_values, 1 + int(np.ceil(np.log(NEGLIGIBLE) / np.log(shrinkage))))
