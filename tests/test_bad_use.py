"""Bad use of estimators, estimates and the selector: each is refused in words that say what to do.

To add a case, append a `Bad` to a list below: a name, the call, the exception, and what its message must hold.
"""

from __future__ import annotations

import re

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
    estimate,
    fits,
    interval,
    log,
    selects,
    value_of,
    with_columns,
)
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor

from ope import PolicySelector, bootstrap, estimate_behavior
from ope.estimators import (
    LSTDQ,
    DoublyRobust,
    FittedQEvaluation,
    PerDecisionIS,
    TrajectoryIS,
    WeightedIS,
)
from ope.inference import Anderson, Bootstrap, EmpiricalBernstein, Hoeffding, IntervalNotAvailable
from ope.policies import (
    BehaviorCloning,
    ColumnPolicy,
    FunctionPolicy,
    GaussianPolicy,
    TabularPolicy,
)
from ope.schema import BehaviorSource

IS, DR, FQE = "PerDecisionIS", "DoublyRobust", "FittedQEvaluation"
GAMMA = [
    Bad("gamma missing", fits(PerDecisionIS()), ValueError, (IS, "`gamma` must be given", r"pass gamma= in \[0, 1\]")),
    Bad("gamma above 1", fits(PerDecisionIS(gamma=2)), ValueError, (IS, r"`gamma` must be in \[0, 1\]", "got 2")),
    Bad("gamma negative", fits(LSTDQ(gamma=-0.1)), ValueError, ("LSTDQ", "`gamma`", "got -0.1", "pass the discount")),
    Bad("gamma missing number", fits(LSTDQ(gamma=np.nan)), ValueError, ("LSTDQ", "`gamma`", "got nan")),
    Bad("gamma as text", fits(PerDecisionIS(gamma="0.9")), TypeError, (IS, "`gamma` must be a number", "'0.9'")),  # type: ignore[arg-type]
    Bad("gamma as boolean", fits(PerDecisionIS(gamma=True)), TypeError, (IS, "`gamma` must be a number", "True")),
    Bad(
        "another gamma inside",
        fits(DoublyRobust(gamma=0.9, q=LSTDQ(gamma=0.5))),
        ValueError,
        (DR, "nested LSTDQ must have the same `gamma`", "0.5 inside and 0.9 outside", "leave it out"),
    ),
    Bad("gamma missing outside", fits(DoublyRobust(q=LSTDQ(gamma=0.5))), ValueError, (DR, "`gamma` must be given")),
]
SETTINGS = [
    Bad(
        "clip 0",
        fits(PerDecisionIS(gamma=0.9, clip=0.0)),
        ValueError,
        (IS, "`clip` must be a positive", "0.0", "clip=20"),
    ),
    Bad("clip negative", fits(WeightedIS(gamma=0.9, clip=-1)), ValueError, ("WeightedIS", "`clip`", "got -1")),
    Bad("clip missing", fits(TrajectoryIS(gamma=0.9, clip=np.nan)), ValueError, ("TrajectoryIS", "`clip`", "nan")),
    Bad("clip as text", fits(TrajectoryIS(gamma=0.9, clip="big")), TypeError, ("TrajectoryIS", "`clip`", "'big'")),  # type: ignore[arg-type]
    Bad("one fold", fits(DoublyRobust(gamma=0.9, n_folds=1)), ValueError, (DR, "`n_folds`", "at least 2", "got 1")),
    Bad("half a fold", fits(DoublyRobust(gamma=0.9, n_folds=2.5)), ValueError, (DR, "`n_folds`", "integer", "2.5")),  # type: ignore[arg-type]
    Bad(
        "more folds than episodes",
        fits(DoublyRobust(gamma=0.9, n_folds=50)),
        ValueError,
        (DR, "n_folds=50 needs as many episodes", "got 12", "lower n_folds="),
    ),
    Bad(
        "weights in one fold only",
        fits(DoublyRobust(gamma=0.9, n_folds=2), weight=np.eye(12)[3]),
        ValueError,
        (DR, "`episode_weight` must leave a positive weight outside", "n_folds=2", "raise n_folds="),
    ),
    Bad("nested IS", fits(DoublyRobust(gamma=0.9, q=PerDecisionIS())), TypeError, (DR, "`q`", "Q-based", IS)),
    Bad("nested class", fits(DoublyRobust(gamma=0.9, q=LSTDQ)), TypeError, (DR, "`q`", "Q-based")),  # type: ignore[arg-type]
    Bad("bad nested", fits(DoublyRobust(gamma=0.9, q=LSTDQ(ridge=-1))), ValueError, ("LSTDQ", "`ridge`", "got -1")),
    Bad("ridge negative", fits(LSTDQ(gamma=0.9, ridge=-0.1)), ValueError, ("LSTDQ", "`ridge`", "at least 0", "-0.1")),
    Bad("ridge as text", fits(LSTDQ(gamma=0.9, ridge="weak")), TypeError, ("LSTDQ", "`ridge`", "'weak'")),  # type: ignore[arg-type]
    Bad(
        "no such features",
        fits(LSTDQ(gamma=0.9, features="rbf")),
        ValueError,
        ("LSTDQ", "`features`", "'auto'", "'rbf'"),
    ),
    Bad("features of no use", fits(LSTDQ(gamma=0.9, features=3)), TypeError, ("LSTDQ", "`features`", "got int", "fit")),
    Bad("features of FQE", fits(FittedQEvaluation(gamma=0.9, features="x")), ValueError, (FQE, "`features`", "'x'")),
    Bad("no draws", fits(LSTDQ(gamma=0.9, n_samples=0)), ValueError, ("LSTDQ", "`n_samples`", "at least 1", "got 0")),
    Bad("no regressor", fits(FittedQEvaluation(gamma=0.9, regressor=3)), TypeError, (FQE, "`regressor`", "got int")),
    Bad(
        "regressor class",
        fits(FittedQEvaluation(gamma=0.9, regressor=LinearRegression)),
        TypeError,
        (FQE, "`regressor`", r"LinearRegression\(\)"),
    ),
    Bad(
        "regressor without weights",
        fits(FittedQEvaluation(gamma=0.9, regressor=KNeighborsRegressor(1)), weight=np.arange(12.0)),
        TypeError,
        (FQE, "KNeighborsRegressor", "sample_weight", "use another"),
    ),
    Bad("no iterations", fits(FittedQEvaluation(gamma=0.9, max_iter=0)), ValueError, (FQE, "`max_iter`", "got 0")),
    Bad(
        "half a resample",
        fits(FittedQEvaluation(gamma=0.9, n_bootstrap=0.5)),  # type: ignore[arg-type]
        ValueError,
        (FQE, "`n_bootstrap`", "0.5"),
    ),
    Bad("no tolerance", fits(FittedQEvaluation(gamma=0.9, tol=0.0)), ValueError, (FQE, "`tol`", "positive", "0.0")),
    Bad("seed as text", fits(LSTDQ(gamma=0.9, random_state="x")), ValueError, ("LSTDQ", "`random_state`", "'x'")),  # type: ignore[arg-type]
    Bad("seed None", fits(DoublyRobust(gamma=0.9, random_state=None)), ValueError, (DR, "`random_state`", "None")),  # type: ignore[arg-type]
    Bad("no such parameter", lambda: PerDecisionIS(gamma=0.9).set_params(clipp=2), ValueError, ("clipp", "clip")),
]
INPUTS = [
    Bad(
        "frame for a log",
        fits(None, log().to_pandas()),
        TypeError,
        (IS, "`data`", "LoggedDataset", "DataFrame", "from_pandas"),
    ),
    Bad("function for a policy", value_of(lambda s: s), TypeError, (IS, "`policy`", "got function", "FunctionPolicy")),
    Bad("table for a policy", value_of(np.eye(2)), TypeError, (IS, "`policy`", "got ndarray", "TabularPolicy")),
    Bad(
        "classifier for a policy",
        value_of(classifier()),
        TypeError,
        (IS, "`policy`", "LogisticRegression", "ClassifierPolicy"),
    ),
    Bad("class for a policy", value_of(TabularPolicy), TypeError, (IS, "`policy`", "Policy")),
    Bad("list of policies", value_of([TabularPolicy(TABLE)]), TypeError, (IS, "`policy`", "got list")),
    Bad("no policies", value_of({}), ValueError, (IS, "`policy`", "at least one", "empty mapping")),
    Bad(
        "no propensities",
        fits(None, log().replace(behavior_log_prob=None, behavior_source=None)),
        ValueError,
        (IS, "`data` must hold propensities", "got none", "behavior_prob=", "estimate_behavior"),
    ),
    Bad(
        "weight too few",
        fits(None, weight=[1.0] * 11),
        ValueError,
        (IS, "`episode_weight`", r"per episode \(12\)", "11"),
    ),
    Bad("weight negative", fits(None, weight=[-1.0] + [1.0] * 11), ValueError, (IS, "`episode_weight`", "rows 0 ")),
    Bad("weight missing", fits(None, weight=[1.0] * 11 + [np.nan]), ValueError, (IS, "`episode_weight`", "rows 11 ")),
    Bad("weights all 0", fits(None, weight=np.zeros(12)), ValueError, (IS, "`episode_weight`", "only zeros")),
    Bad("weights as a matrix", fits(None, weight=np.ones((12, 2))), ValueError, (IS, "`episode_weight`", r"\(12, 2\)")),
    Bad("weights as text", fits(None, weight=["much"] * 12), TypeError, (IS, "`episode_weight`", "numeric")),
    Bad("not fitted", lambda: PerDecisionIS(gamma=0.9).estimate(), NotFittedError, (IS, "fit")),
]
CAPABILITIES = [
    Bad(
        "deterministic policy, importance sampling",
        value_of(FunctionPolicy(predict=constant([0.5])), data=continuous_log()),
        TypeError,
        (
            IS,
            "FunctionPolicy",
            r"offers \['deterministic', 'sample'\]",
            r"requires \['logged_prob'\]",
            "work with it: .*LSTDQ",
        ),
    ),
    Bad(
        "one column, Q method",
        value_of(ColumnPolicy("p"), LSTDQ(gamma=0.9), with_columns(p=np.full(24, 0.5))),
        TypeError,
        ("LSTDQ", "ColumnPolicy", r"offers \['logged_prob'\]", "all_probs", "work with it: .*WeightedIS"),
    ),
    Bad(
        "density without draws, Q method",
        value_of(density(-1.0), LSTDQ(gamma=0.9), continuous_log()),
        TypeError,
        ("LSTDQ", "FunctionPolicy", "sample", "ImportanceSampling"),
    ),
    Bad(
        "draws without density",
        value_of(FunctionPolicy(sample=constant([0.5])), DoublyRobust(gamma=0.9), continuous_log()),
        TypeError,
        (DR, "FunctionPolicy", "logged_prob", "work with it"),
    ),
    Bad(
        "probabilities, continuous log",
        value_of(TabularPolicy(TABLE), LSTDQ(gamma=0.9), continuous_log()),
        TypeError,
        ("LSTDQ", r"\(TabularPolicy\) is for discrete actions", "log has continuous ones", "continuous="),
    ),
    Bad(
        "density, discrete log",
        value_of(GaussianPolicy([1.0, 1.0], 1.0)),
        TypeError,
        (IS, r"\(GaussianPolicy\) is for continuous actions", "log has discrete ones", "action_labels="),
    ),
]

