"""Whether statements about the best of many policies hold: family-wise error, the winner's curse, paired differences.

    python benchmarks/selection.py [--repetitions 500]

Twenty candidates whose exact values are set by mixing random policies: all equal to the logged policy's, or spread around
it. Every repetition is a log of its own, valued by the estimators themselves; the statements are those of `ope.inference`
and of the gate of `PolicySelector`. Results go to
``benchmarks/results/selection.json``, and the tables of ``docs/selection.md`` are printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta
from threadpoolctl import threadpool_limits

from ope import Estimate
from ope.baseline import logged_value
from ope.estimator import OffPolicyEstimator
from ope.estimators import DoublyRobust, PerDecisionIS
from ope.files import replace_file
from ope.inference import best_set, rank_intervals, selected_value
from ope.policies import TabularPolicy
from ope.policy import Policy
from ope.problems import RandomMDP, RiverSwim
from ope.problems.tabular import TabularProblem
from ope.selection.gate import one_sided
from ope.selection.simultaneous import simultaneous
from ope.validation import FloatArray

RESULTS = Path(__file__).resolve().parent / "results" / "selection.json"
LEVEL = 0.95
GAMMA = 0.95
N_CANDIDATES = 20
N_EPISODES = 500
# Offsets of the candidates' values from the logged policy's.
CONFIGURATIONS = {
    "equal": np.zeros(N_CANDIDATES),
    "spread": np.linspace(-0.05, 0.05, N_CANDIDATES),
}
# The dearer estimator sees the configuration in which choosing is hardest.
STUDIES = (
    ("PerDecisionIS", "equal"),
    ("DoublyRobust", "equal"),
    ("PerDecisionIS", "spread"),
)
CORRECTIONS = ("hybrid", "conditional", "split")
N_PAIRS = 60
PAIR_EPISODES = 1000


def problem() -> RandomMDP:
    """Return 10 states, 3 actions, 4 steps, noisy rewards, and a logging policy that tries everything."""
    return RandomMDP(10, 3, horizon=4, exploration=0.6, reward_std=0.5, default_gamma=GAMMA, random_state=1)


def estimators() -> dict[str, OffPolicyEstimator]:
    """Return the estimators of the study."""
    return {"PerDecisionIS": PerDecisionIS(gamma=GAMMA), "DoublyRobust": DoublyRobust(gamma=GAMMA, n_folds=2)}


def policies_of_value(mdp: RandomMDP, offsets: FloatArray, share: float = 0.5) -> dict[str, Policy]:
    """Return different policies whose exact values are the logged policy's plus the offsets."""
    rng = np.random.default_rng(7)
    behavior = np.asarray(mdp.behavior)
    draws = [np.asarray(rng.dirichlet(np.ones(mdp.n_actions), len(behavior))) for _ in range(200)]
    values = [mdp.value(TabularPolicy(draw), gamma=GAMMA) for draw in draws]
    worst, best = draws[int(np.argmin(values))], draws[int(np.argmax(values))]
    target = mdp.value(TabularPolicy(behavior), gamma=GAMMA) + offsets
    return {
        f"p{k}": TabularPolicy(_mixed(mdp, (1.0 - share) * behavior + share * draws[k], (worst, best), float(value)))
        for k, value in enumerate(target)
    }


def _mixed(mdp: RandomMDP, start: FloatArray, ends: tuple[FloatArray, FloatArray], value: float) -> FloatArray:
    def gap(x: float) -> float:
        return mdp.value(TabularPolicy((1.0 - abs(x)) * start + abs(x) * ends[int(x > 0.0)]), gamma=GAMMA) - value

    x = brentq(gap, -1.0, 1.0, xtol=1e-13)
    return np.asarray((1.0 - abs(x)) * start + abs(x) * ends[int(x > 0.0)])


# -------------------------------------------------------------------- logs and their values


