"""``python -m ope demo``: choose a policy for a Gymnasium environment from a log, then check the choice by playing."""

from __future__ import annotations

import argparse
import shlex
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ope.cli.evaluate import write_table
from ope.cli.table import WIDTH, columns_text, decimals, interval, number, results_text
from ope.dataset import LoggedDataset
from ope.estimators import LSTDQ, DoublyRobust, WeightedIS
from ope.frame import FrameArguments
from ope.policies import BCQ, BehaviorCloning, ClassifierPolicy, EpsilonGreedy, TabularPolicy
from ope.policy import Policy, PolicyLearner
from ope.problems.gym import GymSimulator
from ope.selection import PolicySelector
from ope.verdict import Level

GAMMA = 0.99
LEVEL = 0.95
N_CELLS = 16
CELLS = tuple(f"cell_{i}" for i in range(N_CELLS))
ARROWS = "LDRU"
# One arrow a cell of the 4 x 4 lake, dots for holes and the goal. The ice carries the walker to one of the three sides
# that are not behind: the way that is shortest on the map leads along the holes.
OPERATOR = "LUDU L.L. RDL. .RR."
SHORTEST = "DRDL D.D. RDD. .RR."
OPERATOR_NOISE = 0.3
OPERATOR_NAME = "(operator)"
COLUMNS = FrameArguments(
    episode="episode",
    time="time",
    states=CELLS,
    action="action",
    reward="reward",
    behavior_prob="behavior_prob",
    terminated="terminated",
    truncated="truncated",
    next_states=[f"next_{cell}" for cell in CELLS],
)


@dataclass(frozen=True)
class Size:
    """How much the demo does.

    Parameters
    ----------
    episodes : int
        Of the log.
    cloning, q_learning : int
        Gradient steps.
    rollouts : int
        Episodes that measure a candidate's true value.
    """

    episodes: int = 4000
    cloning: int = 1500
    q_learning: int = 4000
    rollouts: int = 10_000


FAST = Size(episodes=1500, cloning=500, q_learning=1500, rollouts=4000)


