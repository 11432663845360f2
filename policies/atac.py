"""`ATAC`: adversarially trained actor critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._actors import squashed_distribution
from ope.policies._atac_step import LOG_STD_BOUNDS, ATACStep, Game
from ope.policies._critic import CriticLearner
from ope.policies._runs import LearnerEvent
from ope.policies._settings import DISCOUNT, FLAG, NATURAL, NONNEGATIVE, POLYAK, POSITIVE, Rule, check_warm_start

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions
    from ope.policies._bounds import ActionBounds
    from ope.policies._distributions import ActionDistribution
    from ope.validation import FloatArray


class ATAC(CriticLearner):
    """Adversarially trained actor critic: the policy that is best against the most pessimistic critic the log allows.

    Use it where the candidate must not be worse than the behaviour: at the optimum of the game that holds for every
    `beta`, from imitation (0) to trust in the Bellman equation (large).

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    beta : float
        Weight of the Bellman loss against pessimism; 1 to 16 in the paper, chosen for each data set.
    hidden : tuple of int
        Widths of the hidden layers of each network.
    n_updates : int
        Gradient steps, those of the warm start included. The paper takes 100,000 + 1M; the default suits a CPU.
    warm_start_updates : int
        Steps at the start in which the actor imitates the log and the critics learn by their Bellman loss alone.
    batch_size : int
    learning_rate : float
        Of the critics, of the temperature, and of the warm start.
    actor_learning_rate : float
        Of the actor in the game: far smaller, so that the critics answer every move. The paper's 5e-7 is for 1M steps; in
        15,000 it hardly leaves the imitation: there 3e-5 travels as far.
    tau : float
        Polyak step of the targets, in (0, 1].
    max_norm : float
        Largest Frobenius norm of a weight matrix of the critics.
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
    checkpoints_ : list of ATAC
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
    Each critic f minimises E[f(s, pi) - f(s, a)] + beta E_D, E_D = .5 MSE(f(s, a), y(target)) + .5 MSE(f(s, a), y(f)),
    y(v) = r + gamma (1 - terminal) v(s', pi) clipped to [Vmin, Vmax], the smaller twin in y(target); y(f) is differentiated
    too. After each step its weight matrices are projected to Frobenius norm <= `max_norm`. The actor, a squashed Gaussian,
    maximises f_1(s, pi) plus temperature times entropy, the temperature learned for an entropy of minus the number of
    dimensions. A weighted sum loss + w regulariser is loss / w + regulariser where w > 1. Vmin and Vmax are min(0, least
    reward) / (1 - gamma) and max(0, largest reward) / (1 - gamma). The targets keep what the warm start taught them.
    Horizon and truncated ends bootstrap from their final state. Cost: an update with a batch of 256 is some 54 products of
    256^3.

    References
    ----------
    Cheng, Xie, Jiang & Agarwal (2022), "Adversarially trained actor critic for offline reinforcement learning", ICML,
    arXiv:2202.02446; code github.com/microsoft/ATAC and github.com/microsoft/lightATAC.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.dataset import LoggedDataset
    >>> a = np.linspace(-1.0, 1.0, 40)[:, None]
    >>> log = LoggedDataset.from_arrays(np.zeros((40, 1)), a, 1.0 - a[:, 0], lengths=[1] * 40, ends="terminal")
    >>> policy = ATAC(hidden=(16,), n_updates=300, warm_start_updates=100, learning_rate=0.01, actor_learning_rate=0.01)
    >>> bool(policy.fit(log).predict([[0.0]])[0, 0] < -0.3)
    True
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "beta": NONNEGATIVE,
        "warm_start_updates": NATURAL,
        "actor_learning_rate": POSITIVE,
        "tau": POLYAK,
        "max_norm": POSITIVE,
        "deterministic": FLAG,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {"gamma", "beta", "actor_learning_rate", "tau"}
    no_discrete: ClassVar[str | None] = "use CQL, IQL or BCQ"

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        beta: float = 1.0,
        hidden: tuple[int, ...] = (256, 256, 256),
        n_updates: int = 20_000,
        warm_start_updates: int = 5_000,
        batch_size: int = 256,
        learning_rate: float = 5e-4,
        actor_learning_rate: float = 5e-7,
        tau: float = 0.005,
        max_norm: float = 100.0,
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
        self.warm_start_updates = warm_start_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.actor_learning_rate = actor_learning_rate
        self.tau = tau
        self.max_norm = max_norm
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
        first, names = learners[0], ("gamma", "beta", "tau", "learning_rate", "actor_learning_rate")
        game = Game(
            n_states=data.states.shape[1],
            n_actions=data.n_actions,
            hidden=first.hidden,
            warm_start_updates=first.warm_start_updates,
            max_norm=first.max_norm,
            reward_range=(min(-0.0, float(data.rewards.min())), max(0.0, float(data.rewards.max()))),
        )
        return ATACStep(game, seeds, cls._numbers(learners, names, data.discrete), data.rewards.device)

    def _check_together(self) -> None:
        after = "what follows the warm start is the game"
        check_warm_start("ATAC", "`warm_start_updates`", self.warm_start_updates, self.n_updates, after)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return self.deterministic

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        return squashed_distribution(self, states, LOG_STD_BOUNDS, deterministic=self.deterministic)
