"""Confidence sequences: valid at all times, the same however the episodes arrive."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ope import Estimate, LoggedDataset
from ope.estimators import PerDecisionIS, WeightedIS
from ope.inference import BettingSequence, ConfidenceSequence, EmpiricalBernsteinSequence, IntervalNotAvailable
from ope.policies import TabularPolicy

FloatArray = npt.NDArray[np.float64]
SEQUENCES: tuple[type[ConfidenceSequence], ...] = (BettingSequence, EmpiricalBernsteinSequence)


def bernstein(x: FloatArray, alpha: float) -> float:
    """The lower end after all values, running maximum over the times, on Python numbers."""
    best = squares = 0.0
    seen: list[float] = []
    staked = won = slack = 0.0
    for t, value in enumerate(x.tolist(), start=1):
        centre, spread = (0.5 + sum(seen)) / t, (0.25 + squares) / t
        bet = min(0.5, math.sqrt(2.0 * math.log(1.0 / alpha) / (spread * t * math.log(1.0 + t))))
        staked, won = staked + bet, won + bet * value
        slack += (value - centre) ** 2 * (-math.log(1.0 - bet) - bet)
        best = max(best, (won - math.log(1.0 / alpha) - slack) / staked)
        seen.append(value)
        squares += (value - (0.5 + sum(seen)) / (t + 1)) ** 2
    return best


def betting(x: FloatArray, alpha: float) -> float:
    """The lower end after all values: the least mean on a grid that no time rejects."""
    for m in np.linspace(1e-3, 1.0, 1_000):
        wealth, squares, total, rejected = 1.0, 0.0, 0.0, False
        for t, value in enumerate(x.tolist(), start=1):
            bet = math.sqrt(2.0 * math.log(1.0 / alpha) / ((0.25 + squares) / t * t * math.log(1.0 + t)))
            wealth *= 1.0 + min(bet, 0.5 / m) * (value - m)
            rejected |= wealth >= 1.0 / alpha
            total += value
            squares += (value - (0.5 + total) / (t + 1)) ** 2
        if not rejected:
            return float(m)
    raise AssertionError


def test_ends_agree_with_plain_loops() -> None:
    x = np.random.default_rng(0).beta(3, 3, 60)
    for make, plain, slack in ((BettingSequence, betting, 2.1e-3), (EmpiricalBernsteinSequence, bernstein, 1e-9)):
        low, high = make(0.0, 2.0, level=0.9).update(2.0 * x).interval
        assert low == pytest.approx(2.0 * plain(x, 0.05), abs=slack)
        assert high == pytest.approx(2.0 - 2.0 * plain(1.0 - x, 0.05), abs=slack)


@pytest.mark.parametrize("make", SEQUENCES)
def test_one_update_is_many_updates(make: type[ConfidenceSequence]) -> None:
    x = np.random.default_rng(1).beta(1, 4, 150)
    whole, single, parts = make(0.0, 1.0).update(x), make(0.0, 1.0), make(0.0, 1.0)
    for value in x:
        single.update(value)
    for part in np.split(x, [7, 8, 60]):
        parts.update(part)
    assert whole.n_episodes == single.n_episodes == parts.n_episodes == 150
    assert single.interval == pytest.approx(whole.interval, abs=1e-9)
    assert parts.interval == pytest.approx(whole.interval, abs=1e-9)


@pytest.mark.parametrize("make", SEQUENCES)
def test_the_level_holds_at_all_times_exactly(make: type[ConfidenceSequence]) -> None:
    """Over all sequences of three values of mean .4: the probability of ever missing it is at most 1 - level."""
    values, probabilities, missed = np.array([0.0, 0.5, 1.0]), np.array([0.45, 0.3, 0.25]), 0.0
    for outcome in itertools.product(range(3), repeat=6):
        x, p = values[list(outcome)], float(np.prod(probabilities[list(outcome)]))
        sequence = make(0.0, 1.0, level=0.4)  # low, so that six values can miss at all
        try:
            low, high = sequence.update(x).interval
        except IntervalNotAvailable:
            low, high = 1.0, 0.0
        missed += p * (not low <= 0.4 <= high)
    assert missed <= 0.6
    if make is BettingSequence:
        assert missed > 0.0


@pytest.mark.parametrize("make", SEQUENCES)
def test_intervals_only_shrink_and_always_cover(make: type[ConfidenceSequence]) -> None:
    rng, missed = np.random.default_rng(2), 0
    for _ in range(25):
        sequence, before = make(0.0, 1.0, level=0.9), (0.0, 1.0)
        inside = True
        for value in rng.binomial(1, 0.3, 150):
            low, high = sequence.update(float(value)).interval
            assert before[0] <= low
            assert high <= before[1]
            inside &= low <= 0.3 <= high
            before = low, high
        missed += not inside
        assert before[1] - before[0] < 0.45
    assert missed <= 6  # 25 runs at 10 %: probability below 1 %


@pytest.mark.parametrize("make", SEQUENCES)
def test_one_side_gets_the_whole_error(make: type[ConfidenceSequence]) -> None:
    x = np.random.default_rng(3).beta(2, 2, 100)
    low, high = make(0.0, 1.0, level=0.9).update(x).interval
    lower = make(0.0, 1.0, level=0.95, sides="lower").update(x).interval
    upper = make(0.0, 1.0, level=0.95, sides="upper").update(x).interval
    assert (lower[0], upper[1]) == pytest.approx((low, high))
    assert (lower[1], upper[0]) == (math.inf, -math.inf)
    assert make(0.0, 1.0).interval == (0.0, 1.0)


def log_of(first: int, count: int, seed: int = 0) -> LoggedDataset:
    rng = np.random.default_rng(seed + first)
    actions = rng.integers(0, 2, count)
    return LoggedDataset.from_arrays(
        np.ones((count, 1)),
        actions,
        actions * 1.0,
        lengths=[1] * count,
        ends="terminal",
        behavior_prob=[0.5] * count,
        episode_ids=np.arange(first, first + count),
    )


def estimate_of(log: LoggedDataset, make: Any = PerDecisionIS) -> Estimate:
    estimate: Estimate = make(gamma=1.0).fit(log, TabularPolicy([[0.25, 0.75]])).estimate()
    return estimate


def test_estimates_of_new_episodes_update() -> None:
    sequence, plain = BettingSequence(0.0, 1.5), BettingSequence(0.0, 1.5)
    for first in (0, 100, 200):
        estimate = estimate_of(log_of(first, 100))
        assert estimate.scores is not None
        sequence.update(estimate)
        plain.update(estimate.scores)
    assert sequence.interval == plain.interval
    assert sequence.n_episodes == 300
    low, high = sequence.interval
    assert low < 0.75 < high
    assert "300 episodes" in repr(sequence)
    with pytest.raises(ValueError, match=r"new episodes only, got 50 of 100 that were counted before"):
        sequence.update(estimate_of(log_of(250, 100)))
    assert sequence.n_episodes == 300
    with pytest.raises(IntervalNotAvailable, match="no `scores`"):
        sequence.update(estimate_of(log_of(500, 100), WeightedIS))


@pytest.mark.parametrize("make", SEQUENCES)
def test_a_failed_update_leaves_the_sequence_as_it_was(
    make: type[ConfidenceSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (estimate_of(log_of(start, 100)) for start in (0, 100))
    assert second.scores is not None
    scores = np.append(second.scores[1:], 9.0)
    outside = replace(second, scores=scores, value=scores.mean())
    sequence, plain = make(0.0, 1.5).update(first), make(0.0, 1.5).update(first)
    before = sequence.interval
    with pytest.raises(ValueError, match="must lie in"):
        sequence.update(outside)
    with pytest.raises(ValueError, match="finite"):
        sequence.update([0.5, math.nan])

    def stop(_: FloatArray) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sequence._upper, "_bets", stop)  # when the lower end has moved already
    with pytest.raises(KeyboardInterrupt):
        sequence.update(second)
    monkeypatch.undo()
    assert (sequence.interval, sequence.n_episodes) == (before, 100)
    again, expected = sequence.update(second), plain.update(second)
    assert (again.interval, again.n_episodes) == (expected.interval, 200)
    with pytest.raises(ValueError, match="got 100 of 100 that were counted before"):
        sequence.update(second)


@pytest.mark.parametrize("make", SEQUENCES)
def test_copies_go_apart(make: type[ConfidenceSequence]) -> None:
    x, y = np.random.default_rng(4).beta(1, 4, (2, 60))
    one = make(0.0, 1.0).update(x[:20])
    two = copy.copy(one)
    one.update(x[20:40])
    two.update(y)
    one.update(x[40:])
    assert one.interval == pytest.approx(make(0.0, 1.0).update(x).interval, abs=1e-9)
    assert two.interval == pytest.approx(make(0.0, 1.0).update([*x[:20], *y]).interval, abs=1e-9)


def test_a_changed_process_is_told() -> None:
    sequence = BettingSequence(0.0, 1.0).update(np.zeros(300)).update(np.ones(3000))
    with pytest.raises(IntervalNotAvailable, match=r"after 3300 episodes no value is left.*change of the process"):
        _ = sequence.interval


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: BettingSequence(0.0, 1.0, level=1.0), r"`level` must lie in \(0, 1\), got 1.0"),
        (lambda: BettingSequence(0.0, 1.0, sides="left"), r"`sides` must be one of"),  # type: ignore[arg-type]
        (lambda: EmpiricalBernsteinSequence(1.0, 0.0), r"EmpiricalBernsteinSequence: `low` and `high`"),
        (lambda: BettingSequence(0.0, None), r"`high` must be given"),  # type: ignore[arg-type]
        (lambda: BettingSequence(0.0, 1.0).update([0.5, 2.0]), r"must lie in \[0.0, 1.0\], got 2.0"),
        (lambda: BettingSequence(0.0, 1.0).update([0.5, math.nan]), r"must be finite"),
    ],
)
def test_bad_input_is_refused(build: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()
