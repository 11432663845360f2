"""TD3+BC: losses and gradients against plain loops, the delay, and what it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, random_log, same_gradients, unlike

from ope.neural.transitions import Batch
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policies.td3bc import TD3BC, TD3BCStep

ALPHAS = (0.4, 2.5)


def td3bc_step() -> tuple[TD3BCStep, Batch]:
    batch = batch_of(random_log(continuous=True), 2)
    step = TD3BC._step([TD3BC(hidden=(6,), gamma=0.9, alpha=alpha) for alpha in ALPHAS], batch.transitions, [0, 1])
    assert isinstance(step, TD3BCStep)
    unlike(step.q_target.network, step.actor_target)
    return step, batch


@torch.no_grad()
def test_targets_equal_a_plain_loop() -> None:
    step, batch = td3bc_step()
    noise = 5.0 * torch.randn(2, 24, 2, generator=torch.Generator().manual_seed(1))
    found = step.targets(batch, noise)
    clipped = 0
    for k in range(2):
        for i in range(24):
            smoothing = (0.2 * noise[k, i]).clamp(-0.5, 0.5)
            clipped += int((smoothing.abs() == 0.5).sum())
            action = (torch.tanh(plain(step.actor_target, k, batch.next_states[k, i])) + smoothing).clamp(-1, 1)
            x = torch.cat([batch.next_states[k, i], action])
            value = min(float(plain(step.q_target.network, 2 * k + m, x)[0]) for m in (0, 1))
            expected = float(batch.rewards[k, i] + 0.9 * batch.continues[k, i] * value)
            assert float(found[k, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert clipped > 10
    assert float(found[0, 1]) == float(batch.rewards[0, 1])


def test_critic_loss_and_gradients_equal_a_plain_loop() -> None:
    step, batch = td3bc_step()
    targets = torch.randn(2, 24, generator=torch.Generator().manual_seed(2))
    expected = []
    for k in range(2):
        loss = torch.zeros(())
        for m in (0, 1):
            terms = [
                (
                    plain(step.q.network, 2 * k + m, torch.cat([batch.states[k, i], batch.actions[k, i]]))[0]
                    - targets[k, i]
                )
                ** 2
                for i in range(24)
                if float(batch.bellman[k, i]) == 1.0
            ]
            assert len(terms) < 24
            loss = loss + torch.stack(terms).mean()
        expected.append(loss)
    same_gradients(step.q_loss(batch, targets), torch.stack(expected), [step.q.network])


def test_actor_loss_and_gradients_equal_a_plain_loop() -> None:
    step, batch = td3bc_step()
    expected = []
    for k, alpha in enumerate(ALPHAS):
        values, distances = [], []
        for i in range(24):
            action = torch.tanh(plain(step.actor, k, batch.states[k, i]))
            first = step.q.network.parameters.constants
            values.append(plain(step.q.network, 2 * k, torch.cat([batch.states[k, i], action]), first)[0])
            distances += [(action[j] - batch.actions[k, i, j]) ** 2 for j in (0, 1)]
        scale = alpha / (sum(abs(float(value.detach())) for value in values) / 24)
        expected.append(-scale * torch.stack(values).mean() + torch.stack(distances).mean())
    same_gradients(step.actor_loss(batch), torch.stack(expected), [step.actor])


def test_actor_and_targets_move_at_every_second_update_only() -> None:
    step, batch = td3bc_step()
    names = ("actor", "actor_target", "q_target")
    start = {name: step.networks[name].parameters.flat.clone() for name in (*names, "q")}
    step.update(batch)
    assert all(torch.equal(step.networks[name].parameters.flat, start[name]) for name in names)
    assert not torch.equal(step.q.network.parameters.flat, start["q"])
    step.update(batch)
    for online, target in (("q", "q_target"), ("actor", "actor_target")):
        expected = 0.995 * start[target] + 0.005 * step.networks[online].parameters.flat
        torch.testing.assert_close(step.networks[target].parameters.flat, expected)
    assert not torch.equal(step.actor.parameters.flat, start["actor"])


def test_states_are_standardised_when_it_acts_as_when_it_learned() -> None:
    log = random_log(continuous=True)
    learner = TD3BC(hidden=(6,), n_updates=4, batch_size=8).fit(log)
    x = (log.states - log.states.mean(axis=0)) / (log.states.std(axis=0) + 1e-3)
    scaled = torch.tanh(plain(learner.networks_["actor"], 0, torch.from_numpy(x).float())).numpy()
    low, high = log.actions.min(axis=0), log.actions.max(axis=0)
    np.testing.assert_allclose(
        learner.predict(log.states), (low + high) / 2 + (high - low) / 2 * scaled, rtol=1e-4, atol=1e-5
    )
    bounded = TD3BC(hidden=(6,), n_updates=4, batch_size=8, action_bounds=((-4.0, -90.0), (4.0, 95.0))).fit(log)
    assert bounded.origin_.actions is not None
    np.testing.assert_allclose(bounded.origin_.actions.inverse(np.array([[1.0, -1.0]])), [[4.0, -90.0]])


def test_defaults_are_the_papers() -> None:
    learner = TD3BC()
    assert (learner.alpha, learner.policy_noise, learner.noise_clip, learner.policy_delay) == (2.5, 0.2, 0.5, 2)
    assert (learner.hidden, learner.batch_size, learner.learning_rate, learner.tau) == ((256, 256), 256, 3e-4, 0.005)
    assert learner.normalize_states


def test_td3bc_beats_cloning_and_refuses_labels() -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    learner = TD3BC(**settings, gamma=0.9, tau=0.05, alpha=10.0, n_updates=300).fit(log)
    assert line_value(learner) > line_value(BehaviorCloning(**settings, n_updates=100).fit(log)) + 20.0
    with pytest.raises(TypeError, match="TD3BC: `data` must have continuous actions, got discrete ones; use CQL"):
        TD3BC().fit(random_log())
