"""Marginalised importance sampling in closed form: ratios of state-action visits that are linear in features."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import Basis, feature_block, fit_basis, history_features, richer_features
from ope.estimators._importance import unlogged_mass
from ope.estimators._marginal import LinearRatioEstimator, View, exit_shares
from ope.policy import Policy, Requirement
from ope.validation import FloatArray, check_integer


class MarginalizedIS(LinearRatioEstimator):
    """Marginalised importance sampling: rewards weighted by a linear ratio of state-action visits, in closed form.

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
    c(s, a) = n u' phi(s, a) with A' u = phibar_0 and A = sum phi (phi - gamma phibar(s'))' is the ratio of the candidate's discounted
    visits to those of the log, and V = mean_i sum_t c_it r_it. With a horizon c is a ratio for each step, G_0 u_0 = phibar_0 and
    G_{t+1} u_{t+1} = gamma C_t' u_t. No propensities are needed. Nothing follows a terminal; the flow goes on from the state in
    which a recording was truncated. psi_i = sum_t c_it eps_it + theta' (phi_0i - phibar_0), as for `LSTDQ`, of which this is the dual:
    the value is the same, right if either the ratio or Q is linear in the features. A linear ratio may be negative, where no
    ratio of visits is: ``negative_share`` says how much of it.

    Random features and kernels need inputs of one scale: put a `StandardScaler` before an `RBFSampler` or a `Nystroem`, with a kernel
    gamma of .2 / d (d state variables, plus those of a continuous action), 100 components and a ridge of .01 or .001. On scalar LQR
    (200 to 1000 episodes) these agree with the exact quadratic features to half a standard error; gamma = .5 / d with 50 components
    was off by up to 3, and a ridge of 1 by up to 4, which ``ridge_bias`` shows in part only.

    c >= 0 is not an option, because it does not pay: the nearest ratio without negative entries left the value 2 to 500 times
    the mean squared error (LQR with quadratic and random features, no ridge, 50 episodes), since the flow equations, which make it right, no
    longer hold.

    References
    ----------
    Uehara, Huang, Jiang (2020). Minimax weight and Q-function learning for off-policy evaluation. ICML.
    Xie, Ma, Wang (2019). Towards optimal off-policy evaluation for reinforcement learning with marginalized importance sampling. NeurIPS.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> policy = TabularPolicy([[0.75, 0.25]])
    >>> estimator = MarginalizedIS(gamma=1.0).fit(log, policy)
    >>> round(estimator.estimate().value, 9)
    0.75
    >>> estimator.fit_ratio(log, policy, np.ones(4)).predict(policy, log).round(9)
    array([1.5, 0.5, 1.5, 0.5])
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
        check_integer(type(self).__name__, "n_samples", self.n_samples, 1)

    def _basis(self, data: LoggedDataset) -> Basis:
        return fit_basis(self.features, data, self.random_state)

    def _view(
        self, block: LoggedDataset, basis: Basis, policy: Policy, stationary: bool, cross_fitted: bool = False
    ) -> View:
        del cross_fitted  # no propensities are read
        seen = feature_block(block, basis, policy, stationary, self.n_samples, self.random_state)
        ones, final = np.ones(len(block)), seen.phi_next[block.offsets[1:] - 1]
        return View(seen, ones, block.rewards, ones, exit_shares(block, self._gamma, stationary), final)

    def _instruments(self, block: LoggedDataset, basis: Basis) -> tuple[FloatArray, FloatArray | None]:
        return history_features(block), richer_features(block, basis)

    def _own_findings(self, data: LoggedDataset, policy: Policy) -> list[verdicts.Finding]:
        return [verdicts.judge_unlogged(*unlogged_mass(data, policy))]
