"""The Bellman calibration error of a Q method: how far its predictions lie from their own targets, on episodes it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimator import inherit_gamma
from ope.estimators import _verdicts as verdicts
from ope.estimators._calibration import equal_parts
from ope.estimators._crossfit import cross_fit_q, folds, halves, temporal_differences
from ope.estimators._q import QEstimator, QPredictions, check_targets
from ope.estimators.lstdq import LSTDQ
from ope.inference.intervals import effective_freedom
from ope.inference.weights import fold_of
from ope.policy import Policy, used_rows
from ope.validation import BoolArray, FloatArray, IntArray, check_integer
from ope.verdict import Level

if TYPE_CHECKING:
    import pandas as pd

OWNER = "calibration_error"
ROUNDING = 1e-9
# Of the standard deviation of targets: three times what `FittedQEvaluation` leaves of its equation when it stops.
NEGLIGIBLE = 3e-3


@dataclass(frozen=True, eq=False)
class CalibrationError:
    """Mean Bellman target minus prediction, by bins of the prediction.

    Parameters
    ----------
    prediction : ndarray of shape (J,)
        Mean prediction of each bin.
    error, std_error : ndarray of shape (J,)
        Of the Q function as it was fitted.
    transitions, episodes : ndarray of shape (J,)
        How many are in each bin.
    share : ndarray of shape (J,)
        Share of the weight of all transitions.
    influence : ndarray of shape (n_episodes, J)
        Of each error.
    lasting, lasting_std_error : ndarray of shape (J,)
        What would be left of the error on an endless log, and its standard error with the noise of the fitted Q in it.
    freedom : ndarray of shape (J,)
        Degrees of freedom of the latter.
    negligible : float
        What is no error but that of an iteration that stops.
    """

    prediction: FloatArray
    error: FloatArray
    std_error: FloatArray
    transitions: IntArray
    episodes: IntArray
    share: FloatArray
    influence: FloatArray
    lasting: FloatArray
    lasting_std_error: FloatArray
    freedom: FloatArray
    negligible: float

    @property
    def size(self) -> float:
        """Root mean square of the errors over transitions."""
        return float(np.sqrt(self.share @ self.error**2))

    @property
    def p_values(self) -> FloatArray:
        """Two-sided p-values of t-tests that no lasting error is more than negligible, shape (J,).

        1 where errors do not vary, which shows no rare event.
        """
        spread, size = self.lasting_std_error, np.maximum(np.abs(self.lasting) - self.negligible, 0.0)
        t = np.divide(size, spread, out=np.zeros_like(spread), where=spread > 0)
        return np.asarray(2.0 * stdtr(self.freedom, -t))

    @property
    def p_value(self) -> float:
        """The least of them, Bonferroni-corrected: of the hypothesis that the Q method is calibrated but for noise."""
        return min(1.0, len(self.error) * float(self.p_values.min()))

    def to_frame(self) -> pd.DataFrame:
        """Return a row per bin."""
        import pandas as pd

        columns = ("prediction", "error", "std_error", "lasting", "lasting_std_error", "transitions", "episodes")
        return pd.DataFrame({name: getattr(self, name) for name in columns} | {"p_value": self.p_values})


@dataclass(frozen=True)
class BinSums:
    """Sums over the transitions of every episode in every bin.

    Parameters
    ----------
    count, delta, q : ndarray of shape (n_episodes, J)
        Of transitions, of temporal differences and of predictions.
    """

    count: FloatArray
    delta: FloatArray
    q: FloatArray

    def means(self, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the mean temporal difference of each bin, 0 in empty ones, and its influence, shape (n_episodes, J)."""
        mass = weight[:, None] * self.count
        total = np.maximum(mass.sum(axis=0), np.finfo(float).tiny)
        mean = weight @ self.delta / total
        return mean, len(weight) * (weight[:, None] * self.delta - mass * mean) / total

    def select(self, kept: BoolArray) -> BinSums:
        """Return some of the bins."""
        return BinSums(self.count[:, kept], self.delta[:, kept], self.q[:, kept])

    @classmethod
    def average(cls, parts: Sequence[BinSums]) -> BinSums:
        """Return the means of sums."""
        return cls(*(np.mean([getattr(part, name) for part in parts], axis=0) for name in ("count", "delta", "q")))


