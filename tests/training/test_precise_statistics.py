"""Batch norms' statistics over all rows, exactly, against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError, TrainingError
from recstack.nn.domains import PartitionedNorm
from recstack.nn.mlp import MLP

TASKS = (rs.Task("click"), rs.Task("like"))


class Two(nn.Module):
    """Two norms in a row, dropout between them."""

    def __init__(self):
        super().__init__()
        self.mlp = MLP(3, (4, 2), norm="batch", dropout=0.5)

    def forward(self, batch):
        return self.mlp(batch["x"], batch.get("@mask"))


def rows(n, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def by_numpy(mlp, x):
    """Mean and variance of what each norm meets."""
    out, h = [], x.double().numpy()
    layers = [mlp.first, *[m for m in mlp.rest if isinstance(m, nn.Linear)]]
    norms = [m for m in mlp.rest if isinstance(m, nn.BatchNorm1d)]
    for layer, norm in zip(layers, norms, strict=True):
        h = h @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        out.append((h.mean(0), h.var(0)))
        scale, shift = (p.detach().double().numpy() for p in (norm.weight, norm.bias))
        h = np.maximum((h - out[-1][0]) / np.sqrt(out[-1][1] + norm.eps) * scale + shift, 0)
    return out, norms


def check(model, x):
    wanted, norms = by_numpy(model.mlp, x)
    for (mean, var), norm in zip(wanted, norms, strict=True):
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.running_var.numpy(), var, rtol=1e-4, atol=1e-5)


def test_they_are_those_of_all_rows_whatever_the_batches():
    torch.manual_seed(0)
    model, x = Two(), rows(50)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    done = rs.precise_statistics(model, [{"x": x[:7]}, {"x": x[7:8]}, {"x": x[8:]}])
    check(model, x)
    assert not model.training
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert done.passes == 2  # the second norm stands behind the first
    assert [m.rows for m in done.moved.values()] == [50, 50]
    first = next(iter(done.moved.values()))
    mean, var = by_numpy(model.mlp, x)[0][0]
    assert first.mean == pytest.approx(np.abs(mean / np.sqrt(var)).max(), rel=1e-4)
    assert first.variance == pytest.approx(max(np.maximum(var, 1 / var)), rel=1e-4)
    assert "mlp.rest.0: 50 rows" in str(done)


def test_padding_does_not_count():
    torch.manual_seed(0)
    model, x = Two(), rows(50)
    mask = torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.6
    batch = {"x": torch.where(mask.unsqueeze(1), x, 1e6).view(10, 5, 3), "@mask": mask.view(10, 5)}
    done = rs.precise_statistics(model, [batch])
    check(model, x[mask])
    assert {m.rows for m in done.moved.values()} == {int(mask.sum())}


@pytest.mark.parametrize(
    "make",
    [
        lambda schema: rs.multitask.MMoE(
            schema, dim=4, experts=3, hidden=(6, 5), towers=(4,), norm="batch", dropout=0.4
        ),
        lambda schema: rs.ranking.DIN(schema, dim=4, hidden=(6,)),  # Dice
    ],
    ids=["stacked", "dice"],
)
def test_every_norm_of_a_model_has_mean_and_variance_of_what_it_meets(make):
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(make(schema)).eval()
    batches = [testing.batch(schema, 20, 4, seed=i) for i in range(3)]
    done = rs.precise_statistics(model, batches)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm1d)}
    assert set(done.moved) == set(norms)
    met = {name: [] for name in norms}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda m, x, name=name: met[name].append(x[0].reshape(-1, m.num_features)))
    for batch in batches:
        model(batch)
    for name, norm in norms.items():
        x = torch.cat(met[name]).detach().double().numpy()
        np.testing.assert_allclose(norm.running_mean.numpy(), x.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(norm.running_var.numpy(), x.var(0), rtol=1e-3, atol=1e-4)


def test_domains_have_their_own():
    norm = PartitionedNorm(3, 2)

    class Domains(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, batch):
            return self.norm([batch["a"], batch["b"]], [1, 2])

    a, b = rows(9), rows(31, 1) * 5
    rs.precise_statistics(Domains(), [{"a": a[:2], "b": b[:1]}, {"a": a[2:], "b": b[1:]}])
    for domain, x in ((1, a), (2, b)):
        np.testing.assert_allclose(norm.mean[domain].numpy(), x.numpy().mean(0), rtol=1e-4)
        np.testing.assert_allclose(norm.var[domain].numpy(), x.numpy().var(0), rtol=1e-4)
    assert norm.rows.tolist() == [0, 9, 31]


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="Linear has no batch norm"):
        rs.precise_statistics(nn.Linear(2, 2), [])
    with pytest.raises(TrainingError, match="No row reached"):
        rs.precise_statistics(Two(), [])
    x = rows(4)
    x[2, 1] = torch.inf
    with pytest.raises(TrainingError, match=r"not finite reached the norm 'mlp.rest.0'"):
        rs.precise_statistics(Two(), [{"x": x}])
