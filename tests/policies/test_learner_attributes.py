"""What learners say they have after `fit`, and what is public beside them."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pandas as pd
import pytest
from learner_logs import random_log

import ope.policies
from ope.neural.history import TrainingStatus
from ope.policies import LearnerEvent, _runs
from ope.policies._network_policy import NetworkPolicy

TINY: dict[str, Any] = {"hidden": (4,), "n_updates": 4, "batch_size": 4, "log_every": 2, "checkpoints": 2}
SMALL: dict[str, dict[str, Any]] = {
    "ATAC": {"warm_start_updates": 1},
    "BEAR": {"warm_start_updates": 1},
    "BRAC": {"behavior_updates": 1, "warm_start_updates": 1},
}
CONTINUOUS = {"ATAC", "BEAR", "BRAC", "EDAC", "TD3BC", "UWAC"}
PUBLIC = {name: getattr(ope.policies, name) for name in ope.policies.__all__}
LEARNERS = [name for name, thing in PUBLIC.items() if inspect.isclass(thing) and issubclass(thing, NetworkPolicy)]
COMMON = {
    "history_": "DataFrame",
    "status_": "TrainingStatus",
    "n_updates_": "int",
    "feature_names_in_": "ndarray of str",
    "n_features_in_": "int",
    "training_episode_keys_": "ndarray of uint64",
}


def documented(learner: type) -> dict[str, str]:
    """Return names and types of the section "Attributes", which stands between parameters and notes."""
    words = inspect.getdoc(learner) or ""
    section = words[words.index("Attributes\n---") : words.index("Notes\n---")]
    entries = dict(re.findall(r"^(\w+_) : (.+)\n    \w", section, flags=re.MULTILINE))
    assert len(entries) == len(re.findall(r"^\w", section.split("---\n", 1)[1], flags=re.MULTILINE)), "a line for each"
    return entries


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LEARNERS)
def test_documented_attributes_are_there_after_fit(name: str) -> None:
    learner = PUBLIC[name]
    entries = documented(learner)
    assert COMMON.items() <= entries.items()
    settings = {} if name == "LSPI" else {**TINY, **SMALL.get(name, {})}
    assert not any(hasattr(learner(**settings), attribute) for attribute in entries)
    log = random_log(continuous=name in CONTINUOUS)
    fitted = learner(**settings).fit(log)
    for attribute in entries:
        assert hasattr(fitted, attribute), attribute
    assert isinstance(fitted.history_, pd.DataFrame)
    assert isinstance(fitted.status_, TrainingStatus)
    assert list(fitted.feature_names_in_) == list(log.feature_names)
    if name != "LSPI":
        assert entries["checkpoints_"] == f"list of {name}"
        assert [one.n_updates_ for one in fitted.checkpoints_] == [2, 4]
        assert "seed_" in entries
    if name == "LSPI" or learner.bootstraps:
        assert "n_excluded_transitions_" in entries


def test_the_event_of_callbacks_is_public() -> None:
    assert LearnerEvent is _runs.LearnerEvent
    assert {"LearnerEvent"} <= set(ope.policies.__all__) & set(dir(ope.policies))
    words = inspect.getdoc(LearnerEvent) or ""
    assert "a true return value stops training" in words
    assert re.search(r"policy : callable\n .*the policy learned so far", words)
