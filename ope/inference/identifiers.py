"""Hashes of identifiers: the keys from which folds and resampling weights are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
from pandas.util import hash_array

from ope.inference.checks import name_rows
from ope.inference.mixing import UIntArray, mix64, mix_key, wrap_int64

_Objects = npt.NDArray[np.object_]

_OWNER = "hash_identifiers"
_SIPHASH_KEY = "ope.episode.keys"  # 16 bytes, as siphash wants
_SALT_INTEGER, _SALT_FLOAT, _SALT_TEXT, _SALT_INSTANT, _SALT_DURATION, _SALT_TUPLE = range(1, 7)
_NANOSECONDS = {
    "W": 604_800 * 10**9,
    "D": 86_400 * 10**9,
    "h": 3_600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "ns": 1,
}


def hash_identifiers(ids: Any) -> UIntArray:
    """Hash identifiers to 64 bits, the same in every process, on every machine and for every storage type.

    Parameters
    ----------
    ids : array-like of shape (n,)
        Integers, floats, strings, dates, times, tuples, or any other objects whose `str()` identifies them; NumPy,
        pandas or Arrow-backed.

    Returns
    -------
    ndarray of uint64 of shape (n,)
        Equal identifiers have equal hashes: 3 as int8, int64, 3.0 or an object; a string in any string type, in a
        categorical or as UTF-8 bytes; an instant in any unit or time zone. The integer 1 and the string "1" differ.

    Raises
    ------
    ValueError
        If an identifier is missing, or `ids` is not one-dimensional.
    TypeError
        If an identifier has no text of its own (the default `repr` holds a memory address; sets have no order).

    Examples
    --------
    >>> import numpy as np
    >>> hash_identifiers(np.array([1, 2], dtype=np.int8))
    array([...], dtype=uint64)
    >>> bool((hash_identifiers([1, 2]) == hash_identifiers(np.array([1.0, 2.0]))).all())
    True
    """
    values = _objects(ids) if isinstance(ids, (list, tuple)) else np.asarray(ids)
    if values.ndim != 1:
        raise ValueError(
            f"{_OWNER}: `ids` must be one-dimensional, got shape {values.shape}; pass one identifier per episode."
        )
    return _hash_values(values, np.arange(len(values)))


def _objects(values: Iterable[Any]) -> _Objects:
    return np.fromiter(values, dtype=object)


def _hash_values(values: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> UIntArray:
    """Hash an array of any dtype; `rows` are the positions that error messages name."""
    kind = values.dtype.kind
    if kind in "biu":
        return _hash_integers(values)
    if kind == "f":
        return _hash_floats(values, rows)
    if kind == "M":
        return _hash_ticks(values, rows, _SALT_INSTANT)
    if kind == "m":
        return _hash_ticks(values, rows, _SALT_DURATION)
    return _hash_objects(values.astype(object), rows)


def _hash_integers(values: npt.NDArray[Any]) -> UIntArray:
    hashes = mix_key(wrap_int64(values), _SALT_INTEGER)
    if values.dtype == np.uint64:
        large = values > np.iinfo(np.int64).max
        if large.any():
            hashes[large] = _hash_text(values[large].astype(object))
    return hashes


def _hash_floats(values: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> UIntArray:
    _refuse_missing(np.isnan(values), rows)
    numbers = values.astype(np.float64)
    hashes = mix_key(numbers.view(np.uint64), _SALT_FLOAT)
    # A column of integers becomes floats as soon as a row is missing: equal numbers keep their hash.
    whole = (np.abs(numbers) < 2.0**63) & (np.trunc(numbers) == numbers)
    hashes[whole] = _hash_integers(numbers[whole].astype(np.int64))
    return hashes


def _hash_ticks(values: npt.NDArray[Any], rows: npt.NDArray[np.int64], salt: int) -> UIntArray:
    """Hash instants or durations by their nanoseconds modulo 2**64, so that the unit does not matter."""
    _refuse_missing(np.isnat(values), rows)
    if np.datetime_data(values.dtype)[0] in ("Y", "M") and values.dtype.kind == "M":
        values = values.astype("datetime64[D]")
    unit, count = np.datetime_data(values.dtype)
    if unit not in _NANOSECONDS:
        raise TypeError(
            f"{_OWNER}: `ids` of type {values.dtype} are not supported; cast them to nanoseconds or strings."
        )
    return mix_key(wrap_int64(values) * np.uint64(_NANOSECONDS[unit] * count), salt)


def _hash_text(values: _Objects) -> UIntArray:
    text = _objects(v if isinstance(v, (str, bytes)) else str(v) for v in values)
    return mix_key(hash_array(text, hash_key=_SIPHASH_KEY, categorize=False), _SALT_TEXT)


def _hash_objects(values: _Objects, rows: npt.NDArray[np.int64]) -> UIntArray:
    kinds = _KindOfType()
    codes = np.fromiter((kinds[kind] for kind in map(type, values)), dtype=np.int8, count=len(values))
    hashes = np.empty(len(values), dtype=np.uint64)
    for code in np.unique(codes):
        chosen = np.flatnonzero(codes == code)
        hashes[chosen] = _HANDLERS[code][1](values[chosen], rows[chosen])
    return hashes


class _KindOfType(dict[type, int]):
    """Which handler serves a type, worked out once per type and not once per value."""

    def __missing__(self, kind: type) -> int:
        is_missing = kind is type(None) or kind.__name__ in ("NaTType", "NAType")
        code = 0 if is_missing else next(i for i, (types, _) in enumerate(_HANDLERS) if issubclass(kind, types))
        self[kind] = code
        return code


def _missing_objects(_values: _Objects, rows: npt.NDArray[np.int64]) -> UIntArray:
    raise _missing(rows)


def _integer_objects(values: _Objects, _rows: npt.NDArray[np.int64]) -> UIntArray:
    try:
        return _hash_integers(values.astype(np.int64))
    except OverflowError:
        fits = np.fromiter((-(2**63) <= int(v) < 2**63 for v in values), dtype=bool, count=len(values))
        hashes = _hash_text(_objects(int(v) for v in values))
        hashes[fits] = _hash_integers(values[fits].astype(np.int64))
        return hashes


def _float_objects(values: _Objects, rows: npt.NDArray[np.int64]) -> UIntArray:
    return _hash_floats(values.astype(np.float64), rows)


def _text_objects(values: _Objects, _rows: npt.NDArray[np.int64]) -> UIntArray:
    return _hash_text(values)


def _instant_objects(values: _Objects, rows: npt.NDArray[np.int64]) -> UIntArray:
    return _hash_ticks(np.array([_instant(v) for v in values]), rows, _SALT_INSTANT)


def _instant(value: Any) -> np.datetime64:
    if isinstance(value, np.datetime64):
        return value
    if hasattr(value, "to_datetime64"):  # pandas.Timestamp: keeps nanoseconds, converts to UTC
        return np.datetime64(value.to_datetime64())
    return np.datetime64(value.astimezone(timezone.utc).replace(tzinfo=None) if value.tzinfo else value)


def _duration_objects(values: _Objects, rows: npt.NDArray[np.int64]) -> UIntArray:
    ticks = [v.to_timedelta64() if hasattr(v, "to_timedelta64") else np.timedelta64(v) for v in values]
    return _hash_ticks(np.array(ticks), rows, _SALT_DURATION)


def _tuple_objects(values: _Objects, rows: npt.NDArray[np.int64]) -> UIntArray:
    lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    hashes = mix_key(lengths.view(np.uint64), _SALT_TUPLE)
    for position in range(int(lengths.max())):
        long = np.flatnonzero(lengths > position)
        entries = _objects(value[position] for value in values[long])
        hashes[long] = mix64(mix_key(hashes[long], _SALT_TUPLE) + _hash_objects(entries, rows[long]))
    return hashes


def _other_objects(values: _Objects, _rows: npt.NDArray[np.int64]) -> UIntArray:
    for kind in set(map(type, values)):
        if _text_is_address(kind) or issubclass(kind, (set, frozenset)):
            raise TypeError(
                f"{_OWNER}: `ids` of type {kind.__name__} have no text that is the same in every process; "
                "use integers, strings, times or tuples of them."
            )
    return _hash_text(values)


def _text_is_address(kind: Any) -> bool:
    return kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__


def _refuse_missing(bad: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64]) -> None:
    if bad.any():
        raise _missing(rows[bad])


def _missing(rows: npt.NDArray[np.int64]) -> ValueError:
    where = name_rows(np.ones(len(rows)), rows)
    return ValueError(f"{_OWNER}: `ids` must not be missing, got missing values at {where}; name every episode.")


_Handler = Callable[[_Objects, npt.NDArray[np.int64]], UIntArray]

# np.timedelta64 is a NumPy integer: durations come before integers.
_HANDLERS: tuple[tuple[tuple[type, ...], _Handler], ...] = (
    ((), _missing_objects),
    ((timedelta, np.timedelta64), _duration_objects),
    ((int, np.integer, np.bool_), _integer_objects),
    ((float, np.floating), _float_objects),
    ((str, bytes), _text_objects),
    ((datetime, np.datetime64), _instant_objects),
    ((tuple,), _tuple_objects),
    ((object,), _other_objects),
)
