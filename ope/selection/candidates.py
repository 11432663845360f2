"""What a candidate must be: a policy that can act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from ope.policy import Policy, PolicyLearner, within


def check_candidates(owner: str, candidates: Mapping[str, Any]) -> None:
    """Raise unless every candidate is a policy, and fitted if it is a learner or acts through one.

    Parameters
    ----------
    owner : str
        Who asks, for the wording of errors.
    candidates : mapping of str to Policy

    Raises
    ------
    TypeError
        If one is no policy.
    NotFittedError
        If one is, or acts through, a learner that has not been fitted.

    Examples
    --------
    >>> check_candidates("PolicySelector.fit", {"rule": "always treat"})
    Traceback (most recent call last):
        ...
    TypeError: PolicySelector.fit: candidate 'rule' must be a Policy, got the str 'always treat'; wrap it: ...
    """
    for name, policy in candidates.items():
        if not isinstance(policy, Policy):
            raise TypeError(f"{owner}: candidate {name!r} must be a Policy, got {_instead(policy)}.")
        for part in within(policy):
            if isinstance(part, PolicyLearner):
                _check_fitted(owner, name, part)


def _instead(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}; pass an object of it, a learner fitted: {given.__name__}().fit(train)"
    return (
        f"the {type(given).__name__} {given!r}; wrap it: ope.policies.ClassifierPolicy for a classifier, FunctionPolicy for a "
        "function, TabularPolicy for a table"
    )


def _check_fitted(owner: str, name: str, learner: PolicyLearner) -> None:
    try:
        check_is_fitted(learner)
    except NotFittedError as error:
        raise NotFittedError(
            f"{owner}: candidate {name!r} must be fitted, got {type(learner).__name__} before fit; call fit(train) first, or "
            "choose among learners with cross_fit_select."
        ) from error
