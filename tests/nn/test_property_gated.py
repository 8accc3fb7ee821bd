"""The property-gated LSTM and its attention, step by step."""

import torch

from recstack.nn.sequence.property_gated import PropertyGated


def test_it_is_its_equations_and_reads_several_prefixes_at_once():
    torch.manual_seed(0)
    block = PropertyGated(3, 2, 4, side=2, attention=5)
    e, p, q = torch.randn(2, 6, 3), torch.randn(2, 6, 2), torch.randn(2, 2)
    where = torch.rand(2, 3, 6) < 0.6
    where[0, 1] = False
    cell, gate = block.lstm.cell, block.lstm.of_property.weight.chunk(3)
    states = torch.zeros(2, 6, 4)
    for r in range(2):
        h = c = torch.zeros(4)
        for t in range(6):
            of_e, of_h = cell.weight_ih @ e[r, t] + cell.bias_ih, cell.weight_hh @ h + cell.bias_hh
            i, f, g, o = (of_e + of_h).chunk(4)
            i, f, o = (x + w @ p[r, t] for x, w in zip((i, f, o), gate, strict=True))
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            states[r, t] = h = o.sigmoid() * c.tanh()
    expected = torch.zeros(2, 3, 4)
    for r, k in ((r, k) for r in range(2) for k in range(3) if where[r, k].any()):
        steps = where[r, k].nonzero().flatten()
        heard = [block.last(block.first(torch.cat([states[r, t], p[r, t], q[r]])).tanh()) for t in steps]
        expected[r, k] = torch.cat(heard).softmax(0) @ states[r, steps]
    torch.testing.assert_close(block(e, p, q, where), expected)
    torch.testing.assert_close(block(e, p, q, where[:, 2]), expected[:, 2])
