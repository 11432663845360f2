"""Graph: the chain of odd and even nodes whose variance under importance sampling grows exponentially."""

from __future__ import annotations

import numpy as np

from ope.problems.checks import finite_number, integer
from ope.problems.tabular import TabularProblem
from ope.validation import FloatArray


class Graph(TabularProblem):
    """A chain of `horizon` steps that land on an odd (+1) or an even (-1) node.

    Action 0 aims at the odd node and action 1 at the even one; either misses with probability `slip`. The last step
    repeats the sign of the current node. The log shows the sign (0 start, 1 odd, 2 even): with the time step it is
    Markov.

    Parameters
    ----------
    horizon : int
        Number of steps, at least 2.
    slip : float
        Probability of the other node, in [0, 1].
    behavior, target : float
        Probability of action 0, in every state.
    encoding : {"one_hot", "index"} or array-like of shape (3, d)
        See `TabularProblem`.

    Notes
    -----
    With m = (1 - 2 slip)(2 p - 1) the mean reward of a step under probability p of action 0,
    J = m (1 + gamma + ... + gamma^(horizon - 1)).

    References
    ----------
    C. Voloshin, H. M. Le, N. Jiang, Y. Yue, "Empirical study of off-policy policy evaluation for reinforcement
    learning", NeurIPS Datasets and Benchmarks 2021, https://arxiv.org/abs/1911.06854 (ToyGraph)

    Examples
    --------
    >>> problem = Graph(horizon=16)
    >>> round(problem.value(problem.target), 10)
    -4.1430341911
    """

    def __init__(
        self,
        horizon: int = 16,
        slip: float = 0.25,
        *,
        behavior: float = 0.8,
        target: float = 0.2,
        encoding: str | FloatArray = "one_hot",
    ) -> None:
        slip = finite_number(self.name, "slip", slip, least=0.0, most=1.0)
        horizon = integer(self.name, "horizon", horizon, least=2)
        transitions = np.zeros((horizon, 3, 2, 3))
        transitions[:-1, :, 0, 1:] = [1.0 - slip, slip]
        transitions[:-1, :, 1, 1:] = [slip, 1.0 - slip]
        transitions[-1] = np.eye(3)[:, None, :]
        rewards = np.zeros((3, 2, 3))
        rewards[:, :, 1], rewards[:, :, 2] = 1.0, -1.0
        super().__init__(
            transitions,
            rewards,
            [1.0, 0.0, 0.0],
            behavior=self.policy(behavior),
            target=self.policy(target),
            horizon=horizon,
            encoding=encoding,
            default_gamma=0.98,
        )

    @staticmethod
    def policy(odd: float) -> FloatArray:
        """Return the table of the policy that takes action 0 with probability `odd` everywhere.

        Examples
        --------
        >>> round(Graph(horizon=4).value(Graph.policy(0.8)), 7)
        1.1644776
        """
        return np.tile([odd, 1.0 - odd], (3, 1))
