"""One selection answers one question: what differs is named, before the work where it is known by then."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import OffPolicyEstimator


def check_one_horizon(estimators: Mapping[str, OffPolicyEstimator], data: LoggedDataset) -> None:
    """Raise where a log with a horizon is asked for both its own horizon and, by ``stationary=True``, an infinite one."""
    if data.horizon is None:
        return
    endless = {name: _is_endless(estimator) for name, estimator in estimators.items()}
    if True in endless.values() and False in endless.values():
        _refuse({name: None if e else data.horizon for name, e in endless.items() if e is not None})


def check_one_question(estimates: Mapping[str, Mapping[str, Estimate]]) -> None:
    """Raise unless all estimates with a value answer one question."""
    answered = {
        name: {e.question for e in found.values() if e.error is None and np.isfinite(e.value)}
        for name, found in estimates.items()
    }
    distinct = set().union(*answered.values())
    if len(distinct) <= 1:
        return
    if len({question[:2] for question in distinct}) == 1:
        _refuse({name: max(found, key=str)[2] for name, found in answered.items() if found})
    words = {name: sorted(map(str, found)) for name, found in answered.items() if found}
    raise ValueError(
        f"PolicySelector.fit: all `estimators` must answer one question, got estimand, gamma and horizon {words}; select with those of one question."
    )


def _refuse(horizons: Mapping[str, int | None]) -> None:
    words = ", ".join(f"{name!r}: {'infinite' if horizon is None else horizon}" for name, horizon in horizons.items())
    raise ValueError(
        f"PolicySelector.fit: all `estimators` must have one horizon, got {words}; values of different horizons answer different questions: pass "
        "stationary=True to all of them or to none."
    )


def _is_endless(estimator: OffPolicyEstimator) -> bool | None:
    """Return whether an estimator treats a horizon as a truncation; None where only its estimates tell."""
    from ope.estimators import ImportanceSampling

    for part in (estimator, getattr(estimator, "q", None)):
        stationary = getattr(part, "stationary", None)
        if stationary is not None:
            return bool(stationary)
    return False if isinstance(estimator, ImportanceSampling) or hasattr(estimator, "q") else None
