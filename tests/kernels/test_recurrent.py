"""A GRU and a beam of pages, each against the same in torch."""

import torch

from recstack.kernels import pages, recurrent
from recstack.nn.lists.matching import _beam
from recstack.nn.sequence.recurrent import GRU


def test_a_gru_of_few_sequences_is_torchs():
    torch.manual_seed(0)
    block = GRU(5, 7)
    x, mask = torch.randn(recurrent.FEW + 1, 9, 5), torch.arange(9) < torch.tensor([9, 3, 0, 1, 5])[:, None]
    whole = block(x, mask)
    with torch.no_grad():
        for n in (1, recurrent.FEW, recurrent.FEW + 1):
            torch.testing.assert_close(block(x[:n], mask[:n]), whole[:n], rtol=0, atol=1e-6)
        assert block(x[:1, :0], mask[:1, :0]).shape == (1, 0, 7)  # an empty history


def test_a_beam_is_the_one_of_tensors():
    torch.manual_seed(0)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 0])[:, None]
    for ties in (False, True):
        chance = torch.rand(4, 4, 6).masked_fill(~mask[:, None], -30).softmax(-1)
        chance = (4 * chance).round() / 4 if ties else chance
        unit = torch.nn.functional.normalize(torch.randn(4, 6, 3), dim=-1)
        alike = unit @ unit.transpose(1, 2)
        for alpha in (0.0, 0.3):
            for count in (1, 3, 40):
                turn, total = pages.beam(chance.numpy(), alike.numpy(), mask.numpy(), alpha, count)
                expected, value = _beam(chance, alike, mask, alpha, count)
                n = min(count, value.shape[1])
                torch.testing.assert_close(torch.from_numpy(total)[:, :n], value[:, :n])
                there = value[:, :n].isfinite()
                assert torch.equal(torch.from_numpy(turn)[:, :n][there], expected[:, :n][there])
