"""DFN's feedback encoder: what was clicked, what was passed by and what was disliked, each read alone and together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.nn.sequence.attention import AttentionLayer, Positions
from recstack.nn.sequence.target_attention import TargetAttention

Steps = tuple[Tensor, Tensor]  # [..., T, W] and which are live [..., T]


class Feedback(nn.Module):
    r"""Clicks and dislikes are sure and few; they say which of the many exposures without a click mean something.

    .. math::
        f_x = \mathrm{mean}\,\mathrm{Transformer}([q; x_1 + p_1; \dots; x_T + p_T]), \quad x \in \{c, u, d\}, \qquad
        f_{uc} = \sum_t a_t(f_c)\, u_t, \quad f_{ud} = \sum_t a_t(f_d)\, u_t, \qquad
        a(f) = \mathrm{softmax}_t\, \mathrm{MLP}([f; u_t; f - u_t; f \odot u_t])

    (Xie et al., IJCAI 2020, https://www.ijcai.org/proceedings/2020/349.) q is the target in a ranker, a learned vector in
    a retriever. Comes out ``[..., 5 W]``: clicked, unclicked, disliked, and the unclicked as the first and the last see
    them. Of two histories (clicked, unclicked) it is ``[..., 3 W]``, of one ``[..., W]``; an empty one gives what q is alone
    in the first three parts and zeros in the others.

    Args:
        width: of steps and q.
        steps: positions told apart, from the most recent on.
        histories: how many: clicked; with unclicked; with disliked.
        heads, dropout: of the transformers, one for each history.
    """

    def __init__(self, width: int, steps: int, histories: int = 3, heads: int = 1, dropout: float = 0.0):
        super().__init__()
        self.positions = nn.ModuleList(Positions(width, steps) for _ in range(histories))
        self.inner = nn.ModuleList(AttentionLayer(width, heads, dropout) for _ in range(histories))
        asking = max(histories - 1, 0)  # the sure ones ask the unclicked
        self.outer = nn.ModuleList(TargetAttention(width, (4 * width,), "relu", softmax=True) for _ in range(asking))
        self.width = (histories + asking) * width

    def forward(self, query: Tensor, *histories: Steps) -> Tensor:
        """query ``[..., W]`` and the histories, clicked first, with any leading axes in common."""
        found = []
        for (steps, mask), positions, layer in zip(histories, self.positions, self.inner, strict=True):
            x = torch.cat([(query + positions.target).unsqueeze(-2), steps + positions(mask)], -2)  # type: ignore[operator]
            live = torch.cat([torch.ones_like(mask[..., :1]), mask], -1)
            x = layer(x, x, live) * live.unsqueeze(-1)
            found.append(x.sum(-2) / live.sum(-1, keepdim=True))
        if len(histories) > 1:
            steps, mask = histories[1]
            found += [
                outer(sure.unsqueeze(-2), steps, mask).squeeze(-2)
                for outer, sure in zip(self.outer, found[::2], strict=True)
            ]
        return torch.cat(found, -1)
