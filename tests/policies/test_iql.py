"""IQL: losses and gradients against plain loops, the order of its updates, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, random_log, same_gradients, unlike
from scipy.integrate import trapezoid

from ope.neural.transitions import Batch
from ope.policies._iql_step import IQLStep, cosine_decay, imitation_weight
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policies.iql import IQL

EXPECTILES, BETAS = (0.7, 0.95), (0.5, 3.0)


def iql_step(*, continuous: bool, masked: bool = False) -> tuple[IQLStep, Batch]:
    batch = batch_of(random_log(continuous=continuous, masked=masked), 2)
    learners = [IQL(hidden=(6,), gamma=0.9, expectile=e, beta=b) for e, b in zip(EXPECTILES, BETAS, strict=True)]
    step = IQL._step(learners, batch.transitions, [0, 1])
    assert isinstance(step, IQLStep)
    unlike(step.q_target.network)
    return step, batch


def q_of(step: IQLStep, batch: Batch, k: int, member: int, i: int, *, target: bool) -> torch.Tensor:
    network = (step.q_target if target else step.q).network
    if batch.transitions.discrete:
        return plain(network, 2 * k + member, batch.states[k, i])[batch.actions[k, i]]
    return plain(network, 2 * k + member, torch.cat([batch.states[k, i], batch.actions[k, i]]))[0]


def q_min_of(step: IQLStep, batch: Batch) -> torch.Tensor:
    rows = [
        [min(q_of(step, batch, k, m, i, target=True).detach() for m in (0, 1)) for i in range(batch.shape[1])]
        for k in (0, 1)
    ]
    return torch.tensor([[float(q) for q in row] for row in rows])


@pytest.mark.parametrize("continuous", [False, True])
def test_value_loss_and_gradients_equal_a_plain_loop(continuous: bool) -> None:
    step, batch = iql_step(continuous=continuous)
    expected = []
    for k, tau in enumerate(EXPECTILES):
        terms = []
        for i, q in enumerate(q_min_of(step, batch)[k]):
            u = q - plain(step.v, k, batch.states[k, i])[0]
            terms.append((tau if float(u.detach()) >= 0 else 1 - tau) * u**2)
        expected.append(torch.stack(terms).mean())
    q_min = step.logged_q(batch, target=True).amin(dim=1).detach()
    same_gradients(step.v_loss(batch, q_min), torch.stack(expected), [step.v])


@pytest.mark.parametrize("continuous", [False, True])
def test_critic_loss_and_gradients_equal_a_plain_loop(continuous: bool) -> None:
    step, batch = iql_step(continuous=continuous)
    expected = []
    for k in (0, 1):
        loss = torch.zeros(())
        for m in (0, 1):
            terms = []
            for i in range(batch.shape[1]):
                after = plain(step.v, k, batch.next_states[k, i])[0].detach() * batch.continues[k, i]
                error = batch.rewards[k, i] + 0.9 * after - q_of(step, batch, k, m, i, target=False)
                if float(batch.bellman[k, i]) == 1.0:
                    terms.append(error**2)
            loss = loss + torch.stack(terms).mean()
        expected.append(loss)
    same_gradients(step.q_loss(batch), torch.stack(expected), [step.q.network])


@pytest.mark.parametrize(("continuous", "masked"), [(False, False), (False, True), (True, False)])
def test_actor_loss_and_gradients_equal_a_plain_loop(continuous: bool, masked: bool) -> None:
    step, batch = iql_step(continuous=continuous, masked=masked)
    if continuous:
        step.actor.parameters.constants["log_std"].copy_(torch.tensor([[[-0.3, 4.0]], [[0.2, 0.1]]]))
    q_min = q_min_of(step, batch)
    expected = []
    for k, beta in enumerate(BETAS):
        terms = []
        for i in range(batch.shape[1]):
            advantage = float(q_min[k, i]) - float(plain(step.v, k, batch.states[k, i])[0].detach())
            output = plain(step.actor, k, batch.states[k, i])
            if continuous:
                # tanh on the mean, no squashing of the action; the standard deviation knows no state.
                std = torch.exp(step.actor.parameters.views["log_std"][k, 0].clamp(-5, 2))
                z = (batch.actions[k, i] - torch.tanh(output)) / std
                log_prob = (-(z**2) / 2 - torch.log(std * math.sqrt(2 * math.pi))).sum()
            else:
                mask = batch.action_mask
                total = sum(
                    (torch.exp(output[a]) for a in range(3) if mask is None or bool(mask[k, i, a])), torch.zeros(())
                )
                log_prob = output[batch.actions[k, i]] - torch.log(total)
            terms.append(-min(math.exp(beta * advantage), 100.0) * log_prob)
        expected.append(torch.stack(terms).mean())
    same_gradients(step.actor_loss(batch, q_min), torch.stack(expected), [step.actor])


def test_actor_and_critics_see_the_value_network_just_updated() -> None:
    step, batch = iql_step(continuous=True)
    before = {name: network.copy() for name, network in step.networks.items()}
    metrics = step.update(batch)
    after = step.v.copy()
    assert not torch.equal(after.parameters.flat, before["v"].parameters.flat)
    found = {}
    # With the networks of before, but this V: the losses that the update reported are those of the new one.
    for name, v in (("old", before["v"]), ("new", after)):
        twin, _ = iql_step(continuous=True)
        for key, network in before.items():
            twin.networks[key].parameters.copy_from(network.parameters)
        twin.v.parameters.copy_from(v.parameters)
        q_min = twin.logged_q(batch, target=True).amin(dim=1).detach()
        found[name] = (twin.v_loss(batch, q_min), twin.actor_loss(batch, q_min), twin.q_loss(batch))
    reported = metrics["v_loss"], metrics["actor_loss"], metrics["loss"]
    for metric, old, new, uses_new in zip(reported, found["old"], found["new"], (False, True, True), strict=True):
        torch.testing.assert_close(metric, (new if uses_new else old).detach())
        assert not torch.allclose(old, new, rtol=1e-6)
    online, target = step.q.network.parameters.flat, before["q_target"].parameters.flat
    torch.testing.assert_close(step.q_target.network.parameters.flat, 0.995 * target + 0.005 * online)


def test_weights_are_capped_and_the_actor_rate_falls_to_zero() -> None:
    assert imitation_weight(torch.tensor([-1.0, 0.0, 1.0, 50.0]), 3.0).tolist() == pytest.approx(
        [math.exp(-3), 1.0, math.exp(3), 100.0]
    )
    assert [cosine_decay(t, 10) for t in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])
    step, batch = iql_step(continuous=True)
    step.n_updates = 4
    rates = []
    for _ in range(4):
        step.update(batch)
        rates.append(step.actor_adam._groups[0].rate)
    assert rates == pytest.approx([3e-4 * 0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)])
    assert step.v_adam._groups[0].rate == 3e-4


def test_rewards_are_scaled_by_the_spread_of_returns() -> None:
    log = random_log()
    returns = [log.rewards[a:b].sum() for a, b in zip(log.offsets[:-1], log.offsets[1:], strict=True)]
    assert IQL()._reward_scale(log) == pytest.approx(1000.0 / (max(returns) - min(returns)))
    assert IQL(reward_scale=0.5)._reward_scale(log) == 0.5
    assert IQL()._reward_scale(log.replace(rewards=np.zeros(len(log)))) == 1.0
    learner = IQL(hidden=(6,), n_updates=3, batch_size=8, reward_scale=4.0).fit(log)
    x = torch.tensor(log.states, dtype=torch.float32)
    expected = learner.networks_["q"](x).amin(dim=0) / 4.0
    np.testing.assert_allclose(learner.q_values(log.states), expected.double(), rtol=1e-6)


def test_a_finished_run_cannot_be_prolonged(tmp_path: Any) -> None:
    log, path = random_log(), tmp_path / "run"
    IQL(hidden=(6,), n_updates=4, batch_size=8, checkpoint_path=path).fit(log)
    with pytest.raises(ValueError, match=r"settings must be those of the run \(n_updates=4\)"):
        IQL(hidden=(6,), n_updates=8, batch_size=8).resume(log, path)


def test_defaults_are_the_papers() -> None:
    learner = IQL()
    assert (learner.expectile, learner.beta, learner.reward_scale, learner.gamma) == (0.7, 3.0, None, 0.99)
    assert (learner.hidden, learner.learning_rate, learner.tau) == ((256, 256), 3e-4, 0.005)
    assert not learner.normalize_states


def test_iql_beats_cloning_and_its_density_lies_within_the_bounds() -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    learner = IQL(
        **settings, gamma=0.9, beta=1.0, expectile=0.9, reward_scale=1.0, tau=0.05, n_updates=300, action_bounds=(-1, 1)
    ).fit(log)
    cloned = BehaviorCloning(**settings, n_updates=100).fit(log)
    assert line_value(learner) > line_value(cloned) + 20.0
    assert float(np.abs(learner.sample(np.repeat(log.states, 5, axis=0), 0)).max()) <= 1.0
    grid = np.linspace(-1.0, 1.0, 2001)
    density = np.exp(learner.log_prob(np.full((2001, 1), 0.5), grid))
    assert float(trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-5)
    assert float(trapezoid(density * grid, grid)) == pytest.approx(float(learner.predict([[0.5]])[0, 0]), abs=1e-5)
    assert np.isneginf(learner.log_prob([[0.5]], [[1.01]]))
    learner.set_params(deterministic=True)
    expected = torch.tanh(learner.networks_["actor"](torch.tensor([[0.5]])))
    np.testing.assert_allclose(learner.predict([[0.5]]), expected[0], rtol=1e-5)
