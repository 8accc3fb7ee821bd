"""A page that is filled place by place, by a policy that knows what it has chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.lists.orders import chosen_first
from recstack.nn.mlp import MLP, linear

LOW = -1e9  # the logit of what cannot be chosen


class Walk(NamedTuple):
    """A page being filled: ``order [R, L]``, and by place ``[R, P]`` what was chosen, how likely, from how many."""

    order: Tensor
    chosen: Tensor
    log_chance: Tensor
    entropy: Tensor
    left: Tensor


class Pointer(nn.Module):
    """Chooses `places` of the items ``[R, L, W]``, one after another; ``pick(logit [R, L], place) → [R]`` says how."""

    def __init__(self, width: int, hidden: Sequence[int], state: int, places: int):
        super().__init__()
        self.places, self.state = places, state
        self.encode, self.cell = MLP(width, hidden), nn.LSTMCell(width, state)
        self.score = MLP(state + self.encode.width, hidden)
        self.out = linear(self.score.width, 1)

    def forward(self, x: Tensor, mask: Tensor, pick: Callable[[Tensor, int], Tensor]) -> Walk:
        items, given = self.encode(x), torch.zeros_like(x[:, 0])
        whole = self.score.first
        assert whole is not None
        of_state, of_item = whole.weight.split([self.state, items.shape[-1]], 1)
        items = F.linear(items, of_item, whole.bias)  # once, and not at each place
        h = c = x.new_zeros(x.shape[0], self.state)
        left, turn, logits, picks = mask, torch.zeros_like(mask, dtype=torch.int64), [], []
        for place in range(self.places):
            h, c = self.cell(given, (h, c))
            score = self.score.rest(items + F.linear(h, of_state).unsqueeze(1))
            logits.append(self.out(score).squeeze(-1).masked_fill(~left, LOW))
            picks.append(pick(logits[-1], place))
            one = picks[-1].unsqueeze(1)
            here = torch.zeros_like(left).scatter(1, one, True) & left
            turn, left = torch.where(here, self.places - place, turn), left & ~here
            given = x.gather(1, one.unsqueeze(-1).expand(-1, -1, x.shape[-1])).squeeze(1)
        logit, chosen = torch.stack(logits, 1), torch.stack(picks, 1)
        log = logit.log_softmax(-1)
        count = (mask.sum(-1, keepdim=True) - torch.arange(self.places, device=mask.device)).clamp(min=0)
        found = log.gather(2, chosen.unsqueeze(-1)).squeeze(-1)
        return Walk(chosen_first(turn, logits[0], mask), chosen, found, -(log.exp() * log).sum(-1), count)
