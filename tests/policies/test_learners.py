"""What learners learn, the laws all of them obey, and bad input."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from learner_logs import LEARNERS, SMALL, random_log, same_policy
from scipy.integrate import trapezoid
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from ope.dataset import LoggedDataset
from ope.policies._neural import NeuralLearner
from ope.policies.bcq import BCQ
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policy import expectation, log_prob_logged, overlap, probabilities
from ope.schema import End

# -------------------------------------------------------------------- what is learned


def loop_log(end: str) -> LoggedDataset:
    """One state that leads to itself with reward 1."""
    return LoggedDataset.from_arrays(
        [[1.0]] * 20, ["only"] * 20, [1.0] * 20, lengths=[1] * 20, ends=end, final_states=[[1.0]] * 20
    )


@pytest.mark.parametrize(("end", "value"), [("terminal", 1.0), ("truncated", 2.0), ("horizon", 2.0)])
def test_a_terminal_is_not_a_truncation(end: str, value: float) -> None:
    learner = BCQ(gamma=0.5, hidden=(8,), n_updates=600, learning_rate=0.01, tau=0.1).fit(loop_log(end))
    q = learner.networks_["q"](torch.zeros(1, 1))
    assert q.item() == pytest.approx(value, abs=0.02)


def test_masked_actions_are_never_bootstrapped_and_have_probability_zero() -> None:
    # From state 0 only "a" leads on, to state 1, where "b" would pay 10 but is never available after state 0.
    states, actions, rewards = [[0.0], [1.0], [1.0]], ["a", "a", "b"], [0.0, 1.0, 10.0]
    mask = [[True, False], [True, False], [False, True]]
    log = LoggedDataset.from_arrays(
        states * 20, actions * 20, rewards * 20, lengths=[2, 1] * 20, ends="terminal", action_mask=mask * 20
    )
    learner = BCQ(gamma=0.9, threshold=0.0, hidden=(16,), n_updates=800, learning_rate=0.01, tau=0.1).fit(log)
    standardised = torch.from_numpy(learner.origin_.states.transform(np.array([[0.0], [1.0]]))).float()
    q = learner.networks_["q"](standardised)[0]
    assert q[1].tolist() == pytest.approx([1.0, 10.0], abs=0.1)
    assert float(q[0, 0]) == pytest.approx(0.9, abs=0.05)
    assert learner.predict([[1.0]]).tolist() == ["b"]
    assert learner.predict([[1.0]], [[True, False]]).tolist() == ["a"]
    np.testing.assert_array_equal(
        probabilities(learner, log.rows(), np.array(["a", "b"])), np.array(mask * 20, dtype=float)
    )


def test_unknown_last_states_are_left_out_counted_and_said() -> None:
    log = loop_log("terminal")
    codes = np.array([End.TERMINAL] * 15 + [End.HORIZON] * 5, dtype=np.int8)
    unknown = log.replace(ends=codes, horizon=1, final_states=None, rewards=np.array([1.0] * 15 + [50.0] * 5))
    with pytest.warns(
        UserWarning, match=r"BCQ: 5 of 20 transitions end an episode that goes on .* left out of the Bellman"
    ):
        learner = BCQ(gamma=0.5, hidden=(8,), n_updates=600, learning_rate=0.01).fit(unknown)
    assert learner.n_excluded_transitions_ == 5
    assert learner.networks_["q"](torch.zeros(1, 1)).item() == pytest.approx(1.0, abs=0.02)
    with pytest.raises(ValueError, match="BCQ: `data` must hold a transition whose next state is known or terminal"):
        BCQ(**SMALL).fit(unknown.select(np.arange(15, 20)))
    assert BehaviorCloning(**SMALL).fit(unknown).n_excluded_transitions_ == 0


GRID = 5  # cells in a row; the goal is at the right end


def grid_log(n_episodes: int, seed: int) -> LoggedDataset:
    """A corridor: left, right or stay; mostly random steps, -1 a step; the goal pays 10 and ends the episode."""
    rng = np.random.default_rng(seed)
    states, actions, rewards, lengths, ends, finals = [], [], [], [], [], []
    for _ in range(n_episodes):
        cell, steps = int(rng.integers(0, GRID - 1)), 0
        while cell < GRID - 1 and steps < 12:
            action = int(rng.choice(3, p=[0.45, 0.25, 0.3]))
            states.append(np.eye(GRID)[cell])
            actions.append(action)
            cell = min(max(cell + (-1, 1, 0)[action], 0), GRID - 1)
            rewards.append(10.0 if cell == GRID - 1 else -1.0)
            steps += 1
        lengths.append(steps)
        ends.append(End.TERMINAL if cell == GRID - 1 else End.TRUNCATED)
        finals.append(np.eye(GRID)[cell])
    labels = np.array(["left", "right", "stay"])
    return LoggedDataset.from_arrays(states, labels[actions], rewards, lengths=lengths, ends=ends, final_states=finals)


def exact_value(policy: NeuralLearner, gamma: float) -> float:
    """Solve the corridor for the policy's value from a uniform start."""
    probs = policy.predict_proba(np.eye(GRID))
    transition, reward = np.zeros((GRID, GRID)), np.zeros(GRID)
    for cell in range(GRID - 1):
        for action, step in enumerate((-1, 1, 0)):
            after = min(max(cell + step, 0), GRID - 1)
            transition[cell, after] += probs[cell, action]
            reward[cell] += probs[cell, action] * (10.0 if after == GRID - 1 else -1.0)
    value = np.linalg.solve(np.eye(GRID) - gamma * transition, reward)
    return float(value[: GRID - 1].mean())


