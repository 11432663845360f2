"""Settings that cannot be learned: told before any work where the learner can tell, else warned of and shown with the reason."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.exceptions import FitFailedWarning
from sklearn.preprocessing import StandardScaler
from typing_extensions import Self

from ope import LoggedDataset
from ope.estimators import LSTDQ, PerDecisionIS
from ope.policies import (
    ATAC,
    AWAC,
    AWR,
    BCQ,
    BEAR,
    BRAC,
    CQL,
    CRR,
    EDAC,
    IQL,
    LSPI,
    REM,
    TD3BC,
    UWAC,
    BehaviorCloning,
    DoubleDQN,
    PreprocessedLearner,
    TabularPolicy,
)
from ope.policy import PolicyLearner
from ope.problems import RandomMDP
from ope.search import PolicySearch, cross_fit_select, select_checkpoint
from ope.search.settings import check_learner

SMALL: dict[str, Any] = {"hidden": (4,), "n_updates": 20, "batch_size": 16, "random_state": 0}
CONTINUOUS = (ATAC, BEAR, BRAC, EDAC, TD3BC, UWAC)
DISCRETE = (AWAC, AWR, BCQ, CQL, CRR, DoubleDQN, IQL, REM, BehaviorCloning)


class Picky(PolicyLearner):
    """A learner of the uniform policy that looks at its setting in `fit` only."""

    def __init__(self, weight: float = 1.0, *, checkpoints: int = 0) -> None:
        self.weight = weight
        self.checkpoints = checkpoints

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"logged_prob", "all_probs", "sample"})

    def fit(self, data: LoggedDataset) -> Self:
        if self.weight < 0:
            raise ValueError("Picky: `weight` must be at least 0.")
        self._remember(data)
        return self

    def predict_proba(self, states: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return np.full((len(np.asarray(states)), 2), 0.5)


@pytest.fixture(scope="module")
def log() -> LoggedDataset:
    return RandomMDP(horizon=3, random_state=3).sample(100, random_state=0)


@pytest.fixture(scope="module")
def continuous() -> LoggedDataset:
    rng = np.random.default_rng(0)
    states, actions, rewards = rng.normal(size=(40, 1)), rng.normal(size=(40, 1)), rng.normal(size=40)
    return LoggedDataset.from_arrays(states, actions, rewards, lengths=[1] * 40, ends="terminal")


def make(learner: PolicyLearner, grid: Any = None, **changes: Any) -> PolicySearch:
    return PolicySearch(learner, grid, estimators=[PerDecisionIS(gamma=1.0)], **{"n_repeats": 2, **changes})


# -------------------------------------------------------------------- before any work

# Learner, grid, which log, error, what names the setting, the rule in the learner's own words.
BAD_SETTINGS: dict[str, tuple[PolicyLearner, Any, str, type[Exception], str, str]] = {
    "range": (BCQ(**SMALL), {"threshold": [0.3, 5]}, "log", ValueError, "threshold=5", "`threshold` must be"),
    "kind": (BCQ(**SMALL), {"n_updates": [10, "all"]}, "log", TypeError, "n_updates='all'", "`n_updates` must be"),
    "device": (BCQ(**SMALL), {"device": ["cpu", "gpu"]}, "log", ValueError, "device='gpu'", "`device` must be"),
    "second": (BCQ(**SMALL), {"gamma": [0.9], "tau": [2.0]}, "log", ValueError, "gamma=0.9, tau=2.0", "`tau` must be"),
    "together": (
        BehaviorCloning(**SMALL),
        {"action_bounds": [None, ([0.0], [1.0])]},
        "log",
        ValueError,
        "action_bounds=",
        "`action_bounds` must be None",
    ),
    "bounds": (
        TD3BC(**SMALL),
        {"action_bounds": [([0.0], [0.1])]},
        "continuous",
        ValueError,
        "action_bounds=",
        "`action_bounds` must",
    ),
    "transformed": (
        PreprocessedLearner(StandardScaler(), BCQ(**SMALL)),
        {"learner__threshold": [5]},
        "log",
        ValueError,
        "learner__threshold=5",
        "`threshold` must be",
    ),
    "transformer": (
        PreprocessedLearner(StandardScaler(), BCQ(**SMALL)),
        {"transformer": [StandardScaler(), 3]},
        "log",
        TypeError,
        "transformer=3",
        "`transformer` must have fit",
    ),
    "closed form": (LSPI(), {"degree": [1, 0]}, "log", ValueError, "degree=0", "`degree` must be"),
    "no grid": (BCQ(**SMALL, threshold=5), None, "log", ValueError, "`learner` must be able to", "`threshold` must be"),
    "kind of action": (TD3BC(**SMALL), None, "log", TypeError, "`learner` must be able to", "continuous actions"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_are_checked_before_any_work(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, grid, which, error, setting, rule = BAD_SETTINGS[name]
    data = request.getfixturevalue(which)

    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("it went to work")

    monkeypatch.setattr("ope.search.policy_search.search", no_work)
    with pytest.raises(error, match=rf"^PolicySearch: .*{re.escape(setting)}.*: \w+: .*{rule}"):
        make(learner, grid).fit(data)


def test_settings_are_checked_for_the_short_training_too(continuous: LoggedDataset) -> None:
    learner = BEAR(**SMALL, warm_start_updates=5)
    search = make(learner, {"gamma": [0.9]}, screen=LSTDQ(gamma=1.0), screen_updates=3)
    with pytest.raises(ValueError, match=r"gamma=0.9 with n_updates=3 for the screen: BEAR: `warm_start_updates` must"):
        search.fit(continuous)


@pytest.mark.parametrize("kind", [*CONTINUOUS, *DISCRETE], ids=lambda kind: kind.__name__)
def test_a_check_says_what_the_fit_would_say(kind: type[Any], log: LoggedDataset, continuous: LoggedDataset) -> None:
    data = continuous if kind in CONTINUOUS else log
    check_learner(kind(**{**SMALL, "n_updates": 100_000}), data)
    for setting in ({"n_updates": 0}, {"hidden": 3}, {"device": "gpu"}):
        bad = kind(**{**SMALL, "n_updates": 100_000, **setting})
        with pytest.raises((ValueError, TypeError)) as checked:
            check_learner(bad, data)
        with pytest.raises(type(checked.value), match=f"^{re.escape(str(checked.value))}$"):
            bad.fit(data)


def test_a_check_fits_nothing(log: LoggedDataset) -> None:
    learner = PreprocessedLearner(StandardScaler(), BCQ(**SMALL))
    check_learner(learner, log)
    assert not hasattr(learner, "transformer_")
    assert not hasattr(learner, "learner_")


# -------------------------------------------------------------------- in training


def test_a_setting_that_fails_in_training_is_warned_of_and_shown(log: LoggedDataset) -> None:
    search = make(Picky(), {"weight": [-1.0, -2.0, 1.0]}, n_repeats=3)
    with pytest.warns(FitFailedWarning) as warned:
        search.fit(log)
    assert len(warned) == 1
    message = str(warned[0].message)
    assert message.startswith("PolicySearch: some fits failed")
    assert "weight=-1.0 (3 of 3 fits): ValueError: Picky: `weight` must be at least 0." in message
    assert "weight=-2.0 (3 of 3 fits)" in message
    assert "weight=1.0" not in message
    shown = "Refused, weight=-1.0; weight=-2.0: In 3 of 3 parts, here repeat 1 of 3: Learning failed: ValueError: Picky"
    assert shown in search.summary()
    assert shown in search._repr_html_()


def test_a_learner_that_fails_in_a_fold_is_warned_of_and_shown(log: LoggedDataset) -> None:
    learners = {"bad": Picky(-1.0), "good": Picky()}
    with pytest.warns(FitFailedWarning, match=r"cross_fit_select: .*\n'bad' \(2 of 2 fits\): ValueError: Picky"):
        found = cross_fit_select(learners, log, [PerDecisionIS(gamma=1.0)], n_folds=2)
    shown = "PerDecisionIS: Refused, bad: In 2 of 2 parts, here fold 1 of 2: Learning failed: ValueError: Picky"
    assert shown in found.summary()
    assert shown in found._repr_html_()


def test_a_setting_that_keeps_no_checkpoint_in_a_repeat_is_told(log: LoggedDataset) -> None:
    class Fragile(Picky):
        def fit(self, data: LoggedDataset) -> Self:
            super().fit(data)
            self.checkpoints_: list[Fragile] = []
            if Fragile.n_fits % 2:
                kept = Fragile().fit_only(data, 5)
                self.checkpoints_.append(kept)
            self.n_updates_ = 10
            Fragile.n_fits += 1
            return self

        def fit_only(self, data: LoggedDataset, n_updates: int) -> Self:
            super().fit(data)
            self.n_updates_ = n_updates
            return self

        n_fits = 0

    search = make(Fragile()).fit(log)
    reasons = dict(zip(search.cv_results_["n_updates"], search.cv_results_["reasons"], strict=True))
    assert "elsewhere it ended before the first one" in reasons[None]
    assert "Training ended before update 5" in reasons[5]


# -------------------------------------------------------------------- nothing can be valued

DECIDING = ("mean_test_score", "std_test_score", "rank_test_score", "split0_test_score", "std_error", "lower_bound")


def test_columns_are_there_if_everything_is_refused(log: LoggedDataset) -> None:
    bare = log.replace(behavior_log_prob=None, behavior_source=None)
    good, none = make(Picky(), {"weight": [1.0, 2.0]}).fit(log), make(Picky(), {"weight": [1.0, 2.0]}).fit(bare)
    assert set(none.cv_results_) == set(good.cv_results_) >= {*DECIDING, "verdict", "reasons"}
    frame = pd.DataFrame(none.cv_results_)
    assert frame["mean_test_score"].isna().all()
    assert frame["verdict"].tolist() == ["REFUSE", "REFUSE"]
    assert frame["reasons"].str.contains("estimate_behavior").all()
    assert "estimate_behavior" in none.summary()
    assert none.best_policy_ is None


def test_a_decision_leads_to_the_reasons(log: LoggedDataset) -> None:
    bare = log.replace(behavior_log_prob=None, behavior_source=None)
    search = make(Picky()).fit(bare)
    assert "every estimator refuses every candidate. selection_.results_ gives each reason" in search.decision_
    assert search.selection_.results_["reasons"].str.contains("estimate_behavior").all()
    train, test = bare.split(test_size=0.5, random_state=0)
    learner = BCQ(**SMALL, checkpoints=2).fit(train)
    found = select_checkpoint(learner, test, [PerDecisionIS(gamma=1.0)])
    assert " selection_.results_ gives each reason" in found.decision_
    crossed = cross_fit_select({"a": TabularPolicy(np.full((5, 2), 0.5))}, bare, [PerDecisionIS(gamma=1.0)], n_folds=2)
    assert " results_ gives each reason" in crossed.decision_
    assert len(crossed.results_) == 1
