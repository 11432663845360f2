"""What the pictures read: estimates of one estimator, of several, or of a fitted selector, checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ope.estimate import Estimate, Estimates
from ope.inference import max_t_quantile


@dataclass(frozen=True)
class Candidates:
    """Estimates of several candidates by one estimator, and what a selection adds to them.

    Parameters
    ----------
    estimates : mapping of str to Estimate
    simultaneous : mapping of str to (float, float)
        Intervals that hold all at once, where they exist.
    baseline : float or None
    baseline_name : str
    chosen : str or None
    level : float
    """

    estimates: Mapping[str, Estimate]
    simultaneous: Mapping[str, tuple[float, float]]
    baseline: float | None
    baseline_name: str
    chosen: str | None
    level: float


def read_candidates(owner: str, results: Any, level: float | None, baseline: Any) -> Candidates:
    """Return what `results` says: an Estimate, Estimates, a mapping of estimates, or a fitted PolicySelector."""
    if is_selector(results):
        if results.primary_ is None:
            raise ValueError(
                f"{owner}: the selector has no estimator that answers; read its decision_, or plot one of estimates_."
            )
        mine = results.baseline_ if baseline is None else baseline
        return Candidates(
            results.estimates_[results.primary_],
            _rows(results.simultaneous_),
            *_baseline(owner, mine),
            results.best_name_,
            float(results.settings_.level if level is None else level),
        )
    estimates = read_estimates(owner, results)
    level = 0.95 if level is None else level
    return Candidates(estimates, simultaneous(estimates, level), *_baseline(owner, baseline), None, level)


def is_selector(results: Any) -> bool:
    """Return whether this is a fitted PolicySelector, or an object like one."""
    return hasattr(results, "estimates_") and hasattr(results, "primary_")


def read_estimates(owner: str, results: Any) -> Mapping[str, Estimate]:
    """Return a non-empty mapping of names to estimates."""
    if isinstance(results, Estimate):
        return {results.policy: results}
    if isinstance(results, Mapping) and results and all(isinstance(item, Estimate) for item in results.values()):
        return results
    raise TypeError(
        f"{owner}: `results` must be an Estimate, a non-empty Estimates or a fitted PolicySelector, got {type(results).__name__}; "
        "pass what estimate() returned."
    )


def read_methods(owner: str, results: Any) -> Mapping[str, Mapping[str, Estimate]]:
    """Return estimates by estimator and candidate, from a mapping of them or a fitted PolicySelector."""
    methods = results.estimates_ if is_selector(results) else results
    if not isinstance(methods, Mapping) or not methods:
        raise TypeError(
            f"{owner}: `results` must map names of estimators to Estimates, or be a fitted PolicySelector, got {type(results).__name__}; "
            "pass {'WeightedIS': estimates, ...}."
        )
    return {name: read_estimates(owner, estimates) for name, estimates in methods.items()}


def simultaneous(estimates: Mapping[str, Estimate], level: float) -> dict[str, tuple[float, float]]:
    """Return intervals V_k -+ c se_k of one critical value, for the estimates with finite influence values; none for one."""
    held = {
        name: estimate
        for name, estimate in estimates.items()
        if np.isfinite(estimate.value) and estimate.influence is not None and np.isfinite(estimate.influence).all()
    }
    if len(held) < 2 or len({estimate.n_episodes for estimate in held.values()}) > 1:
        return {}
    c = max_t_quantile(Estimates(held).influence, 1.0 - level)
    return {
        name: (e.value - c * e.std_error - e.widening, e.value + c * e.std_error + e.widening)
        for name, e in held.items()
    }


def _rows(frame: Any) -> dict[str, tuple[float, float]]:
    return {
        str(name): (float(low), float(high))
        for name, low, high in zip(frame.index, frame["low"], frame["high"], strict=True)
    }


def _baseline(owner: str, baseline: Any) -> tuple[float | None, str]:
    if baseline is None:
        return None, ""
    if isinstance(baseline, Estimate):
        return float(baseline.value), baseline.policy
    if isinstance(baseline, (int, float, np.floating)) and not isinstance(baseline, bool) and np.isfinite(baseline):
        return float(baseline), "baseline"
    raise TypeError(f"{owner}: `baseline` must be a finite number or an Estimate, got {baseline!r}; pass one of them.")
