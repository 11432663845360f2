"""Neural DICE: the Lagrangian by plain loops, tables against the closed form, influence, drift, candidates side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from dice_oracles import influence_gap
from estimator_oracles import (
    Case,
    end_goes_on,
    final_codes,
    influence_of,
    maximum_likelihood,
    paths,
    random_case,
    repeated_log,
)

from ope import End, Estimate, Level, LoggedDataset
from ope.estimators import DICE, LSTDQ, DoubleReinforcementLearning, GradientDICE, NeuralFunctions
from ope.estimators._candidates import CandidateTable
from ope.estimators._dice_base import feature_diagnostics, solve_linear
from ope.estimators._dice_problem import DiceProblem, Lagrangian
from ope.estimators._neural_dice import Learned, fit_candidates, in_key_order, learn
from ope.estimators._neural_dice_checks import Waves, judge_drift, judge_network, judge_outside, try_outside
from ope.estimators._neural_dice_choice import lepski
from ope.estimators._neural_dice_features import Remembered
from ope.estimators._neural_dice_training import SaddleStep, build_saddle, fit_scaling
from ope.estimators._neural_fqe_problem import time_columns
from ope.neural.transitions import Batch
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import LinearGaussian, RandomMDP, RiverSwim, ScalarLQR
from ope.testing.logs import make_case
from ope.validation import FloatArray

SMALL = NeuralFunctions(hidden=(16,), n_updates=30, batch_size=64)
WIDE = NeuralFunctions(hidden=(32,), n_updates=200, batch_size=128)
TINY = NeuralFunctions(hidden=(8,), n_updates=20, batch_size=16)
NAMED: dict[str, Callable[..., Any]] = {
    "dual": DICE.dual,
    "gen": DICE.gen,
    "best": DICE.best,
    "algae": DICE.algae,
    "gradient": GradientDICE,
}
every_point = pytest.mark.parametrize("point", list(NAMED))
stationary_or_not = pytest.mark.parametrize("stationary", [False, True], ids=["by_time", "stationary"])


def fit(point: str, log: LoggedDataset, policy: Any, weight: FloatArray | None = None, **params: Any) -> Any:
    return NAMED[point](**{"gamma": 0.9, "network": SMALL, **params}).fit(log, policy, weight).estimate()


# -------------------------------------------------------------------- the Lagrangian, by plain loops

Parts = dict[str, FloatArray]


class PlainSaddle:
    """The Lagrangian of one candidate on a batch of rows, a row at a time."""

    def __init__(self, problem: DiceProblem, pi: FloatArray, rows: list[int], start: float) -> None:
        self.problem, self.log, self.pi, self.rows, self.start = problem, problem.data, pi, rows, start
        self.episodes = paths(self.log)
        self.place = [(i, t) for i, episode in enumerate(self.episodes) for t in range(len(episode))]
        switches = problem.lagrangian
        self.size = float(np.sqrt(np.mean(self.log.rewards**2)))
        self.pulled = switches.a_nu > 0 and (switches.reward or switches.a_zeta > 0)
        self.unit = self.size if self.pulled or self.log.rewards.mean() >= 0 else -self.size

    def output(self, parts: Parts, code: int, t: int, a: int) -> float:
        x = (np.eye(len(self.pi))[code] - self.log.states.mean(axis=0)) / (self.log.states.std(axis=0) + 1e-3)
        if self.problem.horizon is not None:
            x = np.concatenate([x, time_columns(np.array([t]), self.problem.horizon)[0]])
        hidden = [
            max(0.0, sum(x[j] * parts["weight0"][j, h] for j in range(len(x))) + parts["bias0"][0, h])
            for h in range(parts["weight0"].shape[1])
        ]
        return float(sum(h * parts["weight1"][j, a] for j, h in enumerate(hidden)) + parts["bias1"][0, a])

    def nu(self, parts: Parts, code: int, t: int, a: int) -> float:
        return self.output(parts, code, t, a) * (1.0 if self.pulled else self.problem.mass)

    def nu_bar(self, parts: Parts, code: int, t: int) -> float:
        return sum(float(self.pi[code, a]) * self.nu(parts, code, t, a) for a in range(self.pi.shape[1]))

    def zeta(self, x: float) -> float:
        return x**2 if self.problem.lagrangian.positive else x

    def edge_nu(self, parts: Parts, s: int) -> float:
        return float(parts["edge"][s]) * (1.0 if self.pulled else self.problem.mass)

    def ahead(self, parts: Parts, i: int, t: int) -> float:
        """Return what nu expects after step t of episode i."""
        episode, H = self.episodes[i], self.problem.horizon
        if t + 1 < len(episode):
            return self.nu_bar(parts, episode[t + 1][0], t + 1)
        if End(int(self.log.ends[i])) is End.TERMINAL:
            absorbing = self.problem.lagrangian.terminal == "absorbing" and (H is None or t + 1 < H)
            return self.edge_nu(parts, 0 if H is None else t + 1) if absorbing else 0.0
        if t + 1 == H:  # a truncation where all ends leaves nothing out
            return 0.0
        follows = end_goes_on(self.log, i, H is None)
        return self.nu_bar(parts, final_codes(self.log)[i], t + 1) if follows else 0.0

    def absorbing_rows(self) -> FloatArray:
        gamma, H = self.problem.gamma, self.problem.horizon
        weight = np.zeros(1 if H is None else H)
        if self.problem.lagrangian.terminal == "zero":
            return weight
        for i, episode in enumerate(self.episodes):
            if End(int(self.log.ends[i])) is End.TERMINAL:
                w = self.problem.episode_weight[i]
                if H is None:
                    weight[0] += w * gamma / (1.0 - gamma)
                for t in range(len(episode), H or 0):
                    weight[t] += w
        return weight

    def term(self, nu: float, ahead: float, zeta: float, r: float, lam: float) -> float:
        switches, p = self.problem.lagrangian, self.problem.lagrangian.power
        error = (r / self.unit if switches.reward else 0.0) + self.problem.gamma * ahead - nu - lam
        if not self.pulled:
            return float(zeta * error - abs(zeta) ** p / p)
        value = zeta * error - switches.a_zeta / self.size * abs(zeta) ** p / p
        return float(value + switches.a_nu * self.size ** (p - 1.0) * abs(nu) ** p / p)

    def __call__(self, nu: Parts, zeta: Parts) -> float:
        problem, switches = self.problem, self.problem.lagrangian
        lam = float(nu["lam"][0]) if switches.norm else 0.0
        edges = self.absorbing_rows()
        total = edges.sum() + sum(problem.episode_weight[i] for i, _ in self.place)
        live, mean = 1.0 - edges.sum() / total, 0.0
        value = 0.0
        for row in self.rows:
            i, t = self.place[row]
            code, a, r = self.episodes[i][t]
            z = self.zeta(self.output(zeta, code, t, a))
            value += live * self.term(self.nu(nu, code, t, a), self.ahead(nu, i, t), z, r, lam) / len(self.rows)
            mean += live * z / len(self.rows)
        for s, weight in enumerate(edges):
            later = 0 if len(edges) == 1 else s + 1
            onward = self.edge_nu(nu, later) if later < len(edges) else 0.0
            z = self.zeta(float(zeta["edge"][s]))
            value += weight / total * self.term(self.edge_nu(nu, s), onward, z, 0.0, lam)
            mean += weight / total * z
        value += self.start / problem.mass * self.nu_bar(nu, 0, 0)  # all episodes start in the first state
        if switches.norm:
            value += lam + lam**2 / (2.0 * switches.norm_penalty) - 0.5 * (mean - 1.0) ** 2
        return float(value)


SWITCHES: dict[str, tuple[Lagrangian, float]] = {
    "dual": (Lagrangian(a_zeta=1.0), 1.0),
    "gen": (Lagrangian(a_nu=1.0, norm_penalty=np.inf, positive=True, terminal="absorbing"), 1.0),
    "best": (Lagrangian(a_zeta=1.0, reward=True, norm_penalty=np.inf, positive=True, terminal="absorbing"), 1.0),
    "gradient": (Lagrangian(a_nu=1.0, norm_penalty=2.0, terminal="absorbing"), 1.0),
    "pulled": (Lagrangian(0.5, 0.3, True, np.inf, True, 3.0, "absorbing"), 1.0),
    "minimax_q": (Lagrangian(a_zeta=1.0, reward=True), 0.0),
}


def first_state_log(reward_sign: float) -> tuple[Case, TabularPolicy]:
    """Draw a log whose episodes all start in the first state, so that drawn first states do not matter."""
    case = random_case(3, n=12, n_states=3, n_actions=2, longest=3, ends=("terminal", "horizon", "truncated"))
    states = case.log.states.copy()
    states[case.log.offsets[:-1]] = np.eye(3)[0]
    log = case.log.replace(states=states, rewards=reward_sign * np.abs(case.log.rewards))
    return Case(log, case.b, case.pi), TabularPolicy(case.pi[::-1])


def as_parts(views: dict[str, torch.Tensor], k: int) -> Parts:
    return {name: view[k].detach().double().numpy().copy() for name, view in views.items()}


def numerical_gradient(value: Callable[[], float], array: FloatArray, step: float = 1e-6) -> FloatArray:
    found = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + step
        up = value()
        array[place] = kept - step
        found[place] = (up - value()) / (2.0 * step)
        array[place] = kept
    return found


@stationary_or_not
@pytest.mark.parametrize("switches", list(SWITCHES))
def test_the_lagrangian_and_its_gradients_are_those_of_plain_loops(switches: str, stationary: bool) -> None:
    case, other = first_state_log(-1.0 if stationary else 1.0)
    assert ((case.log.ends == End.TERMINAL) & (case.log.lengths < 3)).any()  # some are absorbed before the horizon
    lagrangian, start = SWITCHES[switches]
    weight = np.random.default_rng(0).uniform(0.5, 1.5, size=12)
    horizon = None if stationary else case.log.horizon
    problem = DiceProblem(case.log, case.policy, weight / weight.mean(), lagrangian, 0.8, horizon)
    table = CandidateTable.build(case.log, [case.policy, other], actions=None)
    saddle = build_saddle(problem, table, fit_scaling(problem), start)
    step = SaddleStep(saddle, NeuralFunctions(hidden=(2,)), seed=0)
    generator = torch.Generator().manual_seed(0)
    for network in (step.nu, step.zeta):
        network.parameters.flat.copy_(torch.randn(network.parameters.flat.shape, generator=generator))
    rows = [0, 1, *(case.log.offsets[5:] - 1).tolist()]
    index = torch.tensor([rows])
    loss = step.lagrangian(Batch(saddle.problem.transitions, index))["lagrangian"]
    for k, pi in enumerate((case.pi, case.pi[::-1])):
        plain = PlainSaddle(problem, pi, rows, start)
        parts = {"nu": as_parts(step.nu.parameters.views, k), "zeta": as_parts(step.zeta.parameters.views, k)}
        assert float(loss[k].detach()) == pytest.approx(plain(**parts), rel=1e-4, abs=1e-4)
    for player, network, sign in (("nu", step.nu, 1.0), ("zeta", step.zeta, -1.0)):  # zeta ascends
        views = network.parameters.views
        found = torch.autograd.grad(loss.sum(), list(views.values()), allow_unused=True, retain_graph=True)
        for name, gradient in zip(views, found, strict=True):
            exact = sign * numerical_gradient(partial(plain, **parts), parts[player][name])
            seen = np.zeros_like(exact) if gradient is None else gradient[k].double().numpy()
            np.testing.assert_allclose(seen, exact, rtol=2e-3, atol=2e-3 * max(1.0, np.abs(exact).max()))


def test_first_states_are_drawn_by_the_weights_of_their_episodes() -> None:
    case = random_case(0, n=4)
    weight = np.array([0.0, 1.0, 2.0, 1.0])
    problem = DiceProblem(case.log, case.policy, weight, Lagrangian(a_zeta=1.0), 0.9, None)
    saddle = build_saddle(
        problem, CandidateTable.build(case.log, [case.policy], actions=None), fit_scaling(problem), 1.0
    )
    rows = SaddleStep(saddle, TINY, seed=0)._starts(40_000).numpy()
    shares = [(rows == first).mean() for first in case.log.offsets[:-1]]
    np.testing.assert_allclose(shares, weight / 4.0, atol=0.01)


def test_networks_alone_come_to_the_closed_form() -> None:
    problem = RandomMDP(4, 3, max_steps=12, random_state=0)
    log, policy = problem.sample(200, random_state=0), TabularPolicy(problem.target)
    exact = LSTDQ(gamma=0.8).fit(log, policy).estimate()
    settings = NeuralFunctions(hidden=(16,), n_updates=600, batch_size=128)
    estimate = fit("best", log, policy, gamma=0.8, network=settings)
    assert abs(estimate.diagnostics["network_value"] - exact.value) < exact.std_error
    assert estimate.diagnostics["n_updates"] == 600
    assert estimate.verdict.level == Level.VALID


# -------------------------------------------------------------------- tables: the last layers are the closed form


@stationary_or_not
@pytest.mark.parametrize("ends", [("terminal",), ("truncated",), ("horizon",), ("terminal", "horizon", "truncated")])
def test_tables_of_all_ends_get_the_closed_form(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(0, n=600, ends=ends)
    exact = maximum_likelihood(case, 0.8, stationary).value
    reference = LSTDQ(gamma=0.8, stationary=stationary).fit(case.log, case.policy).estimate()
    for point in ("dual", "best"):
        estimate = fit(point, case.log, case.policy, gamma=0.8, stationary=stationary, network=TINY)
        assert estimate.value == pytest.approx(exact, abs=1e-6)
        np.testing.assert_allclose(influence_of(estimate), influence_of(reference), atol=1e-5)
        assert estimate.horizon == (None if stationary else case.log.horizon)


@every_point
def test_riverswim_gets_the_closed_form_from_every_point(point: str) -> None:
    problem = RiverSwim(max_steps=50)
    log, policy = problem.sample(100, random_state=0), TabularPolicy(problem.target)
    exact = LSTDQ(gamma=0.95).fit(log, policy).estimate()
    estimate = fit(point, log, policy, gamma=0.95)
    assert estimate.value == pytest.approx(exact.value, rel=1e-8)
    assert estimate.std_error == pytest.approx(exact.std_error, rel=1e-6)
    np.testing.assert_allclose(estimate.diagnostics["path"], exact.value, rtol=1e-8)
    assert abs(estimate.diagnostics["mean_ratio"] - 1.0) < 1e-6


def test_the_order_of_episodes_does_not_matter() -> None:
    case = make_case("continuous")
    order = np.random.default_rng(0).permutation(case.log.n_episodes)
    one, other = (fit("best", log, case.candidate, network=TINY) for log in (case.log, case.log.select(order)))
    assert other.value == one.value
    np.testing.assert_array_equal(influence_of(other), influence_of(one)[order])


@pytest.mark.parametrize("point", ["dual", "gen"])
def test_episode_weights_count_as_repeated_episodes(point: str) -> None:
    case = random_case(1, n=120, ends=("terminal", "truncated"))
    weight = np.random.default_rng(0).choice([0.0, 1.0, 3.0], size=120)
    exact = maximum_likelihood(case, 0.8, stationary=True, weight=weight).value
    estimate = fit(point, case.log, case.policy, weight, gamma=0.8, stationary=True, network=TINY)
    assert estimate.value == pytest.approx(exact, abs=1e-6)
    repeated = repeated_log(case.log, np.repeat(np.arange(120), weight.astype(int)))
    again = fit(point, repeated, case.policy, gamma=0.8, stationary=True, network=TINY)
    assert estimate.value == pytest.approx(again.value, abs=1e-6)


# -------------------------------------------------------------------- where networks stand for functions


@pytest.mark.parametrize(("point", "deterministic"), [("best", False), ("best", True)])
def test_linear_quadratic_control(point: str, deterministic: bool) -> None:
    """The value is within a tenth of |J(pi) - J(b)| of that of the quadratic Q function on the same log."""
    problem = ScalarLQR(max_steps=20)
    log = problem.sample(300, random_state=0)
    policy = FunctionPolicy(predict=lambda s: -0.7 * s[:, :1]) if deterministic else GaussianPolicy([[-0.7]], 0.3)
    truth = problem.value(LinearGaussian(-0.7, 0.0 if deterministic else 0.3))
    exact = LSTDQ(gamma=0.95).fit(log, policy).estimate()
    estimate = fit(point, log, policy, gamma=0.95, network=WIDE)
    assert abs(estimate.value - exact.value) < 0.1 * abs(truth - problem.value(problem.behavior))
    assert 0.5 < estimate.std_error / exact.std_error < 2.0


def learned_of(point: str, kind: str, **params: Any) -> tuple[Learned, DiceProblem]:
    case = make_case(kind)
    problem = (
        NAMED[point](gamma=0.9, **params)
        .fit(case.log, case.candidate)
        ._problem(case.log, case.candidate, np.ones(case.log.n_episodes))
    )
    (ordered,), _ = in_key_order([problem])
    learned = learn([ordered], TINY)[0]
    assert isinstance(learned, Learned)
    return learned, problem


@pytest.mark.parametrize(("point", "kind"), [("dual", "mixed"), ("best", "continuous"), ("gen", "continuous_horizon")])
def test_influence_is_the_jackknife_of_the_last_layers(point: str, kind: str) -> None:
    learned, problem = learned_of(point, kind)
    fitted = fit_candidates([problem], TINY)[0]
    assert not isinstance(fitted, Exception)
    assert fitted.influence is not None
    assert fitted.value == pytest.approx(solve_linear(learned.problem, learned.features).value, rel=1e-10)
    _, order = in_key_order([problem])

    def value(weight: FloatArray) -> float:
        reweighted = replace(learned.problem, episode_weight=weight / weight.mean())
        return solve_linear(reweighted, learned.features).value

    assert influence_gap(value, fitted.influence[order], every=6) < 1e-4


@pytest.mark.parametrize("kind", ["mixed", "continuous"])
def test_ratios_serve_other_logs_and_give_the_value_on_their_own(kind: str) -> None:
    case = make_case(kind)
    ones = np.ones(case.log.n_episodes)
    estimator = DICE.dual(gamma=0.9, network=TINY)
    ratio, estimate = (
        estimator.fit_ratio(case.log, case.candidate, ones),
        fit("dual", case.log, case.candidate, network=TINY),
    )
    c = ratio.predict(case.candidate, case.log)
    assert float(c @ case.log.rewards) / case.log.n_episodes == pytest.approx(estimate.value, rel=1e-8)
    part = case.log.select(np.arange(5))
    np.testing.assert_allclose(ratio.predict(case.candidate, part), c[: len(part)], rtol=1e-8, atol=1e-10)


def test_ratios_serve_double_reinforcement_learning() -> None:
    problem = RandomMDP(4, 3, max_steps=12, random_state=0)
    log, policy = problem.sample(100, random_state=0), TabularPolicy(problem.target)
    neural, tabular = (
        DoubleReinforcementLearning(gamma=0.9, ratio=ratio, n_folds=2).fit(log, policy).estimate()
        for ratio in (DICE.dual(network=SMALL), DICE.dual())
    )
    assert abs(neural.value - tabular.value) < 0.5 * tabular.std_error


def test_features_of_parts_are_columns_and_expectations_are_sums() -> None:
    learned, _ = learned_of("best", "mixed", stationary=True)
    log, features = learned.problem.data, replace(learned.features, outputs=True)
    steps, probs = np.zeros(len(log), dtype=np.int64), np.random.default_rng(0).dirichlet(np.ones(3), len(log))
    whole = features.logged(log.states, steps, log.actions)
    assert whole.shape[1] == features.n_features
    for outputs in (False, True):
        few = features.part(1, outputs).logged(log.states, steps, log.actions)
        np.testing.assert_allclose(few, whole[:, features.columns(1, outputs)], atol=1e-12)
    summed = sum(probs[:, [a]] * features.logged(log.states, steps, np.full(len(log), a)) for a in range(3))
    np.testing.assert_allclose(features.averaged(log.states, steps, probs), summed, atol=1e-12)


def test_expectations_over_continuous_actions_are_sums() -> None:
    learned, _ = learned_of("best", "continuous")
    log, features, g = learned.problem.data, replace(learned.features, outputs=True), np.random.default_rng(0)
    steps, weights, nodes = np.zeros(len(log), dtype=np.int64), g.dirichlet(np.ones(3)), g.normal(size=(3, len(log), 1))
    summed = sum(w * features.logged(log.states, steps, a) for w, a in zip(weights, nodes, strict=True))
    np.testing.assert_allclose(features.over_nodes(log.states, steps, weights, nodes), summed, atol=1e-12)


def test_what_is_remembered_of_a_part_is_what_the_part_sees() -> None:
    learned, _ = learned_of("best", "mixed", stationary=True)
    log, policy, whole = learned.problem.data, learned.problem.policy, learned.features
    remembered = Remembered(whole, log, policy)
    remembered.seen(policy, log)
    for outputs in (False, True) if whole.outputs else (False,):
        found, plain = remembered.part(1, outputs).seen(policy, log), whole.part(1, outputs).seen(policy, log)
        for name in ("phi", "phi_bar", "phi_next", "start"):
            np.testing.assert_allclose(getattr(found, name), getattr(plain, name), atol=1e-12)


def test_the_ladder_keeps_the_value_of_least_variance_that_no_richer_one_contradicts() -> None:
    g = np.random.default_rng(0)
    noise = g.normal(size=(4, 100))
    psi = [scale * row for scale, row in zip((0.1, 1.0, 2.0, 4.0), noise, strict=True)]
    assert lepski([9.0, 0.0, 0.1, 0.0], psi, 2.0) == 1
    assert lepski([0.0, 0.0, 0.1, 0.0], psi, 2.0) == 0
    assert lepski([9.0, 7.0, 5.0, 0.0], psi, 2.0) == 3


# -------------------------------------------------------------------- candidates


@pytest.mark.parametrize("kind", ["mixed", "continuous"])
def test_candidates_side_by_side_are_as_they_are_alone(kind: str) -> None:
    case = make_case(kind)
    policies = {"a": case.candidate, "b": case.other, "c": case.behavior}
    together = fit("best", case.log, policies, network=TINY)
    for name, policy in policies.items():
        alone = fit("best", case.log, policy, network=TINY)
        assert together[name].value == pytest.approx(alone.value, rel=1e-6)
        np.testing.assert_allclose(influence_of(together[name]), influence_of(alone), rtol=1e-5, atol=1e-6)
        assert together[name].diagnostics["training_overlap"] == alone.diagnostics["training_overlap"] == 0


def test_a_candidate_that_fails_leaves_the_others_alone() -> None:
    case = make_case("deterministic")
    policies = {"wide": FunctionPolicy(predict=lambda s: np.zeros((len(s), 2))), "sound": case.candidate}
    found = fit("dual", case.log, policies, network=TINY)
    assert np.isnan(found["wide"].value)
    assert found["wide"].verdict.level == Level.REFUSE
    assert found["sound"].value == pytest.approx(fit("dual", case.log, case.candidate, network=TINY).value, rel=1e-6)


# -------------------------------------------------------------------- verdicts


def has(estimate: Estimate, words: str) -> bool:
    return any(words in reason for reason in estimate.verdict.reasons)


def test_a_run_that_is_too_short_is_not_valid() -> None:
    case = make_case("continuous", n_episodes=200)
    short = fit("dual", case.log, case.candidate, network=NeuralFunctions(hidden=(8,), n_updates=2, batch_size=16))
    assert short.diagnostics["drift"] == np.inf
    assert short.verdict.level == Level.REFUSE
    assert has(short, "The value still moved by inf")


def test_training_that_diverges_is_refused() -> None:
    case = make_case("terminal")
    wild = NeuralFunctions(hidden=(8,), n_updates=60, batch_size=16, learning_rate=1e20)
    estimate = fit("dual", case.log, case.candidate, network=wild)
    assert estimate.verdict.level == Level.REFUSE
    assert has(estimate, "The saddle point was not reached (training diverged")


@pytest.mark.parametrize(
    ("drift", "level"), [(0.4, None), (1.0, Level.CAUTION), (4.0, Level.REFUSE), (np.inf, Level.REFUSE)]
)
def test_drift_is_judged_beside_the_standard_error(drift: float, level: Level | None) -> None:
    found = judge_drift(drift, 1.0)
    assert (found is None) == (level is None)
    if found is not None:
        assert found[0] == level
        assert "n_updates" in found[1]


def test_differences_to_networks_and_waves_are_judged() -> None:
    assert judge_network(1.0, 1.2, 0.1) is None
    assert judge_outside(0.04, 0.1) is None
    assert judge_outside(float("nan"), 0.1) is None
    far, outside = judge_network(1.0, 2.0, 0.1), judge_outside(-0.2, 0.1)
    assert far is not None
    assert far[0] == Level.CAUTION
    assert "their last layers in closed form 2" in far[1]
    assert outside is not None
    assert outside[0] == Level.CAUTION
    assert "the value changes by -0.2" in outside[1]


def test_waves_that_no_network_was_trained_on_are_tried() -> None:
    """Their flow by a loop over steps, and what they shift by one linear system in both kinds of features."""
    case, gamma = random_case(2, n=40, n_states=4, ends=("terminal", "truncated")), 0.9
    problem = DiceProblem(case.log, case.policy, np.ones(40), Lagrangian(a_zeta=1.0), gamma, None)
    learned = learn([problem], TINY)[0]
    assert isinstance(learned, Learned)
    few = learned.features.part(1, False)  # too few for a table
    c = np.random.default_rng(0).normal(size=len(case.log))
    tests = feature_diagnostics(problem, few, c)
    found = try_outside(problem, few, c, tests["lstdq"])
    S, A = case.pi.shape
    waves = Waves.of(case.log.states, 12).transform(np.eye(S))
    beside = np.zeros((S, A, 12 * A))
    own = np.stack([few.logged(np.eye(S), np.zeros(S, np.int64), np.full(S, a)) for a in range(A)], axis=1)
    for s, a in np.ndindex(S, A):
        beside[s, a, 12 * a : 12 * (a + 1)] = waves[s]
    phi = np.concatenate([own, beside], axis=2)
    expected = np.stack([sum(case.pi[s, a] * phi[s, a] for a in range(A)) for s in range(S)])
    k, row = phi.shape[2], 0
    flow, matrix, target, start = np.zeros(k), np.zeros((k, k)), np.zeros(k), np.zeros(k)
    for i, episode in enumerate(paths(case.log)):
        start += expected[episode[0][0]] / 40
        for t, (s, a, r) in enumerate(episode):
            last = t + 1 == len(episode)
            code = final_codes(case.log)[i] if last else episode[t + 1][0]
            onward = expected[code] if not last or end_goes_on(case.log, i, True) else np.zeros(k)
            flow += c[row] * (phi[s, a] - gamma * onward) / 40
            matrix += np.outer(phi[s, a], phi[s, a] - gamma * onward)
            target += phi[s, a] * r
            row += 1
    error = np.abs(flow - start)[own.shape[2] :].max() * (1.0 - gamma)
    assert found.flow_error == pytest.approx(error, rel=1e-8)
    value = float(start @ np.linalg.lstsq(matrix, target, rcond=1e-10)[0])
    assert found.shift == pytest.approx(value - tests["lstdq"], rel=1e-4)
    assert 0.0 <= found.flow_p <= 1.0


BAD: list[tuple[type[Any], dict[str, Any], str]] = [
    (DICE, {"features": "identity"}, "`features` must be 'auto' with a network"),
    (GradientDICE, {"features": "identity"}, "`features` must be 'auto' with a network"),
    (GradientDICE, {"ridge": 0.1}, "`ridge` must be 0.0 with a network"),
]


@pytest.mark.parametrize(("kind", "params", "words"), BAD)
def test_settings_of_linear_classes_are_refused_beside_a_network(
    kind: type[Any], params: dict[str, Any], words: str
) -> None:
    case = make_case("terminal")
    with pytest.raises(ValueError, match=f"{kind.__name__}: {words}"):
        kind(gamma=0.9, network=TINY, **params).fit(case.log, case.candidate)


def test_settings_of_networks_are_checked() -> None:
    case = make_case("terminal")
    with pytest.raises(TypeError, match="GradientDICE: `network` must be NeuralFunctions or None"):
        fit("gradient", case.log, case.candidate, network=(64, 64))
    with pytest.raises(ValueError, match="NeuralFunctions: `device`"):
        fit("dual", case.log, case.candidate, network=NeuralFunctions(device="abacus"))
    with pytest.raises(ValueError, match=r"DICE.fit: `gamma` must be below 1 without a horizon"):
        fit("dual", case.log, case.candidate, gamma=1.0, stationary=True)
