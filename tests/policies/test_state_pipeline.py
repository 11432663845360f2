"""State preprocessing: fitted on the training episodes, applied wherever the policy acts; and learners under joblib."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from learner_logs import random_log, same_policy
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    PolynomialFeatures,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from ope.dataset import LoggedDataset
from ope.estimators import LSTDQ
from ope.neural.history import Outcome
from ope.neural.serialization import POLICY_KIND, load_policy, read_sealed, write_sealed
from ope.neural.stored_transformers import pack_transformer, unpack_transformer
from ope.policies import BCQ, IQL, LSPI, TD3BC, BehaviorCloning, FunctionPolicy, PreprocessedLearner
from ope.policy import PolicyLearner, expectation, log_prob_logged, overlap, probabilities
from ope.testing import check_policy

SMALL: dict[str, Any] = {"hidden": (8,), "n_updates": 30, "batch_size": 16, "log_every": 10, "learning_rate": 3e-3}


def transformed(log: LoggedDataset, function: Any) -> LoggedDataset:
    """Transform a log by hand, row by row."""
    assert log.final_states is not None
    final = np.array([np.full(function(log.states[:1]).shape[1], np.nan)] * log.n_episodes)
    for i, state in enumerate(log.final_states):
        if not np.isnan(state).any():
            final[i] = function(state[None])[0]
    states = np.concatenate([function(row[None]) for row in log.states])
    return log.replace(states=states, final_states=final, feature_names=tuple(f"c{i}" for i in range(states.shape[1])))


def some_finals(log: LoggedDataset) -> LoggedDataset:
    """The same log, some of its final states unknown, those after a terminal among them."""
    assert log.final_states is not None
    final = log.final_states.copy()
    final[np.flatnonzero(log.ends == 0)[:5]] = np.nan
    return log.replace(final_states=final)


@pytest.mark.parametrize(
    ("learner", "continuous", "masked"),
    [
        (BehaviorCloning(**SMALL), False, True),
        (BCQ(**SMALL), False, True),
        (IQL(**SMALL), True, False),
        (TD3BC(**SMALL), True, False),
    ],
)
def test_it_is_the_learner_on_a_log_transformed_by_hand(learner: Any, continuous: bool, masked: bool) -> None:
    log = some_finals(random_log(continuous=continuous, masked=masked))
    low, high = log.states.min(axis=0), log.states.max(axis=0)
    by_hand = transformed(log, lambda states: (states - low) / (high - low))
    policy = PreprocessedLearner(MinMaxScaler(), learner).fit(log)
    plain = clone(learner).fit(by_hand)
    for name, network in plain.networks_.items():
        found = policy.learner_.networks_[name].parameters.flat
        torch.testing.assert_close(found, network.parameters.flat, rtol=1e-4, atol=1e-5)
    other = random_log(7, continuous=continuous, masked=masked, seed=3)
    moved = transformed(other, lambda states: (states - low) / (high - low))
    assert policy.capabilities == plain.capabilities
    if continuous:
        found_q, expected_q = policy.q_values(other.states, other.actions), plain.q_values(moved.states, moved.actions)
        np.testing.assert_allclose(found_q, expected_q, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(policy.predict(other.states), plain.predict(moved.states), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(policy.sample(other.states, 5), plain.sample(moved.states, 5), rtol=1e-3, atol=1e-3)
        nodes, expected = policy.quadrature_rows(other.rows()), plain.quadrature_rows(moved.rows())
        assert (nodes is None) == (expected is None)
    else:
        expected_probs = plain.predict_proba(moved.states, moved.action_mask)
        np.testing.assert_allclose(policy.predict_proba(other.states, other.action_mask), expected_probs, atol=1e-5)
        labels = np.array(["a", "b", "c"])
        np.testing.assert_allclose(probabilities(policy, other.rows(), labels), expected_probs, atol=1e-5)
        assert (
            policy.predict(other.states, other.action_mask).tolist() == labels[expected_probs.argmax(axis=1)].tolist()
        )
        drawn = policy.sample(other.states, 1, other.action_mask)
        assert drawn.tolist() == plain.sample(moved.states, 1, moved.action_mask).tolist()
        np.testing.assert_array_equal(policy.labels, labels)
    if "density" in policy.capabilities:
        np.testing.assert_allclose(log_prob_logged(policy, other), log_prob_logged(plain, moved), rtol=1e-3, atol=1e-3)
        found_log_prob = policy.log_prob(other.states, other.actions)
        np.testing.assert_allclose(found_log_prob, plain.log_prob(moved.states, moved.actions), rtol=1e-3, atol=1e-3)
    assert policy.score(other) == pytest.approx(plain.score(moved), rel=1e-3)


def test_transformers_are_fitted_on_the_training_episodes_alone() -> None:
    log = random_log(40)
    train, test = log.select(slice(0, 20)), log.select(slice(20, 40))
    policy = PreprocessedLearner(StandardScaler(), BehaviorCloning(**SMALL)).fit(train)
    np.testing.assert_allclose(policy.transformer_.mean_, train.states.mean(axis=0))
    before = pickle.dumps(policy.transformer_)
    policy.predict(1e6 * test.states)
    probabilities(policy, test.rows(), np.array(["a", "b", "c"]))
    assert pickle.dumps(policy.transformer_) == before
    assert overlap(policy, train) == 20
    assert overlap(policy, test) == 0
    assert not hasattr(policy.transformer, "mean_")
    assert not hasattr(policy.learner, "networks_")


def test_columns_may_be_chosen_by_name_and_widths_may_change() -> None:
    log = random_log()
    columns = ColumnTransformer([("x", StandardScaler(), ["x"]), ("yz", PCA(1), ["y", "z"])])
    policy = PreprocessedLearner(make_pipeline(columns, PolynomialFeatures(2)), LSPI(gamma=0.3)).fit(log)
    assert policy.n_features_in_ == 3
    assert policy.feature_names_in_.tolist() == ["x", "y", "z"]
    assert len(policy.feature_names_out_) == policy.learner_.n_features_in_ == 6
    frame = pd.DataFrame(log.states, columns=["x", "y", "z"])
    np.testing.assert_array_equal(policy.predict(frame), policy.predict(log.states))
    assert policy.predict(np.zeros((0, 3))).shape == (0,)
    with pytest.raises(ValueError, match="PreprocessedLearner: feature names must match"):
        policy.predict(frame[["z", "y", "x"]])
    with pytest.raises(ValueError, match="PreprocessedLearner: feature names must match"):
        log_prob_logged(policy, log.replace(feature_names=("z", "y", "x")))
    with pytest.raises(ValueError, match=r"`states` must have a column for each of \['x', 'y', 'z'\]"):
        policy.predict([[1.0, 2.0]])


def test_sparse_output_serves() -> None:
    log = random_log()
    assert log.final_states is not None
    log = log.replace(states=np.sign(log.states), final_states=np.sign(log.final_states))
    policy = PreprocessedLearner(OneHotEncoder(handle_unknown="ignore"), LSPI(gamma=0.3, ridge=0.1)).fit(log)
    assert policy.learner_.n_features_in_ == 6
    assert set(policy.predict(log.states)) <= {"a", "b", "c"}


def test_final_states_that_are_all_unknown_stay_so() -> None:
    log = random_log()
    for unknown in (log.replace(final_states=None), log.replace(final_states=np.full((40, 3), np.nan))):
        with pytest.warns(UserWarning, match="end an episode that goes on in an unknown state"):
            policy = PreprocessedLearner(StandardScaler(), BCQ(**SMALL)).fit(unknown)
        assert policy.learner_.n_excluded_transitions_ == int((log.ends != 0).sum())


def test_estimators_and_expectations_see_the_policy_in_the_unit_of_the_log() -> None:
    log = random_log(60)
    policy = PreprocessedLearner(MinMaxScaler((-50, 50)), BehaviorCloning(**SMALL)).fit(log.select(slice(0, 20)))
    test = log.select(slice(20, 60))
    probs = policy.predict_proba(test.states, test.action_mask)
    value = expectation(policy, test, lambda states, _: np.outer(states[:, 0], [1.0, 2.0, 3.0]))
    np.testing.assert_allclose(value, test.states[:, 0] * (probs @ [1.0, 2.0, 3.0]))
    estimate = LSTDQ(gamma=0.9).fit(test, policy).estimate()
    assert np.isfinite(estimate.value)


# -------------------------------------------------------------------- scikit-learn's habits


def test_nested_parameters_and_clones() -> None:
    policy = PreprocessedLearner(StandardScaler(), BCQ(**SMALL))
    assert policy.get_params()["learner__gamma"] == 0.99
    assert policy.set_params(learner__gamma=0.5, transformer__with_mean=False) is policy
    assert (policy.learner.gamma, policy.transformer.with_mean) == (0.5, False)
    fresh = clone(policy.fit(random_log()))
    assert (fresh.learner.gamma, fresh.transformer.with_mean) == (0.5, False)
    assert not hasattr(fresh, "learner_")
    assert fresh.learner is not policy.learner
    assert all(
        part in repr(policy) for part in ("PreprocessedLearner(", "gamma=0.5", "StandardScaler(with_mean=False)")
    )


def test_checkpoints_and_interrupted_runs(tmp_path: Path) -> None:
    log = random_log()

    def interrupt(event: Any) -> None:
        if event.update == 20:
            raise KeyboardInterrupt

    whole = PreprocessedLearner(StandardScaler(), BCQ(**SMALL, checkpoints=3)).fit(log)
    assert [one.n_updates_ for one in whole.checkpoints_] == [10, 20, 30]
    assert whole.n_updates_ == 30
    shorter = PreprocessedLearner(StandardScaler(), BCQ(**{**SMALL, "n_updates": 10})).fit(log)
    np.testing.assert_array_equal(whole.checkpoints_[0].predict(log.states), shorter.predict(log.states))
    assert overlap(whole.checkpoints_[0], log) == 40
    path = tmp_path / "run"
    settings: dict[str, Any] = {**SMALL, "checkpoints": 3, "checkpoint_path": path, "callbacks": [interrupt]}
    cut = PreprocessedLearner(StandardScaler(), BCQ(**settings))
    with pytest.warns(UserWarning, match="interrupted after 20 of 30"):
        cut.fit(log)
    assert cut.learner_.status_.outcome is Outcome.INTERRUPTED
    elsewhere = PreprocessedLearner(StandardScaler(), BCQ(**SMALL, checkpoints=3)).resume(log, path)
    resumed = cut.set_params(learner__callbacks=None).resume(log)
    for one in (elsewhere, resumed):
        same_policy(one.learner_, whole.learner_)
    with pytest.raises(ValueError, match=r"BCQ.resume: no interrupted run is kept"):
        whole.resume(log)


@pytest.mark.parametrize(
    ("transformer", "learner", "continuous"),
    [
        (StandardScaler(), BehaviorCloning(**SMALL), False),
        (make_pipeline(MinMaxScaler(), PCA(2)), TD3BC(**SMALL), True),
    ],
)
def test_the_laws_of_learners_hold(transformer: Any, learner: Any, continuous: bool) -> None:
    log = random_log(41, 7, continuous=continuous)
    results = check_policy(PreprocessedLearner(transformer, learner), log)
    skipped = {result.name for result in results if result.status == "skipped"}
    assert "file" not in skipped
    assert sum(result.status == "passed" for result in results) >= 15


# -------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "transformer",
    [
        StandardScaler(),
        StandardScaler(with_mean=False),
        MinMaxScaler(feature_range=(-2, 3), clip=True),
        MaxAbsScaler(),
        RobustScaler(quantile_range=(10.0, 90.0)),
        QuantileTransformer(n_quantiles=50, output_distribution="normal"),
        PCA(2, whiten=True),
        make_pipeline(StandardScaler(), "passthrough", PCA(0.9)),
        make_pipeline(make_pipeline(StandardScaler(), MaxAbsScaler()), PCA(2)),
    ],
    ids=lambda transformer: type(transformer).__name__,
)
def test_a_file_holds_transformers_as_arrays(transformer: Any, tmp_path: Path) -> None:
    log, other = random_log(), random_log(9, seed=2)
    policy = PreprocessedLearner(transformer, LSPI(gamma=0.3, ridge=0.1)).fit(log)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    frame = pd.DataFrame(other.states, columns=["x", "y", "z"])
    np.testing.assert_array_equal(loaded.transformer_.transform(frame), policy.transformer_.transform(frame))
    np.testing.assert_array_equal(loaded.predict_proba(other.states), policy.predict_proba(other.states))
    np.testing.assert_array_equal(loaded.q_values(other.states), policy.q_values(other.states))
    assert repr(loaded) == repr(policy)
    assert loaded.feature_names_out_ == policy.feature_names_out_
    assert overlap(loaded, log) == 40
    same = loaded.fit(log)
    np.testing.assert_array_equal(same.predict(other.states), policy.predict(other.states))


def test_what_a_file_cannot_hold_is_refused_and_joblib_holds_it(tmp_path: Path) -> None:
    log = random_log()
    for transformer, name in (
        (FunctionTransformer(np.tanh), "FunctionTransformer"),
        (make_pipeline(StandardScaler(), PolynomialFeatures(2)), "PolynomialFeatures"),
        (type("StandardScaler", (StandardScaler,), {})(), "StandardScaler"),
    ):
        policy = PreprocessedLearner(transformer, BehaviorCloning(**SMALL)).fit(log)
        with pytest.raises(TypeError, match=f"save: state transformers must be among .* got .*{name}; use joblib.dump"):
            policy.save(tmp_path / "policy")
        assert not (tmp_path / "policy").exists()
    policy = PreprocessedLearner(FunctionTransformer(np.tanh), BehaviorCloning(**SMALL)).fit(log)
    joblib.dump(policy, tmp_path / "policy.joblib")
    again = joblib.load(tmp_path / "policy.joblib")
    np.testing.assert_array_equal(again.predict_proba(log.states), policy.predict_proba(log.states))
    with pytest.raises(NotFittedError, match="PreprocessedLearner is not fitted"):
        clone(policy).save(tmp_path / "policy")


def test_a_file_imports_no_class_that_is_not_in_the_table(tmp_path: Path) -> None:
    policy = PreprocessedLearner(StandardScaler(), LSPI(gamma=0.3)).fit(random_log())
    policy.save(tmp_path / "policy")
    arrays, content = read_sealed(tmp_path / "policy", POLICY_KIND, "test")
    content["attributes"]["transformer"]["class"] = "FunctionTransformer"
    write_sealed(tmp_path / "evil", POLICY_KIND, arrays, content)
    with pytest.raises(ValueError, match=r"state transformers must be among .* got class 'FunctionTransformer'"):
        load_policy(tmp_path / "evil")
    content["attributes"]["transformer"]["class"] = "StandardScaler"
    content["attributes"]["learner"]["class"] = "os.system"
    write_sealed(tmp_path / "evil", POLICY_KIND, arrays, content)
    with pytest.raises(ValueError, match=r"must hold a policy of this library .* got class 'os.system'"):
        load_policy(tmp_path / "evil")


def test_transformers_keep_parameters_that_differ_from_defaults() -> None:
    _, metadata = pack_transformer(RobustScaler(quantile_range=(5.0, 95.0), with_centering=False))
    assert set(metadata["params"]) == {"quantile_range", "with_centering"}
    back = unpack_transformer({}, metadata)
    assert back.get_params() == RobustScaler(quantile_range=(5.0, 95.0), with_centering=False).get_params()
    with pytest.raises(TypeError, match="`random_state` of PCA must be a number, string, tuple or None to be stored"):
        pack_transformer(PCA(random_state=np.random.RandomState(0)))


def test_what_training_left_is_that_of_the_learner(tmp_path: Path) -> None:
    log = random_log()
    policy = PreprocessedLearner(StandardScaler(), BCQ(**SMALL, checkpoints=3, random_state=5))
    names = ("history_", "status_", "n_updates_", "n_excluded_transitions_", "seed_", "checkpoints_")
    assert not any(hasattr(policy, name) for name in names)
    policy.fit(log)
    assert policy.history_ is policy.learner_.history_
    assert policy.history_["update"].tolist() == [10, 20, 30]
    assert str(policy.status_) == "completed 30 updates"
    assert (policy.n_updates_, policy.seed_) == (30, 5)
    assert policy.n_excluded_transitions_ == policy.learner_.n_excluded_transitions_
    for one in policy.checkpoints_:
        assert isinstance(one, PreprocessedLearner)
        assert one.history_["update"].max() == one.n_updates_
        wanted = one.learner_.predict(
            policy.transformer_.transform(pd.DataFrame(log.states, columns=log.feature_names))
        )
        np.testing.assert_array_equal(one.predict(log.states), wanted)
    assert not any(hasattr(clone(policy), name) for name in names)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    pd.testing.assert_frame_equal(loaded.history_, policy.history_)
    assert loaded.status_ == policy.status_


class Bare(PolicyLearner):
    """A learner of the user's own that keeps no record of its training."""

    def fit(self, data: LoggedDataset) -> Bare:
        self._remember(data)
        return self


