"""The average reward per step: against the stationary distribution of counted processes, exact ones and a linear system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from estimator_oracles import (
    Case,
    end_goes_on,
    exact_log,
    final_codes,
    flow_paths,
    influence_of,
    jackknife,
    one_hot_log,
    paths,
    random_case,
    random_tables,
    repeated_log,
    sampled,
)
from sklearn.preprocessing import PolynomialFeatures

from ope import Level, LoggedDataset, PolicySelector, evaluate_estimators
from ope.comparison import Comparison
from ope.estimators import LSTDQ, AverageRewardLSTDQ
from ope.policies import GaussianPolicy, TabularPolicy
from ope.problems import LinearGaussian, RandomMDP, RiverSwim, ScalarLQR, TabularProblem
from ope.validation import FloatArray

endless = pytest.mark.parametrize("ends", [("truncated",), ("horizon",), ("horizon", "truncated")], ids="-".join)


def stationary_average(P: FloatArray, R: FloatArray, pi: FloatArray) -> float:
    """Return the mean reward under the stationary distribution of states, by repeated squares of the chain."""
    chain = np.einsum("sa,saz->sz", pi, P)
    for _ in range(60):
        chain = chain @ chain
        chain = chain / chain.sum(axis=1, keepdims=True)
    return float(chain[0] @ (pi * R).sum(axis=1))


def counted_average(case: Case, weight: FloatArray | None = None) -> float:
    """Count transitions, divide, and average the rewards over the candidate's stationary distribution."""
    S, A = case.pi.shape
    onward, reward, count = np.zeros((S, A, S)), np.zeros((S, A)), np.zeros((S, A))
    for i, episode in enumerate(paths(case.log)):
        w = 1.0 if weight is None else float(weight[i])
        for t, (s, a, r) in enumerate(episode):
            last = t == len(episode) - 1
            if last and end_goes_on(case.log, i, True) is None:
                continue
            count[s, a] += w
            reward[s, a] += w * r
            onward[s, a, final_codes(case.log)[i] if last else episode[t + 1][0]] += w
    return stationary_average(onward / count[..., None], reward / count, case.pi)


def fitted(case: Case, weight: FloatArray | None = None, **settings: Any) -> Any:
    return AverageRewardLSTDQ(**settings).fit(case.log, case.policy, weight).estimate()


def exact_average(problem: TabularProblem) -> float:
    process = problem.process
    means = (process.transitions * process.rewards).sum(axis=2)
    return stationary_average(process.transitions, means, problem.target[problem.observation])


# -------------------------------------------------------------------- value and influence


@endless
@pytest.mark.parametrize("seed", [0, 1])
def test_tables_give_the_stationary_average_of_the_counted_process(ends: tuple[str, ...], seed: int) -> None:
    case = random_case(seed, n=60, ends=ends)
    weight = np.random.default_rng(seed).uniform(0.2, 2.0, 60)
    assert fitted(case).value == pytest.approx(counted_average(case), rel=1e-9)
    assert fitted(case, weight).value == pytest.approx(counted_average(case, weight), rel=1e-9)


@pytest.mark.parametrize("settings", [{}, {"features": "identity", "ridge": 0.0}], ids=str)
def test_influence_is_the_infinitesimal_jackknife(settings: dict[str, Any]) -> None:
    case = random_case(3, n=40, ends=("truncated",))
    psi = influence_of(fitted(case, **settings))
    assert abs(psi.mean()) < 1e-12
    np.testing.assert_allclose(psi, jackknife(lambda w: fitted(case, w, **settings).value, 40), rtol=1e-5, atol=1e-7)


def test_influence_of_weighted_episodes_with_features() -> None:
    log, policy, _ = control(30, 5)
    base = np.linspace(0.5, 1.5, 30)

    def value(w: FloatArray) -> float:
        # The mean of the weights moves with one of them; what is wanted is the derivative in the weight alone.
        return float(AverageRewardLSTDQ().fit(log, policy, base * w).estimate().value)

    psi = influence_of(AverageRewardLSTDQ().fit(log, policy, base).estimate())
    np.testing.assert_allclose(psi, jackknife(value, 30), rtol=1e-4, atol=1e-6)


