"""The DICE family in linear classes: the system in reduced coordinates, its solution, its influence. Tabular by one-hot features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators import _saddle as saddle
from ope.estimators._dice_flow import FlowBlock as FlowBlock
from ope.estimators._dice_flow import FlowFeatures, FlowSums, Kept, encoded, flow_blocks, flow_sums
from ope.estimators._dice_problem import (
    DiceProblem,
    DiceValues,
    Functions,
    Lagrangian,
    Terminal,
    following,
    steps_of,
)
from ope.policy import Policy
from ope.validation import FloatArray, IntArray

RANK_TOLERANCE = 1e-10


# -------------------------------------------------------------------- reduced coordinates


def span(gram: FloatArray) -> FloatArray:
    """Return a basis (p, rank) of the span of features in which they have unit second moments."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > RANK_TOLERANCE * max(float(values[-1]), np.finfo(float).tiny)
    return np.asarray(vectors[:, kept] / np.sqrt(values[kept]))


@dataclass(frozen=True)
class Coordinates:
    """Bases of the span of the logged features of each of S functions: coefficients = basis @ reduced coefficients.

    Parameters
    ----------
    bases : list of ndarray of shape (p, r_s)
    """

    bases: list[FloatArray]

    @property
    def first(self) -> IntArray:
        """Where the reduced coefficients of each function begin, shape (n_values + 1,)."""
        return np.concatenate([[0], np.cumsum([basis.shape[1] for basis in self.bases])])

    def expand(self, reduced: FloatArray) -> FloatArray:
        """Return the coefficients of every function, shape (n_values, p)."""
        parts = np.split(reduced, self.first[1:-1])
        return np.stack([basis @ part for basis, part in zip(self.bases, parts, strict=True)])

    def flatten(self, moments: FloatArray) -> FloatArray:
        """Return moments of the features (n_values, p) in reduced coordinates, shape (sum r_s,)."""
        return np.concatenate([row @ basis for row, basis in zip(moments, self.bases, strict=True)])

    def reduce(self, rows: FloatArray, steps: IntArray) -> FloatArray:
        """Return rows of features, each of the function `steps`, in reduced coordinates, shape (w, sum r_s)."""
        first = self.first
        out = np.zeros((len(rows), int(first[-1])))
        for k, (row, s) in enumerate(zip(rows, steps, strict=True)):
            out[k, first[s] : first[s + 1]] = row @ self.bases[s]
        return out


def flow_matrix(sums: FlowSums, zeta: Coordinates, nu: Coordinates, gamma: float, total: float) -> Any:
    """Return A = E_D zeta-features (nu-features - gamma their next)': dense, or sparse where large and time-indexed."""
    Z, N = zeta.bases, nu.bases
    if len(Z) == 1:
        return Z[0].T @ (sums.here[0] - gamma * sums.onward[0]) @ N[0] / total
    blocks: list[list[Any]] = [[None] * len(N) for _ in Z]
    for s in range(len(Z)):
        blocks[s][s] = sparse.csc_matrix(Z[s].T @ sums.here[s] @ N[s] / total)
        if s + 1 < len(N):
            blocks[s][s + 1] = sparse.csc_matrix(-gamma * Z[s].T @ sums.onward[s] @ N[s + 1] / total)
    A = sparse.bmat(blocks, format="csc")
    return A if max(A.shape) > saddle.DENSE else A.toarray()


# -------------------------------------------------------------------- fitted functions


@dataclass(frozen=True)
class LinearDiceModel:
    """nu_t = phi'theta_t and zeta_t = phi'u_t; one of each serves all steps where stationary.

    Parameters
    ----------
    features : FlowFeatures
    theta, u : ndarray of shape (n_values, q), (n_values, p)
        The last entry is that of the absorbing state, where there is one.
    terminal : {"absorbing", "zero"}
    gamma : float
    horizon : int or None
    """

    features: FlowFeatures
    theta: FloatArray
    u: FloatArray
    terminal: Terminal
    gamma: float
    horizon: int | None

    def evaluate(self, policy: Policy, data: LoggedDataset, features: FlowFeatures | None = None) -> DiceValues:
        """Evaluate nu and zeta on the rows of a log; `features` may be kept ones."""
        features = self.features if features is None else features
        parts = [self._evaluate_block(features(policy, block), block) for block in data.blocks()]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        absorbing = self.terminal == "absorbing"
        edge = [part[:, -1] if absorbing else np.zeros(len(part)) for part in (self.theta, self.u)]
        return DiceValues(columns[0], columns[1], columns[2], columns[3], edge[0], edge[1])

    def _evaluate_block(self, flow: FlowBlock, block: LoggedDataset) -> tuple[FloatArray, ...]:
        flow = encoded(flow, block, self.terminal, self.gamma, self.horizon)
        s = steps_of(block.offsets, len(self.u))
        return (
            np.einsum("nq,nq->n", flow.nu, self.theta[s]),
            np.einsum("np,np->n", flow.zeta, self.u[s]),
            np.einsum("nq,nq->n", flow.nu_next, following(self.theta)[s]),
            flow.nu_start @ self.theta[0],
        )


