"""Bellman calibration and its error against plain loops, tabular identities, exact logs and the jackknife."""

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
    maximum_likelihood,
    paths,
    random_case,
    sampled,
    stationary_or_not,
)
from given_models import GivenQ, at_step, position, true_q
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeRegressor

from ope import Estimate, Level, LoggedDataset, Policy
from ope.estimators import LSTDQ, BellmanCalibrated, FittedQEvaluation, PerDecisionIS, calibration_error
from ope.estimators._calibration import Binning, merge_bins
from ope.estimators._probe import probe
from ope.estimators._q import QModel
from ope.estimators.bellman_calibrated import calibrated_value
from ope.inference.weights import fold_of
from ope.policies import TabularPolicy
from ope.problems import RandomMDP, RiverSwim
from ope.testing.logs import make_case
from ope.validation import FloatArray

GAMMA = 0.9
POSITION = FunctionTransformer(position)


def tables_of(case: Case, seed: int = 0, steps: int = 1) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(steps, *case.pi.shape)) + 1.0


def fit(case: Case, tables: FloatArray, weight: FloatArray | None = None, **settings: Any) -> Estimate:
    stationary = bool(settings.pop("stationary", False))
    settings = {"gamma": GAMMA, "min_episodes": 1, **settings}
    method = BellmanCalibrated(q=GivenQ(tables=tables, stationary=stationary), **settings)
    return method.fit(case.log, case.policy, weight).estimate()  # type: ignore[no-any-return]


# -------------------------------------------------------------------- plain loops


class Loops:
    """Calibration of the episodes of a fold by loops over their transitions."""

    def __init__(self, case: Case, tables: FloatArray, inside: Any, weight: FloatArray, stationary: bool) -> None:
        log, self.pi, self.tables = case.log, case.pi, tables
        self.rows: list[tuple[float, float, float, tuple[int, int] | None]] = []
        self.starts: list[tuple[float, int]] = []
        finals = final_codes(log)
        for i in inside:
            episode = paths(log)[i]
            self.starts.append((weight[i], episode[0][0]))
            for t, (s, a, r) in enumerate(episode):
                last = t == len(episode) - 1
                follows = end_goes_on(log, i, stationary) if last else True
                if follows is None:
                    continue
                if not stationary and t + 1 == log.horizon:
                    follows = False
                place = (t + 1, finals[i] if last else episode[t + 1][0]) if follows else None
                self.rows.append((weight[i], at_step(tables, t)[s, a], r, place))
        self.knots = sorted({q for _, q, _, _ in self.rows})

    def nearest(self, q: float) -> int:
        return int(np.argmin([abs(q - knot) for knot in self.knots]))

    def ahead(self, place: tuple[int, int]) -> list[tuple[float, int]]:
        t, s = place
        return [(self.pi[s, a], self.nearest(at_step(self.tables, t)[s, a])) for a in range(self.pi.shape[1])]

    def levels(self, n_sweeps: int = 200) -> list[float]:
        f = list(self.knots)
        for _ in range(n_sweeps):
            sums, mass = [0.0] * len(f), [0.0] * len(f)
            for w, q, r, place in self.rows:
                target = r + (GAMMA * sum(p * f[k] for p, k in self.ahead(place)) if place else 0.0)
                sums[self.nearest(q)] += w * target
                mass[self.nearest(q)] += w
            f = pool_adjacent_violators(sums, mass)
        return f

    def value(self, bin_of: list[int]) -> float:
        k = max(bin_of) + 1
        A, b = np.zeros((k, k)), np.zeros(k)
        for w, q, r, place in self.rows:
            j = bin_of[self.nearest(q)]
            A[j, j] += w
            b[j] += w * r
            for p, knot in self.ahead(place) if place else []:
                A[j, bin_of[knot]] -= w * GAMMA * p
        theta = np.linalg.solve(A, b)
        values = [(w, sum(p * theta[bin_of[knot]] for p, knot in self.ahead((0, s)))) for w, s in self.starts]
        return float(sum(w * v for w, v in values) / sum(w for w, _ in values))


