"""Models for multitask; one paper, one file."""

from recstack._lazy import attach_models

__getattr__, __dir__, __all__ = attach_models(__name__, __file__)
