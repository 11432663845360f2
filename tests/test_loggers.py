"""Logs of several behaviour policies: their own propensities, models by logger, and the balance heuristic."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from ope import LoggedDataset, balance_loggers, estimate_behavior
from ope.estimators import DoublyRobust, PerDecisionIS, WeightedIS
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import Graph, ModelFail, RiverSwim, ScalarLQR, TabularProblem
from ope.problems.lqr import LinearGaussian
from ope.schema import BehaviorSource
from ope.validation import FloatArray


def joined(parts: dict[str, LoggedDataset], shuffle: int | None = 0, **changes: Any) -> LoggedDataset:
    """Return the episodes of several logs as one, shuffled, with a column that says who logged."""
    logs = list(parts.values())
    who = np.concatenate([np.full(len(log), name, dtype=object) for name, log in parts.items()])
    arguments: dict[str, Any] = {
        "states": np.concatenate([log.states for log in logs]),
        "actions": np.concatenate([log.actions for log in logs]),
        "rewards": np.concatenate([log.rewards for log in logs]),
        "lengths": np.concatenate([log.lengths for log in logs]),
        "ends": np.concatenate([log.ends for log in logs]),
        "behavior_log_prob": np.concatenate(
            [log.behavior_log_prob for log in logs if log.behavior_log_prob is not None]
        ),
        "final_states": np.concatenate([log.final_states for log in logs if log.final_states is not None]),
        "action_labels": logs[0].action_labels,
        "extras": pd.DataFrame({"who": who}),
        "horizon": logs[0].horizon,
    }
    log = LoggedDataset.from_arrays(**(arguments | changes))
    return log if shuffle is None else log.select(np.random.default_rng(shuffle).permutation(log.n_episodes))


def log_prob(log: LoggedDataset) -> FloatArray:
    """Return the propensities of a log that has some."""
    assert log.behavior_log_prob is not None
    return log.behavior_log_prob


def two_loggers(problem: TabularProblem, n: int, seed: int = 0, others: Any = None) -> LoggedDataset:
    """Return n episodes by the behaviour policy ("b") and n by another policy ("p"), by default the target."""
    table = problem.target if others is None else others
    return joined(
        {"b": problem.sample(n, random_state=seed), "p": problem.sample(n, table, random_state=seed + 10_000)}
    )


# -------------------------------------------------------------------------------- known propensities of each episode


def test_episodes_of_several_known_policies_need_nothing_special() -> None:
    """Each row's propensity is that of its own logger: the mean over both halves is unbiased."""
    problem, errors, scores = Graph(4), [], []
    near = Graph.policy(0.5)
    for seed in range(60):
        log = two_loggers(problem, 100, seed, others=near)
        estimate = PerDecisionIS(gamma=0.98).fit(log, TabularPolicy(problem.target)).estimate()
        errors.append(estimate.value - problem.value(problem.target))
        scores.append(estimate.std_error)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(60)
    halves = [
        problem.importance_sampling_moments(problem.target, behavior=table).pdis_variance
        for table in (problem.behavior, near)
    ]
    assert np.mean(np.square(errors)) == pytest.approx(np.mean(halves) / 200, rel=0.5)


# -------------------------------------------------------------------------------- the balance heuristic


def mixture_oracle(log: LoggedDataset, tables: list[FloatArray], shares: list[float]) -> list[float]:
    """Evaluate b(a_t | h_t) = P(a_0..a_t | s) / P(a_0..a_t-1 | s) under a logger drawn at random."""
    out, codes = [], log.states.argmax(axis=1)
    for low, high in zip(log.offsets[:-1], log.offsets[1:], strict=True):
        before, path = 1.0, [1.0] * len(tables)
        for row in range(low, high):
            path = [p * float(table[codes[row], log.actions[row]]) for p, table in zip(path, tables, strict=True)]
            after = sum(share * p for share, p in zip(shares, path, strict=True))
            out.append(after / before)
            before = after
    return out


def test_mixture_propensities_depend_on_the_history() -> None:
    problem = RiverSwim()
    tables = {"b": problem.behavior, "p": problem.target, "z": np.eye(2)[np.ones(6, int)]}
    parts = {
        name: problem.sample(n, tables[name], random_state=k)
        for k, (name, n) in enumerate({"b": 5, "p": 3, "z": 2}.items())
    }
    log = joined({name: part.select(slice(0, None)) for name, part in parts.items()})
    balanced = balance_loggers(log, {name: TabularPolicy(table) for name, table in tables.items()}, by="who")
    expected = mixture_oracle(log, list(tables.values()), [0.5, 0.3, 0.2])
    assert balanced.behavior_log_prob is not None
    np.testing.assert_allclose(np.exp(balanced.behavior_log_prob), expected, rtol=1e-9)
    assert balanced.known_propensities
    assert balanced.data_id == log.data_id


