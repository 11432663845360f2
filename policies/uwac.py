"""`UWAC`: uncertainty-weighted actor critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._runs import LearnerEvent
from ope.policies._settings import POSITIVE, Number, Rule
from ope.policies._uwac_step import UWACForm, UWACStep
from ope.policies.td3bc import TD3BC

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions
    from ope.policies._bounds import ActionBounds


class UWAC(TD3BC):
    """Uncertainty-weighted actor critic: TD3+BC that trusts a value the less, the more its critics doubt it.

    Use it where `TD3BC` is unstable, as on logs of few, narrow demonstrations: Bellman targets and improvements that lie
    beyond the log count for little. `history_["weight"]` says how much they count on average.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    alpha : float
        Weight of the value against the imitation: 0 clones.
    beta : float
        Variance that has weight 1, in squared units of the reward.
    max_weight : float
        Bound of the weights.
    dropout_rate : float
        Share of the hidden units of the critics that are dropped, in (0, 1).
    n_dropout_samples : int
        Thinned critics by which a variance is estimated, 2 at least.
    hidden : tuple of int
        Widths of the hidden layers of each network.
    n_updates : int
        Gradient steps of the critics. The authors take 3M; the default suits a CPU.
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
    checkpoints_ : list of UWAC
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
    Each critic minimises w (Q_i(s, a) - y)^2, y = r + gamma (1 - terminal) min_i mean_t Q'_it(s', a'), w = min(beta / Var[Q'(s',
    a')], max_weight). Q_it is Q_i without the hidden units that sample t dropped; mean and variance are over the samples,
    and the variances of the twins are added. Q_i(s, a) drops units anew for every row. The actor, at every second update,
    minimises -lambda w Q(s, pi(s)) + (pi(s) - a)^2 with Q = min_i mean_t Q_it, w of its own variance, and lambda = alpha /
    mean |w Q| without gradient. No unit is dropped when the policy or `q_values` is asked.

    The weights are the paper's equations; what they weigh is not. Paper and code build on BEAR: a stochastic actor, held to
    samples of a variational autoencoder by a maximum mean discrepancy of fixed size, the best of ten target actions, and
    spectral normalisation of the critics. Here the imitation of `TD3BC` holds a deterministic actor, and weights are
    relative in it, since lambda takes out their mean. The paper draws 100 dropout samples; here the units that a sample
    drops are the same for the whole batch, which leaves every variance what it is and makes samples cheap. The authors'
    script replaces beta / Var by exp(-beta Var), at most 1, and squares it with the error; its actor only follows the
    behaviour for the first 40,000 updates, here for none. Horizon and truncated ends
    bootstrap from their final state. Cost: an update with a batch of 256 is some 50 products of 256^3, four times that of `TD3BC`.

    References
    ----------
    Wu, Zhai, Srivastava et al. (2021), "Uncertainty weighted actor-critic for offline reinforcement learning", ICML,
    arXiv:2105.08140; code github.com/apple/ml-uwac. Gal & Ghahramani (2016), "Dropout as a Bayesian approximation", ICML,
    arXiv:1506.02142.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.dataset import LoggedDataset
    >>> a = np.linspace(-1.0, 1.0, 40)[:, None]
    >>> log = LoggedDataset.from_arrays(np.zeros((40, 1)), a, 1.0 - a[:, 0], lengths=[1] * 40, ends="terminal")
    >>> policy = UWAC(hidden=(16,), n_updates=200, batch_size=40, learning_rate=0.01, n_dropout_samples=5).fit(log)
    >>> bool(policy.predict([[0.0]])[0, 0] < -0.4)
    True
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **TD3BC.rules,
        "beta": POSITIVE,
        "max_weight": POSITIVE,
        "dropout_rate": Number(0, 1, open_low=True, open_high=True),
        "n_dropout_samples": Number(2, integer=True),
    }
    individual: ClassVar[frozenset[str]] = TD3BC.individual | {"beta", "max_weight", "dropout_rate"}

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        alpha: float = 2.5,
        beta: float = 0.5,
        max_weight: float = 1.5,
        dropout_rate: float = 0.1,
        n_dropout_samples: int = 10,
        hidden: tuple[int, ...] = (256, 256),
        n_updates: int = 10_000,
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
        self.beta = beta
        self.max_weight = max_weight
        self.dropout_rate = dropout_rate
        self.n_dropout_samples = n_dropout_samples
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

    def _check_together(self) -> None:
        if not self.hidden:
            raise ValueError(
                f"UWAC: `hidden` must have a layer, got {self.hidden!r}; without units there is no dropout."
            )

    @classmethod
    def _step(cls, learners: Sequence[Self], data: Transitions, seeds: Sequence[int]) -> TrainingStep:
        first = learners[0]
        names = ("gamma", "alpha", "tau", "policy_noise", "noise_clip", "learning_rate")
        settings = cls._numbers(learners, (*names, "beta", "max_weight", "dropout_rate"), data.discrete)
        dimensions = (data.states.shape[1], data.n_actions)
        form = UWACForm(*dimensions, first.hidden, first.policy_delay, first.n_dropout_samples)
        return UWACStep(form, seeds, settings, data.rewards.device)
