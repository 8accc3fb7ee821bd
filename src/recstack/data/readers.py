"""Files in: Parquet, CSV and Arrow IPC, one or many."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

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
    files = found(path)
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


def found(path: str | Path) -> list[Path]:
    """The files that a path, a folder or a glob names, in the order of their names.

    Raises:
        DataError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if _ending(p) in READERS)
    else:
        files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not files:
        raise DataError(f"There is no file at {str(path)!r}.")
    return files


class Parts:
    """Files that are read part by part, never as a whole: Parquet and Arrow as they lie, text by way of Arrow files.

    Args:
        files: of one or several formats.
        draft: a folder for the Arrow files; text is parsed once, by polars in streaming mode, with the types of `read`.

    Raises:
        DataError: a file that is missing or cannot be read.
    """

    def __init__(self, files: Sequence[Path], draft: Path) -> None:
        self.files = list(files)
        self._places: dict[Path, Path] = {}
        self.schemas: dict[Path, dict[str, pl.DataType]] = {}
        for i, file in enumerate(self.files):
            place, ending = file, _ending(file)
            if ending not in READERS:
                raise unknown(f"file format of {file.name!r}:", ending, READERS, DataError)
            with _reading(file):
                if not file.is_file():
                    raise FileNotFoundError(2, "no such file", str(file))
                if ending in (".csv", ".tsv"):
                    place = draft / f"{i}.arrow"
                    separator = "\t" if ending == ".tsv" else ","
                    pl.scan_csv(file, separator=separator, infer_schema_length=None).sink_ipc(
                        place, compression="uncompressed"
                    )
                self._places[file] = place
                empty = _arrow_schema(place).empty_table()
                self.schemas[file] = dict(pl.DataFrame(empty).schema)

    def read(self, columns: Sequence[str], rows: int) -> Iterator[tuple[Path, int, pl.DataFrame]]:
        """(file, its row at which the part begins, the part of at most `rows` rows), in order."""
        for file, place in self._places.items():
            start = 0
            parts = iter(_batches(place, columns, rows))
            while True:
                with _reading(file):
                    batch = next(parts, None)
                    frame = None if batch is None else pl.DataFrame(pa.Table.from_batches([batch]))
                if frame is None:
                    break
                if frame.height:
                    yield file, start, frame
                start += frame.height


def _arrow_schema(place: Path) -> pa.Schema:
    if _ending(place) in (".parquet", ".pq"):
        return pq.read_schema(place)
    with pa.memory_map(str(place)) as source:
        return pa.ipc.open_file(source).schema


def _batches(place: Path, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    if _ending(place) in (".parquet", ".pq"):
        with pq.ParquetFile(place, buffer_size=1 << 20) as file:
            yield from file.iter_batches(rows, columns=list(columns))
        return
    with pa.memory_map(str(place)) as source:
        file = pa.ipc.open_file(source)
        for i in range(file.num_record_batches):
            batch = file.get_batch(i).select(list(columns))
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except pl.exceptions.NoDataError:
        raise DataError(f"{str(file)!r} is empty.") from None
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{str(file)!r} cannot be read as {_ending(file)}: {why}") from error


def _ending(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _read_one(path: Path) -> pl.DataFrame:
    ending = _ending(path)
    if ending not in READERS:
        raise unknown(f"file format of {path.name!r}:", ending, READERS, DataError)
    with _reading(path):
        return READERS[ending](path)
