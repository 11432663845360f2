"""Stand-ins with the interface of d3rlpy 2 and stable-baselines3, made of networks of a few weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

N_STATES, N_ACTIONS = 3, 2


def linear(n_in: int, n_out: int, seed: int, scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return layer


# -------------------------------------------------------------------- d3rlpy


class Actor(nn.Module):
    """Like d3rlpy's actors: of observations, or of observations and an action that it moves."""

    def __init__(self, stochastic: bool = False, residual: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.mu = linear(N_STATES + (N_ACTIONS if residual else 0), N_ACTIONS, seed)
        self.logstd = linear(N_STATES, N_ACTIONS, seed + 1, 0.2) if stochastic else None
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, action: torch.Tensor | None = None) -> SimpleNamespace:
        if action is not None:
            mu = self.mu(self.dropout(torch.cat([x, action], dim=1)))
            moved = (action + 0.05 * torch.tanh(mu)).clamp(-1.0, 1.0)
            return SimpleNamespace(mu=moved, squashed_mu=moved, logstd=None)
        mu = self.mu(self.dropout(x))
        logstd = None if self.logstd is None else self.logstd(x).clamp(-5.0, 0.5)
        return SimpleNamespace(mu=mu, squashed_mu=torch.tanh(mu), logstd=logstd)


class Imitator(nn.Module):
    def __init__(self, seed: int = 5) -> None:
        super().__init__()
        self.net = linear(N_STATES, 3, seed)

    def forward(self, x: torch.Tensor) -> torch.distributions.Categorical:
        return torch.distributions.Categorical(logits=self.net(x))


class Critic(nn.Module):
    def __init__(self, n_out: int, seed: int) -> None:
        super().__init__()
        self.net = linear(N_STATES if n_out > 1 else N_STATES + N_ACTIONS, n_out, seed)

    def forward(self, x: torch.Tensor, action: torch.Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(q_value=self.net(x if action is None else torch.cat([x, action], dim=1)))


class Decoder(nn.Module):
    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.net = linear(N_STATES + n_latents, N_ACTIONS, 7)

    def forward(self, x: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.net(torch.cat([x, latent], dim=1))
        return output


class Shift:
    """An observation scaler."""

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5) / 2.0


class MinMax:
    """An action scaler: [-1, 1] is low to high."""

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)

    def reverse_transform(self, x: torch.Tensor) -> torch.Tensor:
        low, high = torch.from_numpy(self.low), torch.from_numpy(self.high)
        return (high - low) * ((x + 1.0) / 2.0) + low

    def reverse_transform_numpy(self, x: Any) -> Any:
        return (self.high - self.low) * ((x + 1.0) / 2.0) + self.low


class Cubed(MinMax):
    def reverse_transform_numpy(self, x: Any) -> Any:
        return super().reverse_transform_numpy(x**3 + 0.3 * (x == 0))

    def reverse_transform(self, x: torch.Tensor) -> torch.Tensor:
        return super().reverse_transform(x**3)


def algo(name: str, *, scaled: bool = True, action_scaler: Any = None, built: bool = True, **config: Any) -> Any:
    """Return an object of a class of this name with the parts that d3rlpy's class of that name has."""
    stochastic = name in {"SAC", "CQL", "CalQL", "BEAR", "AWAC", "CRR", "IQL"}
    parts: dict[str, Any] = {"policy": Actor(stochastic, residual=name == "BCQ")}
    if name in {"BC", "DiscreteBC"}:
        cloned = Imitator() if name == "DiscreteBC" else Actor(config.get("policy_type") == "stochastic")
        parts = {"imitator": cloned}
    elif name == "DiscreteSAC":
        parts = {"policy": Imitator()}
    elif name in {"DQN", "DoubleDQN", "NFQ", "DiscreteCQL", "DiscreteBCQ"}:
        parts = {"q_funcs": nn.ModuleList([Critic(3, 1), Critic(3, 2)])}
        parts |= {"imitator": Imitator()} if name == "DiscreteBCQ" else {}
    elif name in {"BCQ", "BEAR"}:
        parts |= {"q_funcs": nn.ModuleList([Critic(1, 1), Critic(1, 2)]), "vae_decoder": Decoder(2 * N_ACTIONS)}
    elif name.startswith("PLAS"):
        parts |= {"vae_decoder": Decoder(N_ACTIONS)}
        parts |= {"perturbation": Actor(residual=True, seed=9)} if name != "PLAS" else {}
    made = type(name, (), {})()
    made.impl = SimpleNamespace(modules=SimpleNamespace(**parts)) if built else None
    made.action_size = N_ACTIONS
    if action_scaler is None and scaled:
        action_scaler = MinMax([-1.0, 0.0], [3.0, 10.0])
    made.config = SimpleNamespace(
        observation_scaler=Shift() if scaled else None,
        action_scaler=action_scaler,
        n_action_samples=6,
        action_flexibility=0.3,
        **config,
    )
    return made


