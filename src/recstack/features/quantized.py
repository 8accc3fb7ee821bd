"""Rows of 8 or 4 bits for serving: each row an affine code of its own, x ≈ scale · q + offset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features.tables import Arena, Layout, Tables
from recstack.kernels.rows import Rows

BITS = (8, 4)


class QuantizedArena(Layout, nn.Module):
    """An arena that is read and never trained: uint8 rows in the format of torch's quantised embedding bags.

    A row of D weights takes D + 8 bytes (8 bits: codes, float32 scale and offset) or D / 2 + 4 (4 bits: float16), in place
    of 4 · D. With q in 0 … 2^bits - 1 and scale = (max - min) / (2^bits - 1), a weight is off by half a scale at most,
    beside the rounding of scale and offset. Padding stays exactly zero.
    """

    packed: Tensor

    def __init__(self, arena: Arena, bits: int):
        super().__init__()
        self.codes, self.sizes, self.start, self.rows = arena.codes, arena.sizes, arena.start, arena.rows
        self.embedding_dim, self.bits = arena.embedding_dim, bits
        weight = arena.weight.detach().float().cpu()
        self.register_buffer("packed", _OPS[bits][0](weight).to(arena.weight.device), persistent=False)
        self.training = False

    def forward(self, rows: Rows) -> Tensor:
        """``[*index.shape, D]``, or ``[bags, D]`` with offsets; float32."""
        index, offsets = rows.index.reshape(-1), rows.offsets
        # torch has these operators for the CPU only, and cannot trace that of 4 bits
        if index.device.type == "cpu" and (self.bits == 8 or not torch.compiler.is_compiling()):
            bags = torch.arange(index.shape[0] + 1) if offsets is None else offsets
            found = _OPS[self.bits][1](self.packed, index.long(), bags.long(), include_last_offset=True)
        else:
            found = unpacked(self.packed[index.long()], self.bits)
            if offsets is not None:
                bag = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=index.device), offsets.diff())
                found = found.new_zeros(len(offsets) - 1, found.shape[1]).index_add_(0, bag, found)
        if offsets is None:
            return found.view(*rows.index.shape, self.embedding_dim)
        if rows.mean:
            found = found / rows.live.clamp(min=1)[:, None]
        return found

    def every(self) -> Tensor:
        return unpacked(self.packed, self.bits)

    def train(self, mode: bool = True) -> QuantizedArena:
        if mode:
            raise ConfigError("Quantised tables are for serving; train the model that quantized() was called on.")
        return super().train(mode)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        self._write(self.packed, destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix, local_metadata, strict, *lists) -> None:
        self._read(self.packed, state_dict, prefix, strict, *lists)


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """The float32 rows of packed ones, by plain torch."""
    width = packed.shape[-1] - (8 if bits == 8 else 4)
    q, affine = packed[:, :width], packed[:, width:].contiguous()
    affine = affine.view(torch.float32 if bits == 8 else torch.float16).float()
    if bits == 4:
        q = torch.stack([q & 15, q >> 4], -1).flatten(-2)  # the lower half of a byte comes first
    return q.float() * affine[:, :1] + affine[:, 1:]


def _bag(op: Any) -> Any:
    return lambda packed, index, offsets, include_last_offset: op(
        packed, index, offsets, False, 0, False, None, None, include_last_offset
    )


_q = torch.ops.quantized
_OPS: dict[int, tuple[Any, Any]] = {
    8: (_q.embedding_bag_byte_prepack, _bag(_q.embedding_bag_byte_rowwise_offsets)),
    4: (_q.embedding_bag_4bit_prepack, _bag(_q.embedding_bag_4bit_rowwise_offsets)),
}


def quantize(model: nn.Module, bits: int) -> None:
    """Replace the arenas of a model, in place, wherever that makes them smaller.

    Rows of an odd width take 8 bits where 4 were asked for; rows of one or two weights stay as they are.

    Raises:
        ConfigError: bits that are not 8 or 4, or no table that could be made smaller.
    """
    if bits not in BITS:
        raise ConfigError(f"bits= is 8 or 4; got {bits!r}.")
    done = 0
    for tables in [m for m in model.modules() if isinstance(m, Tables)]:
        for key, arena in list(tables.items()):
            if isinstance(arena, Arena):
                wide = arena.embedding_dim
                own = 4 if bits == 4 and wide % 2 == 0 else 8
                if (wide + 8 if own == 8 else wide // 2 + 4) < wide * arena.weight.element_size():
                    tables[key] = QuantizedArena(arena, own)
                    done += 1
    if not done:
        raise ConfigError(f"{type(model).__name__} has no table that {bits}-bit rows would make smaller.")
