"""Multi-Interest Network with Dynamic Routing for Recommendation at Tmall (Li et al., CIKM 2019).

https://arxiv.org/abs/1904.08030
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.models.next_item import Profile, ReadsPrefixes
from recstack.nn.mlp import MLP, linear
from recstack.nn.sequence.capsules import routed
from recstack.schema import Schema


class MIND(ReadsPrefixes):
    r"""What a user did is routed to a few interests, each of which looks for items by itself.

    .. math::
        u_k = \mathrm{squash}\Big(\sum_i w_{ki}\, S e_i\Big), \quad w = \mathrm{softmax}_k(b), \quad
        b_{ki} \leftarrow b_{ki} + u_k^\top S e_i, \qquad v_k = \mathrm{MLP}([u_k; p]), \qquad
        s_i = \max_k \langle v_k, e_i \rangle

    The history ``[R, T]``, K interests ``[R, K, D]``: of a history of n items :math:`\max(1, \min(K, \log_2 n))`, the
    others being copies of the first. S is shared by all; b begins at random values that are drawn once and kept, so that
    the interests differ. p are attributes of the user (not the id). Every prefix of a history is trained, in one pass:
    the interest nearest to the item that follows is (label-aware attention, hard, the paper's best).

    Departs from the paper: items are their ids.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and interests.
        interests: K.
        iterations: rounds of routing.
        hidden: widths of the MLP before the last, which is `dim`.
        loss: "sampled_softmax" (corrected by logQ), "softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a step, uniformly; the softmax draws none.

    Li et al., CIKM 2019, https://arxiv.org/abs/1904.08030

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.MIND(rs.Encoder(train.schema).fit(train).schema, dim=16, interests=2)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    start: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        interests: int = 4,
        iterations: int = 3,
        hidden: Sequence[int] = (256,),
        loss: str = "sampled_softmax",
        negatives: int = 1280,
    ):
        super().__init__(schema, dim, loss=loss, negatives=negatives)
        self.iterations = iterations
        self.profile = Profile(schema, "user", dim=dim)
        self.shared = linear(dim, dim, bias=False)
        self.mlp = MLP(dim + self.profile.width, hidden)
        self.out = linear(self.mlp.width, dim)
        self.register_buffer("start", torch.randn(interests, self.history.max_len))

    def interests(self, batch: Mapping[str, Tensor], prefix: Tensor) -> Tensor:
        x, _ = self.inputs(batch, "history").sequence(self.history.name)
        step = torch.arange(x.shape[1], device=x.device).clamp(max=self.history.max_len - 1)
        most = prefix.sum(-1, keepdim=True).clamp(min=2).float().log2()
        alive = torch.arange(self.start.shape[0], device=x.device) < most.floor()  # [R, P, K]; the first always
        u = routed(self.shared(x).unsqueeze(1), prefix, self.start[:, step], alive, self.iterations)
        profile = self.profile(batch, u)[:, None, None].expand(*u.shape[:-1], -1)
        v = self.out(self.mlp(torch.cat([u, profile], -1)))
        return torch.where(alive.unsqueeze(-1), v, v[:, :, :1])
