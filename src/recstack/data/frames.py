"""Data frames of any library in, polars inside, `Raw` columns out."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from recstack.data.raw import Raw
from recstack.errors import DataError, SchemaError


def as_frame(frame: Any, what: str = "events") -> pl.DataFrame:
    """A polars DataFrame of anything tabular: polars, pandas, pyarrow, what narwhals reads, an Arrow stream, a dict.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if isinstance(frame, dict):
        return pl.DataFrame(frame)
    import narwhals as nw

    native = nw.from_native(frame, pass_through=True)
    if isinstance(native, nw.LazyFrame):
        native = native.collect()
    if isinstance(native, nw.DataFrame):
        return native.to_polars()
    if hasattr(frame, "__arrow_c_stream__"):
        return pl.DataFrame(pa.table(frame))
    raise DataError(
        f"{what} is a {type(frame).__name__}; give a polars, pandas or pyarrow table, or a dict of columns."
    )


def as_raw(column: pl.Series) -> Raw:
    """A polars column as numpy: text is dictionary-encoded, lists get offsets.

    Raises:
        SchemaError: a dtype that no feature takes, by name.
    """
    dtype = column.dtype
    if dtype == pl.List or dtype == pl.Array:
        array = column.cast(pl.List(dtype.inner)).to_arrow()  # type: ignore[attr-defined]
        lengths = column.list.len() if dtype == pl.List else column.arr.len()
        offsets = np.zeros(len(column) + 1, np.int64)
        np.cumsum(lengths.fill_null(0).to_numpy(), out=offsets[1:])
        inner = as_raw(pl.Series(column.name, array.flatten(), dtype=dtype.inner))  # type: ignore[attr-defined]
        if inner.offsets is not None:
            raise SchemaError(f"Column {column.name!r} holds lists of lists; a feature takes lists of values.")
        return Raw(inner.values, inner.codes, offsets)
    if dtype == pl.Null:
        return Raw(np.zeros(0, np.int64), np.full(len(column), -1))
    if dtype.is_integer() or dtype == pl.Boolean:
        null = None
        if column.null_count():
            null = column.is_null().to_numpy()
            column = column.fill_null(0) if dtype.is_integer() else column.fill_null(False)
        values = np.ascontiguousarray(column.to_numpy())
        values = values.view(np.int64) if dtype == pl.UInt64 else values.astype(np.int64, copy=False)
        return Raw(values, None if null is None else np.where(null, -1, np.arange(len(null))))
    if dtype.is_float() or dtype.is_decimal():
        return Raw(column.cast(pl.Float64).to_numpy())  # a null is NaN there
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        encoded = column.cast(pl.String).to_arrow().dictionary_encode()
        values = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
        return Raw(values, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False))
    if dtype.is_temporal():
        return Raw(column.to_physical().cast(pl.Int64).fill_null(0).to_numpy().view("datetime64[us]"))
    raise SchemaError(f"Column {column.name!r} holds {dtype}; a feature takes numbers, text, or lists of these.")


def factorised(column: pl.Series) -> Raw:
    """A single-valued column with codes into distinct values, null -1."""
    raw = as_raw(column)
    if raw.offsets is not None:
        raise SchemaError(f"Column {column.name!r} holds lists where one value per row is due.")
    if raw.kind == "text":
        return raw
    encoded = column.to_arrow().dictionary_encode()
    values = as_raw(pl.Series(column.name, encoded.dictionary)).values
    return Raw(values, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False))


def as_times(column: pl.Series, what: str) -> np.ndarray:
    """int64 [n] that keeps the order: whole numbers as they are, dates and times in their own unit.

    Raises:
        DataError: nulls, text, or fractions (whose int64 would make ties of different times).
    """
    if column.null_count():
        raise DataError(f"{what} {column.name!r} holds {column.null_count()} nulls; drop or fill those rows.")
    if column.dtype.is_temporal():
        return column.to_physical().cast(pl.Int64).to_numpy()
    if column.dtype.is_integer():
        return column.cast(pl.Int64).to_numpy()
    if column.dtype.is_float():
        values = column.to_numpy()
        if np.array_equal(values, np.floor(values)):  # False for NaN and for infinities' sums alike
            return values.astype(np.int64)
        raise DataError(f"{what} {column.name!r} holds fractions; give whole numbers (say milliseconds) or datetimes.")
    raise DataError(f"{what} {column.name!r} holds {column.dtype}; give whole numbers or datetimes.")
