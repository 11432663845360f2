"""Reference problems whose values are known exactly: simulators of logs, and the truth to compare estimates with.

Policies are described by tables of probabilities (`Problem.behavior`, `Problem.target`), or given as
`ope.policy.Policy` objects.

Examples
--------
>>> from ope.problems import make
>>> problem = make("ModelWin")
>>> log = problem.sample(n_episodes=100, random_state=0)
>>> log.n_transitions, round(problem.value(problem.target), 6)
(2000, 0.924234)
"""

from ope.problems.baird import Baird
from ope.problems.base import Problem
from ope.problems.exact import ImportanceSamplingMoments, TabularProcess
from ope.problems.graph import Graph
from ope.problems.lqr import LinearGaussian, ScalarLQR
from ope.problems.random_mdp import RandomMDP
from ope.problems.registry import ALL_PROBLEMS, make
from ope.problems.river_swim import RiverSwim
from ope.problems.tabular import TabularProblem
from ope.problems.thomas import Hybrid, ModelFail, ModelWin

__all__ = [
    "ALL_PROBLEMS",
    "Baird",
    "Graph",
    "Hybrid",
    "ImportanceSamplingMoments",
    "LinearGaussian",
    "ModelFail",
    "ModelWin",
    "Problem",
    "RandomMDP",
    "RiverSwim",
    "ScalarLQR",
    "TabularProblem",
    "TabularProcess",
    "make",
]
