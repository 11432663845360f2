"""Diagnostics and rules of neural fitted Q evaluation: what training, members, ratios and support say of one candidate.

The influence vector knows the noise of the log. It knows neither whether training has converged, nor how far networks differ by
chance, nor what candidates do where nothing was logged: these are judged here, in the unit of the logged returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ope.estimators import _verdicts as verdicts
from ope.estimators._verdicts import Finding
from ope.validation import FloatArray
from ope.verdict import Level

if TYPE_CHECKING:
    from ope.estimators._neural_fqe_fit import CandidateFit

LAST_WINDOWS = 4
# Standard deviations of the chance of training that intervals include on both sides.
WIDENING = 2.0
ENOUGH_UPDATES = 20


@dataclass(frozen=True)
class NeuralThresholds:
    """Where a diagnostic of networks stops being harmless.

    Parameters
    ----------
    moved, moved_far : float
        Movement of the value at the end of training, and disagreement of members beyond noise: harmless below, refused above,
        as shares of the spread of logged returns.
    closed_form : float
        Difference between gradient and closed form that is harmless, in the same unit.
    in_noise : float
        The same in standard errors: less is harmless whatever its size.
    correction : float
        Mean correction of unseen episodes, in its own standard errors.
    novelty, novelty_refuse : float
        Share of visits whose actions are unlike those logged; the log itself has .1.
    overlap : float
        Effective horizons of logged transitions whose actions the candidate would take.
    clipped, clipped_refuse : float
        Share of targets beyond what rewards can add up to.
    overfit : float
        Bellman error out of sample over that in sample.
    """

    moved: float = 0.08
    moved_far: float = 0.5
    closed_form: float = 0.15
    in_noise: float = 1.0
    correction: float = 3.0
    novelty: float = 0.2
    novelty_refuse: float = 0.5
    overlap: float = 5.0
    clipped: float = 0.02
    clipped_refuse: float = 0.2
    overfit: float = 4.0


THRESHOLDS = NeuralThresholds()


# -------------------------------------------------------------------- diagnostics


def diagnose(fit: CandidateFit, psi: FloatArray, weight: FloatArray) -> dict[str, Any]:
    """Return the diagnostics of a candidate."""
    std_error = verdicts.standard_error(psi)
    correction = weight * fit.correction
    tiny = np.finfo(float).tiny
    noise = float(np.std(correction)) / np.sqrt(max(len(correction) - 1, 1))
    return {
        "status": fit.outcome,
        "n_updates": fit.n_updates,
        "plug_in_value": fit.plug_in,
        "network_value": fit.network_value,
        "correction": float(correction.mean()),
        "correction_z": abs(float(correction.mean())) / max(noise, tiny),
        "drift": drift(fit.path),
        "member_spread": float(np.ptp(fit.members)),
        "member_error": member_error(fit.members, std_error),
        "bellman_ratio": fit.held_error / max(fit.train_error, tiny),
        "ess": _ess(weight * fit.visits),
        **verdicts.influence_diagnostics(psi),
        "novelty": fit.novelty,
        "clipped": fit.clipped,
        "unit": fit.unit,
    }


def drift(path: FloatArray) -> float:
    """Return how far the mean value of members moved between the last two groups of four windows.

    Examples
    --------
    >>> drift(np.array([[0.0], [1.0], [1.0], [1.0], [1.0], [2.0], [2.0], [2.0], [2.0]]))
    1.0
    """
    value, size = path.mean(axis=1), min(LAST_WINDOWS, max(1, len(path) // 2))
    if len(value) < 2:
        return float("inf")
    return abs(float(value[-size:].mean() - value[-2 * size : -size].mean()))


def member_error(members: FloatArray, std_error: float) -> float:
    """Return the standard deviation of the mean of members that is not the noise of the log.

    Notes
    -----
    F members trained without one fold each have variance F / (F - 1) se^2 and share (F - 2) / (F - 1) of it, so that
    they scatter by F / (F - 1)^2 se^2 where training is exact; what is more comes from training.

    Examples
    --------
    >>> member_error(np.array([1.0, 3.0]), 1.0), member_error(np.array([1.0, 3.0]), 0.0)
    (0.0, 1.0)
    """
    n_folds = len(members)
    expected = n_folds / (n_folds - 1) ** 2 * std_error**2
    return float(np.sqrt(max(float(np.var(members, ddof=1)) - expected, 0.0) / n_folds))


def effective_horizons(log_ratio: FloatArray, row_weight: FloatArray, horizon: float) -> float:
    """Return the effective sample size of one-step ratios in effective horizons.

    Parameters
    ----------
    log_ratio : ndarray of shape (n,)
        log pi(a|s) - log b(a|s) of logged actions.
    row_weight : ndarray of shape (n,)
    horizon : float
        Mean of sum_t gamma^t over the logged episodes.

    Examples
    --------
    >>> effective_horizons(np.zeros(100), np.ones(100), 10.0)
    10.0
    """
    kept = (row_weight > 0) & (log_ratio > -np.inf)
    if not kept.any():
        return 0.0
    ratio = row_weight[kept] * np.exp(log_ratio[kept] - log_ratio[kept].max())
    return float(ratio.sum() ** 2 / np.sum(ratio**2) / horizon)


def _ess(visits: FloatArray) -> float:
    squares = float(np.sum(visits**2))
    return float(np.sum(np.abs(visits)) ** 2 / squares) if squares > 0 else 0.0


# -------------------------------------------------------------------- findings


def findings(diagnostics: Mapping[str, Any], std_error: float) -> list[Finding]:
    """Judge a candidate from its diagnostics."""
    size = (diagnostics["unit"], std_error)
    closed_form = abs(diagnostics["network_value"] - diagnostics["plug_in_value"])
    return [
        judge_outcome(diagnostics["status"], diagnostics["n_updates"]),
        judge_drift(diagnostics["drift"], *size),
        judge_members(diagnostics["member_error"], *size),
        judge_closed_form(closed_form, *size),
        judge_correction(diagnostics["correction"], diagnostics["correction_z"], diagnostics["unit"]),
        judge_overfit(diagnostics["bellman_ratio"]),
        judge_novelty(diagnostics["novelty"]),
        judge_overlap(diagnostics["overlap"]),
        judge_clipped(diagnostics["clipped"]),
        verdicts.judge_ess(diagnostics["ess"], verdicts.THRESHOLDS.linear_ess, "ratios of visits"),
        verdicts.judge_share(diagnostics["largest_share"], verdicts.THRESHOLDS.linear_share),
    ]


def _level(amount: float, unit: float, std_error: float, harmless: float = THRESHOLDS.moved) -> Level:
    if not np.isfinite(amount) or amount > max(THRESHOLDS.moved_far * unit, THRESHOLDS.in_noise * std_error):
        return Level.REFUSE
    return Level.CAUTION if amount > max(harmless * unit, THRESHOLDS.in_noise * std_error) else Level.VALID


def judge_outcome(status: str, n_updates: int) -> Finding:
    """Judge how training ended."""
    if status == "DIVERGED":
        return Level.REFUSE, (
            f"Training diverged after {n_updates} updates: the value means nothing. Lower learning_rate=, or use LSTDQ or a doubly robust method."
        )
    if status == "INTERRUPTED":
        return Level.CAUTION, (
            f"Training was interrupted after {n_updates} updates: the value depends on where it stopped. Fit again, or lower n_updates=."
        )
    if n_updates < ENOUGH_UPDATES:
        return Level.CAUTION, (
            f"{n_updates} updates are too few to tell whether the value still moves. Raise n_updates=; 2000 is the default."
        )
    return None


def judge_drift(amount: float, unit: float, std_error: float) -> Finding:
    """Judge whether the value still moved at the end of training."""
    level = _level(amount, unit, std_error)
    if level is Level.VALID:
        return None
    return level, (
        f"The value has not converged: it still moved by {amount:.3g} in the last fifth of training. Raise n_updates=, or use LSTDQ."
    )


def judge_members(amount: float, unit: float, std_error: float) -> Finding:
    """Judge whether networks agree that were trained on different episodes."""
    level = _level(amount, unit, std_error)
    if level is Level.VALID:
        return None
    return level, (
        f"Networks trained on different episodes disagree by more than the noise of the log; their mean is off by about {amount:.3g} by chance alone, which "
        "the interval includes. Raise n_updates= or n_folds=, or log actions like the candidate's."
    )


def judge_closed_form(amount: float, unit: float, std_error: float) -> Finding:
    """Judge whether the last layer in closed form says what the gradient found."""
    level = _level(amount, unit, std_error, THRESHOLDS.closed_form)
    if level is Level.VALID:
        return None
    return level, (
        f"The networks as trained and their last layer in closed form differ by {amount:.3g}: training has not converged, or the features do not hold the "
        "candidate's values. Raise n_updates= or hidden=, or use a candidate closer to the log."
    )


def judge_correction(correction: float, z: float, unit: float) -> Finding:
    """Judge whether temporal differences of unseen episodes average out along the candidate's visits."""
    if z <= THRESHOLDS.correction or abs(correction) <= THRESHOLDS.moved * unit:
        return None
    return Level.CAUTION, (
        f"Episodes that the networks have not seen contradict them: their weighted temporal differences average {correction:.3g}, {z:.1f} standard errors "
        "from 0. The value is corrected by that, but the error that is left is unknown. Raise n_updates= or hidden=."
    )


