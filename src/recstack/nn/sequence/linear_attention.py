"""Attention whose user side is one matrix: what a history says about any target costs nothing that grows with its length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.nn.mlp import linear
from recstack.nn.sequence.pooling import POOLINGS, Pooling


class LinearAttention(Pooling):
    r"""A user is encoded once, :math:`S` and :math:`z`, and read anew by each target.

    .. math:: u(q) = \frac{\phi(W_q q)^\top S}{\phi(W_q q)^\top z}, \qquad S = \sum_t \phi(W_k h_t)\, (W_v h_t)^\top, \quad
        z = \sum_t \phi(W_k h_t), \quad \phi(x) = \mathrm{elu}(x) + 1

    (Katharopoulos et al., ICML 2020, https://arxiv.org/abs/2006.16236.) A candidate costs W², whatever the T steps of the
    history, so that a scorer that knows the target can walk a graph of items (see `recstack.models.retrieval.rpg`).

    Args:
        width: of queries, steps and what comes out.
    """

    targeted = True

    def __init__(self, width: int):
        super().__init__(width)
        self.query, self.key, self.value = (linear(width, width) for _ in range(3))

    def encode(self, sequence: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """S and z of ``sequence [..., T, W], mask [..., T]``: ``[..., W, W]`` and ``[..., W]``, float32."""
        key = _feature(self.key(sequence)) * mask.unsqueeze(-1)
        with torch.autocast(sequence.device.type, enabled=False):
            return key.mT @ self.value(sequence.float()), key.sum(-2)

    def read(self, query: Tensor, state: Tensor, total: Tensor) -> Tensor:
        """``query [..., L, W]``, S and z → ``[..., L, W]``; zeros where the history was empty."""
        q = _feature(self.query(query))
        with torch.autocast(query.device.type, enabled=False):
            found = q @ state / (q @ total.unsqueeze(-1)).clamp(min=1e-6)
        return found.to(query.dtype)

    def forward(self, query: Tensor, sequence: Tensor, mask: Tensor, candidates: Tensor | None = None) -> Tensor:
        return self.read(query, *self.encode(sequence, mask))


def _feature(x: Tensor) -> Tensor:
    return F.elu(x.float()) + 1


POOLINGS["linear_attention"] = LinearAttention
