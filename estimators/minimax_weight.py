"""Minimax weight learning (MWL): the ratio of visits whose Bellman flow no discriminator can tell from the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimators import _verdicts as verdicts
from ope.estimators._dice_base import Fitted, SaddleEstimator, check_linear_only, solve_linear
from ope.estimators._dice_flow import ActionFeatures, FlowFeatures
from ope.estimators._dice_kernel import check_discriminator, discriminator_basis
from ope.estimators._dice_problem import DiceProblem, Lagrangian, NeuralFunctions
from ope.estimators._features import fit_basis
from ope.validation import FloatArray, check_integer, check_number

__all__ = ["MinimaxWeightLearning", "mwl_coefficients"]


def mwl_coefficients(moments: FloatArray, start: FloatArray, ridge: float) -> FloatArray:
    """Return the u of w = phi'u that minimises |start - moments'u|^2 / 2 + ridge u'u / 2, shape (p,).

    Parameters
    ----------
    moments : ndarray of shape (p, q)
        E_D phi (psi - gamma psi')', psi the features of the discriminators.
    start : ndarray of shape (q,)
        (1 - gamma) E_0 psi.
    ridge : float

    Examples
    --------
    >>> mwl_coefficients(np.array([[0.5, 0.5]]), np.array([0.5, 0.5]), 0.0)
    array([1.])
    """
    matrix = moments @ moments.T + ridge * np.eye(len(moments))
    return np.asarray(np.linalg.solve(matrix, moments @ start))


class MinimaxWeightLearning(SaddleEstimator):
    """Minimax weight learning: a ratio of visits against linear, kernel or neural discriminators.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1]; below 1 without a horizon.
    features : "auto", "identity" or scikit-learn transformer
        Features of the ratio, as for `LSTDQ`; tabular with one-hot states.
    discriminator : None, "kernel" or scikit-learn transformer
        Class of the functions q that the flow is tried on: None for that of the ratio; the unit ball of a Gaussian kernel space; or
        functions that are linear in features of the states, with coefficients in the unit ball.
    n_components : int
        Points that stand for the kernel space.
    ridge : float
        Penalty on the squared coefficients of the ratio. In linear classes only.
    network : NeuralFunctions or None
        Settings of networks for the ratio and the discriminator, as for `DICE`; None for linear classes.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value. Otherwise there is a ratio for every step.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of these draws, of networks, of the kernel's points, and of features whose own `random_state` is None.

    Notes
    -----
    min_w max_q L(w, q)^2 with L = E_D[w (gamma q(s', pi) - q(s, a))] + k E_0 q(s_0, pi) and k = 1 - gamma (1 / sum_t gamma^t with a horizon). For w =
    phi'u and q = psi'beta, |beta| <= 1, the inner maximum is |E_D[w (gamma psi' - psi)] + k E_0 psi|^2: a least-squares problem. With
    Nystroem features psi of a kernel it is the double sum of the kernel of Uehara et al., exactly where every different state is one
    of the points. With the ratio's own class it is solved by L = 0, and the value is that of `LSTDQ`: w its dual ratio.
    More discriminators than ratios leave an error of the flow, ``flow_error`` = max_q |L|, that says how wrong the class of w is.

    The value is the dual one, E_D[w r] / k, right if either the ratio is in its class or Q in the discriminators' and L = 0. psi is the
    derivative of the least squares in the weights of the episodes.

    References
    ----------
    Uehara, Huang, Jiang (2020). Minimax weight and Q-function learning for off-policy evaluation. ICML.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> round(MinimaxWeightLearning(gamma=0.9).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

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
        check_discriminator(owner, self.discriminator)
        check_integer(owner, "n_components", self.n_components, 1, "100 is usual")
        check_number(owner, "ridge", self.ridge, "a number of at least 0", "pass ridge=0 for none", 0.0)
        check_linear_only(owner, "ridge", self.ridge, 0.0, self.network)
        check_linear_only(owner, "discriminator", self.discriminator, None, self.network)

    def _lagrangian(self) -> Lagrangian:
        return Lagrangian(a_nu=1.0, terminal="zero")

    def _flow_features(self, data: LoggedDataset) -> FlowFeatures:
        basis = fit_basis(self.features, data, self.random_state)
        nu_basis = discriminator_basis(self.discriminator, data, self.n_components, self.random_state)
        return ActionFeatures(basis, nu_basis, self._is_stationary(data), self.n_samples, self.random_state)

    def _solve(self, problem: DiceProblem, features: FlowFeatures | None) -> Fitted:
        assert features is not None
        ball = self.discriminator is not None or self.ridge > 0
        return solve_linear(problem, features, ridge=float(self.ridge), fixed_metric=ball)

    def _own_findings(self, diagnostics: Mapping[str, Any], fitted: Fitted) -> list[verdicts.Finding]:
        assert fitted.influence is not None
        gap = fitted.value - diagnostics["lstdq"]
        return [verdicts.judge_discriminators(gap, verdicts.standard_error(fitted.influence))]
