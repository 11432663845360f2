"""The policy adapters, against plain loops and closed forms."""

import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

import ope.policies
from ope.dataset import LoggedDataset, Rows
from ope.inputs import as_rows
from ope.policies import (
    ClassifierPolicy,
    ColumnPolicy,
    EpsilonGreedy,
    FunctionPolicy,
    GaussianPolicy,
    TabularPolicy,
)
from ope.policy import Policy, expectation, log_prob_logged, overlap, probabilities

TABLE = [[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]]
LABELS = ["a", "b", "c"]


def one_hot(codes: list[int], n: int) -> npt.NDArray[np.float64]:
    return np.array([[1.0 if j == code else 0.0 for j in range(n)] for code in codes])


def make_log(states: Any, actions: Any, **options: Any) -> LoggedDataset:
    n = len(actions)
    settings = {"lengths": [n], "ends": "terminal", **options}
    return LoggedDataset.from_arrays(states, actions, np.zeros(n), **settings)


def tabular_log(codes: list[int], actions: list[str], **options: Any) -> LoggedDataset:
    return make_log(one_hot(codes, 2), actions, action_labels=LABELS, **options)


# -------------------------------------------------------------------- TabularPolicy


def test_tabular_looks_up_one_hot_rows() -> None:
    log = tabular_log([0, 1, 1], ["c", "b", "a"])
    got = log_prob_logged(TabularPolicy(TABLE), log)
    assert got[:2] == pytest.approx([math.log(0.1), math.log(0.5)])
    assert got[2] == -math.inf


@pytest.mark.parametrize("state_code", [1, -1, "cell", lambda states: states[:, 1]])
def test_tabular_reads_a_code(state_code: Any) -> None:
    states = np.array([[9.0, 1.0], [9.0, 0.0]])
    log = make_log(states, ["a", "b"], action_labels=LABELS, feature_names=["other", "cell"])
    probs = probabilities(TabularPolicy(TABLE, state_code), log.rows(), np.array(LABELS))
    assert probs.tolist() == [TABLE[1], TABLE[0]]


def test_tabular_takes_a_single_column_as_the_code() -> None:
    assert TabularPolicy(TABLE).predict_proba([1, 0, 1]).tolist() == [TABLE[1], TABLE[0], TABLE[1]]


def test_tabular_reads_a_code_from_the_other_columns() -> None:
    extras = pd.DataFrame({"cell": [1, 0, 1]})
    log = tabular_log([0, 0, 0], ["a", "b", "c"], extras=extras)
    probs = TabularPolicy(TABLE, "cell").proba_rows(log.rows())
    assert probs.tolist() == [TABLE[code] for code in extras["cell"]]


def test_tabular_named_code_reads_frames_but_no_bare_arrays() -> None:
    policy = TabularPolicy(TABLE, "cell")
    assert "sample" not in policy.capabilities
    assert policy.predict(pd.DataFrame({"cell": [0, 1]})).tolist() == [0, 1]
    with pytest.raises(ValueError, match="column 'cell' must be a state"):
        policy.predict([[0.0], [1.0]])


