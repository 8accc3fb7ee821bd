"""Latent Cross: Making Use of Context in Recurrent Recommender Systems (Beutel et al., WSDM 2018).

https://doi.org/10.1145/3159652.3159727
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from recstack.errors import SchemaError, unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.nn.sequence.pooling import Last
from recstack.nn.sequence.recurrent import GRU
from recstack.schema import Feature, Schema, is_embedded
from recstack.schema.features import REQUEST_ROLES

PLACES = ("both", "before", "after")


class LatentCross(Model):
    r"""The context of the request multiplies what goes into a GRU over the history, and what comes out.

    .. math:: h' = \Big(1 + \sum_c w_c\Big) \odot h, \qquad
        z = \mathrm{MLP}([\mathrm{GRU}(h'_1, \dots, h'_T)'; e_t; \dots])

    A product is what an MLP is slow to learn from contexts beside each other. Each context has its own vectors w, drawn
    near 0, so that the cross begins as the identity; the MLP reads the contexts too. Histories ``[R, T]`` are read once
    for all candidates ``[R, L]``. Departs from the paper: the context is that of the request, also where it crosses the
    steps; an MLP reads the state beside the target, not a softmax over all items.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        context: features of the request that cross; None is those of role "context", or of the user where there are
            none.
        place: where contexts cross: "before" the GRU, "after" it, or "both".
        hidden: widths of the MLP.
        activation: in the MLP.
        dropout: in the MLP.

    Beutel et al., WSDM 2018, https://doi.org/10.1145/3159652.3159727

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.LatentCross(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs = ("history", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        context: Sequence[str] | None = None,
        place: str = "both",
        hidden: Sequence[int] = (200, 80),
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if place not in PLACES:
            raise unknown("place", place, PLACES)
        self.inputs = Inputs(schema, dim, history=None, std=0.01)
        # what may be given and frozen are the vectors that the MLP reads; those that cross are learned
        learned = [replace(f, trainable=True) if is_embedded(f) else f for f in _contexts(schema, context)]
        crossing = schema.replace(features=learned, user=None, item=None)
        widths = {h.name: sum(self.inputs.widths[name] for name in h.of) for h in schema.histories}
        self.grus = ByName({name: GRU(width) for name, width in widths.items()})
        self.before, self.after = (
            ByName({name: _Cross(crossing, width) for name, width in widths.items()} if place != other else {})
            for other in ("after", "before")
        )
        self.last = Last(0)
        self.mlp = MLP(self.inputs.width() + sum(widths.values()), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = self.inputs(batch)
        request, candidate = slots.sides()  # both are there: it needs a context, and an item
        parts = [request, *(self.state(batch, h.name, *slots.sequence(h.name)) for h in self.schema.histories)]
        request = torch.cat([part.to(request.dtype) for part in parts], -1)
        return self.heads(self.mlp((request, candidate), batch.get("@mask")))

    def state(self, batch: Mapping[str, Tensor], name: str, sequence: Tensor, mask: Tensor) -> Tensor:
        """The crossed state after the newest step of a history ``[R, W]``; zeros where it is empty."""
        if name in self.before:
            sequence = self.before[name](batch, sequence)
        last = self.last(None, self.grus[name](sequence, mask), mask)
        return self.after[name](batch, last.unsqueeze(1)).squeeze(1) if name in self.after else last


def _contexts(schema: Schema, names: Sequence[str] | None) -> list[Feature]:
    if names is None:
        found = list(schema.by_role("context") or schema.by_role("user"))
    else:
        found = [schema.feature(name) for name in names]
    for f in found:
        if f.role not in REQUEST_ROLES:
            raise SchemaError(
                f"LatentCross crosses what a request has once, and {f.name!r} has role={f.role!r}; "
                f"give context= features of role {', '.join(REQUEST_ROLES)}."
            )
    if not found:
        raise SchemaError(
            "LatentCross needs a feature with role='context' or 'user' that crosses, and none is declared."
        )
    return found


class _Cross(nn.Module):
    """``x [R, n, W]``, element by element times one plus the sum of the contexts' vectors."""

    def __init__(self, context: Schema, width: int):
        super().__init__()
        self.inputs = Inputs(context, width, stacked=True, uniform=True, std=0.01)

    def forward(self, batch: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return (1 + self.inputs(batch).stack().sum(-2)) * x  # [R, 1, W]
