"""Exact search: one matrix product and a top-k."""

from recstack.index.base import Index


class Exact(Index):
    """Scores every item, no dependency; the choice up to some 100,000 items. Exact, but for rows of fewer bits.

    >>> import torch
    >>> index = Exact().build(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([7, 8, 9]))
    >>> index.search(torch.tensor([[2.0, 1.0]]), k=2)[0]
    tensor([[9, 7]])
    >>> index.search(torch.tensor([[2.0, 1.0]]), k=2, exclude=([0, 1], [9]))[0]
    tensor([[7, 8]])
    """
