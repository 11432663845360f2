"""Folds, resampling weights and replicates that are pure functions of an episode's key.

A weight depends on (key, seed, replicate) and nothing else, so shards, permutations, chunks, candidates and workers
agree to the bit, and any replicate can be made again without the ones before it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import pdtr

from ope.inference.checks import FloatArray, finite_array
from ope.inference.identifiers import hash_identifiers
from ope.inference.mixing import GOLDEN, UIntArray, mix64, mix_int, mix_key

__all__ = [
    "WeightKind",
    "fold_of",
    "hash_identifiers",
    "mean_replicates",
    "one_step_replicates",
    "resampling_weights",
    "uniforms",
    "weighted_sums",
]

WeightKind = Literal["bayesian", "poisson"]

_KINDS = ("bayesian", "poisson")
_FOLD_STREAM = -1  # replicates use the streams 0, 1, ...
_REDRAW = 2**40  # replicates drawn again come from streams nobody else asks for
_TILE = 2**16  # weights at a time: 512 KiB, which stays in the cache through all passes
_TILE_WIDTH = 2**12
_SHARE = 4  # tiles of replicates that a thread takes at a time
_SALT_KEY = 0x6F70655F6B657973
_POISSON_CDF: FloatArray = np.asarray(pdtr(np.arange(18), 1.0), dtype=np.float64)  # beyond: 1 in double precision
_POISSON_COMMON = 6


def uniforms(keys: UIntArray, seed: int = 0, stream: int = 0) -> FloatArray:
    """Draw one uniform number per key from a counter-based generator.

    Parameters
    ----------
    keys : ndarray of uint64 of shape (n,)
        Hashes of the identifiers, see `hash_identifiers`.
    seed, stream : int
        Different pairs give independent numbers. Replicate b of `resampling_weights` uses stream b; negative streams
        are free for other purposes (`fold_of` uses -1).

    Returns
    -------
    ndarray of shape (n,)
        Multiples of 2**-52 plus 2**-53: inside (0, 1), never an end.

    Notes
    -----
    u = mix(mix(key) + mix(stream, seed)), with the splitmix64 finaliser.

    Examples
    --------
    >>> import numpy as np
    >>> keys = hash_identifiers(["a", "b", "c"])
    >>> u = uniforms(keys, seed=1)
    >>> np.array_equal(u[::-1], uniforms(keys[::-1], seed=1))
    True
    """
    u: FloatArray = _uniform_tile(_spread(_as_keys("uniforms", keys)), _offsets(seed, _streams(stream, 1)))[0]
    return u


def fold_of(keys: UIntArray, n_folds: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Assign every episode to a fold by a hash of its key.

    Parameters
    ----------
    keys : ndarray of uint64 of shape (n,)
        Hashes of the episode identifiers; equal keys share a fold.
    n_folds : int
        At least 1.
    seed : int
        Another seed gives another partition.

    Returns
    -------
    ndarray of int64 of shape (n,)
        In 0, ..., n_folds - 1; every fold holds an episode.

    Raises
    ------
    ValueError
        If there are fewer distinct episodes than folds.

    Notes
    -----
    The fold is floor(n_folds * u), u a uniform hash of (key, seed): it does not depend on the other episodes. Only if
    that leaves a fold empty, as happens with few episodes, the fold is the rank of u modulo `n_folds`: balanced, and
    dependent on the set of episodes, though not on their order.

    Examples
    --------
    >>> fold_of(hash_identifiers(range(6)), 3).shape
    (6,)
    """
    if n_folds < 1:
        raise ValueError(f"fold_of: `n_folds` must be at least 1, got {n_folds!r}; 5 is usual.")
    u = uniforms(keys, seed, _FOLD_STREAM)
    folds = (u * n_folds).astype(np.int64)
    if len(np.unique(folds)) == n_folds:
        return folds
    distinct, ranks = np.unique(u, return_inverse=True)
    if len(distinct) < n_folds:
        raise ValueError(
            f"fold_of: `n_folds` must not exceed the number of distinct episodes, got {n_folds} folds for "
            f"{len(distinct)}; ask for fewer folds."
        )
    return ranks.astype(np.int64) % n_folds


