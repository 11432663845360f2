"""Choosing by held-out values: the arithmetic of folds and halves against plain loops, screening, refits, bad input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.stats import uniform
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning, NotFittedError
from typing_extensions import Self

import ope
from ope import Estimate, Level, LoggedDataset, PolicySelector, Verdict
from ope.estimators import LSTDQ, AverageRewardLSTDQ, PerDecisionIS, TrajectoryIS, WeightedIS
from ope.policies import BCQ, EpsilonGreedy, PreprocessedLearner, TabularPolicy
from ope.policy import Policy, PolicyLearner, overlap
from ope.problems import RandomMDP, RiverSwim
from ope.search import PolicySearch, cross_fit_select, select_checkpoint
from ope.search.folds import Part, fold_parts, half_parts, pool
from ope.search.run import survivors
from ope.search.training import Candidate, learn, stages, with_setting

FloatArray = npt.NDArray[np.float64]


class Table(PolicyLearner):
    """A learner of a table: the behaviour's frequencies, mixed with the action of the highest mean return-to-go.

    `n_updates` and `checkpoints` act as in a trained learner: after half of the updates half of the weight is greedy.
    """

    fits: list[dict[str, Any]] = []  # noqa: RUF012 (shared on purpose: tests count fits)

    def __init__(
        self,
        weight: float = 0.5,
        *,
        n_updates: int = 4,
        checkpoints: int = 0,
        ends_at: int | None = None,
        random_state: int | None = 0,
    ) -> None:
        self.weight = weight
        self.n_updates = n_updates
        self.checkpoints = checkpoints
        self.ends_at = ends_at
        self.random_state = random_state

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"logged_prob", "all_probs", "sample"})

    def fit(self, data: LoggedDataset) -> Self:
        if self.weight < 0:
            raise ValueError("Table: `weight` must be at least 0.")
        Table.fits.append({"n": data.n_episodes, **self.get_params()})
        frequencies, greedy = tables(data)
        marks = [round(i * self.n_updates / self.checkpoints) for i in range(1, self.checkpoints + 1)]
        marks = [mark for mark in marks if self.ends_at is None or mark <= self.ends_at]
        self._become(data, frequencies, greedy, self.n_updates if self.ends_at is None else self.ends_at)
        self.checkpoints_ = [clone(self)._become(data, frequencies, greedy, mark) for mark in marks]
        return self

    def _become(self, data: LoggedDataset, frequencies: FloatArray, greedy: FloatArray, n_updates: int) -> Self:
        share = self.weight * n_updates / 4
        self.table_ = (1.0 - share) * frequencies + share * greedy
        self.n_updates_ = n_updates
        self._remember(data)
        return self

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        return np.asarray(self.table_[np.argmax(np.asarray(states), axis=1)])


class Batched(Table):
    """The same, fitted side by side."""

    batches: list[int] = []  # noqa: RUF012

    @classmethod
    def fit_many(cls, data: LoggedDataset, learners: Sequence[Self]) -> list[Self]:
        cls.batches.append(len(learners))
        return [learner.fit(data) for learner in learners]


def tables(data: LoggedDataset) -> tuple[FloatArray, FloatArray]:
    """Return action frequencies (smoothed, so that nothing is forbidden) and the greedy table, by loops."""
    size, n_actions = data.states.shape[1], data.n_actions
    counts, totals = np.full((size, n_actions), 0.5), np.zeros((size, n_actions))
    for i in range(data.n_episodes):
        rows = range(data.offsets[i], data.offsets[i + 1])
        for t in rows:
            s, a = int(np.argmax(data.states[t])), int(data.actions[t])
            counts[s, a] += 1.0
            totals[s, a] += data.rewards[t : data.offsets[i + 1]].sum()
    return counts / counts.sum(axis=1, keepdims=True), np.eye(n_actions)[np.argmax(totals / counts, axis=1)]


@pytest.fixture(scope="module")
def problem() -> RandomMDP:
    return RandomMDP(horizon=3, random_state=3)


@pytest.fixture(scope="module")
def log(problem: RandomMDP) -> LoggedDataset:
    return problem.sample(300, random_state=0)


@pytest.fixture(autouse=True)
def _no_fits_yet() -> None:
    Table.fits.clear()
    Batched.batches.clear()


def weighted_returns(data: LoggedDataset, table: FloatArray) -> FloatArray:
    """Return the per-decision weighted return of every episode at gamma 1, by loops."""
    assert data.behavior_log_prob is not None
    out = []
    for i in range(data.n_episodes):
        ratio, total = 1.0, 0.0
        for t in range(data.offsets[i], data.offsets[i + 1]):
            s, a = int(np.argmax(data.states[t])), int(data.actions[t])
            ratio *= table[s, a] / np.exp(data.behavior_log_prob[t])
            total += ratio * data.rewards[t]
        out.append(total)
    return np.array(out)


def learned_table(data: LoggedDataset, weight: float, share: float = 1.0) -> FloatArray:
    frequencies, greedy = tables(data)
    return (1.0 - weight * share) * frequencies + weight * share * greedy


# -------------------------------------------------------------------- parts


def test_folds_value_every_episode_once_and_never_one_that_was_learned_from(log: LoggedDataset) -> None:
    parts = fold_parts(log, 5, 0)
    assert sorted(np.concatenate([part.test for part in parts])) == list(range(log.n_episodes))
    for part in parts:
        assert set(part.train) | set(part.test) == set(range(log.n_episodes))
        assert not set(part.train) & set(part.test)
        assert part.weight == pytest.approx(len(part.test) / log.n_episodes)


def test_folds_belong_to_episodes_not_to_their_order(log: LoggedDataset) -> None:
    order = np.random.default_rng(1).permutation(log.n_episodes)
    mixed = log.select(order)
    for part, moved in zip(fold_parts(log, 3, 0), fold_parts(mixed, 3, 0), strict=True):
        assert set(log.episode_ids[part.test]) == set(mixed.episode_ids[moved.test])


@pytest.mark.parametrize("n", [7, 300])
def test_halves_come_in_pairs_that_value_every_episode_equally_often(log: LoggedDataset, n: int) -> None:
    parts = half_parts(log.select(slice(0, n)), 6, 0)
    assert np.all(np.bincount(np.concatenate([part.test for part in parts])) == 3)
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        assert np.array_equal(first.train, second.test)
        assert np.array_equal(first.test, second.train)
        assert abs(len(first.train) - len(first.test)) <= 1
    assert len({tuple(part.test) for part in parts}) == 6
    assert sum(part.weight for part in parts) == pytest.approx(1.0)
    others = half_parts(log.select(slice(0, n)), 6, 1)
    assert not {tuple(part.test) for part in parts} & {tuple(part.test) for part in others} or n < 20


# -------------------------------------------------------------------- pooling


def estimate_on(n: int, value: float, verdict: Verdict | None = None, **parts: Any) -> Estimate:
    fields: dict[str, Any] = {
        "value": value,
        "gamma": 1.0,
        "horizon": None,
        "episode_keys": np.arange(n, dtype=np.uint64),
        "data_id": f"part of {n}",
        "estimator": "Fake",
        "policy": "p",
        "verdict": verdict or Verdict(),
    }
    return Estimate(**{**fields, **parts})


@pytest.fixture
def two_parts() -> tuple[list[Part], Any]:
    data = SimpleNamespace(
        n_episodes=4, episode_keys=np.arange(4, dtype=np.uint64), data_id="all", known_propensities=True
    )
    one, two = np.array([0, 2, 3]), np.array([1])
    return [Part("fold 1 of 2", two, one, 0.75), Part("fold 2 of 2", one, two, 0.25)], data


def test_pooled_parts_by_hand(two_parts: tuple[list[Part], Any]) -> None:
    parts, data = two_parts
    first = estimate_on(3, 1.0, influence=np.array([1.0, -2.0, 1.0]), replicates=np.array([1.0, 2.0]), widening=0.4)
    second = estimate_on(1, 3.0, influence=np.array([0.5]), replicates=np.array([5.0, 1.0]), widening=0.0)
    pooled = pool([first, second], parts, data)
    assert pooled.value == 1.5
    assert np.array_equal(np.asarray(pooled.influence), [1.0, 0.5, -2.0, 1.0])
    assert np.array_equal(np.asarray(pooled.replicates), [2.0, 1.75])
    assert pooled.widening == pytest.approx(0.3)
    assert (pooled.data_id, pooled.known_propensities) == ("all", True)


def test_halves_by_hand(two_parts: tuple[list[Part], Any]) -> None:
    _, data = two_parts
    a, b = np.array([0, 1]), np.array([2, 3])
    parts = [Part("repeat 1 of 3", a, b, 1 / 3), Part("repeat 2 of 3", b, a, 1 / 3), Part("repeat 3 of 3", a, b, 1 / 3)]
    psi = [np.array([1.0, -1.0]), np.array([2.0, -2.0]), np.array([4.0, -4.0])]
    pooled = pool([estimate_on(2, float(k), influence=psi[k]) for k in range(3)], parts, data)
    assert pooled.value == pytest.approx(1.0)
    assert np.asarray(pooled.influence) == pytest.approx(np.array([2.0, -2.0, 5.0, -5.0]) * 2 / 3)


def test_the_effective_size_is_that_of_the_weights_of_all_parts() -> None:
    rng, n = np.random.default_rng(0), 12
    data: Any = SimpleNamespace(
        n_episodes=n, episode_keys=np.arange(n, dtype=np.uint64), data_id="all", known_propensities=True
    )

    def size(u: FloatArray) -> float:
        return float(u.sum() ** 2 / (u**2).sum())

    def pooled_size(parts: Sequence[Part], u: FloatArray) -> float:
        estimates = [estimate_on(len(p.test), 1.0, effective_size=size(u[p.test]), weights=u[p.test]) for p in parts]
        forth, back = pool(estimates, parts, data), pool(estimates[::-1], parts[::-1], data)
        assert forth.weights is None
        assert forth.effective_size == pytest.approx(back.effective_size)
        assert forth.effective_size is not None
        return forth.effective_size

    u, order = rng.exponential(size=n), rng.permutation(n)
    tests = np.split(order, [2, 7])
    folds = [Part(f"{k}", np.setdiff1d(order, test), test, len(test) / n) for k, test in enumerate(tests)]
    combined = np.concatenate([p.weight * u[p.test] / u[p.test].sum() for p in folds])
    assert pooled_size(folds, u) == pytest.approx(size(combined))
    # Repeats value the same episodes again, which makes no more of them.
    half, other = np.split(order, 2)
    twice = [Part("1", half, other, 0.25), Part("2", other, half, 0.25)] * 2
    combined = np.concatenate([0.5 * u[test] / u[test].sum() for test in (half, other)])
    assert pooled_size(twice, u) == pytest.approx(size(combined))
    assert pooled_size(folds, np.ones(n)) == pytest.approx(n)
    assert pool([estimate_on(6, 1.0, effective_size=3.0), estimate_on(6, 1.0)], twice[:2], data).effective_size is None
    assert pool([estimate_on(6, 1.0, effective_size=e) for e in (3.0, 0.0)], twice[:2], data).effective_size == 0.0


def test_bounds_that_want_independent_terms_are_not_offered(two_parts: tuple[list[Part], Any]) -> None:
    parts, data = two_parts
    estimates = [estimate_on(n, 1.0, influence=np.zeros(n), scores=np.ones(n)) for n in (3, 1)]
    assert pool(estimates, parts, data).scores is None


def test_without_influence_in_a_part_there_is_none(two_parts: tuple[list[Part], Any]) -> None:
    parts, data = two_parts
    pooled = pool([estimate_on(3, 1.0, influence=np.zeros(3)), estimate_on(1, 1.0)], parts, data)
    assert pooled.influence is None
    assert pooled.replicates is None


def test_an_estimate_is_as_doubtful_as_its_most_doubtful_part(two_parts: tuple[list[Part], Any]) -> None:
    parts, data = two_parts
    first = estimate_on(3, 1.0, Verdict(Level.CAUTION, ("Only 12 episodes carry the value.", "The end is open.")))
    second = estimate_on(1, 1.0, Verdict(Level.REFUSE, ("Only 3 episodes carry the value.",)))
    verdict = pool([first, second], parts, data).verdict
    assert verdict.level == Level.REFUSE
    assert verdict.reasons == (
        "In 2 of 2 parts, here fold 2 of 2: Only 3 episodes carry the value.",
        "In fold 1 of 2: The end is open.",
    )


def test_a_part_without_a_value_leaves_none(two_parts: tuple[list[Part], Any]) -> None:
    parts, data = two_parts
    failed = estimate_on(1, float("nan"), Verdict(Level.REFUSE, ("The model file is gone.",)), error="gone")
    pooled = pool([estimate_on(3, 1.0, influence=np.zeros(3)), failed], parts, data)
    assert np.isnan(pooled.value)
    assert pooled.error == "fold 2 of 2: gone"
    assert pooled.verdict.level == Level.REFUSE


# -------------------------------------------------------------------- cross_fit_select


def test_the_value_of_a_learner_is_that_of_its_folds(log: LoggedDataset) -> None:
    found = cross_fit_select({"a": Table(0.2), "b": Table(0.6)}, log, [PerDecisionIS(gamma=1.0)], n_folds=4)
    for name, weight in (("a", 0.2), ("b", 0.6)):
        terms, centred = np.zeros(log.n_episodes), np.zeros(log.n_episodes)
        for k in range(4):
            inside = np.flatnonzero(found.fold_ == k)
            table = learned_table(log.select(np.flatnonzero(found.fold_ != k)), weight)
            returns = weighted_returns(log.select(inside), table)
            terms[inside], centred[inside] = returns, returns - returns.mean()
        estimate = found.estimates_["PerDecisionIS"][name]
        assert estimate.value == pytest.approx(terms.mean(), rel=1e-12)
        assert np.asarray(estimate.influence) == pytest.approx(centred, abs=1e-12)
        assert estimate.std_error == pytest.approx(np.sqrt((centred**2).sum()) / log.n_episodes, rel=0.01)
        assert estimate.data_id == log.data_id
        assert estimate.diagnostics["training_overlap"] == 0
    estimates = found.estimates_["PerDecisionIS"]
    difference = estimates["b"] - estimates["a"]
    assert difference.std_error < 0.7 * estimates["b"].std_error
    assert len(found.folds_) == 2 * 4
    assert found.folds_.groupby("candidate")["n_episodes"].sum().tolist() == [300, 300]


def test_the_winner_is_learned_anew_from_all(log: LoggedDataset) -> None:
    learners = {"a": Table(0.0), "b": Table(0.9)}
    found = cross_fit_select(learners, log, [WeightedIS(gamma=1.0)], n_folds=3, criterion="value")
    assert found.best_name_ == "b"
    assert isinstance(found.best_policy_, Table)
    assert overlap(found.best_policy_, log) == log.n_episodes
    assert found.best_policy_.table_ == pytest.approx(learned_table(log, 0.9))
    assert not hasattr(learners["b"], "table_")
    assert "the learner, not the final policy" in found.decision_
    assert "learned anew from all 300 episodes" in found.decision_
    assert [fit["n"] for fit in Table.fits[-1:]] == [300]
    selector = found.selection_
    assert isinstance(selector, PolicySelector)
    assert set(selector.simultaneous_.index) == {"a", "b"}
    assert selector.corrected_ is not None


def test_refit_can_be_left_out(log: LoggedDataset) -> None:
    found = cross_fit_select({"a": Table(0.5)}, log, [WeightedIS(gamma=1.0)], n_folds=2, refit=False)
    assert found.best_policy_ is None
    assert len(Table.fits) == 2
    assert "learned anew" not in found.decision_


def test_the_order_of_the_log_does_not_matter(log: LoggedDataset) -> None:
    order = np.random.default_rng(0).permutation(log.n_episodes)
    learners = {"a": Table(0.3)}
    here = cross_fit_select(learners, log, [WeightedIS(gamma=1.0)], n_folds=3).estimates_["WeightedIS"]["a"]
    there = cross_fit_select(learners, log.select(order), [WeightedIS(gamma=1.0)], n_folds=3)
    moved = there.estimates_["WeightedIS"]["a"]
    assert moved.value == pytest.approx(here.value, rel=1e-12)
    assert np.asarray(moved.influence) == pytest.approx(np.asarray(here.influence)[order], abs=1e-10)


def test_a_policy_that_is_no_learner_is_valued_as_it_is(problem: RandomMDP, log: LoggedDataset) -> None:
    rule = TabularPolicy(np.asarray(problem.behavior))
    found = cross_fit_select({"rule": rule, "a": Table(0.3)}, log, [PerDecisionIS(gamma=1.0)], n_folds=3)
    whole = PerDecisionIS(gamma=1.0).fit(log, rule).estimate()
    assert found.estimates_["PerDecisionIS"]["rule"].value == pytest.approx(whole.value, rel=1e-12)


def test_a_policy_that_has_seen_the_log_is_refused(log: LoggedDataset) -> None:
    seen = EpsilonGreedy(BCQ(hidden=(4,), n_updates=3, random_state=0).fit(log), 0.5)
    found = cross_fit_select({"seen": seen, "a": Table(0.3)}, log, [WeightedIS(gamma=1.0)], n_folds=2)
    row = found.results_.set_index("candidate").loc["seen"]
    assert row["verdict"] == "REFUSE"
    assert "trained on" in row["reasons"]
    assert found.best_name_ == "a"


def test_a_learner_that_fails_is_a_row_that_says_why(log: LoggedDataset) -> None:
    with pytest.warns(FitFailedWarning, match="at least 0"):
        found = cross_fit_select({"bad": Table(-1.0), "a": Table(0.3)}, log, [WeightedIS(gamma=1.0)], n_folds=2)
    row = found.results_.set_index("candidate").loc["bad"]
    assert row["verdict"] == "REFUSE"
    assert "must be at least 0" in row["reasons"]
    assert found.best_name_ == "a"


def test_workers_agree(log: LoggedDataset) -> None:
    def run(n_jobs: int | None) -> pd.DataFrame:
        with joblib.parallel_config("threading"):
            found = cross_fit_select({"a": Table(0.3)}, log, [WeightedIS(gamma=1.0)], n_folds=3, n_jobs=n_jobs)
        return found.results_

    pd.testing.assert_frame_equal(run(None), run(2))


def test_a_selection_is_shown_from_one_source(log: LoggedDataset) -> None:
    found = cross_fit_select({"<b>": Table(0.3)}, log, [WeightedIS(gamma=1.0)], n_folds=2)
    assert found.decision_ in found.summary()
    assert "&lt;b&gt;" in found._repr_html_()
    assert repr(found) == "CrossFitSelection(1 candidates, 2 folds, best: '<b>')"


BAD_CROSS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no log": ({"data": 3}, TypeError, "LoggedDataset"),
    "no learners": ({"learners": {}}, TypeError, "non-empty mapping"),
    "list of learners": ({"learners": [Table()]}, TypeError, "mapping of names"),
    "class": ({"learners": {"a": Table}}, TypeError, "ope.policies"),
    "one estimator": ({"estimators": WeightedIS(gamma=1.0)}, TypeError, "pass a list"),
    "no estimator": ({"estimators": []}, TypeError, "at least one"),
    "wrong estimator": ({"estimators": [3]}, TypeError, "OffPolicyEstimator"),
    "no gamma": ({"estimators": [WeightedIS(gamma=None)]}, ValueError, "`gamma`"),
    "gammas": ({"estimators": [WeightedIS(gamma=1.0), LSTDQ(gamma=0.9)]}, ValueError, "one `gamma`"),
    "one fold": ({"n_folds": 1}, ValueError, "`n_folds`"),
    "many folds": ({"n_folds": 301}, ValueError, "n_folds"),
    "criterion": ({"criterion": "luck"}, ValueError, "`criterion`"),
    "selection": ({"selection": 3}, TypeError, "mapping"),
    "level": ({"selection": {"level": 2.0}}, ValueError, "`level`"),
    "seed": ({"random_state": None}, ValueError, "`random_state`"),
}


@pytest.mark.parametrize("name", BAD_CROSS)
def test_bad_input_is_told_before_any_work(log: LoggedDataset, name: str) -> None:
    changes, error, words = BAD_CROSS[name]
    arguments = {"learners": {"a": Table()}, "data": log, "estimators": [WeightedIS(gamma=1.0)], **changes}
    with pytest.raises(error, match=words):
        cross_fit_select(**arguments)
    assert Table.fits == []


@pytest.mark.parametrize(
    ("way", "words"), [("mix", "must have one `estimand`, got"), ("logged", "`baseline` 'logged' is a sum of rewards")]
)
def test_estimands_are_not_mixed_and_told_before_any_work(log: LoggedDataset, way: str, words: str) -> None:
    averages: list[Any] = [AverageRewardLSTDQ()]
    options: dict[str, Any] = {"estimators": [*averages, LSTDQ(gamma=1.0)] if way == "mix" else averages}
    with pytest.raises(ValueError, match=words):
        cross_fit_select({"a": Table()}, log, **options)
    with pytest.raises(ValueError, match=words):
        make(**options).fit(log)
    with pytest.raises(ValueError, match=r"must have one `estimand`.*'screen'"):
        make(screen=AverageRewardLSTDQ()).fit(log)
    assert Table.fits == []
    train, test = log.split(test_size=0.5, random_state=0)
    with pytest.raises(ValueError, match=words):
        select_checkpoint(Table(checkpoints=2).fit(train), test, **options)


@pytest.mark.parametrize("name", ["criterion", "estimators", "wait", 3])
def test_a_selection_repeats_nothing_and_has_no_unknown_parameter(log: LoggedDataset, name: Any) -> None:
    options: dict[str, Any] = {"estimators": [WeightedIS(gamma=1.0)], "selection": {name: "value"}}
    twice = name in ("criterion", "estimators")
    words = (
        rf"`selection` must .* got \['{name}'\]; pass {name}= to"
        if twice
        else "`selection` .*; choose among allow_overlap, baseline,"
    )
    train, test = log.split(test_size=0.5, random_state=0)
    with pytest.raises(ValueError, match=f"cross_fit_select: {words}"):
        cross_fit_select({"a": Table()}, log, **options)
    with pytest.raises(ValueError, match=f"PolicySearch: {words}"):
        make(**options).fit(log)
    assert Table.fits == []
    with pytest.raises(ValueError, match=f"select_checkpoint: {words}"):
        select_checkpoint(Table(checkpoints=2).fit(train), test, **options)


@pytest.mark.parametrize(("name", "value"), [("n_jobs", 1), ("progress", True)])
def test_how_checkpoints_are_worked_on_is_not_overwritten_in_silence(log: LoggedDataset, name: str, value: Any) -> None:
    train, test = log.split(test_size=0.5, random_state=0)
    learner = Table(checkpoints=2).fit(train)
    with pytest.raises(ValueError, match=rf"got \['{name}'\]; pass {name}= to select_checkpoint itself"):
        select_checkpoint(learner, test, [WeightedIS(gamma=1.0)], selection={name: value})
    found = select_checkpoint(learner, test, [WeightedIS(gamma=1.0)], **{name: value})
    assert getattr(found.selection_, name) == value
    assert cross_fit_select({"a": Table()}, log, [WeightedIS(gamma=1.0)], n_folds=2, selection={name: value}).best_name_


def test_averages_per_step_are_pooled_as_such() -> None:
    river = RiverSwim(max_steps=30)
    policies = {"up": TabularPolicy([[0.3, 0.7]] * 6), "even": TabularPolicy([[0.5, 0.5]] * 6)}
    found = cross_fit_select(
        policies,
        river.sample(100, random_state=0),
        [AverageRewardLSTDQ()],
        n_folds=2,
        selection={"baseline": "even"},
    )
    assert {one.estimand for one in found.estimates_["AverageRewardLSTDQ"].values()} == {"average_reward"}
    pooled: Any = found.selection_.estimators
    assert {one.estimand for one in pooled.values()} == {"average_reward"}
    assert found.selection_.gates_["difference"].to_dict()["up"] > 0.0


# -------------------------------------------------------------------- select_checkpoint


def test_every_checkpoint_is_valued_and_the_best_chosen(log: LoggedDataset) -> None:
    train, test = log.split(test_size=0.5, random_state=0)
    learner = Table(0.9, checkpoints=2).fit(train)
    found = select_checkpoint(learner, test, [PerDecisionIS(gamma=1.0), LSTDQ(gamma=1.0)], criterion="value")
    assert list(found.checkpoints_) == [2, 4]
    expected = {n: weighted_returns(test, learned_table(train, 0.9, n / 4)).mean() for n in (2, 4)}
    curve = found.curve_[found.curve_["estimator"] == "PerDecisionIS"].set_index("n_updates")["value"]
    assert curve.to_dict() == pytest.approx(expected)
    assert len(found.curve_) == 4
    deciding = found.curve_[found.curve_["estimator"] == found.selection_.primary_].set_index("n_updates")["value"]
    assert found.best_n_updates_ == deciding.idxmax()
    assert found.best_policy_ is found.checkpoints_[deciding.index[int(deciding.argmax())]]
    assert found.decision_ in found.summary()
    assert found.decision_.split(":")[0].replace("'", "&#x27;") in found._repr_html_()
    assert repr(found) == f"CheckpointSelection(2 checkpoints, best: {found.best_n_updates_})"


def test_the_last_policy_is_a_candidate_where_no_checkpoint_holds_it(log: LoggedDataset) -> None:
    train, test = log.split(test_size=0.5, random_state=0)
    learner = Table(0.9, checkpoints=1).fit(train)
    learner.checkpoints_ = learner.checkpoints_[:1]
    learner.checkpoints_[0].n_updates_ = 1
    assert list(stages(learner)) == [1, 4]
    assert list(select_checkpoint(learner, test, [WeightedIS(gamma=1.0)]).checkpoints_) == [1, 4]


def test_checkpoints_that_saw_the_episodes_are_an_error(log: LoggedDataset) -> None:
    learner = Table(0.9, checkpoints=2).fit(log)
    with pytest.raises(ValueError, match="got 300 of 300 from its training"):
        select_checkpoint(learner, log, [WeightedIS(gamma=1.0)])
    found = select_checkpoint(learner, log, [WeightedIS(gamma=1.0)], selection={"allow_overlap": True})
    assert found.best_n_updates_ is not None


def test_nothing_to_choose_from(log: LoggedDataset) -> None:
    train, test = log.split(test_size=0.5, random_state=0)
    with pytest.raises(ValueError, match=r"checkpoints=.*call fit"):
        select_checkpoint(Table().fit(train), test, [WeightedIS(gamma=1.0)])
    with pytest.raises(TypeError, match="PolicySelector"):
        select_checkpoint(TabularPolicy([[1.0]]), test, [WeightedIS(gamma=1.0)])


# -------------------------------------------------------------------- PolicySearch


def make(**changes: Any) -> PolicySearch:
    settings: dict[str, Any] = {
        "learner": Table(checkpoints=2),
        "param_grid": {"weight": [0.0, 0.9]},
        "estimators": [PerDecisionIS(gamma=1.0)],
        "n_repeats": 4,
        "criterion": "value",
        "refit": "all",
    }
    return PolicySearch(**{**settings, **changes})


def test_held_out_values_and_influence_by_loops(log: LoggedDataset) -> None:
    search = make().fit(log)
    frame = pd.DataFrame(search.cv_results_)
    assert frame[["param_weight", "n_updates"]].to_numpy().tolist() == [[0.0, 2], [0.0, 4], [0.9, 2], [0.9, 4]]
    parts = half_parts(log, 4, 0)
    for row, (weight, n) in enumerate([(0.0, 2), (0.0, 4), (0.9, 2), (0.9, 4)]):
        psi, values = np.zeros(log.n_episodes), []
        for part in parts:
            returns = weighted_returns(log.select(part.test), learned_table(log.select(part.train), weight, n / 4))
            values.append(returns.mean())
            psi[part.test] += (returns - returns.mean()) * log.n_episodes / len(part.test) / 4
        assert [frame[f"split{k}_test_score"][row] for k in range(4)] == pytest.approx(values)
        assert frame.loc[row, "mean_test_score"] == pytest.approx(np.mean(values))
        assert frame.loc[row, "std_test_score"] == pytest.approx(np.std(values))
        name = f"weight={weight}, update {n}"
        estimate = search.selection_.estimates_["PerDecisionIS"][name]
        assert np.asarray(estimate.influence) == pytest.approx(psi, abs=1e-12)
    best = int(frame["mean_test_score"].argmax())
    assert search.best_index_ == best
    assert frame.loc[best, "rank_test_score"] == 1
    assert search.best_score_ == pytest.approx(frame.loc[best, "mean_test_score"])
    assert search.best_params_ == {"weight": frame.loc[best, "param_weight"]}


def test_a_learner_behind_transformers_is_seeded_unless_the_setting_names_its_seed() -> None:
    behind = PreprocessedLearner(PCA(2, random_state=3), BCQ(random_state=0))
    seeded = with_setting(behind, {"learner__gamma": 0.5}, 7).get_params()
    assert (seeded["learner__random_state"], seeded["learner__gamma"], seeded["transformer__random_state"]) == (
        7,
        0.5,
        3,
    )
    assert with_setting(behind, {"learner__random_state": 5}, 7).get_params()["learner__random_state"] == 5
    assert with_setting(BCQ(random_state=0), {}, 7).get_params()["random_state"] == 7


def test_the_best_is_learned_anew_and_cut_where_it_was_best(log: LoggedDataset) -> None:
    search = make(param_grid={"weight": [0.9]}).fit(log)
    assert isinstance(search.best_policy_, Table)
    assert search.best_policy_.n_updates_ == search.best_n_updates_
    share = search.best_policy_.n_updates_ / 4
    assert search.best_policy_.table_ == pytest.approx(learned_table(log, 0.9, share))
    assert overlap(search, log) == log.n_episodes
    assert Table.fits[-1]["random_state"] == 0
    assert len({fit["random_state"] for fit in Table.fits}) == 5
    states = np.eye(log.states.shape[1])
    assert np.array_equal(search.predict_proba(states), search.best_policy_.predict_proba(states))
    assert "learned anew from all 300 episodes" in search.decision_


def test_the_best_of_the_valued_policies_comes_with_its_own_estimate(log: LoggedDataset) -> None:
    search = make(param_grid={"weight": [0.9]}, refit="valued").fit(log)
    best = []
    for part in half_parts(log, 4, 0):
        for n in (2, 4):
            table = learned_table(log.select(part.train), 0.9, n / 4)
            best.append((weighted_returns(log.select(part.test), table).mean(), table, part))
    value, table, part = max(best, key=lambda entry: entry[0])
    assert isinstance(search.best_policy_, Table)
    assert search.best_policy_.table_ == pytest.approx(table)
    assert search.best_policy_estimate_ is not None
    assert search.best_policy_estimate_.value == pytest.approx(value)
    assert overlap(search.best_policy_, log.select(part.test)) == 0
    assert len(Table.fits) == 4
    assert "the highest of 8 policies" in search.decision_
    bound = search.best_policy_estimate_.lower_bound(1.0 - 0.05 / 8)
    assert f"at least {bound:.4g}" in search.decision_


def test_without_refit_a_search_is_no_policy(log: LoggedDataset) -> None:
    search = make(refit="none").fit(log)
    assert search.best_policy_ is None
    with pytest.raises(NotFittedError, match="holds no policy"):
        search.predict_proba(np.eye(log.states.shape[1]))
    with pytest.raises(NotFittedError, match="call fit"):
        make().predict(np.eye(2))


def test_learners_without_checkpoints_are_one_candidate_a_setting(log: LoggedDataset) -> None:
    search = make(learner=Table()).fit(log)
    assert list(search.cv_results_["n_updates"]) == [None, None]
    assert search.best_n_updates_ is None
    assert isinstance(search.best_policy_, Table)
    single = make(learner=Table(), param_grid=None, n_repeats=1).fit(log)
    assert single.selection_.best_name_ == "Table"


def test_settings_that_train_together_do(log: LoggedDataset) -> None:
    together, apart = make(learner=Batched(checkpoints=2)).fit(log), make().fit(log)
    assert Batched.batches == [2, 2, 2, 2]
    assert np.array_equal(together.cv_results_["mean_test_score"], apart.cv_results_["mean_test_score"])
    Batched.batches.clear()
    with pytest.warns(FitFailedWarning, match="at least 0"):
        search = make(learner=Batched(checkpoints=2), param_grid={"weight": [-1.0, 0.9]}).fit(log)
    assert Batched.batches == [2, 2, 2, 2]
    assert "must be at least 0" in search.cv_results_["reasons"][0]
    assert search.best_params_ == {"weight": 0.9}


def test_settings_that_cannot_train_together_are_called_apart(log: LoggedDataset) -> None:
    class Grouped(Batched):
        def _group_key(self) -> str:
            return str(self.n_updates)

    grid = {"weight": [-1.0, 0.9], "n_updates": [2]}, {"weight": [0.3, 0.9], "n_updates": [4]}
    with pytest.warns(FitFailedWarning, match="at least 0"):
        make(learner=Grouped(), param_grid=list(grid), n_repeats=1, refit="none").fit(log)
    assert Batched.batches == [2, 2]
    assert [fit["weight"] for fit in Table.fits] == [0.9, 0.3, 0.9]


def test_training_that_ends_early_is_told(log: LoggedDataset) -> None:
    def ends(seed: int) -> int | None:
        return None if seed % 2 else 2

    class Fragile(Table):
        def fit(self, data: LoggedDataset) -> Self:
            self.ends_at = ends(int(self.random_state or 0))
            return super().fit(data)

    search = make(learner=Fragile(checkpoints=2), param_grid=None, n_repeats=6, refit="none").fit(log)
    reasons = dict(zip(search.cv_results_["n_updates"], search.cv_results_["reasons"], strict=True))
    assert "Training ended before update 4" in reasons[4]
    assert search.best_n_updates_ == 2


def test_a_refit_that_ends_early_is_told(log: LoggedDataset) -> None:
    class Fragile(Table):
        def fit(self, data: LoggedDataset) -> Self:
            self.ends_at = 2 if data.n_episodes == 300 else None
            return super().fit(data)

    search = make(learner=Fragile(0.9, checkpoints=2), param_grid=None).fit(log)
    if search.best_n_updates_ == 4:
        assert search.best_policy_ is None
        assert "ended before update 4" in search.decision_
    else:
        assert search.best_policy_ is not None


def test_if_nothing_can_be_learned_the_reason_is_raised(log: LoggedDataset) -> None:
    with pytest.raises(ValueError, match=r"no setting could be learned.*at least 0"):
        make(param_grid={"weight": [-1.0, -2.0]}).fit(log)


def test_the_same_seed_gives_the_same_bits_on_any_number_of_workers(log: LoggedDataset) -> None:
    def scores(**changes: Any) -> FloatArray:
        with joblib.parallel_config("threading"):
            return np.asarray(make(**changes).fit(log).cv_results_["mean_test_score"])

    assert np.array_equal(scores(), scores(n_jobs=2))
    assert not np.array_equal(scores(), scores(random_state=1))


# -------------------------------------------------------------------- two stages


def test_only_those_that_the_screen_values_highest_go_on(log: LoggedDataset) -> None:
    search = make(screen=PerDecisionIS(gamma=1.0), keep=2, estimators=[TrajectoryIS(gamma=1.0)]).fit(log)
    frame = pd.DataFrame(search.cv_results_)
    kept = frame["stage"] == "valued"
    assert set(frame.index[kept]) == set(frame["screen_score"].nlargest(2).index)
    assert frame.loc[~kept, "mean_test_score"].isna().all()
    assert frame.loc[kept, "mean_test_score"].notna().all()
    assert "2 of 4 candidates went on" in search.decision_
    assert search.best_index_ in frame.index[kept]
    half = make(screen=PerDecisionIS(gamma=1.0), keep=0.3, estimators=[TrajectoryIS(gamma=1.0)]).fit(log)
    assert (half.cv_results_["stage"] == "valued").sum() == 2


def test_a_short_training_screens_settings(log: LoggedDataset) -> None:
    grid = {"weight": [0.0, 0.3, 0.9]}
    search = make(param_grid=grid, screen=PerDecisionIS(gamma=1.0), screen_updates=1, keep=1).fit(log)
    short = [fit for fit in Table.fits if fit["n_updates"] == 1]
    full = [fit for fit in Table.fits if fit["n_updates"] == 4 and fit["n"] < 300]
    assert len(short) == 3 * 4
    assert len(full) == 4
    assert {fit["weight"] for fit in full} == {search.best_params_["weight"]} if search.best_params_ else False
    assert list(search.cv_results_["n_updates"]) == [2, 4]
    assert "1 of 3 settings went on" in search.decision_
    assert np.isfinite(search.cv_results_["screen_score"]).all()


def test_survivors_by_hand() -> None:
    refused = Verdict(Level.REFUSE, ("No.",))
    screened = {
        Candidate(0): estimate_on(3, 1.0),
        Candidate(1): estimate_on(3, 9.0, refused),
        Candidate(2): estimate_on(3, 2.0),
        Candidate(3): estimate_on(3, float("nan")),
    }
    assert survivors(screened, 1) == [Candidate(2)]
    assert survivors(screened, 0.5) == [Candidate(0), Candidate(2)]
    assert survivors(screened, 1.0) == [Candidate(0), Candidate(1), Candidate(2)]
    assert len(survivors({Candidate(1): screened[Candidate(1)], Candidate(3): screened[Candidate(3)]}, 1)) == 2


def test_a_screen_that_refuses_everything_lets_everything_through(log: LoggedDataset) -> None:
    bare = log.replace(behavior_log_prob=None, behavior_source=None)
    search = make(screen=PerDecisionIS(gamma=1.0), keep=1, estimators=[LSTDQ(gamma=1.0)]).fit(bare)
    assert (search.cv_results_["stage"] == "valued").all()
    assert "The screen refuses every candidate" in search.decision_


# -------------------------------------------------------------------- parameters


def test_grids_and_distributions(log: LoggedDataset) -> None:
    two = make(param_grid=[{"weight": [0.1]}, {"weight": [0.2], "n_updates": [2]}], learner=Table()).fit(log)
    assert two.cv_results_["params"] == [{"weight": 0.1}, {"n_updates": 2, "weight": 0.2}]
    assert two.cv_results_["param_n_updates"].mask.tolist() == [True, False]
    drawn = make(param_grid={"weight": uniform(0.0, 0.9)}, n_iter=3, learner=Table()).fit(log)
    again = make(param_grid={"weight": uniform(0.0, 0.9)}, n_iter=3, learner=Table()).fit(log)
    assert drawn.cv_results_["params"] == again.cv_results_["params"]
    assert len({setting["weight"] for setting in drawn.cv_results_["params"]}) == 3


def test_a_search_is_cloned_as_any_estimator(log: LoggedDataset) -> None:
    search = make()
    search.set_params(learner__n_updates=8)
    copy = clone(search)
    assert copy is not search
    assert copy.learner is not search.learner
    assert copy.get_params()["learner__n_updates"] == 8
    assert copy.fit(log) is copy
    assert not hasattr(search, "cv_results_")
    assert copy.capabilities == Table().capabilities
    assert ope.PolicySearch is PolicySearch


def test_the_whole_procedure_can_be_valued(log: LoggedDataset) -> None:
    searches = {"search": make(n_repeats=2), "clone": Table(0.0)}
    found = cross_fit_select(searches, log, [WeightedIS(gamma=1.0)], n_folds=2)
    assert found.estimates_["WeightedIS"]["search"].diagnostics["training_overlap"] == 0
    assert np.isfinite(found.estimates_["WeightedIS"]["search"].value)


def test_a_search_is_shown_from_one_source(log: LoggedDataset) -> None:
    search = make()
    assert "PolicySearch" in search._repr_html_()
    with pytest.raises(NotFittedError):
        search.summary()
    search.fit(log)
    assert search.decision_ in search.summary()
    assert search.summary().count("\n") == 2 + 4
    assert search._repr_html_().count("<tr") == 1 + 4


BAD_SEARCH: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "class": ({"learner": Table}, TypeError, "not its class"),
    "policy": ({"learner": TabularPolicy([[1.0]])}, TypeError, "PolicyLearner"),
    "parameter": ({"param_grid": {"wait": [1]}}, ValueError, "wait"),
    "scalar": ({"param_grid": {"weight": 1.0}}, TypeError, "weight"),
    "distribution": ({"param_grid": {"weight": uniform()}}, ValueError, "n_iter"),
    "empty list": ({"param_grid": []}, ValueError, "param_grid"),
    "repeats": ({"n_repeats": 0}, ValueError, "`n_repeats`"),
    "draws": ({"n_iter": 0}, ValueError, "`n_iter`"),
    "screen": ({"screen": "LSTDQ"}, TypeError, "`screen`"),
    "gamma of the screen": ({"screen": LSTDQ(gamma=0.5)}, ValueError, "one `gamma`"),
    "keep nothing": ({"keep": 0}, ValueError, "`keep`"),
    "keep too much": ({"keep": 1.5}, ValueError, "`keep`"),
    "no screen": ({"screen_updates": 3}, ValueError, "must come with a `screen`"),
    "screen updates": ({"screen_updates": 0, "screen": LSTDQ(gamma=1.0)}, ValueError, "`screen_updates`"),
    "refit": ({"refit": True}, ValueError, "`refit`"),
    "criterion": ({"criterion": "luck"}, ValueError, "`criterion`"),
    "selection": ({"selection": {"level": 0.0}}, ValueError, "`level`"),
    "estimators": ({"estimators": []}, TypeError, "at least one"),
    "seed": ({"random_state": None}, ValueError, "`random_state`"),
}


@pytest.mark.parametrize("name", BAD_SEARCH)
def test_bad_parameters_are_told_before_any_work(log: LoggedDataset, name: str) -> None:
    changes, error, words = BAD_SEARCH[name]
    with pytest.raises(error, match=words):
        make(**changes).fit(log)
    assert Table.fits == []


def test_a_log_that_cannot_be_cut(log: LoggedDataset) -> None:
    with pytest.raises(ValueError, match="at least 2 episodes"):
        make().fit(log.select([0]))
    with pytest.raises(TypeError, match="LoggedDataset"):
        make().fit(3)  # type: ignore[arg-type]


def test_learning_leaves_what_it_was_given_alone(log: LoggedDataset) -> None:
    learners: Mapping[int, Policy] = {0: Table(0.3, checkpoints=2), 1: Table(-1.0), 2: TabularPolicy(np.eye(2))}
    learned = learn(learners, log, checkpoints=True)
    assert set(learned.policies) == {Candidate(0, 2), Candidate(0, 4), Candidate(2)}
    assert set(learned.failures) == {1}
    assert not hasattr(learners[0], "table_")


def test_networks_train_as_one_and_are_cut_where_they_were_best(log: LoggedDataset) -> None:
    learner = BCQ(hidden=(4,), n_updates=20, checkpoints=2, batch_size=16, learning_rate=0.01, random_state=0)
    search = PolicySearch(learner, {"threshold": [0.01, 0.9]}, estimators=[LSTDQ(gamma=1.0)], n_repeats=2).fit(log)
    assert sorted(set(search.cv_results_["n_updates"])) == [10, 20]
    assert isinstance(search.best_policy_, BCQ)
    assert search.best_policy_.n_updates_ == search.best_n_updates_
    assert search.best_policy_.threshold == (search.best_params_ or {})["threshold"]


# -------------------------------------------------------------------- statistics


@pytest.mark.slow
@pytest.mark.parametrize("way", ["folds", "halves"])
def test_intervals_cover_the_average_of_the_learned_policies(problem: RandomMDP, way: str) -> None:
    cut: Callable[[LoggedDataset], list[Part]] = {
        "folds": lambda d: fold_parts(d, 5, 0),
        "halves": lambda d: half_parts(d, 4, 0),
    }[way]
    repetitions, covered, errors, reported = 400, 0, [], []
    for seed in range(repetitions):
        log = problem.sample(300, random_state=1000 + seed)
        parts, values, truth = cut(log), [], 0.0
        for part in parts:
            policy = Table(0.6).fit(log.select(part.train))
            values.append(WeightedIS(gamma=1.0).fit(log.select(part.test), policy).estimate())
            truth += part.weight * problem.value(policy.table_, 1.0)
        estimate = pool(values, parts, log)
        low, high = estimate.confidence_interval(0.95)
        covered += low <= truth <= high
        errors.append(estimate.value - truth)
        reported.append(estimate.std_error)
    spread = float(np.std(errors))
    print(
        f"{way}: coverage {covered / repetitions:.3f}, bias {np.mean(errors):.4f}, error {spread:.4f}, reported {np.mean(reported):.4f}"
    )
    assert covered / repetitions > 0.92
    assert abs(np.mean(errors)) < 3 * spread / np.sqrt(repetitions) + 0.1 * spread
    assert np.mean(reported) == pytest.approx(spread, rel=0.15)
