"""Perceive Your Users in Depth: Learning Universal User Representations from Multiple E-commerce Tasks (Ni et al., KDD 2018).

https://arxiv.org/abs/1805.10727
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recstack.errors import unknown
from recstack.models.next_item import Profile, ReadsPrefixes
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear
from recstack.nn.sequence.property_gated import PropertyGated
from recstack.schema import Schema


class DUPN(ReadsPrefixes):
    r"""A user is an LSTM over their behaviours, gated by what kind each was, read by attention; here as a retriever.

    .. math:: h = \mathrm{LSTM}(e; \text{gates of } [e; p]), \qquad
        a_t \propto \exp\big(w^\top \tanh(W [h_t; p_t; u] + b)\big), \qquad
        x = A \big[\textstyle\sum_t a_t h_t ; u\big], \qquad s = x^\top v_i

    e_t are the items of the history ``[R, T]``, p_t their properties: features of the History that say what the user did,
    where or in which surroundings, rather than what the item is. u is of attributes of the user and of the request (not the
    id). Every prefix is trained to find the next item, in one pass. The encoder is `nn.sequence.property_gated`.

    Departs from the paper: one task, the next item, in the place of five; no query; no peepholes in the LSTM.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        properties: features of the History that gate; None: all beside the item key.
        attention: width of its layer.
        dropout: of what goes into the LSTM.
        loss: "sampled_softmax" (corrected by logQ), "softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a step, uniformly; the softmax draws none.

    Ni et al., KDD 2018, https://arxiv.org/abs/1805.10727

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.DUPN(rs.Encoder(train.schema).fit(train).schema, dim=16)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 128,
        properties: tuple[str, ...] | None = None,
        attention: int = 64,
        dropout: float = 0.2,
        loss: str = "sampled_softmax",
        negatives: int = 1280,
    ):
        features = schema.histories[0].of if schema.histories else ()
        super().__init__(schema, dim, loss=loss, negatives=negatives, features=features)
        beside = [name for name in features if name != schema.item]
        for name in properties or ():
            if name not in beside:
                raise unknown(f"property of History {self.history.name!r}", name, beside)
        chosen = beside if properties is None else properties
        self.dim, self.gating = dim, [name in chosen for name in features]
        self.profile = Profile(schema, "user", "context", "domain", dim=dim)
        n, side = sum(self.gating), self.profile.width
        self.encoder = PropertyGated(dim * (len(features) - n), dim * n, dim, side, attention)
        self.dropout, self.out = Dropout(dropout), linear(dim + side, dim)

    def interests(self, batch: Mapping[str, Tensor], prefix: Tensor) -> Tensor:
        x, _ = self.inputs(batch, "history").sequence(self.history.name)
        fields, user = self.dropout(x).split(self.dim, -1), self.profile(batch, x)
        e = torch.cat([f for f, gating in zip(fields, self.gating, strict=True) if not gating], -1)
        p = torch.cat([x[..., :0], *(f for f, gating in zip(fields, self.gating, strict=True) if gating)], -1)
        read = self.encoder(e, p, user, prefix)
        return self.out(torch.cat([read, user.float().unsqueeze(1).expand(-1, read.shape[1], -1)], -1)).unsqueeze(2)
