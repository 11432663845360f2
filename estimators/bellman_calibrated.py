"""Bellman-calibrated Q evaluation: a Q function as the one feature of a least-squares method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimators import _calibration as bins
from ope.estimators import _linear as linear
from ope.estimators import _linear_fit as passes
from ope.estimators import _verdicts as verdicts
from ope.estimators import bellman_error as errors
from ope.estimators._crossfit import CrossFitted, CrossFittedQ, unfinished
from ope.estimators._probe import QTable, probe
from ope.estimators._q import QEstimator, QPredictions, check_targets
from ope.estimators.importance_sampling import unlogged_mass
from ope.estimators.lstdq import LSTDQ
from ope.inference.weights import fold_of
from ope.policy import Policy, Requirement, used_rows
from ope.validation import FloatArray, IntArray, check_integer
from ope.verdict import Verdict

# -------------------------------------------------------------------- mathematics


class OneView(passes.LinearLog):
    """A log that is looked at as a whole."""

    def __init__(self, view: passes.LinearView) -> None:
        self._view = view

    def __iter__(self) -> Iterator[tuple[passes.LinearView, slice]]:
        yield self._view, slice(0, self._view.block.n_episodes)


@dataclass(frozen=True)
class CalibratedFold:
    """The least-squares fit on the bins of one fold.

    Parameters
    ----------
    inside : ndarray
        Its episodes.
    table : QTable
        Predictions of a model that was fitted outside it.
    calibration : Calibration
    solution : LinearSolution
    stats : SecondPass
    unfinished : bool
        Whether the model did not come to its end.
    """

    inside: IntArray
    table: QTable
    calibration: bins.Calibration
    solution: linear.LinearSolution
    stats: passes.SecondPass
    unfinished: bool


def calibrated_value(
    data: LoggedDataset, table: QTable, weight: FloatArray, gamma: float, how: bins.Binning
) -> tuple[bins.Calibration, linear.LinearSolution, passes.SecondPass]:
    """Find the bins of the predictions on a log and solve least-squares temporal differences on them.

    Parameters
    ----------
    data : LoggedDataset
    table : QTable
    weight : ndarray of shape (n_episodes,)
        Of mean 1.
    gamma : float
    how : Binning
    """
    table, unit = bins.quantised(table)
    calibration = bins.calibrate(table, data.rewards / unit, data.offsets, gamma, weight, how)
    seen = bins.bin_features(table, calibration.bins, data.rewards, data.offsets)
    log = OneView(passes.LinearView(data, seen, seen, None))
    solution = linear.solve(log.sums(weight, 1), gamma, 0.0)
    return calibration, solution, passes.second_pass(log, weight, solution, gamma, passes.Instruments(bins.instruments))


def average_folds(parts: list[CalibratedFold], weight: FloatArray) -> tuple[float, FloatArray]:
    """Return the mean of the folds' values by the weight of their episodes, and its influence, shape (n_episodes,).

    Notes
    -----
    psi_i = m_k psi^k_i + w_i (V_k - V) in fold k, whose mean weight is m_k.
    """
    value = sum(float(weight[part.inside].sum()) * part.solution.value for part in parts) / float(weight.sum())
    psi = np.empty(len(weight))
    for part in parts:
        own = weight[part.inside]
        psi[part.inside] = own.mean() * part.stats.influence + own * (part.solution.value - value)
    return value, psi


def _pooled(
    parts: list[CalibratedFold], value: float, psi: FloatArray
) -> tuple[linear.LinearSolution, passes.SecondPass]:
    """Return what the folds say together: the worst condition, the least p-value times their number."""
    stats = [part.stats for part in parts]
    pooled = passes.SecondPass(
        psi,
        sum(own.ess for own in stats),
        float(np.mean([own.unsupported for own in stats])),
        min(1.0, len(parts) * min(own.past_p for own in stats)),
        min(1.0, len(parts) * min(own.features_p for own in stats)),
        1.0,
        sum(own.n_left_out for own in stats),
    )
    worst = max((part.solution for part in parts), key=lambda solution: solution.condition)
    return replace(worst, value=value), pooled


# -------------------------------------------------------------------- estimator


class BellmanCalibrated(CrossFitted):
    """Bellman calibration: any Q method, put right where its predictions disagree with their own Bellman targets.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    q : Q-based estimator or None
        `LSTDQ` (default), `FittedQEvaluation`, ...; it inherits gamma.
    n_folds : int
        Q is fitted outside each of so many folds of episodes and calibrated inside, at least 2.
    n_bins : int or None
        None: bins are the level sets of iterated isotonic regression. A number: bins of equal numbers of transitions in the order
        of the predictions, which need not rise with the truth.
    min_episodes : int
        Neighbouring bins are merged until each holds so many episodes.
    n_sweeps : int
        Limit of the isotonic regressions.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of the folds, which are a hash of the episode identifiers, and of the draws.

    Notes
    -----
    The fitted Qhat serves as one feature. In the fold it has not seen, f <- isotonic regression of r + gamma E_pi f(Qhat(s', .))
    on Qhat(s, a) is iterated; the level sets of f are bins, in which `LSTDQ` on one-hot features gives the value and psi with the
    bins taken as fixed. Values of the folds are averaged. With a horizon Qhat_t is indexed by time, f is one for all steps and nothing follows the
    last one: the same finite-horizon value, without the few episodes that bins of every single step would have.

    In our study (``docs/calibration.md``) the value gained clearly on one problem of six with wrong features and little or nothing elsewhere, and its interval was too short: the
    verdict is never VALID. The calibration error told wrong features reliably. It is a diagnostic first.

    Where the order of the predictions is right, so is the limit, whatever their size; where it is not, what is left is the bias of
    the best function of Qhat. Bins as fine as the state-action pairs make it tabular `LSTDQ`. The error of Qhat itself is in
    the diagnostics (``calibration_error``, ``calibration_p``, ``calibration_shift``), see `ope.estimators.calibration_error`; for them Q is
    fitted once more on each half of the episodes outside every fold.

    References
    ----------
    Van der Laan, Hubbard, Tran, Kallus, Bibaut (2025). Semiparametric double reinforcement learning with applications to
    long-term causal inference. arXiv 2501.06926.
    Van der Laan, Kallus (2025). Bellman calibration for V-learning in offline reinforcement learning. arXiv 2512.23694.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[1] * 8, ends="terminal", behavior_prob=[0.5] * 8
    ... )
    >>> calibrated = BellmanCalibrated(gamma=1.0, min_episodes=1)
    >>> round(calibrated.fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 9)
    0.75
    """

    requires = LSTDQ.requires
    laws = QEstimator.laws

    def __init__(
        self,
        *,
        gamma: float | None = None,
        q: QEstimator | None = None,
        n_folds: int = 2,
        n_bins: int | None = None,
        min_episodes: int = 20,
        n_sweeps: int = 200,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.q = q
        self.n_folds = n_folds
        self.n_bins = n_bins
        self.min_episodes = min_episodes
        self.n_sweeps = n_sweeps
        self.n_samples = n_samples
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        for name in ("min_episodes", "n_sweeps", "n_samples"):
            check_integer(type(self).__name__, name, getattr(self, name), 1)
        if self.n_bins is not None:
            check_integer(
                type(self).__name__, "n_bins", self.n_bins, 1, "pass None for the level sets of isotonic regression"
            )

    @property
    def needs_propensities(self) -> bool:  # type: ignore[override]
        """Whether the Q method reads them."""
        return self.q is not None and self.q.needs_propensities

    def _check_log(self, data: Any) -> None:
        super()._check_log(data)
        if isinstance(self.q, QEstimator):
            self.q._check_log(data)

    def _requirement(self, discrete: bool) -> Requirement:
        return self.q._requirement(discrete) if isinstance(self.q, QEstimator) else super()._requirement(discrete)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        order = np.argsort(data.episode_keys)  # ties are broken by rounding, which follows the order of the rows
        log, own_weight = data.select(order), weight[order]
        counted = np.repeat(own_weight > 0, log.lengths)
        check_targets(f"{type(self).__name__}.fit", used_rows(log, self._stationary(log)) & counted)
        split = list(self._folds(log, own_weight))
        parts = [self._calibrate(log, policy, own_weight, *part) for part in split]
        value, psi = average_folds(parts, own_weight)
        diagnostics, findings = self._diagnose(log, parts, value, psi)
        smaller = errors.half_fits(self._nested(), log, policy, own_weight, split, self.random_state)
        measured, found = self._measure(log, [_predictions(log, parts), *smaller], value, psi, own_weight)
        diagnostics |= measured | _describe_bins(parts)
        findings.append(verdicts.judge_bins(diagnostics["n_bins"]))
        findings.append(
            errors.judge_calibration(found, measured["calibration_shift"], measured["calibration_shift_error"])
        )
        findings.append(verdicts.judge_q_fits(sum(part.unfinished for part in parts), self.n_folds))
        findings.append(verdicts.judge_unlogged(*unlogged_mass(log, policy)))
        influence = np.empty_like(psi)
        influence[order] = psi
        return self._result(
            data,
            name,
            value=value,
            influence=influence,
            horizon=None if self._stationary(data) else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _calibrate(
        self, data: LoggedDataset, policy: Policy, weight: FloatArray, inside: IntArray, outside: IntArray
    ) -> CalibratedFold:
        stationary = self._stationary(data)
        part, own = data.select(inside), weight[inside]
        if not own.any():
            raise ValueError(
                f"{type(self).__name__}.fit: `episode_weight` must leave a positive weight inside each of n_folds={self.n_folds} folds, got only zeros in "
                "one; weigh more episodes, lower n_folds=, or take another random_state."
            )
        model = self._nested().fit_q(data.select(outside), policy, weight[outside])
        table = probe(model, policy, part, stationary, self.n_samples, self.random_state)
        if not (np.isfinite(table.q).all() and np.isfinite(table.nodes).all()):
            raise ValueError(
                f"{type(self).__name__}.fit: predictions of `q` must be finite, got infinite ones from {type(self._nested()).__name__}, which diverged; "
                "use LSTDQ, trees, or a smaller gamma."
            )
        how = bins.Binning(self.n_bins, self.min_episodes, self.n_sweeps)
        fit = calibrated_value(part, table, own / own.mean(), self._gamma, how)
        return CalibratedFold(inside, table, *fit, unfinished(model))

    def _diagnose(
        self, data: LoggedDataset, parts: list[CalibratedFold], value: float, psi: FloatArray
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        solution, stats = _pooled(parts, value, psi)
        return passes.diagnose(data, solution, stats, self._gamma, stationary=self._stationary(data), ridge=0.0)

    def _measure(
        self, data: LoggedDataset, predictions: list[QPredictions], value: float, psi: FloatArray, weight: FloatArray
    ) -> tuple[dict[str, Any], errors.CalibrationError]:
        """Return how far the model is from its targets, and how far calibration moves its value."""
        fold = fold_of(data.episode_keys, self.n_folds, self.random_state)
        n_bins = errors.bins_for(data.n_episodes, 10, self.min_episodes)
        found = errors.measure(data, predictions, fold, weight, self._gamma, self._stationary(data), n_bins)
        start = predictions[0].v[data.offsets[:-1]]
        q_value = float(np.mean(weight * start))
        return {
            "q_value": q_value,
            "calibration_shift": value - q_value,
            "calibration_shift_error": verdicts.standard_error(psi - weight * (start - q_value)),
            "calibration_error": found.size,
            "calibration_p": found.p_value,
        }, found


def _describe_bins(parts: list[CalibratedFold]) -> dict[str, Any]:
    return {
        "n_bins": float(np.mean([part.calibration.bins.size for part in parts])),
        "sweeps": max(part.calibration.sweeps for part in parts),
        "settled": all(part.calibration.settled for part in parts),
    }


def _predictions(data: LoggedDataset, parts: list[CalibratedFold]) -> QPredictions:
    """Return the uncalibrated predictions of all folds."""
    values = CrossFittedQ.empty(data)
    for part in parts:
        values.put(part.table.predictions, part.inside, ragged.rows_of(part.inside, data.offsets))
    return values
