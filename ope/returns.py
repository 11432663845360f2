"""`return_distribution`: the whole distribution of the return under a candidate, not only its mean, with a simultaneous band."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ope import ragged, return_bands
from ope.dataset import LoggedDataset
from ope.diagnostics import effective_sample_size
from ope.estimate import Estimate
from ope.estimators import _verdicts as verdicts
from ope.estimators._importance import (
    Form,
    ImportanceFit,
    WeightBlock,
    discounted,
    importance_fit,
    tail_finding,
    unlogged_mass,
    weight_blocks,
    weight_diagnostics,
)
from ope.policy import Policy
from ope.return_bands import band_width as band_width
from ope.return_law import ReturnDistribution as ReturnDistribution
from ope.return_law import ReturnEvidence
from ope.return_sample import METHODS, Method, ReturnSample, fit_start_model
from ope.schema import End
from ope.validation import FloatArray, IntArray, check_gamma, check_integer, check_length, float_array
from ope.verdict import Level, Verdict
from ope.weight_profile import check_weights_exist

__all__ = ["ReturnDistribution", "return_distribution"]

OWNER = "return_distribution"
MAX_POINTS = 512
# Points of the finite-sample band, where the caller names none: each costs level, and F is only known between them.
BET_POINTS = 32
BandKind = Literal["asymptotic", "finite_sample"]


def return_distribution(
    data: LoggedDataset,
    policy: Policy,
    *,
    gamma: float,
    method: Method = "self_normalized",
    band: BandKind = "asymptotic",
    level: float = 0.95,
    points: npt.ArrayLike | None = None,
    episode_weight: npt.ArrayLike | None = None,
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
    method : {"self_normalized", "is", "doubly_robust"}
        How F(x) = P(G <= x) and everything read off it is estimated, see Notes.
    band : {"asymptotic", "finite_sample"}
        Of the candidate's distribution function. The logging policy's own, exact one is ``logged_band()`` of the result.
    level : float
        Of the band, in (0, 1).
    points : array-like of shape (K,), optional
        For the finite-sample band: returns chosen WITHOUT looking at the log, where F is bounded. Default: 32 points that divide the
        possible returns evenly, which needs a `reward_range` in the log, and a horizon or gamma < 1.
    episode_weight : array-like of shape (n_episodes,), optional
        Non-negative weights of episodes.
    n_replicates : int
        Simulated suprema.
    random_state : int
        Of the simulation and of the folds.

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
    With the final weights W_i of the episodes and any function h of the return, E[h(G)] under the candidate is estimated by

    - "is": mean W h(G), unbiased; its F ends at mean W instead of 1, and is cut off there at 1.
    - "self_normalized": sum W h(G) / sum W, a distribution.
    - "doubly_robust": mean [W (h(G) - m_h(s_0)) + m_h(s_0)], m_h a ridge regression of h(G) on the features of the FIRST STATE under
      the candidate, weighed by W and cross-fitted by episode (`ope.return_sample.StartModel`). Nothing after the first state is
      modelled. With right propensities any m leaves it unbiased; m only takes out the variance that first states and the mean weight
      bring. It is no protection against wrong propensities, because m learns from the same weights. F may fall between points: the
      largest value so far is reported.

    `band="asymptotic"` is F -+ c with c the quantile of sup_x |sum_i xi_i psi_i(x)| / n for standard normal xi_i and the influence
    psi(x) of F(x): the form of the band of Dvoretzky, Kiefer and Wolfowitz, which it becomes without weights (Kolmogorov's limit,
    1.36 / sqrt(n) at 95 %); "self_normalized" takes for psi(x) / n the change of F(x) when the episode is left out, which is longer
    where one carries much of the weight. It holds as n grows and, as every statement from the weights, fails where the log has hardly seen what the
    candidate does: read it with the verdict. `band="finite_sample"` holds for every n and any weights, bounded or not, given known
    propensities, independent episodes and `points` fixed before the data (`ope.return_bands.betting_band`); it is wider, does not
    depend on `method`, and need not hold its estimate in the middle.

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
    >>> round(law.variance().value, 6), round(law.cvar(0.4).value, 6), law.verdict.level.name
    (0.16, 0.5, 'REFUSE')
    """
    omega = _checked(data, policy, gamma, method, band, level, n_replicates, episode_weight)
    sample, fit, log_w = _sample(data, policy, gamma, method, omega, random_state)
    share = omega * sample.w / float(omega @ sample.w)
    evidence = _evidence(data, policy, gamma, sample, fit)
    grid, bins = _grid(sample.returns, share)
    raw = np.cumsum(_sums(bins, sample.masses(), len(grid)))
    cdf = np.clip(np.maximum.accumulate(raw), 0.0, 1.0)
    if band == "asymptotic":
        half = _half_width(sample, grid, bins, raw, level, n_replicates, random_state)
        low, high = return_bands.monotone(raw - half, raw + half)
    else:
        where = _points(points, evidence.support)
        low, high = _betting(np.exp(log_w), sample.returns, where, grid, level)
    return ReturnDistribution(
        returns=grid,
        cdf=cdf,
        low=low,
        high=high,
        logged_cdf=np.cumsum(_sums(bins, omega, len(grid))) / len(omega),
        level=level,
        ess=float(evidence.mean.diagnostics["ess"]),
        truncated_share=float(share[np.asarray(data.ends) == End.TRUNCATED].sum()),
        method=method,
        band=band,
        verdict=Verdict.of([*evidence.findings, _judge_known(data, band)]),
        evidence=evidence,
    )


