"""The reference problems by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ope.problems.baird import Baird
from ope.problems.base import Problem
from ope.problems.graph import Graph
from ope.problems.lqr import ScalarLQR
from ope.problems.random_mdp import RandomMDP
from ope.problems.river_swim import RiverSwim
from ope.problems.thomas import Hybrid, ModelFail, ModelWin

ALL_PROBLEMS: Mapping[str, type[Problem]] = MappingProxyType(
    {cls.__name__: cls for cls in (ModelFail, ModelWin, Hybrid, Graph, RiverSwim, ScalarLQR, Baird, RandomMDP)}
)
"""All reference problems; every class can be built without arguments."""


def make(name: str, **kwargs: Any) -> Problem:
    """Build a reference problem.

    Parameters
    ----------
    name : str
        A key of `ALL_PROBLEMS`.
    **kwargs
        Passed to the class.

    Returns
    -------
    Problem

    Raises
    ------
    ValueError
        If there is no problem of that name.

    Examples
    --------
    >>> make("Graph", horizon=4)
    Graph(horizon=4, default_gamma=0.98)
    """
    if name not in ALL_PROBLEMS:
        raise ValueError(f"ope.problems.make: `name` must be one of {sorted(ALL_PROBLEMS)}, got {name!r}.")
    return ALL_PROBLEMS[name](**kwargs)
