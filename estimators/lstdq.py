"""Least-squares temporal-difference Q-learning (LSTDQ), stationary and time-indexed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimators import _linear as linear
from ope.estimators import _linear_fit as passes
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import Basis, check_features, feature_block, fit_basis, richer_features
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators._support import outside_span
from ope.estimators._traces import trace_of
from ope.estimators.importance_sampling import unlogged_mass
from ope.policy import Policy, Requirement
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Verdict


@dataclass(frozen=True)
class LinearQModel:
    """Q_t(s, a) = phi(s, a)' theta_t; one theta serves all steps where the model is stationary."""

    basis: Basis
    theta: FloatArray
    stationary: bool
    n_samples: int
    random_state: int

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        """Value the rows of a log."""
        parts = [self._predict_block(policy, block) for block in data.blocks()]
        return QPredictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _predict_block(self, policy: Policy, block: LoggedDataset) -> tuple[FloatArray, FloatArray, FloatArray]:
        seen = feature_block(block, self.basis, policy, self.stationary, self.n_samples, self.random_state)
        s = linear.value_index(seen, len(self.theta))
        ends = block.lengths if len(self.theta) > 1 else np.zeros(block.n_episodes, dtype=np.int64)
        padded = np.vstack([self.theta, np.zeros_like(self.theta[:1])]) if len(self.theta) > 1 else self.theta
        final = seen.phi_next[block.offsets[1:] - 1]
        return (
            np.einsum("nk,nk->n", seen.phi, self.theta[s]),
            np.einsum("nk,nk->n", seen.phi_bar, self.theta[s]),
            np.einsum("nk,nk->n", final, padded[ends]),
        )


