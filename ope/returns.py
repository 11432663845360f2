"""`return_distribution`: the whole distribution of the return under a candidate, not only its mean, with a simultaneous band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.diagnostics import effective_sample_size
from ope.estimators._importance import discounted, weight_blocks
from ope.policy import Policy
from ope.schema import End
from ope.validation import FloatArray, IntArray, check_gamma, check_integer
from ope.weight_profile import check_weights_exist

OWNER = "return_distribution"
MAX_POINTS = 512


@dataclass(frozen=True, slots=True, eq=False)
class ReturnDistribution:
    """Distribution function of an episode's discounted return under a candidate, on a grid of logged returns.

    Parameters
    ----------
    returns : ndarray of shape (m,)
        Rising.
    cdf, low, high : ndarray of shape (m,)
        Estimated probability of a return of at most this, and the band around it.
    logged_cdf : ndarray of shape (m,)
        The same for the logging policy, without weights.
    level : float
        Confidence that the band holds the whole function.
    ess : float
        Effective number of episodes.
    truncated_share : float
        Share of the weight on episodes whose recording stopped: their return is counted up to there.

    Examples
    --------
    >>> one = np.ones(1)
    >>> ReturnDistribution(np.array([2.0]), one, one, one, one, 0.95, 10.0, 0.0).quantile(0.5)
    2.0
    """

    returns: FloatArray
    cdf: FloatArray
    low: FloatArray
    high: FloatArray
    logged_cdf: FloatArray
    level: float
    ess: float
    truncated_share: float

    def quantile(self, probability: float) -> float:
        """Return the smallest return of the grid that is not exceeded with at least this probability."""
        reached = np.searchsorted(self.cdf, probability - 1e-12, side="left")
        return float(self.returns[min(int(reached), len(self.returns) - 1)])


def return_distribution(
    data: LoggedDataset,
    policy: Policy,
    *,
    gamma: float,
    level: float = 0.95,
    n_replicates: int = 4000,
    random_state: int = 0,
) -> ReturnDistribution:
    """Estimate the distribution of the discounted return under a candidate.

    Parameters
    ----------
    data : LoggedDataset
        With propensities.
    policy : Policy
        That gives the probability (density) of logged actions.
    gamma : float
    level : float
        Of the band, in (0, 1).
    n_replicates : int
        Simulated suprema.
    random_state : int

    Returns
    -------
    ReturnDistribution

    Raises
    ------
    ValueError
        If the log has no propensities, no episode has a positive weight, or a parameter is out of its range.
    TypeError
        If the policy gives no probabilities of logged actions.

    Notes
    -----
    F(x) = sum_i p_i 1{G_i <= x} with p_i = W_i / sum_k W_k, the final weights of the episodes. The band is F -+ c, as that
    of Dvoretzky, Kiefer and Wolfowitz, with c the quantile of sup_x |sum_i xi_i p_i (1{G_i <= x} - F(x))| for standard
    normal xi_i: without weights this is Kolmogorov's limit, 1.36 / sqrt(n) at 95 %. It holds as n grows and, as every
    statement from the weights, fails where the log has hardly seen what the candidate does: read it with the verdict of a
    weighted estimate.

    References
    ----------
    Chandak, Niekum, da Silva, Learned-Miller, Brunskill, Thomas (2021). Universal off-policy evaluation. NeurIPS.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> law = return_distribution(log, TabularPolicy([[0.8, 0.2]]), gamma=1.0)
    >>> law.returns, law.cdf
    (array([0., 1.]), array([0.2, 1. ]))
    """
    check_weights_exist(OWNER, data, policy)
    check_gamma(OWNER, gamma)
    check_integer(OWNER, "n_replicates", n_replicates, 100, "4000 is usual")
    if not 0.0 < level < 1.0:
        raise ValueError(f"{OWNER}: `level` must lie in (0, 1), got {level!r}; pass 0.95 for 95 %.")
    log_w, returns = _weights_and_returns(data, policy, gamma)
    share = _shares(log_w)
    grid, bins = _grid(returns, share)
    cdf = np.cumsum(_sums(bins, share, len(grid)))
    half = band_width(_sums(bins, share**2, len(grid)), cdf, level, n_replicates, random_state)
    return ReturnDistribution(
        returns=grid,
        cdf=np.minimum(cdf, 1.0),
        low=np.clip(cdf - half, 0.0, 1.0),
        high=np.clip(cdf + half, 0.0, 1.0),
        logged_cdf=np.cumsum(np.bincount(bins, minlength=len(grid))) / len(returns),
        level=level,
        ess=effective_sample_size(log_w),
        truncated_share=float(share[np.asarray(data.ends) == End.TRUNCATED].sum()),
    )


def band_width(squares: FloatArray, cdf: FloatArray, level: float, n_replicates: int, seed: int) -> float:
    """Return the half width of a simultaneous band around a weighted distribution function.

    Parameters
    ----------
    squares : ndarray of shape (m,)
        Sum of the squared shares of the episodes at each point of the grid.
    cdf : ndarray of shape (m,)
    level : float
    n_replicates, seed : int

    Examples
    --------
    >>> m = 400
    >>> width = band_width(np.full(m, 1 / m**2), np.arange(1, m + 1) / m, 0.95, 4000, 0)
    >>> abs(width * m**0.5 - 1.36) < 0.08
    True
    """
    # Normal multipliers of the episodes of one point add up to one normal variable: the cost does not grow with n.
    rng, half = np.random.default_rng(seed), np.empty(n_replicates)
    for b in range(0, n_replicates, 500):
        z = rng.standard_normal((min(500, n_replicates - b), len(squares)))
        walk = np.cumsum(z * np.sqrt(squares), axis=1)
        half[b : b + 500] = np.abs(walk - cdf * walk[:, -1:]).max(axis=1)
    return float(np.quantile(half, level))


def _weights_and_returns(data: LoggedDataset, policy: Policy, gamma: float) -> tuple[FloatArray, FloatArray]:
    log_w, returns = [], []
    for block in weight_blocks(policy, data):
        log_w.append(block.final)
        returns.append(ragged.segment_sum(discounted(block.rewards, block.offsets, gamma), block.offsets))
    return np.concatenate(log_w), np.concatenate(returns)


def _shares(log_w: FloatArray) -> FloatArray:
    top = float(log_w.max())
    if np.isneginf(top):
        raise ValueError(
            f"{OWNER}: `policy` must take the actions of at least one logged episode, got weights of 0 only; "
            "the log says nothing about its return: use a candidate closer to the logging policy."
        )
    w = np.exp(log_w - top)
    return np.asarray(w / w.sum())


def _sums(bins: IntArray, values: FloatArray, size: int) -> FloatArray:
    return np.asarray(np.bincount(bins, values, size), dtype=np.float64)


def _grid(returns: FloatArray, share: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return rising points, the last the largest return, and the first point at or above each return."""
    points = np.unique(returns)
    if len(points) > MAX_POINTS:
        order = np.argsort(returns, kind="stable")
        # Half of the points follow the candidate, half the logging policy: both curves are drawn.
        ranks = np.linspace(0.0, 1.0, MAX_POINTS // 2)
        heavy = np.searchsorted(np.cumsum(share[order]), ranks * (1.0 - 1e-12))
        plain = (ranks * (len(order) - 1)).round().astype(np.int64)
        points = np.unique(returns[order][np.concatenate([heavy, plain])])
    return points, np.searchsorted(points, returns, side="left").astype(np.int64)