def test_columns_serve_as_loggers_and_equal_policies() -> None:
    problem = Graph(4)
    log = two_loggers(problem, 30)
    codes = log.states.argmax(axis=1)
    columns = {
        f"p_{name}": table[codes, log.actions] for name, table in (("b", problem.behavior), ("p", problem.target))
    }
    assert log.extras is not None
    wide = log.replace(extras=log.extras.assign(**columns))
    by_column = balance_loggers(wide, {"b": "p_b", "p": "p_p"}, by="who")
    by_policy = balance_loggers(
        log, {"b": TabularPolicy(problem.behavior), "p": TabularPolicy(problem.target), "idle": "no column"}, by="who"
    )
    np.testing.assert_allclose(log_prob(by_column), log_prob(by_policy), rtol=1e-12)


def test_equal_loggers_change_nothing() -> None:
    problem = Graph(4)
    log = two_loggers(problem, 20, others=problem.behavior)
    policy = TabularPolicy(problem.behavior)
    balanced = balance_loggers(log, {"b": policy, "p": policy}, by="who")
    np.testing.assert_allclose(log_prob(balanced), log_prob(log), rtol=1e-10)
    alone = problem.sample(20).replace(extras=pd.DataFrame({"who": ["b"] * 80}))
    np.testing.assert_allclose(log_prob(balance_loggers(alone, {"b": policy}, by="who")), log_prob(alone), rtol=1e-10)


def exact_variances(
    problem: TabularProblem, loggers: list[FloatArray], target: FloatArray, gamma: float
) -> list[float]:
    """Enumerate all paths: value and variance per episode of per-decision sampling, own and mixed propensities."""
    H, paths = problem.n_steps, []
    for actions in product(range(problem.n_actions), repeat=H):
        for states in product(range(len(problem.process.terminal)), repeat=H + 1):
            chance, rewards = float(problem.process.initial[states[0]]), []
            for t, a in enumerate(actions):
                P, R = problem.process.at(t)
                chance *= float(P[states[t], a, states[t + 1]])
                rewards.append(float(R[states[t], a, states[t + 1]]))
            if chance > 0:
                shown = [int(problem.observation[s]) for s in states[:-1]]
                paths.append((chance, [(s, a) for s, a in zip(shown, actions, strict=True)], rewards))
    totals = {"own": [0.0, 0.0], "mixed": [0.0, 0.0]}
    for chance, steps, rewards in paths:
        prob = [1.0] * len(loggers)
        pi, x_own, x_mixed = 1.0, [0.0] * len(loggers), 0.0
        for t, ((s, a), r) in enumerate(zip(steps, rewards, strict=True)):
            prob = [p * float(table[s, a]) for p, table in zip(prob, loggers, strict=True)]
            pi *= float(target[s, a])
            x_own = [x + gamma**t * pi / p * r for x, p in zip(x_own, prob, strict=True)]
            x_mixed += gamma**t * pi / float(np.mean(prob)) * r
        for p, x in zip(prob, x_own, strict=True):
            for name, score in (("own", x), ("mixed", x_mixed)):
                totals[name][0] += chance * p * score / len(loggers)
                totals[name][1] += chance * p * score**2 / len(loggers)
    truth = problem.value(target, gamma)
    assert totals["own"][0] == pytest.approx(truth, rel=1e-9)
    assert totals["mixed"][0] == pytest.approx(truth, rel=1e-9)
    return [second - truth**2 for _, second in totals.values()]


def test_variance_falls_where_one_logger_is_the_candidate() -> None:
    """Half by b, half by pi, exactly: ModelFail 21.2 to 1.154, Graph(4) 109.06 to 9.26 an episode."""
    for problem, gamma, own, mixed in ((ModelFail(), 1.0, 21.2038, 1.15417), (Graph(4), 0.98, 109.056, 9.26137)):
        found = exact_variances(problem, [problem.behavior, problem.target], problem.target, gamma)
        alone = problem.importance_sampling_moments(problem.target, gamma).pdis_variance
        itself = problem.importance_sampling_moments(problem.target, gamma, behavior=problem.target).pdis_variance
        assert found[0] == pytest.approx((alone + itself) / 2, rel=1e-9)
        assert found[0] == pytest.approx(own, rel=1e-5)
        assert found[1] == pytest.approx(mixed, rel=1e-5)


