"""`BCQ`: batch-constrained Q-learning, for discrete and for continuous actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional
from typing_extensions import Self

from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.policies._actors import acting_noise, best_of
from ope.policies._continuous_bcq import LATENT_BOUND, ContinuousBCQStep, GenerativeShape, decoded, perturbed
from ope.policies._critic import CriticLearner
from ope.policies._discrete_bcq import BCQStep, constrained_argmax, log_threshold
from ope.policies._distributions import Point
from ope.policies._losses import masked_log_softmax
from ope.policies._runs import LearnerEvent
from ope.policies._settings import COUNT, DISCOUNT, NONNEGATIVE, POLYAK, SHARE, Number, Rule
from ope.policies._step import repeated

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions
    from ope.policies._bounds import ActionBounds
    from ope.validation import FloatArray


class BCQ(CriticLearner):
    """Batch-constrained Q-learning: Q-learning over the actions that the log supports.

    Use it where the log holds good actions among bad ones: the policy chooses among what the behaviour does. With discrete
    actions it takes the action of the highest value among those whose estimated behaviour probability is more than
    `threshold` times that of the most frequent action; with continuous ones the best of many draws of a generative model
    of the logged actions, each moved a little.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    threshold : float
        tau of the constraint on discrete actions, in [0, 1): 0 is plain Q-learning, values near 1 imitate.
    hidden : tuple of int or None
        Widths of the hidden layers; None is (256, 256) for discrete actions, (400, 300) for continuous ones.
    n_updates : int
        Gradient steps. The paper takes 1M; the default suits a CPU.
    batch_size : int or None
        None is 256 for discrete actions, 100 for continuous ones.
    learning_rate : float or None
        Of Adam; None is 3e-4 for discrete actions, 1e-3 for continuous ones.
    tau : float
        Polyak step of the targets, in (0, 1].
    logit_penalty : float
        Weight of the mean square of the imitation logits, for discrete actions.
    vae_hidden : tuple of int
        Widths of the hidden layers of the generative model. Continuous actions only, as are the next settings.
    perturbation : float
        Bound of the move of a generated action, half the range of an action being 1.
    min_weight : float
        lambda, in [0, 1]: targets weigh the smaller twin with it, the larger one with the rest.
    n_target_samples : int
        Generated actions of a next state in the targets.
    n_act_samples : int
        Generated actions among which the policy takes the best when it acts.
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
    checkpoints_ : list of BCQ
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
    Discrete actions. With imitation network G, online Q and target Q':
    a' = argmax of Q(s', a) over {a: G(a|s') / max_b G(b|s') > threshold}, y = r + gamma (1 - terminal) Q'(s', a'),
    loss = smooth_l1(Q(s, a), y) - log G(a|s) + logit_penalty mean(logits^2). Q and G are separate networks; the logits
    pass no ReLU before the softmax, unlike in the authors' code. The Huber loss has its corner at a TD error of 1: scale
    rewards accordingly.

    Continuous actions. A variational autoencoder (latents of twice the dimension of the actions, log standard deviation
    in [-4, 15]) learns the logged actions; decoding latents z ~ N(0, 1) clipped to +-.5 gives actions a_j, moved to a_j +
    perturbation tanh(xi(s, a_j)). y = r + gamma (1 - terminal) max_j [lambda min_i Q'_i + (1 - lambda) max_i Q'_i](s', a_j);
    both critics minimise (Q_i(s, a) - y)^2, xi maximises Q_1. The policy takes the best a_j by Q_1 of `n_act_samples`; its
    latents are drawn once, from the seed, so that it is a function of the state, and evaluated as one.

    Horizon and truncated ends bootstrap from their final state. Cost of an update: some 10 products of 256^3 for
    discrete actions, 91 for continuous ones.

    References
    ----------
    Fujimoto, Conti, Ghavamzadeh & Pineau (2019), "Benchmarking batch deep reinforcement learning algorithms",
    arXiv:1910.01708. Fujimoto, Meger & Precup (2019), "Off-policy deep reinforcement learning without exploration", ICML,
    arXiv:1812.02900; code github.com/sfujim/BCQ.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0]] * 4, actions=["a", "b"] * 2, rewards=[0.0, 1.0] * 2, lengths=[1] * 4, ends="terminal"
    ... )
    >>> policy = BCQ(hidden=(16,), n_updates=200, learning_rate=0.01, random_state=0).fit(log)
    >>> policy.predict([[0.0]])
    array(['b'], dtype='<U1')
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "threshold": Number(0, 1, open_high=True),
        "tau": POLYAK,
        "logit_penalty": NONNEGATIVE,
        "perturbation": NONNEGATIVE,
        "min_weight": SHARE,
        "n_target_samples": COUNT,
        "n_act_samples": COUNT,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {
        "gamma",
        "threshold",
        "tau",
        "logit_penalty",
        "perturbation",
        "min_weight",
        "n_act_samples",
    }
    fixed: ClassVar[tuple[str, ...]] = ("gamma", "threshold", "perturbation")
    by_kind: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "hidden": ((256, 256), (400, 300)),
        "batch_size": (256, 100),
        "learning_rate": (3e-4, 1e-3),
    }

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        threshold: float = 0.3,
        hidden: tuple[int, ...] | None = None,
        n_updates: int = 10_000,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        tau: float = 0.005,
        logit_penalty: float = 1e-2,
        vae_hidden: tuple[int, ...] = (750, 750),
        perturbation: float = 0.05,
        min_weight: float = 0.75,
        n_target_samples: int = 10,
        n_act_samples: int = 100,
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
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tau = tau
        self.logit_penalty = logit_penalty
        self.vae_hidden = vae_hidden
        self.perturbation = perturbation
        self.min_weight = min_weight
        self.n_target_samples = n_target_samples
        self.n_act_samples = n_act_samples
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
        first, device = learners[0], data.rewards.device
        hidden, n_states = first._effective(data.discrete)["hidden"], data.states.shape[1]
        if data.discrete:
            names = ("gamma", "threshold", "tau", "logit_penalty", "learning_rate")
            settings = cls._numbers(learners, names, discrete=True)
            return BCQStep((n_states, *hidden, data.n_actions), seeds, settings, device)
        settings = cls._numbers(
            learners, ("gamma", "tau", "perturbation", "min_weight", "learning_rate"), discrete=False
        )
        shape = GenerativeShape(n_states, data.n_actions, hidden, first.vae_hidden, first.n_target_samples)
        return ContinuousBCQStep(shape, seeds, settings, device)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return True

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        log_prob = masked_log_softmax(self.networks_["imitation"](states)[0], mask)
        bound = log_threshold(self._at_fit("threshold"))
        chosen = constrained_argmax(self.networks_["q"](states)[0], log_prob, bound)
        return functional.one_hot(chosen, self.origin_.n_actions).double()

    def _distribution(self, states: FloatArray) -> Point:
        return best_of(self, states, self.n_act_samples, self._generated)

    def _generated(self, states: torch.Tensor) -> torch.Tensor:
        """Return generated actions, (n, m, k), for states (m, d); the latents are the same in every state."""
        n, nets, k = self.n_act_samples, self.networks_, self.origin_.n_actions
        latents = acting_noise(self, n, 2 * k).clamp(-LATENT_BOUND, LATENT_BOUND)
        many = repeated(states.unsqueeze(0), n)
        drawn = latents.unsqueeze(1).expand(-1, states.shape[0], -1).reshape(1, -1, 2 * k)
        generated = decoded(nets["decoder"], many, drawn)
        return perturbed(nets["actor"], many, generated, self._at_fit("perturbation")).view(n, -1, k)
