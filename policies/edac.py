"""`EDAC`: soft actor-critic with a diversified ensemble of critics; without the diversification, SAC-N."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._actors import squashed_distribution
from ope.policies._critic import CriticLearner
from ope.policies._edac_step import EDACStep
from ope.policies._runs import LearnerEvent
from ope.policies._sac_step import ActorCriticShape
from ope.policies._settings import DISCOUNT, FLAG, NONNEGATIVE, POLYAK, POSITIVE, Number, Rule

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions
    from ope.policies._bounds import ActionBounds
    from ope.policies._distributions import ActionDistribution
    from ope.validation import FloatArray


class EDAC(CriticLearner):
    """Soft actor-critic against the least of many critics, whose action gradients are kept apart.

    Use it where the log covers more than one way of acting: an action is trusted as far as all critics agree that it is
    good, and they disagree away from the log. Nothing but that disagreement holds the policy to the log: logs of one narrow
    policy need more critics. With `eta=0` it is SAC-N, which needs many more critics for the same caution.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    n_critics : int
        N, at least 2. The paper has 10, and 50 for Hopper; SAC-N needs up to 500.
    eta : float
        Weight of the similarity of the critics' action gradients, in squared units of the rewards. The paper has 1 to 5 for
        MuJoCo's runners; for Adroit 10 to 1,000 with rewards standardised and an actor's rate of 3e-5; 0 is SAC-N.
    entropy_backup : bool
        Whether targets hold the entropy of the next action, as the authors' default has it. The temperature is learned
        either way; without, theirs stays 1.
    hidden : tuple of int
        Widths of the hidden layers of each network.
    n_updates : int
        Gradient steps. The paper takes 3M; the default suits a CPU.
    batch_size : int
    learning_rate : float
        Of the critics.
    actor_learning_rate : float
        Of the actor and of the temperature.
    tau : float
        Polyak step of the targets, in (0, 1].
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
    checkpoints_ : list of EDAC
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
    y = r + gamma (1 - terminal) (min_i Q'_i(s', a') - temperature log pi(a'|s')), a' ~ pi(s'). The critics minimise
    sum_i (Q_i(s, a) - y)^2 + eta / (N - 1) sum_{i != j} cos(grad_a Q_i(s, a), grad_a Q_j(s, a)) at logged actions, each pair
    in both orders. The actor, a squashed Gaussian, maximises min_i Q_i(s, a) - temperature log pi(a|s); the temperature is
    learned for an entropy of minus the number of dimensions. All three use each other as they were before the update, as
    in the authors' code. Its first version summed over min(N, |A|) critics drawn anew at every update, the one since 2022
    over all, as the paper does and this class too. With one dimension of actions the cosines are +-1 and without slope:
    `eta` changes nothing there.

    Networks start as torch's layers do; the authors' last layers start near 0. Horizon and truncated ends bootstrap from
    their final state. `q_values` returns the least of the N. Cost of an update
    with 10 critics and a batch of 256: some 195 products of 256^3, of SAC-N 135.

    References
    ----------
    An, Moon, Kim & Song (2021), "Uncertainty-based offline reinforcement learning with diversified Q-ensemble", NeurIPS,
    arXiv:2110.01548; code github.com/snu-mllab/EDAC.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.dataset import LoggedDataset
    >>> a = np.linspace(-1.0, 1.0, 40)[:, None]
    >>> log = LoggedDataset.from_arrays(np.zeros((40, 1)), a, 1.0 - a[:, 0], lengths=[1] * 40, ends="terminal")
    >>> policy = EDAC(
    ...     n_critics=2, hidden=(16,), n_updates=150, batch_size=32, learning_rate=0.02, actor_learning_rate=0.02
    ... )
    >>> bool(policy.fit(log).predict([[0.0]])[0, 0] < -0.3)
    True
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "n_critics": Number(2, integer=True),
        "eta": NONNEGATIVE,
        "entropy_backup": FLAG,
        "actor_learning_rate": POSITIVE,
        "tau": POLYAK,
        "deterministic": FLAG,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {"gamma", "eta", "actor_learning_rate", "tau"}
    no_discrete: ClassVar[str | None] = "use CQL, IQL or BCQ"

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        n_critics: int = 10,
        eta: float = 1.0,
        entropy_backup: bool = True,
        hidden: tuple[int, ...] = (256, 256, 256),
        n_updates: int = 10_000,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        actor_learning_rate: float = 3e-4,
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
        self.n_critics = n_critics
        self.eta = eta
        self.entropy_backup = entropy_backup
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.actor_learning_rate = actor_learning_rate
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
        first, names = learners[0], ("gamma", "eta", "tau", "learning_rate", "actor_learning_rate")
        shape = ActorCriticShape(data.states.shape[1], data.n_actions, first.hidden, first.hidden, first.n_critics)
        settings = cls._numbers(learners, names, data.discrete)
        return EDACStep(shape, seeds, settings, data.rewards.device, entropy_backup=first.entropy_backup)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return self.deterministic

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        return squashed_distribution(self, states, EDACStep.log_std_bounds, deterministic=self.deterministic)
