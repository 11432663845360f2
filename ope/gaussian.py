"""Gaussian distributions with a diagonal covariance: the density, and quadrature rules for expectations."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

HERMITE_POINTS = 5
MAX_TENSOR_NODES = 125


def log_density(points: FloatArray, mean: FloatArray, std: FloatArray) -> FloatArray:
    """Return the log density of independent Gaussians.

    Parameters
    ----------
    points, mean : ndarray of shape (n, k)
    std : ndarray that broadcasts to (n, k)
        Standard deviations, positive.

    Returns
    -------
    ndarray of shape (n,)

    Notes
    -----
    sum_j [-z_j^2 / 2 - log std_j - log(2 pi) / 2], z = (x - mean) / std.

    Examples
    --------
    >>> log_density(np.array([[0.0]]), np.array([[0.0]]), np.array([1.0])).round(4)
    array([-0.9189])
    """
    z = (points - mean) / std
    log_scale = np.log(std) + 0.5 * math.log(2.0 * math.pi)
    return np.asarray(-(0.5 * z * z + log_scale).sum(axis=1))


def standard_normal_nodes(dim: int) -> tuple[FloatArray, FloatArray]:
    """Return nodes and weights whose weighted mean approximates an expectation under the standard normal distribution.

    Parameters
    ----------
    dim : int
        Dimension k, at least 1.

    Returns
    -------
    nodes : ndarray of shape (m, k)
    weights : ndarray of shape (m,)
        Positive, summing to 1.

    Notes
    -----
    While 5^k <= 125 the tensor product of 5-point Gauss-Hermite rules: exact for polynomials of degree 9 in each
    coordinate. Above, the 2k points +-sqrt(k) e_j with equal weights: exact for polynomials of total degree 3.

    References
    ----------
    Arasaratnam & Haykin (2009), "Cubature Kalman filters", doi:10.1109/TAC.2009.2019800.

    Examples
    --------
    >>> nodes, weights = standard_normal_nodes(2)
    >>> nodes.shape, round(float(weights @ nodes[:, 0] ** 4), 12)
    ((25, 2), 3.0)
    """
    return _tensor_hermite(dim) if HERMITE_POINTS**dim <= MAX_TENSOR_NODES else _spherical_cubature(dim)


def _tensor_hermite(dim: int) -> tuple[FloatArray, FloatArray]:
    points, weights = np.polynomial.hermite_e.hermegauss(HERMITE_POINTS)
    grid = np.meshgrid(*[points] * dim, indexing="ij")
    masses = np.meshgrid(*[weights / weights.sum()] * dim, indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, dim), np.prod(masses, axis=0).ravel()


def _spherical_cubature(dim: int) -> tuple[FloatArray, FloatArray]:
    radius = math.sqrt(dim) * np.eye(dim)
    return np.concatenate([radius, -radius]), np.full(2 * dim, 0.5 / dim)
