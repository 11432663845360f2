"""`NetworkPolicy`: a policy that networks make, its verbs and its file."""

from __future__ import annotations

import abc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.exceptions import NotFittedError
from typing_extensions import Self

from ope.inputs import as_rows
from ope.neural.device import one_thread
from ope.neural.history import Outcome, TrainingStatus
from ope.neural.networks import MLP
from ope.neural.serialization import Arrays, Metadata, pack_labels, save_policy, unpack_labels
from ope.neural.transitions import Standardizer
from ope.policies._distributions import ActionDistribution
from ope.policies._runs import Origin
from ope.policies.discrete import codes_of, draw
from ope.policy import PolicyLearner, RandomState, check_feature_names, generator
from ope.validation import BoolArray, FloatArray, IntArray, float_array

if TYPE_CHECKING:
    from ope.dataset import Rows

PREDICT_ROWS = 1 << 14

Evaluation = Callable[[torch.Tensor, "torch.Tensor | None"], torch.Tensor]


class NetworkPolicy(PolicyLearner, abc.ABC):
    """The fitted side of a learner: what it knows of its log, its networks, and its verbs.

    Attributes
    ----------
    networks_ : dict of str to MLP
        The networks that make the policy, on the CPU.
    origin_ : Origin
        Names, labels and units of the training log.
    history_ : DataFrame
        Column "update" and metrics, averaged since the row before.
    status_ : TrainingStatus
        How training ended, as a sentence.
    checkpoints_ : list of policies
        Fitted copies after evenly spaced updates.
    n_updates_ : int
        Updates behind this policy.
    n_excluded_transitions_ : int
        Last transitions of episodes that go on to an unknown state: left out of the Bellman loss.
    seed_ : int
        The seed used: `random_state`, or the one drawn for None.
    feature_names_in_ : ndarray of str
    n_features_in_ : int
    training_episode_keys_ : ndarray of uint64
    """

    networks_: dict[str, MLP]
    origin_: Origin
    history_: pd.DataFrame
    status_: TrainingStatus
    checkpoints_: list[Self]
    n_updates_: int

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return probabilities of discrete actions (n, n_actions), float64, for standardised states (n, d)."""
        raise NotImplementedError

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        """Return the distribution of continuous actions for states (n, d) in the unit of the log."""
        raise NotImplementedError

    @abc.abstractmethod
    def _acts_surely(self, discrete: bool) -> bool:
        """Return whether the policy is deterministic."""

    # ---------------------------------------------------------------- the fitted state

    def _become(self, origin: Origin, networks: dict[str, MLP], status: TrainingStatus, history: pd.DataFrame) -> Self:
        self.origin_, self.networks_, self.status_, self.history_ = origin, networks, status, history
        self.n_updates_ = status.n_updates
        self.checkpoints_ = []
        self.feature_names_in_ = np.array(origin.feature_names, dtype=object)
        self.n_features_in_ = len(origin.feature_names)
        self.training_episode_keys_ = origin.episode_keys
        self.n_excluded_transitions_ = origin.n_excluded
        self.seed_ = origin.seed
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "networks_")

    def _fitted(self) -> Origin:
        if not hasattr(self, "networks_"):
            raise NotFittedError(f"{type(self).__name__} is not fitted; call fit(data) with a LoggedDataset first.")
        return self.origin_

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """Labels of the actions in the order of `predict_proba`; None for continuous actions."""
        return self._fitted().action_labels

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers; it depends on the actions it was fitted to."""
        discrete = self._fitted().action_labels is not None
        sure = self._acts_surely(discrete)
        if discrete:
            return frozenset({"logged_prob", "all_probs", "sample"} | ({"deterministic"} if sure else set()))
        return frozenset({"sample", "deterministic"} if sure else {"logged_prob", "density", "sample"})

    # ---------------------------------------------------------------- verbs

    def predict(self, states: npt.ArrayLike, action_mask: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """Return the most probable label of each state, or the mean of the continuous action.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        action_mask : array-like of shape (n, n_actions), optional
            Which discrete actions are available, in the order of `labels`; default: all of them.

        Returns
        -------
        ndarray of shape (n,) or (n, k)
        """
        if self._fitted().action_labels is None:
            return self._distribution(self._states(states)).mean()
        codes: IntArray = self.predict_proba(states, action_mask).argmax(axis=1)
        return self._discrete_labels()[codes]

    def predict_proba(self, states: npt.ArrayLike, action_mask: npt.ArrayLike | None = None) -> FloatArray:
        """Return the probability of every action, in the order of `labels`; masked actions have 0.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        action_mask : array-like of shape (n, n_actions), optional

        Returns
        -------
        ndarray of shape (n, n_actions)
        """
        self._discrete_labels()
        return self._evaluate(self._probabilities, self._states(states), self._mask(action_mask))

    def log_prob(
        self, states: npt.ArrayLike, actions: npt.ArrayLike, action_mask: npt.ArrayLike | None = None
    ) -> FloatArray:
        """Return the log probability of labels, or the log density of continuous actions; -inf for what is never done.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        actions : array-like of shape (n,) or (n, k)
        action_mask : array-like of shape (n, n_actions), optional
            Of discrete actions.

        Returns
        -------
        ndarray of shape (n,)
        """
        if self._fitted().action_labels is None:
            return self._log_density(states, actions)
        codes = codes_of(actions, self._discrete_labels(), type(self).__name__)
        probs = self.predict_proba(states, action_mask)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(probs[np.arange(len(probs)), codes]))

    def sample(
        self, states: npt.ArrayLike, random_state: RandomState = None, action_mask: npt.ArrayLike | None = None
    ) -> npt.NDArray[Any]:
        """Draw an action for each state.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        random_state : int, Generator or None
        action_mask : array-like of shape (n, n_actions), optional
            Of discrete actions.

        Returns
        -------
        ndarray of shape (n,) or (n, k)
        """
        if self._fitted().action_labels is None:
            return self._distribution(self._states(states)).sample(generator(random_state))
        codes = draw(self.predict_proba(states, action_mask), generator(random_state))
        return self._discrete_labels()[codes]

    def proba_rows(self, rows: Rows) -> FloatArray:
        """Return `predict_proba` on logged rows, with their action mask."""
        self._check_names(rows)
        return self.predict_proba(rows.states, rows.action_mask)

    def log_prob_rows(self, rows: Rows, actions: npt.NDArray[Any]) -> FloatArray:
        """Return `log_prob` of the logged actions on logged rows, with their action mask."""
        self._check_names(rows)
        return self.log_prob(rows.states, actions, rows.action_mask)

    def quadrature_rows(self, rows: Rows) -> tuple[FloatArray, FloatArray] | None:
        """Return nodes (m, n, k) and weights (m,) of the continuous action in every row, or None to draw samples."""
        self._check_names(rows)
        if self.origin_.action_labels is not None:
            return None
        return self._distribution(rows.states).nodes()

    def _log_density(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        if self._acts_surely(discrete=False):
            raise TypeError(
                f"{type(self).__name__} has no `log_prob`: a single continuous action has no density; use estimators "
                "that need none, such as Q methods or KernelIS."
            )
        rows = self._states(states)
        points = np.asarray(actions, dtype=np.float64).reshape(len(rows), self.origin_.n_actions)
        return self._distribution(rows).log_density(points)

    # ---------------------------------------------------------------- input

    def _discrete_labels(self) -> npt.NDArray[Any]:
        labels = self._fitted().action_labels
        if labels is None:
            raise TypeError(f"{type(self).__name__} was fitted to continuous actions and has no action probabilities.")
        return labels

    def _check_names(self, rows: Rows) -> None:
        self._fitted()
        check_feature_names(self, rows.feature_names, type(self).__name__)

    def _states(self, states: npt.ArrayLike) -> FloatArray:
        owner, names = type(self).__name__, self._fitted().feature_names
        if isinstance(states, pd.DataFrame):
            check_feature_names(self, states.columns, owner)
        return float_array(owner, "states", as_rows(states, owner, feature_names=names).states, 2)

    def _mask(self, action_mask: npt.ArrayLike | None) -> BoolArray | None:
        if action_mask is None:
            return None
        mask = np.asarray(action_mask, dtype=bool)
        if mask.ndim != 2 or mask.shape[1] != self.origin_.n_actions or not mask.any(axis=1).all():
            raise ValueError(
                f"{type(self).__name__}: `action_mask` must have a column for each of the labels "
                f"{self._discrete_labels().tolist()} and an available action in every row, got shape {mask.shape}; "
                "build the log with the actions= of the training log."
            )
        return mask

    def _evaluate(self, function: Evaluation, states: FloatArray, mask: BoolArray | None = None) -> FloatArray:
        """Apply a function of standardised states to all rows, some at a time."""
        owner, standardizer = type(self).__name__, self._fitted().states
        if mask is not None and len(mask) != len(states):
            raise ValueError(
                f"{owner}: `action_mask` must have a row for each of {len(states)} states, got {len(mask)}."
            )
        parts = []
        with one_thread(), torch.no_grad():
            for low in range(0, max(len(states), 1), PREDICT_ROWS):
                rows = slice(low, low + PREDICT_ROWS)
                x = torch.from_numpy(standardizer.transform(states[rows])).float()
                parts.append(function(x, None if mask is None else torch.from_numpy(mask[rows].copy())).numpy())
        return np.concatenate(parts)

    # ---------------------------------------------------------------- file

    def save(self, path: str | Path) -> None:
        """Write the policy to one safetensors file; `ope.load_policy` reads it without executing code from it.

        Parameters
        ----------
        path : str or Path

        Notes
        -----
        Stored are settings, networks, standardisation, labels, feature names, hashes of the training episodes, history
        and status. Not stored are `callbacks`, which are code, and `checkpoints_`, which are policies of their own.
        """
        self._fitted()
        save_policy(self, path)

    def _pack(self) -> tuple[Arrays, Metadata]:
        origin = self.origin_
        arrays: Arrays = {f"network/{name}": net.parameters.flat.numpy() for name, net in self.networks_.items()}
        arrays |= {"states/shift": origin.states.shift, "states/scale": origin.states.scale}
        if origin.actions is not None:
            arrays |= {"actions/shift": origin.actions.shift, "actions/scale": origin.actions.scale}
        arrays |= {"episode_keys": origin.episode_keys, "history": self.history_.to_numpy(dtype=np.float64)}
        return arrays, {
            "networks": {name: {"sizes": net.sizes, "extras": net.extras} for name, net in self.networks_.items()},
            "labels": None if origin.action_labels is None else pack_labels(origin.action_labels),
            "feature_names": list(origin.feature_names),
            "n_actions": origin.n_actions,
            "n_excluded": origin.n_excluded,
            "seed": origin.seed,
            "reward_scale": origin.reward_scale,
            "history": list(self.history_.columns),
            "status": [int(self.status_.outcome), self.status_.n_updates, self.status_.planned],
        }

    def _unpack(self, arrays: Arrays, attributes: Metadata) -> None:
        has_actions = "actions/shift" in arrays
        origin = Origin(
            feature_names=tuple(attributes["feature_names"]),
            action_labels=None if attributes["labels"] is None else unpack_labels(attributes["labels"]),
            n_actions=attributes["n_actions"],
            states=Standardizer(arrays["states/shift"], arrays["states/scale"]),
            actions=Standardizer(arrays["actions/shift"], arrays["actions/scale"]) if has_actions else None,
            episode_keys=arrays["episode_keys"],
            n_excluded=attributes["n_excluded"],
            seed=attributes["seed"],
            reward_scale=attributes.get("reward_scale", 1.0),
        )
        networks = {
            name: MLP(shape["sizes"], 1, extras=shape["extras"]).with_rows(torch.from_numpy(arrays[f"network/{name}"]))
            for name, shape in attributes["networks"].items()
        }
        outcome, n_updates, planned = attributes["status"]
        history = pd.DataFrame(arrays["history"], columns=attributes["history"]).astype({"update": np.int64})
        self._become(origin, networks, TrainingStatus(Outcome(outcome), n_updates, planned), history)
