"""EDAC: losses and gradients against plain loops, the diversification, SAC-N as a special case, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, random_log, same_gradients, unlike

from ope.neural.history import Tensors
from ope.neural.transitions import Batch
from ope.policies._edac_step import EDACStep, gradient_similarity
from ope.policies._losses import temperature_loss
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policies.edac import EDAC

ETAS, N, SIZE = (0.7, 3.0), 3, 12
LOG_TEMPERATURE = -0.7


def edac_step(etas: tuple[float, ...] = ETAS, **settings: Any) -> tuple[EDACStep, Batch]:
    batch = batch_of(random_log(continuous=True), len(etas), SIZE)
    learners = [EDAC(hidden=(6,), gamma=0.9, n_critics=N, eta=eta, **settings) for eta in etas]
    step = EDAC._step(learners, batch.transitions, list(range(len(etas))))
    assert isinstance(step, EDACStep)
    unlike(step.q_target.network)
    step.log_temperature.data.fill_(LOG_TEMPERATURE)
    return step, batch


def fixed_noise(step: EDACStep) -> torch.Tensor:
    noise = torch.randn(step.n_models, SIZE, 2, generator=torch.Generator().manual_seed(3))
    step.normal = lambda *_: noise  # type: ignore[method-assign]
    return noise


def plain_draw(step: EDACStep, k: int, state: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = plain(step.actor, k, state)
    mean, std = output[:2], output[2:].clamp(-5, 2).exp()
    law: Any = torch.distributions.Normal(mean, std)
    u = mean + std * noise
    return torch.tanh(u), (law.log_prob(u) + 2 * torch.log(torch.cosh(u))).sum()


def plain_q(step: EDACStep, k: int, i: int, x: torch.Tensor, *, target: bool = False) -> torch.Tensor:
    return plain((step.q_target if target else step.q).network, N * k + i, x)[..., 0]


# -------------------------------------------------------------------- losses


@torch.no_grad()
@pytest.mark.parametrize("entropy", [True, False])
def test_targets_take_the_least_of_all_critics_less_the_entropy_term(entropy: bool) -> None:
    step, batch = edac_step(entropy_backup=entropy)
    noise = fixed_noise(step)
    found = step.targets(batch)
    least = set()
    for k in range(2):
        for i in range(SIZE):
            action, log_prob = plain_draw(step, k, batch.next_states[k, i], noise[k, i])
            x = torch.cat([batch.next_states[k, i], action])
            values = [float(plain_q(step, k, j, x, target=True)) for j in range(N)]
            least.add(int(np.argmin(values)))
            value = min(values) - (math.exp(LOG_TEMPERATURE) * float(log_prob) if entropy else 0.0)
            expected = float(batch.rewards[k, i] + 0.9 * batch.continues[k, i] * value)
            assert float(found[k, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert least == set(range(N))
    assert float(found[0, 1]) == float(batch.rewards[0, 1])


def test_critic_loss_and_gradients_equal_a_plain_loop_over_pairs_of_critics() -> None:
    step, batch = edac_step()
    targets = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(2))
    expected, similarities = [], []
    for k, eta in enumerate(ETAS):
        errors, similarity = [], torch.zeros(())
        for i in range(SIZE):
            gradients = []
            for j in range(N):
                action = batch.actions[k, i].clone().requires_grad_()
                q = plain_q(step, k, j, torch.cat([batch.states[k, i], action]))
                errors.append(batch.bellman[k, i] * (q - targets[k, i]) ** 2)
                (gradient,) = torch.autograd.grad(q, action, create_graph=True)
                gradients.append(gradient / (gradient.norm() + 1e-10))
            for one in range(N):
                for other in range(N):
                    if one != other:
                        similarity = similarity + gradients[one] @ gradients[other] / (N - 1) / SIZE
        assert float(batch.bellman[k].sum()) < SIZE
        expected.append(torch.stack(errors).sum() / batch.bellman[k].sum() + eta * similarity)
        similarities.append(float(similarity.detach()))
    losses = step.critic_losses(batch, targets)
    assert losses["similarity"].tolist() == pytest.approx(similarities, rel=1e-4)
    same_gradients(losses["td_loss"] + step.eta * losses["similarity"], torch.stack(expected), [step.q.network])
    # The diversification alone moves the critics: its gradient goes through the gradient by the action.
    weights = step.q.network.parameters.views["weight1"]
    (found,) = torch.autograd.grad(step.critic_losses(batch, targets)["similarity"].sum(), weights)
    assert float(found.abs().max()) > 1e-3


def test_actor_and_temperature_losses_and_gradients_equal_a_plain_loop() -> None:
    step, batch = edac_step()
    noise = fixed_noise(step)
    actions, log_prob = step.draw(batch.states)
    expected, temperature = [], []
    for k in range(2):
        losses, densities = [], []
        for i in range(SIZE):
            action, density = plain_draw(step, k, batch.states[k, i], noise[k, i])
            x = torch.cat([batch.states[k, i], action])
            value = torch.stack([plain_q(step, k, j, x) for j in range(N)]).min()
            losses.append(math.exp(LOG_TEMPERATURE) * density - value)
            densities.append(density)
        expected.append(torch.stack(losses).mean())
        temperature.append(-LOG_TEMPERATURE * (torch.stack(densities).mean() - 2.0))
    found = temperature_loss(step.log_temperature, log_prob, step.target_entropy)
    torch.testing.assert_close(found, torch.stack(temperature), rtol=1e-3, atol=1e-4)
    same_gradients(step.actor_loss(batch, actions, log_prob), torch.stack(expected), [step.actor])


def test_an_update_uses_networks_and_temperature_as_they_were_before_it() -> None:
    step, batch = edac_step(learning_rate=0.1, actor_learning_rate=0.1)
    fixed_noise(step)
    start = {name: network.parameters.flat.clone() for name, network in step.networks.items()}
    targets, actor_loss = step.targets(batch), step.actor_loss(batch, *step.draw(batch.states)).detach()
    seen, losses = [], step.critic_losses

    def watch(batch: Batch, targets: torch.Tensor) -> Tensors:
        seen.append(targets)
        assert not torch.equal(step.actor.parameters.flat, start["actor"])
        return losses(batch, targets)

    step.critic_losses = watch  # type: ignore[method-assign]
    metrics = step.update(batch)
    assert torch.equal(seen[0], targets)
    assert torch.equal(metrics["actor_loss"], actor_loss)
    assert not torch.equal(metrics["temperature"], torch.full((2,), math.exp(LOG_TEMPERATURE)))
    expected = 0.995 * start["q_target"] + 0.005 * step.q.network.parameters.flat
    torch.testing.assert_close(step.q_target.network.parameters.flat, expected)


# -------------------------------------------------------------------- the diversification


def test_similarity_is_largest_for_equal_and_least_for_spread_gradients() -> None:
    same = torch.tensor([3.0, -4.0]).expand(1, 5, 1, 2) * torch.arange(1.0, 6.0).view(1, 5, 1, 1)
    assert float(gradient_similarity(same)) == pytest.approx(5.0)  # N times the mean cosine of 1
    angles = 2 * math.pi * torch.arange(5) / 5
    spread = torch.stack([angles.cos(), angles.sin()], dim=1).view(1, 5, 1, 2)
    assert float(gradient_similarity(spread)) == pytest.approx(-5 / 4, abs=1e-5)  # the gradients sum to 0
    dead = torch.zeros(1, 2, 1, 2, requires_grad=True)
    gradient_similarity(dead).sum().backward()  # type: ignore[no-untyped-call]
    assert dead.grad is not None
    assert bool(torch.isfinite(dead.grad).all())


def test_diversified_critics_disagree_more_and_without_eta_it_is_sac_n() -> None:
    log = random_log(continuous=True)
    settings: dict[str, Any] = {
        "hidden": (16,),
        "n_updates": 100,
        "batch_size": 32,
        "learning_rate": 3e-3,
        "n_critics": N,
    }
    alone = EDAC(**settings, eta=0.0).fit(log)
    sac_n, edac = EDAC.fit_many(log, [EDAC(**settings, eta=0.0), EDAC(**settings, eta=5.0)])
    # No time goes into the term where no model asks for it; beside one that does, the model without it is the same.
    assert (alone.history_["similarity"] == 0.0).all()
    assert float(sac_n.history_["similarity"].iloc[-1]) > float(edac.history_["similarity"].iloc[-1]) + 0.5
    for name, network in alone.networks_.items():
        torch.testing.assert_close(sac_n.networks_[name].parameters.flat, network.parameters.flat, rtol=1e-3, atol=1e-4)
    unlike_logged = log.actions[::-1] * 1.5
    q = [torch.from_numpy(learner_values(learner, log, unlike_logged)) for learner in (sac_n, edac)]
    assert float(q[1].std(dim=0).mean()) > 1.2 * float(q[0].std(dim=0).mean())


def learner_values(learner: EDAC, log: Any, actions: Any) -> Any:
    """Each critic's value, (N, n)."""
    origin = learner.origin_
    assert origin.actions is not None
    x = np.hstack([origin.states.transform(log.states), origin.actions.transform(actions)])
    values = learner.networks_["q"](torch.from_numpy(x).float())[..., 0].numpy()
    np.testing.assert_allclose(values.min(axis=0), learner.q_values(log.states, actions), rtol=1e-5)
    return values


