"""What columns mean: features with roles, tasks, and the schema that holds them. No torch here."""

from recstack.schema.features import (
    CANDIDATE_ROLES,
    REQUEST_ROLES,
    ROLES,
    Categorical,
    Crossed,
    Feature,
    History,
    Hits,
    Numeric,
    Text,
    Vector,
    is_derived,
    is_embedded,
    is_multi,
)
from recstack.schema.schema import Schema, Task

__all__ = [
    "CANDIDATE_ROLES",
    "REQUEST_ROLES",
    "ROLES",
    "Categorical",
    "Crossed",
    "Feature",
    "History",
    "Hits",
    "Numeric",
    "Schema",
    "Task",
    "Text",
    "Vector",
    "is_derived",
    "is_embedded",
    "is_multi",
]
