"""Estimated propensities: hand-made probabilities, counts, and who may see which episode."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, RANSACRegressor, Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from ope.behavior import calibration_table, estimate_behavior, expected_calibration_error
from ope.dataset import LoggedDataset
from ope.inference.weights import fold_of
from ope.model_kind import is_parametric, n_coefficients

TRUE_SLOPE, TRUE_INTERCEPT = 1.2, -0.4


def make_log(states: Any, actions: Any, lengths: Any = None, **options: Any) -> LoggedDataset:
    n = len(actions)
    lengths = [1] * n if lengths is None else lengths
    return LoggedDataset.from_arrays(states, actions, np.zeros(n), lengths=lengths, ends="terminal", **options)


def random_lengths(n_episodes: int, rng: np.random.Generator) -> list[int]:
    return [int(length) for length in rng.integers(1, 5, n_episodes)]


def logistic_log(n_episodes: int, seed: int = 0) -> tuple[LoggedDataset, npt.NDArray[np.float64]]:
    """Two actions, b(1|x) = sigmoid(1.2 x - 0.4); returns the log and the true logged probabilities."""
    rng = np.random.default_rng(seed)
    lengths = random_lengths(n_episodes, rng)
    x = rng.normal(size=sum(lengths))
    p = 1.0 / (1.0 + np.exp(-(TRUE_SLOPE * x + TRUE_INTERCEPT)))
    actions = (rng.random(len(x)) < p).astype(int)
    return make_log(x[:, None], actions, lengths), np.where(actions == 1, p, 1.0 - p)


def counting_log(seed: int = 0, n_episodes: int = 60) -> LoggedDataset:
    rng = np.random.default_rng(seed)
    lengths = random_lengths(n_episodes, rng)
    cells = rng.integers(0, 3, sum(lengths))
    actions = np.array(["a", "b", "c"])[(rng.random(len(cells)) * 3).astype(int)]
    return make_log(cells[:, None].astype(float), actions, lengths)


def log_propensities(log: LoggedDataset) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    assert log.behavior_log_prob is not None
    assert log.cross_fitted_log_prob is not None
    return log.behavior_log_prob, log.cross_fitted_log_prob


def row_episodes(log: LoggedDataset) -> list[int]:
    return [i for i, length in enumerate(log.lengths) for _ in range(length)]


class CellCounts(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Relative frequency of every class in each value of the first column."""

    def fit(self, X: pd.DataFrame, y: npt.NDArray[Any]) -> "CellCounts":
        self.classes_ = np.unique(y)
        self.table_ = pd.crosstab(X.iloc[:, 0].to_numpy(), y, normalize="index")
        return self

    def predict_proba(self, X: pd.DataFrame) -> npt.NDArray[np.float64]:
        return np.asarray(self.table_.loc[X.iloc[:, 0], self.classes_])


# -------------------------------------------------------------------- discrete actions


def test_default_model_finds_the_logistic_probabilities() -> None:
    log, truth = logistic_log(6000)
    estimated = estimate_behavior(log)
    for log_prob in log_propensities(estimated):
        assert np.abs(np.exp(log_prob) - truth).max() < 0.05
    source = estimated.behavior_source
    assert source is not None
    assert source.calibration_error is not None
    assert source.calibration_error < 0.02
    assert (source.kind, source.known, source.parametric, source.n_folds) == ("estimated", False, True, 5)
    assert "LogisticRegression" in source.model
    assert "\n" not in source.model


def test_in_sample_and_cross_fitted_counts() -> None:
    log = counting_log()
    in_sample, crossed = log_propensities(estimate_behavior(log, CellCounts(), n_folds=3, random_state=4))
    folds = fold_of(log.episode_keys, 3, 4)
    episodes, cells, actions = row_episodes(log), log.states[:, 0].tolist(), log.actions.tolist()
    rows = range(len(cells))
    for i in rows:
        same = [j for j in rows if cells[j] == cells[i]]
        apart = [j for j in same if folds[episodes[j]] != folds[episodes[i]]]
        for got, pool in ((in_sample[i], same), (crossed[i], apart)):
            assert got == pytest.approx(math.log(sum(actions[j] == actions[i] for j in pool) / len(pool)))


def test_the_log_keeps_everything_else() -> None:
    log = counting_log()
    estimated = estimate_behavior(log)
    assert log.behavior_log_prob is None
    assert estimated.data_id == log.data_id
    for name in ("states", "actions", "rewards", "offsets", "ends", "episode_ids"):
        assert getattr(estimated, name).tolist() == getattr(log, name).tolist()
    assert not estimated.known_propensities
    assert "cross-fitted in 5 folds" in str(estimated.behavior_source)


