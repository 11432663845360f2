"""Importance sampling against exact enumeration, closed-form moments and published mean squared errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from estimator_oracles import exact_log, influence_of

from ope.estimators import ImportanceSampling, PerDecisionIS, TrajectoryIS, WeightedIS
from ope.policies import TabularPolicy
from ope.problems import Graph, ModelFail, ModelWin, TabularProblem
from ope.validation import FloatArray

Kind = tuple[bool, bool]  # per decision, self-normalised
KINDS = [(False, False), (True, False), (False, True), (True, True)]
NAMES = ["IS", "PDIS", "WIS", "WPDIS"]


def make(kind: Kind, gamma: float) -> ImportanceSampling:
    if kind[1]:
        return WeightedIS(gamma=gamma, per_decision=kind[0])
    return PerDecisionIS(gamma=gamma) if kind[0] else TrajectoryIS(gamma=gamma)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("problem", [ModelFail(), Graph(2), Graph(4), ModelWin(horizon=4)], ids=repr)
@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
def test_enumerated_log_gives_exact_moments(problem: TabularProblem, kind: Kind, gamma: float) -> None:
    """All paths as a log, weighted by their probabilities: the estimate is the expectation, its scores have the variance."""
    every = exact_log(problem, problem.n_steps, "horizon")
    policy = TabularPolicy(problem.target)
    moments = problem.importance_sampling_moments(problem.target, gamma=gamma)
    variance = moments.pdis_variance if kind[0] else moments.is_variance
    estimate = make(kind, gamma).fit(every.log, policy, every.weight).estimate()
    scores = make(kind, gamma).fit(every.log, policy).estimate().scores
    assert scores is not None
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=gamma), rel=1e-9)
    assert every.weight @ (scores - estimate.value) ** 2 == pytest.approx(variance, rel=1e-9)
    np.testing.assert_allclose(
        influence_of(estimate) / (every.weight * len(every.weight)), scores - estimate.value, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("kind", KINDS[2:], ids=NAMES[2:])
@pytest.mark.parametrize("problem", [ModelFail(), Graph(4)], ids=repr)
def test_self_normalisation_is_consistent(problem: TabularProblem, kind: Kind) -> None:
    every = exact_log(problem, problem.n_steps, "horizon")
    estimate = make(kind, 1.0).fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=1.0), rel=1e-9)


def test_published_variances() -> None:
    for horizon, variance in {2: 19.4114, 4: 213.038}.items():
        every = exact_log(Graph(horizon), horizon, "horizon")
        scores = PerDecisionIS(gamma=0.98).fit(every.log, TabularPolicy(Graph(horizon).target)).estimate().scores
        mean = every.weight @ scores
        assert every.weight @ (scores - mean) ** 2 == pytest.approx(variance, rel=1e-5)
    every = exact_log(ModelFail(), 2, "horizon")
    scores = TrajectoryIS(gamma=1.0).fit(every.log, TabularPolicy(ModelFail().target)).estimate().scores
    assert every.weight @ (scores + math.tanh(1)) ** 2 / 1024 == pytest.approx(0.041004, rel=1e-4)


@pytest.mark.parametrize("problem", [ModelFail(), Graph(2), ModelWin(horizon=6)], ids=repr)
@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
def test_simulated_mean_is_the_value(problem: TabularProblem, kind: Kind) -> None:
    n, gamma = 40_000, problem.default_gamma
    moments = problem.importance_sampling_moments(problem.target)
    variance = moments.pdis_variance if kind[0] else moments.is_variance
    estimate = make(kind, gamma).fit(problem.sample(n, random_state=1), TabularPolicy(problem.target)).estimate()
    assert abs(estimate.value - problem.value(problem.target)) < 4 * math.sqrt(variance / n)


def squared_errors(problem: TabularProblem, repetitions: int) -> dict[Kind, FloatArray]:
    """Return the squared errors of WIS and WPDIS on logs of 1024 episodes."""
    truth, policy = problem.value(problem.target, gamma=1.0), TabularPolicy(problem.target)
    errors: dict[Kind, list[float]] = {kind: [] for kind in KINDS[2:]}
    for seed in range(repetitions):
        log = problem.sample(1024, random_state=seed)
        for kind, values in errors.items():
            values.append((make(kind, 1.0).fit(log, policy).estimate().value - truth) ** 2)
    return {kind: np.array(values) for kind, values in errors.items()}


@pytest.mark.parametrize(
    ("problem", "published", "repetitions"),
    [(ModelFail(), (0.0035, 0.0035), 500), (ModelWin(), (1.7, 0.58), 450)],
    ids=["ModelFail", "ModelWin"],
)
def test_mean_squared_errors_of_self_normalised_forms(
    problem: TabularProblem, published: tuple[float, float], repetitions: int
) -> None:
    """The published numbers were simulated with about 5 % noise and rounded to two digits."""
    errors = squared_errors(problem, repetitions)
    for kind, expected in zip(KINDS[2:], published, strict=True):
        std_error = errors[kind].std(ddof=1) / math.sqrt(repetitions)
        assert abs(errors[kind].mean() - expected) < 4 * math.hypot(std_error, 0.05 * expected)
        assert std_error < 0.15 * expected