RESULTS = [
    Bad("level above 1", interval(level=1.5), ValueError, ("Estimate", "`level`", r"\(0, 1\)", "1.5", "0.95")),
    Bad("level in percent", interval(level=95), ValueError, ("Estimate", "`level`", "95")),
    Bad("level as text", interval(level="95%"), TypeError, ("Estimate", "`level`", "'95%'")),
    Bad(
        "no such interval",
        interval("student"),
        ValueError,
        ("confidence_interval", "`method`", "'student'", "normal, percentile"),
    ),
    Bad("interval as a number", interval(3), TypeError, ("confidence_interval", "`method`", "got 3", "normal")),
    Bad(
        "range missing",
        interval("hoeffding"),
        ValueError,
        ("confidence_interval", "'hoeffding'", "range", r"Hoeffding\(low, high\)"),
    ),
    Bad("range reversed", lambda: Hoeffding(1.0, 0.0), ValueError, ("Hoeffding", "low", "high")),
    Bad("range infinite", lambda: EmpiricalBernstein(0.0, np.inf), ValueError, ("EmpiricalBernstein", "finite")),
    Bad(
        "bound without scores",
        interval(Hoeffding(0.0, 1.0), estimator=WeightedIS(gamma=0.9)),
        IntervalNotAvailable,
        ("Hoeffding", "`scores`", "Normal"),
    ),
    Bad(
        "bound of clipped weights",
        interval(Anderson(0.0), estimator=PerDecisionIS(gamma=0.9, clip=1.0)),
        IntervalNotAvailable,
        ("Anderson", "`scores`"),
    ),
    Bad(
        "bound with estimated propensities",
        lambda: estimate(None, log().replace(behavior_source=BehaviorSource("estimated"))).confidence_interval(
            0.9, Hoeffding(-100.0, 100.0)
        ),
        IntervalNotAvailable,
        ("Hoeffding", "propensities are estimated", "Normal"),
    ),
    Bad(
        "scores outside the range",
        interval(Hoeffding(0.0, 1e-9)),
        ValueError,
        ("hoeffding", "must lie in", "correct it"),
    ),
    Bad(
        "no such bootstrap",
        lambda: Bootstrap(kind="jackknife"),  # type: ignore[arg-type]
        ValueError,
        ("Bootstrap", "`kind`", "'jackknife'", "bca"),
    ),
    Bad(
        "no replicates",
        lambda: Bootstrap(n_replicates=0),
        ValueError,
        ("Bootstrap", "`n_replicates`", "at least 1", "got 0"),
    ),
    Bad(
        "no interval of FQE",
        interval(estimator=FittedQEvaluation(gamma=0.0, regressor=LinearRegression())),
        IntervalNotAvailable,
        ("influence", "bootstrap replicates"),
    ),
    Bad(
        "one episode",
        lambda: estimate(None, log().select([0])).confidence_interval(),
        IntervalNotAvailable,
        ("adjusted_t_interval", "two|2", "episode"),
    ),
    Bad(
        "estimates of two logs",
        lambda: estimate() - estimate(data=log(first=100)),
        ValueError,
        ("Estimate - Estimate", "same episodes", "one log"),
    ),
    Bad(
        "estimates of two questions",
        lambda: estimate() - estimate(PerDecisionIS(gamma=0.5)),
        ValueError,
        ("Estimate - Estimate", "one question", "gamma 0.9 and 0.5"),
    ),
    Bad("a number less", lambda: estimate() - 1.0, TypeError, ("unsupported operand", "Estimate", "float")),  # type: ignore[operator]
    Bad(
        "no such candidate",
        lambda: PerDecisionIS(gamma=0.9).fit(log(), {"a": TabularPolicy(TABLE)}).estimate()["b"],
        KeyError,
        ("b",),
    ),
    Bad(
        "resampling of nothing",
        lambda: bootstrap(PerDecisionIS(gamma=0.9), log(), TabularPolicy(TABLE), n_replicates=0),
        ValueError,
        ("bootstrap", "`n_replicates`", "at least 1", "0"),
    ),
    Bad(
        "no such resampling",
        lambda: bootstrap(PerDecisionIS(gamma=0.9), log(), TabularPolicy(TABLE), kind="block"),  # type: ignore[arg-type]
        ValueError,
        ("`kind`", "'block'", "bayesian"),
    ),
    Bad(
        "resamples without an episode",
        lambda: bootstrap(PerDecisionIS(gamma=0.9), log().select([0]), TabularPolicy(TABLE), kind="poisson"),
        ValueError,
        ("bootstrap", "'poisson'", "got none of 1", "bayesian"),
    ),
    Bad(
        "bootstrap of a mapping",
        lambda: bootstrap(PerDecisionIS(gamma=0.9), log(), {"a": TabularPolicy(TABLE)}),  # type: ignore[arg-type]
        TypeError,
        ("bootstrap", "`policy`", "one policy"),
    ),
    Bad("propensities twice", lambda: estimate_behavior(log()), ValueError, ("estimate_behavior", "overwrite")),
]
SELECTION = [
    Bad(
        "no candidates",
        selects(candidates={}),
        TypeError,
        ("PolicySelector.fit", "`candidates`", "non-empty", "'name': policy"),
    ),
    Bad(
        "candidates without names",
        selects(candidates=[TabularPolicy(TABLE)]),
        TypeError,
        ("PolicySelector.fit", "`candidates`", "mapping", "got list"),
    ),
    Bad(
        "one candidate",
        selects(candidates=TabularPolicy(TABLE)),
        TypeError,
        ("PolicySelector.fit", "`candidates`", "got TabularPolicy"),
    ),
    Bad("no estimators", selects([]), TypeError, ("PolicySelector", "`estimators`", "at least one", "ope.estimators")),
    Bad(
        "estimator classes",
        selects([PerDecisionIS]),
        TypeError,
        ("PolicySelector", "`estimators`", "OffPolicyEstimator"),
    ),
    Bad(
        "one estimator",
        selects(PerDecisionIS(gamma=0.9)),
        TypeError,
        ("PolicySelector", "`estimators`", "sequence|list"),
    ),
    Bad(
        "two gammas",
        selects([PerDecisionIS(gamma=0.9), LSTDQ(gamma=0.5)]),
        ValueError,
        ("PolicySelector", "one gamma", "0.9", "0.5", "different questions"),
    ),
    Bad("gamma missing in the selector", selects([PerDecisionIS()]), ValueError, (IS, "`gamma` must be given")),
    Bad(
        "another gamma inside, in the selector",
        selects([DoublyRobust(gamma=0.9, q=LSTDQ(gamma=0.5))]),
        ValueError,
        (DR, "nested LSTDQ"),
    ),
    Bad(
        "no such criterion",
        selects(criterion="mean"),
        ValueError,
        ("PolicySelector", "`criterion`", "lower_bound", "'mean'"),
    ),
    Bad("level of the selector", selects(level=2), ValueError, ("PolicySelector", "`level`", r"\(0, 1\)", "got 2")),
    Bad(
        "frame for the selector",
        selects(data=log().to_pandas()),
        TypeError,
        ("PolicySelector.fit", "`data`", "DataFrame", "from_pandas"),
    ),
    Bad(
        "summary before fit",
        lambda: PolicySelector([PerDecisionIS(gamma=0.9)]).summary(),
        NotFittedError,
        ("PolicySelector", "fit"),
    ),
]

