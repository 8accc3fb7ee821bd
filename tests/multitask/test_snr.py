"""SNR: connections that are sampled, counted and cut."""

import math

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError
from recstack.models.base import load
from recstack.models.multitask import SNRAver, SNRTrans
from recstack.schema import Numeric, Schema, Task

TASKS = (Task("click"), Task("like"), Task("share"))


def made(kind, **options):
    schema = testing.schema(tasks=TASKS)
    options = {"dim": 4, "networks": (4, 3), "hidden": (6, 5), "towers": (4,), **options}
    return testing.wake(kind(schema, **options)), schema


def clipped(log_alpha):
    return (torch.sigmoid(log_alpha) * 1.2 - 0.1).clamp(0, 1)


@pytest.mark.parametrize("kind", [SNRTrans, SNRAver])
def test_snr_by_the_equation(kind):
    model, schema = made(kind)
    batch = testing.batch(schema, 3, 2)
    u = list(model.bottom(model.trunk.inputs(batch).flat()).unbind(-2))
    for l, level in enumerate(model.connections):
        z, last = clipped(level.log_alpha).view(level.targets, level.sources), l == 1
        v = []
        for i in range(level.targets):
            if kind is SNRTrans:
                weight = level.weight.view(level.targets, level.sources, *level.weight.shape[1:])
                one = level.bias[i] + sum(z[i, j] * (u[j] @ weight[i, j]) for j in range(level.sources))
                v.append(one if last else one.relu())
            else:
                one = sum(z[i, j] * u[j] for j in range(level.sources))
                v.append(one if last else (one @ level.weight[i] + level.bias[i]).relu())
        u = v
    for name, logit in model.answer(torch.stack(u, -2), batch).items():
        torch.testing.assert_close(model(batch)[name], logit)


def test_connections_are_sampled_once_a_batch_and_count_by_louizos():
    model, schema = made(SNRTrans)
    level = model.connections[0].train()
    with torch.no_grad():
        level.log_alpha.fill_(0.4)
    draws = torch.stack([level.gates() for _ in range(4000)]).flatten()
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    chance = 1 / (1 + math.exp(-(0.4 - beta * math.log(-gamma / zeta))))
    assert float((draws > 0).float().mean()) == pytest.approx(chance, abs=0.01)
    assert level.l0().item() == pytest.approx(12 * chance, rel=1e-5)
    assert 0 < float((draws == 1).float().mean()) < chance  # exact ones and zeros, and what is between
    row = testing.batch(schema, 1, 1)
    twice = {k: torch.cat([v, v]) for k, v in row.items()}
    logit = model.train()(twice)["click"]
    torch.testing.assert_close(logit[0], logit[1])  # both rows met the same draw


def test_what_is_learned_is_registered_and_what_is_drawn_is_not():
    """A peer kept its matrices in lists that no optimiser saw, and learned the noise."""
    model, _ = made(SNRTrans)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if n.startswith("connections")}
    assert shapes == {
        "connections.0.log_alpha": (12,),
        "connections.0.weight": (12, 6, 5),
        "connections.0.bias": (3, 5),
        "connections.1.log_alpha": (9,),
        "connections.1.weight": (9, 5, 5),
        "connections.1.bias": (3, 5),
    }


@pytest.mark.parametrize("kind", [SNRTrans, SNRAver])
def test_pruning_drops_what_is_closed_and_predicts_the_same(kind, tmp_path):
    model, schema = made(kind)
    with torch.no_grad():
        low, high = (level.log_alpha for level in model.connections)
        high.view(3, 3)[:, 1] = -9.0  # nothing reads the second sub-network of the upper level,
        low.view(3, 4)[[0, 2], 3] = -9.0  # and then nothing the last of the lower
        low.view(3, 4)[0, 0] = -9.0
    batch = testing.batch(schema, 5, 3)
    small = model.prune()
    assert (small.config["networks"], len(small.connections[0].pairs), len(small.connections[1].pairs)) == (
        (3, 2),
        5,
        6,
    )
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for name, logit in model(batch).items():
        torch.testing.assert_close(small(batch)[name], logit)
    again = load(small.save(tmp_path / "small"))
    torch.testing.assert_close(again(batch)["like"], small(batch)["like"], rtol=0, atol=0)


def test_a_model_whose_connections_are_all_closed_still_prunes():
    model, schema = made(SNRTrans)
    with torch.no_grad():
        for level in model.connections:
            level.log_alpha.fill_(-9.0)
    batch = testing.batch(schema)
    torch.testing.assert_close(model.prune()(batch)["click"], model(batch)["click"])


def test_the_parameters_of_the_paper():
    """A matrix in each connection; in the average none, but one for each sub-network."""
    schema = Schema([Numeric(f"x{i}", "item") for i in range(100)], TASKS[:2])
    bottom, towers = 4 * (100 * 16 + 16), 2 * (16 * 16 + 16 + 17)
    trans, aver = (sum(p.numel() for p in m(schema).parameters()) for m in (SNRTrans, SNRAver))
    assert trans == bottom + (16 * 256 + 4 * 16 + 16) + (8 * 256 + 2 * 16 + 8) + towers
    assert aver == bottom + (4 * (256 + 16) + 16) + 8 + towers


def test_connections_that_cannot_be_are_said():
    with pytest.raises(ConfigError, match=r"no connection \(3, 0\)"):
        made(SNRTrans, connections=(((3, 0),), ((0, 0),)))
    with pytest.raises(ConfigError, match="level by level"):
        made(SNRTrans, hidden=(6,))
