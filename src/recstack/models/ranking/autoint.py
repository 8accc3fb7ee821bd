"""AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks (Song et al., CIKM 2019).

https://arxiv.org/abs/1810.11921
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.features import Heads, Inputs
from recstack.features.tasks import derive
from recstack.models.base import Model
from recstack.nn.interaction.attention import FieldAttention
from recstack.nn.interaction.pairs import by_pair
from recstack.nn.mlp import MLP
from recstack.schema import Schema


class AutoInt(Model):
    r"""Fields attend to each other, layer upon layer; each layer makes interactions of a higher order.

    .. math:: E_{l+1} = \mathrm{ReLU}\big(\mathrm{MHA}(E_l) + W_l E_l\big), \qquad z = w^\top \mathrm{flatten}(E_L) + b

    Fields ``[R, L, F, dim]``, then ``[R, L, F, width]``. ``hidden=(400, 400, 400)`` is AutoInt+: the logit of an MLP over
    the same embeddings is added.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        layers: attention layers.
        width: of all heads of a layer together.
        heads: attention heads.
        scale: divide scores by the root of a head's width; the paper does not.
        residual: with the term W E; W is the identity where widths are equal.
        layer_norm: layer normalisation before each layer's ReLU.
        hidden: widths of the MLP; empty for none.
        norm: "batch", "layer" or None, in the MLP.
        dropout: of what the attention gives, and in the MLP.

    Song et al., CIKM 2019, https://arxiv.org/abs/1810.11921

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.AutoInt(rs.Encoder(train.schema).fit(train).schema, width=8, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    ends_in_heads = False

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        layers: int = 3,
        width: int = 64,
        heads: int = 2,
        scale: bool = False,
        residual: bool = True,
        layer_norm: bool = False,
        hidden: Sequence[int] = (),
        norm: str | None = "batch",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        fields, widths = self.inputs.fields, [dim] + [width] * layers
        self.layers = nn.ModuleList(
            FieldAttention(a, b, heads, scale=scale, residual=residual, norm=layer_norm, dropout=dropout)
            for a, b in pairwise(widths)
        )
        self.heads = Heads(schema, fields * widths[-1])
        self.mlp = MLP(fields * dim, hidden, norm=norm, dropout=dropout) if hidden else None
        self.deep_heads = None if self.mlp is None else Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = fields = self.inputs(batch).stack()  # [R, L, F, D]
        for layer in self.layers:
            x = layer(x)
        logits = self.heads(x.flatten(-2))
        if self.mlp is None or self.deep_heads is None:
            return logits
        deep = self.deep_heads(self.mlp(fields.flatten(-2), batch.get("@mask")))
        return derive({t.name: logits[t.name] + deep[t.name] for t in self.schema.tasks if not t.derived}, self.schema)

    @torch.no_grad()
    def strengths(self, batch: Mapping[str, Tensor]) -> dict[tuple[str, str], float]:
        """How much each two fields attend to each other in the first layer, where they are still themselves.

        The mean of both directions, of the heads, and of the live rows of a batch: ``{(field, field): a}``.
        """
        first: FieldAttention = self.layers[0]  # type: ignore[assignment]
        attention, mask = first.attention(self.inputs(batch).stack()), batch.get("@mask")
        mean = (attention.flatten(0, -3) if mask is None else attention[mask]).mean(0)  # [F, F]
        i, j = torch.triu_indices(mean.shape[0], mean.shape[1], 1)
        return by_pair(self.inputs.widths, (mean + mean.T)[i, j] / 2)
