"""What multi-domain models have in common: the column that says where a request was made, and what steers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import SchemaError
from recstack.features import Inputs, Slots
from recstack.features.columns import column
from recstack.models.base import Model
from recstack.models.trunk import MultiTask, Plus
from recstack.nn.mlp import flat
from recstack.schema import Categorical, Schema

FIRST = 2  # ids 0 and 1 of the domain column, padding and out-of-vocabulary, are no domain


class DomainColumn:
    """A schema's first feature of role "domain".

    Args:
        schema: a fitted schema.
        model: the model's name, for the error.

    Raises:
        SchemaError: it is no Categorical with one value.

    Called with a batch it gives each request's domain ``[R]``: 0 for none (not met in training), then 1 to `count`.
    """

    def __init__(self, schema: Schema, model: str):
        domain = schema.by_role("domain")[0]
        if not isinstance(domain, Categorical) or domain.multi:
            raise SchemaError(
                f"{model} takes its domain from {domain.name!r}, which must be a single-valued Categorical."
            )
        self.name, self.count = domain.name, max((domain.size or 0) - FIRST, 0)

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        return (column(batch, self.name) - (FIRST - 1)).clamp(min=0)


class MultiDomain(MultiTask):
    """Base of models in which features that say where, or who, steer what is made of all others.

    `trunk` gives what is read; the features that steer are taken from its embeddings, or, where another model is the trunk,
    embedded beside it. A subclass begins with ``x, slots, plus = self.read(batch)``.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        history: str | None,
        trunk: Callable[..., Model] | None,
        steering: Sequence[str] | None = None,
    ):
        """`steering`: names of the features; those of role "domain" where None."""
        super().__init__(schema, dim, history, trunk, together=True)  # type: ignore[arg-type]
        self.steering = [f.name for f in schema.by_role("domain")] if steering is None else list(steering)
        self.beside = None
        if self.trunk.inputs is None and self.steering:
            self.beside = Inputs(schema.without(*(f.name for f in schema.fields if f.name not in self.steering)), dim)

    def read(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Slots | None, Plus]:
        """What the trunk makes of a batch ``[R, L, W]``, the vectors of single features, what is added to the logits."""
        if self.trunk.inputs is not None:
            slots = self.trunk.inputs(batch)
            return slots.flat(), slots, None
        x, plus = self.trunk(batch)
        return flat(x), None if self.beside is None else self.beside(batch), plus

    def width_of(self, *names: str) -> int:
        """The width of these features together."""
        inputs = self.trunk.inputs if self.beside is None else self.beside
        return sum(inputs.widths[name] for name in names) if inputs is not None else 0


def once(slots: Slots | None, names: Sequence[str]) -> Tensor:
    """The vectors of these features, which a request has once: ``[R, W]``."""
    assert slots is not None
    vectors = [slots[name] for name in names]
    return torch.cat([v if v.dim() == 2 else v.squeeze(-2) for v in vectors], -1)


def added(names: Sequence[str], bias: Tensor, plus: Plus = None) -> dict[str, Tensor]:
    """What a domain adds to the tasks' logits, ``bias [R, L, T]``, and what the trunk adds."""
    own = dict(zip(names, bias.unbind(-1), strict=True))
    if plus is None:
        return own
    return {name: one + (plus if isinstance(plus, Tensor) else plus[name]) for name, one in own.items()}
