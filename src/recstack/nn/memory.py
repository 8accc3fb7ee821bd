"""What earlier batches held: their items, as more negatives than a batch has rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CrossBatchMemory(nn.Module):
    """The vectors of the newest `size` items that were pushed, without gradients: first in, first out.

    Vectors drift slowly, so that those of a few batches ago are nearly what they would be now; the younger the model, the
    fewer batches that is.

    Wang et al., "Cross-Batch Negative Sampling for Training Two-Tower Recommenders", SIGIR 2021,
    https://arxiv.org/abs/2110.15154

    >>> memory = CrossBatchMemory(3, 1)
    >>> memory.push(torch.tensor([[1.0], [2.0]]), torch.tensor([7, 8]))
    >>> memory.push(torch.tensor([[3.0], [4.0]]), torch.tensor([9, 7]))
    >>> memory.ids, memory.vectors.squeeze(1)
    (tensor([7, 8, 9]), tensor([4., 2., 3.]))
    """

    vectors: Tensor  # [size, D]
    ids: Tensor  # int64 [size], 0 where nothing was pushed yet
    at: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, vectors: Tensor, ids: Tensor) -> None:
        """Vectors ``[n, D]`` of items ``[n]``, in place of the oldest."""
        size = self.ids.shape[0]
        vectors, ids = vectors[-size:], ids[-size:]
        place = (self.at + torch.arange(ids.shape[0], device=ids.device)) % size
        self.vectors.index_copy_(0, place, vectors.to(self.vectors))
        self.ids.index_copy_(0, place, ids.long())
        self.at.copy_((self.at + ids.shape[0]) % size)
