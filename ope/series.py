"""Single columns of a data frame as NumPy arrays and back, for NumPy, nullable, Arrow and categorical dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ope.validation import FloatArray, IntArray

Values = npt.NDArray[Any]
Column = Any  # pandas-stubs cannot express a Series of any dtype

NUMERIC_KINDS = "biuf"
MAX_EXACT = 2.0**53
ISO = (
    r"(?P<time>(?:[0-9]{4}-[0-9]{2}(?:-[0-9]{2})?|[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?"
    r"|[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?))(?P<zone>Z|[+-][0-9]{2}:?[0-9]{2})?"
)
WHOLE = "0|-?[1-9][0-9]*"
FALLING = "ordered categories whose values do not rise"


def is_numeric(column: Column) -> bool:
    """Return whether the column holds booleans or real numbers, whatever stores them.

    Examples
    --------
    >>> is_numeric(pd.Series([1, None], dtype="Int64")), is_numeric(pd.Series([1, 2], dtype="category"))
    (True, False)
    """
    return not isinstance(column.dtype, pd.CategoricalDtype) and column.dtype.kind in NUMERIC_KINDS


def numbers(column: Column) -> FloatArray:
    """Return a numeric column as floats, NaN where missing; float32 is kept.

    Examples
    --------
    >>> numbers(pd.Series([1, None], dtype="Int64"))
    array([ 1., nan])
    """
    if column.dtype == np.float32:
        return np.asarray(column)
    if isinstance(column.dtype, (np.dtype, pd.SparseDtype)):
        return np.asarray(column, dtype=np.float64)
    values: FloatArray = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def truths(column: Column) -> FloatArray:
    """Return a column of booleans or of zeros and ones as floats, NaN where it is missing or something else.

    Examples
    --------
    >>> truths(pd.Series([True, None, False], dtype=object))
    array([ 1., nan,  0.])
    """
    if not is_numeric(column) and pd.api.types.infer_dtype(column, skipna=True) == "boolean":
        column = column.astype("boolean")
    if not is_numeric(column):
        return np.full(len(column), np.nan)
    values = numbers(column)
    return np.where((values == 0) | (values == 1), values, np.nan)


def values_of(column: Column) -> Values:
    """Return a column of identifiers or times without missing ones: integers stay integers, zoned instants become UTC.

    Examples
    --------
    >>> values_of(pd.Series(["b", "a"], dtype="category")).tolist()
    ['b', 'a']
    >>> values_of(pd.Series(pd.to_datetime(["2020-01-01 01:00"]).tz_localize("Europe/Paris").as_unit("s")))
    array(['2020-01-01T00:00:00'], dtype='datetime64[s]')
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        values: Values = values_of(pd.Series(dtype.categories))[column.cat.codes.to_numpy()]
        return values
    if isinstance(dtype, pd.DatetimeTZDtype) or _arrow_zone(dtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    if isinstance(column.dtype, (np.dtype, pd.SparseDtype)):
        return np.asarray(column)
    numpy_dtype = _numpy_dtype(column.dtype)
    return np.asarray(column.astype(numpy_dtype) if numpy_dtype.kind == "M" else column.to_numpy(dtype=numpy_dtype))


def series_of(values: Values, dtype: Any = None) -> Column:
    """Return an array from `values_of` as a column of the dtype it had; None: of the dtype that pandas chooses.

    Examples
    --------
    >>> series_of(np.array(["b", "a"], dtype=object), pd.CategoricalDtype(["b", "a"], ordered=True)).cat.codes.tolist()
    [0, 1]
    """
    if isinstance(dtype, pd.CategoricalDtype):
        codes = pd.Index(values_of(pd.Series(dtype.categories))).get_indexer(pd.Index(values))
        return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype))
    if isinstance(dtype, pd.DatetimeTZDtype) or _arrow_zone(dtype):
        instants: Column = pd.Series(values)
        return instants.dt.tz_localize("UTC").astype(dtype)
    if _is_dictionary(dtype):
        return pd.Series(pd.arrays.ArrowExtensionArray(_dictionary_array(values, dtype.pyarrow_dtype)))
    if dtype is None or isinstance(dtype, np.dtype):
        return pd.Series(values, dtype=dtype)
    return pd.Series(values).astype(dtype) if values.dtype.kind == "M" else pd.Series(pd.array(values, dtype=dtype))


def _arrow_zone(dtype: Any) -> bool:
    return isinstance(dtype, pd.ArrowDtype) and getattr(dtype.pyarrow_dtype, "tz", None) is not None


def _is_dictionary(dtype: Any) -> bool:
    return isinstance(dtype, pd.ArrowDtype) and bool(pa.types.is_dictionary(dtype.pyarrow_dtype))


