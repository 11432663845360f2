"""Kernel-smoothed importance sampling: deterministic candidates on continuous actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

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
    choose,
    importance_fit,
    tail_finding,
    weight_diagnostics,
    weight_findings,
)
from ope.policy import Policy, Requirement, action_nodes
from ope.validation import FloatArray, IntArray, check_number
from ope.verdict import Verdict

# -------------------------------------------------------------------- mathematics

LOG_SQRT_2PI = 0.5 * np.log(2.0 * np.pi)
# From the bandwidth to the next one of double variance: the step in which the bias doubles.
STEP = np.sqrt(2.0)
ENOUGH = 25.0
# Beyond this share of the behaviour's spread, Gaussian weights at the next bandwidth soon have an infinite variance.
WIDEST = 0.75
LEPSKI_SHARES = tuple(2.0 ** (-k / 2.0) for k in range(6, -1, -1))


class Kernel(NamedTuple):
    """A symmetric density of mean 0.

    Parameters
    ----------
    log_density : callable
        Of each coordinate.
    std : float
        Its standard deviation.
    """

    log_density: Callable[[FloatArray], FloatArray]
    std: float


def _gaussian(u: FloatArray) -> FloatArray:
    return np.asarray(-0.5 * u**2 - LOG_SQRT_2PI)


def _epanechnikov(u: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(0.75 * np.maximum(1.0 - u**2, 0.0)))


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {"gaussian": Kernel(_gaussian, 1.0), "epanechnikov": Kernel(_epanechnikov, float(np.sqrt(0.2)))}
)


def kernel_log_ratios(gaps: FloatArray, log_behavior: FloatArray, bandwidth: FloatArray, kernel: Kernel) -> FloatArray:
    """Return log [prod_j K(gap_j / h_j) / h_j / b(a|s)] of every row, shape (n,); -inf outside a kernel's support.

    Parameters
    ----------
    gaps : ndarray of shape (n, k)
        a - pi(s).
    log_behavior : ndarray of shape (n,)
        log b(a|s).
    bandwidth : ndarray of shape (k,)
    kernel : Kernel

    Examples
    --------
    >>> kernel_log_ratios(np.array([[0.0], [3.0]]), np.zeros(2), np.array([2.0]), KERNELS["epanechnikov"]).round(3)
    array([-0.981,   -inf])
    """
    return np.asarray((kernel.log_density(gaps / bandwidth) - np.log(bandwidth)).sum(axis=1) - log_behavior)


def behavior_scale(gaps: FloatArray, log_behavior: FloatArray, row_weight: FloatArray) -> FloatArray:
    """Return the spread of the behaviour around its own mean in each action dimension, shape (k,).

    Notes
    -----
    The entropy -mean(log b) of a Gaussian knows its standard deviation, whatever the mean: its geometric mean over the
    dimensions is exp(entropy / k) / sqrt(2 pi e). The gaps to the candidate tell the dimensions apart.

    Examples
    --------
    >>> from scipy.stats import norm
    >>> x = norm.ppf((np.arange(1000) + 0.5) / 1000)
    >>> behavior_scale(5.0 + 3.0 * x[:, None], norm.logpdf(3.0 * x, scale=3.0), np.ones(1000)).round(2)
    array([3.])
    """
    share = row_weight / row_weight.sum()
    spread = np.sqrt(share @ (gaps - share @ gaps) ** 2)
    if (spread <= 0).any():
        return np.zeros(gaps.shape[1])
    geometric = np.exp(-(share @ log_behavior) / len(spread)) / np.sqrt(2.0 * np.pi * np.e)
    return np.asarray(geometric * spread / np.exp(np.mean(np.log(spread))))


def rule_of_thumb(n: int, n_ratios: float, order: int) -> float:
    """Return the bandwidth in standard deviations of the behaviour: n^(-1 / (2 order + n_ratios)), at most 3/4.

    It balances a squared bias of order h^(2 order) with a variance of order h^(-n_ratios) / n.

    Examples
    --------
    >>> round(rule_of_thumb(1000, n_ratios=1, order=2), 3)
    0.251
    """
    return min(float(np.power(float(n), -1.0 / (2.0 * order + n_ratios))), WIDEST)


# -------------------------------------------------------------------- estimator


class _Gaps(NamedTuple):
    """What the ratios of a block are computed from at any bandwidth."""

    gaps: FloatArray
    log_behavior: FloatArray
    rewards: FloatArray
    offsets: IntArray

    def weigh(self, bandwidth: FloatArray, kernel: Kernel) -> WeightBlock:
        log_ratios = kernel_log_ratios(self.gaps, self.log_behavior, bandwidth, kernel)
        return WeightBlock(ragged.cumulative_log_weights(log_ratios, self.offsets), self.rewards, self.offsets)


class _Smoothed(NamedTuple):
    """The fit at a bandwidth, with the bias of smoothing and its influence; corrected for it where asked for."""

    bandwidth: FloatArray
    fit: ImportanceFit
    bias: float
    bias_influence: FloatArray


class KernelIS(OffPolicyEstimator):
    """Importance sampling for a deterministic candidate on continuous actions, smoothed by a kernel.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    bandwidth : "rule", "lepski", float or sequence of float
        Width of the kernel in the unit of the actions, one for all dimensions or one for each. "rule" balances the orders of
        bias and variance, and did best in our trials; "lepski" takes the widest of 1/8, 0.18, 0.25, ..., 0.7 (and, uncorrected,
        1) times the behaviour's spread that the narrower ones do not contradict.
    kernel : {"gaussian", "epanechnikov"}
        Product over the action dimensions; the second has the support |a_j - pi_j(s)| < h_j.
    per_decision : bool
        Weight each reward by the ratios up to its step instead of the whole episode's.
    self_normalized : bool
        Divide by the sum of weights instead of the number of episodes.
    correct_bias : bool
        Subtract the estimated bias of smoothing; otherwise the interval is widened by it.

    Raises
    ------
    TypeError
        If the candidate is not deterministic: one with a density has ratios of its own, see `ImportanceSampling`.
    ValueError
        If actions are discrete or a parameter is out of its range.

    Notes
    -----
    rho = K((a - pi(s)) / h) / h^k / b(a|s) are the exact ratios of the stochastic policy that adds kernel noise of width h to
    pi, so that E W_t = 1 and the only bias is J(pi + noise) - J(pi) = beta h^2 + O(h^4). The value at sqrt(2) h has twice the
    leading term: bias = V(sqrt(2) h) - V(h), with a standard error below that of the value, because wider kernels have
    less variance. Corrected, V = 2 V(h) - V(sqrt(2) h) and psi likewise, of bias O(h^4).

    The rule is h = sigma n^(-1 / (2 order + k T)), order 4 when corrected and 2 when not, sigma the spread of the behaviour from
    its entropy, T the mean length of the episodes, at most 3/4 sigma; times sqrt(5) for the second kernel, which has that
    much less spread. In psi the bandwidth counts as given.

    References
    ----------
    Kallus, Zhou (2018). Policy evaluation and optimization with continuous treatments. AISTATS.
    Calonico, Cattaneo, Farrell (2018). On the effect of bias estimation on coverage accuracy in nonparametric inference. JASA.

    Examples
    --------
    >>> from ope.policies import FunctionPolicy
    >>> g = np.random.default_rng(0)
    >>> a = g.normal(size=4000)
    >>> log = LoggedDataset.from_arrays(
    ...     np.zeros((4000, 1)), a, 1.0 - (a - 0.5) ** 2, lengths=[1] * 4000, ends="terminal",
    ...     behavior_prob=np.exp(-0.5 * a**2) / np.sqrt(2.0 * np.pi),
    ... )
    >>> half = FunctionPolicy(predict=lambda states: np.full((len(states), 1), 0.5))
    >>> estimate = KernelIS(gamma=1.0).fit(log, half).estimate()
    >>> round(estimate.value, 1), round(estimate.diagnostics["bias"], 1)
    (1.0, -0.2)
    """

    requires: ClassVar[Requirement] = (frozenset({"deterministic"}),)
    needs_propensities: ClassVar[bool] = True
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": "the policy that logged has a density, the candidate has none",
            "one_step_bandit": "the bandit estimator needs the density of the candidate",
            "shift_rewards": "only self-normalised weights sum to one at every step",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        bandwidth: float | Sequence[float] | Literal["rule", "lepski"] = "rule",
        kernel: Literal["gaussian", "epanechnikov"] = "gaussian",
        per_decision: bool = True,
        self_normalized: bool = True,
        correct_bias: bool = True,
    ) -> None:
        self.gamma = gamma
        self.bandwidth = bandwidth
        self.kernel = kernel
        self.per_decision = per_decision
        self.self_normalized = self_normalized
        self.correct_bias = correct_bias

    @classmethod
    def _class_accepts(cls, policy: Policy, discrete: bool) -> bool:
        return not discrete and super()._class_accepts(policy, discrete)

    def _check_log(self, data: Any) -> None:
        super()._check_log(data)
        if data.discrete:
            raise ValueError(
                f"{type(self).__name__}.fit: `data` must have continuous actions, got discrete ones; use ImportanceSampling, which needs no smoothing."
            )

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        if self.kernel not in KERNELS:
            raise ValueError(
                f"{owner}: `kernel` must be one of {sorted(KERNELS)}, got {self.kernel!r}; pass one of them."
            )
        if isinstance(self.bandwidth, str):
            if self.bandwidth not in ("rule", "lepski"):
                raise ValueError(
                    f'{owner}: `bandwidth` must be "rule", "lepski" or positive, got {self.bandwidth!r}; pass one of them.'
                )
            return
        for width in np.atleast_1d(np.asarray(self.bandwidth, dtype=object)):
            rule, remedy = 'positive, "rule" or "lepski"', "pass a width in the unit of the actions"
            check_number(owner, "bandwidth", width, rule, remedy, 0.0, above=True)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        form = Form(self._gamma, self.per_decision, self.self_normalized)
        blocks = [_gaps(policy, block) for block in data.blocks()]
        # Weights beyond the range of floats leave no finite value; the verdict says so, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            smoothed, said, findings = self._choose(data, blocks, form, weight)
            diagnostics = weight_diagnostics(data, smoothed.fit)
            findings += weight_findings(data, policy, smoothed.fit, self._gamma, diagnostics, clipped=False)
            diagnostics |= said
            finding, bias_widening = self._judge_bias(smoothed, diagnostics)
            tail, tail_widening = tail_finding(data, smoothed.fit, form, weight, diagnostics)
        return self._result(
            data,
            name,
            value=smoothed.fit.value,
            influence=smoothed.fit.influence,
            widening=bias_widening + tail_widening,
            effective_size=diagnostics["ess"],
            diagnostics=diagnostics,
            verdict=Verdict.of([*findings, finding, tail]),
        )

    # ---------------------------------------------------------------- bandwidth

    def _choose(
        self, data: LoggedDataset, blocks: list[_Gaps], form: Form, weight: FloatArray
    ) -> tuple[_Smoothed, dict[str, Any], list[verdicts.Finding]]:
        options = self._bandwidths(data, blocks, weight)
        tried = [self._smooth(blocks, bandwidth, form, weight) for bandwidth in options]
        if len(tried) == 1:
            return tried[0], {"bandwidth": _shown(options[0])}, []
        # Narrow kernels are only there to contradict wider ones: those that cannot must not.
        choice = choose([smoothed.fit for smoothed in tried], enough=ENOUGH)
        names = [f"bandwidth={_shown(bandwidth)}" for bandwidth in options]
        said = {"bandwidth": _shown(options[choice.index]), "choice": choice.reason(names)}
        return tried[choice.index], said, [verdicts.judge_balance(choice, names[choice.index])]

    def _bandwidths(self, data: LoggedDataset, blocks: list[_Gaps], weight: FloatArray) -> list[FloatArray]:
        """Return the bandwidths to try, shape (k,) each, the smallest first."""
        owner, k = type(self).__name__, data.actions.shape[1]
        if not isinstance(self.bandwidth, str):
            given = np.asarray(self.bandwidth, dtype=np.float64)
            if given.shape not in ((), (1,), (k,)):
                raise ValueError(
                    f"{owner}: `bandwidth` must be one width or one for each of the {k} action dimensions, got {self.bandwidth!r}; correct it."
                )
            return [np.broadcast_to(given, (k,))]
        gaps, log_behavior = (np.concatenate([block[part] for block in blocks]) for part in (0, 1))
        sigma = behavior_scale(gaps, log_behavior, np.repeat(weight, data.lengths))
        if not (np.isfinite(sigma).all() and (sigma > 0).all()):
            raise ValueError(
                f"{owner}: a bandwidth can be chosen only where logged actions vary around the candidate's, got a spread of {_shown(sigma)}; pass bandwidth=."
            )
        sigma = sigma / KERNELS[self.kernel].std
        if self.bandwidth == "lepski":
            widest = WIDEST if self.correct_bias else 1.0
            return [share * sigma for share in LEPSKI_SHARES if share <= widest]
        n_ratios = k * float(np.mean(weight * data.lengths))
        return [rule_of_thumb(data.n_episodes, n_ratios, 4 if self.correct_bias else 2) * sigma]

    def _smooth(self, blocks: list[_Gaps], bandwidth: FloatArray, form: Form, weight: FloatArray) -> _Smoothed:
        kernel = KERNELS[self.kernel]
        fit, wider = (
            importance_fit((block.weigh(width, kernel) for block in blocks), form, weight)
            for width in (bandwidth, STEP * bandwidth)
        )
        bias, psi = wider.value - fit.value, wider.influence - fit.influence
        if self.correct_bias:
            fit = replace(fit, value=fit.value - bias, influence=fit.influence - psi)
        return _Smoothed(bandwidth, replace(fit, scores=None), bias, psi)

    def _judge_bias(self, smoothed: _Smoothed, diagnostics: dict[str, Any]) -> tuple[verdicts.Finding, float]:
        error, bias_error = (verdicts.standard_error(psi) for psi in (smoothed.fit.influence, smoothed.bias_influence))
        diagnostics |= {"bias": smoothed.bias, "bias_std_error": bias_error, "bias_corrected": self.correct_bias}
        return verdicts.judge_smoothing(smoothed.bias, bias_error, error, self.correct_bias)


def _gaps(policy: Policy, block: LoggedDataset) -> _Gaps:
    assert block.behavior_log_prob is not None
    points = action_nodes(policy, block.rows(), 1, 0)[0][0]
    if points.shape != block.actions.shape:
        raise ValueError(
            f"KernelIS.fit: the policy's actions must have the shape of the logged ones, {block.actions.shape}, got {points.shape}; correct `predict`."
        )
    return _Gaps(block.actions - points, block.behavior_log_prob, block.rewards, block.offsets)


def _shown(bandwidth: FloatArray) -> float | tuple[float, ...]:
    widths = tuple(float(f"{width:.6g}") for width in bandwidth)
    return widths[0] if len(set(widths)) == 1 else widths
