"""The text format of libsvm, libFM and SVMrank: `label [qid:query] index:value index:value ... [# comment]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from recstack.data.datasets.files import read_bytes, read_numbers
from recstack.errors import DataError


def read_libsvm(path: str | Path, fields: Mapping[str, int] | None = None, *, label: str = "label") -> pl.DataFrame:
    """A libsvm or libFM file (.gz too) as a frame, in the file's order.

    Args:
        fields: {name: its first index}. Each field's indices reach to the next field's first; at most one of them is
            set in a row, to 1. None keeps the rows sparse.
        label: name of the label's column.

    Returns:
        `label` (float64) and, with fields, one int64 column each that counts from 0 (null where none is set); without,
        `index` and `value`, lists of int64 and float64.

    Raises:
        DataError: a line not of that format, or that does not fit the fields; with the line.
    """
    labels, row, index, value, _ = parse(read_bytes(Path(path)), str(path))
    if fields is None:
        offsets = np.searchsorted(row, np.arange(len(labels) + 1))
        return pl.DataFrame({label: labels, "index": _as_lists(index, offsets), "value": _as_lists(value, offsets)})
    starts = sorted(fields.items(), key=lambda f: f[1])
    if len(index) and index.min() < starts[0][1]:
        line = row[int(index.argmin())] + 1
        raise DataError(f"{str(path)!r}, line {line}: index {index.min()} is before the first field, {starts[0][0]!r}.")
    odd = np.flatnonzero(value != 1)
    if len(odd):
        raise DataError(
            f"{str(path)!r}, line {row[odd[0]] + 1}: index {index[odd[0]]} has value {value[odd[0]]:g}; a field's value is "
            "1. Read this file without fields=."
        )
    found: dict[str, pl.Series] = {}
    for (name, first), (_, end) in pairwise([*starts, ("", np.iinfo(np.int64).max)]):
        mine = (index >= first) & (index < end)
        lines = row[mine]
        twice = np.flatnonzero(np.diff(lines) == 0)
        if len(twice):
            raise DataError(f"{str(path)!r}, line {lines[twice[0]] + 1}: field {name!r} is set twice.")
        column = np.full(len(labels), -1, np.int64)
        column[lines] = index[mine] - first
        found[name] = pl.Series(name, column).replace(-1, None)
    return pl.DataFrame({label: labels, **{name: found[name] for name in fields}})


def parse(text: bytes, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Labels float64 [lines]; row, index (int64) and value (float64) of each `index:value`; the query of each line.

    Comments and empty lines count nothing, so `row` is the line only where there are none.
    """
    text = re.sub(rb"#[^\n]*", b"", text)
    ranked = text.count(b"qid:")
    values, offsets = read_numbers(text.replace(b"qid:", b"0 ").replace(b":", b" "), source)
    lengths = np.diff(offsets)
    wrong = np.flatnonzero((lengths % 2 == 0) & (lengths > 0))
    if len(wrong):
        raise DataError(f"{source!r}, line {wrong[0] + 1}: 'label index:value index:value ...' is due.")
    lengths = lengths[lengths > 0]
    if not len(lengths):
        raise DataError(f"{source!r} is empty; lines of 'label index:value ...' are due.")
    first = np.cumsum(lengths) - lengths
    pair = np.ones(len(values), bool)
    pair[first] = False
    index, value = values[pair].reshape(-1, 2).T
    row = np.repeat(np.arange(len(lengths)), (lengths - 1) // 2)
    query = None
    if ranked:
        if ranked != len(lengths):
            raise DataError(f"{source!r}: {ranked} of {len(lengths)} lines have a qid:.")
        head = np.searchsorted(row, np.arange(len(lengths)))  # the qid comes first in its line
        query = value[head].astype(np.int64)
        index, value, row = (np.delete(a, head) for a in (index, value, row))
    if not (index == np.floor(index)).all():
        raise DataError(f"{source!r} holds {index[index != np.floor(index)][0]:g} as an index; a whole number is due.")
    return values[first], row, index.astype(np.int64), value, query


def _as_lists(flat: np.ndarray, offsets: np.ndarray) -> pl.Series:
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))))
