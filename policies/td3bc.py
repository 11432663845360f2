"""`TD3BC`: TD3 with a behaviour-cloning term."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import Self

from ope.neural.history import Tensors
from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._actors import squashed_mean
from ope.policies._critic import CriticLearner
from ope.policies._distributions import Point
from ope.policies._runs import LearnerEvent
from ope.policies._settings import COUNT, DISCOUNT, NONNEGATIVE, POLYAK, Rule
from ope.policies._step import LearnerStep, critic_loss, state_action

if TYPE_CHECKING:
    from ope.neural.transitions import Batch, Transitions
    from ope.policies._bounds import ActionBounds
    from ope.validation import FloatArray


class TD3BCStep(LearnerStep):
    """Twin critics at every update; actor and targets at every `policy_delay`-th.

    Parameters
    ----------
    n_states, n_actions : int
        Dimensions.
    hidden : sequence of int
    policy_delay : int
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, alpha, tau, policy_noise, noise_clip, learning_rate.
    device : torch.device
    """

    policy_networks = ("actor", "q")

    def __init__(
        self,
        n_states: int,
        n_actions: int,
        hidden: Sequence[int],
        policy_delay: int,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
    ) -> None:
        super().__init__(seeds, settings, device)
        self.policy_delay = policy_delay
        self.actor = self.mlp("actor", (n_states, *hidden, n_actions))
        self.actor_target = self.target("actor")
        self.q, self.q_target = self.twins("q", (n_states + n_actions, *hidden, 1))
        self.actor_adam = self.adam("actor", self.actor.parameters, "learning_rate")
        self.q_adam = self.adam("q", self.q.network.parameters, "learning_rate")
        self.gamma, self.tau, self.alpha = self.column("gamma"), self.column("tau"), self.column("alpha")[:, 0]
        self.noise = self.column("policy_noise").unsqueeze(2)
        self.clip = self.column("noise_clip").unsqueeze(2)
        self.counts = {"updates": 0}

    def next_pairs(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
        """Return s' joined with clip(pi'(s') + clip(noise)), (K, B, d + k)."""
        smoothing = torch.clamp(self.noise * noise, -self.clip, self.clip)
        actions = (torch.tanh(self.actor_target(batch.next_states)) + smoothing).clamp(-1.0, 1.0)
        return state_action(batch.next_states, actions)

    def targets(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
        """Return r + gamma (1 - terminal) min_i Q'_i(s', clip(pi'(s') + clip(noise))), (K, B)."""
        with torch.no_grad():
            value = self.q_target(self.next_pairs(batch, noise)).squeeze(3).amin(dim=1)
            return batch.rewards + self.gamma * batch.continues * value

    def q_loss(self, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
        """Return sum_i mean (Q_i(s, a) - y)^2, (K,)."""
        return critic_loss(self.q, batch, targets)

    def actor_loss(self, batch: Batch) -> torch.Tensor:
        """Return -lambda mean Q_1(s, pi(s)) + mean (pi(s) - a)^2, lambda = alpha / mean |Q_1|, (K,)."""
        actions = torch.tanh(self.actor(batch.states))
        q = self.q.first(state_action(batch.states, actions)).squeeze(2)
        scale = self.alpha / q.detach().abs().mean(dim=1)
        return -scale * q.mean(dim=1) + (actions - batch.actions).square().mean(dim=(1, 2))

    def critic_losses(self, batch: Batch) -> Tensors:
        """Return the loss of the critics and what else is to be recorded of them, each (K,)."""
        return {"loss": self.q_loss(batch, self.targets(batch, self.normal(*batch.actions.shape[1:])))}

    @property
    def actor_learns(self) -> bool:
        """Whether the actor and the targets move in this update."""
        return self.counts["updates"] % self.policy_delay == 0

    def phase(self) -> Hashable:
        """Return whether the actor learns in this update."""
        return self.actor_learns

    def _update(self, batch: Batch) -> Tensors:
        """Do one update; metrics of the actor are averages over its own updates, spread over all."""
        metrics = self.critic_losses(batch)
        self.q_adam.minimize(metrics["loss"].sum())
        actor_loss = torch.zeros_like(metrics["loss"])
        if self.actor_learns:
            actor_loss = self.actor_loss(batch)
            self.actor_adam.minimize(actor_loss.sum())
            self.q_target.lerp_from(self.q, self.tau)
            self.actor_target.parameters.lerp_from(self.actor.parameters, self.tau)
        metrics["actor_loss"] = self.policy_delay * actor_loss
        return {name: value.detach() for name, value in metrics.items()}


class TD3BC(CriticLearner):
    """TD3 whose actor is held to the logged actions: the simplest learner that competes for continuous actions.

    Use it first for continuous actions: one knob, the fastest update, a deterministic policy. It needs a log whose actions
    are good on average where the policy goes.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    alpha : float
        Weight of the value against the imitation: 0 clones.
    hidden : tuple of int
        Widths of the hidden layers of each network.
    n_updates : int
        Gradient steps of the critics. The paper takes 1M; the default suits a CPU.
    batch_size : int
    learning_rate : float
        Of all networks.
    tau : float
        Polyak step of the targets, in (0, 1].
    policy_noise, noise_clip : float
        Standard deviation and bound of the noise on target actions, half the range of an action being 1.
    policy_delay : int
        Updates of the critics for one of the actor and the targets.
    action_bounds : (low, high) or None
        Range of the actions, numbers or a tuple of them for each; None is the smallest and largest logged action.
    normalize_states : bool
        Whether to standardise states by mean and standard deviation + 1e-3 of the training log.
    random_state : int or None
    device : str
        "auto" takes the GPU where there is one.
    progress : bool
        Whether to show a progress bar.
    checkpoints : int
        Evenly spaced policies to keep in `checkpoints_`.
    checkpoint_path : str, Path or None
        File for the state of the run, written ten times or more on the way; `resume` reads it.
    log_every : int
        Updates that a row of `history_` averages.
    callbacks : list of callables or None
        Called every `log_every` updates with a `LearnerEvent`; a true return value stops training.
    n_threads : int
        Torch threads on a CPU. Small networks train fastest on one.
    precision : {"float32", "tf32", "bfloat16"}
        Of the products of matrices in training. "tf32": on a GPU. "bfloat16": between hidden layers, faster where the processor has
        the instructions.

    Attributes
    ----------
    history_ : DataFrame
        Column "update" and metrics, averaged since the row before.
    status_ : TrainingStatus
        How training ended, as a sentence.
    n_updates_ : int
        Updates behind the policy.
    checkpoints_ : list of TD3BC
        Fitted copies after evenly spaced updates.
    n_excluded_transitions_ : int
        Last transitions of episodes that go on to an unknown state: left out of the Bellman loss.
    seed_ : int
        The seed used: `random_state`, or the one drawn for None.
    feature_names_in_ : ndarray of str
        Of the states.
    n_features_in_ : int
        Their number.
    training_episode_keys_ : ndarray of uint64
        Hashes of the identifiers of the training episodes.

    Notes
    -----
    y = r + gamma (1 - terminal) min_i Q'_i(s', clip(pi'(s') + clip(epsilon, -c, c), -1, 1)); each critic minimises (Q_i(s,
    a) - y)^2; the actor minimises -lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1(s, pi(s))| without
    gradient. Horizon and truncated ends bootstrap from their final state. The policy is deterministic: it has no density.
    Cost: an update with a batch of 256 is some 12 products of 256^3.

    References
    ----------
    Fujimoto & Gu (2021), "A minimalist approach to offline reinforcement learning", NeurIPS, arXiv:2106.06860; code
    github.com/sfujim/TD3_BC.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.dataset import LoggedDataset
    >>> a = np.linspace(-1.0, 1.0, 40)[:, None]
    >>> log = LoggedDataset.from_arrays(np.zeros((40, 1)), a, 1.0 - a[:, 0], lengths=[1] * 40, ends="terminal")
    >>> policy = TD3BC(hidden=(16,), n_updates=300, learning_rate=0.01).fit(log)
    >>> bool(policy.predict([[0.0]])[0, 0] < -0.5)
    True
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "alpha": NONNEGATIVE,
        "tau": POLYAK,
        "policy_noise": NONNEGATIVE,
        "noise_clip": NONNEGATIVE,
        "policy_delay": COUNT,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {
        "gamma",
        "alpha",
        "tau",
        "policy_noise",
        "noise_clip",
    }
    no_discrete: ClassVar[str | None] = "use CQL, IQL or BCQ"

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        alpha: float = 2.5,
        hidden: tuple[int, ...] = (256, 256),
        n_updates: int = 20_000,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        tau: float = 0.005,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        policy_delay: int = 2,
        action_bounds: ActionBounds | None = None,
        normalize_states: bool = True,
        random_state: int | None = 0,
        device: str = "auto",
        progress: bool = False,
        checkpoints: int = 0,
        checkpoint_path: str | Path | None = None,
        log_every: int = 100,
        callbacks: Sequence[Callable[[LearnerEvent], Any]] | None = None,
        n_threads: int = 1,
        precision: Precision = "float32",
    ) -> None:
        self.gamma = gamma
        self.alpha = alpha
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tau = tau
        self.policy_noise = policy_noise
        self.noise_clip = noise_clip
        self.policy_delay = policy_delay
        self.action_bounds = action_bounds
        self.normalize_states = normalize_states
        self.random_state = random_state
        self.device = device
        self.progress = progress
        self.checkpoints = checkpoints
        self.checkpoint_path = checkpoint_path
        self.log_every = log_every
        self.callbacks = callbacks
        self.n_threads = n_threads
        self.precision = precision

    @classmethod
    def _step(cls, learners: Sequence[Self], data: Transitions, seeds: Sequence[int]) -> TrainingStep:
        names = ("gamma", "alpha", "tau", "policy_noise", "noise_clip", "learning_rate")
        settings, first = cls._numbers(learners, names, data.discrete), learners[0]
        dimensions = (data.states.shape[1], data.n_actions)
        return TD3BCStep(*dimensions, first.hidden, first.policy_delay, seeds, settings, data.rewards.device)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return True

    def _distribution(self, states: FloatArray) -> Point:
        return Point(squashed_mean(self, states, "actor"))
