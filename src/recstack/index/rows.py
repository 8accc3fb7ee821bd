"""The vectors of an index, as they are or in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from recstack.errors import unknown

KINDS = ("float32", "int8", "binary")
_BLOCK = 65536  # rows made into floats at once


class Rows:
    r"""N vectors of D numbers: float32, int8 (a quarter of the memory) or one bit a number (a thirtieth).

    .. math:: x \approx s\, \mathrm{round}(x / s), \quad s = \max_d |x_d| / 127 \qquad\text{or}\qquad
        x \approx s\, \mathrm{sign}(x), \quad s = \tfrac1D \sum_d |x_d|

    Queries stay float32.

    Args:
        kind: "float32", "int8" or "binary".
        codes: float32 ``[N, D]``, int8 ``[N, D]``, or uint8 ``[N, ⌈D / 8⌉]``, eight signs each.
        scale: s, float32 ``[N]``; empty for float32.
        dim: D.
    """

    def __init__(self, kind: str, codes: Tensor, scale: Tensor, dim: int):
        self.kind, self.codes, self.scale, self.dim = kind, codes, scale, dim

    @classmethod
    def of(cls, vectors: Tensor, kind: str) -> Self:
        """Float vectors ``[N, D]`` as rows of a kind.

        >>> rows = Rows.of(torch.tensor([[1.0, -0.5, 0.25]]), "int8")
        >>> rows.codes.tolist(), [round(v, 3) for v in rows[torch.tensor([0])][0].tolist()]
        ([[127, -64, 32]], [1.0, -0.504, 0.252])
        """
        dim = vectors.shape[1]
        if kind == "float32":
            return cls(kind, vectors, torch.empty(0), dim)
        if kind == "int8":
            scale = vectors.abs().amax(1).clamp(min=1e-30) / 127 if dim else vectors.new_zeros(len(vectors))
            return cls(kind, (vectors / scale.unsqueeze(1)).round().to(torch.int8), scale, dim)
        if kind == "binary":
            bits = torch.nn.functional.pad((vectors > 0).to(torch.uint8), (0, -dim % 8)).unflatten(1, (-1, 8))
            return cls(
                kind,
                (bits << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8),
                vectors.abs().mean(1),
                dim,
            )
        raise unknown("rows", kind, KINDS)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Float32 vectors of these rows, ``[..., D]``."""
        codes = self.codes[index]
        if self.kind == "float32":
            return codes
        if self.kind == "int8":
            return codes.float() * self.scale[index].unsqueeze(-1)
        bits = (codes.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
        return (bits.flatten(-2)[..., : self.dim].float() * 2 - 1) * self.scale[index].unsqueeze(-1)

    def select(self, index: Tensor) -> Rows:
        """Some of the rows, as they are stored."""
        scale = self.scale if self.kind == "float32" else self.scale[index]
        return Rows(self.kind, self.codes[index], scale, self.dim)

    def append(self, vectors: Tensor) -> Rows:
        """With these float vectors behind."""
        more = Rows.of(vectors, self.kind)
        return Rows(self.kind, torch.cat([self.codes, more.codes]), torch.cat([self.scale, more.scale]), self.dim)

    def products(self, queries: Tensor) -> Tensor:
        """Inner products with float queries: ``[Q, D] → [Q, N]``."""
        if self.kind == "float32":
            return queries @ self.codes.T
        out = queries.new_empty(len(queries), len(self))
        for start in range(0, len(self), _BLOCK):
            part = slice(start, start + _BLOCK)
            out[:, part] = queries @ self[part].T
        return out

    def tensors(self) -> dict[str, Tensor]:
        """What a bundle keeps."""
        extra = {} if self.kind == "float32" else {"scale": self.scale, "dim": torch.tensor(self.dim)}
        return {"vectors": self.codes, **extra}

    @classmethod
    def from_tensors(cls, kind: str, tensors: Mapping[str, Tensor]) -> Self:
        """From what `tensors` gave."""
        codes = tensors["vectors"]
        if kind == "float32":
            return cls(kind, codes, torch.empty(0), codes.shape[1])
        return cls(kind, codes, tensors["scale"], int(tensors["dim"]))
