"""`DefaultEstimator` and `default`: what the library itself would use on a log, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from ope.dataset import LoggedDataset
from ope.estimate import Estimate, Estimates
from ope.estimator import OffPolicyEstimator, inherit_gamma
from ope.estimators._verdicts import THRESHOLDS
from ope.estimators.control_variate_is import ControlVariateIS
from ope.estimators.incremental_is import IncrementalIS
from ope.estimators.lstdq import LSTDQ
from ope.estimators.neural_fqe import NeuralFittedQEvaluation
from ope.policy import Policy, Requirement
from ope.validation import FloatArray

LINEAR = "LSTDQ"
NEURAL = "NeuralFittedQEvaluation"
WEIGHTED = ("ControlVariateIS", "IncrementalIS")


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen, why, and what was tried.

    Parameters
    ----------
    name : str
        Class of the chosen estimator.
    estimator : OffPolicyEstimator
        With the settings used, not fitted.
    reason : str
    tried : DataFrame
        A row per estimator and candidate in the order of the trials: ``estimator``, ``policy``, ``value``, ``std_error``,
        ``verdict``, ``past_p`` and ``features_p`` (of the tests, NaN where there is none), ``chosen``.
    """

    name: str
    estimator: OffPolicyEstimator
    reason: str
    tried: pd.DataFrame

    def __repr__(self) -> str:
        return f"Choice({self.name}: {self.reason})"


class DefaultEstimator(OffPolicyEstimator):
    """Let the log decide between a linear Q function, a neural one, and importance weights.

    Use it to begin with, or where nothing is known of the problem; `choice_` says what it took and why.

    Parameters
    ----------
    gamma : float
        Discount factor, in [0, 1].
    linear : LSTDQ or None
        The linear Q method, if not with its defaults; its `gamma` is inherited.
    neural : NeuralFittedQEvaluation or None
        The method with networks, if not with its defaults: their size and budget.

    Attributes
    ----------
    choice_ : Choice
        After `fit`.

    Notes
    -----
    One method for all candidates, so that their values compare:

    1. `LSTDQ`, unless its score tests reject it for a candidate (p < .001 over the number of candidates).
    2. Where richer features predict its errors, the basis is too poor: `NeuralFittedQEvaluation`.
    3. Where the errors depend on what happened one step before and the basis has nothing richer (a table), the states do not
       hold what decides rewards: importance weights, which need no states. Of `ControlVariateIS` and `IncrementalIS` the one
       with the smaller standard errors (the geometric mean over the candidates). Without propensities, or for policies
       without densities, `LSTDQ` stays and its verdict is REFUSE.

    Estimates, intervals and verdicts are those of the chosen method; the interval does not include the choice. Its error
    beside that of the best method of each problem is measured in ``docs/estimators.md``.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> from ope.problems import RiverSwim
    >>> problem = RiverSwim(horizon=10)
    >>> policy = TabularPolicy(problem.target, state_code=problem.state_code)
    >>> estimator = DefaultEstimator(gamma=0.95).fit(problem.sample(200, random_state=0), policy)
    >>> estimator.choice_.name
    'LSTDQ'
    """

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}), frozenset({"sample"}), frozenset({"logged_prob"}))
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(dict(LSTDQ.laws))

    choice_: Choice

    def __init__(
        self,
        *,
        gamma: float | None = None,
        linear: LSTDQ | None = None,
        neural: NeuralFittedQEvaluation | None = None,
    ) -> None:
        self.gamma = gamma
        self.linear = linear
        self.neural = neural

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        for name, nested, kind in (("linear", self.linear, LSTDQ), ("neural", self.neural, NeuralFittedQEvaluation)):
            if nested is None:
                continue
            if not isinstance(nested, kind):
                raise TypeError(
                    f"{owner}: `{name}` must be a {kind.__name__} or None, got {type(nested).__name__}; pass "
                    f"{kind.__name__}(...) with the settings you want."
                )
            inherit_gamma(owner, nested, self._gamma)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        estimate = self._decided(data, {name: policy}, weight)[name]
        if estimate.error is not None:
            raise ValueError(f"{type(self).__name__}: {estimate.error}")
        return estimate

    def _fit_many(self, data: LoggedDataset, policies: Mapping[str, Policy], weight: FloatArray) -> dict[str, Estimate]:
        return self._decided(data, policies, weight)

    def _decided(self, data: LoggedDataset, policies: Mapping[str, Policy], weight: FloatArray) -> dict[str, Estimate]:
        trials = _Trials(self, data, policies, weight)
        name, reason = trials.decide()
        estimates = trials.all_of(name)
        tried = trials.table().assign(chosen=lambda table: table["estimator"] == name)
        self.choice_ = Choice(name, trials.make(name), reason, tried)
        owner = type(self).__name__
        return {
            policy: replace(estimate, estimator=owner, diagnostics={**estimate.diagnostics, "method": name})
            for policy, estimate in estimates.items()
        }