# -------------------------------------------------------------------- parts


def _sample(
    data: LoggedDataset, policy: Policy, gamma: float, method: Method, omega: FloatArray, seed: int
) -> tuple[ReturnSample, ImportanceFit, FloatArray]:
    """Return what the method weighs returns by, the importance sampling fit that is judged, and final log weights."""
    returns: list[FloatArray] = []

    def seen() -> Iterator[WeightBlock]:
        for block in weight_blocks(policy, data):
            returns.append(ragged.segment_sum(discounted(block.rewards, block.offsets, gamma), block.offsets))
            yield block

    with np.errstate(over="ignore", invalid="ignore"):
        fit = importance_fit(seen(), Form(gamma, False, method != "is"), omega)
        log_w = fit.final_log_w
        w = _relative(log_w, omega) if method == "self_normalized" else np.exp(log_w)
    if not np.isfinite(w).all():
        raise ValueError(
            f'{OWNER}: `method` "{method}" must have weights within the range of floats, got some of exp({log_w.max():.0f}); '
            'pass method="self_normalized", or use a candidate closer to the logging policy.'
        )
    _check_seen(float(omega @ w))
    model = None
    if method == "doubly_robust":
        first = np.asarray(data.states[data.offsets[:-1]], dtype=np.float64)
        model = fit_start_model(first, data.episode_keys, w, omega, seed)
    return ReturnSample(method, np.concatenate(returns), w, omega, model), fit, log_w


def _relative(log_w: FloatArray, omega: FloatArray) -> FloatArray:
    """Return weights over their mean, without overflow; zeros where all are zero."""
    top = float(log_w[omega > 0].max())
    if np.isneginf(top):
        return np.zeros(len(log_w))
    w = np.exp(np.where(omega > 0, log_w - top, -np.inf))
    return np.asarray(w / (omega @ w) * len(w))


def _evidence(
    data: LoggedDataset, policy: Policy, gamma: float, sample: ReturnSample, fit: ImportanceFit
) -> ReturnEvidence:
    value, psi = sample.influence(sample.returns)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        diagnostics = weight_diagnostics(data, fit)
        diagnostics["ess"] = effective_sample_size(fit.weighed_final)
        diagnostics |= verdicts.influence_diagnostics(psi)
        mass, labels = unlogged_mass(data, policy)
        diagnostics["unlogged_mass"] = mass
        form = Form(gamma, False, sample.method != "is")
        tail, widening = tail_finding(data, fit, form, sample.omega, diagnostics)
    findings: list[verdicts.Finding] = [
        verdicts.judge_propensities(data, orthogonal=False),
        verdicts.judge_unlogged(mass, labels),
        verdicts.judge_ess(diagnostics["ess"], verdicts.THRESHOLDS.ess_caution, "importance weights"),
        verdicts.judge_mean_weight(diagnostics["mean_weight"]),
        tail,
    ]
    spread = [
        verdicts.judge_variation(diagnostics["largest_share"]),
        verdicts.judge_width(psi, data, gamma, data.horizon is None, widening),
    ]
    mean = Estimate(
        value=value,
        gamma=float(gamma),
        horizon=data.horizon,
        episode_keys=data.episode_keys,
        data_id=data.data_id,
        estimator=f"Mean[{sample.method}]",
        policy=type(policy).__name__,
        influence=psi,
        known_propensities=data.known_propensities,
        effective_size=diagnostics["ess"],
        widening=widening,
        diagnostics=diagnostics,
        verdict=Verdict.of([*findings, *spread]),
    )
    return ReturnEvidence(sample, mean, tuple(findings), possible_returns(data, gamma))


