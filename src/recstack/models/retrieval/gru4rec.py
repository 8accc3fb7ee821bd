"""Session-based Recommendations with Recurrent Neural Networks (Hidasi et al., ICLR 2016).

https://arxiv.org/abs/1511.06939
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from recstack.models.next_item import NextItem
from recstack.nn.dropout import Dropout
from recstack.nn.sequence.recurrent import GRU
from recstack.schema import Schema


class GRU4Rec(NextItem):
    r"""A GRU reads what a user did, and its state after each step is the query for the next item.

    .. math:: h_t = \mathrm{GRU}(e_{i_t}, h_{t-1}), \qquad s_{t,i} = \langle h_t, o_i \rangle

    The history ``[R, T]``; item ids only. Losses of drawn items and popularity-based sampling are those of its second
    paper (Hidasi and Karatzoglou, CIKM 2018, https://arxiv.org/abs/1706.03847).

    Departs from the paper: gradients go through the whole history, of each user at once, where it goes through single
    steps of sessions side by side; items have no bias; drawn items are not joined by those of other sessions;
    initial embeddings are normal, of deviation 0.1.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        layers: GRUs on top of each other.
        dropout: of what goes into each of them, and of what comes out.
        loss: "softmax" over all items, "bpr_max", "sampled_softmax" (corrected by logQ), "bce" or "gbce".
        negatives: items drawn for a step; the softmax draws none.
        alpha: of drawing them by popularity ** alpha; 0 is uniformly.
        constrained: items that are looked for have the embeddings of items that were met; else a table of their own.

    Hidasi et al., ICLR 2016, https://arxiv.org/abs/1511.06939

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.GRU4Rec(rs.Encoder(train.schema).fit(train).schema, dim=16, loss="bpr_max", negatives=32)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 100,
        layers: int = 1,
        dropout: float = 0.2,
        loss: str = "softmax",
        negatives: int = 2048,
        alpha: float = 0.5,
        constrained: bool = True,
    ):
        super().__init__(
            schema, dim, loss=loss, negatives=negatives, alpha=alpha, out=None if constrained else dim, std=0.1
        )
        self.dropout = Dropout(dropout)
        self.grus = nn.ModuleList(GRU(dim) for _ in range(layers))

    def states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        for gru in self.grus:
            x = gru(self.dropout(x), mask)
        return self.dropout(x), mask
