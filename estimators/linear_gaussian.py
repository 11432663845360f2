"""Model-based evaluation with linear dynamics, Gaussian noise and a quadratic reward: closed forms where the candidate is linear too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import EXACT
from ope.estimators import _linear_gaussian as linear
from ope.estimators import _linear_gaussian_values as values
from ope.estimators import _linear_rollouts as rollouts
from ope.estimators import _model_verdicts as models
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import history_features, is_one_hot, richer_features
from ope.estimators._importance import unlogged_mass
from ope.estimators._linear_gaussian import FittedLog, LinearModel
from ope.estimators._linear_gaussian_values import LinearPolicy, LinearValue
from ope.estimators._simulation import SimulatingEstimator
from ope.estimators._specification import score_test
from ope.inference.weights import resampling_weights
from ope.policy import Policy
from ope.validation import FloatArray, IntArray, check_integer
from ope.verdict import Level, Verdict

LEAST_ROLLOUTS = 200


class LinearGaussianModel(SimulatingEstimator):
    """Linear transitions with Gaussian noise and a quadratic reward, fitted by least squares; the candidate's value in this model.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    homogeneous : bool
        With a horizon: one model for all steps, rather than one for each, which takes many more episodes. The value is that of
        the steps of the horizon in any case.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value.
    n_bootstrap : int
        Models refitted to resampled episodes, which give the interval where there is no closed form; 0 for none.
    n_rollouts : int
        Simulated episodes there; a refitted model gets a tenth of them, at least 200, which are compared with the same ones of the
        model itself.
    random_state : int
        Seed of resamples and simulations.

    Notes
    -----
    s' = A s + B a + c + w with Gaussian w, r quadratic in (s, a); with discrete actions one such model for each. A last step
    without a known next state counts in the reward alone, and a truncation is no evidence of an end.

    Where no logged episode ended in a terminal state and the candidate is linear and Gaussian of constant covariance (a
    `GaussianPolicy` of coefficients, or anything that probing shows to be one; a deterministic linear one too), the value is
    exact: V(s) is quadratic, by a Lyapunov equation or backwards from the horizon. The influence vector is the delta
    method in closed form: dV = m' d beta + 2 gamma tr(dTheta' E[x (1, s')'] P) + gamma tr(P dSigma) with m, E over the candidate's discounted visits.

    Otherwise episodes are simulated (terminations by a logistic regression), and the interval comes from `replicates`: models
    refitted to Exponential(1) weights of episodes, all rolled out with the same noise. The Monte Carlo error widens it where it
    is not negligible.

    What the log contradicts is told: the past, the step, or random waves of states and actions must not predict the errors.

    References
    ----------
    Bradtke (1993). Reinforcement learning applied to linear quadratic regulation. Advances in Neural Information Processing
    Systems 5.

    Examples
    --------
    >>> from ope.policies import GaussianPolicy
    >>> from ope.problems import ScalarLQR
    >>> problem = ScalarLQR()
    >>> log, candidate = problem.sample(50), GaussianPolicy([[problem.target.gain]], problem.target.std)
    >>> estimate = LinearGaussianModel(gamma=0.95).fit(log, candidate).estimate()
    >>> low, high = estimate.confidence_interval()
    >>> low < problem.value(problem.target) < high
    True
    """

    laws: ClassVar[Mapping[str, str]] = MappingProxyType({**SimulatingEstimator.laws, "shift_rewards": EXACT})

    def __init__(
        self,
        *,
        gamma: float | None = None,
        homogeneous: bool = True,
        stationary: bool = False,
        n_bootstrap: int = 50,
        n_rollouts: int = 5000,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.homogeneous = homogeneous
        self.stationary = stationary
        self.n_bootstrap = n_bootstrap
        self.n_rollouts = n_rollouts
        self.random_state = random_state

    # ---------------------------------------------------------------- checks at the door

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_integer(owner, "n_bootstrap", self.n_bootstrap, 0, "pass 0 for none")
        check_integer(owner, "n_rollouts", self.n_rollouts, 2, "5000 is usual")
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")

    def _check_states(self, data: LoggedDataset) -> None:
        owner = type(self).__name__
        if data.discrete and is_one_hot(data.states):
            raise ValueError(
                f"{owner}.fit: the states of `data` must be numbers that may move a little, got one-hot columns; use ModelBased, or LSTDQ."
            )
        self._check_mask(data)

    # ---------------------------------------------------------------- fitting

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        self._check_states(data)
        order = np.argsort(data.episode_keys, kind="stable")
        stationary = bool(self.stationary) or data.horizon is None
        horizon, pooled = (None if stationary else data.horizon), bool(self.homogeneous) and not stationary
        fitted = FittedLog.fit(data.select(order), weight[order], horizon, pooled)
        candidate = None
        if not data.discrete:
            candidate = values.linear_policy(policy, fitted.log.states, fitted.units)
        if candidate is None or fitted.ended:
            return self._simulate(data, policy, name, fitted, candidate)
        return self._solve(data, name, fitted, candidate, np.argsort(order))

    # ---------------------------------------------------------------- closed form

    def _solve(
        self, data: LoggedDataset, name: str, fitted: FittedLog, candidate: LinearPolicy, back: IntArray
    ) -> Estimate:
        gamma, model, weight = self._gamma, fitted.model, fitted.weight
        found = values.evaluate(model, candidate, fitted.sums.start / fitted.sums.n, gamma, fitted.horizon)
        psi, ratio = np.empty(len(weight)), []
        for seen, own in fitted:
            terms = values.row_terms(seen, model, found, fitted.sums.n)
            psi[own] = values.influence(seen, terms, found, weight[own])
            ratio.append(terms.ratio)
        psi = verdicts.settled(psi, found.value)
        ess = models.visit_sample_size(
            np.concatenate(ratio), fitted.log.rewards, fitted.log.offsets, weight, fitted.by_step
        )
        diagnostics = {
            "method": "closed form",
            "ess": ess,
            **verdicts.influence_diagnostics(psi),
            "condition": model.condition,
            "radius": found.radius,
            "unsupported": _unsupported(model, found),
            **_specification(fitted, gamma, found),
        }
        findings = _closed_findings(data, psi, found, diagnostics, gamma, fitted.horizon is None)
        return self._result(
            data,
            name,
            value=found.value,
            influence=psi[back],
            horizon=fitted.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    # ---------------------------------------------------------------- simulation

    def _simulate(
        self, data: LoggedDataset, policy: Policy, name: str, fitted: FittedLog, candidate: LinearPolicy | None
    ) -> Estimate:
        gamma, stationary = self._gamma, fitted.horizon is None
        seen = self._roll_out(fitted, self._question(policy, fitted, candidate))
        diagnostics = {
            "method": "simulation",
            "monte_carlo_error": seen.noise,
            "outside": seen.outside,
            "alive": seen.alive,
            "condition": fitted.model.condition,
            "truncated_share": verdicts.truncated_share(data),
            **_specification(fitted, gamma, None),
        }
        noisy, widening = models.judge_noise(seen.noise, seen.spread, "n_rollouts=")
        findings = [
            models.judge_simulated(seen.finite),
            verdicts.judge_range(seen.value, data, gamma, stationary, Level.REFUSE),
            models.judge_replicates(len(seen.replicates)),
            models.judge_few(data.n_episodes),
            models.judge_spread(seen.spread, data, gamma, stationary),
            noisy,
            models.judge_alive(seen.alive, stationary and gamma == 1.0),
            models.judge_outside(seen.outside),
            *_contradictions(diagnostics),
            verdicts.judge_unlogged(*unlogged_mass(data, policy)),
        ]
        resampled = seen.finite and len(seen.replicates) > 0
        return self._result(
            data,
            name,
            value=seen.value,
            replicates=seen.replicates if resampled else None,
            resample_id=f"{data.data_id}-bayesian-{self.random_state}-{self.n_bootstrap}" if resampled else None,
            widening=widening,
            horizon=fitted.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _roll_out(self, fitted: FittedLog, question: rollouts.Question) -> _Simulated:
        """Simulate the model at length, and beside it, with fewer episodes, models of resampled episodes."""
        seed, n_rollouts, weights = int(self.random_state), int(self.n_rollouts), fitted.weight[None]
        if self.n_bootstrap:
            drawn = resampling_weights(fitted.log.episode_keys, int(self.n_bootstrap), seed=seed)
            weights = np.vstack([weights, fitted.weight * drawn])
        stack = _stack(fitted, weights, question)
        start = fitted.units.states(fitted.log.states[fitted.log.offsets[:-1]])
        with np.errstate(over="ignore", invalid="ignore"):
            seen = rollouts.simulate(stack.part(1), start, weights[:1], question, n_rollouts, seed)
            value, noise = float(seen.returns.mean()), rollouts.noise_of(seen.returns[0])
            few = max(LEAST_ROLLOUTS, n_rollouts // 10)
            means = rollouts.simulate(stack, start, weights, question, few, seed).returns.mean(axis=1)
            replicates = value + means[1:] - means[0]
            finite = bool(np.isfinite(value) and np.isfinite(replicates).all())
            spread = float(np.std(replicates, ddof=1)) if len(replicates) > 1 and finite else float("nan")
        return _Simulated(value, noise, replicates, spread, finite, seen.outside, seen.alive)

    def _question(self, policy: Policy, fitted: FittedLog, candidate: LinearPolicy | None) -> rollouts.Question:
        log, units = fitted.log, fitted.units
        low, high = (units.states(getattr(log.states, side)(axis=0)) for side in ("min", "max"))
        margin = rollouts.MARGIN * (high - low)
        act = (
            rollouts.drawn_actions(policy, units, log.action_labels, log.feature_names)
            if candidate is None
            else rollouts.linear_actions(candidate, units)
        )
        n_steps = rollouts.rollout_steps(self._gamma, fitted.horizon, int(log.lengths.max()))
        return rollouts.Question(act, units, self._gamma, n_steps, low - margin, high + margin, fitted.by_step)


@dataclass(frozen=True, eq=False)
class _Simulated:
    """What simulation says: the value and its Monte Carlo error, replicates and their spread, whether all are finite."""

    value: float
    noise: float
    replicates: FloatArray
    spread: float
    finite: bool
    outside: float
    alive: float


# -------------------------------------------------------------------- models of resampled episodes


def _stack(fitted: FittedLog, weights: FloatArray, question: rollouts.Question) -> rollouts.Stack:
    """Fit a model to each row of weights."""
    found, looked = [fitted.model], list(fitted)
    for weight in weights[1:]:
        parts = [linear.summarise(seen, weight[own], fitted.n_slots) for seen, own in looked]
        found.append(linear.regress(linear.merge(parts)))
    if not fitted.ended:
        return rollouts.Stack.of(found, None)
    views = [seen for seen, _ in looked]
    features = np.concatenate([rollouts.hazard_features(seen.x, seen.steps, question) for seen in views])
    # Where an episode ended without a known next state, nobody knows whether the process did.
    told = np.concatenate([seen.ended | seen.onward for seen in views])
    ended = np.concatenate([seen.ended for seen in views]).astype(np.float64)
    hazards: list[FloatArray] = []
    for weight in weights:
        rows = np.repeat(weight, fitted.log.lengths) * told
        hazards.append(rollouts.fit_hazard(features, ended, rows, hazards[0] if hazards else None))
    return rollouts.Stack.of(found, hazards)


# -------------------------------------------------------------------- verdict


def _unsupported(model: LinearModel, found: LinearValue) -> float:
    """Return the share of the candidate's visits, as the reward sees them, outside the span of the log."""
    load = found.beta_load
    if not np.isfinite(load).all():
        return 0.0
    left = load - np.einsum("sqk,sk->sq", model.support, load)
    return float(np.abs(left).sum() / max(float(np.abs(load).sum()), np.finfo(float).tiny))


