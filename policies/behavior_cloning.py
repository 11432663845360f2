"""`BehaviorCloning`: the policy that generated the log, estimated by maximum likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from typing_extensions import Self

from ope.neural.generators import ModelGenerators
from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.optimizer import FlatAdam
from ope.neural.training import TrainingStep
from ope.neural.transitions import Batch, Standardizer, Transitions
from ope.policies._distributions import Normal
from ope.policies._losses import masked_log_softmax, normal_log_prob
from ope.policies._neural import NeuralLearner
from ope.policies._runs import LearnerEvent
from ope.policies._settings import NONNEGATIVE, Rule
from ope.policy import log_prob_logged
from ope.validation import FloatArray

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset

LOG_STD_RANGE = (-5.0, 2.0)


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
    mean, raw = output.chunk(2, dim=-1)
    low, high = LOG_STD_RANGE
    return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)


class CloningStep(TrainingStep):
    """Maximum likelihood for K models.

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
        """Return the mean negative log likelihood, (K,)."""
        output = self.policy(batch.states)
        log_prob = self._discrete(output, batch) if batch.transitions.discrete else self._gaussian(output, batch)
        return {"loss": -log_prob.mean(dim=1)}

    @staticmethod
    def _discrete(output: torch.Tensor, batch: Batch) -> torch.Tensor:
        log_prob = masked_log_softmax(output, batch.action_mask)
        return log_prob.gather(2, batch.actions.unsqueeze(2)).squeeze(2)

    @staticmethod
    def _gaussian(output: torch.Tensor, batch: Batch) -> torch.Tensor:
        return normal_log_prob(batch.actions, *gaussian_parameters(output))

    def update(self, batch: Batch) -> Tensors:
        """Take one gradient step."""
        losses = self.losses(batch)
        self.optimizer.minimize(losses["loss"].sum())
        return {name: value.detach() for name, value in losses.items()}


class BehaviorCloning(NeuralLearner):
    """Imitate the policy that generated the log, by maximum likelihood.

    Discrete actions get a softmax, continuous ones a diagonal Gaussian whose mean and standard deviation depend on the
    state.

    Parameters
    ----------
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

    Notes
    -----
    Minimises the mean of -log pi(a|s). Masked actions have probability 0. Continuous actions are standardised by their
    mean and standard deviation for training, and the density is that of the original unit; in the standardised unit the
    log standard deviation lies in [-5, 2].

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

    rules: ClassVar[Mapping[str, Rule]] = {**NeuralLearner.rules, "weight_decay": NONNEGATIVE}
    individual: ClassVar[frozenset[str]] = NeuralLearner.individual | {"weight_decay"}
    bootstraps: ClassVar[bool] = False

    def __init__(
        self,
        *,
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
    ) -> None:
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

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return False

    @classmethod
    def _step(cls, learners: Sequence[Self], data: Transitions, seeds: Sequence[int]) -> TrainingStep:
        sizes = (data.states.shape[1], *learners[0].hidden, data.n_actions * (1 if data.discrete else 2))
        names = ("learning_rate", "weight_decay")
        settings = {name: [float(getattr(learner, name)) for learner in learners] for name in names}
        return CloningStep(sizes, seeds, settings, data.rewards.device)

    def _action_standardizer(self, data: LoggedDataset) -> Standardizer | None:
        if data.discrete:
            return None
        scale = data.actions.std(axis=0, dtype=np.float64)
        # A constant column keeps its unit: its density is then as narrow as the bound on the standard deviation.
        return Standardizer(data.actions.mean(axis=0, dtype=np.float64), np.where(scale > 0, scale, 1.0))

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return masked_log_softmax(self.networks_["policy"](states)[0].double(), mask).exp()

    def _distribution(self, states: FloatArray) -> Normal:
        def both(x: torch.Tensor, _mask: torch.Tensor | None) -> torch.Tensor:
            mean, log_std = gaussian_parameters(self.networks_["policy"](x)[0].double())
            return torch.cat([mean, log_std.exp()], dim=1)

        mean, std = np.split(self._evaluate(both, states), 2, axis=1)
        unit = self.origin_.actions
        assert unit is not None
        return Normal(unit.inverse(mean), std * unit.scale)

    def score(self, data: LoggedDataset) -> float:
        """Return the mean log probability (density) of the logged actions: how well this policy imitates.

        Parameters
        ----------
        data : LoggedDataset

        Returns
        -------
        float
        """
        return float(log_prob_logged(self, data).mean())
