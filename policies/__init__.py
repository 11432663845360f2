"""Policies: adapters for policies you have, and learners of policies from a log."""

if __name__ != "ope.policies":
    raise ImportError(f"import this package as ope.policies, not {__name__}")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ope.policies.bcq import BCQ
    from ope.policies.behavior_cloning import BehaviorCloning
    from ope.policies.classifier import ClassifierPolicy
    from ope.policies.column import ColumnPolicy
    from ope.policies.epsilon_greedy import EpsilonGreedy
    from ope.policies.function import FunctionPolicy
    from ope.policies.gaussian import GaussianPolicy
    from ope.policies.tabular import TabularPolicy

# Loaded when first asked for: learners bring torch, which adapters do without.
_MODULES = {
    "BCQ": "bcq",
    "BehaviorCloning": "behavior_cloning",
    "ClassifierPolicy": "classifier",
    "ColumnPolicy": "column",
    "EpsilonGreedy": "epsilon_greedy",
    "FunctionPolicy": "function",
    "GaussianPolicy": "gaussian",
    "TabularPolicy": "tabular",
}

__all__ = [
    "BCQ",
    "BehaviorCloning",
    "ClassifierPolicy",
    "ColumnPolicy",
    "EpsilonGreedy",
    "FunctionPolicy",
    "GaussianPolicy",
    "TabularPolicy",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
