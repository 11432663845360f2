"""`BCQ`: batch-constrained Q-learning for discrete actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional
from typing_extensions import Self

from ope.neural.generators import ModelGenerators
from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.optimizer import FlatAdam
from ope.neural.training import TrainingStep
from ope.neural.transitions import Batch, Transitions
from ope.policies._losses import masked_log_softmax
from ope.policies._neural import NeuralLearner
from ope.policies._runs import LearnerEvent
from ope.policies._settings import DISCOUNT, NONNEGATIVE, Number

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset


def constrained_argmax(q: torch.Tensor, log_prob: torch.Tensor, log_threshold: torch.Tensor | float) -> torch.Tensor:
    """Return the best action among those that the behaviour takes often enough.

    Parameters
    ----------
    q, log_prob : Tensor of shape (..., n_actions)
        Action values, and the log probabilities G of the imitation network.
    log_threshold : Tensor or float
        Logarithm of tau.

    Returns
    -------
    Tensor of shape (...)

    Notes
    -----
    argmax_a Q(s, a) over {a: G(a|s) / max_b G(b|s) > tau}. The most probable action always belongs to the set.

    Examples
    --------
    >>> q, g = torch.tensor([[1.0, 9.0]]), torch.tensor([[0.9, 0.1]])
    >>> constrained_argmax(q, g.log(), math.log(0.3)), constrained_argmax(q, g.log(), math.log(0.05))
    (tensor([0]), tensor([1]))
    """
    allowed = log_prob - log_prob.amax(dim=-1, keepdim=True) > log_threshold
    return q.masked_fill(~allowed, -math.inf).argmax(dim=-1)


class BCQStep(TrainingStep):
    """The update of discrete BCQ for K models.

    Parameters
    ----------
    sizes : sequence of int
        Widths of each network, input and output included.
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, threshold, tau, logit_penalty, learning_rate of each model.
    device : torch.device
    """

    policy_networks = ("q", "imitation")

    def __init__(
        self, sizes: Sequence[int], seeds: Sequence[int], settings: Mapping[str, Sequence[float]], device: torch.device
    ) -> None:
        n_models = len(seeds)
        super().__init__(n_models)
        generators = ModelGenerators(seeds, "weights").generators
        self.q = MLP(sizes, n_models, device=device).initialize(generators)
        self.imitation = MLP(sizes, n_models, device=device).initialize(generators)
        self.q_target = self.q.copy()
        self.networks = {"q": self.q, "imitation": self.imitation, "q_target": self.q_target}
        self.optimizer = FlatAdam(
            [self.q.parameters, self.imitation.parameters], settings["learning_rate"], [0.0] * n_models
        )
        self.optimizers = {"all": self.optimizer}

        def column(name: str) -> torch.Tensor:
            return torch.tensor(settings[name], dtype=torch.float32, device=device).unsqueeze(1)

        self.gamma, self.tau = column("gamma"), column("tau")
        self.log_threshold = column("threshold").log().unsqueeze(2)
        self.logit_penalty = column("logit_penalty").squeeze(1)

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return r + gamma Q'(s', a'), a' the constrained argmax of the online networks: (K, B)."""
        with torch.no_grad():
            log_prob = masked_log_softmax(self.imitation(batch.next_states), batch.next_action_mask)
            chosen = constrained_argmax(self.q(batch.next_states), log_prob, self.log_threshold)
            value = self.q_target(batch.next_states).gather(2, chosen.unsqueeze(2)).squeeze(2)
            return batch.rewards + self.gamma * batch.continues * value

    def losses(self, batch: Batch) -> Tensors:
        """Return the three parts of the loss and their sum, each (K,)."""
        taken = batch.actions.unsqueeze(2)
        q = self.q(batch.states).gather(2, taken).squeeze(2)
        q_loss = batch.bellman_mean(functional.smooth_l1_loss(q, self.targets(batch), reduction="none"))
        logits = self.imitation(batch.states)
        log_prob = masked_log_softmax(logits, batch.action_mask)
        imitation_loss = -log_prob.gather(2, taken).squeeze(2).mean(dim=1)
        penalty = self.logit_penalty * logits.square().mean(dim=(1, 2))
        return {
            "loss": q_loss + imitation_loss + penalty,
            "q_loss": q_loss,
            "imitation_loss": imitation_loss,
            "logit_penalty": penalty,
            "q_mean": q.mean(dim=1),
        }

    def update(self, batch: Batch) -> Tensors:
        """Take one gradient step, then one Polyak step."""
        losses = self.losses(batch)
        self.optimizer.minimize(losses["loss"].sum())
        self.q_target.parameters.lerp_from(self.q.parameters, self.tau)
        return {name: value.detach() for name, value in losses.items()}


