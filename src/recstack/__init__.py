"""RecStack: from interaction logs to a served, measured, multi-stage recommender.

Everything is imported when it is first used; the names are listed in ``__init__.pyi``.
"""

from recstack._lazy import attach

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach(__name__, __file__)
