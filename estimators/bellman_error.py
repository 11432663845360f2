"""The Bellman calibration error of a Q method: how far its predictions lie from their own targets, on episodes it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimator import inherit_gamma
from ope.estimators import _verdicts as verdicts
from ope.estimators._crossfit import cross_fit_q, folds, temporal_differences
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators.lstdq import LSTDQ
from ope.policy import Policy, continuing_ends
from ope.validation import BoolArray, FloatArray, IntArray, check_integer
from ope.verdict import Level

if TYPE_CHECKING:
    import pandas as pd

OWNER = "calibration_error"
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class CalibrationError:
    """Mean Bellman target minus prediction, by bins of the prediction.

    Parameters
    ----------
    prediction : ndarray of shape (J,)
        Mean prediction of each bin.
    error, std_error : ndarray of shape (J,)
    transitions, episodes : ndarray of shape (J,)
        How many are in each bin.
    share : ndarray of shape (J,)
        Share of the weight of all transitions.
    influence : ndarray of shape (n_episodes, J)
        Of each error.
    """

    prediction: FloatArray
    error: FloatArray
    std_error: FloatArray
    transitions: IntArray
    episodes: IntArray
    share: FloatArray
    influence: FloatArray

    @property
    def size(self) -> float:
        """Root mean square of the errors over transitions."""
        return float(np.sqrt(self.share @ self.error**2))

    @property
    def p_values(self) -> FloatArray:
        """Two-sided p-values of t-tests that each error is 0, shape (J,); 1 where errors do not vary, which shows no rare event."""
        t = np.divide(self.error, self.std_error, out=np.zeros_like(self.error), where=self.std_error > 0)
        return np.asarray(2.0 * stdtr(np.maximum(self.episodes - 1, 1), -np.abs(t)))

    @property
    def p_value(self) -> float:
        """The least of them, Bonferroni-corrected: of the hypothesis that the Q function is calibrated."""
        return min(1.0, len(self.error) * float(self.p_values.min()))

    def to_frame(self) -> pd.DataFrame:
        """Return a row per bin."""
        import pandas as pd

        columns = ("prediction", "error", "std_error", "transitions", "episodes")
        return pd.DataFrame({name: getattr(self, name) for name in columns} | {"p_value": self.p_values})


def errors_by_bin(
    bins: IntArray, q: FloatArray, delta: FloatArray, used: BoolArray, offsets: IntArray, weight: FloatArray
) -> CalibrationError:
    """Average temporal differences within bins, with the influence of every episode; what is no more than rounding is 0.

    Parameters
    ----------
    bins : ndarray of shape (n,)
    q, delta : ndarray of shape (n,)
        Predictions, and targets minus predictions.
    used : ndarray of shape (n,)
        Rows without a target are left out.
    offsets : ndarray of shape (n_episodes + 1,)
    weight : ndarray of shape (n_episodes,)

    Examples
    --------
    >>> found = errors_by_bin(
    ...     np.array([0, 0, 1, 1]), np.zeros(4), np.array([1.0, 3.0, 0.0, 0.0]), np.ones(4, bool), np.arange(5), np.ones(4)
    ... )
    >>> found.error, found.std_error, found.size
    (array([2., 0.]), array([1., 0.]), 1.4142135623730951)
    """
    counted = used & (np.repeat(weight, np.diff(offsets)) > 0)
    kept = np.unique(bins[counted])
    inside = (bins[:, None] == kept) & counted[:, None]
    mass = weight[:, None] * ragged.segment_sum(inside.astype(np.float64), offsets)
    total = mass.sum(axis=0)
    told = used & (np.abs(delta) > ROUNDING * float(np.abs(q).max(initial=0.0)))
    sums = weight[:, None] * ragged.segment_sum(inside * np.where(told, delta, 0.0)[:, None], offsets)
    error, n = sums.sum(axis=0) / total, len(weight)
    psi = n * (sums - mass * error) / total
    episodes = (mass > 0).sum(axis=0)
    spread = np.sqrt((psi**2).sum(axis=0)) / n * np.sqrt(episodes / np.maximum(episodes - 1, 1))
    spread[spread <= ROUNDING * np.abs(error)] = 0.0
    prediction = (weight[:, None] * ragged.segment_sum(inside * q[:, None], offsets)).sum(axis=0) / total
    return CalibrationError(prediction, error, spread, inside.sum(axis=0), episodes, total / total.sum(), psi)


def equal_bins(q: FloatArray, row_weight: FloatArray, n_bins: int) -> IntArray:
    """Return which of `n_bins` parts of equal weight, in the order of the predictions, each row belongs to; ties stay together.

    Examples
    --------
    >>> equal_bins(np.array([3.0, 1.0, 1.0, 9.0]), np.ones(4), 2)
    array([1, 0, 0, 1])
    """
    position: IntArray = np.unique(q, return_inverse=True)[1]
    mass = np.bincount(position, row_weight)
    middle = (np.cumsum(mass) - mass / 2.0) / max(mass.sum(), np.finfo(float).tiny)
    level: IntArray = np.minimum(n_bins * middle, n_bins - 1).astype(np.int64)
    return level[position]


def measure(
    data: LoggedDataset,
    predictions: QPredictions,
    fold: IntArray,
    weight: FloatArray,
    gamma: float,
    stationary: bool,
    n_bins: int,
) -> CalibrationError:
    """Return the errors of cross-fitted predictions; bins are quantiles within the fold of each episode, shape (n_episodes,)."""
    delta = temporal_differences(data.rewards, predictions, data.offsets, gamma)
    used = np.ones(data.n_transitions, dtype=bool)
    used[data.offsets[1:][continuing_ends(data, stationary) & ~data.final_known()] - 1] = False
    row_weight, row_fold = np.repeat(weight, data.lengths), np.repeat(fold, data.lengths)
    bins = np.zeros(data.n_transitions, dtype=np.int64)
    for k in np.unique(fold):
        own = row_fold == k
        bins[own] = equal_bins(predictions.q[own], row_weight[own] * used[own], n_bins)
    return errors_by_bin(bins, predictions.q, delta, used, data.offsets, weight)


def bins_for(n_episodes: int, n_bins: int, min_episodes: int) -> int:
    """Return how many bins a log has the episodes for."""
    return max(1, min(n_bins, n_episodes // min_episodes))


def calibration_error(
    data: LoggedDataset,
    policy: Policy,
    q: QEstimator | None = None,
    *,
    gamma: float,
    n_folds: int = 2,
    n_bins: int = 10,
    min_episodes: int = 20,
    episode_weight: npt.ArrayLike | None = None,
    random_state: int = 0,
) -> CalibrationError:
    """Measure whether a Q method agrees with its own Bellman targets on episodes that it has not seen.

    Parameters
    ----------
    data : LoggedDataset
    policy : Policy
        The candidate.
    q : Q-based estimator or None
        `LSTDQ` (default), `FittedQEvaluation`, ...; it inherits gamma.
    gamma : float
        Discount factor in [0, 1].
    n_folds : int
        Q is fitted outside the fold of each episode, at least 2.
    n_bins : int
        Bins of equal numbers of transitions in the order of the predictions, fewer where there are not
    min_episodes : int
        episodes for each.
    episode_weight : array-like of shape (n_episodes,), optional
    random_state : int
        Seed of the folds.

    Returns
    -------
    CalibrationError
        With `size`, `p_value` and `to_frame()`.

    Raises
    ------
    ValueError, TypeError
        If a parameter, the log or the policy does not fit the Q method.

    Notes
    -----
    In bin j the error is the mean of r + gamma E_pi Qhat(s', .) - Qhat(s, a), with standard errors clustered by episode. It is 0 for
    a right Q function, and stays away from 0, however long the log, for a wrong one whose errors go with its predictions. The test is
    of the fitted Q: that of right features has noise of its own, so that at n_folds=2 a p-value of .001 is found by chance more
    often than it says, while the size of the error falls with 1 / sqrt(n).

    References
    ----------
    Van der Laan, Kallus (2025). Bellman calibration for V-learning in offline reinforcement learning. arXiv 2512.23694.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[1] * 8, ends="terminal", behavior_prob=[0.5] * 8
    ... )
    >>> round(calibration_error(log, TabularPolicy([[0.75, 0.25]]), gamma=1.0, n_bins=2).size, 9)
    0.0
    """
    for name, value, least in (("n_folds", n_folds, 2), ("n_bins", n_bins, 1), ("min_episodes", min_episodes, 1)):
        check_integer(OWNER, name, value, least)
    check_integer(OWNER, "random_state", random_state, 0, "pass a seed")
    nested = checked_q(OWNER, q, gamma, data, policy)
    weight = nested._check_weight(data, episode_weight)
    parts = list(folds(OWNER, data, weight, n_folds, random_state))
    predictions = cross_fit_q(nested, data, policy, weight, parts)
    fold = np.empty(data.n_episodes, dtype=np.int64)
    for k, (inside, _) in enumerate(parts):
        fold[inside] = k
    stationary = bool(getattr(nested, "stationary", False)) or data.horizon is None
    bins = bins_for(data.n_episodes, n_bins, min_episodes)
    return measure(data, predictions, fold, weight, float(gamma), stationary, bins)


def checked_q(owner: str, q: QEstimator | None, gamma: float, data: LoggedDataset, policy: Policy) -> QEstimator:
    """Return a Q method with gamma after checking that it, the log and the policy go together."""
    if q is not None and not isinstance(q, QEstimator):
        raise TypeError(
            f"{owner}: `q` must be a Q-based estimator (LSTDQ, FittedQEvaluation) or None, got {type(q).__name__}."
        )
    nested = inherit_gamma(owner, q if q is not None else LSTDQ(), gamma)
    assert isinstance(nested, QEstimator)
    nested._validate()
    nested._check_log(data)
    nested._check_policy(data, policy, type(policy).__name__)
    return nested


def judge_calibration(found: CalibrationError, shift: float, shift_error: float) -> verdicts.Finding:
    """Judge whether a Q model contradicts its own targets, from its calibration error and what calibration moves the value by."""
    if found.p_value >= verdicts.THRESHOLDS.specification:
        return None
    return Level.CAUTION, (
        f"The Q model contradicts its own Bellman targets: on episodes it has not seen they lie {found.size:.3g} (root mean square) off its predictions, and its value moves "
        f"by {shift:.3g} (standard error {shift_error:.2g}) when they are put right. This value is the corrected one; do not use the model without calibration, and as "
        "a wrong model makes coarse bins, pass richer features= or another regressor to q=, or compare with a doubly robust method."
    )
