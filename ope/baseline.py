"""The value of the logged policy: what the log itself earned, with what a truncated recording leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ope.dataset import LoggedDataset, Rows
from ope.estimate import Estimate
from ope.policy import Policy
from ope.schema import BehaviorSource, End
from ope.validation import FloatArray
from ope.verdict import Level

LOGGED = "logged policy"


class LoggedPolicy(Policy):
    """The policy that logged the data, of which only this is known: its ratio to itself is 1."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers."""
        return frozenset({"logged_prob"})

    def log_prob_rows(self, rows: Rows, actions: npt.NDArray[Any]) -> FloatArray:
        """Return zeros: the log that `on_policy` makes has zeros too."""
        del rows
        return np.zeros(len(actions))


def on_policy(data: LoggedDataset) -> LoggedDataset:
    """Return the log with all log propensities 0, so that the ratios of `LoggedPolicy` are 1 in every step."""
    return data.replace(
        behavior_log_prob=np.zeros(data.n_transitions), cross_fitted_log_prob=None, behavior_source=BehaviorSource()
    )


def logged_value(data: LoggedDataset, gamma: float) -> Estimate:
    """Return the value of the logged policy.

    Parameters
    ----------
    data : LoggedDataset
    gamma : float

    Returns
    -------
    Estimate
        The mean discounted return, with influence return minus mean. Where truncated recordings leave too much out for
        that, the value by temporal differences (`LSTD` on the log's own actions, without ratios).

    Examples
    --------
    >>> log = LoggedDataset.from_arrays(np.ones((2, 1)), [0, 1], [1.0, 0.0], lengths=[1, 1], ends="terminal")
    >>> logged_value(log, gamma=1.0).value
    0.5
    """
    from ope.estimators import LSTD, PerDecisionIS

    log = on_policy(data)
    mean = PerDecisionIS(gamma=gamma).fit(log, {LOGGED: LoggedPolicy()}).estimate()[LOGGED]
    if mean.verdict.level < Level.REFUSE or not (data.ends == End.TRUNCATED).any():
        return _named(mean, data, "mean return")
    model = LSTD(gamma=gamma).fit(log, {LOGGED: LoggedPolicy()}).estimate()[LOGGED]
    return _named(model, data, "LSTD of the logged steps")


def _named(estimate: Estimate, data: LoggedDataset, how: str) -> Estimate:
    kept = {name: value for name, value in estimate.diagnostics.items() if name.startswith("truncated")}
    return replace(estimate, estimator=how, data_id=data.data_id, diagnostics=kept)
