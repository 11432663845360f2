"""CQL: losses and gradients against plain loops, and what the penalty does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, random_log, same_gradients, unlike

from ope.dataset import LoggedDataset
from ope.neural.transitions import Batch, Transitions
from ope.policies._continuous_cql import ContinuousCQLStep
from ope.policies._discrete_q import DiscreteQStep
from ope.policies._losses import temperature_loss
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policies.cql import CQL

SETTINGS: dict[str, Any] = {"hidden": (6,), "gamma": 0.9, "n_action_samples": 2}


def continuous_step(**settings: Any) -> tuple[ContinuousCQLStep, Batch]:
    batch = batch_of(random_log(continuous=True), 2)
    learners = [CQL(**SETTINGS, **settings, alpha=alpha) for alpha in (0.5, 3.0)]
    step = CQL._step(learners, batch.transitions, [0, 1])
    assert isinstance(step, ContinuousCQLStep)
    unlike(step.q_target.network)
    return step, batch


def member(step: ContinuousCQLStep, k: int, i: int, x: torch.Tensor, *, target: bool = False) -> torch.Tensor:
    network = (step.q_target if target else step.q).network
    return plain(network, 2 * k + i, x)[..., 0]


def as_any(value: Any) -> Any:
    """Torch's distributions are not typed."""
    return value


def silence_the_actor(step: ContinuousCQLStep) -> None:
    """Make draws equal tanh(mean): log standard deviations far below their bound."""
    bias = step.actor.parameters.constants["bias1"]
    bias[..., 2:] = -1000.0


# -------------------------------------------------------------------- discrete actions


@pytest.mark.parametrize(("masked", "huber"), [(False, False), (True, True)])
def test_discrete_loss_and_gradients_equal_a_plain_loop(masked: bool, huber: bool) -> None:
    batch = batch_of(random_log(masked=masked), 2)
    step = CQL._step([CQL(hidden=(6,), gamma=0.9, alpha=a, huber=huber) for a in (0.5, 2.0)], batch.transitions, [0, 1])
    assert isinstance(step, DiscreteQStep)
    unlike(step.q_target)
    expected = []
    for k, alpha in enumerate((0.5, 2.0)):
        td, penalties = [], []
        for i in range(batch.shape[1]):
            q, action = plain(step.q, k, batch.states[k, i]), int(batch.actions[k, i])
            open_now = (
                range(3) if batch.action_mask is None else torch.nonzero(batch.action_mask[k, i]).ravel().tolist()
            )
            total = sum((torch.exp(q[a]) for a in open_now), torch.zeros(()))
            penalties.append(torch.log(total) - q[action])
            target = batch.rewards[k, i]
            if float(batch.continues[k, i]) == 1.0:
                after = plain(step.q, k, batch.next_states[k, i]).detach()
                mask = batch.next_action_mask
                open_then = [a for a in range(3) if mask is None or bool(mask[k, i, a])]
                best = max(open_then, key=lambda a: float(after[a]))
                target = target + 0.9 * plain(step.q_target, k, batch.next_states[k, i]).detach()[best]
            error = (q[action] - target).abs()
            if float(batch.bellman[k, i]) == 1.0:
                td.append(error - 0.5 if huber and float(error.detach()) > 1 else 0.5 * error**2)
        expected.append(torch.stack(td).mean() + alpha * torch.stack(penalties).mean())
    same_gradients(step.losses(batch)["loss"], torch.stack(expected), [step.q])


# -------------------------------------------------------------------- continuous actions


