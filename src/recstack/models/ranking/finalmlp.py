"""FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction (Mao et al., AAAI 2023).

https://arxiv.org/abs/2304.00902
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs, tasks
from recstack.models.base import Model
from recstack.nn.mlp import MLP, linear
from recstack.nn.names import ByName
from recstack.schema import History, Schema


class FinalMLP(Model):
    r"""Two MLPs that see the embeddings through gates of their own, and a bilinear form of what comes out of them.

    .. math:: h_k = \mathrm{MLP}_k\big(2\sigma(\mathrm{gate}_k(c_k)) \odot e\big), \qquad
        z = b + w_1^\top h_1 + w_2^\top h_2 + \sum_j h_1^{(j)\top} W_j h_2^{(j)}

    Inputs ``[R, L, F·dim]``. A gate reads c, the embeddings (from tables of its own) of the features that are named to
    it, or a learned vector where none is. ``gate=None`` is the two streams without gates, DualMLP. With `heads` > 1 the
    bilinear form joins that many pieces of each stream.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        first, second: widths of the two MLPs.
        first_context, second_context: features that each gate reads; a history brings the item features it consists of.
        gate: hidden widths of the gates, or None for no gates.
        heads: pieces of the bilinear form; divides the last width of both streams.
        norm: "batch", "layer" or None, in the MLPs.
        dropout: in the MLPs.

    Mao et al., AAAI 2023, https://arxiv.org/abs/2304.00902

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FinalMLP(rs.Encoder(train.schema).fit(train).schema, first=(16,), second=(8,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    ends_in_heads = False

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        first: Sequence[int] = (400,),
        second: Sequence[int] = (400,),
        first_context: Sequence[str] = (),
        second_context: Sequence[str] = (),
        gate: Sequence[int] | None = (64,),
        heads: int = 1,
        norm: str | None = "batch",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        width = self.inputs.fields * dim
        self.gates = None
        if gate is not None:
            self.gates = nn.ModuleList(_Gate(schema, dim, c, gate, width) for c in (first_context, second_context))
        streams = [MLP(width, h, norm=norm, dropout=dropout) for h in (first, second)]
        self.streams = nn.ModuleList(streams)
        one, two = (stream.width for stream in streams)
        if one % heads or two % heads:
            raise ConfigError(f"heads must divide the last width of both streams; got {heads} for {one} and {two}.")
        self.heads = Heads(schema, one + two)
        outputs = {t.name: tasks.outputs(t) for t in schema.tasks if not t.derived}
        self.bilinear = ByName({name: _Bilinear(one, two, n, heads) for name, n in outputs.items()})

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, mask = self.inputs(batch).stack().flatten(-2), batch.get("@mask")  # [R, L, W]
        seen = (x, x) if self.gates is None else [gate(batch, x) for gate in self.gates]
        one, two = (stream(part, mask) for stream, part in zip(self.streams, seen, strict=True))
        logits = self.heads(torch.cat([one, two], -1))
        return tasks.derive(
            logits | {name: logits[name] + form(one, two) for name, form in self.bilinear.items()}, self.schema
        )


class _Gate(nn.Module):
    """The embeddings ``[R, L, W]``, each number between its nothing and its double as the context says."""

    def __init__(self, schema: Schema, dim: int, context: Sequence[str], hidden: Sequence[int], width: int):
        super().__init__()
        self.inputs = self.vector = None
        if context:
            read = {part for name in context for part in _parts(schema, name)}
            self.inputs = Inputs(schema.without(*(n for n in schema.names if n not in read)), dim, stacked=True)
        else:
            self.vector = nn.Parameter(0.1 * torch.randn(1, dim))  # zeros would never leave the first ReLU
        self.mlp = MLP(dim * (1 if self.inputs is None else self.inputs.fields), hidden)
        self.last = linear(self.mlp.width, width)

    def forward(self, batch: Mapping[str, Tensor], x: Tensor) -> Tensor:
        context = self.vector
        if self.inputs is not None:
            context = self.inputs(batch).stack().flatten(-2)  # [R, 1, C] if of requests only
            if context.dim() < x.dim():  # jagged lists of items alone do not know their requests
                context = context.view(*x.shape[:-1], -1)
        return 2 * self.last(self.mlp(context)).sigmoid() * x


def _parts(schema: Schema, name: str) -> tuple[str, ...]:
    feature = schema.feature(name)
    return (name, *feature.of) if isinstance(feature, History) else (name,)


class _Bilinear(nn.Module):
    r""":math:`\sum_j a^{(j)\top} W_j b^{(j)}` over pieces j of ``a [..., A]`` and ``b [..., B]``, in float32.

    ``[...]`` for one output, ``[..., outputs]`` for several.
    """

    def __init__(self, one: int, two: int, outputs: int, heads: int):
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(outputs, heads, one // heads, two // heads))
        nn.init.xavier_normal_(self.weight.view(outputs * one, two // heads))

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        with torch.autocast(one.device.type, enabled=False):
            a, b = (x.float().unflatten(-1, (self.heads, -1)) for x in (one, two))
            score = (torch.einsum("...ha,ohab->...ohb", a, self.weight) * b.unsqueeze(-3)).sum((-2, -1))
        return score.squeeze(-1) if self.weight.shape[0] == 1 else score