class _Trials:
    """The fits that a choice looks at, each made once."""

    def __init__(
        self, owner: DefaultEstimator, data: LoggedDataset, policies: Mapping[str, Policy], weight: FloatArray
    ) -> None:
        self.owner, self.data, self.policies, self.weight = owner, data, policies, weight
        self.fits: dict[str, dict[str, Estimate]] = {}

    def make(self, name: str) -> OffPolicyEstimator:
        """Return an estimator with the settings of the owner."""
        made: dict[str, OffPolicyEstimator] = {
            LINEAR: self.owner.linear or LSTDQ(),
            NEURAL: self.owner.neural or NeuralFittedQEvaluation(stationary=self._stationary),
            "ControlVariateIS": ControlVariateIS(),
            "IncrementalIS": IncrementalIS(),
        }
        return inherit_gamma(type(self.owner).__name__, made[name], self.owner._gamma)

    def one(self, name: str, policy: str) -> Estimate:
        """Return the estimate of one candidate."""
        fits = self.fits.setdefault(name, {})
        if policy not in fits:
            fits |= self._fit(name, {policy: self.policies[policy]})
        return fits[policy]

    def all_of(self, name: str) -> dict[str, Estimate]:
        """Return the estimates of all candidates, in their order."""
        fits = self.fits.setdefault(name, {})
        missing = {policy: self.policies[policy] for policy in self.policies if policy not in fits}
        if missing:
            fits |= self._fit(name, missing)
        return {policy: fits[policy] for policy in self.policies}

    def _fit(self, name: str, policies: Mapping[str, Policy]) -> dict[str, Estimate]:
        found: Estimates = self.make(name).fit(self.data, policies, episode_weight=self.weight).estimate()
        return dict(found.items())

    # ---------------------------------------------------------------- the rule

    def decide(self) -> tuple[str, str]:
        """Return the method for all candidates and the reason."""
        limit = THRESHOLDS.specification / len(self.policies)
        past: list[float] = []
        for policy in self.policies:
            diagnostics = self.one(LINEAR, policy).diagnostics
            if diagnostics.get("features_p", 1.0) < limit:
                return NEURAL, _poor_basis(policy, diagnostics["features_p"])
            past.append(diagnostics.get("specification_p", 1.0))
        failed = [policy for policy in self.policies if self.one(LINEAR, policy).error is not None]
        if len(failed) == len(self.policies):
            return self._weights(f"LSTDQ does not serve the candidates ({self.one(LINEAR, failed[0]).error})")
        if not min(past) < limit:
            return LINEAR, "Neither the past nor richer features predict the errors of its Q function."
        return self._weights(
            f"The errors of a Q function depend on the past (p = {min(past):.1g}) and no richer features of the states "
            "are at hand: the states do not hold what decides rewards"
        )

    def _weights(self, cause: str) -> tuple[str, str]:
        spread = {name: self._spread(name) for name in WEIGHTED} if self._weights_apply() else {}
        best = min(spread, key=spread.__getitem__, default=None)
        if best is None or not np.isfinite(spread[best]):
            return (
                LINEAR,
                f"{cause}; importance weights, which need no states, do not apply to this log and these policies.",
            )
        return best, f"{cause}; of the methods that need no states, it has the smaller standard error."

    def _weights_apply(self) -> bool:
        # Weights answer for the horizon of the log: a stationary question about such a log is another one.
        other = self._stationary and self.data.horizon is not None
        return self.data.behavior_log_prob is not None and not other

    @property
    def _stationary(self) -> bool:
        return self.owner.linear is not None and self.owner.linear.stationary

    def _spread(self, name: str) -> float:
        """Return the mean log standard error over the candidates; infinite where one has none."""
        try:
            estimates = self.all_of(name).values()
        except (TypeError, ValueError):
            return np.inf
        errors = np.array([np.inf if e.error is not None or not e.std_error > 0 else e.std_error for e in estimates])
        return float(np.mean(np.log(errors)))

    def table(self) -> pd.DataFrame:
        """Return a row per estimator and candidate that was fitted."""
        rows = [
            {
                "estimator": name,
                "policy": policy,
                "value": estimate.value,
                "std_error": estimate.std_error,
                "verdict": estimate.verdict.level.name,
                "past_p": estimate.diagnostics.get("specification_p", np.nan),
                "features_p": estimate.diagnostics.get("features_p", np.nan),
            }
            for name, fits in self.fits.items()
            for policy, estimate in fits.items()
        ]
        return pd.DataFrame(rows)


def _poor_basis(policy: str, p_value: float) -> str:
    return (
        f"Richer features predict the errors of a linear Q function of {policy!r} (p = {p_value:.1g}): its basis is too poor, and "
        "networks learn one."
    )


def default(data: LoggedDataset, policy: Policy | Mapping[str, Policy], *, gamma: float, **settings: Any) -> Choice:
    """Return what the library itself would use to value these candidates from this log, and why.

    Parameters
    ----------
    data : LoggedDataset
    policy : Policy or mapping of str to Policy
    gamma : float
    **settings
        Of `DefaultEstimator`.

    Returns
    -------
    Choice

    Raises
    ------
    TypeError, ValueError
        If the log, a policy or a setting does not fit.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> from ope.problems import ModelFail
    >>> problem = ModelFail()
    >>> policy = TabularPolicy(problem.target, state_code=problem.state_code)
    >>> default(problem.sample(500, random_state=0), policy, gamma=1.0).name
    'ControlVariateIS'
    """
    return DefaultEstimator(gamma=gamma, **settings).fit(data, policy).choice_
