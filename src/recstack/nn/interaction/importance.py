"""Squeeze and excitation: how much each field matters to a row."""

from __future__ import annotations

from torch import Tensor, nn

from recstack.nn.mlp import linear


class FieldImportance(nn.Module):
    r"""A weight of at least 0 for each field, from the means of all: ``[..., F] → [..., F]`` in float32.

    .. math:: a = \mathrm{ReLU}(W_2\, \mathrm{ReLU}(W_1 \bar e))

    SENET of FiBiNET (Huang et al., RecSys 2019, https://arxiv.org/abs/1905.09433), and of two-tower models.

    Args:
        fields: F.
        reduction: F over the hidden width.
    """

    def __init__(self, fields: int, reduction: int = 3):
        super().__init__()
        between = max(1, fields // reduction)
        self.squeeze = linear(fields, between, bias=False)
        self.excite = linear(between, fields, bias=False)

    def forward(self, means: Tensor) -> Tensor:
        return self.excite(self.squeeze(means.float()).relu()).relu()
