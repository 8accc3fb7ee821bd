"""Neural Multi-Task Recommendation from Multi-Behavior Data (Gao et al., ICDE 2019).

https://arxiv.org/abs/1809.08161
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from recstack.errors import ConfigError, SchemaError, unknown
from recstack.features import Heads, Inputs
from recstack.features.tasks import derive, lifted, score
from recstack.models.base import Model
from recstack.models.trunk import MultiTask, Plus
from recstack.nn.experts import TaskTowers
from recstack.schema import Schema

INTERACTIONS = ("gmf", "mlp", "neumf")
CARRIES = ("prob", "logit")


class NMTR(MultiTask):
    r"""Behaviours in a cascade: what is said of one is where the next begins.

    .. math:: \hat y^1 = \sigma\big(f^1(p_u, q_i) + b_1\big), \qquad
        \hat y^r = \sigma\big(\hat y^{r-1} + f^r(p_u, q_i) + b_r\big)

    f is a weighted inner product of the keys' vectors (``"gmf"``), an MLP on all features (``"mlp"``), or both in one last
    layer (``"neumf"``), each behaviour's own: hidden vectors ``[R, L, H]``. The binary tasks are the behaviours, from the most
    frequent to the rarest, each with a label on all rows: an item that was viewed and not bought is a negative of the
    order. ``carry="logit"`` adds the log-odds of the behaviour before and not its probability: then a rare one can begin
    far below a frequent one's chances. The λ of the paper are the tasks' weights.

    Departs from the paper: the MLP reads all features, not the keys alone; the product and the MLP have tables of their
    own; and negatives are the log's, or those of ``fit(negatives=4)``.

    Args:
        schema: a fitted schema with a user and an item key.
        dim: embedding width.
        interaction: "gmf", "mlp" or "neumf".
        hidden: widths of each behaviour's MLP.
        carry: "prob", the paper's, or "logit".
        dropout: in the MLPs.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what the MLPs read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: another `interaction` or `carry`; a trunk for "gmf", which has no MLP.
        SchemaError: no keys; a behaviour that is `given` another.

    Gao et al., ICDE 2019, https://arxiv.org/abs/1809.08161

    >>> import recstack as rs
    >>> tasks = [rs.Task("click"), rs.Task("cart"), rs.Task("order")]
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks=tasks))
    >>> model = rs.multitask.NMTR(rs.Encoder(train.schema).fit(train).schema, dim=8, hidden=(16,))
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['cart', 'click', 'order']
    """

    market = "steps"

    needs: ClassVar[tuple[str, ...]] = ("user", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        interaction: str = "neumf",
        hidden: Sequence[int] = (64, 32, 16),
        carry: str = "prob",
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        for what, value, known in (("interaction", interaction, INTERACTIONS), ("carry", carry, CARRIES)):
            if value not in known:
                raise unknown(what, value, known)
        if interaction == "gmf" and trunk is not None:
            raise ConfigError('NMTR with interaction="gmf" reads the keys alone; drop trunk=, or choose "neumf".')
        super().__init__(schema, dim, history, trunk)
        if schema.user is None or schema.item is None:
            raise SchemaError("NMTR needs a user key and an item key: a Categorical of each role, or user=, item=.")
        keys = (schema.user, schema.item)
        self.keys = self.mlps = None
        width = 0
        if interaction != "mlp":
            self.keys = Inputs(schema.replace(features=[schema.feature(n) for n in keys]), dim, uniform=True, std=0.01)
            width += dim
        if interaction == "gmf":
            del self.trunk
        else:
            each = self.trunk.each
            self.mlps = TaskTowers(self.names, self.trunk.width, hidden, each=each, dropout=dropout)
            width += self.mlps.width
        self.heads = _CascadedHeads(schema, width, carry)

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {} if self.mlps is None else super().auxiliary_losses(batch)  # with the keys alone there is no trunk

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts, plus = [], None
        if self.keys is not None:
            slots = self.keys(batch)
            product = slots[self.schema.user].unsqueeze(-2) * slots[self.schema.item]  # [R, L, dim]
            parts.append(product.unsqueeze(-2).expand(*product.shape[:-1], len(self.names), -1))
        if self.mlps is not None:
            x, plus = self.trunk(batch)
            parts.append(self.mlps(x, batch.get("@mask")))
        return self.heads(self.by_task(torch.cat(parts, -1)), plus)


class _CascadedHeads(Heads):
    """Heads in which each binary task adds the one before it."""

    def __init__(self, schema: Schema, width: int, carry: str):
        super().__init__(schema, width)
        self.carry = carry
        self.behaviours = [t.name for t in schema.tasks if t.kind == "binary" and not t.derived]
        for name in self.behaviours:
            if schema.task(name).given is not None:
                raise SchemaError(
                    f"NMTR asks of each behaviour on all rows, and task {name!r} is given {schema.task(name).given!r}. "
                    f'Declare Task("{name}") with a label that is 0 where it did not happen.'
                )

    def forward(self, hidden: Mapping[str, Tensor], plus: Plus = None) -> dict[str, Tensor]:
        logits = super().forward(hidden, plus)
        for before, name in pairwise(self.behaviours):
            said = score(logits[before], self.schema.task(before))
            said = said.sigmoid() if self.carry == "prob" else said
            logits[name] = logits[name] + lifted(said, self.schema.task(name))
        return derive(logits, self.schema)
