"""Marginal ratios that are linear in features: c_it = multiplier_it n u' phi_it, with u the adjoint of the Bellman equations.

What `MarginalizedIS` (features of states and actions) and `StateMarginalIS` (of states) share. Both bring the log into the
form of least-squares temporal differences, G = sum phi phi', C = sum phi phi_next', b = sum phi r, and `_linear` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ope import ragged
from ope.dataset import BLOCK_ROWS, LoggedDataset
from ope.estimate import Estimate
from ope.estimators import _linear as linear
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import Basis, FeatureBlock, check_features
from ope.estimators._ratio import RatioEstimator
from ope.policy import Policy, continuing_ends
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Level, Verdict

# -------------------------------------------------------------------- mathematics


@dataclass(frozen=True)
class View:
    """A block of whole episodes in the form of least-squares temporal differences.

    Parameters
    ----------
    seen : FeatureBlock
        Its rewards and features hold whatever weights the rows have.
    multiplier : ndarray of shape (n,)
        c_it over n u' phi_it.
    rewards : ndarray of shape (n,)
        As logged.
    root : ndarray of shape (n,)
        Square root of the weight of each row, which `seen.phi` holds.
    exits : ndarray of shape (n,)
        1 - gamma where another state follows, else 1: weighted by c they sum to 1 for every episode that starts.
    final : ndarray of shape (n_episodes, k)
        Features of the state after the last step, 0 where nothing follows.
    """

    seen: FeatureBlock
    multiplier: FloatArray
    rewards: FloatArray
    root: FloatArray
    exits: FloatArray
    final: FloatArray


def exit_shares(block: LoggedDataset, gamma: float, stationary: bool) -> FloatArray:
    """Return 1 - gamma for rows that another state follows, 1 for others, shape (n,).

    Examples
    --------
    >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [0, 1], [1.0, 2.0], lengths=[2], ends="terminal")
    >>> exit_shares(log, 0.75, stationary=True)
    array([0.25, 1.  ])
    """
    follows = ragged.shift_to_next(np.ones(len(block)), block.offsets, continuing_ends(block, stationary).astype(float))
    return 1.0 - gamma * follows


def without_rounding(residuals: FloatArray, size: FloatArray) -> FloatArray:
    """Return residuals with rounding errors set to 0, lest a test of specification, which has no sense of scale, tests them.

    Examples
    --------
    >>> without_rounding(np.array([1e-16, -1.0]), np.array([3.0, 3.0]))
    array([ 0., -1.])
    """
    return np.where(np.abs(residuals) > 1e-10 * size, residuals, 0.0)


@dataclass
class RatioSums:
    """Sums of ratios over a log: over episodes where stationary, at every step where time-indexed.

    Parameters
    ----------
    n_values : int
        1, or the number of steps.
    unit : float
        Ratios are counted in it, lest the squares of those far outside the log overflow.

    Examples
    --------
    >>> sums = RatioSums(1, 1.0)
    >>> sums.add(np.array([3.0, -1.0]), np.ones(2), np.ones(2), np.array([0, 1]), np.array([0, 2]), np.ones(1))
    >>> sums.negative_share, sums.mass
    (0.25, 2.0)
    """

    n_values: int
    unit: float
    absolute: FloatArray = field(init=False)
    squares: FloatArray = field(init=False)
    reward: FloatArray = field(init=False)
    negative: float = 0.0
    total: float = 0.0
    exit: float = 0.0
    dual: float = 0.0
    n: float = 0.0

    def __post_init__(self) -> None:
        self.absolute, self.squares, self.reward = (np.zeros(self.n_values) for _ in range(3))

    def add(
        self, c: FloatArray, rewards: FloatArray, exits: FloatArray, steps: Any, offsets: Any, omega: FloatArray
    ) -> None:
        """Add a block of whole episodes with ratios c and episode weights omega."""
        row_weight = np.repeat(omega, np.diff(offsets))
        weighted = row_weight * c / self.unit
        self.negative -= float(np.minimum(weighted, 0.0).sum())
        self.total += float(np.abs(weighted).sum())
        self.exit += float(weighted @ exits)
        self.dual += float(weighted @ rewards)
        self.n += float(omega.sum())
        index, value = steps, weighted
        if self.n_values == 1:
            index, value = np.zeros(len(omega), dtype=np.int64), omega * ragged.segment_sum(c / self.unit, offsets)
        self.absolute += np.bincount(index, np.abs(value), self.n_values)
        self.squares += np.bincount(index, value**2, self.n_values)
        if self.n_values > 1:
            self.reward += np.bincount(steps, np.abs(weighted * rewards), self.n_values)

    @property
    def negative_share(self) -> float:
        """Share of the ratios' mass that is negative."""
        return self.negative / self.total if self.total > 0 else 0.0

    @property
    def mass(self) -> float:
        """Mean over episodes of sum_t c_it (1 - gamma 1[another state follows]): 1 where the flow is conserved."""
        return self.unit * self.exit / self.n

    @property
    def value(self) -> float:
        """Mean over episodes of sum_t c_it r_it."""
        return self.unit * self.dual / self.n

    @property
    def effective_sample_size(self) -> float:
        """The least over the steps that carry at least 1 % of what is still to come; over episodes where stationary."""
        ess = np.divide(self.absolute**2, self.squares, out=np.zeros_like(self.squares), where=self.squares > 0)
        to_come = np.cumsum(self.reward[::-1])[::-1]
        matters = (to_come >= 0.01 * to_come[0]) & (self.squares > 0)
        return float(ess[matters].min()) if matters.any() else float(ess.max(initial=0.0))