def test_what_the_learner_lacks_is_absent() -> None:
    policy = PreprocessedLearner(StandardScaler(), Bare()).fit(random_log())
    for name in ("history_", "status_", "n_updates_", "n_excluded_transitions_", "seed_", "checkpoints_"):
        with pytest.raises(AttributeError, match=f"'Bare' object has no attribute '{name}'"):
            getattr(policy, name)


def test_its_training_is_drawn() -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    from matplotlib.figure import Figure

    from ope.plotting import plot_history

    policy = PreprocessedLearner(StandardScaler(), BehaviorCloning(**SMALL)).fit(random_log())
    (ax,) = plot_history(policy, ax=Figure().subplots())
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), policy.learner_.history_["loss"])


# -------------------------------------------------------------------- bad use


@pytest.mark.parametrize("transformer", [StandardScaler(), PCA(2), make_pipeline(MinMaxScaler(), PCA(2))])
@pytest.mark.parametrize("verb", ["predict", "predict_proba", "sample", "q_values"])
def test_nan_in_states_is_no_fault_of_the_transformer(transformer: Any, verb: str) -> None:
    log = random_log()
    policy = PreprocessedLearner(transformer, LSPI(ridge=1.0)).fit(log)
    states = log.states[:4].copy()
    states[2, 1] = np.nan
    for given in (states, pd.DataFrame(states, columns=log.feature_names)):
        with pytest.raises(
            ValueError, match=r"PreprocessedLearner: `states` must be finite, got NaN .* rows 2 \(1 in all\)"
        ):
            getattr(policy, verb)(given)
    states[2, 1] = np.inf
    with pytest.raises(ValueError, match="PreprocessedLearner: `states` must be finite"):
        getattr(policy, verb)(states)


