"""Every estimator on the linear-quadratic problem, with a Gaussian and a deterministic candidate, against the closed form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

import ope.estimators
from ope import Estimate, Level, LoggedDataset, Policy
from ope.estimators import LSTDQ
from ope.policies import FunctionPolicy, GaussianPolicy
from ope.problems import LinearGaussian, ScalarLQR

N_EPISODES, N_STEPS, GAIN = 400, 25, -0.53
TARGETS = {"gaussian": LinearGaussian(GAIN, 0.3), "deterministic": LinearGaussian(GAIN, 0.0)}

# No importance weights: these must answer for both candidates.
MARGINAL = {
    "LSTDQ", "MarginalizedIS", "DICE", "GradientDICE", "CoinDICE", "MinimaxWeightLearning", "MinimaxQLearning",
    "DoubleReinforcementLearning", "FittedQEvaluation", "BellmanCalibrated", "DefaultEstimator", "LinearGaussianModel", "StackedQ",
    "LepskiEstimator",
}  # fmt: skip
DOUBLY_ROBUST = {"DoublyRobust", "EfficientDoublyRobust", "MAGIC"}
WEIGHTED = {
    "ImportanceSampling", "PerDecisionIS", "TrajectoryIS", "WeightedIS", "IncrementalIS", "ControlVariateIS", "LSTD",
    "StateMarginalIS", "COPTD",
}  # fmt: skip
ELSEWHERE = {
    "NeuralFittedQEvaluation": "test_neural_fqe.py",
    "ModelBased": "test_model_based.py, for tables",
    "ModelEnsemble": "test_model_ensemble.py",
    "AverageRewardLSTDQ": "test_average_reward.py, another estimand",
    "GivenQ": "test_given_q.py",
    "SimulatorQ": "test_given_q.py",
}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "FittedQEvaluation": {"regressor": LinearRegression(fit_intercept=False), "features": "auto", "n_bootstrap": 20},
    "DICE": {"positive": False},
    "StackedQ": {"q": [LSTDQ(), LSTDQ(ridge=1.0)], "n_folds": 2},
    "LepskiEstimator": {"estimators": [LSTDQ(), LSTDQ(ridge=0.01)]},
    "MAGIC": {"n_bootstrap": 50},
}


@cache
def problem(kind: str) -> tuple[LoggedDataset, float]:
    lqr = ScalarLQR(max_steps=N_STEPS, target=TARGETS[kind])
    return lqr.sample(N_EPISODES, random_state=3), lqr.value(lqr.target)


def candidate(kind: str) -> Policy:
    if kind == "deterministic":
        return FunctionPolicy(predict=lambda states: GAIN * states[:, :1])
    return GaussianPolicy(mean=[GAIN], std=0.3)


def estimate(name: str, kind: str) -> Estimate:
    estimator = getattr(ope.estimators, name)(gamma=0.95, **SETTINGS.get(name, {}))
    result: Estimate = estimator.fit(problem(kind)[0], candidate(kind)).estimate()
    return result


def test_every_estimator_has_its_place() -> None:
    assert {"KernelIS", *MARGINAL, *DOUBLY_ROBUST, *WEIGHTED, *ELSEWHERE} == set(ope.estimators.__all__)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", sorted(MARGINAL))
def test_methods_without_weights_find_the_value(name: str, kind: str) -> None:
    found, (_, truth) = estimate(name, kind), problem(kind)
    assert found.verdict.level < Level.REFUSE, found.verdict
    assert 0.0 < found.std_error < 0.2
    assert abs(found.value - truth) < 4.0 * found.std_error


@pytest.mark.parametrize("name", sorted(DOUBLY_ROBUST))
def test_doubly_robust_methods_find_the_value(name: str) -> None:
    found, (_, truth) = estimate(name, "gaussian"), problem("gaussian")
    assert found.verdict.level < Level.REFUSE, found.verdict
    assert abs(found.value - truth) < 4.0 * found.std_error


@pytest.mark.parametrize("name", sorted(WEIGHTED))
def test_weighted_methods_find_the_value_or_say_what_truncation_hides(name: str) -> None:
    found, (_, truth) = estimate(name, "gaussian"), problem("gaussian")
    if found.verdict.level < Level.REFUSE:
        assert abs(found.value - truth) < 4.0 * found.std_error + found.widening
    else:
        assert any("runcated" in reason for reason in found.verdict.reasons), found.verdict
    lost = sum(0.95**N_STEPS * (0.95**t) for t in range(400)) * 0.5  # what is still to come costs less than .5 a step
    assert abs(found.value - truth) < 5.0 * found.std_error + lost


@pytest.mark.parametrize("name", sorted(WEIGHTED | DOUBLY_ROBUST))
def test_a_candidate_without_density_is_sent_to_methods_that_serve_it(name: str) -> None:
    with pytest.raises(TypeError, match=r"offers .*deterministic.*estimators that work with it: .*KernelIS.*LSTDQ"):
        estimate(name, "deterministic")


def test_the_kernel_serves_what_has_no_density() -> None:
    with pytest.raises(TypeError, match="KernelIS"):
        estimate("KernelIS", "gaussian")
    lqr = ScalarLQR(max_steps=4, target=TARGETS["deterministic"])
    log = lqr.sample(1500, random_state=0)
    found = ope.estimators.KernelIS(gamma=0.5).fit(log, candidate("deterministic")).estimate()
    truth = lqr.value(lqr.target, 0.5)
    rest = 0.5**4 / (1 - 0.5) * float(np.mean(-log.rewards))
    assert abs(found.value - truth) < 4.0 * found.std_error + rest + found.widening
