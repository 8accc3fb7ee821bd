"""DHEN: A Deep and Hierarchical Ensemble Network for Large-Scale Click-Through Rate Prediction (Zhang et al., DLP-KDD 2022).

https://arxiv.org/abs/2203.11014
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.cross import Cross
from recstack.nn.interaction.fields import AcrossFields
from recstack.nn.mlp import MLP, linear
from recstack.nn.sequence.transformer import TransformerLayer
from recstack.schema import Schema


class DHEN(Model):
    r"""Layers in which several kinds of interaction work side by side, each layer on what the one before made of the fields.

    .. math:: X_{n+1} = \mathrm{LN}\big(\mathrm{Ensemble}_i\,\mathrm{Interaction}_i(X_n) + S X_n\big)

    Tokens ``[R, L, N, dim]``, at first the fields. Every interaction gives `tokens` tokens: "dot" (an MLP of all inner
    products), "attention" (a transformer layer), "linear", "cross" (one cross of all numbers, as in DCN V2), "convolution"
    (3 × 3, over tokens and width). S is the identity where the number of tokens stays. Departs from the paper: numbers are
    tokens x·v, not the output of an MLP. Embeddings start a hundred times larger than elsewhere, because the products of
    tiny ones would vanish.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        layers: how many.
        interactions: names of those above; a name twice is two of them.
        tokens: that each interaction gives.
        ensemble: "concat" of their tokens, their "sum", or a learned "weighted" sum.
        attention_heads: of "attention"; divides `dim`.
        inner: hidden widths of the MLP in "dot".
        hidden: widths of the MLP on top.
        dropout: in MLPs and attention.

    Zhang et al., DLP-KDD 2022, https://arxiv.org/abs/2203.11014

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DHEN(rs.Encoder(train.schema).fit(train).schema, layers=1, inner=(16,), hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        layers: int = 3,
        interactions: Sequence[str] = ("dot", "linear"),
        tokens: int = 16,
        ensemble: str = "concat",
        attention_heads: int = 1,
        inner: Sequence[int] = (128,),
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if ensemble not in ("concat", "sum", "weighted"):
            raise unknown("ensemble", ensemble, ("concat", "sum", "weighted"))
        if not interactions:
            raise ConfigError(f"DHEN needs at least one interaction. Known: {', '.join(INTERACTIONS)}.")
        for name in interactions:
            if name not in INTERACTIONS:
                raise unknown("interaction", name, INTERACTIONS)
        self.inputs = Inputs(schema, dim, stacked=True, std=0.01)
        widths = [self.inputs.fields] + [tokens * (len(interactions) if ensemble == "concat" else 1)] * layers
        options = {"inner": tuple(inner), "heads": attention_heads, "dropout": dropout}
        self.layers = nn.ModuleList(
            _Layer([INTERACTIONS[i](n, tokens, dim, **options) for i in interactions], ensemble, n, m, dim)
            for n, m in pairwise(widths)
        )
        self.mlp = MLP(widths[-1] * dim, hidden, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.inputs(batch).stack()
        for layer in self.layers:
            x = layer(x)
        return self.heads(self.mlp(x.flatten(-2)))


class _Layer(nn.Module):
    """``[..., N, D] → [..., M, D]``."""

    def __init__(self, interactions: list[nn.Module], ensemble: str, inputs: int, outputs: int, dim: int):
        super().__init__()
        self.interactions = nn.ModuleList(interactions)
        self.concat = ensemble == "concat"
        self.weight = nn.Parameter(torch.ones(len(interactions))) if ensemble == "weighted" else None
        self.shortcut = None if inputs == outputs else AcrossFields(inputs, outputs)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        found = [interaction(x) for interaction in self.interactions]
        if self.weight is not None:
            found = [w * u for w, u in zip(self.weight, found, strict=True)]
        together = torch.cat(found, -2) if self.concat else torch.stack(found).sum(0)
        return self.norm(together + (x if self.shortcut is None else self.shortcut(x)))


class _Dot(nn.Module):
    """An MLP of the inner products of all pairs of tokens, each with itself too (AdvancedDLRM)."""

    def __init__(self, inputs: int, outputs: int, dim: int, inner: tuple[int, ...], heads: int, dropout: float):
        super().__init__()
        self.shape = (outputs, dim)
        places = torch.triu_indices(inputs, inputs)
        self.register_buffer("places", places[0] * inputs + places[1], persistent=False)
        self.mlp = MLP(places.shape[1], inner, dropout=dropout)
        self.last = linear(self.mlp.width, outputs * dim)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            v = x.float()
            pairs = (v @ v.transpose(-1, -2)).flatten(-2).index_select(-1, self.places)  # type: ignore[arg-type]
        return self.last(self.mlp(pairs)).unflatten(-1, self.shape)


class _Attention(nn.Module):
    """A transformer layer over the tokens, then fewer or more of them."""

    def __init__(self, inputs: int, outputs: int, dim: int, inner: tuple[int, ...], heads: int, dropout: float):
        super().__init__()
        self.layer = TransformerLayer(dim, heads, dropout=dropout)
        self.out = AcrossFields(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -3)
        live = torch.ones(rows.shape[:2], dtype=torch.bool, device=x.device)
        return self.out(self.layer(rows, live).view(x.shape))


class _Linear(AcrossFields):
    """Tokens that are linear combinations of those before."""

    def __init__(self, inputs: int, outputs: int, dim: int, inner: tuple[int, ...], heads: int, dropout: float):
        super().__init__(inputs, outputs)


class _Crossed(nn.Module):
    """One cross of all numbers of all tokens, then fewer or more tokens."""

    def __init__(self, inputs: int, outputs: int, dim: int, inner: tuple[int, ...], heads: int, dropout: float):
        super().__init__()
        self.cross, self.out = Cross(inputs * dim, 1), AcrossFields(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cross(x.flatten(-2)).view(x.shape))


class _Convolution(nn.Module):
    """A 3 × 3 convolution of tokens by width, then fewer or more tokens."""

    def __init__(self, inputs: int, outputs: int, dim: int, inner: tuple[int, ...], heads: int, dropout: float):
        super().__init__()
        self.convolution, self.out = nn.Conv2d(1, 1, 3, padding=1), AcrossFields(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        image = x.flatten(0, -3).unsqueeze(1)
        return self.out(self.convolution(image).reshape(x.shape))


INTERACTIONS = {
    "dot": _Dot,
    "attention": _Attention,
    "linear": _Linear,
    "cross": _Crossed,
    "convolution": _Convolution,
}
