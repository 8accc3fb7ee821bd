"""The encoder of a list, by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.nn.lists import layers as kinds

#: The layer of each kind of encoder.
ENCODERS: dict[str, type[nn.Module]] = {
    "transformer": kinds.FullLayer,
    "flattened": kinds.FlattenedLayer,
    "lite": kinds.LiteLayer,
    "light_conv": kinds.LightConvLayer,
    "dynamic_conv": kinds.DynamicConvLayer,
    "conv_seq2seq": kinds.GatedConvLayer,
    "sru": kinds.SRULayer,
    "bigru": kinds.BiGRULayer,
}


class ListEncoder(nn.Module):
    """Layers in which the items of a list see each other: ``x [..., L, W], mask [..., L] → [..., L, W]``.

    What stands where `mask` is False is read by nobody, and comes out as zeros.

    Args:
        kind: "transformer", "flattened", "lite", "light_conv", "dynamic_conv", "conv_seq2seq", "sru" or "bigru".
        width: W.
        layers: how many.
        heads: of attention; in convolutions, the channels of a head share their weights.
        hidden: of the position-wise network; 0 leaves it out of "lite", "light_conv" and "dynamic_conv". Not read by
            "flattened" (as wide as W), "conv_seq2seq", "sru" and "bigru".
        kernel: places that a convolution looks at.
        max_list: places that have a vector of their own, added to x; later ones share the last. None: no positions.
        dropout: in every layer.

    Raises:
        ConfigError: a kind that is not known, or heads that do not divide the width.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        layers: int = 1,
        heads: int = 1,
        hidden: int = 128,
        *,
        kernel: int = 3,
        max_list: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if kind not in ENCODERS:
            raise unknown("list encoder", kind, ENCODERS)
        if kernel < 1:
            raise ConfigError(f"kernel must be at least 1; got {kernel}.")
        self.positions = None if max_list is None else nn.Parameter(0.02 * torch.randn(max_list, width))
        layer = ENCODERS[kind]
        self.layers = nn.ModuleList(layer(width, heads, hidden, kernel, dropout) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        lead = x.shape
        if self.positions is not None:
            place = torch.arange(x.shape[-2], device=x.device).clamp(max=self.positions.shape[0] - 1)
            x = x + self.positions[place]
        x = x * mask.unsqueeze(-1)
        x, mask = x.flatten(0, -3), mask.flatten(0, -2)
        for layer in self.layers:
            x = layer(x, mask)
        return x.view(lead)
