"""Minimax Q learning (MQL): the Q function whose Bellman error no weight can make average to anything but 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import linalg, sparse

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimators import _verdicts as verdicts
from ope.estimators._dice_base import check_linear_only, check_network, feature_diagnostics, ratio_diagnostics
from ope.estimators._dice_flow import ActionFeatures, FlowFeatures, flow_blocks, flow_sums
from ope.estimators._dice_kernel import check_discriminator, discriminator_basis
from ope.estimators._dice_linear import Coordinates, flow_matrix, span
from ope.estimators._dice_problem import DiceProblem, Lagrangian, NeuralFunctions, following, steps_of
from ope.estimators._features import check_features, fit_basis
from ope.estimators._importance import unlogged_mass
from ope.estimators._q import QEstimator, QModel
from ope.estimators._saddle import Inverse
from ope.estimators.lstdq import LinearQModel
from ope.policy import Policy, Requirement
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Level, Verdict

if TYPE_CHECKING:
    from ope.estimators._neural_minimax import NetworkQ

__all__ = ["MinimaxQLearning", "mql_coefficients"]


def mql_coefficients(moments: FloatArray, reward: FloatArray, ridge: float) -> FloatArray:
    """Return the theta of q = phi'theta that minimises |reward - moments theta|^2 / 2 + ridge theta'theta / 2, shape (p,).

    Parameters
    ----------
    moments : ndarray of shape (q, p)
        E_D psi (phi - gamma phi')', psi the features of the discriminators.
    reward : ndarray of shape (q,)
        E_D psi r.
    ridge : float

    Examples
    --------
    >>> mql_coefficients(np.array([[0.5], [0.5]]), np.array([1.0, 1.0]), 0.0)
    array([2.])
    """
    matrix = moments.T @ moments + ridge * np.eye(moments.shape[1])
    return np.asarray(np.linalg.solve(matrix, moments.T @ reward))


# -------------------------------------------------------------------- mathematics


@dataclass(frozen=True)
class MinimaxQFit:
    """A fitted Q function, the adjoint of its value, and the error that discriminators still see.

    Parameters
    ----------
    theta, adjoint : ndarray of shape (n_values, p)
    error, weight : ndarray of shape (n_values, q)
        Coefficients in the features of the discriminators: of the remaining Bellman error, and of the ratio of visits that it is
        weighted by in the value.
    value : float
    """

    theta: FloatArray
    adjoint: FloatArray
    error: FloatArray
    weight: FloatArray
    value: float

    @property
    def bellman_error(self) -> float:
        """Largest mean Bellman error that a discriminator of norm 1 sees."""
        return float(np.linalg.norm(self.error))


@dataclass(frozen=True, eq=False)
class FittedQ:
    """A fit, its influence (n_episodes,), its ratios of visits (n,), and what there is to say of it."""

    fit: MinimaxQFit
    influence: FloatArray
    ratios: FloatArray
    diagnostics: Mapping[str, Any]
    findings: list[verdicts.Finding]


def solve(problem: DiceProblem, features: FlowFeatures, ridge: float, ball: bool) -> MinimaxQFit:
    """Fit Q.

    Parameters
    ----------
    problem : DiceProblem
    features : FlowFeatures
        Those of the discriminators as zeta, those of Q as nu.
    ridge : float
    ball : bool
        The discriminators are a unit ball of coefficients, instead of the class of Q, which leaves no error.
    """
    sums = flow_sums(problem, features)
    q = Coordinates([span(gram / problem.total) for gram in sums.nu_gram])
    test = Coordinates([np.eye(len(gram)) if ball else span(gram / problem.total) for gram in sums.zeta_gram])
    A = flow_matrix(sums, test, q, problem.gamma, problem.total)
    reward = test.flatten(sums.reward) / problem.total
    start = np.zeros((problem.n_values, len(sums.start)))
    start[0] = sums.start / problem.episode_weight.sum()
    s0 = q.flatten(start)
    if not ball:
        inverse = Inverse(A)
        theta, error, adjoint, weight = inverse(reward), np.zeros_like(reward), np.zeros_like(s0), inverse(s0, True)
    else:
        theta, adjoint = _least_squares(A, q.bases, ridge, reward, s0)
        error, weight = reward - A @ theta, A @ adjoint
    return MinimaxQFit(q.expand(theta), q.expand(adjoint), test.expand(error), test.expand(weight), float(s0 @ theta))


def _least_squares(
    A: Any, bases: list[FloatArray], ridge: float, reward: FloatArray, start: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return M^-1 A'reward and M^-1 start with M = A'A + ridge: by singular values, whose condition is not squared, if dense."""
    if not sparse.issparse(A):
        penalty = [linalg.block_diag(*(np.sqrt(ridge) * basis for basis in bases))] if ridge else []
        inverse = np.linalg.pinv(np.vstack([A, *penalty]))
        return inverse[:, : len(reward)] @ reward, inverse @ (inverse.T @ start)
    M = A.T @ A
    if ridge:
        M = M + sparse.block_diag([ridge * basis.T @ basis for basis in bases], format="csc")
    normal = Inverse(M)
    return normal(A.T @ reward), normal(start)


def influence(problem: DiceProblem, features: FlowFeatures, fit: MinimaxQFit) -> tuple[FloatArray, FloatArray]:
    """Return psi (n_episodes,) and the ratios of visits by which Bellman errors count in the value (n,).

    Notes
    -----
    theta solves A'e = ridge theta with e = E_D psi (r + gamma phi' theta - phi theta); with v the adjoint and w = psi'A v an episode adds
    sum_t w eps + (phi - gamma phi')'v psi'e, and phi_0'theta.
    """
    rows, weights, starts = [], [], []
    for block, flow, _, _ in flow_blocks(problem, features):
        s, later = steps_of(block.offsets, problem.n_values), following(fit.theta)
        eps = flow.rewards + problem.gamma * _dot(flow.nu_next, later[s]) - _dot(flow.nu, fit.theta[s])
        slope = _dot(flow.nu, fit.adjoint[s]) - problem.gamma * _dot(flow.nu_next, following(fit.adjoint)[s])
        weights.append(_dot(flow.zeta, fit.weight[s]))
        rows.append(weights[-1] * eps + slope * _dot(flow.zeta, fit.error[s]))
        starts.append(flow.nu_start @ fit.theta[0])
    x, start = np.where(problem.used, np.concatenate(rows), 0.0), np.concatenate(starts)
    per_row = problem.episode_weight.sum() / problem.total
    mean = float(problem.row_weight @ x) / problem.total
    sums = ragged.segment_sum(np.where(problem.used, x - mean, 0.0), problem.data.offsets)
    psi = problem.episode_weight * (per_row * sums + start - problem.start_mean(start))
    return psi, per_row * np.where(problem.used, np.concatenate(weights), 0.0)


def _dot(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("nk,nk->n", a, b))


# -------------------------------------------------------------------- estimator


class MinimaxQLearning(QEstimator):
    """Minimax Q learning: a Q function against linear, kernel or neural discriminators.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    features : "auto", "identity" or scikit-learn transformer
        Features of Q, as for `LSTDQ`; tabular with one-hot states.
    discriminator : None, "kernel" or scikit-learn transformer
        Class of the functions g that Bellman errors are tried on: None for that of Q; the unit ball of a Gaussian kernel space; or
        functions that are linear in features of the states, with coefficients in the unit ball.
    n_components : int
        Points that stand for the kernel space.
    ridge : float
        Penalty on the squared coefficients of Q. In linear classes only.
    network : NeuralFunctions or None
        Settings of networks for Q and the discriminator, as for `DICE`; None for linear classes.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value. Otherwise there is a Q for every step.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of these draws, of networks, of the kernel's points, and of features whose own `random_state` is None.

    Notes
    -----
    min_q max_g (E_D[g (r + gamma q(s', pi) - q(s, a))])^2. For q = phi'theta and g = psi'beta, |beta| <= 1, the inner maximum is |E_D[psi (r +
    gamma q' - q)]|^2: a least-squares problem, with Nystroem features psi of a kernel the double sum of the kernel of Uehara et al. With
    Q's own class it is solved by 0, and the value is that of `LSTDQ`. ``bellman_error`` is the square root of the minimum: more
    discriminators than features of Q leave an error that says how wrong the class of Q is.

    The value is the primal one, E_0 q(s_0, pi). psi is the derivative of the least squares in the weights of the episodes.

    References
    ----------
    Uehara, Huang, Jiang (2020). Minimax weight and Q-function learning for off-policy evaluation. ICML.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> round(MinimaxQLearning(gamma=0.9).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}), frozenset({"sample"}))

    def __init__(
        self,
        *,
        gamma: float | None = None,
        features: Any = "auto",
        discriminator: Any = None,
        n_components: int = 100,
        ridge: float = 0.0,
        network: NeuralFunctions | None = None,
        stationary: bool = False,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.features = features
        self.discriminator = discriminator
        self.n_components = n_components
        self.ridge = ridge
        self.network = network
        self.stationary = stationary
        self.n_samples = n_samples
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_features(owner, self.features)
        check_discriminator(owner, self.discriminator)
        check_integer(owner, "n_components", self.n_components, 1, "100 is usual")
        check_number(owner, "ridge", self.ridge, "a number of at least 0", "pass ridge=0 for none", 0.0)
        check_integer(owner, "n_samples", self.n_samples, 1)
        check_network(owner, self.network)
        check_linear_only(owner, "features", self.features, "auto", self.network)
        check_linear_only(owner, "ridge", self.ridge, 0.0, self.network)
        check_linear_only(owner, "discriminator", self.discriminator, None, self.network)
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> QModel:
        """Fit theta and return the Q function."""
        problem = self._problem(data, policy, episode_weight)
        if self.network is not None:
            return _train(problem, self.network).model
        features = self._features(data)
        basis = features.basis if features.nu_basis is None else features.nu_basis
        theta = self._solve(problem, features).theta
        return LinearQModel(basis, theta, problem.stationary, self.n_samples, self.random_state)

    def _problem(self, data: LoggedDataset, policy: Policy, weight: FloatArray) -> DiceProblem:
        horizon = None if self.stationary else data.horizon
        if self.network is not None and horizon is None and self._gamma == 1.0:
            raise ValueError(
                f"{type(self).__name__}.fit: `gamma` must be below 1 without a horizon where networks are trained, got 1.0; pass gamma < 1, a log with a "
                "horizon, or network=None."
            )
        weight = weight / weight.mean()
        return DiceProblem(data, policy, weight, Lagrangian(), self._gamma, horizon, self.n_samples, self.random_state)

    def _features(self, data: LoggedDataset) -> ActionFeatures:
        basis = fit_basis(self.features, data, self.random_state)
        test = discriminator_basis(self.discriminator, data, self.n_components, self.random_state)
        rest = (self.stationary or data.horizon is None, self.n_samples, self.random_state)
        return ActionFeatures(basis, None, *rest) if test is None else ActionFeatures(test, basis, *rest)

    def _solve(self, problem: DiceProblem, features: ActionFeatures) -> MinimaxQFit:
        return solve(problem, features, float(self.ridge), self.discriminator is not None or self.ridge > 0)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        problem = self._problem(data, policy, weight)
        found = self._fit_linear(problem) if self.network is None else _train(problem, self.network)
        diagnostics: dict[str, Any] = {
            "ess": ratio_diagnostics(problem, found.ratios)["ess"],
            **verdicts.influence_diagnostics(found.influence),
            "bellman_error": found.fit.bellman_error,
            **found.diagnostics,
            "truncated_share": verdicts.truncated_share(data),
            "left_out_transitions": int((~problem.used).sum()),
        }
        value, psi = found.fit.value, found.influence
        findings = [
            verdicts.judge_finite(value, psi),
            verdicts.judge_range(value, data, self._gamma, problem.stationary, Level.REFUSE),
            verdicts.judge_width(psi, data, self._gamma, problem.stationary),
            *verdicts.linear_findings(diagnostics),
            *found.findings,
            verdicts.judge_unlogged(*unlogged_mass(data, policy)),
        ]
        return self._result(
            data,
            name,
            value=value,
            influence=psi,
            horizon=problem.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _fit_linear(self, problem: DiceProblem) -> FittedQ:
        features = self._features(problem.data)
        fit = self._solve(problem, features)
        psi, c = influence(problem, features, fit)
        own = features if features.nu_basis is None else replace(features, basis=features.nu_basis, nu_basis=None)
        tests = feature_diagnostics(problem, own, c)
        gap = verdicts.judge_discriminators(fit.value - tests["lstdq"], verdicts.standard_error(psi))
        return FittedQ(fit, psi, c, tests, [gap])


def _train(problem: DiceProblem, network: NeuralFunctions) -> NetworkQ:
    from ope.estimators._neural_minimax import fit_q_network

    return fit_q_network(problem, network)
