"""STAMP: Short-Term Attention/Memory Priority Model for Session-based Recommendation (Liu et al., KDD 2018).

https://doi.org/10.1145/3219819.3219950
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recstack.models.next_item import ReadsPrefixes
from recstack.nn.sequence.short_term import ShortTermMemory
from recstack.schema import Schema


class STAMP(ReadsPrefixes):
    r"""What a user is interested in, times what they did last, is the query for the next item.

    .. math::
        m_a = \sum_l w_0^\top \sigma(W_1 e_l + W_2 e_T + W_3 \bar e + b)\, e_l, \quad h_s = \tanh(W_s m_a + b_s), \quad
        h_t = \tanh(W_t e_T + b_t), \qquad s_i = \langle h_s \odot h_t, e_i \rangle

    The history ``[R, T]``; item ids only. Every prefix is trained, in one pass, whose memory grows with ``T²``: for
    sessions and short histories. Departs from the paper: no sigmoid between the product and the softmax over all items; initial
    embeddings have a deviation of 0.05, there of 0.002.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and memories.
        loss: "softmax" over all items, "sampled_softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a step, uniformly; the softmax draws none.

    Liu et al., KDD 2018, https://doi.org/10.1145/3219819.3219950

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.STAMP(rs.Encoder(train.schema).fit(train).schema, dim=16)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(self, schema: Schema, *, dim: int = 100, loss: str = "softmax", negatives: int = 256):
        super().__init__(schema, dim, loss=loss, negatives=negatives, std=0.05)
        self.memory = ShortTermMemory(dim)

    def interests(self, batch: Mapping[str, Tensor], prefix: Tensor) -> Tensor:
        x, _ = self.inputs(batch, "history").sequence(self.history.name)
        general, current = self.memory.of_prefixes(x, prefix).chunk(2, -1)
        return (general * current).unsqueeze(2)