@pytest.mark.parametrize(
    ("policy", "states", "message"),
    [
        (TabularPolicy(TABLE), [0, 2], r"from 0 to 1, the rows of `probs`, got 2 at rows 1"),
        (TabularPolicy(TABLE), [-1, 0], r"got -1 at rows 0"),
        (TabularPolicy(TABLE, 0), [[0.5]], r"must be integers .* got 0.5"),
        (TabularPolicy(TABLE), [[1.0, 1.0]], r"must be one-hot, got \[1.0, 1.0\]"),
        (TabularPolicy(TABLE), [[0.0, 2.0]], "must be one-hot"),
        (TabularPolicy(TABLE), [[0.0, 0.0]], "must be one-hot"),
        (TabularPolicy(TABLE), [[0.0, 0.0, 1.0]], r"pass state_code="),
        (TabularPolicy(TABLE, 3), [[0.0, 1.0]], "position of one of 2 state columns"),
        (TabularPolicy(TABLE, lambda s: s), [[0.0, 1.0]], "one integer per state"),
        (TabularPolicy([[0.5, 0.6]]), [1], r"sum to 1, got \[0.5, 0.6\]"),
        (TabularPolicy([[1.5, -0.5]]), [1], "sum to 1"),
        (TabularPolicy([[np.nan, 1.0]]), [1], "sum to 1"),
        (TabularPolicy([0.5, 0.5]), [1], r"shape \(n, n_actions\)"),
    ],
)
def test_tabular_names_what_is_wrong(policy: TabularPolicy, states: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy.predict_proba(states)


@pytest.mark.parametrize(("labels", "message"), [(["a", "b"], "each of the 3 actions"), (["a", "a", "b"], "distinct")])
def test_tabular_refuses_unfit_labels(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TabularPolicy(TABLE, action_labels=labels).predict([0])


def test_tabular_aligns_permuted_labels() -> None:
    log = tabular_log([0, 1], ["a", "c"])
    policy = TabularPolicy([[0.1, 0.7, 0.2], [0.5, 0.0, 0.5]], action_labels=["c", "a", "b"])
    assert probabilities(policy, log.rows(), np.array(LABELS)).tolist() == TABLE


def test_discrete_verbs_follow_from_the_probabilities() -> None:
    policy = TabularPolicy(TABLE, action_labels=LABELS)
    assert policy.predict([0, 1]).tolist() == ["a", "b"]  # a tie in state 1: the first label
    got = policy.log_prob([0, 1, 1], ["c", "b", "a"])
    assert got.tolist() == [math.log(0.1), math.log(0.5), -math.inf]
    with pytest.raises(ValueError, match=r"among the labels \['a', 'b', 'c'\], got 'z'"):
        policy.log_prob([0], ["z"])


def test_samples_have_the_probabilities_and_the_seed() -> None:
    policy = TabularPolicy(TABLE, action_labels=LABELS)
    n = 40_000
    draws = policy.sample(np.zeros(n), random_state=3)
    assert (draws == policy.sample(np.zeros(n), random_state=np.random.default_rng(3))).all()
    for label, p in zip(LABELS, TABLE[0], strict=True):
        assert abs((draws == label).mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert not (policy.sample(np.ones(n), random_state=3) == "a").any()


def test_masks_zero_and_renormalise() -> None:
    mask = [[True, False, True], [True, True, False]]
    log = tabular_log([0, 1], ["a", "b"], action_mask=mask)
    got = probabilities(TabularPolicy(TABLE), log.rows(), np.array(LABELS))
    assert got == pytest.approx(np.array([[0.7 / 0.8, 0.0, 0.1 / 0.8], [0.0, 1.0, 0.0]]))


# -------------------------------------------------------------------- FunctionPolicy


def double(states: Any) -> Any:
    return 2.0 * states


def threshold(states: Any) -> Any:
    return np.where(states[:, 0] > 0, "b", "a")


def test_function_capabilities_follow_from_what_is_given() -> None:
    def given(**functions: Any) -> set[str]:
        return set(FunctionPolicy(**functions).capabilities)

    assert given(predict=double) == {"deterministic", "sample"}
    assert given(predict=threshold, action_labels=["a", "b"]) == {"deterministic", "sample", "logged_prob", "all_probs"}
    assert given(predict_proba=double) == {"logged_prob", "all_probs", "sample"}
    assert given(log_prob=double) == {"logged_prob", "density"}
    assert given(log_prob=double, action_labels=["a"]) == {"logged_prob"}
    assert given(sample=double) == {"sample"}
    assert given(predict=double, log_prob=double, sample=double) == {"logged_prob", "density", "sample"}
    with pytest.raises(ValueError, match="at least one function"):
        given(action_labels=["a"])


def test_deterministic_labels_become_probabilities() -> None:
    log = make_log([[-1.0], [1.0], [2.0]], ["a", "a", "b"])
    policy = FunctionPolicy(predict=threshold, action_labels=["b", "a"])
    assert log_prob_logged(policy, log).tolist() == [0.0, -math.inf, 0.0]
    assert policy.predict_proba([[-1.0], [1.0]]).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert policy.sample([[-1.0], [1.0]], random_state=0).tolist() == ["a", "b"]
    with pytest.raises(ValueError, match=r"among the labels \['a'\], got 'b'"):
        FunctionPolicy(predict=threshold, action_labels=["a"]).predict_proba([[1.0]])


def test_deterministic_continuous_expectation_is_one_evaluation() -> None:
    states = np.array([[1.0, -1.0], [0.5, 2.0]])
    log = make_log(states, np.zeros((2, 2)))
    calls = []

    def q(states: Any, actions: Any) -> Any:
        calls.append(actions)
        return (states * actions).sum(axis=1)

    got = expectation(FunctionPolicy(predict=double), log, q)
    assert got.tolist() == [sum(2.0 * x * x for x in row) for row in states.tolist()]
    assert len(calls) == 1


def test_functions_of_continuous_policies_are_passed_through() -> None:
    def log_prob(states: Any, actions: Any) -> Any:
        return -np.abs(actions[:, 0] - states[:, 0])

    def sample(states: Any, rng: np.random.Generator) -> Any:
        return states + rng.standard_normal(states.shape)

    policy = FunctionPolicy(log_prob=log_prob, sample=sample)
    log = make_log([[1.0], [2.0]], [[0.5], [4.0]])
    assert log_prob_logged(policy, log).tolist() == [-0.5, -2.0]
    expected = np.array([[1.0], [2.0]]) + np.random.default_rng(7).standard_normal((2, 1))
    assert policy.sample([[1.0], [2.0]], random_state=7).tolist() == expected.tolist()
    for verb in ("predict", "predict_proba"):
        with pytest.raises(TypeError, match=f"has no `{verb}`"):
            getattr(policy, verb)([[1.0]])


def test_function_with_probabilities_has_all_verbs() -> None:
    policy = FunctionPolicy(
        predict_proba=lambda states: np.tile([0.25, 0.75], (len(states), 1)), action_labels=["x", "y"]
    )
    assert policy.predict([[0.0]]).tolist() == ["y"]
    assert policy.log_prob([[0.0]], ["x"]).tolist() == [math.log(0.25)]
    assert abs((policy.sample(np.zeros(10_000), random_state=0) == "y").mean() - 0.75) < 0.02


def test_function_lacks_what_it_was_not_given() -> None:
    policy = FunctionPolicy(predict=double)
    with pytest.raises(TypeError, match="has no `log_prob`"):
        policy.log_prob([[0.0]], [[0.0]])
    with pytest.raises(TypeError, match="has no `sample`"):
        FunctionPolicy(log_prob=double).sample([[0.0]])
    with pytest.raises(ValueError, match=r"`predict` must return one entry per state \(2\), got shape \(1,\)"):
        FunctionPolicy(predict=lambda states: states[:1, 0]).predict([[0.0], [1.0]])


def test_function_set_params() -> None:
    policy = FunctionPolicy(predict=double)
    assert policy.set_params(predict=threshold).predict([[1.0]]).tolist() == ["b"]
    with pytest.raises(ValueError, match=r"got \['perdict'\]"):
        policy.set_params(perdict=double)


# -------------------------------------------------------------------- ClassifierPolicy


def training_frame(n: int = 60, seed: int = 0) -> tuple[pd.DataFrame, npt.NDArray[np.str_]]:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"age": rng.normal(size=n), "pulse": rng.normal(size=n), "ward": rng.choice(["east", "west"], n)}
    )
    return frame, rng.choice(LABELS, n)


def test_classifier_of_a_subset_of_labels_is_aligned() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2))
    classifier = LogisticRegression().fit(X, rng.choice(["c", "a"], 40))
    log = make_log(X[:5], ["a", "b", "c", "a", "b"], action_labels=LABELS)
    got = probabilities(ClassifierPolicy(classifier), log.rows(), np.array(LABELS))
    for row, x in zip(got, X[:5], strict=True):
        p_c = 1.0 / (1.0 + math.exp(-float(classifier.coef_[0] @ x + classifier.intercept_[0])))
        assert row == pytest.approx([1.0 - p_c, 0.0, p_c])
    assert log_prob_logged(ClassifierPolicy(classifier), log)[1] == -math.inf


