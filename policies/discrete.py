"""`DiscretePolicy`: the verbs of a policy over discrete actions, from its `predict_proba`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope.policy import SUM_TOLERANCE, Policy, RandomState, generator
from ope.validation import FloatArray, IntArray, first_positions


class DiscretePolicy(Policy):
    """A policy over discrete actions that defines `predict_proba`; the other verbs follow from it.

    Examples
    --------
    >>> class Coin(DiscretePolicy):
    ...     def predict_proba(self, states):
    ...         return np.full((len(states), 2), [0.25, 0.75])
    >>> Coin().predict([[0.0], [1.0]])
    array([1, 1])
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers."""
        return frozenset({"logged_prob", "all_probs", "sample"})

    def predict(self, states: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the most probable label of each state, the first one if several are; column numbers without labels.

        Parameters
        ----------
        states : array-like of shape (n, d)

        Returns
        -------
        ndarray of shape (n,)
        """
        return self._named(np.asarray(self.predict_proba(states)).argmax(axis=1))

    def log_prob(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        """Return the log probability of given labels, -inf where an action is never taken.

        Parameters
        ----------
        states : array-like of shape (n, d)
        actions : array-like of shape (n,)
            Labels; column numbers where the policy has no labels.

        Returns
        -------
        ndarray of shape (n,)
        """
        probs = np.asarray(self.predict_proba(states), dtype=np.float64)
        labels = np.arange(probs.shape[1]) if self.labels is None else self.labels
        codes = codes_of(actions, labels, type(self).__name__, len(probs))
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(probs[np.arange(len(probs)), codes]))

    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> npt.NDArray[Any]:
        """Draw a label for each state.

        Parameters
        ----------
        states : array-like of shape (n, d)
        random_state : int, Generator or None

        Returns
        -------
        ndarray of shape (n,)
        """
        return self._named(draw(np.asarray(self.predict_proba(states)), generator(random_state)))

    def _named(self, codes: IntArray) -> npt.NDArray[Any]:
        return codes if self.labels is None else self.labels[codes]


def draw(probs: FloatArray, rng: np.random.Generator) -> IntArray:
    """Draw a column for each row of probabilities by inversion.

    Examples
    --------
    >>> draw(np.array([[0.0, 1.0], [1.0, 0.0]]), np.random.default_rng(0))
    array([1, 0])
    """
    cumulative = np.cumsum(probs, axis=1)
    # Scaled by the last sum, which rounding may leave below 1: no draw can fall behind the last column.
    threshold = rng.random(len(probs)) * cumulative[:, -1]
    return np.asarray((threshold[:, None] >= cumulative).sum(axis=1))


def codes_of(actions: npt.ArrayLike, labels: npt.NDArray[Any], owner: str, n_rows: int | None = None) -> IntArray:
    """Return the position of every action among the labels, one for each of `n_rows`, or raise a ValueError.

    Examples
    --------
    >>> codes_of(["b", "a"], np.array(["a", "b"]), "Example")
    array([1, 0])
    """
    array = np.asarray(actions)
    if array.ndim != 1 or n_rows not in {None, len(array)}:
        wanted = "(n,)" if n_rows is None else f"({n_rows},)"
        raise ValueError(
            f"{owner}: `actions` must have shape {wanted}, got {array.shape}; pass a label for each state."
        )
    codes = pd.Index(labels).get_indexer(pd.Index(array))
    if (codes < 0).any():
        raise ValueError(
            f"{owner}: actions must be among the labels {labels.tolist()}, got {array[codes < 0].tolist()[0]!r} at "
            f"{first_positions(codes < 0)}; correct them or the policy's labels."
        )
    return np.asarray(codes, dtype=np.int64)


def label_array(labels: npt.ArrayLike | None, owner: str, n_actions: int | None = None) -> npt.NDArray[Any] | None:
    """Return distinct labels, one per action, or None for None."""
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.ndim != 1 or len(pd.unique(array)) != len(array):
        raise ValueError(
            f"{owner}: `action_labels` must be distinct labels, got {array.tolist()}; name each action once."
        )
    if n_actions is not None and len(array) != n_actions:
        raise ValueError(
            f"{owner}: `action_labels` must name each of the {n_actions} actions, got {array.tolist()}; "
            "pass one label per column."
        )
    return array


def check_distributions(probs: npt.NDArray[Any], owner: str, *, least: int = 0) -> FloatArray:
    """Return rows of probabilities as floats, at least `least`, or raise a ValueError if one is no distribution."""
    array = np.asarray(probs, dtype=np.float64)
    if array.ndim != 2 or len(array) < least or array.shape[1] == 0:
        raise ValueError(
            f"{owner}: probabilities must have shape (n, n_actions), got {array.shape}; pass a row per state."
        )
    bad = ~((array >= 0).all(axis=1) & np.isclose(array.sum(axis=1), 1.0, rtol=0.0, atol=SUM_TOLERANCE))
    if bad.any():
        raise ValueError(
            f"{owner}: every row must hold probabilities that sum to 1, got {array[bad][0].tolist()} at "
            f"{first_positions(bad)}; normalise them."
        )
    return array
