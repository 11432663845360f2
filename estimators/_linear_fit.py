"""The passes that least-squares methods make over a log, and what they say of the fit. Called by `LSTDQ` and `LSTD`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ope.dataset import BLOCK_ROWS, LoggedDataset
from ope.estimators import _linear as linear
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import FeatureBlock, history_features
from ope.estimators._specification import specification_p_value
from ope.estimators._traces import carry_back, carry_on, traced
from ope.validation import FloatArray
from ope.verdict import Level

PValue = Callable[["LinearView", FloatArray, FloatArray], float]
LATER_BYTES = 1 << 31


@dataclass(frozen=True)
class LinearView:
    """A block of a log as a linear method sees it.

    Parameters
    ----------
    block : LoggedDataset
    seen : FeatureBlock
        Features, step by step.
    targets : FeatureBlock
        The same as regression targets read them: other than `seen` where there are traces.
    c : ndarray of shape (n,) or None
        Trace coefficients.
    """

    block: LoggedDataset
    seen: FeatureBlock
    targets: FeatureBlock
    c: FloatArray | None

    @classmethod
    def build(
        cls, block: LoggedDataset, seen: FeatureBlock, c: FloatArray | None, gamma: float, decay: float, n_values: int
    ) -> LinearView:
        """Carry features along the traces."""
        if c is None:
            return cls(block, seen, seen, None)
        c = np.where(seen.used, c, 0.0)
        return cls(block, seen, traced(seen, c, gamma, decay, n_values), c)

    def ratios(self, u: FloatArray, gamma: float) -> FloatArray:
        """Return the weight w of every temporal difference in u' (A theta - b), shape (n,)."""
        own = linear.weights_of(self.seen, u)
        return own if self.c is None else carry_on(own, self.c, self.seen.offsets, gamma)

    def errors(self, eps: FloatArray, gamma: float) -> FloatArray:
        """Return the errors D of the targets from temporal differences, shape (n,)."""
        return eps if self.c is None else carry_back(eps, self.c, self.seen.offsets, gamma)


class LinearLog:
    """The views of all blocks of a log, with the slice of its episodes; features of a log of one block are computed once."""

    def __init__(self, data: LoggedDataset, look: Callable[[LoggedDataset], LinearView]) -> None:
        self._data, self._look = data, look
        self._kept = [look(block) for block in data.blocks()] if data.n_transitions <= BLOCK_ROWS else None

    def __iter__(self) -> Iterator[tuple[LinearView, slice]]:
        first = 0
        for view in self._kept or map(self._look, self._data.blocks()):
            own = slice(first, first + view.block.n_episodes)
            first = own.stop
            yield view, own

    def sums(self, weight: FloatArray, n_values: int) -> linear.LinearSums:
        """Sum what the linear system is made of."""
        return linear.merge([linear.summarise(view.targets, weight[own], n_values) for view, own in self])


def check_size(owner: str, n_values: int, reach: int, k: int) -> None:
    """Raise unless the matrices between the value functions of all steps fit into memory."""
    size = 8 * n_values * (reach - 1) * k * k
    if size > LATER_BYTES:
        raise ValueError(
            f"{owner}.fit: `features` with a trace over {n_values} steps must fit into {LATER_BYTES >> 30} GiB, got {k} features, which need "
            f"{size / 2**30:.0f} GiB; use fewer features, a smaller trace_lambda=, stationary=True, or FittedQEvaluation with a linear regressor."
        )


@dataclass(frozen=True)
class SecondPass:
    """What a solution says of every episode, and how well it fits.

    Parameters
    ----------
    influence : ndarray of shape (n_episodes,)
    ess : float
        Effective sample size of the ratios of visits.
    unsupported : float
        Share of the candidate's visits outside the span of the logged features.
    past_p, features_p : float
        p-values of the hypotheses that errors are unrelated to the past, and to richer features.
    mean_ratio : float
        Mean of pi / b where the candidate goes; 1 where rows have no ratio.
    n_left_out : int
        Transitions to unknown states.
    """

    influence: FloatArray
    ess: float
    unsupported: float
    past_p: float
    features_p: float
    mean_ratio: float
    n_left_out: int


@dataclass(frozen=True)
class Instruments:
    """What errors must not depend on.

    Parameters
    ----------
    richer : callable
        Of a block, features of the present, shape (n, q), or None for no test of the basis.
    state : callable or None
        ``state(view, eps, omega)`` is the p-value of a test of the state beside that by what happened one step before.
    """

    richer: Callable[[LoggedDataset], FloatArray | None]
    state: PValue | None = None


