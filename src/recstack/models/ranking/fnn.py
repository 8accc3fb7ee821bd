"""Deep Learning over Multi-field Categorical Data (Zhang et al., ECIR 2016).

https://arxiv.org/abs/1601.02376
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from recstack.errors import ConfigError, SchemaError, unknown
from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP, flat
from recstack.nn.names import ByName
from recstack.schema import Schema


class FNN(Model):
    r"""An MLP over the weights and vectors of a factorisation machine, which it may start from.

    .. math:: z = \mathrm{MLP}\big([w_1 x_1; v_1 x_1; \dots; w_F x_F; v_F x_F]\big)

    Fields ``[R, L, F]`` and ``[R, L, F, dim]``. `start_from_fm` takes both from a trained ``rs.ranking.FM``; all of it is
    trained further.

    Departs from the paper: the machine's global bias is no input, for the first layer has biases.

    Args:
        schema: a fitted schema.
        dim: length of the vectors.
        hidden: widths of the MLP.
        activation: "tanh" in the paper.
        norm: "batch", "layer" or None.
        dropout: in the MLP.

    Zhang et al., ECIR 2016, https://arxiv.org/abs/1601.02376

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> fm = rs.ranking.FM(schema, dim=4).fit(train, valid=valid, epochs=1, progress=False)
    >>> model = rs.ranking.FNN(schema, dim=4, hidden=(32,)).start_from_fm(fm)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        hidden: Sequence[int] = (200, 300, 100),
        activation: str = "tanh",
        norm: str | None = None,
        dropout: float = 0.2,
    ):
        super().__init__(schema)
        self.first_order = FirstOrder(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        self.mlp = MLP(self.inputs.fields * (dim + 1), hidden, activation, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        vectors = self.inputs(batch).stack()  # [R, L, F, D]
        x = torch.cat([self._weights(batch), vectors.flatten(-2)], -1)
        return self.heads(self.mlp(x, batch.get("@mask")))

    def _weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Each field's part of the linear score ``[R, L, F]``."""
        slots = self.first_order.inputs(batch)
        request, candidate = (
            [part.sum(-1) for part in side.fields(list(side), self.first_order.numbers)]
            for side in (slots.request, slots.candidate)
        )
        sides = [torch.cat(parts, -1) for parts in (request, candidate) if parts]
        return flat((sides[0], sides[1])) if len(sides) == 2 else sides[0]

    def start_from_fm(self, fm: Model, task: str | None = None) -> Self:
        """Take the vectors and the weights of a trained factorisation machine.

        Args:
            fm: an ``rs.ranking.FM`` over the same features.
            task: whose weights, where it has several; the first by default.

        Raises:
            ConfigError: another kind of model, vectors of another length, or a task that it has not.
            SchemaError: it was trained on other features.
        """
        lines, inputs = getattr(fm, "first_order", None), getattr(fm, "inputs", None)
        if not isinstance(lines, ByName) or not isinstance(inputs, Inputs):
            raise ConfigError(f"FNN starts from an rs.ranking.FM; got {type(fm).__name__}.")
        if fm.schema.fields != self.schema.fields:
            raise SchemaError("The FM was trained on other features than this FNN declares; give both one schema.")
        if inputs.dim != self.inputs.dim:
            raise ConfigError(f"The FM's vectors have length {inputs.dim}; build FNN(schema, dim={inputs.dim}).")
        task = next(iter(lines)) if task is None else task
        if task not in lines:
            raise unknown("task of the FM", task, lines)
        self.inputs.load_state_dict(inputs.state_dict())
        self.first_order.load_state_dict(lines[task].state_dict())
        return self
