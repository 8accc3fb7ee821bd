"""A schema to start from, guessed from the columns of files; each guess says what it rests on."""

from __future__ import annotations

import json
import re
from typing import Any

import polars as pl

from recstack.errors import DataError

USER = re.compile(r"(^|_)(user|uid|member|customer|visitor|viewer|reader|buyer)(_?id|_?key)?$", re.IGNORECASE)
ITEM = re.compile(
    r"(^|_)(item|iid|product|movie|film|video|song|track|article|news|ad|book|game|asin|sku)(_?id|_?key)?$",
    re.IGNORECASE,
)
TIME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|created_at|at|seq|unixtime)(_ms|_s)?$", re.IGNORECASE)
LABEL = re.compile(
    r"^(is_)?(label|click(ed)?|like(d)?|view(ed)?|watch(ed)?|order(ed)?|purchase(d)?|buy|bought|cart|follow|share|"
    r"conver(sion|ted)|long_view|target)$",
    re.IGNORECASE,
)
MOMENT = re.compile(r"^(request|session|impression|event|row|trace|log)(_?id)?$", re.IGNORECASE)
PLACE = re.compile(r"^(position|pos|rank|slot)$", re.IGNORECASE)
MANY = 20  # distinct values from which a whole number may be a quantity
WORDS = 3  # words from which a text is read rather than looked up


def suggest(events: pl.DataFrame, users: pl.DataFrame | None = None, items: pl.DataFrame | None = None) -> str:
    """YAML of a schema for these frames, with a comment on every line that was guessed.

    The role of an event's column is read from the data: what never differs between two rows of one item is the item's,
    of one user the user's, and the rest belongs to the moment. Labels and keys go by their names.

    Raises:
        DataError: no column looks like a user's or an item's key.
    """
    keys = {}
    for role, pattern, frame in (("user", USER, users), ("item", ITEM, items)):
        found = [c for c in events.columns if pattern.search(c) and (frame is None or c in frame.columns)]
        found = sorted(found, key=lambda c: not c.lower().endswith("id"))
        if not found:
            raise DataError(
                f"No column looks like the {role}'s key, such as '{role}_id'; there are {', '.join(events.columns)}."
            )
        keys[role] = found[0]
    time = next((c for c in events.columns if TIME.search(c) and _orders(events[c])), None)
    labels = [c for c in events.columns if LABEL.search(c) and _is_binary(events[c])]
    ratings = [
        c for c in events.columns if re.search(r"rating|stars", c, re.IGNORECASE) and events[c].dtype.is_numeric()
    ]
    features, left, item_ids = [], [], [keys["item"]]
    taken = {*keys.values(), time, *labels, *ratings}
    for role in ("user", "item"):
        features.append(_line("categorical", keys[role], role, why=f"{events[keys[role]].n_unique():,} distinct"))
    places: list[tuple[pl.DataFrame, str | None]] = [(events, None)]
    places += [(f, role) for f, role in ((users, "user"), (items, "item")) if f is not None]
    for frame, role in places:
        for column in frame.columns:
            if column in taken:
                continue
            taken.add(column)
            own, why = (role, f"of the {role}s file") if role else _role(events, column, keys)
            entities = frame[keys[own]].n_unique() if own in keys else frame.height
            line, reason = _feature(frame[column], own, why, entities)
            if line is None:
                left.append(f"{column} ({reason})")
                continue
            features.append(line)
            if own == "item" and "kind: categorical" in line and len(item_ids) < 3:
                item_ids.append(column)
    if time is not None:
        where = f", where: {_text(labels[0])}" if labels and events[labels[0]].n_unique() > 1 else ""
        of = ", ".join(map(_text, item_ids))
        features.append(
            f"  - {{kind: history, name: history, of: [{of}], max_len: 50{where}}}  # built from what came before"
        )
    tasks = [f"  - {{name: {_text(c)}}}  # {_rate(events[c])}" for c in labels]
    tasks += [f"  - {{name: {_text(c)}, kind: regression}}" for c in ratings if not labels]
    lines = [
        "# A guess, to be read before it is used: rename nothing, correct roles and kinds, delete what is no signal."
    ]
    lines += [f"# Left out: {', '.join(left)}."] if left else []
    lines += ["features:", *features]
    if tasks:
        lines += ["tasks:", *tasks]
    else:
        lines += [
            "# No column looks like a label. If every row is a positive (a view, a purchase), add --implicit.",
            "tasks:",
            "  - {name: watched}",
        ]
    lines += [f"user: {_text(keys['user'])}", f"item: {_text(keys['item'])}"]
    lines += [f"time: {_text(time)}"] if time else ["# No column looks like a time: no histories, no split by time."]
    return "\n".join([*lines, ""])


