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


def is_misordered_text(column: Column) -> bool:
    """Return whether the column holds numbers written as text whose order is not that of the numbers.

    Examples
    --------
    >>> is_misordered_text(pd.Series(["9", "10"])), is_misordered_text(pd.Series(["09", "10"]))
    (True, False)
    """
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.infer_dtype(column) != "string":
        return False
    text = pd.Series(column.unique(), dtype=object).sort_values()
    values = pd.to_numeric(text, errors="coerce")
    return bool(values.notna().all()) and not values.is_monotonic_increasing
