"""AutoFIS: Automatic Feature Interaction Selection in Factorization Models for Click-Through Rate Prediction (Liu et al., KDD 2020).

https://arxiv.org/abs/2003.11235
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.products import inner_products
from recstack.nn.mlp import MLP, BatchNorm, on_live_rows
from recstack.schema import Schema


class AutoFIS(Model):
    r"""DeepFM with a gate for each pair of fields, most of which close in training.

    .. math:: z = b + \sum_i w_i x_i + \sum_{i<j} \alpha_{ij}\, \mathrm{BN}(\langle v_i, v_j \rangle x_i x_j) +
        \mathrm{MLP}([v_1; \dots; v_F])

    The normalisation has no scale of its own, which is what makes gates comparable. In the search GRDA sets gates to exact zeros
    and Adam trains the rest; then the pairs that are left are trained anew, gates included, by one optimiser::

        search = AutoFIS(schema).fit(train, valid)
        model = AutoFIS(schema, pairs=search.selected()).fit(train, valid)

    GRDA's threshold grows with the steps: after few of them, `c` must be larger than the paper's 0.0005, as in
    ``fit(train, optimizer={"gates": ("grda", {"c": 0.02}), "default": "adam"})``. Fields ``[R, L, F, dim]``, products in
    float32, statistics over live rows. ``hidden=()`` leaves the MLP out (AutoFM).

    Args:
        schema: a fitted schema; without `hidden`, its tasks are binary or regressions.
        dim: embedding width.
        pairs: the pairs of fields to keep; None for all, in the search.
        hidden: widths of the MLP.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.

    Liu et al., KDD 2020, https://arxiv.org/abs/2003.11235

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> search = rs.ranking.AutoFIS(schema, hidden=(16,)).fit(train, epochs=1, progress=False)
    >>> gates = search.strengths()
    >>> widest = sorted(gates, key=lambda pair: -abs(gates[pair]))[:5]
    >>> model = rs.ranking.AutoFIS(schema, hidden=(16,), pairs=widest).fit(train, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    normalised: ClassVar[bool] = True  # so that gates of different pairs are compared as they are
    place: Tensor
    trainer: ClassVar[dict[str, Any]] = {"optimizer": {"gates": "grda", "default": "adam"}}

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 40,
        pairs: Sequence[Sequence[str]] | None = None,
        hidden: Sequence[int] = (700, 700, 700, 700, 700),
        norm: str | None = "batch",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.first_order = FirstOrder(schema)
        self.inputs = Inputs(schema, dim, stacked=True, std=0.01)
        every = list(combinations(self.inputs.widths, 2))
        places = range(len(every)) if pairs is None else sorted({_place(pair, every) for pair in pairs})
        if not places:
            raise ConfigError("AutoFIS has no pair of fields to weigh; name one in pairs=, or train a model without.")
        if pairs is not None:
            self.trainer = {}  # type: ignore[misc]  # retraining has no search
        self.pairs = [every[i] for i in places]
        self.register_buffer("place", torch.tensor(list(places)), persistent=False)
        self.norm = BatchNorm(len(self.pairs), affine=False)
        self.gates = nn.Parameter(torch.full((len(self.pairs),), 0.6))  # as the authors' code
        self.mlp = MLP(self.inputs.fields * dim, hidden, norm=norm, dropout=dropout) if hidden else None
        self.heads = Heads(schema, self.mlp.width if self.mlp is not None else 0)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields, mask = self.inputs(batch).stack(), batch.get("@mask")  # [R, L, F, D]
        products = inner_products(fields).index_select(-1, self.place)  # [R, L, P]
        products = on_live_rows(self.norm, products, mask, len(self.pairs))
        score = self.first_order(batch) + (products * self.gates).sum(-1)
        return self.heads(None if self.mlp is None else self.mlp(fields.flatten(-2), mask), plus=score)

    def strengths(self) -> dict[tuple[str, str], float]:
        """The gate of each pair of fields: ``{(field, field): α}``."""
        return dict(zip(self.pairs, self.gates.detach().tolist(), strict=True))

    def selected(self) -> tuple[tuple[str, str], ...]:
        """The pairs whose gates are open, for ``pairs=`` of the model to be retrained."""
        return tuple(pair for pair, gate in self.strengths().items() if gate != 0)


def _place(pair: Sequence[str], every: list[tuple[str, str]]) -> int:
    names = list(dict.fromkeys(name for known in every for name in known))
    if isinstance(pair, str) or len(set(pair)) != 2:
        raise ConfigError(f'pairs= holds pairs of fields, such as ("hour", "genre"); got {pair!r}.')
    for name in pair:
        if name not in names:
            raise unknown("field in pairs=", name, names)
    return next(i for i, known in enumerate(every) if set(known) == set(pair))
