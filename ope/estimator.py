"""`OffPolicyEstimator`: the base class of every estimator. It checks the input, loops over policies and keeps the results."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from typing_extensions import Self

from ope.dataset import LoggedDataset, check_log
from ope.estimate import Estimate, Estimates
from ope.inference.weights import WeightKind, resampling_weights
from ope.policy import Policy, Requirement, overlap
from ope.validation import FloatArray, check_gamma, check_integer, check_length, first_positions
from ope.verdict import Level, Verdict

EXACT = "exact"
STATISTICAL = "statistical"
# Episodes are told apart by the hash of their identifier: logs that number theirs alike look like one.
OTHER_IDS = "; where only the ids coincide, as of logs that both number theirs from 0, give the episodes of one log others (episode_ids=)"


class OffPolicyEstimator(BaseEstimator):  # type: ignore[misc]
    """Base class: ``fit(data, policy)`` learns what the method needs, ``estimate()`` returns the value.

    A subclass defines `_fit_one` (or `_fit_many` where policies share work), what it `requires` of a policy and the
    strength with which it obeys each of the `laws` (`EXACT`, `STATISTICAL`, or a sentence why it does not apply).
    """

    requires: ClassVar[Requirement] = ()
    needs_propensities: ClassVar[bool] = False
    estimand: ClassVar[str] = "return"
    laws: ClassVar[Mapping[str, str]] = MappingProxyType({"scale_rewards": EXACT, "permute_episodes": EXACT})
    _known: ClassVar[list[type[OffPolicyEstimator]]] = []

    gamma: float | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls._fit_one is not OffPolicyEstimator._fit_one:
            OffPolicyEstimator._known.append(cls)

    def fit(
        self, data: LoggedDataset, policy: Policy | Mapping[str, Policy], episode_weight: npt.ArrayLike | None = None
    ) -> Self:
        """Learn what the method needs to value `policy` from `data`.

        Parameters
        ----------
        data : LoggedDataset
        policy : Policy or mapping of str to Policy
            With a mapping, a policy that fails becomes an entry that says why.
        episode_weight : array-like of shape (n_episodes,), optional
            Non-negative weights of episodes: scikit-learn's sample_weight.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If the policy does not offer what the method requires.
        ValueError
            If a parameter or the log does not fit the method.
        """
        self._check_log(data)
        self._validate()
        weight = self._check_weight(data, episode_weight)
        if isinstance(policy, Mapping):
            if not policy:
                raise ValueError(
                    f"{type(self).__name__}.fit: `policy` must be a policy or name at least one, got an empty mapping; pass {{'name': policy}}."
                )
            found = self._fit_many(data, policy, weight)
            self.estimate_: Estimate | Estimates = Estimates(
                {k: _with_training(e, policy[k]) for k, e in found.items()}
            )
        else:
            self.estimate_ = _with_training(self._fit_named(data, policy, type(policy).__name__, weight), policy)
        return self

    def estimate(self) -> Any:
        """Return the `Estimate`, or `Estimates` where `fit` was given a mapping of policies."""
        check_is_fitted(self, "estimate_")
        return self.estimate_

    def _validate(self) -> None:
        """Check the parameters; subclasses extend it."""
        if self.gamma is None:
            raise ValueError(
                f"{type(self).__name__}: `gamma` must be given: it is the question, not a tuning knob; pass gamma= in [0, 1]."
            )
        check_gamma(type(self).__name__, self.gamma)

    @property
    def _gamma(self) -> float:
        # An AttributeError, because `dir` and notebooks ask for all attributes, of a nested estimator without gamma too.
        if self.gamma is None:
            raise AttributeError(f"{type(self).__name__} has no gamma yet.")
        return float(self.gamma)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        raise NotImplementedError

    def _fit_named(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        self._check_policy(data, policy, name)
        estimate = self._fit_one(data, policy, name, weight)
        return _with_overlap(estimate, overlap(policy, data), data.n_episodes)

    def _fit_many(self, data: LoggedDataset, policies: Mapping[str, Policy], weight: FloatArray) -> dict[str, Estimate]:
        estimates = {}
        for name, policy in policies.items():
            try:
                estimates[name] = self._fit_named(data, policy, name, weight)
            except Exception as error:
                estimates[name] = self.failed(data, name, f"{type(error).__name__}: {error}")
        return estimates

    def failed(self, data: LoggedDataset, name: str, reason: str) -> Estimate:
        """Return an entry without a value that says why."""
        verdict = Verdict(Level.REFUSE, (reason,))
        return self._result(data, name, value=float("nan"), verdict=verdict, error=reason, horizon=self._horizon(data))

    def _horizon(self, data: LoggedDataset) -> int | None:
        """Return the horizon of the question: none where it is asked as a stationary one."""
        return None if getattr(self, "stationary", False) else data.horizon

    def _result(self, data: LoggedDataset, name: str, *, value: float, **parts: Any) -> Estimate:
        horizon = parts.pop("horizon", data.horizon)
        parts["diagnostics"] = dict(parts.get("diagnostics", {}))
        return Estimate(
            value=float(value),
            gamma=self._gamma,
            horizon=horizon,
            episode_keys=data.episode_keys,
            data_id=data.data_id,
            estimator=type(self).__name__,
            policy=name,
            known_propensities=data.known_propensities,
            estimand=self.estimand,
            **parts,
        )

    # ---------------------------------------------------------------- checks at the door

    def _check_log(self, data: Any) -> None:
        owner = type(self).__name__
        check_log(f"{owner}.fit", data)
        if self.needs_propensities and data.behavior_log_prob is None:
            raise ValueError(
                f"{owner}.fit: `data` must hold propensities of the logged actions, got none; pass behavior_prob= to the constructor of the log, "
                "or estimate them with ope.estimate_behavior."
            )

    def _check_weight(self, data: LoggedDataset, weight: npt.ArrayLike | None) -> FloatArray:
        """Return weights of mean 1."""
        if weight is None:
            return np.ones(data.n_episodes)
        owner, raw = type(self).__name__, np.asarray(weight)
        if raw.dtype.kind not in "fiub":
            raise TypeError(
                f"{owner}.fit: `episode_weight` must be numeric, got dtype {raw.dtype}; convert the weights."
            )
        if raw.ndim != 1:
            raise ValueError(
                f"{owner}.fit: `episode_weight` must have shape (n_episodes,), got {raw.shape}; pass one weight per episode."
            )
        array = raw.astype(np.float64)
        check_length(f"{owner}.fit", "episode_weight", array, data.n_episodes, "episode")
        bad = ~(np.isfinite(array) & (array >= 0))
        if bad.any() or array.sum() <= 0:
            where = f", got others at {first_positions(bad)}" if bad.any() else ", got only zeros"
            raise ValueError(
                f"{owner}.fit: `episode_weight` must be finite, non-negative and not all zero{where}; correct the weights."
            )
        # Equal weights are none at all, to the bit: estimates keep their scores.
        return np.ones(len(array)) if array.min() == array.max() else np.asarray(array / array.mean())

    def _check_policy(self, data: LoggedDataset, policy: Any, name: str) -> None:
        owner = type(self).__name__
        if not isinstance(policy, Policy):
            raise TypeError(
                f"{owner}.fit: `policy` must be a Policy, got {type(policy).__name__}; wrap it: ope.policies.ClassifierPolicy for a classifier, "
                "FunctionPolicy for a function, TabularPolicy for a table."
            )
        misfit = "density" if data.discrete else "all_probs"
        if misfit in policy.capabilities:
            kinds = ("continuous", "discrete") if data.discrete else ("discrete", "continuous")
            raise TypeError(
                f"{owner}.fit: policy {name!r} ({type(policy).__name__}) is for {kinds[0]} actions, but the log has {kinds[1]} ones; give it a policy of its "
                "kind (a FunctionPolicy of labels needs its action_labels=), or build the log with continuous= as it is meant."
            )
        if self._accepts(policy, data.discrete):
            return
        needed = " or ".join(str(sorted(option)) for option in self._requirement(data.discrete))
        others = sorted({cls.__name__ for cls in self._known if cls._class_accepts(policy, data.discrete)})
        remedy = f"estimators that work with it: {', '.join(others)}" if others else "no estimator works with it"
        raise TypeError(
            f"{owner}.fit: policy {name!r} ({type(policy).__name__}) offers {sorted(policy.capabilities)} but {owner} requires {needed}; {remedy}."
        )

    def _requirement(self, discrete: bool) -> Requirement:
        return self._narrowed(self.requires, discrete)

    def _accepts(self, policy: Policy, discrete: bool) -> bool:
        return _offers(policy, self._requirement(discrete))

    @classmethod
    def _class_accepts(cls, policy: Policy, discrete: bool) -> bool:
        return _offers(policy, cls._narrowed(cls.requires, discrete))

    @staticmethod
    def _narrowed(options: Requirement, discrete: bool) -> Requirement:
        # Discrete expectations run over all actions, continuous ones over samples: each kind of action has its own options.
        wrong = "sample" if discrete else "all_probs"
        return tuple(option for option in options if wrong not in option)


def _offers(policy: Policy, options: Requirement) -> bool:
    return not options or any(option <= policy.capabilities for option in options)


def _with_overlap(estimate: Estimate, n_shared: int, n_episodes: int) -> Estimate:
    diagnostics = {**estimate.diagnostics, "training_overlap": n_shared}
    if not n_shared:
        return replace(estimate, diagnostics=diagnostics)
    reason = (
        f"The policy was trained on {n_shared} of the {n_episodes} evaluation episodes: its value is over-estimated, because the policy was fitted to "
        f"their luck. Split the log with data.split and evaluate on episodes that the policy has not seen{OTHER_IDS}."
    )
    return replace(
        estimate, diagnostics=diagnostics, verdict=Verdict.worst([estimate.verdict, Verdict(Level.CAUTION, (reason,))])
    )


def _with_training(estimate: Estimate, policy: Policy) -> Estimate:
    """Add what the end of the policy's training has against its value, ahead of reasons that weigh the same."""
    doubt = getattr(policy, "training_doubt", None)
    if doubt is None:
        return estimate
    return replace(estimate, verdict=Verdict.worst([Verdict.of([doubt]), estimate.verdict]))


