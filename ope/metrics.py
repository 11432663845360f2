"""How good estimates were, once true values are known: ranking, choice, error, intervals, safety. Pure functions of arrays.

Three rules hold in every function.

- **Failed estimates.** A value that is not finite is a ValueError, unless ``missing="last"`` is passed: then it ranks behind
  all others, tied with the other failed ones, and passes no gate. True values must be finite.
- **Ties.** Equal estimates leave the order open: the policy with the lower true value is then taken first, so that no estimator
  gains by telling policies apart less well, and the order of the input plays no part. Rank correlations use mean ranks and tau-b.
- **Nothing to measure.** A rate over no policies, a correlation with a constant, and a Sharpe ratio without spread are NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "coverage",
    "interval_score",
    "kendall",
    "mean_absolute_error",
    "precision_at_k",
    "regret_at_k",
    "safety_violation_rate",
    "sharpe_ratio_at_k",
    "spearman",
    "top_k_risk_return",
    "type_1_error",
    "type_2_error",
]

FloatArray = npt.NDArray[np.float64]
Missing = Literal["raise", "last"]

# -------------------------------------------------------------------- ranking


def spearman(estimates: npt.ArrayLike, true_values: npt.ArrayLike, *, missing: Missing = "raise") -> float:
    """Return Spearman's rank correlation of estimates and true values.

    Parameters
    ----------
    estimates, true_values : array-like of shape (K,)
        One entry per policy.
    missing : {"raise", "last"}
        What to do with estimates that are not finite: refuse them, or rank them behind all others.

    Returns
    -------
    float
        In [-1, 1]; NaN where one of the two is constant.

    Raises
    ------
    ValueError
        If shapes differ, nothing is given, or a value is not finite (estimates: with ``missing="raise"``).

    Examples
    --------
    >>> spearman([0.1, 0.2, 0.4], [1.0, 3.0, 2.0])
    0.5
    >>> spearman([0.1, float("nan"), 0.4], [1.0, 0.0, 2.0], missing="last")
    1.0
    """
    x, y = _pair("spearman", estimates, true_values, missing)
    if _constant(x) or _constant(y):
        return float("nan")
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1].round(15))


def kendall(estimates: npt.ArrayLike, true_values: npt.ArrayLike, *, missing: Missing = "raise") -> float:
    """Return Kendall's tau-b of estimates and true values.

    Parameters
    ----------
    estimates, true_values, missing
        As in `spearman`.

    Returns
    -------
    float
        (concordant - discordant pairs) / sqrt(pairs untied in one * pairs untied in the other); NaN where one is constant.

    Raises
    ------
    ValueError
        As `spearman`.

    Examples
    --------
    >>> round(kendall([0.1, 0.2, 0.4], [1.0, 3.0, 2.0]), 6)
    0.333333
    """
    x, y = _pair("kendall", estimates, true_values, missing)
    if _constant(x) or _constant(y):
        return float("nan")
    return float(stats.kendalltau(stats.rankdata(x), stats.rankdata(y), variant="b").statistic)


# -------------------------------------------------------------------- choice


def regret_at_k(
    estimates: npt.ArrayLike,
    true_values: npt.ArrayLike,
    k: int = 1,
    *,
    normalized: bool = False,
    missing: Missing = "raise",
) -> float:
    """Return what the best of the k policies with the highest estimates lacks to the best policy.

    Parameters
    ----------
    estimates, true_values, missing
        As in `spearman`.
    k : int
        From 1 to the number of policies.
    normalized : bool
        Divide by the range of the true values, max - min: 0 is the best choice, 1 the worst.

    Returns
    -------
    float
        At least 0; 0 where all true values are equal, normalised too, because nothing can then be lost.

    Raises
    ------
    ValueError
        As `spearman`, or if `k` is no integer in its range.

    Examples
    --------
    >>> regret_at_k([0.9, 0.5, 0.1], [2.0, 4.0, 0.0]), regret_at_k([0.9, 0.5, 0.1], [2.0, 4.0, 0.0], normalized=True)
    (2.0, 0.5)
    """
    owner = "regret_at_k"
    x, y = _pair(owner, estimates, true_values, missing)
    regret = float(y.max() - y[_top(x, y, _check_k(owner, k, len(x)))].max())
    spread = float(y.max() - y.min())
    return regret / spread if normalized and spread > 0.0 else regret


def precision_at_k(
    estimates: npt.ArrayLike, true_values: npt.ArrayLike, k: int = 1, *, missing: Missing = "raise"
) -> float:
    """Return the share of the k policies with the highest estimates that are among the k best.

    Parameters
    ----------
    estimates, true_values, missing, k
        As in `regret_at_k`.

    Returns
    -------
    float
        In [0, 1]. Every policy as good as the k-th best counts as one of the k best.

    Raises
    ------
    ValueError
        As `regret_at_k`.

    Examples
    --------
    >>> precision_at_k([0.9, 0.5, 0.1], [2.0, 0.0, 4.0], k=2)
    0.5
    """
    owner = "precision_at_k"
    x, y = _pair(owner, estimates, true_values, missing)
    k = _check_k(owner, k, len(x))
    return float(np.mean(y[_top(x, y, k)] >= np.sort(y)[-k]))


# -------------------------------------------------------------------- error and intervals


def mean_absolute_error(estimates: npt.ArrayLike, true_values: npt.ArrayLike) -> float:
    """Return the mean of |estimate - true value|.

    Parameters
    ----------
    estimates, true_values : array-like of shape (K,)
        All finite: an error of a failed estimate does not exist, so leave these policies out, and say how many there were.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If shapes differ, nothing is given, or a value is not finite.

    Examples
    --------
    >>> mean_absolute_error([1.0, 2.0], [1.5, 1.5])
    0.5
    """
    x, y = _pair("mean_absolute_error", estimates, true_values, "raise")
    return float(np.abs(x - y).mean())


def coverage(low: npt.ArrayLike, high: npt.ArrayLike, true_values: npt.ArrayLike) -> float:
    """Return the share of intervals that hold the true value; their ends belong to them.

    Parameters
    ----------
    low, high : array-like of shape (K,)
        Ends of the intervals, infinite for one-sided ones; never NaN.
    true_values : array-like of shape (K,)

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If shapes differ, nothing is given, an end is NaN or a lower end lies above its upper end.

    Examples
    --------
    >>> coverage([0.0, 0.0], [1.0, float("inf")], [2.0, 2.0])
    0.5
    """
    lower, upper, y = _intervals("coverage", low, high, true_values)
    return float(np.mean((lower <= y) & (y <= upper)))


def interval_score(low: npt.ArrayLike, high: npt.ArrayLike, true_values: npt.ArrayLike, level: float = 0.95) -> float:
    """Return the mean interval score: width, plus a penalty for what lies outside; lower is better.

    Parameters
    ----------
    low, high, true_values
        As in `coverage`.
    level : float
        Nominal level of the intervals, in (0, 1).

    Returns
    -------
    float
        In the unit of the values; infinite where an interval is, also one of a single infinite point, which misses every value.

    Raises
    ------
    ValueError
        As `coverage`, or if `level` lies outside (0, 1).

    Notes
    -----
    (u - l) + (2 / alpha) (l - x)+ + (2 / alpha) (x - u)+ with alpha = 1 - level: its expectation is least at the true
    quantiles, so that neither wide nor overconfident intervals win.

    References
    ----------
    Gneiting & Raftery (2007), "Strictly proper scoring rules, prediction, and estimation", doi:10.1198/016214506000001437.

    Examples
    --------
    >>> round(interval_score([0.0, 0.0], [1.0, 1.0], [0.5, 1.1], level=0.9), 10)
    2.0
    """
    lower, upper, y = _intervals("interval_score", low, high, true_values)
    if isinstance(level, bool) or not 0.0 < level < 1.0:
        raise ValueError(f"interval_score: `level` must lie in (0, 1), got {level!r}; pass 0.95 for 95 %.")
    outside = np.maximum(lower - y, 0.0) + np.maximum(y - upper, 0.0)
    width = np.subtract(upper, lower, out=np.zeros(len(y)), where=lower < upper)
    return float(np.mean(width + 2.0 / (1.0 - level) * outside))


# -------------------------------------------------------------------- safety


def type_1_error(
    scores: npt.ArrayLike, true_values: npt.ArrayLike, baseline: float, *, missing: Missing = "raise"
) -> float:
    """Return the share of the policies that are not better than the baseline which the gate lets pass.

    Parameters
    ----------
    scores : array-like of shape (K,)
        Estimates or lower bounds: a policy passes where its score exceeds `baseline`.
    true_values : array-like of shape (K,)
    baseline : float
        Value that a policy must exceed; a policy of exactly this value is not better.
    missing : {"raise", "last"}
        What to do with scores that are not finite: refuse them, or let none of them pass.

    Returns
    -------
    float
        In [0, 1]; NaN if every policy is better than the baseline.

    Raises
    ------
    ValueError
        As `spearman`, or if `baseline` is not finite.

    Examples
    --------
    >>> type_1_error([0.9, 0.2, 0.8], [0.4, 0.3, 0.7], baseline=0.5)
    0.5
    """
    passes, better = _gate("type_1_error", scores, true_values, baseline, missing)
    return _share(passes[~better])


def type_2_error(
    scores: npt.ArrayLike, true_values: npt.ArrayLike, baseline: float, *, missing: Missing = "raise"
) -> float:
    """Return the share of the policies better than the baseline which the gate does not let pass.

    Parameters
    ----------
    scores, true_values, baseline, missing
        As in `type_1_error`.

    Returns
    -------
    float
        In [0, 1]; NaN if no policy is better than the baseline.

    Raises
    ------
    ValueError
        As `type_1_error`.

    Examples
    --------
    >>> type_2_error([0.9, 0.2, 0.4], [0.4, 0.6, 0.7], baseline=0.5)
    1.0
    """
    passes, better = _gate("type_2_error", scores, true_values, baseline, missing)
    return _share(~passes[better])


def safety_violation_rate(
    estimates: npt.ArrayLike, true_values: npt.ArrayLike, baseline: float, k: int = 1, *, missing: Missing = "raise"
) -> float:
    """Return the share of the k policies with the highest estimates whose true value is below the baseline.

    Parameters
    ----------
    estimates, true_values, missing, k
        As in `regret_at_k`.
    baseline : float
        A policy of exactly this value does no harm.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        As `regret_at_k`, or if `baseline` is not finite.

    Examples
    --------
    >>> safety_violation_rate([0.9, 0.8, 0.1], [0.4, 0.6, 0.2], baseline=0.5, k=2)
    0.5
    """
    owner = "safety_violation_rate"
    x, y = _pair(owner, estimates, true_values, missing)
    return float(np.mean(y[_top(x, y, _check_k(owner, k, len(x)))] < _check_baseline(owner, baseline)))


def sharpe_ratio_at_k(
    estimates: npt.ArrayLike, true_values: npt.ArrayLike, baseline: float, k: int, *, missing: Missing = "raise"
) -> float:
    """Return SharpeRatio@k: the gain of trying the k policies with the highest estimates over the risk of doing so.

    Parameters
    ----------
    estimates, true_values, missing, k
        As in `regret_at_k`.
    baseline : float
        True value of the policy in use.

    Returns
    -------
    float
        (best@k - baseline) / std@k; NaN where the k true values are equal, and so always for k = 1.

    Raises
    ------
    ValueError
        As `regret_at_k`, or if `baseline` is not finite.

    Notes
    -----
    best@k is the highest true value of the k policies with the highest estimates, std@k the standard deviation of their
    true values with divisor k. Negative where all k are worse than the baseline; the paper counts the policy in use among the
    candidates, where it is tried with them: append it to both arrays for that.

    References
    ----------
    Kiyohara, Kishimoto, Kawakami, Kobayashi, Nakata, Saito (2024), "Towards assessing and benchmarking risk-return
    tradeoff of off-policy evaluation", ICLR.

    Examples
    --------
    >>> sharpe_ratio_at_k([0.9, 0.8, 0.1], [2.0, 4.0, 9.0], baseline=3.0, k=2)
    1.0
    """
    owner = "sharpe_ratio_at_k"
    x, y = _pair(owner, estimates, true_values, missing)
    chosen = y[_top(x, y, _check_k(owner, k, len(x)))]
    return _sharpe(chosen, _check_baseline(owner, baseline))


def top_k_risk_return(
    estimates: npt.ArrayLike,
    true_values: npt.ArrayLike,
    baseline: float,
    ks: npt.ArrayLike | None = None,
    *,
    missing: Missing = "raise",
) -> pd.DataFrame:
    """Return risk and return of trying the k policies with the highest estimates, for every k.

    Parameters
    ----------
    estimates, true_values, missing
        As in `spearman`.
    baseline : float
        True value of the policy in use.
    ks : array-like of int, optional
        Default: 1 to the number of policies.

    Returns
    -------
    DataFrame
        Index k. Of the true values of the k policies: `kth` (that of the k-th), `best`, `worst`, `mean`, `std` (divisor k),
        `regret`, `safety_violation_rate` and `sharpe_ratio`.

    Raises
    ------
    ValueError
        As `sharpe_ratio_at_k`.

    Examples
    --------
    >>> top_k_risk_return([0.9, 0.8, 0.1], [2.0, 4.0, 9.0], baseline=3.0, ks=[1, 2])[["best", "worst", "sharpe_ratio"]]
       best  worst  sharpe_ratio
    k
    1   2.0    2.0           NaN
    2   4.0    2.0           1.0
    """
    import pandas as pd

    owner = "top_k_risk_return"
    x, y = _pair(owner, estimates, true_values, missing)
    baseline = _check_baseline(owner, baseline)
    wanted = range(1, len(x) + 1) if ks is None else np.atleast_1d(np.asarray(ks)).tolist()
    sizes = [_check_k(owner, k, len(x)) for k in wanted]
    rows = [_risk_return(y[_top(x, y, k)], y.max(), baseline) for k in sizes]
    return pd.DataFrame(rows, index=pd.Index(sizes, name="k"))


def _risk_return(chosen: FloatArray, best: float, baseline: float) -> dict[str, float]:
    return {
        "kth": float(chosen[-1]),
        "best": float(chosen.max()),
        "worst": float(chosen.min()),
        "mean": float(chosen.mean()),
        "std": float(chosen.std()),
        "regret": float(best - chosen.max()),
        "safety_violation_rate": float(np.mean(chosen < baseline)),
        "sharpe_ratio": _sharpe(chosen, baseline),
    }


def _sharpe(chosen: FloatArray, baseline: float) -> float:
    # Equal values have a standard deviation of rounding errors, which is no spread.
    return float("nan") if _constant(chosen) else float((chosen.max() - baseline) / chosen.std())


# -------------------------------------------------------------------- shared


def _top(x: FloatArray, y: FloatArray, k: int) -> npt.NDArray[np.intp]:
    return np.lexsort((y, -x))[:k]


def _constant(x: FloatArray) -> bool:
    return bool(x.min() == x.max())


def _share(flags: npt.NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


def _gate(
    owner: str, scores: npt.ArrayLike, true_values: npt.ArrayLike, baseline: float, missing: Missing
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    x, y = _pair(owner, scores, true_values, missing)
    baseline = _check_baseline(owner, baseline)
    return x > baseline, y > baseline


def _pair(
    owner: str, estimates: npt.ArrayLike, true_values: npt.ArrayLike, missing: Missing
) -> tuple[FloatArray, FloatArray]:
    x, y = _column(owner, "estimates", estimates), _column(owner, "true_values", true_values)
    _check_lengths(owner, "estimates", x, y)
    _check_finite(owner, "true_values", y, "compute or simulate them for every policy")
    if missing not in ("raise", "last"):
        raise ValueError(
            f"{owner}: `missing` must be 'raise' or 'last', got {missing!r}; 'last' ranks failed ones last."
        )
    if missing == "raise":
        _check_finite(owner, "estimates", x, "leave these policies out, or rank them last with missing='last'")
    return np.where(np.isfinite(x), x, -np.inf), y


def _intervals(
    owner: str, low: npt.ArrayLike, high: npt.ArrayLike, true_values: npt.ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    lower, upper = _column(owner, "low", low), _column(owner, "high", high)
    y = _column(owner, "true_values", true_values)
    for name, end in (("low", lower), ("high", upper)):
        _check_lengths(owner, name, end, y)
        if np.isnan(end).any():
            raise ValueError(
                f"{owner}: `{name}` must not be NaN, got {_named(np.isnan(end))}; leave these policies out."
            )
    _check_finite(owner, "true_values", y, "compute or simulate them for every policy")
    if (lower > upper).any():
        raise ValueError(f"{owner}: `low` must not exceed `high`, got {_named(lower > upper)}; exchange the ends.")
    return lower, upper, y


def _column(owner: str, name: str, values: Any) -> FloatArray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{owner}: `{name}` must be numeric, got dtype {array.dtype}; pass one number per policy.")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{owner}: `{name}` must have shape (K,) with K >= 1, got {array.shape}; one number per policy."
        )
    return array.astype(np.float64)


def _check_lengths(owner: str, name: str, x: FloatArray, y: FloatArray) -> None:
    if len(x) != len(y):
        raise ValueError(
            f"{owner}: `{name}` must have one entry per true value ({len(y)}), got {len(x)}; align the policies."
        )


def _check_finite(owner: str, name: str, x: FloatArray, remedy: str) -> None:
    if not np.isfinite(x).all():
        raise ValueError(f"{owner}: `{name}` must be finite, got others at {_named(~np.isfinite(x))}; {remedy}.")


def _check_k(owner: str, k: Any, n_policies: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= n_policies:
        raise ValueError(f"{owner}: `k` must be an integer from 1 to the {n_policies} policies, got {k!r}; lower it.")
    return int(k)


def _check_baseline(owner: str, baseline: Any) -> float:
    message = (
        f"{owner}: `baseline` must be a finite number, got {baseline!r}; pass the true value of the policy in use."
    )
    if isinstance(baseline, bool) or not isinstance(baseline, (int, float, np.floating, np.integer)):
        raise TypeError(message)
    if not np.isfinite(baseline):
        raise ValueError(message)
    return float(baseline)


def _named(bad: npt.NDArray[np.bool_]) -> str:
    rows = np.flatnonzero(bad)
    more = ", ..." if len(rows) > 5 else ""
    return f"positions {', '.join(str(int(row)) for row in rows[:5])}{more} ({len(rows)} in all)"
