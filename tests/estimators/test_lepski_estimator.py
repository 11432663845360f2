"""Lepski's choice among estimators, and capped ratios of double reinforcement learning, against plain loops and the jackknife."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from estimator_oracles import Case, every_end, influence_of, jackknife, random_case, sampled
from given_models import GivenQ, GivenRatio

from ope import Estimate, Level
from ope.estimators import (
    LSTDQ,
    DoubleReinforcementLearning,
    FittedQEvaluation,
    LepskiEstimator,
    PerDecisionIS,
    WeightedIS,
)
from ope.estimators.lepski import contradictions
from ope.inference import lepski_choice
from ope.problems import Graph, RandomMDP, RiverSwim
from ope.validation import FloatArray

GAMMA = 0.9


def fit(case: Case, options: Any, weight: FloatArray | None = None, **settings: Any) -> Estimate:
    estimator = LepskiEstimator(**{"gamma": GAMMA, "estimators": options, **settings})
    return estimator.fit(case.log, case.policy, weight).estimate()  # type: ignore[no-any-return]


def ridges(*sizes: float) -> dict[str, LSTDQ]:
    return {f"ridge {size:g}": LSTDQ(ridge=size, features="identity") for size in sizes}


# -------------------------------------------------------------------- the choice


@pytest.mark.parametrize("multiplier", [0.5, 2.0, 5.0])
def test_the_choice_is_that_of_loops(multiplier: float) -> None:
    case, sizes = random_case(1, n=80), (0.0, 3.0, 30.0, 300.0)
    weight = np.random.default_rng(0).uniform(0.5, 1.5, 80)
    fits = [
        LSTDQ(gamma=GAMMA, ridge=size, features="identity").fit(case.log, case.policy, weight).estimate()
        for size in sizes
    ]
    chosen, least = 0, float("inf")
    for i, own in enumerate(fits):
        psi_i, passed = influence_of(own), True
        for j in range(i):
            gap = psi_i - influence_of(fits[j])
            error = float(np.sqrt((gap**2).sum() / (80 * 79)))
            passed = passed and abs(own.value - fits[j].value) <= multiplier * error
        if passed and own.std_error < least:
            chosen = i
        least = min(least, own.std_error)
    estimate = fit(case, ridges(*sizes), weight, multiplier=multiplier)
    assert estimate.diagnostics["chosen"] == f"ridge {sizes[chosen]:g}"
    assert estimate.value == fits[chosen].value
    assert estimate.std_error == fits[chosen].std_error
    for size, own in zip(sizes, fits, strict=True):
        assert estimate.diagnostics[f"value_ridge {size:g}"] == own.value
        assert estimate.diagnostics[f"error_ridge {size:g}"] == pytest.approx(own.std_error)


def test_influence_is_the_jackknife_of_the_chosen_option() -> None:
    case = random_case(2, n=30)
    options = {"free": LSTDQ(features="identity"), "held": LSTDQ(features="identity", ridge=1e-9)}
    psi = influence_of(fit(case, options))
    numeric = jackknife(lambda weight: fit(case, options, weight).value, 30)
    np.testing.assert_allclose(psi, numeric, atol=1e-5 * np.abs(numeric).max())


def test_the_first_contradiction_of_every_option_is_named() -> None:
    assert contradictions(lepski_choice([0.0, 5.0, 9.0], std_errors=[1.0, 0.5, 0.1])) == [None, 0, 0]
    estimate = fit(sampled(RiverSwim(max_steps=20), 200), ridges(0.0, 1e4), gamma=0.95)
    assert estimate.diagnostics["chosen"] == "ridge 0"
    assert estimate.diagnostics["contradicted_ridge 10000"] == "ridge 0"
    assert estimate.diagnostics["contradicted_ridge 0"] == ""
    assert not any("Lepski" in reason for reason in estimate.verdict.reasons)


def test_a_biased_choice_is_never_valid() -> None:
    case = sampled(RandomMDP(horizon=4, random_state=0), 100)
    options = {"all": PerDecisionIS(), "clipped": PerDecisionIS(clip=3.0), "clipped more": PerDecisionIS(clip=1.0)}
    estimate = fit(case, options, gamma=1.0, multiplier=100.0)
    assert estimate.diagnostics["chosen"] == "clipped more"
    assert estimate.verdict.level >= Level.CAUTION
    assert any("most biased of its options" in reason for reason in estimate.verdict.reasons)
    assert estimate.scores is None
    middle = fit(case, [PerDecisionIS(), PerDecisionIS(clip=3.0), PerDecisionIS()], gamma=1.0, multiplier=100.0)
    assert middle.diagnostics["chosen"] == "PerDecisionIS_2"
    assert any("where noise and bias balance" in reason for reason in middle.verdict.reasons)


def test_options_that_a_few_episodes_carry_have_no_say() -> None:
    case = sampled(Graph(horizon=16), 100)
    options = {"all": PerDecisionIS(), "clipped": PerDecisionIS(clip=10.0), "q": LSTDQ()}
    estimate = fit(case, options, gamma=1.0)
    assert estimate.diagnostics["error_all"] == float("inf")
    assert estimate.diagnostics["chosen"] != "all"
    assert any("cannot show the bias" in reason for reason in estimate.verdict.reasons)
    assert estimate.verdict.level is Level.REFUSE


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"estimators": [LSTDQ()]}, ValueError, "at least 2"),
        ({"estimators": "LSTDQ"}, ValueError, "list or mapping"),
        ({"estimators": [LSTDQ(), 3]}, TypeError, "int"),
        ({"estimators": [LSTDQ(), LSTDQ(gamma=0.1)]}, ValueError, "gamma"),
        ({"estimators": [LSTDQ(), FittedQEvaluation(max_iter=2)]}, ValueError, "influence"),
        ({"multiplier": -1.0}, ValueError, "multiplier"),
    ],
)
def test_bad_parameters_are_named(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    case = random_case(0)
    with pytest.raises(error, match=words):
        LepskiEstimator(**{"gamma": GAMMA, "estimators": [LSTDQ(), LSTDQ(ridge=1.0)], **settings}).fit(
            case.log, case.policy
        )


def test_options_must_answer_one_question() -> None:
    case = random_case(0, ends=("horizon",))
    with pytest.raises(ValueError, match="one question"):
        fit(case, [LSTDQ(), LSTDQ(stationary=True)])


def test_propensities_are_asked_for_where_an_option_reads_them() -> None:
    case = random_case(0)
    bare = case._replace(log=case.log.replace(behavior_log_prob=None))
    assert fit(bare, ridges(0.0, 1.0)).value == fit(case, ridges(0.0, 1.0)).value
    with pytest.raises(ValueError, match="propensities"):
        fit(bare, [WeightedIS(), WeightedIS(clip=2.0)])


# -------------------------------------------------------------------- capped ratios


def double(case: Case, weight: FloatArray | None = None, **settings: Any) -> Estimate:
    steps = 1 if case.log.horizon is None else 6
    rng = np.random.default_rng(4)
    tables, ratios = rng.normal(size=(steps, *case.pi.shape)), rng.lognormal(size=(steps, *case.pi.shape))
    method = DoubleReinforcementLearning(
        gamma=GAMMA, q=GivenQ(tables=tables), ratio=GivenRatio(tables=ratios), n_folds=2, **settings
    )
    return method.fit(case.log, case.policy, weight).estimate()  # type: ignore[no-any-return]


@every_end
def test_ratios_are_capped_at_multiples_of_their_mean(ends: tuple[str, ...]) -> None:
    case = random_case(6, n=25, ends=ends)
    log, steps = case.log, 1 if case.log.horizon is None else 6
    rng = np.random.default_rng(4)
    tables, ratios = rng.normal(size=(steps, *case.pi.shape)), rng.lognormal(size=(steps, *case.pi.shape))
    weight = np.random.default_rng(1).uniform(0.5, 1.5, 25)
    weight /= weight.mean()
    free = GivenQ(gamma=GAMMA, tables=tables).fit_q(log, case.policy, weight).predict(case.policy, log)
    c = GivenRatio(gamma=GAMMA, tables=ratios).fit_ratio(log, case.policy, weight).predict(case.policy, log)
    first = log.offsets[:-1]
    total: dict[int, float] = {}
    mass: dict[int, float] = {}
    for i in range(25):
        for t in range(log.lengths[i]):
            key = 0 if log.horizon is None else t
            total[key] = total.get(key, 0.0) + weight[i] * c[first[i] + t]
            mass[key] = mass.get(key, 0.0) + weight[i]
    expected, plain = 0.0, double(case, weight)
    for i in range(25):
        own = free.v[first[i]]
        for t in range(log.lengths[i]):
            row, key, last = first[i] + t, 0 if log.horizon is None else t, t == log.lengths[i] - 1
            ahead = free.v_final[i] if last else free.v[row + 1]
            limit = 1.2 * total[key] / mass[key]
            own += min(c[row], limit) * (log.rewards[row] + GAMMA * ahead - free.q[row])
        expected += weight[i] * own / 25
    capped = double(case, weight, ratio_cap=1.2)
    assert capped.value == pytest.approx(expected, rel=1e-9)
    assert capped.diagnostics["cap_shift"] == pytest.approx(capped.value - plain.value, abs=1e-12)
    assert double(case, weight, ratio_cap=1e9).value == plain.value
    assert any("Capping the ratios" in reason for reason in capped.verdict.reasons)


def test_a_low_cap_leaves_the_value_of_q() -> None:
    with pytest.raises(ValueError, match="ratio_cap"):
        double(random_case(6), ratio_cap=0.5)
    case = sampled(RiverSwim(max_steps=20), 200)
    options = {"none": None, "cap 4": 4.0, "cap 1": 1.0}
    ladder: Any = {name: DoubleReinforcementLearning(ratio_cap=cap, n_folds=2) for name, cap in options.items()}
    estimate = fit(case, ladder, gamma=0.95)
    errors = [estimate.diagnostics[f"error_{name}"] for name in options]
    assert errors[0] >= errors[1] >= errors[2]
    assert estimate.diagnostics["chosen"] in options


def test_options_that_differ_in_the_cap_share_their_models_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    case, fits = random_case(4, n=60), 0
    fit_pairs = DoubleReinforcementLearning._pairs

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal fits
        fits += 1
        return fit_pairs(self, *arguments)

    monkeypatch.setattr(DoubleReinforcementLearning, "_pairs", counted)
    for options, models in (
        ([DoubleReinforcementLearning(n_folds=2, ratio_cap=cap) for cap in (None, 4.0, 1.0)], 1),
        ([DoubleReinforcementLearning(n_folds=folds, ratio_cap=2.0) for folds in (2, 3)], 2),
        ([DoubleReinforcementLearning(n_folds=2, q=LSTDQ(ridge=ridge)) for ridge in (0.0, 1.0, 1.0)], 2),
        ([DoubleReinforcementLearning(n_folds=2, q=q) for q in (LSTDQ(), None)], 2),
        ([DoubleReinforcementLearning(n_folds=2), PerDecisionIS()], 1),
    ):
        fits = 0
        shared = fit(case, options).diagnostics
        assert fits == models
        for place, option in enumerate(options):
            alone = option.set_params(gamma=GAMMA).fit(case.log, case.policy).estimate()
            (key,) = {name for name in shared if name.startswith("value_")} & {
                f"value_{kind}"
                for kind in (
                    f"{type(option).__name__}_{place + 1}",
                    type(option).__name__,
                )
            }
            assert shared[key] == alone.value
