"""Two towers that meet at every layer, after IntTower: The Next Generation of Two-Tower Model (Li et al., CIKM 2022).

https://arxiv.org/abs/2210.09890
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import Inputs
from recstack.models.base import Batch, Retriever
from recstack.models.in_batch import InBatchSoftmax, shown
from recstack.nn.mlp import MLP, linear
from recstack.nn.sequence import Pooling
from recstack.schema import Schema

USER = ("user", "context", "domain", "history")
AGGREGATES = ("sum", "attention")


class HierarchicalTwoTower(Retriever):
    r"""All layers of both towers meet, and the sum of their inner products is one inner product.

    .. math::
        s(u, i) = \frac1\tau \sum_l w_l \cos(P_l u^{(l)}, Q_l v^{(l)})
        = \Big\langle \tfrac1\tau [w_l\, \overline{P_l u^{(l)}}]_l,\ [\overline{Q_l v^{(l)}}]_l \Big\rangle

    :math:`u^{(l)}, v^{(l)}` are the towers' hidden layers: early ones remember what features are alike, late ones what they
    mean together. The concatenated directions are one vector of layers × `width` numbers for any index; all weights stand
    on the user's side, so that all items have the same length. Trained as `DSSM` is: the other rows' items are the
    negatives, with logQ correction, and candidates with label 0 join them.

    Departs from IntTower, whose maxima over parts of the item's last layer no single vector can serve: each layer meets
    its own counterpart. No squeeze-and-excitation and no contrast beside the softmax.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of both towers' layers.
        width: of each layer's share of the vectors.
        aggregate: "sum": one weight for each layer, learned; "attention": weights that the user's layers choose.
        temperature: τ.
        history: pooling of histories, by name or class; not one that looks at the target.
        dropout: in the towers.

    Li et al., CIKM 2022, https://arxiv.org/abs/2210.09890

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.HierarchicalTwoTower(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16), width=8)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.catalog_vectors().shape[1]
    16
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (256, 128, 64),
        width: int = 32,
        aggregate: str = "sum",
        temperature: float = 0.05,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if aggregate not in AGGREGATES:
            raise unknown("aggregate", aggregate, AGGREGATES)
        if not hidden or temperature <= 0:
            raise ConfigError(f"hidden has a layer at least, temperature is above 0; got {hidden!r}, {temperature:g}.")
        self.temperature = temperature
        own = schema.without(*[f.name for f in schema.fields if f.role == "pair"])  # a pair is known to neither tower
        self.inputs = Inputs(own, dim, history=history, std=0.02)
        self.user_layers = _Layers(self.inputs.width(*USER), hidden, width, dropout)
        self.item_layers = _Layers(self.inputs.width("item"), hidden, width, dropout)
        self.weight = nn.Parameter(torch.zeros(len(hidden)))
        self.choice = linear(len(hidden) * width, len(hidden), bias=False) if aggregate == "attention" else None
        self.softmax = InBatchSoftmax(schema.feature(schema.item).size)  # type: ignore[arg-type, attr-defined]

    def user_vectors(self, batch: Batch) -> Tensor:
        x = self.user_layers(self.inputs(batch, *USER).flat())  # [R, layers, width]
        weight = self.weight if self.choice is None else self.weight + self.choice(x.flatten(-2)).float()
        return (x * weight.softmax(-1).unsqueeze(-1)).flatten(-2).unsqueeze(1) / self.temperature

    def item_vectors(self, batch: Batch) -> Tensor:
        return self.item_layers(self.inputs(batch, "item").flat()).flatten(-2)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """In-batch softmax of the positives. Rows without a positive, and items out of vocabulary, count nothing."""
        ids, label, live, weight = shown(batch, self.schema)
        users, items = self.user_vectors(batch), self.item_vectors(batch).view(*ids.shape, -1)
        return {"softmax": self.softmax(users, items, ids, live & (label > 0), live & (label == 0), weight)}


class _Layers(nn.Module):
    """A tower's layers, each turned to a direction: ``[..., W] → [..., layers, width]``, float32."""

    def __init__(self, inputs: int, hidden: Sequence[int], width: int, dropout: float):
        super().__init__()
        sizes = itertools.pairwise((inputs, *hidden))
        self.layers = nn.ModuleList(MLP(before, (after,), dropout=dropout) for before, after in sizes)
        self.out = nn.ModuleList(linear(size, width) for size in hidden)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for layer, out in zip(self.layers, self.out, strict=True):
            x = layer(x)
            found.append(F.normalize(out(x).float(), dim=-1))
        return torch.stack(found, -2)
