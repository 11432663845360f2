"""The value of the estimate that was chosen because it is high: intervals and estimates that know of the choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtri

from ope.inference.checks import FloatArray, finite_array
from ope.inference.intervals import require_two
from ope.inference.multiplicity import max_t_quantile

METHODS = ("hybrid", "conditional", "split")
# Of alpha, what the first step of the hybrid spends: the authors' choice.
HYBRID_SHARE = 0.1
_FARTHEST = 1e6


@dataclass(frozen=True)
class SelectedValue:
    """The value of a chosen estimate after correction for the choice.

    Parameters
    ----------
    chosen : int
        Its position.
    value : float
        The corrected value: median-unbiased for "hybrid" and "conditional", mean-unbiased for "split".
    low, high : float
        Two-sided interval; infinite where conditioning leaves nothing to hold on to.
    naive_value, naive_low, naive_high : float
        What ignoring the choice would say.
    level : float
    method : str
    """

    chosen: int
    value: float
    low: float
    high: float
    naive_value: float
    naive_low: float
    naive_high: float
    level: float
    method: str


def selected_value(
    values: npt.ArrayLike,
    influence: FloatArray,
    scores: npt.ArrayLike | None = None,
    level: float = 0.95,
    method: str = "hybrid",
    *,
    half: npt.ArrayLike | None = None,
    n_replicates: int = 20_000,
) -> SelectedValue:
    """Correct the value of the estimate with the highest score for having been chosen.

    Parameters
    ----------
    values : array-like of shape (K,)
        Estimates V on the same episodes.
    influence : ndarray of shape (n, K)
        Centred influence values.
    scores : array-like of shape (K,), optional
        What was maximised: the values (the default), or lower bounds V_k - c_k se_k, whose distances from the values are
        then taken as fixed. -inf for estimates that were not eligible.
    level : float
    method : {"hybrid", "conditional", "split"}
    half : array-like of bool of shape (n,), optional
        For "split": the episodes that choose; the others value.
    n_replicates : int
        Simulated errors of the simultaneous interval of "hybrid".

    Returns
    -------
    SelectedValue

    Notes
    -----
    With V ~ N(J, S) and the choice of k: V_k - o_k >= V_j - o_j for all j, where o are the distances between values and
    scores. Given Z = V - (S_.k / S_kk) V_k, which is independent of V_k, the choice says that V_k lies in an interval
    [L, U], so V_k is a truncated normal whose distribution function F(V_k; J_k) falls in J_k.

    - "conditional": the m with F(V_k; m) = 1/2 is median-unbiased, those with 1 - alpha/2 and alpha/2 bound it. Right
      whatever was chosen, but far below V_k and long where the choice was close.
    - "hybrid": intersected with a simultaneous interval of level 1 - beta, beta = alpha / 10, J_k being conditioned to lie
      within; alpha' = (alpha - beta) / (1 - beta). Never longer than that interval; its median bias is at most beta / 2.
    - "split": chosen by the mean of V + psi over one half, valued by the other half: mean-unbiased to first order, for the
      choice of half of the data.

    No estimate of the chosen value from the data that chose is unbiased in the mean.

    References
    ----------
    Andrews, Kitagawa & McCloskey (2024), "Inference on winners", doi:10.1093/qje/qjad043. Lee et al. (2016),
    doi:10.1214/15-AOS1371. Putter & Rubinstein (1968), "On estimating the mean of a selected population".

    Examples
    --------
    >>> import numpy as np
    >>> psi = np.random.default_rng(0).standard_normal((400, 3))
    >>> psi -= psi.mean(axis=0)
    >>> close = selected_value([1.0, 0.98, 0.9], psi)
    >>> clear = selected_value([1.0, 0.5, 0.2], psi)
    >>> round(close.value, 3), round(clear.value, 3)
    (0.937, 1.0)
    """
    v = finite_array("selected_value", "values", values)
    psi = finite_array("selected_value", "influence", influence, (2,))
    s = v.copy() if scores is None else np.asarray(scores, dtype=np.float64)
    _check(v, psi, s, level, method)
    if method == "split":
        return _split(v, psi, v - s, half, level)
    n = len(psi)
    chosen = int(np.argmax(s))
    column = psi.T @ psi[:, chosen] / (n * (n - 1.0))
    event = truncation(v, column, v - s, chosen)
    naive = _naive(v[chosen], math.sqrt(column[chosen]), level)
    if column[chosen] == 0.0:
        return SelectedValue(chosen, v[chosen], v[chosen], v[chosen], *naive, level, method)
    eligible = np.isfinite(s)
    width = math.inf
    if method == "hybrid":
        width = max_t_quantile(psi[:, eligible], HYBRID_SHARE * (1.0 - level), n_replicates) * math.sqrt(column[chosen])
    low, value, high = _invert(v[chosen], math.sqrt(column[chosen]), event, width, 1.0 - level)
    return SelectedValue(chosen, value, low, high, *naive, level, method)


def truncation(values: FloatArray, covariance: FloatArray, offsets: FloatArray, chosen: int) -> tuple[float, float]:
    """Find where the chosen value could lie, given what is independent of it, for the choice to be the same.

    Parameters
    ----------
    values : ndarray of shape (K,)
    covariance : ndarray of shape (K,)
        Of every value with the chosen one.
    offsets : ndarray of shape (K,)
        Value minus score; infinite where not eligible.
    chosen : int

    Returns
    -------
    low, high : float

    Examples
    --------
    >>> import numpy as np
    >>> truncation(np.array([1.0, 0.5]), np.array([1.0, 0.0]), np.zeros(2), 0)
    (0.5, inf)
    """
    variance = covariance[chosen]
    if variance == 0.0:
        return -math.inf, math.inf
    slope = covariance / variance
    rest = values - slope * values[chosen]
    gain = 1.0 - slope
    others = np.isfinite(offsets) & (np.arange(len(values)) != chosen) & (np.abs(gain) > 1e-12)
    bound = (rest[others] - offsets[others] + offsets[chosen]) / gain[others]
    rises = gain[others] > 0.0
    # The observed value satisfies all of them; rounding must not say otherwise.
    low = min(float(np.max(bound[rises], initial=-math.inf)), float(values[chosen]))
    high = max(float(np.min(bound[~rises], initial=math.inf)), float(values[chosen]))
    return low, high


def truncated_normal_cdf(x: float, mean: float, std: float, low: float, high: float) -> float:
    """Return P(X <= x) of a normal variable that is known to lie in [low, high], stable far out in the tails.

    Examples
    --------
    >>> round(truncated_normal_cdf(0.0, 0.0, 1.0, -1.0, 1.0), 4), round(truncated_normal_cdf(30.01, 0.0, 1.0, 30.0, 40.0), 4)
    (0.5, 0.2595)
    """
    a, b, z = (low - mean) / std, (high - mean) / std, (x - mean) / std
    if z <= a or z >= b:
        return 0.0 if z <= a else 1.0
    return math.exp(min(_log_mass(a, z) - _log_mass(a, b), 0.0))


def _log_mass(a: float, b: float) -> float:
    """Return log(Phi(b) - Phi(a)) from the tail in which the interval lies."""
    if a > -b:
        a, b = -b, -a
    log_b = float(log_ndtr(b))
    ratio = float(log_ndtr(a)) - log_b if a > -math.inf else -math.inf
    return log_b + math.log(-math.expm1(ratio)) if ratio < 0.0 else -math.inf


def _invert(
    value: float, std: float, event: tuple[float, float], width: float, alpha: float
) -> tuple[float, float, float]:
    """Return lower end, median-unbiased estimate and upper end; `width` is that of the hybrid's first step, or infinite."""
    share = HYBRID_SHARE * alpha if width < math.inf else 0.0
    tail = (alpha - share) / (1.0 - share) / 2.0

    def cdf(mean: float) -> float:
        return truncated_normal_cdf(value, mean, std, max(event[0], mean - width), min(event[1], mean + width))

    ends = [_root(cdf, level, value, std, width) for level in (1.0 - tail, 0.5, tail)]
    return ends[0], ends[1], ends[2]


