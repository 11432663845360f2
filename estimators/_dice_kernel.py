"""Discriminator classes of the minimax estimators: the class that is fitted, a kernel space by Nystroem features, or any other."""

from __future__ import annotations

from typing import Any

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimators._features import Basis, check_model, fit_basis
from ope.validation import FloatArray

RULE = "None, 'kernel' or a scikit-learn transformer"


def check_discriminator(owner: str, discriminator: Any) -> None:
    """Raise unless `discriminator` is something that `discriminator_basis` takes."""
    if not isinstance(discriminator, str):
        check_model(owner, "discriminator", discriminator, RULE, "transform")
    elif discriminator != "kernel":
        raise ValueError(f"{owner}: `discriminator` must be {RULE}, got {discriminator!r}; pass one of them.")


def discriminator_basis(discriminator: Any, data: LoggedDataset, n_components: int, random_state: int) -> Basis | None:
    """Fit the features of the discriminators; None where they are those of the fitted class.

    Parameters
    ----------
    discriminator : None, "kernel" or scikit-learn transformer
        "kernel": the unit ball of a Gaussian kernel of states (with continuous actions, of states and actions), times the equality
        of discrete actions.
    data : LoggedDataset
    n_components : int
        Points that stand for the kernel space: exact where there are no more different ones.
    random_state : int
    """
    if discriminator is None:
        return None
    if isinstance(discriminator, str):
        inputs = data.states if data.discrete else np.hstack([data.states, data.actions])
        return Basis(gaussian_kernel(inputs, n_components, random_state), data.n_actions if data.discrete else None)
    return fit_basis(discriminator, data, random_state)


def gaussian_kernel(inputs: FloatArray, n_components: int, random_state: int) -> Any:
    """Return fitted Nystroem features of a Gaussian kernel of standardised inputs; its width is their median distance.

    Examples
    --------
    >>> kernel = gaussian_kernel(np.array([[0.0], [1.0], [1.0]]), 10, 0)
    >>> features = kernel.transform(np.array([[0.0], [1.0]]))
    >>> (features @ features.T).round(3)
    array([[1.   , 0.607],
           [0.607, 1.   ]])
    """
    from sklearn.kernel_approximation import Nystroem
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(inputs)
    points = np.unique(scaler.transform(inputs), axis=0)
    points = np.random.default_rng(random_state).permutation(points)
    few = points[:300]
    squares = ((few[:, None, :] - few[None, :, :]) ** 2).sum(axis=2)[np.triu_indices(len(few), 1)]
    width = float(np.median(squares)) if len(squares) else 1.0
    count = min(n_components, len(points))
    nystroem = Nystroem(kernel="rbf", gamma=0.5 / width, n_components=count, random_state=random_state)
    return make_pipeline(scaler, nystroem.fit(points))
