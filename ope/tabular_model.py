"""`model_bootstrap`: refit an estimator on logs simulated from the tabular model of the log, for small numbers of episodes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import OffPolicyEstimator
from ope.policy import Policy
from ope.schema import BehaviorSource, ColumnNames, End
from ope.validation import BoolArray, FloatArray, IntArray, check_integer

__all__ = ["TabularModel", "model_bootstrap"]

MIN_VISITS = 2.0
LONGEST = 10  # times the longest logged episode: where a simulated one without a limit of its own is cut


@dataclass(frozen=True)
class TabularModel:
    """The maximum-likelihood model of a log with few distinct states, under the behaviour that it shows.

    A step of the model is a logged row drawn uniformly among the rows of the current cell: action, reward, next state and
    termination come together, with the frequencies of the log.

    Parameters
    ----------
    data : LoggedDataset
    cell : ndarray of shape (n,)
        Cell of each row: its state, or its state and step where the model is time-indexed.
    next_cell : ndarray of shape (n,)
        Cell that follows a row; -1 where nothing follows: a terminal state, the horizon, or a state without rows.
    order, starts : ndarray
        Rows by cell, and where each cell begins.
    limits : ndarray of shape (n_episodes,)
        Steps after which an episode ends at the latest.

    Examples
    --------
    >>> log = LoggedDataset.from_arrays(
    ...     [[0.0], [1.0], [0.0], [1.0]], [0, 1, 0, 1], [0.0, 1.0, 0.0, 2.0], lengths=[2, 2], ends="terminal"
    ... )
    >>> TabularModel.of(log).simulate(np.random.default_rng(0)).states.ravel()
    array([0., 1., 0., 1.])
    """

    data: LoggedDataset
    cell: IntArray
    next_cell: IntArray
    order: IntArray
    starts: IntArray
    limits: IntArray

    @classmethod
    def of(cls, data: LoggedDataset, stationary: bool | None = None) -> TabularModel:
        """Fit the model.

        Parameters
        ----------
        data : LoggedDataset
        stationary : bool, optional
            Whether a state is the same at all steps; default: unless the log has a horizon.

        Raises
        ------
        ValueError
            If states do not repeat, or actions are continuous.
        """
        timed = _is_timed(data, stationary)
        cell, next_cell = _cells(data, timed)
        n_cells = int(cell.max()) + 1
        if not data.discrete or data.n_transitions < MIN_VISITS * n_cells:
            what = "continuous actions" if not data.discrete else f"{n_cells} distinct states in {len(cell)} rows"
            raise ValueError(
                f"model_bootstrap: `data` must be tabular, with discrete actions and states that repeat (at least "
                f"{MIN_VISITS:g} rows for each{', and for each step of the horizon' if timed else ''}), got {what}; use "
                "ope.bootstrap, which resamples whole episodes" + (", or stationary=True." if timed else ".")
            )
        starts = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=n_cells))])
        return cls(data, cell, next_cell, np.argsort(cell, kind="stable"), starts, _limits(data))

    def simulate(self, rng: np.random.Generator) -> LoggedDataset:
        """Draw a log of as many episodes, each with the limit of a logged one."""
        rows, lengths = self._paths(rng)
        last = rows[np.cumsum(lengths) - 1]
        return self._log(rows, lengths, last, self._ends(last, lengths))

    def _paths(self, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return the drawn rows, episode after episode, and the number of each."""
        n = self.data.n_episodes
        lengths, alive, parts = np.zeros(n, dtype=np.int64), np.arange(n), []
        cell = self.cell[self.data.offsets[rng.integers(0, n, n)]]
        while len(alive):
            first, end = self.starts[cell], self.starts[cell + 1]
            row = self.order[first + (rng.random(len(alive)) * (end - first)).astype(np.int64)]
            parts.append((alive, row))
            lengths[alive] += 1
            cell = self.next_cell[row]
            on = (cell >= 0) & (lengths[alive] < self.limits[alive])
            alive, cell = alive[on], cell[on]
        episode, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        return rows[np.argsort(episode, kind="stable")], lengths

    def _ends(self, last: IntArray, lengths: IntArray) -> IntArray:
        data = self.data
        terminal = _terminal_rows(data)[last]
        at_horizon = lengths == data.horizon if data.horizon is not None else np.zeros(len(last), dtype=bool)
        return np.where(terminal, End.TERMINAL, np.where(at_horizon, End.HORIZON, End.TRUNCATED)).astype(np.int64)

    def _log(self, rows: IntArray, lengths: IntArray, last: IntArray, ends: IntArray) -> LoggedDataset:
        # Rows of a log that was checked need no second check, which would cost more than the simulation.
        data, (finals, masks), offsets = self.data, self._after, ragged.offsets_of(lengths)
        log_prob, final = self._log_prob, finals[last]
        return data.replace(
            states=data.states[rows],
            actions=data.actions[rows],
            rewards=data.rewards[rows],
            offsets=offsets,
            ends=ends.astype(np.int8),
            timesteps=ragged.step_index(offsets),
            behavior_log_prob=None if log_prob is None else log_prob[rows],
            cross_fitted_log_prob=None,
            behavior_source=None if log_prob is None else BehaviorSource(),
            action_mask=None if data.action_mask is None else data.action_mask[rows],
            final_states=None if np.isnan(final).all() else final,
            final_action_mask=None if masks is None else masks[last],
            extras=None if data.extras is None else data.extras.iloc[rows].reset_index(drop=True),
            final_extras=None,
            columns=ColumnNames(),
            n_dropped_rows=0,
            layout=None,
        )

    @cached_property
    def _log_prob(self) -> FloatArray | None:
        """Log propensities of the logged actions under the behaviour that the model has; None if the log has none."""
        data = self.data
        if data.behavior_log_prob is None:
            return None
        counts = np.zeros((len(self.starts) - 1, data.n_actions))
        np.add.at(counts, (self.cell, data.actions), 1.0)
        return np.asarray(np.log((counts / counts.sum(axis=1, keepdims=True))[self.cell, data.actions]))

    @cached_property
    def _after(self) -> tuple[FloatArray, BoolArray | None]:
        """State and action mask after each row, NaN where the log does not tell."""
        data = self.data
        last, following = data.offsets[1:] - 1, np.full(data.states.shape, np.nan)
        following[:-1] = data.states[1:]
        following[last] = np.nan if data.final_states is None else data.final_states
        if data.action_mask is None:
            return following, None
        masks = np.ones(data.action_mask.shape, dtype=bool)
        masks[:-1] = data.action_mask[1:]
        masks[last] = True if data.final_action_mask is None else data.final_action_mask
        return following, masks


