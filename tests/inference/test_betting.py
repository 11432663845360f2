"""Betting: fair games by enumeration, capital by a plain loop, bounds that do not need a bound of the weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from ope.inference import (
    Betting,
    Hoeffding,
    IntervalNotAvailable,
    ReflectedBetting,
    betting_interval,
    hash_identifiers,
    mixture_lower,
    reflected_interval,
)
from ope.inference.betting import FRACTIONS, RunningMoments, log_capital, plug_in_bets

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    scores: FloatArray
    weights: FloatArray | None = None
    influence: FloatArray | None = None
    replicates: FloatArray | None = None
    known_propensities: bool = True
    effective_size: float | None = None
    keys: npt.NDArray[np.uint64] | None = None
    value: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.scores.mean()))

    @property
    def episode_keys(self) -> npt.NDArray[np.uint64]:
        return hash_identifiers(range(len(self.scores))) if self.keys is None else self.keys


def capital(x: FloatArray, m: float, alpha: float, total: int, cap: float = 0.5) -> list[float]:
    """The gambler's capital after each value, step by step on Python numbers."""
    wealth = 1.0
    path: list[float] = []
    seen: list[float] = []
    squares = 0.0
    for value in x.tolist():
        spread = (0.25 + squares) / (len(seen) + 1)
        bet = min(math.sqrt(2.0 * math.log(1.0 / alpha) / (total * spread)), cap / m)
        wealth *= 1.0 + bet * (value - m)
        seen.append(value)
        centre = (0.5 + sum(seen)) / (len(seen) + 1)
        squares += (value - centre) ** 2
        path.append(wealth)
    return path


def bets_of(x: FloatArray, alpha: float) -> FloatArray:
    return plug_in_bets(RunningMoments().advance(x)[1], alpha, float(len(x)))


def test_capital_agrees_with_a_plain_loop() -> None:
    x = np.random.default_rng(0).beta(2, 5, 40)
    for m in (0.05, 0.3, 0.9):
        np.testing.assert_allclose(
            np.exp(log_capital(x, bets_of(x, 0.05), m, 0.5)), capital(x, m, 0.05, 40), rtol=1e-10
        )


@pytest.mark.parametrize("m", [0.1, 0.5])
def test_the_game_is_fair(m: float) -> None:
    """The expected capital over all sequences of 0 and 1 of mean m is 1, so that Ville's inequality applies."""
    expected = crossed = 0.0
    for outcome in itertools.product((0.0, 1.0), repeat=9):
        x = np.array(outcome)
        probability = float(np.prod(np.where(x == 1.0, m, 1.0 - m)))
        path = log_capital(x, bets_of(x, 0.2), m, 0.5)
        expected += probability * math.exp(path[-1])
        crossed += probability * bool(path.max() >= math.log(5.0))
    assert expected == pytest.approx(1.0, rel=1e-10)
    assert 0.0 < crossed <= 0.2


def test_the_mixture_is_fair() -> None:
    """Weights 0, 1 and 4 of mean 1: the exact probability that the lower bound exceeds 1 is at most alpha."""
    values, probabilities = np.array([0.0, 1.0, 4.0]), np.array([0.6, 0.2, 0.2])
    expected = missed = 0.0
    for outcome in itertools.product(range(3), repeat=5):
        y, p = values[list(outcome)], float(np.prod(probabilities[list(outcome)]))
        expected += p * float(np.mean([np.prod(1.0 + fraction * (y - 1.0)) for fraction in FRACTIONS]))
        missed += p * (mixture_lower(y, 0.3) > 1.0)
    assert expected == pytest.approx(1.0, rel=1e-10)
    assert 0.0 < missed <= 0.3


@pytest.mark.parametrize(("alpha_low", "alpha_high"), [(0.025, 0.025), (0.05, 0.01)])
def test_ends_are_where_capital_reaches_its_goal(alpha_low: float, alpha_high: float) -> None:
    x = np.random.default_rng(1).beta(2, 5, 60)
    low, high = betting_interval(10.0 * x - 3.0, -3.0, 7.0, alpha_low, alpha_high)
    low, high = (low + 3.0) / 10.0, (high + 3.0) / 10.0
    assert max(capital(x, low, alpha_low, 60)) == pytest.approx(1.0 / alpha_low, rel=1e-6)
    assert max(capital(1.0 - x, 1.0 - high, alpha_high, 60)) == pytest.approx(1.0 / alpha_high, rel=1e-6)
    assert low < x.mean() < high


def test_one_sided_ends_are_the_ends_at_their_own_tail() -> None:
    x = np.random.default_rng(2).beta(1, 1, 50)
    low, high = betting_interval(x, 0.0, 1.0, 0.05, 0.1)
    assert betting_interval(x, 0.0, 1.0, 0.05, 0.0) == (low, math.inf)
    assert betting_interval(x, 0.0, 1.0, 0.0, 0.1) == (-math.inf, high)
    reflected = betting_interval(1.0 - x, 0.0, 1.0, 0.1, 0.05)
    assert reflected == pytest.approx((1.0 - high, 1.0 - low), abs=1e-9)


