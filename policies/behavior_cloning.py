"""`BehaviorCloning`: the policy that generated the log, estimated by maximum likelihood or least squares."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from typing_extensions import Self

from ope import ragged
from ope.neural.generators import ModelGenerators
from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.optimizer import FlatAdam
from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.neural.transitions import Batch, Standardizer, Transitions
from ope.policies._actors import squashed_mean
from ope.policies._distributions import MixtureNormal, Normal, Point
from ope.policies._losses import masked_log_softmax, normal_log_prob, split_gaussian
from ope.policies._neural import NeuralLearner
from ope.policies._runs import LearnerEvent
from ope.policies._settings import COUNT, NONNEGATIVE, Choice, Number, Rule
from ope.policy import log_prob_logged
from ope.validation import FloatArray, IntArray

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset
    from ope.policies._bounds import ActionBounds
    from ope.policies._distributions import ActionDistribution
    from ope.policies._runs import Origin

LOG_STD_RANGE = (-5.0, 2.0)
ROUNDING = 1e-9


def gaussian_parameters(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a network's output (..., 2 k) into mean and log standard deviation, the latter bent into [-5, 2].

    Notes
    -----
    log_std = -5 + 7 (tanh(x) + 1) / 2: bounded like a clamp, but its gradient never vanishes at once.

    Examples
    --------
    >>> mean, log_std = gaussian_parameters(torch.tensor([[0.5, 0.0]]))
    >>> mean, log_std
    (tensor([[0.5000]]), tensor([[-1.5000]]))
    """
    return split_gaussian(output, LOG_STD_RANGE, smooth=True)


