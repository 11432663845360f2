"""`Problem`, the base class of reference problems: what they sample is a log, what they know is the exact value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ope import ragged
from ope.dataset import LoggedDataset
from ope.policy import RandomState, generator
from ope.problems.checks import integer
from ope.schema import End
from ope.validation import BoolArray, FloatArray, IntArray, check_gamma

DEFAULT_STEPS = 100

Array = npt.NDArray[Any]
Actor = Callable[[Array], tuple[Array, FloatArray]]
"""A policy at work: true states to actions and their log probabilities (densities)."""


class Problem(ABC):
    """A decision process with known dynamics, a behaviour policy, a target policy and exact values.

    Subclasses say how episodes start (`_start`) and move (`_step`), how policies act in them (`_actor`) and what the
    log shows of their states (`_observe`).

    Parameters
    ----------
    horizon : int or None
        Number of steps where the time limit is part of the problem; episodes that reach it end with ``End.HORIZON``.
    max_steps : int or None
        Recording stops after that many steps: ``End.TRUNCATED``. None: at the horizon, or after 100 steps where there
        is none.
    default_gamma : float
        Discount factor of the problem's own question, in [0, 1].

    Attributes
    ----------
    name : str
    behavior, target : object
        Descriptions of the two policies: tables of probabilities, or parameters of a density.
    n_actions : int
        Number of discrete actions, or dimension of continuous ones.
    """

    behavior: Any
    target: Any
    n_actions: int

    def __init__(self, *, horizon: int | None, max_steps: int | None, default_gamma: float) -> None:
        self.horizon = None if horizon is None else integer(self.name, "horizon", horizon)
        limit = (self.horizon or DEFAULT_STEPS) if max_steps is None else max_steps
        self.max_steps = integer(self.name, "max_steps", limit)
        self.default_gamma = check_gamma(self.name, default_gamma)

    @property
    def name(self) -> str:
        """Name of the problem, under which `make` finds it."""
        return type(self).__name__

    @property
    def n_steps(self) -> int:
        """Number of steps after which an episode is over or its recording stops."""
        return self.max_steps if self.horizon is None else min(self.max_steps, self.horizon)

    @property
    def action_labels(self) -> IntArray | None:
        """Labels of the actions, 0 to n_actions - 1; None for continuous actions."""
        return np.arange(self.n_actions)

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Bounds of a single reward, or None where it is unbounded."""
        return None

    @abstractmethod
    def value(self, policy: Any, gamma: float | None = None) -> float:
        """Return the exact expected discounted sum of rewards of an episode under `policy`.

        Parameters
        ----------
        policy : Policy or description
            A policy that acts on the states the log shows, or a description like `behavior` and `target`.
        gamma : float, optional
            Discount factor in [0, 1]; default: `default_gamma`.

        Returns
        -------
        float
            The value up to the horizon, or of the endless process where there is none: `max_steps` does not enter.
        """

    def sample(self, n_episodes: int, policy: Any = None, random_state: RandomState = 0) -> LoggedDataset:
        """Draw a log of independent episodes, with its propensities.

        Parameters
        ----------
        n_episodes : int
        policy : Policy or description, optional
            Who acts; default: the problem's behaviour policy.
        random_state : int, Generator or None

        Returns
        -------
        LoggedDataset
            With known propensities and the states in which episodes end (NaN for terminal states that are not shown).
        """
        n_episodes = integer(f"{self.name}.sample", "n_episodes", n_episodes)
        rng = generator(random_state)
        actor = self._actor(self.behavior if policy is None else policy, rng)
        state = self._start(n_episodes, rng)
        alive, final, tape = np.arange(n_episodes), state.copy(), Tape()
        ends = np.full(n_episodes, End.HORIZON if self.n_steps == self.horizon else End.TRUNCATED, dtype=np.int8)
        for t in range(self.n_steps):
            action, log_prob = actor(state)
            reward, next_state, ended = self._step(t, state, action, rng)
            tape.add(alive, state, action, reward, log_prob)
            final[alive] = next_state
            if ended is not None and ended.any():
                ends[alive[ended]] = End.TERMINAL
                alive, next_state = alive[~ended], next_state[~ended]
                if len(alive) == 0:
                    break
            state = next_state
        return self._log(tape.in_order(n_episodes), ends, final)

    def _log(self, tape: tuple[IntArray, list[Array]], ends: npt.NDArray[np.int8], final: Array) -> LoggedDataset:
        lengths, (states, actions, rewards, log_prob) = tape
        return LoggedDataset.from_arrays(
            self._observe(states),
            actions,
            rewards,
            lengths=lengths,
            ends=ends,
            behavior_log_prob=log_prob,
            action_labels=self.action_labels,
            final_states=self._observe(final),
            reward_range=self.reward_range,
            horizon=self.horizon,
        )

    @abstractmethod
    def _start(self, n: int, rng: np.random.Generator) -> Array:
        """Draw the true states in which `n` episodes start."""

    @abstractmethod
    def _actor(self, policy: Any, rng: np.random.Generator) -> Actor:
        """Return a function that draws actions for true states."""

    @abstractmethod
    def _step(
        self, t: int, states: Array, actions: Array, rng: np.random.Generator
    ) -> tuple[FloatArray, Array, BoolArray | None]:
        """Return rewards, next true states, and which of them are terminal (None: no state is)."""

    @abstractmethod
    def _observe(self, states: Array) -> FloatArray:
        """Return what the log shows of true states, shape (n, d); NaN where it shows nothing."""

    def _gamma(self, gamma: float | None) -> float:
        return self.default_gamma if gamma is None else check_gamma(self.name, gamma)

    def __repr__(self) -> str:
        limit = f"horizon={self.horizon}" if self.horizon is not None else f"max_steps={self.max_steps}"
        return f"{self.name}({limit}, default_gamma={self.default_gamma})"


@dataclass
class Tape:
    """Steps of parallel episodes, recorded time by time and read out episode by episode."""

    episodes: list[IntArray] = field(default_factory=list)
    columns: list[tuple[Array, ...]] = field(default_factory=list)

    def add(self, episodes: IntArray, *columns: Array) -> None:
        """Record one step of the episodes that are still alive."""
        self.episodes.append(episodes)
        self.columns.append(columns)

    def in_order(self, n_episodes: int) -> tuple[IntArray, list[Array]]:
        """Return the length of every episode, and the columns ordered by episode and time."""
        episode = np.concatenate(self.episodes)
        lengths = np.bincount(episode, minlength=n_episodes)
        time = np.repeat(np.arange(len(self.episodes)), [len(part) for part in self.episodes])
        row = ragged.offsets_of(lengths)[episode] + time
        return lengths, [_scattered(np.concatenate(column), row) for column in zip(*self.columns, strict=True)]


def _scattered(values: Array, row: IntArray) -> Array:
    out = np.empty_like(values)
    out[row] = values
    return out