BAD_USE = [*GAMMA, *SETTINGS, *INPUTS, *CAPABILITIES, *RESULTS, *SELECTION]


@pytest.mark.parametrize("bad", BAD_USE, ids=lambda bad: bad.name)
def test_bad_use(bad: Bad) -> None:
    assert_refused(bad)


def test_names_of_the_table_are_distinct() -> None:
    names = [bad.name for bad in BAD_USE]
    assert len(names) == len(set(names)) >= 40


def test_the_usual_use_is_good() -> None:
    """Each call above differs from a good one by what its name says."""
    assert np.isfinite(estimate().value)
    assert interval("normal", 0.9)().low < interval("normal", 0.9)().high
    assert selects()().best_name_ == "a"
    assert np.isfinite(estimate(LSTDQ(gamma=0.9), continuous_log(), GaussianPolicy([1.0], 1.0)).value)


def test_overlap_with_the_training_episodes_is_told_and_refused() -> None:
    trained = BehaviorCloning(**SMALL).fit(log())
    alone = PerDecisionIS(gamma=0.9).fit(log(), trained).estimate()
    assert alone.diagnostics["training_overlap"] == 12
    assert any("trained on 12 of the 12 evaluation episodes" in reason for reason in alone.verdict.reasons)
    row = selects(candidates={"trained": trained})().results_.iloc[0]
    assert row["verdict"] == "REFUSE"
    assert re.search(r"trained on 12 of the 12 .* data.split .* allow_overlap=True", row["reasons"])
    allowed = selects(candidates={"trained": trained}, allow_overlap=True)().results_.iloc[0]
    assert np.isfinite(allowed["value"])