def _specification(fitted: FittedLog, gamma: float, found: LinearValue | None) -> dict[str, float]:
    """Return the p-values of the hypotheses that errors are unrelated to the past, the step, and waves of states and actions."""
    seen, own = next(iter(fitted))
    block = next(fitted.log.blocks())
    closed = found is not None and np.isfinite(found.value)
    errors = (
        values.value_errors(seen, fitted.model, found, gamma)
        if closed and found is not None
        else values.plain_errors(seen, fitted.model)
    )
    weighted = np.repeat(fitted.weight[own], block.lengths)[:, None] * errors

    def p_value(h: FloatArray | None) -> float:
        if h is None:
            return 1.0
        left = linear.unexplained(h, seen, fitted.weight[own], fitted.n_slots)
        tests = [score_test(ragged.segment_sum(left * column[:, None], seen.offsets)) for column in weighted.T]
        return min(1.0, float(len(tests) * min(tests)))

    share = seen.steps / float(fitted.horizon or 1)
    return {
        "specification_p": p_value(history_features(block)),
        "features_p": p_value(richer_features(block)),
        "homogeneous_p": p_value(np.stack([share, share**2], axis=1)) if fitted.pooled else 1.0,
    }


def _closed_findings(
    data: LoggedDataset,
    psi: FloatArray,
    found: LinearValue,
    diagnostics: Mapping[str, Any],
    gamma: float,
    stationary: bool,
) -> list[verdicts.Finding]:
    """Judge a closed form."""
    limits = verdicts.THRESHOLDS
    return [
        models.judge_value(found.value),
        models.judge_radius(found.radius),
        verdicts.judge_range(found.value, data, gamma, stationary, Level.REFUSE),
        verdicts.judge_width(psi, data, gamma, stationary),
        verdicts.judge_ess(diagnostics["ess"], limits.linear_ess, "ratios of visits"),
        verdicts.judge_share(diagnostics["largest_share"], limits.linear_share),
        verdicts.judge_condition(diagnostics["condition"]),
        verdicts.judge_unsupported(diagnostics["unsupported"]),
        *_contradictions(diagnostics),
    ]


def _contradictions(diagnostics: Mapping[str, Any]) -> list[verdicts.Finding]:
    return [
        models.judge_past(diagnostics["specification_p"]),
        models.judge_linear(diagnostics["features_p"]),
        models.judge_homogeneous(diagnostics["homogeneous_p"]),
    ]
