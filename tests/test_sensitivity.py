"""Paths of refits against refits by hand; bounds under confounding against enumeration, linear programs and a confounded process."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog

from ope import End, Level, LoggedDataset
from ope.estimators import LSTDQ, DoublyRobust, FittedQEvaluation, ImportanceSampling, PerDecisionIS, WeightedIS
from ope.inference import resampling_weights
from ope.inference.intervals import expanded_tail
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import ModelWin, RandomMDP
from ope.returns import return_distribution
from ope.sensitivity import SensitivityPath, clip_path, confounding_path, gamma_path, horizon_path
from ope.sensitivity.cut import cut_episodes
from ope.sensitivity.program import Program, WeightedLog, bound_influence, extremes, programs, value_bounds
from ope.validation import FloatArray

ODDS = (1.0, 1.2, 2.0)


@pytest.fixture(scope="module")
def problem() -> RandomMDP:
    return RandomMDP(horizon=4, random_state=3)


@pytest.fixture(scope="module")
def log(problem: RandomMDP) -> LoggedDataset:
    return problem.sample(200, random_state=0)


@pytest.fixture(scope="module")
def policy(problem: RandomMDP) -> TabularPolicy:
    return TabularPolicy(problem.target)


def ragged_log(seed: int, lengths: list[int], ends: Any = "terminal", **more: Any) -> LoggedDataset:
    g = np.random.default_rng(seed)
    n = sum(lengths)
    b = g.uniform(0.2, 0.9, n)
    b[0] = 1.0  # a step in which the logged policy had no choice
    return LoggedDataset.from_arrays(
        g.normal(size=(n, 1)), g.integers(2, size=n), g.normal(size=n).round(1), lengths=lengths, ends=ends,
        behavior_prob=b, action_labels=[0, 1], **more,
    )  # fmt: skip


def at(frame: pd.DataFrame, position: int) -> dict[Any, Any]:
    return frame.to_dict("records")[position]


def steady_policy(p: float) -> FunctionPolicy:
    return FunctionPolicy(predict_proba=lambda states: np.tile([1.0 - p, p], (len(states), 1)), action_labels=[0, 1])


# -------------------------------------------------------------------- one fractional program


def random_program(seed: int, n: int) -> Program:
    g = np.random.default_rng(seed)
    low = g.normal(size=n)
    high = low + g.choice([0.0, 0.5, 2.0], size=n)
    dead = g.random(n) < 0.2
    dead[g.integers(n)] = False
    scores = g.normal(size=n).round(int(g.integers(0, 3)))  # ties at times
    return Program(np.where(dead, -np.inf, low), np.where(dead, -np.inf, high), scores)


def ratio(w: FloatArray, c: FloatArray, x: FloatArray) -> float:
    return float(np.sum(w * c * x) / np.sum(w * c))


def plain_thresholds(program: Program, c: FloatArray) -> tuple[float, float]:
    """Try every threshold, one at a time."""
    low, high, x = np.exp(program.log_low), np.exp(program.log_high), program.scores
    cuts = [-np.inf, *sorted(set(x.tolist()))]
    least = min(ratio(np.where(x <= cut, high, low), c, x) for cut in cuts)
    return least, max(ratio(np.where(x <= cut, low, high), c, x) for cut in cuts)


@pytest.mark.parametrize("seed", range(12))
def test_extremes_are_those_of_all_vertices(seed: int) -> None:
    program, g = random_program(seed, 7), np.random.default_rng(seed)
    counts = g.exponential(size=(3, 7))
    low, high = extremes(program, counts)
    choices = [np.exp([lo, hi]) for lo, hi in zip(program.log_low, program.log_high, strict=True)]
    for b, c in enumerate(counts):
        values = [ratio(np.array(w), c, program.scores) for w in itertools.product(*choices)]
        assert low[b] == pytest.approx(min(values), rel=1e-12, abs=1e-12)
        assert high[b] == pytest.approx(max(values), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_extremes_are_those_of_the_linear_program(seed: int) -> None:
    # Charnes and Cooper: y = tau w with sum c y = 1 makes the ratio linear.
    program, c = random_program(seed, 15), np.random.default_rng(seed).exponential(size=15)
    w_low, w_high, x = np.exp(program.log_low), np.exp(program.log_high), program.scores
    above = np.hstack([np.eye(15), -w_high[:, None]])
    below = np.hstack([-np.eye(15), w_low[:, None]])
    ends = []
    for sign in (1.0, -1.0):
        done = linprog(
            np.append(sign * c * x, 0.0), A_ub=np.vstack([above, below]), b_ub=np.zeros(30),
            A_eq=np.append(c, 0.0)[None], b_eq=[1.0], bounds=[(0, None)] * 16, method="highs",
        )  # fmt: skip
        ends.append(sign * done.fun)
    low, high = extremes(program, c[None])
    assert [low[0], high[0]] == pytest.approx(ends, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize(("seed", "n"), [(0, 1), (1, 2), (2, 30), (3, 200), (4, 1000)])
def test_extremes_of_many_episodes_are_those_of_all_thresholds(seed: int, n: int) -> None:
    program, counts = random_program(seed, n), np.random.default_rng(seed).exponential(size=(20, n))
    counts[3] *= np.where(program.scores > 0, 50.0, 1.0)  # a resample whose threshold is far from the others'
    low, high = extremes(program, counts)
    expected = [plain_thresholds(program, c) for c in counts]
    assert np.column_stack([low, high]) == pytest.approx(np.array(expected), rel=1e-11, abs=1e-12)


def test_extremes_without_weights_or_freedom() -> None:
    nothing = Program(np.full(2, -np.inf), np.full(2, -np.inf), np.array([1.0, 2.0]))
    assert all(np.isnan(extremes(nothing, np.ones((1, 2)))).ravel())
    fixed = Program(np.log([1.0, 3.0]), np.log([1.0, 3.0]), np.array([0.0, 1.0]))
    assert [end[0] for end in extremes(fixed, np.ones((1, 2)))] == pytest.approx([0.75, 0.75])
    # exp(1000) is no float; only the ratio of weights counts.
    far = Program(np.array([0.0, 1000.0]), np.array([2.0, 1002.0]), np.array([0.0, 1.0]))
    assert [end[0] for end in extremes(far, np.ones((1, 2)))] == pytest.approx([1.0, 1.0])


# -------------------------------------------------------------------- trajectories


def weighted_log(
    data: LoggedDataset, log_ratio: FloatArray, *, per_decision: bool, confounded: Any = None
) -> WeightedLog:
    every = np.ones(data.n_transitions, dtype=bool)
    return WeightedLog(
        log_ratio, data.behavior_log_prob, data.rewards, data.offsets, every if confounded is None else confounded,
        np.zeros(data.n_episodes), per_decision,
    )  # fmt: skip


def plain_values(data: LoggedDataset, rho: FloatArray, lambdas: tuple[float, ...]) -> tuple[float, list[float]]:
    """Return self-normalised trajectory IS and the means of all steps, with one multiplier per row."""
    episodes = [range(i, j) for i, j in zip(data.offsets[:-1], data.offsets[1:], strict=True)]
    horizon = max(map(len, episodes))
    total, weight, steps = 0.0, 0.0, []
    for rows in episodes:
        w = math.prod(rho[k] * lambdas[k] for k in rows)
        total, weight = total + w * sum(data.rewards[k] for k in rows), weight + w
    for t in range(horizon):
        top = bottom = 0.0
        for rows in episodes:
            w = math.prod(rho[k] * lambdas[k] for k in rows[: t + 1])
            top, bottom = top + (w * data.rewards[rows[t]] if t < len(rows) else 0.0), bottom + w
        steps.append(top / bottom)
    return total / weight, steps


@pytest.mark.parametrize("seed", range(3))
def test_bounds_of_trajectories_are_those_of_all_multipliers(seed: int) -> None:
    data = ragged_log(seed, [3, 1, 2, 2])
    assert data.behavior_log_prob is not None
    b, g = np.exp(data.behavior_log_prob), np.random.default_rng(seed)
    rho, gamma_odds = g.uniform(0.3, 2.0, len(b)), 1.7
    choices = [(p + (1 - p) / gamma_odds, p + (1 - p) * gamma_odds) for p in b]
    found = [plain_values(data, rho, lambdas) for lambdas in itertools.product(*choices)]
    ones = np.ones((1, 4))

    whole = value_bounds(weighted_log(data, np.log(rho), per_decision=False), gamma_odds, ones)
    values = [value for value, _ in found]
    assert [whole[0][0], whole[1][0]] == pytest.approx([min(values), max(values)], rel=1e-12)

    steps = np.array([means for _, means in found])
    apart = value_bounds(weighted_log(data, np.log(rho), per_decision=True), gamma_odds, ones)
    assert apart[0][0] == pytest.approx(steps.min(axis=0).sum(), rel=1e-12)
    assert apart[1][0] == pytest.approx(steps.max(axis=0).sum(), rel=1e-12)
    # Steps that share their multipliers reach less: the bounds hold, and are not the narrowest.
    assert apart[0][0] < steps.sum(axis=1).min() < steps.sum(axis=1).max() < apart[1][0]


def test_one_step_is_the_same_in_both_forms() -> None:
    data = ragged_log(5, [1] * 9)
    rho = np.log(np.random.default_rng(1).uniform(0.3, 2.0, 9))
    ends = [value_bounds(weighted_log(data, rho, per_decision=form), 1.5, np.ones((1, 9))) for form in (True, False)]
    assert np.ravel(ends[0]) == pytest.approx(np.ravel(ends[1]), rel=1e-12)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("per_decision", [False, True])
def test_bounds_hold_the_truth_of_a_confounded_process(persistent: bool, per_decision: bool) -> None:
    # u, unseen, makes action 1 more likely (.7, .3) and pays for it; the log sees probability .5 of each action.
    b, pi = {0: 0.3, 1: 0.7}, 0.8
    truth, chances, rows = 0.0, [], []
    for u in itertools.product((0, 1), repeat=2):
        if persistent and u[0] != u[1]:
            continue
        p_u = 0.5 if persistent else 0.25
        for a in itertools.product((0, 1), repeat=2):
            reward = [u[0] * a[0] - 0.3 * a[0], (u[1] + 0.5 * u[0]) * a[1] - a[0] * 0.2]
            logged = math.prod(b[v] if x else 1 - b[v] for v, x in zip(u, a, strict=True))
            wanted = math.prod(pi if x else 1 - pi for x in a)
            truth += p_u * wanted * sum(reward)
            chances.append(p_u * logged)
            rows.append((a, reward))
    actions, rewards = (np.array([row[i] for row in rows]).ravel() for i in (0, 1))
    data = LoggedDataset.from_arrays(
        np.ones((len(actions), 1)), actions, rewards, lengths=[2] * len(rows), ends="horizon",
        behavior_prob=np.full(len(actions), 0.5),
    )  # fmt: skip
    rho = np.log(np.where(actions == 1, pi, 1 - pi) / 0.5)
    logs, counts = weighted_log(data, rho, per_decision=per_decision), np.array(chances)[None]
    strength = (0.7 / 0.3) / (0.5 / 0.5)
    low, high = value_bounds(logs, strength, counts)
    assert low[0] < truth < high[0]
    naive = value_bounds(logs, 1.0, counts)
    assert naive[0][0] == pytest.approx(naive[1][0])
    assert abs(naive[0][0] - truth) > 0.1


def test_the_sharp_bounds_of_one_step_lie_inside() -> None:
    # Dorn and Guo: within each action the multipliers have mean 1, and the least mean is a mixture of mean and lower tail.
    g, odds, b, pi = np.random.default_rng(0), 2.0, {0: 0.4, 1: 0.6}, {0: 0.1, 1: 0.9}
    n = {0: 400, 1: 600}
    rewards = {a: np.sort(g.normal(size=n[a])) for a in (0, 1)}
    sharp = 0.0
    for a in (0, 1):
        low, high = b[a] + (1 - b[a]) / odds, b[a] + (1 - b[a]) * odds
        n_high = round(n[a] * (1 - low) / (high - low))
        multipliers = np.where(np.arange(n[a]) < n_high, high, low)
        sharp += pi[a] * float(np.mean(multipliers / multipliers.mean() * rewards[a]))
    actions = np.repeat([0, 1], [n[0], n[1]])
    data = LoggedDataset.from_arrays(
        np.ones((1000, 1)), actions, np.concatenate([rewards[0], rewards[1]]), lengths=[1] * 1000, ends="terminal",
        behavior_prob=np.where(actions == 1, 0.6, 0.4),
    )  # fmt: skip
    rho = np.log(np.where(actions == 1, 0.9 / 0.6, 0.1 / 0.4))
    low_bound, _ = value_bounds(weighted_log(data, rho, per_decision=True), odds, np.ones((1, 1000)))
    assert low_bound[0] < sharp < low_bound[0] + 0.1


def test_continuous_actions_have_densities_within_the_ratio() -> None:
    data = LoggedDataset.from_arrays(
        np.zeros((3, 1)), [[0.1], [0.2], [-0.3]], [1.0, 2.0, 4.0], lengths=[1, 1, 1], ends="terminal",
        behavior_prob=[0.5, 0.4, 0.3],
    )  # fmt: skip
    policy = GaussianPolicy(mean=lambda states: np.zeros((len(states), 1)), std=1.0)
    frame = confounding_path(data, policy, gamma=1.0, odds_ratios=[2.0], baseline=None, n_replicates=40).frame
    w = np.exp(-np.square([0.1, 0.2, 0.3]) / 2) / math.sqrt(2 * math.pi) / [0.5, 0.4, 0.3]
    choices = itertools.product((0.5, 2.0), repeat=3)
    values = [ratio(w * np.array(c), np.ones(3), np.array([1.0, 2.0, 4.0])) for c in choices]
    assert [at(frame, 0)["bound_low"], at(frame, 0)["bound_high"]] == pytest.approx([min(values), max(values)])


@pytest.mark.parametrize("per_decision", [True, False])
def test_influence_of_the_bounds_is_the_jackknife(per_decision: bool) -> None:
    data = ragged_log(3, [3, 1, 2, 2, 1, 3])
    rho = np.log(np.random.default_rng(3).uniform(0.3, 2.0, data.n_transitions))
    logs = weighted_log(data, rho, per_decision=per_decision)._replace(tail=np.array([0.0, 2.0, 0.0, 1.0, 0.0, 0.0]))
    psi = np.array(bound_influence(logs, 1.7))
    step, expected = 1e-5, np.empty((2, 6))
    for i in range(6):
        counts = np.ones((2, 6)) + step * np.array([[1.0], [-1.0]]) * (np.arange(6) == i)
        low, high = value_bounds(logs, 1.7, counts)
        expected[:, i] = 6 * np.array([low[0] - low[1], high[0] - high[1]]) / (2 * step)
    assert psi == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_many_episodes_are_resampled_by_influence(
    log: LoggedDataset, policy: TabularPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = confounding_path(log, policy, gamma=1.0, odds_ratios=[1.0, 1.2]).frame
    monkeypatch.setattr("ope.sensitivity.confounding.EXACT_RESAMPLES", 0)
    linear = confounding_path(log, policy, gamma=1.0, odds_ratios=[1.0, 1.2]).frame
    for column in ("low", "high", "difference_low", "difference_high"):
        width = (exact["high"] - exact["low"]).to_numpy()
        gap = (linear[column] - exact[column]).abs().to_numpy()
        assert (gap > 0.0).all()
        assert (gap < 0.1 * width).all()


# -------------------------------------------------------------------- the path


@pytest.mark.parametrize("per_decision", [True, False])
def test_without_confounding_it_is_weighted_is(log: LoggedDataset, policy: TabularPolicy, per_decision: bool) -> None:
    path = confounding_path(log, policy, gamma=0.9, odds_ratios=ODDS, per_decision=per_decision, n_replicates=40)
    estimate = WeightedIS(gamma=0.9, per_decision=per_decision).fit(log, policy).estimate()
    frame = path.frame
    assert [at(frame, 0)["bound_low"], at(frame, 0)["bound_high"]] == pytest.approx([estimate.value] * 2, rel=1e-12)
    assert (frame["value"] == estimate.value).all()
    assert (frame["verdict"] == estimate.verdict.level.name).all()
    for column in ("bound_low", "low", "difference_low"):
        assert frame[column].is_monotonic_decreasing
    for column in ("bound_high", "high", "difference_high"):
        assert frame[column].is_monotonic_increasing
    assert (frame["low"] < frame["bound_low"]).all()
    assert (frame["high"] > frame["bound_high"]).all()


def test_bands_are_quantiles_of_resampled_bounds(log: LoggedDataset, policy: TabularPolicy) -> None:
    part, odds, count = log.select(slice(0, 40)), 1.3, 200
    path = confounding_path(part, policy, gamma=1.0, odds_ratios=[odds], n_replicates=count, random_state=7, level=0.9)
    logs = weighted_log(part, _log_ratio(part, policy), per_decision=True)
    low, high, mean = [], [], []
    for b in range(count):
        c = resampling_weights(part.episode_keys, 1, seed=7, start=b)[0]
        ends = [plain_thresholds(program, c) for program in programs(logs, odds)]
        low.append(sum(end[0] for end in ends))
        high.append(sum(end[1] for end in ends))
        mean.append(sum(c[i] * part.rewards[4 * i : 4 * i + 4].sum() for i in range(40)) / c.sum())
    tail = expanded_tail(0.05, 39, 41 / 39)
    row = at(path.frame, 0)
    assert row["low"] == pytest.approx(np.quantile(low, tail, method="weibull"), rel=1e-9)
    assert row["high"] == pytest.approx(np.quantile(high, 1 - tail, method="weibull"), rel=1e-9)
    gain = np.subtract(low, mean)
    assert row["difference_low"] == pytest.approx(np.quantile(gain, tail, method="weibull"), rel=1e-9)
    returns = part.rewards.reshape(40, 4).sum(axis=1)
    assert row["difference"] == pytest.approx(row["value"] - returns.mean())


def _log_ratio(data: LoggedDataset, policy: TabularPolicy) -> FloatArray:
    table, codes = np.asarray(policy.probs), data.states.argmax(axis=1)
    assert data.behavior_log_prob is not None
    return np.asarray(np.log(table[codes, data.actions]) - data.behavior_log_prob)


def test_only_the_confounded_steps_move(log: LoggedDataset, policy: TabularPolicy) -> None:
    options: dict[str, Any] = {"gamma": 1.0, "odds_ratios": [1.5], "n_replicates": 40, "baseline": None}
    first = confounding_path(log, policy, confounded_steps=[0], **options)
    every = at(confounding_path(log, policy, **options).frame, 0)
    row = at(first.frame, 0)
    assert every["bound_low"] < row["bound_low"] < row["value"] < row["bound_high"] < every["bound_high"]
    mask = np.tile([True, False, False, False], log.n_episodes)
    logs = weighted_log(log, _log_ratio(log, policy), per_decision=True, confounded=mask)
    expected = value_bounds(logs, 1.5, np.ones((1, log.n_episodes)))
    assert [row["bound_low"], row["bound_high"]] == pytest.approx([expected[0][0], expected[1][0]], rel=1e-12)
    assert "in step 0 only" in first.summary()


def test_a_truncated_tail_widens_the_bounds() -> None:
    data = ragged_log(
        2, [2, 3, 2], ["truncated", "terminal", "terminal"], final_states=np.zeros((3, 1)), reward_range=(-3.0, 3.0)
    )
    candidate = steady_policy(0.5)
    frame = confounding_path(data, candidate, gamma=0.5, odds_ratios=[1.0], n_replicates=40, baseline=None).frame
    assert data.behavior_log_prob is not None
    w = [math.prod(0.5 / np.exp(data.behavior_log_prob[i:j])) for i, j in ((0, 2), (2, 5), (5, 7))]
    tail = w[0] / sum(w) * 0.5**2 * 3.0 / (1 - 0.5)
    assert at(frame, 0)["bound_high"] == pytest.approx(at(frame, 0)["value"] + tail)
    assert at(frame, 0)["bound_low"] == pytest.approx(at(frame, 0)["value"] - tail)
    with pytest.raises(ValueError, match="1 episodes are truncated, and with gamma 1 and no horizon"):
        confounding_path(data, candidate, gamma=1.0)


# -------------------------------------------------------------------- the decision


def test_the_flip_is_where_the_gain_reaches_the_margin(log: LoggedDataset, policy: TabularPolicy) -> None:
    value = WeightedIS(gamma=1.0).fit(log, policy).estimate().value
    options: dict[str, Any] = {"gamma": 1.0, "n_replicates": 100, "baseline": value - 0.8, "margin": 0.1}
    path = confounding_path(log, policy, odds_ratios=[1.0, 1.5, 3.0], **options)
    flip, by_point = path.flip_odds_ratio, path.flip_odds_ratio_point
    assert flip is not None
    assert by_point is not None
    assert 1.0 < flip < by_point < 3.0
    around = confounding_path(log, policy, odds_ratios=[flip / 1.003, flip], **options).frame["difference_low"]
    assert around[0] > 0.1 >= around[1]
    near = confounding_path(log, policy, odds_ratios=[by_point / 1.003, by_point], **options).frame["bound_low"]
    assert near[0] - (value - 0.8) > 0.1 >= near[1] - (value - 0.8)
    assert f"by a factor of {flip:.3f} or more ({by_point:.3f} with" in path.conclusion
    assert "beat the value" in path.conclusion
    assert "by 0.1" in path.conclusion


def test_decisions_that_never_or_always_hold(log: LoggedDataset, policy: TabularPolicy) -> None:
    options: dict[str, Any] = {"gamma": 1.0, "odds_ratios": [1.1, 1.5], "n_replicates": 60}
    never = confounding_path(log, policy, baseline=100.0, **options)
    assert (never.flip_odds_ratio, never.flip_odds_ratio_point) == (1.0, 1.0)
    assert never.conclusion.startswith("Even without unobserved confounding it is not shown to beat the value 100")
    always = confounding_path(log, policy, baseline=-100.0, **options)
    assert always.flip_odds_ratio == always.flip_odds_ratio_point == math.inf
    assert "by a factor of at most 1.5" in always.conclusion
    without = confounding_path(log, policy, baseline=None, **options)
    assert without.flip_odds_ratio is None
    assert without.frame["difference"].isna().all()
    assert without.conclusion.startswith("With odds of the logged actions off by a factor of up to 1.5")


def test_nothing_is_concluded_from_a_refused_value() -> None:
    rng, n = np.random.default_rng(1), 40
    actions = (rng.random(n) < 0.06).astype(int)
    probs = np.where(actions == 1, 0.06, 0.94)
    few = LoggedDataset.from_arrays(
        np.ones((n, 1)), actions, actions + 0.1 * rng.random(n), lengths=[1] * n, ends="terminal", behavior_prob=probs
    )
    rare, common = TabularPolicy([[0.1, 0.9]]), TabularPolicy([[0.9, 0.1]])
    options: dict[str, Any] = {"gamma": 1.0, "odds_ratios": [1.0, 1.5], "n_replicates": 40}
    nominal = WeightedIS(gamma=1.0).fit(few, rare).estimate()
    assert nominal.verdict.level == Level.REFUSE
    for baseline, asked in (
        ("logged", "whether it beats the logged policy:"),
        (-5.0, "whether it beats the value -5:"),
        (None, "what it is worth:"),
    ):
        path = confounding_path(few, rare, baseline=baseline, **options)
        assert (path.flip_odds_ratio, path.flip_odds_ratio_point) == (None, None)
        assert path.conclusion.startswith(f"The log cannot answer {asked}")
        assert "its own value is refused" in path.conclusion
        assert nominal.verdict.reasons[0] in path.conclusion
    for refused, words in ((rare, "the policy TabularPolicy, at its"), (nominal, "the estimate of TabularPolicy")):
        against = confounding_path(few, common, baseline=refused, margin=-50.0, **options)
        assert set(against.frame["verdict"]) != {"REFUSE"}
        assert against.flip_odds_ratio is None
        assert f"the value of {words}" in against.conclusion


def test_baselines(log: LoggedDataset, policy: TabularPolicy, problem: RandomMDP) -> None:
    options: dict[str, Any] = {"gamma": 1.0, "odds_ratios": ODDS, "n_replicates": 60}
    logged = confounding_path(log, policy, **options)
    mean = log.rewards.reshape(-1, 4).sum(axis=1).mean()
    expected = logged.frame["bound_low"] - mean
    assert (logged.frame["difference_low"] < expected).all()
    assert at(logged.frame, 0)["difference"] == pytest.approx(at(logged.frame, 0)["value"] - mean)
    # An estimate of the logged policy by its own ratios of 1 says the same.
    own = PerDecisionIS(gamma=1.0).fit(log, TabularPolicy(problem.behavior)).estimate()
    again = confounding_path(log, policy, baseline=own, **options)
    pd.testing.assert_series_equal(again.frame["difference_low"], logged.frame["difference_low"])
    # Another policy is bounded too, at its largest value.
    other = confounding_path(log, policy, baseline=TabularPolicy(problem.behavior), **options).frame
    assert at(other, 0)["difference"] == pytest.approx(at(logged.frame, 0)["difference"])
    assert at(other, 2)["difference_low"] < at(logged.frame, 2)["difference_low"]


def test_words_know_where_the_propensities_come_from(log: LoggedDataset, policy: TabularPolicy) -> None:
    from ope import estimate_behavior

    options: dict[str, Any] = {"gamma": 1.0, "odds_ratios": [1.0, 1.1], "n_replicates": 40, "name": "bold"}
    known = confounding_path(log, policy, **options)
    assert "The propensities were recorded" in known.summary()
    blind = estimate_behavior(log.replace(behavior_log_prob=None, behavior_source=None))
    assert "The propensities were estimated" in confounding_path(blind, policy, **options).summary()
    assert known.summary().startswith("WeightedIS of bold along odds ratio: It is shown to beat the logged policy")
    assert "At every setting, " in known.summary()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"odds_ratios": [0.9]}, ValueError, "`odds_ratios` must be finite numbers of at least 1"),
        ({"odds_ratios": []}, ValueError, "`odds_ratios` must be at least one number"),
        ({"odds_ratios": [1.5, 1.5]}, ValueError, "each once"),
        ({"odds_ratios": ["2"]}, TypeError, "`odds_ratios`"),
        ({"gamma": 1.5}, ValueError, "`gamma` must be in"),
        ({"level": 1.0}, ValueError, "`level` must"),
        ({"margin": math.nan}, ValueError, "`margin` must"),
        ({"n_replicates": 0}, ValueError, "`n_replicates` must"),
        ({"confounded_steps": [4]}, ValueError, "`confounded_steps` must name steps from 0 to 3"),
        ({"confounded_steps": []}, ValueError, "`confounded_steps` must name"),
        ({"baseline": "target"}, TypeError, "`baseline` must be 'logged', a finite number"),
    ],
)
def test_bad_parameters_of_confounding(
    log: LoggedDataset, policy: TabularPolicy, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        confounding_path(log, policy, **{"gamma": 1.0, **options})


def test_bad_logs_of_confounding(log: LoggedDataset, policy: TabularPolicy) -> None:
    other = WeightedIS(gamma=0.5).fit(log, policy).estimate()
    with pytest.raises(ValueError, match=r"on the same episodes with gamma 1, got one with gamma 0\.5;"):
        confounding_path(log, policy, gamma=1.0, baseline=other)
    risk = return_distribution(log, policy, gamma=1.0, n_replicates=100).cvar(0.1)
    with pytest.raises(ValueError, match=r"`baseline` must be the value of a policy.*'lower_cvar\(0\.1\)'"):
        confounding_path(log, policy, gamma=1.0, baseline=risk)
    with pytest.raises(ValueError, match="must hold propensities"):
        confounding_path(log.replace(behavior_log_prob=None, behavior_source=None), policy, gamma=1.0)
    part = ragged_log(0, [1, 1])
    never = FunctionPolicy(predict=lambda states: np.full(len(states), 1), action_labels=[0, 1])
    lost = part.replace(actions=np.zeros(2, dtype=part.actions.dtype))
    with pytest.raises(ValueError, match="must have a value without confounding"):
        confounding_path(lost, never, gamma=1.0)


# -------------------------------------------------------------------- refits


def test_clip_path_is_a_series_of_paired_refits(log: LoggedDataset, policy: TabularPolicy) -> None:
    path = clip_path(WeightedIS(gamma=0.9), log, policy, clips=[None, 2.0, 0.5], level=0.9, name="bold")
    base = WeightedIS(gamma=0.9).fit(log, policy).estimate()
    assert path.frame["parameter"].tolist() == [0.5, 2.0, math.inf]
    for row, clip in zip(path.frame.to_dict("records"), (0.5, 2.0, None), strict=True):
        estimate = WeightedIS(gamma=0.9, clip=clip).fit(log, policy).estimate()
        low, high = estimate.confidence_interval(0.9)
        gap = (estimate - base).confidence_interval(0.9)
        assert [row["value"], row["low"], row["high"]] == pytest.approx([estimate.value, low, high])
        expected = [estimate.value - base.value, gap.low, gap.high]
        assert [row["difference"], row["difference_low"], row["difference_high"]] == pytest.approx(expected)
        assert row["verdict"] == estimate.verdict.level.name
    assert repr(path) == "SensitivityPath(clip, WeightedIS of bold, 3 settings)"
    assert "Differences are to the estimator as given, clip=None." in path.summary()


def test_clip_path_says_where_it_matters(log: LoggedDataset, policy: TabularPolicy) -> None:
    moved = clip_path(ImportanceSampling(gamma=1.0), log, policy, clips=[0.01, None])
    assert "It moves by more than sampling error at clip 0.01:" in moved.conclusion
    steady = clip_path(ImportanceSampling(gamma=1.0), log, policy, clips=[1e6])
    assert "At no setting does it move by more than sampling error" in steady.conclusion


def test_gamma_path_takes_nested_estimators_along(log: LoggedDataset, policy: TabularPolicy) -> None:
    estimator = DoublyRobust(gamma=1.0, q=LSTDQ(gamma=1.0))
    path = gamma_path(estimator, log, policy, gammas=[0.5, 1.0], method="normal")
    for row, gamma in zip(path.frame.to_dict("records"), (0.5, 1.0), strict=True):
        assert row["value"] == DoublyRobust(gamma=gamma, q=LSTDQ()).fit(log, policy).estimate().value
    half = DoublyRobust(gamma=0.5, q=LSTDQ()).fit(log, policy).estimate()
    whole = estimator.fit(log, policy).estimate()
    assert half.influence is not None
    assert whole.influence is not None
    psi = half.influence - whole.influence
    error = math.sqrt(np.sum(psi**2) / (log.n_episodes * (log.n_episodes - 1)))
    width = at(path.frame, 0)["difference_high"] - at(path.frame, 0)["difference_low"]
    assert width == pytest.approx(2 * 1.971956544 * error, rel=1e-6)
    assert estimator.gamma == 1.0
    assert at(path.frame, 1)["difference"] == 0.0


def test_horizon_path_values_the_first_steps(log: LoggedDataset, policy: TabularPolicy, problem: RandomMDP) -> None:
    path = horizon_path(WeightedIS(gamma=0.9), log, policy, horizons=[1, 3, 4])
    w = np.exp(np.cumsum(_log_ratio(log, policy).reshape(-1, 4), axis=1))
    steps = 0.9 ** np.arange(4) * (w * log.rewards.reshape(-1, 4)).sum(axis=0) / w.sum(axis=0)
    assert path.frame["value"].tolist() == pytest.approx([steps[:1].sum(), steps[:3].sum(), steps.sum()], rel=1e-12)
    # A model of the first steps converges to the value of the shorter problem.
    many = problem.sample(20_000, random_state=1)
    short = RandomMDP(horizon=2, random_state=3)
    assert np.array_equal(short.target, problem.target)
    found = at(horizon_path(LSTDQ(gamma=0.9), many, policy, horizons=[2]).frame, 0)
    assert abs(found["value"] - short.value(policy, gamma=0.9)) < 4 * found["std_error"]


def test_truncation_asks_the_old_question_of_a_shorter_recording() -> None:
    problem = RandomMDP(random_state=3, max_steps=30)
    log, policy = problem.sample(300, random_state=0), TabularPolicy(problem.target)
    estimator = LSTDQ(gamma=0.8)
    path = horizon_path(estimator, log, policy, horizons=[10, 30], cut="truncation")
    cut = cut_episodes(log, 10, End.TRUNCATED)
    assert at(path.frame, 0)["value"] == estimator.fit(cut, policy).estimate().value
    assert at(path.frame, 1)["difference"] == 0.0
    assert at(path.frame, 0)["difference_low"] < 0.0 < at(path.frame, 0)["difference_high"]
    with pytest.raises(ValueError, match="reports the value of an infinite horizon; set stationary=False"):
        horizon_path(LSTDQ(gamma=0.8, stationary=True), log, policy, horizons=[10])


def test_a_setting_that_fails_is_a_row_that_says_why(log: LoggedDataset, policy: TabularPolicy) -> None:
    estimator = FittedQEvaluation(gamma=0.8, loss="mrdr")
    path = horizon_path(estimator, log, policy, horizons=[2, 4], cut="truncation")
    assert path.frame["value"].isna().tolist() == [True, False]
    assert path.frame["verdict"].tolist()[0] == "REFUSE"
    assert (
        "At horizon 2, REFUSE: ValueError: FittedQEvaluation.fit: loss='mrdr' must have complete episodes"
        in path.summary()
    )
    none = horizon_path(estimator, log, policy, horizons=[2], cut="truncation")
    assert none.conclusion.startswith("No setting of horizon gives a value")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d, p: clip_path(LSTDQ(gamma=1.0), d, p, [1.0]), TypeError, "must have a parameter `clip`, got LSTDQ"),
        (lambda d, p: clip_path(WeightedIS(gamma=1.0), d, p, [0.0]), ValueError, "`clips` must be positive"),
        (
            lambda d, p: clip_path(WeightedIS(gamma=1.0), d, p, cast(Any, ["lepski"])),
            TypeError,
            "`clips` must be positive",
        ),
        (lambda d, p: clip_path(WeightedIS(gamma=1.0), d, p, []), ValueError, "`clips` must be at least one"),
        (
            lambda d, p: clip_path(WeightedIS(gamma=1.0), d, cast(Any, {"p": p}), [1.0]),
            TypeError,
            "`policy` must be one Policy",
        ),
        (
            lambda d, p: clip_path(cast(Any, WeightedIS), d, p, [1.0]),
            TypeError,
            "`estimator` must be one OffPolicyEstimator",
        ),
        (lambda d, p: clip_path(WeightedIS(), d, p, [1.0]), ValueError, "`gamma` must be given"),
        (lambda d, p: gamma_path(WeightedIS(gamma=1.0), d, p, [1.5]), ValueError, "gamma_path: `gamma` must be in"),
        (lambda d, p: gamma_path(WeightedIS(gamma=1.0), d, p, [0.5, 0.5]), ValueError, "each once"),
        (
            lambda _, p: gamma_path(WeightedIS(gamma=1.0), cast(Any, None), p, [0.5]),
            TypeError,
            "`data` must be one LoggedDataset",
        ),
        (lambda d, p: horizon_path(WeightedIS(gamma=1.0), d, p, [0]), ValueError, "`horizons` must be an integer"),
        (lambda d, p: horizon_path(WeightedIS(gamma=1.0), d, p, [5]), ValueError, "must not exceed the 4 steps"),
        (lambda d, p: horizon_path(WeightedIS(gamma=1.0), d, p, [2], cut=cast(Any, "no")), ValueError, "`cut` must be"),
    ],
)
def test_bad_parameters_of_refits(
    log: LoggedDataset, policy: TabularPolicy, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(log, policy)


# -------------------------------------------------------------------- cutting and showing


@pytest.mark.filterwarnings("ignore:LoggedDataset. a log with action masks")
def test_cutting_does_not_make_up_what_can_be_done_at_the_end() -> None:
    lengths, kinds = [3, 2], ["terminal", "truncated"]
    final, mask = np.array([[np.nan], [7.0]]), np.ones((5, 2), bool)
    data = ragged_log(2, lengths, kinds, final_states=final, action_mask=mask)
    assert data.final_known().tolist() == [False, False]
    cut = cut_episodes(data, 2, End.TRUNCATED)
    assert cut.final_known().tolist() == [True, False]
    assert cut.final_action_mask is not None
    assert cut.final_action_mask.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("end", [End.HORIZON, End.TRUNCATED])
def test_cutting_against_a_plain_loop(end: End) -> None:
    lengths, kinds = [3, 1, 2, 2], ["terminal", "terminal", "truncated", "terminal"]
    final = np.array([[np.nan], [np.nan], [7.0], [np.nan]])
    data = ragged_log(
        4,
        lengths,
        kinds,
        final_states=final,
        extras=pd.DataFrame({"x": range(8)}),
        action_mask=np.ones((8, 2), bool),
        final_action_mask=np.ones((4, 2), bool),
    )
    cut = cut_episodes(data, 2, end)
    rows, ends, finals, extras = [], [], [], []
    for i, (length, kind) in enumerate(zip(lengths, kinds, strict=True)):
        first = int(data.offsets[i])
        rows += list(range(first, first + min(length, 2)))
        stopped = length > 2 or (end == End.HORIZON and kind == "truncated" and length == 2)
        ends.append(end.name if stopped else kind.upper())
        finals.append(data.states[first + 2, 0] if length > 2 else final[i, 0])
        extras.append(float(first + 2) if length > 2 else math.nan)
    assert cut.lengths.tolist() == [2, 1, 2, 2]
    for name in ("states", "actions", "rewards", "timesteps", "behavior_log_prob", "action_mask"):
        assert np.array_equal(getattr(cut, name), getattr(data, name)[rows])
    assert [End(code).name for code in cut.ends] == ends
    assert cut.horizon == (2 if end == End.HORIZON else None)
    assert cut.final_states is not None
    assert np.array_equal(cut.final_states.ravel(), finals, equal_nan=True)
    assert cut.extras is not None
    assert cut.extras["x"].tolist() == rows
    assert cut.final_extras is not None
    assert np.array_equal(cut.final_extras["x"].to_numpy(), extras, equal_nan=True)
    assert cut.data_id == data.data_id


def test_cutting_nothing_changes_nothing(log: LoggedDataset, policy: TabularPolicy) -> None:
    cut = cut_episodes(log, 4, End.HORIZON)
    for estimator in (WeightedIS(gamma=0.9), LSTDQ(gamma=0.9)):
        assert estimator.fit(cut, policy).estimate().value == estimator.fit(log, policy).estimate().value


def test_a_path_shows_itself(log: LoggedDataset, policy: TabularPolicy) -> None:
    path = confounding_path(log, policy, gamma=1.0, odds_ratios=ODDS, n_replicates=40, name="<bold>")
    assert isinstance(path, SensitivityPath)
    page, text = path._repr_html_(), path.summary()
    assert "&lt;bold&gt;" in page
    assert "<bold>" not in page
    assert "▲ CAUTION" in page
    for word in ("odds ratio", "difference low", *(f"{value:.4g}" for value in path.frame["low"])):
        assert word in page
        assert word in text
    copied = path.to_frame()
    copied["low"] = 99.0
    assert (path.frame["low"] < 99.0).all()


@pytest.mark.slow
def test_bands_hold_the_truth_of_confounded_logs() -> None:
    # As above, sampled: 300 logs of 300 episodes of two steps, at the strength that confounds them.
    g, misses, naive = np.random.default_rng(0), 0, 0
    truth = 2 * 0.8 * (0.5 - 0.3)
    for _ in range(300):
        u = g.integers(2, size=(300, 2))
        a = (g.random((300, 2)) < np.where(u == 1, 0.7, 0.3)).astype(int)
        data = LoggedDataset.from_arrays(
            np.ones((600, 1)), a.ravel(), (a * (u - 0.3)).ravel(), lengths=[2] * 300, ends="horizon",
            behavior_prob=np.full(600, 0.5),
        )  # fmt: skip
        path = confounding_path(
            data, steady_policy(0.8), gamma=1.0, odds_ratios=[1.0, 7 / 3], baseline=None, n_replicates=200
        )
        naive += not at(path.frame, 0)["low"] <= truth <= at(path.frame, 0)["high"]
        misses += not at(path.frame, 1)["low"] <= truth <= at(path.frame, 1)["high"]
    assert naive > 290
    assert misses <= 15


def test_model_win_in_one_call() -> None:
    problem = ModelWin(horizon=2)
    path = confounding_path(
        problem.sample(400, random_state=0), TabularPolicy(problem.target), gamma=1.0, n_replicates=60
    )
    assert path.frame["parameter"].tolist() == [1.0, 1.1, 1.25, 1.5, 2.0, 3.0]
