"""Whether learners can learn with their settings, asked before any of them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ope.dataset import LoggedDataset
from ope.policy import PolicyLearner
from ope.search.training import with_setting


def check_settings(
    owner: str,
    learner: PolicyLearner,
    settings: Sequence[Mapping[str, Any]],
    data: LoggedDataset,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Raise for the first setting with which the learner would refuse to learn from the log.

    Parameters
    ----------
    owner : str
        Who asks, for the wording of errors.
    learner : PolicyLearner
    settings : sequence of mappings
    data : LoggedDataset
    changes : mapping, optional
        What the search itself changes for a part of its work.

    Raises
    ------
    ValueError, TypeError
        As the learner's own `fit` would raise it, with the setting.
    """
    for setting in settings:
        try:
            check_learner(with_setting(learner, {**setting, **(changes or {})}), data)
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{_whose(owner, setting, changes)}: {error}") from error


def _whose(owner: str, setting: Mapping[str, Any], changes: Mapping[str, Any] | None) -> str:
    where = "" if changes is None else f" with {_words(changes)} for the screen"
    if not setting:
        return f"{owner}: `learner` must be able to learn from `data`{where}"
    return f"{owner}: `param_grid` must hold settings that can be learned, got {_words(setting)}{where}"


def _words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in setting.items())


def check_learner(learner: PolicyLearner, data: LoggedDataset) -> None:
    """Raise what `fit` would raise of settings and log before it trains; an unknown learner passes, and fails in `fit`.

    Parameters
    ----------
    learner : PolicyLearner
    data : LoggedDataset
    """
    if not _is_ours(learner):
        return
    ours: Any = learner
    ours._check(data)
    if "learner" in ours.get_params(deep=False):
        check_learner(ours.learner, data)


def _is_ours(learner: PolicyLearner) -> bool:
    # Elsewhere a method `_check` may mean something else.
    return any(kind.__module__.startswith("ope.policies.") for kind in type(learner).__mro__)