def test_balanced_logs_serve_the_estimators_unbiased_and_conservative() -> None:
    problem, policy = Graph(4), TabularPolicy(Graph(4).target)
    loggers = {"b": TabularPolicy(problem.behavior), "p": policy}
    truth = problem.value(problem.target)
    estimators: list[Callable[[], Any]] = [
        lambda: PerDecisionIS(gamma=0.98), lambda: WeightedIS(gamma=0.98), lambda: DoublyRobust(gamma=0.98, n_folds=2)
    ]  # fmt: skip
    own = [
        (PerDecisionIS(gamma=0.98).fit(two_loggers(problem, 100, s), policy).estimate().value - truth)
        for s in range(60)
    ]
    for make in estimators:
        errors, spread = [], []
        for seed in range(40):
            log = balance_loggers(two_loggers(problem, 100, seed), loggers, by="who")
            estimate = make().fit(log, policy).estimate()
            errors.append(estimate.value - truth)
            spread.append(estimate.std_error)
        assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(40)
        assert np.mean(spread) > 0.85 * np.std(errors)
        assert np.std(errors) < 0.5 * np.std(own)


def test_densities_are_balanced_too() -> None:
    problem = ScalarLQR(max_steps=3)
    near = LinearGaussian(gain=-0.7, std=0.5)
    log = joined({"b": problem.sample(40), "p": problem.sample(60, near, random_state=1)}, continuous=True)
    loggers = {"b": GaussianPolicy([[-0.5]], 0.3), "p": GaussianPolicy([[-0.7]], 0.5)}
    balanced = balance_loggers(log, loggers, by="who")
    densities = np.exp([loggers[name].log_prob(log.states, log.actions) for name in ("b", "p")])
    first = log.offsets[:-1]
    assert balanced.behavior_log_prob is not None
    np.testing.assert_allclose(
        np.exp(balanced.behavior_log_prob[first]), 0.4 * densities[0][first] + 0.6 * densities[1][first], rtol=1e-10
    )
    total = np.array([densities[:, i:j].prod(axis=1) @ [0.4, 0.6] for i, j in zip(first, log.offsets[1:], strict=True)])
    sums = np.add.reduceat(balanced.behavior_log_prob, first)
    np.testing.assert_allclose(np.exp(sums), total, rtol=1e-9)


def test_estimated_propensities_stay_estimated() -> None:
    problem = Graph(4)
    log = two_loggers(problem, 40).replace(behavior_log_prob=None, behavior_source=None)
    estimated = estimate_behavior(log, by="who", n_folds=2)
    loggers = {"b": TabularPolicy(problem.behavior), "p": TabularPolicy(problem.target)}
    balanced = balance_loggers(estimated, loggers, by="who")
    assert not balanced.known_propensities
    assert balanced.cross_fitted_log_prob is None
    assert balanced.behavior_source is not None
    assert "balanced over who" in str(balanced.behavior_source)
    assert balance_loggers(log, loggers, by="who").behavior_source == BehaviorSource()


# -------------------------------------------------------------------------------- refusals


def bad_logs() -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    problem = Graph(4)
    log, b, p = two_loggers(problem, 5), TabularPolicy(problem.behavior), TabularPolicy(problem.target)
    extras = log.extras
    assert extras is not None
    who = extras["who"].to_numpy().copy()

    def column(values: Any) -> LoggedDataset:
        return log.replace(extras=pd.DataFrame({"who": values}))

    changing, missing = who.copy(), who.copy()
    changing[1] = "p" if who[1] == "b" else "b"
    missing[6] = None
    impossible = TabularPolicy(np.tile([1.0, 0.0], (3, 1)))
    return {
        "no such column": (lambda: balance_loggers(log, {"b": b, "p": p}, by="logger"), ValueError, "`by` must name a column"),
        "no columns": (lambda: balance_loggers(log.replace(extras=None), {"b": b}, by="who"), ValueError, "there are \\[\\]"),
        "changing": (lambda: balance_loggers(column(changing), {"b": b, "p": p}, by="who"), ValueError, "not change within an episode"),
        "missing": (lambda: balance_loggers(column(missing), {"b": b, "p": p}, by="who"), ValueError, "must be known, got others at rows 6"),
        "a logger too few": (lambda: balance_loggers(log, {"b": b}, by="who"), ValueError, "got none for 'p'"),
        "no policy": (lambda: balance_loggers(log, {"b": b, "p": 3}, by="who"), TypeError, "got int for 'p'"),  # type: ignore[dict-item]
        "swapped": (lambda: balance_loggers(log, {"b": p, "p": b}, by="who"), ValueError, "agree with the known propensities"),
        "impossible": (lambda: balance_loggers(log, {"b": impossible, "p": p}, by="who"), ValueError, "got 0 from 'b'"),
        "no probabilities": (
            lambda: balance_loggers(log.replace(extras=extras.assign(q=2.0)), {"b": b, "p": "q"}, by="who"),
            ValueError,
            "column 'q' must hold probabilities",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_logs())
def test_what_cannot_be_balanced_is_named(name: str) -> None:
    call, error, message = bad_logs()[name]
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).startswith("balance_loggers: ")


