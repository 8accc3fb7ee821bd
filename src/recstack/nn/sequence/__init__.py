"""Blocks over histories. Importing the package registers every pooling under its name."""

from recstack.nn.sequence import (  # noqa: F401
    augru,
    hstu,
    linear_attention,
    recurrent,
    sessions,
    short_term,
    target_attention,
    target_transformer,
    temporal,
)
from recstack.nn.sequence.pooling import POOLINGS, Pooling, pooling

__all__ = ["POOLINGS", "Pooling", "pooling"]
