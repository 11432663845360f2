"""`BEAR`: bootstrapping error accumulation reduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._actors import best_of, squashed_draws
from ope.policies._bear_step import LOG_STD_BOUNDS, BEARForm, BEARStep
from ope.policies._continuous_bcq import GenerativeShape
from ope.policies._critic import CriticLearner
from ope.policies._divergences import SIGMAS, Kernel
from ope.policies._runs import LearnerEvent
from ope.policies._settings import (
    COUNT,
    DISCOUNT,
    NATURAL,
    NONNEGATIVE,
    POLYAK,
    SHARE,
    Choice,
    Number,
    Rule,
    check_warm_start,
)

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions
    from ope.policies._bounds import ActionBounds
    from ope.policies._distributions import Point
    from ope.validation import FloatArray


class BEAR(CriticLearner):
    """Bootstrapping error accumulation reduction: the best policy whose actions lie where the log has some.

    Use it where the log holds good actions among bad ones: samples of the policy are matched to few samples of a
    generative model of the log, which asks for its support rather than its frequencies.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    threshold : float
        epsilon: the discrepancy that the multiplier holds the policy to.
    kernel : {"laplacian", "gaussian"}
        Of the discrepancy.
    kernel_sigma : float or None
        Its width; None is 10 for the Laplacian, 20 for the Gaussian one.
    n_match_samples : int
        Actions of the policy and of the generative model that are compared; the authors take 4 to 10.
    min_weight : float
        lambda, in [0, 1]: targets weigh the smaller twin with it, the larger one with the rest.
    n_target_samples : int
        Actions of a next state in the targets.
    n_act_samples : int
        Draws among which the policy takes the best when it acts.
    hidden, vae_hidden : tuple of int
        Widths of the hidden layers of actor and critics, and of the generative model.
    n_updates : int
        Gradient steps, those of the warm start included. The authors take 1M; the default suits a CPU.
    warm_start_updates : int
        Updates at the start in which the actor is only matched to the generative model: 20 epochs in the authors' code, of
        1,000 updates in their examples.
    batch_size : int
    learning_rate : float
        Of all networks and of the multiplier.
    tau : float
        Polyak step of the targets, in (0, 1].
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
    checkpoints_ : list of BEAR
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
    A variational autoencoder learns the logged actions as in `BCQ`. y = r + gamma (1 - terminal) max_j [lambda min_i Q'_i +
    (1 - lambda) max_i Q'_i](s', a_j), a_j ~ pi'(s'); both critics minimise (Q_i(s, a) - y)^2. The actor, a squashed Gaussian,
    minimises -min_i mean_j Q_i(s, a_j) + multiplier MMD(s), where MMD^2 = mean k(x, x') - 2 mean k(x, y) + mean k(y, y') of
    generated x and drawn y, with k(x, y) = exp(-|x - y|_1 / (2 sigma)) or exp(-|x - y|_2^2 / (2 sigma)), before the tanh of
    either, as the authors do it: behind it gradients vanish where actions saturate. Noise and latents of these samples
    are clipped to +-.5. log(multiplier) starts at 0 (the authors draw it from a standard normal), moves up the gradient of
    multiplier (MMD - epsilon), and stays in [-5, 10]. Log standard deviations are clamped to [-20, 2], which the authors
    leave free.

    The policy takes the best by Q_1 of `n_act_samples` draws; their noise is drawn once, from the seed, so that it is a
    function of the state, and evaluated as one: it has no density. Horizon and truncated ends bootstrap from their final
    state. Cost of an update with a batch of 100: some 77 products of 256^3.

    References
    ----------
    Kumar, Fu, Tucker & Levine (2019), "Stabilizing off-policy Q-learning via bootstrapping error reduction", NeurIPS,
    arXiv:1906.00949; code github.com/aviralkumar2907/BEAR.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.dataset import LoggedDataset
    >>> a = np.linspace(-1.0, 1.0, 40)[:, None]
    >>> log = LoggedDataset.from_arrays(np.zeros((40, 1)), a, 1.0 - a[:, 0], lengths=[1] * 40, ends="terminal")
    >>> policy = BEAR(
    ...     hidden=(16,), vae_hidden=(16,), n_updates=150, warm_start_updates=20, batch_size=32, learning_rate=0.02
    ... )
    >>> bool(policy.fit(log).predict([[0.0]])[0, 0] < -0.3)
    True
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "threshold": NONNEGATIVE,
        "kernel": Choice(tuple(SIGMAS)),
        "kernel_sigma": Number(0, open_low=True, or_none=True),
        "n_match_samples": COUNT,
        "min_weight": SHARE,
        "n_target_samples": COUNT,
        "n_act_samples": COUNT,
        "warm_start_updates": NATURAL,
        "tau": POLYAK,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {
        "gamma",
        "threshold",
        "min_weight",
        "n_act_samples",
        "tau",
    }
    no_discrete: ClassVar[str | None] = "use CQL, IQL or BCQ"

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        threshold: float = 0.05,
        kernel: str = "laplacian",
        kernel_sigma: float | None = None,
        n_match_samples: int = 5,
        min_weight: float = 0.75,
        n_target_samples: int = 10,
        n_act_samples: int = 10,
        hidden: tuple[int, ...] = (400, 300),
        vae_hidden: tuple[int, ...] = (750, 750),
        n_updates: int = 10_000,
        warm_start_updates: int = 1_000,
        batch_size: int = 100,
        learning_rate: float = 1e-3,
        tau: float = 0.005,
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
        self.threshold = threshold
        self.kernel = kernel
        self.kernel_sigma = kernel_sigma
        self.n_match_samples = n_match_samples
        self.min_weight = min_weight
        self.n_target_samples = n_target_samples
        self.n_act_samples = n_act_samples
        self.hidden = hidden
        self.vae_hidden = vae_hidden
        self.n_updates = n_updates
        self.warm_start_updates = warm_start_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tau = tau
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

    @classmethod
    def _step(cls, learners: Sequence[Self], data: Transitions, seeds: Sequence[int]) -> TrainingStep:
        first, names = learners[0], ("gamma", "tau", "min_weight", "threshold", "learning_rate")
        kernel = Kernel.of(first.kernel, first.kernel_sigma)
        form = BEARForm(kernel, first.n_match_samples, first.warm_start_updates)
        dimensions = (data.states.shape[1], data.n_actions)
        shape = GenerativeShape(*dimensions, first.hidden, first.vae_hidden, first.n_target_samples)
        return BEARStep(form, shape, seeds, cls._numbers(learners, names, data.discrete), data.rewards.device)

    def _check_together(self) -> None:
        after = "only what follows the warm start looks at values"
        check_warm_start("BEAR", "`warm_start_updates`", self.warm_start_updates, self.n_updates, after)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return True

    def _distribution(self, states: FloatArray) -> Point:
        n = self.n_act_samples

        def propose(x: torch.Tensor) -> torch.Tensor:
            return squashed_draws(self, x, n, LOG_STD_BOUNDS)

        return best_of(self, states, n, propose)
