"""Connections of sub-networks are the sums that the paper writes; one that is not there carries nothing."""

import pytest
import torch

from recstack.errors import ConfigError
from recstack.nn.routing import Averaged, Transformed, surviving

PAIRS = [(0, 0), (0, 2), (1, 1)]


@pytest.mark.parametrize("kind", [Transformed, Averaged])
@pytest.mark.parametrize("last", [False, True])
def test_a_network_reads_the_sum_of_its_open_connections(kind, last):
    torch.manual_seed(0)
    level = kind(3, 2, PAIRS, 4, 4 if last else 5, last=last).eval()
    with torch.no_grad():
        level.log_alpha.copy_(torch.tensor([0.3, -9.0, 1.0]))  # the second is closed
    z = (torch.sigmoid(level.log_alpha) * 1.2 - 0.1).clamp(0, 1)
    assert z[1] == 0
    assert level.spread(z).count_nonzero() == 2
    u = torch.randn(6, 3, 4)
    for i in range(2):
        terms = [(n, j) for n, (to, j) in enumerate(PAIRS) if to == i]
        if kind is Transformed:
            v = level.bias[i] + sum(z[n] * u[:, j] @ level.weight[n] for n, j in terms)
            v = v if last else v.relu()
        else:
            v = sum(z[n] * u[:, j] for n, j in terms)
            v = v if last else (v @ level.weight[i] + level.bias[i]).relu()
        torch.testing.assert_close(level(u)[:, i], v)


def test_networks_that_nothing_reads_are_cut_with_their_connections():
    """Of four networks the last is read by one of the next level that no task reads."""
    first, second = Transformed(4, 3, [(0, 1), (1, 1), (2, 3)], 4, 5, last=False), Averaged(3, 2, None, 5, 5, last=True)
    with torch.no_grad():
        second.log_alpha.fill_(-9.0)
        second.log_alpha[second.pairs.index((1, 0))] = 9.0
    kept, live = surviving([first.eval(), second.eval()])
    assert kept == [[(0, 1)], [(1, 0)]]
    assert live == [[1], [0], [0, 1]]
    found = first.cut(kept[0], live[1])
    torch.testing.assert_close(found["weight"], first.weight[:1])
    torch.testing.assert_close(found["bias"], first.bias[:1])


def test_a_connection_between_networks_that_there_are_not_is_refused():
    with pytest.raises(ConfigError, match=r"no connection \(2, 0\)"):
        Transformed(3, 2, [(2, 0)], 4, 4, last=True)
