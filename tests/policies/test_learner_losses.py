"""The losses of learners against plain loops, gradients included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learner_logs import plain, random_log
from torch.nn import functional

from ope.neural.transitions import Batch, Transitions
from ope.policies._discrete_bcq import BCQStep
from ope.policies.bcq import BCQ
from ope.policies.behavior_cloning import BehaviorCloning, CloningStep
from ope.schema import End

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
    assert (learner.perturbation, learner.min_weight, learner.vae_hidden) == (0.05, 0.75, (750, 750))
    assert (learner.n_target_samples, learner.n_act_samples) == (10, 100)
    names = ("hidden", "batch_size", "learning_rate")
    discrete, continuous = (learner._effective(kind) for kind in (True, False))
    assert [discrete[name] for name in names] == [(256, 256), 256, 3e-4]
    assert [continuous[name] for name in names] == [(400, 300), 100, 1e-3]


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


def test_smooth_l1_has_its_corner_at_one() -> None:
    # The loss of torch that the learner uses and the formula of the plain loop agree by definition of beta = 1.
    errors = torch.tensor([0.5, 3.0])
    assert functional.smooth_l1_loss(errors, torch.zeros(2), reduction="none").tolist() == [0.125, 2.5]
