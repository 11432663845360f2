"""Learners: their losses against plain loops, their laws, and one small problem solved end to end."""

from __future__ import annotations

import copy
import math
import pickle
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch.nn import functional

from ope.dataset import LoggedDataset
from ope.neural.history import Outcome
from ope.neural.networks import MLP
from ope.neural.serialization import load_policy, write_sealed
from ope.neural.transitions import Batch, Transitions
from ope.policies._neural import NeuralLearner
from ope.policies._runs import LearnerEvent
from ope.policies.bcq import BCQ, BCQStep
from ope.policies.behavior_cloning import BehaviorCloning, CloningStep
from ope.policy import expectation, log_prob_logged, overlap, probabilities
from ope.schema import End

SMALL: dict[str, Any] = {"hidden": (16, 16), "n_updates": 120, "batch_size": 32, "log_every": 20, "learning_rate": 3e-3}
LEARNERS = [BCQ, BehaviorCloning]


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Interrupts are ignored where tests run in the background; these need them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def random_log(
    n_episodes: int = 40, length: int = 5, *, masked: bool = False, continuous: bool = False, seed: int = 0
) -> LoggedDataset:
    """Random walks with three actions (or two continuous ones), ends of all kinds, final states known."""
    rng = np.random.default_rng(seed)
    n = n_episodes * length
    codes = rng.integers(0, 3, n)
    mask = rng.random((n, 3)) < 0.7
    mask[np.arange(n), codes] = True
    final_mask = rng.random((n_episodes, 3)) < 0.7
    final_mask[:, 0] = True
    actions: npt.NDArray[Any] = (
        rng.normal(size=(n, 2)) * [1.0, 20.0] + [0.0, 5.0] if continuous else np.array(["a", "b", "c"])[codes]
    )
    return LoggedDataset.from_arrays(
        states=rng.normal(size=(n, 3)) * [1.0, 10.0, 0.1],
        actions=actions,
        rewards=rng.normal(size=n) + codes,
        lengths=[length] * n_episodes,
        ends=rng.choice([End.TERMINAL, End.HORIZON, End.TRUNCATED], n_episodes),
        final_states=rng.normal(size=(n_episodes, 3)),
        action_mask=mask if masked else None,
        final_action_mask=final_mask if masked else None,
        feature_names=["x", "y", "z"],
    )