def inherit_gamma(owner: str, nested: OffPolicyEstimator, gamma: float) -> OffPolicyEstimator:
    """Return a copy of a nested estimator with the owner's gamma; a different one of its own is a ValueError."""
    if nested.gamma is not None and nested.gamma != gamma:
        raise ValueError(
            f"{owner}: the nested {type(nested).__name__} must have the same `gamma`, got {nested.gamma!r} inside and {gamma!r} outside; leave it out inside."
        )
    clone = copy.deepcopy(nested)
    clone.set_params(gamma=gamma)
    return clone


def numbered_names(estimators: Sequence[OffPolicyEstimator]) -> list[str]:
    """Return the class of each estimator, numbered where there are several of it.

    Examples
    --------
    >>> from ope.estimators import LSTDQ, WeightedIS
    >>> numbered_names([LSTDQ(), WeightedIS(), LSTDQ(ridge=1.0)])
    ['LSTDQ_1', 'WeightedIS', 'LSTDQ_2']
    """
    kinds = [type(estimator).__name__ for estimator in estimators]
    return [
        kind if kinds.count(kind) == 1 else f"{kind}_{kinds[: place + 1].count(kind)}"
        for place, kind in enumerate(kinds)
    ]


def bootstrap(
    estimator: OffPolicyEstimator,
    data: LoggedDataset,
    policy: Policy,
    *,
    n_replicates: int = 200,
    kind: WeightKind = "bayesian",
    random_state: int = 0,
) -> Estimate:
    """Refit an estimator on resampled episodes and return its estimate with the replicates.

    Parameters
    ----------
    estimator : OffPolicyEstimator
    data : LoggedDataset
    policy : Policy
    n_replicates : int
        At least 1.
    kind : {"bayesian", "poisson"}
        Exponential or Poisson weights of episodes.
    random_state : int

    Returns
    -------
    Estimate
        With `replicates`; compare two of equal `resample_id` in pairs.

    Raises
    ------
    ValueError
        If Poisson weights of very few episodes are all 0 in a replicate.

    Notes
    -----
    The unit is the episode; the weight of an episode in a replicate is a hash of its identifier, the replicate and the
    seed, so that all estimators and candidates see the same resamples.

    Examples
    --------
    >>> from ope.estimators import PerDecisionIS
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> bootstrap(PerDecisionIS(gamma=1.0), log, TabularPolicy([[0.8, 0.2]]), n_replicates=10).replicates.shape
    (10,)
    """
    check_integer("bootstrap", "n_replicates", n_replicates, 1, "200 is usual")
    if isinstance(policy, Mapping):
        raise TypeError(
            "bootstrap: `policy` must be one policy, got a mapping; call it for each: equal resamples make them comparable in pairs."
        )
    fitted = copy.deepcopy(estimator).fit(data, policy)
    estimate: Estimate = fitted.estimate()
    values = np.empty(n_replicates)
    for b in range(n_replicates):
        weight = resampling_weights(data.episode_keys, 1, seed=random_state, kind=kind, start=b)[0]
        if not weight.any():
            raise ValueError(
                f"bootstrap: resamples with `kind` 'poisson' must keep an episode, got none of {data.n_episodes} in replicate {b}; use kind='bayesian'."
            )
        values[b] = copy.deepcopy(estimator).fit(data, policy, episode_weight=weight).estimate().value
    return replace(estimate, replicates=values, resample_id=f"{data.data_id}-{kind}-{random_state}-{n_replicates}")
