"""Whether cross-fitted models saw what they are asked about: the candidate's visits outside the logs they learned from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimators import _linear as linear
from ope.estimators._features import Basis, feature_block, fit_basis
from ope.policy import Policy
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
