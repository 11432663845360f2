"""State-marginal importance sampling: a linear ratio of state visits times the action ratio pi / b, in closed form."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators import _linear as linear
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import (
    Basis,
    FeatureBlock,
    history_features,
    is_one_hot,
    richer_state_features,
    unfitted,
)
from ope.estimators._importance import unlogged_mass
from ope.estimators._marginal import LinearRatioEstimator, View, exit_shares, without_rounding
from ope.policy import Policy, Requirement, continuing_ends, log_prob_logged
from ope.validation import FloatArray

LARGEST_LOG_RATIO = 300.0

# -------------------------------------------------------------------- mathematics


def state_system(
    block: LoggedDataset,
    features: FloatArray,
    final: FloatArray,
    rho: FloatArray,
    visit_weight: FloatArray,
    *,
    self_normalized: bool,
    stationary: bool,
) -> tuple[FeatureBlock, FloatArray, FloatArray]:
    """Return a block in the form of least-squares temporal differences, what takes its ratios to c, and the root of its weights.

    Parameters
    ----------
    block : LoggedDataset
    features : ndarray of shape (n, k)
        phi(s_t).
    final : ndarray of shape (n_episodes, k)
        phi(s_T) where the process goes on, else 0.
    rho : ndarray of shape (n,)
        pi / b of the logged actions.
    visit_weight : ndarray of shape (n,)
        What a row counts in the log's visits: 1 or gamma^t.
    self_normalized : bool
        Count the log's own visits of a state with rho too.
    stationary : bool

    Notes
    -----
    The flow mean_i sum_t l_t w(s_t) (g_t phi(s_t) - gamma rho_t phi(s_{t+1})) = mean_i phi(s_0), with visit weights l and g = rho where
    self-normalised, else 1, is that of the system sum x (x - gamma x')' with x = sqrt(l g) phi and x' = sqrt(l / g) rho phi'.
    """
    own = rho if self_normalized else np.ones_like(rho)
    root = np.sqrt(visit_weight * own)
    other = root if self_normalized else root * rho
    phi_next = ragged.shift_to_next(features, block.offsets, final)
    used = np.ones(len(features), dtype=bool)
    used[block.offsets[1:][continuing_ends(block, stationary) & ~block.final_known()] - 1] = False
    seen = FeatureBlock(
        root[:, None] * features,
        features,
        other[:, None] * phi_next,
        used,
        other * block.rewards,
        block.offsets,
        ragged.step_index(block.offsets),
    )
    return seen, other, root


def action_ratios(policy: Policy, block: LoggedDataset, cross_fitted: bool, owner: str) -> FloatArray:
    """Return rho = pi / b of the logged actions, shape (n,).

    Raises
    ------
    ValueError
        If a ratio is too large for a float.
    """
    behavior = block.behavior_log_prob
    if cross_fitted and block.cross_fitted_log_prob is not None:
        behavior = block.cross_fitted_log_prob
    assert behavior is not None
    log_rho = log_prob_logged(policy, block) - behavior
    if log_rho.max() > LARGEST_LOG_RATIO:
        raise ValueError(
            f"{owner}.fit: ratios pi / b must stay below e^{LARGEST_LOG_RATIO:g}, got e^{log_rho.max():.4g}: the log all but excludes actions of the candidate. "
            "Check the propensities, or use a candidate closer to the logged policy, or LSTDQ, which needs no ratio."
        )
    return np.exp(log_rho)


def fit_state_basis(features: Any, data: LoggedDataset, random_state: int) -> Basis:
    """Fit features of states alone; the basis is to be used through `Basis.transform`.

    Parameters
    ----------
    features : "auto", "identity" or scikit-learn transformer
        "auto" takes one-hot states as they are and standardised polynomials of degree 2 otherwise.
    data : LoggedDataset
    random_state : int
        For a transformer whose own `random_state` is None.
    """
    if not isinstance(features, str):
        return Basis(unfitted(features, random_state).fit(data.states), None)
    if features == "identity" or is_one_hot(data.states):
        return Basis(None, None)
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    return Basis(make_pipeline(StandardScaler(), PolynomialFeatures(degree=2)).fit(data.states), None)


def final_features(block: LoggedDataset, basis: Basis, stationary: bool) -> FloatArray:
    """Return phi(s_T) of the episodes that go on to a known state, 0 for the others, shape (n_episodes, k)."""
    known = continuing_ends(block, stationary) & block.final_known()
    width = basis.transform(block.states[:1]).shape[1]
    last = np.zeros((block.n_episodes, width))
    if known.any():
        assert block.final_states is not None
        last[known] = basis.transform(block.final_states[known])
    return last


def past_p_value(
    features: FloatArray, block: LoggedDataset, targets: FloatArray, omega: FloatArray, *, by_step: bool
) -> float:
    """Return the p-value of the hypothesis that r + gamma V(s') does not depend on the past, given state and action.

    Parameters
    ----------
    features : ndarray of shape (n, k)
        phi(s_t), taken in a block for each discrete action.
    block : LoggedDataset
        With discrete actions.
    targets : ndarray of shape (n,)
        NaN where unknown.
    omega : ndarray of shape (n_episodes,)
    by_step : bool
        One regression and one test for each step.

    Notes
    -----
    Nothing is weighted by pi / b, whose noise would hide the dependence.
    """
    known = ~np.isnan(targets)
    codes = np.eye(block.n_actions)[block.actions] * known[:, None]
    phi = np.einsum("na,nk->nak", codes, features).reshape(len(features), -1)
    targets, residuals = np.where(known, targets, 0.0), np.zeros(len(targets))
    root = np.sqrt(np.repeat(omega, block.lengths))
    longest = int(block.lengths.max())
    groups = [linear.step_rows(block.offsets, t) for t in range(longest)] if by_step else [np.arange(len(phi))]
    for rows in groups:
        weighted = root[rows, None] * phi[rows]
        theta = np.linalg.lstsq(weighted, root[rows] * targets[rows], rcond=linear.RANK_TOLERANCE)[0]
        residuals[rows] = targets[rows] - phi[rows] @ theta
    residuals = without_rounding(residuals, np.abs(targets))
    history = history_features(block) * known[:, None]
    return linear.past_p_value(phi, history, residuals, block.offsets, omega, time_indexed=by_step)


# -------------------------------------------------------------------- estimator


class StateMarginalIS(LinearRatioEstimator):
    """State-marginal importance sampling: rewards weighted by a ratio of state visits times the action ratio pi / b.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    features : "auto", "identity" or scikit-learn transformer
        Features of the states. "auto": one-hot states as they are, else standardised polynomials of degree 2.
    ridge : float
        Penalty on the squared coefficients; its first-order bias is reported.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value.
    self_normalized : bool
        Count the log's visits of a state with the action ratios of the actions taken there, whose mean is 1: far less variance,
        for a small bias that vanishes with n.
    visits : {"all", "discounted"}
        How a stationary ratio counts the log's visits: all alike, or with gamma^t, which forgets the later part of a recording.
    random_state : int
        Seed of features whose own `random_state` is None.

    Notes
    -----
    c_it = l_t w(s_it) rho_it with w(s) = beta' phi(s), and V = mean_i sum_t c_it r_it. With a horizon, forwards from w_0 = 1,
    sum_i phi(s_it+1) w_{t+1}(s_it+1) = gamma sum_i phi(s_it+1) w_t(s_it) rho_it: counts of weighted visits for one-hot states.
    Stationary: the solution of mean_i sum_t l_t w(s_t) (f(s_t) - gamma rho_t f(s_{t+1})) = mean_i f(s_0) for every f in the class of w,
    with l_t = 1 or gamma^t. Terminals: f = 0 there, so that no mass is carried on and no normalisation to the length of an
    endless episode is made. Truncated recordings: the flow goes on from the state that followed. Self-normalised: rho_t f(s_t)
    replaces f(s_t) on the left, which makes this the dual of off-policy LSTD.
    psi_i = sum_t x_it' beta eps_it + theta' (phi(s_i0) - mean phi), with theta the solution of the transposed system. Propensities are
    taken as they are. With b(a|s) = N(s, a) / N(s), by step where time-indexed, the value is that of the maximum-likelihood model and
    of `LSTDQ`, which has less variance than that of known propensities. For random features and kernels see `MarginalizedIS`.

    RiverSwim (b .6, pi .8, 100 episodes of 50 steps, gamma .95): mean squared errors .052 self-normalised and .083 with discounted visits as well,
    above 3 not self-normalised, where a row of the estimated transitions may sum to more than 1 / gamma.

    References
    ----------
    Liu, Li, Tang, Zhou (2018). Breaking the curse of horizon: infinite-horizon off-policy estimation. NeurIPS.
    Xie, Ma, Wang (2019). Towards optimal off-policy evaluation for reinforcement learning with marginalized importance sampling. NeurIPS.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[2, 2], ends="horizon", behavior_prob=[0.5] * 4
    ... )
    >>> round(StateMarginalIS(gamma=1.0).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    1.0
    """

    requires: ClassVar[Requirement] = (frozenset({"logged_prob"}),)
    needs_propensities: ClassVar[bool] = True

    def __init__(
        self,
        *,
        gamma: float | None = None,
        features: Any = "auto",
        ridge: float = 0.0,
        stationary: bool = False,
        self_normalized: bool = True,
        visits: Literal["all", "discounted"] = "all",
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.features = features
        self.ridge = ridge
        self.stationary = stationary
        self.self_normalized = self_normalized
        self.visits = visits
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        if self.visits not in ("all", "discounted"):
            raise ValueError(
                f"{type(self).__name__}: `visits` must be 'all' or 'discounted', got {self.visits!r}; pass one of them."
            )

    def _basis(self, data: LoggedDataset) -> Basis:
        return fit_state_basis(self.features, data, self.random_state)

    def _view(
        self, block: LoggedDataset, basis: Basis, policy: Policy, stationary: bool, cross_fitted: bool = False
    ) -> View:
        rho = action_ratios(policy, block, cross_fitted, type(self).__name__)
        discounted = stationary and self.visits == "discounted"
        visit_weight = np.power(self._gamma, ragged.step_index(block.offsets) * float(discounted))
        features, final = basis.transform(block.states), final_features(block, basis, stationary)
        settings = {"self_normalized": self.self_normalized, "stationary": stationary}
        seen, multiplier, root = state_system(block, features, final, rho, visit_weight, **settings)
        return View(seen, multiplier, block.rewards, root, exit_shares(block, self._gamma, stationary), final)

    def _instruments(self, block: LoggedDataset, basis: Basis) -> tuple[FloatArray, FloatArray | None]:
        # Weighted differences have mean 0 in every state, not for every action: only states may predict them.
        return history_features(block), richer_state_features(block, basis)

    def _p_values(
        self,
        block: LoggedDataset,
        basis: Basis,
        view: View,
        solution: linear.LinearSolution,
        eps: FloatArray,
        omega: FloatArray,
        share: float,
    ) -> tuple[float, float]:
        weighted_p, features_p = super()._p_values(block, basis, view, solution, eps, omega, share)
        if not block.discrete:
            return weighted_p, features_p
        by_step = len(solution.theta) > 1
        targets = self._targets(block, view, solution.theta, by_step)
        return past_p_value(view.seen.phi_bar, block, targets, omega, by_step=by_step), features_p

    def _targets(self, block: LoggedDataset, view: View, theta: FloatArray, by_step: bool) -> FloatArray:
        """Return r + gamma V(s') of every row, NaN where s' is unknown, shape (n,)."""
        values = np.einsum("nk,nk->n", view.seen.phi_bar, theta[linear.value_index(view.seen, len(theta))])
        after = np.minimum(block.lengths, len(theta) - 1) if by_step else np.zeros(block.n_episodes, dtype=np.int64)
        last = np.einsum("nk,nk->n", view.final, theta[after])
        targets = block.rewards + self._gamma * ragged.shift_to_next(values, block.offsets, last)
        return np.where(view.seen.used, targets, np.nan)

    def _own_findings(self, data: LoggedDataset, policy: Policy) -> list[verdicts.Finding]:
        return [
            verdicts.judge_propensities(data, orthogonal=False),
            verdicts.judge_unlogged(*unlogged_mass(data, policy)),
        ]