def sum_by_bin(
    bins: IntArray, q: FloatArray, delta: FloatArray, used: BoolArray, offsets: IntArray, n_bins: int
) -> BinSums:
    """Add up temporal differences within bins; what is no more than rounding is 0.

    Parameters
    ----------
    bins : ndarray of shape (n,)
    q, delta : ndarray of shape (n,)
        Predictions, and targets minus predictions.
    used : ndarray of shape (n,)
        Rows without a target are left out.
    offsets : ndarray of shape (n_episodes + 1,)
    n_bins : int
    """
    inside = (bins[:, None] == np.arange(n_bins)) & used[:, None]
    told = np.abs(delta) > ROUNDING * float(np.abs(q).max(initial=0.0))
    columns = (np.ones_like(q), np.where(told, delta, 0.0), q)
    return BinSums(*(ragged.segment_sum(np.where(inside, x[:, None], 0.0), offsets) for x in columns))


def errors_of(
    full: BinSums, halved: Sequence[BinSums], weight: FloatArray, noise: float, negligible: float = 0.0
) -> CalibrationError:
    """Return the errors of a fitted Q, and what lasts of them.

    Parameters
    ----------
    full : BinSums
    halved : sequence of BinSums
        The same of fits on half as many episodes; without one nothing is extrapolated.
    weight : ndarray of shape (n_episodes,)
    noise : float
        Variance of a difference of fitted and test mean over that of the test mean.
    negligible : float

    Notes
    -----
    What noise makes of the errors of a fitted Q (predictions that are high by luck are too high, pairs that were never seen are
    not known) falls with 1 / n, hence 2 e(n) - e(n / 2) for n without end.

    Examples
    --------
    >>> sums = sum_by_bin(
    ...     np.array([0, 0, 1, 1]), np.zeros(4), np.array([1.0, 3.0, 0.0, 0.0]), np.ones(4, bool), np.arange(5), 2
    ... )
    >>> found = errors_of(sums, [], np.ones(4), 1.0)
    >>> found.error, found.std_error, found.size
    (array([2., 0.]), array([1., 0.]), 1.4142135623730951)
    """
    full, *halved = (own.select(weight @ full.count > 0) for own in (full, *halved))
    error, psi = full.means(weight)
    lasting, lasting_psi = error.copy(), psi.copy()
    if halved:
        half = BinSums.average(halved)
        known = weight @ half.count > 0
        smaller, smaller_psi = half.means(weight)
        lasting[known] = 2.0 * error[known] - smaller[known]
        lasting_psi[:, known] = 2.0 * psi[:, known] - smaller_psi[:, known]
    mass, counted = weight[:, None] * full.count, full.count[weight > 0]
    episodes = (mass > 0).sum(axis=0)
    spread = _spread(lasting, lasting_psi, episodes)
    return CalibrationError(
        prediction=weight @ full.q / mass.sum(axis=0),
        error=error,
        std_error=_spread(error, psi, episodes),
        transitions=counted.sum(axis=0).astype(np.int64),
        episodes=episodes,
        share=mass.sum(axis=0) / mass.sum(),
        influence=psi,
        lasting=lasting,
        lasting_std_error=np.sqrt(noise) * spread,
        freedom=np.array(
            [effective_freedom(own) if s > 0 else 1.0 for own, s in zip(lasting_psi.T, spread, strict=True)]
        ),
        negligible=negligible,
    )


def _spread(error: FloatArray, psi: FloatArray, episodes: IntArray) -> FloatArray:
    """Return standard errors; 0 where there is nothing but rounding."""
    spread = np.sqrt((psi**2).sum(axis=0)) / len(psi) * np.sqrt(episodes / np.maximum(episodes - 1, 1))
    return np.where(spread <= ROUNDING * np.abs(error), 0.0, spread)


def equal_bins(q: FloatArray, row_weight: FloatArray, n_bins: int) -> IntArray:
    """Return which of `n_bins` parts of equal weight, in the order of the predictions, each row belongs to; ties stay together.

    Examples
    --------
    >>> equal_bins(np.array([3.0, 1.0, 1.0, 9.0]), np.ones(4), 2)
    array([1, 0, 0, 1])
    """
    position: IntArray = np.unique(q, return_inverse=True)[1]
    return equal_parts(position, row_weight, n_bins)[position]


