"""AWAC and CRR: losses and gradients against plain loops, their weights, and what they learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, random_log, same_gradients, unlike
from scipy import stats

from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._distributions import TruncatedNormal
from ope.policies._heads import drawn
from ope.policies._weighted_step import WeightedStep
from ope.policies.awac import AWAC, softmax_weights
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policies.crr import CRR, LOG_STD_BOUNDS, binary_weights, exponential_weights

BETAS = (0.5, 2.0)


def weighted_step(
    learner_class: Any, *, continuous: bool, masked: bool = False, **settings: Any
) -> tuple[WeightedStep, Batch]:
    batch = batch_of(random_log(continuous=continuous, masked=masked), 2)
    learners = [learner_class(hidden=(6,), gamma=0.9, beta=beta, **settings) for beta in BETAS]
    step = learner_class._step(learners, batch.transitions, [0, 1])
    assert isinstance(step, WeightedStep)
    unlike(step.q_target.network, step.actor_target)
    return step, batch


def probs_at(step: WeightedStep, k: int, state: torch.Tensor, mask: torch.Tensor | None, *, target: bool) -> Any:
    logits = plain(step.actor_target if target else step.actor, k, state).detach().tolist()
    heights = [math.exp(x) if mask is None or bool(mask[a]) else 0.0 for a, x in enumerate(logits)]
    return [height / sum(heights) for height in heights]


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_discrete_targets_and_advantages_equal_a_plain_loop(masked: bool) -> None:
    step, batch = weighted_step(CRR, continuous=False, masked=masked)
    targets, advantages = step.targets(batch), step.advantages(batch)
    for k in range(2):
        for i in range(24):
            mask = None if batch.next_action_mask is None else batch.next_action_mask[k, i]
            probs = probs_at(step, k, batch.next_states[k, i], mask, target=True)
            twins = [plain(step.q_target.network, 2 * k + m, batch.next_states[k, i]).tolist() for m in (0, 1)]
            value = min(sum(p * q for p, q in zip(probs, twin, strict=True)) for twin in twins)
            expected = float(batch.rewards[k, i]) + 0.9 * float(batch.continues[k, i]) * value
            assert float(targets[k, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
            mask = None if batch.action_mask is None else batch.action_mask[k, i]
            probs = probs_at(step, k, batch.states[k, i], mask, target=False)
            least = [
                min(pair)
                for pair in zip(
                    *(plain(step.q.network, 2 * k + m, batch.states[k, i]).tolist() for m in (0, 1)), strict=True
                )
            ]
            gap = least[int(batch.actions[k, i])] - sum(p * q for p, q in zip(probs, least, strict=True))
            assert float(advantages[k, i]) == pytest.approx(gap, rel=1e-3, abs=1e-5)


def std_of(step: WeightedStep, actor: MLP, k: int) -> torch.Tensor:
    """The standard deviation of model k, (2,): CRR clamps its log, AWAC bends it."""
    low, high = step.form.log_std_bounds
    if step.form.smooth_log_std:
        return torch.exp(low + (high - low) / (1 + torch.exp(-actor.parameters.views["log_std_logit"][k, 0])))
    return torch.exp(torch.stack([x.clamp(low, high) for x in actor.parameters.views["log_std"][k, 0]]))


def truncated_draw(mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The quantile of the truncated normal at the share that the noise is of a whole one."""
    mu, sigma = mean.double().numpy(), std.double().numpy()
    share = stats.norm.cdf(noise.double().numpy())
    return torch.as_tensor(stats.truncnorm.ppf(share, (-1 - mu) / sigma, (1 - mu) / sigma, mu, sigma)).float()


