"""FM²: Field-matrixed Factorization Machines for Recommender Systems (Sun et al., WWW 2021).

https://arxiv.org/abs/2102.12994
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from recstack.errors import unknown
from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.pairs import PairMatrices, PairWeights, by_pair
from recstack.nn.names import ByName
from recstack.schema import Schema, is_embedded


class FmFM(Model):
    r"""A factorisation machine in which a matrix takes each vector to the space of the field that it meets.

    .. math:: z = b + \sum_i w_i x_i + \sum_{i<j} \langle v_i M_{F(i)F(j)}, v_j \rangle x_i x_j

    "matrixed" reads the fields behind each other ``[R, L, W]``, each with the width that its feature declares, and
    M is d_i by d_j: a number has width 1, its vector is M's row. "vectorized" (the paper's FvFM) has diagonal matrices and
    fields of one width ``[R, L, F, dim]``; other widths are lifted. Products are in float32, and all pairs are one
    multiplication. Each task has its own linear part; vectors and matrices are shared. Matrices begin as identities, those
    of two plain numbers as zeros: the model starts as a factorisation machine. Departs from the paper: a field of many
    values is pooled first.

    Args:
        schema: a fitted schema, its tasks binary or regressions.
        dim: length of the vectors of features that declare none.
        interaction: "matrixed" or "vectorized".

    Sun et al., WWW 2021, https://arxiv.org/abs/2102.12994

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FmFM(rs.Encoder(train.schema).fit(train).schema, dim=4)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(self, schema: Schema, *, dim: int = 10, interaction: str = "matrixed"):
        super().__init__(schema)
        if interaction not in ("matrixed", "vectorized"):
            raise unknown("interaction", interaction, ("matrixed", "vectorized"))
        self.matrixed = interaction == "matrixed"
        self.heads = Heads(schema, 0)
        self.first_order = ByName({t.name: FirstOrder(schema) for t in schema.tasks if not t.derived})
        self.inputs = Inputs(schema, dim, stacked=not self.matrixed)
        widths = tuple(self.inputs.widths.values())
        self.pairs = PairMatrices(widths) if self.matrixed else PairWeights(len(widths), dim)
        if self.matrixed:
            self._quieten()

    @torch.no_grad()
    def _quieten(self) -> None:
        """Two plain numbers, which are not small as embeddings are, begin without an interaction."""
        plain = [not (is_embedded(self.schema.feature(n)) or n in self.inputs.poolings) for n in self.inputs.widths]
        for (one, other), matrix in zip(combinations(plain, 2), self.pairs.matrices(), strict=True):  # type: ignore[union-attr]
            if one and other:
                matrix.zero_()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = self.inputs(batch)
        pairs = self.pairs(slots.flat() if self.matrixed else slots.stack())  # [R, L]
        return self.heads(None, plus={name: linear(batch) + pairs for name, linear in self.first_order.items()})

    def strengths(self) -> dict[tuple[str, str], float]:
        """The Frobenius norm of each pair's matrix: ``{(field, field): norm}``."""
        return by_pair(self.inputs.widths, self.pairs.norms())
