"""Interval methods: what each reads of an estimate, and what it says when it cannot answer."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from ope.inference import (
    Anderson,
    Bootstrap,
    EmpiricalBernstein,
    Hoeffding,
    IntervalMethod,
    IntervalNotAvailable,
    Normal,
    Sample,
    anderson,
    basic_interval,
    bca_interval,
    empirical_bernstein,
    hash_identifiers,
    hoeffding,
    normal_interval,
    percentile_interval,
    resampling_weights,
    resolve_method,
)
from ope.inference.methods import BootstrapKind
from ope.inference.weights import WeightKind

FloatArray = npt.NDArray[np.float64]
KINDS: tuple[BootstrapKind, ...] = ("percentile", "basic", "bca", "bayesian")
RANGED: tuple[IntervalMethod, ...] = (Hoeffding(0.0, 50.0), EmpiricalBernstein(0.0, 50.0), Anderson(0.0, 50.0))

X = np.random.default_rng(0).lognormal(size=40)
KEYS = hash_identifiers([f"episode-{i}" for i in range(40)])


@dataclass(frozen=True)
class Log:
    """The least an estimate must be."""

    value: float = float(X.mean())
    influence: FloatArray | None = None
    scores: FloatArray | None = None
    replicates: FloatArray | None = None
    episode_keys: npt.NDArray[np.uint64] = field(default_factory=lambda: KEYS)
    known_propensities: bool = True
    effective_size: float | None = None


def weighted(kind: WeightKind, seed: int = 0, count: int = 2000) -> FloatArray:
    weights = resampling_weights(KEYS, count, seed=seed, kind=kind)
    means: FloatArray = weights @ X / weights.sum(axis=1)
    return means


def expanded(alpha: float, ratio: float = 1.0) -> float:
    """The tail of a normal law whose quantile is that of Student's, the variance unbiased and as well known as X lets it."""
    freedom = 2 * len(X) / (scipy.stats.kurtosis(X, fisher=False) - 1)
    return float(scipy.stats.norm.cdf(scipy.stats.t.ppf(alpha, freedom) * ratio**0.5))


def test_normal_reads_influence_or_scores() -> None:
    expected = normal_interval(float(X.mean()), X - X.mean(), 0.05, 0.025)
    for log in (Log(influence=X - X.mean()), Log(scores=X)):
        sample: Sample = log
        assert Normal().bounds(sample, 0.05, 0.025) == pytest.approx(expected)


@pytest.mark.parametrize("source", ["influence", "scores"])
def test_bootstrap_resamples_means_exactly(source: str) -> None:
    log = Log(influence=X - X.mean()) if source == "influence" else Log(scores=X)
    value, counts = float(X.mean()), weighted("poisson")
    tails = expanded(0.05), expanded(0.025)
    expected = {
        "percentile": percentile_interval(counts, *tails),
        "basic": basic_interval(value, counts, *tails),
        "bca": bca_interval(value, counts, X - value, 0.05, 0.025),
        "bayesian": percentile_interval(weighted("bayesian"), expanded(0.05, 41 / 39), expanded(0.025, 41 / 39)),
    }
    for kind in KINDS:
        assert Bootstrap(kind).bounds(log, 0.05, 0.025) == pytest.approx(expected[kind], rel=1e-12), kind


def test_bootstrap_seed_and_size_are_used() -> None:
    found = Bootstrap("percentile", n_replicates=99, random_state=7).bounds(Log(scores=X), 0.05, 0.05)
    assert found == pytest.approx(
        percentile_interval(weighted("poisson", 7, 99), expanded(0.05), expanded(0.05)), rel=1e-12
    )


def test_bootstrap_prefers_the_replicates_of_the_whole_estimation() -> None:
    replicates = np.linspace(0.0, 4.0, 199)
    log = Log(scores=X, influence=X - X.mean(), replicates=replicates)
    tails = expanded(0.05, 41 / 39), expanded(0.05, 41 / 39)
    assert Bootstrap("percentile").bounds(log, 0.05, 0.05) == pytest.approx(percentile_interval(replicates, *tails))
    assert Bootstrap("bayesian").bounds(log, 0.05, 0.05) == pytest.approx(percentile_interval(replicates, *tails))
    assert Bootstrap("basic").bounds(log, 0.05, 0.05) == pytest.approx(basic_interval(log.value, replicates, *tails))


