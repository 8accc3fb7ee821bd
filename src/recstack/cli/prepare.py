"""`recstack prepare`: files → a split, an encoder fitted on its training part, and encoded columns on disk."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recstack.cli import sources
from recstack.cli.output import as_json, emit_json, emit_table, note, status
from recstack.errors import ConfigError, RecStackError

if TYPE_CHECKING:
    from recstack.data import Columns, Encoder, Log


def suggest(data: str, users: str | None, items: str | None) -> None:
    """Print a schema for these files."""
    from recstack.cli.suggest import suggest as guess
    from recstack.data.readers import read_frame

    print(guess(read_frame(data), *(None if f is None else read_frame(f) for f in (users, items))), end="")


def prepare(
    data: str, schema: str, options: Mapping[str, Any], split: Mapping[str, Any], out: Path, as_text: bool
) -> None:
    """Write the store `out`, unless it is that of these files and options already, and say what was found."""
    from recstack.data.preparation import digest_of
    from recstack.data.readers import found
    from recstack.schema import Schema

    if out.exists() and not (out / sources.STORE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{str(out)!r} exists and is no store; give another --out, so that nothing is lost.")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with contextlib.suppress(OSError):  # what files were like when they were last read
            shutil.copy(out / "digests.json", draft)
        with status(f"Looking whether {data} is prepared already"):
            frames = {n: options[n] for n in ("users", "items") if n in options}
            asked = [{k: v for k, v in options.items() if k not in frames}, dict(split)]
            key = digest_of(found(data), Schema.load(schema), draft, **frames, options=asked)
        summary = _earlier(out, key)
        fresh = summary is None
        if summary is None:
            summary = {"key": key, **_write(data, schema, options, split, draft)}
            summary["bytes"] = sum(f.stat().st_size for f in draft.rglob("*") if f.is_file())
            (draft / sources.STORE).write_text(as_json(summary) + "\n", "utf8")
            draft.chmod(0o755)
            _swap(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    rows = summary["rows"]
    if not fresh:
        note(f"Nothing to do: {out} holds these files already, encoded with this schema and split.")
    if not as_text:
        emit_json({"out": out, "fresh": fresh, **summary})
        return
    emit_table(
        ["column", "kind", "role", "vocabulary", "nulls"],
        [[c["name"], c["kind"], c["role"], c["vocabulary"], c["nulls"]] for c in summary["columns"]],
    )
    labels = sorted({name for part in rows.values() for name in part["labels"]})
    emit_table(
        ["part", "rows", "requests", *(f"mean {n}" for n in labels)],
        [[n, p["rows"], p["requests"], *(p["labels"].get(name) for name in labels)] for n, p in rows.items()],
    )
    note(f"{out}: {summary['bytes'] / 2**20:,.1f} MiB. Next: `data: {{store: {out}}}` in a file for recstack train.")


def _write(data: str, schema: str, options: Mapping[str, Any], split: Mapping[str, Any], draft: Path) -> dict[str, Any]:
    """Encoder and parts in `draft`; returns what was found."""
    if split.get("by") == "none":
        return _streamed(data, schema, options, draft)
    with status(f"Reading {data}"):
        log = sources.files(data, options, {"schema": schema})
        parts, protocol = sources.split(log, split)
    with status("Fitting the encoder on the training part"):
        source = sources.fitted(parts, protocol)
    rows = {}
    for name in sources.PARTS:
        part = getattr(source, name)
        if part is None:
            continue
        with status(f"Encoding {len(part):,} rows: {name}"):
            columns = source.encoder.encode(part)
            columns.save(draft / name)
        rows[name] = _found(columns)
    source.encoder.save(draft / "encoder")
    return {"rows": rows, "split": protocol, "columns": _columns(source.encoder, log)}


def _streamed(data: str, schema: str, options: Mapping[str, Any], draft: Path) -> dict[str, Any]:
    """Without a split the files need not fit into memory."""
    from recstack.data import Columns
    from recstack.data.preparation import encode_files
    from recstack.data.readers import found, read_frame
    from recstack.schema import Schema

    frames = {n: read_frame(options[n]) for n in ("users", "items") if n in options}
    (draft / "train").mkdir()
    with status(f"Encoding {data}"):
        encoder = encode_files(found(data), Schema.load(schema), draft / "train", **{**options, **frames})
    (draft / "train" / "encoder").rename(draft / "encoder")
    rows = {"train": _found(Columns.load(draft / "train"))}
    return {"rows": rows, "split": {"by": "none"}, "columns": _columns(encoder, None)}


def _earlier(out: Path, key: str) -> dict[str, Any] | None:
    """What was said of the store when it was written, if it is the one that is asked for, and whole."""
    try:
        summary = json.loads((out / sources.STORE).read_text("utf8"))
        if summary.get("key") != key:
            return None
        sources.open_store(out)
    except (OSError, ValueError, RecStackError):
        return None
    return summary


def _found(columns: Columns) -> dict[str, Any]:
    import numpy as np

    means = {n: float(np.nanmean(v)) if np.isfinite(v).any() else None for n, v in columns.labels.items()}
    return {"rows": columns.n_rows, "requests": columns.n_requests, "labels": means}


def _columns(encoder: Encoder, log: Log | None) -> list[dict[str, Any]]:
    """Of each feature: kind, role, how many values its table learned (or hashes into), and nulls where rows are at hand."""
    from recstack.schema import History, is_embedded

    found = []
    for f in encoder.schema.features:
        place = None if log is None or (isinstance(f, History) and not log.has(f.name)) else log.place(f.name)
        nulls = None if place is None or log is None else int(log.frame(place)[f.name].null_count())
        size = f.size - 2 if is_embedded(f) else None  # type: ignore[attr-defined]
        found.append({"name": f.name, "kind": f.kind, "role": f.role, "vocabulary": size, "nulls": nulls})
    return found


def _swap(draft: Path, out: Path) -> None:
    """`draft` in the place of `out`; the store that was there goes last."""
    old = draft.with_name(f"{draft.name}.old")
    if out.exists():
        out.rename(old)
    draft.rename(out)
    shutil.rmtree(old, ignore_errors=True)
