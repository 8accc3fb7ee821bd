"""What the benchmarks share: how a table comes onto its page, and how a mean over seeds is written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
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


def read(path: Path, group: str = "data") -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """{(group, model): {seed: its newest line}}, in the order of the lines."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf8").splitlines() if path.exists() else ():
        record = json.loads(line)
        found.setdefault((record[group], record["model"]), {})[record["seed"]] = record
    return found


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Print a line, and add it to the results."""
    print(json.dumps(record), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf8") as file:
        file.write(json.dumps(record) + "\n")


def options(doc: str | None, results: Path, page: Path) -> argparse.ArgumentParser:
    """What the long studies ask for."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=results, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=page, help="page that the tables are drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    return parser


def by_model(
    doc: str | None,
    data: Mapping[str, Callable[[str | None, int | None], Any]],
    names: Callable[[str], list[str]],
    run: Callable[[str, Any, int, int], dict[str, Any]],
    table: Callable[[Path], str],
    place: tuple[Path, Path, str, str],
    *,
    epochs: int,
    default: Sequence[str] = (),
) -> None:
    """The `main` of a long study: every model of every data set that the results do not hold yet, the table after each.

    Args:
        data: {name: read(data_dir, limit)}; `default` are those of a plain call, all where it is empty.
        names: the models of a data set.
        run: of (model, data, seed, most epochs) the record.
        place: results, page, and the table's marks on it.
    """
    results, page, begin, end = place
    parser = options(doc, results, page)
    parser.add_argument("--data", nargs="+", choices=data, default=list(default or data))
    parser.add_argument("--model", nargs="+", help="lines of the tables; all that fit by default")
    parser.add_argument("--epochs", type=int, default=epochs, help="at most")
    parser.add_argument("--limit", type=int, help="rows of each part, for a try")
    given = parser.parse_args()
    made: dict[str, Any] = {}
    for seed, name in [(s, n) for s in given.seeds for n in given.data] if not given.table else ():
        known = names(name)
        for model in [m for m in given.model or known if m in known]:
            if seed in read(given.out).get((name, model), {}):
                continue
            if name not in made:
                made[name] = data[name](given.data_dir, given.limit)
            said = run(model, made[name], seed, given.epochs)
            append(given.out, {"data": name, "model": model, "seed": seed, **said})
            put(table(given.out), given.page, begin, end)
    put(table(given.out), given.page, begin, end)


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
