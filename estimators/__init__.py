"""Off-policy estimators: one method, one file."""

if __name__ != "ope.estimators":
    raise ImportError(f"import this package as ope.estimators, not {__name__}")

from ope.estimators.doubly_robust import DoublyRobust
from ope.estimators.fitted_q import FittedQEvaluation
from ope.estimators.importance_sampling import ImportanceSampling, PerDecisionIS, TrajectoryIS, WeightedIS
from ope.estimators.lstdq import LSTDQ

__all__ = [
    "LSTDQ",
    "DoublyRobust",
    "FittedQEvaluation",
    "ImportanceSampling",
    "PerDecisionIS",
    "TrajectoryIS",
    "WeightedIS",
]