def test_weights_are_replicated_episodes() -> None:
    case = random_case(4, n=20, n_states=2, n_actions=2, ends=("truncated",))
    weight = np.random.default_rng(0).integers(0, 4, 20)
    log = repeated_log(case.log, np.repeat(np.arange(20), weight))
    twice = case._replace(log=log.replace(episode_ids=np.arange(log.n_episodes)))
    assert fitted(case, weight.astype(float)).value == pytest.approx(fitted(twice).value, rel=1e-10)


@pytest.mark.parametrize("name", ["river", "random"])
def test_exact_logs_give_the_exact_average_whatever_the_start(name: str) -> None:
    problem: TabularProblem = (
        RiverSwim(max_steps=12) if name == "river" else RandomMDP(4, 2, max_steps=6, horizon=None, random_state=1)
    )
    weighted = exact_log(problem, problem.n_steps, "truncated", flow_paths)
    found = AverageRewardLSTDQ().fit(weighted.log, TabularPolicy(problem.target), weighted.weight).estimate()
    assert found.value == pytest.approx(exact_average(problem), rel=1e-6)


def test_it_is_the_limit_of_the_discounted_value_times_what_is_discounted() -> None:
    case = sampled(RiverSwim(max_steps=30), 100)
    gaps = [
        abs((1 - gamma) * LSTDQ(gamma=gamma).fit(case.log, case.policy).estimate().value - fitted(case).value)
        for gamma in (0.99, 0.999, 0.9999)
    ]
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2] > 0


def control(n: int, seed: int) -> tuple[LoggedDataset, GaussianPolicy, float]:
    """Return a log of linear-quadratic control, a candidate, and its exact average cost."""
    gain, noise = -0.7, 0.3
    problem = ScalarLQR(max_steps=20, target=LinearGaussian(gain, noise))
    a, b, q, c, drift = 0.9, 0.5, 1.0, 0.1, 0.2
    variance = (b**2 * noise**2 + drift**2) / (1 - (a + b * gain) ** 2)
    truth = -((q + c * gain**2) * variance + c * noise**2)
    return problem.sample(n, random_state=seed), GaussianPolicy([[gain]], noise), truth


def test_quadratic_features_are_right_for_linear_quadratic_control() -> None:
    log, policy, truth = control(400, 0)
    found = AverageRewardLSTDQ().fit(log, policy).estimate()
    assert found.verdict.level == Level.VALID, found.verdict
    assert abs(found.value - truth) < 4 * found.std_error < 0.05


def test_constants_added_to_the_rewards_are_added_to_the_average() -> None:
    for features in ("auto", PolynomialFeatures(3)):
        log, policy, _ = control(40, 1)
        one = AverageRewardLSTDQ(features=features).fit(log, policy).estimate()
        other = AverageRewardLSTDQ(features=features).fit(log.replace(rewards=log.rewards + 2.5), policy).estimate()
        assert other.value == pytest.approx(one.value + 2.5, rel=1e-9)


def test_ridge_solves_the_penalised_equations_and_reports_its_bias() -> None:
    log, policy, _ = control(60, 2)
    plain = AverageRewardLSTDQ().fit(log, policy).estimate()
    for ridge in (1e-3, 1e-2):
        found = AverageRewardLSTDQ(ridge=ridge).fit(log, policy).estimate()
        assert found.value - plain.value == pytest.approx(found.diagnostics["ridge_bias"], rel=0.05)


def test_transitions_to_unknown_states_are_left_out() -> None:
    case = random_case(2, n=50, ends=("horizon",))
    bare = case._replace(log=case.log.replace(final_states=None))
    found = fitted(bare)
    assert found.diagnostics["left_out_transitions"] == 50
    assert found.value == pytest.approx(counted_average(bare), rel=1e-9)


# -------------------------------------------------------------------- what is refused, and what is said


def test_terminal_ends_are_refused() -> None:
    case = random_case(0, ends=("terminal", "truncated"))
    with pytest.raises(
        ValueError, match=r"AverageRewardLSTDQ.fit: episodes of `data` must not end.*LSTDQ with gamma=1"
    ):
        fitted(case)


@pytest.mark.parametrize("parameter", [{"gamma": 0.9}, {"ridge": -1.0}, {"n_samples": 0}, {"features": "no"}], ids=str)
def test_bad_parameters(parameter: dict[str, Any]) -> None:
    case = random_case(0, ends=("truncated",))
    with pytest.raises(ValueError, match=rf"AverageRewardLSTDQ.*`{next(iter(parameter))}`"):
        fitted(case, **parameter)


