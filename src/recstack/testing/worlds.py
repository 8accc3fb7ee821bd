"""Small worlds whose right answer is known, so that what a model has learned can be held against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from recstack.errors import SchemaError
from recstack.schema import Categorical, History, Schema, Task
from recstack.testing.batches import Batch, batch

if TYPE_CHECKING:
    from recstack.data import Log


class World:
    r"""Batches of any schema, labelled by a rule over ids.

    .. math:: z = q_i + 2\, s_d\, c_u c_i + 3\, \bar c_h c_i, \qquad P(\text{first task} = 1) = \sigma(z)

    Items have a quality q between -2 and 2; users and items belong to one of two clusters, c = ±1; a history
    comes from one cluster; in half of the domains tastes are turned round (s = -1). What a schema does not have drops out. A task that is given
    another has :math:`z = 2 q_i + c_i` and is 0 where its condition is; a regression is z with noise.

    Args:
        schema: fitted; its user and item keys, histories and domain are what decides, everything else is noise.
        seed: of the rule.

    >>> from recstack import testing
    >>> world = testing.World(testing.schema())
    >>> some = world.batch(100, 2, seed=1)
    >>> world.truth(some)["click"].shape, some["click@label"].unique().tolist()
    (torch.Size([100, 2]), [0.0, 1.0])
    """

    def __init__(self, schema: Schema, seed: int = 0):
        self.schema = schema
        single = [f.name for f in schema.features if isinstance(f, Categorical) and not f.multi]
        if not single:
            raise SchemaError("A planted world needs a single-valued Categorical feature.")
        self.item = schema.item or single[-1]
        self.user = schema.user or next((n for n in single if n != self.item), None)
        self.domain = next((f.name for f in schema.by_role("domain") if f.name in single), None)
        g = torch.Generator().manual_seed(seed)
        self.quality = torch.rand(self._size(self.item), generator=g) * 4 - 2
        decisive = dict.fromkeys((self.item, self.user, self.domain))  # in an order that does not hang on the names
        self.side = {n: _sides(self._size(n), g) for n in decisive if n is not None}

    def _size(self, name: str) -> int:
        return self.schema.feature(name).size  # type: ignore[attr-defined]

    def batch(self, requests: int, candidates: int, seed: int) -> Batch:
        """A labelled batch, its histories each from one cluster (nine steps in ten)."""
        out = batch(self.schema, requests, candidates, seed)
        g = torch.Generator().manual_seed(seed + 1_000_003)
        for h in self.schema.histories:
            ids = out[f"{h.of[0]}@{h.name}"]
            if h.of[0] != self.item:
                continue
            wanted = torch.randint(0, 2, (requests, 1), generator=g) * 2 - 1
            wanted = torch.where(torch.rand(ids.shape, generator=g) < 0.9, wanted, -wanted)
            side = self.side[self.item]
            pick = torch.rand(*ids.shape, len(side), generator=g) * (side == wanted.unsqueeze(-1))
            pick[..., 0] = 0  # padding is no item
            out[f"{h.of[0]}@{h.name}"] = torch.where(ids > 0, pick.argmax(-1), 0).to(ids.dtype)
        chances = self._chances(out)
        for task in (t for t in self.schema.tasks if not t.derived):
            p = chances[task.name]
            key = f"{task.column}@label"
            if task.kind == "binary":
                out[key] = torch.bernoulli(p.sigmoid(), generator=g)
                if task.given is not None:
                    out[key] *= out[f"{self.schema.task(task.given).column}@label"]
            elif task.kind == "multiclass":
                out[key] = (p > 0).float()
            else:
                out[key] = p + 0.1 * torch.randn(p.shape, generator=g)
        return out

    def truth(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The true probability of each binary task, products included: ``{task: [R, L]}``."""
        chance = {n: z.sigmoid() for n, z in self._chances(batch).items() if self.schema.task(n).kind == "binary"}
        for task in self.schema.tasks:
            if task.product is not None:
                chance[task.name] = torch.stack([chance[n] for n in task.product]).prod(0)
        return chance

    def _chances(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        item = batch[self.item].long()
        item = item if item.dim() == 2 else item.unsqueeze(-1)
        side, quality = self.side[self.item][item].float(), self.quality[item]
        z = quality.clone()
        if self.user is not None:
            user = batch[self.user].long()
            match = side * self.side[self.user][user].view(item.shape[0], -1)
            if self.domain is not None:
                match = match * self.side[self.domain][batch[self.domain].long()].unsqueeze(-1)
            z += 2 * match
        for h in self.schema.histories:
            if h.of[0] == self.item:
                ids = batch[f"{h.of[0]}@{h.name}"].long()
                live = (ids > 0).float()
                mean = (self.side[self.item][ids] * live).sum(-1) / live.sum(-1).clamp(min=1)
                z += 3 * mean.unsqueeze(-1) * side
        return {t.name: z if t.given is None else 2 * quality + side for t in self.schema.tasks if not t.derived}


def _sides(size: int, g: torch.Generator) -> Tensor:
    """Half of the ids on each side, ±1 int64."""
    return torch.where(torch.randperm(size, generator=g) % 2 == 0, 1, -1)


class Communities(NamedTuple):
    """A raw log of two communities: `users[0]` and `users[1]` are raw user ids, `items[0]` and `items[1]` raw item ids."""

    log: Log
    users: tuple[list[int], list[int]]
    items: tuple[list[int], list[int]]


def communities(users: int = 40, items: int = 24, each: int = 6, seed: int = 0) -> Communities:
    """A raw, implicit log in which each user met `each` items of their own community and none of the other.

    Ids are raw (users from 1000, items from 500), one time step after the other; the History is ``watched``. An item has two
    values of ``genre``, which no item of the other community has. Retrievers that count are tested on it: what they
    recommend to a user is from that user's community.
    """
    import numpy as np
    import polars as pl

    from recstack.data import Log

    rng = np.random.default_rng(seed)
    rows = [
        (1000 + u, 500 + 2 * i + u % 2)
        for u in range(users)
        for i in rng.choice(items // 2, each, replace=False).tolist()
    ]
    order = rng.permutation(len(rows))
    frame = pl.DataFrame(
        {
            "user_id": [rows[j][0] for j in order],
            "item_id": [rows[j][1] for j in order],
            "genre": [[rows[j][1] % 2, 2 + rows[j][1] % 6] for j in order],
            "time": list(range(len(rows))),
        }
    )
    features = (
        Categorical("user_id", "user"),
        Categorical("item_id", "item"),
        Categorical("genre", "item", multi=True),
        History("watched", of=("item_id",), max_len=each),
    )
    schema = Schema(features, [Task("click")], time="time")
    log = Log(frame, schema, implicit=True, name="communities")
    sides = tuple([1000 + u for u in range(users) if u % 2 == side] for side in (0, 1))
    goods = tuple([500 + i for i in range(items) if i % 2 == side] for side in (0, 1))
    return Communities(log, sides, goods)  # type: ignore[arg-type]
