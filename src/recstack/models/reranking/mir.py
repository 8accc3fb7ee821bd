"""Multi-Level Interaction Reranking with User Behavior History (Xi et al., SIGIR 2022).

https://arxiv.org/abs/2204.09370
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.features import Heads, Inputs
from recstack.models.base import Reranker
from recstack.nn.lists import ListEncoder, Steps
from recstack.nn.mlp import MLP, linear, split_linear
from recstack.nn.sequence.attention import age, masked_softmax
from recstack.nn.sequence.transformer import SelfAttention
from recstack.schema import Schema


class MIR(Reranker):
    r"""The set of candidates and the list of what the user did read each other, and fade with time at each user's rate.

    .. math:: C = \tanh\big(U W V^\top (1 + e^{-\theta_u \log t})\big), \quad
              H_v = \tanh(V W_v + C^\top U W_u), \quad H_u = \tanh(U W_u + C V W_v)

    .. math:: v_i = \sum_j \mathrm{softmax}_j(V_i W_i \cdot H_{v,j})\, V_j, \qquad
              u_i = \sum_t \mathrm{softmax}_t(V_i W_i \cdot H_{u,t})\, U_t, \qquad z_i = \mathrm{MLP}([x_i; v_i; u_i])

    V ``[R, L, 2 width]`` are the candidates beside what self-attention makes of them (no order is seen), U ``[R, T, 2
    width]`` the steps beside a recurrent reading; t is a step's distance from now, :math:`\theta_u \ge 0`.

    Departs from the paper: a GRU for the LSTM; attention by products with :math:`V_i W_i` where the paper's matrices have a
    row for each place of the list; affinities of features are the part of W between what enters V and U unread.

    Args:
        schema: a fitted schema.
        dim: embedding width of ids.
        width: of candidates, and of steps.
        heads: of the self-attention.
        attention: width of the space in which the two sides meet.
        hidden: widths of the MLP.
        dropout: in the MLP.

    Xi et al., SIGIR 2022, https://arxiv.org/abs/2204.09370

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.MIR(rs.Encoder(train.schema).fit(train).schema, width=16, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs: ClassVar[tuple[str, ...]] = ("item", "history")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        width: int = 64,
        heads: int = 1,
        attention: int = 64,
        hidden: Sequence[int] = (500, 200, 80),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, history=None)
        widths = {h.name: sum(self.inputs.widths[name] for name in h.of) for h in schema.histories}
        self.steps = Steps(widths, width, max(h.max_len for h in schema.histories))
        self.read = ListEncoder("bigru", width)
        self.project = linear(self.inputs.width(), width)
        self.of_set = SelfAttention(width, heads)
        self.affinity = linear(2 * width, 2 * width, bias=False)
        known = self.inputs.width("user")
        self.fading = linear(known, 1) if known else nn.Parameter(torch.zeros(1))
        self.of_items, self.of_steps, self.query = (linear(2 * width, attention, bias=False) for _ in range(3))
        self.mlp = MLP(5 * width, hidden, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = self.inputs(batch)
        x = split_linear(self.project, slots.sides())  # [R, L, width]
        mask = batch.get("@mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        x = x * mask.unsqueeze(-1)
        histories = {h.name: slots.sequence(h.name) for h in self.schema.histories}
        steps, live = self.steps(histories)
        far = torch.cat([age(m).clamp(min=1) for _, m in histories.values()], 1)
        v = torch.cat([self.of_set(x, mask), x], -1)
        u = torch.cat([self.read(steps, live), steps], -1)

        rate = self.fading(slots.flat("user")) if isinstance(self.fading, nn.Linear) else self.fading  # [R, 1] or [1]
        fade = 1 + (-F.softplus(rate.float()) * far.log()).exp()  # [R, T]
        both = live.unsqueeze(-1) & mask.unsqueeze(1)
        c = ((self.affinity(u) @ v.transpose(1, 2)).float() * fade.unsqueeze(-1)).tanh() * both  # [R, T, L]
        c = c.to(x.dtype)
        items, past = self.of_items(v), self.of_steps(u)
        of_items, of_steps = (items + c.transpose(1, 2) @ past).tanh(), (past + c @ items).tanh()
        query = self.query(v)
        near = masked_softmax(query @ of_items.transpose(1, 2), mask.unsqueeze(1)).to(v.dtype) @ v
        own = masked_softmax(query @ of_steps.transpose(1, 2), live.unsqueeze(1)).to(u.dtype) @ u
        return self.heads(self.mlp(torch.cat([x, near, own], -1)))
