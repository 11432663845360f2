"""Which of many estimates may be the best, and which rank each may have: from all paired differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ope.inference.checks import FloatArray
from ope.inference.multiplicity import critical_value, error_draws, pairwise

_DRAWS_AT_A_TIME = 1024
_CELLS = 20_000_000
_LEAST_DRAWS = 2000
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BestSet:
    """Which of K values may be the largest.

    Parameters
    ----------
    members : ndarray of bool of shape (K,)
        Whether each may be the best.
    low, high : ndarray of shape (K,)
        Simultaneous intervals of each value minus the best of the others; they reach 0 at most from the side that the data
        cannot exclude (constrained intervals).
    """

    members: BoolArray
    low: FloatArray
    high: FloatArray


def best_set(
    values: npt.ArrayLike,
    influence: FloatArray,
    alpha: float = 0.05,
    *,
    widening: npt.ArrayLike | None = None,
    n_replicates: int = 10_000,
    seed: int = 0,
) -> BestSet:
    """Find the values that may be the best, by multiple comparisons with the best.

    Parameters
    ----------
    values : array-like of shape (K,)
        Estimates on the same episodes.
    influence : ndarray of shape (n, K)
        Centred influence values.
    alpha : float
        Probability that the best value is left out, in (0, 1).
    widening : array-like of shape (K,), optional
        Bounds of biases that standard errors do not hold.
    n_replicates, seed
        Of the simulated errors.

    Returns
    -------
    BestSet

    Notes
    -----
    k stays unless some j is better beyond doubt: V_j - V_k > c_k se_jk, where c_k is the 1 - alpha quantile of
    max_j (e_j - e_k) / se_jk: one-sided comparisons of all others with k. Whichever is the best, it is left out only if its
    own comparisons fail, with probability alpha: no further adjustment for K is due.

    References
    ----------
    Hsu (1984), doi:10.1214/aos/1176346722. Hsu (1996), Multiple Comparisons, chapter 4.

    Examples
    --------
    >>> import numpy as np
    >>> psi = np.random.default_rng(0).standard_normal((400, 3))
    >>> psi -= psi.mean(axis=0)
    >>> best_set([1.0, 0.98, 0.2], psi).members
    array([ True,  True, False])
    """
    _check_alpha("best_set", alpha)
    difference, error = pairwise(values, influence)
    n_values = len(difference)
    if n_values == 1:
        return BestSet(np.ones(1, dtype=bool), np.zeros(1), np.zeros(1))
    critical = _control_quantiles(error_draws(influence, n_replicates, seed), error, len(influence), alpha)
    slack = _slack(widening, n_values)
    # Row k: how much worse than j the data allow k to be at best, V_k - V_j + c_k se_jk.
    reach = _off_diagonal(difference + critical[:, None] * error + slack).min(axis=1)
    members = reach >= 0.0
    lowest = _lowest(difference - critical[None, :] * error - slack, members)
    return BestSet(members, lowest, np.maximum(reach, 0.0))


def _control_quantiles(draws: FloatArray, error: FloatArray, n: int, alpha: float) -> FloatArray:
    """Return for each k the 1 - alpha quantile of max_j (e_j - e_k) / se_jk."""
    unit = np.where(error > 0.0, error, np.inf)
    return np.array([critical_value((draws - draws[:, [k]]) / unit[k], n, alpha, 1) for k in range(len(error))])


def _lowest(reach: FloatArray, members: BoolArray) -> FloatArray:
    """Return the lower ends: how far below the best of the others each may lie; 0 for an only member."""
    low = np.zeros(len(members))
    for k in range(len(members)):
        rivals = members.copy()
        rivals[k] = False
        if rivals.any():
            low[k] = min(0.0, float(reach[k, rivals].min()))
    return low


def rank_intervals(
    values: npt.ArrayLike,
    influence: FloatArray,
    alpha: float = 0.05,
    *,
    widening: npt.ArrayLike | None = None,
    n_replicates: int = 10_000,
    seed: int = 0,
) -> tuple[IntArray, IntArray, IntArray]:
    """Bound the ranks of all values at once; rank 1 is the best.

    Parameters
    ----------
    values, influence, alpha, widening, n_replicates, seed
        As in `best_set`.

    Returns
    -------
    rank, low, high : ndarray of int64 of shape (K,)
        The estimated rank (ties share the better one) and the ends of its interval. All intervals hold at once with
        probability 1 - alpha.

    Notes
    -----
    All K (K - 1) paired differences get simultaneous intervals. As many values as lie above k beyond doubt have better
    ranks, and as many as lie below have worse ones: rank_k in [1 + #above, K - #below]. The simultaneous intervals come
    from the step-down of the reference: pairs that are told apart need no more protection, and the others are judged again.

    References
    ----------
    Mogstad, Romano, Shaikh & Wilhelm (2024), "Inference for ranks with applications to mobility across neighbourhoods and
    academic achievement across countries", doi:10.1093/restud/rdad006.

    Examples
    --------
    >>> import numpy as np
    >>> psi = np.random.default_rng(0).standard_normal((400, 3))
    >>> psi -= psi.mean(axis=0)
    >>> [part.tolist() for part in rank_intervals([1.0, 0.98, 0.2], psi)]
    [[1, 2, 3], [1, 1, 3], [2, 2, 3]]
    """
    _check_alpha("rank_intervals", alpha)
    difference, error = pairwise(values, influence)
    n_values = len(difference)
    rank = 1 + (difference < 0.0).sum(axis=1)
    if n_values == 1:
        return rank, rank.copy(), rank.copy()
    # Many pairs are judged by fewer draws, so that time and memory stay bounded.
    draws = error_draws(influence, min(n_replicates, max(_LEAST_DRAWS, _CELLS // n_values**2)), seed)
    below = _told_apart(difference - _slack(widening, n_values), error, draws, alpha)
    return rank, 1 + below.sum(axis=0), n_values - below.sum(axis=1)


def _told_apart(shifted: FloatArray, error: FloatArray, draws: FloatArray, alpha: float) -> BoolArray:
    """Return whether a > b beyond doubt for every ordered pair (a, b), by step-down over one-sided tests."""
    first, second = np.nonzero(~np.eye(len(error), dtype=bool))
    difference, unit = shifted[first, second], error[first, second]
    rejected = (unit == 0.0) & (difference > 0.0)
    open_pairs = unit > 0.0
    while open_pairs.any():
        critical = _pair_quantile(draws, first[open_pairs], second[open_pairs], unit[open_pairs], alpha)
        new = open_pairs & (difference > critical * unit)
        if not new.any():
            break
        rejected |= new
        open_pairs &= ~new
    told = np.zeros(error.shape, dtype=bool)
    told[first[rejected], second[rejected]] = True
    return told


def _pair_quantile(draws: FloatArray, first: IntArray, second: IntArray, unit: FloatArray, alpha: float) -> float:
    maxima = np.empty(len(draws))
    for start in range(0, len(draws), _DRAWS_AT_A_TIME):
        part = draws[start : start + _DRAWS_AT_A_TIME]
        maxima[start : start + len(part)] = ((part[:, first] - part[:, second]) / unit).max(axis=1)
    return float(np.quantile(maxima, 1.0 - alpha, method="weibull"))


def _slack(widening: npt.ArrayLike | None, n_values: int) -> FloatArray:
    w = np.zeros(n_values) if widening is None else np.asarray(widening, dtype=np.float64)
    return np.asarray(w[:, None] + w[None, :])


def _off_diagonal(matrix: FloatArray) -> FloatArray:
    out = matrix.copy()
    np.fill_diagonal(out, np.inf)
    return out


def _check_alpha(owner: str, alpha: float) -> None:
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"{owner}: `alpha` must lie in (0, 1), got {alpha!r}; 0.05 is usual.")
