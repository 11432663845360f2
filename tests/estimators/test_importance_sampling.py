"""Importance sampling against padded plain loops, the infinitesimal jackknife and the laws of the family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from estimator_oracles import Case, influence_of, jackknife, one_hot_log, paths, random_case

from ope import Estimate, Level, LoggedDataset
from ope.estimators import ImportanceSampling, PerDecisionIS, TrajectoryIS, WeightedIS
from ope.policies import GaussianPolicy, TabularPolicy
from ope.validation import FloatArray

Kind = tuple[bool, bool]  # per decision, self-normalised
KINDS = [(False, False), (True, False), (False, True), (True, True)]
NAMES = ["IS", "PDIS", "WIS", "WPDIS"]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


def make(kind: Kind, gamma: float, clip: float | None = None) -> ImportanceSampling:
    if kind[1]:
        return WeightedIS(gamma=gamma, per_decision=kind[0], clip=clip)
    return PerDecisionIS(gamma=gamma, clip=clip) if kind[0] else TrajectoryIS(gamma=gamma, clip=clip)


def fit(case: Case, kind: Kind, gamma: float, weight: FloatArray | None = None, clip: float | None = None) -> Estimate:
    estimate: Estimate = make(kind, gamma, clip).fit(case.log, case.policy, weight).estimate()
    return estimate


# -------------------------------------------------------------------------------- plain-loop oracles


def padded(case: Case, clip: float = math.inf) -> tuple[list[list[float]], list[list[float]]]:
    """Return W_it and r_it with every episode prolonged to the longest: weight carried, reward 0."""
    episodes = paths(case.log)
    H = max(len(episode) for episode in episodes)
    W, r = [], []
    for episode in episodes:
        w, weights, rewards = 1.0, [], []
        for s, a, reward in episode:
            w *= case.pi[s, a] / case.b[s, a]
            weights.append(min(w, clip))
            rewards.append(reward)
        W.append(weights + [weights[-1]] * (H - len(weights)))
        r.append(rewards + [0.0] * (H - len(rewards)))
    return W, r


def oracle_value(
    W: list[list[float]], r: list[list[float]], gamma: float, kind: Kind, weight: Sequence[float] | FloatArray
) -> float:
    """Evaluate the definition of one of the four estimators on padded episodes."""
    n, H, (per_decision, normalised), total = len(W), len(W[0]), kind, 0.0
    for t in range(H):
        column = t if per_decision else H - 1
        top = sum(weight[i] * W[i][column] * r[i][t] for i in range(n))
        bottom = sum(weight[i] * W[i][column] for i in range(n)) if normalised else sum(weight)
        total += gamma**t * top / bottom
    return total


def oracle_influence(W: list[list[float]], r: list[list[float]], gamma: float, kind: Kind) -> list[float]:
    """Return psi_i = sum_t gamma^t (W_it / Wbar_t) (r_it - m_t), or X_i - V, term by term."""
    n, H, (per_decision, normalised) = len(W), len(W[0]), kind
    psi = [0.0] * n
    for t in range(H):
        column = t if per_decision else H - 1
        mean_w = sum(W[i][column] for i in range(n)) / n
        mean_wr = sum(W[i][column] * r[i][t] for i in range(n)) / n
        for i in range(n):
            if normalised:
                psi[i] += gamma**t * W[i][column] / mean_w * (r[i][t] - mean_wr / mean_w)
            else:
                psi[i] += gamma**t * (W[i][column] * r[i][t] - mean_wr)
    return psi


RAGGED = [
    random_case(0),
    random_case(1, zeros=True),
    random_case(2, ends=("terminal", "truncated"), zeros=True),
    random_case(3, ends=("terminal", "horizon"), n_actions=2),
    random_case(4, ends=("horizon",), zeros=True, n=50),
    random_case(5, ends=("terminal", "horizon", "truncated"), n_states=5, longest=12),
    random_case(6, n=2),
]


@every_kind
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("case", RAGGED)
def test_value_and_influence_equal_the_padded_loops(case: Case, gamma: float, kind: Kind) -> None:
    estimate, (W, r) = fit(case, kind, gamma), padded(case)
    assert estimate.value == pytest.approx(oracle_value(W, r, gamma, kind, [1.0] * len(W)), rel=1e-10, abs=1e-12)
    np.testing.assert_allclose(influence_of(estimate), oracle_influence(W, r, gamma, kind), rtol=1e-9, atol=1e-10)


@every_kind
@pytest.mark.parametrize("case", RAGGED)
def test_influence_is_the_infinitesimal_jackknife(case: Case, kind: Kind) -> None:
    psi = influence_of(fit(case, kind, 0.9))
    numerical = jackknife(lambda w: fit(case, kind, 0.9, w).value, len(psi))
    np.testing.assert_allclose(psi, numerical, rtol=1e-6, atol=1e-6 * np.abs(psi).max())


@every_kind
@pytest.mark.parametrize("case", RAGGED[:6])
def test_episode_weights_enter_every_sum(case: Case, kind: Kind) -> None:
    W, r = padded(case)
    weight = np.random.default_rng(0).exponential(size=len(W))
    weight[::5] = 0.0
    estimate = fit(case, kind, 0.9, weight)
    assert estimate.value == pytest.approx(oracle_value(W, r, 0.9, kind, weight), rel=1e-10)
    doubled = fit(case, kind, 0.9, 2 * weight)
    assert doubled.value == pytest.approx(estimate.value, rel=1e-12)
    np.testing.assert_allclose(influence_of(doubled), influence_of(estimate), rtol=1e-10, atol=1e-12)


@every_kind
def test_integer_weights_repeat_episodes(kind: Kind) -> None:
    case = random_case(7, ends=("terminal", "truncated"))
    counts = np.random.default_rng(1).integers(0, 3, size=case.log.n_episodes)
    W, r = padded(case)
    repeated = [i for i, count in enumerate(counts) for _ in range(count)]
    value = oracle_value([W[i] for i in repeated], [r[i] for i in repeated], 0.9, kind, [1.0] * len(repeated))
    assert fit(case, kind, 0.9, counts.astype(float)).value == pytest.approx(value, rel=1e-10)


@every_kind
def test_standard_error_is_that_of_the_influence(kind: Kind) -> None:
    case = random_case(8)
    psi = oracle_influence(*padded(case), 0.9, kind)
    assert fit(case, kind, 0.9).std_error == pytest.approx(math.sqrt(sum(x * x for x in psi) / (30 * 29)))


@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
def test_scores_are_the_terms_of_the_mean(kind: Kind) -> None:
    case = random_case(9, zeros=True)
    estimate, (W, r) = fit(case, kind, 0.9), padded(case)
    scores = [oracle_value([w], [rewards], 0.9, kind, [1.0]) for w, rewards in zip(W, r, strict=True)]
    assert estimate.scores is not None
    np.testing.assert_allclose(estimate.scores, scores, rtol=1e-10, atol=1e-12)
    assert estimate.known_propensities


@pytest.mark.parametrize("kind", KINDS[2:], ids=NAMES[2:])
def test_self_normalised_values_have_no_scores(kind: Kind) -> None:
    assert fit(random_case(9), kind, 0.9).scores is None


@every_kind
def test_continuous_actions_use_density_ratios(kind: Kind) -> None:
    g = np.random.default_rng(0)
    states, n, T = g.normal(size=(12, 1)), 4, 3
    actions = 0.5 * states + g.normal(size=(12, 1))
    density = np.exp(-0.5 * (actions - 0.5 * states) ** 2)[:, 0] / math.sqrt(2 * math.pi)
    log = LoggedDataset.from_arrays(
        states, actions, g.normal(size=12), lengths=[T] * n, ends="horizon", behavior_prob=density
    )
    policy = GaussianPolicy(mean=[[0.2]], std=0.7)
    W, r = [], []
    for i in range(n):
        w, row = 1.0, []
        for k in range(i * T, (i + 1) * T):
            z = (actions[k, 0] - 0.2 * states[k, 0]) / 0.7
            w *= math.exp(-0.5 * z * z) / (0.7 * math.sqrt(2 * math.pi)) / density[k]
            row.append(w)
        W.append(row)
        r.append([float(x) for x in log.rewards[i * T : (i + 1) * T]])
    estimate = make(kind, 0.8).fit(log, policy).estimate()
    assert estimate.value == pytest.approx(oracle_value(W, r, 0.8, kind, [1.0] * n), rel=1e-10)


@every_kind
def test_several_policies_get_what_each_gets_alone(kind: Kind) -> None:
    case = random_case(10, zeros=True)
    other = TabularPolicy(case.b)
    both = make(kind, 0.9).fit(case.log, {"a": case.policy, "b": other}).estimate()
    for name, policy in {"a": case.policy, "b": other}.items():
        alone = make(kind, 0.9).fit(case.log, policy).estimate()
        assert both[name].value == alone.value
        np.testing.assert_array_equal(both[name].influence, alone.influence)


# -------------------------------------------------------------------------------- degenerate logs


@every_kind
def test_one_episode_has_a_value_and_no_usable_error(kind: Kind) -> None:
    case = random_case(11, n=1, longest=4)
    estimate, (W, r) = fit(case, kind, 0.9), padded(case)
    assert estimate.value == pytest.approx(oracle_value(W, r, 0.9, kind, [1.0]), rel=1e-12)
    assert not math.isfinite(estimate.std_error)
    assert estimate.verdict.level is Level.REFUSE


def deserted() -> Case:
    """Return a log in which the candidate never takes a logged action at the first step."""
    b, pi = np.full((1, 2), 0.5), np.array([[0.0, 1.0]])
    return Case(one_hot_log([0] * 6, [0, 1] * 3, [1.0] * 6, [2] * 3, "terminal", [0] * 3, b), b, pi)


@pytest.mark.parametrize("kind", KINDS[2:], ids=NAMES[2:])
def test_no_weight_at_all_leaves_no_self_normalised_value(kind: Kind) -> None:
    estimate = fit(deserted(), kind, 0.9)
    assert math.isnan(estimate.value)
    assert estimate.verdict.level is Level.REFUSE


@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
def test_no_weight_at_all_is_refused(kind: Kind) -> None:
    estimate = fit(deserted(), kind, 0.9)
    assert estimate.value == 0.0
    assert estimate.verdict.level is Level.REFUSE


@every_kind
def test_weight_that_is_lost_on_the_way_is_refused(kind: Kind) -> None:
    b, pi = np.full((2, 2), 0.5), np.array([[0.5, 0.5], [0.0, 1.0]])
    n = 40
    log = one_hot_log([0, 1] * n, [0, 0] * n, [1.0, 1.0] * n, [2] * n, "horizon", [0] * n, b)
    assert fit(Case(log, b, pi), kind, 0.9).verdict.level is Level.REFUSE


@every_kind
def test_a_dead_episode_leaves_the_next_ones_alone(kind: Kind) -> None:
    """The ratio 0 in an early row may not reach later episodes through a running sum of logarithms."""
    b, pi = np.full((2, 2), 0.5), np.array([[0.0, 1.0], [0.3, 0.7]])
    log = one_hot_log(
        [0, 1, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2] * 3, "terminal", [0] * 3, b
    )
    case = Case(log, b, pi)
    estimate, (W, r) = fit(case, kind, 0.9), padded(case)
    assert W[0] == [0.0, 0.0]
    assert estimate.value == pytest.approx(oracle_value(W, r, 0.9, kind, [1.0] * 3), rel=1e-12)


# -------------------------------------------------------------------------------- long products


def long_case(drift: str) -> Case:
    """Return 8 episodes of 2000 steps with 5 actions in which the weights leave the range of a float, or do not."""
    g = np.random.default_rng(3)
    n, T, b = 8, 2000, np.full((1, 5), 0.2)
    pi = {
        "level": np.array([[0.21, 0.2, 0.2, 0.2, 0.19]]),
        "down": np.array([[0.9, 0.025, 0.025, 0.025, 0.025]]),
        "up": np.array([[0.35, 0.35, 0.1, 0.1, 0.1]]),
    }[drift]
    a = g.integers(2 if drift == "up" else 5, size=n * T)
    if drift == "up":
        a[g.random(n * T) < 0.02] = 4
    log = one_hot_log(np.zeros(n * T, int), a, g.normal(size=n * T), [T] * n, "horizon", [0] * n, b)
    return Case(log, b, pi)


def decimal_value(case: Case, gamma: float, kind: Kind) -> Decimal:
    """Evaluate the definition in decimals, whose exponents do not run out; all episodes have one length."""
    W, r = [], []
    for episode in paths(case.log):
        w, row = Decimal(1), []
        for s, a, _ in episode:
            w *= Decimal(float(case.pi[s, a])) / Decimal(float(case.b[s, a]))
            row.append(w)
        W.append(row if kind[0] else [row[-1]] * len(row))
        r.append([Decimal(reward) for _, _, reward in episode])
    total, discount = Decimal(0), Decimal(1)
    for t in range(len(W[0])):
        top = sum((w[t] * x[t] for w, x in zip(W, r, strict=True)), Decimal(0))
        bottom = sum((w[t] for w in W), Decimal(0)) if kind[1] else Decimal(len(W))
        total += discount * top / bottom
        discount *= Decimal(gamma)
    return total


@every_kind
def test_long_products_of_moderate_ratios(kind: Kind) -> None:
    case = long_case("level")
    assert 0.2**2000 == 0.0
    assert fit(case, kind, 0.999).value == pytest.approx(float(decimal_value(case, 0.999, kind)), rel=1e-8)


@pytest.mark.parametrize("kind", KINDS[2:], ids=NAMES[2:])
@pytest.mark.parametrize("drift", ["down", "up"])
def test_self_normalised_weights_may_leave_the_range_of_floats(drift: str, kind: Kind) -> None:
    case = long_case(drift)
    estimate = fit(case, kind, 0.999)
    assert estimate.value == pytest.approx(float(decimal_value(case, 0.999, kind)), rel=1e-8)
    psi = influence_of(estimate)
    assert np.isfinite(psi).all()
    assert abs(psi.sum()) < 1e-6 * np.abs(psi).sum()


@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
def test_weights_too_large_for_floats_are_refused(kind: Kind) -> None:
    estimate = fit(long_case("up"), kind, 0.999)
    assert not math.isfinite(estimate.value)
    assert estimate.verdict.level is Level.REFUSE


# -------------------------------------------------------------------------------- blocks


@every_kind
@pytest.mark.parametrize("case", [RAGGED[2], RAGGED[5]])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_blocks_equal_one_block(case: Case, rows: int, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(case, kind, 0.9)
    monkeypatch.setattr(LoggedDataset.blocks, "__defaults__", (rows,))
    assert len(list(case.log.blocks())) > 1
    parts = fit(case, kind, 0.9)
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(parts), influence_of(whole), rtol=1e-10, atol=1e-12)
    for key, value in whole.diagnostics.items():
        assert parts.diagnostics[key] == (pytest.approx(value, nan_ok=True) if isinstance(value, float) else value)
    assert parts.verdict.level is whole.verdict.level


# -------------------------------------------------------------------------------- laws


@every_kind
@pytest.mark.parametrize("ends", [("terminal",), ("terminal", "horizon"), ("terminal", "truncated")])
def test_on_policy_value_is_the_mean_return(ends: tuple[str, ...], kind: Kind) -> None:
    case = random_case(12, ends=ends)
    returns = [sum(0.9**t * r for t, (_, _, r) in enumerate(episode)) for episode in paths(case.log)]
    estimate = fit(Case(case.log, case.b, case.b), kind, 0.9)
    assert estimate.value == pytest.approx(sum(returns) / len(returns), rel=1e-12)


@every_kind
def test_one_step_episodes_give_the_bandit_estimator(kind: Kind) -> None:
    case = random_case(13, longest=1, zeros=True)
    terms = [(case.pi[s, a] / case.b[s, a], r) for ((s, a, r),) in paths(case.log)]
    bottom = sum(w for w, _ in terms) if kind[1] else len(terms)
    assert fit(case, kind, 0.5).value == pytest.approx(sum(w * r for w, r in terms) / bottom, rel=1e-12)


def prolonged(case: Case, extra: Sequence[int]) -> Case:
    """Add rows of reward 0 and ratio 1, in a state of their own, to the end of every episode."""
    rest = len(case.b)
    b, pi = (np.vstack([table, np.full((1, table.shape[1]), 1 / table.shape[1])]) for table in (case.b, case.pi))
    steps = [episode + [(rest, 0, 0.0)] * more for episode, more in zip(paths(case.log), extra, strict=True)]
    s, a, r = zip(*[step for episode in steps for step in episode], strict=True)
    log = one_hot_log(list(s), list(a), list(r), [len(e) for e in steps], "terminal", [rest] * len(steps), b)
    return Case(log, b, pi)


@every_kind
def test_padding_terminal_episodes_changes_nothing(kind: Kind) -> None:
    case = random_case(14, zeros=True)
    extra = np.random.default_rng(0).integers(0, 9, size=case.log.n_episodes)
    short, long = fit(case, kind, 0.9), fit(prolonged(case, extra.tolist()), kind, 0.9)
    assert long.value == pytest.approx(short.value, rel=1e-11)
    np.testing.assert_allclose(influence_of(long), influence_of(short), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS[2:], ids=NAMES[2:])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_shifted_rewards_shift_self_normalised_values(gamma: float, kind: Kind) -> None:
    case = random_case(15, ends=("horizon",), zeros=True, longest=5, n=60)
    shifted = Case(case.log.replace(rewards=case.log.rewards + 3.0), case.b, case.pi)
    before, after = fit(case, kind, gamma), fit(shifted, kind, gamma)
    assert after.value - before.value == pytest.approx(3.0 * sum(gamma**t for t in range(5)), rel=1e-10)
    np.testing.assert_allclose(influence_of(after), influence_of(before), rtol=1e-8, atol=1e-9)


@every_kind
@pytest.mark.parametrize("factor", [-2.0, 1e-6, 1e6])
def test_scaled_rewards_scale_the_value(factor: float, kind: Kind) -> None:
    case = RAGGED[5]
    scaled = Case(case.log.replace(rewards=case.log.rewards * factor), case.b, case.pi)
    before, after = fit(case, kind, 0.9), fit(scaled, kind, 0.9)
    assert after.value == pytest.approx(before.value * factor, rel=1e-11)
    np.testing.assert_allclose(influence_of(after), influence_of(before) * factor, rtol=1e-9, atol=1e-11 * abs(factor))


@every_kind
def test_order_of_episodes_does_not_matter(kind: Kind) -> None:
    case = RAGGED[2]
    order = np.random.default_rng(0).permutation(case.log.n_episodes)
    before, after = fit(case, kind, 0.9), fit(Case(case.log.select(order), case.b, case.pi), kind, 0.9)
    assert after.value == pytest.approx(before.value, rel=1e-12)
    np.testing.assert_allclose(influence_of(after), influence_of(before)[order], rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------------------- clipping


@every_kind
@pytest.mark.parametrize("clip", [0.5, 1.5, 1e9])
def test_clipped_weights_equal_the_clipped_loops(clip: float, kind: Kind) -> None:
    case = random_case(16, ends=("terminal", "horizon"), zeros=True)
    estimate, (W, r) = fit(case, kind, 0.9, clip=clip), padded(case, clip)
    assert estimate.value == pytest.approx(oracle_value(W, r, 0.9, kind, [1.0] * len(W)), rel=1e-10)
    np.testing.assert_allclose(influence_of(estimate), oracle_influence(W, r, 0.9, kind), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
@pytest.mark.parametrize("clip", [0.5, 1.5])
def test_reported_bias_is_what_clipping_removed(clip: float, kind: Kind) -> None:
    case = random_case(17, zeros=True)
    (W, r), (clipped, _) = padded(case), padded(case, clip)
    removed = 0.0
    for w, c, rewards in zip(W, clipped, r, strict=True):
        terms = [0.9**t * x for t, x in enumerate(rewards)]
        last = (w[-1] - c[-1]) * abs(sum(terms))
        removed += sum((w[t] - c[t]) * abs(x) for t, x in enumerate(terms)) if kind[0] else last
    estimate = fit(case, kind, 0.9, clip=clip)
    assert estimate.diagnostics["clip_bias"] == pytest.approx(removed / len(W), rel=1e-10)
    assert abs(fit(case, kind, 0.9).value - estimate.value) <= removed / len(W) * (1.0 + 1e-12)


@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
def test_bias_of_clipping_positive_rewards_is_exact(kind: Kind) -> None:
    case = random_case(17, zeros=True)
    case = Case(case.log.replace(rewards=np.abs(case.log.rewards)), case.b, case.pi)
    clipped = fit(case, kind, 0.9, clip=0.5)
    difference = fit(case, kind, 0.9).value - clipped.value
    assert difference == pytest.approx(clipped.diagnostics["clip_bias"], rel=1e-10)
    assert difference > 0


@every_kind
def test_clipping_that_cuts_nothing_reports_no_bias(kind: Kind) -> None:
    assert fit(random_case(17), kind, 0.9, clip=1e9).diagnostics["clip_bias"] == 0.0


@every_kind
@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_bad_clip_is_named(clip: float, kind: Kind) -> None:
    with pytest.raises(ValueError, match="clip"):
        fit(random_case(17), kind, 0.9, clip=clip)


# -------------------------------------------------------------------------------- truncated tails


def truncated_case(n: int, T: int, share: float, horizon: int | None = None, noise: float = 1.0) -> Case:
    """Return an on-policy log in which a share of the episodes stops after T steps; nothing else is wrong with it."""
    g = np.random.default_rng(5)
    b = np.full((1, 2), 0.5)
    cut = round(share * n)
    lengths = [T] * cut + [T if horizon is None else horizon] * (n - cut)
    kinds = ["truncated"] * cut + ["terminal" if horizon is None else "horizon"] * (n - cut)
    rows = sum(lengths)
    rewards = np.clip(noise * g.normal(size=rows), -1.0, 1.0)
    rewards[0] = 1.0
    log = one_hot_log(np.zeros(rows, int), g.integers(2, size=rows), rewards, lengths, kinds, [0] * n, b)
    return Case(log, b, b)


def tail_oracle(case: Case, gamma: float, bound: float) -> float:
    """Return mean(1[truncated] W_i gamma^T_i |r|max (the discounted steps that are missing))."""
    W, _ = padded(case)
    total = 0.0
    for i, episode in enumerate(paths(case.log)):
        if case.log.ends[i] == 2:
            T, H = len(episode), case.log.horizon
            rest = 1 / (1 - gamma) if H is None else sum(gamma**k for k in range(H - T))
            total += W[i][-1] * gamma**T * bound * rest
    return total / case.log.n_episodes


@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
@pytest.mark.parametrize("horizon", [None, 6])
def test_tail_is_bounded_by_the_missing_steps(horizon: int | None, kind: Kind) -> None:
    ends = ("terminal", "truncated") if horizon is None else ("horizon", "truncated")
    case = random_case(18, ends=ends)
    bound = float(np.abs(case.log.rewards).max())
    estimate = fit(case, kind, 0.9)
    assert estimate.diagnostics["truncated_tail"] == pytest.approx(tail_oracle(case, 0.9, bound), rel=1e-10)
    given = Case(case.log.replace(reward_range=(-7.0, 5.0)), case.b, case.pi)
    assert fit(given, kind, 0.9).diagnostics["truncated_tail"] == pytest.approx(tail_oracle(case, 0.9, 7.0), rel=1e-10)
    assert fit(given, kind, 0.9).diagnostics["reward_bound"] != estimate.diagnostics["reward_bound"]


@pytest.mark.parametrize("kind", KINDS[2:], ids=NAMES[2:])
def test_self_normalised_tail_is_divided_by_the_mean_weight(kind: Kind) -> None:
    case = random_case(18, ends=("terminal", "truncated"))
    W, _ = padded(case)
    mean_weight = sum(w[-1] for w in W) / len(W)
    bound = tail_oracle(case, 0.9, float(np.abs(case.log.rewards).max())) / mean_weight
    assert fit(case, kind, 0.9).diagnostics["truncated_tail"] == pytest.approx(bound, rel=1e-10)


@every_kind
def test_negligible_tail_has_no_effect(kind: Kind) -> None:
    case = truncated_case(n=400, T=40, share=1.0)
    estimate = fit(case, kind, 0.8)
    assert 0 < tail_oracle(case, 0.8, 1.0) < 0.1 * estimate.std_error
    assert estimate.verdict.level is Level.VALID
    assert estimate.widening == 0.0


@every_kind
def test_noticeable_tail_widens_the_interval(kind: Kind) -> None:
    case = truncated_case(n=400, T=19, share=0.5)
    estimate, tail = fit(case, kind, 0.8), tail_oracle(case, 0.8, 1.0)
    assert 0.1 * estimate.std_error < tail < estimate.std_error
    assert estimate.verdict.level is Level.CAUTION
    assert estimate.widening == pytest.approx(tail)
    complete = Case(case.log.replace(ends=np.zeros_like(case.log.ends)), case.b, case.pi)
    plain, wide = fit(complete, kind, 0.8).confidence_interval(), estimate.confidence_interval()
    assert wide.low == pytest.approx(plain.low - tail)
    assert wide.high == pytest.approx(plain.high + tail)
    assert estimate.lower_bound() == pytest.approx(fit(complete, kind, 0.8).lower_bound() - tail)
    assert wide.verdict.level is Level.CAUTION


@every_kind
def test_large_tail_is_refused(kind: Kind) -> None:
    case = truncated_case(n=400, T=4, share=0.5)
    estimate = fit(case, kind, 0.9)
    assert tail_oracle(case, 0.9, 1.0) > estimate.std_error
    assert estimate.verdict.level is Level.REFUSE
    assert "doubly robust" in estimate.verdict.reasons[0]


@every_kind
def test_endless_undiscounted_tail_is_refused(kind: Kind) -> None:
    estimate = fit(truncated_case(n=400, T=40, share=0.01), kind, 1.0)
    assert estimate.verdict.level is Level.REFUSE


@every_kind
def test_horizon_limits_an_undiscounted_tail(kind: Kind) -> None:
    """One episode of 400 misses its last step: at gamma = 1 a bound of 1/400, far below the standard error."""
    case = truncated_case(n=400, T=29, share=1 / 400, horizon=30)
    estimate = fit(case, kind, 1.0)
    assert estimate.diagnostics["truncated_tail"] == pytest.approx(1 / 400)
    assert estimate.verdict.level is Level.VALID


@pytest.mark.parametrize(("one", "other"), [(TrajectoryIS, PerDecisionIS), (WeightedIS, WeightedIS)])
def test_the_effective_size_counts_the_weights_of_episodes(one: Any, other: Any) -> None:
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, 200)
    log = LoggedDataset.from_arrays(
        np.ones((200, 1)), actions, rng.random(200), lengths=[1] * 200, ends="terminal", behavior_prob=[0.5] * 200
    )
    policy, weight = TabularPolicy([[0.7, 0.3]]), np.zeros(200)
    weight[:3] = 1.0
    whole = {} if one is TrajectoryIS else {"per_decision": False}
    found = one(gamma=1.0, **whole).fit(log, policy, weight).estimate()
    # Of one step, so that the forms agree.
    step_by_step = other(gamma=1.0).fit(log, policy, weight).estimate()
    w = 2.0 * np.where(actions[:3] == 0, 0.7, 0.3)
    assert found.diagnostics["ess"] == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found.diagnostics["ess"] == pytest.approx(step_by_step.diagnostics["ess"])
    assert found.verdict.level is step_by_step.verdict.level is Level.REFUSE
