"""`EpsilonGreedy`: the best action of another policy, with uniform exploration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ope.policies.discrete import DiscretePolicy, check_distributions, codes_of, label_array
from ope.policy import Policy
from ope.validation import BoolArray, FloatArray, first_positions

if TYPE_CHECKING:
    from ope.dataset import Rows

OWNER = "EpsilonGreedy"


class EpsilonGreedy(DiscretePolicy):
    """A policy that takes the most probable action of another one, and with probability epsilon a uniform one.

    Parameters
    ----------
    policy : Policy
        With action probabilities (capability ``all_probs``).
    epsilon : float
        In [0, 1].
    action_labels : array-like of shape (n_actions,), optional
        All actions to explore; default: the labels of `policy`. Needed where the log has an action mask and `policy`
        does not know all labels of the log.

    Raises
    ------
    TypeError
        At first use: if `policy` has no action probabilities.
    ValueError
        At first use: if `epsilon` is outside [0, 1], or the columns of the action mask are not those of the labels.

    Notes
    -----
    pi(a|s) = (1 - epsilon) 1[a = argmax] + epsilon / n(s), with n(s) the number of available actions. Ties go to the
    first label. In logged rows with an action mask, the argmax is taken over the available actions too.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> EpsilonGreedy(TabularPolicy([[0.4, 0.6]]), epsilon=0.2).predict_proba([1.0])
    array([[0.1, 0.9]])
    """

    def __init__(self, policy: Policy, epsilon: float, action_labels: npt.ArrayLike | None = None) -> None:
        self.policy = policy
        self.epsilon = epsilon
        self.action_labels = action_labels

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers: new states can be sampled if `policy` can."""
        return super().capabilities if "sample" in self._inner().capabilities else super().capabilities - {"sample"}

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """The labels to explore, or None for those of the log."""
        return self.policy.labels if self.action_labels is None else label_array(self.action_labels, OWNER)

    @property
    def training_episode_keys_(self) -> npt.NDArray[np.uint64] | None:
        """Episodes that `policy` was learned from, or None."""
        return getattr(self.policy, "training_episode_keys_", None)

    @property
    def feature_names_in_(self) -> Any:
        """Feature names that `policy` was learned with, where it has them."""
        return self.policy.feature_names_in_

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        """Return the probability of every action.

        Parameters
        ----------
        states : array-like of shape (n, d)

        Returns
        -------
        ndarray of shape (n, n_actions)
        """
        probs = self._aligned(self._checked().predict_proba(states))
        return self._explore(probs, np.ones(probs.shape, dtype=bool))

    def proba_rows(self, rows: Rows) -> FloatArray:
        """Return the probability of every action on logged rows, shape (n, n_actions); 0 for masked actions."""
        probs = self._aligned(self._checked().proba_rows(rows))
        return self._explore(probs, self._available(rows.action_mask, probs.shape))

    def _inner(self) -> Policy:
        if not isinstance(self.policy, Policy):
            raise TypeError(
                f"{OWNER}: `policy` must be a Policy, got {type(self.policy).__name__}; wrap a classifier in ClassifierPolicy."
            )
        return self.policy

    def _checked(self) -> Policy:
        if not isinstance(self.epsilon, (int, float, np.number)) or not 0.0 <= self.epsilon <= 1.0:
            raise ValueError(
                f"{OWNER}: `epsilon` must be in [0, 1], got {self.epsilon!r}; pass the share of exploration."
            )
        if "all_probs" not in self._inner().capabilities:
            raise TypeError(
                f"{OWNER}: `policy` must have action probabilities, got {type(self.policy).__name__} with "
                f"{sorted(self.policy.capabilities)}; give a FunctionPolicy its action_labels=."
            )
        return self.policy

    def _aligned(self, probs: npt.NDArray[Any]) -> FloatArray:
        inner = type(self.policy).__name__
        probs, have, want = check_distributions(probs, inner), self.policy.labels, self.labels
        if want is None or self.action_labels is None:
            return probs
        have = want if have is None else have
        if len(have) != probs.shape[1]:
            raise ValueError(f"{OWNER}: {inner} must have a column for each of {have.tolist()}, got {probs.shape[1]}.")
        out = np.zeros((len(probs), len(want)))
        out[:, codes_of(have, want, OWNER)] = probs
        return out

    def _available(self, mask: BoolArray | None, shape: tuple[int, ...]) -> BoolArray:
        if mask is None:
            return np.ones(shape, dtype=bool)
        if mask.shape != shape:
            raise ValueError(
                f"{OWNER}: the log's action mask must have a column for each of the {shape[1]} actions, got "
                f"{mask.shape[1]}; pass action_labels= with all labels of the log."
            )
        # The mask has the log's order, which is the sorted one; the columns here have the order of `labels`.
        return mask if self.labels is None else mask[:, np.unique(self.labels, return_inverse=True)[1]]

    def _explore(self, probs: FloatArray, available: BoolArray) -> FloatArray:
        allowed = np.where(available, probs, 0.0)
        lost = allowed.max(axis=1) <= 0
        if lost.any():
            raise ValueError(
                f"{OWNER}: `policy` must give an available action a positive probability, got all its mass on masked "
                f"actions at {first_positions(lost)}; train it with the mask, or correct the mask."
            )
        out = self.epsilon * available / available.sum(axis=1, keepdims=True)
        out[np.arange(len(out)), allowed.argmax(axis=1)] += 1.0 - self.epsilon
        return np.asarray(out)
