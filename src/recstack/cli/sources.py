"""Where a command's rows come from: a public set, the simulator, files, or a store that `recstack prepare` made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recstack.cli.config import arguments, section
from recstack.cli.output import note
from recstack.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    from recstack.data import Columns, Encoder, Log

KINDS = ("dataset", "events", "store")
SPLITS = ("by_time", "last_per_user", "leave_last_out", "by_user", "random", "none")
PARTS = ("train", "valid", "test")
STORE = "store.json"


@dataclass
class Source:
    """Training, validation and test rows (the latter None if there are none), and the encoder that fits them."""

    train: Log | Columns
    valid: Log | Columns | None
    test: Log | Columns | None
    encoder: Encoder
    protocol: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> Log | Columns:
        """One part by its name.

        Raises:
            ConfigError: no such part.
            DataError: it has no rows.
        """
        if name not in PARTS:
            raise unknown("part", name, PARTS)
        rows = getattr(self, name)
        if rows is None:
            raise DataError(f"The {name} part of this data has no rows.")
        return rows


def of_config(config: Mapping[str, Any]) -> Source:
    """What the sections data, schema and split of a configuration say.

    Raises:
        ConfigError, SchemaError, DataError: in a sentence.
    """
    data = section(config["data"], "data")
    kinds = [k for k in KINDS if k in data]
    if len(kinds) != 1:
        raise ConfigError(
            f"data has {' and '.join(kinds) or 'none'} of {', '.join(KINDS)}; give exactly one of them (keys there: "
            f"{', '.join(data) or 'none'})."
        )
    kind = kinds[0]
    options = {k: v for k, v in data.items() if k != kind}
    if not isinstance(data[kind], str):
        raise ConfigError(f"data.{kind} is {data[kind]!r}; expected text.")
    if kind != "events" and config.get("schema") is not None:
        raise ConfigError(f"schema: goes with data.events; {kind} {data[kind]!r} brings its own.")
    if kind == "store":
        if options:
            raise unknown("key in data:", next(iter(options)), ["store"])
        if config.get("split") is not None:
            raise ConfigError("split: does not go with data.store, which is split already; leave it out.")
        return open_store(Path(data["store"]))
    log = dataset(data["dataset"], options) if kind == "dataset" else files(data["events"], options, config)
    if isinstance(log, tuple):
        if config.get("split") is not None:
            raise ConfigError(f"split: does not go with {data[kind]!r}, which comes split; leave it out.")
        train, valid, test = log if len(log) == 3 else (log[0], None, log[1])
        return fitted((train, valid, test), {})
    return fitted(*split(log, section(config.get("split"), "split")))


def dataset(name: str, options: Mapping[str, Any]) -> Any:
    """A Log, or parts of one, of a public set or of the simulator."""
    from recstack.data import datasets, simulator
    from recstack.data.datasets.about import all_sets

    name = name.replace("-", "_")
    known = sorted({a.loader.partition("(")[0] for a in all_sets().values()} | {"simulator"})
    if name not in known:
        raise unknown("data.dataset", name, known)
    if name != "simulator":
        return getattr(datasets, name)(**arguments(getattr(datasets, name), options, "data"))
    more = [("tasks", str, "click"), ("lists", bool, False)]  # of Market.log
    known_options = make_dataclass("simulator", more, bases=(simulator.MarketConfig,), frozen=True)
    config = known_options(**arguments(known_options, options, "data"))
    return simulator.simulate(config).log(config.tasks, lists=config.lists)


def files(events: str, options: Mapping[str, Any], config: Mapping[str, Any]) -> Log:
    """A Log of files; `config` holds their schema, as a path or written out."""
    from recstack.data import Log, read
    from recstack.schema import Schema

    given = config.get("schema")
    if given is None:
        raise ConfigError("data.events needs schema:, a path or the schema itself; recstack prepare can suggest one.")
    schema = Schema.load(given) if isinstance(given, str) else Schema.from_dict(given)
    options = arguments(Log, options, "data", leave=["events", "schema", "name"])
    for name in ("users", "items"):
        if not isinstance(options.get(name, ""), str):
            raise ConfigError(f"data.{name} is {options[name]!r}; expected a path.")
    return read(events, schema, **options)


def split(log: Log, options: Mapping[str, Any]) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """Its parts, and what was done in words; by time, a tenth each for validation and test, if nothing else is said; "none" trains on all."""
    from recstack.data import splits

    by = options.get("by", "by_time")
    if by not in SPLITS:
        raise unknown("split.by:", by, SPLITS)
    if by == "none":
        return (log, None, None), {"by": by}
    if by == "by_time" and log.schema.time is None:
        raise ConfigError("A split by_time needs time: in the schema, the column that orders events; or choose random.")
    function = getattr(splits, by)
    given = arguments(function, {k: v for k, v in options.items() if k != "by"}, "split", leave=["log"])
    return function(log, **given), {"by": by, **given}


def fitted(parts: tuple[Any, Any, Any], protocol: dict[str, Any]) -> Source:
    """With an encoder fitted on the training part; parts without rows are None."""
    from recstack.data import Encoder

    train, valid, test = parts
    encoder = Encoder(train.schema).fit(train)
    valid, test = (p if p is not None and len(p) else None for p in (valid, test))
    return Source(train, valid, test, encoder, protocol)


def open_store(folder: Path) -> Source:
    """What `recstack prepare` wrote.

    Raises:
        DataError: it is no store, or a file of it is missing or altered.
    """
    import json

    from recstack.data import Columns, Encoder

    try:
        summary = json.loads((folder / STORE).read_text("utf8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(folder)!r} is no store of recstack prepare: it has no readable {STORE}.") from error
    encoder = Encoder.load(folder / "encoder")
    parts: dict[str, Any] = dict.fromkeys(PARTS)
    for name in PARTS:
        if (folder / name).is_dir():
            parts[name] = Columns.load(folder / name)
            parts[name].schema = parts[name].schema.replace(encoder=encoder)
    return Source(**parts, encoder=encoder, protocol=summary.get("split", {}))


def rows_for(model_encoder: Encoder, data: str, past: str | None = None, **options: Any) -> Log | Columns:
    """Rows to measure a bundle on: files, read with the bundle's own schema, or a part of a store.

    Args:
        past: earlier events, from which the histories of `data` are continued.
        options: of `Log`: users, items, implicit.

    Raises:
        DataError: a store that another encoder encoded; files as `recstack.read`.
    """
    import numpy as np
    import polars as pl

    from recstack.data import Columns, Encoder, Log, read
    from recstack.data.readers import read_frame

    folder = Path(data)
    if (folder / STORE).is_file():
        raise DataError(f"{data!r} is a store; name its part, as in {str(folder / 'test')!r}.")
    if (folder / "columns.json").is_file():
        columns = Columns.load(folder)
        if Encoder.load(folder.parent / "encoder") != model_encoder:
            raise DataError(f"{data!r} was encoded by another encoder than the bundle's; its ids mean something else.")
        columns.schema = columns.schema.replace(encoder=model_encoder)
        return columns
    schema = model_encoder.schema
    log = read(data, schema, **options)
    built = [h.name for h in schema.histories if h.name not in log.events.columns]
    if past is None:
        if built:
            note(f"History {built[0]!r} is built from these rows alone; --past FILES adds what happened before them.")
        return log
    before = read_frame(past)
    for column in log.events.columns:
        if column not in before.columns:
            raise unknown("column of --past", column, before.columns, DataError)
    events = pl.concat([before.select(log.events.columns), log.events], how="vertical_relaxed")
    whole = Log(events, schema, users=log.users, items=log.items, implicit=log.implicit).with_histories()
    return whole.select(np.arange(before.height, events.height))
