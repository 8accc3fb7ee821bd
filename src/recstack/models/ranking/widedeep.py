"""Wide & Deep Learning for Recommender Systems (Cheng et al., DLRS 2016).

https://arxiv.org/abs/1606.07792
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, SchemaError
from recstack.features import FirstOrder, Heads, Inputs
from recstack.features.derived import crossed, longest_list, values_of
from recstack.features.tables import Ask, Tables
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.schema import Feature, History, Schema, is_embedded


class WideDeep(Model):
    r"""A linear model over features and crosses of them, which memorises, beside an MLP, which generalises.

    .. math:: z = b + \sum_i w_i x_i + \sum_k w_k \phi_k(x) + \mathrm{MLP}([e_1; \dots; e_F; x]), \qquad
        \phi_k(x) = \prod_{i \in k} x_i

    Inputs ``[R, L, W]`` of any widths. Each binary task and regression has a wide part of its own; a multiclass task reads the
    deep part alone. A cross such as ``("user_id", "genre")`` has `buckets` weights, into which its combinations of values are
    hashed. A list in a cross gives a combination for each value (of the first ones, up to 64 combinations), a history one for
    each step; their weights are summed; where a part is missing there is none.

    As in the paper the wide part steps with FTRL and L1, the rest with Adagrad; ``fit(optimizer="adam")`` gives all of it
    to one optimiser, as the published benchmarks do. FTRL's `l1` and `beta` are meant for mean losses of batches of
    thousands.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        crosses: tuples of names: Categorical, Text or bucketised Numeric features, and at most one History (its items).
        buckets: weights of each cross.
        hidden: widths of the MLP.
        norm: "batch", "layer" or None.
        dropout: in the MLP.

    Cheng et al., DLRS 2016, https://arxiv.org/abs/1606.07792

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.ranking.WideDeep(schema, crosses=((schema.user, schema.item),), dim=8, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    trainer: ClassVar[dict[str, Any]] = {
        "optimizer": {"wide": ("ftrl", {"lr": 0.1, "beta": 1e-3, "l1": 1e-5}), "default": "adagrad"}
    }

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        crosses: Sequence[Sequence[str]] = (),
        buckets: int = 1 << 16,
        hidden: Sequence[int] = (1024, 512, 256),
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        wide = [t.name for t in schema.tasks if not t.derived and t.kind != "multiclass"]
        self.wide = ByName({name: _Wide(schema, crosses, buckets) for name in wide})
        self.inputs = Inputs(schema, dim)
        self.mlp = MLP(self.inputs.width(), hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plus: dict[str, Any] = dict.fromkeys(t.name for t in self.schema.tasks)
        plus |= {name: part(batch) for name, part in self.wide.items()}
        return self.heads(self.mlp(self.inputs(batch).sides(), batch.get("@mask")), plus=plus)


class _Wide(nn.Module):
    """The linear score ``[R, L]`` of features and crosses."""

    def __init__(self, schema: Schema, crosses: Sequence[Sequence[str]], buckets: int):
        super().__init__()
        self.first_order = FirstOrder(schema)
        self.crosses = _Crosses(schema, crosses, buckets) if crosses else None

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        score = self.first_order(batch)
        return score if self.crosses is None else score + self.crosses(batch, score.shape)


class _Crosses(nn.Module):
    """The sum of the weights of all crosses; its parts are taken in the schema's order, however they were given."""

    def __init__(self, schema: Schema, crosses: Sequence[Sequence[str]], buckets: int):
        super().__init__()
        self.crosses: dict[str, list[Feature]] = {}
        for names in crosses:
            if isinstance(names, str) or len(set(names)) < 2:
                raise ConfigError(f'A cross is a tuple of several features, such as ("hour", "genre"); got {names!r}.')
            parts = [schema.feature(name) for name in names]
            for f in parts:
                if not is_embedded(f) and not isinstance(f, History):
                    raise SchemaError(
                        f"Cross {tuple(names)} reads {f.name!r}, which has no ids; bucketise it, or leave it out."
                    )
            if sum(isinstance(f, History) for f in parts) > 1:
                raise ConfigError(f"Cross {tuple(names)} has several histories; one is enough.")
            ordered = [f for f in schema.features if f.name in names]
            self.crosses["@".join(f.name for f in ordered)] = ordered
        sizes = dict.fromkeys(self.crosses, buckets + 1)
        self.buckets, self.tables = buckets, Tables(sizes, dict.fromkeys(sizes, 1))

    def forward(self, batch: Mapping[str, Tensor], lead: Sequence[int]) -> Tensor:
        """``[R, L]``, or ``[R, 1]`` where all are of the request; `lead` is R, L."""
        asks = []
        for table, features in self.crosses.items():
            parts = [values_of(batch, f, lead, longest_list(features)) for f in features]
            asks.append(Ask(table, crossed(parts, self.buckets), column=table))
        return reduce(torch.add, [found.sum((-2, -1)) for found in self.tables.gather(asks)])
