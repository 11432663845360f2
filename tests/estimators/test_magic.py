"""MAGIC against the paper's formula in plain loops, an enumeration of the simplex's faces, and the jackknife."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from estimator_oracles import Case, random_case
from given_models import GivenQ, random_tables, walk
from scipy.stats import t as student

from ope import Estimate, Level, bootstrap
from ope.estimators import LSTDQ, MAGIC, DoublyRobust, FittedQEvaluation, PerDecisionIS
from ope.estimators._crossfit import weigh
from ope.estimators._partial_returns import (
    PartialReturns,
    blend_steps,
    blend_weights,
    percentile_interval,
    simplex_minimum,
    spread_factor,
    t_interval,
)
from ope.inference.weights import resampling_weights
from ope.policies import TabularPolicy
from ope.problems import Graph, Hybrid, ModelFail, ModelWin, RiverSwim
from ope.validation import FloatArray

CASES = [
    random_case(0),
    random_case(1, zeros=True, n=40),
    random_case(2, ends=("terminal", "truncated"), zeros=True, n=40),
    random_case(3, ends=("terminal", "horizon"), n_actions=2),
    random_case(4, ends=("terminal", "horizon", "truncated"), n_states=4, longest=8),
]


def fit(case: Case, tables: FloatArray, weight: FloatArray | None = None, **settings: Any) -> Estimate:
    settings = {"gamma": 0.9, "n_folds": 2, "n_bootstrap": 0, **settings}
    estimate: Estimate = MAGIC(q=GivenQ(tables=tables), **settings).fit(case.log, case.policy, weight).estimate()
    return estimate


# -------------------------------------------------------------------------------- the simplex program


def best_of_all_faces(factor: FloatArray) -> float:
    """Return the minimum of ||factor x||^2 over the simplex: the best stationary point over all supports that is feasible."""
    best, M = np.inf, factor.T @ factor
    for size in range(1, len(M) + 1):
        for support in map(list, combinations(range(len(M)), size)):
            system = np.block(
                [[M[np.ix_(support, support)], np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]]
            )
            x = np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0][:size]
            if x.min() >= -1e-12 and abs(x.sum() - 1.0) < 1e-9:
                best = min(best, float(((factor[:, support] @ x) ** 2).sum()))
    return best


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e12])
@pytest.mark.parametrize("m", [2, 4, 6])
def test_simplex_minimum_satisfies_kkt_and_beats_every_face(m: int, scale: float) -> None:
    for seed in range(40):
        g = np.random.default_rng([m, seed])
        factor = g.normal(size=(g.integers(1, m + 3), m)) * 10.0 ** g.integers(-3, 2, size=m)
        x = simplex_minimum(scale * factor)
        M = factor.T @ factor
        residual = factor @ x
        slope, least = factor.T @ residual, residual @ residual
        assert x.min() >= 0.0
        assert x.sum() == pytest.approx(1.0, abs=1e-12)
        least_vertex = M.diagonal().min()
        unit = np.sqrt(least_vertex * M.diagonal())  # what a product of columns is known to
        assert ((slope - least) / unit).min() >= -1e-9
        assert np.abs(x * (slope - least) / unit).max() <= 1e-9
        assert least == pytest.approx(best_of_all_faces(factor), rel=1e-9, abs=1e-9 * least_vertex)


def test_a_column_without_error_takes_all() -> None:
    factor = np.array([[1.0, 0.0, 3.0], [2.0, 0.0, 1.0]])
    np.testing.assert_array_equal(simplex_minimum(factor), [0.0, 1.0, 0.0])


def test_bias_enters_as_an_outer_product() -> None:
    """Two biases add up in b b' instead of averaging out, so that the third return, which has none, gets more."""
    g, spread = np.array([0.0, 4.0, 2.0]), np.diag([0.3, 0.3, 3.0])
    b = np.array([1.0, 1.0, 0.0])
    x = blend_weights(g, spread, (1.0, 3.0))
    M = spread.T @ spread + np.outer(b, b)
    assert x @ M @ x == pytest.approx(best_of_all_faces(np.vstack([spread, b])), rel=1e-9)
    elementwise = 1.0 / np.diag(spread.T @ spread + np.diag(b**2))
    assert x[2] > 1.5 * elementwise[2] / elementwise.sum()


# -------------------------------------------------------------------------------- partial returns