def test_an_imputer_takes_nan_and_other_faults_stay_its_own() -> None:
    log = random_log()
    states = log.states[:4].copy()
    states[2, 1] = np.nan
    policy = PreprocessedLearner(make_pipeline(SimpleImputer(), StandardScaler()), LSPI(ridge=1.0)).fit(log)
    filled = np.where(np.isnan(states), log.states.mean(axis=0), states)
    np.testing.assert_array_equal(policy.predict(states), policy.predict(filled))
    with pytest.raises(ValueError, match="`transformer` must return finite numbers"):
        PreprocessedLearner(FunctionTransformer(lambda x: x / (x > 0)), LSPI(ridge=1.0)).fit(log)


class Odd(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    def __init__(self, kind: str = "short") -> None:
        self.kind = kind

    def fit(self, _states: Any) -> Odd:
        self.calls_ = 0
        return self

    def transform(self, X: Any) -> Any:
        self.calls_ += 1
        array = np.asarray(X)
        odd = {"short": array[:-1], "nan": array / (array[:, :1] > 0), "narrow": array[:, : 1 + (self.calls_ == 1)]}
        with np.errstate(all="ignore"):
            return odd[self.kind]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (PreprocessedLearner(StandardScaler, LSPI()), TypeError, "`transformer` must have fit and transform, got <class"),
        (PreprocessedLearner(BCQ(), LSPI()), TypeError, r"`transformer` must have fit and transform, got BCQ\("),
        (PreprocessedLearner(StandardScaler(), FunctionPolicy()), TypeError, "`learner` must be a PolicyLearner, got FunctionPolicy"),
        (PreprocessedLearner(StandardScaler(), LSPI), TypeError, "`learner` must be a PolicyLearner, got <class"),  # type: ignore[arg-type]
        (PreprocessedLearner(Odd("short"), LSPI()), ValueError, r"`transformer` must return a row for each state, shape \(200, m\), got \(199, 3\)"),
        (PreprocessedLearner(Odd("nan"), LSPI()), ValueError, "`transformer` must return finite numbers, got NaN or infinite ones at rows"),
        (PreprocessedLearner(Odd("narrow"), LSPI()), ValueError, "`transformer` must return the 2 columns of its fit, got 1"),
    ],
)  # fmt: skip
def test_bad_use_is_named(policy: PreprocessedLearner, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"PreprocessedLearner: {message}"):
        policy.fit(random_log())


