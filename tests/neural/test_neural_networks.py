"""Batched networks and their optimiser against one model at a time."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch.nn import functional

from ope.neural.device import one_thread, resolve_device, use_threads
from ope.neural.generators import ModelGenerators, derive_seed
from ope.neural.networks import ALIGNMENT, MLP, FlatParameters
from ope.neural.optimizer import FlatAdam

SIZES = (5, 7, 6, 3)


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def plain_forward(network: MLP, k: int, x: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the output of model k for rows of x by torch's linear layers."""
    h = x
    n_layers = len(network.sizes) - 1
    for layer in range(n_layers):
        h = functional.linear(h, parameters[f"weight{layer}"][k].T, parameters[f"bias{layer}"][k, 0])
        if layer < n_layers - 1:
            h = functional.relu(h)
    return h


def test_forward_and_gradients_equal_plain_layers() -> None:
    network = MLP(SIZES, 4).initialize(generators([0, 1, 2, 3]))
    x = torch.randn(4, 11, 5, generator=torch.Generator().manual_seed(9))
    weights = torch.randn(4, 11, 3, generator=torch.Generator().manual_seed(8))
    copies = {name: view.detach().clone().requires_grad_() for name, view in network.parameters.views.items()}
    plain = torch.stack([plain_forward(network, k, x[k], copies) for k in range(4)])
    batched = network(x)
    torch.testing.assert_close(batched, plain)
    names = list(copies)
    expected = torch.autograd.grad((plain * weights).sum(), [copies[name] for name in names])
    found = torch.autograd.grad((batched * weights).sum(), [network.parameters.views[name] for name in names])
    for name, ours, theirs in zip(names, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_one_input_serves_all_models() -> None:
    network = MLP(SIZES, 3).initialize(generators([0, 1, 2]))
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), network(torch.stack([x, x, x])))


def test_initial_weights_are_torchs_default_and_do_not_depend_on_neighbours() -> None:
    together = MLP((100, 50, 2), 3).initialize(generators([5, 6, 7]))
    alone = MLP((100, 50, 2), 1).initialize(generators([6]))
    assert torch.equal(together.parameters.flat[1], alone.parameters.flat[0])
    for layer, n_in in enumerate((100, 50)):
        for name in (f"weight{layer}", f"bias{layer}"):
            values = together.parameters.constants[name]
            assert float(values.abs().max()) <= 1 / math.sqrt(n_in)
    weight = together.parameters.constants["weight0"]
    # A uniform variable on (-b, b) has standard deviation b / sqrt(3); 15000 draws give it to 1 %.
    assert float(weight.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.03)
    assert float(weight.mean()) == pytest.approx(0.0, abs=4 * 0.1 / math.sqrt(3 * 15000))


def test_twins_of_a_model_differ_and_do_not_depend_on_neighbours() -> None:
    first, second = generators([3, 4])
    twins = MLP(SIZES, 4).initialize([first, first, second, second])
    [alone] = generators([4])
    pair = MLP(SIZES, 2).initialize([alone, alone])
    assert torch.equal(twins.parameters.flat[2:], pair.parameters.flat)
    assert not torch.equal(pair.parameters.flat[0], pair.parameters.flat[1])


def test_frozen_forward_differentiates_the_input_only() -> None:
    network = MLP(SIZES, 2).initialize(generators([0, 1]))
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    [expected] = torch.autograd.grad(network(x).square().sum(), [x])
    loss = network(x, frozen=True).square().sum()
    found = torch.autograd.grad(loss, [x, *network.parameters.views.values()], allow_unused=True)
    assert found[0] is not None
    torch.testing.assert_close(found[0], expected)
    assert all(gradient is None for gradient in found[1:])


