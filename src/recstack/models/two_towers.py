"""What two-tower retrievers share: the towers, and the rows that they learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import SchemaError
from recstack.features import Inputs
from recstack.features.inputs import Slots
from recstack.nn.interaction.importance import FieldImportance
from recstack.nn.mlp import MLP
from recstack.nn.sequence import Pooling
from recstack.schema import Schema, Task

USER = ("user", "context", "domain", "history")
PAIRS = "pair"  # what is known of a user and an item together is known to neither tower


class Towers(nn.Module):
    """A user tower and an item tower over shared tables; either gives vectors of length 1, in float32.

    Args:
        schema: a fitted schema with features of a user and of items.
        dim: embedding width.
        hidden: widths of both towers; the last is D.
        history: pooling of histories, by name or class; not one that looks at the target.
        dropout: in the towers.
        senet: features are weighed by `FieldImportance`, beside what they are: :math:`(1 + a_f)\\, e_f`.
        more: widths of what `user` and `item` are given beside the batch.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        hidden: Sequence[int],
        *,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
        senet: bool = False,
        more: tuple[int, int] = (0, 0),
    ):
        super().__init__()
        own = schema.without(*[f.name for f in schema.fields if f.role == PAIRS])
        self.inputs = Inputs(own, dim, history=history, std=0.02)
        self.user_tower = MLP(self.inputs.width(*USER) + more[0], hidden[:-1], dropout=dropout)
        self.item_tower = MLP(self.inputs.width("item") + more[1], hidden[:-1], dropout=dropout)
        self.user_out = nn.Linear(self.user_tower.width, hidden[-1])
        self.item_out = nn.Linear(self.item_tower.width, hidden[-1])
        self.user_fields = FieldImportance(len(self._names(*USER))) if senet else None
        self.item_fields = FieldImportance(len(self._names("item"))) if senet else None

    def user(self, batch: Mapping[str, Tensor], more: Tensor | None = None) -> Tensor:
        """``[R, D]``; `more` ``[R, width]``."""
        x = self._flat(self.inputs(batch, *USER), self.user_fields, USER, more)
        return F.normalize(self.user_out(self.user_tower(x)).float(), dim=-1)

    def item(self, batch: Mapping[str, Tensor], more: Tensor | None = None) -> Tensor:
        """``[R, L, D]`` of candidates, ``[N, D]`` of items that stand alone."""
        x = self._flat(self.inputs(batch, "item"), self.item_fields, ("item",), more)
        return F.normalize(self.item_out(self.item_tower(x)).float(), dim=-1)

    def _names(self, *roles: str) -> list[str]:
        return [name for name in self.inputs.widths if self.inputs.roles[name] in roles]

    def _flat(
        self, slots: Slots, importance: FieldImportance | None, roles: tuple[str, ...], more: Tensor | None
    ) -> Tensor:
        if importance is None:
            x = slots.flat()
        else:
            fields = [slots[name] for name in self._names(*roles)]
            a = 1 + importance(torch.stack([e.float().mean(-1) for e in fields], -1))
            x = torch.cat([e * a[..., i : i + 1].to(e.dtype) for i, e in enumerate(fields)], -1)
        return x if more is None else torch.cat([x, more.to(x.dtype)], -1)


def task_of(schema: Schema, name: str | None) -> Task:
    """The task that a tower learns: `name`, or the schema's first.

    Raises:
        SchemaError: there is none.
    """
    if not schema.tasks:
        raise SchemaError("A tower learns which items are chosen; declare a task, as in Task('click').")
    return schema.tasks[0] if name is None else schema.task(name)
