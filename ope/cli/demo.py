"""``python -m ope demo``: choose a policy for a Gymnasium environment from a log, then check the choice by playing."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ope.cli.evaluate import write_table
from ope.cli.table import columns_text, decimals, interval, number, results_text
from ope.dataset import LoggedDataset
from ope.estimators import LSTDQ, DoublyRobust, WeightedIS
from ope.frame import FrameArguments
from ope.policies import BCQ, BehaviorCloning, ClassifierPolicy, EpsilonGreedy, TabularPolicy
from ope.policy import Policy, PolicyLearner
from ope.problems.gym import GymSimulator
from ope.selection import PolicySelector
from ope.validation import FloatArray

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
    rollouts: int = 20_000


FAST = Size(episodes=1500, cloning=500, q_learning=1500, rollouts=4000)


def demo(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if a candidate was chosen, else 1."""
    size = FAST if arguments.fast else Size()
    with _folder(arguments.output) as folder:
        train, test = log_and_read_back(folder, size, arguments.seed)
        candidates = train_candidates(train, size, arguments.seed)
        selector = choose(test, candidates)
        truth = reveal(candidates, size, arguments.seed)
        check(selector, truth)
        if arguments.output is not None:
            keep(folder, test, candidates, selector)
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
    print(f"\n   {log}")
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
    print("3. Estimates from the other half, without playing. An interval is worth what its verdict says.\n")
    estimators = [DoublyRobust(gamma=GAMMA), WeightedIS(gamma=GAMMA), LSTDQ(gamma=GAMMA)]
    selector = PolicySelector(estimators, criterion="lower_bound", level=LEVEL).fit(test, candidates)
    print(results_text(selector.results_, selector.estimates_, LEVEL, (selector.best_name_, selector.primary_)))
    print(f"\nChoice: {selector.decision_}\n")
    return selector


# -------------------------------------------------------------------- 4. the truth


def reveal(candidates: Mapping[str, Policy], size: Size, seed: int) -> pd.DataFrame:
    """Play every candidate, and the operator, and return true values with standard errors."""
    print(f"4. The truth: {size.rollouts} episodes of each candidate.\n")
    simulator = GymSimulator("FrozenLake-v1", max_steps=1000)
    players = {"(operator)": operator(), **candidates}
    seeds = np.random.SeedSequence([seed, 1]).spawn(len(players))
    returns = {
        name: simulator.returns(policy, size.rollouts, gamma=GAMMA, random_state=np.random.default_rng(child))
        for (name, policy), child in zip(players.items(), seeds, strict=True)
    }
    return pd.DataFrame(
        {name: {"value": sample.mean(), "std_error": _error(sample)} for name, sample in returns.items()}
    ).T


def _error(sample: FloatArray) -> float:
    return float(sample.std(ddof=1) / np.sqrt(len(sample)))


def check(selector: PolicySelector, truth: pd.DataFrame) -> None:
    """Print true values beside the deciding estimates, and how good the choice and the intervals were."""
    operators = truth.loc["(operator)"]
    candidates = truth.drop(index="(operator)")
    results = selector.results_.assign(truth=selector.results_["candidate"].map(candidates["value"]))
    results["covers"] = results["truth"].between(results["low"], results["high"])
    digits = decimals(truth["value"])
    decisive = results[results["estimator"] == selector.primary_].set_index("candidate")
    rows = [
        ("", "(operator)", number(operators["value"], digits), number(operators["std_error"], digits), "", "", ""),
        *(_truth_row(name, row, decisive, selector.best_name_, digits) for name, row in candidates.iterrows()),
    ]
    header = (
        "",
        "candidate",
        "true value",
        "std. error",
        f"estimate ({selector.primary_})",
        f"{LEVEL:.0%} interval",
        "",
    )
    print(columns_text(header, rows, right=(2, 3, 4)), "\n")
    if selector.best_name_ is not None:
        print(_verdict_on_choice(selector.best_name_, candidates, decisive, operators, digits))
    print(_verdict_on_intervals(results))


def _truth_row(
    name: Any, row: pd.Series[Any], decisive: pd.DataFrame, best: str | None, digits: int
) -> tuple[str, ...]:
    mark = ">" if name == best else ""
    if name not in decisive.index:
        return mark, name, number(row["value"], digits), number(row["std_error"], digits), "-", "-", ""
    said = decisive.loc[name]
    judged = "holds" if said["covers"] else f"misses ({said['verdict']})"
    return (
        mark,
        str(name),
        number(row["value"], digits),
        number(row["std_error"], digits),
        number(said["value"], digits),
        interval(said["low"], said["high"], digits),
        judged,
    )


def _verdict_on_choice(
    chosen: str, truth: pd.DataFrame, decisive: pd.DataFrame, operators: pd.Series[Any], digits: int
) -> str:
    best = truth["value"].idxmax()
    regret = truth.loc[best, "value"] - truth.loc[chosen, "value"]
    error = 0.0 if best == chosen else float(np.hypot(truth.loc[best, "std_error"], truth.loc[chosen, "std_error"]))
    answered = decisive[decisive["verdict"] != "REFUSE"]
    rank_correlation = answered["value"].rank().corr(answered["truth"].rank())
    gain = truth.loc[chosen, "value"] / operators["value"]
    return (
        f"The choice, {chosen!r}, is worth {number(truth.loc[chosen, 'value'], digits)}, {gain:.1f} times the operator's value.\n"
        f"Regret to the best candidate ({best!r}): {number(regret, digits)} +- {number(error, digits)}. "
        f"Rank correlation of estimates and truth: {rank_correlation:.2f}."
    )


def _verdict_on_intervals(results: pd.DataFrame) -> str:
    with_interval = results[results["low"].notna() & results["high"].notna()]
    counts = with_interval.groupby("verdict")["covers"].agg(["sum", "count"])
    words = [f"{level} {int(row['sum'])} of {int(row['count'])}" for level, row in counts.iterrows()]
    none = int(len(results) - len(with_interval))
    return f"Intervals that hold the truth: {', '.join(words)}; {none} estimates have none."


# -------------------------------------------------------------------- files


def keep(folder: Path, test: LoggedDataset, candidates: Mapping[str, Policy], selector: PolicySelector) -> None:
    """Write the evaluation half, the learned policies and the results, and print the command that values them."""
    write_table(test.to_pandas(), folder / "evaluation.parquet")
    write_table(selector.results_, folder / "results.csv")
    sources = []
    for name, policy in candidates.items():
        if isinstance(policy, PolicyLearner):
            path = folder / f"{name.replace(' ', '_')}.safetensors"
            policy.save(path)
            sources.append(f"--candidate {path.stem}={path}")
    command = [
        f"python -m ope evaluate {folder / 'evaluation.parquet'} --episode episode --time time",
        f"--states {' '.join(CELLS)}",
        "--action action --reward reward --behavior-prob behavior_prob",
        "--terminated terminated --truncated truncated",
        f"--next-states {' '.join(f'next_{cell}' for cell in CELLS)}",
        f"--gamma {GAMMA}",
        *sources,
    ]
    print(f"\nLog, policies and results are in {folder}. The same from files:\n")
    print(" \\\n    ".join(command))


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
