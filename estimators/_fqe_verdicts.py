"""What a fitted Q function says of itself: diagnostics and findings that fitted Q evaluation has beside those of all methods."""

from __future__ import annotations

from typing import Any

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators import _linear as linear
from ope.estimators import _model_verdicts as models
from ope.estimators import _tabular as tabular
from ope.estimators import _tabular_values as values
from ope.estimators import _verdicts as verdicts
from ope.estimators import _weights as weights
from ope.estimators._features import Basis, feature_block, fit_basis, history_features
from ope.estimators._fqe_design import FittedQModel, SideBySide
from ope.estimators._importance import steps_with_mass
from ope.estimators._specification import past_p_value
from ope.inference.large_sample_methods import PLAIN_LEAST_SIZE
from ope.policy import Policy
from ope.validation import FloatArray
from ope.verdict import Level

# States that come back less often are taken for continuous ones, of which no table says where the log went.
ROWS_A_STATE = 10
# Entries of all Gram matrices up to which it is cheap to ask which features the log spans.
SPAN_ENTRIES = 1 << 24


def specification(log: LoggedDataset, model: FittedQModel, weight: FloatArray) -> float:
    """Return the p-value of the hypothesis that the errors of the targets are unrelated to the past."""
    phi = fit_basis("auto", log).logged(log.states, log.actions)
    past = history_features(log)
    return past_p_value(phi, past, model.residuals, log.offsets, weight, time_indexed=not model.stationary)


def judge_control_variate() -> verdicts.Finding:
    """Judge the value of a Q that was fitted as a control variate."""
    return Level.CAUTION, (
        "loss='mrdr' fits Q to lower the variance of a doubly robust estimate, not to be right: the value of this Q alone may be far off. Use DoublyRobust "
        "with this estimator as q=, or loss='squared'."
    )


def judge_status(model: FittedQModel, max_iter: int, gamma: float, trace: str | None) -> verdicts.Finding:
    """Judge how the fit ended."""
    if model.status == "diverged":
        shorter = " a smaller trace_lambda= or trace='retrace'," if trace == "q_lambda" else ""
        return Level.REFUSE, (
            f"The fitted values diverged after {model.iterations} iterations, beyond what rewards allow: the value means nothing. Use{shorter} LSTDQ or a "
            "doubly robust method, trees instead of a linear regressor, or a smaller gamma."
        )
    if model.status == "stopped" and gamma == 1.0:
        return Level.REFUSE, (
            f"The fitted values still moved after {max_iter} iterations without discounting: unless every episode terminates there is no value. Use "
            "gamma < 1, or log the horizon."
        )
    if model.status == "stopped":
        return Level.CAUTION, (
            f"The fitted values still moved after {max_iter} iterations: the value depends on where it stopped. Raise max_iter=, or use LSTDQ."
        )
    if model.status == "wandering":
        return Level.CAUTION, (
            f"The fitted values still moved after {model.iterations} iterations and would go on: the regressor answers small changes with another fit, "
            "and the value depends on where it stopped. Use a smoother regressor (larger leaves), or LSTDQ."
        )
    return None


def judge_interval(n_bootstrap: int, n_episodes: int) -> list[verdicts.Finding]:
    """Judge whether there is an interval, and whether it comes from enough resamples of enough episodes."""
    if n_bootstrap:
        return [models.judge_replicates(n_bootstrap), models.judge_few(n_episodes)]
    return [
        (
            Level.CAUTION,
            "Fitted Q evaluation alone gives no interval: nothing says how far off the value may be. Pass n_bootstrap=200, or use DoublyRobust with this "
            "estimator as q=.",
        )
    ]


# -------------------------------------------------------------------- where the candidate goes, and whether the log went there


