"""FINAL: Factorized Interaction Layer for CTR Prediction (Zhu et al., SIGIR 2023).

https://doi.org/10.1145/3539618.3591988
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack import losses as loss_room
from recstack.errors import ConfigError, unknown
from recstack.features import Heads, Inputs, tasks
from recstack.losses.rows import weighted_mean
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.interaction.fields import AcrossFields
from recstack.nn.mlp import NORMS, linear, on_live_rows
from recstack.schema import Schema, Task


class FinalNet(Model):
    r"""Layers that multiply two linear maps of what they read, so that each doubles the degree; two blocks teach each other.

    .. math:: [a; b] = W x + c, \qquad x' = \phi\big(\mathrm{BN}([a;\, a \odot b])\big), \qquad
        z = \tfrac12 (z_1 + z_2), \qquad
        \mathcal{L} = \ell(z, y) + \ell(z_1, \sigma(z)) + \ell(z_2, \sigma(z))

    Inputs ``[R, L, F·dim]``; the first block also reads the fields times linear gates over fields. What the blocks learn
    from their mean is not propagated into it. ``second=None`` is one block without such a loss (1B).

    Args:
        schema: a fitted schema.
        dim: embedding width.
        first, second: widths of the layers of each block; `second` None for a single block.
        residual: a layer's output: "concat", ``[a; a ⊙ b]`` with halves a and b, or "sum", ``a + a ⊙ b``.
        field_gate: gate the fields for the first block.
        norm: "batch", "layer" or None, after each layer.
        dropout: after each layer.

    Zhu et al., SIGIR 2023, https://doi.org/10.1145/3539618.3591988

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FinalNet(rs.Encoder(train.schema).fit(train).schema, first=(16,), second=(8,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        first: Sequence[int] = (400, 400),
        second: Sequence[int] | None = (400,),
        residual: str = "concat",
        field_gate: bool = True,
        norm: str | None = "batch",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        fields, self.gate = self.inputs.fields, None
        if field_gate:
            self.gate = AcrossFields(fields, fields, bias=True)
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)  # type: ignore[arg-type]
        shapes = [(fields * dim * (2 if field_gate else 1), first)]
        if second is not None:
            shapes.append((fields * dim, second))
        blocks = [_Block(width, hidden, residual, norm, dropout) for width, hidden in shapes]
        self.blocks = nn.ModuleList(blocks)
        self.heads = nn.ModuleList(Heads(schema, block.width) for block in blocks)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._mean(self._each(batch))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tasks' own, and "@distillation": how far each block's score is from the mean of both."""
        each = self._each(batch)
        mean = self._mean(each)
        out = tasks.losses(mean, batch, self.schema)
        if len(each) > 1:
            learned = [t for t in self.schema.tasks if not t.derived and t.weight]
            parts = [
                _distance(one[t.name], mean[t.name].detach(), batch, self.schema, t) for one in each for t in learned
            ]
            out["@distillation"] = torch.stack(parts).sum()
        return out

    def _each(self, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The logits of each block."""
        fields, mask = self.inputs(batch).stack(), batch.get("@mask")  # [R, L, F, D]
        read = [fields if self.gate is None else torch.cat([fields, fields * self.gate(fields)], -2), fields]
        return [head(block(x.flatten(-2), mask)) for head, block, x in zip(self.heads, self.blocks, read, strict=False)]

    def _mean(self, each: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        total = {name: sum(one[name] for one in each) for name in each[0]}
        return tasks.derive({name: t / len(each) for name, t in total.items()}, self.schema)  # type: ignore[arg-type]


def _distance(score: Tensor, teacher: Tensor, batch: Mapping[str, Tensor], schema: Schema, task: Task) -> Tensor:
    """The loss of a task's kind against what the `teacher`'s logit says, on the rows that the task learns from."""
    _, where, weight = tasks.target(batch, schema, task)
    if tasks.outputs(task) == 1 and task.kind == "binary":
        value = loss_room.bce(score, teacher.sigmoid(), where=where, weight=weight)
    elif tasks.outputs(task) == 1:
        value = loss_room.mse(score, teacher, where=where, weight=weight)
    else:
        live = where.float() if weight is None else torch.where(where, weight, 0)
        score, teacher = (torch.where(where.unsqueeze(-1), x, 0) for x in (score, teacher))
        value = weighted_mean(-(teacher.softmax(-1) * score.log_softmax(-1)).sum(-1), live)
    return value * task.weight


class _Block(nn.Module):
    """Factorised layers, each with its norm, ReLU and dropout: ``[..., width] → [..., hidden[-1]]``."""

    def __init__(self, width: int, hidden: Sequence[int], residual: str, norm: str | None, dropout: float):
        super().__init__()
        if not hidden:
            raise ConfigError(
                "A block of FinalNet needs at least one layer; give widths, or second=None for one block."
            )
        if norm is not None and norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((width, *hidden), hidden, strict=False):
            layers.append(_Factorised(inputs, outputs, residual))
            if norm is not None:
                layers.append(NORMS[norm](outputs))
            layers += [nn.ReLU(), Dropout(dropout)]
        self.layers, self.width = nn.Sequential(*layers), hidden[-1]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return on_live_rows(self.layers, x, mask, self.width)


class _Factorised(nn.Module):
    """``[..., inputs] → [..., outputs]``: a linear map, beside or plus its product with another."""

    def __init__(self, inputs: int, outputs: int, residual: str):
        super().__init__()
        if residual not in ("concat", "sum"):
            raise unknown("residual", residual, ("concat", "sum"))
        self.concat = residual == "concat"
        if self.concat and outputs % 2:
            raise ConfigError(f'With residual="concat" the width of a layer is even; got {outputs}.')
        self.linear = linear(inputs, outputs if self.concat else 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.linear(x).chunk(2, -1)
        return torch.cat([a, a * b], -1) if self.concat else a + a * b
