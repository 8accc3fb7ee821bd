"""Controllable Multi-Interest Framework for Recommendation (Cen et al., KDD 2020).

https://arxiv.org/abs/2005.09347
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recstack.models.next_item import ReadsPrefixes
from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import masked_softmax
from recstack.nn.sequence.capsules import routed
from recstack.schema import Schema


class ComiRecDR(ReadsPrefixes):
    r"""Dynamic routing to a few interests, with a matrix for each pair of place and interest.

    .. math::
        \hat e_{ki} = W_{ki} e_i, \quad w = \mathrm{softmax}_k(b), \quad
        v_k = \mathrm{squash}\Big(\sum_i w_{ki} \hat e_{ki}\Big), \quad b_{ki} \leftarrow b_{ki} + v_k^\top \hat e_{ki},
        \qquad s_i = \max_k \langle v_k, e_i \rangle

    The history ``[R, T]``, K interests ``[R, K, D]``. b begins at 0. Every prefix of a history is trained, in one pass,
    by the interest nearest to the item that follows. Places count from the oldest of the last `max_len` items. For
    diversity to be chosen at serving, put the rule `recstack.rules.Diversity` behind it.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and interests.
        interests: K.
        iterations: rounds of routing.
        loss: "sampled_softmax" (corrected by logQ), "softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a step, uniformly; the softmax draws none.

    Cen et al., KDD 2020, https://arxiv.org/abs/2005.09347

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.ComiRecDR(rs.Encoder(train.schema).fit(train).schema, dim=16, interests=2)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        interests: int = 4,
        iterations: int = 3,
        loss: str = "sampled_softmax",
        negatives: int = 1280,
    ):
        super().__init__(schema, dim, loss=loss, negatives=negatives)
        self.iterations = iterations
        # of deviation one, as the authors have them: what is short after them is squashed to nothing, and hardly learned
        self.votes = nn.Parameter(torch.randn(self.history.max_len, interests, dim, dim))

    def interests(self, batch: Mapping[str, Tensor], prefix: Tensor) -> Tensor:
        x, _ = self.inputs(batch, "history").sequence(self.history.name)
        step = torch.arange(x.shape[1], device=x.device).clamp(max=self.history.max_len - 1)
        votes = torch.einsum("rtd,tkde->rkte", x, self.votes[step])
        return routed(votes, prefix, x.new_zeros(votes.shape[1], x.shape[1]), iterations=self.iterations)


class ComiRecSA(ReadsPrefixes):
    r"""A few attentions of a history to itself, each of which is an interest that looks for items by itself.

    .. math:: A = \mathrm{softmax}_T\big(W_2 \tanh(W_1 (e_i + p_i))\big), \qquad v_k = \sum_i A_{ki}\, e_i, \qquad
        s_i = \max_k \langle v_k, e_i \rangle

    The history ``[R, T]``, K interests ``[R, K, D]``. Every prefix of a history is trained, in one pass, by the interest
    nearest to the item that follows. Places p count from the oldest of the last `max_len` items. For diversity to be
    chosen at serving, put the rule `recstack.rules.Diversity` behind it.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and interests; W_1 is four times as wide.
        interests: K.
        loss: "sampled_softmax" (corrected by logQ), "softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a step, uniformly; the softmax draws none.

    Cen et al., KDD 2020, https://arxiv.org/abs/2005.09347

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.ComiRecSA(rs.Encoder(train.schema).fit(train).schema, dim=16, interests=2)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        interests: int = 4,
        loss: str = "sampled_softmax",
        negatives: int = 1280,
    ):
        # of length one: with shorter ones the attentions begin alike, and stay so for long
        super().__init__(schema, dim, loss=loss, negatives=negatives, std=dim**-0.5)
        self.positions = nn.Parameter(0.02 * torch.randn(self.history.max_len, dim))
        self.attention = nn.Sequential(
            linear(dim, 4 * dim, bias=False), nn.Tanh(), linear(4 * dim, interests, bias=False)
        )

    def interests(self, batch: Mapping[str, Tensor], prefix: Tensor) -> Tensor:
        x, _ = self.inputs(batch, "history").sequence(self.history.name)
        step = torch.arange(x.shape[1], device=x.device).clamp(max=self.history.max_len - 1)
        score = self.attention(x + self.positions[step]).transpose(1, 2).unsqueeze(1)  # [R, 1, K, T]
        return masked_softmax(score, prefix.unsqueeze(2)).to(x.dtype) @ x.unsqueeze(1)
