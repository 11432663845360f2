"""`Settings`: what a selection was made with, kept as it was at fit whatever is set later."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ope.baseline import LOGGED
from ope.estimate import Estimate
from ope.estimator import OffPolicyEstimator

# What `baseline` calls the logged policy, and what every table and sentence does.
RESERVED = ("logged", LOGGED)


@dataclass(frozen=True)
class Settings:
    """What a selection was made with.

    Parameters
    ----------
    criterion : str
    margin : float
    gate_adjust, correction : str
    top_k : int
    level : float
    allow_overlap : bool
    random_state : int
        Parameters of `PolicySelector` at fit.
    baseline : str or None
        What the baseline is called; "logged policy", or unlike every candidate unless it is one.
    among_candidates : bool
        Whether the baseline is one of the candidates.
    estimators : mapping of str to OffPolicyEstimator
        As they were at fit, unfitted if they were.
    """

    criterion: str
    margin: float
    gate_adjust: str
    correction: str
    top_k: int
    level: float
    allow_overlap: bool
    random_state: int
    baseline: str | None
    among_candidates: bool
    estimators: Mapping[str, OffPolicyEstimator]

    def is_baseline(self, candidate: str) -> bool:
        """Return whether this candidate is the baseline itself; an estimate that shares its name is not."""
        return self.among_candidates and candidate == self.baseline

    def choices(self) -> dict[str, Any]:
        """Return the parameters that decide, by name."""
        kept = [
            field.name for field in fields(self) if field.name not in ("baseline", "among_candidates", "estimators")
        ]
        return {name: getattr(self, name) for name in kept}


def settings_of(selector: Any, estimators: Mapping[str, OffPolicyEstimator], candidates: Collection[str]) -> Settings:
    """Return what a `PolicySelector` is about to use."""
    own = [f.name for f in fields(Settings) if f.name not in ("baseline", "among_candidates", "estimators")]
    name = _baseline_name(selector.baseline, candidates)
    return Settings(
        **{parameter: getattr(selector, parameter) for parameter in own},
        baseline=name,
        among_candidates=isinstance(selector.baseline, str) and selector.baseline != "logged",
        estimators={key: _frozen(estimator) for key, estimator in estimators.items()},
    )


def _baseline_name(baseline: str | Estimate | None, candidates: Collection[str]) -> str | None:
    if not isinstance(baseline, Estimate):
        return LOGGED if baseline == "logged" else baseline
    name = baseline.policy
    while name in candidates:
        name = f"{name} (baseline)"
    return name


def _frozen(estimator: Any) -> Any:
    # Arrays are shared, parameters are not: setting one later, nested ones too, does not reach this copy.
    twin = copy.copy(estimator)
    for name, value in estimator.get_params(deep=False).items():
        if hasattr(value, "get_params") and not isinstance(value, type):
            setattr(twin, name, _frozen(value))
    return twin
