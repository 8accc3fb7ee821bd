"""Finding the files of public data sets, and reading them: gzip or plain, tables or rows of numbers."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recstack.errors import DataError


def resolve_data_dir(data_dir: str | Path | None = None) -> Path:
    """The folder that holds the sets' folders: the argument, else the environment variable RECSTACK_DATA, else
    ../shared/data if the current directory has it, else recstack/data in the user's cache."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if os.environ.get("RECSTACK_DATA"):
        return Path(os.environ["RECSTACK_DATA"]).expanduser()
    beside = Path("../shared/data")
    if beside.is_dir():
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "recstack" / "data"


def has_file(folder: Path, name: str) -> bool:
    """Whether the folder holds the file, plain or with .gz behind its name."""
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def find_file(folder: Path, name: str) -> Path:
    """The file, plain or with .gz behind its name.

    Raises:
        DataError: neither is there.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"Folder {str(folder)!r} has neither {name!r} nor '{name}.gz'.")


def read_bytes(path: Path) -> bytes:
    """What is in the file; decompressed if its name ends in .gz.

    Raises:
        DataError: it cannot be read, or it is damaged or cut short.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"Cannot read {str(path)!r}: {e.strerror}.") from e
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{str(path)!r} is damaged or cut short: {e}. Fetch it again.") from e


def read_table(
    path: Path,
    columns: Mapping[str, Any],
    *,
    separator: str = ",",
    header: bool = False,
    encoding: str = "utf8",
    quote: str | None = None,
) -> pl.DataFrame:
    """A table of text.

    Args:
        columns: {name: dtype}. Without a header these are all columns, in order; with one these must be there, and
            the others' dtypes are guessed from all rows.
        separator: one character or more.
        quote: the character around values that hold separators.

    Raises:
        DataError: a column that is missing, a value that does not fit its dtype, an empty or damaged file.
    """
    data = read_bytes(path)
    if len(separator) > 1:
        data, separator = data.replace(separator.encode(), b"\x1f"), "\x1f"
    if encoding != "utf8":
        data = data.decode(encoding).encode()
    options: dict[str, Any] = (
        {"schema_overrides": columns, "infer_schema_length": None} if header else {"schema": columns}
    )
    try:
        table = pl.read_csv(io.BytesIO(data), has_header=header, separator=separator, quote_char=quote, **options)
    except pl.exceptions.PolarsError as e:
        raise DataError(
            f"{str(path)!r} does not hold the columns {', '.join(columns)}: {str(e).splitlines()[0]}."
        ) from e
    if not table.height:
        raise DataError(f"{str(path)!r} is empty; rows of {', '.join(columns)} are due.")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{str(path)!r} has no column {missing[0]!r}; it has {', '.join(table.columns)}.")
    return table


def read_numbers(text: bytes, source: str, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Lines of numbers with blanks between them.

    Args:
        source: the file's name, for messages.

    Returns:
        All numbers [n], and int64 [lines + 1]: line i holds the numbers offsets[i] to offsets[i + 1].

    Raises:
        DataError: something that is no number, with its line.
    """
    if text and not text.endswith(b"\n"):
        text += b"\n"
    byte = np.frombuffer(text, np.uint8)
    blank = byte <= 32
    first = ~blank  # where a number begins: not blank, and the byte before it is
    first[1:] &= blank[:-1]
    newline = byte == 10
    offsets = np.zeros(int(newline.sum()) + 1, np.int64)
    offsets[1:] = np.cumsum(first)[newline]
    try:
        values = np.fromstring(text, dtype, sep=" ") if offsets[-1] else np.zeros(0, dtype)
    except ValueError:
        values = np.zeros(0, dtype)
    if len(values) != offsets[-1]:
        for line, row in enumerate(text.splitlines(), 1):  # slow, and only to say where
            for word in row.split():
                if not _is_number(word, dtype):
                    raise DataError(f"{source!r}, line {line}: {word.decode('utf8', 'replace')!r} is not a number.")
        raise DataError(f"{source!r} holds something that is not a number.")
    return values, offsets


def read_rows(path: Path, width: int, dtype: Any = np.int64) -> np.ndarray:
    """Lines that hold the same count of numbers, [lines, width]; commas and tabs count as blanks.

    Raises:
        DataError: a line of another width, by its number.
    """
    values, offsets = read_numbers(re.sub(rb"[,\t]", b" ", read_bytes(path)), str(path), dtype)
    wrong = np.flatnonzero(np.diff(offsets) != width)
    if len(wrong):
        raise DataError(
            f"{str(path)!r}, line {wrong[0] + 1}: {np.diff(offsets)[wrong[0]]} numbers where {width} are due."
        )
    return values.reshape(-1, width)


def _is_number(word: bytes, dtype: Any) -> bool:
    try:
        int(word) if np.issubdtype(dtype, np.integer) else float(word)
    except ValueError:
        return False
    return True
