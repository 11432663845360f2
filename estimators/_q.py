"""What doubly robust methods need of a Q method: a fitted model that values every row of another log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

from ope.dataset import LoggedDataset
from ope.estimator import EXACT, OffPolicyEstimator
from ope.policy import Policy
from ope.validation import BoolArray, FloatArray


@dataclass(frozen=True)
class QPredictions:
    """Fitted values on the rows of a log.

    Parameters
    ----------
    q : ndarray of shape (n,)
        Qhat(s_t, a_t) of the logged actions.
    v : ndarray of shape (n,)
        Vhat(s_t) = sum_a pi(a|s_t) Qhat(s_t, a).
    v_final : ndarray of shape (n_episodes,)
        Vhat of the state after the last step; 0 where nothing follows.
    """

    q: FloatArray
    v: FloatArray
    v_final: FloatArray


class QModel(Protocol):
    """A Q function fitted for one policy."""

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        """Value the rows of a log."""
        ...


class QEstimator(OffPolicyEstimator):
    """Base of methods that fit a Q function: they can also serve as the model of a doubly robust method."""

    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": "fitted values share rewards between the episodes that pass a state",
            "one_step_bandit": "rewards are regressed on actions instead of weighted",
            "padding": "an absorbing state is one more state to fit",
            "shift_rewards": "a penalised or smoothing fit shrinks the shift too",
        }
    )

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> QModel:
        """Fit the Q function of `policy` and return it."""
        raise NotImplementedError

    def plug_in_influence(
        self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray, coefficient: FloatArray
    ) -> FloatArray | None:
        """Return the influence of the estimated Q on mean(c_i Vhat(s_T)), shape (n_episodes,); None if it is not known.

        Where the process goes on to a state that was not recorded, the last recorded state stands for s_T.
        """
        del data, policy, episode_weight, coefficient
        return None

    def unsupported_ends(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> FloatArray | None:
        """Return the share of what Vhat(s_T) reads that the log does not hold, shape (n_episodes,); None if it is not known.

        s_T is as for `plug_in_influence`; only episodes that go on count.
        """
        del data, policy, episode_weight
        return None


def check_targets(owner: str, used: BoolArray) -> None:
    """Raise unless some transition has a Bellman target."""
    if not used.any():
        raise ValueError(
            f"{owner}: `data` must hold a transition whose next state is known or terminal, got none in {len(used)}; record the final "
            "states, or flag terminal ends."
        )
