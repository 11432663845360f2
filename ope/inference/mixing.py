"""Bit mixing: counter-based random numbers without state."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

UIntArray = npt.NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def mix64(bits: UIntArray) -> UIntArray:
    """Apply the splitmix64 finaliser in place: a bijection in which every input bit flips half of the output.

    Parameters
    ----------
    bits : ndarray of uint64
        Overwritten.

    Returns
    -------
    ndarray of uint64
        `bits` itself.

    References
    ----------
    Steele, Lea & Flood (2014), "Fast splittable pseudorandom number generators", doi:10.1145/2660193.2660195.

    Examples
    --------
    The first number of the reference implementation with seed 0:

    >>> import numpy as np
    >>> hex(int(mix64(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0]))
    '0xe220a8397b1dcdaf'
    """
    shifted = np.empty_like(bits)
    for shift, factor in _STEPS:
        np.right_shift(bits, np.uint64(shift), out=shifted)
        bits ^= shifted
        bits *= np.uint64(factor)
    np.right_shift(bits, np.uint64(31), out=shifted)
    bits ^= shifted
    return bits


def mix_key(bits: UIntArray, salt: int) -> UIntArray:
    """Mix a copy of `bits` under a salt: different salts give unrelated hashes of the same bits."""
    return mix64(bits * np.uint64(GOLDEN) + np.uint64(salt & _MASK))


def mix_int(number: int) -> int:
    """Mix any Python integer, reduced modulo 2**64."""
    return int(mix64(np.array([number & _MASK], dtype=np.uint64))[0])


def wrap_int64(values: npt.NDArray[Any]) -> UIntArray:
    """View integers as the 64 bits of their two's complement."""
    return values.astype(np.int64).view(np.uint64)
