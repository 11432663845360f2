"""Whether models saw what they are asked about: the candidate's visits outside the logs they learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from ope.dataset import LoggedDataset, Rows
from ope.estimators import _linear as linear
from ope.estimators import _tabular as tabular
from ope.estimators._features import Basis, FeatureBlock, feature_block, fit_basis
from ope.policy import Policy, continuing_ends, probabilities
from ope.ragged import rows_of
from ope.validation import FloatArray, IntArray

N_SAMPLES = 16


def unsupported_share(
    data: LoggedDataset,
    policy: Policy,
    c: FloatArray,
    parts: Iterable[tuple[IntArray, IntArray]],
    gamma: float,
    stationary: bool,
    weight: FloatArray,
) -> float:
    """Return the share of the candidate's discounted visits that leave the span of the features that a model learned from.

    Parameters
    ----------
    data : LoggedDataset
    policy : Policy
    c : ndarray of shape (n,)
        Ratios of visits, which say where the candidate goes.
    parts : iterable of (ndarray, ndarray)
        Episodes of a fold, and those that its models learned from.
    gamma : float
    stationary : bool
    weight : ndarray of shape (n_episodes,)

    Notes
    -----
    Features are those of ``features="auto"``: pairs of one-hot states and actions, step by step where time-indexed. Outside them a
    linear Q is 0 and so is a linear ratio, so that neither corrects the other.
    """
    basis, n_values = fit_basis("auto", data), 1 if stationary else int(data.horizon or 1)
    lost, total = 0.0, 0.0
    for inside, learned in parts:
        solution = _solution(data.select(learned), policy, basis, gamma, stationary, n_values)
        this, own, first, rows = data.select(inside), weight[inside], 0, 0
        ratios = c[rows_of(inside, data.offsets)]
        for block in this.blocks():
            seen = feature_block(block, basis, policy, stationary, N_SAMPLES, 0)
            share = own[first : first + block.n_episodes]
            visits = ratios[rows : rows + block.n_transitions]
            outside = linear.unsupported_mass(seen, solution, visits, gamma, share)
            lost, total = lost + outside[0], total + outside[1]
            first, rows = first + block.n_episodes, rows + block.n_transitions
    return lost / total if total > 0 else 0.0


def _solution(
    data: LoggedDataset, policy: Policy, basis: Basis, gamma: float, stationary: bool, n_values: int
) -> linear.LinearSolution:
    blocks = (feature_block(block, basis, policy, stationary, N_SAMPLES, 0) for block in data.blocks())
    sums = [linear.summarise(seen, np.ones(len(seen.offsets) - 1), n_values) for seen in blocks]
    return linear.solve(linear.merge(sums), gamma, 0.0)


# -------------------------------------------------------------------- the last known states of episodes that go on


def outside_span(log: Iterable[FeatureBlock], weight: FloatArray, n_values: int) -> FloatArray:
    """Return the share of the features of the last known states that the log does not span, shape (n_episodes,)."""
    parts, ends, first = [], [], 0
    for seen in log:
        own = weight[first : first + len(seen.offsets) - 1]
        first += len(own)
        parts.append(linear.summarise(seen, own, n_values))
        ends.append(linear.last_known(seen, n_values))
    support = linear.solve(linear.merge(parts), 0.0, 0.0).support
    return np.concatenate([linear.outside_ends(end, support) for end in ends])


def outside_table(
    data: LoggedDataset,
    policy: Policy,
    weight: FloatArray,
    transform: Callable[[FloatArray], FloatArray] | None,
    n_values: int,
    stationary: bool,
) -> FloatArray:
    """Return how likely the candidate takes an action in the last known state that was never logged there, shape (n_episodes,)."""
    assert data.action_labels is not None
    labels = data.action_labels
    codes = tabular.StateCodes.fit(data, transform)
    coded = tabular.CodedLog.build(data, codes, horizon_continues=stationary)
    used = (coded.following != tabular.UNKNOWN) & (np.repeat(weight, data.lengths) > 0)
    slot = coded.step if n_values > 1 else np.zeros_like(coded.step)
    logged = np.unique(_cells(coded, slot, coded.state)[used] * coded.n_actions + coded.action[used])

    def unlogged(rows: Rows, slot: IntArray) -> FloatArray:
        cell = _cells(coded, slot, codes.codes(rows))
        pair = cell[:, None] * coded.n_actions + np.arange(coded.n_actions)
        chance = probabilities(policy, rows, labels)
        return np.asarray((chance * ~np.isin(pair, logged)).sum(axis=1))

    goes_on, known, out = continuing_ends(data, stationary), data.final_known(), np.zeros(data.n_episodes)
    for chosen, rows_of_ends in ((goes_on & known, data.final_rows), (goes_on & ~known, partial(_last_rows, data))):
        step = data.lengths - ~known if n_values > 1 else np.zeros_like(data.lengths)
        episodes = np.flatnonzero(chosen & (step < n_values))
        if len(episodes):
            out[episodes] = unlogged(rows_of_ends(episodes), step[episodes])
    return out


def _cells(coded: tabular.CodedLog, slot: IntArray, state: IntArray) -> IntArray:
    """Return a number for each step and state, negative for an unknown state."""
    return np.where(state < 0, -1, slot * coded.n_states + state)


def _last_rows(data: LoggedDataset, episodes: IntArray) -> Rows:
    rows, last = data.rows(), data.offsets[1:][episodes] - 1
    mask = None if rows.action_mask is None else rows.action_mask[last]
    return Rows(rows.states[last], rows.feature_names, mask, None if rows.extras is None else rows.extras.iloc[last])
