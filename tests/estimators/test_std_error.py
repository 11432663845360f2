"""Standard errors against the spread of the estimates over 500 logs, with every nuisance refitted on each."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ope import OffPolicyEstimator
from ope.estimators import LSTDQ, DoublyRobust, PerDecisionIS, WeightedIS
from ope.policies import TabularPolicy
from ope.problems import RandomMDP, RiverSwim, TabularProblem
from ope.validation import FloatArray

REPETITIONS = 500


def spread(
    problem: TabularProblem, target: FloatArray, estimator: OffPolicyEstimator, n: int
) -> tuple[FloatArray, FloatArray]:
    """Return the estimates and their standard errors on independent logs."""
    rows = []
    for seed in range(REPETITIONS):
        estimate = estimator.fit(problem.sample(n, random_state=seed), TabularPolicy(target)).estimate()
        rows.append((estimate.value, estimate.std_error))
    values, errors = np.array(rows).T
    return values, errors


def check(problem: TabularProblem, truth: float, target: FloatArray, estimator: OffPolicyEstimator, n: int) -> None:
    """Compare; the standard deviation of 500 values is itself known to 3.2 %, a coverage of .95 to .01."""
    values, errors = spread(problem, target, estimator, n)
    deviation = values.std(ddof=1)
    assert errors.mean() == pytest.approx(deviation, rel=0.1)
    assert abs(values.mean() - truth) < 4 * deviation / math.sqrt(REPETITIONS) + 0.1 * deviation
    covered = np.abs(values - truth) < 1.96 * errors
    assert 0.91 < covered.mean() < 0.99


def near(problem: TabularProblem) -> FloatArray:
    """Return a candidate halfway to the target, whose weights have tails that 200 episodes can show."""
    table: FloatArray = 0.5 * (problem.behavior + problem.target)
    return table


GAMMA = 0.9
BY_TIME = [LSTDQ(gamma=GAMMA), DoublyRobust(gamma=GAMMA), WeightedIS(gamma=GAMMA), PerDecisionIS(gamma=GAMMA)]


@pytest.mark.parametrize("estimator", BY_TIME, ids=lambda e: type(e).__name__)
def test_random_process_with_horizon(estimator: OffPolicyEstimator) -> None:
    problem = RandomMDP(3, 2, horizon=3, random_state=1)
    check(problem, problem.value(near(problem), gamma=GAMMA), near(problem), estimator, n=150)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [*BY_TIME, DoublyRobust(gamma=GAMMA, weighted=True)], ids=["LSTDQ", "DR", "WPDIS", "PDIS", "WDR"]
)
@pytest.mark.parametrize(
    "problem",
    [
        RandomMDP(4, 2, horizon=5, random_state=2),
        RandomMDP(3, 2, terminals=1, horizon=6, reward_std=0.5, random_state=1),
    ],
    ids=["horizon", "terminals"],
)
def test_random_processes(problem: TabularProblem, estimator: OffPolicyEstimator) -> None:
    check(problem, problem.value(near(problem), gamma=GAMMA), near(problem), estimator, n=300)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", BY_TIME, ids=lambda e: type(e).__name__)
def test_river_swim_with_horizon(estimator: OffPolicyEstimator) -> None:
    problem = RiverSwim(horizon=20)
    check(problem, problem.value(near(problem), gamma=GAMMA), near(problem), estimator, n=400)


@pytest.mark.slow
def test_endless_river_swim_from_truncated_episodes() -> None:
    problem = RiverSwim(max_steps=20)
    check(problem, problem.value(problem.target), problem.target, LSTDQ(gamma=0.95), n=200)
