"""What model-based estimators say of their models: diagnostics and findings that they have beside those of all methods.

A model's own error bars know the noise of the log. They know neither whether its state is all that decides, nor what happens
where nothing was logged, nor whether networks have learned what there is to learn: these are judged here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators import _verdicts as verdicts
from ope.estimators._verdicts import Finding
from ope.validation import FloatArray, IntArray
from ope.verdict import Level


@dataclass(frozen=True)
class ModelThresholds:
    """Where a diagnostic of a model stops being harmless.

    Parameters
    ----------
    pooled_ess : float
        Effective number of episodes behind counts of all steps together: with fewer the log may lack what is rare without any sign
        (RiverSwim of 10 steps, 32 episodes: half of the logs that nothing else tells never show the reward).
    network_ess : float
        Effective number of episodes behind networks, which shrink what is rare more than counts do (RiverSwim of 10 steps, 64 episodes:
        with the limit of counts 13 of 17 VALID intervals held the value).
    homogeneous : float
        p-value under which errors of a model of all steps together depend on the step.
    noise : float
        Monte Carlo error in standard errors that is harmless.
    spread, spread_refuse : float
        Standard deviation of members as a share of the range of what logged episodes earned.
    outside, outside_refuse : float
        Share of visits outside the box of the logged states.
    novelty, novelty_refuse : float
        Share of visits farther from the log than nine in ten logged pairs are from each other.
    unsettled : float
        Share of members that still learned at the end of training, three of 40 (RiverSwim, 128 episodes, short training: up to here 10 of 10
        intervals held the value, with up to a quarter of the members 8 of 13).
    replicates : int
        Fewest resampled fits of which a 95 % interval can be made.
    alive : float
        Share of simulated episodes that may still run at the last step where nothing else ends them.
    episodes : int
        Fewest episodes whose resamples say how far members differ.
    """

    pooled_ess: float = 40.0
    network_ess: float = 80.0
    homogeneous: float = 0.001
    noise: float = 0.1
    spread: float = 0.1
    spread_refuse: float = 0.5
    outside: float = 0.01
    outside_refuse: float = 0.2
    novelty: float = 0.2
    novelty_refuse: float = 0.5
    unsettled: float = 0.075
    replicates: int = 39
    alive: float = 1e-3
    episodes: int = 20


THRESHOLDS = ModelThresholds()


# -------------------------------------------------------------------- diagnostics


def visit_sample_size(
    ratio: FloatArray, rewards: FloatArray, offsets: IntArray, weight: FloatArray, by_step: bool
) -> float:
    """Return the effective number of episodes of ratios of visits; with `by_step` the least over the steps that matter.

    Examples
    --------
    >>> visit_sample_size(np.array([1.0, 1.0, 2.0]), np.ones(3), np.array([0, 2, 3]), np.ones(2), by_step=False)
    2.0
    """
    if not by_step:
        visits = weight * ragged.segment_sum(ratio, offsets)
        return _kish(np.abs(visits).sum(), (visits**2).sum())
    step, row_weight = ragged.step_index(offsets), np.repeat(weight, np.diff(offsets))
    absolute = np.bincount(step, row_weight * np.abs(ratio))
    squares = np.bincount(step, (row_weight * ratio) ** 2)
    to_come = np.cumsum(np.bincount(step, row_weight * np.abs(ratio * rewards))[::-1])[::-1]
    sizes = np.array([_kish(*pair) for pair in zip(absolute, squares, strict=True)])
    matters = (to_come >= 0.01 * to_come[0]) & (squares > 0)
    return float(sizes[matters].min()) if matters.any() else float(sizes.max(initial=0.0))


def _kish(total: float, squares: float) -> float:
    return float(total**2 / squares) if squares > 0 else 0.0


# -------------------------------------------------------------------- findings of all models


def judge_value(value: float) -> Finding:
    """Judge whether the candidate has a value in the model."""
    if np.isfinite(value):
        return None
    return Level.REFUSE, (
        f"The value is {value:.3g}: what the model expects does not add up to a number, because rewards go on without end or grow without bound. Use gamma < 1, a "
        "horizon, or a candidate closer to the log."
    )


def judge_simulated(finite: bool) -> Finding:
    """Judge whether all simulated episodes, those of resampled models included, stay finite."""
    if finite:
        return None
    return Level.REFUSE, (
        "Simulated episodes run away to infinity: the fitted transitions are unstable under the candidate, or extrapolate. Use a candidate closer to the log, a "
        "horizon, or LSTDQ."
    )


def judge_homogeneous(p_value: float) -> Finding:
    """Judge a test that the errors of a model of all steps together are unrelated to the step."""
    if not p_value < THRESHOLDS.homogeneous:
        return None
    return Level.REFUSE, (
        f"The errors of the model depend on the step (p = {p_value:.1g}): the process changes in the course of an episode, and one model for all steps is "
        "biased by an unknown amount. Pass homogeneous=False, or add what changes to the states."
    )


def judge_past(p_value: float) -> Finding:
    """Judge a test that the errors of a model are unrelated to what happened one step before."""
    if not p_value < verdicts.THRESHOLDS.specification:
        return None
    return Level.REFUSE, (
        f"The errors of the model depend on the past (p = {p_value:.1g}): the states do not hold what decides rewards and transitions, and the value is "
        "biased by an unknown amount. Add the missing state, or use importance sampling or a doubly robust method."
    )


def judge_linear(p_value: float) -> Finding:
    """Judge a test that random waves of states and actions do not predict the errors of a linear-Gaussian model."""
    if not p_value < verdicts.THRESHOLDS.specification:
        return None
    return Level.CAUTION, (
        f"The log contradicts linear transitions or a quadratic reward (p = {p_value:.1g}): the value is biased by an unknown amount that the interval does not "
        "show. Use ModelEnsemble, NeuralFittedQEvaluation or a doubly robust method, or transform the states."
    )


def judge_radius(radius: float) -> Finding:
    """Judge whether the closed loop of a candidate in a linear model has a value."""
    if radius < 1.0:
        return None
    return Level.REFUSE, (
        f"Under the candidate the fitted transitions grow without bound (gamma times the squared spectral radius is {radius:.3g}; below 1 there is a value): the candidate "
        "is unstable, or the model extrapolates. Use a smaller gamma, a horizon, or a candidate closer to the log."
    )


def judge_alive(share: float, endless: bool) -> Finding:
    """Judge how many simulated episodes had not ended where neither a horizon nor discounting ends them."""
    if not endless or share <= THRESHOLDS.alive:
        return None
    return Level.REFUSE, (
        f"Without discounting, {share:.1%} of the simulated episodes had not ended after ten times the longest logged one: there is no finite value, or it is not "
        "reached. Use gamma < 1, or log the horizon."
    )


def judge_varying(share: float) -> Finding:
    """Judge how often the candidate acts otherwise than on average in the same state of the model."""
    if share == 0.0:
        return None
    return Level.CAUTION, (
        f"In {share:.0%} of the rows the candidate's probabilities differ from its mean in the same state of the model, which the model uses: the value is right "
        "only if what else the candidate looks at has no part in rewards and transitions. Add those columns to states=, or pass finer features=."
    )


def judge_noise(noise: float, std_error: float, steps: str) -> tuple[Finding, float]:
    """Judge the Monte Carlo error of rollouts; return the widening of the interval too."""
    if not noise > THRESHOLDS.noise * std_error:
        return None, 0.0
    widening = 2.0 * noise
    if noise <= std_error:
        return None, widening
    return (
        Level.CAUTION,
        f"The value is the mean of simulated episodes, with a Monte Carlo error of {noise:.3g} beside a standard error of {std_error:.3g}; the interval includes it. "
        f"Raise {steps}.",
    ), widening


def judge_outside(share: float) -> Finding:
    """Judge how much of simulated episodes lies outside the box of the logged states."""
    if share <= THRESHOLDS.outside:
        return None
    level = Level.REFUSE if share > THRESHOLDS.outside_refuse else Level.CAUTION
    return level, (
        f"{share:.1%} of the candidate's simulated visits are to states beyond those logged, by more than a tenth of their range: what happens there is "
        "extrapolated, with an error that no interval shows. Use a candidate closer to the log, or log such states."
    )


def judge_spread(spread: float, data: LoggedDataset, gamma: float, stationary: bool) -> Finding:
    """Judge how far members differ beside what logged episodes differ by."""
    low, high = verdicts.earned_range(data, gamma, stationary)
    share = spread / (high - low) if high > low else 0.0
    if not share > THRESHOLDS.spread:
        return None
    level = Level.REFUSE if share > THRESHOLDS.spread_refuse else Level.CAUTION
    return level, (
        f"Models fitted to resampled episodes disagree by {spread:.3g} (one standard deviation), {share:.0%} of what lies between the worst and the best logged "
        "episode: the log does not determine what the candidate meets. Log more episodes, or use a candidate closer to the log."
    )


def judge_pair_novelty(share: float) -> Finding:
    """Judge how far from all logged pairs of state and action the simulated ones lie."""
    if share <= THRESHOLDS.novelty:
        return None
    level = Level.REFUSE if share > THRESHOLDS.novelty_refuse else Level.CAUTION
    return level, (
        f"{share:.0%} of the candidate's simulated visits are unlike anything logged (the log itself: 10 %): the model is asked where it has learned nothing, and its "
        "members may agree on a wrong answer. Use a candidate closer to the log, or log states and actions like its own."
    )


def judge_unsettled(share: float) -> Finding:
    """Judge whether members had stopped learning when training ended."""
    if share <= THRESHOLDS.unsettled:
        return None
    return Level.CAUTION, (
        f"At the end of training {share:.0%} of the members still came to predict episodes better that were held out: they have not learned what the log holds, and the "
        "value still moves. Raise n_updates=."
    )


def judge_replicates(n_replicates: int) -> Finding:
    """Judge whether resampled fits can give an interval."""
    if n_replicates >= THRESHOLDS.replicates:
        return None
    return Level.CAUTION, (
        f"With {n_replicates} models fitted to resampled episodes there is no 95 % interval ({THRESHOLDS.replicates} are needed): nothing says how far off the value may "
        "be. Raise their number."
    )


def judge_few(n_episodes: int) -> Finding:
    """Judge the number of episodes that are resampled."""
    if n_episodes >= THRESHOLDS.episodes:
        return None
    return Level.CAUTION, (
        f"The interval comes from resamples of {n_episodes} episodes, which cannot show what rare episodes would add: it is likely to be too short. Log more "
        "episodes."
    )


def judge_diverged(n_diverged: int) -> Finding:
    """Judge whether the training of any member diverged."""
    if n_diverged == 0:
        return None
    return Level.REFUSE, (
        f"The training of {n_diverged} members diverged: their simulated episodes mean nothing. Lower learning_rate=, or look for outliers in states and rewards."
    )


def judge_moved(moved: float, cut: float) -> Finding:
    """Judge how much of simulated episodes was moved back to a border."""
    if max(moved, cut) <= THRESHOLDS.outside:
        return None
    level = Level.REFUSE if max(moved, cut) > THRESHOLDS.outside_refuse else Level.CAUTION
    return level, (
        f"Simulated states ran out of the log by more than its range in {moved:.1%} of the visits, and rewards beyond the logged ones in {cut:.1%}; they were moved back to "
        "these borders, without which they might grow without end. Use a candidate closer to the log, or log such states."
    )


def ensemble_findings(diagnostics: dict[str, Any]) -> list[Finding]:
    """Judge an ensemble of networks from its diagnostics."""
    return [
        judge_diverged(diagnostics["diverged"]),
        judge_outside(diagnostics["outside"]),
        judge_moved(diagnostics["moved"], diagnostics["cut"]),
        judge_pair_novelty(diagnostics["novelty"]),
        verdicts.judge_ess(diagnostics["ess"], THRESHOLDS.network_ess, "pairs that simulated visits are like"),
        judge_unsettled(diagnostics["unsettled"]),
    ]


def tabular_findings(diagnostics: dict[str, Any], pooled: bool) -> list[Finding]:
    """Judge a tabular model from its diagnostics."""
    enough = THRESHOLDS.pooled_ess if pooled else verdicts.THRESHOLDS.linear_ess
    return [
        verdicts.judge_ess(diagnostics["ess"], enough, "ratios of visits"),
        verdicts.judge_share(diagnostics["largest_share"], verdicts.THRESHOLDS.linear_share),
        verdicts.judge_condition(diagnostics["condition"]),
        judge_past(diagnostics["specification_p"]),
        judge_homogeneous(diagnostics["homogeneous_p"]),
        verdicts.judge_unsupported(diagnostics["unsupported"]),
        judge_varying(diagnostics["varying"]),
    ]
