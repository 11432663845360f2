"""DICE against exact ratios of visits, plain-loop Lagrangians, a general-purpose optimiser and the infinitesimal jackknife."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from dice_oracles import influence_gap
from estimator_oracles import (
    Case,
    WeightedLog,
    exact_log,
    final_codes,
    flow_paths,
    influence_of,
    one_hot_log,
    paths,
    random_case,
)
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from ope import Estimate, Level, LoggedDataset
from ope.estimators import DICE, LSTDQ, MarginalizedIS, NeuralFunctions, _saddle
from ope.estimators._dice_flow import ActionFeatures, FlowFeatures, Kept
from ope.estimators._dice_linear import LinearSolver
from ope.estimators._dice_problem import DiceProblem, Lagrangian
from ope.estimators._features import fit_basis
from ope.policies import FunctionPolicy, TabularPolicy
from ope.policy import Policy
from ope.problems import RandomMDP, RiverSwim, TabularProblem
from ope.testing.logs import LABELS, SLOPES, make_case, sharded, softmax_of_states
from ope.validation import FloatArray

ENDS = [("terminal",), ("truncated",), ("terminal", "truncated"), ("horizon",), ("terminal", "horizon", "truncated")]
NAMED: dict[str, Callable[..., DICE]] = {"dual": DICE.dual, "gen": DICE.gen, "best": DICE.best, "algae": DICE.algae}
# Points that pull the ratio from the Bellman flow.
PULLED: dict[str, dict[str, Any]] = {
    "all": {"nu_regularizer": 0.5, "zeta_regularizer": 0.3},
    "free": {"nu_regularizer": 0.05, "zeta_regularizer": 0.1, "norm": False, "positive": False},
    "absorbing": {"nu_regularizer": 0.2, "reward": False, "norm": False, "terminal": "absorbing"},
}
stationary_or_not = pytest.mark.parametrize("stationary", [False, True], ids=["by_time", "stationary"])
every_end = pytest.mark.parametrize("ends", ENDS, ids="-".join)


def fit(case: Any, dice: DICE, weight: FloatArray | None = None) -> Estimate:
    policy = case.policy if isinstance(case, Case) else case.candidate
    estimate: Estimate = dice.fit(case.log, policy, weight).estimate()
    return estimate


def covered(seed: int, ends: tuple[str, ...], n: int = 120) -> Case:
    """Draw a log in which every pair is logged at every step that many episodes reach."""
    return random_case(seed, n=n, n_states=2, n_actions=2, longest=4, ends=ends)


# -------------------------------------------------------------------------------- the closed form


@stationary_or_not
@every_end
@pytest.mark.parametrize("name", NAMED)
def test_tabular_points_have_the_value_of_lstdq_and_its_dual(
    name: str, ends: tuple[str, ...], stationary: bool
) -> None:
    case = covered(0, ends)
    estimate = fit(case, NAMED[name](gamma=0.9, stationary=stationary))
    lstdq = LSTDQ(gamma=0.9, stationary=stationary).fit(case.log, case.policy).estimate()
    dual = MarginalizedIS(gamma=0.9, stationary=stationary).fit(case.log, case.policy).estimate()
    assert estimate.value == pytest.approx(lstdq.value, rel=1e-8)
    assert estimate.value == pytest.approx(dual.value, rel=1e-8)
    np.testing.assert_allclose(influence_of(estimate), influence_of(lstdq), rtol=1e-6, atol=1e-9)
    assert estimate.horizon == (None if stationary else case.log.horizon)
    assert estimate.diagnostics["dual"] == estimate.value
    assert estimate.diagnostics["lagrangian"] == pytest.approx(estimate.value, rel=1e-8)
    assert np.isnan(estimate.diagnostics["primal"]) == (name in ("dual", "gen"))


def true_visits(problem: TabularProblem, pi: FloatArray, gamma: float, n_steps: int | None) -> list[FloatArray]:
    """Return gamma^t p_t(s, a) of observed states at every step, or its sum over all of them."""
    d, by_step = problem.process.initial.copy(), []
    live = ~problem.process.terminal
    for t in range(2000 if n_steps is None else n_steps):
        P, _ = problem.process.at(t)
        flow = np.where(live, d, 0.0)[live, None] * pi[problem.observation[live]]
        by_step.append(gamma**t * flow)
        d = np.einsum("sa,saz->z", flow, P[live])
    return [np.sum(by_step, axis=0)] if n_steps is None else by_step


def logged_visits(weighted: WeightedLog, shape: tuple[int, ...], n_steps: int | None) -> list[FloatArray]:
    """Return visits of each pair per episode, at every step or in all."""
    counts = [np.zeros(shape) for _ in range(1 if n_steps is None else n_steps)]
    for w, episode in zip(weighted.weight / weighted.weight.sum(), paths(weighted.log), strict=True):
        for t, (s, a, _) in enumerate(episode):
            counts[0 if n_steps is None else t][s, a] += w
    return counts


EXACT: dict[str, tuple[TabularProblem, int, str, Any]] = {
    "river": (RiverSwim(horizon=4), 4, "truncated", flow_paths),
    "random": (RandomMDP(3, 2, max_steps=4, random_state=5), 4, "truncated", flow_paths),
    "terminals": (RandomMDP(2, 2, terminals=1, max_steps=4, random_state=6), 4, "truncated", None),
    "horizon": (RandomMDP(3, 2, horizon=4, random_state=7), 4, "horizon", flow_paths),
    "horizon and terminals": (RandomMDP(2, 2, horizon=4, terminals=1, random_state=8), 4, "horizon", None),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("kind", EXACT)
def test_exact_logs_give_the_exact_ratio_and_value(kind: str, name: str) -> None:
    problem, n_steps, ends, routes = EXACT[kind]
    log = exact_log(problem, n_steps, ends, *([] if routes is None else [routes]))
    pi = problem.target
    if kind == "river":  # six states need more than four steps from the first one: start everywhere
        problem = TabularProblem(
            problem.process.transitions,
            problem.process.rewards,
            np.full(6, 1 / 6),
            behavior=problem.behavior,
            target=pi,
        )
        log = exact_log(problem, 3, ends, routes)
    horizon = n_steps if ends == "horizon" else None
    dice, policy = NAMED[name](gamma=0.8), TabularPolicy(pi)
    estimate = dice.fit(log.log, policy, log.weight).estimate()
    value = problem.value(pi, 0.8) if kind != "river" else endless(problem, pi, 0.8)
    assert estimate.value == pytest.approx(value, rel=1e-6, abs=1e-9)
    c = dice.fit_ratio(log.log, policy, log.weight).predict(policy, log.log)
    shape = problem.behavior.shape
    wanted = true_visits(problem, pi, 0.8, horizon)
    logged = logged_visits(log, shape, horizon)
    row = 0
    for episode in paths(log.log):
        for t, (s, a, _) in enumerate(episode):
            k = t if horizon else 0
            assert c[row] == pytest.approx(wanted[k][s, a] / logged[k][s, a], rel=1e-6, abs=1e-9)
            row += 1


def endless(problem: TabularProblem, pi: FloatArray, gamma: float) -> float:
    P_pi = np.einsum("sa,saz->sz", pi, problem.process.transitions)
    r_pi = np.einsum("sa,saz,saz->s", pi, problem.process.transitions, problem.process.rewards)
    v = np.linalg.solve(np.eye(len(pi)) - gamma * P_pi, r_pi)
    return float(problem.process.initial @ v)


# -------------------------------------------------------------------------------- the Lagrangian, by loops


class Loops:
    """The Lagrangian of a log of one-hot states, row by row, with literal rows of the absorbing state."""

    def __init__(self, case: Case, gamma: float, switches: Lagrangian) -> None:
        self.case, self.gamma, self.switches = case, gamma, switches
        log, horizon = case.log, case.log.horizon
        self.horizon = horizon
        self.k = 1 - gamma if horizon is None else 1 / sum(gamma**t for t in range(horizon))
        # Each row: weight, step, pair or None in the absorbing state, reward, next state code, "absorbing" or None.
        self.rows: list[tuple[float, int, Any, float, Any]] = []
        for i, episode in enumerate(paths(log)):
            T = len(episode)
            ended = int(log.ends[i]) == 0
            stuck = switches.terminal == "absorbing" and ended and (horizon is None or horizon > T)
            goes_on = int(log.ends[i]) == 2 and horizon != T
            for t, (s, a, r) in enumerate(episode):
                follows: Any = episode[t + 1][0] if t + 1 < T else None
                if t + 1 == T:
                    follows = "absorbing" if stuck else (final_codes(log)[i] if goes_on else None)
                self.rows.append((1.0, t, (s, a), r, follows))
            if stuck and horizon is None:
                self.rows.append((gamma / (1 - gamma), 0, None, 0.0, "absorbing"))
            for t in range(T, (horizon or T) if stuck else T):
                self.rows.append((1.0, t, None, 0.0, "absorbing" if horizon is not None and t + 1 < horizon else None))

    def value(self, nu: Any, zeta: Any, lam: float) -> float:
        """Nu and zeta are functions of the step (0 where stationary) and of the pair (None: absorbing)."""
        switches, pi = self.switches, self.case.pi
        step = (lambda t: t) if self.horizon else (lambda _: 0)

        def expected(t: int, s: Any) -> float:
            if s is None:
                return 0.0
            if s == "absorbing":
                return float(nu(step(t), None))
            return float(sum(pi[s, a] * nu(step(t), (s, a)) for a in range(pi.shape[1])))

        total = sum(w for w, *_ in self.rows)
        out = 0.0
        for w, t, pair, r, follows in self.rows:
            n, z = nu(step(t), pair), zeta(step(t), pair)
            error = float(switches.reward) * r + self.gamma * expected(t + 1, follows) - n - lam * switches.norm
            out += w / total * (z * error + switches.a_nu * n**2 / 2 - switches.a_zeta * z**2 / 2)
        starts = [expected(0, episode[0][0]) for episode in paths(self.case.log)]
        return out + self.k * float(np.mean(starts)) + lam * switches.norm


def tables(solver: LinearSolver, coefficients: FloatArray, case: Case) -> Any:
    """Return (step, pair) -> value of one-hot coefficients."""
    n_states, n_actions = case.pi.shape
    del solver

    def read(t: int, pair: Any) -> float:
        return float(coefficients[t, -1] if pair is None else coefficients[t, pair[1] * n_states + pair[0]])

    assert coefficients.shape[1] == n_states * n_actions + 1
    return read


def problem_of(
    log: LoggedDataset, policy: Policy, switches: Lagrangian, gamma: float = 0.9, stationary: bool = False
) -> DiceProblem:
    return DiceProblem(log, policy, np.ones(log.n_episodes), switches, gamma, None if stationary else log.horizon)


def solver_of(problem: DiceProblem, features: Any = "auto") -> LinearSolver:
    basis = fit_basis(features, problem.data)
    return LinearSolver(problem, ActionFeatures(basis, None, problem.stationary, 16, 0))


@every_end
@pytest.mark.parametrize("norm", [0.0, np.inf], ids=["free", "norm"])
def test_the_solution_is_a_saddle_point_of_the_lagrangian(ends: tuple[str, ...], norm: float) -> None:
    """No small step of nu or lambda lowers the Lagrangian, none of zeta raises it, to first order."""
    switches = Lagrangian(0.5, 0.3, reward=True, norm_penalty=norm, terminal="absorbing")
    case = covered(1, ends, n=60)
    solver = solver_of(problem_of(case.log, case.policy, switches))
    solved = solver.solve()
    loops, g = Loops(case, 0.9, switches), np.random.default_rng(0)

    def value(theta: FloatArray, u: FloatArray, lam: float) -> float:
        return loops.value(tables(solver, theta, case), tables(solver, u, case), lam)

    theta, u, lam = solved.model.theta, solved.model.u, solved.lam
    if norm:
        slope = (value(theta, u, lam + 0.5) - value(theta, u, lam - 0.5)) / 1.0
        assert slope == pytest.approx(0.0, abs=1e-9)
    else:
        assert lam == 0.0
    step = 1e-3
    for _ in range(3):
        visited = (np.abs(u) > 1e-12) | (np.abs(theta) > 1e-12)
        move = g.normal(size=u.shape) * visited
        base = value(theta, u, lam)
        up, down = value(theta + step * move, u, lam), value(theta - step * move, u, lam)
        assert (up - down) / (2 * step) == pytest.approx(0.0, abs=1e-8)
        assert up >= base
        up, down = value(theta, u + step * move, lam), value(theta, u - step * move, lam)
        assert (up - down) / (2 * step) == pytest.approx(0.0, abs=1e-8)
        assert up <= base


def test_the_absorbing_state_is_that_of_a_padded_log() -> None:
    """With a horizon the encoding adds the rows that a log padded to its horizon has."""
    case = covered(2, ("terminal", "horizon"))
    pad_b, pad_pi = np.vstack([case.b, [1.0, 0.0]]), np.vstack([case.pi, [1.0, 0.0]])
    s, a, r = [], [], []
    for episode in paths(case.log):
        for step in [*episode, *[(2, 0, 0.0)] * (4 - len(episode))]:
            s.append(step[0])
            a.append(step[1])
            r.append(step[2])
    n = case.log.n_episodes
    padded = Case(one_hot_log(s, a, r, [4] * n, "horizon", [2] * n, pad_b), pad_b, pad_pi)
    for positive in (False, True):
        dice = DICE(gamma=0.9, nu_regularizer=0.5, zeta_regularizer=0.3, positive=positive)
        short, long = fit(case, dice), fit(padded, dice)
        assert short.value == pytest.approx(long.value, rel=1e-8)
        np.testing.assert_allclose(influence_of(short), influence_of(long), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["dual", "algae"])
def test_both_encodings_of_terminals_have_one_value(name: str) -> None:
    case = covered(3, ("terminal", "truncated"))
    values = [fit(case, NAMED[name](gamma=0.9, terminal=kind)).value for kind in ("zero", "absorbing")]
    assert values[0] == pytest.approx(values[1], rel=1e-10)


def test_the_norm_holds_in_the_absorbing_encoding_only() -> None:
    case = covered(4, ("terminal",))
    for terminal, expected in (("absorbing", True), ("zero", False)):
        switches = Lagrangian(a_zeta=1.0, terminal=terminal)  # type: ignore[arg-type]
        problem = problem_of(case.log, case.policy, switches)
        values = solver_of(problem).solve().model.evaluate(case.policy, case.log)
        norm = problem.mean(values.zeta, values.zeta_absorbing)
        assert (abs(norm - 1.0) < 1e-10) == expected


@pytest.mark.parametrize("gamma", [0.0, 0.99])
def test_extreme_discount_factors(gamma: float) -> None:
    case = covered(5, ("terminal", "truncated"))
    expected = LSTDQ(gamma=gamma).fit(case.log, case.policy).estimate().value
    assert fit(case, DICE(gamma=gamma)).value == pytest.approx(expected, rel=1e-8)


def test_undiscounted_with_a_horizon() -> None:
    case = covered(6, ("terminal", "horizon"))
    expected = LSTDQ(gamma=1.0).fit(case.log, case.policy).estimate().value
    assert fit(case, DICE.gen(gamma=1.0)).value == pytest.approx(expected, rel=1e-8)


def test_without_horizon_and_discounting_there_is_no_distribution_of_visits() -> None:
    case = covered(6, ("terminal",))
    with pytest.raises(ValueError, match=r"DICE.fit: `gamma` must be below 1 without a horizon.*LSTDQ"):
        fit(case, DICE(gamma=1.0))


# -------------------------------------------------------------------------------- positivity


def moments(log: LoggedDataset, policy: Policy, gamma: float) -> tuple[FloatArray, ...]:
    """Return A, G, E_D phi, k E_0 phi and the features of a log of truncated ends, by loops over rows."""
    basis = fit_basis("auto", log)
    phi = basis.logged(log.states, log.actions)
    assert log.final_states is not None
    probs = policy.predict_proba(log.states)
    final = policy.predict_proba(log.final_states)
    k = phi.shape[1]
    A, G, start = np.zeros((k, k)), np.zeros((k, k)), np.zeros(k)
    for i in range(log.n_episodes):
        first, last = log.offsets[i], log.offsets[i + 1]
        for row in range(first, last):
            if row + 1 < last:
                weights, state = probs[row + 1], log.states[row + 1]
            else:
                weights, state = final[i], log.final_states[i]
            onward = sum(weights[a] * basis.logged(state[None], np.array([a]))[0] for a in range(len(weights)))
            A += np.outer(phi[row], phi[row] - gamma * onward)
            G += np.outer(phi[row], phi[row])
        start += sum(probs[first, a] * basis.logged(log.states[first][None], np.array([a]))[0] for a in range(3))
    n = len(phi)
    return A / n, G / n, phi.mean(axis=0), (1 - gamma) * start / log.n_episodes, phi


def truncated_features_log() -> tuple[LoggedDataset, Policy]:
    """Return a log of two features in which the linear ratio of a candidate is negative somewhere."""
    case = make_case("mixed", n_episodes=40)
    final = np.random.default_rng(0).normal(size=(40, 2))
    log = case.log.replace(ends=np.full(40, 2, np.int8), final_states=final, horizon=None)
    slopes = -3.0 * SLOPES
    return log, FunctionPolicy(predict_proba=partial(softmax_of_states, slopes=slopes), action_labels=LABELS)


def test_positivity_against_a_general_purpose_optimiser() -> None:
    log, policy = truncated_features_log()
    A, G, m, h, phi = moments(log, policy, 0.9)
    values, vectors = np.linalg.eigh(G)
    root = vectors / np.sqrt(values)  # coordinates of unit second moments, in which SLSQP converges
    B, g, mean, rows = root.T @ A @ root, root.T @ h, root.T @ m, phi @ root

    def objective(u: FloatArray) -> tuple[float, FloatArray]:
        left = B.T @ u - g
        return 0.5 * float(left @ left), B @ left

    found = minimize(
        objective, np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0], jac=True, method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": lambda u: rows @ u, "jac": lambda _: rows},
            {"type": "eq", "fun": lambda u: np.array([mean @ u - 1]), "jac": lambda _: mean[None]},
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert found.success
    expected = float((rows @ found.x) @ log.rewards) / len(phi) / 0.1
    for dice in (DICE.gen(gamma=0.9), DICE.best(gamma=0.9)):
        estimate = dice.fit(log, policy).estimate()
        assert estimate.value == pytest.approx(expected, rel=1e-5)
        assert estimate.diagnostics["binding_rows"] > 2
        assert estimate.diagnostics["residual"] < 1e-10
        c = dice.fit_ratio(log, policy, np.ones(40)).predict(policy, log)
        assert c.min() >= -1e-9 * c.max()
        assert estimate.diagnostics["negative_share"] == pytest.approx(0.0, abs=1e-9)
    free = fit_value(DICE.dual(gamma=0.9), log, policy)
    assert estimate.diagnostics["flow_shift"] == pytest.approx(expected - free, rel=1e-4)


def fit_value(dice: DICE, log: LoggedDataset, policy: Policy) -> float:
    return float(dice.fit(log, policy).estimate().value)


def test_a_point_without_a_saddle_point_says_what_it_took() -> None:
    log, policy = truncated_features_log()
    estimate = DICE.best(gamma=0.9).fit(log, policy).estimate()
    assert np.isnan(estimate.diagnostics["lagrangian"])
    assert np.isnan(estimate.diagnostics["primal"])
    assert any("No ratio that these features can express" in reason for reason in estimate.verdict.reasons)


@pytest.mark.parametrize("cycle", [(1.0, -1.0), (1.0, -0.5)], ids=["mean 0", "another mean"])
def test_constraints_that_nothing_meets_are_refused(cycle: tuple[float, float]) -> None:
    """A feature of both signs for each action: a ratio that is positive in all rows is 0, and averages to 0."""
    states = np.array([[cycle[0]], [cycle[1]]] * 20)
    log = LoggedDataset.from_arrays(
        states, [0, 0, 1, 1] * 10, np.arange(40.0) % 7, lengths=[4] * 10, ends="truncated", final_states=states[:10],
        action_labels=[0, 1],
    )  # fmt: skip
    policy = TabularPolicy([[0.5, 0.5]], state_code=lambda s: np.zeros(len(s), int))
    estimate = DICE(gamma=0.9, features="identity").fit(log, policy).estimate()
    assert estimate.verdict.level is Level.REFUSE
    assert any("The saddle point was not reached" in reason for reason in estimate.verdict.reasons)


def test_an_unfinished_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    log, policy = truncated_features_log()
    monkeypatch.setattr(_saddle, "MAX_ROUNDS", 0)
    estimate = DICE.best(gamma=0.9).fit(log, policy).estimate()
    assert estimate.verdict.level is Level.REFUSE
    assert estimate.diagnostics["residual"] == np.inf


@pytest.mark.parametrize("kind", ["horizon", "mixed", "continuous_horizon"])
def test_sparse_systems_give_what_dense_ones_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(kind)
    dice = [DICE.best(gamma=0.9), DICE.dual(gamma=0.9), DICE(gamma=0.9, **PULLED["all"])]
    dense = [fit(case, each) for each in dice]
    monkeypatch.setattr(_saddle, "DENSE", 0)
    for each, expected in zip(dice, dense, strict=True):
        found = fit(case, each)
        assert found.value == pytest.approx(expected.value, rel=1e-7)
        np.testing.assert_allclose(influence_of(found), influence_of(expected), rtol=1e-5, atol=1e-7)


# -------------------------------------------------------------------------------- influence


def required(features: FlowFeatures | None) -> FlowFeatures:
    assert features is not None
    return features


JACKKNIFE: list[tuple[str, DICE]] = [
    ("terminal", DICE.best(gamma=0.9)),
    ("mixed", DICE.best(gamma=0.9)),
    ("mixed", DICE.gen(gamma=0.9, stationary=True)),
    ("mixed", DICE(gamma=0.9, **PULLED["all"])),
    ("mixed", DICE(gamma=0.9, **PULLED["free"])),
    ("terminal", DICE(gamma=0.9, **PULLED["absorbing"])),
    ("continuous", DICE.gen(gamma=0.9)),
    ("continuous_horizon", DICE.best(gamma=1.0)),
    ("continuous_horizon", DICE(gamma=0.9, **PULLED["all"], stationary=True)),
    ("deterministic", DICE.best(gamma=0.9)),
    ("horizon", DICE.algae(gamma=0.9, power=1.5)),
]


@pytest.mark.parametrize(("kind", "dice"), JACKKNIFE, ids=lambda x: x if isinstance(x, str) else "")
def test_influence_is_the_infinitesimal_jackknife(kind: str, dice: DICE) -> None:
    case = make_case(kind, n_episodes=33)
    features = Kept(required(dice._flow_features(case.log)), case.log)

    def value(weight: FloatArray) -> float:
        return LinearSolver(dice._problem(case.log, case.candidate, weight), features).solve().value

    found = influence_of(fit(case, dice))
    assert found.sum() == pytest.approx(0.0, abs=1e-8 * np.abs(found).sum())
    assert influence_gap(value, found) < 1e-5


@pytest.mark.parametrize("settings", [{}, PULLED["all"], PULLED["absorbing"]], ids=["best", "all", "absorbing"])
@pytest.mark.parametrize("kind", ["terminal", "mixed"])
def test_weighted_episodes_are_replicated_episodes(kind: str, settings: dict[str, Any]) -> None:
    case = make_case(kind, n_episodes=31)
    basis = None if kind == "terminal" else FunctionTransformer(np.tanh)
    dice = DICE(gamma=0.9, features="auto" if basis is None else basis, **settings)
    weight = np.random.default_rng(0).integers(0, 3, size=31).astype(float)
    chosen = np.repeat(np.arange(31), weight.astype(int))
    copies = replicated(case.log, chosen)
    alone = dice.fit(copies, case.candidate).estimate()
    weighted = dice.fit(case.log, case.candidate, weight).estimate()
    assert weighted.value == pytest.approx(alone.value, rel=1e-8)
    total = np.bincount(chosen, influence_of(alone), 31) * 31 / len(chosen)
    np.testing.assert_allclose(influence_of(weighted), total, rtol=1e-6, atol=1e-8)


def replicated(log: LoggedDataset, chosen: Any) -> LoggedDataset:
    rows = np.concatenate([np.arange(log.offsets[i], log.offsets[i + 1]) for i in chosen])
    assert log.behavior_log_prob is not None
    assert log.action_labels is not None
    final = None if log.final_states is None else log.final_states[chosen]
    return LoggedDataset.from_arrays(
        log.states[rows], log.action_labels[log.actions[rows]], log.rewards[rows], lengths=log.lengths[chosen],
        ends=log.ends[chosen], behavior_log_prob=log.behavior_log_prob[rows], final_states=final,
        action_labels=list(log.action_labels), feature_names=list(log.feature_names), horizon=log.horizon,
    )  # fmt: skip


def test_blocks_do_not_matter() -> None:
    case = make_case("mixed")
    dice = DICE(gamma=0.9, **PULLED["all"])
    whole = fit(case, dice)
    parts = dice.fit(sharded(case.log), case.candidate).estimate()
    assert parts.value == pytest.approx(whole.value, rel=1e-9)
    np.testing.assert_allclose(influence_of(parts), influence_of(whole), rtol=1e-7, atol=1e-9)


# -------------------------------------------------------------------------------- what is reported


def test_regularisers_explain_the_differences_between_the_three_values() -> None:
    """Lagrangian - dual = -a_nu E nu^2 / k, primal - Lagrangian = -a_zeta E zeta^2 / k: no finding of disagreement."""
    case = covered(7, ("terminal", "truncated"))
    switches = Lagrangian(0.5, 0.3, reward=True, norm_penalty=np.inf, terminal="absorbing")
    problem = problem_of(case.log, case.policy, switches)
    values = solver_of(problem).solve().model.evaluate(case.policy, case.log)
    squares = [
        problem.mean(x**2, y**2) for x, y in ((values.zeta, values.zeta_absorbing), (values.nu, values.nu_absorbing))
    ]
    estimate = fit(case, DICE(gamma=0.9, nu_regularizer=0.5, zeta_regularizer=0.3, positive=False))
    found = estimate.diagnostics
    assert found["primal"] - found["lagrangian"] == pytest.approx(-0.3 * squares[0] / 0.1, rel=1e-6)
    assert found["lagrangian"] - found["dual"] == pytest.approx(-0.5 * squares[1] / 0.1, rel=1e-6)
    assert not any("more than the regularisers explain" in reason for reason in estimate.verdict.reasons)
    assert any("regularisers pull the ratio" in reason for reason in estimate.verdict.reasons)
    free = fit(case, DICE.dual(gamma=0.9)).value
    assert found["flow_shift"] == pytest.approx(estimate.value - free, rel=1e-8)


def test_the_power_of_the_regulariser_moves_nu_alone() -> None:
    case = covered(8, ("truncated",))
    square, other = (fit(case, DICE.best(gamma=0.9, power=p)) for p in (2.0, 1.5))
    assert other.value == pytest.approx(square.value, rel=1e-10)
    assert other.diagnostics["primal"] != pytest.approx(square.diagnostics["primal"], rel=1e-3)
    assert other.diagnostics["lagrangian"] == pytest.approx(other.value, rel=1e-8)
    bare = fit(case, DICE.best(gamma=0.9, zeta_regularizer=0.0))
    assert bare.diagnostics["primal"] == pytest.approx(bare.value, rel=1e-8)


def test_the_ratio_carries_the_flow_of_every_function() -> None:
    """mean_i sum_t c_it (f(s_t, a_t) - gamma E f(s_t+1, a')) = mean_i E f(s_0, a'), the contract of `RatioModel`."""
    case, g = covered(9, ("terminal", "truncated")), np.random.default_rng(0)
    c = DICE.best(gamma=0.9).fit_ratio(case.log, case.policy, np.ones(120)).predict(case.policy, case.log)
    f = g.normal(size=case.pi.shape)
    bar = (case.pi * f).sum(axis=1)
    left, right, row = 0.0, 0.0, 0
    for i, episode in enumerate(paths(case.log)):
        right += bar[episode[0][0]]
        for t, (s, a, _) in enumerate(episode):
            last = t + 1 == len(episode)
            ended = last and int(case.log.ends[i]) == 0
            onward = 0.0 if ended else bar[final_codes(case.log)[i] if last else episode[t + 1][0]]
            left += c[row] * (f[s, a] - 0.9 * onward)
            row += 1
    assert left == pytest.approx(right, rel=1e-9)


def test_horizon_ends_to_unknown_states_are_left_out() -> None:
    case = random_case(4, n=200, n_states=2, n_actions=2, longest=3, ends=("horizon",))
    log = case.log.replace(final_states=None)
    estimate = DICE(gamma=0.9, stationary=True).fit(log, case.policy).estimate()
    expected = LSTDQ(gamma=0.9, stationary=True).fit(log, case.policy).estimate()
    assert estimate.value == pytest.approx(expected.value, rel=1e-8)
    assert estimate.diagnostics["left_out_transitions"] == 200
    model = DICE(gamma=0.9, stationary=True).fit_ratio(log, case.policy, np.ones(200))
    assert not model.predict(case.policy, log)[log.offsets[1:] - 1].any()


# -------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("name", NAMED)
def test_named_points_are_estimators_with_parameters(name: str) -> None:
    dice = NAMED[name](gamma=0.9, features=OneHotEncoder(), random_state=3)
    copy = clone(dice)
    assert type(copy) is DICE
    assert {k: v for k, v in copy.get_params(deep=False).items() if k != "features"} == {
        k: v for k, v in dice.get_params(deep=False).items() if k != "features"
    }
    assert dice.gamma == 0.9
    assert NAMED[name](gamma=0.9, norm=False).norm is False


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"nu_regularizer": -1.0}, ValueError, "`nu_regularizer` must be a number of at least 0"),
    ({"zeta_regularizer": "1"}, TypeError, "`zeta_regularizer` must be a number"),
    ({"power": 1.0}, ValueError, "`power` must be a number above 1"),
    ({"power": 3.0, "nu_regularizer": 1.0}, ValueError, "`power` must be 2 in linear classes"),
    ({"reward": 1}, TypeError, "`reward` must be True or False"),
    ({"norm": None}, TypeError, "`norm` must be True or False"),
    ({"positive": "yes"}, TypeError, "`positive` must be True or False"),
    ({"terminal": "loop"}, ValueError, "`terminal` must be 'auto', 'absorbing' or 'zero'"),
    ({"terminal": "zero"}, ValueError, "`terminal` must be 'absorbing' with norm=True.*norm=False"),
    ({"network": {"hidden": (8,)}}, TypeError, "`network` must be NeuralFunctions or None"),
    ({"features": "rbf"}, ValueError, "`features` must be"),
    ({"n_samples": 0}, ValueError, "`n_samples` must be an integer of at least 1"),
    ({"random_state": -1}, ValueError, "`random_state` must be an integer of at least 0"),
]


@pytest.mark.parametrize(("params", "error", "words"), BAD, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_bad_parameters(params: dict[str, Any], error: type[Exception], words: str) -> None:
    case = make_case("terminal")
    with pytest.raises(error, match=rf"DICE: {words}"):
        DICE(**{"gamma": 0.9, **params}).fit(case.log, case.candidate)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"hidden": 64}, TypeError),
        ({"hidden": (0,)}, ValueError),
        ({"n_updates": 0}, ValueError),
        ({"batch_size": 1.5}, ValueError),
        ({"learning_rate": 0.0}, ValueError),
        ({"zeta_learning_rate": -1.0}, ValueError),
        ({"weight_decay": -1.0}, ValueError),
    ],
)
def test_bad_settings_of_networks(params: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"NeuralFunctions: `{next(iter(params))}` must be"):
        NeuralFunctions(**params)
