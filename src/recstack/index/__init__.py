"""Item vectors and their nearest items by inner product: :class:`Exact` up to some 100,000 items, :class:`Faiss` beyond."""

from recstack.index.base import Index
from recstack.index.exact import Exact
from recstack.index.faiss import Faiss
from recstack.index.rows import Rows

__all__ = ["Exact", "Faiss", "Index", "Rows"]
