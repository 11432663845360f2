"""BEAR: losses and gradients against plain loops, the multiplier, the warm start, acting, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, plain_squared_mmd, random_log, same_gradients, unlike

from ope.neural.generators import derive_seed
from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._bear_step import BEARStep
from ope.policies._divergences import Kernel, squared_mmd
from ope.policies.bear import BEAR
from ope.policies.behavior_cloning import BehaviorCloning

WEIGHTS, SIZE, N = (0.75, 1.0), 12, 3
SMALL: dict[str, Any] = {"hidden": (6,), "vae_hidden": (5,), "gamma": 0.9, "n_match_samples": N, "n_target_samples": 4}


def bear_step(**settings: Any) -> tuple[BEARStep, Batch]:
    """A step past its warm start."""
    batch = batch_of(random_log(continuous=True), 2, SIZE)
    step = BEAR._step([BEAR(**{**SMALL, **settings}, min_weight=w) for w in WEIGHTS], batch.transitions, [0, 1])
    assert isinstance(step, BEARStep)
    unlike(step.q_target.network, step.actor_target)
    step.counts["updates"] = 1_001
    return step, batch


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def plain_raw(actor: MLP, k: int, state: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    mean, log_std = plain(actor, k, state).chunk(2)
    return mean + log_std.clamp(-20, 2).exp() * noise


# -------------------------------------------------------------------- losses


@torch.no_grad()
def test_targets_take_the_best_of_mixed_twins_over_draws_of_the_target_actor() -> None:
    step, batch = bear_step()
    noise = numbers(4, SIZE, 2)
    found = step.targets(batch, noise)
    for k, weight in enumerate(WEIGHTS):
        for i in range(SIZE):
            state, values = batch.next_states[k, i], []
            for j in range(4):
                x = torch.cat([state, torch.tanh(plain_raw(step.actor_target, k, state, noise[k, j, i]))])
                twins = [float(plain(step.q_target.network, 2 * k + m, x)[0]) for m in (0, 1)]
                values.append(weight * min(twins) + (1 - weight) * max(twins))
            expected = float(batch.rewards[k, i]) + 0.9 * float(batch.continues[k, i]) * max(values)
            assert float(found[k, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(found[0, 1]) == float(batch.rewards[0, 1])


def test_critic_and_generative_losses_and_gradients_equal_plain_loops() -> None:
    step, batch = bear_step()
    targets, noise = numbers(SIZE, seed=1), numbers(SIZE, 4, seed=2)
    critic, generative = [], []
    for k in range(2):
        errors, squares, divergences = torch.zeros(()), [], []
        for i in range(SIZE):
            x = torch.cat([batch.states[k, i], batch.actions[k, i]])
            for m in (0, 1):
                errors = errors + batch.bellman[k, i] * (plain(step.q.network, 2 * k + m, x)[0] - targets[k, i]) ** 2
            mean, log_std = plain(step.encoder, k, x).chunk(2)
            std = log_std.clamp(-4, 15).exp()
            latent = torch.cat([batch.states[k, i], mean + std * noise[k, i]])
            squares += list((torch.tanh(plain(step.decoder, k, latent)) - batch.actions[k, i]) ** 2)
            posterior: Any = torch.distributions.Normal(mean, std)
            prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
            divergences += list(torch.distributions.kl_divergence(posterior, prior))
        critic.append(errors / batch.bellman[k].sum())
        generative.append(torch.stack(squares).mean() + 0.5 * torch.stack(divergences).mean())
    same_gradients(step.q_loss(batch, targets), torch.stack(critic), [step.q.network])
    same_gradients(step.vae_loss(batch, noise), torch.stack(generative), [step.encoder, step.decoder])


@pytest.mark.parametrize(
    ("kernel", "sigma", "width"), [("laplacian", None, 10.0), ("gaussian", None, 20.0), ("gaussian", 0.5, 0.5)]
)
@pytest.mark.parametrize("warm", [False, True])
def test_actor_loss_and_gradients_equal_a_plain_loop(
    kernel: str, sigma: float | None, width: float, warm: bool
) -> None:
    step, batch = bear_step(kernel=kernel, kernel_sigma=sigma, warm_start_updates=2_000 if warm else 1_000)
    step.log_multiplier.data.copy_(torch.tensor([[0.4], [-1.0]]))
    noise, latents = numbers(N, SIZE, 2), numbers(N * SIZE, 4, seed=1)
    raw = step.raw(step.actor, batch.states, noise)
    distances = step.distances(batch, raw, latents)
    expected = []
    for k in range(2):
        terms = []
        for i in range(SIZE):
            state = batch.states[k, i]
            ours = torch.stack([plain_raw(step.actor, k, state, noise[k, j, i]) for j in range(N)])
            # Before the tanh of the decoder, and without slope by it.
            theirs = [plain(step.decoder, k, torch.cat([state, latents[k, SIZE * j + i]])).detach() for j in range(N)]
            mmd = (plain_squared_mmd(torch.stack(theirs), ours, kernel, width) + 1e-6).sqrt()
            assert float(distances[k, i].detach()) == pytest.approx(float(mmd.detach()), rel=2e-2)
            x = [torch.cat([state, torch.tanh(action)]) for action in ours]
            values = [torch.stack([plain(step.q.network, 2 * k + m, point)[0] for point in x]).mean() for m in (0, 1)]
            terms.append(step.log_multiplier.detach()[k, 0].exp() * mmd - (0.0 if warm else torch.minimum(*values)))
        expected.append(torch.stack(terms).mean())
    found = step.actor_loss(distances, step.policy_values(batch, raw))
    same_gradients(found, torch.stack(expected), [step.actor])
    slopes = torch.autograd.grad(found.sum(), list(step.decoder.parameters.views.values()), allow_unused=True)
    assert all(slope is None for slope in slopes)


def test_samples_are_matched_before_the_tanh_so_that_saturated_actions_still_have_a_slope() -> None:
    step, batch = bear_step()
    step.actor.parameters.constants["bias1"][..., :2] = 12.0
    raw = step.raw(step.actor, batch.states, numbers(N, SIZE, 2))
    assert float(torch.tanh(raw).min().detach()) > 0.999
    distances = step.distances(batch, raw, numbers(N * SIZE, 4, seed=1))
    (slope,) = torch.autograd.grad(distances.sum(), step.actor.parameters.views["bias1"], retain_graph=True)
    assert float(slope[..., :2].abs().min()) > 0.05
    generated = torch.tanh(step.decoder(torch.zeros(2, N * SIZE, 7))).view(raw.shape).detach()
    behind = squared_mmd(generated, torch.tanh(raw), step.form.kernel).sum()
    (lost,) = torch.autograd.grad(behind, step.actor.parameters.views["bias1"])
    assert float(lost[..., :2].abs().max()) < 1e-4


def test_draws_that_are_matched_have_clipped_noise_and_those_of_targets_do_not() -> None:
    step, batch = bear_step()
    seen: dict[str, torch.Tensor] = {}
    raw = step.raw

    def watch(actor: MLP, states: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen["target" if actor is step.actor_target else "actor"] = noise
        return raw(actor, states, noise)

    step.raw = watch  # type: ignore[method-assign]
    step.update(batch)
    assert seen["actor"].shape == (2, N, SIZE, 2)
    assert seen["target"].shape == (2, 4, SIZE, 2)
    assert float(seen["actor"].abs().max()) == 0.5
    assert float(seen["target"].abs().max()) > 1.0


# -------------------------------------------------------------------- the multiplier


def test_the_multiplier_loss_and_its_gradient_equal_a_plain_loop() -> None:
    step, _ = bear_step(threshold=0.2)
    step.log_multiplier.data.copy_(torch.tensor([[0.4], [-1.0]]))
    distances = numbers(SIZE).abs()
    found = step.multiplier_loss(distances)
    (slope,) = torch.autograd.grad(found.sum(), step.log_multiplier)
    for k, log in enumerate((0.4, -1.0)):
        expected = -np.mean([math.exp(log) * (float(distances[k, i]) - 0.2) for i in range(SIZE)])
        assert float(found[k].detach()) == pytest.approx(expected, rel=1e-5)
        assert float(slope[k, 0]) == pytest.approx(expected, rel=1e-5)  # d exp(x) = exp(x)


@pytest.mark.parametrize(
    ("threshold", "start", "after"), [(0.0, 0.0, 0.1), (9.0, 0.0, -0.1), (0.0, 9.95, 10.0), (9.0, -4.95, -5.0)]
)
def test_the_multiplier_grows_while_the_policy_is_beyond_its_threshold(
    threshold: float, start: float, after: float
) -> None:
    step, batch = bear_step(threshold=threshold, learning_rate=0.1)
    step.log_multiplier.data.fill_(start)
    step.update(batch)
    assert step.log_multiplier[:, 0].tolist() == pytest.approx([after, after], abs=1e-4)


def test_the_discrepancy_is_0_between_equal_samples_and_never_negative() -> None:
    x, y = numbers(4, 6, 3), numbers(5, 6, 3, seed=1)
    for name in ("laplacian", "gaussian"):
        kernel = Kernel.of(name, 1.0)
        torch.testing.assert_close(squared_mmd(x, x, kernel), torch.zeros(2, 6), atol=1e-6, rtol=0.0)
        assert float(squared_mmd(x, y, kernel).min()) > 0.0


# -------------------------------------------------------------------- settings, and what it learns


def test_the_policy_takes_the_best_of_its_draws_and_is_a_function_of_the_state() -> None:
    log = random_log(continuous=True)
    learner = BEAR(**SMALL, n_act_samples=7, n_updates=4, warm_start_updates=1, batch_size=8).fit(log)
    assert learner.capabilities == {"sample", "deterministic"}
    assert set(learner.networks_) == {"actor", "q"}
    states = torch.from_numpy(learner.origin_.states.transform(log.states[:4])).float()
    noise = np.random.default_rng(derive_seed(learner.seed_, "acting")).standard_normal((7, 2))
    assert learner.origin_.actions is not None
    for i, state in enumerate(states):
        points = [
            torch.tanh(plain_raw(learner.networks_["actor"], 0, state, z)) for z in torch.from_numpy(noise).float()
        ]
        values = [float(plain(learner.networks_["q"], 0, torch.cat([state, point]))[0]) for point in points]
        expected = learner.origin_.actions.inverse(points[int(np.argmax(values))].numpy())
        np.testing.assert_allclose(learner.predict(log.states[i : i + 1])[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(learner.sample(log.states, 0), learner.predict(log.states))


def test_defaults_are_the_authors() -> None:
    learner = BEAR()
    assert (learner.threshold, learner.kernel, learner.kernel_sigma) == (0.05, "laplacian", None)
    assert (learner.n_match_samples, learner.n_target_samples, learner.n_act_samples) == (5, 10, 10)
    assert (learner.hidden, learner.vae_hidden, learner.min_weight) == ((400, 300), (750, 750), 0.75)
    assert (learner.batch_size, learner.learning_rate, learner.tau) == (100, 1e-3, 0.005)


def test_bear_beats_cloning_and_refuses_what_it_cannot_do() -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    learner = BEAR(**settings, gamma=0.9, tau=0.05, vae_hidden=(32,), n_updates=300, warm_start_updates=40).fit(log)
    assert line_value(learner) > line_value(BehaviorCloning(**settings, n_updates=100).fit(log)) + 20.0
    with pytest.raises(TypeError, match="BEAR: `data` must have continuous actions, got discrete ones; use CQL"):
        BEAR().fit(random_log())
    with pytest.raises(ValueError, match="BEAR: `warm_start_updates` must be below `n_updates`, got 9 and 9; lower it"):
        BEAR(n_updates=9, warm_start_updates=9).fit(log)
    with pytest.raises(ValueError, match="BEAR: `kernel` must be 'laplacian' or 'gaussian', got 'cauchy'"):
        BEAR(kernel="cauchy").fit(log)
