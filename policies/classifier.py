"""`ClassifierPolicy`: a fitted scikit-learn classifier as a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import NotFittedError

from ope.inputs import as_rows, check_fitted, model_input, reads_new_states
from ope.policies.discrete import DiscretePolicy
from ope.validation import FloatArray

if TYPE_CHECKING:
    from ope.dataset import Rows

OWNER = "ClassifierPolicy"


class ClassifierPolicy(DiscretePolicy):
    """A policy that takes each action with the probability that a fitted classifier gives it.

    Parameters
    ----------
    classifier : classifier
        A fitted scikit-learn classifier or pipeline with `predict_proba`, or anything that behaves like one. Its
        `classes_` are the labels of the actions; labels of the log that it never saw have probability 0.
    columns : sequence of str, optional
        State or other columns of the log that it reads, as a frame in this order. Default: the states, as a frame with
        the log's names if it was fitted on named features, else as an array.
    feature_names : sequence of str, optional
        Names of the columns of bare arrays of states (`predict`, `sample` on new states); needed with `columns` only.

    Raises
    ------
    NotFittedError
        At first use: if the classifier is not fitted.
    TypeError
        At first use: if it has no `predict_proba`.
    ValueError
        At first use: if the log's feature names are not those of the fit, or a column does not exist.

    Notes
    -----
    `EpsilonGreedy` turns it into the policy that takes the most probable action.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> classifier = LogisticRegression().fit([[-1.0], [1.0]], ["wait", "act"])
    >>> policy = ClassifierPolicy(classifier)
    >>> policy.labels
    array(['act', 'wait'], dtype='<U4')
    >>> policy.predict([[-3.0], [3.0]])
    array(['wait', 'act'], dtype='<U4')
    """

    def __init__(
        self,
        classifier: Any,
        columns: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.classifier = classifier
        self.columns = columns
        self.feature_names = feature_names

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers; new states cannot be sampled where it reads other columns of the log."""
        offered = super().capabilities
        return offered if reads_new_states(self.columns, self.feature_names) else offered - {"sample"}

    @property
    def labels(self) -> npt.NDArray[Any]:
        """The classes of the classifier, in the order of its columns."""
        return np.asarray(self._checked().classes_)

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        """Return the probability of every class.

        Parameters
        ----------
        states : array-like of shape (n, d) or (n,), or DataFrame

        Returns
        -------
        ndarray of shape (n, n_classes)
        """
        names = self.feature_names
        if names is None and self.columns is None:
            names = getattr(self.classifier, "feature_names_in_", None)
        return self.proba_rows(as_rows(states, OWNER, columns=self.columns, feature_names=names))

    def proba_rows(self, rows: Rows) -> FloatArray:
        """Return the probability of every class on logged rows, shape (n, n_classes)."""
        classifier = self._checked()
        inputs = model_input(classifier, rows, self.columns, OWNER)
        return np.asarray(classifier.predict_proba(inputs), dtype=np.float64)

    def _checked(self) -> Any:
        classifier = self.classifier
        check_fitted(classifier, OWNER)
        if np.ndim(getattr(classifier, "classes_", 0)) != 1:
            raise NotFittedError(
                f"{OWNER}: `classifier` must be a fitted classifier of one label (one-dimensional `classes_`), got "
                f"{type(classifier).__name__}; fit one on the action labels."
            )
        if not hasattr(classifier, "predict_proba"):
            raise TypeError(
                f"{OWNER}: `classifier` must have `predict_proba`, got {type(classifier).__name__} without; wrap it in "
                "CalibratedClassifierCV, or make a deterministic policy of it: "
                "FunctionPolicy(predict=classifier.predict, action_labels=classifier.classes_)."
            )
        return classifier