def test_bcq_beats_cloning_on_a_corridor_and_finds_the_optimum() -> None:
    log, gamma = grid_log(150, 0), 0.9
    settings: dict[str, Any] = {"hidden": (32,), "n_updates": 1500, "batch_size": 64, "learning_rate": 3e-3}
    cloned = BehaviorCloning(**settings).fit(log)
    learned = BCQ(gamma=gamma, tau=0.05, **settings).fit(log)
    best = np.mean([sum(-(gamma**t) for t in range(d - 1)) + 10 * gamma ** (d - 1) for d in range(1, GRID)])
    assert learned.predict(np.eye(GRID)[:-1]).tolist() == ["right"] * (GRID - 1)
    assert exact_value(learned, gamma) == pytest.approx(best)
    assert exact_value(cloned, gamma) < best - 5.0
    frequencies = np.array(
        [[np.mean(log.actions[log.states[:, s] == 1] == a) for a in range(3)] for s in range(GRID - 1)]
    )
    np.testing.assert_allclose(cloned.predict_proba(np.eye(GRID)[:-1]), frequencies, atol=0.03)


def test_a_high_threshold_imitates() -> None:
    log = grid_log(150, 0)
    learner = BCQ(threshold=0.95, hidden=(32,), n_updates=800, batch_size=64, learning_rate=3e-3).fit(log)
    assert learner.predict(np.eye(GRID)[:-1]).tolist() == ["left"] * (GRID - 1)


