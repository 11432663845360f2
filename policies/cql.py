"""`CQL`: conservative Q-learning, for discrete and for continuous actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._actors import squashed_distribution
from ope.policies._continuous_cql import ContinuousCQLStep, CQLForm
from ope.policies._critic import CriticLearner
from ope.policies._discrete_q import DiscreteQStep, greedy
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
    Number,
    Rule,
    check_warm_start,
)

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions
    from ope.policies._bounds import ActionBounds
    from ope.policies._distributions import ActionDistribution
    from ope.validation import FloatArray


class CQL(CriticLearner):
    """Conservative Q-learning: Q-learning whose values of actions beyond the log are pushed down.

    Use it where the log covers some good actions well: the penalty keeps values of unseen actions below those of logged
    ones, so that maximising over actions does not exploit errors of the critic.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    alpha : float or None
        Weight of the penalty; None is 1 for discrete actions (the paper's range is 1 to 4) and 5 for continuous ones (5
        or 10).
    hidden : tuple of int or None
        Widths of the hidden layers of each network; None is (256, 256) for discrete actions, (256, 256, 256) for
        continuous ones.
    n_updates : int
        Gradient steps. The paper takes 1M; the default suits a CPU.
    batch_size : int
    huber : bool
        Whether the Bellman loss of discrete actions is Huber's, as d3rlpy has it, instead of the paper's half square. Its
        gradient is at most 1, so that a penalty of weight 1 or more drowns it unless rewards are small.
    learning_rate : float
        Of the critics.
    actor_learning_rate : float
        Of the actor and of the temperature. Continuous actions only, as are the settings from here to `deterministic`.
    tau : float
        Polyak step of the targets, in (0, 1].
    n_action_samples : int
        Actions that stand for each of three distributions in the penalty.
    lagrange_threshold : float or None
        Gap at which a learned multiplier holds the penalty; None keeps the weight `alpha`, the authors' advice.
    max_target_backup : bool
        Whether targets take the best of `n_action_samples` actions (the authors' choice for mazes).
    warm_start_updates : int
        Updates at the start in which the actor imitates the log.
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
    checkpoints_ : list of CQL
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
    Discrete actions: (Q(s, a) - y)^2 / 2 + alpha (log sum_a' exp Q(s, a') - Q(s, a)), y = r + gamma (1 - terminal)
    Q'(s', argmax Q(s', .)): double Q-learning with a penalty; the policy is the argmax. Masked actions take no part.

    Continuous actions: twin critics, each with (Q(s, a) - y)^2 + alpha [log sum_j exp(Q(s, a_j) - log mu(a_j)) - Q(s, a)],
    a_j from the uniform distribution, from pi(s) and from pi(s'), all evaluated at s; y = r + gamma (1 - terminal)
    min_i Q'_i(s', a'), a' ~ pi(s'), without an entropy term. The actor, a squashed Gaussian, maximises min_i Q_i(s, a) -
    temperature log pi(a|s); the temperature is learned for an entropy of minus the number of dimensions.

    Horizon and truncated ends bootstrap from their final state. Cost: for continuous actions with 10 samples 33 times
    that of `TD3BC` an update, of a batch of 256 some 410 products of 256^3; discrete ones 5.

    References
    ----------
    Kumar, Zhou, Tucker & Levine (2020), "Conservative Q-learning for offline reinforcement learning", NeurIPS,
    arXiv:2006.04779; code github.com/aviralkumar2907/CQL.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0]] * 4, actions=["a", "b"] * 2, rewards=[0.0, 1.0] * 2, lengths=[1] * 4, ends="terminal"
    ... )
    >>> policy = CQL(hidden=(16,), n_updates=200, learning_rate=0.01, alpha=0.1).fit(log)
    >>> policy.predict([[0.0]])
    array(['b'], dtype='<U1')
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "alpha": NONNEGATIVE,
        "huber": FLAG,
        "actor_learning_rate": POSITIVE,
        "tau": POLYAK,
        "n_action_samples": COUNT,
        "lagrange_threshold": Number(or_none=True),
        "max_target_backup": FLAG,
        "warm_start_updates": NATURAL,
        "deterministic": FLAG,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {"gamma", "alpha", "actor_learning_rate", "tau"}
    by_kind: ClassVar[Mapping[str, tuple[Any, Any]]] = {"alpha": (1.0, 5.0), "hidden": ((256, 256), (256, 256, 256))}

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        alpha: float | None = None,
        hidden: tuple[int, ...] | None = None,
        n_updates: int = 10_000,
        batch_size: int = 256,
        huber: bool = False,
        learning_rate: float = 3e-4,
        actor_learning_rate: float = 1e-4,
        tau: float = 0.005,
        n_action_samples: int = 10,
        lagrange_threshold: float | None = None,
        max_target_backup: bool = False,
        warm_start_updates: int = 0,
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
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.huber = huber
        self.learning_rate = learning_rate
        self.actor_learning_rate = actor_learning_rate
        self.tau = tau
        self.n_action_samples = n_action_samples
        self.lagrange_threshold = lagrange_threshold
        self.max_target_backup = max_target_backup
        self.warm_start_updates = warm_start_updates
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
        first = learners[0]
        hidden, n_states, device = first._effective(data.discrete)["hidden"], data.states.shape[1], data.rewards.device
        settings = cls._numbers(
            learners, ("gamma", "alpha", "tau", "learning_rate", "actor_learning_rate"), data.discrete
        )
        if data.discrete:
            sizes = (n_states, *hidden, data.n_actions)
            return DiscreteQStep(sizes, seeds, settings, device, huber=first.huber)
        settings["lagrange_threshold"] = [float(learner.lagrange_threshold or 0.0) for learner in learners]
        form = CQLForm(
            n_samples=first.n_action_samples,
            max_target_backup=first.max_target_backup,
            lagrange=first.lagrange_threshold is not None,
            warm_start_updates=first.warm_start_updates,
        )
        shape = ActorCriticShape(n_states, data.n_actions, hidden, hidden)
        return ContinuousCQLStep(shape, seeds, settings, device, form)

    def _check_together(self) -> None:
        after = "until then the actor only imitates"
        check_warm_start("CQL", "`warm_start_updates`", self.warm_start_updates, self.n_updates, after)

    def _acts_surely(self, discrete: bool) -> bool:
        return discrete or self.deterministic

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return greedy(self.networks_["q"](states)[0], mask)

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        bounds = ContinuousCQLStep.log_std_bounds
        return squashed_distribution(self, states, bounds, deterministic=self.deterministic)
