"""`recstack recommend`: pages for one user, or for all users of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recstack.cli.evaluate import as_cascade, load
from recstack.cli.output import emit_json, emit_table, note, replacing
from recstack.errors import ConfigError, DataError, unknown

FORMATS = (".parquet", ".csv", ".jsonl")
BLOCK = 512


def one(bundle: Path, user: str, k: int, as_text: bool) -> None:
    """Print the page of one user."""
    cascade = _recommender(bundle, k)
    raw = _raw_id(cascade, user)
    known = raw in cascade.profiles
    if not known:
        note(f"User {raw!r} was never met; this is the page of a new user.")
    page = cascade.recommend(raw, k)
    if not as_text:
        emit_json({"user": raw, "known": known, "items": page})
        return
    chance = any("probability" in row for row in page)
    head = ["rank", "item", "score", *(["probability"] if chance else []), "through"]
    rows = [
        [i, str(r["item"]), r["score"], *([r.get("probability")] if chance else []), ", ".join(r["sources"])]
        for i, r in enumerate(page, 1)
    ]
    emit_table(head, rows)


def many(bundle: Path, users: str, k: int, out: Path | None) -> None:
    """A row per user and rank: user, rank, item, score, and probability where there is a calibrator."""
    import polars as pl

    from recstack.data.readers import read_frame

    if out is not None and out.suffix not in FORMATS:
        raise unknown("ending of --out:", out.suffix, FORMATS)
    cascade = _recommender(bundle, k)
    key = cascade.encoder.schema.user
    frame = read_frame(users)
    if key not in frame.columns:
        raise unknown(f"column of {users!r} for the users", key, frame.columns, DataError)
    asked = frame[key].drop_nulls().unique(maintain_order=True).to_list()
    rows = list(_rows(cascade, asked, k))
    table = pl.DataFrame(rows, infer_schema_length=None)
    if out is None:
        table.write_ndjson(sys.stdout)
        return
    with replacing(out) as draft:
        write = {".parquet": table.write_parquet, ".csv": table.write_csv, ".jsonl": table.write_ndjson}
        write[out.suffix](draft)
    note(f"{out}: {len(asked):,} users, {table.height:,} rows.")


def _rows(cascade: Any, users: list[Any], k: int) -> Iterator[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    strangers = sum(u not in cascade.profiles for u in users)
    blocks = [users[i : i + BLOCK] for i in range(0, len(users), BLOCK)]
    quiet = not sys.stderr.isatty()
    for block in track(blocks, "Recommending", console=Console(stderr=True), transient=True, disable=quiet):
        for user, page in zip(block, cascade.recommend(block, k), strict=True):
            for rank, row in enumerate(page, 1):
                yield {"user": user, "rank": rank, **{n: v for n, v in row.items() if n != "sources"}}
    if strangers:
        note(f"{strangers:,} of {len(users):,} users were never met and got the page of a new user.")


def _recommender(bundle: Path, k: int) -> Any:
    if k < 1:
        raise ConfigError(f"--k must be at least 1; got {k}.")
    model = load(bundle)
    cascade = as_cascade(model, k)
    if cascade is None:
        raise ConfigError(
            f"{str(bundle)!r} holds {type(model).__name__}, which scores candidates and proposes none; give the bundle "
            "of a cascade or a retriever."
        )
    if cascade.profiles is None:
        raise ConfigError(f"{str(bundle)!r} keeps no users; fit the retriever before saving it.")
    return cascade


def _raw_id(cascade: Any, user: str) -> Any:
    key = cascade.encoder.schema.user
    if cascade.encoder.kind(key) == "text":
        return user
    try:
        return int(user)
    except ValueError:
        raise DataError(f"User {user!r} is no whole number, as {key!r} is in this bundle.") from None
