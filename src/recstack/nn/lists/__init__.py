"""Blocks that read a list of candidates as a whole."""

from recstack.nn.lists.encoder import ENCODERS, ListEncoder
from recstack.nn.lists.induced import InducedAttention
from recstack.nn.lists.steps import Steps

__all__ = ["ENCODERS", "InducedAttention", "ListEncoder", "Steps"]
