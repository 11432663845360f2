"""MAGIC: a blend of partial importance sampling returns, completed by a Q model, with the least estimated mean squared error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from ope.dataset import LoggedDataset
from ope.diagnostics import effective_sample_size, pareto_k
from ope.estimate import Estimate
from ope.estimator import EXACT
from ope.estimators import _plug_in as plug_in
from ope.estimators import _verdicts as verdicts
from ope.estimators._crossfit import CrossFitted, cross_fit_each, weigh
from ope.estimators._importance import unlogged_mass
from ope.estimators._partial_returns import (
    Draw,
    PartialReturns,
    blend_steps,
    blend_weights,
    draw,
    percentile_interval,
)
from ope.estimators._q import QEstimator, QPredictions
from ope.inference.weights import resampling_weights
from ope.policy import Policy, Requirement
from ope.validation import FloatArray, check_integer
from ope.verdict import Level, Verdict

LEAST_PERCENTILES = 20


class MAGIC(CrossFitted):
    """MAGIC: between the Q model and weighted doubly robust, the blend with the least estimated mean squared error.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    q : Q-based estimator or None
        `LSTDQ` (default) or `FittedQEvaluation`; it inherits gamma.
    n_steps : int
        Largest number of partial returns that are blended: all of them where episodes are shorter, else evenly spaced ones, the model
        alone and the whole episode included.
    n_folds : int
        Q is cross-fitted by episode in this many folds, at least 2.
    bias_interval : {"t", "percentile"}
        The 90 % interval for weighted doubly robust from which the biases are measured: "percentile" is the paper's.
    n_bootstrap : int
        Resamples of the episodes: the replicates that give the interval of the estimate, and the percentiles. 0 for none.
    random_state : int
        Seed of the folds and resamples, which are hashes of the episode identifiers.

    Notes
    -----
    The partial return g^(j) weights steps up to j and leaves the rest to the model: g^(-1) = mean Vhat(s_0) and g^(inf) is weighted
    doubly robust. The value is x'g with x = argmin of x'(Omega + b b')x over the simplex [1]_, solved exactly; Omega holds the
    covariances of the g^(j), b_j is the distance of g^(j) to a 90 % interval for g^(inf). Two things differ from the paper, without
    which the blend is much worse than its better end on ModelFail and ModelWin. Omega is that of self-normalised sums, sum psi psi' /
    (n (n - 1)) with the influence of each g^(j), where the paper takes normalised weights for constants. And the interval is a t
    interval with the least effective number of episodes less one as degrees of freedom, because percentiles are far too close
    together where few episodes carry the weight (coverage .65 to .9).

    Replicates repeat all of this on resampled episodes, and shift the g^(j) by an error of Q that has the variance of the jackknife
    over the folds; with "percentile" the width of that interval is kept. `ope.bootstrap` refits Q instead.

    References
    ----------
    .. [1] Thomas, Brunskill (2016). Data-efficient off-policy policy evaluation for reinforcement learning. ICML.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[1] * 8, ends="terminal", behavior_prob=[0.5] * 8
    ... )
    >>> round(MAGIC(gamma=1.0, n_folds=2).fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"logged_prob", "all_probs"}), frozenset({"logged_prob", "sample"}))
    needs_propensities: ClassVar[bool] = True
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": "the blend takes from the Q model what its bias allows, so that the mean of episodes is met approximately",
            "one_step_bandit": "rewards are partly left to the Q model",
            "padding": "an absorbing state is one more state for the Q model",
            "shift_rewards": "the Q model need not be able to express a constant",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        q: QEstimator | None = None,
        n_steps: int = 25,
        n_folds: int = 5,
        bias_interval: Literal["t", "percentile"] = "t",
        n_bootstrap: int = 200,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.q = q
        self.n_steps = n_steps
        self.n_folds = n_folds
        self.bias_interval = bias_interval
        self.n_bootstrap = n_bootstrap
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_integer(owner, "n_steps", self.n_steps, 2, "the model alone and the whole episode are two")
        check_integer(owner, "n_bootstrap", self.n_bootstrap, 0, "200 is usual")
        if self.bias_interval not in ("t", "percentile"):
            raise ValueError(
                f"{owner}: `bias_interval` must be 't' or 'percentile', got {self.bias_interval!r}; pass one of them."
            )
        if self.bias_interval == "percentile" and self.n_bootstrap < LEAST_PERCENTILES:
            raise ValueError(
                f"{owner}: `n_bootstrap` must be at least {LEAST_PERCENTILES} for bias_interval='percentile', got {self.n_bootstrap}; 200 is usual."
            )

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        predictions, by_fold = cross_fit_each(self._nested(), data, policy, weight, self._folds(data, weight))
        delta, n_left_out = self._pseudo_rewards(data, predictions)
        # Weights beyond the range of floats leave no finite value; the verdict says so, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            weighed = weigh(policy, data, delta, self._gamma, weight)
            steps = blend_steps(len(weighed.totals.scale), self.n_steps)
            parts = PartialReturns(weighed, delta, predictions.v[data.offsets[:-1]], self._gamma, steps)
            whole = draw(parts, weight)
            fit = self._blend(data, parts, whole, by_fold, weight)
            diagnostics, findings = self._diagnose(data, policy, parts, whole, fit)
            coefficient = plug_in.coefficients(data, weighed, self._gamma, self._stationary(data), 0.0)
            tail = (self._nested(), data, policy, weight, coefficient, self._gamma, self._stationary(data))
            diagnostics["unsupported_tail"] = plug_in.unsupported_tail(*tail)
        findings.append(plug_in.judge_tail(diagnostics["unsupported_tail"]))
        diagnostics["left_out_transitions"] = n_left_out
        drawn = {"replicates": fit.replicates, "resample_id": self._resample_id(data)} if len(fit.replicates) else {}
        return self._result(
            data,
            name,
            value=float(fit.x @ whole.values),
            horizon=None if self._stationary(data) else data.horizon,
            effective_size=diagnostics["ess"],
            diagnostics=diagnostics,
            verdict=Verdict.of([*findings, self._judge_models(predictions)]),
            **drawn,
        )

    def _resample_id(self, data: LoggedDataset) -> str:
        return f"{data.data_id}-bayesian-{self.random_state}-{self.n_bootstrap}"

    def _blend(
        self,
        data: LoggedDataset,
        parts: PartialReturns,
        whole: Draw,
        by_fold: list[QPredictions],
        weight: FloatArray,
    ) -> _Fit:
        if not np.isfinite(whole.values).all():  # weighted doubly robust has no value to compare the others with
            return _Fit(np.full(len(whole.values), np.nan), (np.nan, np.nan), np.empty(0))
        size = parts.weighed.least_effective_size
        draws = self._draws(data, parts, by_fold, weight) if self.n_bootstrap else []
        if self.bias_interval == "t":
            interval = whole.t_interval(size)
            again = [one.blended(one.t_interval(size)) for one in draws]
        else:
            centre = float(whole.values[-1])
            interval = percentile_interval(np.array([one.values[-1] for one in draws]), centre)
            below, above = interval[0] - centre, interval[1] - centre
            again = [one.blended((one.values[-1] + below, one.values[-1] + above)) for one in draws]
        return _Fit(blend_weights(whole.values, whole.spread, interval), interval, np.array(again))

    def _draws(
        self, data: LoggedDataset, parts: PartialReturns, by_fold: list[QPredictions], weight: FloatArray
    ) -> list[Draw]:
        errors = self._model_errors(data, parts, by_fold, weight)
        shocks = np.random.default_rng(self.random_state).standard_normal((self.n_bootstrap, len(errors)))
        draws = []
        for b, shock in enumerate(shocks):
            drawn = weight * resampling_weights(data.episode_keys, 1, seed=self.random_state, start=b)[0]
            draws.append(draw(parts, drawn / drawn.mean(), shock @ errors))
        return draws

    def _model_errors(
        self, data: LoggedDataset, parts: PartialReturns, by_fold: list[QPredictions], weight: FloatArray
    ) -> FloatArray:
        """Return what each fold's Q changes in the partial returns, scaled as the jackknife over folds asks for, shape (K, m)."""
        rows = []
        for predictions in by_fold:
            delta, _ = self._pseudo_rewards(data, predictions)
            other = replace(parts, delta=delta, v_0=predictions.v[data.offsets[:-1]])
            rows.append(other.values(other.totals(weight), weight))
        values = np.array(rows)
        return np.asarray(np.sqrt((len(rows) - 1) / len(rows)) * (values - values.mean(axis=0)))

    def _diagnose(
        self, data: LoggedDataset, policy: Policy, parts: PartialReturns, whole: Draw, fit: _Fit
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        weighed, value = parts.weighed, float(fit.x @ whole.values)
        final = weighed.log_w[data.offsets[1:] - 1]
        diagnostics = {
            "ess": weighed.least_effective_size,
            "ess_final": effective_sample_size(final),
            **verdicts.influence_diagnostics(parts.influence(weighed.totals, float(whole.values[0]))[:, -1]),
            "mean_weight": float(weighed.totals.mean_weight[-1]),
            "pareto_k": pareto_k(final),
            "q_value": float(whole.values[0]),
            "wdr_value": float(whole.values[-1]),
            "wdr_low": fit.interval[0],
            "wdr_high": fit.interval[1],
            "model_share": float(fit.x[0]),
            "wdr_share": float(fit.x[-1]),
            "truncated_share": verdicts.truncated_share(data),
        }
        return diagnostics, [
            verdicts.judge_finite(value, None),
            verdicts.judge_range(value, data, self._gamma, self._stationary(data), Level.CAUTION),
            *verdicts.importance_findings(diagnostics),
            verdicts.judge_propensities(data, orthogonal=True),
            verdicts.judge_unlogged(*unlogged_mass(data, policy)),
            _judge_blend(self.n_bootstrap),
        ]


@dataclass(frozen=True)
class _Fit:
    x: FloatArray
    interval: tuple[float, float]
    replicates: FloatArray


def _judge_blend(n_bootstrap: int) -> verdicts.Finding:
    if not n_bootstrap:
        return Level.CAUTION, (
            "A blend has no standard error of its own, and no interval was asked for: nothing says how far off the value may be. Pass n_bootstrap=200, or "
            "compare with DoublyRobust(weighted=True)."
        )
    return Level.CAUTION, (
        "The interval of a blend is heuristic: the same episodes choose its weights, and the bias that these allow is not in it. Compare with "
        "DoublyRobust(weighted=True), whose interval needs no trust in the model."
    )
