"""What a fitted Q function says of itself: diagnostics and findings that fitted Q evaluation has beside those of all methods."""

from __future__ import annotations

from typing import Any

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators import _verdicts as verdicts
from ope.estimators import _weights as weights
from ope.estimators._features import fit_basis, history_features
from ope.estimators._fqe_design import FittedQModel
from ope.estimators._importance import steps_with_mass
from ope.estimators._specification import past_p_value
from ope.inference.large_sample_methods import PLAIN_LEAST_SIZE
from ope.validation import FloatArray
from ope.verdict import Level


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


def judge_interval(n_bootstrap: int) -> verdicts.Finding:
    """Judge whether there is an interval."""
    if n_bootstrap:
        return None
    return Level.CAUTION, (
        "Fitted Q evaluation alone gives no interval: nothing says how far off the value may be. Pass n_bootstrap=200, or use DoublyRobust with this "
        "estimator as q=."
    )


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
