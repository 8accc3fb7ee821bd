"""Vectors of numbers, by loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

import recstack as rs
from recstack import testing
from recstack.features import Inputs
from recstack.nn.numbers import AutoDis
from recstack.schema import Categorical, Numeric, Schema, Task


def test_autodis_is_the_equation_number_by_number():
    torch.manual_seed(0)
    block = AutoDis(3)
    with torch.no_grad():
        block.log_temperature.fill_(math.log(0.3))
    x = torch.tensor([[0.2, -1.5], [3.0, 0.0]])
    found = block(x)
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        h = [w * float(x[place]) for w in block.weight.tolist()]
        h = [v if v > 0 else 0.01 * v for v in h]
        mixed = [sum(w * v for w, v in zip(row, h, strict=True)) for row in block.mix.tolist()]
        score = [math.exp((m + AutoDis.SKIP * v) / 0.3) for m, v in zip(mixed, h, strict=True)]
        slow = sum(s * m for s, m in zip(score, block.meta, strict=True)) / sum(score)
        torch.testing.assert_close(found[place], slow)


def test_piecewise_is_the_encoding_of_raw_values_over_bins_of_equal_mass():
    """The Encoder's distribution function and the block together give Gorishniy's encoding of the raw column."""
    raw = np.random.default_rng(0).lognormal(size=500)
    rows = {"item": np.arange(500) % 7, "price": raw, "click": np.arange(500) % 2}
    features = [Categorical("item", "item"), Numeric("price", "item", embedding="piecewise", bins=5, dim=4)]
    log = rs.Log(rows, Schema(features, [Task("click")]))
    encoder = rs.Encoder(log.schema).fit(log)
    inputs = Inputs(encoder.schema, 8)
    probe = np.array([raw.min() / 2, *np.quantile(raw, [0.1, 0.2, 0.37, 0.8]), raw.max() * 2])
    edges = np.quantile(raw, np.arange(6) / 5)
    slow = [[min(max((x - a) / (b - a), 0), 1) for a, b in itertools.pairwise(edges)] for x in probe]
    u = torch.from_numpy(encoder.column("price", probe))
    block = inputs.numbers["price"]
    torch.testing.assert_close(block.encode(u), torch.tensor(slow).float(), rtol=0, atol=1e-5)
    batch = {"item": torch.full((6, 1), 2), "price": u.view(6, 1)}
    wanted = torch.tensor(slow).float() @ block.linear.weight.T + block.linear.bias
    torch.testing.assert_close(inputs(batch)["price"][:, 0], wanted, rtol=0, atol=1e-5)
    assert inputs.widths == {"item": 8, "price": 4}


def test_fields_of_one_width_take_them_as_they_are():
    kinds = {"age": {"transform": "standard", "embedding": "autodis"}, "price": {"embedding": "piecewise", "bins": 7}}
    schema = testing.schema()
    schema = schema.with_features(*[Numeric(name, schema.feature(name).role, **o) for name, o in kinds.items()])
    batch = testing.batch(schema, 4, 3)
    inputs = Inputs(schema, 6, stacked=True)
    assert not {"age", "price"} & set(inputs.lifts)
    for name in ("age", "price"):
        place = list(inputs.widths).index(name)
        vector = inputs.numbers[name](batch[name])
        vector = vector.unsqueeze(1).expand(-1, 3, -1) if name == "age" else vector
        torch.testing.assert_close(inputs(batch).stack()[:, :, place], vector)
    for model in (
        rs.ranking.DeepFM(schema, dim=6, hidden=(8,)),
        rs.ranking.FwFM(schema, dim=6, linear="FeLV"),
        rs.ranking.DLRM(schema, dim=6),
    ):
        sum(model.losses(batch).values()).backward()
        learned = [p for n, p in model.named_parameters() if ".numbers.age" in n or ".numbers.price" in n]
        assert learned
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned), type(model).__name__
