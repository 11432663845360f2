"""Off-policy evaluation and offline policy selection.

From logged data of one policy, say how good other policies would be, with intervals that can be trusted, and which may be
deployed. The top level is lazy: a name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ope.behavior import estimate_behavior as estimate_behavior
    from ope.citations import citation as citation
    from ope.comparison import Comparison as Comparison
    from ope.dataset import LoggedDataset as LoggedDataset
    from ope.estimate import Estimate as Estimate
    from ope.estimate import Estimates as Estimates
    from ope.estimate import Interval as Interval
    from ope.estimator import OffPolicyEstimator as OffPolicyEstimator
    from ope.estimator import bootstrap as bootstrap
    from ope.evaluation import evaluate_estimators as evaluate_estimators
    from ope.loggers import balance_loggers as balance_loggers
    from ope.neural.serialization import load_policy as load_policy
    from ope.policy import Policy as Policy
    from ope.policy import PolicyLearner as PolicyLearner
    from ope.schema import End as End
    from ope.search import PolicySearch as PolicySearch
    from ope.search import cross_fit_select as cross_fit_select
    from ope.search import select_checkpoint as select_checkpoint
    from ope.selection import PolicySelector as PolicySelector
    from ope.tabular_model import model_bootstrap as model_bootstrap
    from ope.verdict import Level as Level
    from ope.verdict import Verdict as Verdict

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "ope.comparison",
    "End": "ope.schema",
    "Estimate": "ope.estimate",
    "Estimates": "ope.estimate",
    "Interval": "ope.estimate",
    "Level": "ope.verdict",
    "LoggedDataset": "ope.dataset",
    "OffPolicyEstimator": "ope.estimator",
    "Policy": "ope.policy",
    "PolicyLearner": "ope.policy",
    "PolicySearch": "ope.search",
    "PolicySelector": "ope.selection",
    "Verdict": "ope.verdict",
    "balance_loggers": "ope.loggers",
    "bootstrap": "ope.estimator",
    "citation": "ope.citations",
    "cross_fit_select": "ope.search",
    "estimate_behavior": "ope.behavior",
    "evaluate_estimators": "ope.evaluation",
    "load_policy": "ope.neural.serialization",
    "model_bootstrap": "ope.tabular_model",
    "select_checkpoint": "ope.search",
}
_SUBPACKAGES = (
    "estimators",
    "inference",
    "io",
    "metrics",
    "plotting",
    "policies",
    "problems",
    "sensitivity",
    "testing",
)

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"ope.{name}")
    raise AttributeError(f"module 'ope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES])
