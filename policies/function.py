"""`FunctionPolicy`: a policy made of plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ope.inputs import as_rows
from ope.policies.discrete import DiscretePolicy, codes_of, label_array
from ope.policy import Policy, RandomState, generator
from ope.validation import FloatArray

OWNER = "FunctionPolicy"
Function = Callable[..., Any]


class FunctionPolicy(DiscretePolicy):
    """A policy made of plain functions; what it offers follows from which ones are given.

    Parameters
    ----------
    predict : callable, optional
        ``predict(states)`` returns labels of shape (n,), or actions of shape (n, k) or (n,). Given alone, the policy is
        deterministic; with `action_labels` it then has probabilities, 1 for its action and 0 for all others.
    predict_proba : callable, optional
        ``predict_proba(states)`` returns probabilities of shape (n, n_actions).
    log_prob : callable, optional
        ``log_prob(states, actions)`` returns log probabilities, or log densities, of shape (n,).
    sample : callable, optional
        ``sample(states, generator)`` draws actions with a numpy Generator.
    action_labels : array-like of shape (n_actions,), optional
        Labels of discrete actions, in the order of the columns of `predict_proba`; default: the log's labels, in order.

    Raises
    ------
    ValueError
        At first use: if no function is given, or one returns an unfit shape or label.

    Notes
    -----
    All functions receive states as an array of shape (n, d). A lambda cannot be pickled, a function of a module can.

    Examples
    --------
    >>> treat_if_ill = FunctionPolicy(predict=lambda states: (states[:, 0] > 0.5).astype(int), action_labels=[0, 1])
    >>> treat_if_ill.predict_proba([[0.2], [0.9]])
    array([[1., 0.],
           [0., 1.]])
    >>> sorted(FunctionPolicy(predict=lambda states: 2.0 * states).capabilities)
    ['deterministic', 'sample']
    """

    def __init__(
        self,
        *,
        predict: Function | None = None,
        predict_proba: Function | None = None,
        log_prob: Function | None = None,
        sample: Function | None = None,
        action_labels: npt.ArrayLike | None = None,
    ) -> None:
        # Parameters have the names of methods, so they cannot be attributes of their own.
        self._given: dict[str, Any] = {
            "predict": predict,
            "predict_proba": predict_proba,
            "log_prob": log_prob,
            "sample": sample,
            "action_labels": action_labels,
        }

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return the functions and labels by name."""
        return dict(self._given)

    def set_params(self, **params: Any) -> Self:
        """Exchange functions or labels by name."""
        unknown = sorted(set(params) - set(self._given))
        if unknown:
            raise ValueError(f"{OWNER}: parameters must be among {sorted(self._given)}, got {unknown}.")
        self._given = {**self._given, **params}
        return self

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers, by the functions given."""
        given = {name for name, value in self._given.items() if value is not None}
        labelled = "action_labels" in given
        functions = given - {"action_labels"}
        if not functions:
            raise ValueError(
                f"{OWNER}: at least one function must be given; pass predict=, predict_proba=, log_prob= or sample=."
            )
        if functions == {"predict"}:
            return frozenset({"deterministic", "sample"} | ({"logged_prob", "all_probs"} if labelled else set()))
        if "predict_proba" in functions:
            return frozenset({"logged_prob", "all_probs", "sample"})
        density = set() if labelled else {"density"}
        return frozenset(functions & {"sample"} | ({"logged_prob"} | density if "log_prob" in functions else set()))

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """Labels of the columns, or None for those of the log."""
        return label_array(self._given["action_labels"], OWNER)

    def predict(self, states: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return what the given function predicts, else the most probable label.

        Parameters
        ----------
        states : array-like of shape (n, d)

        Returns
        -------
        ndarray of shape (n,) or (n, k)
        """
        if self._given["predict"] is None:
            return super().predict(states) if "all_probs" in self.capabilities else Policy.predict(self, states)
        return self._call("predict", states)

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        """Return the given probabilities, or 1 for the action of a deterministic policy.

        Parameters
        ----------
        states : array-like of shape (n, d)

        Returns
        -------
        ndarray of shape (n, n_actions)
        """
        if self._given["predict_proba"] is not None:
            return np.asarray(self._call("predict_proba", states), dtype=np.float64)
        labels = self.labels
        if "all_probs" not in self.capabilities or labels is None:
            return Policy.predict_proba(self, states)
        codes = codes_of(self._call("predict", states), labels, OWNER)
        return np.eye(len(labels))[codes]

    def log_prob(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        """Return the given log probabilities, or those that follow from `predict_proba`.

        Parameters
        ----------
        states : array-like of shape (n, d)
        actions : array-like of shape (n,) or (n, k)

        Returns
        -------
        ndarray of shape (n,)
        """
        if self._given["log_prob"] is not None:
            return np.asarray(self._call("log_prob", states, np.asarray(actions)), dtype=np.float64)
        return (
            super().log_prob(states, actions)
            if "all_probs" in self.capabilities
            else Policy.log_prob(self, states, actions)
        )

    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> npt.NDArray[Any]:
        """Draw actions with the given function, else from the probabilities, else return the deterministic action.

        Parameters
        ----------
        states : array-like of shape (n, d)
        random_state : int, Generator or None

        Returns
        -------
        ndarray of shape (n,) or (n, k)
        """
        if self._given["sample"] is not None:
            return self._call("sample", states, generator(random_state))
        if self._given["predict_proba"] is not None:
            return super().sample(states, random_state)
        return (
            self.predict(states) if "deterministic" in self.capabilities else Policy.sample(self, states, random_state)
        )

    def _call(self, name: str, states: npt.ArrayLike, *arguments: Any) -> npt.NDArray[Any]:
        array = as_rows(states, OWNER).states
        result = np.asarray(self._given[name](array, *arguments))
        if result.ndim == 0 or len(result) != len(array):
            raise ValueError(
                f"{OWNER}: `{name}` must return one entry per state ({len(array)}), got shape {result.shape}; "
                "write it for an array of states."
            )
        return result