def demo(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if a candidate was chosen, else 1."""
    start = time.perf_counter()
    size = FAST if arguments.fast else Size()
    with _folder(arguments.output) as folder:
        train, test = log_and_read_back(folder, size, arguments.seed)
        candidates = train_candidates(train, size, arguments.seed)
        selector = choose(test, candidates)
        truth = reveal(candidates, size, arguments.seed)
        check(selector, truth)
        if arguments.output is not None:
            keep(folder, test, candidates, selector)
    print(f"\nTook {time.perf_counter() - start:.0f} s.")
    return 0 if selector.best_name_ is not None else 1


@contextmanager
def _folder(output: str | None) -> Iterator[Path]:
    if output is not None:
        path = Path(output)
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


# -------------------------------------------------------------------- 1. the log


def rule(arrows: str) -> TabularPolicy:
    """Return the deterministic policy that follows one arrow a cell."""
    actions = [max(ARROWS.find(arrow), 0) for arrow in arrows.replace(" ", "")]
    return TabularPolicy(np.eye(len(ARROWS))[actions])


def operator() -> Policy:
    """Return the logging policy: a rule of thumb with noise, whose probabilities are known."""
    return EpsilonGreedy(rule(OPERATOR), OPERATOR_NOISE)


def log_and_read_back(folder: Path, size: Size, seed: int) -> tuple[LoggedDataset, LoggedDataset]:
    """Log the operator, write Parquet, read it back through pandas and split it by episode."""
    print(
        "1. A log. Gymnasium's FrozenLake-v1: cross slippery ice of 16 cells without falling into a hole; reward 1 at"
    )
    print("   the goal. An operator follows a rule of thumb and errs in 30 % of the steps. The probability of each")
    print(f"   action is logged. Value = expected sum of rewards discounted by {GAMMA}.\n")
    path = folder / "log.parquet"
    simulator = GymSimulator("FrozenLake-v1", feature_names=CELLS)
    write_table(simulator.sample(operator(), size.episodes, random_state=seed).to_pandas(), path)
    frame = pd.read_parquet(path)
    log = LoggedDataset.from_pandas(frame, **COLUMNS)
    shown = ["episode", "time", "action", "reward", "behavior_prob", "terminated", "truncated"]
    print(_indented(frame[shown].head(4).to_string(index=False)))
    print(f"\n{textwrap.fill(str(log), WIDTH, initial_indent='   ', subsequent_indent='   ')}")
    train, test = log.split(test_size=0.5, random_state=seed)
    print(f"   Split by episode: {train.n_episodes} to learn from, {test.n_episodes} to evaluate on.\n")
    return train, test


# -------------------------------------------------------------------- 2. candidates


def train_candidates(train: LoggedDataset, size: Size, seed: int) -> dict[str, Policy]:
    """Return the candidate policies, learned from the training half where they learn."""
    print("2. Candidates.")
    start = time.perf_counter()
    network: dict[str, Any] = {"hidden": (64, 64), "learning_rate": 1e-3, "random_state": seed}
    clone = BehaviorCloning(n_updates=size.cloning, **network).fit(train)
    settings = {"gamma": GAMMA, "n_updates": size.q_learning, **network}
    free, bound = BCQ.fit_many(train, [BCQ(threshold=0.02, **settings), BCQ(threshold=0.3, **settings)])
    described: dict[str, tuple[Policy, str]] = {
        "clone": (clone, "BehaviorCloning: what the operator does, noise included"),
        "steady clone": (EpsilonGreedy(clone, 0.1), "the clone's most probable action, noise in 10 % of the steps"),
        "winners": (
            ClassifierPolicy(winners(train)),
            "a scikit-learn classifier of the actions in episodes that got there",
        ),
        "shortest way": (EpsilonGreedy(rule(SHORTEST), 0.1), "a rule by hand: the shortest way on the map"),
        "bcq bound": (bound, "BCQ, threshold 0.3: only what the operator does often"),
        "bcq free": (free, "BCQ, threshold 0.02: whatever the log has seen"),
        "bcq free, noisy": (EpsilonGreedy(free, 0.2), "the same with noise in 20 % of the steps"),
    }
    print(_indented(columns_text(("name", "policy"), [(name, words) for name, (_, words) in described.items()])))
    print(f"   Trained in {time.perf_counter() - start:.0f} s.\n")
    return {name: policy for name, (policy, _) in described.items()}


def winners(train: LoggedDataset) -> Any:
    """Return a classifier of the actions in the episodes that reached the goal."""
    from sklearn.linear_model import LogisticRegression

    reached = np.add.reduceat(train.rewards, train.offsets[:-1]) > 0
    rows = np.repeat(reached, train.lengths)
    return LogisticRegression(C=10.0).fit(train.states[rows], train.actions[rows])


# -------------------------------------------------------------------- 3. the choice


def choose(test: LoggedDataset, candidates: Mapping[str, Policy]) -> PolicySelector:
    """Value the candidates on the evaluation half and print estimates, verdicts and the choice."""
    print(
        "3. Estimates from the other half, without playing. VALID: the interval can be used. CAUTION: read why first."
    )
    print("   REFUSE: this log cannot answer in this way; the number means nothing.\n")
    estimators = [DoublyRobust(gamma=GAMMA), WeightedIS(gamma=GAMMA), LSTDQ(gamma=GAMMA)]
    selector = PolicySelector(estimators, criterion="lower_bound", level=LEVEL).fit(test, candidates)
    print(results_text(selector.results_, selector.estimates_, LEVEL, (selector.best_name_, selector.primary_)))
    print(f"\n{textwrap.fill(f'Choice: {selector.decision_}', WIDTH)}\n")
    return selector


# -------------------------------------------------------------------- 4. the truth


@dataclass(frozen=True)
class Truth:
    """A policy's mean return over episodes that it played itself, and its standard error."""

    value: float
    std_error: float


def reveal(candidates: Mapping[str, Policy], size: Size, seed: int) -> dict[str, Truth]:
    """Play the operator and every candidate."""
    print(f"4. The truth: {size.rollouts} episodes of each candidate.\n")
    simulator = GymSimulator("FrozenLake-v1", max_steps=1000)
    players = {OPERATOR_NAME: operator(), **candidates}
    streams = np.random.SeedSequence([seed, 1]).spawn(len(players))
    truth = {}
    for (name, policy), stream in zip(players.items(), streams, strict=True):
        returns = simulator.returns(policy, size.rollouts, gamma=GAMMA, random_state=np.random.default_rng(stream))
        truth[name] = Truth(float(returns.mean()), float(returns.std(ddof=1) / np.sqrt(len(returns))))
    return truth


def check(selector: PolicySelector, truth: Mapping[str, Truth]) -> None:
    """Print true values beside the deciding estimates, and how good the choice and the intervals were."""
    rows = [{str(name): value for name, value in row.items()} for row in selector.results_.to_dict("records")]
    for row in rows:
        row["covers"] = row["low"] <= truth[row["candidate"]].value <= row["high"]
    deciding = {row["candidate"]: row for row in rows if row["estimator"] == selector.primary_}
    digits = decimals([true.value for true in truth.values()])
    table = [_truth_row(name, true, deciding.get(name), digits) for name, true in truth.items()]
    marked = [(">" if row[0] == selector.best_name_ else "", *row) for row in table]
    header = ("", "candidate", "true value", "std. error", str(selector.primary_), f"{LEVEL:.0%} interval", "")
    print(columns_text(header, marked, right=(2, 3, 4)) + "\n")
    if selector.best_name_ is not None:
        print(_words_on_choice(selector.best_name_, truth, deciding, digits))
    print(_words_on_intervals(rows))


def _truth_row(name: str, true: Truth, said: Mapping[str, Any] | None, digits: int) -> tuple[str, ...]:
    played = (name, number(true.value, digits), number(true.std_error, digits))
    if said is None:
        return *played, "", "", ""
    judged = f"{'holds' if said['covers'] else 'misses'} ({said['verdict']})"
    return *played, number(said["value"], digits), interval(said["low"], said["high"], digits), judged


def _words_on_choice(
    chosen: str, truth: Mapping[str, Truth], deciding: Mapping[str, Mapping[str, Any]], digits: int
) -> str:
    best = max(deciding, key=lambda name: truth[name].value)
    regret = truth[best].value - truth[chosen].value
    error = 0.0 if best == chosen else float(np.hypot(truth[best].std_error, truth[chosen].std_error))
    answered = [name for name, row in deciding.items() if row["verdict"] != "REFUSE"]
    today = truth[OPERATOR_NAME].value
    gain = f", {truth[chosen].value / today:.1f} times the operator" if today > 0 else ""
    return (
        f"The choice, {chosen!r}, is worth {number(truth[chosen].value, digits)}{gain}.\n"
        f"Regret to the best candidate, {best!r}: {number(regret, digits)} (std. error {number(error, digits)}).\n"
        f"Rank correlation of {len(answered)} answers with the truth: "
        f"{_rank_correlation([deciding[name]['value'] for name in answered], [truth[name].value for name in answered]):.2f}."
    )


def _rank_correlation(a: list[float], b: list[float]) -> float:
    return float(pd.Series(a).rank().corr(pd.Series(b).rank()))


def _words_on_intervals(rows: list[dict[str, Any]]) -> str:
    parts = []
    for level in Level:
        covers = [row["covers"] for row in rows if row["verdict"] == level.name and np.isfinite(row["low"])]
        parts.append(f"{level.name} {sum(covers)} of {len(covers)}")
    return f"Intervals that hold the truth, by verdict: {', '.join(parts)}.\nThey share one log, so they err together."


# -------------------------------------------------------------------- files


def keep(folder: Path, test: LoggedDataset, candidates: Mapping[str, Policy], selector: PolicySelector) -> None:
    """Write the evaluation half, the learned policies and the results, and print the command that values them."""
    write_table(test.to_pandas(), folder / "evaluation.parquet")
    write_table(selector.results_, folder / "results.csv")
    report = _report(selector, folder / "report.html")
    sources = []
    for name, policy in candidates.items():
        if isinstance(policy, PolicyLearner):
            path = folder / f"{name.replace(' ', '_')}.safetensors"
            policy.save(path)
            sources.append(f"--candidate {shlex.quote(f'{path.stem}={path}')}")
    command = [
        f"python -m ope evaluate {shlex.quote(str(folder / 'evaluation.parquet'))} --episode episode --time time",
        f"--states {' '.join(CELLS)}",
        "--action action --reward reward --behavior-prob behavior_prob",
        "--terminated terminated --truncated truncated",
        f"--next-states {' '.join(f'next_{cell}' for cell in CELLS)}",
        f"--gamma {GAMMA}",
        *sources,
    ]
    print(f"\nLog, policies and results are in {folder}. {report} The same from files:\n")
    print(" \\\n    ".join(command))


def _report(selector: PolicySelector, path: Path) -> str:
    try:
        selector.report(path, title="Demo: which policy crosses the lake?")
    except ImportError as error:
        return f"There is no report: {error}."
    return f"Open {path.name} in a browser to read the report."


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
