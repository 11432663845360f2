"""A small right learner, and what it means that a broken plug-in is caught; the tests of the checks share them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.utils.validation import check_is_fitted
from typing_extensions import Self

from ope import LoggedDataset, PolicyLearner
from ope.policies.discrete import DiscretePolicy
from ope.validation import FloatArray


class Frequencies(PolicyLearner, DiscretePolicy):
    """The smallest learner: the frequencies of the logged actions."""

    def __init__(self, pseudo_count: float = 1.0) -> None:
        self.pseudo_count = pseudo_count

    def fit(self, data: LoggedDataset) -> Self:
        if not isinstance(data, LoggedDataset):
            raise TypeError(f"{type(self).__name__}.fit: `data` must be a LoggedDataset, got {type(data).__name__}.")
        counts = np.bincount(data.actions, minlength=data.n_actions) + self.pseudo_count
        self.probs_ = counts / counts.sum()
        self.labels_ = data.action_labels
        self._remember(data)
        return self

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        return getattr(self, "labels_", None)

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        check_is_fitted(self, "probs_")
        return np.tile(self.probs_, (len(np.asarray(states)), 1))


def assert_caught(check: Callable[[Any], Any], broken: Any, caught_by: set[str]) -> None:
    """Assert that these checks fail, with a message of owner, rule, what came and remedy each, all in one error."""
    owner = type(broken).__name__
    with pytest.raises(AssertionError) as caught:
        check(broken)
    head, *rest = re.split(r"\n- (?=[a-z_]+: )", str(caught.value))
    assert re.fullmatch(rf"{owner} fails {len(rest)} of \d+ checks:", head)
    messages = dict(text.split(": ", 1) for text in rest)
    assert caught_by <= set(messages), messages
    for message in messages.values():
        assert message.startswith(f"{owner}: ")
        assert ", got " in message
        assert message.endswith(".")