# -------------------------------------------------------------------- workflow


@dataclass(frozen=True)
class LinearRatio:
    """A fitted ratio of visits: c_it = multiplier_it n u_t' phi_it.

    Parameters
    ----------
    owner : LinearRatioEstimator
        Knows how to look at a log.
    basis : Basis
    coefficient : ndarray of shape (S, k)
        n u, n the sum of episode weights: one for all steps, or one for each.
    stationary : bool
    """

    owner: LinearRatioEstimator
    basis: Basis
    coefficient: FloatArray
    stationary: bool

    def predict(self, policy: Policy, data: LoggedDataset) -> FloatArray:
        """Return c_it of every row of a log, shape (n,)."""
        views = (self.owner._view(block, self.basis, policy, self.stationary, True) for block in data.blocks())
        return np.concatenate([view.multiplier * self.linear_part(view.seen) for view in views])

    def linear_part(self, seen: FeatureBlock) -> FloatArray:
        """Return n u' phi of every row, 0 of those left out, shape (n,)."""
        index = linear.value_index(seen, len(self.coefficient))
        return np.where(seen.used, np.einsum("nk,nk->n", seen.phi, self.coefficient[index]), 0.0)


class _Views:
    """The views of all blocks of a log with the weights of their episodes; those of a log of one block are computed once."""

    def __init__(self, data: LoggedDataset, weight: FloatArray, look: Callable[[LoggedDataset], View]) -> None:
        self._data, self._weight, self._look = data, weight, look
        self._kept = [look(block) for block in data.blocks()] if data.n_transitions <= BLOCK_ROWS else None

    def __iter__(self) -> Iterator[tuple[LoggedDataset, View, FloatArray]]:
        first = 0
        for k, block in enumerate(self._data.blocks()):
            view = self._kept[k] if self._kept is not None else self._look(block)
            yield block, view, self._weight[first : first + block.n_episodes]
            first += block.n_episodes


@dataclass
class _SecondPass:
    sums: RatioSums
    lagrangian: float = 0.0
    unsupported: float = 0.0
    specification_p: float = 1.0
    features_p: float = 1.0
    n_left_out: int = 0
    influence: FloatArray = field(default_factory=lambda: np.zeros(0))