def test_mixture_end_is_where_capital_reaches_its_goal() -> None:
    y = np.random.default_rng(3).lognormal(sigma=2.0, size=80)
    low = mixture_lower(y, 0.05)
    assert np.mean([np.prod(1.0 + fraction * (y / low - 1.0)) for fraction in FRACTIONS]) == pytest.approx(
        20.0, rel=1e-6
    )
    assert 0.0 < low < y.mean()
    assert mixture_lower(1e-200 * y, 0.05) == pytest.approx(1e-200 * low, rel=1e-9)
    assert mixture_lower(np.zeros(3), 0.05) == 0.0
    shifted = betting_interval(y - 2.0, -2.0, None, 0.05, 0.05)
    assert shifted[0] == pytest.approx(low - 2.0)
    assert shifted[1] == math.inf


def test_narrower_than_hoeffding_where_the_variance_is_small() -> None:
    x = np.random.default_rng(4).beta(50, 50, 300)
    low, high = Betting(0.0, 1.0).bounds(Log(x), 0.025, 0.025)
    wide = Hoeffding(0.0, 1.0).bounds(Log(x), 0.025, 0.025)
    assert high - low < 0.4 * (wide[1] - wide[0])


def test_hashed_order_does_not_depend_on_the_log_and_logged_order_does() -> None:
    x, keys = np.random.default_rng(5).beta(1, 3, 40), hash_identifiers(range(40))
    order = np.argsort(x)
    shuffled = Log(x[order], keys=keys[order])
    assert Betting(0.0, 1.0).bounds(Log(x), 0.05, 0.05) == Betting(0.0, 1.0).bounds(shuffled, 0.05, 0.05)
    logged = Betting(0.0, 1.0, order="logged")
    assert logged.bounds(Log(x), 0.05, 0.05) == betting_interval(x, 0.0, 1.0, 0.05, 0.05)
    assert logged.bounds(Log(x), 0.05, 0.05) != logged.bounds(shuffled, 0.05, 0.05)


def test_reflection_bounds_both_sides_without_a_bound_of_the_weights() -> None:
    rng = np.random.default_rng(6)
    w, returns = rng.lognormal(-0.5, 1.0, 400), rng.uniform(-1.0, 3.0, 400)
    low, high = reflected_interval(w, w * returns, -1.0, 3.0, 0.05, 0.1)
    g = (returns + 1.0) / 4.0
    assert low == pytest.approx(-1.0 + 4.0 * mixture_lower(w * g, 0.05), rel=1e-9)
    assert high == pytest.approx(3.0 - 4.0 * mixture_lower(w * (1.0 - g), 0.1), rel=1e-9)
    assert low < 1.0 < high  # E[w] = 1 and returns are independent of it
    sample = Log(w * returns, weights=w)
    assert ReflectedBetting(-1.0, 3.0).bounds(sample, 0.05, 0.1) == (low, high)
    assert ReflectedBetting(-1.0, 3.0).bounds(sample, 0.05, 0.0) == (low, math.inf)
    assert reflected_interval(np.zeros(3), np.zeros(3), -1.0, 3.0, 0.05, 0.05) == (-1.0, 3.0)


def test_reflection_holds_where_few_episodes_carry_the_weight() -> None:
    """A rare event of probability 1/50 carries 4/5 of the weight: n = 60, the t interval misses in most logs without it."""
    rng, missed = np.random.default_rng(7), 0
    for _ in range(100):
        rare = rng.random(60) < 0.02
        w = np.where(rare, 40.0, 0.2 / 0.98)
        low, high = reflected_interval(w, w * rare, 0.0, 1.0, 0.025, 0.025)
        missed += not low <= 0.8 <= high
    assert missed <= 6


def test_bad_input_is_refused() -> None:
    sample = Log(np.array([0.5, 2.0]), weights=np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match=r"returns must lie in \[0.0, 1.0\], got 2 first at rows 1 \(1 in all\)"):
        ReflectedBetting(0.0, 1.0).bounds(sample, 0.05, 0.05)
    with pytest.raises(ValueError, match=r"`weights` must not be negative, got -1"):
        reflected_interval(np.array([-1.0]), np.array([0.0]), 0.0, 1.0, 0.05, 0.05)
    with pytest.raises(IntervalNotAvailable, match=r"ReflectedBetting: .*no `weights`.*TrajectoryIS"):
        ReflectedBetting(0.0, 1.0).bounds(Log(np.array([0.5])), 0.05, 0.05)
    estimated = Log(np.array([0.5]), weights=np.ones(1), known_propensities=False)
    with pytest.raises(IntervalNotAvailable, match=r"ReflectedBetting: the propensities are estimated"):
        ReflectedBetting(0.0, 1.0).bounds(estimated, 0.05, 0.05)
    with pytest.raises(ValueError, match=r"betting_interval: `x` must lie in"):
        Betting(0.0, 1.0).bounds(sample, 0.05, 0.05)
    with pytest.raises(ValueError, match=r"Betting: `order` must be one of"):
        Betting(0.0, 1.0, order="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ReflectedBetting: `low` and `high` must be finite"):
        ReflectedBetting(1.0, 0.0)
