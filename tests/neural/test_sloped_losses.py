"""Losses with a written-down derivative, against automatic differentiation."""

from __future__ import annotations

import pytest
import torch

from ope.neural.losses import sloped, weighted_square
from ope.policies._losses import expectile_loss


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 7)])
def test_weighted_square_has_the_value_and_slope_of_its_formula(shape: tuple[int, ...]) -> None:
    prediction, target = values(*shape).requires_grad_(), values(*shape, seed=1)
    weight = values(*shape, seed=2).abs()
    total = weight.sum(dim=-1, keepdim=True)
    found = weighted_square(prediction, target, weight, total)
    expected = (weight * (prediction - target) ** 2).sum(dim=-1) / total.squeeze(-1)
    torch.testing.assert_close(found, expected)
    direction = values(*found.shape, seed=3)
    ours = torch.autograd.grad((found * direction).sum(), prediction)
    theirs = torch.autograd.grad((expected * direction).sum(), prediction)
    torch.testing.assert_close(ours, theirs)


def test_targets_and_weights_get_no_gradient_and_a_constant_needs_none() -> None:
    prediction, target = values(1, 4).requires_grad_(), values(1, 4, seed=1).requires_grad_()
    loss = weighted_square(prediction, target, 1.0, 4)
    assert torch.autograd.grad(loss.sum(), [prediction, target], allow_unused=True)[1] is None
    assert not weighted_square(prediction.detach(), target, 1.0, 4).requires_grad


def test_a_second_derivative_is_refused_instead_of_wrong() -> None:
    x = values(1, 3).requires_grad_()
    (slope,) = torch.autograd.grad(
        sloped((x.detach() ** 2).sum(dim=1), x, 2.0 * x.detach()).sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(slope.sum(), x)


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_expectile_loss_pulls_up_where_values_lie_below(expectile: float) -> None:
    prediction, target = values(2, 50).requires_grad_(), values(2, 50, seed=1)
    gap = target - prediction
    expected = (torch.where(gap < 0, 1.0 - expectile, expectile) * gap**2).mean(dim=1)
    found = expectile_loss(prediction, target, torch.full((2, 1), expectile, dtype=torch.float64))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), prediction), torch.autograd.grad(expected.sum(), prediction)
    )
