"""`weight_profile`: how the importance weights of one candidate spread over a log. Short arrays, kept for pictures and reports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ope.dataset import LoggedDataset
from ope.diagnostics import pareto_k
from ope.estimators._importance import Form, importance_fit, weight_blocks
from ope.policy import Policy
from ope.validation import FloatArray, IntArray, check_integer

OWNER = "weight_profile"
MAX_STEPS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class WeightProfile:
    """Importance weights of one candidate on one log, in short.

    Parameters
    ----------
    n_episodes : int
    steps : ndarray of shape (m,)
        Steps from 0 at which the effective sample size is given: all of them, or 1000 spread evenly.
    ess : ndarray of shape (m,)
        Effective number of episodes at these steps, from the cumulative weights; an ended episode keeps its final weight.
    log_tail : ndarray of shape (k,)
        Logarithms of the largest final weights, divided by the mean weight, in falling order; -inf for a weight of 0.
    pareto_k : float
        Shape of the tail, NaN where it cannot be fitted.

    Examples
    --------
    >>> WeightProfile(2, np.arange(1), np.array([2.0]), np.zeros(2), float("nan")).survival
    array([0.5, 1. ])
    """

    n_episodes: int
    steps: IntArray
    ess: FloatArray
    log_tail: FloatArray
    pareto_k: float

    @property
    def survival(self) -> FloatArray:
        """Share of episodes whose weight is at least that of each entry of the tail."""
        return np.arange(1, len(self.log_tail) + 1) / self.n_episodes


def weight_profile(data: LoggedDataset, policy: Policy, *, n_tail: int = 1000) -> WeightProfile:
    """Return the effective sample size over time and the largest weights of a candidate.

    Parameters
    ----------
    data : LoggedDataset
        With propensities.
    policy : Policy
        That gives the probability (density) of logged actions.
    n_tail : int
        Largest weights that are kept.

    Returns
    -------
    WeightProfile

    Raises
    ------
    ValueError
        If the log has no propensities.
    TypeError
        If the policy gives no probabilities of logged actions.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[2, 2], ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> profile = weight_profile(log, TabularPolicy([[0.8, 0.2]]))
    >>> profile.ess, np.exp(profile.log_tail)
    (array([2., 2.]), array([1., 1.]))
    """
    check_weights_exist(OWNER, data, policy)
    check_integer(OWNER, "n_tail", n_tail, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        fit = importance_fit(weight_blocks(policy, data), Form(1.0, self_normalized=True), np.ones(data.n_episodes))
    ess = fit.totals.effective_sample_size
    steps = np.unique(np.linspace(0, len(ess) - 1, min(len(ess), MAX_STEPS)).round().astype(np.int64))
    tail = np.sort(fit.final_log_w)[::-1][:n_tail]
    return WeightProfile(
        data.n_episodes, steps, ess[steps], tail - log_mean(fit.final_log_w), pareto_k(fit.final_log_w)
    )


def log_mean(log_weights: FloatArray) -> float:
    """Return the logarithm of the mean weight; 0 where all weights are 0, so that a ratio to it stays 0.

    Examples
    --------
    >>> float(np.exp(log_mean(np.log([1.0, 3.0]))))
    2.0
    """
    top = float(log_weights.max(initial=-np.inf))
    return 0.0 if np.isneginf(top) else top + float(np.log(np.mean(np.exp(log_weights - top))))


def check_weights_exist(owner: str, data: LoggedDataset, policy: Policy) -> None:
    """Raise the error of what importance weights lack: propensities, or probabilities of logged actions."""
    if data.behavior_log_prob is None:
        raise ValueError(
            f"{owner}: `data` must hold propensities of the logged actions, got none; pass behavior_prob= to the constructor of the log, "
            "or estimate them with ope.estimate_behavior."
        )
    if "logged_prob" not in policy.capabilities:
        raise TypeError(
            f"{owner}: `policy` must give probabilities of logged actions, got {type(policy).__name__} that offers {sorted(policy.capabilities)}; "
            "a deterministic policy of continuous actions has no weights: use KernelIS or a method of Q values."
        )