def plain(network: MLP, k: int, x: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    h = x
    for layer in range(len(network.sizes) - 1):
        h = h @ parameters[f"weight{layer}"][k] + parameters[f"bias{layer}"][k, 0]
        if layer < len(network.sizes) - 2:
            h = torch.clamp(h, min=0.0)
    return h


# -------------------------------------------------------------------- losses against plain loops


def bcq_step(masked: bool) -> tuple[BCQStep, Transitions]:
    data = Transitions.from_dataset(random_log(masked=masked))
    learners = [
        BCQ(hidden=(8,), gamma=0.9, threshold=0.6, logit_penalty=0.01, random_state=0),
        BCQ(hidden=(8,), gamma=0.5, threshold=0.0, logit_penalty=0.3, random_state=1),
    ]
    step = BCQ._step(learners, data, [0, 1])
    assert isinstance(step, BCQStep)
    # A target network of its own, so that a target from the online network would be seen.
    step.q_target.initialize([torch.Generator().manual_seed(s) for s in (7, 8)])
    return step, data


def bcq_loss_of_model(
    step: BCQStep, batch: Batch, k: int, gamma: float, threshold: float, penalty: float
) -> torch.Tensor:
    """Compute the loss of the authors' code one transition at a time, without the ReLU on the imitation logits."""
    q_net, g_net = step.networks["q"].parameters.views, step.networks["imitation"].parameters.views
    td_terms, nll_terms, squares = [], [], []
    for i in range(batch.shape[1]):
        action = int(batch.actions[k, i])
        logits = plain(step.imitation, k, batch.states[k, i], g_net)
        squares.append((logits**2).mean())
        allowed = range(3) if batch.action_mask is None else torch.nonzero(batch.action_mask[k, i]).ravel().tolist()
        nll_terms.append(torch.logsumexp(logits[list(allowed)], 0) - logits[action])
        target = float(batch.rewards[k, i])
        if float(batch.continues[k, i]) == 1.0:
            with torch.no_grad():
                next_logits = plain(step.imitation, k, batch.next_states[k, i], g_net)
                next_q = plain(step.q, k, batch.next_states[k, i], q_net)
                target_q = plain(step.q_target, k, batch.next_states[k, i], step.q_target.parameters.views)
            mask = batch.next_action_mask
            available = [a for a in range(3) if mask is None or bool(mask[k, i, a])]
            probs = {a: math.exp(float(next_logits[a])) for a in available}
            supported = [a for a in available if probs[a] / max(probs.values()) > threshold]
            best = max(supported, key=lambda a: float(next_q[a]))
            target += gamma * float(target_q[best])
        error = plain(step.q, k, batch.states[k, i], q_net)[action] - target
        td_terms.append(0.5 * error**2 if abs(float(error.detach())) < 1 else error.abs() - 0.5)
    with_target = [term for term, known in zip(td_terms, batch.bellman[k], strict=True) if float(known) == 1.0]
    return torch.stack(with_target).mean() + torch.stack(nll_terms).mean() + penalty * torch.stack(squares).mean()


@pytest.mark.parametrize("masked", [False, True])
def test_bcq_loss_and_gradients_equal_a_plain_loop(masked: bool) -> None:
    step, data = bcq_step(masked)
    excluded = int(np.flatnonzero(random_log().ends == End.TRUNCATED)[0]) * 5 + 4
    data.bellman[excluded] = 0.0
    index = torch.tensor([[excluded, *range(0, 90, 2)], [*range(1, 92, 2)]])
    batch = Batch(data, index)
    assert float(batch.continues.min()) == 0.0
    found = step.losses(batch)["loss"]
    expected = torch.stack(
        [bcq_loss_of_model(step, batch, 0, 0.9, 0.6, 0.01), bcq_loss_of_model(step, batch, 1, 0.5, 0.0, 0.3)]
    )
    torch.testing.assert_close(found, expected)
    leaves = [view for name in ("q", "imitation") for view in step.networks[name].parameters.views.values()]
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_bcq_update_is_one_adam_step_then_one_polyak_step() -> None:
    step, data = bcq_step(False)
    batch = Batch(data, torch.arange(20).repeat(2, 1))
    views = [view for name in ("q", "imitation") for view in step.networks[name].parameters.views.values()]
    gradients = torch.autograd.grad(step.losses(batch)["loss"].sum(), views)
    before = [view.detach().clone() for view in views]
    target = step.q_target.parameters.flat.clone()
    step.update(batch)
    for old, new, gradient in zip(before, views, gradients, strict=True):
        # The first step of Adam: m / (sqrt(v) + eps) = g / (|g| + eps).
        torch.testing.assert_close(new.detach(), old - 3e-4 * gradient / (gradient.abs() + 1e-8), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(step.q_target.parameters.flat, 0.995 * target + 0.005 * step.q.parameters.flat)


def test_bcq_defaults_are_the_papers() -> None:
    learner = BCQ()
    assert (learner.gamma, learner.threshold, learner.tau, learner.logit_penalty) == (0.99, 0.3, 0.005, 0.01)
    assert (learner.hidden, learner.batch_size, learner.learning_rate) == ((256, 256), 256, 3e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_discrete_cloning_loss_equals_a_plain_loop(masked: bool) -> None:
    data = Transitions.from_dataset(random_log(masked=masked))
    step = BehaviorCloning._step([BehaviorCloning(hidden=(8,)), BehaviorCloning(hidden=(8,))], data, [0, 1])
    assert isinstance(step, CloningStep)
    batch = Batch(data, torch.tensor([range(30), range(30, 60)]))
    expected = []
    for k in range(2):
        terms = []
        for i in range(30):
            logits = plain(step.policy, k, batch.states[k, i], step.policy.parameters.views)
            available = [a for a in range(3) if batch.action_mask is None or bool(batch.action_mask[k, i, a])]
            total = sum((torch.exp(logits[a]) for a in available), torch.zeros(()))
            terms.append(torch.log(total) - logits[int(batch.actions[k, i])])
        expected.append(torch.stack(terms).mean())
    check_loss(step, batch, torch.stack(expected))


def test_gaussian_cloning_loss_equals_a_plain_loop() -> None:
    data = Transitions.from_dataset(random_log(continuous=True))
    step = BehaviorCloning._step([BehaviorCloning(hidden=(8,)), BehaviorCloning(hidden=(8,))], data, [0, 1])
    assert isinstance(step, CloningStep)
    batch = Batch(data, torch.tensor([range(30), range(30, 60)]))
    expected = []
    for k in range(2):
        terms = []
        for i in range(30):
            output = plain(step.policy, k, batch.states[k, i], step.policy.parameters.views)
            std = torch.exp(-5 + 3.5 * (1 + torch.tanh(output[2:])))
            z = (batch.actions[k, i] - output[:2]) / std
            terms.append((z**2 / 2 + torch.log(std * math.sqrt(2 * math.pi))).sum())
        expected.append(torch.stack(terms).mean())
    check_loss(step, batch, torch.stack(expected))


def check_loss(step: CloningStep, batch: Batch, expected: torch.Tensor) -> None:
    found = step.losses(batch)["loss"]
    torch.testing.assert_close(found, expected)
    leaves = list(step.policy.parameters.views.values())
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


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
    assert float(np.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)
    rows = log.select(slice(0, 50)).rows()
    nodes = policy.quadrature_rows(rows)
    assert nodes is not None
    np.testing.assert_allclose(np.einsum("m,mnk->nk", nodes[1], nodes[0]), policy.predict(rows.states))
    np.testing.assert_array_equal(log_prob_logged(policy, log), policy.log_prob(states, actions))
    second_moment = expectation(policy, log, lambda _, a: np.zeros(2000) if a is None else a[:, 0] ** 2)
    at_half = float(np.trapezoid(density * grid**2, grid))
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


def same_policy(one: NeuralLearner, other: NeuralLearner) -> None:
    assert set(one.networks_) == set(other.networks_)
    for name, network in one.networks_.items():
        assert torch.equal(network.parameters.flat, other.networks_[name].parameters.flat)
    assert one.history_.equals(other.history_)


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


def test_bcq_refuses_continuous_actions() -> None:
    with pytest.raises(TypeError, match="BCQ: `data` must have discrete actions, got continuous ones"):
        BCQ(**SMALL).fit(random_log(continuous=True))


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
    with pytest.raises(ValueError, match="feature names must match"):
        policy.predict(pd.DataFrame([[0.0, 1.0, 2.0]], columns=["z", "y", "x"]))
    with pytest.raises(ValueError, match="actions must be among the labels"):
        policy.log_prob([[0.0, 1.0, 2.0]], ["d"])
    masks: Sequence[Any] = ([[True, False]], [[False] * 3], [True] * 3)
    for mask in masks:
        with pytest.raises(ValueError, match="`action_mask` must have a column for each of the labels"):
            policy.predict([[0.0, 1.0, 2.0]], mask)
    with pytest.raises(ValueError, match="`action_mask` must have a row for each of 1 states, got 2"):
        policy.predict([[0.0, 1.0, 2.0]], [[True] * 3] * 2)
    renamed = random_log().replace(feature_names=("x", "z", "y"))
    with pytest.raises(ValueError, match="feature names must match"):
        log_prob_logged(policy, renamed)


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


def test_smooth_l1_has_its_corner_at_one() -> None:
    # The loss of torch that the learner uses and the formula of the plain loop agree by definition of beta = 1.
    errors = torch.tensor([0.5, 3.0])
    assert functional.smooth_l1_loss(errors, torch.zeros(2), reduction="none").tolist() == [0.125, 2.5]
