"""Fitted Q evaluation (FQE) with any scikit-learn regressor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from sklearn.utils.validation import has_fit_parameter

from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimators import _fqe_verdicts as own
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import Basis, check_features, check_model, feature_block, fit_basis, unfitted
from ope.estimators._fqe_design import Design, FittedQModel, SideBySide, in_key_order, make_design, start_value
from ope.estimators._fqe_fit import Fit, backwards, iterate
from ope.estimators._fqe_targets import Targets, along_trace, log_ratios, one_step, weighted_returns
from ope.estimators._importance import unlogged_mass
from ope.estimators._mrdr import LinearMap, minimise_variance
from ope.estimators._q import QEstimator, check_targets
from ope.estimators._support import outside_span, outside_table
from ope.estimators._traces import check_propensities, trace_of, with_logged_prob
from ope.estimators.lstdq import LSTDQ
from ope.inference.weights import resampling_weights
from ope.policy import Policy, Requirement, continuing_ends
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Level, Verdict

WEIGHTED_LOSSES = ("q_regression", "mrdr")
LOSSES = ("squared", *WEIGHTED_LOSSES)


class FittedQEvaluation(QEstimator):
    """Fitted Q evaluation: regress r + gamma E_pi Q(s', .) on (s, a), again and again; or other targets in its place.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    regressor : scikit-learn regressor or None
        Default: extremely randomised trees with leaves of at least 5 rows.
    features : None, "auto", "identity" or scikit-learn transformer
        What the regressor sees. None: the states beside the one-hot (or continuous) action, which suits trees; else features of
        the states in a block for each discrete action (see `LSTDQ`), which linear models need.
    loss : {"squared", "q_regression", "mrdr"}
        What is regressed: the Bellman target; the importance-weighted return; or, for linear features in closed form, what
        minimises the variance of the doubly robust estimator that is given this Q.
    trace : {None, "retrace", "tree_backup", "q_lambda"}
        How far the temporal differences in a Bellman target reach: one step, or with coefficients c_t of min(1, rho) lambda, of
        pi(a|s) lambda, or of lambda. Only "retrace" reads propensities.
    trace_lambda : float
        lambda in [0, 1]; 0 is no trace.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value.
    max_iter : int
        Limit of the iterations of a stationary fit; an estimate that needs more is not VALID. Earlier ends a fit that wanders: gamma^k has
        made its start forgotten, and moves no longer get smaller.
    tol : float
        Converged when the value and the root mean squares of next-state values and targets move by less than `tol` standard
        deviations of the targets (at least thousandths of their mean size), three times in a row.
    n_bootstrap : int
        Refits on resampled episodes, which give the interval; 0 for none.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of draws and resamples, and of a regressor or features whose own `random_state` is None.

    Notes
    -----
    The target of Q(s_t, a_t) is Q(s_t, a_t) + sum_{k>=t} gamma^{k-t} c_{t+1} ... c_k delta_k with the temporal differences
    delta_k = r_k + gamma E_pi Q(s_{k+1}, .) - Q(s_k, a_k), which is r_t + gamma E_pi Q(s_{t+1}, .) without a trace [3]_.

    With a horizon H there are H regressions, solved backwards: exact in H steps. Otherwise the regression is iterated; off the
    candidate's own distribution it may diverge, which is detected and refused; "q_lambda" may wherever the candidate is far
    from the log. There is no influence vector: intervals come from the bootstrap over episodes [2]_, or from `DoublyRobust`
    with this Q.

    "q_regression" regresses R_t = sum_{k>=t} gamma^{k-t} rho_{t+1} ... rho_k r_k with weights gamma^t W_t [4]_ [5]_: nothing is
    bootstrapped but the value where a truncated episode went. "mrdr" is the weighted least squares of rho_t R_t on
    rho_t phi_t - phibar_t with weights gamma^{2t} W_{t-1}^2 [4]_: the Q of a control variate, for `DoublyRobust`. What changes no
    doubly robust score, in each state the function b / pi of the action, is as in `LSTDQ`.

    References
    ----------
    .. [1] Ernst, Geurts, Wehenkel (2005). Tree-based batch mode reinforcement learning. JMLR 6.
    .. [2] Hao, Ji, Duan, Lu, Szepesvari, Wang (2021). Bootstrapping fitted Q-evaluation. ICML.
    .. [3] Munos, Stepleton, Harutyunyan, Bellemare (2016). Safe and efficient off-policy reinforcement learning. NeurIPS.
    .. [4] Farajtabar, Chow, Ghavamzadeh (2018). More robust doubly robust off-policy evaluation. ICML.
    .. [5] Voloshin, Le, Jiang, Yue (2021). Empirical study of off-policy policy evaluation for reinforcement learning. NeurIPS.

    Examples
    --------
    >>> from sklearn.linear_model import LinearRegression
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="horizon", behavior_prob=[0.5] * 4
    ... )
    >>> fqe = FittedQEvaluation(gamma=1.0, regressor=LinearRegression(fit_intercept=False), features="auto")
    >>> round(fqe.fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}), frozenset({"sample"}))

    def __init__(
        self,
        *,
        gamma: float | None = None,
        regressor: Any = None,
        features: Any = None,
        loss: str = "squared",
        trace: str | None = None,
        trace_lambda: float = 1.0,
        stationary: bool = False,
        max_iter: int = 1000,
        tol: float = 1e-3,
        n_bootstrap: int = 0,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.regressor = regressor
        self.features = features
        self.loss = loss
        self.trace = trace
        self.trace_lambda = trace_lambda
        self.stationary = stationary
        self.max_iter = max_iter
        self.tol = tol
        self.n_bootstrap = n_bootstrap
        self.n_samples = n_samples
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        if self.features is not None:
            check_features(owner, self.features)
        check_model(owner, "regressor", self.regressor, "a scikit-learn regressor or None", "predict")
        for name, least in (("max_iter", 1), ("n_bootstrap", 0), ("n_samples", 1), ("random_state", 0)):
            check_integer(owner, name, getattr(self, name), least)
        check_number(owner, "tol", self.tol, "positive", "pass e.g. 1e-3", 0.0, above=True)
        trace_of(self).check(owner)
        self._check_loss(owner)

    def _check_loss(self, owner: str) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"{owner}: `loss` must be one of {LOSSES}, got {self.loss!r}; pass one of them.")
        if self.loss != "squared" and self.trace is not None:
            raise ValueError(
                f"{owner}: `trace` must be None with loss={self.loss!r}, whose targets hold whole returns, got {self.trace!r}; pass loss='squared'."
            )
        if self.loss == "mrdr" and self.regressor is not None:
            raise ValueError(
                f"{owner}: `regressor` must be None with loss='mrdr', which is solved in closed form for linear features, got "
                f"{type(self.regressor).__name__}; pass features= instead."
            )

    @property
    def needs_propensities(self) -> bool:  # type: ignore[override]
        """Whether these settings read them."""
        return self.loss in WEIGHTED_LOSSES or trace_of(self).reads_propensities

    def _check_log(self, data: Any) -> None:
        if isinstance(data, LoggedDataset):
            self._check_needs(data)
        super()._check_log(data)

    def _check_needs(self, data: LoggedDataset) -> None:
        """Raise unless the log holds what loss and trace read."""
        owner = type(self).__name__
        trace_of(self).check_log(owner, data)
        if self.loss in WEIGHTED_LOSSES:
            check_propensities(owner, f"loss={self.loss!r}", "loss='squared'", data)
        n_open = int(continuing_ends(data, self._is_stationary(data)).sum())
        if self.loss == "mrdr" and n_open:
            raise ValueError(
                f"{owner}.fit: loss='mrdr' must have complete episodes, got {n_open} that go on behind their last step (truncated, or by stationary=True): "
                "a control variate says nothing of what follows; pass loss='squared'."
            )

    def _requirement(self, discrete: bool) -> Requirement:
        options = trace_of(self).requirement(super()._requirement(discrete))
        return with_logged_prob(options) if self.loss in WEIGHTED_LOSSES else options

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> FittedQModel:
        """Fit the Q function and return it."""
        self._check_needs(data)
        log, weight = in_key_order(data, episode_weight)
        return self._solve(self._problem(log, policy), weight)

    def unsupported_ends(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> FloatArray | None:
        """Return the share of what the regressor reads in s_T that the log does not hold, shape (n_episodes,)."""
        inputs, stationary = self._inputs(data), self._is_stationary(data)
        n_values = 1 if stationary else int(data.horizon or 1)
        if isinstance(inputs, SideBySide):
            return (
                outside_table(data, policy, episode_weight, None, n_values, stationary)
                if own.states_repeat(data)
                else None
            )
        if not own.is_cheap(inputs, data, n_values):
            return None
        seen = feature_block(data, inputs, policy, stationary, self.n_samples, self.random_state)
        return outside_span([seen], episode_weight, n_values)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        log, weight = in_key_order(data, weight)
        problem = self._problem(log, policy)
        model = self._solve(problem, weight)
        value = start_value(model, problem.design, weight)
        diagnostics, findings = self._diagnose(problem, model, value, weight)
        estimate = self._result(
            data,
            name,
            value=value,
            horizon=None if self._is_stationary(data) else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )
        if not self.n_bootstrap or model.status == "diverged":
            return estimate
        resample_id = f"{data.data_id}-bayesian-{self.random_state}-{self.n_bootstrap}"
        return replace(estimate, replicates=self._replicates(problem, weight), resample_id=resample_id)

    def _replicates(self, problem: _Problem, weight: FloatArray) -> FloatArray:
        values = np.empty(self.n_bootstrap)
        for b in range(self.n_bootstrap):
            drawn = weight * resampling_weights(problem.log.episode_keys, 1, seed=self.random_state, start=b)[0]
            drawn /= drawn.mean()
            values[b] = start_value(self._solve(problem, drawn), problem.design, drawn)
        return values

    def _is_stationary(self, data: LoggedDataset) -> bool:
        return self.stationary or data.horizon is None

    # ---------------------------------------------------------------- fitting

    def _problem(self, log: LoggedDataset, policy: Policy) -> _Problem:
        inputs, stationary = self._inputs(log), self._is_stationary(log)
        design = make_design(log, policy, inputs, stationary, self.n_samples, self.random_state)
        trace = trace_of(self)
        if self.loss == "squared":
            chosen = one_step(design, self._gamma)
            if trace.kind is not None:
                chosen = along_trace(design, self._gamma, trace, policy, log)
            return _Problem(log, policy, design, chosen, None)
        log_ratio = log_ratios(policy, log, cross_fitted=self.loss == "mrdr")
        # Ratios beyond the range of floats are found in the targets, and named there.
        with np.errstate(over="ignore"):
            chosen = weighted_returns(design, self._gamma, log_ratio)
        return _Problem(log, policy, design, chosen, log_ratio)

    def _inputs(self, data: LoggedDataset) -> Basis:
        if self.features is None and self.loss != "mrdr":
            return SideBySide(None, data.n_actions if data.discrete else None)
        return fit_basis(self._linear_features, data, self.random_state)

    @property
    def _linear_features(self) -> Any:
        return "auto" if self.features is None else self.features

    def _solve(self, problem: _Problem, weight: FloatArray) -> FittedQModel:
        horizon = 1 if problem.design.stationary else int(problem.log.horizon or 1)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.loss == "mrdr":
                fit = self._minimise_variance(problem, weight)
            elif problem.design.stationary:
                self._check_rows(problem, weight)
                options = (self._gamma, self.max_iter, self.tol)
                fit = iterate(problem.design, problem.targets, self._regress, weight, *options)
            else:
                fit = backwards(problem.design, problem.targets, self._regress, weight, horizon)
        return FittedQModel(
            problem.design.inputs, problem.design.stationary, self.n_samples, self.random_state, **vars(fit)
        )

    def _check_rows(self, problem: _Problem, weight: FloatArray) -> None:
        used = problem.design.used
        check_targets(f"{type(self).__name__}.fit", used)
        if not problem.targets.row_weights(weight, used).any():
            raise ValueError(
                f"{type(self).__name__}.fit: `data` must hold an action that the candidate takes at the start of an episode, got none: no weighted return "
                "is left; pass loss='squared'."
            )

    def _minimise_variance(self, problem: _Problem, weight: FloatArray) -> Fit:
        design, log_ratio = problem.design, problem.log_ratio
        assert log_ratio is not None
        options = {name: getattr(self, name) for name in ("gamma", "stationary", "n_samples", "random_state")}
        usual = LSTDQ(features=self._linear_features, **options).fit_q(problem.log, problem.policy, weight)
        theta = minimise_variance(
            design.x, design.x_bar, design.rewards, log_ratio, design.offsets, self._gamma, weight, usual.theta
        )
        return Fit([LinearMap(own) for own in theta], "converged", len(theta), np.zeros(len(design.rewards)))

    def _regress(self, x: FloatArray, y: FloatArray, row_weight: FloatArray) -> Any:
        owner, regressor, counts = type(self).__name__, self._new_regressor(), row_weight > 0
        x, y, row_weight = x[counts], y[counts], row_weight[counts]
        if not np.isfinite(y).all():
            raise ValueError(
                f"{owner}.fit: regression targets must be finite, got products of ratios that overflow; use a candidate closer to the logged policy, or "
                "loss='squared'."
            )
        if np.all(row_weight == row_weight[0]):
            return regressor.fit(x, y)
        if hasattr(regressor, "steps"):
            return regressor.fit(x, y, **{f"{regressor.steps[-1][0]}__sample_weight": row_weight})
        if not has_fit_parameter(regressor, "sample_weight"):
            raise TypeError(
                f"{owner}: {type(regressor).__name__} takes no sample_weight, which episode weights, the bootstrap and weighted returns need; use another "
                "regressor."
            )
        return regressor.fit(x, y, sample_weight=row_weight)

    def _new_regressor(self) -> Any:
        if self.regressor is not None:
            return unfitted(self.regressor, self.random_state)
        from sklearn.ensemble import ExtraTreesRegressor

        return ExtraTreesRegressor(n_estimators=25, min_samples_leaf=5, random_state=self.random_state)

    # ---------------------------------------------------------------- diagnostics and verdict

    def _diagnose(
        self, problem: _Problem, model: FittedQModel, value: float, weight: FloatArray
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        log, control_variate = problem.log, self.loss == "mrdr"
        diagnostics: dict[str, Any] = {
            "status": model.status,
            "iterations": model.iterations,
            "truncated_share": verdicts.truncated_share(log),
            "left_out_transitions": int((~problem.design.used).sum()),
        }
        findings = [
            verdicts.judge_finite(value, None),
            verdicts.judge_range(value, log, self._gamma, model.stationary, Level.REFUSE),
            own.judge_status(model, self.max_iter, self._gamma, self.trace),
            *own.judge_interval(self.n_bootstrap, int(np.count_nonzero(weight))),
            verdicts.judge_unlogged(*unlogged_mass(log, problem.policy)),
        ]
        if np.isfinite(value):
            of_visits = own.diagnose_visits(log, problem.policy, model, weight, self._gamma)
            diagnostics.update(of_visits[0])
            findings.extend(of_visits[1])
        if control_variate:
            findings.append(own.judge_control_variate())
        else:
            diagnostics["specification_p"] = own.specification(log, model, weight)
            findings.append(verdicts.judge_specification(diagnostics["specification_p"]))
        if problem.log_ratio is not None:
            of_weights = own.diagnose_weights(log, problem.log_ratio, weight, self._gamma, orthogonal=control_variate)
            diagnostics.update(of_weights[0])
            findings.extend(of_weights[1])
        return diagnostics, findings


@dataclass(frozen=True)
class _Problem:
    """A log and candidate as regressions."""

    log: LoggedDataset
    policy: Policy
    design: Design
    targets: Targets
    log_ratio: FloatArray | None
