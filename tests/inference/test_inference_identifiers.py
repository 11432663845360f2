"""Keys of episodes: stable across storage types, processes and versions, and well mixed."""

from __future__ import annotations

import subprocess
import sys
import uuid
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ope.inference import hash_identifiers

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(z: int) -> int:
    """Splitmix64's finaliser on Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def rotated(x: int, bits: int) -> int:
    return ((x << bits) | (x >> (64 - bits))) & MASK


def sip_rounds(v: list[int], count: int) -> None:
    for _ in range(count):
        v[0] = (v[0] + v[1]) & MASK
        v[1] = rotated(v[1], 13) ^ v[0]
        v[0] = rotated(v[0], 32)
        v[2] = (v[2] + v[3]) & MASK
        v[3] = rotated(v[3], 16) ^ v[2]
        v[0] = (v[0] + v[3]) & MASK
        v[3] = rotated(v[3], 21) ^ v[0]
        v[2] = (v[2] + v[1]) & MASK
        v[1] = rotated(v[1], 17) ^ v[2]
        v[2] = rotated(v[2], 32)


def siphash(data: bytes, key: bytes) -> int:
    """SipHash-2-4 as published, on Python integers."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) % 256])
    for start in range(0, len(padded), 8):
        word = int.from_bytes(padded[start : start + 8], "little")
        v[3] ^= word
        sip_rounds(v, 2)
        v[0] ^= word
    v[2] ^= 0xFF
    sip_rounds(v, 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def key_of_text(text: str) -> int:
    return mixed((mixed(siphash(text.encode(), b"ope.episode.keys")) * GOLDEN + 3) & MASK)


def one(value: Any) -> int:
    return int(hash_identifiers([value])[0])


@given(st.integers(-(2**63), 2**63 - 1))
@settings(deadline=None, derandomize=True)
def test_integers_agree_with_plain_splitmix(value: int) -> None:
    expected = mixed((value * GOLDEN + 1) & MASK)
    assert one(value) == expected
    assert int(hash_identifiers(np.array([value], dtype=np.int64))[0]) == expected


@given(st.text(max_size=30))
@settings(deadline=None, derandomize=True)
def test_text_agrees_with_plain_siphash(text: str) -> None:
    assert one(text) == key_of_text(text)


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", ">i8", "float32", "float64", "object", "Int16", "Int64"]
)
def test_equal_numbers_hash_alike(dtype: str) -> None:
    values = [-3, 0, 1, 127]
    assert np.array_equal(hash_identifiers(pd.Series(values, dtype=dtype)), hash_identifiers(np.array(values)))


def test_unsigned_pyarrow_and_categorical_numbers_hash_alike() -> None:
    expected = hash_identifiers(np.array([3, 1, 3]))
    for dtype in ("uint8", "uint64", "int32[pyarrow]", "category"):
        assert np.array_equal(hash_identifiers(pd.Series([3, 1, 3], dtype=dtype)), expected), dtype


def test_large_integers_keep_their_identity() -> None:
    values = [2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**127, -1]
    keys = hash_identifiers(values)
    assert len(set(keys.tolist())) == len(values)
    assert np.array_equal(hash_identifiers(np.array(values[:3], dtype=np.uint64)), keys[:3])
    assert np.array_equal(hash_identifiers(list(np.array(values[:3], dtype=np.uint64))), keys[:3])


@pytest.mark.parametrize("dtype", ["object", "str", "string", "string[python]", "string[pyarrow]", "category"])
def test_equal_strings_hash_alike(dtype: str) -> None:
    values = ["b", "a", "Zürich", "b"]
    expected = np.array([key_of_text(value) for value in values], dtype=np.uint64)
    assert np.array_equal(hash_identifiers(pd.Series(values, dtype=dtype)), expected)
    assert np.array_equal(hash_identifiers(np.array(values)), expected)
    assert np.array_equal(hash_identifiers([value.encode() for value in values]), expected)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_instants_hash_alike_in_every_unit_and_zone(unit: Any) -> None:
    utc = pd.Series(pd.to_datetime(["2020-03-01T12:00:00", "1960-01-01T00:00:01"])).dt.as_unit(unit)
    expected = hash_identifiers(np.array(["2020-03-01T12:00:00", "1960-01-01T00:00:01"], dtype="datetime64[s]"))
    aware = utc.dt.tz_localize("UTC")
    python = [datetime(2020, 3, 1, 12), datetime(1960, 1, 1, 0, 0, 1, tzinfo=timezone.utc)]
    forms = (utc, aware, aware.dt.tz_convert("Asia/Tokyo"), utc.astype(object), python, list(utc.to_numpy()))
    for form in forms:
        assert np.array_equal(hash_identifiers(form), expected)


