"""Products between hidden layers in bfloat16: against plain layers that round at the same places, and what stays in 32 bits."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch.nn import functional

from ope.neural import perceptron as module
from ope.neural.networks import MLP
from ope.neural.perceptron import SHORT_BLOCK_ROWS
from ope.neural.precision import between_hidden_layers, use_precision

ROWS = (1, 300, 2 * SHORT_BLOCK_ROWS + 11)


def network(*hidden: int) -> MLP:
    return MLP([5, *hidden, 2], n_models=2).initialize([torch.Generator().manual_seed(k) for k in (0, 1)])


def inputs(rows: int) -> torch.Tensor:
    return torch.randn(2, rows, 5, generator=torch.Generator().manual_seed(2))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Round to bfloat16 with the derivative of the identity."""
    return x + (x.detach().to(torch.bfloat16).to(x.dtype) - x.detach())


def plain(own: MLP, x: torch.Tensor) -> torch.Tensor:
    """Return the outputs in 64 bits, rounded where products between hidden layers take and give their numbers."""
    rows = []
    last = len(own.sizes) - 2
    for k in range(own.n_models):
        h = x[k].double()
        for layer in range(last + 1):
            weight, bias = (own.parameters.views[f"{kind}{layer}"][k].double() for kind in ("weight", "bias"))
            short = 0 < layer < last
            h = rounded(rounded(h) @ rounded(weight) + rounded(bias)) if short else h @ weight + bias
            h = functional.relu(h) if layer < last else h
        rows.append(h)
    return torch.stack(rows)


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative distance."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("worth_a_call", [0, 1 << 40], ids=["blocks", "batched"])
@pytest.mark.parametrize("rows", ROWS)
def test_values_and_gradients(worth_a_call: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_A_CALL", worth_a_call)
    own, x = network(64, 48, 32), inputs(rows).requires_grad_()
    wanted = [x, *own.parameters.views.values()]
    with use_precision("bfloat16"):
        found = own(x)
        with torch.no_grad():
            torch.testing.assert_close(own(x), found)
    expected = plain(own, x)
    # One rounding is 2^-9 of a number; that of a sum whose order differs may fall on the other side.
    assert found.dtype == torch.float32
    assert far(found, expected) < 2e-3
    ours = torch.autograd.grad(found.square().sum(), wanted)
    theirs = torch.autograd.grad(expected.square().sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert far(one, other) < 1e-2
    exact = own(x)
    assert 1e-5 < far(found, exact) < 1e-2


def test_the_first_and_the_last_layer_stay_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_A_CALL", 0)
    for own in (network(), network(64)):
        exact = own(inputs(40))
        with use_precision("bfloat16"):
            assert torch.equal(own(inputs(40)), exact)


@pytest.mark.parametrize("twice", [False, True])
def test_second_derivatives(twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_A_CALL", 0)
    own, x = network(64, 48, 32), inputs(30).requires_grad_()

    def penalty(values: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(values.square().sum(), x, create_graph=True)
        return slope.square().sum()

    wanted = [own.parameters.views["weight1"], own.parameters.views["weight3"]]
    with use_precision("bfloat16"):
        ours = torch.autograd.grad(penalty(own(x, twice=twice)), wanted)
    theirs = torch.autograd.grad(penalty(plain(own, x)), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert far(one, other) < 3e-2


def test_features_come_in_32_bits() -> None:
    own = network(64, 48)
    exact = own.features(inputs(40))
    with use_precision("bfloat16"):
        found = own.features(inputs(40))
    assert found.dtype == torch.float32
    assert 1e-5 < far(found, exact) < 1e-2


def test_the_block_ends_and_other_threads_do_not_see_it() -> None:
    seen = []
    with use_precision("bfloat16"):
        with use_precision("float32"):
            assert between_hidden_layers() is None
        assert between_hidden_layers() is torch.bfloat16
        other = Thread(target=lambda: seen.append(between_hidden_layers()))
        other.start()
        other.join()
    assert seen == [None]
    assert between_hidden_layers() is None


def test_tf32_is_torchs_setting_and_ends_with_the_block() -> None:
    before = torch.get_float32_matmul_precision()
    with use_precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has one switch only")
def test_tf32_beside_torchs_newer_switch() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        with use_precision("tf32"):
            assert matmul.fp32_precision == "tf32"
        assert matmul.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision = before