def test_parameters_share_one_aligned_buffer() -> None:
    parameters = FlatParameters({"a": (3, 2), "b": (5,)}, n_models=2)
    assert parameters.flat.shape == (2, 2 * ALIGNMENT)
    parameters.flat[1, ALIGNMENT] = 7.0
    assert float(parameters.views["b"].detach()[1, 0]) == 7.0
    assert float(parameters.constants["b"][1, 0]) == 7.0
    parameters.constants["a"][0, 0, 1] = 3.0
    assert float(parameters.flat[0, 1]) == 3.0


@pytest.mark.parametrize("weight", [0.25, torch.tensor([[0.25], [0.5]])])
def test_polyak_step(weight: float | torch.Tensor) -> None:
    online, target = (MLP(SIZES, 2).initialize(generators([a, b])) for a, b in [(0, 1), (2, 3)])
    rates = [0.25, 0.25] if isinstance(weight, float) else [0.25, 0.5]
    before = {name: view.clone() for name, view in target.parameters.constants.items()}
    target.parameters.lerp_from(online.parameters, weight)
    for name, view in target.parameters.constants.items():
        for k, rate in enumerate(rates):
            torch.testing.assert_close(
                view[k], (1 - rate) * before[name][k] + rate * online.parameters.constants[name][k]
            )


def test_copies_pickles_and_rows_hold_the_same_values() -> None:
    network = MLP(SIZES, 3, extras={"log_std": (1, 4)}).initialize(generators([0, 1, 2]))
    network.parameters.constants["log_std"].fill_(0.5)
    x = torch.ones(2, 5)
    for twin in (network.copy(), copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), network(x))
        assert torch.equal(twin.parameters.views["log_std"], network.parameters.views["log_std"])
        twin.parameters.flat.zero_()
        assert float(network.parameters.flat.abs().sum()) > 0
    assert not network.copy().parameters.trainable
    row = network.with_rows(network.parameters.flat[1:2])
    torch.testing.assert_close(row(x)[0], network(x)[1])


def test_weights_change_in_place() -> None:
    network = MLP(SIZES, 2).initialize(generators([0, 1]))
    for weight in network.weights:
        weight.mul_(0.0)
    assert torch.equal(network(torch.ones(1, 5)), network.parameters.views["bias2"])


# -------------------------------------------------------------------- optimiser


def loss_of(network: MLP, x: torch.Tensor) -> torch.Tensor:
    return (network(x) - 1.0).square().sum(dim=(1, 2))


@pytest.mark.parametrize(
    ("rates", "decays"), [([1e-2] * 3, [0.0] * 3), ([1e-2, 3e-3, 1e-2], [0.0, 0.0, 0.1])], ids=["equal", "different"]
)
def test_adam_equals_torchs_on_each_model_and_layer(rates: list[float], decays: list[float]) -> None:
    network = MLP(SIZES, 3).initialize(generators([0, 1, 2]))
    x = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(5))
    plain = {name: view.detach().clone() for name, view in network.parameters.views.items()}
    models = [{name: view[k : k + 1].clone().requires_grad_() for name, view in plain.items()} for k in range(3)]
    peers = [
        torch.optim.AdamW(model.values(), lr=rate, weight_decay=decay, fused=False)
        for model, rate, decay in zip(models, rates, decays, strict=True)
    ]
    ours = FlatAdam([network.parameters], rates, decays)
    for _ in range(10):
        ours.minimize(loss_of(network, x).sum())
        for k, (model, peer) in enumerate(zip(models, peers, strict=True)):
            loss = (plain_forward(network, 0, x[k], model) - 1.0).square().sum()
            for values, gradient in zip(model.values(), torch.autograd.grad(loss, list(model.values())), strict=True):
                values.grad = gradient
            peer.step()
    for k, model in enumerate(models):
        for name, values in model.items():
            torch.testing.assert_close(network.parameters.views[name][k], values[0], rtol=1e-4, atol=1e-5)


