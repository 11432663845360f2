"""Logs and true values from Gymnasium environments with discrete actions, many episodes at a time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ope import ragged
from ope.dataset import LoggedDataset
from ope.policy import Policy, RandomState, generator
from ope.problems.base import Tape
from ope.problems.checks import integer
from ope.schema import ColumnNames, End
from ope.validation import FloatArray, IntArray, check_gamma

Array = npt.NDArray[Any]
Encoder = Callable[[Sequence[Any]], FloatArray]
OWNER = "GymSimulator"
MAX_ENVS = 256
SEED_LIMIT = 2**31


@dataclass(frozen=True)
class GymSimulator:
    """A Gymnasium environment with discrete actions, as a source of logs and of true values.

    Parameters
    ----------
    env_id : str
        Name under which Gymnasium makes the environment. States must be vectors, or numbers from 0, which are shown
        one-hot.
    max_steps : int, optional
        Recording stops after that many steps: ``End.TRUNCATED``. Default: the environment's own limit.
    feature_names : tuple of str, optional
        Names of the entries of a state.
    options : mapping
        Arguments of the environment.

    Raises
    ------
    ImportError
        At first use: if Gymnasium is not installed.
    TypeError
        At first use: if states or actions are of another kind.

    Notes
    -----
    Episodes are played in groups, in which the policy acts in all episodes at once and each is played to its end.
    Collecting from environments that restart by themselves until there are enough episodes would prefer short ones.

    Examples
    --------
    >>> from ope.policies import FunctionPolicy
    >>> upright = FunctionPolicy(predict=lambda s: (s[:, 2] + s[:, 3] > 0).astype(int), action_labels=[0, 1])
    >>> GymSimulator("CartPole-v1", max_steps=50).sample(upright, n_episodes=3, random_state=0)
    LoggedDataset(3 episodes, 150 transitions, 4 features, actions [0, 1], 3 truncated, propensities known)
    """

    env_id: str
    max_steps: int | None = None
    feature_names: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

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
        run = self._run(policy, n_episodes, generator(random_state))
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
        """Play independent episodes and return their discounted sums of rewards.

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
        left = integer(OWNER, "n_episodes", n_episodes)
        envs = [self._make() for _ in range(min(left, MAX_ENVS))]
        encode, labels = _encoder(envs[0], self.env_id), _labels(envs[0], self.env_id)
        runs = []
        while left > 0:
            runs.append(_play(envs[:left], encode, labels, policy, rng))
            left -= len(runs[-1].lengths)
        for env in envs:
            env.close()
        return _Run.one_after_another(runs)

    def _make(self) -> Any:
        try:
            gymnasium: Any = importlib.import_module("gymnasium")
        except ImportError as error:
            raise ImportError(f'{OWNER} needs Gymnasium; install it with: pip install "ope-learn[demo]"') from error
        limit = None if self.max_steps is None else integer(OWNER, "max_steps", self.max_steps)
        try:
            return gymnasium.make(self.env_id, max_episode_steps=limit, disable_env_checker=True, **self.options)
        except gymnasium.error.UnregisteredEnv as error:
            raise ValueError(f"{OWNER}: `env_id` must be known to Gymnasium, got {self.env_id!r}: {error}") from error


@dataclass(frozen=True)
class _Run:
    """Complete episodes, one after another."""

    states: FloatArray
    actions: Array
    rewards: FloatArray
    lengths: IntArray
    ends: npt.NDArray[np.int8]
    final_states: FloatArray
    action_labels: IntArray

    @classmethod
    def one_after_another(cls, runs: list[_Run]) -> _Run:
        names = ("states", "actions", "rewards", "lengths", "ends", "final_states")
        joined = {name: np.concatenate([getattr(run, name) for run in runs]) for name in names}
        return cls(**joined, action_labels=runs[0].action_labels)


def _play(envs: list[Any], encode: Encoder, labels: IntArray, policy: Policy, rng: np.random.Generator) -> _Run:
    """Play one episode in each environment; the policy acts in all of them at once."""
    seeds = rng.integers(SEED_LIMIT, size=len(envs)).tolist()
    states = encode([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])
    alive, final, tape = np.arange(len(envs)), states.copy(), Tape()
    ends = np.full(len(envs), End.TRUNCATED, dtype=np.int8)
    while len(alive):
        actions = np.asarray(policy.sample(states, rng))
        steps = [envs[i].step(action) for i, action in zip(alive, actions.tolist(), strict=True)]
        observed, earned, terminated, truncated, _ = zip(*steps, strict=True)
        tape.add(alive, states, actions, np.array(earned, dtype=np.float64))
        states = encode(observed)
        final[alive] = states
        ended = np.array(terminated, dtype=bool)
        ends[alive[ended]] = End.TERMINAL
        going = ~(ended | np.array(truncated, dtype=bool))
        alive, states = alive[going], states[going]
    lengths, (states, actions, rewards) = tape.in_order(len(envs))
    return _Run(states, actions, rewards, lengths, ends, final, labels)


def _encoder(env: Any, env_id: str) -> Encoder:
    """Return a function that makes vectors of observations."""
    space = env.observation_space
    if hasattr(space, "n"):
        return partial(_one_hot, n=int(space.n), start=int(space.start))
    if len(space.shape or ()) == 1:
        return partial(np.array, dtype=np.float64)
    raise TypeError(
        f"{OWNER}: states of {env_id!r} must be vectors or numbers, got {space}; flatten them with a wrapper."
    )


def _one_hot(states: Sequence[int], n: int, start: int) -> FloatArray:
    return np.asarray(np.eye(n)[np.asarray(states) - start])


def _labels(env: Any, env_id: str) -> IntArray:
    space = env.action_space
    if not hasattr(space, "n"):
        raise TypeError(f"{OWNER}: actions of {env_id!r} must be discrete, got {space}; collect its log yourself.")
    return np.arange(int(space.n)) + int(space.start)