def test_classifier_with_a_label_unknown_to_the_log_is_refused() -> None:
    classifier = LogisticRegression().fit([[0.0], [1.0]], ["a", "z"])
    log = make_log([[0.0], [1.0]], ["a", "b"])
    with pytest.raises(ValueError, match=r"takes actions \['z'\] that the log does not know"):
        log_prob_logged(ClassifierPolicy(classifier), log)


def test_classifier_gets_a_frame_with_the_names_of_the_log() -> None:
    frame, y = training_frame()
    numeric = frame[["age", "pulse"]]
    classifier = make_pipeline(ColumnTransformer([("scale", StandardScaler(), ["pulse"])]), LogisticRegression())
    classifier.fit(numeric, y)
    log = make_log(numeric.to_numpy(), y, feature_names=["age", "pulse"])
    policy = ClassifierPolicy(classifier)
    expected = classifier.predict_proba(numeric)
    assert probabilities(policy, log.rows(), np.array(LABELS)) == pytest.approx(expected)
    assert policy.predict_proba(numeric.to_numpy()) == pytest.approx(expected)
    assert policy.predict_proba(numeric) == pytest.approx(expected)


@pytest.mark.parametrize("names", [["pulse", "age"], ["age", "bp"]])
def test_classifier_refuses_other_feature_names(names: list[str]) -> None:
    frame, y = training_frame()
    classifier = LogisticRegression().fit(frame[["age", "pulse"]], y)
    log = make_log(frame[["age", "pulse"]].to_numpy(), y, feature_names=names)
    with pytest.raises(ValueError, match="feature names must match those at fit"):
        log_prob_logged(ClassifierPolicy(classifier), log)
    with pytest.raises(ValueError, match="feature names must match"):
        ClassifierPolicy(classifier).predict(frame[["pulse", "age"]])


def test_classifier_refuses_another_number_of_columns() -> None:
    frame, y = training_frame()
    classifier = LogisticRegression().fit(frame[["age", "pulse"]], y)
    with pytest.raises(ValueError, match=r"a column for each of \['age', 'pulse'\], got shape \(3, 1\)"):
        ClassifierPolicy(classifier).predict(np.zeros((3, 1)))


def mixed_pipeline(frame: pd.DataFrame, y: Any) -> Any:
    encode = ColumnTransformer([("ward", OneHotEncoder(), ["ward"])], remainder="passthrough")
    return make_pipeline(encode, LogisticRegression()).fit(frame[["ward", "pulse"]], y)


def test_classifier_reads_named_state_and_other_columns() -> None:
    frame, y = training_frame()
    classifier = mixed_pipeline(frame, y)
    log = make_log(
        frame[["age", "pulse"]].to_numpy(),
        y,
        feature_names=["age", "pulse"],
        extras=frame[["ward"]].set_index(frame.index + 7),
    )
    policy = ClassifierPolicy(classifier, columns=["ward", "pulse"])
    expected = np.array([classifier.predict_proba(frame.loc[[i], ["ward", "pulse"]])[0] for i in range(len(frame))])
    assert probabilities(policy, log.rows(), np.array(LABELS)) == pytest.approx(expected)
    assert "sample" not in policy.capabilities
    assert policy.predict_proba(frame) == pytest.approx(expected)
    with pytest.raises(ValueError, match="column 'ward' must be a state or another column"):
        policy.predict(frame[["age", "pulse"]].to_numpy())


def test_classifier_reads_named_columns_of_bare_states() -> None:
    frame, y = training_frame()
    classifier = LogisticRegression().fit(frame[["pulse"]].to_numpy(), y)
    policy = ClassifierPolicy(classifier, columns=["pulse"], feature_names=["age", "pulse"])
    assert "sample" in policy.capabilities
    expected = classifier.predict_proba(frame[["pulse"]].to_numpy())
    assert policy.predict_proba(frame[["age", "pulse"]].to_numpy()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (["pulse", "ward"], ValueError, "feature names must match those at fit"),
        (["ward", "ward"], ValueError, "must be distinct"),
        ("ward", TypeError, "must be a list of names"),
        (
            ["wrad", "pulse"],
            ValueError,
            r"'wrad' must be a state .* states \['age', 'pulse'\] and other columns \['ward'\]",
        ),
    ],
)
def test_classifier_names_wrong_columns(columns: Any, error: type[Exception], message: str) -> None:
    frame, y = training_frame()
    log = make_log(frame[["age", "pulse"]].to_numpy(), y, feature_names=["age", "pulse"], extras=frame[["ward"]])
    with pytest.raises(error, match=message):
        log_prob_logged(ClassifierPolicy(mixed_pipeline(frame, y), columns), log)


