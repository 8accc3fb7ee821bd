"""The column that says where a request was made."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recstack.errors import SchemaError
from recstack.features.columns import column
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
