"""Weights over time and the distribution of returns, against plain loops over episodes."""

from __future__ import annotations

import numpy as np
import pytest
from report_case import candidates, river_log

from ope import LoggedDataset
from ope.policies import FunctionPolicy, TabularPolicy
from ope.problems import RiverSwim
from ope.returns import MAX_POINTS, return_distribution
from ope.validation import FloatArray
from ope.weight_profile import weight_profile

GAMMA = 0.9


def _log() -> LoggedDataset:
    """Return episodes of different lengths, one of them truncated."""
    rng = np.random.default_rng(0)
    lengths = [1, 3, 2, 4, 2, 3]
    n = sum(lengths)
    ends = ["terminal", "terminal", "truncated", "terminal", "terminal", "terminal"]
    return LoggedDataset.from_arrays(
        np.ones((n, 1)),
        rng.integers(0, 2, n),
        rng.normal(size=n),
        lengths=lengths,
        ends=ends,
        final_states=np.ones((len(lengths), 1)),
        behavior_prob=rng.uniform(0.3, 0.7, n),
    )


def _loops(log: LoggedDataset, p: float) -> tuple[list[list[float]], list[float]]:
    """Return cumulative weights and the discounted return of every episode."""
    weights, returns = [], []
    b = np.exp(np.asarray(log.behavior_log_prob))
    for start, stop in zip(log.offsets[:-1], log.offsets[1:], strict=True):
        w, total, path = 1.0, 0.0, []
        for t, row in enumerate(range(start, stop)):
            w *= (p if log.actions[row] == 1 else 1 - p) / b[row]
            total += GAMMA**t * log.rewards[row]
            path.append(w)
        weights.append(path)
        returns.append(total)
    return weights, returns


def test_profile_is_that_of_plain_loops() -> None:
    log = _log()
    weights, _ = _loops(log, 0.8)
    profile = weight_profile(log, TabularPolicy([[0.2, 0.8]]), n_tail=4)
    for t, ess in zip(profile.steps, profile.ess, strict=True):
        # An ended episode keeps its final weight.
        at = [path[min(t, len(path) - 1)] for path in weights]
        assert ess == pytest.approx(sum(at) ** 2 / sum(w * w for w in at))
    final = sorted((path[-1] for path in weights), reverse=True)
    assert np.exp(profile.log_tail) == pytest.approx([w / np.mean(final) for w in final[:4]])
    assert profile.survival == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6])


def test_distribution_is_that_of_plain_loops() -> None:
    log = _log()
    weights, returns = _loops(log, 0.8)
    law = return_distribution(log, TabularPolicy([[0.2, 0.8]]), gamma=GAMMA)
    total = sum(path[-1] for path in weights)
    for x, f, plain in zip(law.returns, law.cdf, law.logged_cdf, strict=True):
        assert f == pytest.approx(
            sum(path[-1] for path, g in zip(weights, returns, strict=True) if g <= x + 1e-12) / total
        )
        assert plain == pytest.approx(np.mean([g <= x + 1e-12 for g in returns]))
    assert law.truncated_share == pytest.approx(weights[2][-1] / total)
    median = law.quantile(0.5)
    assert law.cdf[law.returns == median][0] >= 0.5
    assert law.quantile(1.0) == max(returns)


def test_the_mean_of_the_distribution_is_trajectory_wis() -> None:
    from ope.estimators import WeightedIS

    policy = candidates()["upstream"]
    law = return_distribution(river_log(), policy, gamma=1.0)
    mean = float(np.sum(law.returns * np.diff(law.cdf, prepend=0.0)))
    assert mean == pytest.approx(WeightedIS(gamma=1.0, per_decision=False).fit(river_log(), policy).estimate().value)


def test_the_grid_is_short_for_long_logs() -> None:
    n = 5000
    rng = np.random.default_rng(1)
    log = LoggedDataset.from_arrays(
        np.ones((n, 1)),
        rng.integers(0, 2, n),
        rng.normal(size=n),
        lengths=[1] * n,
        ends="terminal",
        behavior_prob=[0.5] * n,
    )
    law = return_distribution(log, TabularPolicy([[0.5, 0.5]]), gamma=1.0)
    assert len(law.returns) <= MAX_POINTS
    assert np.all(np.diff(law.returns) > 0)
    assert law.cdf[-1] == 1.0
    exact = [np.mean(log.rewards <= x) for x in law.returns]
    np.testing.assert_allclose(law.cdf, exact, atol=1e-9)
    # Without weights the band is Kolmogorov's.
    assert law.high[250] - law.cdf[250] == pytest.approx(1.358 / np.sqrt(n), rel=0.05)


def test_the_band_covers_the_true_distribution() -> None:
    """Over 200 logs of 200 episodes, the truth from one large log of the candidate itself."""
    target = TabularPolicy([[0.3, 0.7]] * 6)
    played = RiverSwim(horizon=6, behavior=0.7).sample(20_000, random_state=9)
    truth = np.sort(np.add.reduceat(played.rewards, played.offsets[:-1]))
    river = RiverSwim(horizon=6)
    hits = [_covers(river.sample(200, random_state=seed), target, truth) for seed in range(200)]
    assert np.mean(hits) >= 0.90


def _covers(log: LoggedDataset, policy: TabularPolicy, truth: FloatArray) -> bool:
    law = return_distribution(log, policy, gamma=1.0, n_replicates=1000)
    f = np.searchsorted(truth, law.returns + 1e-9, side="right") / len(truth)
    return bool(np.all((law.low <= f) & (f <= law.high)))


def test_what_is_missing_is_named() -> None:
    log = river_log()
    bare = log.replace(behavior_log_prob=None, behavior_source=None)
    policy = candidates()["upstream"]
    with pytest.raises(ValueError, match="weight_profile: `data` must hold propensities"):
        weight_profile(bare, policy)
    with pytest.raises(ValueError, match=r"return_distribution: `level` must lie in \(0, 1\)"):
        return_distribution(log, policy, gamma=1.0, level=95)
    never = TabularPolicy(np.eye(2)[[0] * 6])
    always = log.select(np.flatnonzero(np.maximum.reduceat(log.actions, log.offsets[:-1]) == 1))
    with pytest.raises(ValueError, match="at least one logged episode"):
        return_distribution(always, never, gamma=1.0)


def test_policies_without_probabilities_are_refused() -> None:
    n = 4
    log = LoggedDataset.from_arrays(
        np.ones((n, 1)),
        np.linspace(0.0, 1.0, n)[:, None],
        np.ones(n),
        lengths=[1] * n,
        ends="terminal",
        behavior_prob=[0.5] * n,
    )
    policy = FunctionPolicy(predict=lambda states: np.zeros((len(states), 1)))
    with pytest.raises(TypeError, match="KernelIS"):
        weight_profile(log, policy)
