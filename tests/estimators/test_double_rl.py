"""Double reinforcement learning against plain loops with given models, exact logs, the jackknife, and its other forms."""

from __future__ import annotations

from typing import Any, ClassVar

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
    paths,
    random_case,
    solve_stationary,
)
from given_models import GivenQ, GivenRatio, at_step, random_tables, true_q, true_ratio, walk

from ope import Estimate, Level, LoggedDataset, Policy
from ope.estimators import (
    LSTDQ,
    DoubleReinforcementLearning,
    DoublyRobust,
    FittedQEvaluation,
    MarginalizedIS,
    StateMarginalIS,
)
from ope.estimators._support import unsupported_share
from ope.estimators.double_rl import correction, normalized_by_step, normalized_correction
from ope.inference.weights import fold_of
from ope.policies import ColumnPolicy, TabularPolicy
from ope.problems import Graph, ModelFail, ModelWin, RandomMDP, RiverSwim, TabularProblem
from ope.validation import FloatArray

CASES = [
    random_case(0),
    random_case(2, ends=("terminal", "truncated"), zeros=True),
    random_case(3, ends=("horizon",), n_actions=2),
    random_case(4, ends=("terminal", "horizon", "truncated"), n_states=4, longest=8),
]
forms = pytest.mark.parametrize("self_normalized", [False, True], ids=["plain", "normalised"])


def fit(case: Case, q: FloatArray, c: FloatArray, weight: FloatArray | None = None, **settings: Any) -> Estimate:
    settings = {"gamma": 0.9, "n_folds": 2, **settings}
    estimator = DoubleReinforcementLearning(q=GivenQ(tables=q), ratio=GivenRatio(tables=c), **settings)
    estimate: Estimate = estimator.fit(case.log, case.policy, weight).estimate()
    return estimate


def positive_tables(case: Case, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).exponential(size=(12, *case.pi.shape))


# -------------------------------------------------------------------------------- plain loops


def rows_of(case: Case, q: FloatArray, c: FloatArray, gamma: float) -> list[list[tuple[float, float, float]]]:
    """Return c, the temporal difference and the share of visits that go on, gamma or 0, of every step of every episode."""
    result = []
    for steps, episode in zip(walk(case, q), paths(case.log), strict=True):
        rows = []
        for t, (step, (s, a, _)) in enumerate(zip(steps, episode, strict=True)):
            onward = gamma if t + 1 < len(steps) or step.v_next != 0.0 else 0.0
            rows.append((float(at_step(c, t)[s, a]), step.r + gamma * step.v_next - step.q, onward))
        result.append(rows)
    return result


def value_by_hand(case: Case, q: FloatArray, c: FloatArray, gamma: float, weight: FloatArray, form: str) -> float:
    omega, every = weight / weight.sum(), rows_of(case, q, c, gamma)
    value = sum(omega[i] * steps[0].v for i, steps in enumerate(walk(case, q)))
    if form == "plain":
        return float(value + sum(omega[i] * c * d for i, rows in enumerate(every) for c, d, _ in rows))
    if form == "whole":
        visits = sum(omega[i] * c * (1.0 - onward) for i, rows in enumerate(every) for c, _, onward in rows)
        return float(value + sum(omega[i] * c * d for i, rows in enumerate(every) for c, d, _ in rows) / visits)
    expected = 1.0
    for t in range(max(map(len, every))):
        alive = [(omega[i], *rows[t]) for i, rows in enumerate(every) if len(rows) > t]
        visits = sum(w * c for w, c, _, _ in alive)
        if visits == 0.0:
            break
        value += expected * sum(w * c * d for w, c, d, _ in alive) / visits
        expected *= sum(w * c * onward for w, c, _, onward in alive) / visits
    return float(value)


def form_of(case: Case, self_normalized: bool) -> str:
    if not self_normalized:
        return "plain"
    return "whole" if case.log.horizon is None else "steps"


@forms
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_value_by_hand(case: Case, gamma: float, self_normalized: bool) -> None:
    q, c, n = random_tables(case), positive_tables(case), case.log.n_episodes
    uneven = np.random.default_rng(0).exponential(size=n)
    uneven[::7] = 0.0
    for weight in (np.ones(n), uneven):
        estimate = fit(case, q, c, weight, gamma=gamma, self_normalized=self_normalized)
        expected = value_by_hand(case, q, c, gamma, weight, form_of(case, self_normalized))
        assert estimate.value == pytest.approx(expected, rel=1e-9)