@dataclass(frozen=True)
class LinearFit:
    """A solved problem: the fitted functions, their adjoint, and how the system was posed.

    Parameters
    ----------
    model, adjoint : LinearDiceModel
        `adjoint` says how the value moves when the conditions of the saddle point are disturbed.
    lam, adjoint_lam : float
    point : SaddlePoint
    value : float
        Dual value.
    flow_shift : float
        Its distance from that of the exact Bellman flow in the same features; NaN where there are other features of nu.
    """

    model: LinearDiceModel
    adjoint: LinearDiceModel
    lam: float
    adjoint_lam: float
    point: saddle.SaddlePoint
    value: float
    flow_shift: float


# -------------------------------------------------------------------- the solver


class LinearSolver:
    """Solves a `DiceProblem` in linear classes.

    Parameters
    ----------
    problem : DiceProblem
    features : FlowFeatures
    ridge : float
        Penalty on the squared coefficients of zeta.
    fixed_metric : bool
        nu is penalised by the squares of its coefficients, the norm of a kernel space, instead of by E_D nu^2.
    """

    def __init__(
        self, problem: DiceProblem, features: FlowFeatures, *, ridge: float = 0.0, fixed_metric: bool = False
    ) -> None:
        self.problem, self.ridge = problem, ridge
        self.kept = Kept.of(features, problem.data)
        self.sums = sums = flow_sums(problem, self.kept)
        self.zeta = Coordinates([span(gram / problem.total) for gram in sums.zeta_gram])
        self.nu = Coordinates(
            [np.eye(len(gram)) if fixed_metric else span(gram / problem.total) for gram in sums.nu_gram]
        )
        self.system = self._system()
        self._scale = 1e-300  # of the largest zeta met so far

    def _system(self) -> saddle.System:
        problem, sums = self.problem, self.sums
        A = flow_matrix(sums, self.zeta, self.nu, problem.gamma, problem.total)
        start = np.zeros((problem.n_values, len(sums.start)))
        start[0] = sums.start / problem.episode_weight.sum() / problem.mass
        b, m = (self.zeta.flatten(part) / problem.total for part in (sums.reward, sums.mean))
        penalty = None
        if self.ridge:
            penalty = sparse.block_diag([self.ridge * basis.T @ basis for basis in self.zeta.bases], format="csc")
            penalty = penalty if sparse.issparse(A) else penalty.toarray()
        return saddle.System(A, self.nu.flatten(start), b, m, penalty)

    def solve(self) -> LinearFit:
        """Solve it."""
        lagrangian = self.problem.lagrangian
        cut = self._cut if lagrangian.positive else saddle.no_cut
        point = saddle.solve(self.system, lagrangian, cut, None if lagrangian.power == 2.0 else self._slope)
        gradient = self.problem.mass * self.system.b
        adjoint = saddle.adjoint(self.system, lagrangian, point, gradient)
        return LinearFit(
            self._model(point.theta, point.u),
            self._model(adjoint.theta, adjoint.u),
            point.lam,
            adjoint.lam,
            point,
            float(gradient @ point.u),
            self._flow_shift(point, gradient),
        )

    def _flow_shift(self, point: saddle.SaddlePoint, gradient: FloatArray) -> float:
        if point.exact or not self.system.square:
            return 0.0 if point.exact else float("nan")
        exact = saddle.Inverse(self.system.A)(self.system.h, transposed=True)
        return float(gradient @ (point.u - exact))

    def _model(self, theta: FloatArray, u: FloatArray) -> LinearDiceModel:
        problem = self.problem
        coefficients = self.nu.expand(theta), self.zeta.expand(u)
        return LinearDiceModel(
            self.kept.inner, *coefficients, problem.lagrangian.terminal, problem.gamma, problem.horizon
        )

    def _zeta(self, flow: FlowBlock, offsets: IntArray, u: FloatArray) -> FloatArray:
        return np.asarray(np.einsum("np,np->n", flow.zeta, u[steps_of(offsets, len(u))]))

    def _slope(self, reduced: FloatArray) -> FloatArray:
        """Return E_D of the zeta-features times f'(zeta), in reduced coordinates."""
        u, lagrangian, problem = self.zeta.expand(reduced), self.problem.lagrangian, self.problem
        total = np.zeros_like(u)
        for block, flow, _, rows in flow_blocks(problem, self.kept):
            gradient = problem.row_weight[rows] * lagrangian.slope(self._zeta(flow, block.offsets, u))
            np.add.at(total, steps_of(block.offsets, len(u)), gradient[:, None] * flow.zeta)
        if lagrangian.terminal == "absorbing":
            total[:, -1] += problem.absorbing_weight * lagrangian.slope(u[:, -1])
        return self.zeta.flatten(total) / problem.total

    def _cut(self, reduced: FloatArray) -> FloatArray:
        """Return the features of the rows in which zeta is most negative, in reduced coordinates; none where it is not."""
        u = self.zeta.expand(reduced)
        found = [self._negative_absorbing(u)]
        for block, flow, _, own in flow_blocks(self.problem, self.kept):
            steps = steps_of(block.offsets, len(u))
            zeta = np.where(self.problem.row_weight[own] > 0, self._zeta(flow, block.offsets, u), 0.0)
            self._scale = max(self._scale, float(np.abs(zeta).max()))
            _, rows = np.unique(zeta, return_index=True)  # the lowest first, equal rows once
            rows = rows[: max(30, 3 * len(u))]
            found.append((zeta[rows], flow.zeta[rows], steps[rows]))
        values, features, steps = (np.concatenate(column) for column in zip(*found, strict=True))
        low = values < -saddle.TOLERANCE * self._scale
        return self.zeta.reduce(features[low], steps[low])

    def _negative_absorbing(self, u: FloatArray) -> tuple[FloatArray, FloatArray, IntArray]:
        there = np.flatnonzero(self.problem.absorbing_weight > 0)
        features = np.zeros((len(there), u.shape[1]))
        features[:, -1] = 1.0
        return u[there, -1], features, there


