"""COP-TD against its own expected updates run to the end, exact ratios of state visits, and the infinitesimal jackknife."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dice_oracles import influence_gap
from estimator_oracles import (
    Case,
    end_goes_on,
    exact_log,
    final_codes,
    flow_paths,
    influence_of,
    paths,
    random_case,
)

from ope import Estimate, Level
from ope.estimators import COPTD, StateMarginalIS
from ope.policies import TabularPolicy
from ope.problems import Hybrid, RandomMDP
from ope.testing.logs import make_case
from ope.validation import FloatArray


def fit(case: Any, weight: FloatArray | None = None, gamma: float = 0.9, **params: Any) -> Estimate:
    policy = case.policy if isinstance(case, Case) else case.candidate
    estimate: Estimate = COPTD(gamma=gamma, **params).fit(case.log, policy, weight).estimate()
    return estimate


def iterate(case: Case, gamma: float, norm_penalty: float, n_sweeps: int = 20_000) -> float:
    """Sweep over all arrivals of the log, moving c of each state by its mean update, and return the value.

    Terminated episodes stay in an absorbing state, whose ratio is the last entry, when there is a norm.
    """
    S, episodes = len(case.pi), paths(case.log)
    rows: list[tuple[float, int]] = []  # weight and state of every row
    hops: list[tuple[float, int, int]] = []  # weight times gamma rho, from, to
    rewards: list[tuple[int, float]] = []
    starts = [episode[0][0] for episode in episodes]
    for i, episode in enumerate(episodes):
        for t, (s, a, r) in enumerate(episode):
            rho, last = case.pi[s, a] / case.b[s, a], t + 1 == len(episode)
            rows.append((1.0, s))
            rewards.append((s, rho * r))
            if not last or end_goes_on(case.log, i, True):
                hops.append((gamma * rho, s, final_codes(case.log)[i] if last else episode[t + 1][0]))
            elif norm_penalty:
                hops.append((gamma * rho, s, S))
                rows.append((gamma / (1 - gamma), S))
                hops.append((gamma * gamma / (1 - gamma), S, S))
    total = sum(w for w, _ in rows)
    mean, onward, reset = np.zeros(S + 1), np.zeros((S + 1, S + 1)), np.zeros(S + 1)
    for w, s in rows:
        mean[s] += w / total
    for w, s, z in hops:
        onward[z, s] += w / total
    for s in starts:
        reset[s] += (1 - gamma) / len(episodes)
    c = np.ones(S + 1)
    for _ in range(n_sweeps):
        c = c + 0.5 * (reset + onward @ c - mean * c + norm_penalty * mean * (1.0 - mean @ c))
    return float(sum(c[s] * x for s, x in rewards)) / total / (1 - gamma)


@pytest.mark.parametrize("norm_penalty", [0.0, 1.0])
@pytest.mark.parametrize("ends", [("truncated",), ("terminal",), ("terminal", "truncated")], ids="-".join)
def test_value_is_where_the_updates_settle(ends: tuple[str, ...], norm_penalty: float) -> None:
    case = random_case(2, n=80, n_states=2, n_actions=2, ends=ends)
    expected = iterate(case, 0.8, norm_penalty)
    assert fit(case, gamma=0.8, norm_penalty=norm_penalty).value == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("kind", ["terminal", "horizon", "mixed", "continuous"])
def test_without_a_norm_it_is_the_state_ratio_that_is_not_self_normalised(kind: str, stationary: bool) -> None:
    case = make_case(kind)
    other = StateMarginalIS(gamma=0.9, self_normalized=False, stationary=stationary).fit(case.log, case.candidate)
    for terminal in ("zero", "absorbing"):
        estimate = fit(case, norm_penalty=0.0, terminal=terminal, stationary=stationary)
        assert estimate.value == pytest.approx(other.estimate().value, rel=1e-8)
        np.testing.assert_allclose(
            influence_of(estimate), influence_of(other.estimate()), rtol=1e-6, atol=1e-9 * abs(estimate.value)
        )


@pytest.mark.parametrize("norm_penalty", [0.0, 1.0])
@pytest.mark.parametrize("terminals", [0, 1])
def test_exact_logs_give_the_exact_ratio_of_state_visits(terminals: int, norm_penalty: float) -> None:
    problem = RandomMDP(2, 2, terminals=terminals, max_steps=4, random_state=3)
    log, policy = exact_log(problem, 4, "truncated"), TabularPolicy(problem.target)
    estimator = COPTD(gamma=0.8, norm_penalty=norm_penalty)
    value = estimator.fit(log.log, policy, log.weight).estimate().value
    assert value == pytest.approx(problem.value(problem.target, 0.8), rel=1e-8)
    c = estimator.fit_ratio(log.log, policy, log.weight).predict(policy, log.log)
    P = np.einsum("sa,saz->sz", problem.target, problem.process.transitions[:2])[:, :2]
    visits = np.linalg.solve(np.eye(2) - 0.8 * P.T, problem.process.initial[:2])
    logged, share = np.zeros(2), log.weight / log.weight.sum()
    for w, episode in zip(share, paths(log.log), strict=True):
        for s, _, _ in episode:
            logged[s] += w
    rho = problem.target / problem.behavior
    expected = [visits[s] / logged[s] * rho[s, a] for episode in paths(log.log) for s, a, _ in episode]
    np.testing.assert_allclose(c, expected, rtol=1e-8)


def test_exact_logs_with_a_horizon() -> None:
    problem = RandomMDP(3, 2, horizon=4, random_state=4)
    log = exact_log(problem, 4, "horizon", flow_paths)
    for gamma in (0.9, 1.0):
        value = COPTD(gamma=gamma).fit(log.log, TabularPolicy(problem.target), log.weight).estimate().value
        assert value == pytest.approx(problem.value(problem.target, gamma), rel=1e-8)


def test_a_reset_at_every_arrival_is_another_number() -> None:
    """The form with 1 - gamma at every arrival restarts in the log's states instead of in the first one."""
    problem = RandomMDP(3, 2, max_steps=4, random_state=5)
    P = np.einsum("sa,saz->sz", problem.target, problem.process.transitions)
    P_b = np.einsum("sa,saz->sz", problem.behavior, problem.process.transitions)
    r = np.einsum("sa,saz,saz->s", problem.target, problem.process.transitions, problem.process.rewards)
    values, vectors = np.linalg.eig(P_b.T)
    d = np.real(vectors[:, np.argmax(np.real(values))])
    d = d / d.sum()  # where the log is after many steps
    c = np.ones(3)
    for _ in range(500):
        c = 0.2 + 0.8 * (P.T @ (d * c)) / d
    restarted = float((d * c) @ r) / 0.2
    v = np.linalg.solve(np.eye(3) - 0.8 * P, r)
    assert restarted == pytest.approx(float(d @ v), rel=1e-8)
    assert restarted != pytest.approx(problem.value(problem.target, 0.8), rel=1e-2)


