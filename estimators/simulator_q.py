"""The Q function of a simulator, learned from a log that it makes: a control variate of doubly robust methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import inherit_gamma
from ope.estimators._given import NOT_LEARNED, own_value
from ope.estimators._q import QEstimator, QModel
from ope.estimators.lstdq import LSTDQ
from ope.policy import Policy, Requirement
from ope.schema import End
from ope.validation import BoolArray, FloatArray, check_integer

Simulator = Callable[[FloatArray, npt.NDArray[Any], np.random.Generator], tuple[Any, Any, Any]]
OWNER = "SimulatorQ.fit"

# -------------------------------------------------------------------- mathematics


def simulated_step(
    simulator: Simulator, states: FloatArray, actions: npt.NDArray[Any], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Ask a simulator for a step of several episodes, and check what it says.

    Examples
    --------
    >>> still = lambda states, actions, rng: (np.ones(len(states)), states, None)
    >>> simulated_step(still, np.zeros((1, 2)), np.array([0]), np.random.default_rng(0))
    (array([1.]), array([[0., 0.]]), array([False]))
    """
    said = simulator(states, actions, rng)
    if not isinstance(said, tuple) or len(said) != 3:
        raise TypeError(
            f"{OWNER}: `simulator` must return three things, rewards, next states and what ended, got {type(said).__name__}; return (rewards, states, None) "
            "where nothing ends."
        )
    n = len(states)
    rewards, following = (np.asarray(part, dtype=np.float64) for part in said[:2])
    ended = np.zeros(n, dtype=bool) if said[2] is None else np.asarray(said[2])
    shapes = (rewards.shape, following.shape, ended.shape)
    if shapes != ((n,), states.shape, (n,)) or ended.dtype != bool:
        raise ValueError(
            f"{OWNER}: `simulator` must return rewards {(n,)}, states {states.shape} and truth values {(n,)}, got {shapes} of {ended.dtype}; correct it."
        )
    if not (np.isfinite(rewards).all() and np.isfinite(following[~ended]).all()):
        raise ValueError(f"{OWNER}: `simulator` must return finite numbers, got others; bound its states and rewards.")
    return rewards, following, ended


def replay(data: LoggedDataset, simulator: Simulator, n_replays: int, rng: np.random.Generator) -> LoggedDataset:
    """Play the logged actions in a simulator from the logged first states, each episode several times, one after another.

    Parameters
    ----------
    data : LoggedDataset
    simulator : callable
    n_replays : int
    rng : Generator

    Returns
    -------
    LoggedDataset
        With known final states. What the simulator has not ended when the logged actions are over is truncated, or at the horizon.
    """
    episode = np.repeat(np.arange(data.n_episodes), n_replays)
    labels = data.actions if data.action_labels is None else data.action_labels[data.actions]
    current, alive = data.states[data.offsets[episode]], np.arange(len(episode))
    over = np.where(data.lengths == data.horizon, End.HORIZON, End.TRUNCATED) if data.horizon else End.TRUNCATED
    ends = np.broadcast_to(over, data.n_episodes)[episode].astype(np.int8)
    final, tape, t = np.full(current.shape, np.nan), [], 0
    while len(alive):
        actions = labels[data.offsets[episode[alive]] + t]
        rewards, following, ended = simulated_step(simulator, current, actions, rng)
        tape.append((alive, current, actions, rewards))
        t += 1
        ends[alive[ended]] = End.TERMINAL
        over_now = ~ended & (data.lengths[episode[alive]] == t)
        final[alive[over_now]] = following[over_now]
        on = ~ended & ~over_now
        alive, current = alive[on], following[on]
    return _log_of(data, tape, ends, final)


def _log_of(data: LoggedDataset, tape: list[Any], ends: npt.NDArray[np.int8], final: FloatArray) -> LoggedDataset:
    which, states, actions, rewards = (np.concatenate(column) for column in zip(*tape, strict=True))
    order = np.argsort(which, kind="stable")
    return LoggedDataset.from_arrays(
        states[order],
        actions[order],
        rewards[order],
        lengths=np.bincount(which),
        ends=ends,
        final_states=final,
        horizon=data.horizon,
        action_labels=data.action_labels,
        continuous=not data.discrete,
        feature_names=list(data.feature_names),
    )


# -------------------------------------------------------------------- estimator