def test_no_log_and_no_fit_are_named() -> None:
    with pytest.raises(TypeError, match="PreprocessedLearner: `data` must be a LoggedDataset, got ndarray"):
        PreprocessedLearner(StandardScaler(), LSPI(ridge=1.0)).fit(np.zeros((3, 2)))  # type: ignore[arg-type]
    for verb in ("predict", "predict_proba", "sample"):
        with pytest.raises(NotFittedError, match="PreprocessedLearner is not fitted; call fit"):
            getattr(PreprocessedLearner(StandardScaler(), LSPI(ridge=1.0)), verb)([[0.0]])


# -------------------------------------------------------------------- joblib


def fit_one(learner: Any, log: LoggedDataset) -> Any:
    return clone(learner).fit(log)


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_learners_fit_side_by_side(backend: str) -> None:
    log = random_log(10)
    learners: list[Any] = [
        BCQ(**SMALL),
        BehaviorCloning(**SMALL, random_state=3),
        LSPI(gamma=0.3),
        PreprocessedLearner(StandardScaler(), BCQ(**SMALL)),
    ]
    together = joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(fit_one)(learner, log) for learner in learners)
    for fitted, learner in zip(together, learners, strict=True):
        alone = clone(learner).fit(log)
        np.testing.assert_array_equal(fitted.predict_proba(log.states), alone.predict_proba(log.states))
        assert not hasattr(learner, "training_episode_keys_")