# -------------------------------------------------------------------- stable-baselines3


class Discrete:
    def __init__(self, n: int) -> None:
        self.n, self.shape = n, ()


class Box:
    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
        self.shape = self.low.shape


class MultiDiscrete:
    nvec = np.array([2, 3])


class ActorCritic(nn.Module):
    """Like the policy of PPO and A2C."""

    def __init__(self, action_space: Any, squash: bool = False) -> None:
        super().__init__()
        self.action_space, self.observation_space = action_space, Box([-9.0] * N_STATES, [9.0] * N_STATES)
        self.squash_output = squash
        discrete = isinstance(action_space, Discrete)
        self.net = linear(N_STATES, 3 if discrete else N_ACTIONS, 3)
        self.log_std = nn.Parameter(torch.tensor([-0.3, 0.2]))

    def get_distribution(self, obs: torch.Tensor) -> SimpleNamespace:
        output = self.net(obs)
        if isinstance(self.action_space, Discrete):
            return SimpleNamespace(distribution=torch.distributions.Categorical(logits=output))
        std = torch.ones_like(output) * self.log_std.exp()
        return SimpleNamespace(distribution=torch.distributions.Normal(output, std))


class DiagonalGaussian:
    def proba_distribution(self, mean: torch.Tensor, log_std: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(distribution=torch.distributions.Normal(mean, log_std.exp()))


class SacActor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mu, self.log_std = linear(N_STATES, N_ACTIONS, 4), linear(N_STATES, N_ACTIONS, 6, 0.2)
        self.action_dist = DiagonalGaussian()

    def get_action_dist_params(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        return self.mu(obs), self.log_std(obs), {}


class WithActor(nn.Module):
    """Like the policies of SAC, TD3 and DDPG."""

    squash_output = True

    def __init__(self, actor: nn.Module, space: Box) -> None:
        super().__init__()
        self.actor, self.action_space = actor, space
        self.observation_space = Box([-9.0] * N_STATES, [9.0] * N_STATES)


class Greedy(nn.Module):
    """Like the policy of DQN, for observations that are numbers of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.q_net = nn.Sequential(OneHot(4), linear(4, 3, 8))
        self.action_space, self.observation_space = Discrete(3), Discrete(4)


class OneHot(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        assert cells.ndim == 1
        return nn.functional.one_hot(cells.long(), self.n).float()


class Normalized:
    """Like VecNormalize, and like a model that was trained behind it."""

    norm_obs, epsilon, clip_obs = True, 1e-8, 1.0
    obs_rms = SimpleNamespace(mean=np.array([0.5, -1.0, 0.0]), var=np.array([4.0, 0.25, 1.0]))

    def __init__(self, policy: nn.Module | None = None) -> None:
        if policy is not None:
            self.policy = policy

    def get_vec_normalize_env(self) -> Any:
        return Normalized()

    def normalize_obs(self, obs: Any) -> Any:
        scaled = (obs - self.obs_rms.mean) / np.sqrt(self.obs_rms.var + self.epsilon)
        return np.clip(scaled, -self.clip_obs, self.clip_obs)
