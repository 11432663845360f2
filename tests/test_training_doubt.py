"""Policies whose training went wrong: every estimate says so, no choice forgets it, and a search that is stopped stops."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pytest
from sklearn.preprocessing import StandardScaler
from typing_extensions import Self

import ope
from ope import Level, LoggedDataset, PolicySelector
from ope.estimators import LSTDQ, ModelBased, PerDecisionIS, StateMarginalIS, WeightedIS
from ope.neural.history import Outcome, TrainingStatus
from ope.policies import BCQ, EpsilonGreedy, GaussianPolicy, PreprocessedLearner, TabularPolicy
from ope.policy import Policy, PolicyLearner, interrupted, within
from ope.problems import RandomMDP
from ope.search import PolicySearch, cross_fit_select, select_checkpoint

SMALL: dict[str, Any] = {"hidden": (4,), "n_updates": 20, "batch_size": 16, "log_every": 5, "random_state": 0}
NOT_KEPT = "interrupted, and nothing of it is kept"


class Ends(PolicyLearner):
    """A learner of the uniform policy whose training ends as it is told, where it is given `n_episodes`."""

    def __init__(self, outcome: Outcome = Outcome.COMPLETED, *, where: int | None = None, done: int = 10) -> None:
        self.outcome = outcome
        self.where = where
        self.done = done

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"logged_prob", "all_probs", "sample"})

    def fit(self, data: LoggedDataset) -> Self:
        here = self.where is None or data.n_episodes == self.where
        self.status_ = TrainingStatus(self.outcome if here else Outcome.COMPLETED, self.done, 20)
        self._remember(data)
        return self

    def predict_proba(self, states: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return np.full((len(np.asarray(states)), 2), 0.5)


class Side(Ends):
    """The same, fitted side by side."""

    @classmethod
    def fit_many(cls, data: LoggedDataset, learners: list[Self]) -> list[Self]:
        return [learner.fit(data) for learner in learners]


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Interrupts are ignored where tests run in the background; these need them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def log() -> LoggedDataset:
    return RandomMDP(horizon=3, random_state=3).sample(200, random_state=0)


@pytest.fixture(scope="module")
def halves(log: LoggedDataset) -> tuple[LoggedDataset, LoggedDataset]:
    train, test = log.split(test_size=0.5, random_state=0)
    return train, test


@pytest.fixture(scope="module")
def diverged(halves: tuple[LoggedDataset, LoggedDataset]) -> BCQ:
    with pytest.warns(UserWarning, match="training diverged"):
        policy = BCQ(**SMALL, learning_rate=1e10).fit(halves[0])
    assert (policy.status_.outcome, policy.n_updates_) == (Outcome.DIVERGED, 0)
    return policy


def ended(outcome: Outcome, done: int = 10) -> Ends:
    learner = Ends()
    learner.status_ = TrainingStatus(outcome, done, 20)
    learner.training_episode_keys_ = np.empty(0, dtype=np.uint64)
    return learner


# -------------------------------------------------------------------- every estimate says so


@pytest.mark.parametrize(
    "estimator",
    [PerDecisionIS(gamma=1.0), LSTDQ(gamma=1.0), ModelBased(gamma=1.0), StateMarginalIS(gamma=1.0)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_an_untrained_policy_is_refused_by_every_kind_of_estimator(
    diverged: BCQ, halves: tuple[LoggedDataset, LoggedDataset], estimator: Any
) -> None:
    alone = estimator.fit(halves[1], diverged).estimate()
    named = estimator.fit(halves[1], {"d": diverged, "rule": Ends().fit(halves[0])}).estimate()
    for estimate in (alone, named["d"]):
        assert estimate.verdict.level is Level.REFUSE
        assert estimate.verdict.reasons[0].startswith(
            "Training of the policy diverged before it had learned anything: its networks are random"
        )
        assert "Lower the learning rate" in estimate.verdict.reasons[0]
    assert not any("Training" in reason for reason in named["rule"].verdict.reasons)


@pytest.mark.parametrize(
    ("outcome", "done", "level", "words"),
    [
        (Outcome.DIVERGED, 10, Level.CAUTION, "diverged: valued is what 10 of 20 updates made of it"),
        (Outcome.INTERRUPTED, 10, Level.CAUTION, "was interrupted: valued is what 10 of 20 .* Resume it"),
        (Outcome.INTERRUPTED, 0, Level.REFUSE, "was interrupted before it had learned anything"),
        (Outcome.STOPPED, 10, Level.VALID, None),
        (Outcome.COMPLETED, 20, Level.VALID, None),
        (Outcome.RUNNING, 10, Level.VALID, None),
    ],
)
def test_the_level_follows_from_how_training_ended(
    log: LoggedDataset, outcome: Outcome, done: int, level: Level, words: str | None
) -> None:
    verdict = PerDecisionIS(gamma=1.0).fit(log, ended(outcome, done)).estimate().verdict
    assert verdict.level is level
    if words is None:
        assert verdict.reasons == ()
    else:
        assert len(verdict.reasons) == 1
        assert re.search(words, verdict.reasons[0])


def test_wrappers_do_not_hide_it(diverged: BCQ, halves: tuple[LoggedDataset, LoggedDataset], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="training diverged"):
        behind = PreprocessedLearner(StandardScaler(), BCQ(**SMALL, learning_rate=1e10)).fit(halves[0])
    diverged.save(tmp_path / "policy")
    loaded: Policy = ope.load_policy(tmp_path / "policy")
    for policy in (behind, EpsilonGreedy(behind, 0.1), EpsilonGreedy(diverged, 0.1), loaded):
        estimate = WeightedIS(gamma=1.0).fit(halves[1], policy).estimate()
        assert estimate.verdict.level is Level.REFUSE
        assert "its networks are random" in " ".join(estimate.verdict.reasons)
    assert GaussianPolicy(diverged, 1.0).training_doubt == diverged.training_doubt


def test_what_a_learner_is_to_fit_copies_of_is_not_what_it_acts_through(diverged: BCQ) -> None:
    assert PreprocessedLearner(StandardScaler(), diverged).training_doubt is None
    searching = PolicySearch(diverged, estimators=[])
    assert searching.training_doubt is None
    searching.best_policy_ = EpsilonGreedy(diverged, 0.1)
    assert searching.training_doubt == diverged.training_doubt
    assert within(searching) == [searching, searching.best_policy_, diverged]


def test_policies_that_hold_each_other_are_asked_once() -> None:
    one, other = TabularPolicy([[1.0]]), TabularPolicy([[1.0]])
    one.peer, other.peer = other, one
    assert within(one) == [one, other]
    assert one.training_doubt is None


def test_a_status_of_another_library_says_nothing() -> None:
    policy = TabularPolicy([[1.0]])
    policy.status_ = SimpleNamespace(ok=False)
    assert policy.training_doubt is None
    assert not interrupted(policy)


# -------------------------------------------------------------------- choices


def test_a_selector_does_not_choose_random_networks(log: LoggedDataset) -> None:
    candidates = {"random": ended(Outcome.DIVERGED, 0), "rule": TabularPolicy(np.full((5, 2), 0.5))}
    selector = PolicySelector([PerDecisionIS(gamma=1.0)]).fit(log, candidates)
    assert selector.best_name_ == "rule"
    assert "Not eligible because refused: 'random'" in selector.decision_
    assert "its networks are random" in str(selector.results_.set_index("candidate").loc["random", "reasons"])


def test_a_selector_that_chooses_a_policy_cut_short_says_so(log: LoggedDataset) -> None:
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=None).fit(log, {"d": ended(Outcome.DIVERGED)})
    assert selector.best_name_ == "d"
    assert "Verdict CAUTION, so look before you act: Training of the policy diverged" in selector.decision_


def test_a_search_refuses_settings_that_diverge(log: LoggedDataset) -> None:
    learner = BCQ(**SMALL, checkpoints=2)
    grid = {"learning_rate": [1e-3, 1e10]}
    with pytest.warns(UserWarning, match="training diverged"):
        search = PolicySearch(learner, grid, estimators=[LSTDQ(gamma=1.0)], n_repeats=2).fit(log)
    assert (search.best_params_ or {})["learning_rate"] == 1e-3
    rows = dict(zip(search.cv_results_["param_learning_rate"], search.cv_results_["verdict"], strict=True))
    assert rows[1e10] == "REFUSE"
    assert "Refused, learning_rate=10000000000.0: In 2 of 2 parts" in search.summary()
    assert "its networks are random" in search.summary()


def test_checkpoints_are_what_they_were_meant_to_be(halves: tuple[LoggedDataset, LoggedDataset]) -> None:
    learner = BCQ(**SMALL, checkpoints=2).fit(halves[0])
    learner.status_ = TrainingStatus(Outcome.INTERRUPTED, 20, 40)
    found = select_checkpoint(learner, halves[1], [PerDecisionIS(gamma=1.0)])
    doubted = {
        n: "was interrupted" in reasons
        for n, reasons in zip(found.curve_["n_updates"], found.curve_["reasons"], strict=True)
    }
    assert doubted == {10: False, 20: True}


@pytest.mark.parametrize("refit", ["all", "valued"])
def test_a_final_policy_that_diverged_is_told(log: LoggedDataset, refit: str) -> None:
    where = 200 if refit == "all" else 100
    learner = Ends(Outcome.DIVERGED, where=where)
    search = PolicySearch(learner, estimators=[PerDecisionIS(gamma=1.0)], n_repeats=2, refit=refit).fit(log)
    assert search.decision_.endswith(
        "not what its settings stand for. Lower the learning rate, or scale the rewards, and fit it again."
    )
    found = cross_fit_select({"a": Ends(Outcome.DIVERGED, where=200)}, log, [PerDecisionIS(gamma=1.0)], n_folds=2)
    assert "Training of the policy diverged" in found.decision_
    assert found.estimates_["PerDecisionIS"]["a"].verdict.level is Level.VALID


# -------------------------------------------------------------------- Ctrl-C


def make(learner: PolicyLearner, **changes: Any) -> PolicySearch:
    return PolicySearch(learner, estimators=[PerDecisionIS(gamma=1.0)], **{"n_repeats": 2, **changes})


def test_ctrl_c_in_training_stops_a_search_at_once(log: LoggedDataset) -> None:
    """Two networks of other shapes: the second must not train after the first was interrupted."""
    updates = []

    def press(event: Any) -> None:
        updates.append(event.update)
        if event.update == 10:
            signal.raise_signal(signal.SIGINT)

    search = make(BCQ(**{**SMALL, "callbacks": [press]}), param_grid={"hidden": [(4,), (5,)]})
    with pytest.warns(UserWarning, match="interrupted after 10"), pytest.raises(KeyboardInterrupt, match=NOT_KEPT):
        search.fit(log)
    assert updates == [5, 10]
    assert not hasattr(search, "cv_results_")


def test_networks_that_train_as_one_stop_as_one(log: LoggedDataset) -> None:
    def press(event: Any) -> None:
        if event.update == 10:
            signal.raise_signal(signal.SIGINT)

    search = make(BCQ(**{**SMALL, "callbacks": [press]}), param_grid={"learning_rate": [1e-3, 1e-4]})
    with pytest.warns(UserWarning, match="interrupted after 10"), pytest.raises(KeyboardInterrupt, match=NOT_KEPT):
        search.fit(log)


@pytest.mark.parametrize("kind", [Ends, Side])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_an_interrupted_run_of_any_part_stops_all(log: LoggedDataset, kind: type[Ends], n_jobs: int | None) -> None:
    search = make(kind(Outcome.INTERRUPTED), param_grid={"done": [5, 6]}, n_jobs=n_jobs)
    learners = {"a": kind(Outcome.INTERRUPTED), "b": TabularPolicy(np.full((5, 2), 0.5))}
    with joblib.parallel_config("threading"):
        with pytest.raises(KeyboardInterrupt, match=f"PolicySearch: {NOT_KEPT}"):
            search.fit(log)
        with pytest.raises(KeyboardInterrupt, match=f"cross_fit_select: {NOT_KEPT}"):
            cross_fit_select(learners, log, [PerDecisionIS(gamma=1.0)], n_folds=2, n_jobs=n_jobs)


def test_an_interrupted_run_of_another_process_stops_all(log: LoggedDataset) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"PolicySearch: {NOT_KEPT}"):
        make(Ends(Outcome.INTERRUPTED), n_jobs=2).fit(log)


def test_an_interrupted_last_fit_leaves_nothing(log: LoggedDataset) -> None:
    search = make(Ends(Outcome.INTERRUPTED, where=200), refit="all")
    with pytest.raises(KeyboardInterrupt, match=NOT_KEPT):
        search.fit(log)
    assert [name for name in vars(search) if name.endswith("_")] == []
    learners = {"a": Ends(Outcome.INTERRUPTED, where=200)}
    with pytest.raises(KeyboardInterrupt, match=NOT_KEPT):
        cross_fit_select(learners, log, [PerDecisionIS(gamma=1.0)], n_folds=2)
    assert cross_fit_select(learners, log, [PerDecisionIS(gamma=1.0)], n_folds=2, refit=False).best_name_ == "a"


def test_ctrl_c_outside_of_training_is_told_too(log: LoggedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    search = make(Ends()).fit(log)
    monkeypatch.setattr(PerDecisionIS, "_fit_one", press)
    with pytest.raises(KeyboardInterrupt, match=NOT_KEPT):
        search.fit(log)
    assert not hasattr(search, "best_policy_")


def test_a_run_that_a_callback_stops_is_meant_to_stop(log: LoggedDataset) -> None:
    learner = BCQ(**{**SMALL, "callbacks": [lambda event: event.update >= 10]})
    search = PolicySearch(learner, estimators=[LSTDQ(gamma=1.0)], n_repeats=2, refit="all").fit(log)
    assert isinstance(search.best_policy_, BCQ)
    assert search.best_policy_.status_.outcome is Outcome.STOPPED
    assert "Training of the policy" not in search.summary()


def test_a_given_policy_that_was_interrupted_once_stops_nothing(log: LoggedDataset) -> None:
    given = EpsilonGreedy(ended(Outcome.INTERRUPTED), 0.5)
    found = cross_fit_select({"given": given, "a": Ends()}, log, [PerDecisionIS(gamma=1.0)], n_folds=2)
    assert found.estimates_["PerDecisionIS"]["given"].verdict.level is Level.CAUTION
