"""Incremental importance sampling against padded plain loops, the jackknife and exact expectations; Lepski's choices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from estimator_oracles import Case, exact_log, influence_of, jackknife, one_hot_log, paths, random_case, repeated_log

from ope import Estimate, Level
from ope.estimators import ImportanceSampling, IncrementalIS, PerDecisionIS, WeightedIS
from ope.policies import TabularPolicy
from ope.problems import Graph, ModelFail, ModelWin
from ope.validation import FloatArray

Setting = tuple[int | None, float, bool]  # window, clip, self-normalised
SETTINGS: list[Setting] = [
    (window, clip, normalised)
    for window in (None, 1, 2, 4, 50)
    for clip in (math.inf, 1.3)
    for normalised in (False, True)
]
every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)

CASES = [
    random_case(0),
    random_case(1, zeros=True),
    random_case(2, ends=("terminal", "truncated"), zeros=True),
    random_case(4, ends=("horizon",), zeros=True),
    random_case(5, ends=("terminal", "horizon", "truncated"), n_states=5, longest=9),
]


def fit(case: Case, setting: Setting, gamma: float = 0.9, weight: FloatArray | None = None) -> Estimate:
    window, clip, normalised = setting
    limit = None if math.isinf(clip) else clip
    estimator = IncrementalIS(gamma=gamma, window=window, clip=limit, self_normalized=normalised)
    estimate: Estimate = estimator.fit(case.log, case.policy, weight).estimate()
    return estimate


def padded(case: Case, window: int | None, clip: float) -> tuple[list[list[float]], list[list[float]]]:
    """Return w_it and r_it with every episode prolonged to the longest by ratios of 1 and rewards of 0."""
    episodes = paths(case.log)
    H = max(len(episode) for episode in episodes)
    W, r = [], []
    for episode in episodes:
        ratios = [min(case.pi[s, a] / case.b[s, a], clip) for s, a, _ in episode] + [1.0] * (H - len(episode))
        reach = H if window is None else window
        W.append([math.prod(ratios[max(0, t - reach + 1) : t + 1]) for t in range(H)])
        r.append([reward for _, _, reward in episode] + [0.0] * (H - len(episode)))
    return W, r


def oracle(case: Case, setting: Setting, gamma: float, weight: Any = None) -> float:
    window, clip, normalised = setting
    W, r = padded(case, window, clip)
    omega = [1.0] * len(W) if weight is None else weight
    total = 0.0
    for t in range(len(W[0])):
        top = sum(o * w[t] * x[t] for o, w, x in zip(omega, W, r, strict=True))
        bottom = sum(o * w[t] for o, w in zip(omega, W, strict=True)) if normalised else sum(omega)
        total += gamma**t * top / bottom
    return total


@every_setting
@pytest.mark.parametrize("case", CASES)
def test_value_equals_the_padded_loops(case: Case, setting: Setting) -> None:
    for gamma in (0.0, 0.9, 1.0):
        assert fit(case, setting, gamma).value == pytest.approx(oracle(case, setting, gamma), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("setting", SETTINGS[4:12] + SETTINGS[:2], ids=str)
@pytest.mark.parametrize("case", [CASES[2], CASES[4]])
def test_influence_is_the_infinitesimal_jackknife(case: Case, setting: Setting) -> None:
    psi = influence_of(fit(case, setting))
    numerical = jackknife(lambda w: oracle(case, setting, 0.9, w), len(psi))
    np.testing.assert_allclose(psi, numerical, rtol=1e-6, atol=1e-6 * np.abs(psi).max())


@pytest.mark.parametrize("setting", SETTINGS[4:8], ids=str)
def test_episode_weights_repeat_episodes(setting: Setting) -> None:
    case = random_case(7, ends=("terminal", "truncated"))
    counts = np.random.default_rng(1).integers(0, 3, size=case.log.n_episodes)
    repeated = Case(repeated_log(case.log, np.repeat(np.arange(case.log.n_episodes), counts)), case.b, case.pi)
    longest = padded(repeated, None, math.inf)[0]
    assert len(longest[0]) == len(padded(case, None, math.inf)[0][0])
    weighted = fit(case, setting, weight=counts.astype(float))
    assert weighted.value == pytest.approx(fit(repeated, setting).value, rel=1e-10)
    assert weighted.value == pytest.approx(oracle(case, setting, 0.9, counts), rel=1e-10)


def test_all_ratios_are_importance_sampling() -> None:
    for case in CASES:
        for normalised, plain in ((False, PerDecisionIS(gamma=0.9)), (True, WeightedIS(gamma=0.9))):
            mine, theirs = fit(case, (None, math.inf, normalised)), plain.fit(case.log, case.policy).estimate()
            assert mine.value == theirs.value
            np.testing.assert_array_equal(influence_of(mine), influence_of(theirs))
            assert mine.diagnostics["bias"] == mine.diagnostics["bias_std_error"] == 0.0
            assert (mine.scores is None) == normalised
            assert mine.verdict.level == theirs.verdict.level


def test_one_step_episodes_give_the_bandit_estimator() -> None:
    case = random_case(13, longest=1, zeros=True)
    terms = [(case.pi[s, a] / case.b[s, a], r) for ((s, a, r),) in paths(case.log)]
    for window in (None, 1, 3, "lepski"):
        value = IncrementalIS(gamma=0.5, window=window).fit(case.log, case.policy).estimate().value
        assert value == pytest.approx(sum(w * r for w, r in terms) / sum(w for w, _ in terms), rel=1e-12)


# -------------------------------------------------------------------------------- exact expectations


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("normalised", [False, True])
def test_windows_are_exact_where_the_past_does_not_matter(window: int, normalised: bool) -> None:
    """In ModelWin rewards and states follow from the last two actions: two ratios lose nothing, and one does not either."""
    problem = ModelWin(horizon=6)
    every = exact_log(problem, 6, "horizon")
    estimator = IncrementalIS(gamma=1.0, window=window, self_normalized=normalised)
    estimate = estimator.fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx(problem.value(problem.target), rel=1e-9)


def test_the_bias_of_a_window_is_what_the_dropped_ratio_decided() -> None:
    """ModelFail pays for the first action at the second step: the last ratio alone gives the behaviour's value."""
    problem = ModelFail()
    every = exact_log(problem, 2, "horizon")
    policy = TabularPolicy(problem.target)
    estimate = IncrementalIS(gamma=1.0, window=1).fit(every.log, policy, every.weight).estimate()
    assert estimate.value == pytest.approx(math.tanh(1), rel=1e-9)
    assert estimate.diagnostics["bias"] == pytest.approx(2 * math.tanh(1), rel=1e-9)


