"""UWAC: dropout, weights, losses and gradients against plain loops, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, random_log, same_gradients, unlike

from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._uwac_step import UWACStep, doubt_weights, thinned
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policies.td3bc import TD3BC
from ope.policies.uwac import UWAC

ALPHAS, BETAS, LIMITS, RATES = (0.4, 2.5), (0.02, 0.01), (1.5, 0.3), (0.3, 0.5)


def uwac_step(**settings: Any) -> tuple[UWACStep, Batch]:
    batch = batch_of(random_log(continuous=True), 2)
    learners = [
        UWAC(hidden=(6, 5), gamma=0.9, alpha=alpha, beta=beta, max_weight=limit, dropout_rate=rate, **settings)
        for alpha, beta, limit, rate in zip(ALPHAS, BETAS, LIMITS, RATES, strict=True)
    ]
    step = UWAC._step(learners, batch.transitions, [0, 1])
    assert isinstance(step, UWACStep)
    unlike(step.q_target.network, step.actor_target)
    return step, batch


def with_dropout(
    network: MLP, m: int, x: torch.Tensor, masks: list[torch.Tensor], t: int, row: int, *, constant: bool = False
) -> torch.Tensor:
    """Critic m with the units that sample t drops for a row."""
    parameters = network.parameters.constants if constant else network.parameters.views
    h = x
    for layer, mask in enumerate(masks):
        h = torch.clamp(h @ parameters[f"weight{layer}"][m] + parameters[f"bias{layer}"][m, 0], min=0.0)
        h = h * mask[m, t, min(row, mask.shape[2] - 1)]
    return (h @ parameters["weight2"][m] + parameters["bias2"][m, 0])[0]


def weight_of(samples: list[list[float]], k: int) -> float:
    variance = sum(float(np.var(values, ddof=1)) for values in samples)
    return min(BETAS[k] / variance, LIMITS[k])


# -------------------------------------------------------------------- dropout


def test_masks_drop_their_share_keep_the_mean_and_differ_by_row_sample_twin_and_model() -> None:
    step, _ = uwac_step()
    masks = step.masks(7, 400)
    assert [tuple(mask.shape) for mask in masks] == [(4, 7, 400, 6), (4, 7, 400, 5)]
    for k, rate in enumerate(RATES):
        for mask in masks:
            values = mask[2 * k : 2 * k + 2]
            assert np.unique(values).tolist() == pytest.approx([0.0, 1 / (1 - rate)])
            assert float((values == 0).float().mean()) == pytest.approx(rate, abs=0.02)
            assert float(values.mean()) == pytest.approx(1.0, abs=0.03)
    first = masks[0]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0, 0], first[0, 1])
    assert not torch.equal(first[0, 0, :200], first[0, 0, 200:])


def test_dropout_draws_from_the_models_own_generators() -> None:
    torch.manual_seed(0)
    first = uwac_step()[0].masks(2, 3)
    torch.manual_seed(1)
    second = uwac_step()[0].masks(2, 3)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@torch.no_grad()
def test_one_mask_for_the_batch_has_the_mean_and_the_variance_of_one_a_row() -> None:
    step, batch = uwac_step()
    pairs = step.next_pairs(batch, torch.zeros(2, 24, 2))
    shared = step.dropped(step.q, pairs, step.masks(20_000, 1))
    x, own = pairs[0, :1], step.masks(1, 20_000)
    rows = thinned(step.q.network, x.expand(4, 20_000, -1), own)[0, 0, :, 0]
    assert float(shared[0, 0, :, 0].mean()) == pytest.approx(float(rows.mean()), abs=0.01)
    assert float(shared[0, 0, :, 0].var()) == pytest.approx(float(rows.var()), rel=0.05)
    # Without dropped units it is the network itself.
    whole = step.dropped(step.q, pairs, [torch.ones(4, 1, 1, 6), torch.ones(4, 1, 1, 5)])
    torch.testing.assert_close(whole.squeeze(2), step.q(pairs).squeeze(3))


def test_weights() -> None:
    found = doubt_weights(torch.tensor([[0.0, 0.1, 10.0]]), torch.tensor([[0.5]]), torch.tensor([[1.5]]))
    assert found[0].tolist() == pytest.approx([1.5, 1.5, 0.05])


# -------------------------------------------------------------------- losses


@torch.no_grad()
def test_targets_and_their_weights_equal_a_plain_loop() -> None:
    step, batch = uwac_step()
    noise, masks = 5.0 * torch.randn(2, 24, 2, generator=torch.Generator().manual_seed(1)), step.masks(4, 1)
    targets, weights = step.weighted_targets(batch, noise, masks)
    for k in range(2):
        for i in range(24):
            smoothing = (0.2 * noise[k, i]).clamp(-0.5, 0.5)
            action = (torch.tanh(plain(step.actor_target, k, batch.next_states[k, i])) + smoothing).clamp(-1, 1)
            x = torch.cat([batch.next_states[k, i], action])
            network = step.q_target.network
            samples = [[float(with_dropout(network, 2 * k + m, x, masks, t, i)) for t in range(4)] for m in (0, 1)]
            value = min(float(np.mean(values)) for values in samples)
            expected = float(batch.rewards[k, i] + 0.9 * batch.continues[k, i] * value)
            assert float(targets[k, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert float(weights[k, i]) == pytest.approx(weight_of(samples, k), rel=1e-3)
    assert float(targets[0, 1]) == float(batch.rewards[0, 1])
    assert 0 < int((weights[1] == 0.3).sum()) < 24


def test_critic_loss_and_gradients_equal_a_plain_loop() -> None:
    step, batch = uwac_step()
    rng = torch.Generator().manual_seed(2)
    targets, weights, masks = torch.randn(2, 24, generator=rng), torch.rand(2, 24, generator=rng), step.masks(1, 24)
    expected = []
    for k in range(2):
        loss = torch.zeros(())
        for m in (0, 1):
            for i in range(24):
                x = torch.cat([batch.states[k, i], batch.actions[k, i]])
                error = with_dropout(step.q.network, 2 * k + m, x, masks, 0, i) - targets[k, i]
                loss = loss + batch.bellman[k, i] * weights[k, i] * error**2
        expected.append(loss / batch.bellman[k].sum())
    assert float(batch.bellman.min()) == 0.0
    same_gradients(step.weighted_q_loss(batch, targets, weights, masks), torch.stack(expected), [step.q.network])


def test_actor_loss_and_gradients_equal_a_plain_loop() -> None:
    step, batch = uwac_step(n_dropout_samples=3)
    masks = step.masks(3, 1)
    step.masks = lambda *_: masks  # type: ignore[method-assign]
    expected = []
    for k, alpha in enumerate(ALPHAS):
        values, distances = [], []
        for i in range(24):
            action = torch.tanh(plain(step.actor, k, batch.states[k, i]))
            x = torch.cat([batch.states[k, i], action])
            samples = [
                [with_dropout(step.q.network, 2 * k + m, x, masks, t, i, constant=True) for t in range(3)]
                for m in (0, 1)
            ]
            means = [torch.stack(twin).mean() for twin in samples]
            weight = weight_of([[float(q.detach()) for q in twin] for twin in samples], k)
            values.append(weight * min(means, key=lambda mean: float(mean.detach())))
            distances += [(action[j] - batch.actions[k, i, j]) ** 2 for j in (0, 1)]
        scale = alpha / (sum(abs(float(value.detach())) for value in values) / 24)
        expected.append(-scale * torch.stack(values).mean() + torch.stack(distances).mean())
    same_gradients(step.actor_loss(batch), torch.stack(expected), [step.actor])


def test_an_update_takes_the_steps_of_td3bc_and_records_the_weight() -> None:
    step, batch = uwac_step()
    names = ("actor", "actor_target", "q_target")
    start = {name: step.networks[name].parameters.flat.clone() for name in names}
    metrics = step.update(batch)
    assert all(torch.equal(step.networks[name].parameters.flat, start[name]) for name in names)
    assert set(metrics) == {"loss", "weight", "actor_loss"}
    assert 0.0 < float(metrics["weight"].min()) <= 1.5
    step.update(batch)
    expected = 0.995 * start["q_target"] + 0.005 * step.q.network.parameters.flat
    torch.testing.assert_close(step.q_target.network.parameters.flat, expected)


# -------------------------------------------------------------------- what it learns


def doubt(learner: UWAC, states: Any, actions: Any) -> float:
    """The mean log variance of a fitted critic under dropout, in standardised inputs."""
    unit = learner.origin_.actions
    assert unit is not None
    x = np.hstack([learner.origin_.states.transform(states), unit.transform(actions)])
    pairs, network = torch.from_numpy(x).float(), learner.networks_["q"]
    rng = torch.Generator().manual_seed(0)
    masks = [(torch.rand(2, 200, 1, n, generator=rng) >= 0.1) / 0.9 for n in network.sizes[1:-1]]
    variance = thinned(network, pairs.expand(2, -1, -1), masks).var(dim=1).sum(dim=0)
    return float(variance.log().mean())


def test_uwac_beats_cloning_and_doubts_what_the_log_does_not_show() -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    learner = UWAC(**settings, gamma=0.9, tau=0.05, alpha=10.0, n_updates=300).fit(log)
    assert line_value(learner) > line_value(BehaviorCloning(**settings, n_updates=100).fit(log)) + 20.0
    far = np.full((40, 1), 4.0)
    assert doubt(learner, far, far) > doubt(learner, log.states[:40], log.actions[:40]) + math.log(3.0)


def test_defaults_and_bad_settings() -> None:
    learner, base = UWAC(), TD3BC()
    assert (learner.dropout_rate, learner.beta, learner.max_weight, learner.n_dropout_samples) == (0.1, 0.5, 1.5, 10)
    for name in ("alpha", "gamma", "tau", "policy_noise", "noise_clip", "policy_delay", "hidden", "learning_rate"):
        assert getattr(learner, name) == getattr(base, name)
    log = random_log(4, continuous=True)
    for setting, message in (
        ({"dropout_rate": 0.0}, r"UWAC: `dropout_rate` must be a number in \(0, 1\), got 0.0; pass one."),
        ({"n_dropout_samples": 1}, r"UWAC: `n_dropout_samples` must be an integer in \[2, inf\), got 1; pass one."),
        ({"hidden": ()}, r"UWAC: `hidden` must have a layer, got \(\); without units there is no dropout."),
    ):
        with pytest.raises(ValueError, match=message):
            UWAC(**setting).fit(log)
    with pytest.raises(TypeError, match="UWAC: `data` must have continuous actions, got discrete ones; use CQL"):
        UWAC().fit(random_log(4))
