"""What estimators that solve a saddle point for a ratio of visits share: the problem, the passes over the log, the findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import _with_overlap
from ope.estimators import _linear as linear
from ope.estimators import _verdicts as verdicts
from ope.estimators._dice_flow import ActionFeatures, FlowFeatures, Kept
from ope.estimators._dice_linear import LinearSolver, effective, influence
from ope.estimators._dice_problem import DiceModel, DiceProblem, DiceValues, Lagrangian, NeuralFunctions
from ope.estimators._features import FeatureBlock, check_features, fit_basis
from ope.estimators._importance import unlogged_mass
from ope.estimators._marginal import RatioSums, exit_shares
from ope.estimators._ratio import RatioEstimator
from ope.policy import Policy, Requirement, overlap, used_rows
from ope.validation import FloatArray, check_integer
from ope.verdict import Level, Verdict

# -------------------------------------------------------------------- what is reported of a fitted Lagrangian


@dataclass(frozen=True)
class ThreeValues:
    """Estimates of J from nu alone, from zeta alone and from both, and what the regularisers explain of their differences.

    Parameters
    ----------
    primal : float
        E_0 nu + lambda / k; NaN where nu is no value function.
    dual : float
        E_D[zeta r] / k.
    lagrangian : float
        Primal plus E_D[zeta (r + gamma nu' - nu - lambda)] / k.
    unexplained : float
        Largest difference to the dual that the regularisers do not explain: 0 at a saddle point.
    """

    primal: float
    dual: float
    lagrangian: float
    unexplained: float


def three_values(problem: DiceProblem, values: DiceValues, lam: float, switches: Lagrangian) -> ThreeValues:
    """Return the three values; `switches` are those of the Lagrangian that was solved.

    Notes
    -----
    At a saddle point Lagrangian - dual = -(a_nu E_D[nu f'(nu)] + lambda^2 / norm_penalty) / k, and primal - dual has -a_zeta E_D[zeta
    f'(zeta)] / k more.
    """
    f, edge, mass = values.live, values.absorbing, problem.mass
    dual = mass * problem.mean(f.zeta * problem.data.rewards, np.zeros_like(edge.zeta))
    onward = [part.zeta * (problem.gamma * part.nu_next - part.nu - lam) for part in (f, edge)]
    first = problem.start_mean(values.nu_start) + mass * lam
    lagrangian = dual + first + mass * problem.mean(onward[0], onward[1])
    pull = switches.a_nu * problem.mean(*(part.nu * switches.slope(part.nu) for part in (f, edge)))
    pull += lam**2 / switches.norm_penalty if switches.norm else 0.0
    gaps = [lagrangian - dual + mass * pull]
    if switches.reward:
        pull += switches.a_zeta * problem.mean(*(part.zeta * switches.slope(part.zeta) for part in (f, edge)))
        gaps.append(first - dual + mass * pull)
    return ThreeValues(first if switches.reward else float("nan"), dual, lagrangian, float(np.abs(gaps).max()))


@dataclass(frozen=True)
class Fitted:
    """A solved problem.

    Parameters
    ----------
    model : DiceModel
    value : float
        Dual value.
    influence : ndarray of shape (n_episodes,) or None
    diagnostics : dict
        Of the solver.
    findings : list
    """

    model: DiceModel
    value: float
    influence: FloatArray | None
    diagnostics: dict[str, Any]
    findings: list[verdicts.Finding]


@dataclass(frozen=True)
class DiceRatio:
    """A fitted ratio of visits.

    Parameters
    ----------
    model : DiceModel
    scale : float
        What turns zeta into c.
    stationary : bool
    """

    model: DiceModel
    scale: float
    stationary: bool

    def predict(self, policy: Policy, data: LoggedDataset) -> FloatArray:
        """Return c_it of every row of a log, 0 of those left out, shape (n,)."""
        zeta = self.model.evaluate(policy, data).zeta
        return np.where(used_rows(data, self.stationary), self.scale * zeta, 0.0)


# -------------------------------------------------------------------- checks of features and of the ratio


def ratio_diagnostics(problem: DiceProblem, c: FloatArray) -> dict[str, float]:
    """Return how many episodes carry the ratios c, how much of them is negative, and the visits they add up to."""
    sums, first = RatioSums(problem.n_values, float(np.abs(c).max()) or 1.0), 0
    for block, omega in episode_blocks(problem):
        own = c[first : first + block.n_transitions]
        first += block.n_transitions
        steps = np.arange(len(own)) - np.repeat(block.offsets[:-1], block.lengths)
        exits = exit_shares(block, problem.gamma, problem.stationary)
        sums.add(own, block.rewards, exits, steps, block.offsets, omega)
    return {
        "ess": sums.effective_sample_size,
        "mean_ratio": sums.mass,
        "negative_share": sums.negative_share,
    }


def episode_blocks(problem: DiceProblem) -> Iterator[tuple[LoggedDataset, FloatArray]]:
    """Yield blocks of whole episodes with the weights of their episodes."""
    first = 0
    for block in problem.data.blocks():
        yield block, problem.episode_weight[first : first + block.n_episodes]
        first += block.n_episodes


def feature_diagnostics(problem: DiceProblem, features: FlowFeatures, c: FloatArray) -> dict[str, float]:
    """Test by least-squares temporal differences in the same features whether states and features suffice.

    Parameters
    ----------
    problem : DiceProblem
    features : FlowFeatures
    c : ndarray of shape (n,)
        Ratios of visits.

    Returns
    -------
    dict
        With the value of these least squares as ``lstdq``.
    """
    views = partial(_views, problem, features)
    sums = linear.merge([linear.summarise(view, omega, problem.n_values) for _, omega, view in views()])
    solution = linear.solve(sums, problem.gamma, 0.0)
    tested: dict[str, float] = {}
    outside, first = np.zeros(2), 0
    for block, omega, view in views():
        own = c[first : first + block.n_transitions]
        first += block.n_transitions
        outside += linear.unsupported_mass(view, solution, own, problem.gamma, omega)
        if not tested and omega.any():
            # One block decides whether the model is contradicted; more would not be more convincing.
            past, richer = features.instruments(block)
            eps = linear.temporal_differences(view, solution.theta, problem.gamma)
            rest = (solution, eps, problem.gamma, omega, float(omega.sum() / problem.episode_weight.sum()))
            tested["specification_p"] = linear.specification_p_value(view, past, *rest)
            tested["features_p"] = 1.0 if richer is None else linear.specification_p_value(view, richer, *rest)
    unsupported = float(outside[0] / outside[1]) if outside[1] > 0 else 0.0
    return {"lstdq": solution.value, "condition": solution.condition, **tested, "unsupported": unsupported}


def _views(problem: DiceProblem, features: FlowFeatures) -> Iterator[tuple[LoggedDataset, FloatArray, FeatureBlock]]:
    for block, omega in episode_blocks(problem):
        yield block, omega, features.seen(problem.policy, block)


# -------------------------------------------------------------------- workflow


def check_terminal(owner: str, terminal: Any, norm: bool, asked: str, remedy: str) -> None:
    """Raise unless `terminal` is an encoding of terminals, and one in which a norm makes sense where it is asked for."""
    if terminal not in ("auto", "absorbing", "zero"):
        raise ValueError(
            f"{owner}: `terminal` must be 'auto', 'absorbing' or 'zero', got {terminal!r}; pass one of them."
        )
    if norm and terminal == "zero":
        raise ValueError(
            f"{owner}: `terminal` must be 'absorbing' with {asked}, got 'zero': without the absorbing state the ratios of terminating episodes do not "
            f"average to 1; pass terminal='absorbing' or {remedy}."
        )


def check_network(owner: str, network: Any) -> None:
    """Raise a TypeError unless `network` is None or settings of networks."""
    if network is not None and not isinstance(network, NeuralFunctions):
        raise TypeError(
            f"{owner}: `network` must be NeuralFunctions or None, got {network!r}; pass NeuralFunctions() for networks."
        )


def check_linear_only(owner: str, name: str, value: Any, neutral: Any, network: NeuralFunctions | None) -> None:
    """Raise where a setting of linear classes is asked for together with networks."""
    if network is not None and value != neutral:
        raise ValueError(
            f"{owner}: `{name}` must be {neutral!r} with a network, got {value!r}: it is a setting of linear classes; leave one of them out."
        )


class SaddleEstimator(RatioEstimator):
    """Base of ratios of visits from a saddle point; a subclass says which, and may have a solver of its own."""

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}), frozenset({"sample"}))

    features: Any
    stationary: bool
    n_samples: int
    random_state: int
    network: NeuralFunctions | None = None

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_features(owner, self.features)
        check_network(owner, self.network)
        check_linear_only(owner, "features", self.features, "auto", self.network)
        check_integer(owner, "n_samples", self.n_samples, 1)
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")

    # What a subclass defines.

    def _lagrangian(self) -> Lagrangian:
        raise NotImplementedError

    def _flow_features(self, data: LoggedDataset) -> FlowFeatures | None:
        basis = fit_basis(self.features, data, self.random_state)
        return ActionFeatures(basis, None, self._is_stationary(data), self.n_samples, self.random_state)

    def _solve(self, problem: DiceProblem, features: FlowFeatures | None) -> Fitted:
        assert features is not None
        return solve_linear(problem, features)

    def _own_findings(self, diagnostics: Mapping[str, Any], fitted: Fitted) -> list[verdicts.Finding]:
        del diagnostics, fitted
        return []

    def _feature_tests(self, problem: DiceProblem, features: FlowFeatures, c: FloatArray) -> dict[str, float]:
        return feature_diagnostics(problem, features, c)

    def _ratio(self, problem: DiceProblem, fitted: Fitted) -> Any:
        return DiceRatio(fitted.model, problem.ratio_scale, problem.stationary)

    # The workflow.

    def fit_ratio(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> Any:
        """Fit the ratio of `policy` and return it."""
        problem = self._problem(data, policy, episode_weight)
        if self.network is not None:
            return self._ratio(problem, fit_network(problem, self.network))
        return self._ratio(problem, self._solve(problem, self._flow_features(data)))

    def _is_stationary(self, data: LoggedDataset) -> bool:
        return self.stationary or data.horizon is None

    def _problem(self, data: LoggedDataset, policy: Policy, weight: FloatArray) -> DiceProblem:
        stationary = self._is_stationary(data)
        if stationary and self._gamma == 1.0:
            raise ValueError(
                f"{type(self).__name__}.fit: `gamma` must be below 1 without a horizon, got 1.0: visits then have no normalised distribution; pass "
                "gamma < 1 or a log with a horizon, or use LSTDQ, which serves gamma = 1 where episodes terminate."
            )
        horizon = None if stationary else data.horizon
        weight = weight / weight.mean()
        rest = (self._lagrangian(), self._gamma, horizon, self.n_samples, self.random_state)
        return DiceProblem(data, policy, weight, *rest)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        problem = self._problem(data, policy, weight)
        if self.network is not None:
            return self._to_estimate(problem, None, fit_network(problem, self.network), name)
        features = self._flow_features(data)
        features = None if features is None else Kept(features, data)
        return self._to_estimate(problem, features, self._solve(problem, features), name)

    def _fit_many(self, data: LoggedDataset, policies: Mapping[str, Policy], weight: FloatArray) -> dict[str, Estimate]:
        if self.network is None:
            return super()._fit_many(data, policies, weight)
        problems: dict[str, DiceProblem | Exception] = {}
        for name, policy in policies.items():
            try:
                self._check_policy(data, policy, name)
                problems[name] = self._problem(data, policy, weight)
            except (TypeError, ValueError) as error:
                problems[name] = error
        able = [problem for problem in problems.values() if isinstance(problem, DiceProblem)]
        fits = iter(fit_networks(able, self.network))
        return {
            name: self._entry(data, name, problem, next(fits) if isinstance(problem, DiceProblem) else problem)
            for name, problem in problems.items()
        }

    def _entry(
        self, data: LoggedDataset, name: str, problem: DiceProblem | Exception, fitted: Fitted | Exception
    ) -> Estimate:
        if isinstance(problem, Exception) or isinstance(fitted, Exception):
            error = problem if isinstance(problem, Exception) else fitted
            return self.failed(data, name, f"{type(error).__name__}: {error}")
        estimate = self._to_estimate(problem, None, fitted, name)
        return _with_overlap(estimate, overlap(problem.policy, data), data.n_episodes)

    def _to_estimate(self, problem: DiceProblem, features: FlowFeatures | None, fitted: Fitted, name: str) -> Estimate:
        data = problem.data
        c = self._ratio(problem, fitted).predict(problem.policy, data)
        diagnostics, findings = self._diagnose(problem, features, fitted, c)
        return self._result(
            data,
            name,
            value=fitted.value,
            influence=fitted.influence,
            horizon=problem.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _diagnose(
        self, problem: DiceProblem, features: FlowFeatures | None, fitted: Fitted, c: FloatArray
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        data, psi = problem.data, fitted.influence
        diagnostics: dict[str, Any] = {
            **ratio_diagnostics(problem, c),
            **({} if psi is None else verdicts.influence_diagnostics(psi)),
            **fitted.diagnostics,
            **({} if features is None else self._feature_tests(problem, features, c)),
            "truncated_share": verdicts.truncated_share(data),
            "left_out_transitions": int((~problem.used).sum()),
        }
        linear_or_not = (
            verdicts.linear_findings(diagnostics)
            if features is not None
            else [verdicts.judge_ess(diagnostics["ess"], verdicts.THRESHOLDS.linear_ess, "ratios of visits")]
        )
        return diagnostics, [
            verdicts.judge_finite(fitted.value, psi),
            verdicts.judge_range(fitted.value, data, self._gamma, problem.stationary, Level.REFUSE),
            None if psi is None else verdicts.judge_width(psi, data, self._gamma, problem.stationary),
            *linear_or_not,
            verdicts.judge_mean_ratio(diagnostics["mean_ratio"]),
            verdicts.judge_negative(diagnostics["negative_share"]),
            verdicts.judge_unlogged(*unlogged_mass(data, problem.policy)),
            *fitted.findings,
            *self._own_findings(diagnostics, fitted),
        ]


def fit_networks(problems: Sequence[DiceProblem], network: NeuralFunctions) -> list[Fitted | Exception]:
    """Train networks for problems that differ in their candidates only."""
    from ope.estimators._neural_dice import fit_candidates

    return fit_candidates(problems, network)


def fit_network(problem: DiceProblem, network: NeuralFunctions) -> Fitted:
    """Train networks for one problem."""
    fitted = fit_networks([problem], network)[0]
    if isinstance(fitted, Exception):
        raise fitted
    return fitted


def solve_linear(
    problem: DiceProblem, features: FlowFeatures, *, ridge: float = 0.0, fixed_metric: bool = False
) -> Fitted:
    """Solve in linear classes and say how it went."""
    kept = Kept.of(features, problem.data)
    fit = LinearSolver(problem, kept, ridge=ridge, fixed_metric=fixed_metric).solve()
    psi, point = influence(problem, fit, fixed_metric=fixed_metric, features=kept), fit.point
    switches = effective(problem.lagrangian, point)
    three = three_values(problem, fit.model.evaluate(problem.policy, problem.data, kept), fit.lam, switches)
    diagnostics = {
        "dual": fit.value,
        "primal": float("nan") if point.relaxed else three.primal,
        "lagrangian": float("nan") if point.relaxed else three.lagrangian,
        "flow_shift": fit.flow_shift,
        "residual": point.residual,
        "binding_rows": len(point.active),
    }
    if fixed_metric:
        diagnostics["flow_error"] = float(np.linalg.norm(point.theta))
    std_error = verdicts.standard_error(psi)
    plain = not (point.relaxed or fixed_metric or ridge)
    return Fitted(
        fit.model,
        fit.value,
        psi,
        diagnostics,
        [
            verdicts.judge_solver(
                point.residual < 1e-6, f"its optimality conditions hold to {point.residual:.1g} only"
            ),
            _judge_shift(fit.flow_shift, std_error, switches, bool(ridge)),
            verdicts.judge_disagreement(three.unexplained, std_error) if plain else None,
        ],
    )


def _judge_shift(shift: float, std_error: float, switches: Lagrangian, penalised: bool) -> verdicts.Finding:
    if penalised:
        return verdicts.judge_ridge(shift, std_error)
    if switches.a_zeta > 0.0 or switches.reward:
        return verdicts.judge_regularisers(shift, std_error)
    return verdicts.judge_constraints(shift, std_error)