@torch.no_grad()
@pytest.mark.parametrize(("learner_class", "n_samples"), [(CRR, 3), (AWAC, 1)])
def test_continuous_targets_and_advantages_equal_a_plain_loop(learner_class: Any, n_samples: int) -> None:
    own: dict[str, Any] = {"n_action_samples": 3} if learner_class is CRR else {}
    step, batch = weighted_step(learner_class, continuous=True, **own)
    name = "log_std" if learner_class is CRR else "log_std_logit"
    step.actor.parameters.constants[name].fill_(-0.5)
    step.actor_target.parameters.constants[name].fill_(9.0)
    noises = iter([torch.randn(2, n, 2, generator=torch.Generator().manual_seed(n)) for n in (24, 24 * n_samples)])
    kept: list[torch.Tensor] = []

    def draw(*_: int) -> torch.Tensor:
        kept.append(next(noises))
        return kept[-1]

    step.normal = draw  # type: ignore[method-assign]
    targets, advantages = step.targets(batch), step.advantages(batch)

    def least(k: int, state: torch.Tensor, action: torch.Tensor, *, target: bool) -> float:
        network = (step.q_target if target else step.q).network
        return min(float(plain(network, 2 * k + m, torch.cat([state, action]))[0]) for m in (0, 1))

    for k in range(2):
        for i in range(24):
            after = batch.next_states[k, i]
            mean = torch.tanh(plain(step.actor_target, k, after))
            action = truncated_draw(mean, std_of(step, step.actor_target, k), kept[0][k, i])
            assert float(action.abs().max()) <= 1.0
            value = least(k, after, action, target=True)
            expected = float(batch.rewards[k, i]) + 0.9 * float(batch.continues[k, i]) * value
            assert float(targets[k, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
            state, mean = batch.states[k, i], torch.tanh(plain(step.actor, k, batch.states[k, i]))
            noise, std = kept[1][k, i::24], std_of(step, step.actor, k)
            baseline = sum(least(k, state, truncated_draw(mean, std, z), target=False) for z in noise) / n_samples
            gap = least(k, state, batch.actions[k, i], target=False) - baseline
            assert float(advantages[k, i]) == pytest.approx(gap, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("learner_class", [AWAC, CRR])
@pytest.mark.parametrize("continuous", [False, True])
def test_losses_and_gradients_equal_a_plain_loop(learner_class: Any, continuous: bool) -> None:
    step, batch = weighted_step(learner_class, continuous=continuous)
    rng = torch.Generator().manual_seed(4)
    targets, advantages = torch.randn(2, 24, generator=rng), 2.0 * torch.randn(2, 24, generator=rng)
    critic, actor = [], []
    for k, beta in enumerate(BETAS):
        heights = [math.exp(a / beta) for a in advantages[k].tolist()]
        weights = [24 * h / sum(heights) for h in heights] if learner_class is AWAC else [min(h, 20.0) for h in heights]
        loss, terms = torch.zeros(()), []
        for i in range(24):
            for m in (0, 1):
                if continuous:
                    q = plain(step.q.network, 2 * k + m, torch.cat([batch.states[k, i], batch.actions[k, i]]))[0]
                else:
                    q = plain(step.q.network, 2 * k + m, batch.states[k, i])[batch.actions[k, i]]
                loss = loss + batch.bellman[k, i] * (q - targets[k, i]) ** 2
            output = plain(step.actor, k, batch.states[k, i])
            if continuous:
                std = std_of(step, step.actor, k)
                z = (batch.actions[k, i] - torch.tanh(output)) / std
                log_prob = (-(z**2) / 2 - torch.log(std * math.sqrt(2 * math.pi))).sum()
            else:
                log_prob = output[batch.actions[k, i]] - torch.log(torch.exp(output).sum())
            terms.append(-weights[i] * log_prob)
        critic.append(loss / batch.bellman[k].sum())
        actor.append(torch.stack(terms).mean())
    same_gradients(step.q_loss(batch, targets), torch.stack(critic), [step.q.network])
    same_gradients(step.actor_loss(batch, advantages), torch.stack(actor), [step.actor])


def test_draws_of_training_are_those_of_the_policy() -> None:
    learner = CRR(hidden=(6,), n_updates=2, batch_size=8).fit(random_log(continuous=True))
    state = np.array([[0.3, -1.0, 0.1]])
    noise = torch.randn(1, 20_000, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = torch.as_tensor(learner.origin_.states.transform(np.repeat(state, 20_000, axis=0))).float()
        found = drawn(learner.networks_["actor"], x[None], noise, LOG_STD_BOUNDS)[0].double().numpy()
    assert learner.origin_.actions is not None
    acted = learner.origin_.actions.transform(learner.sample(np.repeat(state, 20_000, axis=0), 1))
    for k in range(2):
        assert stats.ks_2samp(found[:, k], acted[:, k]).pvalue > 0.01
        assert np.abs(found[:, k]).max() <= 1.0


@pytest.mark.parametrize("mean", [-1.0, 0.0, 1.0])
def test_a_narrow_policy_stays_near_its_mean_at_the_bounds(mean: float) -> None:
    actor = MLP((1, 1), 1, extras={"log_std": (1, 1)})
    actor.parameters.constants["bias0"].fill_(20.0 * mean)
    actor.parameters.constants["log_std"].fill_(-4.0)
    noise = torch.tensor([[[-9.0], [-3.0], [0.0], [3.0], [9.0]]])
    with torch.no_grad():
        found = drawn(actor, torch.zeros(1, 5, 1), noise, (-5.0, 2.0))
    assert torch.isfinite(found).all()
    assert float((found - mean).abs().max()) <= 8.1 * math.exp(-4.0)
    assert bool((found[0, 1:, 0] >= found[0, :-1, 0]).all())


def test_a_standard_deviation_of_awac_starts_small_and_always_has_a_gradient() -> None:
    # Actions at the bounds, which a policy around 0 wants as wide as it may be.
    rng = np.random.default_rng(0)
    log = random_log(256, 1, continuous=True).replace(actions=rng.choice([-1.0, 1.0], (256, 2)))
    first = AWAC(hidden=(4,), n_updates=1, learning_rate=1e-6, batch_size=256).fit(log)
    law = first._distribution(np.zeros((1, 3)))
    assert isinstance(law, TruncatedNormal)
    assert law.std == pytest.approx(math.exp(-3.0), rel=1e-3)
    batch = batch_of(log, 1)
    step = AWAC._step([AWAC(hidden=(4,))], batch.transitions, [0])
    assert isinstance(step, WeightedStep)
    logit = step.actor.parameters.views["log_std_logit"]
    for start in (-3.0, 0.0, 3.0):
        step.actor.parameters.constants["log_std_logit"].fill_(start)
        (gradient,) = torch.autograd.grad(step.actor_loss(batch, torch.zeros(1, batch.shape[1])).sum(), [logit])
        assert float(gradient.abs().min()) > 1e-6


def test_weights() -> None:
    advantages, temperature = torch.tensor([[-1.0, 0.0, 9.0]]), torch.tensor([[2.0]])
    exponential = [math.exp(-0.5), 1.0, 20.0]
    assert exponential_weights(advantages, temperature)[0].tolist() == pytest.approx(exponential)
    assert binary_weights(advantages, temperature)[0].tolist() == [0.0, 0.0, 1.0]
    heights = np.exp([-0.5, 0.0, 4.5])
    assert softmax_weights(advantages, temperature)[0].tolist() == pytest.approx(list(3 * heights / heights.sum()))


@pytest.mark.parametrize(("learner_class", "own"), [(AWAC, {}), (CRR, {"binary": True}), (CRR, {})])
def test_each_beats_cloning(learner_class: Any, own: dict[str, Any]) -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    learner = learner_class(**settings, **own, gamma=0.9, tau=0.05, n_updates=250).fit(log)
    assert line_value(learner) > line_value(BehaviorCloning(**settings, n_updates=100).fit(log)) + 20.0
