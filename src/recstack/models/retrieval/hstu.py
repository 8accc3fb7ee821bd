"""Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations (Zhai et al., ICML 2024).

https://arxiv.org/abs/2402.17152
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from recstack.models.next_item import NextItem
from recstack.nn.sequence.hstu import CausalHSTU
from recstack.schema import Schema


class HSTU(NextItem):
    r"""Sequential transduction units read what a user did, and the state after each step is the query for the next item.

    .. math::
        U, V, Q, K = \mathrm{SiLU}(W_1\,\mathrm{LN}(X)), \qquad
        X \leftarrow X + W_2\Big(\mathrm{LN}\big(\tfrac1N\,\mathrm{SiLU}(Q K^\top + r_{pos} + r_{time})\, V\big) \odot
            U\Big), \qquad s_{t,i} = \langle \mathrm{LN}(X_t), E_i \rangle

    The history ``[R, T]``; item ids only, and their distances in time where the History is `timed`.

    Departs from the paper: no action tokens between items; distances in time are those between steps, not those to the
    step that is predicted; states and items are not normalised to length one.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        layers: units on top of each other.
        heads: of the attention; need not divide the width.
        dropout: of embeddings, and of what a unit adds.
        loss: "sampled_softmax" (corrected by logQ) in the paper, "softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a step, uniformly; the softmax draws none.

    Zhai et al., ICML 2024, https://arxiv.org/abs/2402.17152

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.HSTU(rs.Encoder(train.schema).fit(train).schema, dim=16)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        layers: int = 2,
        heads: int = 1,
        dropout: float = 0.2,
        loss: str = "softmax",
        negatives: int = 128,
    ):
        super().__init__(schema, dim, loss=loss, negatives=negatives)
        self.stack = CausalHSTU(dim, layers, heads, self.history.max_len, dropout)
        self.dropout, self.norm, self.scale = nn.Dropout(dropout), nn.LayerNorm(dim), dim**0.5

    def states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        x = self.stack(self.dropout(x * self.scale), mask, self.times(batch))
        return self.norm(x) * mask.unsqueeze(-1), mask