class SimulatorQ(QEstimator):
    """The Q function of the candidate in a simulator that the user has.

    Its own value is refused: nothing of the log speaks for it. It is a control variate,
    ``EfficientDoublyRobust(q=SimulatorQ(...))``: with right propensities the value is then consistent, and the interval holds as the log
    grows, however wrong the simulator is.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    simulator : callable
        ``simulator(states, actions, rng)`` returns rewards (n,), next states (n, d) and what ended (n,), or None for nothing; actions
        are labels, or floats of shape (n, k). A process that changes in time needs the time among its states.
    q : Q-based estimator or None
        What learns from the simulated log: `LSTDQ` (default), `FittedQEvaluation`, ...; it inherits gamma.
    n_replays : int
        Simulated episodes for each logged one, at least 1.
    random_state : int

    Raises
    ------
    TypeError, ValueError
        If `simulator` returns something else, or the log has an action mask.

    Notes
    -----
    The logged actions are replayed in the simulator from the logged first states, so that the simulated log holds the actions
    that the real one holds; its rewards and transitions are those of the simulator alone. With Qhat from the episodes of other
    folds, X_i = Vhat(s_0) + sum_t gamma^t W_t (r_t + gamma Vhat(s_{t+1}) - Qhat(s_t, a_t)) has the mean J for every simulator
    (prediction-powered inference for sequences of decisions). Simulated episodes from every row in place of a learned Q were
    tried: importance weights multiply their noise, and the value was less precise than without a simulator.

    References
    ----------
    Mandyam, Meng, Gao, Sun, Schwager, Engelhardt, Brunskill (2025). PERRY: policy evaluation with confidence intervals using
    auxiliary data. arXiv 2507.20068.
    Jiang, Li (2016). Doubly robust off-policy value evaluation for reinforcement learning. ICML.

    Examples
    --------
    >>> from ope.estimators import EfficientDoublyRobust
    >>> from ope.policies import TabularPolicy
    >>> from ope.problems import RiverSwim
    >>> def swim(states, actions, rng):  # knows the river, but no current
    ...     place = states.argmax(axis=1) + np.where(actions == 1, 1, -1)
    ...     return (place == 6) * 1.0, np.eye(6)[place.clip(0, 5)], None
    >>> problem = RiverSwim(horizon=10)
    >>> estimator = EfficientDoublyRobust(gamma=1.0, q=SimulatorQ(simulator=swim))
    >>> low, high = estimator.fit(problem.sample(300), TabularPolicy(problem.target)).estimate().confidence_interval()
    >>> low < problem.value(problem.target, 1.0) < high
    True
    """

    requires: ClassVar[Requirement] = LSTDQ.requires
    laws = NOT_LEARNED

    def __init__(
        self,
        *,
        gamma: float | None = None,
        simulator: Simulator | None = None,
        q: QEstimator | None = None,
        n_replays: int = 10,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.simulator = simulator
        self.q = q
        self.n_replays = n_replays
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_integer(owner, "n_replays", self.n_replays, 1, "10 is usual")
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")
        if not callable(self.simulator) or isinstance(self.simulator, type):
            raise TypeError(
                f"{owner}: `simulator` must be a callable simulator(states, actions, rng), got {self.simulator!r}; pass one that returns rewards, next states and what ended."
            )
        if self.q is not None and not isinstance(self.q, QEstimator):
            raise TypeError(
                f"{owner}: `q` must be a Q-based estimator (LSTDQ, FittedQEvaluation) or None, got {type(self.q).__name__}; pass one."
            )
        self._nested()._validate()
        if self._nested().needs_propensities:
            raise ValueError(
                f"{owner}: `q` must not read propensities, got {self.q!r}: a simulated log has none; pass LSTDQ() without a trace."
            )

    @property
    def stationary(self) -> bool:
        """Whether a horizon end is a truncation to the nested method."""
        return bool(getattr(self.q, "stationary", False))

    def _nested(self) -> QEstimator:
        nested = inherit_gamma(type(self).__name__, self.q if self.q is not None else LSTDQ(), self._gamma)
        assert isinstance(nested, QEstimator)
        return nested

    def _requirement(self, discrete: bool) -> Requirement:
        return self.q._requirement(discrete) if isinstance(self.q, QEstimator) else super()._requirement(discrete)

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> QModel:
        """Make a log and learn from it."""
        assert self.simulator is not None
        if data.action_mask is not None:
            raise ValueError(
                f"{type(self).__name__}.fit: `data` must leave all actions available, got an action mask: nobody knows what is available in simulated states; use GivenQ, "
                "ModelBased or LSTDQ."
            )
        order = np.argsort(data.episode_keys, kind="stable")  # draws follow identifiers, not the order of episodes
        seed = self.random_state, int(np.bitwise_xor.reduce(data.episode_keys))
        log = replay(data.select(order), self.simulator, self.n_replays, np.random.default_rng(seed))
        weight = np.repeat(episode_weight[order], self.n_replays)
        return self._nested().fit_q(log, policy, weight / weight.mean())

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        return own_value(self, data, policy, name, weight, self.stationary or data.horizon is None)