# -------------------------------------------------------------------- influence


def influence(
    problem: DiceProblem, fit: LinearFit, *, fixed_metric: bool = False, features: FlowFeatures | None = None
) -> FloatArray:
    """Return the centred influence of every episode on the dual value, shape (n_episodes,).

    Parameters
    ----------
    problem : DiceProblem
    fit : LinearFit
    features : FlowFeatures, optional
        Kept ones.
    fixed_metric : bool
        As for `LinearSolver`.

    Notes
    -----
    With eta, chi and v the adjoint of zeta, nu and lambda, episode i adds to the conditions of the saddle point, each times its
    adjoint, sum_t x_it + k chi(s_i0) with x = mass zeta r + eta (a_R r + gamma nu' - nu - lambda - a_zeta f'(zeta)) + zeta (gamma
    chi' - chi) + a_nu chi nu + v (1 - zeta). Rows on which zeta >= 0 binds stay bound.
    """
    switches, gamma = effective(problem.lagrangian, fit.point), problem.gamma
    models = (fit.model, fit.adjoint)
    values, adjoint = (model.evaluate(problem.policy, problem.data, features) for model in models)

    def terms(f: Functions, g: Functions, r: FloatArray | float) -> FloatArray:
        error = (
            float(switches.reward) * r + gamma * f.nu_next - f.nu - fit.lam - switches.a_zeta * switches.slope(f.zeta)
        )
        x = (
            problem.mass * f.zeta * r
            + g.zeta * error
            + f.zeta * (gamma * g.nu_next - g.nu)
            + fit.adjoint_lam * (1.0 - f.zeta)
        )
        return np.asarray(x if fixed_metric else x + switches.a_nu * g.nu * f.nu)

    live = terms(values.live, adjoint.live, problem.data.rewards)
    edge = terms(values.absorbing, adjoint.absorbing, 0.0)
    return episode_sums(problem, live, edge, adjoint.nu_start)


def episode_sums(problem: DiceProblem, live: FloatArray, edge: FloatArray, start: FloatArray) -> FloatArray:
    """Return the influence of every episode on E_D x + k E_0 y, shape (n_episodes,).

    Parameters
    ----------
    problem : DiceProblem
    live, edge : ndarray of shape (n,), (n_values,)
        x on the logged and on the absorbing rows.
    start : ndarray of shape (n_episodes,)
        y.
    """
    mean = problem.mean(live, edge)
    rows = ragged.segment_sum(np.where(problem.used, live - mean, 0.0), problem.data.offsets)
    per_row = problem.episode_weight.sum() / problem.total
    psi = per_row * (rows + problem.absorbing_sum(edge - mean)) + (start - problem.start_mean(start)) / problem.mass
    return np.asarray(problem.episode_weight * psi)


def effective(lagrangian: Lagrangian, point: saddle.SaddlePoint) -> Lagrangian:
    """Return the switches of the problem that was solved in the end."""
    return saddle.limit_of(lagrangian) if point.relaxed else lagrangian