@torch.no_grad()
def test_continuous_targets_take_the_smaller_target_critic_and_stop_at_terminals() -> None:
    step, batch = continuous_step()
    silence_the_actor(step)
    found = step.targets(batch)
    for k in range(2):
        for i in range(batch.shape[1]):
            action = torch.tanh(plain(step.actor, k, batch.next_states[k, i])[:2])
            x = torch.cat([batch.next_states[k, i], action])
            value = min(float(member(step, k, j, x, target=True)) for j in (0, 1))
            expected = float(batch.rewards[k, i]) + 0.9 * value * float(batch.continues[k, i])
            assert float(found[k, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(found[0, 1]) == float(batch.rewards[0, 1])


@torch.no_grad()
def test_max_target_backup_takes_the_best_of_many_actions() -> None:
    step, batch = continuous_step(max_target_backup=True)
    torch.manual_seed(0)
    actions = torch.rand(2, 48, 2)

    def draw(states: torch.Tensor, n: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        assert n == 2
        assert states.equal(batch.next_states)
        return actions, torch.zeros(2, 48)

    step.draw = draw  # type: ignore[method-assign]
    found = step.targets(batch)
    for k, i in ((0, 0), (0, 5), (1, 7)):
        x = [torch.cat([batch.next_states[k, i], actions[k, i + 24 * j]]) for j in (0, 1)]
        value = min(max(float(member(step, k, m, point, target=True)) for point in x) for m in (0, 1))
        expected = float(batch.rewards[k, i] + 0.9 * batch.continues[k, i] * value)
        assert float(found[k, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_critic_loss_and_gradients_equal_a_plain_loop() -> None:
    step, batch = continuous_step()
    rng = torch.Generator().manual_seed(5)
    targets = torch.randn(2, 24, generator=rng)
    actions, log_density = torch.rand(2, 6, 24, 2, generator=rng) * 2 - 1, torch.randn(2, 6, 24, generator=rng)
    losses = step.critic_losses(batch, targets, actions, log_density)
    found = (losses["td_loss"] + step.weighted(losses["penalty"])).sum(dim=1)
    expected = []
    for k, alpha in enumerate((0.5, 3.0)):
        loss = torch.zeros(())
        for m in (0, 1):
            td, penalty = [], []
            for i in range(24):
                q = member(step, k, m, torch.cat([batch.states[k, i], batch.actions[k, i]]))
                others = [member(step, k, m, torch.cat([batch.states[k, i], actions[k, j, i]])) for j in range(6)]
                weights = [torch.exp(other - log_density[k, j, i]) for j, other in enumerate(others)]
                penalty.append(torch.log(torch.stack(weights).sum()) - q)
                if float(batch.bellman[k, i]) == 1.0:
                    td.append((q - targets[k, i]) ** 2)
            loss = loss + torch.stack(td).mean() + alpha * torch.stack(penalty).mean()
        expected.append(loss)
    same_gradients(found, torch.stack(expected), [step.q.network])


def test_sampled_actions_are_uniform_and_from_both_states_with_their_densities() -> None:
    step, batch = continuous_step()
    step.actor.parameters.flat.mul_(0.1)  # no draw so near a bound that the oracle's 1 - a^2 is 0
    actions, log_density = step.sampled(batch)
    assert actions.shape == (2, 6, 24, 2)
    assert not actions.requires_grad
    assert not log_density.requires_grad
    torch.testing.assert_close(log_density[:, :2], torch.full((2, 2, 24), math.log(0.25)))
    assert float(actions[:, :2].abs().max()) <= 1.0
    for group, states in ((slice(2, 4), batch.states), (slice(4, 6), batch.next_states)):
        output = torch.stack([plain(step.actor, k, states[k]) for k in (0, 1)]).detach()
        law: Any = torch.distributions.TransformedDistribution(
            torch.distributions.Normal(output[..., :2].unsqueeze(1), output[..., 2:].clamp(-20, 2).exp().unsqueeze(1)),
            torch.distributions.TanhTransform(),
        )
        expected = law.log_prob(actions[:, group]).sum(dim=-1)
        torch.testing.assert_close(log_density[:, group], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("warm", [0, 5])
def test_actor_and_temperature_losses_and_gradients_equal_plain_autograd(warm: int) -> None:
    step, batch = continuous_step(warm_start_updates=warm)
    step.counts["updates"] = 1
    step.log_temperature.data.fill_(-0.7)
    noise = torch.randn(2, 24, 2, generator=torch.Generator().manual_seed(3))
    step.normal = lambda *_: noise  # type: ignore[method-assign]
    actions, log_prob = step.draw(batch.states)
    expected, temperature, normal = [], [], as_any(torch.distributions.Normal)
    for k in range(2):
        output = plain(step.actor, k, batch.states[k])
        mean, std = output[:, :2], output[:, 2:].clamp(-20, 2).exp()
        a = torch.tanh(mean + std * noise[k])
        u = mean + std * noise[k]
        density = normal(mean, std).log_prob(u) + 2 * torch.log(torch.cosh(u))
        if warm:
            u = torch.atanh(batch.actions[k].clamp(-1 + 1e-6, 1 - 1e-6))
            gain = (normal(mean, std).log_prob(u) + 2 * torch.log(torch.cosh(u))).sum(dim=1)
        else:
            x = torch.cat([batch.states[k], a], dim=1)
            gain = torch.minimum(member(step, k, 0, x), member(step, k, 1, x))
        expected.append((math.exp(-0.7) * density.sum(dim=1) - gain).mean())
        temperature.append(0.7 * (density.sum(dim=1).mean() - 2.0))
    torch.testing.assert_close(
        temperature_loss(step.log_temperature, log_prob, -2.0), torch.stack(temperature), rtol=1e-3, atol=1e-4
    )
    same_gradients(step.actor_loss(batch, actions, log_prob), torch.stack(expected), [step.actor])


def test_a_step_of_the_critics_lowers_values_of_unseen_actions_and_raises_those_of_logged_ones() -> None:
    """The gradient of the penalty reaches the critics at sampled actions; a public port lost it."""
    log = random_log(continuous=True)
    data = Transitions.from_dataset(log.replace(rewards=np.zeros(len(log)), actions=np.full((len(log), 2), 0.9)))
    step = CQL._step([CQL(**SETTINGS, learning_rate=0.01)], data, [0])
    assert isinstance(step, ContinuousCQLStep)
    batch = Batch(data, torch.arange(64).unsqueeze(0))

    def q(action: float) -> float:
        x = torch.cat([batch.states, torch.full((1, 64, 2), action)], dim=2)
        return float(step.q(x, frozen=True).mean())

    before = q(-0.9), q(0.9)
    for _ in range(30):
        step.update(batch)
    assert q(-0.9) < before[0] - 0.1
    assert q(0.9) - q(-0.9) > before[1] - before[0] + 0.5


def test_the_lagrange_multiplier_grows_while_the_gap_is_above_its_threshold() -> None:
    for threshold, grows in ((-100.0, True), (100.0, False)):
        step, batch = continuous_step(lagrange_threshold=threshold)
        step.update(batch)
        assert (step.log_multiplier.detach() > 0).all() == grows
    step, batch = continuous_step()
    step.update(batch)
    assert (step.log_multiplier == 0).all()


def test_defaults_are_the_papers() -> None:
    learner = CQL()
    assert learner._effective(False)["alpha"] == 5.0
    assert learner._effective(True)["alpha"] == 1.0
    assert learner._effective(False)["hidden"] == (256, 256, 256)
    assert (learner.learning_rate, learner.actor_learning_rate, learner.tau) == (3e-4, 1e-4, 0.005)
    assert (learner.n_action_samples, learner.lagrange_threshold, learner.max_target_backup) == (10, None, False)


# -------------------------------------------------------------------- what it learns


def test_cql_beats_cloning_with_continuous_actions_and_acts_within_bounds() -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    learner = CQL(
        **settings, gamma=0.9, alpha=0.5, actor_learning_rate=3e-3, tau=0.05, n_action_samples=2, n_updates=300,
        action_bounds=(-1, 1),
    ).fit(log)  # fmt: skip
    cloned = BehaviorCloning(**settings, n_updates=100).fit(log)
    assert line_value(learner) > line_value(cloned) + 20.0
    draws = learner.sample(np.repeat(log.states, 5, axis=0), 0)
    assert float(np.abs(draws).max()) <= 1.0
    learner.set_params(deterministic=True)
    assert learner.capabilities == {"sample", "deterministic"}
    assert line_value(learner) > line_value(cloned) + 20.0
    with pytest.raises(TypeError, match="CQL has no `log_prob`: a single continuous action has no density"):
        learner.log_prob(log.states, log.actions)
    assert learner.score(log) <= 0.0
    value = learner.q_values(log.states, log.actions)
    assert value.shape == (len(log),)
    with pytest.raises(ValueError, match=r"CQL.q_values: `actions` must be given, shape \(n, 1\)"):
        learner.q_values(log.states)


def test_score_is_the_mean_squared_error_of_the_critic() -> None:
    log = random_log(masked=True)
    learner = CQL(hidden=(6,), n_updates=5, batch_size=8, gamma=0.9).fit(log)
    q, squares = learner.q_values(log.states), []
    finals = learner.q_values(log.final_states)  # type: ignore[arg-type]
    for e in range(log.n_episodes):
        low, high = log.offsets[e], log.offsets[e + 1]
        for t in range(low, high):
            after = 0.0
            if t + 1 < high or log.ends[e] != 0:
                values = q[t + 1] if t + 1 < high else finals[e]
                mask = log.action_mask[t + 1] if t + 1 < high else log.final_action_mask[e]  # type: ignore[index]
                after = max(values[a] for a in range(3) if mask[a])
            squares.append((log.rewards[t] + 0.9 * after - q[t, log.actions[t]]) ** 2)
    assert learner.score(log) == pytest.approx(-np.mean(squares))
    with pytest.raises(
        ValueError, match=r"CQL.score: `data` must have the actions of the fit \(labels \['a', 'b', 'c'\]\)"
    ):
        learner.score(log.replace(action_labels=np.array(["a", "b", "d"])))


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((0.0, 1.0), ValueError, "CQL: `action_bounds` must hold every logged action"),
        ((1.0, -1.0), ValueError, "`action_bounds` must be .*finite with low < high"),
        (3.0, TypeError, r"CQL: `action_bounds` must be \(low, high\)"),
    ],
)
def test_bounds_that_do_not_fit(bounds: Any, error: type[Exception], message: str) -> None:
    log = LoggedDataset.from_arrays([[0.0]] * 2, [[-0.5], [0.5]], [0.0] * 2, lengths=[1, 1], ends="terminal")
    with pytest.raises(error, match=message):
        CQL(action_bounds=bounds).fit(log)
    with pytest.raises(ValueError, match="must be given where a dimension of the logged actions is constant"):
        CQL().fit(log.replace(actions=np.zeros((2, 1))))
