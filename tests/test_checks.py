"""The checks of plug-ins: every estimator and policy of the library passes them, and broken ones are caught.

A new estimator is checked with its defaults; add an entry to SETTINGS to check more, or cheaper, settings of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import SplineTransformer
from sklearn.tree import DecisionTreeRegressor
from typing_extensions import Self

import ope.estimators
import ope.policies
from ope import Estimate, LoggedDataset, Policy, PolicyLearner
from ope.estimator import EXACT, STATISTICAL, OffPolicyEstimator
from ope.estimators import LSTDQ, DoublyRobust, FittedQEvaluation, ImportanceSampling, PerDecisionIS, WeightedIS
from ope.policies import (
    BCQ,
    BehaviorCloning,
    ClassifierPolicy,
    ColumnPolicy,
    EpsilonGreedy,
    FunctionPolicy,
    GaussianPolicy,
    TabularPolicy,
)
from ope.policies.discrete import DiscretePolicy
from ope.testing import CheckResult, check_estimator, check_policy, estimator_checks, policy_checks
from ope.testing_estimators import EstimatorSubject
from ope.testing_logs import CANDIDATE, KINDS, LABELS, linear_action, make_case, padded_pair, sharded
from ope.testing_tools import first_difference, kept_data
from ope.validation import FloatArray

# -------------------------------------------------------------------- the estimators of the library

TREE = DecisionTreeRegressor(max_depth=2)
LINEAR: dict[str, Any] = {"regressor": LinearRegression(fit_intercept=False), "features": "auto", "tol": 0.1}

SETTINGS: Mapping[str, list[dict[str, Any]]] = {
    "ImportanceSampling": [
        {},
        {"per_decision": False, "clip": 50.0},
        {"self_normalized": True, "gamma": 1.0},
        {"self_normalized": True, "per_decision": False},
    ],
    "WeightedIS": [{}, {"per_decision": False}, {"clip": 20.0, "gamma": 0.0}],
    "LSTDQ": [{}, {"stationary": True, "ridge": 0.1}, {"features": SplineTransformer(3), "ridge": 1e-3}],
    "FittedQEvaluation": [
        {"regressor": TREE, "max_iter": 3},
        {"regressor": RandomForestRegressor(2, max_depth=2), "max_iter": 2, "stationary": True},
        {**LINEAR, "n_bootstrap": 2},
    ],
    "DoublyRobust": [
        {"n_folds": 2},
        {"n_folds": 2, "weighted": True, "gamma": 1.0},
        {"n_folds": 2, "q": LSTDQ(features="identity", stationary=True)},
        {"n_folds": 2, "q": FittedQEvaluation(regressor=TREE, max_iter=2)},
    ],
}
ESTIMATORS = [
    getattr(ope.estimators, name)(**{"gamma": 0.9, **setting})
    for name in ope.estimators.__all__
    for setting in SETTINGS.get(name, [{}])
]
IS_LAWS = {f"law_{name}" for name in ("on_policy_mean", "one_step_bandit", "shards_merge", "padding")}


class Run(NamedTuple):
    """A check of one estimator."""

    estimator: OffPolicyEstimator
    name: str
    check: Callable[[], None]

    def __str__(self) -> str:
        return f"{' '.join(repr(self.estimator).split())}-{self.name}"


RUNS = [Run(estimator, *pair) for estimator in ESTIMATORS for pair in estimator_checks(estimator)]


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_estimator(run: Run) -> None:
    run.check()


@pytest.mark.parametrize("name", sorted({type(estimator).__name__ for estimator in ESTIMATORS}))
def test_every_estimator_serves_discrete_and_continuous_logs_of_all_ends(name: str) -> None:
    """So that a refusal cannot hide the rest of the checks; a narrower method needs a line of its own here."""
    estimator = next(estimator for estimator in ESTIMATORS if type(estimator).__name__ == name)
    served = set(EstimatorSubject(estimator).served)
    deterministic = "logged_prob" not in set().union(*estimator.requires)
    assert served == set(KINDS) - (set() if deterministic else {"deterministic"})


@pytest.mark.parametrize("estimator", [PerDecisionIS(gamma=0.9), WeightedIS(gamma=0.9, per_decision=False)])
def test_laws_of_importance_sampling_are_tried(estimator: OffPolicyEstimator) -> None:
    status = {result.name: result.status for result in check_estimator(estimator)}
    assert {name for name, state in status.items() if state == "passed"} >= IS_LAWS
    expected = "passed" if isinstance(estimator, WeightedIS) else "skipped"
    assert status["law_shift_rewards"] == expected


def test_a_law_that_does_not_apply_is_skipped_with_its_reason() -> None:
    results = check_estimator(PerDecisionIS(gamma=0.9))
    reason = ImportanceSampling.laws["shift_rewards"]
    assert CheckResult("law_shift_rewards", "skipped", reason) in results


# -------------------------------------------------------------------- the policies of the library

SMALL: dict[str, Any] = {"hidden": (8,), "n_updates": 20, "batch_size": 16, "log_every": 10}
TABLE = [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]


@cache
def features_log() -> LoggedDataset:
    """Return a log of two named features, with three probabilities in other columns."""
    log = make_case("mixed").log
    probs = np.random.default_rng(0).dirichlet(np.ones(3), len(log))
    return log.replace(extras=pd.DataFrame(probs, columns=["p", "q", "r"]))


@cache
def masked_log() -> LoggedDataset:
    """Return a log in which some actions were unavailable."""
    log = make_case("mixed").log
    mask = np.random.default_rng(1).random((len(log), 3)) < 0.6
    mask[np.arange(len(log)), log.actions] = True
    return log.replace(action_mask=mask, final_action_mask=np.ones((log.n_episodes, 3), bool))


@cache
def two_dimensional_log() -> LoggedDataset:
    """Return a log of two continuous actions."""
    log = make_case("continuous").log
    actions = np.hstack([log.actions, 3.0 * log.actions + 1.0 + np.sin(np.arange(len(log)))[:, None]])
    return LoggedDataset.from_arrays(log.states, actions, log.rewards, lengths=log.lengths, ends="terminal")


@cache
def classifier(named: bool = True) -> LogisticRegression:
    log = features_log()
    assert log.action_labels is not None
    states = pd.DataFrame(log.states, columns=list(log.feature_names)) if named else log.states
    return LogisticRegression().fit(states, log.action_labels[log.actions])


@cache
def regressor() -> LinearRegression:
    log = make_case("continuous").log
    return LinearRegression().fit(log.states, log.actions)


def hold_if_old(states: FloatArray) -> npt.NDArray[Any]:
    return np.where(states[:, 0] > 0, "hold", "left")


def uniform(states: FloatArray) -> FloatArray:
    return np.full((len(states), 3), 1.0 / 3.0)


def noise_around_zero(states: FloatArray, rng: np.random.Generator) -> FloatArray:
    return rng.normal(size=(len(states), 1))


def log_density_around_zero(_states: FloatArray, actions: FloatArray) -> FloatArray:
    return np.asarray(-0.5 * actions[:, 0] ** 2 - 0.5 * np.log(2.0 * np.pi))


class Acting(NamedTuple):
    """A policy, and the log on which it acts (None for the default one)."""

    policy: Policy
    log: LoggedDataset | None = None


BY_POSITION = {"age": "p", "pulse": "q"}
POLICIES: Mapping[str, Callable[[], Acting]] = {
    "BCQ": lambda: Acting(BCQ(**SMALL)),
    "BCQ masked": lambda: Acting(BCQ(**SMALL, threshold=0.0), masked_log()),
    "BehaviorCloning": lambda: Acting(BehaviorCloning(**SMALL)),
    "BehaviorCloning masked": lambda: Acting(BehaviorCloning(**SMALL, normalize_states=False), masked_log()),
    "BehaviorCloning continuous": lambda: Acting(BehaviorCloning(**SMALL), two_dimensional_log()),
    "ClassifierPolicy of names": lambda: Acting(ClassifierPolicy(classifier())),
    "ClassifierPolicy of arrays": lambda: Acting(ClassifierPolicy(classifier(named=False))),
    "ClassifierPolicy of columns": lambda: Acting(
        ClassifierPolicy(classifier(), columns=["age", "pulse"], feature_names=["age", "pulse"])
    ),
    "ColumnPolicy": lambda: Acting(ColumnPolicy("p"), features_log()),
    "ColumnPolicy of all": lambda: Acting(ColumnPolicy(["p", "q", "r"]), features_log()),
    "ColumnPolicy of labels": lambda: Acting(
        ColumnPolicy({"right": "p", "hold": "q", "left": "r"}), features_log()
    ),
    "EpsilonGreedy": lambda: Acting(EpsilonGreedy(TabularPolicy(TABLE), 0.3)),
    "EpsilonGreedy of a classifier": lambda: Acting(EpsilonGreedy(ClassifierPolicy(classifier()), 0.3)),
    "EpsilonGreedy of a learner": lambda: Acting(
        EpsilonGreedy(BehaviorCloning(**SMALL).fit(features_log()), 0.1), features_log()
    ),
    "FunctionPolicy deterministic": lambda: Acting(FunctionPolicy(predict=linear_action)),
    "FunctionPolicy labelled": lambda: Acting(FunctionPolicy(predict=hold_if_old, action_labels=LABELS)),
    "FunctionPolicy of probabilities": lambda: Acting(FunctionPolicy(predict_proba=uniform)),
    "FunctionPolicy of a density": lambda: Acting(
        FunctionPolicy(log_prob=log_density_around_zero, sample=noise_around_zero), make_case("continuous").log
    ),
    "GaussianPolicy": lambda: Acting(GaussianPolicy([[0.5]], 1.0)),
    "GaussianPolicy of two": lambda: Acting(GaussianPolicy([[0.5, 1.0]], [1.0, 0.5]), two_dimensional_log()),
    "GaussianPolicy of a regressor": lambda: Acting(GaussianPolicy(regressor(), 0.7)),
    "TabularPolicy": lambda: Acting(TabularPolicy(TABLE)),
    "TabularPolicy in another order": lambda: Acting(TabularPolicy(TABLE, action_labels=LABELS[::-1])),
}
# The checks that do not apply, by what the policy lacks.
NO_NAMES, NO_NODES, NO_FILE = {"feature_names"}, {"quadrature"}, {"file"}
NO_DRAWS = {"bare_states", "predict", "sample", "sample_seeds"}
NOT_DISCRETE = {"probabilities", "bare_states", "masks"}
SKIPPED: Mapping[str, set[str]] = {
    "BCQ": NO_NODES,
    "BCQ masked": NO_NODES,
    "BehaviorCloning": NO_NODES,
    "BehaviorCloning masked": NO_NODES,
    "BehaviorCloning continuous": NOT_DISCRETE,
    "ClassifierPolicy of names": NO_NODES,
    "ClassifierPolicy of arrays": NO_NODES | NO_NAMES,
    "ClassifierPolicy of columns": NO_NODES,
    "ColumnPolicy": NO_NODES | NO_NAMES | NO_DRAWS | NOT_DISCRETE,
    "ColumnPolicy of all": NO_NODES | NO_NAMES | NO_DRAWS,
    "ColumnPolicy of labels": NO_NODES | NO_NAMES | NO_DRAWS,
    "EpsilonGreedy": NO_NODES | NO_NAMES,
    "EpsilonGreedy of a classifier": NO_NODES,
    "EpsilonGreedy of a learner": NO_NODES,
    "FunctionPolicy deterministic": NO_NODES | NO_NAMES | NOT_DISCRETE | {"log_prob"},
    "FunctionPolicy labelled": NO_NODES | NO_NAMES,
    "FunctionPolicy of probabilities": NO_NODES | NO_NAMES,
    "FunctionPolicy of a density": NO_NODES | NO_NAMES | NOT_DISCRETE | {"predict"},
    "GaussianPolicy": NO_NAMES | NOT_DISCRETE,
    "GaussianPolicy of two": NO_NAMES | NOT_DISCRETE,
    "GaussianPolicy of a regressor": NO_NAMES | NOT_DISCRETE,
    "TabularPolicy": NO_NODES | NO_NAMES,
    "TabularPolicy in another order": NO_NODES | NO_NAMES,
}


@pytest.mark.parametrize("name", POLICIES)
def test_policy(name: str) -> None:
    acting = POLICIES[name]()
    results = check_policy(acting.policy, acting.log)
    assert {result.name for result in results if result.status == "skipped"} == SKIPPED[name]
    assert all(result.reason for result in results if result.status == "skipped")


def test_every_policy_of_the_library_is_checked() -> None:
    """A new policy needs an entry in POLICIES: nobody can guess its arguments."""
    assert {name.split()[0] for name in POLICIES} == set(ope.policies.__all__)


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
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "probs_")
        return np.tile(self.probs_, (len(np.asarray(states)), 1))


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
    with pytest.raises(AssertionError, match=r"fails 1 of .*\n- law_on_policy_mean: .*statistical.*standard errors"):
        check_estimator(BiasedNoisyValue(gamma=0.9))


def test_a_method_is_no_more_exact_than_the_one_nested_in_it() -> None:
    class AverageQ(LSTDQ):
        laws: ClassVar[Mapping[str, str]] = MappingProxyType({"scale_rewards": STATISTICAL, "permute_episodes": EXACT})

    subject = EstimatorSubject(DoublyRobust(gamma=0.9, q=AverageQ()))
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
        import dataclasses

        return dataclasses.replace(estimate, widening=float(self.n_calls_)) if isinstance(estimate, Estimate) else estimate


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
        return super().set_params(**{name: value for name, value in params.items() if "__" not in name})


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


def failures(checks: Any) -> dict[str, str]:
    """Return the messages of the checks that fail; anything but an AssertionError passes on."""
    messages = {}
    for name, check in checks:
        try:
            check()
        except AssertionError as error:
            messages[name] = str(error)
        except Exception as skip:
            assert type(skip).__name__ == "SkipTest"
    return messages


@pytest.mark.parametrize(("broken", "caught_by"), BROKEN, ids=lambda value: type(value).__name__)
def test_a_broken_estimator_is_caught(broken: OffPolicyEstimator, caught_by: set[str]) -> None:
    messages = failures(estimator_checks(broken))
    assert caught_by <= set(messages), messages
    owner = type(broken).__name__
    for message in messages.values():
        assert message.startswith(owner)
        assert ", got " in message
        assert message.endswith(".")
    with pytest.raises(AssertionError, match=rf"^{owner} fails {len(messages)} of \d+ checks:"):
        check_estimator(broken)


def test_broken_estimators_are_not_offered_as_a_remedy() -> None:
    """They register themselves as estimators; other tests must not meet them."""
    known = {cls.__name__ for cls in OffPolicyEstimator._known}
    assert {"ChangesItsData", "ReturnOfTheLog"} <= known
