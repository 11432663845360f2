"""The checks of plug-ins catch what is broken, by the right check and in words that help, and let pass what is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from plug_ins import Frequencies, assert_caught
from typing_extensions import Self

from ope import Estimate, LoggedDataset, Policy
from ope.estimator import EXACT, STATISTICAL, OffPolicyEstimator
from ope.estimators import LSTDQ, DoublyRobust, PerDecisionIS
from ope.policies import GaussianPolicy
from ope.testing import check_estimator, check_policy
from ope.testing.estimators import EstimatorSubject
from ope.testing.logs import KINDS, make_case, padded_pair, sharded
from ope.testing.tools import first_difference, kept_data
from ope.validation import FloatArray

# -------------------------------------------------------------------- plug-ins that are right


class ReturnOfTheLog(OffPolicyEstimator):
    """The smallest estimator: the mean return, as if every candidate were the logging policy."""

    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"scale_rewards": EXACT, "permute_episodes": EXACT, "on_policy_mean": EXACT, "shards_merge": EXACT}
    )

    def __init__(self, *, gamma: float | None = None) -> None:
        self.gamma = gamma

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        if "all_probs" in policy.capabilities and data.action_labels is not None:
            policy.proba_rows(data.rows())
        steps = np.concatenate([np.arange(length) for length in data.lengths])
        returns = np.add.reduceat(self._gamma**steps * data.rewards, data.offsets[:-1])
        value = float(np.mean(weight * returns))
        return self._result(data, name, value=value, influence=weight * (returns - value))


def test_the_smallest_plug_ins_pass() -> None:
    assert {result.name for result in check_estimator(ReturnOfTheLog(gamma=0.9)) if result.status == "skipped"} == {
        "requirement",
        "law_one_step_bandit",
        "law_padding",
        "law_shift_rewards",
    }
    assert {result.name for result in check_policy(Frequencies()) if result.status == "skipped"} == {
        "quadrature",
        "feature_names",
        "file",
    }


class NoisyValue(PerDecisionIS):
    """Per-decision importance sampling with noise from its seed: right on average, and declared so."""

    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"scale_rewards": STATISTICAL, "permute_episodes": EXACT, "on_policy_mean": STATISTICAL}
    )
    bias: ClassVar[float] = 0.0

    def __init__(self, *, gamma: float | None = None, clip: float | None = None, random_state: int = 0) -> None:
        self.gamma = gamma
        self.clip = clip
        self.random_state = random_state

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        estimate = super()._fit_one(data, policy, name, weight)
        size = float(np.abs(data.rewards).mean())
        rng = np.random.default_rng([self.random_state, round(abs(size))])
        value = estimate.value + size * (0.1 * rng.normal() + self.bias)
        return self._result(data, name, value=value, influence=estimate.influence)


class BiasedNoisyValue(NoisyValue):
    bias: ClassVar[float] = 0.05


def test_statistical_laws_hold_on_average() -> None:
    status = {result.name: result.status for result in check_estimator(NoisyValue(gamma=0.9))}
    assert status["law_scale_rewards"] == status["law_on_policy_mean"] == "passed"


def test_a_bias_breaks_a_statistical_law() -> None:
    with pytest.raises(AssertionError, match=r"\n- law_on_policy_mean: .*statistical.*standard errors"):
        check_estimator(BiasedNoisyValue(gamma=0.9))


def test_a_method_is_no_more_exact_than_the_one_nested_in_it() -> None:
    class _AverageQ(LSTDQ):
        laws: ClassVar[Mapping[str, str]] = MappingProxyType({"scale_rewards": STATISTICAL, "permute_episodes": EXACT})

    subject = EstimatorSubject(DoublyRobust(gamma=0.9, q=_AverageQ()))
    assert [subject.strength(law) for law in ("scale_rewards", "permute_episodes")] == [STATISTICAL, EXACT]


# -------------------------------------------------------------------- estimators that are wrong


class _Broken(PerDecisionIS):
    """A copy of per-decision importance sampling for each way to be wrong."""

    def _altered(self, data: LoggedDataset, name: str, estimate: Estimate, change: float) -> Estimate:
        return self._result(data, name, value=estimate.value + change, influence=estimate.influence)


class ChangesItsData(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        object.__setattr__(data, "rewards", data.rewards * 2.0)
        return super()._fit_one(data, policy, name, weight)


class ChangesItsWeights(_Broken):
    def fit(self, data: Any, policy: Any, episode_weight: Any = None) -> Self:
        if isinstance(episode_weight, np.ndarray):
            episode_weight /= episode_weight.max()
        return super().fit(data, policy, episode_weight)


class KeepsItsData(_Broken):
    def fit(self, data: Any, policy: Any, episode_weight: Any = None) -> Self:
        super().fit(data, policy, episode_weight)
        self.blocks_ = [{"log": data}]
        return self


class KeepsAView(_Broken):
    def fit(self, data: Any, policy: Any, episode_weight: Any = None) -> Self:
        super().fit(data, policy, episode_weight)
        self.head_ = data.rewards[:3]
        return self


class KeepsBytes(_Broken):
    def fit(self, data: Any, policy: Any, episode_weight: Any = None) -> Self:
        super().fit(data, policy, episode_weight)
        self.text_ = data.rewards.tobytes()
        return self


class KeepsAFunction(_Broken):
    def fit(self, data: Any, policy: Any, episode_weight: Any = None) -> Self:
        super().fit(data, policy, episode_weight)
        self.again_ = lambda: data.rewards.sum()
        return self


class ClipsRewards(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        return super()._fit_one(data.replace(rewards=np.clip(data.rewards, -2.0, 2.0)), policy, name, weight)


class SkipsTheFirstEpisode(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        estimate = super()._fit_one(data, policy, name, weight)
        return self._altered(data, name, estimate, -float(data.rewards[0]) / data.n_episodes)


class ReadsTheFirstBlock(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        block = next(iter(data.blocks()))
        part = super()._fit_one(block, policy, name, weight[: block.n_episodes])
        return self._result(data, name, value=part.value)


class CountsSteps(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        estimate = super()._fit_one(data, policy, name, weight)
        return self._altered(data, name, estimate, float(np.abs(data.rewards).max()) * data.n_transitions / data.n_episodes)  # fmt: skip


class FailingRepr(_Broken):
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class AnonymousRepr(_Broken):
    def __repr__(self) -> str:
        return "an estimator"


class ConvertsInInit(_Broken):
    def __init__(self, *, gamma: float | None = None, clip: float | None = None) -> None:
        super().__init__(gamma=None if gamma is None else float(gamma), clip=clip)


class PreparesInInit(_Broken):
    def __init__(self, *, gamma: float | None = None, clip: float | None = None) -> None:
        super().__init__(gamma=gamma, clip=clip)
        self.prepared = True


class ReturnsNothing(_Broken):
    def fit(self, data: Any, policy: Any, episode_weight: Any = None) -> Any:
        super().fit(data, policy, episode_weight)


class SetsAParameter(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        self.clip = 1e9
        return super()._fit_one(data, policy, name, weight)


class LearnsWithoutUnderscore(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        self.answer = 42
        return super()._fit_one(data, policy, name, weight)


class DrawsGlobally(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        noise = float(np.random.normal())  # noqa: NPY002
        return self._altered(data, name, super()._fit_one(data, policy, name, weight), noise)


class SeedsGlobally(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        np.random.seed(0)  # noqa: NPY002
        return super()._fit_one(data, policy, name, weight)


class Remembers(_Broken):
    n_fits_ = 0

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        self.n_fits_ += 1
        return self._altered(data, name, super()._fit_one(data, policy, name, weight), float(self.n_fits_))


class ComputesInEstimate(_Broken):
    n_calls_ = 0

    def estimate(self) -> Any:
        self.n_calls_ += 1
        return self.failed_after(super().estimate())

    def failed_after(self, estimate: Any) -> Any:
        return (
            dataclasses.replace(estimate, widening=float(self.n_calls_)) if isinstance(estimate, Estimate) else estimate
        )


class LosesCandidates(_Broken):
    def _fit_many(self, data: LoggedDataset, policies: Mapping[str, Policy], weight: FloatArray) -> dict[str, Estimate]:
        return {name: self._fit_named(data, policy, name, weight) for name, policy in policies.items()}


class MixesCandidates(_Broken):
    def _fit_many(self, data: LoggedDataset, policies: Mapping[str, Policy], weight: FloatArray) -> dict[str, Estimate]:
        estimates = super()._fit_many(data, policies, weight)
        return dict(zip(estimates, reversed(list(estimates.values())), strict=True))


class TakesAnything(_Broken):
    def _check_log(self, data: Any) -> None:
        pass


class TakesAnyPolicy(_Broken):
    def _check_policy(self, data: LoggedDataset, policy: Any, name: str) -> None:
        pass


class TakesAnyGamma(_Broken):
    def _validate(self) -> None:
        pass


class IgnoresWeights(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        return super()._fit_one(data, policy, name, np.ones_like(weight))


class HidesItsNeeds(_Broken):
    needs_propensities: ClassVar[bool] = False


class OffCentre(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        estimate = super()._fit_one(data, policy, name, weight)
        assert estimate.influence is not None
        return self._result(data, name, value=estimate.value, influence=estimate.influence + 1.0)


class SureWithoutReason(_Broken):
    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        return self._result(data, name, value=super()._fit_one(data, policy, name, weight).value)


class NoLaws(_Broken):
    laws: ClassVar[Mapping[str, str]] = MappingProxyType({})


class MisspeltLaw(_Broken):
    laws: ClassVar[Mapping[str, str]] = MappingProxyType({**PerDecisionIS.laws, "scale_reward": EXACT})


class LawWithoutReason(_Broken):
    laws: ClassVar[Mapping[str, str]] = MappingProxyType({**PerDecisionIS.laws, "padding": "no"})


class OverclaimsShift(_Broken):
    laws: ClassVar[Mapping[str, str]] = MappingProxyType({**PerDecisionIS.laws, "shift_rewards": EXACT})


class SharesNested(_Broken):
    def __init__(self, *, gamma: float | None = None, clip: float | None = None, inner: Any = None) -> None:
        super().__init__(gamma=gamma, clip=clip)
        self.inner = inner

    def set_params(self, **params: Any) -> Self:
        super().set_params(**{name: value for name, value in params.items() if "__" not in name})
        return self


BROKEN: list[tuple[OffPolicyEstimator, set[str]]] = [
    (ChangesItsData(gamma=0.9), {"inputs_stay"}),
    (ChangesItsWeights(gamma=0.9), {"inputs_stay"}),
    (KeepsItsData(gamma=0.9), {"no_data_kept"}),
    (KeepsAView(gamma=0.9), {"no_data_kept"}),
    (KeepsBytes(gamma=0.9), {"no_data_kept"}),
    (KeepsAFunction(gamma=0.9), {"no_data_kept", "copies"}),
    (ClipsRewards(gamma=0.9), {"law_scale_rewards"}),
    (SkipsTheFirstEpisode(gamma=0.9), {"law_permute_episodes"}),
    (ReadsTheFirstBlock(gamma=0.9), {"law_shards_merge", "result"}),
    (CountsSteps(gamma=0.9), {"law_on_policy_mean", "law_one_step_bandit", "law_padding"}),
    (FailingRepr(gamma=0.9), {"repr", "clone"}),
    (AnonymousRepr(gamma=0.9), {"repr"}),
    (ConvertsInInit(gamma=0.9), {"init_only_assigns"}),
    (PreparesInInit(gamma=0.9), {"init_only_assigns"}),
    (ReturnsNothing(gamma=0.9), {"fit_contract"}),
    (SetsAParameter(gamma=0.9), {"fit_contract"}),
    (LearnsWithoutUnderscore(gamma=0.9), {"fit_contract"}),
    (DrawsGlobally(gamma=0.9), {"seeds", "repeated_fits", "law_permute_episodes"}),
    (SeedsGlobally(gamma=0.9), {"seeds"}),
    (Remembers(gamma=0.9), {"repeated_fits"}),
    (ComputesInEstimate(gamma=0.9), {"fit_contract"}),
    (LosesCandidates(gamma=0.9), {"failing_candidate"}),
    (MixesCandidates(gamma=0.9), {"mapping"}),
    (TakesAnything(gamma=0.9), {"wrong_types"}),
    (TakesAnyPolicy(gamma=0.9), {"wrong_types", "requirement"}),
    (TakesAnyGamma(gamma=0.9), {"gamma"}),
    (IgnoresWeights(gamma=0.9), {"episode_weight"}),
    (HidesItsNeeds(gamma=0.9), {"propensities"}),
    (OffCentre(gamma=0.9), {"result"}),
    (SureWithoutReason(gamma=0.9), {"result"}),
    (NoLaws(gamma=0.9), {"declared_laws", "law_scale_rewards", "law_permute_episodes"}),
    (MisspeltLaw(gamma=0.9), {"declared_laws"}),
    (LawWithoutReason(gamma=0.9), {"declared_laws"}),
    (OverclaimsShift(gamma=0.9), {"law_shift_rewards"}),
    (SharesNested(gamma=0.9, inner=LSTDQ()), {"parameters"}),
    (PerDecisionIS(), {"gamma", "result"}),
]


# Estimators offer themselves as remedies in errors; these must not.
OffPolicyEstimator._known[:] = [known for known in OffPolicyEstimator._known if known.__module__ != __name__]


@pytest.mark.parametrize(("broken", "caught_by"), BROKEN, ids=lambda value: type(value).__name__)
def test_a_broken_estimator_is_caught(broken: OffPolicyEstimator, caught_by: set[str]) -> None:
    assert_caught(check_estimator, broken, caught_by)


def test_what_is_neither_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"check_estimator: `estimator` must be an OffPolicyEstimator, got .*; pass"):
        check_estimator(PerDecisionIS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"check_policy: `policy` must be a Policy, got .*; wrap"):
        check_policy(np.ones((2, 2)))  # type: ignore[arg-type]


# -------------------------------------------------------------------- the tools of the checks


@pytest.mark.parametrize("kind", KINDS)
def test_logs_are_the_same_each_time_and_have_their_behaviour_as_propensities(kind: str) -> None:
    case, again, other = make_case(kind, 3), make_case(kind, 3), make_case(kind, 4)
    assert np.array_equal(case.log.rewards, again.log.rewards)
    assert not np.array_equal(case.log.rewards[:10], other.log.rewards[:10])
    assert case.log.behavior_log_prob is not None
    labels = case.log.action_labels
    actions = case.log.actions if labels is None else labels[case.log.actions]
    if kind != "mixed" and labels is not None:
        columns = [list(labels).index(action) for action in actions]
        expected = np.log(
            [case.behavior.predict_proba(case.log.states)[row, column] for row, column in enumerate(columns)]
        )
    else:
        expected = case.behavior.log_prob(case.log.states, actions)
    np.testing.assert_allclose(case.log.behavior_log_prob, expected)


def test_padding_adds_rows_of_reward_0_on_which_policies_agree() -> None:
    short, long = padded_pair(0)
    assert list(short.log.episode_ids) == list(long.log.episode_ids)
    assert (long.log.lengths >= short.log.lengths).all()
    added = long.log.states[:, 3] == 1.0
    assert added.sum() == len(long.log) - len(short.log) > 0
    assert not long.log.rewards[added].any()
    np.testing.assert_array_equal(long.log.rewards[~added], short.log.rewards)
    absorbed = [policy.predict_proba(np.eye(4)[[3]]) for policy in (long.behavior, long.candidate, long.other)]
    np.testing.assert_array_equal(absorbed[0], absorbed[1])
    np.testing.assert_array_equal(absorbed[0], absorbed[2])


def test_shards_are_the_log_in_parts() -> None:
    log = make_case("mixed").log
    parts = list(sharded(log).blocks())
    assert len(parts) > 4
    assert max(len(part) for part in parts) <= sharded(log).shard_rows
    np.testing.assert_array_equal(np.concatenate([part.rewards for part in parts]), log.rewards)
    assert sharded(log).data_id == log.data_id


@pytest.mark.parametrize(
    ("found", "expected", "rtol", "differ"),
    [
        (1.0, 1.0, 0.0, False),
        (1.0, np.nextafter(1.0, 2.0), 0.0, True),
        (1.0, 1.0 + 1e-10, 1e-8, False),
        (float("nan"), float("nan"), 0.0, False),
        (float("inf"), float("inf"), 1e-8, False),
        (float("inf"), 1.0, 1e-8, True),
        (np.arange(3.0), np.arange(4.0), 0.0, True),
        (np.array(["a", "b"]), np.array(["a", "c"]), 0.0, True),
        (np.array([0, 1]), np.array([0.0, 1.0]), 0.0, True),
        ({"a": 1, "b": np.ones(2)}, {"a": 1, "b": np.ones(2)}, 0.0, False),
        ({"a": 1}, {"b": 1}, 0.0, True),
        (None, np.ones(2), 0.0, True),
        ("x", "x", 0.0, False),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}), 0.0, False),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]}), 0.0, True),
    ],
)
def test_first_difference(found: Any, expected: Any, rtol: float, differ: bool) -> None:
    assert (first_difference(found, expected, rtol) is not None) == differ


@pytest.mark.parametrize("hidden", ["array", "list", "nested", "frame", "rows", "object", "method", "closure", "slots"])
def test_kept_data_is_found_wherever_it_hides(hidden: str) -> None:
    log = make_case("terminal").log

    class Slotted:
        __slots__ = ("inner",)

    slotted = Slotted()
    slotted.inner = log.rewards.copy()  # type: ignore[attr-defined]
    places: dict[str, Any] = {
        "array": log.rewards.copy(),
        "list": log.rewards.tolist(),
        "nested": {"a": [({"b": log.rewards * 2.0},)]},
        "frame": pd.DataFrame({"r": log.rewards}),
        "rows": log.rows(),
        "object": np.array([log, None], dtype=object),
        "method": log.describe,
        "closure": lambda: log.states,
        "slots": slotted,
    }
    fitted = GaussianPolicy([[1.0]], 1.0)
    assert kept_data(fitted, log, {}) is None
    fitted.thing_ = places[hidden]
    assert (path := kept_data(fitted, log, {})) is not None
    assert path.startswith(".thing_")
    assert kept_data(fitted, log, {"thing_": None}) is None
