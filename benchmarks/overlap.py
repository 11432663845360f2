"""How much too good a learned policy looks when it is evaluated on the episodes it was learned from.

    python benchmarks/overlap.py [--repetitions 1000]

A greedy policy of a tabular model is learned on n episodes of one small problem. It is then evaluated on the same
episodes, on n others, and, as one would who has no more than n, learned on a half and evaluated on the other. The error
is the estimate less the exact value of the very policy that was learned. Results go to ``benchmarks/results/overlap.json``,
and the tables of ``docs/overlap.md`` are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits
from typing_extensions import Self

from ope import Level, LoggedDataset
from ope.estimator import OffPolicyEstimator
from ope.estimators import LSTDQ, DoublyRobust, WeightedIS
from ope.policy import PolicyLearner
from ope.problems import RandomMDP
from ope.ragged import shift_to_next
from ope.validation import FloatArray, IntArray

RESULTS = Path(__file__).resolve().parent / "results" / "overlap.json"
SIZES = (100, 200, 400, 800)
LEVEL = 0.95
WAYS = ("same episodes", "other episodes", "halves")
VALUE_ITERATIONS = 200


def problem() -> RandomMDP:
    """Return 20 states, 2 actions chosen by a coin, 4 steps, and rewards with as much noise as signal."""
    return RandomMDP(20, 2, horizon=4, exploration=1.0, reward_std=1.0, random_state=0)


def estimators(gamma: float) -> dict[str, OffPolicyEstimator]:
    """Return one estimator of each family."""
    return {"LSTDQ": LSTDQ(gamma=gamma), "WPDIS": WeightedIS(gamma=gamma), "DR": DoublyRobust(gamma=gamma)}


class GreedyModel(PolicyLearner):
    """The greedy policy of a tabular model of one-hot states, softened: what a user's own learner looks like.

    Parameters
    ----------
    gamma : float
    epsilon : float
        Share of the uniform policy.
    """

    def __init__(self, gamma: float, epsilon: float = 0.2) -> None:
        self.gamma = gamma
        self.epsilon = epsilon

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers."""
        return frozenset({"logged_prob", "all_probs"})

    def fit(self, data: LoggedDataset) -> Self:
        """Count transitions, iterate values, be greedy; actions that were never taken are not chosen."""
        rewards, transitions, seen = tabular_model(data)
        v = np.zeros(len(rewards))
        for _ in range(VALUE_ITERATIONS):
            q = np.where(seen, rewards + self.gamma * transitions @ v, -np.inf)
            v = np.where(seen.any(axis=1), q.max(axis=1), 0.0)
        greedy = np.eye(data.n_actions)[q.argmax(axis=1)]
        self.table_ = (1.0 - self.epsilon) * greedy + self.epsilon / data.n_actions
        self._remember(data)
        return self

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        """Return the probability of every action."""
        return np.asarray(self.table_[np.argmax(states, axis=1)])