def _text(name: str) -> str:
    """As YAML."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) and name.lower() not in YAML_WORDS else json.dumps(name)


YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _line(kind: str, name: str, role: str, why: str, **options: Any) -> str:
    more = "".join(f", {k}: {json.dumps(v)}" for k, v in options.items())
    return f"  - {{kind: {kind}, name: {_text(name)}, role: {role}{more}}}  # {why}"


def _orders(column: pl.Series) -> bool:
    return (column.dtype.is_temporal() or column.dtype.is_integer()) and not column.null_count()


def _is_binary(column: pl.Series) -> bool:
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        return False
    return set(column.drop_nulls().unique().cast(pl.Float64).to_list()) <= {0.0, 1.0}


def _rate(column: pl.Series) -> str:
    return f"1 in {100 * column.cast(pl.Float64).mean():.3g} % of the rows"  # type: ignore[operator]


def _role(events: pl.DataFrame, column: str, keys: dict[str, str]) -> tuple[str, str]:
    """Whose the column is: one value for each item, each user, or neither. A key without two rows says nothing."""
    if PLACE.search(column):
        return "pair", "where the item was shown, by its name"
    for role in ("item", "user"):
        each = events.group_by(keys[role]).agg(pl.col(column).n_unique(), pl.len())
        several = each.filter(pl.col("len") > 1)
        if several.height and int(several[column].max()) == 1:  # type: ignore[arg-type]
            return role, f"one value for each {role}"
    return "context", "differs within users and items"


def _feature(column: pl.Series, role: str, why: str, entities: int) -> tuple[str | None, str]:
    """A line of the schema, or None and why there is none; `entities`: how many users, items or events it describes."""
    name, live = column.name, column.drop_nulls()
    if not len(live):
        return None, "only nulls"
    if MOMENT.search(name):
        return None, "numbers the moments"
    if column.dtype.is_temporal() or (TIME.search(name) and column.dtype.is_numeric()):
        return None, "another time, perhaps one that is known only later"
    nulls = f", {column.null_count():,} nulls" if column.null_count() else ""
    if column.dtype in (pl.List, pl.Array):
        inner = live.explode().drop_nulls()
        if inner.dtype.is_float():
            sizes = live.list.len().unique() if column.dtype == pl.List else live.arr.len().unique()
            if len(sizes) == 1 and not nulls:
                return _line("vector", name, role, f"{sizes[0]} numbers in each row; {why}", size=sizes[0]), ""
            return None, "lists of numbers of different lengths"
        return _line("categorical", name, role, f"lists; {why}", multi=True), ""
    distinct = live.n_unique()
    if distinct == 1 and not nulls:
        return None, "one value only"
    many = distinct > max(MANY, entities / 2)
    if column.dtype.is_float() or column.dtype.is_decimal() or (column.dtype.is_integer() and many):
        fill = {"fill": float(live.median())} if nulls else {}  # type: ignore[arg-type]
        return _line("numeric", name, role, f"numbers; {why}{nulls}", transform="quantile", **fill), ""
    if column.dtype == pl.String and live.str.count_matches(r"\s+").mean() >= WORDS - 1:  # type: ignore[operator]
        return _line("text", name, role, f"several words; {why}{nulls}"), ""
    if many and distinct == entities:
        return None, f"another value for each {role if role in ('user', 'item') else 'row'}"
    return _line("categorical", name, role, f"{distinct:,} distinct; {why}{nulls}"), ""
