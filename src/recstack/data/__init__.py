"""Raw tables in, batches out: Log, Encoder, Columns, Loader, splits, histories, counters, live profiles.

Names are found when first asked for, so that a process that only encodes requests never imports a reader.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Columns": "columns",
    "CounterStream": "counters",
    "Encoder": "encoder",
    "HistoryTimeline": "log",
    "ItemStore": "store",
    "Loader": "loader",
    "Log": "log",
    "MeanNormalisation": "ratings",
    "Profiles": "profiles",
    "Raw": "raw",
    "Requests": "profiles",
    "WindowCounter": "counters",
    "check_labels": "implications",
    "onboarding": "ratings",
    "prepare": "preparation",
    "read": "readers",
    "with_counters": "counters",
}
_MODULES = ("counters", "datasets", "delays", "sampling", "simulator", "splits")

__all__ = [*_WHERE, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