def test_a_log_without_a_known_transition_is_refused() -> None:
    case = random_case(1, n=20, longest=1, ends=("horizon",))
    with pytest.raises(ValueError, match=r"AverageRewardLSTDQ\.fit: `data` must hold transitions"):
        fitted(case._replace(log=case.log.replace(final_states=None)))


def split_states() -> Case:
    """Return a log of two states that never lead to each other."""
    g = np.random.default_rng(0)
    b, pi = random_tables(g, 2, 2, False)
    s = np.repeat(np.arange(20) % 2, 5)
    a = np.array([g.choice(2, p=b[code]) for code in s])
    log = one_hot_log(s, a, s + g.normal(size=100), [5] * 20, ["truncated"] * 20, np.arange(20) % 2, b)
    return Case(log, b, pi)


def test_two_averages_are_refused() -> None:
    found = fitted(split_states())
    assert found.verdict.level == Level.REFUSE
    assert any("several parts of the states" in reason for reason in found.verdict.reasons)


def test_verdicts_of_the_average() -> None:
    few = fitted(sampled(RiverSwim(max_steps=5), 12))
    assert any("more than lies between" in reason or "effective sample" in reason for reason in few.verdict.reasons)
    case = sampled(RiverSwim(max_steps=30), 60)
    bounded = case._replace(log=case.log.replace(reward_range=None, rewards=case.log.rewards))
    assert fitted(bounded).verdict.level < Level.REFUSE
    narrow = case.log.replace(rewards=np.where(case.log.rewards > 0.5, 0.02, 0.01), reward_range=(0.5, 1.0))
    outside = fitted(case._replace(log=narrow))
    assert any(reason.startswith("The average") for reason in outside.verdict.reasons)
    assert outside.verdict.level == Level.REFUSE


# -------------------------------------------------------------------- its unit


def test_averages_and_sums_are_not_mixed() -> None:
    case = sampled(RiverSwim(max_steps=20), 50)
    average = fitted(case)
    total = LSTDQ(gamma=1.0, features="identity", ridge=1.0).fit(case.log, case.policy).estimate()
    assert (average.estimand, average.gamma, average.horizon) == ("average_reward", 1.0, None)
    assert total.question != average.question
    assert "average reward per step" in average.summary()
    assert "average reward" in average._repr_html_()
    with pytest.raises(ValueError, match="a sum of rewards and a reward per step"):
        average - total
    with pytest.raises(ValueError, match="average_reward, gamma 1"):
        Comparison({"a": average, "b": total})
    tables = {"A": {"pi": average}, "L": {"pi": total}}
    with pytest.raises(ValueError, match="all be of one estimand"):
        evaluate_estimators(tables, {"pi": 1.0})
    with pytest.raises(ValueError, match="one estimand"):
        PolicySelector([AverageRewardLSTDQ(), LSTDQ(gamma=1.0)]).fit(case.log, {"pi": case.policy})


def test_averages_can_be_compared_and_selected_among_themselves(tmp_path: Path) -> None:
    case = sampled(RiverSwim(max_steps=30), 100)
    other = TabularPolicy(np.tile([0.5, 0.5], (6, 1)))
    found = AverageRewardLSTDQ().fit(case.log, {"one": case.policy, "other": other}).estimate()
    difference = found["one"] - found["other"]
    assert difference.estimand == "average_reward"
    assert difference.value > 0
    candidates = {"one": case.policy, "other": other}
    selector = PolicySelector([AverageRewardLSTDQ()], baseline="other").fit(case.log, candidates)
    assert selector.best_name_ == "one"
    assert bool(selector.gates_.loc["one", "passes"])
    selector.report(tmp_path / "report.html")
    assert "average reward per step that it earns" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="`baseline` 'logged' is a sum of rewards"):
        PolicySelector([AverageRewardLSTDQ()]).fit(case.log, candidates)
    total = LSTDQ(gamma=1.0, features="identity", ridge=1.0).fit(case.log, case.policy).estimate()
    mixed = PolicySelector([AverageRewardLSTDQ()], baseline=total).fit(case.log, candidates)
    assert all("answer different questions" in reason or "refused" in reason for reason in mixed.gates_["reason"])


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 100])
def test_intervals_cover(n: int) -> None:
    problem = RiverSwim(max_steps=50)
    truth, hits = exact_average(problem), 0
    for seed in range(300):
        hits += truth in fitted(sampled(problem, n, seed)).confidence_interval()
    assert 0.91 < hits / 300 < 0.985
