"""The estimate of memory is what training then takes."""

import pytest
import torch
from torch import Tensor, nn
from worlds import Net, world

from recstack.training import Trainer, memory, optimizers
from recstack.training.optimizers import OPTIMIZERS


def taken(group):
    """Bytes of an optimiser's state after a step, scalars aside."""
    for p in group.params.values():
        p.grad = torch.ones_like(p)
    group.optimizer.step()
    states = group.optimizer.state.values()
    return sum(v.numel() * v.element_size() for s in states for v in s.values() if isinstance(v, Tensor) and v.dim())


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_state_is_what_the_optimiser_makes(name):
    model = Net(rows=30, dim=6)
    expected = sum(taken(g) for g in optimizers.route(model, name))
    assert memory.estimate(Net(rows=30, dim=6), name).state == expected


@pytest.mark.parametrize("options", [{"momentum": 0.9, "lr": 0.1}, {"lr": 0.1}])
def test_options_count(options):
    groups = optimizers.route(nn.Linear(5, 3), ("sgd", options))
    expected = sum(taken(g) for g in groups)
    assert memory.estimate(nn.Linear(5, 3), ("sgd", options)).state == expected


def test_a_sparse_gradient_has_at_most_the_rows_of_a_batch():
    model = Net(rows=1000, dim=6)
    batch = {"ids": torch.ones(20, 2, dtype=torch.int32), "click@label": torch.ones(20)}
    rows = {name: memory.estimate(model, name, batch=batch).parts[0].gradients for name in ("rowwise_adagrad", "adam")}
    assert rows == {"rowwise_adagrad": 40 * 6 * 4, "adam": 1000 * 6 * 4}
    assert memory.estimate(model, "adam", batch=batch).batch == 20 * 2 * 4 + 20 * 4


def test_copies_are_counted(tmp_path):
    plain = memory.estimate(Net(), "adam")
    copies = memory.estimate(Net(), "adam", average=True, best=True, checkpoint=True)
    assert copies.copies == 2 * plain.weights + plain.weights + plain.state
    t = Trainer(Net(), optimizer="adam", average="ema", monitor="loss", checkpoint=tmp_path, epochs=1, progress=False)
    t.fit(world(), world(2))
    assert t.memory.copies == copies.copies


def test_too_little_is_warned_of_before_the_first_step(monkeypatch, capsys):
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    model = Net(rows=2000)
    with pytest.warns(UserWarning, match=r"Training takes about .* KiB beside the weights, and 1000 B are free"):
        Trainer(model, epochs=1).fit(world())
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "memory: table 2,000 × 4 (31.2 KiB) + 89 other weights"
    assert "optimiser 8.5 KiB" in said[1]
    assert said[1].endswith("; 1000 B free")


def test_what_is_free_is_known_here():
    found = memory.free(torch.device("cpu"))
    assert found is None or found > 2**20
