"""Blocks that read a list of candidates as a whole."""

from recstack.nn.lists.encoder import ENCODERS, ListEncoder

__all__ = ["ENCODERS", "ListEncoder"]
