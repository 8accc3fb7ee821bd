"""Item vectors and their nearest items by inner product: :class:`Exact` up to some 100,000 items, :class:`Faiss` beyond."""

from recstack.index.base import Index
from recstack.index.exact import Exact
from recstack.index.faiss import Faiss
from recstack.index.qdrant import Qdrant
from recstack.index.rows import Rows
from recstack.index.tags import TagIndex, ecpm_queue, look_alike, queue_recall

__all__ = ["Exact", "Faiss", "Index", "Qdrant", "Rows", "TagIndex", "ecpm_queue", "look_alike", "queue_recall"]
