"""Files in: Parquet, CSV and Arrow IPC, one or many."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from recstack.data.frames import as_frame
from recstack.data.log import Log
from recstack.errors import DataError, unknown
from recstack.schema import Schema

READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".pq": pl.read_parquet,
    ".csv": lambda p: pl.read_csv(p, infer_schema_length=None),
    ".tsv": lambda p: pl.read_csv(p, separator="\t", infer_schema_length=None),
    ".arrow": pl.read_ipc,
    ".ipc": pl.read_ipc,
    ".feather": pl.read_ipc,
}


def read(
    path: str | Path,
    schema: Schema,
    *,
    users: Any = None,
    items: Any = None,
    implicit: bool = False,
    **options: Any,
) -> Log:
    """A log from files.

    Args:
        path: a file, a folder of files, or a glob such as "events/*.parquet"; the ending says the format: .parquet,
            .csv, .tsv, .arrow, .ipc or .feather (.csv.gz and .tsv.gz too).
        users, items: paths likewise, or frames.
        implicit, options: as `Log` takes them.

    Raises:
        DataError: no such file, an empty one, one that cannot be parsed, or files whose columns differ.
        SchemaError: as `Log`.
    """
    frames = [
        None if f is None else read_frame(f) if isinstance(f, str | Path) else as_frame(f) for f in (users, items)
    ]
    options.setdefault("name", Path(path).stem)
    return Log(read_frame(path), schema, users=frames[0], items=frames[1], implicit=implicit, **options)


def read_frame(path: str | Path) -> pl.DataFrame:
    """The rows of one or many files, in the order of their names.

    Raises:
        DataError: as `read`.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if _ending(p) in READERS)
    else:
        files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not files:
        raise DataError(f"There is no file at {str(path)!r}.")
    frames = [_read_one(f) for f in files]
    for file, frame in zip(files, frames, strict=True):
        if set(frame.columns) != set(frames[0].columns):
            odd = sorted(set(frame.columns) ^ set(frames[0].columns))
            raise DataError(
                f"{str(file)!r} and {str(files[0])!r} differ in column {odd[0]!r}; they must have the same."
            )
    frame = pl.concat([f.select(frames[0].columns) for f in frames], how="vertical_relaxed")
    if not frame.height:
        raise DataError(f"{str(path)!r} has no rows.")
    return frame


def _ending(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _read_one(path: Path) -> pl.DataFrame:
    ending = _ending(path)
    if ending not in READERS:
        raise unknown(f"file format of {path.name!r}:", ending, READERS, DataError)
    try:
        return READERS[ending](path)
    except pl.exceptions.NoDataError:
        raise DataError(f"{str(path)!r} is empty.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read as {ending}: {' '.join(str(error).split())[:200]}") from error
