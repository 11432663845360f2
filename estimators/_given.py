"""What estimators have in common that learn nothing from the log. Called by `GivenQ` and `SimulatorQ`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import EXACT
from ope.estimators import _verdicts as verdicts
from ope.estimators._importance import unlogged_mass
from ope.estimators._q import QEstimator
from ope.policy import Policy
from ope.validation import FloatArray
from ope.verdict import Verdict

NOT_LEARNED: Mapping[str, str] = MappingProxyType(
    {
        "scale_rewards": "the rewards of the log are not read",
        "permute_episodes": EXACT,
        "shards_merge": EXACT,
        "on_policy_mean": "the rewards of the log are not read",
        "one_step_bandit": "the rewards of the log are not read",
        "padding": "the log is read for its first states alone",
        "shift_rewards": "the rewards of the log are not read",
    }
)


def own_value(
    estimator: QEstimator, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray, stationary: bool
) -> Estimate:
    """Return the mean value of the first states, with the verdict that nothing of the log speaks for it."""
    start = estimator.fit_q(data, policy, weight).predict(policy, data).v[data.offsets[:-1]]
    value = float(np.mean(weight * start))
    return estimator._result(
        data,
        name,
        value=value,
        influence=weight * (start - value),
        horizon=None if stationary else data.horizon,
        diagnostics={"start_spread": float(np.std(start))},
        verdict=Verdict.of(
            [
                verdicts.judge_taken_on_trust(type(estimator).__name__),
                verdicts.judge_unlogged(*unlogged_mass(data, policy)),
            ]
        ),
    )