def test_gaussian_cloning_recovers_mean_and_standard_deviation_in_the_unit_of_the_actions() -> None:
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, size=(2000, 1))
    std = np.where(states > 0, 30.0, 10.0)
    actions = 1000.0 + 200.0 * states + std * rng.normal(size=(2000, 1))
    log = LoggedDataset.from_arrays(states, actions, np.zeros(2000), lengths=[1] * 2000, ends="terminal")
    policy = BehaviorCloning(hidden=(32,), n_updates=1500, batch_size=128, learning_rate=3e-3).fit(log)
    assert policy.capabilities == {"logged_prob", "density", "sample"}
    at = np.array([[-0.5], [0.5]])
    np.testing.assert_allclose(policy.predict(at).ravel(), [900.0, 1100.0], atol=6.0)
    draws = np.stack([policy.sample(at, seed) for seed in range(2000)])
    np.testing.assert_allclose(draws.std(axis=0).ravel(), [10.0, 30.0], rtol=0.2)
    np.testing.assert_allclose(draws.mean(axis=0), policy.predict(at), atol=4 * 30 / math.sqrt(2000))
    grid = np.linspace(600, 1500, 20001)
    density = np.exp(policy.log_prob(np.full((20001, 1), 0.5), grid))
    assert float(trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)
    rows = log.select(slice(0, 50)).rows()
    nodes = policy.quadrature_rows(rows)
    assert nodes is not None
    np.testing.assert_allclose(np.einsum("m,mnk->nk", nodes[1], nodes[0]), policy.predict(rows.states))
    np.testing.assert_array_equal(log_prob_logged(policy, log), policy.log_prob(states, actions))
    second_moment = expectation(policy, log, lambda _, a: np.zeros(2000) if a is None else a[:, 0] ** 2)
    at_half = float(trapezoid(density * grid**2, grid))
    index = int(np.abs(states[:, 0] - 0.5).argmin())
    assert second_moment[index] == pytest.approx(at_half, rel=0.01)


def test_a_constant_action_has_a_narrow_density() -> None:
    log = LoggedDataset.from_arrays(
        np.zeros((50, 1)), np.full((50, 1), 3.0), np.zeros(50), lengths=[50], ends="terminal"
    )
    policy = BehaviorCloning(**{**SMALL, "n_updates": 400}).fit(log)
    assert policy.predict([[0.0]]).item() == pytest.approx(3.0, abs=0.1)
    assert np.isfinite(log_prob_logged(policy, log)).all()


# -------------------------------------------------------------------- laws of every learner


@pytest.mark.parametrize("learner_class", LEARNERS)
def test_equal_seeds_give_equal_bits_and_different_ones_do_not(learner_class: Any) -> None:
    log = random_log()
    first, second = learner_class(**SMALL).fit(log), learner_class(**SMALL).fit(log)
    same_policy(first, second)
    other = learner_class(**SMALL, random_state=1).fit(log)
    assert not first.history_.equals(other.history_)
    assert first.seed_ == 0


def test_no_seed_draws_one_and_records_it() -> None:
    log = random_log()
    drawn = BCQ(**SMALL, random_state=None).fit(log)
    assert drawn.random_state is None
    same_policy(drawn, BCQ(**SMALL, random_state=drawn.seed_).fit(log))


