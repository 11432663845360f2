"""Baird's star: the counterexample on which semi-gradient methods with linear features diverge."""

from __future__ import annotations

import numpy as np

from ope.problems.tabular import TabularProblem
from ope.validation import FloatArray

DASHED, SOLID = 0, 1


def star_features() -> FloatArray:
    """Return the features of the seven states, shape (7, 8): 2 e_i + e_8 for the upper six, e_7 + 2 e_8 for the lower.

    Examples
    --------
    >>> star_features()[[0, 6]]
    array([[2., 0., 0., 0., 0., 0., 0., 1.],
           [0., 0., 0., 0., 0., 0., 1., 2.]])
    """
    features = np.zeros((7, 8))
    features[np.arange(6), np.arange(6)] = 2.0
    features[:6, 7] = 1.0
    features[6, 6:] = [1.0, 2.0]
    return features


class Baird(TabularProblem):
    """Seven states without rewards, shown through features in which off-policy fitted Q evaluation diverges.

    Action 0 (dashed) leads to one of the six upper states, equally likely; action 1 (solid) to the lower state.
    Behaviour takes dashed with probability 6/7, the target always solid. Episodes start in any state and never end.

    Parameters
    ----------
    max_steps : int or None
        See `Problem`.
    encoding : {"features", "one_hot", "index"} or array-like of shape (7, d)
        "features" logs `star_features`; see `TabularProblem` for the others.
    default_gamma : float

    Notes
    -----
    V = 0 for every policy. The eight features represent it exactly, and yet semi-gradient temporal-difference weights
    diverge.

    References
    ----------
    L. Baird, "Residual algorithms: reinforcement learning with function approximation", ICML 1995; in the form of R. S.
    Sutton and A. G. Barto, "Reinforcement learning: an introduction", 2nd edition, section 11.2

    Examples
    --------
    >>> problem = Baird()
    >>> problem.value(problem.target)
    0.0
    >>> problem.sample(10).states.shape
    (1000, 8)
    """

    def __init__(
        self, *, max_steps: int | None = None, encoding: str | FloatArray = "features", default_gamma: float = 0.99
    ) -> None:
        transitions = np.zeros((7, 2, 7))
        transitions[:, DASHED, :6] = 1.0 / 6.0
        transitions[:, SOLID, 6] = 1.0
        shown = star_features() if isinstance(encoding, str) and encoding == "features" else encoding
        super().__init__(
            transitions,
            np.zeros((7, 2)),
            np.full(7, 1.0 / 7.0),
            behavior=np.tile([6.0 / 7.0, 1.0 / 7.0], (7, 1)),
            target=np.tile([0.0, 1.0], (7, 1)),
            max_steps=max_steps,
            encoding=shown,
            default_gamma=default_gamma,
        )
