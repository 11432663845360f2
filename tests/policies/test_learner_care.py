"""What a fit must not do: touch what it was not given, take one learner for another, or hide what went wrong."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import random_log, same_policy

from ope.dataset import LoggedDataset
from ope.neural.device import use_threads
from ope.neural.history import Outcome
from ope.neural.serialization import load_policy
from ope.policies import AWR, BCQ, BEAR, CQL, EDAC, IQL, LSPI, TD3BC, UWAC, BehaviorCloning
from ope.policies._discrete_bcq import constrained_argmax, log_threshold
from ope.policies._runs import LearnerEvent

TINY: dict[str, Any] = {"hidden": (8,), "n_updates": 12, "batch_size": 16, "log_every": 4, "learning_rate": 3e-3}


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(_: LearnerEvent) -> None:
    signal.raise_signal(signal.SIGINT)


# -------------------------------------------------------------------- many at once


def test_a_subclass_is_not_trained_as_its_parent() -> None:
    with pytest.raises(TypeError, match=r"TD3BC.fit_many: `learners` must hold TD3BC objects or seeds, got UWAC"):
        TD3BC.fit_many(random_log(4, continuous=True), [UWAC(**TINY)])


def test_all_learners_are_checked_before_any_is_trained() -> None:
    log, seen = random_log(4, continuous=True), list[LearnerEvent]()
    first = TD3BC(**TINY, callbacks=[seen.append])
    for flaw, error in (
        ({"tau": 5.0}, ValueError),
        ({"action_bounds": (0.0, 1.0)}, ValueError),
        ({"device": "no"}, ValueError),
    ):
        with pytest.raises(error, match="TD3BC: `"):
            TD3BC.fit_many(log, [first, TD3BC(**{**TINY, "hidden": (9,), **flaw})])
    assert not seen
    assert not hasattr(first, "status_")


def test_an_interruption_ends_all_groups_and_all_go_on() -> None:
    log = random_log(8)
    sizes = ((8,), (9,), (10,))
    whole = [BCQ(**{**TINY, "hidden": hidden}).fit(log) for hidden in sizes]
    learners = [BCQ(**{**TINY, "hidden": hidden}) for hidden in sizes]
    ordered = sorted(range(3), key=lambda i: learners[i]._group_key())
    # An earlier fit, and an earlier interruption, are not taken for this one.
    learners[ordered[2]].callbacks = [press]
    with pytest.warns(UserWarning, match="interrupted"):
        learners[ordered[2]].fit(random_log(8, seed=1))
    learners[ordered[2]].callbacks = None
    learners[ordered[1]].callbacks = [press]
    with pytest.warns(UserWarning, match="interrupted") as said:
        BCQ.fit_many(log, learners)
    assert [str(one.message)[:50] for one in said] == [
        "BCQ: training interrupted after 4 of 12 updates; w",
        "BCQ.fit_many: interrupted before 1 of 3 learners w",
    ]
    assert {one.filename for one in said} == {__file__}
    outcomes = [getattr(learners[i], "status_", None) for i in ordered]
    assert outcomes[0] is not None
    assert outcomes[0].outcome is Outcome.COMPLETED
    assert outcomes[1] is not None
    assert outcomes[1].outcome is Outcome.INTERRUPTED
    assert outcomes[2] is None
    learners[ordered[1]].callbacks = None
    for ours, theirs in zip(BCQ.fit_many(log, learners, resume=True), whole, strict=True):
        same_policy(ours, theirs)
    with pytest.raises(ValueError, match=r"BCQ.resume: no interrupted run is kept"):
        BCQ.fit_many(log, learners, resume=True)


def test_a_model_without_diversity_reports_none_beside_one_with() -> None:
    log = random_log(8, continuous=True)
    settings: dict[str, Any] = {**TINY, "n_critics": 3}
    sac_n, edac = EDAC.fit_many(log, [EDAC(**settings, eta=0.0), EDAC(**settings, eta=1.0)])
    assert (sac_n.history_["similarity"] == 0.0).all()
    assert (edac.history_["similarity"] != 0.0).all()


# -------------------------------------------------------------------- what went wrong is said


@pytest.mark.parametrize("log_every", [1, 5, 50])
def test_an_explosion_within_the_first_window_is_a_divergence(log_every: int) -> None:
    learner = TD3BC(**{**TINY, "n_updates": 50, "learning_rate": 1e4, "log_every": log_every})
    with pytest.warns(UserWarning, match="diverged: the loss became"):
        learner.fit(random_log(8, continuous=True))
    assert learner.status_.outcome is Outcome.DIVERGED
    assert learner.n_updates_ < 50


def test_the_first_loss_is_remembered_over_an_interruption(tmp_path: Path) -> None:
    log, path = random_log(8, continuous=True), tmp_path / "run"
    settings = {**TINY, "n_updates": 50, "log_every": 25, "learning_rate": 1e4}

    def cut(_: LearnerEvent) -> None:
        raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = TD3BC(**settings).fit(log)
        TD3BC(**{**settings, "log_every": 1, "learning_rate": 3e-3}, checkpoint_path=path, callbacks=[cut]).fit(log)
        gone_on = TD3BC(**{**settings, "log_every": 1, "learning_rate": 3e-3}).resume(log, path)
    assert whole.status_.outcome is Outcome.DIVERGED
    same_policy(gone_on, TD3BC(**{**settings, "log_every": 1, "learning_rate": 3e-3}).fit(log))


def test_a_callback_that_returns_an_array_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"BCQ: `callbacks` must return something true or false, got ndarray of shape \(2,\)"
    ):
        BCQ(**TINY, callbacks=[lambda _: np.zeros(2)]).fit(random_log(4))


@pytest.mark.filterwarnings("ignore:LSPI")
def test_scores_need_rows_and_the_right_log() -> None:
    log = random_log(8)
    open_ends = LoggedDataset.from_arrays(
        log.states[:4],
        np.array(["a", "b", "c", "a"]),
        np.ones(4),
        lengths=[1] * 4,
        ends="horizon",
        feature_names=["x", "y", "z"],
    )
    for learner in (BCQ(**TINY).fit(log), AWR(**TINY).fit(log), LSPI().fit(log)):
        with pytest.raises(
            ValueError, match=rf"{type(learner).__name__}.score: `data` must hold a transition with a Bellman"
        ):
            learner.score(open_ends)
    continuous = random_log(8, continuous=True)
    cloning = BehaviorCloning(**TINY, form="deterministic").fit(continuous)
    expected = -np.mean((cloning.predict(continuous.states) - continuous.actions) ** 2)
    assert cloning.score(continuous) == pytest.approx(expected)
    with pytest.raises(ValueError, match="`data` must have the actions of the fit"):
        cloning.score(log)
    with pytest.raises(ValueError, match="feature names must match"):
        cloning.score(continuous.replace(feature_names=("z", "y", "x")))
    with pytest.raises(TypeError, match=r"score: `data` must be a LoggedDataset, got ndarray"):
        cloning.score(continuous.states)  # type: ignore[arg-type]


def test_cql_must_do_more_than_its_warm_start() -> None:
    with pytest.raises(ValueError, match="CQL: `warm_start_updates` must be below `n_updates`, got 12 and 12"):
        CQL(**TINY, warm_start_updates=12).fit(random_log(4, continuous=True))


@pytest.mark.parametrize("hidden", [(True,), (8, False), (0,), (8.0,)])
def test_widths_are_counts(hidden: Any) -> None:
    with pytest.raises(ValueError, match="BCQ: `hidden` must be a tuple of widths"):
        BCQ(**{**TINY, "hidden": hidden}).fit(random_log(4))


# -------------------------------------------------------------------- logs that hardly vary


@pytest.mark.parametrize("n", [3, 6, 7, 12])
def test_a_constant_action_keeps_its_unit(n: int) -> None:
    actions = np.column_stack([np.full(n, 0.1), np.arange(n)])
    log = LoggedDataset.from_arrays(np.zeros((n, 1)), actions, np.zeros(n), lengths=[1] * n, ends="terminal")
    unit = BehaviorCloning()._action_standardizer(log)
    assert unit is not None
    np.testing.assert_allclose(unit.scale, [1.0, np.arange(n).std()])
    policy = BehaviorCloning(**TINY).fit(log)
    assert np.abs(policy.log_prob([[0.0]] * 2, [[0.1, 1.0], [0.1 + 1e-6, 1.0]])).max() < 20.0


def test_equal_returns_have_no_spread_whatever_their_rounding() -> None:
    rewards = [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]
    assert (0.1 + 0.2) + 0.3 != (0.3 + 0.2) + 0.1
    log = LoggedDataset.from_arrays(np.zeros((6, 1)), [0, 1, 0, 1, 0, 1], rewards, lengths=[3, 3], ends="terminal")
    assert IQL()._reward_scale(log) == 1.0


def test_the_most_probable_action_always_belongs_to_the_set() -> None:
    for tau in (0.5, 1.0 - 1e-8, 1.0 - 1e-16):
        bound = torch.tensor(log_threshold(tau), dtype=torch.float32)
        log_prob = torch.tensor([[0.1, 0.9 - 1e-7, 0.0], [0.2, 0.2, 0.6]]).log()
        assert constrained_argmax(torch.tensor([[9.0, 1.0, 9.0]] * 2), log_prob, bound).tolist() == [1, 2]
    log = random_log(8, masked=True)
    mask = np.array([[False, True, True]])
    assert BCQ(**TINY, threshold=1.0 - 1e-9).fit(log).predict_proba(log.states[:1], mask)[0, 0] == 0.0


# -------------------------------------------------------------------- settings after the fit


@pytest.mark.filterwarnings("ignore:LSPI")
@pytest.mark.parametrize(
    ("learner", "change"),
    [
        (BCQ(**TINY, threshold=0.0), {"threshold": 0.999, "gamma": 0.0}),
        (BCQ(**TINY, vae_hidden=(8,), perturbation=0.5), {"perturbation": 0.0, "gamma": 0.0}),
        (LSPI(), {"degree": 3, "gamma": 0.0}),
        (AWR(**TINY), {"gamma": 0.0, "td_lambda": 0.0}),
    ],
    ids=["threshold", "perturbation", "degree", "lambda"],
)
def test_a_policy_does_not_change_by_what_its_next_fit_is_to_use(
    learner: Any, change: dict[str, Any], tmp_path: Path
) -> None:
    log = random_log(12, continuous="perturbation" in change)
    learner.fit(log).save(tmp_path / "before")
    said, score = learner.predict(log.states), learner.score(log)
    learner.set_params(**change).save(tmp_path / "after")
    for policy in (learner, load_policy(tmp_path / "before"), load_policy(tmp_path / "after")):
        np.testing.assert_array_equal(policy.predict(log.states), said)
        assert policy.score(log) == pytest.approx(score)
    assert load_policy(tmp_path / "after").get_params()[next(iter(change))] == next(iter(change.values()))


@pytest.mark.parametrize("learner_class", [BCQ, BEAR])
def test_draws_for_acting_may_change_before_a_run_goes_on(learner_class: Any) -> None:
    log = random_log(8, continuous=True)
    settings: dict[str, Any] = {**TINY, "vae_hidden": (8,)} | (
        {"warm_start_updates": 2} if learner_class is BEAR else {}
    )
    learner = learner_class(**settings, n_act_samples=2, callbacks=[press])
    with pytest.warns(UserWarning, match="interrupted"):
        learner.fit(log)
    learner.set_params(n_act_samples=3, callbacks=None).resume(log)
    same_policy(learner, learner_class(**settings, n_act_samples=3).fit(log))


def test_bounds_may_be_arrays_and_are_stored(tmp_path: Path) -> None:
    log = random_log(8, continuous=True)
    bounds = (np.array([-9.0, -99.0]), np.array([9.0, 99.0]))
    learner = TD3BC(**TINY, action_bounds=bounds).fit(log)
    learner.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.get_params()["action_bounds"] == ((-9.0, -99.0), (9.0, 99.0))
    np.testing.assert_array_equal(loaded.predict(log.states), learner.predict(log.states))


def test_a_checkpoint_does_not_own_the_file_of_its_run(tmp_path: Path) -> None:
    learner = BCQ(**TINY, checkpoints=2, checkpoint_path=tmp_path / "run").fit(random_log(8))
    assert [checkpoint.checkpoint_path for checkpoint in learner.checkpoints_] == [None, None]
    assert learner.checkpoint_path == tmp_path / "run"


# -------------------------------------------------------------------- the process around it


@pytest.mark.parametrize("learner", [TD3BC(**TINY), BehaviorCloning(**TINY), CQL(**TINY), IQL(**TINY)], ids=repr)
def test_torch_may_have_another_default_type_and_no_gradients(learner: Any) -> None:
    log = random_log(8, continuous=True)
    expected = learner.fit(log).predict(log.states)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            np.testing.assert_array_equal(learner.fit(log).predict(log.states), expected)
        with torch.inference_mode():
            np.testing.assert_array_equal(learner.fit(log).predict(log.states), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_overlapping_blocks_leave_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    entered, leave = threading.Event(), threading.Event()

    def outlive() -> None:
        with use_threads(1):
            entered.set()
            leave.wait()

    found = []
    try:
        with use_threads(1):
            other = threading.Thread(target=outlive)
            other.start()
            entered.wait()
        leave.set()
        other.join()
        found.append(torch.get_num_threads())
        fresh = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        with use_threads(3):
            with use_threads(2):
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert found == [4, 4]
