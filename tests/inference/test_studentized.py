"""Studentised bootstrap against t statistics of resamples that are written out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from ope.inference import (
    IntervalNotAvailable,
    StudentizedBootstrap,
    hash_identifiers,
    resampling_weights,
    studentized_interval,
    t_replicates,
)

FloatArray = npt.NDArray[np.float64]
X = np.random.default_rng(0).lognormal(size=30)
KEYS = hash_identifiers(range(30))


@dataclass(frozen=True)
class Log:
    value: float = float(X.mean())
    influence: FloatArray | None = None
    scores: FloatArray | None = None
    replicates: FloatArray | None = None
    episode_keys: npt.NDArray[np.uint64] = field(default_factory=lambda: KEYS)
    known_propensities: bool = False
    effective_size: float | None = None


def written_out(count: int, seed: int = 0) -> FloatArray:
    """The t statistic of each resample against the mean of the sample."""
    drawn = resampling_weights(KEYS, count, seed=seed, kind="poisson").astype(int)
    return np.array([scipy.stats.ttest_1samp(np.repeat(X, row), X.mean()).statistic for row in drawn])


def test_replicates_are_t_statistics_of_resamples() -> None:
    np.testing.assert_allclose(t_replicates(X - X.mean(), KEYS, 50, seed=4), written_out(50, 4), rtol=1e-9)


def test_replicates_do_not_depend_on_unit_or_order() -> None:
    order, psi = np.random.default_rng(1).permutation(30), X - X.mean()
    plain = t_replicates(psi, KEYS, 40)
    np.testing.assert_allclose(t_replicates(1e200 * psi, KEYS, 40), plain, rtol=1e-12)
    np.testing.assert_allclose(t_replicates(psi[order], KEYS[order], 40), plain, rtol=1e-9)


@pytest.mark.parametrize("source", ["influence", "scores"])
def test_interval_from_the_quantiles_of_t(source: str) -> None:
    log = Log(influence=X - X.mean()) if source == "influence" else Log(scores=X)
    low, high = StudentizedBootstrap(999, 2).bounds(log, 0.05, 0.025)
    error, t = scipy.stats.sem(X), written_out(999, 2)
    assert low == pytest.approx(X.mean() - error * np.quantile(t, 0.95, method="weibull"), rel=1e-9)
    assert high == pytest.approx(X.mean() - error * np.quantile(t, 0.025, method="weibull"), rel=1e-9)
    assert StudentizedBootstrap(999, 2).bounds(log, 0.05, 0.0) == (low, math.inf)


def test_refits_of_the_estimate_play_no_part() -> None:
    plain = StudentizedBootstrap(199).bounds(Log(influence=X - X.mean()), 0.05, 0.05)
    assert StudentizedBootstrap(199).bounds(Log(influence=X - X.mean(), replicates=X), 0.05, 0.05) == plain


def test_without_variance_without_width() -> None:
    assert StudentizedBootstrap(99).bounds(Log(influence=np.zeros(30)), 0.05, 0.05) == (X.mean(), X.mean())


def test_resamples_of_one_value_give_no_interval() -> None:
    lonely = np.concatenate([np.full(29, -1.0), [29.0]])
    t = t_replicates(lonely, KEYS, 300)
    drawn = resampling_weights(KEYS, 300, kind="poisson")[:, -1] > 0
    assert np.isneginf(t[~drawn]).all()
    assert np.isfinite(t[drawn]).all()
    with pytest.raises(IntervalNotAvailable, match=r"\d+ of 2000 resamples hold one distinct value.*given range"):
        StudentizedBootstrap().bounds(Log(influence=lonely), 0.05, 0.05)
    low, high = StudentizedBootstrap().bounds(Log(influence=lonely), 0.05, 0.0)
    assert low < X.mean()
    assert high == math.inf


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"StudentizedBootstrap: `n_replicates` must be at least 1, got 0"):
        StudentizedBootstrap(0)
    with pytest.raises(IntervalNotAvailable, match=r"no influence values"):
        StudentizedBootstrap().bounds(Log(), 0.05, 0.05)
    with pytest.raises(IntervalNotAvailable, match=r"at least 39 replicates, got 9"):
        studentized_interval(0.0, X, np.arange(9.0), 0.025, 0.025)
