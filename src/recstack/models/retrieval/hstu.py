"""Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations (Zhai et al., ICML 2024).

https://arxiv.org/abs/2402.17152
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.models.next_item import NextItem
from recstack.nn.dropout import Dropout
from recstack.nn.sequence.hstu import CausalHSTU
from recstack.schema import Schema


class HSTU(NextItem):
    r"""Sequential transduction units read what a user did, and the state after each step is the query for the next item.

    .. math::
        U, V, Q, K = \mathrm{SiLU}(W_1\,\mathrm{LN}(X)), \qquad
        X \leftarrow X + W_2\Big(\mathrm{LN}\big(\tfrac1N\,\mathrm{SiLU}(Q K^\top + r_{pos} + r_{time})\, V\big) \odot
            U\Big), \qquad s_{t,i} = \langle \mathrm{LN}(X_t), E_i \rangle

    The history ``[R, T]``; item ids only. Where the History is `timed`, r_time is of the time between each earlier step and
    what follows the step that reads it: at the newest step, the request.

    Departs from the paper: no action tokens between items. The authors' experiments on public sequences add positions to the
    items, compare by cosines at a temperature of 0.05, and draw 128 items for a sampled softmax.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        layers: units on top of each other.
        heads: of the attention; need not divide the width.
        dropout: of embeddings, and of what a unit adds.
        temperature: that cosines are divided by, instead of inner products with normalised states; None keeps these.
        loss: "softmax", "sampled_softmax" (corrected by logQ), "bpr_max", "bce" or "gbce".
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
        temperature: float | None = None,
        loss: str = "softmax",
        negatives: int = 128,
    ):
        super().__init__(schema, dim, loss=loss, negatives=negatives)
        self.stack = CausalHSTU(dim, layers, heads, self.history.max_len, dropout)
        self.dropout, self.scale, self.temperature = Dropout(dropout), dim**0.5, temperature
        self.norm = nn.LayerNorm(dim) if temperature is None else nn.Identity()

    def states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        x = self.stack(self.dropout(x * self.scale), mask, self.moments(batch, mask))
        x = self.norm(x) * mask.unsqueeze(-1)
        return x if self.temperature is None else self.compared(x) / self.temperature, mask

    def compared(self, vectors: Tensor) -> Tensor:
        return vectors if self.temperature is None else F.normalize(vectors.float(), dim=-1, eps=1e-6)

    def moments(self, batch: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor] | None:
        """When the steps were, and what follows each of them, ``[R, T]``; nothing follows the newest if nobody asks."""
        times, now = self.times(batch), batch.get("@time")
        if times is None:
            return None
        last = mask.sum(-1, keepdim=True) - 1 == torch.arange(mask.shape[1], device=mask.device)
        return times, torch.where(last, times if now is None else now.unsqueeze(-1), F.pad(times[:, 1:], (0, 1)))