def test_the_bias_comes_with_the_error_of_the_paired_difference() -> None:
    case = CASES[4]
    setting: Setting = (1, 1.3, False)
    mine, plain = fit(case, setting), PerDecisionIS(gamma=0.9).fit(case.log, case.policy).estimate()
    difference = mine - plain
    assert mine.diagnostics["bias"] == pytest.approx(difference.value, rel=1e-12)
    assert mine.diagnostics["bias_std_error"] == pytest.approx(difference.std_error, rel=1e-12)


# -------------------------------------------------------------------------------- Lepski's choices


def test_the_window_is_found_where_it_exists() -> None:
    problem, policy = ModelWin(), TabularPolicy(ModelWin().target)
    errors: dict[str, list[float]] = {"lepski": [], "all": []}
    for seed in range(12):
        log = problem.sample(1000, random_state=seed)
        for name, window in (("lepski", "lepski"), ("all", None)):
            estimate = IncrementalIS(gamma=1.0, window=window).fit(log, policy).estimate()  # type: ignore[arg-type]
            errors[name].append(estimate.value - problem.value(problem.target))
            if name == "lepski":
                assert estimate.diagnostics["window"] in ("all", 16, 8, 4, 2, 1)
                assert "was chosen" in estimate.diagnostics["choice"]
    rmse = {name: float(np.sqrt(np.mean(np.square(values)))) for name, values in errors.items()}
    assert rmse["lepski"] < 0.7 * rmse["all"]


def test_all_ratios_are_kept_where_the_first_one_decides() -> None:
    log = ModelFail().sample(2000, random_state=0)
    estimate = IncrementalIS(gamma=1.0).fit(log, TabularPolicy(ModelFail().target)).estimate()
    assert estimate.diagnostics["window"] == "all"
    assert estimate.diagnostics["choice"].startswith("all ratios was chosen: window=1 differs")
    assert abs(estimate.value + math.tanh(1)) < 4 * estimate.std_error


def test_the_choice_is_one_of_the_fixed_ones() -> None:
    case = random_case(5, n=80, n_states=2, longest=9, ends=("horizon",))
    chosen = IncrementalIS(gamma=0.9, window="lepski", clip="lepski").fit(case.log, case.policy).estimate()
    window, clip = chosen.diagnostics["window"], chosen.diagnostics["clip"]
    same = fit(case, (None if window == "all" else window, clip, True))
    assert chosen.value == same.value
    np.testing.assert_array_equal(influence_of(chosen), influence_of(same))
    assert "choice_of_clip" in chosen.diagnostics


def test_on_policy_nothing_is_dropped() -> None:
    case = random_case(12, ends=("terminal", "truncated"))
    log, b = case.log, TabularPolicy(case.b)
    returns = [sum(0.9**t * r for t, (_, _, r) in enumerate(episode)) for episode in paths(log)]
    estimate = IncrementalIS(gamma=0.9, clip="lepski").fit(log, b).estimate()
    assert estimate.value == pytest.approx(sum(returns) / len(returns), rel=1e-12)
    assert (estimate.diagnostics["window"], estimate.diagnostics["clip"]) == ("all", math.inf)


def test_a_choice_at_the_biased_end_is_a_caution() -> None:
    """Rewards that depend on nothing: no window contradicts another, and none is known to be right."""
    case = random_case(3, n=400, n_states=2, n_actions=2, longest=4, ends=("horizon",))
    estimate = IncrementalIS(gamma=1.0).fit(case.log, case.policy).estimate()
    assert estimate.diagnostics["window"] == 1
    assert estimate.verdict.level is Level.CAUTION
    assert any("most biased of its options, window=1" in reason for reason in estimate.verdict.reasons)
    assert any(reason.startswith("Using window=1 moves the value by") for reason in estimate.verdict.reasons)