def possible_returns(data: LoggedDataset, gamma: float) -> tuple[float, float]:
    """Return the least and the largest return of an episode of one step or more, from the rewards' range known a priori.

    Examples
    --------
    >>> log = LoggedDataset.from_arrays(np.ones((2, 1)), [0, 1], [1.0, 0.0], lengths=[2], ends="horizon", horizon=2, reward_range=(-1, 1))
    >>> possible_returns(log, 0.5)
    (-1.5, 1.5)
    """
    if data.reward_range is None or (data.horizon is None and gamma == 1.0):
        return -math.inf, math.inf
    horizon = math.inf if data.horizon is None else float(data.horizon)
    whole = horizon if gamma == 1.0 else (1.0 - gamma**horizon) / (1.0 - gamma)
    low, high = data.reward_range
    return low * whole if low < 0.0 else low, high * whole if high > 0.0 else high


def _half_width(
    sample: ReturnSample, grid: FloatArray, bins: IntArray, cdf: FloatArray, level: float, n: int, seed: int
) -> float:
    if sample.method == "self_normalized":
        share = sample.masses()
        # What leaving an episode out does, exactly: its share also leaves the sum that divides.
        change = share / np.maximum(1.0 - share, 1e-6)
        return band_width(_sums(bins, change**2, len(grid)), cdf, level, n, seed)
    return return_bands.covariance_width(sample, grid, cdf, level, n, seed)


def _betting(
    w: FloatArray, returns: FloatArray, points: FloatArray, grid: FloatArray, level: float
) -> return_bands.Band:
    return return_bands.spread(return_bands.betting_band(w, returns, points, level), points, grid)


def _points(points: npt.ArrayLike | None, support: tuple[float, float]) -> FloatArray:
    if points is not None:
        given = np.unique(float_array(OWNER, "points", points, 1))
        if len(given):
            return given
        raise ValueError(
            f"{OWNER}: `points` must hold at least one return, got none; leave it out for evenly spaced ones."
        )
    if not np.isfinite(support).all():
        raise ValueError(
            f"{OWNER}: `points` must be given for a finite-sample band of a log without `reward_range` or of an endless gamma = 1, got None; "
            "pass returns that you choose without looking at the log, or reward_range= to the constructor of the log."
        )
    # The largest return needs no bound: F is 1 there.
    return np.unique(np.linspace(*support, BET_POINTS + 1)[:-1])


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


# -------------------------------------------------------------------- checks


def _checked(
    data: LoggedDataset,
    policy: Policy,
    gamma: float,
    method: str,
    band: str,
    level: float,
    n_replicates: int,
    episode_weight: npt.ArrayLike | None,
) -> FloatArray:
    """Check the parameters and return weights of episodes of mean 1."""
    check_weights_exist(OWNER, data, policy)
    check_gamma(OWNER, gamma)
    check_integer(OWNER, "n_replicates", n_replicates, 100, "4000 is usual")
    if not 0.0 < level < 1.0:
        raise ValueError(f"{OWNER}: `level` must lie in (0, 1), got {level!r}; pass 0.95 for 95 %.")
    for name, value, known in (("method", method, METHODS), ("band", band, get_args(BandKind))):
        if value not in known:
            raise ValueError(f"{OWNER}: `{name}` must be one of {known}, got {value!r}; pass one of them.")
    if episode_weight is None:
        return np.ones(data.n_episodes)
    if band == "finite_sample":
        raise ValueError(
            f"{OWNER}: `episode_weight` must be left out for a finite-sample band, got weights; it holds for episodes that count alike."
        )
    omega = float_array(OWNER, "episode_weight", episode_weight, 1)
    check_length(OWNER, "episode_weight", omega, data.n_episodes, "episode")
    if omega.min() < 0.0 or not omega.any():
        raise ValueError(
            f"{OWNER}: `episode_weight` must be non-negative and not all zero, got least {omega.min():g}; correct the weights."
        )
    return np.asarray(omega / omega.mean())


def _check_seen(total: float) -> None:
    if total == 0.0:
        raise ValueError(
            f"{OWNER}: `policy` must take the actions of at least one logged episode, got weights of 0 only; "
            "the log says nothing about its return: use a candidate closer to the logging policy."
        )


def _judge_known(data: LoggedDataset, band: str) -> verdicts.Finding:
    if band == "asymptotic" or data.known_propensities:
        return None
    return Level.CAUTION, (
        "The finite-sample band holds for known propensities, and those of this log were not recorded: their error is not in the band. Log the "
        'probabilities of the actions, or use band="asymptotic".'
    )
