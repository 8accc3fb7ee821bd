"""Seq2Slate: Re-ranking and Slate Optimization with RNNs (Bello et al., arXiv 2018).

https://arxiv.org/abs/1810.02019
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError
from recstack.features import Heads, Inputs, tasks
from recstack.models.base import Reranker
from recstack.nn.lists import ListEncoder
from recstack.nn.mlp import linear, split_linear
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class Seq2Slate(Reranker):
    r"""A pointer network fills the page place by place, each time from what is left, knowing what it has chosen.

    .. math:: u_{ij} = v^\top \tanh(W_e e_i + W_d d_j), \qquad p_j = \mathrm{softmax}_{i \notin \pi_{<j}}(u_{ij}), \qquad
              L = \sum_j \frac{1}{\log_2(j + 1)} \Big(-\sum_{i \notin \pi_{<j}} \frac{y_i}{\sum y} \log p_{ij}\Big)

    Training is shown the right choice at every place (clicked items first, in the order of the ranker before); serving
    chooses the best. The logits of the first task are those of the first place, handed out in the order of the choices:
    sorting by them gives the page. Other tasks keep the logits of the first place. The loss is averaged over places that
    still have a click to find, by weight.

    Departs from the paper: GRUs for LSTMs, and supervised only (no REINFORCE).

    Args:
        schema: a fitted schema; its first task must have one output.
        dim: embedding width of ids.
        width: of the encoder and the pointer.
        places: how many are chosen one after another; the rest follow by their scores for the first place.
        max_list: positions of the initial order that have a vector; later ones share the last.
        history: how each history becomes one vector: "mean", "sum", "max", "last", "attention" or a `Pooling` class.
        dropout: in the encoder.

    Raises:
        ConfigError: where the first task has several outputs or is made of others.

    Bello et al., arXiv 2018, https://arxiv.org/abs/1810.02019

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.Seq2Slate(rs.Encoder(train.schema).fit(train).schema, width=16, places=3)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        width: int = 64,
        places: int = 10,
        max_list: int = 100,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.1,
    ):
        super().__init__(schema)
        first = schema.tasks[0] if schema.tasks else None
        if first is None or first.derived or tasks.outputs(first) > 1:
            raise ConfigError("Seq2Slate orders by its first task, which must have one output and be no product.")
        if places < 1:
            raise ConfigError(f"places must be at least 1; got {places}.")
        self.task, self.places = first, places
        self.inputs = Inputs(schema, dim, history=history)
        self.project = linear(self.inputs.width(), width)
        self.encoder = ListEncoder("bigru", width, max_list=max_list, dropout=dropout)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.cell = nn.GRUCell(width, width)
        self.of_item, self.of_state = linear(width, width), linear(width, width, bias=False)
        self.heads = Heads(schema, width)

    def _read(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Items ``[R, L, W]`` in float32, and which are live."""
        x = split_linear(self.project, self.inputs(batch).sides())
        mask = batch.get("@mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        return self.encoder(x, mask).float(), mask

    def _point(self, keys: Tensor, state: Tensor) -> dict[str, Tensor]:
        return self.heads((keys + self.of_state(state).unsqueeze(1)).tanh())

    def _next(self, items: Tensor, chosen: Tensor, state: Tensor) -> Tensor:
        picked = items.gather(1, chosen[:, None, None].expand(-1, 1, items.shape[-1])).squeeze(1)
        return self.cell(picked, state)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        items, mask = self._read(batch)
        with torch.autocast(items.device.type, enabled=False):
            keys, state = self.of_item(items), self.start.expand(items.shape[0], -1)
            logits = self._point(keys, state)
            first = logits[self.task.name]
            low = torch.finfo(first.dtype).min
            score, left, turn = first.detach(), mask, torch.zeros_like(first)
            for place in range(self.places):
                best = score.masked_fill(~left, low).argmax(-1)
                here = torch.zeros_like(left).scatter(1, best.unsqueeze(1), True) & left
                turn, left = torch.where(here, float(self.places - place), turn), left & ~here
                if place + 1 < self.places:
                    state = self._next(items, best, state)
                    score = self._point(keys, state)[self.task.name]
            # The chosen in their turn, then the others by their first scores, then the dead.
            order = first.masked_fill(~mask, low).argsort(dim=-1, descending=True, stable=True)
            order = order.gather(1, turn.gather(1, order).argsort(dim=-1, descending=True, stable=True))
            values = first.masked_fill(~mask, low).sort(dim=-1, descending=True, stable=True).values
            page = torch.zeros_like(first).scatter(1, order, values)
        return {**logits, self.task.name: torch.where(mask, page, first)}

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first task's, place by place; the others' of the first place."""
        items, _ = self._read(batch)
        label, where, weight = tasks.target(batch, self.schema, self.task)
        label = label.clamp(min=0) * where
        with torch.autocast(items.device.type, enabled=False):
            keys, state = self.of_item(items), self.start.expand(items.shape[0], -1)
            order = label.masked_fill(~where, -1).argsort(dim=-1, descending=True, stable=True)
            left, logits, total, norm = where, None, items.new_zeros(()), items.new_zeros(())
            for place in range(min(self.places, order.shape[1])):
                now = self._point(keys, state)
                logits = now if logits is None else logits
                found = ((label * left).sum(-1) > 0).sum()  # lists that have something left to find
                share = found / math.log2(place + 2)
                total = total + share * losses.softmax(now[self.task.name], label, where=left, weight=weight)
                norm = norm + share
                right = order[:, place]
                left = left & ~torch.zeros_like(left).scatter(1, right.unsqueeze(1), True)
                state = self._next(items, right, state)
        assert logits is not None
        out = self.list_losses(logits, batch)
        if self.task.name in out:
            out[self.task.name] = total / norm.clamp(min=1) * self.task.weight
        return out