@pytest.mark.parametrize("kind", ["percentile", "basic", "bayesian"])
def test_expanded_tails_are_as_wide_as_a_t_interval_on_normal_data(kind: BootstrapKind) -> None:
    x = scipy.stats.norm.ppf((np.arange(12) + 0.5) / 12)
    log = Log(value=0.0, scores=x, influence=x, episode_keys=KEYS[:12])
    low, high = Bootstrap(kind, n_replicates=20_000).bounds(log, 0.05, 0.05)
    t_low, t_high = Normal().bounds(log, 0.05, 0.05)
    plain = 2 * 1.645 * np.sqrt(np.mean(x**2) / 12)
    assert high - low == pytest.approx(t_high - t_low, rel=0.06)
    assert plain < 0.9 * (t_high - t_low)


def test_a_tail_beyond_the_replicates_is_the_extreme_replicate() -> None:
    log = Log(value=0.5, scores=np.array([0.0, 1.0]), replicates=np.linspace(0.0, 1.0, 99), episode_keys=KEYS[:2])
    assert Bootstrap("percentile").bounds(log, 0.025, 0.025) == (0.0, 1.0)
    assert Bootstrap("percentile").bounds(log, 0.025, 0.0) == (0.0, float("inf"))
    with pytest.raises(IntervalNotAvailable, match="at least 999 replicates, got 99"):
        Bootstrap("percentile").bounds(log, 0.001, 0.001)


def test_replicates_alone_suffice_for_percentile_and_basic() -> None:
    log = Log(replicates=np.linspace(0.0, 4.0, 199))
    for kind in ("percentile", "basic", "bayesian"):
        low, high = resolve_method(kind).bounds(log, 0.05, 0.05)
        assert low < high
    with pytest.raises(IntervalNotAvailable, match=r"kind='bca'.*no influence values.*Bootstrap\(kind='percentile'\)"):
        Bootstrap("bca").bounds(log, 0.05, 0.05)


def test_order_of_episodes_does_not_matter() -> None:
    order = np.random.default_rng(1).permutation(40)
    for method in (*(Bootstrap(kind) for kind in KINDS), Normal(), *RANGED):
        plain = method.bounds(Log(scores=X), 0.05, 0.05)
        shuffled = method.bounds(Log(scores=X[order], episode_keys=KEYS[order]), 0.05, 0.05)
        assert plain == pytest.approx(shuffled, rel=1e-10), method


def test_ranged_methods_are_their_functions() -> None:
    log = Log(scores=X)
    assert Hoeffding(0.0, 50.0).bounds(log, 0.05, 0.1) == hoeffding(X, 0.0, 50.0, 0.05, 0.1)
    assert EmpiricalBernstein(0.0, 50.0).bounds(log, 0.05, 0.1) == empirical_bernstein(X, 0.0, 50.0, 0.05, 0.1)
    assert Anderson(0.0, 50.0).bounds(log, 0.05, 0.1) == anderson(X, 0.0, 50.0, 0.05, 0.1)
    assert Anderson(0.0).bounds(log, 0.05, 0.1)[1] == math.inf


@pytest.mark.parametrize("method", RANGED)
def test_ranged_methods_need_scores_from_known_propensities(method: IntervalMethod) -> None:
    owner = type(method).__name__
    with pytest.raises(IntervalNotAvailable, match=rf"{owner}: .*no `scores`.*use Normal\(\) or Bootstrap\(\)"):
        method.bounds(Log(influence=X - X.mean()), 0.05, 0.05)
    with pytest.raises(IntervalNotAvailable, match=rf"{owner}: the propensities are estimated.*use Normal\(\)"):
        method.bounds(Log(scores=X, known_propensities=False), 0.05, 0.05)


@pytest.mark.parametrize("method", [*RANGED, Bootstrap(), Normal()])
def test_scores_must_average_to_the_value(method: IntervalMethod) -> None:
    with pytest.raises(ValueError, match=r"`scores` must average to `value`, got mean .* and value 3"):
        method.bounds(Log(value=3.0, scores=X), 0.05, 0.05)


