"""Evaluating a policy on the episodes it was learned from: the bias has the sign that the messages claim, and they come."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ope import Level, LoggedDataset, PolicySelector
from ope.estimators import LSTDQ, DoublyRobust, WeightedIS
from ope.policies import BCQ, EpsilonGreedy, TabularPolicy
from ope.search import select_checkpoint
from ope.validation import FloatArray

ROOT = Path(__file__).resolve().parents[1]
ESTIMATORS = {"LSTDQ": LSTDQ(gamma=0.9), "WPDIS": WeightedIS(gamma=0.9), "DR": DoublyRobust(gamma=0.9)}


def _load_study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overlap_study", ROOT / "benchmarks" / "overlap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


study = _load_study()


@pytest.fixture(scope="module")
def log() -> LoggedDataset:
    sampled: LoggedDataset = study.problem().sample(200, random_state=0)
    return sampled


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "overlap.md").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------- the bias


@pytest.fixture(scope="module")
def runs() -> FloatArray:
    """Thirty repetitions of 100 episodes: (repetition, way, estimator, truth, error, std. error, covered, ...)."""
    simulated: FloatArray = study.simulate(100, 30)
    return simulated


def in_std_errors(sample: FloatArray) -> float:
    return float(sample.mean() / (sample.std(ddof=1) / math.sqrt(len(sample))))


@pytest.mark.parametrize("e", range(3), ids=list(ESTIMATORS))
def test_estimators_flatter_on_training_episodes_only(e: int, runs: FloatArray) -> None:
    """Errors are measured against the exact value of each learned policy; both evaluations share the policy."""
    same, other = runs[:, 0, e, 1], runs[:, 1, e, 1]
    assert in_std_errors(same) > 4
    assert abs(in_std_errors(other)) < 4
    assert in_std_errors(same - other) > 3


def test_intervals_on_training_episodes_miss_more_often(runs: FloatArray) -> None:
    lstdq = runs[:, :, 0]
    assert in_std_errors(lstdq[:, 1, 3] - lstdq[:, 0, 3]) > 3
    assert in_std_errors(lstdq[:, 0, 4] - lstdq[:, 1, 4]) > 3


def bandit_log(m: int, seed: int) -> LoggedDataset:
    """Return m pulls of each of two equal arms that pay standard normal rewards, twice: to learn and to evaluate."""
    rewards = np.random.default_rng(seed).normal(size=4 * m)
    return LoggedDataset.from_arrays(
        np.ones((4 * m, 1)), [0, 1] * (2 * m), rewards, lengths=[1] * (4 * m), ends="terminal",
        behavior_prob=[0.5] * (4 * m),
    )  # fmt: skip


def test_optimism_of_the_better_of_two_arms_is_known() -> None:
    """The larger of two means of m standard normal rewards has expectation 1 / sqrt(pi m), the arm itself 0."""
    m, repetitions = 25, 400
    same, other = [], []
    for seed in range(repetitions):
        log = bandit_log(m, seed)
        train, test = log.select(slice(0, 2 * m)), log.select(slice(2 * m, 4 * m))
        better = int(train.rewards[train.actions == 1].mean() > train.rewards[train.actions == 0].mean())
        policy = TabularPolicy(np.eye(2)[[better]])
        same.append(WeightedIS(gamma=1.0).fit(train, policy).estimate().value)
        other.append(WeightedIS(gamma=1.0).fit(test, policy).estimate().value)
    std_error = math.sqrt(1.0 / m / repetitions)
    assert np.mean(same) == pytest.approx(1.0 / math.sqrt(math.pi * m), abs=4 * std_error)
    assert np.mean(other) == pytest.approx(0.0, abs=4 * std_error)


# -------------------------------------------------------------------------------- the messages


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator_warns_of_training_episodes(name: str, log: LoggedDataset, page: str) -> None:
    policy = study.GreedyModel(0.9).fit(log)
    estimate = ESTIMATORS[name].fit(log, policy).estimate()
    reason = estimate.verdict.reasons[-1]
    assert estimate.verdict.level >= Level.CAUTION
    assert estimate.diagnostics["training_overlap"] == 200
    assert reason.startswith(
        "The policy was trained on 200 of the 200 evaluation episodes: its value is over-estimated"
    )
    assert f"\n{reason}\n" in page


def test_selector_refuses_training_episodes(log: LoggedDataset, page: str) -> None:
    learned = study.GreedyModel(0.9).fit(log)
    candidates = {"learned": learned, "given": TabularPolicy(np.full((20, 2), 0.5))}
    selector = PolicySelector([WeightedIS(gamma=0.9)]).fit(log, candidates)
    row = selector.results_.set_index("candidate").loc["learned"]
    assert row["verdict"] == "REFUSE"
    assert math.isnan(selector.estimates_["WeightedIS"]["learned"].value)
    assert selector.best_name_ == "given"
    assert f"\n{row['reasons']}\n" in page


def test_selector_can_be_told_to_go_on(log: LoggedDataset) -> None:
    learned = study.GreedyModel(0.9).fit(log)
    selector = PolicySelector([WeightedIS(gamma=0.9)], allow_overlap=True).fit(log, {"learned": learned})
    estimate = selector.estimates_["WeightedIS"]["learned"]
    assert estimate.value == WeightedIS(gamma=0.9).fit(log, learned).estimate().value
    assert estimate.verdict.level is Level.CAUTION
    assert "its value is over-estimated" in estimate.verdict.reasons[-1]


def test_split_logs_bring_no_message(log: LoggedDataset) -> None:
    train, test = log.split(test_size=0.5, random_state=0)
    estimate = WeightedIS(gamma=0.9).fit(test, study.GreedyModel(0.9).fit(train)).estimate()
    assert estimate.diagnostics["training_overlap"] == 0
    assert not any("trained on" in reason for reason in estimate.verdict.reasons)


def test_part_of_the_training_episodes_is_counted(log: LoggedDataset) -> None:
    learned = study.GreedyModel(0.9).fit(log.select(slice(0, 150)))
    estimate = WeightedIS(gamma=0.9).fit(log.select(slice(100, 200)), learned).estimate()
    assert estimate.diagnostics["training_overlap"] == 50
    assert estimate.verdict.reasons[-1].startswith("The policy was trained on 50 of the 100 evaluation episodes")


def test_exploration_does_not_hide_the_training_episodes(log: LoggedDataset) -> None:
    explored = EpsilonGreedy(study.GreedyModel(0.9).fit(log), epsilon=0.3)
    estimate = WeightedIS(gamma=0.9).fit(log, explored).estimate()
    assert estimate.verdict.reasons[-1].startswith("The policy was trained on 200 of the 200 evaluation episodes")


def test_logs_whose_ids_merely_coincide_are_told_apart_by_other_ids() -> None:
    """Both number their episodes from 0; the remedy that the message names removes it."""
    before, after = bandit_log(25, 0), bandit_log(25, 1)
    policy = BCQ(hidden=(4,), n_updates=5, random_state=0).fit(before)
    remedy = "where only the ids coincide, .* give the episodes of one log others"
    assert re.search(remedy, WeightedIS(gamma=1.0).fit(after, policy).estimate().verdict.reasons[-1])
    refused = PolicySelector([WeightedIS(gamma=1.0)]).fit(after, {"learned": policy}).results_.loc[0, "reasons"]
    assert re.search(remedy, str(refused))
    checkpoints = BCQ(hidden=(4,), n_updates=6, checkpoints=2, random_state=0).fit(before)
    with pytest.raises(ValueError, match=remedy):
        select_checkpoint(checkpoints, after, [WeightedIS(gamma=1.0)])
    renamed = LoggedDataset.from_arrays(
        after.states, after.actions, after.rewards, lengths=after.lengths, ends="terminal", behavior_prob=[0.5] * 100,
        episode_ids=[f"after {i}" for i in range(100)],
    )  # fmt: skip
    assert WeightedIS(gamma=1.0).fit(renamed, policy).estimate().diagnostics["training_overlap"] == 0


# -------------------------------------------------------------------------------- the study


def test_learner_finds_the_model_it_counted(log: LoggedDataset) -> None:
    """The table is the greedy one of a model counted and iterated in plain loops."""
    counts: dict[tuple[int, int], list[tuple[float, int]]] = {}
    codes = [int(np.flatnonzero(row)[0]) for row in log.states]
    assert log.final_states is not None
    for i in range(log.n_episodes):
        rows = range(int(log.offsets[i]), int(log.offsets[i + 1]))
        after = [codes[k + 1] for k in rows[:-1]] + [int(np.flatnonzero(log.final_states[i])[0])]
        for k, s_next in zip(rows, after, strict=True):
            counts.setdefault((codes[k], int(log.actions[k])), []).append((float(log.rewards[k]), s_next))
    v = dict.fromkeys(range(20), 0.0)
    for _ in range(200):
        q = {pair: sum(r + 0.9 * v[s] for r, s in seen) / len(seen) for pair, seen in counts.items()}
        v = {s: max(q[pair] for pair in q if pair[0] == s) for s in v}
    table = study.GreedyModel(0.9).fit(log).table_
    for s in range(20):
        best = max((a for a in range(2) if (s, a) in q), key=lambda a: q[s, a])
        np.testing.assert_allclose(table[s, best], 0.9)
        np.testing.assert_allclose(table[s].sum(), 1.0)


def test_page_shows_the_stored_results(page: str) -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "overlap.json").read_text())
    assert results["repetitions"] >= 200
    for table in study.tables(results):
        assert table in page