FITS: list[tuple[set[int], int]] = []


class Spy(CellCounts):
    """Notes which episodes it was fitted on, and which ones it then predicts."""

    def fit(self, X: pd.DataFrame, y: npt.NDArray[Any]) -> "Spy":
        self.seen_ = {int(episode) for episode in X["episode"]}
        super().fit(X, y)
        return self

    def predict_proba(self, X: pd.DataFrame) -> npt.NDArray[np.float64]:
        FITS.append((self.seen_, len(set(X["episode"]))))
        if len(self.seen_) < 60:
            assert not self.seen_ & set(X["episode"])
        return super().predict_proba(X)


def test_cross_fitting_never_uses_the_own_episode() -> None:
    log = counting_log()
    FITS.clear()
    extras = pd.DataFrame({"cell": log.states[:, 0], "episode": row_episodes(log)})
    estimate_behavior(log.replace(extras=extras), Spy(), columns=["cell", "episode"], n_folds=4)
    whole, *parts = FITS
    assert whole == (set(range(60)), 60)
    assert len(parts) == 4
    assert sum(n_predicted for _, n_predicted in parts) == 60
    assert all(len(seen) + n_predicted == 60 for seen, n_predicted in parts)


def test_masks_zero_and_renormalise() -> None:
    log = counting_log()
    free = np.ones((log.n_transitions, 3), dtype=bool)
    rng = np.random.default_rng(1)
    mask = rng.random(free.shape) < 0.6
    mask[np.arange(len(mask)), log.actions] = True
    masked = log.replace(action_mask=mask)
    in_sample, _ = log_propensities(estimate_behavior(masked, CellCounts()))
    cells, actions = log.states[:, 0].tolist(), log.actions.tolist()
    for i in range(len(cells)):
        counts = [sum(cells[j] == cells[i] and actions[j] == a for j in range(len(cells))) for a in range(3)]
        allowed = sum(count for count, ok in zip(counts, mask[i], strict=True) if ok)
        assert in_sample[i] == pytest.approx(math.log(counts[actions[i]] / allowed))
    source = estimate_behavior(masked, CellCounts()).behavior_source
    assert source is not None
    assert source.calibration is not None
    assert source.calibration["count"].sum() == mask.sum()


def test_never_logged_labels_and_a_single_action() -> None:
    log = make_log(np.zeros((8, 1)), ["b"] * 8, action_labels=["a", "b", "c"])
    for log_prob in log_propensities(estimate_behavior(log, n_folds=2)):
        assert log_prob.tolist() == [0.0] * 8
    two = make_log(np.zeros((40, 1)), ["a", "c"] * 20, action_labels=["a", "b", "c"])
    in_sample, _ = log_propensities(estimate_behavior(two))
    assert in_sample == pytest.approx([math.log(0.5)] * 40)


def test_an_action_of_one_fold_is_named() -> None:
    log = make_log(np.zeros((20, 1)), ["rare"] + ["usual"] * 19)
    fold = int(fold_of(log.episode_keys, 5, 0)[0])
    message = rf"in at least two folds .* \['rare'\] in one only \('rare' in 1 rows of fold {fold}\).*n_folds=0"
    with pytest.raises(ValueError, match=message):
        estimate_behavior(log)
    alone = estimate_behavior(log, n_folds=0)
    assert alone.cross_fitted_log_prob is None
    assert alone.behavior_log_prob is not None
    assert np.exp(alone.behavior_log_prob[0]) == pytest.approx(0.05, rel=0.01)
    source = alone.behavior_source
    assert source is not None
    assert (source.n_folds, source.calibration, source.calibration_error) == (0, None, None)


def test_a_model_that_gives_zero_is_named() -> None:
    log = make_log(np.arange(20.0)[:, None], ["a", "b"] * 10)
    with pytest.raises(
        ValueError, match=r"fitted without the row's fold\) must give every .* got 0.0 for action 'a' at"
    ):
        estimate_behavior(log, DecisionTreeClassifier())


def test_columns_may_be_of_any_type() -> None:
    log = counting_log()
    ward = pd.Series(np.array(["x", "y", "z"])[log.states[:, 0].astype(int)])
    model = make_pipeline(ColumnTransformer([("hot", OneHotEncoder(), ["ward"])]), LogisticRegression(C=1e6))
    got = log_propensities(estimate_behavior(log.replace(extras=pd.DataFrame({"ward": ward})), model, columns=["ward"]))
    expected = log_propensities(estimate_behavior(log, CellCounts()))
    assert got[0] == pytest.approx(expected[0], abs=1e-3)
    with pytest.raises(ValueError, match="column 'ward' must be a state"):
        estimate_behavior(log, columns=["ward"])


