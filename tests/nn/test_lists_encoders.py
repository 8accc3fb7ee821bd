"""List encoders: each against a loop over its paper's equation, and no padding read by any."""

import pytest
import torch

from recstack.errors import ConfigError
from recstack.nn.lists import ENCODERS, ListEncoder
from recstack.nn.sequence.transformer import SelfAttention

W, HEADS, KERNEL = 8, 2, 3
MASK = torch.tensor([[True] * 5, [True, True, False, True, False], [False] * 5])


def encoder(kind, hidden=6, layers=1, **options):
    torch.manual_seed(0)
    return ListEncoder(kind, W, layers, HEADS, hidden, kernel=KERNEL, **options).eval()


def norm(x, layer):
    return torch.nn.functional.layer_norm(x, x.shape, layer.weight, layer.bias)


def attention(block, x, mask):
    """Head by head, item by item."""
    out, width = torch.zeros_like(x), x.shape[-1]
    size = width // block.heads
    q, k, v = (block.project(x)[:, i * width : (i + 1) * width] for i in range(3))
    for i in mask.nonzero().flatten():
        heads = []
        for h in range(block.heads):
            part = slice(h * size, (h + 1) * size)
            weight = torch.stack([q[i, part] @ k[j, part] / size**0.5 for j in mask.nonzero().flatten()]).softmax(0)
            heads.append(sum(w * v[j, part] for w, j in zip(weight, mask.nonzero().flatten(), strict=True)))
        out[i] = block.out(torch.cat(heads))
    return out


def convolution(block, x, mask):
    """Place by place, channel by channel."""
    width = x.shape[-1]
    a, b = block.project(x).chunk(2, -1)
    x = a * b.sigmoid() * mask.unsqueeze(-1)
    y = torch.zeros_like(x)
    for t in mask.nonzero().flatten().tolist():
        for c in range(width):
            h = c // (width // block.heads)
            own = block.weight if hasattr(block, "weight") else block.of_place(x[t]).view(block.heads, KERNEL)
            for j, w in enumerate(own[h].softmax(0)):
                if 0 <= t + j - 1 < len(x):
                    y[t, c] += w * x[t + j - 1, c]
    return block.out(y) * mask.unsqueeze(-1)


def layered(layer, mixed, x):
    x = torch.stack([norm(row, layer.norms[0]) for row in x + mixed])
    first, _, _, second = layer.feed
    return torch.stack([norm(row + second(first(row).relu()), layer.norms[1]) for row in x])


def transformer(layer, x, mask):
    return layered(layer, attention(layer.attention, x, mask), x)


def light(layer, x, mask):
    return layered(layer, convolution(layer.mix, x, mask), x)


def lite(layer, x, mask):
    far, near = attention(layer.mix.far, x[:, : W // 2], mask), convolution(layer.mix.near, x[:, W // 2 :], mask)
    return layered(layer, torch.cat([far, near], -1), x)


def gated(layer, x, mask):
    kernel = layer.conv.weight.view(2 * W, KERNEL, W).permute(0, 2, 1)
    found = torch.nn.functional.conv1d(x.T[None], kernel, layer.conv.bias, padding=1)[0].T
    return (x + found[:, :W] * found[:, W:].sigmoid()) * 0.5**0.5


def sru(layer, x, mask):
    value, forget, reset, skip = layer.project(x).chunk(4, -1)
    out = torch.zeros_like(x)
    for part, places in ((slice(0, W // 2), range(5)), (slice(W // 2, W), reversed(range(5)))):
        c = torch.zeros(W // 2)
        for t in places:
            if mask[t]:
                f, r = forget[t, part].sigmoid(), reset[t, part].sigmoid()
                c = f * c + (1 - f) * value[t, part]
                out[t, part] = r * c.tanh() + (1 - r) * skip[t, part]
    return out


def bigru(layer, x, mask):
    out = torch.zeros_like(x)
    for part, gru, up in ((slice(0, W // 2), layer.down, False), (slice(W // 2, W), layer.up, True)):
        w_x, w_h, b_x, b_h = gru.cell.parameters()
        h = torch.zeros(W // 2)
        for t in sorted(mask.nonzero().flatten().tolist(), reverse=up):
            (r, z, n), (hr, hz, hn) = (w_x @ x[t] + b_x).chunk(3), (w_h @ h + b_h).chunk(3)
            r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
            h = (1 - z) * (n + r * hn).tanh() + z * h
            out[t, part] = h
    return out


ORACLES = {
    "transformer": transformer,
    "flattened": transformer,
    "lite": lite,
    "light_conv": light,
    "dynamic_conv": light,
    "conv_seq2seq": gated,
    "sru": sru,
    "bigru": bigru,
}


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_it_is_its_equation(kind):
    block = encoder(kind)
    x = torch.randn(3, 5, W) * MASK.unsqueeze(-1)
    wanted = torch.stack([ORACLES[kind](block.layers[0], *pair) for pair in zip(x, MASK, strict=True)])
    torch.testing.assert_close(block(x, MASK), wanted * MASK.unsqueeze(-1))


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_is_dead_is_read_by_nobody(kind):
    """Neither values, nor more padding, nor lists beside it; gradients stay out too; leading axes are free."""
    block = encoder(kind, layers=2, max_list=4)
    x = torch.randn(3, 5, W, requires_grad=True)
    y = block(x, MASK)
    assert not y[~MASK].any()
    other = torch.where(MASK.unsqueeze(-1), x, 1e3)
    torch.testing.assert_close(block(other, MASK), y)
    longer = torch.cat([other, torch.full((3, 4, W), -1e3)], 1)
    long_mask = torch.cat([MASK, torch.zeros(3, 4, dtype=torch.bool)], 1)
    torch.testing.assert_close(block(longer, long_mask)[:, :5], y)
    torch.testing.assert_close(block(x[:1], MASK[:1]), y[:1])
    torch.testing.assert_close(block(x.unsqueeze(0), MASK.unsqueeze(0))[0], y)
    y.square().sum().backward()
    assert x.grad is not None
    assert not x.grad[~MASK].any()
    assert x.grad[MASK].abs().sum(-1).all()


def test_widths_of_the_position_wise_network():
    def size(*args):
        return sum(p.numel() for p in encoder(*args).parameters())

    assert size("flattened", 50) == size("transformer", W)
    assert size("light_conv", 0) < size("light_conv", 1)


def test_bad_options_are_said():
    with pytest.raises(ConfigError, match=r"list encoder 'lite_conv'\. Did you mean 'light_conv'"):
        encoder("lite_conv")
    with pytest.raises(ConfigError, match="heads must divide"):
        ListEncoder("lite", 6, heads=2)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_without_a_mask_is_that_of_live_steps_and_a_dead_row_is_zeros(causal):
    torch.manual_seed(0)
    block, x = SelfAttention(8, 2), torch.randn(3, 5, 8)
    mask = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    y = block(x, mask, causal)
    torch.testing.assert_close(y[0], block(x[:1], None, causal)[0])
    torch.testing.assert_close(y[1, :2], block(x[1:2, :2], None, causal)[0])
    assert not y[1, 2:].any()
    assert not y[2].any()
