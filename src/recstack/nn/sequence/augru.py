"""DIEN's interest evolution: a GRU that the target steers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import masked_softmax
from recstack.nn.sequence.pooling import POOLINGS, Pooling
from recstack.nn.sequence.recurrent import GRU, gru_step, unroll

CELLS = ("augru", "agru", "aigru")


class AttentionalGRU(nn.Module):
    r"""A GRU over the states of another, as each of several targets sees them; the last state of each.

    .. math::
        \text{augru: } u'_t = a_t\,u_t, \qquad \text{agru: } u'_t = a_t, \qquad \text{aigru: } i'_t = a_t\,i_t, \qquad
        h_t = (1 - u'_t) \odot h_{t-1} + u'_t \odot \tilde h_t

    (Zhou et al., AAAI 2019, https://arxiv.org/abs/1809.03672.) Parameters are laid out as in ``torch.nn.GRU`` (reset,
    update, new), whose z is 1 - u: with attention 1, "augru" and "aigru" are that GRU. "agru" has no update gate. Where
    nothing is the state stays. In float32.

    Args:
        width: of inputs and states.
        cell: "augru", "agru" or "aigru".
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

    def __init__(self, width: int, cell: str = "augru"):
        super().__init__()
        if cell not in CELLS:
            raise unknown("attentional GRU", cell, CELLS)
        self.width, self.cell = width, cell
        gates, bound = (2 if cell == "agru" else 3) * width, width**-0.5
        for name, shape in (
            ("weight_ih", (gates, width)),
            ("weight_hh", (gates, width)),
            ("bias_ih", (gates,)),
            ("bias_hh", (gates,)),
        ):
            setattr(self, name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def forward(self, inputs: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        """``inputs [R, T, W], attention [R, L, T] (0 where nothing is), mask [R, T] → [R, L, W]``."""
        with torch.autocast(inputs.device.type, enabled=False):
            gates = F.linear(inputs.float(), self.weight_ih).permute(1, 0, 2).unsqueeze(2)  # [T, R, 1, gates]
            weight = attention.float().permute(2, 0, 1).unsqueeze(-1)  # [T, R, L, 1]
            live = mask.to(gates.dtype).t().unsqueeze(-1).unsqueeze(-1)  # [T, R, 1, 1]
            start = gates.new_zeros(*attention.shape[:-1], self.width)
            given = (self.weight_hh, self.bias_hh, self.bias_ih)
            if self.cell == "aigru":
                return unroll(_scaled_input, start, (gates, weight, live), given, last=True)
            step = _scaled_update if self.cell == "augru" else _replaced_update
            return unroll(step, start, (gates, weight), given, last=True)


def _scaled_update(state: Tensor, gates: Tensor, weight: Tensor, hidden: Tensor, bias: Tensor, first: Tensor) -> Tensor:
    return gru_step(state, gates + first, weight, hidden, bias)


def _scaled_input(
    state: Tensor, gates: Tensor, weight: Tensor, live: Tensor, hidden: Tensor, bias: Tensor, first: Tensor
) -> Tensor:
    return gru_step(state, gates * weight + first, live, hidden, bias)


def _replaced_update(
    state: Tensor, gates: Tensor, weight: Tensor, hidden: Tensor, bias: Tensor, first: Tensor
) -> Tensor:
    of_input, of_state = (gates + first).chunk(2, -1), F.linear(state, hidden, bias).chunk(2, -1)
    new = (of_input[1] + (of_input[0] + of_state[0]).sigmoid() * of_state[1]).tanh()
    return state + weight * (new - state)


class InterestEvolution(Pooling):
    r"""Interests are a GRU's states, and a second GRU follows those that matter to the target.

    .. math:: a_t = \mathrm{softmax}_t(h_t^\top W e), \qquad u(e) = \mathrm{AUGRU}(h, a)_T

    (Zhou et al., AAAI 2019, https://arxiv.org/abs/1809.03672.) The first GRU runs once per request; the second keeps a
    state ``[R, L, W]`` per candidate, and its input's part of the gates is shared by all of them.

    Args:
        width: of queries and steps.
        cell: "augru", "agru" or "aigru".
    """

    targeted = True

    def __init__(self, width: int, cell: str = "augru"):
        super().__init__(width)
        self.extract = GRU(width)
        self.attention = linear(width, width, bias=False)
        self.evolve = AttentionalGRU(width, cell)

    def forward(self, query: Tensor, sequence: Tensor, mask: Tensor, candidates: Tensor | None = None) -> Tensor:
        return self.interest(query, self.extract(sequence, mask), mask)

    def interest(self, query: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """The last state ``[R, L, W]`` for each target, given the first GRU's states ``[R, T, W]``."""
        score = self.attention(query) @ states.to(query.dtype).transpose(-1, -2)
        return self.evolve(states, masked_softmax(score, mask.unsqueeze(-2)), mask)


POOLINGS["augru"] = InterestEvolution
