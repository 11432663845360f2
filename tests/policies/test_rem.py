"""REM: combinations of heads, losses and gradients against a plain loop, and what it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, plain, random_log, same_gradients, unlike
from test_gridworld import BEHAVIOR, N, fitted, probs_of, value_of
from test_learners import GRID, exact_value, grid_log

from ope.neural.transitions import Batch
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policies.rem import REM, REMStep

GAMMAS = (0.9, 0.5)


def rem_step(*, masked: bool = False, **settings: Any) -> tuple[REMStep, Batch]:
    batch = batch_of(random_log(masked=masked), 2)
    learners = [REM(**{"hidden": (6,), "n_heads": 4, **settings}, gamma=gamma) for gamma in GAMMAS]
    step = REM._step(learners, batch.transitions, [0, 1])
    assert isinstance(step, REMStep)
    unlike(step.heads_target)
    return step, batch


def all_heads(step: REMStep, k: int, state: torch.Tensor, *, target: bool = False) -> torch.Tensor:
    """The values of every head, (N, n_actions)."""
    return plain(step.heads_target if target else step.heads, k, state).view(step.n_heads, 3)


def test_shares_are_uniform_numbers_divided_by_their_sum_and_each_model_draws_its_own() -> None:
    step, _ = rem_step(n_heads=3)
    shares = torch.stack([step.shares() for _ in range(2000)])
    assert shares.shape == (2000, 2, 3)
    assert float(shares.min()) >= 0.0
    torch.testing.assert_close(shares.sum(dim=2), torch.ones(2000, 2))
    uniform = np.random.default_rng(0).random((200_000, 3))
    second = np.mean(np.square(uniform / uniform.sum(axis=1, keepdims=True)))
    assert float(shares.square().mean()) == pytest.approx(second, rel=0.03)
    assert not torch.equal(shares[:, 0], shares[:, 1])
    # Drawn by the models' own generators: an equal seed gives equal shares whoever trains beside it.
    alone = REM._step([REM(hidden=(6,), n_heads=3, random_state=1)], step_data(), [1])
    assert isinstance(alone, REMStep)
    torch.testing.assert_close(alone.shares()[0], shares[0, 1])


def step_data() -> Any:
    return batch_of(random_log(), 1).transitions


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradients_equal_a_plain_loop_over_all_heads(masked: bool) -> None:
    step, batch = rem_step(masked=masked)
    shares = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.2, 0.1]])
    expected, large = [], 0
    for k, gamma in enumerate(GAMMAS):
        terms = []
        for i in range(24):
            if float(batch.bellman[k, i]) == 0.0:
                continue
            heads = all_heads(step, k, batch.next_states[k, i], target=True).detach()
            ahead = [sum(float(shares[k, h] * heads[h, a]) for h in range(4)) for a in range(3)]
            mask = batch.next_action_mask
            open_then = [a for a in range(3) if mask is None or bool(mask[k, i, a])]
            best = max(ahead[a] for a in open_then)
            y = float(batch.rewards[k, i]) + gamma * float(batch.continues[k, i]) * best
            q = torch.stack([shares[k, h] * all_heads(step, k, batch.states[k, i])[h] for h in range(4)]).sum(dim=0)
            error = (q[batch.actions[k, i]] - y).abs()
            large += int(float(error.detach()) > 1)
            terms.append(error - 0.5 if float(error.detach()) > 1 else 0.5 * error**2)
        assert len(terms) < 24
        expected.append(torch.stack(terms).mean())
    assert 0 < large < 46
    same_gradients(step.losses(batch, shares)["loss"], torch.stack(expected), [step.heads])


def test_an_update_draws_one_combination_for_both_sides() -> None:
    step, batch = rem_step()
    drawn = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2)
    asked: list[int] = []

    def shares() -> torch.Tensor:
        asked.append(1)
        return drawn

    step.shares = shares  # type: ignore[method-assign]
    before, target = step.heads.parameters.flat.clone(), step.heads_target.parameters.flat.clone()
    loss = step.losses(batch, drawn)["loss"].detach()
    torch.testing.assert_close(step.update(batch)["loss"], loss)
    assert asked == [1]
    # Heads without a share stay as they are, on either side of the equation.
    moved = step.heads.parameters.flat - before
    parts = step.heads.parameters.split(moved)
    last = parts["weight1"].view(2, 6, 4, 3)
    assert float(last[:, :, 0].abs().sum()) > 0.0
    assert float(last[:, :, 1:].abs().sum()) == 0.0
    expected = 0.995 * target + 0.005 * step.heads.parameters.flat
    torch.testing.assert_close(step.heads_target.parameters.flat, expected)


def test_the_policy_is_the_mean_of_the_heads() -> None:
    step, batch = rem_step()
    step.update(batch)
    network = step.networks["q"].with_rows(step.snapshot()["q"])
    for k in range(2):
        mean = torch.stack([all_heads(step, k, state).mean(dim=0) for state in batch.states[k]])
        torch.testing.assert_close(network(batch.states)[k], mean, rtol=1e-4, atol=1e-5)
    learner = REM(hidden=(6,), n_heads=9, n_updates=5, batch_size=8).fit(random_log())
    assert {name: net.sizes for name, net in learner.networks_.items()} == {"q": (3, 6, 3)}


def test_defaults() -> None:
    learner = REM()
    assert (learner.n_heads, learner.gamma, learner.tau, learner.hidden) == (200, 0.99, 0.005, (256, 256))
    with pytest.raises(ValueError, match=r"REM: `n_heads` must be an integer in \[1, inf\), got 0; pass one."):
        REM(n_heads=0).fit(random_log(4))
    with pytest.raises(TypeError, match="REM: `data` must have discrete actions, got continuous ones; use TD3BC"):
        REM().fit(random_log(4, continuous=True))


def test_rem_finds_the_optimum_where_every_action_was_tried() -> None:
    log, settings = grid_log(150, 0), {"hidden": (32,), "batch_size": 64, "learning_rate": 5e-3, "n_updates": 500}
    learner = REM(**settings, gamma=0.9, tau=0.05).fit(log)  # type: ignore[arg-type]
    assert learner.predict(np.eye(GRID)[:-1]).tolist() == ["right"] * (GRID - 1)
    cloned = BehaviorCloning(**settings).fit(log)  # type: ignore[arg-type]
    assert exact_value(learner, 0.9) > exact_value(cloned, 0.9) + 5.0


def test_rem_like_plain_q_learning_believes_in_an_action_that_was_never_taken() -> None:
    believed = fitted("REM").q_values(np.eye(N)[:-1])
    assert float(np.median(believed[:, 4])) > -5.0
    assert value_of(probs_of("REM")) < value_of(np.tile(BEHAVIOR, (N, 1))) - 10.0
