"""What doubly robust methods need of a marginal method: a fitted ratio of visits on every row of another log."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Protocol

from ope.dataset import LoggedDataset
from ope.estimator import EXACT, OffPolicyEstimator
from ope.policy import Policy
from ope.validation import FloatArray


class RatioModel(Protocol):
    """A ratio of visits fitted for one policy."""

    def predict(self, policy: Policy, data: LoggedDataset) -> FloatArray:
        """Return c_it of every row, shape (n,), with J = mean over episodes of sum_t c_it r_it.

        Rows that lead to a state that was not recorded, which Q-based methods leave out, get 0.
        """
        ...


class RatioEstimator(OffPolicyEstimator):
    """Base of methods that fit a marginal ratio: they can also serve as the ratio of a doubly robust method.

    Notes
    -----
    c_it is the candidate's expected discounted visits of (s, a) over the expected visits of the log, both per episode:
    sum_t gamma^t p_t(s, a) / sum_t b_t(s, a) where stationary, gamma^t p_t(s, a) / b_t(s, a) where time-indexed. On this scale
    c is (n/N) w / (1 - gamma) in the notation of normalised occupancies, and the Bellman flow of the log reads
    mean_i sum_t c_it (f(s_t, a_t) - gamma E f(s_{t+1}, a')) = mean_i E f(s_0, a') for every f.
    """

    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": "ratios are shared between the episodes that pass a state",
            "one_step_bandit": "ratios of visits are estimated instead of taken from the propensities",
            "padding": "an absorbing state is one more state to visit",
            "shift_rewards": "estimated ratios need not average to the discounted length",
        }
    )

    def fit_ratio(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> RatioModel:
        """Fit the ratio of `policy` and return it."""
        raise NotImplementedError