# -------------------------------------------------------------------- several at once


def test_many_are_what_each_is_alone_and_equal_transformers_are_fitted_once() -> None:
    log = some_finals(random_log(continuous=True))
    fits: list[int] = []

    class Counting(StandardScaler):  # type: ignore[misc]
        def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
            fits.append(len(X))
            return super().fit(X, y, sample_weight)

    def made() -> list[PreprocessedLearner]:
        return [
            PreprocessedLearner(StandardScaler(), TD3BC(**SMALL)),
            PreprocessedLearner(PCA(2), TD3BC(**SMALL)),
            PreprocessedLearner(StandardScaler(), TD3BC(**SMALL, random_state=1)),
            PreprocessedLearner(StandardScaler(), IQL(**SMALL)),
        ]

    alone = [learner.fit(log) for learner in made()]
    together = made()
    assert all(one is other for one, other in zip(PreprocessedLearner.fit_many(log, together), together, strict=True))
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours.predict(log.states), theirs.predict(log.states), rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(ours.training_episode_keys_, theirs.training_episode_keys_)
        assert ours.feature_names_out_ == theirs.feature_names_out_
    PreprocessedLearner.fit_many(log, [PreprocessedLearner(Counting(), TD3BC(**SMALL, random_state=s)) for s in (0, 1)])
    # Counting is a class of a function, which cannot be pickled: nothing says that the two do the same.
    assert len(fits) == 2
    same = Counting()
    PreprocessedLearner.fit_many(log, [PreprocessedLearner(same, TD3BC(**SMALL, random_state=s)) for s in (0, 1)])
    assert len(fits) == 3


