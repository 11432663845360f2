"""The checks of plug-ins catch broken policies and learners, by the right check and in words that help."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from plug_ins import Frequencies, assert_caught
from typing_extensions import Self

from ope import LoggedDataset, Policy
from ope.policies import GaussianPolicy
from ope.policies.discrete import DiscretePolicy
from ope.policy import RandomState
from ope.testing import check_policy
from ope.testing.logs import CANDIDATE
from ope.validation import FloatArray

LABELS: npt.NDArray[Any] = np.array(["hold", "left", "right"])


class _Table(DiscretePolicy):
    """A right policy over the three actions of the default log, to be broken in one way each."""

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        return LABELS

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        return np.asarray(np.asarray(states)[:, :3] @ CANDIDATE)


class UnnormalisedProbabilities(_Table):
    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        return 0.9 * super().predict_proba(states)


class LooksAtTheBatch(_Table):
    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        return np.tile(super().predict_proba(states).mean(axis=0), (len(np.asarray(states)), 1))


class DriftingProbabilities(_Table):
    n_calls_ = 0

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        self.n_calls_ += 1
        return np.asarray((super().predict_proba(states) + self.n_calls_ / 3.0) / (1.0 + self.n_calls_))


class NeedsArrays(_Table):
    def predict_proba(self, states: Any) -> FloatArray:
        return np.asarray(states[:, :3] @ CANDIDATE)


class RowsDisagree(_Table):
    def proba_rows(self, rows: Any) -> FloatArray:
        return np.roll(self.predict_proba(rows.states), 1, axis=1)


class WrongLogProb(_Table):
    def log_prob(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        return super().log_prob(states, actions) - 0.1


class PredictsTheLeast(_Table):
    def predict(self, states: npt.ArrayLike) -> npt.NDArray[Any]:
        return np.asarray(LABELS[self.predict_proba(states).argmin(axis=1)])


class PredictsCodes(_Table):
    def predict(self, states: npt.ArrayLike) -> npt.NDArray[Any]:
        return np.asarray(self.predict_proba(states).argmax(axis=1))


class SamplesUniformly(_Table):
    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> npt.NDArray[Any]:
        return np.random.default_rng(random_state).choice(LABELS, size=len(np.asarray(states)))


class SamplesCodes(_Table):
    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> npt.NDArray[Any]:
        return np.random.default_rng(random_state).integers(3, size=len(np.asarray(states)))


class IgnoresTheSeed(_Table):
    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> npt.NDArray[Any]:  # noqa: ARG002
        return super().sample(states, np.random.randint(1 << 30))  # noqa: NPY002


class CopiesTheGenerator(_Table):
    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> npt.NDArray[Any]:
        return super().sample(states, copy.deepcopy(random_state))


class ChangesTheStates(_Table):
    def predict(self, states: Any) -> npt.NDArray[Any]:
        if isinstance(states, np.ndarray) and states.flags.writeable:
            states *= 2
        return super().predict(states[:, :3] / 2)


class ClaimsADensity(_Table):
    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"density"}


class ClaimsToBeSure(_Table):
    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"deterministic"}


class UnknownCapability(_Table):
    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"telepathy"}


class IgnoresMasksWrongly(_Table):
    def proba_rows(self, rows: Any) -> FloatArray:
        probs = super().proba_rows(rows)
        return probs if rows.action_mask is None else np.where(rows.action_mask, 1.0, 0.0)


class WordlessPolicy(_Table):
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class HoldsALambda(_Table):
    def __init__(self, function: Any = None) -> None:
        self.function = function


class WrongStd(GaussianPolicy):
    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> FloatArray:
        mean = self.predict(states)
        return mean + 1.5 * (super().sample(states, random_state) - mean)


class WrongMean(GaussianPolicy):
    def predict(self, states: npt.ArrayLike) -> FloatArray:
        return super().predict(states) + 0.2


class WrongNodes(GaussianPolicy):
    def quadrature_rows(self, rows: Any) -> tuple[FloatArray, FloatArray]:
        nodes, weights = super().quadrature_rows(rows)
        return nodes, 0.9 * weights


class NarrowNodes(GaussianPolicy):
    def quadrature_rows(self, rows: Any) -> tuple[FloatArray, FloatArray]:
        nodes, weights = super().quadrature_rows(rows)
        return nodes.mean(axis=0, keepdims=True) + 0.1 * (nodes - nodes.mean(axis=0)), weights


class Forgetful(Frequencies):
    def _remember(self, data: LoggedDataset) -> None:
        self.training_episode_keys_ = data.episode_keys[:0]


class KeepsTheLog(Frequencies):
    def fit(self, data: LoggedDataset) -> Self:
        self.states_ = data.states
        return super().fit(data)


class LearnsAtRandom(Frequencies):
    def fit(self, data: LoggedDataset) -> Self:
        super().fit(data)
        self.probs_ = np.random.dirichlet(np.ones(3))  # noqa: NPY002
        return self


class AddsUp(Frequencies):
    def fit(self, data: LoggedDataset) -> Self:
        before = getattr(self, "probs_", None)
        super().fit(data)
        self.probs_ = self.probs_ if before is None else 0.5 * (np.roll(before, 1) + self.probs_)
        return self


class LearnsInInit(Frequencies):
    def __init__(self, pseudo_count: float = 1.0) -> None:
        super().__init__(pseudo_count)
        self.probs_ = np.full(3, 1.0 / 3.0)


class TakesAnyLog(Frequencies):
    def fit(self, data: Any) -> Self:
        return super().fit(data) if isinstance(data, LoggedDataset) else self


class NamesUnchecked(Frequencies):
    def fit(self, data: LoggedDataset) -> Self:
        self.feature_names_in_ = np.array(data.feature_names, dtype=object)
        return super().fit(data)


BROKEN_POLICIES: list[tuple[Policy, set[str]]] = [
    (UnnormalisedProbabilities(), {"probabilities"}),
    (LooksAtTheBatch(), {"probabilities"}),
    (DriftingProbabilities(), {"probabilities", "inputs_stay"}),
    (NeedsArrays(), {"bare_states"}),
    (RowsDisagree(), {"bare_states"}),
    (WrongLogProb(), {"log_prob"}),
    (PredictsTheLeast(), {"predict"}),
    (PredictsCodes(), {"predict"}),
    (SamplesUniformly(), {"sample"}),
    (SamplesCodes(), {"sample"}),
    (IgnoresTheSeed(), {"sample_seeds"}),
    (CopiesTheGenerator(), {"sample_seeds"}),
    (ChangesTheStates(), {"inputs_stay"}),
    (ClaimsADensity(), {"capabilities"}),
    (ClaimsToBeSure(), {"predict", "sample"}),
    (UnknownCapability(), {"capabilities"}),
    (IgnoresMasksWrongly(), {"masks"}),
    (WordlessPolicy(), {"repr"}),
    (HoldsALambda(lambda: 1), {"copies"}),
    (WrongStd([[0.5]], 1.0), {"sample", "quadrature"}),
    (WrongMean([[0.5]], 1.0), {"sample"}),
    (WrongNodes([[0.5]], 1.0), {"quadrature"}),
    (NarrowNodes([[0.5]], 1.0), {"quadrature"}),
    (Forgetful(), {"training_episodes"}),
    (KeepsTheLog(), {"no_data_kept"}),
    (LearnsAtRandom(), {"repeated_fits"}),
    (AddsUp(), {"repeated_fits"}),
    (LearnsInInit(), {"clone", "init_only_assigns"}),
    (TakesAnyLog(), {"wrong_type"}),
    (NamesUnchecked(), {"feature_names"}),
]


@pytest.mark.parametrize(("broken", "caught_by"), BROKEN_POLICIES, ids=lambda value: type(value).__name__)
def test_a_broken_policy_is_caught(broken: Policy, caught_by: set[str]) -> None:
    assert_caught(check_policy, broken, caught_by)


def test_the_table_itself_passes() -> None:
    assert {result.name for result in check_policy(_Table()) if result.status == "skipped"} == {
        "quadrature",
        "feature_names",
    }


def test_a_policy_for_another_log_asks_for_data() -> None:
    wide = GaussianPolicy(np.ones((7, 1)), 1.0)
    with pytest.raises(AssertionError, match=r"must act on one of the default logs, got .*; pass data="):
        check_policy(wide)
