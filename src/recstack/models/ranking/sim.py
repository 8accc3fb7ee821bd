"""Search-based User Interest Modeling with Lifelong Sequential Behavior Data for CTR Prediction (Pi et al., CIKM 2020).

https://arxiv.org/abs/2006.05639
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import unknown
from recstack.features import Heads, Inputs, tasks
from recstack.features.columns import moments, of_steps
from recstack.features.inputs import Slots, column, padded
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.nn.sequence.search import MatchSearch, SoftSearch
from recstack.schema import History, Schema, is_multi

SEARCHES = {"soft": SoftSearch, "hard": MatchSearch}


class SIM(Model):
    r"""A search finds the past steps that have to do with the target, and attention reads only them.

    .. math:: r_l = \langle W_b e_l, W_a e_t \rangle, \qquad v_u(t) = \mathrm{MultiHead}(e_t, \{e_l : l \in \mathrm{top}_k r\}),
        \qquad z = \mathrm{MLP}([v_u(t); v^s_u(t); e_t; \dots])

    The soft search learns from a loss of its own, that of :math:`\mathrm{MLP}([\sum_l r_l e_l; e_t])`. The hard search
    takes the newest k steps of the target's category instead. Histories ``[R, T]``, candidates ``[R, L]``; vectors are
    kept for the k steps found, each with an embedding of how long before the request it was (a loader with
    ``times=True``, in seconds; without times all share one). The newest steps are read by DIN's attention besides, v^s
    (DIEN in the paper).

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        search: "soft", or "hard", by the last of the features that a History reads (``of=(item, category)``).
        keep: k.
        heads: of the attention over what was found.
        recent: newest steps that target attention reads besides.
        alpha: weight of the soft search's loss.
        hidden: widths of both MLPs; (200, 80) in the paper.
        activation: in the MLPs; "dice" in the paper.
        dropout: in the MLPs.

    Pi et al., CIKM 2020, https://arxiv.org/abs/2006.05639

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.SIM(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs = ("history", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        search: str = "soft",
        keep: int = 50,
        heads: int = 2,
        recent: int = 20,
        alpha: float = 1.0,
        hidden: Sequence[int] = (200, 80),
        activation: str = "dice",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if search not in SEARCHES:
            raise unknown("search", search, SEARCHES)
        self.soft, self.alpha = search == "soft", alpha
        self.inputs = Inputs(schema, dim, history=None, std=0.01)
        widths = {h.name: sum(self.inputs.widths[name] for name in h.of) for h in schema.histories}
        self.searches = ByName({n: SEARCHES[search](w, keep, heads, recent) for n, w in widths.items()})
        total = sum(widths.values())
        self.mlp = MLP(self.inputs.width() + 2 * total, hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)
        if self.soft and alpha:
            self.guide = MLP(2 * total, hidden, activation, dropout=dropout)
            self.guides = Heads(schema, self.guide.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._logits(batch, self.inputs(batch))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = self.inputs(batch)
        out = tasks.losses(self._logits(batch, slots), batch, self.schema)
        return out | self._searching(batch, slots) if self.soft and self.alpha else out

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._searching(batch, self.inputs(batch)) if self.soft and self.alpha else {}

    def _searching(self, batch: Mapping[str, Tensor], slots: Slots) -> dict[str, Tensor]:
        """What the first stage learns from: the tasks' losses of all steps, weighted softly."""
        parts = []
        for h in self.schema.histories:
            target = self._target(slots, h)
            parts += [self.searches[h.name].weighted(target, *slots.sequence(h.name)), target]  # type: ignore
        own = tasks.losses(self.guides(self.guide(torch.cat(parts, -1), batch.get("@mask"))), batch, self.schema)
        return {f"{name}@search": self.alpha * value for name, value in own.items()}

    def _target(self, slots: Slots, h: History) -> Tensor:
        return torch.cat([slots[name] for name in h.of], -1)  # [R, L, W]

    def _logits(self, batch: Mapping[str, Tensor], slots: Slots) -> dict[str, Tensor]:
        sides, live = slots.sides(), batch.get("@mask")
        request, candidate = sides if isinstance(sides, tuple) else (None, sides)
        parts = [candidate]
        for h in self.schema.histories:
            search, target = self.searches[h.name], self._target(slots, h)
            when = moments(batch, h.name)
            more = {"since": None if when is None else when[1].unsqueeze(-1) - when[0]}
            if not self.soft:
                more["match"] = self.matches(batch, h)
            parts.append(search(target, *slots.sequence(h.name), live, **more).to(candidate.dtype))
        candidate = torch.cat(parts, -1)
        return self.heads(self.mlp(candidate if request is None else (request, candidate), live))

    def matches(self, batch: Mapping[str, Tensor], h: History) -> Tensor:
        """Which steps share a value of the category with each candidate: bool ``[R, L, T]``."""
        name = h.of[-1]
        steps = of_steps(batch, name, h.name)
        wanted, offsets = column(batch, name), batch.get(f"{name}@offsets")
        if is_multi(self.schema.feature(name)):
            if offsets is not None:
                wanted = padded(wanted, offsets).unflatten(0, (steps.shape[0], -1))
            same = wanted[:, :, None, :, None] == steps[:, None, :, None, :]
            return (same & (steps[:, None, :, None, :] > 0)).flatten(-2).any(-1)
        return (wanted.unsqueeze(-1) == steps.unsqueeze(1)) & (steps.unsqueeze(1) > 0)
