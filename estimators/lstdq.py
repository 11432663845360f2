"""Least-squares temporal-difference Q-learning (LSTDQ), stationary and time-indexed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimators import _linear as linear
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import (
    Basis,
    FeatureBlock,
    check_features,
    feature_block,
    fit_basis,
    history_features,
    richer_features,
)
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators.importance_sampling import unlogged_mass
from ope.policy import Policy, Requirement
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Level, Verdict


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
    reported as ``unsupported``.

    References
    ----------
    Lagoudakis, Parr (2003). Least-squares policy iteration. JMLR 4.

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
        stationary: bool = False,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.features = features
        self.ridge = ridge
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

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> LinearQModel:
        """Fit theta and return the Q function."""
        basis = fit_basis(self.features, data, self.random_state)
        solution = linear.solve(self._sums(data, policy, basis, episode_weight), self._gamma, self.ridge)
        return LinearQModel(basis, solution.theta, self._is_stationary(data), self.n_samples, self.random_state)

    def plug_in_influence(
        self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray, coefficient: FloatArray
    ) -> FloatArray:
        """Return the influence of the estimated theta on mean(c_i Vhat(s_T)), shape (n_episodes,)."""
        basis, n_values = fit_basis(self.features, data, self.random_state), self._n_values(data)
        sums = self._sums(data, policy, basis, episode_weight)
        solution = linear.solve(sums, self._gamma, self.ridge)
        gradient, first = np.zeros_like(solution.theta), 0
        for block, seen in self._blocks(data, policy, basis):
            own = slice(first, first + block.n_episodes)
            first += block.n_episodes
            gradient += linear.plug_in_gradient(seen, coefficient[own], n_values, episode_weight[own])
        u = linear.adjoint_of(gradient, sums, solution, self._gamma)
        parts = []
        for _, seen in self._blocks(data, policy, basis):
            eps = linear.temporal_differences(seen, solution.theta, self._gamma)
            w = np.einsum("nk,nk->n", seen.phi, u[linear.value_index(seen, n_values)])
            parts.append(ragged.segment_sum(w * eps, seen.offsets))
        psi = episode_weight * np.concatenate(parts)
        return np.asarray(psi - episode_weight * psi.mean())

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        basis = fit_basis(self.features, data, self.random_state)
        sums = self._sums(data, policy, basis, weight)
        solution = linear.solve(sums, self._gamma, self.ridge)
        stats = self._second_pass(data, policy, basis, weight, solution)
        diagnostics, findings = self._diagnose(data, policy, solution, stats)
        return self._result(
            data,
            name,
            value=solution.value,
            influence=stats.influence,
            horizon=None if self._is_stationary(data) else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _is_stationary(self, data: LoggedDataset) -> bool:
        return self.stationary or data.horizon is None

    def _n_values(self, data: LoggedDataset) -> int:
        return 1 if self._is_stationary(data) else int(data.horizon or 1)

    def _blocks(
        self, data: LoggedDataset, policy: Policy, basis: Basis
    ) -> Iterator[tuple[LoggedDataset, FeatureBlock]]:
        for block in data.blocks():
            yield (
                block,
                feature_block(block, basis, policy, self._is_stationary(data), self.n_samples, self.random_state),
            )

    def _sums(self, data: LoggedDataset, policy: Policy, basis: Basis, weight: FloatArray) -> linear.LinearSums:
        parts, first = [], 0
        for block, seen in self._blocks(data, policy, basis):
            parts.append(linear.summarise(seen, weight[first : first + block.n_episodes], self._n_values(data)))
            first += block.n_episodes
        return linear.merge(parts)

    def _second_pass(
        self, data: LoggedDataset, policy: Policy, basis: Basis, weight: FloatArray, solution: linear.LinearSolution
    ) -> _SecondPass:
        influence, ratio_sums, lost, visits, first, p_value, n_left_out = (
            [],
            _RatioSums(self._n_values(data), float(np.abs(solution.adjoint).max()) or 1.0),
            0.0,
            0.0,
            0,
            None,
            0,
        )
        for block, seen in self._blocks(data, policy, basis):
            omega = weight[first : first + block.n_episodes]
            first += block.n_episodes
            eps = linear.temporal_differences(seen, solution.theta, self._gamma)
            w = linear.ratios(seen, solution, float(data.n_episodes))
            influence.append(omega * linear.influence(seen, solution, eps, w))
            ratio_sums.add(seen, w, omega)
            outside = linear.unsupported_mass(seen, solution, w, self._gamma, omega)
            lost, visits = lost + outside[0], visits + outside[1]
            n_left_out += int((~seen.used).sum())
            if p_value is None and omega.any():
                # One block of up to 2^18 rows decides whether the model is contradicted; more would not be more convincing.
                share_of_log = float(omega.sum() / weight.sum())
                rest = (solution, eps, self._gamma, omega, share_of_log)
                p_value = linear.specification_p_value(seen, history_features(block), *rest)
                richer = richer_features(block)
                features_p = 1.0 if richer is None else linear.specification_p_value(seen, richer, *rest)
        assert p_value is not None
        share = lost / visits if visits > 0 else 0.0
        psi = np.concatenate(influence)
        psi -= weight * psi.mean()  # 0 but for a ridge, which leaves the normal equations unequal to 0
        return _SecondPass(psi, ratio_sums.effective_sample_size(), share, p_value, features_p, n_left_out)

    def _diagnose(
        self, data: LoggedDataset, policy: Policy, solution: linear.LinearSolution, stats: _SecondPass
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        mass, labels = unlogged_mass(data, policy)
        diagnostics: dict[str, Any] = {
            "ess": stats.ess,
            **verdicts.influence_diagnostics(stats.influence),
            "condition": solution.condition,
            "specification_p": stats.p_value,
            "features_p": stats.features_p,
            "unsupported": stats.unsupported,
            "truncated_share": verdicts.truncated_share(data),
            "left_out_transitions": stats.n_left_out,
        }
        if self.ridge:
            diagnostics["ridge_bias"] = solution.ridge_bias
        return diagnostics, [
            verdicts.judge_finite(solution.value, stats.influence),
            verdicts.judge_range(solution.value, data, self._gamma, self._is_stationary(data), Level.REFUSE),
            *verdicts.linear_findings(diagnostics),
            verdicts.judge_unlogged(mass, labels),
        ]


@dataclass(frozen=True)
class _SecondPass:
    influence: FloatArray
    ess: float
    unsupported: float
    p_value: float
    features_p: float
    n_left_out: int


class _RatioSums:
    """Effective sample size of the ratios: over episodes if stationary, the least over the steps if time-indexed.

    Ratios are counted in a unit, lest the squares of those far outside the log overflow.
    """

    def __init__(self, n_values: int, unit: float) -> None:
        self.unit = unit
        self.absolute = np.zeros(n_values)
        self.squares = np.zeros(n_values)
        self.mass = np.zeros(n_values)

    def add(self, seen: FeatureBlock, w: FloatArray, omega: FloatArray) -> None:
        """Add a block."""
        w = w / self.unit
        row_weight = np.repeat(omega, np.diff(seen.offsets))
        if len(self.absolute) == 1:
            per_episode = omega * np.add.reduceat(w, seen.offsets[:-1])
            self.absolute[0] += np.abs(per_episode).sum()
            self.squares[0] += (per_episode**2).sum()
            self.mass[0] = 1.0
            return
        size = len(self.absolute)
        self.absolute += np.bincount(seen.steps, row_weight * np.abs(w), size)
        self.squares += np.bincount(seen.steps, (row_weight * w) ** 2, size)
        self.mass += np.bincount(seen.steps, row_weight * np.abs(w * seen.rewards), size)

    def effective_sample_size(self) -> float:
        """Return the least effective sample size over the steps that carry at least 1 % of what is still to come."""
        ess = np.divide(self.absolute**2, self.squares, out=np.zeros_like(self.squares), where=self.squares > 0)
        to_come = np.cumsum(self.mass[::-1])[::-1]
        matters = (to_come >= 0.01 * to_come[0]) & (self.squares > 0)
        return float(ess[matters].min()) if matters.any() else float(ess.max(initial=0.0))
