"""What doubly robust methods take from the Q model alone: values of the states where truncated episodes stopped.

Weights correct a Q model up to the end of the recording. Behind it stands Vhat(s_T), which is a guess where the log does not
hold what the candidate does in s_T.
"""

from __future__ import annotations

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimators import _verdicts as verdicts
from ope.estimators import _weights as weights
from ope.estimators._crossfit import Weighed
from ope.estimators._q import QEstimator
from ope.policy import Policy, continuing_ends
from ope.validation import FloatArray


def coefficients(
    data: LoggedDataset, weighed: Weighed, gamma: float, stationary: bool, plain_share: float
) -> FloatArray:
    """Return gamma^t W_{t-1} of the last known state of every episode that goes on unrecorded, else 0, shape (n_episodes,).

    Parameters
    ----------
    data : LoggedDataset
    weighed : Weighed
    gamma : float
    stationary : bool
    plain_share : float
        How much of the weights is taken as they are, rather than self-normalised.
    """
    goes_on, known = continuing_ends(data, stationary), data.final_known()
    step = data.lengths - ~known  # of the last known state
    row = np.maximum(data.offsets[:-1] + step - 1, data.offsets[:-1])
    log_w = weighed.log_w[row]
    w = plain_share * np.exp(log_w) if plain_share else np.zeros(len(row))
    if plain_share != 1.0:
        w = w + (1.0 - plain_share) * weights.relative_weights(log_w, np.maximum(step - 1, 0), weighed.totals)
    return np.where(goes_on, gamma**step * np.where(step > 0, w, 1.0), 0.0)


def unsupported_tail(
    nested: QEstimator,
    data: LoggedDataset,
    policy: Policy,
    weight: FloatArray,
    coefficient: FloatArray,
    gamma: float,
    stationary: bool,
) -> float:
    """Return the share of the candidate's discounted time that lies behind truncations, where the log does not say what it earns.

    Parameters
    ----------
    nested : QEstimator
    data : LoggedDataset
    policy : Policy
    weight : ndarray of shape (n_episodes,)
    coefficient : ndarray of shape (n_episodes,)
        From `coefficients`.
    gamma : float
    stationary : bool

    Returns
    -------
    float
        NaN where the Q model cannot say what it learned from.
    """
    if not coefficient.any():
        return 0.0
    outside = nested.unsupported_ends(data, policy, weight)
    if outside is None:
        return float("nan")
    lost = weight * np.abs(coefficient) * outside * _rest(data, gamma, stationary)
    return min(1.0, float(np.mean(lost)))


def _rest(data: LoggedDataset, gamma: float, stationary: bool) -> FloatArray:
    """Return how long an episode goes on behind its last known state, beside a whole one, both discounted from where they begin."""
    if stationary:
        return np.ones(data.n_episodes)
    horizon = float(data.horizon or 1)
    left = horizon - (data.lengths - ~data.final_known())
    return np.asarray(left / horizon if gamma == 1.0 else (1.0 - gamma**left) / (1.0 - gamma**horizon))


def judge_tail(share: float) -> verdicts.Finding:
    """Judge how much of the candidate's time lies where nothing but an ignorant Q model speaks."""
    return verdicts.judge_outside(
        share,
        "of the candidate's discounted time lies behind truncated episodes, in states where the log does not hold its actions: weights correct nothing "
        "there and the Q model has learned nothing, so that it says 0 or guesses, outside the interval. Record longer episodes, log such states, or use coarser features.",
    )