def test_states_come_with_their_names() -> None:
    log, _ = logistic_log(100)
    named = log.replace(feature_names=("lactate",))
    model = make_pipeline(
        ColumnTransformer([("scale", StandardScaler(), ["lactate"])]), LogisticRegression(max_iter=1000)
    )
    assert log_propensities(estimate_behavior(named, model))[0] == pytest.approx(
        log_propensities(estimate_behavior(log))[0]
    )


def test_the_model_and_its_seed() -> None:
    log = counting_log()
    forest = RandomForestClassifier(5, min_samples_leaf=10)
    first, again, other = (
        log_propensities(estimate_behavior(log, forest, random_state=seed))[0].tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert forest.random_state is None
    assert not hasattr(forest, "classes_")


def test_known_propensities_are_kept_unless_overwritten() -> None:
    log = make_log(np.zeros((10, 1)), ["a", "b"] * 5, behavior_prob=[0.3] * 10)
    with pytest.raises(ValueError, match=r"must not hold known propensities.*overwrite=True"):
        estimate_behavior(log, n_folds=2)
    estimated = estimate_behavior(log, n_folds=0, overwrite=True)
    assert not estimated.known_propensities
    assert estimate_behavior(estimated, n_folds=0).behavior_source == estimated.behavior_source


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_folds": 1}, ValueError, r"from 2 to the number of episodes \(10\), got 1"),
        ({"n_folds": 11}, ValueError, "got 11"),
        ({"n_folds": 2.5}, TypeError, "`n_folds` must be an integer"),
        ({"n_folds": True}, TypeError, "`n_folds` must be an integer"),
        ({"random_state": None}, TypeError, "`random_state` must be an integer"),
        ({"model": LinearSVC()}, TypeError, "must be a classifier with `predict_proba` .* got LinearSVC; wrap it"),
        ({"model": LinearRegression()}, TypeError, "must be a classifier .* got LinearRegression"),
        ({"model": LogisticRegression}, TypeError, "pass an instance"),
        ({"model": "logistic"}, TypeError, "must be a scikit-learn estimator, got 'logistic'"),
    ],
)
def test_requests_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        estimate_behavior(make_log(np.zeros((10, 1)), ["a", "b"] * 5), **options)


# -------------------------------------------------------------------- continuous actions


def dose_log(n_episodes: int = 80, seed: int = 0) -> LoggedDataset:
    rng = np.random.default_rng(seed)
    lengths = random_lengths(n_episodes, rng)
    x = rng.normal(size=(sum(lengths), 2))
    noise = rng.normal(size=(len(x), 2)) * [0.5, 2.0]
    return make_log(x, x @ np.array([[1.0, 0.0], [-2.0, 3.0]]) + [0.5, -1.0] + noise, lengths)


def least_squares_log_density(
    X: npt.NDArray[np.float64], y: npt.NDArray[np.float64], x: npt.NDArray[np.float64], value: float
) -> float:
    """Solve the normal equations; residual variance with n - p degrees of freedom."""
    design = np.column_stack([np.ones(len(X)), X])
    beta = np.linalg.solve(design.T @ design, design.T @ y)
    variance = float(((y - design @ beta) ** 2).sum()) / (len(X) - design.shape[1])
    error = value - float(beta[0] + x @ beta[1:])
    return float(-0.5 * error**2 / variance - 0.5 * math.log(2.0 * math.pi * variance))


def test_linear_gaussian_densities() -> None:
    log = dose_log()
    in_sample, crossed = log_propensities(estimate_behavior(log, n_folds=4))
    folds = fold_of(log.episode_keys, 4, 0)[row_episodes(log)]
    for i in range(0, log.n_transitions, 7):
        apart = folds != folds[i]
        for got, rows in ((in_sample[i], np.ones(len(folds), bool)), (crossed[i], apart)):
            X, A = log.states[rows], log.actions[rows]
            expected = sum(least_squares_log_density(X, A[:, j], log.states[i], log.actions[i, j]) for j in range(2))
            assert got == pytest.approx(expected)