def pool_adjacent_violators(sums: list[float], mass: list[float]) -> list[float]:
    blocks: list[list[float]] = []
    for total, size in zip(sums, mass, strict=True):
        blocks.append([total, size, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            top = blocks.pop()
            blocks[-1] = [x + y for x, y in zip(blocks[-1], top, strict=True)]
    return [total / size for total, size, count in blocks for _ in range(int(count))]


def level_sets(levels: list[float]) -> list[int]:
    return [0, *np.cumsum(np.diff(levels) > 1e-8).tolist()]


@every_end
@stationary_or_not
def test_the_value_is_that_of_loops(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(5, n=24, ends=ends, n_actions=2)
    steps = 1 if stationary or case.log.horizon is None else 6
    tables, weight = tables_of(case, 1, steps), np.random.default_rng(2).uniform(0.5, 1.5, 24)
    fold, expected = fold_of(case.log.episode_keys, 2, 0), 0.0
    for k in range(2):
        inside = np.flatnonzero(fold == k)
        loops = Loops(case, tables, inside, weight, stationary)
        expected += weight[inside].sum() / weight.sum() * loops.value(level_sets(loops.levels()))
    estimate = fit(case, tables, weight, stationary=stationary, n_sweeps=200)
    assert estimate.value == pytest.approx(expected, rel=1e-7)
    assert estimate.horizon == (None if stationary else case.log.horizon)


# -------------------------------------------------------------------- identities


@every_end
def test_injective_predictions_give_tabular_lstdq(ends: tuple[str, ...]) -> None:
    """Of each fold, with one bin for each prediction."""
    case = random_case(6, n=150, n_states=2, n_actions=2, longest=4, ends=ends)
    steps = 1 if case.log.horizon is None else 4
    estimate = fit(case, tables_of(case, 3, steps), n_bins=1000)
    fold, expected = fold_of(case.log.episode_keys, 2, 0), 0.0
    for k in range(2):
        part = case.log.select(fold == k)
        own = LSTDQ(gamma=GAMMA, features="identity").fit(part, case.policy).estimate()
        expected += part.n_episodes / 150 * own.value
    assert estimate.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ends", [("terminal",), ("terminal", "truncated"), ("horizon",)], ids="-".join)
def test_level_sets_of_any_increasing_function_of_the_solution_give_tabular_lstdq(ends: tuple[str, ...]) -> None:
    case = random_case(7, n=80, n_states=2, n_actions=2, longest=3, ends=ends)
    model = maximum_likelihood(case, GAMMA)
    tables = np.exp(np.array(model.q)) - 5.0
    table = probe(
        GivenQ(gamma=GAMMA, tables=tables).fit_q(case.log, case.policy, np.ones(80)), case.policy, case.log, False, 1, 0
    )
    how = Binning(None, 1, 1000)
    calibration, solution, stats = calibrated_value(case.log, table, np.ones(80), GAMMA, how)
    assert calibration.settled
    assert calibration.bins.size == tables.size
    assert solution.value == pytest.approx(model.value, rel=1e-8)
    lstdq = LSTDQ(gamma=GAMMA, features="identity").fit(case.log, case.policy).estimate()
    np.testing.assert_allclose(stats.influence, influence_of(lstdq), atol=1e-8)


@pytest.mark.parametrize(("n_steps", "ends"), [(3, "truncated"), (3, "horizon")])
def test_a_distorted_true_q_function_gives_the_exact_value(n_steps: int, ends: str) -> None:
    problem = RandomMDP(n_states=2, n_actions=2, random_state=1, horizon=n_steps if ends == "horizon" else None)
    log, weight = exact_log(problem, n_steps, ends)
    tables = true_q(problem, GAMMA) ** 3 - 2.0
    policy, weight = TabularPolicy(problem.target), weight / weight.mean()
    q = GivenQ(gamma=GAMMA, tables=tables).fit_q(log, policy, weight)
    fit = calibrated_value(log, probe(q, policy, log, False, 1, 0), weight, GAMMA, Binning(None, 1, 1000))
    assert fit[1].value == pytest.approx(problem.value(problem.target, gamma=GAMMA), rel=1e-7)


# -------------------------------------------------------------------- influence and weights


@every_end
@pytest.mark.parametrize("settings", [{"n_sweeps": 60}, {"n_folds": 3, "n_bins": 1000, "min_episodes": 3}], ids=str)
def test_influence_is_the_jackknife(ends: tuple[str, ...], settings: dict[str, Any]) -> None:
    case = random_case(8, n=14, ends=ends)
    tables = tables_of(case, 4, 1 if case.log.horizon is None else 6)
    psi = influence_of(fit(case, tables, **settings))
    numeric = jackknife(lambda weight: fit(case, tables, weight, **settings).value, 14)
    np.testing.assert_allclose(psi, numeric, atol=1e-5 * np.abs(numeric).max())
    assert abs(psi.sum()) < 1e-10


def test_episodes_without_weight_are_as_if_they_were_not_there() -> None:
    case, n = random_case(9, n=60), 60
    tables, weight = tables_of(case), (np.random.default_rng(1).random(n) < 0.7).astype(float)
    kept = case._replace(log=case.log.select(weight > 0))
    assert fit(case, tables, weight, min_episodes=5).value == pytest.approx(fit(kept, tables, min_episodes=5).value)


def test_scattered_bins_are_merged_from_the_first_one_on() -> None:
    bins, episode = np.array([0, 1, 1, 2, 3, 3, 4]), np.array([7, 7, 8, 9, 9, 5, 5])
    assert merge_bins(bins, episode, 2).tolist() == [0, 0, 1, 1, 1]
    assert merge_bins(bins, episode, 50).tolist() == [0, 0, 0, 0, 0]


# -------------------------------------------------------------------- every kind of Q method and log


@pytest.mark.parametrize("kind", ["mixed", "horizon", "continuous", "deterministic"])
def test_probed_predictions_are_those_of_the_model(kind: str) -> None:
    case = make_case(kind)
    for q in (
        LSTDQ(gamma=GAMMA),
        FittedQEvaluation(gamma=GAMMA, regressor=DecisionTreeRegressor(max_depth=3), max_iter=3),
    ):
        model = q.fit_q(case.log, case.candidate, np.ones(case.log.n_episodes))
        expected = model.predict(case.candidate, case.log)
        table = probe(model, case.candidate, case.log, case.log.horizon is None, q.n_samples, q.random_state)
        np.testing.assert_allclose(table.q, expected.q, atol=1e-9)
        np.testing.assert_allclose(table.v, expected.v, atol=1e-9)
        v_final = np.einsum("nm,nm->n", table.final_weights, table.final_nodes)
        np.testing.assert_allclose(v_final, expected.v_final, atol=1e-9)


# -------------------------------------------------------------------- what it is for


def test_calibration_repairs_wrong_features_and_says_so() -> None:
    problem = RiverSwim(max_steps=20)
    case = sampled(problem, 400)
    truth = problem.value(problem.target, gamma=0.95)
    wrong = LSTDQ(features=POSITION, gamma=0.95)
    estimate = BellmanCalibrated(gamma=0.95, q=wrong).fit(case.log, case.policy).estimate()
    off = abs(estimate.diagnostics["q_value"] - truth)
    assert abs(estimate.value - truth) < 0.6 * off
    assert estimate.diagnostics["calibration_p"] < 1e-3
    assert estimate.diagnostics["calibration_shift"] == pytest.approx(estimate.value - estimate.diagnostics["q_value"])
    assert estimate.verdict.level is Level.CAUTION
    assert any("contradicts its own Bellman targets" in reason for reason in estimate.verdict.reasons)


def test_right_features_are_left_alone() -> None:
    problem = RiverSwim(max_steps=20)
    case = sampled(problem, 400)
    estimate = BellmanCalibrated(gamma=0.95).fit(case.log, case.policy).estimate()
    assert estimate.diagnostics["calibration_p"] > 1e-3
    assert not any("contradicts its own" in reason for reason in estimate.verdict.reasons)
    assert estimate.verdict.level is Level.CAUTION
    assert any("found on the very episodes" in reason for reason in estimate.verdict.reasons)
    low, high = estimate.confidence_interval()
    assert low <= problem.value(problem.target, gamma=0.95) <= high


# -------------------------------------------------------------------- calibration error


@every_end
def test_calibration_error_is_that_of_loops(ends: tuple[str, ...]) -> None:
    case = random_case(10, n=40, ends=ends)
    tables = tables_of(case, 5, 1 if case.log.horizon is None else 6)
    weight = np.random.default_rng(0).uniform(0.5, 1.5, 40)
    q = GivenQ(tables=tables)
    found = calibration_error(case.log, case.policy, q, gamma=GAMMA, n_bins=1, min_episodes=1, episode_weight=weight)
    sums, mass = np.zeros(40), np.zeros(40)
    for i, episode in enumerate(paths(case.log)):
        for t, (s, a, r) in enumerate(episode):
            last = t == len(episode) - 1
            follows = end_goes_on(case.log, i, False) if last else True
            target = r
            if follows:
                z = final_codes(case.log)[i] if last else episode[t + 1][0]
                target += GAMMA * float(case.pi[z] @ at_step(tables, t + 1)[z])
            sums[i] += weight[i] * (target - at_step(tables, t)[s, a])
            mass[i] += weight[i]
    error = sums.sum() / mass.sum()
    psi = 40 * (sums - mass * error) / mass.sum()
    assert found.error == pytest.approx([error])
    np.testing.assert_allclose(found.influence[:, 0], psi, atol=1e-10)
    assert found.std_error == pytest.approx([np.sqrt((psi**2).sum() / (40 * 39))])
    assert found.size == pytest.approx(abs(error))


def test_bins_of_the_error_hold_equal_numbers_in_the_order_of_the_predictions() -> None:
    case = sampled(RiverSwim(max_steps=20), 200)
    found = calibration_error(case.log, case.policy, LSTDQ(features=POSITION), gamma=0.95, n_bins=4)
    assert (np.diff(found.prediction) > 0).all()
    assert found.transitions.sum() == case.log.n_transitions
    assert found.p_value == pytest.approx(min(1.0, len(found.error) * found.p_values.min()))
    columns = ["prediction", "error", "std_error", "lasting", "lasting_std_error", "transitions", "episodes", "p_value"]
    assert list(found.to_frame().columns) == columns
    assert len(calibration_error(case.log, case.policy, gamma=0.95, min_episodes=100).error) == 2


def test_the_true_q_function_is_calibrated_and_a_shifted_one_is_not() -> None:
    problem = RiverSwim(max_steps=20)
    case, q = sampled(problem, 300), true_q(problem, 0.95)
    right = calibration_error(case.log, case.policy, GivenQ(tables=q), gamma=0.95)
    shifted = calibration_error(case.log, case.policy, GivenQ(tables=q + 1.0), gamma=0.95)
    assert right.p_value > 0.01
    assert shifted.p_value < 1e-6
    assert shifted.size == pytest.approx(0.05, abs=0.02)  # (1 - gamma) times the shift


class Learned(GivenQ):
    """A Q method that is off by as much as it says for the number of episodes it was fitted on."""

    def __init__(
        self, *, gamma: float | None = None, tables: Any = None, rate: float = 1.0, lasting: float = 0.0
    ) -> None:
        super().__init__(gamma=gamma, tables=tables)
        self.rate = rate
        self.lasting = lasting

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> QModel:
        off = self.lasting + self.rate / data.n_episodes
        return GivenQ(tables=np.asarray(self.tables) + off).fit_q(data, policy, episode_weight)


def test_lasting_errors_are_what_an_endless_log_would_leave() -> None:
    problem = RiverSwim(max_steps=20)
    case, q = sampled(problem, 400), true_q(problem, 0.95)
    noisy = Learned(tables=q, rate=100.0)
    settings: dict[str, Any] = {"gamma": 0.95, "n_folds": 2, "n_bins": 1}
    found = calibration_error(case.log, case.policy, noisy, **settings)
    true = calibration_error(case.log, case.policy, GivenQ(tables=q), **settings)
    # An offset c leaves gamma c - c of every target; folds are nearly halves, so that c and its double leave almost nothing.
    assert true.error[0] - found.error[0] == pytest.approx(0.05 * 100.0 / 200, rel=0.05)
    assert found.lasting[0] == pytest.approx(true.error[0], abs=2e-3)
    assert found.lasting_std_error[0] == pytest.approx(np.sqrt(2.0) * true.std_error[0], rel=0.02)
    wrong = calibration_error(case.log, case.policy, Learned(tables=q, rate=100.0, lasting=1.0), **settings)
    assert wrong.lasting[0] == pytest.approx(true.error[0] - 0.05, abs=2e-3)
    assert wrong.p_value < 1e-6


def test_too_few_episodes_to_halve_are_not_extrapolated() -> None:
    case = random_case(3, n=2)
    found = calibration_error(case.log, case.policy, GivenQ(tables=tables_of(case)), gamma=GAMMA, n_folds=2)
    assert found.lasting.tolist() == found.error.tolist()
    np.testing.assert_allclose(found.lasting_std_error, np.sqrt(2.0) * found.std_error)


def test_noise_of_right_features_is_no_calibration_error() -> None:
    """64 episodes of 20 steps with a value for each: cells are few, and the fitted Q is far off on episodes it has not seen."""
    case = sampled(RiverSwim(horizon=20), 64, seed=1)
    found = calibration_error(case.log, case.policy, gamma=1.0)
    plain = np.abs(found.error / found.std_error)
    assert plain.max() > 3.5
    assert found.p_value > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("problem", [RiverSwim(horizon=20), RiverSwim(max_steps=50), RandomMDP(horizon=5)], ids=str)
def test_right_features_are_rejected_as_often_as_the_level_says(problem: Any) -> None:
    gamma = problem.default_gamma
    rejected = [
        calibration_error(case.log, case.policy, gamma=gamma).p_value < 0.05
        for case in (sampled(problem, 128, seed=seed) for seed in range(100))
    ]
    assert np.mean(rejected) < 0.05 + 3.0 * np.sqrt(0.05 * 0.95 / 100)


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_folds": 1}, "n_folds"),
        ({"n_bins": 0}, "n_bins"),
        ({"min_episodes": 0}, "min_episodes"),
        ({"n_sweeps": 0}, "n_sweeps"),
        ({"n_samples": 0}, "n_samples"),
        ({"random_state": -1}, "random_state"),
    ],
)
def test_bad_parameters_are_named(settings: dict[str, Any], words: str) -> None:
    case = random_case(0)
    with pytest.raises(ValueError, match=words):
        fit(case, tables_of(case), **settings)


def test_bad_models_are_named() -> None:
    case = random_case(0)
    with pytest.raises(TypeError, match="Q-based estimator"):
        BellmanCalibrated(gamma=GAMMA, q=PerDecisionIS()).fit(case.log, case.policy)
    with pytest.raises(TypeError, match="Q-based estimator"):
        calibration_error(case.log, case.policy, PerDecisionIS(), gamma=GAMMA)
    with pytest.raises(ValueError, match="n_bins"):
        calibration_error(case.log, case.policy, gamma=GAMMA, n_bins=0)
    with pytest.raises(ValueError, match="which diverged"):
        fit(case, np.full((1, *case.pi.shape), np.inf))
    fold = fold_of(case.log.episode_keys, 2, 0)
    with pytest.raises(ValueError, match="positive weight"):
        fit(case, tables_of(case), (fold == 0).astype(float))


def test_a_log_without_propensities_will_do() -> None:
    case = random_case(0)
    log: LoggedDataset = case.log.replace(behavior_log_prob=None)
    assert fit(case._replace(log=log), tables_of(case)).value == fit(case, tables_of(case)).value


def test_a_log_without_targets_is_refused_in_words() -> None:
    log = LoggedDataset.from_arrays(
        np.eye(2)[[0, 1] * 4], [0, 1] * 4, [1.0] * 8, lengths=[1] * 8, ends="horizon", behavior_prob=[0.5] * 8
    )
    policy, q = TabularPolicy([[0.5, 0.5]] * 2), LSTDQ(stationary=True)
    words = "`data` must hold a transition whose next state is known or terminal, got none in 8"
    with pytest.raises(ValueError, match=f"BellmanCalibrated.fit: {words}"):
        BellmanCalibrated(gamma=0.9, q=q, n_folds=2).fit(log, policy)
    with pytest.raises(ValueError, match=f"calibration_error: {words}"):
        calibration_error(log, policy, q, gamma=0.9, n_folds=2)