def test_many_resume_and_learners_without_networks_serve() -> None:
    log = random_log()
    whole = [PreprocessedLearner(StandardScaler(), BCQ(**SMALL, random_state=s)).fit(log) for s in (0, 1)]

    def stop(event: Any) -> None:
        if event.update == 20:
            raise KeyboardInterrupt

    halves = [PreprocessedLearner(StandardScaler(), BCQ(**SMALL, random_state=s, callbacks=[stop])) for s in (0, 1)]
    with pytest.warns(UserWarning, match="interrupted"):
        PreprocessedLearner.fit_many(log, halves)
    for half in halves:
        half.set_params(learner__callbacks=None)
    PreprocessedLearner.fit_many(log, halves, resume=True)
    for ours, theirs in zip(halves, whole, strict=True):
        assert ours.n_updates_ == 30
        np.testing.assert_allclose(ours.predict_proba(log.states), theirs.predict_proba(log.states), atol=1e-4)
    (single,) = PreprocessedLearner.fit_many(log, [PreprocessedLearner(StandardScaler(), LSPI(ridge=1.0))])
    expected = PreprocessedLearner(StandardScaler(), LSPI(ridge=1.0)).fit(log)
    np.testing.assert_array_equal(single.predict(log.states), expected.predict(log.states))
    with pytest.raises(
        TypeError, match=r"PreprocessedLearner.fit_many: `learners` must hold PreprocessedLearner objects"
    ):
        PreprocessedLearner.fit_many(log, [BCQ(**SMALL)])


