"""What the benchmarks share: how a table comes onto its page, and how a mean over seeds is written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any


def put(table: str, page: Path, begin: str, end: str) -> None:
    """Put a table between its marks on a page."""
    before, rest = page.read_text(encoding="utf8").split(begin)
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}", encoding="utf8")


def spread(values: Sequence[float], digits: int = 4) -> str:
    """The mean, with the standard deviation where there are several."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def by_seed(
    doc: str | None,
    run: Callable[[int], list[dict[str, Any]]],
    table: Callable[[], str],
    results: Path,
    *place: Any,
) -> None:
    """The `main` of a study that takes a minute: each seed's lines replace that seed's in `results` as it ends."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    for seed in () if given.table else given.seeds:
        lines = results.read_text().splitlines() if results.exists() else []
        kept = [line for line in lines if json.loads(line)["seed"] != seed]
        results.write_text("\n".join([*kept, *map(json.dumps, run(seed))]) + "\n")
    text = table()
    print(text)
    put(text, *place)
