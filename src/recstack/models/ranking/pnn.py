"""Product-based Neural Networks for User Response Prediction over Multi-field Categorical Data (Qu et al., TOIS 2018).

https://arxiv.org/abs/1807.00311; inner and outer products as of ICDM 2016, https://arxiv.org/abs/1611.00144
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import SchemaError
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.products import KernelProducts, PairNetworks, inner_products, outer_product
from recstack.nn.mlp import MLP
from recstack.schema import Schema


class IPNN(Model):
    r"""An MLP over the embeddings and the inner products of all pairs of them.

    .. math:: z = \mathrm{MLP}\big([v_1; \dots; v_F; \langle v_1, v_2 \rangle; \dots; \langle v_{F-1}, v_F \rangle]\big)

    Fields ``[R, L, F, dim]``, products ``[R, L, F (F - 1) / 2]`` in float32. Departs from the paper of 2016: the first layer
    has a weight for each product, as in the paper of 2018, where that one factorised it.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the MLP.
        norm: "batch", "layer" or None.
        dropout: in the MLP.

    Qu et al., ICDM 2016, https://arxiv.org/abs/1611.00144

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.IPNN(rs.Encoder(train.schema).fit(train).schema, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        hidden: Sequence[int] = (400, 400, 400),
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        fields = self.inputs.fields
        self.mlp = MLP(fields * dim + fields * (fields - 1) // 2, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        x = torch.cat([fields.flatten(-2), inner_products(fields)], -1)
        return self.heads(self.mlp(x, batch.get("@mask")))


class OPNN(Model):
    r"""An MLP over the embeddings and the outer product of their sum, which holds all pairs of dimensions.

    .. math:: z = \mathrm{MLP}\big([v_1; \dots; v_F; f f^\top]\big), \qquad f = \sum_i v_i

    Fields ``[R, L, F, dim]``, products ``[R, L, dim (dim + 1) / 2]`` in float32: the matrix is symmetric, and the MLP reads
    its upper triangle.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the MLP.
        norm: "batch", "layer" or None.
        dropout: in the MLP.

    Qu et al., ICDM 2016, https://arxiv.org/abs/1611.00144

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.OPNN(rs.Encoder(train.schema).fit(train).schema, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        hidden: Sequence[int] = (400, 400, 400),
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        self.mlp = MLP(self.inputs.fields * dim + dim * (dim + 1) // 2, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        x = torch.cat([fields.flatten(-2), outer_product(fields)], -1)
        return self.heads(self.mlp(x, batch.get("@mask")))


class KPNN(Model):
    r"""As IPNN, the product of each pair going through a kernel that only that pair has.

    .. math:: z = \mathrm{MLP}\big([v_1; \dots; v_F; v_1^\top W_{12} v_2; \dots; v_{F-1}^\top W_{F-1,F} v_F]\big)

    Fields ``[R, L, F, dim]``, products ``[R, L, F (F - 1) / 2]`` in float32. Kernels begin as the identity, so that training
    begins at IPNN.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        kernel: each W is a "matrix", a "vector" (its diagonal) or a "number".
        hidden: widths of the MLP.
        norm: "batch", "layer" or None.
        dropout: in the MLP.

    Qu et al., TOIS 2018, https://arxiv.org/abs/1807.00311

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.KPNN(rs.Encoder(train.schema).fit(train).schema, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        kernel: str = "matrix",
        hidden: Sequence[int] = (400, 400, 400),
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        fields = self.inputs.fields
        self.products = KernelProducts(fields, dim, kernel)
        self.mlp = MLP(fields * dim + fields * (fields - 1) // 2, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        x = torch.cat([fields.flatten(-2), self.products(fields)], -1)
        return self.heads(self.mlp(x, batch.get("@mask")))


class PIN(Model):
    r"""A product network in a network: what a pair of fields means is learned by a small network of its own.

    .. math:: z = \mathrm{MLP}\big([f_{12}; \dots; f_{F-1,F}]\big), \qquad f_{ij} = \mathrm{MLP}_{ij}([v_i; v_j; v_i \odot v_j])

    Fields ``[R, L, F, dim]``, pairs ``[R, L, F (F - 1) / 2, H]``, H the last of `pair_hidden`. The small networks have no
    normalisation, and the MLP reads nothing but what they give.

    Args:
        schema: a fitted schema of at least two features.
        dim: embedding width.
        pair_hidden: widths of each pair's network.
        hidden: widths of the MLP.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.

    Qu et al., TOIS 2018, https://arxiv.org/abs/1807.00311

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.PIN(rs.Encoder(train.schema).fit(train).schema, pair_hidden=(8, 2), hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        pair_hidden: Sequence[int] = (40, 5),
        hidden: Sequence[int] = (400, 400, 400),
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        if self.inputs.fields < 2:
            raise SchemaError("PIN reads pairs of features, and the schema has fewer than two.")
        self.products = PairNetworks(self.inputs.fields, dim, pair_hidden)
        self.mlp = MLP(self.products.width, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        products = self.products(self.inputs(batch).stack())  # [R, L, P · H]
        return self.heads(self.mlp(products, batch.get("@mask")))
