"""`LSPI`: least-squares policy iteration."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.preprocessing import PolynomialFeatures
from typing_extensions import Self

from ope.dataset import check_log
from ope.neural.history import Outcome, TrainingStatus
from ope.neural.networks import MLP
from ope.neural.transitions import Standardizer, Transitions
from ope.policies._critic import CriticPolicy
from ope.policies._discrete_q import greedy
from ope.policies._neural import _count_excluded
from ope.policies._runs import Origin
from ope.policies._settings import COUNT, DISCOUNT, FLAG, NONNEGATIVE, check_settings
from ope.validation import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset


def lstdq(
    features: FloatArray, actions: IntArray, rewards: FloatArray, following: FloatArray, n_actions: int, ridge: float
) -> FloatArray:
    """Return the weights (n_actions, p) of the linear fixed point Q = T Q of a policy.

    Parameters
    ----------
    features : ndarray of shape (n, p)
        Of the logged states.
    actions : ndarray of shape (n,)
    rewards : ndarray of shape (n,)
    following : ndarray of shape (n, n_actions * p)
        gamma (1 - terminal) times the features of the policy's action in the next state, in the block of that action.
    n_actions : int
    ridge : float
        Added to the diagonal, times n.

    Notes
    -----
    A w = b, A = sum phi(s, a) (phi(s, a) - gamma phi(s', pi(s')))^T + ridge n I, b = sum phi(s, a) r.

    Examples
    --------
    >>> lstdq(np.ones((2, 1)), np.array([0, 1]), np.array([1.0, 3.0]), np.zeros((2, 2)), 2, 0.0)
    array([[1.],
           [3.]])
    """
    n, p = features.shape
    logged = in_block(features, actions, n_actions)
    system = logged.T @ (logged - following) + ridge * n * np.eye(n_actions * p)
    weights: FloatArray = np.linalg.lstsq(system, logged.T @ rewards, rcond=None)[0]
    return weights.reshape(n_actions, p)


def in_block(features: FloatArray, actions: IntArray, n_actions: int) -> FloatArray:
    """Return features (n, p) in the block of each action, zeros elsewhere: (n, n_actions * p).

    Examples
    --------
    >>> in_block(np.array([[5.0]]), np.array([1]), 2)
    array([[0., 5.]])
    """
    blocks = np.zeros((len(features), n_actions, features.shape[1]))
    blocks[np.arange(len(features)), actions] = features
    return blocks.reshape(len(features), -1)


class LSPI(CriticPolicy):
    """Least-squares policy iteration for discrete actions: linear action values, solved in closed form, no tuning.

    Use it as a baseline that takes seconds, for states of few dimensions or one-hot states. Nothing holds it to the actions
    of the log.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    degree : int
        Of the polynomials of the standardised states, products included; 1 is linear.
    ridge : float
        Added to the diagonal of the system, times the number of transitions.
    max_iterations : int
        Policy improvements at most.
    normalize_states : bool
        Whether to standardise states by mean and standard deviation + 1e-3 of the training log.

    Attributes
    ----------
    history_ : DataFrame
        Columns "update", an iteration, and "changed_actions", the next states whose greedy action it changed.
    status_ : TrainingStatus
        How many iterations there were, as a sentence.
    n_updates_ : int
        Iterations behind the policy.
    n_excluded_transitions_ : int
        Last transitions of episodes that go on to an unknown state: left out of the system.
    feature_names_in_ : ndarray of str
        Of the states.
    n_features_in_ : int
        Their number.
    training_episode_keys_ : ndarray of uint64
        Hashes of the identifiers of the training episodes.

    Notes
    -----
    Q(s, a) = w_a^T phi(s). Each iteration solves LSTDQ for the greedy policy of the last one, and ends when no greedy action
    in a next state changes. Among masked actions the greedy one is an available one. Horizon and truncated ends bootstrap
    from their final state. Iteration may cycle where the features cannot express Q: a warning says so. Cost: a system of
    n_actions times p unknowns for each iteration, usually fewer than ten.

    References
    ----------
    Lagoudakis & Parr (2003), "Least-squares policy iteration", JMLR 4, 1107-1149.

    Examples
    --------
    >>> from ope.dataset import LoggedDataset
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0]] * 4, actions=["a", "b"] * 2, rewards=[0.0, 1.0] * 2, lengths=[1] * 4, ends="terminal"
    ... )
    >>> LSPI().fit(log).predict([[0.0]])
    array(['b'], dtype='<U1')
    """

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        degree: int = 1,
        ridge: float = 1e-6,
        max_iterations: int = 50,
        normalize_states: bool = True,
    ) -> None:
        self.gamma = gamma
        self.degree = degree
        self.ridge = ridge
        self.max_iterations = max_iterations
        self.normalize_states = normalize_states

    fixed: ClassVar[tuple[str, ...]] = ("gamma", "degree")

    def fit(self, data: LoggedDataset) -> Self:
        """Learn a policy from a log.

        Parameters
        ----------
        data : LoggedDataset
            With discrete actions.

        Returns
        -------
        self
        """
        self._check(data)
        n_columns = data.states.shape[1]
        scaler = Standardizer.fit(data.states) if self.normalize_states else Standardizer.identity(n_columns)
        transitions = Transitions.from_dataset(data, None, scaler)
        n_excluded = _count_excluded("LSPI", transitions, stacklevel=3)
        weights, changes, converged = self._iterate(transitions)
        network = MLP([weights.shape[1], data.n_actions], 1, trainable=False)
        network.weights[0].copy_(torch.from_numpy(weights.T.copy()).float().unsqueeze(0))
        n_done = len(changes)
        history = pd.DataFrame({"update": np.arange(1, n_done + 1), "changed_actions": np.array(changes, dtype=float)})
        status = TrainingStatus(Outcome.COMPLETED, n_done, n_done)
        if not converged:
            warnings.warn(
                f"LSPI: the policy still changed in iteration {n_done}; the last one is kept. Raise `degree` or `ridge`: "
                "features that cannot express the values let policy iteration cycle.",
                UserWarning,
                stacklevel=2,
            )
        origin = Origin.of(data, scaler, None, n_excluded=n_excluded, seed=0, settings=self._fixed())
        return self._become(origin, {"q": network}, status, history)

    def _check(self, data: LoggedDataset) -> None:
        check_log("LSPI", data)
        if not data.discrete:
            raise TypeError(
                "LSPI: `data` must have discrete actions, got continuous ones; use TD3BC, IQL, CQL or ATAC."
            )
        rules = {"gamma": DISCOUNT, "degree": COUNT, "ridge": NONNEGATIVE, "max_iterations": COUNT}
        check_settings("LSPI", self.get_params(deep=False), {**rules, "normalize_states": FLAG})

    def _iterate(self, data: Transitions) -> tuple[FloatArray, list[int], bool]:
        """Return the last weights, how many greedy actions each iteration changed, and whether the last changed none."""
        known = data.bellman.numpy() > 0
        table = _powers(data.states.numpy().astype(np.float64), self.degree)
        now, then = table[: len(data)][known], table[data.next_index.numpy()[known]]
        mask = None if data.action_mask is None else data.action_mask.numpy()[data.next_index.numpy()[known]]
        actions, rewards = data.actions.numpy()[known], data.rewards.numpy()[known].astype(np.float64)
        discount = (self.gamma * data.continues.numpy()[known].astype(np.float64))[:, None]
        weights, changes = np.zeros((data.n_actions, table.shape[1])), list[int]()
        chosen = _best(then @ weights.T, mask)
        for _ in range(self.max_iterations):
            following = discount * in_block(then, chosen, data.n_actions)
            weights = lstdq(now, actions, rewards, following, data.n_actions, self.ridge)
            best = _best(then @ weights.T, mask)
            changes.append(int(((best != chosen) & (discount[:, 0] > 0)).sum()))
            if changes[-1] == 0:
                return weights, changes, True
            chosen = best
        return weights, changes, False

    def _critic_inputs(self, states: FloatArray) -> FloatArray:
        return _powers(states, self._at_fit("degree"))

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return True

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # In torch, unlike `_critic_inputs`, so that `export` can follow.
        n_columns = len(self.origin_.feature_names)
        powers = torch.from_numpy(PolynomialFeatures(self._at_fit("degree")).fit(np.zeros((1, n_columns))).powers_)
        inputs = (states.double().unsqueeze(1) ** powers).prod(dim=2).float()
        return greedy(self.networks_["q"](inputs)[0], mask)


def _powers(states: FloatArray, degree: int) -> FloatArray:
    return np.asarray(PolynomialFeatures(degree).fit_transform(states), dtype=np.float64)


def _best(q: FloatArray, mask: BoolArray | None) -> npt.NDArray[Any]:
    return np.asarray((q if mask is None else np.where(mask, q, -np.inf)).argmax(axis=1))
