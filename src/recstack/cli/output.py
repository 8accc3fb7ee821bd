"""What commands say: results on stdout, everything else on stderr, and exit codes that mean something."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recstack.errors import (
    BundleError,
    ConfigError,
    DataError,
    RecStackError,
    RequestError,
    SchemaError,
    TrainingError,
)

USAGE, DATA, BUNDLE, TRAINING, INTERRUPTED = 2, 3, 4, 5, 130
CODES: dict[type[RecStackError], int] = {
    ConfigError: USAGE,
    RequestError: USAGE,
    SchemaError: DATA,
    DataError: DATA,
    BundleError: BUNDLE,
    TrainingError: TRAINING,
}


def exit_code(error: BaseException) -> int:
    """Of an error that ends a command; 1 for what nobody expected."""
    return next((code for kind, code in CODES.items() if isinstance(error, kind)), 1)


def speaks() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return not ("WORLD_SIZE" in os.environ and int(os.environ.get("RANK", 0)))


def note(text: str) -> None:
    """A line for the person who watches."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def status(line: str) -> Iterator[None]:
    """Says what is being done: a spinner on a terminal, a line elsewhere."""
    if not speaks():
        yield
        return
    if not sys.stderr.isatty():
        note(f"{line} ...")
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{line} ..."):
        yield


def emit_json(value: Any) -> None:
    """On stdout; numbers that are not finite become null."""
    print(as_json(value))


def as_json(value: Any) -> str:
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def emit_table(head: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """On stdout, numbers to the right. Where nobody watches, as wide as its content."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for i, name in enumerate(head):
        number = bool(rows) and all(isinstance(row[i], int | float) or row[i] is None for row in rows)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(v)) for v in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 240).print(table)


def cell(value: Any) -> str:
    """
    >>> [cell(v) for v in (None, 12345, 0.123456, "x")]
    ['', '12,345', '0.1235', 'x']
    """
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:,.4f}" if isinstance(value, float) else str(value)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end; a failure leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
