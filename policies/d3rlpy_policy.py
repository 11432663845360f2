"""`from_d3rlpy`: what d3rlpy has learned, as a policy of this library."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ope.neural.generators import derive_seed
from ope.policies._network_policy import PREDICT_ROWS
from ope.policies.torch_policy import TorchPolicy
from ope.validation import FloatArray, check_integer

OWNER = "from_d3rlpy"
LATENT_BOUND = 0.5
# PLAS stretches what its actor returns to this range of latents.
PLAS_LATENT_BOUND = 2.0

# d3rlpy's classes by what they do when they act; a class that extends one of these counts as it.
SOFTMAX = ("DiscreteBC", "DiscreteSAC")
GREEDY = ("DQN", "DoubleDQN", "NFQ", "DiscreteCQL", "DiscreteBCQ")
SQUASHED = ("SAC", "CQL", "CalQL", "BEAR")
CLIPPED = ("AWAC", "CRR", "IQL", "BC")
SURE = ("DDPG", "TD3", "TD3PlusBC", "ReBRAC", "PRDC", "BCQ", "PLAS", "PLASWithPerturbation")
KNOWN = frozenset(SOFTMAX + GREEDY + SQUASHED + CLIPPED + SURE)


def from_d3rlpy(
    algo: Any,
    *,
    action_labels: npt.ArrayLike | None = None,
    deterministic: bool = False,
    random_state: int = 0,
) -> TorchPolicy:
    """Return the policy of an algorithm of d3rlpy 2, in the unit of the environment.

    Parameters
    ----------
    algo : d3rlpy algorithm
        Q-learning, actor-critic or imitation, built: after `fit`, `build_with_dataset` or `d3rlpy.load_learnable`.
    action_labels : array-like of shape (n_actions,), optional
        Labels of d3rlpy's actions 0, 1, ...; default: the log's labels, in order.
    deterministic : bool
        Whether a stochastic policy takes its most probable action, as `algo.predict` does, instead of drawing one, as
        `algo.sample_action` does.
    random_state : int
        Seed of the candidate actions of BCQ, and of BEAR if `deterministic`.

    Returns
    -------
    TorchPolicy
        It shares the networks of `algo`: training that further changes the policy.

    Raises
    ------
    TypeError
        If it is no such algorithm: decision transformers act on histories, random policies have no network.
    ValueError
        If it is not built.

    Notes
    -----
    Observation and action scalers of `algo` are applied. What the policy is:

    - a softmax: DiscreteBC, DiscreteSAC;
    - greedy: DQN, DoubleDQN, NFQ, DiscreteCQL, DiscreteBCQ. Under an action mask it takes the best available action, of
      DiscreteBCQ the best available one among those that pass its threshold, or, if none does, the best available one;
    - tanh(normal), with its density: SAC, CQL, CalQL, BEAR;
    - a normal around tanh(mean), clipped to the range when it acts: IQL, AWAC, CRR, and BC with
      ``policy_type="stochastic"``, which d3rlpy fits as a density though it acts by the mean. `log_prob` is the density
      before clipping;
    - deterministic: TD3, TD3PlusBC, DDPG, ReBRAC, PRDC, PLAS, BC, BCQ.

    `algo.predict` of BCQ, BEAR and CRR draws anew at every call. Here BCQ and BEAR choose among candidates that are drawn
    once and are the same in every state, so that the policy is a function of the state; CRR, if `deterministic`, takes
    its mean.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> class Backwards(torch.nn.Module):
    ...     def forward(self, x):
    ...         return SimpleNamespace(squashed_mu=torch.tanh(-x))
    >>> class TD3PlusBC:  # stands for d3rlpy's
    ...     impl = SimpleNamespace(modules=SimpleNamespace(policy=Backwards()))
    ...     config = SimpleNamespace(observation_scaler=None, action_scaler=None)
    >>> from_d3rlpy(TD3PlusBC()).predict([[0.0], [1.0]]).round(4)
    array([[-0.    ],
           [-0.7616]])
    """
    name = next((base.__name__ for base in type(algo).__mro__ if base.__name__ in KNOWN), None)
    if name is None or not hasattr(algo, "impl"):
        raise TypeError(
            f"{OWNER}: `algo` must be one of d3rlpy's {sorted(KNOWN)}, got {type(algo).__name__}; wrap its network in "
            "TorchPolicy, or its predict in FunctionPolicy."
        )
    if algo.impl is None:
        raise ValueError(
            f"{OWNER}: `algo` must be built, got a {name} without networks; call its fit or build_with_dataset first."
        )
    if name in SOFTMAX + GREEDY:
        scores = _Softmax(algo) if name in SOFTMAX else _Constrained(algo) if name == "DiscreteBCQ" else _Values(algo)
        kind = "logits" if name in SOFTMAX else "values"
        return TorchPolicy(scores, kind, action_labels=action_labels, deterministic=deterministic)
    if deterministic or name in SURE or getattr(algo.config, "policy_type", None) == "deterministic":
        return TorchPolicy(_sure(algo, name, check_integer(OWNER, "random_state", random_state, 0)), "deterministic")
    low, high = _range(algo)
    squash = name in SQUASHED
    module = _Squashed(algo) if squash else _Clipped(algo, low, high)
    return TorchPolicy(module, "gaussian", low=low, high=high, squash=squash)


def _range(algo: Any) -> tuple[FloatArray, FloatArray]:
    """Return what -1 and 1 stand for, each (k,), in the unit of the environment."""
    ends = np.stack([np.full(algo.action_size, end) for end in (-1.0, 0.0, 1.0)])
    scaler = algo.config.action_scaler
    low, middle, high = ends if scaler is None else scaler.reverse_transform_numpy(ends)
    if not np.allclose(middle, 0.5 * (low + high)):
        raise TypeError(
            f"{OWNER}: `algo` must have a linear action scaler, such as MinMaxActionScaler, for its density to be known, got "
            f"{type(scaler).__name__}; pass deterministic=True."
        )
    return low, high


def _sure(algo: Any, name: str, seed: int) -> nn.Module:
    if name == "BCQ":
        return _Generated(algo, seed, 2 * algo.action_size)
    if name == "BEAR":
        return _Sampled(algo, seed, algo.action_size)
    return _Latent(algo) if name.startswith("PLAS") else _Action(algo)


# -------------------------------------------------------------------- networks behind their scalers


class _Scaled(nn.Module):
    """Networks of an algorithm that read scaled observations."""

    names: ClassVar[tuple[str, ...]] = ("policy",)

    def __init__(self, algo: Any) -> None:
        super().__init__()
        self.observation_scaler = algo.config.observation_scaler
        self.action_scaler = algo.config.action_scaler
        modules = algo.impl.modules
        # Imitators are called so, and are actors all the same.
        actor = "policy" if hasattr(modules, "policy") else "imitator"
        self.networks = nn.ModuleDict(
            {
                name: getattr(modules, actor if name == "policy" else name)
                for name in self.names
                if name == "policy" or hasattr(modules, name)
            }
        )

    def forward(self, states: torch.Tensor) -> Any:
        """Scale and read."""
        return self.read(states if self.observation_scaler is None else self.observation_scaler.transform(states))

    def read(self, x: torch.Tensor) -> Any:
        """Return what a `TorchPolicy` needs."""
        raise NotImplementedError

    def in_environment(self, actions: torch.Tensor) -> torch.Tensor:
        """Return actions in the unit of the environment."""
        scaler: Any = self.action_scaler
        return actions if scaler is None else scaler.reverse_transform(actions)

    def part(self, name: str) -> Any:
        """Return a network."""
        return self.networks[name]


class _Softmax(_Scaled):
    def read(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.part("policy")(x).logits
        return logits


class _Values(_Scaled):
    names: ClassVar[tuple[str, ...]] = ("q_funcs",)

    def read(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([q(x).q_value for q in self.part("q_funcs")]).mean(dim=0)


class _Constrained(_Values):
    """Action values, those of actions that fall behind the threshold below all others."""

    names: ClassVar[tuple[str, ...]] = ("q_funcs", "imitator")

    def __init__(self, algo: Any) -> None:
        super().__init__(algo)
        threshold = algo.config.action_flexibility
        self.log_threshold = math.log(threshold) if threshold > 0 else -math.inf

    def read(self, x: torch.Tensor) -> torch.Tensor:
        values, log_prob = super().read(x), torch.log_softmax(self.part("imitator")(x).logits, dim=1)
        allowed = log_prob - log_prob.amax(dim=1, keepdim=True) > self.log_threshold
        span = values.amax(dim=1, keepdim=True) - values.amin(dim=1, keepdim=True)
        return torch.where(allowed, values, values - span - 1.0)


class _Squashed(_Scaled):
    def read(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.part("policy")(x)
        return output.mu, output.logstd


class _Clipped(_Scaled):
    """Mean and log standard deviation of a normal around tanh(mean), in the unit of the environment."""

    center: torch.Tensor
    half_width: torch.Tensor

    def __init__(self, algo: Any, low: FloatArray, high: FloatArray) -> None:
        super().__init__(algo)
        device = next(self.parameters()).device
        self.register_buffer("center", torch.from_numpy(0.5 * (low + high)).to(device))
        self.register_buffer("half_width", torch.from_numpy(0.5 * (high - low)).to(device))

    def read(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.part("policy")(x)
        return self.center + self.half_width * output.squashed_mu, self.half_width.log() + output.logstd


class _Action(_Scaled):
    def read(self, x: torch.Tensor) -> torch.Tensor:
        return self.in_environment(self.part("policy")(x).squashed_mu)


class _Latent(_Scaled):
    names: ClassVar[tuple[str, ...]] = ("policy", "vae_decoder", "perturbation")

    def read(self, x: torch.Tensor) -> torch.Tensor:
        actions = self.part("vae_decoder")(x, PLAS_LATENT_BOUND * self.part("policy")(x).squashed_mu)
        if "perturbation" in self.networks:
            actions = self.part("perturbation")(x, actions).squashed_mu
        return self.in_environment(actions)


class _Best(_Scaled):
    """The candidate of the highest value by the first critic; the noise of candidates is the same in every state."""

    noise: torch.Tensor

    def __init__(self, algo: Any, seed: int, width: int) -> None:
        super().__init__(algo)
        rng = np.random.default_rng(derive_seed(seed, "acting"))
        noise = torch.from_numpy(rng.standard_normal((algo.config.n_action_samples, width))).float()
        self.register_buffer("noise", noise.to(next(self.parameters()).device))

    def read(self, x: torch.Tensor) -> torch.Tensor:
        blocks = torch.split(x, max(1, PREDICT_ROWS // len(self.noise)))
        return self.in_environment(torch.cat([self._best(block) for block in blocks]))

    def _best(self, x: torch.Tensor) -> torch.Tensor:
        many, noise = x.repeat(len(self.noise), 1), self.noise.repeat_interleave(len(x), dim=0)
        actions = self.candidates(many, noise)
        values = self.part("q_funcs")[0](many, actions).q_value
        chosen = values.view(len(self.noise), len(x)).argmax(dim=0)
        return actions.view(len(self.noise), len(x), -1)[chosen, torch.arange(len(x), device=x.device)]

    def candidates(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return an action for each row of noise."""
        raise NotImplementedError


class _Generated(_Best):
    names: ClassVar[tuple[str, ...]] = ("policy", "vae_decoder", "q_funcs")

    def candidates(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        generated = self.part("vae_decoder")(x, noise.clamp(-LATENT_BOUND, LATENT_BOUND))
        actions: torch.Tensor = self.part("policy")(x, generated).squashed_mu
        return actions


class _Sampled(_Best):
    names: ClassVar[tuple[str, ...]] = ("policy", "q_funcs")

    def candidates(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        output = self.part("policy")(x)
        return torch.tanh(output.mu + output.logstd.exp() * noise)
