"""CAN: Feature Co-Action for Click-Through Rate Prediction (Bian et al., WSDM 2022).

https://arxiv.org/abs/2011.05625
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from recstack.errors import SchemaError
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.coaction import co_action, size
from recstack.nn.mlp import MLP
from recstack.nn.sequence.target_attention import TargetAttention
from recstack.schema import REQUEST_ROLES, Schema, is_embedded


class CAN(Model):
    r"""Each item has a small network of its own, in a table, and what a user did is its input.

    .. math:: h_k(x) = \tanh(W^t_k h_{k-1}(x) + b^t_k), \qquad
        z = \mathrm{MLP}\Big(\Big[\Big\Vert_{c,k} \sum_l h_k(p_l^c);\ v_u(t);\ e_t;\ \dots\Big]\Big)

    W and b are the target's row of one table, p the rows of another, both apart from the embeddings e; v is DIN's
    attention. Histories ``[R, T]`` and candidates ``[R, L]`` meet without a copy per candidate.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        layers: widths of the small networks, the input's first; (16, 8, 4) in the paper, 172 numbers an item.
        orders: powers of the input, 1 to that; all go through the same weights.
        pairs: request features that meet the target as histories do, by name.
        hidden: widths of the MLP.
        activation: in the MLP and the attention.
        dropout: in the MLP.

    Bian et al., WSDM 2022, https://arxiv.org/abs/2011.05625

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.CAN(rs.Encoder(train.schema).fit(train).schema, layers=(4, 2), hidden=(16,))
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
        layers: Sequence[int] = (16, 8, 4),
        orders: int = 3,
        pairs: Sequence[str] = (),
        hidden: Sequence[int] = (200, 80),
        activation: str = "dice",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.layers, self.orders, self.pairs = tuple(layers), orders, tuple(pairs)
        self.inputs = Inputs(schema, dim, history=partial(TargetAttention, activation=activation))
        item = schema.item
        assert item is not None  # a History cannot be declared without
        learned = {f.name: replace(f, trainable=True) if is_embedded(f) else f for f in schema.features}
        for name in self.pairs:
            if not is_embedded(schema.feature(name)) or schema.feature(name).role not in REQUEST_ROLES:
                raise SchemaError(f"pairs= names ids of the request; {name!r} is none.")
        keys = dict.fromkeys((item, *(h.of[0] for h in schema.histories)))
        behind = [replace(h, of=h.of[:1]) for h in schema.histories]
        self.networks = Inputs(Schema([learned[item]], item=item), size(self.layers), uniform=True, std=0.1)
        met = [*(learned[name] for name in (*keys, *self.pairs)), *behind]
        self.met = Inputs(Schema(met, item=item), self.layers[0], history=None, uniform=True, std=0.1)
        self.roles = ("history", *dict.fromkeys(schema.feature(name).role for name in self.pairs))
        fields = len(schema.histories) + len(self.pairs)
        width = self.inputs.width() + fields * orders * sum(self.layers[1:])
        self.mlp = MLP(width, hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sides = self.inputs(batch).sides()
        request, candidate = sides if isinstance(sides, tuple) else (None, sides)
        candidate = torch.cat([candidate, *(x.to(candidate.dtype) for x in self.actions(batch))], -1)
        return self.heads(self.mlp(candidate if request is None else (request, candidate), batch.get("@mask")))

    def actions(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """What each history, then each of `pairs`, does in the target's network ``[R, L, orders · layers]``."""
        networks = self.networks(batch)[self.schema.item]  # type: ignore[index]
        slots = self.met(batch, *self.roles)
        met = [slots.sequence(h.name) for h in self.schema.histories]
        for name in self.pairs:
            one = slots[name].unsqueeze(1)
            met.append((one, torch.ones_like(one[..., 0], dtype=torch.bool)))
        return [co_action(networks, x, mask, self.layers, self.orders) for x, mask in met]