def _dictionary_array(values: Values, dtype: Any) -> Any:
    encoded = pa.array(values, type=dtype.value_type).dictionary_encode()
    codes = encoded.indices.cast(dtype.index_type)
    return pa.DictionaryArray.from_arrays(codes, encoded.dictionary, ordered=dtype.ordered)


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the NumPy dtype that holds a column of numbers or instants exactly, else object."""
    exact: Any = object
    if isinstance(dtype, pd.ArrowDtype) and pa.types.is_timestamp(dtype.pyarrow_dtype):
        exact = f"datetime64[{dtype.pyarrow_dtype.unit}]"
    elif dtype.kind in NUMERIC_KINDS:
        exact = getattr(dtype, "numpy_dtype", exact)
    numpy_dtype: np.dtype[Any] = np.dtype(exact)
    return numpy_dtype


def with_missing(column: Column, positions: IntArray) -> Column:
    """Take the entries at `positions`, a missing one for each -1; integers and booleans become nullable for it.

    Examples
    --------
    >>> with_missing(pd.Series([True, False]), np.array([0, -1])).dtype
    BooleanDtype
    """
    if (positions >= 0).all():
        return column.take(positions).reset_index(drop=True)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biu":
        column = column.convert_dtypes()
    return column.reset_index(drop=True).reindex(positions).reset_index(drop=True)


def sort_key(column: Column) -> Values:
    """Return an array that orders and tells apart rows as the column does, cheap to sort; TypeError if it has no order.

    Examples
    --------
    >>> sort_key(pd.Series(["b", "a", "b"]))
    array([1, 0, 1])
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes: Values = column.cat.codes.to_numpy()
        return codes
    if is_numeric(column) or column.dtype.kind in "mM":
        values = values_of(column)
        if values.dtype.kind != "O":
            return values
    if column.dtype.kind == "c":
        raise TypeError("complex numbers")
    if _is_dictionary(column.dtype):
        column = column.astype(pd.ArrowDtype(column.dtype.pyarrow_dtype.value_type))
    codes, uniques = pd.factorize(column)
    kinds = {type(value) for value in uniques} if column.dtype == object else set()
    if len(kinds) > 1:
        raise TypeError("mixed types " + ", ".join(sorted(kind.__name__ for kind in kinds)))
    ranks = np.empty(len(uniques), dtype=np.int64)
    ranks[np.argsort(uniques)] = np.arange(len(uniques))
    return ranks[codes]


def as_values(column: Column) -> Column:
    """Return categories, dictionaries and integer objects as the values that they stand for; ordered text stays as it is.

    Examples
    --------
    >>> as_values(pd.Series(pd.Categorical([10, 9], categories=[10, 9]))).tolist()
    [10, 9]
    """
    if _is_dictionary(column.dtype):
        return column.astype(pd.ArrowDtype(column.dtype.pyarrow_dtype.value_type))
    if isinstance(column.dtype, pd.CategoricalDtype):
        if column.cat.ordered and pd.api.types.infer_dtype(column.cat.categories) == "string":
            return column
        return pd.Series(column.cat.categories.take(column.cat.codes), index=column.index, name=column.name)
    if column.dtype == object and pd.api.types.infer_dtype(column) == "integer":
        return pd.Series(column.tolist(), index=column.index, name=column.name)
    return column


def order_flaw(column: Column) -> str | None:
    """Return why a column without missing values does not sort by time, or None: text, or categories that fall.

    Text sorts by time if it is ISO 8601, or digits of one width. Of ordered text categories only numbers are doubted.

    Examples
    --------
    >>> order_flaw(pd.Series(["9", "10"]))
    "text such as '9', in which 10 is before 9"
    >>> order_flaw(pd.Series(["09", "10"])), order_flaw(pd.Series(["2020-09-30", "2020-10-01"]))
    (None, None)
    """
    values: Column
    values, ordered = as_values(column) if _is_dictionary(column.dtype) else column, False
    if isinstance(column.dtype, pd.CategoricalDtype):
        values, ordered = pd.Series(column.cat.categories.take(np.unique(column.cat.codes))), column.cat.ordered
    is_text = pd.api.types.infer_dtype(values) == "string"
    if ordered:
        numbers: Column = pd.to_numeric(values, errors="coerce") if is_text else values
        return None if numbers.isna().any() or numbers.is_monotonic_increasing else FALLING
    if not is_text or len(text := pd.Series(values.unique(), dtype=object)) == 1 or _sorts_by_time(text):
        return None
    return f"text such as {text[0]!r}, in which 10 is before 9"


def _sorts_by_time(text: Column) -> bool:
    if text.str.fullmatch("[0-9]+").all():
        return len(set(text.str.len())) == 1
    parts = text.str.extract(f"^{ISO}$")
    zones, separators = parts["zone"].fillna(""), text.str.slice(10, 11)
    # Behind a fraction, "Z" sorts after a digit: with a zone all must have one width.
    aligned = len(set(text.str.len())) == 1 or not zones.any()
    single = len(set(zones)) == 1 and not {" ", "T"} <= set(separators)
    return bool(parts["time"].notna().all()) and single and aligned


def are_whole(values: Values) -> bool:
    """Return whether numbers are whole and so small that their differences are exact.

    Examples
    --------
    >>> are_whole(np.array([0.0, 2.0])), are_whole(np.array([0.5])), are_whole(np.array([2**64 - 1], np.uint64))
    (True, False, True)
    """
    if values.dtype.kind in "iu":
        return True
    return values.dtype.kind == "f" and bool(((np.abs(values) < MAX_EXACT) & (values == np.floor(values))).all())


def rewritten(values: Values) -> tuple[IntArray, Values]:
    """Return which values are whole numbers or the text of one, and those the other way round: as text, as numbers.

    Examples
    --------
    >>> rewritten(np.array(["7", "07", "b"]))
    (array([0]), array([7]))
    >>> rewritten(np.array([7.0, 0.5]))
    (array([0]), array(['7'], dtype=object))
    """
    column: Column = pd.Series(values)
    kind = pd.api.types.infer_dtype(column)
    if kind in ("string", "bytes"):
        text = column.str.decode("utf-8", errors="replace") if kind == "bytes" else column
        rows = np.flatnonzero(text.str.fullmatch(WHOLE))
        return rows, _integers(text.iloc[rows])
    if kind not in ("integer", "floating"):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    rows = np.flatnonzero(column == column // 1)
    digits = column.iloc[rows].astype(np.int64) if kind == "floating" else column.iloc[rows]
    return rows, np.asarray(digits.astype(str), dtype=object)


def _integers(text: Column) -> Values:
    """Return the numbers that texts of digits stand for, however large."""
    return np.array([*map(int, text)]) if len(text) else np.zeros(0, dtype=np.int64)