def paper_returns(case: Case, tables: FloatArray, gamma: float, weight: FloatArray) -> FloatArray:
    """Return g^(j), j = -1, 0, ..., by the sums of Thomas and Brunskill over padded episodes."""
    every = walk(case, tables)
    n, H, omega = len(every), max(map(len, every)), weight / weight.mean()
    w = np.ones((n, H + 1))
    for i, steps in enumerate(every):
        for t in range(H):
            w[i, t + 1] = steps[t].w if t < len(steps) else steps[-1].w
    w *= omega[:, None]
    w /= w.sum(axis=0)
    g = []
    for j in range(-1, H):
        total = 0.0
        for i, steps in enumerate(every):
            for t, step in enumerate(steps[: j + 1]):
                total += gamma**t * (w[i, t + 1] * (step.r - step.q) + w[i, t] * step.v)
            if j + 1 < len(steps):
                total += gamma ** (j + 1) * w[i, j + 1] * steps[j + 1].v
            else:
                total += gamma ** len(steps) * w[i, len(steps)] * steps[-1].v_next
        g.append(total)
    return np.array(g)


def partial_returns(case: Case, tables: FloatArray, gamma: float = 0.9) -> PartialReturns:
    every = walk(case, tables)
    delta = np.array([step.r + gamma * step.v_next - step.q for steps in every for step in steps])
    v_0 = np.array([steps[0].v for steps in every])
    weighed = weigh(case.policy, case.log, delta, gamma, np.ones(len(every)))
    return PartialReturns(weighed, delta, v_0, gamma, blend_steps(max(map(len, every)), 25))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_partial_returns_are_those_of_the_paper(case: Case, gamma: float) -> None:
    tables, n = random_tables(case), case.log.n_episodes
    parts = partial_returns(case, tables, gamma)
    uneven = np.random.default_rng(0).exponential(size=n)
    uneven[::7] = 0.0
    for weight in (np.ones(n), uneven / uneven.mean()):
        found = parts.values(parts.totals(weight), weight)
        np.testing.assert_allclose(found, paper_returns(case, tables, gamma, weight), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_influence_of_every_partial_return_is_the_jackknife(case: Case) -> None:
    tables, n = random_tables(case), case.log.n_episodes
    parts, one = partial_returns(case, tables), np.ones(n)
    psi = parts.influence(parts.totals(one), float(parts.v_0.mean()))
    numerical = np.empty_like(psi)
    for i in range(n):
        up, down = np.ones(n), np.ones(n)
        up[i], down[i] = 1.0001, 0.9999
        moved = paper_returns(case, tables, 0.9, up) - paper_returns(case, tables, 0.9, down)
        numerical[i] = n * moved / 0.0002
    np.testing.assert_allclose(psi, numerical, rtol=1e-5, atol=1e-6 * np.abs(psi).max())


def test_both_ends_are_the_model_and_weighted_doubly_robust() -> None:
    for case in CASES:
        tables = random_tables(case)
        estimate = fit(case, tables)
        wdr = DoublyRobust(gamma=0.9, q=GivenQ(tables=tables), weighted=True, n_folds=2).fit(case.log, case.policy)
        assert estimate.diagnostics["wdr_value"] == pytest.approx(wdr.estimate().value, rel=1e-9)
        first = np.mean([steps[0].v for steps in walk(case, tables)])
        assert estimate.diagnostics["q_value"] == pytest.approx(first, rel=1e-9)


# -------------------------------------------------------------------------------- the blend


def blend_by_hand(case: Case, tables: FloatArray, psi: FloatArray, ess: float) -> float:
    """Redo it with matrices that are written out, and the best of all faces of the simplex."""
    n, m = psi.shape
    g = paper_returns(case, tables, 0.9, np.ones(n))
    omega = np.zeros((m, m))
    for i in range(n):
        for j in range(m):
            for k in range(m):
                omega[j, k] += psi[i, j] * psi[i, k] / (n * (n - 1))
    half = student.ppf(0.95, ess - 1.0) * np.sqrt(omega[-1, -1])
    b = np.array([max(0.0, g[-1] - half - value, value - g[-1] - half) for value in g])
    M = omega + np.array([[x * y for x in b] for y in b])
    best, value = np.inf, np.nan
    for size in range(1, m + 1):
        for support in map(list, combinations(range(m), size)):
            inverse = np.linalg.pinv(M[np.ix_(support, support)], rcond=1e-13)
            x = inverse.sum(axis=1) / inverse.sum()
            risk = float(x @ M[np.ix_(support, support)] @ x)
            if x.min() >= 0.0 and risk < best:
                best, value = risk, float(x @ g[support])
    return value


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[4]])
def test_value_by_hand(case: Case) -> None:
    tables = random_tables(case)
    estimate, parts, one = fit(case, tables), partial_returns(case, tables), np.ones(case.log.n_episodes)
    psi = parts.influence(parts.totals(one), float(parts.v_0.mean()))
    assert estimate.value == pytest.approx(blend_by_hand(case, tables, psi, estimate.diagnostics["ess"]), rel=1e-6)
    assert estimate.diagnostics["wdr_low"] < estimate.diagnostics["wdr_value"] < estimate.diagnostics["wdr_high"]