@pytest.mark.parametrize(
    ("learner_class", "settings"),
    [
        (BCQ, [{}, {"random_state": 1}, {"gamma": 0.5, "threshold": 0.8}, {"learning_rate": 1e-2, "tau": 0.1}]),
        (BehaviorCloning, [{}, {"random_state": 1}, {"weight_decay": 0.1, "learning_rate": 1e-2}]),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_many_at_once_equal_each_alone(learner_class: Any, settings: list[dict[str, Any]], masked: bool) -> None:
    log = random_log(masked=masked)
    together = learner_class.fit_many(log, [learner_class(**{**SMALL, **setting}) for setting in settings])
    for learner, setting in zip(together, settings, strict=True):
        alone = learner_class(**{**SMALL, **setting}).fit(log)
        for name, network in alone.networks_.items():
            torch.testing.assert_close(
                learner.networks_[name].parameters.flat, network.parameters.flat, rtol=1e-3, atol=1e-5
            )
        np.testing.assert_allclose(learner.history_, alone.history_, rtol=1e-3, atol=1e-4)


def test_many_may_differ_in_shape_and_keep_their_order() -> None:
    log = random_log()
    learners = [BCQ(**{**SMALL, "hidden": hidden}) for hidden in [(4,), (8, 8), (4,)]]
    learners[2].set_params(random_state=5)
    fitted = BCQ.fit_many(log, learners)
    assert all(one is other for one, other in zip(fitted, learners, strict=True))
    assert [learner.networks_["q"].sizes for learner in fitted] == [(3, 4, 3), (3, 8, 8, 3), (3, 4, 3)]
    same_policy(fitted[1], BCQ(**{**SMALL, "hidden": (8, 8)}).fit(log))


def test_many_take_seeds() -> None:
    log = random_log(4)
    fitted = BehaviorCloning.fit_many(
        log, [BehaviorCloning(n_updates=1, hidden=(4,)), BehaviorCloning(n_updates=1, hidden=(4,), random_state=3)]
    )
    assert [learner.seed_ for learner in fitted] == [0, 3]
    with pytest.raises(TypeError, match=r"BCQ.fit_many: `learners` must hold BCQ objects or seeds, got 'x'"):
        BCQ.fit_many(log, ["x"])  # type: ignore[list-item]
    for wrong in (3, "seeds", BCQ()):
        with pytest.raises(TypeError, match=r"BCQ.fit_many: `learners` must be a list of BCQ objects or seeds, got"):
            BCQ.fit_many(log, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"BCQ.fit_many must be called on the class, got a call on an object"):
        BCQ(n_updates=1, hidden=(4,)).fit_many(log, [0, 1])


def test_checkpoints_are_policies_of_shorter_runs() -> None:
    log = random_log()
    learner = BCQ(**SMALL, checkpoints=3).fit(log)
    assert [checkpoint.n_updates_ for checkpoint in learner.checkpoints_] == [40, 80, 120]
    for checkpoint in learner.checkpoints_:
        shorter = BCQ(**{**SMALL, "n_updates": checkpoint.n_updates_}).fit(log)
        same_policy(checkpoint, shorter)
        np.testing.assert_array_equal(checkpoint.predict(log.states), shorter.predict(log.states))
        assert overlap(checkpoint, log) == log.n_episodes
    np.testing.assert_array_equal(learner.checkpoints_[-1].predict(log.states), learner.predict(log.states))


@pytest.mark.parametrize("learner_class", LEARNERS)
@pytest.mark.parametrize("masked", [False, True])
def test_verbs_agree(learner_class: Any, masked: bool) -> None:
    log = random_log(masked=masked)
    policy = learner_class(**SMALL).fit(log)
    labels = np.array(["a", "b", "c"])
    probs = policy.predict_proba(log.states, log.action_mask)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=1e-12)
    if log.action_mask is not None:
        assert (probs[~log.action_mask] == 0).all()
    np.testing.assert_array_equal(policy.predict(log.states, log.action_mask), labels[probs.argmax(axis=1)])
    np.testing.assert_array_equal(policy.labels, labels)
    with np.errstate(divide="ignore"):
        expected = np.log(probs[np.arange(len(log)), log.actions])
    np.testing.assert_array_equal(policy.log_prob(log.states, labels[log.actions], log.action_mask), expected)
    np.testing.assert_allclose(log_prob_logged(policy, log), expected, rtol=1e-12)
    draws = np.stack([policy.sample(log.states[:4], seed) for seed in range(400)])
    frequencies = (draws[:, :, None] == labels).mean(axis=0)
    np.testing.assert_allclose(frequencies, policy.predict_proba(log.states[:4]), atol=4 * 0.5 / 20)
    if "deterministic" in policy.capabilities:
        assert set(np.unique(probs)) == {0.0, 1.0}
        np.testing.assert_array_equal(policy.sample(log.states, 0), policy.predict(log.states))


def test_states_may_be_a_frame_and_many_rows_are_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    log = random_log()
    policy = BehaviorCloning(**SMALL).fit(log)
    expected = policy.predict_proba(log.states)
    np.testing.assert_array_equal(policy.predict_proba(pd.DataFrame(log.states, columns=["x", "y", "z"])), expected)
    monkeypatch.setattr("ope.policies._network_policy.PREDICT_ROWS", 7)
    np.testing.assert_allclose(policy.predict_proba(log.states), expected, rtol=1e-5)
    assert policy.predict_proba(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("learner_class", LEARNERS)
def test_sklearn_conventions(learner_class: Any) -> None:
    learner = learner_class(**SMALL, random_state=7)
    assert learner.get_params()["random_state"] == 7
    assert f"{learner_class.__name__}(" in repr(learner)
    assert learner.set_params(batch_size=16) is learner
    fitted = learner.fit(random_log())
    assert fitted is learner
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    assert not hasattr(fresh, "networks_")
    assert fitted.n_features_in_ == 3
    assert fitted.feature_names_in_.tolist() == ["x", "y", "z"]
    assert list(fitted.history_["update"]) == [20, 40, 60, 80, 100, 120]
    assert str(fitted.status_) == "completed 120 updates"


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
@pytest.mark.parametrize("continuous", [False, True])
def test_copies_and_pickles_are_the_same_policy(copier: Any, continuous: bool) -> None:
    log = random_log(continuous=continuous)
    policy = BehaviorCloning(**SMALL, checkpoints=2).fit(log)
    twin = copier(policy)
    same_policy(twin, policy)
    np.testing.assert_array_equal(log_prob_logged(twin, log), log_prob_logged(policy, log))
    np.testing.assert_array_equal(twin.checkpoints_[0].predict(log.states), policy.checkpoints_[0].predict(log.states))


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"gamma": 1.5}, ValueError, r"BCQ: `gamma` must be a number in \[0, 1\], got 1.5"),
        ({"threshold": 1.0}, ValueError, r"BCQ: `threshold` must be a number in \[0, 1\), got 1.0"),
        ({"tau": 0}, ValueError, r"BCQ: `tau` must be a number in \(0, 1\], got 0"),
        ({"n_updates": 0}, ValueError, r"BCQ: `n_updates` must be an integer in \[1, inf\), got 0"),
        ({"n_updates": 10.0}, TypeError, "BCQ: `n_updates` must be an integer"),
        ({"learning_rate": float("nan")}, ValueError, "BCQ: `learning_rate` must be a number"),
        ({"learning_rate": "fast"}, TypeError, "BCQ: `learning_rate` must be a number"),
        ({"logit_penalty": -1}, ValueError, "BCQ: `logit_penalty` must be a number"),
        ({"checkpoints": True}, TypeError, "BCQ: `checkpoints` must be an integer"),
        ({"hidden": (8, 0)}, ValueError, "BCQ: `hidden` must be a tuple of widths"),
        ({"hidden": 8}, ValueError, "BCQ: `hidden` must be a tuple of widths"),
        ({"random_state": -1}, ValueError, "BCQ: `random_state` must not be negative"),
        ({"random_state": "x"}, TypeError, "BCQ: `random_state` must be an integer or None"),
        ({"callbacks": print}, TypeError, "BCQ: `callbacks` must be a list of functions"),
        ({"device": "abacus"}, ValueError, 'BCQ: `device` must be "auto" or a torch device'),
    ],
)
def test_settings_out_of_bounds(setting: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BCQ(**{**SMALL, **setting}).fit(random_log(4))


def test_only_logs_are_learned_from() -> None:
    with pytest.raises(TypeError, match="BCQ: `data` must be a LoggedDataset, got DataFrame"):
        BCQ(**SMALL).fit(pd.DataFrame())  # type: ignore[arg-type]
    policy = BCQ(**SMALL).fit(random_log(4))
    with pytest.raises(TypeError, match=r"BCQ.score: `data` must be a LoggedDataset, got DataFrame"):
        policy.score(pd.DataFrame())  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["normalize_states", "progress"])
