"""BCQ with continuous actions: losses and gradients against plain loops, its two numbers of samples, what it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, random_log, same_gradients, unlike

from ope.neural.generators import derive_seed
from ope.neural.transitions import Batch
from ope.policies._continuous_bcq import ContinuousBCQStep
from ope.policies.bcq import BCQ
from ope.policies.behavior_cloning import BehaviorCloning

WEIGHTS = (0.75, 1.0)
SMALL: dict[str, Any] = {"hidden": (6,), "vae_hidden": (5,), "gamma": 0.9, "perturbation": 0.3, "n_target_samples": 3}


def bcq_step() -> tuple[ContinuousBCQStep, Batch]:
    batch = batch_of(random_log(continuous=True), 2)
    step = BCQ._step([BCQ(**SMALL, min_weight=weight) for weight in WEIGHTS], batch.transitions, [0, 1])
    assert isinstance(step, ContinuousBCQStep)
    unlike(step.q_target.network, step.actor_target)
    return step, batch


def test_generative_loss_and_gradients_equal_a_plain_loop() -> None:
    step, batch = bcq_step()
    noise = torch.randn(2, 24, 4, generator=torch.Generator().manual_seed(1))
    expected = []
    for k in range(2):
        squares, divergences = [], []
        for i in range(24):
            output = plain(step.encoder, k, torch.cat([batch.states[k, i], batch.actions[k, i]]))
            mean, std = output[:4], torch.exp(output[4:].clamp(-4, 15))
            latent = mean + std * noise[k, i]
            rebuilt = torch.tanh(plain(step.decoder, k, torch.cat([batch.states[k, i], latent])))
            squares += list((rebuilt - batch.actions[k, i]) ** 2)
            posterior: Any = torch.distributions.Normal(mean, std)
            prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
            divergences += list(torch.distributions.kl_divergence(posterior, prior))
        expected.append(torch.stack(squares).mean() + 0.5 * torch.stack(divergences).mean())
    same_gradients(step.vae_loss(batch, noise), torch.stack(expected), [step.encoder, step.decoder])


@torch.no_grad()
def test_targets_equal_a_plain_loop() -> None:
    step, batch = bcq_step()
    latents = torch.rand(2, 3 * 24, 4, generator=torch.Generator().manual_seed(2)) - 0.5
    found = step.targets(batch, latents)
    for k, weight in enumerate(WEIGHTS):
        for i in range(24):
            state, values = batch.next_states[k, i], []
            for j in range(3):
                action = torch.tanh(plain(step.decoder, k, torch.cat([state, latents[k, 24 * j + i]])))
                move = 0.3 * torch.tanh(plain(step.actor_target, k, torch.cat([state, action])))
                x = torch.cat([state, (action + move).clamp(-1, 1)])
                twins = [float(plain(step.q_target.network, 2 * k + m, x)[0]) for m in (0, 1)]
                values.append(weight * min(twins) + (1 - weight) * max(twins))
            expected = float(batch.rewards[k, i]) + 0.9 * float(batch.continues[k, i]) * max(values)
            assert float(found[k, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(found[0, 1]) == float(batch.rewards[0, 1])


def test_critic_and_perturbation_losses_and_gradients_equal_plain_loops() -> None:
    step, batch = bcq_step()
    rng = torch.Generator().manual_seed(3)
    targets, latents = torch.randn(2, 24, generator=rng), torch.rand(2, 24, 4, generator=rng) - 0.5
    critic, actor = [], []
    for k in range(2):
        loss, values = torch.zeros(()), []
        for i in range(24):
            state = batch.states[k, i]
            logged = torch.cat([state, batch.actions[k, i]])
            for m in (0, 1):
                loss = loss + batch.bellman[k, i] * (plain(step.q.network, 2 * k + m, logged)[0] - targets[k, i]) ** 2
            action = torch.tanh(plain(step.decoder, k, torch.cat([state, latents[k, i]]))).detach()
            move = 0.3 * torch.tanh(plain(step.actor, k, torch.cat([state, action])))
            x = torch.cat([state, (action + move).clamp(-1, 1)])
            values.append(plain(step.q.network, 2 * k, x, step.q.network.parameters.constants)[0])
        critic.append(loss / batch.bellman[k].sum())
        actor.append(-torch.stack(values).mean())
    same_gradients(step.q_loss(batch, targets), torch.stack(critic), [step.q.network])
    same_gradients(step.actor_loss(batch, latents), torch.stack(actor), [step.actor])


def test_samples_in_the_targets_and_when_acting_are_two_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    log, seen = random_log(continuous=True), []
    draw = ContinuousBCQStep.latents

    def count(self: ContinuousBCQStep, n: int) -> torch.Tensor:
        seen.append(n)
        return draw(self, n)

    monkeypatch.setattr(ContinuousBCQStep, "latents", count)
    learner = BCQ(**SMALL, n_act_samples=7, n_updates=2, batch_size=8).fit(log)
    assert seen == [24, 8, 24, 8]
    states = torch.from_numpy(learner.origin_.states.transform(log.states)).float()
    rng = np.random.default_rng(derive_seed(learner.seed_, "acting"))
    latents = torch.from_numpy(np.clip(rng.standard_normal((7, 4)), -0.5, 0.5)).float()
    assert learner.origin_.actions is not None
    for i in range(3):
        best: tuple[float, Any] = (-np.inf, None)
        for z in latents:
            action = torch.tanh(plain(learner.networks_["decoder"], 0, torch.cat([states[i], z])))
            move = 0.3 * torch.tanh(plain(learner.networks_["actor"], 0, torch.cat([states[i], action])))
            x = torch.cat([states[i], (action + move).clamp(-1, 1)])
            value = float(plain(learner.networks_["q"], 0, x)[0])
            best = max(best, (value, x[3:].numpy()), key=lambda pair: pair[0])
        expected = learner.origin_.actions.inverse(best[1])
        np.testing.assert_allclose(learner.predict(log.states[i : i + 1])[0], expected, rtol=1e-4)
    fewer = learner.predict(log.states)
    learner.set_params(n_act_samples=1)
    assert not np.array_equal(learner.predict(log.states), fewer)


def test_continuous_bcq_beats_cloning() -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    learner = BCQ(
        **settings, gamma=0.9, tau=0.05, vae_hidden=(32,), perturbation=0.2, n_target_samples=4, n_act_samples=20,
        n_updates=250,
    ).fit(log)  # fmt: skip
    assert learner.capabilities == {"sample", "deterministic"}
    assert line_value(learner) > line_value(BehaviorCloning(**settings, n_updates=100).fit(log)) + 20.0
    np.testing.assert_array_equal(learner.sample(log.states, 0), learner.predict(log.states))