class Valued:
    """Values and influence of all candidates, and of the logged policy, on one log."""

    def __init__(self, estimates: dict[str, Estimate], logged: Estimate) -> None:
        self.values = np.array([e.value for e in estimates.values()])
        self.psi = np.column_stack([np.asarray(e.influence) for e in estimates.values()])
        self.errors = np.array([e.std_error for e in estimates.values()])
        self.bounds = np.array([e.lower_bound(LEVEL) for e in estimates.values()])
        self.simultaneous = simultaneous(estimates, LEVEL)["lower_bound"].to_numpy()
        self.gain = self.values - logged.value
        self.psi_gain = self.psi - np.asarray(logged.influence)[:, None]
        self.valid = sum(e.verdict.level.name == "VALID" for e in estimates.values())


def valued_logs(
    mdp: RandomMDP, estimator: OffPolicyEstimator, candidates: dict[str, Policy], repetitions: int
) -> Iterator[Valued]:
    """Yield the estimates on one log after another."""
    for seed in range(repetitions):
        log = mdp.sample(N_EPISODES, random_state=seed)
        yield Valued(dict(estimator.fit(log, candidates).estimate()), logged_value(log, GAMMA))


# -------------------------------------------------------------------- what is counted


def statements(log: Valued, truth: FloatArray, logged: float) -> dict[str, float]:
    """Return which statements about one log are wrong (1) or right (0), and the errors of the chosen value."""
    out: dict[str, float] = {}
    out["any lower bound above its value: naive"] = float((log.bounds > truth).any())
    out["any lower bound above its value: simultaneous"] = float((log.simultaneous > truth).any())
    harmful = truth <= logged + 1e-9
    for adjust in ("none", "holm", "max_t"):
        gate = one_sided(log.gain, log.psi_gain, np.zeros(len(truth)), alpha=1.0 - LEVEL, adjust=adjust)
        out[f"gate passes one that is not better: {adjust}"] = float((gate.rejected & harmful).any())
        out[f"passed by the gate, {adjust}"] = float(gate.rejected.mean())
    best = best_set(log.values, log.psi, 1.0 - LEVEL, n_replicates=4000)
    out["set for the best leaves it out"] = float(not best.members[np.argmax(truth)])
    out["size of the set for the best"] = float(best.members.sum())
    _, low, high = rank_intervals(log.values, log.psi, 1.0 - LEVEL, n_replicates=2000)
    above = (truth[None, :] > truth[:, None] + 1e-9).sum(axis=1)
    ties = (np.abs(truth[None, :] - truth[:, None]) <= 1e-9).sum(axis=1)
    out["any rank outside its interval"] = float(((low > above + ties) | (high < above + 1)).any())
    return out


def winner(log: Valued, truth: FloatArray, criterion: str) -> dict[str, float]:
    """Return errors, in standard errors, and coverage of the chosen value by each correction."""
    scores = log.values if criterion == "value" else log.bounds
    half = np.arange(len(log.psi)) % 2 == 0
    out: dict[str, float] = {}
    for method in CORRECTIONS:
        found = selected_value(log.values, log.psi, scores, LEVEL, method, half=half, n_replicates=5000)
        right, unit = truth[found.chosen], log.errors[found.chosen]
        out[f"error, {method}"] = (found.value - right) / unit
        out[f"above, {method}"] = float(found.value > right)
        out[f"covers, {method}"] = float(found.low <= right <= found.high)
        out[f"width, {method}"] = (found.high - found.low) / unit
        if method == "hybrid":
            out["error, naive"] = (found.naive_value - right) / unit
            out["above, naive"] = float(found.naive_value > right)
            out["covers, naive"] = float(found.naive_low <= right <= found.naive_high)
            out["width, naive"] = (found.naive_high - found.naive_low) / unit
            out["bound too high, naive"] = float(log.bounds[found.chosen] > right)
    return out