def test_instants_keep_nanoseconds_and_calendar_units() -> None:
    fine = np.array(["2020-01-01T00:00:00.000000001", "2020-01-01T00:00:00"], dtype="datetime64[ns]")
    assert len(set(hash_identifiers(fine).tolist())) == 2
    assert np.array_equal(hash_identifiers(pd.Series(fine).astype(object)), hash_identifiers(fine))
    assert hash_identifiers(np.array(["2020"], dtype="datetime64[Y]"))[0] == hash_identifiers(fine)[1]
    assert hash_identifiers(np.array(["2020-01"], dtype="datetime64[M]"))[0] == hash_identifiers(fine)[1]


def test_durations_hash_alike() -> None:
    forms = [timedelta(hours=1), pd.Timedelta(hours=1), np.timedelta64(60, "m"), np.timedelta64(3600, "s")]
    assert len(set(hash_identifiers(forms).tolist())) == 1
    assert hash_identifiers(np.array([360], dtype="timedelta64[10s]"))[0] == one(timedelta(hours=1))
    assert hash_identifiers(np.array([3_600_000], dtype="timedelta64[ms]"))[0] == one(timedelta(hours=1))


def test_tuples_hash_by_their_entries() -> None:
    plain = [(1, "a"), (2, "b"), (1,), ("a", 1), (), ((1, 2), 3)]
    keys = hash_identifiers(plain)
    assert len(set(keys.tolist())) == len(plain)
    assert one((np.int8(1), np.str_("a"))) == keys[0]
    assert hash_identifiers(pd.MultiIndex.from_tuples(plain[:2])).tolist() == keys[:2].tolist()


def test_other_objects_hash_by_their_text() -> None:
    for value in (uuid.UUID(int=7), date(2020, 1, 2), Decimal("1.5"), pd.Period("2020-01", freq="M"), 1 + 2j):
        assert one(value) == key_of_text(str(value))


def test_mixed_types_hash_as_they_do_alone() -> None:
    values = [1, "1", 1.5, datetime(2020, 1, 1), (1, 2), True, np.float32(2.0)]
    assert hash_identifiers(values).tolist() == [one(value) for value in values]
    assert one(1) != one("1")
    assert one(2) == one(2.0) == one(np.float32(2.0))


def test_floats_are_told_apart() -> None:
    values = [0.5, -0.5, 1e300, float("inf"), 5e-324, 2.0**63, 0.1]
    assert len(set(hash_identifiers(values).tolist())) == len(values)
    assert one(-0.0) == one(0.0) == one(0)


@pytest.mark.parametrize(
    "values",
    [
        [1, None, 3],
        np.array([1.0, np.nan]),
        ["a", float("nan")],
        pd.Series(["a", None], dtype="string"),
        pd.Series([1, None], dtype="Int64"),
        np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"),
        [datetime(2020, 1, 1), pd.NaT],
        [datetime(2020, 1, 1), np.datetime64("NaT", "s")],
        [(1, 2), (1, None)],
    ],
)
def test_missing_identifiers_are_named(values: Any) -> None:
    with pytest.raises(ValueError, match=r"hash_identifiers: `ids` must not be missing.*rows 1 \(1 in all\)"):
        hash_identifiers(values)


class Anonymous:
    pass


@pytest.mark.parametrize("value", [Anonymous(), frozenset({"a"}), np.timedelta64(1, "Y"), np.datetime64(1, "ps")])
def test_identifiers_without_stable_text_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"hash_identifiers: `ids` of type"):
        hash_identifiers([value])


def test_tables_and_scalars_are_refused() -> None:
    for ids in (np.zeros((2, 2)), "abc", 3):
        with pytest.raises(ValueError, match="one-dimensional"):
            hash_identifiers(ids)


def test_no_identifiers_give_no_keys() -> None:
    assert hash_identifiers([]).shape == (0,)
    assert hash_identifiers([]).dtype == np.uint64


def test_another_process_agrees() -> None:
    program = (
        "from ope.inference import hash_identifiers as h; from datetime import datetime as d;"
        "print(h([1, 'patient', 2.5, d(2020, 1, 1), (1, 'a')]).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert done.stdout.strip() == str(hash_identifiers([1, "patient", 2.5, datetime(2020, 1, 1), (1, "a")]).tolist())


@pytest.mark.parametrize("form", ["integers", "strings", "floats", "tuples"])
def test_successive_identifiers_are_well_mixed(form: str) -> None:
    n = 20_000
    numbers = np.arange(n)
    ids: Any = {
        "integers": numbers,
        "strings": [f"p{i}" for i in numbers],
        "floats": numbers / 8,
        "tuples": [(int(i) // 100, int(i) % 100) for i in numbers],
    }[form]
    keys = hash_identifiers(ids)
    assert len(np.unique(keys)) == n
    bits = np.unpackbits(keys.view(np.uint8).reshape(n, 8), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(n)
    flips = np.bitwise_xor(bits[1:], bits[:-1]).mean(axis=0)
    assert np.abs(flips - 0.5).max() < 4.5 * 0.5 / np.sqrt(n)
