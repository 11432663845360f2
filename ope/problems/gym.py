"""Logs and true values from Gymnasium environments with discrete actions, all episodes at once."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ope import ragged
from ope.dataset import LoggedDataset
from ope.policy import Policy, RandomState, generator
from ope.problems.checks import integer
from ope.schema import ColumnNames, End
from ope.validation import BoolArray, FloatArray, IntArray, check_gamma

Array = npt.NDArray[Any]
OWNER = "GymSimulator"
SEED_LIMIT = 2**31


@dataclass(frozen=True)
class GymSimulator:
    """A Gymnasium environment with vectors as states and discrete actions, as a source of logs and of true values.

    Parameters
    ----------
    env_id : str
        Name under which Gymnasium makes the environment.
    max_steps : int
        Recording stops after that many steps, or when the environment's own time limit says so: ``End.TRUNCATED``.
    feature_names : tuple of str, optional
        Names of the entries of a state.

    Raises
    ------
    ImportError
        At first use: if Gymnasium is not installed.
    TypeError
        At first use: if states are no vectors or actions are not discrete.

    Notes
    -----
    Every episode has an environment of its own in one vector environment, so that long episodes are as likely to be
    complete as short ones.

    Examples
    --------
    >>> from ope.policies import FunctionPolicy
    >>> upright = FunctionPolicy(predict=lambda s: (s[:, 2] + s[:, 3] > 0).astype(int), action_labels=[0, 1])
    >>> GymSimulator("CartPole-v1", max_steps=50).sample(upright, n_episodes=3, random_state=0)
    LoggedDataset(3 episodes, 150 transitions, 4 features, actions [0, 1], 3 truncated, propensities known)
    """

    env_id: str
    max_steps: int = 500
    feature_names: tuple[str, ...] | None = None

    def sample(self, policy: Policy, n_episodes: int, random_state: RandomState = 0) -> LoggedDataset:
        """Draw a log of independent episodes, with its propensities and the states in which episodes end.

        Parameters
        ----------
        policy : Policy
            Who acts; it must offer ``sample`` and ``logged_prob``.
        n_episodes : int
        random_state : int, Generator or None

        Returns
        -------
        LoggedDataset
        """
        rng = generator(random_state)
        run = self._run(policy, n_episodes, rng)
        return LoggedDataset.from_arrays(
            run.states,
            run.actions,
            run.rewards,
            lengths=run.lengths,
            ends=run.ends,
            behavior_prob=np.exp(policy.log_prob(run.states, run.actions)),
            action_labels=run.action_labels,
            final_states=run.final_states,
            feature_names=self.feature_names,
            columns=self._columns(run.states.shape[1]),
        )

    def returns(self, policy: Policy, n_episodes: int, *, gamma: float, random_state: RandomState = 0) -> FloatArray:
        """Play independent episodes and return their discounted sums of rewards up to `max_steps`.

        Parameters
        ----------
        policy : Policy
            Who acts; it must offer ``sample``.
        n_episodes : int
        gamma : float
            Discount factor in [0, 1].
        random_state : int, Generator or None

        Returns
        -------
        ndarray of shape (n_episodes,)
        """
        check_gamma(OWNER, gamma)
        run = self._run(policy, n_episodes, generator(random_state))
        offsets = ragged.offsets_of(run.lengths)
        return ragged.segment_sum(gamma ** ragged.step_index(offsets) * run.rewards, offsets)

    def _columns(self, n_features: int) -> ColumnNames:
        names = self.feature_names or [f"state_{j}" for j in range(n_features)]
        return ColumnNames(behavior_prob="behavior_prob", next_states=tuple(f"next_{name}" for name in names))

    def _run(self, policy: Policy, n_episodes: int, rng: np.random.Generator) -> _Run:
        env = _make(self.env_id, integer(OWNER, "n_episodes", n_episodes))
        try:
            labels = _check_spaces(env, self.env_id)
            return _play(env, labels, policy, integer(OWNER, "max_steps", self.max_steps), rng)
        finally:
            env.close()


@dataclass
class _Run:
    """Finished episodes, one after another."""

    states: FloatArray
    actions: Array
    rewards: FloatArray
    lengths: IntArray
    ends: npt.NDArray[np.int8]
    final_states: FloatArray
    action_labels: IntArray


@dataclass
class _Tape:
    """What all environments showed at every step, whether their episode went on or was over."""

    alive: list[BoolArray] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)
    rewards: list[Array] = field(default_factory=list)

    def add(self, alive: BoolArray, states: Array, actions: Array, rewards: Array) -> None:
        self.alive.append(alive)
        self.states.append(states)
        self.actions.append(actions)
        self.rewards.append(rewards)

    def by_episode(self) -> tuple[IntArray, Array, Array, Array]:
        """Return the lengths of the episodes, and their states, actions and rewards one after another."""
        alive = np.stack(self.alive, axis=1)
        columns = (np.stack(column, axis=1)[alive] for column in (self.states, self.actions, self.rewards))
        return alive.sum(axis=1), *columns


def _play(env: Any, labels: IntArray, policy: Policy, max_steps: int, rng: np.random.Generator) -> _Run:
    states, _ = env.reset(seed=int(rng.integers(SEED_LIMIT)))
    n_episodes = len(states)
    tape, final = _Tape(), np.array(states, dtype=np.float64)
    alive, ends = np.ones(n_episodes, dtype=bool), np.full(n_episodes, End.TRUNCATED, dtype=np.int8)
    for _ in range(max_steps):
        actions = np.full(n_episodes, labels[0])
        actions[alive] = policy.sample(np.asarray(states[alive], dtype=np.float64), rng)
        following, rewards, terminated, truncated, _ = env.step(actions)
        tape.add(alive, np.array(states, dtype=np.float64), actions, np.array(rewards, dtype=np.float64))
        final[alive] = following[alive]
        ends[alive & terminated] = End.TERMINAL
        # Environments whose episode is over restart by themselves; what they show then is left out.
        alive, states = alive & ~(terminated | truncated), following
        if not alive.any():
            break
    lengths, *columns = tape.by_episode()
    return _Run(*columns, lengths=lengths, ends=ends, final_states=final, action_labels=labels)


def _make(env_id: str, n_envs: int) -> Any:
    gymnasium = _gymnasium()
    try:
        spec = gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        raise ValueError(f"{OWNER}: `env_id` must be known to Gymnasium, got {env_id!r}: {error}") from error
    mode = "sync" if spec.vector_entry_point is None else "vector_entry_point"
    return gymnasium.make_vec(env_id, num_envs=n_envs, vectorization_mode=mode)


def _gymnasium() -> Any:
    try:
        return importlib.import_module("gymnasium")
    except ImportError as error:
        raise ImportError(f'{OWNER} needs Gymnasium; install it: pip install "ope-learn[demo]"') from error


def _check_spaces(env: Any, env_id: str) -> IntArray:
    """Return the labels of the actions."""
    states, actions = env.single_observation_space, env.single_action_space
    if len(states.shape or ()) != 1 or not hasattr(actions, "n"):
        raise TypeError(
            f"{OWNER}: `env_id` must name an environment whose states are vectors and whose actions are discrete, got "
            f"{env_id!r} with {states} and {actions}; wrap it, or collect its log yourself."
        )
    return np.arange(int(actions.n)) + int(getattr(actions, "start", 0))
