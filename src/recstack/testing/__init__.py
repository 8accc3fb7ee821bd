"""The public contract kit: made-up schemas and batches, worlds with a known answer, and the laws that every model keeps."""

from recstack.testing.batches import (
    batch,
    keys_only,
    pad_histories,
    pad_lists,
    rename,
    schema,
    take,
    to_jagged,
    with_dims,
    without_numbers,
)
from recstack.testing.contract import COUNTED, LAWS, Case, Law, check, laws, wake
from recstack.testing.worlds import Communities, World, communities

__all__ = [
    "COUNTED",
    "LAWS",
    "Case",
    "Communities",
    "Law",
    "World",
    "batch",
    "check",
    "communities",
    "keys_only",
    "laws",
    "pad_histories",
    "pad_lists",
    "rename",
    "schema",
    "take",
    "to_jagged",
    "wake",
    "with_dims",
    "without_numbers",
]
