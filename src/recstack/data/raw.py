"""One column of raw values, as numpy holds it: what readers, logs and live requests all turn into before encoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recstack.errors import SchemaError
from recstack.kernels import jagged

KINDS = {
    "int": "whole numbers",
    "float": "fractional numbers",
    "text": "text",
    "time": "dates or times",
    "null": "nothing but nulls",
}


@dataclass(frozen=True, eq=False)
class Raw:
    """A column: `values` as they are, or `values[codes]` with code -1 for null; lists add `offsets`.

    Args:
        values: int64, float64 or text (object) array. A NaN is a null.
        codes: int [n] or None; positions in `values`, so that work on repeated values is done once.
        offsets: int64 [rows + 1] or None; row i holds the flat entries offsets[i] to offsets[i + 1].
    """

    values: np.ndarray
    codes: np.ndarray | None = None
    offsets: np.ndarray | None = None

    def __len__(self) -> int:
        """Rows."""
        return self.flat_size if self.offsets is None else len(self.offsets) - 1

    @property
    def flat_size(self) -> int:
        return len(self.values) if self.codes is None else len(self.codes)

    @property
    def kind(self) -> str:
        """int, float, text, time or null."""
        if not len(self.values):
            return "null"
        return {"f": "float", "M": "time", "O": "text"}.get(self.values.dtype.kind, "int")

    def flat(self) -> np.ndarray:
        """The flat values; a null is NaN (numbers become float64) or None (text)."""
        if self.codes is None:
            return self.values
        if not len(self.codes) or self.codes.min() >= 0:
            return self.values[self.codes]
        null = self.codes < 0
        dtype = object if self.kind == "text" else np.float64
        out = np.full(len(self.codes), None if dtype is object else np.nan, dtype)
        out[~null] = self.values[self.codes[~null]]
        return out

    def take(self, index: np.ndarray) -> Raw:
        """The column of these rows, by non-negative indices."""
        if self.offsets is not None:
            entries = np.arange(self.flat_size) if self.codes is None else self.codes
            codes, offsets = jagged.gather(entries, self.offsets[:-1][index], self.offsets[1:][index])
            return Raw(self.values, codes, offsets)
        if self.codes is None:
            return Raw(self.values[index])
        return Raw(self.values, self.codes[index])

    @classmethod
    def of(cls, values: Iterable[Any], name: str = "") -> Raw:
        """From a numpy array or a list of Python values (None is null); a list of lists gives offsets.

        Raises:
            SchemaError: the values are of several kinds, or of one that no feature takes.

        >>> Raw.of([7, None, 9]).flat()
        array([ 7., nan,  9.])
        >>> Raw.of([["a"], [], ["b", "a"]]).offsets
        array([0, 1, 1, 3])
        """
        if isinstance(values, np.ndarray) and values.dtype.kind in "iubf" and values.ndim <= 2:
            if values.ndim == 2:
                offsets = np.arange(values.shape[0] + 1, dtype=np.int64) * values.shape[1]
                return cls(_wide(values.reshape(-1)), None, offsets)
            return cls(_wide(values))
        rows: Sequence[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if any(_is_list(v) for v in rows):
            lists = [v if _is_list(v) else [] if v is None else _refuse(name, v) for v in rows]
            offsets = np.zeros(len(rows) + 1, np.int64)
            np.cumsum([len(v) for v in lists], out=offsets[1:])
            flat = cls.of([x for v in lists for x in v], name)
            return cls(flat.values, flat.codes, offsets)
        kinds = {_kind(name, v) for v in rows} - {"null"}
        if kinds == {"int", "float"}:
            kinds = {"float"}
        if len(kinds) > 1:
            raise SchemaError(f"Column {name!r} mixes {' and '.join(sorted(KINDS[k] for k in kinds))}; give one kind.")
        kind = next(iter(kinds), "null")
        if kind == "float":
            return cls(np.array([np.nan if v is None else v for v in rows], np.float64))
        live = [v for v in rows if v is not None]
        array = np.empty(len(live), object) if kind == "text" else np.zeros(len(live), np.int64)
        try:
            array[:] = live
        except OverflowError:
            raise SchemaError(f"Column {name!r} holds whole numbers beyond 64 bits; give them as text.") from None
        if len(live) == len(rows):
            return cls(array)
        codes = np.full(len(rows), -1, np.int64)
        codes[[i for i, v in enumerate(rows) if v is not None]] = np.arange(len(live))
        return cls(array, codes)


def _wide(values: np.ndarray) -> np.ndarray:
    """int64 or float64, contiguous; uint64 keeps its bits, so that distinct ids stay distinct."""
    if values.dtype == np.uint64:
        return np.ascontiguousarray(values).view(np.int64)
    return np.ascontiguousarray(values, np.float64 if values.dtype.kind == "f" else np.int64)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _kind(name: str, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | int | np.integer | np.bool_):
        return "int"
    if isinstance(value, float | np.floating):
        return "float"
    return _refuse(name, value)


def _refuse(name: str, value: Any) -> Any:
    raise SchemaError(
        f"Column {name!r} holds {value!r}; a value is a number, text, null, or (in every row) a list of these."
    )