def test_classifier_must_be_fitted_and_have_probabilities() -> None:
    log = make_log([[0.0], [1.0]], ["a", "b"])
    for unfitted in (LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())):
        with pytest.raises(NotFittedError, match="ClassifierPolicy: the model must be fitted"):
            log_prob_logged(ClassifierPolicy(unfitted), log)
    with pytest.raises(TypeError, match=r"got LinearSVC without; wrap it in CalibratedClassifierCV"):
        log_prob_logged(ClassifierPolicy(LinearSVC().fit([[0.0], [1.0]], ["a", "b"])), log)
    with pytest.raises(NotFittedError, match="one-dimensional `classes_`"):
        log_prob_logged(ClassifierPolicy(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])), log)


def test_classifier_policy_at_final_states_needs_the_columns_there() -> None:
    frame, y = training_frame(6)
    y = np.array(["a", "b", "c", "a", "b", "c"])
    options: dict[str, Any] = {"ends": "truncated", "lengths": [3, 3], "final_states": np.zeros((2, 2))}
    states, wards = frame[["age", "pulse"]].to_numpy(), frame[["ward"]]
    policy = ClassifierPolicy(mixed_pipeline(frame, y), columns=["ward", "pulse"])

    def q(states: Any, _: Any) -> Any:
        return np.tile([1.0, 2.0, 4.0], (len(states), 1))

    lacking = make_log(states, y, feature_names=["age", "pulse"], extras=wards, **options)
    with pytest.raises(ValueError, match=r"no other columns; .*final_extras="):
        expectation(policy, lacking, q, at="next")
    finals = pd.DataFrame({"ward": ["west", "east"]})
    complete = make_log(states, y, feature_names=["age", "pulse"], extras=wards, final_extras=finals, **options)
    got = expectation(policy, complete, q, at="next")
    w, p = wards["ward"].tolist(), states[:, 1].tolist()
    nexts = [(w[1], p[1]), (w[2], p[2]), ("west", 0.0), (w[4], p[4]), (w[5], p[5]), ("east", 0.0)]
    for value, (ward, pulse) in zip(got, nexts, strict=True):
        probs = policy.classifier.predict_proba(pd.DataFrame({"ward": [ward], "pulse": [pulse]}))[0]
        assert value == pytest.approx(float(probs @ [1.0, 2.0, 4.0]))


# -------------------------------------------------------------------- GaussianPolicy

STATES = np.array([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])
COEFFICIENTS = np.array([[0.5, -1.0], [0.25, 2.0]])


def normal_log_density(x: float, mean: float, std: float) -> float:
    return math.log(math.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2.0 * math.pi)))


def regressor() -> LinearRegression:
    model = LinearRegression()
    X = np.random.default_rng(0).normal(size=(20, 2))
    return model.fit(X, X @ COEFFICIENTS + [1.0, 0.0])


@pytest.mark.parametrize(
    ("mean", "intercept"),
    [
        (COEFFICIENTS, [1.0, 0.0]),
        (lambda states: states @ COEFFICIENTS + np.array([1.0, 0.0]), None),
        (regressor(), None),
        (FunctionPolicy(predict=lambda states: states @ COEFFICIENTS + np.array([1.0, 0.0])), None),
    ],
)
@pytest.mark.parametrize(
    ("std", "row_std"),
    [
        (0.5, lambda _: [0.5, 0.5]),
        ([0.5, 2.0], lambda _: [0.5, 2.0]),
        (lambda states: 1.0 + np.abs(states), lambda s: [1.0 + abs(s[0]), 1.0 + abs(s[1])]),
        (lambda states: 1.0 + states[:, 0], lambda s: [1.0 + s[0], 1.0 + s[0]]),
        (lambda states: 1.0 + states[:, :1], lambda s: [1.0 + s[0], 1.0 + s[0]]),
    ],
)
def test_gaussian_log_prob(mean: Any, intercept: Any, std: Any, row_std: Any) -> None:
    actions = np.array([[0.0, 1.0], [2.0, 5.0], [-1.0, 0.5]])
    policy = GaussianPolicy(mean, std, intercept=intercept)
    got = log_prob_logged(policy, make_log(STATES, actions))
    for value, s, a in zip(got, STATES.tolist(), actions.tolist(), strict=True):
        means = [1.0 + 0.5 * s[0] + 0.25 * s[1], -1.0 * s[0] + 2.0 * s[1]]
        expected = sum(normal_log_density(x, m, d) for x, m, d in zip(a, means, row_std(s), strict=True))
        assert value == pytest.approx(expected)


def test_gaussian_one_dimension() -> None:
    policy = GaussianPolicy([2.0, 0.0], 0.3)
    assert policy.predict(STATES).tolist() == [[2.0], [1.0], [0.0]]
    got = policy.log_prob(STATES, [2.0, 1.3, 0.0])
    assert got == pytest.approx([normal_log_density(0.0, 0.0, 0.3), normal_log_density(0.3, 0.0, 0.3), got[0]])


def test_gaussian_std_of_shape_k_is_not_one_of_shape_n() -> None:
    states, actions = np.ones((2, 1)), np.array([[1.0, 2.0], [3.0, 4.0]])
    got = GaussianPolicy(lambda s: np.zeros((len(s), 2)), [1.0, 2.0]).log_prob(states, actions)
    expected = [normal_log_density(a, 0.0, 1.0) + normal_log_density(b, 0.0, 2.0) for a, b in actions.tolist()]
    assert got == pytest.approx(expected)


