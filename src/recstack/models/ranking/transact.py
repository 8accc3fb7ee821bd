"""TransAct: Transformer-based Realtime User Action Model for Recommendation at Pinterest (Xia et al., KDD 2023).

https://arxiv.org/abs/2306.00248
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs
from recstack.features.columns import moments
from recstack.models.base import Model
from recstack.nn.interaction.cross import Cross
from recstack.nn.mlp import MLP, flat, linear
from recstack.nn.names import ByName
from recstack.nn.sequence.attention import age
from recstack.nn.sequence.pooling import Max
from recstack.nn.sequence.transformer import Transformer, TransformerLayer
from recstack.schema import Schema


class TransAct(Model):
    r"""A transformer reads the recent steps, each with the target beside it; the newest columns and their maximum are crossed.

    .. math:: S = \mathrm{Transformer}([h_l; e_t]_l), \qquad x = [S_1; \dots; S_K; W \max_l S_l; e_t; \dots], \qquad
        z = \mathrm{MLP}(\mathrm{Cross}(x))

    In training, steps of the last U(0, `window`) seconds before each request are left out, so that the model does not
    run after the very last action; for that the loader gives times (``times=True``). Columns are counted back from the
    target, and what is not there is zeros. Candidates ``[R, L]``, tokens ``[R, L, T, 2 W]``. Departs from the paper: a
    history holds steps of one kind, so tokens have no action embedding; the columns themselves say the order, and no
    vector PinnerFormer learned from older actions is added. Departs from the public code: what the window hides is not
    read at all, the newest step neither.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        layers: of the transformer.
        heads: of its attention; they divide the width of a token.
        feed_forward: hidden width of the transformer's networks.
        columns: K.
        window: seconds; 24 hours in the paper. 0 hides nothing.
        cross_layers: of the cross network (DCN V2).
        hidden: widths of the MLP.
        dropout: in transformer and MLP.

    Xia et al., KDD 2023, https://arxiv.org/abs/2306.00248

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.TransAct(rs.Encoder(train.schema).fit(train).schema, columns=3, hidden=(16,))
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
        layers: int = 2,
        heads: int = 1,
        feed_forward: int = 32,
        columns: int = 10,
        window: float = 86400.0,
        cross_layers: int = 3,
        hidden: Sequence[int] = (200, 80),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if columns < 1 or window < 0:
            raise ConfigError(f"columns must be at least 1 and window not negative; got {columns} and {window}.")
        self.window = window
        self.inputs = Inputs(schema, dim, history=None, std=0.01)
        widths = {h.name: 2 * sum(self.inputs.widths[name] for name in h.of) for h in schema.histories}
        self.readers = ByName(
            {name: _Reader(width, layers, heads, feed_forward, columns, dropout) for name, width in widths.items()}
        )
        width = self.inputs.width() + (columns + 1) * sum(widths.values())
        self.cross = Cross(width, cross_layers)
        self.mlp = MLP(width, hidden, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = self.inputs(batch)
        parts = [flat(slots.sides())]
        for h in self.schema.histories:
            target, (sequence, mask) = torch.cat([slots[name] for name in h.of], -1), slots.sequence(h.name)
            parts.append(self.readers[h.name](target, sequence, mask, self.seen(batch, h.name, mask)))
        x = torch.cat([part.to(parts[0].dtype) for part in parts], -1)
        return self.heads(self.mlp(self.cross(x), batch.get("@mask")))

    def seen(self, batch: Mapping[str, Tensor], name: str, mask: Tensor) -> Tensor:
        """The live steps of a history that are read ``[R, T]``: in training those before a window of random length."""
        when = moments(batch, name) if self.training and self.window else None
        if when is None:
            return mask
        times, now = when
        hidden = self.window * torch.rand(mask.shape[0], 1, device=mask.device)
        return mask & (now.unsqueeze(-1) - times >= hidden)


class _Reader(nn.Module):
    """``target [R, L, W], steps [R, T, W], mask [R, T], seen [R, T] → [R, L, (columns + 1) 2 W]``."""

    def __init__(self, width: int, layers: int, heads: int, feed_forward: int, columns: int, dropout: float):
        super().__init__()
        self.columns, self.largest = columns, Max(width)
        self.layers = Transformer(TransformerLayer(width, heads, feed_forward, dropout=dropout) for _ in range(layers))
        self.out = linear(width, width, bias=False)  # without a bias an empty history gives zeros

    def forward(self, target: Tensor, sequence: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        cells, steps = target.shape[:2], sequence.shape[1]
        x = torch.cat(
            [
                sequence.unsqueeze(1).expand(*cells, steps, -1),
                target.unsqueeze(2).expand(*cells, steps, -1),
            ],
            -1,
        ).flatten(0, 1)  # [R · L, T, 2 W]
        live = seen.unsqueeze(1).expand(*cells, steps).flatten(0, 1)
        x = self.layers(x, live) * live.unsqueeze(-1)
        largest = self.out(self.largest(None, x, live))
        back = torch.arange(1, self.columns + 1, device=mask.device)
        at = age(mask)[:, :1] - back  # [R, K]: where the newest step stands, the one before it, ...
        there = (at >= 0).unsqueeze(1).expand(*cells, -1).flatten(0, 1).unsqueeze(-1)
        at = at.clamp(min=0).unsqueeze(1).expand(*cells, -1).flatten(0, 1).unsqueeze(-1)
        newest = x.gather(1, at.expand(-1, -1, x.shape[-1])) * there
        return torch.cat([newest.flatten(-2), largest], -1).unflatten(0, cells)