@pytest.mark.parametrize("params", [{}, {"norm_penalty": 0.0}, {"norm_penalty": 20.0, "stationary": True}])
@pytest.mark.parametrize("kind", ["terminal", "mixed", "continuous_horizon"])
def test_influence_is_the_infinitesimal_jackknife(kind: str, params: dict[str, Any]) -> None:
    case = make_case(kind, n_episodes=21)
    found = influence_of(fit(case, **params))
    assert found.sum() == pytest.approx(0.0, abs=1e-8 * np.abs(found).sum())
    assert influence_gap(lambda w: fit(case, w, **params).value, found) < 1e-5


def test_weights_of_zero_leave_episodes_out() -> None:
    case = make_case("mixed", n_episodes=40)
    weight = np.r_[np.zeros(10), np.ones(30)]
    rest = case.log.select(np.arange(10, 40))
    found = fit(case, weight, features="identity").value
    alone = COPTD(gamma=0.9, features="identity").fit(rest, case.candidate).estimate().value
    assert found == pytest.approx(alone, rel=1e-9)


def test_the_norm_is_reported() -> None:
    case = make_case("terminal", n_episodes=100)
    errors = [abs(fit(case, norm_penalty=x).diagnostics["norm_error"]) for x in (0.1, 1.0, 100.0)]
    assert errors[0] > errors[1] > 10 * errors[2] > 0
    assert fit(case, norm_penalty=0.0).diagnostics["flow_shift"] == 0.0


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"norm_penalty": -1.0}, ValueError, "`norm_penalty` must be a number of at least 0"),
        ({"terminal": "zero"}, ValueError, "`terminal` must be 'absorbing' with norm_penalty > 0"),
        ({"features": "poly"}, ValueError, "`features` must be"),
        ({"random_state": 0.5}, ValueError, "`random_state` must be an integer"),
    ],
)
def test_bad_parameters(params: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=rf"COPTD: {words}"):
        fit(make_case("terminal"), **params)


def test_propensities_and_a_discount_are_needed() -> None:
    case = make_case("terminal")
    with pytest.raises(ValueError, match=r"COPTD.fit: `data` must hold propensities"):
        COPTD(gamma=0.9).fit(case.log.replace(behavior_log_prob=None), case.candidate)
    with pytest.raises(ValueError, match=r"COPTD.fit: `gamma` must be below 1"):
        fit(case, gamma=1.0)


def test_a_hidden_state_is_found() -> None:
    problem = Hybrid()
    log = problem.sample(400, random_state=0)
    policy = TabularPolicy(problem.target, state_code=problem.state_code)
    found = COPTD(gamma=0.99).fit(log, policy).estimate()
    assert found.verdict.level == Level.REFUSE
    assert any("depend on the past" in reason for reason in found.verdict.reasons)
