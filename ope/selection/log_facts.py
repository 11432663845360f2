"""`LogFacts`: what a report says about the log, kept small; no row of the log is kept."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd

from ope.dataset import LoggedDataset
from ope.estimator import OffPolicyEstimator
from ope.policy import Policy
from ope.returns import ReturnDistribution, return_distribution
from ope.validation import IntArray
from ope.weight_profile import WeightProfile, weight_profile

PACKAGES = ("ope-learn", "numpy", "scipy", "pandas", "scikit-learn", "torch")


@dataclass(frozen=True, eq=False)
class LogFacts:
    """What a report says about the log.

    Parameters
    ----------
    described : Series
        `LoggedDataset.describe()`.
    data_id : str
    gamma : float
    horizon : int or None
    behavior_source : str
        Where the propensities come from, in words; "none".
    calibration : DataFrame or None
        Of estimated propensities (`ope.behavior.calibration_table`).
    action_counts : Series or None
        By label; None for continuous actions.
    lengths : Series
        Number of episodes by length, binned from 30 different ones on.
    weights : dict of str to WeightProfile
        By candidate, effective sample size over time and the largest weights (`ope.weight_profile`); absent where there
        are no propensities or the candidate does not say its own.
    returns : dict of str to ReturnDistribution
        Distribution of an episode's return (`ope.returns`) under the chosen candidate; under every candidate that has weights
        where the chosen one has none, or none is chosen.
    versions, seeds : dict
    """

    described: pd.Series[Any]
    data_id: str
    gamma: float
    horizon: int | None
    behavior_source: str
    calibration: pd.DataFrame | None
    action_counts: pd.Series[int] | None
    lengths: pd.Series[int]
    weights: Mapping[str, WeightProfile] = field(default_factory=dict)
    returns: Mapping[str, ReturnDistribution] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, Any] = field(default_factory=dict)


def log_facts(
    data: LoggedDataset,
    gamma: float,
    candidates: Mapping[str, Policy],
    estimators: Mapping[str, OffPolicyEstimator],
    chosen: str | None = None,
) -> LogFacts:
    """Return the facts of a log and of the candidates' weights on it.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> facts = log_facts(log, 1.0, {"bold": TabularPolicy([[0.8, 0.2]])}, {})
    >>> facts.weights["bold"].ess.round(2).tolist(), facts.action_counts.tolist()
    ([2.94], [2, 2])
    """
    found = {name: _profile(data, policy) for name, policy in candidates.items()}
    profiles = {name: profile for name, profile in found.items() if profile is not None}
    source = data.behavior_source if data.behavior_log_prob is not None else None
    return LogFacts(
        described=data.describe(),
        data_id=data.data_id,
        gamma=gamma,
        horizon=data.horizon,
        behavior_source="none" if source is None else str(source),
        calibration=None if source is None else source.calibration,
        action_counts=_action_counts(data),
        lengths=_length_counts(data.lengths),
        weights=profiles,
        returns=_returns(data, gamma, candidates, profiles, chosen),
        versions={"python": platform.python_version(), **_versions()},
        seeds={name: e.get_params().get("random_state") for name, e in estimators.items()},
    )


def _profile(data: LoggedDataset, policy: Policy) -> WeightProfile | None:
    """Return how a candidate's weights spread; None where they do not exist."""
    if data.behavior_log_prob is None:
        return None
    try:
        if "logged_prob" not in policy.capabilities:
            return None
        return weight_profile(data, policy)
    except Exception:  # the estimators' rows already say what is wrong with this candidate
        return None


def _returns(
    data: LoggedDataset,
    gamma: float,
    candidates: Mapping[str, Policy],
    profiles: Mapping[str, WeightProfile],
    chosen: str | None,
) -> dict[str, ReturnDistribution]:
    # Weights of 0 only say nothing about returns. A band is simulated, so only what a report can show gets one.
    seen = [name for name, profile in profiles.items() if np.isfinite(profile.log_tail).any()]
    shown = [chosen] if chosen in seen else seen
    return {name: return_distribution(data, candidates[name], gamma=gamma) for name in shown}


def _action_counts(data: LoggedDataset) -> pd.Series[int] | None:
    if data.action_labels is None:
        return None
    counts = np.bincount(data.actions, minlength=data.n_actions)
    return pd.Series(counts, index=pd.Index(data.action_labels, name="action"), name="count")


def _length_counts(lengths: IntArray) -> pd.Series[int]:
    distinct, counts = np.unique(lengths, return_counts=True)
    if len(distinct) <= 30:
        return pd.Series(counts, index=pd.Index(distinct, name="length"), name="episodes")
    counts, edges = np.histogram(lengths, bins=20)
    return pd.Series(counts, index=pd.Index(edges[:-1].round(1), name="length"), name="episodes")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
