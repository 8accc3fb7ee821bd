"""Long histories: the steps that matter to each target are searched first, and only they are read closely."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import MultiHead, age, masked_softmax
from recstack.nn.sequence.hstu import BUCKETS, time_bucket
from recstack.nn.sequence.pooling import Pooling
from recstack.nn.sequence.target_attention import TargetAttention


def top_steps(score: Tensor, live: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best live steps: (index, there) ``[..., k]`` of ``score [..., T], live [..., T]``.

    What is not live never stands before what is, however low its score; where fewer than k are live, `there` is False.
    """
    low = torch.finfo(score.dtype).min
    score = F.pad(score.masked_fill(~live, low), (0, k), value=low)  # so that there are k, however short the history
    index = score.topk(k, -1).indices
    there = torch.cat([live, live.new_zeros(*live.shape[:-1], k)], -1).gather(-1, index)
    return torch.where(there, index, 0), there


def picked(sequence: Tensor, index: Tensor) -> Tensor:
    """Steps by index: ``sequence [R, T, W], index [R, ...] → [R, ..., W]``; the gradient is as large as the sequence."""
    row = torch.arange(sequence.shape[0], device=index.device).view(-1, *[1] * (index.dim() - 1))
    flat = (index + row * sequence.shape[1]).flatten()
    return sequence.flatten(0, 1).index_select(0, flat).view(*index.shape, sequence.shape[-1])


