"""Deep Learning Recommendation Model for Personalization and Recommendation Systems (Naumov et al., arXiv 2019).

https://arxiv.org/abs/1906.00091
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import SchemaError, unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.products import inner_products
from recstack.nn.mlp import MLP
from recstack.schema import History, Schema, is_embedded

INTERACTIONS = ("dot", "cat")


class DLRM(Model):
    r"""Numbers become one more vector by an MLP; a second MLP reads it and the inner products of all vectors.

    .. math:: e_0 = \mathrm{MLP}_{bottom}(x), \qquad
        z = \mathrm{MLP}\big([e_0; \langle e_i, e_j \rangle_{0 \le i < j \le F}]\big)

    Vectors ``[R, L, F + 1, dim]``, products in float32. Numbers x are those of the schema that have no table, given vectors
    included; without any there is no bottom MLP and no e_0. With ``interaction="cat"`` the second MLP reads the vectors behind
    each other instead: the DNN of the published benchmarks where there are no numbers.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        bottom: widths of the MLP over numbers; a layer of width `dim` follows.
        interaction: "dot" or "cat".
        self_interaction: with the product of each vector with itself, for "dot".
        hidden: widths of the MLP on top.
        norm: "batch", "layer" or None, on top.
        dropout: in the MLP on top.

    Naumov et al., 2019, https://arxiv.org/abs/1906.00091

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DLRM(rs.Encoder(train.schema).fit(train).schema, bottom=(16,), hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        bottom: Sequence[int] = (512, 256, 64),
        interaction: str = "dot",
        self_interaction: bool = False,
        hidden: Sequence[int] = (512, 256),
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if interaction not in INTERACTIONS:
            raise unknown("interaction", interaction, INTERACTIONS)
        self.dot, self.diagonal = interaction == "dot", self_interaction
        looked_up = [f.name for f in schema.features if is_embedded(f) or isinstance(f, History)]
        numbers = [name for name in schema.names if name not in looked_up]
        self.inputs = Inputs(schema.without(*numbers), dim, stacked=True) if looked_up else None
        self.numbers = Inputs(schema.without(*looked_up)) if numbers else None
        self.bottom = MLP(self.numbers.width(), (*bottom, dim)) if self.numbers is not None else None
        vectors = (self.inputs.fields if self.inputs is not None else 0) + bool(numbers)
        pairs = vectors * (vectors - 1) // 2 + vectors * self_interaction
        width = dim * bool(numbers) + pairs if self.dot else vectors * dim
        if not width:
            raise SchemaError("DLRM has one vector and no pair; declare more features, or self_interaction=True.")
        self.mlp = MLP(width, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        number, vectors = self._vectors(batch)  # [R, L, D] or None; [R, L, F + 1, D]
        if not self.dot:
            x = vectors.flatten(-2)
        else:
            x = inner_products(vectors, self.diagonal)
            x = x if number is None else torch.cat([number, x], -1)
        return self.heads(self.mlp(x, batch.get("@mask")))

    def _vectors(self, batch: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        """The vector of the numbers, and all vectors with it first."""
        fields = None if self.inputs is None else self.inputs(batch).stack()
        if self.bottom is None or self.numbers is None:
            assert fields is not None
            return None, fields
        number = self.bottom(self.numbers(batch).sides())
        if fields is None or self.inputs is None:
            return number, number.unsqueeze(-2)
        # one of both may be of requests alone, [R, 1, ...]
        lead = fields.shape[:-2] if self.inputs.has_candidates else number.shape[:-1]
        number = number.expand(*lead, -1)
        return number, torch.cat([number.unsqueeze(-2), fields.expand(*lead, -1, -1)], -2)
