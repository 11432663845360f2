"""ATAC: losses and gradients against plain loops, projection, warm start, and never worse than the behaviour."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import (
    batch_of,
    line_behavior,
    line_log,
    line_step,
    line_value,
    plain,
    random_log,
    same_gradients,
    unlike,
)

from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._atac_step import ATACStep, normalized_sum, project
from ope.policies.atac import ATAC

BETAS = (0.25, 8.0)


def atac_step(**settings: Any) -> tuple[ATACStep, Batch]:
    batch = batch_of(random_log(continuous=True), 2)
    values = {"hidden": (6,), "gamma": 0.3, "warm_start_updates": 0, **settings}
    step = ATAC._step([ATAC(**values, beta=beta) for beta in BETAS], batch.transitions, [0, 1])
    assert isinstance(step, ATACStep)
    unlike(step.q_target.network)
    return step, batch


def test_critic_loss_and_gradients_equal_a_plain_loop() -> None:
    step, batch = atac_step()
    rewards, rng = batch.transitions.rewards, torch.Generator().manual_seed(1)
    low, high = min(0.0, float(rewards.min())) / 0.7, max(0.0, float(rewards.max())) / 0.7
    actions, following = torch.rand(2, 24, 2, generator=rng) * 2 - 1, torch.rand(2, 24, 2, generator=rng) * 2 - 1
    parts = step.critic_losses(batch, actions, following)
    found = normalized_sum(parts["pessimism"], parts["bellman"], step.beta)
    n_clipped = 0
    expected = []
    for k, beta in enumerate(BETAS):
        twins = []
        for m in (0, 1):
            gap, bellman = [], []
            for i in range(24):
                f = plain(step.q.network, 2 * k + m, torch.cat([batch.states[k, i], batch.actions[k, i]]))[0]
                gap.append(plain(step.q.network, 2 * k + m, torch.cat([batch.states[k, i], actions[k, i]]))[0] - f)
                after = torch.cat([batch.next_states[k, i], following[k, i]])
                target = min(plain(step.q_target.network, 2 * k + j, after)[0].detach() for j in (0, 1))
                own = plain(step.q.network, 2 * k + m, after)[0]
                backups = [batch.rewards[k, i] + 0.3 * batch.continues[k, i] * value for value in (target, own)]
                n_clipped += int(float(backups[0]) < low or float(backups[0]) > high)
                if float(batch.bellman[k, i]) == 1.0:
                    bellman.append(sum(0.5 * (f - backup.clamp(low, high)) ** 2 for backup in backups))
            pessimism, fit = torch.stack(gap).mean(), torch.stack([torch.as_tensor(term) for term in bellman]).mean()
            twins.append(pessimism / beta + fit if beta > 1 else pessimism + beta * fit)
        expected.append(torch.stack(twins))
    same_gradients(found, torch.stack(expected), [step.q.network])


def test_values_are_clipped_to_what_rewards_can_add_up_to() -> None:
    step, batch = atac_step()
    least, most = float(batch.transitions.rewards.min()), float(batch.transitions.rewards.max())
    assert least < 0.0 < most
    for value, bound in ((1e6, most / 0.7), (-1e6, least / 0.7)):
        found = step.backup(batch, torch.full((2, 2, 24), value))
        follows = batch.continues.bool().unsqueeze(1).expand_as(found)
        torch.testing.assert_close(found[follows], torch.full_like(found[follows], bound))
        torch.testing.assert_close(found[:, 0, 1], batch.rewards[:, 1])
    unbounded, batch = atac_step(gamma=1.0)
    assert math.isinf(float(unbounded.low[0]))
    assert float(unbounded.backup(batch, torch.full((2, 2, 24), 1e6)).max()) > 1e5


def test_actor_losses_and_gradients_equal_plain_autograd() -> None:
    step, batch = atac_step()
    noise = torch.randn(2, 24, 2, generator=torch.Generator().manual_seed(3))
    step.normal = lambda *_: noise  # type: ignore[method-assign]
    step.log_temperature.data.copy_(torch.tensor([[-1.0], [0.5]]))
    normal: Any = torch.distributions.Normal
    expected = []
    for k, temperature in enumerate((math.exp(-1.0), math.exp(0.5))):
        output = plain(step.actor, k, batch.states[k])
        mean, std = output[:, :2], output[:, 2:].clamp(-5, 2).exp()
        u = mean + std * noise[k]
        density = (normal(mean, std).log_prob(u) + 2 * torch.log(torch.cosh(u))).sum(dim=1).mean()
        x = torch.cat([batch.states[k], torch.tanh(u)], dim=1)
        value = plain(step.q.network, 2 * k, x, step.q.network.parameters.constants).mean()
        expected.append(-value / temperature + density if temperature > 1 else -value + temperature * density)
    same_gradients(step.actor_loss(batch, *step.draw(batch.states)), torch.stack(expected), [step.actor])


def test_cloning_loss_and_gradients_equal_plain_autograd() -> None:
    step, batch = atac_step()
    normal: Any = torch.distributions.Normal
    expected = []
    for k in range(2):
        output = plain(step.actor, k, batch.states[k])
        u = torch.atanh(batch.actions[k].clamp(-1 + 1e-6, 1 - 1e-6))
        density = normal(output[:, :2], output[:, 2:].clamp(-5, 2).exp()).log_prob(u) + 2 * torch.log(torch.cosh(u))
        expected.append(-density.sum(dim=1).mean())
    same_gradients(step.cloning_loss(batch), torch.stack(expected), [step.actor])


def test_every_weight_matrix_is_projected_after_each_step() -> None:
    network = MLP([3, 4, 1], n_models=2).initialize([torch.Generator().manual_seed(0)] * 2)
    before = [weight.clone() for weight in network.weights]
    project(network, 0.5)
    for old, new in zip(before, network.weights, strict=True):
        for one, other in zip(old, new, strict=True):
            norm = float(one.norm())
            torch.testing.assert_close(other, one * min(1.0, 0.5 / norm))
    step, batch = atac_step(max_norm=0.3)
    step.update(batch)
    assert max(float(matrix.norm()) for weight in step.q.network.weights for matrix in weight) <= 0.3 + 1e-6


def test_the_target_keeps_what_the_warm_start_taught_it() -> None:
    step, batch = atac_step(warm_start_updates=3)
    rate = step.tau.repeat_interleave(2, dim=0)
    for update in range(1, 6):
        target = step.q_target.network.parameters.flat.clone()
        step.update(batch)
        expected = target.lerp(step.q.network.parameters.flat, rate)
        torch.testing.assert_close(step.q_target.network.parameters.flat, expected)
        # The temperature and the slow rate of the actor belong to the game.
        assert bool((step.log_temperature == 0).all()) == (update <= 3)


def test_the_warm_start_clones_and_knows_no_pessimism() -> None:
    step, batch = atac_step(warm_start_updates=1)
    twin, _ = atac_step(warm_start_updates=1)
    metrics = step.update(batch)
    torch.testing.assert_close(metrics["actor_loss"], twin.cloning_loss(batch).detach())
    actions, _ = twin.draw(batch.states)
    following, _ = twin.draw(batch.next_states)
    parts = twin.critic_losses(batch, actions.detach(), following.detach())
    torch.testing.assert_close(metrics["loss"], parts["bellman"].sum(dim=1).detach())
    moved = (step.actor.parameters.flat - twin.actor.parameters.flat).abs().max()
    assert float(moved) == pytest.approx(5e-4, rel=1e-2)  # one step of Adam at the fast rate
    start = step.actor.parameters.flat.clone()
    step.update(batch)
    assert float((step.actor.parameters.flat - start).abs().max()) == pytest.approx(5e-7, rel=0.2)


def test_defaults_are_the_papers() -> None:
    learner = ATAC()
    assert (learner.learning_rate, learner.actor_learning_rate, learner.max_norm) == (5e-4, 5e-7, 100.0)
    assert (learner.hidden, learner.tau) == ((256, 256, 256), 0.005)
    with pytest.raises(ValueError, match="ATAC: `warm_start_updates` must be below `n_updates`, got 9 and 9"):
        ATAC(n_updates=9, warm_start_updates=9).fit(random_log(continuous=True))


def behavior_value(gamma: float = 0.9) -> float:
    """The value of the policy behind `line_log`."""
    rng = np.random.default_rng(1)
    x, total = np.tile(np.linspace(-1, 1, 41), 50), 0.0
    for t in range(60):
        x = line_step(x, line_behavior(x, rng))
        total += gamma**t * float(np.mean(-10 * x**2))
    return total


@pytest.mark.slow
def test_no_beta_over_three_decades_is_worse_than_the_behavior() -> None:
    """Worse by more than two standard errors, that is: of three seeds, and of the 150 episodes of the log."""
    log, betas = line_log(), (0.01, 0.1, 1.0, 10.0)
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    game: dict[str, Any] = {"n_updates": 400, "warm_start_updates": 200, "actor_learning_rate": 1e-3, "tau": 0.05}
    learners = [ATAC(**settings, **game, gamma=0.9, beta=b, random_state=seed) for b in betas for seed in range(3)]
    values = np.array([line_value(learner, draws=20) for learner in ATAC.fit_many(log, learners)]).reshape(4, 3)
    returns = log.rewards.reshape(150, 8) @ 0.9 ** np.arange(8)
    error = np.sqrt(values.var(axis=1, ddof=1) / 3 + returns.var() / 150)
    behavior = behavior_value()
    assert (values.mean(axis=1) >= behavior - 2 * error).all()
    assert (np.diff(values.mean(axis=1)) > 0).all()
    assert float(values[-1].mean()) > behavior + 50.0


def test_atac_beats_the_behavior_and_the_smallest_beta_imitates() -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32,), "batch_size": 64, "learning_rate": 3e-3, "deterministic": True}
    game: dict[str, Any] = {"n_updates": 250, "warm_start_updates": 80, "actor_learning_rate": 3e-3, "tau": 0.05}
    trusting, imitating = ATAC.fit_many(log, [ATAC(**settings, **game, gamma=0.9, beta=b) for b in (10.0, 1e-4)])
    assert line_value(trusting) > behavior_value() + 50.0
    # The behaviour's mean is .3 sign(x).
    assert float(np.mean(np.sign(log.states) * imitating.predict(log.states))) == pytest.approx(0.3, abs=0.1)
