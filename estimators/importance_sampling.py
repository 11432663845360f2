"""Trajectory, per-decision and self-normalised importance sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import EXACT, OffPolicyEstimator
from ope.estimators import _verdicts as verdicts
from ope.estimators._importance import (
    Form,
    ImportanceFit,
    WeightBlock,
    choose,
    clipping_bias,
    importance_fit,
    tail_finding,
    times,
    weight_blocks,
    weight_diagnostics,
    weight_findings,
)
from ope.estimators._importance import per_decision_scores as per_decision_scores
from ope.estimators._importance import steps_with_mass as steps_with_mass
from ope.estimators._importance import unlogged_mass as unlogged_mass
from ope.estimators._importance import weighted_per_decision_influence as weighted_per_decision_influence
from ope.policy import Policy, Requirement
from ope.validation import FloatArray, check_number
from ope.verdict import Verdict

Clip = float | Literal["lepski"] | None

# Limits of the cumulative weights that a Lepski choice tries, the least biased first.
CLIPS = (float("inf"), *(2.0**k for k in range(10, -1, -1)))


@dataclass(frozen=True)
class Clipping:
    """What is said of a limit of the weights."""

    diagnostics: dict[str, Any] = field(default_factory=dict)
    findings: list[verdicts.Finding] = field(default_factory=list)
    applied: bool = False


class ImportanceSampling(OffPolicyEstimator):
    """Importance sampling in its four classical forms.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    per_decision : bool
        Weight each reward by the ratios up to its step (lower variance) instead of the whole episode's.
    self_normalized : bool
        Divide by the sum of weights instead of the number of episodes: a small bias for much less variance.
    clip : float, "lepski" or None
        Upper limit of the cumulative weights. Biased; ``clip_bias`` is the bound of the bias or, self-normalised, the difference from the unclipped value. "lepski" takes the
        lowest of the limits 1024, 512, ..., 1 that the higher ones, and no limit at all, do not contradict.

    Notes
    -----
    With W_t = prod_{k<=t} pi(a_k|s_k) / b(a_k|s_k), per-decision importance sampling is the mean of
    sum_t gamma^t W_t r_t. The self-normalised form divides by sum_i W_it at each step, where an ended episode keeps its
    final weight. Weights are cumulated in log space. A truncated episode lacks its tail: its bound decides the verdict.

    References
    ----------
    Precup, Sutton, Singh (2000). Eligibility traces for off-policy policy evaluation. ICML.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> ImportanceSampling(gamma=1.0).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"logged_prob"}),)
    needs_propensities: ClassVar[bool] = True
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "on_policy_mean": EXACT,
            "one_step_bandit": EXACT,
            "shards_merge": EXACT,
            "padding": EXACT,
            "shift_rewards": "only self-normalised weights sum to one at every step",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        per_decision: bool = True,
        self_normalized: bool = False,
        clip: Clip = None,
    ) -> None:
        self.gamma = gamma
        self.per_decision = per_decision
        self.self_normalized = self_normalized
        self.clip = clip

    def _validate(self) -> None:
        super()._validate()
        if self.clip is not None and self.clip != "lepski":
            rule, remedy = 'a positive weight, "lepski" or None', "pass e.g. clip=20"
            check_number(type(self).__name__, "clip", self.clip, rule, remedy, 0.0, above=True)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        form = Form(self._gamma, self.per_decision, self.self_normalized)
        # Weights beyond the range of floats leave no finite value; the verdict says so, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            blocks, clipping = weight_blocks(policy, data), Clipping()
            if self.clip is None:
                fit = importance_fit(blocks, form, weight)
            else:
                fit, clipping = self._clipped(list(blocks), form, weight)
            diagnostics = weight_diagnostics(data, fit)
            findings = weight_findings(data, policy, fit, self._gamma, diagnostics, clipped=clipping.applied)
            trajectory = np.exp(fit.final_log_w) if fit.scores is not None and not self.per_decision else None
            diagnostics |= clipping.diagnostics
            tail, widening = tail_finding(data, fit, form, weight, diagnostics)
        return self._result(
            data,
            name,
            value=fit.value,
            influence=fit.influence,
            scores=fit.scores,
            weights=trajectory,
            widening=widening,
            effective_size=diagnostics["ess"],
            diagnostics=diagnostics,
            verdict=Verdict.of([*findings, *clipping.findings, tail]),
        )

    def _clipped(self, blocks: list[WeightBlock], form: Form, weight: FloatArray) -> tuple[ImportanceFit, Clipping]:
        clips = CLIPS if self.clip == "lepski" else (float(self.clip or np.inf),)
        fits = [importance_fit((block.clipped(clip) for block in blocks), form, weight) for clip in clips]
        choice = choose(fits)
        fit, clip = fits[choice.index], clips[choice.index]
        whole = fits[0] if np.isinf(clips[0]) else importance_fit(blocks, form, weight)
        bias, findings = _bias_of_clipping(blocks, form, fit, whole, clip)
        # What the log lacks shows in the weights as they are: clipped ones are small anyway.
        findings.append(verdicts.judge_lack(whole.mean_weight))
        diagnostics: dict[str, Any] = {"clip_bias": bias, "mean_weight_unclipped": whole.mean_weight}
        if self.clip == "lepski":
            diagnostics |= {"clip": clip, "choice": choice.reason([f"clip={value:g}" for value in clips])}
            judges = (verdicts.judge_choice, verdicts.judge_unseen_bias)
            findings.extend(judge(choice, f"clip={clip:g}") for judge in judges)
        return replace(fit, scores=None), Clipping(diagnostics, findings, applied=bool(np.isfinite(clip)))