def resampling_weights(
    keys: UIntArray, n_replicates: int, *, seed: int = 0, kind: WeightKind = "bayesian", start: int = 0
) -> FloatArray:
    """Draw bootstrap weights for episodes.

    Parameters
    ----------
    keys : ndarray of uint64 of shape (n,)
        Hashes of the episode identifiers.
    n_replicates : int
        Number of replicates B.
    seed : int
        Seed of the bootstrap.
    kind : {"bayesian", "poisson"}
        Exponential(1) weights (Bayesian bootstrap) or Poisson(1) counts (the episode bootstrap with a random total).
    start : int
        Index of the first replicate.

    Returns
    -------
    ndarray of shape (n_replicates, n)
        Entry (b, i) is a pure function of (keys[i], seed, start + b, kind). Rows are not normalised.

    References
    ----------
    Rubin (1981), "The Bayesian bootstrap", doi:10.1214/aos/1176345338. Chamandy et al. (2012), "Estimating uncertainty
    for massive data streams" (Poisson bootstrap).

    Examples
    --------
    >>> import numpy as np
    >>> keys = hash_identifiers(range(5))
    >>> whole = resampling_weights(keys, 10, kind="poisson")
    >>> np.array_equal(whole[4:, 2:], resampling_weights(keys[2:], 6, kind="poisson", start=4))
    True
    """
    _check_kind("resampling_weights", kind)
    spread = _spread(_as_keys("resampling_weights", keys))
    offsets = _offsets(seed, _streams(start, n_replicates))
    weights = np.empty((len(offsets), len(spread)))
    for rows, columns in _tiles(*weights.shape):
        weights[rows, columns] = _weight_tile(spread[columns], offsets[rows], kind)
    return weights


def one_step_replicates(
    value: npt.ArrayLike,
    influence: FloatArray,
    keys: UIntArray,
    n_replicates: int,
    *,
    seed: int = 0,
    kind: WeightKind = "bayesian",
    start: int = 0,
) -> FloatArray:
    """Draw bootstrap replicates of an estimate from its influence values, without refitting.

    Parameters
    ----------
    value : float or ndarray of shape (K,)
        The estimate, or K estimates on the same episodes.
    influence : ndarray of shape (n,) or (n, K)
        Influence values, centred, in the unit of `value`.
    keys : ndarray of uint64 of shape (n,)
        Hashes of the episode identifiers.
    n_replicates, seed, kind, start
        As in `resampling_weights`.

    Returns
    -------
    ndarray of shape (n_replicates,) or (n_replicates, K)
        V + sum_i c_bi psi_i / sum_i c_bi.

    Notes
    -----
    Exact for means, a linearisation otherwise. Weights are made in tiles and never held together. A Poisson replicate
    that drew no episode at all (probability exp(-n)) is drawn again from a stream of its own: as in the multinomial
    bootstrap, no replicate is empty.

    Examples
    --------
    >>> import numpy as np
    >>> psi = np.array([-1.0, 0.0, 1.0])
    >>> one_step_replicates(5.0, psi, hash_identifiers(range(3)), 4).shape
    (4,)
    """
    owner = "one_step_replicates"
    _check_kind(owner, kind)
    psi = finite_array(owner, "influence", influence, (1, 2))
    _as_keys(owner, keys, len(psi))
    sums, totals = weighted_sums(psi.reshape(len(psi), -1), keys, n_replicates, seed=seed, kind=kind, start=start)
    means = sums / totals[:, None]
    return np.asarray(value, dtype=np.float64) + means.reshape(len(means), *psi.shape[1:])


def mean_replicates(
    scores: FloatArray,
    keys: UIntArray,
    n_replicates: int,
    *,
    seed: int = 0,
    kind: WeightKind = "bayesian",
    start: int = 0,
) -> FloatArray:
    """Draw bootstrap replicates of a mean: sum_i c_bi x_i / sum_i c_bi, exactly.

    Parameters
    ----------
    scores : ndarray of shape (n,) or (n, K)
        Per-episode terms whose mean is the estimate.
    keys, n_replicates, seed, kind, start
        As in `one_step_replicates`.

    Returns
    -------
    ndarray of shape (n_replicates,) or (n_replicates, K)

    Examples
    --------
    >>> import numpy as np
    >>> keys = hash_identifiers(range(3))
    >>> x, c = np.array([1.0, 2.0, 6.0]), resampling_weights(keys, 4)
    >>> np.allclose(mean_replicates(x, keys, 4), c @ x / c.sum(axis=1))
    True
    """
    x = finite_array("mean_replicates", "scores", scores, (1, 2))
    mean = x.mean(axis=0)
    return one_step_replicates(mean, x - mean, keys, n_replicates, seed=seed, kind=kind, start=start)


