"""Average reward per step of processes that never end: differential least-squares temporal differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import EXACT, OffPolicyEstimator
from ope.estimators import _linear as linear
from ope.estimators import _linear_fit as passes
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import Basis, FeatureBlock, check_features, feature_block, fit_basis, richer_features
from ope.estimators._importance import unlogged_mass
from ope.estimators.lstdq import LSTDQ
from ope.policy import Policy
from ope.schema import End
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Verdict

# -------------------------------------------------------------------- mathematics


def differential(seen: FeatureBlock, center: FloatArray) -> FeatureBlock:
    """Return a block with the features 1 and phi - center, of which the 1 does not come back at the next state.

    With them r + phi_next' theta - phi' theta of undiscounted least squares is r - eta + differences of phi' theta: the
    coefficient of the 1 is the average reward.

    Parameters
    ----------
    seen : FeatureBlock
    center : ndarray of shape (k,)
        Mean of phi over the log. Directions in which phi is constant, which no difference shows, become 0.
    """
    one, none = np.ones((len(seen.phi), 1)), np.zeros((len(seen.phi), 1))
    phi, following = np.hstack([one, seen.phi - center]), np.hstack([none, seen.phi_next - center])
    # Averages do not depend on where episodes start.
    return replace(seen, phi=phi, phi_next=following, phi_bar=np.zeros_like(phi), onward=None)


def solve_average(sums: linear.LinearSums, ridge: float) -> linear.LinearSolution:
    """Solve for theta = (eta, coefficients) from the sums of `differential` blocks; `value` is eta.

    Parameters
    ----------
    sums : LinearSums
    ridge : float
        Penalty on the squared coefficients other than eta.
    """
    span, _ = linear._span(sums.gram[0][1:, 1:])
    basis = np.zeros((len(span) + 1, span.shape[1] + 1))
    basis[0, 0], basis[1:, 1:] = 1.0, span
    penalty = ridge * np.diag(np.append(0.0, np.ones(span.shape[1])))
    a = basis.T @ (sums.gram[0] - sums.cross[0]) @ basis + penalty
    # The unit of eta is another than that of the other coefficients: it is left out of the condition number.
    condition = float(np.linalg.cond(a[1:, 1:])) if span.shape[1] else 1.0
    inverse = basis @ (np.linalg.inv(a) if condition < 1e15 else np.linalg.pinv(a)) @ basis.T
    theta, adjoint = inverse @ sums.reward[0], inverse[0]
    return linear.LinearSolution(
        theta[None],
        adjoint[None],
        inverse[None],
        (basis @ basis.T)[None],
        np.zeros(len(theta)),
        float(theta[0]),
        condition,
        -ridge * float(adjoint[1:] @ theta[1:]),
    )


# -------------------------------------------------------------------- estimator


class AverageRewardLSTDQ(OffPolicyEstimator):
    """The reward per step that the candidate earns in the long run, where episodes never end.

    Not the J of the other estimators: the estimate has ``estimand == "average_reward"``, and is not compared with theirs.

    Parameters
    ----------
    gamma : float
        1, the only one: averages are not discounted.
    features : "auto", "identity" or scikit-learn transformer
        As in `LSTDQ`.
    ridge : float
        Penalty on the squared coefficients; its first-order bias is reported.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of these draws, and of features whose own `random_state` is None.

    Raises
    ------
    ValueError
        If an episode of the log is terminal, or gamma is not 1.

    Notes
    -----
    eta = sum_{s, a} d(s) pi(a|s) r(s, a), d the stationary distribution of the candidate, and Q, the differential value, solve

        E[(1, phi) (r - eta + phibar(s')' theta - phi' theta)] = 0,   Q = phi' theta up to a constant.

    psi_i = n sum_t w_it eps_it, w = u' (1, phi - mean(phi)): where states are tables, n w is the ratio of the candidate's stationary
    visits to those of the log. The log need not be stationary, and episodes may be of any length; a horizon end counts as a
    truncation, its last transition is left out where the final state is not known. The candidate must not be caught in more
    than one part of the states, else there is more than one average: the system is then singular, and the value refused.

    References
    ----------
    Tsitsiklis, Van Roy (1999). Average cost temporal-difference learning. Automatica 35.
    Liao, Klasnja, Murphy (2021). Off-policy estimation of long-term average outcomes with applications to mobile health. JASA 116.
    Zhang, Wan, Sutton, Whiteson (2021). Average-reward off-policy policy evaluation with function approximation. ICML.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[4, 4], ends="truncated", final_states=np.ones((2, 1))
    ... )
    >>> estimate = AverageRewardLSTDQ().fit(log, TabularPolicy([[0.75, 0.25]])).estimate()
    >>> round(estimate.value, 9), estimate.estimand
    (0.75, 'average_reward')
    """

    requires = LSTDQ.requires
    estimand: ClassVar[str] = "average_reward"
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": "the average is over steps in the long run, not over the logged ones",
            "one_step_bandit": "episodes of one step that end have no average in the long run",
            "padding": "terminal ends are refused",
            "shift_rewards": "a constant adds itself to the average, not its discounted sum",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = 1.0,
        features: Any = "auto",
        ridge: float = 0.0,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.features = features
        self.ridge = ridge
        self.n_samples = n_samples
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        if self._gamma != 1.0:
            raise ValueError(
                f"{owner}: `gamma` must be 1, got {self.gamma!r}: an average in the long run is not discounted; leave it out, or use LSTDQ."
            )
        check_features(owner, self.features)
        check_number(owner, "ridge", self.ridge, "a number of at least 0", "pass ridge=0 for none", 0.0)
        check_integer(owner, "n_samples", self.n_samples, 1)
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")

    def _check_log(self, data: Any) -> None:
        super()._check_log(data)
        n_ended = int((data.ends == End.TERMINAL).sum())
        if n_ended:
            raise ValueError(
                f"{type(self).__name__}.fit: episodes of `data` must not end, got {n_ended} terminal ones of {data.n_episodes}: what ends has no reward per step "
                "in the long run; use LSTDQ with gamma=1 for the sum of rewards until the end, or flag ends that were only recorded no further as truncated=."
            )

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        basis = fit_basis(self.features, data, self.random_state)
        log, richer = self._views(data, policy, basis, weight), partial(richer_features, basis=basis)
        solution = solve_average(log.sums(weight, 1), self.ridge)
        stats = passes.second_pass(log, weight, solution, 1.0, passes.Instruments(richer))
        diagnostics, findings = self._diagnose(data, solution, stats, weight)
        findings.append(verdicts.judge_unlogged(*unlogged_mass(data, policy)))
        return self._result(
            data,
            name,
            value=solution.value,
            influence=stats.influence,
            horizon=None,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _views(self, data: LoggedDataset, policy: Policy, basis: Basis, weight: FloatArray) -> _DifferentialLog:
        def look(block: LoggedDataset) -> passes.LinearView:
            return _view(block, feature_block(block, basis, policy, True, self.n_samples, self.random_state))

        log = passes.LinearLog(data, look)
        return _DifferentialLog(log, _mean_features(log, weight))

    def _diagnose(
        self, data: LoggedDataset, solution: linear.LinearSolution, stats: passes.SecondPass, weight: FloatArray
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        logged = float(np.average(data.rewards, weights=np.repeat(weight, data.lengths)))
        diagnostics = {**passes.describe(solution, stats), "logged_average": logged}
        findings = [
            verdicts.judge_finite(solution.value, stats.influence),
            verdicts.judge_average_range(solution.value, data),
            verdicts.judge_average_width(stats.influence, data),
            verdicts.judge_one_average(solution.condition),
            *verdicts.linear_findings({**diagnostics, "condition": 1.0}),
        ]
        if self.ridge:
            diagnostics["ridge_bias"] = solution.ridge_bias
            findings.append(verdicts.judge_ridge(solution.ridge_bias, verdicts.standard_error(stats.influence)))
        return diagnostics, findings


class _DifferentialLog(passes.LinearLog):
    """The views of a log with `differential` features."""

    def __init__(self, log: passes.LinearLog, center: FloatArray) -> None:
        self._log, self._center = log, center

    def __iter__(self) -> Iterator[tuple[passes.LinearView, slice]]:
        for view, own in self._log:
            yield _view(view.block, differential(view.seen, self._center)), own


def _view(block: LoggedDataset, seen: FeatureBlock) -> passes.LinearView:
    return passes.LinearView(block, seen, seen, None)


def _mean_features(log: passes.LinearLog, weight: FloatArray) -> FloatArray:
    total, sums = 0.0, np.zeros(())
    for view, own in log:
        row_weight = view.seen.row_weights(weight[own])
        total, sums = total + float(row_weight.sum()), sums + row_weight @ view.seen.phi
    if total <= 0:
        raise ValueError(
            "AverageRewardLSTDQ.fit: `data` must hold transitions whose next state is known, got none of positive weight; pass next_states= or "
            "final_states=, or log longer episodes."
        )
    return np.asarray(sums / total)
