"""The saddle point of the DICE Lagrangian for linear classes: one symmetric system, or a convex program where zeta >= 0 binds.

In coordinates in which nu and zeta have unit second moments, zeta = phi'u and nu = phi'theta:
max_u min_{theta, lambda} h'theta + lambda (1 - m'u) + lambda^2 / (2 norm) + u'(a_R b - A theta) + a_nu |theta|^2 / 2
- a_zeta |u|^2 / 2 - u' ridge u / 2, with C u >= 0 over the logged rows. Pure linear algebra: nothing of a log is known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import nnls
from scipy.sparse.linalg import splu

from ope.estimators._dice_problem import Lagrangian
from ope.validation import FloatArray

DENSE = 800
MAX_ROUNDS = 200
TOLERANCE = 1e-9
SINGULAR = 1e15
INFEASIBLE = 1e-11

Cut = Callable[[FloatArray], FloatArray]


class Inverse:
    """Solve with a square matrix and with its transpose; a singular one by its pseudo-inverse.

    Examples
    --------
    >>> solve = Inverse(np.array([[2.0, 1.0], [0.0, 1.0]]))
    >>> solve(np.array([2.0, 0.0])), solve(np.array([2.0, 0.0]), transposed=True)
    (array([1., 0.]), array([ 1., -1.]))
    """

    def __init__(self, matrix: Any) -> None:
        self.condition = float("nan")
        self._lu = _sparse_lu(matrix) if sparse.issparse(matrix) else None
        if self._lu is None:
            dense = matrix.toarray() if sparse.issparse(matrix) else matrix
            self.condition = float(np.linalg.cond(dense)) if dense.size else 1.0
            self._inverse = np.linalg.inv(dense) if self.condition < SINGULAR else np.linalg.pinv(dense)

    def __call__(self, rhs: FloatArray, transposed: bool = False) -> FloatArray:
        if self._lu is not None:
            return np.asarray(self._lu.solve(np.ascontiguousarray(rhs), "T" if transposed else "N"))
        return np.asarray((self._inverse.T if transposed else self._inverse) @ rhs)


def _sparse_lu(matrix: Any) -> Any:
    try:
        return splu(sparse.csc_matrix(matrix))
    except RuntimeError:  # exactly singular
        return None


@dataclass(frozen=True)
class System:
    """The moments of the log that the saddle point needs.

    Parameters
    ----------
    A : ndarray or sparse matrix of shape (p, q)
        E_D zeta-features (nu-features - gamma their next)'.
    h : ndarray of shape (q,)
        k E_0 of the nu-features.
    b, m : ndarray of shape (p,)
        E_D of the zeta-features times the reward, and alone.
    ridge : ndarray or sparse matrix of shape (p, p) or None
    """

    A: Any
    h: FloatArray
    b: FloatArray
    m: FloatArray
    ridge: Any = None

    @property
    def square(self) -> bool:
        """Whether there are as many nu- as zeta-features."""
        return bool(self.A.shape[0] == self.A.shape[1])


@dataclass(frozen=True)
class SaddlePoint:
    """A saddle point and how it was reached.

    Parameters
    ----------
    u, theta : ndarray of shape (p,), (q,)
    lam : float
    exact : bool
        The Bellman flow, the norm and the positivity all hold.
    relaxed : bool
        They cannot all hold, so that the Lagrangian has no saddle point: the flow holds in least squares, which is the limit
        of small a_nu.
    active : ndarray of shape (w, p)
        Rows on which zeta >= 0 binds.
    residual : float
        Largest violation of the optimality conditions, relative.
    rounds : int
        Times that constraints were added.
    condition : float
        Of A; NaN where it was not computed.
    """

    u: FloatArray
    theta: FloatArray
    lam: float
    exact: bool
    relaxed: bool
    active: FloatArray
    residual: float
    rounds: int
    condition: float


def no_cut(u: FloatArray) -> FloatArray:
    """Return no constraint at all, shape (0, p).

    Examples
    --------
    >>> no_cut(np.zeros(3)).shape
    (0, 3)
    """
    return np.empty((0, len(u)))


def solve(system: System, lagrangian: Lagrangian, cut: Cut = no_cut, slope: Cut | None = None) -> SaddlePoint:
    """Return the saddle point.

    Parameters
    ----------
    system : System
    lagrangian : Lagrangian
        Its positivity is what `cut` says.
    cut : callable
        Rows C (w, p) of the most violated of the constraints C u >= 0; none where u meets them all.
    slope : callable, optional
        E_D of the zeta-features times f'(zeta), shape (p,), where it is not u itself.

    Examples
    --------
    A single state and action with gamma .5: zeta = 1, and nu = 2 k r.

    >>> one = System(np.array([[0.5]]), np.array([0.5]), np.array([3.0]), np.array([1.0]))
    >>> point = solve(one, Lagrangian(reward=True, norm_penalty=np.inf))
    >>> point.u, point.theta, point.exact
    (array([1.]), array([6.]), True)
    """
    point = _exact(system, lagrangian, cut, slope)
    if point is not None:
        return point
    if lagrangian.a_nu > 0.0:
        return _program(system, lagrangian, cut)
    return replace(_program(system, limit_of(lagrangian), cut), relaxed=True)


def limit_of(lagrangian: Lagrangian) -> Lagrangian:
    """Return the switches that give the limit of small a_nu, where the flow cannot hold exactly.

    Examples
    --------
    >>> limit_of(Lagrangian(a_zeta=1.0, reward=True)).a_nu
    1.0
    """
    return replace(lagrangian, a_nu=1.0, a_zeta=0.0, reward=False)


def _exact(system: System, lagrangian: Lagrangian, cut: Cut, slope: Cut | None) -> SaddlePoint | None:
    """Return the u of the exact flow if it is optimal, which needs a_nu = 0 or nothing that pulls away from it."""
    pulled = lagrangian.a_nu > 0.0 and (lagrangian.a_zeta > 0.0 or lagrangian.reward)
    if not system.square or system.ridge is not None or pulled:
        return None
    inverse = Inverse(system.A)
    u = inverse(system.h, transposed=True)
    excess = float(system.m @ u) - 1.0
    if (lagrangian.norm and abs(excess) > 1e-8) or len(cut(u)):
        return None
    theta = np.zeros_like(u)
    if lagrangian.a_nu == 0.0:
        gradient = u if slope is None else slope(u)
        theta = inverse(float(lagrangian.reward) * system.b - lagrangian.a_zeta * gradient)
    flow = float(np.abs(system.A.T @ u - system.h).max()) / max(float(np.abs(system.h).max()), 1e-300)
    return SaddlePoint(u, theta, 0.0, True, False, no_cut(u), flow, 0, inverse.condition)


# -------------------------------------------------------------------- the convex program in u


class Quadratic:
    """The u-problem of a_nu > 0: minimise u'Mu/2 - g'u with the norm, M = A A'/a_nu + a_zeta + ridge.

    Parameters
    ----------
    system : System
    lagrangian : Lagrangian
    """

    def __init__(self, system: System, lagrangian: Lagrangian) -> None:
        p = len(system.b)
        identity = sparse.identity(p) if sparse.issparse(system.A) else np.eye(p)
        M = system.A @ system.A.T / lagrangian.a_nu + lagrangian.a_zeta * identity
        self.M = M if system.ridge is None else M + system.ridge
        self.g = float(lagrangian.reward) * system.b + system.A @ system.h / lagrangian.a_nu
        self.inverse = Inverse(self.M)
        self.m = system.m if lagrangian.norm else np.zeros(p)
        self._raised = self.inverse(self.m)
        slack = 1.0 / lagrangian.norm_penalty if lagrangian.norm else 0.0
        self._weight = float(self.m @ self._raised) + slack

    def project(self, x: FloatArray) -> FloatArray:
        """Return the u of the gradient x where the norm is 0 instead of 1."""
        out = self.inverse(x)
        if self._weight == 0.0:
            return out
        return np.asarray(out - np.multiply.outer(self._raised, self.m @ out / self._weight).reshape(out.shape))

    def multiplier(self, x: FloatArray, target: float) -> float:
        """Return lambda for the gradient x and the norm `target`."""
        return 0.0 if self._weight == 0.0 else float(self.m @ self.inverse(x) - target) / self._weight

    def free(self) -> FloatArray:
        """Return the minimiser without positivity."""
        u = self.project(self.g)
        return u if self._weight == 0.0 else u + self._raised / self._weight


def _program(system: System, lagrangian: Lagrangian, cut: Cut) -> SaddlePoint:
    problem = Quadratic(system, lagrangian)
    free = problem.free()
    u, rows, force, rounds = free, no_cut(free), np.zeros(0), 0
    while rounds < MAX_ROUNDS:
        violated = cut(u)
        if not len(violated):
            break
        rows, rounds = np.vstack([rows, violated]), rounds + 1
        force = _multipliers(problem, rows, free)
        if not np.isfinite(force).all():  # no u meets these constraints, nor more of them
            u, rows, force = free, no_cut(free), np.zeros(0)
            break
        # Rows that do not bind go: the next round finds them again if they must, and there are never many more than unknowns.
        rows, force = rows[force > 0.0], force[force > 0.0]
        u = free + problem.project(rows.T @ force)
    pull = problem.g + rows.T @ force
    lam = problem.multiplier(pull, 1.0)
    residual = float(np.abs(problem.M @ u + lam * problem.m - pull).max()) / max(float(np.abs(pull).max()), 1e-300)
    if lagrangian.norm:
        residual = max(residual, abs(1.0 - float(problem.m @ u) + lam / lagrangian.norm_penalty))
    if len(cut(u)):
        residual = float("inf")
    theta = (system.A.T @ u - system.h) / lagrangian.a_nu
    active = rows[force > 1e-10 * force.max(initial=0.0)]
    return SaddlePoint(u, theta, lam, False, False, active, residual, rounds, problem.inverse.condition)


def _multipliers(problem: Quadratic, rows: FloatArray, free: FloatArray) -> FloatArray:
    """Return the mu >= 0 of rows u >= 0 where u = free + P rows'mu, by the least-distance program of Lawson and Hanson.

    In z with u = free + L z, L L' = P: min |z| with (rows L) z >= h = -rows free. With R'R = T = rows P rows' the non-negative
    least squares of [R; h'] y on (0, ..., 0, 1) give mu = y / (1 - h'y); where h'y = 1 no u meets the constraints, and mu is infinite.
    """
    T, h = rows @ problem.project(np.ascontiguousarray(rows.T)), -(rows @ free)
    values, vectors = np.linalg.eigh(0.5 * (T + T.T))
    size, far = max(float(values[-1]), 1e-300), float(np.abs(h).max())
    kept = values > 1e-13 * size
    root = np.sqrt(values[kept] / size)[:, None] * vectors[:, kept].T
    target = np.append(np.zeros(len(root)), 1.0)
    y, _ = nnls(np.vstack([root, h / far]), target)
    slack = 1.0 - float(h @ y) / far
    return np.asarray(y * (far / size) / slack) if slack > INFEASIBLE else np.full(len(y), np.inf)


# -------------------------------------------------------------------- its derivative


@dataclass(frozen=True)
class Adjoint:
    """How J = mass b'u moves when the stationarity conditions in u, theta and lambda are disturbed: by u, theta, lam times it."""

    u: FloatArray
    theta: FloatArray
    lam: float


def adjoint(system: System, lagrangian: Lagrangian, point: SaddlePoint, gradient: FloatArray) -> Adjoint:
    """Return the adjoint of gradient'u at a saddle point; the rows on which zeta = 0 binds stay bound.

    Parameters
    ----------
    system : System
    lagrangian : Lagrangian
    point : SaddlePoint
    gradient : ndarray of shape (p,)
    """
    if point.exact:
        return Adjoint(np.zeros_like(point.u), Inverse(system.A)(gradient), 0.0)
    if point.relaxed:
        lagrangian = limit_of(lagrangian)
    problem = Quadratic(system, lagrangian)
    v, pull, C = problem.project(gradient), gradient, point.active
    if len(C):
        T = C @ problem.project(np.ascontiguousarray(C.T))
        force = -np.linalg.lstsq(T, C @ v, rcond=1e-12)[0]
        pull = gradient + C.T @ force
        v = problem.project(pull)
    return Adjoint(v, system.A.T @ v / lagrangian.a_nu, problem.multiplier(pull, 0.0))