def test_eta_has_no_slope_where_actions_have_one_dimension() -> None:
    data = line_log(10)
    batch = batch_of(data.replace(ends=np.where(np.arange(10) < 5, 0, data.ends)), 1, SIZE)
    step = EDAC._step([EDAC(hidden=(6,), n_critics=N)], batch.transitions, [0])
    assert isinstance(step, EDACStep)
    similarity = step.critic_losses(batch, torch.zeros(1, SIZE))["similarity"]
    slopes = torch.autograd.grad(similarity.sum(), list(step.q.network.parameters.views.values()), allow_unused=True)
    assert max(float(slope.abs().max()) for slope in slopes if slope is not None) < 1e-4


# -------------------------------------------------------------------- settings, and what it learns


def test_defaults_are_the_papers() -> None:
    learner = EDAC()
    assert (learner.n_critics, learner.eta, learner.entropy_backup) == (10, 1.0, True)
    assert (learner.hidden, learner.batch_size, learner.tau) == ((256, 256, 256), 256, 0.005)
    assert (learner.learning_rate, learner.actor_learning_rate) == (3e-4, 3e-4)
    assert EDACStep.log_std_bounds == (-5.0, 2.0)


def test_edac_beats_cloning_and_refuses_what_it_cannot_do() -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    learner = EDAC(
        **settings, gamma=0.9, tau=0.05, actor_learning_rate=3e-3, n_critics=4, n_updates=300, action_bounds=(-1, 1)
    ).fit(log)
    cloned = line_value(BehaviorCloning(**settings, n_updates=100).fit(log))
    assert line_value(learner, draws=5) > cloned + 20.0
    assert learner.capabilities == {"logged_prob", "density", "sample"}
    assert bool(np.isfinite(learner.log_prob(log.states, 0.9 * log.actions)).all())
    learner.set_params(deterministic=True)
    assert learner.capabilities == {"sample", "deterministic"}
    assert line_value(learner) > cloned + 20.0
    with pytest.raises(TypeError, match="EDAC: `data` must have continuous actions, got discrete ones; use CQL"):
        EDAC().fit(random_log())
    with pytest.raises(ValueError, match=r"EDAC: `n_critics` must be an integer in \[2, inf\), got 1; pass one"):
        EDAC(n_critics=1).fit(log)
