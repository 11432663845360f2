"""Double reinforcement learning: a Q model and a marginal ratio of visits, cross-fitted, each correcting the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import EXACT, inherit_gamma
from ope.estimators import _verdicts as verdicts
from ope.estimators._crossfit import CrossFitted, CrossFittedQ, cross_fit_q, cross_fit_ratio, halves, variance_share
from ope.estimators._features import fit_basis, history_features
from ope.estimators._importance import unlogged_mass
from ope.estimators._marginal import RatioSums, exit_shares
from ope.estimators._q import QEstimator
from ope.estimators._ratio import RatioEstimator
from ope.estimators._specification import past_p_value
from ope.estimators._support import unsupported_share
from ope.estimators.marginalized_is import MarginalizedIS
from ope.policy import Policy, Requirement
from ope.validation import FloatArray, IntArray, check_number
from ope.verdict import Level, Verdict

_Plan = list[tuple[IntArray, IntArray]]
# Q and the ratio of every row.
Pair = tuple[CrossFittedQ, FloatArray]

# -------------------------------------------------------------------- mathematics


def correction(c: FloatArray, delta: FloatArray, offsets: IntArray, weight: FloatArray) -> tuple[float, FloatArray]:
    """Return mean_i sum_t c_it delta_it and its influence, shape (n_episodes,).

    Parameters
    ----------
    c, delta : ndarray of shape (n,)
        Ratios of visits and temporal differences.
    offsets : ndarray of shape (n_episodes + 1,)
    weight : ndarray of shape (n_episodes,)
        Weights of episodes of mean 1.

    Examples
    --------
    >>> correction(np.array([1.0, 2.0]), np.array([1.0, 3.0]), np.array([0, 1, 2]), np.ones(2))
    (3.5, array([-2.5,  2.5]))
    """
    terms = ragged.segment_sum(c * delta, offsets)
    value = float(np.mean(weight * terms))
    return value, terms - value


def normalized_correction(
    c: FloatArray, delta: FloatArray, exits: FloatArray, offsets: IntArray, weight: FloatArray
) -> tuple[float, FloatArray]:
    """Return the correction with ratios divided by the visits that they add up to, and its influence, shape (n_episodes,).

    Parameters
    ----------
    exits : ndarray of shape (n,)
        1 - gamma where another state follows, else 1: sums of c times it are 1 in expectation, whatever the ends.
    """
    visits = ragged.segment_sum(c * exits, offsets)
    total = float(np.mean(weight * visits))
    value, psi = correction(c, delta, offsets, weight)
    if not total > 0:
        return float("nan"), psi
    return value / total, (psi - value / total * (visits - total)) / total


def normalized_by_step(
    c: FloatArray, delta: FloatArray, exits: FloatArray, offsets: IntArray, weight: FloatArray
) -> tuple[float, FloatArray]:
    """Return the correction with the ratios of each step scaled to the visits that the step before leads to; its influence.

    Notes
    -----
    With C_t and E_t the means of c_t and of c_t (1 - exit_t), step t is scaled by kappa_t = kappa_{t-1} E_{t-1} / C_t, kappa_0 = 1 /
    C_0, so that the visits of the first step add up to 1 and none are lost or made later.
    """
    time, horizon, n = ragged.step_index(offsets), int(np.diff(offsets).max()), len(offsets) - 1
    row_weight = np.repeat(weight, np.diff(offsets)) / n
    logged, visits, onward, steps = (
        np.bincount(time, row_weight * x, horizon) for x in (np.ones_like(c), c, c * (1.0 - exits), c * delta)
    )
    visits = np.where(logged > 0, visits, 1.0)
    if not np.all(visits > 0):
        return float("nan"), correction(c, delta, offsets, weight)[1]
    scale = np.cumprod(np.concatenate([[1.0], onward[:-1]]) / visits)
    ahead = np.append(np.cumsum((scale * steps)[::-1])[::-1], 0.0)
    passed = np.divide(ahead[1:], onward, out=np.zeros(horizon), where=onward != 0)
    rows = c * (scale[time] * delta - (ahead[:-1] / visits)[time] + (1.0 - exits) * passed[time])
    psi = ragged.segment_sum(rows, offsets)
    return float(ahead[0]), psi - np.mean(weight * psi)


def capped(c: FloatArray, cap: float, weight: FloatArray, offsets: IntArray, stationary: bool) -> FloatArray:
    """Return ratios of no more than `cap` times their mean over the log, or over each of its steps where they are time-indexed.

    Examples
    --------
    >>> capped(np.array([1.0, 1.0, 4.0, 2.0]), 1.5, np.ones(2), np.array([0, 2, 4]), stationary=True)
    array([1., 1., 3., 2.])
    >>> capped(np.array([1.0, 1.0, 4.0, 2.0]), 1.5, np.ones(2), np.array([0, 2, 4]), stationary=False)
    array([1.  , 1.  , 3.75, 2.  ])
    """
    group = np.zeros(len(c), dtype=np.int64) if stationary else ragged.step_index(offsets)
    row_weight = np.repeat(weight, np.diff(offsets))
    mass = np.bincount(group, row_weight)
    mean = np.divide(np.bincount(group, row_weight * c), mass, out=np.full(len(mass), np.inf), where=mass > 0)
    return np.asarray(np.minimum(c, cap * np.maximum(mean, 0.0)[group]))


# -------------------------------------------------------------------- estimator


class DoubleReinforcementLearning(CrossFitted):
    """Double reinforcement learning: the Q model's value, corrected by ratios of visits; right if either model is.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    q : Q-based estimator or None
        `LSTDQ` (default) or `FittedQEvaluation`; it inherits gamma.
    ratio : marginal estimator or None
        `MarginalizedIS` (default), `StateMarginalIS` or another estimator of ratios of visits; it inherits gamma.
    self_normalized : bool
        Divide the ratios by the visits that they add up to [3]_, step by step where they are time-indexed.
    separate : bool
        Fit Q on one half of the episodes outside a fold and the ratio on the other, and the other way round, so that their errors are
        independent [4]_.
    ratio_cap : float or None
        Upper limit of the ratios, in units of their mean over the log (over each step where they are time-indexed), at least 1 [5]_; None for
        none. The bias is that of Q where ratios were capped; by how much the value moved is reported as ``cap_shift``.
        `LepskiEstimator` chooses a cap.
    n_folds : int
        Q and the ratio are cross-fitted by episode in this many folds, at least 2.
    random_state : int
        Seed of the folds, which are a hash of the episode identifiers.

    Notes
    -----
    V = mean Vhat(s_0) + mean_i sum_t c_it (r + gamma Vhat(s') - Qhat(s, a)) [1]_, with c the candidate's discounted visits over those
    of the log, per episode: c(s, a) where stationary [2]_, c_t(s, a) where time-indexed. psi_i holds the same terms of episode i,
    centred; errors of the two models enter as a product, which has a mean of its own if the same episodes are behind both, hence
    ``separate``. Weights do not multiply over steps, so that long horizons do no
    harm, but the state must be Markov: the verdict tests it. A truncated end needs no term of its own: its last transition is one more
    draw from the logged pairs, and what follows is weighed where other episodes visit it. Propensities are not needed, unless the ratio
    reads them.

    References
    ----------
    .. [1] Kallus, Uehara (2020). Double reinforcement learning for efficient off-policy evaluation in Markov decision processes.
       JMLR 21.
    .. [2] Kallus, Uehara (2022). Efficiently breaking the curse of horizon in off-policy evaluation with double reinforcement
       learning. Operations Research 70.
    .. [3] Liu, Li, Tang, Zhou (2018). Breaking the curse of horizon: infinite-horizon off-policy estimation. NeurIPS.
    .. [4] Newey, Robins (2018). Cross-fitting and fast remainder rates for semiparametric estimation. arXiv:1801.09138.
    .. [5] Mehrabi, Wager (2024). Off-policy evaluation in Markov decision processes under weak distributional overlap. arXiv:2402.08201.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(np.ones((40, 1)), [0, 1] * 20, [1.0, 0.0] * 20, lengths=[1] * 40, ends="terminal")
    >>> estimator = DoubleReinforcementLearning(gamma=1.0, n_folds=2)
    >>> round(estimator.fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}), frozenset({"sample"}))
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": "fitted values and ratios are shared between the episodes that pass a state",
            "one_step_bandit": "ratios of visits are estimated instead of taken from the propensities",
            "padding": "an absorbing state is one more state for both models",
            "shift_rewards": "the Q model need not be able to express a constant",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        q: QEstimator | None = None,
        ratio: RatioEstimator | None = None,
        self_normalized: bool = False,
        separate: bool = True,
        ratio_cap: float | None = None,
        n_folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.q = q
        self.ratio = ratio
        self.self_normalized = self_normalized
        self.separate = separate
        self.ratio_cap = ratio_cap
        self.n_folds = n_folds
        self.random_state = random_state

    @property
    def needs_propensities(self) -> bool:  # type: ignore[override]
        """Whether the ratio or the Q model reads propensities."""
        ratio = isinstance(self.ratio, RatioEstimator) and self.ratio.needs_propensities
        return ratio or bool(getattr(self.q, "needs_propensities", False))

    def _requirement(self, discrete: bool) -> Requirement:
        own = super()._requirement(discrete)
        other = self.ratio._requirement(discrete) if isinstance(self.ratio, RatioEstimator) else ()
        return tuple(a | b for a in own for b in other) if other else own

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        if self.ratio is not None and not isinstance(self.ratio, RatioEstimator):
            raise TypeError(
                f"{owner}: `ratio` must be an estimator of ratios of visits (MarginalizedIS, StateMarginalIS) or None, got {type(self.ratio).__name__}."
            )
        self._nested_ratio()._validate()
        if self.ratio_cap is not None:
            check_number(
                owner, "ratio_cap", self.ratio_cap, "a number of at least 1, or None", "pass e.g. ratio_cap=8", 1.0
            )
        flags = {_is_stationary(model) for model in (self.q, self.ratio) if model is not None}
        if len(flags) > 1:
            raise ValueError(
                f"{owner}: `q` and `ratio` must agree on `stationary`, got {_is_stationary(self.q)} and {_is_stationary(self.ratio)}: they would "
                "answer different questions; set it on both, or on neither."
            )

    def _stationary(self, data: LoggedDataset) -> bool:
        return self._asked_stationary or data.horizon is None

    @property
    def _asked_stationary(self) -> bool:
        return _is_stationary(self.q) or _is_stationary(self.ratio)

    def _nested(self) -> QEstimator:
        nested = super()._nested()
        return nested if self.q is not None else nested.set_params(stationary=self._asked_stationary)

    def _nested_ratio(self) -> RatioEstimator:
        ratio = self.ratio if self.ratio is not None else MarginalizedIS(stationary=self._asked_stationary)
        nested = inherit_gamma(type(self).__name__, ratio, self._gamma)
        assert isinstance(nested, RatioEstimator)
        return nested

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        return self._fit_given(data, policy, name, weight, self._pairs(data, policy, weight))

    def _fit_given(
        self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray, pairs: Iterable[Pair]
    ) -> Estimate:
        """Estimate from what `_pairs` yields, which does not depend on `ratio_cap`."""
        exits = exit_shares(data, self._gamma, self._stationary(data))
        parts, n_left_out, unfinished, uncapped = [], 0, 0, []
        with np.errstate(over="ignore", invalid="ignore"):
            for predictions, c in pairs:
                delta, n_left_out = self._pseudo_rewards(data, predictions)
                v_0 = predictions.v[data.offsets[:-1]]
                if self.ratio_cap is not None:
                    uncapped.append(self._correct(data, c, delta, exits, weight)[0])
                    c = capped(c, self.ratio_cap, weight, data.offsets, self._stationary(data))
                parts.append(_Part(c, delta, v_0, *self._correct(data, c, delta, exits, weight)))
                unfinished += predictions.unfinished
            whole = _Part(*(np.mean(column, axis=0) for column in zip(*parts, strict=True)))
            value = float(np.mean(weight * whole.v_0) + whole.value)
            influence = weight * (whole.v_0 - np.mean(weight * whole.v_0) + whole.influence)
            diagnostics = {
                **verdicts.influence_diagnostics(influence),
                **self._diagnose(data, whole, exits, weight),
                "unsupported": self._unsupported(data, policy, parts[0].c, weight),
                "correction_share": variance_share(weight * whole.influence, influence),
                "left_out_transitions": n_left_out,
            }
            findings = self._judge(data, policy, value, influence, diagnostics)
            if self.ratio_cap is not None:
                diagnostics["cap_shift"] = float(whole.value - np.mean(uncapped))
                findings.append(_judge_cap(diagnostics["cap_shift"], verdicts.standard_error(influence)))
        return self._result(
            data,
            name,
            value=value,
            influence=influence,
            horizon=None if self._stationary(data) else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of([*findings, verdicts.judge_q_fits(unfinished, len(parts) * self.n_folds)]),
        )

    def _pairs(self, data: LoggedDataset, policy: Policy, weight: FloatArray) -> Iterator[Pair]:
        """Yield Q and the ratio of every row: fitted on the same episodes outside its fold, or on either half and the other."""
        for for_q, for_ratio in self._plans(data, weight):
            yield (
                cross_fit_q(self._nested(), data, policy, weight, for_q),
                cross_fit_ratio(self._nested_ratio(), data, policy, weight, for_ratio),
            )

    def _plans(self, data: LoggedDataset, weight: FloatArray) -> list[tuple[_Plan, _Plan]]:
        """Return for each pair of models the episodes of every fold with those that Q and the ratio learn from."""
        folds = list(self._folds(data, weight))
        if not self.separate:
            return [(folds, folds)]
        owner = type(self).__name__
        splits = [halves(owner, data, weight, outside, self.random_state) for _, outside in folds]
        one, other = (
            [(inside, split[side]) for (inside, _), split in zip(folds, splits, strict=True)] for side in (0, 1)
        )
        return [(one, other), (other, one)]

    def _correct(
        self, data: LoggedDataset, c: FloatArray, delta: FloatArray, exits: FloatArray, weight: FloatArray
    ) -> tuple[float, FloatArray]:
        if not self.self_normalized:
            return correction(c, delta, data.offsets, weight)
        normalized = normalized_correction if self._stationary(data) else normalized_by_step
        return normalized(c, delta, exits, data.offsets, weight)

    def _diagnose(self, data: LoggedDataset, whole: _Part, exits: FloatArray, weight: FloatArray) -> dict[str, Any]:
        stationary, time = self._stationary(data), ragged.step_index(data.offsets)
        sums = RatioSums(1 if stationary else int(data.horizon or 1), float(np.abs(whole.c).max()) or 1.0)
        sums.add(whole.c, data.rewards, exits, time, data.offsets, weight)
        q_value = float(np.mean(weight * whole.v_0))
        phi, past = fit_basis("auto", data).logged(data.states, data.actions), history_features(data)
        return {
            "ess": sums.effective_sample_size,
            "mean_ratio": sums.mass,
            "negative_share": sums.negative_share,
            "q_value": q_value,
            "ratio_value": sums.value,
            "flow_residual": sums.value - correction(whole.c, whole.delta, data.offsets, weight)[0] - q_value,
            "specification_p": past_p_value(phi, past, whole.delta, data.offsets, weight, time_indexed=not stationary),
            "truncated_share": verdicts.truncated_share(data),
        }

    def _unsupported(self, data: LoggedDataset, policy: Policy, c: FloatArray, weight: FloatArray) -> float:
        plan = self._plans(data, weight)[0][1]
        return unsupported_share(data, policy, c, plan, self._gamma, self._stationary(data), weight)

    def _judge(
        self, data: LoggedDataset, policy: Policy, value: float, influence: FloatArray, diagnostics: Mapping[str, Any]
    ) -> list[verdicts.Finding]:
        return [
            _judge_visits(value)
            if self.self_normalized and np.isnan(value)
            else verdicts.judge_finite(value, influence),
            verdicts.judge_range(value, data, self._gamma, self._stationary(data), Level.CAUTION),
            verdicts.judge_width(influence, data, self._gamma, self._stationary(data)),
            verdicts.judge_ess(diagnostics["ess"], verdicts.THRESHOLDS.linear_ess, "ratios of visits"),
            verdicts.judge_share(diagnostics["largest_share"], verdicts.THRESHOLDS.linear_share),
            verdicts.judge_flow(diagnostics["mean_ratio"]),
            verdicts.judge_negative(diagnostics["negative_share"]),
            verdicts.judge_specification(diagnostics["specification_p"]),
            verdicts.judge_unsupported(diagnostics["unsupported"]),
            verdicts.judge_propensities(data, orthogonal=True) if self.needs_propensities else None,
            verdicts.judge_unlogged(*unlogged_mass(data, policy)),
        ]


def _judge_cap(shift: float, std_error: float) -> verdicts.Finding:
    if abs(shift) <= verdicts.THRESHOLDS.tail_harmless * std_error:
        return None
    return Level.CAUTION, (
        f"Capping the ratios moved the value by {shift:.3g}, beside a standard error of {std_error:.3g}: the Q model alone answers for what was cut off, and "
        "the interval does not include its bias. Raise ratio_cap=, or compare with LSTDQ."
    )


def _judge_visits(value: float) -> verdicts.Finding:
    return Level.REFUSE, (
        f"The value is {value}: the ratios of some step add up to nothing or less, so that they cannot be normalised. Pass self_normalized=False, use fewer "
        "features, or log more episodes."
    )


class _Part(NamedTuple):
    """One pair of models on every row, with what the correction comes to; or the means over pairs."""

    c: FloatArray
    delta: FloatArray
    v_0: FloatArray
    value: Any
    influence: FloatArray


def _is_stationary(model: QEstimator | RatioEstimator | None) -> bool:
    return bool(getattr(model, "stationary", False))
