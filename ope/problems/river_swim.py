"""RiverSwim: a small certain reward downstream, a large one far upstream."""

from __future__ import annotations

import numpy as np

from ope.problems.checks import integer
from ope.problems.tabular import TabularProblem
from ope.validation import FloatArray


class RiverSwim(TabularProblem):
    """A chain of states against the current, endless or with a time limit.

    Action 0 (left) moves one state back for certain and pays .005 in the first state. Action 1 (right) moves forward
    with probability .35, stays with .6 and is driven back with .05; in the first state it moves with .6 and stays with
    .4, in the last it stays with .6 and is driven back with .4, and pays 1 there. Episodes start in the first state.

    Parameters
    ----------
    n_states : int
        Length of the chain, at least 2.
    horizon : int or None
        Number of steps; None for the endless problem, recorded for 100 steps unless `max_steps` says otherwise.
    behavior, target : float
        Probability of action 1, in every state.
    max_steps : int or None
        See `Problem`.
    encoding : {"one_hot", "index"} or array-like of shape (n_states, d)
        See `TabularProblem`.
    default_gamma : float

    References
    ----------
    A. L. Strehl, M. L. Littman, "An analysis of model-based interval estimation for Markov decision processes",
    Journal of Computer and System Sciences 74 (2008), https://doi.org/10.1016/j.jcss.2007.08.009

    Examples
    --------
    >>> problem = RiverSwim()
    >>> round(problem.value(RiverSwim.policy(0.9), gamma=0.95), 10)
    2.4426254477
    >>> limited = RiverSwim(horizon=20)
    >>> round(limited.value(limited.target, gamma=1.0), 10)
    1.5986435503
    """

    def __init__(
        self,
        n_states: int = 6,
        horizon: int | None = None,
        *,
        behavior: float = 0.8,
        target: float = 0.9,
        max_steps: int | None = None,
        encoding: str | FloatArray = "one_hot",
        default_gamma: float = 0.95,
    ) -> None:
        n_states = integer(self.name, "n_states", n_states, least=2)
        rewards = np.zeros((n_states, 2))
        rewards[0, 0], rewards[-1, 1] = 0.005, 1.0
        super().__init__(
            _river(n_states),
            rewards,
            np.eye(n_states)[0],
            behavior=self.policy(behavior, n_states),
            target=self.policy(target, n_states),
            horizon=horizon,
            max_steps=max_steps,
            encoding=encoding,
            default_gamma=default_gamma,
        )

    @staticmethod
    def policy(right: float, n_states: int = 6) -> FloatArray:
        """Return the table of the policy that goes right with probability `right` everywhere.

        Examples
        --------
        >>> round(RiverSwim().value(RiverSwim.policy(1.0), gamma=0.95), 10)
        4.6693001607
        """
        return np.tile([1.0 - right, right], (n_states, 1))


def _river(n_states: int) -> FloatArray:
    transitions = np.zeros((n_states, 2, n_states))
    first, middle, last = 0, np.arange(1, n_states - 1), n_states - 1
    transitions[np.arange(n_states), 0, np.maximum(np.arange(n_states) - 1, 0)] = 1.0
    transitions[first, 1, [first, first + 1]] = [0.4, 0.6]
    for move, probability in ((-1, 0.05), (0, 0.6), (1, 0.35)):
        transitions[middle, 1, middle + move] = probability
    transitions[last, 1, [last, last - 1]] = [0.6, 0.4]
    return transitions