def test_flags_are_flags(setting: str) -> None:
    with pytest.raises(TypeError, match=f"BCQ: `{setting}` must be True or False, got 'yes'"):
        BCQ(**{**SMALL, setting: "yes"}).fit(random_log(4))


def test_a_place_that_cannot_hold_a_file_is_refused_before_training(tmp_path: Path) -> None:
    log = random_log(4)
    seen: list[Any] = []
    for path, message in (
        (tmp_path / "nowhere" / "run", "`checkpoint_path` must lie in a folder that exists, got .*; create"),
        (tmp_path, "`checkpoint_path` must name a file, got the folder"),
    ):
        with pytest.raises(OSError, match=f"BCQ: {message}"):
            BCQ(**SMALL, checkpoint_path=path, callbacks=[seen.append]).fit(log)
    assert not seen
    policy = BCQ(**SMALL).fit(log)
    with pytest.raises(FileNotFoundError, match=r"BCQ.save: `path` must lie in a folder that exists"):
        policy.save(tmp_path / "nowhere" / "policy")
    with pytest.raises(FileNotFoundError, match=r"BCQ.export: `path` must lie in a folder that exists"):
        policy.export(tmp_path / "nowhere" / "policy.pt")
    with pytest.raises(
        ValueError, match=r'BCQ.export: `format` must be "onnx" for a file \*.onnx, got \'torchscript\''
    ):
        policy.export(tmp_path / "policy.onnx")