def test_adam_continues_from_its_state_to_the_same_bits() -> None:
    for rates in ([1e-2, 1e-2], [1e-2, 2e-2]):
        first, second = (MLP(SIZES, 2).initialize(generators([0, 1])) for _ in range(2))
        x = torch.ones(2, 3, 5)
        one = FlatAdam([first.parameters], rates, [0.0, 0.0])
        for _ in range(3):
            one.minimize(loss_of(first, x).sum())
        two = FlatAdam([second.parameters], rates, [0.0, 0.0])
        second.parameters.copy_from(first.parameters)
        two.load_state({name: value.clone() for name, value in one.state().items()})
        for optimizer, network in ((one, first), (two, second)):
            optimizer.minimize(loss_of(network, x).sum())
        assert torch.equal(first.parameters.flat, second.parameters.flat)


def test_adam_of_several_networks_leaves_unused_parameters_and_padding_alone() -> None:
    used, unused = (MLP(SIZES, 2).initialize(generators([0, 1])) for _ in range(2))
    before = unused.parameters.flat.clone()
    FlatAdam([used.parameters, unused.parameters], [0.1, 0.1], [0.0, 0.0]).minimize(
        loss_of(used, torch.ones(1, 5)).sum()
    )
    assert torch.equal(unused.parameters.flat, before)
    n_real = sum(math.prod(shape) for shape in used.parameters.shapes.values())
    assert int((used.parameters.flat != 0).sum(dim=1).max()) <= n_real


def test_a_network_that_falls_out_of_use_has_gradient_zero() -> None:
    network, other = (MLP(SIZES, 1).initialize(generators([seed])) for seed in (0, 1))
    x = torch.ones(1, 3, 5)
    plain = network.parameters.flat.clone().requires_grad_()
    peer = torch.optim.Adam([plain], lr=0.1)
    views = network.parameters.views
    gradients = torch.autograd.grad(loss_of(network, x).sum(), list(views.values()))
    plain.grad = torch.zeros_like(plain)
    for name, gradient in zip(views, gradients, strict=True):
        network.parameters.split(plain.grad)[name].copy_(gradient)
    peer.step()
    plain.grad = torch.zeros_like(plain)
    peer.step()
    optimizer = FlatAdam([network.parameters, other.parameters], [0.1], [0.0])
    optimizer.minimize(loss_of(network, x).sum() + loss_of(other, x).sum())
    optimizer.minimize(loss_of(other, x).sum())
    torch.testing.assert_close(network.parameters.flat, plain.detach(), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------- generators, threads, devices


def test_random_numbers_of_a_model_do_not_depend_on_neighbours_or_other_purposes() -> None:
    together, alone = ModelGenerators([1, 2, 3], "noise"), ModelGenerators([2], "noise")
    assert torch.equal(together.normal((4,))[1], alone.normal((4,))[0])
    assert torch.equal(together.integers(10, (4,))[1], alone.integers(10, (4,))[0])
    assert torch.equal(together.uniform((4,))[1], alone.uniform((4,))[0])
    assert not torch.equal(ModelGenerators([2], "a").normal((4,)), ModelGenerators([2], "b").normal((4,)))


def test_generators_continue_from_their_state() -> None:
    generator = ModelGenerators([1, 2], "noise")
    generator.normal((3,))
    state = generator.state()
    expected = generator.normal((3,))
    other = ModelGenerators([8, 9], "noise")
    other.load_state(state)
    assert torch.equal(other.normal((3,)), expected)


def test_derived_seeds_fit_torch() -> None:
    seeds = {derive_seed(seed, "x") for seed in range(50)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_threads_are_restored_even_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with use_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.get_num_threads() == before
    with one_thread():
        assert torch.get_num_threads() == 1


def test_devices() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device(torch.device("cpu")).type == "cpu"
    with pytest.raises(ValueError, match="BCQ: `device` must be \"auto\" or a torch device, got 'abacus'"):
        resolve_device("abacus", "BCQ")
    with pytest.raises(ValueError, match="must exist"):
        resolve_device("cuda:99", "BCQ")