def _bias_of_clipping(
    blocks: list[WeightBlock], form: Form, fit: ImportanceFit, whole: ImportanceFit, clip: float
) -> tuple[float, list[verdicts.Finding]]:
    """Return what clipping may move the value by, and what is said of it.

    A bound where weights are not normalised. Where they are, removing mass from one episode moves it to all others: the
    difference from the value of whole weights, as far as that is known.
    """
    if not np.isfinite(clip):
        return 0.0, []
    error = verdicts.standard_error(fit.influence)
    if form.self_normalized:
        bias, known_to = fit.value - whole.value, verdicts.standard_error(fit.influence - whole.influence)
        return bias, [verdicts.judge_bias("Clipping the weights", bias, known_to, error)]
    removed = [clipping_bias(*block, form.gamma, clip, form.per_decision) for block in blocks]
    bias = float(np.mean(times(np.concatenate(removed), fit.omega)))
    return bias, [verdicts.judge_clipping(bias, error)] if np.isfinite(fit.value + error) else []


class TrajectoryIS(ImportanceSampling):
    """Trajectory importance sampling: the mean of W_{T-1} G, unbiased, of high variance.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    clip : float, "lepski" or None
        Upper limit of the weights.

    Examples
    --------
    >>> TrajectoryIS(gamma=0.9)
    TrajectoryIS(gamma=0.9)
    """

    per_decision = False
    self_normalized = False

    def __init__(self, *, gamma: float | None = None, clip: Clip = None) -> None:
        self.gamma = gamma
        self.clip = clip


class PerDecisionIS(ImportanceSampling):
    """Per-decision importance sampling: the mean of sum_t gamma^t W_t r_t, unbiased.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    clip : float, "lepski" or None
        Upper limit of the cumulative weights.

    Examples
    --------
    >>> PerDecisionIS(gamma=0.9)
    PerDecisionIS(gamma=0.9)
    """

    per_decision = True
    self_normalized = False

    def __init__(self, *, gamma: float | None = None, clip: Clip = None) -> None:
        self.gamma = gamma
        self.clip = clip


class WeightedIS(ImportanceSampling):
    """Weighted (self-normalised) importance sampling.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    per_decision : bool
        Normalise the weights of each step (WPDIS, the default, which is at least as precise as a rule) or those of whole
        episodes (WIS).
    clip : float, "lepski" or None
        Upper limit of the cumulative weights.

    Examples
    --------
    >>> WeightedIS(gamma=0.9, per_decision=False)
    WeightedIS(gamma=0.9, per_decision=False)
    """

    laws: ClassVar[Mapping[str, str]] = MappingProxyType({**ImportanceSampling.laws, "shift_rewards": EXACT})
    self_normalized = True

    def __init__(self, *, gamma: float | None = None, per_decision: bool = True, clip: Clip = None) -> None:
        self.gamma = gamma
        self.per_decision = per_decision
        self.clip = clip