@pytest.mark.parametrize("kind", ["t", "percentile"])
def test_replicates_by_hand(kind: str) -> None:
    """Given tables are the same in all folds, so that the jackknife adds no error of Q."""
    case = CASES[2]
    tables, n, B = random_tables(case), case.log.n_episodes, 30
    estimate = fit(case, tables, bias_interval=kind, n_bootstrap=B, random_state=3)
    parts, ess = partial_returns(case, tables), estimate.diagnostics["ess"]
    rows = []
    for b in range(B):
        weight = resampling_weights(case.log.episode_keys, B, seed=3)[b]
        weight /= weight.mean()
        g = paper_returns(case, tables, 0.9, weight)
        rows.append(
            (g, spread_factor(parts.influence(parts.totals(weight), float(np.mean(weight * parts.v_0))), weight))
        )
    centre = estimate.diagnostics["wdr_value"]
    assert centre == pytest.approx(paper_returns(case, tables, 0.9, np.ones(n))[-1], rel=1e-9)
    low, high = percentile_interval(np.array([g[-1] for g, _ in rows]), centre)
    if kind == "percentile":
        assert (estimate.diagnostics["wdr_low"], estimate.diagnostics["wdr_high"]) == pytest.approx((low, high))
    expected = []
    for g, R in rows:
        se = float(np.sqrt(R[:, -1] @ R[:, -1]))
        interval = t_interval(g[-1], se, ess) if kind == "t" else (g[-1] + low - centre, g[-1] + high - centre)
        expected.append(g @ blend_weights(g, R, interval))
    assert estimate.replicates is not None
    np.testing.assert_allclose(estimate.replicates, expected, rtol=1e-7, atol=1e-10)
    assert estimate.influence is None
    assert estimate.std_error == pytest.approx(np.std(expected, ddof=1), rel=1e-6)


def test_the_value_needs_no_bootstrap_and_no_seed_of_it() -> None:
    case = CASES[0]
    values = [fit(case, random_tables(case), n_bootstrap=B).value for B in (0, 5, 50)]
    assert values[0] == values[1] == values[2]


def test_an_error_of_q_reaches_the_replicates() -> None:
    """From a single first state the model's value is a constant within each fold: only the jackknife over folds can vary it."""
    problem = ModelWin()
    log, policy = problem.sample(200, random_state=5), TabularPolicy(problem.target)
    model = LSTDQ(gamma=1.0).fit(log, policy).estimate()
    estimates = [MAGIC(gamma=1.0, n_folds=n_folds).fit(log, policy).estimate() for n_folds in (5, 20)]
    for estimate in estimates:
        assert estimate.diagnostics["model_share"] > 0.9
        assert 0.5 < estimate.std_error / model.std_error < 2.0


def test_equal_resamples_give_paired_differences() -> None:
    problem = RiverSwim(horizon=10)
    log = problem.sample(100, random_state=1)
    policies = {
        "target": TabularPolicy(problem.target),
        "near": TabularPolicy(0.9 * problem.target + 0.1 * problem.behavior),
    }
    estimates = MAGIC(gamma=0.95, n_bootstrap=50).fit(log, policies).estimate()
    difference = estimates["target"] - estimates["near"]
    assert difference.replicates is not None
    assert difference.std_error < 0.5 * estimates["target"].std_error


def test_whole_pipeline_bootstrap() -> None:
    problem = RiverSwim(horizon=10)
    log, policy = problem.sample(60, random_state=1), TabularPolicy(problem.target)
    estimate = bootstrap(MAGIC(gamma=0.95, n_folds=2, n_bootstrap=0), log, policy, n_replicates=20)
    own = MAGIC(gamma=0.95, n_folds=2).fit(log, policy).estimate()
    assert estimate.value == own.value
    assert 0.4 < own.std_error / estimate.std_error < 2.5


def test_steps_of_long_episodes_are_thinned() -> None:
    assert blend_steps(24, 25).tolist() == list(range(-1, 24))
    for horizon, n_steps in ((25, 25), (1000, 25), (7, 2), (50, 3)):
        steps = blend_steps(horizon, n_steps)
        assert (steps[0], steps[-1]) == (-1, horizon - 1)
        assert len(steps) == n_steps
        assert np.ptp(np.diff(steps)) <= 1
    problem = Graph(40)
    log, policy = problem.sample(200, random_state=0), TabularPolicy(0.6 * problem.behavior + 0.4 * problem.target)
    thin, full = (MAGIC(gamma=0.98, n_steps=k, n_bootstrap=0).fit(log, policy).estimate() for k in (10, 41))
    for end in ("q_value", "wdr_value", "wdr_low"):
        assert thin.diagnostics[end] == pytest.approx(full.diagnostics[end], rel=1e-9)
    spread = abs(full.diagnostics["wdr_high"] - full.diagnostics["wdr_low"])
    assert abs(thin.value - full.value) < 0.25 * spread


