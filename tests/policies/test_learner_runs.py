"""Files, interruption and resumption, divergence and callbacks of learners."""

from __future__ import annotations

import copy
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learner_logs import LEARNERS, SMALL, random_log, same_policy
from sklearn.exceptions import NotFittedError

from ope.neural.history import Outcome
from ope.neural.serialization import load_policy, write_sealed
from ope.policies._runs import LearnerEvent
from ope.policies.bcq import BCQ
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policy import log_prob_logged, overlap


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Interrupts are ignored where tests run in the background; these need them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# -------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("learner_class", "continuous"), [(BCQ, False), (BehaviorCloning, False), (BehaviorCloning, True)]
)
def test_saved_and_loaded_is_the_same_policy(learner_class: Any, continuous: bool, tmp_path: Path) -> None:
    log = random_log(continuous=continuous)
    settings = {
        **SMALL,
        "random_state": np.int64(3),
        "checkpoint_path": tmp_path / "run",
        "callbacks": [lambda _: None],
    }
    policy = learner_class(**settings).fit(log)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert type(loaded) is learner_class
    expected = {**policy.get_params(), "callbacks": None, "checkpoint_path": str(tmp_path / "run")}
    assert loaded.get_params() == expected
    same_policy(loaded, policy)
    np.testing.assert_array_equal(loaded.predict(log.states), policy.predict(log.states))
    np.testing.assert_array_equal(log_prob_logged(loaded, log), log_prob_logged(policy, log))
    np.testing.assert_array_equal(loaded.training_episode_keys_, np.sort(log.episode_keys))
    assert loaded.labels is None if continuous else loaded.labels.dtype == np.dtype("<U1")
    assert loaded.status_ == policy.status_
    assert loaded.feature_names_in_.tolist() == ["x", "y", "z"]
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "policy").read_bytes()


def test_altered_policy_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    BCQ(**SMALL).fit(random_log()).save(path)
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        changed = bytearray(content)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="load_policy: `path` must name"):
            load_policy(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="load_policy: `path` must name an intact file"):
        load_policy(path)


def test_what_cannot_be_stored_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match=r"BCQ is not fitted; call fit\(data\)"):
        BCQ().save(tmp_path / "policy")
    policy = BCQ(**SMALL).fit(random_log())
    policy.progress = object()  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"BCQ.save: `progress` must be a number, string, tuple or None"):
        policy.save(tmp_path / "policy")


# -------------------------------------------------------------------- interruption and resumption


def interrupt_at(update: int) -> Any:
    def callback(event: LearnerEvent) -> None:
        if event.update == update:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("learner_class", LEARNERS)
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(learner_class: Any) -> None:
    log = random_log()
    whole = learner_class(**SMALL, checkpoints=4).fit(log)
    learner = learner_class(**SMALL, checkpoints=4, callbacks=[interrupt_at(60)])
    with pytest.warns(UserWarning, match=f"{learner_class.__name__}: training interrupted after 60 of 120 updates"):
        learner.fit(log)
    assert learner.status_.outcome is Outcome.INTERRUPTED
    assert learner.n_updates_ == 60
    same_policy(learner, learner_class(**{**SMALL, "n_updates": 60}).fit(log))
    learner = pickle.loads(pickle.dumps(learner.set_params(callbacks=None))).resume(log)
    same_policy(learner, whole)
    assert learner.status_ == whole.status_
    for ours, theirs in zip(learner.checkpoints_, whole.checkpoints_, strict=True):
        same_policy(ours, theirs)
    assert not hasattr(learner, "training_state_")


def test_ctrl_c_keeps_what_was_learned() -> None:
    log = random_log()

    def press(event: LearnerEvent) -> None:
        if event.update == 40:
            signal.raise_signal(signal.SIGINT)

    learner = BCQ(**SMALL, callbacks=[press])
    with pytest.warns(UserWarning, match="what was learned is kept, and `resume` goes on from there"):
        learner.fit(log)
    assert learner.predict_proba(log.states).shape == (200, 3)
    same_policy(learner.resume(log), BCQ(**SMALL).fit(log))


def test_a_run_resumes_from_its_file_in_another_object(tmp_path: Path) -> None:
    log, path = random_log(), tmp_path / "run"
    with pytest.warns(UserWarning, match="interrupted"):
        BCQ(**SMALL, checkpoints=4, checkpoint_path=path, callbacks=[interrupt_at(80)]).fit(log)
    resumed = BCQ(**SMALL, checkpoints=4).resume(log, path)
    same_policy(resumed, BCQ(**SMALL, checkpoints=4).fit(log))
    assert [checkpoint.n_updates_ for checkpoint in resumed.checkpoints_] == [30, 60, 90, 120]


def test_a_finished_run_may_train_for_longer(tmp_path: Path) -> None:
    log, path = random_log(), tmp_path / "run"
    BCQ(**SMALL, checkpoint_path=path).fit(log)
    longer = {**SMALL, "n_updates": 200}
    same_policy(BCQ(**longer).resume(log, path), BCQ(**longer).fit(log))


