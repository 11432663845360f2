"""A fitted selection with names that try to be HTML, shared by the tests of pictures and report."""

from __future__ import annotations

from functools import cache

import numpy as np

from ope import LoggedDataset, PolicySelector, estimate_behavior
from ope.estimators import LSTDQ, DoublyRobust, WeightedIS
from ope.policies import TabularPolicy
from ope.policy import Policy
from ope.problems import RiverSwim

GAMMA = 1.0
HORIZON = 20
EVIL = "<script>alert('x')</script> & \"$q$\""


@cache
def river_log(n_episodes: int = 400) -> LoggedDataset:
    return RiverSwim(horizon=HORIZON).sample(n_episodes, random_state=1)


@cache
def candidates() -> dict[str, Policy]:
    def upstream(p: float) -> Policy:
        return TabularPolicy([[1.0 - p, p]] * 6)

    return {
        "today": TabularPolicy(np.asarray(RiverSwim(horizon=HORIZON).behavior)),
        "upstream": upstream(0.9),
        EVIL: upstream(0.7),
        "drift": upstream(0.05),
    }


@cache
def report_text() -> str:
    from ope.report import report_html

    return report_html(selector(), title=f"River {EVIL}")


@cache
def selector(estimated: bool = False) -> PolicySelector:
    """Return a selection; with `estimated`, from propensities that were not logged."""
    log = river_log()
    if estimated:
        log = estimate_behavior(log.replace(behavior_log_prob=None, behavior_source=None))
    estimators = [WeightedIS(gamma=GAMMA), DoublyRobust(gamma=GAMMA), LSTDQ(gamma=GAMMA)]
    return PolicySelector(estimators).fit(log, candidates())
