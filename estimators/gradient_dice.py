"""GradientDICE: a ratio of visits from a quadratic saddle point, in linear classes a ridge regression."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ope.estimators._dice_base import Fitted, SaddleEstimator, check_linear_only, check_terminal, solve_linear
from ope.estimators._dice_flow import FlowFeatures
from ope.estimators._dice_problem import DiceProblem, Lagrangian, NeuralFunctions, Terminal
from ope.validation import FloatArray, check_number

__all__ = ["GradientDICE", "gradient_dice_coefficients"]


def gradient_dice_coefficients(
    A: FloatArray, G: FloatArray, m: FloatArray, h: FloatArray, norm_penalty: float, ridge: float
) -> FloatArray:
    """Return the u of tau = phi'u at the saddle point, shape (k,).

    Parameters
    ----------
    A : ndarray of shape (k, k)
        E_D phi (phi - gamma phi')'.
    G : ndarray of shape (k, k)
        E_D phi phi'.
    m, h : ndarray of shape (k,)
        E_D phi and (1 - gamma) E_0 phi.
    norm_penalty, ridge : float

    Notes
    -----
    The inner maxima are f = phi' G^-1 (h - A'u) and eta = m'u - 1, so that u minimises
    (h - A'u)' G^-1 (h - A'u) / 2 + norm_penalty (m'u - 1)^2 / 2 + ridge u'u / 2.

    Examples
    --------
    >>> gradient_dice_coefficients(np.array([[0.5]]), np.eye(1), np.ones(1), np.array([0.5]), 1.0, 0.0)
    array([1.])
    """
    flow = A @ np.linalg.solve(G, np.column_stack([A.T, h]))
    matrix = flow[:, :-1] + norm_penalty * np.outer(m, m) + ridge * np.eye(len(m))
    return np.asarray(np.linalg.solve(matrix, flow[:, -1] + norm_penalty * m))


class GradientDICE(SaddleEstimator):
    """GradientDICE, in closed form or with networks: the ratio whose Bellman flow and norm are least violated.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1]; below 1 without a horizon.
    features : "auto", "identity" or scikit-learn transformer
        Features of the ratio tau and of the test function f, as for `LSTDQ`; tabular with one-hot states.
    norm_penalty : float
        Weight lambda of (E tau - 1)^2 / 2; 0 leaves the norm out.
    ridge : float
        Penalty on the squared coefficients of the ratio; ``flow_shift`` is what it moves. In linear classes only.
    terminal : {"auto", "absorbing", "zero"}
        As for `DICE`: the norm needs the absorbing state. "auto": "absorbing" where norm_penalty > 0, else "zero".
    network : NeuralFunctions or None
        Settings of networks for the ratio and the test function, as for `DICE`; None for linear classes.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value. Otherwise there is a tau_t for every step.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of these draws, of networks, and of features whose own `random_state` is None.

    Notes
    -----
    min_tau max_{f, eta} k E_0 f + gamma E_D tau f' - E_D tau f - E_D f^2 / 2 + lambda (E_D[eta tau] - eta - eta^2 / 2), with k = 1 - gamma (1 / sum_t
    gamma^t with a horizon), is convex in tau and concave in f and eta, which GenDICE's objective is not with nonlinear ratios. For
    tau = phi'u and f = phi'theta it is the regression `gradient_dice_coefficients`. It is `DICE` with nu_regularizer=1, no zeta
    regulariser, no reward, and a soft norm. The flow of a tabular log holds exactly, so that tau is then the ratio of visits of the
    maximum-likelihood model; without a ridge the value is that of `LSTDQ` wherever the flow can hold and the features hold a constant.

    The value is the dual one, E_D[tau r] / k; psi is the derivative of the regression in the weights of the episodes.

    References
    ----------
    Zhang, Liu, Whiteson (2020). GradientDICE: rethinking generalized offline estimation of stationary values. ICML.

    Examples
    --------
    >>> from ope import LoggedDataset
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> round(GradientDICE(gamma=0.9).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    def __init__(
        self,
        *,
        gamma: float | None = None,
        features: Any = "auto",
        norm_penalty: float = 1.0,
        ridge: float = 0.0,
        terminal: Literal["auto", "absorbing", "zero"] = "auto",
        network: NeuralFunctions | None = None,
        stationary: bool = False,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.features = features
        self.norm_penalty = norm_penalty
        self.ridge = ridge
        self.terminal = terminal
        self.network = network
        self.stationary = stationary
        self.n_samples = n_samples
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_number(owner, "ridge", self.ridge, "a number of at least 0", "pass ridge=0 for none", 0.0)
        check_number(owner, "norm_penalty", self.norm_penalty, "a number of at least 0", "1 is usual", 0.0)
        check_linear_only(owner, "ridge", self.ridge, 0.0, self.network)
        check_terminal(owner, self.terminal, bool(self.norm_penalty > 0), "norm_penalty > 0", "norm_penalty=0")

    def _lagrangian(self) -> Lagrangian:
        terminal: Terminal = "absorbing" if self.terminal == "absorbing" or self.norm_penalty > 0 else "zero"
        return Lagrangian(a_nu=1.0, norm_penalty=float(self.norm_penalty), terminal=terminal)

    def _solve(self, problem: DiceProblem, features: FlowFeatures | None) -> Fitted:
        assert features is not None
        return solve_linear(problem, features, ridge=float(self.ridge))
