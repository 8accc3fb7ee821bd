"""LR trained by FTRL-proximal: equal to the paper's algorithm by hand, with weights that are exactly zero."""

import math

import numpy as np
import pytest
import torch

import recstack as rs

ALPHA, BETA, L1, L2 = 0.3, 1.0, 0.02, 0.1


def schema() -> rs.Schema:
    return rs.Schema(
        [
            rs.Categorical("user", "user", size=9),
            rs.Categorical("item", "item", size=12),
            rs.Numeric("price", "item"),
        ],
        [rs.Task("click")],
    )


def batches(n: int, rows: int = 16) -> list[dict[str, torch.Tensor]]:
    """Users decide, items and prices are noise."""
    chance = np.random.default_rng(0)
    out = []
    for _ in range(n):
        user, item = chance.integers(1, 9, rows), chance.integers(1, 12, (rows, 1))
        click = chance.random((rows, 1)) < np.where(user % 2, 0.9, 0.1)[:, None]
        out.append(
            {
                "user": torch.from_numpy(user),
                "item": torch.from_numpy(item),
                "price": torch.from_numpy(chance.normal(size=(rows, 1))).float(),
                "click@label": torch.from_numpy(click).float(),
            }
        )
    return out


def trained(data, **options) -> rs.ranking.LR:
    torch.manual_seed(0)
    model = rs.ranking.LR(schema())
    model.fit(data, optimizer=("ftrl", {"lr": ALPHA, "beta": BETA, **options}), epochs=1, progress=False)
    return model


def weights(model) -> dict:
    """{("user", id) or "price" or "bias": weight}."""
    linear = model.first_order["click"]
    tables = {name: linear.inputs.tables.by_id(name) for name in ("user", "item")}
    out = {(name, i): table[i].item() for name, table in tables.items() for i in range(1, len(table))}  # 0 is padding
    out["price"] = linear.numbers["price"].weight.item()
    (bias,) = model.heads.parameters()
    return out | {"bias": bias.item()}


def test_ftrl_is_the_papers_algorithm():
    """McMahan et al. 2013, algorithm 1, coordinate by coordinate; the gradient of a batch is the mean of its rows'."""
    data = batches(30)
    torch.manual_seed(0)
    w = weights(rs.ranking.LR(schema()))
    z, n = dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0)
    for batch in data:
        gradient: dict = {}
        for r in range(16):
            price = batch["price"][r, 0].item()
            x = {
                ("user", batch["user"][r].item()): 1.0,
                ("item", batch["item"][r, 0].item()): 1.0,
                "price": price,
                "bias": 1.0,
            }
            chance = 1 / (1 + math.exp(-sum(w[k] * v for k, v in x.items())))
            for k, v in x.items():
                gradient[k] = gradient.get(k, 0.0) + (chance - batch["click@label"][r, 0].item()) * v / 16
        for k, g in gradient.items():
            z[k] += g - (math.sqrt(n[k] + g * g) - math.sqrt(n[k])) / ALPHA * w[k]
            n[k] += g * g
            sign = math.copysign(1, z[k])
            w[k] = 0.0 if abs(z[k]) <= L1 else -(z[k] - sign * L1) / ((BETA + math.sqrt(n[k])) / ALPHA + L2)
    found = weights(trained(data, l1=L1, l2=L2))
    assert found == pytest.approx(w, abs=1e-5)


def test_l1_sets_the_weights_of_noise_to_exact_zeros():
    data = batches(60)
    dense, sparse = weights(trained(data)), weights(trained(data, l1=0.6))
    users, items = ([(name, i) for i in range(1, size)] for name, size in (("user", 9), ("item", 12)))
    assert all(dense[k] != 0 for k in (*users, *items))
    assert all(abs(sparse[k]) > 0.05 for k in users)
    assert sum(sparse[k] == 0 for k in items) >= 9