def test_gaussian_std_function_of_shape_n_is_not_one_of_shape_k() -> None:
    states, actions = np.array([[1.0], [2.0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    got = GaussianPolicy(lambda s: np.zeros((len(s), 2)), lambda s: s[:, 0]).log_prob(states, actions)
    expected = [
        sum(normal_log_density(x, 0.0, std) for x in a) for a, std in zip(actions.tolist(), [1.0, 2.0], strict=True)
    ]
    assert got == pytest.approx(expected)


def test_gaussian_std_function_that_returns_one_per_dimension_is_refused_for_any_number_of_rows() -> None:
    policy = GaussianPolicy(lambda s: np.zeros((len(s), 2)), lambda _: np.array([1.0, 10.0]))
    for n in (2, 3):
        with pytest.raises(ValueError, match=r"`std`.*\(2,\)"):
            policy.log_prob(np.zeros((n, 2)), np.zeros((n, 2)))
    by_column = GaussianPolicy(
        lambda s: np.zeros((len(s), 2)), lambda frame: frame["x"] + 1.0, columns=["x"], feature_names=["x"]
    )
    assert by_column.log_prob([[0.0], [0.0]], np.zeros((2, 2))) == pytest.approx(
        [2 * normal_log_density(0.0, 0.0, 1.0)] * 2
    )


def test_gaussian_samples_have_mean_and_std() -> None:
    policy = GaussianPolicy(COEFFICIENTS, [0.5, 2.0])
    n = 40_000
    draws = policy.sample(np.tile(STATES[:1], (n, 1)), random_state=1)
    assert (draws == policy.sample(np.tile(STATES[:1], (n, 1)), random_state=1)).all()
    for j, (mean, std) in enumerate([(0.0, 0.5), (-5.0, 2.0)]):
        assert abs(draws[:, j].mean() - mean) < 4 * std / math.sqrt(n)
        assert abs(draws[:, j].std() - std) < 4 * std / math.sqrt(2 * n)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7])
def test_gaussian_quadrature_is_exact_for_cubics(dim: int) -> None:
    rng = np.random.default_rng(dim)
    mean, std = rng.normal(size=dim), rng.uniform(0.5, 2.0, dim)
    hessian, cubic = rng.normal(size=(dim, dim)), rng.normal(size=dim)

    def q(states: Any, a: Any) -> Any:
        return np.einsum("ni,ij,nj->n", a, hessian, a) + a**3 @ cubic + states[:, 0]

    log = make_log([[2.0], [3.0]], np.zeros((2, dim)))
    policy = GaussianPolicy(lambda s: np.tile(mean, (len(s), 1)), std)
    # E a'Ha = m'Hm + sum H_jj s_j^2 and E a^3 = m^3 + 3 m s^2
    quadratic = sum(mean[i] * hessian[i, j] * mean[j] for i in range(dim) for j in range(dim))
    noise = sum(hessian[j, j] * std[j] ** 2 for j in range(dim))
    third = sum(cubic[j] * (mean[j] ** 3 + 3 * mean[j] * std[j] ** 2) for j in range(dim))
    assert expectation(policy, log, q) == pytest.approx(
        [2.0 + quadratic + noise + third, 3.0 + quadratic + noise + third]
    )


@pytest.mark.parametrize(("dim", "n_nodes"), [(1, 5), (2, 25), (3, 125), (4, 8), (10, 20)])
def test_gaussian_quadrature_nodes(dim: int, n_nodes: int) -> None:
    policy = GaussianPolicy(lambda s: np.zeros((len(s), dim)), 1.0)
    nodes, weights = policy.quadrature_rows(as_rows(np.zeros((3, 1)), "test"))
    assert nodes.shape == (n_nodes, 3, dim)
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(1.0)


def test_gaussian_hermite_nodes_are_exact_to_degree_nine() -> None:
    nodes, weights = GaussianPolicy([0.0], 1.0).quadrature_rows(as_rows(np.zeros((1, 1)), "test"))
    moments = [float(weights @ nodes[:, 0, 0] ** p) for p in range(10)]
    assert moments == pytest.approx([1.0, 0.0, 1.0, 0.0, 3.0, 0.0, 15.0, 0.0, 105.0, 0.0], abs=1e-11)


def test_gaussian_regressor_on_named_features_and_columns() -> None:
    frame, _ = training_frame()
    dose = frame["age"] * 2.0 + (frame["ward"] == "east")
    named = LinearRegression().fit(frame[["age", "pulse"]], dose)
    log = make_log(
        frame[["age", "pulse"]].to_numpy(), dose.to_numpy(), feature_names=["age", "pulse"], extras=frame[["ward"]]
    )
    means = named.predict(frame[["age", "pulse"]])
    expected = [normal_log_density(a, m, 0.5) for a, m in zip(dose, means, strict=True)]
    assert log_prob_logged(GaussianPolicy(named, 0.5), log) == pytest.approx(expected)
    assert GaussianPolicy(named, 0.5).predict(frame[["age", "pulse"]].to_numpy())[:, 0] == pytest.approx(means)

    reader = GaussianPolicy(lambda f: f["age"] * 2.0 + (f["ward"] == "east"), 0.5, columns=["ward", "age"])
    assert log_prob_logged(reader, log) == pytest.approx([normal_log_density(0.0, 0.0, 0.5)] * len(frame))
    assert reader.quadrature_rows(log.rows())[0].mean(axis=0)[:, 0] == pytest.approx(dose.to_numpy())
    assert "sample" not in reader.capabilities
    with pytest.raises(ValueError, match="feature names must match"):
        log_prob_logged(GaussianPolicy(named, 0.5), log.replace(feature_names=("pulse", "age")))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (GaussianPolicy(COEFFICIENTS, 0.0), r"`std` must be positive and finite, got 0.0; .*FunctionPolicy\(predict"),
        (GaussianPolicy(COEFFICIENTS, [1.0, -1.0]), "positive and finite, got -1.0"),
        (GaussianPolicy(COEFFICIENTS, lambda s: s), "positive and finite, got -2.0 at rows 0, 2"),
        (GaussianPolicy(COEFFICIENTS, [1.0, 1.0, 1.0]), r"`std` must be a number, of shape \(2,\)"),
        (GaussianPolicy(COEFFICIENTS.T[:, :1], 1.0), "have the dimension of the mean, got 2 and 1"),
        (GaussianPolicy([[1.0, 2.0]], 1.0), r"d = 2 state columns, got \(1, 2\)"),
        (GaussianPolicy(COEFFICIENTS, 1.0, intercept=[1.0, 2.0, 3.0]), "`intercept` must be a number"),
        (GaussianPolicy(lambda s: s, 1.0, intercept=1.0), "`intercept` must be absent"),
        (GaussianPolicy(lambda s: s[:1], 1.0), r"`mean` must have shape \(n, k\) with n = 3"),
        (GaussianPolicy(LinearRegression(), 1.0), "the model must be fitted"),
    ],
)
def test_gaussian_names_what_is_wrong(policy: GaussianPolicy, message: str) -> None:
    states = np.array([[1.0, -2.0], [1.0, 3.0], [-1.0, 1.0]])
    with pytest.raises(ValueError, match=message):
        log_prob_logged(policy, make_log(states, np.zeros((3, 2))))