def second_pass(
    log: LinearLog, weight: FloatArray, solution: linear.LinearSolution, gamma: float, instruments: Instruments
) -> SecondPass:
    """Return influence and diagnostics of a solution."""
    n_values, n = len(solution.theta), len(weight)
    ratio_sums = _RatioSums(n_values, float(np.abs(solution.adjoint).max()) or 1.0)
    influence, outside, ratio, n_left_out, p_values = [], np.zeros(2), np.zeros(2), 0, None
    for view, own in log:
        omega = weight[own]
        eps = linear.temporal_differences(view.seen, solution.theta, gamma)
        w = view.ratios(n * solution.adjoint, gamma)
        influence.append(omega * linear.influence(view.seen, solution, eps, w))
        ratio_sums.add(view.seen, w, omega)
        outside += linear.unsupported_mass(view.seen, solution, w, gamma, omega)
        ratio += _ratio_mass(view.seen, solution.adjoint, omega)
        n_left_out += int((~view.seen.used).sum())
        if p_values is None and omega.any():
            # One block of up to 2^18 rows decides whether the model is contradicted; more would not be more convincing.
            share_of_log = float(omega.sum() / weight.sum())
            p_values = _p_values(view, solution, eps, gamma, omega, share_of_log, instruments)
    assert p_values is not None
    psi = np.concatenate(influence)
    psi -= weight * psi.mean()  # 0 but for a ridge, which leaves the normal equations unequal to 0
    psi = verdicts.settled(psi, solution.value)
    unsupported = float(outside[0] / outside[1]) if outside[1] > 0 else 0.0
    mean_ratio = float(ratio[0] / ratio[1]) if ratio[1] > 0 else 1.0
    return SecondPass(psi, ratio_sums.effective_sample_size(), unsupported, *p_values, mean_ratio, n_left_out)


def _ratio_mass(seen: FeatureBlock, u: FloatArray, omega: FloatArray) -> tuple[float, float]:
    """Return the sums of pi / b and of 1 over the candidate's visits of states."""
    if seen.ratio is None:
        return 0.0, 0.0
    visits = np.repeat(omega, np.diff(seen.offsets)) * linear.weights_of(replace(seen, ratio=None), u)
    return float(visits @ seen.ratio), float(visits.sum())


def _p_values(
    view: LinearView,
    solution: linear.LinearSolution,
    eps: FloatArray,
    gamma: float,
    omega: FloatArray,
    share: float,
    instruments: Instruments,
) -> tuple[float, float]:
    rest = (solution, view.errors(eps, gamma), gamma, omega, share)
    past = specification_p_value(view.targets, history_features(view.block), *rest)
    if instruments.state is not None:
        past = min(1.0, 2.0 * min(past, instruments.state(view, eps, omega)))
    more = instruments.richer(view.block)
    return past, 1.0 if more is None else specification_p_value(view.targets, more, *rest)


def describe(solution: linear.LinearSolution, stats: SecondPass) -> dict[str, Any]:
    """Return the diagnostics that every linear method has."""
    return {
        "ess": stats.ess,
        **verdicts.influence_diagnostics(stats.influence),
        "condition": solution.condition,
        "specification_p": stats.past_p,
        "features_p": stats.features_p,
        "unsupported": stats.unsupported,
        "left_out_transitions": stats.n_left_out,
    }


def diagnose(
    data: LoggedDataset,
    solution: linear.LinearSolution,
    stats: SecondPass,
    gamma: float,
    *,
    stationary: bool,
    ridge: float,
) -> tuple[dict[str, Any], list[verdicts.Finding]]:
    """Return the diagnostics of a linear method and the findings from them."""
    diagnostics = {**describe(solution, stats), "truncated_share": verdicts.truncated_share(data)}
    findings = [
        verdicts.judge_finite(solution.value, stats.influence),
        verdicts.judge_range(solution.value, data, gamma, stationary, Level.REFUSE),
        verdicts.judge_width(stats.influence, data, gamma, stationary),
        *verdicts.linear_findings(diagnostics),
    ]
    if ridge:
        diagnostics["ridge_bias"] = solution.ridge_bias
        findings.append(verdicts.judge_ridge(solution.ridge_bias, verdicts.standard_error(stats.influence)))
    return diagnostics, findings


class _RatioSums:
    """Effective sample size of the ratios: over episodes if stationary, the least over the steps if time-indexed.

    Ratios are counted in a unit, lest the squares of those far outside the log overflow.
    """

    def __init__(self, n_values: int, unit: float) -> None:
        self.unit = unit
        self.absolute = np.zeros(n_values)
        self.squares = np.zeros(n_values)
        self.mass = np.zeros(n_values)

    def add(self, seen: FeatureBlock, w: FloatArray, omega: FloatArray) -> None:
        """Add a block."""
        w = w / self.unit
        row_weight = np.repeat(omega, np.diff(seen.offsets))
        if len(self.absolute) == 1:
            per_episode = omega * np.add.reduceat(w, seen.offsets[:-1])
            self.absolute[0] += np.abs(per_episode).sum()
            self.squares[0] += (per_episode**2).sum()
            self.mass[0] = 1.0
            return
        size = len(self.absolute)
        self.absolute += np.bincount(seen.steps, row_weight * np.abs(w), size)
        self.squares += np.bincount(seen.steps, (row_weight * w) ** 2, size)
        self.mass += np.bincount(seen.steps, row_weight * np.abs(w * seen.rewards), size)

    def effective_sample_size(self) -> float:
        """Return the least effective sample size over the steps that carry at least 1 % of what is still to come."""
        ess = np.divide(self.absolute**2, self.squares, out=np.zeros_like(self.squares), where=self.squares > 0)
        to_come = np.cumsum(self.mass[::-1])[::-1]
        matters = (to_come >= 0.01 * to_come[0]) & (self.squares > 0)
        return float(ess[matters].min()) if matters.any() else float(ess.max(initial=0.0))
