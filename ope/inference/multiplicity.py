"""Several estimates at once: simultaneous critical values, adjusted p-values, step-down tests, all from influence values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from ope.inference.checks import FloatArray, finite_array
from ope.inference.intervals import require_two
from ope.inference.intervals import std_error as standard_errors

# Two estimates whose difference varies less than this share of what they vary themselves are one estimate, up to rounding.
SAME = 1e-10


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Adjust p-values by Holm's step-down procedure.

    Parameters
    ----------
    p_values : array-like of shape (m,)
        In [0, 1], under any dependence.

    Returns
    -------
    ndarray of shape (m,)
        Adjusted p-values in the given order: rejecting those at most alpha keeps the probability of any false rejection
        at most alpha.

    Notes
    -----
    With p_(1) <= ... <= p_(m): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).

    References
    ----------
    Holm (1979), "A simple sequentially rejective multiple test procedure".

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = _p_values("holm", p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def adjust_p_values(p_values: npt.ArrayLike, method: str = "holm") -> FloatArray:
    """Adjust p-values for their number.

    Parameters
    ----------
    p_values : array-like of shape (m,)
        In [0, 1].
    method : str
        "holm", "bonferroni", "none", or a method of `statsmodels.stats.multitest.multipletests`, such as "hommel" or
        "fdr_bh" (statsmodels is then imported).

    Returns
    -------
    ndarray of shape (m,)

    Raises
    ------
    ImportError
        If the method needs statsmodels and it is not installed.
    ValueError
        If no method has this name.

    Notes
    -----
    "fdr_..." methods control the expected share of false rejections, not the probability of any: they screen, they do not guard a deployment.

    Examples
    --------
    >>> adjust_p_values([0.01, 0.04, 0.03], "bonferroni")
    array([0.03, 0.12, 0.09])
    """
    p = _p_values("adjust_p_values", p_values)
    if method == "none":
        return p.copy()
    if method == "holm":
        return holm(p)
    if method == "bonferroni":
        return np.minimum(p * len(p), 1.0)
    return _by_statsmodels(p, method)


def _by_statsmodels(p: FloatArray, method: str) -> FloatArray:
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise ImportError(
            f"adjust_p_values: `method` {method!r} needs statsmodels; install it with pip install 'ope-learn[stats]', or use 'holm'."
        ) from error
    try:
        return np.asarray(multipletests(p, method=method)[1], dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            f"adjust_p_values: `method` must be 'holm', 'bonferroni', 'none' or one of statsmodels' multipletests, got {method!r}; use 'holm'."
        ) from error


def _p_values(owner: str, p_values: npt.ArrayLike) -> FloatArray:
    p = finite_array(owner, "p_values", p_values)
    if p.min() < 0.0 or p.max() > 1.0:
        raise ValueError(
            f"{owner}: `p_values` must lie in [0, 1], got values from {p.min()} to {p.max()}; pass probabilities."
        )
    return p


def error_draws(influence: FloatArray, n_replicates: int = 20_000, seed: int = 0) -> FloatArray:
    """Simulate the joint errors of K estimates: what they might miss their true values by.

    Parameters
    ----------
    influence : ndarray of shape (n, K)
        Centred influence values of K estimates on the same n episodes.
    n_replicates : int
        Number of draws B.
    seed : int

    Returns
    -------
    ndarray of shape (B, K)
        Each column has t distributed errors of n - 1 degrees of freedom and the standard error of its estimate; the joint
        distribution, and with it that of all differences, is that of psi.

    Raises
    ------
    IntervalNotAvailable
        For a single episode.

    Notes
    -----
    The multiplier bootstrap sum_i xi_i psi_ik / sqrt(n (n - 1)) with standard normal xi_i is, given psi, exactly normal with
    covariance Psi' Psi / (n (n - 1)), so it is drawn as such, at a cost that does not grow with n, and divided by
    sqrt(chi^2_{n-1} / (n - 1)). The root of the covariance is taken from Psi itself, not from its products, so that small
    differences of like estimates keep their digits.

    Examples
    --------
    >>> import numpy as np
    >>> psi = np.array([[-1.0, 1.0], [0.0, -2.0], [1.0, 1.0], [2.0, 0.0], [-2.0, 0.0]])
    >>> draws = error_draws(psi)
    >>> draws.shape, bool(abs(draws.std(axis=0) / np.sqrt(2 * (psi**2).sum(axis=0) / 20) - 1).max() < 0.03)
    ((20000, 2), True)
    """
    psi = finite_array("error_draws", "influence", influence, (2,))
    require_two("error_draws", len(psi))
    n = len(psi)
    scale = np.abs(psi).max(axis=0)
    safe = np.where(scale > 0.0, scale, 1.0)
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_replicates, psi.shape[1]))
    z /= np.sqrt(rng.chisquare(n - 1, n_replicates) / (n - 1))[:, None]
    return np.asarray(z @ (_symmetric_root(psi / safe) * (safe / np.sqrt(n * (n - 1.0)))))


def _symmetric_root(psi: FloatArray) -> FloatArray:
    """Return the symmetric root of Psi' Psi, shape (K, K), which does not depend on the order of the episodes."""
    triangle = np.asarray(np.linalg.qr(psi, mode="r"))
    _, sizes, vectors = np.linalg.svd(triangle, full_matrices=False)
    return np.asarray((vectors.T * sizes) @ vectors)


