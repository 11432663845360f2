"""Diagnostics of importance weights and influence vectors: pure functions, called by estimators and the report."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ope.validation import FloatArray


def log_sum_exp(log_values: npt.NDArray[np.float64]) -> float:
    """Return log(sum(exp(x))), -inf for nothing or only -inf."""
    top = float(np.max(log_values, initial=-np.inf))
    return top if not np.isfinite(top) else top + float(np.log(np.sum(np.exp(log_values - top))))


def effective_sample_size(log_weights: npt.NDArray[np.float64]) -> float:
    """Return (sum W)^2 / sum W^2 from log weights; 0 if all weights are 0.

    Parameters
    ----------
    log_weights : ndarray of shape (n,)

    Returns
    -------
    float
        Between 1 and n, or 0.

    Examples
    --------
    >>> round(effective_sample_size(np.log([1.0, 1.0, 1.0])), 6)
    3.0
    """
    total = log_sum_exp(log_weights)
    return 0.0 if not np.isfinite(total) else float(np.exp(2.0 * total - log_sum_exp(2.0 * log_weights)))


def largest_share(influence: FloatArray) -> float:
    """Return the largest share of sum psi^2 that one episode carries; 0 if psi vanishes, 1 if it is infinite somewhere.

    Examples
    --------
    >>> float(largest_share(np.array([1.0, -1.0, 0.0, 0.0])))
    0.5
    """
    relative = _relative(influence)
    if relative is None:
        return 1.0
    squares = relative**2
    total = float(squares.sum())
    return float(squares.max()) / total if total > 0 else 0.0


def influence_sample_size(influence: FloatArray) -> float:
    """Return (sum psi^2)^2 / sum psi^4, the number of episodes that carry the variance; n if psi vanishes.

    Examples
    --------
    >>> float(influence_sample_size(np.array([1.0, -1.0, 0.0, 0.0])))
    2.0
    """
    relative = _relative(influence)
    if relative is None or not relative.any():
        return float(len(influence))
    squares = relative**2
    return float(squares.sum() ** 2 / (squares**2).sum())


def skewness_ratio(influence: FloatArray) -> float:
    """Return sum psi^3 / (sum psi^2)^1.5: the skewness of the estimate's own distribution; its sign is the heavy side.

    NaN if psi is infinite somewhere.

    Examples
    --------
    >>> round(skewness_ratio(np.array([3.0, -1.0, -1.0, -1.0])), 3)
    0.577
    """
    relative = _relative(influence)
    if relative is None:
        return float("nan")
    second = float((relative**2).sum())
    return float((relative**3).sum()) / second**1.5 if second > 0 else 0.0


def _relative(influence: FloatArray) -> FloatArray | None:
    # In units of the largest value, so that powers of tiny or huge ones neither vanish nor overflow.
    top = float(np.max(np.abs(influence), initial=0.0))
    if not np.isfinite(top):
        return None
    return influence / top if top > 0 else influence


def pareto_k(log_weights: npt.NDArray[np.float64]) -> float:
    """Return the shape of a generalised Pareto tail fitted to the largest weights (PSIS); NaN where it cannot be fitted.

    Parameters
    ----------
    log_weights : ndarray of shape (n,)

    Returns
    -------
    float
        NaN with fewer than 5 tail weights or where ties make up the tail. Display it against
        min(1 - 1 / log10(n), 0.7).

    Notes
    -----
    The profile-likelihood estimate of Zhang and Stephens (2009) with the weakly informative prior of Vehtari et al. (2024)
    on the top min(0.2 n, 3 sqrt(n)) weights.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling. JMLR 25.

    Examples
    --------
    >>> u = (np.arange(2000) + 0.5) / 2000
    >>> abs(pareto_k(-0.5 * np.log(u)) - 0.5) < 0.1
    True
    """
    n_tail = int(min(0.2 * len(log_weights), 3.0 * np.sqrt(len(log_weights))))
    if n_tail < 5:
        return float("nan")
    ordered = np.sort(log_weights)[-n_tail - 1 :]
    if not np.isfinite(ordered[0]):
        return float("nan")
    weights = np.exp(ordered - ordered[-1])
    exceedances = weights[1:] - weights[0]
    if exceedances[0] <= 0 or len(np.unique(exceedances)) < n_tail / 2:
        return float("nan")
    return _zhang_stephens(exceedances)


def _zhang_stephens(x: FloatArray) -> float:
    n = len(x)
    n_grid = 30 + int(np.sqrt(n))
    grid = 1.0 - np.sqrt(n_grid / (np.arange(1, n_grid + 1) - 0.5))
    theta = grid / (3.0 * x[int(n / 4 + 0.5) - 1]) + 1.0 / x[-1]
    shapes = np.log1p(-theta[:, None] * x).mean(axis=1)
    log_likelihood = n * (np.log(-theta / shapes) - shapes - 1.0)
    posterior = np.exp(log_likelihood - log_sum_exp(log_likelihood))
    k = float(np.log1p(-float(np.sum(theta * posterior)) * x).mean())
    return (n * k + 10.0 * 0.5) / (n + 10.0)