@forms
@pytest.mark.parametrize("case", CASES)
def test_influence_is_the_jackknife_with_both_models_held_fixed(case: Case, self_normalized: bool) -> None:
    q, c, n = random_tables(case), positive_tables(case), case.log.n_episodes
    psi = influence_of(fit(case, q, c, self_normalized=self_normalized))
    form = form_of(case, self_normalized)
    numerical = jackknife(lambda w: value_by_hand(case, q, c, 0.9, w, form), n)
    np.testing.assert_allclose(psi, numerical, rtol=1e-6, atol=1e-6 * np.abs(psi).max())
    weight = np.random.default_rng(0).exponential(size=n)
    weight /= weight.mean()
    weighted = influence_of(fit(case, q, c, weight, self_normalized=self_normalized))
    uneven = jackknife(lambda w: value_by_hand(case, q, c, 0.9, weight * w, form), n)
    np.testing.assert_allclose(weighted, uneven, rtol=1e-6, atol=1e-6 * np.abs(psi).max())


@pytest.mark.parametrize("case", [CASES[0], CASES[2]])
def test_normalised_forms_forget_the_scale_of_the_ratio(case: Case) -> None:
    q, c = random_tables(case), positive_tables(case)
    scale = 3.0 if case.log.horizon is None else np.linspace(0.1, 5.0, 12)[:, None, None]
    before, after = (fit(case, q, table, self_normalized=True).value for table in (c, scale * c))
    assert after == pytest.approx(before, rel=1e-10)
    assert abs(fit(case, q, scale * c).value - fit(case, q, c).value) > 0.01


def test_step_by_step_normalisation_is_global_where_nothing_ends_early() -> None:
    """With a right total at every step both forms leave the ratio as it is."""
    problem = RiverSwim(horizon=4)
    every = exact_log(problem, 4, "horizon", flow_paths)
    case = Case(every.log, problem.behavior, problem.target)
    q, c = random_tables(case), true_ratio(problem, 0.95, 4, stationary=False)
    plain, normalised = (fit(case, q, c, every.weight, gamma=0.95, self_normalized=form) for form in (False, True))
    assert normalised.value == pytest.approx(plain.value, rel=1e-9)
    assert normalised.diagnostics["mean_ratio"] == pytest.approx(1.0, rel=1e-9)


def test_ratios_without_visits_have_no_normalised_value() -> None:
    offsets, one = np.array([0, 2, 3]), np.ones(2)
    c, delta, exits = np.array([1.0, -1.0, 1.0]), np.ones(3), np.array([0.1, 1.0, 1.0])
    assert np.isnan(normalized_by_step(c, delta, exits, offsets, one)[0])
    assert np.isnan(normalized_correction(-c, delta, exits, offsets, one)[0])
    assert correction(c, delta, offsets, one)[0] == pytest.approx(0.5)


# -------------------------------------------------------------------------------- right if either model is


EXACT: list[tuple[TabularProblem, int, str, bool]] = [
    (Graph(4), 4, "horizon", False),
    (RandomMDP(3, 2, horizon=4, random_state=1), 4, "horizon", False),
    (RandomMDP(2, 2, terminals=1, horizon=4, random_state=4), 4, "horizon", False),
    (RiverSwim(3), 4, "truncated", True),
    (RandomMDP(2, 2, terminals=1, random_state=4), 4, "truncated", True),
]


@forms
@pytest.mark.parametrize(("problem", "n_steps", "ends", "stationary"), EXACT, ids=str)
def test_either_model_is_enough(
    problem: TabularProblem, n_steps: int, ends: str, stationary: bool, self_normalized: bool
) -> None:
    """On all paths with their probabilities. A truncation needs no term of its own: every transition is used as it is."""
    gamma = 0.9 if problem.default_gamma == 1.0 else problem.default_gamma
    every = exact_log(problem, n_steps, ends)
    n_codes = problem.n_states
    case = Case(every.log, problem.behavior, problem.target[:n_codes])
    truth = problem.value(problem.target, gamma=gamma)
    q, c = true_q(problem, gamma), true_ratio(problem, gamma, n_steps, stationary)
    wrong_q = random_tables(case, n=1) if stationary else random_tables(case)
    wrong_c = positive_tables(case)[: len(c)]
    settings: dict[str, Any] = {"gamma": gamma, "self_normalized": self_normalized}
    for tables, ratio in ((q, wrong_c), (wrong_q, c), (q, c)):
        assert fit(case, tables, ratio, every.weight, **settings).value == pytest.approx(truth, rel=1e-8)
    assert abs(fit(case, wrong_q, wrong_c, every.weight, **settings).value - truth) > 0.01


