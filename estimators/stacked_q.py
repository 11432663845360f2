"""Stacking: least-squares temporal differences on the Q functions of several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import EXACT, OffPolicyEstimator, inherit_gamma, numbered_names
from ope.estimators import _linear as linear
from ope.estimators import _linear_fit as passes
from ope.estimators import _verdicts as verdicts
from ope.estimators._calibration import instruments
from ope.estimators._crossfit import CrossFittedQ, cross_fit_q, folds
from ope.estimators._features import FeatureBlock
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators.bellman_calibrated import OneView
from ope.estimators.fitted_q import FittedQEvaluation
from ope.estimators.importance_sampling import unlogged_mass
from ope.estimators.lstdq import LSTDQ
from ope.policy import Policy, Requirement, continuing_ends, used_rows
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Level, Verdict

# -------------------------------------------------------------------- mathematics


# With fewer, VALID stacks of wrong members covered .52 to .79 (docs/choice_of_q.md).
LEAST_SIZE = 100.0


def stacked_features(
    predictions: Sequence[QPredictions], data: LoggedDataset, stationary: bool, scale: float
) -> FeatureBlock:
    """Return [1, Q_1, ..., Q_M] / scale (the 1 as it is) as the features of a linear method."""
    known = continuing_ends(data, stationary) & data.final_known()
    phi = np.column_stack([np.ones(data.n_transitions), *(own.q / scale for own in predictions)])
    phi_bar = np.column_stack([np.ones(data.n_transitions), *(own.v / scale for own in predictions)])
    last = np.where(
        known[:, None], np.column_stack([np.ones(data.n_episodes), *(own.v_final / scale for own in predictions)]), 0.0
    )
    phi_next = ragged.shift_to_next(phi_bar, data.offsets, last)
    used = used_rows(data, stationary)
    return FeatureBlock(phi, phi_bar, phi_next, used, data.rewards, data.offsets, ragged.step_index(data.offsets))


@dataclass(frozen=True)
class Stack:
    """The solution towards a prior: theta = prior + what the data add.

    Parameters
    ----------
    value : float
    influence : ndarray of shape (n_episodes,)
    theta : ndarray of shape (S, M + 1)
    solution : LinearSolution
        Of what is added.
    stats : SecondPass
    """

    value: float
    influence: FloatArray
    theta: FloatArray
    solution: linear.LinearSolution
    stats: passes.SecondPass


def solve_towards(
    data: LoggedDataset,
    seen: FeatureBlock,
    prior: FloatArray,
    weight: FloatArray,
    gamma: float,
    ridge: float,
    n_values: int,
) -> Stack:
    """Solve (A + ridge) (theta - prior) = b - A prior, and return value, influence and diagnostics.

    Parameters
    ----------
    data : LoggedDataset
    seen : FeatureBlock
    prior : ndarray of shape (k,)
        Serves every step.
    weight : ndarray of shape (n_episodes,)
    gamma, ridge : float
    n_values : int
        1, or the horizon.
    """
    # What the prior leaves of the rewards takes their place: the rest is plain ridge regression.
    left = seen.rewards + (gamma * seen.phi_next - seen.phi) @ prior
    residual = replace(seen, rewards=left)
    log = OneView(passes.LinearView(data, residual, residual, None))
    solution = linear.solve(log.sums(weight, n_values), gamma, ridge)
    stats = passes.second_pass(log, weight, solution, gamma, passes.Instruments(instruments))
    start = seen.start @ prior
    mean = float(np.mean(weight * start))
    psi = stats.influence + weight * (start - mean)
    return Stack(mean + solution.value, psi, solution.theta + prior, solution, replace(stats, influence=psi))


# -------------------------------------------------------------------- estimator


class StackedQ(OffPolicyEstimator):
    """Stacking of Q functions: the combination of several Q methods that solves the Bellman equation on episodes they have not seen.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    q : list of Q-based estimators or None
        They inherit gamma. Default: `LSTDQ` and `FittedQEvaluation`.
    ridge : float
        Pull towards the uniform average: penalty on the squared distance of the coefficients from 1 / M each, with Q functions in
        units of their root mean square, as if so many transitions said so; its first-order bias is reported.
    n_folds : int
        The Q functions are cross-fitted by episode in so many folds, at least 2.
    random_state : int
        Seed of the folds, which are a hash of the episode identifiers.

    Notes
    -----
    phi = [1, Q_1, ..., Q_M] and A = sum phi (phi - gamma phibar(s'))' as in `LSTDQ`, theta = prior + (A + ridge)^-1 (b - A prior) with
    prior = [0, 1/M, ..., 1/M]. With a horizon there are coefficients for each step. psi is that of `LSTDQ` with the Q functions as
    fixed features. Coefficients (``weight_...`` in the diagnostics, means over the transitions) may be negative and need not
    sum to 1: members that err the same way are subtracted from each other. Where a member, or a combination, is the
    true Q function, it is the limit; the choice by least squared temporal difference is not. The verdict is at most CAUTION below 100
    effective episodes.

    References
    ----------
    Lagoudakis, Parr (2003). Least-squares policy iteration. JMLR 4.
    Breiman (1996). Stacked regressions. Machine Learning 24.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[1] * 8, ends="terminal", behavior_prob=[0.5] * 8
    ... )
    >>> stack = StackedQ(gamma=1.0, q=[LSTDQ(), LSTDQ(ridge=1.0)], n_folds=2, ridge=0.0)
    >>> round(stack.fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    requires: ClassVar[Requirement] = LSTDQ.requires
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {**QEstimator.laws, "scale_rewards": EXACT, "permute_episodes": EXACT}
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        q: list[QEstimator] | None = None,
        ridge: float = 1.0,
        n_folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.q = q
        self.ridge = ridge
        self.n_folds = n_folds
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_number(owner, "ridge", self.ridge, "a number of at least 0", "pass ridge=0 for none", 0.0)
        check_integer(owner, "n_folds", self.n_folds, 2, "the Q models must not see the episodes they are weighed on")
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")
        check_members(owner, self._members())
        for member in self._nested():
            member._validate()

    def _members(self) -> list[QEstimator]:
        return [LSTDQ(), FittedQEvaluation()] if self.q is None else self.q

    def _nested(self) -> list[QEstimator]:
        return [inherit_gamma(type(self).__name__, member, self._gamma) for member in self._members()]

    @property
    def needs_propensities(self) -> bool:  # type: ignore[override]
        """Whether a member reads them."""
        return any(getattr(member, "needs_propensities", False) for member in self.q or ())

    def _check_log(self, data: Any) -> None:
        super()._check_log(data)
        for member in self.q or ():
            if isinstance(member, QEstimator):
                member._check_log(data)

    def _check_policy(self, data: LoggedDataset, policy: Any, name: str) -> None:
        super()._check_policy(data, policy, name)
        for member in self._nested():
            member._check_policy(data, policy, name)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        stationary = bool(getattr(self._members()[0], "stationary", False)) or data.horizon is None
        parts = list(folds(type(self).__name__, data, weight, self.n_folds, self.random_state))
        members = [cross_fit_q(member, data, policy, weight, parts) for member in self._nested()]
        check_finite(type(self).__name__, members, self._members())
        scale = _scale(members, np.repeat(weight > 0, data.lengths))
        seen = stacked_features(members, data, stationary, scale)
        prior = np.concatenate([[0.0], np.full(len(members), scale / len(members))])
        n_values = 1 if stationary else int(data.horizon or 1)
        stack = solve_towards(data, seen, prior, weight, self._gamma, self.ridge, n_values)
        diagnostics, findings = self._diagnose(data, policy, stack, seen, members, scale, weight)
        return self._result(
            data,
            name,
            value=stack.value,
            influence=stack.influence,
            horizon=None if stationary else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _diagnose(
        self,
        data: LoggedDataset,
        policy: Policy,
        stack: Stack,
        seen: FeatureBlock,
        members: list[CrossFittedQ],
        scale: float,
        weight: FloatArray,
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        stationary = len(stack.theta) == 1
        diagnostics, findings = passes.diagnose(
            data,
            replace(stack.solution, value=stack.value),
            stack.stats,
            self._gamma,
            stationary=stationary,
            ridge=self.ridge,
        )
        row_weight = seen.row_weights(weight)
        shares = (
            row_weight
            @ stack.theta[linear.value_index(seen, len(stack.theta))]
            / max(row_weight.sum(), np.finfo(float).tiny)
        )
        diagnostics["intercept"] = float(shares[0])
        for label, share, member in zip(numbered_names(self._members()), shares[1:] / scale, members, strict=True):
            diagnostics[f"weight_{label}"] = float(share)
            diagnostics[f"value_{label}"] = float(np.mean(weight * member.v[data.offsets[:-1]]))
        findings.append(
            verdicts.judge_q_fits(sum(member.unfinished for member in members), self.n_folds * len(members))
        )
        findings += [verdicts.judge_unlogged(*unlogged_mass(data, policy)), judge_size(diagnostics["ess"])]
        return diagnostics, findings


def judge_size(ess: float) -> verdicts.Finding:
    """Judge whether there are episodes enough to see that all members are wrong."""
    if ess >= LEAST_SIZE:
        return None
    return Level.CAUTION, (
        f"The log is worth {ess:.0f} episodes to this candidate: with fewer than {LEAST_SIZE:.0f} the test of a stack hardly sees that all members are "
        "wrong, and the interval takes their Q functions as known. Log more episodes, or use a doubly robust method."
    )


def _scale(members: Sequence[QPredictions], counted: Any) -> float:
    """Return the root mean square of all predictions on rows that count, 1 where they are all 0."""
    size = float(np.sqrt(np.mean([np.mean(member.q[counted] ** 2) for member in members])))
    return size if size > 0 else 1.0


def check_members(owner: str, members: Any) -> None:
    """Raise unless these are Q methods that answer one question."""
    if not isinstance(members, (list, tuple)) or not members:
        raise ValueError(
            f"{owner}: `q` must be a list of Q-based estimators, got {members!r}; pass e.g. [LSTDQ(), FittedQEvaluation()]."
        )
    for member in members:
        if not isinstance(member, QEstimator):
            raise TypeError(
                f"{owner}: `q` must hold Q-based estimators (LSTDQ, FittedQEvaluation), got {type(member).__name__}; leave it out."
            )
    if len({bool(getattr(member, "stationary", False)) for member in members}) > 1:
        raise ValueError(
            f"{owner}: `q` must hold estimators of one value, got some with stationary=True and some without; set it in all or in none."
        )


def check_finite(owner: str, predictions: Sequence[QPredictions], members: Sequence[QEstimator]) -> None:
    """Raise where a Q method diverged beyond the range of floats."""
    for label, own in zip(numbered_names(members), predictions, strict=True):
        if not all(np.isfinite(part).all() for part in (own.q, own.v, own.v_final)):
            raise ValueError(
                f"{owner}: predictions of `q` must be finite, got infinite ones from {label}, which diverged; leave it out, or use trees or a smaller gamma."
            )
