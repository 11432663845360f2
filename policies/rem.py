"""`REM`: the random ensemble mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import Self

from ope.neural.history import Tensors
from ope.neural.networks import MLP
from ope.neural.precision import Precision
from ope.neural.training import TrainingStep
from ope.neural.transitions import Batch
from ope.policies._critic import CriticLearner
from ope.policies._discrete_q import bellman_loss, greedy
from ope.policies._losses import masked, taken
from ope.policies._runs import LearnerEvent
from ope.policies._settings import COUNT, DISCOUNT, POLYAK, Rule
from ope.policies._step import LearnerStep

if TYPE_CHECKING:
    from ope.neural.transitions import Transitions


def mixed_head(heads: MLP, shares: torch.Tensor, *, frozen: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (K, width, n_actions) and bias (K, 1, n_actions) of a combination of heads by shares (K, N).

    The last layer is linear: the combination of the heads' values is the value of the combined head, at the cost of one.

    Examples
    --------
    >>> heads = MLP([3, 8, 5 * 2], n_models=1)
    >>> weight, bias = mixed_head(heads, torch.full((1, 5), 0.2))
    >>> weight.shape, bias.shape
    (torch.Size([1, 8, 2]), torch.Size([1, 1, 2]))
    """
    tensors = heads.parameters.constants if frozen else heads.parameters.views
    last, n_heads = len(heads.sizes) - 2, shares.shape[1]
    layer = (tensors[f"{part}{last}"] for part in ("weight", "bias"))
    weight, bias = (torch.einsum("kn,kwna->kwa", shares, part.view(*part.shape[:2], n_heads, -1)) for part in layer)
    return weight, bias


