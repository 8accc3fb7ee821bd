"""What the benchmarks share: how a table comes onto its page, and how a mean over seeds is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev


def put(table: str, page: Path, begin: str, end: str) -> None:
    """Put a table between its marks on a page."""
    before, rest = page.read_text(encoding="utf8").split(begin)
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}", encoding="utf8")


def spread(values: Sequence[float], digits: int = 4) -> str:
    """The mean, with the standard deviation where there are several."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"