def diagnose_visits(
    log: LoggedDataset, policy: Policy, model: FittedQModel, weight: FloatArray, gamma: float
) -> tuple[dict[str, Any], list[verdicts.Finding]]:
    """Judge the visits of the candidate: how many logged episodes are like them, and how many the log does not hold.

    Visits are those of the table of states and actions where the regressor sees states as they are and these repeat, and those of a linear
    Q function where it sees features. Nothing is said of other logs: a regressor that smooths over states has no span.
    """
    table = isinstance(model.inputs, SideBySide)
    found = (_table_visits if table else _span_visits)(log, policy, model, weight, gamma)
    if found is None:
        return {}, []
    ratio, unsupported = found
    ess = models.visit_sample_size(ratio, log.rewards, log.offsets, weight, by_step=not model.stationary)
    return {"ess": ess, "unsupported": unsupported}, [
        verdicts.judge_ess(ess, verdicts.THRESHOLDS.linear_ess, "ratios of visits"),
        judge_made_up(unsupported),
    ]


def states_repeat(log: LoggedDataset) -> bool:
    """Return whether a table of states and actions says where the log went."""
    return log.discrete and log.n_transitions >= ROWS_A_STATE * len(tabular.StateCodes.fit(log, None))


def is_cheap(basis: Basis, log: LoggedDataset, n_values: int) -> bool:
    """Return whether features are few enough to ask for their span."""
    k = int(basis.logged(log.states[:1], log.actions[:1]).shape[1])
    return n_values * k * k <= SPAN_ENTRIES


def judge_made_up(share: float) -> verdicts.Finding:
    """Judge how much of the candidate's visits the regressor knows from other states or actions only."""
    return verdicts.judge_outside(
        share,
        "of the candidate's discounted visits go to states and actions that the log does not hold: the regressor makes up what they earn (linear ones "
        "say 0, trees what other actions earn), and no resample of the log shows the error. Use coarser features, more data, or a candidate closer to the log.",
    )


def _table_visits(
    log: LoggedDataset, policy: Policy, model: FittedQModel, weight: FloatArray, gamma: float
) -> tuple[FloatArray, float] | None:
    """Return the ratio of visits of every row, and the share of visits to pairs that were never logged; None if states do not repeat."""
    if not states_repeat(log):
        return None
    codes = tabular.StateCodes.fit(log, None)
    coded = tabular.CodedLog.build(log, codes, horizon_continues=model.stationary)
    horizon = None if model.stationary else int(log.horizon or 1)
    counted = tabular.count(coded, weight, horizon or 1, pooled=False)
    pi, _ = tabular.policy_table(log, policy, coded, weight)
    solution = values.solve(counted, pi, gamma, horizon)
    if not np.isfinite(solution.value):
        return None
    terms = values.row_terms(counted, solution, log.rewards, gamma, float(weight.sum()))
    return terms.ratio, solution.unsupported


def _span_visits(
    log: LoggedDataset, policy: Policy, model: FittedQModel, weight: FloatArray, gamma: float
) -> tuple[FloatArray, float] | None:
    """Return the ratio of visits of every row, and the share of visits outside the span of the log; None if features are too many."""
    n_values, basis = 1 if model.stationary else int(log.horizon or 1), model.inputs
    if not is_cheap(basis, log, n_values):
        return None
    seen = feature_block(log, basis, policy, model.stationary, model.n_samples, model.random_state)
    solution = linear.solve(linear.summarise(seen, weight, n_values), gamma, 0.0)
    ratio = linear.weights_of(seen, len(weight) * solution.adjoint)
    lost, total = linear.unsupported_mass(seen, solution, ratio, gamma, weight)
    return ratio, lost / total if total > 0 else 0.0


def diagnose_weights(
    log: LoggedDataset, log_ratio: FloatArray, weight: FloatArray, gamma: float, *, orthogonal: bool
) -> tuple[dict[str, Any], list[verdicts.Finding]]:
    """Judge the importance weights that targets are made of."""
    summary = weights.summarise(
        ragged.cumulative_log_weights(log_ratio, log.offsets), log.rewards, log.offsets, gamma, weight
    )
    totals = weights.finish(summary)
    ess = float(totals.effective_sample_size[steps_with_mass(summary.discounted_rewards)].min())
    mean_weight = float(totals.mean_weight[-1])
    return {"ess": ess, "mean_weight": mean_weight}, [
        # Replicates give a basic interval, which corrects neither heavy tails nor skewness.
        verdicts.judge_ess(ess, PLAIN_LEAST_SIZE, "importance weights"),
        verdicts.judge_mean_weight(mean_weight),
        verdicts.judge_propensities(log, orthogonal=orthogonal),
    ]
