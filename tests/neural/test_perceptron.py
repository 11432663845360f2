"""Blocks of rows against batched products and against one plain layer at a time: values, first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional

from ope.neural import perceptron as module
from ope.neural.ensemble import Ensemble
from ope.neural.perceptron import BLOCK_ROWS, NARROW, Perceptron, gradients_written_to

SIZES = (5, 7, 6, 3)


def layers(n_models: int, *, trains: bool = True, width: int = SIZES[-1]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_(trains)

    return [(draw(n_models, n_in, n_out), draw(n_models, 1, n_out)) for n_in, n_out in pairwise((*SIZES[:-1], width))]


def inputs(n_models: int, rows: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.randn(n_models, rows, 5, generator=rng, dtype=torch.float64)


def plain(x: torch.Tensor, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the outputs, model by model and row by row of layers."""
    rows = []
    for k in range(len(x)):
        h = x[k]
        for layer, (weight, bias) in enumerate(parts):
            h = functional.linear(h, weight[k].T, bias[k, 0])
            h = functional.relu(h) if layer < len(parts) - 1 else h
        rows.append(h)
    return torch.stack(rows)


def total(evaluate: Callable[[torch.Tensor], torch.Tensor], data: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([evaluate(x).square().sum() for x in data]).sum()


@pytest.fixture(autouse=True)
def _always_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_A_CALL", 0)


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("rows", [1, BLOCK_ROWS, 2 * BLOCK_ROWS + 11])
@pytest.mark.parametrize("width", [1, *NARROW[:: len(NARROW) - 1], NARROW.stop])
def test_values_and_gradients_equal_plain_layers(n_models: int, rows: int, width: int) -> None:
    parts = layers(n_models, width=width)
    network, x = Perceptron(parts), inputs(n_models, rows).requires_grad_()
    direction = torch.randn(n_models, rows, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = [x, *network.parameters]
    found, expected = network(x), plain(x, parts)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad((found * direction).sum(), wanted)
    theirs = torch.autograd.grad((expected * direction).sum(), wanted)
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected)


@pytest.mark.skipif(module._ONEDNN_LINEAR is None, reason="torch has no such product on this processor")
@pytest.mark.parametrize("rows", [1, BLOCK_ROWS + 11])
def test_onednns_products_equal_others(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [(w.detach().float().requires_grad_(), b.detach().float().requires_grad_()) for w, b in layers(2)]
    network, x = Perceptron(parts), inputs(2, rows).float().requires_grad_()
    wanted = [x, *network.parameters]
    calls: list[int] = []

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(len(arguments[0]))
        result: torch.Tensor = linear(*arguments)
        return result

    linear = module._ONEDNN_LINEAR
    monkeypatch.setattr(module, "_ONEDNN_LINEAR", counted)
    found = []
    for worth in (0, 1 << 60):
        monkeypatch.setattr(module, "WORTH_ONEDNN", worth)
        values = network(x)
        found.append([values, *torch.autograd.grad(values.square().sum(), wanted)])
    assert sum(calls) == 2 * 2 * rows  # two hidden layers of two models, the first time alone
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0][0], plain(x, parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("worth", [0, 1 << 60])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_seen_at_the_end(worth: int, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_ONEDNN", worth)
    parts = [(w.detach().float(), b.detach().float()) for w, b in layers(2, trains=False)]
    x = inputs(2, 30).float()
    x[0, 3, 0] = bad
    values, expected = Perceptron(parts)(x), plain(x, parts)
    assert torch.equal(values.isfinite(), expected.isfinite())
    parts[1][0][1].fill_(torch.nan)
    assert Perceptron(parts)(x)[1].isnan().all()


def test_what_is_not_asked_for_is_not_differentiated() -> None:
    frozen, x = Perceptron(layers(2, trains=False)), inputs(2, 300).requires_grad_()
    (found,) = torch.autograd.grad(frozen(x).square().sum(), x)
    (expected,) = torch.autograd.grad(plain(x, layers(2, trains=False)).square().sum(), x)
    torch.testing.assert_close(found, expected)
    assert not frozen(x.detach()).requires_grad
    parts = layers(2)
    gradients = torch.autograd.grad(Perceptron(parts)(x.detach()).sum(), [parts[0][0], parts[2][1]])
    expected_parts = torch.autograd.grad(plain(x.detach(), parts).sum(), [parts[0][0], parts[2][1]])
    torch.testing.assert_close(gradients, expected_parts)


def test_derivatives_can_be_differentiated_again() -> None:
    parts = layers(2)

    def penalty(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(values.square().sum(), x, create_graph=True)
        return slope.square().sum()

    x = inputs(2, 270).requires_grad_()
    wanted = [x, *Perceptron(parts).parameters]
    ours = torch.autograd.grad(penalty(Perceptron(parts)(x), x), wanted)
    theirs = torch.autograd.grad(penalty(plain(x, parts), x), wanted)
    torch.testing.assert_close(ours, theirs)


def test_one_graph_may_be_walked_twice_and_an_input_may_serve_all_models() -> None:
    parts = layers(3)
    network, x = Perceptron(parts), inputs(1, 20)[0].expand(3, -1, -1)
    values = network(x)
    first = torch.autograd.grad(values.sum(), network.parameters, retain_graph=True)
    again = torch.autograd.grad(values.sum(), network.parameters)
    torch.testing.assert_close(first, again)
    torch.testing.assert_close(values, plain(x, parts))


@pytest.mark.parametrize("times", [1, 2])
def test_gradients_are_written_where_they_belong(times: int) -> None:
    parts = layers(2)
    network = Perceptron(parts)
    data = [inputs(2, 20), inputs(2, BLOCK_ROWS + 3)][:times]
    wanted = network.parameters[:-1]
    places = [torch.full_like(tensor, torch.nan) for tensor in wanted]
    with gradients_written_to({tensor.data_ptr(): place for tensor, place in zip(wanted, places, strict=True)}):
        found = torch.autograd.grad(total(network, data), [*wanted, network.parameters[-1]])
    expected = torch.autograd.grad(total(lambda x: plain(x, parts), data), network.parameters)
    torch.testing.assert_close(found, expected)
    if times == 1:
        assert [gradient.data_ptr() for gradient in found[:-1]] == [place.data_ptr() for place in places]
    # A network of some of the models begins at the same address, and has gradients of another shape.
    first = Perceptron([(weight[:1], bias[:1]) for weight, bias in parts])
    with gradients_written_to({tensor.data_ptr(): place for tensor, place in zip(wanted, places, strict=True)}):
        of_first = torch.autograd.grad(total(first, [x[:1] for x in data]), wanted)
    torch.testing.assert_close([g[:1] for g in of_first], [g[:1] for g in expected[:-1]])
    # Outside the block nothing is written there.
    before = [place.clone() for place in places]
    torch.autograd.grad(network(data[0]).sum(), wanted)
    torch.testing.assert_close(places, before)


def test_changes_in_place_are_seen_and_no_rows_give_no_rows() -> None:
    parts = layers(2, trains=False)
    network, x = Perceptron(parts), inputs(2, 9)
    parts[1][0].mul_(2.0)
    torch.testing.assert_close(network(x), plain(x, parts))
    assert network(x[:, :0]).shape == (2, 0, 3)


def test_the_first_member_of_an_ensemble() -> None:
    twins = Ensemble((5, 300, 2), n_models=2).initialize([torch.Generator().manual_seed(k) for k in (0, 1)])
    x = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    torch.testing.assert_close(twins.first(x), twins(x)[:, 0])
    found = torch.autograd.grad(twins.first(x).square().sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(twins(x)[:, 0].square().sum(), x))


def test_small_products_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_A_CALL", 1 << 21)
    monkeypatch.setattr(Perceptron, "forward", None)
    parts = layers(3)
    torch.testing.assert_close(Perceptron(parts)(inputs(3, 4)), plain(inputs(3, 4), parts))