# -------------------------------------------------------------------- EpsilonGreedy


def epsilon_greedy_by_hand(probs: list[float], allowed: list[bool], epsilon: float) -> list[float]:
    best = max((j for j in range(len(probs)) if allowed[j]), key=lambda j: (probs[j], -j))
    share = epsilon / sum(allowed)
    return [(share + (1 - epsilon if j == best else 0.0)) if allowed[j] else 0.0 for j in range(len(probs))]


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
def test_epsilon_greedy_with_and_without_masks(epsilon: float) -> None:
    mask = [[False, True, True], [True, True, True], [True, True, False]]
    codes, actions = [0, 1, 0], ["c", "b", "a"]
    policy = EpsilonGreedy(TabularPolicy(TABLE), epsilon)
    free = probabilities(policy, tabular_log(codes, actions).rows(), np.array(LABELS))
    masked = probabilities(policy, tabular_log(codes, actions, action_mask=mask).rows(), np.array(LABELS))
    for i, code in enumerate(codes):
        assert free[i] == pytest.approx(epsilon_greedy_by_hand(TABLE[code], [True] * 3, epsilon))
        assert masked[i] == pytest.approx(epsilon_greedy_by_hand(TABLE[code], mask[i], epsilon))
    assert policy.predict_proba(one_hot(codes, 2)) == pytest.approx(free)


def test_epsilon_greedy_mask_follows_unsorted_labels() -> None:
    inner = TabularPolicy([[0.1, 0.7, 0.2], [0.5, 0.0, 0.5]], action_labels=["c", "a", "b"])
    mask = [[False, True, True], [True, False, True]]
    log = tabular_log([0, 1], ["b", "c"], action_mask=mask)
    got = probabilities(EpsilonGreedy(inner, 0.3), log.rows(), np.array(LABELS))
    for i in range(2):
        assert got[i] == pytest.approx(epsilon_greedy_by_hand(TABLE[i], mask[i], 0.3))


def test_epsilon_greedy_explores_labels_the_policy_does_not_know() -> None:
    inner = TabularPolicy([[0.4, 0.6]], action_labels=["c", "a"])
    mask = [[True, True, False]]
    log = make_log([[1.0]], ["b"], action_labels=LABELS, action_mask=mask)
    with pytest.raises(ValueError, match=r"pass action_labels= with all labels of the log"):
        log_prob_logged(EpsilonGreedy(inner, 0.2), log)
    policy = EpsilonGreedy(inner, 0.2, action_labels=["c", "b", "a"])
    assert probabilities(policy, log.rows(), np.array(LABELS)).tolist() == [
        [pytest.approx(0.9), pytest.approx(0.1), 0.0]
    ]
    with pytest.raises(ValueError, match=r"among the labels \['a', 'b'\], got 'c'"):
        EpsilonGreedy(inner, 0.2, action_labels=["a", "b"]).predict([1.0])


def test_epsilon_greedy_needs_mass_on_available_actions() -> None:
    log = tabular_log([1], ["a"], action_mask=[[True, False, False]])
    with pytest.raises(ValueError, match="all its mass on masked actions at rows 0"):
        log_prob_logged(EpsilonGreedy(TabularPolicy(TABLE), 0.1), log)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan, "0.1", None])
def test_epsilon_must_be_a_share(epsilon: Any) -> None:
    with pytest.raises(ValueError, match=r"`epsilon` must be in \[0, 1\]"):
        EpsilonGreedy(TabularPolicy(TABLE), epsilon).predict([0])


def test_epsilon_greedy_needs_a_discrete_policy() -> None:
    with pytest.raises(TypeError, match="must have action probabilities, got GaussianPolicy"):
        EpsilonGreedy(GaussianPolicy([1.0], 1.0), 0.1).predict([0.0])
    with pytest.raises(ValueError, match="sum to 1"):
        EpsilonGreedy(FunctionPolicy(predict_proba=lambda s: np.full((len(s), 2), np.nan)), 0.1).predict([0.0])


