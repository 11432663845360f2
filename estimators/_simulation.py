"""`SimulatingEstimator`: what estimators that simulate episodes ask of a candidate and a log. Base of model-based ones."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from ope.dataset import LoggedDataset
from ope.estimator import EXACT, OffPolicyEstimator, _offers
from ope.policy import Policy, Requirement


class SimulatingEstimator(OffPolicyEstimator):
    """Base of estimators that ask a candidate what it does in states that were never logged."""

    requires: ClassVar[Requirement] = (frozenset({"sample"}),)
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": "fitted transitions share what happened between episodes",
            "one_step_bandit": "rewards are fitted to states and actions instead of weighted",
            "padding": "an absorbing state is one more state to fit",
            "shift_rewards": "networks start from random weights whatever the rewards",
        }
    )

    def _requirement(self, discrete: bool) -> Requirement:
        return _on_new_states(discrete)

    @classmethod
    def _class_accepts(cls, policy: Policy, discrete: bool) -> bool:
        return _offers(policy, _on_new_states(discrete))

    def _check_mask(self, data: LoggedDataset) -> None:
        if data.action_mask is not None:
            raise ValueError(
                f"{type(self).__name__}.fit: `data` must leave all actions available, got an action mask: nobody knows what is available in simulated states; "
                "use ModelBased, LSTDQ or NeuralFittedQEvaluation."
            )


def _on_new_states(discrete: bool) -> Requirement:
    # "sample" is what a policy lacks that reads more than the states.
    return (frozenset({"all_probs", "sample"} if discrete else {"sample"}),)
