"""DSIN's sessions: interests are the same within one and differ between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import AttentionLayer, age, masked_softmax
from recstack.nn.sequence.pooling import POOLINGS, Pooling


def by_position(mask: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """Every `items` steps a session, counted back from the target: (session, place) ``[R, T]``, 0 the most recent."""
    back = age(mask) - 1
    return back.div(items, rounding_mode="floor"), back.remainder(items)


def by_time(times: Tensor, mask: Tensor, gap: float) -> tuple[Tensor, Tensor]:
    """A new session where `gap` passes between two steps: (session, place) ``[R, T]``, 0 the most recent.

    Args:
        times: of steps ``[R, T]``, oldest first.
        mask: which are live.
        gap: in the unit of `times`.
    """
    back = age(mask) - 1
    later, live = times[:, 1:] - times[:, :-1], mask[:, 1:]
    ends = torch.cat([(later > gap) & live, torch.zeros_like(mask[:, :1])], 1)  # a session ends with this step
    session = ends.flip(1).cumsum(1).flip(1)
    # the place within: how far back the step lies, less how far back its session's last one does
    newest = torch.where(ends, back, 0).flip(1).cummax(1).values.flip(1)
    return session, back - newest


def begins(times: Tensor | None, mask: Tensor, gap: float, items: int) -> Tensor:
    """The place at which each step's session begins, int64 ``[R, T]``; counted from the oldest, so that no step looks ahead.

    Args:
        times: of steps ``[R, T]``, oldest first; None is one gap after another below `gap`.
        mask: which are live.
        gap: a session ends where more passes between two steps.
        items: and after that many steps.
    """
    place = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    if times is None:
        first = torch.zeros_like(place)
    else:
        late = torch.cat([torch.zeros_like(mask[:, :1]), times[:, 1:] - times[:, :-1] > gap], 1)
        first = torch.where(late, place, 0).cummax(1).values
    return place - (place - first).remainder(items)


class SessionInterest(Pooling):
    r"""Self-attention within each session, a bidirectional LSTM over sessions, and both as the target weighs them.

    .. math::
        I_k = \mathrm{mean}_t\,\mathrm{Transformer}(Q_k + w^K_k + w^T_t + w^C), \qquad H = \mathrm{BiLSTM}(I), \qquad
        u(e) = [\textstyle\sum_k a^I_k I_k; \sum_k a^H_k H_k], \quad a^X_k = \mathrm{softmax}_k(X_k^\top W^X e)

    (Feng et al., IJCAI 2019, https://arxiv.org/abs/1905.06482.) Sessions and places within them are counted from the
    most recent; the two directions of the LSTM are added. Comes out ``[R, L, 2 W]``.

    Args:
        width: of queries and steps.
        sessions: that are kept, the most recent ones.
        items: of each session that are kept, the most recent ones; without times, that many steps are a session.
        heads: of the attention; they need not divide the width.
        dropout: in the transformer.
    """

    targeted = True

    def __init__(self, width: int, sessions: int = 5, items: int = 10, heads: int = 1, dropout: float = 0.0):
        super().__init__(2 * width)
        self.sessions, self.items = sessions, items
        self.of_session = nn.Parameter(0.02 * torch.randn(sessions, 1, 1))
        self.of_place = nn.Parameter(0.02 * torch.randn(items, 1))
        self.of_unit = nn.Parameter(0.02 * torch.randn(width))
        self.layer = AttentionLayer(width, heads, dropout)
        self.older, self.newer = nn.LSTMCell(width, width), nn.LSTMCell(width, width)
        self.to_interest, self.to_state = linear(width, width, bias=False), linear(width, width, bias=False)

    def forward(
        self,
        query: Tensor,
        sequence: Tensor,
        mask: Tensor,
        candidates: Tensor | None = None,
        parts: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`parts`: session and place of each step (`by_time`); by position where None."""
        steps, live = self.divided(sequence, mask, by_position(mask, self.items) if parts is None else parts)
        interest, there = self.interests(steps, live), live.any(-1)
        state = self.states(interest, there)
        chosen = []
        for of_query, vectors in ((self.to_interest, interest), (self.to_state, state)):
            score = of_query(query) @ vectors.to(query.dtype).transpose(-1, -2)  # [R, L, sessions]
            chosen.append(masked_softmax(score, there.unsqueeze(1)).to(vectors.dtype) @ vectors)
        return torch.cat(chosen, -1)

    def divided(self, sequence: Tensor, mask: Tensor, parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Steps ``[R, sessions, items, W]`` by session and place, the most recent first, and which are there."""
        session, place = parts
        size = self.sessions * self.items
        kept = mask & (session < self.sessions) & (place < self.items)
        at = torch.where(kept, session * self.items + place, size)  # what is not kept goes behind, and is cut off
        steps = sequence.new_zeros(sequence.shape[0], size + 1, sequence.shape[-1])
        steps = steps.scatter(1, at.unsqueeze(-1).expand_as(sequence), sequence)
        live = torch.zeros_like(steps[..., 0], dtype=torch.bool).scatter(1, at, kept)
        shape = (self.sessions, self.items)
        return steps[:, :size].unflatten(1, shape), live[:, :size].unflatten(1, shape)

    def interests(self, steps: Tensor, live: Tensor) -> Tensor:
        """One vector a session ``[R, sessions, W]``; zeros where there is none."""
        x = steps + self.of_session + self.of_place + self.of_unit
        x = self.layer(x, x, live) * live.unsqueeze(-1)
        return x.sum(-2) / live.sum(-1, keepdim=True).clamp(min=1)

    def states(self, interest: Tensor, there: Tensor) -> Tensor:
        """Both directions of the LSTM, added: ``[R, sessions, W]``. Where there is no session no state changes."""
        with torch.autocast(interest.device.type, enabled=False):
            vectors, there = interest.float().unbind(1), there.unsqueeze(-1)
            total = torch.zeros_like(interest, dtype=torch.float32)
            forth = range(self.sessions - 1, -1, -1)  # from the oldest
            for cell, order in ((self.older, forth), (self.newer, range(self.sessions))):
                h = c = torch.zeros_like(vectors[0])
                states = []
                for k in order:
                    new, memory = cell(vectors[k], (h, c))
                    h, c = torch.where(there[:, k], new, h), torch.where(there[:, k], memory, c)
                    states.append(h)
                total = total + torch.stack(states if cell is self.newer else states[::-1], 1)
            return total * there


POOLINGS["sessions"] = SessionInterest