def test_epsilon_greedy_samples_where_its_policy_does() -> None:
    assert "sample" in EpsilonGreedy(TabularPolicy(TABLE), 0.1).capabilities
    assert EpsilonGreedy(ColumnPolicy(["p", "q"]), 0.1).capabilities == {"logged_prob", "all_probs"}
    draws = EpsilonGreedy(TabularPolicy(TABLE, action_labels=LABELS), 0.3).sample(np.zeros(20_000), random_state=0)
    assert abs((draws == "a").mean() - 0.8) < 0.015


class Learned(TabularPolicy):
    training_episode_keys_: npt.NDArray[np.uint64]


def test_wrappers_tell_what_their_policy_was_trained_on() -> None:
    log = tabular_log([0, 1], ["a", "b"], lengths=[1, 1])
    learned = Learned(TABLE)
    assert overlap(EpsilonGreedy(learned, 0.1), log) == 0
    learned.training_episode_keys_ = log.episode_keys[:1]
    assert overlap(EpsilonGreedy(learned, 0.1), log) == 1
    assert overlap(GaussianPolicy(learned, 0.1), log) == 1
    assert overlap(EpsilonGreedy(EpsilonGreedy(learned, 0.1), 0.1), log) == 1


# -------------------------------------------------------------------- ColumnPolicy


def column_log(**options: Any) -> LoggedDataset:
    extras = pd.DataFrame(
        {"pa": [0.25, 0.0, 0.5], "pb": [0.75, 1.0, 0.5], "p": [0.25, 1.0, 0.5], "note": ["x", "y", "z"]}
    )
    return make_log([[0.0], [1.0], [2.0]], ["a", "b", "a"], **{"extras": extras, **options})


def test_column_of_logged_probabilities() -> None:
    log = column_log()
    policy = ColumnPolicy("p")
    assert policy.capabilities == {"logged_prob"}
    assert log_prob_logged(policy, log).tolist() == [math.log(0.25), 0.0, math.log(0.5)]
    for verb in ("predict", "predict_proba", "sample"):
        with pytest.raises(TypeError, match=f"has no `{verb}`"):
            getattr(policy, verb)([[0.0]])
    with pytest.raises(TypeError, match="has no `predict_proba`"):
        probabilities(policy, log.rows(), np.array(["a", "b"]))


@pytest.mark.parametrize("columns", [["pa", "pb"], {"a": "pa", "b": "pb"}, {"b": "pb", "a": "pa"}])
@pytest.mark.parametrize("logarithm", [False, True])
def test_columns_of_all_probabilities(columns: Any, logarithm: bool) -> None:
    log = column_log()
    assert log.extras is not None
    if logarithm:
        with np.errstate(divide="ignore"):
            log = log.replace(extras=np.log(log.extras[["pa", "pb"]]))
    policy = ColumnPolicy(columns, log=logarithm)
    assert policy.capabilities == {"logged_prob", "all_probs"}
    expected = np.array([[0.25, 0.75], [0.0, 1.0], [0.5, 0.5]])
    assert probabilities(policy, log.rows(), np.array(["a", "b"])) == pytest.approx(expected)
    got = expectation(policy, log, lambda s, _: np.tile([1.0, 3.0], (len(s), 1)))
    assert got == pytest.approx([p[0] + 3.0 * p[1] for p in expected.tolist()])


def test_column_of_logarithms_and_densities() -> None:
    log = make_log([[0.0], [1.0]], [[0.1], [0.2]], extras=pd.DataFrame({"l": [2.5, -np.inf], "d": [3.0, 0.0]}))
    assert log_prob_logged(ColumnPolicy("l", log=True), log).tolist() == [2.5, -np.inf]
    assert log_prob_logged(ColumnPolicy("d"), log).tolist() == pytest.approx([math.log(3.0), -np.inf])


def test_columns_at_truncated_ends() -> None:
    options: dict[str, Any] = {"lengths": [2, 1], "ends": "truncated", "final_states": [[5.0], [6.0]]}
    policy = ColumnPolicy(["pa", "pb"])

    def q(states: Any, _: Any) -> Any:
        return np.column_stack([states[:, 0], -states[:, 0]])

    with pytest.raises(
        ValueError, match=r"column 'pa' must be .*no other columns.*final_row=\"state_only\" or final_extras="
    ):
        expectation(policy, column_log(**options), q, at="next")
    finals = pd.DataFrame({"pa": [0.1, 0.8], "pb": [0.9, 0.2]})
    got = expectation(policy, column_log(final_extras=finals, **options), q, at="next")
    assert got == pytest.approx([1.0 * (0.0 - 1.0), 5.0 * (0.1 - 0.9), 6.0 * (0.8 - 0.2)])
    missing = pd.DataFrame({"pa": [0.1, np.nan], "pb": [0.9, 0.2]})
    with pytest.raises(ValueError, match="column 'pa' must not be missing, got 1 missing values in 2 rows"):
        expectation(policy, column_log(final_extras=missing, **options), q, at="next")
    terminal = expectation(policy, column_log(lengths=[2, 1]), q, at="next")
    assert terminal.tolist() == [-1.0, 0.0, 0.0]