class LSTDQ(QEstimator):
    """Least-squares temporal differences for Q: the closed-form fixed point of linear fitted Q evaluation.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    features : "auto", "identity" or scikit-learn transformer
        Features of the states, repeated in a block for each discrete action; with continuous actions, features of states and
        actions side by side. "auto": one-hot states as they are, else standardised polynomials of degree 2.
    ridge : float
        Penalty on the squared coefficients; its first-order bias is reported.
    trace : {None, "retrace", "tree_backup", "q_lambda"}
        How far temporal differences reach back along an episode: not at all, or with coefficients c_t of min(1, rho) lambda, of
        pi(a|s) lambda, or of lambda. Only "retrace" reads propensities.
    trace_lambda : float
        lambda in [0, 1]; 0 is no trace.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of these draws, and of features whose own `random_state` is None.

    Notes
    -----
    A = sum phi (phi - gamma phibar(s'))', b = sum phi r, theta = A^-1 b and V = phibar_0' theta. With a horizon there is one
    theta per step, solved backwards. psi_i = n u' sum_t phi_it eps_it + theta' (phi_0i - phibar_0) with u = A^-T phibar_0.
    Feature directions that were never logged get the coefficient 0, and the share of the candidate's visits there is
    reported as ``unsupported``. Visits of states whose features are all 0 count there too, since Q = 0 whatever was logged, unless
    the log holds such states and they earned nothing and led to no others: ends that are coded as 0.

    With a trace, A = sum z (phi - gamma phibar(s'))' and b = sum z r with the eligibility z_t = phi_t + gamma c_t z_{t-1}: the
    fixed point of regressions on Q + sum_{k>=t} gamma^{k-t} c_{t+1} ... c_k delta_k. Where the states are complete every trace has
    the same limit; longer ones are noisier, and less biased where features are poor. The closed form exists where the
    iteration of "q_lambda" diverges.

    References
    ----------
    Lagoudakis, Parr (2003). Least-squares policy iteration. JMLR 4.
    Munos, Stepleton, Harutyunyan, Bellemare (2016). Safe and efficient off-policy reinforcement learning. NeurIPS.
    Precup, Sutton, Singh (2000). Eligibility traces for off-policy policy evaluation. ICML.
    Harutyunyan, Bellemare, Stepleton, Munos (2016). Q(lambda) with off-policy corrections. ALT.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> round(LSTDQ(gamma=1.0).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}), frozenset({"sample"}))

    def __init__(
        self,
        *,
        gamma: float | None = None,
        features: Any = "auto",
        ridge: float = 0.0,
        trace: str | None = None,
        trace_lambda: float = 1.0,
        stationary: bool = False,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.features = features
        self.ridge = ridge
        self.trace = trace
        self.trace_lambda = trace_lambda
        self.stationary = stationary
        self.n_samples = n_samples
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_features(owner, self.features)
        check_number(owner, "ridge", self.ridge, "a number of at least 0", "pass ridge=0 for none", 0.0)
        check_integer(owner, "n_samples", self.n_samples, 1)
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")
        trace_of(self).check(owner)

    @property
    def needs_propensities(self) -> bool:  # type: ignore[override]
        """Whether these settings read them."""
        return trace_of(self).reads_propensities

    def _check_log(self, data: Any) -> None:
        if isinstance(data, LoggedDataset):
            trace_of(self).check_log(type(self).__name__, data)
        super()._check_log(data)

    def _requirement(self, discrete: bool) -> Requirement:
        return trace_of(self).requirement(super()._requirement(discrete))

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> LinearQModel:
        """Fit theta and return the Q function."""
        basis, stationary = fit_basis(self.features, data, self.random_state), self._is_stationary(data)
        sums = self._views(data, policy, basis).sums(episode_weight, self._n_values(data))
        solution = linear.solve(sums, self._gamma, self.ridge)
        return LinearQModel(basis, solution.theta, stationary, self.n_samples, self.random_state)

    def plug_in_influence(
        self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray, coefficient: FloatArray
    ) -> FloatArray:
        """Return the influence of the estimated theta on mean(c_i Vhat(s_T)), shape (n_episodes,)."""
        log = self._views(data, policy, fit_basis(self.features, data, self.random_state))
        parts, gradients, n_values = [], [], self._n_values(data)
        for view, own in log:
            parts.append(linear.summarise(view.targets, episode_weight[own], n_values))
            gradients.append(linear.plug_in_gradient(view.seen, coefficient[own], n_values, episode_weight[own]))
        sums = linear.merge(parts)
        solution = linear.solve(sums, self._gamma, self.ridge)
        u = linear.adjoint_of(np.sum(gradients, axis=0), sums, solution, self._gamma)
        psi = np.empty(data.n_episodes)
        for view, own in log:
            eps = linear.temporal_differences(view.seen, solution.theta, self._gamma)
            psi[own] = ragged.segment_sum(view.ratios(u, self._gamma) * eps, view.seen.offsets)
        psi *= episode_weight
        return np.asarray(psi - episode_weight * psi.mean())

    def unsupported_ends(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> FloatArray:
        """Return the share of the features of s_T that the log does not span, shape (n_episodes,)."""
        log = self._views(data, policy, fit_basis(self.features, data, self.random_state))
        return outside_span((view.seen for view, _ in log), episode_weight, self._n_values(data))

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        basis = fit_basis(self.features, data, self.random_state)
        log, richer = self._views(data, policy, basis), partial(richer_features, basis=basis)
        solution = linear.solve(log.sums(weight, self._n_values(data)), self._gamma, self.ridge)
        stats = passes.second_pass(log, weight, solution, self._gamma, passes.Instruments(richer))
        stationary = self._is_stationary(data)
        diagnostics, findings = passes.diagnose(
            data, solution, stats, self._gamma, stationary=stationary, ridge=self.ridge
        )
        findings.append(verdicts.judge_unlogged(*unlogged_mass(data, policy)))
        return self._result(
            data,
            name,
            value=solution.value,
            influence=stats.influence,
            horizon=None if stationary else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _is_stationary(self, data: LoggedDataset) -> bool:
        return self.stationary or data.horizon is None

    def _n_values(self, data: LoggedDataset) -> int:
        return 1 if self._is_stationary(data) else int(data.horizon or 1)

    def _views(self, data: LoggedDataset, policy: Policy, basis: Basis) -> passes.LinearLog:
        trace, n_values, stationary = trace_of(self), self._n_values(data), self._is_stationary(data)
        trace.check_log(type(self).__name__, data)

        def look(block: LoggedDataset) -> passes.LinearView:
            seen = feature_block(block, basis, policy, stationary, self.n_samples, self.random_state)
            c = trace.coefficients(policy, block) if trace.kind is not None else None
            view = passes.LinearView.build(block, seen, c, self._gamma, trace.decay, n_values)
            passes.check_size(type(self).__name__, n_values, view.targets.reach, seen.phi.shape[1])
            return view

        return passes.LinearLog(data, look)