def test_a_choice_that_nothing_can_contradict_is_refused() -> None:
    log = Graph(16).sample(64)
    estimate = IncrementalIS(gamma=0.98).fit(log, TabularPolicy(Graph(16).target)).estimate()
    assert estimate.diagnostics["window"] in (1, 2)
    assert estimate.verdict.level is Level.REFUSE
    assert "the unbiased form rests on fewer than 5 episodes" in estimate.verdict.reasons[0]


def test_overflowing_ratios_leave_an_unknown_bias() -> None:
    n, T, b = 8, 2000, np.full((1, 2), 0.5)
    pi = np.array([[0.99, 0.01]])
    log = one_hot_log(np.zeros(n * T, int), np.zeros(n * T, int), np.ones(n * T), [T] * n, "horizon", [0] * n, b)
    estimate = IncrementalIS(gamma=0.9, window=1, self_normalized=False).fit(log, TabularPolicy(pi)).estimate()
    assert estimate.value == pytest.approx(1.98 * (1 - 0.9**T) / 0.1, rel=1e-10)
    assert any("a bias that nobody knows" in reason for reason in estimate.verdict.reasons)


def test_several_policies_get_what_each_gets_alone() -> None:
    case = random_case(10, zeros=True)
    both = IncrementalIS(gamma=0.9).fit(case.log, {"a": case.policy, "b": TabularPolicy(case.b)}).estimate()
    assert both["a"].value == IncrementalIS(gamma=0.9).fit(case.log, case.policy).estimate().value


@pytest.mark.parametrize("horizon", [None, 6])
def test_tail_of_a_truncated_episode_counts_by_its_latest_ratios(horizon: int | None) -> None:
    case = random_case(18, ends=("terminal", "truncated") if horizon is None else ("horizon", "truncated"))
    bound, tail, n = float(np.abs(case.log.rewards).max()), 0.0, case.log.n_episodes
    for episode, end in zip(paths(case.log), case.log.ends, strict=True):
        if end == 2:
            T, H = len(episode), case.log.horizon
            w = math.prod(case.pi[s, a] / case.b[s, a] for s, a, _ in episode[-2:])
            tail += w * 0.9**T * bound * (10.0 if H is None else sum(0.9**k for k in range(H - T))) / n
    assert fit(case, (2, math.inf, False)).diagnostics["truncated_tail"] == pytest.approx(tail, rel=1e-10)


@pytest.mark.parametrize(
    ("parameter", "value", "error"),
    [
        ("window", 0, ValueError),
        ("window", 1.5, ValueError),
        ("window", "all", ValueError),
        ("clip", 0.5, ValueError),
        ("clip", math.nan, ValueError),
        ("clip", "none", TypeError),
    ],
)
def test_bad_parameters_are_named(parameter: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^IncrementalIS: `{parameter}`"):
        IncrementalIS(gamma=0.9, **{parameter: value}).fit(CASES[0].log, CASES[0].policy)


# -------------------------------------------------------------------------------- the limit of cumulative weights


@pytest.mark.parametrize("per_decision", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_importance_sampling_takes_a_clip_by_lepski(per_decision: bool, normalised: bool) -> None:
    problem = Graph(8, behavior=0.6, target=0.4)
    log, policy = problem.sample(500, random_state=1), TabularPolicy(problem.target)

    def estimate(clip: Any) -> Estimate:
        estimator = ImportanceSampling(gamma=0.98, per_decision=per_decision, self_normalized=normalised, clip=clip)
        found: Estimate = estimator.fit(log, policy).estimate()
        return found

    chosen = estimate("lepski")
    clip = chosen.diagnostics["clip"]
    assert clip < math.inf
    assert chosen.value == estimate(clip).value
    assert chosen.diagnostics["clip_bias"] == estimate(clip).diagnostics["clip_bias"]
    assert chosen.std_error <= estimate(None).std_error
    assert f"clip={clip:g} was chosen" in chosen.diagnostics["choice"]
    assert chosen.scores is None


def test_no_clip_is_chosen_where_every_limit_is_contradicted() -> None:
    log = ModelFail().sample(4000, random_state=0)
    estimate = WeightedIS(gamma=1.0, clip="lepski").fit(log, TabularPolicy(ModelFail().target)).estimate()
    plain = WeightedIS(gamma=1.0).fit(log, TabularPolicy(ModelFail().target)).estimate()
    assert estimate.value == plain.value
    assert estimate.diagnostics["clip_bias"] == 0.0
    assert estimate.verdict.level == plain.verdict.level


def test_a_clip_of_another_word_is_refused() -> None:
    with pytest.raises(TypeError, match='`clip` must be a positive weight, "lepski" or None'):
        PerDecisionIS(gamma=0.9, clip="auto").fit(CASES[0].log, CASES[0].policy)  # type: ignore[arg-type]