class REMStep(LearnerStep):
    """Q-learning on a random combination of heads, drawn anew for each update.

    Parameters
    ----------
    sizes : sequence of int
        Widths of a network with one head, input and output included.
    n_heads : int
    seeds : sequence of K ints
    settings : dict of str to sequence of K floats
        gamma, tau, learning_rate.
    device : torch.device
    """

    policy_networks = ("q",)

    def __init__(
        self,
        sizes: Sequence[int],
        n_heads: int,
        seeds: Sequence[int],
        settings: Mapping[str, Sequence[float]],
        device: torch.device,
    ) -> None:
        super().__init__(seeds, settings, device)
        self.n_heads = n_heads
        self.heads = self.mlp("heads", (*sizes[:-1], n_heads * sizes[-1]))
        self.heads_target = self.target("heads")
        # What acts: one head, the mean of all.
        self.q = MLP(sizes, self.n_models, device=device, trainable=False)
        self.networks["q"] = self.q
        self.optimizer = self.adam("heads", self.heads.parameters, "learning_rate")
        self.gamma, self.tau = self.column("gamma"), self.column("tau")

    def shares(self) -> torch.Tensor:
        """Draw uniform numbers and divide them by their sum, (K, N)."""
        draws = self._noise.uniform((self.n_heads,))
        return draws / draws.sum(dim=1, keepdim=True)

    def mixed(self, heads: MLP, states: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return sum_k share_k Q_k(s, .), (K, B, n_actions)."""
        weight, bias = mixed_head(heads, shares)
        return torch.baddbmm(bias, heads.features(states, frozen=False), weight)

    def targets(self, batch: Batch, shares: torch.Tensor) -> torch.Tensor:
        """Return r + gamma (1 - terminal) max_a' sum_k share_k Q'_k(s', a'), (K, B)."""
        with torch.no_grad():
            ahead = masked(self.mixed(self.heads_target, batch.next_states, shares), batch.next_action_mask)
            return batch.rewards + self.gamma * batch.continues * ahead.amax(dim=2)

    def losses(self, batch: Batch, shares: torch.Tensor) -> Tensors:
        """Return the mean of smooth_l1(sum_k share_k Q_k(s, a) - y), and the mean logged value, each (K,)."""
        logged = taken(self.mixed(self.heads, batch.states, shares), batch.actions)
        errors = logged - self.targets(batch, shares)
        return {"loss": batch.bellman_mean(bellman_loss(errors, huber=True)), "q_mean": logged.mean(dim=1)}

    def _update(self, batch: Batch) -> Tensors:
        """Take one gradient step, then one Polyak step."""
        losses = self.losses(batch, self.shares())
        self.optimizer.minimize(losses["loss"].sum())
        self.heads_target.parameters.lerp_from(self.heads.parameters, self.tau)
        return {name: value.detach() for name, value in losses.items()}

    def snapshot(self) -> Tensors:
        """Copy the network of the mean head, (K, P)."""
        equal = torch.full((self.n_models, self.n_heads), 1.0 / self.n_heads, device=self.device)
        last, tensors = len(self.q.sizes) - 2, dict(self.heads.parameters.constants)
        tensors[f"weight{last}"], tensors[f"bias{last}"] = mixed_head(self.heads, equal, frozen=True)
        for name, values in self.q.parameters.constants.items():
            values.copy_(tensors[name])
        return super().snapshot()


class REM(CriticLearner):
    """Random ensemble mixture: Q-learning that must hold for every combination of many heads.

    Use it for discrete actions where the log tries every action somewhere and is large and diverse, as a replay of a
    whole training run is: the mixture steadies Q-learning at no cost. It has no guard against actions that the log never
    took: use `CQL`, `BCQ` or `IQL` there.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    n_heads : int
        Last layers on a shared body; the paper's number.
    hidden : tuple of int
        Widths of the hidden layers.
    n_updates : int
        Gradient steps.
    batch_size : int
    learning_rate : float
        Of Adam.
    tau : float
        Polyak step of the target network, in (0, 1].
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
    checkpoints_ : list of REM
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
    Minimises smooth_l1(sum_k w_k Q_k(s, a) - y), y = r + gamma (1 - terminal) max_a' sum_k w_k Q'_k(s', a') over the
    available actions; the weights w, uniform numbers divided by their sum, are drawn for each batch and are the same on
    both sides. The policy is the argmax of the mean head, and that head is all the policy keeps. Horizon and truncated
    ends bootstrap from their final state.

    The paper has convolutions on frames of Atari, target networks copied every 2,000 updates, batches of 32, learning rate 5e-5 and
    Adam's epsilon 3e-4; here body, Polyak targets, batch and optimiser are those of `DoubleDQN`. Heads are linear in the last hidden layer, so their combination
    is computed as one head: an update costs what one of `DoubleDQN` does, some 4 products of 256^3 for a batch of 256,
    whatever `n_heads` is.

    References
    ----------
    Agarwal, Schuurmans & Norouzi (2020), "An optimistic perspective on offline reinforcement learning", ICML,
    arXiv:1907.04543; code github.com/google-research/batch_rl.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0]] * 4, actions=["a", "b"] * 2, rewards=[0.0, 1.0] * 2, lengths=[1] * 4, ends="terminal"
    ... )
    >>> REM(n_heads=20, hidden=(16,), n_updates=200, learning_rate=0.01).fit(log).predict([[0.0]])
    array(['b'], dtype='<U1')
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **CriticLearner.rules,
        "gamma": DISCOUNT,
        "n_heads": COUNT,
        "tau": POLYAK,
    }
    individual: ClassVar[frozenset[str]] = CriticLearner.individual | {"gamma", "tau"}
    no_continuous: ClassVar[str | None] = "use TD3BC, IQL, CQL or ATAC"

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        n_heads: int = 200,
        hidden: tuple[int, ...] = (256, 256),
        n_updates: int = 10_000,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        tau: float = 0.005,
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
        self.n_heads = n_heads
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tau = tau
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
        settings = cls._numbers(learners, ("gamma", "tau", "learning_rate"), discrete=True)
        sizes = (data.states.shape[1], *learners[0].hidden, data.n_actions)
        return REMStep(sizes, learners[0].n_heads, seeds, settings, data.rewards.device)

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return True

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return greedy(self.networks_["q"](states)[0], mask)
