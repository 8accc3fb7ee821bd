"""Columns whose blocks lie on a device as a whole, for data that fit there: batches are gathered there too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError

if TYPE_CHECKING:
    from recstack.data.columns import Columns
    from recstack.data.store import Block


class Resident:
    """Pointwise columns of single values on a device; made by `Columns.to`.

    Args:
        columns: rows of one candidate, without histories and multi-valued features.
        device: where they go.

    Raises:
        ConfigError: columns that are lists, or hold what has no fixed width, by name.
    """

    def __init__(self, columns: Columns, device: str | torch.device) -> None:
        blocks = columns.blocks()
        wide = [h.name for h in columns.schema.histories] + [n for b in blocks.values() for n in b.lists]
        if wide or columns.has_lists:
            what = f"feature {wide[0]!r}, whose length differs by row" if wide else "requests of several candidates"
            raise ConfigError(f"Columns.to({str(device)!r}) takes no {what}; use Loader(columns, ..., device=...).")
        self.device = torch.device(device)
        self.schema, self.implicit, self.catalog = columns.schema, columns.implicit, columns.catalog
        self.n_requests, self.n_rows, self.digest = columns.n_requests, columns.n_rows, columns.digest
        self._blocks = {n: _Block(b, self.device) for n, b in blocks.items() if n != "catalog"}
        arrays = columns.arrays()
        single = ("user_rows", "item_rows", "times", "weights")
        self._single = {n: torch.tensor(arrays[n], device=self.device) for n in single if n in arrays}

    def __len__(self) -> int:
        return self.n_requests

    def __repr__(self) -> str:
        return f"Resident({self.n_requests:,} requests on {self.device})"

    def index(self, order: np.ndarray) -> Tensor:
        """Positions on the device, int64."""
        return torch.from_numpy(order).to(self.device)

    def batch(self, index: Tensor | np.ndarray | slice, *, times: bool = False) -> dict[str, Tensor]:
        """As `Columns.batch`, gathered on the device."""
        at = self.index(index) if isinstance(index, np.ndarray) else index
        batch = self._blocks["user"].take(at)
        if "users" in self._blocks:
            batch |= self._blocks["users"].take(self._single["user_rows"][at])
        if times and "times" in self._single:
            batch["@time"] = self._single["times"][at]
        candidates = self._blocks["item"].take(at)
        if "items" in self._blocks:
            candidates |= self._blocks["items"].take(self._single["item_rows"][at])
        candidates |= {f"{n}@label": t for n, t in self._blocks["labels"].take(at).items()}
        if "weights" in self._single:
            candidates["@weight"] = self._single["weights"][at]
        return batch | {n: t.unsqueeze(1) for n, t in candidates.items()}

    def release(self) -> None:
        """Nothing is mapped here."""

    def wanted(self, start: int, stop: int) -> None:
        """Everything is here."""


class _Block:
    def __init__(self, block: Block, device: torch.device) -> None:
        self.ids, self.floats = torch.tensor(block.ids, device=device), torch.tensor(block.floats, device=device)
        self.id_names, self.float_names = block.id_names, block.float_names

    def take(self, at: Tensor | slice) -> dict[str, Tensor]:
        out = dict(zip(self.id_names, self.ids[at].unbind(-1), strict=True)) if self.id_names else {}
        if self.float_names:
            floats, start = self.floats[at], 0
            for name, width in self.float_names:
                out[name] = floats[:, start : start + width] if width else floats[:, start]
                start += max(1, width)
        return out
