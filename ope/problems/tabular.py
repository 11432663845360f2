"""`TabularProblem`: finite states and actions, everything exact."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ope.dataset import Rows
from ope.policy import Policy, probabilities
from ope.problems import exact
from ope.problems.base import Actor, Array, Problem
from ope.problems.checks import distributions, feature_matrix, observation_codes, process_of
from ope.validation import BoolArray, FloatArray, IntArray, float_array


class TabularProblem(Problem):
    """A finite decision process, fully or partly observed, with or without horizon and terminal states.

    Policies act on *observed* states, coded 0 to n_states - 1; every true state shows one of these codes, several may
    share one. A policy is a table of probabilities of shape (n_states, n_actions) or a `Policy` with `predict_proba`.

    Parameters
    ----------
    transitions : array-like of shape (S, A, S) or (horizon, S, A, S)
        P(s' | s, a) over true states, at every step or for each. Rows of terminal states are not read.
    rewards : array-like of shape (S, A), (S, A, S) or (horizon, S, A, S)
        Mean reward of (s, a) or (s, a, s').
    initial : array-like of shape (S,)
        Distribution of the first state.
    behavior, target : array-like of shape (n_states, n_actions)
        Probabilities of the policy that logs and of the one that is evaluated by default.
    horizon, max_steps : int, optional
        See `Problem`.
    terminal : array-like of shape (S,), optional
        Which true states end an episode; default: none.
    observation : array-like of int of shape (S,), optional
        Code that each true state shows, -1 for terminal states that are not logged. Default: non-terminal states show
        their rank among these, terminal states show nothing.
    encoding : {"one_hot", "index"} or array-like of shape (n_states, d)
        What the log holds for each code: its indicator columns, one integer column, or the given features.
    reward_std : float
        Standard deviation of Gaussian noise on every reward.
    default_gamma : float

    Attributes
    ----------
    n_states, n_actions : int
        Number of observed states and of actions.
    process : TabularProcess
        The true dynamics.
    observation : ndarray of shape (S,)
    features : ndarray of shape (n_states, d)
        The encoding.
    behavior, target : ndarray of shape (n_states, n_actions)

    Examples
    --------
    A coin that is tossed until the first tail; heads pay 1, and the second coin is fairer than the first.

    >>> heads = np.array([0.9, 0.5])
    >>> transitions = np.stack([np.column_stack([heads, 1 - heads]), np.zeros((2, 2))])
    >>> coins = TabularProblem(
    ...     transitions, [[0.9, 0.5], [0.0, 0.0]], [1.0, 0.0], behavior=[[0.5, 0.5]], target=[[0.0, 1.0]],
    ...     terminal=[False, True],
    ... )
    >>> coins.value(coins.target), round(coins.value(coins.behavior), 6)
    (1.0, 2.333333)
    >>> coins.sample(1000).n_episodes
    1000
    """

    def __init__(
        self,
        transitions: npt.ArrayLike,
        rewards: npt.ArrayLike,
        initial: npt.ArrayLike,
        *,
        behavior: npt.ArrayLike,
        target: npt.ArrayLike,
        horizon: int | None = None,
        max_steps: int | None = None,
        terminal: npt.ArrayLike | None = None,
        observation: npt.ArrayLike | None = None,
        encoding: str | npt.ArrayLike = "one_hot",
        reward_std: float = 0.0,
        default_gamma: float = 1.0,
    ) -> None:
        super().__init__(horizon=horizon, max_steps=max_steps, default_gamma=default_gamma)
        self.process = process_of(self.name, transitions, rewards, initial, terminal, reward_std)
        if not self.process.stationary and len(self.process.transitions) != self.horizon:
            raise ValueError(
                f"{self.name}: `transitions` of {len(self.process.transitions)} steps need as many steps of "
                f"`horizon`, got {self.horizon}; pass it, or transitions of shape (S, A, S)."
            )
        self.n_actions = self.process.transitions.shape[-2]
        self.observation = observation_codes(self.name, observation, self.process.terminal)
        self.n_states = int(self.observation.max()) + 1
        self.encoding = encoding if isinstance(encoding, str) else "features"
        self.features = feature_matrix(self.name, encoding, self.n_states)
        self.behavior = self._table(behavior, "behavior")
        self.target = self._table(target, "target")

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Least and largest reward that can occur, or None where rewards are noisy."""
        if self.process.reward_std > 0:
            return None
        possible = self.process.rewards[self.process.transitions > 0]
        return float(possible.min()), float(possible.max())

    # ---------------------------------------------------------------- exact quantities

    def value(self, policy: Policy | npt.ArrayLike, gamma: float | None = None) -> float:
        """Return the exact value of a policy: backward recursion up to the horizon, or a linear solve.

        Parameters
        ----------
        policy : Policy or array-like of shape (n_states, n_actions)
        gamma : float, optional
            Default: `default_gamma`.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            At gamma = 1 without a horizon, if the policy need not terminate.
        """
        first = self.state_values(policy, gamma).reshape(-1, len(self.observation))[0]
        started = self.process.initial > 0
        return float(self.process.initial[started] @ first[started])

    def state_values(self, policy: Policy | npt.ArrayLike, gamma: float | None = None) -> FloatArray:
        """Return V over true states: shape (S,), or (horizon + 1, S) time by time.

        Parameters
        ----------
        policy : Policy or array-like of shape (n_states, n_actions)
        gamma : float, optional

        Returns
        -------
        ndarray
            0 at terminal states; at gamma = 1 without horizon NaN where the policy never comes.
        """
        gamma, pi = self._gamma(gamma), self._true_table(self.table(policy))
        if self.horizon is None:
            return exact.stationary_values(self.process, pi, gamma)
        return exact.finite_horizon_values(self.process, pi, gamma, self.horizon)

    def action_values(self, policy: Policy | npt.ArrayLike, gamma: float | None = None) -> FloatArray:
        """Return Q over true states: shape (S, n_actions), or (horizon, S, n_actions) time by time.

        Parameters
        ----------
        policy : Policy or array-like of shape (n_states, n_actions)
        gamma : float, optional

        Returns
        -------
        ndarray
            0 at terminal states; NaN where the next state may have no known value, see `state_values`.
        """
        return exact.action_values(self.process, self.state_values(policy, gamma), self._gamma(gamma))

    def importance_sampling_moments(
        self, policy: Policy | npt.ArrayLike, gamma: float | None = None, behavior: Policy | npt.ArrayLike | None = None
    ) -> exact.ImportanceSamplingMoments:
        """Return exact moments of importance sampling from one recorded episode.

        Parameters
        ----------
        policy : Policy or array-like of shape (n_states, n_actions)
            The policy to evaluate.
        gamma : float, optional
        behavior : Policy or array-like, optional
            Who logged; default: `behavior` of the problem.

        Returns
        -------
        ImportanceSamplingMoments
            Where recording truncates episodes the means lack what comes after it.

        Examples
        --------
        >>> from ope.problems import ModelFail
        >>> problem = ModelFail()
        >>> moments = problem.importance_sampling_moments(problem.target)
        >>> round(moments.is_mean, 6), round(moments.is_variance / 1024, 6)
        (-0.761594, 0.041004)
        """
        b = self.behavior if behavior is None else self.table(behavior)
        tables = self._true_table(b), self._true_table(self.table(policy))
        return exact.importance_sampling_moments(self.process, *tables, self._gamma(gamma), self.n_steps)

    # ---------------------------------------------------------------- policies

    def table(self, policy: Policy | npt.ArrayLike) -> FloatArray:
        """Return the probabilities of a policy in every observed state, shape (n_states, n_actions).

        Parameters
        ----------
        policy : Policy or array-like
            A `Policy` is asked for `predict_proba` of `features`.

        Returns
        -------
        ndarray of shape (n_states, n_actions)

        Raises
        ------
        ValueError
            If these are no probabilities.
        """
        if not isinstance(policy, Policy):
            return self._table(policy, "policy")
        names = tuple(f"state_{i}" for i in range(self.features.shape[1]))
        return probabilities(policy, Rows(self.features, names), np.arange(self.n_actions))

    def _table(self, probs: Any, name: str) -> FloatArray:
        array = float_array(self.name, name, probs, 2)
        if array.shape != (self.n_states, self.n_actions):
            raise ValueError(
                f"{self.name}: `{name}` must have shape {(self.n_states, self.n_actions)} (states, actions), got "
                f"{array.shape}; give every observed state a row."
            )
        return distributions(self.name, name, array)

    def _true_table(self, table: FloatArray) -> FloatArray:
        # Terminal states that show nothing have code -1; what stands in their rows is never used.
        return table[self.observation]

    def state_code(self, states: npt.ArrayLike) -> IntArray:
        """Return the code of each logged state: what ``TabularPolicy(table, state_code=)`` takes.

        Parameters
        ----------
        states : array-like of shape (n, d)
            Rows of `features`.

        Returns
        -------
        ndarray of shape (n,)

        Raises
        ------
        ValueError
            If a row is not a state of this problem.

        Examples
        --------
        >>> from ope.problems import RiverSwim
        >>> RiverSwim().state_code([[0, 0, 1, 0, 0, 0]])
        array([2])
        """
        array = float_array(f"{self.name}.state_code", "states", states, 2)
        known = self.features
        if array.shape[1] == known.shape[1]:
            # The nearest row: |x - f|^2 up to |x|^2, as one matrix product.
            codes = np.argmax(array @ known.T - 0.5 * (known**2).sum(axis=1), axis=1)
            if np.array_equal(known[codes], array):
                return np.asarray(codes, dtype=np.int64)
        raise ValueError(
            f"{self.name}.state_code: `states` must be rows of `features` (encoding {self.encoding!r}), got others; "
            "pass states that this problem logged."
        )

    # ---------------------------------------------------------------- simulation

    @cached_property
    def _initial_cdf(self) -> FloatArray:
        return _cdf(self.process.initial)

    @cached_property
    def _transition_cdf(self) -> FloatArray:
        P = self.process.transitions
        return _cdf(P.reshape(-1, *P.shape[-3:]))

    @cached_property
    def _shown(self) -> FloatArray:
        shown = np.full((len(self.observation), self.features.shape[1]), np.nan)
        logged = self.observation >= 0
        shown[logged] = self.features[self.observation[logged]]
        return shown

    def _start(self, n: int, rng: np.random.Generator) -> Array:
        return np.searchsorted(self._initial_cdf, rng.random(n), side="right")

    def _actor(self, policy: Any, rng: np.random.Generator) -> Actor:
        table = self._true_table(self.table(policy))
        cdf = _cdf(table)
        log_table = np.log(np.where(table > 0, table, 1.0))

        def act(states: Array) -> tuple[Array, FloatArray]:
            actions = _draw(cdf[states], rng)
            return actions, log_table[states, actions]

        return act

    def _step(
        self, t: int, states: Array, actions: Array, rng: np.random.Generator
    ) -> tuple[FloatArray, Array, BoolArray | None]:
        cdf = self._transition_cdf[0 if self.process.stationary else t]
        next_states = _draw(cdf[states, actions], rng)
        rewards = self.process.at(t)[1][states, actions, next_states]
        if self.process.reward_std > 0:
            rewards = rewards + self.process.reward_std * rng.standard_normal(len(states))
        terminal = self.process.terminal
        return rewards, next_states, terminal[next_states] if terminal.any() else None

    def _observe(self, states: Array) -> FloatArray:
        return self._shown[states]


def _cdf(probs: FloatArray) -> FloatArray:
    """Return cumulative probabilities but the last, exactly 1 from the last possible outcome on: u < 1 stays below."""
    cumulative = np.cumsum(probs, axis=-1)
    total = cumulative[..., -1:]
    return np.divide(cumulative, total, out=np.zeros_like(cumulative), where=total > 0)[..., :-1].copy()


def _draw(cdf: FloatArray, rng: np.random.Generator) -> IntArray:
    """Draw one outcome from each row of cumulative probabilities."""
    return np.asarray((rng.random(len(cdf))[:, None] >= cdf).sum(axis=1))
