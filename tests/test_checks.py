"""Every estimator and policy of the library passes the checks of plug-ins.

A new estimator is checked with its defaults; add an entry to SETTINGS to check more, or cheaper, settings of it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import SplineTransformer, StandardScaler
from sklearn.tree import DecisionTreeRegressor

import ope.estimators
import ope.policies
from ope import LoggedDataset, Policy
from ope.estimator import OffPolicyEstimator
from ope.estimators import (
    LSTDQ,
    FittedQEvaluation,
    ImportanceSampling,
    MarginalizedIS,
    NeuralFittedQEvaluation,
    NeuralFunctions,
    PerDecisionIS,
    StateMarginalIS,
    WeightedIS,
)
from ope.policies import (
    ATAC,
    AWAC,
    AWR,
    BCQ,
    BEAR,
    BRAC,
    CQL,
    CRR,
    EDAC,
    IQL,
    LSPI,
    REM,
    TD3BC,
    UWAC,
    BehaviorCloning,
    ClassifierPolicy,
    ColumnPolicy,
    DoubleDQN,
    EpsilonGreedy,
    FunctionPolicy,
    GaussianPolicy,
    PreprocessedLearner,
    TabularPolicy,
    TorchPolicy,
)
from ope.testing import CheckResult, check_estimator, check_policy, estimator_checks
from ope.testing.estimators import EstimatorSubject
from ope.testing.logs import KINDS, LABELS, linear_action, make_case
from ope.validation import FloatArray

# -------------------------------------------------------------------- the estimators of the library

TREE = DecisionTreeRegressor(max_depth=2)
LINEAR: dict[str, Any] = {"regressor": LinearRegression(fit_intercept=False), "features": "auto", "tol": 0.1}

TINY_NETWORKS: dict[str, Any] = {"hidden": (4,), "n_updates": 2, "batch_size": 8, "n_samples": 2}
TINY_ENSEMBLE: dict[str, Any] = {"hidden": (4,), "n_members": 2, "n_updates": 3, "batch_size": 8, "n_rollouts": 2}
TINY_FUNCTIONS = NeuralFunctions(hidden=(4,), n_updates=4, batch_size=8)


def by_sums(states: FloatArray, actions: npt.NDArray[Any]) -> FloatArray:
    """Return numbers that differ between states and actions."""
    names = actions.sum(axis=1) if actions.dtype.kind == "f" else np.char.str_len(actions.astype(str))
    return np.asarray(states @ np.arange(1.0, states.shape[1] + 1) + 0.1 * names)


def fading(states: FloatArray, actions: npt.NDArray[Any], rng: np.random.Generator) -> Any:
    """Stay where one is, with a reward that depends on it."""
    return by_sums(states, actions) + 0.1 * rng.standard_normal(len(states)), states, None


SETTINGS: Mapping[str, list[dict[str, Any]]] = {
    "ImportanceSampling": [
        {},
        {"per_decision": False, "clip": 50.0},
        {"self_normalized": True, "gamma": 1.0},
        {"self_normalized": True, "per_decision": False},
    ],
    "WeightedIS": [{}, {"per_decision": False}, {"clip": 20.0, "gamma": 0.0}],
    "ControlVariateIS": [{}, {"n_groups": 0, "gamma": 1.0}, {"n_groups": 2}],
    "IncrementalIS": [
        {},
        {"window": 2, "self_normalized": False, "gamma": 1.0},
        {"window": None, "clip": "lepski"},
        {"window": "lepski", "clip": 1.5, "self_normalized": False},
    ],
    "KernelIS": [
        {},
        {"bandwidth": "lepski", "kernel": "epanechnikov", "correct_bias": False, "gamma": 1.0},
        {"bandwidth": 0.8, "self_normalized": False, "per_decision": False},
    ],
    "MarginalizedIS": [{}, {"stationary": True, "ridge": 0.1}, {"features": SplineTransformer(3), "ridge": 1e-3}],
    "StateMarginalIS": [
        {},
        {"stationary": True, "visits": "discounted", "self_normalized": False},
        {"features": SplineTransformer(3), "ridge": 1e-3},
    ],
    "LSTD": [{}, {"stationary": True, "ridge": 0.1}, {"features": SplineTransformer(3), "ridge": 1e-3, "gamma": 1.0}],
    "DICE": [
        {},
        {"nu_regularizer": 1.0, "zeta_regularizer": 0.0, "reward": False, "stationary": True},
        {"network": TINY_FUNCTIONS},
        {"network": TINY_FUNCTIONS, "norm": False, "positive": False, "stationary": True},
    ],
    "CoinDICE": [{}, {"divergence": "kl", "stationary": True}],
    "GradientDICE": [{"ridge": 1e-3}, {"network": TINY_FUNCTIONS}],
    "COPTD": [{}, {"norm_penalty": 0.0, "stationary": True}],
    "MinimaxWeightLearning": [
        {},
        {"discriminator": "kernel", "n_components": 10, "ridge": 1e-3},
        {"network": TINY_FUNCTIONS},
    ],
    "MinimaxQLearning": [
        {},
        {"discriminator": "kernel", "n_components": 10, "ridge": 1e-3},
        {"network": TINY_FUNCTIONS},
    ],
    "LSTDQ": [
        {},
        {"stationary": True, "ridge": 0.1},
        {"features": SplineTransformer(3), "ridge": 1e-3},
        {"trace": "retrace"},
        {"trace": "q_lambda", "trace_lambda": 0.3, "stationary": True},
    ],
    "FittedQEvaluation": [
        {"regressor": TREE, "max_iter": 3},
        {"regressor": RandomForestRegressor(2, max_depth=2), "max_iter": 2, "stationary": True},
        {**LINEAR, "n_bootstrap": 2},
        {"regressor": TREE, "max_iter": 3, "trace": "retrace", "trace_lambda": 0.5},
        {"regressor": TREE, "max_iter": 3, "loss": "q_regression"},
        {"loss": "mrdr"},
    ],
    "DefaultEstimator": [{"neural": NeuralFittedQEvaluation(**TINY_NETWORKS)}],
    "ModelBased": [{}, {"homogeneous": True, "gamma": 1.0}, {"stationary": True}],
    "LinearGaussianModel": [
        {"n_bootstrap": 2, "n_rollouts": 50},
        {"n_bootstrap": 2, "n_rollouts": 50, "homogeneous": False},
        {"n_bootstrap": 0, "n_rollouts": 50, "stationary": True},
    ],
    "ModelEnsemble": [TINY_ENSEMBLE, {**TINY_ENSEMBLE, "homogeneous": True}, {**TINY_ENSEMBLE, "stationary": True}],
    "NeuralFittedQEvaluation": [TINY_NETWORKS, {**TINY_NETWORKS, "stationary": True, "n_bootstrap": 1, "n_folds": 3}],
    "GivenQ": [{"q": by_sums}, {"q": by_sums, "stationary": True}],
    "SimulatorQ": [{"simulator": fading, "n_replays": 2}],
    "AverageRewardLSTDQ": [{"gamma": 1.0}, {"gamma": 1.0, "features": SplineTransformer(3), "ridge": 1e-3}],
    "BellmanCalibrated": [
        {"min_episodes": 3},
        {"min_episodes": 5, "q": LSTDQ(features="identity", stationary=True), "n_bins": 4, "n_folds": 3},
        {"min_episodes": 3, "q": FittedQEvaluation(regressor=TREE, max_iter=2), "gamma": 1.0},
    ],
    "StackedQ": [
        {"n_folds": 2, "q": [LSTDQ(), LSTDQ(features="identity", ridge=1.0)]},
        {"n_folds": 2, "q": [LSTDQ(stationary=True), FittedQEvaluation(regressor=TREE, max_iter=2, stationary=True)]},
    ],
    "DoublyRobust": [
        {"n_folds": 2},
        {"n_folds": 2, "weighted": True, "gamma": 1.0},
        {"n_folds": 2, "q": LSTDQ(features="identity", stationary=True)},
        {"n_folds": 2, "q": FittedQEvaluation(regressor=TREE, max_iter=2)},
    ],
    "MAGIC": [
        {"n_folds": 2, "n_bootstrap": 5},
        {"n_folds": 2, "n_bootstrap": 20, "bias_interval": "percentile", "n_steps": 3, "gamma": 1.0},
        {"n_folds": 2, "n_bootstrap": 0, "q": LSTDQ(features="identity", stationary=True)},
    ],
    "EfficientDoublyRobust": [
        {"n_folds": 2},
        {"n_folds": 3, "q": LSTDQ(features="identity", stationary=True, ridge=0.1)},
        {"n_folds": 2, "q": FittedQEvaluation(regressor=TREE, max_iter=2), "gamma": 1.0},
    ],
    "LepskiEstimator": [
        {"estimators": [LSTDQ(), LSTDQ(ridge=1.0)]},
        {"estimators": {"free": LSTDQ(stationary=True), "held": LSTDQ(ridge=1.0, stationary=True)}, "multiplier": 1.0},
    ],
    "DoubleReinforcementLearning": [
        {"n_folds": 2},
        {"n_folds": 2, "ratio_cap": 2.0},
        {"n_folds": 2, "self_normalized": True, "q": LSTDQ(stationary=True)},
        {"n_folds": 2, "self_normalized": True, "ratio": MarginalizedIS(ridge=0.1), "gamma": 1.0},
        {"n_folds": 2, "ratio": StateMarginalIS()},
    ],
}
# The kinds of log that narrower methods serve.
SERVED: Mapping[str, set[str]] = {
    "KernelIS": {"deterministic"},
    "DefaultEstimator": set(KINDS),
    "AverageRewardLSTDQ": {"horizon", "continuous_horizon"},
    "ModelBased": {"terminal", "horizon"},
    "LinearGaussianModel": {"mixed", "continuous", "continuous_horizon", "deterministic"},
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
        # Processes that share the tests must agree on their names: addresses of functions differ.
        text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(self.estimator).split()))
        return f"{text}-{self.name}"


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
    assert served == SERVED.get(name, set(KINDS) - (set() if deterministic else {"deterministic"}))


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
CLONED: dict[str, Any] = {"actor_hidden": (8,), "behavior_updates": 5, "warm_start_updates": 5}
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


def _linear(n_inputs: int, n_outputs: int) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(n_inputs, n_outputs)


POLICIES: Mapping[str, Callable[[], Acting]] = {
    "BCQ": lambda: Acting(BCQ(**SMALL)),
    "BCQ masked": lambda: Acting(BCQ(**SMALL, threshold=0.0), masked_log()),
    "BCQ continuous": lambda: Acting(BCQ(**SMALL, vae_hidden=(8,), n_act_samples=5), two_dimensional_log()),
    "BEAR": lambda: Acting(BEAR(**SMALL, vae_hidden=(8,), warm_start_updates=5), two_dimensional_log()),
    "BRAC": lambda: Acting(BRAC(**SMALL, **CLONED), two_dimensional_log()),
    "BRAC of draws": lambda: Acting(BRAC(**SMALL, **CLONED, n_act_samples=5), two_dimensional_log()),
    "EDAC": lambda: Acting(EDAC(**SMALL, n_critics=3), two_dimensional_log()),
    "EDAC deterministic": lambda: Acting(EDAC(**SMALL, n_critics=3, deterministic=True), two_dimensional_log()),
    "BehaviorCloning": lambda: Acting(BehaviorCloning(**SMALL)),
    "BehaviorCloning masked": lambda: Acting(BehaviorCloning(**SMALL, normalize_states=False), masked_log()),
    "BehaviorCloning continuous": lambda: Acting(BehaviorCloning(**SMALL), two_dimensional_log()),
    "BehaviorCloning deterministic": lambda: Acting(
        BehaviorCloning(**SMALL, form="deterministic"), two_dimensional_log()
    ),
    "BehaviorCloning mixture": lambda: Acting(BehaviorCloning(**SMALL, form="mixture"), two_dimensional_log()),
    "BehaviorCloning of the best": lambda: Acting(BehaviorCloning(**SMALL, top_share=0.3)),
    "CQL": lambda: Acting(CQL(**SMALL)),
    "CQL masked": lambda: Acting(CQL(**SMALL), masked_log()),
    "CQL continuous": lambda: Acting(CQL(**SMALL, n_action_samples=2), two_dimensional_log()),
    "CQL deterministic": lambda: Acting(CQL(**SMALL, n_action_samples=2, deterministic=True), two_dimensional_log()),
    "IQL": lambda: Acting(IQL(**SMALL)),
    "IQL masked": lambda: Acting(IQL(**SMALL, deterministic=True), masked_log()),
    "IQL continuous": lambda: Acting(IQL(**SMALL, reward_scale=1.0), two_dimensional_log()),
    "IQL deterministic": lambda: Acting(IQL(**SMALL, deterministic=True), two_dimensional_log()),
    "TD3BC": lambda: Acting(TD3BC(**SMALL), two_dimensional_log()),
    "ATAC": lambda: Acting(ATAC(**SMALL, warm_start_updates=5), two_dimensional_log()),
    "ATAC deterministic": lambda: Acting(
        ATAC(**SMALL, warm_start_updates=5, deterministic=True), two_dimensional_log()
    ),
    "PreprocessedLearner": lambda: Acting(PreprocessedLearner(StandardScaler(), CQL(**SMALL))),
    "PreprocessedLearner masked": lambda: Acting(PreprocessedLearner(StandardScaler(), IQL(**SMALL)), masked_log()),
    "TorchPolicy": lambda: Acting(TorchPolicy(_linear(2, 3), "logits"), features_log()),
    "TorchPolicy of values": lambda: Acting(TorchPolicy(_linear(2, 3), "values"), features_log()),
    "TorchPolicy continuous": lambda: Acting(TorchPolicy(_linear(1, 4), "gaussian"), two_dimensional_log()),
    "TorchPolicy squashed": lambda: Acting(
        TorchPolicy(_linear(1, 4), "gaussian", low=-3.0, high=3.0, squash=True), two_dimensional_log()
    ),
    "DoubleDQN": lambda: Acting(DoubleDQN(**SMALL)),
    "DoubleDQN masked": lambda: Acting(DoubleDQN(**SMALL), masked_log()),
    "AWAC": lambda: Acting(AWAC(**SMALL)),
    "AWAC masked": lambda: Acting(AWAC(**SMALL), masked_log()),
    "AWAC continuous": lambda: Acting(AWAC(**SMALL), two_dimensional_log()),
    "AWR": lambda: Acting(AWR(**SMALL)),
    "AWR masked": lambda: Acting(AWR(**SMALL, deterministic=True), masked_log()),
    "AWR continuous": lambda: Acting(AWR(**SMALL), two_dimensional_log()),
    "REM": lambda: Acting(REM(**SMALL, n_heads=3)),
    "REM masked": lambda: Acting(REM(**SMALL, n_heads=3), masked_log()),
    "UWAC": lambda: Acting(UWAC(**SMALL, n_dropout_samples=2), two_dimensional_log()),
    "CRR": lambda: Acting(CRR(**SMALL)),
    "CRR masked": lambda: Acting(CRR(**SMALL, binary=True, deterministic=True), masked_log()),
    "CRR continuous": lambda: Acting(CRR(**SMALL), two_dimensional_log()),
    "LSPI": lambda: Acting(LSPI()),
    "LSPI masked": lambda: Acting(LSPI(degree=2), masked_log()),
    "ClassifierPolicy of names": lambda: Acting(ClassifierPolicy(classifier())),
    "ClassifierPolicy of arrays": lambda: Acting(ClassifierPolicy(classifier(named=False))),
    "ClassifierPolicy of columns": lambda: Acting(
        ClassifierPolicy(classifier(), columns=["age", "pulse"], feature_names=["age", "pulse"])
    ),
    "ColumnPolicy": lambda: Acting(ColumnPolicy("p"), features_log()),
    "ColumnPolicy of all": lambda: Acting(ColumnPolicy(["p", "q", "r"]), features_log()),
    "ColumnPolicy of labels": lambda: Acting(ColumnPolicy({"right": "p", "hold": "q", "left": "r"}), features_log()),
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
    "BCQ continuous": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "BEAR": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "BRAC": NOT_DISCRETE | NO_NODES,
    "BRAC of draws": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "EDAC": NOT_DISCRETE | NO_NODES,
    "EDAC deterministic": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "BehaviorCloning": NO_NODES,
    "BehaviorCloning masked": NO_NODES,
    "BehaviorCloning continuous": NOT_DISCRETE,
    "BehaviorCloning deterministic": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "BehaviorCloning mixture": NOT_DISCRETE | NO_NODES,
    "BehaviorCloning of the best": NO_NODES,
    "CQL": NO_NODES,
    "CQL masked": NO_NODES,
    "CQL continuous": NOT_DISCRETE | NO_NODES,
    "CQL deterministic": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "IQL": NO_NODES,
    "IQL masked": NO_NODES,
    "IQL continuous": NOT_DISCRETE | NO_NODES,
    "IQL deterministic": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "TD3BC": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "ATAC": NOT_DISCRETE | NO_NODES,
    "ATAC deterministic": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "PreprocessedLearner": NO_NODES,
    "PreprocessedLearner masked": NO_NODES,
    "TorchPolicy": NO_NODES | NO_NAMES,
    "TorchPolicy of values": NO_NODES | NO_NAMES,
    "TorchPolicy continuous": NO_NAMES | NOT_DISCRETE,
    "TorchPolicy squashed": NO_NODES | NO_NAMES | NOT_DISCRETE,
    "DoubleDQN": NO_NODES,
    "DoubleDQN masked": NO_NODES,
    "AWAC": NO_NODES,
    "AWAC masked": NO_NODES,
    "AWAC continuous": NOT_DISCRETE | NO_NODES,
    "AWR": NO_NODES,
    "AWR masked": NO_NODES,
    "AWR continuous": NOT_DISCRETE | NO_NODES,
    "REM": NO_NODES,
    "REM masked": NO_NODES,
    "UWAC": NOT_DISCRETE | NO_NODES | {"log_prob"},
    "CRR": NO_NODES,
    "CRR masked": NO_NODES,
    "CRR continuous": NOT_DISCRETE | NO_NODES,
    "LSPI": NO_NODES,
    "LSPI masked": NO_NODES,
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
    public = {name: getattr(ope.policies, name) for name in ope.policies.__all__}
    classes = {name for name, thing in public.items() if inspect.isclass(thing) and issubclass(thing, Policy)}
    assert {name.split()[0] for name in POLICIES} == classes