def measure(
    data: LoggedDataset,
    predictions: Sequence[QPredictions],
    fold: IntArray,
    weight: FloatArray,
    gamma: float,
    stationary: bool,
    n_bins: int,
) -> CalibrationError:
    """Return the errors of cross-fitted predictions: those of the Q in question, then those of fits on half as many episodes.

    Bins are quantiles within the fold of each episode, shape (n_episodes,).
    """
    used = used_rows(data, stationary) & np.repeat(weight > 0, data.lengths)
    row_weight, row_fold = np.repeat(weight, data.lengths), np.repeat(fold, data.lengths)
    sums = []
    for own in predictions:
        delta = temporal_differences(data.rewards, own, data.offsets, gamma)
        bins = np.zeros(data.n_transitions, dtype=np.int64)
        for k in np.unique(fold):
            rows = row_fold == k
            bins[rows] = equal_bins(own.q[rows], row_weight[rows] * used[rows], n_bins)
        sums.append(sum_by_bin(bins, own.q, delta, used, data.offsets, n_bins))
    n_folds, mass = len(np.unique(fold)), row_weight * used
    targets = predictions[0].q + temporal_differences(data.rewards, predictions[0], data.offsets, gamma)
    spread = float(np.sqrt(np.average((targets - np.average(targets, weights=mass)) ** 2, weights=mass)))
    return errors_of(sums[0], sums[1:], weight, n_folds / max(n_folds - 1, 1), NEGLIGIBLE * spread)


def half_fits(
    nested: QEstimator,
    data: LoggedDataset,
    policy: Policy,
    weight: FloatArray,
    parts: Sequence[tuple[IntArray, IntArray]],
    random_state: int,
) -> list[QPredictions]:
    """Return cross-fitted predictions of Q fitted on the one and the other half of the episodes outside each fold.

    None where the episodes are too few to halve, or a fit diverges: then there is nothing to extrapolate from.
    """
    try:
        split = [halves(OWNER, data, weight, outside, random_state) for _, outside in parts]
    except ValueError:
        return []
    inside = [part[0] for part in parts]
    found = [
        cross_fit_q(nested, data, policy, weight, list(zip(inside, half, strict=True)))
        for half in zip(*split, strict=True)
    ]
    finite = all(np.isfinite(x).all() for own in found for x in (own.q, own.v, own.v_final))
    return list(found) if finite else []


def bins_for(n_episodes: int, n_bins: int, min_episodes: int) -> int:
    """Return how many bins a log has the episodes for."""
    return max(1, min(n_bins, n_episodes // min_episodes))


def calibration_error(
    data: LoggedDataset,
    policy: Policy,
    q: QEstimator | None = None,
    *,
    gamma: float,
    n_folds: int = 5,
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
        Q is fitted outside the fold of each episode, at least 2, and once more on each half of the episodes there.
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
    a right Q function, and stays away from 0, however long the log, for a wrong one whose errors go with its predictions.

    A Q function that is right but for noise errs on episodes it has not seen too: its highest predictions are too high, and it
    knows nothing of pairs it never saw. `error` and `size` are of that Q function. The p-values are of the method: of the lasting
    error 2 e(n) - e(n / 2), with e(n / 2) of fits on half as many episodes, whose variance holds the noise of the fitted Q (that of
    the test mean times n_folds / (n_folds - 1)), and with the degrees of freedom of the episodes that carry it, that it is not negligible: no more than .003 standard deviations of the targets, as
    an iteration leaves it that stops. A test of `error`
    itself at 5 % rejected right features in up to all of the logs where cells are few (a value for each step, n = 64), this one in at most 7 %
    of them at n_folds=5, see ``docs/calibration.md``. Where the episodes are too few to halve, nothing is extrapolated.

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
    stationary = bool(getattr(nested, "stationary", False)) or data.horizon is None
    check_targets(OWNER, used_rows(data, stationary) & np.repeat(weight > 0, data.lengths))
    parts = list(folds(OWNER, data, weight, n_folds, random_state))
    predictions = [
        cross_fit_q(nested, data, policy, weight, parts),
        *half_fits(nested, data, policy, weight, parts, random_state),
    ]
    fold = fold_of(data.episode_keys, n_folds, random_state)
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
        f"The Q model contradicts its own Bellman targets: on episodes it has not seen they lie {found.size:.3g} (root mean square) off its predictions, more than noise explains, and "
        f"its value moves by {shift:.3g} (standard error {shift_error:.2g}) when they are put right. This value is the corrected one; do not use the model without calibration, and as "
        "a wrong model makes coarse bins, pass richer features= or another regressor to q=, or compare with a doubly robust method."
    )