@pytest.mark.parametrize("call", ["predict", "predict_proba", "sample"])
def test_unfitted_learners_say_so(call: str) -> None:
    with pytest.raises(NotFittedError, match="BCQ is not fitted"):
        getattr(BCQ(), call)([[0.0]])
    with pytest.raises(NotFittedError, match="BehaviorCloning is not fitted"):
        _ = BehaviorCloning().capabilities


def test_bad_states_actions_and_masks_are_named() -> None:
    policy = BehaviorCloning(**SMALL).fit(random_log())
    with pytest.raises(ValueError, match="BehaviorCloning: `states` must have a column for each of"):
        policy.predict([[0.0, 1.0]])
    with pytest.raises(ValueError, match="BehaviorCloning: `states` must be finite"):
        policy.predict([[0.0, 1.0, math.nan]])
    with pytest.raises(ValueError, match=r"values at rows 0 \(1 in all\) in columns \[2\]"):
        policy.predict([[0.0, 1.0, math.inf]])
    with pytest.raises(ValueError, match=r"`states` must have a column for each .* got shape \(4,\)"):
        policy.predict([0.0, 1.0, 2.0, 3.0])
    with pytest.raises(
        ValueError, match=r"`states` must have shape \(n, d\), got a LoggedDataset; .* of a log its .states"
    ):
        policy.predict(random_log())  # type: ignore[arg-type]
    frame = pd.DataFrame([[0.0, 1.0, 2.0]], columns=["z", "y", "x"])
    with pytest.raises(ValueError, match=r"feature names must match.* pass states\[policy.feature_names_in_\]"):
        policy.predict(frame)
    np.testing.assert_array_equal(
        policy.predict_proba(frame[policy.feature_names_in_]), policy.predict_proba([[2.0, 1.0, 0.0]])
    )
    for wrong in (pd.Timestamp("2026-01-01"), pd.Timedelta(days=1), "three"):
        with pytest.raises(TypeError, match="`states` must be numeric, got column 'y' of dtype"):
            policy.predict(pd.DataFrame({"x": [0.0], "y": [wrong], "z": [1.0]}))
    with pytest.raises(TypeError, match="`states` must be numeric, got dtype timedelta64"):
        policy.predict(np.zeros((1, 3), dtype="timedelta64[ns]"))
    with pytest.raises(ValueError, match="actions must be among the labels"):
        policy.log_prob([[0.0, 1.0, 2.0]], ["d"])
    for labels in (["a"], ["a"] * 3, "a", [["a"]] * 2):
        with pytest.raises(ValueError, match=r"`actions` must have shape \(2,\), got .*; pass a label for each state"):
            policy.log_prob([[0.0, 1.0, 2.0]] * 2, labels)
    masks: Sequence[Any] = ([[True, False]], [[False] * 3], [True] * 3)
    for mask in masks:
        with pytest.raises(ValueError, match="`action_mask` must have a column for each of the labels"):
            policy.predict([[0.0, 1.0, 2.0]], mask)
    with pytest.raises(ValueError, match="`action_mask` must have a row for each of 1 states, got 2"):
        policy.predict([[0.0, 1.0, 2.0]], [[True] * 3] * 2)
    renamed = random_log().replace(feature_names=("x", "z", "y"))
    with pytest.raises(ValueError, match="feature names must match"):
        log_prob_logged(policy, renamed)


