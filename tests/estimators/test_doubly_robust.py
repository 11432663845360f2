"""Doubly robust estimation against plain loops with a given Q, exact logs, the jackknife, and spies on cross-fitting."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
from estimator_oracles import Case, exact_log, final_codes, influence_of, jackknife, paths, random_case

from ope import End, Estimate, Level, LoggedDataset, Policy
from ope.estimators import LSTDQ, DoublyRobust, FittedQEvaluation, PerDecisionIS, WeightedIS
from ope.estimators._q import QEstimator, QModel, QPredictions
from ope.estimators.doubly_robust import doubly_robust_scores
from ope.policies import TabularPolicy
from ope.problems import Graph, ModelFail, RandomMDP, RiverSwim, TabularProblem
from ope.validation import FloatArray

weighted_or_not = pytest.mark.parametrize("weighted", [False, True], ids=["DR", "WDR"])


class _TableModel:
    """Reads Q off tables, one for each step; what follows a truncated episode is read off the table of that step."""

    def __init__(self, tables: list[FloatArray]) -> None:
        self.tables = tables

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        _GivenQ.valued.append(set(data.episode_keys.tolist()))
        pi, q, v, v_final = policy.predict_proba(np.eye(data.states.shape[1])), [], [], []
        for i, episode in enumerate(paths(data)):
            for t, (s, a, _) in enumerate(episode):
                table = self.tables[min(t, len(self.tables) - 1)]
                q.append(table[s, a])
                v.append(pi[s] @ table[s])
            goes_on = End(int(data.ends[i])) is End.TRUNCATED
            z, table = final_codes(data)[i], self.tables[min(len(episode), len(self.tables) - 1)]
            v_final.append(pi[z] @ table[z] if goes_on else 0.0)
        return QPredictions(np.array(q), np.array(v), np.array(v_final))


class _GivenQ(QEstimator):
    """A Q method that learns nothing and remembers which episodes it was shown."""

    trained: ClassVar[list[set[int]]] = []
    valued: ClassVar[list[set[int]]] = []

    def __init__(self, *, gamma: float | None = None, tables: Any = None) -> None:
        self.gamma = gamma
        self.tables = tables

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> QModel:
        assert len(episode_weight) == data.n_episodes
        assert policy.capabilities
        _GivenQ.trained.append(set(data.episode_keys.tolist()))
        return _TableModel(self.tables)


def random_tables(case: Case, seed: int = 0, n: int = 12) -> list[FloatArray]:
    return list(np.random.default_rng(seed).normal(size=(n, *case.pi.shape)))


def fit(
    case: Case, tables: list[FloatArray], weighted: bool = False, gamma: float = 0.9, weight: FloatArray | None = None
) -> Estimate:
    estimator = DoublyRobust(gamma=gamma, q=_GivenQ(tables=tables), weighted=weighted, n_folds=2)
    estimate: Estimate = estimator.fit(case.log, case.policy, weight).estimate()
    return estimate


def scores_of(estimate: Estimate) -> FloatArray:
    assert estimate.scores is not None
    return estimate.scores


# -------------------------------------------------------------------------------- plain-loop oracles


def terms(case: Case, tables: list[FloatArray]) -> list[list[tuple[float, float, float, float, float]]]:
    """Return rho, W, r, Q and V of every step; a last entry without ratio holds V after the last step."""
    result = []
    for i, episode in enumerate(paths(case.log)):
        w, rows = 1.0, []
        for t, (s, a, r) in enumerate(episode):
            rho = case.pi[s, a] / case.b[s, a]
            w *= rho
            rows.append((rho, w, r, float(tables[t][s, a]), float(case.pi[s] @ tables[t][s])))
        z = final_codes(case.log)[i]
        after = float(case.pi[z] @ tables[len(episode)][z]) if case.log.ends[i] == End.TRUNCATED else 0.0
        result.append([*rows, (1.0, w, 0.0, 0.0, after)])
    return result


def backward(rows: list[tuple[float, float, float, float, float]], gamma: float) -> float:
    """Return V_0 of V_t = Vhat + rho (r + gamma V_t+1 - Qhat)."""
    value = rows[-1][4]
    for rho, _, r, q, v in reversed(rows[:-1]):
        value = v + rho * (r + gamma * value - q)
    return value


def closed_form(rows: list[tuple[float, float, float, float, float]], gamma: float) -> float:
    """Return sum_t gamma^t [W_t (r - Qhat) + W_t-1 Vhat], with the V after the last step."""
    total, previous = 0.0, 1.0
    for t, (_, w, r, q, v) in enumerate(rows):
        total += gamma**t * (w * (r - q) + previous * v)
        previous = w
    return total


def weighted_oracle(
    case: Case, tables: list[FloatArray], gamma: float, weight: FloatArray
) -> tuple[float, list[float]]:
    """Return sum_i sum_t gamma^t [w_it (r - Qhat) + w_i,t-1 Vhat] and its influence, with ended episodes padded."""
    every = terms(case, tables)
    n, H, omega = len(every), max(map(len, every)), weight / weight.mean()
    padded = [rows + [(1.0, rows[-1][1], 0.0, 0.0, 0.0)] * (H - len(rows)) for rows in every]
    value, psi, before = 0.0, [0.0] * n, [1.0] * n
    for t in range(H):
        W = [rows[t][1] for rows in padded]
        gap, v = [rows[t][2] - rows[t][3] for rows in padded], [rows[t][4] for rows in padded]
        W_bar, before_bar = sum(omega * W) / n, sum(omega * before) / n
        m_t = sum(omega[i] * W[i] * gap[i] for i in range(n)) / n / W_bar
        v_t = sum(omega[i] * before[i] * v[i] for i in range(n)) / n / before_bar
        value += gamma**t * (m_t + v_t)
        for i in range(n):
            psi[i] += gamma**t * (W[i] / W_bar * (gap[i] - m_t) + before[i] / before_bar * (v[i] - v_t))
        before = W
    return value, psi


CASES = [
    random_case(0),
    random_case(1, zeros=True),
    random_case(2, ends=("terminal", "truncated"), zeros=True),
    random_case(3, ends=("terminal", "horizon"), n_actions=2),
    random_case(4, ends=("terminal", "horizon", "truncated"), n_states=4, longest=8),
]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_scores_equal_recursion_and_closed_form(case: Case, gamma: float) -> None:
    tables = random_tables(case)
    estimate, rows = fit(case, tables, gamma=gamma), terms(case, tables)
    expected = np.array([backward(episode, gamma) for episode in rows])
    np.testing.assert_allclose([closed_form(episode, gamma) for episode in rows], expected, rtol=1e-9, atol=1e-10)
    assert estimate.value == pytest.approx(expected.mean(), rel=1e-10)
    if not (case.log.ends == End.TRUNCATED).any():
        np.testing.assert_allclose(scores_of(estimate), expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(influence_of(estimate), expected - expected.mean(), rtol=1e-8, atol=1e-9)


def test_score_function_takes_given_predictions() -> None:
    case = CASES[2]
    tables = random_tables(case, 1)
    rows = terms(case, tables)
    log_w = np.array([math.log(w) if w > 0 else -math.inf for episode in rows for _, w, *_ in episode[:-1]])
    q, v = ([step[k] for episode in rows for step in episode[:-1]] for k in (3, 4))
    predictions = QPredictions(np.array(q), np.array(v), np.array([episode[-1][4] for episode in rows]))
    scores = doubly_robust_scores(log_w, case.log.rewards, predictions, case.log.offsets, 0.9)
    np.testing.assert_allclose(scores, [backward(episode, 0.9) for episode in rows], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_weighted_form_equals_the_padded_loops(case: Case, gamma: float) -> None:
    tables = random_tables(case)
    estimate = fit(case, tables, weighted=True, gamma=gamma)
    value, psi = weighted_oracle(case, tables, gamma, np.ones(case.log.n_episodes))
    assert estimate.value == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(influence_of(estimate), psi, rtol=1e-8, atol=1e-9)
    assert estimate.scores is None


@weighted_or_not
@pytest.mark.parametrize("case", CASES)
def test_influence_is_the_jackknife_with_q_held_fixed(case: Case, weighted: bool) -> None:
    tables = random_tables(case)
    psi = influence_of(fit(case, tables, weighted))
    numerical = jackknife(lambda w: fit(case, tables, weighted, weight=w).value, len(psi))
    np.testing.assert_allclose(psi, numerical, rtol=1e-6, atol=1e-6 * np.abs(psi).max())


@pytest.mark.parametrize("case", CASES)
def test_episode_weights(case: Case) -> None:
    tables, n = random_tables(case), case.log.n_episodes
    weight = np.random.default_rng(0).exponential(size=n)
    weight[::7] = 0.0
    scores = np.array([backward(rows, 0.9) for rows in terms(case, tables)])
    plain, self_normalised = (fit(case, tables, weighted, weight=weight) for weighted in (False, True))
    assert plain.value == pytest.approx(weight @ scores / weight.sum(), rel=1e-9)
    value, psi = weighted_oracle(case, tables, 0.9, weight)
    assert self_normalised.value == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(influence_of(self_normalised), weight / weight.mean() * psi, rtol=1e-8, atol=1e-9)


# -------------------------------------------------------------------------------- what it must reduce to


@pytest.mark.parametrize("case", CASES)
def test_without_q_it_is_importance_sampling(case: Case) -> None:
    nothing = [np.zeros_like(case.pi)] * 12
    for estimator, weighted in ((PerDecisionIS(gamma=0.9), False), (WeightedIS(gamma=0.9), True)):
        expected, estimate = estimator.fit(case.log, case.policy).estimate(), fit(case, nothing, weighted)
        assert estimate.value == pytest.approx(expected.value, rel=1e-10)
        np.testing.assert_allclose(influence_of(estimate), influence_of(expected), rtol=1e-8, atol=1e-10)


@weighted_or_not
@pytest.mark.parametrize("problem", [ModelFail(), Graph(4), RandomMDP(2, 2, horizon=3, random_state=1)], ids=repr)
def test_any_q_is_unbiased_with_right_propensities(problem: TabularProblem, weighted: bool) -> None:
    every = exact_log(problem, problem.n_steps, "horizon")
    case = Case(every.log, problem.behavior, problem.target)
    estimate = fit(case, random_tables(case), weighted, problem.default_gamma, every.weight)
    assert estimate.value == pytest.approx(problem.value(problem.target), rel=1e-9)


def true_tables(problem: TabularProblem, gamma: float) -> list[FloatArray]:
    q = problem.action_values(problem.target, gamma=gamma)[..., problem.observation >= 0, :]
    return [q] if q.ndim == 2 else [*q, np.zeros_like(q[0])]


@weighted_or_not
@pytest.mark.parametrize("horizon", [None, 4])
def test_true_q_is_right_with_wrong_propensities(horizon: int | None, weighted: bool) -> None:
    problem = RandomMDP(2, 2, terminals=1, horizon=horizon, random_state=4)
    every = exact_log(problem, 4, "truncated" if horizon is None else "horizon")
    wrong = every.log.behavior_log_prob + np.log(every.log.actions * 0.4 + 0.5)
    case = Case(every.log.replace(behavior_log_prob=wrong), problem.behavior, problem.target)
    estimate = fit(case, true_tables(problem, 0.9), weighted, 0.9, every.weight)
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=0.9), rel=1e-9)
    importance = PerDecisionIS(gamma=0.9).fit(case.log, case.policy, every.weight).estimate()
    assert abs(importance.value - problem.value(problem.target, gamma=0.9)) > 0.01


@weighted_or_not
def test_truncated_episodes_go_on_with_v(weighted: bool) -> None:
    """With the true Q the endless value is exact although every path stops; without V after the end it is not."""
    problem = RiverSwim(3)
    every = exact_log(problem, 3, "truncated")
    case = Case(every.log, problem.behavior, problem.target[:3])
    estimate = fit(case, true_tables(problem, 0.95), weighted, 0.95, every.weight)
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=0.95), rel=1e-9)
    stopped = Case(every.log.replace(ends=np.zeros_like(every.log.ends)), case.b, case.pi)
    ended = fit(stopped, true_tables(problem, 0.95), weighted, 0.95, every.weight)
    assert abs(ended.value - estimate.value) > 0.1


@weighted_or_not
def test_cross_fitted_propensities_are_used(weighted: bool) -> None:
    case = CASES[0]
    g = np.random.default_rng(0)
    both = case.log.replace(
        cross_fitted_log_prob=case.log.behavior_log_prob,
        behavior_log_prob=np.log(g.uniform(0.1, 1.0, len(case.log.rewards))),
    )
    estimate = fit(Case(both, case.b, case.pi), random_tables(case), weighted)
    assert estimate.value == pytest.approx(fit(case, random_tables(case), weighted).value, rel=1e-12)


# -------------------------------------------------------------------------------- cross-fitting


@pytest.mark.parametrize("n_folds", [2, 5])
def test_no_episode_is_valued_by_a_model_that_saw_it(n_folds: int) -> None:
    case = random_case(5, n=60)
    _GivenQ.trained.clear()
    _GivenQ.valued.clear()
    estimator = DoublyRobust(gamma=0.9, q=_GivenQ(tables=random_tables(case)), n_folds=n_folds)
    estimator.fit(case.log, case.policy)
    everyone = set(case.log.episode_keys.tolist())
    assert len(_GivenQ.trained) == len(_GivenQ.valued) == n_folds
    for seen, valued in zip(_GivenQ.trained, _GivenQ.valued, strict=True):
        assert not seen & valued
        assert seen | valued == everyone
    assert sum(map(len, _GivenQ.valued)) == len(everyone)
    assert min(map(len, _GivenQ.valued)) > 0


def test_folds_belong_to_episodes_not_to_positions() -> None:
    case = random_case(6, n=40)
    order = np.random.default_rng(0).permutation(40)
    estimator = DoublyRobust(gamma=0.9)
    before = estimator.fit(case.log, case.policy).estimate()
    after = estimator.fit(case.log.select(order), case.policy).estimate()
    assert after.value == pytest.approx(before.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(after), influence_of(before)[order], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("ends", [("terminal",), ("terminal", "truncated")])
def test_cross_fitting_by_hand(ends: tuple[str, ...]) -> None:
    """Redo it: LSTDQ on the other folds, its values on this one, one score after the other."""
    case = random_case(7, n=40, ends=ends)
    _GivenQ.valued.clear()
    nested = _GivenQ(tables=random_tables(case))
    DoublyRobust(gamma=0.9, q=nested, n_folds=4, random_state=3).fit(case.log, case.policy)
    scores = np.empty(40)
    for fold in list(_GivenQ.valued):
        inside = np.array([key in fold for key in case.log.episode_keys.tolist()])
        other, this = case.log.select(~inside), case.log.select(inside)
        fitted = LSTDQ(gamma=0.9).fit_q(other, case.policy, np.ones(other.n_episodes)).predict(case.policy, this)
        ratio = case.pi[this.states.argmax(1), this.actions] / case.b[this.states.argmax(1), this.actions]
        for i, position in enumerate(np.flatnonzero(inside)):
            value = fitted.v_final[i]
            for k in reversed(range(this.offsets[i], this.offsets[i + 1])):
                value = fitted.v[k] + ratio[k] * (this.rewards[k] + 0.9 * value - fitted.q[k])
            scores[position] = value
    estimate = DoublyRobust(gamma=0.9, q=LSTDQ(), n_folds=4, random_state=3).fit(case.log, case.policy).estimate()
    assert estimate.value == pytest.approx(scores.mean(), rel=1e-9)
    if ends == ("terminal",):
        np.testing.assert_allclose(scores_of(estimate), scores, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_few_episodes_leave_no_fold_empty(n: int) -> None:
    for seed in range(10):
        case = random_case(seed, n=n)
        estimate = DoublyRobust(gamma=0.9, n_folds=2, random_state=seed).fit(case.log, case.policy).estimate()
        assert math.isfinite(estimate.value)


def test_fewer_episodes_than_folds_is_named() -> None:
    case = random_case(0, n=3)
    with pytest.raises(ValueError, match="n_folds"):
        DoublyRobust(gamma=0.9).fit(case.log, case.policy)


@pytest.mark.parametrize("n_folds", [1, 0, 2.5, True])
def test_bad_number_of_folds_is_named(n_folds: Any) -> None:
    case = random_case(0)
    with pytest.raises(ValueError, match="n_folds"):
        DoublyRobust(gamma=0.9, n_folds=n_folds).fit(case.log, case.policy)


def test_another_gamma_of_the_model_is_refused() -> None:
    case = random_case(0)
    with pytest.raises(ValueError, match="gamma"):
        DoublyRobust(gamma=0.9, q=LSTDQ(gamma=0.8)).fit(case.log, case.policy)
    agreeing = DoublyRobust(gamma=0.9, q=LSTDQ(gamma=0.9)).fit(case.log, case.policy).estimate()
    assert agreeing.value == DoublyRobust(gamma=0.9).fit(case.log, case.policy).estimate().value


def test_models_that_are_no_q_method_are_refused() -> None:
    case = random_case(0)
    with pytest.raises(TypeError, match="`q`"):
        DoublyRobust(gamma=0.9, q=PerDecisionIS()).fit(case.log, case.policy)


# -------------------------------------------------------------------------------- laws


@weighted_or_not
def test_blocks_equal_one_block(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[4]
    estimator = DoublyRobust(gamma=0.9, weighted=weighted)
    whole = estimator.fit(case.log, case.policy).estimate()
    monkeypatch.setattr(LoggedDataset.blocks, "__defaults__", (9,))
    parts = estimator.fit(case.log, case.policy).estimate()
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(parts), influence_of(whole), rtol=1e-8, atol=1e-10)


@weighted_or_not
@pytest.mark.parametrize("factor", [-3.0, 1e5])
def test_scaled_rewards_scale_the_value(factor: float, weighted: bool) -> None:
    case = CASES[4]
    estimator = DoublyRobust(gamma=0.9, weighted=weighted)
    before = estimator.fit(case.log, case.policy).estimate()
    after = estimator.fit(case.log.replace(rewards=case.log.rewards * factor), case.policy).estimate()
    assert after.value == pytest.approx(before.value * factor, rel=1e-9)
    np.testing.assert_allclose(influence_of(after), influence_of(before) * factor, rtol=1e-7, atol=1e-9 * abs(factor))


@weighted_or_not
def test_several_policies_get_what_each_gets_alone(weighted: bool) -> None:
    case = CASES[2]
    policies: dict[str, Policy] = {"a": case.policy, "b": TabularPolicy(case.b)}
    estimator = DoublyRobust(gamma=0.9, weighted=weighted)
    both = estimator.fit(case.log, policies).estimate()
    for name, policy in policies.items():
        assert both[name].value == estimator.fit(case.log, policy).estimate().value


# -------------------------------------------------------------------------------- on problems


@weighted_or_not
@pytest.mark.parametrize("stationary", [False, True])
def test_river_swim(stationary: bool, weighted: bool) -> None:
    problem = RiverSwim(horizon=20)
    truth = RiverSwim().value(RiverSwim().target) if stationary else problem.value(problem.target)
    estimator = DoublyRobust(gamma=0.95, q=LSTDQ(stationary=stationary), weighted=weighted)
    estimate = estimator.fit(problem.sample(2000, random_state=2), TabularPolicy(problem.target)).estimate()
    assert abs(estimate.value - truth) < 4 * estimate.std_error
    assert estimate.std_error < 0.15 * truth
    assert estimate.horizon == (None if stationary else 20)


@weighted_or_not
def test_hidden_states_do_not_bias_it(weighted: bool) -> None:
    problem = ModelFail()
    log, policy = problem.sample(20_000, random_state=1), TabularPolicy(problem.target)
    estimate = DoublyRobust(gamma=1.0, weighted=weighted).fit(log, policy).estimate()
    assert estimate.diagnostics["q_value"] == pytest.approx(math.tanh(1), abs=0.05)
    assert abs(estimate.value + math.tanh(1)) < 4 * estimate.std_error
    assert estimate.std_error < 0.1


def test_it_beats_importance_sampling_where_the_model_is_right() -> None:
    problem = RiverSwim(horizon=20)
    log, policy = problem.sample(1000, random_state=3), TabularPolicy(problem.target)
    robust = DoublyRobust(gamma=0.95).fit(log, policy).estimate()
    importance = PerDecisionIS(gamma=0.95).fit(log, policy).estimate()
    assert robust.std_error < 0.8 * importance.std_error


@weighted_or_not
def test_no_weight_at_all_is_refused(weighted: bool) -> None:
    case = random_case(8, n_actions=2)
    never = np.zeros_like(case.pi)
    never[:, 0] = 1.0
    rows = case.log.actions != 0
    starts = case.log.select(rows[case.log.offsets[:-1]])
    estimate = fit(Case(starts, case.b, never), random_tables(case), weighted)
    assert estimate.verdict.level is Level.REFUSE


def test_fitted_q_can_serve_as_the_model() -> None:
    problem = RandomMDP(3, 2, horizon=3, random_state=1)
    log, policy = problem.sample(400, random_state=1), TabularPolicy(problem.target)
    estimate = DoublyRobust(gamma=0.9, q=FittedQEvaluation(), n_folds=2).fit(log, policy).estimate()
    assert abs(estimate.value - problem.value(problem.target, gamma=0.9)) < 4 * estimate.std_error
    assert estimate.std_error < 0.1
