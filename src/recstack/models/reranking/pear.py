"""PEAR: Personalized Re-ranking with Contextualized Transformer for Recommendation (Li et al., WWW 2022).

https://arxiv.org/abs/2203.12267
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from recstack import losses
from recstack.features import Heads, Inputs, tasks
from recstack.models.base import Reranker
from recstack.nn.interaction.cross import Cross
from recstack.nn.lists import ListEncoder, Steps
from recstack.nn.mlp import linear
from recstack.schema import Schema


class PEAR(Reranker):
    r"""One transformer reads the history and the list together; a token of its own says whether the list is clicked at all.

    .. math:: H' = \mathrm{Transformer}([c;\, h_1, \dots, h_T;\, \mathrm{Cross}(x_1), \dots, \mathrm{Cross}(x_L)]), \qquad
              L = L_{\mathrm{item}} + \lambda\, \mathrm{BCE}\big(w^\top H'_c,\ \max_i y_i\big)

    Lists ``[R, L]`` in the order of the ranker before, histories ``[R, T]`` of any number, one behind the other. The list's
    loss is of the first binary task that asks nothing of another; lists whose labels are all missing count nothing.

    Departs from the paper: features interact in a cross network, and the item loss is the listwise softmax.

    Args:
        schema: a fitted schema.
        dim: embedding width of ids.
        width: of the transformer.
        layers, heads: of the transformer; hidden: of its position-wise network.
        crosses: layers of the cross network.
        list_weight: of the list's loss, λ.
        max_list: positions of the list that have a vector; later ones share the last.
        dropout: in the transformer.

    Li et al., WWW 2022, https://arxiv.org/abs/2203.12267

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.PEAR(rs.Encoder(train.schema).fit(train).schema, width=16, layers=1)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs: ClassVar[tuple[str, ...]] = ("item", "history")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        width: int = 64,
        layers: int = 2,
        heads: int = 2,
        hidden: int = 128,
        crosses: int = 2,
        list_weight: float = 0.1,
        max_list: int = 100,
        dropout: float = 0.1,
    ):
        super().__init__(schema)
        self.list_weight = list_weight
        self.inputs = Inputs(schema, dim, history=None)
        widths = {h.name: sum(self.inputs.widths[name] for name in h.of) for h in schema.histories}
        self.steps = Steps(widths, width, max(h.max_len for h in schema.histories))
        self.cross = Cross(self.inputs.width(), crosses)
        self.project = linear(self.inputs.width(), width)
        self.places = nn.Parameter(0.02 * torch.randn(max_list, width))
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.encoder = ListEncoder("transformer", width, layers, heads, hidden, dropout=dropout)
        self.heads = Heads(schema, width)
        plain = (t for t in schema.tasks if t.kind == "binary" and t.given is None and not t.derived and t.weight)
        self.task = next(plain, None)
        self.of_list = linear(width, 1) if self.task is not None and list_weight else None

    def _read(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The token ``[R, W]`` and the items ``[R, L, W]``, each having seen all."""
        slots = self.inputs(batch)
        x = self.project(self.cross(slots.flat()))
        place = torch.arange(x.shape[1], device=x.device).clamp(max=self.places.shape[0] - 1)
        mask = batch.get("@mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        steps, live = self.steps({h.name: slots.sequence(h.name) for h in self.schema.histories})
        token = self.token.expand(x.shape[0], 1, -1).to(x.dtype)
        one = torch.ones_like(mask[:, :1])
        y = self.encoder(torch.cat([token, steps, x + self.places[place]], 1), torch.cat([one, live, mask], 1))
        return y[:, 0], y[:, 1 + steps.shape[1] :]

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(self._read(batch)[1])

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tasks', and whether anything of the list is clicked."""
        token, items = self._read(batch)
        out = self.list_losses(self.heads(items), batch)
        if self.of_list is not None:
            label, where, _ = tasks.target(batch, self.schema, self.task)  # type: ignore[arg-type]
            with torch.autocast(token.device.type, enabled=False):
                logit = self.of_list(token.float()).squeeze(-1)
            out["list"] = self.list_weight * losses.bce(logit, label.amax(-1), where=where.any(-1))
        return out
