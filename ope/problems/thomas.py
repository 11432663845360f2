"""ModelFail, ModelWin and Hybrid: where a model must fail, where it must win, and both in one episode.

The three problems of P. S. Thomas and E. Brunskill, "Data-efficient off-policy policy evaluation for reinforcement
learning", ICML 2016.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from ope.problems.tabular import TabularProblem
from ope.validation import FloatArray

FAIL_ROWS = {"behavior": [expit(2.0), expit(-2.0)], "target": [expit(-2.0), expit(2.0)]}
WIN_ROWS = {"behavior": [expit(1.0), expit(-1.0)], "target": [expit(-1.0), expit(1.0)]}
UNIFORM = [0.5, 0.5]


class ModelFail(TabularProblem):
    """Two steps in which the log shows a single state, so that no model of observed states is right.

    Action 0 leads to an upper state, action 1 to a lower one; the second step pays +1 from the upper and -1 from the
    lower state whatever the action. Behaviour takes action 0 with probability sigmoid(2), the target with sigmoid(-2),
    in both steps.

    Parameters
    ----------
    encoding : {"one_hot", "index"} or array-like of shape (1, d)
        See `TabularProblem`.

    Notes
    -----
    J = 1 - 2 sigmoid(2) = -tanh(1) at gamma = 1.

    References
    ----------
    Thomas and Brunskill (2016), https://proceedings.mlr.press/v48/thomasa16.html

    Examples
    --------
    >>> problem = ModelFail()
    >>> round(problem.value(problem.target), 10)
    -0.761594156
    """

    def __init__(self, *, encoding: str | FloatArray = "one_hot") -> None:
        transitions, rewards = np.zeros((3, 2, 3)), np.zeros((3, 2))
        _fail_part(transitions, rewards, after=0)
        super().__init__(
            transitions,
            rewards,
            [1.0, 0.0, 0.0],
            behavior=[FAIL_ROWS["behavior"]],
            target=[FAIL_ROWS["target"]],
            horizon=2,
            observation=[0, 0, 0],
            encoding=encoding,
        )


class ModelWin(TabularProblem):
    """A fully observed chain with many decisions, where importance weights explode and a model does not.

    From state 0, action 0 leads to state 1 with probability .4 and to state 2 otherwise, action 1 the other way round;
    entering state 1 pays +1 and state 2 pays -1. Both return to state 0 for nothing, and both policies are uniform
    there. In state 0 behaviour takes action 0 with probability sigmoid(1), the target with sigmoid(-1).

    Parameters
    ----------
    horizon : int
        Number of steps, 20 in the paper.
    encoding : {"one_hot", "index"} or array-like of shape (3, d)
        See `TabularProblem`.

    Notes
    -----
    J = (horizon / 2) (.2 tanh(1/2)) at gamma = 1 and an even horizon: 2 tanh(1/2) at 20.

    References
    ----------
    Thomas and Brunskill (2016), https://proceedings.mlr.press/v48/thomasa16.html

    Examples
    --------
    >>> problem = ModelWin()
    >>> round(problem.value(problem.target), 10)
    0.9242343145
    """

    def __init__(self, *, horizon: int = 20, encoding: str | FloatArray = "one_hot") -> None:
        transitions, rewards = np.zeros((3, 2, 3)), np.zeros((3, 2, 3))
        _win_part(transitions, rewards, first=0)
        super().__init__(
            transitions,
            rewards,
            [1.0, 0.0, 0.0],
            behavior=[WIN_ROWS["behavior"], UNIFORM, UNIFORM],
            target=[WIN_ROWS["target"], UNIFORM, UNIFORM],
            horizon=horizon,
            encoding=encoding,
        )


class Hybrid(TabularProblem):
    """ModelFail for two steps, then ModelWin: partly observed at first, long afterwards.

    The log shows code 0 in the first two steps and codes 1 to 3 for the states of ModelWin.

    Parameters
    ----------
    horizon : int
        Number of steps, 22 in the paper's composition.
    encoding : {"one_hot", "index"} or array-like of shape (4, d)
        See `TabularProblem`.

    Notes
    -----
    J = 2 tanh(1/2) - tanh(1) at gamma = 1 and horizon 22.

    References
    ----------
    Thomas and Brunskill (2016), https://proceedings.mlr.press/v48/thomasa16.html

    Examples
    --------
    >>> problem = Hybrid()
    >>> round(problem.value(problem.target), 10)
    0.1626401586
    """

    def __init__(self, *, horizon: int = 22, encoding: str | FloatArray = "one_hot") -> None:
        transitions, rewards = np.zeros((6, 2, 6)), np.zeros((6, 2, 6))
        _fail_part(transitions, rewards, after=3)
        _win_part(transitions, rewards, first=3)
        super().__init__(
            transitions,
            rewards,
            np.eye(6)[0],
            behavior=[FAIL_ROWS["behavior"], WIN_ROWS["behavior"], UNIFORM, UNIFORM],
            target=[FAIL_ROWS["target"], WIN_ROWS["target"], UNIFORM, UNIFORM],
            horizon=horizon,
            observation=[0, 0, 0, 1, 2, 3],
            encoding=encoding,
        )


def _fail_part(transitions: FloatArray, rewards: FloatArray, after: int) -> None:
    transitions[0, 0, 1] = transitions[0, 1, 2] = 1.0
    transitions[1:3, :, after] = 1.0
    rewards[1], rewards[2] = 1.0, -1.0


def _win_part(transitions: FloatArray, rewards: FloatArray, first: int) -> None:
    good, bad = first + 1, first + 2
    transitions[first, :, good], transitions[first, :, bad] = [0.4, 0.6], [0.6, 0.4]
    transitions[good : bad + 1, :, first] = 1.0
    rewards[first, :, good], rewards[first, :, bad] = 1.0, -1.0
