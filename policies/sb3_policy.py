"""`from_sb3`: what stable-baselines3 has learned, as a policy of this library."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ope.policies.torch_policy import TorchPolicy
from ope.validation import FloatArray

OWNER = "from_sb3"


def from_sb3(
    model: Any,
    *,
    action_labels: npt.ArrayLike | None = None,
    deterministic: bool = False,
    vec_normalize: Any = None,
) -> TorchPolicy:
    """Return the policy of a stable-baselines3 model, in the unit of the environment.

    Parameters
    ----------
    model : stable-baselines3 model, or its policy
        With a `Discrete` or a `Box` action space and flat observations.
    action_labels : array-like of shape (n_actions,), optional
        Labels of the model's actions 0, 1, ...; default: the log's labels, in order.
    deterministic : bool
        Whether a stochastic policy takes its most probable action, as ``model.predict(..., deterministic=True)`` does,
        instead of drawing one.
    vec_normalize : VecNormalize or False, optional
        Statistics by which observations were normalised for the model: the policy then takes states as the environment
        gives them. False says that the states of the log are normalised. Needed where `model` still has such an environment.

    Returns
    -------
    TorchPolicy
        It shares the networks of `model`: training that further changes the policy.

    Raises
    ------
    TypeError
        If it is no such model, or its actions are neither `Discrete` nor a `Box`.
    ValueError
        If it is not said whether states are normalised.

    Notes
    -----
    What the policy is:

    - a softmax: PPO, A2C, TRPO and others that have `get_distribution`, on `Discrete`;
    - a normal that is clipped to the `Box` when it acts: the same on a `Box`. `log_prob` is the density before clipping, as
      in stable-baselines3;
    - tanh(normal), with its density: SAC, TQC;
    - greedy: DQN; `EpsilonGreedy` adds its exploration;
    - deterministic: TD3, DDPG.

    With state-dependent exploration (``use_sde=True``) draws are those of fresh exploration noise at every step.

    Examples
    --------
    >>> class Discrete:  # stands for gymnasium's
    ...     n = 2
    >>> policy = torch.nn.Module()  # stands for the policy of a DQN
    >>> policy.q_net, policy.action_space = torch.nn.Linear(1, 2, bias=False), Discrete()
    >>> _ = policy.q_net.weight.data.copy_(torch.tensor([[-1.0], [1.0]]))
    >>> from_sb3(policy, action_labels=["left", "right"]).predict([[-3.0], [3.0]])
    array(['left', 'right'], dtype='<U5')
    """
    policy = getattr(model, "policy", model)
    space = getattr(policy, "action_space", None)
    if not isinstance(policy, nn.Module) or space is None:
        raise TypeError(
            f"{OWNER}: `model` must be a model of stable-baselines3 or its policy, got {type(model).__name__}; wrap a "
            "network of your own in TorchPolicy."
        )
    module, kind = _read(policy, space)
    wrapped = _Observing(module, policy, _statistics(model, vec_normalize))
    if kind in {"logits", "values"}:
        return TorchPolicy(wrapped, kind, action_labels=action_labels, deterministic=deterministic)
    low, high = _bounds(space)
    squash = kind == "gaussian" and bool(getattr(policy, "squash_output", False))
    return TorchPolicy(wrapped, kind, low=low, high=high, squash=squash, deterministic=deterministic)


def _read(policy: Any, space: Any) -> tuple[nn.Module, str]:
    """Return a module of observations, and what it returns."""
    spaces = {base.__name__ for base in type(space).__mro__}
    actor = getattr(policy, "actor", None)
    if "Discrete" in spaces:
        if hasattr(policy, "q_net"):
            return policy.q_net, "values"
        if _has_distribution(policy):
            return _Softmax(policy), "logits"
    if "Box" in spaces:
        if hasattr(actor, "get_action_dist_params"):
            return _SquashedActor(actor), "gaussian"
        if actor is not None:
            return _Stretched(actor, *_bounds(space)), "deterministic"
        if _has_distribution(policy):
            return _Gaussian(policy), "gaussian"
    raise TypeError(
        f"{OWNER}: `model` must act in a Discrete or Box space by the policy of PPO, A2C, SAC, DQN, TD3 or DDPG, got "
        f"{type(policy).__name__} in {type(space).__name__}; wrap its network in TorchPolicy, or its predict in "
        "FunctionPolicy."
    )


def _bounds(space: Any) -> tuple[FloatArray, FloatArray]:
    return np.array(space.low, dtype=np.float64).ravel(), np.array(space.high, dtype=np.float64).ravel()


def _has_distribution(policy: Any) -> bool:
    # A recurrent policy acts on the history of an episode, which logged rows do not hold.
    return hasattr(policy, "get_distribution") and not hasattr(policy, "lstm_actor")


def _statistics(model: Any, vec_normalize: Any) -> Any:
    """Return the VecNormalize whose statistics are to be applied, or None."""
    own = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    if vec_normalize is None and own is not None and own.norm_obs:
        raise ValueError(
            f"{OWNER}: `vec_normalize` must be given where the model was trained on normalised observations, got None; pass "
            "vec_normalize=model.get_vec_normalize_env() if the states of your log are as the environment gave them, or "
            "False if they are normalised."
        )
    return vec_normalize if vec_normalize and vec_normalize.norm_obs else None


# -------------------------------------------------------------------- modules of observations


class _Observing(nn.Module):
    """States (n, d) as the observations that a network of stable-baselines3 takes."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, network: nn.Module, policy: Any, statistics: Any) -> None:
        super().__init__()
        self.network = network
        self.shape = getattr(getattr(policy, "observation_space", None), "shape", None)
        self.clip = None if statistics is None else float(statistics.clip_obs)
        if statistics is not None:
            device = next(network.parameters()).device
            scale = np.sqrt(statistics.obs_rms.var + statistics.epsilon)
            self.register_buffer("mean", _row(statistics.obs_rms.mean, device))
            self.register_buffer("scale", _row(scale, device))

    def __deepcopy__(self, memo: Any) -> _Observing:
        # State-dependent exploration keeps tensors with a history, which deepcopy refuses.
        copied: _Observing = pickle.loads(pickle.dumps(self))
        return copied

    def forward(self, states: torch.Tensor) -> Any:
        """Normalise, and give each observation its shape."""
        x = states if self.clip is None else ((states - self.mean) / self.scale).clamp(-self.clip, self.clip)
        return self.network(x.to(states.dtype) if self.shape is None else x.to(states.dtype).reshape(-1, *self.shape))


class _Softmax(nn.Module):
    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.policy.get_distribution(observations).distribution.logits
        return logits


class _Gaussian(nn.Module):
    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        law = self.policy.get_distribution(observations).distribution
        return law.mean, law.stddev.log()


class _SquashedActor(nn.Module):
    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std, further = self.actor.get_action_dist_params(observations)
        law = self.actor.action_dist.proba_distribution(mean, log_std, **further).distribution
        return law.mean, law.stddev.log()


class _Stretched(nn.Module):
    """Actions of an actor, from [-1, 1] to the range of the environment."""

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, actor: Any, low: FloatArray, high: FloatArray) -> None:
        super().__init__()
        self.actor = actor
        device = next(actor.parameters()).device
        self.register_buffer("low", _row(low, device))
        self.register_buffer("high", _row(high, device))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        actions: torch.Tensor = self.actor(observations)
        return self.low + 0.5 * (actions + 1.0) * (self.high - self.low)


def _row(values: FloatArray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64).ravel()).to(device)
