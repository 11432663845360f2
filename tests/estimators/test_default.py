"""The default estimator: which way it takes, that its numbers are those of the chosen method, and what it says of its choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ope import LoggedDataset
from ope.estimators import (
    LSTDQ,
    Choice,
    ControlVariateIS,
    DefaultEstimator,
    IncrementalIS,
    NeuralFittedQEvaluation,
    default,
)
from ope.policies import ColumnPolicy, GaussianPolicy, TabularPolicy
from ope.problems import Hybrid, ModelFail, RiverSwim, ScalarLQR
from ope.verdict import Level


def tabular(problem: Any, probs: Any = None) -> TabularPolicy:
    return TabularPolicy(problem.target if probs is None else probs, state_code=problem.state_code)


def wavy_log(n: int = 600) -> LoggedDataset:
    """One step; the reward is a wave that no quadratic follows."""
    rng = np.random.default_rng(0)
    states, actions = rng.uniform(-1.0, 1.0, (n, 1)), rng.normal(0.0, 0.5, (n, 1))
    density = np.exp(-0.5 * (actions[:, 0] / 0.5) ** 2) / (0.5 * np.sqrt(2.0 * np.pi))
    rewards = np.sin(9.0 * states[:, 0]) + actions[:, 0] + rng.normal(0.0, 0.1, n)
    return LoggedDataset.from_arrays(
        states, actions, rewards, lengths=[1] * n, ends="terminal", behavior_prob=density.tolist()
    )


def test_a_table_that_holds_the_state_is_for_the_linear_q_function() -> None:
    problem = RiverSwim(horizon=10)
    log, policy = problem.sample(150, random_state=0), tabular(problem)
    estimator = DefaultEstimator(gamma=0.95).fit(log, policy)
    ours, theirs = estimator.estimate(), LSTDQ(gamma=0.95).fit(log, policy).estimate()
    assert estimator.choice_.name == "LSTDQ"
    assert ours.value == theirs.value
    np.testing.assert_array_equal(ours.influence, theirs.influence)
    assert ours.verdict == theirs.verdict
    assert (ours.estimator, ours.diagnostics["method"]) == ("DefaultEstimator", "LSTDQ")
    assert estimator.choice_.tried["estimator"].tolist() == ["LSTDQ"]
    assert estimator.choice_.tried["chosen"].all()


@pytest.mark.parametrize(("problem", "n"), [(ModelFail(), 500), (Hybrid(), 800)])
def test_hidden_state_is_for_the_weights_with_the_smaller_error(problem: Any, n: int) -> None:
    log, policy = problem.sample(n, random_state=1), tabular(problem)
    estimator = DefaultEstimator(gamma=1.0).fit(log, policy)
    pair = {cls.__name__: cls(gamma=1.0).fit(log, policy).estimate() for cls in (ControlVariateIS, IncrementalIS)}
    best = min(pair, key=lambda name: float(pair[name].std_error))
    assert estimator.choice_.name == best
    assert estimator.estimate().value == pair[best].value
    assert "do not hold what decides rewards" in estimator.choice_.reason
    tried = estimator.choice_.tried.set_index("estimator")
    assert set(tried.index) == {"LSTDQ", *pair}
    assert tried["past_p"].to_dict()["LSTDQ"] < 0.001
    assert tried.loc[tried["chosen"]].index.tolist() == [best]


def test_without_propensities_hidden_state_is_refused() -> None:
    problem = ModelFail()
    log = problem.sample(500, random_state=1).replace(behavior_log_prob=None)
    estimator = DefaultEstimator(gamma=1.0).fit(log, tabular(problem))
    assert estimator.choice_.name == "LSTDQ"
    assert "do not apply to this log" in estimator.choice_.reason
    assert estimator.estimate().verdict.level is Level.REFUSE


def test_a_basis_that_is_too_poor_is_for_networks() -> None:
    log, policies = wavy_log(), {name: GaussianPolicy(mean=[0.3], std=std) for name, std in (("a", 0.5), ("b", 0.4))}
    neural = NeuralFittedQEvaluation(hidden=(16,), n_updates=100, random_state=2)
    estimator = DefaultEstimator(gamma=1.0, neural=neural).fit(log, policies)
    assert estimator.choice_.name == "NeuralFittedQEvaluation"
    assert "Richer features predict the errors of a linear Q function of 'a'" in estimator.choice_.reason
    theirs = neural.set_params(gamma=1.0).fit(log, policies).estimate()
    for name, estimate in estimator.estimate().items():
        assert estimate.value == theirs[name].value
    # One rejection is enough: the second candidate was not tried with the linear model.
    assert estimator.choice_.tried["policy"].tolist() == ["a", "a", "b"]


def test_one_method_serves_all_candidates() -> None:
    problem = ModelFail()
    log = problem.sample(500, random_state=1)
    chosen = default(log, {"target": tabular(problem), "logged": tabular(problem, problem.behavior)}, gamma=1.0)
    assert isinstance(chosen, Choice)
    assert chosen.name == "ControlVariateIS"
    assert chosen.tried.groupby("estimator")["chosen"].nunique().eq(1).all()
    assert repr(chosen).startswith("Choice(ControlVariateIS: The errors of a Q function depend on the past (p = ")


def test_policies_that_only_know_logged_actions_are_for_weights() -> None:
    base = ScalarLQR(max_steps=5).sample(80, random_state=0)
    prob = np.exp(np.asarray(base.behavior_log_prob))
    log = LoggedDataset.from_arrays(
        base.states, base.actions, base.rewards, lengths=base.lengths.tolist(), ends="terminal", behavior_prob=prob.tolist(),
        extras=pd.DataFrame({"p": prob}),
    )  # fmt: skip
    estimator = DefaultEstimator(gamma=0.9).fit(log, {"logged": ColumnPolicy("p")})
    assert estimator.choice_.name in {"ControlVariateIS", "IncrementalIS"}
    assert estimator.choice_.reason.startswith("LSTDQ does not serve the candidates (")
    # The logging policy itself: every weight is 1.
    expected = sum(0.9**t * r for episode in np.split(log.rewards, 80) for t, r in enumerate(episode)) / 80
    assert estimator.estimate()["logged"].value == pytest.approx(expected, rel=1e-9)


def test_bad_settings() -> None:
    problem = RiverSwim(horizon=5)
    log, policy = problem.sample(20, random_state=0), tabular(problem)
    with pytest.raises(
        TypeError, match="DefaultEstimator: `neural` must be a NeuralFittedQEvaluation or None, got LSTDQ"
    ):
        DefaultEstimator(gamma=0.9, neural=LSTDQ()).fit(log, policy)
    with pytest.raises(ValueError, match="the nested LSTDQ must have the same `gamma`"):
        DefaultEstimator(gamma=0.9, linear=LSTDQ(gamma=0.5)).fit(log, policy)
    with pytest.raises(ValueError, match="`gamma` must be given"):
        DefaultEstimator().fit(log, policy)
