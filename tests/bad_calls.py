"""Good logs and policies to misuse, and what a refusal must look like; the tables of bad use share them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from ope import LoggedDataset, PolicySelector
from ope.estimate import Estimate
from ope.estimators import (
    PerDecisionIS,
)
from ope.policies import (
    FunctionPolicy,
    TabularPolicy,
)

TABLE = [[0.5, 0.5], [0.2, 0.8]]
SMALL: dict[str, Any] = {"hidden": (4,), "n_updates": 2, "batch_size": 4, "log_every": 1}


@dataclass(frozen=True)
class Bad:
    """A call that must raise `error` with a message in which all `fragments` (regular expressions) occur."""

    name: str
    call: Callable[[], Any]
    error: type[Exception]
    fragments: tuple[str, ...]


def assert_refused(bad: Bad) -> None:
    """Assert that a call raises what its table says."""
    with pytest.raises(bad.error) as caught:
        bad.call()
    message = str(caught.value)
    assert type(caught.value) is bad.error
    for fragment in bad.fragments:
        assert re.search(fragment, message), f"{fragment!r} is not in: {message}"


@cache
def log(n_episodes: int = 12, first: int = 0, **changes: Any) -> LoggedDataset:
    """Return episodes of two steps in two one-hot states, actions "no" and "yes", known propensities."""
    rng = np.random.default_rng(0)
    n = 2 * n_episodes
    arguments: dict[str, Any] = {
        "states": np.eye(2)[rng.integers(2, size=n)],
        "actions": np.array(["no", "yes"])[rng.integers(2, size=n)],
        "rewards": rng.normal(size=n),
        "lengths": [2] * n_episodes,
        "ends": "terminal",
        "behavior_prob": np.full(n, 0.5),
        "action_labels": ("no", "yes"),
        "episode_ids": np.arange(first, first + n_episodes),
    }
    return LoggedDataset.from_arrays(**(arguments | changes))


@cache
def continuous_log(k: int = 1) -> LoggedDataset:
    """Return episodes of one step with a continuous action."""
    rng = np.random.default_rng(0)
    return LoggedDataset.from_arrays(
        rng.normal(size=(12, 1)), rng.normal(size=(12, k)), rng.normal(size=12), lengths=[1] * 12, ends="terminal",
        behavior_prob=np.full(12, 0.3), continuous=True,
    )  # fmt: skip


def with_columns(**columns: Any) -> LoggedDataset:
    """Return the log with other columns."""
    return log().replace(extras=pd.DataFrame(columns, index=range(24)))


def masked() -> LoggedDataset:
    """Return the log where "yes" was available only when it was taken."""
    yes = log().actions == 1
    return log().replace(action_mask=np.column_stack([np.ones(24, bool), yes]))


def constant(value: Any) -> Callable[..., Any]:
    """Return a function of states that gives `value` in every row."""

    def function(states: npt.NDArray[Any], *_: Any) -> Any:
        return np.tile(np.asarray(value), (len(states), *[1] * np.ndim(value)))

    return function


def proba(value: Any) -> FunctionPolicy:
    return FunctionPolicy(predict_proba=constant(value))


def log_prob(value: Any) -> FunctionPolicy:
    return FunctionPolicy(log_prob=constant(value), action_labels=["no", "yes"])


def density(value: Any) -> FunctionPolicy:
    return FunctionPolicy(log_prob=constant(value))


def value_of(policy: Any, estimator: Any = None, data: Any = None, weight: Any = None) -> Callable[[], Any]:
    """Return the call that fits an estimator."""
    return lambda: (PerDecisionIS(gamma=0.9) if estimator is None else estimator).fit(
        log() if data is None else data, policy, weight
    )


def fits(estimator: Any, data: Any = None, weight: Any = None) -> Callable[[], Any]:
    """Return the call that values a good policy."""
    return value_of(TabularPolicy(TABLE), estimator, data, weight)


def estimate(estimator: Any = None, data: Any = None, policy: Any = None) -> Estimate:
    """Return an estimate."""
    result = value_of(TabularPolicy(TABLE) if policy is None else policy, estimator, data)().estimate()
    assert isinstance(result, Estimate)
    return result


def interval(method: Any = None, level: Any = 0.95, estimator: Any = None) -> Callable[[], Any]:
    return lambda: estimate(estimator).confidence_interval(level, method)


def selects(estimators: Any = None, candidates: Any = None, data: Any = None, **settings: Any) -> Callable[[], Any]:
    chosen = [PerDecisionIS(gamma=0.9)] if estimators is None else estimators
    policies = {"a": TabularPolicy(TABLE)} if candidates is None else candidates
    return lambda: PolicySelector(chosen, **settings).fit(log() if data is None else data, policies)


@cache
def classifier(named: bool = False) -> LogisticRegression:
    states = pd.DataFrame(np.eye(2), columns=["age", "pulse"]) if named else np.eye(2)
    return LogisticRegression().fit(states, ["no", "yes"])