def newest(sequence: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most recent steps ``[R, k, W]``, oldest first and left aligned, and which are there."""
    start = (mask.sum(-1, keepdim=True) - k).clamp(min=0)
    index = start + torch.arange(k, device=mask.device)
    there = index < mask.sum(-1, keepdim=True)
    return picked(sequence, torch.where(there, index, 0)) * there.unsqueeze(-1), there


class Search(Pooling):
    """What a search of the whole history finds, beside target attention over the newest steps: ``[R, L, 2 W]``.

    Subclasses give `long`. Memory grows with the steps kept per candidate; of all steps only their scores are held.

    Args:
        width: of queries and steps.
        keep: steps that the search keeps for each candidate.
        heads: of the attention over them; they need not divide the width.
        recent: steps that are read without a search.
    """

    targeted = True

    def __init__(self, width: int, keep: int = 50, heads: int = 1, recent: int = 20):
        super().__init__(2 * width)
        if keep < 1 or recent < 1:
            raise ConfigError(f"keep and recent must be at least 1; got {keep} and {recent}.")
        self.keep, self.recent = keep, recent
        self.short = TargetAttention(width)

    def forward(
        self, query: Tensor, sequence: Tensor, mask: Tensor, candidates: Tensor | None = None, **more: Tensor | None
    ) -> Tensor:
        short = self.short(query, *newest(sequence, mask, self.recent), candidates)
        return torch.cat([self.long(query, sequence, mask, **more).to(short.dtype), short], -1)

    def long(self, query: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        """What the search finds ``[R, L, W]``; subclasses say what `more` they read."""
        raise NotImplementedError


class Found(nn.Module):
    """Multi-head attention of each target over its own steps: ``[R, L, W], [R, L, K, W], [R, L, K] → [R, L, W]``."""

    def __init__(self, width: int, heads: int = 1):
        super().__init__()
        self.attention = MultiHead(width, heads)

    def forward(self, query: Tensor, steps: Tensor, there: Tensor) -> Tensor:
        out = self.attention(query.unsqueeze(-2), steps, there).squeeze(-2)
        return out * there.any(-1, keepdim=True)


class FoundInTime(Found):
    """`Found`, whose steps also carry how long before the request they were.

    A learned vector of the interval's bucket (see `time_bucket`) is added to each step: concatenated, as SIM writes it, it
    would reach keys and values through a projection of its own, which is the same map. `since` ``[R, L, K]`` in
    seconds; where None, all steps share a bucket.
    """

    def __init__(self, width: int, heads: int = 1):
        super().__init__(width, heads)
        self.time = nn.Parameter(torch.zeros(BUCKETS, width))

    def forward(self, query: Tensor, steps: Tensor, there: Tensor, since: Tensor | None = None) -> Tensor:
        return super().forward(query, steps + (self.time[0] if since is None else self.time[time_bucket(since)]), there)


def _of(index: Tensor, since: Tensor | None) -> Tensor | None:
    """Of all steps ``[R, T]`` those at ``index [R, L, K]``; where none is there, what stands at place 0."""
    return None if since is None else since.unsqueeze(1).expand(-1, index.shape[1], -1).gather(-1, index)


class HashSearch(Search):
    r"""ETA: the steps whose binary codes are nearest to the target's, by Hamming distance.

    .. math:: \mathrm{code}(e) = \mathrm{sign}(e R), \qquad R_{ij} \sim \mathcal N(0, 1) \text{, fixed}

    (Chen et al., 2021, https://arxiv.org/abs/2108.04468.) Of equal distances the newest. R is saved with the model.

    Args:
        width, keep, heads, recent: as `Search`.
        bits: of a code.
    """

    directions: Tensor

    def __init__(self, width: int, keep: int = 50, heads: int = 1, recent: int = 20, bits: int = 32):
        super().__init__(width, keep, heads, recent)
        self.read = Found(width, heads)
        self.register_buffer("directions", torch.randn(width, bits))

    def codes(self, x: Tensor) -> Tensor:
        """``[..., W] → [..., bits]`` of -1 and 1; without gradient."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return torch.where(x.detach().float() @ self.directions.float() > 0, 1.0, -1.0)

    def long(self, query: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            alike = self.codes(query) @ self.codes(sequence).transpose(-1, -2)  # bits - 2 · distance
        alike = alike - age(mask).clamp(max=1 << 16).unsqueeze(-2) / (1 << 16)
        index, there = top_steps(alike, mask.unsqueeze(-2).expand(alike.shape), self.keep)
        return self.read(query, picked(sequence, index), there)


class SharedSearch(Search):
    r"""TWIN: one attention both finds the steps and weighs them, so that none is lost that would have weighed most.

    .. math:: \alpha = \frac{(h K)(e Q)^\top}{\sqrt d}, \qquad
        \mathrm{softmax}(\alpha_{\mathrm{top}\,k})\, h_{\mathrm{top}\,k} V

    (Chang et al., KDD 2023, https://arxiv.org/abs/2302.02352; without the bias by features of user and item together,
    which steps here have not.) The steps are chosen by the mean of the heads.
    """

    def __init__(self, width: int, keep: int = 50, heads: int = 1, recent: int = 20):
        super().__init__(width, keep, heads, recent)
        self.attention = MultiHead(width, heads)

    def long(self, query: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        a, live = self.attention, mask.unsqueeze(-2).expand(-1, query.shape[1], -1)
        q = a.query(query).unflatten(-1, (a.heads, a.size))  # [R, L, heads, d]
        with torch.no_grad():  # the mean of the heads is one product of all heads at once
            index, there = top_steps((q.flatten(-2) @ a.key(sequence).transpose(-1, -2)).float(), live, self.keep)
        steps = picked(sequence, index)  # [R, L, K, W]
        k, v = (x.unflatten(-1, (a.heads, a.size)) for x in (a.key(steps), a.value(steps)))
        score = torch.einsum("rlhd,rlkhd->rlhk", q, k) / a.size**0.5
        weight = masked_softmax(score, there.unsqueeze(-2)).to(v.dtype)
        return a.out(torch.einsum("rlhk,rlkhd->rlhd", weight, v).flatten(-2)) * there.any(-1, keepdim=True)


class SoftSearch(Search):
    r"""SIM: the steps with the largest inner product to the target, in a space that a loss of its own shapes.

    .. math:: r_j = \langle W_b h_j, W_a e \rangle, \qquad U = \sum_j r_j h_j

    (Pi et al., CIKM 2020, https://arxiv.org/abs/2006.05639.) `relevance` and `weighted` give r and U for that loss.
    """

    def __init__(self, width: int, keep: int = 50, heads: int = 1, recent: int = 20):
        super().__init__(width, keep, heads, recent)
        self.of_target, self.of_step = linear(width, width, bias=False), linear(width, width, bias=False)
        self.read = FoundInTime(width, heads)

    def relevance(self, query: Tensor, sequence: Tensor) -> Tensor:
        """r ``[R, L, T]``."""
        return self.of_target(query) @ self.of_step(sequence).transpose(-1, -2)

    def weighted(self, query: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        """U ``[R, L, W]``."""
        return (self.relevance(query, sequence) * mask.unsqueeze(-2)) @ sequence

    def long(self, query: Tensor, sequence: Tensor, mask: Tensor, since: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            score = self.relevance(query, sequence).float()
        index, there = top_steps(score, mask.unsqueeze(-2).expand(score.shape), self.keep)
        return self.read(query, picked(sequence, index), there, _of(index, since))


class MatchSearch(Search):
    """SIM: the newest steps of the target's category. `match` ``[R, L, T]`` says which steps share it."""

    def __init__(self, width: int, keep: int = 50, heads: int = 1, recent: int = 20):
        super().__init__(width, keep, heads, recent)
        self.read = FoundInTime(width, heads)

    def long(
        self,
        query: Tensor,
        sequence: Tensor,
        mask: Tensor,
        match: Tensor | None = None,
        since: Tensor | None = None,
    ) -> Tensor:
        live = mask.unsqueeze(-2).expand(-1, query.shape[1], -1)
        live = live if match is None else live & match
        index, there = top_steps(-age(mask).float().unsqueeze(-2).expand(live.shape), live, self.keep)
        return self.read(query, picked(sequence, index), there, _of(index, since))
