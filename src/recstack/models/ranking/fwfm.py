"""Field-weighted Factorization Machines for Click-Through Rate Prediction in Display Advertising (Pan et al., WWW 2018).

https://arxiv.org/abs/1806.03514
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn import mlp
from recstack.nn.interaction.pairs import PairWeights, by_pair
from recstack.nn.names import ByName
from recstack.schema import History, Schema, is_embedded


class FwFM(Model):
    r"""A factorisation machine that learns how much each pair of fields matters.

    .. math:: z = b + \mathrm{linear}(x) + \sum_{i<j} r_{F(i)F(j)} \langle v_i, v_j \rangle x_i x_j

    Fields ``[R, L, F, dim]``, their products in float32. Each task has its own linear part; vectors and r are shared. The
    linear part is one of three: "LW", a weight w_i for each id; "FeLV", ⟨v_i, w_i⟩ with a second vector for each id;
    "FiLV", ⟨v_i, w_F(i)⟩ with one vector for each field, which the paper recommends. Numbers have one w for all their values, and
    multiply once. Departs from the paper: a field of many values is pooled first, its vectors and its w apart.

    Args:
        schema: a fitted schema, its tasks binary or regressions.
        dim: length of the vectors.
        linear: "LW", "FeLV" or "FiLV".

    Pan et al., WWW 2018, https://arxiv.org/abs/1806.03514

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FwFM(rs.Encoder(train.schema).fit(train).schema, dim=4)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(self, schema: Schema, *, dim: int = 10, linear: str = "FiLV"):
        super().__init__(schema)
        if linear not in LINEAR:
            raise unknown("linear part", linear, LINEAR)
        self.heads = Heads(schema, 0)
        self.first_order = ByName({t.name: LINEAR[linear](schema, dim) for t in schema.tasks if not t.derived})
        self.inputs = Inputs(schema, dim, stacked=True)
        self.pairs = PairWeights(self.inputs.fields)
        nn.init.normal_(self.pairs.weight, 0.0, (2 / (len(self.pairs.weight) + 1)) ** 0.5)  # Xavier's, as published

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        pairs = self.pairs(fields)
        return self.heads(None, plus={name: line(batch, fields) + pairs for name, line in self.first_order.items()})

    def strengths(self) -> dict[tuple[str, str], float]:
        """The learned r of each pair of fields: ``{(field, field): r}``."""
        return by_pair(self.inputs.widths, self.pairs.weight.detach()[:, 0])


class _IdWeights(FirstOrder):
    """LW: ``(batch, fields [..., F, D]) → [...]``, a weight for each id."""

    def __init__(self, schema: Schema, dim: int):
        super().__init__(schema)

    def forward(self, batch: Mapping[str, Tensor], fields: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(batch)


class _IdVectors(nn.Module):
    """FeLV: ``(batch, fields [..., F, D]) → [...]``, a vector for each id."""

    def __init__(self, schema: Schema, dim: int):
        super().__init__()
        columns = [f for f in schema.features if not (isinstance(f, History) or is_embedded(f))]
        self.plain = [f.name for f in columns if getattr(f, "embedding", None) is None]
        self.inputs = Inputs(schema, dim, stacked=True)

    def forward(self, batch: Mapping[str, Tensor], fields: Tensor) -> Tensor:
        once = {**batch, **{name: torch.ones_like(batch[name]) for name in self.plain}}  # x is in the fields already
        return (fields.float() * self.inputs(once).stack().float()).sum((-2, -1))


class _FieldVectors(nn.Module):
    """FiLV: ``(batch, fields [..., F, D]) → [...]``, a vector for each field."""

    def __init__(self, schema: Schema, dim: int):
        super().__init__()
        self.weights = mlp.linear(len(schema.fields) * dim, 1, bias=False)

    def forward(self, batch: Mapping[str, Tensor], fields: Tensor) -> Tensor:
        with torch.autocast(fields.device.type, enabled=False):
            return self.weights(fields.float().flatten(-2)).squeeze(-1)


LINEAR = {"LW": _IdWeights, "FeLV": _IdVectors, "FiLV": _FieldVectors}