def judge_overfit(ratio: float) -> Finding:
    """Judge the Bellman error of unseen episodes beside that of seen ones."""
    if not ratio > THRESHOLDS.overfit:
        return None
    return Level.CAUTION, (
        f"Bellman errors of unseen episodes are {ratio:.1f} times those of seen ones: the networks know their episodes by heart. Log more, lower "
        "n_updates= or hidden=, or use LSTDQ."
    )


def judge_novelty(share: float) -> Finding:
    """Judge how far from the log the candidate acts."""
    if share <= THRESHOLDS.novelty:
        return None
    level = Level.REFUSE if share > THRESHOLDS.novelty_refuse else Level.CAUTION
    return level, (
        f"In {share:.0%} of its visits the candidate acts unlike anything logged (the log itself: 10 %): what such actions earn is extrapolated, with an "
        "error that no interval shows. Use a candidate closer to the log, or log actions like its own."
    )


def judge_overlap(amount: float) -> Finding:
    """Judge how much of the log looks like the candidate's own choices; NaN where densities are not known."""
    if not amount < THRESHOLDS.overlap:
        return None
    return Level.CAUTION, (
        f"Weighted by how likely the candidate takes the logged actions, the log holds {amount:.2g} effective horizons of transitions: how its own choices "
        "differ from the logged ones is learned from few of them, and networks may miss it without any sign. Use a candidate closer to the log, or log more."
    )


def judge_clipped(share: float) -> Finding:
    """Judge how often targets ran beyond what rewards can add up to."""
    if share <= THRESHOLDS.clipped:
        return None
    level = Level.REFUSE if share > THRESHOLDS.clipped_refuse else Level.CAUTION
    return level, (
        f"{share:.0%} of the targets lay beyond what rewards like the logged ones can add up to and were cut there: fitted values would have diverged. Use "
        "LSTDQ, a smaller gamma, or a candidate closer to the log."
    )
