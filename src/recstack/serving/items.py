"""What people call the items: titles and attributes for pages and histories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from recstack.data.encoder import Encoder
from recstack.errors import BundleError
from recstack.schema import Categorical

NAME = "items.json"


class Items:
    """Titles and attributes by raw item id.

    Args:
        encoder: gives the attributes that it can turn back into raw values, where `texts` says nothing of an item.
        texts: ``{str(raw id): {"title": ..., other columns}}``; what a bundle's file items.json holds.
    """

    def __init__(self, encoder: Encoder, texts: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.encoder, self.texts = encoder, dict(texts or {})
        self.key: str = encoder.schema.item  # type: ignore[assignment]
        self.features = [
            f.name
            for f in encoder.schema.by_role("item")
            if isinstance(f, Categorical) and f.name != self.key and f.buckets is None
        ]

    def title(self, item: Any) -> str | None:
        """What the item is called, if anybody said so."""
        title = self.texts.get(str(item), {}).get("title")
        return None if title is None else str(title)

    def describe(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        """``{"item", "title", "about": {attribute: value or list}}`` of raw ids; None is an item that nobody knows."""
        if not items:
            return []
        ids = self.encoder.encode_values(self.key, items)
        batch = self.encoder.catalog.batch(ids, only=self.features)  # type: ignore[union-attr]
        columns = {name: self.encoder.decode(name, batch[name].numpy()).tolist() for name in self.features}
        out = []
        for i, item in enumerate(items):
            about = {n: c[i] for n, c in columns.items()}
            about = {n: [x for x in v if x is not None] if isinstance(v, list) else v for n, v in about.items()}
            about |= {n: v for n, v in self.texts.get(str(item), {}).items() if n != "title"}
            about = {n: v for n, v in about.items() if v not in (None, [])}
            out.append({"item": item, "title": self.title(item), "about": about})
        return out


def read_items(text: str) -> dict[str, dict[str, Any]]:
    """The file items.json of a bundle; raises BundleError."""
    items = read_object(NAME, text)
    if not all(isinstance(row, dict) for row in items.values()):
        raise BundleError(f'The bundle\'s {NAME} must be {{"<item id>": {{"title": ...}}}}.')
    return items


def read_object(name: str, text: str) -> dict[str, Any]:
    """A JSON object among a bundle's text files; raises BundleError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"The bundle's {name} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise BundleError(f"The bundle's {name} must be a JSON object.")
    return found
