"""Lepski's choice among estimators that differ in one knob, on their paired influence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator

from ope.dataset import LoggedDataset
from ope.diagnostics import influence_sample_size
from ope.estimate import Estimate
from ope.estimator import EXACT, OffPolicyEstimator, inherit_gamma, numbered_names
from ope.estimators import _verdicts as verdicts
from ope.estimators.double_rl import DoubleReinforcementLearning, Pair
from ope.inference.lepski import MULTIPLIER, LepskiChoice, lepski_choice
from ope.policy import Policy, Requirement
from ope.validation import FloatArray, check_number
from ope.verdict import Verdict

CAPS = (None, 16.0, 8.0, 4.0, 2.0, 1.0)

# -------------------------------------------------------------------- mathematics


def usable_estimates(estimates: Sequence[Estimate]) -> list[bool]:
    """Return which estimates enough episodes carry to be compared: `ess_refuse` effective ones, or half of a tiny log."""
    sizes = [
        influence_sample_size(np.asarray(own.influence)) if own.effective_size is None else own.effective_size
        for own in estimates
    ]
    enough = min(verdicts.THRESHOLDS.ess_refuse, 0.5 * len(np.asarray(estimates[0].influence)))
    # Where nothing varies, nothing is carried by few.
    return [size >= enough or not np.any(own.influence) for own, size in zip(estimates, sizes, strict=True)]


def choose_estimate(estimates: Sequence[Estimate], multiplier: float = MULTIPLIER) -> LepskiChoice:
    """Choose among estimates with influence on one log, the least biased first, see `ope.inference.lepski_choice`.

    Parameters
    ----------
    estimates : sequence of Estimate
    multiplier : float
    """
    psi = np.column_stack([np.asarray(own.influence) for own in estimates])
    values = [own.value for own in estimates]
    return lepski_choice(values, psi, usable=usable_estimates(estimates), multiplier=multiplier)


def contradictions(choice: LepskiChoice) -> list[int | None]:
    """Return for every option the least biased one that contradicts it, None where none does.

    Examples
    --------
    >>> from ope.inference import lepski_choice
    >>> contradictions(lepski_choice([1.0, 1.1, 3.0], std_errors=[0.5, 0.2, 0.1]))
    [None, None, 0]
    """
    found: list[int | None] = [None] * len(choice.values)
    for comparison in sorted(choice.comparisons, key=lambda own: -own.against):
        if not comparison.passed:
            found[comparison.option] = comparison.against
    return found


# -------------------------------------------------------------------- estimator


class LepskiEstimator(OffPolicyEstimator):
    """Lepski's choice: of estimators with rising bias and falling variance, the least variable one that no less biased one contradicts.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    estimators : list, or mapping of names, of estimators, or None
        At least two with influence values, the least biased FIRST, that differ in a knob: a cap of ratios, a basis, a ridge, a trace, a
        bandwidth. They inherit gamma. Default: `DoubleReinforcementLearning` with its ratios capped at nothing, 16, 8, 4, 2, 1.
    multiplier : float
        Standard errors of a difference that noise explains, at least 0.

    Notes
    -----
    i* = max {i : |V_i - V_j| <= multiplier se(psi_i - psi_j) for all usable j < i}, and no option is chosen that does not vary less than
    all before it. Options that fewer than 5 effective episodes carry have no say. value, influence and diagnostics are those
    of the chosen one; ``chosen`` names it, ``choice`` says why, ``value_...``, ``error_...`` and ``contradicted_...`` (the first
    option that contradicts it, or "") are the ladder. psi takes the choice as given: the interval knows nothing of the bias that is left, which
    may be a standard error, and the verdict says so wherever the choice is not the first option.

    Knobs that share their work have the choice built in: ``clip="lepski"`` of the importance sampling family, ``window="lepski"`` and
    ``clip="lepski"`` of `IncrementalIS`, ``bandwidth="lepski"`` of `KernelIS`. How the choice did beside fixed settings is in
    ``docs/lepski.md``.

    References
    ----------
    Su, Srinath, Krishnamurthy (2020). Adaptive estimator selection for off-policy evaluation. ICML.
    Lepski, Spokoiny (1997). Optimal pointwise adaptive methods in nonparametric estimation. Annals of Statistics 25.
    Mehrabi, Wager (2024). Off-policy evaluation in Markov decision processes under weak distributional overlap. arXiv 2402.08201.

    Examples
    --------
    >>> from ope.estimators import WeightedIS
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[1] * 8, ends="terminal", behavior_prob=[0.5] * 8
    ... )
    >>> ladder = {"unlimited": WeightedIS(), "no more than 1.2": WeightedIS(clip=1.2)}
    >>> estimate = LepskiEstimator(gamma=1.0, estimators=ladder).fit(log, TabularPolicy([[0.75, 0.25]])).estimate()
    >>> round(estimate.value, 9), estimate.diagnostics["choice"]
    (0.75, 'unlimited was chosen: no more than 1.2 differs from unlimited by 0.0441, more than the 0.0304 that noise explains.')
    """

    requires: ClassVar[Requirement] = ()
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": "the options need not be the empirical mean on the candidate's own data",
            "one_step_bandit": "the options need not be bandit estimators at horizon 1",
            "padding": "an absorbing state may be one more state for the models of the options",
            "shift_rewards": "the options need not be able to express a constant",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        estimators: list[OffPolicyEstimator] | dict[str, OffPolicyEstimator] | None = None,
        multiplier: float = MULTIPLIER,
    ) -> None:
        self.gamma = gamma
        self.estimators = estimators
        self.multiplier = multiplier

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_number(owner, "multiplier", self.multiplier, "a number of at least 0", "1 to 3 is usual", 0.0)
        check_options(owner, self.estimators)
        for option in self._nested().values():
            option._validate()

    def _options(self) -> dict[str, OffPolicyEstimator]:
        if self.estimators is None:
            return {
                "cap=none" if cap is None else f"cap={cap:g}": DoubleReinforcementLearning(ratio_cap=cap)
                for cap in CAPS
            }
        if isinstance(self.estimators, Mapping):
            return {str(name): option for name, option in self.estimators.items()}
        return dict(zip(numbered_names(self.estimators), self.estimators, strict=True))

    def _nested(self) -> dict[str, OffPolicyEstimator]:
        owner = type(self).__name__
        return {name: inherit_gamma(owner, option, self._gamma) for name, option in self._options().items()}

    def _given(self) -> Collection[Any]:
        return self.estimators.values() if isinstance(self.estimators, Mapping) else self.estimators or ()

    @property
    def needs_propensities(self) -> bool:  # type: ignore[override]
        """Whether an option reads them."""
        return any(getattr(option, "needs_propensities", False) for option in self._given())

    def _check_log(self, data: Any) -> None:
        super()._check_log(data)
        for option in self._given():
            if isinstance(option, OffPolicyEstimator):
                option._check_log(data)

    def _check_policy(self, data: LoggedDataset, policy: Any, name: str) -> None:
        super()._check_policy(data, policy, name)
        for option in self._nested().values():
            option._check_policy(data, policy, name)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        estimates = _fit_options(self._nested(), data, policy, name, weight)
        check_comparable(type(self).__name__, estimates)
        names = list(estimates)
        choice = choose_estimate(list(estimates.values()), self.multiplier)
        chosen = estimates[names[choice.index]]
        own = Verdict.of(
            [
                verdicts.judge_balance(choice, names[choice.index]) if choice.index else None,
                verdicts.judge_unseen_bias(choice, names[choice.index]),
            ]
        )
        return replace(
            chosen,
            estimator=type(self).__name__,
            scores=None,
            weights=None,
            replicates=None,
            resample_id=None,
            diagnostics={**chosen.diagnostics, **_ladder(choice, names)},
            verdict=Verdict.worst([chosen.verdict, own]),
        )


def _fit_options(
    options: Mapping[str, OffPolicyEstimator], data: LoggedDataset, policy: Policy, name: str, weight: FloatArray
) -> dict[str, Estimate]:
    """Fit all options; those of double reinforcement learning that differ in the cap alone share Q and ratio."""
    pairs: dict[Any, list[Pair]] = {}
    estimates = {}
    for key, option in options.items():
        if type(option) is DoubleReinforcementLearning:  # a subclass may fit otherwise
            models = _without_cap(option)
            if models not in pairs:
                with np.errstate(over="ignore", invalid="ignore"):
                    pairs[models] = list(option._pairs(data, policy, weight))
            estimates[key] = option._fit_given(data, policy, name, weight, pairs[models])
        else:
            estimates[key] = option._fit_one(data, policy, name, weight)
    return estimates


def _without_cap(option: DoubleReinforcementLearning) -> tuple[Any, ...]:
    """Return what two estimators share only if their models are the same: settings by what they are, other objects by identity."""

    def word(value: Any) -> Any:
        if isinstance(value, BaseEstimator):
            return type(value)
        return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)

    params = option.get_params(deep=True)
    return type(option), *((name, word(params[name])) for name in sorted(params) if name != "ratio_cap")


def _ladder(choice: LepskiChoice, names: list[str]) -> dict[str, Any]:
    """Return what was chosen, why, and all options as diagnostics."""
    found: dict[str, Any] = {"chosen": names[choice.index], "choice": choice.reason(names)}
    for name, value, error, against in zip(
        names, choice.values, choice.std_errors, contradictions(choice), strict=True
    ):
        found[f"value_{name}"] = float(value)
        found[f"error_{name}"] = float(error)
        found[f"contradicted_{name}"] = "" if against is None else names[against]
    return found


def check_options(owner: str, options: Any) -> None:
    """Raise unless these are at least two estimators in an order."""
    if options is None:
        return
    if not isinstance(options, (list, tuple, dict)) or len(options) < 2:
        raise ValueError(
            f"{owner}: `estimators` must be a list or mapping of at least 2 estimators, the least biased first, got {options!r}; pass e.g. "
            "[WeightedIS(), WeightedIS(clip=20.0)]."
        )
    for option in options.values() if isinstance(options, dict) else options:
        if not isinstance(option, OffPolicyEstimator):
            raise TypeError(
                f"{owner}: `estimators` must hold off-policy estimators, got {type(option).__name__}; pass an instance, or leave it out."
            )


def check_comparable(owner: str, estimates: Mapping[str, Estimate]) -> None:
    """Raise where estimates answer different questions, or one has no influence values."""
    for name, estimate in estimates.items():
        if estimate.influence is None:
            raise ValueError(
                f"{owner}: `estimators` must have influence values, got none from {name} ({estimate.estimator}); leave it out, or wrap its Q function in "
                "DoublyRobust."
            )
    questions = {(estimate.horizon, estimate.estimand) for estimate in estimates.values()}
    if len(questions) > 1:
        raise ValueError(
            f"{owner}: `estimators` must answer one question, got horizons {sorted({str(horizon) for horizon, _ in questions})}; set stationary= in all or "
            "in none."
        )