class CellMean(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Mean of the target in each value of the first column: flexible, as far as anyone knows."""

    def fit(self, X: pd.DataFrame, y: npt.NDArray[Any]) -> "CellMean":
        self.means_ = pd.Series(y).groupby(X.iloc[:, 0].to_numpy()).mean()
        return self

    def predict(self, X: pd.DataFrame) -> npt.NDArray[np.float64]:
        return np.asarray(self.means_.loc[X.iloc[:, 0]])


def test_flexible_densities_take_their_noise_from_a_held_out_fold() -> None:
    log = counting_log(n_episodes=80)
    doses = log.states[:, 0] + np.random.default_rng(3).normal(size=log.n_transitions)
    log = make_log(log.states, doses, log.lengths)
    estimated = estimate_behavior(log, CellMean(), n_folds=4)
    source = estimated.behavior_source
    assert source is not None
    assert (source.parametric, source.calibration) == (False, None)
    folds = fold_of(log.episode_keys, 4, 0)[row_episodes(log)].tolist()
    cells: list[float] = log.states[:, 0].tolist()
    values: list[float] = doses.tolist()
    rows = range(len(cells))

    def mean(cell: float, pool: list[int]) -> float:
        inside = [values[j] for j in pool if cells[j] == cell]
        return sum(inside) / len(inside)

    def log_density(i: int, train: list[int]) -> float:
        last = max(folds[j] for j in train)
        held, rest = [j for j in train if folds[j] == last], [j for j in train if folds[j] != last]
        variance = sum(float((values[j] - mean(cells[j], rest)) ** 2) for j in held) / len(held)
        error = values[i] - mean(cells[i], train)
        return -0.5 * error * error / variance - 0.5 * math.log(2 * math.pi * variance)

    in_sample, crossed = log_propensities(estimated)
    for i in range(0, len(cells), 11):
        assert in_sample[i] == pytest.approx(log_density(i, list(rows)))
        assert crossed[i] == pytest.approx(log_density(i, [j for j in rows if folds[j] != folds[i]]))


@pytest.mark.parametrize("n_folds", [0, 2])
def test_flexible_regressors_need_three_folds(n_folds: int) -> None:
    with pytest.raises(ValueError, match="flexible regressor needs n_folds of at least 3"):
        estimate_behavior(dose_log(), KNeighborsRegressor(), n_folds=n_folds)


def test_linear_densities_need_no_folds() -> None:
    estimated = estimate_behavior(dose_log(), n_folds=0)
    assert estimated.cross_fitted_log_prob is None
    assert estimated.behavior_log_prob is not None


@pytest.mark.parametrize(
    ("actions", "states", "message"),
    [
        (
            np.arange(12.0) * 2.0 + 1.0,
            np.arange(12.0),
            "got none of it in dimension 0; the behaviour looks deterministic",
        ),
        (np.column_stack([np.random.default_rng(0).normal(size=12), np.full(12, 3.0)]), np.arange(12.0), "dimension 1"),
        (np.zeros(12), np.arange(12.0), "looks deterministic"),
        (np.arange(12.0) % 5, np.random.default_rng(0).normal(size=(12, 12)), "13 for 12 rows; pass fewer columns="),
    ],
)
def test_actions_without_noise_or_rows(actions: Any, states: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_behavior(make_log(states, actions, continuous=True), n_folds=0)


def test_continuous_actions_need_a_regressor() -> None:
    with pytest.raises(TypeError, match="must be a regressor for continuous actions, got LogisticRegression"):
        estimate_behavior(dose_log(), LogisticRegression())


# -------------------------------------------------------------------- kinds of models


@pytest.mark.parametrize(
    ("model", "parametric"),
    [
        (LogisticRegression(), True),
        (make_pipeline(StandardScaler(), PolynomialFeatures(2), LogisticRegression()), True),
        (GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [1.0]}), True),
        (GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [3]}), False),
        (OneVsRestClassifier(LogisticRegression()), True),
        (OneVsRestClassifier(DecisionTreeClassifier()), False),
        (CalibratedClassifierCV(LogisticRegression()), True),
        (CalibratedClassifierCV(LogisticRegression(), method="isotonic"), False),
        (CalibratedClassifierCV(LinearSVC()), True),
        (CalibratedClassifierCV(RandomForestClassifier()), False),
        (TransformedTargetRegressor(RidgeCV()), True),
        (TransformedTargetRegressor(RandomForestRegressor()), False),
        (RANSACRegressor(KNeighborsRegressor()), False),
        (GaussianNB(), True),
        (LinearDiscriminantAnalysis(), True),
        (DummyClassifier(), True),
        (RandomForestClassifier(), False),
        (make_pipeline(StandardScaler(), DecisionTreeClassifier()), False),
        (CellCounts(), False),
    ],
    ids=repr,
)
def test_parametric_models_are_recognised_through_wrappers(model: Any, parametric: bool) -> None:
    assert is_parametric(model) == parametric


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (LinearRegression(), 3),
        (Ridge(fit_intercept=False), 2),
        (make_pipeline(PolynomialFeatures(2, include_bias=False), Ridge()), 6),
        (GridSearchCV(Ridge(), {"alpha": [1.0, 2.0]}), 3),
        (TransformedTargetRegressor(RidgeCV()), 3),
    ],
    ids=repr,
)
def test_coefficients_are_counted_through_wrappers(model: Any, expected: int) -> None:
    rng = np.random.default_rng(0)
    assert n_coefficients(model.fit(rng.normal(size=(30, 2)), rng.normal(size=30))) == expected


# -------------------------------------------------------------------- calibration


def table_by_loops(probs: Any, codes: Any, n_bins: int, mask: Any = None) -> list[tuple[float, ...]]:
    rows: list[tuple[float, ...]] = []
    edges = [float(edge) for edge in np.linspace(0.0, 1.0, n_bins + 1)]
    for a in range(len(probs[0])):
        for b in range(n_bins):
            inside = [
                (row[a], float(codes[i] == a))
                for i, row in enumerate(probs)
                if (mask is None or mask[i][a]) and (edges[b] < row[a] <= edges[b + 1] or (b == 0 and row[a] == 0.0))
            ]
            if inside:
                mean = sum(p for p, _ in inside) / len(inside)
                frequency = sum(hit for _, hit in inside) / len(inside)
                rows.append((float(a), edges[b], edges[b + 1], float(len(inside)), mean, frequency))
    return rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(0, 2)),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 12),
)
def test_calibration_table(rows: list[tuple[int, int, int, int]], n_bins: int) -> None:
    weights = np.array([row[:3] for row in rows], dtype=float)
    probs = weights / weights.sum(axis=1, keepdims=True)
    codes = [row[3] for row in rows]
    mask = np.array([[True, row[0] % 2 == 0, True] for row in rows])
    for allowed in (None, mask):
        table = calibration_table(probs, codes, n_bins, action_mask=allowed)
        expected = table_by_loops(probs.tolist(), codes, n_bins, None if allowed is None else allowed.tolist())
        assert table.to_numpy(dtype=float) == pytest.approx(np.array(expected))
        n = sum(row[3] for row in expected)
        error = sum(row[3] / n * abs(row[4] - row[5]) for row in expected)
        assert expected_calibration_error(table) == pytest.approx(error)


def test_calibration_of_perfect_and_of_wrong_predictions() -> None:
    codes = [0, 1, 1, 0]
    assert expected_calibration_error(calibration_table(np.eye(2)[codes], codes)) == 0.0
    assert expected_calibration_error(calibration_table(np.eye(2)[codes][:, ::-1], codes)) == 1.0


def test_calibration_errors_of_actions_do_not_cancel() -> None:
    codes = [1] * 8 + [0] * 2
    assert expected_calibration_error(calibration_table(np.full((10, 2), 0.5), codes)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_mask": [[True, True]]}, r"`action_mask` must have the shape of `probs`, \(2, 2\), got \(1, 2\)"),
        ({"action_mask": [True, True]}, r"`action_mask` must have the shape .* got \(2,\)"),
        ({"action_mask": [[True]] * 2}, r"got \(2, 1\); pass data.action_mask"),
        ({"action_labels": ["a"]}, r"`action_labels` must name each of the 2 columns .* got shape \(1,\)"),
        ({"action_labels": ["a", "b", "c"]}, r"got shape \(3,\); pass data.action_labels"),
    ],
)
def test_calibration_wants_a_mask_and_labels_that_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_table([[0.2, 0.8], [0.4, 0.6]], [0, 1], **options)


def test_calibration_names_the_actions() -> None:
    source = estimate_behavior(counting_log()).behavior_source
    assert source is not None
    assert source.calibration is not None
    assert sorted(set(source.calibration["action"])) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("probs", "codes", "n_bins", "message"),
    [
        ([[0.5, 0.6]], [2], 10, "`codes` must be column numbers from 0 to 1"),
        ([[0.5, 1.6]], [0], 10, r"probabilities in \[0, 1\]"),
        ([[0.5, 0.5]], [0, 1], 10, "one entry per row of `probs`"),
        ([[0.5, 0.5]], [0], 0, "`n_bins` must be at least 1"),
        ([[0.5, np.nan]], [0], 10, "must be finite"),
    ],
)
def test_calibration_input_is_checked(probs: Any, codes: Any, n_bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_table(probs, codes, n_bins)