def clopper_pearson(count: int, n: int, level: float = 0.99) -> tuple[float, float]:
    """Return the exact interval of a probability.

    Examples
    --------
    >>> [round(end, 4) for end in clopper_pearson(0, 500)]
    [0.0, 0.0105]
    """
    tail = (1.0 - level) / 2.0
    low = float(beta.ppf(tail, count, n - count + 1)) if count > 0 else 0.0
    return low, float(beta.ppf(1.0 - tail, count + 1, n - count)) if count < n else 1.0


def study(mdp: RandomMDP, name: str, offsets: FloatArray, estimator: OffPolicyEstimator, n: int) -> dict[str, Any]:
    """Return all figures of one estimator and configuration."""
    candidates = policies_of_value(mdp, offsets)
    logged = mdp.value(TabularPolicy(np.asarray(mdp.behavior)), gamma=GAMMA)
    truth = np.array([mdp.value(policy, gamma=GAMMA) for policy in candidates.values()])
    truth = np.where(np.abs(truth - logged) < 1e-9, logged, truth)
    rows: dict[str, list[dict[str, float]]] = {"statements": [], "value": [], "lower_bound": []}
    valid, start = 0, time.process_time()
    correlation, error = 0.0, 0.0
    for log in valued_logs(mdp, estimator, candidates, n):
        rows["statements"].append(statements(log, truth, logged))
        for criterion in ("value", "lower_bound"):
            rows[criterion].append(winner(log, truth, criterion))
        valid += log.valid
        correlation += float(np.corrcoef(log.psi.T)[np.triu_indices(len(truth), 1)].mean()) / n
        error += float(log.errors.mean()) / n
    return {
        "configuration": name,
        "estimator": type(estimator).__name__,
        "repetitions": n,
        "valid_share": valid / n / len(truth),
        "mean_correlation": correlation,
        "mean_std_error": error,
        "spread_in_errors": float(np.ptp(truth) / error),
        **{part: _summary(found) for part, found in rows.items()},
        "cpu_seconds": time.process_time() - start,
    }


def _summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    out = {}
    for key in rows[0]:
        x = np.clip([row[key] for row in rows], -1e6, 1e6)
        out[key] = {
            "mean": float(x.mean()),
            "std_error": float(x.std(ddof=1) / np.sqrt(len(x))),
            "median": float(np.median(x)),
        }
        if set(np.unique(x)) <= {0.0, 1.0}:
            out[key]["low"], out[key]["high"] = clopper_pearson(int(x.sum()), len(x))
    return out


# -------------------------------------------------------------------- pairs


def pairs(n: int) -> list[dict[str, Any]]:
    """Return paired and unpaired widths for policies that differ in one state: each of 20, and each of the six of RiverSwim."""
    mdp = RandomMDP(20, 3, horizon=4, exploration=0.6, reward_std=0.5, default_gamma=GAMMA, random_state=1)
    mixed = 0.5 * np.asarray(mdp.behavior) + 0.5 * np.random.default_rng(0).dirichlet(np.ones(3), 20)
    river = RiverSwim(horizon=20, default_gamma=GAMMA)
    places = (("one of 20 states", mdp, mixed), ("one of RiverSwim's six", river, np.tile([0.3, 0.7], (6, 1))))
    return [
        {"place": place, "estimator": name, **_pair(here, estimator, table, n)}
        for place, here, table in places
        for name, estimator in estimators().items()
    ]