def pairwise(values: npt.ArrayLike, influence: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute all paired differences and their standard errors.

    Parameters
    ----------
    values : array-like of shape (K,)
    influence : ndarray of shape (n, K)

    Returns
    -------
    difference, std_error : ndarray of shape (K, K)
        Entry (a, b) is of a - b. Two estimates that differ by rounding only have difference and standard error 0.

    Examples
    --------
    >>> import numpy as np
    >>> difference, error = pairwise([1.0, 3.0], np.array([[1.0, 1.0], [-1.0, -1.0]]))
    >>> difference[1, 0].item(), error[1, 0].item()
    (2.0, 0.0)
    """
    v = finite_array("pairwise", "values", values)
    psi = finite_array("pairwise", "influence", influence, (2,))
    difference = v[:, None] - v[None, :]
    error = np.zeros_like(difference)
    own = standard_errors(psi)
    for k in range(len(v) - 1):
        row = standard_errors(psi[:, k + 1 :] - psi[:, [k]])
        row[row <= SAME * np.maximum(own[k], own[k + 1 :])] = 0.0
        error[k, k + 1 :] = error[k + 1 :, k] = row
    size = np.abs(v)[:, None] + np.abs(v)[None, :]
    difference[(error == 0.0) & (np.abs(difference) <= SAME * size)] = 0.0
    return difference, error


def t_statistics(difference: FloatArray, std_error: FloatArray) -> FloatArray:
    """Return difference / std_error; infinite where only the standard error is 0, and 0 where both are.

    Examples
    --------
    >>> import numpy as np
    >>> t_statistics(np.array([1.0, 2.0, 0.0]), np.array([0.5, 0.0, 0.0]))
    array([ 2., inf,  0.])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference / std_error
    return np.asarray(np.where((difference == 0.0) & (std_error == 0.0), 0.0, t))


def romano_wolf(statistics: npt.ArrayLike, draws: FloatArray, *, two_sided: bool = True) -> FloatArray:
    """Adjust p-values by Romano and Wolf's step-down procedure, which uses the dependence of the tests.

    Parameters
    ----------
    statistics : array-like of shape (m,)
        Studentised statistics; large ones speak against their hypotheses.
    draws : ndarray of shape (B, m)
        Draws of the statistics under all hypotheses: studentised errors of `error_draws`, or studentised centred replicates
        of an episode bootstrap.
    two_sided : bool
        Whether large negative statistics count too.

    Returns
    -------
    ndarray of shape (m,)
        Adjusted p-values: rejecting those at most alpha keeps the probability of any false rejection at most alpha.

    Notes
    -----
    With |t|_(1) >= ... >= |t|_(m): p_(i) = max over j <= i of (1 + #{b : max_{l >= j} |t*_b(l)| >= |t|_(j)}) / (B + 1).

    References
    ----------
    Romano & Wolf (2005), doi:10.1198/016214504000000539; (2016), doi:10.1016/j.spl.2016.02.012.

    Examples
    --------
    >>> import numpy as np
    >>> draws = np.random.default_rng(0).standard_normal((20_000, 1)) @ np.ones((1, 2))
    >>> romano_wolf([2.5, 2.0], draws).round(3), adjust_p_values([0.0124, 0.0455], "holm").round(3)
    (array([0.013, 0.044]), array([0.025, 0.046]))
    """
    t = np.asarray(statistics, dtype=np.float64)
    if t.ndim != 1 or np.isnan(t).any() or draws.shape[1:] != t.shape:
        raise ValueError(
            f"romano_wolf: `statistics` must have shape (m,) without NaN and `draws` (B, m), got {t.shape} and {draws.shape}; drop tests without a statistic."
        )
    size, null = (np.abs(t), np.abs(draws)) if two_sided else (t, draws)
    order = np.argsort(-size, kind="stable")
    largest = np.full(len(null), -np.inf)
    p = np.empty(len(t))
    for j in order[::-1]:
        np.maximum(largest, null[:, j], out=largest)
        p[j] = (1.0 + np.count_nonzero(largest >= size[j])) / (len(null) + 1.0)
    p[order] = np.maximum.accumulate(p[order])
    return p


def max_t_p_values(
    statistics: npt.ArrayLike, draws: FloatArray, *, two_sided: bool = True, p_values: npt.ArrayLike | None = None
) -> FloatArray:
    """Adjust p-values by the distribution of the largest statistic, in a single step.

    Parameters
    ----------
    statistics, draws, two_sided
        As in `romano_wolf`.
    p_values : array-like of shape (m,), optional
        Of the single tests. The adjusted ones are then kept between them and Bonferroni's, as `critical_value` is, and agree
        with it without simulation error; for a single test they are the same.

    Returns
    -------
    ndarray of shape (m,)
        At most alpha exactly where the simultaneous bound of level 1 - alpha excludes the hypothesis (up to simulation error).

    Examples
    --------
    >>> import numpy as np
    >>> draws = np.random.default_rng(0).standard_normal((20_000, 2))
    >>> max_t_p_values([2.5, 2.0], draws).round(2)
    array([0.03, 0.09])
    """
    t = np.asarray(statistics, dtype=np.float64)
    size, null = (np.abs(t), np.abs(draws)) if two_sided else (t, draws)
    if p_values is not None:
        return _between_single_and_bonferroni(size, null, _p_values("max_t_p_values", p_values))
    largest = np.sort(null.max(axis=1))
    above = len(largest) - np.searchsorted(largest, size, side="left")
    return np.asarray((1.0 + above) / (len(largest) + 1.0))


def _between_single_and_bonferroni(size: FloatArray, null: FloatArray, p: FloatArray) -> FloatArray:
    varies = null.any(axis=0)
    count = int(varies.sum())
    if count <= 1:
        return p.copy()
    largest = np.sort(null[:, varies].max(axis=1))
    # The inverse of the quantile of `critical_value`, interpolated like it.
    share = np.interp(size, largest, np.arange(1.0, len(largest) + 1.0) / (len(largest) + 1.0), left=0.0)
    return np.asarray(np.clip(1.0 - share, p, np.minimum(count * p, 1.0)))


def critical_value(draws: FloatArray, n: int, alpha: float, sides: int) -> float:
    """Find the 1 - alpha quantile of the largest of m studentised errors.

    Parameters
    ----------
    draws : ndarray of shape (B, m)
        Studentised errors; for two-sided statements their absolute values.
    n : int
        Number of episodes, or of replicates.
    alpha : float
    sides : {1, 2}

    Returns
    -------
    float
        Kept between the t quantiles of a single error and of Bonferroni, between which the exact value lies. Bonferroni's
        where alpha lies beyond what B draws can tell.

    Examples
    --------
    >>> import numpy as np
    >>> round(critical_value(np.abs(np.random.default_rng(0).standard_normal((20_000, 2))), 1000, 0.05, 2), 2)
    2.24
    """
    varies = draws.any(axis=0)
    count = max(int(varies.sum()), 1)
    single, bonferroni = (-float(stdtrit(n - 1, alpha / sides / m)) for m in (1, count))
    if count == 1:
        return single
    if alpha * (len(draws) + 1.0) < 1.0:
        return bonferroni
    quantile = float(np.quantile(draws[:, varies].max(axis=1), 1.0 - alpha, method="weibull"))
    return min(max(quantile, single), bonferroni)


def max_t_quantile(
    influence: FloatArray, alpha: float, n_replicates: int = 20_000, seed: int = 0, *, two_sided: bool = True
) -> float:
    """Find the critical value c of simultaneous intervals V_k -+ c se_k.

    Parameters
    ----------
    influence : ndarray of shape (n, K)
        Centred influence values of K estimates on the same n episodes. Columns without variance play no part.
    alpha : float
        Probability that any of the K intervals misses, in (0, 1).
    n_replicates : int
        Number of simulated maxima.
    seed : int
        Seed of the simulation.
    two_sided : bool
        False for one-sided bounds.

    Returns
    -------
    float

    Raises
    ------
    IntervalNotAvailable
        For a single episode.

    Notes
    -----
    Multiplier bootstrap: the 1 - alpha quantile of max_k |Z_k| (or max_k Z_k), Z_k = sum_i xi_i psi_ik /
    sqrt(sum_i psi_ik^2) with standard normal xi_i, drawn by `error_draws`, which makes K = 1 the t interval. The result is
    kept between the t quantiles for K = 1 and of Bonferroni, between which the exact value lies.

    References
    ----------
    Chernozhukov, Chetverikov & Kato (2013), doi:10.1214/13-AOS1161. Hothorn, Bretz & Westfall (2008),
    doi:10.1002/bimj.200810425.

    Examples
    --------
    >>> import numpy as np
    >>> psi = np.array([[-1.0, 1.0], [0.0, -2.0], [1.0, 1.0], [2.0, 0.0], [-2.0, 0.0]])
    >>> one, two = max_t_quantile(psi[:, :1], 0.05), max_t_quantile(psi, 0.05)
    >>> round(one, 3), one < two
    (2.776, True)
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"max_t_quantile: `alpha` must lie in (0, 1), got {alpha!r}; 0.05 is usual.")
    psi = finite_array("max_t_quantile", "influence", influence, (2,))
    require_two("max_t_quantile", len(psi))
    scale = np.abs(psi).max(axis=0)
    psi = psi[:, scale > 0.0] / scale[scale > 0.0]
    if psi.shape[1] <= 1:
        return -float(stdtrit(len(psi) - 1, alpha / (2 if two_sided else 1)))
    draws = error_draws(psi, n_replicates, seed) / standard_errors(psi)
    return critical_value(np.abs(draws) if two_sided else draws, len(psi), alpha, 2 if two_sided else 1)
