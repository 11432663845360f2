"""`AWAC`: advantage-weighted actor critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._actors import softmax_policy, truncated_distribution
from ope.policies._critic import CriticLearner
from ope.policies._runs import LearnerEvent
from ope.policies._settings import DISCOUNT, FLAG, POLYAK, POSITIVE, Rule
from ope.policies._weighted_step import WeightedForm, WeightedStep

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions
    from ope.policies._bounds import ActionBounds
    from ope.policies._distributions import ActionDistribution
    from ope.validation import FloatArray

LOG_STD_BOUNDS = (-6.0, 0.0)


def softmax_weights(advantages: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Return exp(A / temperature), scaled to a mean of 1 over the batch, (K, B).

    Examples
    --------
    >>> softmax_weights(torch.tensor([[0.0, 0.0]]), torch.ones(1, 1))
    tensor([[1., 1.]])
    """
    return torch.softmax(advantages / temperature, dim=1) * advantages.shape[1]


class AWAC(CriticLearner):
    """Advantage-weighted actor critic: an actor critic whose actor imitates logged actions by their advantage.

    Use it where imitation is close to good enough, or as a start for learning that goes on online: the policy stays among
    logged actions, the critic values the policy's own.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    beta : float
        Temperature of the weights, called lambda in the paper: small ones imitate only the best of a batch. The authors
        take 2 for MuJoCo's runners and .5 for the hand.
    hidden : tuple of int
        Widths of the hidden layers of each network.
    n_updates : int
        Gradient steps.
    batch_size : int
        The weights are a softmax over the batch: large ones are the authors' choice.
    learning_rate : float
        Of all networks.
    tau : float
        Polyak step of the targets, in (0, 1].
    action_bounds : (low, high) or None
        Range of continuous actions, numbers or a tuple of them for each; None is the smallest and largest logged action.
    deterministic : bool
        Whether the fitted policy takes its most probable action, tanh(mean) for continuous ones. May be changed after the
        fit.
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
    checkpoints_ : list of AWAC
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
    y = r + gamma (1 - terminal) min_i Q'_i(s', a'), a' of the policy; both critics minimise (Q_i(s, a) - y)^2; the actor
    minimises -w log pi(a|s), w = exp(A / beta) scaled to a mean of 1 over the batch, A = min_i Q_i(s, a) - min_i Q_i(s, a'),
    a' ~ pi. Continuous actions get a normal around tanh(mean) with a standard deviation that depends on no state, truncated
    to the bounds when it acts and when it is drawn from in training; its log standard deviation is -6 + 6 sigmoid(x), from -3
    on, where an action is +-1 at the bounds. Discrete actions get a softmax, and expectations are sums. Horizon and truncated
    ends bootstrap from their final state. Targets use the Polyak average of the actor, where the authors' code has the actor;
    critics are as deep as the actor (theirs have two layers), and no weight decays (theirs: 1e-4 of the actor). They evaluate
    the mode, `deterministic=True`. Cost: some 210 products of 256^3 for a batch of 1,024 and networks of four layers.

    References
    ----------
    Nair, Gupta, Dalal & Levine (2020), "AWAC: Accelerating online reinforcement learning with offline datasets",
    arXiv:2006.09359; code github.com/rail-berkeley/rlkit.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0]] * 4, actions=["a", "b"] * 2, rewards=[0.0, 1.0] * 2, lengths=[1] * 4, ends="terminal"
    ... )
    >>> AWAC(hidden=(16,), n_updates=300, learning_rate=0.01, tau=0.1, beta=0.3).fit(log).predict([[0.0]])
    array(['b'], dtype='<U1')
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "beta": POSITIVE,
        "tau": POLYAK,
        "deterministic": FLAG,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {"gamma", "beta", "tau"}

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        beta: float = 1.0,
        hidden: tuple[int, ...] = (256, 256, 256, 256),
        n_updates: int = 10_000,
        batch_size: int = 1024,
        learning_rate: float = 3e-4,
        tau: float = 0.005,
        action_bounds: ActionBounds | None = None,
        deterministic: bool = False,
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
        self.beta = beta
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tau = tau
        self.action_bounds = action_bounds
        self.deterministic = deterministic
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
        settings = cls._numbers(learners, ("gamma", "beta", "tau", "learning_rate"), data.discrete)
        form = WeightedForm(softmax_weights, 1, LOG_STD_BOUNDS, smooth_log_std=True)
        return WeightedStep(data, learners[0].hidden, form, seeds, settings)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return self.deterministic

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return softmax_policy(self, states, mask, deterministic=self.deterministic)

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        return truncated_distribution(self, states, LOG_STD_BOUNDS, deterministic=self.deterministic)
