"""State transformers of scikit-learn as functions of tensors: what an exported policy does to states first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

Step = Callable[[torch.Tensor], torch.Tensor]


def tensor_form(transformer: Any, owner: str) -> Step:
    """Return a fitted transformer as a function of float64 tensors (n, d).

    Raises
    ------
    TypeError
        If it is none of those that have such a form.

    Examples
    --------
    >>> from sklearn.preprocessing import MaxAbsScaler
    >>> tensor_form(MaxAbsScaler().fit([[2.0]]), "export")(torch.tensor([[1.0]]))
    tensor([[0.5000]], dtype=torch.float64)
    """
    name = type(transformer).__name__
    if name == "Pipeline":
        return chain(
            [tensor_form(step, owner) for _, step in transformer.steps if step is not None and step != "passthrough"]
        )
    if name not in _FORMS or getattr(transformer, "clip", False):
        raise TypeError(
            f"{owner}: `transformer` must be one of {sorted(_FORMS)} that does not clip, or a pipeline of these, got {transformer!r}; "
            "choose one, or store the policy with `save` or `joblib.dump`."
        )
    return _FORMS[name](transformer)


def chain(steps: Sequence[Step]) -> Step:
    """Return the steps one after another."""

    def all_steps(x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x = step(x)
        return x

    return all_steps


def _shifted(shift: Any, scale: Any) -> Step:
    """Return (x - shift) / scale, either of which may be None."""
    minus, over = torch.from_numpy(np.atleast_1d(_or(shift, 0.0))), torch.from_numpy(np.atleast_1d(_or(scale, 1.0)))
    return lambda x: (x - minus) / over


def _or(value: Any, instead: float) -> Any:
    return np.asarray(instead if value is None else value, dtype=np.float64)


def _min_max(fitted: Any) -> Step:
    times, plus = torch.from_numpy(fitted.scale_), torch.from_numpy(fitted.min_)
    return lambda x: x * times + plus


def _pca(fitted: Any) -> Step:
    axes = fitted.components_.T / (np.sqrt(fitted.explained_variance_) if fitted.whiten else 1.0)
    minus, turn = torch.from_numpy(fitted.mean_), torch.from_numpy(np.ascontiguousarray(axes))
    return lambda x: (x - minus) @ turn


_FORMS: Mapping[str, Callable[[Any], Step]] = {
    "StandardScaler": lambda fitted: _shifted(fitted.mean_ if fitted.with_mean else None, fitted.scale_),
    "MinMaxScaler": _min_max,
    "MaxAbsScaler": lambda fitted: _shifted(None, fitted.scale_),
    "RobustScaler": lambda fitted: _shifted(fitted.center_, fitted.scale_),
    "PCA": _pca,
}