class LinearRatioEstimator(RatioEstimator):
    """Base of marginal ratios in closed form; a subclass says how it looks at a block of the log.

    Notes
    -----
    The dual value is mean_i sum_t c_it r_it, the primal one phibar_0' theta, and the Lagrangian adds mean_i sum_t w_it eps_it to
    the primal one. Without a ridge they are the same number. With one the first two still are, since both are
    phibar_0' (A + ridge)^-1 b, and the Lagrangian, which is free of the ridge's first-order bias, is not.
    """

    features: Any
    ridge: float
    stationary: bool
    random_state: int

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_features(owner, self.features)
        check_number(owner, "ridge", self.ridge, "a number of at least 0", "pass ridge=0 for none", 0.0)
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")

    def fit_ratio(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> LinearRatio:
        """Fit u and return the ratio."""
        basis, stationary = self._basis(data), self.stationary or data.horizon is None
        solution = self._solve(data, self._views(data, policy, episode_weight, basis, stationary), stationary)
        return LinearRatio(self, basis, float(episode_weight.sum()) * solution.adjoint, stationary)

    # What a subclass defines.

    def _basis(self, data: LoggedDataset) -> Basis:
        raise NotImplementedError

    def _view(
        self, block: LoggedDataset, basis: Basis, policy: Policy, stationary: bool, cross_fitted: bool = False
    ) -> View:
        raise NotImplementedError

    def _instruments(self, block: LoggedDataset, basis: Basis) -> tuple[FloatArray, FloatArray | None]:
        """Return what happened one step before, and functions that the basis need not hold."""
        raise NotImplementedError

    def _own_findings(self, data: LoggedDataset, policy: Policy) -> list[verdicts.Finding]:
        raise NotImplementedError

    # The passes over the log.

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        basis, stationary = self._basis(data), self.stationary or data.horizon is None
        views = self._views(data, policy, weight, basis, stationary)
        solution = self._solve(data, views, stationary)
        ratio = LinearRatio(self, basis, float(weight.sum()) * solution.adjoint, stationary)
        stats = self._second_pass(views, weight, ratio, solution)
        diagnostics, findings = self._diagnose(data, policy, solution, stats)
        return self._result(
            data,
            name,
            value=stats.sums.value,
            influence=stats.influence,
            horizon=None if stationary else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _views(self, data: LoggedDataset, policy: Policy, weight: FloatArray, basis: Basis, stationary: bool) -> _Views:
        return _Views(data, weight, lambda block: self._view(block, basis, policy, stationary))

    def _solve(self, data: LoggedDataset, views: _Views, stationary: bool) -> linear.LinearSolution:
        n_values = 1 if stationary else int(data.horizon or 1)
        sums = linear.merge([linear.summarise(view.seen, omega, n_values) for _, view, omega in views])
        return linear.solve(sums, self._gamma, self.ridge)

    def _second_pass(
        self, views: _Views, weight: FloatArray, ratio: LinearRatio, solution: linear.LinearSolution
    ) -> _SecondPass:
        stats = _SecondPass(RatioSums(len(solution.theta), float(np.abs(ratio.coefficient).max()) or 1.0))
        influence, outside, tested = [], np.zeros(2), False
        for block, view, omega in views:
            seen, w = view.seen, ratio.linear_part(view.seen)
            eps = linear.temporal_differences(seen, solution.theta, self._gamma)
            influence.append(omega * linear.influence(seen, solution, eps, w))
            c = view.multiplier * w
            stats.sums.add(c, view.rewards, view.exits, seen.steps, seen.offsets, omega)
            outside += linear.unsupported_mass(seen, solution, c, self._gamma, omega)
            stats.n_left_out += int((~seen.used).sum())
            if not tested and omega.any():
                # One block decides whether the model is contradicted; more would not be more convincing.
                tested, share = True, float(omega.sum() / weight.sum())
                stats.specification_p, stats.features_p = self._p_values(
                    block, ratio.basis, view, solution, eps, omega, share
                )
        stats.unsupported = float(outside[0] / outside[1]) if outside[1] > 0 else 0.0
        psi = np.concatenate(influence)
        stats.lagrangian = solution.value + float(psi.mean())
        stats.influence = psi - weight * psi.mean()  # 0 but for a ridge, which leaves the equations unequal to 0
        return stats

    def _p_values(
        self,
        block: LoggedDataset,
        basis: Basis,
        view: View,
        solution: linear.LinearSolution,
        eps: FloatArray,
        omega: FloatArray,
        share: float,
    ) -> tuple[float, float]:
        eps = without_rounding(eps, np.abs(view.seen.rewards) + np.abs(eps - view.seen.rewards))
        past, richer = self._instruments(block, basis)
        rest = (solution, eps, self._gamma, omega, share)
        root = view.root[:, None]
        past_p = linear.specification_p_value(view.seen, root * past, *rest)
        richer_p = 1.0 if richer is None else linear.specification_p_value(view.seen, root * richer, *rest)
        return past_p, richer_p

    def _diagnose(
        self, data: LoggedDataset, policy: Policy, solution: linear.LinearSolution, stats: _SecondPass
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        sums, values = stats.sums, (stats.sums.value, solution.value, stats.lagrangian)
        diagnostics: dict[str, Any] = {
            "ess": sums.effective_sample_size,
            **verdicts.influence_diagnostics(stats.influence),
            "mean_ratio": sums.mass,
            "negative_share": sums.negative_share,
            "dual": values[0],
            "primal": values[1],
            "lagrangian": values[2],
            "primal_dual_gap": max(values) - min(values),
            "condition": solution.condition,
            "specification_p": stats.specification_p,
            "features_p": stats.features_p,
            "unsupported": stats.unsupported,
            "truncated_share": verdicts.truncated_share(data),
            "left_out_transitions": stats.n_left_out,
        }
        if self.ridge:
            diagnostics["ridge_bias"] = solution.ridge_bias
        std_error = verdicts.standard_error(stats.influence)
        return diagnostics, [
            verdicts.judge_finite(values[0], stats.influence),
            verdicts.judge_range(values[0], data, self._gamma, self.stationary or data.horizon is None, Level.REFUSE),
            verdicts.judge_width(stats.influence, data, self._gamma, self.stationary or data.horizon is None),
            *verdicts.linear_findings(diagnostics),
            verdicts.judge_mean_ratio(diagnostics["mean_ratio"]),
            verdicts.judge_negative(diagnostics["negative_share"]),
            verdicts.judge_gap(diagnostics["primal_dual_gap"], std_error),
            *self._own_findings(data, policy),
        ]