def model_bootstrap(
    estimator: OffPolicyEstimator,
    data: LoggedDataset,
    policy: Policy,
    *,
    n_replicates: int = 200,
    stationary: bool | None = None,
    random_state: int = 0,
) -> Estimate:
    """Refit an estimator on logs simulated from the tabular model of the log, and return its estimate with the replicates.

    Parameters
    ----------
    estimator : OffPolicyEstimator
    data : LoggedDataset
        With discrete actions and states that repeat.
    policy : Policy
    n_replicates : int
        At least 1.
    stationary : bool, optional
        Whether the model treats a state as the same at all steps; default: unless the log has a horizon, as Q-based
        estimators do.
    random_state : int

    Returns
    -------
    Estimate
        With `replicates`; ask it for ``confidence_interval(method="percentile")``.

    Raises
    ------
    ValueError
        If the log is not tabular.

    Notes
    -----
    The model is the maximum-likelihood one: start states, and action, reward, next state and termination in each state
    (and step, with a horizon) with the frequencies of the log. A replicate simulates as many episodes; one that was
    truncated ends at its length at the latest, one that was not at the horizon, or else at the longest truncated length.
    Propensities of a simulated log are those of the fitted behaviour. Unlike the bootstrap over episodes, replicates recombine
    steps of different episodes, so that few episodes say more about the spread: meant for tabular and linear methods
    with fewer than about 100 episodes. Assumes what the model does, that the state is Markov; where it is not (hidden
    states), use `ope.bootstrap`.

    References
    ----------
    arXiv:2605.12410, on the model-based bootstrap for off-policy evaluation.

    Examples
    --------
    >>> from ope.estimators import LSTDQ
    >>> from ope.problems import RiverSwim
    >>> problem = RiverSwim(horizon=5)
    >>> from ope.policies import TabularPolicy
    >>> policy = TabularPolicy(problem.target, state_code=problem.state_code)
    >>> estimate = model_bootstrap(LSTDQ(gamma=0.95), problem.sample(40), policy, n_replicates=50)
    >>> estimate.replicates.shape
    (50,)
    """
    check_integer("model_bootstrap", "n_replicates", n_replicates, 1, "200 is usual")
    if isinstance(policy, Mapping):
        raise TypeError(
            "model_bootstrap: `policy` must be one policy, got a mapping; call it for each: equal seeds give equal logs."
        )
    model = TabularModel.of(data, stationary)
    estimate: Estimate = copy.deepcopy(estimator).fit(data, policy).estimate()
    values = np.empty(n_replicates)
    for b, seed in enumerate(np.random.SeedSequence(random_state).spawn(n_replicates)):
        simulated = model.simulate(np.random.default_rng(seed))
        values[b] = copy.deepcopy(estimator).fit(simulated, policy).estimate().value
    plan = "timed" if _is_timed(data, stationary) else "stationary"
    resample_id = f"{data.data_id}-{plan} model-{random_state}-{n_replicates}"
    return replace(estimate, replicates=values, resample_id=resample_id)