def weighted_sums(
    columns: FloatArray,
    keys: UIntArray,
    n_replicates: int,
    *,
    seed: int = 0,
    kind: WeightKind = "bayesian",
    start: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """Return the weighted sums of columns and the sums of the weights, replicate by replicate.

    Parameters
    ----------
    columns : ndarray of shape (n, K)
    keys, n_replicates, seed, kind, start
        As in `one_step_replicates`.

    Returns
    -------
    tuple of ndarray
        sum_i c_bi x_ik of shape (n_replicates, K) and sum_i c_bi of shape (n_replicates,); no total is 0.

    Notes
    -----
    Weights are made in tiles and never held together. Replicates are shared among the threads that
    `joblib.parallel_config(n_jobs=...)` grants: a replicate is summed by one thread, in an order that does not depend on
    their number, so its bits do not either.

    Examples
    --------
    >>> import numpy as np
    >>> sums, totals = weighted_sums(np.ones((3, 1)), hash_identifiers(range(3)), 4)
    >>> np.allclose(sums[:, 0], totals)
    True
    """
    spread = _spread(_as_keys("weighted_sums", keys, len(columns)))
    return _sums(columns, spread, _streams(start, n_replicates), seed, kind)


def _sums(
    columns: FloatArray, spread: UIntArray, streams: UIntArray, seed: int, kind: WeightKind
) -> tuple[FloatArray, FloatArray]:
    offsets = _offsets(seed, streams)
    height = _SHARE * _tile_shape(len(spread))[0]
    parts = [offsets[first : first + height] for first in range(0, len(offsets), height)]
    if len(parts) == 1:
        found = [_share_of_sums(columns, spread, parts[0], kind)]
    else:
        from joblib import Parallel, delayed

        found = Parallel(require="sharedmem")(delayed(_share_of_sums)(columns, spread, part, kind) for part in parts)
    sums, totals = (np.concatenate(pieces) for pieces in zip(*found, strict=True))
    empty = totals == 0.0
    if empty.any():
        sums[empty], totals[empty] = _sums(columns, spread, streams[empty] + np.uint64(_REDRAW), seed, kind)
    return sums, totals


def _share_of_sums(
    columns: FloatArray, spread: UIntArray, offsets: UIntArray, kind: WeightKind
) -> tuple[FloatArray, FloatArray]:
    sums, totals = np.zeros((len(offsets), columns.shape[1])), np.zeros(len(offsets))
    for rows, part in _tiles(len(offsets), len(spread)):
        weights = _weight_tile(spread[part], offsets[rows], kind)
        sums[rows] += weights @ columns[part]
        totals[rows] += weights.sum(axis=1)
    return sums, totals


def _tiles(n_rows: int, n_columns: int) -> Iterator[tuple[slice, slice]]:
    height, width = _tile_shape(n_columns)
    for row in range(0, n_rows, height):
        for column in range(0, n_columns, width):
            yield slice(row, row + height), slice(column, column + width)


def _tile_shape(n_columns: int) -> tuple[int, int]:
    width = max(1, min(n_columns, _TILE_WIDTH))
    return max(1, _TILE // width), width


def _weight_tile(spread: UIntArray, offsets: UIntArray, kind: WeightKind) -> FloatArray:
    u = _uniform_tile(spread, offsets)
    if kind == "poisson":
        return _poisson_quantile(u)
    np.log(u, out=u)
    return np.negative(u, out=u)


def _poisson_quantile(u: FloatArray) -> FloatArray:
    """Invert the Poisson(1) distribution function: comparisons for the common counts, a search for the rest."""
    counts = np.zeros(u.shape, dtype=np.int8)
    for threshold in _POISSON_CDF[:_POISSON_COMMON]:
        counts += u > threshold
    quantiles = counts.astype(np.float64)
    rare = counts == _POISSON_COMMON
    quantiles[rare] = np.searchsorted(_POISSON_CDF, u[rare])
    return quantiles


def _uniform_tile(spread: UIntArray, offsets: UIntArray) -> FloatArray:
    bits = mix64(offsets[:, None] + spread[None, :])
    bits >>= np.uint64(12)  # 52 bits: half a unit more is still exact, and below 1
    u = bits.astype(np.float64)
    u += 0.5
    u *= 2.0**-52
    return u


def _spread(keys: UIntArray) -> UIntArray:
    return mix_key(keys, _SALT_KEY)


def _streams(start: int, count: int) -> UIntArray:
    if operator.index(count) < 1:
        raise ValueError(f"resampling: `n_replicates` must be at least 1, got {count!r}; 2000 is usual.")
    return np.uint64(operator.index(start) % 2**64) + np.arange(count, dtype=np.uint64)


def _offsets(seed: int, streams: UIntArray) -> UIntArray:
    return mix_key(streams, mix_int(operator.index(seed) * GOLDEN + 1))


def _as_keys(owner: str, keys: Any, expected: int | None = None) -> UIntArray:
    array = np.asarray(keys)
    if array.dtype != np.uint64 or array.ndim != 1:
        raise TypeError(
            f"{owner}: `keys` must be a one-dimensional array of uint64, got {array.dtype} of shape {array.shape}; "
            "make keys with hash_identifiers."
        )
    if expected is not None and len(array) != expected:
        raise ValueError(f"{owner}: `keys` must have one entry per episode ({expected}), got {len(array)}.")
    return array


def _check_kind(owner: str, kind: str) -> None:
    if kind not in _KINDS:
        raise ValueError(f"{owner}: `kind` must be one of {_KINDS}, got {kind!r}.")
