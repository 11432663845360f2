"""`ActingPolicy`: the verbs of a policy over discrete or continuous actions, from probabilities or a distribution."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope.policies.discrete import codes_of, draw
from ope.policy import Policy, RandomState, generator
from ope.validation import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from ope.dataset import Rows
    from ope.policies._distributions import ActionDistribution


class ActingPolicy(Policy, abc.ABC):
    """A policy that defines probabilities of discrete actions or distributions of continuous ones; verbs follow."""

    # ---------------------------------------------------------------- what subclasses define

    @abc.abstractmethod
    def _is_discrete(self) -> bool:
        """Return whether actions are discrete; raise if the policy is not ready to act."""

    @abc.abstractmethod
    def _acts_surely(self, discrete: bool) -> bool:
        """Return whether the policy is deterministic."""

    @abc.abstractmethod
    def _states(self, states: npt.ArrayLike) -> FloatArray:
        """Return checked states (n, d)."""

    @abc.abstractmethod
    def _check_names(self, rows: Rows) -> None:
        """Raise if logged rows have other feature names than the policy expects."""

    @abc.abstractmethod
    def _proba(self, states: FloatArray, mask: BoolArray | None) -> FloatArray:
        """Return probabilities of discrete actions (n, n_actions), or raise a TypeError; masked actions get 0."""

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        """Return the distribution of continuous actions for states (n, d) in the unit of the log."""
        raise NotImplementedError

    @abc.abstractmethod
    def _dimension(self, law: ActionDistribution) -> int:
        """Return the dimension k of continuous actions."""

    # ---------------------------------------------------------------- verbs

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers; it depends on the kind of its actions."""
        discrete = self._is_discrete()
        sure = self._acts_surely(discrete)
        if discrete:
            return frozenset({"logged_prob", "all_probs", "sample"} | ({"deterministic"} if sure else set()))
        return frozenset({"sample", "deterministic"} if sure else {"logged_prob", "density", "sample"})

    def predict(self, states: npt.ArrayLike, action_mask: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """Return the most probable label of each state, or the mean of the continuous action.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        action_mask : array-like of shape (n, n_actions), optional
            Which discrete actions are available, True or 1, in the order of `labels`; a DataFrame has their names as its
            columns, in any order. Default: all of them.

        Returns
        -------
        ndarray of shape (n,) or (n, k)
        """
        if not self._is_discrete():
            self._refuse_mask(action_mask)
            return self._distribution(self._states(states)).mean()
        codes: IntArray = self.predict_proba(states, action_mask).argmax(axis=1)
        return self._named(codes)

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
        rows = self._states(states)
        return self._proba(rows, self._mask(action_mask, len(rows)))

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
        if not self._is_discrete():
            self._refuse_mask(action_mask)
            return self._log_density(states, actions)
        probs = self.predict_proba(states, action_mask)
        labels = np.arange(probs.shape[1]) if self.labels is None else self.labels
        codes = codes_of(actions, labels, type(self).__name__, len(probs))
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
        if not self._is_discrete():
            self._refuse_mask(action_mask)
            return self._distribution(self._states(states)).sample(generator(random_state))
        return self._named(draw(self.predict_proba(states, action_mask), generator(random_state)))

    def proba_rows(self, rows: Rows) -> FloatArray:
        """Return `predict_proba` on logged rows, with their action mask."""
        self._check_names(rows)
        return self.predict_proba(rows.states, self._in_own_order(rows.action_mask))

    def log_prob_rows(self, rows: Rows, actions: npt.NDArray[Any]) -> FloatArray:
        """Return `log_prob` of the logged actions on logged rows, with their action mask."""
        self._check_names(rows)
        return self.log_prob(rows.states, actions, self._in_own_order(rows.action_mask))

    def quadrature_rows(self, rows: Rows) -> tuple[FloatArray, FloatArray] | None:
        """Return nodes (m, n, k) and weights (m,) of the continuous action in every row, or None to draw samples."""
        self._check_names(rows)
        return None if self._is_discrete() else self._distribution(rows.states).nodes()

    # ---------------------------------------------------------------- helpers

    def _named(self, codes: IntArray) -> npt.NDArray[Any]:
        return codes if self.labels is None else self.labels[codes]

    def _log_density(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        owner = type(self).__name__
        if self._acts_surely(discrete=False):
            raise TypeError(
                f"{owner} has no `log_prob`: a single continuous action has no density; use estimators that need none, "
                "such as Q methods or KernelIS."
            )
        rows = self._states(states)
        law = self._distribution(rows)
        shape, points = (len(rows), self._dimension(law)), np.asarray(actions, dtype=np.float64)
        points = points[:, None] if points.ndim == 1 else points
        if points.shape != shape:
            raise ValueError(
                f"{owner}: `actions` must have shape {shape}, got {np.shape(actions)}; pass one of every dimension for "
                "each state."
            )
        return law.log_density(points)

    def _mask(self, action_mask: npt.ArrayLike | None, n_rows: int) -> BoolArray | None:
        if action_mask is None:
            return None
        owner, n_actions, mask = type(self).__name__, self._n_columns(), self._mask_array(action_mask)
        if mask.ndim != 2 or n_actions not in {None, mask.shape[1]} or not mask.any(axis=1).all():
            raise ValueError(
                f"{owner}: `action_mask` must have a column for each of the labels "
                f"{'of the log' if self.labels is None else self.labels.tolist()} and an available action in every row, "
                f"got shape {mask.shape}; build the log with the actions= of the training log."
            )
        if len(mask) != n_rows:
            raise ValueError(f"{owner}: `action_mask` must have a row for each of {n_rows} states, got {len(mask)}.")
        return mask

    def _check_width(self, mask: BoolArray | None, n_columns: int) -> None:
        """Raise a ValueError unless a mask has a column for each action that a policy without labels turns out to have."""
        if mask is not None and mask.shape[1] != n_columns:
            raise ValueError(
                f"{type(self).__name__}: `action_mask` must have a column for each of the {n_columns} actions of the policy, got "
                f"{mask.shape[1]}; give the policy an output for every label, or build the log with actions=."
            )

    def _mask_array(self, action_mask: npt.ArrayLike) -> BoolArray:
        """Return a mask as it was meant: a frame's columns by their names, True and 1 for what is available."""
        owner, given = type(self).__name__, action_mask
        if isinstance(given, pd.DataFrame) and self.labels is not None:
            names = self.labels.tolist()
            if set(given.columns) != set(names) or len(given.columns) != len(names):
                raise ValueError(
                    f"{owner}: `action_mask` must have the columns {names}, got {list(given.columns)}; name them by the labels."
                )
            given = given[names]
        array = np.asarray(given)
        if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"{owner}: `action_mask` must hold True and False, or 1 and 0, got other values, dtype {array.dtype}; convert it."
            )
        return array.astype(bool)

    def _refuse_mask(self, action_mask: npt.ArrayLike | None) -> None:
        if action_mask is not None:
            raise TypeError(
                f"{type(self).__name__}: `action_mask` must be None with continuous actions, got one; leave it out."
            )

    def _n_columns(self) -> int | None:
        return None if self.labels is None else len(self.labels)

    def _in_own_order(self, mask: BoolArray | None) -> BoolArray | None:
        """Return a log's mask, whose columns have the sorted order of labels, in the order of this policy's labels."""
        labels = self.labels
        if mask is None or labels is None or mask.shape[1] != len(labels):
            return mask
        return mask[:, np.unique(labels, return_inverse=True)[1]]