# -------------------------------------------------------------------------------- one behaviour model per logger


def test_each_logger_gets_the_model_of_its_own_episodes() -> None:
    problem = Graph(4)
    log = two_loggers(problem, 300).replace(behavior_log_prob=None, behavior_source=None)
    assert log.extras is not None
    model = LogisticRegression(C=1e6)
    together, apart = estimate_behavior(log, model), estimate_behavior(log, model, by="who")
    rows = (log.extras["who"] == "b").to_numpy()
    assert apart.behavior_log_prob is not None
    assert apart.cross_fitted_log_prob is not None
    for part, chosen, table in (("b", rows, problem.behavior), ("p", ~rows, problem.target)):
        episodes = chosen[log.offsets[:-1]]
        alone = estimate_behavior(log.select(episodes), model)
        np.testing.assert_array_equal(apart.behavior_log_prob[chosen], alone.behavior_log_prob)
        np.testing.assert_array_equal(apart.cross_fitted_log_prob[chosen], alone.cross_fitted_log_prob)
        truth = table[0, log.actions[chosen]]
        assert np.abs(np.exp(apart.behavior_log_prob[chosen]) - truth).mean() < 0.05, part
        assert together.behavior_log_prob is not None
        assert np.abs(np.exp(together.behavior_log_prob[chosen]) - truth).mean() > 0.2


def test_calibration_is_told_by_logger() -> None:
    log = two_loggers(Graph(4), 100).replace(behavior_log_prob=None, behavior_source=None)
    source = estimate_behavior(log, by="who").behavior_source
    assert source is not None
    assert source.calibration is not None
    assert set(source.calibration["logger"]) == {"b", "p"}
    counts = source.calibration.groupby("logger")["count"].sum()
    assert counts.to_dict() == {"b": 800, "p": 800}
    error = source.calibration.assign(gap=lambda t: (t.mean_prediction - t.observed_frequency).abs() * t["count"])
    assert source.calibration_error == pytest.approx(error.gap.sum() / 1600)
    assert "one for each who" in str(source)
    assert source.parametric
    flexible = estimate_behavior(log, DecisionTreeClassifier(max_depth=1), by="who").behavior_source
    assert flexible is not None
    assert not flexible.parametric


def test_continuous_actions_and_no_folds_by_logger() -> None:
    problem = ScalarLQR(max_steps=4)
    near = LinearGaussian(gain=-0.7, std=0.9)
    log = joined({"b": problem.sample(200), "p": problem.sample(200, near, random_state=1)}, continuous=True)
    log = log.replace(behavior_log_prob=None, behavior_source=None)
    found = estimate_behavior(log, LinearRegression(), by="who", n_folds=0)
    assert log.extras is not None
    rows = (log.extras["who"] == "p").to_numpy()
    truth = GaussianPolicy([[-0.7]], 0.9).log_prob(log.states[rows], log.actions[rows])
    assert found.behavior_log_prob is not None
    assert np.abs(found.behavior_log_prob[rows] - truth).mean() < 0.1
    assert found.cross_fitted_log_prob is None
    assert found.behavior_source is not None
    assert found.behavior_source.calibration is None


def test_a_logger_with_too_few_episodes_is_named() -> None:
    log = two_loggers(Graph(4), 20).replace(behavior_log_prob=None, behavior_source=None)
    assert log.extras is not None
    first = log.offsets[1]
    who = log.extras["who"].to_numpy().copy()
    who[:first] = "rare"
    with pytest.raises(ValueError, match=r"n_folds.*\(Rows are counted among the episodes with who = 'rare'.\)"):
        estimate_behavior(log.replace(extras=pd.DataFrame({"who": who})), by="who")
    with pytest.raises(ValueError, match=r"^estimate_behavior: `by` must name a column"):
        estimate_behavior(log, by="doctor")
