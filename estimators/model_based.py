"""Model-based evaluation of tabular logs: the maximum-likelihood model, and the candidate's exact value in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import is_clusterer

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import _with_overlap
from ope.estimators import _model_verdicts as models
from ope.estimators import _tabular as tabular
from ope.estimators import _tabular_values as values
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import history_features, unfitted
from ope.estimators._importance import unlogged_mass
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators._specification import score_test
from ope.estimators._support import outside_table
from ope.estimators._tabular import CodedLog, CountedModel, StateCodes
from ope.policy import Policy, Requirement, continuing_ends, overlap, probabilities
from ope.validation import FloatArray, check_integer
from ope.verdict import Level, Verdict

LEAST_VISITS = 2.0


@dataclass(frozen=True, eq=False)
class TabularQModel:
    """Q_t(s, a) of a counted model; 0 for what was never counted."""

    codes: StateCodes
    q: FloatArray
    stationary: bool

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        """Value the rows of a log."""
        assert data.action_labels is not None
        known = self.codes.codes(data.rows())
        step = ragged.step_index(data.offsets)
        table = self._table(known, step)
        v = np.einsum("na,na->n", probabilities(policy, data.rows(), data.action_labels), table)
        v_final = np.zeros(data.n_episodes)
        final = np.flatnonzero(tabular.known_finals(data) & continuing_ends(data, self.stationary))
        if len(final):
            rows = data.final_rows(final)
            ahead = self._table(self.codes.codes(rows), data.lengths[final])
            v_final[final] = np.einsum("na,na->n", probabilities(policy, rows, data.action_labels), ahead)
        return QPredictions(table[np.arange(len(table)), data.actions], v, v_final)

    def _table(self, code: Any, step: Any) -> FloatArray:
        slot = np.zeros_like(step) if len(self.q) == 1 else np.minimum(step, len(self.q) - 1)
        beyond = (step >= len(self.q)) & (not self.stationary)
        return np.where(((code < 0) | beyond)[:, None], 0.0, self.q[slot, np.maximum(code, 0)])


class ModelBased(QEstimator):
    """The tabular model of maximum likelihood: count what followed each state and action, and solve for the candidate's value.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    features : None, scikit-learn transformer or clusterer
        What makes states repeat: None takes the distinct rows of the states; else rows that a transformer maps to the same
        values (`KBinsDiscretizer(encode="ordinal")`), or to which a clusterer gives the same label, are one state.
    homogeneous : bool
        With a horizon: count all steps together, as transitions of a process that does not change, instead of step by step. The
        value is that of the steps of the horizon in any case.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value.
    random_state : int
        Seed of features whose own `random_state` is None.

    Notes
    -----
    R(s, a) is the mean reward, P(s'|s, a) the share of s' among the states that followed, and the share of terminal ends what ends; a
    truncation is no evidence of an end. The value solves Q = R + gamma P (pi . Q), backwards from Q_H = 0 with a horizon. Exact,
    without simulation: with mu the candidate's discounted visits in the model and N the counts,

        psi_i = n sum_t mu / N (r - R + gamma (V(s') - P V)) + V(s_0i) - V.

    It is the nonparametric maximum-likelihood estimate where states are Markov, and the same number as `LSTDQ` on one-hot states,
    tabular fitted Q evaluation and linear `MarginalizedIS`, for any number of states: only what was logged is stored. What b
    takes how often plays no part. Counting all steps together needs far fewer episodes where it is right; that errors do not
    depend on the step is tested. A last step whose next state is unknown counts in R alone if all steps are counted
    together, and not at all if not.

    Pairs that were never logged have the value 0; ``unsupported`` is the share of the candidate's visits that go there.

    References
    ----------
    Mannor, Simester, Sun, Tsitsiklis (2007). Bias and variance approximation in value function estimates. Management Science 53.
    Jiang, Li (2016). Doubly robust off-policy value evaluation for reinforcement learning. ICML.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> from ope.problems import RiverSwim
    >>> problem = RiverSwim(horizon=10)
    >>> policy = TabularPolicy(problem.target)
    >>> estimate = ModelBased(gamma=0.95, homogeneous=True).fit(problem.sample(200), policy).estimate()
    >>> low, high = estimate.confidence_interval()
    >>> low < problem.value(problem.target) < high
    True
    """

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}),)

    def __init__(
        self,
        *,
        gamma: float | None = None,
        features: Any = None,
        homogeneous: bool = False,
        stationary: bool = False,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.features = features
        self.homogeneous = homogeneous
        self.stationary = stationary
        self.random_state = random_state

    # ---------------------------------------------------------------- checks at the door

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")
        features, rule = self.features, "None, a scikit-learn transformer or clusterer"
        if isinstance(features, type):
            raise TypeError(f"{owner}: `features` must be {rule}, got the class {features.__name__}; pass an object.")
        if features is not None and not (hasattr(features, "fit") and _verb(features)):
            raise TypeError(f"{owner}: `features` must be {rule}, got {features!r}; give it fit and transform.")

    def _check_table(self, data: LoggedDataset, n_states: int) -> None:
        if data.n_transitions >= LEAST_VISITS * n_states:
            return
        raise ValueError(
            f"{type(self).__name__}.fit: the states of `data` must repeat, got {n_states} distinct ones in {data.n_transitions} rows; pass features= that "
            "discretise them (a KBinsDiscretizer, a KMeans), or use LinearGaussianModel, ModelEnsemble or LSTDQ."
        )

    def _check_discrete(self, data: LoggedDataset) -> None:
        if not data.discrete:
            raise ValueError(
                f"{type(self).__name__}.fit: `data` must have discrete actions, got continuous ones; use LinearGaussianModel, ModelEnsemble or LSTDQ."
            )

    def _is_stationary(self, data: LoggedDataset) -> bool:
        return bool(self.stationary) or data.horizon is None

    # ---------------------------------------------------------------- fitting

    def _count(self, data: LoggedDataset, weight: FloatArray) -> _Counted:
        self._check_discrete(data)
        codes = StateCodes.fit(data, self._transform(data))
        self._check_table(data, len(codes))
        stationary = self._is_stationary(data)
        pooled = bool(self.homogeneous) and not stationary
        coded = CodedLog.build(data, codes, horizon_continues=stationary or pooled)
        n_slots = 1 if stationary or pooled else int(data.horizon or 1)
        model = tabular.count(coded, weight, n_slots, pooled)
        return _Counted(codes, coded, model, None if stationary else data.horizon, pooled)

    def _transform(self, data: LoggedDataset) -> Callable[[FloatArray], FloatArray] | None:
        if self.features is None:
            return None
        fitted = unfitted(self.features, self.random_state).fit(data.states)

        def transform(states: FloatArray) -> FloatArray:
            out = getattr(fitted, _verb(fitted))(states)
            dense = np.asarray(out.toarray() if hasattr(out, "toarray") else out, dtype=np.float64)
            return dense.reshape(len(states), -1)

        return transform

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> TabularQModel:
        """Fit the model and return the Q function of the candidate in it."""
        counted = self._count(data, episode_weight)
        pi, _ = tabular.policy_table(data, policy, counted.coded, episode_weight)
        solution = values.solve(counted.model, pi, self._gamma, counted.horizon)
        model = counted.model
        q = np.zeros((len(solution.stages), counted.coded.n_states, counted.coded.n_actions))
        for t, stage in enumerate(solution.stages):
            q[t, model.state[stage.cells], model.action[stage.cells]] = stage.q
        return TabularQModel(counted.codes, q, counted.horizon is None)

    def plug_in_influence(
        self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray, coefficient: FloatArray
    ) -> FloatArray:
        """Return the influence of the counts on mean(c_i Vhat(s_T)), shape (n_episodes,)."""
        counted = self._count(data, episode_weight)
        pi, _ = tabular.policy_table(data, policy, counted.coded, episode_weight)
        solution = values.solve(counted.model, pi, self._gamma, counted.horizon)
        load = values.final_load(counted.coded, counted.horizon, episode_weight * coefficient)
        after = values.entered(counted.model, pi, self._gamma, solution, load)
        terms = values.row_terms(counted.model, after, counted.coded.rewards, self._gamma, 1.0)
        psi = episode_weight * ragged.segment_sum(terms.errors, counted.coded.offsets)
        return np.asarray(psi - episode_weight * psi.mean())

    def unsupported_ends(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> FloatArray:
        """Return how likely the candidate takes an action in s_T that was never logged there, shape (n_episodes,)."""
        self._check_discrete(data)
        stationary = self._is_stationary(data)
        n_values = 1 if stationary or self.homogeneous else int(data.horizon or 1)
        return outside_table(data, policy, episode_weight, self._transform(data), n_values, stationary)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        return self._evaluate(data, policy, name, weight, self._count(data, weight))

    def _fit_many(self, data: LoggedDataset, policies: Mapping[str, Policy], weight: FloatArray) -> dict[str, Estimate]:
        counted, estimates = self._count(data, weight), {}
        for name, policy in policies.items():
            try:
                self._check_policy(data, policy, name)
                estimate = self._evaluate(data, policy, name, weight, counted)
                estimates[name] = _with_overlap(estimate, overlap(policy, data), data.n_episodes)
            except Exception as error:
                estimates[name] = self.failed(data, name, f"{type(error).__name__}: {error}")
        return estimates

    def _evaluate(
        self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray, counted: _Counted
    ) -> Estimate:
        coded, model, gamma = counted.coded, counted.model, self._gamma
        pi, varying = tabular.policy_table(data, policy, coded, weight)
        solution = values.solve(model, pi, gamma, counted.horizon)
        terms = values.row_terms(model, solution, coded.rewards, gamma, float(weight.sum()))
        psi = values.influence(coded, solution, terms, weight)
        psi = verdicts.settled(psi, solution.value)
        diagnostics = {
            "ess": models.visit_sample_size(terms.ratio, coded.rewards, coded.offsets, weight, len(model.slots) > 2),
            **verdicts.influence_diagnostics(psi),
            "n_states": coded.n_states,
            "n_cells": len(model.rewards),
            "condition": solution.condition,
            "unsupported": solution.unsupported,
            "varying": varying,
            "truncated_share": verdicts.truncated_share(data),
            "left_out_transitions": int((coded.following == tabular.UNKNOWN).sum()),
            **_specification(data, counted, solution, gamma, weight),
        }
        findings = [
            models.judge_value(solution.value),
            verdicts.judge_range(solution.value, data, gamma, counted.horizon is None, Level.REFUSE),
            verdicts.judge_width(psi, data, gamma, counted.horizon is None),
            *models.tabular_findings(diagnostics, counted.pooled),
            verdicts.judge_unlogged(*unlogged_mass(data, policy)),
        ]
        return self._result(
            data,
            name,
            value=solution.value,
            influence=psi,
            horizon=counted.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )


@dataclass(frozen=True, eq=False)
class _Counted:
    """A log as counts, and what they are for; horizon None: the infinite-horizon value."""

    codes: StateCodes
    coded: CodedLog
    model: CountedModel
    horizon: int | None
    pooled: bool


def _verb(features: Any) -> str:
    """Return the method that turns states into what is counted."""
    verbs = ("predict", "transform") if is_clusterer(features) else ("transform", "predict")
    return next((verb for verb in verbs if hasattr(features, verb)), "")


def _specification(
    data: LoggedDataset, counted: _Counted, solution: values.TabularSolution, gamma: float, weight: FloatArray
) -> dict[str, float]:
    """Return the p-values of the hypotheses that errors are unrelated to the past, and to the step."""
    if not np.isfinite(solution.value):
        return {"specification_p": 1.0, "homogeneous_p": 1.0}
    # One block decides whether the model is contradicted; more would not be more convincing.
    block = next(data.blocks())
    m, row_weight = block.n_transitions, np.repeat(weight, data.lengths)
    errors = (row_weight * values.plain_errors(counted.model, counted.coded, solution, gamma))[:m]

    def p_value(h: FloatArray) -> float:
        scores = values.centred(h, counted.model, row_weight) * errors[:, None]
        return score_test(ragged.segment_sum(scores, block.offsets))

    by_step = 1.0
    if counted.pooled:
        share = counted.coded.step[:m] / float(counted.horizon or 1)
        by_step = p_value(np.stack([share, share**2], axis=1))
    return {"specification_p": p_value(history_features(block)), "homogeneous_p": by_step}