def mixture_parameters(output: torch.Tensor, n_actions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split an output (..., C (1 + 2 k)) into log weights (..., C), means and log standard deviations (..., C, k).

    Examples
    --------
    >>> log_weights, mean, log_std = mixture_parameters(torch.zeros(7, 6), n_actions=1)
    >>> log_weights.exp()[0], mean.shape, log_std.shape
    (tensor([0.5000, 0.5000]), torch.Size([7, 2, 1]), torch.Size([7, 2, 1]))
    """
    n_components = n_components_of(output.shape[-1], n_actions)
    logits, components = output[..., :n_components], output[..., n_components:]
    mean, log_std = gaussian_parameters(components.view(*components.shape[:-1], n_components, 2 * n_actions))
    return torch.log_softmax(logits, dim=-1), mean, log_std


def n_components_of(width: int, n_actions: int) -> int:
    """Return the components that an output of this width describes; 0 is one normal without a weight.

    Examples
    --------
    >>> n_components_of(4, n_actions=2), n_components_of(5, n_actions=2)
    (0, 1)
    """
    return width // (1 + 2 * n_actions)


def is_deterministic(width: int, data: Transitions | Origin) -> bool:
    """Return whether an output of this width is one action: a normal or a mixture takes more than a number a dimension."""
    return not data.discrete and width == data.n_actions


def mixture_log_prob(
    actions: torch.Tensor, log_weights: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor
) -> torch.Tensor:
    """Return log sum_c w_c N(a; mean_c, std_c) of actions (..., k), shape (...).

    Examples
    --------
    >>> half = torch.full((1, 2), 0.5)
    >>> mixture_log_prob(torch.zeros(1, 1), half.log(), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    tensor([-0.9189])
    """
    return torch.logsumexp(log_weights + normal_log_prob(actions.unsqueeze(-2), mean, log_std), dim=-1)


def top_weights(returns: FloatArray, lengths: IntArray, share: float) -> FloatArray:
    """Return the weight of each episode among those of the highest returns that hold a share of all transitions.

    Notes
    -----
    The weights times the lengths sum to m = share sum(lengths). With c the return at which the episodes, best first, come to
    m: 1 above c, 0 below; the episodes at c, one or many, have the weight that is left. That is what choosing among ties
    at random gives on average.

    Examples
    --------
    >>> top_weights(np.array([3.0, 1.0, 0.0, 1.0]), np.array([5, 5, 20, 10]), 0.25)
    array([1.        , 0.33333333, 0.        , 0.33333333])
    """
    wanted = share * lengths.sum()
    best_first = np.argsort(-returns, kind="stable")
    reached = np.searchsorted(np.cumsum(lengths[best_first]), wanted * (1.0 - ROUNDING))
    cut = returns[best_first[reached]]
    above, tied = returns > cut, returns == cut
    return np.where(above, 1.0, tied * (wanted - lengths[above].sum()) / lengths[tied].sum())


class CloningStep(TrainingStep):
    """Maximum likelihood, or least squares, for K models.

    Parameters
    ----------
    sizes : sequence of int
        Widths of the network, input and output included.
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        learning_rate, weight_decay of each model.
    device : torch.device
    """

    policy_networks = ("policy",)

    def __init__(
        self, sizes: Sequence[int], seeds: Sequence[int], settings: Mapping[str, Sequence[float]], device: torch.device
    ) -> None:
        super().__init__(len(seeds))
        self.policy = MLP(sizes, len(seeds), device=device).initialize(ModelGenerators(seeds, "weights").generators)
        self.networks = {"policy": self.policy}
        self.optimizer = FlatAdam([self.policy.parameters], settings["learning_rate"], settings["weight_decay"])
        self.optimizers = {"policy": self.optimizer}

    def losses(self, batch: Batch) -> Tensors:
        """Return the mean negative log likelihood, or the mean square of tanh(output) - a of a deterministic policy, (K,)."""
        output = self.policy(batch.states)
        if is_deterministic(output.shape[-1], batch.transitions):
            return {"loss": (torch.tanh(output) - batch.actions).square().mean(dim=(1, 2))}
        log_prob = self._discrete(output, batch) if batch.transitions.discrete else self._continuous(output, batch)
        return {"loss": -log_prob.mean(dim=1)}

    @staticmethod
    def _discrete(output: torch.Tensor, batch: Batch) -> torch.Tensor:
        log_prob = masked_log_softmax(output, batch.action_mask)
        return log_prob.gather(2, batch.actions.unsqueeze(2)).squeeze(2)

    @staticmethod
    def _continuous(output: torch.Tensor, batch: Batch) -> torch.Tensor:
        n_actions = batch.transitions.n_actions
        if n_components_of(output.shape[-1], n_actions) == 0:
            return normal_log_prob(batch.actions, *gaussian_parameters(output))
        return mixture_log_prob(batch.actions, *mixture_parameters(output, n_actions))

    def phase(self) -> Hashable:
        """Return the one form that updates have."""
        return ()

    def _update(self, batch: Batch) -> Tensors:
        """Take one gradient step."""
        losses = self.losses(batch)
        self.optimizer.minimize(losses["loss"].sum())
        return {name: value.detach() for name, value in losses.items()}


class BehaviorCloning(NeuralLearner):
    """Imitate the policy that generated the log, by maximum likelihood.

    Discrete actions get a softmax; continuous ones a diagonal Gaussian whose mean and standard deviation depend on the
    state, a mixture of such, or, by least squares, one action a state. Use it to estimate the behaviour, as the baseline that a learner must beat, and with
    `top_share` as the simplest learner of all: imitation of the best episodes.

    Parameters
    ----------
    form : {"gaussian", "mixture", "deterministic"}
        Of the policy of continuous actions. A mixture density network fits a behaviour with several modes, to which a
        Gaussian assigns the actions between them. "deterministic" fits the mean action alone: it has no density, so that
        importance weights cannot use it, and states where the behaviour hardly varies count no more than others.
    n_components : int
        Of the mixture.
    top_share : float or None
        Share of the transitions that is imitated, those of the episodes with the highest undiscounted returns; None takes
        all. 0.1 is the "10 % BC" of the literature. It compares episodes as wholes: with starts of unequal promise, or ends
        that cut some short, it prefers the lucky ones.
    action_bounds : (low, high) or None
        Of the deterministic form: the range of the actions, numbers or a tuple of them for each; None is the smallest and
        largest logged action.
    hidden : tuple of int
        Widths of the hidden layers.
    n_updates : int
        Gradient steps.
    batch_size : int
    learning_rate : float
        Of Adam.
    weight_decay : float
        Decoupled (AdamW).
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
    checkpoints_ : list of BehaviorCloning
        Fitted copies after evenly spaced updates.
    n_episodes_used_ : int
        Episodes that were imitated. The last one counts whole here, and those that tie with it, though a part of their
        weight may do for the share.
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
    Minimises the mean of -log pi(a|s), or, deterministic, of (tanh(f(s)) - a)^2 with the range of the actions as [-1, 1]. Masked
    actions have probability 0. Otherwise continuous actions are standardised by their mean and standard deviation for training, and
    the density is that of the original unit; in the standardised unit the log standard deviation lies in [-5, 2]. A mixture has pi(a|s) = sum_c w_c(s) N(a; mu_c(s), sigma_c(s)); `predict` is
    its mean, which may lie between its modes. An update with a batch of 256 is some 3.5 products of 256^3.

    References
    ----------
    Bishop (1994), "Mixture density networks", Aston University NCRG/94/004. Chen, Lu, Rajeswaran et al. (2021), "Decision
    transformer: Reinforcement learning via sequence modeling", NeurIPS, arXiv:2106.01345, for the share of the best episodes.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0], [1.0]] * 4, actions=["a", "b"] * 4, rewards=[0.0] * 8, lengths=[1] * 8, ends="terminal"
    ... )
    >>> policy = BehaviorCloning(hidden=(16,), n_updates=200, learning_rate=0.01).fit(log)
    >>> policy.predict([[0.0], [1.0]])
    array(['a', 'b'], dtype='<U1')
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **NeuralLearner.rules,
        "form": Choice(("gaussian", "mixture", "deterministic")),
        "n_components": COUNT,
        "top_share": Number(0, 1, open_low=True, or_none=True),
        "weight_decay": NONNEGATIVE,
    }
    individual: ClassVar[frozenset[str]] = NeuralLearner.individual | {"weight_decay"}
    bootstraps: ClassVar[bool] = False

    def __init__(
        self,
        *,
        form: str = "gaussian",
        n_components: int = 5,
        top_share: float | None = None,
        action_bounds: ActionBounds | None = None,
        hidden: tuple[int, ...] = (256, 256),
        n_updates: int = 5_000,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.0,
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
        self.form = form
        self.n_components = n_components
        self.top_share = top_share
        self.action_bounds = action_bounds
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
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
        if self.action_bounds is not None and self.form != "deterministic":
            raise ValueError(
                f"BehaviorCloning: `action_bounds` must be None with form={self.form!r}, whose density has no bounds, got "
                f"{self.action_bounds!r}; leave it out, or choose form='deterministic'."
            )

    # What the network's output means, its width tells: parameters may have been set anew since the fit.
    def _width(self) -> int:
        return int(self.networks_["policy"].sizes[-1])

    def _acts_surely(self, discrete: bool) -> bool:
        return not discrete and is_deterministic(self._width(), self.origin_)

    @classmethod
    def _step(cls, learners: Sequence[Self], data: Transitions, seeds: Sequence[int]) -> TrainingStep:
        sizes = (data.states.shape[1], *learners[0].hidden, learners[0]._n_outputs(data))
        names = ("learning_rate", "weight_decay")
        settings = {name: [float(getattr(learner, name)) for learner in learners] for name in names}
        return CloningStep(sizes, seeds, settings, data.rewards.device)

    def _n_outputs(self, data: Transitions) -> int:
        if data.discrete or self.form == "deterministic":
            return data.n_actions
        return self.n_components * (1 + 2 * data.n_actions) if self.form == "mixture" else 2 * data.n_actions

    def _episode_weights(self, data: LoggedDataset) -> FloatArray | None:
        if self.top_share is None or self.top_share == 1.0:
            return None
        return top_weights(ragged.segment_sum(data.rewards, data.offsets), data.lengths, self.top_share)

    @property
    def n_episodes_used_(self) -> int:
        """Episodes that were imitated."""
        origin = self._fitted()
        return len(origin.episode_keys) if origin.n_episodes_used is None else origin.n_episodes_used

    def _action_standardizer(self, data: LoggedDataset) -> Standardizer | None:
        if data.discrete:
            return None
        if self.form == "deterministic":
            return super()._action_standardizer(data)
        varies = data.actions.max(axis=0) > data.actions.min(axis=0)
        # A constant column keeps its unit: its density is then as narrow as the bound on the standard deviation.
        scale = np.where(varies, data.actions.std(axis=0, dtype=np.float64), 1.0)
        return Standardizer(data.actions.mean(axis=0, dtype=np.float64), scale)

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return masked_log_softmax(self.networks_["policy"](states)[0].double(), mask).exp()

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        if is_deterministic(self._width(), self.origin_):
            return self._point(states)
        if n_components_of(self._width(), self.origin_.n_actions):
            return self._mixture(states)

        def both(x: torch.Tensor, _mask: torch.Tensor | None) -> torch.Tensor:
            mean, log_std = gaussian_parameters(self.networks_["policy"](x)[0].double())
            return torch.cat([mean, log_std.exp()], dim=1)

        mean, std = np.split(self._evaluate(both, states), 2, axis=1)
        unit = self.origin_.actions
        assert unit is not None
        return Normal(unit.inverse(mean), std * unit.scale)

    def _point(self, states: FloatArray) -> Point:
        return Point(squashed_mean(self, states, "policy"))

    def _mixture(self, states: FloatArray) -> MixtureNormal:
        def output(x: torch.Tensor, _mask: torch.Tensor | None) -> torch.Tensor:
            return self.networks_["policy"](x)[0].double()

        raw = torch.from_numpy(self._evaluate(output, states))
        log_weights, mean, log_std = (part.numpy() for part in mixture_parameters(raw, self.origin_.n_actions))
        unit = self.origin_.actions
        assert unit is not None
        return MixtureNormal(log_weights, unit.inverse(mean), np.exp(log_std) * unit.scale)

    def score(self, data: LoggedDataset) -> float:
        """Return the mean log probability (density) of the logged actions: how well this policy imitates.

        Parameters
        ----------
        data : LoggedDataset

        Returns
        -------
        float
            Of a deterministic policy minus the mean square of pi(s) - a, in the unit of the actions.
        """
        self._check_log(data)
        self._check_labels(data)
        if self._acts_surely(discrete=self._is_discrete()):
            return -float(np.mean(np.square(self.predict(data.states) - data.actions)))
        return float(log_prob_logged(self, data).mean())