def test_the_flow_residual_is_what_the_ratio_gets_wrong() -> None:
    problem = RiverSwim(3)
    every = exact_log(problem, 4, "truncated")
    case = Case(every.log, problem.behavior, problem.target[:3])
    q, c = true_q(problem, 0.95), true_ratio(problem, 0.95, 4, stationary=True)
    for factor in (1.0, 1.1):
        parts = fit(case, q, factor * c, every.weight, gamma=0.95).diagnostics
        assert parts["flow_residual"] == pytest.approx(
            (factor - 1.0) * problem.value(problem.target, gamma=0.95), abs=1e-9
        )
        assert parts["mean_ratio"] == pytest.approx(factor, rel=1e-9)


# -------------------------------------------------------------------------------- cross-fitting


class _SpyQ(LSTDQ):
    seen: ClassVar[list[frozenset[int]]] = []

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> Any:
        _SpyQ.seen.append(frozenset(data.episode_keys.tolist()))
        return super().fit_q(data, policy, episode_weight)


class _SpyRatio(MarginalizedIS):
    seen: ClassVar[list[frozenset[int]]] = []

    def fit_ratio(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> Any:
        assert episode_weight.mean() == pytest.approx(1.0)
        _SpyRatio.seen.append(frozenset(data.episode_keys.tolist()))
        return super().fit_ratio(data, policy, episode_weight)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("ends", [("terminal",), ("terminal", "truncated"), ("horizon",)])
def test_cross_fitting_by_hand(ends: tuple[str, ...], separate: bool) -> None:
    """Redo it with the episodes that the models were shown: their values on this fold, one transition after the other."""
    case, K = random_case(7, n=60, ends=ends), 4
    log, keys = case.log, case.log.episode_keys
    weight = np.random.default_rng(1).exponential(size=60)
    weight /= weight.mean()
    _SpyQ.seen.clear()
    _SpyRatio.seen.clear()
    estimator = DoubleReinforcementLearning(
        gamma=0.9, q=_SpyQ(), ratio=_SpyRatio(), n_folds=K, random_state=3, separate=separate
    )
    estimate = estimator.fit(log, case.policy, weight).estimate()
    assert len(_SpyQ.seen) == len(_SpyRatio.seen) == (2 * K if separate else K)
    fold, scores = fold_of(keys, K, 3), np.zeros(60)
    for pair, (for_q, for_ratio) in enumerate(zip(list(_SpyQ.seen), list(_SpyRatio.seen), strict=True)):
        inside = np.flatnonzero(fold == pair % K)
        assert for_q.isdisjoint(for_ratio) if separate else for_q == for_ratio
        assert for_q | for_ratio == set(keys.tolist()) - set(keys[inside].tolist())
        this = log.select(inside)
        q_rows, c_rows = (np.flatnonzero([key in shown for key in keys.tolist()]) for shown in (for_q, for_ratio))
        assert abs(len(q_rows) - len(c_rows)) <= 1
        fitted = LSTDQ(gamma=0.9).fit_q(log.select(q_rows), case.policy, weight[q_rows]).predict(case.policy, this)
        omega = weight[c_rows] / weight[c_rows].mean()
        c = MarginalizedIS(gamma=0.9).fit_ratio(log.select(c_rows), case.policy, omega).predict(case.policy, this)
        for i, position in enumerate(inside):
            total = fitted.v[this.offsets[i]]
            for row in range(this.offsets[i], this.offsets[i + 1]):
                v_next = fitted.v_final[i] if row + 1 == this.offsets[i + 1] else fitted.v[row + 1]
                total += c[row] * (this.rewards[row] + 0.9 * v_next - fitted.q[row])
            scores[position] += total / (2 if separate else 1)
    assert estimate.value == pytest.approx(np.mean(weight * scores), rel=1e-9)
    expected = weight * (scores - np.mean(weight * scores))
    np.testing.assert_allclose(influence_of(estimate), expected, rtol=1e-7, atol=1e-9)


def test_too_few_episodes_for_halves_are_named() -> None:
    case = random_case(0, n=2)
    estimator = DoubleReinforcementLearning(gamma=0.9, n_folds=2)
    with pytest.raises(ValueError, match="separate=False"):
        estimator.fit(case.log, case.policy)
    both = DoubleReinforcementLearning(gamma=0.9, n_folds=2, separate=False).fit(case.log, case.policy).estimate()
    assert np.isfinite(both.value)


def test_without_folds_it_would_be_lstdq() -> None:
    """On one log linear marginal importance sampling corrects LSTDQ by nothing; folds make the two differ by noise of second order."""
    problem = RiverSwim(horizon=8)
    log, policy = problem.sample(2000, random_state=0), TabularPolicy(problem.target)
    q, c = LSTDQ(gamma=0.95), MarginalizedIS(gamma=0.95)
    one = np.ones(log.n_episodes)
    fitted = q.fit_q(log, policy, one).predict(policy, log)
    ratio = c.fit_ratio(log, policy, one).predict(policy, log)
    v_next = np.append(fitted.v[1:], 0.0)
    v_next[log.offsets[1:] - 1] = 0.0
    lstdq = q.fit(log, policy).estimate()
    assert abs(ratio @ (log.rewards + 0.95 * v_next - fitted.q)) / 2000 < 1e-9
    estimate = DoubleReinforcementLearning(gamma=0.95).fit(log, policy).estimate()
    assert abs(estimate.value - lstdq.value) < 0.3 * lstdq.std_error
    assert estimate.std_error == pytest.approx(lstdq.std_error, rel=0.1)


# -------------------------------------------------------------------------------- on problems


@forms
@pytest.mark.parametrize("stationary", [False, True])
def test_river_swim(stationary: bool, self_normalized: bool) -> None:
    problem = RiverSwim(horizon=20)
    truth = RiverSwim().value(RiverSwim().target) if stationary else problem.value(problem.target)
    q = LSTDQ(stationary=True) if stationary else None
    estimator = DoubleReinforcementLearning(gamma=0.95, q=q, self_normalized=self_normalized)
    log, policy = problem.sample(1500, random_state=2), TabularPolicy(problem.target)
    estimate = estimator.fit(log, policy).estimate()
    assert abs(estimate.value - truth) < 4 * estimate.std_error
    assert estimate.horizon == (None if stationary else 20)
    assert estimate.verdict.level is Level.VALID
    weights_multiply = DoublyRobust(gamma=0.95, q=q).fit(log, policy).estimate()
    assert estimate.std_error < 1.02 * weights_multiply.std_error


def test_long_horizons_do_no_harm() -> None:
    problem = Graph(60)
    log = problem.sample(1000, random_state=3)
    policy = TabularPolicy(0.55 * problem.behavior + 0.45 * problem.target)
    estimate = DoubleReinforcementLearning(gamma=0.98).fit(log, policy).estimate()
    truth = problem.value(policy)
    assert abs(estimate.value - truth) < 4 * estimate.std_error
    assert estimate.std_error < 0.5 * DoublyRobust(gamma=0.98).fit(log, policy).estimate().std_error


@pytest.mark.parametrize("ratio", [None, StateMarginalIS()])
@pytest.mark.parametrize("q", [None, FittedQEvaluation()])
def test_other_models_can_serve(q: Any, ratio: Any) -> None:
    problem = RandomMDP(3, 2, horizon=3, random_state=1)
    log, policy = problem.sample(400, random_state=1), TabularPolicy(problem.target)
    estimate = DoubleReinforcementLearning(gamma=0.9, q=q, ratio=ratio, n_folds=2).fit(log, policy).estimate()
    assert abs(estimate.value - problem.value(problem.target, gamma=0.9)) < 4 * estimate.std_error < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("stationary", [False, True])
def test_valid_intervals_cover(stationary: bool) -> None:
    problem = RiverSwim(horizon=20)
    truth = RiverSwim().value(RiverSwim().target) if stationary else problem.value(problem.target)
    estimator = DoubleReinforcementLearning(gamma=0.95, q=LSTDQ(stationary=stationary))
    policy, hits = TabularPolicy(problem.target), []
    for seed in range(200):
        estimate = estimator.fit(problem.sample(800, random_state=seed), policy).estimate()
        if estimate.verdict.level is Level.VALID:
            low, high = estimate.confidence_interval()
            hits.append(low <= truth <= high)
    print(f"stationary={stationary}: {len(hits)} of 200 valid, coverage {np.mean(hits):.3f}")
    assert len(hits) > 100
    assert np.mean(hits) > 0.9


# -------------------------------------------------------------------------------- verdict and bad use


def test_hidden_states_are_refused() -> None:
    """No marginal method is right where the state does not hold what decides rewards, and the log shows it."""
    problem = ModelFail()
    estimate = (
        DoubleReinforcementLearning(gamma=1.0)
        .fit(problem.sample(1000, random_state=1), TabularPolicy(problem.target))
        .estimate()
    )
    assert abs(estimate.value - problem.value(problem.target)) > 1.0
    assert estimate.verdict.level is Level.REFUSE
    assert any("depend on the past" in reason for reason in estimate.verdict.reasons)


def test_ratios_that_lose_visits_are_named() -> None:
    case = CASES[2]
    estimate = fit(case, random_tables(case), 0.2 * positive_tables(case))
    assert any("of the candidate's visits where 1 is expected" in reason for reason in estimate.verdict.reasons)
    nothing = fit(case, random_tables(case), -positive_tables(case), self_normalized=True)
    assert np.isnan(nothing.value)
    assert nothing.verdict.level is Level.REFUSE
    assert any("cannot be normalised" in reason for reason in nothing.verdict.reasons)
    negative = fit(case, random_tables(case), positive_tables(case) - 1.0)
    assert any("is negative" in reason for reason in negative.verdict.reasons)


@pytest.mark.parametrize("ends", [("horizon",), ("terminal", "truncated")])
def test_visits_outside_what_the_models_learned_from_are_counted(ends: tuple[str, ...]) -> None:
    case = random_case(12, n=12, ends=ends, n_states=3)
    log, c, gamma = case.log, np.random.default_rng(0).normal(size=len(case.log.rewards)), 0.9
    stationary = log.horizon is None
    inside, learned = np.arange(6, 12), np.arange(6)
    seen = {(0 if stationary else t, s, a) for i in learned for t, (s, a, _) in enumerate(paths(log)[i])}
    lost = total = 0.0
    for i in inside:
        episode = paths(log)[i]
        visits = [1.0, *(gamma * abs(c[log.offsets[i] + t]) for t in range(len(episode)))]
        states: list[int | None] = [s for s, _, _ in episode]
        states.append(final_codes(log)[i] if end_goes_on(log, int(i), stationary) else None)
        for t, (mass, s) in enumerate(zip(visits, states, strict=True)):
            if s is not None:
                total += mass
                lost += mass * sum(case.pi[s, a] for a in range(3) if (0 if stationary else t, s, a) not in seen)
    share = unsupported_share(log, case.policy, c, [(inside, learned)], gamma, stationary, np.ones(12))
    assert 0.0 < lost < total
    assert share == pytest.approx(lost / total, rel=1e-9)


def test_few_episodes_for_many_steps_are_named() -> None:
    problem = RiverSwim(horizon=20)
    estimator, policy = DoubleReinforcementLearning(gamma=0.95), TabularPolicy(problem.target)
    estimate = estimator.fit(problem.sample(100, random_state=0), policy).estimate()
    assert any("that the log does not hold" in reason for reason in estimate.verdict.reasons)


def test_propensities_are_needed_only_by_ratios_that_read_them() -> None:
    problem = ModelWin(horizon=4)
    log, policy = problem.sample(100, random_state=0), TabularPolicy(problem.target)
    bare = log.replace(behavior_log_prob=None, behavior_source=None)
    assert np.isfinite(DoubleReinforcementLearning(gamma=1.0).fit(bare, policy).estimate().value)
    reading = DoubleReinforcementLearning(gamma=1.0, ratio=StateMarginalIS())
    assert reading.needs_propensities
    with pytest.raises(ValueError, match=r"DoubleReinforcementLearning\.fit: `data` must hold propensities"):
        reading.fit(bare, policy)


def test_a_policy_must_offer_what_both_models_require() -> None:
    class Sampler(TabularPolicy):
        @property
        def capabilities(self) -> frozenset[str]:
            return frozenset({"all_probs"})

    problem = ModelWin(horizon=4)
    log, policy = problem.sample(60, random_state=0), Sampler(problem.target)
    assert np.isfinite(DoubleReinforcementLearning(gamma=1.0).fit(log, policy).estimate().value)
    with pytest.raises(TypeError, match="requires"):
        DoubleReinforcementLearning(gamma=1.0, ratio=StateMarginalIS()).fit(log, policy)
    with pytest.raises(TypeError, match="requires"):
        DoubleReinforcementLearning(gamma=1.0).fit(log, ColumnPolicy("p"))


def test_a_ratio_for_another_question_is_refused() -> None:
    case = random_case(0)
    estimator = DoubleReinforcementLearning(gamma=0.9, q=LSTDQ(), ratio=MarginalizedIS(stationary=True))
    with pytest.raises(ValueError, match="must agree on `stationary`, got False and True"):
        estimator.fit(case.log, case.policy)
    with pytest.raises(ValueError, match="same `gamma`"):
        DoubleReinforcementLearning(gamma=0.9, ratio=MarginalizedIS(gamma=0.8)).fit(case.log, case.policy)


def test_the_default_model_answers_the_question_of_the_given_one() -> None:
    problem = RiverSwim(horizon=20)
    log, policy = problem.sample(300, random_state=2), TabularPolicy(problem.target)
    pairs: list[dict[str, Any]] = [
        {"q": LSTDQ(stationary=True)},
        {"ratio": MarginalizedIS(stationary=True)},
        {"q": LSTDQ(stationary=True), "ratio": MarginalizedIS(stationary=True)},
    ]
    values = [DoubleReinforcementLearning(gamma=0.95, **pair).fit(log, policy).estimate().value for pair in pairs]
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize(
    ("settings", "error", "name"),
    [
        ({"ratio": LSTDQ()}, TypeError, "ratio"),
        ({"ratio": MarginalizedIS}, TypeError, "ratio"),
        ({"q": MarginalizedIS()}, TypeError, "q"),
        ({"n_folds": 1}, ValueError, "n_folds"),
        ({"random_state": None}, ValueError, "random_state"),
    ],
)
def test_bad_parameters_are_named(settings: dict[str, Any], error: type[Exception], name: str) -> None:
    case = random_case(0)
    with pytest.raises(error, match=f"DoubleReinforcementLearning: `{name}`"):
        DoubleReinforcementLearning(**{"gamma": 0.9, **settings}).fit(case.log, case.policy)


def test_tabular_models_of_the_log_give_its_maximum_likelihood_value() -> None:
    """Q and visits of the process that counts transitions: the correction is 0, and the ratio alone gives the same value."""
    case = random_case(11, n=60)
    log, S, A = case.log, *case.pi.shape
    count, reward, onward = np.zeros((S, A)), np.zeros((S, A)), np.zeros((S, A, S))
    for episode in paths(log):
        for t, (s, a, r) in enumerate(episode):
            count[s, a] += 1
            reward[s, a] += r
            if t + 1 < len(episode):
                onward[s, a, episode[t + 1][0]] += 1
    table = solve_stationary(reward / count, onward / count[..., None], case.pi, 0.9)
    d_0 = np.bincount([episode[0][0] for episode in paths(log)], minlength=S) / 60
    visits = np.linalg.solve(np.eye(S) - 0.9 * np.einsum("sa,saz->sz", case.pi, onward / count[..., None]).T, d_0)
    ratio = visits[:, None] * case.pi / (count / 60)
    estimate = fit(case, table[None], ratio[None])
    assert estimate.value == pytest.approx(float(d_0 @ (case.pi * table).sum(axis=1)), rel=1e-9)
    assert estimate.diagnostics["ratio_value"] == pytest.approx(estimate.value, rel=1e-9)
    assert abs(estimate.diagnostics["flow_residual"]) < 1e-9
