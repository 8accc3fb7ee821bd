"""SDM: Sequential Deep Matching Model for Online Large-scale Recommender System (Lv et al., CIKM 2019).

https://arxiv.org/abs/1909.00385
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recstack.models.next_item import Profile, ReadsPrefixes
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import MultiHead, masked_softmax
from recstack.nn.sequence.recurrent import LSTM
from recstack.nn.sequence.sessions import begins
from recstack.schema import Schema


class SDM(ReadsPrefixes):
    r"""The session of now and all that came before it are read each in its own way, and a gate fuses them.

    .. math::
        s = \sum_i \mathrm{softmax}_i(x_i^\top e_u)\, x_i, \quad x = \mathrm{MultiHead}(\mathrm{LSTM}(e)), \qquad
        p = \tanh\Big(W \big[\textstyle\sum_i \mathrm{softmax}_i(g^f_i{}^\top e_u)\, g^f_i\big]_f + b\Big), \qquad
        G = \sigma(W_1 e_u + W_2 s + W_3 p + b'), \quad o = (1 - G) \odot p + G \odot s

    The history ``[R, T]`` with all item features f that it reads; a session ends where `gap` passes between two steps (the
    History has to be `timed`) or after `session` steps. s reads the session of the newest step, p the steps before that
    session. e_u is of attributes of the user (not the id). Every prefix is trained, in one pass.

    Departs from the paper: p reads all that the history keeps instead of a week; the next item is the target, not the next
    five, and looked for among the vectors that the history reads. As in the authors' code, a step attends to earlier ones of
    its session only, and the attention has a residual and layer normalisation.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        heads: of the attention within a session; need not divide the width.
        gap: that ends a session, in the unit of the log's times; ten minutes in the paper.
        session: steps of a session, at most.
        dropout: of the LSTM's states.
        loss: "sampled_softmax" (corrected by logQ), "softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a step, uniformly; the softmax draws none.

    Lv et al., CIKM 2019, https://arxiv.org/abs/1909.00385

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.SDM(rs.Encoder(train.schema).fit(train).schema, dim=16, session=5)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        heads: int = 4,
        gap: float = 600.0,
        session: int = 50,
        dropout: float = 0.2,
        loss: str = "sampled_softmax",
        negatives: int = 1280,
    ):
        features = schema.histories[0].of if schema.histories else ()
        super().__init__(schema, dim, loss=loss, negatives=negatives, features=features)
        self.dim, self.gap, self.session = dim, gap, session
        self.profile = Profile(schema, "user", dim=dim)
        self.of_user = linear(self.profile.width, dim, bias=False) if self.profile.width else None
        self.anyone = nn.Parameter(0.02 * torch.randn(dim))
        self.lstm, self.dropout = LSTM(dim * len(features), dim), Dropout(dropout)
        self.attention, self.norm = MultiHead(dim, heads), nn.LayerNorm(dim)
        self.long = linear(dim * len(features), dim)
        self.gate = linear(3 * dim, dim)

    def interests(self, batch: Mapping[str, Tensor], prefix: Tensor) -> Tensor:
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        begin = begins(self.times(batch), mask, self.gap, self.session)
        user = self.anyone.to(x.dtype).expand(x.shape[0], -1)
        if self.of_user is not None:
            user = user + self.of_user(self.profile(batch, x))
        last = (prefix.sum(-1) - 1).clamp(min=0)
        now = prefix & (begin.unsqueeze(1) == begin.gather(1, last).unsqueeze(-1))  # [R, P, T]

        step = torch.arange(x.shape[1], device=x.device)
        state = self.dropout(self.lstm(x, begin == step))
        earlier = (begin.unsqueeze(1) == begin.unsqueeze(2)) & (step <= step.unsqueeze(-1)) & mask.unsqueeze(1)
        state = self.norm(state + self.attention(state, state, earlier))
        short = _read(state, user, now)
        fields = x.split(self.dim, -1)
        long = self.long(torch.cat([_read(field, user, prefix & ~now) for field in fields], -1)).tanh()

        gate = self.gate(torch.cat([user.unsqueeze(1).expand_as(short), short, long], -1)).sigmoid()
        return (long + gate * (short - long)).unsqueeze(2)


def _read(steps: Tensor, user: Tensor, live: Tensor) -> Tensor:
    """Steps ``[R, T, D]`` as the user ``[R, D]`` attends to those that are live ``[R, P, T]``: ``[R, P, D]``."""
    score = (steps * user.unsqueeze(1)).sum(-1).unsqueeze(1)
    return masked_softmax(score, live).to(steps.dtype) @ steps
