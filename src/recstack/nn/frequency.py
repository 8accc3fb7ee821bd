"""How often each id comes in a stream, without a counter for each id."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

PRIME = 2**31 - 1


class StreamingFrequency(nn.Module):
    r"""The chance that an id is in a batch, from the steps between the batches that it was in.

    .. math:: B_{h(y)} \leftarrow (1 - \alpha) B_{h(y)} + \alpha (t - A_{h(y)}), \quad A_{h(y)} \leftarrow t, \qquad
        \hat p(y) = 1 / \max_i B^i_{h_i(y)}

    A is the step at which a bucket was last hit, B the mean gap between hits. Ids that share a bucket look more frequent
    than they are, so that several hash functions and the longest of their gaps are nearer the truth.

    Departs from the paper: a bucket's first 1/α gaps are averaged, so that no first value of B has to be guessed.

    Args:
        buckets: of each hash function.
        hashes: how many functions.
        rate: α: how fast a change is followed, against how calm the estimate is.

    Yi et al., RecSys 2019, algorithms 2 and 3, https://research.google/pubs/pub48840

    >>> frequency = StreamingFrequency(100)
    >>> for step in range(1, 51):
    ...     frequency.update(torch.tensor([7, 7, 8] if step % 5 == 0 else [7]))
    >>> frequency(torch.tensor([7, 8])).exp()
    tensor([1.0000, 0.2000])
    """

    step: Tensor
    last: Tensor
    gap: Tensor
    hits: Tensor
    keys: Tensor

    def __init__(self, buckets: int = 1 << 16, hashes: int = 2, rate: float = 0.01):
        super().__init__()
        self.buckets, self.rate = buckets, rate
        chance = random.Random(0)
        keys = [[chance.randrange(1, PRIME), chance.randrange(PRIME), i * buckets] for i in range(hashes)]
        self.register_buffer("keys", torch.tensor(keys), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(hashes * buckets, dtype=torch.int64))  # A
        self.register_buffer("gap", torch.zeros(hashes * buckets))  # B
        self.register_buffer("hits", torch.zeros(hashes * buckets, dtype=torch.int32))

    @torch.no_grad()
    def update(self, ids: Tensor) -> None:
        """One step, with these ids in its batch; how often one is among them does not matter."""
        self.step += 1
        places = self._places(ids).unique()
        self.hits[places] += 1
        rate = (1 / self.hits[places]).clamp(min=self.rate)
        self.gap[places] += rate * (self.step - self.last[places] - self.gap[places])
        self.last[places] = self.step

    def forward(self, ids: Tensor) -> Tensor:
        """:math:`\\log \\hat p` of ids, float32; one that never came is as rare as one in all steps so far."""
        places = self._places(ids)
        gap = torch.where(self.hits[places] > 0, self.gap[places], self.step.to(self.gap))
        return -gap.amax(0).clamp(min=1).log()

    def _places(self, ids: Tensor) -> Tensor:
        """``[hashes, ...]``"""
        a, b, start = self.keys.view(-1, 3, *[1] * ids.dim()).unbind(1)
        return (ids.long() * a + b) % PRIME % self.buckets + start