def _is_timed(data: LoggedDataset, stationary: bool | None) -> bool:
    return data.horizon is not None if stationary is None else not stationary


def _cells(data: LoggedDataset, timed: bool) -> tuple[IntArray, IntArray]:
    """Return the cell of each row and the cell that follows it, -1 where nothing does."""
    known = data.final_known()
    # A time-indexed model ends at the horizon; to a stationary one the process goes on there.
    ended = data.ends != End.TRUNCATED if timed else data.ends == End.TERMINAL
    if not (known | ended).all():
        raise ValueError(
            f"model_bootstrap: with `stationary` the states after the horizon must be known, got none for {int((~(known | ended)).sum())} "
            "episodes; pass next_states= or final_states= to the constructor of the log, or leave `stationary` out."
        )
    finals = data.final_states[known] if data.final_states is not None else data.states[:0]
    codes = np.unique(np.concatenate([data.states, finals]), axis=0, return_inverse=True)[1].reshape(-1)
    state, final = codes[: data.n_transitions], np.full(data.n_episodes, -1)
    final[known] = codes[data.n_transitions :]
    step = ragged.step_index(data.offsets) if timed else np.zeros(data.n_transitions, dtype=np.int64)
    raw, following = step * (codes.max() + 1) + state, np.empty(data.n_transitions, dtype=np.int64)
    following[:-1] = raw[1:]
    last = data.offsets[1:] - 1
    following[last] = np.where(ended | (final < 0), -1, (step[last] + timed) * (codes.max() + 1) + final)
    visited, cell = np.unique(raw, return_inverse=True)
    place = np.minimum(np.searchsorted(visited, following), len(visited) - 1)
    return cell.reshape(-1), np.where(visited[place] == following, place, -1)


def _limits(data: LoggedDataset) -> IntArray:
    truncated, lengths = data.ends == End.TRUNCATED, data.lengths
    if data.horizon is not None:
        longest = data.horizon
    else:
        longest = int(lengths[truncated].max()) if truncated.any() else LONGEST * int(lengths.max())
    return np.where(truncated, lengths, longest)


def _terminal_rows(data: LoggedDataset) -> BoolArray:
    terminal = np.zeros(data.n_transitions, dtype=bool)
    terminal[data.offsets[1:] - 1] = data.ends == End.TERMINAL
    return terminal