def test_a_mask_means_what_its_columns_and_values_say() -> None:
    policy = BehaviorCloning(**SMALL).fit(random_log())
    state = [[0.0, 1.0, 2.0]]
    expected = policy.predict_proba(state, [[False, True, True]])
    assert expected[0, 0] == 0.0
    frame = pd.DataFrame({"c": [True], "a": [False], "b": [True]})
    for mask in (frame, frame.astype(int), [[0, 1, 1]], [[0.0, 1.0, 1.0]]):
        np.testing.assert_array_equal(policy.predict_proba(state, mask), expected)
    for columns in (["x", "y", "z"], ["a", "b", "b"]):
        with pytest.raises(ValueError, match=r"`action_mask` must have the columns \['a', 'b', 'c'\], got"):
            policy.predict(state, frame.set_axis(columns, axis=1))
    values: Sequence[Any] = ([[0.5, 1.0, 1.0]], [[math.nan, 1.0, 1.0]], [["False", "True", "True"]], [[2, 1, 0]])
    for value in values:
        with pytest.raises(ValueError, match="`action_mask` must hold True and False, or 1 and 0, got other values"):
            policy.predict(state, value)


@pytest.mark.parametrize("call", ["predict", "sample", "log_prob"])
def test_continuous_actions_have_no_mask(call: str) -> None:
    policy = BehaviorCloning(**SMALL).fit(random_log(continuous=True))
    more = {"actions": [[0.0, 5.0]]} if call == "log_prob" else {}
    with pytest.raises(TypeError, match="`action_mask` must be None with continuous actions, got one; leave it out"):
        getattr(policy, call)([[0.0, 1.0, 2.0]], **more, action_mask=[[True, True]])


def test_q_values_of_given_labels() -> None:
    policy = BCQ(**SMALL).fit(random_log())
    states = random_log(2, 2, seed=3).states
    table = policy.q_values(states)
    np.testing.assert_array_equal(policy.q_values(states, ["b", "a", "c", "c"]), table[range(4), [1, 0, 2, 2]])
    with pytest.raises(ValueError, match=r"BCQ.q_values: actions must be among the labels"):
        policy.q_values(states, ["nonsense"] * 4)


def test_a_continuous_policy_has_no_probabilities() -> None:
    policy = BehaviorCloning(**SMALL).fit(random_log(continuous=True))
    with pytest.raises(TypeError, match="was fitted to continuous actions and has no action probabilities"):
        policy.predict_proba([[0.0, 1.0, 2.0]])


def test_states_are_standardised_unless_told_otherwise() -> None:
    log = random_log()
    with_scale = BehaviorCloning(**SMALL).fit(log).origin_.states
    np.testing.assert_allclose(with_scale.shift, log.states.mean(axis=0))
    np.testing.assert_allclose(with_scale.scale, log.states.std(axis=0) + 1e-3)
    without = BehaviorCloning(**SMALL, normalize_states=False).fit(log).origin_.states
    np.testing.assert_array_equal(without.transform(log.states), log.states)
