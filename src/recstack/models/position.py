"""Where an item was shown: read while learning from a log, unknown when the next page is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, SchemaError, unknown
from recstack.features import Inputs, tasks
from recstack.features.inputs import column
from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.mlp import MLP, linear
from recstack.schema import CANDIDATE_ROLES, History, Schema, is_embedded, is_multi

UNKNOWN = 1  # the id of what is not in the vocabulary


class ShallowTower(nn.Module):
    """A logit for each of K tasks of where a row was shown, ``[R, L, K]``; in evaluation, where nothing is known, ``[1, 1, K]``.

    Args:
        schema: a fitted schema.
        names: Categorical (or bucketised) features of the place: position, and device or layout with it.
        dim: embedding width, and that of the one hidden layer: a greater tower would learn what is relevant, too.
        tasks: K.
        dropout: chance that a feature is unknown in training.
        bias: an offset of its own, for what adds no head.

    Raises:
        ConfigError: a feature that is not declared, or has no id for what is unknown.
    """

    def __init__(
        self, schema: Schema, names: Sequence[str], dim: int, tasks: int, dropout: float = 0.0, bias: bool = False
    ):
        super().__init__()
        for name in names:
            check_place(schema, name)
        self.columns = {n: schema.feature(n).role in CANDIDATE_ROLES for n in names}
        self.dropout = dropout
        self.inputs = Inputs(Schema([schema.feature(n) for n in names]), dim)
        self.layer = MLP(self.inputs.width(), (dim,))
        self.out = linear(dim, tasks, bias=bias)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        ids: dict[str, Tensor] = {}
        for name, of_candidate in self.columns.items():
            if self.training:
                known = column(batch, name)
                out = torch.rand(known.shape, device=known.device) < self.dropout
                ids[name] = known.masked_fill(out, UNKNOWN)
            else:
                size = (1, 1) if of_candidate else (1,)
                ids[name] = torch.full(size, UNKNOWN, device=self.out.weight.device)
        return self.of(ids)

    def of(self, ids: Mapping[str, Tensor]) -> Tensor:
        """The logits of places that are known, in training or not."""
        return self.out(self.layer(self.inputs(ids).flat()))


def check_place(schema: Schema, name: str) -> None:
    """Raises ConfigError unless a declared feature has one id a row, and one for what is unknown."""
    if name not in schema.names:
        raise unknown("position feature", name, schema.names)
    f = schema.feature(name)
    if not is_embedded(f) or is_multi(f) or isinstance(f, History):
        raise ConfigError(
            f"Position {name!r} is a {type(f).__name__} without an id for what is unknown; declare it as a Categorical."
        )


class Examined(MultiTask):
    """Base of models in which a click needs that the place is looked at: ``p(click) = p(looked at | place) · p(click | item)``.

    `position` names the features of the place, which nothing else reads; () for none. `biased` are the tasks it holds for: binary ones
    that are given no other (a click that has happened was looked at). The hidden layers stand on all embeddings, or a `trunk`.
    """

    ends_in_heads = False

    def __init__(
        self,
        schema: Schema,
        dim: int,
        hidden: Sequence[int],
        position: Sequence[str],
        norm: str | None,
        dropout: float,
        history: str,
        trunk: Callable[..., Model] | None,
    ):
        for name in position:
            check_place(schema, name)
        super().__init__(schema.without(*position), dim, history, trunk, together=True)
        self.schema, self.position = schema, tuple(position)
        own = [schema.task(name) for name in self.names]
        kinds = [t for t in own if t.kind == "binary" and t.given is None and tasks.outputs(t) == 1]
        self.biased = [t.name for t in kinds] if position else []
        self.bottom = MLP(self.trunk.width, hidden, norm=norm, dropout=dropout)
        self.towers_on(self.bottom.width, (), each=False)

    def relevance(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every task's logits as if its row is looked at."""
        x, plus = self.trunk(batch)
        return self.answer(self.bottom(x, batch.get("@mask")), batch, plus)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.relevance(batch)

    def place(self, batch: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """int64 ids of the rows' place, in the shape of the labels ``[R, L]``."""
        ids = column(batch, self.position[0]).long()
        return (ids.unsqueeze(-1) if ids.dim() < len(shape) else ids).expand(shape)

    def curve(self, task: str) -> Tensor:
        """The chance, by id, that a place is looked at, up to one factor for all ``[ids]``."""
        raise NotImplementedError(f"{type(self).__name__} has no curve")

    @torch.no_grad()
    def examination(self, task: str | None = None) -> dict[Any, float]:
        """What was learned of each place: {raw value: chance of being looked at, the greatest being 1}.

        Only products of a chance and a relevance are seen, so their scale is not known. Without an Encoder the keys are ids.
        Raises SchemaError where no position was given, ConfigError for a task that has none.
        """
        if not self.biased:
            raise SchemaError("This model reads no position; give position=('position',).")
        task = self.biased[0] if task is None else task
        if task not in self.biased:
            raise unknown("task with a position", task, self.biased)
        curve = self.curve(task).double().cpu().numpy()[UNKNOWN + 1 :]
        ids = np.arange(UNKNOWN + 1, UNKNOWN + 1 + len(curve))
        if self.schema.encoder is not None:
            ids = self.schema.encoder.decode(self.position[0], ids)
        chance = curve / curve.max()
        found = sorted(zip(ids.tolist(), chance.tolist(), strict=True), key=lambda pair: -pair[1])
        return dict(found)
