"""`IQL`: implicit Q-learning, for discrete and for continuous actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._actors import softmax_policy, truncated_distribution
from ope.policies._critic import CriticLearner
from ope.policies._iql_step import LOG_STD_BOUNDS, IQLStep
from ope.policies._runs import LearnerEvent
from ope.policies._settings import DISCOUNT, FLAG, NONNEGATIVE, POLYAK, Number, Rule

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset
    from ope.neural.transitions import Transitions
    from ope.policies._bounds import ActionBounds
    from ope.policies._distributions import ActionDistribution
    from ope.validation import FloatArray

# The spread of returns that the authors scale rewards to.
RETURN_SPREAD = 1000.0
ROUNDING = 1e-9


class IQL(CriticLearner):
    """Implicit Q-learning: values and policy are learned from logged actions alone.

    Use it where trust in unseen actions is least: no value of an action beyond the log is ever asked for. An expectile of
    the logged values stands for the best logged action, and the policy imitates logged actions by their advantage.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    expectile : float
        In (0, 1): .5 values the behaviour, near 1 the best logged action; .7 for locomotion, .9 for mazes.
    beta : float
        Inverse temperature of the imitation: 0 clones, 3 for locomotion, 10 for mazes.
    reward_scale : float or None
        Rewards are multiplied by it for training; None is 1000 / (best - worst return of the log), the authors' choice for
        episodes of 1,000 steps. For short episodes with dense rewards pass a smaller one: `beta` and it act together.
    hidden : tuple of int
        Widths of the hidden layers of each network.
    n_updates : int
        Gradient steps. The paper takes 1M; the default suits a CPU. The actor's learning rate falls to 0 on the way, so a
        finished run cannot be prolonged.
    batch_size : int
    learning_rate : float
        Of all networks.
    tau : float
        Polyak step of the target critics, in (0, 1].
    action_bounds : (low, high) or None
        Range of continuous actions, numbers or a tuple of them for each; None is the smallest and largest logged action.
    deterministic : bool
        Whether the fitted policy takes its most probable action, tanh(mean) for continuous ones, as the authors evaluate
        it. May be changed after the fit.
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
    checkpoints_ : list of IQL
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
    In this order in each update, each with the V just updated:
    V minimises |expectile - 1(u < 0)| u^2, u = min_i Q'_i(s, a) - V(s);
    the policy minimises -min(exp(beta (min_i Q'_i(s, a) - V(s))), 100) log pi(a|s);
    both Q_i minimise (r + gamma (1 - terminal) V(s') - Q_i(s, a))^2; the targets Q' take a Polyak step.

    The policy of continuous actions is a normal around tanh(mean) with a standard deviation that depends on no state; a
    squashed Gaussian fails on mazes. It is truncated to the bounds when it acts, so that draws and density respect them.
    Discrete actions get a softmax over the available actions. Horizon and truncated ends bootstrap from their final state.
    Cost: an update with a batch of 256 is some 17 products of 256^3.

    References
    ----------
    Kostrikov, Nair & Levine (2022), "Offline reinforcement learning with implicit Q-learning", ICLR, arXiv:2110.06169;
    code github.com/ikostrikov/implicit_q_learning.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0]] * 4, actions=["a", "b"] * 2, rewards=[0.0, 1.0] * 2, lengths=[1] * 4, ends="terminal"
    ... )
    >>> policy = IQL(hidden=(16,), n_updates=300, learning_rate=0.01, reward_scale=1.0, tau=0.1).fit(log)
    >>> policy.predict([[0.0]])
    array(['b'], dtype='<U1')
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "expectile": Number(0, 1, open_low=True, open_high=True),
        "beta": NONNEGATIVE,
        "reward_scale": Number(0, open_low=True, or_none=True),
        "tau": POLYAK,
        "deterministic": FLAG,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {"gamma", "expectile", "beta", "tau"}
    scheduled: ClassVar[bool] = True

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        expectile: float = 0.7,
        beta: float = 3.0,
        reward_scale: float | None = None,
        hidden: tuple[int, ...] = (256, 256),
        n_updates: int = 20_000,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        tau: float = 0.005,
        action_bounds: ActionBounds | None = None,
        deterministic: bool = False,
        normalize_states: bool = False,
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
        self.expectile = expectile
        self.beta = beta
        self.reward_scale = reward_scale
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
        names = ("gamma", "expectile", "beta", "tau", "learning_rate")
        settings = cls._numbers(learners, names, data.discrete)
        return IQLStep(data, learners[0].hidden, learners[0].n_updates, seeds, settings)

    def _reward_scale(self, data: LoggedDataset) -> float:
        if self.reward_scale is not None:
            return float(self.reward_scale)
        returns = np.add.reduceat(data.rewards, data.offsets[:-1])
        spread = float(returns.max() - returns.min())
        # Sums of the same rewards in another order differ by rounding: that is no spread.
        return RETURN_SPREAD / spread if spread > ROUNDING * float(np.abs(returns).max()) else 1.0

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return self.deterministic

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return softmax_policy(self, states, mask, deterministic=self.deterministic)

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        return truncated_distribution(self, states, LOG_STD_BOUNDS, deterministic=self.deterministic)
