"""Incremental importance sampling: the latest ratios only, each cut off where it is too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from ope.policy import Policy, Requirement, log_prob_logged
from ope.validation import FloatArray, IntArray, check_integer, check_number
from ope.verdict import Verdict

LEPSKI = "lepski"
# Limits of a single ratio that a Lepski choice tries after no limit at all.
CLIPS = tuple(2.0 ** (k / 2.0) for k in range(12, -1, -1))

# -------------------------------------------------------------------- mathematics


def incremental_log_weights(log_ratios: FloatArray, offsets: IntArray, window: int | None) -> FloatArray:
    """Return log w_t = sum of the last `window` log ratios up to step t, all of them for None, shape (n,).

    A ratio of zero kills the steps whose window holds it, and no others.

    Examples
    --------
    >>> np.exp(incremental_log_weights(np.log([2.0, 3.0, 5.0]), np.array([0, 3]), window=2)).round(9)
    array([ 2.,  6., 15.])
    """
    if window is None:
        return ragged.cumulative_log_weights(log_ratios, offsets)
    zero = np.isneginf(log_ratios)
    log_w = _over_window(np.where(zero, 0.0, log_ratios), offsets, window)
    if zero.any():
        log_w[_over_window(zero, offsets, window) > 0.5] = -np.inf
    return log_w


def _over_window(values: Any, offsets: IntArray, window: int) -> FloatArray:
    sums = ragged.segment_cumsum(values, offsets)
    late = np.flatnonzero(ragged.step_index(offsets) >= window)
    out = sums.copy()
    out[late] -= sums[late - window]
    return out


def prolonged(values: FloatArray, offsets: IntArray, extra: IntArray) -> FloatArray:
    """Return row-wise values with `extra` zeros added to the end of every episode.

    Examples
    --------
    >>> prolonged(np.array([1.0, 2.0, 3.0]), np.array([0, 2, 3]), np.array([1, 0]))
    array([1., 2., 0., 3.])
    """
    lengths = np.diff(offsets)
    new_offsets = ragged.offsets_of(lengths + extra)
    out = np.zeros(new_offsets[-1])
    out[np.arange(len(values)) + np.repeat(new_offsets[:-1] - offsets[:-1], lengths)] = values
    return out


class RatioBlock(NamedTuple):
    """Log ratios of single steps of whole episodes, and their rewards."""

    log_ratios: FloatArray
    rewards: FloatArray
    offsets: IntArray

    def weigh(self, option: Option, horizon: int) -> WeightBlock:
        """Return the weights of an option; ended episodes go on with ratios of 1 until these fill the window."""
        log_ratios = np.minimum(self.log_ratios, np.log(option.clip))
        if option.window is None:
            return WeightBlock(incremental_log_weights(log_ratios, self.offsets, None), self.rewards, self.offsets)
        lengths = np.diff(self.offsets)
        extra = np.clip(horizon - lengths, 0, option.window)
        offsets = ragged.offsets_of(lengths + extra)
        log_w = incremental_log_weights(prolonged(log_ratios, self.offsets, extra), offsets, option.window)
        return WeightBlock(log_w, prolonged(self.rewards, self.offsets, extra), offsets)


class Option(NamedTuple):
    """A number of ratios and their limit."""

    window: int | None = None
    clip: float = float("inf")

    def __str__(self) -> str:
        parts = [f"window={self.window}"] if self.window is not None else []
        parts += [f"clip={self.clip:.3g}"] if np.isfinite(self.clip) else []
        return ", ".join(parts) or "all ratios"


# -------------------------------------------------------------------- estimator


@dataclass(frozen=True)
class _Log:
    """The ratios of a log, and how options are fitted to them."""

    blocks: list[RatioBlock]
    horizon: int
    form: Form
    weight: FloatArray

    def fit(self, option: Option) -> ImportanceFit:
        weighed = [block.weigh(option, self.horizon) for block in self.blocks]
        # The weights of ended episodes go on, but what a truncated one lacks counts by its weight at its own end.
        ends = [
            after.log_w[after.offsets[:-1] + np.diff(before.offsets) - 1]
            for before, after in zip(self.blocks, weighed, strict=True)
        ]
        return replace(importance_fit(weighed, self.form, self.weight), final_log_w=np.concatenate(ends))


class IncrementalIS(OffPolicyEstimator):
    """Per-decision importance sampling with the latest ratios only, each limited.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    window : int, "lepski" or None
        Number of ratios, up to the step's own, that weigh a reward, at least 1; None for all. "lepski" takes the smallest of
        all, ..., 8, 4, 2, 1 that the larger ones do not contradict.
    clip : float, "lepski" or None
        Upper limit of a single ratio, at least 1; None for none. "lepski" takes the lowest of none, 64, 45, ..., 1.4, 1 that
        the higher ones do not contradict, with the window that is in force.
    self_normalized : bool
        Divide by the sum of weights of a step instead of the number of episodes.

    Raises
    ------
    ValueError, TypeError
        If a parameter is out of its range.

    Notes
    -----
    V = sum_t gamma^t mean_i(w_it r_it), w_it = prod_{k = t - window + 1}^{t} min(rho_ik, clip); the self-normalised form
    divides by mean_i w_it, where an ended episode goes on with ratios of 1. Dropping ratios is right where what happened
    before does not tell what a step earns, and biased by a covariance otherwise. The bias is reported as ``bias``: the
    difference to the form with all ratios, with its paired standard error. The choice is that of `ope.inference.lepski_choice`
    on paired influence values; psi is that of the chosen form.

    References
    ----------
    Guo, Thomas, Brunskill (2017). Using options and covariance testing for long horizon off-policy policy evaluation. NeurIPS.
    Su, Srinath, Krishnamurthy (2020). Adaptive estimator selection for off-policy evaluation. ICML.

    Examples
    --------
    >>> from ope.problems import ModelWin
    >>> from ope.policies import TabularPolicy
    >>> problem = ModelWin()
    >>> estimate = IncrementalIS(gamma=1.0).fit(problem.sample(1000), TabularPolicy(problem.target)).estimate()
    >>> estimate.diagnostics["window"], round(estimate.value, 2), round(problem.value(problem.target), 2)
    (2, 0.84, 0.92)
    """

    requires: ClassVar[Requirement] = (frozenset({"logged_prob"}),)
    needs_propensities: ClassVar[bool] = True
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "on_policy_mean": EXACT,
            "one_step_bandit": "a limit of the ratios changes the bandit estimator too",
            "shards_merge": EXACT,
            "padding": EXACT,
            "shift_rewards": "only self-normalised weights sum to one at every step",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        window: int | Literal["lepski"] | None = "lepski",
        clip: float | Literal["lepski"] | None = None,
        self_normalized: bool = True,
    ) -> None:
        self.gamma = gamma
        self.window = window
        self.clip = clip
        self.self_normalized = self_normalized

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        if self.window is not None and self.window != LEPSKI:
            check_integer(owner, "window", self.window, 1, 'pass a number of ratios, "lepski", or None for all')
        if self.clip is not None and self.clip != LEPSKI:
            rule = 'a ratio of at least 1, "lepski" or None'
            check_number(owner, "clip", self.clip, rule, "lower limits would shrink ratios of 1; pass e.g. clip=5", 1.0)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        form = Form(self._gamma, per_decision=True, self_normalized=self.self_normalized)
        # Weights beyond the range of floats leave no finite value; the verdict says so, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            log = _Log(ratio_blocks(policy, data), int(data.lengths.max()), form, weight)
            option, chosen, findings = self._choose(log)
            fit, unbiased = log.fit(option), log.fit(Option())
            diagnostics = weight_diagnostics(data, fit)
            clipped = bool(np.isfinite(option.clip))
            findings += weight_findings(data, policy, fit, self._gamma, diagnostics, clipped=clipped)
            diagnostics |= chosen
            findings.append(_judge_bias(option, fit, unbiased, diagnostics))
            if clipped:
                whole = unbiased if option.window is None else log.fit(Option(option.window))
                findings.append(verdicts.judge_lack(whole.mean_weight))
            tail, widening = tail_finding(data, fit, form, weight, diagnostics)
        return self._result(
            data,
            name,
            value=fit.value,
            influence=fit.influence,
            scores=fit.scores if option == Option() else None,
            widening=widening,
            effective_size=diagnostics["ess"],
            diagnostics=diagnostics,
            verdict=Verdict.of([*findings, tail]),
        )

    def _choose(self, log: _Log) -> tuple[Option, dict[str, Any], list[verdicts.Finding]]:
        """Return window and clip, the window chosen first, with what is said of them."""
        windows = self._windows(log.horizon)
        option, said, findings = _best(log, [Option(window) for window in windows])
        option, said_of_clip, more = _best(log, [Option(option.window, clip) for clip in self._clips()])
        diagnostics: dict[str, Any] = {"window": option.window or "all", "clip": option.clip}
        for key, sentence in (("choice", said), ("choice_of_clip", said_of_clip)):
            diagnostics |= {key: sentence} if sentence else {}
        return option, diagnostics, [*findings, *more]

    def _windows(self, horizon: int) -> list[int | None]:
        if not isinstance(self.window, str):
            return [None if self.window is None else int(self.window)]
        return [None, *(2**k for k in range(horizon.bit_length(), -1, -1) if 2**k < horizon)]

    def _clips(self) -> list[float]:
        if not isinstance(self.clip, str):
            return [np.inf if self.clip is None else float(self.clip)]
        return [np.inf, *CLIPS]


def ratio_blocks(policy: Policy, data: LoggedDataset) -> list[RatioBlock]:
    """Return the log ratios of all steps of a log, block by block."""
    blocks = []
    for block in data.blocks():
        assert block.behavior_log_prob is not None
        log_ratios = log_prob_logged(policy, block) - block.behavior_log_prob
        blocks.append(RatioBlock(log_ratios, block.rewards, block.offsets))
    return blocks


def _best(log: _Log, options: Sequence[Option]) -> tuple[Option, str, list[verdicts.Finding]]:
    if len(options) == 1:
        return options[0], "", []
    choice = choose([log.fit(option) for option in options])
    chosen = options[choice.index]
    findings = [judge(choice, str(chosen)) for judge in (verdicts.judge_choice, verdicts.judge_unseen_bias)]
    return chosen, choice.reason(options), findings


def _judge_bias(
    option: Option, fit: ImportanceFit, unbiased: ImportanceFit, diagnostics: dict[str, Any]
) -> verdicts.Finding:
    bias, bias_error = fit.value - unbiased.value, verdicts.standard_error(fit.influence - unbiased.influence)
    diagnostics |= {"bias": bias, "bias_std_error": bias_error}
    return verdicts.judge_bias(f"Using {option}", bias, bias_error, verdicts.standard_error(fit.influence))