class BCQ(NeuralLearner):
    """Batch-constrained Q-learning for discrete actions: Q-learning over the actions that the log supports.

    The policy takes the action of the highest value among those whose estimated behaviour probability is more than
    `threshold` times that of the most frequent action.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    threshold : float
        tau of the constraint, in [0, 1): 0 is plain Q-learning, values near 1 imitate.
    hidden : tuple of int
        Widths of the hidden layers of each network.
    n_updates : int
        Gradient steps. The paper takes 1M; the default suits a CPU.
    batch_size : int
    learning_rate : float
        Of Adam.
    tau : float
        Polyak step of the target network, in (0, 1].
    logit_penalty : float
        Weight of the mean square of the imitation logits.
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

    Notes
    -----
    With imitation network G, online Q and target Q':
    a' = argmax of Q(s', a) over {a: G(a|s') / max_b G(b|s') > threshold}, y = r + gamma (1 - terminal) Q'(s', a'),
    loss = smooth_l1(Q(s, a), y) - log G(a|s) + logit_penalty mean(logits^2). Q and G are separate networks; the logits
    pass no ReLU before the softmax, unlike in the authors' code. Horizon and truncated ends bootstrap from their final
    state. The Huber loss has its corner at a TD error of 1: scale rewards accordingly.

    References
    ----------
    Fujimoto, Conti, Ghavamzadeh & Pineau (2019), "Benchmarking batch deep reinforcement learning algorithms",
    arXiv:1910.01708.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0]] * 4, actions=["a", "b"] * 2, rewards=[0.0, 1.0] * 2, lengths=[1] * 4, ends="terminal"
    ... )
    >>> policy = BCQ(hidden=(16,), n_updates=200, learning_rate=0.01, random_state=0).fit(log)
    >>> policy.predict([[0.0]])
    array(['b'], dtype='<U1')
    """

    rules: ClassVar[Mapping[str, Number]] = {
        **NeuralLearner.rules,
        "gamma": DISCOUNT,
        "threshold": Number(0, 1, open_high=True),
        "tau": Number(0, 1, open_low=True),
        "logit_penalty": NONNEGATIVE,
    }
    individual: ClassVar[frozenset[str]] = NeuralLearner.individual | {"gamma", "threshold", "tau", "logit_penalty"}

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        threshold: float = 0.3,
        hidden: tuple[int, ...] = (256, 256),
        n_updates: int = 10_000,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        tau: float = 0.005,
        logit_penalty: float = 1e-2,
        normalize_states: bool = True,
        random_state: int | None = 0,
        device: str = "auto",
        progress: bool = False,
        checkpoints: int = 0,
        checkpoint_path: str | Path | None = None,
        log_every: int = 100,
        callbacks: Sequence[Callable[[LearnerEvent], Any]] | None = None,
        n_threads: int = 1,
    ) -> None:
        self.gamma = gamma
        self.threshold = threshold
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tau = tau
        self.logit_penalty = logit_penalty
        self.normalize_states = normalize_states
        self.random_state = random_state
        self.device = device
        self.progress = progress
        self.checkpoints = checkpoints
        self.checkpoint_path = checkpoint_path
        self.log_every = log_every
        self.callbacks = callbacks
        self.n_threads = n_threads

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers."""
        return frozenset({"logged_prob", "all_probs", "sample", "deterministic"})

    def _check_data(self, data: LoggedDataset) -> None:
        if not data.discrete:
            raise TypeError(
                "BCQ: `data` must have discrete actions, got continuous ones; use BehaviorCloning, or discretise the "
                "actions."
            )

    @classmethod
    def _step(cls, learners: Sequence[Self], data: Transitions, seeds: Sequence[int]) -> TrainingStep:
        sizes = (data.states.shape[1], *learners[0].hidden, data.n_actions)
        names = ("gamma", "threshold", "tau", "logit_penalty", "learning_rate")
        settings = {name: [float(getattr(learner, name)) for learner in learners] for name in names}
        return BCQStep(sizes, seeds, settings, data.rewards.device)

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        log_prob = masked_log_softmax(self.networks_["imitation"](states)[0], mask)
        log_threshold = math.log(self.threshold) if self.threshold > 0 else -math.inf
        chosen = constrained_argmax(self.networks_["q"](states)[0], log_prob, log_threshold)
        return functional.one_hot(chosen, self.origin_.n_actions).double()
