"""`Auto` chooses by the shape of the influence values; intervals say what they assume and why they were chosen."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from ope import Estimate, Level, LoggedDataset, Verdict
from ope.estimators import PerDecisionIS, TrajectoryIS, WeightedIS
from ope.inference import (
    AdjustedT,
    Anderson,
    Auto,
    BayesianBootstrap,
    Betting,
    Bootstrap,
    EmpiricalBernstein,
    EmpiricalLikelihood,
    Hoeffding,
    IntervalMethod,
    IntervalNotAvailable,
    Normal,
    ReflectedBetting,
    StudentizedBootstrap,
    TruncatedBound,
    hash_identifiers,
    reflected_interval,
    resolve_method,
)
from ope.inference.automatic import Outer
from ope.policies import TabularPolicy

FloatArray = npt.NDArray[np.float64]
LARGE: tuple[IntervalMethod, ...] = (
    Normal(),
    Bootstrap(),
    BayesianBootstrap(),
    StudentizedBootstrap(),
    EmpiricalLikelihood(),
)
EVERY_N: tuple[IntervalMethod, ...] = (
    Hoeffding(0.0, 9.0),
    EmpiricalBernstein(0.0, 9.0),
    Anderson(0.0),
    TruncatedBound(0.0),
    Betting(0.0, 9.0),
    ReflectedBetting(0.0, 1.0),
)


@dataclass(frozen=True)
class Log:
    influence: FloatArray | None = None
    scores: FloatArray | None = None
    replicates: FloatArray | None = None
    value: float = 0.0
    known_propensities: bool = True
    effective_size: float | None = 300.0

    @property
    def episode_keys(self) -> npt.NDArray[np.uint64]:
        return hash_identifiers(range(20))


SYMMETRIC = np.tile([-1.0, 1.0], 10)
SKEWED = np.concatenate([np.tile([-1.0, 0.5], 9), [2.0, 2.5]])
LONELY = np.concatenate([np.full(19, -1.0), [19.0]])


def test_symmetric_influence_gets_t() -> None:
    method, reason = Auto().pick(Log(SYMMETRIC))
    assert method == Normal()
    assert reason == "the estimate is almost symmetric, with 300 effective episodes"
    assert Auto().bounds(Log(SYMMETRIC), 0.05, 0.1) == Normal().bounds(Log(SYMMETRIC), 0.05, 0.1)
    assert Auto().pick(Log(np.zeros(20))).method == Normal()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_skewed_influence_gets_empirical_likelihood(sign: float) -> None:
    method, reason = Auto().pick(Log(sign * SKEWED))
    assert method == EmpiricalLikelihood()
    assert f"skewed to the {'right' if sign > 0 else 'left'}" in reason
    assert "one episode" not in reason
    assert Auto(symmetric=math.inf).pick(Log(sign * SKEWED)).method == Normal()


def test_few_effective_episodes_get_the_outer_ends() -> None:
    log = Log(SKEWED, effective_size=40.0)
    method, reason = Auto().pick(log)
    assert method == Outer()
    assert "effective sample of 40 episodes" in reason
    low, high = Auto().bounds(log, 0.05, 0.1)
    ends = [one.bounds(log, 0.05, 0.1) for one in (AdjustedT(), EmpiricalLikelihood(effective=True))]
    assert (low, high) == (min(ends[0][0], ends[1][0]), max(ends[0][1], ends[1][1]))
    assert Auto(large=30.0).pick(log).method == EmpiricalLikelihood()
    assert method.least_effective_size == 0.0


def test_without_weights_adjusted_t() -> None:
    method, reason = Auto().pick(Log(SKEWED, effective_size=None))
    assert method == AdjustedT()
    assert "no importance weights carry the estimate" in reason


def test_a_dominant_episode_is_named_with_the_remedy() -> None:
    for size in (300.0, 10.0, None):
        _, reason = Auto().pick(Log(LONELY, effective_size=size))
        assert f"one episode carries {361 / (361 + 19):.0%} of the variance" in reason
        assert "ReflectedBetting(low, high)" in reason


def test_replicates_are_used_where_there_is_nothing_else() -> None:
    method, reason = Auto().pick(Log(replicates=np.arange(99.0)))
    assert method == Bootstrap("basic")
    assert "only 99 replicates" in reason
    assert Auto().pick(Log(scores=SKEWED - SKEWED.mean(), replicates=np.arange(99.0))).method == EmpiricalLikelihood()
    with pytest.raises(IntervalNotAvailable, match="Auto: this estimate has no influence values"):
        Auto().bounds(Log(), 0.05, 0.05)


def test_every_method_states_its_assumptions() -> None:
    assert all("holds as the number of episodes grows" in method.assumptions for method in LARGE)
    assert all("holds for every number of episodes" in method.assumptions for method in EVERY_N)
    assert all("known propensities" in method.assumptions for method in EVERY_N)
    assert all("Assume" in (type(method).__doc__ or "") for method in (*LARGE, *EVERY_N, Auto()))
    assert all(method.pick(Log(SYMMETRIC)) == (method, "") for method in (*LARGE, *EVERY_N))


def test_names() -> None:
    names = [method.name for method in (*LARGE, *EVERY_N)]
    assert len(set(names)) == len(names)
    assert resolve_method("auto") == Auto()
    assert resolve_method("studentized") == StudentizedBootstrap()
    assert resolve_method("empirical_likelihood") == EmpiricalLikelihood()
    for name, call in (
        ("truncated", "TruncatedBound"),
        ("betting", "Betting"),
        ("reflected_betting", "ReflectedBetting"),
    ):
        with pytest.raises(ValueError, match=rf"'{name}' needs a range.*pass {call}\(low"):
            resolve_method(name)


def test_bayesian_bootstrap_is_the_bootstrap_of_that_kind() -> None:
    found = BayesianBootstrap(500, 3)
    assert found.bounds(Log(SKEWED), 0.05, 0.05) == Bootstrap("bayesian", 500, 3).bounds(Log(SKEWED), 0.05, 0.05)
    assert repr(found) == "BayesianBootstrap(n_replicates=500, random_state=3)"


# -------------------------------------------------------------------- through an estimate


@pytest.fixture(scope="module")
def log() -> LoggedDataset:
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, 240)
    return LoggedDataset.from_arrays(
        np.ones((240, 1)),
        actions,
        actions * rng.random(240),
        lengths=[2] * 120,
        ends="terminal",
        behavior_prob=[0.5] * 240,
    )


def fitted(estimator: type, log: LoggedDataset, p: float = 0.9, **options: object) -> Estimate:
    result: Estimate = estimator(gamma=0.5, **options).fit(log, TabularPolicy([[1.0 - p, p]])).estimate()
    return result


def test_intervals_carry_choice_reason_and_assumptions(log: LoggedDataset) -> None:
    estimate = dataclasses.replace(fitted(PerDecisionIS, log), verdict=Verdict())
    found = estimate.confidence_interval(method="auto")
    assert found.method == "auto: outer"
    assert "effective sample of" in found.reason
    assert found.assumptions == Outer().assumptions
    assert tuple(found) == tuple(estimate.confidence_interval(method=Outer()))
    assert estimate.lower_bound(method="auto") == estimate.lower_bound(method=Outer())
    assert found.verdict.level == Level.VALID
    assert (
        estimate.confidence_interval(method="normal").verdict.level == Level.CAUTION
    )  # its effective sample is below 200
    plain = estimate.confidence_interval(method="normal")
    assert (plain.method, plain.reason, plain.assumptions) == ("normal", "", Normal().assumptions)
    default = estimate.confidence_interval()
    assert f"{default.method}: {default.assumptions}" in estimate.summary()
    assert f"{default.method}: {default.assumptions}" in estimate._repr_html_()


def test_whole_episode_weights_come_with_trajectory_is_alone(log: LoggedDataset) -> None:
    estimate = fitted(TrajectoryIS, log)
    ratios = np.where(log.actions == 1, 0.9, 0.1) / 0.5
    returns = log.rewards[::2] + 0.5 * log.rewards[1::2]
    assert estimate.weights is not None
    np.testing.assert_allclose(estimate.weights, ratios[::2] * ratios[1::2], rtol=1e-12)
    expected = reflected_interval(
        ratios[::2] * ratios[1::2], ratios[::2] * ratios[1::2] * returns, 0.0, 1.5, 0.025, 0.025
    )
    assert tuple(estimate.confidence_interval(method=ReflectedBetting(0.0, 1.5))) == pytest.approx(expected, rel=1e-9)
    others = [fitted(PerDecisionIS, log), fitted(WeightedIS, log), fitted(TrajectoryIS, log, clip=2.0)]
    weighted: Estimate = TrajectoryIS(gamma=0.5).fit(log, TabularPolicy([[0.1, 0.9]]), np.arange(120.0)).estimate()
    for other in (*others, weighted, estimate - fitted(TrajectoryIS, log, 0.8)):
        assert other.weights is None
        with pytest.raises(IntervalNotAvailable, match="TrajectoryIS"):
            other.confidence_interval(method=ReflectedBetting(0.0, 1.5))


@pytest.mark.parametrize("method", [TruncatedBound(0.0), Betting(0.0, 20.0), ReflectedBetting(0.0, 1.5), Betting(0.0)])
def test_bounds_for_every_n_work_on_estimates(log: LoggedDataset, method: IntervalMethod) -> None:
    estimate = fitted(TrajectoryIS, log)
    found = estimate.confidence_interval(0.9, method)
    assert found.low < 0.75 < found.high  # 0.9 a half, times 1 + 1/2
    assert estimate.lower_bound(0.95, method) == pytest.approx(found.low, rel=1e-9)
    assert "holds for every number of episodes" in found.assumptions
