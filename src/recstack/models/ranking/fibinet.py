"""FiBiNET: Combining Feature Importance and Bilinear Feature Interaction for Click-Through Rate Prediction (Huang et al., RecSys 2019).

https://arxiv.org/abs/1905.09433
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.importance import FieldImportance
from recstack.nn.mlp import MLP
from recstack.schema import Schema

KINDS = ("all", "each", "interaction")


class FiBiNET(Model):
    r"""Pairs of fields, multiplied through a matrix; once as they are and once weighed by their importance to this row.

    .. math:: p_{ij} = (e_i W) \odot e_j, \quad q_{ij} = (a_i e_i W) \odot a_j e_j, \quad
        a = \mathrm{ReLU}(W_2\, \mathrm{ReLU}(W_1 \bar e)), \qquad z = \sum_i w_i x_i + \mathrm{MLP}([p; q])

    Fields ``[R, L, F, dim]``, :math:`\bar e` the mean of each; pairs ``[R, L, F(F-1)/2, dim]``, twice. Both kinds of pairs
    share W, and the MLP has batch normalisation, as in the published benchmarks. Fields of another width than `dim` are
    lifted to it by a matrix, numbers by a vector.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        bilinear: one W for "all" pairs, one for "each" left field, or one for each "interaction".
        reduction: fields over the hidden width of the importance network.
        hidden: widths of the MLP.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP; 0.5 in the paper.

    Huang et al., RecSys 2019, https://arxiv.org/abs/1905.09433

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FiBiNET(rs.Encoder(train.schema).fit(train).schema, dim=4, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        bilinear: str = "all",
        reduction: int = 3,
        hidden: Sequence[int] = (400, 400, 400),
        norm: str | None = "batch",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.first_order = FirstOrder(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        fields = self.inputs.fields
        self.importance = FieldImportance(fields, reduction)
        self.bilinear = _Bilinear(fields, dim, bilinear)
        self.mlp = MLP(fields * (fields - 1) * dim, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        weighed = fields * self.importance(fields.float().mean(-1)).to(fields.dtype).unsqueeze(-1)
        pairs = torch.cat([self.bilinear(fields), self.bilinear(weighed)], -1)
        return self.heads(self.mlp(pairs, batch.get("@mask")), plus=self.first_order(batch))


class _Bilinear(nn.Module):
    """``(v_i W) ⊙ v_j`` of all i < j behind each other: ``[..., F, D] → [..., F(F-1)/2 · D]``."""

    def __init__(self, fields: int, dim: int, kind: str):
        super().__init__()
        if kind not in KINDS:
            raise unknown("bilinear", kind, KINDS)
        self.kind, self.fields = kind, fields
        matrices = {"all": 1, "each": fields - 1, "interaction": fields * (fields - 1) // 2}[kind]
        self.weight = nn.Parameter(torch.empty(matrices, dim, dim))
        for i in range(matrices):
            nn.init.xavier_normal_(self.weight[i])

    def forward(self, v: Tensor) -> Tensor:
        if self.kind == "all":
            left = v @ self.weight[0]
        elif self.kind == "each":
            left = torch.einsum("...fd,fde->...fe", v[..., :-1, :], self.weight)
        parts, start = [], 0
        for i in range(
            self.fields - 1
        ):  # field by field: its partners lie behind each other, so that no pair is gathered
            partners = v[..., i + 1 :, :]
            n = partners.shape[-2]
            if self.kind == "interaction":
                matrices = self.weight[start : start + n].transpose(0, 1).flatten(1)  # [D, n D]
                parts.append((v[..., i, :] @ matrices).unflatten(-1, (n, -1)) * partners)
                start += n
            else:
                parts.append(left[..., i : i + 1, :] * partners)
        return torch.cat(parts, -2).flatten(-2)
