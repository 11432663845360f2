"""`AWR`: advantage-weighted regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt
import torch
from typing_extensions import Self

from ope.neural.device import one_thread
from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.neural.transitions import Transitions
from ope.policies._actors import softmax_policy, truncated_distribution
from ope.policies._awr_step import LOG_STD_BOUNDS, AWRStep, lambda_returns, state_values
from ope.policies._network_policy import mean_square_score
from ope.policies._neural import NeuralLearner
from ope.policies._runs import LearnerEvent
from ope.policies._settings import COUNT, DISCOUNT, FLAG, POSITIVE, SHARE, Rule

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset
    from ope.policies._bounds import ActionBounds
    from ope.policies._distributions import ActionDistribution
    from ope.validation import FloatArray


class AWR(NeuralLearner):
    """Advantage-weighted regression: imitate each logged action by how well its episode went on.

    Use it for episodes that are logged whole, with clear rewards: two regressions, no Q function, no value of an action
    that was not logged. It improves on the behaviour in one step and stops there: it does not join the beginning of one
    episode to the end of another as Q-learning does, and where outcomes are noisy it imitates the lucky.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    td_lambda : float
        In [0, 1]: 1 takes returns as they were logged, 0 the reward and the value of the next state.
    beta : float
        Temperature of the weights: small ones imitate only the best actions.
    normalize_advantages : bool
        Whether advantages are standardised over the log, so that `beta` means the same whatever the unit of the rewards.
    refresh : int
        Updates after which returns and weights of the whole log are computed anew.
    hidden : tuple of int
        Widths of the hidden layers of each network.
    n_updates : int
        Gradient steps of each network: the default is 100 refreshes, a minute of one core.
    batch_size : int
    learning_rate : float
        Of both networks.
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
    checkpoints_ : list of AWR
        Fitted copies after evenly spaced updates.
    n_excluded_transitions_ : int
        Last transitions of episodes that go on to an unknown state: left out of the regressions.
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
    V minimises (G - V(s))^2 and the actor -min(exp(A / beta), 20) log pi(a|s), A = G - V'(s). The TD(lambda) return is
    G_t = r_t + gamma ((1 - lambda) V'(s_{t+1}) + lambda G_{t+1}) along the logged episode, V' being V as it was at the last
    refresh. Before a terminal end G = r; a horizon or truncated end bootstraps from its final state; where that is unknown
    the last row is left out, and the one before bootstraps from the last state.

    The weights and their standardisation are those of the authors' code, as are the networks. V's network counts in the root
    mean square of the logged returns (theirs in 1 / (1 - gamma)), so that no unit of the rewards is too large to learn. Offline
    there is no data to collect between refreshes: V and actor train side by side, 200 updates each, instead of in turn, V 200
    and the actor 1,000, and by Adam instead of momentum; the authors act by the mode, `deterministic=True`; the standard deviation of a continuous action is learned, one for all states, instead of fixed at
    .2 or .4; and the normal around tanh(mean) is truncated to the bounds when it acts, so that no penalty has to keep the
    mean inside. Cost: an update with a batch of 256 takes some 2 ms of one core, little of it arithmetic, and a refresh a
    product of 256^3 for every 1,500 rows of the log.

    References
    ----------
    Peng, Kumar, Zhang & Levine (2019), "Advantage-weighted regression: Simple and scalable off-policy reinforcement
    learning", arXiv:1910.00177; code github.com/xbpeng/awr.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0]] * 4, actions=["a", "b"] * 2, rewards=[0.0, 1.0] * 2, lengths=[1] * 4, ends="terminal"
    ... )
    >>> AWR(hidden=(16,), n_updates=300, learning_rate=0.01, beta=0.3).fit(log).predict([[0.0]])
    array(['b'], dtype='<U1')
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **NeuralLearner.rules,
        "gamma": DISCOUNT,
        "td_lambda": SHARE,
        "beta": POSITIVE,
        "normalize_advantages": FLAG,
        "refresh": COUNT,
        "deterministic": FLAG,
    }
    individual: ClassVar[frozenset[str]] = NeuralLearner.individual | {"gamma", "td_lambda", "beta"}
    fixed: ClassVar[tuple[str, ...]] = ("gamma", "td_lambda")

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        td_lambda: float = 0.95,
        beta: float = 1.0,
        normalize_advantages: bool = True,
        refresh: int = 200,
        hidden: tuple[int, ...] = (128, 64),
        n_updates: int = 20_000,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
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
        self.td_lambda = td_lambda
        self.beta = beta
        self.normalize_advantages = normalize_advantages
        self.refresh = refresh
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
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
        settings = cls._numbers(learners, ("gamma", "td_lambda", "beta", "learning_rate"), data.discrete)
        first = learners[0]
        return AWRStep(data, first.hidden, first.refresh, seeds, settings, normalize=first.normalize_advantages)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return self.deterministic

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return softmax_policy(self, states, mask, deterministic=self.deterministic)

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        return truncated_distribution(self, states, LOG_STD_BOUNDS, deterministic=self.deterministic)

    def values(self, states: npt.ArrayLike) -> FloatArray:
        """Return what V believes the behaviour to be worth: the learner's own estimate, of no other policy.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame

        Returns
        -------
        ndarray of shape (n,)
            In the unit of the rewards.
        """
        return self._evaluate(lambda x, _: self.networks_["v"](x)[0, :, 0].double(), self._states(states))

    def score(self, data: LoggedDataset) -> float:
        """Return minus the mean square of V's errors against the TD(lambda) returns of other episodes.

        Parameters
        ----------
        data : LoggedDataset

        Returns
        -------
        float
            Not above 0, in squared units of the reward.

        Notes
        -----
        Rows without a return are left out. It says how well V fits, not how good the policy is: compare policies by an
        estimator of `ope.estimators`.
        """
        self._check_log(data)
        transitions = Transitions.from_dataset(data, None, self.origin_.states)
        with one_thread():
            values = state_values(self.networks_["v"], transitions.states)
            returns = lambda_returns(transitions, values, self._at_fit("gamma"), self._at_fit("td_lambda"))
        errors = (returns - values[:, : len(transitions)])[0, transitions.bellman > 0].double()
        return mean_square_score(type(self).__name__, errors.numpy())
