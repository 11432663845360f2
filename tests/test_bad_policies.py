"""Bad policies and bad use of good ones: each is refused in words that say what to do.

To add a case, append a `Bad` to a list below: a name, the call, the exception, and what its message must hold.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bad_calls import (
    SMALL,
    TABLE,
    Bad,
    assert_refused,
    classifier,
    constant,
    continuous_log,
    density,
    log,
    log_prob,
    masked,
    proba,
    value_of,
    with_columns,
)
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import LinearSVC

from ope import load_policy
from ope.estimators import LSTDQ
from ope.policies import (
    BCQ,
    TD3BC,
    BehaviorCloning,
    ClassifierPolicy,
    ColumnPolicy,
    EpsilonGreedy,
    FunctionPolicy,
    GaussianPolicy,
    TabularPolicy,
)

PROBABILITIES = [
    Bad(
        "negative",
        value_of(proba([-0.5, 1.5])),
        ValueError,
        ("FunctionPolicy.predict_proba", "sum to 1", "-0.5, 1.5", "normalise"),
    ),
    Bad(
        "not normalised", value_of(proba([0.5, 0.6])), ValueError, ("predict_proba", "sum to 1", r"0.5, 0.6.*rows 0, 1")
    ),
    Bad("missing", value_of(proba([np.nan, 1.0])), ValueError, ("predict_proba", "sum to 1", "nan, 1.0")),
    Bad(
        "a column too many",
        value_of(proba([0.2, 0.3, 0.5])),
        ValueError,
        ("predict_proba", r"\(24, 2\)", r"\(24, 3\)", "actions="),
    ),
    Bad(
        "one column", value_of(proba(0.5)), ValueError, ("FunctionPolicy.predict_proba", r"shape \(24, 2\)", r"\(24,\)")
    ),
    Bad(
        "a row too few",
        value_of(FunctionPolicy(predict_proba=lambda s: np.ones((len(s) - 1, 2)) / 2)),
        ValueError,
        ("FunctionPolicy", r"per state \(24\)", r"\(23, 2\)"),
    ),
    Bad(
        "for an estimator of Q",
        value_of(proba([0.5, 0.6]), LSTDQ(gamma=0.9)),
        ValueError,
        ("predict_proba", "sum to 1"),
    ),
    Bad(
        "unknown labels",
        value_of(TabularPolicy(TABLE, action_labels=["no", "maybe"])),
        ValueError,
        ("TabularPolicy", "takes actions .*maybe", r"labels \['no', 'yes'\]", "actions="),
    ),
    Bad(
        "labels of another type",
        value_of(TabularPolicy(TABLE, action_labels=[0, 1])),
        ValueError,
        ("TabularPolicy", r"takes actions \[0, 1\]", "'no'"),
    ),
    Bad(
        "all mass masked",
        value_of(proba([0.0, 1.0]), data=masked()),
        ValueError,
        ("FunctionPolicy", "available action", "masked", "rows"),
    ),
    Bad(
        "logarithm missing",
        value_of(log_prob(np.nan)),
        ValueError,
        ("FunctionPolicy.log_prob", "log probability", "nan", "rows 0"),
    ),
    Bad("logarithm above 0", value_of(log_prob(0.7)), ValueError, ("FunctionPolicy.log_prob", "at most 0", "got 0.7")),
    Bad(
        "density infinite",
        value_of(density(np.inf), data=continuous_log()),
        ValueError,
        ("log_prob", "log density", "got inf"),
    ),
    Bad("logarithms as a matrix", value_of(log_prob([-1.0])), ValueError, ("log_prob", r"shape \(24,\)", r"\(24, 1\)")),
]
ADAPTERS = [
    Bad(
        "table of no distribution",
        value_of(TabularPolicy([[0.5, 0.6], [1, 0]])),  # type: ignore[arg-type]
        ValueError,
        ("TabularPolicy", "`probs`", "sum to 1", "0.6"),
    ),
    Bad(
        "table for other states",
        value_of(TabularPolicy([[0.5, 0.5]] * 3)),
        ValueError,
        ("TabularPolicy", "one-hot vectors of length 3", "2 columns", "state_code="),
    ),
    Bad(
        "states that are not one-hot",
        lambda: TabularPolicy(TABLE).predict([[0.5, 0.5]]),
        ValueError,
        ("TabularPolicy", "one-hot", "0.5, 0.5", "state_code="),
    ),
    Bad("code that is no row", lambda: TabularPolicy(TABLE).predict([7]), ValueError, ("TabularPolicy", "0 to 1", "7")),
    Bad(
        "column that is no column",
        value_of(TabularPolicy(TABLE, state_code=5)),
        ValueError,
        ("TabularPolicy", "`state_code`", "got 5"),
    ),
    Bad(
        "labels too many",
        value_of(TabularPolicy(TABLE, action_labels=["a", "b", "c"])),
        ValueError,
        ("TabularPolicy", "`action_labels`", "2 actions"),
    ),
    Bad(
        "labels twice",
        value_of(TabularPolicy(TABLE, action_labels=["no", "no"])),
        ValueError,
        ("TabularPolicy", "`action_labels`", "distinct"),
    ),
    Bad(
        "classifier not fitted",
        value_of(ClassifierPolicy(LogisticRegression())),
        NotFittedError,
        ("ClassifierPolicy", "fitted", "LogisticRegression", "call its fit"),
    ),
    Bad(
        "classifier without probabilities",
        value_of(ClassifierPolicy(LinearSVC().fit(np.eye(2), ["no", "yes"]))),
        TypeError,
        ("ClassifierPolicy", "`predict_proba`", "LinearSVC", "CalibratedClassifierCV"),
    ),
    Bad(
        "no classifier",
        value_of(ClassifierPolicy(LinearRegression().fit(np.eye(2), [0, 1]))),
        NotFittedError,
        ("ClassifierPolicy", "`classifier`", "LinearRegression"),
    ),
    Bad(
        "other feature names",
        value_of(ClassifierPolicy(classifier(named=True))),
        ValueError,
        ("ClassifierPolicy", "feature names", "'age', 'pulse'", "'state_0', 'state_1'"),
    ),
    Bad(
        "missing column",
        value_of(ClassifierPolicy(classifier(), columns=["age"])),
        ValueError,
        ("ClassifierPolicy", "'age'", "'state_0'", "correct the name"),
    ),
    Bad(
        "columns as text",
        value_of(ClassifierPolicy(classifier(), columns="age")),
        TypeError,
        ("ClassifierPolicy", "`columns`", r"pass \['age'\]"),
    ),
    Bad(
        "no such column",
        value_of(ColumnPolicy("q")),
        ValueError,
        ("ColumnPolicy", "'q'", "state_0", "correct the name"),
    ),
    Bad(
        "column with gaps",
        value_of(ColumnPolicy("p"), data=with_columns(p=[None] + [0.5] * 23)),
        ValueError,
        ("ColumnPolicy", "'p'", "missing", "1 missing"),
    ),
    Bad(
        "column of text",
        value_of(ColumnPolicy("p"), data=with_columns(p="much")),
        TypeError,
        ("ColumnPolicy", "'p'", "numeric"),
    ),
    Bad(
        "column of percentages",
        value_of(ColumnPolicy("p"), data=with_columns(p=np.full(24, 50.0))),
        ValueError,
        ("ColumnPolicy", "at most 0", "rows 0"),
    ),
    Bad(
        "column negative",
        value_of(ColumnPolicy("p"), data=with_columns(p=np.full(24, -1.0))),
        ValueError,
        ("ColumnPolicy", "-1.0", "log=True"),
    ),
    Bad(
        "columns too few",
        value_of(ColumnPolicy(["p"]), data=with_columns(p=np.ones(24))),
        ValueError,
        ("ColumnPolicy", r"\(24, 2\)", r"\(24, 1\)"),
    ),
    Bad(
        "epsilon above 1",
        value_of(EpsilonGreedy(TabularPolicy(TABLE), 1.5)),
        ValueError,
        ("EpsilonGreedy", "`epsilon`", r"\[0, 1\]", "1.5"),
    ),
    Bad(
        "greedy of a density",
        value_of(EpsilonGreedy(GaussianPolicy([1.0, 1.0], 1.0), 0.1)),
        TypeError,
        ("EpsilonGreedy", "`policy`", "GaussianPolicy", "action probabilities"),
    ),
    Bad(
        "greedy of no policy",
        value_of(EpsilonGreedy(classifier(), 0.1)),
        TypeError,
        ("EpsilonGreedy", "`policy`", "LogisticRegression", "Policy"),
    ),
    Bad(
        "no noise",
        value_of(GaussianPolicy([1.0], 0.0), data=continuous_log()),
        ValueError,
        ("GaussianPolicy", "`std`", "positive", "0.0", "FunctionPolicy"),
    ),
    Bad(
        "coefficients too few",
        value_of(GaussianPolicy([1.0, 1.0], 1.0), data=continuous_log()),
        ValueError,
        ("GaussianPolicy", "`mean`", "d = 1", r"\(2,\)"),
    ),
    Bad(
        "dimension of actions",
        value_of(GaussianPolicy([1.0], 1.0), data=continuous_log(2)),
        ValueError,
        ("GaussianPolicy", "dimension", "2 and 1"),
    ),
    Bad(
        "noise of another shape",
        value_of(GaussianPolicy([1.0], [1.0, 2.0]), data=continuous_log()),
        ValueError,
        ("GaussianPolicy", "`std`", r"\(2,\)"),
    ),
    Bad(
        "intercept of a function",
        value_of(GaussianPolicy(constant([1.0]), 1.0, intercept=1.0), data=continuous_log()),
        ValueError,
        ("GaussianPolicy", "`intercept`", "absent"),
    ),
    Bad(
        "regressor not fitted",
        value_of(GaussianPolicy(LinearRegression(), 1.0), data=continuous_log()),
        NotFittedError,
        ("GaussianPolicy", "LinearRegression"),
    ),
    Bad(
        "no function",
        value_of(FunctionPolicy()),
        ValueError,
        ("FunctionPolicy", "at least one function", "predict_proba="),
    ),
    Bad(
        "function for one state",
        value_of(FunctionPolicy(predict=lambda _: "no", action_labels=["no", "yes"])),
        ValueError,
        ("FunctionPolicy", "`predict`", r"\(24\)", r"\(\)"),
    ),
    Bad(
        "label of its own",
        value_of(FunctionPolicy(predict=constant("perhaps"), action_labels=["no", "yes"])),
        ValueError,
        ("FunctionPolicy", "'perhaps'", r"\['no', 'yes'\]"),
    ),
    Bad(
        "verb it lacks",
        lambda: ColumnPolicy("p").sample([[0.0]]),
        TypeError,
        ("ColumnPolicy", "no `sample`", "logged_prob"),
    ),
    Bad(
        "states of another width",
        lambda: ClassifierPolicy(classifier(named=True)).predict([[1.0]]),
        ValueError,
        ("ClassifierPolicy", "`states`", "age", r"\(1, 1\)"),
    ),
]
LEARNERS = [
    Bad("learner not fitted", value_of(BCQ()), NotFittedError, ("BCQ", "not fitted", r"fit\(data\)")),
    Bad(
        "learner not fitted, capabilities",
        value_of(BehaviorCloning()),
        NotFittedError,
        ("BehaviorCloning", "not fitted"),
    ),
    Bad(
        "discrete actions",
        lambda: TD3BC(**SMALL).fit(log()),
        TypeError,
        ("TD3BC", "`data`", "continuous", "CQL"),
    ),
    Bad(
        "frame for a learner",
        lambda: BCQ(**SMALL).fit(log().to_pandas()),  # type: ignore[arg-type]
        TypeError,
        ("BCQ", "`data`", "LoggedDataset", "DataFrame"),
    ),
    Bad("gamma of a learner", lambda: BCQ(gamma=2.0).fit(log()), ValueError, ("BCQ", "`gamma`", r"\[0, 1\]", "2.0")),
    Bad("no updates", lambda: BCQ(n_updates=0).fit(log()), ValueError, ("BCQ", "`n_updates`", "integer", "got 0")),
    Bad("widths", lambda: BCQ(hidden=5).fit(log()), ValueError, ("BCQ", "`hidden`", "tuple", "got 5")),  # type: ignore[arg-type]
    Bad(
        "learning rate",
        lambda: BehaviorCloning(learning_rate=-1.0).fit(log()),
        ValueError,
        ("BehaviorCloning", "`learning_rate`", "-1.0"),
    ),
    Bad(
        "seed of a learner",
        lambda: BehaviorCloning(random_state="x").fit(log()),  # type: ignore[arg-type]
        TypeError,
        ("BehaviorCloning", "`random_state`", "'x'"),
    ),
    Bad(
        "unknown device",
        lambda: BehaviorCloning(device="abacus").fit(log()),
        ValueError,
        ("BehaviorCloning", "`device`", "abacus"),
    ),
    Bad(
        "other features than trained on",
        lambda: value_of(BCQ(**SMALL).fit(log()), data=log().replace(feature_names=("a", "b")))(),
        ValueError,
        ("BCQ", "feature names", "'state_0'", "'a', 'b'"),
    ),
    Bad(
        "states of a learner",
        lambda: BCQ(**SMALL).fit(log()).predict([[1.0]]),
        ValueError,
        ("BCQ", "`states`", r"\(1, 1\)"),
    ),
    Bad(
        "states missing",
        lambda: BCQ(**SMALL).fit(log()).predict([[1.0, np.nan]]),
        ValueError,
        ("BCQ", "`states`", "finite", "rows 0"),
    ),
    Bad(
        "no policy file",
        lambda: load_policy(Path(__file__)),
        ValueError,
        ("load_policy", "`path`", "safetensors", "test_bad_policies"),
    ),
    Bad(
        "resume of nothing",
        lambda: BCQ(**SMALL).resume(log()),
        ValueError,
        ("BCQ.resume", "no interrupted run", "call fit"),
    ),
]

BAD_USE = [*PROBABILITIES, *ADAPTERS, *LEARNERS]


@pytest.mark.parametrize("bad", BAD_USE, ids=lambda bad: bad.name)
def test_bad_use(bad: Bad) -> None:
    assert_refused(bad)


def test_names_of_the_table_are_distinct() -> None:
    names = [bad.name for bad in BAD_USE]
    assert len(names) == len(set(names)) >= 40
