"""Blocks over histories. Importing the package registers every pooling under its name."""

from recstack.nn.sequence import target_attention  # noqa: F401
from recstack.nn.sequence.pooling import POOLINGS, Pooling, pooling

__all__ = ["POOLINGS", "Pooling", "pooling"]