def test_nothing_to_go_by() -> None:
    with pytest.raises(IntervalNotAvailable, match=r"Normal: .*no influence values.*Bootstrap\(\)"):
        Normal().bounds(Log(), 0.05, 0.05)
    with pytest.raises(IntervalNotAvailable, match=r"Normal: .*kind='percentile'.*with the replicates it has"):
        Normal().bounds(Log(replicates=X), 0.05, 0.05)
    with pytest.raises(IntervalNotAvailable, match=r"Bootstrap: .*no influence values"):
        Bootstrap().bounds(Log(), 0.05, 0.05)


def test_one_episode_gives_no_interval_without_a_range() -> None:
    log = Log(value=0.5, scores=np.array([0.5]), influence=np.zeros(1), episode_keys=KEYS[:1])
    for method in (Normal(), *(Bootstrap(kind) for kind in KINDS), EmpiricalBernstein(0.0, 1.0)):
        with pytest.raises(IntervalNotAvailable, match="at least 2 episodes, got 1"):
            method.bounds(log, 0.05, 0.05)
    assert Hoeffding(0.0, 1.0).bounds(log, 0.05, 0.05) == (0.0, 1.0)


def test_no_variance_gives_no_width() -> None:
    log = Log(value=2.0, influence=np.zeros(40))
    for method in (Normal(), *(Bootstrap(kind) for kind in KINDS)):
        assert method.bounds(log, 0.05, 0.05) == (2.0, 2.0)


def test_names_resolve() -> None:
    assert resolve_method("normal") == Normal()
    assert resolve_method("bootstrap") == Bootstrap("bayesian")
    for kind in KINDS:
        assert resolve_method(kind) == Bootstrap(kind)
        assert resolve_method(kind).name == kind
    method = Hoeffding(0.0, 2.0)
    assert resolve_method(method) is method
    assert [ranged.name for ranged in RANGED] == ["hoeffding", "empirical_bernstein", "anderson"]


@pytest.mark.parametrize(
    ("method", "error", "match"),
    [
        ("hoeffding", ValueError, r"'hoeffding' needs a range.*pass Hoeffding\(low, high\)"),
        ("empirical_bernstein", ValueError, r"pass EmpiricalBernstein\(low, high\)"),
        ("anderson", ValueError, r"pass Anderson\(low\)"),
        ("student", ValueError, r"must be one of adjusted_t, normal, percentile.*got 'student'"),
        (3, TypeError, r"must be a name or an object.*got 3"),
        (Normal, TypeError, r"must be a name or an object"),
    ],
)
def test_unknown_methods_are_refused(method: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        resolve_method(method)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: Bootstrap("jackknife"), ValueError, r"Bootstrap: `kind` must be one of .*'jackknife'"),  # type: ignore[arg-type]
        (lambda: Bootstrap(n_replicates=0), ValueError, r"Bootstrap: `n_replicates` must be at least 1, got 0"),
        (lambda: Bootstrap(random_state=None), TypeError, r"NoneType"),  # type: ignore[arg-type]
        (lambda: Hoeffding(1.0, 0.0), ValueError, r"Hoeffding: `low` and `high` must be finite with low < high"),
        (
            lambda: EmpiricalBernstein(0.0, math.inf),
            ValueError,
            r"EmpiricalBernstein: `low` and `high`.*got 0.0 and inf",
        ),
        (lambda: Anderson(-math.inf), ValueError, r"Anderson: `low` and `high`.*got -inf and None"),
    ],
)
def test_bad_methods_are_refused_when_built(build: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def test_methods_are_values() -> None:
    for method in (*RANGED, Normal(), Bootstrap("bca", 50, 3)):
        assert pickle.loads(pickle.dumps(method)) == method
        assert len({method, type(method)(**vars(method))}) == 1
    with pytest.raises(FrozenInstanceError):
        Hoeffding(0.0, 1.0).low = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="abstract"):
        IntervalMethod()  # type: ignore[abstract]


def test_import_is_cheap() -> None:
    heavy = ("scipy.stats", "torch", "sklearn", "matplotlib")
    program = f"import sys, ope.inference; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
