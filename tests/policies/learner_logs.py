"""Small logs and settings for the tests of learners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ope.dataset import LoggedDataset
from ope.neural.networks import MLP
from ope.neural.transitions import Batch, Standardizer, Transitions
from ope.policies._bounds import unit_range
from ope.policies._neural import NeuralLearner
from ope.policies.bcq import BCQ
from ope.policies.behavior_cloning import BehaviorCloning
from ope.schema import End

SMALL: dict[str, Any] = {"hidden": (16, 16), "n_updates": 120, "batch_size": 32, "log_every": 20, "learning_rate": 3e-3}
LEARNERS = [BCQ, BehaviorCloning]


def random_log(
    n_episodes: int = 40, length: int = 5, *, masked: bool = False, continuous: bool = False, seed: int = 0
) -> LoggedDataset:
    """Random walks with three actions (or two continuous ones), ends of all kinds, final states known."""
    rng = np.random.default_rng(seed)
    n = n_episodes * length
    codes = rng.integers(0, 3, n)
    mask = rng.random((n, 3)) < 0.7
    mask[np.arange(n), codes] = True
    final_mask = rng.random((n_episodes, 3)) < 0.7
    final_mask[:, 0] = True
    actions: npt.NDArray[Any] = (
        rng.normal(size=(n, 2)) * [1.0, 20.0] + [0.0, 5.0] if continuous else np.array(["a", "b", "c"])[codes]
    )
    return LoggedDataset.from_arrays(
        states=rng.normal(size=(n, 3)) * [1.0, 10.0, 0.1],
        actions=actions,
        rewards=rng.normal(size=n) + codes,
        lengths=[length] * n_episodes,
        ends=rng.choice([End.TERMINAL, End.HORIZON, End.TRUNCATED], n_episodes),
        final_states=rng.normal(size=(n_episodes, 3)),
        action_mask=mask if masked else None,
        final_action_mask=final_mask if masked else None,
        feature_names=["x", "y", "z"],
    )


def same_policy(one: NeuralLearner, other: NeuralLearner) -> None:
    assert set(one.networks_) == set(other.networks_)
    for name, network in one.networks_.items():
        assert torch.equal(network.parameters.flat, other.networks_[name].parameters.flat)
    assert one.history_.equals(other.history_)


# -------------------------------------------------------------------- plain networks


def plain(network: MLP, k: int, x: torch.Tensor, parameters: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Evaluate network k layer by layer on (..., in)."""
    parameters = network.parameters.views if parameters is None else parameters
    h = x
    for layer in range(len(network.sizes) - 1):
        h = h @ parameters[f"weight{layer}"][k] + parameters[f"bias{layer}"][k, 0]
        if layer < len(network.sizes) - 2:
            h = torch.clamp(h, min=0.0)
    return h


def same_gradients(found: torch.Tensor, expected: torch.Tensor, networks: Sequence[MLP]) -> None:
    """Compare two losses and their gradients by the parameters of networks."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    leaves = [view for network in networks for view in network.parameters.views.values()]
    ours, theirs = (torch.autograd.grad(loss.sum(), leaves, allow_unused=True) for loss in (found, expected))
    seen = 0.0
    for one, other in zip(ours, theirs, strict=True):
        one, other = (torch.zeros(()) if gradient is None else gradient for gradient in (one, other))
        torch.testing.assert_close(one, other.expand_as(one), rtol=1e-3, atol=2e-5)
        seen += float(one.abs().sum())
    assert seen > 0.0


def unlike(*networks: MLP) -> None:
    """Give target networks values of their own, so that a mix-up with the online network would be seen."""
    for seed, network in enumerate(networks):
        network.initialize([torch.Generator().manual_seed(100 + seed + k) for k in range(network.n_models)])


def plain_squared_mmd(x: torch.Tensor, y: torch.Tensor, kernel: str, sigma: float) -> torch.Tensor:
    """The squared maximum mean discrepancy of samples (n, k) and (m, k), pair by pair."""

    def mean(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        powers = {"laplacian": 1, "gaussian": 2}
        pairs = [(a - b).abs().pow(powers[kernel]).sum() for a in one for b in other]
        return torch.stack([torch.exp(-distance / (2 * sigma)) for distance in pairs]).mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def batch_of(data: LoggedDataset, n_models: int, size: int = 24, *, scale: bool = True) -> Batch:
    """A fixed batch with a terminal row and one without a Bellman target, actions in [-1, 1]."""
    unit = unit_range("test", data, None) if scale and not data.discrete else None
    transitions = Transitions.from_dataset(data, None, Standardizer.fit(data.states), unit)
    last = np.append(data.offsets[1:-1], len(data)) - 1
    excluded, terminal = int(last[data.ends != End.TERMINAL][0]), int(last[data.ends == End.TERMINAL][0])
    transitions.bellman[excluded] = 0.0
    rows = torch.randint(len(data), (n_models, size), generator=torch.Generator().manual_seed(0))
    rows[:, 0], rows[:, 1] = excluded, terminal
    return Batch(transitions, rows)


# -------------------------------------------------------------------- a point on a line


def line_log(n_episodes: int = 150, seed: int = 0, *, length: int = 8) -> LoggedDataset:
    """A point on [-1, 1] that pays -10 x'^2 a step; the behaviour pushes outward, with much noise."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n_episodes)
    states, actions, rewards = [], [], []
    for _ in range(length):
        a = line_behavior(x, rng)
        states.append(x)
        actions.append(a)
        x = line_step(x, a)
        rewards.append(-10 * x**2)
    return LoggedDataset.from_arrays(
        np.stack(states, axis=1).reshape(-1, 1),
        np.stack(actions, axis=1).reshape(-1, 1),
        np.stack(rewards, axis=1).ravel(),
        lengths=[length] * n_episodes,
        ends="truncated",
        final_states=x[:, None],
    )


def line_behavior(x: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    return np.asarray(0.3 * np.sign(x) + rng.uniform(-0.7, 0.7, len(x)))


def line_step(x: npt.NDArray[Any], a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(np.clip(x + 0.5 * a, -1, 1))


def line_value(policy: Any, gamma: float = 0.9, *, draws: int = 0) -> float:
    """The value from a grid of starts in 60 steps: of the mean action, or of `draws` times sampled ones."""
    x, total, rng = np.tile(np.linspace(-1, 1, 41), max(draws, 1)), 0.0, np.random.default_rng(1)
    for t in range(60):
        actions = policy.sample(x[:, None], rng) if draws else policy.predict(x[:, None])
        x = line_step(x, actions[:, 0])
        total += gamma**t * float(np.mean(-10 * x**2))
    return total
