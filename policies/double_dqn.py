"""`DoubleDQN`: plain Q-learning from a log, the baseline that offline learners are to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._critic import CriticLearner
from ope.policies._discrete_q import DiscreteQStep, greedy
from ope.policies._runs import LearnerEvent
from ope.policies._settings import DISCOUNT, POLYAK, Rule

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions


class DoubleDQN(CriticLearner):
    """Double Q-learning, or neural fitted Q iteration, for discrete actions: without a guard against unseen actions.

    Use it as a baseline, or where the log tries every action in every state. Elsewhere nothing corrects the values of
    actions that the log never took, and the policy seeks out those that are too high.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    hidden : tuple of int
        Widths of the hidden layers.
    n_updates : int
        Gradient steps.
    batch_size : int
    learning_rate : float
        Of Adam.
    tau : float
        Polyak step of the target network, in (0, 1].
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
    checkpoints_ : list of DoubleDQN
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
    Minimises smooth_l1(Q(s, a), y), y = r + gamma (1 - terminal) Q'(s', argmax Q(s', .)), the argmax over the available
    actions. Horizon and truncated ends bootstrap from their final state. Cost: an update with a batch of 256 is some 5
    products of 256^3.

    References
    ----------
    van Hasselt, Guez & Silver (2016), "Deep reinforcement learning with double Q-learning", AAAI, arXiv:1509.06461. Riedmiller
    (2005), "Neural fitted Q iteration", ECML, doi:10.1007/11564096_32.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0]] * 4, actions=["a", "b"] * 2, rewards=[0.0, 1.0] * 2, lengths=[1] * 4, ends="terminal"
    ... )
    >>> DoubleDQN(hidden=(16,), n_updates=200, learning_rate=0.01).fit(log).predict([[0.0]])
    array(['b'], dtype='<U1')
    """

    rules: ClassVar[Mapping[str, Rule]] = {**CriticLearner.rules, "gamma": DISCOUNT, "tau": POLYAK}
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {"gamma", "tau"}
    no_continuous: ClassVar[str | None] = "use TD3BC, IQL, CQL or ATAC"

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        hidden: tuple[int, ...] = (256, 256),
        n_updates: int = 10_000,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        tau: float = 0.005,
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
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tau = tau
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
        settings = cls._numbers(learners, ("gamma", "tau", "learning_rate"), discrete=True)
        settings["alpha"] = [0.0] * len(learners)
        sizes = (data.states.shape[1], *learners[0].hidden, data.n_actions)
        return DiscreteQStep(sizes, seeds, settings, data.rewards.device, huber=True)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return True

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return greedy(self.networks_["q"](states)[0], mask)