def _pair(mdp: TabularProblem, estimator: OffPolicyEstimator, table: FloatArray, n: int) -> dict[str, Any]:
    ratios, covered, levels = [], 0, []
    for seed in range(n):
        state = seed % len(table)
        other = table.copy()
        other[state] = np.roll(table[state], 1)
        candidates = {"one": TabularPolicy(table), "other": TabularPolicy(other)}
        truth = mdp.value(candidates["one"], gamma=GAMMA) - mdp.value(candidates["other"], gamma=GAMMA)
        estimates = estimator.fit(mdp.sample(PAIR_EPISODES, random_state=seed), candidates).estimate()
        a, b = estimates.values()
        low, high = (a - b).confidence_interval(LEVEL)
        ratios.append(float(np.hypot(a.std_error, b.std_error) / (a - b).std_error))
        covered += low <= truth <= high
        levels += [a.verdict.level.name, b.verdict.level.name]
    return {
        "logs": n,
        "ratio_median": float(np.median(ratios)),
        "ratio_lowest_tenth": float(np.quantile(ratios, 0.1)),
        "coverage": covered / n,
        "coverage_99": clopper_pearson(covered, n),
        "valid_share": levels.count("VALID") / len(levels),
    }


# -------------------------------------------------------------------- output


def tables(results: dict[str, Any]) -> str:
    """Return the tables of the documentation as Markdown."""
    return "\n\n".join([_error_table(results), _winner_table(results), _pair_table(results)])


def _studies(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [results[f"{method}, {name}"] for method, name in STUDIES]


def _error_table(results: dict[str, Any]) -> str:
    lines = ["| candidates | estimator | statement | wrong | 99 % interval |", "|---|---|---|---|---|"]
    for run in _studies(results):
        for key, found in run["statements"].items():
            if "low" in found:
                share = f"{found['mean']:.1%} | {found['low']:.1%} to {found['high']:.1%}"
                lines.append(f"| {run['configuration']} | {run['estimator']} | {key} | {share} |")
    return "\n".join(lines)


def _winner_table(results: dict[str, Any]) -> str:
    lines = [
        "| candidates | estimator | chosen by | value | mean error | estimate too high | coverage | width |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in _studies(results):
        for criterion in ("value", "lower_bound"):
            for method in ("naive", *CORRECTIONS):
                error, above, covers, width = (
                    run[criterion][f"{k}, {method}"] for k in ("error", "above", "covers", "width")
                )
                lines.append(
                    f"| {run['configuration']} | {run['estimator']} | {criterion.replace('_', ' ')} | {method} "
                    f"| {error['mean']:+.2f} ± {error['std_error']:.2f} | {above['mean']:.1%} ± {above['std_error']:.1%} "
                    f"| {covers['mean']:.1%} | {width['median']:.2f} |"
                )
    return "\n".join(lines)


def _pair_table(results: dict[str, Any]) -> str:
    lines = [
        "| policies differ in | estimator | unpaired / paired width, median | lowest tenth below | coverage of the paired interval | VALID |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run['place']} | {run['estimator']} | {run['ratio_median']:.1f} | {run['ratio_lowest_tenth']:.1f} "
        f"| {run['coverage']:.1%} | {run['valid_share']:.0%} |"
        for run in results["pairs"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=500)
    n = parser.parse_args().repetitions
    mdp, results = problem(), _earlier(n)
    parts: dict[str, Callable[[], Any]] = {
        "pairs": partial(pairs, min(n, N_PAIRS)),
    }
    parts |= {
        f"{method}, {name}": partial(study, mdp, name, CONFIGURATIONS[name], estimators()[method], n)
        for method, name in STUDIES
    }
    with threadpool_limits(limits=1):
        for part, work in parts.items():
            if part not in results:
                start = time.process_time()
                results[part] = work()
                print(f"{part}: {time.process_time() - start:.0f} s", flush=True)
                replace_file(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    print(f"\n{tables(results)}")


def _earlier(n: int) -> dict[str, Any]:
    """Return the parts of an interrupted run of the same size, to go on from there."""
    settings = {"level": LEVEL, "episodes": N_EPISODES, "candidates": N_CANDIDATES, "repetitions": n}
    if RESULTS.exists():
        earlier: dict[str, Any] = json.loads(RESULTS.read_text())
        if settings.items() <= earlier.items():
            return earlier
    return settings


if __name__ == "__main__":
    main()