# -------------------------------------------------------------------- export


class _Foreign(PolicyLearner):
    """A learner of a user's own."""

    capabilities = frozenset({"predict"})

    def fit(self, data: LoggedDataset) -> Any:
        self._remember(data)
        return self

    def predict(self, states: Any, action_mask: Any = None) -> Any:  # noqa: ARG002
        return np.zeros(len(states))


@pytest.mark.parametrize(
    "transformer",
    [
        StandardScaler(),
        StandardScaler(with_mean=False, with_std=False),
        MinMaxScaler((-2.0, 3.0)),
        MaxAbsScaler(),
        RobustScaler(with_centering=False),
        PCA(2, whiten=True),
        make_pipeline(RobustScaler(), "passthrough", PCA(2)),
    ],
    ids=lambda own: type(own).__name__ + str(len(str(own))),
)
@pytest.mark.parametrize("continuous", [False, True])
def test_a_module_holds_the_transformer(transformer: Any, continuous: bool, tmp_path: Path) -> None:
    log = random_log(continuous=continuous)
    learner = TD3BC(**SMALL) if continuous else IQL(**SMALL)
    policy = PreprocessedLearner(transformer, learner).fit(log)
    policy.export(tmp_path / "policy.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        extra: dict[str, Any] = {"ope.json": ""}
        module = torch.jit.load(str(tmp_path / "policy.pt"), _extra_files=extra)  # type: ignore[no-untyped-call]
    for states in (log.states, -5.0 * log.states[:1], log.states[:0]):
        expected = policy.predict(states) if continuous else policy.predict_proba(states)
        np.testing.assert_allclose(module(torch.from_numpy(states.copy())).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert json.loads(extra["ope.json"])["feature_names"] == ["x", "y", "z"]


def test_transformers_behind_transformers_and_what_is_no_tensor(tmp_path: Path) -> None:
    log = random_log(continuous=True)
    inner = PreprocessedLearner(PCA(2), TD3BC(**SMALL))
    policy = PreprocessedLearner(StandardScaler(), inner).fit(log)
    policy.export(tmp_path / "policy.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(tmp_path / "policy.pt"))  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(
        module(torch.from_numpy(log.states.copy())).numpy(), policy.predict(log.states), rtol=1e-5
    )
    for transformer in (QuantileTransformer(n_quantiles=5), MinMaxScaler(clip=True), PolynomialFeatures()):
        refused = PreprocessedLearner(transformer, TD3BC(**SMALL)).fit(log)
        with pytest.raises(
            TypeError, match=r"PreprocessedLearner.export: `transformer` must be one of .* that does not clip"
        ):
            refused.export(tmp_path / "other.pt")
    with pytest.raises(TypeError, match=r"PreprocessedLearner.export: `learner` must be one of this library's"):
        PreprocessedLearner(StandardScaler(), _Foreign()).fit(random_log()).export(tmp_path / "other.pt")
    with pytest.raises(NotFittedError, match="PreprocessedLearner is not fitted"):
        inner.export(tmp_path / "other.pt")
    assert not (tmp_path / "other.pt").exists()


# -------------------------------------------------------------------- what a fit must not do


def test_a_failed_refit_leaves_the_policy_as_it_was() -> None:
    log = random_log()
    policy = PreprocessedLearner(StandardScaler(), BCQ(**SMALL)).fit(log)
    said, keys = policy.q_values(log.states), policy.training_episode_keys_
    moved = random_log(9, seed=1)
    elsewhere = moved.replace(states=5.0 + 3.0 * moved.states)
    with pytest.raises(ValueError, match="BCQ: `tau` must be"):
        policy.set_params(learner__tau=7.0).fit(elsewhere)
    with pytest.raises(ValueError, match="BCQ: `tau` must be"):
        PreprocessedLearner.fit_many(elsewhere, [policy])
    np.testing.assert_array_equal(policy.q_values(log.states), said)
    np.testing.assert_array_equal(policy.training_episode_keys_, keys)


class Recorder:
    """A callback that is an object."""

    def __init__(self, log: LoggedDataset) -> None:
        self.log, self.seen = log, list[Any]()

    def __call__(self, event: Any) -> None:
        self.seen.append(event.policy().predict_proba(self.log.states))


@pytest.mark.parametrize("many", [False, True])
def test_callbacks_are_the_users_and_hear_of_policies_of_the_log(many: bool) -> None:
    log = random_log()
    recorder = Recorder(log)
    policy = PreprocessedLearner(StandardScaler(), BCQ(**SMALL, callbacks=[recorder]))
    if many:
        PreprocessedLearner.fit_many(log, [policy])
    else:
        policy.fit(log)
    assert len(recorder.seen) == 3
    np.testing.assert_array_equal(recorder.seen[-1], policy.predict_proba(log.states))
    assert policy.learner.get_params()["callbacks"] == policy.learner_.get_params()["callbacks"] == [recorder]


def test_a_run_goes_on_behind_its_own_transformer_only() -> None:
    log = random_log()

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    cut = PreprocessedLearner(StandardScaler(), BCQ(**SMALL, callbacks=[interrupt]))
    with pytest.warns(UserWarning, match="interrupted"):
        cut.fit(log)
    cut.set_params(learner__callbacks=None, transformer=MinMaxScaler())
    for go_on in (lambda: cut.resume(log), lambda: PreprocessedLearner.fit_many(log, [cut], resume=True)):
        with pytest.raises(
            ValueError, match=r"PreprocessedLearner.resume: `transformer` must be that of the run, got MinMaxScaler"
        ):
            go_on()
    cut.set_params(transformer=StandardScaler())
    same_policy(cut.resume(log).learner_, PreprocessedLearner(StandardScaler(), BCQ(**SMALL)).fit(log).learner_)


def test_many_behind_several_transformers_stop_and_go_on_together() -> None:
    log = random_log()

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    def three(**own: Any) -> list[PreprocessedLearner]:
        learners = [BCQ(**SMALL), BCQ(**SMALL, **own), BCQ(**SMALL)]
        return [
            PreprocessedLearner(one, learner)
            for one, learner in zip((StandardScaler(), MinMaxScaler(), PCA(2)), learners, strict=True)
        ]

    many = three(callbacks=[interrupt])
    with pytest.warns(UserWarning, match="interrupted"):
        PreprocessedLearner.fit_many(log, many)
    assert [hasattr(one, "learner_") for one in many] == [True, True, False]
    many[1].set_params(learner__callbacks=None)
    PreprocessedLearner.fit_many(log, many, resume=True)
    for ours, theirs in zip(many, PreprocessedLearner.fit_many(log, three()), strict=True):
        same_policy(ours.learner_, theirs.learner_)
    with pytest.raises(ValueError, match=r"PreprocessedLearner.fit_many: no interrupted run is kept"):
        PreprocessedLearner.fit_many(log, many, resume=True)
    with pytest.raises(TypeError, match=r"PreprocessedLearner.fit_many must be called on the class"):
        many[0].fit_many(log, many)


def test_a_learner_that_waits_behind_the_same_transformer_goes_on_too() -> None:
    log = random_log()

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    first, last = sorted((BCQ(**{**SMALL, "hidden": (width,)}) for width in (8, 9)), key=lambda one: one._group_key())
    many = [PreprocessedLearner(StandardScaler(), one) for one in (last, first.set_params(callbacks=[interrupt]))]
    many[0].fit(random_log(seed=1))
    with pytest.warns(UserWarning, match="interrupted"):
        PreprocessedLearner.fit_many(log, many)
    assert [hasattr(one, "learner_") for one in many] == [False, True]
    first.set_params(callbacks=None)
    for ours in PreprocessedLearner.fit_many(log, many, resume=True):
        same_policy(ours.learner_, PreprocessedLearner(StandardScaler(), ours.learner).fit(log).learner_)