def _root(cdf: Callable[[float], float], level: float, value: float, std: float, width: float) -> float:
    """Return the mean at which the falling `cdf` passes `level`; the end of the search where it does not."""
    reach = min(width, std)
    limit = min(width, _FARTHEST * std)
    below, above = value - reach, value + reach
    while cdf(below) < level and value - below < limit:
        below = value - min(2.0 * (value - below), limit)
    while cdf(above) > level and above - value < limit:
        above = value + min(2.0 * (above - value), limit)
    if cdf(below) < level:
        return below if width < math.inf else -math.inf
    if cdf(above) > level:
        return above if width < math.inf else math.inf
    return float(brentq(lambda mean: cdf(mean) - level, below, above, xtol=1e-10 * std, rtol=1e-14))


def _split(
    v: FloatArray, psi: FloatArray, offsets: FloatArray, half: npt.ArrayLike | None, level: float
) -> SelectedValue:
    chooses = np.zeros(len(psi), dtype=bool) if half is None else np.asarray(half)
    if chooses.shape != (len(psi),) or chooses.dtype != bool or min(chooses.sum(), (~chooses).sum()) < 2:
        raise ValueError(
            f"selected_value: `half` must mark at least two episodes to choose and leave two to value, got shape {chooses.shape} "
            f"with {int(np.count_nonzero(chooses))} marked; pass a boolean per episode."
        )
    first = v + psi[chooses].mean(axis=0)
    # A bound from half of the episodes lies farther from its value.
    chosen = int(np.argmax(first - math.sqrt(len(psi) / chooses.sum()) * offsets))
    scores = v[chosen] + psi[~chooses, chosen]
    value, std = float(scores.mean()), float(scores.std(ddof=1) / math.sqrt(len(scores)))
    _, low, high = _naive(value, std, level)
    whole = math.sqrt(float(np.square(psi[:, chosen]).sum()) / (len(psi) * (len(psi) - 1.0)))
    return SelectedValue(chosen, value, low, high, *_naive(float(v[chosen]), whole, level), level, "split")


def _naive(value: float, std: float, level: float) -> tuple[float, float, float]:
    z = float(ndtri(0.5 + level / 2.0))
    return float(value), float(value - z * std), float(value + z * std)


def _check(v: FloatArray, psi: FloatArray, scores: FloatArray, level: float, method: str) -> None:
    owner = "selected_value"
    require_two(owner, len(psi))
    if method not in METHODS:
        raise ValueError(f"{owner}: `method` must be one of {METHODS}, got {method!r}; 'hybrid' is usual.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"{owner}: `level` must lie in (0, 1), got {level!r}; pass 0.95 for 95 %.")
    if not len(v) == psi.shape[1] == len(scores):
        raise ValueError(
            f"{owner}: `values`, columns of `influence` and `scores` must be as many, got {len(v)}, {psi.shape[1]}, {len(scores)}; align them."
        )
    if np.isnan(scores).any() or not np.isfinite(scores).any():
        raise ValueError(
            f"{owner}: `scores` must be numbers or -inf with at least one finite, got {scores.tolist()}; leave out values without a score."
        )
