"""Small logs and settings for the tests of learners."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ope.dataset import LoggedDataset
from ope.policies._neural import NeuralLearner
from ope.policies.bcq import BCQ
from ope.policies.behavior_cloning import BehaviorCloning
from ope.schema import End

SMALL: dict[str, Any] = {"hidden": (16, 16), "n_updates": 120, "batch_size": 32, "log_every": 20, "learning_rate": 3e-3}
LEARNERS = [BCQ, BehaviorCloning]


def random_log(
    n_episodes: int = 40, length: int = 5, *, masked: bool = False, continuous: bool = False, seed: int = 0
) -> LoggedDataset:
    """Random walks with three actions (or two continuous ones), ends of all kinds, final states known."""
    rng = np.random.default_rng(seed)
    n = n_episodes * length
    codes = rng.integers(0, 3, n)
    mask = rng.random((n, 3)) < 0.7
    mask[np.arange(n), codes] = True
    final_mask = rng.random((n_episodes, 3)) < 0.7
    final_mask[:, 0] = True
    actions: npt.NDArray[Any] = (
        rng.normal(size=(n, 2)) * [1.0, 20.0] + [0.0, 5.0] if continuous else np.array(["a", "b", "c"])[codes]
    )
    return LoggedDataset.from_arrays(
        states=rng.normal(size=(n, 3)) * [1.0, 10.0, 0.1],
        actions=actions,
        rewards=rng.normal(size=n) + codes,
        lengths=[length] * n_episodes,
        ends=rng.choice([End.TERMINAL, End.HORIZON, End.TRUNCATED], n_episodes),
        final_states=rng.normal(size=(n_episodes, 3)),
        action_mask=mask if masked else None,
        final_action_mask=final_mask if masked else None,
        feature_names=["x", "y", "z"],
    )


def same_policy(one: NeuralLearner, other: NeuralLearner) -> None:
    assert set(one.networks_) == set(other.networks_)
    for name, network in one.networks_.items():
        assert torch.equal(network.parameters.flat, other.networks_[name].parameters.flat)
    assert one.history_.equals(other.history_)
