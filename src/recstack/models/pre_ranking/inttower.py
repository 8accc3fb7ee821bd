"""IntTower: The Next Generation of Two-Tower Model for Pre-Ranking System (Li et al., CIKM 2022).

https://arxiv.org/abs/2210.09890
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses as loss_room
from recstack.features import Heads, Inputs, tasks
from recstack.features.columns import column
from recstack.models.base import Model
from recstack.nn.mlp import MLP, linear
from recstack.schema import Schema

REQUEST = ("user", "context", "domain", "history")
MOST = 2048  # pairs of a batch that are contrasted at most: memory grows with their square


class IntTower(Model):
    r"""Two towers that meet early, at each layer of the user's, and in parts: a part of a user looks for its best part of an item.

    .. math:: y = \sum_i \sum_m w_{im} \max_n \langle U_{im} h^u_i,\; V_n h^v \rangle, \qquad
        L = L_y - \lambda \log \frac{e^{\cos(h^u, h^v) / \tau}}{\sum_{j \in \text{batch}} e^{\cos(h^u, h^v_j) / \tau}}

    Of a user all layers' parts ``[R, layers · parts, width]`` and of an item the last layer's, ``[R, L, parts, width]``: the latter may be
    computed ahead. Fields are first weighed by a light squeeze and excitation, :math:`e_f (1 + \mathrm{softmax}(W \bar e + b)_f)`. The
    contrast is of the rows whose first task is positive; other items of the batch are the negatives.

    Features of role "pair" are known to neither tower and are not read.

    Departs from the paper: matches are weighed, by each task, where it adds them (w = 1): tasks and classes differ.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of both towers.
        parts: into how many subspaces a layer is projected.
        width: of a subspace.
        contrast: λ; 0 leaves the contrast out.
        temperature: τ.
        dropout: in the towers.

    Li et al., CIKM 2022, https://arxiv.org/abs/2210.09890

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.pre_ranking.IntTower(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16), width=8)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (300, 300, 128),
        parts: int = 4,
        width: int = 64,
        contrast: float = 0.1,
        temperature: float = 0.2,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.contrast, self.temperature, self.parts = contrast, temperature, parts
        own = schema.without(*[f.name for f in schema.fields if f.role == "pair"])
        self.inputs = Inputs(own, dim, std=0.02)
        self.user_fields = [n for n in self.inputs.widths if self.inputs.roles[n] in REQUEST]
        self.item_fields = [n for n in self.inputs.widths if self.inputs.roles[n] == "item"]
        self.user_se, self.item_se = _LightSE(len(self.user_fields)), _LightSE(len(self.item_fields))
        widths = [self.inputs.width(*REQUEST), *hidden]
        self.user_layers = nn.ModuleList(
            MLP(a, (b,), dropout=dropout) for a, b in zip(widths[:-1], hidden, strict=True)
        )
        self.item_tower = MLP(self.inputs.width("item"), hidden, dropout=dropout)
        self.user_parts = nn.ModuleList(linear(h, parts * width) for h in hidden)
        self.item_parts = linear(hidden[-1], parts * width)
        self.heads = Heads(schema, len(hidden) * parts)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._logits(*self._towers(batch))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each task's own, and "contrast" between the towers' last layers."""
        layers, items = self._towers(batch)
        losses = tasks.losses(self._logits(layers, items), batch, self.schema)
        if self.contrast and self.schema.tasks:
            losses["contrast"] = self.contrast * self._contrast(layers[-1], items, batch)
        return losses

    def _towers(self, batch: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """The user's layers, each ``[R, h]``, and the last of each item, ``[R, L, h]``."""
        slots = self.inputs(batch)
        x, layers = self.user_se([slots[name] for name in self.user_fields]), []
        for layer in self.user_layers:
            x = layer(x)
            layers.append(x)
        return layers, self.item_tower(self.item_se([slots[name] for name in self.item_fields]))

    def _logits(self, layers: list[Tensor], items: Tensor) -> dict[str, Tensor]:
        users = torch.cat(
            [to(h).unflatten(-1, (self.parts, -1)) for to, h in zip(self.user_parts, layers, strict=True)], -2
        )
        parts = self.item_parts(items).unflatten(-1, (self.parts, -1))  # [R, L, N, D]
        return self.heads((users.unsqueeze(-3) @ parts.mT).amax(-1))  # [R, L, layers · M]

    def _contrast(self, users: Tensor, items: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        label, where, weight = tasks.target(batch, self.schema, self.schema.tasks[0])
        row, place = (where & (label > 0)).nonzero(as_tuple=True)
        if len(row) > MOST:
            kept = torch.randperm(len(row), device=row.device)[:MOST]
            row, place = row[kept], place[kept]
        item = self.schema.item
        ids = torch.arange(len(row), device=row.device) if item is None else column(batch, item)[row, place].long()
        return loss_room.in_batch_softmax(
            F.normalize(users.float(), dim=-1)[row],
            F.normalize(items.float(), dim=-1)[row, place],
            ids,
            temperature=self.temperature,
            weight=None if weight is None else weight.expand(label.shape)[row, place],
        )


class _LightSE(nn.Module):
    r"""Fields ``[..., w_f]`` side by side, each times :math:`1 + \mathrm{softmax}(W \bar e + b)_f` of all fields' means."""

    def __init__(self, fields: int):
        super().__init__()
        self.score = linear(fields, fields)

    def forward(self, fields: list[Tensor]) -> Tensor:
        means = torch.stack([e.float().mean(-1) for e in fields], -1)
        k = 1 + self.score(means).float().softmax(-1)
        return torch.cat([e * k[..., i : i + 1].to(e.dtype) for i, e in enumerate(fields)], -1)