def test_columns_of_a_frame_with_a_last_row_of_state_only() -> None:
    frame = pd.DataFrame(
        {
            "episode": [1, 1, 1, 2, 2],
            "time": [0, 1, 2, 0, 1],
            "x": [0.0, 1.0, 5.0, 2.0, 6.0],
            "action": ["a", "b", None, "a", None],
            "reward": [0.0, 0.0, np.nan, 0.0, np.nan],
            "truncated": [False, True, False, True, False],
            "pa": [0.25, 0.0, 0.1, 0.5, 0.8],
            "pb": [0.75, 1.0, 0.9, 0.5, 0.2],
        }
    )
    log = LoggedDataset.from_pandas(
        frame,
        episode="episode",
        time="time",
        states=["x"],
        action="action",
        reward="reward",
        truncated="truncated",
        final_row="state_only",
    )
    policy = ColumnPolicy({"b": "pb", "a": "pa"})
    got = expectation(policy, log, lambda s, _: np.column_stack([s[:, 0], -s[:, 0]]), at="next")
    assert got == pytest.approx([1.0 * (0.0 - 1.0), 5.0 * (0.1 - 0.9), 6.0 * (0.8 - 0.2)])


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (ColumnPolicy("note"), TypeError, "column 'note' must be numeric"),
        (ColumnPolicy("q"), ValueError, r"'q' must be a state .* other columns \['pa', 'pb', 'p', 'note'\]"),
        (ColumnPolicy("neg"), ValueError, r"must hold probabilities \(densities\), got -1.0 at rows 1 .*log=True"),
        (ColumnPolicy("big"), ValueError, "log probability"),
        (ColumnPolicy("inf", log=True), ValueError, "must hold log probabilities, got inf at rows 0"),
        (ColumnPolicy(["pa", "p"]), ValueError, "sum to 1"),
        (ColumnPolicy(["pa", "pa"]), ValueError, "distinct"),
        (ColumnPolicy({"a": "pa", "z": "pb"}), ValueError, "the log does not know"),
    ],
)
def test_column_policy_names_what_is_wrong(policy: ColumnPolicy, error: type[Exception], message: str) -> None:
    log = column_log()
    assert log.extras is not None
    bad = log.extras.assign(neg=[0.0, -1.0, 0.5], big=[2.0, 0.5, 0.5], inf=[np.inf, 0.0, -1.0])
    log = log.replace(extras=bad if isinstance(policy.columns, str) and policy.columns in bad else log.extras)
    with pytest.raises(error, match=message):
        log_prob_logged(policy, log)


# -------------------------------------------------------------------- what all adapters share

ADAPTERS: list[tuple[Policy, Any]] = [
    (TabularPolicy(TABLE, action_labels=LABELS), [0, 1]),
    (FunctionPolicy(predict=threshold, action_labels=["a", "b"]), [[0.0], [1.0]]),
    (ClassifierPolicy(LogisticRegression().fit([[0.0], [1.0]], ["a", "b"])), [[0.0], [1.0]]),
    (GaussianPolicy([0.5], 1.0, intercept=1.0), [[0.0], [1.0]]),
    (EpsilonGreedy(TabularPolicy(TABLE, action_labels=LABELS), 0.25), [0, 1]),
    (ColumnPolicy(["p", "q"]), None),
]


@pytest.mark.parametrize(("policy", "states"), ADAPTERS, ids=lambda value: type(value).__name__)
def test_clone_pickle_params_and_repr(policy: Policy, states: Any) -> None:
    for copied in (clone(policy), pickle.loads(pickle.dumps(policy))):
        assert copied is not policy
        assert repr(copied) == repr(policy)
        assert set(copied.get_params(deep=False)) == set(policy.get_params(deep=False))
        if states is not None:
            assert copied.predict(states).tolist() == policy.predict(states).tolist()
    assert repr(policy).startswith(type(policy).__name__ + "(")
    assert type(policy).__name__ in policy._repr_html_()
    parameters = policy.get_params(deep=False)
    rebuilt = type(policy)(**parameters)
    assert rebuilt.get_params(deep=False) == parameters
    assert rebuilt.set_params(**parameters) is rebuilt


def test_nested_parameters() -> None:
    policy = EpsilonGreedy(TabularPolicy(TABLE), 0.1)
    copied = clone(policy).set_params(epsilon=0.5, policy__action_labels=LABELS)
    assert copied.predict([0]).tolist() == ["a"]
    assert policy.policy.action_labels is None
    assert policy.epsilon == 0.1


def test_rows_of_a_frame_keep_other_types_where_columns_are_named() -> None:
    rows = as_rows(pd.DataFrame({"ward": ["a"], "x": [1.0]}), "test", columns=["ward"])
    assert isinstance(rows, Rows)
    assert rows.extras is not None
    with pytest.raises(ValueError, match=r"must have shape \(n, d\), got \(1, 1, 1\)"):
        as_rows([[[1.0]]], "test")


# -------------------------------------------------------------------- the package


def fresh_python(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)


def test_importing_adapters_loads_neither_torch_nor_models() -> None:
    adapters = {name for name in ope.policies.__all__ if name.endswith("Policy")} | {"EpsilonGreedy"}
    names = sorted(adapters - {"TorchPolicy"})
    assert len(names) == 6
    code = f"import sys; from ope.policies import {', '.join(names)}; import ope.behavior"
    code += "; print([m for m in ('torch', 'matplotlib', 'sklearn.linear_model', 'statsmodels') if m in sys.modules])"
    assert fresh_python(code).stdout.strip() == "[]"


def test_the_package_has_one_import_name() -> None:
    result = fresh_python("import policies")
    assert result.returncode != 0
    assert "import this package as ope.policies, not policies" in result.stderr


def test_lazy_names() -> None:
    assert set(ope.policies.__all__) <= set(dir(ope.policies))
    assert ope.policies.TabularPolicy is TabularPolicy
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = ope.policies.Nothing


def test_no_states_no_actions() -> None:
    none = np.empty((0, 1))
    policy = EpsilonGreedy(TabularPolicy([[0.4, 0.6]], state_code=0), 0.1)
    assert policy.predict_proba(none).shape == (0, 2)
    assert policy.predict(none).shape == policy.sample(none, 0).shape == (0,)
    with pytest.raises(ValueError, match="must have shape"):
        TabularPolicy(np.empty((0, 2)), state_code=0).predict_proba(none)
