"""Policies: adapters for policies you have, and learners of policies from a log."""

if __name__ != "ope.policies":
    raise ImportError(f"import this package as ope.policies, not {__name__}")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ope.neural.graphs import cuda_graphs
    from ope.policies._runs import LearnerEvent
    from ope.policies.atac import ATAC
    from ope.policies.awac import AWAC
    from ope.policies.awr import AWR
    from ope.policies.bcq import BCQ
    from ope.policies.bear import BEAR
    from ope.policies.behavior_cloning import BehaviorCloning
    from ope.policies.brac import BRAC
    from ope.policies.classifier import ClassifierPolicy
    from ope.policies.column import ColumnPolicy
    from ope.policies.cql import CQL
    from ope.policies.crr import CRR
    from ope.policies.d3rlpy_policy import from_d3rlpy
    from ope.policies.double_dqn import DoubleDQN
    from ope.policies.edac import EDAC
    from ope.policies.epsilon_greedy import EpsilonGreedy
    from ope.policies.function import FunctionPolicy
    from ope.policies.gaussian import GaussianPolicy
    from ope.policies.iql import IQL
    from ope.policies.lspi import LSPI
    from ope.policies.preprocessed import PreprocessedLearner
    from ope.policies.rem import REM
    from ope.policies.sb3_policy import from_sb3
    from ope.policies.tabular import TabularPolicy
    from ope.policies.td3bc import TD3BC
    from ope.policies.torch_policy import TorchPolicy
    from ope.policies.uwac import UWAC

# Loaded when first asked for: learners bring torch, which adapters do without.
_MODULES = {
    "BCQ": "bcq",
    "BEAR": "bear",
    "BRAC": "brac",
    "EDAC": "edac",
    "CQL": "cql",
    "BehaviorCloning": "behavior_cloning",
    "ClassifierPolicy": "classifier",
    "ColumnPolicy": "column",
    "EpsilonGreedy": "epsilon_greedy",
    "FunctionPolicy": "function",
    "GaussianPolicy": "gaussian",
    "IQL": "iql",
    "LearnerEvent": "_runs",
    "TD3BC": "td3bc",
    "ATAC": "atac",
    "DoubleDQN": "double_dqn",
    "AWAC": "awac",
    "AWR": "awr",
    "REM": "rem",
    "UWAC": "uwac",
    "CRR": "crr",
    "LSPI": "lspi",
    "PreprocessedLearner": "preprocessed",
    "TabularPolicy": "tabular",
    "TorchPolicy": "torch_policy",
    "cuda_graphs": ".neural.graphs",
    "from_d3rlpy": "d3rlpy_policy",
    "from_sb3": "sb3_policy",
}

__all__ = [
    "ATAC",
    "AWAC",
    "AWR",
    "BCQ",
    "BEAR",
    "BRAC",
    "CQL",
    "CRR",
    "EDAC",
    "IQL",
    "LSPI",
    "REM",
    "TD3BC",
    "UWAC",
    "BehaviorCloning",
    "ClassifierPolicy",
    "ColumnPolicy",
    "DoubleDQN",
    "EpsilonGreedy",
    "FunctionPolicy",
    "GaussianPolicy",
    "LearnerEvent",
    "PreprocessedLearner",
    "TabularPolicy",
    "TorchPolicy",
    "cuda_graphs",
    "from_d3rlpy",
    "from_sb3",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
