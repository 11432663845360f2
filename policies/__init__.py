"""Policies: adapters for policies you have, and learners of policies from a log."""

if __name__ != "ope.policies":
    raise ImportError(f"import this package as ope.policies, not {__name__}")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ope.policies.atac import ATAC
    from ope.policies.awac import AWAC
    from ope.policies.bcq import BCQ
    from ope.policies.behavior_cloning import BehaviorCloning
    from ope.policies.classifier import ClassifierPolicy
    from ope.policies.column import ColumnPolicy
    from ope.policies.cql import CQL
    from ope.policies.crr import CRR
    from ope.policies.double_dqn import DoubleDQN
    from ope.policies.epsilon_greedy import EpsilonGreedy
    from ope.policies.function import FunctionPolicy
    from ope.policies.gaussian import GaussianPolicy
    from ope.policies.iql import IQL
    from ope.policies.lspi import LSPI
    from ope.policies.tabular import TabularPolicy
    from ope.policies.td3bc import TD3BC

# Loaded when first asked for: learners bring torch, which adapters do without.
_MODULES = {
    "BCQ": "bcq",
    "CQL": "cql",
    "BehaviorCloning": "behavior_cloning",
    "ClassifierPolicy": "classifier",
    "ColumnPolicy": "column",
    "EpsilonGreedy": "epsilon_greedy",
    "FunctionPolicy": "function",
    "GaussianPolicy": "gaussian",
    "IQL": "iql",
    "TD3BC": "td3bc",
    "ATAC": "atac",
    "DoubleDQN": "double_dqn",
    "AWAC": "awac",
    "CRR": "crr",
    "LSPI": "lspi",
    "TabularPolicy": "tabular",
}

__all__ = [
    "ATAC",
    "AWAC",
    "BCQ",
    "CQL",
    "CRR",
    "IQL",
    "LSPI",
    "TD3BC",
    "BehaviorCloning",
    "ClassifierPolicy",
    "ColumnPolicy",
    "DoubleDQN",
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