def test_a_run_that_a_callback_stopped_goes_on_without_callbacks(tmp_path: Path) -> None:
    log, path = random_log(), tmp_path / "run"
    stopped = BCQ(**SMALL, checkpoint_path=path, callbacks=[lambda event: event.update == 40]).fit(log)
    again = BCQ(**SMALL, callbacks=[lambda _: False]).resume(log, path)
    assert (again.n_updates_, again.status_.outcome) == (40, Outcome.STOPPED)
    same_policy(again, stopped)
    same_policy(BCQ(**SMALL).resume(log, path), BCQ(**SMALL).fit(log))
    with pytest.raises(ValueError, match="its checkpoint file, which runs that a callback stopped need too"):
        stopped.resume(log)


def test_many_are_interrupted_and_resumed_together(tmp_path: Path) -> None:
    log = random_log()
    whole = BCQ.fit_many(log, [BCQ(**SMALL, random_state=seed) for seed in (0, 1)])
    learners = [
        BCQ(**SMALL, random_state=seed, callbacks=[interrupt_at(60)], checkpoint_path=tmp_path / str(seed))
        for seed in (0, 1)
    ]
    with pytest.warns(UserWarning, match="interrupted"):
        BCQ.fit_many(log, learners)
    for learner in learners:
        learner.set_params(callbacks=None)
    alone = copy.deepcopy(learners[1]).resume(log)
    for ours, theirs in zip(BCQ.fit_many(log, learners, resume=True), whole, strict=True):
        same_policy(ours, theirs)
    np.testing.assert_allclose(alone.history_, whole[1].history_, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="`checkpoint_path` must be another file for each learner"):
        BCQ.fit_many(log, [BCQ(**SMALL, random_state=seed, checkpoint_path=tmp_path / "run") for seed in (0, 1)])


def test_only_the_same_run_resumes(tmp_path: Path) -> None:
    log, path = random_log(), tmp_path / "run"
    with pytest.raises(ValueError, match=r"BCQ.resume: no interrupted run is kept; call fit"):
        BCQ(**SMALL).resume(log)
    BCQ(**SMALL, checkpoint_path=path).fit(log)
    with pytest.raises(ValueError, match="must be the log of the run, got another one"):
        BCQ(**SMALL).resume(random_log(seed=1), path)
    relabelled = log.replace(action_labels=np.array(["a", "b", "d"]))
    with pytest.raises(ValueError, match="must be the log of the run, got another one"):
        BCQ(**SMALL).resume(relabelled, path)
    with pytest.raises(ValueError, match=r"settings must be those of the run \(gamma=0.99, tau=0.005\)"):
        BCQ(**SMALL, gamma=0.5, tau=0.1).resume(log, path)
    with pytest.raises(ValueError, match="`n_updates` must be at least the 120 updates done, got 50"):
        BCQ(**{**SMALL, "n_updates": 50}).resume(log, path)
    with pytest.raises(ValueError, match="the run must be one of BehaviorCloning, got one of BCQ"):
        BehaviorCloning(**SMALL).resume(log, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"BCQ.resume: `path` must name an intact file"):
        BCQ(**SMALL).resume(log, path)
    write_sealed(path, "thing", {}, {})
    with pytest.raises(ValueError, match=r"of kind 'ope-training', got .* of kind 'thing'"):
        BCQ(**SMALL).resume(log, path)


# -------------------------------------------------------------------- divergence and callbacks


def test_divergence_is_said_and_the_last_sound_policy_kept() -> None:
    log = random_log()
    huge = log.replace(rewards=log.rewards * 1e30)
    learner = BCQ(**{**SMALL, "n_updates": 5000, "gamma": 1.0, "learning_rate": 1e30})
    with pytest.warns(UserWarning, match="BCQ: training diverged: .* lower the learning rate, or scale the rewards"):
        learner.fit(huge)
    assert learner.status_.outcome is Outcome.DIVERGED
    assert learner.predict_proba(log.states).sum() == 200


def test_a_callback_evaluates_the_policy_learned_so_far_and_stops(tmp_path: Path) -> None:
    log, seen = random_log(), []

    def stop_at_60(event: LearnerEvent) -> bool:
        seen.append((event.update, event.n_updates, event.policy(), event.metrics))
        return event.update >= 60

    learner = BCQ(**SMALL, callbacks=[stop_at_60]).fit(log)
    assert [entry[:2] for entry in seen] == [(20, 120), (40, 120), (60, 120)]
    for update, _, policy, metrics in seen:
        shorter = BCQ(**{**SMALL, "n_updates": update}).fit(log)
        np.testing.assert_array_equal(policy.predict_proba(log.states), shorter.predict_proba(log.states))
        assert metrics["loss"] == shorter.history_["loss"].iloc[-1]
        assert overlap(policy, log) == 40
    policy.save(tmp_path / "policy")
    np.testing.assert_array_equal(load_policy(tmp_path / "policy").predict(log.states), policy.predict(log.states))
    assert str(learner.status_) == "stopped by a callback after 60 of 120 updates"


def test_each_of_many_stops_by_its_own_callback() -> None:
    log = random_log()
    learners = [BCQ(**SMALL), BCQ(**SMALL, random_state=1, callbacks=[lambda event: event.update == 40])]
    fitted = BCQ.fit_many(log, learners)
    assert [learner.n_updates_ for learner in fitted] == [120, 40]
