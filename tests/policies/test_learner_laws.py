"""Laws that every learner obeys, with discrete and with continuous actions."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import random_log, same_policy

import ope.policies
from ope.dataset import LoggedDataset
from ope.neural.history import Outcome
from ope.neural.serialization import load_policy
from ope.policies._neural import NeuralLearner
from ope.policies._runs import LearnerEvent
from ope.policy import overlap
from ope.schema import End

TINY: dict[str, Any] = {"hidden": (6,), "n_updates": 24, "batch_size": 8, "log_every": 6, "learning_rate": 3e-3}
FEW: dict[str, Any] = {"n_action_samples": 2}
CLONED: dict[str, Any] = {"actor_hidden": (6,), "behavior_updates": 5, "warm_start_updates": 4}
# Learner, whether its actions are continuous, and what makes it small.
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "ATAC": ("ATAC", True, {"warm_start_updates": 9, "actor_learning_rate": 1e-3}),
    "AWAC": ("AWAC", False, {}),
    "AWAC continuous": ("AWAC", True, {}),
    "AWR": ("AWR", False, {"refresh": 5}),
    "AWR continuous": ("AWR", True, {"refresh": 5}),
    "BCQ": ("BCQ", False, {}),
    "BCQ continuous": ("BCQ", True, {"vae_hidden": (8,), "n_target_samples": 2, "n_act_samples": 4}),
    "BEAR": ("BEAR", True, {"vae_hidden": (8,), "n_match_samples": 2, "n_target_samples": 2, "warm_start_updates": 9}),
    "BRAC": ("BRAC", True, {**CLONED, "temperature": None, "min_weight": 0.75}),
    "BRAC discrepancy": ("BRAC", True, {**CLONED, "divergence": "mmd", "n_act_samples": 2}),
    "CQL": ("CQL", False, {}),
    "CQL continuous": ("CQL", True, {**FEW, "lagrange_threshold": 1.0}),
    "CRR": ("CRR", False, {"binary": True}),
    "CRR continuous": ("CRR", True, FEW),
    "DoubleDQN": ("DoubleDQN", False, {}),
    "EDAC": ("EDAC", True, {"n_critics": 3}),
    "IQL": ("IQL", False, {}),
    "IQL continuous": ("IQL", True, {}),
    "REM": ("REM", False, {"n_heads": 5}),
    "TD3BC": ("TD3BC", True, {}),
    "UWAC": ("UWAC", True, {"n_dropout_samples": 3}),
}
# Learners without target networks.
TARGETLESS = ("AWR",)


def make(name: str, **settings: Any) -> Any:
    class_name, _, small = CASES[name]
    return getattr(ope.policies, class_name)(**{**TINY, **small, **settings})


def log_of(name: str) -> LoggedDataset:
    return random_log(continuous=CASES[name][1])


def believed(learner: Any, log: LoggedDataset) -> Any:
    """What a learner believes of logged continuous actions, of all discrete ones, or of states where it has no Q."""
    return (
        learner.values(log.states)
        if hasattr(learner, "values")
        else learner.q_values(log.states, None if log.discrete else log.actions)
    )


def interrupt(event: LearnerEvent) -> None:
    if event.update == 12:
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", CASES)
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(name: str, tmp_path: Path) -> None:
    log, path = log_of(name), tmp_path / "run"
    whole = make(name, checkpoints=2).fit(log)
    learner = make(name, checkpoints=2, checkpoint_path=path, callbacks=[interrupt])
    with pytest.warns(UserWarning, match="training interrupted after 12 of 24 updates"):
        learner.fit(log)
    assert learner.status_.outcome is Outcome.INTERRUPTED
    resumed = make(name, checkpoints=2).resume(log, path)
    same_policy(resumed, whole)
    for ours, theirs in zip(resumed.checkpoints_, whole.checkpoints_, strict=True):
        same_policy(ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_many_side_by_side_are_what_each_is_alone(name: str) -> None:
    log = log_of(name)
    first, second = make(name), make(name, random_state=1, gamma=0.5, learning_rate=1e-3)
    alone = [copy.deepcopy(learner).fit(log) for learner in (first, second)]
    for ours, theirs in zip(type(first).fit_many(log, [first, second]), alone, strict=True):
        for key, network in ours.networks_.items():
            expected = theirs.networks_[key].parameters.flat
            torch.testing.assert_close(network.parameters.flat, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_file_holds_the_whole_policy(name: str, tmp_path: Path) -> None:
    log = log_of(name)
    learner = make(name, checkpoints=1).fit(log)
    learner.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    same_policy(loaded, learner)
    assert loaded.get_params() == learner.get_params()
    np.testing.assert_array_equal(loaded.predict(log.states), learner.predict(log.states))
    assert loaded.score(log) == learner.score(log)
    np.testing.assert_array_equal(learner.checkpoints_[0].predict(log.states), learner.predict(log.states))
    assert overlap(loaded, log) == log.n_episodes


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1]])
def test_continuous_actions_stay_within_the_bounds(name: str) -> None:
    log = log_of(name)
    low, high = log.actions.min(axis=0) - 0.1, log.actions.max(axis=0) + 0.1
    learner = make(name, action_bounds=(tuple(low.tolist()), tuple(high.tolist()))).fit(log)
    drawn = learner.sample(np.repeat(10.0 * log.states, 3, axis=0), 0)
    assert drawn.shape == (600, 2)
    assert (drawn >= low - 1e-9).all()
    assert (drawn <= high + 1e-9).all()


# -------------------------------------------------------------------- the three ends

# One state that leads to itself with reward 1: worth 1 before a terminal, 2 before any other end at gamma 1/2. A truncated
# end is the same to a learner as a horizon end: `Transitions` sees to that, and `test_learners` shows it.
FAST: dict[str, Any] = {"gamma": 0.5, "n_updates": 150, "learning_rate": 0.02, "tau": 0.2, "log_every": 50}
END_SETTINGS: dict[str, dict[str, Any]] = {
    "BRAC": {"alpha": 0.0, "temperature": 0.0},
    "BRAC discrepancy": {"alpha": 0.0},
    "EDAC": {"entropy_backup": False},
    "CQL": {"alpha": 0.0},
    "CQL continuous": {"alpha": 0.0, "lagrange_threshold": None},
    "IQL": {"reward_scale": 1.0},
    "IQL continuous": {"reward_scale": 1.0},
    # The smaller of two means over few thinned networks of 6 units is biased by their noise.
    "UWAC": {"dropout_rate": 0.02},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("end", "value"), [("terminal", 1.0), ("horizon", 2.0)])
def test_a_terminal_is_not_a_truncation(name: str, end: str, value: float) -> None:
    actions: Any = np.linspace(-1, 1, 20)[:, None] if CASES[name][1] else ["only"] * 20
    log = LoggedDataset.from_arrays(
        [[1.0]] * 20, actions, [1.0] * 20, lengths=[1] * 20, ends=end, final_states=[[1.0]] * 20
    )
    fast = {key: value for key, value in FAST.items() if key != "tau" or CASES[name][0] not in TARGETLESS}
    learner = make(name, **{**fast, **END_SETTINGS.get(name, {})}).fit(log)
    assert float(np.median(believed(learner, log))) == pytest.approx(value, abs=0.15)


@pytest.mark.parametrize("name", CASES)
def test_unknown_last_states_are_counted_and_teach_no_value(name: str) -> None:
    log = log_of(name)
    lost = int((log.ends != End.TERMINAL).sum())
    with pytest.warns(UserWarning, match=f"{lost} of 200 transitions end an episode that goes on"):
        learner: NeuralLearner = make(name).fit(log.replace(final_states=None))
    assert learner.n_excluded_transitions_ == lost


@pytest.mark.parametrize("name", CASES)
def test_states_are_standardised_as_in_training_when_the_policy_acts(name: str) -> None:
    log = log_of(name)
    learner = make(name, normalize_states=True).fit(log)
    moved = log.replace(states=3.0 * log.states + 5.0, final_states=3.0 * log.final_states + 5.0)  # type: ignore[operator]
    # Standard deviations move by a factor of 3, the 1e-3 beside them does not: equal up to that.
    other = make(name, normalize_states=True).fit(moved)
    wide = np.abs(log.states[:, 1]) < 20.0
    if CASES[name][1]:
        ours, theirs = learner.predict(log.states[wide]), other.predict(moved.states[wide])
        np.testing.assert_allclose(ours / log.actions.std(axis=0), theirs / log.actions.std(axis=0), atol=0.1)
    else:
        np.testing.assert_allclose(believed(learner, log), believed(other, moved), atol=0.1)
    ours, theirs = (believed(policy, log) for policy in (learner, other))
    assert not np.allclose(ours, theirs, rtol=0.1, atol=0.0)


# -------------------------------------------------------------------- many and killed runs


@pytest.mark.parametrize("name", ["ATAC", "BCQ continuous", "BRAC", "CQL continuous", "EDAC", "TD3BC"])
def test_many_with_twins_are_interrupted_and_resumed_together(name: str) -> None:
    log = log_of(name)
    whole = type(make(name)).fit_many(log, [make(name, random_state=seed) for seed in (0, 1)])
    learners = [make(name, random_state=seed, callbacks=[interrupt]) for seed in (0, 1)]
    with pytest.warns(UserWarning, match="interrupted"):
        type(learners[0]).fit_many(log, learners)
    for learner in learners:
        learner.set_params(callbacks=None)
    for ours, theirs in zip(type(learners[0]).fit_many(log, learners, resume=True), whole, strict=True):
        same_policy(ours, theirs)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_learner_laws import log_of, make
def kill(event):
    if event.update == 18:
        os.kill(os.getpid(), signal.SIGKILL)
make(sys.argv[2], checkpoint_path=sys.argv[3], callbacks=[kill]).fit(log_of(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    folder, path = str(Path(__file__).parent), tmp_path / "run"
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, name, str(path)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    same_policy(make(name).resume(log_of(name), path), make(name).fit(log_of(name)))


# -------------------------------------------------------------------- precision


@pytest.mark.parametrize("name", CASES)
def test_short_products_change_a_run_a_little_and_acting_not_at_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(name)
    whole, short = (make(name, hidden=(16, 16), precision=own).fit(log) for own in ("float32", "bfloat16"))
    flats = [
        torch.cat([own.networks_[key].parameters.flat.ravel() for key in sorted(own.networks_)])
        for own in (whole, short)
    ]
    assert not torch.equal(*flats)
    assert float((flats[0] - flats[1]).norm() / flats[0].norm()) < 0.1
    monkeypatch.setattr("ope.neural.perceptron.between_hidden_layers", lambda: None)
    expected = short.predict(log.states)
    monkeypatch.undo()
    np.testing.assert_array_equal(short.predict(log.states), expected)


def test_short_products_resume_to_the_same_bits_and_another_precision_does_not_resume(tmp_path: Path) -> None:
    log, path = log_of("IQL"), tmp_path / "run"
    whole = make("IQL", hidden=(16, 16), precision="bfloat16").fit(log)
    with pytest.warns(UserWarning, match="interrupted"):
        make("IQL", hidden=(16, 16), precision="bfloat16", checkpoint_path=path, callbacks=[interrupt]).fit(log)
    same_policy(make("IQL", hidden=(16, 16), precision="bfloat16").resume(log, path), whole)
    with pytest.raises(ValueError, match="precision"):
        make("IQL", hidden=(16, 16)).resume(log, path)


def test_learners_of_two_precisions_do_not_train_as_one() -> None:
    log = log_of("IQL")
    alone = [make("IQL", hidden=(16, 16), precision=own).fit(log) for own in ("float32", "bfloat16")]
    learners = [make("IQL", hidden=(16, 16), precision=own) for own in ("float32", "bfloat16")]
    for ours, theirs in zip(ope.policies.IQL.fit_many(log, learners), alone, strict=True):
        same_policy(ours, theirs)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="IQL: `precision` must be 'float32', 'tf32' or 'bfloat16', got 'half'"):
        make("IQL", hidden=(16, 16), precision="half").fit(log_of("IQL"))


def test_policies_that_callbacks_ask_act_in_32_bits() -> None:
    log, seen = log_of("IQL continuous"), []

    def ask(event: LearnerEvent) -> None:
        policy = event.policy()
        seen.append((policy, policy.predict(log.states)))

    make("IQL continuous", hidden=(64, 64), precision="bfloat16", callbacks=[ask]).fit(log)
    assert len(seen) == 4
    for policy, actions in seen:
        np.testing.assert_array_equal(policy.predict(log.states), actions)
