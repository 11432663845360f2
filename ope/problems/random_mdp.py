"""RandomMDP: dense random dynamics, for property tests and scaling studies."""

from __future__ import annotations

import numpy as np

from ope.policy import RandomState, generator
from ope.problems.checks import finite_number, integer
from ope.problems.tabular import TabularProblem
from ope.validation import FloatArray


class RandomMDP(TabularProblem):
    """A decision process drawn at random: Dirichlet transitions and policies, uniform rewards.

    Parameters
    ----------
    n_states, n_actions : int
        Numbers of states the log can show, and of actions.
    horizon : int or None
        Number of steps; None for the problem without time limit, recorded for 100 steps unless `max_steps` says
        otherwise.
    terminals : int
        Number of additional absorbing states. Transitions to each are as likely as to any other state.
    max_steps : int or None
        See `Problem`.
    concentration : float
        Parameter of the Dirichlet draws of transitions; small for nearly deterministic ones.
    exploration : float
        Share of the uniform policy in the behaviour policy, in [0, 1]; bounds the importance ratios.
    reward_std : float
        Standard deviation of Gaussian noise on every reward; the means are uniform in [-1, 1].
    encoding : {"one_hot", "index"} or array-like of shape (n_states, d)
        See `TabularProblem`.
    default_gamma : float
    random_state : int, Generator or None
        Draws the problem, not its logs.

    Examples
    --------
    >>> problem = RandomMDP(4, 3, terminals=1, random_state=1)
    >>> round(problem.value(problem.target), 6)
    0.543317
    >>> problem.sample(3).n_actions
    3
    """

    def __init__(
        self,
        n_states: int = 5,
        n_actions: int = 2,
        horizon: int | None = None,
        *,
        terminals: int = 0,
        max_steps: int | None = None,
        concentration: float = 1.0,
        exploration: float = 0.2,
        reward_std: float = 0.0,
        encoding: str | FloatArray = "one_hot",
        default_gamma: float = 0.9,
        random_state: RandomState = 0,
    ) -> None:
        integer(self.name, "n_states", n_states)
        integer(self.name, "n_actions", n_actions)
        integer(self.name, "terminals", terminals, least=0)
        exploration = finite_number(self.name, "exploration", exploration, least=0.0, most=1.0)
        rng, total = generator(random_state), n_states + terminals
        uniform = np.full((n_states, n_actions), 1.0 / n_actions)
        super().__init__(
            rng.dirichlet(np.full(total, concentration), size=(total, n_actions)),
            rng.uniform(-1.0, 1.0, size=(total, n_actions, total)),
            np.concatenate([rng.dirichlet(np.ones(n_states)), np.zeros(terminals)]),
            behavior=(1.0 - exploration) * rng.dirichlet(np.ones(n_actions), size=n_states) + exploration * uniform,
            target=rng.dirichlet(np.ones(n_actions), size=n_states),
            horizon=horizon,
            max_steps=max_steps,
            terminal=np.arange(total) >= n_states,
            encoding=encoding,
            reward_std=reward_std,
            default_gamma=default_gamma,
        )
