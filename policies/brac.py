"""`BRAC`: behaviour-regularised actor-critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._actors import best_of, squashed_distribution, squashed_draws
from ope.policies._brac_step import BRACForm, BRACStep
from ope.policies._critic import CriticLearner
from ope.policies._divergences import SIGMAS, Kernel
from ope.policies._runs import LearnerEvent
from ope.policies._sac_step import ActorCriticShape
from ope.policies._settings import (
    COUNT,
    DISCOUNT,
    FLAG,
    NATURAL,
    NONNEGATIVE,
    POLYAK,
    POSITIVE,
    SHARE,
    Choice,
    Number,
    Rule,
    check_warm_start,
)

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions
    from ope.policies._bounds import ActionBounds
    from ope.policies._distributions import ActionDistribution
    from ope.validation import FloatArray


class BRAC(CriticLearner):
    """Behaviour-regularised actor-critic: value, less a divergence of the policy from a clone of the behaviour.

    Use it where the behaviour is one policy, or nearly so: the clone is a single Gaussian a state. `alpha` says how far the
    policy may leave it.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    alpha : float
        Weight of the divergence, in the unit of the rewards: 1 in the authors' class, .1 in their example. The squared
        discrepancy is far smaller than a KL divergence and wants a larger one.
    divergence : {"kl", "mmd"}
        KL divergence of policy from clone, or their squared maximum mean discrepancy.
    value_penalty : bool
        Whether values pay for the divergence of the following states too (BRAC-v), or the actor alone does (BRAC-p).
    n_divergence_samples : int
        Actions of a state by which the divergence is estimated.
    kernel : {"laplacian", "gaussian"}
        Of the discrepancy. The authors have the Laplacian one.
    kernel_sigma : float or None
        Its width, as in exp(-|x - y|_1 / (2 sigma)) and exp(-|x - y|^2 / (2 sigma)); None is 10 for the Laplacian, 20 for the
        Gaussian one.
    temperature : float or None
        Weight of the actor's entropy; None learns it for an entropy of minus the number of dimensions. The authors have 0:
        the divergence from the clone keeps the policy wide.
    min_weight : float
        lambda, in [0, 1]: the smaller twin counts with it, the larger one with the rest.
    hidden, actor_hidden : tuple of int
        Widths of the hidden layers of the critics, and of actor and clone.
    n_updates : int
        Gradient steps, those of the clone and of the warm start included. The authors take 300,000 + 500,000; the default
        suits a CPU.
    behavior_updates : int
        Updates at the start in which the clone is fitted, and nothing else.
    warm_start_updates : int
        Updates after them in which the actor only follows the clone, while the critics learn its values: 20,000 in the
        authors' code.
    batch_size : int
    learning_rate : float
        Of the critics and of the temperature.
    actor_learning_rate, behavior_learning_rate : float
    tau : float
        Polyak step of the targets, in (0, 1].
    n_act_samples : int
        With more than 1, the policy takes the best by Q_1 of so many draws, their noise drawn once from the seed: the
        authors' second way of evaluating, with 10. May be changed after the fit.
    action_bounds : (low, high) or None
        Range of the actions, numbers or a tuple of them for each; None is the smallest and largest logged action.
    deterministic : bool
        Whether the fitted policy takes tanh(mean), as the authors evaluate it, instead of drawing from its density. May
        be changed after the fit.
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
    checkpoints_ : list of BRAC
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
    The clone b, a squashed Gaussian, minimises mean(w log b(a_drawn|s) - log b(a|s)), the weight w >= 0 learned for an
    entropy of minus the number of dimensions, from 1. Then, with D(s) the mean of log pi(a_j|s) - log b(a_j|s) over draws a_j
    ~ pi(s), or MMD^2 = mean k(x, x') - 2 mean k(x, y) + mean k(y, y') of draws x of the policy and y of the clone, k(x, y) =
    exp(-|x - y|_1 / (2 sigma)): y = r + gamma (1 - terminal) [Q'(s', a') - temperature log pi(a'|s') - alpha D(s')], Q = lambda
    min_i + (1 - lambda) max_i of the twins; each critic minimises (Q_i(s, a) - y)^2, the actor minimises temperature log
    pi(a|s) + alpha D(s) - Q(s, a). Log standard deviations reach their bounds, -5 and 0, by a tanh. Actions whose density
    is asked for are clipped to 1e-3 inside their range. Targets start as copies of the critics (in the authors' code, at
    random), and the weight of the divergence is fixed, their default.

    Horizon and truncated ends bootstrap from their final state. With `value_penalty`, `q_values` are net of the penalty,
    and `score` is against targets without it. Cost of an update with a batch of 256: some 22 products of 256^3; of the
    clone 2.

    References
    ----------
    Wu, Tucker & Nachum (2019), "Behavior regularized offline reinforcement learning", arXiv:1911.11361; code
    github.com/google-research/google-research/tree/master/behavior_regularized_offline_rl.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.dataset import LoggedDataset
    >>> a = np.linspace(-1.0, 1.0, 40)[:, None]
    >>> log = LoggedDataset.from_arrays(np.zeros((40, 1)), a, 1.0 - a[:, 0], lengths=[1] * 40, ends="terminal")
    >>> policy = BRAC(
    ...     alpha=0.1, hidden=(16,), actor_hidden=(16,), n_updates=200, behavior_updates=60, warm_start_updates=20,
    ...     batch_size=32, learning_rate=0.02, actor_learning_rate=0.02, behavior_learning_rate=0.02,
    ... )
    >>> bool(policy.fit(log).predict([[0.0]])[0, 0] < -0.3)
    True
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "alpha": NONNEGATIVE,
        "divergence": Choice(("kl", "mmd")),
        "value_penalty": FLAG,
        "n_divergence_samples": COUNT,
        "kernel": Choice(tuple(SIGMAS)),
        "kernel_sigma": Number(0, open_low=True, or_none=True),
        "temperature": Number(0, or_none=True),
        "min_weight": SHARE,
        "behavior_updates": NATURAL,
        "warm_start_updates": NATURAL,
        "actor_learning_rate": POSITIVE,
        "behavior_learning_rate": POSITIVE,
        "tau": POLYAK,
        "n_act_samples": COUNT,
        "deterministic": FLAG,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {
        "gamma",
        "alpha",
        "min_weight",
        "actor_learning_rate",
        "behavior_learning_rate",
        "tau",
        "n_act_samples",
    }
    no_discrete: ClassVar[str | None] = "use CQL, IQL or BCQ"

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        alpha: float = 1.0,
        divergence: str = "kl",
        value_penalty: bool = True,
        n_divergence_samples: int = 4,
        kernel: str = "laplacian",
        kernel_sigma: float | None = None,
        temperature: float | None = 0.0,
        min_weight: float = 1.0,
        hidden: tuple[int, ...] = (300, 300),
        actor_hidden: tuple[int, ...] = (200, 200),
        n_updates: int = 20_000,
        behavior_updates: int = 5_000,
        warm_start_updates: int = 1_000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        actor_learning_rate: float = 3e-4,
        behavior_learning_rate: float = 5e-4,
        tau: float = 0.005,
        n_act_samples: int = 1,
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
        self.alpha = alpha
        self.divergence = divergence
        self.value_penalty = value_penalty
        self.n_divergence_samples = n_divergence_samples
        self.kernel = kernel
        self.kernel_sigma = kernel_sigma
        self.temperature = temperature
        self.min_weight = min_weight
        self.hidden = hidden
        self.actor_hidden = actor_hidden
        self.n_updates = n_updates
        self.behavior_updates = behavior_updates
        self.warm_start_updates = warm_start_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.actor_learning_rate = actor_learning_rate
        self.behavior_learning_rate = behavior_learning_rate
        self.tau = tau
        self.n_act_samples = n_act_samples
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
        first, names = learners[0], ("gamma", "alpha", "min_weight", "tau")
        rates = ("learning_rate", "actor_learning_rate", "behavior_learning_rate")
        form = BRACForm(
            kernel=None if first.divergence == "kl" else Kernel.of(first.kernel, first.kernel_sigma),
            n_divergence_samples=first.n_divergence_samples,
            value_penalty=first.value_penalty,
            temperature=first.temperature,
            behavior_updates=first.behavior_updates,
            warm_start_updates=first.warm_start_updates,
        )
        shape = ActorCriticShape(data.states.shape[1], data.n_actions, first.hidden, first.actor_hidden)
        settings = cls._numbers(learners, names + rates, data.discrete)
        return BRACStep(form, shape, seeds, settings, data.rewards.device)

    def _check_together(self) -> None:
        before = self.behavior_updates + self.warm_start_updates
        names, after = "`behavior_updates` + `warm_start_updates`", "only what follows looks at values"
        check_warm_start("BRAC", names, before, self.n_updates, after)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return self.deterministic or self.n_act_samples > 1

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        n, bounds = self.n_act_samples, BRACStep.log_std_bounds
        if n == 1:
            return squashed_distribution(self, states, bounds, deterministic=self.deterministic, smooth=True)

        def propose(x: torch.Tensor) -> torch.Tensor:
            return squashed_draws(self, x, n, bounds, smooth=True)

        return best_of(self, states, n, propose)
