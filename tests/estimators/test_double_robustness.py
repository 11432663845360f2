"""Double robustness on sampled logs: with one ingredient wrong, and far off by itself, the estimate stays with the truth."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from given_models import GivenQ, GivenRatio, true_q, true_ratio

from ope import Estimate, LoggedDataset
from ope.estimator import OffPolicyEstimator
from ope.estimators import MAGIC, DoubleReinforcementLearning, DoublyRobust, EfficientDoublyRobust, PerDecisionIS
from ope.policies import TabularPolicy
from ope.problems import Graph, ModelWin, RandomMDP, TabularProblem
from ope.validation import FloatArray


class Setting(NamedTuple):
    """A problem whose states are observed, with its right and wrong ingredients."""

    problem: TabularProblem
    gamma: float
    n: int
    steps: int

    @property
    def truth(self) -> float:
        return self.problem.value(self.problem.target, gamma=self.gamma)

    @property
    def policy(self) -> TabularPolicy:
        return TabularPolicy(self.problem.target[: self.problem.n_states])

    def q(self, right: bool) -> FloatArray:
        tables = true_q(self.problem, self.gamma)
        return tables if right else 0.3 * tables + np.random.default_rng(1).uniform(0.5, 1.5, size=tables.shape)

    def ratio(self, right: bool) -> FloatArray:
        tables = true_ratio(self.problem, self.gamma, self.steps, self.problem.horizon is None)
        return tables if right else tables * [1.6, 0.3] * np.random.default_rng(2).uniform(0.8, 1.2, size=tables.shape)

    def log(self, right: bool, seed: int = 1) -> LoggedDataset:
        log = self.problem.sample(self.n, random_state=seed)
        assert log.behavior_log_prob is not None
        # Wrong propensities call the first action rarer than it is, and the others more frequent.
        factor = np.where(log.actions == 0, 0.6, 1.4)
        return (
            log
            if right
            else log.replace(behavior_log_prob=np.log(np.minimum(np.exp(log.behavior_log_prob) * factor, 1.0)))
        )


SETTINGS = {
    "RandomMDP with terminals": Setting(RandomMDP(3, 2, terminals=1, max_steps=60, random_state=9), 0.9, 4000, 60),
    "ModelWin H=4": Setting(ModelWin(horizon=4), 1.0, 16_000, 4),
    "Graph H=3": Setting(Graph(3), 0.98, 6000, 3),
}
WITH_PROPENSITIES: dict[str, Callable[[float, GivenQ], OffPolicyEstimator]] = {
    "DR": lambda gamma, q: DoublyRobust(gamma=gamma, q=q, n_folds=2),
    "WDR": lambda gamma, q: DoublyRobust(gamma=gamma, q=q, n_folds=2, weighted=True),
    "EDR": lambda gamma, q: EfficientDoublyRobust(gamma=gamma, q=q, n_folds=2),
    "MAGIC": lambda gamma, q: MAGIC(gamma=gamma, q=q, n_folds=2, n_bootstrap=100),
}
settings = pytest.mark.parametrize("name", SETTINGS)
estimators = pytest.mark.parametrize("kind", WITH_PROPENSITIES)
FAR, NEAR = 5.0, 3.0


@cache
def fitted(name: str, kind: str, right_q: bool, right_w: bool, seed: int = 1) -> Estimate:
    setting = SETTINGS[name]
    estimator = WITH_PROPENSITIES[kind](setting.gamma, GivenQ(tables=setting.q(right_q)))
    estimate: Estimate = estimator.fit(setting.log(right_w, seed), setting.policy).estimate()
    return estimate


@cache
def marginal(name: str, right_q: bool, right_c: bool, self_normalized: bool, seed: int = 1) -> Estimate:
    setting = SETTINGS[name]
    q, ratio = GivenQ(tables=setting.q(right_q)), GivenRatio(tables=setting.ratio(right_c))
    settings: dict[str, Any] = {"gamma": setting.gamma, "n_folds": 2, "self_normalized": self_normalized}
    estimator = DoubleReinforcementLearning(q=q, ratio=ratio, **settings)
    estimate: Estimate = estimator.fit(
        setting.log(True, seed).replace(behavior_log_prob=None, behavior_source=None), setting.policy
    ).estimate()
    return estimate


def far(value: float, truth: float, std_error: float) -> bool:
    return abs(value - truth) > FAR * std_error


def near(estimate: Estimate, truth: float) -> bool:
    return abs(estimate.value - truth) < NEAR * estimate.std_error


@settings
@estimators
def test_wrong_propensities_with_a_right_q(name: str, kind: str) -> None:
    setting, estimate = SETTINGS[name], fitted(name, kind, True, False)
    alone = PerDecisionIS(gamma=setting.gamma).fit(setting.log(False), setting.policy).estimate()
    assert far(alone.value, setting.truth, max(alone.std_error, estimate.std_error))
    assert near(estimate, setting.truth)


@settings
@estimators
def test_a_wrong_q_with_right_propensities(name: str, kind: str) -> None:
    setting, estimate = SETTINGS[name], fitted(name, kind, False, True)
    assert far(estimate.diagnostics["q_value"], setting.truth, estimate.std_error)
    assert near(estimate, setting.truth)


@settings
def test_two_wrong_ingredients_are_wrong(name: str) -> None:
    """Lest the ingredients be less wrong than they look."""
    assert not near(fitted(name, "DR", False, False), SETTINGS[name].truth)


forms = pytest.mark.parametrize("self_normalized", [False, True], ids=["DRL", "DRL normalised"])


@settings
@forms
def test_a_wrong_ratio_with_a_right_q(name: str, self_normalized: bool) -> None:
    setting, estimate = SETTINGS[name], marginal(name, True, False, self_normalized)
    assert far(estimate.diagnostics["ratio_value"], setting.truth, estimate.std_error)
    assert near(estimate, setting.truth)


@settings
@forms
def test_a_wrong_q_with_a_right_ratio(name: str, self_normalized: bool) -> None:
    setting, estimate = SETTINGS[name], marginal(name, False, True, self_normalized)
    assert far(estimate.diagnostics["q_value"], setting.truth, estimate.std_error)
    assert near(estimate, setting.truth)


@settings
def test_a_wrong_q_with_a_wrong_ratio_is_wrong(name: str) -> None:
    assert not near(marginal(name, False, False, False), SETTINGS[name].truth)


@pytest.mark.slow
@settings
def test_over_many_logs(name: str) -> None:
    """The deviations in standard errors look like those of a right interval: spread about 1, mean about 0."""
    setting, seeds = SETTINGS[name], range(1, 41)
    z: dict[str, list[float]] = {}
    for seed in seeds:
        for kind in WITH_PROPENSITIES:
            for right_q, right_w in ((True, False), (False, True)):
                estimate = fitted(name, kind, right_q, right_w, seed)
                z.setdefault(f"{kind} q={right_q}", []).append((estimate.value - setting.truth) / estimate.std_error)
        for right_q, right_c in ((True, False), (False, True)):
            estimate = marginal(name, right_q, right_c, False, seed)
            z.setdefault(f"DRL q={right_q}", []).append((estimate.value - setting.truth) / estimate.std_error)
    for which, found in z.items():
        print(name, which, f"mean {np.mean(found):.2f} spread {np.std(found):.2f} largest {np.abs(found).max():.1f}")
        assert abs(np.mean(found)) < 4.0 * np.std(found) / np.sqrt(len(found)) + 0.25, which
        assert np.mean(np.abs(found) < NEAR) >= 0.95, which
