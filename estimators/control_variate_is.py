"""Per-decision importance sampling with control variates: the weights themselves, whose expectation is known to be 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import EXACT, OffPolicyEstimator
from ope.estimators import _verdicts as verdicts
from ope.estimators._importance import (
    Form,
    ImportanceFit,
    WeightBlock,
    importance_fit,
    per_decision_scores,
    tail_finding,
    weight_blocks,
    weight_diagnostics,
    weight_findings,
)
from ope.estimators._weights import StepTotals
from ope.policy import Policy, Requirement
from ope.validation import FloatArray, check_integer
from ope.verdict import Verdict

EPISODES_PER_VARIATE = 20
# Weights of mean 1 that vary less than this are equal up to rounding.
NO_SPREAD = 1e-9
# Variates that differ by less noise than this, times 1 / sqrt(n), count as one: their difference has a direction of chance.
ALIKE = 3.0

# -------------------------------------------------------------------- mathematics


@dataclass(frozen=True)
class Adjusted:
    """A mean adjusted for variates of known mean 0.

    Parameters
    ----------
    value : float
    influence : ndarray of shape (n,)
    rank : int
        Number of linearly independent variates.
    leverage : float
        Largest leverage of one episode on the regression.
    """

    value: float
    influence: FloatArray
    rank: int
    leverage: float


def regression_adjusted(x: FloatArray, z: FloatArray, weight: FloatArray) -> Adjusted:
    """Return the mean of x with the least-squares multiple of the variates z, of known mean 0, taken off.

    Parameters
    ----------
    x : ndarray of shape (n,)
    z : ndarray of shape (n, k)
    weight : ndarray of shape (n,)
        Weights of mean 1.

    Returns
    -------
    Adjusted

    Notes
    -----
    The intercept of the regression of x on z: V = mean(x) - mean(z)' beta. It is the weighted mean of x with weights g_i = 1 -
    mean(z)' S^+ (z_i - mean(z)), under which every variate averages exactly 0; psi_i = g_i e_i with the residuals e.
    Of standardised variates, those directions count whose singular value is above min(3 / sqrt(n), 1/2) of the largest:
    others are of noise, and would be fitted to it.

    Examples
    --------
    >>> z = np.array([[-1.0], [1.0], [3.0]])
    >>> adjusted = regression_adjusted(5.0 + 2.0 * z[:, 0], z, np.ones(3))
    >>> round(adjusted.value, 12), adjusted.rank
    (5.0, 1)
    """
    root, means, mean_x = np.sqrt(weight), (weight @ z) / len(x), float(np.mean(weight * x))
    spread = np.sqrt((weight @ (z - means) ** 2) / len(x))
    useful = spread > NO_SPREAD
    scaled, residual = (z - means)[:, useful] / spread[useful], x - mean_x
    u, s, vt = np.linalg.svd(root[:, None] * scaled, full_matrices=False)
    rank = int((s > min(ALIKE / np.sqrt(len(x)), 0.5) * s.max(initial=0.0)).sum())
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    # In an orthonormal basis of the variates: what their means are off from 0, and the multiples of x that they explain.
    shift, slopes = (vt @ (means[useful] / spread[useful])) / s, u.T @ (root * residual)
    scores = np.divide(u, root[:, None], out=np.zeros_like(u), where=root[:, None] > 0)
    g = 1.0 - len(x) * scores @ shift
    influence = weight * g * (residual - scores @ slopes)
    return Adjusted(mean_x - float(shift @ slopes), influence, rank, float((u**2).sum(axis=1).max(initial=0.0)))


def step_coefficients(totals: StepTotals, mass: FloatArray, gamma: float, n_groups: int) -> FloatArray:
    """Return the multiples c_kt of the variates sum_t c_kt (W_t - 1), a row each that sums to 1 in absolute value.

    Parameters
    ----------
    totals : StepTotals
        Of the whole log.
    mass : ndarray of shape (H,)
        Discounted absolute rewards of each step.
    gamma : float
    n_groups : int
        Groups of consecutive steps of about equal mass.

    Returns
    -------
    ndarray of shape (at most 1 + n_groups, H)
        gamma^t m_t, the direction in which self-normalised weights adjust, and gamma^t in each group. Steps without rewards
        have no part.
    """
    discounts = np.where(mass > 0, gamma ** np.arange(len(mass)), 0.0)
    before = (np.cumsum(mass) - 0.5 * mass) / max(float(mass.sum()), np.finfo(float).tiny)
    group = np.minimum((n_groups * before).astype(np.int64), n_groups - 1)
    rows = [discounts * totals.mean_reward, *(np.where(group == k, discounts, 0.0) for k in range(n_groups))]
    sizes = [float(np.abs(row).sum()) for row in rows]
    return np.array([row / size for row, size in zip(rows, sizes, strict=True) if size > 0]).reshape(-1, len(mass))


def weight_variates(block: WeightBlock, coefficients: FloatArray) -> FloatArray:
    """Return Z_ik = sum_t c_kt (W_it - 1) over all steps up to the longest, ended episodes with their final weight.

    Parameters
    ----------
    block : WeightBlock
    coefficients : ndarray of shape (k, H)

    Returns
    -------
    ndarray of shape (n_episodes, k)

    Examples
    --------
    >>> block = WeightBlock(np.log([2.0, 4.0, 3.0]), np.zeros(3), np.array([0, 2, 3]))
    >>> weight_variates(block, np.array([[0.5, 0.5]]))
    array([[2.],
           [2.]])
    """
    steps, lengths = ragged.step_index(block.offsets), np.diff(block.offsets)
    live = ragged.segment_sum(np.expm1(block.log_w)[:, None] * coefficients.T[steps], block.offsets)
    # What is left of each row of coefficients after t steps, shape (H + 1, k).
    left = np.vstack([np.cumsum(coefficients.T[::-1], axis=0)[::-1], np.zeros(len(coefficients))])
    return np.asarray(live + np.expm1(block.final)[:, None] * left[lengths])


# -------------------------------------------------------------------- estimator


class ControlVariateIS(OffPolicyEstimator):
    """Per-decision importance sampling, adjusted by regression for what its weights are off from their mean of 1.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    n_groups : int
        Groups of consecutive steps, of about equal discounted rewards, whose weights are variates of their own, beside the one
        in the direction of self-normalised weights; at least 0. Fewer are used in a log of less than 20 episodes for each
        variate. Where weights are heavy-tailed, more than one or two do harm.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    E W_t = 1, so that Z_k = sum_t c_kt (W_t - 1) has mean 0 for any c. V is the intercept of the least-squares regression of
    X = sum_t gamma^t W_t r_t on Z_0, Z_1, ...: Z_0 with c_t = gamma^t m_t, m_t the self-normalised mean reward, the others with
    c_t = gamma^t in their group of steps. An ended episode keeps its final weight. X itself and, to first order, the
    self-normalised form X - Z_0 are multiples of these variates away from one another: the variance is asymptotically below
    both. psi_i = g_i e_i, with the residual e and the weight g = 1 - mean(Z)' S^+ (Z_i - mean(Z)) of the regression; m_t, the
    groups and the directions that count are taken as given, exact to first order because E Z = 0 whatever they are.

    Standard deviations measured on ModelFail with 1024 episodes: per-decision .192, self-normalised .059, this one .019.

    References
    ----------
    Owen, Zhou (2000). Safe and effective importance sampling. JASA 95.
    Thomas, Brunskill (2016). Data-efficient off-policy policy evaluation for reinforcement learning. ICML.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 0], [1.0, 1.0, 1.0, 1.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> round(ControlVariateIS(gamma=1.0).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    1.0
    """

    requires: ClassVar[Requirement] = (frozenset({"logged_prob"}),)
    needs_propensities: ClassVar[bool] = True
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "on_policy_mean": EXACT,
            "shards_merge": EXACT,
            "padding": EXACT,
            "one_step_bandit": "the regression on the weights is part of the bandit estimator too",
            "shift_rewards": "the groups of steps follow the size of the rewards",
        }
    )

    def __init__(self, *, gamma: float | None = None, n_groups: int = 1) -> None:
        self.gamma = gamma
        self.n_groups = n_groups

    def _validate(self) -> None:
        super()._validate()
        check_integer(type(self).__name__, "n_groups", self.n_groups, 0, "pass 1 or 2")

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        form = Form(self._gamma)
        blocks = list(weight_blocks(policy, data))
        # Weights beyond the range of floats leave no finite value; the verdict says so, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            plain = importance_fit(blocks, form, weight)
            fit, said = self._adjust(blocks, plain, weight)
            diagnostics = weight_diagnostics(data, fit)
            findings = weight_findings(data, policy, fit, self._gamma, diagnostics, clipped=False)
            diagnostics |= said
            tail, widening = tail_finding(data, fit, form, weight, diagnostics)
        return self._result(
            data,
            name,
            value=fit.value,
            influence=fit.influence,
            widening=widening,
            effective_size=diagnostics["ess"],
            diagnostics=diagnostics,
            verdict=Verdict.of([*findings, verdicts.judge_leverage(said["leverage"]), tail]),
        )

    def _adjust(
        self, blocks: list[WeightBlock], plain: ImportanceFit, weight: FloatArray
    ) -> tuple[ImportanceFit, dict[str, Any]]:
        """Return the adjusted fit, and what its diagnostics say of the adjustment."""
        n_groups = min(self.n_groups, max(len(weight) // EPISODES_PER_VARIATE - 1, 0))
        coefficients = step_coefficients(plain.totals, plain.summary.discounted_rewards, self._gamma, n_groups)
        x = np.concatenate([per_decision_scores(*block, self._gamma) for block in blocks])
        z = np.concatenate([weight_variates(block, coefficients) for block in blocks])
        if not (np.isfinite(x).all() and np.isfinite(z).all()):
            return plain, {"n_variates": 0, "leverage": 0.0, "variance_ratio": 1.0}
        adjusted = regression_adjusted(x, z, weight)
        before, after = (float(np.sum(psi**2)) for psi in (plain.influence, adjusted.influence))
        ratio = after / before if before > 0 else 1.0
        fit = replace(plain, value=adjusted.value, influence=adjusted.influence, scores=None)
        return fit, {"n_variates": adjusted.rank, "leverage": adjusted.leverage, "variance_ratio": ratio}
