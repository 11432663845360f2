"""Counter-based uniforms, folds, resampling weights and replicates."""

from __future__ import annotations

import math

import joblib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ope.inference import (
    fold_of,
    hash_identifiers,
    mean_replicates,
    one_step_replicates,
    resampling_weights,
    uniforms,
)
from ope.inference.weights import WeightKind, weighted_sums

KINDS: tuple[WeightKind, ...] = ("bayesian", "poisson")
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15

UIntArray = npt.NDArray[np.uint64]


def keys_of(n: int, first: int = 0) -> UIntArray:
    return hash_identifiers(np.arange(first, first + n))


def mixed(z: int) -> int:
    """Splitmix64's finaliser on Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def plain_uniform(key: int, seed: int, stream: int) -> float:
    spread = mixed((key * GOLDEN + 0x6F70655F6B657973) & MASK)
    offset = mixed(((stream & MASK) * GOLDEN + mixed((seed * GOLDEN + 1) & MASK)) & MASK)
    return ((mixed((spread + offset) & MASK) >> 12) + 0.5) / 2**52


@given(st.integers(0, MASK), st.integers(-(2**40), 2**70), st.integers(-5, 2**50))
@settings(deadline=None, derandomize=True)
def test_uniform_agrees_with_plain_integers(key: int, seed: int, stream: int) -> None:
    assert uniforms(np.array([key], dtype=np.uint64), seed, stream)[0] == plain_uniform(key, seed, stream)


def chi_square_p(u: npt.NDArray[np.float64], bins: int = 256) -> float:
    counts = np.bincount((u * bins).astype(int), minlength=bins)
    return float(stats.chisquare(counts).pvalue)


@pytest.mark.parametrize("raw", [False, True])
def test_uniforms_are_uniform(raw: bool) -> None:
    """Also for keys that are bare counters, over keys and over streams."""
    keys = np.arange(50_000, dtype=np.uint64) if raw else keys_of(50_000)
    p_values = [chi_square_p(uniforms(keys, seed, stream)) for seed in range(4) for stream in range(4)]
    along = [np.array([uniforms(keys[:5], 0, stream) for stream in range(5_000)])]
    p_values += [chi_square_p(along[0][:, i], 64) for i in range(5)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert min(p_values) > 1e-4
    assert stats.kstest(uniforms(keys, 3), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("raw", [False, True])
def test_neighbouring_keys_and_streams_are_uncorrelated(raw: bool) -> None:
    n, streams = 4_000, 60
    keys = np.arange(n, dtype=np.uint64) if raw else keys_of(n)
    u = np.array([uniforms(keys, 0, stream) for stream in range(streams)])
    correlations = np.corrcoef(u)[np.triu_indices(streams, 1)] * math.sqrt(n)
    assert abs(correlations.mean()) < 4 / math.sqrt(len(correlations))
    assert stats.kstest(correlations, "norm").pvalue > 1e-3
    for lag in (1, 2, 7, 64):
        pairs = np.corrcoef(u[:, :-lag].ravel(), u[:, lag:].ravel())[0, 1]
        assert abs(pairs) < 4 / math.sqrt(streams * (n - lag))
    assert abs(np.corrcoef(uniforms(keys, 0), uniforms(keys, 1))[0, 1]) < 4 / math.sqrt(n)


def test_pairs_of_uniforms_fill_the_square() -> None:
    keys = keys_of(100_000)
    for other in (uniforms(keys, 0, 1), uniforms(keys, 1, 0), np.roll(uniforms(keys, 0, 0), 1)):
        cells = (uniforms(keys, 0, 0) * 16).astype(int) * 16 + (other * 16).astype(int)
        assert stats.chisquare(np.bincount(cells, minlength=256)).pvalue > 1e-3


def test_uniforms_stay_inside_the_unit_interval() -> None:
    u = uniforms(keys_of(200_000))
    assert u.min() > 0.0
    assert u.max() < 1.0


@given(
    n=st.integers(1, 300),
    count=st.integers(1, 30),
    start=st.integers(0, 10**6),
    seed=st.integers(-3, 10**12),
    kind=st.sampled_from(KINDS),
    data=st.data(),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_weights_are_a_function_of_key_and_replicate(
    n: int, count: int, start: int, seed: int, kind: WeightKind, data: st.DataObject
) -> None:
    keys = keys_of(n)
    whole = resampling_weights(keys, count, seed=seed, kind=kind, start=start)
    order = np.array(data.draw(st.permutations(range(n))))
    assert np.array_equal(resampling_weights(keys[order], count, seed=seed, kind=kind, start=start), whole[:, order])
    cut, later = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, count - 1))
    part = resampling_weights(keys[cut:], count - later, seed=seed, kind=kind, start=start + later)
    assert np.array_equal(part, whole[later:, cut:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [4_095, 4_097, 70_001])
def test_chunks_agree_to_the_bit_across_tiles(kind: WeightKind, n: int) -> None:
    keys = keys_of(n)
    whole = resampling_weights(keys, 20, kind=kind)
    for cut in (1, 3, 4_096, n // 2 + 1):
        assert np.array_equal(resampling_weights(keys[cut:], 20, kind=kind), whole[:, cut:])
    single = np.stack([resampling_weights(keys, 1, kind=kind, start=b)[0] for b in range(20)])
    assert np.array_equal(single, whole)


def test_weights_are_quantiles_of_the_uniforms() -> None:
    keys = keys_of(5_000)
    u = np.array([uniforms(keys, 4, stream) for stream in range(7, 12)])
    np.testing.assert_allclose(resampling_weights(keys, 5, seed=4, start=7), stats.expon.isf(u), rtol=1e-12)
    assert np.array_equal(resampling_weights(keys, 5, seed=4, start=7, kind="poisson"), stats.poisson(1).ppf(u))


def test_poisson_frequencies() -> None:
    counts = np.bincount(resampling_weights(keys_of(20_000), 100, kind="poisson").astype(int).ravel())
    expected = stats.poisson(1).pmf(np.arange(len(counts))) * 2e6
    tail = int(np.flatnonzero(expected > 20)[-1])
    observed = np.append(counts[:tail], counts[tail:].sum())
    wanted = np.append(expected[:tail], 2e6 - expected[:tail].sum())
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


def test_exponential_weights_have_their_law() -> None:
    weights = resampling_weights(keys_of(500), 100)
    assert stats.kstest(weights.ravel(), "expon").pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_replicates_agree_with_a_plain_loop(kind: WeightKind) -> None:
    rng = np.random.default_rng(0)
    keys, psi, value = keys_of(37), rng.normal(size=(37, 2)), np.array([3.0, -1.0])
    weights = resampling_weights(keys, 9, seed=5, kind=kind, start=4)
    expected = np.array(
        [
            [value[k] + sum(c * p for c, p in zip(row, psi[:, k], strict=True)) / sum(row) for k in range(2)]
            for row in weights
        ]
    )
    found = one_step_replicates(value, psi, keys, 9, seed=5, kind=kind, start=4)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    single = one_step_replicates(3.0, psi[:, 0], keys, 9, seed=5, kind=kind, start=4)
    np.testing.assert_allclose(single, expected[:, 0], rtol=1e-12)
    means = mean_replicates(psi, keys, 9, seed=5, kind=kind, start=4)
    np.testing.assert_allclose(means, [np.average(psi, axis=0, weights=row) for row in weights], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_replicates_over_many_tiles(kind: WeightKind) -> None:
    n = 9_001
    x, keys = np.random.default_rng(1).normal(size=n), keys_of(n)
    weights = resampling_weights(keys, 40, kind=kind)
    np.testing.assert_allclose(mean_replicates(x, keys, 40, kind=kind), weights @ x / weights.sum(axis=1), atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_replicates_do_not_depend_on_the_order_of_episodes(kind: WeightKind) -> None:
    rng = np.random.default_rng(2)
    x, keys, order = rng.lognormal(size=500), keys_of(500), rng.permutation(500)
    np.testing.assert_allclose(
        mean_replicates(x[order], keys[order], 50, kind=kind), mean_replicates(x, keys, 50, kind=kind), rtol=1e-13
    )


@pytest.mark.parametrize("kind", KINDS)
def test_replicates_have_the_variance_of_the_mean(kind: WeightKind) -> None:
    x = np.random.default_rng(3).normal(size=400)
    replicates = mean_replicates(x, keys_of(400), 20_000, kind=kind)
    assert np.var(replicates) == pytest.approx(np.var(x) / 400, rel=4 * math.sqrt(2 / 20_000) + 2 / 400)
    assert np.mean(replicates) == pytest.approx(np.mean(x), abs=4 * float(np.std(x)) / math.sqrt(400 * 20_000))


def test_empty_poisson_replicates_are_drawn_again() -> None:
    """The law is that of the counts given that some episode was drawn."""
    x, keys, count = np.array([1.0, 5.0]), keys_of(2), 20_000
    empty = resampling_weights(keys, count, kind="poisson").sum(axis=1) == 0.0
    assert empty.mean() == pytest.approx(math.exp(-2), abs=0.01)
    replicates = mean_replicates(x, keys, count, kind="poisson")
    assert np.isfinite(replicates).all()
    only_first = math.exp(-1) * (1 - math.exp(-1)) / (1 - math.exp(-2))
    assert np.mean(replicates == 1.0) == pytest.approx(only_first, abs=4 * math.sqrt(0.2 / count))
    first = int(np.flatnonzero(empty)[0])
    assert np.array_equal(mean_replicates(x, keys, 1, kind="poisson", start=first), replicates[first : first + 1])


def test_redrawn_replicates_share_no_stream_with_others() -> None:
    x, keys = np.arange(4.0), keys_of(4)
    empty = np.flatnonzero(resampling_weights(keys, 2_000, kind="poisson").sum(axis=1) == 0.0)
    again = np.vstack([resampling_weights(keys, 1, kind="poisson", start=int(b) + 2**40) for b in empty])
    filled = again.sum(axis=1) > 0.0
    assert filled.sum() > 20
    replicates = mean_replicates(x, keys, 2_000, kind="poisson")[empty[filled]]
    np.testing.assert_allclose(replicates, again[filled] @ x / again[filled].sum(axis=1))


@given(st.integers(1, 400), st.integers(1, 12), st.integers(0, 50))
@settings(deadline=None, derandomize=True)
def test_folds_cover_and_follow_their_episodes(n: int, n_folds: int, seed: int) -> None:
    keys = keys_of(n)
    if n < n_folds:
        with pytest.raises(ValueError, match=f"{n_folds} folds for {n}"):
            fold_of(keys, n_folds, seed)
        return
    folds = fold_of(keys, n_folds, seed)
    assert set(folds.tolist()) == set(range(n_folds))
    assert np.array_equal(fold_of(keys[::-1], n_folds, seed), folds[::-1])


def test_folds_do_not_depend_on_the_other_episodes() -> None:
    keys = keys_of(3_000)
    folds = fold_of(keys, 5)
    assert np.array_equal(fold_of(keys[700:], 5), folds[700:])
    assert stats.chisquare(np.bincount(folds)).pvalue > 1e-3
    assert np.mean(fold_of(keys, 5, seed=1) == folds) == pytest.approx(0.2, abs=0.03)


def test_small_folds_are_balanced_ranks() -> None:
    keys = keys_of(7)
    folds = fold_of(keys, 6)
    order = sorted(range(7), key=lambda i: plain_uniform(int(keys[i]), 0, -1))
    assert [int(folds[i]) for i in order] == [0, 1, 2, 3, 4, 5, 0]


def test_folds_keep_equal_keys_together() -> None:
    keys = keys_of(4)[[0, 1, 2, 3, 0, 1]]
    folds = fold_of(keys, 4)
    assert folds[4] == folds[0]
    assert folds[5] == folds[1]
    with pytest.raises(ValueError, match="5 folds for 4"):
        fold_of(keys, 5)


def test_folds_are_unrelated_to_the_weights() -> None:
    keys = keys_of(5_000)
    weights = resampling_weights(keys, 50)
    by_fold = np.array([weights[:, fold_of(keys, 2) == k].mean(axis=1) for k in (0, 1)])
    z = (by_fold[0] - by_fold[1]) / math.sqrt(4 / 5_000)
    assert stats.kstest(z, "norm").pvalue > 1e-3


def test_bad_arguments_are_refused() -> None:
    keys, psi = keys_of(3), np.ones(3)
    with pytest.raises(TypeError, match=r"uniforms: `keys` .* uint64, got int64 .*hash_identifiers"):
        uniforms(np.arange(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"resampling_weights: `kind` must be one of .*'multinomial'"):
        resampling_weights(keys, 3, kind="multinomial")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`n_replicates` must be at least 1, got 0"):
        one_step_replicates(0.0, psi, keys, 0)
    with pytest.raises(ValueError, match=r"one_step_replicates: `keys` must have one entry per episode \(3\), got 2"):
        one_step_replicates(0.0, psi, keys[:2], 5)
    with pytest.raises(ValueError, match=r"mean_replicates: `scores` must be finite.*rows 1 \(1 in all\)"):
        mean_replicates(np.array([0.0, np.nan, 1.0]), keys, 5)
    with pytest.raises(ValueError, match=r"fold_of: `n_folds` must be at least 1, got 0"):
        fold_of(keys, 0)
    with pytest.raises(TypeError, match="integer"):
        resampling_weights(keys, 3, seed=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_sums_do_not_depend_on_the_number_of_threads(kind: WeightKind) -> None:
    keys, columns = keys_of(5_000), np.random.default_rng(0).normal(size=(5_000, 2))
    weights = resampling_weights(keys, 130, kind=kind)
    sums, totals = weighted_sums(columns, keys, 130, kind=kind)
    np.testing.assert_allclose(sums, weights @ columns, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(totals, weights.sum(axis=1), rtol=1e-12)
    for n_jobs in (2, 3):
        with joblib.parallel_config(backend="threading", n_jobs=n_jobs):
            again = weighted_sums(columns, keys, 130, kind=kind)
        np.testing.assert_array_equal(sums, again[0])
        np.testing.assert_array_equal(totals, again[1])
