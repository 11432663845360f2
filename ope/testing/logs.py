"""Small random logs on which plug-ins are checked, each with the policy that logged it and candidates for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import numpy.typing as npt

from ope import ragged
from ope.dataset import BLOCK_ROWS, LoggedDataset
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.policy import Policy
from ope.schema import End
from ope.validation import FloatArray, IntArray

# Probabilities of three actions in three states: ratios stay below 1.7, so that a usual clip changes nothing.
BEHAVIOR: FloatArray = np.array([[0.40, 0.30, 0.30], [0.35, 0.30, 0.35], [0.30, 0.40, 0.30]])
CANDIDATE: FloatArray = np.array([[0.25, 0.35, 0.40], [0.50, 0.30, 0.20], [0.30, 0.20, 0.50]])
OTHER: FloatArray = np.array([[0.45, 0.35, 0.20], [0.30, 0.45, 0.25], [0.40, 0.40, 0.20]])
ABSORBED: FloatArray = np.array([[0.20, 0.50, 0.30]])
LABELS = ("hold", "left", "right")
SLOPES: FloatArray = np.array([[0.4, -0.2, 0.0], [-0.3, 0.1, 0.3]])

DISCRETE_KINDS = ("terminal", "horizon", "mixed")
CONTINUOUS_KINDS = ("continuous", "continuous_horizon", "deterministic")
KINDS = (*DISCRETE_KINDS, *CONTINUOUS_KINDS)


@dataclass(frozen=True)
class Case:
    """A log, the policy that logged it, and two candidates."""

    kind: str
    seed: int
    log: LoggedDataset
    behavior: Policy
    candidate: Policy
    other: Policy


def softmax_of_states(states: FloatArray, slopes: FloatArray) -> FloatArray:
    """Return action probabilities proportional to exp(states @ slopes), shape (n, n_actions).

    Examples
    --------
    >>> softmax_of_states(np.zeros((1, 2)), SLOPES).round(3)
    array([[0.333, 0.333, 0.333]])
    """
    logits = np.exp(states @ slopes)
    return np.asarray(logits / logits.sum(axis=1, keepdims=True))


def linear_action(states: FloatArray) -> FloatArray:
    """Return the action 0.5 s + 0.2 of the deterministic candidate, shape (n, 1).

    Examples
    --------
    >>> linear_action(np.array([[2.0]]))
    array([[1.2]])
    """
    return 0.5 * states[:, :1] + 0.2


def make_case(kind: str, seed: int = 0, n_episodes: int = 61, longest: int = 5) -> Case:
    """Draw a log of independent episodes.

    Parameters
    ----------
    kind : str
        "terminal" or "horizon": one-hot states, ends of that kind. "mixed": states of two features, ends of all three
        kinds. "continuous", "continuous_horizon": a continuous action, terminal or horizon ends. "deterministic": the
        candidates are deterministic functions.
    seed : int
    n_episodes : int
    longest : int
        Length of the longest episode.

    Examples
    --------
    >>> make_case("terminal", n_episodes=3).log.n_episodes
    3
    """
    rng = np.random.default_rng([seed, KINDS.index(kind), longest])
    lengths, ends = _shape(kind, rng, n_episodes, longest)
    if kind in CONTINUOUS_KINDS:
        return _continuous(kind, seed, rng, lengths, ends)
    if kind == "mixed":
        return _features(seed, rng, lengths, ends, longest)
    return _tabular(kind, seed, rng, lengths, ends)


def _shape(kind: str, rng: np.random.Generator, n: int, longest: int) -> tuple[IntArray, npt.NDArray[np.int8]]:
    lengths = rng.integers(1, longest + 1, size=n)
    if kind in ("horizon", "continuous_horizon"):
        return np.full(n, longest), np.full(n, End.HORIZON, np.int8)
    if kind != "mixed":
        return lengths, np.full(n, End.TERMINAL, np.int8)
    ends = rng.choice([End.TERMINAL, End.HORIZON, End.TRUNCATED], size=n).astype(np.int8)
    return np.where(ends == End.HORIZON, longest, lengths), ends


def _names(seed: int, n: int) -> list[str]:
    return [f"episode {seed}-{i}" for i in range(n)]


def _draw(probs: FloatArray, rng: np.random.Generator) -> IntArray:
    return np.asarray((rng.random(len(probs))[:, None] > probs.cumsum(axis=1)[:, :-1]).sum(axis=1), dtype=np.int64)


def _tabular(kind: str, seed: int, rng: np.random.Generator, lengths: IntArray, ends: npt.NDArray[np.int8]) -> Case:
    n = int(lengths.sum())
    s = rng.integers(0, 3, size=n)
    a = _draw(BEHAVIOR[s], rng)
    r = 1.0 + 0.5 * s - 0.7 * a + rng.normal(size=n)
    log = _one_hot_log(3, s, a, r, lengths, ends, rng.integers(0, 3, size=len(lengths)), BEHAVIOR[s, a], seed)
    return Case(kind, seed, log, TabularPolicy(BEHAVIOR), TabularPolicy(CANDIDATE), TabularPolicy(OTHER))


def _one_hot_log(
    width: int,
    s: IntArray,
    a: IntArray,
    r: FloatArray,
    lengths: IntArray,
    ends: npt.NDArray[np.int8],
    final: IntArray,
    prob: FloatArray,
    seed: int,
) -> LoggedDataset:
    eye = np.eye(width)
    final_states = np.where((ends == End.TERMINAL)[:, None], np.nan, eye[final])
    return LoggedDataset.from_arrays(
        eye[s],
        np.array(LABELS)[a],
        r,
        lengths=lengths,
        ends=ends,
        behavior_prob=prob,
        action_labels=LABELS,
        final_states=final_states,
        episode_ids=_names(seed, len(lengths)),
    )


def _features(seed: int, rng: np.random.Generator, lengths: IntArray, ends: npt.NDArray[np.int8], horizon: int) -> Case:
    n, n_episodes = int(lengths.sum()), len(lengths)
    states = rng.normal([0.0, 1.0], size=(n, 2))
    probs = softmax_of_states(states, SLOPES)
    a = _draw(probs, rng)
    log = LoggedDataset.from_arrays(
        states,
        np.array(LABELS)[a],
        1.0 + states[:, 0] - 0.7 * a + rng.normal(size=n),
        lengths=lengths,
        ends=ends,
        behavior_prob=probs[np.arange(n), a],
        action_labels=LABELS,
        final_states=np.where((ends == End.TERMINAL)[:, None], np.nan, rng.normal(size=(n_episodes, 2))),
        feature_names=["age", "pulse"],
        episode_ids=_names(seed, n_episodes),
        horizon=horizon,
    )
    behavior, candidate, other = (
        FunctionPolicy(predict_proba=partial(softmax_of_states, slopes=slopes), action_labels=LABELS)
        for slopes in (SLOPES, 1.5 * SLOPES, -0.5 * SLOPES)
    )
    return Case("mixed", seed, log, behavior, candidate, other)


def _continuous(kind: str, seed: int, rng: np.random.Generator, lengths: IntArray, ends: npt.NDArray[np.int8]) -> Case:
    n, n_episodes = int(lengths.sum()), len(lengths)
    states = rng.normal(size=(n, 1))
    behavior = GaussianPolicy([[0.4]], 1.0)
    actions = behavior.sample(states, rng)
    log = LoggedDataset.from_arrays(
        states,
        actions,
        1.0 + states[:, 0] - 0.5 * actions[:, 0] ** 2 + 0.3 * rng.normal(size=n),
        lengths=lengths,
        ends=ends,
        behavior_log_prob=behavior.log_prob(states, actions),
        continuous=True,
        final_states=np.where((ends == End.TERMINAL)[:, None], np.nan, rng.normal(size=(n_episodes, 1))),
        episode_ids=_names(seed, n_episodes),
    )
    if kind == "deterministic":
        return Case(
            kind, seed, log, behavior, FunctionPolicy(predict=linear_action), FunctionPolicy(predict=np.negative)
        )
    return Case(kind, seed, log, behavior, GaussianPolicy([[0.5]], 0.9, intercept=0.1), GaussianPolicy([[0.3]], 0.8))


# -------------------------------------------------------------------- the same log in other forms


def padded_pair(seed: int, n_episodes: int = 61) -> tuple[Case, Case]:
    """Return a log of terminal episodes, and the same with steps in an absorbing state of reward 0 added to some.

    In the absorbing state all policies agree, so that its ratios are 1.
    """
    rng = np.random.default_rng([seed, 17])
    lengths = rng.integers(1, 4, size=n_episodes)
    ends = np.full(n_episodes, End.TERMINAL, np.int8)
    n = int(lengths.sum())
    s = rng.integers(0, 3, size=n)
    tables = [np.vstack([table, ABSORBED]) for table in (BEHAVIOR, CANDIDATE, OTHER)]
    a, final = _draw(tables[0][s], rng), np.zeros(n_episodes, np.int64)
    r = 1.0 + 0.5 * s - 0.7 * a + rng.normal(size=n)
    short = _one_hot_log(4, s, a, r, lengths, ends, final, tables[0][s, a], seed)
    added = rng.integers(0, 4, size=n_episodes)
    old = np.arange(n) + np.repeat(ragged.offsets_of(added)[:-1], lengths)
    size = n + int(added.sum())
    s_long, r_long = np.full(size, 3), np.zeros(size)
    a_long = _draw(tables[0][s_long], rng)
    s_long[old], a_long[old], r_long[old] = s, a, r
    prob = tables[0][s_long, a_long]
    long = _one_hot_log(4, s_long, a_long, r_long, lengths + added, ends, final, prob, seed)
    policies = [TabularPolicy(table) for table in tables]
    return Case("terminal", seed, short, *policies), Case("terminal", seed, long, *policies)


class ShardedLog(LoggedDataset):
    """A log that is read in blocks of a few rows, as one larger than memory is."""

    shard_rows = 40

    def blocks(self, max_rows: int = BLOCK_ROWS) -> Iterator[LoggedDataset]:
        """Yield groups of whole episodes with at most `shard_rows` rows, or one longer episode."""
        return super().blocks(min(max_rows, self.shard_rows))


def sharded(log: LoggedDataset) -> ShardedLog:
    """Return the same log, read in small blocks.

    Examples
    --------
    >>> len(list(sharded(make_case("horizon", n_episodes=40, longest=4).log).blocks()))
    4
    """
    return ShardedLog(**{column.name: getattr(log, column.name) for column in fields(log)})
