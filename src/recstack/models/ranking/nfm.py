"""Neural Factorization Machines for Sparse Predictive Analytics (He and Chua, SIGIR 2017).

https://arxiv.org/abs/1708.05027
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.interaction.fm import pairwise_sum
from recstack.nn.mlp import MLP, NORMS, on_live_rows
from recstack.schema import Schema


class NFM(Model):
    r"""The pairwise products of a factorisation machine, summed to one vector that an MLP reads.

    .. math:: z = b + \sum_i w_i x_i + \mathrm{MLP}\Big(\mathrm{BN} \sum_{i<j} x_i v_i \odot x_j v_j\Big)

    Fields ``[R, L, F, dim]``; one logit per task. The products are normalised over the live rows of the batch and dropped
    before the MLP. The published benchmarks have neither (``norm=None, products_dropout=0``).

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the MLP; empty makes this a factorisation machine with a weight for each dimension.
        norm: "batch", "layer" or None, of the products and in the MLP.
        products_dropout: of the products.
        dropout: in the MLP.

    He and Chua, SIGIR 2017, https://arxiv.org/abs/1708.05027

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.NFM(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        hidden: Sequence[int] = (64,),
        norm: str | None = "batch",
        products_dropout: float = 0.5,
        dropout: float = 0.2,
    ):
        super().__init__(schema)
        self.first_order = FirstOrder(schema)
        self.inputs = Inputs(schema, dim, stacked=True, std=0.01)
        self.mlp = MLP(dim, hidden, norm=norm, dropout=dropout)  # refuses a norm that is not known
        self.norm = nn.Identity() if norm is None else NORMS[norm](dim)
        self.dropout = Dropout(products_dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = batch.get("@mask")
        products = pairwise_sum(self.inputs(batch).stack())  # [R, L, D]
        products = self.dropout(on_live_rows(self.norm, products, mask, products.shape[-1]))
        return self.heads(self.mlp(products, mask), plus=self.first_order(batch))
