"""Linear layers over fields against one product at a time."""

import pytest
import torch

from recstack.nn.interaction.fields import AcrossFields, PerField


@pytest.mark.parametrize("bias", [True, False])
def test_across_fields_combines_fields(bias):
    layer, x = AcrossFields(3, 5, bias=bias), torch.randn(2, 4, 3, 6)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    y = layer(x)
    assert y.shape == (2, 4, 5, 6)
    for g in range(5):
        slow = sum(layer.weight[g, f] * x[..., f, :] for f in range(3)) + (layer.bias[g] if bias else 0)
        torch.testing.assert_close(y[..., g, :], slow)


@pytest.mark.parametrize("bias", [True, False])
def test_per_field_gives_each_field_its_matrix(bias):
    layer, x = PerField(3, 6, 2, bias=bias), torch.randn(2, 4, 3, 6)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    y = layer(x)
    assert y.shape == (2, 4, 3, 2)
    for f in range(3):
        slow = x[..., f, :] @ layer.weight[f] + (layer.bias[f] if bias else 0)
        torch.testing.assert_close(y[..., f, :], slow)
