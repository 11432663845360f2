"""Lepski's choice against the rule in plain loops, and against what it is for: the balance of bias and variance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ope.inference.lepski import LepskiChoice, lepski_choice
from ope.validation import FloatArray


def influence_with(rng: np.random.Generator, std_errors: FloatArray, n: int = 200) -> FloatArray:
    """Return nested influence columns: later ones are parts of earlier ones, with these standard errors."""
    variances = np.append(np.square(std_errors), 0.0)
    parts = rng.normal(size=(n, len(std_errors))) * np.sqrt(variances[:-1] - variances[1:])
    psi = np.cumsum(parts[:, ::-1], axis=1)[:, ::-1] * math.sqrt(n)
    return np.asarray(psi - psi.mean(axis=0))


def plain_loops(theta: FloatArray, psi: FloatArray, multiplier: float, allowance: float) -> int:
    """Evaluate max {i : |theta_i - theta_j| <= limit_ij for all j < i} among options of falling standard error."""
    n, chosen = len(psi), 0

    def error(column: FloatArray) -> float:
        return math.sqrt(sum(float(x) ** 2 for x in column) / (n * (n - 1)))

    for i in range(1, len(theta)):
        better = all(error(psi[:, i]) < error(psi[:, j]) for j in range(i))
        agrees = True
        for j in range(i):
            limit = multiplier * error(psi[:, i] - psi[:, j]) + allowance * error(psi[:, i])
            agrees = agrees and abs(theta[i] - theta[j]) <= limit
        chosen = i if better and agrees else chosen
    return chosen


@pytest.mark.parametrize("allowance", [0.0, 1.0])
@pytest.mark.parametrize("multiplier", [0.5, 2.0])
def test_the_paired_rule_in_plain_loops(multiplier: float, allowance: float) -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        m = int(rng.integers(1, 6))
        psi = rng.normal(size=(30, m)) * rng.uniform(0.2, 1.0, size=m)
        psi -= psi.mean(axis=0)
        theta = 0.15 * rng.normal(size=m)
        choice = lepski_choice(theta, psi, multiplier=multiplier, allowance=allowance)
        assert choice.index == plain_loops(theta, psi, multiplier, allowance)
        seen.add(choice.index)
    assert len(seen) >= 3


def test_the_published_rule_in_plain_loops() -> None:
    rng, slack, seen = np.random.default_rng(1), math.sqrt(6.0) - 1.0, set()
    for _ in range(60):
        errors = np.sort(rng.uniform(0.1, 1.0, size=5))[::-1]
        theta = rng.normal(size=5)
        passing = [
            i
            for i in range(5)
            if all(abs(theta[i] - theta[j]) <= 2.0 * (errors[i] + slack * errors[j]) for j in range(i))
        ]
        index = lepski_choice(theta, std_errors=errors, multiplier=2.0).index
        assert index == max(passing)
        seen.add(index)
    assert len(seen) >= 2


def test_replicates_know_the_errors_of_differences_as_influence_does() -> None:
    rng = np.random.default_rng(2)
    psi = influence_with(rng, np.array([1.0, 0.5, 0.2]))
    theta = np.array([0.0, 0.4, 2.5])
    draws = theta + rng.normal(size=(4000, len(psi))) @ psi / len(psi)
    by_psi, by_draws = lepski_choice(theta, psi), lepski_choice(theta, replicates=draws)
    assert by_psi.index == by_draws.index == 1
    np.testing.assert_allclose(by_draws.std_errors, by_psi.std_errors, rtol=0.05)
    for found, expected in zip(by_draws.comparisons, by_psi.comparisons, strict=True):
        assert found.limit == pytest.approx(expected.limit, rel=0.05)


def test_pairing_sees_a_bias_that_the_sum_of_errors_hides() -> None:
    psi = influence_with(np.random.default_rng(3), np.array([1.0, 0.99]))
    theta = np.array([0.0, 1.0])
    errors = lepski_choice(theta, psi).std_errors
    assert lepski_choice(theta, psi).index == 0
    assert lepski_choice(theta, std_errors=errors).index == 1


def test_the_first_option_is_the_unbiased_one() -> None:
    """Equal values: the least variable, last one; a clear bias from some option on: the one before."""
    psi = influence_with(np.random.default_rng(4), np.array([1.0, 0.5, 0.25, 0.1]))
    assert lepski_choice([0.0, 0.0, 0.0, 0.0], psi).index == 3
    assert lepski_choice([0.0, 0.0, 9.0, 9.0], psi).index == 1
    assert lepski_choice([9.0, 0.0, 0.0, 0.0], psi).index == 0


def test_an_option_that_is_no_more_precise_is_not_chosen() -> None:
    psi = influence_with(np.random.default_rng(5), np.array([1.0, 0.5]))
    same = np.column_stack([psi, psi[:, 1], 1.5 * psi[:, 1]])
    assert lepski_choice([0.0, 0.0, 0.0, 0.0], same).index == 1
    assert lepski_choice([0.0], psi[:, :1]).index == 0


def test_unusable_options_neither_object_nor_win() -> None:
    psi = influence_with(np.random.default_rng(6), np.array([1.0, 0.5, 0.2]))
    theta = [50.0, 0.0, 0.1]
    assert lepski_choice(theta, psi).index == 0
    without_first = lepski_choice(theta, psi, usable=[False, True, True])
    assert without_first.index == 2
    assert {comparison.against for comparison in without_first.comparisons} == {1}
    assert np.isinf(without_first.std_errors[0])
    broken = psi.copy()
    broken[3, 0] = np.inf
    assert lepski_choice(theta, broken).index == 2
    assert lepski_choice([np.nan, 0.0, 0.1], psi).index == 2
    assert lepski_choice(theta, psi, usable=[True, True, False]).index == 0
    assert lepski_choice(theta, psi, usable=[False] * 3).index == 2


def test_one_episode_knows_no_noise() -> None:
    choice = lepski_choice([1.0, 2.0], np.zeros((1, 2)))
    assert choice.index == 1
    assert choice.comparisons == ()


@pytest.mark.parametrize("factor", [-3.0, 1e-200, 1e200])
def test_units_do_not_matter(factor: float) -> None:
    psi = influence_with(np.random.default_rng(7), np.array([1.0, 0.5, 0.2]))
    theta = np.array([0.0, 0.3, 3.0])
    scaled = lepski_choice(factor * theta, factor * psi)
    assert scaled.index == lepski_choice(theta, psi).index == 1


def test_the_table_says_why() -> None:
    psi = influence_with(np.random.default_rng(8), np.array([1.0, 0.5, 0.2]))
    choice = lepski_choice([0.0, 0.1, 5.0], psi)
    assert isinstance(choice, LepskiChoice)
    assert choice.index == 1
    assert not choice.at_end
    rows = choice.rows(["all", "half", "none"])
    assert [(row["option"], row["against"], row["passed"]) for row in rows] == [
        ("half", "all", True),
        ("none", "all", False),
        ("none", "half", False),
    ]
    assert rows[1]["difference"] == 5.0
    assert choice.objection is not None
    assert choice.objection.option == 2
    assert choice.reason(["all", "half", "none"]).startswith("half was chosen: none differs from half by 4.9")
    assert "no less biased one contradicts it" in lepski_choice([0.0, 0.0, 0.0], psi).reason()
    assert "no more biased option is more precise" in lepski_choice([0.0, 0.0], psi[:, [1, 0]]).reason()
    assert [row["option"] for row in choice.rows()] == [1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"values": []}, "values"),
        ({"values": [[1.0]]}, "values"),
        ({"values": [1.0, 2.0]}, "one of"),
        ({"values": [1.0, 2.0], "influence": np.zeros((3, 2)), "std_errors": [1.0, 1.0]}, "one of"),
        ({"values": [1.0, 2.0], "influence": np.zeros((3, 3))}, "influence"),
        ({"values": [1.0, 2.0], "replicates": np.zeros(3)}, "replicates"),
        ({"values": [1.0, 2.0], "std_errors": [1.0]}, "std_errors"),
        ({"values": [1.0, 2.0], "std_errors": [1.0, -1.0]}, "std_errors"),
        ({"values": [1.0, 2.0], "std_errors": [1.0, 1.0], "usable": [1, 0]}, "usable"),
        ({"values": [1.0, 2.0], "std_errors": [1.0, 1.0], "multiplier": -1.0}, "multiplier"),
        ({"values": [1.0, 2.0], "std_errors": [1.0, 1.0], "allowance": math.nan}, "allowance"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], fragment: str) -> None:
    with pytest.raises(ValueError, match=f"^lepski_choice: .*{fragment}"):
        lepski_choice(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("first_bias", [0.005, 0.02, 0.1, 0.5])
def test_the_choice_is_near_the_balance_of_bias_and_variance(first_bias: float) -> None:
    """Standard errors fall by .6, biases double: the error stays within a constant of that of the best fixed option."""
    rng, m, repetitions = np.random.default_rng(9), 8, 400
    errors, bias = np.power(0.6, np.arange(m, dtype=np.float64)), np.append(0.0, first_bias * 2.0 ** np.arange(m - 1))
    psi = influence_with(rng, errors, n=2000)
    chosen = []
    for _ in range(repetitions):
        theta = bias + rng.normal(size=len(psi)) @ psi / len(psi)
        chosen.append(theta[lepski_choice(theta, psi, multiplier=2.5, allowance=1.0).index])
    best = float(np.sqrt((errors**2 + bias**2).min()))
    rmse = float(np.sqrt(np.mean(np.square(chosen))))
    assert rmse < 2.3 * best
    assert rmse < 1.8 * max(errors[0] / 2.0, best)
