"""Stacking and the tournament of Q functions against plain loops, exact logs and the jackknife."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from estimator_oracles import (
    Case,
    end_goes_on,
    every_end,
    exact_log,
    final_codes,
    influence_of,
    jackknife,
    paths,
    random_case,
    sampled,
)
from given_models import GivenQ, at_step, position, true_q
from sklearn.preprocessing import FunctionTransformer

from ope import Estimate
from ope.estimators import LSTDQ, PerDecisionIS, StackedQ, q_tournament
from ope.policies import TabularPolicy
from ope.problems import RandomMDP, RiverSwim
from ope.validation import FloatArray
from ope.verdict import Level

GAMMA = 0.9
POSITION = FunctionTransformer(position)


def members_of(case: Case, n: int = 2) -> list[FloatArray]:
    steps = 1 if case.log.horizon is None else 6
    return list(np.random.default_rng(3).normal(size=(n, steps, *case.pi.shape)) + 1.0)


def fit(case: Case, members: list[FloatArray], weight: FloatArray | None = None, **settings: Any) -> Estimate:
    q: Any = [GivenQ(tables=tables) for tables in members]
    return StackedQ(q=q, **{"gamma": GAMMA, "n_folds": 2, **settings}).fit(case.log, case.policy, weight).estimate()  # type: ignore[no-any-return]


def ahead(case: Case, tables: FloatArray, i: int, t: int) -> float | None:
    """Return V of the state after a step; None where it goes on to nobody knows where."""
    episode = paths(case.log)[i]
    last = t == len(episode) - 1
    follows = end_goes_on(case.log, i, False) if last else True
    if not follows:
        return None if follows is None else 0.0
    z = final_codes(case.log)[i] if last else episode[t + 1][0]
    return float(case.pi[z] @ at_step(tables, t + 1)[z])


# -------------------------------------------------------------------- stacking


@pytest.mark.parametrize("ends", [("terminal",), ("truncated",), ("terminal", "truncated")], ids="-".join)
@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_the_value_is_that_of_loops(ends: tuple[str, ...], ridge: float) -> None:
    case = random_case(1, n=40, ends=ends)
    members, weight = members_of(case), np.random.default_rng(0).uniform(0.5, 1.5, 40)
    log, m = case.log, 2
    rows = [(i, t, s, a, r) for i, episode in enumerate(paths(log)) for t, (s, a, r) in enumerate(episode)]
    scale = np.sqrt(np.mean([[at_step(q, t)[s, a] ** 2 for _, t, s, a, _ in rows] for q in members]))
    A, b, prior = ridge * np.eye(m + 1), np.zeros(m + 1), np.array([0.0, scale / m, scale / m])
    w = weight / weight.mean()
    for i, t, s, a, r in rows:
        phi = np.array([1.0, *(at_step(q, t)[s, a] / scale for q in members)])
        nexts = [ahead(case, q, i, t) for q in members]
        known = t + 1 < log.lengths[i] or end_goes_on(log, i, False)
        phi_next = np.array([float(bool(known)), *((v or 0.0) / scale for v in nexts)])
        A += w[i] * np.outer(phi, phi - GAMMA * phi_next)
        b += w[i] * r * phi
    theta = prior + np.linalg.solve(A, b - (A - ridge * np.eye(m + 1)) @ prior)
    starts = [[1.0, *(case.pi[e[0][0]] @ at_step(q, 0)[e[0][0]] / scale for q in members)] for e in paths(log)]
    estimate = fit(case, members, weight, ridge=ridge)
    assert estimate.value == pytest.approx(float(np.mean(w[:, None] * starts, axis=0) @ theta), rel=1e-8)
    assert estimate.diagnostics["weight_GivenQ_1"] == pytest.approx(theta[1] / scale)
    assert estimate.diagnostics["intercept"] == pytest.approx(theta[0])


@every_end
@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_influence_is_the_jackknife(ends: tuple[str, ...], ridge: float) -> None:
    case = random_case(2, n=24, ends=ends)
    members = members_of(case)
    # With a ridge psi leaves out the mean of the penalty, which is of order ridge / n.
    psi = influence_of(fit(case, members, ridge=0.0))
    numeric = jackknife(lambda weight: fit(case, members, weight, ridge=0.0).value, 24)
    np.testing.assert_allclose(psi, numeric, atol=1e-5 * np.abs(numeric).max())
    pulled = influence_of(fit(case, members, ridge=ridge))
    numeric = jackknife(lambda weight: fit(case, members, weight, ridge=ridge).value, 24)
    np.testing.assert_allclose(pulled, numeric - numeric.mean(), atol=0.1 * np.abs(numeric).max())


@pytest.mark.parametrize("ends", ["truncated", "horizon"])
def test_a_true_member_gives_the_exact_value(ends: str) -> None:
    problem = RandomMDP(n_states=2, n_actions=2, random_state=1, horizon=3 if ends == "horizon" else None)
    log, weight = exact_log(problem, 3, ends)
    case, right = Case(log, problem.behavior, problem.target), true_q(problem, GAMMA)
    wrong = np.random.default_rng(0).normal(size=right.shape)
    truth = problem.value(problem.target, gamma=GAMMA)
    assert fit(case, [wrong, right], weight, ridge=0.0).value == pytest.approx(truth, rel=1e-8)
    assert fit(case, [2.0 * right - 1.0 - wrong, wrong], weight, ridge=0.0).value == pytest.approx(truth, rel=1e-8)


def test_a_large_ridge_gives_the_uniform_average() -> None:
    case = random_case(4, n=30)
    estimate = fit(case, members_of(case, 3), ridge=1e12)
    values = [estimate.diagnostics[f"value_GivenQ_{k}"] for k in (1, 2, 3)]
    assert estimate.value == pytest.approx(np.mean(values))
    assert any("ridge" in reason for reason in fit(case, members_of(case), ridge=50.0).verdict.reasons)


def test_stacking_repairs_wrong_members() -> None:
    problem = RiverSwim(max_steps=20)
    case, truth = sampled(problem, 300), problem.value(problem.target, gamma=0.95)
    q: Any = [LSTDQ(features=POSITION), LSTDQ()]
    estimate = StackedQ(gamma=0.95, q=q).fit(case.log, case.policy).estimate()
    assert abs(estimate.value - truth) < abs(estimate.diagnostics["value_LSTDQ_1"] - truth)
    low, high = estimate.confidence_interval()
    assert low <= truth <= high


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"ridge": -1.0}, ValueError, "ridge"),
        ({"n_folds": 1}, ValueError, "n_folds"),
        ({"q": []}, ValueError, "list of Q-based"),
        ({"q": [PerDecisionIS()]}, TypeError, "PerDecisionIS"),
        ({"q": [LSTDQ(), LSTDQ(stationary=True)]}, ValueError, "stationary"),
        ({"q": [LSTDQ(gamma=0.1)]}, ValueError, "gamma"),
        ({"q": [GivenQ(tables=np.full((1, 3, 3), np.nan))]}, ValueError, "which diverged"),
    ],
)
def test_bad_parameters_are_named(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    case = random_case(0)
    with pytest.raises(error, match=words):
        StackedQ(**{"gamma": GAMMA, "n_folds": 2, **settings}).fit(case.log, case.policy)


# -------------------------------------------------------------------- tournament


@every_end
def test_the_tournament_is_that_of_loops(ends: tuple[str, ...]) -> None:
    case = random_case(5, n=30, ends=ends)
    members, weight = members_of(case, 3), np.random.default_rng(1).uniform(0.5, 1.5, 30)
    q = {name: GivenQ(tables=tables) for name, tables in zip("abc", members, strict=True)}
    table = q_tournament(case.log, case.policy, q, gamma=GAMMA, n_folds=2, episode_weight=weight)
    sums, mass = np.zeros((30, 3, 3)), np.zeros(30)
    for i, episode in enumerate(paths(case.log)):
        for t, (s, a, r) in enumerate(episode):
            values = [at_step(own, t)[s, a] for own in members]
            nexts = [ahead(case, own, i, t) for own in members]
            if None in nexts:
                continue
            mass[i] += weight[i]
            for j in range(3):
                d = values[j] - r - GAMMA * (nexts[j] or 0.0)
                sums[i, j] += [weight[i] * (values[j] - value) * d for value in values]
    moments = sums.sum(axis=0) / mass.sum()
    psi = 30 * (sums - mass[:, None, None] * moments) / mass.sum()
    std_errors = np.sqrt(2.0 * (psi**2).sum(axis=0) / (30 * 29))  # two folds: fits are as noisy as tests
    for j, name in enumerate("abc"):
        worst = int(np.abs(moments[j]).argmax())
        assert table.loc[name, "loss"] == pytest.approx(abs(moments[j, worst]))
        assert table.loc[name, "worst_match"] == "abc"[worst]
        assert table.loc[name, "std_error"] == pytest.approx(std_errors[j, worst])
    assert table["loss"].is_monotonic_increasing


def test_the_true_q_function_wins_where_squared_errors_prefer_another() -> None:
    """Squared temporal differences add the variance of the next value: their least is not at the truth (double sampling)."""
    problem = RandomMDP(n_states=3, n_actions=2, random_state=2)
    log, weight = exact_log(problem, 3, "truncated")
    case, right = Case(log, problem.behavior, problem.target), true_q(problem, GAMMA)
    rows = [(i, t, s, a, r) for i, episode in enumerate(paths(log)) for t, (s, a, r) in enumerate(episode)]
    finals, X, y = final_codes(log), np.zeros((len(rows), 6)), np.zeros(len(rows))
    for k, (i, t, s, a, r) in enumerate(rows):
        z = finals[i] if t == log.lengths[i] - 1 else paths(log)[i][t + 1][0]
        X[k, s * 2 + a] += 1.0
        X[k, z * 2 : z * 2 + 2] -= GAMMA * case.pi[z]
        y[k] = r
    root = np.sqrt(np.repeat(weight, log.lengths))
    flat = np.linalg.lstsq(root[:, None] * X, root * y, rcond=None)[0]
    squared = [float(np.sum((root * (y - X @ q)) ** 2)) for q in (right.ravel(), flat)]
    assert squared[1] < 0.97 * squared[0]
    q = {"flat": GivenQ(tables=flat.reshape(1, 3, 2)), "right": GivenQ(tables=right)}
    table = q_tournament(log, case.policy, q, gamma=GAMMA, episode_weight=weight)
    assert list(table.index) == ["right", "flat"]
    losses = table["loss"].tolist()
    assert losses[0] < 1e-9
    assert losses[1] > 1e-4
    assert not table.loc["right", "rejected"]


def test_wrong_features_are_rejected_and_right_ones_are_not() -> None:
    case = sampled(RiverSwim(max_steps=20), 300)
    q = {"position": LSTDQ(features=POSITION), "states": LSTDQ()}
    table = q_tournament(case.log, case.policy, q, gamma=0.95)
    assert list(table.index) == ["states", "position"]
    assert table["rejected"].tolist() == [False, True]


def test_noise_of_the_right_features_does_not_lose_its_matches() -> None:
    """A value for each of 5 steps at 256 episodes: moments without extrapolation reject the right features."""
    problem = RandomMDP(horizon=5, random_state=0)
    q: Any = {"right": LSTDQ(), "position": LSTDQ(features=POSITION), "shrunken": LSTDQ(ridge=100.0)}
    found = [
        q_tournament(case.log, case.policy, q, gamma=1.0)
        for case in (sampled(problem, 256, seed=seed) for seed in range(5))
    ]
    assert sum(table.index[0] == "right" for table in found) >= 4
    assert sum(bool(table.loc["right", "rejected"]) for table in found) <= 1
    assert all(table.loc["shrunken", "rejected"] for table in found)


def test_bad_tournaments_are_named() -> None:
    case = random_case(0)
    with pytest.raises(ValueError, match="at least 2"):
        q_tournament(case.log, case.policy, [LSTDQ()], gamma=GAMMA)
    with pytest.raises(TypeError, match="PerDecisionIS"):
        q_tournament(case.log, case.policy, [LSTDQ(), PerDecisionIS()], gamma=GAMMA)
    for name, value in (("level", 1.0), ("level", 0.0), ("n_folds", 1), ("gamma", 2.0)):
        settings: dict[str, Any] = {"gamma": GAMMA, name: value}
        with pytest.raises(ValueError, match=name):
            q_tournament(case.log, case.policy, [LSTDQ(), LSTDQ(ridge=1.0)], **settings)


def test_members_of_one_class_are_numbered() -> None:
    case = random_case(0)
    table = q_tournament(case.log, TabularPolicy(case.pi), [LSTDQ(), LSTDQ(ridge=1.0)], gamma=GAMMA)
    assert sorted(table.index) == ["LSTDQ_1", "LSTDQ_2"]


def test_small_logs_are_never_valid_and_large_ones_may_be() -> None:
    problem = RandomMDP(terminals=1, random_state=1)
    levels, policy = {}, TabularPolicy(problem.target)
    for n in (64, 256):
        log = problem.sample(n, random_state=3)
        found = StackedQ(gamma=problem.default_gamma, q=[LSTDQ(), LSTDQ(features=POSITION)]).fit(log, policy).estimate()
        levels[n] = found.verdict.level
        small = [reason for reason in found.verdict.reasons if "hardly sees that all members are wrong" in reason]
        assert len(small) == (found.diagnostics["ess"] < 100)
    assert levels == {64: Level.CAUTION, 256: Level.VALID}
