"""Multi-instance learning: the label belongs to a bag (a page, a session, an item's titles), not to the instances in it.

`noisy_or`, `hardest` and `log_mean_exp` turn logits of instances into the logit of their bag; `GatedAttention` turns vectors into
one. Dead instances say nothing; a bag without any has the logit of nearly no chance, and no gradient: leave it out of the
loss by ``where=mask.any(-1)``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import masked_softmax
from recstack.nn.sequence.pooling import Pooling

NOTHING = math.log(torch.finfo(torch.float32).tiny)  # the logit of a bag without instances


def noisy_or(logit: Tensor, mask: Tensor) -> Tensor:
    r"""A bag is positive if one of its instances is, each by its own chance: logits ``[..., N] → [...]``, float32.

    .. math:: P = 1 - \prod_k (1 - \sigma(z_k)), \qquad \log(1 - P) = \sum_k \log \sigma(-z_k)

    (Viola et al., NeurIPS 2005, https://papers.nips.cc/paper/2926.) In logs all the way, so that no chance rounds to 0 or 1.

    >>> noisy_or(torch.tensor([[0.0, 0.0], [3.0, 5.0]]), torch.tensor([[True, True], [True, False]]))  # 3/4; one alone
    tensor([1.0986, 3.0000])
    """
    a = (F.softplus(logit.float()) * mask).sum(-1).clamp(min=torch.finfo(torch.float32).tiny)  # -log(1 - P)
    return a + (-torch.expm1(-a)).log()


def hardest(logit: Tensor, mask: Tensor) -> Tensor:
    r"""The instance that says most: :math:`\max_k z_k`, logits ``[..., N] → [...]``, float32.

    >>> hardest(torch.tensor([[0.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([2.])
    """
    best = logit.float().masked_fill(~mask, torch.finfo(torch.float32).min).amax(-1)
    return torch.where(mask.any(-1), best, NOTHING)


def log_mean_exp(logit: Tensor, mask: Tensor, sharpness: float = 1.0) -> Tensor:
    r"""Between the mean (r near 0) and the largest (r large) of a bag's logits, ``[..., N] → [...]``, float32.

    .. math:: \frac1r \log \frac1n \sum_k e^{r z_k}

    (Ramon and De Raedt, ICML workshop 2000; Pinheiro and Collobert, CVPR 2015, https://arxiv.org/abs/1411.6228.)

    >>> z, mask = torch.tensor([[0.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])
    >>> log_mean_exp(z, mask, 0.01), log_mean_exp(z, mask, 100.0)
    (tensor([1.0050]), tensor([1.9931]))
    """
    z = (sharpness * logit.float()).masked_fill(~mask, torch.finfo(torch.float32).min)
    count = mask.sum(-1).clamp(min=1)
    return torch.where(mask.any(-1), (z.logsumexp(-1) - count.log()) / sharpness, NOTHING)


class GatedAttention(Pooling):
    r"""The instances that decide, found by attention: ``sequence [..., N, W], mask [..., N] → [..., W]``.

    .. math:: \sum_k a_k h_k, \qquad a = \mathrm{softmax}_k\, w^\top \big(\tanh(V h_k) \odot \sigma(U h_k)\big)

    (Ilse, Tomczak and Welling, ICML 2018, https://arxiv.org/abs/1802.04712.) A `Pooling` of histories too:
    ``DSSM(schema, history=GatedAttention)``. An empty bag gives zeros.

    Args:
        width: of the instances.
        hidden: rows of V and U; `width` where None.
    """

    def __init__(self, width: int, hidden: int | None = None):
        super().__init__(width)
        hidden = hidden or width
        self.content, self.gate = linear(width, hidden), linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def attention(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """What each instance weighs, ``[..., N]``, float32; it sums to 1 where there is one."""
        hidden = self.content(sequence).tanh() * self.gate(sequence).sigmoid()
        return masked_softmax(self.score(hidden).squeeze(-1), mask)

    def forward(self, query: Tensor | None, sequence: Tensor, mask: Tensor) -> Tensor:
        """`query` is not read."""
        weight = self.attention(sequence, mask).to(sequence.dtype)
        return (weight.unsqueeze(-2) @ sequence).squeeze(-2)