def tabular_model(data: LoggedDataset) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Return mean rewards (S, A), transition frequencies (S, A, S) and which pairs were seen."""
    assert data.final_states is not None
    s: IntArray = data.states.argmax(axis=1)
    s_next = shift_to_next(s, data.offsets, data.final_states.argmax(axis=1))
    size, a = data.states.shape[1], data.actions
    counts, rewards = np.zeros((size, data.n_actions, size)), np.zeros((size, data.n_actions))
    np.add.at(counts, (s, a, s_next), 1.0)
    np.add.at(rewards, (s, a), data.rewards)
    n = counts.sum(axis=2)
    return rewards / np.maximum(n, 1.0), counts / np.maximum(n, 1.0)[:, :, None], n > 0


# -------------------------------------------------------------------- simulation


def parts(log: LoggedDataset) -> Iterator[tuple[LoggedDataset, LoggedDataset]]:
    """Yield the episodes to learn from and to evaluate on, for each of WAYS; the log has twice the budget."""
    n = log.n_episodes // 2
    mine = log.select(slice(0, n))
    yield mine, mine
    yield mine, log.select(slice(n, 2 * n))
    yield mine.split(test_size=0.5, random_state=0)


def one_repetition(mdp: RandomMDP, n: int, seed: int) -> FloatArray:
    """Return (ways, estimators, 6): truth, error, standard error, covered, lower bound above the truth, refused."""
    gamma = mdp.default_gamma
    log = mdp.sample(2 * n, random_state=seed)
    rows = []
    for train, test in parts(log):
        policy = GreedyModel(gamma).fit(train)
        truth = mdp.value(policy.table_)
        for estimator in estimators(gamma).values():
            estimate = estimator.fit(test, policy).estimate()
            low, high = estimate.confidence_interval(LEVEL)
            covered, above = low <= truth <= high, estimate.lower_bound(LEVEL) > truth
            refused = estimate.verdict.level == Level.REFUSE
            rows.append([truth, estimate.value - truth, estimate.std_error, covered, above, refused])
    return np.array(rows, dtype=np.float64).reshape(len(WAYS), -1, 6)


def simulate(n: int, repetitions: int) -> FloatArray:
    """Return the repetitions of one size, (repetitions, ways, estimators, 6)."""
    mdp = problem()
    with threadpool_limits(limits=1):
        return np.stack([one_repetition(mdp, n, seed) for seed in range(repetitions)])


def summarise(runs: FloatArray) -> dict[str, dict[str, dict[str, float]]]:
    """Return means and their standard errors, by way and estimator."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    root = np.sqrt(len(runs))
    for w, way in enumerate(WAYS):
        summary[way] = {}
        for e, name in enumerate(estimators(1.0)):
            truth, error, std_error, covered, above, refused = runs[:, w, e].T
            summary[way][name] = {
                "policy_value": truth.mean(),
                "policy_value_se": truth.std(ddof=1) / root,
                "over_estimation": error.mean(),
                "over_estimation_se": error.std(ddof=1) / root,
                "median_std_error": float(np.median(std_error)),
                "coverage": covered.mean(),
                "coverage_se": covered.std(ddof=1) / root,
                "bound_too_high": above.mean(),
                "bound_too_high_se": above.std(ddof=1) / root,
                "refused": refused.mean(),
            }
    return summary


# -------------------------------------------------------------------- report


def tables(results: dict[str, Any]) -> tuple[str, str]:
    """Return the tables of the documentation: the error on same and on other episodes, and the cost of halves."""
    errors = [
        "| episodes | estimator | over-estimation, same | other | standard error | coverage, same | other "
        "| bound too high, same | other |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    costs = [
        "| episodes | value, learned on all | on half | over-estimation by DR, all | halves |",
        "|---|---|---|---|---|",
    ]
    for n, by_way in results["sizes"].items():
        same, other, halves = (by_way[way] for way in WAYS)
        errors += [f"| {n} | {name} | {_row(same[name], other[name])} |" for name in same]
        keys = ("policy_value", "over_estimation")
        cells = [_with_error(way["DR"], key) for key in keys for way in (same, halves)]
        costs.append(f"| {n} | {' | '.join(cells)} |")
    return "\n".join(errors), "\n".join(costs)


def _row(same: dict[str, float], other: dict[str, float]) -> str:
    cells = [_with_error(part, "over_estimation") for part in (same, other)]
    cells.append(f"{same['median_std_error']:.3f}")
    for key in ("coverage", "bound_too_high"):
        cells += [f"{100 * part[key]:.1f} %" for part in (same, other)]
    return " | ".join(cells)


def _with_error(part: dict[str, float], key: str) -> str:
    rounded = round(part[key], 3) + 0.0  # no minus before a zero
    return f"{rounded:.3f} ± {part[key + '_se']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args().repetitions
    mdp = problem()
    results: dict[str, Any] = {
        "problem": repr(mdp),
        "gamma": mdp.default_gamma,
        "behavior_value": round(mdp.value(mdp.behavior), 4),
        "level": LEVEL,
        "repetitions": repetitions,
        "sizes": {},
    }
    for n in SIZES:
        summary = summarise(simulate(n, repetitions))
        results["sizes"][str(n)] = {
            way: {
                name: {key: round(float(value), 4) for key, value in numbers.items()} for name, numbers in named.items()
            }
            for way, named in summary.items()
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(*tables(results), sep="\n\n")


if __name__ == "__main__":
    main()