# -------------------------------------------------------------------------------- what it is for


def test_it_leaves_a_wrong_model_and_keeps_a_right_one() -> None:
    fail, win = ModelFail(), ModelWin()
    estimate = MAGIC(gamma=1.0).fit(fail.sample(4000, random_state=0), TabularPolicy(fail.target)).estimate()
    assert estimate.diagnostics["q_value"] > 0.6
    assert abs(estimate.value - fail.value(fail.target)) < 4 * estimate.std_error < 0.4
    estimate = MAGIC(gamma=1.0).fit(win.sample(500, random_state=0), TabularPolicy(win.target)).estimate()
    assert abs(estimate.value - win.value(win.target)) < 4 * estimate.std_error
    assert estimate.std_error < 0.5 * abs(estimate.diagnostics["wdr_high"] - estimate.diagnostics["wdr_low"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "n", "repetitions"),
    [
        (ModelFail(), 256, 1000),
        (ModelFail(), 1024, 300),
        (ModelWin(), 256, 300),
        (ModelWin(), 1024, 300),
        (Hybrid(), 256, 200),
        (Hybrid(), 1024, 200),
    ],
    ids=str,
)
def test_it_is_never_much_worse_than_the_better_end(problem: Any, n: int, repetitions: int) -> None:
    truth, policy, rows = problem.value(problem.target), TabularPolicy(problem.target), []
    for seed in range(repetitions):
        estimate = MAGIC(gamma=1.0, n_bootstrap=0).fit(problem.sample(n, random_state=10_000 + seed), policy).estimate()
        rows.append((estimate.diagnostics["q_value"], estimate.diagnostics["wdr_value"], estimate.value))
    model, wdr, blend = np.mean((np.array(rows) - truth) ** 2, axis=0)
    assert blend < 2.0 * min(model, wdr), (model, wdr, blend)


# -------------------------------------------------------------------------------- verdict and bad use


def test_verdict_says_that_the_interval_is_heuristic() -> None:
    problem = RiverSwim(horizon=5)
    log, policy = problem.sample(2000, random_state=1), TabularPolicy(problem.behavior)
    with_interval, without = (MAGIC(gamma=0.95, n_bootstrap=B).fit(log, policy).estimate() for B in (50, 0))
    assert with_interval.verdict.level is without.verdict.level is Level.CAUTION
    assert [reason.split(":")[0] for reason in with_interval.verdict.reasons] == [
        "The interval of a blend is heuristic"
    ]
    assert "n_bootstrap=200" in without.verdict.reasons[0]
    assert without.replicates is None
    assert without.resample_id is None


def test_no_weight_at_all_is_refused() -> None:
    case = random_case(8, n_actions=2)
    never = np.zeros_like(case.pi)
    never[:, 0] = 1.0
    rows = case.log.actions != 0
    starts = case.log.select(rows[case.log.offsets[:-1]])
    estimate = fit(Case(starts, case.b, never), random_tables(case), n_bootstrap=50)
    assert np.isnan(estimate.value)
    assert estimate.replicates is None
    assert estimate.verdict.level is Level.REFUSE


def test_a_model_that_did_not_converge_is_named() -> None:
    problem = RiverSwim()
    log, policy = problem.sample(40, random_state=1), TabularPolicy(problem.target)
    fqe = FittedQEvaluation(max_iter=2)
    for estimator in (MAGIC(gamma=0.95, q=fqe, n_folds=2, n_bootstrap=0), DoublyRobust(gamma=0.95, q=fqe, n_folds=2)):
        reasons = estimator.fit(log, policy).estimate().verdict.reasons
        assert any("did not converge in 2 of 2 folds" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"n_steps": 1}, "n_steps"),
        ({"n_steps": 2.5}, "n_steps"),
        ({"n_folds": 1}, "n_folds"),
        ({"n_bootstrap": -1}, "n_bootstrap"),
        ({"n_bootstrap": 19, "bias_interval": "percentile"}, "n_bootstrap"),
        ({"bias_interval": "basic"}, "bias_interval"),
        ({"random_state": None}, "random_state"),
    ],
)
def test_bad_parameters_are_named(settings: dict[str, Any], name: str) -> None:
    case = random_case(0)
    with pytest.raises(ValueError, match=f"MAGIC: `{name}`"):
        MAGIC(**{"gamma": 0.9, **settings}).fit(case.log, case.policy)


def test_models_that_are_no_q_method_are_refused() -> None:
    case = random_case(0)
    with pytest.raises(TypeError, match="MAGIC: `q`"):
        MAGIC(gamma=0.9, q=PerDecisionIS()).fit(case.log, case.policy)
